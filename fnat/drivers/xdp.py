"""AF_XDP on a kernel device: attach the XDP program, say which addresses are ours, open a queue.

The program is attached by netlink and outlives the process. Nothing is pinned: every call finds the program through the
device and its maps through the program, so any process in the same network namespace may use `Steering`, also after the
program was replaced. Finding by id asks for CAP_SYS_ADMIN; the rest for CAP_NET_ADMIN, CAP_NET_RAW and CAP_BPF.

Order of use: attach, then open_queue for each queue, then Steering.own; to end, close the queues, then detach. Between
attach and open_queue, and after a kill, packets for owned addresses are dropped and all others pass to the host.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import os
import platform
import re
import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

from fnat.drivers import DriverError
from fnat.ethtool import queue_count

try:
    from fnat.drivers._xdp import ffi, lib
except ImportError as error:
    raise DriverError(
        f"no AF_XDP driver ({error})",
        "install libbpf1; when fnat was built without it, install libbpf-dev and clang and build fnat again",
    ) from error

log = logging.getLogger(__name__)

PROGRAM = "fnat_steer"
QUEUES = 64  # entries of the socket map in steer.bpf.c
ADDRESSES = 65536  # of each family
MIN_KERNEL = (5, 11)
_EXCLUSIVE = 1  # FLAG_EXCLUSIVE of steer.bpf.c

# linux/if_link.h
_UPDATE_IF_NOEXIST = 1 << 0
_MODE_FLAGS = {"generic": 1 << 1, "native": 1 << 2, "offload": 1 << 3}


@dataclass(frozen=True)
class Attachment:
    """Our program on a device."""

    device: str
    ifindex: int
    prog_id: int
    mode: str  # "native" or "generic"
    map_ids: dict[str, int]


@dataclass(frozen=True)
class QueueHandle:
    """An open AF_XDP socket. Once given to a worker it is the worker's to close."""

    device: str
    queue: int
    pointer: int  # struct io_queue *
    zero_copy: bool

    def stats(self) -> dict[str, int]:
        """What was lost where: the fields of struct io_stats."""
        out = ffi.new("struct io_stats *")
        lib.io_stats(ffi.cast("struct io_queue *", self.pointer), out)
        names = ("rx_dropped", "rx_full", "rx_no_frame", "tx_invalid", "tx_no_space")
        return {name: int(getattr(out, name)) for name in names}

    def close(self) -> None:
        """Close the socket; every frame is back in the pool."""
        lib.io_close(ffi.cast("struct io_queue *", self.pointer))


# ---- what went wrong, in one line ----

_MENDS = {
    errno.EPERM: ("not permitted", "run as root, or with CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_NET_RAW and CAP_BPF"),
    errno.EACCES: ("not permitted", "run as root, or with CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_NET_RAW and CAP_BPF"),
    errno.ENODEV: ("the device is gone", "see `ip link`"),
    errno.ENXIO: ("the device is gone", "see `ip link`"),
    errno.EBUSY: ("another program uses it", "stop the other program"),
    errno.EEXIST: ("another program uses it", "stop the other program"),
    errno.ENOMEM: ("out of memory", "free memory, or raise the locked-memory limit (ulimit -l)"),
    errno.ENOBUFS: ("out of memory", "free memory, or raise the locked-memory limit (ulimit -l)"),
    errno.EAFNOSUPPORT: ("the kernel has no AF_XDP", "use a kernel built with CONFIG_XDP_SOCKETS"),
    errno.ENOSYS: ("the kernel has no BPF", "use a kernel built with CONFIG_BPF_SYSCALL"),
}


def _failed(what: str, rc: int) -> DriverError:
    """The error of a call that returned -errno."""
    why, fix = _MENDS.get(-rc, (os.strerror(-rc), "see the kernel log (dmesg)"))
    return DriverError(f"{what}: {why}", fix)


def _check(what: str, rc: int) -> int:
    if rc < 0:
        raise _failed(what, rc)
    return rc


def _kernel_says(rc: int) -> str:
    """The kernel's own reason, which libbpf would print, or the errno in words."""
    text = ffi.string(lib.last_message()).decode(errors="replace").strip()
    reason = re.sub(r"^libbpf: (Kernel error message: )?", "", text)
    return reason or os.strerror(-rc)


def _ifindex(device: str) -> int:
    try:
        return socket.if_nametoindex(device)
    except OSError as error:
        known = ", ".join(name for _, name in socket.if_nameindex())
        raise DriverError(f"no device {device}", f"choose one of: {known}") from error


def _check_kernel() -> None:
    release = platform.release()
    found = re.match(r"(\d+)\.(\d+)", release)
    if found and (int(found[1]), int(found[2])) < MIN_KERNEL:
        wanted = ".".join(map(str, MIN_KERNEL))
        raise DriverError(f"Linux {release} is too old for AF_XDP as fnat uses it", f"use Linux {wanted} or newer")


