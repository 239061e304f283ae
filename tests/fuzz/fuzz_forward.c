/* Invariant: any bytes in any order of turns give a verdict or a named drop; after every turn
 *  - rx_packets = forwarded + answered + absorbed + passed + waiting + held + all drop reasons (each packet ends in exactly one way);
 *  - no frame is lost: free + waiting + held = total;
 *  - every IPv4 frame that leaves is no longer than its port's MTU and has a right header checksum;
 * and when time has passed, everything taken is given back.
 *
 * The input is a program: one byte says what to do, the next ones how (see run()). The plane lives over all inputs, its
 * connections do not. Frames lie in one mapping; reads beyond a frame are fuzz_parse's business.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "core.h"
#include "csum.h"
#include "fnat.h"

#define CHECK(x)                                                                                                                           \
    do {                                                                                                                                   \
        if (!(x)) {                                                                                                                        \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #x);                                                                        \
            report();                                                                                                                      \
            __builtin_trap();                                                                                                              \
        }                                                                                                                                  \
    } while (0)

enum { OPERATIONS = 12 };
enum { WAN, LAN, PUNT, QUEUES, FRAMES = 512, CONNS = 256, MTU = 1500, SECOND = 1000000000 };

static struct fnat_plane *plane;
static struct fnat_worker *worker;
static struct frame_pool *pool;
static struct io_queue *queues[QUEUES];
static uint64_t now = 1000ull * SECOND;
static uint64_t counters[COUNTERS];
static uint8_t last[QUEUES][FRAME_SIZE]; /* the frame that left last, by queue */
static uint32_t last_len[QUEUES];
static const uint32_t VIP = 0x0a0200c0, LIP = 0x0b00000a, RS = 0x6500000a, CLIENT = 0x076433c6; /* network order */

static const uint8_t VIP6[16] = {0x20, 1, 0xd, 0xb8, 0, 1, [15] = 0x10}, LIP6[16] = {0xfd, [15] = 0x11}, RS6[16] = {0xfd, [14] = 1, 1},
                     GATEWAY6[16] = {0x20, 1, 0xd, 0xb8, 0, 1, [15] = 1};

static void report(void)
{
    for (uint32_t i = 0; i < COUNTERS; i++)
        if (counters[i])
            fprintf(stderr, "%s %llu\n", fnat_counter_name(i), (unsigned long long)counters[i]);
    fprintf(stderr, "frames free %u of %u\n", pool->free, pool->total);
}

static uint8_t told; /* how the next service tells RSs the client's address */
static const uint8_t how_told[2][6] = {
    {FNAT_CLIENT_ADDR_NONE, FNAT_CLIENT_ADDR_TOA, FNAT_CLIENT_ADDR_PROXY_V1, FNAT_CLIENT_ADDR_PROXY_V2,
     FNAT_CLIENT_ADDR_PROXY_V1 | FNAT_CLIENT_ADDR_INSECURE, FNAT_CLIENT_ADDR_PROXY_V2 | FNAT_CLIENT_ADDR_INSECURE},
    {FNAT_CLIENT_ADDR_NONE, FNAT_CLIENT_ADDR_UOA_OPP, FNAT_CLIENT_ADDR_UOA_IPO, FNAT_CLIENT_ADDR_PROXY_V2,
     FNAT_CLIENT_ADDR_PROXY_V2 | FNAT_CLIENT_ADDR_INSECURE, FNAT_CLIENT_ADDR_UOA_OPP},
};

/* How the next service schedules; as far as it goes together. */
static uint8_t scheduler;
static void schedule(struct fnat_service_spec *s)
{
    s->sched = scheduler % FNAT_SCHEDS, s->slots = 13, s->now_ns = now;
    if (s->sched == FNAT_SCHED_SH || s->sched == FNAT_SCHED_MH || s->sched == FNAT_SCHED_CONHASH)
        s->hash_target = scheduler / FNAT_SCHEDS % (s->proto == PROTO_UDP ? 3 : 2);
    else if (s->sched != FNAT_SCHED_RR && s->sched != FNAT_SCHED_LC && s->sched != FNAT_SCHED_FO)
        s->slow_start = scheduler / FNAT_SCHEDS;
}
static uint16_t lists[2]; /* address sets: who is denied, who is allowed */

