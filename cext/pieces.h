/* pieces.h: a datagram that comes in fragments, and one that must leave in fragments. */
#ifndef FNAT_PIECES_H
#define FNAT_PIECES_H

#include "core.h"

/* A fragment goes first to the worker that its datagram belongs to, which learns the ports; from there on to where a whole packet would go,
 * with what it has learned. The bit in `hops` says that it has been there. */
enum { HOPS_LEARNED = 0x80 };

/* Is this a fragment of an ICMP message? */
static inline bool pieces_icmp(const struct packet *p) { return p->proto == (p->family == 4 ? PROTO_ICMP : PROTO_ICMP6); }
/* The worker whose table has the datagram. */
u32 pieces_home(const struct core *k, const struct packet *p);
/* At home: the fragment's place is taken down, the first one tells its ports. 0 and the datagram, or why the fragment is dropped; what
 * is held of a refused datagram is dropped with it. */
rare enum counter pieces_note(struct core *k, struct packet *p, struct datagram **out);
/* Give the fragment what its first one has told. */
void pieces_tell(struct packet *p, const struct datagram *d);
/* For the way to another worker, and after it. */
void pieces_pack(struct packet *p);
void pieces_unpack(struct packet *p);
rare enum verdict pieces_hold(struct core *k, struct packet *p, struct datagram *d);
/* What was held of this datagram, the oldest first; its verdict is to be set. NULL: nothing. */
struct packet *pieces_release(struct core *k, struct datagram *d);

/* The identification that a packet of this connection leaves with, the same for all fragments of a datagram. 0, or why it cannot. */
rare enum counter pieces_name(struct core *k, const struct packet *p, const struct conn *c, enum direction dir, u32 *id);

/* The connection of a later fragment of a one-packet service, which no table knows by its client: index<<1 | direction; 0: none. */
rare u32 pieces_conn(const struct core *k, const struct packet *p);

/* RFC 791, RFC 8200 4.5: the packet is all but sent, its IP packet larger than the MTU. It becomes the first fragment; the others leave with
 * what the worker makes itself. */
rare enum verdict pieces_split(struct core *k, struct packet *p, u32 mtu);
/* Bytes of the IP packet that this frame carries, whatever it was before. */
static inline u32 pieces_len(const struct packet *p)
{
    const u8 *ip = p->data + ETH_HEADER;
    return *ip >> 4 == 4 ? be16(get16(ip + offsetof(struct ip4_header, total_len)))
                         : be16(get16(ip + offsetof(struct ip6_header, payload_len))) + (u32)sizeof(struct ip6_header);
}

/* What has been under way too long is forgotten. */
void pieces_turn(struct core *k);
/* Drop all that is held. */
void pieces_quiesce(struct core *k);

#endif
