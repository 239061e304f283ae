"""The engine against a fake plane: what is put, in which order, and that a failure leaves the old picture."""

import pytest

from fnat import plan
from fnat.engine import Engine
from fnat.errors import ChangeError, EngineError
from fnat.model import CHANGES, Config, Host, HostNeighbour, Key, Port, PortInfo, Route
from fnat.state import Ids
from fnat.steering import CannotSteer
from tests.fakes import AddressStats, Conn, FakePlane, FakeSteering, Stats

WAN = PortInfo(id=0, name="wan", device="", mac="02:00:00:00:00:01", mtu=1500)
LAN = PortInfo(id=3, name="lan", device="", mac="02:00:00:00:00:02", mtu=1400, exclusive=True)
EMPTY = Config(ports=(Port(name="wan"), Port(name="lan")))
WEB = {"proto": "tcp", "vip": "10.0.0.1", "vport": 80}
DNS = {"proto": "udp", "vip": "10.0.0.2", "vport": 53}
SERVICE = [
    {"op": "addr.add", "addr": "10.0.0.1", "plen": 24, "port": "wan"},
    {"op": "service.add", **WEB},
    {"op": "server.add", "service": WEB, "rip": "10.1.1.1", "rport": 8080, "weight": 3},
    {"op": "lip.add", "service": WEB, "addr": "10.2.0.1", "port": "lan"},
]


class FakeRules:
    """Flow rules of a NIC; refuses the LIP 10.2.0.66."""

    def __init__(self):
        self.held = None

    def hold(self, lips):
        if "10.2.0.66" in lips:
            raise CannotSteer("the NIC cannot", "use another")
        self.held = set(lips)


class House:
    """An engine on fakes."""

    def __init__(self, ids=None, plane=None, steering=None, config=EMPTY, rules=None, **how):
        self.plane = plane or FakePlane(**how)
        self.ids = ids or Ids(None)
        self.steering = steering or {name: FakeSteering(name, self.plane.calls) for name in ("wan", "lan")}
        self.rules = rules or {}
        self.engine = Engine(
            self.plane, self.steering, [WAN, LAN], self.ids, rules=self.rules, patience=0.05, startle=0.02
        )
        self.engine.commit(config)

    def make(self, *changes):
        """Commit the changes; what the plane and the XDP programs were told."""
        return self.commit(plan.apply(self.engine.config, CHANGES.validate_python(list(changes))))

    def commit(self, config):
        before = len(self.plane.calls)
        self.engine.commit(config)
        return self.plane.calls[before:]

    def restart(self):
        """Another control process: same disk, same XDP programs; the plane's builder is empty."""
        self.plane.services, self.plane.addresses = {}, []
        for kind in ("service", "member", "address"):
            for entry in self.ids.entries(kind):
                entry.live = False
        return House(self.ids, self.plane, self.steering, self.engine.config)


@pytest.fixture
def house():
    h = House()
    h.make(*SERVICE)
    return h


def test_config_becomes_specs(house):
    plane = house.plane
    ((service_id, spec),) = plane.services.items()
    ids = {addr: id for id, addr, _, _ in plane.addresses}
    assert sorted(plane.addresses) == sorted(
        [(ids["10.0.0.1"], "10.0.0.1", "vip", 0), (ids["10.2.0.1"], "10.2.0.1", "lip", 3)]
    )
    ((member, *server),) = spec.pop("members")
    assert service_id > 0 and member > 0 and server == ["10.1.1.1", 8080, 3]
    assert spec == {
        "vip": "10.0.0.1",
        "vport": 80,
        "proto": 6,
        "scheduler": "wrr",
        "no_rs_reset": False,
        "expire_quiescent": False,
        "one_packet": False,
        "quic": False,
        "conn_timeout": 0,
        "half_open": 8192,
        "client_addr": "none",
        "lips": [ids["10.2.0.1"]],
    }
    assert plane.ports == {0: ("wan", WAN.mac, 1500, True, False), 3: ("lan", LAN.mac, 1400, True, True)}
    assert plane.settings is not None
    timeouts, reset, lports = plane.settings
    assert timeouts["TCP_EST"] == 7440 and reset is True and lports == (1024, 65535)


