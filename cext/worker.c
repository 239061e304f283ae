/* worker.c: the only file that knows both I/O and forwarding. One turn of a worker:
 * adopt the newest snapshot - receive - forward - send - tick.
 *
 * A worker's memory is its arena and this process's view of it. Opening an arena that holds connections rebuilds all that is
 * derived from them; packets that waited in the process that ended are lost.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "worker.h"

#include "admit.h"
#include "announce.h"
#include "clock.h"
#include "conn.h"
#include "forward.h"
#include "pieces.h"
#include "resolve.h"

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

enum {
    DUE_PER_TURN = 512,
    KILL_LOOKS_PER_TURN = 4096,
    SWEEP_PER_TURN = 64,
    LONG_RUN = 8 /* packets that are worth a call of their own, instead of being copied to a list */
};

/* ---- opening ---- */

static void bind_core(struct core *k, struct fnat_plane *p, u32 index)
{
    struct worker_map *m = &p->maps[index];
    k->index = index;
    k->workers = p->config.workers;
    k->secret = p->header->secret;
    k->area = p->snapshots;
    k->acl = p->acl;
    k->header = m->header;
    k->counters = m->header->counters;
    k->wheel = &m->header->wheel;
    k->table = (struct conntab){m->buckets, m->bucket_count};
    k->conns = m->conns;
    k->conn_capacity = p->config.conns;
    k->members = m->members;
    k->services = m->services;
    k->addresses = m->addresses;
    k->plane_addresses = p->addresses;
    k->plane_members = p->members;
    k->plane_services = p->services;
    k->limits = (struct limits){.crew = p->maps,
                                .workers = p->config.workers,
                                .index = index,
                                .members = p->limits,
                                .services = p->services,
                                .clients = p->clients,
                                .templates = p->templates,
                                .client_mask = plane_client_buckets(&p->config) - 1,
                                .secret = &k->secret};
    k->neigh = (struct neigh_table){p->neighbours, p->config.neighbours, &k->secret};
    k->neigh_at = 1;
    k->lip = (struct lip_table){.endpoints = m->endpoints,
                                .heads = m->endpoint_heads,
                                .blocks = m->blocks,
                                .endpoint_count = p->config.endpoints,
                                .head_mask = m->head_mask,
                                .block_count = m->block_count,
                                .marks = &m->header->lip,
                                .secret = &k->secret};
    lip_init(&k->lip, index, p->config.workers);
}

/* Forget all that is derived from connections; keep the endpoints' floors and every counter. */
static void clear_derived(struct fnat_plane *p, u32 index)
{
    struct worker_map *m = &p->maps[index];
    struct worker_header *h = m->header;
    memset(m->buckets, 0, (u64)m->bucket_count * sizeof *m->buckets);
    for (u32 i = 1; i <= h->lip.endpoint_fresh; i++) {
        m->endpoints[i].used = m->endpoints[i].steered = 0;
        memset(m->endpoints[i].dir, 0, sizeof m->endpoints[i].dir);
    }
    h->lip.endpoints_used = h->lip.block_free = h->lip.block_fresh = h->lip.blocks_used = h->lip.ports_used = 0;
    memset(&h->wheel, 0, sizeof h->wheel);
    for (u32 i = 0; i < p->config.members; i++)
        m->members[i].held = m->members[i].half_open = 0;
    for (u32 i = 0; i < p->config.services; i++)
        m->services[i].half_head = m->services[i].half_tail = m->services[i].half_count = m->services[i].conns = 0;
    for (u32 i = 0; i < 65536; i++)
        m->addresses[i].used = m->addresses[i].conns = 0;
    for (enum counter c = TAKEN_conns; c < COUNTERS; c++)
        h->counters[c] = 0;
}

static void take_home(struct frame_pool *pool, u32 frame)
{
    struct core *k = pool->owner;
    u32 home = frame / pool->total;
    handoff_return(k->handoff, k->index, home, frame);
}

