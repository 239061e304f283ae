/* conn.c: a connection from the first packet to the last. conn_open takes, in this order: places in service and RS, record, LIP port, next hops, the table
 * entry of the client, timer, half-open place, gauges, and a little later the table entry of the answers; conn_close gives them back in the
 * reverse order.
 */
#include "conn.h"

#include "answer.h"
#include "clientaddr.h"
#include "csum.h"
#include "quic.h"
#include "sched.h"
#include "sctp.h"
#include "track.h"

static u32 service_of(const struct core *k, const struct conn *c) { return k->plane_members[c->member].service - 1; }

static u32 timeout_of(const struct core *k, const struct conn *c, u8 state)
{
    if (conn_state_is_services(state)) {
        u32 own = k->plane_services[service_of(k, c)].conn_timeout;
        if (own)
            return own * TICKS_PER_SECOND;
    }
    return k->timeouts[state];
}

/* After how long it is looked at: a doubtful one in time for its RS to be asked. */
static u32 look_of(const struct core *k, const struct conn *c, u32 timeout)
{
    return unlikely(c->marks & MARK_DOUBT) ? min_u32(timeout, k->timeouts[TCP_CLOSED]) : timeout;
}

/* ---- records ---- */

/* Free records lie in several lists that are used in turn: the next one of each list is fetched long before its turn comes. */
static u32 free_take(struct core *k)
{
    struct worker_header *h = k->header;
    for (u32 tries = 0; tries < CONN_LANES; tries++) {
        u32 *list = &h->conn_free[h->conn_take++ % CONN_LANES], index = *list;
        if (!index)
            continue;
        *list = k->conns[index].wheel_next;
        prefetch_write(&k->conns[*list]);
        prefetch_write((u8 *)&k->conns[*list] + CACHE_LINE);
        return index;
    }
    return 0;
}

static void free_give(struct core *k, u32 index)
{
    u32 *list = &k->header->conn_free[k->header->conn_give++ % CONN_LANES];
    k->conns[index].wheel_next = *list;
    *list = index;
}

static u32 record_take(struct core *k)
{
    struct worker_header *h = k->header;
    u32 index = free_take(k);
    if (!index && h->conn_fresh < k->conn_capacity)
        index = ++h->conn_fresh;
    if (!index)
        return 0;
    h->conn_count++;
    k->counters[TAKEN_conns]++;
    return index;
}

static void record_give(struct core *k, u32 index)
{
    free_give(k, index);
    k->header->conn_count--;
    k->counters[TAKEN_conns]--;
}

/* ---- half-open connections: one list a service, oldest first ---- */

static void half_open_begins(struct core *k, u32 index)
{
    struct conn *c = &k->conns[index];
    struct service_state *s = &k->services[service_of(k, c)];
    c->flags |= CONN_HALF_OPEN;
    c->half_next = 0;
    c->half_prev = s->half_tail;
    if (s->half_tail)
        k->conns[s->half_tail].half_next = index;
    else
        s->half_head = index;
    s->half_tail = index;
    s->half_count++;
    k->members[c->member].half_open++;
    k->counters[TAKEN_half_open]++;
}

void conn_half_open_ends(struct core *k, u32 index)
{
    struct conn *c = &k->conns[index];
    struct service_state *s = &k->services[service_of(k, c)];
    if (c->half_prev)
        k->conns[c->half_prev].half_next = c->half_next;
    else
        s->half_head = c->half_next;
    if (c->half_next)
        k->conns[c->half_next].half_prev = c->half_prev;
    else
        s->half_tail = c->half_prev;
    s->half_count--;
    k->members[c->member].half_open--;
    c->half_prev = c->half_next = 0;
    c->flags &= (u8)~CONN_HALF_OPEN;
    k->counters[TAKEN_half_open]--;
}

bool conn_evict_half_open(struct core *k, u32 service)
{
    u32 oldest = k->services[service].half_head;
    if (!oldest)
        return false;
    conn_close(k, oldest);
    count(k, CNT_half_open_evicted);
    return true;
}

