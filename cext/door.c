/* door.c: fnat.h implemented: argument checks, handles, errno. Reading happens here, from any thread or process. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "acl.h"
#include "clock.h"
#include "conn.h"
#include "filter.h"
#include "slots.h"
#include "track.h"
#include "worker.h"

#include <errno.h>
#include <stdlib.h>

/* ---- the plane ---- */

int fnat_plane_create(const char *dir, const struct fnat_plane_config *config, int flags, struct fnat_plane **out)
{
    struct fnat_plane *p;
    if (!config || !out || !dir != !!(flags & FNAT_ANON))
        return -EINVAL;
    int rc = plane_open(dir, config, flags, true, &p);
    if (rc)
        return rc;
    if (p->config.workers > 1)
        rc = handoff_open(p->config.workers, p->config.frames, &p->handoff);
    memset(p->clients, 0, (u64)plane_client_buckets(&p->config) * CACHE_LINE); /* counted anew from the records */
    for (u32 i = 0; i < p->config.workers && !rc; i++)
        rc = worker_open(p, i, &p->workers[i]);
    if (rc) {
        fnat_plane_close(p);
        return rc;
    }
    for (u32 i = 0; i < p->config.workers && p->config.workers > 1; i++) {
        p->lips[i] = &p->workers[i]->core.lip;
        p->workers[i]->core.lip.crew = p->lips;
        p->workers[i]->core.lip.contested = p->restored != 0; /* opened under whatever rules were in force then */
    }
    *out = p;
    return 0;
}

int fnat_plane_attach(const char *dir, struct fnat_plane **out) { return dir && out ? plane_open(dir, NULL, 0, false, out) : -EINVAL; }

void fnat_plane_close(struct fnat_plane *p)
{
    for (u32 i = 0; i < p->config.workers; i++)
        if (p->workers[i])
            worker_close(p->workers[i]);
    if (p->handoff)
        handoff_close(p->handoff);
    snapshot_builder_free(p->builder);
    acl_close(p->acl_builder);
    plane_close(p);
}

int fnat_plane_measure(const struct fnat_plane_config *config, struct fnat_plane_info *out) { return plane_measure(config, out); }

void fnat_plane_info(const struct fnat_plane *p, struct fnat_plane_info *out)
{
    *out = (struct fnat_plane_info){
        .config = p->config,
        .plane_bytes = p->arena.len,
        .worker_bytes = p->maps[0].arena.len,
        .frames_bytes = p->frames.len,
        .conn_bytes = p->maps[0].conn_bytes,
        .huge_page_size = p->maps[0].arena.huge_page,
        .restored = p->restored,
    };
}

/* ---- control ---- */

int fnat_put_settings(struct fnat_plane *p, const struct fnat_settings *settings) { return snapshot_put_settings(p, settings); }
int fnat_put_port(struct fnat_plane *p, const struct fnat_port_spec *port) { return snapshot_put_port(p, port); }
int fnat_put_service(struct fnat_plane *p, const struct fnat_service_spec *svc, const struct fnat_member_spec *members,
                     const uint16_t *lips)
{
    return snapshot_put_service(p, svc, members, lips);
}
int fnat_del_service(struct fnat_plane *p, uint32_t id) { return snapshot_del_service(p, id); }
int fnat_sched_owners(const struct fnat_service_spec *svc, const struct fnat_member_spec *members, uint32_t n, uint32_t *out)
{
    return snapshot_owners(svc, members, n, out);
}
int fnat_maglev(const uint32_t *offset, const uint32_t *skip, const uint16_t *weight, uint32_t n, uint32_t slots, uint16_t *table)
{
    for (u32 i = 0; i < n; i++)
        if (offset[i] >= slots || !skip[i] || skip[i] >= slots || !weight[i])
            return -EINVAL;
    return n && n < 65535 ? slots_maglev(offset, skip, weight, n, slots, table) : -EINVAL;
}
int fnat_put_address(struct fnat_plane *p, const struct fnat_address_spec *addr) { return snapshot_put_address(p, addr); }
int fnat_del_address(struct fnat_plane *p, uint16_t id) { return snapshot_del_address(p, id); }
int fnat_put_addresses(struct fnat_plane *p, const struct fnat_address_spec *addrs, uint32_t n)
{
    return snapshot_put_addresses(p, addrs, n);
}
int fnat_put_routes(struct fnat_plane *p, const struct fnat_route_spec *routes, uint32_t n) { return snapshot_put_routes(p, routes, n); }

