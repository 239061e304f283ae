"""What survives a restart of control: the overlay of run-time changes, and the ids of what the data plane counts.

Both are journals: files of JSON lines. A change appends one line and syncs it; a line torn by a crash is the last one
and is dropped on reading; now and then the file is rewritten shorter, beside it, and renamed into place with what was
appended meanwhile. So a change costs one line whatever the size of the configuration, and every state of the file on
disk is a valid one.

An id is stable as long as its thing exists, and afterwards until the data plane counts nothing for it: only then may it
name another thing. Counters belong to ids and never restart; `base` is what is subtracted when they are shown.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fnat.errors import ChangeError, EngineError

Kind = Literal["service", "member", "address"]
KINDS: tuple[Kind, ...] = ("service", "member", "address")

Base = tuple[int, int, int, int, int]
"""conns, in_packets, out_packets, in_bytes, out_bytes"""
ZERO: Base = (0, 0, 0, 0, 0)


LONG = 1 << 20  # bytes that a journal may always grow by before it is rewritten
_json = json.JSONEncoder(separators=(",", ":")).encode


def _encode(record: Any) -> str:  # noqa: ANN401, JSON
    """As JSON, lists in a record item by item: one call over a whole configuration would keep other threads waiting."""
    if not isinstance(record, dict) or "changes" not in record:
        return _json(record)
    items = [
        f"{_json(k)}:[{','.join([_json(item) for item in v])}]" if isinstance(v, list) else f"{_json(k)}:{_json(v)}"
        for k, v in record.items()
    ]
    return f"{{{','.join(items)}}}"


class Journal:
    """A file of JSON lines that may be cut off at any moment. Raises EngineError(FN-1304) when the disk refuses."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines = 0
        self.size = 0  # bytes
        self.whole = 0  # bytes when it was last loaded or rewritten, or of the largest append since
        self.generation = 0  # rises with every rewriting

    @property
    def is_long(self) -> bool:
        """It has grown to more than twice what it was when it was last written as a whole, or by one large append."""
        return self.size > 2 * self.whole + LONG

    def load(self) -> list[Any]:
        """All whole records, in order. A torn last line is cut off, so that the next append starts on its own line."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise self._refused(error) from None
        records: list[Any] = []
        good = 0
        for line in data.splitlines(keepends=True):
            try:
                records.append(json.loads(line))
            except ValueError:
                break
            if not line.endswith(b"\n"):
                records.pop()
                break
            good += len(line)
        if good < len(data):
            if b"\n" in data[good:].rstrip(b"\n"):
                raise EngineError(
                    "FN-1304",
                    f"{self.path} is damaged at line {len(records) + 1}",
                    "mend the line, or delete the file to lose the changes in it",
                )
            with self._disk():
                os.truncate(self.path, good)
        self.lines = len(records)
        self.size = self.whole = good
        return records

    def append(self, records: Iterable[Any]) -> None:
        """Add records; they are on disk when this returns."""
        text = "".join([_encode(r) + "\n" for r in records])
        if not text:
            return
        with self._disk():
            fresh = not self.path.exists()
            fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            size = os.fstat(fd).st_size
            data = text.encode()
            try:
                try:
                    _write_all(fd, data)
                    os.fsync(fd)
                except OSError:
                    os.ftruncate(fd, size)
                    raise
            finally:
                os.close(fd)
            if fresh:
                _sync_directory(self.path.parent)
        self.lines += text.count("\n")
        self.size = size + len(data)
        self.whole = max(self.whole, len(data))

    def rewrite(self, records: list[Any]) -> None:
        """Replace the whole file, atomically."""
        new = self.prepare(records, ".new")
        self.swap(new, len(records), self.size, self.lines)

    def prepare(self, records: list[Any], suffix: str) -> Path:
        """Write a new file beside the old one, which may be appended to meanwhile."""
        new = self.path.with_name(self.path.name + suffix)
        with self._disk():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                _write_all(fd, "".join([_encode(r) + "\n" for r in records]).encode())
                os.fsync(fd)
            finally:
                os.close(fd)
        return new

    def swap(self, new: Path, count: int, size: int, lines: int) -> None:
        """Put the prepared file of `count` records in place, with what was appended after the old one had `size` bytes
        in `lines` lines."""
        with self._disk():
            if self.size > size:
                fd = os.open(new, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
                try:
                    with self.path.open("rb") as old:
                        old.seek(size)
                        _write_all(fd, old.read())
                    os.fsync(fd)
                finally:
                    os.close(fd)
            new.replace(self.path)
            _sync_directory(self.path.parent)
            self.size = self.path.stat().st_size
        self.whole = self.size
        self.lines = count + self.lines - lines
        self.generation += 1

    @contextlib.contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._refused(error) from None

    def _refused(self, error: OSError) -> EngineError:
        return EngineError(
            "FN-1304", f"{self.path}: {error.strerror}", "make room or set the permissions of the state directory"
        )


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class Overlay:
    """Run-time changes on top of the configuration file, oldest first; each line of the file is one transaction.

    The first line also says on top of what they are (`head`): so file, overlay and a confirmation that is waited for
    change together, by one renaming. Keys of head: on, the generation of the file in History; seen, a digest of what
    the file's path held then; run, the keeper's run; confirm {until, on, changes}, what to go back to unless it is
    confirmed in time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.head: dict[str, Any] = {}
        self.first = 0  # changes in the first line
        self._journal = Journal(path)

    def load(self) -> list[dict[str, Any]]:
        """Changes as JSON; see model.CHANGES."""
        self.head, self.first = {}, 0
        found: list[dict[str, Any]] = []
        for number, record in enumerate(self._journal.load()):
            if record.get("confirmed"):
                self.head.pop("confirm", None)
                continue
            found += record["changes"]
            if number == 0:
                self.head, self.first = {k: v for k, v in record.items() if k != "changes"}, len(found)
        return found

    def append(self, changes: list[dict[str, Any]]) -> None:
        if changes:
            self._journal.append([{"changes": changes}])

    def replace(self, changes: list[dict[str, Any]], head: dict[str, Any] | None = None) -> None:
        """head None: as it is."""
        before = self.head
        try:
            self.head = before if head is None else head
            self._journal.rewrite(self._transaction(changes))
        except BaseException:
            self.head = before
            raise
        self.first = len(changes)

    def confirm(self) -> None:
        """What was applied stays."""
        self._journal.append([{"confirmed": True}])
        del self.head["confirm"]

    @property
    def is_long(self) -> bool:
        """Not while a confirmation is waited for: the first line tells what was applied from what came since."""
        return "confirm" not in self.head and self._journal.is_long

    def mark(self) -> tuple[int, int, int]:
        """Where the file ends now, for `shorten`."""
        return self._journal.generation, self._journal.size, self._journal.lines

    def prepare(self, changes: list[dict[str, Any]]) -> Path:
        """First half of a replacement by these changes; transactions may be appended, and all replaced, meanwhile."""
        return self._journal.prepare(self._transaction(changes), ".aside")

    def shorten(self, prepared: Path, changes: list[dict[str, Any]], mark: tuple[int, int, int]) -> None:
        """Second half: the prepared changes say all up to the mark. A file that was replaced since stays as it is."""
        generation, size, lines = mark
        if generation == self._journal.generation:
            self._journal.swap(prepared, len(self._transaction(changes)), size, lines)
        else:
            prepared.unlink(missing_ok=True)

    def _transaction(self, changes: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**self.head, "changes": changes}] if changes or self.head else []


