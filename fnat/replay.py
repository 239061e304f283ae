"""The replay bench: a capture's conversations as they would have gone through fnat, judged packet by packet.

A first pass over the file (fnat/conversations.py) finds who served whom. The second plays it through a plane of two
arms: what a client sent enters on `wan` as captured; what a server sent is turned into what a real server would have
sent to the LIP port that the core chose, and enters on `lan`. Time is the capture's.

Rules: every packet of the file ends in exactly one of forwarded, passed, dropped{reason}, skipped{cause}. What the
bench makes itself (the handshake of a conversation whose beginning was not captured) is not counted. What it changes in
a captured packet before it enters is counted by name in `prepared`, never silent. The verdict on transparency uses
fnat/segment.py and the bytes on the wire, nothing of the core.

Fragments are judged one by one (fnat/segment.py says why that is enough). One that the core holds until the first of
its datagram has come is counted when it leaves.

Unsatisfying: one packet a turn, so that each outcome is its own; batches are exercised by the speed loop, which counts.
"""

from __future__ import annotations

import ctypes
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from types import ModuleType
from typing import BinaryIO

from fnat import segment
from fnat.captures import Capture
from fnat.conversations import (
    AS_CAPTURED,
    FRAGMENTS_WITHIN,
    IP4,
    IP6,
    MTU,
    Datagram,
    End,
    Families,
    Flow,
    Layout,
    Life,
    Prepared,
    Progress,
    flow_key,
    prepare,
    survey,
)
from fnat.segment import ACK, FIN, RST, SYN, UDP, Segment

WAN, LAN = 0, 1
PORT_MACS = (bytes.fromhex("02fa00000001"), bytes.fromhex("02fa00000002"))
GATEWAY_MACS = (bytes.fromhex("02fb00000001"), bytes.fromhex("02fb00000002"))
LOOP_BYTES = 64 << 20  # frames that the speed loop holds at most
LINK_MTU = MTU + 28  # an IPv4 packet made IPv6, a fragment header included
IDLE = 30 * 86_400  # seconds: a capture's pauses expire nothing
JUMP_NS = 3600 * 10**9  # a longer pause of the capture is shortened to this


# ---- the balancer between two wires ----


@dataclass(slots=True)
class Turn:
    """What one step of the worker did."""

    sent: list[tuple[int, bytes]]  # port, frame
    punted: list[bytes]
    moved: dict[str, int]  # counters that rose, by how much


