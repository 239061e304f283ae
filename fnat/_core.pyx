# cython: language_level=3, boundscheck=False, wraparound=False, binding=False, embedsignature=True
"""The Cython door to the C core. Thin: words in, words out, one check(rc) for all errors; typed in _core.pyi."""

import errno
import ipaddress
import os
import time
from typing import NamedTuple

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

cdef extern from "<arpa/inet.h>" nogil:
    enum: AF_INET
    int inet_pton(int family, const char *text, void *to)

cdef extern from "fnat.h" nogil:
    enum: FNAT_PORTS, FNAT_STATES, FNAT_NAME, FNAT_ANON, FNAT_FRESH
    enum: FNAT_SCHED_RR, FNAT_SCHED_WRR, FNAT_SCHED_LC, FNAT_SCHED_WLC, FNAT_SCHED_SED, FNAT_SCHED_NQ, FNAT_SCHED_SH, FNAT_SCHED_MH
    enum: FNAT_SCHED_CONHASH, FNAT_SCHED_FO, FNAT_SCHED_P2C, FNAT_HASH_SIP, FNAT_HASH_SIP_PORT, FNAT_HASH_QID
    enum: FNAT_NO_RS_DROP, FNAT_NO_RS_RESET, FNAT_SVC_EXPIRE_QUIESCENT, FNAT_SVC_ONE_PACKET, FNAT_SVC_QUIC
    enum: FNAT_MEMBER_DRAINS, FNAT_MEMBER_LEAVES, FNAT_KILL_SILENT, FNAT_KILL_RESET
    enum: FNAT_CLIENT_ADDR_NONE, FNAT_CLIENT_ADDR_TOA, FNAT_CLIENT_ADDR_UOA_OPP, FNAT_CLIENT_ADDR_UOA_IPO
    enum: FNAT_CLIENT_ADDR_PROXY_V1, FNAT_CLIENT_ADDR_PROXY_V2, FNAT_CLIENT_ADDR_INSECURE
    enum: FNAT_ADDR_VIP, FNAT_ADDR_LIP, FNAT_ADDR_SERVED, FNAT_ECHO_ALWAYS, FNAT_ECHO_SERVED, FNAT_ROUTE_UNICAST, FNAT_ROUTE_HOST, FNAT_ROUTE_UNREACHABLE
    enum: FNAT_FLOWS, FNAT_STEER_MASK, FNAT_STEER_RSS, FNAT_STEER_SLOTS, FNAT_STEER_KEY, FNAT_STEER_NOTE
    enum: FNAT_PORT_UP, FNAT_PORT_EXCLUSIVE, FNAT_UNSERVED_DROP, FNAT_UNSERVED_RESET, FNAT_NEIGH_STATIC
    struct fnat_plane:
        pass
    struct fnat_worker:
        pass
    struct io_queue:
        pass
    struct frame_pool:
        pass
    struct fnat_plane_config:
        uint32_t workers, conns, services, members, endpoints, neighbours, frames, snapshot_mib, acl_mib
    struct fnat_plane_info:
        fnat_plane_config config
        uint64_t plane_bytes, worker_bytes, frames_bytes, conn_bytes
        uint32_t huge_page_size, restored
    struct fnat_member_spec:
        uint8_t rip[16]
        uint32_t id
        uint16_t rport, weight
        uint8_t family, role, flags
        uint32_t upper, lower, new_per_s
    struct fnat_service_spec:
        uint8_t vip[16]
        uint32_t id
        uint16_t vport
        uint8_t family, proto, sched, no_rs, flags, client_addr
        uint32_t conn_timeout, half_open, persistent, persistent_plen, max_conns, new_per_s, per_client, n_members, n_lips, slow_start, slots
        uint64_t now_ns
        uint8_t hash_target
        const uint16_t *acl
        uint16_t n_deny, n_allow
    struct fnat_address_spec:
        uint8_t addr[16]
        uint16_t id
        uint8_t family, kind, port
    struct fnat_route_spec:
        uint8_t prefix[16]
        uint8_t gateway[16]
        uint8_t src[16]
        uint32_t mtu, metric
        uint8_t family, plen, port, kind
    struct fnat_port_spec:
        char name[32]
        uint8_t mac[6]
        uint8_t id, flags
        uint16_t mtu
    struct fnat_settings:
        uint32_t timeouts[19]
        uint16_t lport_first, lport_last
        uint8_t unserved, own_sources, echo, announce, fragment_seconds
        uint32_t icmp_rate, echo_rate
        uint64_t hash_key[4]
    struct fnat_steering_spec:
        uint8_t mode, loose, key_len
        uint16_t slots
        uint8_t key[64]
        uint8_t worker[512]
        char note[96]
    struct fnat_neigh_info:
        uint8_t addr[16]
        uint8_t family, port
        uint8_t mac[6]
        uint8_t state
    struct fnat_stats:
        uint64_t conns, in_packets, out_packets, in_bytes, out_bytes
        uint32_t active, inactive
    struct fnat_address_stats:
        uint64_t misses
        uint32_t used, conns
    struct fnat_endpoint_info:
        uint8_t rip[16]
        uint32_t used
        uint16_t lip, rport
        uint8_t proto, family, worker, pad
    struct fnat_conn_info:
        uint8_t cip[16]
        uint8_t vip[16]
        uint8_t lip[16]
        uint8_t rip[16]
        uint64_t packets[2]
        uint64_t bytes[2]
        uint32_t index, service, member, remaining, age
        uint16_t cport, vport, lport, rport
        uint8_t worker, proto, family, state, rs_family
    struct fnat_conn_end:
        uint8_t addr[16]
        uint8_t family, plen
        uint16_t port
    struct fnat_conn_filter:
        int64_t service, member
        int32_t state, proto
        fnat_conn_end client, vip, lip, rs
    struct fnat_bench_result:
        uint64_t packets, ns, generator_ns, conns, opened, verified, mismatched, dropped, floor_ns, open_ns, expire_ns, left
        uint64_t stage_ps[9]
    struct fnat_bench_options:
        uint8_t proto, stages
        uint16_t payload
        uint32_t conns
        double seconds
    struct fnat_step_stats:
        uint64_t count[2][32]
        uint64_t sum_ns[2]
        uint64_t max_ns[2]

    int fnat_plane_create(const char *dir, const fnat_plane_config *config, int flags, fnat_plane **out)
    int fnat_plane_attach(const char *dir, fnat_plane **out)
    void fnat_plane_close(fnat_plane *plane)
    int fnat_plane_measure(const fnat_plane_config *config, fnat_plane_info *out)
    int fnat_endpoints(const fnat_plane *plane, uint32_t worker, uint32_t *cursor, fnat_endpoint_info *out, uint32_t n)
    void fnat_plane_info_get "fnat_plane_info"(const fnat_plane *plane, fnat_plane_info *out)
    int fnat_put_settings(fnat_plane *plane, const fnat_settings *settings)
    int fnat_put_port(fnat_plane *plane, const fnat_port_spec *port)
    int fnat_put_service(fnat_plane *plane, const fnat_service_spec *svc, const fnat_member_spec *members, const uint16_t *lips)
    int fnat_del_service(fnat_plane *plane, uint32_t id)
    int fnat_sched_owners(const fnat_service_spec *svc, const fnat_member_spec *members, uint32_t n, uint32_t *out)
    int fnat_maglev(const uint32_t *offset, const uint32_t *skip, const uint16_t *weight, uint32_t n, uint32_t slots, uint16_t *table)
    int fnat_put_address(fnat_plane *plane, const fnat_address_spec *addr)
    int fnat_del_address(fnat_plane *plane, uint16_t id)
    int fnat_put_addresses(fnat_plane *plane, const fnat_address_spec *addrs, uint32_t n)
    int fnat_put_routes(fnat_plane *plane, const fnat_route_spec *routes, uint32_t n)
    int fnat_route_get(const fnat_plane *plane, uint8_t family, const uint8_t *addr, uint32_t flow, fnat_route_spec *out)
    enum: FNAT_ACL_SETS, FNAT_ACL_NAME, FNAT_ACL_KEY
    struct fnat_acl_stats_fields "fnat_acl_stats":
        uint64_t denied, not_allowed
    struct fnat_acl_bench_fields "fnat_acl_bench":
        uint64_t lookups, hits, ns, floor_ns, alone_ns, area_bytes
    int fnat_put_acl(fnat_plane *plane, const uint16_t *sets, uint32_t n_deny, uint32_t n_allow)
    int fnat_acl_make(fnat_plane *plane, const char *name)
    int fnat_acl_drop(fnat_plane *plane, uint32_t id)
    int fnat_acl_edit(fnat_plane *plane, uint32_t id, const uint8_t *keys, const uint8_t *answers, uint32_t n, uint32_t *done)
    int fnat_acl_info(const fnat_plane *plane, uint32_t id, char *name, uint32_t *counts)
    int fnat_acl_read(const fnat_plane *plane, uint32_t id, uint8_t *keys, uint8_t *answers, uint32_t n)
    int fnat_acl_test(const fnat_plane *plane, uint32_t id, uint8_t family, const uint8_t *addr)
    int64_t fnat_acl_free(fnat_plane *plane)
    uint32_t fnat_acl_recheck(fnat_plane *plane)
    uint32_t fnat_acl_rechecked(const fnat_plane *plane)
    int fnat_acl_stats(const fnat_plane *plane, uint32_t service, fnat_acl_stats_fields *out)
    int fnat_acl_zero(fnat_plane *plane, uint32_t service)
    int fnat_acl_bench(const fnat_plane *plane, uint32_t id, uint8_t family, const uint8_t *like, uint8_t plen, uint64_t lookups,
                       fnat_acl_bench_fields *out)
    int64_t fnat_publish(fnat_plane *plane)
    int64_t fnat_adopted(const fnat_plane *plane)
    int fnat_put_steering(fnat_plane *plane, uint8_t port, uint8_t flow, const fnat_steering_spec *spec)
    int fnat_get_steering(const fnat_plane *plane, uint8_t port, uint8_t flow, fnat_steering_spec *out)
    uint32_t fnat_toeplitz(const uint8_t *key, const uint8_t *input, uint32_t len)
    int fnat_steering_owner(const fnat_steering_spec *spec, uint8_t flow, uint32_t workers, const uint8_t *rip, const uint8_t *lip,
                            uint16_t rport, uint16_t lport)
    int fnat_steering_shares(const fnat_steering_spec *spec, uint8_t flow, uint32_t workers, uint16_t first, uint16_t last,
                             uint32_t *fewest, uint32_t *most)
    int fnat_neigh_set(fnat_plane *plane, uint8_t port, uint8_t family, const uint8_t *addr, const uint8_t *mac, uint8_t state)
    int fnat_neigh_list(const fnat_plane *plane, uint32_t *cursor, fnat_neigh_info *out, uint32_t n)
    int fnat_service_stats(const fnat_plane *plane, uint32_t id, fnat_stats *out)
    int fnat_member_stats(const fnat_plane *plane, uint32_t id, fnat_stats *out)
    int fnat_member_overloaded(const fnat_plane *plane, uint32_t id)
    int fnat_address_stats_get "fnat_address_stats"(const fnat_plane *plane, uint16_t id, fnat_address_stats *out)
    uint32_t fnat_counter_count()
    const char *fnat_counter_name(uint32_t i)
    const char *fnat_counter_help(uint32_t i)
    char fnat_counter_kind(uint32_t i)
    int fnat_counters(const fnat_plane *plane, uint32_t worker, uint64_t *out)
    int fnat_worker_cpu(const fnat_plane *plane, uint32_t worker)
    int fnat_worker_steps(const fnat_plane *plane, uint32_t worker, fnat_step_stats *out)
    int fnat_conns(const fnat_plane *plane, uint32_t worker, uint32_t *cursor, const fnat_conn_filter *filter, uint64_t now_ns,
                   fnat_conn_info *out, uint32_t n)
    int64_t fnat_conn_count(const fnat_plane *plane, uint32_t worker, const fnat_conn_filter *filter)
    int64_t fnat_conn_kill(fnat_plane *plane, const fnat_conn_filter *filter, int how)
    int64_t fnat_conn_killed(const fnat_plane *plane, uint64_t *ended)
    void fnat_persistent(const fnat_plane *plane, uint64_t now_ns, uint32_t *counts, uint32_t members)
    const char *fnat_state_name(uint32_t state)
    fnat_worker *fnat_worker_get(fnat_plane *plane, uint32_t index)
    frame_pool *fnat_worker_pool(fnat_worker *worker)
    int fnat_worker_attach(fnat_worker *worker, uint8_t port, int punt, io_queue *queue)
    void fnat_worker_detach(fnat_worker *worker)
    int fnat_worker_step(fnat_worker *worker, uint64_t now_ns)
    int fnat_worker_run(fnat_worker *worker, volatile int *stop, uint32_t spin_us)
    void fnat_worker_quiesce(fnat_worker *worker)
    int fnat_mem_open(frame_pool *pool, uint32_t ring, io_queue **out)
    int fnat_mem_put(io_queue *q, const uint8_t *data, uint32_t len)
    int fnat_mem_take(io_queue *q, uint8_t *out, uint32_t room)
    int fnat_tap_open(frame_pool *pool, const char *name, const uint8_t *mac, uint32_t mtu, io_queue **out)
    int fnat_pcap_open(frame_pool *pool, uint32_t batch, io_queue **out)
    int fnat_pcap_add(io_queue *q, const uint8_t *data, uint32_t len)
    void fnat_pcap_counts(const io_queue *q, uint64_t *received, uint64_t *sent)
    uint64_t fnat_pcap_measure(io_queue *q, uint64_t packets)
    int fnat_bench_nat(fnat_worker *worker, const fnat_bench_options *options, fnat_bench_result *out)
    int fnat_bench_cps(fnat_worker *worker, double seconds, fnat_bench_result *out)
    int fnat_bench_picks(fnat_worker *worker, uint32_t service, uint64_t n, uint32_t held, uint64_t seed, uint64_t *picked,
                         uint64_t *holds, uint64_t *ns)

    enum: FNAT_TRAFFIC_SLOTS, FNAT_TRAFFIC_SLOT_NS
    struct fnat_traffic:
        pass
    struct fnat_traffic_spec:
        uint32_t cip, vip, from_first, from_last, to_first, to_last, flows, services, window
        uint16_t vport
        uint8_t client_mac[6]
        uint8_t gateway_mac[6]
    struct fnat_traffic_result:
        uint64_t ns, sent, unsent, returned, in_time, duplicates, wrong, arrived, checked, reflected
        uint64_t latency[8192]
    int fnat_traffic_open(frame_pool *pool, io_queue *client, io_queue *server, const fnat_traffic_spec *spec, fnat_traffic **out)
    void fnat_traffic_close(fnat_traffic *traffic)
    uint32_t fnat_traffic_step(fnat_traffic *traffic, uint64_t now_ns)
    int fnat_traffic_open_flows(fnat_traffic *traffic, double seconds, volatile int *stop)
    void fnat_traffic_run(fnat_traffic *traffic, double seconds, double rate, volatile int *stop)
    void fnat_traffic_result_get(const fnat_traffic *traffic, fnat_traffic_result *out)
    uint32_t fnat_relay_step(io_queue *a, io_queue *b)
    void fnat_relay_run(io_queue *a, io_queue *b, volatile int *stop, uint32_t spin_us)

