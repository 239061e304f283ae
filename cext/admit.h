/* admit.h: may this source open a connection? The general lists are asked first, then the service's; in each the deny list first. */
#ifndef FNAT_ADMIT_H
#define FNAT_ADMIT_H

#include "core.h"

/* The reason why not; 0: it may. svc NULL: nobody serves what it asks for. */
enum counter admit(struct core *k, u8 family, const u8 *src, const struct snap_service *svc);
/* Fetch what admit will read for the packets of this batch whose connection is not known. */
void admit_fetch(const struct core *k, const struct packet *pkts, u32 n);
/* Close connections that would not be admitted now: some of them a turn. */
void admit_sweep(struct core *k, u32 budget);

#endif