class Wires:
    """A plane with one worker between `wan` and `lan`, and the queues to put frames in and take them out."""

    def __init__(self, core: ModuleType, layout: Layout) -> None:
        ends = {end for s in layout.services.values() for end in s.members}
        count = len(layout.services)
        self.plane = core.Plane.create(
            None,
            conns=max(1024, 2 * len(layout.flows) + 64),
            services=count + 8,
            members=2 * count + 8,
            endpoints=max(64, 2 * len(ends) * 2 * len(layout.lips)),
            neighbours=1024,
            frames=4096,
            snapshot_mib=16 + count // 500,
        )
        self._drops = [name for name, kind, _ in core.COUNTERS if kind == "drop"]
        self._arrange(core, layout)
        self.worker = core.Worker(self.plane, 0)
        self.queues = [core.MemQueue(self.worker) for _ in (WAN, LAN)]
        self._punts = [core.MemQueue(self.worker) for _ in (WAN, LAN)]
        for port in (WAN, LAN):
            self.worker.attach(port, self.queues[port])
            self.worker.attach(port, self._punts[port], punt=True)
        self._before = self.plane.counters()

    def _arrange(self, core: ModuleType, layout: Layout) -> None:
        plane = self.plane
        timeouts = {**dict.fromkeys(core.STATES, IDLE), "FRAGMENTS": FRAGMENTS_WITHIN}
        plane.put_settings(timeouts, False, own_sources=True)
        for port, name in ((WAN, "wan"), (LAN, "lan")):
            plane.put_port(port, name, PORT_MACS[port].hex(":"), LINK_MTU, up=True, exclusive=True)
        routes = []
        for family, everything, servers in ((4, "0.0.0.0/0", 24), (6, "::/0", 120)):
            gateways = [_text(layout.host(family, 0xFF01 + port)) for port in (WAN, LAN)]
            for port in (WAN, LAN):
                plane.neigh_set(port, gateways[port], GATEWAY_MACS[port].hex(":"), static=True)
            behind = f"{_text(layout.host(family, 0x0100))}/{servers}"
            routes += [
                (everything, gateways[WAN], "", WAN, 0, 0, "unicast"),
                (behind, gateways[LAN], "", LAN, 0, 0, "unicast"),
            ]
        plane.put_routes(routes)
        lips = [(1 + i, _text(lip), "lip", LAN) for i, lip in enumerate(layout.lips)]
        of = {n: [1 + i for i, lip in enumerate(layout.lips) if len(lip) == n] for n in (4, 16)}
        plane.put_addresses(lips + [(1 + len(lips) + i, _text(vip), "vip", WAN) for i, vip in enumerate(layout.vips)])
        for (proto, vip, vport), service in layout.services.items():
            members = [(2 * service.id + i, _text(rip), rport, 1) for i, (rip, rport) in enumerate(service.members)]
            plane.put_service(
                service.id,
                _text(vip),
                vport,
                proto,
                scheduler="rr",
                members=members,
                lips=of[len(service.members[0][0])],
            )
        plane.publish()

    def feed(self, port: int, frame: bytes | None, now_ns: int) -> Turn:
        """One step, with one frame or none."""
        if frame is not None:
            self.queues[port].put(frame)
        self.worker.step(now_ns)
        sent = [(p, f) for p in (WAN, LAN) for f in self.queues[p].take_all()]
        punted = [f for q in self._punts for f in q.take_all()]
        after = self.plane.counters()
        moved = {name: value - self._before[name] for name, value in after.items() if value != self._before[name]}
        self._before = after
        return Turn(sent, punted, moved)

    def drops(self, moved: dict[str, int]) -> dict[str, int]:
        return {name: moved[name] for name in self._drops if name in moved}

    def close(self) -> None:
        self.worker.detach()
        self.plane.close()


def _text(address: bytes) -> str:
    return str(ip_address(address))


def _framed(port: int, packet: Segment) -> bytes:
    """As the next hop of a port would send it."""
    return PORT_MACS[port] + GATEWAY_MACS[port] + _type(packet) + packet.data


def _type(packet: Segment) -> bytes:
    return IP4 if packet.family == 4 else IP6


# ---- the verdict on transparency ----


def differences(entered: Segment, expected: Segment, frame: bytes, port: int) -> str:
    """Why the packet in `frame` is not `expected`, "" when it is: checksums and hops apart, which are compared with
    what entered, and the identification of what may be fragmented."""
    wire = segment.parse(frame[14:])
    if not wire:
        return "what left is no whole packet"
    if frame[:14] != GATEWAY_MACS[port] + PORT_MACS[port] + _type(expected):
        return "Ethernet header is wrong"
    if len(frame) != 14 + len(wire.data) and len(frame) > 60:
        return "bytes behind the packet"
    if wire.family == 4 and not segment.header_sound(wire.data):
        return "IP header checksum is wrong"
    if wire.hops != entered.hops - 1:
        return "TTL is not one less"
    loose = expected.loose or (entered.family != expected.family and not expected.data[6] & 0x40)
    if _blank(wire, loose) != _blank(expected, loose):
        return "bytes differ"
    if wire.later:
        return ""
    if expected.absent or wire.absent:
        return "" if expected.absent and wire.absent else "checksum appeared or vanished"
    if wire.error != (0 if entered.partial else expected.error):
        return "checksum is wrong" if not expected.error or entered.partial else "a wrong checksum changed its error"
    return ""


