"""How many local ports are left towards each RS, and when ports or connections run out at the present rate.

An *endpoint* is (protocol, LIP, RS address and port): each has a whole range of local ports of its own, of which each
worker may use an equal share. A usage is one reading of all endpoints in use; the last few minutes of them make the
rate, by least squares. Pure over arrays: the engine reads, this computes.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from fnat import addresses

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

EVERY = 20.0  # seconds between the usages that are kept
KEPT = 10  # usages: a forecast looks back three minutes
SLOW = 1e-6  # a second: less is no growth
_KEY, _RS = 22, 20  # bytes: rip (16), rport (2), protocol, family; LIP (2)


def rs_key(rip: str, rport: int, proto: int) -> bytes:
    """Names (protocol, RS) in a usage."""
    address = addresses.parse(rip)
    return address.packed.ljust(16, b"\0") + rport.to_bytes(2, "little") + bytes((proto, address.version))


@dataclass(frozen=True)
class Usage:
    """One reading; keys are sorted. busiest: ports in use by the worker that uses most."""

    at: float
    conns: int
    keys: NDArray[np.bytes_]
    used: NDArray[np.int64]
    free: NDArray[np.int64]
    busiest: NDArray[np.int64]

    @cached_property
    def by_rs(self) -> dict[bytes, dict[int, int]]:
        """rs_key -> id of the LIP -> index, of endpoints in use."""
        found: dict[bytes, dict[int, int]] = {}
        for index, key in enumerate(self.keys.tolist()):
            whole = key.ljust(_KEY, b"\0")  # numpy cuts zeros off
            found.setdefault(whole[:_RS], {})[int.from_bytes(whole[_RS:], "little")] = index
        return found

    def used_by(self, keys: NDArray[np.bytes_]) -> NDArray[np.int64]:
        import numpy as np

        at = self.keys.searchsorted(keys)
        at[at == len(self.keys)] = 0
        if not len(self.keys):
            return np.zeros(len(keys), np.int64)
        return np.where(self.keys[at] == keys, self.used[at], 0)


def read(at: float, conns: int, endpoints: NDArray[Any], ports: int, workers: int) -> Usage:
    """endpoints: as Plane.endpoints gives them; ports: of one endpoint over all workers."""
    import numpy as np

    raw = np.zeros((len(endpoints), _KEY), np.uint8)
    raw[:, :16] = endpoints["rip"]
    for field, column, size in (("rport", 16, 2), ("proto", 18, 1), ("family", 19, 1), ("lip", 20, 2)):
        raw[:, column : column + size] = endpoints[field].copy().view(np.uint8).reshape(-1, size)
    keys, group = np.unique(raw.view(f"S{_KEY}").ravel(), return_inverse=True)
    each = endpoints["used"].astype(np.int64)
    share = ports // workers
    used = np.bincount(group, each, len(keys)).astype(np.int64)
    lost = np.bincount(group, np.minimum(each, share), len(keys)).astype(np.int64)
    busiest = np.zeros(len(keys), np.int64)
    np.maximum.at(busiest, group, each)
    return Usage(at, conns, keys, used, np.maximum(0, share * workers - lost), busiest)


class History:
    """The usages of the last minutes."""

    def __init__(self) -> None:
        self._kept: deque[Usage] = deque(maxlen=KEPT)

    def is_due(self, at: float) -> bool:
        return not self._kept or at - self._kept[-1].at >= EVERY

    def keep(self, usage: Usage) -> None:
        self._kept.append(usage)

    def port_rates(self, now: Usage) -> NDArray[np.float64]:
        """Ports a second that each endpoint of `now` takes; 0 while there is nothing to compare with."""
        import numpy as np

        usages = self._before(now)
        if not usages:
            return np.zeros(len(now.keys))
        return _slopes([u.at for u in usages] + [now.at], [u.used_by(now.keys) for u in usages] + [now.used])

    def conn_rate(self, now: Usage) -> float:
        """Connections a second by which their number rises."""
        import numpy as np

        usages = self._before(now)
        if not usages:
            return 0.0
        times, counts = [u.at for u in usages] + [now.at], [u.conns for u in usages] + [now.conns]
        return float(_slopes(times, [np.array([n]) for n in counts])[0])

    def _before(self, now: Usage) -> list[Usage]:
        return [usage for usage in self._kept if usage.at < now.at]


def _slopes(times: list[float], values: list[NDArray[Any]]) -> NDArray[np.float64]:
    """Of the least-squares line through each column."""
    import numpy as np

    t = np.array(times) - np.mean(times)
    v = np.stack(values).astype(float)
    slopes: NDArray[np.float64] = t @ (v - v.mean(axis=0)) / (t @ t)
    return slopes


def seconds_left(free: float, rate: float) -> float | None:
    """Until nothing is left; None: never at this rate."""
    return free / rate if rate > SLOW else None


def ports_full_in(now: Usage, rates: NDArray[np.float64]) -> float | None:
    """Seconds until the first endpoint has no free port; None: never at these rates."""
    growing = rates > SLOW
    return float((now.free[growing] / rates[growing]).min()) if growing.any() else None
