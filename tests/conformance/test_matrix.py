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
from rig import CLIENT, LAN, LIP, MACS, RS1, RS_MACS, VIP, WAN

sys.path.insert(0, str(Path(__file__).parents[1] / "cases"))
from talk import Core, Naive, Talk

FAMILIES = ("4to4", "6to6", "6to4", "4to6")
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
    act: Callable[[Any], None]

    @property
    def id(self) -> str:
        return f"{self.family}-{self.proto}-{self.identity}"


def tcp_plain_4to4(side: Any) -> None:
    """A whole life: what each end sends, the other gets, under the right addresses, in its own numbers."""
    talk = Talk(side)
    _, out = talk.syn()
    [(port, syn)] = out
    assert (port, syn.src, syn.dst, syn.dport) == (LAN, LIP, RS1, 8080)
    talk.synack()
    talk.ack()
    for _ in range(3):
        seq = (talk.seq + talk.dseq) & 0xFFFFFFFF
        _, out = talk.from_client(ACK | PSH, WORDS)
        [(port, there)] = out
        assert (port, there.flow, there.payload, there.seq) == (LAN, syn.flow, WORDS, seq)
        _, out = talk.from_rs(ACK | PSH, ANSWER)
        [(port, back)] = out
        assert (port, back.flow, back.payload, back.ack) == (WAN, (TCP, VIP, 80, CLIENT, 40000), ANSWER, talk.seq)
    for close in (talk.from_client, talk.from_rs):
        assert len(close(FIN | ACK)[1]) == 1
    talk.ack()
    assert side.state() == "TIME_WAIT"


def udp_plain_4to4(side: Any) -> None:
    talk = Talk(side, UDP)
    for _ in range(3):
        [(port, there)] = talk.datagram(WORDS)[1]
        assert (port, there.src, there.dst, there.dport, there.payload) == (LAN, LIP, RS1, 8080, WORDS)
        [(port, back)] = talk.reply(ANSWER)[1]
        assert (port, back.flow, back.payload) == (WAN, (UDP, VIP, 53, CLIENT, 40000), ANSWER)


def echo_plain_4to4(side: Any) -> None:
    side.service()
    outcome, [(port, f)] = side.deliver(WAN, wire.echo_request(CLIENT, VIP, WORDS, ident=9, seq=3))
    assert (outcome, port, f.src, f.dst, f.icmp_type, f.payload) == ("answered", WAN, VIP, CLIENT, 0, WORDS)
    assert f.icmp_rest == struct.pack("!HH", 9, 3)


CELLS = [
    Cell("4to4", "TCP", "plain", tcp_plain_4to4),
    Cell("4to4", "UDP", "plain", udp_plain_4to4),
    Cell("4to4", "echo", "plain", echo_plain_4to4),
]


def cells() -> dict[tuple[str, str, str], list[str]]:
    """What is proved, by which rows."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for cell in CELLS:
        found.setdefault((cell.family, cell.proto, cell.identity), []).append(cell.id)
    return found


@pytest.mark.parametrize("make", [Core, Naive])
@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.id)
def test_cell(cell: Cell, make: Any) -> None:
    cell.act(make())


@pytest.mark.parametrize("make", [Core, Naive])
def test_an_echo_from_a_server_is_answered(make: Any) -> None:
    side = make()
    side.service()
    request = wire.echo_request(RS1, VIP, b"abc", eth_src=RS_MACS[RS1], eth_dst=MACS[LAN])
    outcome, [(port, f)] = side.deliver(LAN, request)
    assert (outcome, port, f.src, f.dst, f.icmp_type, f.payload) == ("answered", LAN, VIP, RS1, 0, b"abc")
