"""A thousand clients of the API at once, beside a worker that forwards: every one is answered, no packet is lost, and the
worker itself, which has a CPU without them, has no more to do."""

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from rig import LAN, LIP, MACS, RS1, RS_MACS, VIP, WAN, Rig
from scapy.all import IP, UDP, Ether, raw
from test_api import is_up, wait_until

from fnat.client import Client
from fnat.model import PortInfo
from fnat.paths import Paths

CLIENTS, BATCH, TURNS = 1000, 64, 1500
NEAR = "192.0.2.77"  # a client on the link
SERVICE = {
    "proto": "udp",
    "vip": VIP,
    "vport": 53,
    "servers": [{"rip": RS1, "rport": 53}],
    "lips": [{"addr": LIP, "port": "lan"}],
}
CHANGES = [
    {"op": "addr.add", "addr": VIP, "plen": 24, "port": "wan"},
    {"op": "addr.add", "addr": "10.0.0.9", "plen": 24, "port": "lan"},
    {"op": "neigh.add", "addr": RS1, "mac": RS_MACS[RS1], "port": "lan"},
]


async def ask(path, until):
    """One client: connects, asks, connects again; the statuses it got."""
    got = []
    while time.monotonic() < until:
        reader, writer = await asyncio.open_unix_connection(path)
        for _ in range(3):
            writer.write(b"GET /v1/services HTTP/1.1\r\nhost: x\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            got.append(int(head.split()[1]))
            length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            await reader.readexactly(length)
        writer.close()
    return got


async def crowd(path, seconds):
    until = time.monotonic() + seconds
    return [status for got in await asyncio.gather(*(ask(path, until) for _ in range(CLIENTS))) for status in got]


def forward(rig, turns):
    """Median ns of CPU a packet; every packet must come out."""
    frames = [raw(Ether(dst=MACS[WAN]) / IP(src=NEAR, dst=VIP) / UDP(sport=1024 + n, dport=53) / b"x") for n in range(BATCH)]
    costs = []
    for _ in range(turns):
        rig.now += 1_000_000
        for frame in frames:
            rig.queues[WAN].put(frame)
        began = time.thread_time_ns()
        rig.worker.step(rig.now)
        costs.append((time.thread_time_ns() - began) / BATCH)
        assert sum(frame[12:14] == b"\x08\x00" for frame in rig.queues[LAN].take_all()) == BATCH  # beside ARP
        time.sleep(0.001)
    return statistics.median(costs)


@pytest.fixture
def others():
    """We get the first CPU; the others."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, range(os.cpu_count()))
    first, *others = sorted(os.sched_getaffinity(0))
    if not others:
        pytest.skip("needs two CPUs")
    os.sched_setaffinity(0, {first})
    yield others
    os.sched_setaffinity(0, before)


def test_a_thousand_clients_do_no_harm(tmp_path, others):
    arena = Path(tempfile.mkdtemp(prefix="fnat-load-", dir="/dev/shm"))
    rig = Rig(configured=False, directory=str(arena))
    (tmp_path / "arena").symlink_to(arena)
    ports = [
        PortInfo(id=n, name=name, kind="tap", device="none", mac=MACS[n]).model_dump()
        for n, name in enumerate(("wan", "lan"))
    ]
    Paths(tmp_path).ports.write_text(json.dumps(ports))
    path = tmp_path / "sock"
    file = tmp_path / "fnat.toml"  # a client that comes again may be seen before it is seen to have gone
    file.write_text(f"version = 1\n[api]\nconnections = {4 * CLIENTS}\n")
    options = {
        "config": str(file), "ports": [], "workers": 1, "socket": str(path), "state_dir": str(tmp_path), "node": None,
        "log": "info", "exclusive": [], "conns": 1024, "idle": "sleep", "cpus": "auto", "steering": "auto",
    }  # fmt: skip
    environment = {**os.environ, "FNAT_OPTIONS": json.dumps(options)}
    environment.pop("FNAT_KEEPER", None)
    apart = ["taskset", "-c", ",".join(map(str, others))]
    control = subprocess.Popen([*apart, sys.executable, "-m", "fnat.control"], env=environment)
    try:
        with Client(path) as client:
            wait_until(lambda: is_up(client))
            client.change(CHANGES)
            client.put_service(SERVICE)
        forward(rig, 100)
        alone = forward(rig, TURNS)
        code = f"import sys; sys.path[:0] = {sys.path!r}; import asyncio, json, test_api_load as t; print(json.dumps(asyncio.run(t.crowd({str(path)!r}, 8))))"
        with subprocess.Popen([*apart, sys.executable, "-c", code], stdout=subprocess.PIPE) as clients:
            time.sleep(2)
            beside = forward(rig, TURNS)
            assert clients.poll() is None, "they were there all the while"
            answers = json.loads(clients.communicate(timeout=60)[0])
        print(f"{len(answers)} answers; {alone:.1f} ns a packet alone, {beside:.1f} beside {CLIENTS} clients")
        assert set(answers) == {200} and len(answers) >= CLIENTS
        assert beside < 2 * alone + 20
    finally:
        control.terminate()
        control.wait(20)
        for leftover in arena.iterdir():
            leftover.unlink()
        arena.rmdir()
