/* sched.c: schedulers, one function and one row each. A pick looks at each member a bounded number of times, whoever is eligible. */
#include "sched.h"

static u32 after(u32 i, u32 n) { return i + 1 == n ? 0 : i + 1; }

static int pick_rr(const struct core *k, const struct snap_service *svc, struct service_state *state)
{
    u32 n = svc->n_members, i = state->rr < n ? state->rr : 0;
    for (u32 looks = 0; looks < n; looks++, i = after(i, n))
        if (sched_eligible(k, svc, i)) {
            state->rr = after(i, n);
            return (int)i;
        }
    return -1;
}

/* Interleaved weighted round robin as LVS documents it: rounds at falling weight levels, a gcd apart. A round in which nobody has been
 * found is followed by one at the highest weight that it has seen. */
static int pick_wrr(const struct core *k, const struct snap_service *svc, struct service_state *state)
{
    u32 n = svc->n_members, i = state->rr < n ? state->rr : 0; /* the next one to look at */
    s32 lower = 0;
    if (state->wrr_weight > (s32)svc->weight_max)
        state->wrr_weight = (s32)svc->weight_max;
    for (u32 looks = 0; looks < 3 * n; looks++, i = after(i, n)) {
        if (looks == 2 * n) /* at least one whole round */
            state->wrr_weight = lower;
        if (i == 0 && looks < 2 * n) {
            state->wrr_weight -= (s32)svc->weight_gcd;
            if (state->wrr_weight <= 0)
                state->wrr_weight = (s32)svc->weight_max;
        }
        if (!sched_eligible(k, svc, i))
            continue;
        s32 weight = svc->members[i].weight;
        if (weight >= state->wrr_weight) {
            state->rr = after(i, n);
            return (int)i;
        }
        lower = weight > lower ? weight : lower;
    }
    return -1;
}

int sched_pick(const struct core *k, const struct snap_service *svc, const struct packet *p)
{
    struct service_state *state = &k->services[svc->id];
    (void)p;
    if (!svc->usable)
        return -1;
    return svc->sched == FNAT_SCHED_WRR ? pick_wrr(k, svc, state) : pick_rr(k, svc, state);
}
