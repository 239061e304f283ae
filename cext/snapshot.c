/* snapshot.c: see snapshot.h. The builder lives in control's own memory; only sealed results lie in the shared area.
 *
 * Space is given out next fit over a bitmap of units, which lives with the builder. Routes, which may take megabytes in one piece, have
 * the end of the area, kept free of small things for two tables: one lies at its upper end, the next at its lower. What a new snapshot no longer uses waits in
 * a queue, and is free again when every running worker has adopted a snapshot made after that. A control process that starts
 * anew begins with an empty builder: its first publish replaces the picture as a whole; until then all that the old snapshot
 * reaches counts as used.
 *
 * A failed publish leaves the last snapshot and all that was put; putting something else and publishing again is the way on.
 */
#include "slots.h"

#include "acl.h"

#include <errno.h>
#include <stdlib.h>
#include <time.h>

enum { UNIT = 64, PAGE_UNITS = SNAP_PAGE * sizeof(union snap_slot) / UNIT, ADDRESS_IDS = 65536 };

struct extent {
    u32 at, units;
    u32 since; /* the first snapshot that does without it */
};

/* A table under construction and as it was last published. */
struct draft {
    u32 *pages; /* units, as last published */
    u32 n_pages, count, directory;
    u32 *dirty; /* ids that were put or deleted since, each once */
    u32 n_dirty, dirty_room;
    u8 *is_dirty; /* by id */
};

struct snapshot_builder {
    u16 acl[2 * FNAT_ACL_LIST], n_deny, n_allow;
    u32 services_with_acl;
    struct fnat_settings settings;
    struct fnat_port_spec ports[FNAT_PORTS];
    u32 *blobs, *published;                                /* by service id; 0: none */
    struct fnat_address_spec *addresses, *addresses_there; /* by address id: wanted, published; kind 0: none */
    struct draft services, owned;
    u32 seq, header_at; /* the last snapshot published */
    void *routes;       /* those that were put last, laid out; NULL: published, or none were put yet */
    struct fib_sizes routes_sizes, fib;
    u16 mtus[FIB_MTUS]; /* classes of routes' MTUs */
    bool host_routes;
    u32 routes_version, fib_at;
    u64 *used;                /* a bit a unit of the shared area */
    u32 units, next, low_end; /* routes lie from low_end on, all else before it as long as there is room */
    struct extent *dying;     /* a queue, in order of `since` */
    u32 dying_first, dying_end, dying_room;
};

/* Of those who set none: clients can compute whom they share a server with. */
static const u64 HASH_KEY[4] = {0x243f6a8885a308d3, 0x13198a2e03707344, 0xa4093822299f31d0, 0x082efa98ec4e6c89};

/* Seconds. ESTABLISHED: RFC 5382 REQ-5; half-closed connections may last minutes while one side still sends. */
void snapshot_default_settings(struct fnat_settings *s)
{
    static const u32 seconds[FNAT_STATES] = {
        [TCP_NONE] = 2,      [TCP_EST] = 7440, [TCP_SYN_SENT] = 10,    [TCP_SYN_RECV] = 10, [TCP_FIN_WAIT] = 600,
        [TCP_TIME_WAIT] = 7, [TCP_CLOSED] = 3, [TCP_CLOSE_WAIT] = 600, [TCP_LAST_ACK] = 30, [TCP_LISTEN] = 120,
        [TCP_SYNACK] = 30,   [UDP_NONE] = 2,   [UDP_ONEWAY] = 300,     [UDP_NORM] = 300,    [UDP_LAST] = 2,
        [SCTP_EST] = 900,    [SCTP_INIT] = 60, [SCTP_SHUTDOWN] = 60,   [SCTP_CLOSED] = 3,
    };
    memset(s, 0, sizeof *s);
    memcpy(s->timeouts, seconds, sizeof seconds);
    s->unserved = FNAT_UNSERVED_RESET;
    s->fragment_seconds = 2; /* a datagram's fragments come in a row */
    s->icmp_rate = 1000;
    s->echo_rate = 10000;
    s->lport_first = LIP_PORT_FIRST;
    s->lport_last = 65535;
    memcpy(s->hash_key, HASH_KEY, sizeof HASH_KEY);
}

/* ---- space of the shared area ---- */

static void mark(struct snapshot_builder *b, u32 at, u32 units, bool used)
{
    for (u32 i = at; i < at + units; i++)
        if (used)
            b->used[i / 64] |= 1ull << i % 64;
        else
            b->used[i / 64] &= ~(1ull << i % 64);
}

/* The first of `units` free units between from and to; 0: none. */
static u32 find_run(const struct snapshot_builder *b, u32 from, u32 to, u32 units)
{
    u32 run = 0;
    for (u32 i = from; i < to;) {
        u64 word = b->used[i / 64];
        if (i % 64 == 0 && i + 64 <= to && (word == ~0ull || (word == 0 && run + 64 < units))) {
            run = word ? 0 : run + 64;
            i += 64;
            continue;
        }
        run = word >> i % 64 & 1 ? 0 : run + 1;
        i++;
        if (run == units)
            return i - units;
    }
    return 0;
}

/* The last ones instead. */
static u32 find_run_back(const struct snapshot_builder *b, u32 from, u32 to, u32 units)
{
    u32 run = 0;
    for (u32 i = to; i-- > from;) {
        run = b->used[i / 64] >> i % 64 & 1 ? 0 : run + 1;
        if (run == units)
            return i;
    }
    return 0;
}

