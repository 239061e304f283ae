/* traffic.c: load from outside, and the least that a forwarder can do: what a balancer between two real devices is measured with.
 *
 *     client queue -> the device under test -> server queue -> the device under test -> client queue
 *
 * The client side sends UDP packets of `flows` flows, each with a sequence number of its own; what arrives at the server side is checked, its
 * addresses swapped, and sent back. At most `window` packets are under way, so that a slower device under test is not flooded but
 * followed. A packet counts when it has come back to the client side, once: a bitmap by sequence number tells first arrivals from
 * duplicates, and what has not come back at the end is lost. Of everything that comes back addresses, ports and flow are checked, and of one in
 * CHECK_EVERY both checksums too. The server side may see all packets or a sample of them; it checks all that it sees.
 *
 * Everything about a flow follows from its number, so the generator touches no memory of its own that grows with their number.
 * Unsatisfying: UDP only. Connections of TCP are made by real programs in the benches that need them.
 * Nothing here is used when fnat carries traffic.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "clock.h"
#include "csum.h"
#include "fnat.h"
#include "io.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>

enum { REMEMBERED = 1 << 20 }; /* sequence numbers that may be under way */
enum { CHECK_EVERY = 64, PORTS_PER_CLIENT = 50000, FIRST_CPORT = 10000 };
enum { WRITE_OFF_NS = 20000000 }; /* without an arrival for so long, what is under way will not come */
enum { IDLE_NS = 20000 };         /* nothing to do: sleep so long, which packets gather in */

/* A payload: 18 bytes, which make the smallest Ethernet frame. */
struct mark {
    u32 flow, guard; /* guard: ~flow */
    u64 seq;
    u16 spare;
} __attribute__((packed, aligned(2)));

struct udp_frame {
    struct eth_header eth;
    struct ip4_header ip;
    struct udp_header udp;
    struct mark mark;
} __attribute__((packed, aligned(2)));
_Static_assert(sizeof(struct udp_frame) == ETH_MIN_FRAME, "the smallest frame without FCS");

struct fnat_traffic {
    struct fnat_traffic_spec spec;
    struct frame_pool *pool;
    struct io_queue *client, *server;
    struct udp_frame template;
    u64 sum_ip, sum_udp; /* of the template, not folded */
    u64 random;
    u32 opening, open_at, opened; /* the pass that opens flows: next flow, flows that have come back */
    u64 *open_bits;
    s64 written_off;
    u64 first_seq, next_seq, last_arrival; /* first_seq: of this run */
    u64 interval_ns_x1024, next_send;      /* paced; 0: as the window allows */
    struct fnat_traffic_result r;
    u64 seen[REMEMBERED / 64];
    u64 sent_at[REMEMBERED]; /* ns */
};

