/* sched.c: schedulers, one function and one row each. A pick looks at a bounded number of members, whoever is eligible.
 *
 * Each worker schedules by what it knows itself: its cursors, which begin at another member on each worker, and the connections that it carries.
 * Clients are dealt to workers by hash, so what is fair on each is fair on all; no line is shared.
 *
 * Load: an established connection and one that is being opened count 256, one that is closing 1; of UDP all count the same. LVS counts
 * those that are being opened as 1: a burst of them goes to one server, which looks idle until the first handshake is over.
 * The least loaded member is looked for among all of up to 16; of more among 6 in turn and the 2 that were least loaded last time, which finds one
 * with room within n / 6 picks and keeps to it while it has room ("load balancing with memory", Mitzenmacher et al., FOCS 2002).
 * Slow start: wrr and p2c pass over a growing member as often as it is short of its weight; those that go by load compare it by the part of
 * the weight that it has reached.
 * What is unsatisfying: wrr with a few weights far above all others walks over the light members, and gives a heavy one its picks in a row; conhash asks them all (slots.c).
 */
#include "sched.h"

#include "slots.h"

enum { FEW = 16, WINDOW = 6, LIGHT = 2, FULL = 256 /* a member that has grown to its weight */ };
_Static_assert(LIGHT == sizeof((struct service_state){0}.light) / sizeof(u16), "room for those remembered");

static u32 after(u32 i, u32 n) { return i + 1 == n ? 0 : i + 1; }

/* The next one that is eligible from this place on; -1: none. */
static int first_from(const struct core *k, const struct snap_service *svc, u32 i)
{
    u32 n = svc->n_members;
    for (u32 looks = 0; looks < n; looks++, i = after(i, n))
        if (sched_eligible(k, svc, i))
            return (int)i;
    return -1;
}

