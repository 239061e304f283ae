/* track.h: connection states and what moves them. */
#ifndef FNAT_TRACK_H
#define FNAT_TRACK_H

#include "net.h"
#include "record.h"

/* The next TCP state; synack_seen: the RS has answered the SYN. */
u8 track_tcp(u8 state, enum direction dir, u8 tcp_flags, bool synack_seen);
const char *track_name(u32 state);

static inline bool track_is_first(u8 tcp_flags) { return (tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN)) == TCP_SYN; }

#endif
