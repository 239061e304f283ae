"""ICMP errors about connections: RFC 5508 and RFC 7915, row by row, from either side, in and between both families.

An error comes from a router behind the client or before the server, quotes a packet that the balancer has sent there, and reaches the
sender of that packet, quoting it as the sender sent it.
"""

from __future__ import annotations

import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import packets as wire
import pytest
from packets import ACK, PSH, TCP, UDP
from rig import LAN, MACS, WAN

sys.path.insert(0, str(Path(__file__).parents[1] / "cases"))
from pairs import FAMILIES, Core6, Naive6, Pair
from talk import Result

both = pytest.mark.parametrize("make", [Core6, Naive6])
protocols = pytest.mark.parametrize("proto", [TCP, UDP], ids=["tcp", "udp"])
senders = pytest.mark.parametrize("sender", ["client's side", "server's side"])
ROUTERS = {("client's side", 4): "203.0.113.254", ("client's side", 6): "2001:db8:77::1",
           ("server's side", 4): "10.0.0.99", ("server's side", 6): "fd00::99"}  # fmt: skip
WORDS = b"0123456789abcdef"


@dataclass
class Trouble:
    """A connection on which the packet `quote` got into trouble on the sender's side; `sent` is what its sender had sent."""

    talk: Pair
    sender: str
    quote: bytes
    sent: wire.Frame

    @property
    def port(self) -> int:
        return WAN if self.sender == "client's side" else LAN

    @property
    def family(self) -> int:
        return self.quote[0] >> 4

    def error(self, kind: int, code: int, rest: int = 0, quote: bytes | None = None, **fields: Any) -> Result:
        to = wire.read(wire.ether(self.quote, ethertype=wire.ETH_IP6 if self.family == 6 else wire.ETH_IP4)).src
        message = self.quote if quote is None else quote
        words = {"rest": struct.pack("!I", rest), "payload": message, "eth_dst": MACS[self.port], **fields}
        return self.talk.side.deliver(self.port, wire.icmp(ROUTERS[self.sender, self.family], to, kind, code, **words))


def trouble(side: Any, family: str, proto: int, sender: str) -> Trouble:
    talk = Pair(side, family, proto)
    talk.establish() if proto == TCP else (talk.datagram(), talk.reply())
    if sender == "client's side":  # the server's packet, on its way to the client
        out = (talk.from_rs(ACK | PSH, WORDS) if proto == TCP else talk.reply(WORDS))[1]
        frame = wire.tcp(talk.rs, 8080, *talk.lip) if proto == TCP else wire.udp(talk.rs, 8080, *talk.lip)
    else:
        out = (talk.from_client(ACK | PSH, WORDS) if proto == TCP else talk.datagram(WORDS))[1]
        frame = wire.tcp(*talk.client, *talk.vip) if proto == TCP else wire.udp(*talk.client, *talk.vip)
    left = out[0][1]
    return Trouble(talk, sender, left.raw[14 : 14 + left.total], wire.read(frame))


def inside(f: wire.Frame) -> wire.Frame:
    return wire.read(wire.ether(f.payload, ethertype=wire.ETH_IP6 if f.payload[0] >> 4 == 6 else wire.ETH_IP4))


# ---- RFC 5508 ----


@both
@protocols
@senders
@pytest.mark.parametrize("family", FAMILIES)
def test_an_error_reaches_the_sender_of_what_it_quotes(family: str, sender: str, proto: int, make: Any) -> None:
    """Quoted headers as the sender sent them, outer addresses of the connection, no change of state; the way back works on."""
    t = trouble(make(), family, proto, sender)
    before = t.talk.side.state()
    outcome, [(port, f)] = t.error(3, 1) if t.family == 4 else t.error(1, 3)
    near, far = (t.talk.lip[0], t.talk.rs) if sender == "client's side" else (t.talk.vip[0], t.talk.client_address)
    assert outcome == ("to_rs" if port == LAN else "to_client")
    assert (port, f.src, f.dst) == (LAN if sender == "client's side" else WAN, near, far)
    assert inside(f).flow == t.sent.flow
    if proto == TCP:
        sent = t.talk.rs_seq if sender == "client's side" else t.talk.seq
        assert inside(f).seq == sent - len(WORDS)
    assert t.talk.side.state() == before


