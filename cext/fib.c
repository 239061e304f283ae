/* fib.c: see fib.h. */
#include "fib.h"

#include <errno.h>
#include <stdlib.h>

/* ---- looking up ---- */

static u128 key_of(u8 family, const u8 addr[16])
{
    if (family == 4)
        return (u128)be32(get32(addr)) << 96;
    return (u128)__builtin_bswap64(get64(addr)) << 64 | __builtin_bswap64(get64(addr + 8));
}

/* The last of n > 0 sorted values that is not above `at`. Steps, not branches, so that nothing is guessed wrong. */
static u32 search4(const u32 *first, u32 n, u32 at)
{
    u32 found = 0;
    for (; n > 1; n -= n / 2)
        found += first[found + n / 2] <= at ? n / 2 : 0;
    return found;
}

static u32 search6(const u128 *first, u32 n, u128 at)
{
    u32 found = 0;
    for (; n > 1; n -= n / 2)
        found += first[found + n / 2] <= at ? n / 2 : 0;
    return found;
}

static u32 leaf_of(const struct fib *fib, u8 family, const u8 addr[16])
{
    if (family == 4)
        return fib->n.ranges4 ? fib->leaf4[search4(fib->first4, fib->n.ranges4, be32(get32(addr)))] : 0;
    return fib->n.ranges6 ? fib->leaf6[search6(fib->first6, fib->n.ranges6, key_of(6, addr))] : 0;
}

/* All bits of the result depend on all of x: the finalizer of MurmurHash3. */
static u64 mixed(u64 x)
{
    x = (x ^ x >> 33) * 0xff51afd7ed558ccdull;
    x = (x ^ x >> 33) * 0xc4ceb9fe1a85ec53ull;
    return x ^ x >> 33;
}

/* Rendezvous hashing: each hop draws a number for the flow, the highest wins; so only flows of a hop that goes move. */
static const struct fib_hop *choose(const struct fib_hop *hops, u32 n, u32 flow)
{
    const struct fib_hop *best = hops;
    u64 highest = 0, f = mixed(flow);
    for (u32 i = 0; i < n; i++) {
        u64 drawn = mixed(hops[i].key ^ f);
        if (drawn > highest)
            highest = drawn, best = &hops[i];
    }
    return best;
}

u32 fib_equals(const struct fib *fib, u8 family, const u8 addr[16], const struct fib_hop **out)
{
    u32 leaf = leaf_of(fib, family, addr);
    *out = &fib->hops[leaf >> FIB_SET_BITS];
    return leaf ? leaf % FIB_SET + 1 : 0;
}

const struct fib_hop *fib_lookup(const struct fib *fib, u8 family, const u8 addr[16], u32 flow)
{
    const struct fib_hop *hops;
    u32 n = fib_equals(fib, family, addr, &hops);
    return n > 1 ? choose(hops, n, flow) : n ? hops : NULL;
}

/* ---- the block ---- */

/* Where the parts begin, in bytes from the block, and where the last one ends. */
struct layout {
    u64 mtus, hops, first6, leaf6, first4, leaf4, end;
};

static struct layout layout_of(struct fib_sizes n)
{
    struct layout l = {0};
    l.hops = align_up(l.mtus + FIB_MTUS * sizeof(u16), CACHE_LINE);
    l.first6 = align_up(l.hops + (n.hops + 1ull) * sizeof(struct fib_hop), CACHE_LINE);
    l.leaf6 = align_up(l.first6 + n.ranges6 * sizeof(u128), CACHE_LINE);
    l.first4 = align_up(l.leaf6 + n.ranges6 * sizeof(u32), CACHE_LINE);
    l.leaf4 = align_up(l.first4 + n.ranges4 * sizeof(u32), CACHE_LINE);
    l.end = align_up(l.leaf4 + n.ranges4 * sizeof(u32), CACHE_LINE);
    return l;
}

u64 fib_bytes(struct fib_sizes n) { return layout_of(n).end; }

struct fib fib_at(const void *block, struct fib_sizes n)
{
    struct layout l = layout_of(n);
    const u8 *at = block;
    return (struct fib){
        .first4 = (const u32 *)(at + l.first4),
        .leaf4 = (const u32 *)(at + l.leaf4),
        .first6 = (const u128 *)(at + l.first6),
        .leaf6 = (const u32 *)(at + l.leaf6),
        .hops = (const struct fib_hop *)(at + l.hops),
        .mtus = (const u16 *)(at + l.mtus),
        .n = n,
    };
}

