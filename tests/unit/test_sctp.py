"""SCTP associations (RFC 9260): rows that are asked of the core and of the reference, and limits of the core alone."""

from __future__ import annotations

import struct
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import packets as wire
import pytest
import reference_sctp as sctp
from crew import Crew
from packets import SCTP
from rig import CLIENT, CLIENT6, LAN, LIP, LIP6, RS1, RS2, RS6, TIMEOUTS, VIP, VIP6, WAN, Rig

sys.path.insert(0, str(Path(__file__).parents[1] / "cases"))
from talk import Core, Naive

MAKES = pytest.mark.parametrize("make", [Core, Naive])
FAMILIES = pytest.mark.parametrize(
    "families",
    [(CLIENT, VIP, RS1), (CLIENT6, VIP6, RS6), (CLIENT, VIP, RS6), (CLIENT6, VIP6, RS1)],
    ids=["4to4", "6to6", "4to6", "6to4"],
)
MINE, THEIRS = 0xC11E47, 0x5E12FE  # tags that the client and the RS have chosen
PORT = 40000
IP4, IP6, HOSTNAME, SUPPORTED, COOKIE, ECN, PRIMARY = 5, 6, 11, 12, 7, 0x8000, 0xC004

DATA = wire.sctp_chunk(0, bytes(12) + b"some user data!")
HEARTBEAT = wire.sctp_chunk(4, wire.sctp_parameter(1, b"when and where"))
COOKIE_ECHO = wire.sctp_chunk(sctp.COOKIE_ECHO, bytes(range(90)))
COOKIE_ACK = wire.sctp_chunk(sctp.COOKIE_ACK)
SHUTDOWN = wire.sctp_chunk(sctp.SHUTDOWN, bytes(4))
SHUTDOWN_ACK = wire.sctp_chunk(sctp.SHUTDOWN_ACK)
COMPLETE = wire.sctp_chunk(sctp.SHUTDOWN_COMPLETE)
ABORT = wire.sctp_chunk(sctp.ABORT)
ABORT_T = wire.sctp_chunk(sctp.ABORT, flags=1)
COMPLETE_T = wire.sctp_chunk(sctp.SHUTDOWN_COMPLETE, flags=1)


def init_ack(tag: int = THEIRS, parameters: bytes = b"") -> bytes:
    return wire.sctp_init(tag, wire.sctp_parameter(COOKIE, bytes(90)) + parameters, kind=sctp.INIT_ACK)


class Association:
    """A client, an RS and one service; both ends speak with the tags of RFC 9260 8.5."""

    def __init__(self, side: Any, families: tuple[str, str, str] = (CLIENT, VIP, RS1), **service: Any) -> None:
        self.side = side
        self.client, self.vip, self.rs = (families[0], PORT), (families[1], 80), (families[2], 8080)
        self.lip = ("", 0)
        service.setdefault("members", [(0, *self.rs, 1)])
        side.service(0, *self.vip, SCTP, lips=[3, 6], **service)

    def says(self, chunks: bytes, tag: int = THEIRS, **fields: Any) -> tuple[str, list[wire.Frame]]:
        """The client; the outcome and what left."""
        outcome, out = self.side.deliver(WAN, wire.sctp(*self.client, *self.vip, chunks, tag=tag, **fields))
        for port, f in out:
            if port == LAN and f.proto == SCTP:
                self.lip = (f.src, f.sport)
        return outcome, [f for _, f in out]

    def answers(self, chunks: bytes, tag: int = MINE, **fields: Any) -> tuple[str, list[wire.Frame]]:
        """The RS."""
        outcome, out = self.side.deliver(LAN, wire.sctp(*self.rs, *self.lip, chunks, tag=tag, **fields))
        return outcome, [f for _, f in out]

    def establish(self) -> None:
        assert self.says(wire.sctp_init(MINE), 0)[0] == "to_rs"
        assert self.answers(init_ack())[0] == "to_client"
        assert self.says(COOKIE_ECHO)[0] == "to_rs"
        assert self.answers(COOKIE_ACK)[0] == "to_client"
        assert self.side.state() == "SCTP_EST"


