"""The data plane process: one plane of shared memory, the ports' queues, and one C thread for each worker.

It imports only the Cython door and the drivers and decides nothing: services, addresses and routes come from control
through the plane. It either opens everything or leaves nothing attached: a failure is one line and exit code
CANNOT_START.

Order of opening: plane, ports (XDP program, queues, punt TAP), ports file, threads. Closing is the mirror.
Every few seconds it looks whether a NIC deals its packets otherwise than before (steering.py), and tells the workers.
It is a member of the solicited-node groups of the IPv6 addresses that the XDP programs own (groups.py), so a control
that dies leaves none; it looks at them when control asks (LOOK_AGAIN), and again every few seconds.

Unsatisfying: a second worker on a NIC with one queue is refused, because each worker sends through a queue of its
own; and a TAP has one queue, so exclusive ports work with one worker only.
"""

from __future__ import annotations

import array
import errno
import fcntl
import hashlib
import logging
import os
import shutil
import signal
import socket
import struct
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import TypedDict

from fnat import _core, placement, steering
from fnat.drivers import DriverError
from fnat.ethtool import Facts, KernelNic, queue_count
from fnat.grammar import steering_text
from fnat.groups import Groups
from fnat.keeper import (
    CANNOT_START,
    LOOK_AGAIN,
    Options,
    PortOption,
    die_with_parent,
    read_options,
    say,
    write_json,
)
from fnat.paths import PUNT, SHARED_MEMORY, Paths
from fnat.sizes import ACL_ENTRIES, frames_of, sizes

RING = 2048  # descriptors of each AF_XDP ring
SPIN_US = 50  # microseconds without work before a worker sleeps
IFNAMSIZ = 16  # of a device name, its zero included (netdevice(7))
MAX_MTU = 3500  # one 4 KiB frame with headroom
LOOK_EVERY = 5.0  # seconds between two looks at how the NICs steer
OWNER_PATIENCE = 5.0  # seconds to wait for an earlier data plane to let go of the arena

_SIOCGIFMTU, _SIOCGIFHWADDR = 0x8921, 0x8927


class CannotStart(Exception):
    """One line: what, where, how to mend."""


class PortInfo(TypedDict):
    """One entry of the ports file."""

    id: int
    name: str
    kind: str
    device: str
    mac: str
    mtu: int
    ifindex: int
    mode: str
    zero_copy: bool
    exclusive: bool
    queues: int


# ---- the machine ----


