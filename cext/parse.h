/* parse.h: read the headers of one frame. Inline, because it runs for every packet.
 *
 * Invariant: whatever the bytes, kind is set, and no byte beyond data[len) is read. With KIND_TCP, KIND_UDP and KIND_SCTP the whole L4 header lies
 * within the IP packet and the IP packet within the frame.
 */
#ifndef FNAT_PARSE_H
#define FNAT_PARSE_H

#include "csum.h"
#include "packet.h"

static inline void parse_invalid(struct packet *p, enum counter reason)
{
    p->kind = KIND_INVALID;
    p->reason = (u8)reason;
}

/* RFC 9260 3; chunks are read where a connection is known. */
__attribute__((noinline)) static void parse_sctp(struct packet *p, const u8 *l4, u32 room)
{
    const struct sctp_header *sctp = (const struct sctp_header *)l4;
    const struct sctp_init *init = (const struct sctp_init *)(sctp + 1);
    if (room < sizeof *sctp)
        return parse_invalid(p, DROP_l4_header);
    p->kind = KIND_SCTP;
    p->l4_len = (u16)room;
    p->payload = (u16)(room - sizeof *sctp);
    memcpy(&p->sport, l4, 4);
    if (p->payload >= sizeof *init && !sctp->tag && init->chunk.type == SCTP_CHUNK_INIT && be16(init->chunk.len) >= sizeof *init &&
        be16(init->chunk.len) <= p->payload && init->tag)
        p->tcp_flags = PACKET_OPENS_SCTP;
}

static inline void parse_l4(struct packet *p, const u8 *l4, u32 room)
{
    if (p->proto == PROTO_TCP) {
        const struct tcp_header *tcp = (const struct tcp_header *)l4;
        if (room < sizeof *tcp)
            return parse_invalid(p, DROP_l4_header);
        u32 header = (tcp->offset >> 4) * 4u;
        if (header < sizeof *tcp || header > room)
            return parse_invalid(p, DROP_l4_header);
        p->kind = KIND_TCP;
        p->tcp_flags = tcp->flags;
        p->l4_len = (u16)room;
        p->payload = (u16)(room - header);
    } else if (p->proto == PROTO_UDP) {
        const struct udp_header *udp = (const struct udp_header *)l4;
        if (room < sizeof *udp)
            return parse_invalid(p, DROP_l4_header);
        if (be16(udp->len) < sizeof *udp || be16(udp->len) > room)
            return parse_invalid(p, DROP_udp_length);
        p->kind = KIND_UDP;
        p->l4_len = be16(udp->len); /* may be shorter than the IP packet */
        p->payload = (u16)(p->l4_len - sizeof *udp);
    } else if (p->proto == (p->family == 4 ? PROTO_ICMP : PROTO_ICMP6)) {
        p->kind = KIND_ICMP;
        if (room < sizeof(struct icmp_header))
            return parse_invalid(p, DROP_l4_header);
        return;
    } else {
        p->kind = KIND_OTHER_IP;
        if (p->proto == PROTO_SCTP)
            parse_sctp(p, l4, room);
        return;
    }
    memcpy(&p->sport, l4, 4);
}

/* Does the sender prescribe a route (RFC 791: loose or strict source and record route)? Options behind a malformed one do not count. */
__attribute__((noinline)) static bool parse_source_routed(const u8 *options, u32 len)
{
    for (u32 at = 0; at < len && options[at] != IP4_OPT_END;) {
        if (options[at] == IP4_OPT_NOP) {
            at++;
            continue;
        }
        if (options[at] == IP4_OPT_LSRR || options[at] == IP4_OPT_SSRR)
            return true;
        if (at + 2 > len || options[at + 1] < 2)
            break;
        at += options[at + 1];
    }
    return false;
}

/* The L4 header of an IPv6 packet, which begins at `at`. */
static inline void parse_l4_of6(struct packet *p, u8 next, u32 at, u32 end)
{
    p->proto = next;
    p->l4 = (u8)at;
    parse_l4(p, p->data + at, end - at);
    if (unlikely(p->kind == KIND_UDP && !get16(p->data + at + offsetof(struct udp_header, csum))))
        parse_invalid(p, DROP_udp_no_checksum);
}

static inline bool parse_is_extension(u8 next)
{
    return next == IP6_HOP_BY_HOP || next == IP6_ROUTING || next == IP6_FRAGMENT || next == IP6_DESTINATION;
}

/* The chain of extension headers is walked up to the L4 header. What no end host would take is malformed: a chain cut short or out
 * of reach of an 8-bit offset, hop-by-hop options anywhere but first, a source route with segments left (RFC 5095). */