@MAKES
@FAMILIES
def test_a_whole_life(make: Any, families: tuple[str, str, str]) -> None:
    a = Association(make(), families)
    steps = [
        (a.says, wire.sctp_init(MINE), 0, "SCTP_INIT"),
        (a.answers, init_ack(), MINE, "SCTP_INIT"),
        (a.says, COOKIE_ECHO + DATA, THEIRS, "SCTP_INIT"),
        (a.answers, COOKIE_ACK + DATA, MINE, "SCTP_EST"),
        (a.says, DATA + HEARTBEAT, THEIRS, "SCTP_EST"),
        (a.answers, DATA, MINE, "SCTP_EST"),
        (a.says, SHUTDOWN, THEIRS, "SCTP_SHUTDOWN"),
        (a.answers, SHUTDOWN_ACK, MINE, "SCTP_SHUTDOWN"),
        (a.says, COMPLETE, THEIRS, "SCTP_CLOSED"),
    ]
    for say, chunks, tag, state in steps:
        _, [f] = say(chunks, tag)
        assert (f.payload, f.tag, a.side.state()) == (chunks, tag, state)
        if say == a.says:
            assert ((f.dst, f.dport), f.src) == (a.rs, LIP6 if wire.is6(families[2]) else LIP)
        else:
            assert ((f.src, f.sport), (f.dst, f.dport)) == (a.vip, a.client)
        assert f.ttl == 63 and wire.faults(f.raw) == []
    a.side.wait(TIMEOUTS["SCTP_CLOSED"] + 1.1)
    assert a.side.state() == ""


@dataclass
class Row:
    """What is said in an established association, or instead of the rest of a handshake, and the state afterwards."""

    sentence: str
    state: str
    client: list[tuple[bytes, int]] = field(default_factory=list)  # (chunks, tag)
    rs: list[tuple[bytes, int]] = field(default_factory=list)
    established: bool = True


ROWS = [
    Row("ABORT with the receiver's tag", "SCTP_CLOSED", [(ABORT, THEIRS)]),
    Row("the RS's", "SCTP_CLOSED", rs=[(ABORT, MINE)]),
    Row("behind data", "SCTP_CLOSED", rs=[(DATA + ABORT, MINE)]),
    Row("reflected, by a client that has forgotten", "SCTP_CLOSED", [(ABORT_T, MINE)]),
    Row("reflected, by an RS that has", "SCTP_CLOSED", rs=[(ABORT_T, THEIRS)]),
    Row("ABORT of somebody who guesses", "SCTP_EST", [(ABORT, 1), (ABORT, 0), (ABORT_T, 1)], [(ABORT, 1), (ABORT_T, 2)]),
    Row("the tag of the other side without the T bit", "SCTP_EST", [(ABORT, MINE)], [(ABORT, THEIRS)]),
    Row("and with it the own", "SCTP_EST", [(ABORT_T, THEIRS)], [(ABORT_T, MINE)]),
    Row("SHUTDOWN of somebody who guesses", "SCTP_EST", [(SHUTDOWN, 7), (SHUTDOWN_ACK, 7), (COMPLETE, 7)]),
    Row("SHUTDOWN of the RS", "SCTP_SHUTDOWN", rs=[(SHUTDOWN, MINE)]),
    Row("data in it changes nothing", "SCTP_SHUTDOWN", [(DATA, THEIRS)], [(SHUTDOWN, MINE)]),
    Row("SHUTDOWN COMPLETE reflected", "SCTP_CLOSED", [(SHUTDOWN, THEIRS)], [(COMPLETE_T, THEIRS)]),
    Row("a forged INIT moves nothing", "SCTP_EST", [(wire.sctp_init(666), 0)], [(DATA, MINE)]),
    Row("nor lets it abort", "SCTP_EST", [(wire.sctp_init(666), 0)], [(ABORT, 666)]),
    Row("an INIT ACK does not either", "SCTP_EST", [(wire.sctp_init(666), 0)], [(init_ack(777), 666), (ABORT, 666)]),
    Row("a cookie nobody gave", "SCTP_EST", [(COOKIE_ECHO, 5), (ABORT, 5)]),
    Row("a lying chunk length ends the reading", "SCTP_EST", [(wire.sctp_chunk(0, b"x", length=3) + ABORT, THEIRS)]),
    Row("or one beyond the packet", "SCTP_EST", [(wire.sctp_chunk(0, b"x", length=300) + ABORT, THEIRS)]),
    Row("the last chunk needs no padding", "SCTP_CLOSED", [(DATA + ABORT[:4], THEIRS)]),
    Row("no chunk at all", "SCTP_EST", [(b"", THEIRS), (b"\6", THEIRS), (b"\6\0\0", THEIRS)]),
    Row("a refusal", "SCTP_CLOSED", rs=[(ABORT, MINE)], established=False),
    Row("a refusal of somebody who guesses", "SCTP_INIT", rs=[(ABORT, 1)], established=False),
    Row("the client gives up before it has a tag", "SCTP_INIT", [(ABORT, 0)], established=False),
    Row("the acknowledgement of no cookie", "SCTP_INIT", rs=[(COOKIE_ACK, MINE), (init_ack(), MINE), (COOKIE_ACK, MINE)], established=False),
    Row("a COOKIE ACK with another tag", "SCTP_INIT", [(COOKIE_ECHO, THEIRS)], [(init_ack(), MINE), (COOKIE_ACK, 9)], False),
    Row("SHUTDOWN means nothing yet", "SCTP_INIT", rs=[(SHUTDOWN, MINE), (COMPLETE, MINE)], established=False),
]  # fmt: skip


