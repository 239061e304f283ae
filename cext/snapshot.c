/* snapshot.c: see snapshot.h. The builder lives in control's own memory; only sealed results lie in the shared area.
 *
 * Space is given out first fit. What a new snapshot no longer uses is free again when every running worker has adopted a
 * snapshot made after that. A control process that starts anew begins with an empty builder: its first publish replaces the
 * picture as a whole. What is unsatisfying: publishing rewrites both hash tables, so it costs time in proportion to the number
 * of services and addresses (about a millisecond for 20 000).
 */
#include "snapshot.h"

#include <errno.h>
#include <stdlib.h>

struct extent {
    u32 at, units;
    u32 dead_since; /* snapshot that no longer uses it; 0: in use */
};

struct snapshot_builder {
    struct fnat_settings settings;
    struct fnat_port_spec ports[FNAT_PORTS];
    u32 *blobs; /* by service id; 0: none */
    struct fnat_address_spec *addresses;
    struct fnat_route_spec *routes;
    u32 n_addresses, n_routes, n_services;
    u32 seq, index_at; /* the last snapshot published */
    u32 routes_version;
    struct extent *extents; /* sorted by at */
    u32 n_extents, room;
};

/* Seconds. ESTABLISHED: RFC 5382 REQ-5; half-closed connections may last minutes while one side still sends. */
void snapshot_default_settings(struct fnat_settings *s)
{
    static const u32 seconds[FNAT_STATES] = {
        [TCP_NONE] = 2,      [TCP_EST] = 7440, [TCP_SYN_SENT] = 10,    [TCP_SYN_RECV] = 10, [TCP_FIN_WAIT] = 600,
        [TCP_TIME_WAIT] = 7, [TCP_CLOSED] = 3, [TCP_CLOSE_WAIT] = 600, [TCP_LAST_ACK] = 30, [TCP_LISTEN] = 120,
        [TCP_SYNACK] = 30,   [UDP_NONE] = 2,   [UDP_ONEWAY] = 300,     [UDP_NORM] = 300,    [UDP_LAST] = 2,
    };
    memset(s, 0, sizeof *s);
    memcpy(s->timeouts, seconds, sizeof seconds);
    s->unserved = FNAT_UNSERVED_RESET;
    s->lport_first = LIP_PORT_FIRST;
    s->lport_last = 65535;
}

static struct snapshot_builder *builder_of(struct fnat_plane *p)
{
    if (p->builder)
        return p->builder;
    struct snapshot_builder *b = calloc(1, sizeof *b);
    if (!b)
        return NULL;
    b->blobs = calloc(p->config.services, sizeof *b->blobs);
    b->extents = calloc(64, sizeof *b->extents);
    b->room = 64;
    if (!b->blobs || !b->extents) {
        snapshot_builder_free(b);
        return NULL;
    }
    snapshot_default_settings(&b->settings);
    /* What an earlier control process published stays in use until the first publish of this one. */
    u64 word = load_acquire(&p->header->snapshot);
    b->seq = b->routes_version = (u32)(word >> 32); /* a new control process means new routes */
    if (b->seq) {
        const struct snapshot *old = snapshot_at(p->snapshots, (u32)word);
        u32 end = (u32)word + old->units;
        const u32 *blobs = snapshot_at(p->snapshots, old->blobs);
        for (u32 i = 0; i < old->n_blobs; i++) {
            const struct snap_service *s = snapshot_at(p->snapshots, blobs[i]);
            u64 bytes = sizeof *s + s->n_members * sizeof s->members[0] + s->n_lips * sizeof(u16);
            end = max_u32(end, blobs[i] + (u32)(align_up(bytes, 64) / 64));
        }
        b->extents[b->n_extents++] = (struct extent){1, end - 1, b->seq + 1};
    }
    return p->builder = b;
}

void snapshot_builder_free(struct snapshot_builder *b)
{
    if (!b)
        return;
    free(b->blobs);
    free(b->addresses);
    free(b->routes);
    free(b->extents);
    free(b);
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
    s64 adopted = snapshot_adopted(p);
    u32 kept = 0;
    for (u32 i = 0; i < b->n_extents; i++)
        if (!b->extents[i].dead_since || b->extents[i].dead_since > adopted || b->extents[i].dead_since > b->seq)
            b->extents[kept++] = b->extents[i];
    b->n_extents = kept;
}

