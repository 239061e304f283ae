"""The control process: what the file and the operators want becomes what the data plane does. `python -m fnat.control`.

Truth is on disk: the file as it was applied (intent), the overlay (run-time changes on top of it), the ids. A control
that dies costs no packet; the next one waits for the ports file, attaches the plane, hears the host's routes, and puts
the whole picture in force at once.

    config file ─┐
                 ├─ plan.apply ─> Config ─> Engine ─> plane, XDP programs
    overlay ─────┘                            ^
    CLI, API ── change ───────────────────────┤
    host (netlink) ── routes, neighbours, links

Applying a file (`fnat apply`, SIGHUP) writes its text to the history, puts it in force with the overlay on top, and
then renames the overlay's file, whose first line says which text it is on top of: that is the one moment at which the
new configuration is the one that a restart finds. Where file and overlay speak of one thing the overlay wins and it is
told. A file that is edited and not applied is not taken up by a control that died; a new run of fnat takes it up.
SIGTERM and SIGINT end the process; the data plane goes on.

Unsatisfying: the ports, workers and conns of the file are read at the start of the data plane only; whoever applies
others is told so.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import json
import logging
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from fnat import __version__, plan
from fnat import config as configuration
from fnat.access import ASKED, Access
from fnat.audit import Audit, differences
from fnat.engine import Engine, NoSteering, Steering
from fnat.errors import ChangeError, ConfigError, EngineError, FnatError
from fnat.ethtool import KernelNic
from fnat.events import Events
from fnat.keeper import CANNOT_START, LOOK_AGAIN, Options, die_with_parent, notify, read_options, say
from fnat.model import (
    CHANGES,
    AclRecheck,
    Api,
    AppliedView,
    ApplyView,
    Change,
    Config,
    ConfigView,
    DiffView,
    GenerationView,
    Host,
    PidsView,
    Port,
    PortInfo,
    ServerDrain,
    ServerSet,
    ServerShift,
    ServiceImpact,
    ServiceRef,
    ServiceZero,
    SetAdd,
    SetEntryAdd,
    StatusView,
    change_as_json,
)
from fnat.paths import Paths
from fnat.sets import stamped
from fnat.state import History, Ids, Overlay, digest, intent, replace_file
from fnat.steering import LipRules

if TYPE_CHECKING:
    from fnat._core import Plane
    from fnat.listener import Remote, Server

log = logging.getLogger("fnat.control")

PORTS_PATIENCE = 60.0  # seconds for the data plane to open its ports
MIRROR_PATIENCE = 5.0  # seconds for the first picture of the host
GARBAGE = 50_000, 10, 100  # of gc: a configuration is millions of objects that stay, and walking them takes a second
SWITCH = 0.0005  # seconds that a thread may keep the interpreter from another
LOOK_EVERY = 0.5  # seconds between two looks at a confirmation that is waited for
AT_START = ("routes", "idle", "conns", "workers", "cpus", "steering")  # of [host]: read at the start only
SIGHUP = "SIGHUP", "configuration read again"
TIMER = "timer", "the time of a set's entries, of a drain or of a shift has come"
UNCONFIRMED = "timer", "configuration taken back, nobody confirmed it"
SAMPLE_EVERY = 1.0  # seconds; more when sampling costs more than a fiftieth of them


@dataclass(frozen=True)
class Source:
    """Where the configuration comes from: the text in force, what it is called, and its number in the history (None:
    it has none yet). ports: those of the text, open or not. path: the file that `fnat run` was given; host: with which
    settings the data plane runs."""

    text: str = "version = 1\n"
    name: str = "no file"
    generation: int | None = None
    ports: tuple[Port, ...] = ()
    path: Path | None = None
    node: str | None = None
    run: str | None = None
    host: Host | None = None


@dataclass
class _Plan:
    """What applying a text would do."""

    file: Config
    config: Config
    ports: tuple[Port, ...]
    conflicts: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


class Control:
    """The configuration in force, and the way it changes. Thread-safe."""

    def __init__(
        self,
        engine: Engine,
        overlay: Overlay,
        paths: Paths | None = None,
        file: Config | None = None,
        source: Source | None = None,
    ) -> None:
        """file: the config of the file (its ports are replaced by those that are open)."""
        self.engine = engine
        self.file = self._with_ports(file or Config())
        self.source = source or Source(text=configuration.dump(file) if file else Source.text)
        self.history = History(overlay.path.parent / "history")
        self._overlay = overlay
        self._paths = paths
        self.audit = Audit(paths.audit if paths else None)
        self.events = Events()
        self._lock = threading.Lock()
        self._shortening: threading.Thread | None = None
        self._started = time.monotonic()
        self._confirm_by: float | None = None  # monotonic
        self._applied: Config | None = None  # what waits for its confirmation, as it was applied

    def start(self) -> None:
        """Put file and overlay in force. Raises FnatError."""
        changes = self._overlaid()
        config = plan.expire(plan.apply(self.file, changes, lenient=log.warning), int(time.time()))
        head, source = self._overlay.head, self.source
        is_new = source.path is not None and source.generation is None
        if "confirm" in head and not is_new:
            self._applied = plan.apply(self.file, changes[: self._overlay.first], lenient=lambda _: None)
            left = min(head["confirm"]["until"] - time.time(), head["confirm"]["seconds"])
            self._confirm_by = time.monotonic() + max(0.0, left)
        self.engine.commit(config)
        if is_new:
            generation = self.history.add(source.text, "start", source.name)
            self._remember_source(replace(source, generation=generation), config)
        elif changes and "confirm" not in head:
            self._shorten(config)
        self.revert_if_due()

    def change(
        self,
        changes: Sequence[Change],
        *,
        dry_run: bool = False,
        check: Callable[[Config], None] = lambda _: None,
        why: tuple[str, str] = SIGHUP,
    ) -> AppliedView:
        """All or nothing; in force on every worker and on disk when it returns. Raises ChangeError, EngineError.

        check: may refuse, by raising, to change the config that it gets."""
        changes = [_stamped(change, int(time.time())) for change in changes]
        with self._lock:
            check(self.engine.config)
            new = plan.apply(self.engine.config, changes)
            if not dry_run:
                self._enforce(new, changes, why)
                for change in changes:
                    if isinstance(change, ServiceZero):
                        self.engine.zero(change.key)
                    if isinstance(change, AclRecheck):
                        self.engine.recheck()
            return AppliedView(applied=len(changes), snapshot=self.engine.snapshot)

    def edit(self, make: Callable[[Config], Config]) -> tuple[Config, Config]:
        """A change said by its result: `make` gives the new config from the one in force, and may refuse by raising.
        -> the config before and after."""
        with self._lock:
            old = self.engine.config
            changes = plan.diff(old, make(old))
            self._enforce(plan.apply(old, changes), changes)
            return old, self.engine.config

    def _enforce(self, new: Config, changes: Sequence[Change], why: tuple[str, str] = SIGHUP) -> None:
        """In force, in the audit log and on disk, or all as it was."""
        old = self.engine.config
        if new == old:
            return
        self.engine.commit(new)
        try:
            self.record(old, new, why)
            self._remember(changes, new)
        except EngineError:
            self.engine.commit(old)
            raise
        self.publish(old, new, why)

    def record(self, old: Config, new: Config, why: tuple[str, str] = SIGHUP) -> None:
        """What has come into force, and by whom, is in the audit log when this returns. why: when nobody asked by the
        API. Raises EngineError."""
        asked = ASKED.get()
        who = asked.as_json() if asked else {"who": "fnat", "from": why[0], "what": why[1]}
        self.audit.write({**who, "status": 200, "snapshot": self.engine.snapshot, **differences(old, new)})
        if asked is not None:
            asked.recorded = True

    def publish(self, old: Config, new: Config, why: tuple[str, str] = SIGHUP) -> None:
        """Tell those who follow /v1/events, if anything differs."""
        asked = ASKED.get()
        changed = differences(old, new)
        if not changed["changed"]:
            return
        data = {
            "time": round(time.time(), 3),
            "who": asked.caller.name if asked else "fnat",
            "from": asked.caller.remote if asked else why[0],
            "snapshot": self.engine.snapshot,
            "resources": [part["resource"] for part in changed["changed"]],
            "omitted": changed.get("omitted", 0),
        }
        self.events.publish("change", data)

    def end_drains(self, now: float) -> None:
        """Drains whose time is over by now (seconds since 1970): what is left on their servers is ended, once a call,
        and clients that are persistent to them go elsewhere."""
        over = [
            (service, server)
            for service, server in self.engine.draining()
            if server.drain is not None and server.drain.until is not None and server.drain.until <= now
        ]
        for service, server in over:
            ref = ServiceRef(proto=service.proto, vip=service.vip, vport=service.vport)
            if server.drain is not None and server.drain.keep_persistent:
                drain = ServerDrain(service=ref, rip=server.rip, rport=server.rport, until=server.drain.until)
                self.change([drain], why=TIMER)
            if ended := self.engine.end_drained(service, server):
                name = f"{server.rip} {server.rport}"
                log.info("the drain of %s of %s is over: %d connections ended", name, service.key, ended)

    def shift_weights(self, now: float) -> None:
        """Weights that are on the move are as they shall be now (seconds since 1970); each step is on disk."""
        changes: list[Change] = []
        for service in self.engine.shifting():
            ref = ServiceRef(proto=service.proto, vip=service.vip, vport=service.vport)
            weight = {server.key: server.weight for server in service.servers}
            for shift in service.shifts:
                assert shift.weights is not None
                moved, to = shift.moved(now), (shift.to_rip, shift.to_rport)
                if weight[shift.key] != shift.weights[0] - moved or weight[to] != shift.weights[1] + moved:
                    changes.append(_weigh(ref, shift.key, shift.weights[0] - moved))
                    changes.append(_weigh(ref, to, shift.weights[1] + moved))
                    if moved < shift.weights[0]:
                        changes.append(ServerShift(service=ref, **shift.model_dump()))
        if changes:
            self.change(changes, why=TIMER)

    def expire(self, now: int) -> int:
        """Take out the entries of sets whose time is over; the time at which the next one ends, 0: none does."""
        with self._lock:
            old = self.engine.config
            config = plan.expire(old, now)
            if config is not old:
                self.engine.commit(config)
                self.record(old, config, TIMER)
                self.publish(old, config, TIMER)
                self.file = plan.expire(self.file, now)
            return min(filter(None, (s.next_end() for s in config.sets)), default=0)

    # ---- the file ----

    def diff(self, text: str | None, name: str) -> DiffView:
        """What applying the text would do; None: that of the file of the start. Raises ConfigError."""
        text, name = (configuration.read(self._path()), str(self._path())) if text is None else (text, name)
        with self._lock:
            return self._view(self._plan(text, name))

    def apply(self, text: str | None, name: str, *, confirm: int = 0, why: str = "apply") -> ApplyView:
        """Make the text of a file the intent, with the overlay on top; all or nothing. confirm: seconds after which it
        is taken back unless confirmed; text None: that of the file of the start. Raises FnatError."""
        text, name = (configuration.read(self._path()), str(self._path())) if text is None else (text, name)
        with self._lock:
            self._refuse_while_unconfirmed()
            planned = self._plan(text, name)
            if planned.file.api != self.file.api:
                from fnat.listener import check as check_api

                check_api(planned.file.api)
            view = self._view(planned)
            self._switch(planned, text, name, confirm, why)
            for conflict in planned.conflicts:
                log.warning("%s", conflict)
            snapshot, number = self.engine.snapshot, self.source.generation or 0
            return ApplyView(**view, generation=number, snapshot=snapshot, confirm_in=self._confirm_in())

    def confirm(self) -> None:
        """What was applied for a time stays. Raises ChangeError, EngineError."""
        with self._lock:
            if self._confirm_by is None:
                raise ChangeError(404, "FN-1209", "nothing waits for a confirmation", "see `fnat history`")
            self._overlay.confirm()
            self._confirm_by = self._applied = None

    def revert_if_due(self) -> None:
        """Take back what was not confirmed in time."""
        with self._lock:
            if self._confirm_by is not None and time.monotonic() >= self._confirm_by:
                self._revert()
                log.warning(
                    "nobody confirmed the configuration: generation %s is in force again", self.source.generation
                )

    def rollback(self, number: int | None = None) -> ApplyView:
        """Apply a text of the history; None: the one before, or what a confirmation is waited for. Raises FnatError."""
        with self._lock:
            if number is None and self._confirm_by is not None:
                old = self.engine.config
                conflicts = self._revert()
                view = self._view(_Plan(self.file, self.engine.config, self.source.ports, conflicts), old)
                number, snapshot = self.source.generation or 0, self.engine.snapshot
                return ApplyView(**view, generation=number, snapshot=snapshot, confirm_in=None)
        if number is None:
            number = max((n for n in self.history.numbers() if n < (self.source.generation or 0)), default=None)
            if number is None:
                raise ChangeError(404, "FN-1209", "there is no earlier configuration", "see `fnat history`")
        generation = self.history.get(number)
        return self.apply(generation.text, generation.source, why=f"rollback to {number}")

    def save(self) -> ApplyView:
        """Write the overlay into the file that fnat was started with; the text before stays in the history. Raises
        FnatError."""
        with self._lock:
            self._refuse_while_unconfirmed()
            path, config = self._path(), self.engine.config
            if configuration.read(path) != self.source.text:
                raise ConfigError(
                    "FN-1113",
                    f"{path} is not what is in force (generation {self.source.generation}, from {self.source.name})",
                    "see `fnat diff`; `fnat apply` it first",
                )
            text = configuration.fold(self.source.text, str(path), self.source.node, config)
            read = configuration.parse(text, str(path), self.source.node).config
            planned = _Plan(self._with_ports(read), config, read.ports)
            view = self._view(planned, self.file)
            number = self.history.add(text, "save", str(path), self._pinned())
            self.record(config, config)
            replace_file(path, text.encode(), path.stat().st_mode & 0o777)
            self.file = planned.file
            self._remember_source(replace(self.source, text=text, name=str(path), generation=number), config)
            return ApplyView(**view, generation=number, snapshot=self.engine.snapshot, confirm_in=None)

    def discard(self) -> ApplyView:
        """The file alone; what the overlay said is in the answer. Raises FnatError."""
        with self._lock:
            self._refuse_while_unconfirmed()
            view = self._view(_Plan(self.file, self.file, self.source.ports))
            before = self.engine.config
            self.engine.commit(self.file)
            try:
                self.record(before, self.file)
                self._overlay.replace([])
            except EngineError:
                self.engine.commit(before)
                raise
            self.publish(before, self.file)
            number = self.source.generation or 0
            return ApplyView(**view, generation=number, snapshot=self.engine.snapshot, confirm_in=None)

    def generations(self) -> list[GenerationView]:
        return [
            GenerationView(
                number=g.number, at=g.at, why=g.why, source=g.source, in_force=g.number == self.source.generation
            )
            for g in self.history.all()
        ]

    def config_view(self, *, startup: bool = False) -> ConfigView:
        """The configuration in force as a file; or, startup, the file that it is on top of."""
        with self._lock:
            source, config = self.source, self.engine.config
            return ConfigView(
                text=source.text if startup else configuration.dump(config),
                generation=source.generation,
                source=source.name,
                file_edited=source.path is not None and digest(source.path) != self._overlay.head.get("seen"),
                confirm_in=self._confirm_in(),
                overlay=plan.describe(self.file, config),
                restart=self._waits_for_restart(self.file, self.source.ports),
            )

    def _plan(self, text: str, name: str) -> _Plan:
        loaded = configuration.parse(text, name, self.source.node)
        file = self._with_ports(loaded.config)
        overlay = plan.diff(self.file, self.engine.config)
        conflicts: list[str] = []
        if overlay:
            moved = {plan.subject(change) for change in plan.diff(self.file, file)}
            both = sorted(moved & {plan.subject(change) for change in overlay})
            conflicts = [f"file and overlay both change {subject}; the overlay wins" for subject in both]
        config = plan.apply(file, overlay, lenient=conflicts.append)
        return _Plan(file, config, loaded.config.ports, conflicts, loaded.warnings)

    def _view(self, planned: _Plan, old: Config | None = None) -> DiffView:
        """old None: the config in force."""
        old, new = old or self.engine.config, planned.config
        lines = plan.describe(old, new) + _setting_lines("host", old.host, new.host)
        lines += _setting_lines("api", old.api, new.api)
        touched: list[ServiceImpact] = []
        for each in plan.impact(old, new):
            key = each.service.key
            conns, by_server = self.engine.open_conns(each.service)
            touched.append(
                ServiceImpact(
                    service=str(key),
                    name=each.service.name,
                    conns=conns,
                    cut=conns if each.cut else sum(by_server[r.key] for r in each.cut_servers),
                    left=0 if each.cut else sum(by_server[r.key] for r in each.left_servers),
                    slots=each.slots,
                    without_rs=each.without_rs,
                )
            )
        return DiffView(
            lines=lines,
            changes=len(lines),
            impact=touched,
            vips_without_rs=plan.vips_without_rs(old, new),
            conflicts=planned.conflicts,
            restart=self._waits_for_restart(planned.file, planned.ports),
            warnings=planned.warnings,
        )

    def _switch(self, planned: _Plan, text: str, name: str, confirm: int, why: str) -> None:
        """Put it in force, then on disk."""
        before, file_before, source = self.engine.config, self.file, self.source
        if source.generation is None:
            source = replace(source, generation=self.history.add(source.text, "start", source.name))
        number = self.history.add(text, why, name, [source.generation or 0])
        head: dict[str, Any] = {}
        if confirm:
            back = {"on": source.generation, "changes": self._in_overlay(before)}
            head["confirm"] = {"until": time.time() + confirm, "seconds": confirm, **back}
        self.engine.commit(planned.config)
        try:
            self.record(before, planned.config)
            self.file = planned.file
            self._remember_source(
                replace(source, text=text, name=name, generation=number, ports=planned.ports), planned.config, head
            )
        except EngineError:
            self.file = file_before
            self.engine.commit(before)
            raise
        self._confirm_by = time.monotonic() + confirm if confirm else None
        self._applied = planned.config if confirm else None
        self.publish(before, planned.config)

    def _revert(self) -> list[str]:
        """Back to what was before, with what was changed since on top."""
        assert self._applied is not None
        back = self._overlay.head["confirm"]
        generation = self.history.get(back["on"])
        read = configuration.parse(generation.text, generation.source, self.source.node).config
        file, source = self._with_ports(read), replace(self.source, ports=read.ports, generation=back["on"])
        since = plan.diff(self._applied, self.engine.config)
        conflicts: list[str] = []
        config = plan.apply(file, [*CHANGES.validate_python(back["changes"]), *since], lenient=conflicts.append)
        before, file_before = self.engine.config, self.file
        self.engine.commit(config)
        try:
            self.record(before, config, UNCONFIRMED)
            self.file = file
            self._remember_source(replace(source, text=generation.text, name=generation.source), config)
        except EngineError:
            self.file = file_before
            self.engine.commit(before)
            raise
        self._confirm_by = self._applied = None
        self.publish(before, config, UNCONFIRMED)
        for conflict in conflicts:
            log.warning("%s", conflict)
        return conflicts

    def _remember_source(self, source: Source, config: Config, head: dict[str, Any] | None = None) -> None:
        """On disk: what is in force, on top of which text. self.file is that text's config."""
        seen = digest(source.path) if source.path else None
        new = {"on": source.generation, "seen": seen, "run": source.run, **(head or {})}
        self._overlay.replace(self._in_overlay(config), new)
        self.source = source

    def _refuse_while_unconfirmed(self) -> None:
        if (left := self._confirm_in()) is not None:
            raise ChangeError(
                409,
                "FN-1208",
                f"generation {self.source.generation} waits for its confirmation, another {left:.0f} s",
                "`fnat apply --confirmed` keeps it, `fnat rollback` takes it back",
            )

    def _confirm_in(self) -> float | None:
        return None if self._confirm_by is None else round(max(0.0, self._confirm_by - time.monotonic()), 1)

    def _pinned(self) -> list[int]:
        return [self.source.generation] if self.source.generation is not None else []

    def _path(self) -> Path:
        if self.source.path is None:
            raise ConfigError("FN-1114", "fnat runs without a configuration file", "name one: `fnat apply FILE`")
        return self.source.path

    def _waits_for_restart(self, file: Config, ports: Sequence[Port]) -> list[str]:
        """What the data plane was not started with."""
        lines = []
        if (runs := self.source.host) is not None:
            for key in AT_START:
                now, wanted = getattr(runs, key), getattr(file.host, key)
                if now != wanted:
                    lines.append(f"host.{key} {now} -> {wanted}: at the next start of fnat")
        devices = {p.name: p.device for p in self.engine.ports}
        for port in ports:
            if port.name not in devices:
                lines.append(f"port {port.name}: opened at the next start of fnat")
            elif port.nic and devices[port.name] and port.nic != devices[port.name]:
                lines.append(f"port {port.name} {devices[port.name]} -> {port.nic}: at the next start of fnat")
        return lines

    def status(self) -> StatusView:
        engine = self.engine
        return StatusView(
            version=__version__,
            pids=self._pids(),
            uptime=round(time.monotonic() - self._started, 3),
            workers=engine.worker_count,
            conns=engine.plane.counters().get("conns", 0),
            capacity=engine.capacity,
            snapshot=engine.snapshot,
            huge_pages=engine.huge_page_size,
            longest_step_ns=engine.longest_steps(),
            steering={port.name: engine.steering_of(port) for port in engine.ports},
        )

    def _overlaid(self) -> list[Change]:
        try:
            return CHANGES.validate_python(self._overlay.load())
        except (ValidationError, KeyError, TypeError) as error:
            raise EngineError(
                "FN-1304",
                f"{self._overlay.path} holds a change that this version does not know: {error!r:.200}",
                "run the version that wrote it, or delete the file to lose the changes in it",
            ) from None

    def _pids(self) -> PidsView:
        pids: dict[str, int] = {}
        if self._paths is not None:
            with contextlib.suppress(OSError, ValueError):
                pids = json.loads(self._paths.pids.read_text())
        return PidsView(keeper=pids.get("keeper") or None, dataplane=pids.get("dataplane") or None, control=os.getpid())

    def _remember(self, changes: Sequence[Change], config: Config) -> None:
        self._overlay.append([change_as_json(c) for c in changes if not isinstance(c, ServiceZero | AclRecheck)])
        if self._overlay.is_long and (self._shortening is None or not self._shortening.is_alive()):
            self._shortening = threading.Thread(
                target=self._shorten_aside, args=(config, self._overlay.mark()), daemon=True
            )
            self._shortening.start()

    def _shorten(self, config: Config) -> None:
        self._overlay.replace(self._in_overlay(config))

    def _shorten_aside(self, config: Config, mark: tuple[int, int, int]) -> None:
        """The overlay anew, as short as it can be, while changes go on. config: what the overlay says at the mark."""
        try:
            changes = self._in_overlay(config)
            prepared = self._overlay.prepare(changes)
            with self._lock:
                self._overlay.shorten(prepared, changes, mark)
        except FnatError as error:
            log.error("the overlay stays long: %s", error)

    def _in_overlay(self, config: Config) -> list[dict[str, Any]]:
        return [change_as_json(c) for c in plan.diff(self.file, config)]

    def _with_ports(self, config: Config) -> Config:
        """The config on the ports that are open. Raises ConfigError when it needs others."""
        said = {p.name: p for p in config.ports}
        opened = [(p.name, p.device or None) for p in self.engine.ports]
        ports = tuple(
            said[name] if name in said and said[name].nic in (None, nic) else Port(name=name, nic=nic)
            for name, nic in opened
        )
        names = [p.name for p in ports]
        wanted = dict.fromkeys(a.port for a in config.addresses)
        wanted |= dict.fromkeys(port for ports in config.services.lips.values() for port in ports)
        missing = next((port for port in wanted if port not in names), None)
        if missing is not None:
            raise ConfigError(
                "FN-1110", f"the file needs a port {missing!r}", f"the open ports are: {', '.join(names) or 'none'}"
            )
        return config.model_copy(update={"ports": ports})