def test_limits_and_the_sorry_server_reach_the_plane(house):
    shape = {"max_conns": 9, "new_per_s": 8, "per_client": 7, "no_rs": "10.1.1.9:80"}
    server = {"role": "backup", "upper": 6, "lower": 5, "max_new_per_s": 4}
    house.make(
        {"op": "service.set", **WEB, **shape},
        {"op": "server.set", "service": WEB, "rip": "10.1.1.1", "rport": 8080, **server},
    )
    (spec,) = house.plane.services.values()
    one, sorry = spec["members"]
    assert one[1:] == ("10.1.1.1", 8080, 3) and sorry[1:] == ("10.1.1.9", 80, 1)
    assert spec["limits"] == {one[0]: ("backup", 6, 5, 4), sorry[0]: ("sorry", 0, 0, 0)}
    assert (spec["max_conns"], spec["new_per_s"], spec["per_client"], spec["no_rs_reset"]) == (9, 8, 7, False)
    house.plane.overloaded.add(one[0])
    for conns, shown in ((6, True), (5, True), (4, False)):
        house.plane.of_member[one[0]] = Stats(active=1, inactive=conns - 1)
        (view,) = house.engine.services()
        assert view["servers"][0]["overloaded"] is shown, conns
        assert len(view["servers"]) == 1 and view["no_rs"] == "10.1.1.9:80"


# half_open of the service, on each of two workers
QUOTAS = [(None, 8192), (0, 0), (1, 64), (127, 64), (1000, 500)]


@pytest.mark.parametrize(("asked", "put"), QUOTAS)
def test_half_open_quota_is_divided(house, asked, put):
    house.make({"op": "service.set", **WEB, "half_open": asked})
    assert next(iter(house.plane.services.values()))["half_open"] == put


# sentence, changes, what is told
TOLD = [
    ("nothing", [], []),
    ("a weight is one service", [{"op": "server.set", "service": WEB, "rip": "10.1.1.1", "rport": 8080, "weight": 1}],
     ["put_service", "publish"]),
    ("another service leaves the first alone", [{"op": "service.add", **DNS}], ["put_service", "publish"]),
    ("a new address is owned after it is in force", [{"op": "addr.add", "addr": "10.0.0.2", "port": "wan"}],
     ["put_address", "publish", "own", "own"]),
    ("an address that goes is disowned first", [{"op": "addr.del", "addr": "10.0.0.1", "plen": 24, "port": "wan"}],
     ["disown", "disown", "del_address", "put_routes", "publish"]),
    ("service and LIP go", [{"op": "service.clear"}], ["disown", "del_address", "del_service", "publish"]),
    ("a route", [{"op": "route.add", "prefix": "10.9.0.0/16", "port": "lan"}], ["put_routes", "publish"]),
    ("a neighbour is no snapshot", [{"op": "neigh.add", "addr": "10.2.0.9", "mac": "02:00:00:00:00:09", "port": "lan"}],
     ["neigh_set"]),
    ("a link", [{"op": "link.set", "port": "lan", "up": False}], ["put_port", "publish"]),
    ("a LIP comes before the service that uses it",
     [{"op": "lip.add", "service": WEB, "addr": "10.2.0.2", "port": "lan"}],
     ["put_address", "put_service", "publish", "own"]),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "told"), [t[1:] for t in TOLD], ids=[t[0] for t in TOLD])
def test_only_what_differs_is_put_and_in_order(house, changes, told):
    assert [call[0] for call in house.make(*changes)] == told


