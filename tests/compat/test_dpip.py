"""dpip as DPVS's documents and runbooks use it: command lines -> changes, resources -> the exact listing."""

from __future__ import annotations

from typing import Any

import pytest

from fnat.grammar import Usage, dpip
from fnat.grammar.dpip import Changes, Show, Word, parse
from fnat.model import CHANGES as MODEL


def route(op: str, prefix: str, **more: Any) -> dict[str, Any]:
    return {"op": f"route.{op}", "prefix": prefix, **more}


CHANGES: list[tuple[str, dict[str, Any]]] = [
    # the tutorial's one-arm and two-arm FullNAT
    (
        "addr add 192.168.100.254/32 dev dpdk0",
        {"op": "addr.add", "addr": "192.168.100.254", "plen": 32, "port": "dpdk0", "sapool": False},
    ),
    ("route add 10.0.0.0/16 dev dpdk1", route("add", "10.0.0.0/16", port="dpdk1")),
    ("route add default via 10.0.0.1 dev dpdk1", route("add", "0.0.0.0/0", gateway="10.0.0.1", port="dpdk1")),
    (
        "route add 192.168.100.28/32 scope kni_host dev dpdk0",
        route("add", "192.168.100.28/32", port="dpdk0", scope="kni_host"),
    ),
    # everything else
    (
        "addr add 10.0.0.1/24 dev dpdk0 sapool",
        {"op": "addr.add", "addr": "10.0.0.1", "plen": 24, "port": "dpdk0", "sapool": True},
    ),
    (
        "addr add 10.0.0.1 scope global valid_lft forever prefered_lft forever dev wan",
        {"op": "addr.add", "addr": "10.0.0.1", "plen": 32, "port": "wan", "sapool": False},
    ),
    ("addr del 10.0.0.1/24 dev dpdk0", {"op": "addr.del", "addr": "10.0.0.1", "plen": 24, "port": "dpdk0"}),
    ("addr flush dev dpdk0", {"op": "addr.flush", "port": "dpdk0"}),
    (
        "route add 10.1.0.0/16 via 10.0.0.1 dev wan src 10.0.0.9 mtu 1400 metric 5 scope global",
        route("add", "10.1.0.0/16", gateway="10.0.0.1", port="wan", src="10.0.0.9", mtu=1400, metric=5, scope="global"),
    ),
    ("route set default via 10.0.0.2", route("set", "0.0.0.0/0", gateway="10.0.0.2")),
    ("route change default via 10.0.0.2", route("set", "0.0.0.0/0", gateway="10.0.0.2")),
    ("route add 10.0.0.9 dev wan scope host", route("add", "10.0.0.9/32", port="wan", scope="host")),
    ("route del 10.0.0.0/16 dev dpdk1", route("del", "10.0.0.0/16", port="dpdk1")),
    ("route del 10.0.0.0/16", route("del", "10.0.0.0/16")),
    ("route flush dev dpdk1", {"op": "route.flush", "port": "dpdk1"}),
    ("route flush", {"op": "route.flush", "port": None}),
    (
        "neigh add 10.0.0.1 lladdr 02:00:5E:10:00:01 dev wan",
        {"op": "neigh.add", "addr": "10.0.0.1", "mac": "02:00:5e:10:00:01", "port": "wan"},
    ),
    ("neigh del 10.0.0.1 dev wan", {"op": "neigh.del", "addr": "10.0.0.1", "port": "wan"}),
    # IPv6
    (
        "addr add 2001::1/64 dev wan",
        {"op": "addr.add", "addr": "2001::1", "plen": 64, "port": "wan", "sapool": False},
    ),
    (
        "-6 addr add 2001::3 dev wan sapool",
        {"op": "addr.add", "addr": "2001::3", "plen": 128, "port": "wan", "sapool": True},
    ),
    ("addr del 2001::1/64 dev wan", {"op": "addr.del", "addr": "2001::1", "plen": 64, "port": "wan"}),
    ("-6 addr flush dev dpdk0", {"op": "addr.flush", "port": "dpdk0", "family": 6}),
    ("-6 route add default via 2001::2 dev wan", route("add", "::/0", gateway="2001::2", port="wan")),
    ("route add default via fe80::1 dev wan", route("add", "::/0", gateway="fe80::1", port="wan")),
    ("-f inet6 route add default dev wan", route("add", "::/0", port="wan")),
    (
        "route add 2001:db8:1::/48 via 2001::2 dev wan src 2001::3 mtu 1280 metric 5",
        route("add", "2001:db8:1::/48", gateway="2001::2", port="wan", src="2001::3", mtu=1280, metric=5),
    ),
    ("-6 route del 2001:db8:1::/48", route("del", "2001:db8:1::/48")),
    ("-6 route flush", {"op": "route.flush", "port": None, "family": 6}),
    ("-4 route flush dev wan", {"op": "route.flush", "port": "wan", "family": 4}),
    (
        "neigh add fe80::1 lladdr 02:00:5E:10:00:01 dev wan",
        {"op": "neigh.add", "addr": "fe80::1", "mac": "02:00:5e:10:00:01", "port": "wan"},
    ),
    ("-6 neigh del 2001::2 dev wan", {"op": "neigh.del", "addr": "2001::2", "port": "wan"}),
    ("link set dpdk0 link up", {"op": "link.set", "port": "dpdk0", "up": True}),
    ("-4 link set dpdk0 link down", {"op": "link.set", "port": "dpdk0", "up": False}),
]


