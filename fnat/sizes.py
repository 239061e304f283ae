"""How large the tables of a data plane are, from what its operator asks for. One place, for the data plane that makes
them and for `fnat capacity`, which says beforehand what they take.

Services and RSs are sized once for 20 000 services of 8 RSs and more, because they are small: 32 bytes of the plane and
64 of each worker for an RS. An endpoint (protocol, LIP, RS) with a connection takes about 390 bytes of a worker.
"""

from __future__ import annotations

from typing import TypedDict

SERVICES, MEMBERS = 32_768, 262_144
SNAPSHOT_MIB = 96  # two pictures of that many services and what changes between them; 33 MiB for tables of mh
ACL_ENTRIES = 65_536  # unless the file says otherwise
ACL_ENTRY_BYTES = 208  # an entry takes 55 to 85; the rest is for what waits until every worker has moved on
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
    acl_mib: int


def sizes(*, conns: int, workers: int, frames: int, acl_entries: int = ACL_ENTRIES) -> Sizes:
    """conns: over all workers; frames: of one worker; acl_entries: of all address sets."""
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
        "acl_mib": 1 - (-acl_entries * ACL_ENTRY_BYTES // (1 << 20)),
    }


def frames_of(sockets: int, ring: int) -> int:
    """Frames of a worker with so many sockets of so many descriptors a ring."""
    return max(8_192, 2 * ring * sockets + 4_096)