static int make_pool(struct fnat_plane *p, u32 index, struct frame_pool *pool)
{
    u32 n = p->config.frames;
    *pool =
        (struct frame_pool){.area = p->frames.base, .area_len = (u64)n * p->config.workers * FRAME_SIZE, .total = n, .first = index * n};
    pool->stack = malloc(((u64)n * p->config.workers + 1) * sizeof *pool->stack);
    if (!pool->stack)
        return -ENOMEM;
    for (u32 i = 0; i < n; i++)
        pool->stack[pool->free++] = index * n + n - 1 - i;
    return 0;
}

/* The clocks of TCP identity run a little faster than any peer's: ticks of 4.1 us and 0.984 ms. */
static void read_clock(struct core *k, u64 now_ns, s64 wall_offset_ns)
{
    u64 wall = now_ns + (u64)wall_offset_ns;
    k->now_ns = now_ns;
    k->clock_us4 = (u32)(wall >> 12);
    k->clock_ms = (u32)((wall >> 10) * 1091 >> 20);
    k->tick = (u32)(now_ns / (1000000000 / TICKS_PER_SECOND));
}

int worker_open(struct fnat_plane *p, u32 index, struct fnat_worker **out)
{
    struct fnat_worker *w = aligned_alloc(CACHE_LINE, align_up(sizeof *w, CACHE_LINE));
    if (!w)
        return -ENOMEM;
    memset(w, 0, sizeof *w);
    w->plane = p;
    bind_core(&w->core, p, index);
    if (make_pool(p, index, &w->core.pool) || frag_open(&w->core.frags, &w->core.secret, index, p->config.workers)) {
        free(w->core.pool.stack);
        free(w);
        return -ENOMEM;
    }
    if (!index)
        announce_open(&w->core.announcer);
    w->core.counters[TAKEN_held] = 0; /* of a process that was killed */
    w->core.handoff = p->handoff;
    if (p->handoff) {
        w->core.pool.foreign = take_home;
        w->core.pool.owner = &w->core;
    }
    struct worker_header *h = w->core.header;
    h->active = 0;
    if (h->conn_fresh) {
        clear_derived(p, index);
        read_clock(&w->core, h->last_now_ns, p->header->wall_offset_ns);
        struct fnat_settings defaults;
        snapshot_default_settings(&defaults);
        for (u32 s = 0; s < FNAT_STATES; s++)
            w->core.timeouts[s] = defaults.timeouts[s] * TICKS_PER_SECOND;
        h->wheel.now = w->core.tick;
        h->wheel.started = 1;
        p->restored += conn_restore(&w->core);
    }
    w->kill_seq = p->header->kill.seq; /* of an earlier process */
    h->kill_done = w->kill_seq;
    w->core.acl_pass = h->acl_rechecked;
    *out = w;
    return 0;
}

void worker_close(struct fnat_worker *w)
{
    lip_close(&w->core.lip);
    frag_close(&w->core.frags);
    announce_close(&w->core.announcer);
    free(w->core.pool.stack);
    free(w);
}

/* ---- a turn ---- */

/* Most bytes of an IP packet by port and MTU class: the less of the port's and the route's. */
static void make_link_mtus(struct core *k)
{
    for (u8 port = 0; port < FNAT_PORTS; port++)
        for (u32 i = 0; i < FIB_MTUS; i++) {
            u16 mtu = k->fib.mtus[i], most = k->ports[port].mtu;
            k->link_mtu[neigh_link(port, (u8)i)] = mtu && mtu < most ? mtu : most;
        }
}

static void adopt_snapshot(struct fnat_worker *w, u64 word)
{
    struct core *k = &w->core;
    const struct snapshot *s = snapshot_at(k->area, (u32)word);
    w->snapshot_word = word;
    k->snap = s;
    k->fib = snapshot_fib(s, k->area);
    for (u32 i = 0; i < FNAT_STATES; i++)
        k->timeouts[i] = s->settings.timeouts[i] * TICKS_PER_SECOND;
    k->lip.first = s->settings.lport_first;
    k->lip.last = s->settings.lport_last;
    for (u32 i = 0; i < FNAT_PORTS; i++) {
        struct core_port *port = &k->ports[i];
        memcpy(port->mac, s->ports[i].mac, 6);
        put16(port->mac + 6, be16(ETH_TYPE_IP4));
        port->source6 = port->source4;
        put16((u8 *)&port->source6 + 6, be16(ETH_TYPE_IP6));
        port->flags = s->ports[i].flags;
        port->mtu = s->ports[i].flags & FNAT_PORT_UP ? s->ports[i].mtu : 0;
    }
    make_link_mtus(k);
    if (k->routes_version != s->routes_version)
        k->sweep = 1;
    k->routes_version = s->routes_version;
    announce_adopt(k);
    k->has_acl = s->has_acl;
    if (s->acl_recheck != k->acl_pass) /* one that is under way goes on, however often there is a new snapshot */
        k->acl_sweep = 1;
    k->acl_pass = s->acl_recheck;
    store_release(&k->header->snapshot_seq, s->seq);
}

