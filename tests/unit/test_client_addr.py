"""Rows: what a real server learns of the client, and how. Each is asked of the core and of the reference."""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import packets as wire
import pytest
from packets import ACK, FIN, PARTIAL, PSH, RST, SYN, TCP, UDP
from rig import CLIENT, CLIENT6, LAN, MACS, RS1, RS6, VIP, VIP6, WAN

from fnat._core import Plane

sys.path.insert(0, str(Path(__file__).parents[1] / "cases"))
from talk import Core, Naive, Result, Talk

TOA = bytes.fromhex("fe08 9c40 c6336407")  # 198.51.100.7:40000
V1 = b"PROXY TCP4 198.51.100.7 192.0.2.10 40000 80\r\n"
V2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + bytes.fromhex("c6336407 c000020a 9c40 0050")
V2_UDP = V2[:13] + b"\x12" + V2[14:26] + struct.pack("!H", 53)
OTHER1 = b"PROXY TCP4 203.0.113.5 203.0.113.6 1 2\r\n"
OTHER2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + bytes.fromhex("cb007105 cb007106 0001 0002")
OPP = bytes.fromhex("1011 000c 1f08 9c40 c6336407")
IPO = bytes.fromhex("1f08 9c40 c6336407")
DATA = b"GET / HTTP/1.0\r\n\r\n"
FULL = wire.option_timestamp(5, 6) + wire.option_sack([(1, 2), (3, 4), (5, 6)])
FORGED = b"\xfe\x08\x12\x34\1\2\3\4"

Act = Callable[[Talk], Result]


@dataclass
class Row:
    """told and no_room: how far these counters move; fields: of the last frame that leaves for this side."""

    sentence: str
    mode: str
    act: Act
    fields: dict[str, Any]
    before: Callable[[Talk], Any] = lambda t: t.establish()
    to_client: bool = False
    told: int = 0
    no_room: int = 0
    proto: int = TCP
    mtu: int = 1500
    frames: int = 1
    service: dict[str, Any] = field(default_factory=dict)
    ts: int | None = None


def begun(t: Talk) -> None:
    """The handshake without the client's ACK."""
    t.syn()
    t.synack()


def at(t: Talk, offset: int) -> int:
    """A number of the client's stream, as the RS has it."""
    return t.isn + 1 + offset + t.dseq


def taken(size: int) -> Callable[[Talk], None]:
    """The RS has acknowledged this many bytes of its stream."""

    def act(t: Talk) -> None:
        t.establish()
        t.from_rs(ACK, ack=t.isn + 1 + size)

    return act


def rs_data(t: Talk) -> None:
    t.establish()
    t.from_rs(ACK | PSH, b"220 hello\r\n")


def asked(t: Talk) -> None:
    t.datagram()


def number(offset: int) -> Callable[[Talk], int]:
    return lambda t: at(t, offset) & 0xFFFFFFFF


