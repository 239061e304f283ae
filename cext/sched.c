/* sched.c: schedulers, one function and one row each. */
#include "sched.h"

static int pick_rr(const struct snap_service *svc, struct service_state *state)
{
    u32 n = svc->n_members, i = state->rr < n ? state->rr : 0;
    while (!svc->members[i].weight)
        i = i + 1 == n ? 0 : i + 1;
    state->rr = i + 1 == n ? 0 : i + 1;
    return (int)i;
}

/* Interleaved weighted round robin as LVS documents it: rounds at falling weight levels, a gcd apart. */
static int pick_wrr(const struct snap_service *svc, struct service_state *state)
{
    u32 n = svc->n_members, i = state->rr < n ? state->rr : 0; /* the next one to look at */
    if (state->wrr_weight > (s32)svc->weight_max)
        state->wrr_weight = (s32)svc->weight_max;
    for (;; i = i + 1 == n ? 0 : i + 1) {
        if (i == 0) {
            state->wrr_weight -= (s32)svc->weight_gcd;
            if (state->wrr_weight <= 0)
                state->wrr_weight = (s32)svc->weight_max;
        }
        if ((s32)svc->members[i].weight >= state->wrr_weight && svc->members[i].weight)
            break;
    }
    state->rr = i + 1 == n ? 0 : i + 1;
    return (int)i;
}

int sched_pick(const struct snap_service *svc, struct service_state *state)
{
    if (!svc->usable)
        return -1;
    return svc->sched == FNAT_SCHED_WRR ? pick_wrr(svc, state) : pick_rr(svc, state);
}