s64 snapshot_adopted(const struct fnat_plane *p)
{
    s64 oldest = (s64)(load_acquire(&p->header->snapshot) >> 32);
    for (u32 i = 0; i < p->config.workers; i++) {
        const struct worker_header *w = p->maps[i].header;
        if (load_acquire(&w->active) && load_acquire(&w->snapshot_seq) < oldest)
            oldest = load_acquire(&w->snapshot_seq);
    }
    return oldest;
}

static void reclaim(struct fnat_plane *p, struct snapshot_builder *b)
{
    if (b->dying_first == b->dying_end)
        return;
    s64 adopted = snapshot_adopted(p);
    for (; b->dying_first < b->dying_end && b->dying[b->dying_first].since <= adopted; b->dying_first++)
        mark(b, b->dying[b->dying_first].at, b->dying[b->dying_first].units, false);
}

static u32 units_of(u64 bytes) { return (u32)(align_up(bytes, UNIT) / UNIT); }

/* Unit 0 is never given out: 0 means none. */
static u32 take_space(struct fnat_plane *p, struct snapshot_builder *b, u64 bytes)
{
    u32 units = units_of(bytes);
    reclaim(p, b);
    u32 at = find_run(b, b->next, b->low_end, units);
    if (!at)
        at = find_run(b, 1, b->low_end, units);
    if (!at)
        at = find_run(b, 1, b->units, units);
    if (!at)
        return 0;
    mark(b, at, units, true);
    b->next = at + units;
    memset(p->snapshots + (u64)at * UNIT, 0, (u64)units * UNIT);
    return at;
}

/* For routes; the last ones lie at `old`. */
static u32 take_space_for_routes(struct fnat_plane *p, struct snapshot_builder *b, u64 bytes, u32 old)
{
    u32 units = units_of(bytes), at = 0;
    reclaim(p, b);
    u64 room = 2ull * units + units / 4; /* the next one may be a little larger */
    b->low_end = room < b->units ? b->units - (u32)room : 1;
    if (old < b->low_end + (b->units - b->low_end) / 2)
        at = find_run_back(b, b->low_end, b->units, units);
    if (!at)
        at = find_run(b, b->low_end, b->units, units);
    if (!at)
        at = find_run_back(b, 1, b->units, units);
    if (at)
        mark(b, at, units, true);
    return at;
}

/* Snapshots from b->seq + 1 on do without this. Room for it was made by room_to_die. */
static void retire(struct snapshot_builder *b, u32 at, u32 units)
{
    if (at)
        b->dying[b->dying_end++] = (struct extent){at, units, b->seq + 1};
}

static bool room_to_die(struct snapshot_builder *b, u32 more)
{
    u32 n = b->dying_end - b->dying_first;
    if (b->dying_first) {
        memmove(b->dying, b->dying + b->dying_first, n * sizeof *b->dying);
        b->dying_first = 0, b->dying_end = n;
    }
    if (n + more <= b->dying_room)
        return true;
    struct extent *queue = realloc(b->dying, (2ull * n + more) * sizeof *queue);
    if (!queue)
        return false;
    b->dying = queue;
    b->dying_room = 2 * n + more;
    return true;
}

/* ---- the builder ---- */

static u64 blob_bytes(u8 sched, u32 n_members, u32 n_ids, u32 slots) /* n_ids: LIPs and address sets */
{
    return sizeof(struct snap_service) + n_members * sizeof(struct snap_member) + n_ids * sizeof(u16) +
           slots_bytes(sched, n_members, slots);
}

static u32 blob_units(const struct fnat_plane *p, u32 at)
{
    const struct snap_service *s = snapshot_at(p->snapshots, at);
    return units_of(blob_bytes(s->sched, s->n_members, s->n_lips + s->n_deny + s->n_allow, s->slots));
}

static void keep_until_replaced(struct snapshot_builder *b, u32 at, u32 units)
{
    mark(b, at, units, true);
    retire(b, at, units);
}

/* What an earlier control process published stays in use until the first publish of this one. */
static bool keep_old_snapshot(struct fnat_plane *p, struct snapshot_builder *b, u32 at)
{
    const struct snapshot *old = snapshot_at(p->snapshots, at);
    const struct snap_table *tables[] = {&old->services, &old->addresses};
    const union snap_slot *slot;
    u32 services = 0, cursor = 0;
    while (snapshot_next(&old->services, p->snapshots, &cursor))
        services++;
    if (!room_to_die(b, services + old->services.mask + old->addresses.mask + 6))
        return false;
    keep_until_replaced(b, at, units_of(sizeof *old));
    keep_until_replaced(b, old->fib_at, units_of(fib_bytes(old->fib)));
    memcpy(b->mtus, snapshot_fib(old, p->snapshots).mtus, sizeof b->mtus);
    for (u32 i = 0; i < 2; i++) {
        const u32 *pages = snapshot_at(p->snapshots, tables[i]->directory);
        keep_until_replaced(b, tables[i]->directory, units_of((tables[i]->mask + 1ull) * sizeof *pages));
        for (u32 page = 0; page <= tables[i]->mask; page++)
            keep_until_replaced(b, pages[page], PAGE_UNITS);
    }
    for (cursor = 0; (slot = snapshot_next(&old->services, p->snapshots, &cursor));)
        keep_until_replaced(b, slot->service.blob, blob_units(p, slot->service.blob));
    return true;
}

/* What a worker still uses beside the newest snapshot is known to nobody but the control process that has gone. */
static bool all_are_up_to_date(const struct fnat_plane *p)
{
    enum { TRIES = 2000 };
    for (int i = 0; i < TRIES; i++, nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL))
        if (snapshot_adopted(p) == (s64)(load_acquire(&p->header->snapshot) >> 32))
            return true;
    return false;
}

