"""Capture files: all containers and link types give the same packet; damage gives a note or one line, no crash."""

import gzip
import random
import struct
from pathlib import Path

import pytest

from fnat.captures import Capture, CaptureError

IP = bytes.fromhex("4500001c00010000401100000a0000010a000002") + struct.pack(">HHHH", 1, 2, 8, 0)
MACS = bytes.fromhex("020000000001020000000002")
ETHER = MACS + b"\x08\x00" + IP
BARE = bytes(12) + b"\x08\x00" + IP
NS = 1_700_000_000_123_456_789
US = NS // 1000 * 1000


def pcap(link: int, *packets: bytes, magic: int = 0xA1B2C3D4, order: str = "<", wire: int | None = None) -> bytes:
    fraction = 123456789 if magic == 0xA1B23C4D else 123456
    extra = bytes(8) if magic == 0xA1B2CD34 else b""
    out = struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 65535, link)
    for p in packets:
        out += struct.pack(order + "IIII", NS // 10**9, fraction, len(p), len(p) if wire is None else wire) + extra + p
    return out


def block(kind: int, body: bytes, order: str = "<") -> bytes:
    body += bytes(-len(body) % 4)
    size = struct.pack(order + "I", len(body) + 12)
    return struct.pack(order + "I", kind) + size + body + size


def pcapng(link: int, *packets: bytes, order: str = "<", options: bytes = b"", stamp: int = NS // 1000) -> bytes:
    out = block(0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1), order)
    out += block(1, struct.pack(order + "HHI", link, 0, 0) + options, order)
    for p in packets:
        out += block(6, struct.pack(order + "IIIII", 0, stamp >> 32, stamp & 0xFFFFFFFF, len(p), len(p)) + p, order)
    return out


TSRESOL_NS = struct.pack("<HHBxxxHH", 9, 1, 9, 0, 0)
TSRESOL_BIN = struct.pack("<HHBxxxHH", 9, 1, 0x80 | 10, 0, 0)  # 1/1024 s
TSOFFSET = struct.pack("<HHqHH", 14, 8, 1000, 0, 0)
COOKED = bytes.fromhex("0000000100060200000000020000") + b"\x08\x00" + IP
COOKED2 = b"\x08\x00" + bytes.fromhex("0000 00000002 0001 00 06 0200000000020000") + IP

ROWS = [  # sentence, file, frames, time
    ("pcap", pcap(1, ETHER), ETHER, US),
    ("big endian", pcap(1, ETHER, order=">"), ETHER, US),
    ("nanoseconds", pcap(1, ETHER, magic=0xA1B23C4D), ETHER, NS),
    ("modified record header", pcap(1, ETHER, magic=0xA1B2CD34), ETHER, US),
    ("gzip", gzip.compress(pcap(1, ETHER)), ETHER, US),
    ("FCS bits in the link type", pcap(0x54000001, ETHER), ETHER, US),
    ("VLAN tag", pcap(1, MACS + b"\x81\x00\x00\x07\x08\x00" + IP), ETHER, US),
    ("two VLAN tags", pcap(1, MACS + b"\x88\xa8\x00\x07\x81\x00\x00\x07\x08\x00" + IP), ETHER, US),
    ("raw IP 101", pcap(101, IP), BARE, US),
    ("raw IP 12", pcap(12, IP), BARE, US),
    ("raw IP 14", pcap(14, IP), BARE, US),
    ("raw IPv4 228", pcap(228, IP), BARE, US),
    ("raw IPv6", pcap(229, b"\x60" + bytes(39)), bytes(12) + b"\x86\xdd\x60" + bytes(39), US),
    ("loopback, little endian", pcap(0, b"\x02\0\0\0" + IP), BARE, US),
    ("loopback, big endian", pcap(0, b"\0\0\0\x02" + IP), BARE, US),
    ("OpenBSD loopback", pcap(108, b"\0\0\0\x02" + IP), BARE, US),
    ("Linux cooked", pcap(113, COOKED), BARE, US),
    ("Linux cooked v2", pcap(276, COOKED2), BARE, US),
    ("PPP", pcap(9, b"\xff\x03\x00\x21" + IP), BARE, US),
    ("PPP, compressed header", pcap(9, b"\x00\x21" + IP), BARE, US),
    ("Cisco HDLC", pcap(104, b"\x0f\x00\x08\x00" + IP), BARE, US),
    ("pcapng", pcapng(1, ETHER), ETHER, US),
    ("pcapng, big endian", pcapng(1, ETHER, order=">"), ETHER, US),
    ("pcapng, gzip", gzip.compress(pcapng(101, IP)), BARE, US),
    ("pcapng, nanoseconds", pcapng(1, ETHER, options=TSRESOL_NS, stamp=NS), ETHER, NS),
    ("pcapng, binary units", pcapng(1, ETHER, options=TSRESOL_BIN, stamp=1024 * 5), ETHER, 5 * 10**9),
    ("pcapng, offset", pcapng(1, ETHER, options=TSOFFSET, stamp=5), ETHER, 1000 * 10**9 + 5000),
    ("pcapng, two sections", pcapng(101) + pcapng(1, ETHER, order=">"), ETHER, US),
]


def read(tmp_path: Path, data: bytes) -> tuple[list, str]:
    path = tmp_path / "capture"
    path.write_bytes(data)
    with Capture(path) as capture:
        return list(capture), capture.note


@pytest.mark.parametrize(("data", "frame", "time"), [r[1:] for r in ROWS], ids=[r[0] for r in ROWS])
def test_one_packet(tmp_path: Path, data: bytes, frame: bytes, time: int) -> None:
    packets, note = read(tmp_path, data)
    assert [(p.frame, p.time_ns, p.cause, p.missing) for p in packets] == [(frame, time, "", 0)]
    assert note == ""


def test_obsolete_and_simple_packet_blocks(tmp_path: Path) -> None:
    old = block(2, struct.pack("<HHIIII", 0, 0, 0, 7, len(ETHER), len(ETHER)) + ETHER)
    simple = block(3, struct.pack("<I", len(ETHER)) + ETHER)
    packets, _ = read(tmp_path, pcapng(1) + old + block(4, b"names") + simple)
    assert [(p.frame, p.time_ns) for p in packets] == [(ETHER, 7000), (ETHER, 0)]


def test_snapped_packet_says_what_is_missing(tmp_path: Path) -> None:
    packets, _ = read(tmp_path, pcap(1, ETHER[:30], wire=len(ETHER)))
    assert [(p.frame, p.missing) for p in packets] == [(ETHER[:30], len(ETHER) - 30)]


@pytest.mark.parametrize(
    ("link", "data", "cause"),
    [
        (127, ETHER, "link_type"),
        (1, ETHER[:13], "truncated"),
        (1, b"", "truncated"),
        (113, COOKED[:15], "truncated"),
        (101, b"", "truncated"),
    ],
)
def test_unusable_packet_has_a_cause(tmp_path: Path, link: int, data: bytes, cause: str) -> None:
    packets, _ = read(tmp_path, pcap(link, data))
    assert [p.cause for p in packets] == [cause]


GROUPS = [
    (1, b"\xff" + ETHER[1:], True),
    (1, ETHER, False),
    (113, b"\0\1" + COOKED[2:], True),
    (113, COOKED, False),
    (276, COOKED2[:10] + b"\2" + COOKED2[11:], True),
    (276, COOKED2, False),
]


@pytest.mark.parametrize(("link", "data", "group"), GROUPS)
def test_group_address(tmp_path: Path, link: int, data: bytes, group: bool) -> None:
    assert read(tmp_path, pcap(link, data))[0][0].group is group


WHOLE = pcap(1, ETHER, ETHER)
NG = pcapng(1, ETHER, ETHER)
DAMAGED = [
    ("cut in the last packet", WHOLE[:-1], 1, "ends inside packet 2"),
    ("cut in a packet header", WHOLE[: 24 + 16 + len(ETHER) + 5], 1, "header of packet 2"),
    ("absurd length", WHOLE + struct.pack("<IIII", 0, 0, 0x7FFFFFFF, 9), 2, "packet 3 says"),
    ("pcapng cut in the section header", NG[:14], 0, "section header"),
    ("pcapng cut", NG[:-7], 1, "ends inside block 4"),
    ("pcapng absurd length", NG + struct.pack("<II", 6, 13), 2, "block 5 says"),
    ("gzip cut", gzip.compress(WHOLE + random.Random(1).randbytes(9000))[:-40], 2, ""),
]


@pytest.mark.parametrize(("data", "count", "note"), [r[1:] for r in DAMAGED], ids=[r[0] for r in DAMAGED])
def test_damaged_end_is_a_note(tmp_path: Path, data: bytes, count: int, note: str) -> None:
    packets, said = read(tmp_path, data)
    assert len(packets) == count
    assert said and note in said


REFUSED = [(b"", "empty"), (b"hello world, this is text", "not a capture"), (b"\xd4\xc3", "not a capture")]
REFUSED += [(pcap(1)[:10], "not a capture"), (NG[:11], "not a capture"), (b"\x1f\x8bnonsense", "not a capture")]


@pytest.mark.parametrize(("data", "what"), REFUSED)
def test_no_capture_is_one_line(tmp_path: Path, data: bytes, what: str) -> None:
    with pytest.raises(CaptureError, match=what) as refusal:
        read(tmp_path, data)
    assert "\n" not in str(refusal.value)


def test_absent_file_and_directory_are_one_line(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(CaptureError, match="cannot be read"):
            Capture(path)


@pytest.mark.parametrize("seed", range(200))
def test_any_bytes_end_in_packets_or_one_line(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    data = bytearray(rng.choice([r[1] for r in ROWS]) * 2)
    for _ in range(rng.randrange(1, 9)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    try:
        read(tmp_path, bytes(data[: rng.randrange(len(data))]))
    except CaptureError as error:
        assert "\n" not in str(error)