cdef extern from "io.h" nogil:
    struct frame_pool_fields "frame_pool":
        uint32_t free, total
    void io_close(io_queue *q)


cdef int check(int rc, what) except -1:
    """The one converter of -errno into OSError."""
    if rc < 0:
        raise OSError(-rc, f"{what}: {os.strerror(-rc)}")
    return rc


cdef uint8_t put_addr(uint8_t *to, text) except 0:
    """Writes 16 bytes; returns the family."""
    cdef bytes raw
    memset(to, 0, 16)
    if isinstance(text, str) and len(text) < 16:
        raw = text.encode()
        if inet_pton(AF_INET, <const char *>raw, to) == 1:
            return 4
    address = ipaddress.ip_address(text)
    cdef bytes packed = address.packed
    memcpy(to, <const char *>packed, len(packed))
    return address.version


cdef str get_addr(const uint8_t *addr, uint8_t family):
    if family == 4:
        return f"{addr[0]}.{addr[1]}.{addr[2]}.{addr[3]}"
    return str(ipaddress.IPv6Address(bytes(addr[:16])))


cdef int put_mac(uint8_t *to, str text) except -1:
    cdef bytes raw = bytes.fromhex(text.replace(":", ""))
    if len(raw) != 6:
        raise ValueError(f"MAC address {text!r}: write it as aa:bb:cc:dd:ee:ff")
    memcpy(to, <const char *>raw, 6)
    return 0


