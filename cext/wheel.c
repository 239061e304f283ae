/* wheel.c: see wheel.h. The first entry of a slot has WHEEL_SLOT_MARK|slot as its predecessor. */
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
    u32 head = w->head[slot];
    conns[index].wheel_next = head;
    conns[index].wheel_prev = WHEEL_SLOT_MARK | slot;
    if (head)
        conns[head].wheel_prev = index;
    w->head[slot] = index;
}

void wheel_remove(struct wheel *w, struct conn *conns, u32 index)
{
    u32 next = conns[index].wheel_next, prev = conns[index].wheel_prev;
    if (prev & WHEEL_SLOT_MARK)
        w->head[prev & ~WHEEL_SLOT_MARK] = next;
    else
        conns[prev].wheel_next = next;
    if (next)
        conns[next].wheel_prev = prev;
    conns[index].wheel_next = conns[index].wheel_prev = 0;
}

/* Take up to *budget entries out of the slot. True: the slot is empty. Entries leave in batches, so that the caller can fetch
 * what it needs for all of them at once. */
static bool empty_slot(struct wheel *w, struct conn *conns, u32 slot, u32 *budget, wheel_due *due, void *context)
{
    u32 batch[WHEEL_BATCH];
    while (w->head[slot] && *budget) {
        u32 n = 0, index;
        while (n < WHEEL_BATCH && *budget && (index = w->head[slot])) {
            u32 next = conns[index].wheel_next;
            if (next) {
                prefetch_write(&conns[next]);
                prefetch_write((u8 *)&conns[next] + CACHE_LINE);
            }
            wheel_remove(w, conns, index);
            batch[n++] = index;
            --*budget;
        }
        due(context, batch, n, w->now);
    }
    return !w->head[slot];
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
