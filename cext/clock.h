/* clock.h: the two clocks of those outside the core. The core itself is told the time. */
#ifndef FNAT_CLOCK_H
#define FNAT_CLOCK_H

#include "base.h"

#include <time.h>

static inline u64 clock_ns(clockid_t which)
{
    struct timespec t;
    clock_gettime(which, &t);
    return (u64)t.tv_sec * 1000000000 + (u64)t.tv_nsec;
}

static inline u64 monotonic_ns(void) { return clock_ns(CLOCK_MONOTONIC); }

/* CPU time of this thread. On a shared machine other processes' turns, and what a hypervisor takes away, are not in it. */
static inline u64 thread_ns(void) { return clock_ns(CLOCK_THREAD_CPUTIME_ID); }

#endif
