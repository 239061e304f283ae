"""Forwarders between veth cables: fnat beside what else could stand in its place, and beside no forwarder at all.

     client 10.0.0.28             lb                      rs 192.168.100.2-9
       eth0 ===== wan 10.0.0.1        lan 192.168.100.1 ===== eth0            bare, fnat, nftables, haproxy
       eth0 ================================================= eth0            wire

Each forwarder has namespaces of its own and all are up at the same time; they are measured in turns, round after round.
What makes the load and what answers it runs on CPU 0, the forwarder on CPU 1. XDP is native.

    bare      AF_XDP in and out with the driver of fnat, MAC addresses swapped, nothing looked up: the I/O limit
    nftables  DNAT by a map of VIP and port, SNAT to the LIPs, in the kernel; on the CPU of whoever sends
    nft-rps   the same, with RPS, which moves it to CPU 1
    haproxy   mode tcp, one thread
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "netns"))
from topology import Balancer, Topology, wait_until  # noqa: E402

OUTSIDE = str(Path(__file__).with_name("outside.py"))
REFLECTOR = Path(__file__).with_name("reflect.bpf.c")
LOAD_CPU, FORWARDER_CPU = 0, 1
PREFIX = "fnbench"
VIP, CLIENT, CLIENTS = "10.0.0.100", "10.0.0.28", "10.1.0.0"
SERVERS = [f"192.168.100.{i}" for i in range(2, 10)]
LIPS = [f"192.168.100.{i}" for i in range(200, 204)]
VPORT, WINDOW = 8000, 1024
CONNTRACK_MAX = Path("/proc/sys/net/netfilter/nf_conntrack_max")
CONNTRACK_HASH = Path("/sys/module/nf_conntrack/parameters/hashsize")
WHO = re.compile(r"Requests/sec:\s+([\d.]+)")
NGINX = """\
daemon off; master_process off; user root; pid {0}/nginx.pid; error_log {0}/error.log crit;
events {{ worker_connections 8192; }}
http {{
    access_log off; keepalive_requests 1000000000; lingering_close off; tcp_nodelay on;
    client_body_temp_path {0}/body; proxy_temp_path {0}/proxy; fastcgi_temp_path {0}/fcgi; uwsgi_temp_path {0}/uwsgi;
    scgi_temp_path {0}/scgi;
    server {{ listen 80 backlog=8192; location / {{ default_type text/plain; return 200 "ok\\n"; }} }}
}}
"""
HAPROXY = """\
global
    nbthread 1
    maxconn 8000
defaults
    mode tcp
    timeout connect 5s
    timeout client 60s
    timeout server 60s
