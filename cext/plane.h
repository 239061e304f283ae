/* plane.h: how the memory of a data plane is laid out. Offsets follow from the configuration alone, so that every process that
 * maps the files finds the same things; nothing in them is a pointer.
 */
#ifndef FNAT_PLANE_H
#define FNAT_PLANE_H

#include "arena.h"
#include "conntab.h"
#include "fnat.h"
#include "handoff.h"
#include "io.h"
#include "lip.h"
#include "neigh.h"
#include "record.h"
#include "wheel.h"

enum { PLANE_LAYOUT = 4 }; /* raised when a structure in the files changes */

/* ---- DIR/plane ---- */

struct plane_address {
    u8 addr[16];
    u8 family, kind, port, pad[13];
};
_Static_assert(sizeof(struct plane_address) == 32, "an address does not cross a cache line");

/* A member id: which service it counts for, and whether the configuration still wants it. */
struct plane_member {
    u32 service; /* service id + 1 */
    u32 next;    /* next member id + 1 of the same service */
    u32 usable;  /* weight > 0 */
    u32 since;   /* eighths of a second of CLOCK_MONOTONIC: when it came to others that were usable; 0: it did not */
};

/* What workers share about limits of a member, see limit.h: apart from what a hit reads. */
struct member_limit {
    u64 next_new;   /* ns: no new connection before, less what may come at once */
    u32 overloaded; /* since it had `upper` connections */
    u32 spare;
};

/* Counters of members that left a service and whose ids went to others, so that service counters never go backwards. */
struct plane_service {
    u32 members;      /* first member id + 1 */
    u32 conn_timeout; /* seconds, 0: general */
    u32 persistent, persistent_plen;
    u64 conns, packets[2], bytes[2];
    u64 next_new; /* as of a member */
    u64 acl[2];   /* denied, not allowed: what is taken off the workers' counts */
};

/* How answers find their worker: one NIC port and flow. */
struct plane_steering {
    u32 seq; /* odd while it is being written, else rises with each change */
    u32 spare;
    struct fnat_steering_spec spec;
};

/* Connections that are to be ended: one request at a time. */
struct plane_kill {
    u32 seq; /* odd while it is being written, else rises with each request */
    u32 how;
    struct fnat_conn_filter filter;
};

struct plane_header {
    u8 magic[8];
    u32 layout, size_of_header;
    struct fnat_plane_config config;
    struct hash_secret secret;
    s64 wall_offset_ns; /* wall clock minus CLOCK_MONOTONIC when the plane was made */
    u64 snapshot;       /* number<<32 | offset/64 of the newest sealed snapshot; 0: none yet */
    u32 steering;       /* rises when one of the steering rules changes */
    u32 spare;
    struct plane_kill kill;
    u32 acl_recheck; /* rises when connections shall be looked at again */
};

/* ---- DIR/worker-I ---- */

struct member_stats {
    u64 conns, packets[2], bytes[2];
    union {
        struct {
            u32 active, inactive;
        };
        u64 held; /* both in one load */
    };
    u32 half_open, spare; /* of the inactive ones */
    u64 spare2;
} cache_aligned;
_Static_assert(sizeof(struct member_stats) == CACHE_LINE, "one line a member");

/* What a worker remembers of a service: cursors, and the half-open connections, oldest first. */
struct service_state {
    u32 rr, lip_rr;
    s32 wrr_weight;
    u32 half_head, half_tail, half_count;
    u32 started, draws; /* of sched.c, as are the next ones */
    u16 light[2];       /* members that were least loaded */
    u32 conns;
    u64 acl_denied, acl_not_allowed;
    u32 spare[2];
} cache_aligned;

struct address_state {
    u64 misses;
    u32 used, conns;
};

enum { CONN_LANES = 8 };

struct worker_header {
    u8 magic[8];
    u32 layout, index;
    u32 active;                /* a process runs this worker */
    u32 snapshot_seq;          /* the snapshot in use */
    u32 steering_seen;         /* the steering rules in use */
    u32 conn_free[CONN_LANES]; /* lists of free records through wheel_next, used in turn */
    u32 conn_take, conn_give;  /* whose turn it is */
    u32 conn_fresh;            /* records never used begin after this one */
    u32 conn_count;            /* live */
    u32 intent;                /* conn whose opening or closing is under way; 0: none */
    u32 cpu;                   /* CPU it runs on, + 1; 0: not yet known */
    u32 spare;
    u32 kill_done;     /* the newest request to end connections that is finished */
    u64 killed;        /* connections that it ended */
    u32 acl_rechecked; /* the last pass over the connections that is finished */
    u64 last_now_ns;
    struct lip_marks lip;
    u64 counters[128];
    struct fnat_step_stats steps;
    struct wheel wheel;
};
_Static_assert(COUNTERS <= 128, "room for all counters");

/* ---- a process's view ---- */

struct worker_map { /* pointers into one worker's arena */
    struct arena arena;
    struct worker_header *header;
    struct member_stats *members;
    struct service_state *services;
    struct address_state *addresses;
    struct endpoint *endpoints;
    u32 *endpoint_heads;
    struct port_block *blocks;
    struct bucket *buckets;
    struct conn *conns; /* 1..config.conns */
    u32 head_mask, block_count, bucket_count;
    u64 conn_bytes;
};

struct snapshot_builder;

struct fnat_plane {
    struct fnat_plane_config config;
    struct arena arena, frames;
    struct plane_header *header;
    struct plane_address *addresses; /* by address id */
    struct plane_member *members;    /* by member id */
    struct plane_service *services;  /* by service id */
    struct member_limit *limits;     /* by member id */
    u64 *clients, *templates;        /* of clients, their connections and their RSs: limit.h */
    struct plane_steering *steering; /* [port * FNAT_FLOWS + flow] */
    struct neigh_entry *neighbours;
    u8 *snapshots; /* the area that offsets in snapshots refer to */
    u64 snapshots_len;
    u8 *acl; /* sets of addresses: acl.h */
    u64 acl_len;
    struct worker_map maps[FNAT_WORKERS];
    struct fnat_worker *workers[FNAT_WORKERS];  /* only where the plane was created */
    struct snapshot_builder *builder;           /* made at the first put */
    struct acl_builder *acl_builder;            /* with it */
    struct handoff *handoff;                    /* likewise; NULL with one worker */
    const struct lip_table *lips[FNAT_WORKERS]; /* of the workers */
    bool owner;
    u32 restored;
};

/* Buckets of the table of clients: a power of two, room for one client in four connections. */
static inline u32 plane_client_buckets(const struct fnat_plane_config *c)
{
    u64 wanted = (u64)c->conns * c->workers / 32;
    u32 n = 64;
    while (n < wanted && n < 1u << 17)
        n *= 2;
    return n;
}

int plane_open(const char *dir, const struct fnat_plane_config *config, int flags, bool create, struct fnat_plane **out);
/* What a plane of this configuration would take; nothing is made. */
int plane_measure(const struct fnat_plane_config *config, struct fnat_plane_info *out);
void plane_close(struct fnat_plane *plane);
/* Add this member's counters, over all workers. */
void plane_sum_member(const struct fnat_plane *plane, u32 id, struct fnat_stats *out);

#endif
