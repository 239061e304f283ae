"""Conversations of any pair of families: `Pair(side, "6to4")` is a Talk whose client and VIP are IPv6 and whose LIP and RS are IPv4.

`Core6` and `Naive6` are talk.py's sides; the reference takes a LIP of the RS's family, and ports may differ in their MTU.
"""

from __future__ import annotations

from typing import Any

import packets as wire
from packets import FIN, SYN, TCP, UDP
from reference import MASK, Choice, Conn
from rig import CLIENT, CLIENT6, LAN, LIP, LIP6, LIP_IDS, MACS, RS1, RS2, RS6, RS6B, VIP, VIP6, WAN
from talk import LPORT, Core, Naive, Result, Talk

FAMILIES = ("4to4", "6to6", "6to4", "4to6")
CLIENTS = {"4": (CLIENT, VIP), "6": (CLIENT6, VIP6)}
SERVERS = {"4": ((RS1, RS2), LIP), "6": ((RS6, RS6B), LIP6)}


def with_mtu(side: Any, mtu: int, lan_mtu: int | None) -> Any:
    for plane in side.both():
        plane.put_port(WAN, "wan", MACS[WAN], mtu)
        plane.put_port(LAN, "lan", MACS[LAN], lan_mtu or mtu)
    side.plane.publish()
    return side


def Core6(mtu: int = 1500, lan_mtu: int | None = None, **options: Any) -> Any:
    return with_mtu(Core(**options), mtu, lan_mtu)


class _Naive6(Naive):
    def _choose(self, conn: Conn, frame: bytes) -> Choice:
        lip = LIP6 if wire.is6(conn.rs[0]) else LIP
        return Choice(lip, max(LPORT, self.lports[0]) + self.reference.count["conns_opened"])


def Naive6(mtu: int = 1500, lan_mtu: int | None = None, **options: Any) -> Any:
    return with_mtu(_Naive6(**options), mtu, lan_mtu)


class Pair(Talk):
    """Client:40000 and VIP:80 (UDP: VIP:53), RS:8080."""

    def __init__(self, side: Any, family: str, proto: int = TCP, isn: int = 1000, ts: int | None = 500, **service: Any):
        self.family = family
        self.client_address, vip = CLIENTS[family[0]]
        (self.rs, _), self.lip_address = SERVERS[family[-1]]
        service = {"vip": vip, "members": [(0, self.rs, 8080, 1)], "lips": [LIP_IDS[self.lip_address]], **service}
        super().__init__(side, proto, isn, ts, **service)
        self.vip, self.client = (vip, self.vip[1]), (self.client_address, 40000)

    def _learn(self, result: Result, sent: wire.Frame) -> Result:
        for port, f in result[1]:
            if port == LAN and f.dst == self.rs and f.proto == self.proto:
                self.lip = (f.src, f.sport)
                self.dseq = (f.seq - sent.seq) & MASK
                self.dts = (f.ts[0] - sent.ts[0]) & MASK if f.ts and sent.ts else 0
        return result

    def from_rs(
        self, flags: int, payload: bytes = b"", sack: list[tuple[int, int]] | None = None, **fields: Any
    ) -> Result:
        ack = (fields.pop("ack", self.seq) + self.dseq) & MASK
        blocks = [(a + self.dseq, b + self.dseq) for a, b in sack or []]
        options = fields.pop(
            "options", self._options(bool(flags & SYN), blocks, echo=(self.ts or 0) + self.dts, value=77)
        )
        words = {"seq": self.rs_seq, "ack": ack, "payload": payload, "options": options, "eth_dst": MACS[LAN]}
        frame = wire.tcp(self.rs, 8080, *self.lip, flags, **{**words, **fields})
        if flags & (SYN | FIN) or payload:
            self.rs_seq = (self.rs_seq + len(payload) + bool(flags & SYN) + bool(flags & FIN)) & MASK
        return self.side.deliver(LAN, frame)

    def reply(self, payload: bytes = b"answer", **fields: Any) -> Result:
        return self.side.deliver(LAN, wire.udp(self.rs, 8080, *self.lip, payload, eth_dst=MACS[LAN], **fields))


__all__ = ["CLIENTS", "FAMILIES", "SERVERS", "UDP", "Core6", "Naive6", "Pair"]