def replace_file(path: Path, data: bytes, mode: int = 0o600) -> None:
    """The whole file, atomically and on disk when this returns. Raises EngineError(FN-1304)."""
    new = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        try:
            os.fchmod(fd, mode)
            _write_all(fd, data)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(new, path)
        _sync_directory(path.parent)
    except OSError as error:
        raise EngineError("FN-1304", f"{path}: {error.strerror}", "make room or set the permissions there") from None


@dataclass(frozen=True)
class Generation:
    """A text that was in force, or was to be. why: apply, start, save, rollback to N."""

    number: int
    at: float
    why: str
    source: str
    text: str = ""


class History:
    """The last texts of the configuration file, each in a file of its own that is never changed: a line of JSON, then
    the text, compressed."""

    KEPT = 30

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def numbers(self) -> list[int]:
        return sorted(int(path.name.split(".")[0]) for path in self.directory.glob("[0-9]*.gz"))

    def add(self, text: str, why: str, source: str, keep: Iterable[int] = ()) -> int:
        """Its number; it is on disk when this returns. Drops the oldest but those to keep."""
        known = self.numbers()
        number = known[-1] + 1 if known else 1
        head = {"at": time.time(), "why": why, "source": source}
        data = gzip.compress(f"{_json(head)}\n{text}".encode(), 1, mtime=0)
        replace_file(self.directory / f"{number:06}.gz", data)
        for old in known[: -self.KEPT]:
            if old not in keep:
                (self.directory / f"{old:06}.gz").unlink(missing_ok=True)
        return number

    def get(self, number: int) -> Generation:
        return self._read(number, whole=True)

    def all(self) -> list[Generation]:
        """The newest last, without their texts."""
        return [self._read(number, whole=False) for number in self.numbers()]

    def _read(self, number: int, *, whole: bool) -> Generation:
        path = self.directory / f"{number:06}.gz"
        try:
            with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
                head = json.loads(file.readline())
                return Generation(number, head["at"], head["why"], head["source"], file.read() if whole else "")
        except FileNotFoundError:
            near = ", ".join(map(str, self.numbers()[-5:])) or "none"
            raise ChangeError(404, "FN-1209", f"there is no generation {number}", f"the last are: {near}") from None
        except (OSError, EOFError, ValueError, KeyError, zlib.error) as error:
            raise EngineError("FN-1304", f"{path} is damaged: {error}", "delete it; the others are whole") from None