/* ---- building ---- */

/* A route as it is sorted: outer prefixes come before inner ones, of equal ones the best metric comes first. When its equals are put
 * together, the first of them stands for all. */
struct prefix {
    u128 first, last;
    u32 metric, route;
    u32 leaf;
    u8 family, plen;
};

struct building {
    const struct fnat_route_spec *routes;
    struct prefix *prefixes;
    u32 count;
    struct fib_hop *hops; /* sets one after the other; hops[0] is unused */
    u32 hops_room;
    u32 *sets; /* leaves of all sets, a hash table */
    u32 sets_mask, n_sets;
    u8 *class_of; /* by MTU */
    u128 *first6; /* ranges, the families one after the other */
    u32 *first4, *leaf4, *leaf6;
    struct fib_sizes n;
};

static int outer_first(const void *x, const void *y)
{
    const struct prefix *a = x, *b = y;
    if (a->family != b->family)
        return a->family < b->family ? -1 : 1;
    if (a->first != b->first)
        return a->first < b->first ? -1 : 1;
    if (a->plen != b->plen)
        return a->plen < b->plen ? -1 : 1;
    if (a->metric != b->metric)
        return a->metric < b->metric ? -1 : 1;
    return a->route < b->route ? -1 : 1;
}

/* An address of 16 bytes that only has the first 4, as IPv4 addresses lie. */
static bool is_short(const u8 a[16]) { return !(get32(a + 4) | get64(a + 8)); }

/* RFC 791: every link carries 68 bytes; RFC 8200 5: 1280. */
static bool is_sound(const struct fnat_route_spec *r)
{
    static const u8 none[16];
    bool four = r->family == 4;
    if ((!four && r->family != 6) || r->plen > (four ? 32 : 128) || r->port >= FNAT_PORTS || r->kind > FNAT_ROUTE_UNREACHABLE)
        return false;
    if (r->mtu && (r->mtu < (four ? 68 : 1280) || r->mtu > 65535))
        return false;
    if (four)
        return is_short(r->gateway) && is_short(r->src);
    return (!is_short(r->gateway) || same_addr(r->gateway, none)) && (!is_short(r->src) || same_addr(r->src, none));
}

static struct prefix prefix_of(const struct fnat_route_spec *r, u32 route)
{
    u128 all = r->family == 4 ? ~(u128)0 << 96 : ~(u128)0; /* bits an address has */
    u128 mask = r->plen ? ~(u128)0 << (128 - r->plen) : 0, first = key_of(r->family, r->prefix) & mask;
    return (struct prefix){first, first | (all & ~mask), r->metric, route, 0, r->family, r->plen};
}

static u16 mtu_of(const struct fnat_route_spec *r) { return r->kind == FNAT_ROUTE_UNICAST ? (u16)r->mtu : 0; }

/* A class for each MTU of the routes: its old one, else one that no route uses, preferably never used before. */
static int give_classes(struct building *b, u32 n, u16 mtus[FIB_MTUS])
{
    u32 fresh = 1, spare = 1;
    bool wanted[FIB_MTUS] = {0};
    for (u32 i = 1; i < FIB_MTUS; i++)
        if (mtus[i])
            b->class_of[mtus[i]] = (u8)i;
    for (u32 i = 0; i < n; i++)
        wanted[b->class_of[mtu_of(&b->routes[i])]] = true;
    for (u32 i = 0; i < n; i++) {
        u16 mtu = mtu_of(&b->routes[i]);
        if (!mtu || b->class_of[mtu])
            continue;
        while (fresh < FIB_MTUS && mtus[fresh])
            fresh++;
        while (spare < FIB_MTUS && wanted[spare])
            spare++;
        u32 next = fresh < FIB_MTUS ? fresh : spare;
        if (next == FIB_MTUS)
            return -E2BIG;
        if (mtus[next])
            b->class_of[mtus[next]] = 0;
        mtus[next] = mtu;
        wanted[next] = true;
        b->class_of[mtu] = (u8)next;
    }
    return 0;
}

static struct fib_hop hop_of(const struct building *b, const struct fnat_route_spec *r)
{
    struct fib_hop hop = {.kind = r->kind};
    if (r->kind != FNAT_ROUTE_UNICAST)
        return hop;
    memcpy(hop.gateway, r->gateway, 16);
    memcpy(hop.src, r->src, 16);
    hop.port = r->port, hop.mtu = mtu_of(r), hop.mtu_class = b->class_of[hop.mtu];
    hop.on_link = !(get64(r->gateway) | get64(r->gateway + 8));
    hop.key = mixed(mixed(mixed(get64(r->gateway)) ^ get64(r->gateway + 8)) ^ (r->port + 1u));
    return hop;
}

