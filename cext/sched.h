/* sched.h: which real server gets the next connection. Cursors live in service_state, never in a snapshot. */
#ifndef FNAT_SCHED_H
#define FNAT_SCHED_H

#include "limit.h"

/* What a scheduler goes by. */
struct sched_view {
    const struct snap_service *svc;
    struct service_state *state;
    const struct limits *limits;
    u64 now_ns;
    u8 role; /* FNAT_ROLE_*: of those alone */
};

/* Index of an eligible member; -1: none. */
int sched_pick(const struct sched_view *v);

#endif