# ---- programs and maps ----


class _Program(ExitStack):
    """An XDP program held open by its descriptor. What it opened closes with it."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self.fd = fd
        self.callback(os.close, fd)
        ids = ffi.new("__u32[]", 16)
        info = ffi.new("struct bpf_prog_info *", {"nr_map_ids": len(ids), "map_ids": int(ffi.cast("uintptr_t", ids))})
        _describe(fd, info, "struct bpf_prog_info")
        self.id = int(info.id)
        self.name = ffi.string(info.name).decode(errors="replace")
        self.ours = self.name == PROGRAM
        self._map_ids = [int(ids[i]) for i in range(min(info.nr_map_ids, len(ids)))]

    def maps(self) -> dict[str, _Map]:
        """Its maps by name."""
        found = {}
        for id in self._map_ids:
            fd = _check("cannot open an XDP map", lib.bpf_map_get_fd_by_id(id))
            self.callback(os.close, fd)
            info = ffi.new("struct bpf_map_info *")
            _describe(fd, info, "struct bpf_map_info")
            name = ffi.string(info.name).decode(errors="replace")
            found[name] = _Map(name, fd, id)
        return found


def _describe(fd: int, info: object, kind: str) -> None:
    size = ffi.new("__u32 *", ffi.sizeof(kind))
    _check("cannot ask for an XDP program or map", lib.bpf_obj_get_info_by_fd(fd, info, size))


@dataclass(frozen=True)
class _Map:
    name: str
    fd: int
    id: int

    def put(self, key: bytes, value: bytes) -> int:
        return lib.bpf_map_update_elem(self.fd, ffi.from_buffer(key), ffi.from_buffer(value), 0)

    def delete(self, key: bytes) -> int:
        return lib.bpf_map_delete_elem(self.fd, ffi.from_buffer(key))

    def get(self, key: bytes, size: int) -> bytes:
        """The value, `size` bytes; of a per-CPU map the values of all CPUs."""
        value = bytearray(size)
        _check(f"XDP map {self.name}", lib.bpf_map_lookup_elem(self.fd, ffi.from_buffer(key), ffi.from_buffer(value)))
        return bytes(value)

    def keys(self, size: int) -> Iterator[bytes]:
        key, following = ffi.NULL, bytearray(size)
        while lib.bpf_map_get_next_key(self.fd, key, ffi.from_buffer(following)) == 0:
            current = bytes(following)
            yield current
            key = ffi.from_buffer(current)


def _u32(value: int) -> bytes:
    return struct.pack("=I", value)


def _attached(device: str) -> tuple[_Program, str] | None:
    """The program on the device, whosever it is, and its mode; the caller closes it."""
    query = ffi.new("struct bpf_xdp_query_opts *")
    query.sz = ffi.sizeof("struct bpf_xdp_query_opts")
    _check(f"{device}: cannot ask for its XDP program", lib.bpf_xdp_query(_ifindex(device), 0, query))
    ids = {"native": query.drv_prog_id, "generic": query.skb_prog_id, "offload": query.hw_prog_id}
    for mode, id in ids.items():
        if id:
            return _Program(_check(f"{device}: cannot open its XDP program", lib.bpf_prog_get_fd_by_id(id))), mode
    return None


def _our_program(device: str) -> tuple[_Program, str]:
    found = _attached(device)
    if found is None or not found[0].ours:
        if found:
            found[0].close()
        raise DriverError(f"{device}: fnat's XDP program is not attached", "start fnat on this device")
    return found


def _load(path: Path | None) -> _Program:
    """Load the program and its empty maps into the kernel."""
    try:
        image = (path or resources.files("fnat.drivers").joinpath("steer.bpf.o")).read_bytes()
    except OSError as error:
        name = path or "steer.bpf.o"
        raise DriverError(f"the XDP program {name} is missing", "install clang and build fnat again") from error
    lib.keep_messages()
    loaded = lib.bpf_object__open_mem(ffi.from_buffer(image), len(image), ffi.NULL)
    if loaded == ffi.NULL:
        raise DriverError("the XDP program steer.bpf.o cannot be read", "build fnat again")
    try:
        rc = lib.bpf_object__load(loaded)
        if rc in (-errno.EPERM, -errno.EACCES, -errno.ENOMEM):
            raise _failed("cannot load the XDP program", rc)
        if rc < 0:
            raise DriverError(f"the kernel refuses the XDP program: {_kernel_says(rc)}", "see the kernel log (dmesg)")
        program = lib.bpf_object__find_program_by_name(loaded, PROGRAM.encode())
        return _Program(os.dup(lib.bpf_program__fd(program)))
    finally:
        lib.bpf_object__close(loaded)


# ---- attach and detach ----


def _set(device: str, program: _Program, flags: int, replaces: _Program | None) -> int:
    lib.keep_messages()
    opts = ffi.NULL
    if replaces:
        opts = ffi.new("struct bpf_xdp_attach_opts *")
        opts.sz, opts.old_prog_fd = ffi.sizeof("struct bpf_xdp_attach_opts"), replaces.fd
    else:
        flags |= _UPDATE_IF_NOEXIST
    return lib.bpf_xdp_attach(_ifindex(device), program.fd, flags, opts)


def _attach_new(device: str, program: _Program, mode: str) -> str:
    """Attach where nothing is attached; returns the mode."""
    rc = 0
    if mode != "generic":
        rc = _set(device, program, _MODE_FLAGS["native"], None)
        if rc == 0:
            return "native"
        reason = _kernel_says(rc)
        if rc in (-errno.EPERM, -errno.ENODEV, -errno.EBUSY, -errno.EEXIST):
            raise _failed(f"{device}: cannot attach the XDP program", rc)
        if mode == "native":
            raise DriverError(f"{device}: no native XDP ({reason})", "use mode auto or generic")
        log.warning("%s: no native XDP (%s); using generic mode, which is slower", device, reason)
    _check(f"{device}: cannot attach the XDP program", _set(device, program, _MODE_FLAGS["generic"], None))
    return "generic"


def _detach(device: str, program: _Program, mode: str) -> None:
    opts = ffi.new("struct bpf_xdp_attach_opts *")
    opts.sz, opts.old_prog_fd = ffi.sizeof("struct bpf_xdp_attach_opts"), program.fd
    _check(f"{device}: cannot detach the XDP program", lib.bpf_xdp_detach(_ifindex(device), _MODE_FLAGS[mode], opts))


def _copy_owned(old: dict[str, _Map], new: dict[str, _Map]) -> None:
    for name, size in (("owned4", 4), ("owned6", 16)):
        if name in old and name in new:
            for key in old[name].keys(size):
                new[name].put(key, _u32(0))


def attach(device: str, mode: str = "auto", exclusive: bool = False, image: Path | None = None) -> Attachment:
    """Attach the XDP program. `mode` is "auto" (native, else generic with one line in the log), "native" or "generic".

    What a killed fnat left is replaced without a gap: its owned addresses stay owned. A program of somebody else, or an
    fnat that still runs on the device, is an error. `image` is an object file to attach instead of our own; its program
    has the same name, and of our maps it has what it needs.
    """
    _check_kernel()
    if mode not in ("auto", "native", "generic"):
        raise DriverError(f"{device}: no XDP mode {mode!r}", "use auto, native or generic")
    ifindex = _ifindex(device)
    with ExitStack() as undo:
        found = _attached(device)
        if found:
            undo.enter_context(found[0])
            _refuse_if_in_use(device, found[0])
        program = undo.enter_context(_load(image))
        maps = program.maps()
        if "settings" in maps:
            _check(f"{device}: XDP settings", maps["settings"].put(_u32(0), _u32(_EXCLUSIVE if exclusive else 0)))
        if found:
            old, old_mode = found
            _copy_owned(old.maps(), maps)
            if mode in ("auto", old_mode):
                rc = _set(device, program, _MODE_FLAGS[old_mode], old)
                _check(f"{device}: cannot replace the XDP program of an earlier run", rc)
                mode = old_mode
            else:
                _detach(device, old, old_mode)
                mode = _attach_new(device, program, mode)
        else:
            mode = _attach_new(device, program, mode)
        return Attachment(device, ifindex, program.id, mode, {name: map.id for name, map in maps.items()})


def _refuse_if_in_use(device: str, program: _Program) -> None:
    if not program.ours:
        name = program.name or f"id {program.id}"
        raise DriverError(
            f"{device}: the XDP program {name!r} is already attached",
            f"stop what attached it, or remove it with `ip link set dev {device} xdp off`",
        )
    if _check(f"{device}: queue 0", lib.xdp_queue_busy(_ifindex(device), 0)):
        raise DriverError(f"{device}: another fnat runs on this device", "stop it first")


def detach(device: str) -> bool:
    """Detach our program. False when the device is gone or carries no program of ours."""
    try:
        found = _attached(device)
    except DriverError:
        if device in (name for _, name in socket.if_nameindex()):
            raise
        return False
    if found is None:
        return False
    program, mode = found
    with program:
        if not program.ours:
            return False
        _detach(device, program, mode)
        return True


def detach_leftovers() -> list[str]:
    """Detach our program from every device of this network namespace where a killed fnat left it; the devices."""
    found = []
    for _, device in socket.if_nameindex():
        if attachment(device) and lib.xdp_queue_busy(_ifindex(device), 0) <= 0 and detach(device):
            found.append(device)
    return found


def attachment(device: str) -> Attachment | None:
    """Our program on the device, if it is there."""
    found = _attached(device)
    if found is None:
        return None
    program, mode = found
    with program:
        if not program.ours:
            return None
        return Attachment(
            device, _ifindex(device), program.id, mode, {name: map.id for name, map in program.maps().items()}
        )


# ---- which addresses are ours ----


def _address_key(address: str) -> tuple[str, bytes]:
    """Map name and key of an address in text form."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError as error:
        raise DriverError(f"{address!r} is not an IP address", "write it as 192.0.2.1 or 2001:db8::1") from error
    return f"owned{parsed.version}", parsed.packed


