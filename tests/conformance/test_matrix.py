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

    @property
    def id(self) -> str:
        return f"{self.family}-{self.proto}-{self.identity}"


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


CELLS = [
    *(Cell(family, "TCP", "plain", tcp_plain) for family in FAMILIES),
    *(Cell(family, "UDP", "plain", udp_plain) for family in FAMILIES),
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
