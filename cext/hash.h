/* hash.h: the keyed hash of flow keys: 64x64->128-bit multiplications folded, with a secret from the plane.
 *
 * A linear hash (CRC32, Toeplitz) with a secret seed still lets an attacker choose colliding flows, because differences of
 * inputs map to differences of outputs whatever the seed. A multiplication by a secret does not have that property.
 * Two rounds cost about 4 ns on their own and overlap over a batch.
 */
#ifndef FNAT_HASH_H
#define FNAT_HASH_H

#include "base.h"

struct hash_secret {
    u64 k[4];
};

static inline u64 hash_mum(u64 a, u64 b)
{
    unsigned __int128 m = (unsigned __int128)a * b;
    return (u64)m ^ (u64)(m >> 64);
}

/* addrs: source and destination IPv4 address as they lie in the header; ports: likewise. */
static inline u64 hash_flow4(const struct hash_secret *s, u64 addrs, u32 ports, u8 proto)
{
    u64 h = hash_mum(addrs ^ s->k[0], ((u64)proto << 32 | ports) ^ s->k[1]);
    return hash_mum(h ^ s->k[2], addrs ^ s->k[3]);
}

static inline u64 hash_flow6(const struct hash_secret *s, const u8 src[16], const u8 dst[16], u32 ports, u8 proto)
{
    u64 a, b, c, d;
    memcpy(&a, src, 8);
    memcpy(&b, src + 8, 8);
    memcpy(&c, dst, 8);
    memcpy(&d, dst + 8, 8);
    u64 h = hash_mum(a ^ s->k[0], b ^ s->k[1]) ^ hash_mum(c ^ s->k[2], d ^ s->k[3]);
    return hash_mum(h ^ s->k[1], ((u64)proto << 32 | ports) ^ s->k[2]);
}

/* An address with a few bytes beside it: services, owned addresses, neighbours, endpoints. */
static inline u64 hash_addr(const struct hash_secret *s, const u8 addr[16], u64 extra)
{
    u64 a, b;
    memcpy(&a, addr, 8);
    memcpy(&b, addr + 8, 8);
    return hash_mum(hash_mum(a ^ s->k[0], extra ^ s->k[1]) ^ s->k[2], b ^ s->k[3]);
}

#endif
