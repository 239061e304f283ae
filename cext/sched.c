/* sched.c: schedulers, one function and one row each. */
#include "sched.h"

/* May this member be picked? Every scheduler asks. */
static inline bool sched_eligible(const struct sched_view *v, u32 i)
{
    const struct snap_member *m = &v->svc->members[i];
    return m->weight && m->role == v->role && limits_member_admits(v->limits, m, v->now_ns);
}

static bool any_eligible(const struct sched_view *v)
{
    for (u32 i = 0; i < v->svc->n_members; i++)
        if (sched_eligible(v, i))
            return true;
    return false;
}

static int pick_rr(const struct sched_view *v)
{
    struct service_state *state = v->state;
    u32 n = v->svc->n_members, i = state->rr < n ? state->rr : 0;
    for (u32 looks = 0; !sched_eligible(v, i); i = i + 1 == n ? 0 : i + 1)
        if (++looks == n)
            return -1;
    state->rr = i + 1 == n ? 0 : i + 1;
    return (int)i;
}

/* Interleaved weighted round robin as LVS documents it: rounds at falling weight levels, a gcd apart. */
static int pick_wrr(const struct sched_view *v)
{
    const struct snap_service *svc = v->svc;
    struct service_state *state = v->state;
    u32 n = svc->n_members, i = state->rr < n ? state->rr : 0; /* the next one to look at */
    if (!any_eligible(v))
        return -1;
    if (state->wrr_weight > (s32)svc->weight_max)
        state->wrr_weight = (s32)svc->weight_max;
    for (;; i = i + 1 == n ? 0 : i + 1) {
        if (i == 0) {
            state->wrr_weight -= (s32)svc->weight_gcd;
            if (state->wrr_weight <= 0)
                state->wrr_weight = (s32)svc->weight_max;
        }
        if ((s32)svc->members[i].weight >= state->wrr_weight && sched_eligible(v, i))
            break;
    }
    state->rr = i + 1 == n ? 0 : i + 1;
    return (int)i;
}

int sched_pick(const struct sched_view *v) { return v->svc->sched == FNAT_SCHED_WRR ? pick_wrr(v) : pick_rr(v); }