def test_a_vip_is_owned_on_every_port_and_a_lip_where_it_lives(house):
    assert house.steering["wan"].set == {"10.0.0.1"}
    assert house.steering["lan"].set == {"10.0.0.1", "10.2.0.1"}


def test_draining_lip_stays_until_its_last_connection(house):
    lip = next(id for id, addr, _, _ in house.plane.addresses if addr == "10.2.0.1")
    house.plane.of_address[lip] = AddressStats(used=1, conns=1)
    house.make({"op": "lip.del", "service": WEB, "addr": "10.2.0.1"})
    assert (lip, "10.2.0.1", "lip", 3) in house.plane.addresses
    house.engine.sweep()
    assert house.steering["lan"].set == {"10.0.0.1", "10.2.0.1"}
    assert [v["sa_used"] for v in house.engine.addresses("lan")] == [1]
    house = house.restart()
    assert house.steering["lan"].set == {"10.0.0.1", "10.2.0.1"}, "also when control starts again meanwhile"
    house.plane.of_address[lip] = AddressStats()
    house.engine.sweep()
    assert house.steering["lan"].set == {"10.0.0.1"}
    assert [addr for _, addr, _, _ in house.plane.addresses] == ["10.0.0.1"]


def test_id_waits_for_its_last_connection(house):
    ((service_id, spec),) = house.plane.services.items()
    member = spec["members"][0][0]
    house.plane.of_member[member] = Stats(conns=9, active=1)
    house.make({"op": "server.del", "service": WEB, "rip": "10.1.1.1", "rport": 8080})
    house.engine.sweep()
    assert [e.id for e in house.ids.entries("member")] == [member]
    house.make({"op": "server.add", "service": WEB, "rip": "10.1.1.2", "rport": 8080})
    assert house.plane.services[service_id]["members"][0][0] != member
    house.plane.of_member[member] = Stats(conns=9)
    house.engine.sweep()
    assert member not in [e.id for e in house.ids.entries("member")]


def test_new_owner_of_an_id_starts_from_zero(house):
    house.make({"op": "service.del", **WEB})
    house.engine.sweep()
    house.plane.of_service = {id: Stats(conns=100, in_packets=5) for id in range(64)}
    house.make({"op": "service.add", **DNS})
    (view,) = house.engine.services()
    assert view["stats"]["conns"] == 0 and view["stats"]["in_packets"] == 0


def test_service_that_comes_back_starts_from_zero_and_keeps_its_id(house):
    (service_id,) = house.plane.services
    house.plane.of_service[service_id] = Stats(conns=100, active=1)
    house.make({"op": "service.del", **WEB})
    house.make({"op": "service.add", **WEB})
    assert list(house.plane.services) == [service_id]
    (view,) = house.engine.services()
    assert (view["stats"]["conns"], view["stats"]["active"]) == (0, 1)


def test_zero_subtracts_and_survives(house, tmp_path):
    (service_id,) = house.plane.services
    house.plane.of_service[service_id] = Stats(10, 20, 30, 40, 50, 6, 7)
    house.engine.zero(Key("tcp", "10.0.0.1", 80))
    house.plane.of_service[service_id] = Stats(11, 22, 33, 44, 55, 6, 7)
    expected = {
        "conns": 1,
        "in_packets": 2,
        "out_packets": 3,
        "in_bytes": 4,
        "out_bytes": 5,
        "active": 6,
        "inactive": 7,
    }
    assert house.engine.services()[0]["stats"] == expected
    house = house.restart()
    assert house.engine.services()[0]["stats"] == expected
    house.plane.of_service[service_id] = Stats(3, 3, 3, 3, 3)
    house = house.restart()
    assert house.engine.services()[0]["stats"]["conns"] == 3, "a new arena counts from 0"


