/* io.h: the seam between a worker and a way to do I/O. A driver is one struct of functions; every call moves a batch.
 *
 * Rules a driver keeps:
 *  - rx fills data, frame, len of up to `max` packets. Frames come from the queue's frame pool and belong to the caller.
 *    FRAME_HEADROOM bytes before data are free for the caller. in_port is set by the caller.
 *  - tx takes all `n` frames, whatever happens: those it cannot send go back to the pool and are counted by the return
 *    value (n - returned = not sent). A frame that is being sent returns to the pool inside a later rx or tx call.
 *  - nothing blocks. `fd` is readable when rx has something to return (-1: always poll).
 */
#ifndef FNAT_IO_H
#define FNAT_IO_H

#include "packet.h"

/* Free frames of one worker: a stack of frame indices over a frame area. Single owner, no locks. */
struct frame_pool {
    u8 *area;     /* first byte of frame 0 */
    u64 area_len; /* bytes */
    u32 *stack;   /* indices of free frames */
    u32 free;     /* how many */
    u32 total;    /* frames this pool was made with: `first` and the ones after it */
    u32 first;
    void (*foreign)(struct frame_pool *pool, u32 frame); /* takes frames of other pools home; NULL with one worker */
    void *owner;                                         /* for `foreign` */
};

static inline u32 frame_alloc(struct frame_pool *pool) { return likely(pool->free) ? pool->stack[--pool->free] : FRAME_NONE; }
static inline void frame_free(struct frame_pool *pool, u32 frame)
{
    if (unlikely(frame - pool->first >= pool->total && pool->foreign))
        pool->foreign(pool, frame);
    else
        pool->stack[pool->free++] = frame;
}
static inline u8 *frame_data(const struct frame_pool *pool, u32 frame) { return pool->area + (u64)frame * FRAME_SIZE + FRAME_HEADROOM; }

struct io_stats {
    u64 rx_dropped;  /* received by the device, lost before rx */
    u64 rx_full;     /* receive ring full */
    u64 rx_no_frame; /* fill ring empty */
    u64 tx_invalid;  /* refused by the kernel */
    u64 tx_no_space; /* send ring full */
};

struct io_queue; /* each driver defines its own; the first member is struct io_base */

struct io_driver {
    const char *name;
    unsigned (*rx)(struct io_queue *q, struct packet *pkts, unsigned max);
    unsigned (*tx)(struct io_queue *q, struct packet *pkts, unsigned n);
    void (*stats)(struct io_queue *q, struct io_stats *out);
    /* The worker is about to sleep in poll(): ask the device for wake-ups. May be NULL. */
    void (*arm)(struct io_queue *q);
    void (*close)(struct io_queue *q);
};

struct io_base {
    const struct io_driver *driver;
    struct frame_pool *pool;
    int fd;
    u32 lent; /* frames that wait in the device for something to receive */
};

static inline unsigned io_rx(struct io_queue *q, struct packet *pkts, unsigned max)
{
    return ((struct io_base *)q)->driver->rx(q, pkts, max);
}
static inline unsigned io_tx(struct io_queue *q, struct packet *pkts, unsigned n) { return ((struct io_base *)q)->driver->tx(q, pkts, n); }
static inline int io_fd(const struct io_queue *q) { return ((const struct io_base *)q)->fd; }
static inline u32 io_lent(const struct io_queue *q) { return ((const struct io_base *)q)->lent; }
static inline void io_stats(struct io_queue *q, struct io_stats *out) { ((struct io_base *)q)->driver->stats(q, out); }
static inline void io_arm(struct io_queue *q)
{
    if (((struct io_base *)q)->driver->arm)
        ((struct io_base *)q)->driver->arm(q);
}
static inline void io_close(struct io_queue *q) { ((struct io_base *)q)->driver->close(q); }

#endif
