"""A QUIC client that moves keeps its server: rows that are asked of the core and of the reference."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import packets as wire
import pytest
import reference_quic as quic
from packets import UDP
from reference_quic import connection_id, long_header, short_header
from rig import CLIENT, CLIENT6, RS1, RS2, RS3, RS6, RS6B, VIP, VIP6, WAN, Rig

sys.path.insert(0, str(Path(__file__).parents[1] / "cases"))
from talk import Core, Naive

MAKES = pytest.mark.parametrize("make", [Core, Naive])
# In the order of scheduling: a first datagram that names nobody goes to the first.
MEMBERS = [
    (0, RS1, 8080, 1),
    (1, RS2, 8080, 1),
    (2, RS2, 8081, 1),
    (3, RS3, 8080, 0),
    (4, RS6, 8080, 1),
    (5, RS6B, 443, 1),
]
SCHEDULED = (RS1, 8080)


@dataclass
class Row:
    sentence: str
    payload: bytes
    goes_to: tuple[str, int] = SCHEDULED


def cid(addr: str, size: int, port: int | None = None, **more: Any) -> bytes:
    return short_header(connection_id(addr, size, port, **more))


ROWS = [
    Row("the last byte of the address", cid(RS2, 1), (RS2, 8080)),
    Row("two", cid(RS2, 2), (RS2, 8080)),
    Row("all of it", cid(RS2, 4), (RS2, 8080)),
    Row("and the port", cid(RS2, 4, 8081), (RS2, 8081)),
    Row("the port and little of the address", cid(RS2, 1, 8081), (RS2, 8081)),
    Row("the shortest ID", cid(RS2, 1, length=7), (RS2, 8080)),
    Row("with a port", cid(RS2, 1, 8081, length=8), (RS2, 8081)),
    Row("any nonce", cid(RS2, 1, nonce="1"), (RS2, 8080)),
    Row("without the fixed bit, RFC 9287", short_header(connection_id(RS2, 2), first=0x00), (RS2, 8080)),
    Row("other bits of the first byte", short_header(connection_id(RS2, 2), first=0x7F), (RS2, 8080)),
    Row("a server of weight 0 keeps its connections", cid(RS3, 4), (RS3, 8080)),
    Row("IPv6", cid(RS6B, 2), (RS6B, 443)),
    Row("eight bytes of it", cid(RS6B, 8), (RS6B, 443)),
    Row("and the port", cid(RS6B, 8, 443), (RS6B, 443)),
    Row("five bytes are more than DPVS reads", cid(RS6B, 5), (RS6B, 443)),
    Row("seven", cid(RS6, 7, 8080), (RS6, 8080)),
    Row("nothing but the ID", short_header(connection_id(RS2, 4, 8081), b""), (RS2, 8081)),
    Row("a server that is not of the service", cid("10.0.0.99", 4)),
    Row("another port", cid(RS2, 4, 9999)),
    Row("more bytes than an IPv4 address has", short_header(bytes([0, 0x80 | 0x0, *[0] * 18]))),
    Row("a long header: Handshake", long_header(connection_id(RS2, 4))),
    Row("Initial", long_header(connection_id(RS2, 4), 0)),
    Row("too short for an ID", short_header(connection_id(RS2, 1, length=6), b"")),
    Row("too short for this one", short_header(connection_id(RS2, 4, 8081, length=10), b"")),
    Row("no data", b""),
    Row("one byte", b"\x41"),
]  # fmt: skip


def moved_to(side: Any, client: tuple[str, int], vip: str, payload: bytes, **fields: Any) -> tuple[str, int]:
    outcome, [(_, f)] = side.deliver(WAN, wire.udp(*client, vip, 443, payload, **fields))
    assert outcome == "to_rs" and f.payload == payload
    return f.dst, f.dport


def serve(side: Any, vip: str = VIP, members: Any = MEMBERS, **options: Any) -> Any:
    side.service(0, vip, 443, UDP, **{"members": members, "lips": [3, 6], "quic": True, **options})
    return side


@MAKES
@pytest.mark.parametrize(("client", "vip"), [(CLIENT, VIP), (CLIENT6, VIP6)], ids=["v4", "v6"])
@pytest.mark.parametrize("row", ROWS, ids=lambda r: r.sentence)
def test_a_first_datagram_goes_to(make: Any, row: Row, client: str, vip: str) -> None:
    side = serve(make(), vip)
    assert moved_to(side, (client, 5000), vip, row.payload) == row.goes_to
    counters = side.counters() if isinstance(side, Core) else side.reference.count
    assert counters["quic_moved"] == (row.goes_to != SCHEDULED)


@MAKES
def test_the_example_of_dpvs(make: Any) -> None:
    """192.168.111.222:8029 in two bytes and a port is XX36FDE1F5DX…; no builder of ours between."""
    side = serve(make(), members=[(0, RS1, 80, 1), (1, "10.0.111.222", 8029, 1)])
    for plane in side.both():
        plane.put_routes(
            [("0.0.0.0/0", "192.0.2.1", "", 0, 0, 0, "unicast"), ("10.0.0.0/16", RS1, "", 1, 0, 0, "unicast")]
        )
    side.plane.publish()
    payload = bytes.fromhex("41" + "a536fde1f5d9" + "0123456789")
    assert moved_to(side, (CLIENT, 5000), VIP, payload) == ("10.0.111.222", 8029)
    assert quic.connection_id("192.168.111.222", 2, 8029, 10).hex()[2:11] == "36fde1f5d"


@MAKES
def test_a_whole_migration(make: Any) -> None:
    side = serve(make())
    first = moved_to(side, (CLIENT, 5000), VIP, long_header(b"random!!", 0))
    second = moved_to(side, (CLIENT, 5001), VIP, long_header(b"random!?", 0))
    assert (first, second) == ((RS1, 8080), (RS2, 8080))
    # Its own port has changed, behind a NAT, and then its network.
    for client in ((CLIENT, 6000), ("198.51.100.99", 6000)):
        assert moved_to(side, client, VIP, cid(*second[:1], 4, second[1])) == second
        assert moved_to(side, client, VIP, b"\x41 whatever comes after it") == second, "the connection is known"
    assert moved_to(side, (CLIENT, 5000), VIP, cid(RS2, 4)) == first, "so is the old one"


@MAKES
def test_a_service_without_the_flag_reads_nothing(make: Any) -> None:
    side = serve(make(), quic=False)
    assert moved_to(side, (CLIENT, 5000), VIP, cid(RS2, 4)) == SCHEDULED


@MAKES
def test_what_is_named_does_not_count_as_scheduled(make: Any) -> None:
    side = serve(make())
    assert moved_to(side, (CLIENT, 5000), VIP, cid(RS2, 4)) == (RS2, 8080)
    assert moved_to(side, (CLIENT, 5001), VIP, b"x") == SCHEDULED


@MAKES
def test_weight_0_with_expiry_gets_nothing_back(make: Any) -> None:
    side = serve(make(), expire_quiescent=True)
    assert moved_to(side, (CLIENT, 5000), VIP, cid(RS3, 4)) == SCHEDULED


@MAKES
@pytest.mark.parametrize("keep_persistent", [True, False])
def test_a_connection_that_moves_stays_with_a_draining_rs(make: Any, keep_persistent: bool) -> None:
    """It is one of those that may end by themselves, also where the service ends those of weight 0."""
    side = serve(make(), expire_quiescent=True, draining={1: keep_persistent})
    assert moved_to(side, (CLIENT, 5000), VIP, cid(RS2, 4)) == (RS2, 8080)
    assert moved_to(side, (CLIENT, 5000), VIP, cid(RS2, 4)) == (RS2, 8080)
    assert moved_to(side, (CLIENT, 5001), VIP, b"x") == SCHEDULED


@MAKES
def test_udp_length_bounds_what_is_read(make: Any) -> None:
    """Bytes behind the datagram are not its ID."""
    side = serve(make())
    payload = cid(RS2, 1, length=7)[:8]
    frame = wire.udp(CLIENT, 5000, VIP, 443, payload, length=8 + 7, checksum=0)
    outcome, [(_, f)] = side.deliver(WAN, frame)
    assert (outcome, f.dst) == ("to_rs", RS1)


@pytest.mark.parametrize("options", [{"proto": 6}, {"proto": 132}, {"proto": UDP, "one_packet": True}], ids=str)
def test_for_udp_connections_only(options: dict[str, Any]) -> None:
    rig = Rig()
    with pytest.raises(OSError, match="Invalid argument"):
        rig.plane.put_service(0, VIP, 443, members=[], lips=[], quic=True, **options)
