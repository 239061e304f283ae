/* rewrite.c: the parts of a rewrite that only TCP or rare packets need. */
#include "rewrite.h"

/* Change a 32-bit number at any offset of the segment; returns the checksum delta (bytes swapped at odd offsets, RFC 1071 2B). */
static u64 shift32(u8 *at, bool odd, u32 by)
{
    u64 delta = rewrite_shift32(at, by);
    return odd ? be16(csum_fold(delta)) : delta;
}

static u64 shift_sack(u8 *option, bool odd, u8 len, u32 by)
{
    u64 delta = 0;
    for (u8 at = 2; at + 4 <= len; at += 4)
        delta += shift32(option + at, odd, by);
    return delta;
}

/* RFC 7323 timestamps and RFC 2018 SACK blocks. Malformed options are left as they are: the receiver judges them. */
u64 rewrite_options(const struct conn *c, enum direction dir, struct tcp_header *tcp)
{
    u8 *options = (u8 *)(tcp + 1);
    u32 len = (tcp->offset >> 4) * 4u - (u32)sizeof *tcp;
    u64 delta = 0;
    for (u32 at = 0; at < len;) {
        u8 kind = options[at];
        if (kind == TCP_OPT_END)
            break;
        if (kind == TCP_OPT_NOP) {
            at++;
            continue;
        }
        if (at + 2 > len || options[at + 1] < 2 || at + options[at + 1] > len)
            break;
        u8 size = options[at + 1];
        bool odd = at & 1; /* numbers start two bytes on: same parity */
        if (kind == TCP_OPT_TS && size == 10 && c->flags & CONN_SHIFT_TS) {
            if (dir == TO_RS)
                delta += shift32(options + at + 2, odd, c->dts);
            else if (tcp->flags & TCP_ACK)
                delta += shift32(options + at + 6, odd, 0u - c->dts);
        } else if (kind == TCP_OPT_SACK && size % 8 == 2 && dir == TO_CLIENT)
            delta += shift_sack(options + at, odd, size, 0u - c->dseq);
        at += size;
    }
    return delta;
}

void rewrite_complete_checksum(struct packet *p)
{
    const u8 *l3 = p->data + p->l3;
    u8 *l4 = p->data + p->l4;
    u16 *field = rewrite_checksum_field(p);
    put16(field, 0);
    u64 pseudo =
        l3[0] >> 4 == 4 ? csum_pseudo4(get32(l3 + 12), get32(l3 + 16), p->proto, p->l4_len) : csum_pseudo6(l3 + 8, p->proto, p->l4_len);
    u16 sum = csum_fold(pseudo + csum_partial(l4, p->l4_len));
    put16(field, sum == 0xffff && p->proto == PROTO_UDP ? 0xffff : (u16)~sum);
}

/* ---- IPv6 on either side ---- */

/* RFC 7915 5.1: extension headers end here. A packet that could not be fragmented before stays so where it could matter. */
static void header_6_to_4(struct core *k, struct packet *p, struct ends e)
{
    struct ip6_header from;
    memcpy(&from, p->data + p->l3, sizeof from);
    u16 total = (u16)(p->l3_len - (p->l4 - p->l3) + sizeof(struct ip4_header));
    u32 ahead = p->l4 - (u32)(ETH_HEADER + sizeof(struct ip4_header));
    struct ip4_header *ip = (struct ip4_header *)(p->data + p->l4) - 1;
    bool fixed = total > IP6_MIN_MTU - 20;
    *ip = (struct ip4_header){.version_ihl = 0x45,
                              .tos = (u8)(be32(from.version_class_flow) >> 20),
                              .total_len = be16(total),
                              .id = fixed ? 0 : be16((u16)frag_next_id(&k->frags, rewrite_pair(k, 4, e.src, e.dst), 16)),
                              .frag = fixed ? be16(IP4_DF) : 0,
                              .ttl = (u8)(from.hop_limit - 1),
                              .proto = p->proto};
    memcpy(&ip->src, e.src, 4);
    memcpy(&ip->dst, e.dst, 4);
    ip->csum = csum_ip4(ip, sizeof *ip);
    p->data += ahead;
    put16(p->data + 12, be16(ETH_TYPE_IP4));
    p->len = (u16)(ETH_HEADER + total);
    p->l3_len = total;
    p->l4 = ETH_HEADER + sizeof *ip;
}