int fnat_put_acl(struct fnat_plane *p, const uint16_t *sets, uint32_t n_deny, uint32_t n_allow)
{
    return snapshot_put_acl(p, sets, n_deny, n_allow);
}

int fnat_acl_make(struct fnat_plane *p, const char *name)
{
    struct acl_builder *b = snapshot_acl(p);
    return b ? acl_make(b, name) : -ENOMEM;
}

int fnat_acl_drop(struct fnat_plane *p, uint32_t id)
{
    struct acl_builder *b = snapshot_acl(p);
    return b ? acl_drop(b, id) : -ENOMEM;
}

int fnat_acl_edit(struct fnat_plane *p, uint32_t id, const uint8_t *keys, const uint8_t *answers, uint32_t n, uint32_t *done)
{
    struct acl_builder *b = snapshot_acl(p);
    int rc = b ? 0 : -ENOMEM;
    for (*done = 0; *done < n && !rc; *done += !rc)
        rc = answers[*done] > ACL_EXCEPT ? -EINVAL : acl_edit(b, id, keys + (u64)*done * ACL_KEY, answers[*done]);
    return rc;
}

int fnat_acl_info(const struct fnat_plane *p, uint32_t id, char name[FNAT_ACL_NAME], uint32_t counts[2])
{
    const struct acl_set *s = acl_set_at(p->acl, id);
    if (!id || id >= ACL_SETS || !s->name[0])
        return -ENOENT;
    memcpy(name, s->name, ACL_NAME);
    if (p->acl_builder && !acl_is_set(p->acl_builder, id))
        return -ENOENT;
    if (p->acl_builder) {
        acl_count(p->acl_builder, id, counts);
        return 0;
    }
    counts[0] = load_relaxed(&s->count[0]), counts[1] = load_relaxed(&s->count[1]);
    return 0;
}

int fnat_acl_read(const struct fnat_plane *p, uint32_t id, uint8_t *keys, uint8_t *answers, uint32_t n)
{
    if (!id || id >= ACL_SETS)
        return -ENOENT;
    return (int)(p->acl_builder ? acl_read_work(p->acl_builder, id, keys, answers, n) : acl_read(p->acl, id, keys, answers, n));
}

int fnat_acl_test(const struct fnat_plane *p, uint32_t id, uint8_t family, const uint8_t *addr)
{
    if (!id || id >= ACL_SETS || !acl_set_at(p->acl, id)->name[0])
        return -ENOENT;
    return acl_has(p->acl, id, family, acl_key(family, addr));
}

int64_t fnat_acl_free(struct fnat_plane *p)
{
    struct acl_builder *b = snapshot_acl(p);
    return b ? (int64_t)acl_free_bytes(b) : -ENOMEM;
}

uint32_t fnat_acl_recheck(struct fnat_plane *p) { return ++p->header->acl_recheck; }

uint32_t fnat_acl_rechecked(const struct fnat_plane *p)
{
    u32 oldest = p->header->acl_recheck;
    for (u32 i = 0; i < p->config.workers; i++) {
        const struct worker_header *h = p->maps[i].header;
        u32 done = load_acquire(&h->acl_rechecked);
        if (load_acquire(&h->active) && after_u32(oldest, done))
            oldest = done;
    }
    return oldest;
}

int fnat_acl_stats(const struct fnat_plane *p, uint32_t service, struct fnat_acl_stats *out)
{
    u64 sums[2];
    if (service >= p->config.services)
        return -ENOENT;
    snapshot_sum_acl(p, service, sums);
    *out = (struct fnat_acl_stats){sums[0] - p->services[service].acl[0], sums[1] - p->services[service].acl[1]};
    return 0;
}

int fnat_acl_zero(struct fnat_plane *p, uint32_t service)
{
    if (service >= p->config.services)
        return -ENOENT;
    snapshot_zero_acl(p, service);
    return 0;
}

int64_t fnat_publish(struct fnat_plane *p) { return snapshot_publish(p); }
int64_t fnat_adopted(const struct fnat_plane *p) { return snapshot_adopted(p); }

