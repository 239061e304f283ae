"""What the kernel knows of the ports, mirrored: routes, neighbours, link state. So fnat needs no second copy of `ip`.

One netlink socket hears changes. A change of routes or links makes the whole picture be read again, a moment later,
so that a burst is one reading; neighbours are kept up from the messages themselves. Lost messages (ENOBUFS) make
everything be read again.

Only unicast routes of the main table that leave through a port are seen, in both families; of IPv6 neither link-local
nor multicast prefixes, which are no business of forwarding. A multipath route becomes one Route for each hop, with the
same prefix and metric; hops whose link is down are left out while another is up. Neighbours are told only when a MAC is
new or another: the workers resolve for themselves, and one that the kernel forgets stays with them.

A route's preferred source is told as `src`. It is the kernel's address as a rule, and answers to ARP requests and
solicitations from it go to the kernel; so the engine asks from it only where fnat owns it.

Unsatisfying: policy rules, TOS and other tables are not looked at; all hops of a multipath route weigh the same; a hop
through another family's gateway (RFC 5549) or an encapsulation is left out; of several routers that advertise
themselves with one metric the first is used, whether it can be reached or not.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from pydantic import ValidationError
from pyroute2 import AsyncIPRoute

from fnat.addresses import ANY, LEAST_MTU, Family, host
from fnat.model import MAX_MTU, HostNeighbour, PortInfo, Route
from fnat.paths import PUNT

log = logging.getLogger(__name__)

SETTLE = 0.05  # seconds from a change to the reading of the picture
MOST_HOPS = 64  # of a multipath route; fib.h
RETRY = 1.0  # seconds until the next try when netlink fails
_MAIN, _UNICAST, _CLONED = 254, 1, 0x200  # linux/rtnetlink.h
_HOP_IS_DEAD, _HOP_HAS_NO_LINK = 0x1, 0x10  # RTNH_F_*
_FAMILIES: dict[int, Family] = {2: 4, 10: 6}  # linux/socket.h
_IFF_UP, _IFF_RUNNING = 0x1, 0x40
_REACHABLE, _STALE, _DELAY, _PROBE, _PERMANENT = 0x02, 0x04, 0x08, 0x10, 0x80  # linux/neighbour.h
_HAS_MAC = _REACHABLE | _STALE | _DELAY | _PROBE | _PERMANENT
_GROUPS = 0x1 | 0x4 | 0x40 | 0x400  # RTMGRP_LINK, _NEIGH, _IPV4_ROUTE, _IPV6_ROUTE
_NO_MAC = "00:00:00:00:00:00"


class Listener(Protocol):
    """Who is told (the engine); called from a thread, so it may block."""

    def set_kernel_routes(self, routes: Sequence[Route]) -> None:
        """All routes through the ports, whenever they have changed."""

    def set_kernel_neighbours(self, neighbours: Sequence[HostNeighbour]) -> None:
        """All neighbours on the ports whose MAC the kernel knows, whenever one is new or differs."""

    def set_kernel_link(self, port: str, *, up: bool, mtu: int, mac: str) -> None:
        """A port's link has changed."""


class _Heard(NamedTuple):
    """What a message says of a route."""

    family: Family
    to: str | None
    plen: int
    src: str | None
    mtu: int
    metric: int
    hops: tuple[tuple[str | None, str], ...]  # gateway, port


def _routes(heard: _Heard) -> list[Route]:
    """A Route for each hop; [] for prefixes that are no business of forwarding."""
    prefix = f"{heard.to}/{heard.plen}" if heard.to else ANY[heard.family]
    if _is_local(prefix):
        return []
    made: list[Route] = []
    for gateway, port in heard.hops:
        with contextlib.suppress(ValidationError):  # 127.0.0.0/8 on a port, …
            route = Route(
                prefix=prefix,
                gateway=gateway,
                port=port,
                src=_global(heard.src),
                mtu=max(LEAST_MTU[heard.family], min(heard.mtu, MAX_MTU)) if heard.mtu else 0,
                metric=heard.metric,
            )
            if route not in made:
                made.append(route)
    return sorted(made, key=lambda r: (r.gateway or "", r.port or ""))[:MOST_HOPS]


def _is_local(prefix: str) -> bool:
    """Multicast, or link-local of IPv6; from the first group of digits, as a table may have a million prefixes."""
    if ":" in prefix:
        first = int(prefix.partition(":")[0] or "0", 16)
        return first & 0xFFC0 == 0xFE80 or first >> 8 == 0xFF
    return 224 <= int(prefix.partition(".")[0]) < 240


def _global(source: str | None) -> str | None:
    """A preferred source that may be owned: one of a link cannot, nor 127.0.0.1."""
    with contextlib.suppress(ValueError):
        return host(source) if source else None
    return None


def _host_taps(ports: Sequence[PortInfo]) -> dict[int, str]:
    """Index -> port name of the TAPs through which the host speaks on exclusive ports."""
    taps = {}
    for port in ports:
        if port.exclusive:
            with contextlib.suppress(OSError):
                taps[socket.if_nametoindex(port.name + PUNT)] = port.name
    return taps


