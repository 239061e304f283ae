"""The Cython door to the C core, typed. Every failing call raises OSError with the errno of cext/fnat.h."""

from typing import NamedTuple, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

class PlaneInfo(TypedDict):
    workers: int
    conns: int
    services: int
    members: int
    endpoints: int
    neighbours: int
    frames: int
    snapshot_mib: int
    acl_mib: int
    plane_bytes: int
    worker_bytes: int
    frames_bytes: int
    conn_bytes: int
    huge_page_size: int
    restored: int

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
    """How the answers of one flow that arrive on a NIC port find their worker: by the NIC's Toeplitz hash with this key
    and indirection table (of workers), or, with an empty key, by port mask. `note` is for listings; loose: a flow may
    come by another queue at any time."""

    key: bytes = b""
    table: tuple[int, ...] = ()
    note: str = ""
    loose: bool = False

class Neigh(NamedTuple):
    addr: str
    port: int
    mac: str  # "aa:bb:cc:dd:ee:ff", "" while unresolved
    state: str  # NONE SEND REACHABLE PROBE DELAY
    static: bool

class Hop(NamedTuple):
    """The way of a flow: a port, and a gateway ("": the address is on link). mtu 0: the port's. src: sender
    of ARP, "": any."""

    port: int
    gateway: str
    src: str
    mtu: int
    kind: str  # unicast host unreachable

class Conn(NamedTuple):
    worker: int
    id: int
    proto: int
    state: str  # TCP_EST, UDP_NORM, …
    cip: str
    cport: int
    vip: str
    vport: int
    lip: str
    lport: int
    rip: str
    rport: int
    remaining: int  # seconds
    age: int  # seconds
    service: int
    member: int
    in_packets: int
    out_packets: int
    in_bytes: int
    out_bytes: int

class ConnFilter(TypedDict, total=False):
    """Numbers: -1 is any; ports: 0 is any; addresses: "ADDR" or "ADDR/PLEN"."""

    service: int
    member: int
    state: int
    proto: int
    cip: str
    cport: int
    vip: str
    vport: int
    lip: str
    lport: int
    rip: str
    rport: int

class BenchResult(TypedDict):
    packets: int
    ns: int
    generator_ns: int
    conns: int
    opened: int
    verified: int
    mismatched: int
    dropped: int
    floor_ns: int
    open_ns: int
    expire_ns: int
    left: int
    stage_ps: list[int]

class StepStats(TypedDict):
    """Index 0: turns that ran through; 1: turns in which the kernel took the CPU away. Bucket i: 2^i ns and more."""

    count: list[list[int]]
    sum_ns: list[int]
    max_ns: list[int]

COUNTERS: tuple[tuple[str, str, str], ...]
"""(name, kind, help) in the order of the enum; kind is "counter", "drop" or "taken"."""
STATES: tuple[str, ...]
"""Connection states by number: TCP_NONE … TCP_SYNACK, UDP_NONE … UDP_LAST."""
MAX_PORTS: int
FLOWS: tuple[str, ...]
"""tcp4 udp4 tcp6 udp6"""
STEER_SLOTS: int  # most entries of an indirection table
STEER_KEY: int  # most bytes of a key

def monotonic_ns() -> int: ...
def toeplitz(key: bytes, data: bytes) -> int:
    """The hash that NICs do (RSS); the key is at least 4 bytes longer than the data."""

def steering_owner(rule: Rule, flow: str, workers: int, rip: str, lip: str, rport: int, lport: int) -> int:
    """The worker that an answer from rip:rport to lip:lport belongs to."""

def sched_owners(
    scheduler: str, members: list[tuple[str, int, int]], count: int, hash_slots: int = 65537
) -> list[int]:
    """Whose each of `count` hashes spread evenly over all would be: places in members, (rip, rport, weight). With
    hash_slots for count it is the table of mh. EINVAL no member with weight, or a scheduler that does not hash."""

def maglev(preferences: list[tuple[int, int, int]], slots: int) -> list[int]:
    """Maglev's table of members given as (offset, skip, weight)."""

def steering_shares(rule: Rule, flow: str, workers: int, lports: tuple[int, int] = (1024, 65535)) -> tuple[int, int]:
    """The fewest and the most of these local ports that one worker owns towards any RS."""

