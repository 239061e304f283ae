/* csum.h: Internet checksums (RFC 1071) and their incremental update (RFC 1624). All values as they lie in memory. */
#ifndef FNAT_CSUM_H
#define FNAT_CSUM_H

#include "net.h"

/* Adding a number's halves crosswise leaves their one's complement sum in the upper half: the carry out of the lower half is
 * the end-around carry. */
static inline u16 csum_fold(u64 sum)
{
    u32 s = (u32)((sum + (sum >> 32 | sum << 32)) >> 32);
    return (u16)((s + (s >> 16 | s << 16)) >> 16);
}

/* One's complement sum of len bytes, not folded. */
static inline u64 csum_partial(const void *data, u32 len)
{
    const u8 *p = data;
    u64 sum = 0;
    while (len >= 32) {
        u32 a = get32(p), b = get32(p + 4), c = get32(p + 8), d = get32(p + 12);
        u32 e = get32(p + 16), f = get32(p + 20), g = get32(p + 24), h = get32(p + 28);
        sum += ((u64)a + b) + ((u64)c + d) + ((u64)e + f) + ((u64)g + h);
        p += 32, len -= 32;
    }
    while (len >= 4)
        sum += get32(p), p += 4, len -= 4;
    if (len >= 2)
        sum += get16(p), p += 2, len -= 2;
    if (len)
        sum += *p;
    return sum;
}

/* Pseudo-header of TCP and UDP over IPv4 (RFC 9293 3.1); l4_len in host order. */
static inline u64 csum_pseudo4(u32 saddr, u32 daddr, u8 proto, u16 l4_len) { return (u64)saddr + daddr + be16(proto) + be16(l4_len); }

/* Pseudo-header over IPv6 (RFC 8200 8.1); src is followed by dst as in the header. */
static inline u64 csum_pseudo6(const u8 src_dst[32], u8 proto, u32 l4_len)
{
    return csum_partial(src_dst, 32) + be16(proto) + be32(l4_len);
}

/* What a checksum changes by when `from` becomes `to`, to be added to the complement (RFC 1624 eqn 3). Not folded: sums of a few
 * of them fit 64 bits. */
static inline u64 csum_delta32(u32 from, u32 to) { return (u64)(u32)~from + to; }
static inline u64 csum_delta16(u16 from, u16 to) { return (u64)(u16)~from + to; }

static inline u16 csum_apply(u16 csum, u64 delta) { return (u16)~csum_fold((u16)~csum + delta); }

/* The delta of the opposite direction. */
static inline u16 csum_negate(u16 delta) { return (u16)~delta; }

static inline u16 csum_ip4(const struct ip4_header *ip, u32 header_len) { return (u16)~csum_fold(csum_partial(ip, header_len)); }

#endif