static struct snapshot_builder *builder_of(struct fnat_plane *p)
{
    if (p->builder)
        return p->builder;
    if (!all_are_up_to_date(p))
        return NULL;
    struct snapshot_builder *b = calloc(1, sizeof *b);
    if (!b)
        return NULL;
    b->units = (u32)(p->snapshots_len / UNIT);
    b->next = 1;
    b->low_end = b->units;
    b->blobs = calloc(p->config.services, sizeof *b->blobs);
    b->published = calloc(p->config.services, sizeof *b->published);
    b->addresses = calloc(ADDRESS_IDS, sizeof *b->addresses);
    b->addresses_there = calloc(ADDRESS_IDS, sizeof *b->addresses_there);
    b->services.is_dirty = calloc(p->config.services, 1);
    b->owned.is_dirty = calloc(ADDRESS_IDS, 1);
    b->used = calloc(b->units / 64 + 1, sizeof *b->used);
    snapshot_default_settings(&b->settings);
    u64 word = load_acquire(&p->header->snapshot);
    if (!p->acl_builder)
        p->acl_builder = acl_open(p->acl, p->acl_len, (u32)(word >> 32));
    b->seq = (u32)(word >> 32);
    b->routes_version = b->seq + 1; /* a new control process means new routes */
    if (!b->blobs || !b->published || !b->addresses || !b->addresses_there || !b->services.is_dirty || !b->owned.is_dirty || !b->used ||
        !p->acl_builder || (b->seq && !keep_old_snapshot(p, b, (u32)word))) {
        snapshot_builder_free(b);
        return NULL;
    }
    return p->builder = b;
}

static void draft_free(struct draft *d)
{
    free(d->pages);
    free(d->dirty);
    free(d->is_dirty);
}

void snapshot_builder_free(struct snapshot_builder *b)
{
    if (!b)
        return;
    free(b->blobs);
    free(b->published);
    free(b->addresses);
    free(b->addresses_there);
    free(b->routes);
    draft_free(&b->services);
    draft_free(&b->owned);
    free(b->used);
    free(b->dying);
    free(b);
}

/* This id differs from what was published, or may. */
static bool touch(struct draft *d, u32 id)
{
    if (d->is_dirty[id])
        return true;
    if (d->n_dirty == d->dirty_room) {
        u32 room = d->dirty_room ? 2 * d->dirty_room : 64;
        u32 *more = realloc(d->dirty, room * sizeof *more);
        if (!more)
            return false;
        d->dirty = more;
        d->dirty_room = room;
    }
    d->dirty[d->n_dirty++] = id;
    d->is_dirty[id] = 1;
    return true;
}

int snapshot_put_settings(struct fnat_plane *p, const struct fnat_settings *settings)
{
    struct snapshot_builder *b = builder_of(p);
    if (!b)
        return -ENOMEM;
    for (u32 i = 0; i < FNAT_STATES; i++)
        if (!settings->timeouts[i] || settings->timeouts[i] > 31535999)
            return -ERANGE;
    if (!settings->fragment_seconds || settings->fragment_seconds > 60)
        return -ERANGE;
    if (settings->lport_first < LIP_PORT_FIRST || settings->lport_last < settings->lport_first)
        return -ERANGE;
    if (settings->icmp_rate > FNAT_RATE_MOST || settings->echo_rate > FNAT_RATE_MOST)
        return -ERANGE;
    b->settings = *settings;
    if (!memcmp(settings->hash_key, (const u64[4]){0}, sizeof settings->hash_key))
        memcpy(b->settings.hash_key, HASH_KEY, sizeof HASH_KEY);
    return 0;
}

int snapshot_put_port(struct fnat_plane *p, const struct fnat_port_spec *port)
{
    struct snapshot_builder *b = builder_of(p);
    if (!b)
        return -ENOMEM;
    if (port->id >= FNAT_PORTS || port->mtu > FRAME_SIZE - FRAME_HEADROOM - 96)
        return -EINVAL;
    b->ports[port->id] = *port;
    return 0;
}

static u32 gcd(u32 a, u32 b)
{
    while (b) {
        u32 r = a % b;
        a = b, b = r;
    }
    return a;
}

static void move_member(struct fnat_plane *p, u32 id, u32 service);

/* ns between two new connections, never a bit too short. */
static u32 period_of(u32 rate) { return rate ? (u32)((1000000000ull + rate - 1) / rate) : 0; }
/* Blobs that were put and have lists. */
static void count_acl(struct fnat_plane *p, struct snapshot_builder *b, u32 at, u32 step)
{
    const struct snap_service *s = at ? snapshot_at(p->snapshots, at) : NULL;
    if (s && s->n_deny + s->n_allow)
        b->services_with_acl += step;
}

static bool are_sets(const struct fnat_plane *p, const u16 *sets, u32 n_deny, u32 n_allow)
{
    if (n_deny > FNAT_ACL_LIST || n_allow > FNAT_ACL_LIST)
        return false;
    for (u32 i = 0; i < n_deny + n_allow; i++)
        if (!acl_is_set(p->acl_builder, sets[i]))
            return false;
    return true;
}

/* A blob that was put and put again before it was published: nobody has seen it. */
static void forget_unpublished(struct fnat_plane *p, struct snapshot_builder *b, u32 id)
{
    if (b->blobs[id] && b->blobs[id] != b->published[id])
        mark(b, b->blobs[id], blob_units(p, b->blobs[id]), false);
}

static bool is_family(u8 family) { return family == 4 || family == 6; }

static bool is_proto(u8 proto) { return proto == PROTO_TCP || proto == PROTO_UDP || proto == PROTO_SCTP; }