def test_rates_are_differences_per_second(house):
    (service_id,) = house.plane.services
    house.engine.sample(100.0)
    house.plane.of_service[service_id] = Stats(20, 200, 100, 2000, 1000)
    house.engine.sample(102.0)
    assert house.engine.services()[0]["rate"] == {
        "cps": 10,
        "in_pps": 100,
        "out_pps": 50,
        "in_bps": 1000,
        "out_bps": 500,
    }
    house.engine.sample(103.0)
    assert house.engine.services()[0]["rate"]["cps"] == 0


# ---- failures ----

BREAK = ["put_service", "put_address", "publish"]


@pytest.mark.parametrize("method", BREAK)
def test_failure_leaves_the_old_picture(house, method):
    old, services, addresses = house.engine.config, dict(house.plane.services), list(house.plane.addresses)
    house.plane.fail = method
    with pytest.raises(EngineError) as caught:
        house.make(
            {"op": "addr.add", "addr": "10.0.0.2", "port": "wan"},
            {"op": "service.add", **DNS},
            {"op": "service.set", **WEB, "scheduler": "rr"},
        )
    assert caught.value.code == "FN-1303" and "\n" not in str(caught.value)
    assert house.engine.config == old
    assert house.plane.services == services and house.plane.addresses == addresses
    assert house.steering["wan"].set == {"10.0.0.1"}
    house.make({"op": "service.add", **DNS})
    assert len(house.plane.services) == 2


def test_after_a_failure_between_changes_everything_is_told_anew(house):
    """The host's routes move while the plane has no room; the next change finds a plane of which nothing is certain."""
    services = dict(house.plane.services)
    house.plane.fail = "put_routes"
    house.engine.set_kernel_routes([Route(prefix="10.9.0.0/16", port="lan")])
    assert "10.9.0.0/16" not in put_routes(house)
    told = [call[0] for call in house.make({"op": "service.add", **DNS})]
    assert told.count("put_service") == 2 and "put_addresses" in told and told[-1] == "publish"
    assert "10.9.0.0/16" in put_routes(house)
    assert services.items() <= house.plane.services.items() and len(house.plane.services) == 2
    house.plane.of_service = {id: Stats(conns=5) for id in house.plane.services}
    assert [s["stats"]["conns"] for s in house.engine.services()] == [5, 5], "counters go on"
    assert [call[0] for call in house.make({"op": "service.del", **DNS})] == ["del_service", "publish"]


def test_worker_that_does_not_follow_is_an_error(house):
    house.plane.workers_run = "stuck"
    with pytest.raises(EngineError) as caught:
        house.make({"op": "addr.add", "addr": "10.0.0.2", "port": "wan"})
    assert caught.value.code == "FN-1302"
    assert "10.0.0.2" not in house.steering["wan"].set


def test_without_a_worker_it_will_be_in_force_later(house):
    house.plane.workers_run = "none"
    house.make({"op": "addr.add", "addr": "10.0.0.2", "port": "wan"})
    assert "10.0.0.2" in house.steering["wan"].set


def test_restart_puts_everything_and_mends_the_programs(house):
    house.steering["wan"].set = {"10.0.0.9"}
    ids = list(house.plane.services)
    house = house.restart()
    assert house.steering["wan"].set == {"10.0.0.1"}
    assert list(house.plane.services) == ids


# ---- routes ----


def put_routes(house):
    return {r[0]: r for r in house.plane.routes}


def test_address_with_a_prefix_makes_a_route(house):
    assert put_routes(house) == {"10.0.0.0/24": ("10.0.0.0/24", "", "10.0.0.1", 0, 0, 0, "unicast")}


