/* record.h: one connection, 128 bytes for every family and protocol. The only truth; all tables are derived from it.
 *
 * Line 0 is all that a UDP packet over IPv4 needs: finding, rewriting, counting; line 1 is TCP identity and timer. With IPv6 on
 * either side VIP and LIP are known by their ids alone, and the counts lie in line 1.
 * A record is filled, then gen becomes odd (store-release); closing makes it even first. Readers of other threads and
 * processes use gen as a sequence lock. Nothing in it depends on its index, worker or arena, the wheel links excepted, which
 * are derived. Index 0 is never a connection: 0 means "none" in every link.
 */
#ifndef FNAT_RECORD_H
#define FNAT_RECORD_H

#include "net.h"
#include "packet.h"

enum conn_state {
    TCP_NONE,
    TCP_EST,
    TCP_SYN_SENT,
    TCP_SYN_RECV,
    TCP_FIN_WAIT,
    TCP_TIME_WAIT,
    TCP_CLOSED,
    TCP_CLOSE_WAIT,
    TCP_LAST_ACK,
    TCP_LISTEN,
    TCP_SYNACK,
    UDP_NONE,
    UDP_ONEWAY,
    UDP_NORM,
    UDP_LAST,
    SCTP_EST,
    SCTP_INIT, /* half open */
    SCTP_SHUTDOWN,
    SCTP_CLOSED,
    CONN_STATES
};

enum conn_flag {
    CONN_HALF_OPEN = 1,   /* in its service's half-open list; half_prev and half_next are valid */
    CONN_SYNACK_SEEN = 2, /* the RS has answered the SYN */
    CONN_SHIFT_TS = 4,    /* timestamps are shifted by dts */
    CONN_QUIESCENT = 8,   /* service has expire-quiescent: check the member on every packet */
    CONN_ACTIVE = 16,     /* counted as active, else as inactive */
    CONN_FIRST_LOOK = 64, /* the wheel still has the entry made at opening */
    CONN_FINISHED = 32,   /* both sides have closed and the last FIN is acknowledged: its local port may be reused */
    CONN_MARKED = 128,    /* the RS is still to be told the client's address: see marks and clientaddr.h */
};

/* How the RS is told who the client is, and how far that is. */
enum conn_mark {
    MARK_MODE = 7,     /* FNAT_CLIENT_ADDR_* of the service when the connection opened */
    MARK_PROXY = 4,    /* part of the mode: bytes are inserted into a stream */
    MARK_INSECURE = 8, /* the client may bring a PROXY header of its own */
    MARK_SENT = 16,    /* the header went to the RS */
    MARK_ACKED = 32,   /* the RS has it all; its length is part of dseq */
    MARK_COUNTED = 64, /* of another matter: its client's connections are counted */
    MARK_DOUBT = 128,  /* of another matter: a segment said that the connection may be over; ask the RS when both sides stay silent */
};

struct conn_counts {
    u32 packets[2], bytes[2]; /* by direction; bytes_high extends bytes to 40 bits */
};

/* Family of the client's side and of the RS's side in one byte. */
enum { FAMILIES_44 = 0x44, FAMILIES_66 = 0x66, FAMILIES_64 = 0x46 /* IPv6 client, IPv4 RS */, FAMILIES_46 = 0x64 };
static inline u8 families(u8 client, u8 rs) { return (u8)(rs << 4 | client); }

struct conn {
    union {
        struct {
            u32 cip, vip, rip, lip;
            struct conn_counts counts;
        } v4;
        struct {
            u8 cip[16], rip[16]; /* an IPv4 address in the first 4 bytes, the rest zero */
        } v6;
    } a;
    u16 cport, vport, rport, lport; /* network order; pairs in the order of the packets that come in */
    u32 member;
    u8 proto, families, state, flags;
    u32 last_seen;          /* ticks of 1/64 s */
    u16 next_hop[2];        /* neighbour ids, by direction */
    u16 delta_l4, delta_ip; /* checksum deltas towards the RS; the way back is their complement */
    u32 gen;                /* odd: live */
    /* line 1 */
    u16 vip_id, lip_id; /* address ids */
    u32 wheel_next, wheel_prev;
    u32 opened; /* ticks */
    u32 dseq;   /* added to the client's sequence numbers; SCTP: sctp.c */
    union {
        u32 dseq_client; /* added to the RS's sequence numbers; unused while half open */
        u32 half_prev;
        u32 replaced; /* bytes of the client's stream that the inserted ones stand for; unused while half open */
    };
    u32 dts;         /* added to the client's timestamps */
    u32 next_seq[2]; /* highest sequence number sent + 1, by direction, in the sender's own numbers */
    union {
        u32 insertion; /* sequence number at which bytes were inserted; unused while half open */
        u32 half_next;
    };
    struct conn_counts counts6;
    u8 bytes_high[2], window_log2[2]; /* window: by direction, the largest that the receiver can open */
    u8 insertion_len, marks;          /* bytes inserted, or packets that told; enum conn_mark */
    u16 sync;
} cache_aligned;

