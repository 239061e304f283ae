/* rewrite.h: turn a client's packet into the balancer's packet to the RS, and the answer back. Inline: every hit passes here.
 *
 * Checksums change incrementally by deltas computed when the connection opened (RFC 1624). A checksum field that holds just the
 * pseudo-header sum was left to the sender's hardware (veth, virtio): it is completed over the whole segment. One sound packet in
 * 65 536 looks the same by chance; completing it gives the value it had.
 */
#ifndef FNAT_REWRITE_H
#define FNAT_REWRITE_H

#include "core.h"
#include "csum.h"

/* TCP options with numbers that differ between both sides; returns the checksum delta. */
u64 rewrite_options(const struct conn *c, enum direction dir, struct tcp_header *tcp);
/* Compute the TCP or UDP checksum of a packet whose headers are final. */
rare void rewrite_complete_checksum(struct packet *p);

/* Change a 32-bit number; returns the checksum delta. */
static inline u64 rewrite_shift32(void *at, u32 by)
{
    u32 from = get32(at), to = be32(be32(from) + by);
    put32(at, to);
    return csum_delta32(from, to);
}

/* NOP, NOP, timestamps: the options of most segments (RFC 7323 appendix A). */
enum { TIMESTAMPS_ALONE = 20 + 12 };

/* TCP numbers that differ between both sides; returns the checksum delta. */
static always_inline u64 rewrite_tcp_numbers(const struct conn *c, enum direction dir, struct tcp_header *tcp)
{
    u64 delta = 0;
    u32 header = (tcp->offset >> 4) * 4u;
    if (dir == TO_RS)
        delta += rewrite_shift32(&tcp->seq, c->dseq);
    else if (tcp->flags & TCP_ACK)
        delta += rewrite_shift32(&tcp->ack, 0u - c->dseq);
    if (header == sizeof *tcp || !(c->flags & CONN_SHIFT_TS || dir == TO_CLIENT))
        return delta;
    if (unlikely(header != TIMESTAMPS_ALONE || get32(tcp + 1) != be32(0x0101080a)))
        return delta + rewrite_options(c, dir, tcp);
    u8 *value = (u8 *)(tcp + 1) + 4, *echo = value + 4;
    if (!(c->flags & CONN_SHIFT_TS))
        return delta;
    if (dir == TO_RS)
        delta += rewrite_shift32(value, c->dts);
    else if (tcp->flags & TCP_ACK)
        delta += rewrite_shift32(echo, 0u - c->dts);
    return delta;
}

static inline bool rewrite_is_partial(const struct packet *p, u16 csum)
{
    return csum == csum_fold(csum_pseudo4(p->saddr, p->daddr, p->proto, p->l4_len));
}

static inline bool rewrite_is_partial6(const struct packet *p, u16 csum)
{
    const struct ip6_header *ip = (const struct ip6_header *)(p->data + p->l3);
    return csum == csum_fold(csum_pseudo6(ip->src, p->proto, p->l4_len));
}

/* The same of a packet of a connection with IPv6 on either side: the record knows the sum of its addresses and ports. */
static inline bool rewrite_is_partial_wide(const struct packet *p, const struct conn *c, enum direction dir, u16 csum)
{
    u64 key = (u64)c->key_sum + (c->delta_l4 & (u16)-dir);
    return csum_fold((u64)csum + p->sport + p->dport) == csum_fold(key + be16(p->proto) + be16(p->l4_len));
}

static inline u16 *rewrite_checksum_field(const struct packet *p)
{
    return (u16 *)(p->data + p->l4 + (p->proto == PROTO_TCP ? offsetof(struct tcp_header, csum) : offsetof(struct udp_header, csum)));
}

static inline void rewrite_complete_if_partial(struct core *k, struct packet *p)
{
    u16 csum = get16(rewrite_checksum_field(p));
    if (!(p->family == 4 ? rewrite_is_partial(p, csum) : rewrite_is_partial6(p, csum)))
        return;
    rewrite_complete_checksum(p);
    count(k, CNT_checksums_completed);
}

/* Lower the MSS option of a SYN to `most`; returns the checksum delta. */
u64 rewrite_clamp_mss(struct tcp_header *tcp, u16 most);
/* From one family to the other: rewrite.c. The packet may begin elsewhere in its frame afterwards. */
void rewrite_crossing(struct core *k, struct packet *p, const struct conn *c, enum direction dir);
/* Addresses alone, of a whole packet; with this identification where it is IPv4 on both sides and `named`. */
rare void rewrite_addresses(struct core *k, struct packet *p, const struct conn *c, enum direction dir, bool named, u32 id);
/* A fragment, or an IPv4 packet that may become some: with this identification. Of a later fragment only the IP header changes. */
rare void rewrite_piece(struct core *k, struct packet *p, const struct conn *c, enum direction dir, u32 id);
/* A whole IPv4 packet, not rewritten yet, gets this identification. */
void rewrite_id4(struct packet *p, u32 id);

