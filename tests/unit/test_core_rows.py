"""Rows: a sentence, what happens before, a packet in, its outcome, the packets out. Each row is asked of the core and of the
reference, so that a row that both get wrong would have to be wrong by hand."""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import packets as wire
import pytest
from packets import ACK, FIN, MF, PARTIAL, PSH, RST, SYN, TCP, UDP
from reference import MASK, next_state
from rig import CLIENT, GATEWAY, LAN, LIP, MACS, RS1, RS2, RS_MACS, VIP, WAN

sys.path.insert(0, str(Path(__file__).parents[1] / "cases"))
from talk import Core, Naive, Result, Talk

Out = tuple[int, dict[str, Any]]


@dataclass
class Row:
    sentence: str
    act: Callable[[Talk], Result]
    outcome: str
    out: list[Out] = field(default_factory=list)
    before: Callable[[Talk], Any] = lambda t: None
    proto: int = TCP
    service: dict[str, Any] = field(default_factory=dict)
    side: dict[str, Any] = field(default_factory=dict)
    state: str | None = None


def established(t: Talk) -> None:
    t.establish()


def udp_open(t: Talk) -> None:
    assert t.datagram()[0] == "to_rs"


def two_servers(weight: int = 1, second: int = 1) -> dict[str, Any]:
    return {"members": [(0, RS1, 8080, weight), (1, RS2, 8080, second)]}


def stranger(frame: bytes, port: int = WAN) -> Callable[[Talk], Result]:
    return lambda t: t.side.deliver(port, frame)


def quiesce(t: Talk) -> None:
    t.establish()
    t.side.service(members=[(0, RS1, 8080, 0)], expire_quiescent=True)


def finished(t: Talk) -> None:
    t.establish()
    t.from_client(FIN | ACK)
    t.from_rs(FIN | ACK)
    t.ack()


def reset_by_client(t: Talk) -> None:
    t.establish()
    t.from_client(RST)


def to_rs(**fields: Any) -> Out:
    return (LAN, {"dst": RS1, "dport": 8080, "src": LIP, "eth_src": MACS[LAN], "eth_dst": RS_MACS[RS1], **fields})


def to_client(**fields: Any) -> Out:
    return (
        WAN,
        {"src": VIP, "dst": CLIENT, "dport": 40000, "eth_src": MACS[WAN], "eth_dst": wire.ROUTER_MAC, **fields},
    )


def back(**fields: Any) -> Out:
    """To the sender, by the MAC it came from."""
    return (WAN, {"src": VIP, "dst": CLIENT, "eth_src": MACS[WAN], "eth_dst": wire.CLIENT_MAC, "ttl": 64, **fields})


def lose(addresses: list[tuple[int, str, str, int]]) -> Callable[[Talk], None]:
    def act(t: Talk) -> None:
        t.establish()
        for side in t.side.both():
            side.put_addresses(addresses)
        t.side.plane.publish()

    return act


def bad_ip_sum(frame: bytes) -> bytes:
    return frame[:24] + bytes([frame[24] ^ 0x55]) + frame[25:]


SYN_FRAME = wire.tcp(CLIENT, 40000, VIP, 80, SYN, seq=1000)
PAYLOAD = bytes(range(256)) * 2

