/* forward.c: the life of a packet, top to bottom. This file is the table of contents of the packet path:
 *
 *   parse.h    what is it?                     all of a batch, then
 *   hash.h     its flow key, hashed            all of a batch, and the buckets are fetched ahead
 *   conntab.h  who might own it?               all of a batch, and the connections are fetched ahead
 *   record.h   does it, really?                then, one by one:
 *   track.h    what does it do to the state?
 *   rewrite.h  both addresses, numbers, checksums
 *   clientaddr.h  what tells the RS who the client is: in the first packets of a connection whose service asks for it
 *   neigh.h    the MAC of the next hop         (resolve.h: wait for it)
 * and for a first packet: snapshot.h (whose service?), admit.h (may this client?), conn.h (open), again from rewrite.h on.
 * icmp.h reads and translates errors about packets of connections; answer.h makes the packets that go back at once.
 * pieces.h is about datagrams in fragments: theirs is the slow way, as it is for what is larger than the MTU and for SCTP (sctp.h).
 *
 * Rules: a packet leaves with one verdict; a drop moves one reason; hits never read the snapshot.
 */
#include "forward.h"

#include "admit.h"
#include "answer.h"
#include "clientaddr.h"
#include "conn.h"
#include "icmp.h"
#include "parse.h"
#include "pieces.h"
#include "resolve.h"
#include "rewrite.h"
#include "sctp.h"
#include "track.h"

/* Frames lie 4 KiB apart, so their headers compete for the few lines of one set of the first cache level: each is fetched
 * again this many packets before it is needed. */
enum { HEADERS_AHEAD = 4, MEMBERS_AHEAD = 2, UNSETTLED = 6 };

/* ---- finding ---- */

static inline u32 candidate_in(const struct bucket *b, const struct packet *p)
{
    u32 bits = conntab_match(b, conntab_tag(p->hash));
    return bits ? conntab_ref(b, (u32)__builtin_ctz(bits)) : 0;
}

static inline const struct bucket *first_bucket(const struct core *k, const struct packet *p)
{
    return &k->table.buckets[conntab_first(&k->table, p->hash)];
}

static inline const struct bucket *second_bucket(const struct core *k, const struct packet *p)
{
    return &k->table.buckets[conntab_other(&k->table, conntab_first(&k->table, p->hash), conntab_tag(p->hash))];
}

static inline void fetch_conn(const struct core *k, const struct packet *p)
{
    const struct conn *c = &k->conns[p->conn >> 1];
    prefetch_near(c);
    if (p->kind == KIND_TCP || p->family == 6)
        prefetch_near((const u8 *)c + CACHE_LINE);
}

/* A TCP header behind one of IPv6 ends in the second line. */
static inline void fetch_headers(const struct packet *p)
{
    prefetch_write(p->data);
    if (p->family == 6)
        prefetch_write(p->data + CACHE_LINE);
}

/* ---- a packet of a known connection ---- */

static always_inline void account(struct core *k, struct conn *c, const struct packet *p, enum direction dir, bool narrow)
{
    struct member_stats *m = &k->members[c->member];
    struct conn_counts *n = narrow ? &c->a.v4.counts : &c->counts6;
    n->packets[dir]++;
    if (unlikely(__builtin_add_overflow(n->bytes[dir], p->l3_len, &n->bytes[dir])))
        c->bytes_high[dir]++;
    c->last_seen = k->tick;
    m->packets[dir]++;
    m->bytes[dir] += p->l3_len;
}

/* A segment that opens, ends or disturbs. */
__attribute__((noinline)) static void follow_turn(struct core *k, struct conn *c, u32 index, const struct packet *p, enum direction dir)
{
    bool doubted = c->marks & MARK_DOUBT;
    u8 next = track_follow(c, dir, p);
    if (next != c->state)
        conn_enter(k, index, next);
    else if (next == TCP_TIME_WAIT && !(p->tcp_flags & TCP_FIN))
        c->flags |= CONN_FINISHED; /* the acknowledgement of the second FIN */
    if (next == TCP_CLOSED)
        c->flags |= CONN_FINISHED;
    if (unlikely(c->marks & MARK_DOUBT && !doubted))
        conn_doubt(k, index);
    if (unlikely(doubted && !(c->marks & MARK_DOUBT)))
        clientaddr_again(c);
}

/* The RS has answered a datagram that nothing was known to come of. */
static void follow_answer(struct core *k, u32 index)
{
    struct conn *c = &k->conns[index];
    if (c->state == UDP_ONEWAY)
        return conn_enter(k, index, UDP_NORM);
    if (c->state != UDP_NONE)
        return;
    conn_enter(k, index, UDP_LAST);
    c->flags |= CONN_FINISHED; /* one datagram, one answer: the port may be taken when there is no other */
}

