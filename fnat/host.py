"""What the kernel knows of the ports, mirrored: routes, neighbours, link state. So fnat needs no second copy of `ip`.

One netlink socket hears changes. A change of routes or links makes the whole picture be read again, a moment later,
so that a burst is one reading; neighbours are kept up from the messages themselves. Lost messages (ENOBUFS) make
everything be read again.

Only unicast routes of the main table that leave through a port are seen. Neighbours are told only when a MAC is new or
another: the workers resolve for themselves, and one that the kernel forgets stays with them.

A route's preferred source is left out: it is the kernel's address, and answers to ARP requests from it go to the
kernel.

Unsatisfying: policy rules and other tables are not looked at; of a multipath route the first hop through a port is
taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from pydantic import ValidationError
from pyroute2 import AsyncIPRoute

from fnat.model import HostNeighbour, PortInfo, Route
from fnat.paths import PUNT

log = logging.getLogger(__name__)

SETTLE = 0.05  # seconds from a change to the reading of the picture
RETRY = 1.0  # seconds until the next try when netlink fails
_MAIN, _UNICAST, _INET = 254, 1, 2  # linux/rtnetlink.h, linux/socket.h
_IFF_UP, _IFF_RUNNING = 0x1, 0x40
_REACHABLE, _STALE, _DELAY, _PROBE, _PERMANENT = 0x02, 0x04, 0x08, 0x10, 0x80  # linux/neighbour.h
_HAS_MAC = _REACHABLE | _STALE | _DELAY | _PROBE | _PERMANENT
_LINK, _NEIGH, _IPV4_ROUTE = 0x1, 0x4, 0x40  # RTMGRP_*
_NO_MAC = "00:00:00:00:00:00"


class Listener(Protocol):
    """Who is told (the engine); called from a thread, so it may block."""

    def set_kernel_routes(self, routes: Sequence[Route]) -> None:
        """All routes through the ports, whenever they have changed."""

    def set_kernel_neighbours(self, neighbours: Sequence[HostNeighbour]) -> None:
        """All neighbours on the ports whose MAC the kernel knows, whenever one is new or differs."""

    def set_kernel_link(self, port: str, *, up: bool, mtu: int, mac: str) -> None:
        """A port's link has changed."""


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
                    await netlink.bind(groups=_LINK | _NEIGH | _IPV4_ROUTE)
                    await self._follow(netlink)
            except* OSError as errors:
                log.warning("netlink: %s; reading the kernel's tables again", errors.exceptions[0])
            await asyncio.sleep(RETRY)

    async def _follow(self, netlink: AsyncIPRoute) -> None:
        async with AsyncIPRoute() as reader, asyncio.TaskGroup() as tasks:
            await self._read_links_and_routes(reader)
            async for message in await reader.get_neighbours(family=_INET):
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
        routes = []
        async for message in await reader.get_routes(family=_INET, table=_MAIN):
            route = self._route(message)
            if route is not None:
                routes.append(route)
        routes.sort(key=lambda r: r.key)
        if routes != self.routes:
            self.routes = routes
            await asyncio.to_thread(self.listener.set_kernel_routes, routes)

    def _route(self, message: Mapping[str, Any]) -> Route | None:
        """A route through one of the ports, or None."""
        if message["type"] != _UNICAST or (message.get("table") or message["table"]) != _MAIN:
            return None
        hops: list[tuple[Any, Any]] = [(message.get("oif"), message.get("gateway"))]
        for hop in message.get("multipath") or ():
            hops.append((hop.get("oif"), hop.get("gateway")))
        port, gateway = next(((self.names[oif], gw) for oif, gw in hops if oif in self.names), (None, None))
        if port is None:
            return None
        metrics: Mapping[str, Any] = message.get("metrics") or {}
        try:
            return Route(
                prefix=f"{message.get('dst') or '0.0.0.0'}/{message['dst_len']}",
                gateway=gateway,
                port=port,
                mtu=min(metrics.get("mtu") or 0, 3500),
                metric=message.get("priority") or 0,
            )
        except ValidationError:
            return None  # an IPv6 gateway (RFC 5549), 127.0.0.0/8 on a port, …

    def _neighbour(self, message: Mapping[str, Any]) -> HostNeighbour | None:
        """A neighbour with a MAC on one of the ports, or None."""
        port = self.names.get(message["ifindex"])
        mac = message.get("lladdr")
        if port is None or message["family"] != _INET or not message["state"] & _HAS_MAC or not mac or mac == _NO_MAC:
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
