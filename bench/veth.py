"""Forwarders between two veth cables, each in turn at the same place:

     client 10.0.0.28            lb                     rs 192.168.100.2-9
       eth0 ===== wan 10.0.0.1        lan 192.168.100.1 ===== eth0
       wire ================================================= wire

The load (bench/outside.py) sits on CPU 0, the forwarder on CPU 1. "wire" is the second cable: the same load without a
forwarder, what everything else costs is measured against.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "netns"))
from topology import Balancer, Topology, wait_until  # noqa: E402

OUTSIDE = Path(__file__).with_name("outside.py")
REFLECTOR = Path(__file__).with_name("reflect.bpf.c")
GENERATOR_CPU, FORWARDER_CPU = "0", "1"
VIP, CLIENT, CLIENTS = "10.0.0.100", "10.0.0.28", "10.1.0.0"
RSS = [f"192.168.100.{i}" for i in range(2, 10)]
LIPS = [f"192.168.100.{i}" for i in range(200, 204)]
VPORT = 8000


class Cables(Topology):
    """Client, balancer and servers, each at the end of a cable of its own."""

    def __init__(self) -> None:
        super().__init__(prefix="fnbench")

    def _build(self) -> None:
        for name in ("client", "lb", "rs"):
            subprocess.run(["ip", "netns", "add", self.base + name], check=True)
            self.ip(name, "link", "set", "lo", "up")
            self.run(name, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1")
        self.run("lb", "sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.default.rp_filter=0")
        self._join("client", "eth0", "lb", "wan")
        self._join("lb", "lan", "rs", "eth0")
        self._join("client", "wire", "rs", "wire")
        self.ip("client", "addr", "add", f"{CLIENT}/16", "dev", "eth0")
        self.ip("lb", "addr", "add", "10.0.0.1/16", "dev", "wan")
        self.ip("lb", "addr", "add", "192.168.100.1/24", "dev", "lan")
        for address in RSS:
            self.ip("rs", "addr", "add", f"{address}/24", "dev", "eth0")
        # The load answers no ARP.
        self.ip("lb", "neigh", "add", CLIENT, "lladdr", self.mac("client", "eth0"), "dev", "wan", "nud", "permanent")
        for address in RSS:
            self.ip("lb", "neigh", "add", address, "lladdr", self.mac("rs", "eth0"), "dev", "lan", "nud", "permanent")
        self.ip("lb", "route", "add", f"{CLIENTS}/16", "via", CLIENT, "dev", "wan")

    def _join(self, name: str, device: str, peer: str, peer_device: str) -> None:
        self.ip(
            name, "link", "add", device, "type", "veth", "peer", "name", peer_device, "netns", self.base + peer
        )
        self.ip(name, "link", "set", device, "up")
        self.ip(peer, "link", "set", peer_device, "up")

    def mac(self, name: str, device: str) -> str:
        return self.run(name, "cat", f"/sys/class/net/{device}/address").stdout.strip()


@dataclass
class Load:
    conns: int
    services: int
    window: int = 1024


def compile_reflector(directory: Path) -> Path:
    out = directory / "reflect.bpf.o"
    include = f"-I/usr/include/{sys.implementation._multiarch}"
    subprocess.run(
        ["clang", "-target", "bpf", "-O2", "-g", include, "-c", str(REFLECTOR), "-o", str(out)], check=True
    )
    return out


def send(
    top: Cables, load: Load, runs: list[tuple[float, float]], pids: list[int], *, wire: bool = False, nat: bool = True
) -> dict[str, Any]:
    """What the load says; runs: (seconds, packets a second; 0: as many as can be)."""
    devices = ("wire", "wire") if wire else ("eth0", "eth0")
    gateway = top.mac("rs", "wire") if wire else top.mac("lb", "wan")
    last = f"10.1.{load.conns // 50000}.255"
    order = {
        "client": [top.base + "client", devices[0]],
        "server": [top.base + "rs", devices[1]],
        "reflector": str(top.directory / "reflect.bpf.o"),
        "traffic": {
            "cip": CLIENTS,
            "vip": VIP,
            "vport": VPORT,
            "flows": load.conns,
            "services": load.services,
            "window": load.window,
            "gateway_mac": gateway,
            "seen_from": [LIPS[0], LIPS[-1]] if nat else [CLIENTS, last],
            "seen_to": [RSS[0], RSS[-1]] if nat else [VIP, VIP],
        },
        "runs": runs,
        "pids": pids,
    }
    words = ["taskset", "-c", GENERATOR_CPU, sys.executable, "-X", "faulthandler", str(OUTSIDE), "send", json.dumps(order)]
    try:
        done = top.run("client", *words, timeout=300)
    finally:
        for name, device in (("client", devices[0]), ("rs", devices[1])):
            top.run(name, "ip", "link", "set", "dev", device, "xdp", "off", check=False)
    said: dict[str, Any] = json.loads(done.stdout)
    return said


@contextlib.contextmanager
def bare(top: Cables) -> Iterator[list[int]]:
    process = top.spawn(
        "lb", "taskset", "-c", FORWARDER_CPU, sys.executable, "-X", "faulthandler", str(OUTSIDE), "relay", "wan", "lan", log=top.directory / "relay.log"
    )
    try:
        wait_until(lambda: "ready" in (top.directory / "relay.log").read_text() or process.poll() is not None, "the relay is ready")
        yield [process.pid]
    finally:
        process.terminate()
        process.wait(timeout=10)
        for device in ("wan", "lan"):
            top.run("lb", "ip", "link", "set", "dev", device, "xdp", "off", check=False)


@contextlib.contextmanager
def fnat(top: Cables, load: Load) -> Iterator[list[int]]:
    balancer = Balancer(top, conns=load.conns + load.conns // 8 + 1024)
    balancer.start(60)
    try:
        balancer.change({"op": "addr.add", "addr": VIP, "port": top.vip_port})
        for i in range(load.services):
            balancer.serve("udp", VPORT + i, servers=RSS, lips=LIPS)
        yield [balancer.pids()["dataplane"]]
    finally:
        balancer.stop()


@contextlib.contextmanager
def nftables(top: Cables, load: Load, proto: str = "udp") -> Iterator[list[int]]:
    ports = range(VPORT, VPORT + load.services)
    servers = ", ".join(f"{i} : {address}" for i, address in enumerate(RSS))
    lines = ["table ip lb {"]
    lines += [f"chain s{port} {{ dnat to numgen inc mod {len(RSS)} map {{ {servers} }}; }}" for port in ports]
    lines += ["map vips { type ipv4_addr . inet_service : verdict; elements = { "]
    lines += [", ".join(f"{VIP} . {port} : jump s{port}" for port in ports), "} }"]
    lines += [f"chain pre {{ type nat hook prerouting priority dstnat; ip daddr . {proto} dport vmap @vips; }}"]
    lines += [f"chain post {{ type nat hook postrouting priority srcnat; oif lan snat to {LIPS[0]}-{LIPS[-1]}; }}"]
    lines += ["}"]
    top.run("lb", "nft", "-f", "-", stdin="\n".join(lines))
    top.run("lb", "sysctl", "-qw", "net.ipv4.ip_forward=1")
    top.run("lb", "sysctl", "-qw", "net.netfilter.nf_conntrack_udp_timeout=300", "net.netfilter.nf_conntrack_udp_timeout_stream=300")
    top.run("lb", "ip", "link", "set", "dev", "lan", "xdp", "obj", str(top.directory / "reflect.bpf.o"), "program", "pass")
    import os
    if os.environ.get("NFT") == "rps":
        top.run("lb", "sh", "-c", "echo 2 > /sys/class/net/wan/queues/rx-0/rps_cpus")
    elif os.environ.get("NFT") == "napi":
        top.run("lb", "ethtool", "-K", "wan", "gro", "on")
        top.run("lb", "sh", "-c", "echo 1 > /sys/class/net/wan/threaded; taskset -cp 1 $(pgrep napi/wan)")
    try:
        yield []
    finally:
        top.run("lb", "nft", "delete", "table", "ip", "lb")
        top.run("lb", "sysctl", "-qw", "net.ipv4.ip_forward=0")