/* RFC 7915 4.1: IPv4 options end here. `fragment`: room for a fragment header is left behind the IPv6 header. */
static void header_4_to_6(struct packet *p, struct ends e, bool fragment)
{
    u16 extra = fragment ? sizeof(struct ip6_fragment) : 0;
    struct ip4_header from;
    memcpy(&from, p->data + p->l3, sizeof from);
    u16 payload = (u16)(p->l3_len - (p->l4 - p->l3) + extra);
    p->data += (int)p->l4 - (int)(ETH_HEADER + sizeof(struct ip6_header) + extra);
    put16(p->data + 12, be16(ETH_TYPE_IP6));
    struct ip6_header *ip = (struct ip6_header *)(p->data + p->l3);
    *ip = (struct ip6_header){.version_class_flow = be32(6u << 28 | (u32)from.tos << 20),
                              .payload_len = be16(payload),
                              .next = fragment ? IP6_FRAGMENT : p->proto,
                              .hop_limit = (u8)(from.ttl - 1)};
    memcpy(ip->src, e.src, 16);
    memcpy(ip->dst, e.dst, 16);
    p->l3_len = (u16)(sizeof *ip + payload);
    p->len = (u16)(ETH_HEADER + p->l3_len);
    p->l4 = (u8)(ETH_HEADER + sizeof *ip + extra);
}

static void pad(struct packet *p)
{
    if (p->len >= ETH_MIN_FRAME)
        return;
    memset(p->data + p->len, 0, ETH_MIN_FRAME - p->len);
    p->len = ETH_MIN_FRAME;
}

u64 rewrite_clamp_mss(struct tcp_header *tcp, u16 most)
{
    u8 *options = (u8 *)(tcp + 1);
    u32 len = (tcp->offset >> 4) * 4u - (u32)sizeof *tcp;
    for (u32 at = 0; at < len && options[at] != TCP_OPT_END;) {
        if (options[at] == TCP_OPT_NOP) {
            at++;
            continue;
        }
        if (at + 2 > len || options[at + 1] < 2 || at + options[at + 1] > len)
            return 0;
        u16 mss = options[at + 1] == 4 ? get16(options + at + 2) : 0;
        if (options[at] == TCP_OPT_MSS && be16(mss) > most) {
            put16(options + at + 2, be16(most));
            u16 delta = csum_fold(csum_delta16(mss, be16(most)));
            return at & 1 ? be16(delta) : delta; /* RFC 1071 2B */
        }
        at += options[at + 1];
    }
    return 0;
}

/* What a segment towards either side may carry so that it fits this port after translation. */
static u16 mss_limit(const struct core *k, const struct conn *c)
{
    u32 most = 65535;
    for (u32 dir = TO_RS; dir <= TO_CLIENT; dir++) {
        u32 mtu = k->link_mtu[neigh_word_link(neigh_load(&k->neigh, c->next_hop[dir]))];
        u32 headers = sizeof(struct tcp_header) + (conn_family(c, !dir) == 4 ? sizeof(struct ip4_header) : sizeof(struct ip6_header));
        if (mtu > headers)
            most = min_u32(most, mtu - headers);
    }
    return (u16)most;
}

static void clamp(const struct core *k, struct packet *p, const struct conn *c)
{
    if (p->proto != PROTO_TCP || !(p->tcp_flags & TCP_SYN))
        return;
    u16 *csum_field = rewrite_checksum_field(p);
    u64 delta = rewrite_clamp_mss((struct tcp_header *)(p->data + p->l4), mss_limit(k, c));
    put16(csum_field, csum_apply(get16(csum_field), delta));
}

void rewrite_crossing(struct core *k, struct packet *p, const struct conn *c, enum direction dir)
{
    u16 *csum_field = rewrite_checksum_field(p), csum = get16(csum_field);
    bool from6 = p->family == 6, partial = rewrite_is_partial_wide(p, c, dir, csum);
    struct ends e = rewrite_ends(k, c, dir);
    if (from6)
        header_6_to_4(k, p, e);
    else
        header_4_to_6(p, e, false);
    u8 *l4 = p->data + p->l4;
    csum_field = rewrite_checksum_field(p);
    bool without = !csum && p->proto == PROTO_UDP; /* IPv6 wants one, RFC 8200 8.1 */
    rewrite_l4(k, p, c, dir, l4, csum_field, csum, partial);
    if (without)
        rewrite_complete_checksum(p);
    clamp(k, p, c);
    pad(p);
}

