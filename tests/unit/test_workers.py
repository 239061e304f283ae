"""Several workers: each row is a packet that arrives on the wrong worker, and where it must end."""

from __future__ import annotations

import array
import threading
import time

import pytest
from crew import CLIENT, LAN, LIP, RS, SECOND, VIP, WAN, Crew
from scapy.all import IP, TCP, UDP, Ether, raw

WAN_MAC = "02:00:00:00:0a:00"


def send(crew: Crew, worker: int, port: int, packet: Ether) -> list[tuple[int, int, Ether]]:
    return [(by, out, Ether(frame)) for by, out, frame in crew.put(worker, port, raw(packet))]


def client(flags: str, **tcp: int) -> Ether:
    return Ether(dst=WAN_MAC) / IP(src=CLIENT, dst=VIP) / TCP(sport=4242, dport=80, flags=flags, **tcp)


@pytest.fixture(params=[2, 3])
def crew(request):
    crew = Crew(request.param)
    yield crew
    crew.close()


def test_an_answer_finds_the_owner_of_its_local_port(crew):
    for first in range(len(crew.workers)):
        [(_, port, syn)] = send(crew, first, WAN, client("S", seq=first))
        assert port == LAN
        owner = (syn.sport % 512) % len(crew.workers)
        assert owner == first, "a worker opens with ports of its own"
        for arrives in range(len(crew.workers)):
            answer = (
                Ether(dst=WAN_MAC)
                / IP(src=RS, dst=LIP)
                / TCP(sport=8080, dport=syn.sport, flags="SA", seq=9, ack=syn.seq + 1)
            )
            [(worker, port, out)] = send(crew, arrives, LAN, answer)
            assert (worker, port, out[IP].dst, out[TCP].dport) == (first, WAN, CLIENT, 4242)
        send(crew, first, WAN, client("R", seq=first + 1))
        send(
            crew,
            first,
            LAN,
            Ether(dst=WAN_MAC) / IP(src=RS, dst=LIP) / TCP(sport=8080, dport=syn.sport, flags="R", seq=10),
        )
        crew.now += 20 * SECOND
        for w in crew.workers:
            w.step(crew.now)
        assert crew.counter("conns") == 0


def test_a_client_that_moves_to_another_queue_keeps_its_connection(crew):
    [(_, _, syn)] = send(crew, 0, WAN, client("S", seq=100))
    answer = (
        Ether(dst=WAN_MAC) / IP(src=RS, dst=LIP) / TCP(sport=8080, dport=syn.sport, flags="SA", seq=9, ack=syn.seq + 1)
    )
    send(crew, 0, LAN, answer)
    last = len(crew.workers) - 1
    [(worker, port, out)] = send(crew, last, WAN, client("A", seq=101, ack=10))
    assert (worker, port, out[IP].dst, out[TCP].seq) == (0, LAN, RS, (syn.seq + 1) % 2**32)
    assert crew.counter("conns_opened") == 1


def test_a_stray_segment_goes_round_once_and_gets_one_reason(crew):
    assert send(crew, 0, WAN, client("A", seq=1)) == []
    assert crew.counter("no_conn") == 1
    assert crew.counter("handed_off") == crew.counter("from_workers") == len(crew.workers) - 1


@pytest.mark.parametrize("lport", [2048, 2049])
def test_a_stray_answer_goes_to_the_owner_then_round_once(crew, lport):
    assert send(crew, 0, LAN, Ether(dst=WAN_MAC) / IP(src=RS, dst=LIP) / UDP(sport=53, dport=lport)) == []
    elsewhere = 1 if lport % 512 % len(crew.workers) else 0
    assert crew.counter("no_conn") == 1
    assert crew.counter("answers_elsewhere") == elsewhere
    assert crew.counter("handed_off") == crew.counter("from_workers") == elsewhere + len(crew.workers) - 1


def test_a_syn_to_a_lip_does_not_go_round(crew):
    """It is no answer; the owner of the port resets it."""
    [(worker, port, out)] = send(
        crew, 0, LAN, Ether(dst=WAN_MAC) / IP(src=RS, dst=LIP) / TCP(sport=9, dport=2048, flags="S")
    )
    assert (worker, port, out[TCP].flags) == (0, LAN, "RA")
    assert crew.counter("handed_off") == 0


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
