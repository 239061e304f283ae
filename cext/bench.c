/* bench.c: how fast is a worker? A generator in memory stands at both ports: port 0 towards clients, port 1 towards RSs.
 *
 * It opens flows by packets through the plane's services, learns each flow's LIP and lport from what comes out, sends one packet of every flow
 * both ways in a random order, then packets of random flows for as long as asked, and at last lets all flows expire. Every packet's headers are
 * written anew into frames that go round first in, first out (8 192 and more of them), so no frame is still in the first cache level. A sample
 * of the outputs is checked byte by byte. What the generator itself costs is measured alone, with the same packets, and given apart; so is the
 * memory floor: touching one bucket line and both lines of a connection, and writing one word, in the same random order, with the same batching
 * and prefetching.
 * Nothing here is used when fnat carries traffic.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "clock.h"
#include "csum.h"
#include "sched.h"
#include "worker.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

enum {
    HUGE = 2 << 20,
    LEAST_PAYLOAD = 4,
    MOST_PAYLOAD = 1440,
    HEADERS4 = 54 + LEAST_PAYLOAD,
    HEADERS = 74 + LEAST_PAYLOAD,
    WINDOW = 16384,
    LIVES_PACKETS = 6
};

struct flow {
    u32 cip, vip, rip, lip; /* of IPv6 addresses the last 4 bytes: all of a kind have one prefix */
    u16 cport, vport, rport, lport;
    u32 isn; /* of the SYN as the RS sees it, network order */
    u32 spare;
};
_Static_assert(sizeof(struct flow) == 32, "two flows a line");

enum shape { SHAPE_DATA, SHAPE_SYN, SHAPE_SYNACK, SHAPE_ACK, SHAPE_FIN, SHAPES };
static const u8 shape_flags[] = {TCP_ACK | TCP_PSH, TCP_SYN, TCP_SYN | TCP_ACK, TCP_ACK, TCP_FIN | TCP_ACK};

struct template
{
    u8 frame[HEADERS]; /* all that changes from packet to packet; the rest of the payload is zero */
    u64 sum_ip, sum_l4;
};

struct generator {
    struct frame_pool *pool;
    u32 *fifo, fifo_len, fifo_head, fifo_count;
    struct flow *flows;
    u32 n_flows, payload, check_every;
    u8 proto, gateway_mac[2][6], port_mac[2][6];
    u8 family[2];                     /* of what comes in, by direction */
    struct addr16 cip, vip, rip, lip; /* IPv6: the prefix; IPv4: zero */
    u64 random;
    u32 at, end;   /* in a phase: each flow once; end 0: random flows without end */
    bool shuffled; /* in a phase: not in order */
    bool ending;   /* frames that come out are free */
    enum shape shape;
    struct template templates[2][SHAPES];
    bool learn, idle[2];
    u32 until_check;
    u64 made, verified, mismatched;
};

struct gen_queue {
    struct io_base base;
    struct generator *g;
    enum direction dir; /* of the packets this queue makes */
};

