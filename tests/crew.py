"""Several workers on a bench, and NICs that deal frames to them.

`Crew` is one plane with N workers, each with a queue on both ports. `SimNic` says which queue of a NIC with receive-side
scaling takes a frame: written from Microsoft's description, bit by bit, sharing nothing with the product.
"""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Iterable, Sequence

import packets as wire

from fnat._core import FLOWS, MemQueue, Plane, Rule, Worker

WAN, LAN = 0, 1
VIP, LIP, RS, CLIENT = "192.0.2.10", "10.0.0.11", "10.0.0.101", "198.51.100.7"
LIP_MAC = "02:00:00:00:0a:01"
SECOND = 1_000_000_000


def toeplitz(key: bytes, data: bytes) -> int:
    """For each bit of the data that is set, the 32 bits of the key from that place on, XORed."""
    bits = int.from_bytes(key, "big")
    size, result = len(key) * 8, 0
    for i in range(len(data) * 8):
        if data[i // 8] >> (7 - i % 8) & 1:
            result ^= bits >> (size - 32 - i) & 0xFFFFFFFF
    return result


def tuple_of(src: str, dst: str, sport: int, dport: int) -> bytes:
    addresses = ipaddress.ip_address(src).packed + ipaddress.ip_address(dst).packed
    return addresses + sport.to_bytes(2, "big") + dport.to_bytes(2, "big")


class SimNic:
    """Key and indirection table; fragments and protocols not in `ports` are hashed by addresses alone."""

    def __init__(self, key: bytes, table: Sequence[int], ports: Iterable[int] = (wire.TCP, wire.UDP)) -> None:
        self.key, self.table, self.ports = key, tuple(table), frozenset(ports)

    @classmethod
    def dealing(cls, slots: int, queues: int, seed: int, key: int = 40) -> SimNic:
        """As drivers set it up: a random key, slots dealt to queues in turn."""
        return cls(random.Random(seed).randbytes(key), [slot % queues for slot in range(slots)])

    def queue(self, frame: bytes) -> int:
        f = wire.read(frame)
        data = tuple_of(f.src, f.dst, f.sport, f.dport)
        fragment = f.frag & 0x3FFF or wire.FRAGMENT in f.extensions
        if f.proto not in self.ports or fragment:
            data = data[:8]
        return self.table[toeplitz(self.key, data) % len(self.table)]

    def rule(self) -> Rule:
        """What the product is told when queue N is worker N's."""
        return Rule(self.key, self.table)


class Crew:
    """N workers of one plane. `nics`: who deals the frames of a port; without one the caller does."""

    def __init__(
        self,
        n: int,
        nics: dict[int, SimNic] | None = None,
        lports: tuple[int, int] = (1024, 65535),
        servers: Sequence[str] = (RS,),
        frames: int = 512,
    ) -> None:
        self.nics = nics or {}
        self.plane = Plane.create(
            None, workers=n, conns=8192, services=4, members=8, endpoints=64, frames=frames, snapshot_mib=1
        )
        self.workers = [Worker(self.plane, i) for i in range(n)]
        self.queues = {(i, port): MemQueue(w, 128) for i, w in enumerate(self.workers) for port in (WAN, LAN)}
        for (i, port), queue in self.queues.items():
            self.workers[i].attach(port, queue)
        self.plane.put_settings({}, True, lports)
        self.plane.put_port(WAN, "wan", "02:00:00:00:0a:00", 1500)
        self.plane.put_port(LAN, "lan", LIP_MAC, 1500)
        self.plane.put_addresses([(1, VIP, "vip", WAN), (2, LIP, "lip", LAN)])
        self.plane.put_routes(
            [("0.0.0.0/0", "192.0.2.1", "", WAN, 0, 0, "unicast"), ("10.0.0.0/24", "", "", LAN, 0, 0, "unicast")]
        )
        self.plane.neigh_set(WAN, "192.0.2.1", "02:00:00:00:00:01", static=True)
        web = [(i, rs, 8080, 1) for i, rs in enumerate(servers)]
        dns = [(len(web) + i, rs, 53, 1) for i, rs in enumerate(servers)]
        for rs in servers:
            self.plane.neigh_set(LAN, rs, "02:00:00:00:00:02", static=True)
        self.plane.put_service(0, VIP, 80, wire.TCP, members=web, lips=[2])
        self.plane.put_service(1, VIP, 53, wire.UDP, members=dns, lips=[2])
        self.plane.publish()
        self.now = 1000 * SECOND
        for port, nic in self.nics.items():
            self.steer(port, nic)

    def steer(self, port: int, nic: SimNic) -> None:
        """The NIC of this port deals so from now on, and the workers are told."""
        self.nics[port] = nic
        for flow in FLOWS:
            by_ports = (wire.TCP if flow.startswith("tcp") else wire.UDP) in nic.ports
            self.plane.put_steering(port, flow, nic.rule() if by_ports else Rule())

    def turn(self, ns: int = 1_000_000) -> list[tuple[int, int, bytes]]:
        """One step of every worker, so much later; what leaves, as (worker, port, frame)."""
        self.now += ns
        for w in self.workers:
            w.step(self.now)
        return [(*key, frame) for key, queue in self.queues.items() for frame in queue.take_all()]

    def put(self, worker: int, port: int, frame: bytes) -> list[tuple[int, int, bytes]]:
        """A frame by this worker's queue; what leaves after the packet has gone round."""
        self.queues[worker, port].put(frame)
        return [left for _ in range(len(self.workers) + 2) for left in self.turn()]

    def deal(self, port: int, frames: Iterable[bytes]) -> list[tuple[int, int, bytes]]:
        """Frames as the port's NIC deals them, 32 at a time; what leaves."""
        waiting, left = list(frames), []
        while waiting:
            for frame in waiting[:32]:
                self.queues[self.nics[port].queue(frame), port].put(frame)
            del waiting[:32]
            for _ in range(len(self.workers) + 2):
                left += self.turn()
        return left

    def counter(self, name: str) -> int:
        return self.plane.counters()[name]

    def conns(self) -> list[int]:
        """Connections of each worker."""
        return [self.plane.counters(i)["conns"] for i in range(len(self.workers))]

    def close(self) -> None:
        """Every frame is home again, whoever sent or dropped it."""
        for _ in range(2):
            for w in self.workers:
                w.detach()
                w.quiesce()
        assert [w.frames_free for w in self.workers] == [w.frames_total for w in self.workers]
