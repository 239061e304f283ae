/* icmp.h: ICMP errors about packets of connections, turned into what the other side understands: RFC 5508, between the families
 * RFC 7915 4.2, 4.3, 5.2, 5.3.
 *
 * Somebody on the way of a packet that left here could not take it. The error quotes that packet; its sender knows the packet by other
 * addresses, ports and numbers, perhaps of the other family. The error is made to quote what the sender sent, as far as it is quoted, and
 * goes on as if the balancer's own address towards the sender had made it, so that routers behind it stay hidden.
 */
#ifndef FNAT_ICMP_H
#define FNAT_ICMP_H

#include "core.h"

static inline bool icmp_is_error(u8 family, u8 type)
{
    if (family == 6)
        return type >= ICMP6_UNREACHABLE && type <= ICMP6_PARAMETER;
    return type == ICMP_UNREACHABLE || type == ICMP_TIME_EXCEEDED || type == ICMP_PARAMETER;
}

/* The packet that an error is about. */
struct icmp_quote {
    struct flow_key answer; /* by which an answer to the quoted packet would find its connection */
    u16 l3, l4, end;        /* offsets from data: quoted headers, end of what is quoted */
    u16 uoa, uoa_len, next; /* a header of protocol 248 before the UDP header, and the byte that names it; uoa_len 0: there is none */
};

/* Is the message sound (RFC 1071; over IPv6 with its pseudo-header)? */
rare bool icmp_checksum_right(const struct packet *p);
/* 0, or the reason why this error says nothing. */
rare enum counter icmp_read(const struct packet *p, struct icmp_quote *q);
/* Make of an error about what went out in the other direction of `dir` one to the sender of that. mtu: most bytes of an IP packet to there; a
 * longer quote is cut. 0, or the reason why it cannot be. The packet may begin elsewhere in its frame afterwards. */
rare enum counter icmp_translate(const struct core *k, struct packet *p, const struct conn *c, enum direction dir, struct icmp_quote *q,
                                 u16 mtu);

#endif
