"""Numbers inside headers that must, and must not, be touched: a sentence, a packet in, the packet out."""

from __future__ import annotations

import struct

import packets as wire
import pytest
from packets import ACK, PARTIAL, SYN, UDP
from rig import CLIENT, LAN, LIP, RS1, VIP, WAN, Rig


@pytest.fixture
def rig():
    rig = Rig()
    yield rig
    rig.close()


def established(rig: Rig) -> tuple[int, int]:
    """(local port, shift of sequence numbers) of one open connection."""
    rig.service()
    [(_, raw)] = rig.send(WAN, wire.tcp(CLIENT, 4242, VIP, 80, SYN, seq=1000))
    syn = wire.read(raw)
    rig.send(LAN, wire.tcp(RS1, 8080, LIP, syn.sport, SYN | ACK, seq=7000, ack=syn.seq + 1))
    return syn.sport, syn.seq - 1000


@pytest.mark.parametrize(
    ("options", "shifted"),
    [
        (wire.option_sack([(10, 20)]), [4, 8]),
        (b"\x01" + wire.option_sack([(10, 20)]), [5, 9]),
        (b"\x05\x0a" + struct.pack("!II", 10, 20), [2, 6]),
        (b"\x01\x05\x08\x0a\x5a\x3f\x0a\xdd\xe4\x00\x00\x00", []),  # no length that RFC 2018 knows
    ],
    ids=["padded", "odd offset", "bare", "malformed"],
)
def test_sack_blocks_of_the_rs_are_mapped_back(rig, options, shifted):
    lport, shift = established(rig)
    options = wire.pad_options(options)
    expected = bytearray(options)
    for at in shifted:
        value = struct.unpack_from("!I", options, at)[0]
        struct.pack_into("!I", expected, at, (value - shift) % 2**32)
    frame = wire.tcp(RS1, 8080, LIP, lport, ACK, seq=7001, ack=1001 + shift, options=options)
    [(_, raw)] = rig.send(LAN, frame)
    assert wire.faults(raw) == []
    assert raw[54 : 54 + len(options)] == bytes(expected)


@pytest.mark.parametrize("padding", [0, 1, 20], ids=["fits", "one byte over", "much shorter"])
def test_a_datagram_shorter_than_its_packet_is_completed_over_its_own_length(rig, padding):
    rig.service(vport=53, proto=UDP, members=[(0, RS1, 53, 1)])
    frame = bytearray(wire.udp(CLIENT, 4242, VIP, 53, b"question", checksum=PARTIAL))
    frame += bytes(range(1, padding + 1))
    struct.pack_into("!H", frame, 16, len(frame) - 14)
    struct.pack_into("!H", frame, 24, 0)
    struct.pack_into("!H", frame, 24, wire.checksum_of(bytes(frame[14:34])))
    [(_, raw)] = rig.send(WAN, bytes(frame))
    pseudo = wire.pseudo_header(LIP, RS1, UDP, 16)
    assert wire.residue(pseudo + raw[34:50]) == 0
    assert raw[50:] == frame[50:]
    assert rig.counters()["checksums_completed"] == 1
