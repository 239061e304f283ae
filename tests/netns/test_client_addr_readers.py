"""The examples of conf/examples/ on real servers, and `fnat test client-addr`: each names the client, not a LIP."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_families import CLIENT6, LIP6, RS6, VIP6, speak_ipv6
from topology import HTTP, LIPS, SERVERS, Balancer, Topology, fnat_program, wait_until

EXAMPLES = Path(__file__).parents[2] / "conf" / "examples"
NGINX, HAPROXY, UOA, PROOF, FAMILY_PROOF = 8080, 8081, 5354, 7000, 7001
RS = SERVERS[:1]
_WRAP = """\
daemon off; user root; pid {directory}/client-addr.pid; error_log {directory}/client-addr.log;
events {{ }}
http {{
    access_log off; client_body_temp_path {directory}/body2; proxy_temp_path {directory}/proxy2;
    fastcgi_temp_path {directory}/fcgi2; uwsgi_temp_path {directory}/uwsgi2; scgi_temp_path {directory}/scgi2;
    include {example};
}}
"""


@pytest.fixture(scope="module")
def balancer() -> Iterator[Balancer]:
    with Topology(prefix="fnaddr") as top:
        for name, device, address in (
            ("client", "eth0", CLIENT6),
            ("lb", "wan", "2001:db8:a::7"),
            ("lb", "lan", "2001:db8:b::7"),
            ("rs1", "eth0", RS6),
        ):
            speak_ipv6(top, name, device, address)
        top.start_servers()
        directory = top.servers[0].directory
        config = directory / "client-addr.conf"
        config.write_text(_WRAP.format(directory=directory, example=EXAMPLES / "nginx-client-addr.conf"))
        top.spawn("rs1", "nginx", "-c", str(config), "-e", str(directory / "client-addr.log"))
        top.spawn("rs1", "haproxy", "-db", "-f", str(EXAMPLES / "haproxy-client-addr.cfg"))
        top.spawn("rs1", sys.executable, str(EXAMPLES / "toa_reader.py"), str(HTTP), log=directory / "toa.log")
        top.spawn("rs1", sys.executable, str(EXAMPLES / "uoa_reader.py"), RS[0], str(UOA))
        wait_until(lambda: f":{HAPROXY} " in top.run("rs1", "ss", "-Hlt", "-n").stdout, "HAProxy listens")
        wait_until(lambda: f":{NGINX} " in top.run("rs1", "ss", "-Hlt", "-n").stdout, "nginx listens")
        balancer = Balancer(top)
        balancer.start()
        for vip in (top.vip, VIP6):
            balancer.change({"op": "addr.add", "addr": vip, "port": top.vip_port})
        yield balancer


def fetch(top: Topology, port: int) -> tuple[list[str], str]:
    """The answer's words, and "address port" of the client."""
    out = top.run(
        "client",
        "curl",
        "-sS",
        "--fail",
        "--max-time",
        "5",
        "-w",
        "%{local_ip} %{local_port}",
        f"http://{top.vip}:{port}/",
    ).stdout
    answer, _, own = out.rpartition("\n")
    return answer.split(), own


@pytest.mark.parametrize("version", ["proxy-v1", "proxy-v2"])
@pytest.mark.parametrize("port", [NGINX, HAPROXY])
def test_stock_servers_read_the_proxy_header(balancer: Balancer, port: int, version: str) -> None:
    top = balancer.topology
    balancer.serve("tcp", port, servers=RS, client_addr=version)
    answer, own = fetch(top, port)
    assert answer == own.split() and own.startswith(top.client_address)
    balancer.change({"op": "service.del", "proto": "tcp", "vip": top.vip, "vport": port})


def test_an_upload_behind_a_proxy_header_is_whole(balancer: Balancer) -> None:
    """64 KiB and more: the connection has become like any other."""
    top = balancer.topology
    balancer.serve("tcp", NGINX, servers=RS, client_addr="proxy-v1")
    words = ("curl", "-sS", "--max-time", "20", "-o", "/dev/null", "-w", "%{http_code} %{size_upload}", "--data-binary")
    big = top.directory / "big"
    big.write_bytes(bytes(900_000))
    out = top.run("client", *words, f"@{big}", f"http://{top.vip}:{NGINX}/").stdout
    assert out == "200 900000"


def test_a_toa_reader_names_the_client(balancer: Balancer) -> None:
    top = balancer.topology
    balancer.ipvsadm(f"-A -t {top.vip}:{HTTP} -s rr")  # TOA is what DPVS's words mean
    balancer.ipvsadm(f"-a -t {top.vip}:{HTTP} -r {RS[0]}:{HTTP} -b")
    balancer.ipvsadm(f"-P -t {top.vip}:{HTTP} -z 192.168.100.200 -F dpdk0")
    answer, own = fetch(top, HTTP)
    assert answer == ["rs1"]
    log = top.servers[0].directory / "toa.log"
    wait_until(lambda: f" is {own.replace(' ', ':')}\n" in log.read_text(), "the reader has seen it", 3)
    assert log.read_text().startswith("192.168.100.200:")


