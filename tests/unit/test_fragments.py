"""Datagrams in fragments. Rows are asked of the core and of the reference; limits of the core alone."""

from __future__ import annotations

import struct
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import packets as wire
import pytest
from packets import ACK, MF, SYN, TCP, UDP
from rig import CLIENT, CLIENT6, LAN, LIP, LIP6, MACS, RS1, RS2, RS6, VIP, VIP6, WAN, Rig

sys.path.insert(0, str(Path(__file__).parents[1] / "cases"))
from talk import Core, Naive, Talk

BODY = bytes(i * 7 & 255 for i in range(3000))
MAKES = pytest.mark.parametrize("make", [Core, Naive])
V4, V6 = (CLIENT, VIP, RS1), (CLIENT6, VIP6, RS6)


def datagram(body: bytes = BODY, client: str = CLIENT, vip: str = VIP, **fields: Any) -> bytes:
    return wire.udp(client, 40000, vip, 53, body, **{"frag": 0, **fields})


@dataclass
class Row:
    sentence: str
    frames: list[bytes]
    outcomes: list[str]
    leave: list[int] = field(default_factory=list)  # how many frames leave at each
    side: dict[str, Any] = field(default_factory=dict)


def cut(*places: tuple[int, int], whole: bytes = datagram(), ident: int = 9, **fields: Any) -> list[bytes]:
    return [wire.piece(whole, start, end, ident, **fields) for start, end in places]


A, B, C = (0, 1400), (1400, 2800), (2800, 3008)
SEGMENT = wire.tcp(CLIENT, 40000, VIP, 53, ACK, payload=BODY, frag=0)
NO_SUM = datagram(checksum=0)
CHAIN = datagram(client=CLIENT6, vip=VIP6, extensions=(60,))

ROWS = [
    Row("in order", cut(A, B, C), ["to_rs"] * 3, [1, 1, 1]),
    Row("those before the first wait for it", cut(C, B, A), ["held", "held", "to_rs"], [0, 0, 3]),
    Row("the last one first", cut(C, A, B), ["held", "to_rs", "to_rs"], [0, 2, 1]),
    Row("an exact duplicate goes alone", cut(A, B, B, C), ["to_rs", "to_rs", "fragment_duplicate", "to_rs"], [1, 1, 0, 1]),
    Row("of a waiting one, too", cut(B, B, A, C), ["held", "fragment_duplicate", "to_rs", "to_rs"], [0, 0, 2, 1]),
    Row("late duplicates of a complete one are known", cut(A, B, C, C, A), ["to_rs"] * 3 + ["fragment_duplicate"] * 2),
    Row("an overlap ends it all", cut(A, (1392, 2792), B, C), ["to_rs", *["fragment_overlap"] * 3]),
    Row("what waits goes with it", cut(B, (1408, 2808), A), ["held", "fragment_overlap", "fragment_overlap"], [0, 0, 0]),
    Row("a part of what was seen is an overlap", cut(A, (8, 16), C), ["to_rs", "fragment_overlap", "fragment_overlap"]),
    Row("another end", cut(A, C) + cut(B, more=False), ["to_rs", "to_rs", "fragment_overlap"]),
    Row("an end before what was seen", cut(A, C) + cut((1400, 1408), more=False), ["to_rs", "to_rs", "fragment_overlap"]),
    Row("bytes beyond the end", cut(A, C) + cut((3008, 3016), whole=datagram(BODY + bytes(90))), ["to_rs", "to_rs", "fragment_overlap"]),
    Row("the L4 header in two", cut((0, 8), (8, 3020), whole=SEGMENT), ["fragment_tiny"] * 2),
    Row("and after it was held", cut((8, 3020), (0, 8), whole=SEGMENT), ["held", "fragment_tiny"], [0, 0]),
    Row("no multiple of 8", cut((0, 1399), more=True), ["fragment_length"]),
    Row("empty", cut((1400, 1400), more=True), ["fragment_length"]),
    Row("too long", [wire.ether(wire.ipv4(bytes(16), src=CLIENT, dst=VIP, proto=UDP, frag=8190, ident=9))], ["fragment_length"]),
    Row("a port nobody serves", cut(A, B, whole=wire.udp(CLIENT, 1, VIP, 54, BODY, frag=0)), ["no_service", "no_conn"], [0, 0]),
    Row("no first packet of TCP", cut(A, B, whole=SEGMENT), ["no_conn", "no_conn"], [0, 0]),
    Row("TTL spent in the first: time exceeded", cut(A, B, whole=datagram(ttl=1)), ["ttl", "ttl"], [1, 0]),
    Row("too many of one datagram wait", cut(*[(8 * i, 8 * i + 8) for i in range(1, 19)]), ["held"] * 16 + ["fragment_held"] * 2),
    Row("another protocol", cut(A, whole=wire.ether(wire.ipv4(BODY, src=CLIENT, dst=VIP, proto=47, frag=0))), ["protocol"]),
    Row("a UDP checksum that is absent stays absent", cut(A, B, C, whole=NO_SUM), ["to_rs"] * 3, [1, 1, 1]),
]  # fmt: skip


