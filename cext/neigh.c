/* neigh.c: see neigh.h. Open addressing; places are never given up while the plane lives (a forgotten neighbour is in state
 * NONE), so lookups need no tombstones and ids stay valid. What is unsatisfying: a scan of a large on-link network through a
 * service fills the table; it then refuses new neighbours with a drop reason. */
#include "neigh.h"

static u32 first_place(const struct neigh_table *t, u8 port, u8 family, const u8 addr[16])
{
    return scale_u32((u32)(hash_addr(t->secret, addr, (u32)family << 8 | port) >> 32), t->count);
}

static bool is_key(const struct neigh_entry *e, u8 port, u8 family, const u8 addr[16])
{
    return e->port == port && e->family == family && same_addr(e->addr, addr);
}

u32 neigh_find(const struct neigh_table *t, u8 port, u8 family, const u8 addr[16])
{
    u32 at = first_place(t, port, family, addr);
    for (u32 n = 0; n < t->count; n++, at = at + 1 == t->count ? 0 : at + 1) {
        if (!at)
            continue; /* id 0 means none */
        const struct neigh_entry *e = &t->entries[at];
        u64 word = load_acquire(&e->word);
        if (neigh_word_state(word) == NEIGH_EMPTY)
            return 0;
        if (neigh_word_state(word) != NEIGH_CLAIMED && is_key(e, port, family, addr))
            return at;
    }
    return 0;
}

u32 neigh_get(struct neigh_table *t, u8 port, u8 family, const u8 addr[16])
{
    u32 at = first_place(t, port, family, addr);
    for (u32 n = 0; n < t->count; n++, at = at + 1 == t->count ? 0 : at + 1) {
        if (!at)
            continue;
        struct neigh_entry *e = &t->entries[at];
        u64 word = load_acquire(&e->word);
        while (neigh_word_state(word) == NEIGH_CLAIMED)
            word = load_acquire(&e->word);
        if (neigh_word_state(word) == NEIGH_EMPTY) {
            if (!__atomic_compare_exchange_n(&e->word, &word, neigh_word(NULL, NEIGH_CLAIMED, port), false, __ATOMIC_ACQ_REL,
                                             __ATOMIC_ACQUIRE)) {
                n--, at = at ? at - 1 : t->count - 1; /* somebody was faster: look at this place again */
                continue;
            }
            memcpy(e->addr, addr, 16);
            e->family = family, e->port = port, e->tries = 0, e->used = 0, e->since = 0;
            store_release(&e->word, neigh_word(NULL, NEIGH_NONE, port));
            return at;
        }
        if (is_key(e, port, family, addr))
            return at;
    }
    return 0;
}

void neigh_learn(struct neigh_table *t, u32 id, const u8 mac[6], u8 state, u32 tick)
{
    struct neigh_entry *e = &t->entries[id];
    if (neigh_word_static(load_relaxed(&e->word)) && !(state & NEIGH_STATIC))
        return;
    store_relaxed(&e->tries, 0);
    store_relaxed(&e->since, tick);
    store_release(&e->word, neigh_word(mac, state, e->port));
}

void neigh_forget(struct neigh_table *t, u32 id, u32 tick)
{
    struct neigh_entry *e = &t->entries[id];
    store_relaxed(&e->tries, 0);
    store_relaxed(&e->since, tick);
    store_release(&e->word, neigh_word(NULL, NEIGH_NONE, e->port));
}