class Mirror:
    """Keeps a listener informed until cancelled."""

    def __init__(self, listener: Listener, ports: Sequence[PortInfo], routes: bool = True) -> None:
        self.listener = listener
        self.nics = {port.ifindex: port.name for port in ports if port.ifindex}
        self.names = self.nics | _host_taps(ports)  # where routes and neighbours of a port are
        self.mirror_routes = routes
        self.routes: list[Route] | None = None
        self.made: dict[_Heard, list[Route]] = {}  # by what was heard: reading all routes again costs little
        self.links: dict[str, tuple[bool, int, str]] = {}
        self.neighbours: dict[tuple[str, str], HostNeighbour] = {}
        self.changed = asyncio.Event()  # routes or links
        self.new_neighbours = asyncio.Event()
        self.ready = asyncio.Event()  # set after the first whole picture

    async def run(self) -> None:
        """For ever; a failing netlink is tried again."""
        while True:
            try:
                async with AsyncIPRoute() as netlink:
                    await netlink.bind(groups=_GROUPS)
                    await self._follow(netlink)
            except* OSError as errors:
                log.warning("netlink: %s; reading the kernel's tables again", errors.exceptions[0])
            await asyncio.sleep(RETRY)

    async def _follow(self, netlink: AsyncIPRoute) -> None:
        async with AsyncIPRoute() as reader, asyncio.TaskGroup() as tasks:
            await self._read_links_and_routes(reader)
            for family in _FAMILIES:
                async for message in await reader.get_neighbours(family=family):
                    self._neighbour_changed(message)
            await self._tell_neighbours()
            self.ready.set()
            tasks.create_task(self._follow_routes(reader))
            tasks.create_task(self._follow_neighbours())
            while True:
                async for message in netlink.get():
                    if message.get("event") in ("RTM_NEWNEIGH", "RTM_DELNEIGH"):
                        self._neighbour_changed(message)
                    else:
                        self.changed.set()

    async def _follow_routes(self, reader: AsyncIPRoute) -> None:
        while True:
            await self.changed.wait()
            await asyncio.sleep(SETTLE)
            self.changed.clear()
            await self._read_links_and_routes(reader)

    async def _follow_neighbours(self) -> None:
        while True:
            await self.new_neighbours.wait()
            await asyncio.sleep(SETTLE)
            await self._tell_neighbours()

    async def _tell_neighbours(self) -> None:
        self.new_neighbours.clear()
        await asyncio.to_thread(self.listener.set_kernel_neighbours, list(self.neighbours.values()))

    async def _read_links_and_routes(self, reader: AsyncIPRoute) -> None:
        async for message in await reader.get_links():
            name = self.nics.get(message["index"])
            if name is None:
                continue
            up = message["flags"] & (_IFF_UP | _IFF_RUNNING) == _IFF_UP | _IFF_RUNNING
            link = (bool(up), int(message.get("mtu")), str(message.get("address")))
            if self.links.get(name) != link:
                self.links[name] = link
                up, mtu, mac = link
                await asyncio.to_thread(self.listener.set_kernel_link, name, up=up, mtu=mtu, mac=mac)
        if not self.mirror_routes:
            return
        routes: dict[tuple[str, int], list[Route]] = {}
        before, self.made = self.made, {}
        for family in _FAMILIES:
            async for message in await reader.get_routes(family=family, table=_MAIN):
                if (heard := self._heard(message)) is None:
                    continue
                hops = self.made[heard] = before.get(heard) or _routes(heard)
                if hops:  # a second one of a prefix and metric is a spare, not a hop
                    routes.setdefault(hops[0].key, hops)
        found = [route for key in sorted(routes) for route in routes[key]]
        if found != self.routes:
            self.routes = found
            await asyncio.to_thread(self.listener.set_kernel_routes, found)

    def _heard(self, message: Mapping[str, Any]) -> _Heard | None:
        """A route through one of the ports, or None."""
        if message["type"] != _UNICAST or (message.get("table") or message["table"]) != _MAIN:
            return None
        if message["tos"] or message["src_len"] or message["flags"] & _CLONED:
            return None
        several: Sequence[Mapping[str, Any]] = message.get("multipath") or [message]
        hops = [hop for hop in several if hop.get("oif") in self.names and not (hop.get("via") or hop.get("encap"))]
        alive = [hop for hop in hops if not hop["flags"] & (_HOP_IS_DEAD | _HOP_HAS_NO_LINK)]
        if not hops:
            return None
        metrics: Mapping[str, Any] = message.get("metrics") or {}
        return _Heard(
            _FAMILIES[message["family"]],
            message.get("dst"),
            message["dst_len"],
            message.get("prefsrc"),
            metrics.get("mtu") or 0,
            message.get("priority") or 0,
            tuple((hop.get("gateway"), self.names[int(hop.get("oif") or 0)]) for hop in alive or hops),
        )

    def _neighbour(self, message: Mapping[str, Any]) -> HostNeighbour | None:
        """A neighbour with a MAC on one of the ports, or None."""
        port = self.names.get(message["ifindex"])
        mac = message.get("lladdr")
        if port is None or message["family"] not in _FAMILIES or not message["state"] & _HAS_MAC:
            return None
        if not mac or mac == _NO_MAC:
            return None
        try:
            permanent = bool(message["state"] & _PERMANENT)
            return HostNeighbour(addr=str(message.get("dst")), mac=str(mac), port=port, permanent=permanent)
        except ValidationError:
            return None

    def _neighbour_changed(self, message: Mapping[str, Any]) -> None:
        if message["event"] == "RTM_DELNEIGH":
            gone = self.neighbours.pop((str(message.get("dst")), self.names.get(message["ifindex"], "")), None)
            if gone is not None and gone.permanent:
                self.new_neighbours.set()
            return
        neighbour = self._neighbour(message)
        if neighbour is not None and self.neighbours.get((neighbour.addr, neighbour.port)) != neighbour:
            self.neighbours[neighbour.addr, neighbour.port] = neighbour
            self.new_neighbours.set()
