"""The product on a bench: a plane in memory, one worker, a mem queue for each port, a clock that stands still.

`Rig` drives the core alone. `Twin` drives core and reference with the same configuration and the same frames, and compares all
that leaves: every frame byte for byte, every counter, every connection. Only what the product may choose is taken from it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import packets as wire
import reference_icmp as icmp
from packets import TCP
from reference import MASK, ONE_PACKET, Choice, Conn, Hop, Illegal, Reference

from fnat._core import COUNTERS, MemQueue, Plane, Worker

SECOND = 1_000_000_000
TICK = SECOND // 64
START = 1_000 * SECOND

# Two arms: port 0 "wan" towards the clients, port 1 "lan" towards the real servers.
WAN, LAN = 0, 1
MACS = ("02:00:00:00:0a:00", "02:00:00:00:0a:01")
VIP, VIP2, LIP, LIP2 = "192.0.2.10", "192.0.2.11", "10.0.0.11", "10.0.0.12"
RS1, RS2, RS3, RS4 = "10.0.0.101", "10.0.0.102", "10.0.0.103", "10.0.0.104"
VIP6, LIP6, RS6, RS6B = "2001:db8:1::10", "fd00::11", "fd00::101", "fd00::102"
RS_MACS = {RS1: "02:00:00:00:01:01", RS2: "02:00:00:00:01:02", RS3: "02:00:00:00:01:03", RS4: "02:00:00:00:01:04"}
RS_MACS |= {RS6: "02:00:00:00:01:61", RS6B: "02:00:00:00:01:62"}
GATEWAY, CLIENT = "192.0.2.1", "198.51.100.7"
GATEWAY6, CLIENT6 = "2001:db8:1::1", "2001:db8:99::7"
ADDRESSES = [(1, VIP, "vip", WAN), (2, VIP2, "vip", WAN), (3, LIP, "lip", LAN), (4, LIP2, "lip", LAN)]
ADDRESSES += [(5, VIP6, "vip", WAN), (6, LIP6, "lip", LAN)]
LIP_IDS = {LIP: 3, LIP2: 4, LIP6: 6}
ROUTES = [("0.0.0.0/0", GATEWAY, "", WAN, 0, 0, "unicast"), ("10.0.0.0/24", "", "", LAN, 0, 0, "unicast")]
ROUTES += [("::/0", GATEWAY6, "", WAN, 0, 0, "unicast"), ("fd00::/64", "", "", LAN, 0, 0, "unicast")]
TIMEOUTS = {
    "TCP_NONE": 2,
    "TCP_EST": 90,
    "SYN_SENT": 3,
    "SYN_RECV": 10,
    "FIN_WAIT": 20,
    "TIME_WAIT": 7,
    "TCP_CLOSE": 3,
    "CLOSE_WAIT": 20,
    "LAST_ACK": 7,
    "LISTEN": 120,
    "SYNACK": 30,
    "UDP_NONE": 2,
    "UDP_ONEWAY": 12,
    "UDP_NORM": 30,
    "UDP_LAST": 2,
    "SCTP_EST": 40,
    "SCTP_INIT": 10,
    "SCTP_SHUTDOWN": 8,
    "SCTP_CLOSED": 3,
}

DROPS = tuple(name for name, kind, _ in COUNTERS if kind == "drop")
OUTCOMES = ("to_rs", "to_client", "answered", "absorbed", "passed", "waiting", "held", "handed_off", *DROPS)
UNPREDICTED = {"steps", "sleeps", "from_host", "from_workers", "port_chunks", "frames"}
PREDICTED = [(name, kind) for name, kind, _ in COUNTERS if name not in UNPREDICTED]


class Rig:
    """Core only. Frames go in with `put` and come out of `step` as (port, frame); a frame for the host has port -1-port."""

    def __init__(
        self,
        *,
        punt: bool = False,
        configured: bool = True,
        mtu: int = 1500,
        lports: tuple[int, int] = (1024, 65535),
        directory: str | None = None,
        **sizes: Any,
    ) -> None:
        room = {
            "conns": 1024,
            "services": 16,
            "members": 64,
            "endpoints": 256,
            "neighbours": 64,
            "frames": 1024,
            "snapshot_mib": 1,
        }
        self.plane = Plane.create(directory, **{**room, **sizes})
        self.worker = Worker(self.plane, 0)
        self.queues = {WAN: MemQueue(self.worker, 256), LAN: MemQueue(self.worker, 256)}
        self.worker.attach(WAN, self.queues[WAN])
        self.worker.attach(LAN, self.queues[LAN])
        if punt:
            self.queues[-1 - WAN] = MemQueue(self.worker, 256)
            self.worker.attach(WAN, self.queues[-1 - WAN], punt=True)
        self.now = START
        self.lports = lports
        if configured:
            self.configure(mtu)

    def both(self) -> list[Any]:
        return [self.plane]

    def configure(
        self, mtu: int = 1500, plane: Plane | None = None, addresses: Iterable[tuple[int, str, str, int]] = ()
    ) -> None:
        """plane: another control's view of the plane."""
        for side in [plane] if plane else self.both():
            side.put_settings(TIMEOUTS, True, self.lports)
            side.put_port(WAN, "wan", MACS[WAN], mtu)
            side.put_port(LAN, "lan", MACS[LAN], mtu)
            side.put_addresses([*ADDRESSES, *addresses])
            side.put_routes(ROUTES)
            side.neigh_set(WAN, GATEWAY, wire.ROUTER_MAC, static=True)
            side.neigh_set(WAN, GATEWAY6, wire.ROUTER_MAC, static=True)
            for rip, mac in RS_MACS.items():
                side.neigh_set(LAN, rip, mac, static=True)
        (plane or self.plane).publish()

    def service(self, id: int = 0, vip: str = VIP, vport: int = 80, proto: int = TCP, **options: Any) -> None:
        """Add or replace a service; by default one RS and one LIP."""
        options.setdefault("members", [(id * 8, RS1, 8080, 1)])
        options.setdefault("lips", [3])
        for side in self.both():
            side.put_service(id, vip, vport, proto, **options)
        self.plane.publish()

    def drop_service(self, id: int) -> None:
        for side in self.both():
            side.del_service(id)
        self.plane.publish()

    def put(self, port: int, frame: bytes) -> None:
        self.queues[port].put(frame)

    def step(self) -> list[tuple[int, bytes]]:
        self.worker.step(self.now)
        return [(port, frame) for port, queue in self.queues.items() for frame in queue.take_all()]

    def send(self, port: int, *frames: bytes) -> list[tuple[int, bytes]]:
        for frame in frames:
            self.put(port, frame)
        return self.step()

    def wait(self, seconds: float, step: float = 1 / 64) -> list[tuple[int, bytes]]:
        """Let time pass, in turns of `step` seconds."""
        out, end = [], self.now + int(seconds * SECOND)
        while self.now < end:
            self.now = min(end, self.now + int(step * SECOND))
            out += self.step()
        return out

    def conns(self, **only: int) -> list[Any]:
        out, cursor = [], 0
        while cursor >= 0:
            page, cursor = self.plane.conns(0, cursor, now_ns=self.now, **only)
            out += page
        return out

    def counters(self) -> dict[str, int]:
        return self.plane.counters(0)

    def moved(self, before: dict[str, int]) -> dict[str, int]:
        return {k: v - before[k] for k, v in self.counters().items() if v != before[k] and k not in UNPREDICTED}

    def check_sums(self) -> None:
        """Every packet has ended in one way; every frame is somewhere."""
        c = self.counters()
        assert c["rx_packets"] == sum(c[k] for k in OUTCOMES), {k: c[k] for k in ("rx_packets", *OUTCOMES) if c[k]}
        assert self.worker.frames_free == self.worker.frames_total - c["waiting"] - c["held"]

    def check_empty(self) -> None:
        """All that was taken is given back."""
        c = self.counters()
        assert {name: c[name] for name, kind, _ in COUNTERS if kind == "taken" and c[name]} == {}
        assert self.worker.frames_free == self.worker.frames_total
        for id, *_ in ADDRESSES:
            assert self.plane.address_stats(id)[1:] == (0, 0)

    def close(self) -> None:
        self.worker.detach()
        self.worker.quiesce()
        self.plane.close()


