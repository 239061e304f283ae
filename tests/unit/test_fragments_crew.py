"""Datagrams in fragments that arrive at several workers. One that knows no ports yet goes to the worker its datagram belongs to, and from there to
where a whole packet would have gone."""

from __future__ import annotations

import random
from collections import defaultdict

import packets as wire
import pytest
from crew import CLIENT, LAN, LIP, RS, SECOND, VIP, WAN, Crew, SimNic
from packets import ACK, SYN
from rig import OUTCOMES

BODY = bytes(i * 7 & 255 for i in range(3000))
WORKERS = pytest.mark.parametrize("workers", [2, 3])


def datagram(sport: int = 4242, body: bytes = BODY, client: str = CLIENT) -> bytes:
    return wire.udp(client, sport, VIP, 53, body, frag=0)


def check_sums(crew: Crew) -> None:
    for i in range(len(crew.workers)):
        c = crew.plane.counters(i)
        assert c["rx_packets"] + c["from_workers"] == sum(c[name] for name in OUTCOMES)


def all_at_once(crew: Crew, port: int, frames: list[bytes], rng: random.Random) -> list[tuple[int, int, bytes]]:
    """Each to any worker, then turns until nothing moves."""
    for frame in frames:
        crew.queues[rng.randrange(len(crew.workers)), port].put(frame)
    return [left for _ in range(len(crew.workers) * 2 + 4) for left in crew.turn()]


def one_by_one(crew: Crew, port: int, frames: list[bytes], rng: random.Random) -> list[tuple[int, int, bytes]]:
    return [left for f in frames for left in crew.put(rng.randrange(len(crew.workers)), port, f)]


@WORKERS
@pytest.mark.parametrize("way", [all_at_once, one_by_one])
@pytest.mark.parametrize("seed", range(8))
def test_any_worker_any_order(workers: int, way: object, seed: int) -> None:
    crew, rng = Crew(workers), random.Random(seed)
    for n in range(6):
        parts = wire.pieces(datagram(), seed * 16 + n, 600)
        rng.shuffle(parts)
        out = way(crew, WAN, parts, rng)  # type: ignore[operator]
        assert {port for _, port, _ in out} == {LAN}
        assert len({by for by, _, _ in out}) == 1, "the connection has one owner"
        got = wire.read(wire.together([f for _, _, f in out]))
        assert (got.src, got.dst, got.dport, got.payload, wire.faults(got.raw)) == (LIP, RS, 53, BODY, [])
        parts = wire.pieces(wire.udp(RS, 53, LIP, got.sport, BODY, frag=0), n, 600)
        rng.shuffle(parts)
        out = way(crew, LAN, parts, rng)  # type: ignore[operator]
        back = wire.read(wire.together([f for _, _, f in out]))
        assert (back.src, back.dst, back.dport, back.payload, wire.faults(back.raw)) == (VIP, CLIENT, 4242, BODY, [])
        check_sums(crew)
    assert crew.counter("conns_opened") == 1
    crew.close()


@WORKERS
@pytest.mark.parametrize("fragmented_first", [False, True])
def test_a_flow_stays_where_the_nic_brings_its_whole_packets(workers: int, fragmented_first: bool) -> None:
    nics = {WAN: SimNic.dealing(128, workers, 1), LAN: SimNic.dealing(128, workers, 2)}
    crew = Crew(workers, nics)
    for sport in range(2000, 2040):
        whole, parts = [datagram(sport, BODY[:100])], wire.pieces(datagram(sport), sport, 1400)
        more = wire.pieces(datagram(sport), sport + 5000, 1400)
        for frames in (parts, whole, more) if fragmented_first else (whole, parts, whole):
            out = crew.deal(WAN, frames)
            assert len(out) == len(frames)
        ports = {wire.read(f).sport for _, _, f in out} - {0}
        assert len(ports) == 1
        answer = wire.pieces(wire.udp(RS, 53, LIP, ports.pop(), BODY, frag=0), sport, 1400)
        back = wire.read(wire.together([f for _, _, f in crew.deal(LAN, answer)]))
        assert (back.dst, back.dport, back.payload) == (CLIENT, sport, BODY)
    assert crew.counter("conns_opened") == 40
    check_sums(crew)
    crew.close()


