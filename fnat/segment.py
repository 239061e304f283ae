"""One TCP or UDP packet of either IP family as bytes: fields, the honesty of its checksum, changes that keep it.

Rules: pure functions over bytes, shared with nothing of the core, because the replay bench uses them to judge the core.
A checksum is one of four things: right, wrong by some amount, left to hardware (it holds the sum of the pseudo-header
alone), or absent (UDP, zero). A change of addresses keeps which one it is, and the amount, over a change of family too
(RFC 7915); only a checksum that IPv6 may not miss is made where there was none.

A fragment is a packet like the others. The first one's checksum covers what is not there; but the sum of what is there,
pseudo-header included, is as invariant under a change of ends as that of the whole, so that it is judged alone.

RFC 791, RFC 8200, RFC 768, RFC 9293; timestamps RFC 7323, SACK RFC 2018; one's complement arithmetic is modulo 65535
(RFC 1071).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace

TCP, UDP = 6, 17
FIN, SYN, RST, PSH, ACK, CWR = 1, 2, 4, 8, 16, 128
HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION = 0, 43, 44, 60
_MSS, _SACK, _TIMESTAMPS = 2, 5, 8
_M32 = 0xFFFFFFFF
_WHOLE = 1260  # bytes up to which an IPv4 packet made of an IPv6 one may be fragmented further on: RFC 7915 5.1


@dataclass(frozen=True, slots=True)
class Piece:
    """Which part of a datagram a fragment is."""

    identity: int
    offset: int  # in bytes
    more: bool
    at: int  # offset of IPv6's fragment header in the packet; 0 with IPv4


@dataclass(frozen=True, slots=True)
class Segment:
    """An IP packet with a whole TCP or UDP header, or a later fragment of one, which has none; offsets are from
    the first byte of the IP header. Ports of a later fragment are 0 as parsed: its first one knows them."""

    data: bytes
    l4: int  # offset of the TCP or UDP header; of a later fragment's payload
    proto: int
    src: bytes
    dst: bytes
    sport: int
    dport: int
    seq: int = 0
    ack: int = 0
    flags: int = 0
    piece: Piece | None = None

    @property
    def family(self) -> int:
        return self.data[0] >> 4

    @property
    def hops(self) -> int:
        """TTL or hop limit."""
        return self.data[8 if self.family == 4 else 7]

    @property
    def later(self) -> bool:
        """Is it a fragment other than the first one?"""
        return bool(self.piece and self.piece.offset)

    @property
    def loose(self) -> bool:
        """May its identification be another when it leaves? It is a fragment, or may become some (RFC 6864 4.1): many
        clients share one address."""
        return bool(self.piece) or (self.family == 4 and not self.data[6] & 0x40 and len(self.data) > 576)

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
    """The TCP or UDP packet, or the fragment of one, at the start of `packet`; None for anything else: damaged headers,
    ICMP, a first fragment without the whole L4 header, a source route that is not at its end."""
    ends = _ends4(packet) if packet[:1] and packet[0] >> 4 == 4 else _ends6(packet)
    if not ends:
        return None
    total, l4, proto, piece = ends
    data = packet[:total]
    src, dst = (data[12:16], data[16:20]) if data[0] >> 4 == 4 else (data[8:24], data[24:40])
    if piece and piece.offset:
        return Segment(data, l4, proto, src, dst, 0, 0, piece=piece)
    if proto not in (TCP, UDP) or total < l4 + (20 if proto == TCP else 8):
        return None
    sport, dport = struct.unpack_from(">HH", data, l4)
    if proto == UDP:
        length = int.from_bytes(data[l4 + 4 : l4 + 6], "big")
        if length < 8 or (length > total - l4 and not piece):
            return None
        return Segment(data, l4, proto, src, dst, sport, dport, piece=piece)
    seq, ack, offset, flags = struct.unpack_from(">IIBB", data, l4 + 4)
    if offset >> 4 < 5 or l4 + (offset >> 4 << 2) > total:
        return None
    return Segment(data, l4, proto, src, dst, sport, dport, seq, ack, flags, piece)


_Ends = tuple[int, int, int, Piece | None]  # bytes of the packet, offset of L4, its protocol


def _ends4(packet: bytes) -> _Ends | None:
    if len(packet) < 20:
        return None
    header, total = (packet[0] & 15) * 4, int.from_bytes(packet[2:4], "big")
    if header < 20 or total > len(packet) or total < header or packet[9] not in (TCP, UDP):
        return None
    place = int.from_bytes(packet[6:8], "big")
    piece = None
    if place & 0x3FFF:
        piece = Piece(int.from_bytes(packet[4:6], "big"), (place & 0x1FFF) * 8, bool(place & 0x2000), 0)
    return total, header, packet[9], piece


def _ends6(packet: bytes) -> _Ends | None:
    """RFC 8200 4.1: hop-by-hop options come first or not at all."""
    if len(packet) < 40 or packet[0] >> 4 != 6:
        return None
    total, following, at = 40 + int.from_bytes(packet[4:6], "big"), packet[6], 40
    piece: Piece | None = None
    while total <= len(packet) and following in (HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION):
        size = 8 if following == FRAGMENT else 8 * packet[at + 1] + 8 if at + 8 <= total else 0
        if not size or at + size > total or (following == HOP_BY_HOP and at != 40):
            return None
        if following == ROUTING and packet[at + 3]:
            return None
        if following == FRAGMENT:
            place = int.from_bytes(packet[at + 2 : at + 4], "big")
            if place & 0xFFF9:  # else whole: RFC 6946
                identity = int.from_bytes(packet[at + 4 : at + 8], "big")
                piece = Piece(identity, place & 0xFFF8, bool(place & 1), at)
        following, at = packet[at], at + size
        if piece and piece.offset:
            break
    if total > len(packet) or (following not in (TCP, UDP) and not (piece and following == DESTINATION)):
        return None
    return total, at, following, piece


def header_sound(packet: bytes) -> bool:
    """Is the IPv4 header's checksum right?"""
    return int.from_bytes(packet[: (packet[0] & 15) * 4], "big") % 65535 == 0


