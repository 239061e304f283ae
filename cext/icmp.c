/* icmp.c: see icmp.h. Rare packets: checksums are computed whole, not by their change.
 * Left out: objects behind the quote (RFC 4884) do not cross the families, they are cut off; timestamps and SACK blocks of a quoted segment stay as
 * the quoted packet had them, since nobody reads them there. */
#include "icmp.h"

#include "csum.h"

static u16 l3_size(u8 family) { return family == 4 ? sizeof(struct ip4_header) : sizeof(struct ip6_header); }

static u16 message_len(const struct packet *p) { return (u16)(p->l3 + p->l3_len - p->l4); }

static u64 message_sum(const struct packet *p)
{
    u16 len = message_len(p);
    u64 pseudo = p->family == 6 ? csum_pseudo6(packet_src6(p), PROTO_ICMP6, len) : 0;
    return pseudo + csum_partial(p->data + p->l4, len);
}

bool icmp_checksum_right(const struct packet *p) { return csum_fold(message_sum(p)) == 0xffff; }

static void put_checksum(const struct packet *p)
{
    struct icmp_header *icmp = (struct icmp_header *)(p->data + p->l4);
    icmp->csum = 0;
    icmp->csum = (u16)~csum_fold(message_sum(p));
}

/* ---- reading ---- */

/* Bytes of the quoted packet when objects follow it, 0 when none do: RFC 4884 5.1 to 5.3, the length counts words of 4 bytes, over IPv6 of 8. */
static u32 quote_len(u8 family, const struct icmp_header *icmp)
{
    u32 rest = be32(icmp->rest);
    if (family == 4)
        return (rest >> 16 & 0xff) * 4;
    return icmp->type == ICMP6_UNREACHABLE || icmp->type == ICMP6_TIME_EXCEEDED ? (rest >> 24) * 8 : 0;
}

/* The L4 protocol behind an IPv6 header that is perhaps cut short; *at moves there. 0: out of sight, or a later fragment. */
static u8 skip_extensions(const u8 *data, u32 *at, u32 end, u16 *named)
{
    u8 next = ((const struct ip6_header *)(data + *at))->next;
    *named = (u16)(*at + offsetof(struct ip6_header, next));
    *at += sizeof(struct ip6_header);
    while (next == IP6_HOP_BY_HOP || next == IP6_ROUTING || next == IP6_FRAGMENT || next == IP6_DESTINATION) {
        const struct ip6_routing *ext = (const struct ip6_routing *)(data + *at);
        if (*at + 8 > end)
            return 0;
        if (next == IP6_FRAGMENT && be16(((const struct ip6_fragment *)ext)->frag) & IP6_OFFSET)
            return 0;
        *named = (u16)*at;
        *at += next == IP6_FRAGMENT ? 8 : (ext->len + 1) * 8u;
        next = ext->next;
    }
    return next;
}

/* What tells the RS the client's address (clientaddr.h) is not of the datagram that the client sent. It stands before the UDP header. */
static bool skip_uoa(const u8 *data, struct icmp_quote *q, u32 *at)
{
    if (*at + 4 > q->end)
        return false;
    u32 size = be16(get16(data + *at + 2));
    if (data[*at + 1] != PROTO_UDP || (size != 12 && size != 24))
        return false;
    q->uoa = (u16)*at;
    q->uoa_len = (u16)size;
    q->answer.proto = PROTO_UDP;
    *at += size;
    return true;
}

static enum counter read_addresses(const struct packet *p, struct icmp_quote *q)
{
    const u8 *data = p->data + q->l3;
    u32 size = l3_size(p->family), at = p->family == 4 ? offsetof(struct ip4_header, src) : offsetof(struct ip6_header, src),
        len = p->family == 4 ? 4 : 16;
    if (q->l3 + size > q->end || data[0] >> 4 != p->family)
        return DROP_icmp_quote;
    struct addr16 src = addr16_of(p->family, data + at), own = packet_dst(p);
    if (memcmp(src.b, own.b, sizeof own.b))
        return DROP_icmp_quote;
    q->answer = (struct flow_key){.src = addr16_of(p->family, data + at + len), .dst = src, .family = p->family};
    return 0;
}