/* TOA and PROXY v1 are for TCP, UOA for UDP; a client's own header is a matter of PROXY only. */
static bool is_client_addr(u8 how, u8 proto)
{
    switch (how) {
    case FNAT_CLIENT_ADDR_NONE:
        return true;
    case FNAT_CLIENT_ADDR_PROXY_V2:
    case FNAT_CLIENT_ADDR_PROXY_V2 | FNAT_CLIENT_ADDR_INSECURE:
        return proto != PROTO_SCTP;
    case FNAT_CLIENT_ADDR_TOA:
    case FNAT_CLIENT_ADDR_PROXY_V1:
    case FNAT_CLIENT_ADDR_PROXY_V1 | FNAT_CLIENT_ADDR_INSECURE:
        return proto == PROTO_TCP;
    case FNAT_CLIENT_ADDR_UOA_OPP:
    case FNAT_CLIENT_ADDR_UOA_IPO:
        return proto == PROTO_UDP;
    default:
        return false;
    }
}

/* What of a scheduler and its options goes together. */
static bool can_schedule(const struct fnat_service_spec *svc)
{
    u8 sched = svc->sched;
    bool hashes = sched == FNAT_SCHED_SH || sched == FNAT_SCHED_MH || sched == FNAT_SCHED_CONHASH;
    bool grows =
        sched == FNAT_SCHED_WRR || sched == FNAT_SCHED_WLC || sched == FNAT_SCHED_SED || sched == FNAT_SCHED_NQ || sched == FNAT_SCHED_P2C;
    if (sched >= FNAT_SCHEDS || svc->hash_target > FNAT_HASH_QID || (svc->hash_target && !hashes) || (svc->slow_start && !grows) ||
        (svc->hash_target == FNAT_HASH_QID && svc->proto != PROTO_UDP))
        return false;
    return sched != FNAT_SCHED_MH || (svc->slots > 2 && svc->slots <= 131071 && svc->n_members <= svc->slots);
}

/* One that drains gets no new connections. */
static u16 weight_of(const struct fnat_member_spec *m) { return m->flags & FNAT_MEMBER_DRAINS ? 0 : m->weight; }

/* A member as workers see it, after the one before it in the list. */
static void fill_member(struct snap_service *s, u32 i, const struct fnat_member_spec *from)
{
    struct snap_member *to = &s->members[i];
    memcpy(to->rip, from->rip, 16);
    to->id = from->id, to->rport = be16(from->rport), to->weight = weight_of(from), to->family = from->family;
    to->role = from->role, to->flags = from->flags, to->upper = from->upper, to->lower = from->lower;
    to->new_per_s = from->new_per_s, to->new_period = period_of(from->new_per_s);
    to->upto = (i ? to[-1].upto : 0) + to->weight;
    if (to->weight) {
        s->usable++;
        s->roles |= 1u << from->role;
        s->weight_gcd = gcd(to->weight, s->weight_gcd);
        s->weight_max = max_u32(s->weight_max, to->weight);
    }
}

static void fill_service(struct snap_service *s, const struct fnat_service_spec *svc)
{
    memcpy(s->vip, svc->vip, 16);
    s->id = svc->id, s->vport = be16(svc->vport), s->family = svc->family, s->proto = svc->proto;
    s->sched = svc->sched, s->no_rs = svc->no_rs, s->flags = svc->flags, s->client_addr = svc->client_addr;
    s->conn_timeout = svc->conn_timeout, s->half_open = svc->half_open;
    s->persistent = svc->persistent;
    s->max_conns = svc->max_conns, s->per_client = svc->per_client;
    s->new_per_s = svc->new_per_s, s->new_period = period_of(svc->new_per_s);
    s->n_members = svc->n_members, s->n_lips = svc->n_lips, s->n_deny = svc->n_deny, s->n_allow = svc->n_allow;
    s->slots = svc->sched == FNAT_SCHED_MH ? svc->slots : 0, s->slow_start = svc->slow_start, s->hash_target = svc->hash_target;
}

static bool is_usable_in(const struct fnat_plane *p, u32 id, u32 service)
{
    return p->members[id].service == service + 1 && p->members[id].usable;
}

/* Members that come to others begin to grow; who is alone, or comes with the service, need not. */
static void note_arrivals(struct fnat_plane *p, const struct fnat_service_spec *svc, const struct fnat_member_spec *members)
{
    u32 others = 0, now = (u32)(svc->now_ns / SNAP_EIGHTH_NS);
    for (u32 i = 0; i < svc->n_members; i++)
        others += weight_of(&members[i]) && is_usable_in(p, members[i].id, svc->id);
    for (u32 i = 0; i < svc->n_members; i++)
        if (weight_of(&members[i]) && !is_usable_in(p, members[i].id, svc->id))
            store_relaxed(&p->members[members[i].id].since, others ? max_u32(now, 1) : 0);
}

/* What a scheduler would do with these members: its owners. */
int snapshot_owners(const struct fnat_service_spec *svc, const struct fnat_member_spec *members, u32 n, u32 *out)
{
    bool hashes = svc->sched == FNAT_SCHED_SH || svc->sched == FNAT_SCHED_MH || svc->sched == FNAT_SCHED_CONHASH;
    if (!hashes || !can_schedule(svc) || svc->n_members > 65535 || !n)
        return -EINVAL;
    struct snap_service *s = calloc(1, blob_bytes(svc->sched, svc->n_members, 0, svc->slots));
    if (!s)
        return -ENOMEM;
    fill_service(s, svc);
    s->n_lips = s->n_deny = s->n_allow = 0;
    for (u32 i = 0; i < svc->n_members; i++)
        fill_member(s, i, &members[i]);
    int rc = s->usable ? slots_build(s) : -EINVAL;
    for (u64 i = 0; i < n && !rc; i++)
        out[i] = slots_owner(s, ((i << 32) + n - 1) / n << 32);
    free(s);
    return rc;
}