def test_kernel_routes_are_mirrored_and_given_ones_win(house):
    house.engine.set_kernel_routes(
        [
            Route(prefix="10.2.0.0/24", port="lan", scope="link", src="10.2.0.77", mtu=1300),
            Route(prefix="0.0.0.0/0", gateway="10.2.0.254", port="lan", metric=100),
            Route(prefix="10.0.0.0/24", port="lan", scope="link"),
            Route(prefix="10.7.0.0/24", port="mgmt"),
        ]
    )
    routes = put_routes(house)
    assert routes["10.2.0.0/24"] == ("10.2.0.0/24", "", "10.2.0.1", 3, 1300, 0, "unicast"), (
        "the host's address cannot ask"
    )
    assert routes["0.0.0.0/0"] == ("0.0.0.0/0", "10.2.0.254", "10.2.0.1", 3, 0, 100, "unicast"), (
        "a LIP asks for the gateway"
    )
    assert routes["10.0.0.0/24"][3] == 0, "the route of our address wins"
    assert "10.7.0.0/24" not in routes
    house.make({"op": "route.add", "prefix": "default", "gateway": "10.0.0.254"})
    assert put_routes(house)["0.0.0.0/0"] == ("0.0.0.0/0", "10.0.0.254", "10.0.0.1", 0, 0, 0, "unicast")
    shown = {(r["prefix"], r["scope"]): r["proto"] for r in house.engine.routes()}
    assert shown == {
        ("10.0.0.1/32", "host"): "auto",
        ("10.2.0.1/32", "host"): "auto",
        ("0.0.0.0/0", "global"): "static",
        ("10.0.0.0/24", "link"): "auto",
        ("10.2.0.0/24", "link"): "kernel",
    }
    before = len(house.plane.calls)
    house.engine.set_kernel_routes(house.engine._kernel_routes)
    assert len(house.plane.calls) == before, "the same again is no work"


def test_manual_routes_leave_the_kernel_out(house):
    house.engine.set_kernel_routes([Route(prefix="10.2.0.0/24", port="lan", scope="link")])
    config = house.engine.config
    house.commit(config.model_copy(update={"host": config.host.model_copy(update={"routes": "manual"})}))
    assert list(put_routes(house)) == ["10.0.0.0/24"]


def test_carve_out_goes_to_the_host(house):
    house.make({"op": "route.add", "prefix": "10.0.0.28/32", "port": "wan", "scope": "kni_host"})
    assert put_routes(house)["10.0.0.28/32"] == ("10.0.0.28/32", "", "", 0, 0, 0, "host")


def test_gateway_outside_every_prefix_is_asked_for_with_the_packets_source(house):
    house.make({"op": "route.add", "prefix": "default", "gateway": "10.99.0.1", "port": "lan"})
    assert put_routes(house)["0.0.0.0/0"][2] == ""


# ---- neighbours and links ----


def test_kernel_neighbours_are_told_when_new_and_static_ones_stay(house):
    one = HostNeighbour(addr="10.2.0.9", mac="02:00:00:00:00:09", port="lan")
    house.engine.set_kernel_neighbours([one])
    assert house.plane.neighs[3, "10.2.0.9"] == ("02:00:00:00:00:09", False)
    before = len(house.plane.calls)
    house.engine.set_kernel_neighbours([one])
    assert len(house.plane.calls) == before
    house.make({"op": "neigh.add", "addr": "10.2.0.9", "mac": "02:00:00:00:00:0a", "port": "lan"})
    house.engine.set_kernel_neighbours([one.model_copy(update={"mac": "02:00:00:00:00:0b"})])
    assert house.plane.neighs[3, "10.2.0.9"] == ("02:00:00:00:00:0a", True)
    house.make({"op": "neigh.del", "addr": "10.2.0.9", "port": "lan"})
    assert house.plane.neighs[3, "10.2.0.9"] == ("02:00:00:00:00:0b", False)
    assert house.engine.neighbours("lan")[0]["state"] == "REACHABLE" and house.engine.neighbours("wan") == []