def with_header_checksum(packet: bytes) -> bytes:
    if packet[0] >> 4 == 6:
        return packet
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
    crosses = len(source[0]) != len(old.src)
    data, l4 = _translated(old) if crosses else (bytearray(old.data), old.l4)
    at = 12 if data[0] >> 4 == 4 else 8
    data[at : at + 2 * len(source[0])] = source[0] + target[0]
    if old.later:
        later = parse(with_header_checksum(bytes(data)))
        assert later
        return replace(later, proto=old.proto, sport=source[1], dport=target[1])
    struct.pack_into(">HH", data, l4, source[1], target[1])
    if old.proto == TCP:
        acks = bool(old.flags & ACK)
        struct.pack_into(">II", data, l4 + 4, (old.seq + dseq) & _M32, (old.ack + dack * acks) & _M32)
        for kind, start, length in old.options():
            at = start - old.l4 + l4
            if kind == _TIMESTAMPS and length == 10:
                value, echo = struct.unpack_from(">II", data, at + 2)
                struct.pack_into(">II", data, at + 2, (value + dval) & _M32, (echo + decho * acks) & _M32)
            elif kind == _SACK and length % 8 == 2 and acks:
                for edge in range(at + 2, at + length, 4):
                    struct.pack_into(">I", data, edge, (int.from_bytes(data[edge : edge + 4], "big") + dack) & _M32)
    new = parse(with_header_checksum(bytes(data)))
    assert new  # only values changed, no lengths
    if old.absent:
        return with_checksum(new, (65535 - new.error) or 65535) if crosses and new.family == 6 else new
    left = old.partial and old.error != 0  # still to be completed by whoever sends it
    checksum = (new._pseudo() if left else old.checksum + old.error - new.error) % 65535
    return with_checksum(new, checksum or 65535)


