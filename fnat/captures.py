"""Reading capture files: pcap and pcapng, plain or gzip, any of several link types, as Ethernet frames.

Rules: a file is read front to back and never held in memory; whatever its bytes, the answer is packets and at most one
note, or a CaptureError with one line. A file that ends inside a record or turns to rubbish ends there, with a note.
Every packet comes out as an untagged Ethernet frame: VLAN tags, Linux cooked, loopback and raw IP belong to the link
where the capture was taken, not to what the hosts said.

Formats: draft-ietf-opsawg-pcap, draft-ietf-opsawg-pcapng, the LINKTYPE_ registry of tcpdump.org.
Left out: 802.11 and other link types (their packets come with the cause "link_type"), pcapng decryption secrets.
"""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

MAX_RECORD = 1 << 24  # bytes; a longer record is rubbish, not a packet
MAX_INTERFACES = 4096

ETHERNET, NULL, RAW_OLD, RAW_BSD, RAW, LOOP, COOKED, RAW4, RAW6, COOKED2 = 1, 0, 12, 14, 101, 108, 113, 228, 229, 276
PPP, PPP_HDLC, CISCO_HDLC = 9, 50, 104
_TYPE_OF_PPP = {b"\x00\x21": b"\x08\x00", b"\x00\x57": b"\x86\xdd"}  # RFC 1332, RFC 5072
_NO_MACS = bytes(12)
_VLAN_TYPES = (0x8100, 0x88A8, 0x9100)
_TYPE_OF_FAMILY = {2: 0x0800, 10: 0x86DD, 24: 0x86DD, 28: 0x86DD, 30: 0x86DD}
_PCAP_MAGICS = {0xA1B2C3D4: (1000, 0), 0xA1B23C4D: (1, 0), 0xA1B2CD34: (1000, 8)}  # ns per unit, extra record header


class CaptureError(Exception):
    """The file is no capture: one line that names the file, what is wrong, and how to mend it."""


@dataclass(frozen=True, slots=True)
class Captured:
    """One packet of a file."""

    time_ns: int  # since 1970
    frame: bytes  # an Ethernet frame; empty when cause is set
    missing: int  # bytes that were on the wire behind the last one captured
    group: bool  # sent to a link-layer broadcast or multicast address
    cause: str = ""  # why there is no frame: "link_type" | "truncated"


class Capture:
    """An open capture file; iterate it once. `note` says after the last packet what is wrong with the file's end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.note = ""
        try:
            self.size = path.stat().st_size
            self._raw: BinaryIO = path.open("rb")
        except OSError as error:
            raise CaptureError(f"{path}: cannot be read: {error.strerror}; name a capture file") from error
        try:
            self._file = self._unpacked()
            self._packets = self._begin()
        except BaseException:
            self._raw.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._raw.close()

    def __iter__(self) -> Iterator[Captured]:
        return self._packets

    def position(self) -> int:
        """Bytes of the file read so far, for a progress bar."""
        return self._raw.tell()

    def _unpacked(self) -> BinaryIO:
        magic = self._raw.read(2)
        self._raw.seek(0)
        if magic == b"\x1f\x8b":
            return io.BufferedReader(gzip.GzipFile(fileobj=self._raw))
        return self._raw

    def _begin(self) -> Iterator[Captured]:
        magic = self._take(4)
        if self.size == 0:
            raise CaptureError(f"{self.path}: empty file; name a pcap or pcapng capture")
        if magic == b"\x0a\x0d\x0d\x0a":
            start = self._section_header()
            if start:
                return self._pcapng(start)
        elif len(magic) == 4:
            for order in "<>":
                unit = _PCAP_MAGICS.get(struct.unpack(order + "I", magic)[0])
                header = self._take(20) if unit else b""
                if unit and len(header) == 20:
                    return self._pcap(order, *unit, struct.unpack_from(order + "I", header, 16)[0] & 0xFFFF)
        raise CaptureError(f"{self.path}: not a capture; pcap and pcapng are read, also gzip'd")

    def _take(self, n: int) -> bytes:
        """The next n bytes, fewer only at the end of the file or where its compression is damaged."""
        try:
            return self._file.read(n)
        except (EOFError, OSError, zlib.error):
            self.note = "the compressed data is damaged or cut off"
            return b""

    def _ends(self, note: str) -> None:
        self.note = self.note or note

    def _pcap(self, order: str, unit: int, extra: int, link: int) -> Iterator[Captured]:
        record = struct.Struct(f"{order}IIII{extra}x")
        number = 0
        while True:
            header = self._take(record.size)
            number += 1
            if len(header) < record.size:
                if header:
                    self._ends(f"ends inside the header of packet {number}")
                return
            seconds, fraction, length, wire = record.unpack(header)
            if length > MAX_RECORD:
                self._ends(f"packet {number} says it is {length} bytes long; the rest of the file is left out")
                return
            data = self._take(length)
            if len(data) < length:
                self._ends(f"ends inside packet {number}")
                return
            yield _captured(seconds * 1_000_000_000 + fraction * unit, link, data, max(wire - length, 0))

    def _section_header(self) -> tuple[str, int] | None:
        """Behind a section's block type: its byte order and what is left of it; None when it is none."""
        head = self._take(8)
        if len(head) < 8:
            return None
        for order in "<>":
            length, magic = struct.unpack(order + "II", head)
            if magic == 0x1A2B3C4D and 28 <= length <= MAX_RECORD and length % 4 == 0:
                return order, length - 12
        return None

    def _pcapng(self, section: tuple[str, int]) -> Iterator[Captured]:
        order, left = section
        links: list[_Interface] = []
        if len(self._take(left)) < left:
            self._ends("ends inside its section header")
            return
        number = 1
        while True:
            number += 1
            head = self._take(4)
            if head == b"\x0a\x0d\x0d\x0a":
                again = self._section_header()
                if not again or len(self._take(again[1])) < again[1]:
                    self._ends(f"ends inside the section header in block {number}")
                    return
                order, links = again[0], []
                continue
            size = self._take(4) if len(head) == 4 else b""
            if len(size) < 4:
                if head:
                    self._ends(f"ends inside the header of block {number}")
                return
            kind, length = struct.unpack(order + "II", head + size)
            if length < 12 or length % 4 or length > MAX_RECORD:
                self._ends(f"block {number} says it is {length} bytes long; the rest of the file is left out")
                return
            body = self._take(length - 8)[:-4]
            if len(body) < length - 12:
                self._ends(f"ends inside block {number}")
                return
            if kind == 1 and len(body) >= 8 and len(links) < MAX_INTERFACES:
                links.append(_Interface.described(order, body))
            packet = self._block(order, kind, body, links)
            if packet:
                yield packet

    @staticmethod
    def _block(order: str, kind: int, body: bytes, links: list[_Interface]) -> Captured | None:
        """The packet in a block; None when it holds none (or refers to an interface that nobody described)."""
        if kind == 6 and len(body) >= 20:  # enhanced packet
            link, high, low, length, wire = struct.unpack_from(order + "IIIII", body)
            start = 20
        elif kind == 2 and len(body) >= 20:  # packet, obsolete
            link, _, high, low, length, wire = struct.unpack_from(order + "HHIIII", body)
            start = 20
        elif kind == 3 and len(body) >= 4 and links:  # simple packet: no time
            link, high, low, start = 0, 0, 0, 4
            wire = struct.unpack_from(order + "I", body)[0]
            length = min(wire, links[0].snaplen or wire)
        else:
            return None
        if link >= len(links):
            return None
        data = body[start : start + length]
        return _captured(links[link].time_ns(high << 32 | low), links[link].link_type, data, max(wire - len(data), 0))


