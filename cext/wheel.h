/* wheel.h: when connections end. Two rings of slots; a slot is eight lists ("lanes") of connections, doubly linked by index.
 *
 * Ticks are 1/64 s in u32, compared as serial numbers. The near ring covers 1024 ticks (16 s) at one tick a slot, the far ring
 * 1024 x 1024 ticks (4.6 h); what lies further ahead waits in the last far slot and is put in again. A deadline is not stored: the caller
 * computes it when an entry comes due, so a packet that moves the deadline away touches nothing here.
 * A list can only be walked as fast as memory answers; eight walked in turn keep eight answers on their way.
 * Zeroed memory is an empty wheel at tick 0.
 */
#ifndef FNAT_WHEEL_H
#define FNAT_WHEEL_H

#include "record.h"

enum { WHEEL_BATCH = 32, TICKS_PER_SECOND = 64, WHEEL_SLOTS = 1024, WHEEL_LANES = 8, WHEEL_HEAD_MARK = 0x80000000 };

struct wheel {
    u32 now;     /* the next tick to look at */
    u32 started; /* now is valid */
    u32 spare[14];
    u32 head[2 * WHEEL_SLOTS * WHEEL_LANES]; /* near, far; a slot's lanes lie together */
};

/* Put in conn `index`, due at tick `deadline`. */
void wheel_add(struct wheel *w, struct conn *conns, u32 index, u32 deadline);
void wheel_remove(struct wheel *w, struct conn *conns, u32 index);
/* Called with entries that come due, already taken out, at most WHEEL_BATCH; puts those in again whose deadline has moved. */
typedef void wheel_due(void *context, const u32 *indices, u32 n, u32 tick);
/* Go on to tick `now`, looking at no more than `budget` entries; the rest follows at the next call. */
void wheel_turn(struct wheel *w, struct conn *conns, u32 now, u32 budget, wheel_due *due, void *context);

#endif
