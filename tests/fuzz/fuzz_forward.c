/* Invariant: any sequence of frames, turns and pauses ends with every packet counted once and every frame in its pool; after all
 * connections have expired nothing is taken.
 *
 * The input is a script. Each record: one byte (bit 0: port, bits 1-3: kind), then
 *   kind 0-3  a frame as it is: length byte, that many bytes
 *   kind 4    a frame whose IPv4 and TCP/UDP headers are made to fit the configuration; the bytes choose flags, ports, options
 *   kind 5    an answer to the last frame that left the other port, with flags and numbers from the bytes
 *   kind 6    a turn after a pause of 2^n ms
 *   kind 7    another configuration: weights, services, local ports */
#include <stdlib.h>

#include "csum.h"
#include "fnat.h"
#include "worker.h"

#define MUST(x)                                                                                                                            \
    do {                                                                                                                                   \
        if (!(x))                                                                                                                          \
            __builtin_trap();                                                                                                              \
    } while (0)

static struct fnat_plane *plane;
static struct fnat_worker *worker;
static struct io_queue *queues[2];
static u8 last[2][FRAME_SIZE];
static u32 last_len[2];
static u64 now = 1000000000000;

static u32 ip(u8 a, u8 b, u8 c, u8 d) { return (u32)a | (u32)b << 8 | (u32)c << 16 | (u32)d << 24; }

static void configure(u8 variant)
{
    static const u8 macs[2][6] = {{2, 0, 0, 0, 0, 1}, {2, 0, 0, 0, 0, 2}};
    struct fnat_settings settings;
    snapshot_default_settings(&settings);
    for (u32 i = 0; i < FNAT_STATES; i++)
        settings.timeouts[i] = 1 + i % 5;
    settings.unserved = variant & 1;
    settings.lport_last = variant & 2 ? 1040 : 65535;
    MUST(!fnat_put_settings(plane, &settings));
    for (u8 i = 0; i < 2; i++) {
        struct fnat_port_spec port = {.id = i, .flags = FNAT_PORT_UP, .mtu = 1500};
        memcpy(port.mac, macs[i], 6);
        MUST(!fnat_put_port(plane, &port));
    }
    struct fnat_address_spec addrs[] = {{.id = 1, .family = 4, .kind = FNAT_ADDR_VIP, .port = 0},
                                        {.id = 2, .family = 4, .kind = FNAT_ADDR_LIP, .port = 1}};
    struct fnat_route_spec routes[] = {{.family = 4, .plen = 0, .port = 0}, {.family = 4, .plen = 24, .port = 1}};
    u32 vip = ip(192, 0, 2, 1), lip = ip(10, 0, 0, 1), gw = ip(192, 0, 2, 254), lan = ip(10, 0, 0, 0), rs = ip(10, 0, 0, 9);
    memcpy(addrs[0].addr, &vip, 4), memcpy(addrs[1].addr, &lip, 4);
    memcpy(routes[0].gateway, &gw, 4), memcpy(routes[1].prefix, &lan, 4);
    MUST(!fnat_put_addresses(plane, addrs, 2) && !fnat_put_routes(plane, routes, 2));
    for (u32 i = 0; i < 2; i++) {
        struct fnat_service_spec svc = {.id = i,
                                        .vport = 80,
                                        .family = 4,
                                        .proto = i ? 17 : 6,
                                        .sched = variant >> 2 & 1,
                                        .no_rs = variant >> 3 & 1,
                                        .flags = variant >> 4 & 1,
                                        .half_open = 4,
                                        .n_members = 2,
                                        .n_lips = 1};
        struct fnat_member_spec members[2] = {{.id = i * 2, .rport = 8080, .weight = variant >> 5 & 1, .family = 4},
                                              {.id = i * 2 + 1, .rport = 8081, .weight = variant >> 6 & 1, .family = 4}};
        u16 lips[1] = {2};
        memcpy(svc.vip, &vip, 4), memcpy(members[0].rip, &rs, 4), memcpy(members[1].rip, &rs, 4);
        if (i && variant & 128)
            (void)fnat_del_service(plane, i);
        else
            MUST(!fnat_put_service(plane, &svc, members, lips));
    }
    MUST(fnat_publish(plane) > 0);
}

static void start(void)
{
    struct fnat_plane_config config = {
        .workers = 1, .conns = 64, .services = 4, .members = 8, .endpoints = 8, .neighbours = 16, .frames = 256, .snapshot_mib = 1};
    MUST(!fnat_plane_create(NULL, &config, FNAT_ANON, &plane));
    worker = fnat_worker_get(plane, 0);
    for (u8 i = 0; i < 2; i++) {
        MUST(!fnat_mem_open(fnat_worker_pool(worker), 128, &queues[i]));
        MUST(!fnat_worker_attach(worker, i, 0, queues[i]));
    }
}