/* ---- under pressure ---- */

/* How little is lost with this connection; 0: it stays. An established connection never goes, nor one that said something in the last second. */
static u32 expendable(const struct conn *c, u32 tick)
{
    if (!conn_live(c) || (s32)(tick - c->last_seen) < TICKS_PER_SECOND)
        return 0;
    if (c->flags & CONN_FINISHED)
        return 3;
    switch (c->state) {
    case TCP_SYN_RECV:
    case UDP_ONEWAY:
    case UDP_NONE:
    case SCTP_INIT:
        return 2; /* never answered */
    case TCP_FIN_WAIT:
    case TCP_CLOSE_WAIT:
    case TCP_LAST_ACK:
    case TCP_TIME_WAIT:
    case TCP_CLOSED:
    case SCTP_SHUTDOWN:
        return 1; /* one side at least has finished */
    default:
        return 0;
    }
}

/* The table is full: close the most expendable of the next records, of equal ones the longest idle. Looking goes on where it ended, so
 * every record is looked at in turn and one opening never pays for more than these. */
static bool evict_expendable(struct core *k)
{
    enum { LOOKS = 256 };
    u32 best = 0, best_rank = 0, fresh = k->header->conn_fresh;
    for (u32 looks = 0; looks < LOOKS && looks < fresh; looks++) {
        u32 i = k->evict_at = k->evict_at >= fresh ? 1 : k->evict_at + 1;
        const struct conn *c = &k->conns[i];
        u32 rank = expendable(c, k->tick);
        if (rank > best_rank || (rank && rank == best_rank && after_u32(k->conns[best].last_seen, c->last_seen)))
            best = i, best_rank = rank;
    }
    if (!best)
        return false;
    conn_close(k, best);
    count(k, CNT_expendable_evicted);
    return true;
}

/* ---- gauges that listings show ---- */

static void gauges_take(struct core *k, const struct conn *c)
{
    k->addresses[c->vip_id].conns++;
    k->addresses[c->lip_id].conns++;
    k->addresses[c->lip_id].used++;
}

static void gauges_give(struct core *k, const struct conn *c)
{
    k->addresses[c->vip_id].conns--;
    k->addresses[c->lip_id].conns--;
    k->addresses[c->lip_id].used--;
}

static void set_active(struct core *k, struct conn *c, bool active)
{
    if (!!(c->flags & CONN_ACTIVE) == active)
        return;
    c->flags ^= CONN_ACTIVE;
    held_add(&k->members[c->member], active ? HELD_ACTIVE - HELD_INACTIVE : HELD_INACTIVE - HELD_ACTIVE);
}

/* ---- places: what limits count ---- */

static void service_give(struct core *k, u32 service, u8 marks, u8 family, struct addr16 client)
{
    conns_add(&k->services[service], -1u);
    if (unlikely(marks & MARK_COUNTED))
        limits_client_give(&k->limits, service, family, client.b);
}

/* A place in the service, and one of the client. 0, or why there is none. */
static enum counter service_take(struct core *k, const struct packet *p, const struct snap_service *svc, u8 *marks)
{
    *marks = 0;
    if (!limits_service_take(&k->limits, svc))
        return DROP_limit_conns;
    enum counter reason = 0;
    if (unlikely(svc->per_client)) {
        switch (limits_client_take(&k->limits, svc->id, svc->per_client, p->family, packet_src(p).b)) {
        case CLIENT_COUNTED:
            *marks = MARK_COUNTED;
            break;
        case CLIENT_REFUSED:
            reason = DROP_limit_client;
            break;
        case CLIENT_NO_ROOM:
            count(k, CNT_clients_uncounted);
        }
    }
    if (!reason && !limits_rate_take(&k->limits, svc, k->now_ns))
        reason = DROP_limit_new;
    if (unlikely(reason))
        service_give(k, svc->id, *marks, p->family, packet_src(p));
    return reason;
}