cdef int put_end(fnat_conn_end *end, address, port) except -1:
    """address: None (any), "ADDR" or "ADDR/PLEN"."""
    end.port = port
    if address is not None:
        host, slash, plen = address.partition("/")
        end.family = put_addr(end.addr, host)
        end.plen = int(plen) if slash else 32 if end.family == 4 else 128
    return 0


FILTER = {"service": -1, "member": -1, "state": -1, "proto": -1, "cip": None, "cport": 0, "vip": None, "vport": 0, "lip": None, "lport": 0,
          "rip": None, "rport": 0}


cdef int put_filter(fnat_conn_filter *f, dict given) except -1:
    unknown = given.keys() - FILTER.keys()
    if unknown:
        raise TypeError(f"connections have no {', '.join(sorted(unknown))}")
    memset(f, 0, sizeof(f[0]))
    w = {**FILTER, **given}
    f.service, f.member, f.state, f.proto = w["service"], w["member"], w["state"], w["proto"]
    put_end(&f.client, w["cip"], w["cport"])
    put_end(&f.vip, w["vip"], w["vport"])
    put_end(&f.lip, w["lip"], w["lport"])
    put_end(&f.rs, w["rip"], w["rport"])
    return 0


class Stats(NamedTuple):
    conns: int
    in_packets: int
    out_packets: int
    in_bytes: int
    out_bytes: int
    active: int
    inactive: int


class AddressStats(NamedTuple):
    misses: int
    used: int
    conns: int


class Rule(NamedTuple):
    """How the answers of one flow that arrive on a NIC port find their worker: by the NIC's hash with this key and table of
    workers, or, with an empty key, by port mask. loose: a flow may come by another queue at any time."""

    key: bytes = b""
    table: tuple = ()
    note: str = ""
    loose: bool = False


class Neigh(NamedTuple):
    addr: str
    port: int
    mac: str
    state: str
    static: bool


class Hop(NamedTuple):
    port: int
    gateway: str
    src: str
    mtu: int
    kind: str


class Conn(NamedTuple):
    worker: int
    id: int
    proto: int
    state: str
    cip: str
    cport: int
    vip: str
    vport: int
    lip: str
    lport: int
    rip: str
    rport: int
    remaining: int
    age: int
    service: int
    member: int
    in_packets: int
    out_packets: int
    in_bytes: int
    out_bytes: int


cdef str kind_name(char kind):
    return "counter" if kind == c"c" else "drop" if kind == c"d" else "taken"


COUNTERS = tuple(
    (fnat_counter_name(i).decode(), kind_name(fnat_counter_kind(i)), fnat_counter_help(i).decode())
    for i in range(fnat_counter_count())
)
STATES = tuple(fnat_state_name(i).decode() for i in range(FNAT_STATES))
MAX_PORTS = FNAT_PORTS
FLOWS = ("tcp4", "udp4", "tcp6", "udp6")
STEER_SLOTS = FNAT_STEER_SLOTS
STEER_KEY = FNAT_STEER_KEY
NEIGH_STATES = ("NONE", "SEND", "REACHABLE", "PROBE", "DELAY")
UNSPECIFIED = ("0.0.0.0", "::")
ROUTE_KINDS = {"unicast": FNAT_ROUTE_UNICAST, "host": FNAT_ROUTE_HOST, "unreachable": FNAT_ROUTE_UNREACHABLE}
ADDR_KINDS = {"vip": FNAT_ADDR_VIP, "lip": FNAT_ADDR_LIP, "vip+lip": FNAT_ADDR_VIP | FNAT_ADDR_LIP}
ADDR_KINDS |= {kind + "+served": bits | FNAT_ADDR_SERVED for kind, bits in ADDR_KINDS.items()}
SCHEDULERS = {
    "rr": FNAT_SCHED_RR,
    "wrr": FNAT_SCHED_WRR,
    "lc": FNAT_SCHED_LC,
    "wlc": FNAT_SCHED_WLC,
    "sed": FNAT_SCHED_SED,
    "nq": FNAT_SCHED_NQ,
    "sh": FNAT_SCHED_SH,
    "mh": FNAT_SCHED_MH,
    "conhash": FNAT_SCHED_CONHASH,
    "fo": FNAT_SCHED_FO,
    "p2c": FNAT_SCHED_P2C,
}
ROLES = ("active", "backup", "sorry")
HASH_TARGETS = {"sip": FNAT_HASH_SIP, "sip-port": FNAT_HASH_SIP_PORT, "qid": FNAT_HASH_QID}
CLIENT_ADDRS = {
    "none": FNAT_CLIENT_ADDR_NONE,
    "toa": FNAT_CLIENT_ADDR_TOA,
    "uoa-opp": FNAT_CLIENT_ADDR_UOA_OPP,
    "uoa-ipo": FNAT_CLIENT_ADDR_UOA_IPO,
    "proxy-v1": FNAT_CLIENT_ADDR_PROXY_V1,
    "proxy-v2": FNAT_CLIENT_ADDR_PROXY_V2,
    "proxy-v1-insecure": FNAT_CLIENT_ADDR_PROXY_V1 | FNAT_CLIENT_ADDR_INSECURE,
    "proxy-v2-insecure": FNAT_CLIENT_ADDR_PROXY_V2 | FNAT_CLIENT_ADDR_INSECURE,
}