static void turn(void);

/* Without room the last snapshot stays in force; the worker's next turn gives back what it has left. */
static void publish(const struct fnat_service_spec *s, const struct fnat_member_spec *m, const uint16_t *lips)
{
    for (int again = 0;; again = 1) {
        int rc = fnat_put_service(plane, s, m, lips);
        if (rc == 0)
            rc = fnat_publish(plane) > 0 ? 0 : -ENOSPC;
        if (rc == 0)
            return;
        CHECK(rc == -ENOSPC && !again);
        turn();
    }
}

static void put_service(uint32_t id, uint8_t proto, uint16_t vport, uint16_t weight, uint8_t flags, uint32_t half_open, uint32_t lips)
{
    struct fnat_service_spec s = {.id = id,
                                  .vport = vport,
                                  .family = 4,
                                  .proto = proto,
                                  .flags = flags,
                                  .half_open = half_open,
                                  .n_members = 2,
                                  .n_lips = lips,
                                  .no_rs = flags & 1,
                                  .client_addr = how_told[proto == PROTO_UDP][told % 6],
                                  .acl = lists,
                                  .n_deny = id == 6,
                                  .n_allow = id == 6};
    struct fnat_member_spec m[2] = {{.id = id * 2, .rport = 8080, .weight = weight, .family = 4},
                                    {.id = id * 2 + 1, .rport = 8081, .weight = (uint16_t)(weight / 2), .family = 4}};
    const uint16_t lip = 2;
    schedule(&s);
    memcpy(s.vip, &VIP, 4);
    memcpy(m[0].rip, &RS, 4);
    memcpy(m[1].rip, &RS, 4);
    publish(&s, m, &lip);
}

/* An IPv6 service with servers of both families. */
static void put_service6(uint32_t id)
{
    struct fnat_service_spec s = {.id = id, .vport = 80, .family = 6, .proto = id & 1 ? PROTO_UDP : PROTO_TCP, .n_members = 2, .n_lips = 2};
    struct fnat_member_spec m[2] = {{.id = id * 2, .rport = 8080, .weight = 1, .family = 6},
                                    {.id = id * 2 + 1, .rport = 8080, .weight = 1, .family = 4}};
    const uint16_t lips[2] = {2, 4};
    memcpy(s.vip, VIP6, 16);
    memcpy(m[0].rip, RS6, 16);
    memcpy(m[1].rip, &RS, 4);
    publish(&s, m, lips);
}

/* Service 6 denies some clients and allows others; some more are denied everywhere. */
static void put_lists(void)
{
    static const uint8_t entries[][8] = {{4, 0, 8}, {4, 198, 8}, {4, 10, 7}, {6, 0x20, 3}, {4, 0, 0}, {6, 0x20, 16}};
    uint32_t done;
    for (uint32_t i = 0; i < 6; i++) {
        uint8_t key[FNAT_ACL_KEY] = {entries[i][0], entries[i][1]}, answer = i % 4 == 1 ? FNAT_ACL_EXCEPT : FNAT_ACL_YES;
        key[17] = (uint8_t)(entries[i][2] + 1);
        int set = fnat_acl_make(plane, i < 4 ? "deny" : "allow");
        CHECK(set > 0);
        CHECK(fnat_acl_edit(plane, (uint32_t)set, key, &answer, 1, &done) == 0);
        lists[i >= 4] = (uint16_t)set;
    }
    CHECK(fnat_put_acl(plane, lists, 1, 0) == 0);
}

