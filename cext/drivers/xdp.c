/* xdp.c: AF_XDP as a queue. One socket is one receive and one send queue of a device (Documentation/networking/af_xdp.rst).
 *
 * A frame goes round between user and kernel through four rings of shared memory, each with one writer and one reader:
 *
 *     pool -> fill -> (kernel receives) -> rx -> worker -> tx -> (kernel sends) -> completion -> pool
 *
 * Rules:
 *  - A frame between fill and rx, or between tx and completion, is lent: lent[frame] is 1. All else is the worker's.
 *    close() takes back what is lent, wherever the kernel had it.
 *  - Every socket registers the whole frame area itself, so a frame received on one port is sent on another without a copy.
 *  - A frame arrives at least 256 bytes into its chunk: XDP_PACKET_HEADROOM, in native, generic and zero-copy mode alike.
 *  - This file knows sockets and rings; the XDP program and its maps are the business of whoever opens the queue.
 *
 * Unsatisfying: in copy mode a send is a system call for every batch. Frames beyond one chunk (multi-buffer) are not
 * built; the kernel drops them and counts them as rx_dropped.
 */
#include <errno.h>
#include <linux/if_xdp.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "xdp.h"

_Static_assert(FRAME_HEADROOM <= 256, "the kernel leaves XDP_PACKET_HEADROOM before a received frame");

enum { KICKS = 8 };                          /* most sendto calls for one batch: a call sends 32 packets, then says EAGAIN */
enum { SEND_BUFFER = 8 << 20 };              /* bytes of packets on their way through the kernel, bookkeeping included */
enum { BUSY_TRIES = 20, BUSY_WAIT_MS = 50 }; /* a closed socket keeps its queue until the kernel's deferred work has run */
enum { MIN_FRAME = 14 };                     /* an Ethernet header */

/* One end of a ring. The owner of a producer ring moves `mine` and watches `theirs`, a consumer the other way round. */
struct ring {
    u32 *producer, *consumer, *flags; /* shared with the kernel */
    void *slots;                      /* u64 offsets (fill, completion) or struct xdp_desc (rx, tx) */
    u32 mine;                         /* our index, published by ring_publish */
    u32 theirs;                       /* the kernel's index as last seen */
    u32 size, mask;
    void *map;
    size_t map_len;
};

struct xdp_queue {
    struct io_base base;
    struct ring fill, rx, tx, completion;
    u32 fill_max;  /* frames that may be lent for receiving; base.lent are */
    u32 reserve;   /* frames that filling leaves in the pool */
    u64 no_space;  /* frames not sent because the send ring was full */
    u64 misplaced; /* frames not sent because they leave their chunk */
    bool zero_copy;
    u32 frames;
    u8 lent[]; /* by frame */
};

/* ---- rings ---- */

/* Slots that a producer may write, at least `want` if there are so many. */
static inline u32 ring_room(struct ring *r, u32 want)
{
    if (r->size - (r->mine - r->theirs) < want)
        r->theirs = load_acquire(r->consumer);
    return r->size - (r->mine - r->theirs);
}

/* Slots that a consumer may read, at most `want`. */
static inline u32 ring_ready(struct ring *r, u32 want)
{
    if (r->theirs - r->mine < want)
        r->theirs = load_acquire(r->producer);
    return min_u32(r->theirs - r->mine, want);
}

static inline u64 *ring_offset(const struct ring *r, u32 i) { return (u64 *)r->slots + ((r->mine + i) & r->mask); }
static inline struct xdp_desc *ring_desc(const struct ring *r, u32 i) { return (struct xdp_desc *)r->slots + ((r->mine + i) & r->mask); }

static inline void ring_publish(struct ring *r, u32 *index, u32 n)
{
    r->mine += n;
    store_release(index, r->mine);
}

static inline bool ring_wants_wakeup(const struct ring *r) { return load_relaxed(r->flags) & XDP_RING_NEED_WAKEUP; }

/* ---- lending and taking back ---- */

