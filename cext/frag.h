/* frag.h: datagrams that arrive in fragments. "Virtual" reassembly (RFC 4787 REQ-14, RFC 6146 3.4): nothing is put together; the first
 * fragment teaches the ports, the others find them here by (source, destination, protocol, identification). What comes before
 * the first one is held until it is known.
 *
 * Each fragment's place is remembered, so that overlapping ones are noticed (RFC 1858, RFC 3128, RFC 5722): the datagram is refused from then on.
 * All is bounded and made once, in the process's own memory: a restart forgets it. Single owner, no locks.
 * What is unsatisfying: places are kept in a plain list, so a datagram of many fragments costs a look at each of them.
 */
#ifndef FNAT_FRAG_H
#define FNAT_FRAG_H

#include "hash.h"
#include "packet.h"

enum {
    FRAG_DATAGRAMS = 4096, /* under way at a time */
    FRAG_PLACES = 128,     /* fragments of one datagram: 64 KiB in pieces of 512 bytes */
    FRAG_HELD = 256,       /* fragments that wait for the first one, of all datagrams */
    FRAG_HELD_EACH = 16,   /* of one datagram */
    FRAG_DONE_TICKS = 2,   /* a complete datagram is remembered this long, to know its late duplicates; not longer, because sockets of one
                            * host may use the same identification one after the other */
    FRAG_COUNTERS = 4096,  /* of identifications */
};

struct frag_key {
    u8 src[16], dst[16]; /* an IPv4 address in the first 4 bytes, the rest zero */
    u32 id;              /* as on the wire */
    u8 family, proto;    /* proto: 0 with IPv6 (RFC 8200 4.5) */
    u16 zero;
};
_Static_assert(sizeof(struct frag_key) == 40, "compared as bytes");

struct datagram {
    struct frag_key key;
    /* what the first fragment tells */
    bool known;
    u8 proto, tcp_flags;
    u16 sport, dport; /* network order */
    /* what it becomes */
    bool renamed;
    u32 new_id;    /* host order */
    u32 conn, gen; /* of a one-packet service: index<<1 | direction of the connection that the first fragment has opened; 0: none */
    /* what has been seen of it */
    u8 refused;      /* enum counter: the reason for which all of it is dropped; 0: none */
    bool done;       /* every byte has been seen */
    u32 total, seen; /* bytes of the payload; total 0: the last fragment has not been seen */
    u32 places;
    struct {
        u16 from, to; /* in 8-byte units */
    } place[FRAG_PLACES];
    /* where it is kept */
    u16 held, first, last; /* how many; index of the first and the last one + 1 */
    u32 since;             /* ticks */
    u32 chain, newer, older;
};

struct frag_list {
    u32 oldest, newest;
};

struct frag_table {
    struct datagram *datagrams; /* 1..FRAG_DATAGRAMS */
    u32 heads[FRAG_DATAGRAMS];
    u32 free, fresh; /* fresh: how many have ever been used */
    struct frag_list under_way, done;
    struct frag_held {
        struct packet packet;
        u16 next;
    } * held;
    u16 held_free, held_fresh;
    u32 held_count, count; /* now */
    u32 id_high, id_bits;  /* of a 16-bit identification: the worker's part */
    u32 ids[FRAG_COUNTERS];
    const struct hash_secret *secret;
};

int frag_open(struct frag_table *t, const struct hash_secret *secret, u32 worker, u32 workers);
void frag_close(struct frag_table *t);

static inline u64 frag_hash(const struct hash_secret *s, const struct frag_key *key)
{
    return hash_flow6(s, key->src, key->dst, key->id, key->proto);
}
/* The datagram of this key, made when this is the first fragment of it. NULL: no room. */
struct datagram *frag_datagram(struct frag_table *t, const struct frag_key *key, u64 hash, u32 tick);
/* The same, but NULL when it is not known. */
struct datagram *frag_find(const struct frag_table *t, const struct frag_key *key, u64 hash);
/* A fragment of `len` bytes from byte `from` on has come; `more`: it is not the last. 0, or why it may not pass. */
enum counter frag_note(struct frag_table *t, struct datagram *d, u32 from, u32 len, bool more, u32 tick);
/* Keep this fragment until the first one is known. False: no room. */
bool frag_hold(struct frag_table *t, struct datagram *d, const struct packet *p);
/* The fragment held longest. False: none is held. */
bool frag_take(struct frag_table *t, struct datagram *d, struct packet *out);
/* A datagram whose time is over; NULL: none. What it holds is to be taken, then it is to be forgotten. */
struct datagram *frag_expired(struct frag_table *t, u32 tick, u32 timeout);
void frag_forget(struct frag_table *t, struct datagram *d);

/* The next identification for packets of this source and destination: no two of the last 2^bits are equal, whichever clients they
 * come from (RFC 6864 4.3, RFC 4963), and outsiders cannot tell (RFC 7739 5.3: counters by a keyed hash). Workers share a space in equal parts. */
u32 frag_next_id(struct frag_table *t, u64 pair_hash, u32 bits);

#endif