def _completed(frame: bytes) -> bytes:
    """The frame as the host may see it: a checksum that was left to hardware is right."""
    packet = segment.parse(frame[14:]) if frame[12:14] in (IP4, IP6) else None
    if not packet or packet.piece or not packet.partial or not packet.error:
        return frame
    whole = segment.with_checksum(segment.with_checksum(packet, 0), 65535 - segment.with_checksum(packet, 0).error)
    return frame[:14] + whole.data + frame[14 + len(whole.data) :]


def _blank(packet: Segment, loose: bool) -> bytes:
    """The packet without hops and checksums, without identification when that is `loose`."""
    data = bytearray(packet.data)
    if packet.family == 4:
        data[8] = data[10] = data[11] = 0
    else:
        data[7] = 0
    if not packet.later:
        data[packet.checksum_at : packet.checksum_at + 2] = b"\0\0"
    at = 4 if packet.family == 4 else packet.piece.at + 4 if packet.piece else 0
    if loose and at:
        data[at : at + (2 if packet.family == 4 else 4)] = bytes(2 if packet.family == 4 else 4)
    return bytes(data)


# ---- the second pass ----


@dataclass(slots=True)
class Report:
    """Figures of one file, or summed over files."""

    packets: int = 0
    flows: int = 0
    forwarded: int = 0
    passed: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    verified: int = 0
    mismatched: int = 0
    ordinary: int = 0
    ordinary_forwarded: int = 0
    outside: Counter[str] = field(default_factory=Counter)  # packets that are not ordinary, by cause
    prepared: Counter[str] = field(default_factory=Counter)
    made: int = 0  # packets the bench made itself: handshakes whose capture is missing
    faults: list[str] = field(default_factory=list)  # the first few mismatches, one line each
    note: str = ""

    def balanced(self) -> bool:
        return self.packets == self.forwarded + self.passed + self.dropped.total() + self.skipped.total()

    def add(self, other: Report) -> None:
        for name in (
            "packets",
            "flows",
            "forwarded",
            "passed",
            "verified",
            "mismatched",
            "ordinary",
            "ordinary_forwarded",
            "made",
        ):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("dropped", "skipped", "prepared", "outside"):
            getattr(self, name).update(getattr(other, name))
        self.faults = (self.faults + other.faults)[:20]


