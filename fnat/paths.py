"""Where a running fnat keeps its things: one place that all processes and commands ask.

The state directory holds what survives a reboot (overlay, ids) and the lock; packet memory (the arena) must lie on
hugetlbfs or tmpfs, so the state directory holds only a symbolic link to it. The data plane makes that link; everyone
else follows it.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

DEFAULT_STATE_DIR = Path("/var/lib/fnat")
DEFAULT_SOCKET = Path("/run/fnat/fnat.sock")
SHARED_MEMORY = Path("/dev/shm")
PUNT = ".kni"  # the host speaks on an exclusive port through a TAP named PORT.kni


def default_socket() -> Path:
    """The API's unix socket: $FNAT_SOCKET, else /run/fnat/fnat.sock."""
    return Path(os.environ.get("FNAT_SOCKET") or DEFAULT_SOCKET)


@dataclass(frozen=True)
class Paths:
    """The files of one fnat instance."""

    state_dir: Path = DEFAULT_STATE_DIR
    socket: Path = DEFAULT_SOCKET

    @property
    def overlay(self) -> Path:
        """Changes made by CLI or API, the overlay on the configuration file (JSON)."""
        return self.state_dir / "overlay.json"

    @property
    def history(self) -> Path:
        """The last texts of the configuration file that were in force."""
        return self.state_dir / "history"

    @property
    def ids(self) -> Path:
        """Stable ids and counter baselines (JSON)."""
        return self.state_dir / "state.json"

    @property
    def audit(self) -> Path:
        """Who asked the API for what (JSON lines); older ones are in `audit.jsonl.1` and so on."""
        return self.state_dir / "audit.jsonl"

    @property
    def lock(self) -> Path:
        """Locked (flock) by the keeper as long as it lives; its text is the keeper's pid."""
        return self.state_dir / "lock"

    @property
    def pids(self) -> Path:
        """JSON {"keeper", "dataplane", "control"}: process ids."""
        return self.state_dir / "pids.json"

    @property
    def ports(self) -> Path:
        """JSON list of the open ports, written by the data plane once it is ready, removed when it stops."""
        return self.state_dir / "ports.json"

    @property
    def arena_link(self) -> Path:
        """Symbolic link to the arena, made by the data plane."""
        return self.state_dir / "arena"

    @property
    def arena_name(self) -> str:
        """Name of the arena directory, one for each state directory."""
        digest = hashlib.blake2s(str(self.state_dir.resolve()).encode(), digest_size=4).hexdigest()
        return f"fnat-{digest}"

    @property
    def arena(self) -> Path:
        """Directory of the plane's files: what the link names, else where it would be without huge pages."""
        try:
            return Path(os.readlink(self.arena_link))
        except OSError:
            return SHARED_MEMORY / self.arena_name
