/* forward.c: the life of a packet, top to bottom. This file is the table of contents of the packet path:
 *
 *   parse.h    what is it?                     all of a batch, then
 *   hash.h     its flow key, hashed            all of a batch, and the buckets are fetched ahead
 *   conntab.h  who might own it?               all of a batch, and the connections are fetched ahead
 *   record.h   does it, really?                then, one by one:
 *   track.h    what does it do to the state?
 *   rewrite.h  both addresses, numbers, checksums
 *   neigh.h    the MAC of the next hop         (resolve.h: wait for it)
 * and for a first packet: snapshot.h (whose service?), conn.h (open), again from rewrite.h on.
 * answer.h makes the packets that go back at once.
 *
 * Rules: a packet leaves with one verdict; a drop moves one reason; hits never read the snapshot.
 */
#include "forward.h"

#include "answer.h"
#include "conn.h"
#include "parse.h"
#include "resolve.h"
#include "rewrite.h"
#include "track.h"

/* Frames lie 4 KiB apart, so their headers compete for the few lines of one set of the first cache level: each is fetched
 * again this many packets before it is needed. */
enum { AHEAD = 4 };

/* ---- finding ---- */

static u32 first_candidate(const struct core *k, const struct packet *p)
{
    const struct bucket *b = &k->table.buckets[conntab_first(&k->table, p->hash)];
    u32 bits = conntab_match(b, conntab_tag(p->hash));
    return bits ? conntab_ref(b, (u32)__builtin_ctz(bits)) : 0;
}

/* Load both lines, in a loop so short that a processor has dozens of these loads under way at once. Prefetches alone are not
 * enough: a processor drops them when it has too many, or when the page is not in its TLB. */
static inline void touch(const struct conn *c) { __asm__ volatile("" ::"r"(c->last_seen), "r"(c->member)); }

/* ---- a packet of a known connection ---- */

static void account(struct core *k, struct conn *c, const struct packet *p, enum direction dir)
{
    struct member_stats *m = &k->members[c->member];
    u32 bytes = c->bytes[dir] + p->l3_len;
    c->packets[dir]++;
    c->bytes_high[dir] += bytes < c->bytes[dir];
    c->bytes[dir] = bytes;
    c->last_seen = k->tick;
    m->packets[dir]++;
    m->bytes[dir] += p->l3_len;
}

static void follow_tcp(struct core *k, struct conn *c, u32 index, const struct packet *p, enum direction dir)
{
    const struct tcp_header *tcp = (const struct tcp_header *)(p->data + p->l4);
    u8 flags = p->tcp_flags;
    u32 end = be32(get32(&tcp->seq)) + p->payload + !!(flags & TCP_SYN) + (flags & TCP_FIN);
    if (unlikely(dir == TO_CLIENT && (flags & (TCP_SYN | TCP_ACK)) == (TCP_SYN | TCP_ACK) && !(c->flags & CONN_SYNACK_SEEN))) {
        c->flags |= CONN_SYNACK_SEEN;
        c->next_seq[TO_CLIENT] = end;
    } else if (after_u32(end, c->next_seq[dir]) && (dir == TO_RS || c->flags & CONN_SYNACK_SEEN) && !(flags & TCP_RST))
        c->next_seq[dir] = end;
    if (likely(c->state == TCP_EST && !(flags & (TCP_SYN | TCP_FIN | TCP_RST))))
        return; /* most packets: no row of the table moves it */
    u8 next = track_tcp(c->state, dir, flags, c->flags & CONN_SYNACK_SEEN);
    if (unlikely(next != c->state))
        conn_enter(k, index, next);
    else if (unlikely(next == TCP_TIME_WAIT) && !(flags & TCP_FIN))
        c->flags |= CONN_FINISHED; /* the acknowledgement of the second FIN */
    if (unlikely(next == TCP_CLOSED))
        c->flags |= CONN_FINISHED;
}

static enum verdict too_big(struct core *k, struct packet *p, u16 mtu)
{
    const struct ip4_header *ip = (const struct ip4_header *)(p->data + p->l3);
    if (!(be16(ip->frag) & IP4_DF))
        return drop(k, p, DROP_mtu);
    return answer_icmp_error(k, p, ICMP_UNREACHABLE, ICMP_FRAG_NEEDED, be32(mtu), p->daddr, DROP_mtu); /* RFC 1191 */
}

static enum verdict forward_hit(struct core *k, struct packet *p, u32 index, enum direction dir)
{
    struct conn *c = &k->conns[index];
    struct neigh_entry *hop = &k->neigh.entries[c->next_hop[dir]];
    u64 word = load_relaxed(&hop->word);
    u8 port = neigh_word_port(word);
    const struct ip4_header *ip = (const struct ip4_header *)(p->data + p->l3);