class Out:
    """A classic pcap file of what the core sent."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1))

    def write(self, time_ns: int, frame: bytes) -> None:
        seconds, rest = divmod(time_ns, 10**9)
        self._file.write(struct.pack("<IIII", seconds & 0xFFFFFFFF, rest // 1000, len(frame), len(frame)) + frame)


@dataclass(slots=True)
class Fed:
    """A packet of a conversation on its way through the core."""

    number: int
    ordinary: bool
    flow: Flow
    packet: Segment  # as captured
    entered: Segment
    port: int  # where it should leave
    datagram: Datagram | None


class Player:
    """Plays prepared packets through the balancer and keeps the account."""

    def __init__(self, wires: Wires, layout: Layout, report: Report, verify: bool, out: Out | None = None) -> None:
        self.wires, self.layout, self.report, self.verify, self.out = wires, layout, report, verify, out
        self.fed: list[tuple[int, bytes]] = []  # frames of forwarded packets as they entered, for the speed loop
        self.collecting = False
        self.now_ns = 0
        self.stamp_ns = 0  # capture time of the current packet
        self.number = 0
        self._wrong = ""  # the first thing that was wrong with the current packet
        self._owners: dict[tuple[int, End, End], Flow] = {}
        self._now: Prepared = Prepared()
        self._names: dict[tuple[bytes, int], tuple[Datagram, int]] = {}
        self._held: dict[int, list[Fed]] = {}  # by id of the datagram, in the order in which they began

    def play(self, packet: Prepared) -> None:
        """One packet of the file, to its end."""
        self.number += 1
        self._wrong, self._now = "", packet
        r = self.report
        r.packets += 1
        r.ordinary += packet.ordinary
        r.outside.update([packet.outside] if packet.outside else [])
        self.wait()
        end, reason = ("skipped", packet.cause) if packet.cause else self._ended(packet)
        self._count(end, reason, packet.ordinary)
        if end != "skipped":
            r.prepared.update(packet.changes)
            flow = self.layout.flows.get(flow_key(packet.parts[0])) if packet.parts else None
            r.prepared.update(["translated"] if flow and len(flow.enters[1][0]) != len(packet.parts[0].src) else [])
        self._judged(self.number)

    def wait(self) -> None:
        """What time alone brings about."""
        turn = self.wires.feed(WAN, None, self.now_ns)
        self._written(turn)
        late = turn.moved.get("fragment_timeout", 0)
        while late and self._held:
            waited = self._held.pop(next(iter(self._held)))
            late -= len(waited)
            self.report.dropped["fragment_timeout"] += len(waited)

    def finish(self) -> None:
        """Whatever still waits is let go by time."""
        self.now_ns += JUMP_NS
        self.wait()

    def _count(self, end: str, reason: str, ordinary: bool) -> None:
        r = self.report
        if end == "forwarded":
            r.forwarded += 1
            r.verified += self.verify
            r.ordinary_forwarded += ordinary
        elif end == "passed":
            r.passed += 1
        elif end != "held":
            (r.dropped if end == "dropped" else r.skipped)[reason] += 1

    def _judged(self, number: int) -> None:
        r = self.report
        if self._wrong:
            r.mismatched += 1
            r.faults += [f"packet {number}: {self._wrong}"] if len(r.faults) < 20 else []
        self._wrong = ""

    def _ended(self, packet: Prepared) -> tuple[str, str]:
        flow = self.layout.flows.get(flow_key(packet.parts[0])) if packet.parts else None
        if not flow:
            turn = self._turn(WAN, packet.frame or _framed(WAN, packet.parts[0]))
            if turn.moved.get("passed") and self.verify:
                same = turn.punted == [_completed(packet.frame or _framed(WAN, packet.parts[0]))]
                self._fault("" if same else "what was passed is not what came")
            end = self._verdict(turn)
            return ("skipped", "icmp_error") if end[0] == "forwarded" else end  # translated; nobody compares it
        if not flow.served:
            return "skipped", "too_many_services"
        for part in packet.parts:
            end = self.carry(flow, part)
            if end[0] != "forwarded":
                return end
        return end

    def carry(self, flow: Flow, packet: Segment) -> tuple[str, str]:
        """A packet of a conversation, from whichever side it came."""
        from_client = (packet.src, packet.sport) == flow.client
        if not flow.life and not (from_client and packet.opens):
            self._open_by_hand(flow, packet, from_client)
        return self._from_client(flow, packet) if from_client else self._from_server(flow, packet)

    def _from_client(self, flow: Flow, packet: Segment) -> tuple[str, str]:
        client, vip = flow.enters
        return self._feed(flow, packet, segment.changed(packet, client, vip), LAN)

    def _from_server(self, flow: Flow, packet: Segment) -> tuple[str, str]:
        life = flow.life
        if not life:
            return "skipped", "unopened"
        entered = segment.changed(packet, life.server, life.lip, dack=life.dseq, decho=life.dts or 0)
        return self._feed(flow, packet, entered, WAN)

    def _feed(self, flow: Flow, packet: Segment, entered: Segment, port: int) -> tuple[str, str]:
        """To its end; with it go those fragments of its datagram that waited for it."""
        datagram = self._now.datagram if packet.piece else None
        fed = Fed(self.number, self._now.ordinary, flow, packet, entered, port, datagram)
        turn = self._turn(LAN + WAN - port, _framed(LAN + WAN - port, entered))
        if packet.piece and turn.moved.get("held", 0) > 0:
            self._held.setdefault(id(datagram), []).append(fed)
            return "held", ""
        waited = self._held.pop(id(datagram), []) if datagram and turn.moved.get("held") else []
        end = self._verdict(turn, 1 + len(waited))
        for other in waited:
            self._wrong, wrong = "", self._wrong
            self._count(*end, other.ordinary)
            if end[0] == "forwarded":
                self._left(other, turn)
            self._judged(other.number)
            self._wrong = wrong
        if end[0] == "forwarded":
            self._left(fed, turn)
        return end

    def _left(self, fed: Fed, turn: Turn) -> None:
        """Learn from what was forwarded, and judge it."""
        frame = self._only(fed, turn)
        left = segment.parse(frame[14:])
        flow = fed.flow
        if fed.port == LAN and left and not left.later:
            self._learn(flow, fed.entered, left, bool(turn.moved.get("conns_opened")))
        life = flow.life
        if not self.verify or not life:
            return
        if fed.port == LAN:
            expected = segment.changed(fed.entered, life.lip, life.server, dseq=life.dseq, dval=life.dts or 0)
        else:
            client, vip = flow.enters
            same = fed.packet.family == fed.entered.family == (4 if len(vip[0]) == 4 else 6)
            numbers = {} if same else {"dack": -life.dseq, "decho": -(life.dts or 0)}
            expected = segment.changed(fed.packet if same else fed.entered, vip, client, **numbers)
        if expected.family != fed.entered.family and not expected.later and expected.flags & SYN:
            expected = segment.with_mss(expected, LINK_MTU - 60)
        self._fault(differences(fed.entered, expected, frame, fed.port))
        if fed.datagram and left and left.piece:
            self._named(fed.datagram, left.src + left.dst, left.piece.identity)

    def _named(self, datagram: Datagram, pair: bytes, identity: int) -> None:
        """All fragments of a datagram have one identification, and no others between the same addresses have it."""
        if datagram.left is None:
            datagram.left = identity
            owner, since = self._names.get((pair, identity), (datagram, self.now_ns))
            if owner is not datagram and self.now_ns - since < FRAGMENTS_WITHIN * 10**9:
                self._fault("two datagrams have one identification")
            self._names[pair, identity] = datagram, self.now_ns
        self._fault("" if datagram.left == identity else "fragments of one datagram differ in identification")

    def _learn(self, flow: Flow, entered: Segment, left: Segment, opened: bool) -> None:
        """Where the core sent a client's packet, and by how much it shifted its numbers."""
        before, after = entered.stamps(), left.stamps()
        shift = (after[0] - before[0]) & 0xFFFFFFFF if before and after else None
        lip, server = (left.src, left.sport), (left.dst, left.dport)
        if opened or not flow.life:
            if flow.life:
                self._owners.pop((flow.proto, flow.life.lip, flow.life.server), None)
            flow.life = Life(lip, server, (left.seq - entered.seq) & 0xFFFFFFFF, shift)
            service = self.layout.services[(flow.proto, *flow.enters[1])]
            owner = self._owners.setdefault((flow.proto, lip, server), flow)
            if self.verify and (owner is not flow or lip[0] not in self.layout.lips or server not in service.members):
                self._fault(
                    "the LIP port is another connection's" if owner is not flow else "LIP or real server of nobody"
                )
        elif flow.life.dts is None:
            flow.life.dts = shift

    def _open_by_hand(self, flow: Flow, packet: Segment, from_client: bool) -> None:
        """Make the beginning that the capture lacks, so that this packet finds its connection."""
        if packet.later or (flow.proto == UDP and from_client):
            return
        if flow.proto == UDP:
            self.report.made += 1
            self._made(self._from_client, flow, segment.udp(flow.client, flow.server))
            return
        stamps, acks = packet.stamps(), bool(packet.flags & ACK)
        client, server = (packet.seq, packet.ack) if from_client else (packet.ack, packet.seq)
        clock = (stamps or (0, 0)) if from_client else (stamps or (0, 0))[::-1]
        if not acks:
            client, server, clock = (client, 1, (clock[0], 0)) if from_client else (1, server, (1, clock[1]))
        synack = not from_client and packet.flags & SYN
        steps = [(True, client - 1, 0, SYN, clock[0], 0)]
        if not synack:
            steps += [
                (False, server - 1, client, SYN | ACK, clock[1], clock[0]),
                (True, client, server, ACK, clock[0], clock[1]),
            ]
        for by_client, seq, ack, flags, value, echo in steps:
            ends = (flow.client, flow.server) if by_client else (flow.server, flow.client)
            made = segment.tcp(*ends, seq, ack, flags, (value, echo) if stamps else None)
            self.report.made += 1
            if self._made(self._from_client if by_client else self._from_server, flow, made)[0] != "forwarded":
                break

    def _made(self, side: Callable[[Flow, Segment], tuple[str, str]], flow: Flow, packet: Segment) -> tuple[str, str]:
        """A packet of the bench's own goes through."""
        collecting, self.collecting = self.collecting, False
        end = side(flow, packet)
        self.collecting = collecting
        return end

    def _turn(self, port: int, frame: bytes) -> Turn:
        turn = self.wires.feed(port, frame, self.now_ns)
        if self.collecting and (turn.moved.get("to_rs") or turn.moved.get("to_client")):
            self.fed.append((port, frame))
        self._written(turn)
        return turn

    def _written(self, turn: Turn) -> None:
        for _, frame in turn.sent if self.out else ():
            assert self.out
            self.out.write(self.stamp_ns, frame)

    def _verdict(self, turn: Turn, packets: int = 1) -> tuple[str, str]:
        """The one end of the packet that was fed, and of those that waited for it."""
        moved, drops = turn.moved, self.wires.drops(turn.moved)
        ends = [("forwarded", "")] * (moved.get("to_rs", 0) + moved.get("to_client", 0))
        ends += [("passed", "")] * moved.get("passed", 0) + [
            ("skipped", n) for n in ("answered", "absorbed") if n in moved
        ]
        ends += [("dropped", name) for name, n in drops.items() for _ in range(n)]
        if len(ends) == packets and len(set(ends)) == 1:
            return ends[0]
        self._fault(f"{packets} packet(s) have {len(ends)} ends: {ends}")
        return ends[0] if ends else ("dropped", "unaccounted")

    def _only(self, fed: Fed, turn: Turn) -> bytes:
        """The forwarded frame; b"" when there is not exactly one on that port (of that place in the datagram)."""
        frames = [f for p, f in turn.sent if p == fed.port]
        if fed.packet.piece and len(frames) == len(turn.sent):
            left = [(f, segment.parse(f[14:])) for f in frames]
            frames = [f for f, p in left if p and p.piece and p.piece.offset == fed.packet.piece.offset]
            return frames[0] if len(frames) == 1 else b""
        return frames[0] if len(frames) == 1 == len(turn.sent) else b""

    def _fault(self, wrong: str) -> None:
        self._wrong = self._wrong or wrong