static void lend_for_receiving(struct xdp_queue *q)
{
    struct frame_pool *pool = q->base.pool;
    u32 spare = pool->free > q->reserve ? pool->free - q->reserve : 0;
    u32 n = min_u32(q->fill_max - q->base.lent, spare);

    if (!n)
        return;
    n = min_u32(n, ring_room(&q->fill, n));
    for (u32 i = 0; i < n; i++) {
        u32 frame = frame_alloc(pool);
        q->lent[frame] = 1;
        *ring_offset(&q->fill, i) = (u64)frame * FRAME_SIZE;
    }
    q->base.lent += n;
    ring_publish(&q->fill, q->fill.producer, n);
}

static void take_back_sent(struct xdp_queue *q)
{
    u32 n = ring_ready(&q->completion, q->completion.size);

    if (!n)
        return;
    for (u32 i = 0; i < n; i++) {
        u32 frame = (u32)(*ring_offset(&q->completion, i) / FRAME_SIZE);
        q->lent[frame] = 0;
        frame_free(q->base.pool, frame);
    }
    ring_publish(&q->completion, q->completion.consumer, n);
}

/* Copy mode sends inside this system call; a zero-copy driver asks for it when it has gone to sleep. What cannot go out
 * now (EAGAIN, ENOBUFS, device down) stays in the ring for the next kick. */
static void kick(struct xdp_queue *q)
{
    for (int i = 0; i < KICKS; i++) {
        u32 before = load_acquire(q->tx.consumer);
        if (before == q->tx.mine || !ring_wants_wakeup(&q->tx))
            return;
        if (sendto(q->base.fd, NULL, 0, MSG_DONTWAIT, NULL, 0) >= 0 || errno != EAGAIN)
            return;
        if (load_acquire(q->tx.consumer) == before)
            return;
    }
}

/* ---- the driver ---- */

static unsigned xdp_rx(struct io_queue *queue, struct packet *pkts, unsigned max)
{
    struct xdp_queue *q = (struct xdp_queue *)queue;
    u8 *area = q->base.pool->area;
    u32 n = ring_ready(&q->rx, max);

    for (u32 i = 0; i < n; i++) {
        const struct xdp_desc *desc = ring_desc(&q->rx, i);
        u32 frame = (u32)(desc->addr / FRAME_SIZE);
        q->lent[frame] = 0;
        pkts[i].data = area + desc->addr;
        pkts[i].frame = frame;
        pkts[i].len = (u16)desc->len;
    }
    if (n) {
        ring_publish(&q->rx, q->rx.consumer, n);
        q->base.lent -= n;
    }
    take_back_sent(q);
    if (q->tx.theirs != q->tx.mine) { /* something may wait for a kick since the last tx */
        q->tx.theirs = load_acquire(q->tx.consumer);
        if (q->tx.theirs != q->tx.mine)
            kick(q);
    }
    lend_for_receiving(q);
    if (unlikely(!n && ring_wants_wakeup(&q->fill)))
        recvfrom(q->base.fd, NULL, 0, MSG_DONTWAIT, NULL, NULL);
    return n;
}

static bool fits_its_chunk(const struct xdp_queue *q, const struct packet *p)
{
    u64 start = (u64)p->frame * FRAME_SIZE;
    u64 offset = (u64)(p->data - q->base.pool->area);

    return p->frame < q->frames && offset >= start && offset + p->len <= start + FRAME_SIZE && p->len >= MIN_FRAME;
}

static unsigned xdp_tx(struct io_queue *queue, struct packet *pkts, unsigned n)
{
    struct xdp_queue *q = (struct xdp_queue *)queue;
    u8 *area = q->base.pool->area;
    u32 sent = 0;

    take_back_sent(q);
    u32 room = ring_room(&q->tx, n);
    if (unlikely(room < n)) {
        kick(q);
        take_back_sent(q);
        room = ring_room(&q->tx, n);
    }
    for (u32 i = 0; i < n; i++) {
        const struct packet *p = &pkts[i];
        /* The kernel would swallow a descriptor that it finds invalid, frame and all. */
        if (unlikely(!fits_its_chunk(q, p))) {
            q->misplaced++;
            frame_free(q->base.pool, p->frame);
            continue;
        }
        if (unlikely(sent == room)) {
            q->no_space++;
            frame_free(q->base.pool, p->frame);
            continue;
        }
        struct xdp_desc *desc = ring_desc(&q->tx, sent++);
        q->lent[p->frame] = 1;
        desc->addr = (u64)(p->data - area);
        desc->len = p->len;
        desc->options = 0;
    }
    if (sent)
        ring_publish(&q->tx, q->tx.producer, sent);
    kick(q);
    return sent;
}