int fnat_route_get(const struct fnat_plane *p, uint8_t family, const uint8_t *addr, uint32_t flow, struct fnat_route_spec *out)
{
    u64 word = load_acquire(&p->header->snapshot);
    if (family != 4 && family != 6)
        return -EINVAL;
    if (!word)
        return -ENETUNREACH;
    const struct fib fib = snapshot_fib(snapshot_at(p->snapshots, (u32)word), p->snapshots);
    const struct fib_hop *hop = fib_lookup(&fib, family, addr, flow);
    if (!hop)
        return -ENETUNREACH;
    *out = (struct fnat_route_spec){.mtu = hop->mtu, .family = family, .port = hop->port, .kind = hop->kind};
    memcpy(out->gateway, hop->gateway, 16);
    memcpy(out->src, hop->src, 16);
    return 0;
}

static u32 ticks(u64 ns) { return (u32)(ns / (1000000000 / TICKS_PER_SECOND)); }

int fnat_neigh_set(struct fnat_plane *p, uint8_t port, uint8_t family, const uint8_t *addr, const uint8_t *mac, uint8_t state)
{
    struct neigh_table t = {p->neighbours, p->config.neighbours, &p->header->secret};
    if (port >= FNAT_PORTS || (family != 4 && family != 6))
        return -EINVAL;
    u32 tick = ticks(monotonic_ns());
    if (!mac) {
        u32 id = neigh_find(&t, port, family, addr);
        int rc = -ENOENT;
        for (; id; id = neigh_next(&t, id))
            if (neigh_word_state(neigh_load(&t, id)) != NEIGH_NONE) {
                neigh_turn(&t, id, NULL, NEIGH_NONE, tick);
                rc = 0;
            }
        return rc;
    }
    u32 id = neigh_find(&t, port, family, addr);
    if (!id && !(id = neigh_get(&t, port, family, addr)))
        return -ENOSPC;
    neigh_learn(&t, id, mac, (u8)(NEIGH_REACHABLE | (state & FNAT_NEIGH_STATIC ? NEIGH_STATIC : 0)), tick);
    return 0;
}

/* Is this address shown by an entry before this one? It has one for each MTU of its routes. */
static bool is_listed(const struct neigh_table *t, u32 id)
{
    const struct neigh_entry *e = &t->entries[id];
    for (u32 other = neigh_find(t, e->port, e->family, e->addr); other && other != id; other = neigh_next(t, other))
        if (neigh_word_state(neigh_load(t, other)) >= NEIGH_SEND)
            return true;
    return false;
}

int fnat_neigh_list(const struct fnat_plane *p, uint32_t *cursor, struct fnat_neigh_info *out, uint32_t n)
{
    const struct neigh_table t = {p->neighbours, p->config.neighbours, &p->header->secret};
    u32 found = 0;
    for (; *cursor < p->config.neighbours && found < n; ++*cursor) {
        const struct neigh_entry *e = &p->neighbours[*cursor];
        u64 word = load_acquire(&e->word);
        if (neigh_word_state(word) < NEIGH_SEND || is_listed(&t, *cursor))
            continue;
        struct fnat_neigh_info *i = &out[found++];
        *i = (struct fnat_neigh_info){.family = e->family, .port = e->port};
        memcpy(i->addr, e->addr, 16);
        memcpy(i->mac, &word, 6);
        i->state = (u8)((neigh_word_state(word) - NEIGH_NONE) | (neigh_word_static(word) ? FNAT_NEIGH_STATIC : 0));
    }
    return (int)found;
}

/* ---- steering ---- */

int fnat_put_steering(struct fnat_plane *p, uint8_t port, uint8_t flow, const struct fnat_steering_spec *spec)
{
    if (port >= FNAT_PORTS || flow >= FNAT_FLOWS)
        return -EINVAL;
    int rc = steer_check(spec, flow, p->config.workers);
    struct plane_steering *s = &p->steering[port * FNAT_FLOWS + flow];
    u32 seq = s->seq | 1; /* odd already: an earlier writer died while writing */
    if (rc || (seq != s->seq && !memcmp(&s->spec, spec, sizeof *spec)))
        return rc;
    store_relaxed(&s->seq, seq);
    __atomic_thread_fence(__ATOMIC_RELEASE);
    s->spec = *spec;
    s->spec.note[FNAT_STEER_NOTE - 1] = 0;
    store_release(&s->seq, seq + 1);
    __atomic_fetch_add(&p->header->steering, 1, __ATOMIC_RELEASE);
    return 0;
}