static void places_give(struct core *k, const struct conn *c)
{
    held_add(&k->members[c->member], c->flags & CONN_ACTIVE ? -HELD_ACTIVE : -HELD_INACTIVE);
    service_give(k, service_of(k, c), c->marks, conn_family(c, TO_RS), conn_cip(c));
}

/* After a restart: they were had before. */
static void places_retake(struct core *k, struct conn *c)
{
    held_add(&k->members[c->member], c->flags & CONN_ACTIVE ? HELD_ACTIVE : HELD_INACTIVE);
    conns_add(&k->services[service_of(k, c)], 1);
    if (c->marks & MARK_COUNTED &&
        limits_client_take(&k->limits, service_of(k, c), ~0u, conn_family(c, TO_RS), conn_cip(c).b) != CLIENT_COUNTED)
        c->marks &= (u8)~MARK_COUNTED;
}

/* ---- local ports ---- */

/* Take a port on one of the service's LIPs of the RS's family, in turn. Sets lip_id, lip and lport. Returns the endpoint; 0: none free. */
static u32 local_port_take(struct core *k, const struct snap_service *svc, const struct snap_member *m, struct conn *c)
{
    const u16 *lips = snap_service_lips(svc);
    struct service_state *s = &k->services[svc->id];
    u32 at = s->lip_rr < svc->n_lips ? s->lip_rr : 0;
    for (u32 n = 0; n < svc->n_lips; n++) {
        u16 id = lips[at];
        at = at + 1 == svc->n_lips ? 0 : at + 1;
        const struct plane_address *lip = &k->plane_addresses[id];
        if (lip->family != m->family)
            continue;
        s->lip_rr = at;
        u32 endpoint = lip_endpoint(&k->lip, svc->proto, m->family, id, m->rip, m->rport);
        u16 port = endpoint ? lip_port_take(&k->lip, endpoint, lip->port, lip->addr) : 0;
        if (!port) {
            k->addresses[id].misses++;
            continue;
        }
        c->lip_id = id;
        if (c->families == FAMILIES_44)
            c->a.v4.lip = get32(lip->addr);
        c->lport = be16(port);
        return endpoint;
    }
    return 0;
}

static bool has_lip(const struct core *k, const struct snap_service *svc, u8 family)
{
    for (u32 i = 0; i < svc->n_lips; i++)
        if (k->plane_addresses[snap_service_lips(svc)[i]].family == family)
            return true;
    return false;
}

/* Ports are scarce: end a connection of this service and RS that has nothing left to say, oldest first, and take its port. The
 * RS may still be in TIME_WAIT: sequence numbers and timestamps of the next connection are later than all it has seen. */
static u32 local_port_reclaim(struct core *k, const struct snap_service *svc, const struct snap_member *m, struct conn *c)
{
    enum { LOOKS = 64 };
    const u16 *lips = snap_service_lips(svc);
    for (u32 i = 0; i < svc->n_lips; i++) {
        const struct plane_address *lip = &k->plane_addresses[lips[i]];
        u32 endpoint = lip->family == m->family ? lip_endpoint(&k->lip, svc->proto, m->family, lips[i], m->rip, m->rport) : 0;
        for (u32 n = 0; endpoint && n < LOOKS; n++) {
            struct flow_key answer = {addr16_of(6, m->rip), addr16_of(6, lip->addr), m->rport, 0, svc->proto, m->family};
            answer.dport = be16(lip_port_oldest(&k->lip, endpoint, lip->port, lip->addr, n));
            if (!answer.dport)
                break; /* no port of the endpoint is this worker's */
            u32 index = conn_find_key(k, &answer) >> 1;
            if (!index || !(k->conns[index].flags & CONN_FINISHED))
                continue;
            conn_close(k, index);
            return local_port_take(k, svc, m, c);
        }
    }
    return 0;
}

static u32 endpoint_of(const struct core *k, const struct conn *c)
{
    struct addr16 rip = conn_rip(c);
    return lip_find(&k->lip, c->proto, conn_family(c, TO_CLIENT), c->lip_id, rip.b, c->rport);
}

/* ---- next hops ---- */