@both
@senders
@pytest.mark.parametrize("family", ["4to4", "6to6"])
def test_type_code_and_the_rest_stay_within_a_family(family: str, sender: str, make: Any) -> None:
    six = family == "6to6"
    errors = [(1, 0, 0), (1, 4, 0), (2, 0, 1400), (3, 0, 0), (4, 1, 6)] if six else [(3, 1, 0), (3, 3, 0), (3, 4, 1400), (3, 13, 0), (11, 0, 0), (12, 0, 9 << 24)]  # fmt: skip
    t = trouble(make(), family, UDP, sender)
    for kind, code, rest in errors:
        _, [(_, f)] = t.error(kind, code, rest)
        assert (f.icmp_type, f.icmp_code, f.icmp_rest) == (kind, code, struct.pack("!I", rest))


@both
@senders
@pytest.mark.parametrize("family", FAMILIES)
def test_an_error_with_a_wrong_checksum_ends(family: str, sender: str, make: Any) -> None:
    t = trouble(make(), family, UDP, sender)
    kind, code = (3, 1) if t.family == 4 else (1, 3)
    to = t.talk.vip[0] if sender == "client's side" else t.talk.lip[0]
    frame = bytearray(wire.icmp(ROUTERS[sender, t.family], to, kind, code, payload=t.quote, eth_dst=MACS[t.port]))
    frame[-1] ^= 1
    assert t.talk.side.deliver(t.port, bytes(frame)) == ("icmp_checksum", [])


@both
@senders
def test_options_of_the_quoted_header_are_walked_past(sender: str, make: Any) -> None:
    talk = Pair(make(), "4to4", UDP)
    talk.datagram()
    options = b"\x94\x04\0\0\1\1\1\0"
    if sender == "server's side":
        out = talk.datagram(WORDS, ip_options=options)[1]
        sent = wire.read(wire.udp(*talk.client, *talk.vip))
    else:
        out = talk.reply(WORDS, ip_options=options)[1]
        sent = wire.read(wire.udp(talk.rs, 8080, *talk.lip))
    left = out[0][1]
    t = Trouble(talk, sender, left.raw[14 : 14 + left.total], sent)
    _, [(_, f)] = t.error(3, 1)
    assert inside(f).flow == sent.flow and inside(f).l4 == 14 + 28


@both
@protocols
@senders
@pytest.mark.parametrize("family", FAMILIES)
def test_eight_bytes_behind_the_quoted_header_are_enough(family: str, sender: str, proto: int, make: Any) -> None:
    """RFC 792; the quoted transport checksum cannot be verified then, and is not."""
    t = trouble(make(), family, proto, sender)
    size = 28 if t.family == 4 else 48
    _, [(_, f)] = t.error(3, 1, quote=t.quote[:size]) if t.family == 4 else t.error(1, 3, quote=t.quote[:size])
    body = f.payload
    at = 20 if body[0] >> 4 == 4 else 40
    assert struct.unpack_from("!HH", body, at) == (t.sent.sport, t.sent.dport) and len(body) == at + 8


@both
@senders
@pytest.mark.parametrize("family", FAMILIES)
def test_a_wrong_quoted_transport_checksum_is_nobodys_business(family: str, sender: str, make: Any) -> None:
    t = trouble(make(), family, UDP, sender)
    quote = t.quote[:-1] + bytes([t.quote[-1] ^ 1])
    _, out = t.error(3, 1, quote=quote) if t.family == 4 else t.error(1, 3, quote=quote)
    assert len(out) == 1


