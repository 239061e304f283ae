"""The control process: what the file and the operators want becomes what the data plane does. `python -m fnat.control`.

Truth is on disk: the file (intent), the overlay (run-time changes on top of it), the ids. A control that dies costs no
packet; the next one waits for the ports file, attaches the plane, hears the host's routes, and puts the whole picture
in force at once.

    config file ─┐
                 ├─ plan.apply ─> Config ─> Engine ─> plane, XDP programs
    overlay ─────┘                            ^
    CLI, API ── change ───────────────────────┤
    host (netlink) ── routes, neighbours, links

SIGHUP reads the file again: the overlay is replayed on it, and where both speak of one thing the overlay wins and it is
logged. SIGTERM and SIGINT end the process; the data plane goes on.

Unsatisfying: the port settings, workers and conns of the file are read at the start of the data plane only.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from fnat import __version__, plan
from fnat import config as configuration
from fnat.engine import Engine, NoSteering, Steering
from fnat.errors import ConfigError, EngineError, FnatError
from fnat.ethtool import KernelNic
from fnat.keeper import CANNOT_START, LOOK_AGAIN, Options, die_with_parent, notify, read_options, say
from fnat.model import (
    CHANGES,
    AppliedView,
    Change,
    Config,
    PidsView,
    Port,
    PortInfo,
    ServiceZero,
    StatusView,
    change_as_json,
)
from fnat.paths import Paths
from fnat.state import Ids, Overlay
from fnat.steering import LipRules

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

    from fnat._core import Plane

log = logging.getLogger("fnat.control")

PORTS_PATIENCE = 60.0  # seconds for the data plane to open its ports
MIRROR_PATIENCE = 5.0  # seconds for the first picture of the host
GARBAGE = 50_000, 10, 100  # of gc: a configuration is millions of objects that stay, and walking them takes a second
SWITCH = 0.0005  # seconds that a thread may keep the interpreter from another
SAMPLE_EVERY = 1.0  # seconds; more when sampling costs more than a fiftieth of them


class Control:
    """The configuration in force, and the way it changes. Thread-safe."""

    def __init__(
        self, engine: Engine, overlay: Overlay, paths: Paths | None = None, file: Config | None = None
    ) -> None:
        """file: the config of the file (its ports are replaced by those that are open)."""
        self.engine = engine
        self.file = self._with_ports(file or Config())
        self._overlay = overlay
        self._paths = paths
        self._lock = threading.Lock()
        self._shortening: threading.Thread | None = None
        self._started = time.monotonic()

    def start(self) -> None:
        """Put file and overlay in force. Raises FnatError."""
        changes = self._overlaid()
        config = plan.apply(self.file, changes, lenient=log.warning)
        self.engine.commit(config)
        if changes:
            self._shorten(config)

    def change(self, changes: Sequence[Change], *, dry_run: bool = False) -> AppliedView:
        """All or nothing; in force on every worker and on disk when it returns. Raises ChangeError, EngineError."""
        with self._lock:
            old = self.engine.config
            new = plan.apply(old, changes)
            if dry_run:
                return AppliedView(applied=len(changes), snapshot=self.engine.snapshot)
            if new != old:
                self.engine.commit(new)
                try:
                    self._remember(changes, new)
                except EngineError:
                    self.engine.commit(old)
                    raise
            for change in changes:
                if isinstance(change, ServiceZero):
                    self.engine.zero(change.key)
            return AppliedView(applied=len(changes), snapshot=self.engine.snapshot)

    def reload(self, file: Config) -> None:
        """The file has changed: replay the overlay on it. Raises FnatError, and the old config stays in force."""
        with self._lock:
            file = self._with_ports(file)
            overlay = plan.diff(self.file, self.engine.config)
            moved = {plan.subject(change) for change in plan.diff(self.file, file)}
            for subject in sorted(moved & {plan.subject(change) for change in overlay}):
                log.warning("file and overlay both change %s; the overlay wins", subject)
            config = plan.apply(file, overlay, lenient=log.warning)
            self.engine.commit(config)
            self.file = file
            self._shorten(config)

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
        self._overlay.append([change_as_json(c) for c in changes if not isinstance(c, ServiceZero)])
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
        ports = tuple(Port(name=p.name, nic=p.device or None) for p in self.engine.ports)
        names = [p.name for p in ports]
        wanted = [a.port for a in config.addresses] + [lip.port for s in config.services for lip in s.lips]
        missing = next((port for port in wanted if port not in names), None)
        if missing is not None:
            raise ConfigError(
                "FN-1110", f"the file needs a port {missing!r}", f"the open ports are: {', '.join(names) or 'none'}"
            )
        return config.model_copy(update={"ports": ports})


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


def _load_file(options: Options) -> Config:
    if options["config"] is None:
        return Config(node=options["node"])
    loaded = configuration.load(options["config"], options["node"])
    for warning in loaded.warnings:
        say(warning)
    return loaded.config


def build(options: Options) -> Control:
    """Everything up to the first picture: attach, load, but nothing in force yet. Raises FnatError."""
    paths = Paths(Path(options["state_dir"]), Path(options["socket"]))
    file = _load_file(options)
    ports = _wait_for_ports(paths)
    from fnat._core import Plane

    try:
        plane = Plane.attach(str(paths.arena))
    except OSError as error:
        raise EngineError("FN-1305", f"no data plane in {paths.arena}: {error.strerror}", "start fnat again") from None
    ids = Ids(paths.ids)
    ids.load()
    engine = Engine(plane, _steering(ports), ports, ids, rules=_rules(plane, ports), groups=_ask_to_look)
    return Control(engine, Overlay(paths.overlay), paths, file)


async def serve(control: Control, options: Options) -> None:
    """Put the configuration in force, then answer until SIGTERM or SIGINT. Raises FnatError when it cannot begin."""
    stop, reload = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, reload.set)
    from fnat import api

    path = Path(options["socket"])
    listening = api.listen(path)
    tasks = [asyncio.create_task(_sample(control.engine)), asyncio.create_task(_reload(control, options, reload))]
    try:
        tasks.append(await _mirror_host(control))
        await asyncio.to_thread(control.start)
        server = _server(api.create_app(control))
        answering = asyncio.create_task(server.serve([listening]))
        stopping = asyncio.create_task(stop.wait())
        _ready(control)
        await asyncio.wait({answering, stopping}, return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True
        stopping.cancel()
        await answering
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        listening.close()
        path.unlink(missing_ok=True)


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


async def _sample(engine: Engine) -> None:
    """Rates, and giving back what nothing counts for any more."""
    while True:
        started = time.monotonic()
        try:
            await asyncio.to_thread(engine.sample, started)
            await asyncio.to_thread(engine.sweep)
        except (OSError, FnatError) as error:
            log.error("reading counters failed: %s", error)
        cost = time.monotonic() - started
        await asyncio.sleep(max(SAMPLE_EVERY - cost, 50 * cost - cost))


async def _reload(control: Control, options: Options, asked: asyncio.Event) -> None:
    """Read the file again whenever asked; a wrong file changes nothing."""
    while True:
        await asked.wait()
        asked.clear()
        notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            file = await asyncio.to_thread(_load_file, options)
            await asyncio.to_thread(control.reload, file)
        except FnatError as error:
            say(f"the configuration stays as it is: {error}")
        else:
            say("configuration read again")
        _ready(control)


def _ready(control: Control) -> None:
    """The configuration is in force, and the socket listens."""
    notify("READY=1", f"STATUS={len(control.engine.config.services)} services in force")


def _server(app: FastAPI) -> uvicorn.Server:
    import uvicorn

    class Server(uvicorn.Server):
        """Leaves signals to us."""

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    return Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=2))


def share_time() -> None:
    """Settings of the interpreter for a process in which a change shall not wait for a long listing."""
    gc.set_threshold(*GARBAGE)
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