/* Unit 0 is never given out: 0 means none. */
static u32 take_space(struct fnat_plane *p, struct snapshot_builder *b, u64 bytes)
{
    u32 units = (u32)(align_up(bytes, 64) / 64), limit = (u32)(p->snapshots_len / 64), at = 1, i;
    reclaim(p, b);
    for (i = 0; i < b->n_extents; i++) {
        if (b->extents[i].at - at >= units)
            break;
        at = b->extents[i].at + b->extents[i].units;
    }
    if ((u64)at + units > limit)
        return 0;
    if (b->n_extents == b->room) {
        struct extent *more = realloc(b->extents, 2ull * b->room * sizeof *more);
        if (!more)
            return 0;
        b->extents = more;
        b->room *= 2;
    }
    memmove(&b->extents[i + 1], &b->extents[i], (b->n_extents - i) * sizeof *b->extents);
    b->extents[i] = (struct extent){at, units, 0};
    b->n_extents++;
    memset(p->snapshots + (u64)at * 64, 0, (u64)units * 64);
    return at;
}

/* The next snapshot no longer uses what lies at this unit. */
static void retire(struct snapshot_builder *b, u32 at)
{
    for (u32 i = 0; i < b->n_extents && at; i++)
        if (b->extents[i].at == at && !b->extents[i].dead_since)
            b->extents[i].dead_since = b->seq + 1;
}