@MAKES
@pytest.mark.parametrize("row", ROWS, ids=lambda r: r.sentence)
def test_what_moves_an_association(make: Any, row: Row) -> None:
    a = Association(make())
    if row.established:
        a.establish()
    else:
        a.says(wire.sctp_init(MINE), 0)
    for chunks, tag in row.client:
        assert a.says(chunks, tag)[0] == "to_rs"
    for chunks, tag in row.rs:
        assert a.answers(chunks, tag)[0] == "to_client"
    assert a.side.state() == row.state


@MAKES
def test_a_client_that_restarts_agrees_on_new_tags(make: Any) -> None:
    a = Association(make())
    a.establish()
    a.says(wire.sctp_init(0x11), 0)
    a.answers(init_ack(0x22), 0x11)
    a.says(ABORT, 0x22)
    assert a.side.state() == "SCTP_EST", "not before the cookie comes back"
    a.says(COOKIE_ECHO, 0x22)
    a.answers(COOKIE_ACK, 0x11)
    a.says(ABORT, THEIRS)
    assert a.side.state() == "SCTP_EST", "the old tags are history"
    a.says(ABORT, 0x22)
    assert a.side.state() == "SCTP_CLOSED"


@MAKES
def test_an_init_from_a_port_whose_association_is_over_is_scheduled_anew(make: Any) -> None:
    a = Association(make(), members=[(0, RS1, 8080, 1), (1, RS2, 8080, 1)])
    a.establish()
    a.says(ABORT)
    _, [f] = a.says(wire.sctp_init(5), 0)
    assert (f.dst, a.side.state()) == (RS2, "SCTP_INIT")


FIRST = [
    ("with a tag", wire.sctp_init(MINE), 3),
    ("without one to answer with", wire.sctp_init(0), 0),
    ("too short", wire.sctp_chunk(sctp.INIT, bytes(12)), 0),
    ("whose length says so", wire.sctp_init(MINE, length=19), 0),
    ("beyond its packet", wire.sctp_init(MINE, length=24), 0),
    ("behind another chunk", HEARTBEAT + wire.sctp_init(MINE), 0),
    ("none at all: data", DATA, 0),
    ("none at all: a cookie", COOKIE_ECHO, THEIRS),
    ("no chunk", b"", 0),
]


