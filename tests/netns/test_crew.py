"""Two workers on NICs with two queues: whichever queue a packet comes in by, its connection's owner gets it."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from conftest import SHORT
from topology import ECHO, HTTP, Balancer, Topology, wait_until


@pytest.fixture(scope="module")
def crew() -> Iterator[Balancer]:
    with Topology(prefix="fntest", queues=2) as top:
        top.start_servers()
        balancer = Balancer(top, config=SHORT, options=("--workers", "2"))
        balancer.start()
        balancer.change({"op": "addr.add", "addr": top.vip, "port": top.vip_port})
        balancer.serve("tcp", HTTP)
        balancer.serve("udp", ECHO)
        yield balancer


def test_no_request_is_lost_between_workers(crew: Balancer) -> None:
    out = crew.topology.run(
        "client", "wrk", "-t1", "-c32", "-d3s", "-H", "Connection: close", f"http://{crew.topology.vip}/"
    ).stdout
    assert "Socket errors" not in out and "Non-2xx" not in out, out
    match = re.search(r"(\d+) requests in", out)
    assert match is not None and int(match[1]) > 200, out
    opened = [worker["counters"]["conns_opened"] for worker in crew.api("/v1/workers")]
    assert min(opened) > 0, f"both workers open connections: {opened}"
    counters = crew.counters()
    assert counters["handed_off"] == counters["from_workers"] > 0
    assert {name: counters[name] for name in ("no_conn", "handoff_full", "no_lip_port", "tx_full")} == {
        "no_conn": 0,
        "handoff_full": 0,
        "no_lip_port": 0,
        "tx_full": 0,
    }


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
