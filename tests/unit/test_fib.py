"""Routes: longest prefix match of both families against a naive model, equal-cost sets, MTUs, what is refused; then on packets."""

from __future__ import annotations

import ipaddress
import random
import struct
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import packets as wire
import pytest
from packets import UDP
from rig import CLIENT, GATEWAY, LAN, MACS, RS1, VIP, WAN, Rig

from fnat._core import Hop, Plane

Spec = tuple[str, str, str, int, int, int, str]
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
NETWORKS = {4: ipaddress.IPv4Network, 6: ipaddress.IPv6Network}
ADDRESSES = {4: ipaddress.IPv4Address, 6: ipaddress.IPv6Address}
BITS = {4: 32, 6: 128}


def make_plane(mib: int = 1) -> Plane:
    return Plane.create(None, conns=16, services=1, members=1, endpoints=4, frames=0, snapshot_mib=mib)


@pytest.fixture
def plane() -> Iterator[Plane]:
    plane = make_plane()
    yield plane
    plane.close()


class Naive:
    """Every route looked at for every address."""

    def __init__(self, routes: Iterable[Spec]) -> None:
        self.routes = [(ipaddress.ip_network(r[0], strict=False), r) for r in routes]

    def hops(self, addr: Address) -> set[Hop]:
        """The hops a flow to this address may take."""
        fitting = [(n, r) for n, r in self.routes if n.version == addr.version and addr in n]
        if not fitting:
            return set()
        longest = max(n.prefixlen for n, _ in fitting)
        best = [r for n, r in fitting if n.prefixlen == longest]
        metric = min(r[5] for r in best)
        best = [r for r in best if r[5] == metric]
        if best[0][6] != "unicast":
            return {Hop(0, "", "", 0, best[0][6])}
        return {Hop(r[3], r[1], r[2], r[4], "unicast") for r in best if r[6] == "unicast"}


def publish(plane: Plane, routes: list[Spec]) -> None:
    plane.put_routes(routes)
    plane.publish()


