"""What the units rely on: fnat run under their limits, and what it tells systemd by way of a real socket."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from topology import HTTP, Balancer, Topology, wait_until

UNIT = (Path(__file__).parents[2] / "conf/systemd/fnat.service").read_text()
CAPABILITIES = [c.removeprefix("CAP_").lower() for c in re.search(r"^CapabilityBoundingSet=(.*)$", UNIT, re.M)[1].split()]
# prctl(2): no memory both writable and executable (PR_SET_MDWE, Linux 6.3), and no new privileges; then what follows
_LIMITED = """\
import ctypes, os, sys
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0
libc.prctl(65, 1, 0, 0, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""


class Limited(Balancer):
    """Under the unit's capabilities, with MemoryDenyWriteExecute as far as this kernel has it."""

    def command(self) -> list[str]:
        bounds = ",".join(["-all", *(f"+{name}" for name in CAPABILITIES)])
        return ["setpriv", "--bounding-set", bounds, "python3", "-c", _LIMITED, *super().command()]


class Systemd:
    """The socket that a unit is given, and what came by it."""

    def __init__(self, path: Path) -> None:
        self.door = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.door.bind(str(path))
        self.door.settimeout(20)

    def next(self) -> dict[str, str]:
        return dict(line.split("=", 1) for line in self.door.recv(4096).decode().splitlines())

    def silent(self) -> bool:
        self.door.settimeout(0.3)
        try:
            return not self.door.recv(4096)
        except TimeoutError:
            return True
        finally:
            self.door.settimeout(20)


@pytest.fixture(scope="module")
def started() -> Iterator[tuple[Balancer, Systemd]]:
    with Topology(prefix="fnunit") as top:
        top.start_servers()
        systemd = Systemd(top.directory / "notify")
        balancer = Limited(top, config="version = 1\n")
        os.environ["NOTIFY_SOCKET"] = str(top.directory / "notify")
        try:
            balancer.start()
        finally:
            del os.environ["NOTIFY_SOCKET"]
        yield balancer, systemd


def test_ready_means_that_the_api_answers(started: tuple[Balancer, Systemd]) -> None:
    balancer, systemd = started
    first = systemd.next()
    assert first == {"READY": "1", "STATUS": "0 services in force"}
    assert balancer.answers()
    assert systemd.silent()


def test_it_carries_packets_under_the_limits(started: tuple[Balancer, Systemd]) -> None:
    balancer, _ = started
    status = Path(f"/proc/{balancer.pids()['dataplane']}/status").read_text()
    assert f"{sum(1 << number for number in (0, 12, 13, 14, 21, 23, 39)):016x}" == re.search(r"CapBnd:\s+(\w+)", status)[1]
    assert re.search(r"NoNewPrivs:\s+1", status)
    balancer.change({"op": "addr.add", "addr": balancer.topology.vip, "port": balancer.topology.vip_port})
    balancer.serve("tcp", HTTP)
    assert {balancer.topology.curl().stdout for _ in range(4)} == {"rs1\n", "rs2\n"}


def test_a_reload_begins_and_ends(started: tuple[Balancer, Systemd]) -> None:
    """ExecReload is SIGHUP to the main process; a wrong file is over, too, and changes nothing."""
    balancer, systemd = started
    assert "ExecReload=/bin/kill -HUP $MAINPID" in UNIT
    for text in ("version = 1\n", "version = 7\n"):
        (balancer.topology.directory / "fnat.toml").write_text(text)
        os.kill(balancer.pids()["keeper"], signal.SIGHUP)
        begin, end = systemd.next(), systemd.next()
        assert begin.keys() == {"RELOADING", "MONOTONIC_USEC"} and int(begin["MONOTONIC_USEC"]) > 0
        assert end == {"READY": "1", "STATUS": "1 services in force"}


def test_a_dead_control_is_said_and_mended(started: tuple[Balancer, Systemd]) -> None:
    balancer, systemd = started
    (balancer.topology.directory / "fnat.toml").write_text("version = 1\n")
    os.kill(balancer.pids()["control"], signal.SIGKILL)
    assert systemd.next()["STATUS"].startswith("control died (signal SIGKILL); forwarding goes on; ")
    assert systemd.next() == {"READY": "1", "STATUS": "1 services in force"}


def test_stopping_comes_before_the_end(started: tuple[Balancer, Systemd]) -> None:
    balancer, systemd = started
    assert balancer.process is not None
    balancer.process.send_signal(signal.SIGTERM)
    assert systemd.next() == {"STOPPING": "1"}
    assert balancer.process.wait(timeout=15) == 0


def test_what_a_killed_fnat_left_is_cleaned(started: tuple[Balancer, Systemd]) -> None:
    balancer, _ = started
    top = balancer.topology
    balancer.start()
    for pid in balancer.pids().values():
        os.kill(pid, signal.SIGKILL)
    assert balancer.process is not None
    balancer.process.wait(timeout=10)
    wait_until(lambda: not top.run("lb", "ss", "-H", "--xdp").stdout, "its sockets are closed")
    assert " xdp" in top.run("lb", "ip", "link").stdout
    done = balancer.fnat("stop", "--clean", "--state-dir", str(balancer.state_dir))
    assert sorted(re.findall(r"killed fnat left on (\w+)", done.stdout)) == ["lan", "wan"]
    assert " xdp" not in top.run("lb", "ip", "link").stdout


def test_a_running_fnat_is_not_cleaned_away(started: tuple[Balancer, Systemd]) -> None:
    """`stop --clean` of another state directory leaves it alone."""
    balancer, _ = started
    balancer.start()
    words = ("stop", "--clean", "--state-dir", str(balancer.topology.directory / "other"))
    done = subprocess.run(
        balancer.topology.command("lb", [str(Path(sys.executable).with_name("fnat")), *words]), check=False, capture_output=True, text=True
    )
    assert done.returncode == 3
    assert " xdp" in balancer.topology.run("lb", "ip", "link").stdout
    assert {balancer.topology.curl().stdout for _ in range(4)} == {"rs1\n", "rs2\n"}