/* The neighbour this flow goes by to the address; equal-cost routes share the flows. */
static u32 next_hop(struct core *k, u8 family, struct addr16 addr, u32 flow)
{
    const struct fib_hop *hop = fib_lookup(&k->fib, family, addr.b, flow);
    if (!hop || hop->kind != FNAT_ROUTE_UNICAST)
        return 0;
    return neigh_get_link(&k->neigh, neigh_link(hop->port, hop->mtu_class), family, hop->on_link ? addr.b : hop->gateway);
}

/* ---- TCP identity ---- */

static void identity_take(struct core *k, const struct packet *p, struct conn *c, u32 endpoint)
{
    const struct tcp_header *tcp = (const struct tcp_header *)(p->data + p->l4);
    const u8 *stamp = track_option(tcp, TCP_OPT_TS, 10);
    u32 isn = be32(get32(&tcp->seq));
    c->dseq = lip_isn(&k->lip, endpoint, be16(c->lport), k->clock_us4) - isn;
    c->next_seq[TO_RS] = isn;
    track_opens(c, p);
    if (stamp) {
        c->dts = lip_timestamp(&k->lip, endpoint, k->clock_ms) - be32(get32(stamp));
        c->flags |= CONN_SHIFT_TS;
    }
}

/* The pseudo-headers of both families differ only in their addresses, as far as a one's complement sum can tell. */
static void deltas_fill(const struct core *k, struct conn *c)
{
    if (unlikely(c->families != FAMILIES_44)) {
        struct addr16 from[2] = {conn_cip(c), conn_vip(k, c)}, to[2] = {conn_lip(k, c), conn_rip(c)};
        u16 sum = csum_fold(csum_partial(from, sizeof from));
        u64 addrs = (u64)(u16)~sum + csum_partial(to, sizeof to);
        c->key_sum = csum_fold((u64)sum + c->cport + c->vport);
        c->delta_l4 = csum_fold(addrs + csum_delta16(c->cport, c->lport) + csum_delta16(c->vport, c->rport));
        return;
    }
    u64 ip = csum_fold(csum_delta32(c->a.v4.cip, c->a.v4.lip) + csum_delta32(c->a.v4.vip, c->a.v4.rip));
    c->delta_ip = (u16)ip;
    c->delta_l4 = csum_fold(ip + csum_delta16(c->cport, c->lport) + csum_delta16(c->vport, c->rport));
}

/* ---- the whole ---- */

/* While a connection lives its client keeps its RS: it is looked at twice in the time that the client's template lasts. Returns the next look. */
static u32 keep_template(struct core *k, const struct conn *c, u32 deadline, u32 tick)
{
    const struct plane_service *s = &k->plane_services[service_of(k, c)];
    u32 persistent = load_relaxed(&s->persistent), next = tick + persistent * (TICKS_PER_SECOND / 2);
    if (likely(!persistent))
        return deadline;
    limits_template_renew(&k->limits, service_of(k, c), conn_family(c, TO_RS), conn_cip(c).b, c->member, k->now_ns);
    return after_u32(deadline, next) ? next : deadline;
}

static u8 first_state(u8 proto, const struct snap_service *svc)
{
    if (proto == PROTO_TCP)
        return TCP_SYN_RECV;
    if (unlikely(proto == PROTO_SCTP))
        return SCTP_INIT;
    return svc->flags & FNAT_SVC_ONE_PACKET ? UDP_NONE : UDP_ONEWAY;
}

void conn_settle(struct core *k, u32 keep)
{
    while (k->unsettled_to - k->unsettled_from > keep) {
        const struct unsettled *u = &k->unsettled[k->unsettled_from++ % BATCH];
        if (k->conns[u->index].gen != u->gen || conntab_insert(&k->table, u->answer_hash, u->index << 1 | TO_CLIENT))
            continue; /* done, or closed meanwhile */
        conn_close(k, u->index);
        if (u->packet && u->packet->verdict == VERDICT_TX) {
            k->counters[CNT_to_rs]--;
            u->packet->verdict = (u8)drop(k, u->packet, DROP_table_full);
        }
    }
}