@pytest.mark.parametrize(("line", "change"), CHANGES, ids=[line for line, _ in CHANGES])
def test_a_command_is_one_change(line: str, change: dict[str, Any]) -> None:
    assert parse(line.split()) == Changes([change])
    MODEL.validate_python([change])


SHOWS: list[tuple[str, Show | Word]] = [
    ("link show", Show("link")),
    ("link list", Show("link")),
    ("link show dpdk0", Show("link", "dpdk0")),
    ("link show dpdk0 -s -C -i 1", Show("link", "dpdk0", stats=True, color=True, interval=1)),
    ("-sv link show", Show("link", stats=True, verbose=True)),
    ("link -s show -i2 -c3", Show("link", stats=True, interval=2, count=3)),
    ("link show --stats --interval=2 --count 3", Show("link", stats=True, interval=2, count=3)),
    ("link show cpu", Show("cpu")),
    ("link show cpu1 -s", Show("cpu", "1", stats=True)),
    ("addr show", Show("addr")),
    ("addr show dev dpdk0 -s", Show("addr", "dpdk0", stats=True)),
    ("-v addr show", Show("addr", verbose=True)),
    ("route show", Show("route")),
    ("-f inet route show dev wan", Show("route", "wan", family=4)),
    ("-6 route show", Show("route", family=6)),
    ("route -6 show --json", Show("route", family=6, json=True)),
    ("-f inet6 addr show", Show("addr", family=6)),
    ("neigh show -4", Show("neigh", family=4)),
    ("neigh show dev wan --json", Show("neigh", "wan", json=True)),
    ("", Word("help")),
    ("-h", Word("help")),
    ("addr help", Word("help")),
    ("-V", Word("version")),
]


@pytest.mark.parametrize(("line", "show"), SHOWS, ids=[line or "nothing" for line, _ in SHOWS])
def test_a_command_asks_for_a_listing(line: str, show: Show | Word) -> None:
    assert parse(line.split()) == show


