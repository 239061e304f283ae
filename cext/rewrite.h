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

/* TCP numbers that differ between both sides; returns the checksum delta. */
u64 rewrite_tcp_numbers(const struct conn *c, enum direction dir, struct tcp_header *tcp);
/* Compute the TCP or UDP checksum of a packet whose headers are final. */
void rewrite_complete_checksum(struct packet *p);

static inline bool rewrite_is_partial(const struct packet *p, u16 csum)
{
    return csum == csum_fold(csum_pseudo4(p->saddr, p->daddr, p->proto, p->l4_len));
}

static inline u16 *rewrite_checksum_field(const struct packet *p)
{
    return (u16 *)(p->data + p->l4 + (p->proto == PROTO_TCP ? offsetof(struct tcp_header, csum) : offsetof(struct udp_header, csum)));
}

static inline void rewrite_complete_if_partial(struct core *k, struct packet *p)
{
    if (!rewrite_is_partial(p, get16(rewrite_checksum_field(p))))
        return;
    rewrite_complete_checksum(p);
    count(k, CNT_checksums_completed);
}

static inline void rewrite_packet(struct core *k, struct packet *p, const struct conn *c, enum direction dir)
{
    struct ip4_header *ip = (struct ip4_header *)(p->data + p->l3);
    u8 *l4 = p->data + p->l4;
    u16 *csum_field = rewrite_checksum_field(p);
    u16 csum = get16(csum_field);
    bool partial = rewrite_is_partial(p, csum);
    u64 delta_ip, delta;

    if (dir == TO_RS) {
        put32(&ip->src, c->a.v4.lip);
        put32(&ip->dst, c->a.v4.rip);
        put32(l4, (u32)c->lport | (u32)c->rport << 16);
        delta_ip = c->delta_ip;
        delta = c->delta_l4;
    } else {
        put32(&ip->src, c->a.v4.vip);
        put32(&ip->dst, c->a.v4.cip);
        put32(l4, (u32)c->vport | (u32)c->cport << 16);
        delta_ip = csum_negate(c->delta_ip);
        delta = csum_negate(c->delta_l4);
    }
    u16 ttl_and_proto = get16(&ip->ttl); /* written whole: a load across a narrower store would stall */
    put16(&ip->ttl, ttl_and_proto - 1);
    ip->csum = csum_apply(ip->csum, delta_ip + csum_delta16(ttl_and_proto, ttl_and_proto - 1));
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

#endif