/* Whom the scheduler picks, and a place in it; -1: nobody has one. */
static int any_member(struct core *k, const struct snap_service *svc, const struct packet *p)
{
    for (k->role = FNAT_ROLE_ACTIVE; k->role < FNAT_ROLES; k->role++)
        for (u32 tries = 0; svc->roles >> k->role & 1 && tries <= svc->n_members; tries++) {
            int pick = sched_pick(k, svc, p);
            if (pick < 0)
                break;
            if (likely(limits_member_take(&k->limits, &svc->members[pick], k->now_ns)))
                return pick;
        }
    return -1;
}

/* The one that a template names may be used, though it is not for others any more, unless the service or its drain says so. */
static int named_member(struct core *k, const struct snap_service *svc, u32 id)
{
    for (u32 i = 0; i < svc->n_members; i++) {
        const struct snap_member *m = &svc->members[i];
        if (m->id != id)
            continue;
        bool stays =
            m->flags & FNAT_MEMBER_DRAINS ? !(m->flags & FNAT_MEMBER_LEAVES) : m->weight || !(svc->flags & FNAT_SVC_EXPIRE_QUIESCENT);
        return stays && limits_member_admits(&k->limits, m, k->now_ns) && limits_member_take(&k->limits, m, k->now_ns) ? (int)i : -1;
    }
    return -1;
}

/* The RS that this client has, on whichever worker it got it; else one that it keeps from now on. A sorry server is nobody's own. */
static int sticky_member(struct core *k, const struct snap_service *svc, const struct packet *p)
{
    struct sticky t = limits_template(&k->limits, svc->id, p->family, packet_src(p).b);
    for (u32 tries = 0; tries < 64; tries++) {
        bool known = limits_template_find(&k->limits, &t, k->now_ns);
        int pick = known ? named_member(k, svc, template_member(t.word)) : -1;
        if (pick < 0)
            pick = any_member(k, svc, p);
        if (pick < 0 || svc->members[pick].role == FNAT_ROLE_SORRY ||
            limits_template_put(&k->limits, &t, svc->members[pick].id, svc->persistent, k->now_ns))
            return pick;
        held_add(&k->members[svc->members[pick].id], -HELD_INACTIVE); /* another worker was faster: what it has put counts */
    }
    return any_member(k, svc, p);
}

/* The member for this connection, in which a place is taken; -1: none has one. */
static int member_for(struct core *k, const struct snap_service *svc, const struct packet *p)
{
    int known = unlikely(svc->flags & FNAT_SVC_QUIC) ? quic_member(svc, p) : -1;
    if (unlikely(known >= 0) && limits_member_admits(&k->limits, &svc->members[known], k->now_ns) &&
        limits_member_take(&k->limits, &svc->members[known], k->now_ns)) {
        count(k, CNT_quic_moved);
        return known;
    }
    return svc->persistent ? sticky_member(k, svc, p) : any_member(k, svc, p);
}

enum counter conn_open(struct core *k, struct packet *p, const struct snap_service *svc, u16 vip_id, u32 *out)
{
    u8 marks;
    if (!svc->n_lips)
        return DROP_no_lip;
    if (!svc->usable && !svc->persistent)
        return DROP_no_rs;
    enum counter reason = service_take(k, p, svc, &marks);
    if (unlikely(reason))
        return reason;
    int pick = member_for(k, svc, p);
    if (unlikely(pick < 0)) {
        reason = svc->usable ? DROP_rs_full : DROP_no_rs;
        goto give_service;
    }
    const struct snap_member *m = &svc->members[pick];
    /* From here on something may be evicted for its sake. */
    if (svc->half_open && svc->proto != PROTO_UDP && k->services[svc->id].half_count >= svc->half_open &&
        !conn_evict_half_open(k, svc->id)) {
        reason = DROP_half_open_quota;
        goto give_member;
    }

