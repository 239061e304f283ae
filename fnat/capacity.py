"""`fnat capacity`: what a wish in connections asks of LIPs, memory and workers, and what runs out first. Pure; the
memory is measured by the core's own layout.

Ports: a connection needs (protocol, LIP, local port, RS) unique, so one LIP carries as many connections as it has
ports, towards each RS. Closed connections hold their port until their closing timeout ends; at many short lives a
second that is more than are open.

Unsatisfying: what a worker carries in packets and lives a second is the machine's, so it is an argument
(`make bench` measures it), not an answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from fnat import addresses
from fnat.model import Host, Service, Timeouts
from fnat.sizes import Sizes, frames_of, sizes

HUGE_PAGE = 2 << 20
LIVES_PER_WORKER = 500_000  # TCP lives a second to plan with; bench/results has what was measured
SOCKETS, RING = 2, 2048  # of a worker: two ports with a queue for each worker


@dataclass(frozen=True)
class Wish:
    """conns: open at one time, those that are closing included; rs: (RS address, port) pairs they go to."""

    conns: int
    rs: int
    cps: int = 0
    workers: int | None = None
    ports: int = Host().ports_of_a_lip  # of a LIP
    closing: int = Timeouts().time_wait  # seconds that a closed connection keeps its port


@dataclass(frozen=True)
class Need:
    held: int  # connections that hold a record and a port
    workers: int
    lips: int
    formula: str
    room: Sizes
    memory: dict[str, int]  # bytes: plane, workers, frames, total
    huge_pages: int
    limits: dict[str, int]  # what runs out, at how many connections

    @property
    def first_limit(self) -> str:
        return min(self.limits, key=lambda name: self.limits[name])


def files(room: Sizes) -> dict[str, int]:
    """Bytes of each file of a data plane, by its name. Raises OSError(EINVAL): more than a plane can be."""
    from fnat._core import Plane

    info = Plane.measure(**room)
    workers = {f"worker-{i}": info["worker_bytes"] for i in range(room["workers"])}
    return {"plane": info["plane_bytes"], **workers, "frames": info["frames_bytes"]}


def _memory(room: Sizes) -> tuple[dict[str, int], int]:
    """Bytes by part, and huge pages."""
    found = files(room)
    plane, frames = found["plane"], found["frames"]
    parts = {"plane": plane, "workers": sum(found.values()) - plane - frames, "frames": frames}
    return parts, sum(ceil(size / HUGE_PAGE) for size in found.values())


def memory_of(host: Host, ports: int) -> tuple[dict[str, int], int]:
    """What a host with so many ports takes, each with a queue for each worker: bytes by part, and huge pages."""
    room = sizes(conns=host.conns, workers=host.workers, frames=frames_of(max(1, ports), RING))
    parts, huge_pages = _memory(room)
    return {**parts, "total": sum(parts.values())}, huge_pages


def room_of_lips(service: Service, ports: int) -> int:
    """Connections that the LIPs of a service carry to its RSs; ports: of a LIP."""
    count = 0
    for family in (4, 6):
        lips = sum(addresses.family(lip.addr) == family for lip in service.lips)
        count += lips * ports * sum(addresses.family(r.rip) == family for r in service.servers)
    return count


def need(wish: Wish, available: int | None = None) -> Need:
    """available: bytes of memory that this machine has free; None: not asked. Raises OSError(EINVAL): more than a plane
    can be."""
    from fnat._core import Plane

    held = max(wish.conns, wish.cps * wish.closing)
    workers = wish.workers or max(1, ceil(wish.cps / LIVES_PER_WORKER))
    lips = max(1, ceil(held / (wish.rs * wish.ports)))
    formula = (
        f"LIPs = ceil(max(conns, cps x {wish.closing} s) / (RSs x {wish.ports} ports)) "
        f"= ceil({held} / ({wish.rs} x {wish.ports})) = {lips}"
    )
    room = sizes(conns=held, workers=workers, frames=frames_of(SOCKETS, RING))
    info = Plane.measure(**room)
    parts, huge_pages = _memory(room)
    limits = {
        "connection table": room["conns"] * workers,
        "local ports": lips * wish.rs * wish.ports,
        # a worker's part of an endpoint holds its share of the ports
        "endpoints": room["endpoints"] * wish.ports if room["endpoints"] < lips * wish.rs else 1 << 62,
    }
    if available is not None:
        fixed = sum(parts.values()) - info["conn_bytes"] * workers
        limits["memory of this host"] = max(0, int((available - fixed) * held / (info["conn_bytes"] * workers)))
    limits = {name: limit for name, limit in limits.items() if limit < 1 << 62}
    return Need(
        held=held,
        workers=workers,
        lips=lips,
        formula=formula,
        room=room,
        memory={**parts, "total": sum(parts.values())},
        huge_pages=huge_pages,
        limits=limits,
    )