listen web
    bind {vip}:80 backlog 8192
    balance roundrobin
{servers}
"""

Forwarder = Callable[["Cables"], contextlib.AbstractContextManager[list[int]]]


class Cables(Topology):
    """Client and servers at the two ends of a forwarder's cables; `wire`: of one cable."""

    def __init__(self, name: str, stack: contextlib.ExitStack) -> None:
        super().__init__(prefix=PREFIX)
        self.name = name
        self.base = f"{PREFIX}{os.getpid()}-{name}-"
        self.wire = name == "wire"
        self.known: list[tuple[str, str, str]] = []
        stack.enter_context(self)

    def _build(self) -> None:
        for name in ("client", "rs") if self.wire else ("client", "lb", "rs"):
            subprocess.run(["ip", "netns", "add", self.base + name], check=True)
            self.ip(name, "link", "set", "lo", "up")
            settings = ("net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1")
            tcp = ("net.ipv4.ip_local_port_range=1024 65535", "net.ipv4.tcp_tw_reuse=1", "net.core.somaxconn=8192")
            self.run(name, "sysctl", "-qw", *settings, *tcp)
        if self.wire:
            self._join("client", "eth0", "rs", "eth0")
            self.ip("rs", "addr", "add", f"{VIP}/16", "dev", "eth0")
        else:
            self._join("client", "eth0", "lb", "wan")
            self._join("lb", "lan", "rs", "eth0")
            self.run("lb", "sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.default.rp_filter=0")
            self.ip("lb", "addr", "add", "10.0.0.1/16", "dev", "wan")
            self.ip("lb", "addr", "add", "192.168.100.1/24", "dev", "lan")
            self._know("wan", CLIENT, self.mac("client", "eth0"))
            for address in SERVERS:
                self._know("lan", address, self.mac("rs", "eth0"))
            self.ip("lb", "route", "add", f"{CLIENTS}/16", "via", CLIENT, "dev", "wan")
        self.ip("client", "addr", "add", f"{CLIENT}/16", "dev", "eth0")
        for address in SERVERS:
            self.ip("rs", "addr", "add", f"{address}/24", "dev", "eth0")

    def _join(self, name: str, device: str, peer: str, peer_device: str) -> None:
        words = ("type", "veth", "peer", "name", peer_device, "netns", self.base + peer)
        self.ip(name, "link", "add", device, *words)
        self.ip(name, "link", "set", device, "up")
        self.ip(peer, "link", "set", peer_device, "up")

    def _know(self, device: str, address: str, mac: str) -> None:
        """The load answers no ARP, neither the kernel's nor fnat's."""
        self.known.append((device, address, mac))
        self.ip("lb", "neigh", "add", address, "lladdr", mac, "dev", device, "nud", "permanent")

    def mac(self, name: str, device: str) -> str:
        return self.run(name, "cat", f"/sys/class/net/{device}/address").stdout.strip()

    def own(self, device: str, addresses: Sequence[str]) -> None:
        """Addresses that the balancer's kernel answers for."""
        for address in addresses:
            self.ip("lb", "addr", "add", f"{address}/32", "dev", device)

    def python(self, name: str, cpu: int, *words: str, timeout: float = 600) -> str:
        return self.run(name, "taskset", "-c", str(cpu), sys.executable, *words, timeout=timeout).stdout


# ---- forwarders: each yields the processes whose time is its own ----


@contextlib.contextmanager
def wire(_top: Cables) -> Iterator[list[int]]:
    yield []


@contextlib.contextmanager
def bare(top: Cables) -> Iterator[list[int]]:
    log = top.directory / "relay.log"
    words = ("taskset", "-c", str(FORWARDER_CPU), sys.executable, OUTSIDE, "relay", "wan", "lan")
    process = top.spawn("lb", *words, log=log)
    wait_until(lambda: "ready" in log.read_text() or process.poll() is not None, "the bare forwarder is ready")
    if process.poll() is not None:
        raise RuntimeError(f"the bare forwarder ended: {log.read_text()}")
    yield [process.pid]