def replay(
    core: ModuleType,
    path: Path,
    *,
    verify: bool,
    out: Out | None = None,
    progress: Progress = lambda _: None,
    families: Families = AS_CAPTURED,
) -> tuple[Report, Layout]:
    """Play one file. Raises CaptureError."""
    layout = survey(path, progress, families)
    report = Report(flows=len(layout.flows))
    wires = Wires(core, layout)
    try:
        player = Player(wires, layout, report, verify, out)
        player.now_ns = 10**12
        last: int | None = None
        with Capture(path) as capture:
            for packet in capture:
                if last is not None:
                    player.now_ns += min(max(packet.time_ns - last, 0), JUMP_NS)
                last = max(packet.time_ns, last or 0)
                player.stamp_ns = packet.time_ns
                player.play(prepare(packet, layout.datagrams.get(report.packets + 1)))
                if report.packets % 256 == 0:
                    progress(capture.position())
            report.note = capture.note
        player.finish()
    finally:
        wires.close()
    return report, layout


# ---- how fast ----


@dataclass(frozen=True, slots=True)
class Speed:
    workers: int
    seconds: float
    packets: int
    generator_ns: float  # a packet: handing out copies of the frames, already taken off ns_per_packet
    ns_per_packet: float
    lost: int  # frames that entered and did not leave

    @property
    def mpps(self) -> float:
        """All workers together, the generator taken off."""
        return self.workers * 1e3 / self.ns_per_packet if self.ns_per_packet else 0.0