enum counter icmp_read(const struct packet *p, struct icmp_quote *q)
{
    const u8 *data = p->data;
    const struct icmp_header *icmp = (const struct icmp_header *)(data + p->l4);
    u32 given = quote_len(p->family, icmp), room = message_len(p) - (u32)sizeof *icmp;
    q->l3 = (u16)(p->l4 + sizeof *icmp);
    q->uoa_len = 0;
    q->end = (u16)(q->l3 + (given && given < room ? given : room));
    enum counter reason = read_addresses(p, q);
    if (reason)
        return reason;
    u32 at = q->l3, whole;
    if (p->family == 4) {
        const struct ip4_header *ip = (const struct ip4_header *)(data + at);
        u32 header = (ip->version_ihl & 15) * 4u;
        whole = be16(ip->total_len);
        if (header < sizeof *ip || whole < header)
            return DROP_icmp_quote;
        if (be16(ip->frag) & IP4_OFFSET)
            return DROP_icmp_no_conn; /* no ports */
        at += header;
        q->answer.proto = ip->proto;
        q->next = (u16)(q->l3 + offsetof(struct ip4_header, proto));
    } else {
        whole = sizeof(struct ip6_header) + be16(((const struct ip6_header *)(data + at))->payload_len);
        q->answer.proto = skip_extensions(data, &at, q->end, &q->next);
    }
    q->end = (u16)min_u32(q->end, q->l3 + whole); /* what is behind it was padding */
    if (q->answer.proto == PROTO_UOA && !skip_uoa(data, q, &at))
        return at + 4 > q->end ? DROP_icmp_quote : DROP_icmp_no_conn;
    if (q->answer.proto != PROTO_TCP && q->answer.proto != PROTO_UDP)
        return DROP_icmp_no_conn;
    if (at + 8 > q->end)
        return DROP_icmp_quote; /* RFC 792 and RFC 4443 both promise more */
    q->l4 = (u16)at;
    memcpy(&q->answer.dport, data + at, 2);
    memcpy(&q->answer.sport, data + at + 2, 2);
    return 0;
}

/* ---- what the other family calls it ---- */

struct meaning {
    u8 type, code;
    u32 rest; /* host order */
};
enum { NOTHING = 0xff };

/* Where a field of one header is in the other: RFC 7915, figures 3 and 6. */
static u8 pointer_4_to_6(u32 at)
{
    static const u8 fields[20] = {0, 1, 4, 4, NOTHING, NOTHING, NOTHING, NOTHING, 7, 6, NOTHING, NOTHING, 8, 8, 8, 8, 24, 24, 24, 24};
    return at < sizeof fields ? fields[at] : NOTHING;
}

static u8 pointer_6_to_4(u32 at)
{
    static const u8 fields[8] = {0, 1, NOTHING, NOTHING, 2, 2, 9, 8};
    if (at < sizeof fields)
        return fields[at];
    return at < 24 ? 12 : at < 40 ? 16 : NOTHING;
}

/* RFC 1191 5: a router that gives no MTU means the next lower one of these. */
static u32 plateau_below(u32 len)
{
    static const u16 plateaus[] = {65535, 32000, 17914, 8166, 4352, 2002, 1492, 1006, 508, 296, 68};
    for (u32 i = 0; i < sizeof plateaus / sizeof *plateaus; i++)
        if (plateaus[i] < len)
            return plateaus[i];
    return 68;
}

enum { HEADERS_DIFFER = sizeof(struct ip6_header) - sizeof(struct ip4_header) };

/* RFC 7915 4.2. quoted: bytes of the packet that the error is about. */
static bool to_6(struct meaning *m, u32 quoted)
{
    static const u8 unreachable[ICMP_UNREACHABLE_CODES] = {
        [0] = ICMP6_NO_ROUTE,  [1] = ICMP6_NO_ROUTE,    [ICMP_PORT_UNREACHABLE] = ICMP6_PORT_UNREACHABLE,
        [5] = ICMP6_NO_ROUTE,  [6] = ICMP6_NO_ROUTE,    [7] = ICMP6_NO_ROUTE,
        [8] = ICMP6_NO_ROUTE,  [9] = ICMP6_PROHIBITED,  [10] = ICMP6_PROHIBITED,
        [11] = ICMP6_NO_ROUTE, [12] = ICMP6_NO_ROUTE,   [13] = ICMP6_PROHIBITED,
        [14] = NOTHING,        [15] = ICMP6_PROHIBITED,
    };
    u32 mtu = m->rest & 0xffff, at;
    switch (m->type) {
    case ICMP_UNREACHABLE:
        if (m->code == ICMP_FRAG_NEEDED) {
            mtu = (mtu ? mtu : plateau_below(quoted)) + HEADERS_DIFFER;
            *m = (struct meaning){ICMP6_TOO_BIG, 0, max_u32(mtu, IP6_MIN_MTU)};
        } else if (m->code == ICMP_PROTOCOL_UNREACHABLE)
            *m = (struct meaning){ICMP6_PARAMETER, ICMP6_UNKNOWN_NEXT_HEADER, offsetof(struct ip6_header, next)};
        else if (m->code < ICMP_UNREACHABLE_CODES && unreachable[m->code] != NOTHING)
            *m = (struct meaning){ICMP6_UNREACHABLE, unreachable[m->code], 0};
        else
            return false;
        return true;
    case ICMP_TIME_EXCEEDED:
        *m = (struct meaning){ICMP6_TIME_EXCEEDED, m->code, 0};
        return true;
    default: /* ICMP_PARAMETER; code 1, a missing option, has no counterpart */
        at = pointer_4_to_6(m->rest >> 24);
        if ((m->code && m->code != 2) || at == NOTHING)
            return false;
        *m = (struct meaning){ICMP6_PARAMETER, ICMP6_ERRONEOUS_FIELD, at};
        return true;
    }
}

