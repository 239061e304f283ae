/* snapshot.h: the sealed picture of services, addresses, routes and ports that workers read. Written by control, never changed
 * once published; the next one shares all that did not change: blobs of services, pages of the two hash tables, the routes.
 * So a change of one service among 20 000 writes its blob, one page and a directory, whatever the number of services.
 *
 *   snapshot -> directory -> pages of SNAP_PAGE slots -> blob of a service
 *
 * All references are offsets into the plane's snapshot area, in units of 64 bytes, because two processes map it.
 */
#ifndef FNAT_SNAPSHOT_H
#define FNAT_SNAPSHOT_H

#include "fib.h"
#include "plane.h"

struct snap_member {
    u8 rip[16];
    u32 id;
    u16 rport; /* network order */
    u16 weight;
    u8 family, role, flags, pad;
    u32 upto;                                /* weights of the members up to this one */
    u32 upper, lower, new_per_s, new_period; /* limit.h; new_period: ns */
};

/* One service: immutable, followed by its members, the ids of its LIPs and what slots.h has computed. */
struct snap_service {
    u8 vip[16];
    u32 id;
    u16 vport; /* network order */
    u8 family, proto, sched, no_rs, flags, client_addr;
    u32 conn_timeout; /* seconds, 0: general */
    u32 half_open;
    u32 persistent; /* seconds, 0: not */
    u32 max_conns, new_per_s, new_period, per_client;
    u32 n_members, n_lips;
    u32 weight_gcd, weight_max; /* of members with weight */
    u32 usable;                 /* members with weight */
    u32 slots, runs;            /* of slots.h */
    u32 slow_start;             /* seconds */
    u32 roles;                  /* of members with weight, as bits */
    u16 n_deny, n_allow;        /* address sets, behind the LIPs */
    u8 hash_target, pad2[3];
    struct snap_member members[];
};

struct snap_service_slot {
    u8 vip[16];
    u16 vport;
    u8 proto, family;
    u32 blob; /* 0: empty */
};

struct snap_address_slot {
    u8 addr[16];
    u16 no_port;
    u8 no_proto, family;
    u16 id;
    u8 kind, port; /* kind 0: empty */
};

/* A slot of either table: a key of 20 bytes, and a word that is 0 in an empty slot. */
union snap_slot {
    struct {
        u8 addr[16];
        u16 port;
        u8 proto, family;
        u32 word;
    };
    struct snap_service_slot service;
    struct snap_address_slot address;
};
_Static_assert(sizeof(union snap_slot) == 24 && offsetof(struct snap_address_slot, id) == 20 &&
                   offsetof(struct snap_service_slot, blob) == 20,
               "one key and one word");

enum { SNAP_PAGE = 128 };            /* slots of a page; probing stays inside a page */
enum { SNAP_EIGHTH_NS = 125000000 }; /* the unit of plane_member.since */

struct snap_table {
    u32 directory; /* of the units of the pages */
    u32 mask;      /* number of pages - 1 */
};

struct snapshot {
    u32 seq, spare;
    struct fnat_settings settings;
    struct fnat_port_spec ports[FNAT_PORTS];
    struct snap_table services, addresses;
    u32 fib_at;
    struct fib_sizes fib;
    u32 has_host_routes;
    u32 routes_version;  /* changes with the routes */
    u16 n_deny, n_allow; /* the general lists */
    u16 acl[2 * FNAT_ACL_LIST];
    u32 has_acl;     /* a list of anybody has sets */
    u32 acl_recheck; /* changes when connections shall be looked at again */
};

static inline const void *snapshot_at(const u8 *area, u32 unit) { return area + (u64)unit * 64; }
static inline const u16 *snap_service_lips(const struct snap_service *s) { return (const u16 *)(s->members + s->n_members); }
static inline const u16 *snap_service_acl(const struct snap_service *s) { return snap_service_lips(s) + s->n_lips; }

const struct snap_service *snapshot_service(const struct snapshot *s, const u8 *area, const struct hash_secret *k, const u8 vip[16],
                                            u16 vport, u8 proto, u8 family);
const struct snap_address_slot *snapshot_address(const struct snapshot *s, const u8 *area, const struct hash_secret *k, const u8 addr[16],
                                                 u8 family);
/* The used slots of a table one after the other, from *cursor on; NULL: that was all. */
const union snap_slot *snapshot_next(const struct snap_table *t, const u8 *area, u32 *cursor);
static inline struct fib snapshot_fib(const struct snapshot *s, const u8 *area) { return fib_at(snapshot_at(area, s->fib_at), s->fib); }

/* ---- building, by the control process ---- */
int snapshot_put_settings(struct fnat_plane *p, const struct fnat_settings *settings);
int snapshot_put_port(struct fnat_plane *p, const struct fnat_port_spec *port);
int snapshot_put_service(struct fnat_plane *p, const struct fnat_service_spec *svc, const struct fnat_member_spec *members,
                         const u16 *lips);
int snapshot_owners(const struct fnat_service_spec *svc, const struct fnat_member_spec *members, u32 n, u32 *out);
int snapshot_del_service(struct fnat_plane *p, u32 id);
int snapshot_put_address(struct fnat_plane *p, const struct fnat_address_spec *addr);
int snapshot_del_address(struct fnat_plane *p, u16 id);
int snapshot_put_addresses(struct fnat_plane *p, const struct fnat_address_spec *addrs, u32 n);
int snapshot_put_routes(struct fnat_plane *p, const struct fnat_route_spec *routes, u32 n);
int snapshot_put_acl(struct fnat_plane *p, const u16 *sets, u32 n_deny, u32 n_allow);
void snapshot_zero_acl(struct fnat_plane *p, u32 service);
void snapshot_sum_acl(const struct fnat_plane *p, u32 service, u64 sums[2]); /* of all workers, from the beginning */
struct acl_builder *snapshot_acl(struct fnat_plane *p);                      /* to edit sets; NULL: no memory */
s64 snapshot_publish(struct fnat_plane *p);
s64 snapshot_adopted(const struct fnat_plane *p);
void snapshot_builder_free(struct snapshot_builder *b);
void snapshot_default_settings(struct fnat_settings *settings);

#endif