    if (unlikely(c->flags & CONN_QUIESCENT && !load_relaxed(&k->plane_members[c->member].usable))) {
        conn_close(k, index);
        return drop(k, p, DROP_quiesced);
    }
    if (unlikely(ip->ttl <= 1))
        return answer_icmp_error(k, p, ICMP_TIME_EXCEEDED, 0, 0, p->daddr, DROP_ttl);
    if (unlikely(p->l3_len > k->ports[port].mtu)) {
        if (!k->ports[port].mtu)
            return drop(k, p, DROP_port_down);
        return too_big(k, p, k->ports[port].mtu);
    }

    account(k, c, p, dir);
    if (p->proto == PROTO_TCP)
        follow_tcp(k, c, index, p, dir);
    else if (unlikely(c->state == UDP_ONEWAY && dir == TO_CLIENT))
        conn_enter(k, index, UDP_NORM);

    rewrite_packet(k, p, c, dir);

    if (unlikely(!neigh_word_usable(word)))
        return resolve_wait(k, p, c->next_hop[dir], dir);
    if (unlikely(!hop->used))
        hop->used = 1;
    memcpy(p->data, &word, 6);
    memcpy(p->data + 6, k->ports[port].mac, 6);
    p->out_port = port;
    k->counters[CNT_to_rs + dir]++;
    return VERDICT_TX;
}
_Static_assert(CNT_to_client == CNT_to_rs + TO_CLIENT, "counters in the order of directions");

/* ---- a packet of no known connection ---- */

static bool is_martian(u32 saddr, u32 daddr)
{
    u32 a = be32(saddr);
    return a >> 24 == 0 || a >> 24 == 127 || a >= 0xe0000000 || saddr == daddr; /* RFC 1122 3.2.1.3 */
}

static enum verdict pass(struct core *k, struct packet *p, enum counter otherwise)
{
    if (!k->ports[p->in_port].punt)
        return drop(k, p, otherwise);
    if (p->kind == KIND_TCP || p->kind == KIND_UDP)
        rewrite_complete_if_partial(k, p); /* a TAP has no way to say that hardware should do it */
    count(k, CNT_passed);
    return VERDICT_PASS;
}

/* Does a kni_host route carve this address out for the host? */
static bool is_hosts(const struct core *k, u32 addr)
{
    const struct fnat_route_spec *route = k->snap->has_host_routes ? fib4_lookup(&k->fib, addr) : NULL;
    return route && route->kind == FNAT_ROUTE_HOST;
}

static enum verdict refuse(struct core *k, struct packet *p)
{
    if (k->snap->settings.unserved != FNAT_UNSERVED_RESET)
        return drop(k, p, DROP_no_service);
    if (p->proto == PROTO_TCP)
        return answer_reset(k, p);
    return answer_icmp_error(k, p, ICMP_UNREACHABLE, ICMP_PORT_UNREACHABLE, 0, p->daddr, DROP_no_service);
}

/* Give the packet to another worker, to look in its own table. */
static enum verdict hand_off(struct core *k, struct packet *p, u32 to)
{
    if (!handoff_push(k->handoff, k->index, to, p))
        return drop(k, p, DROP_handoff_full);
    k->handed_to |= 1ull << to;
    count(k, CNT_handed_off);
    return VERDICT_HELD;
}

/* May this unknown packet open a connection? */
static bool may_open(const struct packet *p, const struct snap_address_slot *owned)
{
    return p->proto == PROTO_TCP ? track_is_first(p->tcp_flags) : owned->kind != FNAT_ADDR_LIP;
}

/* Where else may the connection be? An answer from an RS belongs to the owner of its lport. What still is unknown there, or is
 * from a client and not a first packet, may be known to any worker (a sender changed its queue, a NIC its table): it goes
 * round once. Of UDP nobody can tell a first packet; where a NIC deals without a rule it goes round and comes back before it
 * opens. `hops`: 0 on arrival, 1 at the owner of the lport, then one more for each worker of the round. */
static bool belongs_elsewhere(struct core *k, struct packet *p, const struct snap_address_slot *owned, u32 *to)
{
    if (!k->handoff)
        return false;
    bool answer = owned->kind & FNAT_ADDR_LIP, opens = may_open(p, owned);
    if (answer && !p->hops) {
        const struct steer_map *map = lip_rule(&k->lip, owned->port, p->proto, 4)->map;
        struct addr16 rip = addr16_4(p->saddr), lip = addr16_4(p->daddr);
        *to = steer_owner(map, be16(p->dport), steer_rest(map, rip.b, lip.b, p->sport));
        p->hops = 1;
        if (*to != k->index) {
            count(k, CNT_answers_elsewhere);
            return true;
        }
    }
    if (opens && (p->proto == PROTO_TCP || !lip_rule(&k->lip, p->in_port, p->proto, 4)->loose))
        return false;
    if (p->hops > k->workers - !opens)
        return false; /* it has been everywhere */
    *to = k->index + 1 == k->workers ? 0 : k->index + 1;
    if (!handoff_takes_rounds(k->handoff, k->index, *to) ||
        (p->hops <= 1 && !handoff_round_begins(&k->rounds[answer], k->tick, k->workers))) {
        count(k, CNT_rounds_refused);
        return false;
    }
    p->hops = (u8)(max_u32(p->hops, 1) + 1);
    return true;
}

