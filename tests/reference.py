"""FullNAT in plain Python dictionaries: the executable specification. No speed, no C, nothing shared with the product.

`Reference` takes the same configuration calls as `fnat._core.Plane` and one frame at a time. It answers with the frames that
leave, the outcome of the packet and the counters. Where the product is free to choose (which local port, which initial
sequence number, when within a second an idle connection ends) the reference adopts the choice and checks that it is legal;
an illegal one raises `Illegal`.

Rules, in the order they apply to a frame:
  1. neither IP nor ARP: passed to the host when the port has a way to it, else dropped `ether_type`;
  2. malformed: dropped with the reason that names the header;
  3. known connection, by the full tuple in either direction: see `_hit`;
  4. not an owned address: passed when the port has a way to the host, else dropped `not_ours`;
  5. owned: echo requests are answered, first packets open a connection, the rest has its drop reason.
Sequence numbers compare as serial numbers (RFC 1982). Time comes in as nanoseconds; connections live in ticks of 1/64 s.
A connection may have IPv4 on one side and IPv6 on the other: then the IP header is made anew (RFC 7915).
How an RS is told the client's address is in `telling.py`.
Fragments find their connection by what the first one of their datagram has told: datagrams.py remembers it.
SCTP packets: `reference_sctp`; QUIC connection IDs: `reference_quic`.
ICMP errors and neighbour discovery: `reference_icmp` takes them apart and builds them, here they meet connections and neighbours.
Left out: several workers.
"""

from __future__ import annotations

import ipaddress
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import packets as wire
import reference_icmp as icmp
import reference_quic as quic
import reference_sched as sched
import reference_sctp as sctp
from datagrams import Datagram, Datagrams, Piece, part_at
from packets import ACK, FIN, RST, SCTP, SYN, TCP, UDP
from telling import Change, Telling, with_first, without

TICKS = 64
MASK = 0xFFFFFFFF
NEIGHBOUR_QUEUE = 8

TCP_STATES = (
    "TCP_NONE",
    "TCP_EST",
    "SYN_SENT",
    "SYN_RECV",
    "FIN_WAIT",
    "TIME_WAIT",
    "TCP_CLOSE",
    "CLOSE_WAIT",
    "LAST_ACK",
    "LISTEN",
    "SYNACK",
)
STATES = (*TCP_STATES, "UDP_NONE", "UDP_ONEWAY", "UDP_NORM", "UDP_LAST", *sctp.STATES)

# What a packet that counts does to a connection: (sender, first of RST SYN FIN ACK) -> {state: next state}; states left out stay.
_CLIENT, _RS = 0, 1
_TABLE: dict[tuple[int, str], dict[str, str]] = {
    (_CLIENT, "SYN"): {"TCP_NONE": "SYN_RECV"},
    (_CLIENT, "FIN"): {"TCP_EST": "CLOSE_WAIT", "SYN_RECV": "CLOSE_WAIT", "FIN_WAIT": "TIME_WAIT"},
    (_CLIENT, "ACK"): {"SYN_RECV": "TCP_EST"},
    (_CLIENT, "RST"): dict.fromkeys(("TCP_EST", "SYN_RECV", "FIN_WAIT", "TIME_WAIT", "CLOSE_WAIT"), "TCP_CLOSE"),
    (_RS, "SYN"): {},
    (_RS, "FIN"): {"TCP_EST": "FIN_WAIT", "SYN_RECV": "FIN_WAIT", "CLOSE_WAIT": "TIME_WAIT"},
    (_RS, "ACK"): {},
    (_RS, "RST"): dict.fromkeys(("TCP_EST", "SYN_RECV", "FIN_WAIT", "CLOSE_WAIT"), "TCP_CLOSE"),
}
_LIVING = ("TCP_EST", "FIN_WAIT", "CLOSE_WAIT")
ONE_PACKET = ("UDP_NONE", "UDP_LAST")  # states of a datagram of a one-packet service: waits for its answer, has one


_CLOSING = ("FIN_WAIT", "CLOSE_WAIT", "LAST_ACK", "TIME_WAIT", "TCP_CLOSE", "SCTP_SHUTDOWN")


Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Illegal(AssertionError):
    """The product chose what the rules forbid."""


def line_of(client: str) -> str:
    """What counts as one client: an IPv4 address, the /64 of an IPv6 address."""
    return str(ipaddress.ip_network(f"{client}/64", strict=False)) if wire.is6(client) else client


def later(a: int, b: int) -> bool:
    """RFC 1982: is a later than b?"""
    return 0 < (a - b) & MASK < 0x80000000


class Received:
    """What a receiver remembers of a stream: how far it has it without a gap, and pieces beyond gaps. Offsets from the SYN."""

    def __init__(self, isn: int) -> None:
        self.isn, self.upto, self.pieces = isn, 1, list[tuple[int, int]]()

    def take(self, seq: int, length: int) -> None:
        start = (seq - self.isn) & MASK
        if start + length > 0x7FFFFFFF:
            return
        self.pieces = sorted([*self.pieces, (start, start + length)])
        while self.pieces and self.pieces[0][0] <= self.upto:
            self.upto = max(self.upto, self.pieces.pop(0)[1])

    @property
    def next(self) -> int:
        return (self.isn + self.upto) & MASK


@dataclass
class Member:
    id: int
    rip: str
    rport: int
    weight: int
    role: str = "active"
    upper: int = 0
    lower: int = 0
    new_per_s: int = 0


@dataclass
class Service:
    id: int
    vip: str
    vport: int
    proto: int
    scheduler: str
    no_rs_reset: bool
    expire_quiescent: bool
    conn_timeout: int
    half_open: int
    members: list[Member]
    lips: list[int]
    one_packet: bool
    client_addr: str = "none"
    quic: bool = False
    hash_target: str = "sip"
    hash_slots: int = 65537
    slow_start: int = 0
    max_conns: int = 0
    new_per_s: int = 0
    per_client: int = 0
    persistent: int = 0
    persistent_plen: int = 32
    draining: dict[int, bool] = field(default_factory=dict)
    deny: tuple[int, ...] = ()
    allow: tuple[int, ...] = ()


