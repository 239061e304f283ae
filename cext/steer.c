/* steer.c: see steer.h. Pure: a specification in, a map out. */
#include "steer.h"

#include <errno.h>

u32 steer_toeplitz(const u8 *key, const u8 *input, u32 len)
{
    u32 hash = 0, window = (u32)key[0] << 24 | (u32)key[1] << 16 | (u32)key[2] << 8 | key[3];
    for (u32 i = 0; i < len; i++)
        for (u32 bit = 0; bit < 8; bit++) {
            if (input[i] >> (7 - bit) & 1)
                hash ^= window;
            window = window << 1 | (key[i + 4] >> (7 - bit) & 1);
        }
    return hash;
}

static u32 tuple_bytes(u32 flow) { return flow == FNAT_FLOW_TCP6 || flow == FNAT_FLOW_UDP6 ? STEER_TUPLE6 : STEER_TUPLE4; }

int steer_check(const struct fnat_steering_spec *s, u32 flow, u32 workers)
{
    if (s->mode == FNAT_STEER_MASK)
        return 0;
    if (s->mode != FNAT_STEER_RSS || !s->slots || s->slots > STEER_SLOTS || s->slots & (s->slots - 1))
        return -EINVAL;
    if (s->key_len > FNAT_STEER_KEY || s->key_len < tuple_bytes(flow) + 4)
        return -EINVAL;
    for (u32 i = 0; i < s->slots; i++)
        if (s->worker[i] >= workers)
            return -EINVAL;
    return 0;
}

static void by_mask(struct steer_map *m, u32 workers)
{
    m->mask = STEER_SLOTS - 1;
    for (u32 slot = 0; slot < STEER_SLOTS; slot++)
        m->worker[slot] = (u8)(slot % workers);
    for (u32 i = 0; i < STEER_WORDS; i++)
        m->middle[i] = (u16)(i * 64);
    for (u32 i = 0; i < 64; i++)
        m->low[i] = (u16)i;
}

static void by_hash(struct steer_map *m, const struct fnat_steering_spec *s, u32 bytes)
{
    u8 input[STEER_TUPLE6] = {0};
    u16 of_bit[16]; /* what a bit of the lport adds */
    m->mask = (u16)(s->slots - 1);
    m->rest_bytes = (u16)(bytes - 2);
    memcpy(m->worker, s->worker, s->slots);
    for (u32 n = 0; n < 2u * m->rest_bytes; n++)
        for (u32 v = 1; v < 16; v++) {
            input[n / 2] = (u8)(n % 2 ? v : v << 4);
            m->rest[n][v] = (u16)(steer_toeplitz(s->key, input, bytes) & m->mask);
            input[n / 2] = 0;
        }
    for (u32 bit = 0; bit < 16; bit++) {
        u16 port = (u16)(1u << bit);
        input[bytes - 2] = (u8)(port >> 8), input[bytes - 1] = (u8)port;
        of_bit[bit] = (u16)(steer_toeplitz(s->key, input, bytes) & m->mask);
    }
    for (u32 bit = 0; bit < 6; bit++)
        for (u32 i = 0; i < 64; i++)
            m->low[i] ^= i >> bit & 1 ? of_bit[bit] : 0;
    for (u32 bit = 0; bit < 3; bit++)
        for (u32 i = 0; i < STEER_WORDS; i++)
            m->middle[i] ^= i >> bit & 1 ? of_bit[bit + 6] : 0;
    for (u32 bit = 0; bit < 7; bit++)
        for (u32 i = 0; i < STEER_CHUNKS; i++)
            m->high[i] ^= i >> bit & 1 ? of_bit[bit + 9] : 0;
}

void steer_make(struct steer_map *m, const struct fnat_steering_spec *spec, u32 flow, u32 me, u32 workers)
{
    memset(m, 0, sizeof *m);
    if (spec && spec->mode == FNAT_STEER_RSS)
        by_hash(m, spec, tuple_bytes(flow));
    else
        by_mask(m, workers);
    for (u32 x = 0; x <= m->mask; x++)
        for (u32 i = 0; i < 64; i++)
            m->owned[x] |= (u64)(m->worker[(x ^ m->low[i]) & m->mask] == me) << i;
}

static u32 add_bytes(const struct steer_map *m, u32 at, const u8 *bytes, u32 n)
{
    u32 k = 0;
    for (u32 i = 0; i < n; i++)
        k ^= m->rest[2 * (at + i)][bytes[i] >> 4] ^ m->rest[2 * (at + i) + 1][bytes[i] & 15];
    return k;
}

u32 steer_rest(const struct steer_map *m, const u8 *rip, const u8 *lip, u16 rport)
{
    if (!m->rest_bytes)
        return 0;
    u32 addr = (m->rest_bytes - 2u) / 2;
    return add_bytes(m, 0, rip, addr) ^ add_bytes(m, addr, lip, addr) ^ add_bytes(m, 2 * addr, (const u8 *)&rport, 2);
}
