"""An independent judge of `fnat bench replay --out`: scapy reads the capture and the output and compares the two.

It shares no code with the product. An output packet is matched with the captured packet of the same time, IP id and
payload; all packets of one output connection must belong to one captured direction, with constant shifts of the
client's numbers.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet
from scapy.utils import PcapReader

TO_CLIENT, TO_RS = "02:fb:00:00:00:01", "02:fb:00:00:00:02"  # next hop on wan, on lan
LARGEST = 3500

for upper in (TCP, UDP):  # payloads stay bytes
    upper.payload_guess = []


@dataclass
class Heard:
    """What is compared of a packet."""

    time: int  # microseconds
    packet: Packet  # IP layer
    ends: tuple[tuple[str, int], tuple[str, int]]
    payload: bytes
    sum_state: str  # right | partial | absent | wrong

    @property
    def l4(self) -> Packet:
        return self.packet.payload

    @property
    def signature(self) -> tuple[object, ...]:
        flags = int(self.l4.flags) if self.packet.proto == 6 else None
        return self.time, self.packet.proto, 0 if renamed(self.packet) else self.packet.id, self.packet.tos, flags, self.payload


def renamed(packet: Packet) -> bool:
    """Does it get another identification? It may become fragments on its way, and its sender is not alone behind its new address."""
    return not packet.flags.DF and packet.len > 576


@dataclass
class Judgement:
    ordinary: int = 0  # captured packets that a router would carry, in one piece
    matched: int = 0  # of these, found in the output
    faults: list[str] = field(default_factory=list)


def sum16(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def hear(time: int, frame: Packet) -> Heard | None:
    """The unfragmented TCP or UDP packet in a frame, made whole when the capture snapped its payload."""
    link = frame
    while isinstance(link, Ether | Dot1Q) or (link.name == "cooked linux") or link.name.startswith("Loopback"):
        link = link.payload
    if (
        not isinstance(link, IP)
        or link.frag
        or link.flags.MF
        or link.len is None
        or link.proto not in (6, 17)
        or not isinstance(link.payload, TCP | UDP)
    ):
        return None
    raw = bytes(link.original)
    if link.len > len(raw) + max((frame.wirelen or 0) - len(frame.original), 0):
        return None  # it was never longer on the wire
    if len(raw) < link.ihl * 4 + (20 if link.proto == 6 else 8):
        return None
    raw = raw[: link.len] + bytes(max(link.len - len(raw), 0))
    packet = IP(raw)
    start = packet.ihl * 4
    if (packet.proto == 6 and (packet.payload.dataofs or 0) < 5) or (
        packet.proto == 17 and not 8 <= packet.payload.len <= len(raw) - start
    ):
        return None
    header = packet.payload.dataofs * 4 if packet.proto == 6 else 8
    l4 = raw[start : start + packet.payload.len] if packet.proto == 17 else raw[start:]
    pseudo = raw[12:20] + struct.pack(">HH", packet.proto, len(l4))
    held = packet.payload.chksum
    if packet.proto == 17 and held == 0:
        state = "absent"
    elif sum16(pseudo + l4) == 0xFFFF:
        state = "right"
    else:
        state = "partial" if held == sum16(pseudo) else "wrong"
    ends = (packet.src, packet.payload.sport), (packet.dst, packet.payload.dport)
    return Heard(time, packet, ends, raw[start + header :], state)


def read(path: Path) -> list[tuple[Heard | None, Packet]]:
    out = []
    with PcapReader(str(path)) as reader:
        for frame in reader:
            out.append((hear(int(frame.time * 1_000_000), frame), frame))
    return out


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
    a, b = came.packet, went.packet
    for name in ("version", "ihl", "tos", "len", "id", "flags", "frag", "proto", "options"):
        if getattr(a, name) != getattr(b, name) and not (name == "id" and renamed(a)):
            return f"IP {name}"
    if b.ttl != a.ttl - 1:
        return "ttl"
    if sum16(bytes(b.original)[: b.ihl * 4]) != 0xFFFF:
        return "IP checksum"
    wanted = "right" if came.sum_state == "partial" else came.sum_state
    if went.sum_state != wanted:
        return f"checksum {went.sum_state}, not {wanted}"
    if a.proto == 17:
        return "" if a.payload.len == b.payload.len else "UDP length"
    x, y = a.payload, b.payload
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


def judge(capture: Path, out: Path) -> Judgement:
    verdict = Judgement()
    captured: dict[tuple[object, ...], list[Heard]] = defaultdict(list)
    ordinary: set[int] = set()
    big: set[int] = set()
    for heard, frame in read(capture):
        if not heard:
            continue
        group = isinstance(frame, Ether) and int(frame.dst[:2], 16) & 1
        first = [int(heard.packet.src.split(".")[0]), int(heard.packet.dst.split(".")[0])]
        captured[heard.signature].append(heard)
        if heard.packet.len > LARGEST:
            big.add(heard.time)
        elif not group and heard.packet.ttl > 1 and all(0 < f < 224 for f in first):
            ordinary.add(id(heard))
    verdict.ordinary = len(ordinary)
    streams: dict[tuple[object, ...], list[Heard]] = defaultdict(list)
    names: set[tuple[object, ...]] = set()
    for heard, frame in read(out):
        if not heard:
            continue
        if frame.dst not in (TO_CLIENT, TO_RS):
            verdict.faults.append(f"sent to nobody: {frame.summary()}")
            continue
        if heard.sum_state in ("partial",):
            verdict.faults.append(f"left with half a checksum: {frame.summary()}")
        name = (heard.packet.src, heard.packet.dst, heard.packet.id)
        if renamed(heard.packet) and name in names:
            verdict.faults.append(f"identification used twice: {frame.summary()}")
        names |= {name} if renamed(heard.packet) else set()
        streams[(frame.dst, heard.packet.proto, *heard.ends)].append(heard)
    for key, stream in streams.items():
        _judge_stream(key, stream, captured, ordinary, big, verdict)
    return verdict


def _judge_stream(
    key: tuple[object, ...], stream: list[Heard], captured: dict, ordinary: set[int], big: set[int], verdict: Judgement
) -> None:
    """Find the captured direction that this output connection carries: the one it differs least from."""
    owners = {came.ends for went in stream for came in captured.get(went.signature, ())}
    if key[0] == TO_CLIENT:  # addresses are restored, those of a host's inside excepted: they have stand-ins
        owners = {e for e in owners if e == key[2:] or e[0][0] == e[1][0] or "127" in (e[0][0][:3], e[1][0][:3])}
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
        flags = int(went.l4.flags) if went.packet.proto == 6 else None
        candidates = [c for c in captured.get(went.signature, ()) if c.ends == ends and id(c) not in used]
        made = flags in (2, 16, 18) and not went.payload and went.packet.id == 0 and not candidates
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
            faults.append(f"{wrong}: {went.packet.summary()}")
    return faults, found
