"""Several workers: each row is a packet that arrives on the wrong worker, and where it must end."""

from __future__ import annotations

import array
import threading
import time

import pytest
from scapy.all import IP, TCP, UDP, Ether, raw

from fnat._core import MemQueue, Plane, Worker

WAN, LAN = 0, 1
VIP, LIP, RS, CLIENT = "192.0.2.10", "10.0.0.11", "10.0.0.101", "198.51.100.7"
SECOND = 1_000_000_000


class Crew:
    """N workers of one plane, each with a queue on both ports."""

    def __init__(self, n: int) -> None:
        self.plane = Plane.create(
            None, workers=n, conns=1024, services=4, members=8, endpoints=64, frames=256, snapshot_mib=1
        )
        self.workers = [Worker(self.plane, i) for i in range(n)]
        self.queues = {(i, port): MemQueue(w, 128) for i, w in enumerate(self.workers) for port in (WAN, LAN)}
        for (i, port), queue in self.queues.items():
            self.workers[i].attach(port, queue)
        self.plane.put_port(WAN, "wan", "02:00:00:00:0a:00", 1500)
        self.plane.put_port(LAN, "lan", "02:00:00:00:0a:01", 1500)
        self.plane.put_addresses([(1, VIP, "vip", WAN), (2, LIP, "lip", LAN)])
        self.plane.put_routes(
            [("0.0.0.0/0", "192.0.2.1", "", WAN, 0, 0, "unicast"), ("10.0.0.0/24", "", "", LAN, 0, 0, "unicast")]
        )
        self.plane.neigh_set(WAN, "192.0.2.1", "02:00:00:00:00:01", static=True)
        self.plane.neigh_set(LAN, RS, "02:00:00:00:00:02", static=True)
        self.plane.put_service(0, VIP, 80, 6, members=[(0, RS, 8080, 1)], lips=[2])
        self.plane.put_service(1, VIP, 53, 17, members=[(1, RS, 53, 1)], lips=[2])
        self.plane.publish()
        self.now = 1000 * SECOND

    def send(self, worker: int, port: int, packet: Ether) -> list[tuple[int, int, Ether]]:
        """What leaves, as (worker, port, frame), after the packet has gone round."""
        self.queues[worker, port].put(raw(packet))
        out = []
        for _ in range(len(self.workers) + 2):
            self.now += 1_000_000
            for w in self.workers:
                w.step(self.now)
            out += [(*key, Ether(f)) for key, q in self.queues.items() for f in q.take_all()]
        return out

    def counter(self, name: str) -> int:
        return self.plane.counters()[name]

    def close(self) -> None:
        for _ in range(2):
            for w in self.workers:
                w.detach()
                w.quiesce()


def client(flags: str, **tcp: int) -> Ether:
    return Ether(dst="02:00:00:00:0a:00") / IP(src=CLIENT, dst=VIP) / TCP(sport=4242, dport=80, flags=flags, **tcp)


@pytest.fixture(params=[2, 3])
def crew(request):
    crew = Crew(request.param)
    yield crew
    crew.close()
    # Every frame is home again, whoever sent or dropped it.
    assert [w.frames_free for w in crew.workers] == [w.frames_total for w in crew.workers]


def test_an_answer_finds_the_owner_of_its_local_port(crew):
    for first in range(len(crew.workers)):
        [(_, port, syn)] = crew.send(first, WAN, client("S", seq=first))
        assert port == LAN
        owner = (syn.sport % 512) % len(crew.workers)
        assert owner == first, "a worker opens with ports of its own"
        for arrives in range(len(crew.workers)):
            answer = (
                Ether(dst="02:00:00:00:0a:00")
                / IP(src=RS, dst=LIP)
                / TCP(sport=8080, dport=syn.sport, flags="SA", seq=9, ack=syn.seq + 1)
            )
            [(worker, port, out)] = crew.send(arrives, LAN, answer)
            assert (worker, port, out[IP].dst, out[TCP].dport) == (first, WAN, CLIENT, 4242)
        crew.send(first, WAN, client("R", seq=first + 1))
        crew.send(
            first,
            LAN,
            Ether(dst="02:00:00:00:0a:00") / IP(src=RS, dst=LIP) / TCP(sport=8080, dport=syn.sport, flags="R", seq=10),
        )
        crew.now += 20 * SECOND
        for w in crew.workers:
            w.step(crew.now)
        assert crew.counter("conns") == 0


def test_a_client_that_moves_to_another_queue_keeps_its_connection(crew):
    [(_, _, syn)] = crew.send(0, WAN, client("S", seq=100))
    answer = (
        Ether(dst="02:00:00:00:0a:00")
        / IP(src=RS, dst=LIP)
        / TCP(sport=8080, dport=syn.sport, flags="SA", seq=9, ack=syn.seq + 1)
    )
    crew.send(0, LAN, answer)
    last = len(crew.workers) - 1
    [(worker, port, out)] = crew.send(last, WAN, client("A", seq=101, ack=10))
    assert (worker, port, out[IP].dst, out[TCP].seq) == (0, LAN, RS, (syn.seq + 1) % 2**32)
    assert crew.counter("conns_opened") == 1


def test_a_stray_segment_goes_round_once_and_gets_one_reason(crew):
    assert crew.send(0, WAN, client("A", seq=1)) == []
    assert crew.counter("no_conn") == 1
    assert crew.counter("handed_off") == crew.counter("from_workers") == len(crew.workers) - 1


def test_a_stray_answer_is_dropped_by_the_owner(crew):
    assert crew.send(0, LAN, Ether(dst="02:00:00:00:0a:00") / IP(src=RS, dst=LIP) / UDP(sport=53, dport=2049)) == []
    assert crew.counter("no_conn") == 1
    assert crew.counter("handed_off") == (1 if 2049 % 512 % len(crew.workers) else 0)


def test_every_turn_is_in_the_histogram() -> None:
    crew, stop = Crew(1), array.array("i", [0])
    thread = threading.Thread(target=crew.workers[0].run, args=(stop.buffer_info()[0], 50))
    thread.start()
    deadline = time.monotonic() + 10
    while crew.counter("steps") < 100 and time.monotonic() < deadline:
        time.sleep(0.01)
    stop[0] = 1
    thread.join()
    stats = crew.plane.step_stats(0)
    assert sum(map(sum, stats["count"])) == crew.counter("steps") >= 100
    for kind in (0, 1):
        counts = stats["count"][kind]
        longest = max((i for i, n in enumerate(counts) if n), default=0)
        assert stats["max_ns"][kind] >> longest in (0, 1)
        assert stats["sum_ns"][kind] >= sum(n << i for i, n in enumerate(counts)) - counts[0]
    crew.close()