@dataclass
class Entry:
    """A thing with an id. live: part of the configuration; else it waits until nothing counts for it."""

    kind: Kind
    key: str
    id: int
    base: Base = ZERO
    port: str | None = None  # of an address
    live: bool = False


@dataclass
class _Table:
    by_key: dict[str, Entry] = field(default_factory=dict)
    by_id: dict[int, Entry] = field(default_factory=dict)
    next: int = 1
    end: int = 1  # ids that were ever used are below this


class Ids:
    """Ids of services, members and addresses, on disk. Ids start at 1. Changes reach the disk with `flush`."""

    def __init__(self, path: Path | None) -> None:
        """path None: in memory only (tests)."""
        self._journal = Journal(path) if path is not None else None
        self._tables: dict[Kind, _Table] = {kind: _Table() for kind in KINDS}
        self._unsaved: list[dict[str, Any]] = []

    def load(self) -> None:
        if self._journal is None:
            return
        for record in self._journal.load():
            table = self._tables[record["kind"]]
            if old := table.by_key.pop(record["key"], None):
                del table.by_id[old.id]
            if "id" in record:
                base = tuple(record.get("base", ZERO))
                entry = Entry(record["kind"], record["key"], record["id"], base, record.get("port"))
                table.by_key[entry.key] = entry
                table.by_id[entry.id] = entry
                table.end = max(table.end, entry.id + 1)
        self._journal.rewrite([_record(e) for kind in KINDS for e in self.entries(kind)])

    def entries(self, kind: Kind) -> list[Entry]:
        return list(self._tables[kind].by_key.values())

    def get(self, kind: Kind, key: str) -> Entry | None:
        return self._tables[kind].by_key.get(key)

    def by_id(self, kind: Kind, id: int) -> Entry | None:
        return self._tables[kind].by_id.get(id)

    def end(self, kind: Kind) -> int:
        """All ids that this process has seen are below."""
        return self._tables[kind].end

    def take(self, kind: Kind, key: str, limit: int, look: Callable[[int], Base | None]) -> Entry:
        """The entry of key, with a new id below `limit` if it has none.

        look(id): what the plane has counted for the id; None: it still holds something."""
        table = self._tables[kind]
        entry = table.by_key.get(key)
        if entry is None:
            for step in range(limit - 1):
                id = 1 + (table.next - 1 + step) % (limit - 1)
                if id not in table.by_id and (base := look(id)) is not None:
                    break
            else:
                raise EngineError(
                    "FN-1303", f"no free {kind} id: {limit - 1} are in use", "remove some, or start fnat with more room"
                )
            table.next = id + 1
            entry = Entry(kind, key, id, base)
            table.by_key[key] = entry
            table.by_id[id] = entry
            table.end = max(table.end, id + 1)
            self.save(entry)
        return entry

    def save(self, entry: Entry) -> None:
        """Note that the entry changed."""
        self._unsaved.append(_record(entry))

    def release(self, entry: Entry) -> None:
        """Forget the thing; its id may name another from now on."""
        table = self._tables[entry.kind]
        del table.by_key[entry.key]
        del table.by_id[entry.id]
        self._unsaved.append({"kind": entry.kind, "key": entry.key})

    def flush(self) -> None:
        """Bring all changes to disk."""
        unsaved, self._unsaved = self._unsaved, []
        if self._journal is None:
            return
        known = sum(len(t.by_key) for t in self._tables.values())
        if self._journal.lines + len(unsaved) > 2 * known + 1000:
            self._journal.rewrite([_record(e) for kind in KINDS for e in self.entries(kind)])
        else:
            self._journal.append(unsaved)


def _record(entry: Entry) -> dict[str, Any]:
    record: dict[str, Any] = {"kind": entry.kind, "key": entry.key, "id": entry.id}
    if entry.base != ZERO:
        record["base"] = list(entry.base)
    if entry.port is not None:
        record["port"] = entry.port
    return record


def digest(path: Path) -> str | None:
    """Of a file's bytes; None: there is none."""
    try:
        return hashlib.blake2s(path.read_bytes()).hexdigest()
    except OSError:
        return None


def intent(overlay: Overlay, history: History, path: Path | None, run: str | None) -> Generation | None:
    """The text that a start goes on with; None: what the file of this path says. A file that was edited counts from a
    new run of fnat on, not from a control that died in the run."""
    overlay.load()
    head = overlay.head
    number = head.get("on")
    same_run = run is not None and head.get("run") == run
    if number in history.numbers() and (same_run or (digest(path) if path else None) == head.get("seen")):
        return history.get(number)
    return None
