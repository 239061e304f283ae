"""The keeper: parent of the data plane and of control. It starts them, restarts them, and stops them together.

Rules: it imports nothing but the standard library's smallest modules and does nothing that can fail later, because it
has to outlive both. A child that exits with CANNOT_START in its first life has printed its one line, and ends the
run; any later death is mended by starting the child again, after a pause that doubles up to MAX_PAUSE. A dead control
costs no packet. A dead data plane is started again over the same arena; control is then started anew, so that it
meets fresh ports. SIGHUP is handed on to control, LOOK_AGAIN to the data plane. systemd hears from control when the
configuration is in force, from the keeper when it ends.

Unsatisfying: the descriptors of the AF_XDP sockets still die with the data plane; they are to be held here.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Literal, NotRequired, TypedDict, cast

from fnat.paths import Paths

CANNOT_START = 2  # exit code of a child that printed why it cannot start
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
LOOK_AGAIN = signal.SIGUSR1  # from control, by way of the keeper: the owned IPv6 addresses have changed
STOP_PATIENCE = 10.0  # seconds between SIGTERM and SIGKILL
MAX_PAUSE = 5.0  # seconds between two starts of a child that keeps dying
GOOD_LIFE = 10.0  # seconds after which a child's earlier deaths are forgotten
_PR_SET_PDEATHSIG = 1


class PortOption(TypedDict):
    """One NIC-like device: `kind` is xdp, tap or pcap; `device` is the kernel's name of it."""

    name: str
    kind: str
    device: str


class Options(TypedDict):
    """What `fnat run` was asked for; data plane and control read the same from $FNAT_OPTIONS."""

    config: str | None
    ports: list[PortOption]
    workers: int
    socket: str
    state_dir: str
    node: str | None
    log: str
    exclusive: list[str]
    conns: int
    idle: str
    cpus: str
    steering: Literal["auto", "mask", "rss", "ntuple"]
    acl_entries: NotRequired[int]


def read_options() -> Options:
    """The options a child was started with."""
    return cast(Options, json.loads(os.environ["FNAT_OPTIONS"]))


def say(text: str) -> None:
    """One line for the operator."""
    os.write(2, f"fnat: {text}\n".encode())


def notify(*lines: str) -> None:
    """Tell systemd (sd_notify(3)), which lets every process of the unit speak; nobody when it did not start us."""
    where = os.environ.get("NOTIFY_SOCKET", "")
    if where:
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as door:
            door.sendto("\n".join(lines).encode(), "\0" + where[1:] if where.startswith("@") else where)


def die_with_parent() -> None:
    """Called first by a child: it gets SIGTERM when the keeper dies, however that happens (prctl(2))."""
    import ctypes

    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    keeper = os.environ.get("FNAT_KEEPER")
    if keeper and os.getppid() != int(keeper):
        os._exit(1)


def write_json(path: Path, value: object) -> None:
    """Replace the file at once: a reader sees the old text or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(temporary, path)


class _Child:
    """One child process, through all its lives."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.pid = 0  # 0: not running
        self.lives = 0
        self.pause = 0.0
        self.born = 0.0
        self.next_start = 0.0
        self.asked_to_end = False

    def start(self, environment: dict[str, str]) -> None:
        """A new life: its own process group (Ctrl-C is for the keeper), no signal blocked."""
        command = [sys.executable, "-m", f"fnat.{self.name}"]
        self.pid = os.posix_spawn(
            sys.executable,
            command,
            environment,
            setpgroup=0,
            setsigmask=[],
            setsigdef=[*STOP_SIGNALS, signal.SIGCHLD, signal.SIGPIPE],
        )
        self.lives += 1
        self.asked_to_end = False
        self.born = time.monotonic()

    def died(self) -> None:
        now = time.monotonic()
        self.pause = 0.1 if now - self.born > GOOD_LIFE or not self.pause else min(self.pause * 2, MAX_PAUSE)
        self.next_start = now + self.pause

    def signal(self, number: int) -> None:
        if self.pid:
            os.kill(self.pid, number)  # not reaped yet, so the number is still its own


