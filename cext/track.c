/* track.c: what a TCP segment means for its connection. Every segment of a connection is forwarded, the end hosts judge it; here is
 * decided whether it moves the balancer's state. A segment forged by somebody who cannot see the connection must not end, hold or move it;
 * one of a true end must not be missed. RFC 5961's reasoning, for somebody in the middle:
 *
 *  - The balancer knows how far each side has sent (next_seq, in the sender's own numbers) and the largest window the other side can
 *    open (window_log2: 64 KiB times its window scale; 64 KiB when either side has none, 1 GiB until both have spoken). What a receiver
 *    expects lies at most one window below next_seq, and what a sender sends at most one window above.
 *  - next_seq follows what is sent, a window at a time: who jumps ahead moves nothing, least of all the numbers that later
 *    connections of other clients begin with (lip_isn_used, which also counts the bytes that were paid for).
 *  - Handshake. A SYN counts until it is answered. The RS's SYN-ACK settles both sides' numbers if it acknowledges what was sent; a
 *    client's ACK establishes only if it acknowledges what the RS sent. A refusal (RST with the right ACK) closes at once, as does a RST
 *    of either side with its exact number after the SYN-ACK. The client's RST before the SYN-ACK clears a half-dead socket of the RS (RFC 5961 4.2:
 *    the RS's challenge ACK does not establish) and does not end the connection.
 *  - RST closes if its number is exact: all that its sender has sent (one less once somebody has closed: the number of the FIN itself, which stacks
 *    accept). Further away than a window it means nothing. Between (after losses; from stacks that take a RST anywhere in the window; or
 *    forged by somebody lucky) it raises a doubt: a receiver that follows RFC 5961 answers with a challenge ACK, and a sender that is really
 *    gone answers that one with an exact RST. So nothing is closed on a doubt. If neither side speaks for the timeout `close`, the worker asks
 *    the RS by a segment below its window (RFC 9293 3.10.7.4 wants an ACK for it): a living one answers and nothing has happened; a dead one
 *    answers with an exact RST. Silence leaves the ordinary timeouts.
 *  - FIN counts if it lies beyond all that has been sent, within the window. One that was believed wrongly is unmasked by what
 *    its sender sends afterwards: the state goes back.
 *  - SYN inside a living connection moves nothing: the RS's challenge ACK decides. It raises a doubt, and only under a doubt is a SYN-ACK believed: an RS
 *    that has forgotten the connection begins anew with its client.
 *  - Flags that no TCP sends (SYN with FIN) move nothing.
 *
 * The names of states are those of IPVS and DPVS, so that listings read alike.
 * Left out: acknowledgements are not remembered (no room in the record's two lines), so "exact" means next_seq, not what the receiver
 * has acknowledged; the doubt covers the difference. A client that sends a SYN with another number before the first one is answered is served by
 * the RS's challenge ACK, not at once.
 */
#include "track.h"

#include "fnat.h"

enum event { EVENT_FIN, EVENT_ACK, EVENT_RST, EVENTS };

#define NO TCP_NONE
#define ES TCP_EST
#define SS TCP_SYN_SENT
#define SR TCP_SYN_RECV
#define FW TCP_FIN_WAIT
#define TW TCP_TIME_WAIT
#define CL TCP_CLOSED
#define CW TCP_CLOSE_WAIT
#define LA TCP_LAST_ACK
#define LI TCP_LISTEN
#define SA TCP_SYNACK

