/* mem.c: frames from and to the caller's memory: tests, fuzzing, benches. One ring in, one ring out, both of frame indices. */
#include "../fnat.h"
#include "../io.h"

#include <errno.h>
#include <stdlib.h>

struct mem_entry {
    u32 frame, len;
    u8 *data;
};

struct mem_queue {
    struct io_base base;
    u32 ring, in_head, in_tail, out_head, out_tail;
    struct mem_entry *in, *out;
    u64 full;
};

static unsigned mem_rx(struct io_queue *queue, struct packet *pkts, unsigned max)
{
    struct mem_queue *q = (struct mem_queue *)queue;
    unsigned n = 0;
    for (; n < max && q->in_tail != q->in_head; n++, q->in_tail++) {
        const struct mem_entry *e = &q->in[q->in_tail % q->ring];
        pkts[n].data = e->data;
        pkts[n].frame = e->frame;
        pkts[n].len = (u16)e->len;
    }
    return n;
}

static unsigned mem_tx(struct io_queue *queue, struct packet *pkts, unsigned n)
{
    struct mem_queue *q = (struct mem_queue *)queue;
    unsigned sent = 0;
    for (unsigned i = 0; i < n; i++) {
        if (q->out_head - q->out_tail == q->ring) {
            frame_free(q->base.pool, pkts[i].frame);
            q->full++;
            continue;
        }
        q->out[q->out_head++ % q->ring] = (struct mem_entry){pkts[i].frame, pkts[i].len, pkts[i].data};
        sent++;
    }
    return sent;
}

static void mem_stats(struct io_queue *queue, struct io_stats *out)
{
    *out = (struct io_stats){.tx_no_space = ((struct mem_queue *)queue)->full};
}

static void mem_close(struct io_queue *queue)
{
    struct mem_queue *q = (struct mem_queue *)queue;
    while (q->in_tail != q->in_head)
        frame_free(q->base.pool, q->in[q->in_tail++ % q->ring].frame);
    while (q->out_tail != q->out_head)
        frame_free(q->base.pool, q->out[q->out_tail++ % q->ring].frame);
    free(q->in);
    free(q->out);
    free(q);
}

static const struct io_driver mem_driver = {"mem", mem_rx, mem_tx, mem_stats, NULL, mem_close};

int fnat_mem_open(struct frame_pool *pool, uint32_t ring, struct io_queue **out)
{
    struct mem_queue *q = calloc(1, sizeof *q);
    if (!q)
        return -ENOMEM;
    q->in = calloc(ring, sizeof *q->in);
    q->out = calloc(ring, sizeof *q->out);
    if (!ring || !q->in || !q->out) {
        free(q->in);
        free(q->out);
        free(q);
        return ring ? -ENOMEM : -EINVAL;
    }
    q->base = (struct io_base){.driver = &mem_driver, .pool = pool, .fd = -1};
    q->ring = ring;
    *out = (struct io_queue *)q;
    return 0;
}

int fnat_mem_put(struct io_queue *queue, const uint8_t *data, uint32_t len)
{
    struct mem_queue *q = (struct mem_queue *)queue;
    if (len > FRAME_SIZE - FRAME_HEADROOM)
        return -EMSGSIZE;
    if (q->in_head - q->in_tail == q->ring)
        return -ENOSPC;
    u32 frame = frame_alloc(q->base.pool);
    if (frame == FRAME_NONE)
        return -ENOBUFS;
    u8 *to = frame_data(q->base.pool, frame);
    memcpy(to, data, len);
    q->in[q->in_head++ % q->ring] = (struct mem_entry){frame, len, to};
    return 0;
}

int fnat_mem_take(struct io_queue *queue, uint8_t *out, uint32_t room)
{
    struct mem_queue *q = (struct mem_queue *)queue;
    if (q->out_tail == q->out_head)
        return -EAGAIN;
    const struct mem_entry *e = &q->out[q->out_tail % q->ring];
    if (e->len > room)
        return -EMSGSIZE;
    memcpy(out, e->data, e->len);
    frame_free(q->base.pool, e->frame);
    q->out_tail++;
    return (int)e->len;
}
