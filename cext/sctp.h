/* sctp.h: what SCTP (RFC 9260) needs beside addresses and ports: the state of an association, its checksum, its address parameters. */
#ifndef FNAT_SCTP_H
#define FNAT_SCTP_H

#include "core.h"

/* An INIT opens this connection. */
void sctp_opens(struct conn *c, const struct packet *p);
/* The state after this packet. Remembers the tags of the association. */
u8 sctp_follow(struct conn *c, enum direction dir, const struct packet *p);
/* Ports, address parameters, checksum of a packet whose IP header is done. */
void sctp_rewrite(struct core *k, struct packet *p, const struct conn *c, enum direction dir);
/* A checksum that was left to the sender's hardware is computed. */
void sctp_complete_if_absent(struct core *k, struct packet *p);

#endif
