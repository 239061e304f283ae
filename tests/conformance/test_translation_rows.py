"""Packets that change their family: RFC 7915 and RFC 6146, row by row. Every frame that leaves is checked for lengths and checksums."""

from __future__ import annotations

import struct
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import packets as wire
import pytest
from packets import ACK, DESTINATION, DF, HOP_BY_HOP, PARTIAL, ROUTING, RST, SYN, TCP, UDP
from rig import LAN, MACS, RS_MACS, WAN

sys.path.insert(0, str(Path(__file__).parents[1] / "cases"))
from pairs import Core6, Naive6, Pair
from talk import Result

both = pytest.mark.parametrize("make", [Core6, Naive6])
protocols = pytest.mark.parametrize("proto", [TCP, UDP], ids=["tcp", "udp"])


@dataclass
class Row:
    """Sent by the client of a pair or by its server; `out` are fields of the one frame that leaves."""

    sentence: str
    family: str
    sender: str
    sent: dict[str, Any]
    outcome: str
    out: dict[str, Any] = field(default_factory=dict)
    mtu: dict[str, int] = field(default_factory=dict)
    size: int = 1


def six(**fields: Any) -> dict[str, Any]:
    return {"ethertype": wire.ETH_IP6, "label": 0, "extensions": (), **fields}


def four(**fields: Any) -> dict[str, Any]:
    return {"ethertype": wire.ETH_IP4, "l4": 34, **fields}


def error6(kind: int, code: int, rest: int) -> dict[str, Any]:
    return six(proto=wire.ICMP6, icmp_type=kind, icmp_code=code, icmp_rest=struct.pack("!I", rest))


def error4(kind: int, code: int, rest: int) -> dict[str, Any]:
    return four(proto=wire.ICMP, icmp_type=kind, icmp_code=code, icmp_rest=struct.pack("!I", rest))


# Sizes are those of UDP payloads: 8 bytes of header, and 20 or 40 before it.
ROWS = [
    Row("v4 to v6: a new header", "4to6", "client", {"ttl": 9, "tos": 0x2C, "ident": 77}, "to_rs", six(ttl=8, tos=0x2C, total=49)),
    Row("v4 to v6: a new header on the way back", "6to4", "server", {"ttl": 9, "tos": 0x2C}, "to_client", six(ttl=8, tos=0x2C, total=49)),
    Row("v4 to v6: a TTL that ends", "4to6", "client", {"ttl": 1}, "ttl", error4(11, 0, 0)),
    Row("v4 to v6: a TTL that ends on the way back", "6to4", "server", {"ttl": 1}, "ttl", error4(11, 0, 0)),
    Row("v4 to v6: options are left out", "4to6", "client", {"ip_options": b"\x94\x04\0\0\1\1\1\0"}, "to_rs", six(total=49)),
    Row("v4 to v6: it just fits", "4to6", "client", {}, "to_rs", six(total=1400), {"lan_mtu": 1400}, 1352),
    Row("v4 to v6: too big, DF: an MTU 20 less", "4to6", "client", {}, "mtu", error4(3, 4, 1380), {"lan_mtu": 1400}, 1353),
    Row("v4 to v6: no checksum: it gets one", "4to6", "client", {"checksum": 0}, "to_rs", six()),
    Row("v4 to v6: no checksum on the way back: it gets one", "6to4", "server", {"checksum": 0}, "to_client", six()),
    Row("v4 to v6: a checksum left to hardware is completed", "4to6", "client", {"checksum": PARTIAL}, "to_rs", six()),
    Row("v6 to v4: a new header", "6to4", "client", {"ttl": 9, "tos": 0x2C, "label": 0x12345}, "to_rs", four(ttl=8, tos=0x2C, total=29)),
    Row("v6 to v4: a new header on the way back", "4to6", "server", {"ttl": 9, "tos": 0x2C}, "to_client", four(ttl=8, tos=0x2C, total=29)),
    Row("v6 to v4: 1260 bytes go without DF", "6to4", "client", {}, "to_rs", four(total=1260, frag=0), {}, 1232),
    Row("v6 to v4: more go with DF", "6to4", "client", {}, "to_rs", four(total=1261, frag=DF), {}, 1233),
    Row("v6 to v4: a hop limit that ends", "6to4", "client", {"ttl": 1}, "ttl", error6(3, 0, 0)),
    Row("v6 to v4: a hop limit that ends on the way back", "4to6", "server", {"ttl": 1}, "ttl", error6(3, 0, 0)),
    Row("v6 to v4: extension headers are left out", "6to4", "client", {"extensions": (HOP_BY_HOP, DESTINATION)}, "to_rs", four(total=29)),
    Row("v6 to v4: it just fits", "6to4", "client", {}, "to_rs", four(total=1400), {"lan_mtu": 1400}, 1372),
    Row("v6 to v4: too big: an MTU 20 more", "6to4", "client", {}, "mtu", error6(2, 0, 1420), {"lan_mtu": 1400}, 1373),
    Row("v6 to v4: a checksum left to hardware is completed", "6to4", "client", {"checksum": PARTIAL}, "to_rs", four()),
    Row("IPv6 without a UDP checksum ends", "6to4", "client", {"checksum": 0}, "udp_no_checksum"),
]  # fmt: skip