_Static_assert(sizeof(struct conn) == 2 * CACHE_LINE, "a connection is two cache lines");
_Static_assert(offsetof(struct conn, cport) == 32 && offsetof(struct conn, last_seen) == 48, "line 0");
_Static_assert(offsetof(struct conn, gen) == 60 && offsetof(struct conn, vip_id) == 64, "line 1 begins with the address ids");

/* States whose timeout a service may replace. */
static inline bool conn_state_is_services(u8 state) { return state == TCP_EST || (state >= UDP_NONE && state <= SCTP_EST); }

static inline bool conn_live(const struct conn *c) { return c->gen & 1; }
/* One datagram of a one-packet service: only answers find it, the client's next datagram does not. */
static inline bool conn_one_packet(const struct conn *c) { return c->state == UDP_NONE || c->state == UDP_LAST; }
static inline struct conn_counts *conn_counts(struct conn *c) { return likely(c->families == FAMILIES_44) ? &c->a.v4.counts : &c->counts6; }

enum { CONN_INSERTION_MOST = 107 }; /* bytes */
/* What the numbers of the client's end of stream are shifted by beyond dseq: an inserted header that the RS has not yet acknowledged. */
static inline u32 conn_inserted(const struct conn *c)
{
    bool under_way = (c->marks & (MARK_PROXY | MARK_SENT | MARK_ACKED)) == (MARK_PROXY | MARK_SENT) && c->flags & CONN_MARKED;
    return under_way ? c->insertion_len - c->replaced : 0;
}

/* A header goes or went into the client's stream, and numbers of before may still be about. */
static inline bool conn_inserts(const struct conn *c)
{
    return c->flags & CONN_MARKED && c->marks & MARK_PROXY && c->proto == 6 && !(c->flags & CONN_HALF_OPEN) && c->insertion_len;
}

/* A number of the client's stream as the RS has it, of which dseq is taken off, as the client knows it: inside the header it is where that begins. */
static inline u32 conn_client_number(const struct conn *c, u32 number)
{
    u32 at = number - c->insertion;
    if (c->marks & MARK_ACKED) { /* the shift is taken off, too: what is inside the header has come to lie before its end */
        u32 short_of = c->insertion + c->replaced - number;
        return short_of - 1 < c->insertion_len ? c->insertion : number;
    }
    if ((s32)at <= 0)
        return number;
    return at < c->insertion_len ? c->insertion : number - (c->insertion_len - c->replaced);
}

/* The way back, dseq to be added: where the stream begins the RS may have meant any place up to the header's end. */
static inline u32 conn_rs_number(const struct conn *c, u32 number)
{
    bool shifted = !(c->marks & MARK_ACKED) && (s32)(number - c->insertion) > 0;
    return shifted ? number + c->insertion_len - c->replaced : number;
}

/* Family of the packets that come in in this direction. */
static inline u8 conn_family(const struct conn *c, u32 dir) { return dir == TO_RS ? c->families & 15 : c->families >> 4; }

/* Does this IPv4 packet belong to the connection, IPv4 on both sides, in direction dir? The whole key is compared. */
static inline bool conn_is4(const struct conn *c, u32 dir, const struct packet *p)
{
    const u32 *addrs = dir == TO_RS ? &c->a.v4.cip : &c->a.v4.rip;
    const u16 *ports = dir == TO_RS ? &c->cport : &c->rport;
    return get64(addrs) == get64(&p->saddr) && get32(ports) == get32(&p->sport) && c->proto == p->proto && conn_live(c) &&
           c->families == FAMILIES_44;
}

#endif
