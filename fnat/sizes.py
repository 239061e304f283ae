"""How large the tables of a data plane are, from what its operator asks for. One place, for the data plane that makes
them and for `fnat capacity`, which says beforehand what they take.

Services and RSs are sized once for 20 000 services of 8 RSs and more, because they are small: 32 bytes of the plane and
64 of each worker for an RS. An endpoint (protocol, LIP, RS) with a connection takes about 390 bytes of a worker.
"""

from __future__ import annotations

from typing import TypedDict

SERVICES, MEMBERS = 32_768, 262_144
SNAPSHOT_MIB = 64  # two pictures of that many services and what changes between them
LEAST_ENDPOINTS, MOST_ENDPOINTS = 4_096, 262_144


class Sizes(TypedDict):
    """Arguments of Plane.create."""

    workers: int
    conns: int
    services: int
    members: int
    endpoints: int
    neighbours: int
    frames: int
    snapshot_mib: int


def sizes(*, conns: int, workers: int, frames: int) -> Sizes:
    """conns: over all workers; frames: of one worker."""
    each = max(1024, -(-conns // workers))
    return {
        "workers": workers,
        "conns": each,
        "services": SERVICES,
        "members": MEMBERS,
        "endpoints": min(MOST_ENDPOINTS, max(LEAST_ENDPOINTS, each // 8)),
        "neighbours": 16_384,
        "frames": frames,
        "snapshot_mib": SNAPSHOT_MIB,
    }


def frames_of(sockets: int, ring: int) -> int:
    """Frames of a worker with so many sockets of so many descriptors a ring."""
    return max(8_192, 2 * ring * sockets + 4_096)