static void turn(u64 ns)
{
    u8 frame[FRAME_SIZE];
    now += ns;
    fnat_worker_step(worker, now);
    for (u32 i = 0; i < 2; i++)
        for (int n; (n = fnat_mem_take(queues[i], frame, sizeof frame)) >= 0;) {
            memcpy(last[i], frame, (size_t)n);
            last_len[i] = (u32)n;
        }
}

/* Exactly one outcome for each packet, and no frame lost. */
static void check(void)
{
    u64 c[COUNTERS], sum = 0;
    fnat_counters(plane, 0, c);
    for (u32 i = DROP_truncated; i < TAKEN_conns; i++)
        sum += c[i];
    sum += c[CNT_to_rs] + c[CNT_to_client] + c[CNT_answered] + c[CNT_absorbed] + c[CNT_passed] + c[CNT_handed_off] + c[TAKEN_waiting];
    MUST(sum == c[CNT_rx_packets]);
    MUST(fnat_worker_pool(worker)->free + c[TAKEN_waiting] == fnat_worker_pool(worker)->total);
}

/* Headers that pass the first checks; the rest is the fuzzer's. */
static u32 fit(u8 *frame, u32 port, const u8 *data, u32 len)
{
    struct ip4_header *h = (struct ip4_header *)(frame + ETH_HEADER);
    u8 proto = data[0] & 1 ? PROTO_UDP : PROTO_TCP;
    u32 l4_min = proto == PROTO_TCP ? 20 : 8, l4_len = len < l4_min ? l4_min : len;
    memset(frame, 2, ETH_HEADER);
    put16(frame + 12, be16(ETH_TYPE_IP4));
    *h = (struct ip4_header){.version_ihl = 0x45,
                             .total_len = be16((u16)(20 + l4_len)),
                             .ttl = data[0] & 2 ? 1 : 64,
                             .proto = proto,
                             .frag = data[0] & 4 ? be16(IP4_DF) : 0};
    h->src = port ? ip(10, 0, 0, 9) : ip(198, 51, 100, data[0] >> 4);
    h->dst = port ? ip(10, 0, 0, 1) : ip(192, 0, 2, 1);
    u8 *l4 = (u8 *)(h + 1);
    memset(l4, 0, l4_len);
    memcpy(l4, data, len);
    put16(l4, be16(port ? 8080 + (data[0] >> 3 & 1) : 1024 + data[0] % 7));
    put16(l4 + 2, be16(port ? 1024 + data[0] % 16 : 80));
    if (proto == PROTO_UDP)
        put16(l4 + 4, be16((u16)l4_len));
    else if (l4[12] >> 4 < 5 || (l4[12] >> 4) * 4u > l4_len)
        l4[12] = 5 << 4;
    h->csum = csum_ip4(h, 20);
    return ETH_HEADER + 20 + l4_len;
}

static u32 answer(u8 *frame, u32 port, const u8 *data, u32 len)
{
    u32 size = last_len[port];
    struct ip4_header *h = (struct ip4_header *)(frame + ETH_HEADER);
    if (size < ETH_HEADER + 28)
        return 0;
    memcpy(frame, last[port], size);
    u32 src = h->src;
    h->src = h->dst;
    h->dst = src;
    u8 *l4 = (u8 *)(h + 1);
    u16 sport = get16(l4);
    memcpy(l4, l4 + 2, 2);
    put16(l4 + 2, sport);
    if (h->proto == PROTO_TCP && size >= ETH_HEADER + 40 && len > 1) {
        l4[13] = data[0];
        memcpy(l4 + 8, l4 + 4, 4);
        l4[11] += data[1];
    }
    return size;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    u8 frame[FRAME_SIZE];
    if (!plane)
        start();
    configure(0x7d);
    while (size >= 2) {
        u8 op = data[0], kind = op >> 1 & 7;
        u32 port = op & 1, len = data[1];
        data += 2, size -= 2;
        if (len > size)
            len = (u32)size;
        u32 made = 0;
        if (kind < 4)
            memcpy(frame, data, made = len);
        else if (kind == 4 && len)
            made = fit(frame, port, data, len);
        else if (kind == 5 && len)
            made = answer(frame, port, data, len);
        else if (kind == 6)
            turn(1000000ull << (op >> 4 & 15));
        else if (kind == 7)
            configure((u8)len);
        if (kind < 6 && (made || kind < 4)) {
            (void)fnat_mem_put(queues[port], frame, made);
            if (op & 128)
                turn(1000000);
        }
        if (kind < 6)
            data += len, size -= len;
    }
    turn(1);
    turn(1);
    check();
    for (u32 i = 0; i < 40; i++)
        turn(500000000);
    check();
    u64 c[COUNTERS];
    fnat_counters(plane, 0, c);
    for (u32 i = TAKEN_conns; i < COUNTERS; i++)
        MUST(!c[i]);
    return 0;
}