REFUSED: list[tuple[str, str]] = [
    # what DPVS has and fnat has not
    ("vlan add link dpdk0 id 100", "vlan is not in fnat; make the VLAN device with `ip link`"),
    ("tunnel add t0 mode ipip", "tunnel is not in fnat"),
    ("qsch show dev dpdk0", "qsch is not in fnat"),
    ("cls show dev dpdk0", "cls is not in fnat"),
    ("flow add type kni 10.0.0.1 dev dpdk0", "flow is not in fnat"),
    ("iftraf show", "iftraf is not in fnat"),
    ("eal-mem show seg", "eal-mem is not in fnat"),
    ("ipv6 show", "ipv6 is not in fnat; see /metrics for fnat's counters, and `nstat` for the host's"),
    ("maddr show", "maddr is not in fnat"),
    ("lldp show neigh dev dpdk0", "lldp is not in fnat"),
    ("link set dpdk0 promisc on", "link set promisc is not in fnat"),
    ("link set dpdk0 allmulticast on", "link set allmulticast is not in fnat"),
    ("link set dpdk0 forward2kni on", "link set forward2kni is not in fnat"),
    ("link set dpdk0 tc-egress on", "link set tc-egress is not in fnat"),
    ("link set dpdk0 tc-ingress on", "link set tc-ingress is not in fnat"),
    ("link set dpdk0 lldp on", "link set lldp is not in fnat"),
    ("link set dpdk0 addr 02:00:00:00:00:01", "link set addr is not in fnat"),
    ("link set bond0 bond-mode 4", "link set bond-mode is not in fnat; bonds are made with `ip link`"),
    ("link add bond0 bond-slave dpdk1", "link add is not in fnat"),
    ("link show bond0 status", "bonds are not in fnat"),
    ("addr add 10.0.0.1/24 broadcast 10.0.0.255 dev wan", "broadcast addresses are not in fnat"),
    ("addr add 10.0.0.1/24 dev wan scope host", "addr scope host is not in fnat"),
    ("addr add 10.0.0.1/24 dev wan valid_lft 60", "valid_lft 60: addresses do not expire in fnat"),
    ("addr add 10.0.0.1/24 dev wan prefered_lft 60", "prefered_lft 60: addresses do not expire in fnat"),
    ("addr set 10.0.0.1/24 dev wan", "addr set is not in fnat"),
    ("addr replace 10.0.0.1/24 dev wan", "addr replace is not in fnat; the commands of addr are add del flush show"),
    ("route add 10.0.0.0/8 dev wan table outwall", "route table is not in fnat"),
    ("route add 10.0.0.0/8 dev wan tos 4", "route tos is not in fnat"),
    ("route add 10.0.0.1 dev wan local", "route local is not in fnat; say scope host"),
    ("-f ipx route show", "-f ipx: no such family; say inet or inet6"),
    ("-4 -6 route show", "both families given"),
    ("-6 link show", "-6 means nothing with link"),
    ("-6 -f inet route show", "both families given"),
    ("-6 addr add 10.0.0.1 dev wan", "address 10.0.0.1 is not an IPv6 address"),
    ("-4 addr add 2001::1/64 dev wan", "address 2001::1 is not an IPv4 address"),
    ("-6 route add default via 10.0.0.1 dev wan", "gateway 10.0.0.1 is not an IPv6 address"),
    ("-6 route add 10.0.0.0/8 dev wan", "address 10.0.0.0 is not an IPv6 address"),
    ("route add 2001::/64 via 10.0.0.1 dev wan", "gateway 10.0.0.1 is not an IPv6 address"),
    ("route add 10.0.0.0/8 via 2001::1 dev wan", "gateway 2001::1 is not an IPv4 address"),
    ("route add 10.0.0.0/8 src 2001::1 dev wan", "src 2001::1 is not an IPv4 address"),
    ("route add 2001::1/64 dev wan", "route 2001::1/64 has host bits set; write 2001::/64, or 2001::1/128"),
    ("route add 2001::/64 dev wan mtu 1279", "mtu '1279' is out of range; give a number from 1280 to 3500"),
    ("addr add 2001::1/129 dev wan", "prefix length of 2001::1 '129' is out of range; give a number from 0 to 128"),
    ("addr add 2001::1%eth0 dev wan", "address '2001::1%eth0' is not an IPv6 address"),
    ("-F addr flush dev wan", "-F: fnat has nothing to force"),
    # bad values
    ("addr add 10.0.0.1/33 dev wan", "prefix length of 10.0.0.1 '33' is out of range"),
    ("addr add ten dev wan", "address 'ten' is not an IPv4 address"),
    ("route add 10.0.0.1/16 dev wan", "route 10.0.0.1/16 has host bits set; write 10.0.0.0/16, or 10.0.0.1/32"),
    ("route add 10.0.0.0/16 dev wan mtu 9", "mtu '9' is out of range"),
    ("route add 10.0.0.0/16 dev wan scope site", "route scope 'site'; say one of host kni_host link global"),
    ("neigh add 10.0.0.1 lladdr 02:00 dev wan", "'02:00' is not a MAC address"),
    ("neigh add 10.0.0.1 lladdr 01:00:5e:00:00:01 dev wan", "is a multicast MAC address"),
    ("link set dpdk0 link sideways", "link 'sideways'; say up or down"),
    ("link show -s -i 0", "-i '0' is out of range"),
    # bad shape
    ("frob show", "unknown object 'frob'; the objects are link addr route neigh ipset"),
    ("addr", "a command after addr is missing"),
    ("addr add", "the address is missing"),
    ("addr add 10.0.0.1", "addr add needs dev; add dev PORT"),
    ("addr add 10.0.0.1 dev", "the value of dev is missing"),
    ("addr add 10.0.0.1 dev wan dev lan", "dev is given twice"),
    ("addr add 10.0.0.1 dev wan fast", "'fast' is not known here"),
    ("addr del 10.0.0.1 dev wan sapool", "'sapool' is not known here"),
    ("addr flush", "addr flush needs dev"),
    ("route add 10.0.0.0/8", "route add needs via or dev"),
    ("neigh add 10.0.0.1 dev wan", "neigh add needs lladdr"),
    ("neigh flush", "neigh flush is not in fnat"),
    ("link set dpdk0 mtu 9000", "link set mtu is not known"),
    ("link show dpdk0 dpdk1", "unexpected word 'dpdk1'"),
    ("link show -i 1", "-i without -s"),
    ("link show -s -c 1", "-c without -i"),
    ("link show -s -i 1 --json", "--json with -i or -C"),
    ("neigh show -s", "--stats means nothing with neigh show"),
    ("route show -v", "--verbose means nothing with route show"),
    ("addr add 10.0.0.1 dev wan -s", "--stats means nothing with addr add"),
    ("addr show -i", "-i needs a value"),
    ("addr show -x", "unknown option -x"),
    ("addr show --stats=1", "unknown option --stats=1"),
]