int snapshot_put_service(struct fnat_plane *p, const struct fnat_service_spec *svc, const struct fnat_member_spec *members, const u16 *lips)
{
    struct snapshot_builder *b = builder_of(p);
    if (!b)
        return -ENOMEM;
    if (svc->id >= p->config.services || !is_family(svc->family) || !is_proto(svc->proto) || !svc->vport || !can_schedule(svc) ||
        svc->new_per_s > FNAT_RATE_MOST || svc->per_client >= 1u << 24 || svc->persistent > FNAT_PERSISTENT_MOST ||
        svc->persistent_plen > (svc->family == 4 ? 32u : 128u) || svc->n_members > 65535 || svc->n_lips > 65535 ||
        !is_client_addr(svc->client_addr, svc->proto) ||
        (svc->flags & FNAT_SVC_QUIC && (svc->proto != PROTO_UDP || svc->flags & FNAT_SVC_ONE_PACKET)))
        return -EINVAL;
    for (u32 i = 0; i < svc->n_members; i++)
        if (members[i].id >= p->config.members || !is_family(members[i].family) || !members[i].rport || members[i].role >= FNAT_ROLES ||
            members[i].new_per_s > FNAT_RATE_MOST)
            return -EINVAL;
    if (!are_sets(p, svc->acl, svc->n_deny, svc->n_allow))
        return -EINVAL;
    if (!touch(&b->services, svc->id))
        return -ENOMEM;
    u32 at = take_space(p, b, blob_bytes(svc->sched, svc->n_members, svc->n_lips + svc->n_deny + svc->n_allow, svc->slots));
    if (!at)
        return -ENOSPC;
    struct snap_service *s = (struct snap_service *)(p->snapshots + (u64)at * 64);
    fill_service(s, svc);
    for (u32 i = 0; i < svc->n_members; i++)
        fill_member(s, i, &members[i]);
    memcpy((u16 *)(s->members + s->n_members), lips, svc->n_lips * sizeof(u16));
    for (u32 i = 0; i < (u32)svc->n_deny + svc->n_allow; i++)
        ((u16 *)snap_service_acl(s))[i] = svc->acl[i];
    if (!slots_copy(s, b->blobs[svc->id] ? snapshot_at(p->snapshots, b->blobs[svc->id]) : NULL) && slots_build(s)) {
        mark(b, at, blob_units(p, at), false);
        return -ENOMEM;
    }
    note_arrivals(p, svc, members);
    /* Members that left the list stop being usable; they keep counting for this service. */
    for (u32 id = p->services[svc->id].members; id; id = p->members[id - 1].next)
        store_relaxed(&p->members[id - 1].usable, 0);
    for (u32 i = 0; i < svc->n_members; i++) {
        move_member(p, members[i].id, svc->id);
        store_relaxed(&p->members[members[i].id].usable, members[i].weight || members[i].flags & FNAT_MEMBER_DRAINS);
    }
    store_relaxed(&p->services[svc->id].conn_timeout, svc->conn_timeout);
    store_relaxed(&p->services[svc->id].persistent, svc->persistent);
    store_relaxed(&p->services[svc->id].persistent_plen, svc->persistent_plen);
    count_acl(p, b, b->blobs[svc->id], -1u);
    count_acl(p, b, at, 1);
    forget_unpublished(p, b, svc->id);
    b->blobs[svc->id] = at;
    return 0;
}

/* What this member has counted so far stays with the service it leaves, and is taken off the one it comes to. */
static void settle(struct fnat_plane *p, u32 service, u32 id, bool leaves)
{
    struct fnat_stats sum = {0};
    struct plane_service *s = &p->services[service];
    u64 sign = leaves ? 1 : ~0ull;
    plane_sum_member(p, id, &sum);
    s->conns += sign * sum.conns;
    s->packets[TO_RS] += sign * sum.in_packets, s->packets[TO_CLIENT] += sign * sum.out_packets;
    s->bytes[TO_RS] += sign * sum.in_bytes, s->bytes[TO_CLIENT] += sign * sum.out_bytes;
}

static void move_member(struct fnat_plane *p, u32 id, u32 service)
{
    struct plane_member *m = &p->members[id];
    if (m->service == service + 1)
        return;
    if (m->service) {
        u32 *link = &p->services[m->service - 1].members;
        while (*link && *link != id + 1)
            link = &p->members[*link - 1].next;
        if (*link)
            *link = m->next;
        settle(p, m->service - 1, id, true);
    }
    settle(p, service, id, false);
    m->service = service + 1;
    m->next = p->services[service].members;
    p->services[service].members = id + 1;
}

void snapshot_sum_acl(const struct fnat_plane *p, u32 service, u64 sums[2])
{
    sums[0] = sums[1] = 0;
    for (u32 w = 0; w < p->config.workers; w++) {
        sums[0] += load_relaxed(&p->maps[w].services[service].acl_denied);
        sums[1] += load_relaxed(&p->maps[w].services[service].acl_not_allowed);
    }
}

void snapshot_zero_acl(struct fnat_plane *p, u32 service) { snapshot_sum_acl(p, service, p->services[service].acl); }