/* Rows: who sends and what of it counted; columns: state. */
static const u8 table[2][EVENTS][FNAT_TCP_STATES] =
    {
        [TO_RS] =
            {
                /*              NO  ES  SS  SR  FW  TW  CL  CW  LA  LI  SA */
                [EVENT_FIN] = {CL, CW, SS, CW, TW, TW, CL, CW, LA, LI, TW},
                [EVENT_ACK] = {CL, ES, SS, ES, FW, TW, CL, CW, CL, LI, ES},
                [EVENT_RST] = {CL, CL, CL, CL, CL, CL, CL, CL, LA, LI, SR},
            },
        [TO_CLIENT] =
            {
                /*              NO  ES  SS  SR  FW  TW  CL  CW  LA  LI  SA */
                [EVENT_FIN] = {TW, FW, SS, FW, FW, TW, CL, TW, LA, LI, TW},
                [EVENT_ACK] = {ES, ES, SS, SR, FW, TW, CL, CW, LA, ES, ES},
                [EVENT_RST] = {CL, CL, SS, CL, CL, TW, CL, CL, CL, CL, CL},
            },
};

struct segment {
    u32 seq, end, ack; /* the sender's numbers; ack in those of the other side */
    u8 flags;
};

static struct segment segment_of(const struct conn *c, enum direction dir, const struct packet *p)
{
    const struct tcp_header *tcp = (const struct tcp_header *)(p->data + p->l4);
    struct segment s = {.seq = be32(get32(&tcp->seq)), .ack = be32(get32(&tcp->ack)), .flags = p->tcp_flags};
    s.end = s.seq + p->payload + !!(s.flags & TCP_SYN) + (s.flags & TCP_FIN);
    if (dir == TO_CLIENT)
        s.ack -= c->dseq;
    return s;
}

const u8 *track_option(const struct tcp_header *tcp, u8 kind, u8 size)
{
    const u8 *options = (const u8 *)(tcp + 1);
    u32 len = (tcp->offset >> 4) * 4u - (u32)sizeof *tcp;
    for (u32 at = 0; at < len && options[at] != TCP_OPT_END;) {
        if (options[at] == TCP_OPT_NOP) {
            at++;
            continue;
        }
        if (at + 2 > len || options[at + 1] < 2 || at + options[at + 1] > len)
            return NULL;
        if (options[at] == kind && options[at + 1] == size)
            return options + at + 2;
        at += options[at + 1];
    }
    return NULL;
}

/* The largest window that the sender of this SYN or SYN-ACK can open, as a power of two; without a scale 64 KiB. */
static u8 window_in(const struct packet *p)
{
    const u8 *scale = track_option((const struct tcp_header *)(p->data + p->l4), TCP_OPT_WSCALE, 3);
    return (u8)(TRACK_WINDOW_PLAIN + (scale ? min_u32(*scale, TRACK_WINDOW_MOST - TRACK_WINDOW_PLAIN) : 0));
}

void track_opens(struct conn *c, const struct packet *p)
{
    c->window_log2[TO_RS] = TRACK_WINDOW_MOST;
    c->window_log2[TO_CLIENT] = window_in(p);
}

/* Both handshake segments are known: scales are used only if both sides have one (RFC 7323 1.3). */
static void settle_windows(struct conn *c, const struct packet *synack)
{
    c->window_log2[TO_RS] = window_in(synack);
    if (!track_option((const struct tcp_header *)(synack->data + synack->l4), TCP_OPT_WSCALE, 3))
        c->window_log2[TO_CLIENT] = TRACK_WINDOW_PLAIN;
}

/* Does ack acknowledge what the other side has sent in a handshake? Its last bytes at most: no more than its packets had. */
static bool acknowledges(struct conn *c, enum direction sent, u32 ack)
{
    u32 bytes = conn_counts(c)->bytes[sent];
    return c->next_seq[sent] - ack <= bytes;
}

static bool within_window(const struct conn *c, enum direction dir, u32 seq)
{
    u32 window = track_window(c, dir);
    return seq - c->next_seq[dir] + window <= 2 * window;
}

static bool lives(const struct conn *c) { return c->state != TCP_TIME_WAIT && c->state != TCP_CLOSED; }

