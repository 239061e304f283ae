"""The owner rule: published vectors, the honest twin, and simulated NICs that deal the answers."""

from __future__ import annotations

import ipaddress
import random
from collections import Counter
from collections.abc import Iterator

import packets as wire
import pytest
from crew import CLIENT, LAN, LIP, LIP_MAC, RS, VIP, WAN, Crew, SimNic, toeplitz, tuple_of

from fnat import _core
from fnat._core import FLOWS, Rule

MICROSOFT = bytes.fromhex(
    "6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa"
)  # Windows driver documentation, "Verifying the RSS hash calculation"
VECTORS = [  # destination, port, source, port, hash of addresses, hash with ports
    ("161.142.100.80", 1766, "66.9.149.187", 2794, 0x323E8FC2, 0x51CCC178),
    ("65.69.140.83", 4739, "199.92.111.2", 14230, 0xD718262A, 0xC626B0EA),
    ("12.22.207.184", 38024, "24.19.198.95", 12898, 0xD2D0A5DE, 0x5C2B394A),
    ("209.142.163.6", 2217, "38.27.205.30", 48228, 0x82989176, 0xAFC7327F),
    ("202.188.127.2", 1303, "153.39.163.191", 44251, 0x5D1809C5, 0x10E828A2),
    ("3ffe:2501:200:3::1", 1766, "3ffe:2501:200:1fff::7", 2794, 0x2CC18CD5, 0x40207D3D),
    ("ff02::1", 4739, "3ffe:501:8::260:97ff:fe40:efab", 14230, 0x0F0C461C, 0xDDE51BBF),
    (
        "fe80::200:f8ff:fe21:67cf",
        38024,
        "3ffe:1900:4545:3:200:f8ff:fe21:67cf",
        44251,
        0x4B61E985,
        0x02D1FEEF,
    ),
]


@pytest.mark.parametrize(("dst", "dport", "src", "sport", "of_addresses", "with_ports"), VECTORS)
def test_toeplitz_is_what_microsoft_published(dst, dport, src, sport, of_addresses, with_ports):
    data = tuple_of(src, dst, sport, dport)
    assert _core.toeplitz(MICROSOFT, data) == toeplitz(MICROSOFT, data) == with_ports
    assert _core.toeplitz(MICROSOFT, data[:-4]) == of_addresses


def test_a_key_that_is_too_short_is_refused():
    with pytest.raises(ValueError, match="too short"):
        _core.toeplitz(MICROSOFT[:15], bytes(12))


@pytest.mark.parametrize(("dst", "dport", "src", "sport", "_", "hash"), VECTORS)
@pytest.mark.parametrize("slots", [1, 64, 128, 512])
def test_the_owner_is_whose_queue_the_hash_names(dst, dport, src, sport, _, hash, slots):
    table = tuple(random.Random(slots).randrange(7) for _ in range(slots))
    flow = "tcp6" if ":" in dst else "tcp4"
    assert _core.steering_owner(Rule(MICROSOFT, table), flow, 7, src, dst, sport, dport) == table[hash % slots]


@pytest.mark.parametrize("flow", FLOWS)
def test_the_owner_is_the_twins_for_any_key_table_and_tuple(flow):
    chance = random.Random(flow)
    for _ in range(300):
        workers, slots = chance.randint(1, 64), 2 ** chance.randint(0, 9)
        key = chance.randbytes(chance.choice([40, 52]))
        table = tuple(chance.randrange(workers) for _ in range(slots))
        size = 16 if flow.endswith("6") else 4
        src, dst = (str(ipaddress.ip_address(chance.randbytes(size))) for _ in range(2))
        sport, dport = chance.randrange(65536), chance.randrange(65536)
        expected = table[toeplitz(key, tuple_of(src, dst, sport, dport)) % slots]
        assert _core.steering_owner(Rule(key, table), flow, workers, src, dst, sport, dport) == expected