class Twin(Rig):
    """Core and reference side by side. Packets of one turn differ in their TOS, by which what came is told in what left. `hosts` answer ARP requests: (port, address) -> MAC."""

    def __init__(self, *, punt: bool = False, **options: Any) -> None:
        self.reference = Reference(conns=options.get("conns", 1024))
        self.reference.now = START
        self.reference.choose, self.reference.observe = self._choose, self._observe
        self.reference.expend, self.reference.pick, self.reference.identify = self._expend, self._pick, self._identify
        if punt:
            self.reference.punt.add(WAN)
        self.hosts: dict[tuple[int, str], str] = {}
        self.unanswered: dict[tuple[int, str], int] = {}  # ARP requests
        self.silent_since: dict[tuple[int, str], int] = {}
        self.speechless_at = 0  # when there was no IPv6 address to ask from
        self.frames: list[wire.Frame] = []
        self.operations = 0
        self.broken = False  # both sides have parted
        super().__init__(punt=punt, **options)

    def both(self) -> list[Any]:
        return [self.plane, self.reference]

    # ---- what the core was free to choose ----

    def _choose(self, conn: Conn, frame: bytes) -> Choice | None:
        sent = wire.read(frame)
        for f in self.frames:
            if f.tos == sent.tos and (f.proto, f.dst, f.dport) == (conn.proto, *conn.rs):
                return Choice(f.src, f.sport)
        key = (conn.proto, *conn.client, *conn.vip, *conn.rs)
        for c in self.conns():
            if (c.proto, c.cip, c.cport, c.vip, c.vport, c.rip, c.rport) != key:
                continue
            likely = c.in_bytes in (0, sent.total) or (sent.frag & wire.MF and c.in_bytes > sent.total)  # with its other pieces
            if conn.state in ONE_PACKET and ((c.proto, *conn.rs, c.lip, c.lport) in self.reference.by_key or not likely):
                continue  # another datagram of this client
            return Choice(c.lip, c.lport)
        return None

    def _expend(self, candidates: list[Conn], frame: bytes) -> Conn:
        """Which of equals went: one that the core no longer has."""
        clients = {(c.proto, c.cip, c.cport, c.vip, c.vport) for c in self.conns()}
        locals = {(c.proto, c.rip, c.rport, c.lip, c.lport) for c in self.conns()}
        gone = [
            c
            for c in candidates
            if (
                (c.proto, *c.rs, *c.lip) not in locals
                if c.state in ONE_PACKET
                else (c.proto, *c.client, *c.vip) not in clients
            )
        ]
        if not gone:
            raise Illegal(f"nobody of {candidates} went for {wire.describe(frame)}")
        return gone[0]

    def _pick(self, conn: Conn, sender: int, hops: list[Hop]) -> Hop | None:
        """Which of equal hops the connection goes by: the one whose MAC is on a packet that left. Equal hops have MACs."""
        src, dst = (conn.lip, conn.rs) if sender == 0 else (conn.vip, conn.client)
        macs = {f.eth_dst for f in self.frames if f.flow == (conn.proto, *src, *dst)}
        if not macs:  # an ICMP error shows it, too
            known = {self.reference.neighbours[hop].mac for hop in hops}
            passed_on = [f for f in self.frames if f.ttl != 64]  # the core's own go back the way that their cause came
            macs = {f.eth_dst for f in passed_on if f.eth_dst in known and is_error_about(f, conn.proto, src, dst)}
        if not macs:
            return None
        chosen = [hop for hop in hops if {self.reference.neighbours[hop].mac} == macs]
        if not chosen:
            raise Illegal(f"{conn} left by {macs}; open to it: {hops}")
        return chosen[0]

    def _observe(self, conn: Conn, frame: bytes, sender: int) -> tuple[int, int]:
        """Shifts, from the packet that left for this one."""
        sent = wire.read(frame)
        src, dst = (conn.lip, conn.rs) if sender == 0 else (conn.vip, conn.client)
        for f in self.frames:
            if f.tos == sent.tos and f.flow == (conn.proto, *src, *dst):
                dts = ((f.ts[0] - sent.ts[0]) if sender == 0 else (sent.ts[1] - f.ts[1])) if f.ts and sent.ts else 0
                return ((f.seq - sent.seq) if sender == 0 else (sent.ack - f.ack)) & MASK, dts & MASK
        raise Illegal(f"no packet left for {wire.describe(frame)}")

    def _identify(self, conn: Conn, frame: bytes, sender: int) -> int:
        """The identification that the packet left with. What nobody may fragment has none; one that goes ahead of it does not count."""
        sent = wire.read(frame)
        src, dst = (conn.lip, conn.rs) if sender == 0 else (conn.vip, conn.client)
        offset = offset_of(sent)
        for f in self.frames:
            if (f.tos, f.src, f.dst, offset_of(f)) == (sent.tos, src[0], dst[0], offset) and not f.frag & wire.DF:
                return f.frag_id if wire.is6(f.src) else f.ident
        raise Illegal(f"no packet left for {wire.describe(frame)}")

    # ---- driving ----

    def deliver(self, frames: Iterable[tuple[int, bytes]]) -> list[str]:
        """One turn with these frames (at most 64 a port). Returns the outcomes, port by port."""
        frames = sorted(frames, key=lambda pf: pf[0])
        self.operations += len(frames)
        for port, frame in frames:
            self.put(port, frame)
        return self._turn(frames)

    def wait(self, seconds: float, step: float = 1 / 64) -> list[tuple[int, bytes]]:
        """Turns of `step` seconds; of one tick while packets wait, because neighbours are aged a slice a tick."""
        end = self.now + int(seconds * SECOND)
        self.operations += 1
        while self.now < end:
            waiting = any(n.waiting for n in self.reference.neighbours.values())
            self.now = min(end, self.now + (TICK if waiting else int(step * SECOND)))
            self._turn([])
        self._compare_counters([])
        self.audit()
        return []

    def _turn(self, frames: list[tuple[int, bytes]]) -> list[str]:
        self.broken = True
        outcomes = self._compared_turn(frames)
        self.broken = False
        return outcomes

    def _compared_turn(self, frames: list[tuple[int, bytes]]) -> list[str]:
        r = self.reference
        r.now = self.now
        r.begin_turn()
        waiting = any(n.waiting for n in r.neighbours.values())
        out = self.step()
        asked = [(port, f) for port, f in out if port >= 0 and is_request(f) and f not in [x for _, x in frames]]
        self.frames = [wire.read(f) for port, f in out if port >= 0]
        outcomes = [r.receive(port, frame) for port, frame in frames]
        r.end_turn()
        self._ask_doubtful(out)
        self._end_expired()
        unseen = [c for c in r.conns if not c.lip[0]]
        assert not unseen, f"the core did not open {unseen}"
        self._give_up_neighbours()
        expected, r.sent = r.sent, []
        for request in asked:
            self._check_request(*request)
        out = [x for x in out if x not in asked]
        compare(out, expected, ordered=not waiting, context=frames)
        if frames or out or expected:
            self._compare_counters(frames)
        answers = [a for request in asked if (a := self._arp_answer(*request))]
        if answers:
            self.deliver(answers)
        return outcomes

    def _ask_doubtful(self, out: list[tuple[int, bytes]]) -> None:
        """When the RS of a doubtful connection is asked is the core's choice: within two seconds from the moment it may."""
        r = self.reference
        for conn in r.conns:
            at = r.asks_at(conn)
            made = r.question(conn) if at is not None and at <= r.tick else None
            if made and made in out:
                r.asked(conn, *made)
            elif made and at is not None and r.tick > max(at, conn.looked_at) + 2 * 64 and conn.rs[0] in RS_MACS:
                raise Illegal(f"{conn} should have been asked {(r.tick - at) / 64:.2f} s ago")

    def _end_expired(self) -> None:
        """Which connections ended by time is the core's choice within a second after the deadline."""
        r = self.reference
        due = [c for c in r.conns if r.deadline(c) <= r.tick]
        if not due:
            return
        alive = {(c.proto, c.lip, c.lport, c.rip, c.rport) for c in self.conns()}
        for conn in due:
            if (conn.proto, *conn.lip, *conn.rs) not in alive:
                r.expire(conn)
            elif r.tick > max(r.deadline(conn), conn.looked_at) + 64:
                raise Illegal(f"{conn} should have ended {(r.tick - r.deadline(conn)) / 64:.2f} s ago")

    def _give_up_neighbours(self) -> None:
        """A neighbour that has left three requests without an answer may be forgotten; then what waits for it is lost. Without an address of
        its own the core has no way to ask (RFC 4861 7.2.2: a solicitation has a source): that is as good as no answer."""
        r = self.reference
        if not any(wire.is6(addr) for addr, _, _ in r.addresses.values()):
            self.speechless_at = self.now
        silent6 = self.now - self.speechless_at < 4 * SECOND
        unasked = [k for k, n in r.neighbours.items() if silent6 and wire.is6(k[1]) and n.mac and not n.static]
        for key in [*(k for k, n in self.unanswered.items() if n >= 3), *unasked]:
            if all((n.port, n.addr) != key or not n.mac for n in self.plane.neighbours()):
                r.neighbours[key].mac = ""
                self.unanswered.pop(key, None)
        if not self.silent_since and not any(n.waiting for n in r.neighbours.values()):
            return
        lost = self.counters()["neigh_unresolved"] - r.count["neigh_unresolved"]
        for key, n in r.neighbours.items():
            if n.waiting:
                self.silent_since.setdefault(key, self.now)
            else:
                self.silent_since.pop(key, None)
        asked = {(n.port, n.addr) for n in self.plane.neighbours() if n.state != "NONE"}
        for key in sorted(self.silent_since, key=lambda key: (key in asked, self.silent_since[key])):
            silent = self.now - self.silent_since[key]
            if lost > 0:
                if silent < 3 * SECOND - 2 * TICK:
                    raise Illegal(f"gave up {key} after {silent / SECOND} s")
                lost -= r.give_up(*key)
                del self.silent_since[key]
            elif silent > 8 * SECOND:
                raise Illegal(f"packets wait for {key} for {silent / SECOND} s")

    def _check_request(self, port: int, frame: bytes) -> None:
        f, r = wire.read(frame), self.reference
        target, sender, by_nd = asked_for(f), f.arp_sha, f.ethertype == wire.ETH_IP6
        if by_nd:
            d = icmp.discovery(f)
            assert d is not None and wire.faults(frame) == [], wire.describe(frame)
            sender = d.mac
            assert f.dst in (target, icmp.solicited_node(target)) and (
                f.dst == target or f.eth_dst == icmp.group_mac(f.dst)
            )
        if (port, target) not in r.neighbours or {sender, f.eth_src} != {MACS[port]} or not r.owned(f.src):
            raise Illegal(f"request {wire.describe(frame)}")
        for name in ("own_packets", "nd_solicitations_sent" if by_nd else "arp_requests_sent", "tx_packets"):
            r.count[name] += 1
        r.count["tx_bytes"] += len(frame)

    def _arp_answer(self, port: int, frame: bytes) -> tuple[int, bytes] | None:
        f = wire.read(frame)
        target = asked_for(f)
        mac = self.hosts.get((port, target))
        self.unanswered[port, target] = 0 if mac else self.unanswered.get((port, target), 0) + 1
        if mac and f.ethertype == wire.ETH_IP6:
            return port, icmp.advertisement(target, f.src, target, mac, eth_src=mac, eth_dst=f.eth_src)
        return (port, wire.arp(2, mac, f.dst, f.arp_sha, f.src, eth_dst=f.eth_src)) if mac else None

    # ---- comparing ----

    def _compare_counters(self, frames: list[tuple[int, bytes]]) -> None:
        core, mine = self.counters(), self.reference.count
        taken = self.reference.taken()
        wrong = [name for name, kind in PREDICTED if core[name] != (taken if kind == "taken" else mine)[name]]
        assert not wrong, (
            f"counters (core, reference): {[(n, core[n], {**mine, **taken}.get(n, 0)) for n in wrong]} after\n"
            + "\n".join(wire.describe(f) for _, f in frames)
        )

    def audit(self) -> None:
        """Every connection and every number that can be read."""
        self.check_sums()
        r = self.reference
        core = {(c.proto, c.rip, c.rport, c.lip, c.lport): c for c in self.conns()}
        mine = {(c.proto, *c.rs, *c.lip): c for c in r.conns}
        assert core.keys() == mine.keys()
        active: dict[int, list[int]] = defaultdict(lambda: [0, 0])
        for key, conn in mine.items():
            c = core[key]
            assert (c.cip, c.cport, c.vip, c.vport) == (*conn.client, *conn.vip)
            assert (c.state, c.service, c.member) == (conn.state, conn.service, conn.member), key
            assert (c.in_packets, c.out_packets, c.in_bytes, c.out_bytes) == (*conn.packets, *conn.bytes), key
            assert abs(c.remaining - max(0, r.deadline(conn) - r.tick) / 64) <= 1, (key, c.remaining)
            assert abs(c.age - (r.tick - conn.opened) / 64) <= 1, (key, c.age)
            active[conn.member][0 if conn.state in ("TCP_EST", "SCTP_EST") else 1] += 1
        for member in {m for m, _ in r.member_count}:
            wanted = [
                r.member_count[member, k] for k in ("conns", "in_packets", "out_packets", "in_bytes", "out_bytes")
            ]
            assert list(self.plane.member_stats(member)) == wanted + active[member], member
        for id, addr, kind, _ in ADDRESSES:
            holds = [c for c in r.conns if addr in (c.vip[0], c.lip[0])]
            used = [c for c in holds if c.lip[0] == addr]
            assert self.plane.address_stats(id)[1:] == (len(used), len(holds)), addr


