"""Rows for ICMP errors about connections, for neighbour discovery and for what limits answers. Each row is asked of the core and of the reference."""

from __future__ import annotations

import struct
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import packets as wire
import pytest
import reference_icmp as icmp
from crew import Crew
from packets import ACK, MF, SYN, TCP, UDP
from rig import (
    ADDRESSES,
    CLIENT,
    CLIENT6,
    GATEWAY6,
    LAN,
    LIP,
    LIP6,
    MACS,
    ROUTES,
    RS1,
    RS6,
    RS_MACS,
    SECOND,
    TIMEOUTS,
    VIP,
    VIP6,
    WAN,
    Rig,
)

sys.path.insert(0, str(Path(__file__).parents[1] / "cases"))
from talk import Core, Naive

End = tuple[str, int]
ROUTER = {False: "10.0.0.254", True: "fd00::fe"}  # somebody between the balancer and the RS
HOP = {False: "203.0.113.1", True: "2001:db8:50::1"}  # somebody between the balancer and the client


class Pair:
    """One connection of any pair of families, and the packets that the balancer sends for it."""

    def __init__(self, side: Any, client6: bool, rs6: bool, proto: int = TCP, at: int = 40000) -> None:
        self.side, self.proto = side, proto
        self.client: End = (CLIENT6 if client6 else CLIENT, at)
        self.vip: End = (VIP6 if client6 else VIP, 80)
        self.rs: End = (RS6 if rs6 else RS1, 8080)
        if isinstance(side, Naive):
            side.reference.choose = lambda conn, frame: side._choose(conn, frame).__class__(LIP6 if rs6 else LIP, 2000)
            side.reference.identify = lambda conn, frame, sender: 1
        side.service(vip=self.vip[0], proto=proto, members=[(0, *self.rs, 1)], lips=[3, 6])
        outcome, out = side.deliver(WAN, self.packet(self.client, self.vip, SYN, seq=1000))
        assert outcome == "to_rs"
        self.lip: End = (out[0][1].src, out[0][1].sport)
        self.dseq = (out[0][1].seq - 1000) & 0xFFFFFFFF if proto == TCP else 0

    def packet(self, src: End, dst: End, flags: int = ACK, **fields: Any) -> bytes:
        if self.proto == UDP:
            return wire.udp(*src, *dst, fields.pop("payload", b"query"))
        return wire.tcp(*src, *dst, flags, **fields)

    def quote(self, towards_rs: bool, seq: int = 1000, ack: int = 5000, **fields: Any) -> bytes:
        """What the balancer sent for a packet with these numbers, when its sender's are asked for."""
        if towards_rs:
            return self.packet(self.lip, self.rs, seq=seq + self.dseq, ack=ack, **fields)[14:]
        return self.packet(self.vip, self.client, seq=seq, ack=ack, **fields)[14:]

    def error(
        self, towards_rs: bool, kind: int, code: int, rest: int = 0, quote: bytes | None = None, **fields: Any
    ) -> Any:
        near = self.lip[0] if towards_rs else self.vip[0]
        six = wire.is6(near)
        frame = wire.icmp(
            (ROUTER if towards_rs else HOP)[six],
            near,
            kind,
            code,
            struct.pack("!I", rest),
            self.quote(towards_rs) if quote is None else quote,
            eth_src=RS_MACS[RS1] if towards_rs else wire.ROUTER_MAC,
            **fields,
        )
        return self.side.deliver(LAN if towards_rs else WAN, frame)


def quoted_of(f: wire.Frame) -> icmp.Quote:
    quote = icmp.quoted(f)
    assert isinstance(quote, icmp.Quote), quote
    return quote


@dataclass
class Row:
    sentence: str
    families: str  # of the client and the RS
    about: str  # "rs": what went to the RS; "client": what went to the client
    given: tuple[int, int, int]  # type, code, rest
    wanted: tuple[int, int, int] | str  # or the drop reason
    fields: dict[str, Any] = field(default_factory=dict)