REFUSED = [
    ("a table that is no power of two", Rule(bytes(40), (0,) * 96), "tcp4"),
    ("a table without slots", Rule(bytes(40), ()), "tcp4"),
    ("a slot of a worker that is not there", Rule(bytes(40), (0, 3)), "tcp4"),
    ("a key too short for IPv4", Rule(bytes(15), (0, 1)), "udp4"),
    ("a key too short for IPv6", Rule(bytes(39), (0, 1)), "tcp6"),
]


@pytest.mark.parametrize(("why", "rule", "flow"), REFUSED, ids=[row[0] for row in REFUSED])
def test_what_is_no_rule_is_refused(why, rule, flow):
    crew = Crew(3)
    with pytest.raises(OSError, match="steering"):
        crew.plane.put_steering(LAN, flow, rule)
    assert crew.plane.steering(LAN, flow) == Rule()
    crew.close()


def test_a_rule_can_be_read_back():
    crew = Crew(2)
    rule = Rule(MICROSOFT, (0, 1, 1, 0), "four slots")
    crew.plane.put_steering(LAN, "udp4", rule)
    assert crew.plane.steering(LAN, "udp4") == rule
    assert crew.plane.steering(LAN, "tcp4") == crew.plane.steering(WAN, "udp4") == Rule()
    crew.close()


# ---- evenness ----