int snapshot_del_service(struct fnat_plane *p, u32 id)
{
    struct snapshot_builder *b = builder_of(p);
    if (!b)
        return -ENOMEM;
    if (id < p->config.services)
        snapshot_zero_acl(p, id); /* who gets the id next starts from 0 */
    if (id >= p->config.services || !b->blobs[id])
        return -ENOENT;
    if (!touch(&b->services, id))
        return -ENOMEM;
    for (u32 m = p->services[id].members; m; m = p->members[m - 1].next)
        store_relaxed(&p->members[m - 1].usable, 0);
    count_acl(p, b, b->blobs[id], -1u);
    forget_unpublished(p, b, id);
    b->blobs[id] = 0;
    return 0;
}

int snapshot_put_address(struct fnat_plane *p, const struct fnat_address_spec *addr)
{
    struct snapshot_builder *b = builder_of(p);
    if (!b)
        return -ENOMEM;
    if (!addr->id || !is_family(addr->family) || !addr->kind || addr->port >= FNAT_PORTS)
        return -EINVAL;
    if (!touch(&b->owned, addr->id))
        return -ENOMEM;
    struct plane_address *a = &p->addresses[addr->id];
    memcpy(a->addr, addr->addr, 16);
    a->family = addr->family, a->kind = addr->kind, a->port = addr->port;
    b->addresses[addr->id] = *addr;
    return 0;
}

int snapshot_del_address(struct fnat_plane *p, u16 id)
{
    struct snapshot_builder *b = builder_of(p);
    if (!b)
        return -ENOMEM;
    if (!b->addresses[id].kind)
        return -ENOENT;
    if (!touch(&b->owned, id))
        return -ENOMEM;
    b->addresses[id].kind = 0;
    return 0;
}

int snapshot_put_addresses(struct fnat_plane *p, const struct fnat_address_spec *addrs, u32 n)
{
    struct snapshot_builder *b = builder_of(p);
    if (!b)
        return -ENOMEM;
    for (u32 i = 0; i < n; i++)
        if (!addrs[i].id || !is_family(addrs[i].family) || !addrs[i].kind || addrs[i].port >= FNAT_PORTS)
            return -EINVAL;
    int rc = 0;
    for (u32 id = 1; id < ADDRESS_IDS && !rc; id++)
        if (b->addresses[id].kind)
            rc = snapshot_del_address(p, (u16)id);
    for (u32 i = 0; i < n && !rc; i++)
        rc = snapshot_put_address(p, &addrs[i]);
    return rc;
}

int snapshot_put_routes(struct fnat_plane *p, const struct fnat_route_spec *routes, u32 n)
{
    struct snapshot_builder *b = builder_of(p);
    if (!b)
        return -ENOMEM;
    void *laid_out;
    int rc = fib_build(routes, n, b->mtus, &laid_out, &b->routes_sizes);
    if (rc)
        return rc;
    free(b->routes);
    b->routes = laid_out;
    b->routes_version++;
    b->host_routes = false;
    for (u32 i = 0; i < n; i++)
        b->host_routes |= routes[i].kind == FNAT_ROUTE_HOST;
    return 0;
}

struct acl_builder *snapshot_acl(struct fnat_plane *p)
{
    if (!builder_of(p))
        return NULL;
    acl_reclaim(p->acl_builder, (u32)snapshot_adopted(p));
    return p->acl_builder;
}

int snapshot_put_acl(struct fnat_plane *p, const u16 *sets, u32 n_deny, u32 n_allow)
{
    struct snapshot_builder *b = builder_of(p);
    if (!b)
        return -ENOMEM;
    if (!are_sets(p, sets, n_deny, n_allow))
        return -EINVAL;
    if (n_deny + n_allow)
        memcpy(b->acl, sets, (n_deny + n_allow) * sizeof *sets);
    b->n_deny = (u16)n_deny, b->n_allow = (u16)n_allow;
    return 0;
}

/* ---- the tables ---- */

static u64 slot_hash(const struct hash_secret *k, const u8 addr[16], u16 port, u8 proto, u8 family)
{
    return hash_addr(k, addr, (u64)port << 16 | (u64)proto << 8 | family);
}

static const union snap_slot *find(const struct snap_table *t, const u8 *area, const struct hash_secret *k, const u8 addr[16], u16 port,
                                   u8 proto, u8 family)
{
    u32 hash = (u32)slot_hash(k, addr, port, proto, family);
    const u32 *pages = snapshot_at(area, t->directory);
    const union snap_slot *page = snapshot_at(area, pages[hash / SNAP_PAGE & t->mask]);
    for (u32 n = 0, i = hash % SNAP_PAGE; n < SNAP_PAGE && page[i].word; n++, i = (i + 1) % SNAP_PAGE)
        if (page[i].port == port && page[i].proto == proto && page[i].family == family && same_addr(page[i].addr, addr))
            return &page[i];
    return NULL;
}

const struct snap_service *snapshot_service(const struct snapshot *s, const u8 *area, const struct hash_secret *k, const u8 vip[16],
                                            u16 vport, u8 proto, u8 family)
{
    const union snap_slot *slot = find(&s->services, area, k, vip, vport, proto, family);
    return slot ? snapshot_at(area, slot->service.blob) : NULL;
}

const struct snap_address_slot *snapshot_address(const struct snapshot *s, const u8 *area, const struct hash_secret *k, const u8 addr[16],
                                                 u8 family)
{
    const union snap_slot *slot = find(&s->addresses, area, k, addr, 0, 0, family);
    return slot ? &slot->address : NULL;
}