@MAKES
@pytest.mark.parametrize(("chunks", "tag"), [row[1:] for row in FIRST], ids=[row[0] for row in FIRST])
def test_only_an_init_opens(make: Any, chunks: bytes, tag: int) -> None:
    a = Association(make())
    assert a.says(chunks, tag) == ("no_conn", [])


@MAKES
def test_nobody_serves_it(make: Any) -> None:
    a = Association(make())
    a.vip = (VIP, 81)
    outcome, [f] = a.says(wire.sctp_init(MINE), 0)
    assert (outcome, f.icmp_type, f.icmp_code) == ("no_service", 3, 3)


@MAKES
@pytest.mark.parametrize("size", [0, 4, 11])
def test_a_header_cut_short(make: Any, size: int) -> None:
    side = make()
    frame = wire.ether(wire.ipv4(bytes([1, 1] * 6)[:size], src=CLIENT, dst=VIP, proto=SCTP))
    assert side.deliver(WAN, frame) == ("l4_header", [])


# ---- addresses ----

ADDRESS4 = wire.sctp_parameter(IP4, wire.addr_bytes("10.9.8.7"))
ADDRESS6 = wire.sctp_parameter(IP6, wire.addr_bytes("2001:db8:77::1"))
BEFORE, BEHIND = wire.sctp_parameter(SUPPORTED, b"\0\5\0\6\0\5"), wire.sctp_parameter(ECN, b"")
NAMES = wire.sctp_parameter(HOSTNAME, b"host.example\0")


def padding(size: int) -> bytes:
    return wire.sctp_parameter(0x8005, bytes(size - 4))


@dataclass
class Named:
    sentence: str
    parameters: bytes
    leaves: bytes
    lie: int = 0  # added to the chunk's length

    @property
    def hidden(self) -> bool:
        return self.parameters != self.leaves


NAMED = [
    Named("no address", BEFORE + BEHIND + NAMES, BEFORE + BEHIND + NAMES),
    Named("an IPv4 address", ADDRESS4, padding(8)),
    Named("several, among others", BEFORE + ADDRESS4 + ADDRESS6 + ADDRESS4 + BEHIND, BEFORE + padding(8) + padding(20) + padding(8) + BEHIND),
    Named("behind a parameter of odd length", NAMES + ADDRESS6, NAMES + padding(20)),
    Named("set primary address", wire.sctp_parameter(PRIMARY, bytes(4) + ADDRESS4), padding(16)),
    Named("one of no address", wire.sctp_parameter(IP4, b""), padding(4)),
    Named("behind an impossible length", wire.sctp_parameter(9, b"", length=3) + ADDRESS4, wire.sctp_parameter(9, b"", length=3) + ADDRESS4),
    Named("one that is cut short", wire.sctp_parameter(IP6, bytes(4)[:4], length=20), wire.sctp_parameter(IP6, bytes(4), length=20)),
    Named("behind the chunk's end", BEFORE + ADDRESS4, BEFORE + ADDRESS4, -8),
]  # fmt: skip


@MAKES
@FAMILIES
@pytest.mark.parametrize("row", NAMED, ids=lambda r: r.sentence)
@pytest.mark.parametrize("from_rs", [False, True], ids=["INIT", "INIT ACK"])
@pytest.mark.parametrize("checksum", [None, 0], ids=["summed", "left to hardware"])
def test_further_addresses_become_padding(
    make: Any, families: tuple[str, str, str], row: Named, from_rs: bool, checksum: int | None
) -> None:
    a = Association(make(), families)
    kind, say, tag = (sctp.INIT_ACK, a.answers, MINE) if from_rs else (sctp.INIT, a.says, 0)
    if from_rs:
        a.says(wire.sctp_init(MINE), 0)
    counters = a.side.counters if isinstance(a.side, Rig) and make is Core else lambda: a.side.reference.count
    before = counters()["sctp_addresses_hidden"]
    length = 20 + len(row.parameters) + row.lie
    _, [f] = say(wire.sctp_init(THEIRS, row.parameters, kind=kind, length=length), tag, checksum=checksum)
    assert f.payload == wire.sctp_init(THEIRS, row.leaves, kind=kind, length=length)
    assert wire.faults(f.raw) == []
    assert counters()["sctp_addresses_hidden"] - before == row.hidden