def _setting_lines(table: str, old: Host | Api, new: Host | Api) -> list[str]:
    before, after = old.model_dump(), new.model_dump()
    before |= {f"timeouts.{k}": v for k, v in before.pop("timeouts", {}).items()}
    after |= {f"timeouts.{k}": v for k, v in after.pop("timeouts", {}).items()}
    return [
        f"~ {table}.{key}: {plan.shown(before[key])} -> {plan.shown(value)}"
        for key, value in after.items()
        if value != before[key]
    ]


def _weigh(service: ServiceRef, server: tuple[str, int], weight: int) -> ServerSet:
    return ServerSet(service=service, rip=server[0], rport=server[1], weight=weight)


def _stamped(change: Change, now: int) -> Change:
    """Entries with their end instead of a timeout: what is remembered must not depend on when it is read."""
    if isinstance(change, SetAdd | SetEntryAdd) and any(" timeout " in entry for entry in change.entries):
        return change.model_copy(update={"entries": tuple(stamped(entry, now) for entry in change.entries)})
    return change


# ---- the process ----


def _wait_for_ports(paths: Paths) -> list[PortInfo]:
    deadline = time.monotonic() + PORTS_PATIENCE
    while True:
        try:
            return [PortInfo.model_validate(port) for port in json.loads(paths.ports.read_text())]
        except FileNotFoundError:
            if time.monotonic() > deadline:
                raise EngineError(
                    "FN-1305", f"the data plane has not opened its ports in {PORTS_PATIENCE:g} s", "look at its log"
                ) from None
        except ValueError as error:
            raise EngineError("FN-1305", f"{paths.ports} is damaged: {error}", "start fnat again") from None
        time.sleep(0.02)


