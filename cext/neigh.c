/* neigh.c: see neigh.h. Open addressing; places are never given up while the plane lives (a forgotten neighbour is in state
 * NONE), so lookups need no tombstones and ids stay valid. What is unsatisfying: a scan of a large on-link network through a
 * service fills the table; it then refuses new neighbours with a drop reason. */
#include "neigh.h"

static u32 first_place(const struct neigh_table *t, u8 port, u8 family, const u8 addr[16])
{
    return scale_u32((u32)(hash_addr(t->secret, addr, (u32)family << 8 | port) >> 32), t->count);
}

static u32 place_after(const struct neigh_table *t, u32 at) { return at + 1 == t->count ? 0 : at + 1; }

static bool is_key(const struct neigh_entry *e, u8 port, u8 family, const u8 addr[16])
{
    return e->port == port && e->family == family && same_addr(e->addr, addr);
}

/* From this place on. */
static u32 find_from(const struct neigh_table *t, u32 at, u8 port, u8 family, const u8 addr[16])
{
    for (u32 n = 0; n < t->count; n++, at = place_after(t, at)) {
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

u32 neigh_find(const struct neigh_table *t, u8 port, u8 family, const u8 addr[16])
{
    return find_from(t, first_place(t, port, family, addr), port, family, addr);
}

u32 neigh_next(const struct neigh_table *t, u32 id)
{
    const struct neigh_entry *e = &t->entries[id];
    u32 next = find_from(t, place_after(t, id), e->port, e->family, e->addr), first = first_place(t, e->port, e->family, e->addr);
    /* In a full table the search comes round to the first again: distances are from where the run begins. */
    u32 here = id >= first ? id - first : id + t->count - first, there = next >= first ? next - first : next + t->count - first;
    return next && there > here ? next : 0;
}

/* What another class knows of this address. Published first, then looked at again: a MAC that is learned meanwhile finds this entry, or is
 * found here. */
static void take_over(struct neigh_entry *e, const struct neigh_entry *known, u32 link)
{
    u64 seen, mask = ((u64)1 << 52) - 1;
    do {
        seen = load_acquire(&known->word);
        if (!neigh_word_usable(seen))
            return;
        store_relaxed(&e->since, load_relaxed(&known->since));
        store_release(&e->word, (seen & mask) | (u64)link << 52);
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
    } while (load_acquire(&known->word) != seen);
}

u32 neigh_get_link(struct neigh_table *t, u32 link, u8 family, const u8 addr[16])
{
    u8 port = (u8)(link / NEIGH_CLASSES);
    u32 at = first_place(t, port, family, addr);
    const struct neigh_entry *sibling = NULL;
    for (u32 n = 0; n < t->count; n++, at = place_after(t, at)) {
        if (!at)
            continue;
        struct neigh_entry *e = &t->entries[at];
        u64 word = load_acquire(&e->word);
        while (neigh_word_state(word) == NEIGH_CLAIMED)
            word = load_acquire(&e->word);
        if (neigh_word_state(word) == NEIGH_EMPTY) {
            if (!__atomic_compare_exchange_n(&e->word, &word, neigh_word(NULL, NEIGH_CLAIMED, link), false, __ATOMIC_ACQ_REL,
                                             __ATOMIC_ACQUIRE)) {
                n--, at = at ? at - 1 : t->count - 1; /* somebody was faster: look at this place again */
                continue;
            }
            memcpy(e->addr, addr, 16);
            e->family = family, e->port = port, e->tries = 0, e->used = 0, e->since = 0;
            store_release(&e->word, neigh_word(NULL, NEIGH_NONE, link));
            if (sibling)
                take_over(e, sibling, link);
            return at;
        }
        if (!is_key(e, port, family, addr))
            continue;
        if (neigh_word_link(word) == link)
            return at;
        if (!sibling || neigh_word_usable(word))
            sibling = e;
    }
    return 0;
}

void neigh_turn(struct neigh_table *t, u32 id, const u8 mac[6], u8 state, u32 tick)
{
    struct neigh_entry *e = &t->entries[id];
    store_relaxed(&e->tries, 0);
    store_relaxed(&e->since, tick);
    store_release(&e->word, neigh_word(mac, state, neigh_word_link(load_relaxed(&e->word))));
}

void neigh_learn(struct neigh_table *t, u32 id, const u8 mac[6], u8 state, u32 tick)
{
    const struct neigh_entry *e = &t->entries[id];
    for (id = neigh_find(t, e->port, e->family, e->addr); id; id = neigh_next(t, id)) {
        if (!neigh_word_static(load_relaxed(&t->entries[id].word)) || state & NEIGH_STATIC)
            neigh_turn(t, id, mac, state, tick);
        __atomic_thread_fence(__ATOMIC_SEQ_CST); /* written before the next one is looked at: see take_over */
    }
}

void neigh_forget(struct neigh_table *t, u32 id, u32 tick)
{
    const struct neigh_entry *e = &t->entries[id];
    neigh_turn(t, id, NULL, NEIGH_NONE, tick);
    for (id = neigh_find(t, e->port, e->family, e->addr); id; id = neigh_next(t, id))
        if (neigh_word_usable(neigh_load(t, id)))
            neigh_turn(t, id, NULL, NEIGH_NONE, tick);
}
