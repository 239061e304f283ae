"""Namespaces for the tests below; they need root, AF_XDP and nginx."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from topology import ECHO, HTTP, SINK, Balancer, Topology

HERE = Path(__file__).parent
SHORT = """\
version = 1
[host.timeouts]
time_wait = 1
close = 1
last_ack = 1
udp = 3
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here is marked `netns`, and left out without root."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.netns)
            if os.geteuid() != 0:
                item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.fixture(scope="module", params=[(2, 1), (1, 1), (2, 2)], ids=["two-arm", "one-arm", "two-workers"])
def balancer(request: pytest.FixtureRequest) -> Iterator[Balancer]:
    """Arms and workers; set up by the tutorial's commands for HTTP. A test leaves it as it found it."""
    arms, workers = request.param
    with Topology(arms=arms, prefix="fntest", queues=workers) as top:
        top.start_servers()
        balancer = Balancer(top, ("--workers", str(workers)), config=SHORT, conns=200_000)
        balancer.start()
        balancer.configure(services=[("-t", HTTP)])
        balancer.serve("tcp", SINK)
        balancer.serve("udp", ECHO)
        yield balancer


@pytest.fixture
def own_balancer() -> Iterator[Balancer]:
    """Two arms, HTTP, set up by the API, for this test alone: it may break it."""
    with Topology(prefix="fntest") as top:
        top.start_servers()
        balancer = Balancer(top, config=SHORT)
        balancer.start()
        balancer.change({"op": "addr.add", "addr": top.vip, "port": top.vip_port})
        balancer.serve("tcp", HTTP)
        yield balancer
