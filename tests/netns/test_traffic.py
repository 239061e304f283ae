"""Real clients, real nginx, fnat between them on native AF_XDP, default offloads: what goes in comes out.

FNAT_TEST_MIB (64), FNAT_TEST_SECONDS (3) and FNAT_TEST_PAIRS (10000) say how much.
"""

from __future__ import annotations

import collections
import hashlib
import os
import re

import pytest
from topology import ECHO, HTTP, LIPS, SERVERS, SINK, Balancer, Conversation, Topology, wait_until

MIB = int(os.environ.get("FNAT_TEST_MIB", "64"))
SECONDS = int(os.environ.get("FNAT_TEST_SECONDS", "3"))
PAIRS = int(os.environ.get("FNAT_TEST_PAIRS", "10000"))


def logged(balancer: Balancer) -> int:
    return sum(len(server.clients()) for server in balancer.topology.servers)


def test_requests_by_turns(balancer: Balancer) -> None:
    """Round robin, each worker for itself, splits evenly; the servers see LIPs, the kernel forwards nothing."""
    top = balancer.topology
    before = balancer.service("tcp", HTTP)["stats"]["conns"]
    answers = collections.Counter(top.curl().stdout.strip() for _ in range(20))
    assert answers.keys() == {"rs1", "rs2"}
    assert abs(answers["rs1"] - 10) <= len(balancer.api("/v1/workers")) - 1
    assert {client.split(":")[0] for server in top.servers for client in server.clients()} <= set(LIPS)
    assert top.run("lb", "cat", "/proc/sys/net/ipv4/ip_forward").stdout == "0\n"
    assert balancer.service("tcp", HTTP)["stats"]["conns"] == before + 20


def test_nobody_switched_offloads_off(balancer: Balancer) -> None:
    """The peers leave checksums to hardware that is not there; the worker completes them."""
    balancer.topology.curl()
    assert balancer.counters()["checksums_completed"] > 0
    assert "tx-checksumming: on" in balancer.topology.run("client", "ethtool", "-k", "eth0").stdout


def test_big_download(balancer: Balancer) -> None:
    top = balancer.topology
    block, digest = os.urandom(1 << 20), hashlib.sha256()
    first, second = (server.directory / "www" / "file" for server in top.servers)
    with first.open("wb") as file:
        for _ in range(MIB):
            file.write(block)
            digest.update(block)
    second.hardlink_to(first)
    out = top.run("client", "sh", "-c", f"curl -sS --fail http://{top.vip}/file | sha256sum", timeout=240).stdout
    assert out.split()[0] == digest.hexdigest()


def test_big_upload_then_half_close(balancer: Balancer) -> None:
    """The answer comes after the client's FIN: a half-closed connection carries on."""
    report = balancer.topology.peer("upload", balancer.topology.vip, str(SINK), str(MIB << 20), timeout=240)
    assert report["received"] == report["sent"]


def netstat(top: Topology, name: str) -> dict[str, int]:
    """A namespace's TcpExt counters (nstat -a)."""
    names, values = top.run(name, "cat", "/proc/net/netstat").stdout.splitlines()[:2]
    return dict(zip(names.split()[1:], map(int, values.split()[1:]), strict=True))


def hammer(top: Topology, vport: int) -> int:
    """wrk with a connection for each request; how many requests, none of which failed in any way."""
    words = ("wrk", "-t1", "-c32", f"-d{SECONDS}s", "-H", "Connection: close", f"http://{top.vip}:{vport}/")
    out = top.run("client", *words, timeout=SECONDS + 60).stdout
    assert "Socket errors" not in out and "Non-2xx" not in out, out
    match = re.search(r"(\d+) requests in", out)
    assert match is not None and int(match[1]) > 200, out
    return int(match[1])


def test_short_connections(balancer: Balancer) -> None:
    """No error of any of wrk's classes, and nginx has seen each request."""
    before = logged(balancer)
    done = hammer(balancer.topology, HTTP)
    wait_until(lambda: done <= logged(balancer) - before, "nginx has logged every request")
    assert logged(balancer) - before <= done + 32  # those under way at the end


def test_reused_ports(balancer: Balancer) -> None:
    """One LIP towards one server, so that in SECONDS=60 ports come round while the server holds them in TIME_WAIT: the
    server takes each SYN for a new connection."""
    top = balancer.topology
    balancer.serve("tcp", HTTP + 1, servers=(), lips=LIPS[:1])
    name = {"proto": "tcp", "vip": top.vip, "vport": HTTP + 1}
    try:
        balancer.change({"op": "server.add", "service": name, "rip": SERVERS[0], "rport": HTTP})
        before = netstat(top, "rs1")
        hammer(top, HTTP + 1)
        after = netstat(top, "rs1")
        suspicious = [key for key in after if key.startswith("PAWS") or key in ("TCPChallengeACK", "TCPSYNChallenge")]
        assert suspicious
        assert {key: after[key] - before[key] for key in suspicious} == dict.fromkeys(suspicious, 0)
    finally:
        balancer.change({"op": "service.del", **name})


