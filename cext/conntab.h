/* conntab.h: where connections are found. A bucket is one cache line and says so.
 *
 * A bucket holds ten (16-bit tag, 32-bit slot) pairs and `spill`: how many entries whose first bucket this is live in their
 * second one. spill == 0 means that a miss ends after one line. The second bucket follows from first bucket and tag alone, so an
 * entry moves without its connection being read. The number of buckets is any number (multiply-high, no power of two).
 * Zeroed memory is an empty table: tag 0 marks a free place.
 *
 * The table knows no connections: it returns candidates, the caller compares the whole key.
 */
#ifndef FNAT_CONNTAB_H
#define FNAT_CONNTAB_H

#include "base.h"

#ifdef __AVX2__
#include <immintrin.h>
#endif

enum { BUCKET_PLACES = 10, CONNTAB_LOAD = 65 /* percent of places taken when every connection is open */ };

struct bucket {
    u16 tag[BUCKET_PLACES];
    u16 spill;
    u16 spare;
    u32 slot[BUCKET_PLACES]; /* ref<<1 | in-second-bucket; ref = connection index<<1 | direction */
} cache_aligned;
_Static_assert(sizeof(struct bucket) == CACHE_LINE, "a bucket is one cache line");
_Static_assert(offsetof(struct bucket, slot) == 24, "tags and spill fit the first 24 bytes");

struct conntab {
    struct bucket *buckets;
    u32 count;
};

static inline u16 conntab_tag(u64 hash)
{
    u16 tag = (u16)hash;
    return tag ? tag : 1;
}
static inline u32 conntab_first(const struct conntab *t, u64 hash) { return scale_u32((u32)(hash >> 32), t->count); }
/* The other bucket of an entry with this tag; its own inverse. */
static inline u32 conntab_other(const struct conntab *t, u32 bucket, u16 tag)
{
    u32 pivot = scale_u32((u32)tag * 0x9e3779b1u, t->count);
    return pivot >= bucket ? pivot - bucket : pivot + t->count - bucket;
}

/* Places of the bucket that hold this tag, as bits. AVX2 compares all at once; other machines in a loop the compiler unrolls. */
static inline u32 conntab_match(const struct bucket *b, u16 tag)
{
#ifdef __AVX2__
    __m256i tags = _mm256_load_si256((const __m256i *)b);
    __m256i same = _mm256_cmpeq_epi16(tags, _mm256_set1_epi16((short)tag));
    u32 bytes = (u32)_mm256_movemask_epi8(same); /* two bits a tag */
    return _pext_u32(bytes, 0x55555u);
#else
    u32 bits = 0;
    for (u32 i = 0; i < BUCKET_PLACES; i++)
        bits |= (u32)(b->tag[i] == tag) << i;
    return bits;
#endif
}

static inline u32 conntab_ref(const struct bucket *b, u32 place) { return b->slot[place] >> 1; }

u32 conntab_buckets_for(u32 conns); /* buckets for `conns` connections, two entries each, at CONNTAB_LOAD */
bool conntab_insert(struct conntab *t, u64 hash, u32 ref);
bool conntab_remove(struct conntab *t, u64 hash, u32 ref);

#endif