@MAKES
def test_what_is_no_handshake_keeps_its_bytes(make: Any) -> None:
    a = Association(make())
    a.establish()
    asconf = wire.sctp_chunk(0xC1, bytes(4) + ADDRESS4)
    assert a.says(asconf)[1][0].payload == asconf


# ---- checksums ----


def test_the_builder_knows_the_published_sums() -> None:
    """RFC 3720 B.4, and the check value of CRC-32C."""
    assert wire.crc32c(b"123456789") == 0xE3069283
    assert wire.crc32c(bytes(32)) == 0x8A9136AA
    assert wire.crc32c(bytes(range(32))) == 0x46DD794E


@MAKES
@FAMILIES
@pytest.mark.parametrize("wrong", [1, 0x80000000, 0xDEADBEEF])
@pytest.mark.parametrize("n", [0, 1, 7, 500, 1300])
def test_a_wrong_sum_stays_wrong_by_the_same_bits(
    make: Any, families: tuple[str, str, str], wrong: int, n: int
) -> None:
    a = Association(make(), families)
    a.establish()
    raw = []
    a.side.deliver = _unchecked(a.side, raw)
    chunks = wire.sctp_chunk(0, bytes(i * 5 & 255 for i in range(12 + n)))
    whole = struct.pack("!HHI", *(a.client[1], a.vip[1], THEIRS)) + bytes(4) + chunks
    a.says(chunks, checksum=wire.sctp_checksum(whole) ^ wrong)
    [f] = [wire.read(r) for r in raw]
    assert f.checksum == wire.sctp_checksum(f.raw[f.l4 : 14 + f.total]) ^ wrong


def _unchecked(side: Any, raw: list[bytes]) -> Any:
    def deliver(port: int, frame: bytes) -> tuple[str, list[Any]]:
        if isinstance(side, Core):
            raw.extend(f for _, f in side.send(port, frame))
        else:
            side.reference.receive(port, frame)
            raw.extend(f for _, f in side.reference.sent)
            side.reference.sent = []
        return "", []

    return deliver


@MAKES
@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 5, 8, 13, 100, 1001, 1400])
def test_a_sum_left_to_hardware_is_computed(make: Any, n: int) -> None:
    a = Association(make())
    a.establish()
    for say, tag in ((a.says, THEIRS), (a.answers, MINE)):
        chunks = wire.sctp_chunk(0, bytes(i * 5 & 255 for i in range(12 + n)))[: 16 + n]
        _, [f] = say(chunks, tag, checksum=0)
        assert f.checksum == wire.sctp_checksum(f.raw[f.l4 : 14 + f.total]) and f.payload == chunks


def test_the_host_gets_finished_sums() -> None:
    side = Core(punt=True)
    frame = wire.sctp(CLIENT, 1, "192.0.2.99", 2, DATA, tag=9, checksum=0)
    outcome, [(_, f)] = side.deliver(WAN, frame)
    assert (outcome, wire.faults(f.raw)) == ("passed", [])


# ---- as other connections ----


@MAKES
def test_without_df_it_is_split(make: Any) -> None:
    a = Association(make())
    a.establish()
    for plane in a.side.both():
        plane.put_port(LAN, "lan", "02:00:00:00:0a:01", 600)
    a.side.plane.publish()
    chunks = wire.sctp_chunk(0, bytes(1100))
    outcome, out = a.says(chunks, frag=0)
    assert outcome == "to_rs" and len(out) == 2
    whole = wire.read(wire.together([f.raw for f in out]))
    assert whole.payload == chunks and wire.faults(whole.raw) == []
    outcome, [f] = a.says(chunks)
    assert (outcome, f.icmp_type, f.icmp_code, f.icmp_rest) == ("mtu", 3, 4, struct.pack("!I", 600))