@dataclass
class Pace:
    """New connections: `rate` at once, then each a period behind the last (GCRA), in whole nanoseconds rounded up."""

    next: int = 0

    def admits(self, rate: int, now: int) -> bool:
        return not rate or self.next <= now + (rate - 1) * self._period(rate)

    def take(self, rate: int, now: int) -> bool:
        if not self.admits(rate, now):
            return False
        self.next = max(self.next, now) + self._period(rate) if rate else self.next
        return True

    @staticmethod
    def _period(rate: int) -> int:
        return -(-1_000_000_000 // rate)


Hop = tuple[int, str]  # port, and the address whose MAC is asked for


@dataclass
class Choice:
    """What the product was free to choose when it opened a connection."""

    lip: str
    lport: int


@dataclass(eq=False)
class Conn:
    proto: int
    client: tuple[str, int]
    vip: tuple[str, int]
    lip: tuple[str, int]
    rs: tuple[str, int]
    service: int
    member: int
    state: str
    last_seen: int  # ticks
    opened: int
    quiescent: bool
    dseq: int | None = 0  # added to the client's sequence numbers; None: not seen yet
    dts: int | None = 0  # added to the client's timestamps; None: not seen yet
    looked_at: int = 0  # tick of a deadline that a change of configuration has moved nearer
    stamped: bool = False  # the SYN had a timestamp; without it an RS ignores timestamps (RFC 7323 3.2)
    first_stamp: tuple[int, int] | None = None  # as the RS saw it, and when
    received: Received | None = None  # of the client's stream, as the RS has it, in its numbers
    synack_seen: bool = False
    doubt: bool = False  # something said that it may be over
    windows: list[int] = field(
        default_factory=lambda: [1 << 30, 1 << 30]
    )  # by sender: what the receiver can take at most
    finished: bool = False  # both sides have closed; its local port may be taken when none is free
    next_seq: list[int] = field(default_factory=lambda: [0, 0])  # by sender, in the sender's own numbers
    counted: bool = False  # among its client's
    telling: Telling | None = None
    tags: sctp.Tags = field(default_factory=sctp.Tags)
    # By sender: the hop towards the other end, and those it was chosen from.
    ways: list[tuple[Hop, frozenset[Hop]] | None] = field(default_factory=lambda: [None, None])
    packets: list[int] = field(default_factory=lambda: [0, 0])
    bytes: list[int] = field(default_factory=lambda: [0, 0])

    @property
    def half_open(self) -> bool:
        return self.state in ("SYN_RECV", "SCTP_INIT")

    def at_rs(self, seq: int) -> int:
        """A number of the client's end of stream, as the RS knows it."""
        return (seq + (self.dseq or 0) + (self.telling.under_way if self.telling else 0)) & MASK

    def sent_by_client(self, seq: int) -> int:
        """A sequence number that went to the RS, as the client sent it."""
        seq = (seq - (self.dseq or 0)) & MASK
        return self.telling.client_number(seq) if self.telling and not self.half_open else seq

    def acknowledged_by_rs(self, ack: int) -> int:
        """An acknowledgement that went to the client, as the RS sent it."""
        ack = self.telling.rs_number(ack) if self.telling and not self.half_open else ack
        return (ack + (self.dseq or 0)) & MASK


@dataclass
class Waiting:
    frame: bytes
    conn: Conn | None
    sender: int
    in_port: int
    change: Change = field(default_factory=Change)
    datagram: Datagram | None = None
    mtu: int = 65535
    packet: bytes = b""  # an ICMP error, translated already


@dataclass
class Neighbour:
    mac: str = ""
    static: bool = False
    waiting: list[Waiting] = field(default_factory=list)


@dataclass
class Floor:
    """What an RS may remember of a (protocol, LIP:lport, RS): the latest numbers sent there."""

    seq: int | None = None
    ts: int | None = None


@dataclass
class Limit:
    """Packets of one kind: a token each, `rate` new ones a second, at most a second's worth. In 1/64 tokens, ticks of 1/64 s."""

    rate: int
    left: int = 0
    tick: int = -TICKS

    def take(self, tick: int) -> bool:
        if not self.rate:
            return True
        self.left = min(TICKS * self.rate, self.left + min(tick - self.tick, TICKS) * self.rate)
        self.tick = tick
        if self.left < TICKS:
            return False
        self.left -= TICKS
        return True


class Reference:
    def __init__(self, *, conns: int = 65536) -> None:
        self.capacity = conns
        self.timeouts = dict.fromkeys(STATES, 60)
        self.unserved_reset = True
        self.echo_served = False
        self.errors, self.echoes = Limit(1000), Limit(10000)
        self.lports = range(1024, 65536)
        self.ports: dict[int, tuple[str, int]] = {}  # id -> (mac, mtu)
        self.punt: set[int] = set()
        self.services: dict[int, Service] = {}
        self.conn_timeouts: dict[int, int] = {}  # by service id; outlives the service
        self.schedulers: dict[int, sched.Scheduler] = {}
        self.arrived: dict[int, set[int]] = {}  # member ids by service id
        self.since: dict[int, int | None] = {}  # by member id: when it began to grow, in eighths of a second
        self.hash_key = sched.KEY
        self.paces: dict[tuple[str, int], Pace] = {}  # of services and members
        self.overloaded: set[int] = set()  # members
        self.templates: dict[
            tuple[int, str], tuple[int, int]
        ] = {}  # service, client's network -> member, second of the end
        self.addresses: dict[int, tuple[str, str, int]] = {}  # id -> (address, kind, port)
        self.lip_names: dict[int, str] = {}  # every id ever given out
        # prefix, gateway, port, kind, metric, mtu, source
        self.routes: list[tuple[Network, str, int, str, int, int, str]] = []
        self.neighbours: dict[tuple[int, str], Neighbour] = {}
        self.conns: list[Conn] = []  # in order of opening
        self.by_key: dict[tuple[int, str, int, str, int], tuple[Conn, int]] = {}
        self.wild: set[tuple[str, tuple[str, int]]] = set()  # (LIP, RS) where a client's numbers made no sense
        self.floors: dict[tuple[int, str, int, str, int], Floor] = {}
        self.count: Counter[str] = Counter()
        self.member_count: Counter[tuple[int, str]] = Counter()
        self.now = 0  # ns
        self.sent: list[tuple[int, bytes]] = []  # (port, frame)
        self.observe: Callable[[Conn, bytes, int], tuple[int, int]] = self._no_observation
        self.choose: Callable[[Conn, bytes], Choice | None] = self._no_choice
        self.expend: Callable[[list[Conn], bytes], Conn] = self._no_expense
        self.pick: Callable[[Conn, int, list[Hop]], Hop | None] = self._no_pick
        self.identify: Callable[[Conn, bytes, int], int] = self._numbered
        self.datagrams = Datagrams()
        self.names: dict[
            tuple[str, str, int], int
        ] = {}  # source, destination, identification -> tick when it was given
        self.sets: dict[str, tuple[int, dict[Network, bool]]] = {}
        self.acl: tuple[tuple[int, ...], tuple[int, ...]] = (), ()
        self.late: list[tuple[int, bytes]] = []  # what leaves at the end of the turn
        self.delaying = False  # as all does now

    # ---- configuration: the calls of Plane ----

    def put_settings(
        self,
        timeouts: dict[str, int],
        unserved_reset: bool,
        lports: tuple[int, int] = (1024, 65535),
        *,
        icmp_rate: int = 1000,
        echo_rate: int = 10000,
        echo_served: bool = False,
        hash_key: bytes = b"",
    ) -> None:
        self.hash_key = sched.key_of(hash_key)
        self.errors.rate, self.echoes.rate, self.echo_served = icmp_rate, echo_rate, echo_served
        self.timeouts.update(timeouts)
        self.unserved_reset = unserved_reset
        self.lports = range(lports[0], lports[1] + 1)

    def put_port(self, id: int, name: str, mac: str, mtu: int, *, up: bool = True, exclusive: bool = False) -> None:
        if up:
            self.ports[id] = (mac, mtu)
        else:
            self.ports.pop(id, None)

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
        conn_timeout: int = 0,
        half_open: int = 0,
        one_packet: bool = False,
        quic: bool = False,
        client_addr: str = "none",
        hash_target: str = "sip",
        hash_slots: int = 65537,
        slow_start: int = 0,
        now_ns: int = 0,
        max_conns: int = 0,
        new_per_s: int = 0,
        per_client: int = 0,
        persistent: int = 0,
        persistent_plen: int | None = None,
        draining: dict[int, bool] | None = None,
        members: list[tuple[int, str, int, int]] | None = None,
        limits: dict[int, tuple[str, int, int, int]] | None = None,
        lips: list[int] | None = None,
        deny: Sequence[int] = (),
        allow: Sequence[int] = (),
    ) -> None:
        self.services[id] = Service(
            id,
            vip,
            vport,
            proto,
            scheduler,
            no_rs_reset,
            expire_quiescent,
            conn_timeout,
            half_open,
            [
                Member(*m[:3], 0 if m[0] in (draining or {}) else m[3], *(limits or {}).get(m[0], ()))
                for m in members or []
            ],
            list(lips or []),
            one_packet and proto == UDP,
            client_addr,
            quic,
            hash_target,
            hash_slots,
            slow_start,
            max_conns,
            new_per_s,
            per_client,
            persistent,
            (128 if wire.is6(vip) else 32) if persistent_plen is None else persistent_plen,
            draining or {},
            tuple(deny),
            tuple(allow),
        )
        self.schedulers.setdefault(id, sched.Scheduler(id))
        self._arrive(self.services[id], now_ns)
        for conn in self.conns:  # a shorter timeout counts from the next look at the connection: at its old deadline
            if conn.service == id:
                conn.looked_at = max(conn.looked_at, self.deadline(conn))
        self.conn_timeouts[id] = conn_timeout

    def _arrive(self, service: Service, now_ns: int) -> None:
        """Members that come to others begin to grow; those that come with the service, or alone, are grown."""
        there = self.arrived.get(service.id, set())
        usable = {m.id for m in service.members if m.weight}
        for id in usable - there:
            self.since[id] = now_ns // sched.EIGHTH if usable & there else None
        self.arrived[service.id] = usable | set(service.draining)

    def _grown(self, service: Service, id: int) -> int:
        since = self.since[id]
        if not service.slow_start or since is None:
            return sched.FULL
        passed = self.now // sched.EIGHTH - since
        return min(sched.FULL, max(1, passed * sched.FULL // (service.slow_start * 8)))

    def _load(self, service: Service, id: int) -> sched.Load:
        conns = [c for c in self.conns if c.member == id]
        busy = [c for c in conns if service.proto == UDP or c.state in ("TCP_EST", "SCTP_EST") or c.half_open]
        return sched.Load(len(busy), len(conns) - len(busy))

    def _scheduled(self, f: wire.Frame, service: Service, d: Datagram | None, role: str) -> Member | None:
        able = {m.id for m in service.members if m.role == role and self._admits(m)}
        payload = None
        if f.proto == UDP and d is None:
            payload = f.payload[: struct.unpack_from("!H", f.raw, f.l4 + 4)[0] - 8]
        picked = self.schedulers[service.id].pick(
            sched.World(
                service.scheduler,
                [sched.Candidate(m.id, m.rip, m.rport, m.weight) for m in service.members],
                sched.client_hash(self.hash_key, service.hash_target, f.src, f.sport, payload),
                service.hash_slots,
                lambda id: self._load(service, id),
                lambda id: self._grown(service, id),
                able,
            )
        )
        return next((m for m in service.members if picked and m.id == picked.id), None)

    def del_service(self, id: int) -> None:
        del self.services[id]
        self.arrived[id] = set()

    def put_acl(self, deny: Sequence[int], allow: Sequence[int]) -> None:
        self.acl = tuple(deny), tuple(allow)

    def acl_make(self, name: str) -> int:
        return self.sets.setdefault(name, (1 + len(self.sets), {}))[0]

    def acl_edit(self, id: int, keys: bytes, answers: bytes) -> None:
        entries = next(entries for known, entries in self.sets.values() if known == id)
        for at, answer in enumerate(answers):
            key = keys[18 * at : 18 * at + 18]
            addr = ipaddress.ip_address(key[1:5] if key[0] == 4 else key[1:17])
            prefix = ipaddress.ip_network((addr, key[17] - 1))
            entries.pop(prefix, None)
            if answer:
                entries[prefix] = answer == 1

    def acl_recheck(self) -> None:
        """In force with the next snapshot; the turn after it looks at all connections."""
        for conn in [c for c in self.conns if self._refused(c.client[0], self.services.get(c.service))]:
            self._close(conn)
            self.count["acl_closed"] += 1

    def _listed(self, lists: Iterable[int], addr: str) -> bool:
        """Is the address in one of these sets? In each the longest prefix that holds it decides."""
        ip = ipaddress.ip_address(addr)
        for id, entries in self.sets.values():
            found = [p for p in entries if p.version == ip.version and ip in p] if id in lists else []
            if found and entries[max(found, key=lambda p: p.prefixlen)]:
                return True
        return False

    def _refused(self, addr: str, service: Service | None) -> str:
        """Why this source may not open a connection; "": it may."""
        deny, allow = self.acl
        if self._listed(deny, addr):
            return "acl_general_deny"
        if allow and not self._listed(allow, addr):
            return "acl_general_not_allowed"
        if service is not None and self._listed(service.deny, addr):
            return "acl_deny"
        if service is not None and service.allow and not self._listed(service.allow, addr):
            return "acl_not_allowed"
        return ""

    def put_addresses(self, addresses: list[tuple[int, str, str, int]]) -> None:
        self.addresses = {id: (addr, kind, port) for id, addr, kind, port in addresses}
        self.lip_names.update({id: addr for id, addr, _, _ in addresses})

    def put_routes(self, routes: list[tuple[str, str, str, int, int, int, str]]) -> None:
        self.routes = [
            (ipaddress.ip_network(prefix), gateway, port, kind, metric, mtu, src)
            for prefix, gateway, src, port, mtu, metric, kind in routes
        ]

    def neigh_set(self, port: int, addr: str, mac: str, *, static: bool = False) -> None:
        n = self.neighbours.setdefault((port, addr), Neighbour())
        n.mac, n.static = mac, static

    # ---- looking things up ----

    def owned(self, addr: str) -> tuple[str, str, int] | None:
        return next((a for a in self.addresses.values() if a[0] == addr), None)

    def hops(self, addr: str) -> dict[Hop, int]:
        """(port, next hop) and MTU of the route, 0: the port's. Longest prefix first, then lowest metric; several are equals."""
        equals = self._best_routes(addr)
        unicast = [r for r in equals if r[3] == "unicast"] if equals and equals[0][3] == "unicast" else []
        return {(port, gateway or addr): mtu for _, gateway, port, _, _, mtu, _ in unicast}

    def _best_routes(self, addr: str) -> list[tuple[Network, str, int, str, int, int, str]]:
        fitting = [r for r in self.routes if ipaddress.ip_address(addr) in r[0]]
        best = min(((-r[0].prefixlen, r[4]) for r in fitting), default=None)
        return [r for r in fitting if (-r[0].prefixlen, r[4]) == best]

    def way(self, conn: Conn, sender: int) -> Hop | None:
        """The hop of a connection. Among equals it is the product's choice, as long as it is one of them; one that comes new may
        take it over. Without any route it stays."""
        legal = self.hops(hop_side(conn, sender))
        known = conn.ways[sender]
        if not legal:
            return known[0] if known else None
        stays = known is not None and known[0] in legal
        open_to = [h for h in legal if not (stays and known and h in known[1] and h != known[0])]
        hop = open_to[0] if len(open_to) == 1 else self.pick(conn, sender, open_to)
        if hop is None:  # it does not show yet
            return open_to[0]
        conn.ways[sender] = (hop, frozenset(legal))
        return hop

    def mtu(self, conn: Conn, sender: int, hop: Hop) -> int:
        """What may leave by this hop of the connection."""
        own = self.hops(hop_side(conn, sender)).get(hop, 0)
        return min(own or 65535, self.ports[hop[0]][1])

    def source(self, addr: str) -> str:
        """The balancer's own address on the way there, as the route names it, or the route to its gateway; "" when neither does."""
        found = next(iter(self._best_routes(addr)), None)
        if found and found[3] == "unicast" and not found[6] and found[1]:
            found = next(iter(self._best_routes(found[1])), None)
        return found[6] if found and found[3] == "unicast" else ""

    def usable(self, conn: Conn) -> bool:
        service = self.services.get(conn.service)
        return service is not None and any(
            m.id == conn.member and (m.weight or m.id in service.draining) for m in service.members
        )

    @property
    def tick(self) -> int:
        return self.now * TICKS // 1_000_000_000

    def deadline(self, conn: Conn) -> int:
        """Tick after which an idle connection ends."""
        own = self.conn_timeouts[conn.service] if conn.proto == UDP or conn.state in ("TCP_EST", "SCTP_EST") else 0
        seconds = own or self.timeouts[conn.state]
        return conn.last_seen + seconds * TICKS

    def taken(self) -> dict[str, int]:
        """Things held now, by the names of counters.def."""
        conns = self.conns
        return {
            "conns": len(conns),
            "half_open": sum([c.half_open for c in conns]),
            "lip_ports": len(conns),
            "endpoints": len({(c.proto, c.lip[0], c.rs) for c in conns}),
            "held": self.datagrams.held,
            "datagrams": len(self.datagrams.table),
            "waiting": sum([len(n.waiting) for n in self.neighbours.values()]),
        }

    # ---- a frame comes in ----

    def receive(self, port: int, frame: bytes) -> str:
        """The outcome: to_rs, to_client, answered, absorbed, passed, parked or a drop reason."""
        self.begin_turn()
        self.count["rx_packets"] += 1
        self.count["rx_bytes"] += len(frame)
        outcome = self._receive(port, frame)
        self.count[outcome] += 1
        return outcome

    def _receive(self, port: int, frame: bytes) -> str:
        if len(frame) < 14:
            return self._pass(port, frame, "truncated")
        ethertype = struct.unpack_from("!H", frame, 12)[0]
        if ethertype == wire.ETH_ARP:
            return self._arp(port, frame)
        if ethertype not in (wire.ETH_IP4, wire.ETH_IP6):
            return self._pass(port, frame, "ether_type")
        reason = malformed(frame) if ethertype == wire.ETH_IP4 else malformed6(frame)
        if reason:
            return self._pass(port, frame, reason)
        f = wire.read(frame)
        fragment = is_fragment(f)
        if f.proto in (TCP, UDP, SCTP) and not fragment and not source_routed(frame):
            known = self.by_key.get(f.flow)
            if known:
                outcome = self._hit(port, f, *known)
                if outcome:
                    return outcome
        if wire.is6(f.src) and f.proto == wire.ICMP6 and not fragment and f.icmp_type in (135, 136):
            return self._discovery(port, f)
        if not self.owned(f.dst):
            return self._pass(port, frame, "not_ours")
        if f.src == f.dst:
            return "land"
        if martian(f.src) or self.owned(f.src):
            return "martian"
        if source_routed(frame):
            return "source_route"
        if fragment:
            return self._fragment(port, f)
        if f.proto == (wire.ICMP6 if wire.is6(f.src) else wire.ICMP):
            if f.icmp_type == (128 if wire.is6(f.src) else 8):
                return self._echo(port, f)
            return self._icmp_error(port, f) if icmp.is_error(f) else "icmp"
        if f.proto not in (TCP, UDP, SCTP):
            return "protocol"
        return self._miss(port, f)

    def _pass(self, port: int, frame: bytes, reason: str) -> str:
        if port not in self.punt:
            return reason
        if reason == "not_ours":
            frame = self._completed(frame)
        self._send(-1 - port, frame)
        return "passed"

    def _completed(self, frame: bytes) -> bytes:
        """A TAP cannot say that hardware should do it: the host gets finished checksums."""
        f = wire.read(frame)
        if f.proto not in (TCP, UDP, SCTP) or is_fragment(f) or not left_to_hardware(f):
            return frame
        self.count["checksums_completed"] += 1
        if f.proto == SCTP:
            end = 14 + f.total
            return frame[: f.l4] + sctp.completed(frame[f.l4 : end]) + frame[end:]
        segment = bytearray(frame[f.l4 :])
        self._checksum(f, segment, f.src, f.dst)
        return frame[: f.l4] + bytes(segment)

    def _send(self, port: int, frame: bytes) -> None:
        if self.delaying:
            return self.late.append((port, frame))
        self.sent.append((port, frame))
        self.count["tx_packets"] += 1
        self.count["tx_bytes"] += len(frame)
        return None

    # ---- a fragment ----

    def begin_turn(self) -> None:
        for d in self.datagrams.expired(self.tick, self.timeouts.get("FRAGMENTS", 2) * TICKS):
            self.count["fragment_timeout"] += len(d.held)

    def end_turn(self) -> None:
        late, self.late = self.late, []
        for port, frame in late:
            self._send(port, frame)

    def _fragment(self, port: int, f: wire.Frame) -> str:
        six, p = wire.is6(f.src), Piece.of(f)
        if f.proto == (wire.ICMP6 if six else wire.ICMP):
            if p.offset == 0 and f.icmp_type < 0:
                return "fragment_tiny"
            return self._echo_piece(port, f) if p.offset or f.icmp_type == (128 if six else 8) else "icmp"
        if not six and f.proto not in (TCP, UDP):
            return "protocol"
        if not p.data or (p.more and len(p.data) % 8) or p.offset + len(p.data) + p.head > 65535:
            return "fragment_length"
        d = self.datagrams.get(p.key, self.tick)
        if d is None:
            return "fragment_table"
        reason = self.datagrams.note(d, p, self.tick)
        if not reason and p.offset == 0:
            reason = d.refused = incomplete(f)
            d.known = None if reason else (f.proto, f.sport, f.dport, f.flags)
        if d.refused:
            self.count[d.refused] += len(d.held)
            d.held.clear()
        if reason:
            return reason
        if not d.known:
            return self.datagrams.hold(d, port, f)
        outcome = self._piece(port, f, d)
        self.delaying = True
        while d.held:
            self.count[self._piece(*d.held.pop(0), d)] += 1
        self.delaying = False
        return outcome

    def _piece(self, port: int, f: wire.Frame, d: Datagram) -> str:
        assert d.known is not None
        first = Piece.of(f).offset == 0
        if not first:
            f = replace(f, proto=d.known[0], sport=d.known[1], dport=d.known[2])
        known = self.by_key.get(f.flow)
        if known and first and reborn(f, *known):
            self._close(known[0])
            known = None
        if not known and not first:  # of a one-packet service
            known = next(((conn, _CLIENT) for conn in self.conns if conn is d.conn), None)
        if not known:
            return self._miss(port, f, d) if first else unwelcome(f.proto, f.sport, f.dport, d.known[3]) or "no_conn"
        if known[0].quiescent and not self.usable(known[0]):
            self._close(known[0])
            again = first and known[0].proto == UDP and known[1] == _CLIENT
            return self._miss(port, f, d) if again else "quiesced"
        return self._forward(port, f, *known, d)

    def _may_cross(self, f: wire.Frame) -> str:
        """RFC 7915 4.5: a checksum cannot be computed from a part; 5.1: what is cut must begin with the L4 header."""
        p = Piece.of(f)
        if p.offset == 0 and f.l4 != part_at(f):
            return "ext_headers"
        if p.offset == 0 and f.proto == UDP and f.checksum == 0:
            return "udp_no_checksum"
        return "fragment_length" if wire.is6(f.src) and p.offset + len(p.data) + 20 > 65535 else ""

    def _numbered(self, conn: Conn, frame: bytes, sender: int) -> int:
        return 50_000 + len(self.names)

    def _name(self, conn: Conn, frame: bytes, sender: int) -> int:
        """The product's choice of an identification. RFC 6864 4.3: not one that the same receiver may still have of the same sender."""
        new = self.identify(conn, frame, sender)
        src, dst = (conn.lip[0], conn.rs[0]) if sender == _CLIENT else (conn.vip[0], conn.client[0])
        if self.tick - self.names.get((src, dst, new), -9999) < 30 * TICKS:
            raise Illegal(f"identification {new} from {src} to {dst} again")
        self.names[src, dst, new] = self.tick
        return new

    def _rewritten_piece(self, f: wire.Frame, conn: Conn, sender: int, src: str, dst: str, d: Datagram) -> bytes:
        """IP header and part, with the datagram's new identification."""
        d.new_id = self._name(conn, f.raw, sender) if d.new_id is None else d.new_id
        p, data = Piece.of(f), bytearray(f.raw[f.l4 : 14 + f.total])
        ports = (conn.lip[1], conn.rs[1]) if sender == _CLIENT else (conn.vip[1], conn.client[1])
        if p.offset == 0:
            struct.pack_into("!HH", data, 0, *ports)
            if f.proto == TCP:
                self._shift_numbers(data, f, conn, sender, Change())
                if wire.is6(f.src) != wire.is6(src) and f.flags & SYN:
                    self._clamp(data, conn)
            self._checksum(f, data, src, dst, piece=True)
        assert d.known is not None
        proto, length = d.known[0], len(data)
        if wire.is6(src) and wire.is6(f.src):
            header = bytearray(f.raw[14 : f.l4])
            header[7] -= 1
            header[8:40] = wire.addr_bytes(src) + wire.addr_bytes(dst)
            struct.pack_into("!I", header, f.frag_at - 14 + 4, d.new_id)
            return bytes(header + data)
        if wire.is6(src):
            cut = struct.pack("!BBHI", proto, 0, p.offset | p.more, d.new_id)
            return wire.ipv6(cut + data, src=src, dst=dst, proto=wire.FRAGMENT, ttl=f.ttl - 1, tos=f.tos)
        options, frag = (b"", p.offset // 8 | p.more << 13) if wire.is6(f.src) else (f.raw[34 : f.l4], f.frag)
        header4 = {"src": src, "dst": dst, "proto": proto, "ttl": f.ttl - 1, "tos": f.tos, "ident": d.new_id}
        total = 20 + len(options) + length
        return wire.ipv4(b"", frag=frag, options=options, total=total, **header4) + data  # type: ignore[arg-type]

    def _leave(self, port: int, frame: bytes, mtu: int, conn: Conn, sender: int, came: bytes) -> None:
        """In fragments, when it is larger than the MTU. All but the first leave at the end of the turn."""
        f = wire.read(frame)
        if f.total <= mtu:
            return self._send(port, frame)
        parts = self._split4(f, mtu) if not wire.is6(f.src) else self._split6(f, mtu, conn, sender, came)
        self.count["split"] += 1
        self.count["own_packets"] += len(parts) - 1
        self._send(port, frame[:14] + parts[0])
        self.late += [(port, padded(frame[:14] + part)) for part in parts[1:]]
        return None

    def _split4(self, f: wire.Frame, mtu: int) -> list[bytes]:
        """RFC 791 3.2."""
        data, options = f.raw[f.l4 : 14 + f.total], f.raw[34 : f.l4]
        size, out = (mtu - (f.l4 - 14)) // 8 * 8, []
        fields = {"src": f.src, "dst": f.dst, "proto": f.proto, "ttl": f.ttl, "tos": f.tos, "ident": f.ident}
        for at in range(0, len(data), size):
            more = wire.MF if at + size < len(data) else 0
            some = copied_options(options) if at else options
            out.append(wire.ipv4(data[at : at + size], frag=f.frag + at // 8 | more, options=some, **fields))  # type: ignore[arg-type]
        return out

    def _split6(self, f: wire.Frame, mtu: int, conn: Conn, sender: int, came: bytes) -> list[bytes]:
        at, data, size = f.fragment[0], f.raw[f.l4 : 14 + f.total], (mtu - 48) // 8 * 8
        cut = wire.FRAGMENT in f.extensions
        proto, name = (f.raw[f.frag_at], f.frag_id) if cut else (f.proto, self._name(conn, came, sender))
        out = []
        for start in range(0, len(data), size):
            more = start + size < len(data) or f.fragment[1]
            head = struct.pack("!BBHI", proto, 0, at + start | more, name)
            part = head + data[start : start + size]
            out.append(wire.ipv6(part, src=f.src, dst=f.dst, proto=wire.FRAGMENT, ttl=f.ttl, tos=f.tos))
        return out

    # ---- a packet of a known connection ----

    def _hit(self, port: int, f: wire.Frame, conn: Conn, sender: int) -> str | None:
        """None: the connection is history, the packet opens a new one."""
        if reborn(f, conn, sender):
            self._close(conn)
            return None
        if conn.quiescent and not self.usable(conn):
            self._close(conn)
            return None if conn.proto == UDP and sender == _CLIENT else "quiesced"
        return self._forward(port, f, conn, sender)

    def _forward(self, port: int, f: wire.Frame, conn: Conn, sender: int, d: Datagram | None = None) -> str:
        """d: f is a fragment of this datagram. A later one has no L4 header, and no ICMP error is about it."""
        first = d is None or Piece.of(f).offset == 0
        if f.ttl <= 1:
            return self._error(port, f, "ttl") if first else "ttl"
        hop = self.way(conn, sender)
        if not hop:
            return "no_route"
        if hop[0] not in self.ports:
            return "port_down"
        mtu = self.mtu(conn, sender, hop)
        leaves6, came6 = wire.is6(hop_side(conn, sender)), wire.is6(f.src)
        leaving = f.total if leaves6 == came6 else 14 + f.total - f.l4 + (40 if leaves6 else 20)
        leaving += 8 if d and leaves6 and not came6 else 0
        may_split = not leaves6 and (d is not None or leaving <= 1260) if came6 else not f.frag & wire.DF
        if leaving > mtu and not may_split:
            told = max(mtu + f.total - leaving, 1280 if came6 else 0)  # RFC 8200 5: no less is believed
            return self._error(port, f, "mtu", told) if first else "mtu"
        if d is not None:
            d.refused = d.refused or (self._may_cross(f) if leaves6 != came6 else "")
            if d.refused:
                return d.refused
        if d is not None and first and sender == _CLIENT and conn.state in ("UDP_NONE", "UDP_LAST"):
            d.conn = conn
        in_pieces = d is not None or leaving > mtu
        telling = conn.telling is not None and not conn.telling.done
        if in_pieces and telling and conn.telling and conn.telling.needs_whole(f, sender):
            return "client_addr_piece"
        self.count["fragments"] += d is not None
        before = conn.half_open, conn.next_seq[_CLIENT], telling and not in_pieces
        conn.last_seen = self.tick
        conn.packets[sender] += 1
        conn.bytes[sender] += f.total
        if first or conn.proto == UDP:
            self._track(f, conn, sender)
        self.member_count[conn.member, "in_packets" if sender == _CLIENT else "out_packets"] += 1
        self.member_count[conn.member, "in_bytes" if sender == _CLIENT else "out_bytes"] += f.total
        self.count["checksums_completed"] += d is None and left_to_hardware(f)
        self.count["sctp_addresses_hidden"] += f.proto == SCTP and sctp.hides(f.raw[f.l4 : 14 + f.total])
        neighbour = self.neighbours.setdefault(hop, Neighbour())
        change = self._tell(f, conn, sender, mtu - leaving, *before, known=bool(neighbour.mac))
        if not neighbour.mac:
            if len(neighbour.waiting) >= NEIGHBOUR_QUEUE:
                return "neigh_queue_full"
            neighbour.waiting.append(Waiting(f.raw, conn, sender, port, change=change, datagram=d, mtu=mtu))
            return "parked"
        macs = self.ports[hop[0]][0], neighbour.mac
        if change.ahead:
            self.count["own_packets"] += 1
            change.ahead.alone = True
            self.late.append((hop[0], self._rewritten(alone(f), conn, sender, *macs, change.ahead)))
            self.late.append((hop[0], self._rewritten(f.raw, conn, sender, *macs, change)))
            return "to_rs"
        frame = self._rewritten(f.raw, conn, sender, *macs, change, d, mtu)
        self._leave(hop[0], frame, mtu, conn, sender, f.raw)
        return "to_rs" if sender == _CLIENT else "to_client"

    def _tell(
        self,
        f: wire.Frame,
        conn: Conn,
        sender: int,
        room: int,
        half_open: bool,
        first: int,
        telling: bool,
        *,
        known: bool,
    ) -> Change:
        """What this packet has to tell; half_open, first, telling: before it. The client's stream begins where the handshake has left
        its numbers: where the RS says."""
        t = conn.telling
        if t is None or not telling:
            return Change()
        if half_open and not conn.half_open:
            t.first = first
        change = t.turn(f, sender, conn.half_open, conn.synack_seen, room, conn.dseq or 0)
        change.dseq = conn.dseq
        if t.acked and conn.proto == TCP and change.number:
            conn.dseq, t.added = ((conn.dseq or 0) + t.adds - t.added) & MASK, t.adds
        if change.ahead and not known:
            change.ahead, change.no_room = None, True
        if change.ahead and conn.proto == TCP:
            t.sent = True
        if change.told or change.ahead:
            t.datagram_told()
            self.count["client_addr_told"] += 1
        self.count["client_addr_no_room"] += change.no_room
        return change

    def _track(self, f: wire.Frame, conn: Conn, sender: int) -> None:
        if conn.proto == UDP:
            if sender == _RS and conn.state in ONE_PACKET:
                conn.state, conn.finished = "UDP_LAST", True
            elif sender == _RS:
                conn.state = "UDP_NORM"
            return
        if conn.proto == SCTP:
            conn.state = sctp.next_state(f, conn.tags, sender, conn.state)
            conn.finished |= conn.state == "SCTP_CLOSED"
            return
        before, conn.state = conn.state, self._next_state(f, conn, sender)
        last_ack = before == conn.state == "TIME_WAIT" and not f.flags & FIN
        conn.finished |= last_ack or conn.state == "TCP_CLOSE"

    def _next_state(self, f: wire.Frame, conn: Conn, sender: int) -> str:
        """RFC 9293, RFC 5961 for somebody in the middle: what nobody can have sent who sees the connection moves nothing."""
        if f.flags & RST:
            return self._after_reset(f, conn, sender)
        if f.flags & SYN:
            return conn.state if f.flags & FIN else self._after_syn(f, conn, sender)
        if not f.flags & ACK:
            return conn.state
        state = conn.state
        if state == "SYN_RECV":
            if not conn.synack_seen or (sender == _CLIENT and not acknowledges(conn, _RS, f.ack)):
                return state
            state = next_state(state, sender, ACK, conn.synack_seen)
        known, window = conn.next_seq[sender], conn.windows[sender]
        end = (f.seq + len(f.payload) + bool(f.flags & FIN)) & MASK
        fits = (f.seq - known + window) & MASK <= 2 * window
        beyond = 1 <= (end - known) & MASK <= window
        if beyond:
            conn.next_seq[sender] = end
        if f.flags & FIN:
            return next_state(state, sender, FIN, conn.synack_seen) if fits and beyond else state
        if beyond and state == "TIME_WAIT":  # who sends more has not finished after all
            conn.finished = False
            return ("FIN_WAIT", "CLOSE_WAIT")[sender]
        if beyond and state == ("CLOSE_WAIT", "FIN_WAIT")[sender]:
            return "TCP_EST"
        return next_state(state, sender, ACK, conn.synack_seen)

    def _after_reset(self, f: wire.Frame, conn: Conn, sender: int) -> str:
        known, window, state = conn.next_seq[sender], conn.windows[sender], conn.state
        if state == "SYN_RECV":
            answers = sender == _RS and f.flags & ACK and acknowledges(conn, _CLIENT, f.ack - (conn.dseq or 0))
            return "TCP_CLOSE" if answers or (conn.synack_seen and f.seq == known) else state
        behind = (known - f.seq) & MASK
        if behind == 0 or (behind == 1 and state != "TCP_EST"):
            return next_state(state, sender, RST, conn.synack_seen)
        if state in _LIVING and (f.seq - known + window) & MASK <= 2 * window:
            conn.doubt = True
        return state

    def _after_syn(self, f: wire.Frame, conn: Conn, sender: int) -> str:
        end, state = (f.seq + len(f.payload) + 1) & MASK, conn.state
        if sender == _CLIENT:
            if f.flags & ACK:
                return state
            if state == "SYN_RECV" and not conn.synack_seen:
                conn.next_seq[_CLIENT] = end
                conn.windows[_RS] = max(window_in(f), conn.windows[_RS])
            conn.doubt |= state in _LIVING
            return state
        if not f.flags & ACK:
            return state
        acked = (f.ack - (conn.dseq or 0)) & MASK
        anew = state in _LIVING and conn.doubt
        if not anew and (state != "SYN_RECV" or not acknowledges(conn, _CLIENT, acked)):
            return state
        if conn.synack_seen and not anew and acknowledges(conn, _RS, end):
            return state
        conn.synack_seen, conn.doubt = True, False
        conn.next_seq = [acked, end]
        conn.windows[_CLIENT] = window_in(f)
        if scale_of(f) is None:
            conn.windows[_RS] = 1 << 16
        if anew and conn.telling:
            conn.telling.again(acked)
        if anew:  # the RS has forgotten all that it knew
            self.wild.add((conn.lip[0], conn.rs))
        return "TCP_EST" if anew else state

    def _remember(self, frame: bytes, conn: Conn) -> None:
        """What the RS remembers of this local port, in its numbers: what it has received without a gap. A client that begins twice with
        different numbers, that pushes its own numbers a gigabyte ahead, or whose clock is faster than RFC 7323 5.4 allows, spoils the order
        for the endpoint: nothing is asked of it any more."""
        f, floor = wire.read(frame), self.floors.setdefault((conn.proto, *conn.lip, *conn.rs), Floor())
        if f.flags & RST:
            return
        if conn.received is None:
            conn.received = Received(f.seq)
        leaps = is_first(f.flags) and f.seq != conn.received.isn
        if is_first(f.flags) or conn.state != "SYN_RECV":  # before the handshake is over nothing but the SYN is taken
            conn.received.take(f.seq, len(f.payload) + bool(f.flags & SYN) + bool(f.flags & FIN))
        seen = conn.received.next
        floor.seq = seen if floor.seq is None or later(seen, floor.seq) else floor.seq
        leaps |= (conn.at_rs(conn.next_seq[_CLIENT]) - seen) & MASK > 1 << 30
        if conn.stamped and f.ts is not None:
            conn.first_stamp = conn.first_stamp or (f.ts[0], self.now)
            fastest = conn.first_stamp[0] + (self.now - conn.first_stamp[1]) // 1_000_000 + 1
            leaps |= later(f.ts[0], fastest & MASK)
            floor.ts = f.ts[0] if floor.ts is None or later(f.ts[0], floor.ts) else floor.ts
        if leaps:
            self.wild.add((conn.lip[0], conn.rs))

    def _rewritten(
        self,
        frame: bytes,
        conn: Conn,
        sender: int,
        eth_src: str,
        eth_dst: str,
        change: Change,
        d: Datagram | None = None,
        mtu: int = 65535,
    ) -> bytes:
        """RFC 1624: a right checksum stays right, a wrong one stays as wrong; one left to hardware is completed."""
        f = wire.read(frame)
        if not conn.lip[0] and (choice := self.choose(conn, frame)):
            conn.lip = (choice.lip, choice.lport)
        if conn.proto == TCP and (conn.dseq is None or conn.dts is None):
            self._learn_shifts(conn, frame, sender)
        src, dst = (conn.lip, conn.rs) if sender == _CLIENT else (conn.vip, conn.client)
        if d is not None:
            packet = self._rewritten_piece(f, conn, sender, src[0], dst[0], d)
            out = wire.ether(packet, dst=eth_dst, src=eth_src, ethertype=wire.ethertype_of(src[0]))
            if conn.proto == TCP and sender == _CLIENT and Piece.of(f).offset == 0:
                self._remember(out, conn)
            return padded(out) if wire.is6(f.src) != wire.is6(src[0]) else out
        segment = bytearray(frame[f.l4 : 14 + f.total])
        struct.pack_into("!HH", segment, 0, src[1], dst[1])
        if f.proto == TCP:
            self._shift_numbers(segment, f, conn, sender, change)
            if wire.is6(f.src) != wire.is6(src[0]) and f.flags & SYN:
                self._clamp(segment, conn)
        changed(segment, f.proto, change)
        if f.proto == SCTP:
            segment = bytearray(sctp.rewritten(frame[f.l4 : 14 + f.total], src[1], dst[1]))
        else:
            self._checksum(f, segment, src[0], dst[0], needed=wire.is6(src[0]))
        if change.layer and not wire.is6(src[0]):
            segment[6:8] = b"\0\0"  # DPVS sends it so
        header = self._ip_header(f, conn, sender, src[0], dst[0], change, len(change.layer) + len(segment), mtu)
        packet = header + change.layer + bytes(segment)
        out = wire.ether(packet, dst=eth_dst, src=eth_src, ethertype=wire.ethertype_of(src[0]))
        if wire.is6(f.src) != wire.is6(src[0]) or change.grows or (change.told and change.ip_options):
            out = padded(out)
        if conn.proto == TCP and sender == _CLIENT:
            self._remember(out, conn)
        return out

    def _ip_header(
        self, f: wire.Frame, conn: Conn, sender: int, src: str, dst: str, change: Change, length: int, mtu: int
    ) -> bytes:
        """All that stays stays; between the families the header is made anew, without options (RFC 7915 4.1, 5.1). length: of what
        follows."""
        came, proto = 14 + f.total - f.l4, 248 if change.layer else f.proto
        if wire.is6(src) and wire.is6(f.src):
            header = bytearray(f.raw[14 : f.l4])
            header[7] -= 1
            header[8:40] = wire.addr_bytes(src) + wire.addr_bytes(dst)
            struct.pack_into("!H", header, 4, len(header) - 40 + length)
            last, at, following = 6, 40, header[6]
            while at < len(header):  # the extension header before the payload names what the payload is
                last, size = at, 8 if following == wire.FRAGMENT else (header[at + 1] + 1) * 8
                following, at = header[at], at + size
            header[last] = proto
            return bytes(header)
        if wire.is6(src):
            return wire.ipv6(b"", src=src, dst=dst, proto=proto, ttl=f.ttl - 1, tos=f.tos, payload_len=length)
        if not wire.is6(f.src):
            options, ident, frag = f.raw[34 : f.l4], f.ident, f.frag
            if not frag & wire.DF and f.total > min(576, mtu):  # it may be fragmented, here or further on
                ident = self._name(conn, f.raw, sender)
        elif came + 20 > 1260 or change.alone:
            options, ident, frag = b"", 0, wire.DF
        else:
            options, ident, frag = b"", self._name(conn, f.raw, sender), 0
        if change.ip_options is not None:
            options = change.ip_options
        total = 20 + len(options) + length
        return wire.ipv4(
            b"",
            src=src,
            dst=dst,
            proto=proto,
            ttl=f.ttl - 1,
            tos=f.tos,
            ident=ident,
            frag=frag,
            options=options,
            total=total,
        )

    def _clamp(self, segment: bytearray, conn: Conn) -> None:
        """The MSS option of a SYN: what either side may send must fit both ports, whichever header it has there."""
        most = 65535
        for way in (_CLIENT, _RS):
            hop = self.way(conn, way)
            if hop and hop[0] in self.ports:
                most = min(most, self.mtu(conn, way, hop) - (60 if wire.is6(hop_side(conn, way)) else 40))
        header = (segment[12] >> 4) * 4
        for kind, at, size in wire.tcp_options(bytes(segment[20:header])):
            if kind == 2 and size == 4 and struct.unpack_from("!H", segment, 22 + at)[0] > most:
                struct.pack_into("!H", segment, 22 + at, most)

    @staticmethod
    def _shift_numbers(segment: bytearray, f: wire.Frame, conn: Conn, sender: int, change: Change) -> None:
        def shift(at: int, by: int) -> None:
            struct.pack_into("!I", segment, at, (struct.unpack_from("!I", segment, at)[0] + by) & MASK)

        def back(at: int) -> None:
            shift(at, -dseq)
            if change.number:
                struct.pack_into("!I", segment, at, change.number(struct.unpack_from("!I", segment, at)[0]))

        dseq, dts = conn.dseq if change.dseq is None else change.dseq, conn.dts or 0
        dseq = dseq or 0
        if sender == _CLIENT:
            shift(4, dseq + change.shift)
        elif f.flags & ACK:
            back(8)
        header = (segment[12] >> 4) * 4
        for kind, at, size in wire.tcp_options(bytes(segment[20:header])):
            option = 20 + at
            if kind == 8 and size == 10:
                if sender == _CLIENT:
                    shift(option + 2, dts)
                elif f.flags & ACK:
                    shift(option + 6, -dts)
            elif kind == 5 and sender == _RS and change.no_sack:
                segment[option : option + size] = b"\1" * size
            elif kind == 5 and sender == _RS and size % 8 == 2:  # RFC 2018: pairs of numbers
                for number in range(2, size, 4):
                    back(option + number)

    @staticmethod
    def _checksum(
        f: wire.Frame, segment: bytearray, src: str, dst: str, *, needed: bool = False, piece: bool = False
    ) -> None:
        """The checksum is off by exactly as much as it was in the packet that came, f. needed: UDP must have one. piece: a part of it, by which
        it can be off by anything."""
        at = 16 if f.proto == TCP else 6
        whole = f.proto == TCP or piece
        came = 14 + f.total - f.l4 if whole else struct.unpack_from("!H", f.raw, f.l4 + 4)[0]
        length = len(segment) if whole else struct.unpack_from("!H", segment, 4)[0]
        before = f.raw[f.l4 : f.l4 + came]
        old = struct.unpack_from("!H", before, at)[0]
        if old == 0 and f.proto == UDP and not needed:
            return
        error = (wire.residue(wire.pseudo_header(f.src, f.dst, f.proto, came)) + wire.residue(before)) % 0xFFFF
        if (not piece and left_to_hardware(f)) or (old == 0 and f.proto == UDP):
            error = 0
        struct.pack_into("!H", segment, at, 0)
        total = wire.residue(wire.pseudo_header(src, dst, f.proto, length)) + wire.residue(bytes(segment[:length]))
        value = (error - total) % 0xFFFF
        struct.pack_into("!H", segment, at, 0xFFFF if f.proto == UDP and value == 0 else value)

    # ---- a packet of no connection ----

    def _miss(self, port: int, f: wire.Frame, d: Datagram | None = None) -> str:
        service = next(
            (s for s in self.services.values() if (s.vip, s.vport, s.proto) == (f.dst, f.dport, f.proto)), None
        )
        if reason := unwelcome(f.proto, f.sport, f.dport, f.flags):
            return reason
        if (f.proto == TCP and not is_first(f.flags)) or (f.proto == SCTP and not sctp.is_opening(f)):
            return "no_conn"
        if service is None and f.proto == UDP and self._kind(f.dst) == "lip":
            return "no_conn"
        if reason := self._refused(f.src, service):
            return reason
        if service is not None:
            return self._open(port, f, service, d)
        if not self.unserved_reset or d is not None:
            return "no_service"
        return self._reset(port, f) if f.proto == TCP else self._error(port, f, "no_service")

    def _kind(self, addr: str) -> str:
        owned = self.owned(addr)
        return owned[1] if owned else ""

    def _open(self, port: int, f: wire.Frame, service: Service, d: Datagram | None = None) -> str:
        if not service.lips:
            return "no_lip"
        resets = service.no_rs_reset and f.proto == TCP and not d
        unusable = not any(m.weight for m in service.members)
        if unusable and not service.persistent:
            return self._reset(port, f) if resets else "no_rs"
        if reason := self._beyond(service, f.src):
            return reason
        member = self._named(f, service, d) or self._sticky(f, service, d)
        if member is None:
            return self._reset(port, f) if resets else "no_rs" if unusable else "rs_full"
        if f.proto != UDP and service.half_open and len(self._half_open(service)) >= service.half_open:
            self._evict(service)
        if len(self.conns) >= self.capacity and not self._evict(service) and not self._evict_expendable(f):
            return "table_full"
        if not self._fitting_lips(service, member.rip):
            return "no_lip"
        conn = Conn(
            f.proto,
            (f.src, f.sport),
            (f.dst, f.dport),
            ("", 0),
            (member.rip, member.rport),
            service.id,
            member.id,
            {TCP: "SYN_RECV", SCTP: "SCTP_INIT"}.get(f.proto, "UDP_NONE" if service.one_packet else "UDP_ONEWAY"),
            self.tick,
            self.tick,
            service.expire_quiescent,
        )
        if conn.proto == TCP:
            conn.stamped = f.ts is not None
            conn.dseq, conn.dts = None, None if conn.stamped else 0
            conn.windows[_RS] = window_in(f)
        if conn.proto == SCTP:
            conn.tags = sctp.opened(f)
        conn.counted = service.per_client > 0
        if service.client_addr != "none":
            conn.telling = Telling(service.client_addr, conn.proto, conn.client, conn.vip, conn.rs[0])
        if not self._free_ports(conn, service):
            finished = [c for c in self.conns if self._shares_ports(c, conn, service) and c.finished]
            if not finished:
                self._evict(service)
            if not finished and not self._free_ports(conn, service):
                return "no_lip_port"
        else:
            finished = []
        choice = self.choose(conn, f.raw)
        if choice is not None:
            self._adopt(conn, choice, service, finished)
        elif self._leaves_at_once(f, member):
            raise Illegal(f"no local port for {wire.describe(f.raw)}, though some are free")
        else:
            conn.lip = ("", -self.count["conns_opened"])  # not seen by anybody, and it must end before it is
            if finished:
                raise Illegal("cannot be followed")
        hops = [self.hops(member.rip), self.hops(f.src)]
        for equals in hops:
            if len(equals) == 1:  # which of several is chosen does not show yet
                self.neighbours.setdefault(*equals, Neighbour())
        if not all(hops):
            return "no_route"
        self.conns.append(conn)
        if conn.state not in ONE_PACKET:
            self.by_key[conn.proto, *conn.client, *conn.vip] = (conn, _CLIENT)
        self.by_key[conn.proto, *conn.rs, *conn.lip] = (conn, _RS)
        self.count["conns_opened"] += 1
        self.member_count[member.id, "conns"] += 1
        return self._forward(port, f, conn, _CLIENT, d)

    def _named(self, f: wire.Frame, service: Service, d: Datagram | None) -> Member | None:
        """The RS that a QUIC connection ID names; one of weight 0 keeps its connections unless they expire with it."""
        named = None
        if service.quic and d is None:
            named = quic.server(f.payload[: struct.unpack_from("!H", f.raw, f.l4 + 4)[0] - 8])
        for m in service.members if named else []:
            stays = m.weight or m.id in service.draining or not service.expire_quiescent
            if named and named.is_at(m.rip, m.rport) and stays:
                if not (self._admits(m) and self._takes(m)):
                    return None
                self.count["quic_moved"] += 1
                return m
        return None

    # ---- limits ----

    def _beyond(self, service: Service, client: str) -> str:
        """The limit of the service that one more connection of this client would break."""
        its = [c for c in self.conns if c.service == service.id]
        if service.max_conns and len(its) >= service.max_conns:
            return "limit_conns"
        same = [c for c in its if c.counted and line_of(c.client[0]) == line_of(client)]
        if service.per_client and len(same) >= service.per_client:
            return "limit_client"
        pace = self.paces.setdefault(("service", service.id), Pace())
        return "" if pace.take(service.new_per_s, self.now) else "limit_new"

    def _pick_rs(self, f: wire.Frame, service: Service, d: Datagram | None) -> Member | None:
        """Backup servers when no active one can take it, and a sorry server after them."""
        for role in ("active", "backup", "sorry"):
            if not any(m.weight and m.role == role for m in service.members):
                continue
            member = self._scheduled(f, service, d, role)
            if member is not None:
                assert self._takes(member)
                return member
        return None

    def _sticky(self, f: wire.Frame, service: Service, d: Datagram | None) -> Member | None:
        """The RS that this client has; else one that it keeps from now on. A sorry server is nobody's own.
        Left out: that a connection that lives renews it."""
        if not service.persistent:
            return self._pick_rs(f, service, d)
        network = str(ipaddress.ip_network(f"{f.src}/{service.persistent_plen}", strict=False))
        id, end = self.templates.get((service.id, network), (-1, 0))
        now = self.now // 1_000_000_000
        known = next((m for m in service.members if m.id == id and now < end), None)
        if known and known.id in service.draining:
            stays = service.draining[known.id]
        else:
            stays = known is not None and (known.weight > 0 or not service.expire_quiescent)
        member = known if known and stays and self._admits(known) and self._takes(known) else self._pick_rs(f, service, d)
        if member and member.role != "sorry":
            self.templates[service.id, network] = member.id, now + service.persistent + 1
        return member

    def _held(self, m: Member) -> int:
        return sum(c.member == m.id for c in self.conns)

    def _admits(self, m: Member) -> bool:
        held, pace = self._held(m), self.paces.setdefault(("member", m.id), Pace())
        if m.upper and m.id in self.overloaded and (held < m.lower if m.lower else held * 4 < m.upper * 3):
            self.overloaded.remove(m.id)
        full = m.upper and (m.id in self.overloaded or held >= m.upper)
        return not full and pace.admits(m.new_per_s, self.now)

    def _takes(self, m: Member) -> bool:
        """One more for this RS, whatever else it is; false: it has as many as it may."""
        if m.upper and self._held(m) + 1 >= m.upper:
            self.overloaded.add(m.id)
        pace = self.paces.setdefault(("member", m.id), Pace())
        return not (m.upper and self._held(m) + 1 > m.upper) and pace.take(m.new_per_s, self.now)

    def _leaves_at_once(self, f: wire.Frame, member: Member) -> bool:
        hop, mtu = next(iter(self.hops(member.rip).items()), (None, 0))
        if hop is None or hop[0] not in self.ports or not self.neighbours.get(hop, Neighbour()).mac:
            return False
        return f.ttl > 1 and f.total <= min(mtu or 65535, self.ports[hop[0]][1])

    def _half_open(self, service: Service) -> list[Conn]:
        """Oldest first."""
        return [c for c in self.conns if c.service == service.id and c.half_open]

    def _shares_ports(self, other: Conn, conn: Conn, service: Service) -> bool:
        lips = set(self._fitting_lips(service, conn.rs[0]))
        its = {other.lip[0]} if other.lip[0] else set(self._fitting_lips(self.services[other.service], conn.rs[0]))
        return other.proto == conn.proto and other.rs == conn.rs and bool(its & lips)

    def _free_ports(self, conn: Conn, service: Service) -> int:
        """Local ports of all LIPs of the service that are free towards this RS."""
        used = sum(self._shares_ports(c, conn, service) for c in self.conns)
        return len(self.lports) * len(set(self._fitting_lips(service, conn.rs[0]))) - used

    def _fitting_lips(self, service: Service, rip: str) -> list[str]:
        """LIPs of the RS's family."""
        return [self.lip_names[i] for i in service.lips if wire.is6(self.lip_names[i]) == wire.is6(rip)]

    def _no_choice(self, conn: Conn, frame: bytes) -> Choice | None:
        raise Illegal("nobody chooses")

    def _adopt(self, conn: Conn, choice: Choice, service: Service, finished: list[Conn]) -> None:
        """Check the product's choice and take it over. With no port free it takes that of a finished connection."""
        if choice.lip not in self._fitting_lips(service, conn.rs[0]):
            raise Illegal(f"{choice.lip} is no LIP of service {service.id}")
        if choice.lport not in self.lports:
            raise Illegal(f"lport {choice.lport}")
        conn.lip = (choice.lip, choice.lport)
        holder = self.by_key.get((conn.proto, *conn.rs, *conn.lip))
        if holder and holder[0] in finished:
            self._close(holder[0])
        elif holder:
            raise Illegal(f"{conn.lip} towards {conn.rs} is taken")

    def _no_observation(self, conn: Conn, frame: bytes, sender: int) -> tuple[int, int]:
        raise Illegal("nobody observes")

    def _learn_shifts(self, conn: Conn, frame: bytes, sender: int) -> None:
        """The shifts show when the first packet leaves. A SYN must look new to the RS: numbers later than all that it may
        remember of this local port (RFC 6191, RFC 7323 5.3)."""
        dseq, dts = self.observe(conn, frame, sender)
        conn.dseq = dseq if conn.dseq is None else conn.dseq
        conn.dts = dts if conn.dts is None else conn.dts
        f, floor = wire.read(frame), self.floors.get((conn.proto, *conn.lip, *conn.rs))
        if floor is None or (conn.lip[0], conn.rs) in self.wild or sender == _RS or not is_first(f.flags):
            return
        isn = (f.seq + conn.dseq) & MASK
        if floor.seq is not None and not later(isn, (floor.seq - 1) & MASK):
            raise Illegal(f"ISN {isn} is not later than {floor.seq} sent before from {conn.lip} to {conn.rs}")
        if floor.ts is not None and f.ts is not None and later(floor.ts, (f.ts[0] + conn.dts) & MASK):
            raise Illegal(
                f"TSval {(f.ts[0] + conn.dts) & MASK} is older than {floor.ts} sent before from {conn.lip} to {conn.rs}"
            )

    # ---- the end of a connection ----

    def _close(self, conn: Conn) -> None:
        self.conns.remove(conn)
        if conn.state not in ONE_PACKET:
            del self.by_key[conn.proto, *conn.client, *conn.vip]
        del self.by_key[conn.proto, *conn.rs, *conn.lip]
        self.count["conns_closed"] += 1

    def _evict(self, service: Service) -> bool:
        """Close the oldest half-open connection of the service."""
        half_open = self._half_open(service)
        if not half_open:
            return False
        self._close(half_open[0])
        self.count["half_open_evicted"] += 1
        return True

    def _evict_expendable(self, f: wire.Frame) -> bool:
        """Close the connection with which least is lost: finished, never answered, half-closed, in this order; of equal
        ones the longest idle, and of those any. Nobody who said something in the last second goes."""
        ranks = dict.fromkeys(("SYN_RECV", "UDP_ONEWAY", "UDP_NONE", "SCTP_INIT"), 1) | dict.fromkeys(_CLOSING, 2)
        idle = [c for c in self.conns if self.tick - c.last_seen >= 64 and (c.finished or c.state in ranks)]
        if not idle:
            return False
        order = [(0 if c.finished else ranks[c.state], c.last_seen) for c in idle]
        self._close(self.expend([c for c, rank in zip(idle, order, strict=True) if rank == min(order)], f.raw))
        self.count["expendable_evicted"] += 1
        return True

    def _no_pick(self, conn: Conn, sender: int, hops: list[Hop]) -> Hop | None:
        raise Illegal("nobody tells which of the equals was chosen")

    def _no_expense(self, candidates: list[Conn], frame: bytes) -> Conn:
        raise Illegal("nobody tells who went")

    def expire(self, conn: Conn) -> None:
        """Its time is over. An ESTABLISHED connection tells both sides, with numbers they expect (RFC 5961 3.2)."""
        self._close(conn)
        if conn.state != "TCP_EST":
            return
        client, server = conn.next_seq
        self._own_reset(conn, _CLIENT, conn.at_rs(client), server)
        self._own_reset(conn, _RS, server, client)

    def asks_at(self, conn: Conn) -> int | None:
        """The tick from which a doubtful connection's RS is asked whether it still knows it; None: nobody asks."""
        asks = conn.last_seen + self.timeouts["TCP_CLOSE"] * TICKS
        return asks if conn.doubt and conn.state in _LIVING and asks <= self.deadline(conn) else None

    def question(self, conn: Conn) -> tuple[int, bytes] | None:
        """The segment that asks: its number lies just below the window, so a living RS answers and changes nothing (RFC 9293
        3.10.7.4). None: there is no way to the RS."""
        seq = conn.at_rs(conn.next_seq[_CLIENT]) - conn.windows[_CLIENT] - 1
        return self._own_segment(conn, _CLIENT, ACK, seq & MASK, conn.next_seq[_RS])

    def asked(self, conn: Conn, port: int, frame: bytes) -> None:
        conn.doubt = False
        self.count["probes_sent"] += 1
        self.count["own_packets"] += 1
        self._send(port, frame)

    def _own_reset(self, conn: Conn, sender: int, seq: int, ack: int) -> None:
        made = self._own_segment(conn, sender, RST | ACK, seq, ack)
        if made:
            self.count["resets_sent"] += 1
            self.count["own_packets"] += 1
            self._send(*made)

    def _own_segment(self, conn: Conn, sender: int, flags: int, seq: int, ack: int) -> tuple[int, bytes] | None:
        """As the sender would say it."""
        src, dst = (conn.lip, conn.rs) if sender == _CLIENT else (conn.vip, conn.client)
        hop = self.way(conn, sender)
        if not hop or hop[0] not in self.ports or not self.neighbours.get(hop, Neighbour()).mac:
            return None
        frame = wire.tcp(
            *src,
            *dst,
            flags,
            seq=seq,
            ack=ack,
            window=0,
            ttl=64,
            eth_src=self.ports[hop[0]][0],
            eth_dst=self.neighbours[hop].mac,
        )
        return hop[0], padded(frame)

    # ---- answers: back the way the packet came ----

    def _answer(self, port: int, f: wire.Frame, packet: bytes) -> None:
        self._send(port, padded(wire.ether(packet, dst=f.eth_src, src=self.ports[port][0], ethertype=f.ethertype)))

    def _withheld(self, f: wire.Frame) -> str:
        """Why an echo request gets no answer."""
        kind = self._kind(f.dst).split("+")
        if self.echo_served and "vip" in kind and "served" not in kind:
            return "echo_unserved"
        return "" if self.echoes.take(self.tick) else "rate_limited"

    def _echo(self, port: int, f: wire.Frame) -> str:
        if reason := self._withheld(f):
            return reason
        pseudo = wire.pseudo_header(f.src, f.dst, wire.ICMP6, 8 + len(f.payload)) if wire.is6(f.src) else b""
        message = wire.icmp_message(129 if pseudo else 0, f.icmp_code, f.icmp_rest, f.payload, pseudo)
        error = (wire.residue(pseudo) + wire.residue(f.raw[f.l4 : 14 + f.total])) % 0xFFFF
        if error:  # a wrong checksum stays as wrong
            value = (struct.unpack_from("!H", message, 2)[0] + error) % 0xFFFF
            message = message[:2] + struct.pack("!H", value) + message[4:]
        self._answer(port, f, self._answer_header(f, len(message)) + message)
        self.count["echo_replies_sent"] += 1
        return "answered"

    def _echo_piece(self, port: int, f: wire.Frame) -> str:
        """A piece of a message goes back as a piece; in the first one the type changes, and the checksum with it."""
        if reason := self._withheld(f):
            return reason
        data = bytearray(f.raw[f.l4 : 14 + f.total])
        if Piece.of(f).offset == 0:
            error = wire.residue(bytes(data))
            data[0] = 129 if wire.is6(f.src) else 0
            data[2:4] = b"\0\0"
            struct.pack_into("!H", data, 2, (error - wire.residue(bytes(data))) % 0xFFFF)
            self.count["echo_replies_sent"] += 1
        self._answer(port, f, self._answer_header(f, len(data)) + data)
        return "answered"

    def _answer_header(self, f: wire.Frame, length: int) -> bytes:
        """The header of the packet that came, the other way round."""
        if wire.is6(f.src):
            header = bytearray(f.raw[14 : f.l4])
            struct.pack_into("!HBB", header, 4, f.l4 - 54 + length, header[6], 64)
            return bytes(header[:8]) + wire.addr_bytes(f.dst) + wire.addr_bytes(f.src) + bytes(header[40:])
        options = f.raw[34 : f.l4]
        frag = wire.DF if f.proto == TCP else f.frag
        total = 20 + len(options) + length
        return wire.ipv4(
            b"",
            src=f.dst,
            dst=f.src,
            proto=f.proto,
            ttl=64,
            tos=f.tos,
            ident=f.ident,
            frag=frag,
            options=options,
            total=total,
        )

    def _reset(self, port: int, f: wire.Frame) -> str:
        """RFC 9293 3.5.2 for a bare SYN."""
        ack = (f.seq + 1 + len(f.payload)) & MASK
        segment = wire.tcp_segment(f.dst, f.src, f.dport, f.sport, seq=0, ack=ack, flags=RST | ACK, window=0)
        self._answer(port, f, self._answer_header(f, len(segment)) + segment)
        self.count["resets_sent"] += 1
        return "answered"

    def _error(self, port: int, f: wire.Frame, reason: str, mtu: int = 0) -> str:
        """RFC 792, RFC 1812 4.3.2.3: as much of the packet as fits into 576 bytes, from the address the packet was sent to;
        RFC 4443 2.4: into 1280."""
        if wire.mac_bytes(f.eth_dst)[0] & 1 or not self.errors.take(self.tick):
            self.count["icmp_errors_withheld"] += 1
            return reason
        src = (self.source(f.src) if reason == "ttl" else "") or f.dst
        rest, packet = struct.pack("!I", mtu), f.raw[14 : 14 + f.total]
        if wire.is6(f.src):
            kind, code = {"ttl": (3, 0), "mtu": (2, 0), "no_service": (1, 4)}[reason]
            message = wire.icmp6_message(src, f.src, kind, code, rest, packet[:1232])
            answer = wire.ipv6(message, src=src, dst=f.src, proto=wire.ICMP6)
        else:
            kind, code = {"ttl": (11, 0), "mtu": (3, 4), "no_service": (3, 3)}[reason]
            message = wire.icmp_message(kind, code, rest, packet[:548])
            answer = wire.ipv4(message, src=src, dst=f.src, proto=wire.ICMP, ttl=64, tos=0xC0, frag=0)
        self._answer(port, f, answer)
        self.count["icmp_errors_sent"] += 1
        return reason

    # ---- errors about packets that went out ----

    def _icmp_error(self, port: int, f: wire.Frame) -> str:
        """It goes on to who sent the packet it is about; the connection does not notice."""
        quote = icmp.quoted(f) if icmp.sound(f) else "icmp_checksum"
        if isinstance(quote, str):
            return quote
        known = self.by_key.get((quote.proto, *quote.dst, *quote.src))
        if known is None:
            return "icmp_no_conn"
        conn, sender = known
        hop = self.way(conn, sender)
        if f.ttl <= 1:
            return "ttl"
        if hop is None:
            return "no_route"
        if hop[0] not in self.ports:
            return "port_down"
        near, far = (conn.lip, conn.rs) if sender == _CLIENT else (conn.vip, conn.client)
        less = conn.telling.toa_bytes if conn.telling and sender == _RS else 0
        number = conn.sent_by_client if sender == _RS else conn.acknowledged_by_rs
        packet = icmp.translated(f, quote, near, far, number, sender == _RS, self.mtu(conn, sender, hop), less)
        if isinstance(packet, str):
            return packet
        neighbour = self.neighbours.setdefault(hop, Neighbour())
        if not neighbour.mac and len(neighbour.waiting) >= NEIGHBOUR_QUEUE:
            return "neigh_queue_full"
        self.count["icmp_errors_to_rs" if sender == _CLIENT else "icmp_errors_to_client"] += 1
        if not neighbour.mac:
            neighbour.waiting.append(Waiting(f.raw, conn, sender, port, packet=packet))
            return "parked"
        self._send_packet(hop[0], packet, neighbour.mac)
        return "to_rs" if sender == _CLIENT else "to_client"

    def _send_packet(self, port: int, packet: bytes, mac: str) -> None:
        ethertype = wire.ETH_IP6 if packet[0] >> 4 == 6 else wire.ETH_IP4
        self._send(port, padded(wire.ether(packet, dst=mac, src=self.ports[port][0], ethertype=ethertype)))

    # ---- neighbours ----

    def _discovery(self, port: int, f: wire.Frame) -> str:
        """RFC 4861 7.2."""
        d = icmp.discovery(f)
        if d is None:
            return "nd"
        if f.icmp_type == 136:
            self._advertised(port, d)
            return self._pass(port, f.raw, "absorbed")
        target = self.owned(d.target)
        ours = target is not None and target[2] == port
        if d.mac and not self.owned(f.src) and (ours or (port, f.src) in self.neighbours):
            self.learn(port, f.src, d.mac)
        if not ours:
            return self._pass(port, f.raw, "absorbed")
        nobody, mac = f.src == "::", self.ports[port][0]
        self.count["nd_advertisements_sent"] += 1
        self._send(
            port,
            icmp.advertisement(
                d.target,
                icmp.ALL_NODES if nobody else f.src,
                d.target,
                mac,
                flags=0x20 if nobody else 0x60,
                eth_src=mac,
                eth_dst=icmp.group_mac(icmp.ALL_NODES) if nobody else f.eth_src,
            ),
        )
        return "answered"

    def _advertised(self, port: int, d: icmp.Discovery) -> None:
        """Only who is known is learned; another MAC only with the override flag."""
        n = self.neighbours.get((port, d.target))
        if n is None or self.owned(d.target) or not d.mac:
            return
        if not n.mac or d.override or d.mac == n.mac:
            self.learn(port, d.target, d.mac)

    def _arp(self, port: int, frame: bytes) -> str:
        """RFC 826: whoever asks for us, or is known already, is learned."""
        if (
            len(frame) < 42
            or frame[14:20] != b"\0\1\x08\0\6\4"
            or frame[20:22] not in (b"\0\1", b"\0\2")
            or frame[22] & 1
        ):
            return "arp"
        f = wire.read(frame)
        target = self.owned(f.dst)
        ours = target is not None and target[2] == port and f.arp_op == 1
        known = (port, f.src) in self.neighbours or (ours and f.src != "0.0.0.0")
        if known and not self.owned(f.src):
            self.learn(port, f.src, f.arp_sha)
        if not ours:
            return self._pass(port, frame, "absorbed")
        mac = self.ports[port][0]
        reply = wire.arp(2, mac, f.dst, f.arp_sha, f.src, eth_dst=f.eth_src)
        self.count["arp_replies_sent"] += 1
        self._send(port, reply + frame[42:])
        return "answered"

    def learn(self, port: int, addr: str, mac: str) -> None:
        n = self.neighbours.setdefault((port, addr), Neighbour())
        if n.static:
            return
        n.mac = mac
        self.release(port, n)

    def release(self, port: int, n: Neighbour) -> None:
        """Packets that waited leave, in their order."""
        waiting, n.waiting = n.waiting, []
        for w in waiting:
            assert w.conn is not None
            if w.packet:
                self._send_packet(port, w.packet, n.mac)
            else:
                frame = self._rewritten(
                    w.frame, w.conn, w.sender, self.ports[port][0], n.mac, w.change, w.datagram, w.mtu
                )
                self._leave(port, frame, w.mtu, w.conn, w.sender, w.frame)
            self.count["to_rs" if w.sender == _CLIENT else "to_client"] += 1

    def give_up(self, port: int, addr: str) -> int:
        """The neighbour did not answer: what waited is lost."""
        n = self.neighbours[port, addr]
        lost, n.waiting = len(n.waiting), []
        self.count["neigh_unresolved"] += lost
        return lost


def changed(segment: bytearray, proto: int, change: Change) -> None:
    """Options, then payload."""
    if proto == TCP and change.strip:
        options = without(bytes(segment[20 : (segment[12] >> 4) * 4]), 254)
        options = with_first(change.option, options) if change.option else options
        segment[20 : (segment[12] >> 4) * 4] = options
        segment[12] = (segment[12] & 15) | (5 + len(options) // 4) << 4
    header = (segment[12] >> 4) * 4 if proto == TCP else 8
    segment[header : header + change.cut] = change.put
    if proto == UDP and change.put:
        struct.pack_into("!H", segment, 4, struct.unpack_from("!H", segment, 4)[0] + len(change.put) - change.cut)
    for kind, at, size in wire.tcp_options(bytes(segment[20:header])) if change.lower_mss else []:
        mss = struct.unpack_from("!H", segment, 22 + at)[0]
        if kind == 2 and size == 4 and mss > change.lower_mss:
            struct.pack_into("!H", segment, 22 + at, mss - change.lower_mss)
            break


def alone(f: wire.Frame) -> bytes:
    """The headers of a packet, as a packet with right checksums that nobody fragments; of a segment it is an ACK."""
    if f.proto == TCP:
        options = f.raw[f.l4 + 20 : f.l4 + (f.raw[f.l4 + 12] >> 4) * 4]
        body = wire.tcp_segment(
            f.src, f.dst, f.sport, f.dport, seq=f.seq, ack=f.ack, flags=ACK, window=f.window, options=options
        )
        body = body[:12] + bytes([f.raw[f.l4 + 12]]) + body[13:]
        body = (
            body[:16]
            + struct.pack("!H", wire.l4_checksum(f.src, f.dst, TCP, body[:16] + b"\0\0" + body[18:], None))
            + body[18:]
        )
    else:
        body = wire.udp_datagram(f.src, f.dst, f.sport, f.dport)
    if wire.is6(f.src):
        header = bytearray(f.raw[14 : f.l4])
        struct.pack_into("!H", header, 4, f.l4 - 54 + len(body))
        return f.raw[:14] + bytes(header) + body
    packet = wire.ipv4(
        body, src=f.src, dst=f.dst, proto=f.proto, ttl=f.ttl, tos=f.tos, ident=0, options=f.raw[34 : f.l4]
    )
    return f.raw[:14] + packet


def hop_side(conn: Conn, sender: int) -> str:
    """Whom a packet of this sender goes to."""
    return conn.rs[0] if sender == _CLIENT else conn.client[0]


def unwelcome(proto: int, sport: int, dport: int, flags: int) -> str:
    """What nobody sends who wants a connection."""
    if 0 in (sport, dport):
        return "port_zero"
    return "tcp_flags" if proto == TCP and nonsense(flags) else ""


def reborn(f: wire.Frame, conn: Conn, sender: int) -> bool:
    """RFC 9293 3.6.1: the connection is history, this SYN begins a new one; likewise an INIT."""
    if conn.proto == SCTP:
        return conn.state == "SCTP_CLOSED" and sender == _CLIENT and sctp.is_opening(f)
    history = conn.proto == TCP and conn.state in ("TIME_WAIT", "TCP_CLOSE")
    return history and sender == _CLIENT and is_first(f.flags)


def incomplete(f: wire.Frame) -> str:
    """What is wrong with a first fragment: all headers must be in it (RFC 3128, RFC 7112)."""
    data = f.raw[f.l4 : 14 + f.total]
    if f.proto == TCP:
        if len(data) < 20 or (data[12] >> 4) * 4 > len(data):
            return "fragment_tiny"
        return "l4_header" if (data[12] >> 4) * 4 < 20 else ""
    if f.proto == UDP:
        if len(data) < 8:
            return "fragment_tiny"
        if struct.unpack_from("!H", data, 4)[0] < 8:
            return "l4_header"
        return "udp_no_checksum" if wire.is6(f.src) and f.checksum == 0 else ""
    return "protocol"


def copied_options(options: bytes) -> bytes:
    """RFC 791 3.1: those that are in every fragment."""
    out, at = b"", 0
    while at < len(options) and options[at]:
        size = 1 if options[at] == 1 else options[at + 1] if at + 1 < len(options) else 0
        if size < (1 if options[at] == 1 else 2) or at + size > len(options):
            break
        out += options[at : at + size] if options[at] & 0x80 else b""
        at += size
    return out + bytes(-len(out) % 4)


def is_fragment(f: wire.Frame) -> bool:
    """One of several; an atomic fragment (RFC 6946) is a whole packet."""
    if wire.FRAGMENT not in f.extensions:
        return bool(f.frag & 0x3FFF)
    return f.fragment != (0, False)


def padded(frame: bytes) -> bytes:
    return frame + b"\0" * (60 - len(frame))


def is_first(flags: int) -> bool:
    """A segment that may open a connection: SYN alone among SYN, ACK, RST, FIN."""
    return flags & (SYN | ACK | RST | FIN) == SYN


def nonsense(flags: int) -> bool:
    """Flags that no TCP sends: SYN with FIN or RST, or none of SYN, RST and ACK."""
    return bool(flags & (FIN | RST)) if flags & SYN else not flags & (RST | ACK)


def acknowledges(conn: Conn, sent: int, ack: int) -> bool:
    """In a handshake: the last of what one side has sent, not more bytes than its packets had."""
    return (conn.next_seq[sent] - ack) & MASK <= conn.bytes[sent]


def scale_of(f: wire.Frame) -> int | None:
    """RFC 7323 2.2, 2.3: at most 14."""
    header = f.raw[f.l4 : f.l4 + (f.raw[f.l4 + 12] >> 4) * 4]
    found = [header[20 + at + 2] for kind, at, size in wire.tcp_options(header[20:]) if kind == 3 and size == 3]
    return min(found[0], 14) if found else None


def window_in(f: wire.Frame) -> int:
    """The largest window that the sender of this SYN can ever open."""
    return 1 << 16 + (scale_of(f) or 0)


def source_routed(frame: bytes) -> bool:
    """RFC 791: loose (131) or strict (137) source and record route; options have the form of TCP's."""
    if frame[12:14] != b"\x08\x00":
        return False
    options = frame[34 : 14 + (frame[14] & 15) * 4]
    at = 0
    while at < len(options) and options[at]:
        if options[at] in (131, 137):
            return True
        if options[at] != 1 and (at + 2 > len(options) or options[at + 1] < 2):
            return False
        at += 1 if options[at] == 1 else options[at + 1]
    return False


def left_to_hardware(f: wire.Frame) -> bool:
    """Does the checksum field hold just the folded pseudo-header sum? Of SCTP: nothing?"""
    if f.proto == SCTP:
        return f.checksum == 0
    length = struct.unpack_from("!H", f.raw, f.l4 + 4)[0] if f.proto == UDP else 14 + f.total - f.l4
    return f.checksum == (wire.residue(wire.pseudo_header(f.src, f.dst, f.proto, length)) or 0xFFFF)


def martian(addr: str) -> bool:
    """A source no host on another link may use: RFC 1122 3.2.1.3; RFC 4291 2.5, 2.7."""
    if wire.is6(addr):
        a = ipaddress.IPv6Address(addr)
        return a.is_unspecified or a.is_loopback or a.is_multicast or a.is_link_local or a.ipv4_mapped is not None
    first = int(addr.split(".")[0])
    return first in (0, 127) or first >= 224


def next_state(state: str, sender: int, flags: int, synack_seen: bool) -> str:
    event = next((name for bit, name in ((RST, "RST"), (SYN, "SYN"), (FIN, "FIN"), (ACK, "ACK")) if flags & bit), "")
    if not event or (state == "SYN_RECV" and sender == _CLIENT and not synack_seen):
        return state
    return _TABLE[sender, event].get(state, state)


def malformed(frame: bytes) -> str:
    """Drop reason of an IPv4 frame that nobody can read, "" when it is sound. RFC 791, RFC 9293, RFC 768."""
    packet = frame[14:]
    if len(packet) < 20:
        return "truncated"
    header, total = (packet[0] & 15) * 4, struct.unpack_from("!H", packet, 2)[0]
    if packet[0] >> 4 != 4 or header < 20 or total < header:
        return "ip_header"
    if total > len(packet):
        return "truncated"
    if wire.residue(packet[:header]) != 0:
        return "ip_checksum"
    if struct.unpack_from("!H", packet, 6)[0] & 0x3FFF or source_routed(frame):
        return ""
    return malformed_l4(packet[9], packet[header:total], wire.ICMP)


def malformed_l4(proto: int, body: bytes, icmp: int) -> str:
    if proto == TCP and (len(body) < 20 or not 20 <= (body[12] >> 4) * 4 <= len(body)):
        return "l4_header"
    if (proto == UDP and len(body) < 8) or (proto == SCTP and len(body) < 12):
        return "l4_header"
    if proto == UDP and not 8 <= struct.unpack_from("!H", body, 4)[0] <= len(body):
        return "udp_length"
    return "l4_header" if proto == icmp and len(body) < 8 else ""


def malformed6(frame: bytes) -> str:
    """The same for IPv6: RFC 8200. Extension headers must end within the first 255 bytes of the frame."""
    packet = frame[14:]
    if len(packet) < 40:
        return "truncated"
    if packet[0] >> 4 != 6:
        return "ip_header"
    end, at, following, fragments = 40 + struct.unpack_from("!H", packet, 4)[0], 40, packet[6], 0
    fragmented = False  # and this is the first fragment
    if end > len(packet):
        return "truncated"
    while following in (wire.HOP_BY_HOP, wire.ROUTING, wire.FRAGMENT, wire.DESTINATION):
        if end - at < 8:
            return "fragment_tiny" if fragmented else "ip_header"
        size = 8 if following == wire.FRAGMENT else (packet[at + 1] + 1) * 8
        if size > end - at and fragmented:
            return "fragment_tiny"
        if size > end - at or 14 + at + size > 255 or (following == wire.HOP_BY_HOP and at != 40):
            return "ext_headers"
        if following == wire.ROUTING and packet[at + 3]:
            return "source_route"
        if following == wire.FRAGMENT:
            fragments += 1
            if fragments > 1:
                return "ext_headers"
            if struct.unpack_from("!H", packet, at + 2)[0] & 0xFFF8:
                return ""
            fragmented = bool(struct.unpack_from("!H", packet, at + 2)[0] & 1)
        following, at = packet[at], at + size
    if fragmented:
        return ""
    body = packet[at:end]
    reason = malformed_l4(following, body, wire.ICMP6)
    return "udp_no_checksum" if not reason and following == UDP and body[6:8] == b"\0\0" else reason