__attribute__((noinline)) static void parse_extensions(struct packet *p, u8 next, u32 end)
{
    const u8 *data = p->data;
    u32 at = ETH_HEADER + (u32)sizeof(struct ip6_header);
    while (parse_is_extension(next)) {
        const struct ip6_routing *ext = (const struct ip6_routing *)(data + at);
        if (end - at < 8)
            return parse_invalid(p, p->fragment ? DROP_fragment_tiny : DROP_ip_header); /* RFC 7112 */
        u32 len = next == IP6_FRAGMENT ? 8 : (ext->len + 1) * 8u;
        if (len > end - at && p->fragment)
            return parse_invalid(p, DROP_fragment_tiny);
        if (len > end - at || at + len > 255 || (next == IP6_HOP_BY_HOP && at != ETH_HEADER + sizeof(struct ip6_header)))
            return parse_invalid(p, DROP_ext_headers);
        if (next == IP6_ROUTING && ext->left)
            return parse_invalid(p, DROP_source_route);
        if (next == IP6_FRAGMENT) {
            const struct ip6_fragment *f = (const struct ip6_fragment *)ext;
            if (p->frag_at)
                return parse_invalid(p, DROP_ext_headers);
            p->frag_at = (u8)at;
            p->frag_id = get32(&f->id);
            p->frag_offset = be16(f->frag) & IP6_OFFSET;
            p->fragment = p->frag_offset ? FRAGMENT_LATER : be16(f->frag) & IP6_MF ? FRAGMENT_FIRST : FRAGMENT_NONE;
        }
        next = ext->next;
        at += len;
        if (p->fragment == FRAGMENT_LATER)
            break;
    }
    if (likely(!p->fragment))
        return parse_l4_of6(p, next, at, end);
    p->proto = next;
    p->l4 = (u8)at;
    p->kind = KIND_FRAGMENT; /* ports of the first one: pieces.c */
}

__attribute__((noinline)) static void parse_ip6(struct packet *p)
{
    const struct ip6_header *ip = (const struct ip6_header *)(p->data + ETH_HEADER);
    u32 room = p->len - ETH_HEADER, at = ETH_HEADER + (u32)sizeof *ip;
    if (unlikely(room < sizeof *ip))
        return parse_invalid(p, DROP_truncated);
    if (unlikely(p->data[ETH_HEADER] >> 4 != 6))
        return parse_invalid(p, DROP_ip_header);
    u32 end = at + be16(ip->payload_len);
    if (unlikely(end > p->len))
        return parse_invalid(p, DROP_truncated);
    p->family = 6;
    p->saddr = p->daddr = 0;
    p->l3_len = (u16)(end - ETH_HEADER);
    if (unlikely(parse_is_extension(ip->next)))
        return parse_extensions(p, ip->next, end);
    parse_l4_of6(p, ip->next, at, end);
}

static inline void parse_packet(struct packet *p)
{
    const u8 *data = p->data;
    p->verdict = VERDICT_DROP;
    p->conn = 0;
    p->l3 = ETH_HEADER;
    p->tcp_flags = 0;
    p->family = 4, p->fragment = FRAGMENT_NONE, p->frag_at = p->spare = 0; /* one store */
    if (unlikely(p->len < ETH_HEADER))
        return parse_invalid(p, DROP_truncated);
    u16 type = be16(get16(data + 12));
    if (unlikely(type != ETH_TYPE_IP4)) {
        if (likely(type == ETH_TYPE_IP6))
            return parse_ip6(p);
        p->family = 0;
        p->kind = type == ETH_TYPE_ARP ? KIND_ARP : KIND_OTHER;
        return;
    }
    const struct ip4_header *ip = (const struct ip4_header *)(data + ETH_HEADER);
    u32 room = p->len - ETH_HEADER;
    if (unlikely(room < sizeof *ip))
        return parse_invalid(p, DROP_truncated);
    u32 header = (ip->version_ihl & 15) * 4u, total = be16(ip->total_len);
    if (unlikely(ip->version_ihl >> 4 != 4 || header < sizeof *ip || total < header))
        return parse_invalid(p, DROP_ip_header);
    if (unlikely(total > room))
        return parse_invalid(p, DROP_truncated);
    u64 sum = (u64)get32(ip) + get32(&ip->id) + get32(&ip->ttl) + get32(&ip->src) + get32(&ip->dst);
    if (unlikely(header > sizeof *ip))
        sum += csum_partial(ip + 1, header - (u32)sizeof *ip);
    if (unlikely(csum_fold(sum) != 0xffff))
        return parse_invalid(p, DROP_ip_checksum);
    p->l3_len = (u16)total;
    p->l4 = (u8)(ETH_HEADER + header);
    p->proto = ip->proto;
    memcpy(&p->saddr, &ip->src, 8);
    if (unlikely(header > sizeof *ip) && parse_source_routed((const u8 *)(ip + 1), header - (u32)sizeof *ip)) {
        p->kind = KIND_ROUTED;
        return;
    }
    u16 frag = be16(ip->frag);
    if (unlikely(frag != IP4_DF)) {
        if (frag & (IP4_MF | IP4_OFFSET)) {
            p->kind = KIND_FRAGMENT;
            p->fragment = frag & IP4_OFFSET ? FRAGMENT_LATER : FRAGMENT_FIRST;
            p->frag_id = ip->id;
            p->frag_offset = (u16)((frag & IP4_OFFSET) * 8);
            return;
        }
        if (!(frag & IP4_DF) && total > WHOLE_ANYWHERE)
            p->fragment = FRAGMENT_LOOSE;
    }
    parse_l4(p, data + ETH_HEADER + header, total - header);
}

#endif