int fnat_get_steering(const struct fnat_plane *p, uint8_t port, uint8_t flow, struct fnat_steering_spec *out)
{
    if (port >= FNAT_PORTS || flow >= FNAT_FLOWS)
        return -EINVAL;
    const struct plane_steering *s = &p->steering[port * FNAT_FLOWS + flow];
    for (u32 tries = 0; tries < 1000; tries++) {
        u32 seq = load_acquire(&s->seq);
        *out = s->spec;
        __atomic_thread_fence(__ATOMIC_ACQUIRE);
        if (!(seq & 1) && load_relaxed(&s->seq) == seq)
            return 0;
    }
    return -EAGAIN; /* its writer died while writing */
}

uint32_t fnat_toeplitz(const uint8_t *key, const uint8_t *input, uint32_t len) { return steer_toeplitz(key, input, len); }

int fnat_steering_owner(const struct fnat_steering_spec *spec, uint8_t flow, uint32_t workers, const uint8_t *rip, const uint8_t *lip,
                        uint16_t rport, uint16_t lport)
{
    struct steer_map m;
    if (flow >= FNAT_FLOWS || !workers || workers > FNAT_WORKERS || steer_check(spec, flow, workers))
        return -EINVAL;
    steer_make(&m, spec, flow, 0, workers);
    return (int)steer_owner(&m, lport, steer_rest(&m, rip, lip, be16(rport)));
}

int fnat_steering_shares(const struct fnat_steering_spec *spec, uint8_t flow, uint32_t workers, uint16_t first, uint16_t last,
                         uint32_t *fewest, uint32_t *most)
{
    struct steer_map m;
    u32 ports[STEER_SLOTS] = {0};
    if (flow >= FNAT_FLOWS || !workers || workers > FNAT_WORKERS || steer_check(spec, flow, workers))
        return -EINVAL;
    steer_make(&m, spec, flow, 0, workers);
    for (u32 port = first; port <= last; port++)
        ports[steer_class(&m, (u16)port) & m.mask]++;
    *fewest = 65536, *most = 0;
    for (u32 k = 0; k <= (m.rest_bytes ? m.mask : 0u); k++) {
        u32 share[FNAT_WORKERS] = {0};
        for (u32 class = 0; class <= m.mask; class ++)
            share[m.worker[(class ^ k) & m.mask]] += ports[class];
        for (u32 w = 0; w < workers; w++)
            *fewest = min_u32(*fewest, share[w]), *most = max_u32(*most, share[w]);
    }
    return 0;
}

/* ---- counters ---- */

int fnat_service_stats(const struct fnat_plane *p, uint32_t id, struct fnat_stats *out)
{
    if (id >= p->config.services)
        return -EINVAL;
    const struct plane_service *s = &p->services[id];
    *out = (struct fnat_stats){s->conns, s->packets[TO_RS], s->packets[TO_CLIENT], s->bytes[TO_RS], s->bytes[TO_CLIENT], 0, 0};
    u32 steps = 0;
    for (u32 m = s->members; m && steps < p->config.members; m = p->members[m - 1].next, steps++)
        plane_sum_member(p, m - 1, out);
    return 0;
}

int fnat_member_stats(const struct fnat_plane *p, uint32_t id, struct fnat_stats *out)
{
    if (id >= p->config.members)
        return -EINVAL;
    *out = (struct fnat_stats){0};
    plane_sum_member(p, id, out);
    return 0;
}

int fnat_member_overloaded(const struct fnat_plane *p, uint32_t id)
{
    return id < p->config.members ? (int)load_relaxed(&p->limits[id].overloaded) : -EINVAL;
}

void fnat_persistent(const struct fnat_plane *p, uint64_t now_ns, uint32_t *counts, uint32_t members)
{
    for (u64 i = 0; i < (u64)plane_client_buckets(&p->config) * CLIENTS_IN_BUCKET; i++) {
        u64 word = load_relaxed(&p->templates[i]);
        u32 member = template_member(word);
        if (template_holds(word, now_ns) && member < members)
            counts[member]++;
    }
}

int fnat_address_stats(const struct fnat_plane *p, uint16_t id, struct fnat_address_stats *out)
{
    *out = (struct fnat_address_stats){0};
    for (u32 w = 0; w < p->config.workers; w++) {
        const struct address_state *a = &p->maps[w].addresses[id];
        out->misses += load_relaxed(&a->misses);
        out->used += load_relaxed(&a->used);
        out->conns += load_relaxed(&a->conns);
    }
    return 0;
}