class Plane:
    """The shared memory of one data plane. `directory` None: anonymous memory (tests, benches)."""

    @staticmethod
    def create(
        directory: str | None,
        *,
        workers: int = 1,
        conns: int = 65536,
        services: int = 1024,
        members: int = 8192,
        endpoints: int = 8192,
        neighbours: int = 4096,
        frames: int = 4096,
        snapshot_mib: int = 16,
        acl_mib: int = 0,
        fresh: bool = False,
    ) -> Plane: ...
    @staticmethod
    def measure(
        *,
        workers: int,
        conns: int,
        services: int,
        members: int,
        endpoints: int,
        neighbours: int,
        frames: int,
        snapshot_mib: int,
        acl_mib: int = 0,
    ) -> PlaneInfo:
        """What a plane of these sizes would take, by the layout itself; nothing is made."""
    @staticmethod
    def attach(directory: str) -> Plane: ...
    def close(self) -> None: ...
    def info(self) -> PlaneInfo: ...
    # control: nothing is in force before publish()
    def put_settings(
        self,
        timeouts: dict[str, int],
        unserved_reset: bool,
        lports: tuple[int, int] = (1024, 65535),
        *,
        icmp_rate: int = 1000,
        echo_rate: int = 10000,
        echo_served: bool = False,
        announce: bool = False,
        own_sources: bool = False,
        hash_key: bytes = b"",
    ) -> None:
        """Seconds by state name (see STATES); a state left out keeps its built-in default; FRAGMENTS, 1..60: of
        a datagram's fragments.

        lports: first and last local port. icmp_rate, echo_rate: most ICMP errors and echo replies that a worker makes,
        packets a second, 0 to 10 000 000; 0: unlimited. echo_served: a VIP answers pings only while its kind says
        "served". announce: owned addresses that are new on a port are told to its link (gratuitous ARP, RFC 5227 3;
        unsolicited advertisement, RFC 4861 7.2.6). own_sources: an owned address may be the
        source of a first packet, which else is dropped as `martian`. hash_key: 32 bytes, secret, that hash
        schedulers draw clients with; empty: a key that everybody knows."""
    def put_port(self, id: int, name: str, mac: str, mtu: int, *, up: bool = True, exclusive: bool = False) -> None: ...
    def put_service(
        self,
        id: int,
        vip: str,
        vport: int,
        proto: int,
        *,
        scheduler: str = "rr",
        no_rs_reset: bool = False,
        expire_quiescent: bool = False,
        one_packet: bool = False,
        quic: bool = False,
        conn_timeout: int = 0,
        half_open: int = 0,
        persistent: int = 0,
        persistent_plen: int | None = None,
        max_conns: int = 0,
        new_per_s: int = 0,
        per_client: int = 0,
        client_addr: str = "none",
        hash_target: str = "sip",
        hash_slots: int = 65537,
        slow_start: int = 0,
        now_ns: int | None = None,
        members: list[tuple[int, str, int, int]] = ...,
        limits: dict[int, tuple[str, int, int, int]] | None = None,
        draining: dict[int, bool] = ...,
        lips: list[int] = ...,
        deny: list[int] = ...,
        allow: list[int] = ...,
    ) -> None:
        """members: (member id, rip, rport, weight); limits: of members that have any, by member id: ("active", "backup"
        or "sorry", upper, lower, new connections a second); draining: members that get no new connections; True: but of
        clients that are persistent to them; lips: address ids; client_addr: how the RSs learn the client's address,
        "none", "toa", "uoa-opp", "uoa-ipo", "proxy-v1", "proxy-v2", the last two also with "-insecure".
        hash_target: see HASH_TARGETS; hash_slots: of mh, a prime. slow_start: seconds in which a member that comes to
        others grows to its weight, from now_ns on, which is CLOCK_MONOTONIC's when left out.
        EINVAL what cannot be together."""
    def del_service(self, id: int) -> None: ...
    def put_address(self, id: int, addr: str, kind: str, port: int) -> None:
        """Add or replace one owned address; kind is "vip", "lip" or "vip+lip",
        with "+served" behind it while a service on the VIP has a usable RS."""
    def del_address(self, id: int) -> None: ...
    def put_addresses(self, addresses: list[tuple[int, str, str, int]]) -> None:
        """The whole list of (address id, address, kind, port id); kind is "vip", "lip" or "vip+lip", with "+served"
        behind it while a service on the VIP has a usable RS."""
    def put_routes(self, routes: list[tuple[str, str, str, int, int, int, str]]) -> None:
        """The whole list of (prefix "10.0.0.0/8", gateway or "", src or "", port id, mtu, metric, kind).

        kind is "unicast", "host" (hand to the host) or "unreachable". Of equal prefixes the lowest metric wins;
        unicast routes with the same one share the flows. mtu 0: the port's. EINVAL what cannot be; E2BIG more than 64
        equal-cost routes to a prefix or 255 different MTUs. ValueError: gateway or src of the other family."""
    def route_get(self, addr: str, flow: int = 0) -> Hop | None:
        """The way of a flow (any 32-bit number) by the snapshot this plane published last; None: no route."""
    def put_acl(self, deny: list[int], allow: list[int]) -> None:
        """The general lists: ids of address sets, at most 64 each."""
    def acl_make(self, name: str) -> int:
        """The id of the set of this name, made empty if there is none."""
    def acl_drop(self, id: int) -> None:
        """No list that is published next may name it."""
    def acl_edit(self, id: int, keys: bytes, answers: bytes) -> None:
        """Put in and take out entries. keys: 18 bytes each, family, address, prefix length + 1; answers: 1 in the set,
        2 an exception, 0 take it out. ENOENT it is not there, ENOSPC; those before it are done."""
    def acl_sets(self) -> list[tuple[int, str, int, int]]:
        """(id, name, IPv4 entries, IPv6 entries)."""
    def acl_read(self, id: int) -> tuple[bytes, bytes]:
        """Keys and answers of a set as edited, in no order."""
    def acl_test(self, id: int, addr: str) -> bool:
        """Is the address in the set that workers see?"""
    def acl_free(self) -> int:
        """Bytes free for entries."""
    def acl_recheck(self) -> int:
        """From the next snapshot on workers look at their connections again; the number of this pass."""
    def acl_rechecked(self) -> int:
        """The last pass that all running workers have finished."""
    def acl_stats(self, service: int) -> tuple[int, int]:
        """New connections denied, and not allowed, by the lists of the service."""
    def acl_zero(self, service: int) -> None: ...
    def acl_bench(self, id: int, like: str, lookups: int) -> dict[str, int]:
        """Look-ups of random addresses inside a prefix; see fnat_acl_bench in cext/fnat.h."""
    def publish(self) -> int: ...
    def adopted(self) -> int: ...
    def put_steering(self, port: int, flow: str, rule: Rule) -> None:
        """In force in the workers' next turn."""
    def steering(self, port: int, flow: str) -> Rule: ...
    def neigh_set(self, port: int, addr: str, mac: str, *, static: bool = False) -> None:
        """mac "" deletes the entry."""
    def neighbours(self) -> list[Neigh]: ...
    # reading
    def service_stats(self, id: int) -> Stats: ...
    def member_stats(self, id: int) -> Stats: ...
    def member_overloaded(self, id: int) -> bool:
        """It reached its upper limit, and no connection has come since it fell below the lower one."""
    def service_table(self, count: int) -> NDArray[np.uint64]:
        """Counters of the ids below count in one reading, a row an id; the columns are the fields of Stats."""
    def member_table(self, count: int) -> NDArray[np.uint64]: ...
    def address_stats(self, id: int) -> AddressStats: ...
    def endpoints(self) -> NDArray[np.void]:
        """Endpoints with ports in use: fields rip (16 bytes), used, lip (address id), rport, proto, family, worker."""
    def counters(self, worker: int | None = None) -> dict[str, int]:
        """Values by name, of one worker or summed over all."""
    def step_stats(self, worker: int) -> StepStats: ...
    def worker_cpu(self, worker: int) -> int | None: ...
    def conns(
        self,
        worker: int,
        cursor: int = 0,
        limit: int = 1024,
        *,
        now_ns: int | None = None,
        **filter: Unpack[ConnFilter],
    ) -> tuple[list[Conn], int]:
        """(connections that pass, next cursor); the cursor is -1 at the end. A page may be empty before the end."""
    def conn_count(self, worker: int, **filter: Unpack[ConnFilter]) -> int:
        """How many connections of a worker pass; all records are looked at."""
    def conn_kill(self, *, reset: bool, **filter: Unpack[ConnFilter]) -> int:
        """Ask the workers to end the connections that pass; reset: both ends of TCP are told. The request's number;
        EBUSY: the one before is not finished."""
    def conn_killed(self) -> tuple[int, int]:
        """The newest request that every running worker has finished, and how many connections it has ended."""
    def persistent(self, *, now_ns: int | None = None) -> NDArray[np.uint32]:
        """How many clients are persistent to each member, by member id."""