@both
@senders
def test_a_wrong_quoted_ip_checksum_stays_as_wrong(sender: str, make: Any) -> None:
    """Routers quote headers after they have changed the TTL and not the checksum; the ports tell whose packet it is."""
    t = trouble(make(), "4to4", UDP, sender)
    quote = t.quote[:8] + bytes([t.quote[8] - 1]) + t.quote[9:]
    _, [(_, f)] = t.error(3, 1, quote=quote)
    assert inside(f).flow == t.sent.flow
    assert wire.residue(f.payload[:20]) == wire.residue(quote[:20]) != 0


@both
@senders
@pytest.mark.parametrize("family", ["4to4", "6to6"])
def test_objects_behind_the_quote_stay(family: str, sender: str, make: Any) -> None:
    """RFC 4884: the quote is padded to 128 bytes, then an object follows, which is not part of it."""
    t = trouble(make(), family, UDP, sender)
    objects = b"\x20\0\0\0" + b"\0\x08\1\1ABCD"
    quote = t.quote + bytes(128 - len(t.quote))
    length = 32 << 16 if t.family == 4 else 16 << 24
    _, [(_, f)] = t.error(*((3, 1) if t.family == 4 else (1, 3)), rest=length, quote=quote + objects)
    assert f.icmp_rest == struct.pack("!I", length)
    assert f.payload[128:] == objects and inside(f).flow == t.sent.flow


@both
@protocols
@senders
@pytest.mark.parametrize("family", FAMILIES)
def test_an_error_about_nothing_known_ends(family: str, sender: str, proto: int, make: Any) -> None:
    t = trouble(make(), family, proto, sender)
    at = 20 if t.family == 4 else 40
    quote = bytearray(t.quote)
    quote[at + 3] ^= 1  # another port of the receiver
    got = t.error(3, 1, quote=bytes(quote)) if t.family == 4 else t.error(1, 3, quote=bytes(quote))
    assert got == ("icmp_no_conn", [])


@both
@senders
def test_an_error_must_quote_its_receivers_packet(sender: str, make: Any) -> None:
    """What is addressed to a VIP and quotes a packet from elsewhere is a forgery."""
    t = trouble(make(), "4to4", UDP, sender)
    quote = wire.udp("192.0.2.11", 53, t.talk.client_address, 40000, b"x")[14:]
    assert t.error(3, 1, quote=quote) == ("icmp_quote", [])


@both
@protocols
def test_an_error_between_servers_that_are_clients(proto: int, make: Any) -> None:
    """A server that is a client of the VIP gets the error about what it sent to itself, under the VIP's name."""
    side = make()
    talk = Pair(side, "4to4", proto)
    talk.client = (talk.rs, 4000)
    first = wire.tcp(*talk.client, *talk.vip, wire.SYN) if proto == TCP else wire.udp(*talk.client, *talk.vip, b"x")
    [(_, there)] = side.deliver(LAN, first)[1]
    error = wire.icmp("10.0.0.99", there.src, 3, 1, payload=there.raw[14 : 14 + there.total], eth_dst=MACS[LAN])
    [(port, f)] = side.deliver(LAN, error)[1]
    assert (port, f.src, f.dst) == (LAN, talk.vip[0], talk.rs)
    assert inside(f).flow == (proto, *talk.client, *talk.vip)


@both
@senders
@pytest.mark.parametrize("family", FAMILIES)
def test_errors_do_not_keep_a_connection(family: str, sender: str, make: Any) -> None:
    """RFC 5508 REQ-6 says so of queries, RFC 7857 7.1 of all."""
    t = trouble(make(), family, UDP, sender)
    for _ in range(2):
        t.talk.side.wait(14, 0.25)
        t.error(3, 1) if t.family == 4 else t.error(1, 3)
    t.talk.side.wait(4, 0.25)
    assert t.talk.side.state() == ""


# ---- RFC 7915 ----

