"""Datagrams in fragments, in plain Python: what the reference remembers of them. Nothing is put together; see cext/frag.h.

A datagram is refused for good when fragments overlap (RFC 5722) or contradict each other about its end; an exact duplicate is dropped
alone. Times are ticks of 1/64 s.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from packets import FRAGMENT, Frame, is6

Key = tuple[str, str, int, int]  # source, destination, protocol (0 with IPv6), identification
DONE_TICKS = 2  # a complete datagram is remembered this long
PLACES, HELD, HELD_EACH, DATAGRAMS = 128, 256, 16, 4096


@dataclass(eq=False)
class Datagram:
    key: Key
    since: int
    known: tuple[int, int, int, int] | None = None  # protocol, ports, TCP flags, as the first fragment has them
    refused: str = ""
    new_id: int | None = None
    places: list[tuple[int, int]] = field(default_factory=list)  # bytes, the end rounded up to 8
    total: int = 0
    seen: int = 0
    done: bool = False
    conn: object = None  # of a one-packet service: no table knows it by its client
    held: list[tuple[int, Frame]] = field(default_factory=list)  # (port it came by, frame)


@dataclass(frozen=True)
class Piece:
    """Where a fragment lies in its datagram."""

    key: Key
    offset: int
    data: bytes
    more: bool
    head: int  # bytes of the IPv4 header

    @classmethod
    def of(cls, f: Frame) -> Piece:
        at = part_at(f)
        data = f.raw[at : 14 + f.total]
        if is6(f.src):
            return cls((f.src, f.dst, 0, f.frag_id), *f.fragment[:1], data, f.fragment[1], 0)
        return cls((f.src, f.dst, f.proto, f.ident), (f.frag & 0x1FFF) * 8, data, bool(f.frag & 0x2000), at - 14)


def part_at(f: Frame) -> int:
    """Where the part begins that is cut in pieces."""
    return f.frag_at + 8 if FRAGMENT in f.extensions else f.l4


@dataclass
class Datagrams:
    table: dict[Key, Datagram] = field(default_factory=dict)
    done: list[Datagram] = field(default_factory=list)

    @property
    def held(self) -> int:
        return sum(len(d.held) for d in self.table.values())

    def get(self, key: Key, tick: int) -> Datagram | None:
        d = self.table.get(key)
        if d is None and len(self.table) == DATAGRAMS:
            if not self.done:
                return None
            self.forget(self.done[0])
        if d is None:
            d = self.table[key] = Datagram(key, tick)
        return d

    def note(self, d: Datagram, p: Piece, tick: int) -> str:
        """The reason why the fragment may not pass; "": it may."""
        start, end, to = p.offset, p.offset + (len(p.data) + 7) // 8 * 8, p.offset + len(p.data)
        if d.refused:
            return d.refused
        touched = [(a, b) for a, b in d.places if a < end and start < b]
        ends_alike = (d.total == to) != p.more
        if touched == [(start, end)] and ends_alike:
            return "fragment_duplicate"
        contradicts = bool(d.total) and (not p.more or to > d.total)
        if touched or contradicts or (not p.more and any(b > end for _, b in d.places)):
            d.refused = "fragment_overlap"
        elif len(d.places) == PLACES:
            d.refused = "fragment_many"
        if d.refused:
            return d.refused
        d.places.append((start, end))
        d.seen += len(p.data)
        d.total = d.total if p.more else to
        if d.total and d.seen == d.total:
            d.done, d.since = True, tick
            self.done.append(d)
        return ""

    def hold(self, d: Datagram, port: int, f: Frame) -> str:
        if len(d.held) == HELD_EACH or self.held == HELD:
            return "fragment_held"
        d.held.append((port, f))
        return "held"

    def forget(self, d: Datagram) -> None:
        del self.table[d.key]
        if d.done:
            self.done.remove(d)

    def expired(self, tick: int, timeout: int) -> list[Datagram]:
        """Those whose time is over; they are forgotten."""
        gone = [d for d in self.table.values() if d.since + (DONE_TICKS if d.done else timeout) <= tick]
        for d in gone:
            self.forget(d)
        return gone
