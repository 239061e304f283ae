"""The matrix: family of client and VIP → family of LIP and RS, protocol, and how the RS learns who the client is.

A row is one cell, or one way of proving it. `lists.py` makes the document's table from them.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import packets as wire
import pytest
from packets import ACK, FIN, PSH, TCP, UDP
from rig import LAN, MACS, RS_MACS, WAN

sys.path.insert(0, str(Path(__file__).parents[1] / "cases"))
from pairs import FAMILIES, Core6, Naive6, Pair
from talk import Result

COLUMNS = (
    ("TCP", "plain"),
    ("TCP", "TOA"),
    ("TCP", "PROXY"),
    ("UDP", "plain"),
    ("UDP", "UOA"),
    ("UDP", "PROXY"),
    ("echo", "plain"),
)
WORDS, ANSWER = b"GET / HTTP/1.0\r\n\r\n", b"HTTP/1.0 200 OK\r\n\r\n"


@dataclass(frozen=True)
class Cell:
    family: str
    proto: str
    identity: str
    act: Callable[[Any, str], None]
    kind: str = ""

    @property
    def id(self) -> str:
        return f"{self.family}-{self.proto}-{self.identity}{self.kind}"


def tcp_plain(side: Any, family: str) -> None:
    """A whole life: what each end sends, the other gets, under the right addresses, in its own numbers."""
    talk = Pair(side, family)
    _, out = talk.syn()
    [(port, syn)] = out
    assert (port, syn.src, syn.dst, syn.dport) == (LAN, talk.lip_address, talk.rs, 8080)
    talk.synack()
    talk.ack()
    for _ in range(3):
        seq = (talk.seq + talk.dseq) & 0xFFFFFFFF
        _, out = talk.from_client(ACK | PSH, WORDS)
        [(port, there)] = out
        assert (port, there.flow, there.payload, there.seq) == (LAN, syn.flow, WORDS, seq)
        _, out = talk.from_rs(ACK | PSH, ANSWER)
        [(port, back)] = out
        assert (port, back.flow, back.payload, back.ack) == (WAN, (TCP, *talk.vip, *talk.client), ANSWER, talk.seq)
    for close in (talk.from_client, talk.from_rs):
        assert len(close(FIN | ACK)[1]) == 1
    talk.ack()
    assert side.state() == "TIME_WAIT"


def udp_plain(side: Any, family: str) -> None:
    talk = Pair(side, family, UDP)
    for _ in range(3):
        [(port, there)] = talk.datagram(WORDS)[1]
        assert (port, there.src, there.dst, there.dport) == (LAN, talk.lip_address, talk.rs, 8080)
        assert there.payload == WORDS
        [(port, back)] = talk.reply(ANSWER)[1]
        assert (port, back.flow, back.payload) == (WAN, (UDP, *talk.vip, *talk.client), ANSWER)
    assert side.state() == "UDP_NORM"


def echo_plain(side: Any, family: str) -> None:
    talk = Pair(side, family)
    request = wire.echo_request(talk.client_address, talk.vip[0], WORDS, ident=9, seq=3)
    outcome, [(port, f)] = side.deliver(WAN, request)
    assert (outcome, port, f.src, f.dst) == ("answered", WAN, talk.vip[0], talk.client_address)
    assert (f.icmp_type, f.payload, f.icmp_rest) == (129 if family[0] == "6" else 0, WORDS, struct.pack("!HH", 9, 3))
    assert side.state() == ""


# ---- how the RS learns the client; formats as toa.ko, uoa.ko and proxy-protocol.txt have them ----


def end_of(talk: Pair, kind: int) -> bytes:
    """An option of TOA or UOA: kind, length, port, address."""
    raw = wire.addr_bytes(talk.client_address)
    return struct.pack("!BBH", kind, 4 + len(raw), talk.client[1]) + raw


def header_v1(talk: Pair) -> bytes:
    name = "TCP6" if ":" in talk.client_address else "TCP4"
    return f"PROXY {name} {talk.client_address} {talk.vip[0]} {talk.client[1]} {talk.vip[1]}\r\n".encode()


def header_v2(talk: Pair) -> bytes:
    ends = wire.addr_bytes(talk.client_address) + wire.addr_bytes(talk.vip[0])
    ends += struct.pack("!HH", talk.client[1], talk.vip[1])
    family = (0x20 if ":" in talk.client_address else 0x10) | (1 if talk.proto == TCP else 2)
    return b"\r\n\r\n\0\r\nQUIT\n" + struct.pack("!BBH", 0x21, family, len(ends)) + ends


def tcp_toa(side: Any, family: str) -> None:
    """In the ACK of the handshake and in the first data; no longer once the server has spoken."""
    talk = Pair(side, family, client_addr="toa")
    assert first_option(talk.syn()) != 254
    talk.synack()
    for result in (talk.ack(), talk.from_client(ACK | PSH, WORDS)):
        [(_, f)] = result[1]
        size = 20 if ":" in talk.client_address else 8
        assert f.raw[f.l4 + 20 : f.l4 + 20 + size] == end_of(talk, 254)
    assert f.payload == WORDS
    talk.from_rs(ACK | PSH, ANSWER)
    assert first_option(talk.ack()) != 254


def first_option(result: Result) -> int:
    [(_, f)] = result[1]
    return f.raw[f.l4 + 20]


def tcp_proxy(version: int) -> Callable[[Any, str], None]:
    def act(side: Any, family: str) -> None:
        """The header is the first of the server's stream, whatever comes next, and all numbers fit."""
        talk = Pair(side, family, client_addr=f"proxy-v{version}")
        header = header_v1(talk) if version == 1 else header_v2(talk)
        talk.syn()
        talk.synack()
        stream, begin = bytearray(), talk.seq + talk.dseq
        for result in (talk.ack(), talk.from_client(ACK | PSH, WORDS), talk.from_client(ACK | PSH, ANSWER)):
            for _, f in result[1]:
                at = (f.seq - begin) & 0xFFFFFFFF
                stream[at : at + len(f.payload)] = f.payload
        assert bytes(stream) == header + WORDS + ANSWER
        _, [(_, back)] = talk.from_rs(ACK, ack=talk.seq + len(header))
        assert back.ack == talk.seq

    return act