static void start(void)
{
    struct fnat_plane_config config = {.workers = 1,
                                       .conns = CONNS,
                                       .services = 7,
                                       .members = 14,
                                       .endpoints = 16,
                                       .neighbours = 32,
                                       .frames = FRAMES,
                                       .snapshot_mib = 1,
                                       .acl_mib = 1};
    struct fnat_settings settings = {.unserved = FNAT_UNSERVED_RESET, .icmp_rate = 1000, .echo_rate = 1000, .announce = 1};
    struct fnat_address_spec addrs[4] = {{.id = 1, .family = 4, .kind = FNAT_ADDR_VIP, .port = WAN},
                                         {.id = 2, .family = 4, .kind = FNAT_ADDR_LIP, .port = LAN},
                                         {.id = 3, .family = 6, .kind = FNAT_ADDR_VIP, .port = WAN},
                                         {.id = 4, .family = 6, .kind = FNAT_ADDR_LIP, .port = LAN}};
    struct fnat_route_spec routes[4] = {{.family = 4, .plen = 0, .port = WAN},
                                        {.family = 4, .plen = 8, .port = LAN},
                                        {.family = 6, .plen = 0, .port = WAN},
                                        {.family = 6, .plen = 8, .port = LAN}};
    const uint8_t mac[6] = {2, 0, 0, 0, 0, 1};
    CHECK(fnat_plane_create(NULL, &config, FNAT_ANON, &plane) == 0);
    worker = fnat_worker_get(plane, 0);
    pool = fnat_worker_pool(worker);
    for (int i = 0; i < QUEUES; i++) {
        CHECK(fnat_mem_open(pool, 128, &queues[i]) == 0);
        CHECK(fnat_worker_attach(worker, i == PUNT ? WAN : (uint8_t)i, i == PUNT, queues[i]) == 0);
    }
    for (int i = 0; i < FNAT_STATES; i++)
        settings.timeouts[i] = 1;
    settings.fragment_seconds = 1;
    settings.lport_first = 1024, settings.lport_last = 1400;
    CHECK(fnat_put_settings(plane, &settings) == 0);
    for (uint8_t i = 0; i < 2; i++) {
        struct fnat_port_spec port = {.name = "port", .mac = {2, 0, 0, 0, 0, 16}, .id = i, .flags = FNAT_PORT_UP, .mtu = MTU};
        CHECK(fnat_put_port(plane, &port) == 0);
    }
    memcpy(addrs[0].addr, &VIP, 4);
    memcpy(addrs[1].addr, &LIP, 4);
    memcpy(routes[1].prefix, &RS, 1);
    memcpy(addrs[2].addr, VIP6, 16);
    memcpy(addrs[3].addr, LIP6, 16);
    memcpy(routes[2].gateway, GATEWAY6, 16);
    memcpy(routes[3].prefix, RS6, 1);
    CHECK(fnat_put_addresses(plane, addrs, 4) == 0);
    CHECK(fnat_put_routes(plane, routes, 4) == 0);
    CHECK(fnat_neigh_set(plane, LAN, 6, RS6, mac, FNAT_NEIGH_REACHABLE | FNAT_NEIGH_STATIC) == 0);
    CHECK(fnat_neigh_set(plane, WAN, 6, GATEWAY6, mac, FNAT_NEIGH_REACHABLE | FNAT_NEIGH_STATIC) == 0);
    CHECK(fnat_neigh_set(plane, LAN, 4, (const uint8_t[16]){10, 0, 0, 0x65}, mac, FNAT_NEIGH_REACHABLE | FNAT_NEIGH_STATIC) == 0);
    CHECK(fnat_neigh_set(plane, WAN, 4, (const uint8_t[16]){0xc6, 0x33, 0x64, 7}, mac, FNAT_NEIGH_REACHABLE | FNAT_NEIGH_STATIC) == 0);
    put_lists();
    put_service(0, PROTO_TCP, 80, 2, 0, 0, 1);
    put_service(1, PROTO_UDP, 80, 2, 0, 0, 1);
    put_service(4, PROTO_SCTP, 80, 2, 0, 0, 1);
    put_service(5, PROTO_UDP, 443, 2, FNAT_SVC_QUIC, 0, 1);
    put_service(6, PROTO_UDP, 53, 2, 0, 0, 1);
    put_service6(2);
    put_service6(3);
}