@pytest.mark.parametrize(("line", "why"), REFUSED, ids=[line for line, _ in REFUSED])
def test_refused_with_one_line(line: str, why: str) -> None:
    with pytest.raises(Usage) as caught:
        parse(line.split())
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


STATS = {
    "ipackets": 1000, "opackets": 2000, "ibytes": 64000, "obytes": 128000,
    "ierrors": 1, "oerrors": 2, "imissed": 3, "rx_nombuf": 4,
}  # fmt: skip
PORT = {
    "id": 0, "name": "dpdk0", "kind": "xdp", "device": "ens1f0", "mac": "a0:36:9f:74:ec:f0", "mtu": 1500, "up": True,
    "speed": 10000, "duplex": "full", "autoneg": True, "mode": "native", "zero_copy": False, "exclusive": True,
    "steering": dict.fromkeys(["tcp4", "udp4", "tcp6", "udp6"], "rss, i40e, 512 slots"), "queues": 4, "stats": STATS, "frames": {"avail": 8000, "inuse": 192},
}  # fmt: skip
VETH = {
    **PORT,
    "id": 1,
    "name": "lan",
    "up": False,
    "speed": None,
    "duplex": None,
    "autoneg": None,
    "queues": 1,
    "mode": "generic",
}
HEAD = (
    "1: dpdk0: socket 0 mtu 1500 rx-queue 4 tx-queue 4\n"
    "    UP 10000 Mbps full-duplex auto-nego\n"
    "    addr A0:36:9F:74:EC:F0\n"
)  # fmt: skip


def test_the_listing_of_ports() -> None:
    assert dpip.link_text([PORT], Show("link")) == HEAD
    assert dpip.link_text([VETH], Show("link")) == (
        "2: lan: socket 0 mtu 1500 rx-queue 1 tx-queue 1\n"
        "    DOWN 0 Mbps unknown-duplex unknown-nego\n"
        "    addr A0:36:9F:74:EC:F0\n"
    )  # fmt: skip


def test_the_counters_of_ports() -> None:
    assert dpip.link_text([PORT], Show("link", stats=True)) == HEAD + (
        "    ipackets            opackets            ibytes              obytes              \n"
        "    1000                2000                64000               128000              \n"
        "    ierrors             oerrors             imissed             rx_nombuf           \n"
        "    1                   2                   3                   4                   \n"
        "    mbuf-avail          mbuf-inuse          \n"
        "    8000                192                 \n"
    )


