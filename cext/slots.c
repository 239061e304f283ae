/* slots.c: see slots.h. */
#include "slots.h"

#include <errno.h>
#include <stdlib.h>

enum { RUN = 1024 }; /* members of one weight, whose draws are compared as they are; their place fits the bits that a draw leaves free */

/* Known to everybody: so are the tables, given the members. */
static const struct hash_secret PUBLIC = {{0x9e3779b97f4a7c15, 0xbf58476d1ce4e5b9, 0x94d049bb133111eb, 0xd6e8feb86659fd93}};

struct run {
    u32 end, weight;
};

static u64 hash_of(const struct snap_member *m, u32 what)
{
    return hash_addr(&PUBLIC, m->rip, (u64)what << 32 | (u64)be16(m->rport) << 8 | m->family);
}

/* ---- where it lies ---- */

static const u8 *behind_ids(const struct snap_service *s)
{
    return (const u8 *)s +
           align_up(sizeof *s + s->n_members * sizeof(struct snap_member) + (s->n_lips + s->n_deny + s->n_allow) * sizeof(u16), 8);
}

u64 slots_bytes(u8 sched, u32 n, u32 slots)
{
    switch (sched) {
    case FNAT_SCHED_MH:
        return 8 + (u64)slots * sizeof(u16);
    case FNAT_SCHED_CONHASH:
        return 8 + (u64)n * (sizeof(u32) + sizeof(u16)) + ((u64)n + n / RUN + 1) * sizeof(struct run);
    case FNAT_SCHED_FO:
        return 8 + (u64)n * sizeof(u16);
    default:
        return 0;
    }
}

const u16 *slots_table(const struct snap_service *s) { return (const u16 *)behind_ids(s); }

/* conhash: the runs, the seeds, the order. */
static const struct run *runs_of(const struct snap_service *s) { return (const struct run *)behind_ids(s); }
static const u32 *seeds_of(const struct snap_service *s) { return (const u32 *)(runs_of(s) + s->n_members + s->n_members / RUN + 1); }
const u16 *slots_order(const struct snap_service *s)
{
    return s->sched == FNAT_SCHED_FO ? (const u16 *)behind_ids(s) : (const u16 *)(seeds_of(s) + s->n_members);
}

/* ---- Maglev ---- */

struct turn {
    u32 member, taken, position, weight;
};

/* Whose turn is nearer, by weight; with equal weights they take turns in their order. */
static bool sooner(const struct turn *a, const struct turn *b)
{
    u64 of_a = (2ull * a->taken + 1) * b->weight, of_b = (2ull * b->taken + 1) * a->weight;
    return of_a < of_b || (of_a == of_b && a->member < b->member);
}

static void sift(struct turn *heap, u32 n, u32 at)
{
    for (u32 child; (child = 2 * at + 1) < n; at = child) {
        if (child + 1 < n && sooner(&heap[child + 1], &heap[child]))
            child++;
        if (!sooner(&heap[child], &heap[at]))
            return;
        struct turn t = heap[at];
        heap[at] = heap[child];
        heap[child] = t;
    }
}

int slots_maglev(const u32 *offset, const u32 *skip, const u16 *weight, u32 n, u32 slots, u16 *table)
{
    enum { EMPTY = 0xffff };
    struct turn *heap = malloc((n + 1) * sizeof *heap);
    if (!heap)
        return -ENOMEM;
    for (u32 i = 0; i < n; i++)
        heap[i] = (struct turn){i, 0, offset[i], weight[i]};
    for (u32 i = n / 2; i--;)
        sift(heap, n, i);
    memset(table, 0xff, slots * sizeof *table);
    for (u32 filled = 0; filled < slots && n; filled++) {
        struct turn *t = &heap[0];
        u32 at = t->position;
        while (table[at] != EMPTY)
            at = at + skip[t->member] >= slots ? at + skip[t->member] - slots : at + skip[t->member];
        table[at] = (u16)t->member;
        t->position = at;
        t->taken++;
        sift(heap, n, 0);
    }
    free(heap);
    return 0;
}