def test_a_permanent_neighbour_of_the_host_is_static_until_the_host_drops_it(house):
    one = HostNeighbour(addr="10.2.0.9", mac="02:00:00:00:00:09", port="lan", permanent=True)
    house.engine.set_kernel_neighbours([one])
    assert house.plane.neighs[3, "10.2.0.9"] == ("02:00:00:00:00:09", True)
    house.make({"op": "neigh.add", "addr": "10.2.0.9", "mac": "02:00:00:00:00:0a", "port": "lan"})
    house.make({"op": "neigh.del", "addr": "10.2.0.9", "port": "lan"})
    assert house.plane.neighs[3, "10.2.0.9"] == ("02:00:00:00:00:09", True)
    house.engine.set_kernel_neighbours([one.model_copy(update={"permanent": False})])
    assert house.plane.neighs[3, "10.2.0.9"] == ("02:00:00:00:00:09", False)
    house.engine.set_kernel_neighbours([one])
    house.engine.set_kernel_neighbours([])
    assert (3, "10.2.0.9") not in house.plane.neighs


def test_static_neighbour_of_an_earlier_control_goes(house):
    house.plane.neighs[3, "10.2.0.8"] = ("02:00:00:00:00:08", True)
    house = house.restart()
    assert (3, "10.2.0.8") not in house.plane.neighs


def test_fewer_ports_leave_less_room(house):
    config = house.engine.config
    told = house.commit(config.model_copy(update={"host": Host(lports=(2000, 2063))}))
    assert [call[0] for call in told] == ["put_settings", "publish"]
    assert [v["sa_free"] for v in house.engine.addresses("lan")] == [64]


def test_rates_and_announcements_are_told(house):
    limits = {"icmp_rate": 1000, "echo_rate": 10000, "echo_served": False, "announce": True}
    assert house.plane.limits == limits
    host = Host(echo="while-served", echo_rate=0, icmp_rate=7, announce=False)
    house.commit(house.engine.config.model_copy(update={"host": host}))
    assert house.plane.limits == {"icmp_rate": 7, "echo_rate": 0, "echo_served": True, "announce": False}


def kinds(house):
    return {addr: kind for _, addr, kind, _ in house.plane.addresses}


def test_a_vip_is_marked_while_a_server_is_usable_where_that_counts(house):
    """The mark follows the weights of the services on the VIP; LIPs never have it."""
    config = house.engine.config
    before = kinds(house)
    assert not any("served" in kind for kind in before.values())
    house.commit(config.model_copy(update={"host": Host(echo="while-served")}))
    marked = kinds(house)
    vips = {service.vip for service in config.services}
    served = {s.vip for s in config.services if any(r.weight for r in s.servers)}
    assert vips and marked == {a: k + "+served" * (a in served) for a, k in before.items()}
    idle = {
        s.key: s.model_copy(update={"servers": tuple(r.model_copy(update={"weight": 0}) for r in s.servers)})
        for s in config.services
    }
    drained = house.engine.config.model_copy(update={"services": house.engine.config.services.edited(idle)})
    house.commit(drained)
    assert kinds(house) == before
    house.commit(house.engine.config.model_copy(update={"services": config.services}))
    assert kinds(house) == marked
    house.commit(house.engine.config.model_copy(update={"host": Host()}))
    assert kinds(house) == before


def test_link_follows_the_kernel_and_the_operator(house):
    house.engine.set_kernel_link("lan", up=False, mtu=1300, mac="02:00:00:00:00:77")
    assert house.plane.ports[3] == ("lan", "02:00:00:00:00:77", 1300, False, True)
    house.engine.set_kernel_link("lan", up=True, mtu=1300, mac="02:00:00:00:00:77")
    house.make({"op": "link.set", "port": "lan", "up": False})
    assert house.plane.ports[3][3] is False
    assert {v["name"]: v["up"] for v in house.engine.port_views()} == {"wan": True, "lan": False}