@pytest.mark.parametrize("workers", [2, 3, 5, 7, 11, 64])
def test_by_mask_ports_are_shared_evenly(workers):
    fewest, most = _core.steering_shares(Rule(), "tcp4", workers)
    slots = 512 / workers
    assert (fewest, most) == (int(slots) * 126, -int(-slots // 1) * 126), "whole slots of 126 ports"
    if workers <= 7:
        assert 0.98 <= fewest * workers / 64512 <= most * workers / 64512 <= 1.02


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize(("slots", "workers"), [(512, 2), (512, 3), (512, 5), (512, 7), (128, 2), (128, 3), (64, 4)])
def test_by_hash_ports_are_shared_as_evenly_as_the_table(flow, slots, workers):
    for key in (MICROSOFT, random.Random(1).randbytes(52), bytes.fromhex("6d5a") * 20):
        fewest, most = _core.steering_shares(Rule(key, tuple(s % workers for s in range(slots))), flow, workers)
        assert 0.98 <= fewest * workers / 64512 <= most * workers / 64512 <= 1.02, (flow, key[:4].hex())


def test_a_key_that_does_not_mix_ports_leaves_workers_without_any():
    fewest, most = _core.steering_shares(Rule(bytes(40), (0, 1)), "tcp4", 2)
    assert (fewest, most) == (0, 64512)


# ---- simulated NICs ----

CLIENTS = [(f"198.51.{i % 97}.{1 + i % 251}", 1025 + i * 37 % 60000) for i in range(400)]
NICS = {"i40e": (512, 52), "ixgbe": (128, 40), "mlx5": (256, 40)}  # slots, bytes of the key


def lan(frame: bytes) -> bytes:
    return bytes.fromhex(LIP_MAC.replace(":", "")) + frame[6:]


def first(proto: int, client: tuple[str, int], i: int) -> bytes:
    if proto == wire.UDP:
        return wire.udp(*client, VIP, 53, b"q%d" % i)
    return wire.tcp(*client, VIP, 80, wire.SYN, seq=i)


def answer_to(frame: bytes) -> bytes:
    f = wire.read(frame)
    if f.proto == wire.UDP:
        return lan(wire.udp(f.dst, f.dport, f.src, f.sport, f.payload))
    if f.flags & wire.SYN:
        return lan(wire.tcp(f.dst, f.dport, f.src, f.sport, wire.SYN | wire.ACK, seq=900, ack=f.seq + 1))
    return lan(wire.tcp(f.dst, f.dport, f.src, f.sport, wire.ACK, seq=901, ack=f.seq, payload=b"answer"))


def further(proto: int, client: tuple[str, int], i: int) -> bytes:
    if proto == wire.UDP:
        return first(proto, client, i)
    return wire.tcp(*client, VIP, 80, wire.ACK, seq=i + 1, ack=901, payload=b"ask")


class Talk:
    """A flow of each client over the crew: an exchange is a packet of every client, and the answer to it."""

    def __init__(self, crew: Crew, proto: int, clients: list[tuple[str, int]] = CLIENTS) -> None:
        self.crew, self.proto, self.clients = crew, proto, clients
        self.seen: set[tuple[str, int]] = set()  # LIP and port of each flow

    def exchange(self, build) -> None:
        sent = self.crew.deal(WAN, [build(self.proto, client, i) for i, client in enumerate(self.clients)])
        assert [port for _, port, _ in sent] == [LAN] * len(self.clients)
        self.seen = {(f.src, f.sport) for f in (wire.read(frame) for *_, frame in sent)}
        assert len(self.seen) == len(self.clients), "a LIP port for each flow"
        back = self.crew.deal(LAN, [answer_to(frame) for *_, frame in sent])
        clients = {(f.dst, f.dport) for f in (wire.read(frame) for *_, frame in back)}
        assert [port for _, port, _ in back] == [WAN] * len(self.clients)
        assert clients == set(self.clients), "every client is answered"


@pytest.fixture(params=[2, 3, 5, 7], ids=lambda n: f"{n}-workers")
def workers(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(params=sorted(NICS))
def simulated(request: pytest.FixtureRequest, workers: int) -> Iterator[Crew]:
    slots, key = NICS[request.param]
    crew = Crew(workers, {port: SimNic.dealing(slots, workers, port, key) for port in (WAN, LAN)})
    yield crew
    crew.close()


@pytest.mark.parametrize("proto", [wire.TCP, wire.UDP], ids=["tcp", "udp"])
def test_no_answer_is_handed_to_another_worker(simulated, proto):
    talk = Talk(simulated, proto)
    talk.exchange(first)
    talk.exchange(further)
    counters = simulated.plane.counters()
    assert {
        n: counters[n] for n in ("handed_off", "answers_elsewhere", "rounds_refused", "no_lip_port", "no_conn")
    } == {
        "handed_off": 0,
        "answers_elsewhere": 0,
        "rounds_refused": 0,
        "no_lip_port": 0,
        "no_conn": 0,
    }
    assert counters["conns"] == len(CLIENTS) and min(simulated.conns()) > 0


def test_a_port_that_is_steered_by_mask_hands_off_and_loses_nothing(workers):
    """UDP hashed by addresses: all answers of one RS and LIP come by one queue."""
    crew = Crew(workers)
    crew.steer(WAN, SimNic.dealing(512, workers, 1))
    crew.steer(LAN, SimNic(MICROSOFT, [s % workers for s in range(512)], ports=[wire.TCP]))
    for proto in (wire.TCP, wire.UDP):
        talk = Talk(crew, proto)
        talk.exchange(first)
        talk.exchange(further)
        handed = crew.counter("handed_off")
        assert handed == crew.counter("answers_elsewhere")
        assert (handed > 0) == (proto == wire.UDP)
    crew.close()


@pytest.mark.parametrize("told", [True, False], ids=["and-says-so", "silently"])
def test_connections_survive_a_change_of_key_and_table(workers, told):
    nics = {port: SimNic.dealing(512, workers, port) for port in (WAN, LAN)}
    crew = Crew(workers, dict(nics))
    talk = Talk(crew, wire.TCP)
    talk.exchange(first)
    talk.exchange(further)
    seen = talk.seen
    for port in (WAN, LAN):
        other = SimNic.dealing(128, workers, 100 + port, 52)
        if told:
            crew.steer(port, other)
        else:
            crew.nics[port] = other
    talk.exchange(further)
    assert talk.seen == seen, "the same connections"
    assert crew.counter("handed_off") > 0 and crew.counter("no_conn") == 0
    assert crew.counter("conns") == crew.counter("conns_opened") == len(CLIENTS)
    crew.close()


def test_new_connections_follow_the_new_rule(workers):
    crew = Crew(workers, {port: SimNic.dealing(512, workers, port) for port in (WAN, LAN)})
    talk = Talk(crew, wire.TCP)
    talk.exchange(first)
    crew.steer(LAN, SimNic.dealing(128, workers, 7, 52))
    before = crew.counter("handed_off")
    late = Talk(crew, wire.TCP, [(addr, port + 1) for addr, port in CLIENTS])
    late.exchange(first)
    late.exchange(further)
    assert crew.counter("handed_off") == before
    crew.close()


@pytest.mark.parametrize("slots", [0, 512])
def test_every_port_of_a_lip_is_used_and_by_even_shares(workers, slots):
    nics = {LAN: SimNic.dealing(slots, workers, 3)} if slots else {}
    crew = Crew(workers, nics, lports=(2048, 4095))
    for w in range(workers):
        frames = [wire.udp(CLIENT, 5000 + i, VIP, 53, b"", ident=w) for i in range(w, 3000 * workers, workers)]
        for at in range(0, 2048, 64):
            for frame in frames[at : at + 64]:
                crew.queues[w, WAN].put(frame)
            crew.turn()
    assert sum(crew.conns()) == 2048
    for conns in crew.conns():
        assert 0.98 <= conns * workers / 2048 <= 1.02
    crew.close()


def test_servers_are_used_evenly_over_the_workers(workers):
    """Each worker goes round the servers by itself."""
    servers = ["10.0.0.101", "10.0.0.102", "10.0.0.103"]
    crew = Crew(workers, {port: SimNic.dealing(512, workers, port) for port in (WAN, LAN)}, servers=servers)
    sent = crew.deal(WAN, [wire.udp(f"198.51.100.{1 + i % 250}", 1025 + i, VIP, 53) for i in range(2100)])
    asked = Counter(wire.read(frame).dst for *_, frame in sent)
    assert sorted(asked) == servers
    assert all(0.98 <= count / 700 <= 1.02 for count in asked.values()), asked
    crew.close()


# ---- devices that deal as they like ----


@pytest.mark.parametrize("loose", [True, False])
def test_a_udp_flow_that_changes_its_queue(workers, loose):
    """Where that may happen, a datagram goes round before it opens a connection; elsewhere it costs nothing."""
    crew = Crew(workers)
    crew.plane.put_steering(WAN, "udp4", Rule(loose=loose))
    seen = set()
    for w in range(workers):
        [(_, port, frame)] = crew.put(w, WAN, wire.udp(CLIENT, 5000, VIP, 53, b"datagram", ident=w))
        assert port == LAN
        f = wire.read(frame)
        seen.add((f.src, f.sport))
    assert len(seen) == crew.counter("conns") == (1 if loose else workers)
    handed = workers + workers * (workers - 1) // 2 if loose else 0
    assert crew.counter("handed_off") == handed, "once round at first, then on to the first worker"
    assert crew.conns()[0] == 1
    crew.close()


@pytest.mark.parametrize("stops", [False, True])
def test_a_port_in_use_is_not_given_out_again_under_another_rule(stops):
    """All ports are worker 0's, then all are worker 1's, while worker 0 has connections. stops: workers learn of it apart."""
    crew = Crew(2)
    lports = []
    for owner in (0, 1):
        crew.plane.put_steering(LAN, "udp4", Rule(MICROSOFT, (owner, owner)))
        if stops and owner:
            crew.workers[1].step(crew.now)
            crew.queues[1, WAN].put(wire.udp(CLIENT, 2999, VIP, 53, b"too early"))
            crew.workers[1].step(crew.now)
            assert crew.queues[1, LAN].take() is None, "no port is worker 1's by both rules"
            assert crew.counter("no_lip_port") == 1
        for i in range(8):
            [(_, _, frame)] = crew.put(owner, WAN, wire.udp(CLIENT, 2000 + 100 * owner + i, VIP, 53, b"x"))
            lports.append(wire.read(frame).sport)
    assert len(set(lports)) == 16
    crew.close()


def test_a_repeated_syn_by_another_queue_is_the_same_connection():
    crew = Crew(2)
    crew.plane.put_steering(WAN, "tcp4", Rule(loose=True))
    lports = set()
    for worker in (0, 1, 0):
        [(_, _, frame)] = crew.put(worker, WAN, wire.tcp(CLIENT, 5000, VIP, 80, wire.SYN, seq=7))
        lports.add(wire.read(frame).sport)
    assert len(lports) == crew.counter("conns") == 1
    crew.close()


def test_an_unserved_datagram_is_refused_where_it_came_in():
    crew = Crew(3)
    crew.plane.put_steering(WAN, "udp4", Rule(loose=True))
    assert [wire.read(frame).proto for *_, frame in crew.put(1, WAN, wire.udp(CLIENT, 5000, VIP, 54))] == [wire.ICMP]
    assert crew.counter("handed_off") == 3
    crew.close()


# ---- what no worker knows ----


@pytest.mark.parametrize("from_client", [True, False], ids=["from-clients", "from-servers"])
def test_junk_goes_round_no_oftener_than_its_budget(from_client):
    """4096 hand-offs a tick that rounds cause, whatever arrives; the rest is dropped where it came in."""
    workers, flood, tick = 5, 1500, 15_625_000
    crew = Crew(workers)
    lports = [lport for lport in range(2048, 65536) if lport % 512 % workers == 0]  # worker 0's
    for _ in range(2):
        before = crew.plane.counters()
        crew.turn(tick)
        for i, lport in enumerate(lports[:flood]):
            if from_client:
                crew.queues[0, WAN].put(wire.tcp(CLIENT, lport, VIP, 80, wire.ACK, seq=i))
            else:
                crew.queues[0, LAN].put(lan(wire.tcp(RS, 8080, LIP, lport, wire.ACK, seq=i)))
            if i % 64 == 63 or i == flood - 1:
                crew.turn(0)
        for _ in range(30):
            crew.turn(0)
        moved = {name: value - before[name] for name, value in crew.plane.counters().items()}
        assert moved["rounds_refused"] == flood - 4096 // (workers - 1)
        assert moved["handed_off"] == moved["from_workers"] == 4096
        assert moved["no_conn"] == flood
    crew.close()


def test_junk_leaves_room_in_the_rings_for_answers(workers):
    """The other workers stand still; rounds fill half of a ring, what has an owner may have all of it."""
    crew = Crew(workers, frames=2048)
    [(_, _, sent)] = crew.put(1, WAN, first(wire.UDP, (CLIENT, 4242), 1))
    before = crew.plane.counters()
    lports = [lport for lport in range(2048, 65536) if lport % 512 % workers == 0]
    for i, lport in enumerate(lports[:576]):
        crew.queues[0, LAN].put(lan(wire.tcp(RS, 8080, LIP, lport, wire.ACK, seq=i)))
        if i % 64 == 63:
            crew.workers[0].step(crew.now)
    assert crew.counter("handed_off") - before["handed_off"] == 512
    assert crew.counter("rounds_refused") - before["rounds_refused"] == 64
    left = crew.put(0, LAN, answer_to(sent)) + [out for _ in range(12) for out in crew.turn()]
    assert [(wire.read(f).dst, wire.read(f).dport) for _, port, f in left if port == WAN] == [(CLIENT, 4242)]
    assert crew.counter("handoff_full") == 0
    crew.close()


def test_a_flood_of_junk_answers_leaves_rounds_to_clients():
    crew = Crew(2)
    crew.put(0, WAN, first(wire.TCP, (CLIENT, 4242), 1))
    for i in range(4200):
        crew.queues[0, LAN].put(lan(wire.tcp(RS, 8080, LIP, 2048 + 2 * (i % 20000), wire.ACK, seq=i)))
        if i % 64 == 63:
            crew.turn(0)
    crew.queues[1, WAN].put(further(wire.TCP, (CLIENT, 4242), 1))
    left = [out for _ in range(10) for out in crew.turn(0)]
    assert crew.counter("rounds_refused") > 0
    assert [(worker, port) for worker, port, _ in left] == [(0, LAN)]
    crew.close()