int fnat_endpoints(const struct fnat_plane *p, uint32_t worker, uint32_t *cursor, struct fnat_endpoint_info *out, uint32_t n)
{
    if (worker >= p->config.workers)
        return -EINVAL;
    const struct worker_map *m = &p->maps[worker];
    u32 fresh = load_acquire(&m->header->lip.endpoint_fresh), found = 0, i = *cursor ? *cursor : 1;
    for (; i <= fresh && found < n; i++) {
        const struct endpoint *e = &m->endpoints[i];
        u32 used = load_relaxed(&e->used);
        if (!used)
            continue;
        struct fnat_endpoint_info *o = &out[found++];
        *o = (struct fnat_endpoint_info){
            .used = used, .lip = e->lip_id, .rport = be16(e->rport), .proto = e->proto, .family = e->family, .worker = (u8)worker};
        memcpy(o->rip, e->rip, 16);
    }
    *cursor = i > fresh ? 0xffffffff : i;
    return (int)found;
}

static const struct {
    const char *name, *help;
    char kind;
} counters[COUNTERS] = {
#define COUNTER(name, help) [CNT_##name] = {#name, help, 'c'},
#define DROP(name, help) [DROP_##name] = {#name, help, 'd'},
#define TAKEN(name, help) [TAKEN_##name] = {#name, help, 't'},
#include "counters.def"
};

uint32_t fnat_counter_count(void) { return COUNTERS; }
const char *fnat_counter_name(uint32_t i) { return i < COUNTERS ? counters[i].name : NULL; }
const char *fnat_counter_help(uint32_t i) { return i < COUNTERS ? counters[i].help : NULL; }
char fnat_counter_kind(uint32_t i) { return i < COUNTERS ? counters[i].kind : 0; }

int fnat_counters(const struct fnat_plane *p, uint32_t worker, uint64_t *out)
{
    if (worker >= p->config.workers)
        return -EINVAL;
    for (u32 i = 0; i < COUNTERS; i++)
        out[i] = load_relaxed(&p->maps[worker].header->counters[i]);
    return 0;
}

int fnat_worker_steps(const struct fnat_plane *p, uint32_t worker, struct fnat_step_stats *out)
{
    if (worker >= p->config.workers)
        return -EINVAL;
    *out = p->maps[worker].header->steps; /* every number is whole, their sum may be a turn behind */
    return 0;
}

int fnat_worker_cpu(const struct fnat_plane *p, uint32_t worker)
{
    if (worker >= p->config.workers || !load_acquire(&p->maps[worker].header->active))
        return -1;
    return (int)load_relaxed(&p->maps[worker].header->cpu) - 1;
}

/* ---- connections ---- */

static u32 timeout_seconds(const struct fnat_plane *p, const struct conn *c)
{
    u64 word = load_acquire(&p->header->snapshot);
    u32 service = p->members[c->member].service;
    u32 own = service ? p->services[service - 1].conn_timeout : 0;
    if (own && conn_state_is_services(c->state))
        return own;
    return word ? ((const struct snapshot *)snapshot_at(p->snapshots, (u32)word))->settings.timeouts[c->state] : 0;
}

static void fill_info(const struct fnat_plane *p, const struct conn *c, u32 tick, struct fnat_conn_info *out)
{
    memset(out, 0, sizeof *out);
    u8 *ends[4] = {out->cip, out->vip, out->rip, out->lip};
    for (u32 end = 0; end < 4; end++)
        memcpy(ends[end], filter_end(p, c, end).b, 16);
    out->cport = be16(c->cport), out->vport = be16(c->vport), out->lport = be16(c->lport), out->rport = be16(c->rport);
    const struct conn_counts *n = conn_counts((struct conn *)c);
    for (u32 d = 0; d < 2; d++) {
        out->packets[d] = n->packets[d];
        out->bytes[d] = (u64)c->bytes_high[d] << 32 | n->bytes[d];
    }
    out->member = c->member;
    out->service = p->members[c->member].service - 1;
    s32 left = (s32)(c->last_seen + timeout_seconds(p, c) * TICKS_PER_SECOND - tick);
    out->remaining = left > 0 ? ((u32)left + TICKS_PER_SECOND - 1) / TICKS_PER_SECOND : 0;
    out->age = (tick - c->opened) / TICKS_PER_SECOND;
    out->proto = c->proto, out->family = conn_family(c, TO_RS), out->rs_family = conn_family(c, TO_CLIENT), out->state = c->state;
}

