/* resolve.h: packets that wait for a neighbour, and the ageing of neighbours (RFC 826; timers of RFC 4861 section 10). */
#ifndef FNAT_RESOLVE_H
#define FNAT_RESOLVE_H

#include "core.h"

/* The packet's headers are final but for the MACs. It waits, or is dropped. dir: what it counts as when it leaves. */
rare enum verdict resolve_wait(struct core *k, struct packet *p, u32 neigh, enum direction dir);
/* Once a turn, `ticks` after the last: release or drop waiting packets, ask again, age. */
void resolve_turn(struct core *k, u32 ticks);
/* Drop all that waits. */
void resolve_quiesce(struct core *k);

#endif
