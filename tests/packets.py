"""Frames for tests: builders, a reader and an independent checksum verifier. Nothing here is shared with the product.

Addresses are IPv4 or IPv6 text (canonical, RFC 5952; a builder goes by the source's family), MACs "aa:bb:cc:dd:ee:ff", ports and sequence numbers host integers. The builders write correct
lengths and checksums unless told otherwise: `checksum=None` computes, PARTIAL leaves the folded pseudo-header sum (what a
sender with checksum offload leaves to its hardware), an integer is written as it is.

The verifier works on residues modulo 65535 (one's complement addition *is* addition modulo 65535), not with the fold-and-carry
of the product, so that both cannot share a mistake.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from dataclasses import dataclass, field

ETH_IP4, ETH_ARP, ETH_IP6 = 0x0800, 0x0806, 0x86DD
ICMP, TCP, UDP, ICMP6, SCTP, UOA = 1, 6, 17, 58, 132, 248
HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION = 0, 43, 44, 60  # IPv6 extension headers, RFC 8200
FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
DF, MF = 0x4000, 0x2000
PARTIAL = -1

CLIENT_MAC, ROUTER_MAC, RS_MAC = "02:00:00:00:00:c1", "02:00:00:00:00:fe", "02:00:00:00:01:01"


def mac_bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def mac_text(raw: bytes) -> str:
    return raw.hex(":")


def residue(data: bytes) -> int:
    """Sum of 16-bit words modulo 65535; odd data is padded with a zero byte (RFC 1071)."""
    return int.from_bytes(data + b"\0" * (len(data) & 1), "big") % 0xFFFF


def checksum_of(data: bytes) -> int:
    """The value for a checksum field that is zero in `data`: 0..0xfffe."""
    return 0xFFFF - (residue(data) or 0xFFFF)


def is6(addr: str) -> bool:
    return ":" in addr


def addr_bytes(addr: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if is6(addr) else socket.AF_INET, addr)


def addr_text(raw: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET6 if len(raw) == 16 else socket.AF_INET, raw)


def pseudo_header(src: str, dst: str, proto: int, length: int) -> bytes:
    """RFC 9293 3.1, RFC 8200 8.1."""
    if is6(src):
        return addr_bytes(src) + addr_bytes(dst) + struct.pack("!IHBB", length, 0, 0, proto)
    return socket.inet_aton(src) + socket.inet_aton(dst) + struct.pack("!BBH", 0, proto, length)


def l4_checksum(src: str, dst: str, proto: int, segment: bytes, how: int | None) -> int:
    """Checksum field for a TCP or UDP segment whose field is zero; RFC 768: a computed 0 of UDP is sent as 0xffff."""
    pseudo = pseudo_header(src, dst, proto, len(segment))
    if how == PARTIAL:
        return residue(pseudo) or 0xFFFF
    if how is not None:
        return how
    value = checksum_of(pseudo + segment)
    return 0xFFFF if proto == UDP and value == 0 else value


def ether(payload: bytes, *, dst: str = ROUTER_MAC, src: str = CLIENT_MAC, ethertype: int = ETH_IP4) -> bytes:
    return mac_bytes(dst) + mac_bytes(src) + struct.pack("!H", ethertype) + payload


def ipv4(
    payload: bytes,
    *,
    src: str,
    dst: str,
    proto: int,
    ttl: int = 64,
    tos: int = 0,
    ident: int = 0,
    frag: int = DF,
    options: bytes = b"",
    checksum: int | None = None,
    total: int | None = None,
    version_ihl: int | None = None,
) -> bytes:
    """IPv4 packet, RFC 791. `frag` is flags and offset as on the wire; `total` and `version_ihl` allow lies."""
    assert len(options) % 4 == 0
    first = 0x40 | (5 + len(options) // 4) if version_ihl is None else version_ihl
    length = 20 + len(options) + len(payload) if total is None else total
    head = struct.pack("!BBHHHBBH", first, tos, length & 0xFFFF, ident, frag, ttl, proto, 0)
    head += socket.inet_aton(src) + socket.inet_aton(dst) + options
    value = checksum_of(head) if checksum is None else checksum
    return head[:10] + struct.pack("!H", value) + head[12:] + payload


def extension(kind: int, following: int, body: bytes = b"\1\4\0\0\0\0") -> bytes:
    """An IPv6 extension header other than a fragment's; the body is padded to a multiple of 8 bytes, by default it is PadN."""
    body += bytes(-(len(body) + 2) % 8)
    return struct.pack("!BB", following, (len(body) + 2) // 8 - 1) + body


def ipv6(
    payload: bytes,
    *,
    src: str,
    dst: str,
    proto: int,
    ttl: int = 64,
    tos: int = 0,
    label: int = 0,
    extensions: tuple[int, ...] = (),
    payload_len: int | None = None,
    version: int = 6,
) -> bytes:
    """IPv6 packet, RFC 8200, with empty extension headers of these kinds."""
    chain, following = b"", proto
    for kind in reversed(extensions):
        chain = extension(kind, following) + chain
        following = kind
    length = len(chain) + len(payload) if payload_len is None else payload_len
    head = struct.pack("!IHBB", version << 28 | tos << 20 | label, length, following, ttl)
    return head + addr_bytes(src) + addr_bytes(dst) + chain + payload


def ip(
    payload: bytes,
    *,
    src: str,
    dst: str,
    proto: int,
    ttl: int,
    tos: int,
    ident: int,
    frag: int,
    options: bytes,
    label: int,
    extensions: tuple[int, ...],
) -> bytes:
    """A packet of the source's family."""
    if is6(src):
        return ipv6(payload, src=src, dst=dst, proto=proto, ttl=ttl, tos=tos, label=label, extensions=extensions)
    return ipv4(payload, src=src, dst=dst, proto=proto, ttl=ttl, ident=ident, frag=frag, tos=tos, options=options)


def ethertype_of(addr: str) -> int:
    return ETH_IP6 if is6(addr) else ETH_IP4


def option_timestamp(value: int, echo: int) -> bytes:
    return b"\1\1" + struct.pack("!BBII", 8, 10, value & 0xFFFFFFFF, echo & 0xFFFFFFFF)


def option_sack(blocks: list[tuple[int, int]]) -> bytes:
    out = struct.pack("!BBBB", 1, 1, 5, 2 + 8 * len(blocks))
    return out + b"".join(struct.pack("!II", a & 0xFFFFFFFF, b & 0xFFFFFFFF) for a, b in blocks)


def option_scale(shift: int) -> bytes:
    """RFC 7323 2.2."""
    return bytes([3, 3, shift, 1])


OPTION_MSS = b"\2\4\5\xb4"
OPTION_SACK_OK = b"\4\2"


def pad_options(options: bytes) -> bytes:
    return options + b"\1" * (-len(options) % 4)


def tcp_segment(
    src: str,
    dst: str,
    sport: int,
    dport: int,
    *,
    seq: int = 0,
    ack: int = 0,
    flags: int = ACK,
    window: int = 65535,
    options: bytes = b"",
    payload: bytes = b"",
    checksum: int | None = None,
    offset: int | None = None,
    urgent: int = 0,
) -> bytes:
    """TCP segment, RFC 9293. `offset` (in words) allows a lie."""
    options = pad_options(options)
    words = 5 + len(options) // 4 if offset is None else offset
    head = struct.pack(
        "!HHIIBBHHH", sport, dport, seq & 0xFFFFFFFF, ack & 0xFFFFFFFF, words << 4, flags, window, 0, urgent
    )
    segment = head + options + payload
    return segment[:16] + struct.pack("!H", l4_checksum(src, dst, TCP, segment, checksum)) + segment[18:]


def udp_datagram(
    src: str,
    dst: str,
    sport: int,
    dport: int,
    *,
    payload: bytes = b"",
    checksum: int | None = None,
    length: int | None = None,
) -> bytes:
    """UDP datagram, RFC 768. `length` allows a lie; checksum=0 means none."""
    segment = struct.pack("!HHHH", sport, dport, 8 + len(payload) if length is None else length, 0) + payload
    return segment[:6] + struct.pack("!H", l4_checksum(src, dst, UDP, segment, checksum)) + segment[8:]


def tcp(
    src: str,
    sport: int,
    dst: str,
    dport: int,
    flags: int = ACK,
    *,
    seq: int = 0,
    ack: int = 0,
    payload: bytes = b"",
    options: bytes = b"",
    window: int = 65535,
    checksum: int | None = None,
    offset: int | None = None,
    ttl: int = 64,
    ident: int = 0,
    frag: int = DF,
    tos: int = 0,
    ip_options: bytes = b"",
    label: int = 0,
    extensions: tuple[int, ...] = (),
    eth_dst: str = ROUTER_MAC,
    eth_src: str = CLIENT_MAC,
    trailer: bytes = b"",
) -> bytes:
    """An Ethernet frame with a TCP segment; `trailer` are bytes beyond the IP packet (Ethernet padding)."""
    segment = tcp_segment(
        src,
        dst,
        sport,
        dport,
        seq=seq,
        ack=ack,
        flags=flags,
        options=options,
        payload=payload,
        window=window,
        checksum=checksum,
        offset=offset,
    )
    packet = ip(
        segment,
        src=src,
        dst=dst,
        proto=TCP,
        ttl=ttl,
        ident=ident,
        frag=frag,
        tos=tos,
        options=ip_options,
        label=label,
        extensions=extensions,
    )
    return ether(packet, dst=eth_dst, src=eth_src, ethertype=ethertype_of(src)) + trailer


def udp(
    src: str,
    sport: int,
    dst: str,
    dport: int,
    payload: bytes = b"",
    *,
    checksum: int | None = None,
    length: int | None = None,
    ttl: int = 64,
    ident: int = 0,
    frag: int = DF,
    tos: int = 0,
    ip_options: bytes = b"",
    label: int = 0,
    extensions: tuple[int, ...] = (),
    eth_dst: str = ROUTER_MAC,
    eth_src: str = CLIENT_MAC,
    trailer: bytes = b"",
) -> bytes:
    """An Ethernet frame with a UDP datagram."""
    datagram = udp_datagram(src, dst, sport, dport, payload=payload, checksum=checksum, length=length)
    packet = ip(
        datagram,
        src=src,
        dst=dst,
        proto=UDP,
        ttl=ttl,
        ident=ident,
        frag=frag,
        tos=tos,
        options=ip_options,
        label=label,
        extensions=extensions,
    )
    return ether(packet, dst=eth_dst, src=eth_src, ethertype=ethertype_of(src)) + trailer


def _crc32c_table() -> list[int]:
    out = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        out.append(value)
    return out


_CRC32C = _crc32c_table()


def crc32c(data: bytes) -> int:
    """RFC 3309, a byte at a time."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC32C[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def sctp_checksum(packet: bytes) -> int:
    """What the checksum field of this SCTP packet should be, read as a little-endian number; RFC 9260 6.8."""
    return crc32c(packet[:8] + bytes(4) + packet[12:])


def sctp_chunk(kind: int, body: bytes = b"", flags: int = 0, length: int | None = None) -> bytes:
    """RFC 9260 3.2, padded. `length` allows a lie."""
    return struct.pack("!BBH", kind, flags, 4 + len(body) if length is None else length) + body + bytes(-len(body) % 4)


def sctp_parameter(kind: int, body: bytes, length: int | None = None) -> bytes:
    """RFC 9260 3.2.1, padded. `length` allows a lie."""
    return struct.pack("!HH", kind, 4 + len(body) if length is None else length) + body + bytes(-len(body) % 4)


def sctp_init(tag: int, parameters: bytes = b"", *, kind: int = 1, length: int | None = None) -> bytes:
    """INIT, or INIT ACK with kind=2: RFC 9260 3.3.2."""
    return sctp_chunk(kind, struct.pack("!IIHHI", tag, 65536, 10, 10, 1) + parameters, length=length)


def sctp(
    src: str,
    sport: int,
    dst: str,
    dport: int,
    chunks: bytes = b"",
    *,
    tag: int = 0,
    checksum: int | None = None,
    ttl: int = 64,
    ident: int = 0,
    frag: int = DF,
    tos: int = 0,
    ip_options: bytes = b"",
    label: int = 0,
    extensions: tuple[int, ...] = (),
    eth_dst: str = ROUTER_MAC,
    eth_src: str = CLIENT_MAC,
) -> bytes:
    """An Ethernet frame with an SCTP packet; checksum=0: left to hardware."""
    packet = struct.pack("!HHI", sport, dport, tag) + bytes(4) + chunks
    packet = packet[:8] + struct.pack("<I", sctp_checksum(packet) if checksum is None else checksum) + packet[12:]
    whole = ip(
        packet,
        src=src,
        dst=dst,
        proto=SCTP,
        ttl=ttl,
        ident=ident,
        frag=frag,
        tos=tos,
        options=ip_options,
        label=label,
        extensions=extensions,
    )
    return ether(whole, dst=eth_dst, src=eth_src, ethertype=ethertype_of(src))


def icmp_message(kind: int, code: int, rest: bytes, payload: bytes = b"", pseudo: bytes = b"") -> bytes:
    """ICMP message, RFC 792, RFC 4443; rest is the 4 bytes after the checksum; pseudo: the pseudo-header of ICMPv6."""
    body = struct.pack("!BBH", kind, code, 0) + rest + payload
    return body[:2] + struct.pack("!H", checksum_of(pseudo + body)) + body[4:]


def icmp6_message(src: str, dst: str, kind: int, code: int, rest: bytes, payload: bytes = b"") -> bytes:
    return icmp_message(kind, code, rest, payload, pseudo_header(src, dst, ICMP6, 8 + len(payload)))


def icmp(
    src: str,
    dst: str,
    kind: int,
    code: int = 0,
    rest: bytes = b"\0\0\0\0",
    payload: bytes = b"",
    *,
    ttl: int = 64,
    ident: int = 0,
    frag: int = DF,
    tos: int = 0,
    options: bytes = b"",
    label: int = 0,
    extensions: tuple[int, ...] = (),
    eth_dst: str = ROUTER_MAC,
    eth_src: str = CLIENT_MAC,
) -> bytes:
    """ICMP or, between IPv6 addresses, ICMPv6."""
    six = is6(src)
    message = icmp6_message(src, dst, kind, code, rest, payload) if six else icmp_message(kind, code, rest, payload)
    packet = ip(
        message,
        src=src,
        dst=dst,
        proto=ICMP6 if six else ICMP,
        ttl=ttl,
        ident=ident,
        frag=frag,
        tos=tos,
        options=options,
        label=label,
        extensions=extensions,
    )
    return ether(packet, dst=eth_dst, src=eth_src, ethertype=ethertype_of(src))


def echo_request(
    src: str,
    dst: str,
    payload: bytes = b"ping",
    *,
    ident: int = 7,
    seq: int = 1,
    eth_dst: str = ROUTER_MAC,
    eth_src: str = CLIENT_MAC,
    ip_ident: int = 0,
) -> bytes:
    kind = 128 if is6(src) else 8
    return icmp(
        src, dst, kind, 0, struct.pack("!HH", ident, seq), payload, eth_dst=eth_dst, eth_src=eth_src, ident=ip_ident
    )


def piece(whole: bytes, start: int, end: int, ident: int, *, more: bool | None = None, tos: int | None = None) -> bytes:
    """The fragment of this frame's packet that carries bytes start..end of what follows the IP header. IPv6: all extension headers are
    part of what is cut. `more` allows a lie, `tos` a mark."""
    packet = whole[14:]
    if packet[0] >> 4 == 6:
        head, data = bytearray(packet[:40]), packet[40 : 40 + struct.unpack_from("!H", packet, 4)[0]]
        part, more = data[start:end], end < len(data) if more is None else more
        if tos is not None:
            head[0], head[1] = head[0] & 0xF0 | tos >> 4, head[1] & 15 | (tos & 15) << 4
        following, head[6] = head[6], FRAGMENT
        struct.pack_into("!H", head, 4, 8 + len(part))
        return whole[:14] + bytes(head) + struct.pack("!BBHI", following, 0, start | more, ident) + part
    size = (packet[0] & 15) * 4
    head, data = bytearray(packet[:size]), packet[size : struct.unpack_from("!H", packet, 2)[0]]
    part, more = data[start:end], end < len(data) if more is None else more
    head[1] = head[1] if tos is None else tos
    struct.pack_into("!HHH", head, 2, size + len(part), ident, start // 8 | (MF if more else 0))
    head[10:12] = b"\0\0"
    struct.pack_into("!H", head, 10, checksum_of(bytes(head)))
    return whole[:14] + bytes(head) + part


def pieces(whole: bytes, ident: int, size: int) -> list[bytes]:
    """All fragments, of `size` bytes each (a multiple of 8)."""
    packet = whole[14:]
    six = packet[0] >> 4 == 6
    length = (
        struct.unpack_from("!H", packet, 4)[0] if six else struct.unpack_from("!H", packet, 2)[0] - (packet[0] & 15) * 4
    )
    return [piece(whole, at, min(at + size, length), ident) for at in range(0, length, size)]


def together(frames: list[bytes]) -> bytes:
    """The whole of a datagram's fragments, as the receiver sees it; RFC 791, RFC 8200 4.5."""
    parts, first, end = {}, b"", 0
    for raw in frames:
        f = read(raw)
        six = FRAGMENT in f.extensions
        at = f.fragment[0] if six else (f.frag & 0x1FFF) * 8
        parts[at] = raw[f.frag_at + 8 if six else f.l4 : 14 + f.total]
        first = raw if at == 0 else first
        end = at + len(parts[at]) if not (f.fragment[1] if six else f.frag & MF) else end
    data = b"".join(parts[at] for at in sorted(parts))
    assert len(data) == end and sum(map(len, parts.values())) == end, (sorted(parts), end)
    f = read(first)
    if FRAGMENT in f.extensions:
        head = bytearray(first[: f.frag_at])
        head[20] = first[f.frag_at]
        assert f.frag_at == 54
        struct.pack_into("!H", head, 18, len(data))
        return bytes(head) + data
    head = bytearray(first[: f.l4])
    struct.pack_into("!HxxH", head, 16, f.l4 - 14 + len(data), 0)
    head[24:26] = b"\0\0"
    struct.pack_into("!H", head, 24, checksum_of(bytes(head[14:])))
    return bytes(head) + data


BROADCAST = "ff:ff:ff:ff:ff:ff"


def arp(op: int, sender_mac: str, sender: str, target_mac: str, target: str, *, eth_dst: str = BROADCAST) -> bytes:
    """ARP for Ethernet and IPv4, RFC 826; op 1 request, 2 reply."""
    body = struct.pack("!HHBBH", 1, ETH_IP4, 6, 4, op) + mac_bytes(sender_mac) + socket.inet_aton(sender)
    return ether(
        body + mac_bytes(target_mac) + socket.inet_aton(target), dst=eth_dst, src=sender_mac, ethertype=ETH_ARP
    )


@dataclass
class Frame:
    """A frame taken apart. Fields that do not apply keep their defaults."""

    raw: bytes
    eth_dst: str = ""
    eth_src: str = ""
    ethertype: int = 0
    src: str = ""
    dst: str = ""
    proto: int = 0
    ttl: int = 0
    tos: int = 0
    ident: int = 0
    frag: int = 0
    label: int = 0  # flow label
    extensions: tuple[int, ...] = ()  # kinds of IPv6 extension headers
    fragment: tuple[int, bool] = (0, False)  # of an IPv6 fragment header: offset in bytes, more follow
    frag_id: int = 0
    frag_at: int = 0  # where that header lies in raw
    total: int = 0  # bytes from the IP header on
    l4: int = 0  # offset of the L4 header in raw
    sport: int = 0
    dport: int = 0
    seq: int = 0
    ack: int = 0
    flags: int = 0
    window: int = 0
    checksum: int = 0
    tag: int = 0  # of SCTP
    ts: tuple[int, int] | None = None
    sack: list[tuple[int, int]] = field(default_factory=list)
    toa: bytes = b""  # TCP option 254
    uoa: bytes = b""  # header of IP protocol 248
    payload: bytes = b""
    icmp_type: int = -1
    icmp_code: int = -1
    icmp_rest: bytes = b""
    arp_op: int = 0
    arp_sha: str = ""
    arp_tha: str = ""

    @property
    def flow(self) -> tuple[int, str, int, str, int]:
        return (self.proto, self.src, self.sport, self.dst, self.dport)


def read(raw: bytes) -> Frame:
    """Take a well-formed frame apart; for frames that the product made or that a builder made."""
    f = Frame(raw, mac_text(raw[:6]), mac_text(raw[6:12]), struct.unpack_from("!H", raw, 12)[0])
    if f.ethertype == ETH_ARP:
        f.arp_op = struct.unpack_from("!H", raw, 20)[0]
        f.arp_sha, f.src = mac_text(raw[22:28]), socket.inet_ntoa(raw[28:32])
        f.arp_tha, f.dst = mac_text(raw[32:38]), socket.inet_ntoa(raw[38:42])
        return f
    if f.ethertype == ETH_IP6:
        _read6(f)
    elif f.ethertype == ETH_IP4:
        f.tos, f.total, f.ident, f.frag, f.ttl, f.proto = struct.unpack_from("!xBHHHBB", raw, 14)
        f.src, f.dst = socket.inet_ntoa(raw[26:30]), socket.inet_ntoa(raw[30:34])
        f.l4 = 14 + (raw[14] & 15) * 4
    else:
        return f
    if f.proto == UOA:
        size = struct.unpack_from("!H", raw, f.l4 + 2)[0]
        f.uoa, f.proto = raw[f.l4 : f.l4 + size], raw[f.l4 + 1]
        f.l4 += size
    body = raw[f.l4 : 14 + f.total]
    if f.frag & 0x1FFF or f.fragment[0]:
        f.payload = body
        return f
    if f.frag & MF or f.fragment[1]:
        whole = {TCP: 20, UDP: 8, ICMP: 8, ICMP6: 8, SCTP: 12}.get(f.proto, 0)
        if len(body) < whole or (f.proto == TCP and len(body) < (body[12] >> 4) * 4):
            f.payload = body
            return f
    if f.proto == TCP:
        f.sport, f.dport, f.seq, f.ack, offset, f.flags, f.window, f.checksum = struct.unpack_from("!HHIIBBHH", body)
        header = (offset >> 4) * 4
        f.payload = body[header:]
        for kind, at, size in tcp_options(body[20:header]):
            if kind == 8 and size == 10:
                f.ts = struct.unpack_from("!II", body, 20 + at + 2)
            elif kind == 254:
                f.toa = body[20 + at : 20 + at + size]
            elif kind == 5:
                f.sack = [struct.unpack_from("!II", body, 20 + at + 2 + 8 * i) for i in range((size - 2) // 8)]
    elif f.proto == UDP:
        f.sport, f.dport, _, f.checksum = struct.unpack_from("!HHHH", body)
        f.payload = body[8:]
    elif f.proto == SCTP:
        f.sport, f.dport, f.tag = struct.unpack_from("!HHI", body)
        (f.checksum,), f.payload = struct.unpack_from("<I", body, 8), body[12:]
    elif f.proto in (ICMP, ICMP6):
        f.icmp_type, f.icmp_code, f.checksum = struct.unpack_from("!BBH", body)
        f.icmp_rest, f.payload = body[4:8], body[8:]
    return f


def _read6(f: Frame) -> None:
    first, length, following, f.ttl = struct.unpack_from("!IHBB", f.raw, 14)
    f.tos, f.label, f.total = first >> 20 & 0xFF, first & 0xFFFFF, 40 + length
    f.src, f.dst = addr_text(f.raw[22:38]), addr_text(f.raw[38:54])
    f.l4 = 54
    while following in (HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION):
        f.extensions += (following,)
        size = 8 if following == FRAGMENT else (f.raw[f.l4 + 1] + 1) * 8
        if following == FRAGMENT:
            word, f.frag_id = struct.unpack_from("!xxHI", f.raw, f.l4)
            f.fragment, f.frag_at = (word & 0xFFF8, bool(word & 1)), f.l4
        following = f.raw[f.l4]
        f.l4 += size
        if f.fragment[0]:
            break
    f.proto = following


def tcp_options(raw: bytes) -> list[tuple[int, int, int]]:
    """(kind, offset, size) of each option until the end or the first malformed one (RFC 9293 3.1)."""
    out, at = [], 0
    while at < len(raw) and raw[at] != 0:
        if raw[at] == 1:
            at += 1
            continue
        if at + 1 >= len(raw) or raw[at + 1] < 2 or at + raw[at + 1] > len(raw):
            break
        out.append((raw[at], at, raw[at + 1]))
        at += raw[at + 1]
    return out


def faults(raw: bytes) -> list[str]:
    """What is wrong with the checksums and lengths of a frame; empty when all is right. UDP without checksum is right."""
    if len(raw) < 14:
        return ["shorter than an Ethernet header"]
    ethertype, packet, out = struct.unpack_from("!H", raw, 12)[0], raw[14:], []
    if ethertype == ETH_IP6:
        if len(packet) < 40 or packet[0] >> 4 != 6 or 40 + struct.unpack_from("!H", packet, 4)[0] > len(packet):
            return ["IPv6 lengths"]
        f = read(raw)
        if FRAGMENT in f.extensions:
            return []
        body, proto, src, dst = raw[f.l4 : 14 + f.total], f.proto, f.src, f.dst
        if proto == UDP and body[6:8] == b"\0\0":
            out.append("no UDP checksum")
    elif ethertype == ETH_IP4:
        ihl, total = (packet[0] & 15) * 4, struct.unpack_from("!H", packet, 2)[0]
        if packet[0] >> 4 != 4 or ihl < 20 or total > len(packet) or total < ihl:
            return ["IPv4 lengths"]
        if residue(packet[:ihl]) != 0:
            out.append("IPv4 header checksum")
        body, proto = packet[ihl:total], packet[9]
        if proto == UOA:
            size = struct.unpack_from("!H", body, 2)[0]
            body, proto = body[size:], body[1]
        if struct.unpack_from("!H", packet, 6)[0] & 0x3FFF:
            return out
        src, dst = socket.inet_ntoa(packet[12:16]), socket.inet_ntoa(packet[16:20])
    else:
        return []
    pseudo = residue(pseudo_header(src, dst, proto, len(body)))
    if proto == TCP and (pseudo + residue(body)) % 0xFFFF != 0:
        out.append("TCP checksum")
    if proto == UDP and body[6:8] != b"\0\0":
        length = struct.unpack_from("!H", body, 4)[0]
        if length > len(body):
            out.append("UDP length")
        elif (residue(pseudo_header(src, dst, proto, length)) + residue(body[:length])) % 0xFFFF != 0:
            out.append("UDP checksum")
    if proto == SCTP and struct.unpack_from("<I", body, 8)[0] != sctp_checksum(body):
        out.append("SCTP checksum")
    if proto == ICMP and residue(body) != 0:
        out.append("ICMP checksum")
    if proto == ICMP6 and (pseudo + residue(body)) % 0xFFFF != 0:
        out.append("ICMPv6 checksum")
    return out


def describe(raw: bytes) -> str:
    """One line about a frame, for failure messages."""
    try:
        f = read(raw)
    except (struct.error, IndexError):
        return f"malformed {raw.hex()}"
    if f.ethertype == ETH_ARP:
        return f"ARP op {f.arp_op} {f.src} ({f.arp_sha}) -> {f.dst} ({f.arp_tha}) eth {f.eth_src}>{f.eth_dst}"
    if f.ethertype not in (ETH_IP4, ETH_IP6):
        return f"ethertype {f.ethertype:#06x} {len(raw)} bytes"
    head = f"{f.src}:{f.sport}>{f.dst}:{f.dport} ttl {f.ttl} tos {f.tos} id {f.ident} frag {f.frag:#x} len {f.total} eth {f.eth_src}>{f.eth_dst}"
    if f.proto == TCP:
        names = "".join(n for b, n in ((1, "F"), (2, "S"), (4, "R"), (8, "P"), (16, "A")) if f.flags & b)
        return f"TCP {head} [{names}] seq {f.seq} ack {f.ack} ts {f.ts} sack {f.sack} csum {f.checksum:#06x} +{len(f.payload)}"
    if f.proto == UDP:
        return f"UDP {head} csum {f.checksum:#06x} +{len(f.payload)}"
    if f.proto in (ICMP, ICMP6):
        return f"ICMP {head} type {f.icmp_type} code {f.icmp_code} rest {f.icmp_rest.hex()} +{len(f.payload)}"
    if f.proto == SCTP:
        return f"SCTP {head} tag {f.tag:#x} csum {f.checksum:#010x} chunks {f.payload.hex()}"
    return f"proto {f.proto} {head}"


def acl_key(prefix: str) -> bytes:
    """An entry of an address set as the core has it."""
    net = ipaddress.ip_network(prefix)
    return bytes([net.version]) + net.network_address.packed.ljust(16, b"\0") + bytes([net.prefixlen + 1])