def offset_of(f: wire.Frame) -> int:
    return f.fragment[0] or (f.frag & 0x1FFF) * 8


def is_request(frame: bytes) -> bool:
    """An ARP request, or a neighbour solicitation."""
    if frame[12:14] == b"\x08\x06":
        return frame[20:22] == b"\0\1"
    return frame[12:14] == b"\x86\xdd" and frame[20] == wire.ICMP6 and frame[54] == 135


def is_error_about(f: wire.Frame, proto: int, src: tuple[str, int], dst: tuple[str, int]) -> bool:
    """An ICMP error from src to dst about what dst sent to src."""
    if f.proto not in (wire.ICMP, wire.ICMP6) or not icmp.is_error(f):
        return False
    quote = icmp.quoted(f)
    return not isinstance(quote, str) and (quote.proto, quote.src, quote.dst) == (proto, dst, src)


def asked_for(f: wire.Frame) -> str:
    return wire.addr_text(f.payload[:16]) if f.ethertype == wire.ETH_IP6 else f.dst


def compare(
    out: list[tuple[int, bytes]], expected: list[tuple[int, bytes]], *, ordered: bool, context: list[tuple[int, bytes]]
) -> None:
    """The same frames on the same ports; within a flow in the same order."""
    if out == expected:
        return
    left, right = grouped(out), grouped(expected)
    if not ordered:
        left, right = ({k: sorted(v) for k, v in side.items()} for side in (left, right))
    if left == right:
        return
    lines = ["what went in:", *(f"  port {p}: {wire.describe(f)}" for p, f in context)]
    for name, mine, other in (("core sent", left, right), ("reference sent", right, left)):
        lines.append(f"{name}:")
        lines += [
            f"  port {k[0]}: {wire.describe(f)} {f.hex()}" for k, v in mine.items() if other.get(k) != v for f in v
        ]
    raise AssertionError("\n".join(lines))


def grouped(frames: list[tuple[int, bytes]]) -> dict[Any, list[bytes]]:
    out: dict[Any, list[bytes]] = defaultdict(list)
    for port, frame in frames:
        ip = port >= 0 and frame[12:14] in (b"\x08\x00", b"\x86\xdd")
        f = wire.read(frame) if ip else None
        out[(port, *f.flow) if f else (port, frame[12:14])].append(frame)
    return out