cdef int put_rule(fnat_steering_spec *to, rule) except -1:
    cdef bytes key = rule.key
    cdef bytes table = bytes(rule.table)
    cdef bytes note = rule.note.encode()[:FNAT_STEER_NOTE - 1]
    memset(to, 0, sizeof(to[0]))
    if len(key) > FNAT_STEER_KEY or len(table) > FNAT_STEER_SLOTS:
        raise ValueError(f"a key of {len(key)} bytes, a table of {len(table)}: at most {FNAT_STEER_KEY} and {FNAT_STEER_SLOTS}")
    to.mode = FNAT_STEER_RSS if key else FNAT_STEER_MASK
    to.loose = rule.loose
    to.key_len, to.slots = len(key), len(table)
    memcpy(to.key, <const char *>key, len(key))
    memcpy(to.worker, <const char *>table, len(table))
    memcpy(to.note, <const char *>note, len(note))
    return 0


def toeplitz(bytes key not None, bytes data not None):
    """The hash that NICs do (RSS); the key is at least 4 bytes longer than the data."""
    if len(key) < len(data) + 4:
        raise ValueError(f"a key of {len(key)} bytes is too short for {len(data)} bytes")
    return fnat_toeplitz(<const uint8_t *><const char *>key, <const uint8_t *><const char *>data, len(data))


def steering_owner(rule, flow, workers, rip, lip, rport, lport):
    """The worker that an answer from rip:rport to lip:lport belongs to."""
    cdef fnat_steering_spec spec
    cdef uint8_t rs[16]
    cdef uint8_t local[16]
    put_rule(&spec, rule)
    put_addr(rs, rip)
    put_addr(local, lip)
    return check(fnat_steering_owner(&spec, FLOWS.index(flow), workers, rs, local, rport, lport), f"steering of {flow} over {workers} workers")


def steering_shares(rule, flow, workers, lports=(1024, 65535)):
    """The fewest and the most of these local ports that one worker owns towards any RS."""
    cdef fnat_steering_spec spec
    cdef uint32_t fewest = 0
    cdef uint32_t most = 0
    put_rule(&spec, rule)
    check(fnat_steering_shares(&spec, FLOWS.index(flow), workers, lports[0], lports[1], &fewest, &most),
          f"steering of {flow} over {workers} workers")
    return fewest, most


def sched_owners(scheduler, members, count, hash_slots=65537):
    """Whose each of `count` hashes spread evenly over all would be: places in members, (rip, rport, weight). With hash_slots for count it
    is the table of mh."""
    cdef fnat_service_spec s
    memset(&s, 0, sizeof(s))
    s.sched, s.slots, s.n_members, s.proto, s.family = SCHEDULERS[scheduler], hash_slots, len(members), 6, 4
    cdef fnat_member_spec *m = <fnat_member_spec *>calloc(len(members) + 1, sizeof(fnat_member_spec))
    cdef uint32_t *out = <uint32_t *>calloc(count + 1, sizeof(uint32_t))
    try:
        if m == NULL or out == NULL:
            raise MemoryError
        for i, (rip, rport, weight) in enumerate(members):
            m[i].family = put_addr(m[i].rip, rip)
            m[i].rport, m[i].weight = rport, weight
        check(fnat_sched_owners(&s, m, count, out), f"scheduler {scheduler} with {len(members)} servers")
        return [out[i] for i in range(count)]
    finally:
        free(m)
        free(out)


def maglev(preferences, slots):
    """Maglev's table of members given as (offset, skip, weight)."""
    cdef uint32_t n = len(preferences)
    cdef uint32_t *p = <uint32_t *>calloc(2 * n + 1, sizeof(uint32_t))
    cdef uint16_t *weights = <uint16_t *>calloc(n + 1, sizeof(uint16_t))
    cdef uint16_t *table = <uint16_t *>calloc(slots + 1, sizeof(uint16_t))
    try:
        if p == NULL or weights == NULL or table == NULL:
            raise MemoryError
        for i, (offset, skip, weight) in enumerate(preferences):
            p[i], p[n + i], weights[i] = offset, skip, weight
        check(fnat_maglev(p, p + n, weights, n, slots, table), f"a table of {slots} slots")
        return [table[i] for i in range(slots)]
    finally:
        free(p)
        free(weights)
        free(table)


def monotonic_ns():
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)


cdef fnat_plane_config make_config(workers, conns, services, members, endpoints, neighbours, frames, snapshot_mib, acl_mib):
    cdef fnat_plane_config config
    config.workers, config.conns, config.services, config.members = workers, conns, services, members
    config.endpoints, config.neighbours, config.frames, config.snapshot_mib = endpoints, neighbours, frames, snapshot_mib
    config.acl_mib = acl_mib
    return config


cdef dict info_dict(const fnat_plane_info *info):
    return {**info.config, "plane_bytes": info.plane_bytes, "worker_bytes": info.worker_bytes, "frames_bytes": info.frames_bytes,
            "conn_bytes": info.conn_bytes, "huge_page_size": info.huge_page_size, "restored": info.restored}