def send(talk: Pair, row: Row) -> Result:
    payload = bytes(row.size)
    return talk.datagram(payload, **row.sent) if row.sender == "client" else talk.reply(payload, **row.sent)


@both
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.sentence)
def test_row(row: Row, make: Any) -> None:
    talk = Pair(make(**row.mtu), row.family, UDP)
    assert talk.datagram()[0] == "to_rs"
    outcome, out = send(talk, row)
    assert outcome == row.outcome
    if not row.out:
        assert out == []
        return
    [(port, f)] = out
    came, there = (WAN, LAN) if row.sender == "client" else (LAN, WAN)
    assert port == (there if outcome.startswith("to_") else came)
    for name, value in row.out.items():
        assert getattr(f, name) == value, (name, wire.describe(f.raw))
    if f.icmp_type >= 0:  # it quotes what came
        sent = wire.udp(*talk.client, *talk.vip) if row.sender == "client" else wire.udp(talk.rs, 8080, *talk.lip)
        assert f.payload[:1] == sent[14:15] and wire.addr_bytes(f.dst) in f.payload[:40]


def test_identifications_of_packets_without_df_differ() -> None:
    """RFC 6864 4.1: by source, destination and protocol; two clients share one LIP here."""
    side = Core6()
    first = Pair(side, "6to4", UDP)
    second = Pair(side, "6to4", UDP)
    second.client = (second.client_address, 40001)
    seen = [out[0][1].ident for _, out in (talk.datagram() for _ in range(50) for talk in (first, second))]
    assert len(set(seen)) == 100


@both
@pytest.mark.parametrize(("left", "outcome"), [(0, "to_rs"), (1, "source_route")], ids=["finished", "unfinished"])
def test_a_routing_header(left: int, outcome: str, make: Any) -> None:
    """RFC 8200 4.4; type 0 with hops left is forbidden altogether, RFC 5095."""
    talk = Pair(make(), "6to4", UDP)
    segment = wire.udp_datagram(talk.client_address, talk.vip[0], 40000, 53, payload=b"x")
    chain = wire.extension(ROUTING, UDP, struct.pack("!BBI", 0, left, 0) + wire.addr_bytes("2001:db8::99"))
    packet = wire.ipv6(chain + segment, src=talk.client_address, dst=talk.vip[0], proto=ROUTING)
    got, out = talk.side.deliver(WAN, wire.ether(packet, ethertype=wire.ETH_IP6))
    assert (got, len(out)) == (outcome, left == 0)


