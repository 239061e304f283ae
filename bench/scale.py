"""Control at scale without stalls: what a worker under load notices while control changes 20 000 services one after
another and lists ten million connections. `python bench/scale.py` prints the figures as JSON and fails (exit 1) when a
packet was lost or a turn took too long.

Two processes on two cores, as in production:
  data plane   creates the plane, opens the connections with packets, then forwards in both directions of a part of
               them, as fast as it can, from frames in memory. Its worker never waits for anybody.
  control      Control, engine and API on a unix socket; its client makes every change by HTTP, while a second thread
               asks for all connections, page by page.

Losses are found by counting: each frame that the driver hands out has the number of its place, every frame is handed
out once a round, and all must be sent on: received = sent = to_rs + to_client, and no drop reason moves.
Turns are counted by duration in the worker itself; those during which the system took the CPU away are counted apart.
On a virtual machine the host takes CPUs away too, and a guest cannot see it. So afterwards, under the same load of
control, a loop that does nothing but read the clock runs on the worker's CPU: what it misses, the worker misses too. A
worker that stalls by itself has more long turns a second than that loop has gaps.
"""

from __future__ import annotations

import argparse
import array
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fnat import _core
from fnat.sizes import sizes

SERVERS, LIPS = 8, 2  # of each service
LOADED = 64  # services that have connections
LONGEST_US = 200.0  # a turn that takes longer is a stall, unless the machine was away
BASELINE = 10.0  # seconds of reading the clock
WAN, LAN = 0, 1
MACS = ("02:fa:00:00:00:01", "02:fa:00:00:00:02")
GATEWAYS = (("10.255.255.254", "02:fb:00:00:00:01"), ("172.31.255.254", "02:fb:00:00:00:02"))

Numbers = NDArray[np.int64]
Rows = NDArray[np.uint8]


def vip(i: int) -> str:
    return f"198.18.{i >> 8}.{i & 255}"


def rip(i: int) -> str:
    return f"172.20.{i >> 8}.{i & 255}"


def service(i: int) -> dict[str, Any]:
    return {"proto": "udp", "vip": vip(i), "vport": 53}


# ---- frames ----


def frames(port: int, src: Numbers, sport: Numbers, dst: Numbers, dport: Numbers | int) -> Rows:
    """UDP packets without payload and checksum, a row each; addresses and ports as arrays of numbers."""
    n = len(src)
    rows = np.zeros((n, 42), np.uint8)
    rows[:, 0:6] = list(bytes.fromhex(MACS[port].replace(":", "")))
    rows[:, 6:12] = list(bytes.fromhex(GATEWAYS[port][1].replace(":", "")))
    rows[:, 12:14] = 8, 0
    rows[:, 14:24] = 0x45, 0, 0, 28, 0, 0, 0x40, 0, 64, 17
    for at, value, size in ((26, src, 4), (30, dst, 4), (34, sport, 2), (36, dport, 2)):
        big = np.ascontiguousarray(np.broadcast_to(value, n).astype(f">u{size}"))
        rows[:, at : at + size] = big.view(np.uint8).reshape(n, size)
    rows[:, 39] = 8
    words = rows[:, 14:34].copy().view(">u2").astype(np.uint64).sum(axis=1)
    for _ in range(2):
        words = (words & 0xFFFF) + (words >> 16)
    rows[:, 24:26] = (0xFFFF - words).astype(">u2").reshape(n, 1).view(np.uint8).reshape(n, 2)
    return rows


def number(address: str) -> int:
    a, b, c, d = map(int, address.split("."))
    return a << 24 | b << 16 | c << 8 | d


