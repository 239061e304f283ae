"""Rows: ICMP errors about packets that told the RS the client's address. Who sent the packet learns of it by what it had sent itself."""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import packets as wire
import pytest
import reference_icmp as icmp
from packets import ACK, PSH, UDP
from rig import CLIENT, CLIENT6, LAN, MACS, RS1, RS6, VIP, VIP6, WAN

sys.path.insert(0, str(Path(__file__).parents[1] / "cases"))
from talk import Core, Naive, Talk

ROUTER = {False: "10.0.0.254", True: "fd00::fe"}  # between the balancer and the RS
HOP = "203.0.113.1"  # between the balancer and the client
V2 = 28  # bytes of a header
BOTH = pytest.mark.parametrize("make", [Core, Naive], ids=["core", "reference"])


def about(side: Any, sent: wire.Frame, kind: int, code: int, rest: int = 0, more: bytes = b"", n: int = 65535) -> Any:
    """An error about a frame that the balancer sent, of which n bytes are quoted: the outcome and what leaves."""
    six, to_client = wire.is6(sent.src), sent.src == VIP
    quote = sent.raw[14 : 14 + sent.total][:n] + more
    near = WAN if to_client else LAN
    source = HOP if to_client else ROUTER[six]
    return side.deliver(
        near, wire.icmp(source, sent.src, kind, code, struct.pack("!I", rest), quote, eth_dst=MACS[near])
    )


def first(t: Talk) -> wire.Frame:
    return t.from_client(ACK | PSH, b"GET", seq=t.isn + 1)[1][-1][1]


def later(t: Talk) -> wire.Frame:
    return t.from_client(ACK | PSH, b"more", seq=t.isn + 1 + 100)[1][-1][1]


def took(size: int) -> Callable[[Talk], Any]:
    return lambda t: t.from_rs(ACK, ack=t.isn + 1 + size)


SEGMENTS = [
    ("the segment with the header", first, None, 1001),
    ("data behind it", later, None, 1101),
    ("the segment with the header, which the RS has by now", first, took(V2), 1001),
    ("data behind it, the RS has the header by now", later, took(V2), 1101),
    ("data behind it, the RS has more by now", later, took(V2 + 50), 1101),
]


@BOTH
@pytest.mark.parametrize(("about_what", "send", "then", "seq"), SEGMENTS, ids=[row[0] for row in SEGMENTS])
def test_the_client_knows_its_own_numbers(about_what: str, send: Any, then: Any, seq: int, make: Any) -> None:
    side = make()
    talk = Talk(side, client_addr="proxy-v2").establish()
    sent = send(talk)
    if then:
        then(talk)
    for n in (28, 65535):  # 8 bytes of L4, and all
        outcome, out = about(side, sent, 11, 0, n=n)
        assert outcome == "to_client"
        quote = icmp.quoted(out[0][1])
        assert isinstance(quote, icmp.Quote)
        assert struct.unpack_from("!I", quote.body, quote.l4 + 4)[0] == seq


@BOTH
@pytest.mark.parametrize(("mode", "ack"), [("proxy-v2", V2 + 10), ("proxy-v2", 0), ("proxy-v1", 45), ("toa", 0)])
def test_the_rs_knows_its_own_acknowledgements(mode: str, ack: int, make: Any) -> None:
    side = make()
    talk = Talk(side, client_addr=mode).establish()
    number = talk.isn + 1 + ack
    sent = talk.from_rs(ACK, b"220", ack=number)[1][0][1]
    outcome, out = about(side, sent, 11, 0)
    assert outcome == "to_rs"
    quote = icmp.quoted(out[0][1])
    assert isinstance(quote, icmp.Quote)
    assert struct.unpack_from("!I", quote.body, quote.l4 + 8)[0] == (number + talk.dseq) & 0xFFFFFFFF


FAMILIES = [("44", CLIENT, VIP, RS1), ("46", CLIENT, VIP, RS6), ("64", CLIENT6, VIP6, RS1), ("66", CLIENT6, VIP6, RS6)]