    u32 index = record_take(k);
    if (!index && (conn_evict_half_open(k, svc->id) || evict_expendable(k)))
        index = record_take(k);
    if (!index) {
        reason = DROP_table_full;
        goto give_member;
    }
    struct conn *c = &k->conns[index];
    u32 gen = c->gen;
    memset(c, 0, sizeof *c);
    c->gen = gen;
    k->header->intent = index;

    c->families = families(p->family, m->family);
    if (likely(c->families == FAMILIES_44)) {
        c->a.v4.cip = p->saddr, c->a.v4.vip = p->daddr, c->a.v4.rip = get32(m->rip);
    } else {
        memcpy(c->a.v6.cip, packet_src(p).b, 16);
        memcpy(c->a.v6.rip, m->rip, 16);
    }
    c->cport = p->sport, c->vport = p->dport, c->rport = m->rport;
    c->proto = p->proto, c->vip_id = vip_id, c->member = m->id;
    c->state = first_state(p->proto, svc);
    c->flags = svc->flags & FNAT_SVC_EXPIRE_QUIESCENT ? CONN_QUIESCENT : 0;
    c->marks = marks;
    c->opened = c->last_seen = k->tick;

    u32 endpoint = local_port_take(k, svc, m, c);
    if (!endpoint && !has_lip(k, svc, m->family)) {
        reason = DROP_no_lip;
        goto give_record;
    }
    if (!endpoint)
        endpoint = local_port_reclaim(k, svc, m, c);
    if (!endpoint && conn_evict_half_open(k, svc->id))
        endpoint = local_port_take(k, svc, m, c);
    if (!endpoint) {
        reason = DROP_no_lip_port;
        goto give_record;
    }
    u64 answer_hash = conn_hash(k, c, TO_CLIENT);
    prefetch_write(&k->table.buckets[conntab_first(&k->table, answer_hash)]);
    if (p->proto == PROTO_TCP)
        identity_take(k, p, c, endpoint);
    else if (unlikely(p->proto == PROTO_SCTP))
        sctp_opens(c, p);
    clientaddr_opens(c, svc->client_addr);
    deltas_fill(k, c);

    /* Both ways go by the hash of the client's flow, which is the same when the sweep looks again. */
    c->next_hop[TO_RS] = (u16)next_hop(k, m->family, conn_rip(c), (u32)p->hash);
    c->next_hop[TO_CLIENT] = (u16)next_hop(k, p->family, conn_cip(c), (u32)p->hash);
    if (!c->next_hop[TO_RS] || !c->next_hop[TO_CLIENT]) {
        reason = DROP_no_route;
        goto give_port;
    }
    if (!conn_one_packet(c) && !conntab_insert(&k->table, p->hash, index << 1 | TO_RS)) {
        reason = DROP_table_full;
        goto give_port;
    }
    if (p->proto == PROTO_TCP)
        c->flags |= CONN_FIRST_LOOK;
    store_release(&c->gen, gen + 1);
    k->unsettled[k->unsettled_to++ % BATCH] = (struct unsettled){answer_hash, p, index, gen + 1};
    u32 deadline = k->tick + timeout_of(k, c, c->state);
    wheel_add(k->wheel, k->conns, index, unlikely(svc->persistent) ? keep_template(k, c, deadline, k->tick) : deadline);
    if (p->proto != PROTO_UDP)
        half_open_begins(k, index);
    gauges_take(k, c);
    k->members[c->member].conns++;
    k->counters[TAKEN_lip_ports]++;
    k->header->intent = 0;
    count(k, CNT_conns_opened);
    *out = index;
    return 0;

give_port:
    lip_port_give(&k->lip, endpoint, be16(c->lport));
give_record:
    k->header->intent = 0;
    record_give(k, index);
give_member:
    held_add(&k->members[m->id], -HELD_INACTIVE);
give_service:
    service_give(k, svc->id, marks, p->family, packet_src(p));
    return reason;
}

