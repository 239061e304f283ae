"""How many clients a change of servers moves to another one, by the very tables that the core would have. For the
schedulers that choose by hash; the others promise nobody the same server again. Open connections stay in any case.

sh and conhash have no slots: they are asked for as many hashes as mh's table has by default, spread evenly over
all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fnat.model import HASH_SLOTS, HASHING, RealServer, Service


class Moved(NamedTuple):
    """Of `slots` parts of all clients, `moved` go to another server; necessary: the least that the weights ask for."""

    moved: int
    necessary: int
    slots: int


def slots_moved(old: Service, new: Service) -> Moved | None:
    """None: one of the two does not choose by hash, or has no server with weight."""
    if not {old.scheduler, new.scheduler} <= set(HASHING) or not all(
        any(r.weight for r in s.servers) for s in (old, new)
    ):
        return None
    slots = max(old.table_slots, new.table_slots) or HASH_SLOTS
    before, after = _owners(old, slots), _owners(new, slots)
    shares = _shares(old.servers), _shares(new.servers)
    grown = sum(max(0.0, share - shares[0].get(key, 0.0)) for key, share in shares[1].items())
    return Moved(sum(a != b for a, b in zip(before, after, strict=True)), round(grown * slots), slots)


def _owners(service: Service, slots: int) -> list[tuple[str, int]]:
    from fnat._core import sched_owners

    members = [(r.rip, r.rport, r.weight) for r in service.servers]
    found = sched_owners(service.scheduler, members, slots, service.table_slots or HASH_SLOTS)
    return [service.servers[place].key for place in found]


def _shares(servers: Sequence[RealServer]) -> dict[tuple[str, int], float]:
    total = sum(r.weight for r in servers)
    return {r.key: r.weight / total for r in servers}