def test_flow_rules_are_those_of_the_lips():
    rules = FakeRules()
    house = House(rules={"lan": rules})
    assert rules.held == set(), "what an earlier run left goes"
    house.make(*SERVICE)
    assert rules.held == {"10.2.0.1"}
    house.make({"op": "lip.add", "service": WEB, "addr": "10.2.0.2", "port": "lan"})
    assert rules.held == {"10.2.0.1", "10.2.0.2"}
    with pytest.raises(EngineError, match="port lan: the NIC cannot; use another"):
        house.make({"op": "lip.add", "service": WEB, "addr": "10.2.0.66", "port": "lan"})
    assert rules.held == {"10.2.0.1", "10.2.0.2"}
    assert [lip.addr for lip in house.engine.config.services[0].lips] == ["10.2.0.1", "10.2.0.2"]
    house.make({"op": "service.clear"})
    assert rules.held == set()


# ---- listings ----


def test_services_show_lips_and_servers(house):
    lip = next(id for id, addr, _, _ in house.plane.addresses if addr == "10.2.0.1")
    house.plane.of_address[lip] = AddressStats(misses=2, used=5, conns=4)
    (view,) = house.engine.services("tcp", "10.0.0.1", 80)
    assert view["lips"] == [{"addr": "10.2.0.1", "port": "lan", "conns": 4, "conflicts": 2}]
    assert [(r["rip"], r["rport"], r["weight"]) for r in view["servers"]] == [("10.1.1.1", 8080, 3)]
    assert house.engine.services("udp") == []


# number of distinct servers -> free ports of the LIP with 5 in use
ROOM = [(1, 64512 - 5), (2, 2 * 64512 - 5)]


@pytest.mark.parametrize(("servers", "free"), ROOM)
def test_free_ports_are_counted_towards_distinct_servers(house, servers, free):
    lip = next(id for id, addr, _, _ in house.plane.addresses if addr == "10.2.0.1")
    house.plane.of_address[lip] = AddressStats(used=5)
    other = {**WEB, "vport": 81}
    house.make(
        {"op": "service.add", **other},
        {"op": "lip.add", "service": other, "addr": "10.2.0.1", "port": "lan"},
        {"op": "server.add", "service": other, "rip": f"10.1.1.{servers}", "rport": 8080},
    )
    views = {v["addr"]: v for v in house.engine.addresses()}
    assert (views["10.2.0.1"]["sa_used"], views["10.2.0.1"]["sa_free"], views["10.2.0.1"]["sapool"]) == (5, free, True)
    assert (views["10.0.0.1"]["plen"], views["10.0.0.1"]["sapool"]) == (24, False)


def conn(worker, n, proto=6):
    return Conn(
        worker, proto, "TCP_EST", f"10.9.0.{n}", 1000 + n, "10.0.0.1", 80, "10.2.0.1", 2000 + n, "10.1.1.1", 8080
    )


