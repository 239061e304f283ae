/* slots.h: what a service's scheduler has computed beforehand, and who owns a hash by it. Pure; lies in the service's blob.
 *
 *   mh       a table of `slots` members (Maglev, NSDI 2016, 3.4): slots by weight, member after member takes the next of its own preferences
 *   conhash  members by weight, each with a seed; the highest draw for a flow wins (rendezvous hashing, weighted by exponential races)
 *   sh       the sums of weights that members have anyway: a part of the hash range each
 *   fo       members by weight
 *
 * Preferences and seeds follow from a member's address and port under a key that everybody knows, and the order of the list does not matter (but for
 * sh): balancers with the same members have the same tables. What a client draws is secret by settings.hash_key.
 * What is unsatisfying: conhash looks at every member, eight at a time.
 */
#ifndef FNAT_SLOTS_H
#define FNAT_SLOTS_H

#include "snapshot.h"

/* Bytes behind the LIPs of such a service. */
u64 slots_bytes(u8 sched, u32 n_members, u32 slots);
/* Fill them. -ENOMEM */
int slots_build(struct snap_service *s);
/* Take them from an earlier form of the service, which may be NULL. False: it has another choice of members or scheduler. */
bool slots_copy(struct snap_service *s, const struct snap_service *from);
/* The place of the member that owns this hash. mh, conhash, sh; members with weight only. */
u32 slots_owner(const struct snap_service *s, u64 hash);
/* The member in whose part of 0..2^32 this lies; parts by weight. */
u32 slots_part(const struct snap_service *s, u32 hash);
/* conhash: the highest draw among the members for which may() holds; -1: none. */
int slots_rendezvous(const struct snap_service *s, u64 hash, bool (*may)(const void *context, u32 member), const void *context);
/* fo, conhash: the places of members with weight, highest weight first. */
const u16 *slots_order(const struct snap_service *s);
const u16 *slots_table(const struct snap_service *s); /* mh */
/* The table of these members in this order. weight: of each, not 0; offset, skip: of its preferences. -ENOMEM */
int slots_maglev(const u32 *offset, const u32 *skip, const u16 *weight, u32 n, u32 slots, u16 *table);

#endif