/* Take over the steering rules that changed. One that is being written is for the next turn. */
static void adopt_steering(struct fnat_worker *w, u32 version)
{
    bool all = true;
    for (u32 i = 0; i < LIP_MAPS; i++) {
        const struct plane_steering *s = &w->plane->steering[i];
        u32 seq = load_acquire(&s->seq);
        struct fnat_steering_spec spec = s->spec;
        __atomic_thread_fence(__ATOMIC_ACQUIRE);
        if (seq & 1 || load_relaxed(&s->seq) != seq)
            all = false;
        else if (seq != w->steering_seq[i]) {
            lip_steer(&w->core.lip, (u8)(i / FNAT_FLOWS), i % FNAT_FLOWS, &spec);
            w->steering_seq[i] = seq;
        }
    }
    if (!all)
        return;
    w->steering_version = version;
    store_release(&w->core.header->steering_seen, version);
}

/* Does every worker that runs go by the steering rules of now? */
static bool all_follow(const struct fnat_worker *w)
{
    for (u32 i = 0; i < w->plane->config.workers; i++) {
        const struct worker_header *h = w->plane->maps[i].header;
        if (load_acquire(&h->active) && load_acquire(&h->steering_seen) != w->steering_version)
            return false;
    }
    return true;
}

static void transmit(struct core *k, struct io_queue *io, struct packet *pkts, u32 n)
{
    u64 bytes = 0;
    for (u32 i = 0; i < n; i++)
        bytes += pkts[i].len;
    u32 sent = io ? io_tx(io, pkts, n) : 0;
    if (unlikely(!io))
        for (u32 i = 0; i < n; i++)
            frame_free(&k->pool, pkts[i].frame);
    count_n(k, CNT_tx_packets, sent);
    count_n(k, CNT_tx_bytes, bytes);
    count_n(k, io ? DROP_tx_full : DROP_port_down, n - sent);
}

static void flush(struct core *k, struct tx_list *list)
{
    if (!list->n)
        return;
    transmit(k, list->io, list->packets, list->n);
    list->n = 0;
}

static void send(struct core *k, struct tx_list *list, const struct packet *p)
{
    if (unlikely(list->n == TX_ROOM))
        flush(k, list);
    memcpy(&list->packets[list->n++], p, offsetof(struct packet, l3)); /* all that a driver reads */
}

/* Packets from the first on that leave by the same port. */
static u32 run_of(const struct packet *pkts, u32 n)
{
    u32 i = 1;
    while (i < n && pkts[i].verdict == VERDICT_TX && pkts[i].out_port == pkts->out_port)
        i++;
    return i;
}

static void dispatch(struct fnat_worker *w, struct packet *pkts, u32 n)
{
    struct core *k = &w->core;
    for (u32 i = 0; i < n; i++) {
        struct packet *p = &pkts[i];
        switch (p->verdict) {
        case VERDICT_TX: {
            struct tx_list *list = &w->tx[p->out_port];
            u32 run = run_of(p, n - i);
            if (run < LONG_RUN) {
                send(k, list, p);
                break;
            }
            flush(k, list); /* what came before */
            transmit(k, list->io, p, run);
            i += run - 1;
            break;
        }
        case VERDICT_PASS:
            send(k, &w->punt[p->in_port], p);
            break;
        case VERDICT_HELD:
            break;
        default:
            frame_free(&k->pool, p->frame);
        }
    }
}