void conn_close(struct core *k, u32 index)
{
    struct conn *c = &k->conns[index];
    u32 outer = k->header->intent; /* the connection that is being opened in its place */
    k->header->intent = index;
    k->counters[TAKEN_lip_ports]--;
    gauges_give(k, c);
    places_give(k, c);
    if (c->flags & CONN_HALF_OPEN)
        conn_half_open_ends(k, index);
    if (c->wheel_prev)
        wheel_remove(k->wheel, k->conns, index);
    store_release(&c->gen, c->gen + 1);
    conntab_remove(&k->table, conn_hash(k, c, TO_CLIENT), index << 1 | TO_CLIENT);
    if (!conn_one_packet(c))
        conntab_remove(&k->table, conn_hash(k, c, TO_RS), index << 1 | TO_RS);
    u32 endpoint = endpoint_of(k, c);
    if (c->proto == PROTO_TCP)
        lip_isn_used(&k->lip, endpoint, be16(c->lport), c->next_seq[TO_RS] + c->dseq + conn_inserted(c),
                     ((u64)c->bytes_high[TO_RS] << 32 | conn_counts(c)->bytes[TO_RS]) + CONN_INSERTION_MOST);
    lip_port_give(&k->lip, endpoint, be16(c->lport));
    record_give(k, index);
    k->header->intent = outer;
    count(k, CNT_conns_closed);
}

void conn_enter(struct core *k, u32 index, u8 state)
{
    struct conn *c = &k->conns[index];
    u8 old = c->state;
    u32 before = timeout_of(k, c, old), after = timeout_of(k, c, state);
    c->state = state;
    if (c->flags & CONN_HALF_OPEN && state != TCP_SYN_RECV)
        conn_half_open_ends(k, index);
    set_active(k, c, state == TCP_EST || state == SCTP_EST);
    u32 first = c->opened + k->timeouts[TCP_SYN_RECV];
    bool looks_in_time = c->flags & CONN_FIRST_LOOK && after_u32(first, k->tick) && !after_u32(first, k->tick + after);
    if (after < before && !looks_in_time) {
        wheel_remove(k->wheel, k->conns, index);
        wheel_add(k->wheel, k->conns, index, k->tick + look_of(k, c, after));
        c->flags &= (u8)~CONN_FIRST_LOOK;
    }
}

void conn_doubt(struct core *k, u32 index)
{
    struct conn *c = &k->conns[index];
    c->marks |= MARK_DOUBT;
    if (timeout_of(k, c, c->state) <= k->timeouts[TCP_CLOSED])
        return; /* it ends sooner than anybody would ask */
    wheel_remove(k->wheel, k->conns, index);
    wheel_add(k->wheel, k->conns, index, k->tick + k->timeouts[TCP_CLOSED]);
    c->flags &= (u8)~CONN_FIRST_LOOK;
}

/* A doubtful connection is looked at again: when both sides have been silent for long enough the RS is asked, once. Returns the next look. */
static u32 look_into_doubt(struct core *k, struct conn *c, u32 deadline, u32 tick)
{
    u32 asks = c->last_seen + k->timeouts[TCP_CLOSED];
    if (c->state == TCP_TIME_WAIT || c->state == TCP_CLOSED || after_u32(asks, deadline))
        return deadline;
    if (after_u32(asks, tick))
        return asks;
    if (!answer_probe(k, c))
        return tick + TICKS_PER_SECOND;
    c->marks &= (u8)~MARK_DOUBT;
    return deadline;
}

bool conn_tell_reset(struct core *k, const struct conn *c)
{
    if (c->proto != PROTO_TCP || c->state == TCP_TIME_WAIT || c->state == TCP_CLOSED)
        return true;
    if (k->own_count + 2 > OWN_PACKETS)
        return false;
    answer_reset_side(k, c, TO_RS);
    answer_reset_side(k, c, TO_CLIENT);
    return true;
}

static void due_one(struct core *k, u32 index, u32 tick)
{
    struct conn *c = &k->conns[index];
    u32 deadline = c->last_seen + timeout_of(k, c, c->state);
    c->flags &= (u8)~CONN_FIRST_LOOK;
    if (after_u32(deadline, tick)) {
        if (unlikely(c->marks & MARK_DOUBT))
            deadline = look_into_doubt(k, c, deadline, tick);
        wheel_add(k->wheel, k->conns, index, keep_template(k, c, deadline, tick));
        return;
    }
    if (c->state == TCP_EST && !conn_tell_reset(k, c)) { /* next turn */
        wheel_add(k->wheel, k->conns, index, tick + 1);
        return;
    }
    conn_close(k, index);
}

