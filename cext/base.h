/* base.h: integers, cache lines, branch hints and checks that every other file may use. */
#ifndef FNAT_BASE_H
#define FNAT_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int32_t s32;
typedef int64_t s64;

#define CACHE_LINE 64
#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)
#define rare __attribute__((noinline, cold)) /* a function that a hit does not call: kept out of the hot code */
#define always_inline inline __attribute__((always_inline))
#define cache_aligned __attribute__((aligned(CACHE_LINE)))
#define prefetch(p) __builtin_prefetch((p), 0, 3)
#define prefetch_write(p) __builtin_prefetch((p), 1, 3)
#define prefetch_near(p) __builtin_prefetch((p), 0, 2) /* into the second cache level, of which more can be under way */

/* Loads and stores that another thread or process may race with. */
#define load_acquire(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
#define store_release(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
#define load_relaxed(p) __atomic_load_n((p), __ATOMIC_RELAXED)
#define store_relaxed(p, v) __atomic_store_n((p), (v), __ATOMIC_RELAXED)

static inline u32 min_u32(u32 a, u32 b) { return a < b ? a : b; }
static inline u64 min_u64(u64 a, u64 b) { return a < b ? a : b; }
static inline u64 max_u64(u64 a, u64 b) { return a > b ? a : b; }
static inline u32 max_u32(u32 a, u32 b) { return a > b ? a : b; }

/* Map a 32-bit hash evenly onto [0, n) without a division. */
static inline u32 scale_u32(u32 h, u32 n) { return (u32)(((u64)h * n) >> 32); }

/* Serial-number comparison (RFC 1982): is a later than b? Also used for times in ticks. */
static inline bool after_u32(u32 a, u32 b) { return (s32)(a - b) > 0; }

/* Are two 16-byte addresses the same? */
static inline bool same_addr(const u8 a[16], const u8 b[16])
{
    u64 x[2], y[2];
    memcpy(x, a, 16);
    memcpy(y, b, 16);
    return !((x[0] ^ y[0]) | (x[1] ^ y[1]));
}

static inline u64 align_up(u64 v, u64 to) { return (v + to - 1) & ~(to - 1); }

#endif
