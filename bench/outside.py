"""The two programs that a bench over veth runs inside its namespaces: the load, and the bare forwarder.

    python bench/outside.py send JSON      prints one JSON object: what each run counted and what it cost
    python bench/outside.py relay A B      until SIGTERM; prints "ready" first

The load has one AF_XDP socket at the client's device and one at the servers' device, in different namespaces, in one
process; cext/traffic.c says what it sends and checks.
"""

from __future__ import annotations

import array
import ctypes
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from fnat import _core
from fnat.dataplane import SPIN_US, device_mac
from fnat.drivers import xdp

RING, FRAMES = 2048, 16384
OPEN_SECONDS = 4.0
CLONE_NEWNET = 0x40000000


def enter(namespace: str) -> None:
    """This thread's network namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{namespace}") as handle:
        if libc.setns(handle.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"namespace {namespace}: {os.strerror(ctypes.get_errno())}")


def frames() -> tuple[_core.Plane, _core.Worker]:
    """A pool of frames; the plane around it is never used."""
    plane = _core.Plane.create(None, conns=1024, frames=FRAMES)
    return plane, _core.Worker(plane, 0)


def open_queue(worker: _core.Worker, device: str, image: Path | None = None) -> _core.Queue:
    """All that arrives at the device goes to the queue, or to the program that `image` is."""
    xdp.attach(device, "native", exclusive=True, image=image)
    return _core.Queue.from_pointer(xdp.open_queue(device, 0, worker.pool_address, ring=RING).pointer, worker)


class Clocks:
    """Seconds of CPU since the last look: of the whole machine, of this process, of the processes with these pids."""

    def __init__(self, pids: list[int]) -> None:
        self.pids = pids
        self.before = self.now()

    def now(self) -> tuple[float, float, float, float]:
        words = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
        idle = sum(int(words[i]) for i in (3, 4, 7)) / os.sysconf("SC_CLK_TCK")  # idle, iowait, steal
        busy = time.monotonic() * (os.cpu_count() or 1) - idle
        return time.monotonic(), busy, time.process_time(), sum(map(used, self.pids))

    def look(self) -> dict[str, float]:
        after = self.now()
        wall, busy, own, others = (b - a for a, b in zip(self.before, after, strict=True))
        self.before = after
        return {"wall_s": wall, "busy_s": busy, "generator_s": own, "forwarder_s": others}


def used(pid: int) -> float:
    """Seconds that all threads of a process have run."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def percentiles(latency: list[int], slot_ns: int) -> dict[str, float]:
    """Microseconds; the upper end of the slot that holds the percentile."""
    total, found, seen = sum(latency), {}, 0
    marks = [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)]
    for slot, count in enumerate(latency):
        seen += count
        while marks and total and seen >= marks[0][1] * total:
            found[marks.pop(0)[0]] = (slot + 1) * slot_ns / 1000
    return found


def told(result: _core.TrafficResult) -> dict[str, Any]:
    """A result without its histogram."""
    row: dict[str, Any] = dict(result)
    row["latency_us"] = percentiles(row.pop("latency"), row.pop("slot_ns"))
    row["lost"] = row["sent"] - row["returned"]
    return row


def send(order: dict[str, Any]) -> dict[str, Any]:
    """Open the flows, then each of the runs."""
    _plane, worker = frames()
    stop = array.array("i", [0])
    address = stop.buffer_info()[0]
    enter(order["client"][0])
    client = open_queue(worker, order["client"][1])
    client_mac = device_mac(order["client"][1])
    enter(order["server"][0])
    server = open_queue(worker, order["server"][1], Path(order["reflector"]) if order["reflector"] else None)
    traffic = _core.Traffic(worker, client, server, client_mac=client_mac, **order["traffic"])
    start = time.monotonic()
    traffic.open_flows(OPEN_SECONDS, address)
    said: dict[str, Any] = {"open_s": time.monotonic() - start, "opening": told(traffic.result()), "runs": []}
    for seconds, rate in order["runs"]:
        traffic.run(min(0.2, seconds), rate, address)  # warm
        clocks = Clocks(order["pids"])
        traffic.run(seconds, rate, address)
        said["runs"].append({**told(traffic.result()), **clocks.look(), "rate": rate})
    return said


def relay(devices: list[str]) -> None:
    """Until SIGTERM; this thread waits, another one forwards."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    _plane, worker = frames()
    queues = [open_queue(worker, device) for device in devices]
    stop = array.array("i", [0])
    thread = threading.Thread(target=_core.relay_run, args=(*queues, stop.buffer_info()[0], SPIN_US))
    thread.start()
    print("ready", flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    stop[0] = 1
    thread.join()


if __name__ == "__main__":
    if sys.argv[1] == "send":
        print(json.dumps(send(json.loads(sys.argv[2]))))
    else:
        relay(sys.argv[2:])
