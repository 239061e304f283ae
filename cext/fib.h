/* fib.h: routes of both families, longest prefix first; equal-cost routes share the flows.
 *
 *   address -> range, by binary search -> leaf -> the hops of a set -> one of them, by the flow
 *
 * Prefixes are laid out as disjoint ranges, sorted by their first address; neighbouring ranges with the same hops are one. Hops
 * are shared: a full table goes by few of them, so a range takes 8 bytes (IPv4) or 20 (IPv6), whatever its routes say. All of it is
 * one block without pointers, built by control inside a snapshot, read by workers when a connection opens.
 *
 * MTU classes: a route's MTU has a number, 1 to 255, by which a neighbour's word names it (neigh.h); 0 is the port's own. A number
 * keeps its MTU as long as a route uses it, so classes outlive the table they were made for.
 */
#ifndef FNAT_FIB_H
#define FNAT_FIB_H

#include "fnat.h"
#include "net.h"

typedef unsigned __int128 u128;

enum { FIB_SET_BITS = 6, FIB_SET = 1 << FIB_SET_BITS }; /* most equal-cost hops of a prefix */
enum { FIB_MTUS = 256 };

struct fib_hop {
    u8 gateway[16], src[16]; /* gateway 0: on link */
    u64 key;                 /* of port and gateway, for the choice among equals */
    u16 mtu;                 /* 0: the port's */
    u8 mtu_class;
    u8 port, kind, on_link;
    u8 pad[2];
};
_Static_assert(sizeof(struct fib_hop) == 48, "no padding: hops compare as bytes");

struct fib_sizes {
    u32 ranges4, ranges6, hops;
};

struct fib {
    const u32 *first4, *leaf4; /* host order; first[0] is 0. A leaf is the number of its first hop and of the others; 0: no route */
    const u128 *first6;
    const u32 *leaf6;
    const struct fib_hop *hops; /* 1..n.hops */
    const u16 *mtus;            /* by class */
    struct fib_sizes n;
};

/* The hop of this flow to this address (network order, IPv4 in the first 4 bytes); NULL: no route. A flow keeps its hop while the set
 * has it, whatever else comes or goes. */
const struct fib_hop *fib_lookup(const struct fib *fib, u8 family, const u8 addr[16], u32 flow);
/* All the hops to this address; returns how many. */
u32 fib_equals(const struct fib *fib, u8 family, const u8 addr[16], const struct fib_hop **out);

/* A table as it lies in memory. */
u64 fib_bytes(struct fib_sizes n);
struct fib fib_at(const void *block, struct fib_sizes n);

/* Lay out n routes in a block from malloc. mtus: the classes in use, which are kept, and new ones. -EINVAL a route is nonsense, -E2BIG more
 * than FIB_SET equals or 255 MTUs, -ENOMEM; then nothing has changed. */
int fib_build(const struct fnat_route_spec *routes, u32 n, u16 mtus[FIB_MTUS], void **block, struct fib_sizes *sizes);

#endif