static always_inline void follow_tcp(struct core *k, struct conn *c, u32 index, const struct packet *p, enum direction dir)
{
    const struct tcp_header *tcp = (const struct tcp_header *)(p->data + p->l4);
    if (likely(c->state == TCP_EST && (p->tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST | TCP_ACK)) == TCP_ACK))
        track_advance(c, dir, be32(get32(&tcp->seq)) + p->payload);
    else
        follow_turn(k, c, index, p, dir);
}

static void follow_sctp(struct core *k, struct conn *c, u32 index, const struct packet *p, enum direction dir)
{
    u8 next = sctp_follow(c, dir, p);
    if (next != c->state)
        conn_enter(k, index, next);
    if (next == SCTP_CLOSED)
        c->flags |= CONN_FINISHED;
}

/* Bytes of the packet when it leaves: the headers of both families differ. */
static inline u32 leaving_len(const struct conn *c, const struct packet *p)
{
    if (c->families == FAMILIES_66)
        return p->l3_len;
    return p->l3_len - (u32)(p->l4 - p->l3) + (p->family == 4 ? (u32)sizeof(struct ip6_header) : (u32)sizeof(struct ip4_header));
}

static always_inline u8 hops_left(const struct packet *p, u8 family)
{
    const u8 *l3 = p->data + p->l3;
    return family == 4 ? ((const struct ip4_header *)l3)->ttl : ((const struct ip6_header *)l3)->hop_limit;
}

/* The rewritten packet leaves by this neighbour; family: its own by now. */
static always_inline enum verdict leave(struct core *k, struct packet *p, const struct conn *c, enum direction dir, struct neigh_entry *hop,
                                        u64 word, u8 family)
{
    u8 port = neigh_word_port(word);
    if (unlikely(!neigh_word_usable(word)))
        return resolve_wait(k, p, c->next_hop[dir], dir);
    if (unlikely(!hop->used))
        hop->used = 1;
    put64(p->data, word); /* the MAC; the rest of the word is written over */
    put64(p->data + 6, family == 4 ? k->ports[port].source4 : k->ports[port].source6);
    p->out_port = port;
    k->counters[CNT_to_rs + dir]++;
    return VERDICT_TX;
}

/* The state follows the packet. */
static always_inline void follow(struct core *k, struct conn *c, u32 index, const struct packet *p, enum direction dir, bool narrow)
{
    account(k, c, p, dir, narrow);
    if (p->proto == PROTO_TCP)
        follow_tcp(k, c, index, p, dir);
    else if (unlikely(c->state != UDP_NORM && dir == TO_CLIENT))
        follow_answer(k, index);
}

/* The same for a connection whose RS is to be told who the client is. */
rare static enum verdict forward_marked(struct core *k, struct packet *p, u32 index, enum direction dir)
{
    struct conn *c = &k->conns[index];
    struct neigh_entry *hop = &k->neigh.entries[c->next_hop[dir]];
    u64 word = load_relaxed(&hop->word);
    bool half_open = c->flags & CONN_HALF_OPEN, narrow = c->families == FAMILIES_44;
    u32 first = c->next_seq[TO_RS];
    struct packet *ahead = NULL;

    follow(k, c, index, p, dir, narrow);
    if (p->proto == PROTO_TCP)
        clientaddr_follow(c, half_open, first);
    if (narrow)
        rewrite_narrow(k, p, c, dir);
    else
        rewrite_wide(k, p, c, dir);
    enum clientaddr done = clientaddr_apply(k, p, c, dir, k->link_mtu[neigh_word_link(word)]);
    if (done == CLIENTADDR_AHEAD) {
        if (neigh_word_usable(word) && k->own_count + 2 <= OWN_PACKETS)
            ahead = answer_blank(k);
        clientaddr_ahead(k, p, c, ahead);
        if (ahead)
            answer_link(k, ahead, c->next_hop[dir]);
    }
    if (done == CLIENTADDR_TOLD || ahead)
        count(k, CNT_client_addr_told);
    else if (done != CLIENTADDR_NOTHING)
        count(k, CNT_client_addr_no_room);
    enum verdict verdict = leave(k, p, c, dir, hop, word, conn_family(c, !dir));
    if (!ahead)
        return verdict;
    k->own[k->own_count] = *p; /* behind it */
    k->own[k->own_count++].verdict = VERDICT_TX;
    return VERDICT_HELD;
}

static enum verdict forward_unknown(struct core *k, struct packet *p);