HOPS = 1 << 24  # pointers of ICMPv4 are in the first byte
ROWS = [
    # 4 to 4
    Row("frag needed from the RS's side: the client learns the MTU", "44", "rs", (3, 4, 1400), (3, 4, 1400)),
    Row("frag needed from the client's side: the RS learns the MTU", "44", "client", (3, 4, 1400), (3, 4, 1400)),
    Row("port unreachable from the RS", "44", "rs", (3, 3, 0), (3, 3, 0)),
    Row("host unreachable from the client's side", "44", "client", (3, 1, 0), (3, 1, 0)),
    Row("time exceeded beyond the balancer", "44", "rs", (11, 0, 0), (11, 0, 0)),
    Row("parameter problem keeps its pointer", "44", "rs", (12, 0, 20 * HOPS), (12, 0, 20 * HOPS)),
    Row("source quench ends here (RFC 6633)", "44", "rs", (4, 0, 0), "icmp"),
    Row("a redirect ends here", "44", "client", (5, 1, 0x0A000001), "icmp"),
    Row("a message without a known type ends here", "44", "client", (42, 0, 0), "icmp"),
    Row("an error at its last hop is not forwarded", "44", "rs", (3, 3, 0), "ttl", {"ttl": 1}),
    # 6 to 6
    Row("packet too big from the RS's side", "66", "rs", (2, 0, 1400), (2, 0, 1400)),
    Row("packet too big from the client's side", "66", "client", (2, 0, 1280), (2, 0, 1280)),
    Row("address unreachable over IPv6", "66", "rs", (1, 3, 0), (1, 3, 0)),
    Row("time exceeded over IPv6", "66", "client", (3, 0, 0), (3, 0, 0)),
    Row("parameter problem over IPv6 keeps its pointer", "66", "rs", (4, 1, 40), (4, 1, 40)),
    # IPv6 client, IPv4 RS: errors of the RS's side become ICMPv6
    Row("6 to 4: frag needed becomes packet too big, 20 more", "64", "rs", (3, 4, 1400), (2, 0, 1420)),
    Row("6 to 4: never below what IPv6 promises", "64", "rs", (3, 4, 576), (2, 0, 1280)),
    Row("6 to 4: a router that gives no MTU: the next plateau", "64", "rs", (3, 4, 0), (2, 0, 1280)),
    Row("6 to 4: net unreachable", "64", "rs", (3, 0, 0), (1, 0, 0)),
    Row("6 to 4: host unreachable", "64", "rs", (3, 1, 0), (1, 0, 0)),
    Row("6 to 4: protocol unreachable: unknown next header", "64", "rs", (3, 2, 0), (4, 1, 6)),
    Row("6 to 4: port unreachable", "64", "rs", (3, 3, 0), (1, 4, 0)),
    Row("6 to 4: prohibited", "64", "rs", (3, 13, 0), (1, 1, 0)),
    Row("6 to 4: host precedence violation has no counterpart", "64", "rs", (3, 14, 0), "icmp"),
    Row("6 to 4: time exceeded", "64", "rs", (11, 1, 0), (3, 1, 0)),
    Row("6 to 4: pointer at the TTL: at the hop limit", "64", "rs", (12, 0, 8 * HOPS), (4, 0, 7)),
    Row("6 to 4: pointer at the total length: at the payload length", "64", "rs", (12, 2, 2 * HOPS), (4, 0, 4)),
    Row("6 to 4: pointer at the checksum: nothing there", "64", "rs", (12, 0, 10 * HOPS), "icmp"),
    Row("6 to 4: a missing option has no counterpart", "64", "rs", (12, 1, 0), "icmp"),
    # and those of the client's side ICMP
    Row("6 to 4: packet too big on the way to the client, 20 less", "64", "client", (2, 0, 1400), (3, 4, 1380)),
    Row("6 to 4: a packet too big below IPv6's minimum counts as that", "64", "client", (2, 0, 68), (3, 4, 1260)),
    Row("6 to 4: beyond what IPv4 can say", "64", "client", (2, 0, 100000), (3, 4, 65535)),
    Row("6 to 4: no route to the client", "64", "client", (1, 0, 0), (3, 1, 0)),
    Row("6 to 4: prohibited on the way to the client", "64", "client", (1, 1, 0), (3, 10, 0)),
    Row("6 to 4: the client's port", "64", "client", (1, 4, 0), (3, 3, 0)),
    Row("6 to 4: failed ingress policy has no counterpart", "64", "client", (1, 5, 0), "icmp"),
    Row("6 to 4: time exceeded on the way to the client", "64", "client", (3, 0, 0), (11, 0, 0)),
    Row("6 to 4: unknown next header: protocol unreachable", "64", "client", (4, 1, 6), (3, 2, 0)),
    Row("6 to 4: pointer at the source", "64", "client", (4, 0, 9), (12, 0, 12 * HOPS)),
    Row("6 to 4: pointer at the flow label: nothing there", "64", "client", (4, 0, 2), "icmp"),
    Row("6 to 4: pointer beyond the header", "64", "client", (4, 0, 40), "icmp"),
    # IPv4 client, IPv6 RS
    Row("4 to 6: packet too big from the RS's side, 20 less", "46", "rs", (2, 0, 1400), (3, 4, 1380)),
    Row("4 to 6: the RS's port", "46", "rs", (1, 4, 0), (3, 3, 0)),
    Row("4 to 6: frag needed on the way to the client, 20 more", "46", "client", (3, 4, 1400), (2, 0, 1420)),
    Row("4 to 6: the client's port", "46", "client", (3, 3, 0), (1, 4, 0)),
]  # fmt: skip


