"""How an RS is told who the client is, in plain Python: TOA, UOA, PROXY v1 and v2. The part of `reference.py` about it.

A `Telling` belongs to a connection and says, packet by packet, what has to change (`Change`). Numbers in a Telling are the
client's own. Formats: TOA and UOA as DPVS's kernel modules read them, PROXY by HAProxy's proxy-protocol.txt.

PROXY on a stream: let `first` be the number of the client's first byte. Every segment that begins there brings the header, what
begins later is shifted by what the header adds. Once the RS has acknowledged the header, all numbers are shifted.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass

import packets as wire
from packets import ACK, FIN, RST, SYN, TCP

MASK = 0xFFFFFFFF
SETTLED = 65536  # bytes of the client that the RS acknowledges until old acknowledgements need no care any more
TRAIL = 3  # datagrams with UOA at most
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"


def signed(number: int) -> int:
    """A difference of serial numbers."""
    return (number + 0x80000000 & MASK) - 0x80000000


@dataclass
class Change:
    """What becomes of one packet, after its numbers are rewritten and before its checksum is."""

    shift: int = 0  # added to the sequence number
    cut: int = 0  # bytes of payload that go, from the front
    put: bytes = b""  # bytes before the rest of the payload
    strip: bool = False  # TCP options of kind 254 become padding
    option: bytes = b""  # the first TCP option from now on
    layer: bytes = b""  # a header of IP protocol 248 before the UDP header
    ip_options: bytes | None = None  # all IPv4 options
    lower_mss: int = 0
    number: Callable[[int], int] | None = None  # what acknowledgements become
    no_sack: bool = False
    ahead: Change | None = None  # a packet of headers alone that goes before
    alone: bool = False  # this one goes ahead: the balancer's own, never fragmented (RFC 6864 4.1)
    told: bool = False
    no_room: bool = False
    dseq: int | None = None  # the shift of the connection when the packet came

    @property
    def grows(self) -> int:
        return len(self.put) - self.cut + len(self.layer)


@dataclass(eq=False)
class Telling:
    mode: str
    proto: int
    client: tuple[str, int]
    vip: tuple[str, int]
    rip: str
    done: bool = False  # there is nothing to change any more
    first: int = 0
    told: int = 0  # datagrams with UOA
    header: bytes = b""
    replaced: int = 0  # bytes of the client's own header
    sent: bool = False
    acked: bool = False
    added: int = 0  # what is part of the connection's shift already

    @property
    def adds(self) -> int:
        return len(self.header) - self.replaced

    @property
    def under_way(self) -> int:
        """What the end of the client's stream is shifted by, beyond the connection's shift."""
        return self.adds if self.sent and not self.acked and not self.done else 0

    @property
    def toa_bytes(self) -> int:
        """What the client's segments still grow by."""
        return len(self._option(254)) if self.mode == "toa" and not self.done else 0

    def client_number(self, number: int) -> int:
        """A number of the client's stream that the RS knows, the connection's shift taken off."""
        return self._renumber(self.acked)(number) if self.header and not self.done else number

    def rs_number(self, number: int) -> int:
        """The way back; the connection's shift is to be added."""
        shifted = self.header and not self.done and not self.acked and signed(number - self.first) > 0
        return number + self.adds & MASK if shifted else number

    def needs_whole(self, f: wire.Frame, sender: int) -> bool:
        """Fragments, and packets that would become some, do not go on: they could neither tell nor be cleaned of what a client forges."""
        if self.proto == TCP:
            return sender == 0 if self.mode == "toa" else not self.acked
        return self.mode == "uoa-ipo" and sender == 0 and not wire.is6(f.src) and f.l4 > 34

    def again(self, first: int) -> None:
        """The RS has forgotten the connection and begins anew."""
        self.done, self.first, self.told = False, first, 0
        self.header, self.replaced, self.added, self.sent, self.acked = b"", 0, 0, False, False

    def turn(self, f: wire.Frame, sender: int, half_open: bool, synack_seen: bool, room: int, dseq: int) -> Change:
        """The state has followed the packet already. room: by how many bytes it may grow."""
        if self.done:
            return Change()
        if self.mode == "toa":
            return self._toa(f, sender, half_open, synack_seen, room, dseq)
        if self.mode.startswith("uoa"):
            return self._uoa(f, sender, room)
        if self.proto != TCP:
            return self._datagram(f, room) if sender == 0 else Change()
        return self._stream(f, half_open, room) if sender == 0 else self._answer(f, half_open, dseq)

    def _option(self, kind: int) -> bytes:
        addr = wire.addr_bytes(self.client[0])
        return struct.pack("!BBH", kind, 4 + len(addr), self.client[1]) + addr

    # ---- TOA ----

    def _toa(self, f: wire.Frame, sender: int, half_open: bool, synack_seen: bool, room: int, dseq: int) -> Change:
        own = self._option(254)
        if sender == 1:
            if f.flags & (SYN | ACK) == SYN | ACK:
                return Change(lower_mss=len(own))
            beyond = f.flags & ACK and signed(f.ack - dseq - self.first) > 0
            if not f.flags & SYN and not half_open and (f.payload or f.flags & FIN or beyond):
                self.done = True
            return Change()
        options = without(tcp_options_of(f), 254)
        if f.flags & (SYN | RST) or not synack_seen:
            return Change(strip=True)
        made = with_first(own, options)
        if len(made) > 40 or len(made) - len(options) > room:
            return Change(strip=True, no_room=True)
        return Change(strip=True, option=own, told=True)

    # ---- UOA ----

    def _uoa(self, f: wire.Frame, sender: int, room: int) -> Change:
        ipo = self.mode == "uoa-ipo"
        if sender == 1:
            self.told = TRAIL
            self.done = not ipo
            return Change()
        options = f.raw[34 : f.l4] if not wire.is6(f.src) else b""
        plain = Change()
        if ipo and not wire.is6(f.src) and not wire.is6(self.rip):
            options = without(options, 31)
            plain = Change(ip_options=options)
        if self.told == TRAIL:
            return plain
        if ipo:
            if wire.is6(f.src) or wire.is6(self.rip) or len(options) + 8 > 40:
                plain.no_room = True
                return plain
            change = Change(ip_options=self._option(31) + options, told=True)
            size = 8
        else:
            option = self._option(31)
            version = 2 if wire.is6(self.client[0]) else 1
            change = Change(layer=struct.pack("!BBH", version << 4, f.proto, 4 + len(option)) + option, told=True)
            size = 4 + len(option)
        if size > room:
            if size - len(f.payload) > room:
                plain.no_room = True
                return plain
            plain.ahead, change = change, plain
        return change

    def datagram_told(self) -> None:
        """Called for each datagram that did tell."""
        if self.mode.startswith("uoa"):
            self.told += 1
            self.done = self.told == TRAIL and self.mode == "uoa-opp"

    # ---- PROXY ----

    def _own_header(self) -> bytes:
        return header(self.mode, self.proto, self.client, self.vip)

    @property
    def insecure(self) -> bool:
        return self.mode.endswith("insecure")

    def _datagram(self, f: wire.Frame, room: int) -> Change:
        if self.insecure and read_v2(f.payload):
            self.done = True
            return Change()
        put = self._own_header()
        if len(put) > room:
            return Change(no_room=True)
        self.done = True
        return Change(put=put, told=True)

    def _decide(self, payload: bytes) -> bool:
        """False: the client's own header is what the RS wants."""
        known = (read_v1(payload) or read_v2(payload)) if self.insecure else None
        if known is None:
            self.header, self.replaced = self._own_header(), 0
            return True
        size, version, peers = known
        if self.mode.startswith(f"proxy-v{version}"):
            return False
        self.replaced = size
        if peers is None:
            self.header = b"PROXY UNKNOWN\r\n" if version == 2 else SIGNATURE + b"\x20\0\0\0"
        else:
            self.header = header(self.mode, self.proto, *peers)
        return True

    def _stream(self, f: wire.Frame, half_open: bool, room: int) -> Change:
        nothing = Change(cut=len(f.payload))
        if half_open:
            return nothing
        if self.acked:
            return Change()
        at = signed(f.seq - self.first)
        if f.flags & SYN or at < 0:
            return nothing
        if at > 0:
            if not self.header and (self.insecure or not self._decide(b"")):
                return nothing
            if at < self.replaced:
                return Change(shift=len(self.header) - at, cut=len(f.payload))
            return Change(shift=self.adds)
        if f.flags & RST:
            return Change(shift=self.adds if self.sent else 0, cut=len(f.payload))
        if not self.header:
            if self.insecure and not f.payload and not f.flags & FIN:
                return Change()
            if not self._decide(f.payload):
                self.done = True
                return Change()
        if self.replaced:
            again = read_v1(f.payload) or read_v2(f.payload)
            if again is None or again[0] != self.replaced:
                return Change(cut=len(f.payload), no_room=True)
        if self.adds > room:
            return Change(shift=len(self.header), cut=self.replaced, ahead=Change(put=self.header, told=True))
        self.sent = True
        return Change(cut=self.replaced, put=self.header, told=True)

    def _answer(self, f: wire.Frame, half_open: bool, dseq: int) -> Change:
        if not f.flags & ACK or half_open or not self.header:
            return Change()
        number, ack = self._renumber(self.acked), f.ack - dseq & MASK
        missing = not self.acked and signed(ack - self.first) < len(self.header)
        change = Change(number=number, no_sack=missing)
        now = number(ack)
        self.acked |= not missing
        self.done = self.acked and signed(now - self.first) > SETTLED
        return change

    def _renumber(self, acked: bool) -> Callable[[int], int]:
        """A number of the RS without the connection's shift -> the client's."""
        first, size, replaced = self.first, len(self.header), self.replaced

        def number(n: int) -> int:
            at = signed(n - first)
            if acked:
                return first if replaced - size <= at < replaced else n
            if at <= 0:
                return n
            return first if at < size else n - size + replaced & MASK

        return number


