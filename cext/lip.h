/* lip.h: local ports. One map per endpoint (protocol, LIP, RS address and port), so that one LIP carries 64 512 connections
 * per RS and protocol, exact over all services.
 *
 * An endpoint is a header; its map is a radix of 64-byte blocks taken on first use and given back when empty:
 *   header -> 8 directories -> 16 chunks each -> 512 ports as bits.
 * The header outlives its last connection (until its place is needed), because it also remembers what an RS in TIME_WAIT may
 * still remember: floors for initial sequence numbers and timestamps.
 *
 * A worker takes only ports whose answers will come to it: steer.h has the rule, the header keeps its k.
 */
#ifndef FNAT_LIP_H
#define FNAT_LIP_H

#include "hash.h"
#include "steer.h"

enum { LIP_PORT_FIRST = 1024, LIP_CHUNK = STEER_SLOTS, LIP_DIRS = 8, LIP_DIR_CHUNKS = 16 };
/* A rule for each NIC port and flow, and the last one for other protocols, which NICs hash as they like: by mask, and flows may come anywhere. */
enum { LIP_MAPS = FNAT_PORTS * FNAT_FLOWS, LIP_RULES };

struct endpoint {
    u8 rip[16];
    u16 rport, lip_id; /* rport in network order */
    u8 proto, family;
    u16 cursor;    /* where the search for a free port goes on, host order */
    u32 next;      /* in its hash chain, or in the list of free endpoints */
    u32 used;      /* ports taken */
    u32 isn_floor; /* later than every sequence number sent here, per-port offset taken out */
    u16 k;         /* of the rule that steers its answers */
    u16 steered;   /* number of that rule, 0: none yet */
    u32 dir[LIP_DIRS];
    u32 ts_lead; /* added to the clock so that timestamps never go back */
    u32 ts_last; /* last timestamp given out */
    u64 salt;    /* hash of protocol, LIP and RS */
    u32 spare[10];
} cache_aligned;
_Static_assert(sizeof(struct endpoint) == 2 * CACHE_LINE, "an endpoint is two lines");

struct port_block {
    union {
        u64 bits[LIP_CHUNK / 64];
        u32 chunk[LIP_DIR_CHUNKS];
        u32 next_free;
    };
} cache_aligned;
_Static_assert(sizeof(struct port_block) == CACHE_LINE, "a block of the port map is one line");

struct lip_table {
    struct endpoint *endpoints; /* 1..endpoint_count */
    u32 *heads;                 /* hash chains */
    struct port_block *blocks;  /* 1..block_count */
    u16 first, last;            /* ports that may be given out */
    u32 endpoint_count, head_mask, block_count;
    struct lip_marks { /* lives in the arena */
        u32 endpoint_free, endpoint_fresh, endpoint_sweep, endpoints_used;
        u32 block_free, block_fresh, blocks_used, ports_used;
    } * marks;
    const struct hash_secret *secret;
    u32 worker, workers;
    struct lip_rule {                         /* by NIC port and flow: how answers find their worker */
        const struct steer_map *map, *before; /* before: the rule until now, while a worker may still go by it */
        u32 number;
        bool loose; /* flows may change their queue */
    } rules[LIP_RULES];
    u32 rule_numbers;                    /* given out */
    bool changing;                       /* a rule has a `before` */
    bool contested;                      /* connections may hold ports that by the rules are another worker's: ask its map too */
    const struct lip_table *const *crew; /* the tables of all workers; NULL with one */
    struct steer_map by_mask;
};

void lip_init(struct lip_table *t, u32 worker, u32 workers);
void lip_close(struct lip_table *t);
/* From now on answers that arrive on this NIC port are steered so. -ENOMEM: they are expected by mask. Until lip_all_follow, which tells
 * that every worker goes by it, only ports are given out that are this worker's by both rules. Connections keep the ports they have;
 * a port that another worker's connection holds is not given out again. */
void lip_all_follow(struct lip_table *t);
int lip_steer(struct lip_table *t, u8 port, u32 flow, const struct fnat_steering_spec *spec);
static inline const struct lip_rule *lip_rule(const struct lip_table *t, u8 port, u8 proto, u8 family)
{
    if (unlikely(proto != 6 && proto != 17))
        return &t->rules[LIP_MAPS];
    return &t->rules[port % FNAT_PORTS * FNAT_FLOWS + steer_flow(proto, family)];
}
/* The endpoint of this tuple, made when absent; 0: no room. */
u32 lip_endpoint(struct lip_table *t, u8 proto, u8 family, u16 lip_id, const u8 rip[16], u16 rport);
u32 lip_find(const struct lip_table *t, u8 proto, u8 family, u16 lip_id, const u8 rip[16], u16 rport);
/* A free port of this worker, host order; 0: none. The LIP is `lip` and lives on `nic_port`. */
u16 lip_port_take(struct lip_table *t, u32 endpoint, u8 nic_port, const u8 lip[16]);
/* The n-th port from the cursor on that this worker may use, taken or not: the ports longest in use come first. 0: none. */
u16 lip_port_oldest(struct lip_table *t, u32 endpoint, u8 nic_port, const u8 lip[16], u32 n);
void lip_port_give(struct lip_table *t, u32 endpoint, u16 port);
/* Mark a known port as taken (rebuilding from the connections). False: it is taken already or there is no room. */
bool lip_port_mark(struct lip_table *t, u32 endpoint, u16 port);

/* TCP identity towards the RS. `clock_us4` and `clock_ms`: wall clocks of 4 us and about 1 ms, wrapping. */
u32 lip_isn(struct lip_table *t, u32 endpoint, u16 port, u32 clock_us4);
/* The connection that closes has used numbers up to `end`, as its client claims, and the client has sent `bytes`: nobody pushes the
 * floor of all clients of the endpoint further than he has paid for. What the RS remembers lies below both. */
void lip_isn_used(struct lip_table *t, u32 endpoint, u16 port, u32 end, u64 bytes);
u32 lip_timestamp(struct lip_table *t, u32 endpoint, u32 clock_ms);

#endif