@WORKERS
def test_a_segment_in_fragments_finds_its_connection(workers: int) -> None:
    crew, rng = Crew(workers), random.Random(1)
    [(owner, _, syn)] = crew.put(0, WAN, wire.tcp(CLIENT, 4242, VIP, 80, SYN, seq=9))
    f = wire.read(syn)
    crew.put(1, LAN, wire.tcp(RS, 8080, LIP, f.sport, SYN | ACK, seq=99, ack=f.seq + 1))
    whole = wire.tcp(CLIENT, 4242, VIP, 80, ACK, seq=10, ack=100, payload=BODY, frag=0)
    for ident in range(20):
        parts = wire.pieces(whole, ident, 800)
        rng.shuffle(parts)
        out = one_by_one(crew, WAN, parts, rng)
        assert {by for by, _, _ in out} == {owner}
        got = wire.read(wire.together([g for _, _, g in out]))
        assert (got.payload, got.seq, wire.faults(got.raw)) == (BODY, f.seq + 1, [])
    assert crew.counter("conns_opened") == 1
    check_sums(crew)
    crew.close()


@WORKERS
def test_workers_never_give_the_same_identification(workers: int) -> None:
    crew, rng = Crew(workers), random.Random(2)
    names: dict[int, set[int]] = defaultdict(set)
    for i in range(300):
        whole = datagram(2000 + i, client=f"198.51.100.{i % 200}")
        for by, _, f in one_by_one(crew, WAN, wire.pieces(whole, 9, 1400), rng):
            names[wire.read(f).ident].add(by * 1000 + i)
    assert len(names) == 300
    assert all(len(users) == 1 for users in names.values())
    assert len({user // 1000 for users in names.values() for user in users}) == workers
    crew.close()


@WORKERS
def test_each_refused_fragment_has_one_reason(workers: int) -> None:
    crew, rng = Crew(workers), random.Random(3)
    whole = datagram()
    for ident in range(30):
        one_by_one(
            crew,
            WAN,
            [
                wire.piece(whole, 800, 1600, ident),
                wire.piece(whole, 808, 1616, ident),
                wire.piece(whole, 0, 800, ident),
            ],
            rng,
        )
    assert crew.counter("fragment_overlap") == 90
    parts = wire.pieces(wire.tcp(CLIENT, 1, VIP, 80, ACK, payload=BODY, frag=0), 77, 1400)
    assert one_by_one(crew, WAN, parts, rng) == []
    assert crew.counter("no_conn") == len(parts)
    one_by_one(crew, WAN, [wire.piece(whole, 800, 1600, 99)], rng)
    crew.turn(3 * SECOND)
    assert crew.counter("fragment_timeout") == 1
    check_sums(crew)
    crew.close()


@WORKERS
@pytest.mark.parametrize("nics", [False, True], ids=["dealt anyhow", "dealt by a rule"])
@pytest.mark.parametrize("seed", range(4))
def test_fragments_of_a_one_packet_service_follow_their_first(workers: int, nics: bool, seed: int) -> None:
    """Whichever worker each comes to: the datagram opens one connection, and all of it leaves by that."""
    rules = {WAN: SimNic.dealing(128, workers, 1), LAN: SimNic.dealing(128, workers, 2)} if nics else None
    crew, rng = Crew(workers, rules), random.Random(seed)
    crew.plane.put_service(1, VIP, 53, wire.UDP, members=[(0, RS, 53, 1)], lips=[2], one_packet=True)
    crew.plane.publish()
    for n in range(8):
        parts = wire.pieces(datagram(), seed * 16 + n, 600)
        rng.shuffle(parts)
        out = one_by_one(crew, WAN, parts, rng)
        got = wire.read(wire.together([f for _, _, f in out]))
        assert (got.src, got.dst, got.dport, got.payload, wire.faults(got.raw)) == (LIP, RS, 53, BODY, [])
        check_sums(crew)
    assert crew.counter("conns_opened") == 8
    crew.close()