ROWS = [
    # ---- TOA ----
    Row("the ACK of the handshake brings TOA as its first option", "toa", lambda t: t.ack(options=b"\1\1\1\0"), {"toa": TOA, "total": 52}, begun, told=1),
    Row("so does the first data", "toa", lambda t: t.from_client(ACK | PSH, DATA), {"toa": TOA, "payload": DATA}, told=1),
    Row("so does the first data with FIN", "toa", lambda t: t.from_client(ACK | FIN, DATA), {"toa": TOA, "flags": ACK | FIN, "payload": DATA}, told=1),
    Row("a partial checksum is completed with it", "toa", lambda t: t.from_client(ACK, DATA, checksum=PARTIAL), {"toa": TOA, "payload": DATA}, told=1),
    Row("a repeated first segment brings it again", "toa", lambda t: t.from_client(ACK, DATA, seq=t.isn + 1), {"toa": TOA, "payload": DATA},
        lambda t: (t.establish(), t.from_client(ACK, DATA)), told=1),
    Row("a SYN brings none", "toa", lambda t: t.syn(), {"toa": b""}, lambda t: None),
    Row("a RST brings none", "toa", lambda t: t.from_client(RST), {"toa": b"", "total": 40}),
    Row("none once the RS has spoken", "toa", lambda t: t.ack(), {"toa": b"", "total": 40}, rs_data),
    Row("none once the RS has taken data", "toa", lambda t: t.ack(), {"toa": b"", "total": 40},
        lambda t: (t.establish(), t.from_client(ACK, DATA), t.from_rs(ACK))),
    Row("a forged option becomes padding behind the true one", "toa", lambda t: t.ack(options=FORGED), {"toa": TOA, "total": 56}, told=1),
    Row("a forged option of a SYN becomes padding", "toa", lambda t: t.syn(options=FORGED), {"toa": b"", "total": 48}, lambda t: None),
    Row("padding gives way when options are many", "toa", lambda t: t.ack(options=wire.option_timestamp(5, 6) + b"\1" * 24), {"toa": TOA, "total": 60}, told=1),
    Row("full options leave no room", "toa", lambda t: t.ack(options=FULL), {"toa": b"", "total": 80}, no_room=1),
    Row("a full-sized segment leaves no room", "toa", lambda t: t.from_client(ACK, bytes(1460)), {"toa": b"", "total": 1500}, no_room=1),
    Row("8 bytes less do", "toa", lambda t: t.from_client(ACK, bytes(1452)), {"toa": TOA, "total": 1500}, told=1),
    Row("the RS's MSS is lowered by what the option takes", "toa", lambda t: t.synack(), {"mss": 1452}, lambda t: t.syn(), to_client=True, ts=500),
    Row("without TOA the MSS stays", "none", lambda t: t.synack(), {"mss": 1460}, lambda t: t.syn(), to_client=True, ts=500),
    Row("without TOA a client's option 254 is its own", "none", lambda t: t.ack(options=FORGED), {"toa": FORGED}),
    # ---- PROXY on TCP ----
    Row("the ACK of the handshake brings the header: an RS that speaks first has it", "proxy-v1", lambda t: t.ack(), {"payload": V1, "seq": number(0)}, begun, told=1),
    Row("v2 likewise", "proxy-v2", lambda t: t.ack(), {"payload": V2, "seq": number(0)}, begun, told=1),
    Row("the first data brings it again until the RS has it", "proxy-v1", lambda t: t.from_client(ACK | PSH, DATA), {"payload": V1 + DATA, "seq": number(0)}, told=1),
    Row("with an odd header and a checksum left to hardware", "proxy-v1", lambda t: t.from_client(ACK, DATA + b"x", checksum=PARTIAL), {"payload": V1 + DATA + b"x"}, told=1),
    Row("FIN with the first data stands behind both", "proxy-v2", lambda t: t.from_client(ACK | FIN, DATA), {"payload": V2 + DATA, "flags": ACK | FIN, "seq": number(0)}, told=1),
    Row("a FIN alone stands behind the header", "proxy-v2", lambda t: t.from_client(ACK | FIN), {"payload": V2, "flags": ACK | FIN}, told=1),
    Row("data that overtook the first segment is shifted", "proxy-v2", lambda t: t.from_client(ACK, DATA, seq=t.isn + 1 + 100), {"payload": DATA, "seq": number(128)}),
    Row("the first segment again, shorter", "proxy-v2", lambda t: t.from_client(ACK, DATA[:4], seq=t.isn + 1), {"payload": V2 + DATA[:4], "seq": number(0)},
        lambda t: (t.establish(), t.from_client(ACK, DATA)), told=1),
    Row("the rest of the first segment alone", "proxy-v2", lambda t: t.from_client(ACK, DATA[4:], seq=t.isn + 5), {"payload": DATA[4:], "seq": number(32)},
        lambda t: (t.establish(), t.from_client(ACK, DATA))),
    Row("once the RS has it, the first data is only shifted", "proxy-v2", lambda t: t.from_client(ACK, DATA), {"payload": DATA, "seq": number(28)}, taken(28)),
    Row("the RS's ACK of the header is the beginning for the client", "proxy-v2", lambda t: t.from_rs(ACK, ack=t.isn + 1 + 28), {"ack": 1001}, to_client=True),
    Row("so is one inside the header", "proxy-v2", lambda t: t.from_rs(ACK, ack=t.isn + 1 + 5), {"ack": 1001}, to_client=True),
    Row("and one of before that comes late", "proxy-v2", lambda t: t.from_rs(ACK, ack=t.isn + 1), {"ack": 1001}, taken(28), to_client=True),
    Row("an ACK of data is shifted back", "proxy-v2", lambda t: t.from_rs(ACK, ack=t.isn + 1 + 28 + 10), {"ack": 1011}, to_client=True),
    Row("SACK blocks are shifted back, too", "proxy-v2", lambda t: t.from_rs(ACK, ack=t.isn + 1 + 28, sack=[(1129, 1229)]), {"ack": 1001, "sack": [(1101, 1201)]}, to_client=True),
    Row("they are withheld while the header itself is missing", "proxy-v2", lambda t: t.from_rs(ACK, ack=t.isn + 1, sack=[(1029, 1129)]), {"ack": 1001, "sack": []}, to_client=True),
    Row("a keep-alive probe of before the stream stays before it", "proxy-v2", lambda t: t.from_client(ACK, b"", seq=t.isn), {"payload": b"", "seq": number(-1)}),
    Row("and has no byte that could come to lie in the header", "proxy-v2", lambda t: t.from_client(ACK, b"PROXY", seq=t.isn), {"payload": b"", "seq": number(-1)}),
    Row("a RST is where the RS expects it", "proxy-v2", lambda t: t.from_client(RST), {"payload": b"", "seq": number(28)}),
    Row("data of a SYN goes: it would come before the header", "proxy-v2", lambda t: t.syn(payload=b"early"), {"payload": b"", "flags": SYN}, lambda t: None),
    Row("a client's own header is data", "proxy-v1", lambda t: t.from_client(ACK, OTHER1), {"payload": V1 + OTHER1}, told=1),
    Row("full-sized first data: the header goes first, alone", "proxy-v2", lambda t: t.from_client(ACK | PSH, bytes(1460)), {"payload": bytes(1460), "seq": number(28)},
        told=1, frames=2),
    # ---- a whole packet that may be fragmented further on ----
    Row("without DF it brings TOA like any other", "toa", lambda t: t.from_client(ACK, bytes(1000), frag=0), {"toa": TOA, "frag": 0, "payload": bytes(1000)}, told=1),
    Row("likewise the header", "proxy-v1", lambda t: t.from_client(ACK, bytes(1000), frag=0), {"payload": V1 + bytes(1000), "frag": 0}, told=1),
    Row("full-sized, the header goes first", "proxy-v2", lambda t: t.from_client(ACK, bytes(1460), frag=0), {"payload": bytes(1460), "frag": 0}, told=1, frames=2),
    Row("what the RS sends meanwhile passes", "proxy-v2", lambda t: t.from_rs(ACK, bytes(1000), ack=t.isn + 1, frag=0), {"payload": bytes(1000), "ack": 1001}, to_client=True),
    Row("a large datagram that may be fragmented", "uoa-opp", lambda t: t.datagram(bytes(1000), frag=0), {"uoa": OPP, "payload": bytes(1000)}, lambda t: None, proto=UDP, told=1),
    # ---- a header that the client brings ----
    Row("insecure: the client's data is waited for", "proxy-v1-insecure", lambda t: t.ack(), {"payload": b"", "seq": number(0)}, begun),
    Row("insecure: its header of the same version passes", "proxy-v1-insecure", lambda t: t.from_client(ACK, OTHER1 + DATA), {"payload": OTHER1 + DATA, "seq": number(0)}),
    Row("insecure: a v1 header becomes v2", "proxy-v2-insecure", lambda t: t.from_client(ACK, OTHER1 + DATA), {"payload": OTHER2 + DATA, "seq": number(0)}, told=1),
    Row("insecure: a v2 header becomes v1", "proxy-v1-insecure", lambda t: t.from_client(ACK, OTHER2 + DATA), {"payload": OTHER1 + DATA, "seq": number(0)}, told=1),
    Row("insecure: what follows a translated header is shifted by the difference", "proxy-v1-insecure", lambda t: t.from_client(ACK, b"more"),
        {"payload": b"more", "seq": number(len(OTHER1) + len(DATA))}, lambda t: (t.establish(), t.from_client(ACK, OTHER2 + DATA))),
    Row("insecure: a piece from inside the client's own header is empty and stands behind the translated one", "proxy-v1-insecure",
        lambda t: t.from_client(ACK, OTHER2[10:], seq=t.isn + 11), {"payload": b"", "seq": number(len(OTHER1))}, lambda t: (t.establish(), t.from_client(ACK, OTHER2 + DATA))),
    Row("insecure: without a header of its own the client gets one", "proxy-v2-insecure", lambda t: t.from_client(ACK, DATA), {"payload": V2 + DATA}, told=1),
    Row("insecure: a header cut short is none", "proxy-v2-insecure", lambda t: t.from_client(ACK, OTHER2[:20]), {"payload": V2 + OTHER2[:20]}, told=1),
    # ---- UOA ----
    Row("the first datagram has the header of protocol 248", "uoa-opp", lambda t: t.datagram(), {"uoa": OPP, "payload": b"query", "checksum": 0}, lambda t: None, proto=UDP, told=1),
    Row("the third has, too", "uoa-opp", lambda t: t.datagram(), {"uoa": OPP}, lambda t: (t.datagram(), t.datagram()), proto=UDP, told=1),
    Row("the fourth has not", "uoa-opp", lambda t: t.datagram(), {"uoa": b""}, lambda t: [t.datagram() for _ in range(3)], proto=UDP),
    Row("none once the RS has answered", "uoa-opp", lambda t: t.datagram(), {"uoa": b""}, lambda t: (t.datagram(), t.reply()), proto=UDP),
    Row("answers are plain", "uoa-opp", lambda t: t.reply(), {"payload": b"answer"}, asked, proto=UDP, to_client=True),
    Row("a datagram too large: an empty one goes first", "uoa-opp", lambda t: t.datagram(bytes(1472)), {"uoa": b"", "payload": bytes(1472)}, asked, proto=UDP, told=1, frames=2),
    Row("as an option of IPv4", "uoa-ipo", lambda t: t.datagram(), {"ip_options": IPO, "payload": b"query"}, lambda t: None, proto=UDP, told=1),
    Row("a client's own option becomes padding", "uoa-ipo", lambda t: t.datagram(ip_options=b"\x1f\x08" + bytes(6)), {"ip_options": IPO + b"\1" * 8}, lambda t: None, proto=UDP, told=1),
    Row("also when nothing is told any more", "uoa-ipo", lambda t: t.datagram(ip_options=b"\x1f\x08" + bytes(6)), {"ip_options": b"\1" * 8},
        lambda t: (t.datagram(), t.reply()), proto=UDP),
    Row("full options leave no room", "uoa-ipo", lambda t: t.datagram(ip_options=b"\1" * 36), {"ip_options": b"\1" * 36}, lambda t: None, proto=UDP, no_room=1),
    # ---- PROXY on UDP ----
    Row("v2 is in the first datagram", "proxy-v2", lambda t: t.datagram(), {"payload": V2_UDP + b"query"}, lambda t: None, proto=UDP, told=1),
    Row("and in no other", "proxy-v2", lambda t: t.datagram(), {"payload": b"query"}, asked, proto=UDP),
    Row("insecure: the client's own passes", "proxy-v2-insecure", lambda t: t.datagram(OTHER2 + b"q"), {"payload": OTHER2 + b"q"}, lambda t: None, proto=UDP),
    Row("a datagram too large goes without", "proxy-v2", lambda t: t.datagram(bytes(1472)), {"payload": bytes(1472)}, lambda t: None, proto=UDP, no_room=1),
    # ---- what may become fragments further on: IPv4 without DF, longer than 576 bytes ----
    Row("without DF a full segment brings TOA, too", "toa", lambda t: t.from_client(ACK | PSH, bytes(1400), frag=0), {"toa": TOA, "payload": bytes(1400)}, told=1),
    Row("the ACK of the handshake with data, without DF", "toa", lambda t: t.from_client(ACK, bytes(800), frag=0), {"toa": TOA, "payload": bytes(800)}, begun, told=1),
    Row("a forged option becomes padding there", "toa", lambda t: t.from_client(ACK, bytes(800), frag=0, options=FORGED), {"toa": TOA, "total": 856}, told=1),
    Row("without DF the first data brings the header", "proxy-v2", lambda t: t.from_client(ACK | PSH, bytes(1400), frag=0), {"payload": V2 + bytes(1400), "seq": number(0)}, told=1),
    Row("without DF an answer's number is shifted back", "proxy-v2", lambda t: t.from_rs(ACK, bytes(1400), ack=t.isn + 1 + 28, frag=0), {"ack": 1001, "payload": bytes(1400)},
        to_client=True),
    Row("a large datagram without DF has the header of protocol 248", "uoa-opp", lambda t: t.datagram(bytes(1000), frag=0), {"uoa": OPP, "payload": bytes(1000)},
        lambda t: None, proto=UDP, told=1),
    Row("or the option", "uoa-ipo", lambda t: t.datagram(bytes(1000), frag=0), {"ip_options": IPO, "payload": bytes(1000)}, lambda t: None, proto=UDP, told=1),
    Row("or v2", "proxy-v2", lambda t: t.datagram(bytes(1000), frag=0), {"payload": V2_UDP + bytes(1000)}, lambda t: None, proto=UDP, told=1),
    Row("no more once the RS has answered so", "uoa-opp", lambda t: t.datagram(), {"uoa": b""}, lambda t: (t.datagram(), t.reply(bytes(1000), frag=0)), proto=UDP),
]  # fmt: skip


