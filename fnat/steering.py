"""How the answers of real servers find the worker that owns the connection.

A NIC deals what it receives to its queues, and a queue is one worker's. In order of preference:

  rss       the worker takes only local ports whose answers the NIC's own hash brings to its queue: nothing to set up,
            no LIP is spent on it. Needs a Toeplitz hash over addresses and ports, whose key and table the driver shows.
  ntuple    flow rules, LIP and low bits of the local port -> queue. Never needed, so only when asked for. Needs a
            power of two of workers, and masks that few NICs have; costs 2 x workers rules for each LIP.
  hand-off  ports by mask; a worker that gets another's answer gives it on through a ring, uncopied. Always right.

The choice is made for each port, and for each protocol, because many NICs hash UDP by addresses alone. `choose` is
pure; what it needs to know of a NIC are `Facts`, from a real one (ethtool.KernelNic) or a recorded one.

Unsatisfying: a driver can say one thing and do another; then answers arrive elsewhere and are handed over, which the
counter `answers_elsewhere` shows. mlx5 is such a one, so it is not trusted unless told to.
"""

from __future__ import annotations

import errno
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from fnat import _core
from fnat.ethtool import Facts, FlowRule

FLOWS = _core.FLOWS
TUPLE = frozenset({"src", "dst", "sport", "dport"})
SECRETIVE = ("mlx5_core",)  # in many kernels it sets the NIC's symmetric bit and shows no transformation
EVEN = 0.5  # of a fair share: a worker that the NIC leaves fewer ports than that has to be fed by hand-off

Wanted = Literal["auto", "mask", "rss", "ntuple"]


class Nic(Protocol):
    """A NIC that can be asked. Flow rules raise OSError where it cannot."""

    @property
    def device(self) -> str: ...
    def facts(self) -> Facts: ...
    def add_rule(self, rule: FlowRule) -> None: ...
    def delete_rule(self, rule: FlowRule) -> None: ...
    def rules(self) -> list[FlowRule]: ...


class CannotSteer(Exception):
    """What was asked for is not possible: why, and how to mend it."""

    def __init__(self, message: str, fix: str = 'use steering = "auto"') -> None:
        super().__init__(f"{message}; {fix}")
        self.message = message
        self.fix = fix


# ---- choosing ----


def choose(facts: Facts, wanted: Wanted, workers: int) -> dict[str, _core.Rule]:
    """The rule of each flow; its note begins with rss, ntuple or hand-off. CannotSteer: asked for, but impossible."""
    if workers == 1:
        return dict.fromkeys(FLOWS, _core.Rule(note="one worker"))
    if wanted == "ntuple":
        return dict.fromkeys(FLOWS, _by_rules(facts, workers))
    if wanted == "mask":
        return dict.fromkeys(FLOWS, _core.Rule(note="hand-off: steering is mask", loose=not facts.table))
    why_not = _no_scaling(facts, wanted)
    by_hash = {flow: why_not or _by_hash(facts, flow, workers) for flow in FLOWS}
    loose = not facts.table  # nobody says by what such a device deals
    rules = {
        flow: _core.Rule(note=f"hand-off: {rule}", loose=loose) if isinstance(rule, str) else rule
        for flow, rule in by_hash.items()
    }
    if wanted == "rss" and not any(rule.key for rule in rules.values()):
        raise CannotSteer(f"no answers by RSS: {by_hash['tcp4']}")
    return rules


def _no_scaling(facts: Facts, wanted: Wanted) -> str:
    """Why the hash of this NIC is of no use; "": it is."""
    slots = len(facts.table)
    if not slots:
        return f"{facts.driver} shows no receive-side scaling"
    if facts.function != "toeplitz":
        return f"{facts.driver} hashes by {facts.function}"
    if facts.transform:
        return f"{facts.driver} hashes {facts.transform}"
    if not any(facts.key):
        return f"{facts.driver} does not show its key"
    if slots & (slots - 1) or slots > _core.STEER_SLOTS:
        return f"table of {slots} slots, not a power of two up to {_core.STEER_SLOTS}"
    if facts.driver in SECRETIVE and wanted != "rss":
        return f'{facts.driver} may hash symmetrically unsaid; steering = "rss" trusts it'
    return ""


