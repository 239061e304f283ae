"""20 000 services of 8 RSs in a running fnat, given through its API: a sample of them is proven by connections, one changes
while it runs, and what it all takes is known."""

from __future__ import annotations

import json
import os
import random
import statistics
import sys
import time
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from topology import LIPS, Balancer, Topology, wait_until

from fnat.capacity import files
from fnat.client import Client
from fnat.sizes import frames_of, sizes

SERVICES, SERVERS, SAMPLE, AT_ONCE = 20_000, 8, 100, 2_000
VIPS, RIPS = IPv4Address("10.128.0.0"), IPv4Address("172.16.0.0")
CONNS = 20_000
# Every address of 172.16.0.0/12 is this host's; who is asked by its name says that name.
SERVER = """\
import socket
door = socket.create_server(("", 8080), backlog=1024)
while True:
    peer, _ = door.accept()
    peer.sendall(peer.getsockname()[0].encode())
    peer.close()
"""
CLIENT = """\
import json, socket, sys
def ask(vip):
    with socket.create_connection((vip, 80), timeout=5) as s:
        return s.recv(64).decode()
print(json.dumps({vip: [ask(vip) for _ in range(int(sys.argv[1]))] for vip in json.load(sys.stdin)}))
"""


def vip(i: int) -> str:
    return str(VIPS + i)


def rips(i: int) -> list[str]:
    return [str(RIPS + SERVERS * i + j) for j in range(SERVERS)]


def service(i: int) -> dict[str, object]:
    return {"proto": "tcp", "vip": vip(i), "vport": 80}


def changes(i: int, port: str) -> list[dict[str, object]]:
    return [
        {"op": "addr.add", "addr": vip(i), "port": port},
        {"op": "service.add", "scheduler": "rr", **service(i)},
        *({"op": "server.add", "service": service(i), "rip": rip, "rport": 8080} for rip in rips(i)),
        {"op": "lip.add", "service": service(i), "addr": LIPS[0], "port": "dpdk0"},
    ]


def answers(top: Topology, wanted: list[int], times: int = SERVERS) -> dict[str, list[str]]:
    """Who answers the client on each of these services, asked one after another."""
    text = json.dumps([vip(i) for i in wanted])
    done = top.run("client", sys.executable, "-c", CLIENT, str(times), stdin=text)
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def balancer() -> Iterator[Balancer]:
    with Topology(prefix="fnmany") as top:
        top.ip("client", "route", "add", "10.128.0.0/16", "via", "10.0.0.1")
        top.ip("lb", "route", "add", "172.16.0.0/12", "via", "192.168.100.2")
        top.ip("rs1", "route", "add", "local", "172.16.0.0/12", "dev", "lo")
        top.spawn("rs1", sys.executable, "-c", SERVER)
        wait_until(lambda: ":8080 " in top.run("rs1", "ss", "-Hltn").stdout, "the server listens")
        balancer = Balancer(top, conns=CONNS)
        balancer.start()
        yield balancer


def test_twenty_thousand_services(balancer: Balancer, capsys: pytest.CaptureFixture[str]) -> None:
    top = balancer.topology
    with Client(balancer.socket, timeout=60) as door:
        before = time.monotonic()
        for first in range(0, SERVICES, AT_ONCE):
            door.change([change for i in range(first, first + AT_ONCE) for change in changes(i, top.vip_port)])
        took = time.monotonic() - before

        sample = sorted(random.Random(20_000).sample(range(SERVICES), SAMPLE))
        for i, found in zip(sample, answers(top, sample).values(), strict=True):
            assert sorted(found) == sorted(rips(i)), f"service {i} goes round its own servers"

        times = []
        for i in sample[:9]:  # the first server of each goes out of use, and the next connections know it
            before = time.monotonic()
            door.change([{"op": "server.set", "service": service(i), "rip": rips(i)[0], "rport": 8080, "weight": 0}])
            times.append(time.monotonic() - before)
        for i, found in zip(sample[:9], answers(top, sample[:9], SERVERS - 1).values(), strict=True):
            assert sorted(found) == sorted(rips(i)[1:])
        assert statistics.median(times) < 0.1

    room = sizes(conns=CONNS, workers=1, frames=frames_of(2, 2048))
    arena = {path.name: path.stat().st_size for path in (balancer.state_dir / "arena").resolve().iterdir()}
    assert {name: arena[name] >> 21 for name in files(room)} == {n: -(-size >> 21) for n, size in files(room).items()}
    figures = {
        "seconds_to_apply": round(took, 1),
        "change_ms": round(1000 * statistics.median(times), 1),
        "control_rss_mib": rss(balancer.pids()["control"]) >> 20,
        "dataplane_rss_mib": rss(balancer.pids()["dataplane"]) >> 20,
        "arena_mib": sum(arena.values()) >> 20,
    }
    assert figures["control_rss_mib"] < 1024
    with capsys.disabled():
        print(f"\n{SERVICES} services of {SERVERS} servers: {figures}")


def rss(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
