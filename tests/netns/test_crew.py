"""Two workers on NICs with two queues: whichever queue a packet comes in by, its connection's owner gets it."""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Iterator

import pytest
from conftest import SHORT
from topology import ECHO, HTTP, SINK, Balancer, Topology, wait_until

CPUS = sorted(os.sched_getaffinity(0), reverse=True)[:2]


@pytest.fixture(scope="module")
def crew() -> Iterator[Balancer]:
    with Topology(prefix="fntest", queues=2) as top:
        top.start_servers()
        options = ("--workers", "2", "--cpus", ",".join(map(str, CPUS)))
        balancer = Balancer(top, config=SHORT, options=options, conns=200_000)  # a full table would evict
        balancer.start()
        balancer.change({"op": "addr.add", "addr": top.vip, "port": top.vip_port})
        balancer.serve("tcp", HTTP)
        balancer.serve("tcp", SINK)
        balancer.serve("udp", ECHO)
        yield balancer


def moved(crew: Balancer, before: list[dict[str, int]], name: str) -> list[int]:
    """By how much a counter of each worker has risen."""
    now = [worker["counters"] for worker in crew.api("/v1/workers")]
    return [new[name] - old[name] for new, old in zip(now, before, strict=True)]


def all_counters(crew: Balancer) -> list[dict[str, int]]:
    return [worker["counters"] for worker in crew.api("/v1/workers")]


@contextlib.contextmanager
def queues_that_change(top: Topology) -> Iterator[None]:
    """Both bridges send by one queue, then by the other, some times a second."""
    stop = threading.Event()

    def change() -> None:
        turn = 0
        while not stop.wait(0.05):
            top.send_by("wan", turn & 1)
            top.send_by("lan", turn >> 1 & 1)
            turn += 1

    thread = threading.Thread(target=change)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        top.send_by("wan", None)
        top.send_by("lan", None)


@contextlib.contextmanager
def loss(top: Topology, percent: int) -> Iterator[None]:
    top.lose(percent)
    try:
        yield
    finally:
        top.lose(0)


def test_a_veth_is_steered_by_hand_off(crew: Balancer) -> None:
    said = "hand-off: veth shows no receive-side scaling"
    assert [port["steering"]["tcp4"] for port in crew.api("/v1/ports")] == [said, said]
    assert f"    steering {said}\n" in crew.dpip("link show -v")
    assert f"fnat: port dpdk0: answers reach their worker by {said}\n" in crew.log.read_text()


def test_workers_run_where_they_were_told(crew: Balancer) -> None:
    wait_until(lambda: all(worker["cpu"] is not None for worker in crew.api("/v1/workers")), "both workers run")
    assert [worker["cpu"] for worker in crew.api("/v1/workers")] == [CPUS[0], CPUS[-1]]


def test_no_request_is_lost_between_workers(crew: Balancer) -> None:
    out = crew.topology.run(
        "client", "wrk", "-t1", "-c32", "-d3s", "-H", "Connection: close", f"http://{crew.topology.vip}/"
    ).stdout
    assert "Socket errors" not in out and "Non-2xx" not in out, out
    match = re.search(r"(\d+) requests in", out)
    assert match is not None and int(match[1]) > 200, out
    opened = [worker["counters"]["conns_opened"] for worker in crew.api("/v1/workers")]
    assert min(opened) > 0, f"both workers open connections: {opened}"
    wait_until(lambda: crew.counters()["handed_off"] == crew.counters()["from_workers"], "the rings are empty")
    counters = crew.counters()
    assert counters["handed_off"] > 0
    assert {name: counters[name] for name in ("no_conn", "handoff_full", "no_lip_port", "tx_full")} == {
        "no_conn": 0,
        "handoff_full": 0,
        "no_lip_port": 0,
        "tx_full": 0,
    }


def test_a_sender_that_changes_its_queue_keeps_its_connections(crew: Balancer) -> None:
    top, before = crew.topology, all_counters(crew)
    talks = [top.talk() for _ in range(6)]
    servers = [talk.ask() for talk in talks]
    for turn in range(8):
        top.send_by("wan", turn & 1)
        top.send_by("lan", turn >> 1 & 1)
        assert [talk.ask() for talk in talks] == servers
    top.send_by("wan", None)
    top.send_by("lan", None)
    for talk in talks:
        talk.end()
    assert min(moved(crew, before, "rx_packets")) > 40, "both queues were used"
    assert sum(moved(crew, before, "handed_off")) > 40
    assert sum(moved(crew, before, "conns_opened")) == len(talks)
    assert sum(moved(crew, before, "no_conn")) == 0


def test_uploads_survive_loss_and_changing_queues(crew: Balancer) -> None:
    before = all_counters(crew)
    with loss(crew.topology, 2), queues_that_change(crew.topology):
        uploads, end = 0, time.monotonic() + 3
        while time.monotonic() < end:
            report = crew.topology.peer("upload", crew.topology.vip, str(SINK), "1000000")
            assert report["sent"] == report["received"]
            uploads += 1
    assert sum(moved(crew, before, "from_workers")) > 20, "packets went between the workers"
    assert sum(moved(crew, before, "conns_opened")) == uploads > 2
    assert {name: sum(moved(crew, before, name)) for name in ("no_conn", "handoff_full", "rounds_refused")} == {
        "no_conn": 0,
        "handoff_full": 0,
        "rounds_refused": 0,
    }


def test_datagrams_survive_changing_queues(crew: Balancer) -> None:
    before = all_counters(crew)
    with queues_that_change(crew.topology):
        report = crew.topology.peer("echo", crew.topology.vip, str(ECHO), "2000", "16")
    assert report == {"sent": 2000, "answered": 2000, "wrong": 0}
    assert sum(moved(crew, before, "conns_opened")) == 16, "the same connection, whatever the queue"


def test_datagrams_are_answered(crew: Balancer) -> None:
    report = crew.topology.peer("echo", crew.topology.vip, str(ECHO), "2000", "16")
    assert report == {"sent": 2000, "answered": 2000, "wrong": 0}


def test_all_is_given_back(crew: Balancer) -> None:
    def taken() -> dict[str, int]:
        counters = crew.counters()
        return {
            name: counters[name] for name in ("conns", "lip_ports", "half_open", "waiting", "frames") if counters[name]
        }

    wait_until(lambda: not taken(), "nothing is taken", 15)
