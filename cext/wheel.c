/* wheel.c: see wheel.h. The first entry of a lane has WHEEL_HEAD_MARK | slot * WHEEL_LANES + lane as its predecessor. */
#include "wheel.h"

void wheel_add(struct wheel *w, struct conn *conns, u32 index, u32 deadline)
{
    s32 ahead = (s32)(deadline - w->now);
    u32 slot;
    if (ahead < WHEEL_SLOTS) {
        if (ahead < 1)
            ahead = 1; /* never into the slot that is being emptied */
        slot = (w->now + (u32)ahead) % WHEEL_SLOTS;
    } else {
        u32 rounds = (deadline / WHEEL_SLOTS) - (w->now / WHEEL_SLOTS);
        slot = WHEEL_SLOTS + (w->now / WHEEL_SLOTS + min_u32(rounds, WHEEL_SLOTS - 1)) % WHEEL_SLOTS;
    }
    u32 at = slot * WHEEL_LANES + index % WHEEL_LANES, head = w->head[at];
    conns[index].wheel_next = head;
    conns[index].wheel_prev = WHEEL_HEAD_MARK | at;
    if (head)
        conns[head].wheel_prev = index;
    w->head[at] = index;
}

void wheel_remove(struct wheel *w, struct conn *conns, u32 index)
{
    u32 next = conns[index].wheel_next, prev = conns[index].wheel_prev;
    if (prev & WHEEL_HEAD_MARK)
        w->head[prev & ~WHEEL_HEAD_MARK] = next;
    else
        conns[prev].wheel_next = next;
    if (next)
        conns[next].wheel_prev = prev;
    conns[index].wheel_next = conns[index].wheel_prev = 0;
}

static inline void fetch(struct conn *conns, u32 index)
{
    prefetch_write(&conns[index]);
    prefetch_write((u8 *)&conns[index] + CACHE_LINE);
}

/* Take up to `most` entries out of the lanes of a slot, one of each lane in turn. */
static u32 take_some(u32 lanes[WHEEL_LANES], u32 mark, struct conn *conns, u32 *out, u32 most)
{
    u32 n = 0, empty = 0;
    for (u32 lane = 0; n < most && empty < WHEEL_LANES; lane = (lane + 1) % WHEEL_LANES) {
        u32 index = lanes[lane];
        if (!index) {
            empty++;
            continue;
        }
        empty = 0;
        lanes[lane] = conns[index].wheel_next;
        fetch(conns, lanes[lane]);
        conns[index].wheel_next = conns[index].wheel_prev = 0;
        out[n++] = index;
    }
    for (u32 lane = 0; lane < WHEEL_LANES; lane++)
        if (lanes[lane])
            conns[lanes[lane]].wheel_prev = mark + lane;
    return n;
}

/* Take up to *budget entries out of the slot. True: the slot is empty. Entries leave in batches, so that the caller can fetch
 * what it needs for all of them at once. */
static bool empty_slot(struct wheel *w, struct conn *conns, u32 slot, u32 *budget, wheel_due *due, void *context)
{
    u32 *lanes = &w->head[slot * WHEEL_LANES], mark = WHEEL_HEAD_MARK | slot * WHEEL_LANES, batch[WHEEL_BATCH], n, left = 0;
    for (u32 lane = 0; lane < WHEEL_LANES; lane++)
        if (lanes[lane])
            fetch(conns, lanes[lane]);
    while (*budget && (n = take_some(lanes, mark, conns, batch, min_u32(WHEEL_BATCH, *budget)))) {
        *budget -= n;
        due(context, batch, n, w->now);
    }
    for (u32 lane = 0; lane < WHEEL_LANES; lane++)
        left |= lanes[lane];
    return !left;
}

void wheel_turn(struct wheel *w, struct conn *conns, u32 now, u32 budget, wheel_due *due, void *context)
{
    if (!w->started) {
        w->now = now;
        w->started = 1;
    }
    while (after_u32(now, w->now)) {
        u32 far = WHEEL_SLOTS + (w->now / WHEEL_SLOTS) % WHEEL_SLOTS;
        if (w->now % WHEEL_SLOTS == 0 && !empty_slot(w, conns, far, &budget, due, context))
            return;
        if (!empty_slot(w, conns, w->now % WHEEL_SLOTS, &budget, due, context))
            return;
        w->now++;
    }
}
