/* pcap.c: a driver that plays frames prepared in memory in a loop and counts what it is asked to send.
 *
 * Rules: the list is complete before the first rx. Every frame handed out is a fresh copy, because the core rewrites
 * frames in place; fnat_pcap_measure tells what copying costs, so that a bench can subtract it. tx gives every frame
 * straight back. The format of capture files is not known here: fnat/captures.py reads them.
 *
 * Unsatisfying: what was sent is counted, not looked at; a run with --verify looks at each packet, one at a time.
 */
#include "../clock.h"
#include "../fnat.h"
#include "../io.h"

#include <errno.h>
#include <stdlib.h>

struct entry {
    u64 at;  /* offset in bytes[] */
    u32 len; /* bytes */
};

struct pcap_queue {
    struct io_base base;
    u8 *bytes; /* all frames, each from a cache line on */
    u64 used, room;
    struct entry *list;
    u32 n, capacity;
    u32 next;  /* index of the frame to hand out next */
    u32 batch; /* frames a call of rx hands out */
    u64 received, sent;
};

static unsigned pcap_rx(struct io_queue *queue, struct packet *pkts, unsigned max)
{
    struct pcap_queue *q = (struct pcap_queue *)queue;
    unsigned want = q->n ? min_u32(max, q->batch) : 0;
    unsigned got = 0;

    for (; got < want; got++) {
        const struct entry *e = &q->list[q->next];
        u32 frame = frame_alloc(q->base.pool);

        if (frame == FRAME_NONE)
            break;
        pkts[got].data = frame_data(q->base.pool, frame);
        pkts[got].frame = frame;
        pkts[got].len = (u16)e->len;
        memcpy(pkts[got].data, q->bytes + e->at, e->len);
        if (++q->next == q->n)
            q->next = 0;
    }
    store_relaxed(&q->received, q->received + got);
    return got;
}

static unsigned pcap_tx(struct io_queue *queue, struct packet *pkts, unsigned n)
{
    struct pcap_queue *q = (struct pcap_queue *)queue;

    for (unsigned i = 0; i < n; i++)
        frame_free(q->base.pool, pkts[i].frame);
    store_relaxed(&q->sent, q->sent + n);
    return n;
}

static void pcap_stats(struct io_queue *queue, struct io_stats *out)
{
    (void)queue;
    memset(out, 0, sizeof(*out));
}

static void pcap_close(struct io_queue *queue)
{
    struct pcap_queue *q = (struct pcap_queue *)queue;

    free(q->list);
    free(q->bytes);
    free(q);
}

static const struct io_driver pcap_driver = {
    .name = "pcap",
    .rx = pcap_rx,
    .tx = pcap_tx,
    .stats = pcap_stats,
    .close = pcap_close,
};

int fnat_pcap_open(struct frame_pool *pool, uint32_t batch, struct io_queue **out)
{
    struct pcap_queue *q = calloc(1, sizeof(*q));

    if (!q)
        return -ENOMEM;
    q->base.driver = &pcap_driver;
    q->base.pool = pool;
    q->base.fd = -1;
    q->batch = batch ? min_u32(batch, BATCH) : BATCH;
    *out = (struct io_queue *)q;
    return 0;
}

int fnat_pcap_add(struct io_queue *queue, const uint8_t *data, uint32_t len)
{
    struct pcap_queue *q = (struct pcap_queue *)queue;
    u64 at = align_up(q->used, CACHE_LINE);

    if (q->received)
        return -EBUSY;
    if (len > FRAME_SIZE - FRAME_HEADROOM)
        return -EMSGSIZE;
    if (at + len > q->room) {
        u64 room = 2 * (at + len) + 65536;
        u8 *bytes = realloc(q->bytes, room);

        if (!bytes)
            return -ENOMEM;
        q->bytes = bytes;
        q->room = room;
    }
    if (q->n == q->capacity) {
        u32 capacity = 2 * q->capacity + 1024;
        struct entry *list = realloc(q->list, capacity * sizeof(*list));

        if (!list)
            return -ENOMEM;
        q->list = list;
        q->capacity = capacity;
    }
    memcpy(q->bytes + at, data, len);
    q->list[q->n++] = (struct entry){.at = at, .len = len};
    q->used = at + len;
    return 0;
}

void fnat_pcap_counts(const struct io_queue *queue, uint64_t *received, uint64_t *sent)
{
    const struct pcap_queue *q = (const struct pcap_queue *)queue;

    *received = load_relaxed(&q->received);
    *sent = load_relaxed(&q->sent);
}

uint64_t fnat_pcap_measure(struct io_queue *queue, uint64_t packets)
{
    struct pcap_queue *q = (struct pcap_queue *)queue;
    struct packet pkts[BATCH];
    u64 received = q->received, sent = q->sent, done = 0, start = thread_ns();

    while (done < packets) {
        unsigned got = pcap_rx(queue, pkts, BATCH);

        if (!got)
            break;
        pcap_tx(queue, pkts, got);
        done += got;
    }
    u64 spent = thread_ns() - start;

    q->received = received;
    q->sent = sent;
    q->next = 0;
    return spent;
}
