"""The engine with both families: LIPs by the family of the RSs, who asks for next hops, equal-cost routes, groups."""

import os
import signal

import pytest

from fnat import control, plan
from fnat.engine import Engine
from fnat.model import CHANGES, Config, HostNeighbour, Port, PortInfo, Route
from fnat.state import Ids
from tests.fakes import Conn, FakePlane, FakeSteering

PORTS = [
    PortInfo(id=0, name="wan", device="", mac="02:00:00:00:00:01", mtu=1500),
    PortInfo(id=3, name="lan", device="", mac="02:00:00:00:00:02", mtu=1500),
]
EMPTY = Config(ports=(Port(name="wan"), Port(name="lan")))
WEB = {"proto": "tcp", "vip": "2001:db8::1", "vport": 80}
SERVICE = [
    {"op": "addr.add", "addr": "2001:db8::1", "plen": 64, "port": "wan"},
    {"op": "service.add", **WEB},
    {"op": "server.add", "service": WEB, "rip": "10.1.1.1", "rport": 8080},
    {"op": "lip.add", "service": WEB, "addr": "2001:db8:2::1", "port": "lan"},
    {"op": "lip.add", "service": WEB, "addr": "10.2.0.1", "port": "lan"},
]
RS6 = {"service": WEB, "rip": "2001:db8:1::1", "rport": 8080}


class House:
    def __init__(self):
        self.plane = FakePlane()
        self.steering = {name: FakeSteering(name, self.plane.calls) for name in ("wan", "lan")}
        self.looked = []
        self.engine = Engine(
            self.plane,
            self.steering,
            PORTS,
            Ids(None),
            groups=lambda: self.looked.append({a for s in self.steering.values() for a in s.set if ":" in a}),
            patience=0.05,
            startle=0.02,
        )
        self.engine.commit(EMPTY)
        self.make(*SERVICE)

    def make(self, *changes):
        self.engine.commit(plan.apply(self.engine.config, CHANGES.validate_python(list(changes))))

    def lips(self):
        """Addresses of the service's LIPs, as the plane has them."""
        (spec,) = self.plane.services.values()
        of_id = {id: addr for id, addr, _, _ in self.plane.addresses}
        return [of_id[id] for id in spec["lips"]]

    def asks(self):
        """Prefix and gateway of the routes that the plane has -> who asks for the next hop."""
        return {(r[0], r[1]): r[2] for r in self.plane.routes}


@pytest.fixture
def house():
    return House()


def test_ipv6_service_with_ipv4_servers(house):
    (spec,) = house.plane.services.values()
    assert (spec["vip"], spec["vport"], [m[1:] for m in spec["members"]]) == (
        "2001:db8::1",
        80,
        [("10.1.1.1", 8080, 1)],
    )
    assert house.lips() == ["10.2.0.1"], "LIPs of the servers' family only"
    assert house.steering["lan"].set == {"10.2.0.1", "2001:db8:2::1", "2001:db8::1"}, "the other one is owned all the same"
    assert house.steering["wan"].set == {"2001:db8::1"}


def test_lips_follow_the_families_of_the_servers(house):
    house.make({"op": "server.add", **RS6})
    assert house.lips() == ["10.2.0.1", "2001:db8:2::1"]
    house.make({"op": "server.del", "service": WEB, "rip": "10.1.1.1", "rport": 8080})
    assert house.lips() == ["2001:db8:2::1"]
    house.make({"op": "lip.del", "service": WEB, "addr": "2001:db8:2::1"})
    assert house.lips() == []
    house.make({"op": "server.del", **RS6})
    assert house.lips() == ["10.2.0.1"], "without servers all that there are"


def test_addresses_are_shown_whole(house):
    shown = {v["addr"]: (v["plen"], v["sa_free"]) for v in house.engine.addresses()}
    assert shown == {"2001:db8::1": (64, 0), "2001:db8:2::1": (128, 64_512), "10.2.0.1": (32, 64_512)}
    house.make({"op": "server.add", **RS6}, {"op": "server.add", **RS6, "rport": 8081})
    shown = {v["addr"]: v["sa_free"] for v in house.engine.addresses()}
    assert shown == {"2001:db8::1": 0, "2001:db8:2::1": 2 * 64_512, "10.2.0.1": 64_512}, "of a family each"
    own = {r["prefix"] for r in house.engine.routes() if r["scope"] == "host"}
    assert own == {"2001:db8::1/128", "2001:db8:2::1/128", "10.2.0.1/32"}


def test_headroom_pairs_what_is_of_one_family(house):
    house.make({"op": "server.add", **RS6})
    ids = {addr: id for id, addr, _, _ in house.plane.addresses}
    house.plane.used_ports = [(0, 6, ids["2001:db8:2::1"], "2001:db8:1::1", 8080, 100)]
    rows = house.engine.headroom("tcp", "2001:db8::1", 80)["rows"]
    assert {(r["lip"], r["rip"]): r["used"] for r in rows} == {
        ("2001:db8:2::1", "2001:db8:1::1"): 100,
        ("10.2.0.1", "10.1.1.1"): 0,
    }