/* ---- orders ---- */

struct place {
    const struct snap_member *member;
    u32 index;
};

static int by_address(const void *a, const void *b)
{
    const struct snap_member *m = ((const struct place *)a)->member, *o = ((const struct place *)b)->member;
    int order = m->family - o->family;
    if (!order)
        order = memcmp(m->rip, o->rip, sizeof m->rip);
    return order ? order : (int)be16(m->rport) - be16(o->rport);
}

static int by_weight(const void *a, const void *b)
{
    const struct place *p = a, *o = b;
    int order = (int)o->member->weight - p->member->weight;
    return order ? order : (int)p->index - (int)o->index;
}

static int by_weight_and_address(const void *a, const void *b)
{
    int order = (int)((const struct place *)b)->member->weight - ((const struct place *)a)->member->weight;
    return order ? order : by_address(a, b);
}

/* Those with weight, sorted. NULL: no memory. */
static struct place *places(const struct snap_service *s, int (*order)(const void *, const void *))
{
    struct place *found = malloc((s->usable + 1) * sizeof *found);
    u32 n = 0;
    for (u32 i = 0; found && i < s->n_members; i++)
        if (s->members[i].weight)
            found[n++] = (struct place){&s->members[i], i};
    if (found)
        qsort(found, n, sizeof *found, order);
    return found;
}

static int build_table(const struct snap_service *s, const struct place *p, u16 *table)
{
    u32 n = s->usable, slots = s->slots, *offset = calloc(n + 1, 2 * sizeof(u32) + sizeof(u16)), *skip = offset + n;
    if (!offset)
        return -ENOMEM;
    u16 *weight = (u16 *)(skip + n);
    for (u32 i = 0; i < n; i++) {
        offset[i] = (u32)(hash_of(p[i].member, 0) % slots);
        skip[i] = (u32)(hash_of(p[i].member, 1) % (slots - 1)) + 1;
        weight[i] = p[i].member->weight;
    }
    int rc = slots_maglev(offset, skip, weight, n, slots, table);
    for (u32 i = 0; !rc && n && i < slots; i++)
        table[i] = (u16)p[table[i]].index;
    free(offset);
    return rc;
}

static void build_runs(struct snap_service *s, const struct place *p)
{
    struct run *runs = (struct run *)runs_of(s);
    u32 *seeds = (u32 *)seeds_of(s);
    s->runs = 0;
    for (u32 i = 0, begun = 0; i < s->usable; i++) {
        u32 weight = p[i].member->weight;
        seeds[i] = (u32)hash_of(p[i].member, 0);
        if (!s->runs || runs[s->runs - 1].weight != weight || i - begun == RUN) {
            runs[s->runs++].weight = weight;
            begun = i;
        }
        runs[s->runs - 1].end = i + 1;
    }
}

int slots_build(struct snap_service *s)
{
    bool mh = s->sched == FNAT_SCHED_MH, conhash = s->sched == FNAT_SCHED_CONHASH;
    if (!s->usable || (!mh && !conhash && s->sched != FNAT_SCHED_FO))
        return 0;
    struct place *p = places(s, mh ? by_address : conhash ? by_weight_and_address : by_weight);
    int rc = p ? 0 : -ENOMEM;
    if (p && mh)
        rc = build_table(s, p, (u16 *)slots_table(s));
    if (p && conhash)
        build_runs(s, p);
    for (u32 i = 0; p && !mh && i < s->usable; i++)
        ((u16 *)slots_order(s))[i] = (u16)p[i].index;
    free(p);
    return rc;
}

bool slots_copy(struct snap_service *s, const struct snap_service *from)
{
    if (!from || from->sched != s->sched || from->slots != s->slots || from->n_members != s->n_members)
        return false;
    for (u32 i = 0; i < s->n_members; i++) {
        const struct snap_member *m = &s->members[i], *o = &from->members[i];
        if (m->weight != o->weight || m->rport != o->rport || m->family != o->family || memcmp(m->rip, o->rip, sizeof m->rip))
            return false;
    }
    s->runs = from->runs;
    if (slots_bytes(s->sched, s->n_members, s->slots))
        memcpy((u8 *)behind_ids(s), behind_ids(from), slots_bytes(s->sched, s->n_members, s->slots) - 8);
    return true;
}

