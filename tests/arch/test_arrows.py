"""Who may know whom, read from the include and import lines."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
C_FILES = {p.name: p for p in [*(ROOT / "cext").glob("*.[ch]"), *(ROOT / "cext/drivers").glob("*.[ch]")]}
PY_FILES = {str(p.relative_to(ROOT / "fnat")): p for p in (ROOT / "fnat").rglob("*.py")}

TABLES = {"acl", "conntab", "wheel", "lip", "neigh", "fib", "frag", "arena"}
STEPS = {"sched", "track", "rewrite", "parse", "icmp", "clientaddr", "sctp", "quic"}
STORY = {"conn", "forward", "resolve", "answer", "announce", "admit", "pieces", "worker", "door", "bench"}


def includes(path: Path) -> set[str]:
    return {Path(name).stem for name in re.findall(r'^#include "([^"]+)"', path.read_text(), re.M)}


def all_includes(path: Path, seen: set[str] | None = None) -> set[str]:
    seen = set() if seen is None else seen
    for name in re.findall(r'^#include "([^"]+)"', path.read_text(), re.M):
        base = Path(name).name
        if base not in seen and base in C_FILES:
            seen.add(base)
            all_includes(C_FILES[base], seen)
    return seen


@pytest.mark.parametrize("name", sorted(TABLES))
def test_a_table_knows_no_other_table_and_no_step(name):
    for suffix in (".c", ".h"):
        known = includes(C_FILES[name + suffix]) - {name}
        assert not known & (TABLES | STEPS | STORY)


@pytest.mark.parametrize("name", sorted(STEPS))
def test_a_step_knows_no_other_step(name):
    for suffix in (".c", ".h"):
        if name + suffix in C_FILES:
            assert not includes(C_FILES[name + suffix]) - {name} & (STEPS | STORY)


@pytest.mark.parametrize("path", sorted((ROOT / "cext/drivers").glob("*.c")), ids=lambda p: p.name)
def test_a_driver_knows_nothing_above_packet_h(path):
    allowed = {"io", "packet", "base", "clock", "fnat", "net", path.stem}
    assert includes(path) <= allowed


def test_the_core_is_plain_c_without_python_or_a_foreign_library():
    for path in C_FILES.values():
        system = set(re.findall(r"^#include <([^>]+)>", path.read_text(), re.M))
        assert not {h for h in system if h.startswith(("Python", "bpf/", "xdp/", "rte_"))}, path


def test_only_worker_knows_both_io_and_forwarding():
    both = {n for n, p in C_FILES.items() if p.suffix == ".c" and p.parent.name == "cext" and "forward" in includes(p)}
    assert both == {"forward.c", "worker.c"}


def imports(path: Path) -> set[str]:
    text = path.read_text()
    found = set(re.findall(r"^\s*(?:from|import) (fnat[.\w]*)", text, re.M))
    found |= {
        f"fnat.{n.strip().split(' ')[0]}"
        for line in re.findall(r"^\s*from fnat import (.+)$", text, re.M)
        for n in line.split(",")
    }
    return found


def test_core_is_reached_through_few_doors():
    users = {n for n, p in PY_FILES.items() if "fnat._core" in imports(p)}
    assert users <= {
        "dataplane.py",
        "steering.py",
        "engine.py",
        "control.py",
        "replay.py",
        "bench.py",
        "metrics.py",
        "host.py",
        "model.py",
        "conversations.py",
        "capacity.py",
        "slots.py",
    }, users


@pytest.mark.parametrize(
    "name", ["plan.py", "model.py", "grammar/__init__.py", "grammar/ipvsadm.py", "grammar/dpip.py"]
)
def test_pure_modules_touch_no_socket(name):
    text = (ROOT / "fnat" / name).read_text()
    assert not re.findall(r"^\s*(?:import|from) (socket|httpx|asyncio|pyroute2|subprocess)\b", text, re.M)


def test_the_keeper_imports_only_the_standard_library():
    assert imports(PY_FILES["keeper.py"]) <= {"fnat.paths", "fnat"}
