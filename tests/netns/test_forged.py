"""Forged segments among kernels: the connection lives on, and a Linux RS answers when it is asked whether it does."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from topology import HTTP, Balancer, wait_until

sys.path.insert(0, str(Path(__file__).parents[1]))
import packets as wire
from packets import RST, SYN

FORGE = """
import socket, sys
out = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
for line in sys.stdin:
    out.sendto(bytes.fromhex(line), (sys.argv[1], 0))
"""
STEP = 1 << 22  # so that four lie within the window of a usual RS (scale 7)


def states(balancer: Balancer) -> list[str]:
    return [c["state"] for c in balancer.api("/v1/conns")["conns"]]


@pytest.mark.parametrize("flags", [RST, SYN])
def test_forged_segments_end_no_connection_of_kernels(own_balancer: Balancer, flags: int) -> None:
    top = own_balancer.topology
    talk = top.talk()
    assert talk.ask() in ("rs1", "rs2")
    (conn,) = own_balancer.api("/v1/conns")["conns"]
    client = conn["cip"], conn["cport"]
    segments = [wire.tcp(*client, top.vip, HTTP, flags, seq=seq)[14:] for seq in range(77, 1 << 32, STEP)]
    before = own_balancer.counters()
    top.run("client", sys.executable, "-c", FORGE, top.vip, stdin="".join(s.hex() + "\n" for s in segments))
    wait_until(lambda: own_balancer.counters()["to_rs"] >= before["to_rs"] + len(segments), "they have passed")
    assert states(own_balancer) == ["TCP_EST"]
    wait_until(lambda: own_balancer.counters()["probes_sent"] > before["probes_sent"], "the RS is asked")
    asked = own_balancer.counters()
    wait_until(lambda: own_balancer.counters()["to_client"] > before["to_client"], "it answers")
    assert asked["probes_sent"] <= before["probes_sent"] + 2
    assert talk.ask() in ("rs1", "rs2")
    assert states(own_balancer) == ["TCP_EST"]
    talk.end()
    wait_until(lambda: states(own_balancer) == [], "it ends when it ends")