/* splitmix64, each worker and service their own. */
static u64 random_of(const struct core *k, const struct snap_service *svc, struct service_state *state)
{
    u64 z = ((u64)k->index << 32 | svc->id) * 0xd1342543de82ef95 + ++state->draws * 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

/* How far a member is that has come to others: 1..FULL. */
static u32 grown(const struct core *k, const struct snap_service *svc, u32 i)
{
    if (likely(!svc->slow_start))
        return FULL;
    u32 since = load_relaxed(&k->plane_members[svc->members[i].id].since);
    s32 passed = (s32)((u32)(k->now_ns / SNAP_EIGHTH_NS) - since);
    if (!since || passed >= (s64)svc->slow_start * 8)
        return FULL;
    return passed <= 0 ? 1 : max_u32(1, (u32)((u64)passed * FULL / (svc->slow_start * 8ull)));
}

/* A growing member that is drawn without regard to its load is passed over as often as it is short of its weight. */
static bool is_grown_enough(const struct core *k, const struct snap_service *svc, struct service_state *state, u32 i)
{
    u32 part = grown(k, svc, i);
    return likely(part == FULL) || random_of(k, svc, state) % FULL < part;
}

/* ---- in turn ---- */

static int pick_rr(const struct core *k, const struct snap_service *svc, struct service_state *state)
{
    int i = first_from(k, svc, state->rr < svc->n_members ? state->rr : 0);
    if (i >= 0)
        state->rr = after((u32)i, svc->n_members);
    return i;
}

/* Interleaved weighted round robin as LVS documents it: rounds at falling weight levels, a gcd apart. A round in which nobody has been
 * found is followed by one at the highest weight that it has seen. */
static int next_by_weight(const struct core *k, const struct snap_service *svc, struct service_state *state)
{
    u32 n = svc->n_members, i = state->rr < n ? state->rr : 0; /* the next one to look at */
    s32 lower = 0, before = state->wrr_weight;
    if (state->wrr_weight > (s32)svc->weight_max)
        state->wrr_weight = (s32)svc->weight_max;
    for (u32 looks = 0; looks < 3 * n; looks++, i = after(i, n)) {
        if (looks == 2 * n) /* at least one whole round */
            state->wrr_weight = lower, i = 0;
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
    state->wrr_weight = before;
    return -1;
}

static int pick_wrr(const struct core *k, const struct snap_service *svc, struct service_state *state)
{
    enum { TRIES = 16 };
    int i = next_by_weight(k, svc, state);
    for (u32 tries = 1; i >= 0 && tries < TRIES && !is_grown_enough(k, svc, state, (u32)i); tries++)
        i = next_by_weight(k, svc, state);
    return i;
}

/* ---- by load ---- */

/* Lower is better. Quotients of whole numbers, so equal loads are equal. */
static double burden(const struct core *k, const struct snap_service *svc, u32 i)
{
    const struct snap_member *m = &svc->members[i];
    const struct member_stats *s = &k->members[m->id];
    u64 busy = svc->proto == PROTO_UDP ? s->inactive : (u64)s->active + s->half_open;
    u64 load = svc->proto == PROTO_UDP ? busy * 256 : busy * 256 + (s->inactive - s->half_open);
    double weight = (double)(m->weight * grown(k, svc, i));
    switch (svc->sched) {
    case FNAT_SCHED_LC:
        return (double)load;
    case FNAT_SCHED_WLC:
    case FNAT_SCHED_P2C:
        return (double)load / weight;
    case FNAT_SCHED_NQ:
        return (double)(load + 256) / weight - (busy ? 0 : 1e12); /* the idle ones before all others */
    default:
        return (double)(load + 256) / weight;
    }
}

/* The least burdened that were looked at, best first. */
struct lightest {
    double burden[LIGHT];
    u32 member[LIGHT], n;
};

static void look_at(const struct core *k, const struct snap_service *svc, struct lightest *l, u32 i)
{
    if (!sched_eligible(k, svc, i))
        return;
    double b = burden(k, svc, i);
    u32 at = l->n;
    if (at == LIGHT && !(b < l->burden[LIGHT - 1]))
        return;
    at = l->n < LIGHT ? l->n++ : LIGHT - 1;
    for (; at && b < l->burden[at - 1]; at--)
        l->burden[at] = l->burden[at - 1], l->member[at] = l->member[at - 1];
    l->burden[at] = b, l->member[at] = i;
}

static int pick_light(const struct core *k, const struct snap_service *svc, struct service_state *state)
{
    struct lightest l = {.n = 0};
    u32 n = svc->n_members, first = state->rr < n ? state->rr : 0, looks = n <= FEW ? n : WINDOW;
    u32 i = first;
    for (u32 seen = 0; seen < looks; seen++, i = after(i, n))
        look_at(k, svc, &l, i);
    if (n <= FEW) { /* of equals each in its turn */
        state->rr = l.n ? after(l.member[0], n) : first;
        return l.n ? (int)l.member[0] : -1;
    }
    state->rr = i;
    for (u32 j = 0; j < LIGHT; j++) {
        u32 one = state->light[j], from_first = one >= first ? one - first : one + n - first;
        if (one < n && from_first >= WINDOW)
            look_at(k, svc, &l, one);
    }
    for (u32 j = 0; j < LIGHT; j++)
        state->light[j] = j < l.n ? (u16)l.member[j] : 0xffff;
    return l.n ? (int)l.member[0] : first_from(k, svc, i);
}

static int pick_p2c(const struct core *k, const struct snap_service *svc, struct service_state *state)
{
    enum { TRIES = 8 };
    for (u32 tries = 0; tries < TRIES; tries++) {
        u64 random = random_of(k, svc, state);
        u32 a = slots_part(svc, (u32)random), b = slots_part(svc, (u32)(random >> 32));
        bool may_a = sched_eligible(k, svc, a) && is_grown_enough(k, svc, state, a);
        bool may_b = sched_eligible(k, svc, b) && is_grown_enough(k, svc, state, b);
        if (may_a && may_b)
            return (int)(a != b && burden(k, svc, b) < burden(k, svc, a) ? b : a);
        if (may_a || may_b)
            return (int)(may_a ? a : b);
    }
    return first_from(k, svc, state->rr < svc->n_members ? state->rr : 0);
}

/* ---- by hash ---- */

/* The connection ID that the packet is for (RFC 8999 5): of a short header, which does not say its length, and of gQUIC's the first 8 bytes. */
static u32 quic_id(const struct packet *p, u8 id[16])
{
    enum { LONG_HEADER = 0x80, MOST = 8 };
    if (p->kind != KIND_UDP || p->payload < 1 + MOST)
        return 0;
    const u8 *data = p->data + p->l4 + sizeof(struct udp_header), *from = data + 1;
    u32 len = MOST;
    if (data[0] & LONG_HEADER) {
        len = min_u32(data[5], MOST), from = data + 6;
        if (p->payload < 6 + len)
            return 0;
    }
    memcpy(id, from, len);
    return len;
}

/* Without a connection ID, as the address alone. */
static u64 client_hash(const struct core *k, const struct snap_service *svc, const struct packet *p)
{
    struct hash_secret key;
    memcpy(&key, k->snap->settings.hash_key, sizeof key);
    if (svc->hash_target == FNAT_HASH_QID) {
        struct addr16 id = {{0}};
        u32 len = quic_id(p, id.b);
        if (len)
            return hash_addr(&key, id.b, len);
    }
    struct addr16 src = packet_src(p);
    u64 port = svc->hash_target == FNAT_HASH_SIP_PORT ? be16(p->sport) : 0;
    return hash_addr(&key, src.b, port << 16 | (u64)p->family << 8);
}

struct who {
    const struct core *k;
    const struct snap_service *svc;
};

static bool may(const void *context, u32 member)
{
    const struct who *w = context;
    return sched_eligible(w->k, w->svc, member);
}

/* The owner is not eligible: the next slot's owner, the next highest draw, the owner of the next hash. */
rare static int next_owner(const struct core *k, const struct snap_service *svc, u64 hash)
{
    enum { TRIES = 64 };
    if (svc->sched == FNAT_SCHED_CONHASH) {
        struct who who = {k, svc};
        return slots_rendezvous(svc, hash, may, &who);
    }
    u32 slot = scale_u32((u32)(hash >> 32), max_u32(svc->slots, 1)), i = 0;
    for (u32 tries = 0; tries < TRIES; tries++) {
        if (svc->sched == FNAT_SCHED_MH)
            i = slots_table(svc)[slot = after(slot, svc->slots)];
        else
            i = slots_owner(svc, hash = hash_mum(hash ^ 0x9e3779b97f4a7c15, 0xbf58476d1ce4e5b9));
        if (sched_eligible(k, svc, i))
            return (int)i;
    }
    return first_from(k, svc, i);
}

static int pick_hash(const struct core *k, const struct snap_service *svc, const struct packet *p)
{
    u64 hash = client_hash(k, svc, p);
    u32 i = slots_owner(svc, hash);
    return likely(sched_eligible(k, svc, i)) ? (int)i : next_owner(k, svc, hash);
}

static int pick_fo(const struct core *k, const struct snap_service *svc)
{
    const u16 *order = slots_order(svc);
    for (u32 i = 0; i < svc->usable; i++)
        if (sched_eligible(k, svc, order[i]))
            return order[i];
    return -1;
}

int sched_pick(const struct core *k, const struct snap_service *svc, const struct packet *p)
{
    struct service_state *state = &k->services[svc->id];
    if (!svc->usable)
        return -1;
    if (unlikely(!state->started)) {
        state->started = 1;
        state->rr = (u32)((u64)svc->n_members * k->index / k->workers);
    }
    switch (svc->sched) {
    case FNAT_SCHED_RR:
        return pick_rr(k, svc, state);
    case FNAT_SCHED_WRR:
        return pick_wrr(k, svc, state);
    case FNAT_SCHED_P2C:
        return pick_p2c(k, svc, state);
    case FNAT_SCHED_FO:
        return pick_fo(k, svc);
    case FNAT_SCHED_SH:
    case FNAT_SCHED_MH:
    case FNAT_SCHED_CONHASH:
        return pick_hash(k, svc, p);
    default:
        return pick_light(k, svc, state);
    }
}
