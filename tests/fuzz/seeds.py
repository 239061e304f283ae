"""First inputs for both fuzzers: sound frames of every kind for the parser, short programs for the worker.

usage: seeds.py DIRECTORY [CAPTURE…]   writes DIRECTORY/parse and DIRECTORY/forward; frames of pcap files are added to both.
Needs nothing but the standard library.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import packets as wire
import reference_icmp as icmp

CLIENT, VIP, LIP, RS = "198.51.100.7", "192.0.2.10", "10.0.0.11", "10.0.0.101"
CLIENT6, VIP6, LIP6, RS6 = "2001:db8:99::7", "2001:db8:1::10", "fd00::11", "fd00::101"
RAW, FIXED, SYN, SEGMENT, DATAGRAM, ANSWER, ANSWER_BYTES, TIME, CONFIG, AGAIN, ERROR, FRAGMENT = range(
    12
)  # operations of fuzz_forward.c
TURN = 132  # added to an operation: makes a turn after it; 132 is a multiple of 12, so the operation stays


def frames() -> list[bytes]:
    options = wire.OPTION_MSS + wire.OPTION_SACK_OK + wire.option_timestamp(1, 0)
    return [
        wire.tcp(CLIENT, 1, VIP, 80, wire.SYN, options=options),
        wire.tcp(CLIENT, 1, VIP, 80, wire.ACK, payload=b"x" * 30, options=wire.option_sack([(1, 2), (3, 4)])),
        wire.tcp(CLIENT, 1, VIP, 80, wire.RST | wire.ACK, ip_options=b"\1\1\1\0"),
        wire.udp(CLIENT, 1, VIP, 80, b"x" * 30),
        wire.udp(CLIENT, 1, VIP, 80, b"", checksum=0, trailer=bytes(18)),
        wire.udp(CLIENT, 1, VIP, 80, b"x" * 8, frag=wire.MF),
        *wire.pieces(wire.udp(CLIENT, 1, VIP, 80, b"x" * 56, frag=0), 5, 32),
        *wire.pieces(wire.echo_request(CLIENT, VIP, bytes(56)), 6, 32),
        *wire.pieces(wire.tcp("2001:db8::7", 1, "2001:db8::10", 80, wire.ACK, payload=bytes(40)), 7, 32),
        wire.echo_request(CLIENT, VIP),
        wire.icmp(CLIENT, LIP, 3, 4, payload=wire.udp(LIP, 1, RS, 80)[14:]),
        wire.arp(1, wire.CLIENT_MAC, CLIENT, "00:00:00:00:00:00", VIP),
        wire.arp(2, wire.RS_MAC, RS, wire.CLIENT_MAC, LIP),
        wire.ether(bytes(40), ethertype=wire.ETH_IP6),
        wire.tcp(CLIENT6, 1, VIP6, 80, wire.SYN, options=options),
        wire.udp(CLIENT6, 1, VIP6, 80, b"x" * 30, extensions=(0, 60)),
        wire.echo_request(CLIENT6, VIP6),
        icmp.solicitation(RS6, icmp.solicited_node(LIP6), LIP6, wire.RS_MAC),
        icmp.solicitation("::", icmp.solicited_node(LIP6), LIP6, ""),
        icmp.advertisement(RS6, LIP6, RS6, wire.RS_MAC),
    ]


def op(what: int, how: int, data: bytes = b"", turn: bool = True) -> bytes:
    return bytes([what + (TURN if turn else 0), how, len(data)]) + data


def programs() -> list[bytes]:
    options = wire.option_timestamp(1, 0)
    life = op(SYN, 3, options) + op(ANSWER, wire.SYN | wire.ACK) + bytes([SEGMENT + TURN, 3, 12, wire.ACK]) + options
    closed = life + bytes([SEGMENT + TURN, 3, 12, wire.FIN | wire.ACK]) + options + op(ANSWER, wire.FIN | wire.ACK)
    whole, cut, changed = bytes([255]), bytes([12]), bytes([7]) + bytes(24) + b"\1"
    errors = [
        bytes([kind, code, 0, 0, 5, 120])
        for kind, code in ((3, 4), (3, 3), (11, 0), (12, 0), (1, 4), (2, 0), (3, 0), (4, 1))
    ]
    opened = [op(SYN, 3, options), op(DATAGRAM, 5, b"query")]
    opened += [op(FIXED, 0, frame) * 2 for frame in frames() if frame[12:14] == b"\x86\xdd" and frame[20] in (0, 6)]
    piece = [(0x2000, bytes(24)), (0x2004, bytes(32)), (8, bytes(16))]  # flags and place, bytes
    there = [bytes([FRAGMENT + TURN, 3, len(b)]) + struct.pack("!H", at) + b for at, b in piece]
    back = [bytes([FRAGMENT + TURN, 67, len(b)]) + struct.pack("!H", at) + b for at, b in piece]
    return [
        *(b"".join([o, *(op(ERROR, 1, e + end) for e in errors for end in (whole, cut, changed))]) for o in opened),
        life + b"".join(op(ERROR, side, e + whole) for e in errors for side in (0, 1)),
        b"".join(there) + b"".join(back) + op(TIME, 100),
        b"".join(reversed(there)) + b"".join(reversed(back)),
        b"".join([*there[1:], *there]) + op(TIME, 100),
        life + op(TIME, 66),
        closed + op(SYN, 3, options) + op(TIME, 200),
        life + op(CONFIG, 2, b"") + op(AGAIN, 0),
        op(DATAGRAM, 5, b"query") + op(ANSWER, 0) + op(TIME, 255),
        op(CONFIG, 33, bytes(5)) + b"".join(op(SYN, i, options, False) for i in range(20)),
        *(op(FIXED, side, frame[:255]) for frame in frames() for side in (0, 1)),
    ]


def captured(path: Path, most: int = 20) -> list[bytes]:
    """The first frames of an Ethernet pcap file; anything else gives none."""
    raw = path.read_bytes()
    order = {b"\xd4\xc3\xb2\xa1": "<", b"\xa1\xb2\xc3\xd4": ">"}.get(raw[:4])
    if order is None or struct.unpack_from(order + "I", raw, 20)[0] != 1:
        return []
    out, at = [], 24
    while at + 16 <= len(raw) and len(out) < most:
        size = struct.unpack_from(order + "I", raw, at + 8)[0]
        out.append(raw[at + 16 : at + 16 + size])
        at += 16 + size
    return out


def main(directory: Path, captures: list[Path]) -> None:
    more = [frame for path in captures for frame in captured(path)]
    inputs = {"parse": frames() + more, "forward": programs() + [op(FIXED, 0, frame[:255]) for frame in more]}
    for name, seeds in inputs.items():
        (directory / name).mkdir(parents=True, exist_ok=True)
        for i, seed in enumerate(seeds):
            (directory / name / f"seed-{i}").write_bytes(seed)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