def mss_of(f: wire.Frame) -> int:
    options = f.raw[f.l4 + 20 : f.l4 + (f.raw[f.l4 + 12] >> 4) * 4]
    return next(
        (struct.unpack_from("!H", options, at + 2)[0] for kind, at, _ in wire.tcp_options(options) if kind == 2), 0
    )


def ip_options_of(f: wire.Frame) -> bytes:
    return f.raw[34 : f.l4]


@pytest.mark.parametrize("make", [Core, Naive], ids=["core", "reference"])
@pytest.mark.parametrize("row", ROWS, ids=[f"{r.mode}: {r.sentence}" for r in ROWS])
def test_row(row: Row, make: Any) -> None:
    side = make(mtu=row.mtu)
    talk = Talk(side, proto=row.proto, ts=row.ts, client_addr=row.mode, **row.service)
    row.before(talk)
    before = counts(side)
    outcome, out = row.act(talk)
    assert outcome == ("to_client" if row.to_client else "to_rs")
    assert len(out) == row.frames
    port, f = out[-1]
    assert port == (WAN if row.to_client else LAN)
    values = {"mss": mss_of(f), "ip_options": ip_options_of(f)} if f.proto in (TCP, UDP) else {}
    for name, wanted in row.fields.items():
        got = values[name] if name in values else getattr(f, name)
        assert got == (wanted(talk) if callable(wanted) else wanted), name
    after = counts(side)
    assert (after[0] - before[0], after[1] - before[1]) == (row.told, row.no_room)