static u32 receive(struct fnat_worker *w, const struct worker_queue *q)
{
    struct core *k = &w->core;
    stage_begin(w->clock);
    u32 n = io_rx(q->io, w->rx, BATCH);
    stage_mark(w->clock, STAGE_RX);
    if (!n)
        return 0;
    u64 bytes = 0;
    for (u32 i = 0; i < n; i++) {
        w->rx[i].in_port = q->port;
        w->rx[i].hops = 0;
        bytes += w->rx[i].len;
    }
    if (unlikely(q->punt)) { /* from the host: it goes out as it is */
        for (u32 i = 0; i < n; i++)
            send(k, &w->tx[q->port], &w->rx[i]);
        count_n(k, CNT_from_host, n);
        return n;
    }
    count_n(k, CNT_rx_packets, n);
    count_n(k, CNT_rx_bytes, bytes);
    if (unlikely(w->clock))
        forward_batch_timed(k, w->rx, n, w->clock);
    else
        forward_batch(k, w->rx, n);
    dispatch(w, w->rx, n);
    return n;
}

/* Packets that other workers received for this one, and this one's frames that others have finished with. */
static u32 receive_handed(struct fnat_worker *w)
{
    struct core *k = &w->core;
    u32 total = 0;
    handoff_take_returned(k->handoff, k->index, &k->pool);
    for (u32 from = 0; from < k->workers; from++) {
        if (from == k->index)
            continue;
        u32 n = handoff_pop(k->handoff, from, k->index, w->rx, BATCH);
        if (!n)
            continue;
        count_n(k, CNT_from_workers, n);
        forward_batch(k, w->rx, n);
        dispatch(w, w->rx, n);
        total += n;
    }
    return total;
}

static void wake_others(struct core *k)
{
    for (; k->handed_to; k->handed_to &= k->handed_to - 1)
        handoff_wake(k->handoff, (u32)__builtin_ctzll(k->handed_to));
}

static void flush_all(struct fnat_worker *w)
{
    for (u32 port = 0; port < FNAT_PORTS; port++) {
        flush(&w->core, &w->tx[port]);
        flush(&w->core, &w->punt[port]);
    }
}

/* ---- ending connections on request ---- */

static void adopt_kill(struct fnat_worker *w, u32 seq)
{
    const struct plane_kill *kill = &w->plane->header->kill;
    struct fnat_conn_filter filter = kill->filter;
    u32 how = kill->how;
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    if (seq & 1 || load_relaxed(&kill->seq) != seq)
        return; /* it is being written: next turn */
    w->kill_seq = seq;
    w->kill_how = how;
    w->kill_at = filter_read(&filter, &w->kill) ? ~0u : 1;
    store_relaxed(&w->core.header->killed, 0);
}

static void kill_turn(struct fnat_worker *w)
{
    struct core *k = &w->core;
    u32 looks = 0;
    for (; w->kill_at <= k->header->conn_fresh && looks < KILL_LOOKS_PER_TURN; w->kill_at++, looks++) {
        const struct conn *c = &k->conns[w->kill_at];
        prefetch(c + 16);
        if (!conn_live(c) || !filter_passes(w->plane, &w->kill, c))
            continue;
        if (w->kill_how == FNAT_KILL_RESET && !conn_tell_reset(k, c))
            return; /* no room for more of our own packets: next turn */
        conn_close(k, w->kill_at);
        count(k, CNT_conns_killed);
        k->header->killed++;
    }
    if (w->kill_at <= k->header->conn_fresh)
        return;
    w->kill_at = 0;
    store_release(&k->header->kill_done, w->kill_seq);
}

static u32 frames_in_use(const struct fnat_worker *w)
{
    u32 in_use = w->core.pool.total - w->core.pool.free;
    for (u32 i = 0; i < w->n_queues; i++)
        in_use -= io_lent(w->queues[i].io);
    return in_use;
}

