/* conn.h: opening and closing connections. */
#ifndef FNAT_CONN_H
#define FNAT_CONN_H

#include "core.h"

/* Open a connection for this first packet of `svc`. 0 and its index, or the reason why not. Answers find it after conn_settle. */
enum counter conn_open(struct core *k, struct packet *p, const struct snap_service *svc, u16 vip_id, u32 *index);
/* Put in the table entries for answers of all but the last `keep` connections opened: a few packets after the opening, when the bucket has
 * arrived from memory, and all of them before the batch is sent. One that finds no place is closed and its packet dropped. */
void conn_settle(struct core *k, u32 keep);
void conn_close(struct core *k, u32 index);
/* Close the longest half-open connection of this service. False: there is none. */
bool conn_evict_half_open(struct core *k, u32 service);
/* The connection left SYN_RECV, or leaves it by closing. */
void conn_half_open_ends(struct core *k, u32 index);
/* Change the state; a nearer deadline is put into the wheel at once. */
void conn_enter(struct core *k, u32 index, u8 state);
/* A segment said that the connection may be over: when both sides stay silent, the RS is asked. track.c has the reasons. */
void conn_doubt(struct core *k, u32 index);
/* Wheel callback: these came due. */
void conn_due(void *core, const u32 *indices, u32 n, u32 tick);
/* Look up the next hops again after a change of routes: some connections a turn. */
void conn_sweep_routes(struct core *k, u32 budget);
/* Rebuild everything that is derived from the records. Returns how many connections live. */
u32 conn_restore(struct core *k);

static inline u64 conn_hash(const struct core *k, const struct conn *c, enum direction dir)
{
    if (dir == TO_RS)
        return hash_flow4(&k->secret, (u64)c->a.v4.cip | (u64)c->a.v4.vip << 32, (u32)c->cport | (u32)c->vport << 16, c->proto);
    return hash_flow4(&k->secret, (u64)c->a.v4.rip | (u64)c->a.v4.lip << 32, (u32)c->rport | (u32)c->lport << 16, c->proto);
}

/* The connection of this packet, whose hash is set, as index<<1|direction; 0: none. */
static inline u32 conn_find(const struct core *k, const struct packet *p)
{
    u16 tag = conntab_tag(p->hash);
    u32 bucket = conntab_first(&k->table, p->hash);
    const struct bucket *b = &k->table.buckets[bucket];
    for (int round = 0;; round++) {
        for (u32 bits = conntab_match(b, tag); bits; bits &= bits - 1) {
            u32 ref = conntab_ref(b, (u32)__builtin_ctz(bits));
            if (conn_is4(&k->conns[ref >> 1], ref & 1, p))
                return ref;
        }
        if (round || !b->spill)
            return 0;
        b = &k->table.buckets[conntab_other(&k->table, bucket, tag)];
    }
}

#endif
