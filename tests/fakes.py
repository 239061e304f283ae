"""A data plane and XDP programs for tests of control: they keep what they are told; counts are what tests say.

FakePlane holds the shape of fnat._core.Plane as far as the engine uses it. `calls` is the log, shared with
FakeSteering, so that tests can look at the order of things. Set `fail` to the name of a method: its next call
raises OSError.
"""

from __future__ import annotations

import errno
import ipaddress
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Stats(NamedTuple):
    conns: int = 0
    in_packets: int = 0
    out_packets: int = 0
    in_bytes: int = 0
    out_bytes: int = 0
    active: int = 0
    inactive: int = 0


class AddressStats(NamedTuple):
    misses: int = 0
    used: int = 0
    conns: int = 0


class Neigh(NamedTuple):
    addr: str
    port: int
    mac: str
    state: str
    static: bool


class Conn(NamedTuple):
    worker: int
    proto: int
    state: str
    cip: str
    cport: int
    vip: str
    vport: int
    lip: str
    lport: int
    rip: str
    rport: int
    remaining: int = 90
    age: int = 1
    in_packets: int = 1
    out_packets: int = 1
    in_bytes: int = 60
    out_bytes: int = 60
    member: int = 0


class Rule(NamedTuple):
    key: bytes = b""
    table: tuple[int, ...] = ()
    note: str = "one worker"


COUNTERS = (
    ("rx_packets", "counter", "frames received"),
    ("steps", "counter", "turns"),
    ("no_rs", "drop", "no real server"),
    ("conns", "taken", "connections"),
)