@pytest.mark.parametrize("make", [Core, Naive])
@pytest.mark.parametrize("proto", [TCP, UDP])
@pytest.mark.parametrize("row", ROWS, ids=lambda r: r.sentence)
def test_an_error_reaches_who_sent_the_packet(row: Row, proto: int, make: Any) -> None:
    pair = Pair(make(), row.families[0] == "6", row.families[1] == "6", proto)
    before = pair.side.state()
    outcome, out = pair.error(row.about == "rs", *row.given, **{"tos": 0x28, **row.fields})
    assert pair.side.state() == before
    if isinstance(row.wanted, str):
        assert (outcome, out) == (row.wanted, [])
        return
    assert outcome == ("to_client" if row.about == "rs" else "to_rs")
    ((port, f),) = out
    near, far = (pair.vip, pair.client) if row.about == "rs" else (pair.lip, pair.rs)
    assert (port, f.src, f.dst) == (WAN if row.about == "rs" else LAN, near[0], far[0])
    assert (f.icmp_type, f.icmp_code, struct.unpack("!I", f.icmp_rest)[0]) == row.wanted
    assert (f.ttl, f.tos) == (63, 0x28)
    quote = quoted_of(f)
    assert (quote.src, quote.dst, quote.proto) == (far, near, proto)
    if proto == TCP:
        seq, ack = struct.unpack_from("!II", quote.body, quote.l4 + 4)
        shift = 0 if row.about == "rs" else pair.dseq
        assert (seq, ack) == (1000, (5000 + shift) & 0xFFFFFFFF)
    whole = wire.ether(quote.body, ethertype=wire.ethertype_of(far[0]))
    assert wire.faults(whole) == [], "the quoted packet has right checksums"


@pytest.mark.parametrize("make", [Core, Naive])
@pytest.mark.parametrize("families", ["44", "46", "64", "66"])
@pytest.mark.parametrize("about", ["rs", "client"])
@pytest.mark.parametrize("n", [8, 12, 16, 17, 18, 19, 20, 24])
def test_a_quote_may_end_behind_the_ports(families: str, about: str, n: int, make: Any) -> None:
    """8 bytes of L4 are promised (RFC 792); the checksum is changed only when it is there, the acknowledgement only with it."""
    pair = Pair(make(), families[0] == "6", families[1] == "6")
    quote = pair.quote(about == "rs", payload=b"abcd")
    l4 = 40 if wire.is6(pair.lip[0] if about == "rs" else pair.vip[0]) else 20
    kind = 1 if l4 == 40 else 3
    outcome, ((_, f),) = pair.error(about == "rs", kind, 4 if kind == 1 else 3, quote=quote[: l4 + n])
    assert outcome == ("to_client" if about == "rs" else "to_rs")
    got = quoted_of(f)
    assert len(got.body) - got.l4 == n
    assert got.total - got.l4 == len(quote) - l4, "the length is that of the packet, not of the quote"
    assert struct.unpack_from("!I", got.body, got.l4 + 4)[0] == 1000


SHORT = [(7, "icmp_quote"), (0, "icmp_quote"), (-1, "icmp_quote"), (-20, "icmp_quote")]


@pytest.mark.parametrize("make", [Core, Naive])
@pytest.mark.parametrize("families", ["44", "66"])
@pytest.mark.parametrize(("n", "reason"), SHORT)
def test_a_quote_that_ends_earlier_says_nothing(families: str, n: int, reason: str, make: Any) -> None:
    pair = Pair(make(), families[0] == "6", families[1] == "6")
    quote = pair.quote(True)
    l4 = 40 if families == "66" else 20
    assert pair.error(True, 1 if families == "66" else 3, 3, quote=quote[: max(l4 + n, 0)]) == (reason, [])


@pytest.mark.parametrize("make", [Core, Naive])
@pytest.mark.parametrize("families", ["44", "66", "64", "46"])
def test_what_is_about_nobody_has_a_reason(families: str, make: Any) -> None:
    pair = Pair(make(), families[0] == "6", families[1] == "6")
    kind, lip, rs = (1, LIP6, RS6) if families[1] == "6" else (3, LIP, RS1)
    other = pair.packet((lip, 7), pair.rs)[14:]
    assert pair.error(True, kind, 0, quote=other) == ("icmp_no_conn", [])
    assert pair.error(True, kind, 0, quote=wire.echo_request(lip, rs)[14:]) == ("icmp_no_conn", [])
    foreign = pair.packet(pair.client, pair.vip)[14:]
    reason = "icmp_quote"
    assert pair.error(True, kind, 0, quote=foreign) == (reason, []), "not what was sent from the address it came to"
    if kind == 3:
        later = wire.tcp(*pair.lip, *pair.rs, ACK, frag=MF | 5)[14:]
        assert pair.error(True, kind, 0, quote=later) == ("icmp_no_conn", []), "a later fragment has no ports"


