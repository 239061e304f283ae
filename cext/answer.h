/* answer.h: packets the worker makes itself: ARP, neighbour discovery, echo replies, RSTs, ICMP errors. */
#ifndef FNAT_ANSWER_H
#define FNAT_ANSWER_H

#include "core.h"

/* Turn the received packet into its answer, in place, back the way it came. */
/* A later fragment only goes back: its datagram is an echo request if the first fragment is. */
rare enum verdict answer_echo(struct core *k, struct packet *p, const struct snap_address_slot *pinged);
rare enum verdict answer_reset(struct core *k, struct packet *p);
/* An ICMP error about this packet, from the address it was sent to: RFC 792, RFC 1812 4.3.2, RFC 4443. The packet's own drop reason is
 * `reason`: it is counted, the error goes out in its frame, unless there are too many of them or it must not get one. mtu: what its sender may send, for ERROR_TOO_BIG. */
enum error { ERROR_TTL, ERROR_TOO_BIG, ERROR_PORT };
rare enum verdict answer_error(struct core *k, struct packet *p, enum error what, u32 mtu, enum counter reason);
rare enum verdict answer_arp(struct core *k, struct packet *p);
/* Neighbour solicitations and advertisements, RFC 4861. */
static inline bool answer_is_nd(const struct packet *p)
{
    u8 type = p->data[p->l4];
    return p->family == 6 && (type == ICMP6_NEIGHBOUR_SOLICITATION || type == ICMP6_NEIGHBOUR_ADVERTISEMENT);
}
rare enum verdict answer_nd(struct core *k, struct packet *p);

/* A frame of zeros with this length that leaves at the end of the turn, out_port to be set. NULL: no room. */
struct packet *answer_own(struct core *k, u16 len);
/* Ask for a neighbour; to its last known MAC when `unicast`. */
void answer_ask_neighbour(struct core *k, u32 neigh, bool unicast);
/* Tell everybody on the port's link that the address is here. */
void answer_announce(struct core *k, u8 port, u8 family, const u8 addr[16]);
/* RST to one side of an expiring connection. */
void answer_reset_side(struct core *k, const struct conn *c, enum direction dir);
/* A packet to be filled, which leaves at the end of the turn; NULL: no frame is free. */
struct packet *answer_blank(struct core *k);
/* Ask the RS whether it still knows the connection. False: not possible now. */
bool answer_probe(struct core *k, const struct conn *c);
/* Give the packet its MACs if the neighbour is known. Sets out_port. */
bool answer_link(struct core *k, struct packet *p, u32 neigh);

#endif