cdef class Plane:
    cdef fnat_plane *p

    def __dealloc__(self):
        self.close()

    cdef fnat_plane *handle(self) except NULL:
        if self.p == NULL:
            raise ValueError("the plane is closed")
        return self.p

    @staticmethod
    def create(directory, *, workers=1, conns=65536, services=1024, members=8192, endpoints=8192, neighbours=4096, frames=4096,
               snapshot_mib=16, acl_mib=0, fresh=False):
        cdef fnat_plane_config config = make_config(workers, conns, services, members, endpoints, neighbours, frames, snapshot_mib, acl_mib)
        cdef int flags = (FNAT_ANON if directory is None else 0) | (FNAT_FRESH if fresh else 0)
        cdef bytes path = b"" if directory is None else os.fsencode(directory)
        cdef Plane plane = Plane.__new__(Plane)
        cdef const char *dir_ = NULL if directory is None else <const char *>path
        check(fnat_plane_create(dir_, &config, flags, &plane.p), f"create the data plane's memory in {directory or 'anonymous memory'}")
        return plane

    @staticmethod
    def measure(*, workers, conns, services, members, endpoints, neighbours, frames, snapshot_mib, acl_mib=0):
        cdef fnat_plane_config config = make_config(workers, conns, services, members, endpoints, neighbours, frames, snapshot_mib, acl_mib)
        cdef fnat_plane_info info
        check(fnat_plane_measure(&config, &info), f"a plane of {workers} workers with {conns} connections each")
        return info_dict(&info)

    @staticmethod
    def attach(directory):
        cdef Plane plane = Plane.__new__(Plane)
        cdef bytes path = os.fsencode(directory)
        check(fnat_plane_attach(<const char *>path, &plane.p), f"attach to the data plane in {directory}")
        return plane

    def close(self):
        if self.p != NULL:
            fnat_plane_close(self.p)
            self.p = NULL

    def info(self):
        cdef fnat_plane_info info
        fnat_plane_info_get(self.handle(), &info)
        return info_dict(&info)

    def put_settings(self, timeouts, unserved_reset, lports=(1024, 65535), *, icmp_rate=1000, echo_rate=10000, echo_served=False,
                     announce=False, own_sources=False, hash_key=b""):
        cdef fnat_settings s
        memset(&s, 0, sizeof(s))
        cdef bytes key = hash_key
        if len(key) not in (0, sizeof(s.hash_key)):
            raise ValueError(f"a hash key of {len(key)} bytes: it has {sizeof(s.hash_key)}")
        memcpy(s.hash_key, <const char *>key, len(key))
        s.own_sources = own_sources
        defaults = (2, 7440, 10, 10, 600, 7, 3, 900, 30, 120, 30, 10, 300, 300, 2, 900, 60, 60, 3)
        for i, name in enumerate(STATES):
            s.timeouts[i] = timeouts.get(name, defaults[i])
        s.fragment_seconds = timeouts.get("FRAGMENTS", 2)
        unknown = set(timeouts) - set(STATES) - {"FRAGMENTS"}
        if unknown:
            raise ValueError(f"unknown connection states {sorted(unknown)}; known: {', '.join(STATES)}")
        s.lport_first, s.lport_last = lports
        s.unserved = FNAT_UNSERVED_RESET if unserved_reset else FNAT_UNSERVED_DROP
        s.icmp_rate, s.echo_rate, s.announce = icmp_rate, echo_rate, bool(announce)
        s.echo = FNAT_ECHO_SERVED if echo_served else FNAT_ECHO_ALWAYS
        check(fnat_put_settings(self.handle(), &s), "timeouts (1..31535999 s, of fragments 1..60 s), local ports (1024..65535) and rates (0..10000000)")

    def put_port(self, id, name, mac, mtu, *, up=True, exclusive=False):
        cdef fnat_port_spec spec
        memset(&spec, 0, sizeof(spec))
        cdef bytes raw = name.encode()[:31]
        memcpy(spec.name, <const char *>raw, len(raw))
        put_mac(spec.mac, mac)
        spec.id, spec.mtu = id, mtu
        spec.flags = (FNAT_PORT_UP if up else 0) | (FNAT_PORT_EXCLUSIVE if exclusive else 0)
        check(fnat_put_port(self.handle(), &spec), f"port {name} (id {id}, mtu {mtu})")

    def put_service(self, id, vip, vport, proto, *, scheduler="rr", no_rs_reset=False, expire_quiescent=False, one_packet=False, quic=False, conn_timeout=0,
                    half_open=0, persistent=0, persistent_plen=None, max_conns=0, new_per_s=0, per_client=0, client_addr="none",
                    hash_target="sip", hash_slots=65537, slow_start=0, now_ns=None, members=(), limits=None, draining={}, lips=(),
                    deny=(), allow=()):
        cdef fnat_service_spec s
        cdef fnat_member_spec *m = NULL
        cdef uint16_t *l = NULL
        memset(&s, 0, sizeof(s))
        s.family = put_addr(s.vip, vip)
        s.id, s.vport, s.proto, s.sched = id, vport, proto, SCHEDULERS[scheduler]
        s.no_rs = FNAT_NO_RS_RESET if no_rs_reset else FNAT_NO_RS_DROP
        s.flags = (FNAT_SVC_EXPIRE_QUIESCENT if expire_quiescent else 0) | (FNAT_SVC_ONE_PACKET if one_packet else 0)
        s.flags |= FNAT_SVC_QUIC if quic else 0
        s.client_addr = CLIENT_ADDRS[client_addr]
        s.persistent = persistent
        s.persistent_plen = (32 if s.family == 4 else 128) if persistent_plen is None else persistent_plen
        s.max_conns, s.new_per_s, s.per_client = max_conns, new_per_s, per_client
        s.conn_timeout, s.half_open, s.n_members, s.n_lips = conn_timeout, half_open, len(members), len(lips)
        s.hash_target, s.slots, s.slow_start = HASH_TARGETS[hash_target], hash_slots, slow_start
        s.now_ns = monotonic_ns() if now_ns is None else now_ns
        m = <fnat_member_spec *>calloc(len(members) + 1, sizeof(fnat_member_spec))
        l = <uint16_t *>calloc(len(lips) + len(deny) + len(allow) + 1, sizeof(uint16_t))
        try:
            if m == NULL or l == NULL:
                raise MemoryError
            for i, (member, rip, rport, weight) in enumerate(members):
                m[i].family = put_addr(m[i].rip, rip)
                m[i].id, m[i].rport, m[i].weight = member, rport, weight
                if limits and member in limits:
                    role, m[i].upper, m[i].lower, m[i].new_per_s = limits[member]
                    m[i].role = ROLES.index(role)
                if member in draining:
                    m[i].flags = FNAT_MEMBER_DRAINS if draining[member] else FNAT_MEMBER_DRAINS | FNAT_MEMBER_LEAVES
            for i, lip in enumerate(lips):
                l[i] = lip
            for i, acl in enumerate((*deny, *allow)):
                l[len(lips) + i] = acl
            s.acl, s.n_deny, s.n_allow = l + len(lips), len(deny), len(allow)
            check(fnat_put_service(self.handle(), &s, m, l), f"service {vip}:{vport}, scheduler {scheduler}, client address {client_addr}")
        finally:
            free(m)
            free(l)

    def del_service(self, id):
        check(fnat_del_service(self.handle(), id), f"service id {id}")

    def put_acl(self, deny, allow):
        cdef uint16_t sets[256]
        if len(deny) + len(allow) > 128:
            raise ValueError("a list names at most 64 sets")
        for i, acl in enumerate((*deny, *allow)):
            sets[i] = acl
        check(fnat_put_acl(self.handle(), sets, len(deny), len(allow)), "general lists")

    def acl_make(self, name):
        cdef bytes raw = name.encode()
        return check(fnat_acl_make(self.handle(), <const char *>raw), f"address set {name}")

    def acl_drop(self, id):
        check(fnat_acl_drop(self.handle(), id), f"address set {id}")

    def acl_edit(self, id, keys, answers):
        cdef const uint8_t[::1] k = keys
        cdef const uint8_t[::1] a = answers
        cdef uint32_t done = 0, n = len(a), number = id
        cdef int rc = 0
        if len(k) != 18 * n:
            raise ValueError("a key is 18 bytes")
        if n:
            self.handle()
            with nogil:
                rc = fnat_acl_edit(self.p, number, &k[0], &a[0], n, &done)
        check(rc, f"entry {done} for address set {id}")

    def acl_sets(self):
        cdef char name[40]
        cdef uint32_t counts[2]
        found = []
        for id in range(1, FNAT_ACL_SETS):
            if fnat_acl_info(self.handle(), id, name, counts) == 0:
                found.append((id, (<bytes>name).decode(), counts[0], counts[1]))
        return found

    def acl_read(self, id):
        cdef char name[40]
        cdef uint32_t counts[2]
        check(fnat_acl_info(self.handle(), id, name, counts), f"address set {id}")
        cdef uint32_t n = counts[0] + counts[1]
        cdef bytearray keys = bytearray(18 * n + 1), answers = bytearray(n + 1)
        cdef uint8_t[::1] k = keys
        cdef uint8_t[::1] a = answers
        n = check(fnat_acl_read(self.p, id, &k[0], &a[0], n), f"address set {id}")
        return bytes(keys[:18 * n]), bytes(answers[:n])

    def acl_test(self, id, addr):
        cdef uint8_t raw[16]
        cdef uint8_t family = put_addr(raw, addr)
        return bool(check(fnat_acl_test(self.handle(), id, family, raw), f"address set {id}"))

    def acl_free(self):
        return fnat_acl_free(self.handle())

    def acl_recheck(self):
        return fnat_acl_recheck(self.handle())

    def acl_rechecked(self):
        return fnat_acl_rechecked(self.handle())

    def acl_stats(self, service):
        cdef fnat_acl_stats_fields s
        check(fnat_acl_stats(self.handle(), service, &s), f"service id {service}")
        return s.denied, s.not_allowed

    def acl_zero(self, service):
        check(fnat_acl_zero(self.handle(), service), f"service id {service}")

    def acl_bench(self, id, like, lookups):
        cdef uint8_t raw[16]
        cdef fnat_acl_bench_fields out
        address, _, plen = like.partition("/")
        cdef uint8_t family = put_addr(raw, address)
        check(fnat_acl_bench(self.handle(), id, family, raw, int(plen), lookups, &out), f"address set {id}")
        return out

    def put_address(self, id, addr, kind, port):
        cdef fnat_address_spec a
        memset(&a, 0, sizeof(a))
        a.family = put_addr(a.addr, addr)
        a.id, a.kind, a.port = id, ADDR_KINDS[kind], port
        check(fnat_put_address(self.handle(), &a), f"address {addr}")

    def del_address(self, id):
        check(fnat_del_address(self.handle(), id), f"address id {id}")

    def put_addresses(self, addresses):
        cdef fnat_address_spec *a = <fnat_address_spec *>calloc(len(addresses) + 1, sizeof(fnat_address_spec))
        if a == NULL:
            raise MemoryError
        try:
            for i, (id, addr, kind, port) in enumerate(addresses):
                a[i].family = put_addr(a[i].addr, addr)
                a[i].id, a[i].kind, a[i].port = id, ADDR_KINDS[kind], port
            check(fnat_put_addresses(self.handle(), a, len(addresses)), "addresses")
        finally:
            free(a)

    def put_routes(self, routes):
        cdef fnat_route_spec *r = <fnat_route_spec *>calloc(len(routes) + 1, sizeof(fnat_route_spec))
        if r == NULL:
            raise MemoryError
        try:
            for i, (prefix, gateway, src, port, mtu, metric, kind) in enumerate(routes):
                network, _, plen = prefix.partition("/")
                r[i].family = put_addr(r[i].prefix, network)
                if gateway and put_addr(r[i].gateway, gateway) != r[i].family:
                    raise ValueError(f"route {prefix}: gateway {gateway} is of the other family")
                if src and put_addr(r[i].src, src) != r[i].family:
                    raise ValueError(f"route {prefix}: source {src} is of the other family")
                r[i].plen = int(plen) if plen else 32 if r[i].family == 4 else 128
                r[i].port, r[i].mtu, r[i].metric, r[i].kind = port, mtu, metric, ROUTE_KINDS[kind]
            check(fnat_put_routes(self.handle(), r, len(routes)), "routes")
        finally:
            free(r)

    def route_get(self, addr, flow=0):
        cdef uint8_t raw[16]
        cdef fnat_route_spec r
        cdef uint8_t family = put_addr(raw, addr)
        cdef int rc = fnat_route_get(self.handle(), family, raw, flow, &r)
        if rc == -errno.ENETUNREACH:
            return None
        check(rc, f"route to {addr}")
        gateway, src = get_addr(r.gateway, family), get_addr(r.src, family)
        kind = next(name for name, number in ROUTE_KINDS.items() if number == r.kind)
        return Hop(r.port, "" if gateway in UNSPECIFIED else gateway, "" if src in UNSPECIFIED else src, r.mtu, kind)

    def publish(self):
        cdef int64_t number = fnat_publish(self.handle())
        if number < 0:
            check(<int>number, "publish the snapshot")
        return number

    def adopted(self):
        return fnat_adopted(self.handle())

    def put_steering(self, port, flow, rule):
        cdef fnat_steering_spec spec
        put_rule(&spec, rule)
        check(fnat_put_steering(self.handle(), port, FLOWS.index(flow), &spec), f"steering of {flow} on port {port}")

    def steering(self, port, flow):
        cdef fnat_steering_spec spec
        check(fnat_get_steering(self.handle(), port, FLOWS.index(flow), &spec), f"steering of {flow} on port {port}")
        return Rule(bytes(spec.key[:spec.key_len]), tuple(spec.worker[i] for i in range(spec.slots)), spec.note.decode(), bool(spec.loose))

    def neigh_set(self, port, addr, mac, *, static=False):
        cdef uint8_t raw[16]
        cdef uint8_t hardware[6]
        cdef uint8_t family = put_addr(raw, addr)
        if mac:
            put_mac(hardware, mac)
        check(fnat_neigh_set(self.handle(), port, family, raw, hardware if mac else NULL, FNAT_NEIGH_STATIC if static else 0),
              f"neighbour {addr}")

    def neighbours(self):
        cdef fnat_neigh_info page[64]
        cdef uint32_t cursor = 0
        cdef int n
        found = []
        while True:
            n = fnat_neigh_list(self.handle(), &cursor, page, 64)
            if n == 0:
                return found
            for i in range(n):
                state = page[i].state & 7
                mac = bytes(page[i].mac[:6]).hex(":") if state >= 2 else ""
                found.append(Neigh(get_addr(page[i].addr, page[i].family), page[i].port, mac, NEIGH_STATES[state],
                                   bool(page[i].state & FNAT_NEIGH_STATIC)))

    def service_stats(self, id):
        cdef fnat_stats s
        check(fnat_service_stats(self.handle(), id, &s), f"service id {id}")
        return Stats(s.conns, s.in_packets, s.out_packets, s.in_bytes, s.out_bytes, s.active, s.inactive)

    def member_stats(self, id):
        cdef fnat_stats s
        check(fnat_member_stats(self.handle(), id, &s), f"member id {id}")
        return Stats(s.conns, s.in_packets, s.out_packets, s.in_bytes, s.out_bytes, s.active, s.inactive)

    def member_overloaded(self, id):
        return bool(check(fnat_member_overloaded(self.handle(), id), f"member id {id}"))

    def address_stats(self, id):
        cdef fnat_address_stats s
        fnat_address_stats_get(self.handle(), id, &s)
        return AddressStats(s.misses, s.used, s.conns)

    def service_table(self, uint32_t count):
        return self._table(count, True)

    def member_table(self, uint32_t count):
        return self._table(count, False)

    cdef _table(self, uint32_t count, bint services):
        import numpy
        cdef const fnat_plane *p = self.handle()
        cdef fnat_stats s
        cdef uint32_t i
        cdef int rc = 0
        rows = numpy.empty((count, 7), numpy.uint64)
        cdef uint64_t[:, ::1] out = rows
        with nogil:
            for i in range(count):
                rc = fnat_service_stats(p, i, &s) if services else fnat_member_stats(p, i, &s)
                if rc:
                    break
                out[i, 0], out[i, 1], out[i, 2], out[i, 3], out[i, 4] = s.conns, s.in_packets, s.out_packets, s.in_bytes, s.out_bytes
                out[i, 5], out[i, 6] = s.active, s.inactive
        check(rc, f"ids below {count}")
        return rows

    def endpoints(self):
        import numpy
        cdef const fnat_plane *p = self.handle()
        cdef fnat_plane_info info
        cdef uint32_t cursor, worker
        cdef int n
        fnat_plane_info_get(self.p, &info)
        kinds = [("rip", "u1", 16), ("used", "u4"), ("lip", "u2"), ("rport", "u2"), ("proto", "u1"), ("family", "u1"), ("worker", "u1"),
                 ("pad", "u1")]
        page = numpy.empty(65536, kinds)
        cdef uint8_t[::1] raw = page.view(numpy.uint8)
        assert page.itemsize == sizeof(fnat_endpoint_info)
        pages = [page[:0]]
        for worker in range(info.config.workers):
            cursor = 0
            while cursor != 0xffffffff:
                with nogil:
                    n = fnat_endpoints(p, worker, &cursor, <fnat_endpoint_info *>&raw[0], 65536)
                pages.append(page[:check(n, f"worker {worker}")].copy())
        return numpy.concatenate(pages)

    def counters(self, worker=None):
        cdef uint64_t values[128]
        cdef fnat_plane_info info
        fnat_plane_info_get(self.handle(), &info)
        totals = [0] * len(COUNTERS)
        for w in range(info.config.workers) if worker is None else [worker]:
            check(fnat_counters(self.p, w, values), f"worker {w}")
            for i in range(len(totals)):
                totals[i] += values[i]
        return {COUNTERS[i][0]: totals[i] for i in range(len(totals))}

    def step_stats(self, worker):
        cdef fnat_step_stats s
        check(fnat_worker_steps(self.handle(), worker, &s), f"worker {worker}")
        return {"count": [[s.count[k][i] for i in range(32)] for k in range(2)], "sum_ns": [s.sum_ns[k] for k in range(2)],
                "max_ns": [s.max_ns[k] for k in range(2)]}

    def worker_cpu(self, worker):
        cdef int cpu = fnat_worker_cpu(self.handle(), worker)
        return None if cpu < 0 else cpu

    def conn_count(self, uint32_t worker, **filter):
        cdef fnat_conn_filter f
        cdef const fnat_plane *p = self.handle()
        cdef int64_t n
        put_filter(&f, filter)
        with nogil:
            n = fnat_conn_count(p, worker, &f)
        if n < 0:
            check(<int>n, f"worker {worker}")
        return n

    def conn_kill(self, *, reset, **filter):
        cdef fnat_conn_filter f
        put_filter(&f, filter)
        cdef int64_t number = fnat_conn_kill(self.handle(), &f, FNAT_KILL_RESET if reset else FNAT_KILL_SILENT)
        if number < 0:
            check(<int>number, "end connections")
        return number

    def conn_killed(self):
        cdef uint64_t ended = 0
        cdef int64_t number = fnat_conn_killed(self.handle(), &ended)
        return number, ended

    def persistent(self, *, now_ns=None):
        import numpy
        cdef fnat_plane_info info
        fnat_plane_info_get(self.handle(), &info)
        counts = numpy.zeros(info.config.members, numpy.uint32)
        cdef uint32_t[::1] out = counts
        cdef uint64_t now = monotonic_ns() if now_ns is None else now_ns
        with nogil:
            fnat_persistent(self.p, now, &out[0], info.config.members)
        return counts

    def conns(self, uint32_t worker, cursor=0, uint32_t limit=1024, *, now_ns=None, **filter):
        cdef fnat_conn_filter f
        cdef uint32_t at = cursor
        cdef uint64_t now = monotonic_ns() if now_ns is None else now_ns
        cdef const fnat_plane *p = self.handle()
        cdef int n
        cdef fnat_conn_info *page = <fnat_conn_info *>calloc(limit, sizeof(fnat_conn_info))
        if page == NULL:
            raise MemoryError
        try:
            put_filter(&f, filter)
            with nogil:
                n = fnat_conns(p, worker, &at, &f, now, page, limit)
            check(n, f"worker {worker}")
            found = [
                Conn(page[i].worker, page[i].index, page[i].proto, STATES[page[i].state],
                     get_addr(page[i].cip, page[i].family), page[i].cport, get_addr(page[i].vip, page[i].family), page[i].vport,
                     get_addr(page[i].lip, page[i].rs_family), page[i].lport, get_addr(page[i].rip, page[i].rs_family), page[i].rport,
                     page[i].remaining, page[i].age, page[i].service, page[i].member,
                     page[i].packets[0], page[i].packets[1], page[i].bytes[0], page[i].bytes[1])
                for i in range(n)
            ]
            return found, -1 if at == 0xffffffff else at
        finally:
            free(page)


