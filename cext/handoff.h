/* handoff.h: packets that arrived on another worker than the one that owns their connection.
 *
 * One ring for each ordered pair of workers, single producer, single consumer, in the process's own memory; frames cross without a copy.
 * A frame is freed at home: whoever ends with a foreign frame puts it on the return ring of that pair, which has room for all
 * frames of that home, so a push cannot fail. A sleeping worker is woken by its eventfd.
 */
#ifndef FNAT_HANDOFF_H
#define FNAT_HANDOFF_H

#include "io.h"

enum { HANDOFF_ROOM = 1024, HANDOFF_ROUNDS = 4096 };

/* A packet that no worker may know goes round all of them, so a flood of junk would be multiplied by their number. Each worker
 * may cause so many hand-offs a tick (1/64 s) by that, some 3 % of a core's time, whatever arrives; and rounds use only half
 * of a ring, so that they do not crowd out packets whose owner is known. */
struct handoff_rounds {
    u32 tick, left;
};

static inline bool handoff_round_begins(struct handoff_rounds *r, u32 tick, u32 workers)
{
    if (r->tick != tick)
        *r = (struct handoff_rounds){tick, HANDOFF_ROUNDS};
    if (r->left < workers - 1)
        return false;
    r->left -= workers - 1;
    return true;
}

struct handoff_ring {
    u32 head cache_aligned; /* producer */
    u32 tail cache_aligned; /* consumer */
    u32 room;               /* a power of two */
    union {
        struct packet *packets;
        u32 *frames;
    };
};

struct handoff {
    u32 workers;
    struct handoff_sleeper {
        int fd; /* eventfd */
        u32 sleeping;
    } cache_aligned *sleepers;
    struct handoff_ring *packets; /* [from * workers + to] */
    struct handoff_ring *returns;
};

int handoff_open(u32 workers, u32 frames_per_worker, struct handoff **out);
void handoff_close(struct handoff *h);

/* False: the ring is full. */
bool handoff_push(struct handoff *h, u32 from, u32 to, const struct packet *p);
/* Is the ring less than half full? */
bool handoff_takes_rounds(const struct handoff *h, u32 from, u32 to);
u32 handoff_pop(struct handoff *h, u32 from, u32 to, struct packet *out, u32 max);
void handoff_return(struct handoff *h, u32 from, u32 home, u32 frame);
u32 handoff_take_returned(struct handoff *h, u32 home, struct frame_pool *pool);
/* Something waits for this worker. */
bool handoff_waits(const struct handoff *h, u32 to);
void handoff_wake(struct handoff *h, u32 to);

#endif