@MAKES
@pytest.mark.parametrize("row", ROWS, ids=lambda r: r.sentence)
def test_row(row: Row, make: Any) -> None:
    side = make(**row.side)
    Talk(side, UDP)
    results = [side.deliver(WAN, frame) for frame in row.frames]
    assert [outcome for outcome, _ in results] == row.outcomes
    if row.leave:
        assert [len(out) for _, out in results] == row.leave
    sent = [f.raw for _, out in results for _, f in out if f.dst == RS1]
    names = {wire.read(f).ident for f in sent}
    assert len(names) <= 1
    if len(sent) == 3:
        whole = wire.read(wire.together(sent))
        assert (whole.src, whole.dst, whole.dport, whole.payload) == (LIP, RS1, 8080, BODY)
        assert wire.faults(whole.raw) == []


@MAKES
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)], ids=str)
def test_fragments_of_a_one_packet_service_follow_their_first(make: Any, order: tuple[int, ...]) -> None:
    """No table knows the connection by its client: two datagrams open two, and no fragment of one goes with the other."""
    side = make()
    Talk(side, UDP, one_packet=True)
    ports = set()
    for ident in (9, 10):
        frames = cut(A, B, C, ident=ident)
        sent = [f.raw for i in order for _, f in side.deliver(WAN, frames[i])[1]]
        whole = wire.read(wire.together(sent))
        assert (whole.src, whole.dst, whole.dport, whole.payload) == (LIP, RS1, 8080, BODY)
        ports.add(whole.sport)
    assert len(ports) == 2
    assert side.deliver(WAN, cut(B, ident=11)[0])[0] == "held"


def opened(
    make: Any, client_side: tuple[str, str, str], rs: str, proto: int = UDP, **side: Any
) -> tuple[Any, wire.Frame]:
    """A connection that its first packet has opened, and what left."""
    client, vip, _ = client_side
    it = make(**side)
    it.service(0, vip, 53, proto, members=[(0, rs, 8080, 1)], lips=[3, 4, 6])
    first = wire.udp(client, 40000, vip, 53, b"x") if proto == UDP else wire.tcp(client, 40000, vip, 53, SYN, seq=1)
    [(_, f)] = it.deliver(WAN, first)[1]
    return it, f


@MAKES
@pytest.mark.parametrize("side", [V4, V6], ids=["client v4", "client v6"])
@pytest.mark.parametrize("rs", [RS1, RS6], ids=["RS v4", "RS v6"])
@pytest.mark.parametrize("to_client", [False, True], ids=["to RS", "to client"])
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2), (3, 2, 1, 0)], ids=str)
@pytest.mark.parametrize("proto", [UDP, TCP], ids=["UDP", "TCP"])
def test_any_order_any_families(
    make: Any, side: tuple[str, str, str], rs: str, to_client: bool, order: tuple[int, ...], proto: int
) -> None:
    it, f = opened(make, side, rs, proto)
    client, vip, _ = side
    ends = (rs, 8080, f.src, f.sport) if to_client else (client, 40000, vip, 53)
    port = LAN if to_client else WAN
    if proto == UDP:
        whole = wire.udp(*ends, BODY, frag=0)
    else:
        it.deliver(LAN, wire.tcp(rs, 8080, f.src, f.sport, SYN | ACK, seq=9, ack=f.seq + 1))
        whole = wire.tcp(*ends, ACK, seq=77, payload=BODY, frag=0)
    parts = wire.pieces(whole, 5, 800)
    out = [g.raw for i in order for _, g in it.deliver(port, parts[i])[1]]
    assert len(out) == 4
    got = wire.read(wire.together(out))
    assert got.payload == BODY
    assert got.flow == ((proto, vip, 53, client, 40000) if to_client else (proto, f.src, f.sport, rs, 8080))
    assert wire.faults(got.raw) == []
    assert {g.ttl for g in map(wire.read, out)} == {63}
    [c] = it.conns() if make is Core else [None]
    if c:
        packets, count = (c.out_packets, 4 + (proto == TCP)) if to_client else (c.in_packets, 5)
        assert packets == count