@dataclass(frozen=True, slots=True)
class _Interface:
    link_type: int
    snaplen: int
    units: int  # per second
    offset: int  # seconds

    @classmethod
    def described(cls, order: str, body: bytes) -> _Interface:
        link, _, snaplen = struct.unpack_from(order + "HHI", body)
        units, offset, at = 1_000_000, 0, 8
        while at + 4 <= len(body):
            option, length = struct.unpack_from(order + "HH", body, at)
            value = body[at + 4 : at + 4 + length]
            if option == 0 or len(value) < length:
                break
            if option == 9 and length == 1:  # if_tsresol
                units = 1 << min(value[0] & 0x7F, 64) if value[0] & 0x80 else 10 ** min(value[0], 18)
            if option == 14 and length == 8:  # if_tsoffset
                offset = struct.unpack(order + "q", value)[0]
            at += 4 + (length + 3) // 4 * 4
        return cls(link, snaplen, units, offset)

    def time_ns(self, stamp: int) -> int:
        return max(stamp * 1_000_000_000 // self.units + self.offset * 1_000_000_000, 0)


def _captured(time_ns: int, link: int, data: bytes, missing: int) -> Captured:
    """Turn what the link carried into an Ethernet frame without tags."""
    macs, group, after = _NO_MACS, False, b""
    if link == ETHERNET:
        if len(data) >= 14:
            macs, group, after = data[:12], bool(data[0] & 1), data[12:]
    elif link in (RAW, RAW_OLD, RAW_BSD, RAW4, RAW6):
        if data:
            after = (b"\x86\xdd" if data[0] >> 4 == 6 else b"\x08\x00") + data
    elif link in (NULL, LOOP):
        if len(data) > 4:
            family = min(struct.unpack("<I", data[:4])[0], struct.unpack(">I", data[:4])[0])
            after = struct.pack(">H", _TYPE_OF_FAMILY.get(family, 0xFFFF)) + data[4:]
    elif link == COOKED:
        if len(data) > 16:
            group, after = data[0:2] in (b"\0\1", b"\0\2"), data[14:]
    elif link == COOKED2:
        if len(data) > 20:
            group, after = data[10:11] in (b"\1", b"\2"), data[0:2] + data[20:]
    elif link in (PPP, PPP_HDLC, CISCO_HDLC):
        if data[:1] in (b"\x0f", b"\x8f"):  # Cisco's framing
            after = data[2:]
        else:
            data = data.removeprefix(b"\xff\x03")
            after = _TYPE_OF_PPP.get(data[:2], b"\xff\xff") + data[2:] if len(data) > 2 else b""
    else:
        return Captured(time_ns, b"", missing, False, "link_type")
    while len(after) >= 6 and struct.unpack(">H", after[:2])[0] in _VLAN_TYPES:
        after = after[4:]
    if len(after) < 2:
        return Captured(time_ns, b"", missing, group, "truncated")
    return Captured(time_ns, macs + after, missing, group)