static void collect(void)
{
    static uint8_t frame[FRAME_SIZE];
    for (int i = 0; i < QUEUES; i++) {
        int n;
        while ((n = fnat_mem_take(queues[i], frame, sizeof frame)) >= 0) {
            memcpy(last[i], frame, (size_t)n);
            last_len[i] = (uint32_t)n;
            if (i == PUNT)
                continue;
            CHECK(n >= ETH_HEADER);
            if (be16(get16(frame + 12)) != ETH_TYPE_IP4)
                continue;
            const struct ip4_header *ip = (const struct ip4_header *)(frame + ETH_HEADER);
            uint32_t header = (ip->version_ihl & 15) * 4u;
            CHECK(be16(ip->total_len) <= MTU || ip->proto == PROTO_ICMP); /* an echo reply is as long as its request */
            CHECK(be16(ip->total_len) + ETH_HEADER <= n);
            CHECK(csum_fold(csum_partial(ip, header)) == 0xffff);
        }
    }
}

static void turn(void)
{
    while (fnat_worker_step(worker, now) > 0) /* a step takes at most a batch a queue */
        collect();
    collect();
    CHECK(fnat_counters(plane, 0, counters) == 0);
    uint64_t ended = counters[CNT_to_rs] + counters[CNT_to_client] + counters[CNT_answered] + counters[CNT_absorbed] +
                     counters[CNT_passed] + counters[TAKEN_waiting] + counters[TAKEN_held];
    for (uint32_t i = 0; i < COUNTERS; i++)
        if (fnat_counter_kind(i) == 'd')
            ended += counters[i];
    CHECK(counters[CNT_rx_packets] == ended);
    CHECK(pool->free + counters[TAKEN_waiting] + counters[TAKEN_held] == pool->total);
}

static uint8_t *make(uint8_t *frame, uint32_t *len, uint8_t proto, uint32_t src, uint32_t dst, uint16_t sport, uint16_t dport,
                     const uint8_t *tail, uint32_t n)
{
    struct ip4_header *ip = (struct ip4_header *)(frame + ETH_HEADER);
    uint8_t *l4 = (uint8_t *)(ip + 1);
    memset(frame, 2, 12);
    put16(frame + 12, be16(ETH_TYPE_IP4));
    uint32_t head = proto == PROTO_TCP ? 20 : 8;
    *ip = (struct ip4_header){
        .version_ihl = 0x45, .total_len = be16((uint16_t)(20 + head + n)), .ttl = 64, .proto = proto, .src = src, .dst = dst};
    ip->csum = csum_ip4(ip, 20);
    memset(l4, 0, head);
    put16(l4, sport);
    put16(l4 + 2, dport);
    if (proto == PROTO_TCP)
        l4[12] = 5 << 4;
    else
        put16(l4 + 4, be16((uint16_t)(8 + n)));
    memcpy(l4 + head, tail, n);
    *len = ETH_HEADER + 20 + head + n;
    return l4;
}

static uint8_t next(const uint8_t **p, const uint8_t *end) { return *p < end ? *(*p)++ : 0; }

static void put(int queue, const uint8_t *frame, uint32_t len)
{
    (void)fnat_mem_put(queues[queue], frame, len); /* full: nothing came in */
}

/* Fix the IP checksum, so that what lies behind it is reached. */
static void fix(uint8_t *frame, uint32_t len)
{
    struct ip4_header *ip = (struct ip4_header *)(frame + ETH_HEADER);
    if (len < ETH_HEADER + 20 || ETH_HEADER + (ip->version_ihl & 15) * 4u > len || (ip->version_ihl & 15) < 5)
        return;
    ip->csum = 0;
    ip->csum = csum_ip4(ip, (ip->version_ihl & 15) * 4u);
}