class Steering:
    """The owned addresses of one device: packets for these go to the socket, all others to the host."""

    def __init__(self, device: str) -> None:
        self.device = device

    def own(self, address: str) -> None:
        self._change([address], [])

    def disown(self, address: str) -> None:
        self._change([], [address])

    def owned(self, family: Literal[4, 6] | None = None) -> set[str]:
        """family None: of both."""
        program, _ = _our_program(self.device)
        with program:
            maps = program.maps()
            sizes: dict[int, int] = {4: 4, 6: 16}
            keys = [key for f, size in sizes.items() if family in (None, f) for key in maps[f"owned{f}"].keys(size)]
            return {str(ipaddress.ip_address(key)) for key in keys}

    def replace(self, addresses: Iterable[str]) -> None:
        """Own these addresses and no other, touching only what differs."""
        wanted = {str(ipaddress.ip_address(_address_key(address)[1])) for address in addresses}
        present = self.owned()
        self._change(wanted - present, present - wanted)

    def counters(self) -> dict[str, int]:
        """Packets since the program was attached: taken for the worker ("owned"), left to the host ("passed")."""
        program, _ = _our_program(self.device)
        with program:
            counts = program.maps()["counts"]
            cpus = lib.libbpf_num_possible_cpus()
            names = ("owned", "passed")
            return {
                name: sum(struct.unpack(f"={cpus}Q", counts.get(_u32(i), 8 * cpus))) for i, name in enumerate(names)
            }

    def _change(self, add: Iterable[str], remove: Iterable[str]) -> None:
        """Add first, then remove. An address that is there, or is not, already, is no error."""
        adding, removing = [_address_key(a) for a in add], [_address_key(a) for a in remove]
        program, _ = _our_program(self.device)
        with program:
            maps = program.maps()
            for name, key in adding:
                rc = maps[name].put(key, _u32(0))
                if rc == -errno.E2BIG:
                    raise DriverError(
                        f"{self.device}: more than {ADDRESSES} addresses", "remove some, or use another port for them"
                    )
                _check(f"{self.device}: cannot add an address", rc)
            for name, key in removing:
                rc = maps[name].delete(key)
                if rc != -errno.ENOENT:
                    _check(f"{self.device}: cannot remove an address", rc)