/* The RS is not to be used any more, and the service wants its connections ended. A datagram of a client goes to another one at once, but
 * once: the snapshot in use may still name the RS that it is not to be sent to. */
rare static enum verdict forward_quiesced(struct core *k, struct packet *p, u32 index, enum direction dir)
{
    bool opener = !p->conn;
    conn_close(k, index);
    p->conn = 0;
    if (p->proto != PROTO_UDP || dir != TO_RS || p->fragment == FRAGMENT_LATER || opener)
        return drop(k, p, DROP_quiesced);
    if (p->kind == KIND_FRAGMENT)
        pieces_pack(p); /* its datagram knows it */
    return forward_unknown(k, p);
}

/* May it leave in fragments? RFC 791: without DF; RFC 8200 5: never on the way of IPv6; RFC 7915 5.1: what IPv4 gets without DF. */
static bool may_split(const struct conn *c, const struct packet *p, u32 leaving)
{
    if (p->family == 4)
        return !(be16(((const struct ip4_header *)(p->data + p->l3))->frag) & IP4_DF);
    return c->families != FAMILIES_66 && (p->kind == KIND_FRAGMENT || leaving <= IP6_MIN_MTU - 20);
}

/* An ICMP error is about a first fragment, never about a later one: RFC 1122 3.2.2. */
static enum verdict explain(struct core *k, struct packet *p, enum error what, u32 mtu, enum counter reason)
{
    return p->fragment == FRAGMENT_LATER ? drop(k, p, reason) : answer_error(k, p, what, mtu, reason);
}

/* forward_hit for fragments, for what has to leave in fragments and for what may become fragments further on: all that cares about
 * the IP identification; and for SCTP. */
rare static enum verdict forward_slow(struct core *k, struct packet *p, u32 index, enum direction dir)
{
    struct conn *c = &k->conns[index];
    struct neigh_entry *hop = &k->neigh.entries[c->next_hop[dir]];
    u64 word = load_relaxed(&hop->word);
    u8 port = neigh_word_port(word);
    bool piece = p->kind == KIND_FRAGMENT, sctp = p->kind == KIND_SCTP, narrow = c->families == FAMILIES_44;
    u32 leaving = narrow ? p->l3_len : leaving_len(c, p), mtu = k->link_mtu[neigh_word_link(word)], id = 0;
    if (piece && p->family == 4 && conn_family(c, !dir) == 6)
        leaving += (u32)sizeof(struct ip6_fragment);

    if (c->flags & CONN_QUIESCENT && !load_relaxed(&k->plane_members[c->member].usable))
        return forward_quiesced(k, p, index, dir);
    if (hops_left(p, p->family) <= 1)
        return explain(k, p, ERROR_TTL, 0, DROP_ttl);
    if (!mtu)
        return drop(k, p, DROP_port_down);
    if (leaving > mtu && !may_split(c, p, leaving)) /* told in its own family's bytes: RFC 1191, RFC 8201 */
        return explain(k, p, ERROR_TOO_BIG, max_u32(mtu + p->l3_len - leaving, p->family == 6 ? IP6_MIN_MTU : 0), DROP_mtu);
    bool named = !sctp || p->fragment || leaving > mtu;
    enum counter reason = named ? pieces_name(k, p, c, dir, &id) : 0;
    if (reason)
        return drop(k, p, reason);

    if (c->flags & CONN_MARKED) {
        if (!piece && leaving <= mtu) {
            if (narrow)
                rewrite_id4(p, id);
            return forward_marked(k, p, index, dir);
        }
        if (clientaddr_needs_whole(c, p, dir))
            return drop(k, p, DROP_client_addr_piece);
    }

    account(k, c, p, dir, narrow);
    if (sctp)
        follow_sctp(k, c, index, p, dir);
    else if (p->proto != PROTO_TCP) {
        if (c->state != UDP_NORM && dir == TO_CLIENT)
            follow_answer(k, index);
    } else if (p->fragment != FRAGMENT_LATER)
        follow_tcp(k, c, index, p, dir);
    if (sctp) {
        rewrite_addresses(k, p, c, dir, named, id);
        sctp_rewrite(k, p, c, dir);
    } else
        rewrite_piece(k, p, c, dir, id);
    count_n(k, CNT_fragments, piece);

    if (!neigh_word_usable(word))
        return resolve_wait(k, p, c->next_hop[dir], dir);
    hop->used = 1;
    put64(p->data, word);
    put64(p->data + 6, conn_family(c, !dir) == 4 ? k->ports[port].source4 : k->ports[port].source6);
    p->out_port = port;
    if (leaving > mtu && pieces_split(k, p, mtu) == VERDICT_DROP)
        return VERDICT_DROP;
    k->counters[CNT_to_rs + dir]++;
    return VERDICT_TX;
}