@pytest.mark.parametrize("make", [Core, Naive])
@pytest.mark.parametrize("families", ["44", "66"])
def test_a_wrong_checksum_has_a_reason(families: str, make: Any) -> None:
    pair = Pair(make(), families[0] == "6", families[1] == "6")
    six = families == "66"
    frame = bytearray(
        wire.icmp(ROUTER[six], pair.lip[0], 1 if six else 3, 3, b"\0\0\0\0", pair.quote(True), eth_src=RS_MACS[RS1])
    )
    frame[-1] ^= 1
    assert pair.side.deliver(LAN, bytes(frame)) == ("icmp_checksum", [])


@pytest.mark.parametrize("make", [Core, Naive])
@pytest.mark.parametrize("families", ["44", "46", "64", "66"])
@pytest.mark.parametrize("about", ["rs", "client"])
def test_options_and_extension_headers_in_a_quote(families: str, about: str, make: Any) -> None:
    """Within a family they stay, between the families they end."""
    pair = Pair(make(), families[0] == "6", families[1] == "6")
    six = wire.is6(pair.lip[0] if about == "rs" else pair.vip[0])
    quote = pair.quote(about == "rs", **({"extensions": (0, 60)} if six else {"ip_options": b"\1\1\1\0"}))
    _, ((_, f),) = pair.error(about == "rs", 1 if six else 3, 4 if six else 3, quote=quote)
    got = quoted_of(f)
    crosses = families[0] != families[1]
    assert got.l4 == (20 if six else 40) if crosses else got.l4 == (56 if six else 24)
    assert struct.unpack_from("!I", got.body, got.l4 + 4)[0] == 1000


OBJECTS = b"\x20\0\0\0\0\x08\1\1abcd"  # RFC 4950


@pytest.mark.parametrize("make", [Core, Naive])
@pytest.mark.parametrize("families", ["44", "46", "64", "66"])
def test_objects_behind_a_quote_stay_within_a_family(families: str, make: Any) -> None:
    """RFC 4884: the length counts what is quoted, in words of 4 or 8 bytes. Across, the objects are cut and the length is 0."""
    pair = Pair(make(), families[0] == "6", families[1] == "6")
    six = families[1] == "6"
    quote = pair.quote(True).ljust(128, b"\0") + OBJECTS
    rest = 16 << 24 if six else 32 << 16
    _, ((_, f),) = pair.error(True, 3 if six else 11, 0, rest, quote=quote)
    if families in ("44", "66"):
        assert struct.unpack("!I", f.icmp_rest)[0] == rest
        assert f.payload[128:] == OBJECTS and len(f.payload) == 128 + len(OBJECTS)
    else:
        assert f.icmp_rest == bytes(4)
        assert len(f.payload) == (20 if families[0] == "4" else 40) + 20


@pytest.mark.parametrize("make", [Core, Naive])
@pytest.mark.parametrize(
    ("families", "about", "most"),
    [("64", "rs", 1280), ("46", "rs", 576), ("64", "client", 576), ("46", "client", 1280), ("66", "rs", 1488)],
)
def test_how_much_is_quoted(families: str, about: str, most: int, make: Any) -> None:
    """RFC 4443 2.4 (c), RFC 1812 4.3.2.3; within a family as much as came."""
    pair = Pair(make(), families[0] == "6", families[1] == "6")
    six = wire.is6(pair.lip[0] if about == "rs" else pair.vip[0])
    quote = pair.quote(about == "rs", payload=bytes(2000))[:1440]
    _, ((_, f),) = pair.error(about == "rs", 1 if six else 3, 4 if six else 3, quote=quote)
    assert f.total == most


@pytest.mark.parametrize("make", [Core, Naive])
def test_a_quote_too_long_for_the_next_link_is_cut(make: Any) -> None:
    pair = Pair(make(), False, False)
    for side in pair.side.both():
        side.put_port(WAN, "wan", MACS[WAN], 300)
    pair.side.plane.publish()
    quote = pair.quote(True).ljust(400, b"\0")[:400]
    quote = quote[:2] + struct.pack("!H", 400) + quote[4:]  # the packet was that long
    quote = quote[:10] + b"\0\0" + quote[12:]
    _, ((_, f),) = pair.error(True, 11, 0, 100 << 16, quote=quote + OBJECTS)
    assert (f.total, f.icmp_rest) == (300, bytes(4))


def test_an_error_neither_refreshes_nor_ends_a_connection() -> None:
    core = Core()
    pair = Pair(core, False, False, UDP)
    for _ in range(11):
        core.wait(1)
        assert pair.error(True, 3, 3)[0] == "to_client"
    core.wait(2)
    assert core.state() == "", "12 s after the datagram, whatever the errors"
    assert pair.error(True, 3, 3)[0] == "icmp_no_conn"
    counters = core.counters()
    assert (counters["icmp_errors_to_client"], counters["conns_closed"]) == (11, 1)
    core.check_empty()


