"""What a capture asks of a balancer: its packets made ready to enter, its conversations, the services they need.

Pure over the capture's bytes. Every server becomes a service on a VIP, its own address; LIPs, real servers and next
hops come from networks that the capture does not use. Clients and VIPs may be given the other family's addresses, and
the real servers theirs (`Families`).

A packet that no layer-4 balancer forwards has a cause in `outside`. That never depends on what the core does.

Unsatisfying: where no SYN was captured, who sent the first packet is taken for the client. Stand-ins are for 16 128
hosts of each side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from fnat import segment
from fnat.captures import Capture, Captured
from fnat.segment import ACK, FIN, RST, SYN, TCP, UDP, Segment

MTU = 3500  # bytes of an IP packet that enters; translated it may be longer
CUT = 1460  # bytes of payload a sender's hardware would put into one packet
CUT_FRAGMENT = 1448
MAX_SERVICES = 30_000
FRAGMENTS_WITHIN = 30  # seconds from the first to the last fragment of a datagram

IP4, IP6 = b"\x08\x00", b"\x86\xdd"

End = tuple[bytes, int]  # address, port
Progress = Callable[[int], None]  # bytes of the file that have been read


# ---- packets ----


@dataclass(slots=True)
class Datagram:
    """A datagram in fragments: what its first one tells of all, and the parts that the capture has."""

    first: Segment | None = None
    since: int = 0  # ns
    spans: list[tuple[int, int]] = field(default_factory=list)
    overlaps: bool = False
    left: int | None = None  # its identification when it leaves

    def take(self, piece: Segment) -> None:
        assert piece.piece
        start = piece.piece.offset
        end = start + len(piece.data) - (piece.l4 if piece.family == 4 else piece.piece.at + 8)
        self.overlaps |= any(start < b and a < end for a, b in self.spans)
        self.spans.append((start, end if piece.piece.more else max(end, 1 << 17)))
        if not start:
            self.first = piece

    def complete(self) -> bool:
        reached = 0
        for start, end in sorted(self.spans):
            if start > reached:
                return False
            reached = max(reached, end)
        return reached >= 1 << 17


@dataclass(slots=True)
class Prepared:
    """A captured packet, ready to enter: parts of a conversation, or a frame to be judged, or the cause of neither."""

    frame: bytes = b""
    parts: list[Segment] = field(default_factory=list)  # more than one: captured before the sender's hardware cut it
    cause: str = ""
    outside: str = ""  # why no balancer would forward it; "": it is ordinary
    changes: tuple[str, ...] = ()
    datagram: Datagram | None = None  # of parts that are fragments

    @property
    def ordinary(self) -> bool:
        return not self.outside


def prepare(packet: Captured, datagram: Datagram | None = None) -> Prepared:
    """Undo what capturing did to a packet: snapped payload, checksums and segments left to hardware. `datagram`: the
    one that it is a fragment of."""

    frame, ip, changes = packet.frame, packet.frame[14:], []
    if packet.cause:
        return Prepared(cause=packet.cause, outside=packet.cause)
    header = {IP4: 20, IP6: 40}.get(frame[12:14], 0)
    if not header:
        return Prepared(frame, cause="oversize" if len(ip) > MTU else "", outside="not_ip")
    if len(ip) < header or ip[0] >> 4 != (4 if header == 20 else 6):
        snapped = packet.missing > 0 and len(ip) < header
        return Prepared(frame, cause="truncated" if snapped else "", outside="truncated" if snapped else "malformed")
    total, captured = _total(ip), len(ip)
    if total == (0 if header == 20 else 40) and ip[9 if header == 20 else 6] == TCP:  # length left to hardware
        total = min(captured + packet.missing, 65535)
        ip = (
            ip[:2] + total.to_bytes(2, "big") + ip[4:]
            if header == 20
            else ip[:4] + (total - 40).to_bytes(2, "big") + ip[6:]
        )
        changes.append("length")
    if captured < total <= captured + packet.missing:
        ip += bytes(total - captured)
        changes.append("padded")
    found = segment.parse(ip)
    if "padded" in changes and captured < _headers(ip, found):
        return Prepared(cause="truncated", outside="truncated")
    if found and found.piece and found.later and datagram and datagram.first:
        first = datagram.first
        found = replace(found, proto=first.proto, sport=first.sport, dport=first.dport)
    outside = _outside(ip, found, packet.group, datagram)
    if not found or outside in _STRANGERS:
        return Prepared(frame[:14] + ip, [], "oversize" if len(ip) > MTU else "", outside, tuple(changes))
    if outside == "no_first_fragment":
        return Prepared(cause=outside, outside=outside)
    if header == 20 and not segment.header_sound(found.data):
        changes.append("header_checksum")
        found = replace(found, data=segment.with_header_checksum(found.data))
    parts = [found]
    if len(found.data) > MTU and found.proto == TCP and not found.piece:
        parts = segment.split(found, CUT)
        changes.append("split")
    elif len(found.data) > MTU:
        if found.piece or (header == 40 and found.l4 != 40):
            return Prepared(cause="oversize", outside="oversize")
        parts = segment.cut(found, CUT_FRAGMENT, int.from_bytes(found.data[4:6], "big"))
        datagram = Datagram(parts[0])
        changes.append("fragmented")
    return Prepared(parts=parts, outside=outside, changes=tuple(changes), datagram=datagram)


_STRANGERS = ("multicast", "no_host", "no_port", "link_local")  # not between two hosts across a router


def _total(ip: bytes) -> int:
    return int.from_bytes(ip[2:4], "big") if ip[0] >> 4 == 4 else 40 + int.from_bytes(ip[4:6], "big")


def _headers(ip: bytes, found: Segment | None) -> int:
    """Bytes of the headers, which a capture must have."""
    if found:
        return found.l4 if found.later else found.payload
    if ip[0] >> 4 == 6:
        return 40
    l4 = {TCP: 20, UDP: 8}.get(ip[9], 0) if not int.from_bytes(ip[6:8], "big") & 0x1FFF else 0
    return (ip[0] & 15) * 4 + l4


def _outside(ip: bytes, found: Segment | None, group: bool, datagram: Datagram | None) -> str:
    """Why a layer-4 balancer would not forward this IP packet."""
    if not found:
        return _other(ip)
    if group or any(_is_group(a) for a in (found.src, found.dst)):
        return "multicast"
    if any(_is_nobody(a) for a in (found.src, found.dst)):
        return "no_host"
    if any(a[0] == 0xFE and a[1] & 0xC0 == 0x80 for a in (found.src, found.dst) if len(a) == 16):
        return "link_local"  # RFC 4291 2.5.6
    if found.piece:
        if not datagram or not datagram.first:
            return "no_first_fragment"
        if datagram.overlaps:
            return "fragment_overlap"  # RFC 5722, RFC 1858
    if 0 in (found.sport, found.dport):
        return "no_port"
    if (found.src, found.sport) == (found.dst, found.dport):
        return "no_host"
    if found.family == 6 and not found.later and found.absent:
        return "udp_no_checksum"  # RFC 8200 8.1
    if found.hops <= 1:
        return "ttl"
    return "" if found.proto == UDP or found.later or _sane(found.flags) else "tcp_flags"


def _other(ip: bytes) -> str:
    """Of a packet that is neither TCP nor UDP, or not wholly."""
    if ip[0] >> 4 == 4:
        header, following = (ip[0] & 15) * 4, ip[9]
        if header < 20 or not header <= _total(ip) <= len(ip):
            return "malformed"
    else:
        following, at, end = ip[6], 40, _total(ip)
        if end > len(ip):
            return "malformed"
        while (
            following in (segment.HOP_BY_HOP, segment.ROUTING, segment.FRAGMENT, segment.DESTINATION) and at + 8 <= end
        ):
            following, at = ip[at], at + (8 if following == segment.FRAGMENT else 8 * ip[at + 1] + 8)
    if following in (1, 58):
        return "icmp"
    return "malformed" if following in (TCP, UDP) else "protocol"


def _is_group(address: bytes) -> bool:
    return address[0] >= 224 if len(address) == 4 else address[0] == 0xFF


def _is_nobody(address: bytes) -> bool:
    """RFC 1122 3.2.1.3; RFC 4291 2.5.2, 2.5.5.2."""
    if len(address) == 4:
        return address[0] == 0
    return address == bytes(16) or address[:12] == bytes(10) + b"\xff\xff"


def _is_loopback(address: bytes) -> bool:
    return address[0] == 127 if len(address) == 4 else address == bytes(15) + b"\1"


def _sane(flags: int) -> bool:
    return bool(flags & (SYN | RST | ACK)) and not (flags & SYN and flags & (FIN | RST))


# ---- who served whom ----


@dataclass(slots=True)
class Life:
    """What the core chose for one connection, as seen on the wire towards the real server."""

    lip: End
    server: End
    dseq: int  # what was added to the client's sequence numbers
    dts: int | None  # what was added to the client's timestamps; None: none seen yet


@dataclass(slots=True)
class Flow:
    proto: int
    client: End
    server: End
    rank: int  # how sure the direction is: 2 a SYN told it, 1 a SYN-ACK, 0 the first packet
    enters: tuple[End, End] = ((b"", 0), (b"", 0))  # client and VIP as the core sees them
    served: bool = False
    life: Life | None = None


@dataclass(frozen=True, slots=True)
class Service:
    id: int
    members: list[End]


FlowKey = tuple[int, End, End]
ServiceKey = tuple[int, bytes, int]


def flow_key(packet: Segment) -> FlowKey:
    a, b = (packet.src, packet.sport), (packet.dst, packet.dport)
    return (packet.proto, a, b) if a < b else (packet.proto, b, a)


@dataclass(slots=True)
class Layout:
    """The balancer that a capture asks for."""

    flows: dict[FlowKey, Flow]
    services: dict[ServiceKey, Service]
    network: bytes  # the first two bytes of a /16 that the capture does not use
    network6: bytes  # the first six bytes of a /48
    lips: list[bytes]  # of the families that services' real servers have
    datagrams: dict[int, Datagram]  # by number of the packet, from 1 on, in the file
    packets: int

    @property
    def vips(self) -> list[bytes]:
        return sorted({vip for _, vip, _ in self.services})

    def host(self, family: int, number: int) -> bytes:
        """An address of the unused networks: 0..65535."""
        return (self.network if family == 4 else self.network6 + bytes(8)) + number.to_bytes(2, "big")


@dataclass(frozen=True, slots=True)
class Families:
    """Which family a capture's clients and VIPs get, and its real servers; 0: as captured."""

    client: int = 0
    server: int = 0