static void tick(struct fnat_worker *w)
{
    struct core *k = &w->core;
    wheel_turn(k->wheel, k->conns, k->tick, DUE_PER_TURN, conn_due, k);
    u32 kill = load_acquire(&w->plane->header->kill.seq);
    if (unlikely(kill != w->kill_seq))
        adopt_kill(w, kill);
    if (unlikely(w->kill_at))
        kill_turn(w);
    if (unlikely(k->sweep))
        conn_sweep_routes(k, SWEEP_PER_TURN);
    if (unlikely(k->acl_sweep))
        admit_sweep(k, SWEEP_PER_TURN);
    k->counters[TAKEN_endpoints] = k->header->lip.endpoints_used;
    k->counters[TAKEN_port_chunks] = k->header->lip.blocks_used;
    k->counters[TAKEN_datagrams] = k->frags.count;
    k->counters[TAKEN_frames] = frames_in_use(w);
}

u32 worker_step(struct fnat_worker *w, u64 now_ns)
{
    struct core *k = &w->core;
    u32 n = 0, tick_before = k->tick;
    read_clock(k, now_ns, w->plane->header->wall_offset_ns);
    k->header->last_now_ns = now_ns;
    count(k, CNT_steps);
    if (unlikely(!k->header->active)) {
        store_release(&k->header->snapshot_seq, 0);
        store_release(&k->header->active, 1);
    }
    if (unlikely(!k->wheel->started)) {
        k->wheel->now = k->tick;
        k->wheel->started = 1;
    }
    u64 word = load_acquire(&w->plane->header->snapshot);
    if (unlikely(word != w->snapshot_word))
        adopt_snapshot(w, word);
    u32 steering = load_acquire(&w->plane->header->steering);
    if (unlikely(steering != w->steering_version))
        adopt_steering(w, steering);
    if (unlikely(k->lip.changing) && all_follow(w))
        lip_all_follow(&k->lip);
    if (unlikely(!k->snap))
        return 0;
    pieces_turn(k);
    for (u32 i = 0; i < w->n_queues; i++) {
        n += receive(w, &w->queues[i]);
        flush_all(w);
        stage_mark(w->clock, STAGE_TX);
    }
    if (k->handoff) {
        n += receive_handed(w);
        flush_all(w);
    }
    stage_begin(w->clock);
    tick(w);
    stage_mark(w->clock, STAGE_TICK);
    if (k->tick != tick_before || k->waiting_count)
        resolve_turn(k, k->tick - tick_before);
    if (unlikely(k->announcer.due))
        announce_turn(k);
    if (k->own_count) {
        dispatch(w, k->own, k->own_count);
        k->own_count = 0;
        flush_all(w);
    }
    if (unlikely(k->handed_to))
        wake_others(k);
    return n;
}

/* ---- the door's part ---- */

int fnat_worker_attach(struct fnat_worker *w, uint8_t port, int punt, struct io_queue *queue)
{
    if (port >= FNAT_PORTS || !queue)
        return -EINVAL;
    if (w->n_queues == WORKER_QUEUES)
        return -ENOSPC;
    struct tx_list *list = punt ? &w->punt[port] : &w->tx[port];
    if (!list->io)
        list->io = queue;
    if (punt)
        w->core.ports[port].punt = true;
    w->queues[w->n_queues++] = (struct worker_queue){queue, port, punt};
    return 0;
}

void fnat_worker_detach(struct fnat_worker *w)
{
    for (u32 i = 0; i < w->n_queues; i++)
        io_close(w->queues[i].io);
    w->n_queues = 0;
    for (u32 i = 0; i < FNAT_PORTS; i++) {
        w->tx[i].io = w->punt[i].io = NULL;
        w->core.ports[i].punt = false;
    }
}

void fnat_worker_quiesce(struct fnat_worker *w)
{
    struct core *k = &w->core;
    resolve_quiesce(k);
    pieces_quiesce(k);
    for (u32 from = 0; k->handoff && from < k->workers; from++)
        for (u32 n; from != k->index && (n = handoff_pop(k->handoff, from, k->index, w->rx, BATCH));)
            for (u32 i = 0; i < n; i++) {
                drop(k, &w->rx[i], DROP_stale);
                frame_free(&k->pool, w->rx[i].frame);
            }
    if (k->handoff)
        handoff_take_returned(k->handoff, k->index, &k->pool);
    store_release(&w->core.header->active, 0);
}

struct frame_pool *fnat_worker_pool(struct fnat_worker *w) { return &w->core.pool; }

