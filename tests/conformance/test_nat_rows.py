"""What the lists ask and no other test shows: packets through a worker, and through the reference where it is free to answer.

Sentences are what fnat does; the lists say which requirement asks for it, or why fnat deviates.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import packets as wire
import pytest
from packets import ACK, FIN, PSH, RST, SYN, TCP, UDP
from rig import CLIENT, LAN, LIP, LIP2, LIP_IDS, MACS, RS1, RS2, RS_MACS, VIP, VIP2, WAN

sys.path.insert(0, str(Path(__file__).parents[1] / "cases"))
import itertools

from pairs import FAMILIES, Core6, Naive6, Pair
from talk import Core, Naive, Talk

from fnat.model import Timeouts

both_families = pytest.mark.parametrize("make", [Core6, Naive6])
both = pytest.mark.parametrize("make", [Core, Naive])
protocols = pytest.mark.parametrize("proto", [TCP, UDP], ids=["tcp", "udp"])


def first(proto: int, cip: str, cport: int, vip: str, vport: int, **fields: Any) -> bytes:
    """A first packet."""
    return (
        wire.tcp(cip, cport, vip, vport, SYN, **fields)
        if proto == TCP
        else wire.udp(cip, cport, vip, vport, b"x", **fields)
    )


def answer(proto: int, rip: str, rport: int, lip: str, lport: int) -> bytes:
    """What a server says to that."""
    back: dict[str, Any] = {"eth_src": RS_MACS[rip], "eth_dst": MACS[LAN]}
    return (
        wire.tcp(rip, rport, lip, lport, SYN | ACK, ack=1, **back)
        if proto == TCP
        else wire.udp(rip, rport, lip, lport, b"y", **back)
    )


def open_one(side: Any, proto: int, cport: int = 40000, vip: str = VIP, cip: str = CLIENT) -> wire.Frame:
    outcome, out = side.deliver(WAN, first(proto, cip, cport, vip, 80))
    assert outcome == "to_rs", outcome
    return out[0][1]


# ---- mapping ----


@both
@protocols
def test_a_flow_keeps_its_mapping_and_another_vip_has_its_own(proto: int, make: Any) -> None:
    side = make()
    side.service(0, proto=proto)
    side.service(1, vip=VIP2, proto=proto)
    sent = {vip: [open_one(side, proto, vip=vip).flow for _ in range(3)] for vip in (VIP, VIP2)}
    assert all(len(set(flows)) == 1 for flows in sent.values())
    for vip, flows in sent.items():
        _, lip, lport, rip, rport = flows[0]
        _, out = side.deliver(LAN, answer(proto, rip, rport, lip, lport))
        assert [(f.src, f.dst, f.dport) for _, f in out] == [(vip, CLIENT, 40000)]
    assert sent[VIP][0] != sent[VIP2][0]


def test_lips_of_a_service_are_used_in_turn() -> None:
    side = Core()
    side.service(proto=UDP, lips=[3, 4])
    used = [open_one(side, UDP, 40000 + n).src for n in range(6)]
    assert used in ([LIP, LIP2] * 3, [LIP2, LIP] * 3)
    assert side.plane.address_stats(LIP_IDS[LIP])[1] == 3


@both
@pytest.mark.parametrize("cport", [1, 53, 1023])
def test_a_privileged_client_port_becomes_a_port_of_the_lip(cport: int, make: Any) -> None:
    side = make()
    side.service(proto=UDP)
    assert open_one(side, UDP, cport).sport >= 1024


def test_local_ports_follow_one_another_whatever_the_parity() -> None:
    """Longest idle first: a port rests as long as possible."""
    side = Core()
    side.service(proto=UDP)
    ports = [open_one(side, UDP, 40000 + 2 * n).sport for n in range(4)]
    assert [(b - a) % 64512 for a, b in itertools.pairwise(ports)] == [1, 1, 1]


def test_where_local_ports_begin_is_random_for_each_server() -> None:
    side = Core()
    members = [(i, f"10.0.0.{101 + i}", 8080, 1) for i in range(4)]
    side.service(proto=UDP, members=members)
    starts = [open_one(side, UDP, 40000 + n).sport for n in range(4)]
    assert max(starts) - min(starts) > 64, starts  # by chance once in 10^8 runs


@both
def test_protocols_have_mappings_of_their_own(make: Any) -> None:
    """The same client port over TCP and UDP; what one protocol opened lets nothing of the other in."""
    side = make()
    side.service(0, proto=TCP)
    segment = open_one(side, TCP)
    assert side.deliver(LAN, answer(UDP, RS1, 8080, segment.src, segment.sport))[0] == "no_conn"
    side.service(1, proto=UDP)
    datagram = open_one(side, UDP)
    for f in (segment, datagram):
        outcome, out = side.deliver(LAN, answer(f.proto, RS1, 8080, f.src, f.sport))
        assert outcome == "to_client" and out[0][1].proto == f.proto


# ---- filtering ----


@both
@protocols
@pytest.mark.parametrize(
    ("rip", "rport"),
    [(RS1, 8080), (RS2, 8080), (RS1, 8081)],
    ids=["the chosen server", "another server", "another port"],
)
def test_only_the_chosen_server_reaches_the_client(rip: str, rport: int, proto: int, make: Any) -> None:
    side = make()
    side.service(proto=proto)
    f = open_one(side, proto)
    outcome, out = side.deliver(LAN, answer(proto, rip, rport, f.src, f.sport))
    if (rip, rport) == (RS1, 8080):
        assert outcome == "to_client" and len(out) == 1
    else:
        assert outcome == "no_conn" and out == []


@both
@pytest.mark.parametrize(("reset", "outcome"), [(True, "answered"), (False, "no_service")], ids=["reset", "drop"])
def test_a_syn_to_a_lip_is_refused_at_once_or_never(reset: bool, outcome: str, make: Any) -> None:
    side = make()
    for plane in side.both():
        plane.put_settings({}, reset)
    side.plane.publish()
    syn = wire.tcp(RS1, 4000, LIP, 5000, SYN, seq=9, eth_src=RS_MACS[RS1], eth_dst=MACS[LAN])
    got, out = side.deliver(LAN, syn)
    assert got == outcome
    assert [(port, f.src, f.dst, f.flags, f.ack) for port, f in out] == [(LAN, LIP, RS1, RST | ACK, 10)] * reset
    assert side.wait(7) == []


# ---- hairpinning: a server behind the balancer is a client, too ----


@both
@protocols
@pytest.mark.parametrize("server", [RS2, RS1], ids=["of another server", "of itself"])
def test_a_server_is_a_client_of_the_vip(server: str, proto: int, make: Any) -> None:
    side = make()
    side.service(proto=proto, members=[(0, server, 8080, 1)])
    _, out = side.deliver(LAN, first(proto, RS1, 4000, VIP, 80, eth_src=RS_MACS[RS1], eth_dst=MACS[LAN]))
    [(port, there)] = out
    assert (port, there.src, there.dst, there.dport) == (LAN, LIP, server, 8080)
    _, out = side.deliver(LAN, answer(proto, server, 8080, there.src, there.sport))
    [(port, back)] = out
    assert (port, back.src, back.sport, back.dst, back.dport) == (LAN, VIP, 80, RS1, 4000)
    assert (back.eth_src, back.eth_dst) == (MACS[LAN], RS_MACS[RS1])


# ---- TCP in every order ----


def simultaneous(t: Talk) -> list[str]:
    """RFC 9293 3.5, figure 7."""
    ways = [t.syn()[0], t.from_rs(SYN, ack=0)[0], t.from_client(SYN | ACK, seq=t.isn)[0]]
    t.seq, t.rs_seq = t.isn + 1, 9000
    return [*ways, t.from_rs(SYN | ACK)[0], t.from_client(ACK, b"x")[0]]


def repeated_syn(t: Talk) -> list[str]:
    before = t.syn()
    again = t.syn()
    assert before[1][0][1].flow == again[1][0][1].flow and before[1][0][1].seq == again[1][0][1].seq
    return [before[0], again[0], t.synack()[0], t.ack()[0]]


def syn_with_data(t: Talk) -> list[str]:
    outcome, out = t.syn(payload=b"early")
    assert out[0][1].payload == b"early"
    return [outcome, t.synack()[0], t.ack()[0]]


def lost_synack(t: Talk) -> list[str]:
    ways = [t.syn()[0], t.synack()[0]]
    t.rs_seq = 9000
    return [*ways, t.synack()[0], t.ack()[0]]


def half_close(t: Talk) -> list[str]:
    t.establish()
    return [
        t.from_client(FIN | ACK)[0],
        *(t.from_rs(ACK | PSH, b"more")[0] for _ in range(3)),
        t.ack()[0],
        t.from_rs(FIN | ACK)[0],
        t.ack()[0],
    ]


def other_half_close(t: Talk) -> list[str]:
    t.establish()
    return [
        t.from_rs(FIN | ACK)[0],
        *(t.from_client(ACK | PSH, b"more")[0] for _ in range(3)),
        t.from_rs(ACK)[0],
        t.from_client(FIN | ACK)[0],
        t.from_rs(ACK)[0],
    ]


def crossing_fins(t: Talk) -> list[str]:
    """RFC 9293 3.6, figure 13."""
    t.establish()
    return [t.from_client(FIN | ACK)[0], t.from_rs(FIN | ACK, ack=t.seq - 1)[0], t.ack()[0], t.from_rs(ACK)[0]]


def repeated_fin(t: Talk) -> list[str]:
    t.establish()
    ways = []
    for close in (t.from_client, t.from_rs):
        seq, rs_seq = t.seq, t.rs_seq
        ways.append(close(FIN | ACK)[0])
        t.seq, t.rs_seq = seq, rs_seq
        ways.append(close(FIN | ACK)[0])
    return [*ways, t.ack()[0]]


def data_with_fin(t: Talk) -> list[str]:
    t.establish()
    return [t.from_client(FIN | ACK | PSH, b"all")[0], t.from_rs(FIN | ACK | PSH, b"of it")[0], t.ack()[0]]


SEQUENCES: list[tuple[str, Callable[[Talk], list[str]], str, str]] = [
    ("simultaneous open", simultaneous, "scsCs", "TCP_EST"),
    ("a repeated SYN keeps RS, port and numbers", repeated_syn, "sscs", "TCP_EST"),
    ("a SYN with data", syn_with_data, "scs", "TCP_EST"),
    ("a repeated SYN-ACK", lost_synack, "sccs", "TCP_EST"),
    ("data after the client's FIN", half_close, "scccscs", "TIME_WAIT"),
    ("data after the RS's FIN", other_half_close, "cssscsc", "TIME_WAIT"),
    ("both close at once", crossing_fins, "scsc", "TIME_WAIT"),
    ("repeated FINs", repeated_fin, "ssccs", "TIME_WAIT"),
    ("FINs with data", data_with_fin, "scs", "TIME_WAIT"),
]


@both_families
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("sentence", "act", "ways", "state"), SEQUENCES, ids=[row[0] for row in SEQUENCES])
def test_every_order_of_segments_passes(sentence: str, act: Any, ways: str, state: str, family: str, make: Any) -> None:
    """ways: s to the server, c to the client."""
    talk = Pair(make(), family)
    assert act(talk) == ["to_rs" if way == "s" else "to_client" for way in ways.lower()]
    assert talk.side.state() == state


# ---- time ----

TIMEOUTS = Timeouts().by_state()
AT_LEAST = {"TCP_EST": 2 * 3600 + 4 * 60, "CLOSE_WAIT": 600, "FIN_WAIT": 600, "UDP_ONEWAY": 300, "UDP_NORM": 300}
IDLE: list[tuple[str, int, Callable[[Talk], Any], str]] = [
    ("an established connection", TCP, lambda t: t.establish(), "TCP_EST"),
    ("the client has closed", TCP, lambda t: (t.establish(), t.from_client(FIN | ACK)), "CLOSE_WAIT"),
    ("the server has closed", TCP, lambda t: (t.establish(), t.from_rs(FIN | ACK)), "FIN_WAIT"),
    ("a half-open connection", TCP, lambda t: t.syn(), "SYN_RECV"),
    ("a closed connection", TCP, lambda t: (t.establish(), t.from_client(FIN | ACK), t.from_rs(FIN | ACK), t.ack()), "TIME_WAIT"),
    ("a reset connection", TCP, lambda t: (t.establish(), t.from_client(RST)), "TCP_CLOSE"),
    ("a question without an answer", UDP, lambda t: t.datagram(), "UDP_ONEWAY"),
    ("question and answer", UDP, lambda t: (t.datagram(), t.reply()), "UDP_NORM"),
]  # fmt: skip


@both_families
@pytest.mark.parametrize("family", ["4to4", "6to4"])
@pytest.mark.parametrize(("sentence", "proto", "before", "state"), IDLE, ids=[row[0] for row in IDLE])
def test_by_default_what_is_idle_stays_so_long(
    sentence: str, proto: int, before: Any, state: str, family: str, make: Any
) -> None:
    """Idle for a second less than the configured time it stays, a second after it is gone."""
    side, seconds = make(), TIMEOUTS[state]
    assert seconds >= AT_LEAST.get(state, 0)
    for plane in side.both():
        plane.put_settings(TIMEOUTS, True)
    side.plane.publish()
    talk = Pair(side, family, proto)
    before(talk)
    side.wait(seconds - 1, 0.5)
    assert side.state() == state
    side.wait(2.2)
    assert side.state() == ""


@both
@pytest.mark.parametrize("sender", ["client", "server"])
def test_either_side_keeps_a_mapping(sender: str, make: Any) -> None:
    talk = Talk(make(), UDP)
    talk.datagram()
    talk.reply()
    for _ in range(3):
        talk.side.wait(29)
        assert (talk.datagram() if sender == "client" else talk.reply())[0] in ("to_rs", "to_client")
    assert talk.side.state() == "UDP_NORM"
    talk.side.wait(31.5)
    assert talk.side.state() == ""


# ---- ICMP ----


def quoted(proto: int, src: str, sport: int, dst: str, dport: int) -> bytes:
    """The IP packet that an ICMP error is about."""
    return (
        wire.tcp(src, sport, dst, dport, ACK, seq=9001)[14:]
        if proto == TCP
        else wire.udp(src, sport, dst, dport, b"x")[14:]
    )


ERRORS = [
    ("net unreachable", 3, 0),
    ("host unreachable", 3, 1),
    ("protocol unreachable", 3, 2),
    ("port unreachable", 3, 3),
    ("fragmentation needed", 3, 4),
    ("administratively prohibited", 3, 13),
    ("source quench", 4, 0),
    ("time exceeded", 11, 0),
    ("parameter problem", 12, 0),
]


@both
@protocols
@pytest.mark.parametrize("towards", ["vip", "lip"])
@pytest.mark.parametrize(("sentence", "kind", "code"), ERRORS, ids=[row[0] for row in ERRORS])
def test_no_icmp_error_ends_a_connection(
    sentence: str, kind: int, code: int, towards: str, proto: int, make: Any
) -> None:
    talk = Talk(make(), proto)
    talk.establish() if proto == TCP else (talk.datagram(), talk.reply())
    before = talk.side.state()
    rest = struct.pack("!HH", 0, 1400) if (kind, code) == (3, 4) else b"\0\0\0\0"
    if towards == "vip":  # a router on the way to the client
        inner = quoted(proto, *talk.vip, *talk.client)
        talk.side.deliver(WAN, wire.icmp("203.0.113.254", VIP, kind, code, rest, inner))
    else:  # the server or a router before it
        inner = quoted(proto, *talk.lip, RS1, 8080)
        talk.side.deliver(LAN, wire.icmp(RS1, LIP, kind, code, rest, inner, eth_src=RS_MACS[RS1], eth_dst=MACS[LAN]))
    assert talk.side.state() == before
    assert (talk.ack() if proto == TCP else talk.datagram())[0] == "to_rs"
    assert (talk.from_rs(ACK, b"on") if proto == TCP else talk.reply())[0] == "to_client"


@both
@pytest.mark.parametrize(
    "kind",
    [5, 9, 10, 13, 15, 17],
    ids=[
        "redirect",
        "router advertisement",
        "router solicitation",
        "timestamp",
        "information request",
        "address mask request",
    ],
)
def test_icmp_that_is_neither_echo_nor_error_ends(kind: int, make: Any) -> None:
    talk = Talk(make()).establish()
    inner = quoted(TCP, *talk.vip, *talk.client)
    assert talk.side.deliver(WAN, wire.icmp("203.0.113.254", VIP, kind, 0, payload=inner)) == ("icmp", [])
    assert talk.side.state() == "TCP_EST"


# ---- payload ----


@both
@protocols
def test_nothing_looks_into_the_payload(proto: int, make: Any) -> None:
    """Addresses in the payload, as FTP and SIP write them, stay: there is no application level gateway."""
    talk = Talk(make(), proto)
    words = f"PORT {CLIENT.replace('.', ',')},156,64\r\nVia: SIP/2.0 {CLIENT}:40000 {VIP}\r\n".encode()
    if proto == TCP:
        talk.establish()
        sent = talk.from_client(ACK | PSH, words)[1] + talk.from_rs(ACK | PSH, words)[1]
    else:
        sent = talk.datagram(words)[1] + talk.reply(words)[1]
    assert [f.payload for _, f in sent] == [words, words]