def test_counts_of_the_connection_do_not_move() -> None:
    core = Core()
    pair = Pair(core, True, False)
    before = core.conns()[0]
    assert pair.error(True, 3, 4, 1400)[0] == "to_client"
    assert pair.error(False, 2, 0, 1400)[0] == "to_rs"
    after = core.conns()[0]
    assert (after.in_packets, after.out_packets) == (before.in_packets, before.out_packets)
    assert [core.counters()[f"icmp_errors_to_{end}"] for end in ("rs", "client")] == [1, 1]


@pytest.mark.parametrize("make", [Core, Naive])
def test_path_mtu_from_end_to_end(make: Any) -> None:
    """An RS behind a 1400-byte IPv4 link: a client with IPv6 is told 1420, sends that much, and it arrives as 1400."""
    pair = Pair(make(), True, False)
    _, ((_, f),) = pair.error(True, 3, 4, 1400)
    mtu = struct.unpack("!I", f.icmp_rest)[0]
    sent = wire.tcp(*pair.client, *pair.vip, ACK, seq=1001, payload=bytes(mtu - 60))
    _, ((port, f),) = pair.side.deliver(WAN, sent)
    assert (port, len(sent) - 14, f.total) == (LAN, 1420, 1400)


@pytest.mark.parametrize("make", [Core, Naive], ids=["core", "reference"])
@pytest.mark.parametrize(("rs6", "mtu", "told"), [(False, 1200, 1280), (False, 1300, 1320), (True, 1300, 1300)])
def test_a_client_with_ipv6_is_never_told_less_than_ipv6_promises(rs6: bool, mtu: int, told: int, make: Any) -> None:
    """Stacks ignore less (RFC 8200 5); what is no larger than that leaves in fragments of IPv4."""
    pair, names = Pair(make(mtu=mtu), True, rs6), iter(range(2, 9))
    if isinstance(pair.side, Naive):
        pair.side.reference.identify = lambda conn, frame, sender: next(names)
    sent = wire.tcp(*pair.client, *pair.vip, ACK, seq=1001, payload=bytes(1340))
    outcome, ((port, f),) = pair.side.deliver(WAN, sent)
    assert (outcome, port, f.icmp_type, struct.unpack("!I", f.icmp_rest)[0]) == ("mtu", WAN, 2, told)
    _, out = pair.side.deliver(WAN, wire.tcp(*pair.client, *pair.vip, ACK, seq=1001, payload=bytes(told - 60)))
    assert len(out) == (2 if mtu < 1260 else 1)


# ---- several workers ----


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("about", ["rs", "client"])
def test_an_error_finds_its_connection_on_any_worker(workers: int, about: str) -> None:
    crew = Crew(workers)
    for home in range(workers):
        (left,) = crew.put(home, WAN, wire.tcp(CLIENT, 1000 + home, VIP, 80, SYN, seq=5))
        sent = wire.read(left[2])
        for worker in range(workers):
            back = wire.tcp(sent.dst, 8080, sent.src, sent.sport, SYN | ACK, seq=1, ack=sent.seq + 1)
            ((_, _, to_client),) = crew.put(worker, LAN, back)
            quote, port = (left[2], LAN) if about == "rs" else (to_client, WAN)
            f = wire.read(quote)
            frame = wire.icmp("192.0.2.254", f.src, 3, 4, struct.pack("!I", 1400), quote[14 : 14 + 28])
            ((_, leaves, out),) = crew.put(worker, port, frame)
            got = wire.read(out)
            assert leaves == (WAN if about == "rs" else LAN)
            assert (got.src, got.dst) == ((VIP, CLIENT) if about == "rs" else (sent.src, sent.dst))
            assert wire.faults(out) == []
    stray = wire.tcp(LIP, 7, RS1, 8080, ACK)
    assert crew.put(0, LAN, wire.icmp("10.0.0.254", LIP, 3, 3, payload=stray[14:])) == []
    assert crew.counter("icmp_no_conn") == 1
    crew.close()


# ---- errors that the balancer makes ----


def limited(core: Any, **limits: Any) -> None:
    for side in core.both():
        side.put_settings(TIMEOUTS, True, (1024, 65535), **limits)
    core.plane.publish()


@pytest.mark.parametrize("make", [Core, Naive])
@pytest.mark.parametrize("six", [False, True])
def test_errors_have_a_rate(six: bool, make: Any) -> None:
    """A second's worth at once, then as many as the rate gives."""
    core = make()
    limited(core, icmp_rate=4)
    frame = wire.udp(CLIENT6 if six else CLIENT, 1, VIP6 if six else VIP, 81, b"x")
    sent = [len(core.deliver(WAN, frame)[1]) for _ in range(6)]
    assert sent == [1, 1, 1, 1, 0, 0]
    core.wait(0.5)
    assert [len(core.deliver(WAN, frame)[1]) for _ in range(3)] == [1, 1, 0]
    core.wait(60)
    assert [len(core.deliver(WAN, frame)[1]) for _ in range(5)] == [1, 1, 1, 1, 0]
    if isinstance(core, Core):
        counters = core.counters()
        assert (counters["no_service"], counters["icmp_errors_sent"], counters["icmp_errors_withheld"]) == (14, 10, 4)