/* RFC 7915 5.2. */
static bool to_4(struct meaning *m)
{
    static const u8 unreachable[] = {
        [ICMP6_NO_ROUTE] = ICMP_HOST_UNREACHABLE,         [ICMP6_PROHIBITED] = ICMP_HOST_PROHIBITED,
        [ICMP6_BEYOND_SCOPE] = ICMP_HOST_UNREACHABLE,     [ICMP6_ADDRESS_UNREACHABLE] = ICMP_HOST_UNREACHABLE,
        [ICMP6_PORT_UNREACHABLE] = ICMP_PORT_UNREACHABLE,
    };
    u32 at;
    switch (m->type) {
    case ICMP6_UNREACHABLE:
        if (m->code >= sizeof unreachable)
            return false;
        *m = (struct meaning){ICMP_UNREACHABLE, unreachable[m->code], 0};
        return true;
    case ICMP6_TOO_BIG:
        at = max_u32(m->rest, IP6_MIN_MTU) - HEADERS_DIFFER;
        *m = (struct meaning){ICMP_UNREACHABLE, ICMP_FRAG_NEEDED, min_u32(at, 65535)};
        return true;
    case ICMP6_TIME_EXCEEDED:
        *m = (struct meaning){ICMP_TIME_EXCEEDED, m->code, 0};
        return true;
    default:
        at = pointer_6_to_4(m->rest);
        if (m->code == ICMP6_UNKNOWN_NEXT_HEADER)
            *m = (struct meaning){ICMP_UNREACHABLE, ICMP_PROTOCOL_UNREACHABLE, 0};
        else if (m->code == ICMP6_ERRONEOUS_FIELD && at != NOTHING)
            *m = (struct meaning){ICMP_PARAMETER, 0, at << 24};
        else
            return false;
        return true;
    }
}

/* ---- the quoted segment or datagram ---- */

static u64 put_number(u8 *at, u32 number)
{
    u32 from = get32(at), to = be32(number);
    put32(at, to);
    return csum_delta32(from, to);
}

/* What the sender of the quoted packet sent; its checksum, when it is quoted, is as right as it was. */
static void restore_l4(const struct conn *c, enum direction dir, u8 *l4, u32 len)
{
    u64 delta = c->delta_l4 ^ (u16)-dir;
    put32(l4, get32(dir == TO_CLIENT ? &c->cport : &c->rport));
    if (c->proto == PROTO_UDP) {
        struct udp_header *udp = (struct udp_header *)l4;
        if (udp->csum) {
            u16 csum = csum_apply(udp->csum, delta);
            udp->csum = csum ? csum : 0xffff;
        }
        return;
    }
    struct tcp_header *tcp = (struct tcp_header *)l4;
    u32 seq = be32(get32(&tcp->seq)) - c->dseq;
    if (dir == TO_CLIENT)
        delta += put_number((u8 *)&tcp->seq, conn_inserts(c) ? conn_client_number(c, seq) : seq);
    if (len < offsetof(struct tcp_header, urgent))
        return;
    u32 ack = be32(get32(&tcp->ack));
    if (dir == TO_RS && tcp->flags & TCP_ACK)
        delta += put_number((u8 *)&tcp->ack, (conn_inserts(c) ? conn_rs_number(c, ack) : ack) + c->dseq);
    tcp->csum = csum_apply(tcp->csum, delta);
}

/* ---- headers ---- */

