/* core.h: one worker's state as the steps of a packet see it: tables, snapshot, clock, counters. No I/O in it.
 *
 * Time is `tick` (1/64 s) and `now_ns`, set once a turn. Packets the worker makes itself (RST on expiry, ARP requests,
 * packets released from the neighbour queue) collect in `own` until the worker sends them.
 */
#ifndef FNAT_CORE_H
#define FNAT_CORE_H

#include "frag.h"
#include "handoff.h"
#include "limit.h"
#include "snapshot.h"

enum { OWN_PACKETS = 1024, WAITING_PACKETS = 256, WAITING_PER_NEIGH = 8 };

struct core_port {
    union {
        u8 mac[6];
        u64 source4; /* bytes 6..13 of an IPv4 frame that leaves here: MAC and EtherType */
    };
    u64 source6; /* the same for IPv6 */
    u16 mtu;
    u8 flags;
    bool punt; /* there is a way to the host */
} __attribute__((aligned(32)));

_Static_assert((int)FNAT_PORTS *FIB_MTUS <= (int)NEIGH_LINKS && (int)FIB_MTUS == (int)NEIGH_CLASSES,
               "a neighbour's word has room for port and MTU class");

struct waiting {
    struct packet packet;
    u32 neigh;
};

/* A connection opened by a packet of this batch whose answers cannot be found yet: see conn_settle. */
struct unsettled {
    u64 answer_hash;
    struct packet *packet; /* NULL: it was not forwarded */
    u32 index, gen;
};

/* Packets of one kind that the worker may still make: refilled by the rate each tick, full after a second of silence. */
struct core_limit {
    u32 tick, left; /* left: in 1/64 packets */
};

/* Which addresses have been announced: announce.h. */
struct announcer {
    u8 *known; /* by address id: port + 1 in the low bits; NULL: this worker does not announce */
    u32 cursor;
    u32 directory; /* the table of addresses that was or is being gone through */
    u8 round;
    bool due; /* not at its end yet */
};

struct core {
    /* what a hit touches, together */
    struct conntab table;
    struct conn *conns;
    u64 *counters;
    struct member_stats *members;
    struct neigh_table neigh;
    u32 tick;
    u32 index, workers;
    u32 has_acl; /* of the snapshot */
    struct hash_secret secret;
    struct core_port ports[FNAT_PORTS];
    u16 link_mtu[NEIGH_LINKS]; /* most bytes of an IP packet, by neigh_word_link; 0: the port is down */
    /* the rest */
    u64 now_ns;
    u32 clock_ms, clock_us4;   /* wall clocks for TCP identity, wrapping */
    u32 timeouts[FNAT_STATES]; /* ticks */
    const struct snapshot *snap;
    const u8 *area, *acl;
    struct fib fib;
    u32 acl_sweep; /* connection at which the pass over those that may be denied now goes on; 0: nothing to do */
    u32 acl_pass;  /* its number */
    u32 routes_version;
    u32 sweep; /* connection at which the pass over next hops goes on; 0: nothing to do */
    u32 neigh_at;
    u32 evict_at; /* the record at which the search for an expendable one went on last */
    struct worker_header *header;
    struct wheel *wheel;
    struct lip_table lip;
    struct service_state *services;
    struct address_state *addresses;
    const struct plane_address *plane_addresses;
    const struct plane_member *plane_members;
    const struct plane_service *plane_services;
    struct limits limits;
    u8 role; /* FNAT_ROLE_*: members of which role may be picked */
    u32 conn_capacity;
    struct unsettled unsettled[BATCH];
    u32 unsettled_from, unsettled_to;
    struct frame_pool pool;
    struct packet own[OWN_PACKETS];
    u32 own_count;
    struct waiting waiting[WAITING_PACKETS];
    u32 waiting_count;
    struct frag_table frags;         /* datagrams that come in fragments, identifications of those that leave */
    struct handoff *handoff;         /* NULL: the only worker */
    u64 handed_to;                   /* workers that got something in this turn, as bits */
    struct handoff_rounds rounds[2]; /* begun here: by clients' packets, by answers */
    struct core_limit icmp_limit, echo_limit;
    struct announcer announcer;
};

