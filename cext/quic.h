/* quic.h: which RS a QUIC packet of no known connection belongs to (RFC 9000), by the connection ID that the RS has chosen. */
#ifndef FNAT_QUIC_H
#define FNAT_QUIC_H

#include "packet.h"
#include "snapshot.h"

/* The place of the member in its service; -1: the packet names none. */
int quic_member(const struct snap_service *svc, const struct packet *p);

#endif
