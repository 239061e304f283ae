"""`fnat boot-profile`: what it would set on machines made of files, and that a second time changes nothing."""

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from fnat import boot
from fnat.capacity import files
from fnat.cli.main import fnat
from fnat.errors import FnatError
from fnat.model import Host
from fnat.sizes import frames_of, sizes

MIB = 1 << 20
POOL = "hugepages/hugepages-2048kB/nr_hugepages"
NODE0, NODE1, ONE_POOL = (f"sys/{where}/{POOL}" for where in ("devices/system/node/node0", "devices/system/node/node1", "kernel/mm"))


def machine(root: Path, nodes: dict[int, str], *, nr: int = 0, free: int = 0, **sysctl: int) -> None:
    """CPUs of each node, its huge pages, and numbers below /proc/sys by name with dots for __ ."""
    for pool in [f"sys/devices/system/node/node{node}" for node in nodes] or ["sys/kernel/mm"]:
        (root / pool / POOL).parent.mkdir(parents=True)
        (root / pool / POOL).write_text(f"{nr}\n")
        (root / pool / POOL).with_name("free_hugepages").write_text(f"{free}\n")
    for node, cpus in nodes.items():
        (root / f"sys/devices/system/node/node{node}/cpulist").write_text(cpus)
    for name in ("net/core/bpf_jit_enable", *(f"net/ipv4/conf/lo/{n}" for n in ("arp_ignore", "arp_announce", "rp_filter")), "net/ipv4/conf/all/rp_filter"):
        path = root / "proc/sys" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{sysctl.get(path.parent.name + '_' + path.name, sysctl.get(path.name, 0))}\n")


def pages(host: Host) -> dict[str, int]:
    """Huge pages of each file of the data plane with one port of one queue."""
    room = sizes(conns=host.conns, workers=host.workers, frames=frames_of(-(-1 // host.workers), 2048))
    return {name: -(-size // (2 * MIB)) for name, size in files(room).items()}


def wanted(root: Path, host: Host, arena: Path = Path("/nowhere")) -> dict[str, tuple[int, int]]:
    return {s.path: (s.present, s.wanted) for s in boot.profile(host, ["lo"], arena, root)}


SMALL, TWO = Host(conns=100_000), Host(conns=100_000, workers=2, cpus="0,1")
NEED, NEED2 = pages(SMALL), pages(TWO)
ALL = sum(NEED.values())

# sentence, host, nodes, pages there and free, what is set
ROWS = [
    ("a machine without nodes", SMALL, {}, (0, 0), {ONE_POOL: (0, ALL)}),
    ("one node", SMALL, {0: "0-63"}, (0, 0), {NODE0: (0, ALL)}),
    ("what others hold is not counted", SMALL, {0: "0-63"}, (50, 20), {NODE0: (50, 30 + ALL)}),
    ("free ones are", SMALL, {0: "0-63"}, (ALL - 1, ALL - 1), {NODE0: (ALL - 1, ALL)}),
    ("enough stays", SMALL, {0: "0-63"}, (ALL + 7, ALL + 7), {NODE0: (ALL + 7, ALL + 7)}),
    ("each worker's on its node, what is shared with the first", TWO, {0: "0", 1: "1"}, (0, 0),
     {NODE0: (0, NEED2["plane"] + NEED2["frames"] + NEED2["worker-0"]), NODE1: (0, NEED2["worker-1"])}),
]  # fmt: skip


@pytest.mark.parametrize(("host", "nodes", "there", "answer"), [r[1:] for r in ROWS], ids=[r[0] for r in ROWS])
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
def test_huge_pages(tmp_path, host, nodes, there, answer):
    machine(tmp_path, nodes, nr=there[0], free=there[1])
    found = wanted(tmp_path, host)
    assert {path: row for path, row in found.items() if path.endswith("nr_hugepages")} == answer


# sentence, numbers before, numbers after
SYSCTLS = [
    ("as a kernel starts", {}, {"bpf_jit_enable": 1, "arp_ignore": 1, "arp_announce": 2, "rp_filter": 0}),
    ("more stays", {"bpf_jit_enable": 2, "arp_ignore": 2, "arp_announce": 2}, {"bpf_jit_enable": 2, "arp_ignore": 2, "arp_announce": 2}),
    ("strict by the port becomes loose", {"lo_rp_filter": 1}, {"rp_filter": 2}),
    ("strict for all becomes loose on the port", {"all_rp_filter": 1}, {"rp_filter": 2}),
    ("loose stays", {"lo_rp_filter": 2}, {"rp_filter": 2}),
]  # fmt: skip


@pytest.mark.parametrize(("before", "after"), [r[1:] for r in SYSCTLS], ids=[r[0] for r in SYSCTLS])
def test_sysctls_and_a_second_time(tmp_path, before, after):
    machine(tmp_path, {0: "0-63"}, **before)
    boot.put(boot.profile(SMALL, ["lo"], Path("/nowhere"), tmp_path), tmp_path)
    for name, value in after.items():
        folder = "core" if name == "bpf_jit_enable" else "ipv4/conf/lo"
        assert (tmp_path / "proc/sys/net" / folder / name).read_text() == f"{value}\n"
    (tmp_path / NODE0).with_name("free_hugepages").write_text((tmp_path / NODE0).read_text())
    assert all(present == now for present, now in wanted(tmp_path, SMALL).values())


def test_what_cannot_be_set_is_said_and_the_rest_is_set(tmp_path):
    machine(tmp_path, {0: "0-63"})
    (tmp_path / NODE0).unlink()
    (tmp_path / NODE0).mkdir()
    with pytest.raises(FnatError, match=r"node0/.*nr_hugepages cannot be set: Is a directory; .*FN-1006"):
        boot.put(boot.profile(SMALL, ["lo"], Path("/nowhere"), tmp_path), tmp_path)
    assert (tmp_path / "proc/sys/net/ipv4/conf/lo/arp_ignore").read_text() == "1\n"


def test_fewer_pages_than_wanted_is_a_failure(tmp_path):
    (tmp_path / "nr").symlink_to("/dev/null")  # a kernel that finds none
    with pytest.raises(FnatError, match=r"/nr reached 0 of 9; free memory"):
        boot.put([boot.Setting("nr", 0, 9, "")], tmp_path)


def test_the_command_shows_and_sets_nothing_when_dry(tmp_path):
    config = tmp_path / "fnat.toml"
    config.write_text('version = 1\n[node.x]\nwan = { nic = "lo" }\n[host]\nconns = "100k"\n')
    words = ["boot-profile", str(config), "--node", "x", "--state-dir", str(tmp_path), "--dry-run"]
    before = Path("/proc/sys/net/ipv4/conf/lo/arp_announce").read_text()
    rows = json.loads(CliRunner().invoke(fnat, [*words, "--json"]).output)
    assert {"path", "present", "wanted", "why"} == set(rows[0])
    assert "proc/sys/net/ipv4/conf/lo/arp_ignore" in [row["path"] for row in rows]
    text = CliRunner().invoke(fnat, words).output
    assert f"{rows[0]['present']}, would be {rows[0]['wanted']} (" in text
    assert Path("/proc/sys/net/ipv4/conf/lo/arp_announce").read_text() == before