# a route of the host -> who asks for its next hop
ASKS = [
    ("on link, a LIP is there", Route(prefix="2001:db8:2::/64", port="lan"), "2001:db8:2::1"),
    ("on link, no owned address is there", Route(prefix="2001:db8:3::/64", port="lan"), ""),
    ("gateway in the network of a VIP", Route(prefix="::/0", gateway="2001:db8::f", port="wan"), "2001:db8::1"),
    ("link-local gateway", Route(prefix="::/0", gateway="fe80::1", port="wan"), "2001:db8::1"),
    ("link-local gateway where nothing is on link", Route(prefix="::/0", gateway="fe80::1", port="lan"), ""),
    ("src that is owned", Route(prefix="fd00::/8", gateway="fe80::1", port="lan", src="2001:db8:2::1"), "2001:db8:2::1"),
    ("src of the host", Route(prefix="fd00::/8", gateway="2001:db8::f", port="wan", src="2001:db8::77"), "2001:db8::1"),
    ("src owned on another port", Route(prefix="fd00::/8", gateway="fe80::1", port="lan", src="2001:db8::1"), ""),
    ("IPv4 beside it", Route(prefix="10.2.0.0/24", port="lan"), "10.2.0.1"),
]  # fmt: skip


@pytest.mark.parametrize(("route", "asker"), [a[1:] for a in ASKS], ids=[a[0] for a in ASKS])
def test_who_asks_for_the_next_hop(house, route, asker):
    house.engine.set_kernel_routes([route])
    assert house.asks()[route.prefix, route.gateway or ""] == asker


def test_equal_routes_of_the_host_are_all_put(house):
    hops = [Route(prefix="::/0", gateway=f"fe80::{n}", port="wan", metric=1024, mtu=1400) for n in (1, 2)]
    house.engine.set_kernel_routes(hops)
    put = [r for r in house.plane.routes if r[0] == "::/0"]
    assert put == [("::/0", f"fe80::{n}", "2001:db8::1", 0, 1400, 1024, "unicast") for n in (1, 2)]
    assert [r["mtu"] for r in house.engine.routes() if r["prefix"] == "::/0"] == [1400, 1400]
    house.make({"op": "route.add", "prefix": "::/0", "gateway": "2001:db8::f", "port": "wan", "mtu": 1300})
    put = [r for r in house.plane.routes if r[0] == "::/0"]
    assert put == [("::/0", "2001:db8::f", "2001:db8::1", 0, 1300, 0, "unicast")], "given ones win"


def test_a_given_route_of_an_own_network_is_no_equal(house):
    house.make({"op": "route.add", "prefix": "2001:db8::/64", "port": "lan"})
    assert [r[3] for r in house.plane.routes if r[0] == "2001:db8::/64"] == [3]
    house.make({"op": "route.del", "prefix": "2001:db8::/64"})
    assert [r[3] for r in house.plane.routes if r[0] == "2001:db8::/64"] == [0]


def test_neighbours_of_both_families(house):
    house.make({"op": "neigh.add", "addr": "fe80::9", "mac": "02:00:00:00:00:09", "port": "lan"})
    router = HostNeighbour(addr="fe80::1", mac="02:00:00:00:00:0a", port="wan")
    house.engine.set_kernel_neighbours([router])
    assert {(n["addr"], n["port"], n["static"]) for n in house.engine.neighbours()} == {
        ("fe80::9", "lan", True),
        ("fe80::1", "wan", False),
    }


def test_groups_are_looked_at_when_ipv6_addresses_come_and_go(house):
    assert house.looked[-1] == {"2001:db8::1", "2001:db8:2::1"}, "after they are owned"
    before = len(house.looked)
    house.make({"op": "addr.add", "addr": "10.0.0.1", "port": "wan"})
    house.make({"op": "server.add", **RS6})
    assert len(house.looked) == before
    house.make({"op": "addr.del", "addr": "2001:db8::1", "plen": 64, "port": "wan"})
    assert house.looked[before:] == [{"2001:db8:2::1"}]


def test_connections_are_found_by_prefixes_of_both_families(house):
    house.plane.connections[0] = [
        Conn(0, 6, "TCP_EST", "2001:db8:c::28", 1024, "2001:db8::1", 80, "10.2.0.1", 1030, "10.1.1.1", 8080),
        Conn(0, 6, "TCP_EST", "10.9.0.28", 1024, "10.0.0.1", 80, "2001:db8:2::1", 1030, "2001:db8:1::1", 8080),
    ]
    assert house.engine.conn_count(cip="2001:db8:c::/48") == 1
    assert house.engine.conn_count(cip="10.0.0.0/8", rip="2001:db8:1::/48") == 1
    assert house.engine.conn_count(cip="2001:db8:d::/48") == 0


def test_the_data_plane_is_asked_by_way_of_the_keeper_and_nobody_else(monkeypatch):
    sent = []
    monkeypatch.setattr(os, "kill", lambda *what: sent.append(what))
    monkeypatch.delenv("FNAT_KEEPER", raising=False)
    control._ask_to_look()
    monkeypatch.setenv("FNAT_KEEPER", "1")
    control._ask_to_look()
    assert sent == []
    monkeypatch.setenv("FNAT_KEEPER", str(os.getppid()))
    control._ask_to_look()
    assert sent == [(os.getppid(), signal.SIGUSR1)]