/* The record as it was at one moment. False: it is not in use, or was closed while we read. */
static bool read_record(const struct fnat_plane *p, const struct conn *c, u32 gen, struct conn *copy)
{
    *copy = *c;
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    return load_relaxed(&c->gen) == gen && copy->member < p->config.members && copy->state < CONN_STATES;
}

int fnat_conns(const struct fnat_plane *p, uint32_t worker, uint32_t *cursor, const struct fnat_conn_filter *filter, uint64_t now_ns,
               struct fnat_conn_info *out, uint32_t n)
{
    enum { LOOKS = 1 << 20 }; /* records looked at in one call: a rare match must not keep the caller waiting */
    struct filter w;
    if (worker >= p->config.workers)
        return -EINVAL;
    int rc = filter_read(filter, &w);
    if (rc)
        return rc;
    const struct worker_map *m = &p->maps[worker];
    u32 fresh = load_acquire(&m->header->conn_fresh), found = 0, i = *cursor ? *cursor : 1;
    for (u32 looks = 0; i <= fresh && found < n && looks < LOOKS; i++, looks++) {
        const struct conn *c = &m->conns[i];
        struct conn copy;
        u32 gen = load_acquire(&c->gen);
        if (!(gen & 1) || !filter_passes(p, &w, c) || !read_record(p, c, gen, &copy))
            continue;
        fill_info(p, &copy, ticks(now_ns), &out[found]);
        out[found].index = i;
        out[found++].worker = (u8)worker;
    }
    *cursor = i > fresh ? 0xffffffff : i;
    return (int)found;
}

int64_t fnat_conn_count(const struct fnat_plane *p, uint32_t worker, const struct fnat_conn_filter *filter)
{
    struct filter w;
    if (worker >= p->config.workers)
        return -EINVAL;
    int rc = filter_read(filter, &w);
    if (rc)
        return rc;
    const struct worker_map *m = &p->maps[worker];
    u32 fresh = load_acquire(&m->header->conn_fresh);
    s64 count = 0;
    for (u32 i = 1; i <= fresh; i++) {
        const struct conn *c = &m->conns[i];
        u32 gen = load_acquire(&c->gen);
        if (!(gen & 1))
            continue;
        bool pass = filter_passes(p, &w, c);
        __atomic_thread_fence(__ATOMIC_ACQUIRE);
        count += pass && load_relaxed(&c->gen) == gen;
    }
    return count;
}

int64_t fnat_conn_kill(struct fnat_plane *p, const struct fnat_conn_filter *filter, int how)
{
    struct plane_kill *kill = &p->header->kill;
    struct filter w;
    u64 ended;
    int rc = filter_read(filter, &w);
    if (rc || !filter)
        return rc ? rc : -EINVAL;
    if (fnat_conn_killed(p, &ended) != kill->seq >> 1 && !(kill->seq & 1))
        return -EBUSY;
    u32 seq = kill->seq | 1; /* odd already: an earlier writer died while writing */
    store_relaxed(&kill->seq, seq);
    __atomic_thread_fence(__ATOMIC_RELEASE);
    kill->filter = *filter;
    kill->how = (u32)how;
    store_release(&kill->seq, seq + 1);
    return (seq + 1) >> 1;
}

int64_t fnat_conn_killed(const struct fnat_plane *p, uint64_t *ended)
{
    u32 seq = load_acquire(&p->header->kill.seq), done = seq;
    *ended = 0;
    for (u32 i = 0; i < p->config.workers; i++) {
        const struct worker_header *h = p->maps[i].header;
        u32 own = load_acquire(&h->kill_done);
        if (load_acquire(&h->active) && after_u32(done, own))
            done = own;
        *ended += own == seq ? load_relaxed(&h->killed) : 0;
    }
    return done >> 1;
}

const char *fnat_state_name(uint32_t state) { return track_name(state); }

struct fnat_worker *fnat_worker_get(struct fnat_plane *p, uint32_t index) { return index < p->config.workers ? p->workers[index] : NULL; }