int fnat_worker_step(struct fnat_worker *w, uint64_t now_ns) { return (int)worker_step(w, now_ns); }

/* Until a queue has something or the next tick is due. */
static void sleep_until_work(struct fnat_worker *w, u64 now_ns)
{
    struct pollfd fds[WORKER_QUEUES + 1];
    struct handoff *h = w->core.handoff;
    u32 n = 0;
    for (u32 i = 0; i < w->n_queues; i++) {
        io_arm(w->queues[i].io);
        if (io_fd(w->queues[i].io) >= 0)
            fds[n++] = (struct pollfd){.fd = io_fd(w->queues[i].io), .events = POLLIN};
    }
    u64 tick_ns = 1000000000 / TICKS_PER_SECOND, left = tick_ns - now_ns % tick_ns;
    struct timespec timeout = {0, (long)left};
    count(&w->core, CNT_sleeps);
    if (!h) {
        ppoll(fds, n, &timeout, NULL);
        return;
    }
    struct handoff_sleeper *me = &h->sleepers[w->core.index];
    u64 wakes;
    fds[n++] = (struct pollfd){.fd = me->fd, .events = POLLIN};
    __atomic_store_n(&me->sleeping, 1, __ATOMIC_SEQ_CST);
    if (!handoff_waits(h, w->core.index))
        ppoll(fds, n, &timeout, NULL);
    store_relaxed(&me->sleeping, 0);
    if (fds[n - 1].revents && read(me->fd, &wakes, sizeof wakes) < 0)
        return;
}

/* Nothing waits to be sent or to expire. */
static bool is_idle(const struct fnat_worker *w)
{
    const struct core *k = &w->core;
    return !w->kill_at && !k->own_count && !k->sweep && !k->acl_sweep && !k->announcer.due && !after_u32(k->tick, k->wheel->now);
}

/* ---- how long turns take ---- */

/* A turn as long as this is looked into; what the CPU did is noted at least this often. */
enum { LONG_STEP_NS = 131072, LOOK_EVERY_NS = 1000000, LOST_NS = 30000 };

static void look(struct fnat_worker *w, u64 now)
{
    struct rusage r;
    getrusage(RUSAGE_THREAD, &r);
    w->switches = r.ru_nivcsw;
    w->looked_at = now;
    w->cpu_at = thread_ns();
}

/* Was the CPU away since the last look: given to somebody else, or taken by a hypervisor (which shows as missing CPU time)? */
static bool was_away(struct fnat_worker *w, u64 now)
{
    long switches = w->switches;
    u64 looked_at = w->looked_at, cpu_at = w->cpu_at;
    look(w, now);
    return w->switches != switches || now - looked_at > w->cpu_at - cpu_at + LOST_NS;
}

static void note_step(struct fnat_worker *w, u64 now, u64 ns)
{
    struct fnat_step_stats *s = &w->core.header->steps;
    u32 kind = 0, bucket = 63 - (u32)__builtin_clzll(ns | 1);
    if (unlikely(ns >= LONG_STEP_NS))
        kind = was_away(w, now);
    else if (unlikely(now - w->looked_at > LOOK_EVERY_NS))
        look(w, now);
    s->count[kind][min_u32(bucket, FNAT_STEP_BUCKETS - 1)]++;
    s->sum_ns[kind] += ns;
    if (unlikely(ns > s->max_ns[kind]))
        s->max_ns[kind] = ns;
}

int fnat_worker_run(struct fnat_worker *w, volatile int *stop, uint32_t spin_us)
{
    u64 now = monotonic_ns(), last_work = now;
    store_relaxed(&w->core.header->cpu, (u32)sched_getcpu() + 1);
    look(w, now);
    while (!*stop) {
        u32 n = worker_step(w, now);
        u64 after = monotonic_ns();
        note_step(w, after, after - now);
        if (n)
            last_work = after;
        else if (spin_us && after - last_work > spin_us * 1000ull && is_idle(w)) {
            sleep_until_work(w, after);
            after = monotonic_ns();
            look(w, after); /* asleep is not away */
        }
        now = after;
    }
    return 0;
}
