/* clientaddr.h: tell the RS who the client is. What the RS sees as its peer is a LIP; the client's address goes along in one of these:
 *
 *   TOA            a TCP option of kind 254 in the segments until the RS has spoken or has taken something
 *   UOA            a header (IP protocol 248) or an IPv4 option (31) in the first datagrams until the RS answers
 *   PROXY v1, v2   a header before the first byte of the TCP stream, or in the first datagram
 *
 * forward.c calls in this order: clientaddr_follow after the state has followed the packet, clientaddr_apply when the packet is
 * rewritten. Both are for marked connections (CONN_MARKED) only: a connection that has told the RS everything loses its mark and costs
 * nothing any more.
 */
#ifndef FNAT_CLIENTADDR_H
#define FNAT_CLIENTADDR_H

#include "core.h"

enum {
    CLIENTADDR_HEADER = CONN_INSERTION_MOST /* longest PROXY header that is made */,
    UOA_TRAIL = 3 /* datagrams that carry it at most */
};

enum clientaddr {
    CLIENTADDR_NOTHING, /* the packet is as it was */
    CLIENTADDR_TOLD,    /* the packet tells the client's address */
    CLIENTADDR_NO_ROOM, /* it should, and there is no room in its options or below the MTU */
    CLIENTADDR_AHEAD,   /* likewise, but clientaddr_ahead makes a packet that goes first */
};

/* A connection opens for a service that wants this (FNAT_CLIENT_ADDR_*). */
void clientaddr_opens(struct conn *c, u8 wanted);
/* The RS has forgotten the connection and begins anew with its client (track.c). */
void clientaddr_again(struct conn *c);
/* was_half_open and first (next_seq of the client): before this packet moved anything. The client's stream begins where the RS's SYN-ACK
 * has settled its numbers, whatever clients claim. */
void clientaddr_follow(struct conn *c, bool was_half_open, u32 first);
/* Must this packet not go on in fragments? What tells the client's address needs the L4 header and the whole segment, and a fragment must
 * not bring an option that a client has forged. */
bool clientaddr_needs_whole(const struct conn *c, const struct packet *p, enum direction dir);
/* Change the rewritten packet, at most to `mtu` bytes of IP packet. */
enum clientaddr clientaddr_apply(struct core *k, struct packet *p, struct conn *c, enum direction dir, u32 mtu);
/* After CLIENTADDR_AHEAD: make `ahead`, whose data has room, the packet that goes before p; NULL: there is no frame for it. */
void clientaddr_ahead(struct core *k, struct packet *p, struct conn *c, struct packet *ahead);

#endif