class FakePlane:
    """`workers_run`: 'follow' adopts at once, 'stuck' makes steps and never adopts, 'none' does nothing."""

    def __init__(self, workers: int = 2, services: int = 64, members: int = 256, workers_run: str = "follow") -> None:
        self.shape = {"workers": workers, "conns": 1000, "services": services, "members": members, "frames": 4096}
        self.workers_run = workers_run
        self.calls: list[tuple[Any, ...]] = []
        self.fail: str | None = None
        self.settings: tuple[dict[str, int], bool, tuple[int, int]] | None = None
        self.ports: dict[int, tuple[Any, ...]] = {}
        self.services: dict[int, dict[str, Any]] = {}
        self.addresses: list[tuple[int, str, str, int]] = []
        self.routes: list[tuple[str, str, str, int, int, int, str]] = []
        self.neighs: dict[tuple[int, str], tuple[str, bool]] = {}
        self.published = 0
        self.steps = 0
        self.sets: dict[str, tuple[int, dict[bytes, int]]] = {}
        self.general: tuple[list[int], list[int]] = ([], [])
        self.of_service: dict[int, Stats] = {}
        self.of_member: dict[int, Stats] = {}
        self.of_address: dict[int, AddressStats] = {}
        self.overloaded: set[int] = set()
        self.kills, self.ended = 0, 7
        self.clients: dict[int, int] = {}  # persistent ones, by member
        self.steps_of: dict[str, Any] = {"count": [[0] * 32, [0] * 32], "max_ns": [0, 0], "sum_ns": [0, 0]}
        self.used_ports: list[tuple[int, int, int, str, int, int]] = []  # worker, proto, LIP's id, rip, rport, ports
        self.connections: list[list[Conn]] = [[] for _ in range(workers)]

    def _told(self, name: str, *what: Any) -> None:
        self.calls.append((name, *what))
        if self.fail == name:
            self.fail = None
            raise OSError(errno.ENOSPC, "No space left on device")

    def info(self) -> dict[str, int]:
        return {**self.shape, "huge_page_size": 0, "restored": 0}

    def put_settings(
        self, timeouts: dict[str, int], unserved_reset: bool, lports: tuple[int, int], **limits: Any
    ) -> None:
        self._told("put_settings")
        self.limits = limits
        self.settings = timeouts, unserved_reset, lports

    def put_port(self, id: int, name: str, mac: str, mtu: int, *, up: bool = True, exclusive: bool = False) -> None:
        self._told("put_port", name, up)
        self.ports[id] = name, mac, mtu, up, exclusive

    def put_service(self, id: int, **spec: Any) -> None:
        self._told("put_service", id)
        known = {a[0] for a in self.addresses}
        assert set(spec["lips"]) <= known, "a service refers to an address that is not there"
        self.services[id] = spec

    def del_service(self, id: int) -> None:
        self._told("del_service", id)
        if id not in self.services:
            raise OSError(errno.ENOENT, "no such service")
        del self.services[id]

    def put_acl(self, deny: list[int], allow: list[int]) -> None:
        self._told("put_acl", deny, allow)
        self.general = deny, allow

    def acl_make(self, name: str) -> int:
        return self.sets.setdefault(name, (1 + len(self.sets), {}))[0]

    def acl_drop(self, id: int) -> None:
        self._told("acl_drop", id)
        self.sets = {name: known for name, known in self.sets.items() if known[0] != id}

    def acl_edit(self, id: int, keys: bytes, answers: bytes) -> None:
        self._told("acl_edit", id, len(answers))
        entries = next(entries for known, entries in self.sets.values() if known == id)
        for at, answer in enumerate(answers):
            key = keys[18 * at : 18 * at + 18]
            if answer:
                entries[key] = answer
            else:
                del entries[key]

    def acl_sets(self) -> list[tuple[int, str, int, int]]:
        return [(id, name, len(entries), 0) for name, (id, entries) in self.sets.items()]

    def acl_read(self, id: int) -> tuple[bytes, bytes]:
        entries = next(entries for known, entries in self.sets.values() if known == id)
        return b"".join(entries), bytes(entries.values())

    def acl_stats(self, service: int) -> tuple[int, int]:
        return 0, 0

    def acl_zero(self, service: int) -> None:
        pass

    def put_addresses(self, addresses: list[tuple[int, str, str, int]]) -> None:
        self._told("put_addresses", *[a[1] for a in addresses])
        self.addresses = addresses

    def put_address(self, id: int, addr: str, kind: str, port: int) -> None:
        self._told("put_address", addr)
        self.addresses = [a for a in self.addresses if a[0] != id] + [(id, addr, kind, port)]

    def del_address(self, id: int) -> None:
        self._told("del_address", id)
        if id not in {a[0] for a in self.addresses}:
            raise OSError(errno.ENOENT, "no such address")
        self.addresses = [a for a in self.addresses if a[0] != id]

    def put_routes(self, routes: list[tuple[str, str, str, int, int, int, str]]) -> None:
        self._told("put_routes", len(routes))
        self.routes = routes

    def publish(self) -> int:
        self._told("publish")
        self.published += 1
        return self.published

    def adopted(self) -> int:
        if self.workers_run == "follow":
            return self.published
        if self.workers_run == "stuck":
            self.steps += 1
        return 0

    def steering(self, port: int, flow: str) -> Rule:
        return Rule()

    def neigh_set(self, port: int, addr: str, mac: str, *, static: bool = False) -> None:
        self._told("neigh_set", port, addr, mac, static)
        if mac:
            self.neighs[port, addr] = mac, static
        else:
            self.neighs.pop((port, addr), None)

    def neighbours(self) -> list[Neigh]:
        return [Neigh(addr, port, mac, "REACHABLE", static) for (port, addr), (mac, static) in self.neighs.items()]

    def service_stats(self, id: int) -> Stats:
        return self.of_service.get(id, Stats())

    def member_stats(self, id: int) -> Stats:
        return self.of_member.get(id, Stats())

    def service_table(self, count: int) -> NDArray[np.uint64]:
        return np.array([self.service_stats(id) for id in range(count)], np.uint64).reshape(count, 7)

    def member_table(self, count: int) -> NDArray[np.uint64]:
        return np.array([self.member_stats(id) for id in range(count)], np.uint64).reshape(count, 7)

    def conn_kill(self, *, reset: bool, **filter: Any) -> int:
        self._told("conn_kill", reset, filter)
        self.kills += 1
        return self.kills

    def conn_killed(self) -> tuple[int, int]:
        return self.kills, self.ended

    def persistent(self) -> NDArray[np.uint32]:
        counts = np.zeros(self.shape["members"], np.uint32)
        for id, clients in self.clients.items():
            counts[id] = clients
        return counts

    def member_overloaded(self, id: int) -> bool:
        return id in self.overloaded

    def address_stats(self, id: int) -> AddressStats:
        return self.of_address.get(id, AddressStats())

    def step_stats(self, worker: int) -> dict[str, Any]:
        return self.steps_of

    def endpoints(self) -> NDArray[Any]:
        kinds = [
            ("rip", "u1", 16),
            ("used", "u4"),
            ("lip", "u2"),
            ("rport", "u2"),
            ("proto", "u1"),
            ("family", "u1"),
            ("worker", "u1"),
        ]
        rows = [
            (list(packed.ljust(16, b"\0")), used, lip, rport, proto, 4 if len(packed) == 4 else 6, worker)
            for worker, proto, lip, rip, rport, used in self.used_ports
            for packed in [ipaddress.ip_address(rip).packed]
        ]
        return np.array(rows, kinds)

    def worker_cpu(self, worker: int) -> int | None:
        return worker

    def counters(self, worker: int | None = None) -> dict[str, int]:
        return {"rx_packets": 5, "steps": self.steps, "no_rs": 3, "conns": sum(map(len, self.connections))}

    def conns(self, worker: int, cursor: int = 0, limit: int = 1024, **filter: Any) -> tuple[list[Conn], int]:
        found = self.connections[worker][cursor : cursor + limit]
        after = cursor + limit if cursor + limit < len(self.connections[worker]) else -1
        return [c for c in found if _passes(c, filter)], after

    def conn_count(self, worker: int, **filter: Any) -> int:
        return sum(_passes(c, filter) for c in self.connections[worker])


def _passes(conn: Conn, filter: dict[str, Any]) -> bool:
    for name, wanted in filter.items():
        value = getattr(conn, name)
        if name.endswith("ip"):
            if ipaddress.ip_address(value) not in ipaddress.ip_network(wanted):
                return False
        elif value != wanted:
            return False
    return True


class FakeSteering:
    """The owned addresses of one port, in the plane's log."""

    def __init__(self, name: str, calls: list[tuple[Any, ...]]) -> None:
        self.name = name
        self.calls = calls
        self.set: set[str] = set()

    def own(self, address: str) -> None:
        self.calls.append(("own", self.name, address))
        self.set.add(address)

    def disown(self, address: str) -> None:
        self.calls.append(("disown", self.name, address))
        self.set.discard(address)

    def owned(self) -> set[str]:
        return set(self.set)