/* For identifications: packets of equal source and destination count together. */
static inline u64 rewrite_pair(const struct core *k, u8 family, const void *src, const void *dst)
{
    if (family == 4)
        return hash_flow4(&k->secret, (u64)get32(src) | (u64)get32(dst) << 32, 0, 0);
    return hash_flow6(&k->secret, src, dst, 0, 0);
}

/* The L4 header: ports, TCP numbers, checksum; `partial`: it was left to the sender's hardware. */
static always_inline void rewrite_l4(struct core *k, struct packet *p, const struct conn *c, enum direction dir, u8 *l4, u16 *csum_field,
                                     u16 csum, bool partial)
{
    u16 flip = (u16)-dir; /* towards the client a delta is its complement */
    u64 delta = c->delta_l4 ^ flip;
    u32 ports = get32(&c->cport + 2 * !dir);
    put32(l4, ports >> 16 | ports << 16);
    if (p->proto == PROTO_TCP)
        delta += rewrite_tcp_numbers(c, dir, (struct tcp_header *)l4);
    if (unlikely(partial)) {
        rewrite_complete_checksum(p);
        count(k, CNT_checksums_completed);
    } else if (likely(csum || p->proto == PROTO_TCP)) {
        csum = csum_apply(csum, delta);
        put16(csum_field, likely(csum || p->proto == PROTO_TCP) ? csum : 0xffff); /* RFC 768: zero means none */
    }
}

/* IPv4 on both sides. The record keeps each pair as it comes in; what goes out is the other pair with its halves exchanged. */
static always_inline void rewrite_header4(struct ip4_header *ip, const struct conn *c, enum direction dir)
{
    u16 flip = (u16)-dir; /* towards the client a delta is its complement */
    u64 addrs = get64(&c->a.v4.cip + 2 * !dir);

    put64(&ip->src, addrs >> 32 | addrs << 32);
    u32 ttl_proto_csum = get32(&ip->ttl); /* read and written whole: a load across a narrower store would stall */
    u16 ttl_and_proto = (u16)ttl_proto_csum;
    u16 ip_csum = csum_apply((u16)(ttl_proto_csum >> 16), (u64)(u16)(c->delta_ip ^ flip) + 0xfffe); /* one less in the low byte: -1 */
    put32(&ip->ttl, (u16)(ttl_and_proto - 1) | (u32)ip_csum << 16);
}

static always_inline void rewrite_narrow(struct core *k, struct packet *p, const struct conn *c, enum direction dir)
{
    struct ip4_header *ip = (struct ip4_header *)(p->data + p->l3);
    u8 *l4 = p->data + p->l4;
    u16 *csum_field = rewrite_checksum_field(p);
    u16 csum = get16(csum_field);
    bool partial = rewrite_is_partial(p, csum);
    rewrite_header4(ip, c, dir);
    rewrite_l4(k, p, c, dir, l4, csum_field, csum, partial);
}

/* The addresses that a packet leaves with, IPv6 on either side. */
struct ends {
    const u8 *src, *dst;
};

static always_inline struct ends rewrite_ends(const struct core *k, const struct conn *c, enum direction dir)
{
    if (dir == TO_RS)
        return (struct ends){k->plane_addresses[c->lip_id].addr, c->a.v6.rip};
    return (struct ends){k->plane_addresses[c->vip_id].addr, c->a.v6.cip};
}

static always_inline void rewrite_header6(struct packet *p, struct ends e)
{
    struct ip6_header *ip = (struct ip6_header *)(p->data + p->l3);
    memcpy(ip->src, e.src, 16);
    memcpy(ip->dst, e.dst, 16);
    ip->hop_limit--;
}

/* IPv6 on both sides. */
static always_inline void rewrite_same6(struct core *k, struct packet *p, const struct conn *c, enum direction dir)
{
    u16 *csum_field = rewrite_checksum_field(p), csum = get16(csum_field);
    bool partial = rewrite_is_partial_wide(p, c, dir, csum);
    rewrite_header6(p, rewrite_ends(k, c, dir));
    rewrite_l4(k, p, c, dir, p->data + p->l4, csum_field, csum, partial);
}

/* IPv6 on either side. */
static inline void rewrite_wide(struct core *k, struct packet *p, const struct conn *c, enum direction dir)
{
    if (likely(c->families == FAMILIES_66))
        rewrite_same6(k, p, c, dir);
    else
        rewrite_crossing(k, p, c, dir);
}

#endif