def address(dice: random.Random, family: int) -> Address:
    """Few distinct high bits, so that prefixes contain each other."""
    bits = BITS[family]
    value = dice.choice([0, 1 << (bits - 1), (1 << bits) - 1, dice.getrandbits(bits)])
    keep = dice.choice([0, 4, 8, bits // 2, bits - 3, bits])
    return ADDRESSES[family](
        value >> (bits - keep) << (bits - keep) | dice.getrandbits(bits) >> keep if keep < bits else value
    )


def random_route(dice: random.Random, family: int) -> Spec:
    plen = dice.choice([0, BITS[family], dice.randrange(BITS[family] + 1), dice.randrange(9)])
    kind = dice.choice(["unicast"] * 5 + ["host", "unreachable"])
    # On link, or by a gateway of its own; the metric is all that two routes to one prefix may share.
    gateway = dice.choice(["", str(ADDRESSES[family](dice.getrandbits(BITS[family]) | 1))])
    mtu = dice.choice([0, 0, 1280, 1400, 9000])
    return (f"{address(dice, family)}/{plen}", gateway, "", dice.randrange(4), mtu, dice.randrange(3), kind)


def edges(routes: list[Spec]) -> set[Address]:
    """First and last address of every prefix, and their neighbours."""
    out: set[Address] = set()
    for prefix, *_ in routes:
        network = ipaddress.ip_network(prefix, strict=False)
        family = network.version
        for value in (int(network[0]), int(network[-1])):
            out |= {ADDRESSES[family](v) for v in (value - 1, value, value + 1) if 0 <= v < 1 << BITS[family]}
    return out


@pytest.mark.parametrize("seed", range(60))
def test_the_longest_prefix_wins(plane: Plane, seed: int) -> None:
    """Random tables of both families: default routes, hosts' routes, nested ones, unreachable and kni_host; several in a row
    on one plane, so that classes of MTUs are used again."""
    dice = random.Random(seed)
    for count in (0, 1, 2, 7, 40, 150):
        routes = [random_route(dice, dice.choice([4, 6])) for _ in range(count)]
        publish(plane, routes)
        naive = Naive(routes)
        asked = edges(routes) | {address(dice, family) for family in (4, 6) for _ in range(50)}
        for addr in asked:
            hop, legal = plane.route_get(str(addr), dice.getrandbits(32)), naive.hops(addr)
            # Of hops that differ in MTU or source alone one is chosen, always the same.
            assert hop in legal if legal else hop is None, (addr, hop, legal)


def test_an_empty_table_and_a_plane_without_one(plane: Plane) -> None:
    assert plane.route_get("10.0.0.1") is None
    publish(plane, [])
    assert plane.route_get("10.0.0.1") is None and plane.route_get("2001:db8::1") is None
    publish(plane, [("::/0", "fe80::1", "", 1, 0, 0, "unicast")])
    assert plane.route_get("10.0.0.1") is None, "the families do not know each other"
    assert plane.route_get("2001:db8::1") == Hop(1, "fe80::1", "", 0, "unicast")


def test_bits_beyond_the_prefix_do_not_count(plane: Plane) -> None:
    publish(plane, [("10.1.2.3/8", "", "", 1, 0, 0, "unicast"), ("2001:db8:1:2::3/32", "", "", 2, 0, 0, "unicast")])
    assert plane.route_get("10.200.0.1") == Hop(1, "", "", 0, "unicast")
    assert plane.route_get("2001:db8:ffff::1") == Hop(2, "", "", 0, "unicast")


REFUSED = {
    "length beyond 32": ("10.0.0.0/33", "", "", 0, 0, 0, "unicast"),
    "length beyond 128": ("2001:db8::/129", "", "", 0, 0, 0, "unicast"),
    "port beyond the last": ("10.0.0.0/8", "", "", 16, 0, 0, "unicast"),
    "MTU below 68": ("10.0.0.0/8", "", "", 0, 67, 0, "unicast"),
    "IPv6 MTU below 1280": ("2001:db8::/32", "", "", 0, 1279, 0, "unicast"),
    "MTU beyond 65535": ("10.0.0.0/8", "", "", 0, 65536, 0, "unicast"),
    "IPv6 gateway of an IPv4 route": ("10.0.0.0/8", "fe80::1", "", 0, 0, 0, "unicast"),
    "IPv4 gateway of an IPv6 route": ("2001:db8::/32", "10.0.0.1", "", 0, 0, 0, "unicast"),
    "IPv4 gateway of an IPv6 route, as the core sees it": ("2001:db8::/32", "a00:1::", "", 0, 0, 0, "unicast"),
    "IPv6 source of an IPv4 route": ("10.0.0.0/8", "", "2001:db8::1", 0, 0, 0, "unicast"),
}


@pytest.mark.parametrize("route", REFUSED.values(), ids=REFUSED)
def test_nonsense_is_refused_and_the_old_routes_stay(plane: Plane, route: Spec) -> None:
    good = ("0.0.0.0/0", GATEWAY, "", 1, 68, 0, "unicast")
    publish(plane, [good])
    with pytest.raises((OSError, ValueError), match=r"Invalid argument|is of the other family"):
        plane.put_routes([good, route])
    plane.publish()
    assert plane.route_get("192.0.2.77") == Hop(1, GATEWAY, "", 68, "unicast")
    assert plane.route_get("2001:db8::1") is None


def test_too_many_equals_and_too_many_mtus_are_refused(plane: Plane) -> None:
    equals = [("0.0.0.0/0", f"10.0.0.{i}", "", 0, 0, 5, "unicast") for i in range(1, 66)]
    publish(plane, [*equals[:64], ("0.0.0.0/0", "10.0.1.1", "", 0, 0, 6, "unicast")])
    with pytest.raises(OSError, match="Argument list too long"):
        plane.put_routes(equals)
    mtus = [(f"10.0.{i}.0/24", "", "", 0, 1000 + i, 0, "unicast") for i in range(256)]
    publish(plane, mtus[:255])
    with pytest.raises(OSError, match="Argument list too long"):
        plane.put_routes(mtus)
    for i in (0, 7, 254):
        hop = plane.route_get(f"10.0.{i}.1")
        assert hop is not None and hop.mtu == 1000 + i
    # 255 others: no class is in use any more, so all may be used again
    publish(plane, [(prefix, "", "", 0, mtu + 1000, 0, "unicast") for prefix, _, _, _, mtu, _, _ in mtus[:255]])
    assert [hop.mtu for i in range(255) if (hop := plane.route_get(f"10.0.{i}.1"))] == list(range(2000, 2255))


def full_table(dice: random.Random, fours: int, sixes: int) -> list[Spec]:
    """As a router has it: many prefixes by few gateways."""
    lengths4, lengths6 = [24] * 12 + [22, 23, 20, 19, 16, 21, 18, 17], [48] * 10 + [32] * 4 + [44, 40, 36, 29]
    gateways4, gateways6 = [f"10.1.0.{i}" for i in range(1, 100)], [f"fe80::{i:x}" for i in range(1, 100)]
    blocks = [f"{a}.{b}." for a in range(1, 224) for b in range(256)]
    routes: dict[str, Spec] = {}
    while len(routes) < fours:
        prefix = f"{dice.choice(blocks)}{dice.getrandbits(8)}.0/{dice.choice(lengths4)}"
        routes[prefix] = (prefix, dice.choice(gateways4), "", 0, 0, 100, "unicast")
    while len(routes) < fours + sixes:
        prefix = (
            f"2{dice.getrandbits(12):03x}:{dice.getrandbits(16):x}:{dice.getrandbits(16):x}::/{dice.choice(lengths6)}"
        )
        routes[prefix] = (prefix, dice.choice(gateways6), "", 0, 0, 100, "unicast")
    return list(routes.values())


def test_a_large_table_is_built_in_no_time_and_fits() -> None:
    """A tenth of a full table, several times in an area that holds two of them."""
    plane, dice = make_plane(mib=5), random.Random(3)
    routes = full_table(dice, 100_000, 20_000)
    naive = Naive(dice.sample(routes, 300))
    started = time.process_time()
    publish(plane, routes)
    assert time.process_time() - started < 1
    for _ in range(3):
        publish(plane, routes[: dice.randrange(100_000, len(routes))])
    publish(plane, routes)
    for _, route in naive.routes:
        network = ipaddress.ip_network(route[0], strict=False)
        inside = plane.route_get(str(network[1]))
        assert inside is not None and inside.kind == "unicast"
    plane.close()


def test_services_that_come_and_go_leave_room_for_routes() -> None:
    """Blobs of all sizes walk through the area for long; then a large table still finds a place in one piece."""
    plane = Plane.create(None, conns=16, services=600, members=600 * 20, endpoints=4, frames=0, snapshot_mib=6)
    dice = random.Random(6)
    routes = full_table(dice, 80_000, 20_000)
    plane.put_addresses([(1, VIP, "vip", 0), (2, "10.0.0.11", "lip", 0)])
    publish(plane, routes)
    for _ in range(3):
        for _ in range(6000):
            i = dice.randrange(600)
            members = [(20 * i + n, RS1, 1024 + n, 1) for n in range(1 + dice.randrange(20))]
            plane.put_service(i, VIP, 1024 + i, 6, members=members, lips=[2])
            plane.publish()
        publish(plane, routes[dice.randrange(5000) :])
    plane.close()


def test_a_table_that_does_not_fit_leaves_the_old_one(plane: Plane) -> None:
    publish(plane, [("0.0.0.0/0", GATEWAY, "", 1, 0, 0, "unicast")])
    plane.put_routes(full_table(random.Random(4), 100_000, 0))
    for _ in range(2):
        with pytest.raises(OSError, match="No space left"):
            plane.publish()
    assert plane.route_get("192.0.2.77") == Hop(1, GATEWAY, "", 0, "unicast")
    publish(plane, [("0.0.0.0/0", GATEWAY, "", 2, 0, 0, "unicast")])
    assert plane.route_get("192.0.2.77") == Hop(2, GATEWAY, "", 0, "unicast")


# ---- equal-cost routes ----


def equal(gateways: Iterable[int], metric: int = 0) -> list[Spec]:
    return [("0.0.0.0/0", f"192.0.2.{g}", "", WAN, 0, metric, "unicast") for g in gateways]


def choices(plane: Plane, routes: list[Spec], flows: list[int]) -> list[str]:
    publish(plane, routes)
    return [hop.gateway if (hop := plane.route_get("198.51.100.7", flow)) else "" for flow in flows]


def test_equals_share_the_flows_evenly_and_keep_them(plane: Plane) -> None:
    dice = random.Random(1)
    flows = [dice.getrandbits(32) for _ in range(8000)]
    before = choices(plane, equal([1, 2, 3, 4]), flows)
    shares = Counter(before)
    assert set(shares) == {f"192.0.2.{g}" for g in (1, 2, 3, 4)}
    assert all(1800 < n < 2200 for n in shares.values()), shares
    assert choices(plane, equal([4, 2, 1, 3]), flows) == before, "the order of the list says nothing"
    assert choices(plane, equal([1, 2, 3, 3, 4, 4]), flows) == before, "a hop given twice has one share"
    assert choices(plane, [*equal([1, 2, 3, 4]), *equal([9], metric=1)], flows) == before, "a worse one gets nothing"


def test_a_hop_that_goes_or_comes_moves_its_own_flows_only(plane: Plane) -> None:
    dice = random.Random(2)
    flows = [dice.getrandbits(32) for _ in range(4000)]
    four = choices(plane, equal([1, 2, 3, 4]), flows)
    three = choices(plane, equal([1, 3, 4]), flows)
    five = choices(plane, equal([1, 2, 3, 4, 5]), flows)
    moved = Counter(b for a, b in zip(four, three, strict=True) if a != b)
    assert all(a == b for a, b in zip(four, three, strict=True) if a != "192.0.2.2")
    assert len(moved) == 3 and min(moved.values()) > 200, "what the lost hop carried is shared by the others"
    assert {b for a, b in zip(four, five, strict=True) if a != b} == {"192.0.2.5"}


def test_few_flow_numbers_are_spread_as_well(plane: Plane) -> None:
    """Numbers that differ in few bits, and by two hops that differ in one."""
    assert all(380 < n < 620 for n in Counter(choices(plane, equal([2, 3]), list(range(1000)))).values())


# ---- on packets ----


class House(Rig):
    """One UDP service; clients' packets of `size` bytes from many ports."""

    def __init__(self, routes: list[Spec], **sizes: Any) -> None:
        super().__init__(**sizes)
        self.service(proto=UDP, vport=53, members=[(0, RS1, 53, 1)])
        self.route(routes)

    def route(self, routes: list[Spec]) -> None:
        self.plane.put_routes(routes)
        self.plane.publish()
        self.step()

    def gateways(self, *last: int) -> list[Spec]:
        for g in last:
            self.plane.neigh_set(WAN, f"192.0.2.{g}", f"02:00:00:00:02:{g:02x}", static=True)
        return equal(last)

    def ask(self, sport: int, size: int = 100, frag: int = wire.DF) -> list[tuple[int, wire.Frame]]:
        frame = wire.udp(CLIENT, sport, VIP, 53, bytes(size - 28), frag=frag)
        return [(port, wire.read(f)) for port, f in self.send(WAN, frame)]

    def answer(self, sport: int, size: int = 100, frag: int = wire.DF) -> list[tuple[int, wire.Frame]]:
        conn = next(c for c in self.conns() if c.cport == sport)
        frame = wire.udp(RS1, 53, conn.lip, conn.lport, bytes(size - 28), eth_dst=MACS[LAN], frag=frag)
        return [(port, wire.read(f)) for port, f in self.send(LAN, frame)]

    def ways(self, sports: Iterable[int]) -> dict[int, str]:
        """The gateway's MAC that the answer of each connection goes to."""
        return {sport: self.answer(sport)[0][1].eth_dst for sport in sports}


LINK: Spec = ("10.0.0.0/24", "", "", LAN, 0, 0, "unicast")
PORTS = range(2000, 2200)


def test_connections_keep_their_equal_cost_hop() -> None:
    house = House([])
    four = [*house.gateways(1, 2, 3, 4), LINK]
    house.route(four)
    for sport in PORTS:
        house.ask(sport)
    before = house.ways(PORTS)
    assert len(Counter(before.values())) == 4
    assert house.ways(PORTS) == before
    house.route([*equal([4, 3, 2, 1]), LINK])
    assert house.ways(PORTS) == before, "the sweep after a change finds the same"
    house.route([*equal([1, 2, 4]), LINK])
    after = house.ways(PORTS)
    assert all(after[s] == before[s] for s in PORTS if not before[s].endswith("03"))
    assert len({after[s] for s in PORTS if before[s].endswith("03")}) == 3
    house.route(four)
    assert house.ways(PORTS) == before, "a hop that comes back gets its flows back"
    house.close()


def test_a_hop_survives_a_restart_of_the_data_plane() -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        house = House([], directory=directory)
        house.route([*house.gateways(1, 2, 3, 4), LINK])
        for sport in PORTS:
            house.ask(sport)
        before = house.ways(PORTS)
        house.close()
        house = House([], directory=directory)
        house.route([*house.gateways(1, 2, 3, 4), LINK])
        assert house.ways(PORTS) == before
        house.close()


def too_big(frames: list[tuple[int, wire.Frame]], port: int) -> int:
    """The MTU that the one answer names."""
    [(out, f)] = frames
    assert (out, f.proto, f.icmp_type, f.icmp_code) == (port, wire.ICMP, 3, 4)
    return int(struct.unpack("!I", f.icmp_rest)[0])


def sent(frames: list[tuple[int, wire.Frame]], port: int) -> bool:
    return [(out, f.proto) for out, f in frames] == [(port, UDP)]


def test_a_route_has_an_mtu_of_its_own() -> None:
    """Towards the RS 1000, towards the client 1200, the ports' 1500."""
    house = House(
        [("0.0.0.0/0", GATEWAY, "", WAN, 1200, 0, "unicast"), ("10.0.0.0/24", "", "", LAN, 1000, 0, "unicast")]
    )
    assert too_big(house.ask(2000, 1001), WAN) == 1000
    assert sent(house.ask(2000, 1000), LAN)
    before = house.counters()
    assert house.ask(2000, 1001, frag=0) == []
    assert house.moved(before)["mtu"] == 1
    assert too_big(house.answer(2000, 1201), LAN) == 1200
    assert sent(house.answer(2000, 1200), WAN)
    house.check_sums()
    house.close()


def test_an_mtu_that_changes_holds_for_connections_there_are() -> None:
    def by(mtu: int) -> list[Spec]:
        return [("0.0.0.0/0", GATEWAY, "", WAN, 0, 0, "unicast"), ("10.0.0.0/24", "", "", LAN, mtu, 0, "unicast")]

    house = House(by(0))
    assert sent(house.ask(2000, 1500), LAN)
    for mtu in (1400, 600, 9000, 1400, 0):
        house.route(by(mtu))
        most = min(mtu or 1500, 1500)
        assert sent(house.ask(2000, most), LAN)
        assert too_big(house.ask(2000, most + 1), WAN) == most
    # now the port's own, under a route of 1400
    house.route(by(1400))
    for port_mtu in (1000, 1450, 1300):
        house.plane.put_port(LAN, "lan", MACS[LAN], port_mtu)
        house.plane.publish()
        most = min(port_mtu, 1400)
        assert sent(house.ask(2000, most), LAN)
        assert too_big(house.ask(2000, most + 1), WAN) == most
    house.plane.put_port(LAN, "lan", MACS[LAN], 1500, up=False)
    house.plane.publish()
    before = house.counters()
    house.ask(2000)
    assert house.moved(before)["port_down"] == 1
    house.close()


def test_addresses_on_one_link_may_have_different_mtus() -> None:
    """A host route with a smaller MTU beside its network; both by one gateway, too."""
    house = House(
        [LINK, ("0.0.0.0/0", GATEWAY, "", WAN, 0, 0, "unicast"), (f"{CLIENT}/32", GATEWAY, "", WAN, 700, 0, "unicast")]
    )
    other = "198.51.100.8"
    house.send(WAN, wire.udp(other, 2000, VIP, 53, b"x"))
    house.ask(2001)
    assert too_big(house.answer(2001, 701), LAN) == 700
    assert sent(house.answer(2001, 700), WAN)
    assert sent(house.answer(2000, 1500), WAN)
    house.close()


# ---- a neighbour with several MTUs ----

HALVES: list[Spec] = [
    ("0.0.0.0/1", "192.0.2.9", "", WAN, 600, 0, "unicast"),
    ("128.0.0.0/2", "192.0.2.9", "", WAN, 0, 0, "unicast"),
    ("192.0.0.0/2", "192.0.2.9", "", WAN, 700, 0, "unicast"),
    LINK,
]
AWAY = ("100.64.0.1", "150.0.0.1", "198.51.100.7")


def opened(house: House, client: str) -> None:
    house.send(WAN, wire.udp(client, 2000, VIP, 53, b"x"))


def replies(house: House) -> dict[str, str]:
    """An answer to each connection's client; what leaves, as client -> MAC. Others wait or are dropped."""
    got: dict[str, str] = {}
    for c in house.conns():
        for port, frame in house.send(LAN, wire.udp(RS1, 53, c.lip, c.lport, b"y", eth_dst=MACS[LAN])):
            if port == WAN and frame[12:14] == b"\x08\x00":
                got[wire.read(frame).dst] = wire.read(frame).eth_dst
    return got


def listed(house: House) -> list[tuple[str, str]]:
    return [(n.addr, n.mac) for n in house.plane.neighbours() if n.addr == "192.0.2.9"]


def test_one_arp_answer_serves_all_mtus_of_a_gateway() -> None:
    house = House(HALVES)
    for client in AWAY:
        opened(house, client)
    assert replies(house) == {}, "all wait"
    answer = wire.arp(2, "02:00:00:00:09:09", "192.0.2.9", MACS[WAN], VIP, eth_dst=MACS[WAN])
    left = [wire.read(f) for port, f in house.send(WAN, answer) + house.step() if port == WAN]
    assert {f.dst: f.eth_dst for f in left if f.proto == UDP} == dict.fromkeys(AWAY, "02:00:00:00:09:09")
    assert listed(house) == [("192.0.2.9", "02:00:00:00:09:09")], "shown once"
    house.plane.neigh_set(WAN, "192.0.2.9", "02:00:00:00:09:0a", static=True)
    assert replies(house) == dict.fromkeys(AWAY, "02:00:00:00:09:0a")
    house.send(WAN, answer)
    assert replies(house) == dict.fromkeys(AWAY, "02:00:00:00:09:0a"), "a static one stays"
    house.plane.neigh_set(WAN, "192.0.2.9", "")
    assert replies(house) == {} and all(mac == "" for _, mac in listed(house))
    with pytest.raises(OSError, match="No such file"):
        house.plane.neigh_set(LAN, "192.0.2.9", "")
    house.close()


@pytest.mark.parametrize("static", [False, True])
def test_a_new_mtu_of_a_known_gateway_needs_no_arp(static: bool) -> None:
    house = House([("0.0.0.0/0", "192.0.2.9", "", WAN, 0, 0, "unicast"), LINK])
    house.plane.neigh_set(WAN, "192.0.2.9", "02:00:00:00:09:09", static=static)
    opened(house, AWAY[0])
    house.route(HALVES)
    opened(house, AWAY[2])
    before = house.counters()
    assert replies(house) == {AWAY[0]: "02:00:00:00:09:09", AWAY[2]: "02:00:00:00:09:09"}
    assert house.moved(before).get("arp_requests_sent", 0) == 0
    house.close()


def test_a_table_of_neighbours_that_is_full_stays_sound() -> None:
    """Entries of one gateway, one for each MTU, fill a small table; then a connection finds no place and says so."""
    house = House([LINK], neighbours=16)
    reasons: dict[str, int] = defaultdict(int)
    for n in range(40):
        house.route([("0.0.0.0/0", "192.0.2.9", "", WAN, 600 + n, 0, "unicast"), LINK])
        before = house.counters()
        house.send(WAN, wire.udp(CLIENT, 3000 + n, VIP, 53, b"x"))
        for name in house.moved(before):
            reasons[name] += 1
    assert reasons["no_route"] > 20 and reasons["to_rs"] > 5
    house.plane.neigh_set(WAN, "192.0.2.9", "02:00:00:00:09:09")
    assert listed(house) == [("192.0.2.9", "02:00:00:00:09:09")]
    house.plane.neigh_set(WAN, "192.0.2.9", "")
    assert [mac for _, mac in listed(house) if mac] == []
    house.close()


def test_arp_asks_from_the_source_of_the_route_by_this_port() -> None:
    """Two equal-cost ways to one network, each with its own source."""
    network = "203.0.113.0/24"
    house = House([LINK, (network, "", VIP, WAN, 0, 0, "unicast"), (network, "", "10.0.0.12", LAN, 0, 0, "unicast")])
    asked = {}
    for n in range(1, 20):
        client = f"203.0.113.{n}"
        opened(house, client)
        conn = next(c for c in house.conns() if c.cip == client)
        for port, frame in house.send(LAN, wire.udp(RS1, 53, conn.lip, conn.lport, b"y", eth_dst=MACS[LAN])):
            if frame[12:14] == b"\x08\x06":
                asked.setdefault(port, set()).add(wire.read(frame).src)
    assert asked == {WAN: {VIP}, LAN: {"10.0.0.12"}}
    house.close()