class Keeper:
    """The two children, the state directory's lock, and the loop that waits."""

    def __init__(self, options: Options) -> None:
        self.paths = Paths(Path(options["state_dir"]), Path(options["socket"]))
        self.environment = {
            **os.environ,
            "FNAT_OPTIONS": json.dumps(options),
            "FNAT_KEEPER": str(os.getpid()),
            "FNAT_RUN": str(time.time_ns()),
            "PYTHONUNBUFFERED": "1",
        }
        self.dataplane = _Child("dataplane")
        self.control = _Child("control")
        self.children = (self.dataplane, self.control)

    def run(self) -> int:
        """Until a stop signal (0) or until a child cannot start (1). SIGHUP is for control."""
        signals = {*STOP_SIGNALS, signal.SIGHUP, LOOK_AGAIN, signal.SIGCHLD}
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        for number in (signal.SIGHUP, LOOK_AGAIN):  # inherited: a child ignores them until it says what they mean
            signal.signal(number, signal.SIG_IGN)
        try:
            self.paths.ports.unlink(missing_ok=True)
            return self._watch(signals)
        finally:
            notify("STOPPING=1")
            self._stop_children(signals)
            for path in (self.paths.pids, self.paths.ports, self.paths.socket):
                path.unlink(missing_ok=True)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _watch(self, signals: set[signal.Signals]) -> int:
        while True:
            wait = self._start_those_due()
            info = signal.sigtimedwait(signals, wait)
            if info is not None and info.si_signo in STOP_SIGNALS:
                return 0
            if info is not None and info.si_signo == signal.SIGHUP:
                self.control.signal(signal.SIGHUP)
            if info is not None and info.si_signo == LOOK_AGAIN:
                self.dataplane.signal(LOOK_AGAIN)
            for child, status in self._reap():
                code = os.waitstatus_to_exitcode(status)
                if child.lives == 1 and code == CANNOT_START:
                    return 1
                if not child.asked_to_end:
                    self._mourn(child, code)

    def _start_those_due(self) -> float:
        """Start what is dead and due; seconds until the next one is due."""
        now = time.monotonic()
        wait = 3600.0
        for child in self.children:
            if child.pid:
                continue
            if child.next_start <= now:
                child.start(self.environment)
                self._write_pids()
            else:
                wait = min(wait, child.next_start - now)
        return wait

    def _mourn(self, child: _Child, code: int) -> None:
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        child.died()
        consequence = "forwarding goes on" if child is self.control else "no packet is forwarded until it is back"
        text = f"{child.name} died ({how}); {consequence}; starting it again in {child.pause:.1f} s"
        say(text)
        notify(f"STATUS={text}")
        if child is self.dataplane:
            self.paths.ports.unlink(missing_ok=True)
            self.control.asked_to_end = True
            self.control.signal(signal.SIGTERM)
        self._write_pids()

    def _reap(self) -> list[tuple[_Child, int]]:
        dead = []
        for child in self.children:
            if child.pid:
                pid, status = os.waitpid(child.pid, os.WNOHANG)
                if pid:
                    child.pid = 0
                    dead.append((child, status))
        return dead

    def _stop_children(self, signals: set[signal.Signals]) -> None:
        for child in self.children:
            child.signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_PATIENCE
        while any(child.pid for child in self.children):
            signal.sigtimedwait(signals, 0.2)
            self._reap()
            if time.monotonic() > deadline:
                for child in self.children:
                    if child.pid:
                        say(f"{child.name} does not stop; killing it")
                        child.signal(signal.SIGKILL)
                deadline = float("inf")

    def _write_pids(self) -> None:
        pids = {"keeper": os.getpid(), "dataplane": self.dataplane.pid, "control": self.control.pid}
        write_json(self.paths.pids, pids)


def _lock(paths: Paths) -> int | str:
    """The locked descriptor, or the line that says why not."""
    try:
        paths.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        paths.socket.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        descriptor = os.open(paths.lock, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        hint = (
            "run as root, or give --state-dir and --socket"
            if isinstance(error, PermissionError)
            else "give another path"
        )
        return f"cannot use {error.filename}: {error.strerror}; {hint}"
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        pid = os.read(descriptor, 32).decode().strip() or "unknown"
        os.close(descriptor)
        return (
            f"already running as pid {pid} with state directory {paths.state_dir}; stop it, or give another --state-dir"
        )
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def run(options: Options) -> int:
    """Run fnat in the foreground until it is stopped; the exit code."""
    paths = Paths(Path(options["state_dir"]), Path(options["socket"]))
    lock = _lock(paths)
    if isinstance(lock, str):
        say(lock)
        return 1
    try:
        return Keeper(options).run()
    finally:
        os.ftruncate(lock, 0)
        os.close(lock)


def running_pid(paths: Paths) -> int | None:
    """The keeper's pid while one holds the lock."""
    try:
        descriptor = os.open(paths.lock, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.read(descriptor, 32).decode().strip()
        return int(text) if text else None
    finally:
        os.close(descriptor)
    return None


def _lives(pid: int) -> bool:
    """It lets go of the state directory before the last of it has gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return False


def stop(paths: Paths, clean: bool = False, patience: float = 2 * STOP_PATIENCE) -> int:
    """Stop a running fnat and wait for its end; with clean, remove the arena too. 0, or 3 when there was nothing to
    do."""
    try:
        pid = running_pid(paths)
        if pid is not None:
            os.kill(pid, signal.SIGTERM)
    except PermissionError:
        say("may not stop it: permission denied; run as root")
        return 1
    deadline = time.monotonic() + patience
    while pid is not None and (running_pid(paths) is not None or _lives(pid)):
        if time.monotonic() > deadline:
            say(f"pid {pid} does not stop; look at its log, or kill it")
            return 1
        time.sleep(0.02)
    had_arena = paths.arena.is_dir()
    if clean:
        shutil.rmtree(paths.arena, ignore_errors=True)
        paths.arena_link.unlink(missing_ok=True)
    if pid is None and not (clean and had_arena):
        say(f"not running (state directory {paths.state_dir}; another one is named by --state-dir)")
        return 3
    return 0