int snapshot_put_settings(struct fnat_plane *p, const struct fnat_settings *settings)
{
    struct snapshot_builder *b = builder_of(p);
    if (!b)
        return -ENOMEM;
    for (u32 i = 0; i < FNAT_STATES; i++)
        if (!settings->timeouts[i] || settings->timeouts[i] > 31535999)
            return -ERANGE;
    if (settings->lport_first < LIP_PORT_FIRST || settings->lport_last < settings->lport_first)
        return -ERANGE;
    b->settings = *settings;
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

int snapshot_put_service(struct fnat_plane *p, const struct fnat_service_spec *svc, const struct fnat_member_spec *members, const u16 *lips)
{
    struct snapshot_builder *b = builder_of(p);
    if (!b)
        return -ENOMEM;
    if (svc->id >= p->config.services || svc->family != 4 || (svc->proto != PROTO_TCP && svc->proto != PROTO_UDP) || !svc->vport ||
        svc->sched > FNAT_SCHED_WRR || svc->n_members > 65535 || svc->n_lips > 65535)
        return -EINVAL;
    for (u32 i = 0; i < svc->n_members; i++)
        if (members[i].id >= p->config.members || members[i].family != 4 || !members[i].rport)
            return -EINVAL;
    u32 at = take_space(p, b, sizeof(struct snap_service) + svc->n_members * sizeof(struct snap_member) + svc->n_lips * sizeof(u16));
    if (!at)
        return -ENOSPC;
    struct snap_service *s = (struct snap_service *)(p->snapshots + (u64)at * 64);
    memcpy(s->vip, svc->vip, 16);
    s->id = svc->id, s->vport = be16(svc->vport), s->family = svc->family, s->proto = svc->proto;
    s->sched = svc->sched, s->no_rs = svc->no_rs, s->flags = svc->flags;
    s->conn_timeout = svc->conn_timeout, s->half_open = svc->half_open;
    s->n_members = svc->n_members, s->n_lips = svc->n_lips;
    /* Members that left the list stop being usable; they keep counting for this service. */
    for (u32 id = p->services[svc->id].members; id; id = p->members[id - 1].next)
        store_relaxed(&p->members[id - 1].usable, 0);
    for (u32 i = 0; i < svc->n_members; i++) {
        const struct fnat_member_spec *from = &members[i];
        struct snap_member *to = &s->members[i];
        memcpy(to->rip, from->rip, 16);
        to->id = from->id, to->rport = be16(from->rport), to->weight = from->weight, to->family = from->family;
        if (from->weight) {
            s->usable++;
            s->weight_gcd = gcd(from->weight, s->weight_gcd);
            s->weight_max = max_u32(s->weight_max, from->weight);
        }
        move_member(p, from->id, svc->id);
        store_relaxed(&p->members[from->id].usable, from->weight ? 1 : 0);
    }
    store_relaxed(&p->services[svc->id].conn_timeout, svc->conn_timeout);
    memcpy((u16 *)(s->members + s->n_members), lips, svc->n_lips * sizeof(u16));
    if (b->blobs[svc->id])
        retire(b, b->blobs[svc->id]);
    else
        b->n_services++;
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

int snapshot_del_service(struct fnat_plane *p, u32 id)
{
    struct snapshot_builder *b = builder_of(p);
    if (!b)
        return -ENOMEM;
    if (id >= p->config.services || !b->blobs[id])
        return -ENOENT;
    for (u32 m = p->services[id].members; m; m = p->members[m - 1].next)
        store_relaxed(&p->members[m - 1].usable, 0);
    retire(b, b->blobs[id]);
    b->blobs[id] = 0;
    b->n_services--;
    return 0;
}

static int copy_list(void **list, u32 *n, const void *from, u32 count, size_t size)
{
    void *copy = malloc(count * size + 1);
    if (!copy)
        return -ENOMEM;
    memcpy(copy, from, count * size);
    free(*list);
    *list = copy;
    *n = count;
    return 0;
}

int snapshot_put_addresses(struct fnat_plane *p, const struct fnat_address_spec *addrs, u32 n)
{
    struct snapshot_builder *b = builder_of(p);
    if (!b)
        return -ENOMEM;
    for (u32 i = 0; i < n; i++)
        if (!addrs[i].id || addrs[i].family != 4 || !addrs[i].kind || addrs[i].port >= FNAT_PORTS)
            return -EINVAL;
    for (u32 i = 0; i < n; i++) {
        struct plane_address *a = &p->addresses[addrs[i].id];
        memcpy(a->addr, addrs[i].addr, 16);
        a->family = addrs[i].family, a->kind = addrs[i].kind, a->port = addrs[i].port;
    }
    return copy_list((void **)&b->addresses, &b->n_addresses, addrs, n, sizeof *addrs);
}

int snapshot_put_routes(struct fnat_plane *p, const struct fnat_route_spec *routes, u32 n)
{
    struct snapshot_builder *b = builder_of(p);
    if (!b)
        return -ENOMEM;
    for (u32 i = 0; i < n; i++) {
        if (routes[i].family != 4 || routes[i].plen > 32 || routes[i].port >= FNAT_PORTS || routes[i].kind > FNAT_ROUTE_UNREACHABLE)
            return -EINVAL;
        if (routes[i].mtu)
            return -EOPNOTSUPP;
    }
    b->routes_version++;
    return copy_list((void **)&b->routes, &b->n_routes, routes, n, sizeof *routes);
}

static u32 slots_for(u32 n)
{
    u32 slots = 16;
    while (slots < n * 2)
        slots *= 2;
    return slots;
}

static u64 service_hash(const struct hash_secret *k, const u8 vip[16], u16 vport, u8 proto, u8 family)
{
    return hash_addr(k, vip, (u64)vport << 16 | (u64)proto << 8 | family);
}

const struct snap_service *snapshot_service(const struct snapshot *s, const u8 *area, const struct hash_secret *k, const u8 vip[16],
                                            u16 vport, u8 proto, u8 family)
{
    const struct snap_service_slot *slots = snapshot_at(area, s->service_slots);
    for (u32 i = (u32)service_hash(k, vip, vport, proto, family) & s->service_mask; slots[i].blob; i = (i + 1) & s->service_mask)
        if (slots[i].vport == vport && slots[i].proto == proto && slots[i].family == family && same_addr(slots[i].vip, vip))
            return snapshot_at(area, slots[i].blob);
    return NULL;
}

const struct snap_address_slot *snapshot_address(const struct snapshot *s, const u8 *area, const struct hash_secret *k, const u8 addr[16],
                                                 u8 family)
{
    const struct snap_address_slot *slots = snapshot_at(area, s->address_slots);
    for (u32 i = (u32)hash_addr(k, addr, family) & s->address_mask; slots[i].kind; i = (i + 1) & s->address_mask)
        if (slots[i].family == family && same_addr(slots[i].addr, addr))
            return &slots[i];
    return NULL;
}

static int fill_services(struct fnat_plane *p, struct snapshot_builder *b, struct snapshot *s)
{
    struct snap_service_slot *slots = (struct snap_service_slot *)(p->snapshots + (u64)s->service_slots * 64);
    u32 *blobs = (u32 *)(p->snapshots + (u64)s->blobs * 64);
    for (u32 id = 0; id < p->config.services; id++) {
        if (!b->blobs[id])
            continue;
        const struct snap_service *svc = snapshot_at(p->snapshots, b->blobs[id]);
        if (snapshot_service(s, p->snapshots, &p->header->secret, svc->vip, svc->vport, svc->proto, svc->family))
            return -EEXIST;
        u32 i = (u32)service_hash(&p->header->secret, svc->vip, svc->vport, svc->proto, svc->family) & s->service_mask;
        while (slots[i].blob)
            i = (i + 1) & s->service_mask;
        memcpy(slots[i].vip, svc->vip, 16);
        slots[i].vport = svc->vport, slots[i].proto = svc->proto, slots[i].family = svc->family, slots[i].blob = b->blobs[id];
        blobs[s->n_blobs++] = b->blobs[id];
    }
    return 0;
}

static void fill_addresses(struct fnat_plane *p, struct snapshot_builder *b, struct snapshot *s)
{
    struct snap_address_slot *slots = (struct snap_address_slot *)(p->snapshots + (u64)s->address_slots * 64);
    for (u32 n = 0; n < b->n_addresses; n++) {
        const struct fnat_address_spec *a = &b->addresses[n];
        u32 i = (u32)hash_addr(&p->header->secret, a->addr, a->family) & s->address_mask;
        while (slots[i].kind)
            i = (i + 1) & s->address_mask;
        memcpy(slots[i].addr, a->addr, 16);
        slots[i].id = a->id, slots[i].family = a->family, slots[i].kind = a->kind, slots[i].port = a->port;
    }
}

s64 snapshot_publish(struct fnat_plane *p)
{
    struct snapshot_builder *b = builder_of(p);
    if (!b)
        return -ENOMEM;
    u32 service_slots = slots_for(b->n_services), address_slots = slots_for(b->n_addresses), ranges = 2 * b->n_routes + 2;
    u64 bytes = align_up(sizeof(struct snapshot), 64);
    u64 at_services = bytes, at_addresses, at_first, at_leaf, at_routes, at_blobs;
    at_addresses = align_up(at_services + service_slots * sizeof(struct snap_service_slot), 64);
    at_first = align_up(at_addresses + address_slots * sizeof(struct snap_address_slot), 64);
    at_leaf = align_up(at_first + ranges * sizeof(u32), 64);
    at_routes = align_up(at_leaf + ranges * sizeof(u32), 64);
    at_blobs = align_up(at_routes + b->n_routes * sizeof(struct fnat_route_spec), 64);
    bytes = align_up(at_blobs + b->n_services * sizeof(u32) + 4, 64);
    u32 at = take_space(p, b, bytes);
    if (!at)
        return -ENOSPC;
    struct snapshot *s = (struct snapshot *)(p->snapshots + (u64)at * 64);
    s->seq = b->seq + 1;
    s->units = (u32)(bytes / 64);
    s->settings = b->settings;
    s->routes_version = b->routes_version;
    memcpy(s->ports, b->ports, sizeof s->ports);
    s->service_slots = at + (u32)(at_services / 64), s->service_mask = service_slots - 1;
    s->address_slots = at + (u32)(at_addresses / 64), s->address_mask = address_slots - 1;
    s->fib_first = at + (u32)(at_first / 64), s->fib_leaf = at + (u32)(at_leaf / 64), s->fib_routes = at + (u32)(at_routes / 64);
    s->blobs = at + (u32)(at_blobs / 64);
    int rc = fill_services(p, b, s);
    if (rc) {
        for (u32 i = 0; i < b->n_extents; i++)
            if (b->extents[i].at == at) {
                memmove(&b->extents[i], &b->extents[i + 1], (b->n_extents - i - 1) * sizeof *b->extents);
                b->n_extents--;
                break;
            }
        return rc;
    }
    fill_addresses(p, b, s);
    memcpy(p->snapshots + (u64)s->fib_routes * 64, b->routes ? b->routes : (void *)"", b->n_routes * sizeof(struct fnat_route_spec));
    s->fib_ranges =
        fib4_build(b->routes, b->n_routes, (u32 *)(p->snapshots + (u64)s->fib_first * 64), (u32 *)(p->snapshots + (u64)s->fib_leaf * 64));
    for (u32 i = 0; i < b->n_routes; i++)
        s->has_host_routes |= b->routes[i].kind == FNAT_ROUTE_HOST;
    retire(b, b->index_at);
    b->index_at = at;
    b->seq = s->seq;
    store_release(&p->header->snapshot, (u64)s->seq << 32 | at);
    return s->seq;
}
