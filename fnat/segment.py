"""One IPv4 TCP or UDP packet as bytes: its fields, its checksum's honesty, and changes that keep that honesty.

Rules: pure functions over bytes, shared with nothing of the core, because the replay bench uses them to judge the core.
A checksum is one of four things: right, wrong by some amount, left to hardware (it holds the sum of the pseudo-header
alone), or absent (UDP, zero). A change of addresses keeps which one it is, and the amount.

RFC 791, RFC 768, RFC 9293; timestamps RFC 7323, SACK RFC 2018; one's complement arithmetic is modulo 65535 (RFC 1071).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

TCP, UDP = 6, 17
FIN, SYN, RST, PSH, ACK, CWR = 1, 2, 4, 8, 16, 128
_SACK, _TIMESTAMPS = 5, 8
_M32 = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Segment:
    """A whole IPv4 packet with a whole TCP or UDP header; offsets are from the first byte of the IP header."""

    data: bytes
    l4: int  # offset of the TCP or UDP header
    proto: int
    src: bytes
    dst: bytes
    sport: int
    dport: int
    seq: int = 0
    ack: int = 0
    flags: int = 0

    @property
    def opens(self) -> bool:
        """Is it a first packet: any UDP, a TCP SYN alone?"""
        return self.proto == UDP or self.flags & (SYN | ACK | RST | FIN) == SYN

    @property
    def payload(self) -> int:
        """Offset of the first byte behind the TCP or UDP header."""
        return self.l4 + (8 if self.proto == UDP else self.data[self.l4 + 12] >> 4 << 2)

    @property
    def checksum_at(self) -> int:
        return self.l4 + (6 if self.proto == UDP else 16)

    @property
    def checksum(self) -> int:
        return int.from_bytes(self.data[self.checksum_at : self.checksum_at + 2], "big")

    def options(self) -> Iterator[tuple[int, int, int]]:
        """TCP options up to the first malformed one: (kind, offset, length)."""
        at, end = self.l4 + 20, self.payload
        while self.proto == TCP and at < end and self.data[at]:
            length = 1 if self.data[at] == 1 else self.data[at + 1] if at + 1 < end else 0
            if length < 1 + (self.data[at] != 1) or at + length > end:
                return
            yield self.data[at], at, length
            at += length

    def stamps(self) -> tuple[int, int] | None:
        """TSval and TSecr, None without timestamps."""
        for kind, at, length in self.options():
            if kind == _TIMESTAMPS and length == 10:
                value, echo = struct.unpack_from(">II", self.data, at + 2)
                return value, echo
        return None

    def _pseudo(self) -> int:
        covered = (
            int.from_bytes(self.data[self.l4 + 4 : self.l4 + 6], "big")
            if self.proto == UDP
            else len(self.data) - self.l4
        )
        return int.from_bytes(self.src, "big") + int.from_bytes(self.dst, "big") + self.proto + covered

    @property
    def error(self) -> int:
        """By how much the checksum is wrong, modulo 65535; 0: it is right."""
        end = (
            self.l4 + int.from_bytes(self.data[self.l4 + 4 : self.l4 + 6], "big")
            if self.proto == UDP
            else len(self.data)
        )
        covered = self.data[self.l4 : end]
        return (self._pseudo() + int.from_bytes(covered + b"\0" * (len(covered) & 1), "big")) % 65535

    @property
    def absent(self) -> bool:
        return self.proto == UDP and self.checksum == 0

    @property
    def partial(self) -> bool:
        """Did the sender leave the checksum to its hardware?"""
        return self.checksum != 0 and (self.checksum - self._pseudo()) % 65535 == 0


def parse(packet: bytes) -> Segment | None:
    """The TCP or UDP packet at the start of `packet`; None for anything else: fragments, damaged headers, ICMP."""
    if len(packet) < 20 or packet[0] >> 4 != 4:
        return None
    ihl, total = (packet[0] & 15) * 4, int.from_bytes(packet[2:4], "big")
    fragment, proto = int.from_bytes(packet[6:8], "big") & 0x3FFF, packet[9]
    if (
        ihl < 20
        or total > len(packet)
        or fragment
        or proto not in (TCP, UDP)
        or total < ihl + (20 if proto == TCP else 8)
    ):
        return None
    data = packet[:total]
    sport, dport = struct.unpack_from(">HH", data, ihl)
    if proto == UDP:
        if not 8 <= int.from_bytes(data[ihl + 4 : ihl + 6], "big") <= total - ihl:
            return None
        return Segment(data, ihl, proto, data[12:16], data[16:20], sport, dport)
    seq, ack, offset, flags = struct.unpack_from(">IIBB", data, ihl + 4)
    if offset >> 4 < 5 or ihl + (offset >> 4 << 2) > total:
        return None
    return Segment(data, ihl, proto, data[12:16], data[16:20], sport, dport, seq, ack, flags)


def header_sound(packet: bytes) -> bool:
    """Is the IPv4 header's checksum right?"""
    return int.from_bytes(packet[: (packet[0] & 15) * 4], "big") % 65535 == 0