@MAKES
def test_the_first_fragment_may_open_the_connection(make: Any) -> None:
    talk = Talk(make(), UDP)
    for i in (2, 1, 0):
        result = talk.side.deliver(WAN, cut(A, B, C)[i])
    assert len(result[1]) == 3
    assert talk.side.state() == "UDP_ONEWAY"
    assert wire.read(wire.together([f.raw for _, f in result[1]])).payload == BODY


@MAKES
def test_the_first_fragment_goes_on_with_another_rs_when_its_own_is_dead(make: Any) -> None:
    side = make()
    options: dict[str, Any] = {"vport": 53, "proto": UDP, "lips": [3], "expire_quiescent": True}
    side.service(0, VIP, members=[(0, RS1, 8080, 1)], **options)
    assert side.deliver(WAN, datagram(b"x"))[0] == "to_rs"
    side.service(0, VIP, members=[(0, RS1, 8080, 0), (1, RS2, 8080, 1)], **options)
    results = [side.deliver(WAN, frame) for frame in cut(B, A, C)]
    assert [outcome for outcome, _ in results] == ["held", "to_rs", "to_rs"]
    assert [f.dst for _, out in results for _, f in out] == [RS2] * 3


@MAKES
def test_clients_behind_one_local_address_never_share_an_identification(make: Any) -> None:
    side = make()
    Talk(side, UDP)
    names = []
    for i in range(200):
        whole = wire.udp(f"198.51.100.{i}", 7, VIP, 53, BODY, frag=0)
        [(_, f)] = side.deliver(WAN, wire.piece(whole, 0, 1400, 9))[1]
        assert f.src == LIP
        names.append(f.ident)
    assert len(set(names)) == 200


@MAKES
def test_what_may_be_fragmented_later_gets_an_identification_that_nobody_else_has(make: Any) -> None:
    side = make()
    Talk(side, UDP)
    outs = [
        side.deliver(WAN, wire.udp(f"198.51.100.{i % 9}", 7, VIP, 53, bytes(600), frag=0, ident=9))[1][0][1]
        for i in range(50)
    ]
    assert len({f.ident for f in outs}) == 50
    [(_, fixed)] = side.deliver(WAN, wire.udp(CLIENT, 7, VIP, 53, bytes(600), ident=9))[1]
    [(_, small)] = side.deliver(WAN, wire.udp(CLIENT, 7, VIP, 53, bytes(500), frag=0, ident=9))[1]
    assert (fixed.ident, small.ident) == (9, 9)


@MAKES
@pytest.mark.parametrize(
    "options", [b"", b"\x94\4\0\0\1\1\1\0", b"\x07\4\0\0"], ids=["none", "one in every fragment", "one in the first"]
)
def test_a_packet_without_df_leaves_in_fragments(make: Any, options: bytes) -> None:
    side = make(mtu=600)
    Talk(side, UDP)
    outcome, out = side.deliver(WAN, wire.udp(CLIENT, 7, VIP, 53, BODY[:1400], frag=0, ip_options=options))
    assert outcome == "to_rs"
    assert [f.total <= 600 for _, f in out] == [True] * 3
    assert [f.raw[34 : f.l4] for _, f in out] == [options] + [options[:4] if options[:1] == b"\x94" else b""] * 2
    whole = wire.read(wire.together([f.raw for _, f in out]))
    assert whole.payload == BODY[:1400]
    assert wire.faults(whole.raw) == []


