/* fib.h: routes, longest prefix first. Prefixes are laid out as disjoint ranges, sorted by their first address; a lookup is a
 * binary search. Built by control inside a snapshot, read by workers when a connection opens.
 */
#ifndef FNAT_FIB_H
#define FNAT_FIB_H

#include "fnat.h"
#include "net.h"

struct fib4 {
    const u32 *first; /* host order; first[0] == 0 when there is any range */
    const u32 *leaf;  /* index into routes + 1; 0: no route */
    const struct fnat_route_spec *routes;
    u32 ranges;
};

/* The route for this address (network order); NULL: none. */
const struct fnat_route_spec *fib4_lookup(const struct fib4 *fib, u32 addr);
/* Lay out n IPv4 routes; first and leaf have room for 2n + 1. Returns the number of ranges. */
u32 fib4_build(const struct fnat_route_spec *routes, u32 n, u32 *first, u32 *leaf);

#endif