/* An ICMP error, checksums right, about the frame that left last by a queue. bytes: type, code, the 4 bytes behind the checksum, how much is
 * quoted in units of 4, then bytes that change the quoted headers. */
static uint32_t make_error(uint8_t *frame, int about, const uint8_t *bytes, uint32_t n)
{
    bool six = be16(get16(last[about] + 12)) == ETH_TYPE_IP6;
    uint32_t l3 = six ? 40 : 20, quoted = min_u32(bytes[6] * 4u, last_len[about] - ETH_HEADER), len = 8 + quoted;
    uint8_t *ip = frame + ETH_HEADER, *icmp = ip + l3, *quote = icmp + 8;
    memcpy(frame, last[about], ETH_HEADER);
    memcpy(quote, last[about] + ETH_HEADER, quoted);
    for (uint32_t i = 7; i < n; i++)
        if (i - 7 < quoted)
            quote[i - 7] ^= bytes[i];
    memcpy(icmp, (const uint8_t[8]){bytes[0], bytes[1], 0, 0, bytes[2], bytes[3], bytes[4], bytes[5]}, 8);
    if (six) {
        struct ip6_header *h = (struct ip6_header *)ip;
        *h = (struct ip6_header){
            .version_class_flow = be32(6u << 28), .payload_len = be16((uint16_t)len), .next = PROTO_ICMP6, .hop_limit = 9};
        memcpy(h->src, (const uint8_t[16]){0x20, 1, 0xd, 0xb8, [15] = 9}, 16);
        memcpy(h->dst, last[about] + ETH_HEADER + 8, 16);
        put16(icmp + 2, (uint16_t)~csum_fold(csum_pseudo6(h->src, PROTO_ICMP6, len) + csum_partial(icmp, len)));
    } else {
        struct ip4_header *h = (struct ip4_header *)ip;
        *h =
            (struct ip4_header){.version_ihl = 0x45, .total_len = be16((uint16_t)(20 + len)), .ttl = 9, .proto = PROTO_ICMP, .src = CLIENT};
        memcpy(&h->dst, last[about] + ETH_HEADER + 12, 4);
        h->csum = csum_ip4(h, 20);
        put16(icmp + 2, (uint16_t)~csum_fold(csum_partial(icmp, len)));
    }
    return ETH_HEADER + l3 + len;
}