/* What a new IP header takes over from the old one. */
struct kept {
    u8 class, hops;
    u16 payload; /* bytes behind header and extension headers */
};

static struct kept keep(u8 family, const u8 *l3, u32 l4)
{
    if (family == 4) {
        const struct ip4_header *ip = (const struct ip4_header *)l3;
        return (struct kept){ip->tos, ip->ttl, (u16)(be16(ip->total_len) - l4)};
    }
    const struct ip6_header *ip = (const struct ip6_header *)l3;
    return (struct kept){(u8)(be32(ip->version_class_flow) >> 20), ip->hop_limit, (u16)(be16(ip->payload_len) + sizeof *ip - l4)};
}

static void put_header(u8 family, u8 *l3, struct kept kept, u8 proto, const u8 *src, const u8 *dst)
{
    if (family == 4) {
        struct ip4_header *ip = (struct ip4_header *)l3;
        *ip = (struct ip4_header){.version_ihl = 0x45,
                                  .tos = kept.class,
                                  .total_len = be16((u16)(kept.payload + sizeof *ip)),
                                  .frag = be16(IP4_DF),
                                  .ttl = kept.hops,
                                  .proto = proto,
                                  .src = get32(src),
                                  .dst = get32(dst)};
        ip->csum = csum_ip4(ip, sizeof *ip);
        return;
    }
    struct ip6_header *ip = (struct ip6_header *)l3;
    *ip = (struct ip6_header){.version_class_flow = be32(6u << 28 | (u32)kept.class << 20),
                              .payload_len = be16(kept.payload),
                              .next = proto,
                              .hop_limit = kept.hops};
    memcpy(ip->src, src, 16);
    memcpy(ip->dst, dst, 16);
}

/* New addresses in a header that stays; an IPv4 checksum is as right as it was. */
static void put_addresses(u8 family, u8 *l3, const u8 *src, const u8 *dst)
{
    if (family == 6) {
        struct ip6_header *ip = (struct ip6_header *)l3;
        memcpy(ip->src, src, 16);
        memcpy(ip->dst, dst, 16);
        return;
    }
    struct ip4_header *ip = (struct ip4_header *)l3;
    ip->csum = csum_apply(ip->csum, csum_delta32(ip->src, get32(src)) + csum_delta32(ip->dst, get32(dst)));
    ip->src = get32(src);
    ip->dst = get32(dst);
}

struct ends {
    struct addr16 near, far; /* the balancer's address towards the receiver, the receiver */
};

/* The quoted L4 header stays where it lies; both IP headers are made anew before it. */
static void cross(struct packet *p, struct ends e, const struct icmp_quote *q, u8 proto, struct meaning m, u32 most)
{
    u8 from = p->family, to = from == 4 ? 6 : 4;
    struct kept outer = keep(from, p->data + p->l3, p->l4 - p->l3), inner = keep(from, p->data + q->l3, q->l4 - q->l3);
    u16 l3 = l3_size(to), headers = (u16)(2 * l3 + sizeof(struct icmp_header));
    u16 quoted = (u16)min_u32(q->end - q->l4, most - headers);
    outer.hops--;
    outer.payload = (u16)(sizeof(struct icmp_header) + l3 + quoted);
    p->data += (int)q->l4 - (ETH_HEADER + headers);
    put16(p->data + 12, be16(to == 4 ? ETH_TYPE_IP4 : ETH_TYPE_IP6));
    u8 *at = p->data + ETH_HEADER;
    put_header(to, at, outer, to == 4 ? PROTO_ICMP : PROTO_ICMP6, e.near.b, e.far.b);
    *(struct icmp_header *)(at + l3) = (struct icmp_header){.type = m.type, .code = m.code, .rest = be32(m.rest)};
    put_header(to, at + l3 + sizeof(struct icmp_header), inner, proto, e.far.b, e.near.b);
    p->family = to;
    p->l4 = (u8)(ETH_HEADER + l3);
    p->l3_len = (u16)(headers + quoted);
}

static void put_len(struct packet *p, u16 most)
{
    if (p->family == 4)
        ((struct ip4_header *)(p->data + p->l3))->total_len = be16(most);
    else
        ((struct ip6_header *)(p->data + p->l3))->payload_len = be16((u16)(most - sizeof(struct ip6_header)));
    p->l3_len = most;
}

static void cut(struct packet *p, u16 most)
{
    struct icmp_header *icmp = (struct icmp_header *)(p->data + p->l4);
    if (quote_len(p->family, icmp))
        icmp->rest &= be32(p->family == 4 ? 0xff00ffff : 0x00ffffff);
    put_len(p, most);
}