/* ---- rendezvous ---- */

static inline u32 draw(u32 hash, u32 seed) /* the finaliser of MurmurHash3 */
{
    u32 x = hash ^ seed;
    x = (x ^ x >> 16) * 0x85ebca6b;
    x = (x ^ x >> 13) * 0xc2b2ae35;
    return x ^ x >> 16;
}

/* The highest draw of seeds[from..end), with the place from the end in its low bits. */
static u32 highest(const u32 *seeds, u32 from, u32 end, u32 hash)
{
    u32 best = 0;
    for (u32 i = from; i < end; i++) {
        u32 one = (draw(hash, seeds[i]) & ~(u32)(RUN - 1)) | (RUN - 1 - (i - from));
        best = one > best ? one : best;
    }
    return best;
}

static inline double part_of_one(u32 draw) { return ((double)(draw / RUN) + 0.5) / (1ull << 32) * RUN; }

/* -ln of a draw, which is evenly spread over 0..1. By sums and products alone: libraries differ in the last place, balancers must not. */
static double waiting_time(u32 draw)
{
    union {
        double value;
        u64 bits;
    } u = {.value = part_of_one(draw)};
    int exponent = (int)(u.bits >> 52) - 1023;
    u.bits = (u.bits & ((1ull << 52) - 1)) | 1023ull << 52;
    if (u.value > 1.4142135623730951) {
        u.value *= 0.5;
        exponent++;
    }
    double t = (u.value - 1) / (u.value + 1), t2 = t * t;
    return -(exponent * 0.6931471805599453 + 2 * t * (1 + t2 * (1.0 / 3 + t2 * (1.0 / 5 + t2 * (1.0 / 7 + t2 / 9)))));
}

static int rendezvous(const struct snap_service *s, u32 hash)
{
    const struct run *runs = runs_of(s);
    const u32 *seeds = seeds_of(s);
    u32 winner = 0;
    double soonest = 0;
    for (u32 r = 0, from = 0; r < s->runs; from = runs[r++].end) {
        u32 best = highest(seeds, from, runs[r].end, hash);
        if (r && 1 - part_of_one(best) >= soonest * runs[r].weight)
            continue; /* -ln(x) >= 1 - x */
        double at = s->runs > 1 ? waiting_time(best) / runs[r].weight : 0;
        if (!r || at < soonest)
            soonest = at, winner = from + (RUN - 1 - best % RUN);
    }
    return slots_order(s)[winner];
}

int slots_rendezvous(const struct snap_service *s, u64 hash, bool (*may)(const void *context, u32 member), const void *context)
{
    const struct run *runs = runs_of(s);
    const u16 *order = slots_order(s);
    int winner = -1;
    double soonest = 0;
    for (u32 r = 0, from = 0; r < s->runs; from = runs[r++].end)
        for (u32 i = from; i < runs[r].end; i++) {
            double at = waiting_time(highest(seeds_of(s), i, i + 1, (u32)(hash >> 32))) / runs[r].weight;
            if ((winner < 0 || at < soonest) && may(context, order[i]))
                soonest = at, winner = order[i];
        }
    return winner;
}

u32 slots_part(const struct snap_service *s, u32 hash)
{
    u32 low = 0, high = s->n_members - 1, at = scale_u32(hash, s->members[s->n_members - 1].upto);
    while (low < high) {
        u32 middle = (low + high) / 2;
        if (s->members[middle].upto > at)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

u32 slots_owner(const struct snap_service *s, u64 hash)
{
    u32 high = (u32)(hash >> 32);
    if (s->sched == FNAT_SCHED_MH)
        return slots_table(s)[scale_u32(high, s->slots)];
    return s->sched == FNAT_SCHED_CONHASH ? (u32)rendezvous(s, high) : slots_part(s, high);
}