@pytest.mark.parametrize("make", [Core, Naive])
@pytest.mark.parametrize("six", [False, True])
def test_echo_replies_have_a_rate(six: bool, make: Any) -> None:
    core = make()
    limited(core, echo_rate=3)
    ping = wire.echo_request(CLIENT6 if six else CLIENT, VIP6 if six else VIP)
    assert [core.deliver(WAN, ping)[0] for _ in range(5)] == ["answered"] * 3 + ["rate_limited"] * 2
    limited(core, echo_rate=0)
    assert [core.deliver(WAN, ping)[0] for _ in range(70)] == ["answered"] * 70


def test_rates_beyond_reason_are_refused() -> None:
    core = Core()
    for limits in ({"icmp_rate": 10_000_001}, {"echo_rate": 10_000_001}):
        with pytest.raises(OSError, match="rates"):
            limited(core, **limits)


@pytest.mark.parametrize("make", [Core, Naive])
def test_pings_of_a_vip_that_nobody_serves(make: Any) -> None:
    core = make()
    served = [(id, addr, "vip+served" if addr == VIP else kind, port) for id, addr, kind, port in ADDRESSES]
    for side in core.both():
        side.put_addresses(served)
    limited(core, echo_served=True)
    asked = {VIP: CLIENT, LIP: CLIENT, VIP6: CLIENT6, LIP6: CLIENT6}
    outcomes = {to: core.deliver(WAN, wire.echo_request(by, to))[0] for to, by in asked.items()}
    assert outcomes == {VIP: "answered", LIP: "answered", VIP6: "echo_unserved", LIP6: "answered"}
    limited(core, echo_served=False)
    assert core.deliver(WAN, wire.echo_request(CLIENT6, VIP6))[0] == "answered"


OWN, OWN6 = "192.0.2.5", "2001:db8:1::5"


@pytest.mark.parametrize("make", [Core, Naive])
@pytest.mark.parametrize("six", [False, True])
@pytest.mark.parametrize("named", ["", "route", "gateway"])
def test_traceroute_sees_the_balancer_as_a_hop_of_its_own(named: str, six: bool, make: Any) -> None:
    pair = Pair(make(), six, six)
    own, net = (OWN6, "2001:db8:1::/64") if six else (OWN, "192.0.2.0/24")
    routes = [(p, g, own if named == "route" and g and wire.is6(g) == six else s, *more) for p, g, s, *more in ROUTES]
    if named == "gateway":
        routes.append((net, "", own, WAN, 0, 0, "unicast"))
    for side in pair.side.both():
        side.put_routes(routes)
    pair.side.plane.publish()
    pair.side.wait(0.1)
    outcome, ((port, f),) = pair.side.deliver(WAN, wire.tcp(*pair.client, *pair.vip, ACK, ttl=1))
    assert (outcome, port, f.icmp_type) == ("ttl", WAN, 3 if six else 11)
    assert f.src == (own if named else pair.vip[0])


@pytest.mark.parametrize("make", [Core, Naive])
@pytest.mark.parametrize("eth_dst", [wire.BROADCAST, "01:00:5e:00:00:01"])
def test_no_error_about_what_many_got(eth_dst: str, make: Any) -> None:
    core = make()
    assert core.deliver(WAN, wire.udp(CLIENT, 1, VIP, 81, b"x", eth_dst=eth_dst)) == ("no_service", [])


# ---- neighbour discovery ----

HOST6, HOST_MAC = "fd00::200", "02:00:00:00:09:09"


@dataclass
class Asked:
    sentence: str
    frame: bytes
    outcome: str
    dst: str = ""  # of the advertisement
    flags: int = 0x60
    learned: bool = False
    port: int = LAN


def asks(target: str = LIP6, src: str = HOST6, dst: str = "", mac: str = HOST_MAC, **fields: Any) -> bytes:
    return icmp.solicitation(src, dst or icmp.solicited_node(target), target, mac, eth_src=HOST_MAC, **fields)


def damaged(frame: bytes, at: int, value: int, mend: bool = True) -> bytes:
    """A byte changed; the ICMPv6 checksum made right again."""
    changed = bytearray(frame)
    changed[at] = value
    if mend:
        changed[56:58] = b"\0\0"
        f = wire.read(bytes(changed))
        pseudo = wire.pseudo_header(f.src, f.dst, wire.ICMP6, len(changed) - 54)
        changed[56:58] = struct.pack("!H", wire.checksum_of(pseudo + bytes(changed[54:])))
    return bytes(changed)


