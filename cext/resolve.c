/* resolve.c: see resolve.h. Every neighbour is aged by one worker (id mod workers); a slice of the table a tick, all of it
 * once a second. Waiting packets are looked at in every turn that has any, so it does not matter who learned the MAC. */
#include "resolve.h"

#include "answer.h"
#include "pieces.h"

static void ask_first(struct core *k, u32 id)
{
    struct neigh_entry *e = &k->neigh.entries[id];
    u64 word = neigh_load(&k->neigh, id);
    if (neigh_word_state(word) != NEIGH_NONE)
        return;
    if (!__atomic_compare_exchange_n(&e->word, &word, neigh_word(NULL, NEIGH_SEND, neigh_word_link(word)), false, __ATOMIC_ACQ_REL,
                                     __ATOMIC_RELAXED))
        return; /* another worker asks, or knows by now */
    store_relaxed(&e->tries, 1);
    store_relaxed(&e->since, k->tick);
    answer_ask_neighbour(k, id, false);
}

enum verdict resolve_wait(struct core *k, struct packet *p, u32 neigh, enum direction dir)
{
    u32 same = 0;
    for (u32 i = 0; i < k->waiting_count; i++)
        same += k->waiting[i].neigh == neigh;
    if (!neigh)
        return drop(k, p, DROP_no_route);
    ask_first(k, neigh);
    if (same >= WAITING_PER_NEIGH || k->waiting_count == WAITING_PACKETS)
        return drop(k, p, DROP_neigh_queue_full);
    p->conn = dir; /* the connection may be gone when it leaves */
    k->waiting[k->waiting_count++] = (struct waiting){*p, neigh};
    k->counters[TAKEN_waiting]++;
    count(k, CNT_parked);
    return VERDICT_HELD;
}

static void release_waiting(struct core *k)
{
    u32 kept = 0;
    for (u32 i = 0; i < k->waiting_count; i++) {
        struct waiting *w = &k->waiting[i];
        bool known = neigh_word_usable(neigh_load(&k->neigh, w->neigh));
        bool failed = neigh_word_state(neigh_load(&k->neigh, w->neigh)) == NEIGH_NONE;
        if ((!known && !failed) || (known && k->own_count == OWN_PACKETS)) {
            k->waiting[kept++] = *w;
            continue;
        }
        k->counters[TAKEN_waiting]--;
        if (known) {
            struct packet *p = &k->own[k->own_count++];
            *p = w->packet;
            answer_link(k, p, w->neigh);
            u32 mtu = k->link_mtu[neigh_word_link(neigh_load(&k->neigh, w->neigh))];
            p->verdict = unlikely(mtu && pieces_len(p) > mtu) ? (u8)pieces_split(k, p, mtu) : VERDICT_TX;
            if (p->verdict == VERDICT_TX)
                count(k, p->conn == TO_RS ? CNT_to_rs : CNT_to_client);
        } else {
            drop(k, &w->packet, DROP_neigh_unresolved);
            frame_free(&k->pool, w->packet.frame);
        }
    }
    k->waiting_count = kept;
}

static void age(struct core *k, u32 id)
{
    struct neigh_entry *e = &k->neigh.entries[id];
    u64 word = neigh_load(&k->neigh, id);
    u8 state = neigh_word_state(word);
    u32 for_ticks = k->tick - load_relaxed(&e->since);
    if (state < NEIGH_SEND || neigh_word_static(word))
        return;
    if (state == NEIGH_SEND || state == NEIGH_PROBE) {
        if (for_ticks < NEIGH_RETRANS)
            return;
        if (e->tries >= NEIGH_TRIES) {
            neigh_forget(&k->neigh, id, k->tick);
            return;
        }
        e->tries++;
        store_relaxed(&e->since, k->tick);
        answer_ask_neighbour(k, id, state == NEIGH_PROBE);
    } else if (for_ticks >= NEIGH_REACHABLE_TIME && e->used) {
        u8 mac[6];
        memcpy(mac, &word, 6);
        neigh_turn(&k->neigh, id, mac, NEIGH_PROBE, k->tick);
        e->tries = 1;
        e->used = 0;
        answer_ask_neighbour(k, id, true);
    }
}

void resolve_turn(struct core *k, u32 ticks)
{
    u32 slice = (k->neigh.count / TICKS_PER_SECOND + 1) * min_u32(ticks, TICKS_PER_SECOND);
    for (u32 n = 0; n < slice; n++) {
        if (++k->neigh_at >= k->neigh.count)
            k->neigh_at = 1;
        if (k->neigh_at % k->workers == k->index && k->ports[k->neigh.entries[k->neigh_at].port].flags)
            age(k, k->neigh_at);
    }
    if (k->waiting_count)
        release_waiting(k);
}

void resolve_quiesce(struct core *k)
{
    for (u32 i = 0; i < k->waiting_count; i++) {
        drop(k, &k->waiting[i].packet, DROP_stale);
        frame_free(&k->pool, k->waiting[i].packet.frame);
    }
    k->counters[TAKEN_waiting] = 0;
    k->waiting_count = 0;
}
