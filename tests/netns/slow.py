"""A bad line between two devices; runs as a program in the namespace where both are.

slow A B DELAY JITTER LATE     frames from A leave by B and back, DELAY to DELAY + JITTER ms later, in their order; LATE of a
                               hundred are held back another 3 * JITTER ms and so overtaken; a JSON report on SIGTERM

Frames keep what the sender left to its hardware (PACKET_VNET_HDR): checksums and segments are the next device's business.
"""

from __future__ import annotations

import heapq
import json
import random
import select
import signal
import socket
import sys
import time

SOL_PACKET, PACKET_ADD_MEMBERSHIP, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING = 263, 1, 15, 23
PACKET_MR_PROMISC = 1
ETH_P_ALL = 3


def tap(device: str) -> socket.socket:
    """Every frame that comes in by the device, whoever it is for."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    sock.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    sock.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 20)
    sock.bind((device, ETH_P_ALL))
    promiscuous = socket.if_nametoindex(device).to_bytes(4, sys.byteorder) + PACKET_MR_PROMISC.to_bytes(
        2, sys.byteorder
    )
    sock.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, promiscuous + bytes(10))
    sock.setblocking(False)
    return sock


def run(a: str, b: str, delay: float, jitter: float, late: float) -> dict[str, int]:
    dice = random.Random(1)
    ends = tap(a), tap(b)
    waiting: list[tuple[float, int, int, bytes]] = []
    in_order = [0.0, 0.0]
    report = {"frames": 0, "late": 0, "refused": 0}
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
    while not stopped:
        timeout = max(0.0, waiting[0][0] - time.monotonic()) if waiting else 0.2
        readable, _, _ = select.select(ends, [], [], min(timeout, 0.2))
        now = time.monotonic()
        for side, end in enumerate(ends):
            while end in readable:
                try:
                    frame = end.recv(1 << 17)
                except BlockingIOError:
                    break
                report["frames"] += 1
                at = in_order[side] = max(in_order[side], now + delay + dice.random() * jitter)
                if dice.random() < late:
                    report["late"] += 1
                    at += 3 * jitter
                heapq.heappush(waiting, (at, report["frames"], 1 - side, frame))
        while waiting and waiting[0][0] <= time.monotonic():
            _, _, side, frame = heapq.heappop(waiting)
            try:
                ends[side].send(frame)
            except OSError:
                report["refused"] += 1
    return report


if __name__ == "__main__":
    first, second, *numbers = sys.argv[1:]
    delay_ms, jitter_ms, late_percent = map(float, numbers)
    print(json.dumps(run(first, second, delay_ms / 1000, jitter_ms / 1000, late_percent / 100)))
