"""Captures made with scapy, for the rows of test_replay.py and for machines without real captures."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

from scapy.layers.inet import ICMP, IP, TCP, UDP, fragment
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
    fragment6,
)
from scapy.layers.l2 import ARP, CookedLinux, Dot1Q, Ether
from scapy.packet import Packet, Raw
from scapy.utils import wrpcap

CLIENT, SERVER, OTHER = "192.0.2.10", "203.0.113.5", "203.0.113.6"
CLIENT6, SERVER6 = "2001:db8::10", "2001:db8:1::5"
LINK = Ether(src="00:00:5e:00:53:01", dst="00:00:5e:00:53:02")
ISN, SERVER_ISN = 0xFFFFFF00, 77_000  # the client's numbers wrap


def ip(from_client: bool, **fields: object) -> IP:
    ends = (CLIENT, SERVER) if from_client else (SERVER, CLIENT)
    return IP(src=ends[0], dst=ends[1], id=1 + len(fields), **{"tos": 0x4A, **fields})


def seg(
    from_client: bool,
    flags: str,
    seq: int,
    ack: int,
    data: bytes = b"",
    options: list | None = None,
    cport: int = 40000,
) -> Packet:
    ports = (cport, 80) if from_client else (80, cport)
    tcp = TCP(sport=ports[0], dport=ports[1], flags=flags, seq=seq % 2**32, ack=ack % 2**32, options=options or [])
    return LINK / ip(from_client) / tcp / Raw(data) if data else LINK / ip(from_client) / tcp


def conversation(cport: int = 40000, stamps: bool = True, isn: int = ISN) -> list[Packet]:
    """Handshake, data both ways, a selective acknowledgement, the end of both sides."""

    def ts(value: int, echo: int) -> list:
        return [("NOP", None), ("NOP", None), ("Timestamp", (value, echo))] if stamps else []

    c, s = isn + 1, SERVER_ISN + 1
    sack = [("NOP", None), ("NOP", None), ("SAck", (c + 100, c + 200))]
    rows = [
        (True, "S", isn, 0, b"", [("MSS", 1460), ("SAckOK", b""), *ts(1000, 0)]),
        (False, "SA", s - 1, c, b"", [("MSS", 1460), ("SAckOK", b""), *ts(5000, 1000)]),
        (True, "A", c, s, b"", ts(1001, 5000)),
        (True, "PA", c, s, b"GET / HTTP/1.1\r\n" * 7, ts(1002, 5000)),
        (True, "PA", c + 212, s, b"odd", ts(1002, 5000)),
        (False, "A", s, c + 112, b"", [*ts(5001, 1002), *sack]),
        (False, "PA", s, c + 112, b"answer" * 101, ts(5002, 1002)),
        (True, "FA", c + 215, s + 606, b"", ts(1003, 5002)),
        (False, "FA", s + 606, c + 216, b"", ts(5003, 1003)),
        (True, "A", c + 216, s + 607, b"", ts(1004, 5003)),
    ]
    return [seg(who, flags, seq, ack, data, options, cport) for who, flags, seq, ack, data, options in rows]


def datagram(from_client: bool = True, **fields: object) -> Packet:
    ports = (5353, 53) if from_client else (53, 5353)
    return LINK / ip(from_client) / UDP(sport=ports[0], dport=ports[1], **fields) / Raw(b"question?")


def damaged(packet: Packet, layer: type, **fields: int) -> Packet:
    """The packet with fields set after its checksums were computed."""
    whole = Ether(bytes(packet))
    for name, value in fields.items():
        setattr(whole[layer], name, value)
    return whole


def half_sum(packet: Packet) -> Packet:
    """The packet as its sender hands it to hardware: just the pseudo-header sum where the checksum belongs."""
    whole = Ether(bytes(packet))
    upper = whole[TCP] if TCP in whole else whole[UDP]
    addresses = bytes(whole)[26:34] if IP in whole else bytes(whole)[22:54]
    pseudo = addresses + struct.pack(">HI", 6 if TCP in whole else 17, len(bytes(upper)))
    total = sum(struct.unpack(f">{len(pseudo) // 2}H", pseudo))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    upper.chksum = total
    return whole


def as6(packets: list[Packet], *extensions: Packet, **fields: int) -> list[Packet]:
    """The same conversation over IPv6, behind these extension headers."""
    out = []
    for packet in packets:
        upper = (packet[TCP] if TCP in packet else packet[UDP]).copy()
        del upper.chksum
        ends = (CLIENT6, SERVER6) if packet[IP].src == CLIENT else (SERVER6, CLIENT6)
        head = LINK / IPv6(src=ends[0], dst=ends[1], tc=0xB9, fl=0x12345, **fields)
        for extension in extensions:
            head = head / extension.copy()
        out.append(Ether(bytes(head / upper)))
    return out


def pieces6(size: int = 2304, identity: int = 7, from_client: bool = True) -> list[Packet]:
    """A datagram over IPv6 in fragments of at most 1000 bytes."""
    ends, ports = ((CLIENT6, SERVER6), (5353, 53)) if from_client else ((SERVER6, CLIENT6), (53, 5353))
    whole = IPv6(src=ends[0], dst=ends[1]) / IPv6ExtHdrFragment(id=identity) / UDP(sport=ports[0], dport=ports[1])
    return [LINK / p for p in fragment6(whole / Raw(bytes(range(from_client, 256)) * (size // 256)), 1000)]


def pieces(size: int = 2304, identity: int = 7, from_client: bool = True, proto: type = UDP) -> list[Packet]:
    """The same over IPv4, at most 1020 bytes."""
    ends, ports = ((CLIENT, SERVER), (5353, 53)) if from_client else ((SERVER, CLIENT), (53, 5353))
    upper = proto(sport=ports[0], dport=ports[1], **({"flags": "S"} if proto is TCP else {}))
    return fragment(
        LINK / IP(src=ends[0], dst=ends[1], id=identity) / upper / Raw(bytes(range(from_client, 256)) * (size // 256)),
        1000,
    )


def many(packets: list[Packet], client: int) -> list[Packet]:
    """The same from another client, with the same identification."""
    out = [p.copy() for p in packets]
    for p in out:
        layer = p[IP] if IP in p else p[IPv6]
        layer.src = f"192.0.2.{100 + client}" if IP in p else f"2001:db8::1:{client}"
        if UDP in p and not (IP in p and p[IP].frag):
            p[UDP].sport = 5353  # the checksum is as wrong as the source differs: it stays so
    return [Ether(bytes(p)) for p in out]


def relink(packets: list[Packet], link: Callable[[Packet], Packet]) -> list[Packet]:
    return [link(p[IP]) for p in packets]


def moved(packets: list[Packet], client: str, server: str) -> list[Packet]:
    out = []
    for packet in packets:
        p = packet.copy()
        p[IP].src, p[IP].dst = (client, server) if p[IP].src == CLIENT else (server, client)
        out.append(Ether(bytes(p)))
    return out


TALK = conversation()
ICMP_ECHO = LINK / ip(True) / ICMP() / Raw(b"x" * 32)
FRAGMENTS = fragment(LINK / ip(True) / UDP(sport=9, dport=53) / Raw(bytes(2000)), 1000)
BIG = seg(True, "PA", ISN + 1, SERVER_ISN + 1, bytes(range(256)) * 40)
ALL = [
    *TALK,
    *conversation(40001, stamps=False),
    *conversation(40000, isn=5),
    datagram(),
    datagram(False),
    half_sum(TALK[3]),
]
ALL += [half_sum(datagram()), datagram(chksum=0), ICMP_ECHO, *FRAGMENTS, LINK / ARP(pdst=OTHER)]
OPTIONS = PadN(optdata=b"\0\0\0\0")
TALK6, QUESTION6 = as6(TALK), as6([datagram(), datagram(False)])
ALL += [
    *TALK6,
    *as6(conversation(40001, stamps=False), IPv6ExtHdrHopByHop(options=[OPTIONS])),
    *QUESTION6,
    *as6([datagram()], IPv6ExtHdrFragment(id=3)),
    *map(half_sum, (TALK6[3], QUESTION6[0], QUESTION6[1])),
    *pieces6(),
    *pieces6(from_client=False),
    *pieces(),
    *pieces(from_client=False),
    *(p for n in range(8) for p in many(pieces(), n)),
    *(p for n in range(8) for p in many(pieces6(), n)),
    seg(True, "S", 77, 0, options=[("MSS", 9000)], cport=40009),
    *as6([seg(True, "S", 77, 0, options=[("MSS", 9000)], cport=40009)]),
    *as6([seg(True, "S", 78, 0, bytes(1300), cport=40010)]),
    half_sum(LINK / IPv6(src=CLIENT6, dst="2001:db8::ffff") / UDP(sport=0, dport=9)),
]

# sentence, packets, what the report must say (fields of Report, those not named may be anything)
ROWS: list[tuple[str, list[Packet], dict[str, object]]] = [
    ("a TCP conversation", TALK, {"flows": 1, "forwarded": 10, "made": 0}),
    ("without timestamps", conversation(stamps=False), {"flows": 1, "forwarded": 10}),
    ("begins inside the connection, client first", TALK[3:], {"forwarded": 7, "made": 3}),
    ("begins inside the connection, server first", TALK[6:], {"forwarded": 4, "made": 3}),
    ("begins with the SYN-ACK", TALK[1:], {"flows": 1, "forwarded": 9, "made": 1}),
    ("the same ports again after the end", [*TALK, *conversation(isn=5)], {"flows": 1, "forwarded": 20, "made": 0}),
    ("a SYN sent twice", [TALK[0], *TALK], {"forwarded": 11}),
    ("two clients of one server", [*TALK, *conversation(40001)], {"flows": 2, "forwarded": 20}),
    ("reset by the server", [TALK[0], seg(False, "RA", 0, ISN + 1)], {"forwarded": 2}),
    ("UDP, question and answer", [datagram(), datagram(False)], {"flows": 1, "forwarded": 2}),
    ("UDP without checksum", [datagram(chksum=0), datagram(False, chksum=0)], {"forwarded": 2}),
    ("checksum left to hardware", [half_sum(p) for p in (*TALK, datagram())], {"forwarded": 11}),
    ("wrong checksum stays as wrong", [damaged(datagram(), UDP, chksum=4711)], {"forwarded": 1}),
    (
        "header checksum left to hardware",
        [damaged(p, IP, chksum=0) for p in TALK],
        {"forwarded": 10, "prepared": {"header_checksum": 10}},
    ),
    ("cut by hardware after capturing", [*TALK[:3], BIG], {"forwarded": 4, "prepared": {"split": 1}}),
    (
        "a datagram larger than any frame",
        [LINK / ip(True) / UDP(dport=9, sport=9) / Raw(bytes(5000))],
        {"forwarded": 1, "prepared": {"fragmented": 1}},
    ),
    ("VLAN tags", relink(TALK, lambda p: LINK / Dot1Q(vlan=5) / Dot1Q(vlan=6) / p), {"forwarded": 10}),
    ("Linux cooked", relink(TALK, lambda p: CookedLinux() / p), {"forwarded": 10}),
    ("raw IP", relink(TALK, lambda p: p), {"forwarded": 10}),
    ("on a host's loopback", moved([*TALK, datagram()], "127.0.0.1", "127.0.0.1"), {"forwarded": 11}),
    ("both are server and client", [datagram(), *moved(TALK, SERVER, CLIENT)], {"flows": 2, "forwarded": 11}),
    (
        "TTL spent",
        [datagram(), damaged(datagram(), IP, ttl=1, chksum=None)],
        {"forwarded": 1, "dropped": {"ttl": 1}, "ordinary": 1},
    ),
    ("ping of a server", [datagram(), ICMP_ECHO], {"forwarded": 1, "skipped": {"answered": 1}}),
    ("ping of a stranger", [ICMP_ECHO], {"passed": 1}),
    (
        "ICMP error to a server, about nothing",
        [datagram(), LINK / ip(True) / ICMP(type=3)],
        {"dropped": {"icmp_quote": 1}},
    ),
    ("fragments to a server", [datagram(), *FRAGMENTS], {"flows": 2, "forwarded": 1 + len(FRAGMENTS)}),
    ("fragments both ways", [*pieces(), *pieces(from_client=False)], {"flows": 1, "forwarded": 6}),
    ("the last fragment first", [datagram(), *pieces()[::-1]], {"forwarded": 4, "made": 0}),
    ("a server's last fragment first", [datagram(), *pieces(from_client=False)[::-1]], {"forwarded": 4}),
    ("a datagram between two others", [*pieces()[:1], *pieces(1000, 8), *pieces()[1:]], {"forwarded": 4}),
    ("fragments of a segment", pieces(proto=TCP), {"forwarded": 3}),
    (
        "fragments without the first one",
        pieces()[1:],
        {"skipped": {"no_first_fragment": 2}, "outside": {"no_first_fragment": 2}, "ordinary": 0},
    ),
    (
        "a fragment twice",
        [*pieces()[:2], *pieces()[1:]],
        {"forwarded": 3, "dropped": {"fragment_duplicate": 1}, "outside": {"fragment_overlap": 4}},
    ),
    ("IPv6", [*TALK6, *QUESTION6], {"flows": 2, "forwarded": 12, "ordinary": 12, "made": 0}),
    ("IPv6, VLAN tags", [LINK / Dot1Q(vlan=5) / p[IPv6] for p in TALK6], {"forwarded": 10}),
    ("IPv6 begins inside the connection", TALK6[3:], {"forwarded": 7, "made": 3}),
    ("IPv6, checksum left to hardware", [half_sum(p) for p in (*TALK6, *QUESTION6)], {"forwarded": 12}),
    ("IPv6, wrong checksum stays as wrong", [damaged(QUESTION6[0], UDP, chksum=4711)], {"forwarded": 1}),
    ("IPv6, options for every hop", as6(TALK, IPv6ExtHdrHopByHop(options=[OPTIONS])), {"forwarded": 10}),
    (
        "IPv6, three extension headers",
        as6(
            TALK, IPv6ExtHdrHopByHop(options=[OPTIONS]), IPv6ExtHdrDestOpt(options=[OPTIONS]), IPv6ExtHdrFragment(id=9)
        ),
        {"forwarded": 10},
    ),
    (
        "IPv6, a source route with hops left",
        as6(TALK[:1], IPv6ExtHdrRouting(addresses=[CLIENT6], segleft=1)),
        {"forwarded": 0, "ordinary": 0},
    ),
    ("IPv6, cut by hardware after capturing", [*TALK6[:3], *as6([BIG])], {"forwarded": 4, "prepared": {"split": 1}}),
    ("IPv6, fragments both ways", [*pieces6(), *pieces6(from_client=False)], {"flows": 1, "forwarded": 6}),
    ("IPv6, the last fragment first", [*QUESTION6, *pieces6()[::-1]], {"forwarded": 5}),
    (
        "IPv6, hops spent",
        [QUESTION6[0], *as6([datagram()], hlim=1)],
        {"forwarded": 1, "dropped": {"ttl": 1}, "outside": {"ttl": 1}},
    ),
    (
        "IPv6, UDP without checksum",
        [QUESTION6[0], damaged(QUESTION6[1], UDP, chksum=0)],
        {"forwarded": 1, "outside": {"udp_no_checksum": 1}},
    ),
    ("IPv6 on a host's loopback", [LINK / IPv6(src="::1", dst="::1") / UDP(sport=1, dport=2)], {"forwarded": 1}),
    (
        "IPv6 ping of a server",
        [QUESTION6[0], LINK / IPv6(src=CLIENT6, dst=SERVER6) / ICMPv6EchoRequest()],
        {"forwarded": 1, "skipped": {"answered": 1}},
    ),
    (
        "the answer to a packet that does not arrive",
        [damaged(datagram(), IP, ttl=1, chksum=None), datagram(False)],
        {"forwarded": 1, "dropped": {"ttl": 1}, "made": 1},
    ),
    (
        "another protocol to a server",
        [datagram(), LINK / ip(True, proto=47) / Raw(b"gre")],
        {"dropped": {"protocol": 1}},
    ),
    (
        "multicast",
        [LINK / IP(src=CLIENT, dst="239.1.1.1") / UDP(sport=1, dport=1)],
        {"flows": 0, "passed": 1, "ordinary": 0},
    ),
    (
        "broadcast frame",
        [Ether(dst="ff:ff:ff:ff:ff:ff") / IP(src=CLIENT, dst="192.0.2.255") / UDP(sport=9, dport=9)],
        {"flows": 0, "passed": 1},
    ),
    ("IPv6 of a host and ARP", [LINK / IPv6() / UDP(sport=0), LINK / ARP(pdst=OTHER)], {"passed": 2, "forwarded": 0}),
    ("nothing but a header", [], {"packets": 0}),
]


def write(path: Path, packets: list[Packet]) -> Path:
    for n, packet in enumerate(packets):
        packet.time = 1_700_000_000 + n / 1000
    wrpcap(str(path), packets or [LINK])
    if not packets:
        path.write_bytes(path.read_bytes()[:24])
    return path