# ---- queues ----


def open_queue(
    device: str, queue: int, pool_address: int, *, ring: int = 2048, fill: int | None = None, copy: bool = False
) -> QueueHandle:
    """Open the AF_XDP socket of one receive queue and put it into the attached program's socket map.

    pool_address is a `struct frame_pool *` whose area is page-aligned memory; ring is the descriptors of each ring, a
    power of two; fill the most frames lent to the device (default: ring). Zero-copy is used where the driver has it,
    except with `copy` and in generic mode. All frames are the pool's again after close.
    """
    if not 0 <= queue < QUEUES:
        raise DriverError(f"{device}: no queue {queue}", f"use one of 0..{QUEUES - 1}")
    program, mode = _our_program(device)
    with program:
        params = ffi.new("struct xdp_params *")
        params.pool = ffi.cast("struct frame_pool *", pool_address)
        params.ifindex, params.queue = _ifindex(device), queue
        params.ring, params.fill = ring, ring if fill is None else fill
        params.copy = copy or mode == "generic"
        out = ffi.new("struct io_queue **")
        rc = lib.xdp_queue_open(params, out)
        if rc == -errno.EBUSY:
            raise DriverError(f"{device}: queue {queue} has an AF_XDP socket already", "stop the program that uses it")
        if rc == -errno.EINVAL:
            there = queue_count(device)
            raise DriverError(
                f"{device}: cannot open queue {queue} of {there} with rings of {ring} descriptors",
                f"use a queue of 0..{there - 1} and rings of a power of two",
            )
        _check(f"{device}: cannot open queue {queue}", rc)
        handle = QueueHandle(device, queue, int(ffi.cast("uintptr_t", out[0])), bool(lib.xdp_queue_zero_copy(out[0])))
        rc = program.maps()["xsks"].put(_u32(queue), _u32(lib.io_fd(out[0])))
        if rc < 0:
            handle.close()
            raise _failed(f"{device}: cannot steer packets to queue {queue}", rc)
        return handle