def test_udp_pairs(balancer: Balancer) -> None:
    before = balancer.service("udp", ECHO)["stats"]
    report = balancer.topology.peer("echo", balancer.topology.vip, str(ECHO), str(PAIRS), "16", timeout=240)
    assert report == {"sent": PAIRS, "answered": PAIRS, "wrong": 0}
    after = balancer.service("udp", ECHO)["stats"]
    assert [after[key] - before[key] for key in ("in_packets", "out_packets")] == [PAIRS, PAIRS]


def test_ping(balancer: Balancer) -> None:
    """VIP and LIP answer from the worker, the host's own address from the kernel."""
    top = balancer.topology
    before = balancer.counters()["echo_replies_sent"]
    for name, address in (("client", top.vip), ("rs1", LIPS[0]), ("rs2", "192.168.100.1")):
        out = top.run(name, "ping", "-c3", "-i0.1", "-W2", address).stdout
        assert "3 received" in out, out
    assert balancer.counters()["echo_replies_sent"] == before + 6


def test_host_reaches_out_and_is_reached(balancer: Balancer) -> None:
    """The kernel keeps its NIC: what is not owned passes, both ways."""
    top = balancer.topology
    assert top.run("lb", "curl", "-sS", "--max-time", "5", f"http://{SERVERS[0]}/").stdout == "rs1\n"
    assert (
        "1 received" in top.run("client", "ping", "-c1", "-W2", "10.0.0.1" if top.arms == 2 else "192.168.100.1").stdout
    )


def test_port_that_nobody_serves(balancer: Balancer) -> None:
    """A SYN to an owned address without a service is refused at once."""
    before = balancer.counters()["resets_sent"]
    report = balancer.topology.peer("connect", balancer.topology.vip, "82")
    assert report["end"] == "ECONNREFUSED"
    assert report["seconds"] < 1
    assert balancer.counters()["resets_sent"] == before + 1


@pytest.mark.parametrize(("no_rs", "end"), [("reset", "ECONNREFUSED"), ("drop", "TIMEOUT")])
def test_service_without_server(balancer: Balancer, no_rs: str, end: str) -> None:
    balancer.serve("tcp", 8080, servers=(), no_rs=no_rs)
    try:
        assert balancer.topology.peer("connect", balancer.topology.vip, "8080")["end"] == end
    finally:
        balancer.change({"op": "service.del", "proto": "tcp", "vip": balancer.topology.vip, "vport": 8080})


@pytest.mark.parametrize("how", ["-e -t {vip}:80 -r 192.168.100.2:80 -b -w 0", "-d -t {vip}:80 -r 192.168.100.2:80"])
def test_drain(balancer: Balancer, how: str) -> None:
    """Weight 0, or removal: the open connection goes on, new ones go elsewhere; then it takes its turns again."""
    top = balancer.topology
    talks: list[Conversation] = []
    removed = False
    try:
        while not talks or talks[-1].ask() != "rs1":
            talks.append(top.talk())
        balancer.ipvsadm(how.format(vip=top.vip))
        removed = True
        assert {top.curl().stdout for _ in range(6)} == {"rs2\n"}
        assert [talks[-1].ask() for _ in range(3)] == ["rs1"] * 3
    finally:
        if removed:
            verb = "-e" if how.startswith("-e") else "-a"
            balancer.ipvsadm(f"{verb} -t {top.vip}:80 -r 192.168.100.2:80 -b -w 1")
        for talk in talks:
            talk.end()
    assert {top.curl().stdout for _ in range(8)} == {"rs1\n", "rs2\n"}


def test_listed_connection_is_the_real_one(balancer: Balancer) -> None:
    """-lnc names the four ends as client and server see them."""
    top = balancer.topology
    talk = top.talk()
    server = top.servers[int(talk.ask().removeprefix("rs")) - 1]
    lines = [
        line.split() for line in balancer.ipvsadm("-lnc").splitlines() if f"{top.client_address}:{talk.port} " in line
    ]
    talk.end()
    assert len(lines) == 1
    proto, _, state, client, vip, lip, rs = lines[0]
    assert (proto[-4:], state, client, vip) == ("]tcp", "TCP_EST", f"{top.client_address}:{talk.port}", f"{top.vip}:80")
    assert (lip, rs) == (server.clients()[-1], f"{server.address}:80")


def test_nothing_is_held_when_all_has_ended(balancer: Balancer) -> None:
    """Every counter of things taken is zero; no packet was dropped for want of a frame, a port or room."""
    taken = ("conns", "half_open", "lip_ports", "endpoints", "port_chunks", "waiting")
    wait_until(lambda: not any(balancer.counters()[name] for name in taken), "all taken counters are zero", 20)
    counters = balancer.counters()
    assert counters["conns_opened"] == counters["conns_closed"] > 0
    for reason in ("no_frame", "no_lip_port", "table_full", "tx_full", "neigh_queue_full", "ip_checksum", "truncated"):
        assert counters[reason] == 0, reason
