"""Changes on configs: what is made, what is refused, and that diff is the inverse of apply."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fnat import plan
from fnat.errors import ChangeError
from fnat.model import (
    CHANGES,
    MOST_SLOTS,
    SCHEDULERS,
    Address,
    Config,
    LocalAddress,
    Neighbour,
    Port,
    RealServer,
    Route,
    Service,
    ServiceDel,
    ServiceRef,
)

WEB = {"proto": "tcp", "vip": "10.0.0.1", "vport": 80}
WEB6 = {"proto": "tcp", "vip": "2001:db8::1", "vport": 80}
RS = {"service": WEB, "rip": "10.1.1.1", "rport": 80}
PORTS = (Port(name="wan"), Port(name="lan"))

ADD = [
    {"op": "service.add", **WEB},
    {"op": "server.add", **RS, "weight": 3},
    {"op": "lip.add", "service": WEB, "addr": "10.2.0.1", "port": "lan"},
    {"op": "addr.add", "addr": "10.0.0.1", "plen": 24, "port": "wan"},
    {"op": "route.add", "prefix": "default", "gateway": "10.0.0.254"},
    {"op": "route.add", "prefix": "10.3.0.0/16", "port": "lan", "metric": 5},
    {"op": "neigh.add", "addr": "10.2.0.9", "mac": "02:00:00:00:00:09", "port": "lan"},
]


def make(*changes, config=None):
    return plan.apply(config or Config(ports=PORTS), CHANGES.validate_python(list(changes)))


ADD6 = [
    {"op": "service.add", **WEB6},
    {"op": "server.add", "service": WEB6, "rip": "10.1.1.1", "rport": 80},
    {"op": "server.add", "service": WEB6, "rip": "2001:db8:1::1", "rport": 80},
    {"op": "lip.add", "service": WEB6, "addr": "2001:db8:2::1", "port": "lan"},
    {"op": "addr.add", "addr": "2001:db8::1", "plen": 64, "port": "wan"},
    {"op": "route.add", "prefix": "::/0", "gateway": "2001:db8::ffff"},
    {"op": "route.add", "prefix": "2001:db8:9::/48", "gateway": "fe80::9", "port": "lan", "mtu": 1400},
    {"op": "neigh.add", "addr": "fe80::9", "mac": "02:00:00:00:00:09", "port": "lan"},
]

BASE = make(*ADD)
BOTH = make(*ADD6, config=BASE)


def test_adds_make_things():
    (service,) = BASE.services
    assert service.scheduler == "wrr"
    assert service.servers == (RealServer(rip="10.1.1.1", rport=80, weight=3),)
    assert service.lips == (LocalAddress(addr="10.2.0.1", port="lan"),)
    assert BASE.addresses == (Address(addr="10.0.0.1", plen=24, port="wan"),)
    assert BASE.neighbours == (Neighbour(addr="10.2.0.9", mac="02:00:00:00:00:09", port="lan"),)
    default, internal = BASE.routes
    assert (default.port, default.scope) == ("wan", "global"), "the port follows from the gateway"
    assert (internal.port, internal.scope) == ("lan", "link")


def test_adds_make_things_of_both_families():
    service = BOTH.services[1]
    assert [r.key for r in service.servers] == [("10.1.1.1", 80), ("2001:db8:1::1", 80)]
    default, far = BOTH.routes[-2:]
    assert (default.port, default.scope) == ("wan", "global"), "the port follows from the gateway"
    assert (far.port, far.gateway, far.mtu) == ("lan", "fe80::9", 1400)
    assert make({"op": "route.flush", "family": 6}, config=BOTH).routes == BASE.routes
    assert make({"op": "route.flush", "port": "lan", "family": 4}, config=BOTH).routes[-1] == far
    assert make({"op": "addr.flush", "port": "wan", "family": 6}, config=BOTH).addresses == BASE.addresses
    assert make({"op": "addr.add", "addr": "2001:db8:5::", "plen": 127, "port": "wan"}, config=BOTH)  # RFC 6164


# sentence, changes, what must then be true
DONE = [
    ("set changes only what is given", [{"op": "service.set", **WEB, "no_rs": "reset"}],
     lambda c: (c.services[0].no_rs, c.services[0].scheduler, len(c.services[0].servers)) == ("reset", "wrr", 1)),
    ("set can go back to the default quota", [{"op": "service.set", **WEB, "half_open": 5}, {"op": "service.set", **WEB, "half_open": None}],
     lambda c: c.services[0].half_open is None),
    ("weight", [{"op": "server.set", **RS, "weight": 0}], lambda c: c.services[0].servers[0].weight == 0),
    ("server goes", [{"op": "server.del", **RS}], lambda c: c.services[0].servers == ()),
    ("LIP goes", [{"op": "lip.del", "service": WEB, "addr": "10.2.0.1", "port": "lan"}], lambda c: c.services[0].lips == ()),
    ("service goes", [{"op": "service.del", **WEB}], lambda c: c.services == ()),
    ("all services go", [{"op": "service.clear"}], lambda c: c.services == () and len(c.addresses) == 1),
    ("zero changes nothing", [{"op": "service.zero"}], lambda c: c == BASE),
    ("address goes", [{"op": "addr.del", "addr": "10.0.0.1", "plen": 24, "port": "wan"}], lambda c: c.addresses == ()),
    ("addresses of a port go", [{"op": "addr.flush", "port": "wan"}], lambda c: c.addresses == ()),
    ("addresses of the other port stay", [{"op": "addr.flush", "port": "lan"}], lambda c: len(c.addresses) == 1),
    ("route goes", [{"op": "route.del", "prefix": "default"}], lambda c: [r.prefix for r in c.routes] == ["10.3.0.0/16"]),
    ("routes of a port go", [{"op": "route.flush", "port": "lan"}], lambda c: [r.prefix for r in c.routes] == ["0.0.0.0/0"]),
    ("all routes go", [{"op": "route.flush"}], lambda c: c.routes == ()),
    ("route moves", [{"op": "route.set", "prefix": "default", "gateway": "10.0.0.253", "port": "wan"}],
     lambda c: c.routes[0].gateway == "10.0.0.253"),
    ("same prefix with another metric", [{"op": "route.add", "prefix": "10.3.0.0/16", "port": "wan", "metric": 6}],
     lambda c: len(c.routes) == 3),
    ("carve-out", [{"op": "route.add", "prefix": "10.0.0.28/32", "port": "wan", "scope": "kni_host"}],
     lambda c: c.routes[-1].scope == "kni_host"),
    ("neighbour goes", [{"op": "neigh.del", "addr": "10.2.0.9", "port": "lan"}], lambda c: c.neighbours == ()),
    ("link down", [{"op": "link.set", "port": "lan", "up": False}], lambda c: c.down == ("lan",)),
    ("link down and up", [{"op": "link.set", "port": "lan", "up": False}, {"op": "link.set", "port": "lan", "up": True}],
     lambda c: c == BASE),
    ("service without address", [{"op": "service.add", "proto": "udp", "vip": "10.9.9.9", "vport": 53}], lambda c: len(c.services) == 2),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "holds"), [d[1:] for d in DONE], ids=[d[0] for d in DONE])
def test_change_does_what_it_says(changes, holds):
    assert holds(make(*changes, config=BASE))


def test_a_server_without_weight_has_nothing_to_shift():
    empty = make({"op": "server.set", **RS, "weight": 0}, {"op": "server.add", **RS, "rip": "10.1.1.2"}, config=BASE)
    with pytest.raises(ChangeError, match="nothing to shift"):
        make({"op": "server.shift", **RS, "to_rip": "10.1.1.2", "to_rport": 80, "per_min": 5, "started": 1}, config=empty)


# sentence, change, status, code, words
REFUSED = [
    ("service twice", {"op": "service.add", **WEB}, 409, "FN-1204", "tcp 10.0.0.1:80 exists already"),
    ("no service to set", {"op": "service.set", **WEB, "vport": 81}, 404, "FN-1203", "the nearest is tcp 10.0.0.1:80"),
    ("no service to delete", {"op": "service.del", **WEB, "proto": "udp"}, 404, "FN-1203", "no service udp"),
    ("no service to zero", {"op": "service.zero", **WEB, "vport": 81}, 404, "FN-1203", "no service"),
    ("server twice", {"op": "server.add", **RS}, 409, "FN-1204", "server 10.1.1.1:80"),
    ("no server to set", {"op": "server.set", **RS, "rport": 81}, 404, "FN-1203", "no server 10.1.1.1:81"),
    ("no server to delete", {"op": "server.del", **RS, "rip": "10.1.1.2"}, 404, "FN-1203", "no server"),
    ("server of no service", {"op": "server.add", **RS, "service": {**WEB, "vport": 1}}, 404, "FN-1203", "no service"),
    ("LIP twice", {"op": "lip.add", "service": WEB, "addr": "10.2.0.1", "port": "lan"}, 409, "FN-1204", "LIP"),
    ("LIP on no port", {"op": "lip.add", "service": WEB, "addr": "10.2.0.2", "port": "lam"}, 404, "FN-1207", "did you mean 'lan'"),
    ("LIP is the VIP", {"op": "lip.add", "service": WEB, "addr": "10.0.0.1", "port": "wan"}, 409, "FN-1205", "a LIP of"),
    ("VIP is a LIP", {"op": "service.add", **WEB, "vip": "10.2.0.1"}, 409, "FN-1205", "would be the VIP"),
    ("LIP on two ports", {"op": "lip.add", "service": WEB, "addr": "10.2.0.1", "port": "wan"}, 409, "FN-1204", "exists"),
    ("no LIP to delete", {"op": "lip.del", "service": WEB, "addr": "10.2.0.2", "port": "lan"}, 404, "FN-1203", "10.2.0.1"),
    ("LIP on another port", {"op": "lip.del", "service": WEB, "addr": "10.2.0.1", "port": "wan"}, 404, "FN-1203", "on wan"),
    ("address twice", {"op": "addr.add", "addr": "10.0.0.1", "port": "wan"}, 409, "FN-1204", "exists"),
    ("address of a LIP elsewhere", {"op": "addr.add", "addr": "10.2.0.1", "port": "wan"}, 409, "FN-1205", "on lan"),
    ("network address", {"op": "addr.add", "addr": "10.5.0.0", "plen": 16, "port": "wan"}, 400, "FN-1201", "network or"),
    ("other prefix length", {"op": "addr.del", "addr": "10.0.0.1", "port": "wan"}, 404, "FN-1203", "10.0.0.1/24 on wan"),
    ("LIP in use", {"op": "addr.del", "addr": "10.2.0.1", "port": "lan"}, 409, "FN-1206", "is a LIP of tcp"),
    ("address on no port", {"op": "addr.flush", "port": "eth9"}, 404, "FN-1207", "use one of: wan, lan"),
    ("route twice", {"op": "route.add", "prefix": "default", "gateway": "10.0.0.9"}, 409, "FN-1204", "route.set"),
    ("route to nowhere", {"op": "route.add", "prefix": "10.9.0.0/16", "gateway": "10.8.0.1"}, 400, "FN-1201", "name one of"),
    ("host scope", {"op": "route.add", "prefix": "10.9.0.1", "port": "wan", "scope": "host"}, 400, "FN-1201", "addr.add"),
    ("link scope with gateway", {"op": "route.add", "prefix": "10.9.0.0/16", "gateway": "10.0.0.9", "scope": "link"}, 400, "FN-1201", "no gateway"),
    ("global scope without", {"op": "route.add", "prefix": "10.9.0.0/16", "port": "wan", "scope": "global"}, 400, "FN-1201", "needs a gateway"),
    ("anycast address", {"op": "addr.add", "addr": "2001:db8::", "plen": 64, "port": "wan"}, 400, "FN-1201", "anycast"),
    ("link-local gateway on no port", {"op": "route.add", "prefix": "::/0", "gateway": "fe80::1"}, 400, "FN-1201", "name one of"),
    ("no IPv6 server", {"op": "server.del", **RS, "rip": "2001:db8::1"}, 404, "FN-1203", "no server [2001:db8::1]:80"),
    ("VIP6 is a LIP", {"op": "lip.add", "service": WEB6, "addr": "2001:db8::1", "port": "wan"}, 409, "FN-1205", "LIP of tcp [2001"),
    ("LIP6 in use", {"op": "addr.del", "addr": "2001:db8:2::1", "plen": 128, "port": "lan"}, 409, "FN-1206", "is a LIP of tcp [2001:"),
    ("no route to set", {"op": "route.set", "prefix": "10.9.0.0/16", "port": "wan"}, 404, "FN-1203", "no route"),
    ("no route to delete", {"op": "route.del", "prefix": "default", "gateway": "10.0.0.1"}, 404, "FN-1203", "gateway 10.0.0.1"),
    ("neighbour twice", {"op": "neigh.add", "addr": "10.2.0.9", "mac": "02:00:00:00:00:0a", "port": "lan"}, 409, "FN-1204", "exists"),
    ("no neighbour to delete", {"op": "neigh.del", "addr": "10.2.0.8", "port": "lan"}, 404, "FN-1203", "10.2.0.9"),
    ("link of no port", {"op": "link.set", "port": "eth9", "up": True}, 404, "FN-1207", "no port 'eth9'"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "status", "code", "words"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_refusal_names_the_mend(change, status, code, words):
    with pytest.raises(ChangeError) as caught:
        make(change, config=BOTH)
    error = caught.value
    assert (error.status, error.code) == (status, code), str(error)
    assert words in str(error) and error.fix and "\n" not in str(error)


def test_overlay_on_a_file_that_moved_on():
    told = []
    changes = CHANGES.validate_python(
        [
            {"op": "service.add", **WEB, "scheduler": "rr"},
            {"op": "server.del", **RS},
            {"op": "service.del", **WEB, "vport": 7},
        ]
    )
    result = plan.apply(BASE, changes, lenient=told.append)
    assert result.services[0].scheduler == "rr" and len(result.services[0].lips) == 1
    assert result.services[0].servers == ()
    assert len(told) == 1 and told[0].startswith("service.del is not possible any more")


def test_subject_is_the_same_for_all_changes_of_a_thing():
    one, two, other = CHANGES.validate_python(
        [{"op": "server.add", **RS}, {"op": "server.del", **RS}, {"op": "server.del", **RS, "rport": 81}]
    )
    assert plan.subject(one) == plan.subject(two) == "server tcp 10.0.0.1:80 10.1.1.1 80"
    assert plan.subject(one) != plan.subject(other)


# ---- diff ----

few = st.integers(1, 3)
networks = st.sampled_from(["10.{}.0.", "2001:db8:{}::"])


def hosts(net):
    """Addresses of both families in a network."""
    return st.tuples(networks, few).map(lambda t: t[0].format(net) + str(t[1]))


lips = st.lists(hosts(2).map(lambda a: LocalAddress(addr=a, port="lan")), unique=True).map(tuple)
shapes = st.sampled_from(
    [{}, {"role": "backup"}, {"upper": 3}, {"upper": 4, "lower": 4}, {"upper": 9, "lower": 2, "max_new_per_s": 1}]
)
servers = st.dictionaries(hosts(1), st.tuples(st.integers(0, 2), shapes)).map(
    lambda d: tuple(RealServer(rip=a, rport=80, weight=w, **shape) for a, (w, shape) in d.items())
)
services = st.lists(
    st.builds(
        Service,
        proto=st.sampled_from(["tcp", "udp"]),
        vip=hosts(0),
        vport=st.just(80),
        scheduler=st.sampled_from(SCHEDULERS),
        half_open=st.sampled_from([None, 0, 5]),
        max_conns=st.sampled_from([0, 7]),
        no_rs=st.sampled_from(["drop", "10.9.9.9:80"]),
        lips=lips,
        servers=servers,
    ),
    unique_by=lambda s: s.key,
    max_size=4,
).map(tuple)
addresses = st.dictionaries(hosts(0), st.sampled_from([24, 32])).map(
    lambda d: tuple(Address(addr=a, plen=p, port="wan") for a, p in d.items())
)
routes = st.dictionaries(
    st.tuples(few, st.sampled_from(["10.{}.0.0/16", "2001:db8:{}::/48"])), st.sampled_from(["wan", "lan"])
).map(lambda d: tuple(Route(prefix=net.format(n), port=p, scope="link") for (n, net), p in d.items()))
neighbours = st.dictionaries(hosts(0), few).map(
    lambda d: tuple(Neighbour(addr=a, mac=f"02:00:00:00:00:0{m}", port="wan") for a, m in d.items())
)
configs = st.builds(
    Config,
    ports=st.just(PORTS),
    services=services,
    addresses=addresses,
    routes=routes,
    neighbours=neighbours,
    down=st.sampled_from([(), ("wan",), ("wan", "lan")]),
)


def things(config: Config):
    """The config without its order."""
    return (
        {
            s.key: (s.model_copy(update={"lips": (), "servers": ()}), set(s.lips), set(s.servers))
            for s in config.services
        },
        *(set(part) for part in (config.addresses, config.routes, config.neighbours, config.down)),
    )


@given(configs, configs)
def test_diff_leads_from_one_to_the_other(old, new):
    changes = plan.diff(old, new)
    assert things(plan.apply(old, changes)) == things(new)
    if things(old) == things(new):
        assert changes == []


def test_diff_of_one_service_is_one_change():
    ref = ServiceRef(**WEB)
    assert plan.diff(BASE, make({"op": "service.del", **WEB}, config=BASE)) == [ServiceDel(**ref.model_dump())]


SET = {"op": "set.add", "name": "bad"}
TOLD = [
    ([SET], ["+ set bad: hash:net"]),
    ([{**SET, "type": "bitmap:ip", "span": "10.0.0.1-10.0.0.9"}], ["+ set bad: bitmap:ip, 10.0.0.1-10.0.0.9"]),
    ([{**SET, "entries": ["10.0.0.1", "10.0.0.0/24 nomatch"]}],
     ["+ set bad: hash:net", "+ entries of set bad: 10.0.0.0/24 nomatch, 10.0.0.1"]),
    ([{**SET, "entries": [f"10.0.0.{n}" for n in range(100)]}],
     ["+ set bad: hash:net", "+ entries of set bad: 100 entries"]),
    ([{"op": "acl.add", "list": "deny", "entry": "10.0.0.0/8"}], ["+ acl deny 10.0.0.0/8"]),
    ([{"op": "server.drain", **RS}], ["~ rs 10.1.1.1:80 of tcp 10.0.0.1:80: drain"]),
    ([{"op": "server.add", **RS, "rip": "10.1.1.2"},
      {"op": "server.shift", **RS, "to_rip": "10.1.1.2", "to_rport": 80, "per_min": 5, "started": 1}],
     ["+ rs 10.1.1.2:80 of tcp 10.0.0.1:80: weight 1",
      "~ rs 10.1.1.1:80 of tcp 10.0.0.1:80: shift to 10.1.1.2:80, 5 %/min"]),
    ([{"op": "service.set", **WEB, "scheduler": "rr", "persistent": 9, "max_conns": 7, "per_client": 3, "new_per_s": 5}],
     ["~ service tcp 10.0.0.1:80: scheduler wrr -> rr, persistent 0 -> 9, max_conns 0 -> 7, new_per_s 0 -> 5, "
      "per_client 0 -> 3"]),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "lines"), TOLD)
def test_differences_are_told_in_one_order_and_at_any_size(changes, lines):
    config = make(*changes, config=BASE)
    assert plan.describe(BASE, config) == lines
    back = plan.describe(config, BASE)
    assert back and not any("(" in line or "=" in line for line in back)


OPTIONS = [
    ("rr", {"hash_target": "sip-port"}, "is for sh, mh, conhash, not for rr"),
    ("mh", {"hash_target": "qid"}, "UDP services only"),
    ("conhash", {"hash_slots": 4093}, "hash_slots is for mh"),
    ("mh", {"slow_start": 9}, "peers must agree"),
    ("lc", {"slow_start": 9}, "it ignores weights"),
    ("fo", {"slow_start": 9}, "the highest weight"),
]


@pytest.mark.parametrize(("scheduler", "options", "says"), OPTIONS)
def test_an_option_that_would_do_nothing_is_refused(scheduler, options, says):
    with pytest.raises(ChangeError, match=says) as caught:
        make({"op": "service.add", **WEB, "scheduler": scheduler, **options})
    assert caught.value.code == "FN-1222"


def test_options_go_with_their_scheduler():
    config = make({"op": "service.add", **WEB, "scheduler": "mh", "hash_target": "sip-port", "hash_slots": 1021})
    config = make({"op": "service.set", **WEB, "scheduler": "wlc", "slow_start": 30}, config=config)
    (service,) = config.services
    assert (service.hash_target, service.hash_slots, service.slow_start) == ("sip", 65537, 30)
    (service,) = make({"op": "service.set", **WEB, "scheduler": "sh"}, config=config).services
    assert service.slow_start == 0


def test_tables_of_all_services_have_a_room():
    many = [{"op": "service.add", **WEB, "vport": port, "scheduler": "mh"} for port in range(1, 257)]
    config = make(*many)
    assert config.services.table_slots == MOST_SLOTS
    with pytest.raises(ChangeError, match="there is room for") as caught:
        make({"op": "service.add", **WEB, "vport": 300, "scheduler": "mh", "hash_slots": 1021}, config=config)
    assert caught.value.code == "FN-1221"
    fewer = make(
        {"op": "service.set", **WEB, "vport": 1, "hash_slots": 4093},
        {"op": "service.del", **WEB, "vport": 2},
        config=config,
    )
    assert fewer.services.table_slots == 254 * 65537 + 4093
    assert fewer.services.table_slots == type(fewer.services)(fewer.services).table_slots
