/* limit.c: see limit.h. */
#include "limit.h"

/* ---- connections at once ---- */

static u32 member_sum(const struct limits *l, u32 id)
{
    u32 sum = 0;
    for (u32 w = 0; w < l->workers; w++)
        sum += held_sum(load_relaxed(&l->crew[w].members[id].held));
    return sum;
}

/* Overloaded RSs come back below `lower`; without one below three quarters of `upper`, as in IPVS. */
static bool has_recovered(const struct snap_member *m, u32 sum) { return m->lower ? sum < m->lower : (u64)sum * 4 < (u64)m->upper * 3; }

/* ---- new ones in a second ---- */

/* `rate` at once after a second of silence, then one a period. */
static u64 ahead(u32 rate, u32 period) { return (u64)(rate - 1) * period; }

static bool rate_admits(const u64 *next, u32 rate, u32 period, u64 now) { return load_relaxed(next) <= now + ahead(rate, period); }

static bool rate_take(u64 *next, u32 rate, u32 period, u64 now)
{
    u64 at = load_relaxed(next);
    do
        if (at > now + ahead(rate, period))
            return false;
    while (!__atomic_compare_exchange_n(next, &at, max_u64(at, now) + period, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return true;
}

/* ---- an RS ---- */

bool limits_member_admits(const struct limits *l, const struct snap_member *m, u64 now_ns)
{
    struct member_limit *state = &l->members[m->id];
    if (m->new_per_s && !rate_admits(&state->next_new, m->new_per_s, m->new_period, now_ns))
        return false;
    if (!m->upper)
        return true;
    u32 sum = member_sum(l, m->id);
    if (!load_relaxed(&state->overloaded))
        return sum < m->upper;
    if (!has_recovered(m, sum))
        return false;
    store_relaxed(&state->overloaded, 0);
    return true;
}

bool limits_member_take(const struct limits *l, const struct snap_member *m, u64 now_ns)
{
    struct member_stats *own = &l->crew[l->index].members[m->id];
    struct member_limit *state = &l->members[m->id];
    held_add(own, HELD_INACTIVE);
    if (m->upper) {
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        u32 sum = member_sum(l, m->id);
        if (sum >= m->upper)
            store_relaxed(&state->overloaded, 1);
        if (sum > m->upper)
            goto refuse;
    }
    if (!m->new_per_s || rate_take(&state->next_new, m->new_per_s, m->new_period, now_ns))
        return true;
refuse:
    held_add(own, -HELD_INACTIVE);
    return false;
}

/* ---- a service ---- */

bool limits_service_take(const struct limits *l, const struct snap_service *svc)
{
    struct service_state *own = &l->crew[l->index].services[svc->id];
    conns_add(own, 1);
    if (!svc->max_conns)
        return true;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    u64 sum = 0;
    for (u32 w = 0; w < l->workers; w++)
        sum += load_relaxed(&l->crew[w].services[svc->id].conns);
    if (sum <= svc->max_conns)
        return true;
    conns_add(own, -1u);
    return false;
}

bool limits_rate_take(const struct limits *l, const struct snap_service *svc, u64 now_ns)
{
    return !svc->new_per_s || rate_take(&l->services[svc->id].next_new, svc->new_per_s, svc->new_period, now_ns);
}

/* ---- a client ---- */

enum { COUNT_BITS = 24 };
static const u64 COUNT_MASK = (1ull << COUNT_BITS) - 1;

/* The bucket, and the tag as it lies in a word. */
static u64 *client_bucket(const struct limits *l, u32 service, u8 family, const u8 addr[16], u64 *tag)
{
    u8 client[16] = {0};
    memcpy(client, addr, family == 4 ? 4 : 8);
    u64 hash = hash_addr(l->secret, client, (u64)family << 32 | service);
    *tag = hash & ~COUNT_MASK;
    return l->clients + (u64)((u32)hash & l->client_mask) * CLIENTS_IN_BUCKET;
}

static u64 *client_find(u64 *bucket, u64 tag)
{
    for (u32 i = 0; i < CLIENTS_IN_BUCKET; i++) {
        u64 word = load_relaxed(&bucket[i]);
        if (word & COUNT_MASK && (word & ~COUNT_MASK) == tag)
            return &bucket[i];
    }
    return NULL;
}

static void count_down(u64 *at)
{
    u64 word = load_relaxed(at);
    while (!__atomic_compare_exchange_n(at, &word, (word & COUNT_MASK) == 1 ? 0 : word - 1, true, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
        ;
}

enum client_count limits_client_take(const struct limits *l, u32 service, u32 most, u8 family, const u8 addr[16])
{
    u64 tag, *bucket = client_bucket(l, service, family, addr, &tag);
    for (;;) {
        u64 *at = client_find(bucket, tag);
        if (at) {
            u64 word = load_relaxed(at);
            if ((word & ~COUNT_MASK) != tag || !(word & COUNT_MASK))
                continue; /* its last connection has just ended */
            if ((word & COUNT_MASK) >= most)
                return CLIENT_REFUSED;
            if (__atomic_compare_exchange_n(at, &word, word + 1, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
                return CLIENT_COUNTED;
            continue;
        }
        u64 none = 0;
        u32 free = 0;
        while (free < CLIENTS_IN_BUCKET && load_relaxed(&bucket[free]))
            free++;
        if (free == CLIENTS_IN_BUCKET)
            return CLIENT_NO_ROOM;
        if (!__atomic_compare_exchange_n(&bucket[free], &none, tag | 1, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
            continue;
        /* Another worker may have put the same client elsewhere: one of the two words goes. */
        u32 words = 0;
        for (u32 i = 0; i < CLIENTS_IN_BUCKET; i++)
            words += load_relaxed(&bucket[i]) & COUNT_MASK && (load_relaxed(&bucket[i]) & ~COUNT_MASK) == tag;
        if (words <= 1)
            return CLIENT_COUNTED;
        count_down(&bucket[free]);
    }
}

void limits_client_give(const struct limits *l, u32 service, u8 family, const u8 addr[16])
{
    u64 tag, *bucket = client_bucket(l, service, family, addr, &tag), *at = client_find(bucket, tag);
    if (at)
        count_down(at);
}

/* ---- a client's RS ---- */

struct sticky limits_template(const struct limits *l, u32 service, u8 family, const u8 client[16])
{
    u32 plen = load_relaxed(&l->services[service].persistent_plen);
    u8 prefix[16] = {0};
    memcpy(prefix, client, plen / 8);
    if (plen % 8)
        prefix[plen / 8] = (u8)(client[plen / 8] & 0xff00 >> plen % 8);
    u64 hash = hash_addr(l->secret, prefix, (u64)family << 32 | service);
    return (struct sticky){.bucket = l->templates + (u64)((u32)hash & l->client_mask) * CLIENTS_IN_BUCKET, .tag = (u16)(hash >> 48)};
}

bool limits_template_find(const struct limits *l, struct sticky *t, u64 now_ns)
{
    (void)l;
    t->at = NULL;
    for (u32 i = 0; i < CLIENTS_IN_BUCKET && !t->at; i++) {
        u64 word = load_relaxed(&t->bucket[i]);
        if (template_holds(word, now_ns) && (u16)word == t->tag)
            t->at = &t->bucket[i], t->word = word;
    }
    return t->at;
}

/* The place for a new one: a past one, else the one that ends first. */
static u64 *template_place(const struct sticky *t, u64 now_ns, u64 *old)
{
    u64 *place = NULL;
    u32 soonest = ~0u;
    for (u32 i = 0; i < CLIENTS_IN_BUCKET && soonest; i++) {
        u64 word = load_relaxed(&t->bucket[i]);
        u32 left = template_holds(word, now_ns) ? ((u32)(word >> 16) - (u32)(now_ns / 1000000000)) & TEMPLATE_SECONDS : 0;
        if (left < soonest)
            place = &t->bucket[i], *old = word, soonest = left;
    }
    return place;
}

bool limits_template_put(const struct limits *l, struct sticky *t, u32 member, u32 seconds, u64 now_ns)
{
    (void)l;
    u64 end = ((u64)(now_ns / 1000000000) + seconds + 1) & TEMPLATE_SECONDS, word = (u64)member << 40 | end << 16 | t->tag;
    if (t->at)
        return t->word == word || __atomic_compare_exchange_n(t->at, &t->word, word, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
    u64 old, *place = template_place(t, now_ns, &old);
    if (!__atomic_compare_exchange_n(place, &old, word, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
        return false;
    for (u32 i = 0; i < CLIENTS_IN_BUCKET; i++) {
        u64 other = load_relaxed(&t->bucket[i]);
        if (&t->bucket[i] != place && template_holds(other, now_ns) && (u16)other == t->tag) { /* put elsewhere at the same moment */
            __atomic_compare_exchange_n(place, &word, 0, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
            return false;
        }
    }
    return true;
}

void limits_template_renew(const struct limits *l, u32 service, u8 family, const u8 client[16], u32 member, u64 now_ns)
{
    struct sticky t = limits_template(l, service, family, client);
    if (limits_template_find(l, &t, now_ns) && template_member(t.word) == member)
        limits_template_put(l, &t, member, load_relaxed(&l->services[service].persistent), now_ns);
}
