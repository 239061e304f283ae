"""Sets of addresses: prefixes of both families, some of them exceptions, some of them with an end.

An entry is written "PREFIX" or "FIRST-LAST", with "nomatch" for an exception, "timeout SECONDS" or "until EPOCH" behind
it. The longest prefix that holds an address decides. A set keeps its entries packed, 23 bytes each, and what was
changed since beside them, so that a change of one among a million costs as much as the changes; a set knows what leads
to it from the one it was made from. Nothing here reads the clock.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from fnat import addresses

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

YES, EXCEPT = 1, 2  # answers, as the core has them
KEY = 18  # bytes of a key: family, address, prefix length + 1
MOST = 1 << 21  # entries of a set
TYPES = ("hash:net", "hash:ip", "bitmap:ip")
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,30}")
_FAMILIES = {4: b"\x04", 6: b"\x06"}
_NO_MORE = bytes(12)

Key = bytes
What = tuple[int, int]  # answer, seconds since the epoch at which it ends (0: never)


def key_of(network: addresses.Network) -> Key:
    packed = network.network_address.packed
    return _FAMILIES[network.version] + packed.ljust(16, b"\0") + bytes([network.prefixlen + 1])


def network_of(key: Key) -> addresses.Network:
    if key[0] == 4:
        return ipaddress.IPv4Network((key[1:5], key[17] - 1))
    return ipaddress.IPv6Network((key[1:17], key[17] - 1))


def _quick(text: str) -> Key | None:
    """The key of a bare ADDRESS or ADDRESS/LENGTH; None: it is something else."""
    host, slash, plen = text.partition("/")
    try:
        six = ":" in host
        raw = socket.inet_pton(socket.AF_INET6 if six else socket.AF_INET, host)
    except (OSError, ValueError):
        return None
    most = 128 if six else 32
    if not slash:
        return _FAMILIES[6 if six else 4] + raw.ljust(16, b"\0") + bytes([most + 1])
    length = int(plen) if plen.isascii() and plen.isdecimal() else most + 1
    if length > most:
        return None
    number = int.from_bytes(raw, "big") >> (most - length) << (most - length)
    return _FAMILIES[6 if six else 4] + number.to_bytes(most // 8, "big").ljust(16, b"\0") + bytes([length + 1])


def text_of(key: Key, what: What = (YES, 0)) -> str:
    """An entry as it is written."""
    if key[0] == 4:
        text, whole = socket.inet_ntop(socket.AF_INET, key[1:5]), 33
    else:
        text, whole = str(ipaddress.IPv6Address(key[1:17])), 129
    text = text if key[17] == whole else f"{text}/{key[17] - 1}"
    return text + (" nomatch" if what[0] == EXCEPT else "") + (f" until {what[1]}" if what[1] else "")


def parse(text: str) -> tuple[list[addresses.Network], int, int, int]:
    """The prefixes of an entry, the answer, its timeout and its end (0: none). ValueError in words for the user."""
    word, *rest = text.split() or [""]
    first, dash, last = word.partition("-")
    if dash:
        low, high = addresses.parse(first), addresses.parse(last)
        if low.version != high.version or int(low) > int(high):
            raise ValueError(f"{word!r} is not a range FIRST-LAST")
        found: list[addresses.Network] = list(ipaddress.summarize_address_range(low, high))
    else:
        found = [addresses.network(word)]
    answer, timeout, until = YES, 0, 0
    while rest:
        match rest:
            case ["nomatch", *rest]:
                answer = EXCEPT
            case [("timeout" | "until") as name, number, *rest] if re.fullmatch("[1-9][0-9]{0,9}", number):
                timeout, until = (int(number), 0) if name == "timeout" else (0, int(number))
            case _:
                raise ValueError(f"{text!r}: behind the address may stand nomatch, timeout SECONDS, until EPOCH")
    if not 0 <= until <= 0xFFFFFFFF or timeout > 31_535_999:
        raise ValueError(f"{text!r}: the time is too large")
    return found, answer, timeout, until


def canonical(text: object) -> str:
    """An entry in its one spelling. ValueError in words for the user."""
    if not isinstance(text, str):
        raise ValueError(f"{text!r} is not the text of an entry")
    if (key := _quick(text)) is not None:
        return text_of(key)
    found, answer, timeout, until = parse(text)
    word = text.split()[0] if len(found) > 1 else text_of(key_of(found[0]))
    end = f" timeout {timeout}" if timeout else f" until {until}" if until else ""
    return word + (" nomatch" if answer == EXCEPT else "") + end


def stamped(text: str, now: int) -> str:
    """The entry with its end instead of its timeout."""
    word, found, timeout = text.partition(" timeout ")
    return f"{word} until {now + int(timeout)}" if found else text


def edits_of(entries: Iterable[str]) -> dict[Key, What]:
    """Entries that have no timeout (see stamped)."""
    edits: dict[Key, What] = {}
    for text in entries:
        if (key := _quick(text)) is not None:
            edits[key] = (YES, 0)
            continue
        found, answer, _, until = parse(text)
        edits |= dict.fromkeys(map(key_of, found), (answer, until))
    return edits


@dataclass(frozen=True)
class Packed:
    """Entries in the order of their keys, each once."""

    keys: NDArray[np.bytes_]
    answers: NDArray[np.uint8]
    until: NDArray[np.uint32]

    def get(self, key: Key) -> What | None:
        if not len(self.keys):
            return None
        at = int(self.keys.searchsorted(key))
        if at == len(self.keys) or self.keys[at] != key:
            return None
        return int(self.answers[at]), int(self.until[at])

    @cached_property
    def ends(self) -> NDArray[np.intp]:
        """Entries that end, the first ones first."""
        at = self.until.nonzero()[0]
        found: NDArray[np.intp] = at[self.until[at].argsort(kind="stable")]
        return found


def pack(keys: bytes, answers: bytes, until: NDArray[np.uint32] | None = None) -> Packed:
    """Of equal keys the last one counts."""
    import numpy as np

    k = np.frombuffer(keys, dtype=f"S{KEY}")[::-1]
    k, at = np.unique(k, return_index=True)
    a = np.frombuffer(answers, dtype=np.uint8)[::-1][at]
    u = np.zeros(len(k), np.uint32) if until is None else until[::-1][at]
    return Packed(k, a, u)


def read_lines(lines: Iterable[str], now: int) -> Packed:
    """Entries of a file, one a line; # begins a comment. ValueError: (line, what is wrong)."""
    import numpy as np

    keys, lengths, answers, ends = list[bytes](), list[int](), bytearray(), dict[int, int]()
    pton, v4, v6, at = socket.inet_pton, socket.AF_INET, socket.AF_INET6, 0
    try:
        for line in lines:
            at += 1
            text = line.partition("#")[0].strip()
            host, slash, plen = text.partition("/")
            try:
                key = b"\x06" + pton(v6, host) if ":" in host else b"\x04" + pton(v4, host) + _NO_MORE
                length = int(plen) if slash else 32 if key[0] == 4 else 128
                if slash and (not plen.isdecimal() or length > (32 if key[0] == 4 else 128)):
                    raise ValueError(text)
            except (OSError, ValueError):
                if not text:
                    continue
                found, answer, timeout, until = parse(text)
                for net in found:
                    if timeout or until:
                        ends[len(keys)] = until or now + timeout
                    keys.append(key_of(net)[:17])
                    lengths.append(net.prefixlen)
                    answers.append(answer)
                continue
            keys.append(key)
            lengths.append(length)
            answers.append(YES)
    except ValueError as error:
        raise ValueError(at, str(error)) from None
    raw = np.frombuffer(b"".join(keys), np.uint8).reshape(len(keys), 17)
    plens = np.array(lengths, np.int64)
    masks = np.packbits(np.arange(128)[None, :] < np.arange(129)[:, None], axis=1)
    whole = np.empty((len(keys), KEY), np.uint8)
    whole[:, 0], whole[:, 1:17], whole[:, 17] = raw[:, 0], raw[:, 1:] & masks[plens], plens + 1
    until_of = np.zeros(len(keys), np.uint32)
    if ends:
        until_of[list(ends)] = list(ends.values())
    return pack(whole.tobytes(), bytes(answers), until_of)


