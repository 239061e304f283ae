/* worker.h: one polling worker: a core with queues. */
#ifndef FNAT_WORKER_H
#define FNAT_WORKER_H

#include "filter.h"
#include "stages.h"

enum { WORKER_QUEUES = 64, TX_ROOM = 2 * BATCH };

struct worker_queue {
    struct io_queue *io;
    u8 port;
    bool punt;
};

struct tx_list {
    struct io_queue *io;
    u32 n;
    struct packet packets[TX_ROOM];
};

struct fnat_worker {
    struct core core;
    struct fnat_plane *plane;
    u64 snapshot_word;
    u32 steering_version, steering_seq[LIP_MAPS];
    struct worker_queue queues[WORKER_QUEUES];
    u32 n_queues;
    struct filter kill; /* connections to be ended, from record kill_at on; 0: none */
    u32 kill_seq, kill_how, kill_at;
    long switches;             /* involuntary context switches at the last look */
    u64 looked_at, cpu_at;     /* monotonic and CPU time of that look */
    struct stage_clock *clock; /* NULL but while stages are measured */
    struct packet rx[BATCH];
    struct tx_list tx[FNAT_PORTS], punt[FNAT_PORTS];
};

int worker_open(struct fnat_plane *plane, u32 index, struct fnat_worker **out);
void worker_close(struct fnat_worker *w);
u32 worker_step(struct fnat_worker *w, u64 now_ns);

#endif