def counts(side: Any) -> tuple[int, int]:
    counters = side.counters() if isinstance(side, Core) else side.reference.count
    return counters["client_addr_told"], counters["client_addr_no_room"]


def test_what_goes_first_is_whole_and_comes_first() -> None:
    talk = Talk(Core(), ts=500, client_addr="proxy-v2").establish()
    out = talk.from_client(ACK | PSH | FIN, bytes(1448))[1]
    first, second = (f for _, f in out)
    assert (first.payload, first.flags, first.ts) == (V2, ACK, second.ts)
    assert second.seq == first.seq + len(V2) and second.flags == ACK | PSH | FIN
    talk = Talk(Core(), proto=UDP, client_addr="uoa-opp")
    first, second = (f for _, f in talk.datagram(bytes(1472))[1])
    assert (first.uoa, first.payload, first.total) == (OPP, b"", 40) and second.payload == bytes(1472)


@pytest.mark.parametrize(
    ("rs", "cip", "vip"),
    [(RS1, CLIENT6, VIP6), (RS6, CLIENT6, VIP6), (RS6, CLIENT, VIP)],
    ids=["6 to 4", "6 to 6", "4 to 6"],
)
def test_between_families(rs: str, cip: str, vip: str) -> None:
    """The option and the header are of the client's family, whatever the RS's is."""
    addr = wire.addr_bytes(cip)
    members, lips = [(0, rs, 8080, 1)], [3, 6]
    toa = struct.pack("!BBH", 254, 4 + len(addr), 5000) + addr
    v1 = f"PROXY TCP{6 if wire.is6(cip) else 4} {cip} {vip} 5000 80\r\n".encode()
    for mode, wanted in (("toa", (toa, b"")), ("proxy-v1", (b"", v1))):
        core = Core()
        core.service(vip=vip, client_addr=mode, members=members, lips=lips)
        syn = core.deliver(WAN, wire.tcp(cip, 5000, vip, 80, SYN, seq=1, options=wire.OPTION_MSS))[1][0][1]
        answer = wire.tcp(
            rs, 8080, syn.src, syn.sport, SYN | ACK, seq=7, ack=syn.seq + 1, options=wire.OPTION_MSS, eth_dst=MACS[LAN]
        )
        back = core.deliver(LAN, answer)[1][0][1]
        fits = (
            1460 if (":" in cip) == (":" in rs) else 1440
        )  # a crossing connection is clamped to what fits either side
        assert mss_of(back) == fits - (len(toa) if mode == "toa" else 0)
        ack = core.deliver(WAN, wire.tcp(cip, 5000, vip, 80, ACK, seq=2, ack=8))[1][0][1]
        assert (ack.toa, ack.payload) == wanted
    core = Core()
    core.service(vip=vip, vport=53, proto=UDP, client_addr="uoa-opp", members=members, lips=lips)
    option = struct.pack("!BBH", 31, 4 + len(addr), 5000) + addr
    told = core.deliver(WAN, wire.udp(cip, 5000, vip, 53, b"q"))[1][0][1]
    assert told.uoa == struct.pack("!BBH", (2 if wire.is6(cip) else 1) << 4, UDP, 4 + len(option)) + option
    assert bool(told.checksum) == wire.is6(rs)


