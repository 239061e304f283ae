"""Snapshots at scale: what a change costs, what a failed publish leaves, that no space is lost."""

from __future__ import annotations

import random
import tempfile
import time

import packets as wire
import pytest
from packets import SYN
from rig import CLIENT, LIP, RS1, VIP, WAN, Rig

from fnat._core import Plane

MANY = 20_000


def vip(i: int) -> str:
    return f"172.16.{i >> 8}.{i & 255}"


def put(rig: Rig, i: int, vport: int = 80, servers: int = 1) -> None:
    members = [(8 * i + n, RS1, 1024 + n, 1) for n in range(servers)]
    rig.plane.put_service(i, vip(i % MANY), vport, 6, members=members, lips=[3])


def is_served(rig: Rig, i: int, vport: int = 80) -> bool:
    """A SYN to the service opens a connection."""
    before = rig.counters()["to_rs"]
    rig.send(WAN, wire.tcp(CLIENT, 1024 + i % 60000, vip(i % MANY), vport, SYN))
    return rig.counters()["to_rs"] > before


def large(**sizes: int) -> Rig:
    return Rig(**{"services": MANY + 8, "members": 8 * (MANY + 8), "snapshot_mib": 32, "conns": 65536, **sizes})


def test_every_service_is_found_while_services_come_and_go() -> None:
    """2 000 random changes against a dictionary; owned addresses come and go with them."""
    rig, dice = large(services=1024, members=8192, snapshot_mib=4), random.Random(5)
    there: dict[int, int] = {}
    for round in range(200):
        for i in dice.sample(range(1000), 10):
            if i in there and dice.random() < 0.5:
                rig.plane.del_service(i)
                rig.plane.del_address(10 + i)
                del there[i]
            else:
                there[i] = dice.choice([80, 443])
                rig.plane.put_service(i, vip(i), there[i], 6, members=[(8 * i, RS1, 1024, 1)], lips=[3])
                rig.plane.put_address(10 + i, vip(i), "vip", WAN)
        rig.plane.publish()
        rig.step()
        if round % 20 == 19:
            rig.now += 1_000_000_000
            assert [i for i in range(1000) if is_served(rig, i, 80)] == [i for i in sorted(there) if there[i] == 80]
            rig.wait(12, step=1)


def test_a_change_among_many_costs_no_more_than_among_few() -> None:
    def best(rig: Rig, count: int) -> float:
        for i in range(count):
            rig.plane.put_address(10 + i, vip(i), "vip", WAN)
            put(rig, i, servers=8)
        rig.plane.publish()
        rig.step()
        times = []
        for i in range(50):
            started = time.perf_counter()
            put(rig, i * 7 % count, servers=8)
            rig.plane.publish()
            times.append(time.perf_counter() - started)
            rig.step()
        return min(times)

    few, many = best(large(), 100), best(large(), MANY)
    assert many < 10 * few and many < 0.001, (few, many)


def test_loading_many_is_not_quadratic() -> None:
    rig = large()
    started = time.perf_counter()
    for i in range(MANY):
        rig.plane.put_address(10 + i, vip(i), "vip", WAN)
        put(rig, i, servers=8)
    rig.plane.publish()
    assert time.perf_counter() - started < 3
    rig.step()
    assert all(is_served(rig, i) for i in range(0, MANY, 997))


@pytest.mark.parametrize("grow", [0, 40])
def test_space_is_given_back(grow: int) -> None:
    """Blobs of changing size in an area that would be full after a few hundred of them."""
    rig = Rig(services=64, members=8192, snapshot_mib=1)
    for round in range(5000):
        members = [(n, RS1, 1024 + n, 1) for n in range(1 + (round * 7 % (grow + 1)))]
        rig.plane.put_service(1, VIP, 80, 6, members=members, lips=[3])
        rig.plane.publish()
        rig.step()


def test_a_worker_that_has_not_followed_keeps_its_picture() -> None:
    """Nothing that an old snapshot reaches is written over: the area fills instead, and empties when the worker moves."""
    rig = Rig(services=64, members=8192, snapshot_mib=1)
    rig.service()
    rig.step()
    members = [(n, RS1, 1024 + n, 1) for n in range(1000)]
    with pytest.raises(OSError, match="No space left"):
        for _ in range(100):
            rig.plane.put_service(1, VIP, 8080, 6, members=members, lips=[3])
            rig.plane.publish()
    before = rig.counters()["to_rs"]
    rig.send(WAN, wire.tcp(CLIENT, 1024, VIP, 80, SYN))
    assert rig.counters()["to_rs"] == before + 1
    for _ in range(100):
        rig.plane.put_service(1, VIP, 8080, 6, members=members, lips=[3])
        rig.plane.publish()
        rig.step()


def test_two_ids_of_one_key_are_refused_and_nothing_is_lost() -> None:
    rig = Rig()
    rig.service(id=0)
    rig.plane.put_service(1, VIP, 80, 6, members=[(8, RS1, 8080, 1)], lips=[3])
    for _ in range(2000):
        with pytest.raises(FileExistsError):
            rig.plane.publish()
    rig.plane.del_service(0)
    rig.plane.publish()
    rig.send(WAN, wire.tcp(CLIENT, 1024, VIP, 80, SYN))
    assert [c.service for c in rig.conns()] == [1]
    rig.plane.put_address(9, LIP, "lip", 1)
    with pytest.raises(FileExistsError):
        rig.plane.publish()
    rig.plane.del_address(9)
    rig.plane.publish()
    with pytest.raises(FileNotFoundError):
        rig.plane.del_address(9)


def test_a_new_control_replaces_the_picture_of_the_old_one() -> None:
    """The old picture stays whole until every worker has the new one; then its space is used again."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        rig = Rig(directory=directory, services=4096, members=32768, snapshot_mib=2)
        for turn in range(10):
            control = Plane.attach(directory)
            served = range(turn * 130, turn * 130 + 1000)
            for i in served:
                control.put_service(
                    i, vip(i), 80, 6, members=[(8 * i + n, RS1, 1024 + n, 1) for n in range(8)], lips=[3]
                )
            rig.configure(plane=control, addresses=[(10 + i, vip(i), "vip", WAN) for i in served])
            rig.step()
            assert (
                is_served(rig, turn * 130) and is_served(rig, turn * 130 + 999) and not is_served(rig, turn * 130 - 1)
            )
            control.close()
        rig.close()