static inline u64 next_random(u64 *state) /* splitmix64 */
{
    u64 z = *state += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

/* ---- frames ---- */

/* A number below 2^bits from one below 2^bits, each once. */
static inline u32 mix(u32 x, u32 bits)
{
    u32 mask = bits == 32 ? ~0u : (1u << bits) - 1, half = bits / 2 + 1;
    x = (x * 0x9e3779b1u) & mask;
    x ^= x >> half;
    x = (x * 0x85ebca6bu) & mask;
    return x ^ x >> half;
}

/* The at-th flow of a shuffled phase. */
static inline u32 shuffled(const struct generator *g, u32 at)
{
    u32 bits = 32 - (u32)__builtin_clz(g->n_flows | 1);
    do
        at = mix(at, bits);
    while (at >= g->n_flows);
    return at;
}

static inline u32 l3_size(const struct generator *g, enum direction dir)
{
    return g->family[dir] == 4 ? sizeof(struct ip4_header) : sizeof(struct ip6_header);
}

/* Where the addresses of a header lie, those parts of them that differ. */
static inline u32 src_at(const struct generator *g, enum direction dir) { return g->family[dir] == 4 ? 12 : 20; }
static inline u32 dst_at(const struct generator *g, enum direction dir) { return g->family[dir] == 4 ? 16 : 36; }

static inline u32 l4_size(const struct generator *g)
{
    return g->proto == PROTO_TCP ? sizeof(struct tcp_header) : sizeof(struct udp_header);
}

/* All of a frame that does not depend on the flow, and the sums of its parts: writing a frame reads nothing that it has just written. */
static void make_template(struct generator *g, struct template *t, enum direction dir, enum shape shape)
{
    u8 *data = t->frame;
    memset(t, 0, sizeof *t);
    memcpy(data, g->port_mac[dir], 6);
    memcpy(data + 6, g->gateway_mac[dir], 6);
    u16 l4_len = (u16)(l4_size(g) + g->payload);
    u8 *l4 = data + ETH_HEADER + l3_size(g, dir);
    if (g->family[dir] == 4) {
        struct ip4_header *ip = (struct ip4_header *)(data + ETH_HEADER);
        put16(data + 12, be16(ETH_TYPE_IP4));
        *ip = (struct ip4_header){
            .version_ihl = 0x45, .total_len = be16((u16)(sizeof *ip + l4_len)), .frag = be16(IP4_DF), .ttl = 64, .proto = g->proto};
        t->sum_ip = csum_partial(ip, sizeof *ip);
    } else {
        struct ip6_header *ip = (struct ip6_header *)(data + ETH_HEADER);
        put16(data + 12, be16(ETH_TYPE_IP6));
        *ip = (struct ip6_header){.version_class_flow = be32(6u << 28), .payload_len = be16(l4_len), .next = g->proto, .hop_limit = 64};
        memcpy(ip->src, dir == TO_RS ? g->cip.b : g->rip.b, 16);
        memcpy(ip->dst, dir == TO_RS ? g->vip.b : g->lip.b, 16);
        t->sum_l4 = csum_partial(ip->src, 32);
    }
    if (g->proto == PROTO_TCP) {
        struct tcp_header *tcp = (struct tcp_header *)l4;
        tcp->seq = be32(shape == SHAPE_SYN || shape == SHAPE_SYNACK ? 0 : 1 + g->payload);
        tcp->ack = dir == TO_RS && shape != SHAPE_SYN ? be32(1 + g->payload) : 0; /* of the SYN-ACK: write_frame */
        tcp->offset = 5 << 4;
        tcp->flags = shape_flags[shape];
        tcp->window = 0xffff;
    } else
        ((struct udp_header *)l4)->len = be16(l4_len);
    t->sum_l4 += csum_partial(l4, l4_size(g)) + csum_pseudo4(0, 0, g->proto, l4_len);
}

static inline void write_frame(const struct generator *g, u8 *data, u32 id, const struct flow *f, enum direction dir)
{
    const struct template *t = &g->templates[dir][g->shape];
    u32 src = dir == TO_RS ? f->cip : f->rip, dst = dir == TO_RS ? f->vip : f->lip;
    u32 ports = dir == TO_RS ? f->cport | (u32)f->vport << 16 : f->rport | (u32)f->lport << 16;
    u64 addrs = (u64)src + dst;
    memcpy(data, t->frame, HEADERS4);
    if (g->family[dir] == 6)
        memcpy(data + HEADERS4, t->frame + HEADERS4, HEADERS - HEADERS4);
    u8 *ip = data + ETH_HEADER, *l4 = ip + l3_size(g, dir);
    put32(ip + src_at(g, dir), src);
    put32(ip + dst_at(g, dir), dst);
    if (g->family[dir] == 4)
        ((struct ip4_header *)ip)->csum = (u16)~csum_fold(t->sum_ip + addrs);
    put32(l4, ports);
    put32(l4 + l4_size(g), id);
    u32 ack = 0;
    if (g->shape == SHAPE_SYNACK) { /* of what comes later nobody looks at it */
        ack = be32(be32(f->isn) + 1 + g->payload);
        put32(l4 + offsetof(struct tcp_header, ack), ack);
    }
    u16 sum = csum_fold(t->sum_l4 + addrs + ports + id + ack);
    put16(l4 + (g->proto == PROTO_TCP ? offsetof(struct tcp_header, csum) : offsetof(struct udp_header, csum)),
          sum == 0xffff ? 0xffff : (u16)~sum);
}

/* Is this output what a FullNAT must make of the flow's packet? */
static bool is_right(const struct generator *g, const u8 *data, u32 len, enum direction dir)
{
    enum direction out = !dir; /* its header is like those of what comes in the other way */
    const u8 *ip = data + ETH_HEADER, *l4 = ip + l3_size(g, out);
    u16 l4_len = (u16)(l4_size(g) + g->payload);
    u32 id = get32(l4 + l4_size(g)), wanted = ETH_HEADER + l3_size(g, out) + l4_len;
    if (g->family[0] != g->family[1] && wanted < ETH_MIN_FRAME)
        wanted = ETH_MIN_FRAME;
    if (len != wanted || id >= g->n_flows || ip[0] >> 4 != g->family[out])
        return false;
    const struct flow *f = &g->flows[id];
    u32 src = dir == TO_RS ? f->lip : f->vip, dst = dir == TO_RS ? f->rip : f->cip;
    u32 ports = dir == TO_RS ? f->lport | (u32)f->rport << 16 : f->vport | (u32)f->cport << 16;
    u64 pseudo;
    if (g->family[out] == 4) {
        if (((const struct ip4_header *)ip)->ttl != 63 || csum_fold(csum_partial(ip, sizeof(struct ip4_header))) != 0xffff)
            return false;
        pseudo = csum_pseudo4(get32(ip + 12), get32(ip + 16), g->proto, l4_len);
    } else {
        const struct ip6_header *ip6 = (const struct ip6_header *)ip;
        if (ip6->hop_limit != 63 || memcmp(ip6->src, dir == TO_RS ? g->lip.b : g->vip.b, 12) ||
            memcmp(ip6->dst, dir == TO_RS ? g->rip.b : g->cip.b, 12))
            return false;
        pseudo = csum_pseudo6(ip6->src, g->proto, l4_len);
    }
    return get32(ip + src_at(g, out)) == src && get32(ip + dst_at(g, out)) == dst && get32(l4) == ports &&
           csum_fold(pseudo + csum_partial(l4, l4_len)) == 0xffff && !memcmp(data, g->gateway_mac[!dir], 6) &&
           !memcmp(data + 6, g->port_mac[!dir], 6);
}

/* ---- the driver ---- */

static unsigned gen_rx(struct io_queue *queue, struct packet *pkts, unsigned max)
{
    struct gen_queue *q = (struct gen_queue *)queue;
    struct generator *g = q->g;
    u32 ids[BATCH];
    unsigned n = 0;
    if (g->idle[q->dir])
        return 0;
    while (g->pool->free) { /* frames of packets that the worker dropped */
        g->fifo[(g->fifo_head + g->fifo_count++) % g->fifo_len] = frame_alloc(g->pool);
    }
    if (max > g->fifo_count)
        max = g->fifo_count;
    for (; n < max; n++) {
        if (g->end && g->at >= g->end)
            break;
        if (g->end) {
            u32 at = g->at++;
            ids[n] = g->shuffled ? shuffled(g, at) : at;
        } else
            ids[n] = scale_u32((u32)(next_random(&g->random) >> 32), g->n_flows);
        prefetch(&g->flows[ids[n]]);
    }
    for (unsigned i = 0; i < n; i++) {
        u32 frame = g->fifo[g->fifo_head];
        g->fifo_head = g->fifo_head + 1 == g->fifo_len ? 0 : g->fifo_head + 1;
        g->fifo_count--;
        pkts[i].frame = frame;
        pkts[i].data = frame_data(g->pool, frame);
        pkts[i].len = (u16)(ETH_HEADER + l3_size(g, q->dir) + l4_size(g) + g->payload);
        write_frame(g, pkts[i].data, ids[i], &g->flows[ids[i]], q->dir);
    }
    g->made += n;
    return n;
}

static unsigned gen_tx(struct io_queue *queue, struct packet *pkts, unsigned n)
{
    struct gen_queue *q = (struct gen_queue *)queue;
    struct generator *g = q->g;
    enum direction dir = !q->dir; /* what leaves here came in at the other side */
    if (unlikely(g->ending)) {
        for (unsigned i = 0; i < n; i++)
            frame_free(g->pool, pkts[i].frame);
        return n;
    }
    for (unsigned i = 0; i < n; i++) {
        const u8 *data = pkts[i].data;
        if (unlikely(g->learn)) {
            const u8 *ip = data + ETH_HEADER, *l4 = ip + l3_size(g, !dir);
            u32 id = get32(l4 + l4_size(g));
            if (ip[0] >> 4 == g->family[!dir] && id < g->n_flows) {
                struct flow *f = &g->flows[id];
                f->lip = get32(ip + src_at(g, !dir)), f->rip = get32(ip + dst_at(g, !dir));
                memcpy(&f->lport, l4, 2);
                memcpy(&f->rport, l4 + 2, 2);
                f->isn = g->proto == PROTO_TCP ? get32(l4 + offsetof(struct tcp_header, seq)) : 0;
            }
        }
        if (unlikely(--g->until_check == 0)) {
            g->until_check = g->check_every;
            if (is_right(g, data, pkts[i].len, dir))
                g->verified++;
            else
                g->mismatched++;
        }
        u32 to = g->fifo_head + g->fifo_count++;
        g->fifo[to >= g->fifo_len ? to - g->fifo_len : to] = pkts[i].frame;
    }
    return n;
}

static void gen_stats(struct io_queue *queue, struct io_stats *out)
{
    (void)queue;
    *out = (struct io_stats){0};
}

static void gen_close(struct io_queue *queue) { free(queue); }

static const struct io_driver gen_driver = {"gen", gen_rx, gen_tx, gen_stats, NULL, gen_close};

static int gen_open(struct generator *g, struct fnat_worker *w, enum direction dir)
{
    struct gen_queue *q = calloc(1, sizeof *q);
    if (!q)
        return -ENOMEM;
    *q = (struct gen_queue){{.driver = &gen_driver, .pool = g->pool, .fd = -1}, g, dir};
    return fnat_worker_attach(w, dir == TO_RS ? 0 : 1, 0, (struct io_queue *)q);
}

/* ---- set-up ---- */

static void shut_down(struct generator *g, struct fnat_worker *w)
{
    fnat_worker_detach(w);
    for (u32 i = 0; i < g->fifo_count; i++)
        frame_free(g->pool, g->fifo[(g->fifo_head + i) % g->fifo_len]);
    free(g->fifo);
    free(g->flows);
}

/* Flows over all services of the protocol, which are of one pair of families; clients are 10.0.0.0/8 or 2001:db8:ffff::a00:0/104, each
 * worker's its own. */
static int set_up(struct generator *g, struct fnat_worker *w, u8 proto, u32 n_flows, u32 payload)
{
    struct core *k = &w->core;
    *g = (struct generator){.pool = &k->pool, .proto = proto, .n_flows = n_flows, .random = 1, .fifo_len = k->pool.total};
    g->payload = payload, g->check_every = g->until_check = 1000;
    worker_step(w, monotonic_ns()); /* adopt the snapshot */
    if (!k->snap || w->n_queues || g->fifo_len < 2 * BATCH)
        return -EINVAL;
    g->fifo = malloc((u64)g->fifo_len * sizeof *g->fifo);
    u64 bytes = align_up((u64)n_flows * sizeof *g->flows, HUGE);
    g->flows = aligned_alloc(HUGE, bytes);
    if (!g->fifo || !g->flows)
        goto no_memory;
    madvise(g->flows, bytes, MADV_HUGEPAGE);
    memset(g->flows, 0, (u64)n_flows * sizeof *g->flows);
    while (k->pool.free) {
        u32 frame = frame_alloc(&k->pool);
        memset(frame_data(&k->pool, frame), 0, ETH_HEADER + sizeof(struct ip6_header) + sizeof(struct tcp_header) + payload);
        g->fifo[g->fifo_count++] = frame;
    }

    const union snap_slot *slot;
    u32 services = 0, picked[1024];
    for (u32 cursor = 0; services < 1024 && (slot = snapshot_next(&k->snap->services, k->area, &cursor));)
        if (slot->proto == proto)
            picked[services++] = slot->service.blob;
    if (!services)
        goto no_service;
    const struct snap_service *one = snapshot_at(k->area, picked[0]);
    if (!one->n_members || !one->n_lips)
        goto no_service;
    g->family[TO_RS] = one->family, g->family[TO_CLIENT] = one->members[0].family;
    if (one->family == 6) {
        memcpy(g->cip.b, (const u8[]){0x20, 0x01, 0x0d, 0xb8, 0xff, 0xff}, 6);
        memcpy(g->vip.b, one->vip, 12);
    }
    if (one->members[0].family == 6) {
        memcpy(g->rip.b, one->members[0].rip, 12);
        memcpy(g->lip.b, k->plane_addresses[snap_service_lips(one)[0]].addr, 12);
    }
    for (u32 i = 0; i < n_flows; i++) {
        const struct snap_service *s = snapshot_at(k->area, picked[i % services]);
        struct flow *f = &g->flows[i];
        f->cip = be32(0x0a000000 | k->index << 18 | (i / 60000 + 1));
        f->cport = be16((u16)(1024 + i % 60000));
        memcpy(&f->vip, s->vip + (s->family == 4 ? 0 : 12), 4);
        f->vport = s->vport;
    }
    for (u32 side = 0; side < 2; side++) {
        memcpy(g->port_mac[side], k->ports[side].mac, 6);
        for (u32 id = 1; id < k->neigh.count; id++) { /* the gateway of each port */
            u64 word = neigh_load(&k->neigh, id);
            if (neigh_word_usable(word) && neigh_word_port(word) == side)
                memcpy(g->gateway_mac[side], &word, 6);
        }
    }
    for (u32 shape = 0; shape < SHAPES; shape++) {
        make_template(g, &g->templates[TO_RS][shape], TO_RS, shape);
        make_template(g, &g->templates[TO_CLIENT][shape], TO_CLIENT, shape);
    }
    if (gen_open(g, w, TO_RS) || gen_open(g, w, TO_CLIENT))
        goto no_memory;
    return 0;

no_memory:
    shut_down(g, w);
    return -ENOMEM;
no_service:
    shut_down(g, w);
    return -ENOENT;
}

/* One side sends one packet of this shape for each of the flows [from, to). */
static void phase(struct generator *g, struct fnat_worker *w, u32 from, u32 to, enum direction dir, enum shape shape)
{
    g->at = from, g->end = to, g->shape = shape;
    g->idle[dir] = false, g->idle[!dir] = true;
    while (g->at < g->end)
        worker_step(w, monotonic_ns());
    g->end = 0;
}

/* What the generator alone takes for such a phase. */
static u64 phase_alone(struct generator *g, struct fnat_worker *w, u32 from, u32 to, enum direction dir, enum shape shape)
{
    u64 start = thread_ns();
    g->at = from, g->end = to, g->shape = shape;
    g->idle[dir] = false;
    while (g->at < g->end) {
        unsigned n = io_rx(w->queues[dir].io, w->rx, BATCH);
        io_tx(w->queues[dir].io, w->rx, n);
        (void)monotonic_ns();
    }
    g->end = 0;
    return thread_ns() - start;
}

/* Returns the time of the first packets, with the generator. */
static u64 open_flows(struct generator *g, struct fnat_worker *w, u32 from, u32 to)
{
    bool tcp = g->proto == PROTO_TCP;
    u64 start = thread_ns();
    g->learn = true;
    phase(g, w, from, to, TO_RS, tcp ? SHAPE_SYN : SHAPE_DATA);
    g->learn = false;
    start = thread_ns() - start;
    phase(g, w, from, to, TO_CLIENT, tcp ? SHAPE_SYNACK : SHAPE_DATA);
    if (tcp)
        phase(g, w, from, to, TO_RS, SHAPE_ACK);
    return start;
}

/* Every flow once, both ways, in a random order. */
static void hit_each(struct generator *g, struct fnat_worker *w)
{
    g->shuffled = true, g->check_every = g->until_check = 100;
    phase(g, w, 0, g->n_flows, TO_RS, SHAPE_DATA);
    phase(g, w, 0, g->n_flows, TO_CLIENT, SHAPE_DATA);
    g->shuffled = false, g->check_every = g->until_check = 1000;
}

/* The clock jumps ahead by ns; the time until the wheel has followed. */
static u64 jump(struct fnat_worker *w, u64 *ahead, u64 ns)
{
    struct core *k = &w->core;
    u64 start = thread_ns();
    *ahead += ns;
    do
        worker_step(w, monotonic_ns() + *ahead);
    while (after_u32(k->tick, k->wheel->now));
    return thread_ns() - start;
}

/* All connections end by time. They were last seen in the `age` ns before now: the clock jumps to just before the first deadline, then goes
 * on behind the last one. Returns the time of the second part, the wheel's empty ticks taken out. */
static u64 expire_all(struct generator *g, struct fnat_worker *w, u64 age)
{
    enum { MARGIN_NS = 2000000000 };
    struct core *k = &w->core;
    u64 timeout = (u64)k->timeouts[g->proto == PROTO_TCP ? TCP_EST : UDP_NORM] * (1000000000 / TICKS_PER_SECOND), ahead = 0;
    g->idle[0] = g->idle[1] = g->ending = true;
    for (; g->fifo_count; g->fifo_count--) { /* ends that are told to both sides need frames */
        frame_free(g->pool, g->fifo[g->fifo_head]);
        g->fifo_head = g->fifo_head + 1 == g->fifo_len ? 0 : g->fifo_head + 1;
    }
    jump(w, &ahead, timeout - min_u64(timeout, age + MARGIN_NS));
    u64 full = jump(w, &ahead, age + 2ull * MARGIN_NS), empty = jump(w, &ahead, age + 2ull * MARGIN_NS);
    while (k->header->conn_count) /* resets that found no room wait for a later turn */
        full += jump(w, &ahead, MARGIN_NS);
    return full - min_u64(full, empty);
}

static u64 still_taken(const struct core *k)
{
    u64 sum = 0;
    for (enum counter c = TAKEN_conns; c < COUNTERS; c++)
        sum += k->counters[c];
    return sum;
}

/* ---- what is measured ---- */

/* The generator alone, both sides in turn as the worker would call it. */
static u64 generator_alone(struct fnat_worker *w, u64 packets)
{
    struct packet *pkts = w->rx;
    u64 done = 0, start = thread_ns();
    while (done < packets)
        for (u32 side = 0; side < 2; side++) {
            stage_begin(w->clock);
            unsigned n = io_rx(w->queues[side].io, pkts, BATCH);
            stage_mark(w->clock, STAGE_RX);
            done += io_tx(w->queues[side].io, pkts, n);
            stage_mark(w->clock, STAGE_TX);
            (void)monotonic_ns();
        }
    return thread_ns() - start;
}

static u64 turns(struct fnat_worker *w, u64 ns)
{
    u64 until = monotonic_ns() + ns, now, forwarded = w->core.counters[CNT_to_rs] + w->core.counters[CNT_to_client];
    while ((now = monotonic_ns()) < until)
        for (u32 i = 0; i < 64; i++)
            worker_step(w, i ? monotonic_ns() : now);
    return w->core.counters[CNT_to_rs] + w->core.counters[CNT_to_client] - forwarded;
}

static double cycles_of_a_mark(void)
{
    enum { MARKS = 1 << 16 };
    struct stage_clock c = {0};
    stage_begin(&c);
    u64 start = c.last;
    for (u32 i = 0; i < MARKS; i++)
        stage_mark(&c, STAGE_TICK);
    return (double)(c.last - start) / MARKS;
}

/* Steady state once more, with the clock, then the generator alone with the clock, which is taken out of rx and tx. */
static void measure_stages(struct fnat_worker *w, u64 ns, struct fnat_bench_result *out)
{
    struct stage_clock with = {0}, alone = {0};
    double mark = cycles_of_a_mark();
    u64 start_ns = monotonic_ns(), start = stage_cycles();
    w->clock = &with;
    u64 packets = turns(w, ns);
    w->clock = &alone;
    generator_alone(w, packets);
    w->clock = NULL;
    double ps = 1000.0 * (double)(monotonic_ns() - start_ns) / (double)(stage_cycles() - start);
    for (enum stage s = 0; s < STAGES; s++) {
        double net = (double)with.cycles[s] - (double)alone.cycles[s] - mark * ((double)with.marks[s] - (double)alone.marks[s]);
        out->stage_ps[s] = net > 0 && packets ? (u64)(net * ps / (double)packets) : 0;
    }
}
_Static_assert((int)FNAT_STAGES == (int)STAGES, "the door shows all stages");

static u64 memory_floor(struct generator *g, struct core *k, u64 packets)
{
    u32 buckets[BATCH], conns[BATCH], sum = 0;
    u64 start = thread_ns();
    for (u64 done = 0; done < packets; done += BATCH) {
        for (u32 i = 0; i < BATCH; i++) {
            u64 r = next_random(&g->random);
            buckets[i] = scale_u32((u32)r, k->table.count);
            conns[i] = 1 + scale_u32((u32)(r >> 32), g->n_flows);
            prefetch(&k->table.buckets[buckets[i]]);
        }
        for (u32 i = 0; i < BATCH; i++) {
            sum += k->table.buckets[buckets[i]].tag[0];
            prefetch_write(&k->conns[conns[i]]);
            prefetch_write((u8 *)&k->conns[conns[i]] + CACHE_LINE);
        }
        for (u32 i = 0; i < BATCH; i++) {
            struct conn *c = &k->conns[conns[i]];
            sum += c->member + c->a.v4.cip;
            store_relaxed(&c->last_seen, k->tick);
        }
    }
    u64 ns = thread_ns() - start;
    __asm__ volatile("" ::"r"(sum));
    return ns;
}

int fnat_bench_nat(struct fnat_worker *w, const struct fnat_bench_options *o, struct fnat_bench_result *out)
{
    struct generator g;
    struct core *k = &w->core;
    if ((o->proto != PROTO_TCP && o->proto != PROTO_UDP) || !o->conns || o->conns > k->conn_capacity || o->seconds <= 0 ||
        o->payload < LEAST_PAYLOAD || o->payload > MOST_PAYLOAD)
        return -EINVAL;
    int rc = set_up(&g, w, o->proto, o->conns, o->payload);
    if (rc)
        return rc;
    *out = (struct fnat_bench_result){.conns = o->conns, .opened = k->counters[CNT_conns_opened]};
    u64 began = monotonic_ns();
    for (u32 from = 0; from < o->conns; from += 4096)
        out->open_ns += open_flows(&g, w, from, min_u32(from + 4096, o->conns));
    u32 some = min_u32(o->conns, 1 << 20);
    u64 alone = phase_alone(&g, w, 0, some, TO_RS, o->proto == PROTO_TCP ? SHAPE_SYN : SHAPE_DATA);
    alone = (u64)((double)alone * o->conns / some);
    out->open_ns -= min_u64(alone, out->open_ns);
    out->opened = k->counters[CNT_conns_opened] - out->opened;
    g.verified = g.mismatched = 0; /* what the generator alone sent came back as it was */
    u64 received = k->counters[CNT_rx_packets], forwarded = k->counters[CNT_to_rs] + k->counters[CNT_to_client];
    hit_each(&g, w);

    g.shape = SHAPE_DATA;
    g.idle[0] = g.idle[1] = false;
    u64 start = thread_ns();
    out->packets = turns(w, (u64)(o->seconds * 1e9));
    out->ns = thread_ns() - start;
    out->verified = g.verified;
    out->mismatched = g.mismatched;
    u64 sample = out->packets < 20000000 ? out->packets : 20000000;
    out->generator_ns = (u64)((double)generator_alone(w, sample) * (double)out->packets / (double)sample);
    out->floor_ns = (u64)((double)memory_floor(&g, k, sample) * (double)out->packets / (double)sample);
    if (o->stages)
        measure_stages(w, (u64)(o->seconds * 1e9), out);
    out->dropped = k->counters[CNT_rx_packets] - received - (k->counters[CNT_to_rs] + k->counters[CNT_to_client] - forwarded);
    out->expire_ns = expire_all(&g, w, monotonic_ns() - began);
    out->left = still_taken(k);
    shut_down(&g, w);
    return 0;
}

/* Six packets of each life in the window, phase after phase. */
static void live(struct generator *g, struct fnat_worker *w, u32 n)
{
    g->learn = true;
    phase(g, w, 0, n, TO_RS, SHAPE_SYN);
    g->learn = false;
    phase(g, w, 0, n, TO_CLIENT, SHAPE_SYNACK);
    phase(g, w, 0, n, TO_RS, SHAPE_ACK);
    phase(g, w, 0, n, TO_RS, SHAPE_DATA);
    phase(g, w, 0, n, TO_RS, SHAPE_FIN);
    phase(g, w, 0, n, TO_CLIENT, SHAPE_FIN);
}

static void live_generator_alone(struct generator *g, struct fnat_worker *w, u32 n)
{
    static const struct {
        enum direction dir;
        enum shape shape;
    } order[LIVES_PACKETS] = {{TO_RS, SHAPE_SYN},  {TO_CLIENT, SHAPE_SYNACK}, {TO_RS, SHAPE_ACK},
                              {TO_RS, SHAPE_DATA}, {TO_RS, SHAPE_FIN},        {TO_CLIENT, SHAPE_FIN}};
    for (u32 i = 0; i < LIVES_PACKETS; i++) {
        g->at = 0, g->end = n, g->shape = order[i].shape;
        g->learn = false;
        g->idle[0] = g->idle[1] = false;
        while (g->at < g->end) {
            unsigned got = io_rx(w->queues[order[i].dir].io, w->rx, BATCH);
            io_tx(w->queues[order[i].dir].io, w->rx, got);
            (void)monotonic_ns();
        }
    }
    g->end = 0;
}

/* Free records in a random order, as days of traffic leave them. */
static bool shuffle_records(struct core *k)
{
    struct worker_header *h = k->header;
    u32 n = k->conn_capacity;
    u64 random = 2;
    if (h->conn_fresh)
        return true; /* there has been traffic */
    u32 *order = malloc((u64)n * sizeof *order);
    if (!order)
        return false;
    for (u32 i = 0; i < n; i++) {
        u32 j = scale_u32((u32)next_random(&random), i + 1);
        order[i] = order[j];
        order[j] = i + 1;
    }
    for (u32 i = 0; i < n; i++) {
        u32 *list = &h->conn_free[i % CONN_LANES];
        k->conns[order[i]].wheel_next = *list;
        *list = order[i];
    }
    h->conn_fresh = n;
    free(order);
    return true;
}

/* New clients for the next window. */
static void renew_clients(struct generator *g, u32 *next)
{
    for (u32 i = 0; i < g->n_flows; i++, ++*next) {
        g->flows[i].cip = be32(0x0a000000 | (*next / 60000 + 1));
        g->flows[i].cport = be16((u16)(1024 + *next % 60000));
    }
}

int fnat_bench_cps(struct fnat_worker *w, double seconds, struct fnat_bench_result *out)
{
    struct generator g;
    struct core *k = &w->core;
    u32 next = 0;
    if (seconds <= 0)
        return -EINVAL;
    int rc = set_up(&g, w, PROTO_TCP, WINDOW, LEAST_PAYLOAD);
    if (!rc && !shuffle_records(k))
        rc = -ENOMEM;
    if (rc)
        return rc;
    *out = (struct fnat_bench_result){0};

    u64 half = (u64)(seconds * 1e9) / 2, start = 0, cpu = 0, opened = 0, closed = 0, packets = 0, made = 0, begin = monotonic_ns();
    for (u64 now = begin;; now = monotonic_ns()) { /* the first half warms up: connections begin to expire as fast as they open */
        if (!start && now - begin >= half) {
            start = now, cpu = thread_ns();
            opened = k->counters[CNT_conns_opened], closed = k->counters[CNT_conns_closed];
            packets = k->counters[CNT_to_rs] + k->counters[CNT_to_client], made = g.made;
        }
        if (start && now - start >= half) {
            out->ns = thread_ns() - cpu;
            break;
        }
        renew_clients(&g, &next);
        live(&g, w, WINDOW);
    }
    out->opened = k->counters[CNT_conns_opened] - opened;
    out->conns = k->counters[CNT_conns_closed] - closed;
    out->packets = k->counters[CNT_to_rs] + k->counters[CNT_to_client] - packets;
    out->dropped = g.made - made - out->packets;
    out->verified = g.verified, out->mismatched = g.mismatched;
    u64 gen = thread_ns();
    for (u32 i = 0; i < 16; i++) {
        renew_clients(&g, &next);
        live_generator_alone(&g, w, WINDOW);
    }
    gen = thread_ns() - gen;
    out->generator_ns = (u64)((double)gen / (16.0 * WINDOW) * (double)out->opened);
    shut_down(&g, w);
    return 0;
}

/* ---- picks of a scheduler ---- */

static const struct snap_service *service_by_id(const struct core *k, u32 id)
{
    const union snap_slot *slot;
    for (u32 cursor = 0; k->snap && (slot = snapshot_next(&k->snap->services, k->area, &cursor));) {
        const struct snap_service *s = snapshot_at(k->area, slot->service.blob);
        if (s->id == id)
            return s;
    }
    return NULL;
}

static void count_conn(struct core *k, const struct snap_service *s, u32 member, u32 more)
{
    struct member_stats *m = &k->members[s->members[member].id];
    if (s->proto == PROTO_UDP)
        m->inactive += more;
    else
        m->active += more;
}

int fnat_bench_picks(struct fnat_worker *w, u32 service, u64 n, u32 held, u64 seed, u64 *picked, u64 *holds, u64 *ns)
{
    enum { NOBODY = ~0u };
    struct core *k = &w->core;
    worker_step(w, k->now_ns ? k->now_ns : monotonic_ns()); /* adopt the snapshot */
    const struct snap_service *s = service_by_id(k, service);
    if (!s)
        return -ENOENT;
    u32 *open = malloc((held + 1ull) * sizeof *open);
    if (!open)
        return -ENOMEM;
    memset(open, 0xff, held * sizeof *open);
    memset(picked, 0, s->n_members * sizeof *picked);
    memset(holds, 0, s->n_members * sizeof *holds);
    struct packet p = {.family = 4, .proto = s->proto, .kind = s->proto == PROTO_UDP ? KIND_UDP : KIND_TCP};
    u64 start = thread_ns();
    for (u64 i = 0; i < n; i++) {
        u64 random = next_random(&seed);
        p.saddr = (u32)random, p.sport = (u16)(random >> 32);
        int member = sched_pick(k, s, &p);
        if (member < 0)
            continue;
        picked[member]++;
        if (!held)
            continue;
        u32 at = scale_u32((u32)(next_random(&seed) >> 32), held);
        if (open[at] != NOBODY)
            count_conn(k, s, open[at], -1u);
        open[at] = (u32)member;
        count_conn(k, s, (u32)member, 1);
    }
    *ns = thread_ns() - start;
    for (u32 at = 0; at < held; at++)
        if (open[at] != NOBODY) {
            holds[open[at]]++;
            count_conn(k, s, open[at], -1u);
        }
    free(open);
    return 0;
}
