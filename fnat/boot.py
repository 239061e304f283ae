"""`fnat boot-profile`: what the host should be set to before fnat starts, from the configuration file.

Huge pages for the arena, on the NUMA nodes of the workers; and what the kernel does on the ports with the host's own
addresses. A setting is a file with a number below /proc/sys or /sys; one that is enough already stays as it is, so a
second time changes nothing, and pages that others hold, or that a running fnat has, are not counted as free.

Unsatisfying: the data plane's main thread touches the arena first, so with workers on several nodes the kernel decides
which worker's memory is on which of them.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fnat import placement
from fnat.capacity import HUGE_PAGE, RING, files
from fnat.errors import FnatError
from fnat.ethtool import queue_count
from fnat.model import Host
from fnat.sizes import frames_of, sizes

ROOT = Path("/")
_POOL = f"hugepages/hugepages-{HUGE_PAGE >> 10}kB"


@dataclass(frozen=True)
class Setting:
    """One number of the host. It is set when it is not as wanted."""

    path: str  # below /
    present: int
    wanted: int
    why: str


def profile(host: Host, devices: Sequence[str], arena: Path, root: Path = ROOT) -> list[Setting]:
    """All settings, also those that are right. arena: where a running fnat has its files. FnatError: unknown."""
    found = [*_huge_pages(host, devices, arena, root), _at_least(root, "net/core/bpf_jit_enable", 1, "XDP compiled")]
    for device in devices:
        conf = f"net/ipv4/conf/{device}"
        found += [
            _at_least(root, f"{conf}/arp_ignore", 1, "a port answers ARP for its own host addresses only"),
            _at_least(root, f"{conf}/arp_announce", 2, "and asks from them only"),
        ]
        filters = [_number(root / f"proc/sys/{name}/rp_filter") for name in ("net/ipv4/conf/all", conf)]
        if 1 in filters:  # strict; the larger one of the two counts, 2 is loose
            found.append(_at_least(root, f"{conf}/rp_filter", 2, "the host's answers may leave by another port"))
    return found


def put(settings: Sequence[Setting], root: Path = ROOT) -> None:
    """Set what differs. FnatError after all of them, for the first one that could not be."""
    failed: FnatError | None = None
    for setting in settings:
        if setting.present == setting.wanted:
            continue
        path = root / setting.path
        try:
            path.write_text(f"{setting.wanted}\n")
            reached = _number(path)
        except OSError as error:
            fix = "run as root" if isinstance(error, PermissionError) else "see the kernel log (dmesg)"
            failed = failed or FnatError("FN-1006", f"/{setting.path} cannot be set: {error.strerror}", fix)
            continue
        if reached < setting.wanted:
            message = f"/{setting.path} reached {reached} of {setting.wanted}"
            fix = "free memory, lower conns, or reserve them on the kernel's command line (hugepages=N)"
            failed = failed or FnatError("FN-1006", message, fix)
    if failed:
        raise failed


def _huge_pages(host: Host, devices: Sequence[str], arena: Path, root: Path) -> Iterator[Setting]:
    """Of each node: those that others hold, and those that the arena needs."""
    sys = root / "sys"
    sockets = sum(-(-queue_count(device) // host.workers) for device in devices)
    room = sizes(conns=host.conns, workers=host.workers, frames=frames_of(sockets, RING))
    try:
        cpus = placement.place(
            host.workers, devices, host.cpus, os.sched_getaffinity(0), range(os.cpu_count() or 1), sys
        ).cpus
        need = files(room)
    except ValueError as error:
        raise FnatError("FN-1104", str(error), "correct it in the file's [host]") from None
    except OSError:
        message = f"conns = {host.conns} on {host.workers} worker(s) are more than possible"
        raise FnatError("FN-1104", message, "lower conns in the file's [host]") from None
    pools = {node: path for path in sorted(sys.glob("devices/system/node/node[0-9]*")) if (node := _node(path)) >= 0}
    of_cpu = {cpu: node for node in pools for cpu in placement.cpus_of(node, sys)}
    nodes = [of_cpu.get(cpu, 0) for cpu in cpus]
    wanted, held = Counter[int](), Counter[int]()
    on_huge_pages = arena.is_dir() and os.statvfs(arena).f_bsize >= HUGE_PAGE
    for name, size in need.items():
        node = nodes[int(name.partition("-")[2] or 0)]
        wanted[node] += -(-size // HUGE_PAGE)
        if on_huge_pages and (arena / name).exists():
            held[node] += (arena / name).stat().st_size // HUGE_PAGE
    for node, pages in sorted(wanted.items()):
        pool = pools.get(node, sys / "kernel/mm") / _POOL
        total, free = _number(pool / "nr_hugepages"), _number(pool / "free_hugepages")
        others = max(0, total - free - held[node])
        why = f"{pages} pages of 2 MiB for {host.conns} connections on {host.workers} worker(s)"
        path = str((pool / "nr_hugepages").relative_to(root))
        yield Setting(path, total, max(total, others + pages), why)


def _node(path: Path) -> int:
    number = path.name.removeprefix("node")
    return int(number) if number.isdecimal() else -1


def _at_least(root: Path, name: str, least: int, why: str) -> Setting:
    path = f"proc/sys/{name}"
    present = _number(root / path)
    return Setting(path, present, max(present, least), why)


def _number(path: Path) -> int:
    """0 where there is none: writing to it says why."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0