/* ---- fragments ---- */

static void put_id4(struct ip4_header *ip, u16 id)
{
    ip->csum = csum_apply(ip->csum, csum_delta16(ip->id, be16(id)));
    ip->id = be16(id);
}

void rewrite_id4(struct packet *p, u32 id) { put_id4((struct ip4_header *)(p->data + p->l3), (u16)id); }

void rewrite_addresses(struct core *k, struct packet *p, const struct conn *c, enum direction dir, bool named, u32 id)
{
    if (c->families == FAMILIES_44) {
        struct ip4_header *ip = (struct ip4_header *)(p->data + p->l3);
        rewrite_header4(ip, c, dir);
        if (named)
            put_id4(ip, (u16)id);
        return;
    }
    struct ends e = rewrite_ends(k, c, dir);
    if (c->families == FAMILIES_66)
        return rewrite_header6(p, e);
    if (p->family == 6)
        header_6_to_4(k, p, e);
    else
        header_4_to_6(p, e, false);
    pad(p);
}

/* The place of the fragment in its datagram, as both families write it in their way. */
struct place {
    u16 offset;
    bool more;
};

static struct place place_of(const struct packet *p)
{
    if (p->family == 4)
        return (struct place){p->frag_offset, be16(((const struct ip4_header *)(p->data + p->l3))->frag) & IP4_MF};
    return (struct place){p->frag_offset, be16(((const struct ip6_fragment *)(p->data + p->frag_at))->frag) & IP6_MF};
}

/* RFC 7915 5.1.1 */
static void piece_6_to_4(struct core *k, struct packet *p, struct ends e, u32 id)
{
    struct place at = place_of(p);
    header_6_to_4(k, p, e);
    struct ip4_header *ip = (struct ip4_header *)(p->data + p->l3);
    ip->id = be16((u16)id);
    ip->frag = be16((u16)(at.offset / 8 | (at.more ? IP4_MF : 0)));
    ip->csum = 0;
    ip->csum = csum_ip4(ip, sizeof *ip);
}

/* RFC 7915 4.1 */
static void piece_4_to_6(struct packet *p, struct ends e, u32 id)
{
    struct place at = place_of(p);
    header_4_to_6(p, e, true);
    *(struct ip6_fragment *)(p->data + p->l4 - sizeof(struct ip6_fragment)) =
        (struct ip6_fragment){.next = p->proto, .frag = be16((u16)(at.offset | (at.more ? IP6_MF : 0))), .id = be32(id)};
}

static void piece_header(struct core *k, struct packet *p, const struct conn *c, enum direction dir, u32 id)
{
    if (c->families == FAMILIES_44) {
        struct ip4_header *ip = (struct ip4_header *)(p->data + p->l3);
        rewrite_header4(ip, c, dir);
        return put_id4(ip, (u16)id);
    }
    struct ends e = rewrite_ends(k, c, dir);
    if (c->families == FAMILIES_66) {
        rewrite_header6(p, e);
        put32(p->data + p->frag_at + offsetof(struct ip6_fragment, id), be32(id));
    } else if (p->family == 6)
        piece_6_to_4(k, p, e, id);
    else
        piece_4_to_6(p, e, id);
}

void rewrite_piece(struct core *k, struct packet *p, const struct conn *c, enum direction dir, u32 id)
{
    if (p->kind != KIND_FRAGMENT) {
        if (c->families != FAMILIES_44)
            return rewrite_wide(k, p, c, dir);
        rewrite_narrow(k, p, c, dir);
        return put_id4((struct ip4_header *)(p->data + p->l3), (u16)id);
    }
    bool first = p->fragment == FRAGMENT_FIRST, crossing = c->families != FAMILIES_44 && c->families != FAMILIES_66;
    u16 csum = first ? get16(rewrite_checksum_field(p)) : 0;
    piece_header(k, p, c, dir, id);
    if (first)
        rewrite_l4(k, p, c, dir, p->data + p->l4, rewrite_checksum_field(p), csum, false);
    if (!crossing)
        return;
    if (first)
        clamp(k, p, c);
    pad(p);
}