static u8 follow_reset(struct conn *c, enum direction dir, const struct segment *s)
{
    u32 behind = c->next_seq[dir] - s->seq;
    if (c->state == TCP_SYN_RECV) {
        bool refused = dir == TO_CLIENT && s->flags & TCP_ACK && acknowledges(c, TO_RS, s->ack);
        return refused || (c->flags & CONN_SYNACK_SEEN && !behind) ? table[dir][EVENT_RST][TCP_SYN_RECV] : TCP_SYN_RECV;
    }
    if (!behind || (behind == 1 && c->state != TCP_EST))
        return table[dir][EVENT_RST][c->state];
    if (lives(c) && within_window(c, dir, s->seq))
        c->marks |= MARK_DOUBT;
    return c->state;
}

static u8 follow_syn(struct conn *c, enum direction dir, const struct segment *s, const struct packet *p)
{
    if (dir == TO_RS) {
        if (s->flags & TCP_ACK)
            return c->state;
        if (c->state == TCP_SYN_RECV && !(c->flags & CONN_SYNACK_SEEN)) {
            c->next_seq[TO_RS] = s->end; /* the first one, or the one that the RS will answer now */
            c->window_log2[TO_CLIENT] = (u8)max_u32(c->window_log2[TO_CLIENT], window_in(p));
        } else if (c->state != TCP_SYN_RECV && lives(c))
            c->marks |= MARK_DOUBT;
        return c->state;
    }
    if (!(s->flags & TCP_ACK))
        return c->state;
    bool anew = c->state != TCP_SYN_RECV && lives(c) && c->marks & MARK_DOUBT;
    if (!anew && (c->state != TCP_SYN_RECV || !acknowledges(c, TO_RS, s->ack)))
        return c->state;
    if (c->flags & CONN_SYNACK_SEEN && !anew && acknowledges(c, TO_CLIENT, s->end))
        return c->state; /* once more */
    c->flags |= CONN_SYNACK_SEEN;
    c->marks &= (u8)~MARK_DOUBT;
    c->next_seq[TO_CLIENT] = s->end;
    c->next_seq[TO_RS] = s->ack;
    settle_windows(c, p);
    return anew ? TCP_EST : c->state;
}

u8 track_follow(struct conn *c, enum direction dir, const struct packet *p)
{
    struct segment s = segment_of(c, dir, p);
    if (s.flags & TCP_RST)
        return follow_reset(c, dir, &s);
    if (s.flags & TCP_SYN)
        return s.flags & TCP_FIN ? c->state : follow_syn(c, dir, &s, p);
    if (!(s.flags & TCP_ACK))
        return c->state; /* every other segment of a connection has ACK */
    u8 state = c->state;
    if (state == TCP_SYN_RECV) {
        if (!(c->flags & CONN_SYNACK_SEEN) || (dir == TO_RS && !acknowledges(c, TO_CLIENT, s.ack)))
            return state;
        state = table[dir][EVENT_ACK][state];
    }
    bool fits = within_window(c, dir, s.seq), beyond = track_advance(c, dir, s.end);
    if (s.flags & TCP_FIN)
        return fits && beyond ? table[dir][EVENT_FIN][state] : state;
    if (unlikely(beyond)) { /* it has not finished after all */
        if (state == (dir == TO_RS ? TCP_CLOSE_WAIT : TCP_FIN_WAIT))
            return TCP_EST;
        if (state == TCP_TIME_WAIT) {
            c->flags &= (u8)~CONN_FINISHED;
            return dir == TO_RS ? TCP_FIN_WAIT : TCP_CLOSE_WAIT;
        }
    }
    return table[dir][EVENT_ACK][state];
}

const char *track_name(u32 state)
{
    static const char *const names[CONN_STATES] = {
        "TCP_NONE", "TCP_EST",  "SYN_SENT",   "SYN_RECV", "FIN_WAIT", "TIME_WAIT", "TCP_CLOSE", "CLOSE_WAIT",    "LAST_ACK",    "LISTEN",
        "SYNACK",   "UDP_NONE", "UDP_ONEWAY", "UDP_NORM", "UDP_LAST", "SCTP_EST",  "SCTP_INIT", "SCTP_SHUTDOWN", "SCTP_CLOSED",
    };
    return state < CONN_STATES ? names[state] : NULL;
}