AS_CAPTURED = Families()


def survey(path: Path, progress: Progress, families: Families = AS_CAPTURED) -> Layout:
    """Read the file once. Raises CaptureError."""
    flows: dict[FlowKey, Flow] = {}
    used: set[bytes] = set()
    fragments = Fragments()
    packets = 0
    with Capture(path) as capture:
        for packet in capture:
            packets += 1
            if packets % 1024 == 0:
                progress(capture.position())
            if packet.frame[12:14] == IP4:
                used |= {packet.frame[26:28], packet.frame[30:32]}
            elif packet.frame[12:14] == IP6:
                used |= {packet.frame[22:28], packet.frame[38:44]}
            datagram = fragments.note(packets, packet)
            for part in prepare(packet, datagram).parts[:1]:
                if not part.later:
                    _remember(flows, part)
    network = next(n for n in _networks() if n not in used)
    network6 = next(n for n in _networks6() if n not in used)
    layout = Layout(flows, {}, network, network6, [], fragments.of, packets)
    _serve(layout, families)
    return layout


class Fragments:
    """Tells which fragments of a capture belong together."""

    def __init__(self) -> None:
        self.of: dict[int, Datagram] = {}
        self._under_way: dict[tuple[object, ...], Datagram] = {}

    def note(self, number: int, packet: Captured) -> Datagram | None:
        found = segment.parse(packet.frame[14:]) if packet.frame[12:14] in (IP4, IP6) else None
        if not found or not found.piece:
            return None
        key = (found.src, found.dst, found.proto if found.family == 4 else 0, found.piece.identity)
        datagram = self._under_way.get(key)
        if not datagram or datagram.complete() or packet.time_ns - datagram.since > FRAGMENTS_WITHIN * 10**9:
            datagram = self._under_way[key] = Datagram(since=packet.time_ns)
        datagram.take(found)
        self.of[number] = datagram
        return datagram