static inline u64 next_random(u64 *state) /* splitmix64 */
{
    u64 z = *state += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

/* ---- what a flow is ---- */

static inline u32 flow_cip(const struct fnat_traffic *t, u32 flow) { return be32(t->spec.cip + flow / PORTS_PER_CLIENT); }
static inline u16 flow_cport(u32 flow) { return be16((u16)(FIRST_CPORT + flow % PORTS_PER_CLIENT)); }
static inline u16 flow_vport(const struct fnat_traffic *t, u32 flow) { return be16((u16)(t->spec.vport + flow % t->spec.services)); }

/* ---- frames ---- */

static void make_template(struct fnat_traffic *t)
{
    struct udp_frame *f = &t->template;
    u16 l4_len = sizeof f->udp + sizeof f->mark;
    *f = (struct udp_frame){
        .eth.type = be16(ETH_TYPE_IP4),
        .ip = {.version_ihl = 0x45,
               .total_len = be16((u16)(sizeof f->ip + l4_len)),
               .frag = be16(IP4_DF),
               .ttl = 64,
               .proto = PROTO_UDP,
               .dst = be32(t->spec.vip)},
        .udp.len = be16(l4_len),
    };
    memcpy(f->eth.dst, t->spec.gateway_mac, 6);
    memcpy(f->eth.src, t->spec.client_mac, 6);
    t->sum_ip = csum_partial(&f->ip, sizeof f->ip);
    t->sum_udp = csum_partial(&f->udp, l4_len) + csum_pseudo4(0, f->ip.dst, PROTO_UDP, l4_len);
}

static void write_frame(const struct fnat_traffic *t, u8 *data, u32 flow, u64 seq)
{
    struct udp_frame *f = (struct udp_frame *)data;
    u32 cip = flow_cip(t, flow), ports = flow_cport(flow) | (u32)flow_vport(t, flow) << 16;
    memcpy(f, &t->template, sizeof *f);
    f->ip.src = cip;
    f->ip.csum = (u16)~csum_fold(t->sum_ip + cip);
    put32(&f->udp, ports);
    f->mark.flow = flow;
    f->mark.guard = ~flow;
    f->mark.seq = seq;
    u16 sum = csum_fold(t->sum_udp + cip + ports + flow + (u32)~flow + (seq & 0xffffffff) + (seq >> 32));
    f->udp.csum = sum == 0xffff ? 0xffff : (u16)~sum;
}

static bool is_ours(const struct fnat_traffic *t, const struct packet *p)
{
    const struct udp_frame *f = (const struct udp_frame *)p->data;
    return p->len >= sizeof *f && f->eth.type == be16(ETH_TYPE_IP4) && f->ip.version_ihl == 0x45 && f->ip.proto == PROTO_UDP &&
           f->mark.guard == ~f->mark.flow && f->mark.flow < t->spec.flows;
}

static bool checksums_hold(const struct udp_frame *f)
{
    u16 l4_len = be16(f->udp.len);
    return l4_len == sizeof f->udp + sizeof f->mark && csum_fold(csum_partial(&f->ip, sizeof f->ip)) == 0xffff &&
           csum_fold(csum_pseudo4(f->ip.src, f->ip.dst, PROTO_UDP, l4_len) + csum_partial(&f->udp, l4_len)) == 0xffff;
}

static inline bool within(u32 address, u32 first, u32 last) { return be32(address) - first <= last - first; }

static bool right_at_server(const struct fnat_traffic *t, const struct udp_frame *f)
{
    return within(f->ip.src, t->spec.from_first, t->spec.from_last) && within(f->ip.dst, t->spec.to_first, t->spec.to_last) &&
           f->udp.dport == flow_vport(t, f->mark.flow) && checksums_hold(f);
}

static bool right_at_client(const struct fnat_traffic *t, const struct udp_frame *f)
{
    u32 flow = f->mark.flow;
    return f->ip.src == be32(t->spec.vip) && f->ip.dst == flow_cip(t, flow) && f->udp.sport == flow_vport(t, flow) &&
           f->udp.dport == flow_cport(flow);
}

/* ---- a turn ---- */

static void note_latency(struct fnat_traffic *t, u64 ns)
{
    u64 slot = ns / FNAT_TRAFFIC_SLOT_NS;
    t->r.latency[slot < FNAT_TRAFFIC_SLOTS ? slot : FNAT_TRAFFIC_SLOTS - 1]++;
}

static void arrive(struct fnat_traffic *t, const struct udp_frame *f, u64 now)
{
    u64 seq = f->mark.seq, bit = 1ull << (seq & 63), *word = &t->seen[seq % REMEMBERED / 64];
    if (seq < t->first_seq)
        return; /* of an earlier run, where it is lost */
    bool check = ++t->r.arrived % CHECK_EVERY == 0;
    if (!right_at_client(t, f) || seq >= t->next_seq || (check && !checksums_hold(f))) {
        t->r.wrong++;
        return;
    }
    t->r.checked += check;
    if (t->next_seq - seq > REMEMBERED || *word & bit) {
        t->r.duplicates++;
        return;
    }
    *word |= bit;
    t->r.returned++;
    t->last_arrival = now;
    note_latency(t, now - t->sent_at[seq % REMEMBERED]);
    if (t->opening && !(t->open_bits[f->mark.flow / 64] & 1ull << (f->mark.flow & 63))) {
        t->open_bits[f->mark.flow / 64] |= 1ull << (f->mark.flow & 63);
        t->opened++;
    }
}

static u32 client_receives(struct fnat_traffic *t, u64 now)
{
    struct packet pkts[BATCH];
    u32 n = io_rx(t->client, pkts, BATCH);
    for (u32 i = 0; i < n; i++) {
        if (is_ours(t, &pkts[i]))
            arrive(t, (const struct udp_frame *)pkts[i].data, now);
        frame_free(t->pool, pkts[i].frame);
    }
    return n;
}

static u32 server_reflects(struct fnat_traffic *t)
{
    struct packet pkts[BATCH];
    u32 n = io_rx(t->server, pkts, BATCH), back = 0;
    for (u32 i = 0; i < n; i++) {
        struct udp_frame *f = (struct udp_frame *)pkts[i].data;
        if (!is_ours(t, &pkts[i])) {
            frame_free(t->pool, pkts[i].frame);
            continue;
        }
        t->r.reflected++;
        if (!right_at_server(t, f))
            t->r.wrong++;
        struct eth_header eth = f->eth;
        memcpy(f->eth.dst, eth.src, 6);
        memcpy(f->eth.src, eth.dst, 6);
        u32 src = f->ip.src;
        f->ip.src = f->ip.dst;
        f->ip.dst = src;
        u16 sport = f->udp.sport;
        f->udp.sport = f->udp.dport;
        f->udp.dport = sport;
        pkts[back++] = pkts[i];
    }
    if (back)
        io_tx(t->server, pkts, back);
    return n;
}

/* The flow of the next packet; in the opening pass those that have not come back yet, in order. False: none is left to send now. */
static bool next_flow(struct fnat_traffic *t, u32 *flow)
{
    if (!t->opening) {
        *flow = scale_u32((u32)(next_random(&t->random) >> 32), t->spec.flows);
        return true;
    }
    while (t->open_at < t->spec.flows && t->open_bits[t->open_at / 64] & 1ull << (t->open_at & 63))
        t->open_at++;
    if (t->open_at == t->spec.flows)
        return false;
    *flow = t->open_at++;
    return true;
}

static u32 room_to_send(struct fnat_traffic *t, u64 now)
{
    s64 under_way = (s64)(t->r.sent - t->r.returned) - t->written_off;
    if (under_way <= 0) {
        t->last_arrival = now; /* nothing to wait for */
    } else if (now - t->last_arrival > WRITE_OFF_NS) {
        t->written_off += under_way;
        under_way = 0;
        t->last_arrival = now;
    }
    s64 room = (s64)t->spec.window - under_way;
    if (t->interval_ns_x1024) {
        s64 due = now > t->next_send ? (s64)((now - t->next_send) * 1024 / t->interval_ns_x1024) : 0;
        room = due < room ? due : room;
        return room <= 0 ? 0 : room > BATCH ? BATCH : (u32)room;
    }
    return room >= (s64)min_u32(BATCH, t->spec.window) ? min_u32(BATCH, t->spec.window) : 0; /* whole batches: a kick costs a system call */
}

static u32 client_sends(struct fnat_traffic *t, u64 now)
{
    struct packet pkts[BATCH];
    u32 flow, n = 0, room = min_u32(room_to_send(t, now), t->pool->free);
    u64 seq = t->next_seq;
    for (; n < room && next_flow(t, &flow); n++, seq++) {
        u32 frame = frame_alloc(t->pool);
        pkts[n] = (struct packet){.data = frame_data(t->pool, frame), .frame = frame, .len = sizeof(struct udp_frame)};
        write_frame(t, pkts[n].data, flow, seq);
        t->seen[seq % REMEMBERED / 64] &= ~(1ull << (seq & 63));
        t->sent_at[seq % REMEMBERED] = now;
    }
    if (!n)
        return 0;
    t->next_seq = seq;
    u32 sent = io_tx(t->client, pkts, n);
    t->r.sent += sent;
    t->r.unsent += n - sent;
    if (t->interval_ns_x1024)
        t->next_send += n * t->interval_ns_x1024 / 1024;
    return n;
}

uint32_t fnat_traffic_step(struct fnat_traffic *t, uint64_t now_ns)
{
    u32 moved = client_receives(t, now_ns);
    if (t->server)
        moved += server_reflects(t);
    return moved + client_sends(t, now_ns);
}

/* ---- the door's part ---- */

int fnat_traffic_open(struct frame_pool *pool, struct io_queue *client, struct io_queue *server, const struct fnat_traffic_spec *spec,
                      struct fnat_traffic **out)
{
    if (!client || !spec->flows || !spec->services || !spec->window || spec->window > REMEMBERED / 2)
        return -EINVAL;
    struct fnat_traffic *t = calloc(1, sizeof *t);
    if (!t)
        return -ENOMEM;
    t->spec = *spec;
    t->pool = pool;
    t->client = client;
    t->server = server;
    t->random = 1;
    make_template(t);
    *out = t;
    return 0;
}

void fnat_traffic_close(struct fnat_traffic *t)
{
    free(t->open_bits);
    free(t);
}

static void turns_until(struct fnat_traffic *t, u64 until, volatile int *stop)
{
    u64 now;
    t->last_arrival = monotonic_ns();
    while ((now = monotonic_ns()) < until && !*stop && !(t->opening && t->opened == t->spec.flows)) {
        if (!fnat_traffic_step(t, now))
            nanosleep(&(struct timespec){.tv_nsec = IDLE_NS}, NULL);
        if (t->opening && t->open_at == t->spec.flows && t->r.sent <= t->r.returned + (u64)t->written_off)
            t->open_at = 0; /* once more for those that were lost */
    }
}

/* Nothing more is sent; what is under way has 50 ms since the last arrival. */
static void drain(struct fnat_traffic *t)
{
    u64 now;
    t->last_arrival = monotonic_ns();
    while (t->r.returned < t->r.sent && (now = monotonic_ns()) < t->last_arrival + 50000000) {
        u32 moved = client_receives(t, now);
        if (t->server)
            moved += server_reflects(t);
        if (!moved)
            nanosleep(&(struct timespec){.tv_nsec = IDLE_NS}, NULL);
    }
}

static void begin(struct fnat_traffic *t)
{
    memset(&t->r, 0, sizeof t->r);
    t->written_off = 0;
    t->first_seq = t->next_seq;
}

int fnat_traffic_open_flows(struct fnat_traffic *t, double seconds, volatile int *stop)
{
    begin(t);
    free(t->open_bits);
    t->open_bits = calloc(t->spec.flows / 64 + 1, sizeof *t->open_bits);
    if (!t->open_bits)
        return -ENOMEM;
    t->opening = 1, t->open_at = t->opened = 0, t->interval_ns_x1024 = 0;
    turns_until(t, monotonic_ns() + (u64)(seconds * 1e9), stop);
    drain(t);
    t->opening = 0;
    return t->opened == t->spec.flows ? 0 : -ETIMEDOUT;
}

void fnat_traffic_run(struct fnat_traffic *t, double seconds, double rate, volatile int *stop)
{
    u64 start = monotonic_ns();
    begin(t);
    t->interval_ns_x1024 = rate > 0 ? (u64)(1e9 * 1024 / rate) : 0;
    t->next_send = start;
    turns_until(t, start + (u64)(seconds * 1e9), stop);
    t->r.ns = monotonic_ns() - start;
    t->r.in_time = t->r.returned;
    drain(t);
}

void fnat_traffic_result_get(const struct fnat_traffic *t, struct fnat_traffic_result *out) { *out = t->r; }

/* ---- the bare forwarder ---- */

uint32_t fnat_relay_step(struct io_queue *a, struct io_queue *b)
{
    struct packet pkts[BATCH];
    struct io_queue *side[2] = {a, b};
    u32 total = 0;
    for (u32 i = 0; i < 2; i++) {
        u32 n = io_rx(side[i], pkts, BATCH);
        for (u32 j = 0; j < n; j++) {
            struct eth_header *to = (struct eth_header *)pkts[j].data, from = *to;
            memcpy(to->dst, from.src, 6);
            memcpy(to->src, from.dst, 6);
        }
        if (n)
            io_tx(side[!i], pkts, n);
        total += n;
    }
    return total;
}

void fnat_relay_run(struct io_queue *a, struct io_queue *b, volatile int *stop, uint32_t spin_us)
{
    u64 last_work = monotonic_ns();
    while (!*stop) {
        u64 now = monotonic_ns();
        if (fnat_relay_step(a, b)) {
            last_work = now;
        } else if (spin_us && now - last_work > spin_us * 1000ull) {
            io_arm(a);
            io_arm(b);
            struct pollfd fds[2] = {{.fd = io_fd(a), .events = POLLIN}, {.fd = io_fd(b), .events = POLLIN}};
            ppoll(fds, 2, &(struct timespec){.tv_nsec = 1000000000 / 64}, NULL);
        }
    }
}