def client_frames(first: int, count: int) -> Rows:
    """What the clients of connections [first, first + count) send."""
    i = np.arange(first, first + count)
    vips = np.array([number(vip(s)) for s in range(LOADED)])
    return frames(WAN, 0x0A000001 + i // 60000, 1024 + i % 60000, vips[i % LOADED], 53)


def server_frames(conns: list[_core.Conn]) -> Rows:
    """What the real servers of these connections answer."""
    column = {name: [getattr(c, name) for c in conns] for name in ("rip", "rport", "lip", "lport")}
    rips, lips = (np.array([number(a) for a in column[name]]) for name in ("rip", "lip"))
    return frames(LAN, rips, np.array(column["rport"]), lips, np.array(column["lport"]))


# ---- the data plane process ----


class DataPlane:
    """Commands come as lines of JSON, each is answered by one."""

    def __init__(self, directory: str, conns: int, cpu: int) -> None:
        self.cpu = cpu
        room = {**sizes(conns=conns + conns // 10, workers=1, frames=8192), "endpoints": 4 * LOADED * SERVERS * LIPS}
        self.plane = _core.Plane.create(directory, **room, fresh=True)
        self.worker = _core.Worker(self.plane, 0)
        self.queues: list[_core.PcapQueue] = []
        self.stop = array.array("i", [0])
        self.thread: threading.Thread | None = None

    def play(self, *sides: tuple[int, Any]) -> None:
        """Begin to hand these frames to the worker, over and over."""
        for port, rows in sides:
            queue = _core.PcapQueue(self.worker)
            for row in rows:
                queue.add(row)
            self.worker.attach(port, queue)
            self.queues.append(queue)
        for port in {WAN, LAN} - {port for port, _ in sides}:
            self.worker.attach(port, _core.PcapQueue(self.worker))
        self.stop[0] = 0
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        os.sched_setaffinity(0, {self.cpu})
        self.worker.run(self.stop.buffer_info()[0], 0)

    def halt(self) -> None:
        self.stop[0] = 1
        if self.thread is not None:
            self.thread.join()

    def open(self, count: int) -> dict[str, Any]:
        """Open connections by their first packets, in parts."""
        started, part = time.monotonic(), 1 << 20
        for first in range(0, count, part):
            self.play((WAN, client_frames(first, min(part, count - first))))
            want = min(first + part, count)
            while self.plane.counters()["conns"] < want:
                time.sleep(0.001)
                if time.monotonic() - started > 120:
                    raise TimeoutError(f"connections do not open: {self.moved({})}")
            self.halt()
            self.worker.detach()
            self.queues.clear()
        return {"seconds": round(time.monotonic() - started, 2), "conns": self.plane.counters()["conns"]}

    def load(self, count: int) -> dict[str, Any]:
        """Both directions of the first `count` connections, until `end`."""
        conns, at = [], 0
        while at >= 0 and len(conns) < count:
            page, at = self.plane.conns(0, at, min(65536, count - len(conns)))
            conns += page
        clients, servers = client_frames(0, count), server_frames(conns)
        self.before, self.steps_before = self.plane.counters(), self.plane.step_stats(0)
        self.loaded_at = time.monotonic()
        self.play((WAN, clients), (LAN, servers))
        return {"loaded": len(conns)}

    def moved(self, before: dict[str, int]) -> dict[str, int]:
        return {k: v - before.get(k, 0) for k, v in self.plane.counters().items() if v != before.get(k, 0)}

    def end(self) -> dict[str, Any]:
        self.halt()
        moved, steps = self.moved(self.before), self.plane.step_stats(0)
        received, sent = (sum(column) for column in zip(*(q.counts() for q in self.queues), strict=True))
        # a port's driver sends what the other one received
        drops = {name: moved[name] for name, kind, _ in _core.COUNTERS if kind == "drop" and name in moved}
        kinds = zip(steps["count"], self.steps_before["count"], strict=True)
        turns = [[a - b for a, b in zip(after, earlier, strict=True)] for after, earlier in kinds]
        self.worker.detach()
        self.worker.quiesce()
        self.queues.clear()
        return {
            "received": received,
            "sent": sent,
            "forwarded": moved.get("to_rs", 0) + moved.get("to_client", 0),
            "lost": received - sent,
            "drops": drops,
            "seconds": round(time.monotonic() - self.loaded_at, 2),
            "turns": pairs(turns),
            "longest_ns": [
                longest(*kind) for kind in zip(turns, self.steps_before["max_ns"], steps["max_ns"], strict=True)
            ],
        }

    def read_the_clock(self, seconds: float) -> dict[str, Any]:
        """Gaps between two readings on the worker's CPU, by length; undisturbed and preempted ones."""
        before, turns = os.sched_getaffinity(0), [[0] * 64, [0] * 64]
        os.sched_setaffinity(0, {self.cpu})
        switches = resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw
        last = time.monotonic_ns()
        end = last + int(seconds * 1e9)
        while last < end:
            now = time.monotonic_ns()
            if now - last > 65_536:
                seen = resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw
                turns[seen != switches][(now - last).bit_length() - 1] += 1
                switches, now = seen, time.monotonic_ns()
            last = now
        os.sched_setaffinity(0, before)
        return {"seconds": seconds, "turns": pairs(turns)}

    def serve(self) -> None:
        print(json.dumps({"ready": self.plane.info()}), flush=True)
        for line in sys.stdin:
            word, *rest = json.loads(line)
            print(json.dumps(getattr(self, word)(*rest)), flush=True)


def pairs(turns: list[list[int]]) -> list[list[list[int]]]:
    """[at least so many ns, how many] of the buckets that are not empty."""
    return [[[2**i, n] for i, n in enumerate(counts) if n] for counts in turns]


def long_ones(turns: list[list[int]], us: float) -> int:
    """How many certainly took longer."""
    return sum(n for least, n in turns if least >= us * 1e3)


def longest(turns: list[int], before: int, after: int) -> int:
    """The longest of these turns: exact when none before was longer, else the upper bound of their last bucket."""
    last = max((i for i, n in enumerate(turns) if n), default=-1)
    return after if after > before else min(after, 2 ** (last + 1)) if last >= 0 else 0


class Remote:
    """The data plane process, from the control process."""

    def __init__(self, directory: str, conns: int, cpu: int) -> None:
        words = [sys.executable, __file__, "--as-data-plane", directory, "--conns", str(conns), "--cpu", str(cpu)]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.info = self._answer()["ready"]

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the data plane process ended with {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, *words: object) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(words) + "\n")
        self.process.stdin.flush()
        return self._answer()


# ---- the control process ----


class House:
    """Control with its API on a unix socket, attached to the plane of the data plane process."""

    def __init__(self, directory: Path, arena: str) -> None:
        from fnat import api, control, listener
        from fnat.client import Client
        from fnat.engine import Engine
        from fnat.model import Config, Host, PortInfo, Timeouts
        from fnat.paths import Paths
        from fnat.state import Ids, Overlay

        control.share_time()
        paths = Paths(directory, directory / "fnat.sock")
        ids = Ids(paths.ids)
        ids.load()
        ports = [PortInfo(id=i, name=n, mac=MACS[i]) for i, n in ((WAN, "wan"), (LAN, "lan"))]
        self.engine = Engine(_core.Plane.attach(arena), {}, ports, ids, startle=0.05)
        file = Config(host=Host(timeouts=Timeouts(udp_oneway=7200, udp_normal=7200)))
        self.control = control.Control(self.engine, Overlay(paths.overlay), paths, file)
        self.control.start()
        self.listening = api.listen(paths.socket)
        self.server = listener.Server(api.create_app(self.control), file.api.connections)
        self.thread = threading.Thread(target=self.server.run, args=([self.listening],), daemon=True)
        self.thread.start()
        self.client = Client(paths.socket, timeout=120)

    def close(self) -> None:
        self.client.close()
        self.server.should_exit = True
        self.thread.join(10)
        self.listening.close()


def all_services(count: int) -> list[dict[str, Any]]:
    changes: list[dict[str, Any]] = []
    for port, prefix in ((WAN, "10.0.0.0/8"), (LAN, "172.16.0.0/12")):
        gateway, mac = GATEWAYS[port]
        name = ("wan", "lan")[port]
        changes.append({"op": "route.add", "prefix": prefix, "gateway": gateway, "port": name})
        changes.append({"op": "neigh.add", "addr": gateway, "mac": mac, "port": name})
    for i in range(count):
        changes.append({"op": "addr.add", "addr": vip(i), "port": "wan"})
        changes.append({"op": "service.add", **service(i), "scheduler": "rr"})
        for n in range(SERVERS):
            changes.append({"op": "server.add", "service": service(i), "rip": rip(i), "rport": 8000 + n})
        for n in range(LIPS):
            changes.append({"op": "lip.add", "service": service(i), "addr": f"172.30.0.{1 + n}", "port": "lan"})
    return changes


def change_all(house: House, count: int, weight: int = 2, until: float = math.inf) -> dict[str, Any]:
    """Every service once, one request each."""
    took = []
    for i in range(count):
        if time.monotonic() > until:
            break
        change = {"op": "server.set", "service": service(i), "rip": rip(i), "rport": 8000, "weight": weight}
        started = time.perf_counter()
        house.client.change([change])
        took.append(time.perf_counter() - started)
    took.sort()
    at = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {
        "services": len(took),
        "seconds": round(sum(took), 1),
        **{f"{name}_ms": round(took[min(len(took) - 1, int(len(took) * q))] * 1e3, 2) for name, q in at.items()},
    }


def list_all(house: House, answer: dict[str, Any], until: float = math.inf) -> None:
    """Every connection, page by page, as the API gives them."""
    started, seen, cursor = time.monotonic(), 0, None
    while time.monotonic() < until:
        page = house.engine.conns(cursor=cursor, limit=8192)
        seen += len(page["conns"])
        cursor = page["next"]
        if cursor is None:
            break
    answer |= {"listed": seen, "seconds": round(time.monotonic() - started, 1)}


def rare(house: House, last: int) -> dict[str, Any]:
    """One connection among all, and counting those of a network, through the API."""
    client = f"10.0.{(1 + last // 60000) >> 8}.{(1 + last // 60000) & 255}"
    started = time.monotonic()
    found = list(house.client.conns(cip=client, cport=1024 + last % 60000))
    one = time.monotonic() - started
    started = time.monotonic()
    count = house.client.conn_count(cip="10.0.0.0/30")
    took = round(time.monotonic() - started, 3)
    return {"found": len(found), "seconds": round(one, 3), "counted": count, "count_seconds": took}


def baseline(house: House, remote: Remote, services: int, seconds: float) -> dict[str, Any]:
    """What a loop that only reads the clock misses on the worker's CPU, while control works as before."""
    answer: dict[str, Any] = {}
    clock = threading.Thread(target=lambda: answer.update(remote.ask("read_the_clock", seconds)))
    until = time.monotonic() + seconds
    lister = threading.Thread(target=list_all, args=(house, {}, until))
    clock.start()
    lister.start()
    change_all(house, services, 3, until)
    lister.join()
    clock.join()
    return answer


def measure(services: int, conns: int, loaded: int, clock: float, directory: Path, arena: str) -> dict[str, Any]:
    cpus = sorted(os.sched_getaffinity(0))
    remote = Remote(arena, conns, cpus[-1])
    os.sched_setaffinity(0, {cpus[0]})
    report: dict[str, Any] = {"services": services, "conns": conns, "under_load": loaded, "cpus": cpus}
    house = None
    try:
        house = House(directory, arena)
        started = time.monotonic()
        house.client.change(all_services(services))
        report["bulk_load_seconds"] = round(time.monotonic() - started, 2)
        report["opened"] = remote.ask("open", conns)
        remote.ask("load", loaded)
        report["listing"] = {}
        lister = threading.Thread(target=list_all, args=(house, report["listing"]))
        started = time.monotonic()
        lister.start()
        report["changing"] = change_all(house, services)
        report["rare"] = rare(house, conns - 1)
        lister.join()
        report["seconds_under_load"] = round(time.monotonic() - started, 1)
        report["worker"] = remote.ask("end")
        worker = report["worker"]
        report["mpps"] = round(worker["received"] / worker["seconds"] / 1e6, 2)
        report["clock"] = baseline(house, remote, services, clock)
        for name in ("worker", "clock"):
            turns, seconds = report[name]["turns"], report[name]["seconds"]
            report[name]["long_a_second"] = [round(long_ones(kind, LONGEST_US) / seconds, 3) for kind in turns]
    finally:
        if house is not None:
            house.close()
        remote.process.kill()
        remote.process.wait()
    return report


def faults(report: dict[str, Any]) -> list[str]:
    """What is not as it must be."""
    worker, found = report["worker"], []
    if worker["lost"] or worker["drops"] or worker["received"] != worker["forwarded"]:
        found.append(f"packets were lost: {worker['lost']}, {worker['drops']}")
    stalls, gaps = worker["long_a_second"][0], sum(report["clock"]["long_a_second"])
    if worker["longest_ns"][0] > LONGEST_US * 1e3 and stalls > 1 + 2 * gaps:
        found.append(f"{stalls} turns a second took longer than {LONGEST_US:.0f} us, where the clock missed {gaps}")
    if report["listing"]["listed"] != report["conns"] or report["rare"]["found"] != 1:
        found.append(f"{report['listing']['listed']} connections were listed, {report['rare']['found']} found")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--services", type=int, default=20_000)
    parser.add_argument("--conns", type=int, default=10_000_000)
    parser.add_argument("--load", type=int, default=1_000_000, help="connections under load")
    parser.add_argument(
        "--state-in", metavar="DIR", help="where control keeps its journal; in memory no change waits for a disk"
    )
    parser.add_argument("--clock", type=float, default=BASELINE, help="seconds of reading the clock afterwards")
    parser.add_argument("--as-data-plane", metavar="DIR", help=argparse.SUPPRESS)
    parser.add_argument("--cpu", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.as_data_plane:
        DataPlane(options.as_data_plane, options.conns, options.cpu).serve()
        return 0
    directory = Path(tempfile.mkdtemp(prefix="fnat-scale-", dir=options.state_in))
    arena = tempfile.mkdtemp(prefix="fnat-scale-", dir="/dev/shm")
    try:
        report = measure(options.services, options.conns, options.load, options.clock, directory, arena)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        shutil.rmtree(arena, ignore_errors=True)
    print(json.dumps(report, indent=2))
    found = faults(report)
    for fault in found:
        print(f"scale: {fault}", file=sys.stderr)
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