def _translated(old: Segment) -> tuple[bytearray, int]:
    """The packet with a header of the other family, addresses to be filled in, and where its L4 begins: RFC 7915 4.1
    and 5.1. Options and extension headers end here."""
    data, piece, body = old.data, old.piece, old.data[old.l4 :]
    place = (piece.offset | piece.more, piece.identity) if piece else (0, 0)
    if old.family == 4:
        fragment = struct.pack(">BBHI", old.proto, 0, *place) if piece else b""
        following = FRAGMENT if piece else old.proto
        header = struct.pack(">IHBB32x", 6 << 28 | data[1] << 20, len(fragment) + len(body), following, data[8])
        return bytearray(header + fragment + body), 40 + len(fragment)
    total = 20 + len(body)
    where = place[0] >> 3 | (0x2000 if piece and piece.more else 0) if piece else 0x4000 if total > _WHOLE else 0
    tos = int.from_bytes(data[:2], "big") >> 4 & 255
    header = struct.pack(">BBHHHBBH8x", 0x45, tos, total, place[1] & 0xFFFF, where, data[7], old.proto, 0)
    return bytearray(header + body), 20


def with_mss(old: Segment, most: int) -> Segment:
    """A TCP packet whose MSS option is not above `most`."""
    for kind, at, length in old.options():
        if kind == _MSS and length == 4 and int.from_bytes(old.data[at + 2 : at + 4], "big") > most:
            new = parse(old.data[: at + 2] + most.to_bytes(2, "big") + old.data[at + 4 :])
            assert new
            return with_checksum(new, (new.checksum + old.error - new.error) % 65535 or 65535)
    return old


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
    new = parse(_headed(source[0], target[0], TCP, l4))
    assert new
    return with_checksum(new, 65535 - new.error)


def udp(source: tuple[bytes, int], target: tuple[bytes, int]) -> Segment:
    """An empty datagram, whole and right."""
    new = parse(_headed(source[0], target[0], UDP, struct.pack(">HHHH", source[1], target[1], 8, 0)))
    assert new
    return with_checksum(new, 65535 - new.error or 65535)


def _headed(src: bytes, dst: bytes, proto: int, l4: bytes) -> bytes:
    if len(src) == 16:
        return struct.pack(">IHBB16s16s", 6 << 28, len(l4), proto, 64, src, dst) + l4
    header = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(l4), 0, 0x4000, 64, proto, 0, src, dst)
    return with_header_checksum(header + l4)


def cut(old: Segment, size: int, identity: int) -> list[Segment]:
    """Fragments of a datagram, as its sender's stack would make them: `size` bytes each, a multiple of 8."""
    if old.partial and old.error:
        old = with_checksum(with_checksum(old, 0), 65535 - with_checksum(old, 0).error or 65535)
    start = old.l4
    ahead, body, parts = old.data[:start], old.data[start:], []
    for at in range(0, len(body), size):
        piece, more = body[at : at + size], at + size < len(body)
        if old.family == 4:
            place = struct.pack(">HHH", start + len(piece), identity & 0xFFFF, at >> 3 | 0x2000 * more)
            data = with_header_checksum(ahead[:2] + place + ahead[8:] + piece)
        else:
            assert start == 40
            header = ahead[:4] + struct.pack(">HB", 8 + len(piece), FRAGMENT) + ahead[7:]
            data = header + struct.pack(">BBHI", old.proto, 0, at | more, identity) + piece
        new = parse(data)
        assert new
        parts.append(replace(new, proto=old.proto, sport=old.sport, dport=old.dport))
    return parts


def split(old: Segment, size: int) -> list[Segment]:
    """Cut a TCP packet that was captured before its sender's hardware cut it: `size` bytes of payload each."""
    start, parts = old.payload, []
    identity = int.from_bytes(old.data[4:6], "big")
    body = old.data[start:]
    for n, at in enumerate(range(0, len(body), size)):
        piece, last = body[at : at + size], at + size >= len(body)
        flags = old.flags & ~(0 if last else FIN | PSH) & ~(CWR if n else 0)
        data = bytearray(old.data[:start] + piece)
        if old.family == 4:
            struct.pack_into(">HH", data, 2, len(data), (identity + n) & 0xFFFF)
        else:
            struct.pack_into(">H", data, 4, len(data) - 40)
        struct.pack_into(">I", data, old.l4 + 4, (old.seq + at) & _M32)
        data[old.l4 + 13] = flags
        struct.pack_into(">H", data, old.l4 + 16, 0)
        new = parse(with_header_checksum(bytes(data)))
        assert new
        parts.append(with_checksum(new, 65535 - new.error))
    return parts