@MAKES
@FAMILIES
def test_errors_on_the_way_reach_both_ends(make: Any, families: tuple[str, str, str]) -> None:
    """Path MTU discovery: RFC 9260 10 finds the association by ports and tag."""
    a = Association(make(), families)
    a.establish()
    _, [sent] = a.says(DATA)
    six = wire.is6(families[2])
    hop = "fd00::fe" if six else "10.0.0.254"
    kind, code, rest = (2, 0, 1400) if six else (3, 4, 1400)
    error = wire.icmp(hop, sent.src, kind, code, struct.pack("!I", rest), sent.raw[14 : 14 + min(sent.total, 68)])
    outcome, [(_, f)] = a.side.deliver(LAN, error)
    assert (outcome, f.src, f.dst) == ("to_client", families[1], families[0])
    inner = wire.read(wire.ether(f.payload + bytes(40), ethertype=wire.ethertype_of(families[0])))
    assert (inner.sport, inner.dport, inner.tag) == (PORT, 80, THEIRS)


@MAKES
@pytest.mark.parametrize(
    ("state", "talk"),
    [("SCTP_INIT", 0), ("SCTP_EST", 1), ("SCTP_SHUTDOWN", 2)],
)
def test_it_ends_in_time(make: Any, state: str, talk: int) -> None:
    a = Association(make())
    if talk:
        a.establish()
    else:
        a.says(wire.sctp_init(MINE), 0)
    if talk == 2:
        a.says(SHUTDOWN)
    assert a.side.state() == state
    a.side.wait(TIMEOUTS[state] - 1.1)
    assert a.side.state() == state
    assert [f for _, f in a.side.wait(2.2)] == []
    assert a.side.state() == ""


@MAKES
def test_a_service_may_have_its_own_timeout(make: Any) -> None:
    a = Association(make(), conn_timeout=5)
    a.establish()
    a.side.wait(6.1)
    assert a.side.state() == ""
    a.says(wire.sctp_init(MINE), 0)
    a.side.wait(6.1)
    assert a.side.state() == "SCTP_INIT"


@MAKES
def test_half_open_ones_give_way(make: Any) -> None:
    a = Association(make(), half_open=2)
    for i in range(3):
        a.client = (CLIENT, 100 + i)
        assert a.says(wire.sctp_init(MINE), 0)[0] == "to_rs"
    assert a.side.state() == "SCTP_INIT SCTP_INIT"


def test_all_is_given_back() -> None:
    a = Association(Core())
    a.establish()
    a.side.wait(TIMEOUTS["SCTP_EST"] + 1.1)
    a.side.check_sums()
    a.side.check_empty()


@pytest.mark.parametrize("workers", [2, 3])
def test_any_worker(workers: int) -> None:
    """No NIC is asked how it deals SCTP: answers find their worker wherever they arrive."""
    crew = Crew(workers)
    crew.plane.put_service(1, VIP, 80, SCTP, members=[(1, "10.0.0.101", 80, 1)], lips=[2])
    crew.plane.publish()
    for n in range(12):
        client = ("198.51.100.7", 1000 + n)
        [(_, port, raw)] = crew.put(n % workers, WAN, wire.sctp(*client, VIP, 80, wire.sctp_init(MINE)))
        f = wire.read(raw)
        assert port == LAN
        steps = [(LAN, init_ack(), MINE), (WAN, COOKIE_ECHO, THEIRS), (LAN, COOKIE_ACK, MINE), (WAN, DATA, THEIRS)]
        for i, (side, chunks, tag) in enumerate(steps):
            ends = (f.dst, f.dport, f.src, f.sport) if side == LAN else (*client, VIP, 80)
            [(_, port, raw)] = crew.put((n + i) % workers, side, wire.sctp(*ends, chunks, tag=tag))
            assert (port, wire.faults(raw)) == (WAN if side == LAN else LAN, [])
    assert crew.counter("conns_opened") == 12
    crew.close()
