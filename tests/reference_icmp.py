"""ICMP in plain Python, for `reference.Reference`: what an error quotes, what the other family calls it, what the balancer makes of it, and
which messages of neighbour discovery are valid. Frames in, bytes out; nothing here knows connections or tables.

RFC 792, RFC 4443, RFC 5508 (errors through a NAT), RFC 7915 4.2 and 5.2 (between the families), RFC 4884 (objects behind a quote), RFC 4861.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

import packets as wire
from packets import ACK, ICMP, ICMP6, TCP, UDP

End = tuple[str, int]
Number = Callable[[int], int]  # a sequence number of the receiver of the quoted packet -> its sender's
UOA = 248
EXTENSIONS = (wire.HOP_BY_HOP, wire.ROUTING, wire.FRAGMENT, wire.DESTINATION)
PLATEAUS = (65535, 32000, 17914, 8166, 4352, 2002, 1492, 1006, 508, 296, 68)  # RFC 1191 7.1


@dataclass
class Quote:
    """The packet that an error is about, as far as it is quoted."""

    body: bytes  # from its IP header on, objects and padding cut off
    l4: int
    total: int  # bytes it had
    proto: int
    src: End
    dst: End
    layer: int = 0  # bytes of a header of protocol 248 that it had


def is_error(f: wire.Frame) -> bool:
    return f.icmp_type in ((1, 2, 3, 4) if wire.is6(f.src) else (3, 11, 12))


def message_of(f: wire.Frame) -> bytes:
    return f.raw[f.l4 : 14 + f.total]


def sound(f: wire.Frame) -> bool:
    """Is the ICMP checksum right?"""
    message = message_of(f)
    pseudo = wire.pseudo_header(f.src, f.dst, ICMP6, len(message)) if wire.is6(f.src) else b""
    return wire.residue(pseudo + message) == 0


def quote_len(six: bool, message: bytes) -> int:
    """RFC 4884 4: bytes before the objects; 0: there are none."""
    if six:
        return message[4] * 8 if message[0] in (1, 3) else 0
    return message[5] * 4


def quoted(f: wire.Frame) -> Quote | str:
    """What the error quotes, or the reason why it says nothing."""
    message, six = message_of(f), wire.is6(f.src)
    body, given = message[8:], quote_len(six, message)
    if 0 < given < len(body):
        body = body[:given]
    if len(body) < (40 if six else 20) or body[0] >> 4 != (6 if six else 4):
        return "icmp_quote"
    src, dst = (body[8:24], body[24:40]) if six else (body[12:16], body[16:20])
    if wire.addr_text(src) != f.dst:
        return "icmp_quote"
    if six:
        proto, at = body[6], 40
        total = 40 + struct.unpack_from("!H", body, 4)[0]
        while proto in EXTENSIONS:
            if at + 8 > len(body):
                return "icmp_no_conn"
            if proto == wire.FRAGMENT and struct.unpack_from("!H", body, at + 2)[0] & 0xFFF8:
                return "icmp_no_conn"
            proto, at = body[at], at + (8 if proto == wire.FRAGMENT else (body[at + 1] + 1) * 8)
    else:
        proto, at, total = body[9], (body[0] & 15) * 4, struct.unpack_from("!H", body, 2)[0]
        if at < 20 or total < at:
            return "icmp_quote"
        if struct.unpack_from("!H", body, 6)[0] & 0x1FFF:
            return "icmp_no_conn"
    body, layer = body[:total], b""
    if proto == UOA:  # what tells the RS the client's address is not of the datagram that the client sent
        if at + 4 > len(body):
            return "icmp_quote"
        size = struct.unpack_from("!H", body, at + 2)[0]
        if body[at + 1] != UDP or size not in (12, 24):
            return "icmp_no_conn"
        layer, proto = body[at : at + size], UDP
    if proto not in (TCP, UDP):
        return "icmp_no_conn"
    if at + len(layer) + 8 > len(body):
        return "icmp_quote"
    if layer:
        body, total = without_layer(body, at, len(layer)), total - len(layer)
    sport, dport = struct.unpack_from("!HH", body, at)
    return Quote(body, at, total, proto, (wire.addr_text(src), sport), (wire.addr_text(dst), dport), len(layer))


def without_layer(body: bytes, at: int, size: int) -> bytes:
    """A packet without these bytes before its UDP header; an IPv4 checksum is as wrong as it was."""
    out = bytearray(body)
    if body[0] >> 4 == 6:
        named, chain = 6, 40
        while chain < at:
            named, chain = chain, chain + (8 if out[named] == wire.FRAGMENT else (out[chain + 1] + 1) * 8)
        out[named] = UDP
        struct.pack_into("!H", out, 4, struct.unpack_from("!H", out, 4)[0] - size)
    else:
        was = wire.residue(bytes(out[:10] + out[12:at]))
        out[9] = UDP
        struct.pack_into("!H", out, 2, struct.unpack_from("!H", out, 2)[0] - size)
        error = was - wire.residue(bytes(out[:10] + out[12:at]))
        struct.pack_into("!H", out, 10, (struct.unpack_from("!H", out, 10)[0] + error) % 0xFFFF)
    return bytes(out[:at] + out[at + size :])


# ---- what the other family calls it: (type, code, rest) ----

_UNREACHABLE_4_TO_6 = {
    **dict.fromkeys((0, 1, 5, 6, 7, 8, 11, 12), (1, 0)),
    **dict.fromkeys((9, 10, 13, 15), (1, 1)),
    3: (1, 4),
}
_POINTER_4_TO_6 = (
    {0: 0, 1: 1, 2: 4, 3: 4, 8: 7, 9: 6} | dict.fromkeys(range(12, 16), 8) | dict.fromkeys(range(16, 20), 24)
)
_UNREACHABLE_6_TO_4 = {0: 1, 1: 10, 2: 1, 3: 1, 4: 3}
_POINTER_6_TO_4 = (
    {0: 0, 1: 1, 4: 2, 5: 2, 6: 9, 7: 8} | dict.fromkeys(range(8, 24), 12) | dict.fromkeys(range(24, 40), 16)
)


def to_6(kind: int, code: int, rest: int, quoted_total: int) -> tuple[int, int, int] | None:
    """RFC 7915 4.2; None: there is no word for it."""
    if kind == 11:
        return 3, code, 0
    if kind == 12:
        at = _POINTER_4_TO_6.get(rest >> 24)
        return (4, 0, at) if code in (0, 2) and at is not None else None
    if code == 4:
        mtu = rest & 0xFFFF or next((p for p in PLATEAUS if p < quoted_total), 68)
        return 2, 0, max(1280, mtu + 20)
    if code == 2:
        return 4, 1, 6
    known = _UNREACHABLE_4_TO_6.get(code)
    return (*known, 0) if known else None


def to_4(kind: int, code: int, rest: int) -> tuple[int, int, int] | None:
    """RFC 7915 5.2."""
    if kind == 1:
        return (3, _UNREACHABLE_6_TO_4[code], 0) if code in _UNREACHABLE_6_TO_4 else None
    if kind == 2:
        return 3, 4, min(max(rest, 1280) - 20, 0xFFFF)
    if kind == 3:
        return 11, code, 0
    if code == 1:
        return 3, 2, 0
    at = _POINTER_6_TO_4.get(rest)
    return (12, 0, at << 24) if code == 0 and at is not None else None


# ---- the error as it goes on ----


def lowered(f: wire.Frame, less: int) -> int:
    """The second word of the header; an MTU leaves room for what the balancer adds to a segment."""
    six, rest = wire.is6(f.src), int.from_bytes(f.icmp_rest, "big")
    mtu, least = (rest, 1280) if six else (rest & 0xFFFF, 68)
    if (f.icmp_type, f.icmp_code if not six else 0) != ((2, 0) if six else (3, 4)) or mtu <= least:
        return rest
    return rest - mtu + max(mtu - less, least)


def translated(
    f: wire.Frame, quote: Quote, near: End, far: End, number: Number, to_client: bool, mtu: int, less: int = 0
) -> bytes | str:
    """The IP packet that goes to `far`, from `near`, quoting what far sent to near; or the drop reason. less: what an MTU is lowered by."""
    six, came6 = wire.is6(far[0]), wire.is6(f.src)
    before = (80 if six else 40) + 8 if six != came6 else f.l4 - 14 + 8 + quote.l4
    if before + 8 > mtu:
        return "mtu"
    if six == came6:
        return _same_family(f, quote, near, far, number, to_client, mtu, less)
    kind, code, rest = f.icmp_type, f.icmp_code, lowered(f, less)
    meaning = to_6(kind, code, rest, quote.total) if six else to_4(kind, code, rest)
    if meaning is None:
        return "icmp"
    room = min(mtu, 1280 if six else 576) - before
    segment = _l4(quote, near, far, number, to_client, room)[:room]
    if six:
        inner = wire.ipv6(
            segment,
            src=far[0],
            dst=near[0],
            proto=quote.proto,
            ttl=quote.body[8],
            tos=quote.body[1],
            payload_len=quote.total - quote.l4,
        )
        message = wire.icmp6_message(near[0], far[0], meaning[0], meaning[1], struct.pack("!I", meaning[2]), inner)
        return wire.ipv6(message, src=near[0], dst=far[0], proto=ICMP6, ttl=f.ttl - 1, tos=f.tos)
    inner = wire.ipv4(
        segment,
        src=far[0],
        dst=near[0],
        proto=quote.proto,
        ttl=quote.body[7],
        tos=struct.unpack_from("!I", quote.body)[0] >> 20 & 0xFF,
        total=quote.total - quote.l4 + 20,
    )
    message = wire.icmp_message(meaning[0], meaning[1], struct.pack("!I", meaning[2]), inner)
    return wire.ipv4(message, src=near[0], dst=far[0], proto=ICMP, ttl=f.ttl - 1, tos=f.tos)


def _same_family(
    f: wire.Frame, quote: Quote, near: End, far: End, number: Number, to_client: bool, mtu: int, less: int
) -> bytes:
    """All stays but addresses, ports, numbers and what follows from them. What is longer than the link allows loses its end."""
    message, six = bytearray(message_of(f)), wire.is6(far[0])
    struct.pack_into("!I", message, 4, lowered(f, less))
    if quote.layer:
        if quote_len(six, bytes(message)):
            message[4 if six else 5] = 0
        del message[8 + len(quote.body) :]
    addresses = wire.addr_bytes(far[0]) + wire.addr_bytes(near[0])
    body = bytearray(quote.body)
    at = 8 if six else 12
    if not six:
        error = (wire.residue(bytes(body[at : at + 8])) - wire.residue(addresses)) % 0xFFFF
        struct.pack_into("!H", body, 10, (struct.unpack_from("!H", body, 10)[0] + error) % 0xFFFF)
    body[at : at + len(addresses)] = addresses
    room = mtu - (f.l4 - 14)
    body[quote.l4 :] = _l4(quote, near, far, number, to_client, room - 8 - quote.l4)
    message[8 : 8 + len(body)] = body
    if len(message) > room:
        if quote_len(six, bytes(message)):
            message[4 if six else 5] = 0
        del message[room:]
    rest, payload = bytes(message[4:8]), bytes(message[8:])
    if six:
        whole = wire.icmp6_message(near[0], far[0], message[0], message[1], rest, payload)
        head = bytearray(f.raw[14 : f.l4])
        struct.pack_into("!H", head, 4, len(head) - 40 + len(whole))
        head[7] -= 1
        head[8:40] = wire.addr_bytes(near[0]) + wire.addr_bytes(far[0])
        return bytes(head) + whole
    return wire.ipv4(
        wire.icmp_message(message[0], message[1], rest, payload),
        src=near[0],
        dst=far[0],
        proto=ICMP,
        ttl=f.ttl - 1,
        tos=f.tos,
        ident=f.ident,
        frag=f.frag,
        options=f.raw[34 : f.l4],
    )


def _l4(quote: Quote, near: End, far: End, number: Number, to_client: bool, room: int = 65535) -> bytes:
    """What is quoted of the segment or datagram, as its sender sent it. A checksum that is quoted, within the first `room` bytes, is as wrong
    as it was."""
    old = quote.body[quote.l4 :]
    new = bytearray(old)
    struct.pack_into("!HH", new, 0, far[1], near[1])
    whole = min(len(old), room) >= 18
    if quote.proto == TCP and to_client:
        struct.pack_into("!I", new, 4, number(struct.unpack_from("!I", new, 4)[0]))
    if quote.proto == TCP and not to_client and whole and new[13] & ACK:
        struct.pack_into("!I", new, 8, number(struct.unpack_from("!I", new, 8)[0]))
    at = 6 if quote.proto == UDP else 16
    if quote.proto == TCP and not whole:
        return bytes(new)
    value = struct.unpack_from("!H", old, at)[0]
    if quote.proto == UDP and value == 0:
        return bytes(new)
    was = wire.addr_bytes(quote.src[0]) + wire.addr_bytes(quote.dst[0]) + old[:at]
    now = wire.addr_bytes(far[0]) + wire.addr_bytes(near[0]) + bytes(new[:at])
    value = (value + wire.residue(was) - wire.residue(now)) % 0xFFFF
    struct.pack_into("!H", new, at, 0xFFFF if quote.proto == UDP and value == 0 else value)
    return bytes(new)


# ---- neighbour discovery ----

ALL_NODES = "ff02::1"


def solicited_node(addr: str) -> str:
    """RFC 4291 2.7.1."""
    return wire.addr_text(bytes.fromhex("ff0200000000000000000001ff") + wire.addr_bytes(addr)[13:])


def group_mac(addr: str) -> str:
    """RFC 2464 7."""
    return wire.mac_text(b"\x33\x33" + wire.addr_bytes(addr)[12:])


@dataclass
class Discovery:
    target: str
    mac: str  # "": no link-layer address option
    solicited: bool
    override: bool


def discovery(f: wire.Frame) -> Discovery | None:
    """A solicitation or advertisement, None when RFC 4861 7.1 says to ignore it."""
    message, asks = message_of(f), f.icmp_type == 135
    if f.ttl != 255 or f.icmp_code or len(message) < 24 or wire.FRAGMENT in f.extensions or not sound(f):
        return None
    target, flags = wire.addr_text(message[8:24]), message[4]
    if message[8] == 0xFF or f.src.startswith("ff"):
        return None
    mac, options = "", message[24:]
    while options:
        size = options[1] * 8 if len(options) >= 8 else 0
        if not size or size > len(options):
            return None
        if options[0] == (1 if asks else 2) and size == 8 and not mac:
            mac = wire.mac_text(options[2:8])
        options = options[size:]
    if mac and wire.mac_bytes(mac)[0] & 1:
        return None
    if asks and f.src == "::" and (mac or f.dst != solicited_node(target)):
        return None
    if not asks and (f.src == "::" or (f.dst.startswith("ff") and flags & 0x40)):
        return None
    return Discovery(target, mac, bool(flags & 0x40), bool(flags & 0x20))


def solicitation(src: str, dst: str, target: str, mac: str, **fields: str) -> bytes:
    """The frame; mac "": without a source link-layer address option."""
    option = b"\1\1" + wire.mac_bytes(mac) if mac else b""
    return _nd(135, src, dst, 0, target, option, **fields)


def advertisement(src: str, dst: str, target: str, mac: str, *, flags: int = 0x60, **fields: str) -> bytes:
    """flags: solicited 0x40, override 0x20."""
    option = b"\2\1" + wire.mac_bytes(mac) if mac else b""
    return _nd(136, src, dst, flags, target, option, **fields)


def _nd(kind: int, src: str, dst: str, flags: int, target: str, option: bytes, **fields: str) -> bytes:
    eth_dst = fields.pop("eth_dst", group_mac(dst) if dst.startswith("ff") else wire.ROUTER_MAC)
    rest = bytes([flags, 0, 0, 0])
    return wire.icmp(src, dst, kind, 0, rest, wire.addr_bytes(target) + option, ttl=255, eth_dst=eth_dst, **fields)
