"""What the mirror makes of the kernel's messages, as pyroute2 gives them."""

import pytest

from fnat.host import Mirror, _routes
from fnat.model import HostNeighbour, PortInfo, Route

WAN, LAN, OTHER = 5, 6, 7
PORTS = [PortInfo(id=0, name="wan", ifindex=WAN), PortInfo(id=1, name="lan", ifindex=LAN)]
MIRROR = Mirror(None, PORTS)
DEAD, LINKDOWN, CLONED = 0x1, 0x10, 0x200


def message(family=6, dst=None, plen=0, **more):
    fields = {"family": {4: 2, 6: 10}[family], "type": 1, "table": 254, "tos": 0, "flags": 0, "src_len": 0}
    return {**fields, "dst": dst, "dst_len": plen, "oif": WAN, **more}


def hop(gateway, oif=WAN, flags=0, **more):
    return {"gateway": gateway, "oif": oif, "flags": flags, **more}


NET6 = {"dst": "2001:db8::", "plen": 32}

# sentence, message, routes
ROUTES = [
    ("a default route by a link-local gateway", message(gateway="fe80::1", priority=1024),
     [Route(prefix="::/0", gateway="fe80::1", port="wan", metric=1024)]),
    ("the same of IPv4", message(4, gateway="10.0.0.1"), [Route(prefix="0.0.0.0/0", gateway="10.0.0.1", port="wan")]),
    ("on link", message(**NET6, oif=LAN), [Route(prefix="2001:db8::/32", port="lan")]),
    ("MTU and preferred source", message(**NET6, metrics={"mtu": 1400}, prefsrc="2001:db8::7"),
     [Route(prefix="2001:db8::/32", port="wan", mtu=1400, src="2001:db8::7")]),
    ("of IPv4, too", message(4, "10.0.0.0", 8, metrics={"mtu": 1300}, prefsrc="10.0.0.7"),
     [Route(prefix="10.0.0.0/8", port="wan", mtu=1300, src="10.0.0.7")]),
    ("an MTU beyond a frame", message(**NET6, metrics={"mtu": 9000}), [Route(prefix="2001:db8::/32", port="wan", mtu=3500)]),
    ("an MTU that IPv6 does not have", message(**NET6, metrics={"mtu": 1000}),
     [Route(prefix="2001:db8::/32", port="wan", mtu=1280)]),
    ("a source that cannot be owned", message(**NET6, prefsrc="fe80::7"), [Route(prefix="2001:db8::/32", port="wan")]),
    ("a loopback source", message(4, "10.0.0.0", 8, prefsrc="127.0.0.1"), [Route(prefix="10.0.0.0/8", port="wan")]),
    ("several hops", message(**NET6, oif=None, priority=7, multipath=[hop("fe80::2", LAN), hop("fe80::1"), hop("fe80::9", OTHER)]),
     [Route(prefix="2001:db8::/32", gateway="fe80::1", port="wan", metric=7),
      Route(prefix="2001:db8::/32", gateway="fe80::2", port="lan", metric=7)]),
    ("several hops of IPv4", message(4, "10.0.0.0", 8, oif=None, multipath=[hop("10.9.0.2"), hop("10.9.0.1")]),
     [Route(prefix="10.0.0.0/8", gateway=f"10.9.0.{n}", port="wan") for n in (1, 2)]),
    ("weights make no hop twice", message(**NET6, oif=None, multipath=[hop("fe80::1"), hop("fe80::1")]),
     [Route(prefix="2001:db8::/32", gateway="fe80::1", port="wan")]),
    ("a hop without link", message(**NET6, oif=None, multipath=[hop("fe80::1", flags=LINKDOWN), hop("fe80::2"), hop("fe80::3", flags=DEAD)]),
     [Route(prefix="2001:db8::/32", gateway="fe80::2", port="wan")]),
    ("all hops without link", message(**NET6, oif=None, multipath=[hop("fe80::1", flags=LINKDOWN), hop("fe80::2", flags=LINKDOWN)]),
     [Route(prefix="2001:db8::/32", gateway=f"fe80::{n}", port="wan") for n in (1, 2)]),
    ("more hops than the table has", message(**NET6, oif=None, multipath=[hop(f"fe80::1:{n:x}") for n in range(16, 86)]),
     [Route(prefix="2001:db8::/32", gateway=f"fe80::1:{n:x}", port="wan") for n in range(16, 80)]),
    ("by another family's gateway", message(4, "10.0.0.0", 8, via={"family": 10, "addr": "fe80::1"}), []),
    ("into a tunnel", message(**NET6, encap={"type": 5}), []),
    ("link-local", message(dst="fe80::", plen=64), []),
    ("all of what is link-local", message(dst="fe80::", plen=10), []),
    ("not link-local, whatever it looks like", message(dst="fe8::", plen=16), [Route(prefix="fe8::/16", port="wan")]),
    ("multicast", message(dst="ff00::", plen=8), []),
    ("multicast of IPv4", message(4, "224.0.0.0", 4), []),
    ("not multicast, whatever it looks like", message(dst="ff::", plen=16), [Route(prefix="ff::/16", port="wan")]),
    ("through no port", message(**NET6, oif=OTHER), []),
    ("of another table", message(**NET6, table=100), []),
    ("unreachable", message(**NET6, type=7), []),
    ("a cached one", message(**NET6, flags=CLONED), []),
    ("by source, too", message(**NET6, src_len=64), []),
    ("by TOS", message(4, "10.0.0.0", 8, tos=8), []),
    ("loopback", message(4, "127.0.0.0", 8, gateway="127.0.0.1"), []),
]  # fmt: skip


@pytest.mark.parametrize(("route", "made"), [r[1:] for r in ROUTES], ids=[r[0] for r in ROUTES])
def test_routes(route, made):
    heard = MIRROR._heard(route)
    assert ([] if heard is None else _routes(heard)) == made


def neighbour(addr, family=6, mac="02:00:00:00:00:01", state=0x02, ifindex=WAN):
    return {"family": {4: 2, 6: 10}[family], "ifindex": ifindex, "dst": addr, "lladdr": mac, "state": state}


KNOWN = {"mac": "02:00:00:00:00:01", "port": "wan"}
NEIGHBOURS = [
    ("reachable", neighbour("2001:db8::9"), HostNeighbour(addr="2001:db8::9", **KNOWN)),
    ("a router by its link-local address", neighbour("fe80::1", state=0x04), HostNeighbour(addr="fe80::1", **KNOWN)),
    ("of IPv4", neighbour("10.0.0.9", 4), HostNeighbour(addr="10.0.0.9", **KNOWN)),
    ("for good", neighbour("2001:db8::9", state=0x80), HostNeighbour(addr="2001:db8::9", permanent=True, **KNOWN)),
    ("a group", neighbour("ff02::1:ff00:9", state=0x40), None),
    ("a group that is permanent", neighbour("ff02::16", state=0x80), None),
    ("failed", neighbour("2001:db8::9", state=0x20), None),
    ("without MAC", neighbour("2001:db8::9", mac=None), None),
    ("of a bridge's table", {**neighbour("2001:db8::9"), "family": 7}, None),
    ("on no port", neighbour("2001:db8::9", ifindex=OTHER), None),
]


@pytest.mark.parametrize(("heard", "told"), [n[1:] for n in NEIGHBOURS], ids=[n[0] for n in NEIGHBOURS])
def test_neighbours(heard, told):
    assert MIRROR._neighbour(heard) == told
