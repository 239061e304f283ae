"""Kernel sockets whose datagrams leave in fragments: through the whole product over veth, and through the core alone over TAP devices for every pair
of families."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from topology import ECHO, PEER, Balancer, wait_until

from fnat._core import COUNTERS, Plane, TapQueue, Worker

DROPS = {name for name, kind, _ in COUNTERS if kind == "drop"}
SIZE = 4000


def test_ping_of_3000_bytes(balancer: Balancer) -> None:
    top = balancer.topology
    before = balancer.counters()["answered"]
    out = top.run("client", "ping", "-c3", "-i0.1", "-W2", "-s3000", top.vip).stdout
    assert "3 received" in out, out
    assert balancer.counters()["answered"] - before >= 9


def test_datagrams_of_4000_bytes_both_ways(balancer: Balancer) -> None:
    balancer.topology.peer(
        "echo", balancer.topology.vip, str(ECHO), "8", "4"
    )  # before, neighbours are unknown: eight packets wait for one
    before = balancer.counters()
    report = balancer.topology.peer("echo", balancer.topology.vip, str(ECHO), "200", "8", str(SIZE))
    lost = {name: value for name, value in balancer.counters().items() if value != before[name] and name in DROPS}
    assert report == {"sent": 200, "answered": 200, "wrong": 0}, lost
    wait_until(lambda: balancer.counters()["fragments"] - before["fragments"] == 200 * 2 * 3, "all are counted")
    assert {n: v for n, v in balancer.counters().items() if n.startswith("fragment_") and v != before[n]} == {}


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


WAN, LAN = 0, 1
ENDS = {  # family -> client, VIP, LIP, RS
    4: ("198.51.100.7", "198.51.100.1", "10.9.0.1", "10.9.0.2"),
    6: ("2001:db8:9::7", "2001:db8:9::1", "fd00:9::1", "fd00:9::2"),
}


class House:
    """A client and a server in two namespaces, each at one TAP of a worker that a thread turns."""

    def __init__(self) -> None:
        self.base = f"fnfrag{os.getpid()}"
        self.plane = Plane.create(
            None, workers=1, conns=64, services=4, members=4, endpoints=16, neighbours=64, frames=512, snapshot_mib=1
        )
        self.worker = Worker(self.plane, 0)
        self.stop = threading.Event()
        self.children: list[subprocess.Popen[bytes]] = []
        self.plane.put_settings({}, True)
        routes, addresses = [], []
        for port, name in ((WAN, "c"), (LAN, "s")):
            ns, tap = f"{self.base}-{name}", f"{self.base[-8:]}{name}"
            ip("netns", "add", ns)
            mac = f"02:00:00:00:0b:0{port}"
            self.worker.attach(port, TapQueue(self.worker, tap, f"02:00:00:00:0c:0{port}", 1500))
            ip("link", "set", tap, "netns", ns)
            ip("-n", ns, "link", "set", tap, "up")
            ip("-n", ns, "link", "set", "lo", "up")
            theirs = subprocess.run(
                ["ip", "-n", ns, "-br", "link", "show", tap], check=True, capture_output=True, text=True
            ).stdout.split()[2]
            self.plane.put_port(port, ("wan", "lan")[port], mac, 1500)
            for family, ends in ENDS.items():
                host, ours = (ends[0], ends[1]) if port == WAN else (ends[3], ends[2])
                plen = 24 if family == 4 else 64
                ip("-n", ns, "addr", "add", f"{host}/{plen}", "dev", tap, *(["nodad"] if family == 6 else []))
                ip("-n", ns, "neigh", "add", ours, "lladdr", mac, "dev", tap)
                self.plane.neigh_set(port, host, theirs, static=True)
                routes.append((host + ("/32" if family == 4 else "/128"), "", "", port, 0, 0, "unicast"))
                addresses.append((len(addresses) + 1, ours, ("vip", "lip")[port], port))
        self.plane.put_routes(routes)
        self.plane.put_addresses(addresses)
        self.lips = {4: 3, 6: 4}
        self.thread = threading.Thread(target=self.turn)
        for id, (client, rs) in enumerate(((4, 4), (6, 6), (4, 6), (6, 4))):
            members = [(id, ENDS[rs][3], 5353, 1)]
            self.plane.put_service(id, ENDS[client][1], 1000 + id, 17, members=members, lips=[self.lips[rs]])
        self.plane.publish()
        self.thread.start()

    def turn(self) -> None:
        while not self.stop.is_set():
            self.worker.step(time.monotonic_ns())
            time.sleep(0.0002)

    def run(self, name: str, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["ip", "netns", "exec", f"{self.base}-{name}", *words],
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def serve(self) -> None:
        command = ["ip", "netns", "exec", f"{self.base}-s", sys.executable, str(PEER), "serve", "9000", "5353"]
        self.children.append(subprocess.Popen(command))
        wait_until(lambda: ":5353 " in self.run("s", "ss", "-Hlun").stdout, "the server listens")

    def close(self) -> None:
        self.stop.set()
        self.thread.join()
        for child in self.children:
            child.kill()
            child.wait()
        self.worker.detach()
        self.worker.quiesce()
        self.plane.close()
        for name in "cs":
            subprocess.run(["ip", "netns", "del", f"{self.base}-{name}"], check=False)


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    house = House()
    try:
        house.serve()
        yield house
    finally:
        house.close()


@pytest.mark.parametrize(("client", "rs", "port"), [(4, 4, 1000), (6, 6, 1001), (4, 6, 1002), (6, 4, 1003)])
def test_datagrams_of_every_pair_of_families(house: House, client: int, rs: int, port: int) -> None:
    before = house.plane.counters(0)
    out = house.run("c", sys.executable, str(PEER), "echo", ENDS[client][1], str(port), "50", "4", str(SIZE)).stdout
    moved = {n: v - before[n] for n, v in house.plane.counters(0).items() if v != before[n]}
    assert out.strip() == '{"sent": 50, "answered": 50, "wrong": 0}', moved
    assert moved["fragments"] == 50 * 2 * 3, moved


@pytest.mark.parametrize("family", [4, 6])
def test_pings_of_3000_bytes(house: House, family: int) -> None:
    out = house.run("c", "ping", "-c3", "-i0.1", "-W2", "-s3000", ENDS[family][1]).stdout
    assert "3 received" in out