@MAKES
def test_a_fragment_leaves_in_smaller_ones(make: Any) -> None:
    side = make(mtu=600)
    Talk(side, UDP)
    out = [f.raw for part in cut(C, A, B) for _, f in side.deliver(WAN, part)[1]]
    assert len(out) == 7
    assert len({wire.read(f).ident for f in out}) == 1
    assert wire.read(wire.together(out)).payload == BODY


@MAKES
@pytest.mark.parametrize("size", [1440, 1452, 1453, 1472])
def test_a_packet_without_df_becomes_ipv6_fragments_where_it_must(make: Any, size: int) -> None:
    side, _ = opened(make, V4, RS6)
    outcome, out = side.deliver(WAN, datagram(BODY[:size]))
    assert outcome == "to_rs"
    assert [wire.FRAGMENT in f.extensions for _, f in out] == ([True] * 2 if size > 1452 else [False])
    whole = wire.read(wire.together([f.raw for _, f in out]) if size > 1452 else out[0][1].raw)
    assert whole.payload == BODY[:size]
    assert (whole.src, whole.dst, wire.faults(whole.raw)) == (LIP6, RS6, [])


@MAKES
def test_ipv6_is_never_fragmented_on_the_way(make: Any) -> None:
    side, f = opened(make, V6, RS6, mtu=1400)
    parts = wire.pieces(datagram(client=CLIENT6, vip=VIP6), 5, 1400)
    outcome, [(_, error)] = side.deliver(WAN, parts[0])
    assert (outcome, error.icmp_type, error.icmp_rest) == ("mtu", 2, struct.pack("!I", 1400))
    assert side.deliver(WAN, parts[1]) == ("mtu", [])


@MAKES
@pytest.mark.parametrize("side", [V4, V6])
def test_ipv6_wants_a_checksum_that_a_part_cannot_give(make: Any, side: tuple[str, str, str]) -> None:
    it, _ = opened(make, side, RS6)
    whole = datagram(client=side[0], vip=side[1], checksum=0)
    places = cut(B, A, C, whole=whole)
    assert [it.deliver(WAN, part)[0] for part in places] == ["held", "udp_no_checksum", "udp_no_checksum"]


@MAKES
def test_options_inside_what_is_cut_cannot_cross(make: Any) -> None:
    it, _ = opened(make, V6, RS6)
    assert [it.deliver(WAN, part)[0] for part in cut(A, B, whole=CHAIN)] == ["to_rs", "to_rs"]
    it, _ = opened(make, V6, RS1)
    assert [it.deliver(WAN, part)[0] for part in cut(A, B, whole=CHAIN)] == ["ext_headers", "ext_headers"]


@MAKES
def test_an_ipv6_header_chain_must_be_in_the_first_fragment(make: Any) -> None:
    it, _ = opened(make, V6, RS6)
    assert it.deliver(WAN, wire.piece(CHAIN, 0, 8, 5))[0] == "fragment_tiny"


@MAKES
@pytest.mark.parametrize("side", [V4, V6])
def test_a_ping_in_fragments_is_answered_in_fragments(make: Any, side: tuple[str, str, str]) -> None:
    it = make()
    whole = wire.icmp(side[0], side[1], 128 if wire.is6(side[1]) else 8, 0, b"abcd", BODY, frag=0)
    out = [it.deliver(WAN, part) for part in reversed(wire.pieces(whole, 5, 1400))]
    assert [outcome for outcome, _ in out] == ["answered"] * 3
    reply = wire.read(wire.together([f.raw for _, [(_, f)] in out]))
    assert (reply.src, reply.icmp_type, reply.icmp_rest, reply.payload) == (
        side[1],
        129 if wire.is6(side[1]) else 0,
        b"abcd",
        BODY,
    )
    assert wire.faults(reply.raw) == []
    assert it.deliver(WAN, wire.piece(wire.icmp(side[0], side[1], 3, 0, b"abcd", BODY, frag=0), 0, 800, 6))[0] == "icmp"


