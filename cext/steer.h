/* steer.h: which worker owns a local port. One rule for the allocator, the workers and the control process.
 *
 *   owner = slot_to_worker[(lport mod 512) ^ k]
 *
 * k is 0 while answers are steered by port mask; with receive-side scaling it is the hash of the rest of the tuple.
 * 512 slots are shared out evenly, so any number of workers is served without waste.
 */
#ifndef FNAT_STEER_H
#define FNAT_STEER_H

#include "base.h"

enum { STEER_SLOTS = 512 };

static inline u32 steer_slot(u16 lport, u32 k) { return (lport ^ k) & (STEER_SLOTS - 1); }
static inline u32 steer_owner_of_slot(u32 slot, u32 workers) { return slot % workers; }
static inline u32 steer_owner(u16 lport, u32 workers) { return steer_owner_of_slot(steer_slot(lport, 0), workers); }

#endif
