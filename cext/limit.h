/* limit.h: how many connections may be open at once and begin in a second: of an RS, a service, a client.
 *
 * They hold over all workers, exactly, and cost connections without a limit nothing but their count:
 *   connections at once   Each worker counts its own (member_stats, service_state). Who opens one counts it first, then, behind a fence, adds
 *                         up what all have; above the limit it takes its own back. Of all connections that are open at a moment the last
 *                         one to be counted saw all others, so there are never more than the limit. Two workers that meet
 *                         at the limit may both give up, though one would fit: the price for writing nothing that is shared.
 *   new ones in a second  One word, the time before which no more may come (GCRA): moved by compare and swap at openings only.
 *   of a client           One word a client of such a service, in a table of fixed size: a tag and a count.
 * An RS that has reached `upper` is overloaded until it has fewer connections than `lower`: a word that any worker may write.
 * A client of a persistent service keeps its RS: one word says which and until when, the same for all workers, put by compare and swap at
 * openings: who comes second takes what is there. It lasts `persistent` seconds from the last opening, and while a connection lives.
 * What is unsatisfying: clients beyond the room of their bucket of eight are not counted, so not limited (`clients_uncounted`); a
 * template without room takes the place of the one that ends first.
 */
#ifndef FNAT_LIMIT_H
#define FNAT_LIMIT_H

#include "snapshot.h"

enum { CLIENTS_IN_BUCKET = 8 };

struct limits {
    const struct worker_map *crew; /* all workers' memory */
    u32 workers, index;
    struct member_limit *members;   /* by member id */
    struct plane_service *services; /* by service id */
    u64 *clients, *templates;
    u32 client_mask; /* number of buckets - 1 */
    const struct hash_secret *secret;
};

/* May this RS get one more, as far as can be seen? */
bool limits_member_admits(const struct limits *l, const struct snap_member *m, u64 now_ns);
/* Count a connection of this RS. False: it has as many as it may, and nothing is counted. */
bool limits_member_take(const struct limits *l, const struct snap_member *m, u64 now_ns);
/* The same for the service. */
bool limits_service_take(const struct limits *l, const struct snap_service *svc);
/* One more new connection of the service. */
bool limits_rate_take(const struct limits *l, const struct snap_service *svc, u64 now_ns);

enum client_count { CLIENT_COUNTED, CLIENT_REFUSED, CLIENT_NO_ROOM };
/* A client is an IPv4 address, or the first 64 bits of an IPv6 address: what one line has (RFC 6177). */
enum client_count limits_client_take(const struct limits *l, u32 service, u32 most, u8 family, const u8 addr[16]);
void limits_client_give(const struct limits *l, u32 service, u8 family, const u8 addr[16]);

/* A template: member 24 | second of its end 24 | tag 16. */
enum { TEMPLATE_SECONDS = 0xffffff };
static inline u32 template_member(u64 word) { return (u32)(word >> 40); }
/* Its end is not past. The second wraps after 194 days: what lies longer behind than a template can last ahead is past, too. */
static inline bool template_holds(u64 word, u64 now_ns)
{
    u32 left = ((u32)(word >> 16) - (u32)(now_ns / 1000000000)) & TEMPLATE_SECONDS;
    return word && left && left <= FNAT_PERSISTENT_MOST + 1;
}

struct sticky {
    u64 *bucket, *at, word; /* at, word: as found; NULL: there is none */
    u16 tag;
};
struct sticky limits_template(const struct limits *l, u32 service, u8 family, const u8 client[16]);
bool limits_template_find(const struct limits *l, struct sticky *t, u64 now_ns);
/* The client's RS from now on. False: somebody has put another one since it was looked for. */
bool limits_template_put(const struct limits *l, struct sticky *t, u32 member, u32 seconds, u64 now_ns);
/* A connection to this RS lives. */
void limits_template_renew(const struct limits *l, u32 service, u8 family, const u8 client[16], u32 member, u64 now_ns);

/* Connections of one worker, in one word, so that one that becomes active is never seen twice or not at all. */
enum { HELD_SHIFT = 32 };
#define HELD_ACTIVE 1ull
#define HELD_INACTIVE (1ull << HELD_SHIFT)
static inline void held_add(struct member_stats *m, u64 what) { store_relaxed(&m->held, m->held + what); }
static inline u32 held_sum(u64 held) { return (u32)held + (u32)(held >> HELD_SHIFT); }
static inline void conns_add(struct service_state *s, u32 n) { store_relaxed(&s->conns, s->conns + n); }

#endif