def test_the_rates_of_ports() -> None:
    now = {**PORT, "stats": {**STATS, "ipackets": 1000 + 2 * 176156, "ibytes": 64000 + 2 * 250339018}}
    assert dpip.link_text([now], Show("link", stats=True, interval=2), {"dpdk0": STATS}) == HEAD + (
        "    ipackets/pps    opackets/pps    ibytes/Bps      obytes/Bps      \n"
        "    176156          0               250339018       0               \n"
        "    ierrors/pps     oerrors/pps     imissed/pps     rx_nombuf/pps   \n"
        "    0               0               0               0               \n"
    )


def test_a_port_in_detail_and_in_colour() -> None:
    text = dpip.link_text([PORT], Show("link", verbose=True, color=True))
    assert "\x1b[32mUP\x1b[0m 10000" in text
    assert text.endswith(
        "    driver xdp device ens1f0 mode native zero-copy no exclusive yes\n    steering rss, i40e, 512 slots\n"
    )


def test_flows_that_are_steered_alike_are_named_together() -> None:
    by_addresses = "hand-off: hashed by addresses only"
    notes = {
        "tcp4": "rss, ixgbe, 128 slots",
        "udp4": by_addresses,
        "tcp6": "rss, ixgbe, 128 slots",
        "udp6": by_addresses,
    }
    assert dpip.link_text([{**PORT, "steering": notes}], Show("link", verbose=True)).endswith(
        "    steering tcp4 tcp6 rss, ixgbe, 128 slots; udp4 udp6 hand-off: hashed by addresses only\n"
    )


WORKERS = [
    {
        "index": 0,
        "cpu": 2,
        "counters": {"steps": 10, "sleeps": 3, "rx_packets": 4, "rx_bytes": 5, "tx_packets": 6, "tx_bytes": 7},
    },
    {"index": 1, "cpu": None, "counters": {}},
]


def test_the_listing_of_workers() -> None:
    assert dpip.cpu_text(WORKERS, [PORT, VETH], Show("cpu")) == (
        "<< Controll Plane >>\n"
        "<< Data Plane >>\n"
        "0: cpu2: socket 0\n"
        "    queues dpdk0:rx0;tx0 lan:rx0;tx0\n"
        "1: cpu*: socket 0\n"
        "    queues dpdk0:rx1;tx1\n"
        "<< Isolate RX Lcores >>\n"
    )
    assert "    10                  3                   \n" in dpip.cpu_text(WORKERS[:1], [], Show("cpu", stats=True))


ADDRESSES = [
    {
        "addr": "192.168.100.254", "plen": 32, "port": "dpdk0", "scope": "global", "sapool": False,
        "sa_used": 0, "sa_free": 0, "sa_miss": 0,
    },
    {
        "addr": "192.168.100.200", "plen": 32, "port": "dpdk0", "scope": "global", "sapool": True,
        "sa_used": 5, "sa_free": 64507, "sa_miss": 1,
    },
]  # fmt: skip


def test_the_listing_of_addresses() -> None:
    plain = (
        "inet 192.168.100.254/32 scope global dpdk0\n"
        "     valid_lft forever preferred_lft forever\n"
        "inet 192.168.100.200/32 scope global dpdk0\n"
        "     valid_lft forever preferred_lft forever"
    )
    assert dpip.addr_text(ADDRESSES, Show("addr")) == plain + "\n"
    for show in (Show("addr", stats=True), Show("addr", verbose=True)):
        assert dpip.addr_text(ADDRESSES, show) == plain + " sa_used 5 sa_free 64507 sa_miss 1\n"


ROUTES: list[tuple[dict[str, Any], str]] = [
    (
        {"prefix": "192.168.100.28/32", "scope": "kni_host", "proto": "static"},
        "inet 192.168.100.28/32 via 0.0.0.0 src 0.0.0.0 dev dpdk0 mtu 1500 tos 0 scope kni_host metric 0 "
        "proto static\n",
    ),
    (
        {"prefix": "192.168.100.254/32", "scope": "host", "proto": "auto"},
        "inet 192.168.100.254/32 via 0.0.0.0 src 0.0.0.0 dev dpdk0 mtu 1500 tos 0 scope host metric 0 proto auto\n",
    ),
    (
        {
            "prefix": "0.0.0.0/0",
            "gateway": "10.0.0.1",
            "src": "10.0.0.9",
            "mtu": 1400,
            "metric": 5,
            "scope": "global",
            "proto": "kernel",
        },
        "inet 0.0.0.0/0 via 10.0.0.1 src 10.0.0.9 dev dpdk0 mtu 1400 tos 0 scope global metric 5 proto kernel\n",
    ),
]