static enum verdict forward_first(struct core *k, struct packet *p, const struct snap_address_slot *owned)
{
    struct addr16 vip = addr16_4(p->daddr);
    const struct snap_service *svc = snapshot_service(k->snap, k->area, &k->secret, vip.b, p->dport, p->proto, 4);
    u32 index;
    if (p->proto == PROTO_TCP && !track_is_first(p->tcp_flags))
        return drop(k, p, DROP_no_conn);
    if (!svc && p->proto == PROTO_UDP && owned->kind == FNAT_ADDR_LIP)
        return drop(k, p, DROP_no_conn);
    if (!svc)
        return refuse(k, p);
    enum counter reason = conn_open(k, p, svc, &index);
    if (likely(!reason))
        return forward_hit(k, p, index, TO_RS);
    if (reason == DROP_no_rs && svc->no_rs == FNAT_NO_RS_RESET && p->proto == PROTO_TCP)
        return answer_reset(k, p);
    return drop(k, p, reason);
}

static enum verdict forward_unknown(struct core *k, struct packet *p)
{
    const struct snap_address_slot *owned = owned4(k, p->daddr);
    if (!owned || is_hosts(k, p->daddr))
        return pass(k, p, DROP_not_ours);
    if (is_martian(p->saddr, p->daddr))
        return drop(k, p, DROP_martian);
    switch (p->kind) {
    case KIND_TCP:
    case KIND_UDP: {
        u32 to;
        return belongs_elsewhere(k, p, owned, &to) ? hand_off(k, p, to) : forward_first(k, p, owned);
    }
    case KIND_ICMP:
        return p->data[p->l4] == ICMP_ECHO ? answer_echo(k, p) : drop(k, p, DROP_icmp);
    case KIND_FRAGMENT:
        return drop(k, p, DROP_fragment);
    default:
        return drop(k, p, DROP_protocol);
    }
}

/* ---- one packet, then a batch ---- */

static enum verdict forward_flow(struct core *k, struct packet *p)
{
    u32 ref = p->conn;
    if (unlikely(!ref || !conn_is4(&k->conns[ref >> 1], ref & 1, p)))
        ref = conn_find(k, p); /* the first candidate was another's, or an earlier packet of the batch changed the table */
    p->conn = ref;
    if (unlikely(!ref))
        return forward_unknown(k, p);
    u32 index = ref >> 1;
    u8 state = k->conns[index].state;
    if (unlikely((state == TCP_TIME_WAIT || state == TCP_CLOSED) && !(ref & 1) && track_is_first(p->tcp_flags))) {
        conn_close(k, index); /* RFC 9293 3.6.1: a new incarnation */
        p->conn = 0;
        return forward_unknown(k, p);
    }
    return forward_hit(k, p, index, ref & 1);
}

static enum verdict forward_one(struct core *k, struct packet *p)
{
    switch (p->kind) {
    case KIND_TCP:
    case KIND_UDP:
        return forward_flow(k, p);
    case KIND_ARP:
        return answer_arp(k, p);
    case KIND_INVALID:
        /* What is malformed and not for us is the host's to judge. */
        if (k->ports[p->in_port].punt) {
            count(k, CNT_passed);
            return VERDICT_PASS;
        }
        return drop(k, p, p->reason);
    case KIND_OTHER:
        return pass(k, p, DROP_ether_type);
    default:
        return forward_unknown(k, p);
    }
}

void forward_batch(struct core *k, struct packet *pkts, u32 n)
{
    for (u32 i = 0; i < n; i++) {
        struct packet *p = &pkts[i];
        if (i + AHEAD < n)
            prefetch(pkts[i + AHEAD].data);
        parse_packet(p);
        if (unlikely(p->kind != KIND_TCP && p->kind != KIND_UDP))
            continue;
        p->hash = hash_flow4(&k->secret, get64(&p->saddr), get32(&p->sport), p->proto);
        prefetch(&k->table.buckets[conntab_first(&k->table, p->hash)]);
    }
    for (u32 i = 0; i < n; i++) {
        struct packet *p = &pkts[i];
        if (unlikely(p->kind != KIND_TCP && p->kind != KIND_UDP))
            continue;
        p->conn = first_candidate(k, p);
        prefetch_write(&k->conns[p->conn >> 1]);
        prefetch_write((u8 *)&k->conns[p->conn >> 1] + CACHE_LINE);
    }
    for (u32 i = 0; i < n; i++)
        touch(&k->conns[pkts[i].conn >> 1]);
    for (u32 i = 0; i < n; i++) {
        if (i + AHEAD < n)
            prefetch_write(pkts[i + AHEAD].data);
        pkts[i].verdict = (u8)forward_one(k, &pkts[i]);
    }
}
