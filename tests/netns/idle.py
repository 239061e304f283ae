"""What a quiet balancer costs, and how soon it is awake: `python tests/netns/idle.py [--seconds 60]` prints JSON.

CPU time of all processes of fnat over an idle time, then one UDP packet from the client. Its way is timed by the kernel:
from the client's device (as it leaves) to the real server's (as it comes in), so that no program's wake-up counts but
the worker's.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import select
import socket
import struct
import sys
import time
from pathlib import Path
from typing import Any

from topology import ECHO, Balancer, Topology

SO_TIMESTAMPNS, SCM_TIMESTAMPNS = 35, 35  # asm-generic/socket.h
PAYLOAD = b"is anybody awake?"


def cpu_seconds(pid: int) -> float:
    """User and system time of all threads of a process (proc(5) stat)."""
    fields = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Tap:
    """A packet socket on a device in a namespace of the topology."""

    def __init__(self, topology: Topology, name: str, device: str) -> None:
        here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        there = os.open(f"/run/netns/{topology.base}{name}", os.O_RDONLY)
        libc = ctypes.CDLL(None, use_errno=True)
        try:
            if libc.setns(there, 0):
                raise OSError(ctypes.get_errno(), "setns")
            self.socket = socket.socket(
                socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)
            )  # ETH_P_ALL: what leaves too
            self.socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
            self.socket.bind((device, 0))
            if libc.setns(here, 0):
                raise OSError(ctypes.get_errno(), "setns")
        finally:
            os.close(here)
            os.close(there)

    def seen(self, seconds: float) -> float | None:
        """When the packet with our payload passes here, in seconds; None: not within the time."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if not select.select([self.socket], [], [], left)[0]:
                break
            data, extra, _, _ = self.socket.recvmsg(2048, 64)
            if data.endswith(PAYLOAD):
                stamp = next(value for level, kind, value in extra if kind == SCM_TIMESTAMPNS)
                whole, nanoseconds = struct.unpack("qq", stamp)
                return float(whole % 100_000 + nanoseconds / 1e9)
        return None


def first_packet(topology: Topology) -> float:
    """Seconds from the client's device to a real server's; inf: it did not arrive."""
    taps = [Tap(topology, "client", "eth0"), *(Tap(topology, rs.name, "eth0") for rs in topology.servers)]
    send = f"import socket; socket.socket(2, 2).sendto({PAYLOAD!r}, ({topology.vip!r}, {ECHO}))"
    topology.run("client", sys.executable, "-c", send)
    left, *arrived = [tap.seen(2.0 if tap is taps[0] else 0.5) for tap in taps]
    for tap in taps:
        tap.socket.close()
    came = [at for at in arrived if at is not None]
    return min(came) - left if left is not None and came else float("inf")


def measure(balancer: Balancer, seconds: float) -> dict[str, Any]:
    """Idle for so long, then the first packet."""
    pids = balancer.pids()
    before = {name: cpu_seconds(pid) for name, pid in pids.items()}
    time.sleep(seconds)
    used = {name: (cpu_seconds(pid) - before[name]) / seconds * 100 for name, pid in pids.items()}
    took = first_packet(balancer.topology)
    return {
        "seconds": seconds,
        "percent_of_a_core": {name: round(share, 2) for name, share in used.items()},
        "total_percent": round(sum(used.values()), 2),
        "first_packet_us": round(took * 1e6, 1) if took != float("inf") else None,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--times", type=int, default=1)
    options = parser.parse_args()
    with Topology(prefix="idle") as topology:
        topology.start_servers()
        balancer = Balancer(topology)
        balancer.start()
        balancer.configure()
        topology.curl()
        first_packet(topology)  # who is where is known now
        time.sleep(2)
        print(json.dumps([measure(balancer, options.seconds) for _ in range(options.times)], indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