# type, code, rest of a message of IPv4, and what IPv6 calls it; None: nothing
FOUR_TO_SIX = [
    *((3, code, 0, (1, 0, 0)) for code in (0, 1, 5, 6, 7, 8, 11, 12)),
    (3, 2, 0, (4, 1, 6)),
    (3, 3, 0, (1, 4, 0)),
    (3, 4, 1400, (2, 0, 1420)),
    (3, 4, 576, (2, 0, 1280)),
    *((3, code, 0, (1, 1, 0)) for code in (9, 10, 13, 15)),
    (3, 14, 0, None),
    (4, 0, 0, None),
    (5, 0, 0, None),
    (11, 0, 0, (3, 0, 0)),
    (11, 1, 0, (3, 1, 0)),
    *((12, 0, at << 24, (4, 0, to)) for at, to in ((0, 0), (1, 1), (2, 4), (3, 4), (8, 7), (9, 6), (12, 8), (15, 8), (16, 24), (19, 24))),
    *((12, 0, at << 24, None) for at in (4, 5, 6, 7, 10, 11, 20)),
    (12, 1, 0, None),
    (12, 2, 0, (4, 0, 0)),
]  # fmt: skip

SIX_TO_FOUR = [
    (1, 0, 0, (3, 1, 0)),
    (1, 1, 0, (3, 10, 0)),
    (1, 2, 0, (3, 1, 0)),
    (1, 3, 0, (3, 1, 0)),
    (1, 4, 0, (3, 3, 0)),
    (2, 0, 1400, (3, 4, 1380)),
    (2, 0, 1280, (3, 4, 1260)),
    (3, 0, 0, (11, 0, 0)),
    (3, 1, 0, (11, 1, 0)),
    *((4, 0, at, (12, 0, to << 24)) for at, to in ((0, 0), (1, 1), (4, 2), (5, 2), (6, 9), (7, 8), (8, 12), (23, 12), (24, 16), (39, 16))),
    *((4, 0, at, None) for at in (2, 3, 40)),
    (4, 1, 0, (3, 2, 0)),
    (4, 2, 0, None),
    (137, 0, 0, None),
]  # fmt: skip


def spoken(rows: list[tuple[int, int, int, Any]]) -> list[Any]:
    return [pytest.param(*row, id=f"{row[0]}.{row[1]}.{row[2] >> 24 or row[2]}") for row in rows]


@both
@pytest.mark.parametrize(("family", "sender"), [("6to4", "server's side"), ("4to6", "client's side")])
@pytest.mark.parametrize(("kind", "code", "rest", "means"), spoken(FOUR_TO_SIX))
def test_what_ipv6_calls_an_error_of_ipv4(
    kind: int, code: int, rest: int, means: tuple[int, int, int] | None, family: str, sender: str, make: Any
) -> None:
    t = trouble(make(), family, UDP, sender)
    check(t, kind, code, rest, means)


@both
@pytest.mark.parametrize(("family", "sender"), [("4to6", "server's side"), ("6to4", "client's side")])
@pytest.mark.parametrize(("kind", "code", "rest", "means"), spoken(SIX_TO_FOUR))
def test_what_ipv4_calls_an_error_of_ipv6(
    kind: int, code: int, rest: int, means: tuple[int, int, int] | None, family: str, sender: str, make: Any
) -> None:
    t = trouble(make(), family, UDP, sender)
    check(t, kind, code, rest, means)


def check(t: Trouble, kind: int, code: int, rest: int, means: tuple[int, int, int] | None) -> None:
    _, out = t.error(kind, code, rest)
    if means is None:
        assert out == []
        return
    [(_, f)] = out
    assert (f.icmp_type, f.icmp_code, f.icmp_rest) == (*means[:2], struct.pack("!I", means[2]))
    assert inside(f).flow == t.sent.flow and inside(f).ethertype == t.sent.ethertype


@both
@pytest.mark.parametrize(("family", "sender"), [("6to4", "server's side"), ("4to6", "client's side")])
def test_fragmentation_needed_without_an_mtu(family: str, sender: str, make: Any) -> None:
    """RFC 1191 5: the next plateau below the quoted packet's length, but 1280 at least."""
    t = trouble(make(), family, UDP, sender)
    _, [(_, f)] = t.error(3, 4, 0)
    assert (f.icmp_type, struct.unpack("!I", f.icmp_rest)) == (2, (1280,))
