"""An independent judge of `fnat bench replay --out`: it reads the capture and the output and compares the two.

It shares no code with the product: scapy opens the files and tells TCP options, the IP headers are read here, from the
RFCs. An output packet is matched with the captured packet of the same time, IP id, place in its datagram and payload;
all packets of one output connection must belong to one captured direction, with constant shifts of the client's
numbers. Captures are judged that were replayed in their own family.
"""

from __future__ import annotations

import ipaddress
import struct
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw
from scapy.utils import PcapReader

TO_CLIENT, TO_RS = "02:fb:00:00:00:01", "02:fb:00:00:00:02"  # next hop on wan, on lan
LARGEST = 3500

for upper in (TCP, UDP):  # payloads stay bytes
    upper.payload_guess = []


@dataclass
class Header:
    """An IP header as its RFC draws it."""

    family: int
    size: int  # bytes up to the L4 header
    total: int
    proto: int
    hops: int
    src: str
    dst: str
    kept: tuple[object, ...]  # all that a router leaves alone, the identification apart
    ident: int
    renamed: bool  # may it get another identification? it is, or may become, fragments
    place: tuple[int, bool] | None  # a fragment's offset in bytes, and whether more follow


@dataclass
class Heard:
    """What is compared of a packet."""

    time: int  # microseconds
    ip: Header
    raw: bytes
    l4: Packet | None  # a later fragment has none
    ends: tuple[tuple[str, int], tuple[str, int]]
    payload: bytes
    sum_state: str  # right | partial | absent | wrong | unseen, of a fragment: without most of what it is about
    rest: int  # the sum over what is there, pseudo-header included: no change of ends may move it

    @property
    def signature(self) -> tuple[object, ...]:
        flags = int(self.l4.flags) if isinstance(self.l4, TCP) else None
        ident = 0 if self.ip.renamed else self.ip.ident
        time = 0 if self.ip.place else self.time  # a fragment may have waited for its first one
        return time, self.ip.proto, ident, self.ip.place, self.ip.kept[:2], flags, self.payload

    @property
    def datagram(self) -> tuple[object, ...]:
        return self.ip.src, self.ip.dst, self.ip.ident


@dataclass
class Judgement:
    ordinary: int = 0  # captured packets that a router would carry
    matched: int = 0  # of these, found in the output
    faults: list[str] = field(default_factory=list)