ROWS = [
    Row("a SYN goes to the RS from a local address, one hop nearer its end", lambda t: t.syn(ttl=64, ident=77, tos=0x28), "to_rs",
        [to_rs(ttl=63, flags=SYN, ident=77, tos=0x28, sport=range(1024, 65536))], state="SYN_RECV"),
    Row("the SYN-ACK comes back in the client's numbers", lambda t: t.synack(), "to_client",
        [to_client(sport=80, flags=SYN | ACK, ack=1001, seq=9000, ts=(77, 500))], lambda t: t.syn(), state="SYN_RECV"),
    Row("the client's ACK establishes", lambda t: t.ack(), "to_rs", [to_rs(flags=ACK, ack=9001)],
        lambda t: (t.syn(), t.synack()), state="TCP_EST"),
    Row("the client's ACK before the SYN-ACK does not establish", lambda t: t.ack(), "to_rs", [to_rs(flags=ACK)], lambda t: t.syn(),
        state="SYN_RECV"),
    Row("the RS's challenge ACK reaches the client and establishes nothing", lambda t: t.from_rs(ACK, ack=5), "to_client",
        [to_client(flags=ACK, ack=5)], lambda t: t.syn(), state="SYN_RECV"),
    Row("the client's RST in the handshake is forwarded and leaves SYN_RECV", lambda t: t.from_client(RST), "to_rs", [to_rs(flags=RST)],
        lambda t: t.syn(), state="SYN_RECV"),
    Row("the RS's RST in the handshake closes", lambda t: t.from_rs(RST | ACK), "to_client", [to_client(flags=RST | ACK, ack=1001)],
        lambda t: t.syn(), state="TCP_CLOSE"),
    Row("SACK blocks and the echoed timestamp are mapped back", lambda t: t.from_rs(ACK, sack=[(1100, 1200), (1300, 1400)]), "to_client",
        [to_client(sack=[(1100, 1200), (1300, 1400)], ts=(77, 500), ack=1001)], established, state="TCP_EST"),
    Row("payload passes unchanged to the RS", lambda t: t.from_client(ACK | PSH, PAYLOAD), "to_rs", [to_rs(payload=PAYLOAD, ack=9001)],
        established),
    Row("payload passes unchanged to the client", lambda t: t.from_rs(ACK | PSH, PAYLOAD), "to_client", [to_client(payload=PAYLOAD, seq=9001)],
        established),
    Row("Ethernet padding is not part of the packet", lambda t: t.ack(trailer=b"\xee" * 6), "to_rs", [to_rs(total=52)], established),
    Row("IP options stay", lambda t: t.ack(ip_options=b"\1\1\1\0"), "to_rs", [to_rs(total=56)], established),
    Row("a partial checksum is completed towards the RS", lambda t: t.from_client(ACK, PAYLOAD, checksum=PARTIAL), "to_rs",
        [to_rs(payload=PAYLOAD)], established),
    Row("a partial checksum is completed towards the client", lambda t: t.from_rs(ACK, PAYLOAD, checksum=PARTIAL), "to_client",
        [to_client(payload=PAYLOAD)], established),
    Row("a partial UDP checksum is completed", lambda t: t.datagram(PAYLOAD, checksum=PARTIAL), "to_rs", [to_rs(payload=PAYLOAD)], proto=UDP),
    Row("an absent UDP checksum stays absent", lambda t: t.datagram(checksum=0), "to_rs", [to_rs(checksum=0)], proto=UDP, state="UDP_ONEWAY"),
    Row("an absent UDP checksum stays absent on the way back", lambda t: t.reply(checksum=0), "to_client", [to_client(checksum=0)], udp_open,
        proto=UDP, state="UDP_NORM"),
    Row("a UDP answer goes to the client", lambda t: t.reply(PAYLOAD), "to_client", [to_client(payload=PAYLOAD, sport=53)], udp_open, proto=UDP),
    Row("TTL 1 from the client: time exceeded from the VIP", lambda t: t.ack(ttl=1), "ttl", [back(icmp_type=11, icmp_code=0)], established),
    Row("TTL 0 from the client: time exceeded", lambda t: t.ack(ttl=0), "ttl", [back(icmp_type=11)], established),
    Row("TTL 1 from the RS: time exceeded from the LIP", lambda t: t.from_rs(ACK, ttl=1), "ttl", [(LAN, {"icmp_type": 11, "src": LIP, "dst": RS1})],
        established),
    Row("TTL 2 still passes", lambda t: t.ack(ttl=2), "to_rs", [to_rs(ttl=1)], established),
    Row("a wrong IP header checksum ends the packet", stranger(bad_ip_sum(SYN_FRAME)), "ip_checksum"),
    Row("a segment of nobody ends", stranger(wire.tcp(CLIENT, 1, VIP, 80, ACK)), "no_conn"),
    Row("a SYN-ACK of nobody ends", stranger(wire.tcp(CLIENT, 1, VIP, 80, SYN | ACK)), "no_conn"),
    Row("SYN with FIN opens nothing", stranger(wire.tcp(CLIENT, 1, VIP, 80, SYN | FIN)), "no_conn"),
    Row("SYN with RST opens nothing", stranger(wire.tcp(CLIENT, 1, VIP, 80, SYN | RST)), "no_conn"),
    Row("SYN with PSH, URG and ECN bits opens", lambda t: t.from_client(SYN | PSH | 0x20 | 0xC0), "to_rs", [to_rs(flags=SYN | PSH | 0x20 | 0xC0)]),
    Row("a SYN to a port nobody serves is refused", stranger(wire.tcp(CLIENT, 1, VIP, 81, SYN, seq=MASK)), "answered",
        [back(flags=RST | ACK, seq=0, ack=0, sport=81, dport=1)]),
    Row("a datagram to a port nobody serves: port unreachable", stranger(wire.udp(CLIENT, 1, VIP, 81, b"x")), "no_service",
        [back(icmp_type=3, icmp_code=3)]),
    Row("a SYN to an address not owned ends here in shared mode", stranger(wire.tcp(CLIENT, 1, "192.0.2.99", 80, SYN)), "not_ours"),
    Row("what is not ours goes to the host in exclusive mode", stranger(wire.tcp(CLIENT, 1, "192.0.2.99", 80, SYN)), "passed",
        [(-1 - WAN, {"dst": "192.0.2.99", "ttl": 64})], side={"punt": True}),
    Row("IPv6 goes to the host in exclusive mode", stranger(wire.echo_request("2001:db8::7", "2001:db8::99")), "passed",
        [(-1 - WAN, {"ethertype": wire.ETH_IP6})], side={"punt": True}),
    Row("malformed IPv6 ends here in shared mode", stranger(wire.ether(bytes(40), ethertype=wire.ETH_IP6)), "ip_header"),
    Row("no RS with weight: dropped", lambda t: t.syn(), "no_rs", service={"members": [(0, RS1, 8080, 0)]}, state=""),
    Row("no RS at all: refused when configured", lambda t: t.syn(), "answered", [back(flags=RST | ACK, seq=0, ack=1001)],
        service={"members": [], "no_rs_reset": True}, state=""),
    Row("no RS for a datagram: dropped, whatever is configured", lambda t: t.datagram(), "no_rs", proto=UDP,
        service={"members": [], "no_rs_reset": True}),
    Row("a service without LIP forwards nothing", lambda t: t.syn(), "no_lip", service={"lips": []}),
    Row("a ping to the VIP is answered", stranger(wire.echo_request(CLIENT, VIP, b"abc")), "answered",
        [back(icmp_type=0, icmp_rest=struct.pack("!HH", 7, 1), payload=b"abc")]),
    Row("a ping to the LIP is answered", stranger(wire.echo_request(RS1, LIP, eth_src=RS_MACS[RS1]), LAN), "answered",
        [(LAN, {"icmp_type": 0, "src": LIP, "dst": RS1, "eth_dst": RS_MACS[RS1]})]),
    Row("an echo reply to the VIP ends", stranger(wire.icmp(CLIENT, VIP, 0)), "icmp"),
    Row("a fragment for a port nobody serves ends", stranger(wire.udp(CLIENT, 1, VIP, 53, b"x" * 8, frag=MF)), "no_service"),
    Row("GRE for the VIP ends", stranger(wire.ether(wire.ipv4(b"", src=CLIENT, dst=VIP, proto=47))), "protocol"),
    Row("a source that cannot be", stranger(wire.tcp("127.0.0.1", 1, VIP, 80, SYN)), "martian"),
    Row("a land attack", stranger(wire.tcp(VIP, 80, VIP, 80, SYN)), "martian"),
    Row("a TCP header that ends beyond the packet", stranger(wire.tcp(CLIENT, 1, VIP, 80, SYN, offset=15)), "l4_header"),
    Row("a UDP length beyond the packet", stranger(wire.udp(CLIENT, 1, VIP, 53, b"x", length=99)), "l4_header"),
    Row("an IP length beyond the frame", stranger(SYN_FRAME[:-1]), "truncated"),
    Row("ARP for the VIP is answered on its port", stranger(wire.arp(1, wire.CLIENT_MAC, GATEWAY, "00:00:00:00:00:00", VIP)), "answered",
        [(WAN, {"arp_op": 2, "src": VIP, "dst": GATEWAY, "arp_sha": MACS[WAN], "arp_tha": wire.CLIENT_MAC, "eth_dst": wire.CLIENT_MAC})]),
    Row("ARP for the VIP on the other port is not", stranger(wire.arp(1, RS_MACS[RS1], RS1, "00:00:00:00:00:00", VIP), LAN), "absorbed"),
    Row("malformed ARP", stranger(wire.ether(bytes(20), ethertype=wire.ETH_ARP)), "arp"),
    Row("too large for the next link with DF: fragmentation needed, with the MTU", lambda t: t.from_client(ACK, bytes(600)), "mtu",
        [back(icmp_type=3, icmp_code=4, icmp_rest=struct.pack("!I", 600))], established, side={"mtu": 600}),
    Row("too large for the next link without DF: in fragments", lambda t: t.from_client(ACK, bytes(600), frag=0), "to_rs",
        [to_rs(total=596, frag=MF), (LAN, {"dst": RS1, "total": 76, "frag": 72})], established, side={"mtu": 600}),
    Row("exactly the MTU passes", lambda t: t.from_client(ACK, bytes(548)), "to_rs", [to_rs(total=600)], established, side={"mtu": 600}),
    Row("the client closes first", lambda t: t.from_client(FIN | ACK), "to_rs", [to_rs(flags=FIN | ACK)], established, state="CLOSE_WAIT"),
    Row("the RS closes first", lambda t: t.from_rs(FIN | ACK), "to_client", [to_client(flags=FIN | ACK)], established, state="FIN_WAIT"),
    Row("both have closed", lambda t: t.ack(), "to_rs", [to_rs(flags=ACK)], finished, state="TIME_WAIT"),
    Row("the client resets", lambda t: t.from_client(RST), "to_rs", [to_rs(flags=RST)], established, state="TCP_CLOSE"),
    Row("the RS resets", lambda t: t.from_rs(RST), "to_client", [to_client(flags=RST)], established, state="TCP_CLOSE"),
    Row("a SYN in TIME_WAIT opens anew", lambda t: t.syn(), "to_rs", [to_rs(flags=SYN)], finished, state="SYN_RECV"),
    Row("a SYN after a RST opens anew", lambda t: t.syn(), "to_rs", [to_rs(flags=SYN)], reset_by_client, state="SYN_RECV"),
    Row("a SYN in a living connection goes to its RS", lambda t: t.from_client(SYN), "to_rs", [to_rs(flags=SYN)], established, state="TCP_EST"),
    Row("weight 0: existing connections keep flowing", lambda t: t.ack(), "to_rs", [to_rs()],
        lambda t: (t.establish(), t.side.service(members=[(0, RS1, 8080, 0)])), state="TCP_EST"),
    Row("RS removed: existing connections keep flowing", lambda t: t.from_rs(ACK), "to_client", [to_client()],
        lambda t: (t.establish(), t.side.service(members=[(1, RS2, 8080, 1)])), state="TCP_EST"),
    Row("service removed: existing connections keep flowing", lambda t: t.ack(), "to_rs", [to_rs()],
        lambda t: (t.establish(), t.side.drop_service(0)), state="TCP_EST"),
    Row("VIP no longer owned: existing connections keep flowing", lambda t: t.ack(), "to_rs", [to_rs()], lose([(3, LIP, "lip", LAN)]),
        state="TCP_EST"),
    Row("expire-quiescent: the next packet ends the connection", lambda t: t.ack(), "quiesced", [], quiesce,
        service={"expire_quiescent": True}, state=""),
    Row("a new SYN over the half-open quota evicts the oldest", lambda t: t.syn(), "to_rs", [to_rs(flags=SYN)],
        lambda t: t.side.deliver(WAN, wire.tcp(CLIENT, 9, VIP, 80, SYN)), service={"half_open": 1}, state="SYN_RECV"),
]  # fmt: skip