/* kept: the family of both sides; 0: it changes. */
static always_inline enum verdict forward_known(struct core *k, struct packet *p, u32 index, enum direction dir, struct stage_clock *clock,
                                                u8 kept)
{
    struct conn *c = &k->conns[index];
    struct neigh_entry *hop = &k->neigh.entries[c->next_hop[dir]];
    u64 word = load_relaxed(&hop->word);
    u32 link = neigh_word_link(word), leaving = kept ? p->l3_len : leaving_len(c, p);

    if (unlikely(c->flags & CONN_QUIESCENT && !load_relaxed(&k->plane_members[c->member].usable)))
        return forward_quiesced(k, p, index, dir);
    if (unlikely(hops_left(p, kept ? kept : p->family) <= 1))
        return answer_error(k, p, ERROR_TTL, 0, DROP_ttl);
    if (unlikely(leaving > k->link_mtu[link]))
        return forward_slow(k, p, index, dir);
    if (unlikely(c->flags & CONN_MARKED))
        return forward_marked(k, p, index, dir);

    follow(k, c, index, p, dir, kept == 4);
    stage_mark(clock, STAGE_CONN);
    if (kept == 4)
        rewrite_narrow(k, p, c, dir);
    else if (kept == 6)
        rewrite_same6(k, p, c, dir);
    else
        rewrite_crossing(k, p, c, dir);
    stage_mark(clock, STAGE_REWRITE);
    enum verdict verdict = leave(k, p, c, dir, hop, word, kept ? kept : conn_family(c, !dir));
    stage_mark(clock, STAGE_NEIGHBOUR);
    return verdict;
}
__attribute__((noinline)) static enum verdict forward_crossing(struct core *k, struct packet *p, u32 index, enum direction dir,
                                                               struct stage_clock *clock)
{
    return forward_known(k, p, index, dir, clock, 0);
}

static always_inline enum verdict forward_hit(struct core *k, struct packet *p, u32 index, enum direction dir, struct stage_clock *clock,
                                              bool four)
{
    if (likely(k->conns[index].families == (four ? FAMILIES_44 : FAMILIES_66)))
        return forward_known(k, p, index, dir, clock, four ? 4 : 6);
    return forward_crossing(k, p, index, dir, clock);
}

/* The packet that opened the connection. */
static enum verdict forward_opener(struct core *k, struct packet *p, u32 index)
{
    return p->family == 4 ? forward_hit(k, p, index, TO_RS, NULL, true) : forward_hit(k, p, index, TO_RS, NULL, false);
}
_Static_assert(CNT_to_client == CNT_to_rs + TO_CLIENT && CNT_icmp_errors_to_client == CNT_icmp_errors_to_rs + TO_CLIENT,
               "counters in the order of directions");

/* ---- a packet of no known connection ---- */

/* A source that no host on another link may use: RFC 1122 3.2.1.3; RFC 4291 2.5.2, 2.5.3, 2.5.5.2, 2.5.6, 2.7; or one of our own addresses. */
static bool is_martian(const struct core *k, const struct packet *p)
{
    struct addr16 src = packet_src(p);
    if (!k->snap->settings.own_sources && owned(k, p->family, src.b))
        return true;
    if (p->family == 6) {
        static const u8 low[15], mapped[12] = {[10] = 0xff, [11] = 0xff};
        const u8 *a = src.b;
        return (!memcmp(a, low, sizeof low) && a[15] <= 1) || !memcmp(a, mapped, sizeof mapped) || a[0] == 0xff ||
               (a[0] == 0xfe && (a[1] & 0xc0) == 0x80);
    }
    u32 a = be32(p->saddr);
    return a >> 24 == 0 || a >> 24 == 127 || a >= 0xe0000000;
}

/* What nobody sends who wants a connection. 0: nothing wrong. */
static enum counter unwelcome_l4(const struct packet *p)
{
    if (!p->sport || !p->dport)
        return DROP_port_zero;
    return p->proto == PROTO_TCP && track_is_nonsense(p->tcp_flags) ? DROP_tcp_flags : 0;
}

static enum counter unwelcome(const struct core *k, const struct packet *p)
{
    if (p->family == 6 ? same_addr(packet_src6(p), packet_dst6(p)) : p->saddr == p->daddr)
        return DROP_land;
    if (is_martian(k, p))
        return DROP_martian;
    if (p->kind == KIND_ROUTED)
        return DROP_source_route;
    return p->kind == KIND_TCP || p->kind == KIND_UDP || p->kind == KIND_SCTP ? unwelcome_l4(p) : 0;
}

