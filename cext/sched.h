/* sched.h: which real server gets the next connection. Cursors live in service_state, never in a snapshot. */
#ifndef FNAT_SCHED_H
#define FNAT_SCHED_H

#include "snapshot.h"

/* Index of a member with weight; -1: none. */
int sched_pick(const struct snap_service *svc, struct service_state *state);

#endif