@pytest.mark.parametrize("make", [Core, Naive])
@pytest.mark.parametrize("row", ROWS, ids=lambda r: r.sentence)
def test_row(row: Row, make: Any) -> None:
    side = make(**row.side)
    talk = Talk(side, row.proto, **row.service)
    row.before(talk)
    outcome, out = row.act(talk)
    assert outcome == row.outcome
    assert len(out) == len(row.out), [wire.describe(f.raw) for _, f in out]
    for (port, f), (wanted_port, fields) in zip(out, row.out, strict=True):
        assert port == wanted_port
        for name, value in fields.items():
            got = getattr(f, name)
            assert got in value if isinstance(value, range) else got == value, (name, wire.describe(f.raw))
    if row.state is not None:
        assert side.state() == row.state


@pytest.mark.parametrize("make", [Core, Naive])
def test_expiry_of_an_established_connection_resets_both_sides_with_the_numbers_they_expect(make: Any) -> None:
    talk = Talk(make()).establish()
    talk.from_client(ACK, b"12345")
    talk.from_rs(ACK, b"abc")
    out = dict(talk.side.wait(92))
    assert talk.side.state() == ""
    for port, src, seq, ack in ((LAN, LIP, talk.seq + talk.dseq, talk.rs_seq), (WAN, VIP, talk.rs_seq, talk.seq)):
        f = out[port]
        assert (f.src, f.flags, f.seq, f.ack) == (src, RST | ACK, seq & MASK, ack)
        assert wire.faults(f.raw) == []


