"""Control's handle on the data plane: a Config goes down, counters and listings come up.

`commit` draws what differs between the config in force and the new one (what the plane and the XDP programs are to be
told), tells it, publishes, waits until every running worker has taken the snapshot up, and only then owns new addresses
in the XDP program; addresses that go are disowned first. So one service changed is one put_service, and costs the same
among 20 000 as among two. After a failure nobody knows what the plane holds: everything is drawn and told anew. A LIP
that goes stays owned, and its id kept, until its last connection ends (`sweep`).

Everything here may be called from several threads; one lock orders it. No packet waits for any of it.
"""

from __future__ import annotations

import bisect
import contextlib
import errno
import hashlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from fnat import addresses as words
from fnat import headroom as usage
from fnat.drivers import DriverError
from fnat.errors import ChangeError, EngineError, FnatError
from fnat.model import (
    HALF_OPEN_DEFAULT,
    HASH_SLOTS,
    STATES,
    AclHits,
    AclTest,
    AclView,
    Address,
    AddressView,
    Config,
    ConnPage,
    ConnView,
    DrainView,
    HeadroomRow,
    HeadroomView,
    HostNeighbour,
    Key,
    NeighbourView,
    PortInfo,
    PortStatsView,
    PortView,
    Proto,
    RateView,
    RealServer,
    Route,
    RouteView,
    ServerView,
    Service,
    Services,
    ServiceView,
    SetPage,
    SetView,
    StatsView,
    WorkerView,
)
from fnat.sets import AddressSet, edits_of, pack
from fnat.state import KINDS, ZERO, Base, Entry, Ids, Kind
from fnat.steering import FLOWS, CannotSteer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fnat._core import Conn, Plane, Stats
    from fnat._core import ConnFilter as CoreFilter

log = logging.getLogger("fnat.engine")

PROTOS = {"tcp": 6, "udp": 17, "sctp": 132}
PROTO_NAMES = {number: name for name, number in PROTOS.items()}
ADDRESS_IDS = 65536
KILL_PATIENCE = 10.0  # seconds for all workers to go through their connections
RECHECK_PATIENCE = 20.0  # seconds that `recheck` waits for the workers
PAGE_TIME = 0.1  # seconds to look for connections before a page that is not full is handed over
NO_RATE = RateView(cps=0, in_pps=0, out_pps=0, in_bps=0, out_bps=0)


class Steering(Protocol):
    """The set of addresses that the XDP program of one port gives to the worker."""

    def own(self, addr: str) -> None: ...
    def disown(self, addr: str) -> None: ...
    def owned(self) -> Iterable[str]: ...


class LipRules(Protocol):
    """The flow rules of one port's NIC: exactly those of these LIPs (steering.LipRules)."""

    def hold(self, lips: Iterable[str]) -> None: ...


class NoSteering:
    """For ports whose frames all come to the worker (tap, pcap)."""

    def own(self, addr: str) -> None:
        pass

    def disown(self, addr: str) -> None:
        pass

    def owned(self) -> Iterable[str]:
        return ()


@dataclass(frozen=True)
class Link:
    """What the kernel says of a port's NIC."""

    up: bool
    mtu: int
    mac: str


AddressSpec = tuple[int, str, int]  # id, kind, port id
RouteSpec = tuple[str, str, str, int, int, int, str]  # arguments of one route for put_routes
Links = dict[tuple[str, words.Family], list[words.Network]]  # by port
Settings = tuple[dict[str, int], bool, tuple[int, int], dict[str, Any]]
PortSpec = tuple[str, str, int, bool, bool]


@dataclass
class Picture:
    """What plane and XDP programs hold. An empty service: put or not, it must be deleted."""

    settings: Settings | None = None
    ports: dict[int, PortSpec] = field(default_factory=dict)
    services: dict[int, dict[str, Any]] = field(default_factory=dict)
    addresses: dict[str, AddressSpec] = field(default_factory=dict)
    routes: list[RouteSpec] = field(default_factory=list)
    neighbours: dict[tuple[int, str], str] = field(default_factory=dict)
    owned: dict[str, set[str]] = field(default_factory=dict)
    sets: dict[str, AddressSet] = field(default_factory=dict)
    acl: tuple[list[int], list[int]] = ([], [])  # the general lists


@dataclass
class Difference:
    """What leads from a picture to the next; None: nothing to tell, or, for a thing, it goes."""

    settings: Settings | None = None
    ports: dict[int, PortSpec] = field(default_factory=dict)
    services: dict[int, dict[str, Any] | None] = field(default_factory=dict)
    addresses: dict[str, AddressSpec | None] = field(default_factory=dict)
    routes: list[RouteSpec] | None = None
    neighbours: dict[tuple[int, str], str | None] = field(default_factory=dict)
    sets: dict[str, AddressSet | None] = field(default_factory=dict)
    acl: tuple[list[int], list[int]] | None = None

    @property
    def is_for_workers(self) -> bool:
        """Is there something to publish? Neighbours are no part of a snapshot."""
        return bool(self.settings or self.ports or self.services or self.addresses or self.sets) or not (
            self.routes is None and self.acl is None
        )

    def add_to(self, picture: Picture) -> None:
        picture.settings = self.settings or picture.settings
        picture.ports |= self.ports
        _update(picture.services, self.services)
        _update(picture.addresses, self.addresses)
        picture.routes = picture.routes if self.routes is None else self.routes
        _update(picture.neighbours, self.neighbours)
        _update(picture.sets, self.sets)
        picture.acl = picture.acl if self.acl is None else self.acl


K = TypeVar("K")
V = TypeVar("V")


def _update(things: dict[K, V], changes: Mapping[K, V | None]) -> None:
    for key, value in changes.items():
        if value is None:
            things.pop(key, None)
        else:
            things[key] = value


def _differences(old: Mapping[K, V], new: Mapping[K, V]) -> dict[K, V | None]:
    gone: dict[K, V | None] = {key: None for key in old if key not in new}
    return gone | {key: value for key, value in new.items() if old.get(key) != value}


class Askers:
    """Owned addresses of one port in order, to find one inside a prefix: those that may ask for its hosts."""

    def __init__(self) -> None:
        self._sorted: dict[tuple[words.Family, bool], list[int]] = {}  # by family, and LIP or not

    def set(self, addr: str, old: str | None, new: str | None) -> None:
        """old, new: the kind of the address; None: it is not owned here."""
        family, number = words.family(addr), int(words.parse(addr))
        if old is not None:
            numbers = self._sorted[family, "lip" in old]
            del numbers[bisect.bisect_left(numbers, number)]
        if new is not None:
            bisect.insort(self._sorted.setdefault((family, "lip" in new), []), number)

    def inside(self, prefix: words.Network) -> str:
        """The lowest LIP inside the prefix, else the lowest address, else ""."""
        first = prefix.network_address
        for is_lip in (True, False):
            numbers = self._sorted.get((words.family(str(first)), is_lip), [])
            at = bisect.bisect_left(numbers, int(first))
            if at < len(numbers) and numbers[at] <= int(prefix.broadcast_address):
                return str(type(first)(numbers[at]))
        return ""


class Falls:
    """How the connections of draining servers become fewer, by member id; a straight line through the last minutes."""

    KEPT = 180.0  # seconds

    def __init__(self) -> None:
        self._seen: dict[int, list[tuple[float, int]]] = {}

    def note(self, now: float, conns: Mapping[int, int]) -> None:
        kept = {id: [x for x in seen if now - x[0] <= self.KEPT] for id, seen in self._seen.items() if id in conns}
        self._seen = {id: [*kept.get(id, ()), (now, n)] for id, n in conns.items()}

    def ends_in(self, id: int, left: int) -> float | None:
        seen = self._seen.get(id, [])
        if len(seen) < 2 or seen[0][1] <= left:
            return None
        return left * (seen[-1][0] - seen[0][0]) / (seen[0][1] - left)