class Queue:
    """One rx/tx pair. Given to a worker it belongs to that worker."""

    @staticmethod
    def from_pointer(address: int, worker: Worker | None = None) -> Queue:
        """A `struct io_queue *` made by a cffi driver; worker: whose frames it has, when it is not given to one."""

class MemQueue(Queue):
    def __init__(self, worker: Worker, ring: int = 1024) -> None: ...
    def put(self, frame: bytes) -> None: ...
    def take(self) -> bytes | None: ...
    def take_all(self) -> list[bytes]: ...

class PcapQueue(Queue):
    """Hands out the frames added to it, over and over; sending only counts."""

    def __init__(self, worker: Worker, batch: int = 64) -> None: ...
    def add(self, frame: bytes) -> None: ...
    def counts(self) -> tuple[int, int]:
        """(frames handed out, frames taken for sending)."""
    def measure(self, packets: int) -> int:
        """Nanoseconds that the driver alone takes for this many packets."""

class TapQueue(Queue):
    def __init__(self, worker: Worker, name: str, mac: str, mtu: int) -> None: ...

class Worker:
    def __init__(self, plane: Plane, index: int) -> None: ...
    @property
    def pool_address(self) -> int:
        """`struct frame_pool *` for a cffi driver."""
    @property
    def frames_free(self) -> int: ...
    @property
    def frames_total(self) -> int: ...
    def attach(self, port: int, queue: Queue, *, punt: bool = False) -> None: ...
    def detach(self) -> None: ...
    def step(self, now_ns: int) -> int: ...
    def run(self, stop_address: int, spin_us: int = 50) -> None:
        """Blocks without the GIL until the C int at stop_address is non-zero."""
    def quiesce(self) -> None: ...
    def bench_nat(
        self, proto: int, conns: int, seconds: float, *, payload: int = 4, stages: bool = False
    ) -> BenchResult: ...
    def bench_cps(self, seconds: float) -> BenchResult: ...
    def bench_picks(
        self, service: int, members: int, n: int, held: int = 0, seed: int = 1
    ) -> tuple[list[int], list[int], int]:
        """n picks of a service's scheduler for random clients, without packets; the last `held` are connections that
        end at random. members: how many the service has. (picks, connections at the end, ns), the first two by place
        in the service."""

