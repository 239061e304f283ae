"""Exclusive ports: fnat takes the whole NIC, and the host speaks through a TAP. kni_host routes: addresses left to
the host."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from topology import HTTP, Balancer, Topology, wait_until

TAP = "dpdk1.kni"


@pytest.fixture(scope="module")
def balancer() -> Iterator[Balancer]:
    """Two arms, the client's side exclusive; the host's address moves from the NIC to the TAP, as an operator does
    it."""
    with Topology(prefix="fnexcl") as top:
        top.start_servers()
        balancer = Balancer(top, options=("--exclusive", "dpdk1"))
        balancer.start()
        assert (
            "state DOWN" in top.run("lb", "ip", "-o", "link", "show", TAP).stdout
        )  # born down, for the operator to set up
        top.ip("lb", "addr", "flush", "dev", "wan")
        top.ip("lb", "addr", "add", "10.0.0.1/16", "dev", TAP)
        top.ip("lb", "link", "set", TAP, "up")
        balancer.change({"op": "addr.add", "addr": top.vip, "port": "dpdk1"})
        balancer.serve("tcp", HTTP)
        yield balancer


def test_tap_is_a_twin_of_the_port(balancer: Balancer) -> None:
    """Same MAC, same MTU; no IPv6 address by itself."""
    top = balancer.topology
    port = next(port for port in balancer.api("/v1/ports") if port["name"] == "dpdk1")
    line = top.run("lb", "ip", "-o", "link", "show", TAP).stdout
    assert f"link/ether {port['mac']}" in line
    assert f"mtu {port['mtu']} " in line
    assert top.run("lb", "ip", "-6", "addr", "show", "dev", TAP).stdout == ""


def test_service_and_host_share_the_port(balancer: Balancer) -> None:
    """The VIP is served by the worker, the host's address by the host behind the TAP, in both directions."""
    top = balancer.topology
    wait_until(lambda: top.curl(check=False).returncode == 0, "the route through the TAP is mirrored", 15)
    assert {top.curl().stdout for _ in range(4)} == {"rs1\n", "rs2\n"}
    assert "3 received" in top.run("client", "ping", "-c3", "-i0.1", "-W2", "10.0.0.1").stdout
    assert "3 received" in top.run("lb", "ping", "-c3", "-i0.1", "-W2", "10.0.0.28").stdout
    counters = balancer.counters()
    assert counters["passed"] > 0
    assert counters["from_host"] > 0


def test_the_host_keeps_its_ipv6(balancer: Balancer) -> None:
    """Behind the TAP: solicitations of its address, and what goes to all nodes. The NIC lets every group through."""
    top = balancer.topology
    for name, device, address in (("lb", TAP, "2001:db8:a::1/64"), ("client", "eth0", "2001:db8:a::28/64")):
        for setting in ("accept_dad=0", "disable_ipv6=0"):
            top.run(name, "sysctl", "-qw", f"net/ipv6/conf/{device}/{setting}")
        top.ip(name, "addr", "add", address, "dev", device, "nodad")
    assert "2 received" in top.run("client", "ping", "-6", "-c2", "-i0.1", "-W2", "2001:db8:a::1").stdout
    top.ip("lb", "-6", "neigh", "flush", "dev", TAP)
    assert "2 received" in top.run("lb", "ping", "-6", "-c2", "-i0.1", "-W2", "2001:db8:a::28").stdout
    assert "2 received" in top.run("client", "ping", "-6", "-c2", "-i0.1", "-W2", "ff02::1%eth0").stdout
    assert "allmulti 1" in top.run("lb", "ip", "-d", "link", "show", "dev", "wan").stdout


def test_kni_host_route_carves_out(balancer: Balancer) -> None:
    """An address inside a network that fnat routes goes to the host, while the rest stays."""
    top = balancer.topology
    top.ip("lb", "addr", "add", "10.0.7.7/32", "dev", TAP)
    balancer.dpip("route add 10.0.7.7/32 dev dpdk1 scope kni_host")
    assert "2 received" in top.run("client", "ping", "-c2", "-i0.1", "-W2", "10.0.7.7").stdout
    assert top.curl().stdout in ("rs1\n", "rs2\n")


def test_tap_goes_with_the_stop(balancer: Balancer) -> None:
    assert balancer.stop() == 0
    assert TAP not in balancer.topology.run("lb", "ip", "link").stdout
