/* fib.c: see fib.h. */
#include "fib.h"

#include <stdlib.h>

const struct fnat_route_spec *fib4_lookup(const struct fib4 *fib, u32 addr)
{
    u32 a = be32(addr), low = 0, high = fib->ranges;
    if (!high)
        return NULL;
    while (high - low > 1) {
        u32 middle = (low + high) / 2;
        if (fib->first[middle] <= a)
            low = middle;
        else
            high = middle;
    }
    return fib->leaf[low] ? &fib->routes[fib->leaf[low] - 1] : NULL;
}

/* A prefix as it is laid out: outer ones come before inner ones, of equal ones the best metric comes first. */
struct prefix {
    u32 first, last;
    u32 metric, route;
};

static int outer_first(const void *x, const void *y)
{
    const struct prefix *a = x, *b = y;
    if (a->first != b->first)
        return a->first < b->first ? -1 : 1;
    if (a->last != b->last)
        return a->last > b->last ? -1 : 1;
    if (a->metric != b->metric)
        return a->metric < b->metric ? -1 : 1;
    return a->route < b->route ? -1 : 1;
}

static u32 emit(u32 *first, u32 *leaf, u32 n, u32 from, u32 route)
{
    if (n && first[n - 1] == from)
        n--;
    if (n && leaf[n - 1] == route)
        return n;
    first[n] = from;
    leaf[n] = route;
    return n + 1;
}

u32 fib4_build(const struct fnat_route_spec *routes, u32 n, u32 *first, u32 *leaf)
{
    struct prefix *sorted = malloc((n + 1) * sizeof *sorted);
    u32 count = 0, out = 0, depth = 0;
    u32 open[34]; /* prefixes that contain the point reached, outermost first */
    if (!sorted)
        return 0;
    for (u32 i = 0; i < n; i++) {
        if (routes[i].family != 4)
            continue;
        u32 mask = routes[i].plen ? 0xffffffffu << (32 - routes[i].plen) : 0;
        u32 a = be32(get32(routes[i].prefix)) & mask;
        sorted[count++] = (struct prefix){a, a | ~mask, routes[i].metric, i + 1};
    }
    qsort(sorted, count, sizeof *sorted, outer_first);
    out = emit(first, leaf, out, 0, 0);
    for (u32 i = 0; i <= count; i++) {
        if (i && i < count && sorted[i].first == sorted[i - 1].first && sorted[i].last == sorted[i - 1].last)
            continue; /* same prefix, worse metric */
        while (depth && (i == count || sorted[open[depth - 1]].last < sorted[i].first)) {
            u32 last = sorted[open[--depth]].last;
            if (last != 0xffffffffu)
                out = emit(first, leaf, out, last + 1, depth ? sorted[open[depth - 1]].route : 0);
        }
        if (i < count) {
            out = emit(first, leaf, out, sorted[i].first, sorted[i].route);
            open[depth++] = i;
        }
    }
    free(sorted);
    return out;
}
