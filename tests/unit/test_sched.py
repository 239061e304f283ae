"""Schedulers: the shares they give, what a change of servers moves, and who is the same everywhere.

Picks come from the core's own loop without packets (`Worker.bench_picks`), order and options on real packets; for services of few members
every pick is compared with the plain twin in tests/property.
"""

from __future__ import annotations

import dataclasses
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import packets as wire
import pytest
import reference_quic as quic
import reference_sched as sched
from packets import SYN, TCP, UDP
from rig import CLIENT, RS1, RS2, RS3, RS4, SECOND, VIP, WAN

sys.path.insert(0, str(Path(__file__).parents[1] / "cases"))
from talk import Core, Naive

from fnat._core import HASH_TARGETS, Plane, Worker, maglev, sched_owners
from fnat._core import SCHEDULERS as CORE_SCHEDULERS
from fnat.grammar.ipvsadm import SCHEDULERS as WORDS
from fnat.model import GROWING, HASHING, SCHEDULERS, RealServer, Service
from fnat.slots import slots_moved

WEIGHTS = [1, 2, 3, 4, 10, 20, 30, 40]


def members(weights: list[int]) -> list[tuple[int, str, int, int]]:
    return [(i, f"10.1.{i >> 8}.{i & 255}", 8080, w) for i, w in enumerate(weights)]