static void run(const uint8_t *p, const uint8_t *end)
{
    static uint8_t frame[FRAME_SIZE];
    uint32_t len;
    while (p < end) {
        uint8_t what = next(&p, end), how = next(&p, end);
        uint32_t n = next(&p, end);
        if (n > (uint32_t)(end - p))
            n = (uint32_t)(end - p);
        switch (what % OPERATIONS) {
        case 0: /* raw bytes */
        case 1: /* raw bytes with a right header checksum */
            memcpy(frame, p, n);
            if (what % OPERATIONS)
                fix(frame, n);
            if (n)
                put(how % 2, frame, n);
            p += n;
            break;
        case 2: /* a client's segment: flags, then options and payload */
        case 3: {
            uint8_t flags = what % OPERATIONS == 2 ? TCP_SYN : next(&p, end);
            n = min_u32(n, (uint32_t)(end - p));
            uint8_t *l4 = make(frame, &len, PROTO_TCP, CLIENT, VIP, how, be16(how & 128 ? 81 : 80), p, n);
            l4[13] = flags;
            l4[12] = (uint8_t)((5 + min_u32(how % 11, n / 4)) << 4);
            put(WAN, frame, len);
            p += n;
            break;
        }
        case 4: /* a client's datagram */
            make(frame, &len, PROTO_UDP, CLIENT, VIP, how, be16(how & 128 ? 81 : 80), p, n);
            put(WAN, frame, len);
            p += n;
            break;
        case 5: /* an answer to what went to the RS last, with the given bytes over its L4 header */
        case 6:
            if (last_len[LAN] >= 42 && last[LAN][23] != PROTO_ICMP && be16(get16(last[LAN] + 12)) == ETH_TYPE_IP4) {
                len = last_len[LAN];
                memcpy(frame, last[LAN], len);
                memcpy(frame + 26, last[LAN] + 30, 4);
                memcpy(frame + 30, last[LAN] + 26, 4);
                memcpy(frame + 34, last[LAN] + 36, 2);
                memcpy(frame + 36, last[LAN] + 34, 2);
                if (frame[23] == PROTO_TCP && len > 47)
                    frame[47] = how;
                for (uint32_t i = 0; what % OPERATIONS == 6 && i < n && 38 + i < len; i++)
                    frame[38 + i] = p[i];
                fix(frame, len);
                put(LAN, frame, len);
            }
            p += n;
            break;
        case 7: /* time */
            turn();
            now += (uint64_t)how * (SECOND / 64);
            break;
        case 8: /* another configuration */
            told = what / OPERATIONS;
            scheduler = (uint8_t)(n >> 4 | (how & 15) << 4);
            put_service(how & 1, how & 1 ? PROTO_UDP : PROTO_TCP, 80, n & 3, (how >> 1) & (FNAT_SVC_EXPIRE_QUIESCENT | FNAT_SVC_ONE_PACKET),
                        how >> 5, !!(n & 12));
            break;
        case 10: /* an ICMP error about the last frame */
            if (n >= 7 && last_len[how & 1] >= ETH_HEADER + 20 && get16(last[how & 1] + 12) != be16(ETH_TYPE_ARP))
                put(how & 1, frame, make_error(frame, how & 1, p, n));
            p += n;
            break;
        case 11: { /* a fragment of a client's datagram, or of an answer to what went to the RS last: identification, place, bytes */
            uint16_t place = (uint16_t)(next(&p, end) << 8);
            place |= next(&p, end);
            n = min_u32(n, (uint32_t)(end - p));
            bool answer = how & 64 && last_len[LAN] >= 42 && be16(get16(last[LAN] + 12)) == ETH_TYPE_IP4;
            make(frame, &len, how & 32 ? PROTO_TCP : PROTO_UDP, CLIENT, VIP, 7, be16(80), p, n);
            struct ip4_header *ip = (struct ip4_header *)(frame + ETH_HEADER);
            if (answer) {
                ip->src = get32(last[LAN] + 30), ip->dst = get32(last[LAN] + 26);
                memcpy(frame + 34, last[LAN] + 36, 2);
                memcpy(frame + 36, last[LAN] + 34, 2);
            }
            ip->id = how & 15;
            ip->frag = be16(place & (IP4_MF | IP4_OFFSET));
            fix(frame, len);
            put(answer ? LAN : WAN, frame, len);
            p += n;
            break;
        }
        default: /* the last frame once more, from either side, a byte changed */
            len = last_len[how % QUEUES];
            if (!len)
                break;
            memcpy(frame, last[how % QUEUES], len);
            frame[n % len] ^= what;
            fix(frame, len);
            put(how >> 4 & 1, frame, len);
        }
        if (what & 128)
            turn();
    }
    turn();
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
    if (!plane)
        start();
    run(bytes, bytes + len);
    for (int i = 0; i < 8 || counters[TAKEN_conns] || counters[TAKEN_waiting] || counters[TAKEN_datagrams]; i++) {
        CHECK(i < 2000);
        turn();
        now += SECOND / 2;
    }
    for (uint32_t i = 0; i < COUNTERS; i++)
        if (fnat_counter_kind(i) == 't')
            CHECK(counters[i] == 0);
    return 0;
}