@dataclass(frozen=True)
class _Drawn:
    """A service in the picture: the entries of its ids, its own first, and the arguments of put_service."""

    service: Service
    entries: list[Entry]
    spec: dict[str, Any]


class Engine:
    """See the head of the file. `steering` by port name; a port that is missing there gets all its frames. `rules` by
    port name, of ports whose answers find their worker by flow rules. `groups` is called when the set of owned IPv6
    addresses has changed: whoever holds their solicited-node groups shall look again."""

    def __init__(
        self,
        plane: Plane,
        steering: Mapping[str, Steering],
        ports: Sequence[PortInfo],
        ids: Ids,
        *,
        rules: Mapping[str, LipRules] | None = None,
        groups: Callable[[], None] | None = None,
        patience: float = 5.0,
        startle: float = 0.5,
    ) -> None:
        """patience: seconds until a running worker must have adopted a snapshot; startle: after which a worker that has
        not made one step counts as not running."""
        self.plane = plane
        self.ports = tuple(ports)
        self.config = Config()
        self.snapshot = 0
        self._info = plane.info()
        self._steering: dict[str, Steering] = {p.name: steering.get(p.name, NoSteering()) for p in ports}
        self._rules = dict(rules or {})
        self._groups = groups or (lambda: None)
        self._port = {p.name: p for p in ports}
        self._name = {p.id: p.name for p in ports}
        self._ids = ids
        self._patience = patience
        self._startle = startle
        self._lock = threading.RLock()
        self._put: Picture | None = None
        self._broken = False  # nobody knows what the plane holds
        self._drawn: dict[Key, _Drawn] = {}
        self._askers: dict[int, Askers] = {}  # by port id
        self._look_at: dict[str, None] = {}  # addresses whose use has changed
        self._gone: dict[tuple[Kind, str], Entry] = {}  # entries that are not live
        self._set_ids: dict[str, int] = {}
        self._unnamed: Counter[str] = Counter()  # sets of the prefixes that lists name themselves: how many lists
        self._routes_moved = False
        self._kernel_routes: list[Route] = []
        self._kernel_neighbours: dict[tuple[str, str], HostNeighbour] = {}
        self._links: dict[str, Link] = {}
        self._sampled: dict[Kind, NDArray[np.uint64]] = {}
        self._sampled_at = 0.0
        self._rates: dict[Kind, NDArray[np.int64]] = {}
        self._history = usage.History()
        self._killing = threading.Lock()
        self._persistent: dict[int, int] = {}
        self._persistent_at = float("-inf")
        self._falls = Falls()
        self._draining: list[tuple[Service, RealServer]] = []
        self._shifting: list[Service] = []
        self._draining_of: Services | None = None
        self._fit_ids_to_plane()

    # ---- down: the configuration ----

    def commit(self, config: Config) -> int:
        """Put the config in force; the number of its snapshot. Raises EngineError, and the old config is in force."""
        with self._lock:
            old = self.config
            try:
                self.snapshot = self._install(config)
            except (OSError, FnatError) as error:
                self._roll_back(old)
                raise error if isinstance(error, FnatError) else _refused(error) from None
            self.config = config
        self._move_flows(old, config)
        return self.snapshot

    def set_kernel_routes(self, routes: Sequence[Route]) -> None:
        """The host's routes through our ports; in force at once when they changed. Called by the host mirror."""
        with self._lock:
            ours = [route for route in routes if route.port in self._port]
            if ours != self._kernel_routes:
                self._kernel_routes = ours
                self._routes_moved = True
                self._again()

    def set_kernel_neighbours(self, neighbours: Sequence[HostNeighbour]) -> None:
        """The host's resolved neighbours. One that the host forgets stays, as workers probe for themselves; one that it
        has for good is not probed, and goes with the host's."""
        with self._lock:
            fresh = {(n.port, n.addr): n for n in neighbours if n.port in self._port}
            given = {(n.port, n.addr) for n in self.config.neighbours}
            for at, known in self._kernel_neighbours.items():
                if known.permanent and at not in given and fresh.get(at) != known:
                    self._set_neighbour(*at, "")
            for at, neighbour in fresh.items():
                if self._kernel_neighbours.get(at) != neighbour and at not in given:
                    self._set_neighbour(*at, neighbour.mac, neighbour.permanent)
            self._kernel_neighbours = fresh

    def _set_neighbour(self, port: str, addr: str, mac: str, static: bool = False) -> None:
        try:
            self.plane.neigh_set(self._port[port].id, addr, mac, static=static)
        except OSError as error:
            log.error("neighbour %s on %s: %s", addr, port, error.strerror)

    def set_kernel_link(self, port: str, *, up: bool, mtu: int, mac: str) -> None:
        """State of a port's NIC; in force at once when it changed."""
        with self._lock:
            link = Link(up, mtu, mac)
            if port in self._port and self._links.get(port) != link:
                self._links[port] = link
                self._again()

    def zero(self, key: Key | None) -> None:
        """Counters shown of one service, or of all, restart from 0; on disk when this returns."""
        with self._lock:
            for service in self._services_of(key):
                for entry in self._entries(service):
                    entry.base = _base(self._raw(entry))
                    self._ids.save(entry)
                    if entry.kind == "service":
                        self.plane.acl_zero(entry.id)
            self._ids.flush()

    def recheck(self) -> int:
        """Let the workers close connections that the lists of now would not let open; how many they closed. Returns
        when they are done, or after some seconds without a running worker."""
        with self._lock:
            closed = self.plane.counters().get("acl_closed", 0)
            number = self.plane.acl_recheck()
            self.snapshot = self.plane.publish()
            self._wait_for(self.snapshot)
            deadline = time.monotonic() + RECHECK_PATIENCE
            while self.plane.acl_rechecked() != number and self.plane.adopted() >= self.snapshot:
                if time.monotonic() > deadline:
                    break
                time.sleep(0.005)
            return self.plane.counters().get("acl_closed", 0) - closed

    def sweep(self) -> None:
        """Give back what nothing counts for any more: LIPs that drained, ids of things that are gone."""
        with self._lock:
            idle = [entry for entry in self._gone.values() if self._counted(entry.kind, entry.id) is not None]
            if not idle:
                return
            for entry in idle:
                del self._gone[entry.kind, entry.key]
                self._ids.release(entry)
                if entry.kind == "address" and self._put is not None and entry.key in self._put.addresses:
                    self._look_at[entry.key] = None
            self._ids.flush()
            if self._look_at:
                self._again()

    def _again(self) -> None:
        """The same config after the world around it changed."""
        if self._put is not None:
            try:
                self.snapshot = self._install(self.config)
            except (OSError, FnatError) as error:
                log.error("the data plane does not follow: %s", error)

    def _roll_back(self, old: Config) -> None:
        """Put the old config back, whatever of the new one has reached the plane."""
        try:
            if self._put is not None:
                self._install(old, patience=0)
        except (OSError, FnatError) as error:
            log.error("the old configuration could not be put back completely: %s", error)

    def _install(self, config: Config, patience: float | None = None) -> int:
        """Make the plane and the XDP programs hold what config says. patience 0: do not wait for the workers."""
        whole = self._put is None or self._broken
        was = self._put
        if was is None or self._broken:
            was = self._what_is_there()
        self._broken = True
        change = self._draw(config, was, whole)
        self._ids.flush()
        wanted = {addr: self._seen_on(spec[1], spec[2]) if spec else set() for addr, spec in change.addresses.items()}
        if whole:
            wanted |= {addr: set() for owned in was.owned.values() for addr in owned if addr not in wanted}
        disown, own = self._steering_moves(was, wanted)
        for port, addr in disown:
            with _xdp(port):
                self._steering[port].disown(addr)
                was.owned[port].discard(addr)
        self._hold_rules(change, was, whole)
        self._tell(change, was, whole)
        number = self.snapshot
        if change.is_for_workers or whole:
            number = self.plane.publish()
            if patience != 0:
                self._wait_for(number)
        for port, addr in own:
            with _xdp(port):
                self._steering[port].own(addr)
                was.owned[port].add(addr)
        if any(words.family(addr) == 6 for _, addr in (*disown, *own)):
            self._groups()
        change.add_to(was)
        self._put, self._broken = was, False
        return number

    def _hold_rules(self, change: Difference, was: Picture, whole: bool) -> None:
        """Ports steered by n-tuple rules have rules for their LIPs."""
        if not self._rules or not (whole or change.addresses):
            return
        addresses = was.addresses.copy()
        _update(addresses, change.addresses)
        for port, rules in self._rules.items():
            id = self._port[port].id
            try:
                rules.hold({addr for addr, spec in addresses.items() if "lip" in spec[1] and spec[2] == id})
            except CannotSteer as error:
                raise EngineError("FN-1307", f"port {port}: {error.message}", error.fix) from None

    def _seen_on(self, kind: str, port: int) -> set[str]:
        """Ports whose packets for such an address are the workers'. For a VIP all: a real server that is a client, too,
        reaches it from its own side (RFC 4787 REQ-9). Answers for a LIP come where it lives."""
        return set(self._steering) if "vip" in kind else {self._name[port]}

    def _steering_moves(
        self, was: Picture, wanted: Mapping[str, set[str]]
    ) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        """What to disown and to own, as (port, address); wanted: address -> ports."""
        disown, own = [], []
        for addr in sorted(wanted):
            for port, owned in was.owned.items():
                if addr in owned and port not in wanted[addr]:
                    disown.append((port, addr))
                elif addr not in owned and port in wanted[addr]:
                    own.append((port, addr))
        return disown, own

    def _what_is_there(self) -> Picture:
        """The least that is certain: addresses in the XDP programs, services that this process may have put."""
        put: dict[int, dict[str, Any]] = {entry.id: {} for entry in self._ids.entries("service")}
        owned: dict[str, set[str]] = {}
        for port, steering in self._steering.items():
            with _xdp(port):
                owned[port] = set(steering.owned())
        static = {(n.port, n.addr): n.mac for n in self.plane.neighbours() if n.static and n.port in self._name}
        sets = {}
        for id, name, *_ in self.plane.acl_sets():
            self._set_ids[name] = id
            sets[name] = AddressSet(name, pack(*self.plane.acl_read(id)))
        return Picture(services=put, owned=owned, neighbours=static, sets=sets)

    def _tell(self, change: Difference, was: Picture, whole: bool) -> None:
        """The plane is told what differs, in an order that keeps every reference valid."""
        plane = self.plane
        if change.settings is not None:
            timeouts, reset, lports, limits = change.settings
            plane.put_settings(timeouts, reset, lports, **limits)
        for id, (name, mac, mtu, up, exclusive) in change.ports.items():
            plane.put_port(id, name, mac, mtu, up=up, exclusive=exclusive)
        if whole:
            plane.put_addresses([(a[0], addr, *a[1:]) for addr, a in change.addresses.items() if a is not None])
        else:
            for addr, spec in change.addresses.items():
                if spec is None:
                    plane.del_address(was.addresses[addr][0])
            for addr, spec in change.addresses.items():
                if spec is not None:
                    plane.put_address(spec[0], addr, *spec[1:])
        for name, wanted in change.sets.items():
            if wanted is not None:
                self._fill(wanted, was.sets.get(name))
        for id, service in change.services.items():
            if service is None:
                try:
                    plane.del_service(id)
                except OSError:
                    if was.services[id]:
                        raise
        for id, service in change.services.items():
            if service is not None:
                plane.put_service(id, **service)
        if change.acl is not None:
            plane.put_acl(*change.acl)
        for name, wanted in change.sets.items():
            if wanted is None and name in was.sets:
                plane.acl_drop(self._set_ids.pop(name))
        if change.routes is not None:
            plane.put_routes(change.routes)
        for (port_id, addr), static in change.neighbours.items():
            if static is not None:
                plane.neigh_set(port_id, addr, static, static=True)
                continue
            with contextlib.suppress(FileNotFoundError):
                known = self._kernel_neighbours.get((self._name[port_id], addr))
                plane.neigh_set(port_id, addr, known.mac if known else "", static=known is not None and known.permanent)

    def _fill(self, wanted: AddressSet, was: AddressSet | None) -> None:
        """Make the plane's set hold what is wanted."""
        id = self._set_id(wanted.name)
        if was is None and not wanted.changed:
            self.plane.acl_edit(id, wanted.packed.keys.tobytes(), wanted.packed.answers.tobytes())
            return
        was = was or AddressSet(wanted.name)
        moved = {}
        for key, what in wanted.changed_since(was).items():
            answer, known = what[0] if what else 0, was.get(key)
            if answer != (known[0] if known else 0):
                moved[key] = answer
        self.plane.acl_edit(id, b"".join(moved), bytes(moved.values()))

    def _set_id(self, name: str) -> int:
        if name not in self._set_ids:
            self._set_ids[name] = self.plane.acl_make(name)
        return self._set_ids[name]

    def _wait_for(self, snapshot: int) -> None:
        """Until every running worker uses the snapshot. Without a running worker it will be in force when one runs."""
        started = time.monotonic()
        steps = self._steps()
        pause = 0.0002
        while self.plane.adopted() < snapshot:
            waited = time.monotonic() - started
            if waited > self._startle and self._steps() == steps:
                log.info("snapshot %d will be in force when a worker runs", snapshot)
                return
            if waited > self._patience:
                raise EngineError(
                    "FN-1302",
                    f"a running worker has not taken up snapshot {snapshot} in {self._patience:g} s",
                    "look at `fnat status` and the log; the old configuration stays",
                )
            time.sleep(pause)
            pause = min(pause * 1.5, 0.01)

    def _steps(self) -> int:
        return self.plane.counters().get("steps", 0)

    # ---- what differs ----

    def _draw(self, config: Config, was: Picture, whole: bool) -> Difference:
        """What leads from the picture to what config says. whole: nothing of the config in force may be relied upon.
        Takes ids for what is new."""
        base = Config() if whole else self.config
        if whole:
            self._drawn.clear()
            self._askers = {info.id: Askers() for info in self.ports}
            for kind in KINDS:
                for entry in self._ids.entries(kind):
                    self._set_live(entry, False)
        change = Difference()
        host = config.host
        limits = {
            "icmp_rate": host.icmp_rate,
            "echo_rate": host.echo_rate,
            "echo_served": host.echo == "while-served",
            "announce": host.announce,
            "hash_key": hashlib.blake2b(host.hash_key.encode(), digest_size=32).digest() if host.hash_key else b"",
        }
        settings = host.timeouts.by_state(), host.unserved == "reset", host.lports, limits
        change.settings = settings if settings != was.settings else None
        for info in self.ports:
            link = self._links.get(info.name, Link(True, info.mtu, info.mac))
            port = info.name, link.mac, link.mtu, link.up and info.name not in config.down, info.exclusive
            if was.ports.get(info.id) != port:
                change.ports[info.id] = port
        keys = config.services.changed_since(base.services)
        self._draw_sets(config, base, was, change, whole)
        self._draw_addresses(config, base, keys, was, change)
        self._draw_services(config, keys, was, change, whole)
        if whole or change.addresses or self._routes_moved or (config.routes, host) != (base.routes, base.host):
            addresses = was.addresses.copy()
            _update(addresses, change.addresses)
            routes = self._route_specs(self._routes_in_force(config), addresses)
            change.routes = routes if routes != was.routes or whole else None
            self._routes_moved = False
        neighbours = {(self._port[n.port].id, n.addr): n.mac for n in config.neighbours}
        change.neighbours = _differences(was.neighbours, neighbours)
        return change

    def _draw_sets(self, config: Config, base: Config, was: Picture, change: Difference, whole: bool) -> None:
        """Named sets, and the general lists."""
        if whole:
            self._unnamed.clear()
            change.sets = dict.fromkeys(was.sets)
        for name in was.sets.keys() | config.sets.by_key.keys() if whole else config.sets.changed_since(base.sets):
            change.sets[name] = config.sets.get(name)
        if whole or config.acl != base.acl:
            self._forget_lists(() if whole else (base.acl.deny, base.acl.allow), change)
            change.acl = self._list(config.acl.deny, was, change), self._list(config.acl.allow, was, change)

    def _list(self, entries: Sequence[str], was: Picture, change: Difference) -> list[int]:
        """Ids of the sets of a list: those it names, and one that holds the prefixes it names."""
        names = [entry[4:] for entry in entries if entry.startswith("set:")]
        if unnamed := _unnamed(entries):
            self._unnamed[unnamed] += 1
            if self._unnamed[unnamed] == 1:
                prefixes = edits_of(entry for entry in entries if not entry.startswith("set:"))
                change.sets[unnamed] = AddressSet(unnamed, pack(b"".join(prefixes), b"\1" * len(prefixes)))
            names.append(unnamed)
        return [self._set_id(name) for name in names]

    def _forget_lists(self, lists: Iterable[Sequence[str]], change: Difference) -> None:
        """These lists go, with the sets that only they have."""
        for unnamed in filter(None, map(_unnamed, lists)):
            self._unnamed[unnamed] -= 1
            if not self._unnamed[unnamed]:
                del self._unnamed[unnamed]
                change.sets[unnamed] = None

    def _draw_addresses(
        self, config: Config, base: Config, keys: Iterable[Key], was: Picture, change: Difference
    ) -> None:
        """Owned addresses: those given, LIPs of services, LIPs that drain."""
        looked_at = dict.fromkeys(config.addresses.changed_since(base.addresses)) | self._look_at
        for key in keys:
            for service in (base.services.get(key), config.services.get(key)):
                if service is not None:
                    looked_at[service.vip] = None
                    looked_at.update(dict.fromkeys(lip.addr for lip in service.lips))
        if config.host.echo != base.host.echo:
            looked_at |= dict.fromkeys(config.services.vips) | dict.fromkeys(a.addr for a in config.addresses)
        if not was.addresses:
            looked_at |= dict.fromkeys(entry.key for entry in self._ids.entries("address"))
        for addr in looked_at:
            spec, known = self._address_spec(config, addr), was.addresses.get(addr)
            if spec != known:
                change.addresses[addr] = spec
                for id, askers in self._askers.items():
                    old, new = (s[1] if s and s[2] == id else None for s in (known, spec))
                    askers.set(addr, old, new)
        self._look_at = {}

    def _address_spec(self, config: Config, addr: str) -> AddressSpec | None:
        given, ports = config.addresses.get(addr), config.services.lips.get(addr)
        is_lip = bool(ports) or (given is not None and given.sapool)
        port = next(iter(ports)) if ports else given.port if given else None
        if port is not None:
            entry = self._entry("address", addr)
            self._set_live(entry, True)
            if entry.port != port:
                entry.port = port
                self._ids.save(entry)
        else:
            known = self._ids.get("address", addr)
            if known is None:
                return None
            self._set_live(known, False)
            if known.port not in self._port or not self.plane.address_stats(known.id).used:
                return None
            entry, port, is_lip = known, known.port, True  # it drains
        is_vip = addr in config.services.vips or (given is not None and not is_lip)
        is_served = is_vip and config.host.echo == "while-served" and addr in config.services.served
        return entry.id, "+".join(["vip"] * is_vip + ["lip"] * is_lip + ["served"] * is_served), self._port[port].id

    def _draw_services(
        self, config: Config, keys: Iterable[Key], was: Picture, change: Difference, whole: bool
    ) -> None:
        for key in keys:
            old, service = self._drawn.pop(key, None), config.services.get(key)
            entries = list(self._entries(service)) if service is not None else []
            if old is not None:
                kept = {id(entry) for entry in entries}
                for entry in old.entries:
                    if id(entry) not in kept:
                        self._set_live(entry, False)
                if service is None:
                    change.services[old.entries[0].id] = None
                self._forget_lists((old.service.deny, old.service.allow), change)
            if service is None:
                continue
            for entry in entries:
                if not entry.live and not whole:  # it was gone: what comes back counts from 0
                    entry.base = _base(self._raw(entry))
                    self._ids.save(entry)
                self._set_live(entry, True)
            drawn = self._drawn[key] = _Drawn(service, entries, self._service_spec(service, entries[1:], was, change))
            if was.services.get(entries[0].id) != drawn.spec:
                change.services[entries[0].id] = drawn.spec
        if whole:
            wanted = {drawn.entries[0].id for drawn in self._drawn.values()}
            change.services |= {id: None for id in was.services if id not in wanted}

    def _service_spec(
        self, service: Service, servers: Sequence[Entry], was: Picture, change: Difference
    ) -> dict[str, Any]:
        """Arguments of put_service. servers: the entries of its servers, and of its sorry server."""
        members = [(entry.id, r.rip, r.rport, r.weight) for entry, r in zip(servers, _targets(service), strict=True)]
        plain = "active", 0, 0, 0
        limits = {e.id: of for e, r in zip(servers, service.servers, strict=False) if (of := _limits(r)) != plain}
        draining = {
            e.id: r.drain.keep_persistent for e, r in zip(servers, service.servers, strict=False) if r.drain is not None
        }
        limits |= {e.id: ("sorry", 0, 0, 0) for e in servers[len(service.servers) :]}
        half_open = HALF_OPEN_DEFAULT if service.half_open is None else service.half_open
        return {
            "vip": service.vip,
            "vport": service.vport,
            "proto": PROTOS[service.proto],
            "scheduler": service.scheduler,
            "hash_target": service.hash_target,
            "hash_slots": service.table_slots or HASH_SLOTS,
            "slow_start": service.slow_start,
            "no_rs_reset": service.no_rs == "reset",
            "expire_quiescent": service.expire_quiescent,
            "one_packet": service.one_packet,
            "quic": service.quic,
            "conn_timeout": service.conn_timeout,
            "half_open": max(64, half_open // self._info["workers"]) if half_open else 0,
            "client_addr": service.client_addr,
            **({"limits": limits} if limits else {}),
            **({"draining": draining} if draining else {}),
            **({"persistent": service.persistent} if service.persistent else {}),
            **({"persistent_plen": service.persistent_mask} if service.persistent_mask else {}),
            **{word: n for word in ("max_conns", "new_per_s", "per_client") if (n := getattr(service, word))},
            "members": members,
            "lips": self._lips_in_use(service),
            **{
                name: self._list(entries, was, change)
                for name, entries in (("deny", service.deny), ("allow", service.allow))
                if entries
            },
        }

    def _lips_in_use(self, service: Service) -> list[int]:
        """Ids of the LIPs of the families that its RSs are of, IPv4 first; of all while it has none."""
        wanted = {words.family(r.rip) for r in _targets(service)} or {4, 6}
        lips = [lip.addr for family in (4, 6) for lip in service.lips if words.family(lip.addr) == family in wanted]
        return [self._entry("address", addr).id for addr in lips]

    def _routes_in_force(self, config: Config) -> list[Route]:
        """Given routes, those that addresses with a prefix make, and the kernel's for prefixes that nobody gave. Two of
        one prefix and metric would share the connections: only the kernel's may."""
        connected = (route for route in _connected(config.addresses) if route.key not in config.routes.by_key)
        routes = [*config.routes, *connected]
        if config.host.routes == "kernel":
            given = {route.prefix for route in routes}
            routes += [route for route in self._kernel_routes if route.prefix not in given]
        return routes

    def _route_specs(self, routes: Sequence[Route], addresses: Mapping[str, AddressSpec]) -> list[RouteSpec]:
        """Arguments of put_routes. A full table goes by few gateways: who asks is found once for each."""
        links, askers = _on_link(routes), dict[tuple[str, str, str | None], str]()
        specs = []
        for route in routes:
            assert route.port is not None
            kind, src = "host", ""
            if route.scope not in ("kni_host", "host"):
                at = route.port, route.gateway or route.prefix, route.src
                kind, known = "unicast", askers.get(at)
                src = askers[at] = self._asker(route, links, addresses) if known is None else known
            port = self._port[route.port].id
            specs.append((route.prefix, route.gateway or "", src, port, route.mtu, route.metric, kind))
        return specs

    def _asker(self, route: Route, links: Links, addresses: Mapping[str, AddressSpec]) -> str:
        """Who asks for the next hop (ARP, ND): the route's src if it is owned, else an owned address on the port inside
        the connected prefix, a LIP if possible; else "", the source of the packet. Never a host's address: the answer
        would go there. A link-local gateway is asked for from any address of its link."""
        assert route.port is not None
        id = self._port[route.port].id
        if route.src is not None and (known := addresses.get(route.src)) is not None and known[2] == id:
            return route.src
        if route.gateway is None:
            return self._askers[id].inside(words.network(route.prefix))
        gateway = words.parse(route.gateway)
        around = links.get((route.port, words.family(route.gateway)), [])
        if gateway.version == 4 or not gateway.is_link_local:
            around = [net for net in around if gateway in net][:1]
        return next((src for net in around if (src := self._askers[id].inside(net))), "")

    # ---- ids ----

    def _limit(self, kind: Kind) -> int:
        """Ids of a kind are below this."""
        return {"service": self._info["services"], "member": self._info["members"], "address": ADDRESS_IDS}[kind]

    def _counted(self, kind: Kind, id: int) -> Base | None:
        """What the data plane has counted for this id; None: it holds connections or ports."""
        if kind == "address":
            use = self.plane.address_stats(id)
            return None if use.used or use.conns else ZERO
        stats = self.plane.service_stats(id) if kind == "service" else self.plane.member_stats(id)
        return None if stats.active or stats.inactive else _base(stats)

    def _entry(self, kind: Kind, key: str) -> Entry:
        """The entry of a thing that exists, with a new id if it has none; what its id counted before is not shown."""
        entry = self._ids.get(kind, key)
        if entry is None:
            entry = self._ids.take(kind, key, self._limit(kind), lambda id: self._counted(kind, id))
            entry.live = True
        return entry

    def _set_live(self, entry: Entry, live: bool) -> None:
        entry.live = live
        if live:
            self._gone.pop((entry.kind, entry.key), None)
        else:
            self._gone[entry.kind, entry.key] = entry

    def _raw(self, entry: Entry) -> Stats:
        return self.plane.service_stats(entry.id) if entry.kind == "service" else self.plane.member_stats(entry.id)

    def _entries(self, service: Service) -> Iterator[Entry]:
        """Of the service, then of its members."""
        key = str(service.key)
        yield self._entry("service", key)
        for server in service.servers:
            yield self._entry("member", _member_key(key, server))
        for sorry in _targets(service)[len(service.servers) :]:
            yield self._entry("member", _member_key(f"{key} sorry", sorry))

    def _fit_ids_to_plane(self) -> None:
        """A plane with less room has no such ids; in a new arena counters are below their base and start from 0."""
        for kind in KINDS:
            counts = self._counts(kind).tolist() if kind != "address" else []
            for entry in self._ids.entries(kind):
                if entry.id >= self._limit(kind):
                    self._ids.release(entry)
                    continue
                self._set_live(entry, False)
                if kind != "address" and any(n < b for n, b in zip(counts[entry.id], entry.base, strict=False)):
                    entry.base = ZERO
                    self._ids.save(entry)

    # ---- up: counters and listings ----

    def _counts(self, kind: Kind) -> NDArray[np.uint64]:
        """Counters of all ids that are or were in use, a row each; the columns are the fields of Stats."""
        count = min(self._ids.end(kind), self._limit(kind))
        return self.plane.service_table(count) if kind == "service" else self.plane.member_table(count)

    def sample(self, now: float) -> None:
        """Take all counters at time now (seconds); rates are the difference to the sample before."""
        elapsed = now - self._sampled_at
        rates: dict[Kind, NDArray[np.int64]] = {}
        for kind in ("service", "member"):
            fresh = self._counts(kind)[:, :5]
            before = self._sampled.get(kind)
            self._sampled[kind] = fresh
            if before is not None and elapsed > 0:
                rows = min(len(before), len(fresh))
                moved = (fresh[:rows] - before[:rows]).view("int64").clip(0)
                if moved.any():
                    rates[kind] = (moved / elapsed).round().astype("int64")
        self._sampled_at, self._rates = now, rates
        self._watch_drains(now)
        if self._history.is_due(now):
            self._history.keep(self._usage(now))

    def _watch_drains(self, now: float) -> None:
        left: dict[int, int] = {}
        for service, server in self.draining():
            id = self._entry("member", _member_key(str(service.key), server)).id
            left[id] = sum(self.plane.member_stats(id)[5:])
        self._falls.note(now, left)

    def shifting(self) -> list[Service]:
        """Services in which weight moves."""
        self.draining()
        return self._shifting

    def draining(self) -> list[tuple[Service, RealServer]]:
        """Servers that drain; looked for when the services have changed."""
        services = self.config.services
        if self._draining_of is not services:
            self._draining = [(s, r) for s in services for r in s.servers if r.drain is not None]
            self._shifting = [s for s in services if s.shifts]
            self._draining_of = services
        return self._draining

    def services(self, proto: str | None = None, vip: str | None = None, vport: int | None = None) -> list[ServiceView]:
        with self._lock:
            if proto is not None and vip is not None and vport is not None:
                key = Key(cast(Proto, proto), vip, vport)
                return [self._service_view(s, self._row) for s in self._services_of(key)]
            tables: dict[Kind, list[list[int]]] = {k: self._counts(k).tolist() for k in ("service", "member")}
            return [
                self._service_view(s, lambda entry: tables[entry.kind][entry.id])
                for s in self.services_named(proto, vip, vport)
            ]

    def open_conns(self, service: Service) -> tuple[int, dict[tuple[str, int], int]]:
        """Connections of a service in force, all and by server."""
        with self._lock:
            row = list(self._entries(service))
            counts = [raw[5] + raw[6] for raw in map(self._raw, row)]
            return counts[0], {r.key: n for r, n in zip(service.servers, counts[1:], strict=True)}
    # ---- access lists ----

    def acl(self) -> AclView:
        """The general lists."""
        counters = self.plane.counters()
        denied, other = (counters.get(f"acl_general_{name}", 0) for name in ("deny", "not_allowed"))
        lists, closed = self.config.acl, counters.get("acl_closed", 0)
        hits = AclHits(denied=denied, not_allowed=other)
        return AclView(deny=list(lists.deny), allow=list(lists.allow), hits=hits, closed=closed)

    def acl_test(self, addr: str, key: Key | None = None) -> AclTest:
        """May the address open a connection, by the configuration in force? key None: by the general lists alone."""
        config = self.config
        lists: list[tuple[str, Sequence[str], bool]] = []
        for who, owner in (("general", config.acl), ("service", config.services.get(key) if key else None)):
            if owner is None and who == "service" and key is not None:
                raise ChangeError(404, "FN-1203", f"there is no service {key}", "see `fnat service show`")
            if owner is not None:
                lists += [(f"{who} deny", owner.deny, True), (f"{who} allow", owner.allow, False)]
        by = ""
        for who, entries, denies in lists:
            found = self._find_in(entries, addr)
            if denies and found:
                return AclTest(addr=addr, admitted=False, by=f"{who}: {found}")
            if not denies and entries and not found:
                return AclTest(addr=addr, admitted=False, by=f"{who}: not in it")
            by = f"{who}: {found}" if found else by
        return AclTest(addr=addr, admitted=True, by=by or "no list forbids it")

    def _find_in(self, entries: Sequence[str], addr: str) -> str | None:
        for entry in entries:
            named = self.config.sets.get(entry[4:]) if entry.startswith("set:") else None
            if named is not None and named.holds(addr):
                return f"{entry} {named.find(addr)}"
            if named is None and words.parse(addr) in words.network(entry):
                return entry
        return None

    def sets(self) -> list[SetView]:
        config = self.config
        used = Counter(e for s in config.services for e in {*s.deny, *s.allow} if e.startswith("set:"))
        used.update({*config.acl.deny, *config.acl.allow})
        return [
            SetView(name=s.name, type=s.type, span=s.span, entries=len(s), used_by=used[f"set:{s.name}"])
            for s in config.sets
        ]

    def set_page(self, name: str, start: int, limit: int) -> SetPage:
        known = self._set_named(name)
        entries = list(known.entries(start, limit))
        return SetPage(entries=entries, next=start + limit if start + limit < len(known) else None)

    def set_test(self, name: str, addr: str) -> AclTest:
        """Is the address in the set?"""
        known = self._set_named(name)
        return AclTest(addr=addr, admitted=known.holds(addr), by=known.find(addr) or "no entry")

    def _set_named(self, name: str) -> AddressSet:
        known = self.config.sets.get(name)
        if known is None:
            raise ChangeError(404, "FN-1203", f"there is no set {name}", "see `fnat set show`")
        return known

    def _services_of(self, key: Key | None) -> Iterable[Service]:
        """The service of this key, if there is one; all of them without a key."""
        if key is None:
            return self.config.services
        service = self.config.services.get(key)
        return () if service is None else (service,)

    def _row(self, entry: Entry) -> Sequence[int]:
        return self._raw(entry)

    def _service_view(self, service: Service, row: Callable[[Entry], Sequence[int]]) -> ServiceView:
        """row: the counters of an entry, as the fields of Stats."""
        key = str(service.key)
        clients = self._persistent_clients() if service.persistent else {}
        stats, rate = self._shown("service", key, row)
        hits = self.plane.acl_stats(self._entry("service", key).id)
        view = ServiceView(
            name=service.name,
            proto=service.proto,
            vip=service.vip,
            vport=service.vport,
            scheduler=service.scheduler,
            hash_target=service.hash_target,
            hash_slots=service.hash_slots,
            slow_start=service.slow_start,
            conn_timeout=service.conn_timeout,
            no_rs=service.no_rs,
            expire_quiescent=service.expire_quiescent,
            one_packet=service.one_packet,
            quic=service.quic,
            half_open=service.half_open,
            persistent=service.persistent,
            persistent_mask=service.persistent_mask,
            max_conns=service.max_conns,
            new_per_s=service.new_per_s,
            per_client=service.per_client,
            client_addr=service.client_addr,
            deny=list(service.deny),
            allow=list(service.allow),
            acl=AclHits(denied=hits[0], not_allowed=hits[1]),
            stats=stats,
            rate=rate,
            lips=[],
            servers=[],
        )
        for lip in service.lips:
            use = self.plane.address_stats(self._entry("address", lip.addr).id)
            view["lips"].append({"addr": lip.addr, "port": lip.port, "conns": use.conns, "conflicts": use.misses})
        for server in service.servers:
            stats, rate = self._shown("member", _member_key(key, server), row)
            view["servers"].append(
                ServerView(
                    rip=server.rip,
                    rport=server.rport,
                    weight=server.weight,
                    role=server.role,
                    upper=server.upper,
                    lower=server.lower,
                    max_new_per_s=server.max_new_per_s,
                    persistent=clients.get(self._entry("member", _member_key(key, server)).id, 0),
                    drain=self._drain_view(server, _member_key(key, server), stats),
                    shift=_shift_text(service, server),
                    overloaded=self._is_overloaded(server, _member_key(key, server), stats),
                    stats=stats,
                    rate=rate,
                )
            )
        return view

    def _persistent_clients(self) -> dict[int, int]:
        """By member id; counted at most once a second."""
        now = time.monotonic()
        if now - self._persistent_at > 1:
            counts = self.plane.persistent()
            self._persistent = {int(id): int(counts[id]) for id in counts.nonzero()[0]}
            self._persistent_at = now
        return self._persistent

    def _drain_view(self, server: RealServer, key: str, stats: StatsView) -> DrainView | None:
        if server.drain is None:
            return None
        id, left = self._entry("member", key).id, stats["active"] + stats["inactive"]
        ends = [server.drain.until - time.time()] if server.drain.until is not None else []
        ends += [estimate] if (estimate := self._falls.ends_in(id, left)) is not None else []
        return DrainView(
            until=server.drain.until,
            keep_persistent=server.drain.keep_persistent,
            left=left,
            oldest=self._oldest(id) if left else None,
            ends_in=0.0 if not left else max(0.0, min(ends)) if ends else None,
        )

    def _oldest(self, member: int) -> int | None:
        """Age of the oldest connection of a member."""
        ages = [0]
        for worker in range(self._info["workers"]):
            position = 0
            while position >= 0:
                page, position = self.plane.conns(worker, position, 4096, member=member)
                ages += [conn.age for conn in page]
        return max(ages)

    # ---- ending connections ----

    def kill(self, *, reset: bool, **filters: str | int | None) -> int:
        """End the connections that pass the filters, as they are found; how many there were. Raises EngineError when
        the workers have not finished in time."""
        return self._kill(reset, self._core_filter(0, filters))

    def _kill(self, reset: bool, asked: CoreFilter) -> int:
        with self._killing:
            deadline = time.monotonic() + KILL_PATIENCE
            number = -1
            while True:
                if number < 0:
                    try:
                        number = self.plane.conn_kill(reset=reset, **asked)
                    except OSError as error:
                        if error.errno != errno.EBUSY:  # of a control that has ended
                            raise _refused(error) from None
                finished, ended = self.plane.conn_killed()
                if 0 <= number <= finished:
                    return ended
                if time.monotonic() > deadline:
                    message = f"the workers have not gone through their connections in {KILL_PATIENCE:g} s"
                    raise EngineError("FN-1302", message, "look at `fnat conn count`; they go on with it")
                time.sleep(0.001)

    def end_drained(self, service: Service, server: RealServer) -> int:
        """What is left on a server is reset (TCP) or moved to others by its next packet (UDP); how many there were."""
        id = self._entry("member", _member_key(str(service.key), server)).id
        stats = self.plane.member_stats(id)
        return self._kill(True, {"member": id}) if stats.active + stats.inactive else 0

    def _move_flows(self, old: Config, new: Config) -> None:
        """UDP flows of servers that were removed go to others with their next datagram."""
        for key in new.services.changed_since(old.services):
            before, after = old.services.get(key), new.services.get(key)
            if before is None or after is None or key.proto != "udp":
                continue
            there = {server.key for server in after.servers}
            for server in before.servers:
                entry = self._ids.get("member", _member_key(str(key), server)) if server.key not in there else None
                if entry is None or not sum(self.plane.member_stats(entry.id)[5:]):
                    continue
                try:
                    self._kill(False, {"member": entry.id})
                except EngineError as error:
                    log.error("flows of %s of %s: %s", words.endpoint(*server.key), key, error)

    def _is_overloaded(self, server: RealServer, key: str, stats: StatsView) -> bool:
        """It has reached its upper limit and not come below the lower one since."""
        conns = stats["active"] + stats["inactive"]
        recovered = conns < server.lower if server.lower else conns * 4 < server.upper * 3
        return not recovered and server.upper > 0 and self.plane.member_overloaded(self._entry("member", key).id)

    def _shown(self, kind: Kind, key: str, row: Callable[[Entry], Sequence[int]]) -> tuple[StatsView, RateView]:
        entry = self._entry(kind, key)
        raw = row(entry)
        values = [max(0, now - base) for now, base in zip(raw, entry.base, strict=False)]
        stats = StatsView(
            conns=values[0],
            in_packets=values[1],
            out_packets=values[2],
            in_bytes=values[3],
            out_bytes=values[4],
            active=raw[5],
            inactive=raw[6],
        )
        rates = self._rates.get(kind)
        if rates is None or entry.id >= len(rates):
            return stats, NO_RATE
        cps, in_pps, out_pps, in_bps, out_bps = rates[entry.id].tolist()
        return stats, RateView(cps=cps, in_pps=in_pps, out_pps=out_pps, in_bps=in_bps, out_bps=out_bps)

    def addresses(self, port: str | None = None) -> list[AddressView]:
        """Owned addresses; LIPs that drain are among them until their last connection ends."""
        with self._lock:
            given = {a.addr: a for a in self.config.addresses}
            servers: dict[str, set[tuple[str, str, int]]] = {}
            for service in self.config.services:
                rss = {
                    family: {(service.proto, r.rip, r.rport) for r in service.servers if words.family(r.rip) == family}
                    for family in (4, 6)
                }
                for lip in service.lips:
                    servers.setdefault(lip.addr, set()).update(rss[words.family(lip.addr)])
            views = []
            for addr, (id, kind, port_id) in self._put.addresses.items() if self._put else ():
                known = given.get(addr)
                use = self.plane.address_stats(id)
                is_lip = "lip" in kind
                views.append(
                    AddressView(
                        addr=addr,
                        plen=known.plen if known else words.bits(addr),
                        port=self._name[port_id],
                        scope="global",
                        sapool=is_lip,
                        sa_used=use.used,
                        sa_free=max(0, self.config.host.ports_of_a_lip * max(1, len(servers.get(addr, ()))) - use.used)
                        if is_lip
                        else 0,
                        sa_miss=use.misses,
                    )
                )
            return [view for view in views if port in (None, view["port"])]

    def routes(self) -> list[RouteView]:
        """Host routes of owned addresses, routes of their prefixes, given ones, and the kernel's that are in force."""
        with self._lock:
            config = self.config
            owned = [(view["addr"], view["port"]) for view in self.addresses()]
            own = [Route(prefix=f"{addr}/{words.bits(addr)}", port=port, scope="host") for addr, port in owned]
            made = [("auto", r) for r in own]
            given = set(config.routes)
            for route in self._routes_in_force(config):
                connected = route.src is not None and route not in given and route in _connected(config.addresses)
                made.append(("static" if route in given else "auto" if connected else "kernel", route))
            return [self._route_view(proto, route) for proto, route in made]

    def _route_view(self, proto: str, route: Route) -> RouteView:
        mtu = self._port[route.port].mtu if route.port in self._port else 0
        return RouteView(
            prefix=route.prefix,
            gateway=route.gateway,
            src=route.src,
            port=route.port,
            mtu=route.mtu or mtu,
            metric=route.metric,
            scope=route.scope or ("link" if route.gateway is None else "global"),
            proto=proto,
        )

    def neighbours(self, port: str | None = None) -> list[NeighbourView]:
        views = [
            NeighbourView(
                addr=n.addr, mac=n.mac, state=n.state, port=self._name.get(n.port, str(n.port)), static=n.static
            )
            for n in self.plane.neighbours()
        ]
        return [view for view in views if port in (None, view["port"])]

    def port_views(self) -> list[PortView]:
        with self._lock:
            config = self.config
        frames = self._info["frames"] * self._info["workers"]
        held = self.plane.counters().get("frames", 0)
        views = []
        for info in self.ports:
            link = self._links.get(info.name, Link(True, info.mtu, info.mac))
            speed, duplex = _speed(info.device)
            views.append(
                PortView(
                    id=info.id,
                    name=info.name,
                    kind=info.kind,
                    device=info.device,
                    mac=link.mac,
                    mtu=link.mtu,
                    up=link.up and info.name not in config.down,
                    speed=speed,
                    duplex=duplex,
                    mode=info.mode,
                    zero_copy=info.zero_copy,
                    exclusive=info.exclusive,
                    queues=info.queues,
                    steering=self.steering_of(info),
                    stats=_device_stats(info.device),
                    frames={"avail": frames - held, "inuse": held},
                )
            )
        return views

    def steering_of(self, port: PortInfo) -> dict[str, str]:
        """How answers that arrive on a port reach their worker, by flow."""
        return {flow: self.plane.steering(port.id, flow).note for flow in FLOWS}

    def workers(self) -> list[WorkerView]:
        return [
            WorkerView(
                index=i,
                cpu=self.plane.worker_cpu(i),
                counters=self.plane.counters(i),
                steps=self.plane.step_stats(i),
            )
            for i in range(self._info["workers"])
        ]

    def longest_steps(self) -> list[int]:
        """Nanoseconds of the longest turn of any worker: undisturbed, preempted."""
        return [max(longest) for longest in zip(*(w["steps"]["max_ns"] for w in self.workers()), strict=True)]

    @property
    def worker_count(self) -> int:
        return self._info["workers"]

    @property
    def capacity(self) -> int:
        """Connections that fit, over all workers."""
        return self._info["conns"] * self._info["workers"]

    @property
    def huge_page_size(self) -> int:
        return self._info["huge_page_size"]

    # ---- headroom ----

    def _usage(self, at: float) -> usage.Usage:
        host, workers = self.config.host, self._info["workers"]
        conns = self.plane.counters()["conns"]
        return usage.read(at, conns, self.plane.endpoints(), host.ports_of_a_lip, workers)

    def headroom(
        self, proto: str | None = None, vip: str | None = None, vport: int | None = None, limit: int = 100
    ) -> HeadroomView:
        """Free local ports per (service, LIP, RS), and when ports or connections run out. Of one service: all its pairs
        of LIP and RS; of all services: only pairs in use, and the first `limit`."""
        now = self._usage(time.monotonic())
        rates = self._history.port_rates(now)
        services, one = list(self.services_named(proto, vip, vport)), vip is not None and vport is not None
        rows = [row for service in services for row in self._headroom_rows(service, now, rates, unused=one)]
        rows.sort(key=lambda row: row["free"])
        return HeadroomView(
            rows=rows[:limit],
            ports_full_in=usage.ports_full_in(now, rates),
            conns=now.conns,
            capacity=self.capacity,
            conns_full_in=usage.seconds_left(self.capacity - now.conns, self._history.conn_rate(now)),
        )

    def forecast(self) -> tuple[float | None, float | None, dict[Key, int]]:
        """Seconds until ports and until connections run out (None: never), and for each service with ports in use the
        fewest free ones of any LIP towards any RS."""
        now = self._usage(time.monotonic())
        least: dict[Key, int] = {}
        for service in self.config.services if len(now.keys) else ():
            if found := self._pairs(service, now):
                least[service.key] = min(int(now.free[at]) for _, _, at in found)
        conns = usage.seconds_left(self.capacity - now.conns, self._history.conn_rate(now))
        return usage.ports_full_in(now, self._history.port_rates(now)), conns, least

    def services_named(self, proto: str | None, vip: str | None, vport: int | None) -> Iterable[Service]:
        if proto is not None and vip is not None and vport is not None:
            return self._services_of(Key(cast(Proto, proto), vip, vport))
        return (
            s
            for s in self.config.services
            if proto in (None, s.proto) and vip in (None, s.vip) and vport in (None, s.vport)
        )

    def _pairs(self, service: Service, now: usage.Usage) -> list[tuple[RealServer, str, int]]:
        """RSs and LIPs of a service with ports in use, and where they are in the usage."""
        lips = {self._entry("address", lip.addr).id: lip.addr for lip in service.lips}
        proto = PROTOS[service.proto]
        return [
            (server, lips[lip], at)
            for server in service.servers
            for lip, at in now.by_rs.get(usage.rs_key(server.rip, server.rport, proto), {}).items()
            if lip in lips
        ]

    def _headroom_rows(
        self, service: Service, now: usage.Usage, rates: NDArray[np.float64], unused: bool
    ) -> list[HeadroomRow]:
        """unused: also pairs of which no port is in use."""
        share = self.config.host.ports_of_a_lip // self._info["workers"]

        def row(server: RealServer, lip: str, used: int, free: int, busiest: int, rate: float) -> HeadroomRow:
            return HeadroomRow(
                proto=service.proto,
                vip=service.vip,
                vport=service.vport,
                lip=lip,
                rip=server.rip,
                rport=server.rport,
                used=used,
                free=free,
                busiest=busiest,
                share=share,
                full_in=usage.seconds_left(free, rate),
            )

        pairs = self._pairs(service, now)
        rows = [
            row(server, lip, int(now.used[at]), int(now.free[at]), int(now.busiest[at]), float(rates[at]))
            for server, lip, at in pairs
        ]
        if unused:
            known = {(server.key, lip) for server, lip, _ in pairs}
            rows += [
                row(server, lip.addr, 0, share * self._info["workers"], 0, 0.0)
                for server in service.servers
                for lip in service.lips
                if (server.key, lip.addr) not in known and words.family(server.rip) == words.family(lip.addr)
            ]
        return rows

    def conns(
        self, *, worker: int | None = None, cursor: str | None = None, limit: int = 1024, **filters: str | int | None
    ) -> ConnPage:
        """One page of the connections that pass the filters (see ConnFilter). The cursor is "WORKER:POSITION"; a page
        may be short, or empty, before the end."""
        at, position = _parse_cursor(cursor, worker or 0)
        asked = self._core_filter(at, filters)
        deadline = time.monotonic() + PAGE_TIME
        views: list[ConnView] = []
        following: str | None = None
        while True:
            page, position = self.plane.conns(at, position, limit - len(views), **asked)
            views += map(_conn_view, page)
            following = f"{at}:{position}"
            if position < 0:
                following = f"{at + 1}:0" if worker is None and at + 1 < self._info["workers"] else None
            if position < 0 or len(views) >= limit or time.monotonic() > deadline:
                return ConnPage(conns=views, next=following)

    def conn_count(self, *, worker: int | None = None, **filters: str | int | None) -> int:
        """How many connections pass the filters; the records are counted, in their memory."""
        asked = self._core_filter(worker or 0, filters)
        workers = range(self._info["workers"]) if worker is None else (worker,)
        return sum(self.plane.conn_count(w, **asked) for w in workers)

    def _core_filter(self, worker: int, filters: Mapping[str, str | int | None]) -> CoreFilter:
        """The filters in the core's words. Raises ChangeError."""
        workers = self._info["workers"]
        if not 0 <= worker < workers:
            raise ChangeError(400, "FN-1201", f"there is no worker {worker}", f"workers are 0..{workers - 1}")
        given = {name: value for name, value in filters.items() if value is not None}
        state, proto = given.pop("state", None), given.pop("proto", None)
        if state is not None and state not in STATES:
            raise ChangeError(400, "FN-1201", f"there is no state {state!r}", f"allowed: {', '.join(STATES)}")
        numbers = {"state": STATES.index(str(state))} if state else {}
        numbers |= {"proto": PROTOS[str(proto)]} if proto else {}
        return cast("CoreFilter", given | numbers)


def _conn_view(conn: Conn) -> ConnView:
    return ConnView(
        worker=conn.worker,
        proto=PROTO_NAMES[conn.proto],
        state=conn.state,
        remaining=conn.remaining,
        age=conn.age,
        cip=conn.cip,
        cport=conn.cport,
        vip=conn.vip,
        vport=conn.vport,
        lip=conn.lip,
        lport=conn.lport,
        rip=conn.rip,
        rport=conn.rport,
        in_packets=conn.in_packets,
        out_packets=conn.out_packets,
        in_bytes=conn.in_bytes,
        out_bytes=conn.out_bytes,
    )


def _parse_cursor(cursor: str | None, worker: int) -> tuple[int, int]:
    if cursor is None:
        return worker, 0
    at, colon, position = cursor.partition(":")
    if not colon or not at.isdecimal() or not position.isdecimal():
        raise ChangeError(400, "FN-1201", f"{cursor!r} is not a cursor", "use the text of the page before")
    return int(at), int(position)


def _connected(addresses: Iterable[Address]) -> list[Route]:
    """On-link routes that addresses with a prefix make; of equal prefixes the first address makes it."""
    made: dict[str, Route] = {}
    for a in addresses:
        if a.makes_route:
            made.setdefault(a.network, Route(prefix=a.network, port=a.port, src=a.addr, scope="link"))
    return list(made.values())


def _on_link(routes: Iterable[Route]) -> Links:
    """The networks that are on a link, longest prefix first."""
    found: Links = {}
    for r in routes:
        if r.port is not None and r.gateway is None and r.scope not in ("kni_host", "host"):
            found.setdefault((r.port, words.family(r.prefix)), []).append(words.network(r.prefix))
    for networks in found.values():
        networks.sort(key=lambda net: -net.prefixlen)
    return found


def _targets(service: Service) -> list[RealServer]:
    """Where its connections may go: its servers, then its sorry server."""
    targets = list(service.servers)
    if service.no_rs not in ("drop", "reset"):
        host, port = words.split(service.no_rs)
        targets.append(RealServer(rip=host, rport=int(port)))
    return targets


def _shift_text(service: Service, server: RealServer) -> str | None:
    for s in service.shifts:
        if s.key == server.key and s.weights:
            done = (s.weights[0] - server.weight) * 100 // max(1, s.weights[0])
            return f"to {words.endpoint(s.to_rip, s.to_rport)}, {s.per_min:g} %/min, {done} % done"
    return None


def _limits(server: RealServer) -> tuple[str, int, int, int]:
    """As put_service has it."""
    return server.role, server.upper, server.lower, server.max_new_per_s
def _unnamed(entries: Sequence[str]) -> str:
    """The name of the set that holds the prefixes of a list; "" when it has none. Equal prefixes are the same set."""
    prefixes = sorted(entry for entry in entries if not entry.startswith("set:"))
    return f"#{hashlib.sha256(' '.join(prefixes).encode()).hexdigest()[:32]}" if prefixes else ""


def _member_key(service: str, server: RealServer) -> str:
    return f"{service} {words.endpoint(server.rip, server.rport)}"


def _base(stats: Stats) -> Base:
    return stats.conns, stats.in_packets, stats.out_packets, stats.in_bytes, stats.out_bytes


@contextlib.contextmanager
def _xdp(port: str) -> Iterator[None]:
    """What the XDP program of a port refuses, in our words."""
    try:
        yield
    except DriverError as error:
        raise EngineError("FN-1306", f"port {port}: {error.message}", error.fix) from None
    except OSError as error:
        raise EngineError(
            "FN-1306", f"port {port}: the XDP program refused: {error.strerror or error}", "is the data plane running?"
        ) from None


def _refused(error: OSError) -> EngineError:
    text = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.ENOMEM):
        return EngineError(
            "FN-1303", f"the data plane has no room: {text}", "remove something, or start it with more room"
        )
    return EngineError("FN-1301", f"the data plane refused: {text}", "the old configuration stays in force")


def _device_stats(device: str) -> PortStatsView:
    """Counters of the NIC in the kernel (sysfs); 0 where there is none."""
    base = Path("/sys/class/net") / device / "statistics"

    def read(name: str) -> int:
        try:
            return int((base / name).read_text())
        except (OSError, ValueError):
            return 0

    return PortStatsView(
        ipackets=read("rx_packets"),
        opackets=read("tx_packets"),
        ibytes=read("rx_bytes"),
        obytes=read("tx_bytes"),
        ierrors=read("rx_errors"),
        oerrors=read("tx_errors"),
        imissed=read("rx_missed_errors"),
        rx_nombuf=read("rx_dropped"),
    )


def _speed(device: str) -> tuple[int, str]:
    """(Mbit/s, duplex); 0 and "unknown" when the NIC does not say."""
    base = Path("/sys/class/net") / device
    try:
        return max(0, int((base / "speed").read_text())), (base / "duplex").read_text().strip()
    except (OSError, ValueError):
        return 0, "unknown"
