"""Both families through a running balancer, and families that cross, with the kernels' own ND and a real client.

client 2001:db8:a::28  --- wan ---  balancer  --- lan ---  rs1 192.168.100.2, 2001:db8:b::2
       10.0.0.28                    VIP6 2001:db8:a::100   (both answer HTTP on port 8080)
                                    LIP6 2001:db8:b::200
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator

import pytest
from topology import LIPS, Balancer, Topology, wait_until

VIP6, LIP6, RS6, CLIENT6 = "2001:db8:a::100", "2001:db8:b::200", "2001:db8:b::2", "2001:db8:a::28"
VIP, RS = "10.0.0.100", "192.168.100.2"
ANSWER = """\
import http.server, socket
class Door(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
class Who(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = self.client_address[0].removeprefix("::ffff:").encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
Door(("::", 8080), Who).serve_forever()
"""  # answers with the address that it sees as its client


def speak_ipv6(top: Topology, name: str, device: str, address: str) -> None:
    for setting in ("accept_dad=0", "disable_ipv6=0"):
        top.run(name, "sysctl", "-qw", f"net.ipv6.conf.{device}.{setting}")
    top.ip(name, "addr", "add", f"{address}/64", "dev", device, "nodad")


@pytest.fixture(scope="module")
def balancer() -> Iterator[Balancer]:
    with Topology(prefix="fnfam") as top:
        for name, device, address in (
            ("client", "eth0", CLIENT6),
            ("lb", "wan", "2001:db8:a::7"),
            ("lb", "lan", "2001:db8:b::7"),
            ("rs1", "eth0", RS6),
        ):
            speak_ipv6(top, name, device, address)
        top.spawn("rs1", sys.executable, "-c", ANSWER)
        wait_until(lambda: ":8080 " in top.run("rs1", "ss", "-Hltn").stdout, "the server listens")
        balancer = Balancer(top)
        balancer.start()
        for vip in (VIP, VIP6):
            balancer.dpip(f"addr add {vip} dev dpdk1")
        for port, rs in ((80, RS), (81, RS6)):
            for vip in (VIP, f"[{VIP6}]"):
                server = f"[{rs}]" if ":" in rs else rs
                balancer.ipvsadm(f"-A -t {vip}:{port}")
                balancer.ipvsadm(f"-a -t {vip}:{port} -r {server}:8080 -b")
                balancer.ipvsadm(f"-P -t {vip}:{port} -z {LIP6 if ':' in rs else LIPS[0]} -F dpdk0")
        yield balancer


# families of client and server, where the client asks, whom the server sees
WAYS = [
    ("4 to 4", f"http://{VIP}:80/", LIPS[0]),
    ("6 to 6", f"http://[{VIP6}]:81/", LIP6),
    ("6 to 4", f"http://[{VIP6}]:80/", LIPS[0]),
    ("4 to 6", f"http://{VIP}:81/", LIP6),
]


def ask(balancer: Balancer, url: str) -> str:
    return balancer.topology.run("client", "curl", "-sS", "--fail", "--globoff", "--max-time", "5", url).stdout


@pytest.mark.parametrize(("url", "seen"), [way[1:] for way in WAYS], ids=[way[0] for way in WAYS])
def test_a_request_finds_its_server(balancer: Balancer, url: str, seen: str) -> None:
    assert ask(balancer, url) == seen


def test_connections_are_listed_in_both_families(balancer: Balancer) -> None:
    for _, url, _ in WAYS:
        ask(balancer, url)
    lines = balancer.ipvsadm("-lnc").splitlines()
    ends = {tuple(end.rpartition(":")[0] for end in line.split()[3:]) for line in lines}
    assert {
        ("10.0.0.28", VIP, LIPS[0], RS),
        (f"[{CLIENT6}]", f"[{VIP6}]", f"[{LIP6}]", f"[{RS6}]"),
        (f"[{CLIENT6}]", f"[{VIP6}]", LIPS[0], RS),
        ("10.0.0.28", VIP, f"[{LIP6}]", f"[{RS6}]"),
    } <= ends
    count = int(balancer.fnat("conn", "count", "--client", "2001:db8:a::/64").stdout)
    assert 0 < count < len(lines)
    assert int(balancer.fnat("conn", "count", "--client", "2001:db8:c::/64").stdout) == 0


def groups(balancer: Balancer, device: str) -> set[str]:
    """Ethernet groups of solicited nodes that the NIC knows."""
    shown = balancer.topology.run("lb", "ip", "maddr", "show", "dev", device).stdout
    return {word for word in shown.split() if word.startswith("33:33:ff")}


def test_solicited_node_groups_are_joined_by_the_data_plane(balancer: Balancer) -> None:
    wait_until(lambda: "33:33:ff:00:01:00" in groups(balancer, "wan"), "the VIP's group is joined")
    wait_until(lambda: "33:33:ff:00:02:00" in groups(balancer, "lan"), "the LIP's group is joined")
    assert "33:33:ff:00:02:00" not in groups(balancer, "wan")


def test_groups_follow_the_addresses_at_once(balancer: Balancer) -> None:
    balancer.dpip("addr add 2001:db8:a::ab:cdef dev dpdk1")
    wait_until(lambda: "33:33:ff:ab:cd:ef" in groups(balancer, "wan"), "the group is joined", 2)
    balancer.dpip("addr del 2001:db8:a::ab:cdef dev dpdk1")
    wait_until(lambda: "33:33:ff:ab:cd:ef" not in groups(balancer, "wan"), "the group is left", 2)


def test_the_kernel_does_not_answer_for_owned_addresses(balancer: Balancer) -> None:
    top = balancer.topology
    macs = {d: top.run("lb", "cat", f"/sys/class/net/{d}/address").stdout.strip() for d in ("wan", "lan")}
    for name, address, mac in (("client", VIP6, macs["wan"]), ("rs1", LIP6, macs["lan"])):
        top.run(name, "ip", "-6", "neigh", "flush", "dev", "eth0")
        ask(balancer, WAYS[1][1])
        assert mac in top.run(name, "ip", "-6", "neigh", "show", address).stdout
    assert VIP6 not in top.run("lb", "ip", "-6", "addr").stdout


def test_routes_and_neighbours_of_the_kernel_are_shown(balancer: Balancer) -> None:
    top = balancer.topology
    top.ip("lb", "-6", "route", "add", "2001:db8:f::/48", "mtu", "1400", "nexthop", "via", "fe80::1", "dev", "wan",
           "nexthop", "via", "fe80::2", "dev", "lan")  # fmt: skip
    wanted = {
        "inet6 2001:db8:f::/48 via fe80::1 dev dpdk1 mtu 1400 scope global metric 1024",
        "inet6 2001:db8:f::/48 via fe80::2 dev dpdk0 mtu 1400 scope global metric 1024",
        f"inet6 {VIP6}/128 dev dpdk1 mtu 1500 scope host",
    }
    wait_until(lambda: wanted <= set(balancer.dpip("-6 route show").splitlines()), "the kernel's route is there")
    assert "inet6" not in balancer.dpip("route show")
    top.ip("lb", "-6", "route", "del", "2001:db8:f::/48")
    wait_until(lambda: "2001:db8:f::/48" not in balancer.dpip("-6 route show"), "it is gone")


def test_clients_behind_a_router_that_is_known_by_its_link_local_address(balancer: Balancer) -> None:
    top, far = balancer.topology, "2001:db8:c::28"
    top.ip("client", "addr", "add", f"{far}/128", "dev", "lo", "nodad")
    shown = json.loads(top.run("client", "ip", "-j", "-6", "addr", "show", "dev", "eth0", "scope", "link").stdout)
    router = next(info["local"] for row in shown for info in row.get("addr_info", ()) if "local" in info)
    top.ip("lb", "-6", "route", "add", "2001:db8:c::/64", "via", router, "dev", "wan", "mtu", "1400")
    line = f"inet6 2001:db8:c::/64 via {router} dev dpdk1 mtu 1400 scope global metric 1024"
    wait_until(lambda: line in balancer.dpip("-6 route show"), "the kernel's route is there")
    for url, seen in ((f"http://[{VIP6}]:81/", LIP6), (f"http://[{VIP6}]:80/", LIPS[0])):
        assert top.run("client", "curl", "-sS", "--fail", "-g", "-m", "5", "--interface", far, url).stdout == seen
    assert router in balancer.dpip("-6 neigh show")


ADVERTISE = """\
import socket
with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as sock:
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
    lifetime = 1800
    message = bytes([134, 0, 0, 0, 64, 0]) + lifetime.to_bytes(2, "big") + bytes(8)
    sock.sendto(message, ("ff02::1", 0, 0, socket.if_nametoindex("eth0")))
"""  # RFC 4861, 4.2


def test_the_host_keeps_its_own_ipv6(balancer: Balancer) -> None:
    """Its neighbours find it, it finds them, and a router that advertises itself to all nodes becomes its route and ours."""
    top = balancer.topology
    for name, device, address in (("client", "eth0", "2001:db8:a::7"), ("lb", "wan", CLIENT6)):
        top.ip(name, "-6", "neigh", "flush", "dev", device)
        assert "2 received" in top.run(name, "ping", "-6", "-c2", "-i0.1", "-W2", address).stdout
    top.run("client", sys.executable, "-c", ADVERTISE)
    wait_until(lambda: "proto ra" in top.run("lb", "ip", "-6", "route", "show", "default").stdout, "the host has heard")
    wait_until(lambda: "inet6 ::/0 via fe80::" in balancer.dpip("-6 route show"), "so have we")
    top.ip("lb", "-6", "route", "del", "default")
    wait_until(lambda: "::/0" not in balancer.dpip("-6 route show"), "it is gone")


def test_control_may_die(balancer: Balancer) -> None:
    before = groups(balancer, "wan")
    pid = balancer.pids()["control"]
    os.kill(pid, signal.SIGKILL)
    for _, url, seen in WAYS:
        assert ask(balancer, url) == seen
    assert groups(balancer, "wan") == before
    wait_until(lambda: balancer.answers() and balancer.pids()["control"] != pid, "control is back")
    assert groups(balancer, "wan") == before


def test_a_new_data_plane_joins_again(balancer: Balancer) -> None:
    before, pid = groups(balancer, "wan"), balancer.pids()["dataplane"]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: balancer.pids()["dataplane"] not in (0, pid), "the data plane is back")
    wait_until(lambda: groups(balancer, "wan") == before, "the groups are joined")
    wait_until(lambda: balancer.answers(), "fnat answers")
    for _, url, seen in WAYS:
        assert ask(balancer, url) == seen


def test_groups_are_left_at_the_end(balancer: Balancer) -> None:
    balancer.stop()
    assert "33:33:ff:00:01:00" not in groups(balancer, "wan")
