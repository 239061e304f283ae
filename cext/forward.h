/* forward.h: the life of a packet. */
#ifndef FNAT_FORWARD_H
#define FNAT_FORWARD_H

#include "core.h"
#include "stages.h"

/* Decide on n <= BATCH packets; sets verdict, out_port and, when dropped, reason. Frames are not touched otherwise. */
void forward_batch(struct core *k, struct packet *pkts, u32 n);
/* The same code with a clock in it. */
void forward_batch_timed(struct core *k, struct packet *pkts, u32 n, struct stage_clock *clock);

#endif