static enum verdict pass(struct core *k, struct packet *p, enum counter otherwise)
{
    if (!k->ports[p->in_port].punt)
        return drop(k, p, otherwise);
    if (p->kind == KIND_TCP || p->kind == KIND_UDP)
        rewrite_complete_if_partial(k, p); /* a TAP has no way to say that hardware should do it */
    else if (p->kind == KIND_SCTP)
        sctp_complete_if_absent(k, p);
    count(k, CNT_passed);
    return VERDICT_PASS;
}

/* Does a kni_host route carve this address out for the host? */
static bool is_hosts(const struct core *k, u8 family, const u8 addr[16])
{
    const struct fib_hop *hop = k->snap->has_host_routes ? fib_lookup(&k->fib, family, addr, 0) : NULL;
    return hop && hop->kind == FNAT_ROUTE_HOST;
}

static enum verdict refuse(struct core *k, struct packet *p)
{
    if (k->snap->settings.unserved != FNAT_UNSERVED_RESET || p->kind == KIND_FRAGMENT)
        return drop(k, p, DROP_no_service);
    if (p->proto == PROTO_TCP)
        return answer_reset(k, p);
    return answer_error(k, p, ERROR_PORT, 0, DROP_no_service);
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

/* Is it a SYN, an INIT or a datagram? */
static bool is_opening(const struct packet *p)
{
    if (p->proto == PROTO_TCP)
        return track_is_first(p->tcp_flags);
    return p->proto == PROTO_UDP || p->tcp_flags == PACKET_OPENS_SCTP;
}

/* May this unknown packet open a connection? */
static bool may_open(const struct packet *p, const struct snap_address_slot *owned)
{
    return p->proto == PROTO_UDP ? owned->kind != FNAT_ADDR_LIP : is_opening(p);
}

/* May packets of one flow come to any worker? Fragments may, unless it is known where whole packets go. */
static bool is_dealt_anyhow(const struct core *k, const struct packet *p)
{
    const struct lip_rule *rule = lip_rule(&k->lip, p->in_port, p->proto, p->family);
    return rule->loose || (p->kind == KIND_FRAGMENT && !rule->map->rest_bytes);
}

/* Where the NIC would have brought a whole packet of this fragment's flow, which it could not tell. */
static bool belongs_to_queue(struct core *k, struct packet *p, u32 *to)
{
    const struct lip_rule *rule = lip_rule(&k->lip, p->in_port, p->proto, p->family);
    struct addr16 src = packet_src(p), dst = packet_dst(p);
    if (rule->loose || !rule->map->rest_bytes)
        return false;
    *to = steer_owner(rule->map, be16(p->dport), steer_rest(rule->map, src.b, dst.b, p->sport));
    p->hops = 1;
    return *to != k->index;
}

/* Is the local port of this answer another worker's by the rule? */
static bool is_anothers(struct core *k, struct packet *p, const struct snap_address_slot *owned, const struct flow_key *answer, u32 *to)
{
    const struct steer_map *map = lip_rule(&k->lip, owned->port, answer->proto, answer->family)->map;
    *to = steer_owner(map, be16(answer->dport), steer_rest(map, answer->src.b, answer->dst.b, answer->sport));
    p->hops = 1;
    if (*to == k->index)
        return false;
    count(k, CNT_answers_elsewhere);
    return true;
}

/* The next worker of the round, if the packet may go there. */
static bool goes_round(struct core *k, struct packet *p, bool answer, bool opens, u32 *to)
{
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

/* Where else may the connection be? An answer from an RS belongs to the owner of its lport. What still is unknown there, or is
 * from a client and not a first packet, may be known to any worker (a sender changed its queue, a NIC its table): it goes
 * round once. A first packet may be a repeated SYN or a later datagram: where a NIC deals without a rule it goes round and comes
 * back before it opens. `hops`: 0 on arrival, 1 at the owner of the lport, then one more for each worker of the round. */
static bool belongs_elsewhere(struct core *k, struct packet *p, const struct snap_address_slot *owned, u32 *to)
{
    if (!k->handoff)
        return false;
    bool answer = owned->kind & FNAT_ADDR_LIP, opens = may_open(p, owned);
    if (answer && !p->hops) {
        struct flow_key key = {packet_src(p), packet_dst(p), p->sport, p->dport, p->proto, p->family};
        if (is_anothers(k, p, owned, &key, to))
            return true;
    }
    if (!answer && !p->hops && p->kind == KIND_FRAGMENT && belongs_to_queue(k, p, to))
        return true;
    if (opens && !is_dealt_anyhow(k, p))
        return false;
    return goes_round(k, p, answer, opens, to);
}

/* The same for an ICMP error about a packet that `answer` would answer. */
static bool error_belongs_elsewhere(struct core *k, struct packet *p, const struct snap_address_slot *owned, const struct flow_key *answer,
                                    u32 *to)
{
    bool from_rs = owned->kind & FNAT_ADDR_LIP;
    if (!k->handoff)
        return false;
    if (from_rs && !p->hops && is_anothers(k, p, owned, answer, to))
        return true;
    return goes_round(k, p, from_rs, false, to);
}

static enum verdict forward_first(struct core *k, struct packet *p, const struct snap_address_slot *owned)
{
    if (unlikely(p->fragment == FRAGMENT_LATER))
        return drop(k, p, DROP_no_conn);
    struct addr16 vip = packet_dst(p);
    const struct snap_service *svc = snapshot_service(k->snap, k->area, &k->secret, vip.b, p->dport, p->proto, p->family);
    u32 index;
    if (!is_opening(p))
        return drop(k, p, DROP_no_conn);
    if (!svc && p->proto == PROTO_UDP && owned->kind == FNAT_ADDR_LIP)
        return drop(k, p, DROP_no_conn);
    enum counter reason = unlikely(k->has_acl) ? admit(k, p->family, packet_src(p).b, svc) : 0;
    if (unlikely(reason))
        return drop(k, p, reason);
    if (!svc)
        return refuse(k, p);
    reason = conn_open(k, p, svc, owned->id, &index);
    conn_settle(k, UNSETTLED);
    if (likely(!reason)) {
        u64 forwarded = k->counters[CNT_to_rs];
        enum verdict verdict =
            likely(!p->fragment && p->kind != KIND_SCTP) ? forward_opener(k, p, index) : forward_slow(k, p, index, TO_RS);
        if (unlikely(k->counters[CNT_to_rs] == forwarded)) /* answered, or it waits */
            k->unsettled[(k->unsettled_to - 1) % BATCH].packet = NULL;
        return verdict;
    }
    if ((reason == DROP_no_rs || reason == DROP_rs_full) && svc->no_rs == FNAT_NO_RS_RESET && p->kind == KIND_TCP)
        return answer_reset(k, p);
    return drop(k, p, reason);
}

static enum verdict forward_stranger(struct core *k, struct packet *p, const struct snap_address_slot *owned)
{
    u32 to;
    if (!belongs_elsewhere(k, p, owned, &to))
        return forward_first(k, p, owned);
    if (unlikely(p->kind == KIND_FRAGMENT))
        pieces_pack(p);
    return hand_off(k, p, to);
}

/* ---- a fragment ---- */

static always_inline u64 hash_of(const struct core *k, const struct packet *p)
{
    if (likely(p->family == 4))
        return hash_flow4(&k->secret, get64(&p->saddr), get32(&p->sport), p->proto);
    return hash_flow6(&k->secret, packet_src6(p), packet_dst6(p), get32(&p->sport), p->proto);
}

/* May a SYN in this direction open the connection anew? RFC 9293 3.6.1 */
static inline bool is_over(const struct conn *c, u32 ref, const struct packet *p)
{
    return unlikely((c->state == TCP_TIME_WAIT || c->state == TCP_CLOSED) && !(ref & 1) && track_is_first(p->tcp_flags));
}

/* Its ports are known. */
static enum verdict forward_piece(struct core *k, struct packet *p, const struct snap_address_slot *owned)
{
    p->hash = hash_of(k, p);
    u32 ref = p->conn = conn_find(k, p);
    if (!ref && p->fragment == FRAGMENT_LATER)
        ref = p->conn = pieces_conn(k, p);
    if (ref && p->fragment == FRAGMENT_FIRST && is_over(&k->conns[ref >> 1], ref, p)) {
        conn_close(k, ref >> 1);
        ref = p->conn = 0;
    }
    if (ref)
        return forward_slow(k, p, ref >> 1, ref & 1);
    enum counter reason = unwelcome_l4(p);
    return reason ? drop(k, p, reason) : forward_stranger(k, p, owned);
}

/* What goes to the same worker in the order of arrival stays in this order: the first fragment, what was held, then what comes. */
static enum verdict forward_fragment(struct core *k, struct packet *p, const struct snap_address_slot *owned)
{
    struct datagram *d;
    if (p->hops & HOPS_LEARNED) {
        pieces_unpack(p);
        return forward_piece(k, p, owned);
    }
    u32 home = pieces_home(k, p);
    if (home != k->index)
        return hand_off(k, p, home);
    enum counter reason = pieces_note(k, p, &d);
    if (reason)
        return drop(k, p, reason);
    if (!d->known)
        return pieces_hold(k, p, d);
    pieces_tell(p, d);
    enum verdict verdict = forward_piece(k, p, owned);
    for (struct packet *held; (held = pieces_release(k, d));)
        held->verdict = (u8)forward_piece(k, held, owned);
    return verdict;
}

/* An ICMP error: about a packet that left here for a connection, it goes on to who sent that. It neither ends nor refreshes the
 * connection: anybody on the way may send it (RFC 5927). */
rare static enum verdict forward_error(struct core *k, struct packet *p, const struct snap_address_slot *mine)
{
    struct icmp_quote quote;
    u32 to;
    if (!icmp_checksum_right(p))
        return drop(k, p, DROP_icmp_checksum);
    enum counter reason = icmp_read(p, &quote);
    if (reason)
        return drop(k, p, reason);
    u32 ref = conn_find_key(k, &quote.answer);
    if (!ref)
        return error_belongs_elsewhere(k, p, mine, &quote.answer, &to) ? hand_off(k, p, to) : drop(k, p, DROP_icmp_no_conn);
    const struct conn *c = &k->conns[ref >> 1];
    enum direction dir = ref & 1;
    u16 mtu = k->link_mtu[neigh_word_link(neigh_load(&k->neigh, c->next_hop[dir]))];
    if (hops_left(p, p->family) <= 1)
        return drop(k, p, DROP_ttl);
    if (!c->next_hop[dir])
        return drop(k, p, DROP_no_route);
    if (!mtu)
        return drop(k, p, DROP_port_down);
    reason = icmp_translate(k, p, c, dir, &quote, mtu);
    if (reason)
        return drop(k, p, reason);
    if (!answer_link(k, p, c->next_hop[dir])) {
        enum verdict verdict = resolve_wait(k, p, c->next_hop[dir], dir);
        k->counters[CNT_icmp_errors_to_rs + dir] += verdict == VERDICT_HELD;
        return verdict;
    }
    k->neigh.entries[c->next_hop[dir]].used = 1;
    k->counters[CNT_icmp_errors_to_rs + dir]++;
    k->counters[CNT_to_rs + dir]++;
    return VERDICT_TX;
}

/* Echo requests are answered as they come, in whole or in fragments. */
static enum verdict forward_icmp(struct core *k, struct packet *p, const struct snap_address_slot *mine)
{
    if (p->fragment == FRAGMENT_LATER)
        return answer_echo(k, p, mine);
    if (p->kind == KIND_FRAGMENT && p->l3 + p->l3_len < p->l4 + sizeof(struct icmp_header))
        return drop(k, p, DROP_fragment_tiny);
    u8 type = p->data[p->l4];
    if (type == (p->family == 4 ? ICMP_ECHO : ICMP6_ECHO))
        return answer_echo(k, p, mine);
    return p->kind == KIND_ICMP && icmp_is_error(p->family, type) ? forward_error(k, p, mine) : drop(k, p, DROP_icmp);
}

__attribute__((noinline)) static enum verdict forward_unknown(struct core *k, struct packet *p)
{
    struct addr16 dst = packet_dst(p);
    const struct snap_address_slot *mine = owned(k, p->family, dst.b);
    if (!mine || is_hosts(k, p->family, dst.b))
        return pass(k, p, DROP_not_ours);
    enum counter reason = unwelcome(k, p);
    if (unlikely(reason))
        return drop(k, p, reason);
    switch (p->kind) {
    case KIND_TCP:
    case KIND_UDP:
    case KIND_SCTP:
        return forward_stranger(k, p, mine);
    case KIND_ICMP:
        return forward_icmp(k, p, mine);
    case KIND_FRAGMENT:
        if (pieces_icmp(p))
            return forward_icmp(k, p, mine);
        if (p->family == 4 && p->proto != PROTO_TCP && p->proto != PROTO_UDP)
            return drop(k, p, DROP_protocol);
        return forward_fragment(k, p, mine);
    default:
        return drop(k, p, DROP_protocol);
    }
}

/* ---- one packet, then a batch ---- */

static always_inline bool is_candidate(const struct core *k, u32 ref, const struct packet *p, bool four)
{
    const struct conn *c = &k->conns[ref >> 1];
    if (four)
        return conn_is4(c, ref & 1, p);
    return conn_is(k, c, ref & 1, 6, p->proto, get32(&p->sport), packet_src6(p), packet_dst6(p));
}

/* The first candidate was another's, or an earlier packet of the batch changed the table. */
__attribute__((noinline)) static u32 find_again(const struct core *k, const struct packet *p) { return conn_find(k, p); }

/* four: an IPv4 packet; a connection of its own may still have IPv6 on the other side. */
static always_inline enum verdict forward_flow(struct core *k, struct packet *p, struct stage_clock *clock, bool four)
{
    u32 ref = p->conn;
    if (unlikely(!ref || !is_candidate(k, ref, p, four)))
        ref = find_again(k, p);
    p->conn = ref;
    if (unlikely(!ref))
        return forward_unknown(k, p);
    u32 index = ref >> 1;
    if (is_over(&k->conns[index], ref, p)) {
        conn_close(k, index);
        p->conn = 0;
        return forward_unknown(k, p);
    }
    if (unlikely(p->fragment))
        return forward_slow(k, p, index, ref & 1);
    return forward_hit(k, p, index, ref & 1, clock, four);
}

/* An association that is over gives way to a new one from the same port (RFC 9260 8.4, 5.2.4). */
rare static enum verdict forward_sctp(struct core *k, struct packet *p)
{
    p->hash = hash_of(k, p);
    u32 ref = p->conn = conn_find(k, p);
    if (ref && k->conns[ref >> 1].state == SCTP_CLOSED && !(ref & 1) && p->tcp_flags == PACKET_OPENS_SCTP) {
        conn_close(k, ref >> 1);
        ref = p->conn = 0;
    }
    return ref ? forward_slow(k, p, ref >> 1, ref & 1) : forward_unknown(k, p);
}

__attribute__((noinline)) static enum verdict forward_flow6(struct core *k, struct packet *p, struct stage_clock *clock)
{
    return forward_flow(k, p, clock, false);
}

static always_inline enum verdict forward_one(struct core *k, struct packet *p, struct stage_clock *clock)
{
    switch (p->kind) {
    case KIND_TCP:
    case KIND_UDP:
        return likely(p->family == 4) ? forward_flow(k, p, clock, true) : forward_flow6(k, p, clock);
    case KIND_SCTP:
        return forward_sctp(k, p);
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
    case KIND_ICMP:
        if (answer_is_nd(p))
            return answer_nd(k, p);
        return forward_unknown(k, p);
    default:
        return forward_unknown(k, p);
    }
}

/* Passes over the batch. Whatever waits for memory waits in a short loop of its own, where a processor has dozens of loads under way;
 * the long code of the last pass then finds everything near. */
static always_inline void forward_passes(struct core *k, struct packet *pkts, u32 n, struct stage_clock *clock)
{
    u8 elsewhere[BATCH];
    u32 n_elsewhere = 0;
    for (u32 i = 0; i < n; i++)
        prefetch(pkts[i].data);
    for (u32 i = 0; i < n; i++)
        parse_packet(&pkts[i]);
    stage_mark(clock, STAGE_PARSE);
    for (u32 i = 0; i < n; i++) {
        struct packet *p = &pkts[i];
        if (unlikely(p->kind != KIND_TCP && p->kind != KIND_UDP))
            continue;
        p->hash = hash_of(k, p);
        prefetch(first_bucket(k, p));
    }
    stage_mark(clock, STAGE_HASH);
    for (u32 i = 0; i < n; i++) {
        struct packet *p = &pkts[i];
        if (unlikely(p->kind != KIND_TCP && p->kind != KIND_UDP))
            continue;
        const struct bucket *b = first_bucket(k, p);
        p->conn = candidate_in(b, p);
        if (unlikely(!p->conn && b->spill)) {
            elsewhere[n_elsewhere++] = (u8)i;
            prefetch(second_bucket(k, p));
        }
        fetch_conn(k, p);
    }
    for (u32 i = 0; i < n_elsewhere; i++) {
        struct packet *p = &pkts[elsewhere[i]];
        p->conn = candidate_in(second_bucket(k, p), p);
        fetch_conn(k, p);
    }
    if (unlikely(k->has_acl))
        admit_fetch(k, pkts, n);
    stage_mark(clock, STAGE_FIND);
    for (u32 i = 0; i < n; i++) {
        if (i + HEADERS_AHEAD < n)
            fetch_headers(&pkts[i + HEADERS_AHEAD]);
        if (i + MEMBERS_AHEAD < n)
            prefetch_write(&k->members[k->conns[pkts[i + MEMBERS_AHEAD].conn >> 1].member]);
        pkts[i].verdict = (u8)forward_one(k, &pkts[i], clock);
    }
    conn_settle(k, 0);
}

void forward_batch(struct core *k, struct packet *pkts, u32 n) { forward_passes(k, pkts, n, NULL); }
void forward_batch_timed(struct core *k, struct packet *pkts, u32 n, struct stage_clock *clock) { forward_passes(k, pkts, n, clock); }