/* May one more packet be made? rate: a second; 0: always. */
static inline bool core_may(const struct core *k, struct core_limit *l, u32 rate)
{
    if (!rate)
        return true;
    u32 ticks = min_u32(k->tick - l->tick, TICKS_PER_SECOND);
    *l = (struct core_limit){k->tick, min_u32(l->left + ticks * rate, TICKS_PER_SECOND * rate)};
    if (l->left < TICKS_PER_SECOND)
        return false;
    l->left -= TICKS_PER_SECOND;
    return true;
}

static inline void count(struct core *k, enum counter c) { k->counters[c]++; }
static inline void count_n(struct core *k, enum counter c, u64 n) { k->counters[c] += n; }

static inline enum verdict drop(struct core *k, struct packet *p, enum counter reason)
{
    k->counters[reason]++;
    p->reason = (u8)reason;
    return VERDICT_DROP;
}

/* An address as tables want it: 16 bytes, IPv4 first. */
struct addr16 {
    u8 b[16];
};
static inline struct addr16 addr16_4(u32 addr)
{
    struct addr16 a = {{0}};
    memcpy(a.b, &addr, 4);
    return a;
}

static inline struct addr16 addr16_of(u8 family, const void *addr)
{
    struct addr16 a = {{0}};
    memcpy(a.b, addr, family == 4 ? 4 : 16);
    return a;
}
/* Addresses of a packet as it is now: those of IPv6 are read from its header. */
static inline const u8 *packet_src6(const struct packet *p) { return ((const struct ip6_header *)(p->data + p->l3))->src; }
static inline const u8 *packet_dst6(const struct packet *p) { return ((const struct ip6_header *)(p->data + p->l3))->dst; }
static inline struct addr16 packet_src(const struct packet *p)
{
    return p->family == 4 ? addr16_4(p->saddr) : addr16_of(6, packet_src6(p));
}
static inline struct addr16 packet_dst(const struct packet *p)
{
    return p->family == 4 ? addr16_4(p->daddr) : addr16_of(6, packet_dst6(p));
}

static inline const struct snap_address_slot *owned(const struct core *k, u8 family, const u8 addr[16])
{
    return snapshot_address(k->snap, k->area, &k->secret, addr, family);
}
static inline const struct snap_address_slot *owned4(const struct core *k, u32 addr)
{
    struct addr16 a = addr16_4(addr);
    return owned(k, 4, a.b);
}

/* The four addresses of a connection, whatever its families. An IPv4 address fills the first 4 bytes. */
static inline struct addr16 conn_cip(const struct conn *c)
{
    return c->families == FAMILIES_44 ? addr16_4(c->a.v4.cip) : addr16_of(6, c->a.v6.cip);
}
static inline struct addr16 conn_rip(const struct conn *c)
{
    return c->families == FAMILIES_44 ? addr16_4(c->a.v4.rip) : addr16_of(6, c->a.v6.rip);
}
static inline struct addr16 conn_vip(const struct core *k, const struct conn *c)
{
    return c->families == FAMILIES_44 ? addr16_4(c->a.v4.vip) : addr16_of(6, k->plane_addresses[c->vip_id].addr);
}
static inline struct addr16 conn_lip(const struct core *k, const struct conn *c)
{
    return c->families == FAMILIES_44 ? addr16_4(c->a.v4.lip) : addr16_of(6, k->plane_addresses[c->lip_id].addr);
}

/* One direction of a flow, as its packets come in. */
struct flow_key {
    struct addr16 src, dst;
    u16 sport, dport; /* network order */
    u8 proto, family;
};

static inline u64 flow_hash(const struct core *k, const struct flow_key *f)
{
    u32 ports = (u32)f->sport | (u32)f->dport << 16;
    if (f->family == 4)
        return hash_flow4(&k->secret, (u64)get32(f->src.b) | (u64)get32(f->dst.b) << 32, ports, f->proto);
    return hash_flow6(&k->secret, f->src.b, f->dst.b, ports, f->proto);
}

#endif
