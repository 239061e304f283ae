/* parse.h: read the headers of one frame. Inline, because it runs for every packet.
 *
 * Invariant: whatever the bytes, kind is set, and no byte beyond data[len) is read. With KIND_TCP and KIND_UDP the whole L4 header lies
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
    } else if (p->proto == PROTO_ICMP) {
        p->kind = KIND_ICMP;
        if (room < sizeof(struct icmp_header))
            return parse_invalid(p, DROP_l4_header);
        return;
    } else {
        p->kind = KIND_OTHER4;
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

static inline void parse_packet(struct packet *p)
{
    const u8 *data = p->data;
    p->verdict = VERDICT_DROP;
    p->conn = 0;
    p->l3 = ETH_HEADER;
    p->tcp_flags = 0;
    if (unlikely(p->len < ETH_HEADER))
        return parse_invalid(p, DROP_truncated);
    u16 type = be16(get16(data + 12));
    if (unlikely(type != ETH_TYPE_IP4)) {
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
    if (unlikely(be16(ip->frag) & (IP4_MF | IP4_OFFSET))) {
        p->kind = KIND_FRAGMENT;
        return;
    }
    parse_l4(p, data + ETH_HEADER + header, total - header);
}

#endif