def _steering(ports: Sequence[PortInfo]) -> dict[str, Steering]:
    found: dict[str, Steering] = {}
    for port in ports:
        if port.kind == "xdp":
            from fnat.drivers import xdp

            found[port.name] = xdp.Steering(port.device)
        else:
            found[port.name] = NoSteering()
    return found


def _rules(plane: Plane, ports: Sequence[PortInfo]) -> dict[str, LipRules]:
    """Of the ports that the data plane steers by flow rules."""
    workers = plane.info()["workers"]
    by_rules = [port for port in ports if plane.steering(port.id, "tcp4").note.startswith("ntuple")]
    return {port.name: LipRules(KernelNic(port.device), workers) for port in by_rules}


def _ask_to_look() -> None:
    """The data plane holds the solicited-node groups of owned IPv6 addresses; the keeper hands the word on."""
    keeper = os.getppid()
    if os.environ.get("FNAT_KEEPER") == str(keeper):
        os.kill(keeper, LOOK_AGAIN)


def _source(options: Options, overlay: Overlay, history: History) -> tuple[Source, Config]:
    """What is the intent at this start. Raises FnatError."""
    path, run = Path(options["config"]) if options["config"] else None, os.environ.get("FNAT_RUN")
    source = Source(path=path, node=options["node"], run=run)
    known = intent(overlay, history, path, run)
    if known is not None:
        source = replace(source, text=known.text, name=known.source, generation=known.number)
        if path is not None and known.source != str(path):
            say(f"generation {known.number} from {known.source} is in force, not {path}; see `fnat diff`")
    elif path is not None:
        source = replace(source, text=configuration.read(path), name=str(path))
    if known is None and path is None:
        config = Config(node=options["node"])
    else:
        loaded = configuration.parse(source.text, source.name, options["node"])
        config = loaded.config
        for warning in loaded.warnings:
            say(warning)
    at_start = {key: options[key] for key in ("conns", "workers", "cpus", "idle", "steering")}
    return replace(source, host=config.host.model_copy(update=at_start), ports=config.ports), config