def sum16(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def read4(raw: bytes) -> Header | None:
    """RFC 791."""
    if len(raw) < 20 or raw[0] >> 4 != 4:
        return None
    size = raw[0] % 16 * 4
    total, ident, flags = struct.unpack(">HHH", raw[2:8])
    if size < 20 or total < size:
        return None
    df, place = bool(flags & 0x4000), (flags % 0x2000 * 8, bool(flags & 0x2000)) if flags & 0x3FFF else None
    kept = (4, raw[1], total, flags, raw[9], raw[20:size])
    src, dst = (str(ipaddress.IPv4Address(raw[at : at + 4])) for at in (12, 16))
    renamed = place is not None or (not df and total > 576)
    return Header(4, size, total, raw[9], raw[8], src, dst, kept, ident, renamed, place)


def read6(raw: bytes) -> Header | None:
    """RFC 8200 3 and 4."""
    if len(raw) < 40 or raw[0] >> 4 != 6:
        return None
    total, kind, at = 40 + struct.unpack(">H", raw[4:6])[0], raw[6], 40
    ident, place, chain = 0, None, []
    while kind in (0, 43, 44, 60):
        if at + 8 > len(raw):
            return None
        if kind == 44:
            where, ident = struct.unpack(">HI", raw[at + 2 : at + 8])
            place = (where >> 3 << 3, bool(where & 1)) if where & 0xFFF9 else None
            chain.append(raw[at : at + 4])
            kind, at = raw[at], at + 8
            if place and place[0]:
                break
        else:
            if kind == 43 and raw[at + 3]:
                return None
            end = at + 8 + 8 * raw[at + 1]
            chain.append(raw[at:end])
            kind, at = raw[at], end
    kept = (6, raw[:4], total, raw[6], tuple(chain))
    src, dst = (str(ipaddress.IPv6Address(raw[a : a + 16])) for a in (8, 24))
    return Header(6, at, total, kind, raw[7], src, dst, kept, ident, place is not None, place)


def hear(time: int, frame: Packet) -> Heard | None:
    """The TCP or UDP packet in a frame, or a fragment of one, made whole when the capture snapped its payload."""
    link = frame
    while isinstance(link, Ether | Dot1Q) or (link.name == "cooked linux") or link.name.startswith("Loopback"):
        link = link.payload
    if isinstance(link, Raw) and frame.name.startswith("Loopback"):  # each system has its own number for IPv6
        link = (IP if bytes(link)[:1] < b"\x50" else IPv6)(bytes(link))
    if not isinstance(link, IP | IPv6):
        return None
    raw = bytes(link.original)
    ip = read4(raw) if isinstance(link, IP) else read6(raw)
    if not ip or ip.proto not in (6, 17):
        return None
    if ip.total > len(raw) + max((frame.wirelen or 0) - len(frame.original), 0):
        return None  # it was never longer on the wire
    later = bool(ip.place and ip.place[0])
    if len(raw) < ip.size + (0 if later else 20 if ip.proto == 6 else 8):
        return None
    raw = raw[: ip.total] + bytes(max(ip.total - len(raw), 0))
    if later:
        return Heard(time, ip, raw, None, ((ip.src, 0), (ip.dst, 0)), raw[ip.size :], "unseen", 0)
    l4 = (TCP if ip.proto == 6 else UDP)(raw[ip.size :])
    whole = len(raw) - ip.size
    if ip.proto == 17 and not 8 <= l4.len <= (65535 if ip.place else whole):
        return None
    header = (l4.dataofs or 0) * 4 if ip.proto == 6 else 8
    if ip.proto == 6 and not 20 <= header <= whole:
        return None
    body = raw[ip.size : ip.size + l4.len] if ip.proto == 17 else raw[ip.size :]
    addresses = raw[12:20] if ip.family == 4 else raw[8:40]
    pseudo = addresses + struct.pack(">HI", ip.proto, l4.len if ip.proto == 17 else whole)
    rest = sum16(pseudo + body) % 65535
    held = l4.chksum
    if ip.proto == 17 and held == 0:
        state = "absent"
    elif ip.place:
        state = "unseen"
    elif rest == 0:
        state = "right"
    else:
        state = "partial" if held == sum16(pseudo) else "wrong"
    ends = (ip.src, l4.sport), (ip.dst, l4.dport)
    return Heard(time, ip, raw, l4, ends, raw[ip.size + header :], state, rest)


def read(path: Path) -> list[tuple[Heard | None, Packet]]:
    out = []
    with PcapReader(str(path)) as reader:
        for frame in reader:
            out.append((hear(int(frame.time * 1_000_000), frame), frame))
    name_later(heard for heard, _ in out if heard)
    return out


def name_later(packets: Iterable[Heard]) -> None:
    """A later fragment has the ports of its datagram's first one: the nearest in time, for identifications come again."""
    fragments: dict[tuple[object, ...], list[Heard]] = defaultdict(list)
    for heard in packets:
        if heard.ip.place:
            fragments[heard.datagram].append(heard)
    for group in fragments.values():
        firsts = [h for h in group if h.l4]
        for heard in group if firsts else ():
            first = min(firsts, key=lambda f: abs(f.time - heard.time))
            heard.ends, heard.ip.proto = first.ends, first.ip.proto


def options(packet: Packet, shift_sack: int, shift_value: int, shift_echo: int) -> list[object]:
    """TCP options with SACK edges and timestamps moved."""
    moved: list[object] = []
    for option in packet.options:
        if option[0] == "Timestamp":
            moved.append(("Timestamp", ((option[1][0] + shift_value) % 2**32, (option[1][1] + shift_echo) % 2**32)))
        elif option[0] == "SAck":
            moved.append(("SAck", tuple((edge + shift_sack) % 2**32 for edge in option[1])))
        else:
            moved.append(option)
    return moved


def compare(came: Heard, went: Heard, shifts: dict[str, int], to_rs: bool) -> str:
    """What differs, "" for nothing. Shifts of a connection are learnt from its first packet and must stay."""
    if came.ip.kept != went.ip.kept:
        return "IP header"
    if came.ip.ident != went.ip.ident and not came.ip.renamed:
        return "IP id"
    if went.ip.hops != came.ip.hops - 1:
        return "ttl"
    if went.ip.family == 4 and sum16(went.raw[: went.ip.size]) != 0xFFFF:
        return "IP checksum"
    if not came.l4 or not went.l4:
        return "" if not came.l4 and not went.l4 else "fragment"
    wanted = "right" if came.sum_state == "partial" else came.sum_state
    if went.sum_state != wanted:
        return f"checksum {went.sum_state}, not {wanted}"
    if came.sum_state in ("wrong", "unseen") and went.rest != came.rest:
        return "checksum wrong by another amount"
    x, y = came.l4, went.l4
    if came.ip.proto == 17:
        return "" if x.len == y.len else "UDP length"
    for name in ("ack", "dataofs", "reserved", "flags", "window", "urgptr"):
        if getattr(x, name) != getattr(y, name):
            return f"TCP {name}"
    dseq = (y.seq - x.seq) % 2**32
    if not to_rs and dseq:
        return "TCP seq"
    if to_rs and shifts.setdefault("seq", dseq) != dseq:
        return "TCP seq shift"
    stamps = [dict(o for o in p.options if len(o) == 2).get("Timestamp") for p in (x, y)]
    dval = (stamps[1][0] - stamps[0][0]) % 2**32 if to_rs and all(stamps) else 0
    if all(stamps) and to_rs and shifts.setdefault("value", dval) != dval:
        return "TSval shift"
    return "" if options(x, 0, dval, 0) == y.options else "TCP options"


def between_hosts(heard: Heard, frame: Packet) -> bool:
    """Would a router carry it?"""
    if isinstance(frame, Ether) and int(frame.dst[:2], 16) & 1:
        return False
    if heard.ip.hops < 2 or 0 in (heard.ends[0][1], heard.ends[1][1]):
        return False
    if heard.ip.family == 6:
        if heard.sum_state == "absent":  # RFC 8200 8.1
            return False
        both = [ipaddress.IPv6Address(a) for a in (heard.ip.src, heard.ip.dst)]
        return not any(a.is_multicast or a.is_link_local or a.is_unspecified or a.ipv4_mapped for a in both)
    return all(0 < int(a.split(".")[0]) < 224 for a in (heard.ip.src, heard.ip.dst))


def repeated(heard: Heard, pieces: dict[tuple[object, ...], int]) -> bool:
    """Is this fragment another one's duplicate? Those need not be forwarded."""
    if not heard.ip.place:
        return False
    key = (*heard.datagram, heard.ip.place)
    last, pieces[key] = pieces.get(key), heard.time
    return last is not None and heard.time - last < 2_000_000


def judge(capture: Path, out: Path) -> Judgement:
    verdict = Judgement()
    captured: dict[tuple[object, ...], list[Heard]] = defaultdict(list)
    ordinary: set[int] = set()
    big: set[int] = set()
    pieces: dict[tuple[object, ...], int] = {}
    for heard, frame in read(capture):
        if not heard:
            continue
        captured[heard.signature].append(heard)
        if heard.ip.total > LARGEST:
            big.add(heard.time)
        elif between_hosts(heard, frame) and not repeated(heard, pieces):
            ordinary.add(id(heard))
    verdict.ordinary = len(ordinary)
    streams: dict[tuple[object, ...], list[Heard]] = defaultdict(list)
    names: dict[tuple[object, ...], set[object]] = defaultdict(set)
    for heard, frame in read(out):
        if not heard:
            continue
        if frame.dst not in (TO_CLIENT, TO_RS):
            verdict.faults.append(f"sent to nobody: {frame.summary()}")
            continue
        if heard.sum_state in ("partial",):
            verdict.faults.append(f"left with half a checksum: {frame.summary()}")
        if heard.ip.renamed:
            if heard.ip.place in names[heard.datagram] or (
                names[heard.datagram] and None in (heard.ip.place, *names[heard.datagram])
            ):
                verdict.faults.append(f"identification used twice: {frame.summary()}")
            names[heard.datagram].add(heard.ip.place)
        streams[(frame.dst, heard.ip.proto, *heard.ends)].append(heard)
    for key, stream in streams.items():
        _judge_stream(key, stream, captured, ordinary, big, verdict)
    return verdict


def _inside(ends: tuple[tuple[str, int], tuple[str, int]]) -> bool:
    """Does this conversation go on inside one host?"""
    return ends[0][0] == ends[1][0] or any(ipaddress.ip_address(a).is_loopback for a, _ in ends)


def _judge_stream(
    key: tuple[object, ...], stream: list[Heard], captured: dict, ordinary: set[int], big: set[int], verdict: Judgement
) -> None:
    """Find the captured direction that this output connection carries: the one it differs least from."""
    owners = {came.ends for went in stream for came in captured.get(went.signature, ())}
    if key[0] == TO_CLIENT:  # addresses are restored, those of a host's inside excepted: they have stand-ins
        owners = {e for e in owners if e == key[2:] or _inside(e)}
    tries = [_against(stream, ends, captured, big, key[0] == TO_RS) for ends in owners or {None}]
    faults, found = min(tries, key=lambda t: (len(t[0]), -len(t[1])))
    verdict.faults += faults
    for signature, came in found:
        captured[signature].remove(came)
        verdict.matched += id(came) in ordinary


def _against(
    stream: list[Heard], ends: object, captured: dict, big: set[int], to_rs: bool
) -> tuple[list[str], list[tuple[object, Heard]]]:
    shifts: dict[str, int] = {}
    faults: list[str] = []
    found: list[tuple[object, Heard]] = []
    used: set[int] = set()
    for went in stream:
        flags = int(went.l4.flags) if isinstance(went.l4, TCP) else None
        candidates = [c for c in captured.get(went.signature, ()) if c.ends == ends and id(c) not in used]
        empty = not went.payload and went.ip.ident == 0 and not candidates
        made = empty and (flags in (2, 16, 18) or went.ip.proto == 17)
        if (
            flags is not None
            and flags & 0x17 == 2
            and (made or all(compare(c, went, dict(shifts), to_rs) for c in candidates))
        ):
            shifts.clear()  # a new incarnation
        wrong = "" if made or went.time in big else "never captured"
        for came in candidates:
            wrong = compare(came, went, dict(shifts), to_rs)
            if not wrong:
                compare(came, went, shifts, to_rs)
                used.add(id(came))
                found.append((went.signature, came))
                break
        if wrong:
            faults.append(f"{wrong}: {went.ip.src} > {went.ip.dst} {went.l4.summary() if went.l4 else went.ip.place}")
    return faults, found