class _Loop:
    """One plane with the capture's connections established and its frames ready to be played in a loop."""

    def __init__(self, core: ModuleType, path: Path, layout: Layout) -> None:
        for flow in layout.flows.values():
            flow.life = None
        self.wires = Wires(core, layout)
        player = Player(self.wires, layout, Report(), verify=False)
        player.collecting = True
        held = 0
        with Capture(path) as capture:
            for number, packet in enumerate(capture, 1):
                ready = prepare(packet, layout.datagrams.get(number))
                if not ready.ordinary or ready.parts[0].piece or ready.parts[0].flags & (SYN | FIN | RST):
                    continue
                player.now_ns = core.monotonic_ns()
                player.play(ready)
                held += len(packet.frame)
                if held > LOOP_BYTES:
                    break
        sides = [[frame for port, frame in player.fed if port == side] for side in (WAN, LAN)]
        most = max(map(len, sides))
        self.frames = sum(map(len, sides))
        worker = self.wires.worker
        worker.detach()
        self.queues = [core.PcapQueue(worker, max(1, round(64 * len(side) / most)) if most else 1) for side in sides]
        for queue, side in zip(self.queues, sides, strict=True):
            for frame in side:
                queue.add(frame)
        self.generator_ns = (
            sum(q.measure(200_000 * len(s) // self.frames) for q, s in zip(self.queues, sides, strict=True) if s)
            / 200_000
        )
        for port, queue in enumerate(self.queues):
            worker.attach(port, queue)

    def counts(self) -> tuple[int, int]:
        pairs = [q.counts() for q in self.queues]
        return sum(p[0] for p in pairs), sum(p[1] for p in pairs)


def _progress_of(loops: list[_Loop], threads: list[threading.Thread]) -> tuple[int, int]:
    """Packets received, and CPU time spent: on a shared machine other processes' turns are not the worker's cost."""
    clocks = [time.pthread_getcpuclockid(thread.ident) for thread in threads if thread.ident]
    return sum(loop.counts()[0] for loop in loops), sum(time.clock_gettime_ns(clock) for clock in clocks)


def speed(core: ModuleType, path: Path, layout: Layout, workers: int, seconds: float) -> Speed:
    """Loop the data packets of the capture's established connections, each worker on a plane of its own."""
    loops = [_Loop(core, path, layout) for _ in range(workers)]
    try:
        if not all(loop.frames for loop in loops):
            return Speed(workers, 0.0, 0, 0.0, 0.0, 0)
        stop = ctypes.c_int(0)
        threads = [threading.Thread(target=loop.wires.worker.run, args=(ctypes.addressof(stop), 0)) for loop in loops]
        for thread in threads:
            thread.start()
        try:
            time.sleep(min(0.1, seconds / 10))
            start, before = time.monotonic(), _progress_of(loops, threads)
            time.sleep(seconds)
            after, spent = _progress_of(loops, threads), time.monotonic() - start
        finally:
            stop.value = 1
            for thread in threads:
                thread.join()
        packets, cpu_ns = after[0] - before[0], after[1] - before[1]
        generator = sum(loop.generator_ns for loop in loops) / workers
        net = max(cpu_ns / packets - generator, 0.0) if packets else 0.0
        lost = sum(loop.counts()[0] - loop.counts()[1] for loop in loops)
        return Speed(workers, spent, packets, generator, net, lost)
    finally:
        for loop in loops:
            loop.wires.close()