TYPE, CODE, TARGET, OPTION, OPTION_LEN, HOP_LIMIT, MAC = 54, 55, 62, 78, 79, 21, 80
SOLICITATIONS = [
    Asked("a solicitation in the group of an owned address is answered", asks(), "answered", HOST6, learned=True),
    Asked("one to the address itself, too", asks(dst=LIP6), "answered", HOST6, learned=True),
    Asked("without a link-layer address nobody is learned", asks(mac="", dst=LIP6), "answered", HOST6),
    Asked("who asks from nowhere hears with everybody that the address is taken", asks(src="::", mac=""), "answered", icmp.ALL_NODES, 0x20),
    Asked("from a link-local address", asks(src="fe80::1"), "answered", "fe80::1"),
    Asked("about an address on the other port", asks(VIP6), "absorbed"),
    Asked("about somebody else", asks("fd00::99"), "absorbed"),
    Asked("from nowhere with a link-layer address", asks(src="::"), "nd"),
    Asked("from nowhere to the address itself", asks(src="::", dst=LIP6, mac=""), "nd"),
    Asked("from beyond the link", damaged(asks(), HOP_LIMIT, 254), "nd"),
    Asked("with a code", damaged(asks(), CODE, 1), "nd"),
    Asked("with a wrong checksum", damaged(asks(), 57, 0, mend=False), "nd"),
    Asked("about a group", damaged(asks(), TARGET, 0xFF), "nd"),
    Asked("with an option of no length", damaged(asks(), OPTION_LEN, 0), "nd"),
    Asked("with an option beyond its end", damaged(asks(), OPTION_LEN, 2), "nd"),
    Asked("with a group's link-layer address", damaged(asks(), MAC, 3), "nd"),
    Asked("cut short", wire.icmp(HOST6, LIP6, 135, 0, bytes(4), bytes(15), ttl=255), "nd"),
    Asked("with an unknown option", damaged(asks(), OPTION, 14), "answered", HOST6),
    Asked("a router's advertisement is nobody's", wire.icmp("fe80::1", "ff02::1", 134, 0, bytes(4), bytes(8), ttl=255), "not_ours"),
]  # fmt: skip


@pytest.mark.parametrize("make", [Core, Naive])
@pytest.mark.parametrize("row", SOLICITATIONS, ids=lambda r: r.sentence)
def test_solicitations(row: Asked, make: Any) -> None:
    core = make()
    outcome, out = core.deliver(row.port, row.frame)
    assert outcome == row.outcome
    if row.outcome == "answered":
        ((port, f),) = out
        said = icmp.discovery(f)
        assert said is not None and (port, f.src, f.dst, f.ttl) == (LAN, LIP6, row.dst, 255)
        assert (said.target, said.mac, f.icmp_rest[0]) == (LIP6, MACS[LAN], row.flags)
        assert f.eth_dst == (icmp.group_mac(row.dst) if row.dst == icmp.ALL_NODES else HOST_MAC)
    else:
        assert out == []
    if isinstance(core, Core):
        assert any(n.mac == HOST_MAC and n.addr == HOST6 for n in core.plane.neighbours()) == row.learned


@pytest.mark.parametrize("make", [Core, Naive])
def test_what_is_not_ours_goes_to_the_host(make: Any) -> None:
    core = make(punt=True)
    for frame in (asks("2001:db8:1::77"), icmp.advertisement(GATEWAY6, icmp.ALL_NODES, GATEWAY6, HOST_MAC, flags=0x20)):
        outcome, ((port, f),) = core.deliver(WAN, frame)
        assert (outcome, port, f.raw) == ("passed", -1 - WAN, frame)


ADVERTISEMENTS = [
    ("an unsolicited one with override moves a neighbour", {"flags": 0x20}, "02:00:00:00:09:0a", True),
    ("one without override does not", {"flags": 0x00}, "02:00:00:00:09:0a", False),
    ("a solicited one with override does", {"flags": 0x60}, "02:00:00:00:09:0a", True),
    ("one without a link-layer address tells nothing new", {"flags": 0x60}, "", False),
    ("a group's link-layer address is none", {"flags": 0x60}, "03:00:00:00:09:0a", False),
]


@pytest.mark.parametrize(("sentence", "fields", "mac", "moves"), ADVERTISEMENTS, ids=[a[0] for a in ADVERTISEMENTS])
def test_advertisements(sentence: str, fields: dict[str, int], mac: str, moves: bool) -> None:
    core = Core()
    core.deliver(LAN, asks())
    dst = LIP6 if fields["flags"] & 0x40 else icmp.ALL_NODES
    core.deliver(LAN, icmp.advertisement(HOST6, dst, HOST6, mac, eth_src=HOST_MAC, **fields))
    (known,) = [n.mac for n in core.plane.neighbours() if n.addr == HOST6]
    assert known == (mac if moves else HOST_MAC)


def test_who_is_not_known_is_not_learned_from_an_advertisement() -> None:
    core = Core()
    frame = icmp.advertisement(HOST6, icmp.ALL_NODES, HOST6, HOST_MAC, flags=0x20)
    assert core.deliver(LAN, frame)[0] == "absorbed"
    assert not any(n.addr == HOST6 for n in core.plane.neighbours())