static int by_key(const void *x, const void *y)
{
    const struct fib_hop *a = x, *b = y;
    if (a->key != b->key)
        return a->key < b->key ? -1 : 1;
    return memcmp(a, b, sizeof *a);
}

static bool more_sets(struct building *b)
{
    u32 mask = b->sets_mask ? 2 * b->sets_mask + 1 : 255, *sets = calloc(mask + 1ull, sizeof *sets);
    if (!sets)
        return false;
    for (u32 i = 0; b->sets && i <= b->sets_mask; i++) {
        u32 leaf = b->sets[i];
        if (!leaf)
            continue;
        u32 at = (u32)b->hops[leaf >> FIB_SET_BITS].key & mask;
        while (sets[at])
            at = (at + 1) & mask;
        sets[at] = leaf;
    }
    free(b->sets);
    b->sets = sets;
    b->sets_mask = mask;
    return true;
}

/* The leaf of these hops, which lie behind all that are known. 0: no memory. */
static u32 leaf_for(struct building *b, u32 n)
{
    if (2 * b->n_sets >= b->sets_mask && !more_sets(b))
        return 0;
    const struct fib_hop *set = &b->hops[b->n.hops + 1];
    u32 at = (u32)set->key & b->sets_mask;
    for (u32 leaf; (leaf = b->sets[at]); at = (at + 1) & b->sets_mask)
        if (leaf % FIB_SET + 1 == n && !memcmp(&b->hops[leaf >> FIB_SET_BITS], set, n * sizeof *set))
            return leaf;
    b->sets[at] = (b->n.hops + 1) << FIB_SET_BITS | (n - 1);
    b->n.hops += n;
    b->n_sets++;
    return b->sets[at];
}

static bool room_for_set(struct building *b)
{
    if (b->n.hops + 1 + FIB_SET <= b->hops_room)
        return true;
    u32 room = 2 * b->hops_room + 1 + FIB_SET;
    struct fib_hop *hops = realloc(b->hops, (u64)room * sizeof *hops);
    if (!hops)
        return false;
    b->hops = hops;
    b->hops_room = room;
    return true;
}

/* The hops of the best routes among those from prefix i to before `end`, which are equal but for metric and hop. */
static int gather(struct building *b, u32 i, u32 end)
{
    u32 n = 0, kept = 0, metric = b->prefixes[i].metric;
    if (!room_for_set(b))
        return -ENOMEM;
    struct fib_hop *set = &b->hops[b->n.hops + 1];
    bool unicast = b->routes[b->prefixes[i].route].kind == FNAT_ROUTE_UNICAST;
    for (u32 j = i; j < end && b->prefixes[j].metric == metric; j++) {
        const struct fnat_route_spec *r = &b->routes[b->prefixes[j].route];
        if (j > i && (!unicast || r->kind != FNAT_ROUTE_UNICAST))
            continue;
        if (n == FIB_SET)
            return -E2BIG;
        set[n++] = hop_of(b, r);
    }
    qsort(set, n, sizeof *set, by_key);
    for (u32 j = 0; j < n; j++) /* a hop given twice is one */
        if (!kept || set[kept - 1].key != set[j].key)
            set[kept++] = set[j];
    b->prefixes[i].leaf = leaf_for(b, kept);
    return b->prefixes[i].leaf ? 0 : -ENOMEM;
}

/* One entry for each prefix, with its leaf. */
static int gather_all(struct building *b)
{
    u32 kept = 0;
    for (u32 i = 0, end; i < b->count; i = end) {
        const struct prefix *p = &b->prefixes[i];
        for (end = i + 1; end < b->count; end++)
            if (b->prefixes[end].family != p->family || b->prefixes[end].first != p->first || b->prefixes[end].plen != p->plen)
                break;
        int rc = gather(b, i, end);
        if (rc)
            return rc;
        b->prefixes[kept++] = b->prefixes[i];
    }
    b->count = kept;
    return 0;
}