@BOTH
@pytest.mark.parametrize("objects", [b"", b"\x20\0\xdf\xff\0\x08\1\1abcd"], ids=["", "objects"])
@pytest.mark.parametrize("n", [1000, 76, 30])
@pytest.mark.parametrize(("families", "client", "vip", "rs"), FAMILIES, ids=[row[0] for row in FAMILIES])
def test_a_datagram_of_protocol_248(
    families: str, client: str, vip: str, rs: str, n: int, objects: bytes, make: Any
) -> None:
    """The client sent a plain datagram: port unreachable is about that one. A quote that is cut before its ports says nothing."""
    side = make()
    side.service(vip=vip, vport=53, proto=UDP, client_addr="uoa-opp", members=[(0, rs, 53, 1)], lips=[3, 6])
    datagram = wire.udp(client, 5000, vip, 53, bytes(range(200)))
    sent = side.deliver(WAN, datagram)[1][0][1]
    assert sent.uoa
    six = wire.is6(rs)
    n = n + 20 if six and n == 76 else n
    padded = sent.raw[14 : 14 + sent.total][:n].ljust(128, b"\0") if objects else b""
    rest = (16 << 24 if six else 32 << 16) if objects else 0
    outcome, out = (
        about(side, sent, *((1, 4) if six else (3, 3)), rest, n=n)
        if not objects
        else side.deliver(
            LAN,
            wire.icmp(
                ROUTER[six],
                sent.src,
                *((1, 4) if six else (3, 3)),
                struct.pack("!I", rest),
                padded + objects,
                eth_dst=MACS[LAN],
            ),
        )
    )
    if n == 30:
        assert outcome in ("icmp_quote", "icmp_no_conn")
        return
    assert outcome == "to_client"
    back = out[0][1]
    assert (back.icmp_type, back.icmp_code) == ((1, 4) if wire.is6(client) else (3, 3))
    assert not icmp.quote_len(wire.is6(client), icmp.message_of(back))
    quote = icmp.quoted(back)
    assert isinstance(quote, icmp.Quote)
    assert (quote.proto, quote.src, quote.dst) == (UDP, (client, 5000), (vip, 53))
    assert quote.total == wire.read(datagram).total
    whole = wire.read(datagram)
    payload = quote.body[quote.l4 + 8 :]
    assert len(payload) >= 4 and whole.payload.startswith(payload[: n - 40 if n < 200 else 200].rstrip(b"\0"))


@BOTH
@pytest.mark.parametrize(("offset", "value"), [(1, 6), (3, 16), (2, 1)])
def test_what_looks_like_protocol_248_only(offset: int, value: int, make: Any) -> None:
    side = make()
    talk = Talk(side, proto=UDP, client_addr="uoa-opp")
    sent = talk.datagram()[1][0][1]
    raw = bytearray(sent.raw)
    raw[34 + offset] = value
    frame = wire.icmp(ROUTER[False], sent.src, 3, 3, bytes(4), bytes(raw[14 : 14 + sent.total]), eth_dst=MACS[LAN])
    assert side.deliver(LAN, frame)[0] == "icmp_no_conn"


MTUS = [
    ("toa", "44", (3, 4, 1400), (3, 4, 1392), False),
    ("toa", "44", (3, 4, 72), (3, 4, 68), False),
    ("toa", "44", (3, 4, 0), (3, 4, 0), False),
    ("toa", "44", (11, 0, 0), (11, 0, 0), False),
    ("toa", "44", (3, 4, 1400), (3, 4, 1400), True),
    ("toa", "66", (2, 0, 1400), (2, 0, 1380), False),
    ("toa", "66", (2, 0, 1290), (2, 0, 1280), False),
    ("toa", "46", (2, 0, 1400), (3, 4, 1372), False),
    ("toa", "64", (3, 4, 1400), (2, 0, 1400), False),
    ("none", "44", (3, 4, 1400), (3, 4, 1400), False),
]


@BOTH
@pytest.mark.parametrize(("mode", "families", "given", "wanted", "spoken"), MTUS)
def test_an_mtu_leaves_room_for_toa(
    mode: str, families: str, given: tuple[int, int, int], wanted: tuple[int, int, int], spoken: bool, make: Any
) -> None:
    """A client that fills the MTU of a link further on would else send segments that never get there."""
    side = make()
    client, vip, rs = next(row[1:] for row in FAMILIES if row[0] == families)
    side.service(vip=vip, client_addr=mode, members=[(0, rs, 8080, 1)], lips=[3, 6])
    syn = side.deliver(WAN, wire.tcp(client, 5000, vip, 80, wire.SYN, seq=1))[1][0][1]
    end = (rs, 8080, syn.src, syn.sport)
    side.deliver(LAN, wire.tcp(*end, wire.SYN | ACK, seq=7, ack=syn.seq + 1, eth_dst=MACS[LAN]))
    sent = side.deliver(WAN, wire.tcp(client, 5000, vip, 80, ACK, seq=2, ack=8, payload=b"x"))[1][0][1]
    if spoken:
        side.deliver(LAN, wire.tcp(*end, ACK, seq=8, ack=syn.seq + 1, payload=b"220", eth_dst=MACS[LAN]))
    outcome, out = about(side, sent, *given)
    assert outcome == "to_client"
    back = out[0][1]
    assert (back.icmp_type, back.icmp_code, struct.unpack("!I", back.icmp_rest)[0]) == wanted
