"""Hours in seconds: fnat is stopped and started with its clock ahead (a time namespace), while the kernels' sockets just idle.

A stop keeps the connections, so what was silent for seconds was silent for hours as far as fnat knows.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
from topology import HTTP, PEER, Balancer, Topology, wait_until

from fnat.model import Timeouts

LATER = 9001


@pytest.fixture
def balancer() -> Iterator[Balancer]:
    """With the shipped timeouts."""
    with Topology(prefix="fntime") as top:
        top.start_servers()
        balancer = Balancer(top)
        balancer.start()
        balancer.change({"op": "addr.add", "addr": top.vip, "port": top.vip_port})
        balancer.serve("tcp", HTTP)
        balancer.serve("tcp", LATER)
        yield balancer


def pass_time(balancer: Balancer, seconds: int) -> None:
    assert balancer.stop() == 0
    balancer.ahead += seconds
    balancer.start()


def ask(top: Topology) -> subprocess.Popen[str]:
    words = [sys.executable, str(PEER), "ask", top.vip, str(LATER)]
    process = subprocess.Popen(top.command("client", words), stdout=subprocess.PIPE, text=True, start_new_session=True)
    top.processes.append(process)
    return process


@pytest.mark.parametrize(
    ("seconds", "answered"),
    [(590, True), (Timeouts().close_wait + 40, False)],
    ids=["10 min", "longer than close_wait"],
)
def test_half_close(balancer: Balancer, seconds: int, answered: bool) -> None:
    """The client asks and closes its half; the server thinks for that long, then answers."""
    top = balancer.topology
    thought = top.directory / "thought"
    for server in top.servers:
        top.spawn(server.name, sys.executable, str(PEER), "later", str(LATER), str(thought))
    wait_until(
        lambda: all(f":{LATER} " in top.run(s.name, "ss", "-Hltn").stdout for s in top.servers), "servers listen"
    )
    asking = ask(top)
    assert asking.stdout is not None
    port = asking.stdout.readline().split()[1]
    wait_until(lambda: "CLOSE_WAIT" in balancer.ipvsadm("-lnc"), "the half-closed connection is listed")
    pass_time(balancer, seconds)
    if answered:
        thought.touch()
        assert asking.stdout.readline() == "questionquestion\n"
        wait_until(lambda: "CLOSE_WAIT" not in balancer.ipvsadm("-lnc"), "both halves are closed")
    else:
        wait_until(lambda: f":{port} " not in balancer.ipvsadm("-lnc"), "the connection has ended", 5)


@pytest.mark.parametrize(("hours", "answered"), [(2.0, "rs"), (2.1, "E")], ids=["within 2 h 4 min", "after 2 h 4 min"])
def test_established(balancer: Balancer, hours: float, answered: str) -> None:
    """An idle connection answers after two hours; after its time both ends are told by a RST."""
    talk = balancer.topology.talk()
    assert talk.ask() in ("rs1", "rs2")
    pass_time(balancer, int(hours * 3600))
    if answered == "rs":
        assert talk.ask() in ("rs1", "rs2")
    else:
        wait_until(lambda: not balancer.counters()["conns"], "the connection has ended", 5)
        assert talk.ask() in ("ECONNRESET", "EPIPE", "closed")