static void xdp_stats(struct io_queue *queue, struct io_stats *out)
{
    const struct xdp_queue *q = (const struct xdp_queue *)queue;
    struct xdp_statistics s = {0};
    socklen_t len = sizeof(s);

    getsockopt(q->base.fd, SOL_XDP, XDP_STATISTICS, &s, &len);
    *out = (struct io_stats){
        .rx_dropped = s.rx_dropped,
        .rx_full = s.rx_ring_full,
        .rx_no_frame = s.rx_fill_ring_empty_descs,
        .tx_invalid = s.tx_invalid_descs + q->misplaced,
        .tx_no_space = q->no_space,
    };
}

/* poll() itself wakes a zero-copy driver and sends what waits in copy mode; only the frames must be there before. */
static void xdp_arm(struct io_queue *queue)
{
    struct xdp_queue *q = (struct xdp_queue *)queue;

    take_back_sent(q);
    lend_for_receiving(q);
    kick(q);
    if (ring_wants_wakeup(&q->fill))
        recvfrom(q->base.fd, NULL, 0, MSG_DONTWAIT, NULL, NULL);
}

static void wait_ms(long ms) { nanosleep(&(struct timespec){.tv_nsec = ms * 1000000}, NULL); }

static void ring_unmap(struct ring *r)
{
    if (r->map)
        munmap(r->map, r->map_len);
}

/* Also undoes an open that failed half-way. */
static void xdp_close(struct io_queue *queue)
{
    struct xdp_queue *q = (struct xdp_queue *)queue;

    if (q->base.fd >= 0)
        close(q->base.fd);
    ring_unmap(&q->completion);
    ring_unmap(&q->tx);
    ring_unmap(&q->rx);
    ring_unmap(&q->fill);
    for (u32 frame = 0; frame < q->frames; frame++)
        if (q->lent[frame])
            frame_free(q->base.pool, frame);
    free(q);
}

static const struct io_driver xdp_driver = {
    .name = "xdp",
    .rx = xdp_rx,
    .tx = xdp_tx,
    .stats = xdp_stats,
    .arm = xdp_arm,
    .close = xdp_close,
};

/* ---- opening ---- */

static int ring_map(struct ring *r, int fd, int option, u32 size, size_t slot, const struct xdp_ring_offset *off, off_t page_offset)
{
    if (setsockopt(fd, SOL_XDP, option, &size, sizeof(size)) < 0)
        return -errno;
    size_t len = off->desc + size * slot;
    void *map = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, page_offset);
    if (map == MAP_FAILED)
        return -errno;
    *r = (struct ring){
        .producer = (u32 *)((u8 *)map + off->producer),
        .consumer = (u32 *)((u8 *)map + off->consumer),
        .flags = (u32 *)((u8 *)map + off->flags),
        .slots = (u8 *)map + off->desc,
        .size = size,
        .mask = size - 1,
        .map = map,
        .map_len = len,
    };
    return 0;
}

static int register_frames(int fd, const void *area, u64 len)
{
    struct xdp_umem_reg frames = {.addr = (u64)(uintptr_t)area, .len = len, .chunk_size = FRAME_SIZE};

    return setsockopt(fd, SOL_XDP, XDP_UMEM_REG, &frames, sizeof(frames)) < 0 ? -errno : 0;
}

static int map_rings(struct xdp_queue *q, u32 size)
{
    struct xdp_mmap_offsets off;
    socklen_t len = sizeof(off);
    int fd = q->base.fd, rc;

    if (getsockopt(fd, SOL_XDP, XDP_MMAP_OFFSETS, &off, &len) < 0)
        return -errno;
    if ((rc = ring_map(&q->fill, fd, XDP_UMEM_FILL_RING, size, sizeof(u64), &off.fr, (off_t)XDP_UMEM_PGOFF_FILL_RING)))
        return rc;
    if ((rc = ring_map(&q->completion, fd, XDP_UMEM_COMPLETION_RING, size, sizeof(u64), &off.cr, (off_t)XDP_UMEM_PGOFF_COMPLETION_RING)))
        return rc;
    if ((rc = ring_map(&q->rx, fd, XDP_RX_RING, size, sizeof(struct xdp_desc), &off.rx, XDP_PGOFF_RX_RING)))
        return rc;
    return ring_map(&q->tx, fd, XDP_TX_RING, size, sizeof(struct xdp_desc), &off.tx, (off_t)XDP_PGOFF_TX_RING);
}