cdef class Queue:
    cdef io_queue *q
    cdef bint given  # a worker closes it
    cdef object worker

    def __dealloc__(self):
        if self.q != NULL and not self.given:
            io_close(self.q)

    @staticmethod
    def from_pointer(address, Worker worker=None):
        cdef Queue queue = Queue.__new__(Queue)
        queue.q = <io_queue *><uintptr_t>address
        queue.worker = worker
        return queue


cdef class MemQueue(Queue):
    def __init__(self, Worker worker, ring=1024):
        check(fnat_mem_open(fnat_worker_pool(worker.handle()), ring, &self.q), "memory queue")
        self.worker = worker

    def put(self, const uint8_t[::1] frame not None):
        check(fnat_mem_put(self.q, &frame[0] if frame.shape[0] else NULL, frame.shape[0]), "put a frame")

    def take(self):
        cdef uint8_t buffer[4096]
        cdef int n = fnat_mem_take(self.q, buffer, sizeof(buffer))
        return bytes(buffer[:n]) if n >= 0 else None

    def take_all(self):
        frames = []
        while (frame := self.take()) is not None:
            frames.append(frame)
        return frames


cdef class PcapQueue(Queue):
    def __init__(self, Worker worker, batch=64):
        check(fnat_pcap_open(fnat_worker_pool(worker.handle()), batch, &self.q), "capture loop")
        self.worker = worker

    def add(self, const uint8_t[::1] frame not None):
        check(fnat_pcap_add(self.q, &frame[0] if frame.shape[0] else NULL, frame.shape[0]), "add a frame")

    def counts(self):
        cdef uint64_t received, sent
        fnat_pcap_counts(self.q, &received, &sent)
        return received, sent

    def measure(self, uint64_t packets):
        cdef uint64_t ns
        cdef io_queue *q = self.q
        with nogil:
            ns = fnat_pcap_measure(q, packets)
        return ns


