/* steer.h: which worker owns a local port. One rule for the allocator, the workers and the control process.
 *
 *   owner = worker[(class[lport] ^ k) & (slots - 1)]
 *
 * By mask, class is the port's low bits and k is 0: 512 slots are shared out evenly, so any number of workers is served
 * without waste. With receive-side scaling the rule is the NIC's own: class is the Toeplitz hash of the lport alone at its
 * place in the tuple of an answer, k that of the rest (RS address, LIP, RS port), and slots are the NIC's indirection table.
 * Toeplitz is linear: the hash of a tuple is the hash of its parts, XORed. So which of 64 consecutive ports are this
 * worker's depends only on (class of the first one ^ k), and one word for each of these values, 4 KiB at most, answers it
 * for every endpoint.
 *
 * The rule of a map holds for one NIC port and one flow (protocol and family), because NICs hash these apart.
 */
#ifndef FNAT_STEER_H
#define FNAT_STEER_H

#include "base.h"
#include "fnat.h"

enum { STEER_SLOTS = FNAT_STEER_SLOTS, STEER_CHUNKS = 65536 / STEER_SLOTS, STEER_WORDS = STEER_SLOTS / 64 };
enum { STEER_TUPLE4 = 12, STEER_TUPLE6 = 36 }; /* bytes: source, destination, source port, destination port */

struct steer_map {
    u64 owned[STEER_SLOTS];  /* by (class of the first port ^ k): which of 64 ports are this worker's */
    u16 high[STEER_CHUNKS];  /* class of the first port of a chunk of 512 */
    u16 middle[STEER_WORDS]; /* what the first port of a word adds to it */
    u16 low[64];             /* what a port of that word adds */
    u16 mask;                /* slots - 1 */
    u16 rest_bytes;          /* of a tuple, before the lport; 0: by mask */
    u8 worker[STEER_SLOTS];
    u16 rest[2 * (STEER_TUPLE6 - 2)][16]; /* what a half byte of the rest adds */
};

/* As NICs do it (Microsoft, "RSS hashing functions"): the key is at least 4 bytes longer than the input. */
u32 steer_toeplitz(const u8 *key, const u8 *input, u32 len);
/* 0, or -EINVAL: not a rule for these workers. */
int steer_check(const struct fnat_steering_spec *spec, u32 flow, u32 workers);
/* me: whose ports `owned` shows. */
void steer_make(struct steer_map *m, const struct fnat_steering_spec *spec, u32 flow, u32 me, u32 workers);
/* k of an endpoint; addresses are 16 bytes, IPv4 first; rport in network order. */
u32 steer_rest(const struct steer_map *m, const u8 *rip, const u8 *lip, u16 rport);

static inline u32 steer_flow(u8 proto, u8 family) { return (proto == 17 ? FNAT_FLOW_UDP4 : FNAT_FLOW_TCP4) + (family == 6 ? 2u : 0); }

static inline u32 steer_class(const struct steer_map *m, u16 lport)
{
    return m->high[lport / STEER_SLOTS] ^ m->middle[lport / 64 % STEER_WORDS] ^ m->low[lport % 64];
}
static inline u32 steer_owner(const struct steer_map *m, u16 lport, u32 k) { return m->worker[(steer_class(m, lport) ^ k) & m->mask]; }

/* Which of the 64 ports of a word are this worker's; `x`: class of the first port of its chunk ^ k. */
static inline u64 steer_owned(const struct steer_map *m, u32 word, u32 x) { return m->owned[(x ^ m->middle[word]) & m->mask]; }

#endif