def build(options: Options) -> Control:
    """Everything up to the first picture: attach, load, but nothing in force yet. Raises FnatError."""
    paths = Paths(Path(options["state_dir"]), Path(options["socket"]))
    overlay = Overlay(paths.overlay)
    source, file = _source(options, overlay, History(paths.history))
    ports = _wait_for_ports(paths)
    from fnat._core import Plane

    try:
        plane = Plane.attach(str(paths.arena))
    except OSError as error:
        raise EngineError("FN-1305", f"no data plane in {paths.arena}: {error.strerror}", "start fnat again") from None
    ids = Ids(paths.ids)
    ids.load()
    engine = Engine(plane, _steering(ports), ports, ids, rules=_rules(plane, ports), groups=_ask_to_look)
    return Control(engine, overlay, paths, file, source)


async def serve(control: Control, options: Options) -> None:
    """Put the configuration in force, then answer until SIGTERM or SIGINT. Raises FnatError when it cannot begin."""
    stop, reload = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, reload.set)
    from fnat import api, listener

    path = Path(options["socket"])
    listening = api.listen(path)
    access = Access(control.file.api)
    app = api.create_app(control, access=access)
    remote = listener.Remote(app)
    server = listener.Server(app, control.file.api.connections)
    opened = functools.partial(_open, control, access, remote, server, path, asyncio.Lock())
    tasks = [asyncio.create_task(_sample(control))]
    try:
        tasks.append(await _mirror_host(control))
        await asyncio.to_thread(control.start)
        await opened()
        tasks.append(asyncio.create_task(_watch(control, access, opened)))
        tasks.append(asyncio.create_task(_expire(control)))
        tasks.append(asyncio.create_task(_reload(control, reload, opened)))
        answering = asyncio.create_task(server.serve([listening]))
        stopping = asyncio.create_task(stop.wait())
        _ready(control)
        await asyncio.wait({answering, stopping}, return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True
        stopping.cancel()
        await asyncio.gather(answering, remote.close())
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        listening.close()
        path.unlink(missing_ok=True)


async def _open(
    control: Control, access: Access, remote: Remote, local: Server, path: Path, turn: asyncio.Lock
) -> None:
    """Let callers in as [api] says now. What cannot be is said; all the rest goes on."""
    from fnat import listener

    async with turn:
        api = control.file.api
        access.use(api)
        local.most = api.connections
        try:
            listener.admit(path, api.group)
            await remote.open(api)
        except FnatError as error:
            say(f"the API stays as it is: {error}")


async def _mirror_host(control: Control) -> asyncio.Task[None]:
    """The running host mirror. Its first picture is awaited, so that the first snapshot has the host's routes."""
    from fnat.host import Mirror

    engine = control.engine
    mirror = Mirror(engine, engine.ports, routes=control.file.host.routes == "kernel")
    task = asyncio.create_task(mirror.run())
    ready = asyncio.create_task(mirror.ready.wait())
    await asyncio.wait({task, ready}, timeout=MIRROR_PATIENCE, return_when=asyncio.FIRST_COMPLETED)
    if not ready.done():
        ready.cancel()
        log.error("the host's routes are not known; only routes given by command are in force until they are")
    return task


async def _sample(control: Control) -> None:
    """Rates, giving back what nothing counts for any more, drains whose time is over, weights on the move."""
    engine = control.engine
    while True:
        started = time.monotonic()
        try:
            await asyncio.to_thread(engine.sample, started)
            await asyncio.to_thread(engine.sweep)
            await asyncio.to_thread(control.end_drains, time.time())
            await asyncio.to_thread(control.shift_weights, time.time())
        except (OSError, FnatError) as error:
            log.error("reading counters failed: %s", error)
        cost = time.monotonic() - started
        await asyncio.sleep(max(SAMPLE_EVERY - cost, 50 * cost - cost))


async def _watch(control: Control, access: Access, opened: Callable[[], Awaitable[None]]) -> None:
    """Take back what was not confirmed, and take up what [api] says after an apply or a rollback."""
    while True:
        await asyncio.sleep(LOOK_EVERY)
        try:
            await asyncio.to_thread(control.revert_if_due)
        except (OSError, FnatError) as error:
            log.error("the configuration that nobody confirmed could not be taken back: %s", error)
        if control.file.api != access.api:
            await opened()


async def _expire(control: Control) -> None:
    """Entries of sets end on time; one that is added meanwhile is seen within half a second."""
    while True:
        pause = 0.5
        try:
            end = await asyncio.to_thread(control.expire, int(time.time()))
            pause = max(0.005, min(pause, end - time.time())) if end else pause
        except (OSError, FnatError) as error:
            log.error("entries of sets did not end: %s", error)
        await asyncio.sleep(pause)


async def _reload(control: Control, asked: asyncio.Event, opened: Callable[[], Awaitable[None]]) -> None:
    """Apply the file whenever asked, and read certificates anew; a wrong file changes nothing."""
    while True:
        await asked.wait()
        asked.clear()
        notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            done = await asyncio.to_thread(lambda: control.apply(None, "", why="SIGHUP"))
        except FnatError as error:
            for each in (error, *error.others):
                say(f"the configuration stays as it is: {each}")
        else:
            for line in done["restart"]:
                say(f"the file wants a restart: {line}")
            say(f"configuration read again: {done['changes']} changes, generation {done['generation']}")
            await opened()
        _ready(control)


def _ready(control: Control) -> None:
    """The configuration is in force, and the socket listens."""
    notify("READY=1", f"STATUS={len(control.engine.config.services)} services in force")


def share_time() -> None:
    """Settings of the interpreter for a process in which a change shall not wait for a long listing."""
    gc.set_threshold(*GARBAGE)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a connection is a descriptor
    sys.setswitchinterval(SWITCH)


def main() -> int:
    """Run until SIGTERM or SIGINT: 0; CANNOT_START after one line that says why."""
    die_with_parent()
    share_time()
    options = read_options()
    logging.basicConfig(
        level=options.get("log", "info").upper(), format="fnat: %(message)s", stream=sys.stderr, force=True
    )
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        asyncio.run(serve(build(options), options))
    except FnatError as error:
        say(str(error))
        return CANNOT_START
    except Exception as error:  # a defect: one line all the same; the keeper starts control again
        where = traceback.extract_tb(error.__traceback__)[-1]
        say(f"control ended by a defect: {type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
