/* conntab.c: insert and remove. Finding is inline in conntab.h.
 *
 * Insert takes the first bucket if it has room, else the second, else moves one entry (then two) out of the way: breadth
 * first, so that the shortest chain of moves is taken. What is unsatisfying: a move rewrites a bucket while a reader of another
 * process may look; readers outside the worker therefore walk the connections, never the buckets.
 */
#include "conntab.h"

enum { SEARCH_NODES = 96 }; /* two roots, their twenty entries, and a share of the next level */

u32 conntab_buckets_for(u32 conns)
{
    u64 entries = (u64)conns * 2;
    return (u32)(entries * 100 / CONNTAB_LOAD / BUCKET_PLACES + 16);
}

static int free_place(const struct bucket *b)
{
    u32 bits = conntab_match(b, 0);
    return bits ? __builtin_ctz(bits) : -1;
}

static void place(struct conntab *t, u32 bucket, int at, u16 tag, u32 ref, bool second)
{
    struct bucket *b = &t->buckets[bucket];
    b->slot[at] = ref << 1 | second;
    b->tag[at] = tag;
    if (second)
        t->buckets[conntab_other(t, bucket, tag)].spill++;
}

static void vacate(struct conntab *t, u32 bucket, int at)
{
    struct bucket *b = &t->buckets[bucket];
    if (b->slot[at] & 1)
        t->buckets[conntab_other(t, bucket, b->tag[at])].spill--;
    b->tag[at] = 0;
    b->slot[at] = 0;
}

/* A bucket reached in the search; `from` and `at`: which entry of which node moves here. */
struct node {
    u32 bucket;
    s32 from;
    int at;
};

static bool make_room(struct conntab *t, u32 first, u32 second, u32 *bucket, int *at)
{
    struct node nodes[SEARCH_NODES];
    u32 count = 0;
    nodes[count++] = (struct node){first, -1, 0};
    if (second != first)
        nodes[count++] = (struct node){second, -1, 0};
    for (u32 i = 0; i < count; i++) {
        const struct bucket *b = &t->buckets[nodes[i].bucket];
        for (int e = 0; e < BUCKET_PLACES && count < SEARCH_NODES; e++) {
            u32 other = conntab_other(t, nodes[i].bucket, b->tag[e]);
            bool seen = false;
            for (u32 k = 0; k < count && !seen; k++)
                seen = nodes[k].bucket == other;
            if (seen)
                continue;
            int gap = free_place(&t->buckets[other]);
            nodes[count] = (struct node){other, (s32)i, e};
            if (gap < 0) {
                count++;
                continue;
            }
            /* Move entries along the path, last one first: every entry can be found at any moment. */
            u32 to = count;
            while (nodes[to].from >= 0) {
                u32 source = nodes[nodes[to].from].bucket;
                struct bucket *s = &t->buckets[source];
                u16 tag = s->tag[nodes[to].at];
                u32 slot = s->slot[nodes[to].at];
                vacate(t, source, nodes[to].at);
                place(t, nodes[to].bucket, gap, tag, slot >> 1, !(slot & 1));
                gap = nodes[to].at;
                to = (u32)nodes[to].from;
            }
            *bucket = nodes[to].bucket;
            *at = gap;
            return true;
        }
    }
    return false;
}

bool conntab_insert(struct conntab *t, u64 hash, u32 ref)
{
    u16 tag = conntab_tag(hash);
    u32 first = conntab_first(t, hash);
    int at = free_place(&t->buckets[first]);
    if (likely(at >= 0)) {
        place(t, first, at, tag, ref, false);
        return true;
    }
    u32 second = conntab_other(t, first, tag), bucket = second;
    at = free_place(&t->buckets[second]);
    if (at < 0 && !make_room(t, first, second, &bucket, &at))
        return false;
    place(t, bucket, at, tag, ref, bucket != first);
    return true;
}

bool conntab_remove(struct conntab *t, u64 hash, u32 ref)
{
    u16 tag = conntab_tag(hash);
    u32 bucket = conntab_first(t, hash);
    for (int round = 0; round < 2; round++) {
        struct bucket *b = &t->buckets[bucket];
        for (u32 bits = conntab_match(b, tag); bits; bits &= bits - 1) {
            int at = __builtin_ctz(bits);
            if (b->slot[at] >> 1 == ref) {
                vacate(t, bucket, at);
                return true;
            }
        }
        bucket = conntab_other(t, bucket, tag);
    }
    return false;
}