def with_header_checksum(packet: bytes) -> bytes:
    header = packet[:10] + b"\0\0" + packet[12 : (packet[0] & 15) * 4]
    checksum = -int.from_bytes(header, "big") % 65535
    return packet[:10] + checksum.to_bytes(2, "big") + packet[12:]


def changed(
    old: Segment,
    source: tuple[bytes, int],
    target: tuple[bytes, int],
    dseq: int = 0,
    dack: int = 0,
    dval: int = 0,
    decho: int = 0,
) -> Segment:
    """The packet between other ends; seq, ack and SACK, TSval, TSecr shifted; its checksum as honest as before.

    ack, SACK and TSecr mean something only with the ACK bit (RFC 9293 3.1, RFC 7323 3.2) and are left alone without it.
    """
    data = bytearray(old.data)
    data[12:20] = source[0] + target[0]
    struct.pack_into(">HH", data, old.l4, source[1], target[1])
    if old.proto == TCP:
        acks = bool(old.flags & ACK)
        struct.pack_into(">II", data, old.l4 + 4, (old.seq + dseq) & _M32, (old.ack + dack * acks) & _M32)
        for kind, at, length in old.options():
            if kind == _TIMESTAMPS and length == 10:
                value, echo = struct.unpack_from(">II", data, at + 2)
                struct.pack_into(">II", data, at + 2, (value + dval) & _M32, (echo + decho * acks) & _M32)
            elif kind == _SACK and length % 8 == 2 and acks:
                for edge in range(at + 2, at + length, 4):
                    struct.pack_into(">I", data, edge, (int.from_bytes(data[edge : edge + 4], "big") + dack) & _M32)
    new = parse(with_header_checksum(bytes(data)))
    assert new  # only values changed, no lengths
    if old.absent:
        return new
    left = old.partial and old.error != 0  # still to be completed by whoever sends it
    checksum = (new._pseudo() if left else old.checksum + old.error - new.error) % 65535
    return with_checksum(new, checksum or 65535)


def with_checksum(old: Segment, checksum: int) -> Segment:
    at = old.checksum_at
    new = parse(old.data[:at] + checksum.to_bytes(2, "big") + old.data[at + 2 :])
    assert new
    return new


def tcp(
    source: tuple[bytes, int], target: tuple[bytes, int], seq: int, ack: int, flags: int, stamps: tuple[int, int] | None
) -> Segment:
    """A TCP packet without payload, whole and right."""
    options = struct.pack(">BBBBII", 1, 1, _TIMESTAMPS, 10, *stamps) if stamps else b""
    l4 = (
        struct.pack(
            ">HHIIBBHHH", source[1], target[1], seq & _M32, ack & _M32, (5 + len(options) // 4) << 4, flags, 65535, 0, 0
        )
        + options
    )
    header = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(l4), 0, 0x4000, 64, TCP, 0, source[0], target[0])
    new = parse(with_header_checksum(header + l4))
    assert new
    return with_checksum(new, 65535 - new.error)


def split(old: Segment, size: int) -> list[Segment]:
    """Cut a TCP packet that was captured before its sender's hardware cut it: `size` bytes of payload each."""
    start, parts = old.payload, []
    identity = int.from_bytes(old.data[4:6], "big")
    body = old.data[start:]
    for n, at in enumerate(range(0, len(body), size)):
        piece, last = body[at : at + size], at + size >= len(body)
        flags = old.flags & ~(0 if last else FIN | PSH) & ~(CWR if n else 0)
        data = bytearray(old.data[:start] + piece)
        struct.pack_into(">HH", data, 2, len(data), (identity + n) & 0xFFFF)
        struct.pack_into(">I", data, old.l4 + 4, (old.seq + at) & _M32)
        data[old.l4 + 13] = flags
        struct.pack_into(">H", data, old.l4 + 16, 0)
        new = parse(with_header_checksum(bytes(data)))
        assert new
        parts.append(with_checksum(new, 65535 - new.error))
    return parts