def _by_hash(facts: Facts, flow: str, workers: int) -> _core.Rule | str:
    """The rule, or why there is none for this flow."""
    fields = facts.fields.get(flow)
    if fields is None:
        return f"{facts.driver} does not say what it hashes"
    if fields != TUPLE:
        return (
            "hashed by addresses only"
            if fields == {"src", "dst"}
            else f"hashed by {' '.join(sorted(fields)) or 'nothing'}"
        )
    table = tuple(queue % workers for queue in facts.table)
    rule = _core.Rule(facts.key[: _core.STEER_KEY], table, f"rss, {facts.driver}, {len(table)} slots")
    try:
        fewest, _ = _core.steering_shares(rule, flow, workers)
    except OSError:
        return f"key of {len(facts.key)} bytes is too short"
    if fewest * workers < EVEN * 64512:
        return f"key or table leaves a worker {fewest} of 64512 ports"
    return rule


def _by_rules(facts: Facts, workers: int) -> _core.Rule:
    if workers & (workers - 1):
        raise CannotSteer(f"flow rules need a power of two of workers, not {workers}")
    if not facts.ntuple:
        mend = '`ethtool -K DEVICE ntuple on` where the driver has them, or steering = "auto"'
        raise CannotSteer(f"{facts.driver} has no flow rules switched on", mend)
    return _core.Rule(note=f"ntuple, {2 * workers} rules for each LIP")


# ---- flow rules ----


class LipRules:
    """The flow rules of one port's LIPs; `hold` makes the NIC have those and no others of our shape."""

    def __init__(self, nic: Nic, workers: int) -> None:
        self._nic = nic
        self._workers = workers

    def wanted(self, lips: Iterable[str]) -> set[FlowRule]:
        """Queue N is worker N's, and so are the ports with N in their low bits."""
        mask = self._workers - 1
        return {
            FlowRule(f"{proto}{6 if ':' in lip else 4}", lip, mask, n, n)
            for lip in lips
            for proto in ("tcp", "udp")
            for n in range(self._workers)
        }

    def hold(self, lips: Iterable[str]) -> None:
        """CannotSteer where the NIC cannot; what was added before it said so is taken back."""
        wanted, present = self.wanted(lips), set(self._nic.rules())
        for rule in present - wanted:
            self._nic.delete_rule(rule)
        added: list[FlowRule] = []
        try:
            for rule in sorted(wanted - present, key=lambda r: (r.flow, r.addr, r.value)):
                self._nic.add_rule(rule)
                added.append(rule)
        except OSError as error:
            for rule in added:
                self._nic.delete_rule(rule)
            raise _no_rule(rule, error) from None


def _no_rule(rule: FlowRule, error: OSError) -> CannotSteer:
    what = f"flow rule for LIP {rule.addr} with port mask {rule.mask:#x}"
    if error.errno == errno.ENOSPC:
        return CannotSteer(f"no room for a {what}", 'use fewer LIPs, or steering = "auto"')
    return CannotSteer(f"the NIC cannot do a {what}: {error.strerror}")


# ---- recorded NICs ----


@dataclass
class RecordedNic:
    """A NIC from a file: the answers of its driver, and what it does with flow rules ("masked", "exact", "none")."""

    device: str
    known: Facts
    masks: Mapping[int, str]  # by IP version
    room: int = 0
    held: list[FlowRule] = field(default_factory=list)

    @classmethod
    def load(cls, path: Path, name: str) -> RecordedNic:
        record: dict[str, Any] = tomllib.loads(path.read_text())[name]
        queues, slots = record["queues"], record.get("slots", 0)
        facts = Facts(
            driver=record["driver"],
            queues=queues,
            table=tuple(slot % queues for slot in range(slots)),
            key=bytes.fromhex(record.get("key", "")),
            function=record.get("function", ""),
            transform=record.get("transform", ""),
            fields={flow: frozenset(names.split()) for flow, names in record.get("fields", {}).items()},
            ntuple=record.get("ntuple", False),
        )
        return cls(
            name, facts, {4: record.get("masks4", "none"), 6: record.get("masks6", "none")}, record.get("room", 0)
        )

    def facts(self) -> Facts:
        return self.known

    def add_rule(self, rule: FlowRule) -> None:
        if not self.known.ntuple or self.masks[6 if ":" in rule.addr else 4] == "none":
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        if self.masks[6 if ":" in rule.addr else 4] == "exact" and rule.mask not in (0, 0xFFFF):
            raise OSError(errno.EINVAL, "Invalid argument")
        if len(self.held) >= self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.held.append(rule)

    def delete_rule(self, rule: FlowRule) -> None:
        self.held.remove(rule)

    def rules(self) -> list[FlowRule]:
        return list(self.held)
