"""Which CPU each worker runs on: `cpus` of the configuration, or the best that the machine's /sys says.

Left to itself: CPUs of the NICs' NUMA node, of these the isolated ones (isolcpus=) first, and CPU 0 only when nothing
else is left, because the kernel's own work likes it. A worker far from its NIC's memory, or two workers on a CPU, work,
slowly: that is a warning, not an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

SYS = Path("/sys")


@dataclass(frozen=True)
class Placement:
    """The CPU of each worker, and what is not well about it, one line each."""

    cpus: tuple[int, ...]
    warnings: tuple[str, ...] = ()


def parse_cpus(text: str) -> list[int]:
    """CPUs of a list as the kernel writes them, 1-3,5; none of "". ValueError for anything else."""
    cpus: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or int(last or first) < int(first):
            raise ValueError(f"{text!r} is not a list of CPUs like 1-3,5")
        cpus += range(int(first), int(last or first) + 1)
    return list(dict.fromkeys(cpus))


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _node_of(device: str, sys: Path) -> int:
    """-1: the device does not say, or the machine has one."""
    text = _read(sys / "class/net" / device / "device/numa_node")
    return int(text) if text.lstrip("-").isdecimal() else -1


def cpus_of(node: int, sys: Path) -> list[int]:
    """Of a NUMA node; none where there is no such node."""
    return parse_cpus(_read(sys / f"devices/system/node/node{node}/cpulist"))


def place(
    workers: int, devices: Sequence[str], wanted: str, affinity: Iterable[int], possible: Iterable[int], sys: Path = SYS
) -> Placement:
    """wanted: "auto" or a list of CPUs in the order of the workers; affinity: what this process was started on;
    possible: where the kernel lets it run. ValueError, one line, for a CPU that is not possible."""
    can = set(possible)
    nodes = {device: node for device in devices if (node := _node_of(device, sys)) >= 0}
    near = {cpu for node in nodes.values() for cpu in cpus_of(node, sys)}
    if wanted == "auto":
        isolated = set(parse_cpus(_read(sys / "devices/system/cpu/isolated"))) & can
        choice = set(affinity) | isolated  # the kernel leaves isolated CPUs out of everybody's affinity
        order = sorted(choice, key=lambda cpu: (bool(near) and cpu not in near, cpu == 0, cpu not in isolated, cpu))
        order = order[:workers]
    else:
        order = parse_cpus(wanted)
        strange = next((cpu for cpu in order if cpu not in can), None)
        if strange is not None:
            raise ValueError(
                f"cpus {wanted!r}: this process cannot run on CPU {strange}; it can on {_text(sorted(can))}"
            )
    cpus = tuple(order[i % len(order)] for i in range(workers))
    return Placement(cpus, tuple(_warnings(cpus, nodes, sys)))


def _text(cpus: Iterable[int]) -> str:
    return ",".join(map(str, cpus))


def _warnings(cpus: Sequence[int], nodes: dict[str, int], sys: Path) -> Iterable[str]:
    for cpu in dict.fromkeys(cpus):
        sharing = [i for i, other in enumerate(cpus) if other == cpu]
        if len(sharing) > 1:
            yield f"workers {_text(sharing)} share CPU {cpu}; use fewer workers, or more CPUs"
    for device, node in nodes.items():
        far = [i for i, cpu in enumerate(cpus) if cpu not in cpus_of(node, sys)]
        if far and cpus_of(node, sys):
            here = _text(cpus_of(node, sys))
            yield f"worker(s) {_text(far)} run far from {device}, which is on NUMA node {node} (CPUs {here})"