class Pickers:
    """A plane with workers that pick without packets."""

    def __init__(self, workers: int = 1, services: int = 1) -> None:
        self.plane = Plane.create(
            None, workers=workers, conns=64, services=services, members=2048, endpoints=16, frames=0, snapshot_mib=4
        )
        self.workers = [Worker(self.plane, i) for i in range(workers)]
        self.plane.put_settings({}, True)

    def service(self, scheduler: str, weights: list[int], proto: int = TCP, **options: Any) -> None:
        self.n = len(weights)
        self.plane.put_service(0, VIP, 80, proto, scheduler=scheduler, members=members(weights), **options)
        self.plane.publish()

    def picks(self, n: int, held: int = 0, seed: int = 1) -> tuple[list[int], list[int]]:
        """Over all workers: picks, and connections at the end."""
        picked, holds = [0] * self.n, [0] * self.n
        for i, worker in enumerate(self.workers):
            got, has, _ = worker.bench_picks(0, self.n, n // len(self.workers), held // len(self.workers), seed + i)
            picked = [a + b for a, b in zip(picked, got, strict=True)]
            holds = [a + b for a, b in zip(holds, has, strict=True)]
        return picked, holds


def test_one_list_of_schedulers() -> None:
    assert set(CORE_SCHEDULERS) == set(SCHEDULERS) == set(WORDS)
    assert set(HASH_TARGETS) == {"sip", "sip-port", "qid"}


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_million_picks_go_by_weight_within_two_per_cent(scheduler: str, workers: int) -> None:
    """rr and lc know no weights; fo knows only the highest. Those that go by load hold 80 000 connections meanwhile."""
    side = Pickers(workers)
    side.service(scheduler, WEIGHTS)
    by_load = scheduler in ("lc", "wlc", "sed", "nq", "p2c")
    picked, _ = side.picks(1_000_000, held=80_000 if by_load else 0)
    weights = [1] * 8 if scheduler in ("rr", "lc") else [0] * 7 + [1] if scheduler == "fo" else WEIGHTS
    for got, weight in zip(picked, weights, strict=True):
        assert got == pytest.approx(1_000_000 * weight / sum(weights), rel=0.02)


@pytest.mark.parametrize("proto", [TCP, UDP])
@pytest.mark.parametrize("n", [8, 128])
@pytest.mark.parametrize("scheduler", ["lc", "wlc", "sed", "nq", "p2c"])
def test_held_connections_are_ideal_within_five_per_cent(scheduler: str, n: int, proto: int) -> None:
    """Four workers that see only their own connections, which end at random."""
    side = Pickers(4)
    weights = [1 + i % 4 for i in range(n)]
    side.service(scheduler, weights, proto)
    _, holds = side.picks(600_000, held=n * 1000)
    if scheduler == "lc":
        weights = [1] * n
    for got, weight in zip(holds, weights, strict=True):
        assert got == pytest.approx(n * 1000 * weight / sum(weights), rel=0.05)


def test_workers_begin_at_different_members() -> None:
    side = Pickers(4)
    side.service("rr", [1] * 8)
    assert [w.bench_picks(0, 8, 1)[0].index(1) for w in side.workers] == [0, 2, 4, 6]


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_weights_up_to_65535_count_and_weight_0_gets_nothing(scheduler: str) -> None:
    side = Pickers()
    side.service(scheduler, [0, 65535, 0, 32768, 0])
    picked, _ = side.picks(98_303, held=3000)
    assert picked[0] == picked[2] == picked[4] == 0 and picked[1] and sum(picked) == 98_303
    assert (picked[3] == 0) == (scheduler == "fo")


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_nobody_usable_is_no_member(scheduler: str) -> None:
    side = Pickers()
    side.service(scheduler, [0, 0])
    assert side.picks(100) == ([0, 0], [0, 0])


def test_a_burst_of_handshakes_is_spread() -> None:
    """A connection that is being opened counts as one that is open: else all of the burst goes to who has the fewest."""
    side = Core()
    side.service(scheduler="wlc", members=[(i, rs, 8080, 1) for i, rs in enumerate((RS1, RS2, RS3))])
    went = Counter(side.deliver(WAN, wire.tcp(CLIENT, 1000 + i, VIP, 80, SYN))[1][0][1].dst for i in range(60))
    assert went == {RS1: 20, RS2: 20, RS3: 20}


# ---- Maglev ----


def test_the_table_of_the_paper() -> None:
    """Eisenbud et al., NSDI 2016, table 1 and 2: three backends of 7 slots, and without the second."""
    b0, b1, b2 = (3, 4, 1), (0, 2, 1), (3, 1, 1)
    assert maglev([b0, b1, b2], 7) == [1, 0, 1, 0, 2, 2, 0]
    assert maglev([b0, b2], 7) == [0, 0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("weights", [[1, 1, 1, 1, 1], [1, 2, 3], [5, 0, 65535, 300]])
def test_the_table_is_the_twins_in_whatever_order(weights: list[int]) -> None:
    given = [(rip, rport, w) for _, rip, rport, w in members(weights)]
    plain = sched.maglev(tuple(sched.Candidate(0, *m) for m in given if m[2]), 1021)
    for seed in range(3):
        random.Random(seed).shuffle(given)
        assert [given[i][:2] for i in sched_owners("mh", given, 1021, 1021)] == [m[1:3] for m in plain]


def test_slots_go_by_weight() -> None:
    owners = Counter(sched_owners("mh", [(rip, p, w) for _, rip, p, w in members(WEIGHTS)], 65537))
    for i, weight in enumerate(WEIGHTS):
        assert owners[i] == pytest.approx(65537 * weight / sum(WEIGHTS), abs=2)


# ---- what moves ----


def web(scheduler: str, weights: list[int], **options: Any) -> Service:
    servers = tuple(RealServer(rip=rip, rport=port, weight=w) for _, rip, port, w in members(weights))
    return Service(proto="udp", vip=VIP, vport=53, scheduler=scheduler, servers=servers, **options)


@pytest.mark.parametrize(("scheduler", "times"), [("conhash", 1.02), ("mh", 2.0)])
@pytest.mark.parametrize("gone", [0, 63, 127])
def test_one_of_128_servers_goes_and_hardly_anybody_else_moves(scheduler: str, times: float, gone: int) -> None:
    old = web(scheduler, [1] * 128)
    new = old.model_copy(update={"servers": old.servers[:gone] + old.servers[gone + 1 :]})
    owned = Counter(sched_owners(scheduler, [(r.rip, r.rport, 1) for r in old.servers], 65537))
    moved = slots_moved(old, new)
    assert moved is not None and moved.necessary == 512 and moved.slots == 65537
    assert owned[gone] <= moved.moved <= times * owned[gone]
    assert slots_moved(new, old) == moved._replace(necessary=512)


@pytest.mark.parametrize("gone", [0, 3, 7])
def test_with_weights_conhash_moves_nobody_else_either(gone: int) -> None:
    old = web("conhash", WEIGHTS)
    weights = [0 if i == gone else w for i, w in enumerate(WEIGHTS)]
    before = sched_owners("conhash", [(r.rip, r.rport, r.weight) for r in old.servers], 65537)
    moved = slots_moved(old, web("conhash", weights))
    assert moved is not None and moved.moved == before.count(gone)


def test_what_moves_is_not_asked_of_others() -> None:
    assert slots_moved(web("wrr", [1]), web("mh", [1])) is None
    assert slots_moved(web("mh", [1, 1]), web("mh", [1, 1])) == (0, 0, 65537)
    assert slots_moved(web("mh", [0]), web("mh", [1])) is None


# ---- who a client is ----


def goes_to(side: Any, frame: bytes) -> str:
    _, out = side.deliver(WAN, frame)
    return str(out[0][1].dst)


@dataclasses.dataclass
class Row:
    says: str
    target: str
    same: bool
    frames: tuple[bytes, bytes]


def datagram(sport: int, payload: bytes) -> bytes:
    return wire.udp(CLIENT, sport, VIP, 443, payload)


CID, OTHER = bytes(range(1, 21)), bytes(range(40, 60))
ROWS = [
    Row("another port, the same client", "sip", True, (datagram(5000, b"x"), datagram(5001, b"x"))),
    Row("another port is another client", "sip-port", False, (datagram(5000, b"x"), datagram(5006, b"x"))),
    Row("by connection ID", "qid", True, (datagram(5000, quic.short_header(CID)), datagram(5006, quic.short_header(CID)))),
    Row("another ID", "qid", False, (datagram(5000, quic.short_header(CID)), datagram(5001, quic.short_header(OTHER)))),
    Row("the ID's first 8 bytes count", "qid", True,
        (datagram(5000, quic.short_header(CID)), datagram(5001, quic.short_header(CID[:8] + OTHER)))),
    Row("long and short header agree", "qid", True,
        (datagram(5000, quic.long_header(CID)), datagram(5001, quic.short_header(CID)))),
    Row("without an ID: the address", "qid", True, (datagram(5000, b"x"), datagram(5006, b"yy"))),
]  # fmt: skip


@pytest.mark.parametrize("make", [Core, Naive])
@pytest.mark.parametrize("scheduler", HASHING)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.says)
def test_who_a_client_is(row: Row, scheduler: str, make: Any) -> None:
    side = make()
    side.service(
        proto=UDP, vport=443, scheduler=scheduler, hash_target=row.target, hash_slots=1021,
        members=[(i, rs, 8080, 1) for i, rs in enumerate((RS1, RS2, RS3, RS4))],
    )  # fmt: skip
    assert (goes_to(side, row.frames[0]) == goes_to(side, row.frames[1])) == row.same


def test_one_key_one_choice_on_every_worker_node_and_start() -> None:
    """What peers must agree on, so a change here breaks clusters that are upgraded node by node."""
    seen = []
    for workers in (1, 3):
        side = Pickers(workers)
        for key in (b"", bytes(range(32))):
            side.plane.put_settings({}, True, hash_key=key)
            for scheduler in HASHING:
                side.service(scheduler, WEIGHTS)
                by_worker = {tuple(w.bench_picks(0, 8, 2000, 0, 5)[0]) for w in side.workers}
                assert len(by_worker) == 1
                seen.append(by_worker.pop())
    assert seen[:6] == seen[6:] and len(set(seen)) == 6


# ---- slow start ----


@pytest.mark.parametrize("scheduler", GROWING)
def test_a_server_that_comes_to_others_grows(scheduler: str) -> None:
    """Its share is the part of the time that has passed; then it is whole."""
    shares = []
    for passed in (1, 5, 9, 20):
        side = Pickers()
        side.plane.publish()
        side.service(scheduler, [10, 10, 0], slow_start=10, now_ns=1)
        worker = side.workers[0]
        worker.step(1000 * SECOND)
        side.service(scheduler, [10, 10, 10], slow_start=10, now_ns=1000 * SECOND)
        worker.step((1000 + passed) * SECOND)
        picked, _, _ = worker.bench_picks(0, 3, 200_000, 6000)
        shares.append(picked[2] / (picked[0] + picked[1]) * 2)
    assert shares == pytest.approx([0.1, 0.5, 0.9, 1.0], abs=0.05)


def test_who_comes_with_the_service_or_alone_has_nothing_to_grow_beside() -> None:
    side = Pickers()
    side.service("wrr", [1, 3], slow_start=3600)
    assert side.picks(4000)[0] == [1000, 3000]
    side.service("wrr", [0, 0], slow_start=3600)
    side.service("wrr", [0, 3], slow_start=3600)
    assert side.picks(4000)[0] == [0, 4000]


def test_a_change_of_scheduler_keeps_connections() -> None:
    side = Core()
    rss = [(i, rs, 8080, 1) for i, rs in enumerate((RS1, RS2))]
    for n, scheduler in enumerate(SCHEDULERS):
        side.service(scheduler=scheduler, members=rss, hash_slots=1021)
        side.deliver(WAN, wire.tcp(CLIENT, 2000 + n, VIP, 80, SYN))
    assert len(side.conns()) == len(SCHEDULERS)


@pytest.mark.parametrize(
    "options",
    [
        {"scheduler": "rr", "hash_target": "sip-port"},
        {"scheduler": "mh", "hash_target": "qid"},
        {"scheduler": "rr", "slow_start": 5},
        {"scheduler": "mh", "slow_start": 5},
        {"scheduler": "mh", "hash_slots": 1},
        {"scheduler": "mh", "hash_slots": 131072},
    ],
)
def test_the_core_refuses_what_does_not_go_together(options: dict[str, Any]) -> None:
    side = Pickers()
    with pytest.raises(OSError, match="scheduler"):
        side.service(weights=[1], **options)
