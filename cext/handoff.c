/* handoff.c: see handoff.h. */
#include "handoff.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

static struct handoff_ring *ring(struct handoff_ring *rings, const struct handoff *h, u32 from, u32 to)
{
    return &rings[from * h->workers + to];
}

int handoff_open(u32 workers, u32 frames, struct handoff **out)
{
    u32 pairs = workers * workers, room = 64;
    struct handoff *h = calloc(1, sizeof *h);
    if (!h)
        return -ENOMEM;
    while (room < frames + 1)
        room *= 2;
    h->workers = workers;
    h->sleepers = aligned_alloc(CACHE_LINE, workers * sizeof *h->sleepers);
    h->packets = aligned_alloc(CACHE_LINE, pairs * sizeof *h->packets);
    h->returns = aligned_alloc(CACHE_LINE, pairs * sizeof *h->returns);
    if (!h->sleepers || !h->packets || !h->returns)
        goto no_memory;
    for (u32 i = 0; i < workers; i++)
        h->sleepers[i] = (struct handoff_sleeper){.fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)};
    memset(h->packets, 0, pairs * sizeof *h->packets);
    memset(h->returns, 0, pairs * sizeof *h->returns);
    for (u32 i = 0; i < pairs; i++) {
        if (i / workers == i % workers)
            continue; /* nobody hands anything to himself */
        h->packets[i].room = HANDOFF_ROOM;
        h->returns[i].room = room;
        h->packets[i].packets = aligned_alloc(CACHE_LINE, HANDOFF_ROOM * sizeof(struct packet));
        h->returns[i].frames = malloc(room * sizeof(u32));
        if (!h->packets[i].packets || !h->returns[i].frames)
            goto no_memory;
    }
    *out = h;
    return 0;

no_memory:
    handoff_close(h);
    return -ENOMEM;
}

void handoff_close(struct handoff *h)
{
    for (u32 i = 0; i < h->workers * h->workers; i++) {
        if (h->packets)
            free(h->packets[i].packets);
        if (h->returns)
            free(h->returns[i].frames);
    }
    for (u32 i = 0; h->sleepers && i < h->workers; i++)
        close(h->sleepers[i].fd);
    free(h->sleepers);
    free(h->packets);
    free(h->returns);
    free(h);
}

bool handoff_push(struct handoff *h, u32 from, u32 to, const struct packet *p)
{
    struct handoff_ring *r = ring(h->packets, h, from, to);
    if (r->head - load_acquire(&r->tail) == r->room)
        return false;
    r->packets[r->head & (r->room - 1)] = *p;
    store_release(&r->head, r->head + 1);
    return true;
}

bool handoff_takes_rounds(const struct handoff *h, u32 from, u32 to)
{
    const struct handoff_ring *r = &h->packets[from * h->workers + to];
    return r->head - load_relaxed(&r->tail) < r->room / 2;
}

u32 handoff_pop(struct handoff *h, u32 from, u32 to, struct packet *out, u32 max)
{
    struct handoff_ring *r = ring(h->packets, h, from, to);
    u32 n = min_u32(load_acquire(&r->head) - r->tail, max);
    for (u32 i = 0; i < n; i++)
        out[i] = r->packets[(r->tail + i) & (r->room - 1)];
    store_release(&r->tail, r->tail + n);
    return n;
}

void handoff_return(struct handoff *h, u32 from, u32 home, u32 frame)
{
    struct handoff_ring *r = ring(h->returns, h, from, home);
    r->frames[r->head & (r->room - 1)] = frame;
    store_release(&r->head, r->head + 1);
}

u32 handoff_take_returned(struct handoff *h, u32 home, struct frame_pool *pool)
{
    u32 taken = 0;
    for (u32 from = 0; from < h->workers; from++) {
        struct handoff_ring *r = ring(h->returns, h, from, home);
        u32 n = load_acquire(&r->head) - r->tail;
        for (u32 i = 0; i < n; i++)
            frame_free(pool, r->frames[(r->tail + i) & (r->room - 1)]);
        if (n)
            store_release(&r->tail, r->tail + n);
        taken += n;
    }
    return taken;
}

bool handoff_waits(const struct handoff *h, u32 to)
{
    for (u32 from = 0; from < h->workers; from++) {
        const struct handoff_ring *r = &h->packets[from * h->workers + to];
        if (load_acquire(&r->head) != load_relaxed(&r->tail))
            return true;
    }
    return false;
}

void handoff_wake(struct handoff *h, u32 to)
{
    u64 one = 1;
    __atomic_thread_fence(__ATOMIC_SEQ_CST); /* after the push, before the look at `sleeping` */
    if (load_relaxed(&h->sleepers[to].sleeping) && write(h->sleepers[to].fd, &one, sizeof one) < 0)
        return; /* EAGAIN: it is being woken already */
}
