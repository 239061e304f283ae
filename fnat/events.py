"""What changes, as it happens: a bounded ring of events, and readers that follow it at their own speed.

A reader owns no queue, only a position in the ring; one that is slower than the ring loses its place and is dropped.
Publishing never waits for anybody. An id is START-NUMBER; START names this life of control, so that a reader who
comes back after a restart, or too late, gets `reset`: what it knows may be old, and it has to read everything anew.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import threading
from collections import deque
from typing import Any

RING = 1024  # events


class Events:
    """Thread-safe."""

    def __init__(self, ring: int = RING) -> None:
        self.start = secrets.token_hex(4)
        self._ring: deque[bytes] = deque(maxlen=ring)
        self._next = 1  # number of the next event
        self._lock = threading.Lock()
        self._readers: dict[asyncio.Event, asyncio.AbstractEventLoop] = {}

    def publish(self, kind: str, data: dict[str, Any]) -> None:
        with self._lock:
            self._ring.append(_frame(f"{self.start}-{self._next}", kind, data))
            self._next += 1
            for bell, loop in self._readers.items():
                loop.call_soon_threadsafe(bell.set)

    def follow(self, bell: asyncio.Event) -> None:
        """bell is set, in its own loop, whenever there is something new."""
        with self._lock:
            self._readers[bell] = asyncio.get_running_loop()

    def leave(self, bell: asyncio.Event) -> None:
        with self._lock:
            self._readers.pop(bell, None)

    def place_of(self, last_id: str | None) -> int | None:
        """The number after this id, the next one without an id; None: the ring does not reach back so far."""
        with self._lock:
            if last_id is None:
                return self._next
            start, _, number = last_id.partition("-")
            place = int(number) + 1 if number.isascii() and number.isdigit() and len(number) < 20 else 0
            oldest = self._next - len(self._ring)
            return place if start == self.start and oldest <= place <= self._next else None

    def since(self, place: int) -> tuple[list[bytes], int] | None:
        """What there is from this number on, and the number after; None: some of it is gone."""
        with self._lock:
            oldest = self._next - len(self._ring)
            if place < oldest:
                return None
            return [self._ring[at] for at in range(place - oldest, len(self._ring))], self._next

    def reset(self) -> tuple[bytes, int]:
        """The event that says so, and the place to go on from."""
        with self._lock:
            return _frame(f"{self.start}-{self._next - 1}", "reset", {}), self._next


def _frame(id: str, kind: str, data: dict[str, Any]) -> bytes:
    """text/event-stream, https://html.spec.whatwg.org/#server-sent-events."""
    return f"id: {id}\nevent: {kind}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()