const union snap_slot *snapshot_next(const struct snap_table *t, const u8 *area, u32 *cursor)
{
    const u32 *pages = snapshot_at(area, t->directory);
    while (*cursor < (t->mask + 1) * SNAP_PAGE) {
        u32 at = (*cursor)++;
        const union snap_slot *page = snapshot_at(area, pages[at / SNAP_PAGE]);
        if (page[at % SNAP_PAGE].word)
            return &page[at % SNAP_PAGE];
    }
    return NULL;
}

/* A table that is being made: pages of the published one until they are written. */
struct making {
    struct fnat_plane *p;
    struct snapshot_builder *b;
    u32 *pages;
    u8 *fresh; /* by page: made for this table */
    u32 n_pages, directory;
};

static union snap_slot *page_of(const struct making *m, u32 hash)
{
    return (union snap_slot *)(m->p->snapshots + (u64)m->pages[hash / SNAP_PAGE % m->n_pages] * UNIT);
}

static u32 hash_of(const struct making *m, const union snap_slot *s)
{
    return (u32)slot_hash(&m->p->header->secret, s->addr, s->port, s->proto, s->family);
}

/* The page as one that may be written. NULL: no room. */
static union snap_slot *page_to_write(struct making *m, u32 hash)
{
    u32 page = hash / SNAP_PAGE % m->n_pages;
    if (!m->fresh[page]) {
        u32 at = take_space(m->p, m->b, PAGE_UNITS * UNIT);
        if (!at)
            return NULL;
        if (m->pages[page])
            memcpy(m->p->snapshots + (u64)at * UNIT, page_of(m, hash), PAGE_UNITS * UNIT);
        m->pages[page] = at;
        m->fresh[page] = 1;
    }
    return page_of(m, hash);
}

static bool same_key(const union snap_slot *a, const union snap_slot *b) { return !memcmp(a, b, offsetof(union snap_slot, word)); }

static int insert(struct making *m, const union snap_slot *slot)
{
    u32 hash = hash_of(m, slot), i = hash % SNAP_PAGE, used = 0;
    union snap_slot *page = page_to_write(m, hash);
    if (!page)
        return -ENOSPC;
    for (; used < SNAP_PAGE && page[i].word; i = (i + 1) % SNAP_PAGE, used++)
        if (same_key(&page[i], slot))
            return -EEXIST;
    if (used == SNAP_PAGE)
        return -EOVERFLOW;
    page[i] = *slot;
    return 0;
}

/* Those behind it in its run are put in anew, so that none is cut off from its place. */
static int erase(struct making *m, const union snap_slot *slot)
{
    u32 hash = hash_of(m, slot), i = hash % SNAP_PAGE;
    union snap_slot *page = page_to_write(m, hash);
    if (!page)
        return -ENOSPC;
    while (page[i].word && !same_key(&page[i], slot))
        i = (i + 1) % SNAP_PAGE;
    page[i].word = 0;
    for (i = (i + 1) % SNAP_PAGE; page[i].word; i = (i + 1) % SNAP_PAGE) {
        union snap_slot behind = page[i];
        page[i].word = 0;
        insert(m, &behind);
    }
    return 0;
}

static union snap_slot service_slot(const struct fnat_plane *p, u32 blob)
{
    const struct snap_service *s = snapshot_at(p->snapshots, blob);
    union snap_slot slot = {.service = {.vport = s->vport, .proto = s->proto, .family = s->family, .blob = blob}};
    memcpy(slot.addr, s->vip, 16);
    return slot;
}

static union snap_slot address_slot(const struct fnat_address_spec *a)
{
    union snap_slot slot = {.address = {.family = a->family, .id = a->id, .kind = a->kind, .port = a->port}};
    memcpy(slot.addr, a->addr, 16);
    return slot;
}

/* The slot of an id, as published or as wanted; its word is 0 where there is none. */
static union snap_slot slot_of(const struct making *m, const struct draft *d, u32 id, bool published)
{
    const struct snapshot_builder *b = m->b;
    if (d == &b->services) {
        u32 blob = published ? b->published[id] : b->blobs[id];
        return blob ? service_slot(m->p, blob) : (union snap_slot){0};
    }
    const struct fnat_address_spec *a = published ? &b->addresses_there[id] : &b->addresses[id];
    return a->kind ? address_slot(a) : (union snap_slot){0};
}

static void abandon(struct making *m)
{
    for (u32 i = 0; m->fresh && i < m->n_pages; i++)
        if (m->fresh[i])
            mark(m->b, m->pages[i], PAGE_UNITS, false);
    if (m->directory)
        mark(m->b, m->directory, units_of(m->n_pages * sizeof(u32)), false);
    free(m->pages);
    free(m->fresh);
}

/* The table as it was with what differs, in n_pages pages. */
static int make_table(struct making *m, const struct draft *d, u32 n_pages)
{
    m->n_pages = n_pages;
    m->pages = calloc(n_pages, sizeof *m->pages);
    m->fresh = calloc(n_pages, 1);
    if (!m->pages || !m->fresh)
        return -ENOMEM;
    int rc = 0;
    if (n_pages == d->n_pages)
        memcpy(m->pages, d->pages, n_pages * sizeof *m->pages);
    else
        for (u32 i = 0; i < n_pages; i++)
            if (!page_to_write(m, i * SNAP_PAGE))
                return -ENOSPC;
    if (n_pages != d->n_pages && d->n_pages) {
        const union snap_slot *slot;
        struct snap_table old = {d->directory, d->n_pages - 1};
        for (u32 cursor = 0; !rc && (slot = snapshot_next(&old, m->p->snapshots, &cursor));)
            rc = insert(m, slot);
    }
    for (u32 wanted = 0; wanted < 2; wanted++)
        for (u32 i = 0; i < d->n_dirty && !rc; i++) {
            union snap_slot slot = slot_of(m, d, d->dirty[i], !wanted);
            if (slot.word)
                rc = wanted ? insert(m, &slot) : erase(m, &slot);
        }
    if (rc)
        return rc;
    if (!(m->directory = take_space(m->p, m->b, n_pages * sizeof(u32))))
        return -ENOSPC;
    memcpy(m->p->snapshots + (u64)m->directory * UNIT, m->pages, n_pages * sizeof(u32));
    return 0;
}