@pytest.mark.parametrize("make", [Core, Naive])
@pytest.mark.parametrize(
    ("sentence", "before", "seconds"),
    [
        ("half-open", lambda t: t.syn(), 10),
        ("client closed", lambda t: (t.establish(), t.from_client(FIN | ACK)), 20),
        ("RS closed", lambda t: (t.establish(), t.from_rs(FIN | ACK)), 20),
        ("both closed", finished, 7),
        ("reset", reset_by_client, 3),
    ],
)
def test_other_states_end_silently_within_a_second_after_their_timeout(
    sentence: str, before: Any, seconds: int, make: Any
) -> None:
    talk = Talk(make())
    before(talk)
    assert talk.side.wait(seconds - 0.1) == []
    assert talk.side.state() != ""
    assert talk.side.wait(1.1) == []
    assert talk.side.state() == ""


@pytest.mark.parametrize("make", [Core, Naive])
def test_every_packet_keeps_a_connection_alive(make: Any) -> None:
    talk = Talk(make(), UDP)
    talk.datagram()
    for _ in range(4):
        talk.side.wait(11)
        talk.datagram()
    assert talk.side.state() == "UDP_ONEWAY"
    talk.reply()
    talk.side.wait(29)
    assert talk.side.state() == "UDP_NORM"
    talk.side.wait(2.1)
    assert talk.side.state() == ""


