/* snapshot.h: the sealed picture of services, addresses, routes and ports that workers read. Written by control, never changed
 * once published; the next one shares the blobs of services that did not change.
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
    u8 family, pad[7];
};

/* One service: immutable, followed by its members and the ids of its LIPs. */
struct snap_service {
    u8 vip[16];
    u32 id;
    u16 vport; /* network order */
    u8 family, proto, sched, no_rs, flags, pad;
    u32 conn_timeout; /* seconds, 0: general */
    u32 half_open;
    u32 n_members, n_lips;
    u32 weight_gcd, weight_max; /* of members with weight */
    u32 usable;                 /* members with weight */
    u32 pad2[2];
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
    u16 id;
    u8 family, kind, port, pad[3]; /* kind 0: empty */
};

struct snapshot {
    u32 seq, units; /* size */
    struct fnat_settings settings;
    struct fnat_port_spec ports[FNAT_PORTS];
    u32 service_slots, service_mask;
    u32 address_slots, address_mask;
    u32 fib_first, fib_leaf, fib_routes, fib_ranges;
    u32 has_host_routes;
    u32 routes_version; /* changes with the routes */
    u32 n_blobs, blobs; /* every blob this snapshot uses */
};

static inline const void *snapshot_at(const u8 *area, u32 unit) { return area + (u64)unit * 64; }
static inline const u16 *snap_service_lips(const struct snap_service *s) { return (const u16 *)(s->members + s->n_members); }

const struct snap_service *snapshot_service(const struct snapshot *s, const u8 *area, const struct hash_secret *k, const u8 vip[16],
                                            u16 vport, u8 proto, u8 family);
const struct snap_address_slot *snapshot_address(const struct snapshot *s, const u8 *area, const struct hash_secret *k, const u8 addr[16],
                                                 u8 family);
static inline struct fib4 snapshot_fib4(const struct snapshot *s, const u8 *area)
{
    return (struct fib4){snapshot_at(area, s->fib_first), snapshot_at(area, s->fib_leaf), snapshot_at(area, s->fib_routes), s->fib_ranges};
}

/* ---- building, by the control process ---- */
int snapshot_put_settings(struct fnat_plane *p, const struct fnat_settings *settings);
int snapshot_put_port(struct fnat_plane *p, const struct fnat_port_spec *port);
int snapshot_put_service(struct fnat_plane *p, const struct fnat_service_spec *svc, const struct fnat_member_spec *members,
                         const u16 *lips);
int snapshot_del_service(struct fnat_plane *p, u32 id);
int snapshot_put_addresses(struct fnat_plane *p, const struct fnat_address_spec *addrs, u32 n);
int snapshot_put_routes(struct fnat_plane *p, const struct fnat_route_spec *routes, u32 n);
s64 snapshot_publish(struct fnat_plane *p);
s64 snapshot_adopted(const struct fnat_plane *p);
void snapshot_builder_free(struct snapshot_builder *b);
void snapshot_default_settings(struct fnat_settings *settings);

#endif