# ---- options ----


def tcp_options_of(f: wire.Frame) -> bytes:
    return f.raw[f.l4 + 20 : f.l4 + (f.raw[f.l4 + 12] >> 4) * 4]


def without(options: bytes, kind: int) -> bytes:
    """Options of this kind become padding (NOP)."""
    out = bytearray(options)
    for found, at, size in wire.tcp_options(options):
        if found == kind:
            out[at : at + size] = b"\1" * size
    return bytes(out)


def with_first(own: bytes, options: bytes) -> bytes:
    """This one before the others; these lose their padding where there is no room for it."""
    return own + options if len(own) + len(options) <= 40 else wire.pad_options(own + packed(options))


def packed(options: bytes) -> bytes:
    """Options without padding; from the first malformed one on they stay as they are."""
    out, at = b"", 0
    while at < len(options) and options[at] != 0:
        if options[at] == 1:
            at += 1
            continue
        if at + 1 >= len(options) or options[at + 1] < 2 or at + options[at + 1] > len(options):
            return out + options[at:]
        out += options[at : at + options[at + 1]]
        at += options[at + 1]
    return out


# ---- PROXY headers ----

Peers = tuple[tuple[str, int], tuple[str, int]]


def header(mode: str, proto: int, src: tuple[str, int], dst: tuple[str, int]) -> bytes:
    six = wire.is6(src[0])
    if mode.startswith("proxy-v1"):
        return f"PROXY TCP{6 if six else 4} {src[0]} {dst[0]} {src[1]} {dst[1]}\r\n".encode()
    body = wire.addr_bytes(src[0]) + wire.addr_bytes(dst[0]) + struct.pack("!HH", src[1], dst[1])
    family = (0x20 if six else 0x10) | (1 if proto == TCP else 2)
    return SIGNATURE + struct.pack("!BBH", 0x21, family, len(body)) + body


