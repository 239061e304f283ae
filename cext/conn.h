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
/* Tell both ends of a TCP connection that it is over. False: there is no room for the packets in this turn. */
bool conn_tell_reset(struct core *k, const struct conn *c);
/* Wheel callback: these came due. */
void conn_due(void *core, const u32 *indices, u32 n, u32 tick);
/* Look up the next hops again after a change of routes: some connections a turn. */
void conn_sweep_routes(struct core *k, u32 budget);
/* Rebuild everything that is derived from the records. Returns how many connections live. */
u32 conn_restore(struct core *k);

/* The key by which packets of this direction find the connection. */
static inline struct flow_key conn_key(const struct core *k, const struct conn *c, enum direction dir)
{
    if (dir == TO_RS)
        return (struct flow_key){conn_cip(c), conn_vip(k, c), c->cport, c->vport, c->proto, conn_family(c, TO_RS)};
    return (struct flow_key){conn_rip(c), conn_lip(k, c), c->rport, c->lport, c->proto, conn_family(c, TO_CLIENT)};
}

static inline u64 conn_hash(const struct core *k, const struct conn *c, enum direction dir)
{
    if (likely(c->families == FAMILIES_44)) {
        if (dir == TO_RS)
            return hash_flow4(&k->secret, (u64)c->a.v4.cip | (u64)c->a.v4.vip << 32, (u32)c->cport | (u32)c->vport << 16, c->proto);
        return hash_flow4(&k->secret, (u64)c->a.v4.rip | (u64)c->a.v4.lip << 32, (u32)c->rport | (u32)c->lport << 16, c->proto);
    }
    struct flow_key key = conn_key(k, c, dir);
    return flow_hash(k, &key);
}

/* Does a packet of these addresses and ports belong to the connection in direction dir? The whole key is compared. */
static inline bool conn_is(const struct core *k, const struct conn *c, u32 dir, u8 family, u8 proto, u32 ports, const void *src,
                           const void *dst)
{
    if (conn_family(c, dir) != family || c->proto != proto || !conn_live(c) || get32(dir == TO_RS ? &c->cport : &c->rport) != ports)
        return false;
    if (likely(c->families == FAMILIES_44)) {
        const u32 *addrs = dir == TO_RS ? &c->a.v4.cip : &c->a.v4.rip;
        return addrs[0] == get32(src) && addrs[1] == get32(dst);
    }
    const u8 *far = dir == TO_RS ? c->a.v6.cip : c->a.v6.rip, *near = k->plane_addresses[dir == TO_RS ? c->vip_id : c->lip_id].addr;
    if (family == 4)
        return get32(far) == get32(src) && get32(near) == get32(dst);
    return same_addr(far, src) && same_addr(near, dst);
}

static inline u32 conn_find_by(const struct core *k, u64 hash, u8 family, u8 proto, u32 ports, const void *src, const void *dst)
{
    u16 tag = conntab_tag(hash);
    u32 bucket = conntab_first(&k->table, hash);
    const struct bucket *b = &k->table.buckets[bucket];
    for (int round = 0;; round++) {
        for (u32 bits = conntab_match(b, tag); bits; bits &= bits - 1) {
            u32 ref = conntab_ref(b, (u32)__builtin_ctz(bits));
            if (conn_is(k, &k->conns[ref >> 1], ref & 1, family, proto, ports, src, dst))
                return ref;
        }
        if (round || !b->spill)
            return 0;
        b = &k->table.buckets[conntab_other(&k->table, bucket, tag)];
    }
}

/* The connection of this packet, whose hash is set, as index<<1|direction; 0: none. */
static inline u32 conn_find(const struct core *k, const struct packet *p)
{
    u32 ports = get32(&p->sport);
    if (p->family == 6)
        return conn_find_by(k, p->hash, 6, p->proto, ports, packet_src6(p), packet_dst6(p));
    return conn_find_by(k, p->hash, 4, p->proto, ports, &p->saddr, &p->daddr);
}

/* The same for a key. */
static inline u32 conn_find_key(const struct core *k, const struct flow_key *f)
{
    return conn_find_by(k, flow_hash(k, f), f->family, f->proto, get32(&f->sport), f->src.b, f->dst.b);
}

#endif
