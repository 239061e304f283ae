"""The reference's view of SCTP (RFC 9260): what a packet does to an association of one address on each side, and what it looks like
when it leaves. Plain Python; nothing shared with the product.

An association is what both tags agree on: `offered` by the INIT ACK under way, `agreed` once the COOKIE ECHO has come. A chunk that
anybody could send who does not know the tags moves nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

import packets as wire

STATES = ("SCTP_EST", "SCTP_INIT", "SCTP_SHUTDOWN", "SCTP_CLOSED")
INIT, INIT_ACK, ABORT, SHUTDOWN, SHUTDOWN_ACK, COOKIE_ECHO, COOKIE_ACK, SHUTDOWN_COMPLETE = 1, 2, 6, 7, 8, 10, 11, 14
_CLIENT, _RS = 0, 1
_ADDRESSES = (5, 6, 0xC004)  # IPv4, IPv6, set primary address
_PADDING = 0x8005  # RFC 4820


@dataclass
class Tags:
    """By sender: the tag its packets carry."""

    offered: list[int] = field(default_factory=lambda: [0, 0])
    agreed: list[int] = field(default_factory=lambda: [0, 0])

    def right(self, sender: int, tag: int, flags: int, state: str) -> bool:
        """RFC 9260 8.5.1; with the T bit it is the other side's."""
        known = self.offered if state == "SCTP_INIT" else self.agreed
        return tag != 0 and tag == known[sender ^ (flags & 1)]


def chunks(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(type, flags, value), up to the first one with an impossible length."""
    while len(data) >= 4:
        kind, flags, size = struct.unpack_from("!BBH", data)
        if size < 4 or size > len(data):
            return
        yield kind, flags, data[4:size]
        data = data[(size + 3) // 4 * 4 :]


def is_opening(f: wire.Frame) -> bool:
    """An INIT that may be answered: no tag yet, and one to answer with."""
    kind, _, value = next(chunks(f.payload), (0, 0, b""))
    return f.tag == 0 and kind == INIT and len(value) >= 16 and value[:4] != bytes(4)


def opened(f: wire.Frame) -> Tags:
    tags = Tags()
    tags.offered[_RS] = struct.unpack_from("!I", f.payload, 4)[0]
    return tags


def next_state(f: wire.Frame, tags: Tags, sender: int, state: str) -> str:
    for kind, flags, value in chunks(f.payload):
        own = struct.unpack_from("!I", value)[0] if len(value) >= 16 else None
        if kind == INIT and own is not None and sender == _CLIENT and f.tag == 0 and state == "SCTP_INIT":
            tags.offered[_RS] = own
        elif kind == INIT_ACK and own is not None and sender == _RS:
            tags.offered = [own, f.tag]
        elif kind == COOKIE_ECHO and sender == _CLIENT and f.tag and f.tag == tags.offered[_CLIENT]:
            tags.agreed = [f.tag, tags.offered[_RS]]
        elif kind == COOKIE_ACK and sender == _RS and state == "SCTP_INIT" and f.tag and f.tag == tags.agreed[_RS]:
            state = "SCTP_EST"
        elif kind in (SHUTDOWN, SHUTDOWN_ACK) and state == "SCTP_EST" and tags.right(sender, f.tag, 0, state):
            state = "SCTP_SHUTDOWN"
        elif kind == SHUTDOWN_COMPLETE and state == "SCTP_INIT":
            continue
        elif kind in (ABORT, SHUTDOWN_COMPLETE) and tags.right(sender, f.tag, flags, state):
            state = "SCTP_CLOSED"
    return state


def without_addresses(packet: bytes) -> bytes:
    """Address parameters of a first INIT or INIT ACK become padding of the same length."""
    if len(packet) < 32 or packet[12] not in (INIT, INIT_ACK):
        return packet
    out, at, end = bytearray(packet), 32, min(len(packet), 12 + struct.unpack_from("!H", packet, 14)[0])
    while at + 4 <= end:
        kind, size = struct.unpack_from("!HH", packet, at)
        if size < 4 or at + size > end:
            break
        if kind in _ADDRESSES:
            out[at : at + size] = struct.pack("!HH", _PADDING, size) + bytes(size - 4)
        at += (size + 3) // 4 * 4
    return bytes(out)


def hides(packet: bytes) -> bool:
    return without_addresses(packet) != packet


def completed(packet: bytes) -> bytes:
    return packet[:8] + struct.pack("<I", wire.sctp_checksum(packet)) + packet[12:]


def rewritten(packet: bytes, sport: int, dport: int) -> bytes:
    """A right checksum is right again, a wrong one is wrong in the same bits, one that was left to hardware is computed."""
    old = struct.unpack_from("<I", packet, 8)[0]
    error = old ^ wire.sctp_checksum(packet) if old else 0
    new = struct.pack("!HH", sport, dport) + without_addresses(packet)[4:]
    return new[:8] + struct.pack("<I", wire.sctp_checksum(new) ^ error) + new[12:]