cdef class TapQueue(Queue):
    def __init__(self, Worker worker, name, mac, mtu):
        cdef uint8_t hardware[6]
        cdef bytes raw = name.encode()
        put_mac(hardware, mac)
        check(fnat_tap_open(fnat_worker_pool(worker.handle()), <const char *>raw, hardware, mtu, &self.q), f"TAP device {name}")
        self.worker = worker


cdef class Worker:
    cdef fnat_worker *w
    cdef Plane plane
    cdef list queues

    def __init__(self, Plane plane, index):
        self.w = fnat_worker_get(plane.handle(), index)
        if self.w == NULL:
            raise ValueError(f"worker {index}: this process did not create the plane, or the plane has fewer workers")
        self.plane = plane
        self.queues = []

    def __dealloc__(self):
        if self.w != NULL and self.plane is not None and self.plane.p != NULL and self.queues:
            fnat_worker_detach(self.w)

    cdef fnat_worker *handle(self) except NULL:
        self.plane.handle()
        return self.w

    @property
    def pool_address(self):
        return <uintptr_t>fnat_worker_pool(self.handle())

    @property
    def frames_free(self):
        return (<frame_pool_fields *>fnat_worker_pool(self.handle())).free

    @property
    def frames_total(self):
        return (<frame_pool_fields *>fnat_worker_pool(self.handle())).total

    def attach(self, port, Queue queue not None, *, punt=False):
        check(fnat_worker_attach(self.handle(), port, punt, queue.q), f"attach a queue of port {port}")
        queue.given = True
        self.queues.append(queue)

    def detach(self):
        cdef Queue queue
        fnat_worker_detach(self.handle())
        for queue in self.queues:
            queue.q = NULL
        self.queues = []

    def step(self, uint64_t now_ns):
        cdef fnat_worker *w = self.handle()
        cdef int n
        with nogil:
            n = fnat_worker_step(w, now_ns)
        return n

    def run(self, uintptr_t stop_address, uint32_t spin_us=50):
        cdef fnat_worker *w = self.handle()
        with nogil:
            fnat_worker_run(w, <volatile int *>stop_address, spin_us)

    def quiesce(self):
        fnat_worker_quiesce(self.handle())

    def bench_nat(self, uint8_t proto, uint32_t conns, double seconds, *, uint16_t payload=4, bint stages=False):
        cdef fnat_bench_result r
        cdef fnat_bench_options options
        cdef fnat_worker *w = self.handle()
        cdef int rc
        options.proto, options.conns, options.seconds, options.payload, options.stages = proto, conns, seconds, payload, stages
        with nogil:
            rc = fnat_bench_nat(w, &options, &r)
        check(rc, "bench nat")
        return r

    def bench_cps(self, double seconds):
        cdef fnat_bench_result r
        cdef fnat_worker *w = self.handle()
        cdef int rc
        with nogil:
            rc = fnat_bench_cps(w, seconds, &r)
        check(rc, "bench cps")
        return r

    def bench_picks(self, service, members, n, held=0, seed=1):
        cdef fnat_worker *w = self.handle()
        cdef uint32_t id = service, keep = held
        cdef uint64_t count = n, start = seed, ns = 0
        cdef uint64_t *found = <uint64_t *>calloc(2 * members + 1, sizeof(uint64_t))
        cdef uint64_t *holds = found + <uint32_t>members
        cdef int rc
        try:
            if found == NULL:
                raise MemoryError
            with nogil:
                rc = fnat_bench_picks(w, id, count, keep, start, found, holds, &ns)
            check(rc, f"picks of service id {service}")
            return [found[i] for i in range(members)], [holds[i] for i in range(members)], ns
        finally:
            free(found)