@pytest.mark.parametrize(("row", "line"), ROUTES, ids=[str(row["prefix"]) for row, _ in ROUTES])
def test_the_listing_of_routes(row: dict[str, Any], line: str) -> None:
    whole = {"gateway": None, "src": None, "port": "dpdk0", "mtu": 0, "metric": 0, **row}
    assert dpip.route_text([whole], [PORT]) == line


ROUTES6: list[tuple[dict[str, Any], str]] = [
    # the two lines of DPVS's documents
    ({"prefix": "2001::1/128", "scope": "host", "proto": "auto"}, "inet6 2001::1/128 dev dpdk0 mtu 1500 scope host\n"),
    (
        {"prefix": "2001::/64", "src": "2001::1", "scope": "link", "proto": "auto"},
        "inet6 2001::/64 src 2001::1 dev dpdk0 mtu 1500 scope link\n",
    ),
    (
        {"prefix": "::/0", "gateway": "fe80::1", "mtu": 1400, "metric": 1024, "scope": "global", "proto": "kernel"},
        "inet6 ::/0 via fe80::1 dev dpdk0 mtu 1400 scope global metric 1024\n",
    ),
]


@pytest.mark.parametrize(("row", "line"), ROUTES6, ids=[str(row["prefix"]) for row, _ in ROUTES6])
def test_the_listing_of_ipv6_routes(row: dict[str, Any], line: str) -> None:
    whole = {"gateway": None, "src": None, "port": "dpdk0", "mtu": 0, "metric": 0, **row}
    assert dpip.route_text([whole], [PORT]) == line


def test_a_listing_is_of_the_families_that_are_asked_for() -> None:
    rows = [{"prefix": "10.0.0.0/8"}, {"prefix": "::/0"}]
    for words, shown in (("", rows[:1]), ("-4", rows[:1]), ("-6", rows[1:]), ("--json", rows), ("-6 --json", rows[1:])):
        assert dpip.of_family(rows, "prefix", parse(f"{words} route show".split())) == shown, words  # type: ignore[arg-type]
    rows = [{"addr": "10.0.0.1"}, {"addr": "fe80::1"}]
    for words, shown in (("", rows), ("-4", rows[:1]), ("-6", rows[1:])):
        for what in ("addr", "neigh"):
            assert dpip.of_family(rows, "addr", parse(f"{what} {words} show".split())) == shown  # type: ignore[arg-type]


def test_the_listing_of_ipv6_addresses_and_neighbours() -> None:
    assert dpip.addr_text([{**ADDRESSES[0], "addr": "2001::1", "plen": 64}], Show("addr")) == (
        "inet6 2001::1/64 scope global dpdk0\n     valid_lft forever preferred_lft forever\n"
    )
    row = {
        "addr": "fe80::200:5eff:fe10:1",
        "mac": "02:00:5e:10:00:01",
        "state": "DELAY",
        "port": "wan",
        "static": False,
    }
    assert dpip.neigh_text([row]) == (
        f"ip: fe80::200:5eff:fe10:1{'':27} mac: 02:00:5e:10:00:01   state: DELAY         dev: wan  core: 0\n"
    )


def test_the_listing_of_neighbours() -> None:
    rows = [
        {"addr": "10.0.0.1", "mac": "02:00:5e:10:00:01", "state": "REACHABLE", "port": "wan", "static": False},
        {"addr": "10.0.0.2", "mac": "02:00:5e:10:00:02", "state": "REACHABLE", "port": "wan", "static": True},
        {"addr": "10.0.0.3", "mac": "", "state": "SEND", "port": "wan", "static": False},
    ]
    assert dpip.neigh_text(rows) == (
        f"ip: 10.0.0.1{'':40} mac: 02:00:5e:10:00:01   state: REACHABLE     dev: wan  core: 0\n"
        f"ip: 10.0.0.2{'':40} mac: 02:00:5e:10:00:02   state: REACHABLE     dev: wan  core: 0  [static]\n"
        f"ip: 10.0.0.3{'':40} mac:incomplate                       state: SEND           dev: wan  core: 0\n"
    )
