/* aclbench.c: what a look-up in an address set costs, beside touching one random line of as much memory. */
#include "acl.h"
#include "clock.h"
#include "fnat.h"
#include "plane.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

enum { SIDE = 64 };

static u64 dice(u64 *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    return *state ^= *state << 17;
}

/* Bytes of nodes and tables of a set. */
static u64 bytes_of(const u8 *area, u32 unit, u32 n)
{
    u64 sum = unit ? (u64)n * CACHE_LINE : 0;
    for (u32 i = 0; unit && i < n; i++) {
        const struct acl_node *node = acl_node_at(area, unit + i);
        if (node->children)
            sum += bytes_of(area, node->child, (u32)__builtin_popcountll(node->children));
    }
    return sum;
}

static u64 bytes_of_set(const u8 *area, u32 id, u32 f)
{
    const struct acl_set *s = acl_set_at(area, id);
    u64 sum = bytes_of(area, s->root[f], 1);
    for (u32 slot = 0; s->table[f] && slot < 1u << ACL_TABLE_BITS; slot++)
        sum += bytes_of(area, ((const u32 *)acl_node_at(area, s->table[f]))[slot] >> 2, 1);
    return sum + (s->table[f] ? sizeof(u32) << ACL_TABLE_BITS : 0);
}

static u64 floor_of(const u8 *lines, u64 n_lines, u64 lookups, u64 *sum)
{
    u64 state = 88172645463325252ull, began = monotonic_ns();
    for (u64 done = 0; done < lookups; done += SIDE) {
        const u8 *at[SIDE];
        for (u32 i = 0; i < SIDE; i++) {
            at[i] = lines + (u64)((unsigned __int128)dice(&state) * n_lines >> 64) * CACHE_LINE;
            prefetch(at[i]);
        }
        for (u32 i = 0; i < SIDE; i++)
            *sum += load_relaxed(at[i]);
    }
    return monotonic_ns() - began;
}

int fnat_acl_bench(const struct fnat_plane *p, uint32_t id, uint8_t family, const uint8_t *like, uint8_t plen, uint64_t lookups,
                   struct fnat_acl_bench *out)
{
    if (!id || id >= ACL_SETS || (family != 4 && family != 6) || plen > 128 || lookups % SIDE)
        return -EINVAL;
    struct acl_walk walks[SIDE];
    u128 base = acl_key(family, like), random = plen ? ((u128)1 << (128 - plen)) - 1 : ~(u128)0;
    u64 state = 88172645463325252ull, sum = 0;
    *out = (struct fnat_acl_bench){.lookups = lookups, .area_bytes = bytes_of_set(p->acl, id, family == 6)};
    u64 n_lines = out->area_bytes / CACHE_LINE + 1, huge = align_up(n_lines * CACHE_LINE, 2 << 20);
    u8 *lines = mmap(NULL, huge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (lines == MAP_FAILED)
        return -ENOMEM;
    if (p->arena.huge_page)
        madvise(lines, huge, MADV_HUGEPAGE);
    memset(lines, 1, huge);
    for (u32 round = 0; round < 2; round++) { /* the first one warms up */
        u64 began = monotonic_ns();
        out->hits = 0;
        for (u64 done = 0; done < lookups; done += SIDE) {
            for (u32 i = 0; i < SIDE; i++) {
                u128 key = base | (((u128)dice(&state) << 64 | dice(&state)) & random);
                walks[i] = (struct acl_walk){.key = family == 4 ? key >> 96 << 96 : key, .set = id, .family = family};
            }
            acl_walk_all(p->acl, walks, SIDE);
            for (u32 i = 0; i < SIDE; i++)
                out->hits += walks[i].best == ACL_YES;
        }
        out->ns = monotonic_ns() - began;
        out->floor_ns = floor_of(lines, n_lines, lookups, &sum);
    }
    u64 began = monotonic_ns();
    for (u64 done = 0; done < lookups; done++) {
        u128 key = base | (((u128)dice(&state) << 64 | dice(&state)) & random);
        sum += acl_has(p->acl, id, family, family == 4 ? key >> 96 << 96 : key);
    }
    out->alone_ns = monotonic_ns() - began;
    munmap(lines, huge);
    return sum == 1 ? -EINVAL : 0; /* the sum is needed, or there would be no touching */
}