cdef uint32_t host4(text) except? 0:
    return int(ipaddress.IPv4Address(text))


cdef class Traffic:
    cdef fnat_traffic *t
    cdef Queue client, server

    def __init__(self, Worker worker, Queue client not None, Queue server, *, cip, vip, vport, flows, services, window, client_mac, gateway_mac,
                 seen_from, seen_to):
        cdef fnat_traffic_spec spec
        memset(&spec, 0, sizeof(spec))
        spec.cip, spec.vip, spec.vport = host4(cip), host4(vip), vport
        spec.from_first, spec.from_last = host4(seen_from[0]), host4(seen_from[1])
        spec.to_first, spec.to_last = host4(seen_to[0]), host4(seen_to[1])
        spec.flows, spec.services, spec.window = flows, services, window
        put_mac(spec.client_mac, client_mac)
        put_mac(spec.gateway_mac, gateway_mac)
        check(fnat_traffic_open(fnat_worker_pool(worker.handle()), client.q, NULL if server is None else server.q, &spec, &self.t), "traffic")
        self.client, self.server = client, server

    def __dealloc__(self):
        if self.t != NULL:
            fnat_traffic_close(self.t)

    def step(self, uint64_t now_ns):
        return fnat_traffic_step(self.t, now_ns)

    def open_flows(self, double seconds, uintptr_t stop_address):
        cdef int rc
        with nogil:
            rc = fnat_traffic_open_flows(self.t, seconds, <volatile int *>stop_address)
        check(rc, "open all flows")

    def run(self, double seconds, double rate, uintptr_t stop_address):
        with nogil:
            fnat_traffic_run(self.t, seconds, rate, <volatile int *>stop_address)

    def result(self):
        cdef fnat_traffic_result r
        fnat_traffic_result_get(self.t, &r)
        times = [r.latency[i] for i in range(FNAT_TRAFFIC_SLOTS)]
        return {"ns": r.ns, "sent": r.sent, "unsent": r.unsent, "returned": r.returned, "in_time": r.in_time, "duplicates": r.duplicates,
                "wrong": r.wrong, "arrived": r.arrived, "checked": r.checked, "reflected": r.reflected, "latency": times,
                "slot_ns": FNAT_TRAFFIC_SLOT_NS}


def relay_step(Queue a not None, Queue b not None):
    return fnat_relay_step(a.q, b.q)


def relay_run(Queue a not None, Queue b not None, uintptr_t stop_address, uint32_t spin_us=50):
    with nogil:
        fnat_relay_run(a.q, b.q, <volatile int *>stop_address, spin_us)