/* The quote without the header of protocol 248, and without objects behind it: they would lie elsewhere. */
static void cut_uoa(struct packet *p, struct icmp_quote *q)
{
    u16 n = q->uoa_len, from;
    u8 *l3 = p->data + q->l3;
    cut(p, (u16)(q->end - p->l3));
    p->data[q->next] = PROTO_UDP;
    if (p->family == 4) {
        struct ip4_header *ip = (struct ip4_header *)l3;
        from = ip->total_len;
        ip->total_len = be16((u16)(be16(from) - n));
        ip->csum = csum_apply(ip->csum, csum_delta16(from, ip->total_len) + csum_delta16(be16(PROTO_UOA), be16(PROTO_UDP)));
    } else {
        struct ip6_header *ip = (struct ip6_header *)l3;
        ip->payload_len = be16((u16)(be16(ip->payload_len) - n));
    }
    memmove(p->data + n, p->data, q->uoa);
    p->data += n;
    q->l4 = (u16)(q->l4 - n);
    q->end = (u16)(q->end - n);
    put_len(p, (u16)(q->end - p->l3));
}

static void stay(struct packet *p, struct ends e, const struct icmp_quote *q, u16 most)
{
    u8 *l3 = p->data + p->l3;
    if (p->l3_len > most)
        cut(p, most);
    put_addresses(p->family, l3, e.near.b, e.far.b);
    put_addresses(p->family, p->data + q->l3, e.far.b, e.near.b);
    if (p->family == 6) {
        ((struct ip6_header *)l3)->hop_limit--;
        return;
    }
    struct ip4_header *ip = (struct ip4_header *)l3;
    ip->ttl--;
    ip->csum = 0;
    ip->csum = csum_ip4(ip, p->l4 - p->l3);
}

/* The client's segments are to grow by TOA until the RS has its socket: without room for it a link that told its MTU would never get them. */
static void leave_room_for_toa(const struct packet *p, const struct conn *c)
{
    struct icmp_header *icmp = (struct icmp_header *)(p->data + p->l4);
    u32 rest = be32(icmp->rest), by = conn_family(c, TO_RS) == 4 ? 8 : 20, least = p->family == 4 ? 68 : IP6_MIN_MTU;
    bool tells = p->family == 6 ? icmp->type == ICMP6_TOO_BIG : icmp->type == ICMP_UNREACHABLE && icmp->code == ICMP_FRAG_NEEDED;
    if (!tells || !(c->flags & CONN_MARKED) || (c->marks & MARK_MODE) != FNAT_CLIENT_ADDR_TOA)
        return;
    u32 mtu = p->family == 4 ? rest & 0xffff : rest;
    if (mtu > least)
        icmp->rest = be32(rest - mtu + max_u32(mtu - min_u32(by, mtu), least));
}

enum counter icmp_translate(const struct core *k, struct packet *p, const struct conn *c, enum direction dir, struct icmp_quote *q, u16 mtu)
{
    struct ends e = dir == TO_CLIENT ? (struct ends){conn_vip(k, c), conn_cip(c)} : (struct ends){conn_lip(k, c), conn_rip(c)};
    u8 to = conn_family(c, !dir);
    if (q->uoa_len)
        cut_uoa(p, q);
    if (dir == TO_CLIENT)
        leave_room_for_toa(p, c);
    const struct icmp_header *icmp = (const struct icmp_header *)(p->data + p->l4);
    u8 *l4 = p->data + q->l4;
    u32 before = to == p->family ? q->l4 - (u32)p->l3 : 2u * l3_size(to) + (u32)sizeof *icmp; /* what is quoted of L4 */
    if (before + 8 > mtu)
        return DROP_mtu;
    if (to == p->family)
        stay(p, e, q, mtu);
    else {
        struct meaning m = {icmp->type, icmp->code, be32(icmp->rest)};
        if (!(to == 6 ? to_6(&m, be16(((const struct ip4_header *)(p->data + q->l3))->total_len)) : to_4(&m)))
            return DROP_icmp;
        cross(p, e, q, c->proto, m, min_u32(mtu, to == 6 ? IP6_MIN_MTU : 576)); /* RFC 4443 2.4 (c), RFC 1812 4.3.2.3 */
    }
    p->len = (u16)(p->l3 + p->l3_len);
    restore_l4(c, dir, l4, min_u32(q->end - q->l4, (u32)(p->data + p->len - l4)));
    put_checksum(p);
    return 0;
}
