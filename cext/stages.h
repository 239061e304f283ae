/* stages.h: what each part of a packet's way costs. The code of the packet path carries marks; an instance compiled with a constant NULL
 * clock has none of them left, the instance with a clock is for measuring only (`fnat bench nat --stages`).
 */
#ifndef FNAT_STAGES_H
#define FNAT_STAGES_H

#include "base.h"

#if defined(__x86_64__)
static inline u64 stage_cycles(void) { return __builtin_ia32_rdtsc(); }
#elif defined(__aarch64__)
static inline u64 stage_cycles(void)
{
    u64 t;
    __asm__ volatile("mrs %0, cntvct_el0" : "=r"(t));
    return t;
}
#else
#error "no cycle counter is known for this processor"
#endif

enum stage { STAGE_RX, STAGE_PARSE, STAGE_HASH, STAGE_FIND, STAGE_CONN, STAGE_REWRITE, STAGE_NEIGHBOUR, STAGE_TX, STAGE_TICK, STAGES };

struct stage_clock {
    u64 last, cycles[STAGES], marks[STAGES];
};

/* The time since the last mark belongs to this stage. */
static inline void stage_mark(struct stage_clock *s, enum stage stage)
{
    if (!s)
        return;
    u64 t = stage_cycles();
    s->cycles[stage] += t - s->last;
    s->marks[stage]++;
    s->last = t;
}

static inline void stage_begin(struct stage_clock *s)
{
    if (s)
        s->last = stage_cycles();
}

#endif