class TrafficResult(TypedDict):
    """Counts since the last open_flows or run began; see fnat.h."""

    ns: int
    sent: int
    unsent: int
    returned: int
    in_time: int
    duplicates: int
    wrong: int
    arrived: int
    checked: int
    reflected: int
    latency: list[int]
    slot_ns: int

class Traffic:
    """UDP load over a client and a server queue; server None: somebody else reflects."""

    def __init__(
        self,
        worker: Worker,
        client: Queue,
        server: Queue | None,
        *,
        cip: str,
        vip: str,
        vport: int,
        flows: int,
        services: int,
        window: int,
        client_mac: str,
        gateway_mac: str,
        seen_from: tuple[str, str],
        seen_to: tuple[str, str],
    ) -> None:
        """seen_from, seen_to: first and last address that the server side may see as source and destination."""
    def step(self, now_ns: int) -> int: ...
    def open_flows(self, seconds: float, stop_address: int) -> None:
        """Until a packet of every flow has come back; OSError ETIMEDOUT."""
    def run(self, seconds: float, rate: float, stop_address: int) -> None:
        """rate: packets a second; 0: as fast as the window lets."""
    def result(self) -> TrafficResult: ...

def relay_step(a: Queue, b: Queue) -> int:
    """One turn of the bare forwarder; packets moved."""

def relay_run(a: Queue, b: Queue, stop_address: int, spin_us: int = 50) -> None: ...
