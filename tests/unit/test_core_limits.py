"""The core at its limits: full tables, scarce local ports, quotas, neighbours that do not answer, checksums of any data."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import packets as wire
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packets import ACK, FIN, PARTIAL, RST, SYN, TCP, UDP
from reference import MASK, later
from rig import CLIENT, LAN, LIP, LIP2, LIP_IDS, MACS, RS1, RS2, SECOND, TIMEOUTS, VIP, WAN, Rig, Twin

sys.path.insert(0, str(Path(__file__).parents[1] / "cases"))
from talk import Core, Talk

QUIET = "10.0.0.200"  # an RS that does not answer ARP


def syn(i: int, **fields: Any) -> bytes:
    return wire.tcp(f"198.51.{100 + (i >> 14)}.{(i >> 8) & 63}", 1024 + (i & 255), VIP, 80, SYN, **fields)


def test_a_full_table_drops_with_its_reason_and_recovers() -> None:
    rig = Rig(conns=64)
    rig.service(proto=UDP)
    for i in range(80):
        rig.send(WAN, wire.udp(CLIENT, 1024 + i, VIP, 80, b"x"))
    counters = rig.counters()
    assert (counters["conns"], counters["table_full"], counters["to_rs"]) == (64, 16, 64)
    rig.wait(14)
    rig.check_sums()
    rig.check_empty()
    assert len(rig.send(WAN, wire.udp(CLIENT, 1, VIP, 80, b"x"))) == 1


def test_in_a_full_table_a_syn_takes_the_place_of_the_oldest_half_open() -> None:
    rig = Rig(conns=64)
    rig.service()
    for i in range(70):
        assert len(rig.send(WAN, syn(i))) == 1
    counters = rig.counters()
    assert (counters["conns"], counters["half_open_evicted"], counters["table_full"]) == (64, 6, 0)
    assert [c.cport for c in rig.conns() if c.cip == "198.51.100.0" and c.cport < 1030] == []
    rig.wait(12)
    rig.check_empty()


@pytest.mark.parametrize("lived", [0.5, 9, 17, 25, 29])
@pytest.mark.parametrize("syn_timeout", [10, 30])
def test_a_closed_connection_goes_in_time_however_long_it_lived(lived: float, syn_timeout: int) -> None:
    core = Core()
    core.plane.put_settings({**TIMEOUTS, "TCP_EST": 7440, "SYN_RECV": syn_timeout}, True)
    core.plane.publish()
    talk = Talk(core).establish()
    core.wait(lived)
    talk.from_client(FIN | ACK)
    talk.from_rs(FIN | ACK)
    talk.ack()
    assert core.state() == "TIME_WAIT"
    core.wait(TIMEOUTS["TIME_WAIT"] + 1)
    assert core.state() == ""


FULL = {  # what each of four old connections has become -> which go, in this order, and which never do
    "finished before unanswered before half-closed": (["half_closed", "syn", "finished", "established"], [2, 1, 0]),
    "the longest idle of equals": (["half_closed", "half_closed", "established", "half_closed"], [0, 1, 3]),
    "nobody of the established": (["established"] * 4, []),
}


@pytest.mark.parametrize("title", FULL)
def test_a_full_table_lets_go_of_what_is_expendable(title: str) -> None:
    states, order = FULL[title]
    core, old = Core(conns=16), []
    for port, state in enumerate(states, 3000):
        talk = Talk(core)
        talk.client = (CLIENT, port)
        talk.syn() if state == "syn" else talk.establish()
        if state in ("finished", "half_closed"):
            talk.from_client(FIN | ACK)
        if state == "finished":
            talk.from_rs(FIN | ACK)
            talk.ack()
        old.append(port)
        core.wait(0.1)
    core.wait(1.1)
    core.service(id=1, vport=53, proto=UDP)
    for port in range(12):
        core.send(WAN, wire.udp(CLIENT, 1024 + port, VIP, 53, b"x"))
    for n in range(len(order) + 1):
        core.send(WAN, wire.udp(CLIENT, 2000 + n, VIP, 53, b"x"))
        left = {c.cport for c in core.conns()}
        assert [i for i, port in enumerate(old) if port not in left] == sorted(order[: n + 1])
    counters = core.counters()
    assert (counters["expendable_evicted"], counters["table_full"]) == (len(order), 1)
    core.check_sums()


def test_every_local_port_is_used_once_and_then_none_is_left() -> None:
    rig = Rig(conns=65536 * 2, endpoints=16, frames=256)
    rig.service(proto=UDP)
    seen: set[int] = set()
    for i in range(0, 64512, 32):
        for frame in range(i, i + 32):
            rig.put(WAN, wire.udp(f"198.51.{frame >> 8}.{frame & 255}", 1024, VIP, 80, b""))
        for _, out in rig.step():
            seen.add(int.from_bytes(out[34:36], "big"))
    assert seen == set(range(1024, 65536))
    assert rig.send(WAN, wire.udp(CLIENT, 7, VIP, 80, b"")) == []
    counters = rig.counters()
    assert (counters["no_lip_port"], counters["lip_ports"], counters["endpoints"]) == (1, 64512, 1)
    assert rig.plane.address_stats(LIP_IDS[LIP]) == (1, 64512, 64512)
    rig.wait(30)
    rig.check_sums()
    rig.check_empty()


def test_the_second_lip_and_the_second_rs_carry_on() -> None:
    rig = Rig(lports=(5000, 5003))
    rig.service(proto=UDP, lips=[3, 4], members=[(0, RS1, 8080, 1), (1, RS2, 8080, 1)])
    tuples = set()
    for i in range(16):
        for _, frame in rig.send(WAN, wire.udp(CLIENT, 1024 + i, VIP, 80, b"")):
            f = wire.read(frame)
            tuples.add((f.src, f.sport, f.dst))
    assert tuples == {(lip, port, rs) for lip in (LIP, LIP2) for port in range(5000, 5004) for rs in (RS1, RS2)}
    assert rig.send(WAN, wire.udp(CLIENT, 9, VIP, 80, b"")) == []
    assert rig.counters()["no_lip_port"] == 1


def test_scarce_ports_are_taken_from_half_open_connections() -> None:
    rig = Rig(lports=(5000, 5001))
    rig.service()
    for i in range(5):
        assert len(rig.send(WAN, syn(i))) == 1
    counters = rig.counters()
    assert (counters["conns"], counters["half_open_evicted"], counters["lip_ports"]) == (2, 3, 2)


def test_the_half_open_quota_spares_established_connections() -> None:
    core = Core()
    talk = Talk(core, half_open=3).establish()
    for i in range(20):
        core.send(WAN, syn(i))
    assert sorted(c.state for c in core.conns()) == ["SYN_RECV"] * 3 + ["TCP_EST"]
    assert core.counters()["half_open_evicted"] == 17
    assert talk.ack()[0] == "to_rs"
    newest = [c.cport for c in core.conns() if c.state == "SYN_RECV"]
    assert sorted(newest) == [1041, 1042, 1043]


@pytest.mark.parametrize("lports", [(5000, 5000), (5000, 5003), (65500, 65535)])
@pytest.mark.parametrize("pause", [0.0, 0.002, 0.3])
def test_a_reused_port_looks_new_to_the_rs(lports: tuple[int, int], pause: float) -> None:
    """Clients in turn, each with its own clocks, far apart; every port is met again at once. RFC 6191, RFC 7323 5.3."""
    core, dice = Core(lports=lports), random.Random(7)
    last: dict[int, tuple[int, int]] = {}
    for i in range(200):
        talk = Talk(core, isn=dice.getrandbits(32), ts=dice.getrandbits(32))
        talk.client = (CLIENT, 2000 + i)
        _, out = talk.syn()
        seq, ts = out[0][1].seq, out[0][1].ts[0]
        port = talk.lip[1]
        if port in last:
            assert later(seq, last[port][0]), (i, seq, last[port])
            assert not later(last[port][1], ts), (i, ts, last[port])
        talk.synack()
        talk.ack()
        for n in range(3):
            core.now += int(pause * SECOND)
            talk.ts = (talk.ts + int(pause * 1000)) & MASK
            _, out = talk.from_client(ACK, bytes(1000))
        talk.from_client(FIN | ACK)
        talk.from_rs(FIN | ACK)
        _, out = talk.ack()
        f = out[0][1]
        last[port] = (f.seq, f.ts[0])
    assert core.counters()["no_lip_port"] == 0


def test_ports_rest_as_long_as_possible() -> None:
    rig = Rig(lports=(5000, 5007))
    rig.service(proto=UDP)
    first = [wire.read(rig.send(WAN, wire.udp(CLIENT, 1024 + i, VIP, 80, b""))[0][1]).sport for i in range(4)]
    rig.wait(14, 0.25)
    second = [wire.read(rig.send(WAN, wire.udp(CLIENT, 1024 + i, VIP, 80, b""))[0][1]).sport for i in range(4)]
    assert not set(first) & set(second)


def test_packets_wait_for_a_neighbour_and_leave_in_order() -> None:
    rig = Rig()
    rig.service(proto=UDP, members=[(0, QUIET, 8080, 1)])
    asked = rig.send(WAN, *[wire.udp(CLIENT, 1024, VIP, 80, bytes([i])) for i in range(3)])
    assert len(asked) == 1
    request = wire.read(asked[0][1])
    assert (asked[0][0], request.arp_op, request.dst, request.eth_dst) == (LAN, 1, QUIET, wire.BROADCAST)
    assert rig.counters()["waiting"] == 3
    rig.check_sums()
    out = rig.send(LAN, wire.arp(2, "02:00:00:00:02:00", QUIET, MACS[LAN], request.src, eth_dst=MACS[LAN]))
    assert [wire.read(f).payload for _, f in out] == [b"\0", b"\1", b"\2"]
    assert all(wire.faults(f) == [] and wire.read(f).eth_dst == "02:00:00:00:02:00" for _, f in out)
    rig.check_sums()


def test_a_silent_neighbour_is_asked_three_times() -> None:
    rig = Rig()
    rig.service(proto=UDP, members=[(0, QUIET, 8080, 1)])
    asked = rig.send(WAN, *[wire.udp(CLIENT, 1024, VIP, 80, bytes([i])) for i in range(12)])
    counters = rig.counters()
    assert (counters["waiting"], counters["neigh_queue_full"]) == (8, 4)
    asked += rig.wait(6)
    assert [wire.read(f).dst for _, f in asked] == [QUIET] * 3
    assert rig.counters()["neigh_unresolved"] == 8
    rig.check_sums()
    rig.wait(10)
    rig.check_empty()


def test_an_address_without_route_opens_nothing() -> None:
    rig = Rig()
    rig.plane.put_routes([("10.0.0.0/24", "", "", LAN, 0, 0, "unicast")])
    rig.plane.publish()
    rig.service()
    assert rig.send(WAN, syn(0)) == []
    assert rig.counters()["no_route"] == 1
    rig.check_sums()
    rig.check_empty()


def test_a_port_that_is_down() -> None:
    rig = Rig()
    rig.plane.put_port(LAN, "lan", MACS[LAN], 1500, up=False)
    rig.plane.publish()
    rig.service()
    assert rig.send(WAN, syn(0)) == []
    assert rig.counters()["port_down"] == 1
    rig.check_sums()


def test_a_burst_of_everything_loses_no_frame() -> None:
    """64 packets in one turn: openings, retransmissions, resets and strangers among one another."""
    rig, dice = Rig(conns=32), random.Random(3)
    rig.service(half_open=4, lips=[3, 4])
    for _ in range(200):
        for _ in range(64):
            flags = dice.choice([SYN, SYN, ACK, FIN | ACK, RST])
            rig.put(
                WAN,
                wire.tcp(
                    CLIENT,
                    1024 + dice.randrange(40),
                    VIP,
                    dice.choice([80, 80, 80, 81]),
                    flags,
                    seq=dice.getrandbits(32),
                ),
            )
        rig.step()
        rig.check_sums()
        rig.now += SECOND // 50
    rig.wait(30, 0.25)
    rig.check_empty()


@pytest.mark.parametrize("to_client", [False, True])
@pytest.mark.parametrize(("proto", "written"), [(TCP, 0), (UDP, 0xFFFF)])
def test_a_checksum_that_comes_out_as_zero(proto: int, written: int, to_client: bool) -> None:
    """Zero means "none" in UDP, so it is written as 0xffff (RFC 768); in TCP it is a value like any other (RFC 1624 3)."""
    core = Core()
    talk = Talk(core, proto, ts=None)
    talk.establish() if proto == TCP else talk.datagram()

    def send(payload: bytes) -> wire.Frame:
        if proto == UDP:
            return (talk.reply(payload) if to_client else talk.datagram(payload))[1][0][1]
        fields = {"seq": talk.rs_seq if to_client else talk.seq}
        return (talk.from_rs(ACK, payload, **fields) if to_client else talk.from_client(ACK, payload, **fields))[1][0][
            1
        ]

    seq, rs_seq = talk.seq, talk.rs_seq
    checksum = send(b"\0\0").checksum
    talk.seq, talk.rs_seq = seq, rs_seq  # the same segment with another word in it
    assert send(checksum.to_bytes(2, "big")).checksum == written


payloads = st.one_of(st.binary(max_size=64), st.sampled_from([b"\0" * 101, b"\xff" * 100, b"\xff" * 333, bytes(1400)]))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(data=payloads, seq=st.integers(0, MASK), ack=st.integers(0, MASK), stamp=st.integers(0, MASK), odd=st.integers(0, 3),
       window=st.integers(0, 65535), sum=st.sampled_from([None, None, PARTIAL, 0, 0xFFFF, 1]), proto=st.sampled_from([TCP, UDP]))  # fmt: skip
def test_checksums_of_any_data(
    data: bytes, seq: int, ack: int, stamp: int, odd: int, window: int, sum: int | None, proto: int
) -> None:
    """A right checksum stays right, one left to hardware becomes right, a wrong one is as wrong as it was: byte for byte."""
    twin = Twin()
    twin.service(proto=proto)
    if proto == UDP:
        twin.deliver([(WAN, wire.udp(CLIENT, 1024, VIP, 80, data, checksum=sum))])
    else:
        options = b"\1" * odd + wire.option_timestamp(stamp, 0)[2:]
        twin.deliver(
            [
                (
                    WAN,
                    wire.tcp(
                        CLIENT, 1024, VIP, 80, SYN, seq=seq, window=window, payload=data, options=options, checksum=sum
                    ),
                )
            ]
        )
    conn = twin.reference.conns[0]
    if proto == UDP:
        twin.deliver([(LAN, wire.udp(*conn.rs, *conn.lip, data, checksum=sum))])
    else:
        options = b"\1" * odd + wire.option_timestamp(stamp, stamp)[2:] + wire.option_sack([(ack, ack + 1)])
        twin.deliver(
            [(LAN, wire.tcp(*conn.rs, *conn.lip, ACK, seq=seq, ack=ack, payload=data, options=options, checksum=sum))]
        )
    twin.close()


def test_a_syn_that_no_rs_can_take_evicts_nobody() -> None:
    rig = Rig()
    rig.service(half_open=1)
    rig.send(WAN, wire.tcp(CLIENT, 4242, VIP, 80, SYN, seq=1))
    rig.service(half_open=1, members=[(0, RS1, 8080, 0)])
    rig.send(WAN, wire.tcp(CLIENT, 4243, VIP, 80, SYN, seq=1))
    counters = rig.counters()
    assert (counters["conns"], counters["half_open_evicted"], counters["no_rs"]) == (1, 0, 1)
    rig.close()
