"""The audit log: who asked for what from where, what it changed, and how it ended; JSON lines in the state directory.

A record of a change is on disk before the change is answered. Files are bounded: `audit.jsonl` is followed by
`audit.jsonl.1` (older) to `.4`. Of requests by callers that are not known only some a second are kept, so that they
cannot fill the disk or keep it busy; the record after a gap says how many are missing.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fnat import plan
from fnat.errors import EngineError
from fnat.model import Config, Service

SIZE = 8 << 20  # bytes of a file after which the next is begun
FILES = 5
NOTES = 10  # a second
MOST = 1000  # things in one record; the rest is counted


class Audit:
    """path None: the last records in memory (tests). Thread-safe."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._memory: deque[dict[str, Any]] = deque(maxlen=1000)
        self._lock = threading.Lock()
        self._second, self._notes, self._missing = 0, 0, 0

    def write(self, record: Mapping[str, Any]) -> None:
        """The record is on disk when this returns. Raises EngineError(FN-1304)."""
        with self._lock:
            self._append(record, sync=True)

    def note(self, record: Mapping[str, Any]) -> None:
        """The record may be lost, when there are many, or the machine dies."""
        with self._lock:
            second = int(time.monotonic())
            if second != self._second:
                self._second, self._notes = second, 0
            self._notes += 1
            if self._notes > NOTES:
                self._missing += 1
                return
            missing, self._missing = self._missing, 0
            self._append({**record, **({"missing_before": missing} if missing else {})}, sync=False)

    def last(self, count: int) -> list[dict[str, Any]]:
        """The newest records, oldest first."""
        found: list[dict[str, Any]] = []
        with self._lock:
            for records in self._newest_first():
                found = records[-(count - len(found)) :] + found
                if len(found) == count:
                    break
        return found

    def _newest_first(self) -> Iterator[list[dict[str, Any]]]:
        if self.path is None:
            yield list(self._memory)
            return
        for path in (self.path, *(self._older(number) for number in range(1, FILES))):
            try:
                lines = path.read_bytes().splitlines()
            except OSError:
                return
            yield [record for line in lines if (record := _parsed(line)) is not None]

    def _append(self, record: Mapping[str, Any], *, sync: bool) -> None:
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
        record = {"time": stamp, **record}
        if self.path is None:
            self._memory.append(record)
            return
        data = json.dumps(record, separators=(",", ":")).encode() + b"\n"
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                size = os.fstat(fd).st_size
                if size and os.pread(fd, 1, size - 1) != b"\n":
                    data = b"\n" + data  # the machine died in the middle of a record
                try:
                    if os.write(fd, data) < len(data):
                        raise OSError(28, "No space left on device")
                    if sync:
                        os.fsync(fd)
                except OSError:
                    os.ftruncate(fd, size)
                    raise
            finally:
                os.close(fd)
            if size + len(data) > SIZE:
                for number in range(FILES - 1, 0, -1):
                    older = self._older(number - 1) if number > 1 else self.path
                    if older.exists():
                        older.replace(self._older(number))
        except OSError as error:
            raise EngineError("FN-1304", f"{self.path}: {error.strerror}", "make room in the state directory") from None

    def _older(self, number: int) -> Path:
        assert self.path is not None
        return self.path.with_name(f"{self.path.name}.{number}")


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def differences(old: Config, new: Config) -> dict[str, Any]:
    """{"changed": [{"resource", "before", "after"}]}: None where it is not there; of what remains, only the fields that
    differ. A long list is cut, and `omitted` says by how much."""
    changed: list[dict[str, Any]] = []
    omitted = 0
    for word in ("services", "addresses", "routes", "neighbours"):
        before, after = getattr(old, word), getattr(new, word)
        for key in after.changed_since(before):
            if len(changed) < MOST:
                was, now = before.get(key), after.get(key)
                changed.append({"resource": plan.name_of(was or now), **_two_sides(_fields(was), _fields(now))})
            else:
                omitted += 1
    for name in new.sets.changed_since(old.sets):  # a set may have a million entries
        was, now = ({"entries": len(known)} if (known := c.sets.get(name)) else None for c in (old, new))
        changed.append({"resource": f"set {name}", "before": was, "after": now})
    for word in ("host", "api", "acl"):
        if getattr(old, word) != getattr(new, word):
            sides = (getattr(config, word).model_dump(mode="json") for config in (old, new))
            changed.append({"resource": word, **_two_sides(*sides)})
    for port in sorted(set(old.down) ^ set(new.down)):
        changed.append(
            {"resource": f"port {port}", "before": {"up": port in new.down}, "after": {"up": port in old.down}}
        )
    return {"changed": changed, **({"omitted": omitted} if omitted else {})}


def _fields(value: Any) -> dict[str, Any] | None:  # noqa: ANN401, a value of any table
    if value is None:
        return None
    fields: dict[str, Any] = value.model_dump(mode="json")
    if isinstance(value, Service):  # by name, so that one server among many is one difference
        fields["servers"] = {f"{s['rip']} {s['rport']}": s for s in fields["servers"]}
        fields["lips"] = {lip["addr"]: lip for lip in fields["lips"]}
    return fields


def _two_sides(was: dict[str, Any] | None, now: dict[str, Any] | None) -> dict[str, Any]:
    if was is not None and now is not None:
        differing = [field for field in now if was[field] != now[field]]
        was, now = {f: was[f] for f in differing}, {f: now[f] for f in differing}
        for field in ("servers", "lips"):
            if field in now:
                a, b = was[field], now[field]
                was[field] = {k: v for k, v in a.items() if b.get(k) != v}
                now[field] = {k: v for k, v in b.items() if a.get(k) != v}
    return {"before": was, "after": now}