/* -EEXIST two ids with one key. A page that is full makes all the pages anew, twice as many. */
static int make(struct making *m, struct draft *d)
{
    s64 count = d->count;
    for (u32 i = 0; i < d->n_dirty; i++)
        count += !!slot_of(m, d, d->dirty[i], false).word - !!slot_of(m, d, d->dirty[i], true).word;
    u32 n_pages = d->n_pages ? d->n_pages : 1;
    while (n_pages * (SNAP_PAGE / 2ll) < count)
        n_pages *= 2;
    for (;; n_pages *= 2) {
        int rc = make_table(m, d, n_pages);
        if (!rc)
            return 0;
        abandon(m);
        *m = (struct making){m->p, m->b, NULL, NULL, 0, 0};
        if (rc != -EOVERFLOW)
            return rc;
    }
}

/* The table is part of the snapshot that is being published. */
static void settle_table(struct making *m, struct draft *d)
{
    struct snapshot_builder *b = m->b;
    for (u32 i = 0; i < d->n_pages; i++)
        if (d->n_pages != m->n_pages || m->fresh[i])
            retire(b, d->pages[i], PAGE_UNITS);
    retire(b, d->directory, units_of(d->n_pages * sizeof(u32)));
    for (u32 i = 0; i < d->n_dirty; i++) {
        u32 id = d->dirty[i];
        d->count += !!slot_of(m, d, id, false).word - !!slot_of(m, d, id, true).word;
        if (d != &b->services) {
            b->addresses_there[id] = b->addresses[id];
        } else if (b->published[id] != b->blobs[id]) {
            retire(b, b->published[id], b->published[id] ? blob_units(m->p, b->published[id]) : 0);
            b->published[id] = b->blobs[id];
        }
        d->is_dirty[id] = 0;
    }
    d->n_dirty = 0;
    free(d->pages);
    free(m->fresh);
    d->pages = m->pages, d->n_pages = m->n_pages, d->directory = m->directory;
}

/* The routes as they were put. -ENOSPC */
static int make_routes(struct fnat_plane *p, struct snapshot_builder *b, u32 *at)
{
    u64 bytes = fib_bytes(b->routes_sizes);
    if (!(*at = take_space_for_routes(p, b, bytes, b->fib_at)))
        return -ENOSPC;
    if (b->routes)
        memcpy(p->snapshots + (u64)*at * UNIT, b->routes, bytes);
    else
        memset(p->snapshots + (u64)*at * UNIT, 0, bytes);
    return 0;
}

static u32 fib_units(struct fib_sizes n) { return units_of(fib_bytes(n)); }

s64 snapshot_publish(struct fnat_plane *p)
{
    struct snapshot_builder *b = builder_of(p);
    if (!b)
        return -ENOMEM;
    struct making services = {.p = p, .b = b}, owned = {.p = p, .b = b};
    bool new_routes = !b->fib_at || b->routes;
    u32 at = 0, fib = b->fib_at;
    int rc = -ENOMEM;
    if (!room_to_die(b, b->services.n_pages + b->owned.n_pages + b->services.n_dirty + 6))
        goto nothing_made;
    if ((rc = make(&services, &b->services)))
        goto nothing_made;
    if ((rc = make(&owned, &b->owned)))
        goto services_made;
    if (new_routes && (rc = make_routes(p, b, &fib)))
        goto owned_made;
    rc = -ENOSPC;
    if (!(at = take_space(p, b, sizeof(struct snapshot))))
        goto routes_made;

    struct snapshot *s = (struct snapshot *)(p->snapshots + (u64)at * UNIT);
    s->seq = b->seq + 1;
    s->settings = b->settings;
    s->routes_version = b->routes_version;
    memcpy(s->ports, b->ports, sizeof s->ports);
    s->services = (struct snap_table){services.directory, services.n_pages - 1};
    s->addresses = (struct snap_table){owned.directory, owned.n_pages - 1};
    s->fib_at = fib;
    s->fib = new_routes ? b->routes_sizes : b->fib;
    s->has_host_routes = b->host_routes;
    s->n_deny = b->n_deny, s->n_allow = b->n_allow;
    memcpy(s->acl, b->acl, sizeof s->acl);
    s->acl_recheck = p->header->acl_recheck;
    s->has_acl = b->n_deny || b->n_allow || b->services_with_acl;

    settle_table(&services, &b->services);
    settle_table(&owned, &b->owned);
    if (new_routes) {
        retire(b, b->fib_at, fib_units(b->fib));
        b->fib_at = fib, b->fib = s->fib;
        free(b->routes);
        b->routes = NULL;
    }
    retire(b, b->header_at, units_of(sizeof *s));
    b->header_at = at;
    b->seq = s->seq;
    acl_commit(p->acl_builder, s->seq);
    store_release(&p->header->snapshot, (u64)s->seq << 32 | at);
    return s->seq;

routes_made:
    if (new_routes)
        mark(b, fib, fib_units(b->routes_sizes), false);
owned_made:
    abandon(&owned);
services_made:
    abandon(&services);
nothing_made:
    return rc;
}