def _networks() -> Iterator[bytes]:
    """Networks to take addresses from, those for benchmarks first (RFC 2544, RFC 6890)."""
    yield from (bytes([198, 18]), bytes([198, 19]))
    yield from (bytes([a, b]) for a in range(10, 100) for b in range(256))


def _networks6() -> Iterator[bytes]:
    """RFC 5180 8 first, then RFC 4193."""
    yield bytes.fromhex("200100020000")
    yield from (b"\xfd" + n.to_bytes(5, "big") for n in range(1 << 16))


def _remember(flows: dict[FlowKey, Flow], packet: Segment) -> None:
    source, target = (packet.src, packet.sport), (packet.dst, packet.dport)
    rank = 0
    if packet.proto == TCP and packet.flags & SYN:
        rank = 2 if packet.opens else 1
        if packet.flags & ACK:
            source, target = target, source
    key = flow_key(packet)
    known = flows.get(key)
    if not known or rank > known.rank:
        flows[key] = Flow(packet.proto, source, target, rank)


def _serve(layout: Layout, families: Families) -> None:
    """A VIP and real servers for every server; two services share the same real servers. Addresses that exist only
    inside a host (loopback, or one address talking to itself), or in the other family, get stand-ins."""
    clients: dict[bytes, bytes] = {}
    vips: dict[bytes, bytes] = {}
    for flow in layout.flows.values():
        client, vip = flow.client[0], flow.server[0]
        family = families.client or (4 if len(vip) == 4 else 6)
        inside = client == vip or _is_loopback(client) or _is_loopback(vip)
        if inside or len(vip) != (4 if family == 4 else 16):
            client = clients.setdefault(client, layout.host(family, 0x8000 + len(clients) % 0x3F00))
            vip = vips.setdefault(vip, layout.host(family, 0xC000 + len(vips) % 0x3F00))
        flow.enters = (client, flow.client[1]), (vip, flow.server[1])
        key = (flow.proto, vip, flow.server[1])
        if key not in layout.services and len(layout.services) < MAX_SERVICES:
            pair = len(layout.services) // 2
            numbers = [0x0100 + 1 + (2 * pair + i) % 250 for i in (0, 1)]
            members = [(layout.host(families.server or family, n), 1024 + pair) for n in numbers]
            layout.services[key] = Service(len(layout.services) + 1, members)
        flow.served = key in layout.services
    count = min(2 + len(layout.flows) // 20_000, 250)
    lengths = {len(service.members[0][0]) for service in layout.services.values()}
    layout.lips += [layout.host(4 if n == 4 else 6, 1 + i) for n in sorted(lengths) for i in range(count)]