def _ask_device(device: str, request: int) -> bytes:
    """A network ioctl's answer for a device (netdevice(7)), the part after the name."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        return fcntl.ioctl(sock, request, struct.pack("16s24x", device.encode()))[16:]


def device_mac(device: str) -> str:
    return _ask_device(device, _SIOCGIFHWADDR)[2:8].hex(":")


def device_mtu(device: str) -> int:
    return int(struct.unpack_from("i", _ask_device(device, _SIOCGIFMTU))[0])


def _possible_cpus() -> set[int]:
    """CPUs that the kernel lets this process run on, whatever it was started with."""
    before, found = os.sched_getaffinity(0), set()
    for cpu in range(os.cpu_count() or 1):
        try:
            os.sched_setaffinity(0, {cpu})
            found.add(cpu)
        except OSError:  # offline, or another cpuset's
            continue
    os.sched_setaffinity(0, before)
    return found


# ---- the arena ----


def _huge_page_mounts() -> list[Path]:
    """hugetlbfs mounts whose pages are not all taken, smallest pages first."""
    found = []
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if kind == "hugetlbfs":
            size = os.statvfs(where).f_bsize  # of a page; a mount without size= does not tell how many are free
            free = Path(f"/sys/kernel/mm/hugepages/hugepages-{size >> 10}kB/free_hugepages")
            if free.exists() and int(free.read_text()):
                found.append((size, Path(where)))
    return [where for _, where in sorted(found)]


def _arena_candidates(paths: Paths) -> list[Path]:
    """Where the arena may lie, best first: where it is already, huge pages, shared memory."""
    if paths.arena_link.is_symlink() and paths.arena.is_dir():
        return [paths.arena]
    return [mount / paths.arena_name for mount in (*_huge_page_mounts(), SHARED_MEMORY)]


def _create_plane(directory: Path, options: Options, sockets_per_worker: int) -> _core.Plane:
    """The plane of these options in this directory; what an earlier run left is taken up when the layout is the
    same."""
    workers = options["workers"]
    room = sizes(
        conns=options["conns"],
        workers=workers,
        frames=frames_of(sockets_per_worker, RING),
        acl_entries=options.get("acl_entries", ACL_ENTRIES),
    )
    deadline = time.monotonic() + OWNER_PATIENCE
    fresh = False
    while True:
        try:
            return _core.Plane.create(
                str(directory),
                **room,
                fresh=fresh,
            )
        except OSError as error:
            if error.errno == errno.EBUSY and time.monotonic() < deadline:
                time.sleep(0.05)
            elif error.errno == errno.EPROTO and not fresh:
                say(
                    "the connections of an earlier run have another layout (workers, conns or version); "
                    "starting without them"
                )
                fresh = True
            else:
                raise


def open_plane(paths: Paths, options: Options, sockets_per_worker: int, undo: ExitStack) -> _core.Plane:
    """The plane, on huge pages when there are enough, else in shared memory; the link names where. `undo` removes the
    files if they are new."""
    candidates = _arena_candidates(paths)
    for directory in candidates:
        if not directory.is_dir():
            undo.callback(shutil.rmtree, directory, ignore_errors=True)
            directory.mkdir(mode=0o700)
        try:
            plane = _create_plane(directory, options, sockets_per_worker)
        except OSError as error:
            if directory != candidates[-1]:
                undo.close()
                say(f"not enough huge pages in {directory.parent} for {options['conns']} connections")
                continue
            raise CannotStart(_why_no_plane(error, directory, options)) from error
        if not paths.arena_link.is_symlink() or paths.arena != directory:
            paths.arena_link.unlink(missing_ok=True)
            paths.arena_link.symlink_to(directory)
            undo.callback(paths.arena_link.unlink, missing_ok=True)
        return plane
    raise CannotStart("no place for the arena: neither hugetlbfs nor /dev/shm is mounted; mount one of them")


def _why_no_plane(error: OSError, directory: Path, options: Options) -> str:
    if error.errno == errno.EBUSY:
        return f"the arena {directory} is in use by another process; stop that first"
    if error.errno in (errno.ENOSPC, errno.ENOMEM):
        return (
            f"not enough memory in {directory.parent} for {options['conns']} connections; lower --conns, or free memory"
        )
    if error.errno == errno.EINVAL:
        return f"{options['conns']} connections on {options['workers']} worker(s) are more than possible; lower --conns"
    return f"cannot create the arena {directory}: {error.strerror}; remove it with `fnat stop --clean`"


# ---- ports ----


def _xdp() -> ModuleType:
    """The AF_XDP driver, loaded only where a port asks for it."""
    from fnat.drivers import xdp

    return xdp


def _made_up_mac(device: str, side: int) -> str:
    """A locally administered address that stays the same from run to run."""
    return bytes([2, side, *hashlib.blake2s(device.encode(), digest_size=4).digest()]).hex(":")


def check_port(port: PortOption, options: Options) -> None:
    """Refuse what cannot work before anything is opened."""
    name, device, workers = port["name"], port["device"], options["workers"]
    exclusive = name in options["exclusive"]
    if port["kind"] not in ("xdp", "tap"):
        raise CannotStart(f"port {name}: unknown kind {port['kind']!r}; use xdp:{device} or tap:{device}")
    if exclusive and len(name) + len(PUNT) > IFNAMSIZ - 1:
        most = IFNAMSIZ - 1 - len(PUNT)
        raise CannotStart(
            f"port {name}: TAP {name}{PUNT} has too long a name; choose a port name of at most {most} characters"
        )
    if workers > 1 and (exclusive or port["kind"] == "tap"):
        raise CannotStart(f"port {name}: a TAP has one queue, too few for {workers} workers; use --workers 1")
    if port["kind"] == "tap":
        if exclusive:
            raise CannotStart(
                f"port {name}: a TAP has no host behind it and cannot be exclusive; leave --exclusive out for it"
            )
        if len(device) > IFNAMSIZ - 1:
            raise CannotStart(
                f"port {name}: {device} is longer than {IFNAMSIZ - 1} characters; choose a shorter device name"
            )
        return
    if device_mtu(device) > MAX_MTU:
        message = f"port {name}: MTU {device_mtu(device)} of {device} is above {MAX_MTU}"
        raise CannotStart(f"{message}; lower it with `ip link set {device} mtu {MAX_MTU}`")
    queues = queue_count(device)
    if queues < workers:
        message = f"port {name}: {device} has {queues} receive queue(s), too few for {workers} workers"
        raise CannotStart(f"{message}; use --workers {queues}, or `ethtool -L {device} combined {workers}`")


def _check_all(options: Options) -> None:
    """The command has looked at names and privileges; here is what only the machine can tell."""
    ports = options["ports"]
    if len(ports) > _core.MAX_PORTS:
        raise CannotStart(f"{len(ports)} ports, at most {_core.MAX_PORTS} are possible; leave some out")
    devices = [port["device"] for port in ports]
    double = next((device for device in devices if devices.count(device) > 1), None)
    if double:
        raise CannotStart(f"two ports are {double}; give each port its own device")
    for port in ports:
        check_port(port, options)


class DataPlane:
    """Everything open, and the threads. `undo` closes in mirror order."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.paths = Paths(Path(options["state_dir"]), Path(options["socket"]))
        self.stop_flag = array.array("i", [0])
        self.failed = False
        self.undo = ExitStack()
        self.new_arena = ExitStack()  # removes what this run has made; only a failed start wants that
        self.attached: list[str] = []  # devices with our XDP program
        self.nics: dict[int, steering.Nic] = {}  # by port id
        self.facts: dict[int, Facts] = {}
        self.groups: list[Groups] = []
        self.complaints: set[str] = set()  # said already
        self.cpus: tuple[int, ...] = ()
        self.workers: list[_core.Worker] = []
        self.threads: list[threading.Thread] = []

    def open(self) -> None:
        """Everything, or DriverError, OSError or CannotStart; `close` undoes what was done."""
        _check_all(self.options)
        self._choose_cpus()
        plane = open_plane(self.paths, self.options, self._sockets_per_worker(), self.new_arena)
        self.undo.callback(plane.close)
        self.plane = plane
        self.workers = [_core.Worker(plane, index) for index in range(self.options["workers"])]
        self.undo.callback(self._detach_programs)
        self.undo.callback(self._close_queues)
        ports = []
        for id, port in enumerate(self.options["ports"]):
            if port["kind"] == "xdp":
                ports.append(self._open_xdp(id, port))
            else:
                ports.append(self._open_tap(id, port))
        self._steer_at_start()
        self.undo.callback(self.paths.ports.unlink, missing_ok=True)
        write_json(self.paths.ports, ports)
        self.new_arena.pop_all()
        self._report(plane.info(), ports)

    def _report(self, info: _core.PlaneInfo, ports: list[PortInfo]) -> None:
        """What an operator wants to know of this start."""
        if not info["huge_page_size"]:
            say(
                "no huge pages: using ordinary ones (slower with many connections); reserve some with "
                "`sysctl vm.nr_hugepages=N` and mount a hugetlbfs, or use Linux 6.1 or newer"
            )
        if info["restored"]:
            say(f"took up {info['restored']} connections of the earlier run")
        for port in ports:
            if port["kind"] == "xdp":
                copying = "zero-copy" if port["zero_copy"] else "copying"
                host = f", host at {port['name']}{PUNT}" * port["exclusive"]
                how = f"{port['mode']} XDP, {copying}, {port['queues']} queue(s){host}"
                say(f"port {port['name']} is {port['device']}: {how}")
            else:
                say(f"port {port['name']} is the TAP {port['device']}")

    # ---- steering: how answers find their worker ----

    def _steer_at_start(self) -> None:
        """The rule of every port, one line each; CannotStart when what was asked for cannot be."""
        for id, port in enumerate(self.options["ports"]):
            if port["kind"] == "xdp":
                self.nics[id] = KernelNic(port["device"])
                if self.options["steering"] == "ntuple":
                    self.undo.callback(self._give_back_rules, self.nics[id])
            try:
                self._steer(id, self.options["steering"])
            except steering.CannotSteer as error:
                raise CannotStart(f"port {port['name']}: {error}") from None

    def _steer(self, id: int, wanted: steering.Wanted) -> None:
        """Put the port's rules into the plane, and say so when there is something to choose."""
        facts = self.nics[id].facts() if id in self.nics else Facts("tap", 1)
        rules = steering.choose(facts, wanted, len(self.workers))
        for flow, rule in rules.items():
            self.plane.put_steering(id, flow, rule)
        self.facts[id] = facts
        if len(self.workers) > 1:
            notes = {flow: rule.note for flow, rule in rules.items()}
            say(f"port {self.options['ports'][id]['name']}: answers reach their worker by {steering_text(notes)}")

    def look_at_nics(self) -> None:
        """A NIC's key, table or fields may be changed by ethtool, or by the driver when its link comes back."""
        for id, nic in self.nics.items():
            try:
                if nic.facts() == self.facts[id]:
                    continue
            except OSError:  # the device is gone: control sees that
                continue
            try:
                self._steer(id, self.options["steering"])
            except steering.CannotSteer as error:
                say(f"port {self.options['ports'][id]['name']}: {error}")
                self._steer(id, "auto")

    def look_at_groups(self) -> None:
        """Hold the groups of the IPv6 addresses that are owned now."""
        for groups in self.groups:
            try:
                groups.hold(_xdp().Steering(groups.device).owned(6))
            except (OSError, DriverError) as error:
                text = f"{groups.device}: solicitations may not arrive: {getattr(error, 'strerror', None) or error}"
                if text not in self.complaints:
                    self.complaints.add(text)
                    say(text)

    def _give_back_rules(self, nic: steering.Nic) -> None:
        try:
            steering.LipRules(nic, len(self.workers)).hold(())
        except OSError as error:
            say(f"{nic.device}: flow rules could not be removed: {error.strerror}; see `ethtool -n {nic.device}`")

    def _choose_cpus(self) -> None:
        devices = [port["device"] for port in self.options["ports"] if port["kind"] == "xdp"]
        affinity = os.sched_getaffinity(0)
        try:
            chosen = placement.place(self.options["workers"], devices, self.options["cpus"], affinity, _possible_cpus())
        except ValueError as error:
            raise CannotStart(str(error)) from None
        for warning in chosen.warnings:
            say(warning)
        self.cpus = chosen.cpus

    def _sockets_per_worker(self) -> int:
        count = self.options["workers"]
        queues = [queue_count(port["device"]) if port["kind"] == "xdp" else 1 for port in self.options["ports"]]
        return sum(-(-n // count) for n in queues) + len(self.options["exclusive"])

    def _open_xdp(self, id: int, port: PortOption) -> PortInfo:
        """All receive queues of the device, dealt to the workers in turn, under our XDP program."""
        xdp, name, device = _xdp(), port["name"], port["device"]
        exclusive = name in self.options["exclusive"]
        mac, mtu = device_mac(device), device_mtu(device)
        attachment = xdp.attach(device, exclusive=exclusive)
        self.attached.append(device)
        self.groups.append(Groups(device, exclusive=exclusive))
        self.undo.callback(self.groups[-1].close)
        zero_copy = True
        queues = xdp.queue_count(device)
        for queue in range(queues):
            worker = self.workers[queue % len(self.workers)]
            handle = xdp.open_queue(device, queue, worker.pool_address, ring=RING)
            worker.attach(id, _core.Queue.from_pointer(handle.pointer))
            zero_copy = zero_copy and handle.zero_copy
        if exclusive:
            self.workers[0].attach(id, _core.TapQueue(self.workers[0], name + PUNT, mac, mtu), punt=True)
        return {
            "id": id,
            "name": name,
            "kind": "xdp",
            "device": device,
            "mac": mac,
            "mtu": mtu,
            "ifindex": attachment.ifindex,
            "mode": attachment.mode,
            "zero_copy": zero_copy,
            "exclusive": exclusive,
            "queues": queues,
        }

    def _open_tap(self, id: int, port: PortOption) -> PortInfo:
        """A TAP device whose other end is the kernel; made here, gone with the process."""
        name, device, mtu = port["name"], port["device"], 1500
        queue = _core.TapQueue(self.workers[0], device, _made_up_mac(device, 1), mtu)
        self.workers[0].attach(id, queue)
        return {
            "id": id,
            "name": name,
            "kind": "tap",
            "device": device,
            "mac": _made_up_mac(device, 0),
            "mtu": mtu,
            "ifindex": socket.if_nametoindex(device),
            "mode": "",
            "zero_copy": False,
            "exclusive": False,
            "queues": 1,
        }

    def _close_queues(self) -> None:
        for worker in self.workers:
            worker.quiesce()
            worker.detach()

    def _detach_programs(self) -> None:
        for device in self.attached:
            try:
                _xdp().detach(device)
            except DriverError as error:
                say(str(error))

    def start(self) -> None:
        for index, (worker, cpu) in enumerate(zip(self.workers, self.cpus, strict=True)):
            thread = threading.Thread(target=self._work, args=(worker, cpu), name=f"worker-{index}")
            thread.start()
            self.threads.append(thread)

    def _work(self, worker: _core.Worker, cpu: int) -> None:
        """One worker's thread; all signals are blocked, as in the thread that started it."""
        try:
            os.sched_setaffinity(0, {cpu})
            worker.run(self.stop_flag.buffer_info()[0], 0 if self.options["idle"] == "spin" else SPIN_US)
        except OSError as error:
            say(f"worker on CPU {cpu} failed: {error}")
            self.failed = True
            os.kill(os.getpid(), signal.SIGTERM)

    def close(self) -> None:
        self.stop_flag[0] = 1
        for thread in self.threads:
            thread.join()
        self.undo.close()
        self.new_arena.close()


def main() -> int:
    die_with_parent()
    logging.basicConfig(format="fnat: %(message)s", level=logging.WARNING)
    signals = {signal.SIGTERM, signal.SIGINT, LOOK_AGAIN}
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    plane = DataPlane(read_options())
    try:
        try:
            plane.open()
        except (CannotStart, DriverError) as error:
            say(str(error))
            return CANNOT_START
        except OSError as error:
            say(f"cannot start: {error}; see the kernel log (dmesg)")
            return CANNOT_START
        plane.start()
        plane.look_at_groups()  # of an earlier run
        while (info := signal.sigtimedwait(signals, LOOK_EVERY)) is None or info.si_signo == LOOK_AGAIN:
            plane.look_at_groups()
            if info is None:
                plane.look_at_nics()
    finally:
        plane.close()
    return 1 if plane.failed else 0


if __name__ == "__main__":
    sys.exit(main())
