/* answer.h: packets the worker makes itself: ARP, echo replies, RSTs, ICMP errors. */
#ifndef FNAT_ANSWER_H
#define FNAT_ANSWER_H

#include "core.h"

/* Turn the received packet into its answer, in place, back the way it came. */
/* A later fragment only goes back: its datagram is an echo request if the first fragment is. */
rare enum verdict answer_echo(struct core *k, struct packet *p);
rare enum verdict answer_reset(struct core *k, struct packet *p);
/* An ICMP error about this packet, from the address it was sent to: RFC 792, RFC 1812 4.3.2, RFC 4443. The packet's own drop reason is
 * `reason`: it is counted, the error goes out in its frame. mtu: what its sender may send, for ERROR_TOO_BIG. */
enum error { ERROR_TTL, ERROR_TOO_BIG, ERROR_PORT };
rare enum verdict answer_error(struct core *k, struct packet *p, enum error what, u32 mtu, enum counter reason);
rare enum verdict answer_arp(struct core *k, struct packet *p);

/* A frame of zeros with this length that leaves at the end of the turn, out_port to be set. NULL: no room. */
struct packet *answer_own(struct core *k, u16 len);
/* Ask for a neighbour; to its last known MAC when `unicast`. */
void answer_ask_neighbour(struct core *k, u32 neigh, bool unicast);
/* RST to one side of an expiring connection. */
void answer_reset_side(struct core *k, const struct conn *c, enum direction dir);
/* Give the packet its MACs if the neighbour is known. Sets out_port. */
bool answer_link(struct core *k, struct packet *p, u32 neigh);

#endif