def fnat(proto: str, conns: int, ports: Sequence[int]) -> Forwarder:
    @contextlib.contextmanager
    def run(top: Cables) -> Iterator[list[int]]:
        balancer = Balancer(top, conns=conns + conns // 8 + 4096)
        balancer.start(60)
        balancer.change({"op": "addr.add", "addr": VIP, "port": top.vip_port})
        for device, address, mac in top.known:
            port_name = next(name for name, of in top.ports.items() if of == device)
            balancer.change({"op": "neigh.add", "addr": address, "mac": mac, "port": port_name})
        for port in ports:
            balancer.serve(proto, port, servers=SERVERS, lips=LIPS)
        try:
            yield list(balancer.pids().values())
        finally:
            balancer.stop()

    return run


def ruleset(proto: str, ports: Sequence[int]) -> str:
    servers = ", ".join(f"{i} : {address}" for i, address in enumerate(SERVERS))
    chains = [f"chain s{port} {{ dnat to numgen inc mod {len(SERVERS)} map {{ {servers} }}; }}" for port in ports]
    elements = ", ".join(f"{VIP} . {port} : jump s{port}" for port in ports)
    return "\n".join(
        [
            "table ip lb {",
            *chains,
            f"map services {{ type ipv4_addr . inet_service : verdict; elements = {{ {elements} }} }}",
            f"chain pre {{ type nat hook prerouting priority dstnat; ip daddr . {proto} dport vmap @services; }}",
            f"chain post {{ type nat hook postrouting priority srcnat; oif lan snat to {LIPS[0]}-{LIPS[-1]}; }}",
            "}",
        ]
    )


def nftables(proto: str, ports: Sequence[int], reflector: Path | None = None, rps: bool = False) -> Forwarder:
    """`reflector`: the object whose program `pass` lets veth take what the reflector sends."""

    @contextlib.contextmanager
    def run(top: Cables) -> Iterator[list[int]]:
        top.own("wan", [VIP])
        top.own("lan", LIPS)
        top.run("lb", "nft", "-f", "-", stdin=ruleset(proto, ports))
        times = ("udp_timeout=300", "udp_timeout_stream=300", "tcp_timeout_time_wait=7")
        top.run("lb", "sysctl", "-qw", "net.ipv4.ip_forward=1", *(f"net.netfilter.nf_conntrack_{t}" for t in times))
        if reflector:
            top.run("lb", "ip", "link", "set", "dev", "lan", "xdp", "obj", str(reflector), "program", "pass")
        for device in ("wan", "lan") if rps else ():
            mask = f"{1 << FORWARDER_CPU:x}"
            top.run("lb", "sh", "-c", f"echo {mask} >/sys/class/net/{device}/queues/rx-0/rps_cpus")
        yield []

    return run


@contextlib.contextmanager
def haproxy(top: Cables) -> Iterator[list[int]]:
    top.own("wan", [VIP])
    config = top.directory / "haproxy.cfg"
    servers = "\n".join(f"    server s{i} {address}:80" for i, address in enumerate(SERVERS))
    config.write_text(HAPROXY.format(vip=VIP, servers=servers))
    words = ("taskset", "-c", str(FORWARDER_CPU), "haproxy", "-db", "-f", str(config))
    process = top.spawn("lb", *words)
    wait_until(lambda: f"{VIP}:80" in top.run("lb", "ss", "-Hltn").stdout, "haproxy listens")
    yield [process.pid]


@contextlib.contextmanager
def conntrack_room(conns: int) -> Iterator[None]:
    """Room for so many connections in the kernel's table, which all namespaces share, with a bucket for each of the two
    keys of a connection."""
    before = CONNTRACK_MAX.read_text(), CONNTRACK_HASH.read_text()
    CONNTRACK_HASH.write_text(str(max(2 * conns, int(before[1]))))
    CONNTRACK_MAX.write_text(str(max(conns, int(before[0]))))
    try:
        yield
    finally:
        CONNTRACK_HASH.write_text(before[1])
        CONNTRACK_MAX.write_text(before[0])


def missing() -> dict[str, str]:
    """Peers that cannot run here, and why."""
    found = {}
    if not shutil.which("haproxy"):
        found["haproxy"] = "haproxy is not installed"
    if not shutil.which("nft"):
        found["nftables"] = "nft is not installed"
    else:
        with contextlib.ExitStack() as stack:
            top = Cables("try", stack)
            tried = top.run("lb", "nft", "-f", "-", stdin=ruleset("udp", [VPORT]), check=False)
            if tried.returncode or not CONNTRACK_MAX.exists():
                why = (tried.stderr.strip().splitlines() or ["no connection tracking"])[0]
                found["nftables"] = f"this kernel has no nftables NAT ({why})"
    return found


# ---- packets ----


def compile_reflector(directory: Path) -> Path:
    out = directory / "reflect.bpf.o"
    include = f"-I/usr/include/{sysconfig.get_config_var('MULTIARCH')}"
    command = ["clang", "-target", "bpf", "-O2", "-g", include, "-c", str(REFLECTOR), "-o", str(out)]
    subprocess.run(command, check=True)
    return out


def target(top: Cables, pids: list[int], conns: int, translates: bool) -> dict[str, Any]:
    """A forwarder as the load wants it described; `translates`: servers must see LIPs."""
    clients = [CLIENTS, f"10.1.{conns // 50000}.255"]
    return {
        "name": top.name,
        "client": top.base + "client",
        "server": top.base + "rs",
        "pids": pids,
        "traffic": {
            "gateway_mac": top.mac("rs", "eth0") if top.wire else top.mac("lb", "wan"),
            "seen_from": [LIPS[0], LIPS[-1]] if translates else clients,
            "seen_to": [SERVERS[0], SERVERS[-1]] if translates else [VIP, VIP],
        },
    }


def packets(conns: int, services: int, rounds: int, seconds: float, without: dict[str, str]) -> dict[str, Any]:
    """UDP both ways through each forwarder in turn: what outside.py says of each."""
    ports = range(VPORT, VPORT + services)
    with contextlib.ExitStack() as stack:
        targets: list[dict[str, Any]] = []
        tops: dict[str, Cables] = {}
        if "nftables" not in without:
            stack.enter_context(conntrack_room(2 * conns + 100_000))

        def put(name: str, forwarder: Forwarder, translates: bool) -> None:
            tops[name] = top = Cables(name, stack)
            pids = stack.enter_context(forwarder(top))
            targets.append(target(top, pids, conns, translates))

        put("wire", wire, False)
        reflector = compile_reflector(tops["wire"].directory)
        put("bare", bare, False)
        put("fnat", fnat("udp", conns, ports), True)
        if "nftables" not in without:
            put("nftables", nftables("udp", ports, reflector), True)
            put("nft-rps", nftables("udp", ports, reflector, rps=True), True)
        order = {
            "targets": targets,
            "reflector": str(reflector),
            "traffic": {
                "cip": CLIENTS,
                "vip": VIP,
                "vport": VPORT,
                "flows": conns,
                "services": services,
                "window": WINDOW,
            },
            "rounds": rounds,
            "seconds": seconds,
            "rate": 0,
        }
        said: dict[str, Any] = json.loads(tops["wire"].python("client", LOAD_CPU, OUTSIDE, "send", json.dumps(order)))
    for name, load in said.items():
        if not all(run["returned"] for run in load["runs"]):
            raise RuntimeError(f"{name}: nothing came back in one of {rounds} rounds of {conns} connections")
    return {"conns": conns, "services": services, "targets": said}


# ---- requests ----

WRK = ("wrk", "-t", "1")
SHORT = ("-c", "64", "-H", "Connection: close")
KEPT = ("-c", "64")


def wrk(top: Cables, seconds: int, options: Sequence[str]) -> dict[str, float]:
    """Requests a second; one that was not answered with 200 is an error."""
    words = ("taskset", "-c", str(LOAD_CPU), *WRK, "-d", f"{seconds}s", *options, f"http://{VIP}/")
    out = top.run("client", *words).stdout
    found = WHO.search(out)
    if not found or "Non-2xx" in out:
        raise RuntimeError(f"{top.name}: wrk says\n{out}")
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", out)
    return {"per_s": float(found[1]), "errors": sum(map(int, errors.groups())) if errors else 0}


def requests(rounds: int, seconds: int, rate: float, without: dict[str, str]) -> dict[str, Any]:
    """HTTP to nginx through each forwarder in turn: short connections, kept ones, paced ones."""
    forwarders: dict[str, Forwarder] = {"wire": wire, "fnat": fnat("tcp", 1_000_000, [80])}
    if "nftables" not in without:
        forwarders["nftables"] = nftables("tcp", [80])
        forwarders["nft-rps"] = nftables("tcp", [80], rps=True)
    if "haproxy" not in without:
        forwarders["haproxy"] = haproxy
    with contextlib.ExitStack() as stack:
        tops = {}
        if "nftables" not in without:
            stack.enter_context(conntrack_room(2_000_000))
        for name, forwarder in forwarders.items():
            tops[name] = top = Cables(name, stack)
            config = top.directory / "nginx.conf"
            config.write_text(NGINX.format(top.directory))
            error_log = str(top.directory / "error.log")
            words = ("nginx", "-c", str(config), "-p", str(top.directory), "-e", error_log)
            top.spawn("rs", "taskset", "-c", str(LOAD_CPU), *words)
            stack.enter_context(forwarder(top))
            wait_until(lambda top=top: ":80 " in top.run("rs", "ss", "-Hltn").stdout, "nginx listens")  # type: ignore[misc]
            top.run("client", "curl", "-sS", "--fail", "--max-time", "5", "--retry", "5", f"http://{VIP}/")
        rows: dict[str, Any] = {name: {"short": [], "kept": [], "paced": []} for name in tops}
        for _ in range(rounds):
            for name, top in tops.items():
                rows[name]["short"].append(wrk(top, seconds, SHORT))
                rows[name]["kept"].append(wrk(top, seconds, KEPT))
                asked = top.python("client", LOAD_CPU, OUTSIDE, "ask", VIP, "80", f"{rate:g}", str(seconds))
                rows[name]["paced"].append(json.loads(asked))
                time.sleep(0.1)
    return {"rate": rate, "targets": rows}
