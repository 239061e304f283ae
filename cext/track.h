/* track.h: connection states and what moves them. track.c says why. */
#ifndef FNAT_TRACK_H
#define FNAT_TRACK_H

#include "net.h"
#include "record.h"

/* Bounds of the window before the other side's handshake segment is seen, and of any window (RFC 7323 2.3). */
enum { TRACK_WINDOW_MOST = 30, TRACK_WINDOW_PLAIN = 16 };

/* Follow a segment that is not plain data of an established connection: its numbers, then the state. Sets CONN_SYNACK_SEEN,
 * CONN_DOUBT and window_log2; returns the next state. The packet is counted already. */
u8 track_follow(struct conn *c, enum direction dir, const struct packet *p);
/* The SYN that opens a connection: what its sender can take. */
void track_opens(struct conn *c, const struct packet *p);
/* Where the value of the option of this kind and size lies (RFC 9293 3.1); NULL: there is none. */
const u8 *track_option(const struct tcp_header *tcp, u8 kind, u8 size);
const char *track_name(u32 state);

static inline bool track_is_first(u8 tcp_flags) { return (tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN)) == TCP_SYN; }

/* Flags that no TCP sends (RFC 9293 3.10.7): SYN with FIN or RST, or none of SYN, RST and ACK ("null", "xmas", a bare FIN). */
static inline bool track_is_nonsense(u8 tcp_flags)
{
    return tcp_flags & TCP_SYN ? tcp_flags & (TCP_FIN | TCP_RST) : !(tcp_flags & (TCP_RST | TCP_ACK));
}

/* How many bytes beyond what it has sent the sender may send at most. */
static inline u32 track_window(const struct conn *c, enum direction dir) { return 1u << c->window_log2[dir]; }

/* What is sent moves next_seq forward, but no further than the receiver's window: whoever jumps ahead moves nothing. True: it moved. */
static inline bool track_advance(struct conn *c, enum direction dir, u32 end)
{
    if (end - c->next_seq[dir] - 1 >= track_window(c, dir))
        return false;
    c->next_seq[dir] = end;
    return true;
}

#endif
