"""What a capture asks of a balancer: its packets made ready to enter, its conversations, the services they need.

Pure over the capture's bytes. Every server becomes a service on a VIP, its own address; LIPs, real servers and next
hops come from a network that the capture does not use.

Unsatisfying: where no SYN was captured, who sent the first packet is taken for the client.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fnat import segment
from fnat.captures import Capture, Captured
from fnat.segment import ACK, FIN, RST, SYN, TCP, UDP, Segment

MTU = 3500  # bytes of an IP packet, the most that a frame of the core takes
CUT = 1460  # bytes of payload a sender's hardware would put into one packet
MAX_SERVICES = 30_000

End = tuple[bytes, int]  # address, port
Progress = Callable[[int], None]  # bytes of the file that have been read


# ---- packets ----


@dataclass(slots=True)
class Prepared:
    """A captured packet, ready to enter: parts of a conversation, or a frame to be judged, or the cause of neither."""

    frame: bytes = b""
    parts: list[Segment] = field(default_factory=list)  # more than one: captured before the sender's hardware cut it
    cause: str = ""
    ordinary: bool = False  # a router would carry it: unfragmented, TTL to spend, headers that make sense
    changes: tuple[str, ...] = ()


def prepare(packet: Captured) -> Prepared:
    """Undo what capturing did to a packet: snapped payload, checksums and segments left to hardware."""
    frame, ip, changes = packet.frame, packet.frame[14:], []
    if packet.cause:
        return Prepared(cause=packet.cause)
    if frame[12:14] != b"\x08\x00" or len(ip) < 20 or ip[0] >> 4 != 4:
        snapped = packet.missing > 0 and frame[12:14] == b"\x08\x00" and len(ip) < 20
        return Prepared(frame, cause="truncated" if snapped else "oversize" if len(ip) > MTU else "")
    total, captured = int.from_bytes(ip[2:4], "big"), len(ip)
    if total == 0 and ip[9] == TCP:  # length left to hardware
        total = min(captured + packet.missing, 65535)
        ip = ip[:2] + total.to_bytes(2, "big") + ip[4:]
        changes.append("length")
    if captured < total <= captured + packet.missing:
        ip += bytes(total - captured)
        changes.append("padded")
    found = segment.parse(ip)
    if "padded" in changes:
        start = (ip[0] & 15) * 4
        if not int.from_bytes(ip[6:8], "big") & 0x1FFF and ip[9] in (TCP, UDP):
            start = found.payload if found else start + (20 if ip[9] == TCP else 8)
        if captured < start:
            return Prepared(cause="truncated")
    if not found or packet.group or not _talks(found):
        return Prepared(frame[:14] + ip, cause="oversize" if len(ip) > MTU else "", changes=tuple(changes))
    if not segment.header_sound(found.data):
        changes.append("header_checksum")
        found = segment.parse(segment.with_header_checksum(found.data))
        assert found
    ordinary = found.data[8] > 1 and (found.proto == UDP or _sane(found.flags))
    if len(found.data) <= MTU:
        return Prepared(parts=[found], ordinary=ordinary, changes=tuple(changes))
    if found.proto == UDP:
        return Prepared(cause="oversize")
    return Prepared(parts=segment.split(found, CUT), ordinary=ordinary, changes=(*changes, "split"))


def _talks(packet: Segment) -> bool:
    """Could these be two hosts of a conversation?"""
    ends_differ = (packet.src, packet.sport) != (packet.dst, packet.dport)
    return (
        all(0 < a[0] < 224 for a in (packet.src, packet.dst)) and 0 not in (packet.sport, packet.dport) and ends_differ
    )


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
    lips: list[bytes]
    packets: int

    @property
    def vips(self) -> list[bytes]:
        return sorted({vip for _, vip, _ in self.services})


def survey(path: Path, progress: Progress) -> Layout:
    """Read the file once. Raises CaptureError."""
    flows: dict[FlowKey, Flow] = {}
    used: set[bytes] = set()
    packets = 0
    with Capture(path) as capture:
        for packet in capture:
            packets += 1
            if packets % 1024 == 0:
                progress(capture.position())
            if packet.frame[12:14] == b"\x08\x00":
                used |= {packet.frame[26:28], packet.frame[30:32]}
            for part in prepare(packet).parts[:1]:
                _remember(flows, part)
    network = next(n for n in _networks() if n not in used)
    lips = [network + bytes([0, 1 + i]) for i in range(min(2 + len(flows) // 20_000, 250))]
    layout = Layout(flows, {}, network, lips, packets)
    _serve(layout)
    return layout


def _networks() -> Iterator[bytes]:
    """Networks to take addresses from, those for benchmarks first (RFC 2544, RFC 6890)."""
    yield from (bytes([198, 18]), bytes([198, 19]))
    yield from (bytes([a, b]) for a in range(10, 100) for b in range(256))


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


def _serve(layout: Layout) -> None:
    """A VIP and real servers for every server; two services share the same real servers. Addresses that exist only
    inside a host (127.0.0.0/8, or one address talking to itself) get stand-ins."""
    clients: dict[bytes, bytes] = {}
    vips: dict[bytes, bytes] = {}
    for flow in layout.flows.values():
        client, vip = flow.client[0], flow.server[0]
        if client == vip or 127 in (client[0], vip[0]):
            client = clients.setdefault(client, layout.network + (0x8000 + len(clients) % 0x3F00).to_bytes(2, "big"))
            vip = vips.setdefault(vip, layout.network + (0xC000 + len(vips) % 0x3F00).to_bytes(2, "big"))
        flow.enters = (client, flow.client[1]), (vip, flow.server[1])
        key = (flow.proto, vip, flow.server[1])
        if key not in layout.services and len(layout.services) < MAX_SERVICES:
            pair = len(layout.services) // 2
            members = [(layout.network + bytes([1, 1 + (2 * pair + i) % 250]), 1024 + pair) for i in (0, 1)]
            layout.services[key] = Service(len(layout.services) + 1, members)
        flow.served = key in layout.services