_ASK = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(3); s.connect((sys.argv[1], int(sys.argv[2])))
for size in map(int, sys.argv[3:]):
    s.send(b"x" * size)
    words = s.recv(65536).split()
    assert words == [*f"{s.getsockname()[0]} {s.getsockname()[1]}".encode().split(), b"x" * size], words
"""


def test_a_uoa_reader_names_the_client(balancer: Balancer) -> None:
    """Also of a datagram that has no room for the header: an empty one announces it."""
    top = balancer.topology
    balancer.serve("udp", UOA, servers=RS, client_addr="uoa-opp")
    top.run("client", sys.executable, "-c", _ASK, top.vip, str(UOA), "5", "5", "5", "5", "5")
    top.run("client", "ip", "route", "flush", "cache")
    balancer.change({"op": "service.set", "proto": "udp", "vip": top.vip, "vport": UOA, "conn_timeout": 1})


MODES = [
    ("tcp", "toa"),
    ("tcp", "proxy-v1"),
    ("tcp", "proxy-v2"),
    ("udp", "uoa-opp"),
    ("udp", "uoa-ipo"),
    ("udp", "proxy-v2"),
]


def test_the_command_proves_every_way(balancer: Balancer) -> None:
    top = balancer.topology
    top.spawn("rs1", fnat_program("fnat"), "test", "client-addr", f"{RS[0]}:{PROOF}", "--listen")
    wait_until(lambda: f":{PROOF} " in top.run("rs1", "ss", "-Hlt", "-n").stdout, "the listener listens")
    for number, (proto, mode) in enumerate(MODES):
        service = {"proto": proto, "vip": top.vip, "vport": PROOF}
        balancer.serve(proto, PROOF, servers=RS, client_addr=mode)
        done = top.run("client", fnat_program("fnat"), "test", "client-addr", f"{top.vip}:{PROOF}", "--proto", proto)
        assert (
            done.stdout.startswith(f"the server sees {top.client_address} port ") and f"by {mode}: right" in done.stdout
        ), number
        balancer.change({"op": "service.del", **service})
        time.sleep(0.1)
    balancer.serve("tcp", PROOF, servers=RS)
    done = top.run("client", fnat_program("fnat"), "test", "client-addr", f"{top.vip}:{PROOF}", check=False)
    assert done.returncode == 1 and "nothing tells it" in done.stderr and "FN-1401" in done.stderr


FAMILIES = [
    ("6 to 4", VIP6, CLIENT6, RS[0], LIPS[0]),
    ("6 to 6", VIP6, CLIENT6, RS6, LIP6),
    ("4 to 6", "", "", RS6, LIP6),
]
WAYS = [("tcp", "toa"), ("tcp", "proxy-v1"), ("tcp", "proxy-v2"), ("udp", "uoa-opp"), ("udp", "proxy-v2")]


@pytest.mark.parametrize(("vip", "client", "rip", "lip"), [f[1:] for f in FAMILIES], ids=[f[0] for f in FAMILIES])
def test_between_families(balancer: Balancer, vip: str, client: str, rip: str, lip: str) -> None:
    """The client's address in its own family, whatever the server's is."""
    top = balancer.topology
    vip, client = vip or top.vip, client or top.client_address
    listener = top.spawn("rs1", fnat_program("fnat"), "test", "client-addr", f"[{rip}]:{FAMILY_PROOF}", "--listen")
    wait_until(lambda: f":{FAMILY_PROOF} " in top.run("rs1", "ss", "-Hlt", "-n").stdout, "the listener listens")
    for proto, mode in WAYS:
        service = {"proto": proto, "vip": vip, "vport": FAMILY_PROOF}
        balancer.change(
            {"op": "service.add", **service, "client_addr": mode},
            {"op": "server.add", "service": service, "rip": rip, "rport": FAMILY_PROOF},
            {"op": "lip.add", "service": service, "addr": lip, "port": "dpdk0"},
        )
        words = ("test", "client-addr", f"[{vip}]:{FAMILY_PROOF}", "--proto", proto)
        done = top.run("client", fnat_program("fnat"), *words)
        assert done.stdout.startswith(f"the server sees {client} port ") and f"by {mode}: right" in done.stdout
        balancer.change({"op": "service.del", **service})
    listener.terminate()
    listener.wait(timeout=5)
    top.processes.remove(listener)
