"""The programs that a bench over veth runs inside its namespaces: the load, the bare forwarder, paced requests.

    python bench/outside.py send JSON                    prints JSON: what each run counted and what it cost
    python bench/outside.py relay A B                    until SIGTERM; prints "ready" first
    python bench/outside.py ask HOST PORT RATE SECONDS   prints JSON: percentiles of the time to an answer

The load has, for each target, one AF_XDP socket at the client's device and one at the servers' device, in different
namespaces, all in one process; cext/traffic.c says what it sends and checks. Targets take turns within a round, so that
what disturbs the machine disturbs all of them.
"""

from __future__ import annotations

import array
import ctypes
import json
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

OPEN_SECONDS = 60.0
WARM_SECONDS = 0.1
CLONE_NEWNET = 0x40000000


def enter(namespace: str) -> None:
    """This thread's network namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{namespace}") as handle:
        if libc.setns(handle.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"namespace {namespace}: {os.strerror(ctypes.get_errno())}")


def used(pid: int) -> float:
    """Seconds that all threads of a process have run; 0 when it is gone."""
    try:
        tasks = [task.read_text() for task in Path(f"/proc/{pid}/task").glob("*/schedstat")]
    except OSError:
        return 0.0
    return sum(int(text.split()[0]) for text in tasks) / 1e9


def softirq_threads() -> list[int]:
    """Kernel threads that take over when softirqs do not end."""
    return [int(p.parent.name) for p in Path("/proc").glob("[0-9]*/comm") if p.read_text().startswith("ksoftirqd/")]


class Clocks:
    """Seconds of CPU since it was made: of the machine, this process, the forwarder's processes, the kernel."""

    def __init__(self, pids: list[int], kernel: list[int]) -> None:
        self.pids, self.kernel = pids, kernel
        self.before = self.now()

    def now(self) -> tuple[float, ...]:
        words = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
        idle = sum(int(words[i]) for i in (3, 4, 7)) / os.sysconf("SC_CLK_TCK")  # idle, iowait, steal
        wall = time.monotonic()
        busy = wall * (os.cpu_count() or 1) - idle
        return wall, busy, time.process_time(), sum(map(used, self.pids)), sum(map(used, self.kernel))

    def look(self) -> dict[str, float]:
        names = ("wall_s", "busy_s", "generator_s", "forwarder_s", "softirq_s")
        return {name: b - a for name, a, b in zip(names, self.before, self.now(), strict=True)}


# ---- the load, and the bare forwarder ----


def frames(count: int) -> Any:
    """A worker for its pool of frames; the plane around it is never used."""
    from fnat import _core

    return _core.Worker(_core.Plane.create(None, conns=1024, frames=count), 0)


def open_queue(worker: Any, device: str, ring: int, image: Path | None = None) -> Any:
    """All that arrives at the device goes to the queue, or to the program that `image` is."""
    from fnat import _core
    from fnat.drivers import xdp

    xdp.attach(device, "native", exclusive=True, image=image)
    return _core.Queue.from_pointer(xdp.open_queue(device, 0, worker.pool_address, ring=ring).pointer, worker)


def percentiles(counts: list[int], slot_ns: int) -> dict[str, float]:
    """Microseconds; the upper end of the slot that holds the percentile."""
    total, found, seen = sum(counts), {}, 0
    marks = [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)]
    for slot, count in enumerate(counts):
        seen += count
        while marks and total and seen >= marks[0][1] * total:
            found[marks.pop(0)[0]] = (slot + 1) * slot_ns / 1000
    return found


def told(result: Any) -> dict[str, Any]:
    """A result without its histogram."""
    row: dict[str, Any] = dict(result)
    row["latency_us"] = percentiles(row.pop("latency"), row.pop("slot_ns"))
    row["lost"] = row["sent"] - row["returned"]
    return row


def send(order: dict[str, Any]) -> dict[str, Any]:
    """Open the flows of each target, then round after round."""
    from fnat import _core
    from fnat.dataplane import device_mac

    targets = order["targets"]
    worker = frames(4096 * len(targets) + 4096)
    stop = array.array("i", [0])
    address = stop.buffer_info()[0]
    loads = {}
    for target in targets:
        enter(target["client"])
        client, client_mac = open_queue(worker, "eth0", 2048), device_mac("eth0")
        enter(target["server"])
        server = open_queue(worker, "eth0", 512, Path(order["reflector"]))
        loads[target["name"]] = _core.Traffic(
            worker, client, server, client_mac=client_mac, **order["traffic"], **target["traffic"]
        )
    said: dict[str, Any] = {name: {"runs": []} for name in loads}
    for name, load in loads.items():
        start = time.monotonic()
        load.open_flows(OPEN_SECONDS, address)
        said[name] |= {"open_s": time.monotonic() - start, "opening": told(load.result())}
    kernel = softirq_threads()
    for _ in range(order["rounds"]):
        for target in targets:
            load = loads[target["name"]]
            load.run(WARM_SECONDS, order["rate"], address)
            clocks = Clocks(target["pids"], kernel)
            load.run(order["seconds"], order["rate"], address)
            said[target["name"]]["runs"].append({**told(load.result()), **clocks.look()})
    return said


def relay(devices: list[str]) -> None:
    """Until SIGTERM; this thread waits, another one forwards."""
    from fnat import _core
    from fnat.dataplane import RING, SPIN_US

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    worker = frames(4 * RING)
    queues = [open_queue(worker, device, RING) for device in devices]
    stop = array.array("i", [0])
    thread = threading.Thread(target=_core.relay_run, args=(*queues, stop.buffer_info()[0], SPIN_US))
    thread.start()
    print("ready", flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    stop[0] = 1
    thread.join()


# ---- paced requests ----

CONNECTIONS = 16


def connect(host: str, port: int) -> socket.socket:
    sock = socket.create_connection((host, port), timeout=5)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def ask(host: str, port: int, rate: float, seconds: float) -> dict[str, Any]:
    """Requests at fixed times over connections that stay, one under way at a time; a late one counts from its time."""
    socks = [connect(host, port) for _ in range(CONNECTIONS)]
    request = f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
    slot_ns = 1000
    counts = [0] * 100_000
    asked, late = round(rate * seconds), 0
    start = time.monotonic() + 0.01
    for i in range(asked):
        due = start + i / rate
        while (wait := due - time.monotonic()) > 0:
            if wait > 0.0002:
                time.sleep(wait - 0.0001)
        late += wait < -0.001
        sock = socks[i % CONNECTIONS]
        sock.sendall(request)
        if not sock.recv(65536).startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"{host}:{port} answered a request with something else than 200")
        counts[min(len(counts) - 1, int((time.monotonic() - due) * 1e9) // slot_ns)] += 1
    for sock in socks:
        sock.close()
    return {"asked": asked, "late": late, "latency_us": percentiles(counts, slot_ns)}


def main(words: list[str]) -> None:
    if words[0] == "send":
        print(json.dumps(send(json.loads(words[1]))))
    elif words[0] == "relay":
        relay(words[1:])
    else:
        print(json.dumps(ask(words[1], int(words[2]), float(words[3]), float(words[4]))))


if __name__ == "__main__":
    main(sys.argv[1:])
