"""Long and bad ways to the VIP, and servers that are clients: what the kernels at both ends make of it."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from topology import ECHO, HTTP, LIPS, LIPS6, SERVERS, SERVERS6, SINK, Balancer, Topology
from ways import SMALL, WAY, lead_away, worsen

MIB = 4
# Pairs of families: the VIP, and what stands behind it.
PAIRS = {
    "4to4": ("10.0.0.100", SERVERS, LIPS),
    "6to6": ("2001:db8:a::100", SERVERS6, LIPS6),
    "6to4": ("2001:db8:a::104", SERVERS, LIPS),
    "4to6": ("10.0.0.106", SERVERS6, LIPS6),
}


@dataclass
class Way:
    balancer: Balancer
    family: str

    @property
    def top(self) -> Topology:
        return self.balancer.topology

    @property
    def vip(self) -> str:
        return PAIRS[self.family][0]

    @property
    def url(self) -> str:
        return f"http://[{self.vip}]" if ":" in self.vip else f"http://{self.vip}"

    @property
    def routers(self) -> list[str]:
        """What a trace from home shows before the VIP."""
        _, far, near, _, _ = WAY[int(self.family[0])]
        return [far, near]

    def download(self, name: str) -> None:
        command = f"curl -sS --fail --max-time 60 '{self.url}/file' | sha256sum"
        out = self.top.run(name, "sh", "-c", command, timeout=90).stdout
        expected = hashlib.sha256((self.top.servers[0].directory / "www" / "file").read_bytes()).hexdigest()
        assert out.split()[0] == expected

    def upload(self, name: str) -> None:
        report = self.top.peer("upload", self.vip, str(SINK), str(MIB << 20), name=name)
        assert report["received"] == report["sent"]


@pytest.fixture(scope="module")
def running() -> Iterator[Balancer]:
    with Topology(prefix="fnway", six=True) as top:
        top.start_servers()
        first, second = (server.directory / "www" / "file" for server in top.servers)
        first.write_bytes(os.urandom(1 << 20) * MIB)
        second.hardlink_to(first)
        lead_away(top)
        balancer = Balancer(top)
        balancer.start()
        balancer.change(*({"op": "addr.add", "addr": vip, "port": top.vip_port} for vip, _, _ in PAIRS.values()))
        for vip, servers, lips in PAIRS.values():
            for proto, port in (("tcp", HTTP), ("tcp", SINK), ("udp", ECHO)):
                balancer.serve(proto, port, vip=vip, servers=servers, lips=lips)
        yield balancer


@pytest.fixture(params=PAIRS)
def way(running: Balancer, request: pytest.FixtureRequest) -> Way:
    return Way(running, request.param)


def hops(trace: str) -> list[str]:
    """The address of each line of a trace without names."""
    return re.findall(r"^ *\d+\??:?  *([0-9a-f.:]+) ", trace, re.MULTILINE)


@pytest.mark.parametrize("how", [("-I",), ("-U", "-p", "33434"), ("-T", "-p", "81")], ids=["ICMP", "UDP", "TCP"])
def test_traceroute(way: Way, how: tuple[str, ...]) -> None:
    """Two routers, then the VIP, where nobody serves the port."""
    trace = way.top.run("home", "traceroute", "-n", "-q1", "-w2", *how, way.vip).stdout
    assert hops(trace) == [*way.routers, way.vip], trace


def test_traceroute_to_a_service(way: Way) -> None:
    """The balancer is a hop under one of its own names, the server behind it is the end, under the VIP's."""
    trace = way.top.run("home", "traceroute", "-n", "-q1", "-w2", "-T", "-p", str(HTTP), way.vip).stdout
    *routers, balancer, end = hops(trace)
    assert (routers, end) == (way.routers, way.vip), trace
    assert balancer in {vip for vip, _, _ in PAIRS.values()}, trace


def test_tracepath(way: Way) -> None:
    """The client learns of the small link on the way."""
    trace = way.top.run("home", "tracepath", "-n", way.vip).stdout
    assert f"Resume: pmtu {SMALL} hops 3 back" in trace, trace
    assert hops(trace)[-1] == way.vip


def test_upload_over_a_small_link(way: Way) -> None:
    way.upload("home")


def test_download_over_a_small_link(way: Way) -> None:
    """The router before the small link tells the VIP, and the server hears of it."""
    for name in ("home", "rs1", "rs2"):  # nobody knows of it
        for family in ("-4", "-6"):
            way.top.ip(name, family, "route", "flush", "cache")
    before = way.balancer.counters()["icmp_errors_to_rs"]
    way.download("home")
    assert way.balancer.counters()["icmp_errors_to_rs"] > before


def test_a_line_with_delay_jitter_and_overtaking(way: Way) -> None:
    with worsen(way.top, delay=5, jitter=2, late=2) as line:
        way.download("client")
        way.upload("client")
        assert way.top.peer("echo", way.vip, str(ECHO), "200", "8") == {"sent": 200, "answered": 200, "wrong": 0}
    assert line.refused == 0 and line.late > 10, line


def test_a_server_is_a_client(way: Way) -> None:
    """It reaches itself and its twin under the VIP's name; both see a LIP."""
    server = way.top.servers[0]
    balancer = "fd00:b::1" if ":" in way.vip else "192.168.100.1"
    way.top.ip(server.name, "route", "add", way.vip, "via", balancer)
    seen = {way.top.run(server.name, "curl", "-sS", "--max-time", "5", way.url).stdout for _ in range(4)}
    assert seen == {"rs1\n", "rs2\n"}
    lips = PAIRS[way.family][2]
    assert {client.rpartition(":")[0].strip("[]") for s in way.top.servers for client in s.clients()[-2:]} <= set(lips)