void conn_due(void *core, const u32 *indices, u32 n, u32 tick)
{
    struct core *k = core;
    for (u32 i = 0; i < n; i++) { /* most will be closed: fetch their buckets ahead */
        const struct conn *c = &k->conns[indices[i]];
        prefetch_write(&k->table.buckets[conntab_first(&k->table, conn_hash(k, c, TO_RS))]);
        prefetch_write(&k->table.buckets[conntab_first(&k->table, conn_hash(k, c, TO_CLIENT))]);
    }
    for (u32 i = 0; i < n; i++)
        due_one(k, indices[i], tick);
}

void conn_sweep_routes(struct core *k, u32 budget)
{
    for (; budget && k->sweep && k->sweep <= k->header->conn_fresh; budget--, k->sweep++) {
        struct conn *c = &k->conns[k->sweep];
        if (!conn_live(c))
            continue;
        u32 flow = (u32)conn_hash(k, c, TO_RS);
        u32 to_rs = next_hop(k, conn_family(c, TO_CLIENT), conn_rip(c), flow);
        u32 to_client = next_hop(k, conn_family(c, TO_RS), conn_cip(c), flow);
        if (to_rs)
            c->next_hop[TO_RS] = (u16)to_rs;
        if (to_client)
            c->next_hop[TO_CLIENT] = (u16)to_client;
    }
    if (k->sweep > k->header->conn_fresh)
        k->sweep = 0;
}

/* ---- after a restart ---- */

static bool restore_one(struct core *k, u32 index)
{
    struct conn *c = &k->conns[index];
    struct addr16 rip = conn_rip(c);
    c->wheel_next = c->wheel_prev = 0;
    u32 endpoint = lip_endpoint(&k->lip, c->proto, conn_family(c, TO_CLIENT), c->lip_id, rip.b, c->rport);
    if (!endpoint || !lip_port_mark(&k->lip, endpoint, be16(c->lport)))
        return false;
    if (!conn_one_packet(c) && !conntab_insert(&k->table, conn_hash(k, c, TO_RS), index << 1 | TO_RS))
        goto give_port;
    if (!conntab_insert(&k->table, conn_hash(k, c, TO_CLIENT), index << 1 | TO_CLIENT))
        goto take_out_client_side;
    wheel_add(k->wheel, k->conns, index, keep_template(k, c, c->last_seen + look_of(k, c, timeout_of(k, c, c->state)), k->tick));
    bool half_open = c->flags & CONN_HALF_OPEN;
    c->flags &= (u8) ~(CONN_HALF_OPEN | CONN_FIRST_LOOK);
    if (half_open)
        half_open_begins(k, index);
    places_retake(k, c);
    gauges_take(k, c);
    k->counters[TAKEN_lip_ports]++;
    k->counters[TAKEN_conns]++;
    k->header->conn_count++;
    return true;

take_out_client_side:
    if (!conn_one_packet(c))
        conntab_remove(&k->table, conn_hash(k, c, TO_RS), index << 1 | TO_RS);
give_port:
    lip_port_give(&k->lip, endpoint, be16(c->lport));
    return false;
}

u32 conn_restore(struct core *k)
{
    struct worker_header *h = k->header;
    h->conn_count = 0;
    memset(h->conn_free, 0, sizeof h->conn_free);
    if (h->intent && conn_live(&k->conns[h->intent]))
        k->conns[h->intent].gen++; /* its opening or closing was under way: undone */
    h->intent = 0;
    for (u32 i = h->conn_fresh; i; i--) {
        struct conn *c = &k->conns[i];
        if (conn_live(c) && restore_one(k, i))
            continue;
        if (conn_live(c))
            c->gen++;
        free_give(k, i);
    }
    return h->conn_count;
}