LATE6, LATE_MAC = "fd00::150", "02:00:00:00:01:50"


def test_the_next_hop_is_asked_for_and_the_packet_waits() -> None:
    core = Core()
    core.service(vip=VIP6, members=[(0, LATE6, 8080, 1)], lips=[6])
    core.put(WAN, wire.tcp(CLIENT6, 40000, VIP6, 80, SYN))
    ((port, raw),) = core.step()
    f = wire.read(raw)
    said = icmp.discovery(f)
    assert wire.faults(raw) == [] and said is not None
    assert (port, f.icmp_type, f.src, f.dst) == (LAN, 135, LIP6, icmp.solicited_node(LATE6))
    assert (said.target, said.mac, f.eth_dst) == (LATE6, MACS[LAN], icmp.group_mac(f.dst))
    assert core.counters()["nd_solicitations_sent"] == 1
    out = core.send(LAN, icmp.advertisement(LATE6, LIP6, LATE6, LATE_MAC, eth_src=LATE_MAC))
    assert [(p, wire.read(x).dst, wire.read(x).eth_dst) for p, x in out] == [(LAN, LATE6, LATE_MAC)]
    core.check_sums()


def test_a_neighbour_that_is_used_is_asked_again_where_it_was() -> None:
    """30 s after the last sign of life: a solicitation to the neighbour itself; a solicited answer, even bare, is one."""
    core = Core()
    core.service(vip=VIP6, members=[(0, LATE6, 8080, 1)], lips=[6])
    core.put(WAN, wire.tcp(CLIENT6, 40000, VIP6, 80, SYN))
    core.step()
    core.send(LAN, icmp.advertisement(LATE6, LIP6, LATE6, LATE_MAC, eth_src=LATE_MAC))
    core.put(WAN, wire.tcp(CLIENT6, 40001, VIP6, 80, SYN))
    core.step()
    probes = [f for _, f in core.wait(32) if f.icmp_type == 135]
    assert probes and {(f.dst, f.eth_dst) for f in probes} == {(LATE6, LATE_MAC)}
    core.send(LAN, icmp.advertisement(LATE6, LIP6, LATE6, "", flags=0x40, eth_src=LATE_MAC))
    assert [n.state for n in core.plane.neighbours() if n.addr == LATE6] == ["REACHABLE"]


def test_a_neighbour_that_stays_silent_costs_the_packets_that_waited() -> None:
    core = Core()
    core.service(vip=VIP6, members=[(0, LATE6, 8080, 1)], lips=[6])
    core.put(WAN, wire.tcp(CLIENT6, 40000, VIP6, 80, SYN))
    core.step()
    core.wait(8)
    counters = core.counters()
    assert (counters["nd_solicitations_sent"], counters["neigh_unresolved"], counters["waiting"]) == (3, 1, 0)


# ---- announcements ----


def announced(core: Rig) -> list[tuple[int, str]]:
    out = []
    for port, raw in core.step() + core.step():
        f = wire.read(raw)
        assert wire.faults(raw) == [] and f.eth_src == MACS[port]
        if f.ethertype == wire.ETH_ARP:
            assert (f.arp_op, f.src, f.eth_dst) == (1, f.dst, wire.BROADCAST)
            out.append((port, f.src))
        else:
            said = icmp.discovery(f)
            assert said is not None and (f.dst, f.icmp_rest[0], said.mac) == (icmp.ALL_NODES, 0x20, MACS[port])
            out.append((port, said.target))
    return sorted(out)


def test_addresses_new_on_a_port_are_announced_once() -> None:
    core = Core()
    limited(core, announce=True)
    everything = sorted((port, addr) for _, addr, _, port in ADDRESSES)
    assert announced(core) == everything
    assert core.counters()["announcements_sent"] == len(everything)
    core.service()
    assert announced(core) == [], "a change of a service is none of addresses"
    core.plane.put_addresses(ADDRESSES[1:])
    core.plane.publish()
    assert announced(core) == []
    moved = [(id, addr, kind, LAN if addr == VIP6 else port) for id, addr, kind, port in ADDRESSES]
    core.plane.put_addresses(moved)
    core.plane.publish()
    assert announced(core) == [(WAN, VIP), (LAN, VIP6)], "one came back, one came by another port"


def test_nothing_is_announced_where_nobody_asks_for_it() -> None:
    assert announced(Core()) == []


def test_many_addresses_are_announced_in_time() -> None:
    core = Core(configured=False, snapshot_mib=2, frames=2048)
    core.configure(addresses=[(100 + i, f"192.0.{3 + i // 200}.{1 + i % 200}", "vip", WAN) for i in range(1000)])
    limited(core, announce=True)
    heard = set()
    for _ in range(20):
        core.now += SECOND // 64
        heard |= {addr for _, addr in announced(core)}
    assert len(heard) == 1000 + len(ADDRESSES)
