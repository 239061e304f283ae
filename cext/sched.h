/* sched.h: which real server gets the next connection. Cursors live in service_state, never in a snapshot. */
#ifndef FNAT_SCHED_H
#define FNAT_SCHED_H

#include "core.h"

/* May this member have a new connection now? Every scheduler asks here, so that what else may keep connections away from a member
 * has one place. It depends on the member and the moment only, never on the packet: hash schedulers go on to the next candidate, which is
 * the same on every worker. */
static inline bool sched_eligible(const struct core *k, const struct snap_service *svc, u32 member)
{
    const struct snap_member *m = &svc->members[member];
    return m->weight && m->role == k->role && limits_member_admits(&k->limits, m, k->now_ns);
}

/* The place in its service of a member that is eligible, for the first packet of a connection; -1: none. */
int sched_pick(const struct core *k, const struct snap_service *svc, const struct packet *p);

#endif
