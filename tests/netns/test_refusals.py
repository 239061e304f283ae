"""What cannot work is refused with one line that says what, where and how to mend it; nothing is left half done."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from topology import LIPS, Balancer, Topology, fnat_program

VIP = "10.0.0.100"
NODE = '[node.lb1]\nwan = { nic = "wan" }\nlan = { nic = "lan" }\n'

SERVICE = '[service.web]\nlisten = ["10.0.0.100:80"]\n'

# words of `fnat run` | configuration file | part of the line
RUNS = [
    ("--port wan=xdp:eth7", None, "no device eth7"),
    ("--port wan=eth7", None, "NAME=xdp:DEVICE"),
    ("", None, "no port"),
    ("--port a=xdp:wan --port b=xdp:wan", None, "wan"),
    ("--port wan=xdp:wan --workers 2", None, "--workers 1"),
    ("--port wan=xdp:wan --cpus 1-", None, "not a list of CPUs"),
    ("--port wan=xdp:wan --cpus 4095", None, "cannot run on CPU 4095"),
    ("--port wan=xdp:twin --workers 2 --steering rss", None, "port wan: no answers by RSS: veth shows no"),
    ("--port wan=xdp:twin --workers 2 --steering ntuple", None, "port wan: veth has no flow rules switched on"),
    ("--port wan=xdp:wan --exclusive lan", None, "--exclusive lan"),
    ("--port averylongname=xdp:wan --exclusive averylongname", None, ".kni"),
    ("--port up=xdp:uplink --exclusive up", None, "default route"),
    ("--port wan=xdp:jumbo", None, "mtu 3500"),
    ("--port wan=xdp:taken", None, "XDP"),
    ("--port wan=xdp:wan --conns 2000000000", None, "--conns"),
    ("--config {file}", "version = 1\n[hots]\n", "did you mean 'host'"),
    ("--config {file}", "version = 1\n[host\n", "line 2"),
    ("--config {file}", f'version = 1\n{NODE}{SERVICE}', "no LIP"),
    ("--config {file}", f'version = 1\n{NODE}lips = ["10.0.0.100"]\n{SERVICE}', "also a LIP"),
    ("--config {file}", 'version = 1\n[node.lb1]\nwan = { nic = "eth7" }\n', "eth7"),
    ("--config {file}.gone", None, "No such file"),
]  # fmt: skip

# words of a command on a running fnat | part of the line
COMMANDS = [
    ("fnat-ipvsadm -A -t 10.0.0.300:80", "10.0.0.300"),
    (f"fnat-ipvsadm -A -t {LIPS[0]}:80", "LIP"),
    (f"fnat-ipvsadm -P -z {VIP} -t {VIP}:80 -F dpdk1", "VIP"),
    (f"fnat-ipvsadm -a -t {VIP}:81 -r 192.168.100.2:80 -b", "81"),
    ("fnat-ipvsadm -A -t [ff02::1]:80", "not an address of a host"),
    ("fnat-ipvsadm -A -t 2001:db8::1:80", "[ADDRESS]:PORT"),
    ("fnat-dpip -6 route add default via fe80::1", "the port is not known"),
    (f"fnat-dpip addr add {VIP}/32 dev eth7", "eth7"),
    ("fnat-dpip route add 10.9.0.0/16 via 10.0.0.x dev dpdk1", "10.0.0.x"),
    ("fnat-dpip neigh add 10.0.0.9 lladdr zz:00 dev dpdk1", "zz:00"),
    ("fnat service set tcp 10.0.0.9:80 --scheduler rr", "10.0.0.9:80"),
]


@pytest.fixture(scope="module")
def top() -> Iterator[Topology]:
    with Topology(prefix="fnno") as top:
        for name in ("uplink", "jumbo", "taken"):
            top.ip("lb", "link", "add", name, "type", "veth", "peer", "name", f"{name}-peer")
            top.ip("lb", "link", "set", name, "up")
            top.ip("lb", "link", "set", f"{name}-peer", "up")
        two = ("numrxqueues", "2", "numtxqueues", "2")
        top.ip("lb", "link", "add", "twin", *two, "type", "veth", "peer", "name", "twin-peer", *two)
        top.ip("lb", "link", "set", "twin", "up")
        top.ip("lb", "addr", "add", "10.77.0.1/24", "dev", "uplink")
        top.ip("lb", "route", "add", "default", "via", "10.77.0.2")
        top.ip("lb", "link", "set", "jumbo", "mtu", "9000")
        attach_foreign_program(top)
        yield top


def attach_foreign_program(top: Topology) -> None:
    """Somebody else's XDP program on `taken`."""
    source, target = top.directory / "foreign.c", top.directory / "foreign.o"
    source.write_text('__attribute__((section("xdp"), used)) int foreign(void *ctx) { return 2; }\n')
    top.run("lb", "clang", "-O2", "-target", "bpf", "-c", str(source), "-o", str(target))
    top.ip("lb", "link", "set", "dev", "taken", "xdp", "obj", str(target), "sec", "xdp")


def one_line(stderr: str) -> str:
    lines = [line for line in stderr.splitlines() if line]
    assert len(lines) == 1, stderr
    return lines[0]


@pytest.mark.parametrize(("words", "config", "says"), RUNS, ids=[f"{row[0]}-{row[2]}" for row in RUNS])
def test_run_is_refused(top: Topology, tmp_path: Path, words: str, config: str | None, says: str) -> None:
    file = tmp_path / "fnat.toml"
    if config is not None:
        file.write_text(config)
    where = ("--state-dir", str(tmp_path / "state"), "--socket", str(tmp_path / "run" / "s"))
    done = top.run("lb", fnat_program("fnat"), "run", *where, *words.format(file=file).split(), check=False, timeout=30)
    assert done.returncode in (1, 2), done
    assert says in one_line(done.stderr)
    assert done.stdout == ""
    links = top.run("lb", "ip", "-o", "link").stdout
    assert [line.split()[1] for line in links.splitlines() if "xdp" in line.split(">")[1]] == [f"taken@{peer(links)}:"]
    assert not (tmp_path / "state" / "arena").exists()
    assert not (tmp_path / "run" / "s").exists()


def peer(links: str) -> str:
    """The other end of `taken`, as `ip link` writes it."""
    return next(line.split()[1] for line in links.splitlines() if " taken@" in line).removesuffix(":").partition("@")[2]


@pytest.fixture(scope="module")
def running() -> Iterator[Balancer]:
    with Topology(prefix="fnerr") as top:
        balancer = Balancer(top)
        balancer.start()
        balancer.change({"op": "addr.add", "addr": VIP, "port": "dpdk1"})
        balancer.serve("tcp", 80)
        yield balancer


@pytest.mark.parametrize(("words", "says"), COMMANDS)
def test_command_is_refused(running: Balancer, words: str, says: str) -> None:
    """One line, exit code 1 or 2, and what is configured stays."""
    before = running.api("/v1/services"), running.api("/v1/addresses"), running.api("/v1/routes")
    program, *rest = words.split()
    done = running.topology.run("lb", fnat_program(program), *rest, check=False, env=running.environment)
    assert done.returncode in (1, 2)
    assert says in one_line(done.stderr)
    assert before == (running.api("/v1/services"), running.api("/v1/addresses"), running.api("/v1/routes"))


def test_not_running(top: Topology, tmp_path: Path) -> None:
    done = top.run("lb", fnat_program("fnat-ipvsadm"), "-ln", check=False, env={"FNAT_SOCKET": str(tmp_path / "s")})
    assert done.returncode == 3
    assert "not running" in one_line(done.stderr)