def udp_uoa(side: Any, family: str) -> None:
    """A header of protocol 248 before UDP, until the server has answered."""
    talk = Pair(side, family, UDP, client_addr="uoa-opp")
    option = end_of(talk, 0x1F)
    version = 2 if ":" in talk.client_address else 1
    [(_, f)] = talk.datagram(WORDS)[1]
    start = 14 + (40 if ":" in talk.rs else 20)
    assert f.raw[20 if ":" in talk.rs else 23] == 248
    assert f.raw[start : start + 4 + len(option)] == struct.pack("!BBH", version << 4, UDP, 4 + len(option)) + option
    assert f.payload == WORDS
    talk.reply(ANSWER)
    [(_, f)] = talk.datagram(WORDS)[1]
    assert f.raw[20 if ":" in talk.rs else 23] == UDP and f.payload == WORDS


def udp_uoa_ipo(side: Any, family: str) -> None:
    """An IPv4 option, where there is IPv4 on both sides."""
    talk = Pair(side, family, UDP, client_addr="uoa-ipo")
    [(_, f)] = talk.datagram(WORDS)[1]
    assert f.raw[34:42] == end_of(talk, 0x1F) and f.payload == WORDS


def udp_proxy(side: Any, family: str) -> None:
    """In the first datagram."""
    talk = Pair(side, family, UDP, client_addr="proxy-v2")
    [(_, f)] = talk.datagram(WORDS)[1]
    assert f.payload == header_v2(talk) + WORDS
    [(_, f)] = talk.datagram(WORDS)[1]
    assert f.payload == WORDS
    [(_, f)] = talk.reply(ANSWER)[1]
    assert f.payload == ANSWER


CELLS = [
    *(Cell(family, "TCP", "plain", tcp_plain) for family in FAMILIES),
    *(Cell(family, "TCP", "TOA", tcp_toa) for family in FAMILIES),
    *(Cell(family, "TCP", "PROXY", tcp_proxy(version), f"v{version}") for family in FAMILIES for version in (1, 2)),
    *(Cell(family, "UDP", "plain", udp_plain) for family in FAMILIES),
    *(Cell(family, "UDP", "UOA", udp_uoa) for family in FAMILIES),
    Cell("4to4", "UDP", "UOA", udp_uoa_ipo, "ipo"),
    *(Cell(family, "UDP", "PROXY", udp_proxy, "v2") for family in FAMILIES),
    *(Cell(family, "echo", "plain", echo_plain) for family in FAMILIES),
]


def cells() -> dict[tuple[str, str, str], list[str]]:
    """What is proved, by which rows."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for cell in CELLS:
        found.setdefault((cell.family, cell.proto, cell.identity), []).append(cell.id)
    return found


@pytest.mark.parametrize("make", [Core6, Naive6])
@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.id)
def test_cell(cell: Cell, make: Any) -> None:
    cell.act(make(), cell.family)


@pytest.mark.parametrize("make", [Core6, Naive6])
@pytest.mark.parametrize("family", ["4to4", "6to6"])
def test_an_echo_from_a_server_is_answered(family: str, make: Any) -> None:
    talk = Pair(make(), family)
    request = wire.echo_request(talk.rs, talk.vip[0], b"abc", eth_src=RS_MACS[talk.rs], eth_dst=MACS[LAN])
    outcome, [(port, f)] = talk.side.deliver(LAN, request)
    assert (outcome, port, f.src, f.dst, f.payload) == ("answered", LAN, talk.vip[0], talk.rs, b"abc")
    assert f.icmp_type in (0, 129)
