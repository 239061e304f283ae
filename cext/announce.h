/* announce.h: addresses that are new on a port are told to its link, so that switches, hosts and routers that knew them elsewhere look anew:
 * a gratuitous ARP request (RFC 5227 3) or an unsolicited neighbour advertisement (RFC 4861 7.2.6).
 *
 * One worker does it, some addresses a turn. It remembers by address id on which port it has announced what; a new table of
 * addresses is gone through once, and what is no longer in it is forgotten.
 */
#ifndef FNAT_ANNOUNCE_H
#define FNAT_ANNOUNCE_H

#include "core.h"

/* -ENOMEM; without it the worker announces nothing. */
int announce_open(struct announcer *a);
void announce_close(struct announcer *a);
/* A snapshot was adopted. */
void announce_adopt(struct core *k);
/* Once a turn while a->due. */
rare void announce_turn(struct core *k);

#endif
