"""Real programs through the balancer, for each pair of families: a row is an application, an assertion what its user gets.

The servers know nothing of the balancer, the client knows the VIP only.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import daemons
import pytest
from daemons import DNS, HTTPS, IPERF, NAME, QUIC, SSH
from topology import ECHO, HTTP, LIPS, LIPS6, SERVERS, SERVERS6, SINK, Balancer, Topology, wait_until

QUIC_PROGRAM = str(Path(__file__).with_name("quic.py"))
WHO = {"rs1", "rs2"}
MIB = 8
SHORT = """\
version = 1
[host.timeouts]
time_wait = 1
close = 1
last_ack = 1
udp_oneway = 3
udp_normal = 3
"""
# Pairs of families: the VIP, and what stands behind it.
PAIRS = {
    "4to4": ("10.0.0.100", SERVERS, LIPS),
    "6to6": ("2001:db8:a::100", SERVERS6, LIPS6),
    "6to4": ("2001:db8:a::104", SERVERS, LIPS),
    "4to6": ("10.0.0.106", SERVERS6, LIPS6),
}
ONE_SERVER = {IPERF}  # a control connection and one for data, which must meet


@dataclass
class Bench:
    """The balancer, and one pair of families."""

    balancer: Balancer
    family: str
    keys: Path

    @property
    def top(self) -> Topology:
        return self.balancer.topology

    @property
    def vip(self) -> str:
        return PAIRS[self.family][0]

    @property
    def host(self) -> str:
        """In a URL."""
        return f"[{self.vip}]" if ":" in self.vip else self.vip

    def run(self, *words: str, timeout: float = 60, stdin: str | None = None) -> str:
        return self.top.run("client", *words, timeout=timeout, stdin=stdin).stdout

    def curl(self, url: str, *options: str) -> str:
        resolve = f"{NAME}:{HTTPS}:{self.host}"
        secure = ("--cacert", str(self.keys / "certificate.pem"), "--resolve", resolve)
        return self.run("curl", "-sS", "--fail", "--max-time", "10", *secure, *options, url)


# ---- one function for each application ----


def http1(b: Bench) -> None:
    assert {b.curl(f"http://{b.host}:{HTTP}/").strip() for _ in range(4)} == WHO
    assert b.curl(f"http://{b.host}/", "--http1.1", "-w", "%{http_version}").endswith("1.1")


def https1(b: Bench) -> None:
    out = b.curl(f"https://{NAME}/", "--http1.1", "-w", "%{http_version} %{ssl_verify_result}")
    assert out.split()[0] in WHO and out.split()[1:] == ["1.1", "0"]


def http2(b: Bench) -> None:
    """Eight streams of one connection."""
    urls = [f"https://{NAME}/file?{n}" for n in range(8)]
    done = b.top.run(
        "client",
        *("curl", "-sS", "--fail", "--http2", "--parallel", "--max-time", "20"),
        *("--cacert", str(b.keys / "certificate.pem"), "--resolve", f"{NAME}:{HTTPS}:{b.host}"),
        *("-w", "%{http_version} %{size_download}\n"),
        *(word for url in urls for word in ("-o", "/dev/null", url)),
    )
    assert done.stdout.split("\n")[:-1] == [f"2 {MIB << 20}"] * 8


def http3(b: Bench) -> None:
    words = (sys.executable, QUIC_PROGRAM, "get", b.vip, str(QUIC), str(b.keys / "certificate.pem"))
    answer = json.loads(b.run(*words, "/"))
    assert (answer["status"], answer["text"] in WHO) == ("200", True)
    answer = json.loads(b.run(*words, "/bytes/300000"))
    assert (answer["status"], answer["sha256"]) == ("200", hashlib.sha256(bytes(300000)).hexdigest())


def dns_udp(b: Bench) -> None:
    seen = {b.run("dig", f"@{b.vip}", "who.test", "TXT", "+short", "+tries=1").strip().strip('"') for _ in range(6)}
    assert seen == WHO


def dns_large(b: Bench) -> None:
    """An answer in two fragments."""
    out = b.run("dig", f"@{b.vip}", "large.test", "TXT", "+tries=1", "+bufsize=4096", "+ignore")
    assert "(UDP)" in out and out.count("x" * 200) == 12, out


def dns_tcp(b: Bench) -> None:
    out = b.run("dig", f"@{b.vip}", "large.test", "TXT", "+tries=1")  # cut short over UDP, so dig asks over TCP
    assert "(TCP)" in out and out.count("x" * 200) == 12, out


def ssh(b: Bench) -> None:
    options = ("-i", str(b.keys / "user"), "-o", "BatchMode=yes", "-o", "UserKnownHostsFile=/dev/null", "-o")
    words = ("ssh", "-q", *options, "StrictHostKeyChecking=no", "-p", str(SSH), f"root@{b.vip}")
    assert b.run(*words, "echo $SERVER").strip() in WHO
    text = "0123456789abcdef" * (1 << 16)
    assert b.run(*words, "sha256sum", stdin=text).split()[0] == hashlib.sha256(text.encode()).hexdigest()


def iperf(b: Bench, *options: str) -> dict[str, float]:
    out = json.loads(b.run("iperf3", "-c", b.vip, "-p", str(IPERF), "-J", "-t", "1", *options))
    assert "error" not in out, out["error"]
    ends: dict[str, dict[str, float]] = out["end"]
    return ends.get("sum_received") or ends["sum"]


def iperf_tcp(b: Bench) -> None:
    """Up, then down."""
    for options in ((), ("-R",)):
        assert iperf(b, *options)["bits_per_second"] > 20e6


def iperf_udp(b: Bench) -> None:
    for options in ((), ("-R",)):
        end = iperf(b, "-u", "-b", "10M", "-l", "1200", *options)
        assert end["packets"] > 500 and end["lost_percent"] < 5, end


def echo_udp(b: Bench) -> None:
    assert b.top.peer("echo", b.vip, str(ECHO), "1000", "8") == {"sent": 1000, "answered": 1000, "wrong": 0}


def large_datagrams(b: Bench) -> None:
    """Questions and answers of up to 6 000 bytes."""
    report = b.top.peer("echo", b.vip, str(ECHO), "200", "4", "6000")
    assert report == {"sent": 200, "answered": 200, "wrong": 0}


def upload(b: Bench) -> None:
    report = b.top.peer("upload", b.vip, str(SINK), str(MIB << 20))
    assert report["received"] == report["sent"]


def download(b: Bench) -> None:
    out = b.run("sh", "-c", f"curl -sS --fail --max-time 60 'http://{b.host}/file' | sha256sum")
    expected = hashlib.sha256((b.top.servers[0].directory / "www" / "file").read_bytes()).hexdigest()
    assert out.split()[0] == expected


def lossy(b: Bench) -> None:
    """Both ends lose one TCP segment of fifty."""
    b.top.lose(2)
    try:
        for _ in range(3):
            download(b)
            upload(b)
        assert b.top.lost() > 0
    finally:
        b.top.lose(0)


def short_connections(b: Bench) -> None:
    out = b.run("wrk", "-t1", "-c16", "-d1s", "-H", "Connection: close", f"http://{b.host}/")
    assert "Socket errors" not in out and "Non-2xx" not in out, out
    match = re.search(r"(\d+) requests in", out)
    assert match is not None and int(match[1]) > 100, out


def ping(b: Bench) -> None:
    assert "5 received" in b.run("ping", "-c5", "-i0.1", "-W2", b.vip)


def large_ping(b: Bench) -> None:
    assert "3 received" in b.run("ping", "-c3", "-i0.1", "-W2", "-s3000", b.vip)


PROGRAMS: dict[str, Callable[[Bench], None]] = {
    "HTTP/1.1": http1,
    "HTTP/1.1 over TLS": https1,
    "HTTP/2 over TLS": http2,
    "HTTP/3": http3,
    "DNS over UDP": dns_udp,
    "DNS over UDP in fragments": dns_large,
    "DNS over TCP": dns_tcp,
    "ssh": ssh,
    "iperf3 TCP": iperf_tcp,
    "iperf3 UDP": iperf_udp,
    "UDP echo": echo_udp,
    "UDP echo in fragments": large_datagrams,
    "upload": upload,
    "download": download,
    "transfers with loss": lossy,
    "short connections": short_connections,
    "ping": ping,
    "ping in fragments": large_ping,
}

APPLICATIONS: dict[tuple[str, str], Callable[[Bench], None]] = {
    (family, name): program for name, program in PROGRAMS.items() for family in PAIRS
}


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[Balancer, Path]]:
    """One balancer with a VIP for each pair of families."""
    with Topology(prefix="fnapp", six=True) as top:
        keys = daemons.start(top)
        first, second = (server.directory / "www" / "file" for server in top.servers)
        first.write_bytes(os.urandom(1 << 20) * MIB)
        second.hardlink_to(first)
        balancer = Balancer(top, config=SHORT)
        balancer.start()
        balancer.change(*({"op": "addr.add", "addr": vip, "port": top.vip_port} for vip, _, _ in PAIRS.values()))
        for vip, servers, lips in PAIRS.values():
            for proto, ports in (
                ("tcp", (HTTP, HTTPS, SINK, DNS, SSH, IPERF)),
                ("udp", (ECHO, QUIC, DNS, IPERF)),
            ):
                for port in ports:
                    some = servers[:1] if port in ONE_SERVER else servers
                    balancer.serve(proto, port, vip=vip, servers=some, lips=lips)
        yield balancer, keys


@pytest.mark.parametrize(("family", "name"), APPLICATIONS, ids=[f"{f}-{n}" for f, n in APPLICATIONS])
def test_application(running: tuple[Balancer, Path], family: str, name: str) -> None:
    balancer, keys = running
    APPLICATIONS[family, name](Bench(balancer, family, keys))


def test_all_is_given_back(running: tuple[Balancer, Path]) -> None:
    balancer, _ = running
    taken = ("conns", "half_open", "lip_ports", "waiting")
    wait_until(lambda: not any(balancer.counters()[name] for name in taken), "all taken counters are zero", 20)
