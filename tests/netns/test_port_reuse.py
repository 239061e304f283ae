"""One LIP and 64 local ports towards one RS: every port meets the RS's TIME_WAIT within a second, and nobody notices.

FNAT_TEST_SECONDS (3) says how long.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import pytest
from conftest import SHORT
from topology import HTTP, LIPS, LIPS6, SERVERS, SERVERS6, Balancer, Topology

SECONDS = int(os.environ.get("FNAT_TEST_SECONDS", "3"))
CHALLENGES = (
    "TcpExtPAWSActive",
    "TcpExtPAWSEstab",
    "TcpExtPAWSPassive",
    "TcpExtPAWSTimewait",
    "TcpExtTCPSYNChallenge",
    "TcpExtTCPChallengeACK",
    "TcpExtTCPACKSkippedTimeWait",
)


@pytest.fixture(params=["4to4", "6to6", "6to4"])
def scarce(request: pytest.FixtureRequest) -> Iterator[Balancer]:
    """Families of VIP, and of LIP and server."""
    with Topology(prefix="fntest", six=True) as top:
        if request.param.startswith("6"):
            top.vip = "2001:db8:a::100"
        servers, lips = (SERVERS6, LIPS6) if request.param.endswith("6") else (SERVERS, LIPS)
        top.start_servers()
        balancer = Balancer(
            top, config=SHORT.replace("[host.timeouts]", '[host]\nlports = "20000-20063"\n[host.timeouts]')
        )
        balancer.start()
        balancer.change({"op": "addr.add", "addr": top.vip, "port": top.vip_port})
        balancer.serve("tcp", HTTP, servers=servers[:1], lips=lips[:1])
        yield balancer


def counters_of(top: Topology, name: str) -> dict[str, int]:
    rows = top.run(name, "nstat", "-asz").stdout.splitlines()
    values = {
        words[0]: int(words[1]) for words in map(str.split, rows) if len(words) == 3 and not words[0].startswith("#")
    }
    return {key: values[key] for key in CHALLENGES if key in values}


@pytest.mark.parametrize("timestamps", ["1", "0"])
def test_ports_are_reused_within_time_wait(scarce: Balancer, timestamps: str) -> None:
    top = scarce.topology
    top.run("client", "sh", "-c", f"echo {timestamps} > /proc/sys/net/ipv4/tcp_timestamps")
    before = counters_of(top, "rs1")
    assert len(before) >= 5
    host = f"[{top.vip}]" if ":" in top.vip else top.vip
    wrk = ["wrk", "-t1", "-c24", f"-d{SECONDS}s", "-H", "Connection: close", f"http://{host}/"]
    out = top.run("client", *wrk, timeout=SECONDS + 60).stdout
    assert "Socket errors" not in out and "Non-2xx" not in out, out
    match = re.search(r"(\d+) requests in", out)
    assert match is not None and int(match[1]) > 64 * 4, out
    print(f"{match[1]} connections over 64 local ports")
    assert {client.rpartition(":")[2] for client in top.servers[0].clients()} <= {str(p) for p in range(20000, 20064)}
    assert counters_of(top, "rs1") == before
    taken = {name: scarce.counters()[name] for name in ("no_lip_port", "half_open_evicted")}
    assert taken == {"no_lip_port": 0, "half_open_evicted": 0}