@pytest.mark.parametrize("make", [Core, Naive])
@pytest.mark.parametrize(("proto", "state"), [(TCP, "TCP_EST"), (UDP, "UDP_NORM")])
def test_the_service_timeout_replaces_established_and_all_of_udp(proto: int, state: str, make: Any) -> None:
    talk = Talk(make(), proto, conn_timeout=5)
    talk.establish() if proto == TCP else (talk.datagram(), talk.reply())
    assert talk.side.state() == state
    talk.side.wait(4.9)
    assert talk.side.state() == state
    talk.side.wait(1.2)
    assert talk.side.state() == ""


@pytest.mark.parametrize("make", [Core, Naive])
@pytest.mark.parametrize(
    ("scheduler", "weights", "order"),
    [
        ("rr", (1, 1, 1), "012012"),
        ("rr", (5, 0, 1), "0202"),
        ("wrr", (1, 1), "0101"),
        ("wrr", (4, 3, 2), "001012012"),
        ("wrr", (2, 4), "101101"),
        ("wrr", (0, 3), "111"),
    ],
)
def test_schedulers(scheduler: str, weights: tuple[int, ...], order: str, make: Any) -> None:
    side = make()
    addresses = [f"10.0.0.{101 + i}" for i in range(len(weights))]
    side.service(
        scheduler=scheduler, members=[(i, a, 8080, w) for i, (a, w) in enumerate(zip(addresses, weights, strict=True))]
    )
    picked = ""
    for port in range(len(order)):
        _, out = side.deliver(WAN, wire.tcp(CLIENT, 1000 + port, VIP, 80, SYN))
        picked += str(addresses.index(out[0][1].dst))
    assert picked == order


@pytest.mark.parametrize(
    ("state", "sender", "flags", "then"),
    [
        ("SYN_RECV", 0, ACK, "TCP_EST"),
        ("SYN_RECV", 1, SYN | ACK, "SYN_RECV"),
        ("TCP_EST", 0, FIN | ACK, "CLOSE_WAIT"),
        ("CLOSE_WAIT", 1, FIN | ACK, "TIME_WAIT"),
        ("TCP_EST", 1, FIN, "FIN_WAIT"),
        ("FIN_WAIT", 0, FIN | ACK, "TIME_WAIT"),
        ("TIME_WAIT", 1, RST, "TIME_WAIT"),
        ("TIME_WAIT", 0, RST, "TCP_CLOSE"),
        ("TCP_EST", 0, RST | SYN | FIN, "TCP_CLOSE"),
        ("TCP_EST", 0, 0, "TCP_EST"),
    ],
)
def test_reference_states(state: str, sender: int, flags: int, then: str) -> None:
    assert next_state(state, sender, flags, True) == then
