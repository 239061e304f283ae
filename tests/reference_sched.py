"""Which real server gets the next connection: every scheduler in plain numbers, for a worker that is the first, and for services small
enough that the product looks at all members (16).

Who a client is comes in as one hash; how loaded a member is, and how far it has grown, is asked for by its id.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

import packets as wire

M32, M64 = (1 << 32) - 1, (1 << 64) - 1
PUBLIC = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0xD6E8FEB86659FD93)
KEY = (0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89)  # when none is set: of pi
EIGHTH, FULL = 125_000_000, 256


class Candidate(NamedTuple):
    id: int
    rip: str
    rport: int
    weight: int


class Load(NamedTuple):
    busy: int
    closing: int


@dataclass
class World:
    """What a scheduler sees."""

    scheduler: str
    members: list[Candidate]
    client: int  # a hash
    slots: int
    load: Callable[[int], Load]
    grown: Callable[[int], int]
    able: set[int]  # ids of members that may have a connection now

    def may(self, m: Candidate) -> bool:
        return m.weight > 0 and m.id in self.able

    def first_from(self, at: int) -> Candidate | None:
        """The next one that may, from this place of the list on."""
        return next((m for m in self.members[at:] + self.members[:at] if self.may(m)), None)


def mum(a: int, b: int) -> int:
    product = a * b
    return product & M64 ^ product >> 64


def hash_addr(key: Sequence[int], addr: bytes, extra: int) -> int:
    addr = addr.ljust(16, b"\0")
    a, b = int.from_bytes(addr[:8], "little"), int.from_bytes(addr[8:], "little")
    return mum(mum(a ^ key[0], extra ^ key[1]) ^ key[2], b ^ key[3])


def key_of(raw: bytes) -> tuple[int, ...]:
    return tuple(int.from_bytes(raw[i : i + 8], "little") for i in range(0, 32, 8)) if raw else KEY


def client_hash(key: Sequence[int], target: str, src: str, sport: int, datagram: bytes | None) -> int:
    """datagram: the payload of a whole UDP packet, None: it is something else."""
    if target == "qid" and datagram is not None and len(datagram) >= 9:
        size = min(datagram[5], 8) if datagram[0] & 0x80 else 8
        at = 6 if datagram[0] & 0x80 else 1
        if size and len(datagram) >= at + size:
            return hash_addr(key, datagram[at : at + size], size)
    raw = wire.addr_bytes(src)
    family = 4 if len(raw) == 4 else 6
    return hash_addr(key, raw, (sport if target == "sip-port" else 0) << 16 | family << 8)


def of_member(m: Candidate, what: int) -> int:
    raw = wire.addr_bytes(m.rip)
    return hash_addr(PUBLIC, raw, what << 32 | m.rport << 8 | (4 if len(raw) == 4 else 6))


def canonical(m: Candidate) -> tuple[int, bytes, int]:
    raw = wire.addr_bytes(m.rip)
    return len(raw), raw, m.rport


@lru_cache(maxsize=64)
def maglev(members: tuple[Candidate, ...], slots: int) -> list[Candidate]:
    """The table of these members, with weight, in any order: whose turn it is takes the next free slot of its preferences; turns by weight."""
    members = tuple(sorted(members, key=canonical))
    at = [of_member(m, 0) % slots for m in members]
    step = [of_member(m, 1) % (slots - 1) + 1 for m in members]
    taken, table = [0] * len(members), dict[int, Candidate]()
    while len(table) < slots:
        i = min(range(len(members)), key=lambda i: (Fraction(2 * taken[i] + 1, members[i].weight), i))
        while at[i] in table:
            at[i] = (at[i] + step[i]) % slots
        table[at[i]] = members[i]
        taken[i] += 1
    return [table[slot] for slot in range(slots)]


def drawn(hash: int, m: Candidate) -> int:
    x = (hash ^ of_member(m, 0)) & M32
    x = (x ^ x >> 16) * 0x85EBCA6B & M32
    x = (x ^ x >> 13) * 0xC2B2AE35 & M32
    return (x ^ x >> 16) >> 10


def rendezvous(hash: int, members: Sequence[Candidate]) -> Candidate:
    """Each waits for a time that its weight makes short; the first wins."""
    return min(members, key=lambda m: -math.log((drawn(hash, m) + 0.5) / (1 << 22)) / m.weight)


def part(hash: int, members: Sequence[Candidate]) -> Candidate:
    at = (hash * sum(m.weight for m in members)) >> 32
    for m in members:
        if at < m.weight:
            return m
        at -= m.weight
    raise AssertionError("beyond the sum of weights")


@dataclass
class Scheduler:
    """What a worker remembers of a service; it outlives changes of its members. seed: of what it draws."""

    seed: int = 0
    next: int = 0
    level: int = 0
    draws: int = 0

    def random(self) -> int:
        self.draws += 1
        z = (self.seed * 0xD1342543DE82EF95 + self.draws * 0x9E3779B97F4A7C15) & M64
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & M64
        z = (z ^ z >> 27) * 0x94D049BB133111EB & M64
        return z ^ z >> 31

    def pick(self, world: World) -> Candidate | None:
        usable = [m for m in world.members if m.weight]
        able = [m for m in usable if world.may(m)]
        match world.scheduler:
            case "rr" | "wrr":
                self._stay_inside(world)
                return self._in_turn(world) if able else None
            case "fo":
                return max(able, key=lambda m: m.weight, default=None)
            case "mh":
                return self._of_table(world, maglev(tuple(usable), world.slots)) if usable else None
            case "conhash":
                return rendezvous(world.client >> 32, able) if able else None
            case "sh":
                return self._of_parts(world, usable) if usable else None
            case "p2c":
                return self._two_choices(world, usable) if usable else None
            case _:
                self._stay_inside(world)
                return self._lightest(world) if able else None

    def _of_table(self, world: World, table: list[Candidate]) -> Candidate | None:
        """The owner of the client's slot, or of one of the next 64."""
        slot = (world.client >> 32) * world.slots >> 32
        owners = [table[(slot + n) % world.slots] for n in range(65)]
        return next((m for m in owners if world.may(m)), None) or world.first_from(world.members.index(owners[-1]))

    def _of_parts(self, world: World, usable: list[Candidate]) -> Candidate | None:
        """The one in whose part the client's hash lies, or the hash of that."""
        hash = world.client
        for _ in range(65):
            m = part(hash >> 32, usable)
            if world.may(m):
                return m
            hash = mum(hash ^ PUBLIC[0] & M64, PUBLIC[1])
        return world.first_from(world.members.index(m))

    def _stay_inside(self, world: World) -> None:
        if self.next >= len(world.members):
            self.next = 0

    def _in_turn(self, world: World) -> Candidate:
        for _ in range(15):
            m = self._next_by_weight(world)
            if world.scheduler == "rr" or self._is_grown_enough(world, m):
                return m
        return self._next_by_weight(world)

    def _is_grown_enough(self, world: World, m: Candidate) -> bool:
        grown = world.grown(m.id)
        return grown == FULL or self.random() % FULL < grown

    def _two_choices(self, world: World, usable: list[Candidate]) -> Candidate | None:
        for _ in range(8):
            random = self.random()
            two = [part(random & M32, usable), part(random >> 32, usable)]
            two = [m for m in two if world.may(m) and self._is_grown_enough(world, m)]
            if two:
                return min(two, key=lambda m: self._burden(world, m))
        self._stay_inside(world)
        return world.first_from(self.next)

    def _next_by_weight(self, world: World) -> Candidate:
        """rr and wrr as LVS describes them: rounds over the list; wrr lowers the level by the gcd at each new round."""
        members, weighted = world.members, world.scheduler == "wrr"
        weights = [m.weight for m in members if m.weight]
        top, step = max(weights), math.gcd(*weights)
        if weighted:
            self.level = min(self.level, top)
        while True:
            at = self.next
            if weighted and at == 0:
                self.level -= step
                if self.level <= 0:
                    self.level = top
            self.next = (at + 1) % len(members)
            if world.may(members[at]) and members[at].weight >= max(self.level if weighted else 1, 1):
                return members[at]

    def _burden(self, world: World, m: Candidate) -> tuple[bool, Fraction]:
        """In 256ths of a connection. The idle ones come first with nq."""
        busy, closing = world.load(m.id)
        load, weight = 256 * busy + closing, m.weight * world.grown(m.id)
        if world.scheduler in ("sed", "nq"):
            load += 256
        return world.scheduler == "nq" and busy > 0, Fraction(load, 1 if world.scheduler == "lc" else weight)

    def _lightest(self, world: World) -> Candidate:
        members = world.members
        assert len(members) <= 16
        inorder = members[self.next :] + members[: self.next]
        m = min((m for m in inorder if world.may(m)), key=lambda m: self._burden(world, m))
        self.next = (members.index(m) + 1) % len(members)
        return m