@pytest.mark.parametrize("make", [Core, Naive], ids=["core", "reference"])
def test_between_families_what_goes_first_is_never_fragmented(make: Any) -> None:
    """Of the two packets made of one the client's may be fragmented further on, as IPv6's minimum asks (RFC 7915 5.1); the balancer's own may not."""
    side = make(mtu=600)
    side.service(vip=VIP6, client_addr="proxy-v2", lips=[3])
    syn = side.deliver(WAN, wire.tcp(CLIENT6, 5000, VIP6, 80, SYN, seq=1))[1][0][1]
    side.deliver(LAN, wire.tcp(RS1, 8080, syn.src, syn.sport, SYN | ACK, seq=7, ack=syn.seq + 1, eth_dst=MACS[LAN]))
    _, out = side.deliver(WAN, wire.tcp(CLIENT6, 5000, VIP6, 80, ACK, seq=2, ack=8, payload=bytes(536)))
    (_, first), (_, second) = out
    assert (len(first.payload), first.frag, first.ident) == (52, wire.DF, 0)
    assert (second.payload, second.frag, bool(second.ident)) == (bytes(536), 0, True)


def test_a_long_stream_costs_nothing_any_more() -> None:
    """Beyond 64 KiB the connection is like any other, and old acknowledgements of the header's time do not matter."""
    talk = Talk(Core(), ts=None, client_addr="proxy-v2").establish()
    talk.from_rs(ACK, ack=talk.isn + 1 + len(V2))
    for _ in range(50):
        assert talk.from_client(ACK, bytes(1400))[1][0][1].seq == (talk.seq - 1400 + talk.dseq + len(V2)) & 0xFFFFFFFF
    assert talk.from_rs(ACK, ack=talk.seq + len(V2))[1][0][1].ack == talk.seq
    assert talk.from_client(ACK, b"x")[1][0][1].seq == (talk.seq - 1 + talk.dseq + len(V2)) & 0xFFFFFFFF


def test_an_expiring_connection_is_reset_with_the_numbers_the_rs_has() -> None:
    core = Core()
    talk = Talk(core, ts=None, client_addr="proxy-v2").establish()
    resets = {f.dst: f for _, f in core.wait(95, 0.25) if f.flags & RST}
    assert resets[CLIENT].ack == 1001
    assert resets[RS1].seq == (1001 + talk.dseq + len(V2)) & 0xFFFFFFFF
    core.check_empty()


@pytest.mark.parametrize(
    ("proto", "mode"),
    [(UDP, "toa"), (UDP, "proxy-v1"), (UDP, "proxy-v1-insecure"), (TCP, "uoa-opp"), (TCP, "uoa-ipo")],
)
def test_what_a_protocol_cannot_have_is_refused(proto: int, mode: str) -> None:
    plane = Plane.create(None, conns=64, services=4, members=4, endpoints=16, neighbours=16, frames=64, snapshot_mib=1)
    with pytest.raises(OSError, match=mode):
        plane.put_service(0, VIP, 80, proto, client_addr=mode)
    plane.close()