def test_conns_page_through_all_workers(house):
    house.plane.connections = [[conn(0, n) for n in range(5)], [conn(1, n) for n in range(3)]]
    seen, cursor = [], None
    while True:
        page = house.engine.conns(limit=2, cursor=cursor)
        seen += [(c["worker"], c["cport"]) for c in page["conns"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert seen == [(0, 1000 + n) for n in range(5)] + [(1, 1000 + n) for n in range(3)]
    assert [c["worker"] for c in house.engine.conns(worker=1)["conns"]] == [1, 1, 1]
    assert house.engine.conns(rip="10.1.1.2")["conns"] == []
    assert house.engine.conns(proto="udp")["conns"] == []
    assert house.engine.conns(worker=1)["conns"][0]["proto"] == "tcp"


@pytest.mark.parametrize(
    ("query", "words"),
    [({"worker": 2}, "workers are 0..1"), ({"cursor": "x"}, "not a cursor"), ({"state": "EST"}, "TCP_EST")],
)
def test_wrong_question_about_conns(house, query, words):
    with pytest.raises(ChangeError, match=words):
        house.engine.conns(**query)


# ---- the real plane ----


def test_real_plane_takes_it_all():
    core = pytest.importorskip("fnat._core")
    plane = core.Plane.create(None, conns=1024, services=64, members=256, endpoints=256, frames=256, snapshot_mib=1)
    worker = core.Worker(plane, 0)
    lan = LAN.model_copy(update={"id": 1})
    engine = Engine(plane, {}, [WAN, lan], Ids(None))
    engine.commit(EMPTY)
    number = engine.commit(plan.apply(EMPTY, CHANGES.validate_python(SERVICE)))
    worker.step(core.monotonic_ns())
    assert plane.adopted() == number
    changes = [
        {"op": "service.set", **WEB, "scheduler": "rr", "half_open": 5},
        {"op": "service.add", **DNS},
        {"op": "route.add", "prefix": "10.7.0.0/16", "port": "lan"},
        {"op": "neigh.add", "addr": "10.7.0.9", "mac": "02:00:00:00:00:09", "port": "lan"},
    ]
    assert engine.commit(plan.apply(engine.config, CHANGES.validate_python(changes))) > number
    worker.step(core.monotonic_ns())
    assert [s["vport"] for s in engine.services()] == [80, 53]
    assert engine.neighbours() == [
        {"addr": "10.7.0.9", "mac": "02:00:00:00:00:09", "state": "REACHABLE", "port": "lan", "static": True}
    ]
    assert engine.conns() == {"conns": [], "next": None}
    assert engine.workers()[0]["counters"]["steps"] >= 2
    engine.commit(EMPTY)
    worker.step(core.monotonic_ns())
    engine.sample(1.0)
    engine.sweep()
    assert engine.services() == [] and plane.adopted() == engine.snapshot
    plane.close()


# ---- headroom ----


def ports_in_use(house, *rows):
    """(worker, LIP, RS's last byte, used); the LIP by address."""
    ids = {addr: id for id, addr, _, _ in house.plane.addresses}
    house.plane.used_ports = [(w, 6, ids[lip], f"10.1.1.{rs}", 8080, used) for w, lip, rs, used in rows]


def test_headroom_of_a_service_has_all_its_pairs(house):
    house.make(
        {"op": "server.add", "service": WEB, "rip": "10.1.1.2", "rport": 8080},
        {"op": "lip.add", "service": WEB, "addr": "10.2.0.2", "port": "lan"},
    )
    ports_in_use(house, (0, "10.2.0.1", 1, 100), (1, "10.2.0.1", 1, 300), (0, "10.2.0.2", 2, 5))
    view = house.engine.headroom("tcp", "10.0.0.1", 80)
    rows = {(r["lip"], r["rip"]): (r["used"], r["free"], r["busiest"], r["share"]) for r in view["rows"]}
    assert rows == {
        ("10.2.0.1", "10.1.1.1"): (400, 64_112, 300, 32_256),
        ("10.2.0.2", "10.1.1.2"): (5, 64_507, 5, 32_256),
        ("10.2.0.1", "10.1.1.2"): (0, 64_512, 0, 32_256),
        ("10.2.0.2", "10.1.1.1"): (0, 64_512, 0, 32_256),
    }
    assert [r["used"] for r in house.engine.headroom(limit=1)["rows"]] == [400], "the fullest first, used ones only"
    assert house.engine.headroom("udp")["rows"] == []
    assert house.engine.forecast()[2] == {Key("tcp", "10.0.0.1", 80): 64_112}


def test_headroom_is_forecast_from_samples(house, monkeypatch):
    for at, used in ((0.0, 100), (20.0, 140), (40.0, 180)):
        ports_in_use(house, (0, "10.2.0.1", 1, used))
        house.engine.sample(at)
    monkeypatch.setattr("time.monotonic", lambda: 41.0)
    ports_in_use(house, (0, "10.2.0.1", 1, 182))
    (row,) = house.engine.headroom()["rows"]
    assert row["full_in"] == pytest.approx((64_512 - 182) / 2) == house.engine.headroom()["ports_full_in"]
    assert house.engine.headroom()["conns_full_in"] is None
