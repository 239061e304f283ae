"""Where workers run: each row is a machine, what is asked for, and the CPUs, with a warning where it is not well."""

from __future__ import annotations

from pathlib import Path

import pytest

from fnat.placement import Placement, parse_cpus, place

FLAT = {"node0": "0-3"}
TWO = {"node0": "0-3", "node1": "4-7"}

ROWS = [  # sentence, nodes, NIC -> node, isolated, wanted, workers, CPUs of the process, CPUs chosen, warnings
    ("not CPU 0", FLAT, {}, "", "auto", 2, "0-3", (1, 2), []),
    ("CPU 0 when it must", FLAT, {}, "", "auto", 4, "0-3", (1, 2, 3, 0), []),
    ("one CPU, one worker", {"node0": "0"}, {}, "", "auto", 1, "0", (0,), []),
    ("the NIC's node", TWO, {"wan": 1}, "", "auto", 3, "0-7", (4, 5, 6), []),
    ("a machine that does not say", TWO, {"wan": -1}, "", "auto", 2, "0-7", (1, 2), []),
    ("isolated first", TWO, {"wan": 1}, "6-7", "auto", 2, "0-5", (6, 7), []),
    ("isolated, then the rest of the node", TWO, {"wan": 1}, "7", "auto", 2, "0-6", (7, 4), []),
    ("near before isolated", TWO, {"wan": 0}, "6-7", "auto", 2, "0-5", (1, 2), []),
    ("CPU 0 of the node before another node", TWO, {"wan": 0}, "", "auto", 4, "0-7", (1, 2, 3, 0), []),
    ("only what the process may use", TWO, {"wan": 1}, "", "auto", 2, "1-2,5-6", (5, 6), []),
    ("two NICs on two nodes", TWO, {"wan": 0, "lan": 1}, "", "auto", 2, "0-7", (1, 2),
     ["worker(s) 0,1 run far from lan, which is on NUMA node 1 (CPUs 4,5,6,7)"]),
    ("not enough near", TWO, {"wan": 1}, "", "auto", 5, "0-7", (4, 5, 6, 7, 1),
     ["worker(s) 4 run far from wan, which is on NUMA node 1 (CPUs 4,5,6,7)"]),
    ("more workers than CPUs", FLAT, {}, "", "auto", 5, "0-3", (1, 2, 3, 0, 1),
     ["workers 0,4 share CPU 1; use fewer workers, or more CPUs"]),
    ("a list, in its order", FLAT, {}, "", "3,1-2", 3, "0-3", (3, 1, 2), []),
    ("a list longer than needed", FLAT, {}, "", "1-3", 2, "0-3", (1, 2), []),
    ("a list beyond the process's own CPUs", FLAT, {}, "", "2", 1, "0-1", (2,), []),
    ("a list too short", FLAT, {}, "", "2", 2, "0-3", (2, 2),
     ["workers 0,1 share CPU 2; use fewer workers, or more CPUs"]),
    ("a list far from the NIC", TWO, {"wan": 1}, "", "0,4", 2, "0-7", (0, 4),
     ["worker(s) 0 run far from wan, which is on NUMA node 1 (CPUs 4,5,6,7)"]),
]  # fmt: skip


def machine(root: Path, nodes: dict[str, str], nics: dict[str, int], isolated: str) -> Path:
    (root / "devices/system/cpu").mkdir(parents=True)
    (root / "devices/system/cpu/isolated").write_text(f"{isolated}\n")
    for name, cpus in nodes.items():
        (root / "devices/system/node" / name).mkdir(parents=True)
        (root / "devices/system/node" / name / "cpulist").write_text(f"{cpus}\n")
    for nic, node in nics.items():
        (root / "class/net" / nic / "device").mkdir(parents=True)
        (root / "class/net" / nic / "device/numa_node").write_text(f"{node}\n")
    return root


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_placement(row, tmp_path):
    _, nodes, nics, isolated, wanted, workers, own, cpus, warnings = row
    sys = machine(tmp_path, nodes, nics, isolated)
    possible = [cpu for text in nodes.values() for cpu in parse_cpus(text)]
    assert place(workers, [*nics, "veth0"], wanted, parse_cpus(own), possible, sys) == Placement(cpus, tuple(warnings))


def test_a_cpu_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"cpus '2,9': this process cannot run on CPU 9; it can on 0,1,2,3$"):
        place(2, [], "2,9", range(4), range(4), machine(tmp_path, FLAT, {}, ""))


@pytest.mark.parametrize(
    ("text", "cpus"), [("", []), ("0", [0]), ("1-3,5", [1, 2, 3, 5]), ("2,1-2", [2, 1]), ("7\n", [7])]
)
def test_lists_of_cpus(text, cpus):
    assert parse_cpus(text) == cpus


@pytest.mark.parametrize("text", ["a", "1-", "-1", "3-1", "1;2", "1-2-3"])
def test_what_is_no_list(text):
    with pytest.raises(ValueError, match="not a list of CPUs"):
        parse_cpus(text)
