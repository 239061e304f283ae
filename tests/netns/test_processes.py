"""Start, stop, kill: what is left, what goes on, what the next start mends."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import idle
import pytest
from topology import ECHO, HTTP, Balancer, fnat_program, wait_until

PROCESSES = ("keeper", "dataplane", "control")


def leftovers(balancer: Balancer) -> list[str]:
    """What a stopped fnat must not leave in the balancer's namespace or among the processes."""
    top = balancer.topology
    found = [f"XDP program: {line}" for line in top.run("lb", "ip", "link").stdout.splitlines() if " xdp" in line]
    found += [
        f"device: {line}" for line in top.run("lb", "ip", "-o", "link", "show", "type", "tun").stdout.splitlines()
    ]
    found += [f"AF_XDP socket: {line}" for line in top.run("lb", "ss", "-H", "--xdp").stdout.splitlines()]
    pids = subprocess.run(
        ["ip", "netns", "pids", top.base + "lb"], check=True, capture_output=True, text=True
    ).stdout.split()
    for pid in pids:
        with contextlib.suppress(OSError):  # it ends while we look
            line = Path("/proc", pid, "cmdline").read_text()
            found += [f"process: {line}"] * bool(line)
    return found + [f"file: {path}" for path in (balancer.socket, balancer.state_dir / "ports.json") if path.exists()]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def stop(balancer: Balancer, *options: str) -> int:
    words = ("stop", "--state-dir", str(balancer.state_dir), *options)
    return balancer.topology.run("lb", fnat_program("fnat"), *words, check=False, env=balancer.environment).returncode


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop_leaves_nothing_but_the_arena(own_balancer: Balancer, number: int) -> None:
    """The signal ends everything, exit code 0; an open connection goes on after the next start; `stop --clean` takes
    the rest."""
    top = own_balancer.topology
    arena = (own_balancer.state_dir / "arena").readlink()
    talk = top.talk()
    server = talk.ask()
    assert server in ("rs1", "rs2")
    assert own_balancer.process is not None
    os.killpg(own_balancer.process.pid, number)
    assert own_balancer.process.wait(timeout=15) == 0
    assert leftovers(own_balancer) == []
    assert any(arena.iterdir())
    own_balancer.start()
    assert talk.ask() == server
    assert top.curl().stdout in ("rs1\n", "rs2\n")
    talk.end()
    assert stop(own_balancer, "--clean") == 0
    assert leftovers(own_balancer) == []
    assert not arena.exists()
    assert stop(own_balancer) == 3


def test_quiet_balancer_sleeps_and_is_awake_at_once(own_balancer: Balancer) -> None:
    """Without traffic all processes together use less than 3 % of a core; the first packet is through within 1 ms."""
    own_balancer.serve("udp", ECHO)
    own_balancer.topology.curl()
    idle.first_packet(own_balancer.topology)  # MAC addresses are known from now on
    time.sleep(1)
    report = idle.measure(own_balancer, 5)
    assert report["total_percent"] < 3, report
    assert report["first_packet_us"] is not None and report["first_packet_us"] < 1000, report


def test_second_fnat_is_refused(own_balancer: Balancer) -> None:
    done = own_balancer.topology.run("lb", *own_balancer.command(), check=False)
    assert done.returncode == 1
    assert re.fullmatch(rf"fnat: already running as pid {own_balancer.pids()['keeper']} .*\n", done.stderr), done.stderr
    assert own_balancer.topology.curl().stdout in ("rs1\n", "rs2\n")


def test_second_fnat_on_the_same_device_is_refused(own_balancer: Balancer) -> None:
    """With a state directory of its own it gets as far as the device; the first one goes on untouched."""
    top = own_balancer.topology
    words = ("--state-dir", str(top.directory / "other"), "--socket", str(top.directory / "other" / "s"))
    command = (fnat_program("fnat"), "run", *words, "--port", "wan=xdp:wan", "--conns", "2000")
    done = top.run("lb", *command, check=False)
    assert done.returncode == 1
    assert re.fullmatch(r"fnat: wan: another fnat runs on this device; stop it first\n", done.stderr), done.stderr
    assert top.curl().stdout in ("rs1\n", "rs2\n")


@pytest.mark.parametrize("process", PROCESSES)
def test_killed_process(own_balancer: Balancer, process: str) -> None:
    """SIGKILL of any one: the host's own traffic goes on, the open connection survives, and the service is back
    without a second's thought, by the keeper or by the next start."""
    top = own_balancer.topology
    talk = top.talk()
    server = talk.ask()
    before = own_balancer.pids()
    ping = top.spawn("client", "ping", "-i0.05", "-c60", "-W2", "10.0.0.1", log=top.directory / "ping.log")
    os.kill(before[process], signal.SIGKILL)
    if process == "keeper":
        assert own_balancer.process is not None
        own_balancer.process.wait(timeout=10)
        wait_until(lambda: not any(map(alive, before.values())), "the children end with the keeper")
        own_balancer.start()
    elif process == "control":
        assert top.curl().stdout in ("rs1\n", "rs2\n")  # at once: control is not on the packet's way
        wait_until(lambda: own_balancer.pids()["control"] not in (0, before["control"]), "control is started again")
        assert own_balancer.pids()["dataplane"] == before["dataplane"]
    else:
        wait_until(
            lambda: own_balancer.pids()["dataplane"] not in (0, before["dataplane"]), "the data plane is started again"
        )
    wait_until(own_balancer.answers, "fnat answers", 20)
    assert talk.ask() == server
    assert {top.curl().stdout for _ in range(4)} == {"rs1\n", "rs2\n"}
    assert own_balancer.ipvsadm("-ln").count("->") == 3  # header and 2 servers
    talk.end()
    assert ping.wait(timeout=10) == 0
    assert "60 received, 0% packet loss" in (top.directory / "ping.log").read_text()
    assert stop(own_balancer) == 0
    assert leftovers(own_balancer) == []


def test_killed_together(own_balancer: Balancer) -> None:
    """All three at once: packets to owned addresses are dropped, not answered with RST by the host, so the open
    connection outlives it; the rest passes; the next start finds the XDP program and replaces it."""
    top = own_balancer.topology
    talk = top.talk()
    server = talk.ask()
    for pid in own_balancer.pids().values():
        os.kill(pid, signal.SIGKILL)
    assert own_balancer.process is not None
    own_balancer.process.wait(timeout=10)
    assert top.peer("connect", top.vip, str(HTTP))["end"] == "TIMEOUT"
    assert "1 received" in top.run("client", "ping", "-c1", "-W2", "10.0.0.1").stdout
    own_balancer.start()
    assert talk.ask() == server
    talk.end()
    assert stop(own_balancer) == 0
    assert leftovers(own_balancer) == []


def test_changes_survive_a_restart(own_balancer: Balancer) -> None:
    """What a command changed is on disk when it returns."""
    own_balancer.ipvsadm(f"-e -t {own_balancer.topology.vip}:80 -r 192.168.100.2:80 -b -w 7")
    before = own_balancer.ipvsadm("-ln")
    for pid in own_balancer.pids().values():
        os.kill(pid, signal.SIGKILL)
    assert own_balancer.process is not None
    own_balancer.process.wait(timeout=10)
    own_balancer.start()
    assert own_balancer.ipvsadm("-ln") == before
