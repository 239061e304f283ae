/* filter.h: which connections are meant: a filter of fnat.h in the form of a record, so that looking for one among ten million reads a line each
 * and makes nothing.
 */
#ifndef FNAT_FILTER_H
#define FNAT_FILTER_H

#include "core.h"

/* Values that must agree under masks. */
struct filter {
    struct addr16 addr[4], mask[4]; /* client, vip, rs, lip: as in the record */
    u8 family[4];                   /* 0: any */
    u16 port[4];
    u32 n_ends, ends[4]; /* those that say anything */
    s64 service, member;
    s32 state, proto;
};

/* -EINVAL: not a filter. NULL: all connections. */
int filter_read(const struct fnat_conn_filter *f, struct filter *out);
/* Looks at a record that may change meanwhile; the caller makes sure of its gen. */
bool filter_passes(const struct fnat_plane *p, const struct filter *w, const struct conn *c);
/* Address of an end, in the order of the record: client, VIP, RS, LIP. */
struct addr16 filter_end(const struct fnat_plane *p, const struct conn *c, u32 end);

#endif
