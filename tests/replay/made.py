"""Captures made with scapy, for the rows of test_replay.py and for machines without real captures."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

from scapy.layers.inet import ICMP, IP, TCP, UDP, fragment
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, CookedLinux, Dot1Q, Ether
from scapy.packet import Packet, Raw
from scapy.utils import wrpcap

CLIENT, SERVER, OTHER = "192.0.2.10", "203.0.113.5", "203.0.113.6"
LINK = Ether(src="00:00:5e:00:53:01", dst="00:00:5e:00:53:02")
ISN, SERVER_ISN = 0xFFFFFF00, 77_000  # the client's numbers wrap


def ip(from_client: bool, **fields: object) -> IP:
    ends = (CLIENT, SERVER) if from_client else (SERVER, CLIENT)
    return IP(src=ends[0], dst=ends[1], id=1 + len(fields), **fields)


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
    l4 = bytes(whole[IP].payload)
    words = struct.unpack(">6H", bytes(whole)[26:34] + struct.pack(">HH", whole[IP].proto, len(l4)))
    total = sum(words)
    total = (total & 0xFFFF) + (total >> 16)
    whole[IP].payload.chksum = (total & 0xFFFF) + (total >> 16)
    return whole


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
ALL += [half_sum(datagram()), datagram(chksum=0), ICMP_ECHO, *FRAGMENTS, LINK / ARP(pdst=OTHER), LINK / IPv6() / UDP()]

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
        {"skipped": {"oversize": 1}},
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
    ("ICMP error to a server", [datagram(), LINK / ip(True) / ICMP(type=3)], {"dropped": {"icmp": 1}}),
    ("fragments to a server", [datagram(), *FRAGMENTS], {"forwarded": 1, "skipped": {"fragment": len(FRAGMENTS)}}),
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
    ("IPv6 and ARP", [LINK / IPv6() / UDP(), LINK / ARP(pdst=OTHER)], {"passed": 2}),
    ("nothing but a header", [], {"packets": 0}),
]


def write(path: Path, packets: list[Packet]) -> Path:
    for n, packet in enumerate(packets):
        packet.time = 1_700_000_000 + n / 1000
    wrpcap(str(path), packets or [LINK])
    if not packets:
        path.write_bytes(path.read_bytes()[:24])
    return path
