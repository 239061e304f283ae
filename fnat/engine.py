"""Control's handle on the data plane: a Config goes down, counters and listings come up.

`commit` turns the config into a picture (what the plane and the XDP programs shall hold) and puts only what differs
from the picture that is in force: one service changed is one put_service. Then it publishes, waits until every running
worker has taken the snapshot up, and only then owns new addresses in the XDP program; addresses that go are disowned
first. A failure puts the old picture back. A LIP that goes stays owned, and its id kept, until its last connection ends
(`sweep`).

Everything here may be called from several threads; one lock orders it. No packet waits for any of it.

Unsatisfying: counters are read one id at a time, so `sample` is paced by its own cost when there are very many RSs.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import logging
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fnat.drivers import DriverError
from fnat.errors import ChangeError, EngineError, FnatError
from fnat.model import (
    HALF_OPEN_DEFAULT,
    STATES,
    Address,
    AddressView,
    Config,
    ConnPage,
    ConnView,
    Key,
    Neighbour,
    NeighbourView,
    PortInfo,
    PortStatsView,
    PortView,
    RateView,
    RealServer,
    Route,
    RouteView,
    Service,
    ServiceView,
    StatsView,
    WorkerView,
)
from fnat.state import KINDS, ZERO, Base, Entry, Ids, Kind
from fnat.steering import FLOWS, CannotSteer

if TYPE_CHECKING:
    from fnat._core import Conn, Plane, Stats

log = logging.getLogger("fnat.engine")

PROTOS = {"tcp": 6, "udp": 17}
PROTO_NAMES = {6: "tcp", 17: "udp"}
ADDRESS_IDS = 65536
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


@dataclass
class Picture:
    """What plane and XDP programs shall hold. An empty service: put or not, it must be deleted."""

    settings: tuple[dict[str, int], bool, tuple[int, int]] | None = None
    ports: dict[int, tuple[str, str, int, bool, bool]] = field(default_factory=dict)
    services: dict[int, dict[str, Any]] = field(default_factory=dict)
    addresses: list[tuple[int, str, str, int]] = field(default_factory=list)
    routes: list[tuple[str, str, str, int, int, int, str]] = field(default_factory=list)
    neighbours: dict[tuple[int, str], str] = field(default_factory=dict)
    owned: dict[str, set[str]] = field(default_factory=dict)
    lips: dict[str, set[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Drawn:
    """A service in the picture: the entries of its ids, its own first, and the arguments of put_service."""

    service: Service
    entries: list[Entry]
    spec: dict[str, Any]


class Engine:
    """See the head of the file. `steering` by port name; a port that is missing there gets all its frames. `rules` by
    port name, of ports whose answers find their worker by flow rules."""

    def __init__(
        self,
        plane: Plane,
        steering: Mapping[str, Steering],
        ports: Sequence[PortInfo],
        ids: Ids,
        *,
        rules: Mapping[str, LipRules] | None = None,
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
        self._port = {p.name: p for p in ports}
        self._name = {p.id: p.name for p in ports}
        self._ids = ids
        self._patience = patience
        self._startle = startle
        self._lock = threading.RLock()
        self._put: Picture | None = None
        self._drawn: dict[Key, _Drawn] = {}
        self._kernel_routes: list[Route] = []
        self._kernel_neighbours: dict[tuple[str, str], str] = {}
        self._links: dict[str, Link] = {}
        self._sampled: dict[tuple[Kind, int], Base] = {}
        self._sampled_at = 0.0
        self._rates: dict[tuple[Kind, int], RateView] = {}
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
            return self.snapshot

    def set_kernel_routes(self, routes: Sequence[Route]) -> None:
        """The host's routes through our ports; in force at once when they changed. Called by the host mirror."""
        with self._lock:
            ours = [route for route in routes if route.port in self._port]
            if ours != self._kernel_routes:
                self._kernel_routes = ours
                self._again()

    def set_kernel_neighbours(self, neighbours: Sequence[Neighbour]) -> None:
        """The host's resolved neighbours. One that the host forgets stays: workers probe for themselves."""
        with self._lock:
            fresh = {(n.port, n.addr): n.mac for n in neighbours if n.port in self._port}
            static = {(n.port, n.addr) for n in self.config.neighbours}
            for (port, addr), mac in fresh.items():
                if self._kernel_neighbours.get((port, addr)) != mac and (port, addr) not in static:
                    try:
                        self.plane.neigh_set(self._port[port].id, addr, mac)
                    except OSError as error:
                        log.error("neighbour %s on %s: %s", addr, port, error.strerror)
            self._kernel_neighbours = fresh

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
            for service in self.config.services:
                if key in (None, service.key):
                    for entry in self._entries(service):
                        entry.base = _base(self._raw(entry))
                        self._ids.save(entry)
            self._ids.flush()

    def sweep(self) -> None:
        """Give back what nothing counts for any more: LIPs that drained, ids of things that are gone."""
        with self._lock:
            gone = [e for kind in KINDS for e in self._ids.entries(kind) if not e.live]
            idle = [e for e in gone if not self._is_busy(e.kind, e.id)]
            if not idle:
                return
            held = {addr for owned in self._put.owned.values() for addr in owned} if self._put else set()
            for entry in idle:
                self._ids.release(entry)
            self._ids.flush()
            if any(e.kind == "address" and e.key in held for e in idle):
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
        self._drawn.clear()
        try:
            if self._put is not None:
                self._install(old, broken=True)
        except (OSError, FnatError) as error:
            log.error("the old configuration could not be put back completely: %s", error)

    def _install(self, config: Config, *, broken: bool = False) -> int:
        """Make the plane and the XDP programs hold the picture of config. broken: nobody knows what they hold."""
        picture = self._draw(config)
        self._ids.flush()
        first = self._put is None
        was = self._what_is_there() if first or broken else self._put
        assert was is not None
        for port, steering in self._steering.items():
            for addr in sorted(was.owned[port] - picture.owned[port]):
                with _xdp(port):
                    steering.disown(addr)
        for port, rules in self._rules.items():
            if first or broken or was.lips[port] != picture.lips[port]:
                try:
                    rules.hold(picture.lips[port])
                except CannotSteer as error:
                    raise EngineError("FN-1307", f"port {port}: {error.message}", error.fix) from None
        number = self.snapshot
        if self._put_differences(was, picture) or first or broken:
            number = self.plane.publish()
            if not broken:
                self._wait_for(number)
        for port, steering in self._steering.items():
            for addr in sorted(picture.owned[port] - was.owned[port]):
                with _xdp(port):
                    steering.own(addr)
        self._put = picture
        return number

    def _what_is_there(self) -> Picture:
        """The least that is certain: addresses in the XDP programs, services that this process may have put."""
        put: dict[int, dict[str, Any]] = {entry.id: {} for entry in self._ids.entries("service")}
        owned: dict[str, set[str]] = {}
        for port, steering in self._steering.items():
            with _xdp(port):
                owned[port] = set(steering.owned())
        static = {(n.port, n.addr): n.mac for n in self.plane.neighbours() if n.static and n.port in self._name}
        return Picture(services=put, owned=owned, neighbours=static)

    def _put_differences(self, was: Picture, now: Picture) -> bool:
        """Put what differs; whether there is something to publish. The order keeps every reference valid."""
        plane = self.plane
        changed = False
        if now.settings is not None and now.settings != was.settings:
            plane.put_settings(*now.settings)
            changed = True
        for id, port in now.ports.items():
            if was.ports.get(id) != port:
                name, mac, mtu, up, exclusive = port
                plane.put_port(id, name, mac, mtu, up=up, exclusive=exclusive)
                changed = True
        if now.addresses != was.addresses:
            plane.put_addresses(now.addresses)
            changed = True
        for id, spec in was.services.items():
            if id not in now.services:
                try:
                    plane.del_service(id)
                    changed = True
                except OSError:
                    if spec:
                        raise
        for id, spec in now.services.items():
            if was.services.get(id) != spec:
                plane.put_service(id, **spec)
                changed = True
        if now.routes != was.routes:
            plane.put_routes(now.routes)
            changed = True
        for (port_id, addr), mac in now.neighbours.items():
            if was.neighbours.get((port_id, addr)) != mac:
                plane.neigh_set(port_id, addr, mac, static=True)
        for port_id, addr in was.neighbours.keys() - now.neighbours.keys():
            with contextlib.suppress(FileNotFoundError):
                plane.neigh_set(port_id, addr, self._kernel_neighbours.get((self._name[port_id], addr), ""))
        return changed

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

    # ---- the picture ----

    def _draw(self, config: Config) -> Picture:
        """The picture of a config. Takes ids for what is new."""
        picture = Picture(owned={name: set() for name in self._port}, lips={name: set() for name in self._port})
        host = config.host
        picture.settings = host.timeouts.by_state(), host.unserved == "reset", host.lports
        for info in self.ports:
            link = self._links.get(info.name, Link(True, info.mtu, info.mac))
            up = link.up and info.name not in config.down
            picture.ports[info.id] = info.name, link.mac, link.mtu, up, info.exclusive
        lips = self._draw_addresses(config, picture)
        self._draw_services(config, picture)
        routes = self._routes_in_force(config)
        picture.routes = [self._route_spec(route, routes, config, lips) for route in routes]
        for neighbour in config.neighbours:
            picture.neighbours[self._port[neighbour.port].id, neighbour.addr] = neighbour.mac
        return picture

    def _draw_addresses(self, config: Config, picture: Picture) -> dict[str, str]:
        """Owned addresses: those given, LIPs of services, LIPs that drain. Answers LIP -> port."""
        ports = {a.addr: a.port for a in config.addresses}
        lips = {a.addr: a.port for a in config.addresses if a.sapool}
        lips |= {lip.addr: lip.port for service in config.services for lip in service.lips}
        ports |= lips
        for entry in self._ids.entries("address"):
            entry.live = entry.key in ports
            if entry.live or entry.port not in self._port or not self.plane.address_stats(entry.id).used:
                continue
            ports[entry.key] = lips[entry.key] = entry.port
        vips = {s.vip for s in config.services} | {a.addr for a in config.addresses if a.addr not in lips}
        for addr, port in ports.items():
            entry = self._entry("address", addr)
            if entry.port != port:
                entry.port = port
                self._ids.save(entry)
            kind = "+".join(word for word, of in (("vip", vips), ("lip", lips)) if addr in of)
            picture.addresses.append((entry.id, addr, kind, self._port[port].id))
            picture.owned[port].add(addr)
            if addr in lips:
                picture.lips[port].add(addr)
        return lips

    def _draw_services(self, config: Config, picture: Picture) -> None:
        """A service that is the same as in the config before keeps its spec: one change costs little."""
        drawn: dict[Key, _Drawn] = {}
        for service in config.services:
            known = self._drawn.get(service.key)
            if known is None or known.service != service:
                known = _Drawn(service, list(self._entries(service)), self._service_spec(service))
            drawn[service.key] = known
            picture.services[known.entries[0].id] = known.spec
        self._drawn = drawn
        in_use = {id(entry) for d in drawn.values() for entry in d.entries}
        for entry in self._ids.entries("service") + self._ids.entries("member"):
            live = id(entry) in in_use
            if live and not entry.live and self._put is not None:  # it was gone: what comes back counts from 0
                entry.base = _base(self._raw(entry))
                self._ids.save(entry)
            entry.live = live

    def _service_spec(self, service: Service) -> dict[str, Any]:
        """Arguments of put_service."""
        members = [
            (self._entry("member", _member_key(service, r)).id, r.rip, r.rport, r.weight) for r in service.servers
        ]
        half_open = HALF_OPEN_DEFAULT if service.half_open is None else service.half_open
        return {
            "vip": service.vip,
            "vport": service.vport,
            "proto": PROTOS[service.proto],
            "scheduler": service.scheduler,
            "no_rs_reset": service.no_rs == "reset",
            "expire_quiescent": service.expire_quiescent,
            "conn_timeout": service.conn_timeout,
            "half_open": max(64, half_open // self._info["workers"]) if half_open else 0,
            "members": members,
            "lips": [self._entry("address", lip.addr).id for lip in service.lips],
        }

    def _routes_in_force(self, config: Config) -> list[Route]:
        """Given routes, those that addresses with a prefix make, and the kernel's for prefixes that nobody gave."""
        routes = [*config.routes, *_connected(config.addresses)]
        if config.host.routes == "kernel":
            given = {route.prefix for route in routes}
            routes += [r.model_copy(update={"mtu": 0}) for r in self._kernel_routes if r.prefix not in given]
        return routes

    def _route_spec(
        self, route: Route, routes: Sequence[Route], config: Config, lips: Mapping[str, str]
    ) -> tuple[str, str, str, int, int, int, str]:
        """Arguments of one route for put_routes."""
        assert route.port is not None
        host = route.scope in ("kni_host", "host")
        src = "" if host else _arp_source(route, routes, config, lips)
        kind = "host" if host else "unicast"
        return route.prefix, route.gateway or "", src, self._port[route.port].id, route.mtu, route.metric, kind

    # ---- ids ----

    def _limit(self, kind: Kind) -> int:
        """Ids of a kind are below this."""
        return {"service": self._info["services"], "member": self._info["members"], "address": ADDRESS_IDS}[kind]

    def _is_busy(self, kind: Kind, id: int) -> bool:
        """The data plane still counts something for this id."""
        if kind == "address":
            use = self.plane.address_stats(id)
            return bool(use.used or use.conns)
        stats = self.plane.service_stats(id) if kind == "service" else self.plane.member_stats(id)
        return bool(stats.active or stats.inactive)

    def _entry(self, kind: Kind, key: str) -> Entry:
        """The entry of a thing that exists, with a new id if it has none; what its id counted before is not shown."""
        entry = self._ids.get(kind, key)
        if entry is None:
            entry = self._ids.take(kind, key, self._limit(kind), lambda id: self._is_busy(kind, id))
            entry.live = True
            if kind != "address":
                entry.base = _base(self._raw(entry))
                self._ids.save(entry)
        return entry

    def _raw(self, entry: Entry) -> Stats:
        return self.plane.service_stats(entry.id) if entry.kind == "service" else self.plane.member_stats(entry.id)

    def _entries(self, service: Service) -> Iterator[Entry]:
        """Of the service, then of its members."""
        yield self._entry("service", str(service.key))
        for server in service.servers:
            yield self._entry("member", _member_key(service, server))

    def _fit_ids_to_plane(self) -> None:
        """A plane with less room has no such ids; in a new arena counters are below their base and start from 0."""
        for kind in KINDS:
            for entry in self._ids.entries(kind):
                if entry.id >= self._limit(kind):
                    self._ids.release(entry)
                elif kind != "address" and any(n < b for n, b in zip(_base(self._raw(entry)), entry.base, strict=True)):
                    entry.base = ZERO
                    self._ids.save(entry)

    # ---- up: counters and listings ----

    def sample(self, now: float) -> None:
        """Take all counters at time now (seconds); rates are the difference to the sample before."""
        with self._lock:
            entries = [entry for drawn in self._drawn.values() for entry in drawn.entries]
        fresh = {(entry.kind, entry.id): _base(self._raw(entry)) for entry in entries}
        elapsed = now - self._sampled_at
        rates: dict[tuple[Kind, int], RateView] = {}
        for at, counts in fresh.items():
            before = self._sampled.get(at)
            if before is not None and elapsed > 0:
                values = [round(max(0, c - b) / elapsed) for c, b in zip(counts, before, strict=True)]
                rates[at] = RateView(
                    cps=values[0], in_pps=values[1], out_pps=values[2], in_bps=values[3], out_bps=values[4]
                )
        self._sampled, self._sampled_at, self._rates = fresh, now, rates

    def services(self, proto: str | None = None, vip: str | None = None, vport: int | None = None) -> list[ServiceView]:
        with self._lock:
            return [
                self._service_view(s)
                for s in self.config.services
                if proto in (None, s.proto) and vip in (None, s.vip) and vport in (None, s.vport)
            ]

    def _service_view(self, service: Service) -> ServiceView:
        stats, rate = self._shown("service", str(service.key))
        view = ServiceView(
            proto=service.proto,
            vip=service.vip,
            vport=service.vport,
            scheduler=service.scheduler,
            conn_timeout=service.conn_timeout,
            no_rs=service.no_rs,
            expire_quiescent=service.expire_quiescent,
            half_open=service.half_open,
            stats=stats,
            rate=rate,
            lips=[],
            servers=[],
        )
        for lip in service.lips:
            use = self.plane.address_stats(self._entry("address", lip.addr).id)
            view["lips"].append({"addr": lip.addr, "port": lip.port, "conns": use.conns, "conflicts": use.misses})
        for server in service.servers:
            stats, rate = self._shown("member", _member_key(service, server))
            view["servers"].append(
                {"rip": server.rip, "rport": server.rport, "weight": server.weight, "stats": stats, "rate": rate}
            )
        return view

    def _shown(self, kind: Kind, key: str) -> tuple[StatsView, RateView]:
        entry = self._entry(kind, key)
        raw = self._raw(entry)
        values = [max(0, now - base) for now, base in zip(_base(raw), entry.base, strict=True)]
        stats = StatsView(
            conns=values[0],
            in_packets=values[1],
            out_packets=values[2],
            in_bytes=values[3],
            out_bytes=values[4],
            active=raw.active,
            inactive=raw.inactive,
        )
        return stats, self._rates.get((entry.kind, entry.id), NO_RATE)

    def addresses(self, port: str | None = None) -> list[AddressView]:
        """Owned addresses; LIPs that drain are among them until their last connection ends."""
        with self._lock:
            given = {a.addr: a for a in self.config.addresses}
            servers: dict[str, set[tuple[str, str, int]]] = {}
            for service in self.config.services:
                rss = {(service.proto, r.rip, r.rport) for r in service.servers}
                for lip in service.lips:
                    servers.setdefault(lip.addr, set()).update(rss)
            views = []
            for id, addr, kind, port_id in self._put.addresses if self._put else []:
                known = given.get(addr)
                use = self.plane.address_stats(id)
                is_lip = "lip" in kind
                views.append(
                    AddressView(
                        addr=addr,
                        plen=known.plen if known else 32,
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
            own = [Route(prefix=f"{view['addr']}/32", port=view["port"], scope="host") for view in self.addresses()]
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
            WorkerView(index=i, cpu=self.plane.worker_cpu(i), counters=self.plane.counters(i))
            for i in range(self._info["workers"])
        ]

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

    def conns(
        self,
        *,
        worker: int | None = None,
        cursor: str | None = None,
        limit: int = 1024,
        proto: str | None = None,
        vip: str | None = None,
        vport: int | None = None,
        rip: str | None = None,
        rport: int | None = None,
        state: str | None = None,
    ) -> ConnPage:
        """One page of connections. The cursor is "WORKER:POSITION"; a page may be short, or empty, before the end."""
        at, position = _parse_cursor(cursor, worker or 0)
        workers = self._info["workers"]
        if not 0 <= at < workers:
            raise ChangeError(400, "FN-1201", f"there is no worker {at}", f"workers are 0..{workers - 1}")
        if state is not None and state not in STATES:
            raise ChangeError(400, "FN-1201", f"there is no state {state!r}", f"allowed: {', '.join(STATES)}")
        page, after = self.plane.conns(
            at,
            position,
            limit,
            state=STATES.index(state) if state else -1,
            proto=PROTOS[proto] if proto else -1,
        )
        views = [
            _conn_view(c)
            for c in page
            if vip in (None, c.vip) and vport in (None, c.vport) and rip in (None, c.rip) and rport in (None, c.rport)
        ]
        following: str | None = f"{at}:{after}"
        if after < 0:
            following = f"{at + 1}:0" if worker is None and at + 1 < workers else None
        return ConnPage(conns=views, next=following)


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
        if a.plen < 32:
            made.setdefault(a.network, Route(prefix=a.network, port=a.port, src=a.addr, scope="link"))
    return list(made.values())


def _arp_source(route: Route, routes: Sequence[Route], config: Config, lips: Mapping[str, str]) -> str:
    """Who asks for the next hop: the route's src if it is owned, else an owned address on the port inside the connected
    prefix, a LIP if possible; else "", the source of the packet. Never a host's address: the answer would go there."""
    owned = [addr for addr, port in lips.items() if port == route.port]
    owned += [a.addr for a in config.addresses if a.port == route.port]
    if route.src is not None and route.src in owned:
        return route.src
    prefix = ipaddress.IPv4Network(route.prefix)
    if route.gateway is not None:
        gateway = ipaddress.IPv4Address(route.gateway)
        on_link = (
            r for r in routes if r.port == route.port and r.gateway is None and r.scope not in ("kni_host", "host")
        )
        around = [net for net in (ipaddress.IPv4Network(r.prefix) for r in on_link) if gateway in net]
        if not around:
            return ""
        prefix = max(around, key=lambda net: net.prefixlen)
    return next((addr for addr in owned if ipaddress.IPv4Address(addr) in prefix), "")


def _member_key(service: Service, server: RealServer) -> str:
    return f"{service.key} {server.rip}:{server.rport}"


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