/* Without XDP_COPY the kernel takes zero-copy where the driver has it. */
static int bind_queue(int fd, int ifindex, u32 queue, u16 flags)
{
    struct sockaddr_xdp to = {.sxdp_family = AF_XDP, .sxdp_flags = flags, .sxdp_ifindex = (u32)ifindex, .sxdp_queue_id = queue};

    return bind(fd, (struct sockaddr *)&to, sizeof(to)) < 0 ? -errno : 0;
}

static bool is_zero_copy(int fd)
{
    struct xdp_options options = {0};
    socklen_t len = sizeof(options);

    return getsockopt(fd, SOL_XDP, XDP_OPTIONS, &options, &len) == 0 && (options.flags & XDP_OPTIONS_ZEROCOPY);
}

int xdp_queue_open(const struct xdp_params *params, struct io_queue **out)
{
    struct frame_pool *pool = params->pool;
    u32 frames = (u32)(pool->area_len / FRAME_SIZE);
    int rc;

    if (!params->ring || (params->ring & (params->ring - 1)) || !params->fill || params->fill > params->ring)
        return -EINVAL;
    struct xdp_queue *q = calloc(1, sizeof(*q) + frames);
    if (!q)
        return -ENOMEM;
    q->base = (struct io_base){.driver = &xdp_driver, .pool = pool, .fd = socket(AF_XDP, SOCK_RAW | SOCK_CLOEXEC, 0)};
    q->frames = frames;
    q->fill_max = params->fill;
    q->reserve = pool->total / 8;
    rc = -errno;
    if (q->base.fd < 0)
        goto failed;
    if ((rc = register_frames(q->base.fd, pool->area, pool->area_len)))
        goto failed;
    if ((rc = map_rings(q, params->ring)))
        goto failed;
    /* Only lifts a limit: with the default one packets wait in the ring a little longer. */
    setsockopt(q->base.fd, SOL_SOCKET, SO_SNDBUFFORCE, &(int){SEND_BUFFER}, sizeof(int));
    lend_for_receiving(q); /* a zero-copy driver takes its first frames when it is bound */
    for (int i = 0; i < BUSY_TRIES; i++) {
        rc = bind_queue(q->base.fd, params->ifindex, params->queue, XDP_USE_NEED_WAKEUP | (params->copy ? XDP_COPY : 0));
        if (rc != -EBUSY)
            break;
        wait_ms(BUSY_WAIT_MS);
    }
    if (rc)
        goto failed;
    q->zero_copy = is_zero_copy(q->base.fd);
    *out = (struct io_queue *)q;
    return 0;
failed:
    xdp_close((struct io_queue *)q);
    return rc;
}

bool xdp_queue_zero_copy(const struct io_queue *queue) { return ((const struct xdp_queue *)queue)->zero_copy; }

int xdp_queue_busy(int ifindex, u32 queue)
{
    struct xdp_queue q = {.base.fd = socket(AF_XDP, SOCK_RAW | SOCK_CLOEXEC, 0)};
    int rc = -errno;

    if (q.base.fd < 0)
        return rc;
    void *page = mmap(NULL, FRAME_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED) {
        rc = -errno;
        goto no_page;
    }
    if ((rc = register_frames(q.base.fd, page, FRAME_SIZE)) || (rc = map_rings(&q, 1)))
        goto no_rings;
    for (int i = 0; i < BUSY_TRIES; i++) {
        rc = bind_queue(q.base.fd, ifindex, queue, XDP_COPY);
        if (rc != -EBUSY)
            break;
        wait_ms(BUSY_WAIT_MS);
    }
    rc = rc == -EBUSY ? 1 : rc;
no_rings:
    ring_unmap(&q.completion);
    ring_unmap(&q.tx);
    ring_unmap(&q.rx);
    ring_unmap(&q.fill);
    munmap(page, FRAME_SIZE);
no_page:
    close(q.base.fd);
    return rc;
}