@both
def test_expiry_of_an_established_connection_resets_both_sides(make: Any) -> None:
    talk = Pair(make(), "6to4")
    talk.establish()
    out = dict(talk.side.wait(92))
    assert talk.side.state() == ""
    assert (out[LAN].flow, out[LAN].flags & RST) == ((TCP, *talk.lip, talk.rs, 8080), RST)
    assert (out[WAN].flow, out[WAN].flags & RST) == ((TCP, *talk.vip, *talk.client), RST)


@both
@pytest.mark.parametrize("family", ["6to4", "4to6"])
@pytest.mark.parametrize("sender", ["client", "server"])
@pytest.mark.parametrize("offered", [536, 1440, 1460, 8960])
def test_segments_fit_either_header(offered: int, sender: str, family: str, make: Any) -> None:
    """The MSS of SYN and SYN-ACK: 20 bytes less than IPv4's where the other side has IPv6's header."""
    talk = Pair(make(), family)
    option = struct.pack("!BBH", 2, 4, offered)
    result = talk.syn(options=option if sender == "client" else wire.OPTION_MSS)
    if sender == "server":
        result = talk.synack(options=option)
    [(_, f)] = result[1]
    assert f.raw[f.l4 + 20 : f.l4 + 24] == struct.pack("!BBH", 2, 4, min(offered, 1440))


@both
@protocols
@pytest.mark.parametrize("family", ["6to4", "4to6", "6to6"])
def test_only_the_chosen_server_reaches_the_client(family: str, proto: int, make: Any) -> None:
    talk = Pair(make(), family, proto)
    talk.syn() if proto == TCP else talk.datagram()
    lip, lport = talk.lip
    other = talk.rs[:-1] + "2"
    for rip, rport in ((other, 8080), (talk.rs, 8081)):
        frame = (
            wire.tcp(rip, rport, lip, lport, SYN | ACK, ack=1, eth_src=RS_MACS[rip], eth_dst=MACS[LAN])
            if proto == TCP
            else wire.udp(rip, rport, lip, lport, b"y", eth_src=RS_MACS[rip], eth_dst=MACS[LAN])
        )
        assert talk.side.deliver(LAN, frame) == ("no_conn", [])
    assert (talk.synack() if proto == TCP else talk.reply())[0] == "to_client"


@both
@protocols
def test_a_server_is_a_client_of_an_ipv6_vip(proto: int, make: Any) -> None:
    """6to6: it reaches itself under the VIP's name."""
    talk = Pair(make(), "6to6", proto)
    talk.client = (talk.rs, 4000)
    first = wire.tcp(*talk.client, *talk.vip, SYN) if proto == TCP else wire.udp(*talk.client, *talk.vip, b"x")
    [(port, there)] = talk.side.deliver(LAN, first)[1]
    assert (port, there.src, there.dst, there.dport) == (LAN, talk.lip_address, talk.rs, 8080)
    answer = (
        wire.tcp(talk.rs, 8080, there.src, there.sport, SYN | ACK, ack=1)
        if proto == TCP
        else wire.udp(talk.rs, 8080, there.src, there.sport, b"y")
    )
    [(port, back)] = talk.side.deliver(LAN, answer)[1]
    assert (port, back.flow) == (LAN, (proto, *talk.vip, *talk.client))


@both
@pytest.mark.parametrize(("reset", "outcome"), [(True, "answered"), (False, "no_service")], ids=["reset", "drop"])
def test_a_syn_to_an_ipv6_lip_is_refused_at_once_or_never(reset: bool, outcome: str, make: Any) -> None:
    talk = Pair(make(), "6to6")
    for plane in talk.side.both():
        plane.put_settings({}, reset)
    talk.side.plane.publish()
    got, out = talk.side.deliver(LAN, wire.tcp(talk.rs, 4000, talk.lip_address, 5000, SYN, seq=9))
    assert got == outcome
    assert [(port, f.src, f.dst, f.ack) for port, f in out] == [(LAN, talk.lip_address, talk.rs, 10)] * reset