/* From here on this leaf. A range without length is replaced, one with the same leaf goes on. */
static void emit(struct building *b, u8 family, u128 from, u32 leaf)
{
    u32 *n = family == 4 ? &b->n.ranges4 : &b->n.ranges6, *leaves = family == 4 ? b->leaf4 : b->leaf6;
    if (*n && (family == 4 ? (u128)b->first4[*n - 1] << 96 : b->first6[*n - 1]) == from)
        --*n;
    if (*n && leaves[*n - 1] == leaf)
        return;
    if (family == 4)
        b->first4[*n] = (u32)(from >> 96);
    else
        b->first6[*n] = from;
    leaves[(*n)++] = leaf;
}

static void flatten(struct building *b, const struct prefix *p, u32 count)
{
    const struct prefix *open[130]; /* prefixes that contain the point reached, outermost first */
    u32 depth = 0;
    if (!count)
        return;
    u8 family = p->family;
    u128 step = family == 4 ? (u128)1 << 96 : 1;
    emit(b, family, 0, 0);
    for (u32 i = 0; i <= count; i++) {
        while (depth && (i == count || open[depth - 1]->last < p[i].first)) {
            u128 behind = open[--depth]->last + step;
            if (behind) /* else it was the last address of all */
                emit(b, family, behind, depth ? open[depth - 1]->leaf : 0);
        }
        if (i < count) {
            emit(b, family, p[i].first, p[i].leaf);
            open[depth++] = &p[i];
        }
    }
}

static int make_ranges(struct building *b)
{
    u32 fours = 0;
    while (fours < b->count && b->prefixes[fours].family == 4)
        fours++;
    u64 room4 = 2ull * fours + 1, room6 = 2ull * (b->count - fours) + 1;
    b->first4 = malloc(room4 * sizeof *b->first4);
    b->leaf4 = malloc(room4 * sizeof *b->leaf4);
    b->first6 = malloc(room6 * sizeof *b->first6);
    b->leaf6 = malloc(room6 * sizeof *b->leaf6);
    if (!b->first4 || !b->leaf4 || !b->first6 || !b->leaf6)
        return -ENOMEM;
    flatten(b, b->prefixes, fours);
    flatten(b, b->prefixes + fours, b->count - fours);
    return 0;
}

static void *pack(const struct building *b, const u16 mtus[FIB_MTUS])
{
    u64 len = fib_bytes(b->n);
    void *block = aligned_alloc(CACHE_LINE, len);
    if (!block)
        return NULL;
    memset(block, 0, len);
    struct fib to = fib_at(block, b->n);
    memcpy((void *)to.mtus, mtus, FIB_MTUS * sizeof *mtus);
    if (b->n.hops)
        memcpy((void *)(to.hops + 1), b->hops + 1, b->n.hops * sizeof *b->hops);
    memcpy((void *)to.first4, b->first4, b->n.ranges4 * sizeof *b->first4);
    memcpy((void *)to.leaf4, b->leaf4, b->n.ranges4 * sizeof *b->leaf4);
    memcpy((void *)to.first6, b->first6, b->n.ranges6 * sizeof *b->first6);
    memcpy((void *)to.leaf6, b->leaf6, b->n.ranges6 * sizeof *b->leaf6);
    return block;
}

int fib_build(const struct fnat_route_spec *routes, u32 n, u16 mtus[FIB_MTUS], void **block, struct fib_sizes *sizes)
{
    struct building b = {.routes = routes};
    u16 classes[FIB_MTUS];
    int rc = n < 1u << (31 - FIB_SET_BITS) ? 0 : -E2BIG;
    for (u32 i = 0; i < n && !rc; i++)
        if (!is_sound(&routes[i]))
            rc = -EINVAL;
    if (rc)
        return rc;
    rc = -ENOMEM;
    b.prefixes = malloc((n + 1ull) * sizeof *b.prefixes);
    b.class_of = calloc(65536, 1);
    if (!b.prefixes || !b.class_of)
        goto end;
    memcpy(classes, mtus, sizeof classes);
    if ((rc = give_classes(&b, n, classes)))
        goto end;
    for (u32 i = 0; i < n; i++)
        b.prefixes[b.count++] = prefix_of(&routes[i], i);
    qsort(b.prefixes, b.count, sizeof *b.prefixes, outer_first);
    if ((rc = gather_all(&b)) || (rc = make_ranges(&b)))
        goto end;
    rc = -ENOMEM;
    if (!(*block = pack(&b, classes)))
        goto end;
    memcpy(mtus, classes, sizeof classes);
    *sizes = b.n;
    rc = 0;
end:
    free(b.leaf6);
    free(b.first6);
    free(b.leaf4);
    free(b.first4);
    free(b.sets);
    free(b.hops);
    free(b.class_of);
    free(b.prefixes);
    return rc;
}