def read_v1(payload: bytes) -> tuple[int, int, Peers | None] | None:
    """(bytes, 1, addresses) of the header that the payload begins with; None: there is none."""
    line, end, _ = payload[:107].partition(b"\r\n")
    if not end or not line.startswith(b"PROXY "):
        return None
    text = line.decode("latin-1")
    if text.startswith("PROXY UNKNOWN"):
        return len(line) + 2, 1, None
    words = text.split(" ")
    if len(words) != 6 or words[1] not in ("TCP4", "TCP6"):
        return None
    try:
        addresses = [(ipaddress.IPv6Address if words[1] == "TCP6" else ipaddress.IPv4Address)(a) for a in words[2:4]]
    except ValueError:
        return None
    if not all(re.fullmatch(r"0|[1-9][0-9]{0,4}", w) and int(w) < 65536 for w in words[4:]):
        return None
    if any("%" in w or ("." in w and words[1] == "TCP6") for w in words[2:4]):
        return None
    texts = [wire.addr_text(a.packed) for a in addresses]
    return len(line) + 2, 1, ((texts[0], int(words[4])), (texts[1], int(words[5])))


def read_v2(payload: bytes) -> tuple[int, int, Peers | None] | None:
    if len(payload) < 16 or payload[:12] != SIGNATURE or payload[12] not in (0x20, 0x21):
        return None
    size = struct.unpack_from("!H", payload, 14)[0]
    if 16 + size > len(payload):
        return None
    each = {1: 4, 2: 16}.get(payload[13] >> 4)
    if payload[12] == 0x20 or each is None or size < 2 * each + 4:
        return 16 + size, 2, None
    family = socket.AF_INET if each == 4 else socket.AF_INET6
    src, dst = (socket.inet_ntop(family, payload[16 + i * each : 16 + (i + 1) * each]) for i in (0, 1))
    sport, dport = struct.unpack_from("!HH", payload, 16 + 2 * each)
    return 16 + size, 2, ((src, sport), (dst, dport))