class AddressSet:
    """A named set; immutable."""

    __slots__ = ("__weakref__", "_edited", "_of", "changed", "count", "name", "packed", "span", "type")

    def __init__(
        self, name: str, packed: Packed | None = None, *, type: str = "hash:net", span: str | None = None
    ) -> None:
        """span: of a bitmap:ip, the range its entries lie in."""
        self.name, self.type, self.span = name, type, span
        self.packed = packed if packed is not None else pack(b"", b"")
        self.changed: dict[Key, What | None] = {}
        self.count = len(self.packed.keys)
        self._of: weakref.ref[AddressSet] | None = None
        self._edited: Mapping[Key, What | None] = {}

    @property
    def key(self) -> str:
        return self.name

    def __len__(self) -> int:
        return self.count

    def get(self, key: Key) -> What | None:
        return self.changed[key] if key in self.changed else self.packed.get(key)

    def edited(self, edits: Mapping[Key, What | None]) -> AddressSet:
        """The set with these entries; None takes one out."""
        if not edits:
            return self
        new = AddressSet(self.name, self.packed, type=self.type, span=self.span)
        new.changed = {**self.changed, **edits}
        new.count = self.count + sum((what is not None) - (self.get(key) is not None) for key, what in edits.items())
        if len(new.changed) > 10_000 + len(self.packed.keys) // 8:
            new.packed, new.changed = new.whole(), {}
        new._of, new._edited = weakref.ref(self), edits
        return new

    def whole(self) -> Packed:
        """All entries, packed."""
        if not self.changed:
            return self.packed
        import numpy as np

        keys = np.array(list(self.changed), f"S{KEY}")
        kept = ~np.isin(self.packed.keys, keys)
        added = {key: what for key, what in self.changed.items() if what is not None}
        k = np.concatenate([self.packed.keys[kept], np.array(list(added), f"S{KEY}")])
        a = np.concatenate([self.packed.answers[kept], np.array([w[0] for w in added.values()], np.uint8)])
        u = np.concatenate([self.packed.until[kept], np.array([w[1] for w in added.values()], np.uint32)])
        order = k.argsort()
        return Packed(k[order], a[order], u[order])

    def changed_since(self, old: AddressSet) -> Mapping[Key, What | None]:
        """What leads from old to this set."""
        if self is old:
            return {}
        if self._of is not None and self._of() is old:
            return {key: what for key, what in self._edited.items() if old.get(key) != what}
        if self.packed is old.packed:
            keys = self.changed.keys() | old.changed.keys()
            return {key: what for key in keys if (what := self.get(key)) != old.get(key)}
        import numpy as np

        new, was = self.whole(), old.whole()
        at = np.minimum(was.keys.searchsorted(new.keys), max(0, len(was.keys) - 1))
        same = np.zeros(len(new.keys), bool)
        if len(was.keys):
            same = (was.keys[at] == new.keys) & (was.answers[at] == new.answers) & (was.until[at] == new.until)
        gone = was.keys[~np.isin(was.keys, new.keys)]
        moved: dict[Key, What | None] = dict.fromkeys(gone.tolist())
        fresh = ~same
        values = zip(new.answers[fresh].tolist(), new.until[fresh].tolist(), strict=True)
        return moved | dict(zip(new.keys[fresh].tolist(), values, strict=True))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, AddressSet):
            return NotImplemented
        mine, its = (self.name, self.type, self.span, self.count), (other.name, other.type, other.span, other.count)
        return self is other or (mine == its and not self.changed_since(other))

    __hash__ = None  # type: ignore[assignment]

    def entries(self, start: int = 0, limit: int | None = None) -> Iterator[str]:
        """As they are written, in the order of the addresses, IPv4 first."""
        all = self.whole()
        part = slice(start, None if limit is None else start + limit)
        for key, answer, until in zip(all.keys[part], all.answers[part], all.until[part], strict=True):
            yield text_of(bytes(key), (int(answer), int(until)))

    def find(self, addr: str) -> str | None:
        """The entry that decides about an address; None: none does."""
        ip = addresses.parse(addr)
        for plen in range(ip.max_prefixlen, -1, -1):
            key = key_of(ipaddress.ip_network((ip, plen), strict=False))
            if what := self.get(key):
                return text_of(key, what)
        return None

    def holds(self, addr: str) -> bool:
        entry = self.find(addr)
        return entry is not None and " nomatch" not in entry

    def due(self, now: int) -> list[Key]:
        """Entries whose time is over."""
        ends = self.packed.ends
        over = ends[: int(self.packed.until[ends].searchsorted(now, "right"))] if len(ends) else ends
        keys = [key for key in map(bytes, self.packed.keys[over]) if key not in self.changed]
        return keys + [key for key, what in self.changed.items() if what and 0 < what[1] <= now]

    def next_end(self) -> int:
        """The time at which an entry ends next; 0: never."""
        times = [what[1] for what in self.changed.values() if what and what[1]]
        for at in self.packed.ends:
            if bytes(self.packed.keys[at]) not in self.changed:
                times.append(int(self.packed.until[at]))
                break
        return min(times, default=0)