@MAKES
@pytest.mark.parametrize("seconds", [1.9, 2.1])
def test_a_first_fragment_that_does_not_come(make: Any, seconds: float) -> None:
    side = make()
    Talk(side, UDP)
    a, b, c = cut(A, B, C)
    assert side.deliver(WAN, b)[0] == side.deliver(WAN, c)[0] == "held"
    side.wait(seconds)
    assert len(side.deliver(WAN, a)[1]) == (3 if seconds < 2 else 1)
    count = side.counters() if make is Core else side.reference.count
    assert count["fragment_timeout"] == (0 if seconds < 2 else 2)


def test_memory_is_bounded_whatever_comes() -> None:
    rig = Rig(frames=2048)
    rig.service(proto=UDP, vport=53)
    whole = datagram()
    for i in range(320):
        rig.send(WAN, wire.piece(whole, 1400, 2800, i))
    counters = rig.counters()
    assert (counters["held"], counters["fragment_held"], counters["datagrams"]) == (256, 64, 320)
    for i in range(320, 4200):
        rig.send(WAN, wire.piece(whole, 0, 1400, i))
    counters = rig.counters()
    assert (counters["datagrams"], counters["fragment_table"]) == (4096, 4200 - 4096)
    rig.check_sums()
    rig.wait(2.1)
    counters = rig.counters()
    assert (counters["held"], counters["datagrams"], counters["fragment_timeout"]) == (0, 0, 256)
    rig.wait(40)
    rig.check_empty()


def test_complete_datagrams_give_way() -> None:
    rig = Rig()
    rig.service(proto=UDP, vport=53)
    whole = datagram(bytes(100))
    for i in range(5000):
        assert len(rig.send(WAN, wire.piece(whole, 0, 64, i), wire.piece(whole, 64, 108, i))) == 2
    assert rig.counters()["datagrams"] == 4096
    rig.wait(0.3)
    assert rig.counters()["datagrams"] == 0


def test_a_datagram_in_too_many_fragments() -> None:
    rig = Rig()
    rig.service(proto=UDP, vport=53)
    for i in range(140):
        rig.send(WAN, wire.piece(datagram(), 8 * i, 8 * i + 8, 9))
    counters = rig.counters()
    assert (counters["to_rs"], counters["fragment_many"]) == (128, 12)


def test_without_frames_nothing_is_split() -> None:
    rig = Rig(mtu=600, frames=64)
    rig.service(proto=UDP, vport=53)
    out = rig.send(WAN, *[datagram(bytes(1400)) for _ in range(40)])
    counters = rig.counters()
    assert counters["to_rs"] + counters["no_frame"] == 40
    assert counters["no_frame"] > 0
    assert len(out) == 3 * counters["to_rs"]
    rig.check_sums()


def test_what_waits_for_a_neighbour_leaves_in_fragments() -> None:
    rig = Rig(mtu=600)
    rig.service(proto=UDP, vport=53, members=[(0, "10.0.0.200", 8080, 1)])
    [(_, asked)] = rig.send(WAN, datagram(BODY[:1400]), datagram(BODY[:1400]))
    request = wire.read(asked)
    out = rig.send(LAN, wire.arp(2, "02:00:00:00:02:00", "10.0.0.200", MACS[LAN], request.src, eth_dst=MACS[LAN]))
    frames = [wire.read(f) for _, f in out]
    names = sorted({f.ident for f in frames})
    assert len(names) == 2
    for name in names:
        assert wire.read(wire.together([f.raw for f in frames if f.ident == name])).payload == BODY[:1400]
    rig.check_sums()


def test_what_is_held_when_the_process_stops_is_dropped() -> None:
    rig = Rig()
    rig.service(proto=UDP, vport=53)
    rig.send(WAN, *cut(B, C))
    rig.worker.detach()
    rig.worker.quiesce()
    assert rig.counters()["stale"] == 2
    assert rig.worker.frames_free == rig.worker.frames_total


def test_fragments_of_a_ping_are_no_first_fragments_of_anything() -> None:
    rig = Rig()
    [(_, f)] = rig.send(WAN, wire.ether(wire.ipv4(b"12345678", src=CLIENT, dst=VIP, proto=1, frag=MF | 10)))
    assert (wire.read(f).dst, wire.read(f).payload) == (CLIENT, b"12345678")
    assert rig.counters()["echo_replies_sent"] == 0
