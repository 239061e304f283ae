"""The load of the benches and the bare forwarder: every packet is counted once, and what is wrong is seen."""

from __future__ import annotations

import array
import errno
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from packets import UDP
from rig import LAN, LIP, MACS, RS1, VIP, WAN, Rig

from fnat._core import MemQueue, Plane, Traffic, Worker, relay_step

CIP, FLOWS, WINDOW, TURNS = "198.51.100.0", 100, 128, 200
IP_CSUM, IP_SRC, IP_DST, UDP_DPORT, UDP_CSUM = 24, 26, 30, 36, 40


class Outside:
    """The load with its two mem queues; what lies between is the test's."""

    def __init__(self, *, seen_from: tuple[str, str] = (CIP, CIP), seen_to: tuple[str, str] = (VIP, VIP)) -> None:
        self.worker = Worker(Plane.create(None, conns=1024, frames=1024), 0)
        self.client, self.server = MemQueue(self.worker, 512), MemQueue(self.worker, 512)
        self.now = 1_000_000_000
        self.traffic = Traffic(
            self.worker,
            self.client,
            self.server,
            cip=CIP,
            vip=VIP,
            vport=80,
            flows=FLOWS,
            services=1,
            window=WINDOW,
            client_mac="02:00:00:00:00:0c",
            gateway_mac=MACS[WAN],
            seen_from=seen_from,
            seen_to=seen_to,
        )

    def turns(self, count: int, carry: Callable[[Outside], None]) -> dict[str, Any]:
        for _ in range(count):
            self.traffic.step(self.now)
            carry(self)
            self.now += 1000
        return dict(self.traffic.result())


def cable(out: Outside, there: Callable[[bytes], list[bytes]], back: Callable[[bytes], list[bytes]]) -> None:
    for frame in out.client.take_all():
        for changed in there(frame):
            out.server.put(changed)
    for frame in out.server.take_all():
        for changed in back(frame):
            out.client.put(changed)


def same(frame: bytes) -> list[bytes]:
    return [frame]


def twice(frame: bytes) -> list[bytes]:
    return [frame, frame]


def flipped(at: int) -> Callable[[bytes], list[bytes]]:
    return lambda frame: [frame[:at] + bytes([frame[at] ^ 1]) + frame[at + 1 :]]


@dataclass
class Row:
    sentence: str
    there: Callable[[bytes], list[bytes]] = same
    back: Callable[[bytes], list[bytes]] = same
    holds: dict[str, Callable[[dict[str, Any]], bool]] = field(default_factory=dict)


ROWS = [
    Row(
        "what comes back is counted once, and nothing is wrong",
        holds={
            "all but what is under way is back": lambda r: r["sent"] - r["returned"] <= WINDOW,
            "many": lambda r: r["returned"] > 1000,
            "the server has seen them": lambda r: r["reflected"] >= r["returned"],
            "some are checked to the last sum": lambda r: r["checked"] >= r["returned"] // 64,
            "none twice": lambda r: r["duplicates"] == 0,
            "none wrong": lambda r: r["wrong"] == 0,
        },
    ),
    Row(
        "a packet that comes back twice counts once",
        back=twice,
        holds={"twice": lambda r: r["duplicates"] == r["returned"] > 0, "once": lambda r: r["returned"] <= r["sent"]},
    ),
    Row(
        "a packet that never comes back is not counted, and no more than the window is sent for it",
        there=lambda _: [],
        holds={"nothing is back": lambda r: r["returned"] == 0, "the window": lambda r: r["sent"] == WINDOW},
    ),
    Row(
        "another destination at the server is wrong, each time",
        there=flipped(IP_DST + 3),
        holds={"wrong": lambda r: r["wrong"] >= r["reflected"] > 0},
    ),
    Row(
        "another source at the server is wrong, each time",
        there=flipped(IP_SRC + 3),
        holds={"wrong": lambda r: r["wrong"] >= r["reflected"] > 0},
    ),
    Row(
        "a broken checksum at the server is wrong, each time",
        there=flipped(UDP_CSUM),
        holds={"wrong": lambda r: r["wrong"] >= r["reflected"] > 0},
    ),
    Row(
        "another address on the way back is wrong, each time, and not counted",
        back=flipped(IP_DST + 3),
        holds={"wrong": lambda r: r["wrong"] > 0, "nothing is back": lambda r: r["returned"] == 0},
    ),
    Row(
        "another port on the way back is wrong, each time, and not counted",
        back=flipped(UDP_DPORT + 1),
        holds={"wrong": lambda r: r["wrong"] > 0, "nothing is back": lambda r: r["returned"] == 0},
    ),
    Row(
        "broken checksums on the way back are seen, one packet in 64",
        back=flipped(IP_CSUM),
        holds={"wrong": lambda r: r["wrong"] == r["arrived"] // 64 > 0},
    ),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.sentence)
def test_row(row: Row) -> None:
    said = Outside().turns(TURNS, lambda out: cable(out, row.there, row.back))
    for what, holds in row.holds.items():
        assert holds(said), (what, {k: v for k, v in said.items() if k != "latency"})


def test_what_fnat_makes_of_the_load_is_right() -> None:
    rig = Rig()
    rig.service(proto=UDP, members=[(0, RS1, 80, 1)])

    def balance(out: Outside) -> None:
        for queue, port in ((out.client, WAN), (out.server, LAN)):
            for frame in queue.take_all():
                rig.put(port, frame)
        for port, frame in rig.step():
            (out.client if port == WAN else out.server).put(frame)

    said = Outside(seen_from=(LIP, LIP), seen_to=(RS1, RS1)).turns(TURNS, balance)
    assert said["returned"] > 1000
    assert said["reflected"] >= said["returned"]
    assert (said["wrong"], said["duplicates"]) == (0, 0)


def test_flows_that_nobody_forwards_are_not_open() -> None:
    out, stop = Outside(), array.array("i", [0])
    with pytest.raises(OSError) as failed:
        out.traffic.open_flows(0.01, stop.buffer_info()[0])
    assert failed.value.errno == errno.ETIMEDOUT


def test_the_bare_forwarder_swaps_the_macs_and_changes_nothing_else() -> None:
    worker = Worker(Plane.create(None, conns=1024, frames=1024), 0)
    free = worker.frames_free
    a, b = MemQueue(worker, 512), MemQueue(worker, 512)
    frames = [bytes(range(12)) + bytes([i]) * 50 for i in range(100)]
    wanted = [frame[6:12] + frame[:6] + frame[12:] for frame in frames]
    for source, sink in ((a, b), (b, a)):
        for frame in frames:
            source.put(frame)
        moved = [relay_step(a, b) for _ in range(3)]
        assert (sum(moved), moved[-1]) == (100, 0)
        assert (sink.take_all(), source.take_all()) == (wanted, [])
    assert worker.frames_free == free
