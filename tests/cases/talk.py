"""One conversation through one service, for rows of tests; the same words drive the core and the reference.

A side takes (port, frame) and returns the outcome and the frames that leave. `Talk` speaks for the client and the RS in their own
numbers; what the client and the RS receive is read back through the shifts seen on the SYN.
"""

from __future__ import annotations

from typing import Any, Protocol

import packets as wire
from packets import ACK, FIN, PSH, RST, SYN, TCP, UDP
from reference import MASK, Choice, Conn, Reference
from rig import CLIENT, LAN, LIP, LIP6, MACS, OUTCOMES, RS1, SECOND, START, VIP, WAN, Rig

Result = tuple[str, list[tuple[int, wire.Frame]]]
LPORT, DSEQ, DTS = 2000, 0x12345678, 0x9ABC


class Side(Protocol):
    now: int

    def both(self) -> list[Any]: ...
    def service(self, id: int = 0, vip: str = VIP, vport: int = 80, proto: int = TCP, **options: Any) -> None: ...
    def drop_service(self, id: int) -> None: ...
    def deliver(self, port: int, frame: bytes) -> Result: ...
    def wait(self, seconds: float) -> list[tuple[int, wire.Frame]]: ...
    def state(self) -> str: ...


def frames(out: list[tuple[int, bytes]]) -> list[tuple[int, wire.Frame]]:
    for _, frame in out:
        assert wire.faults(frame) == [], wire.describe(frame)
    return [(port, wire.read(frame)) for port, frame in out]


class Core(Rig):
    """The core; the outcome is the one counter that rose."""

    def deliver(self, port: int, frame: bytes) -> Result:
        before = self.counters()
        out = self.send(port, frame)
        moved = {name for name, by in self.moved(before).items() if by > 0}
        self.check_sums()
        outcome = "parked" if "parked" in moved else next(k for k in OUTCOMES if k in moved)
        return outcome, frames(out)

    def wait(self, seconds: float, step: float = 1 / 64) -> Any:
        return frames(super().wait(seconds, step))

    def state(self) -> str:
        return " ".join(c.state for c in self.conns())


class Naive(Rig):
    """The reference; it chooses LIP port 2000 and fixed shifts, and ends idle connections on the tick."""

    def __init__(
        self, *, mtu: int = 1500, punt: bool = False, lports: tuple[int, int] = (1024, 65535), conns: int = 1024
    ) -> None:
        self.reference = Reference(conns=conns)
        self.reference.choose = self._choose
        self.reference.observe = lambda conn, frame, sender: (DSEQ, DTS)
        if punt:
            self.reference.punt.add(WAN)
        self.now = self.reference.now = START
        self.lports = lports
        self.plane = type("Nothing", (), {"publish": lambda self: None})()
        self.configure(mtu)

    def both(self) -> list[Any]:
        return [self.reference]

    def _choose(self, conn: Conn, frame: bytes) -> Choice:
        port = max(LPORT, self.lports[0]) + self.reference.count["conns_opened"]
        return Choice(LIP6 if wire.is6(conn.rs[0]) else LIP, port)

    def deliver(self, port: int, frame: bytes) -> Result:
        self.reference.now = self.now
        outcome = self.reference.receive(port, frame)
        self.reference.end_turn()
        out, self.reference.sent = self.reference.sent, []
        return outcome, frames(out)

    def wait(self, seconds: float, step: float = 1 / 64) -> Any:
        self.now += int(seconds * SECOND)
        self.reference.now = self.now
        self.reference.begin_turn()
        for conn in [c for c in self.reference.conns if self.reference.deadline(c) <= self.reference.tick]:
            self.reference.expire(conn)
        out, self.reference.sent = self.reference.sent, []
        return frames(out)

    def state(self) -> str:
        return " ".join(c.state for c in self.reference.conns)


class Talk:
    """Client CLIENT:40000 and VIP:80 (UDP: VIP:53), RS1:8080."""

    def __init__(self, side: Any, proto: int = TCP, isn: int = 1000, ts: int | None = 500, **service: Any) -> None:
        self.side, self.proto, self.ts = side, proto, ts
        self.vip = (VIP, 80 if proto == TCP else 53)
        self.client, self.seq, self.rs_seq, self.isn = (CLIENT, 40000), isn, 9000, isn
        self.lip: tuple[str, int] = ("", 0)
        self.dseq = self.dts = 0
        self.side.service(proto=proto, vport=self.vip[1], **service)

    def _learn(self, result: Result, sent: wire.Frame) -> Result:
        for port, f in result[1]:
            if port == LAN and f.dst == RS1 and f.proto == self.proto:
                self.lip = (f.src, f.sport)
                self.dseq = (f.seq - sent.seq) & MASK
                self.dts = (f.ts[0] - sent.ts[0]) & MASK if f.ts and sent.ts else 0
        return result

    def _options(
        self, syn: bool, sack: list[tuple[int, int]] | None = None, echo: int = 0, value: int | None = None
    ) -> bytes:
        out = wire.OPTION_MSS if syn else b""
        if self.ts is not None:
            out += wire.option_timestamp(self.ts if value is None else value, echo)
        return out + (wire.option_sack(sack) if sack else b"")

    def from_client(self, flags: int, payload: bytes = b"", **fields: Any) -> Result:
        syn = bool(flags & SYN)
        fields = {
            "seq": self.isn if syn else self.seq,
            "ack": self.rs_seq if flags & ACK else 0,
            "options": self._options(syn),
            **fields,
        }
        frame = wire.tcp(*self.client, *self.vip, flags, payload=payload, **fields)
        if not syn:
            self.seq = (self.seq + len(payload) + bool(flags & FIN)) & MASK
        result = self.side.deliver(WAN, frame)
        return self._learn(result, wire.read(frame)) if syn else result

    def from_rs(
        self, flags: int, payload: bytes = b"", sack: list[tuple[int, int]] | None = None, **fields: Any
    ) -> Result:
        """ack and sack are in the client's numbers; the RS speaks of shifted ones."""
        ack = (fields.pop("ack", self.seq) + self.dseq) & MASK
        blocks = [(a + self.dseq, b + self.dseq) for a, b in sack or []]
        options = fields.pop(
            "options", self._options(bool(flags & SYN), blocks, echo=(self.ts or 0) + self.dts, value=77)
        )
        frame = wire.tcp(
            RS1,
            8080,
            *self.lip,
            flags,
            **{"seq": self.rs_seq, "ack": ack, "payload": payload, "options": options, "eth_dst": MACS[LAN], **fields},
        )
        if flags & SYN or payload or flags & FIN:
            self.rs_seq = (self.rs_seq + len(payload) + bool(flags & SYN) + bool(flags & FIN)) & MASK
        return self.side.deliver(LAN, frame)

    def syn(self, **fields: Any) -> Result:
        result = self.from_client(SYN, **fields)
        self.seq = (self.isn + 1) & MASK
        return result

    def synack(self, **fields: Any) -> Result:
        return self.from_rs(SYN | ACK, **fields)

    def ack(self, **fields: Any) -> Result:
        return self.from_client(ACK, **fields)

    def establish(self) -> Talk:
        assert self.syn()[0] == "to_rs"
        assert self.synack()[0] == "to_client"
        assert self.ack()[0] == "to_rs"
        return self

    def datagram(self, payload: bytes = b"query", **fields: Any) -> Result:
        frame = wire.udp(*self.client, *self.vip, payload, **fields)
        return self._learn(self.side.deliver(WAN, frame), wire.read(frame))

    def reply(self, payload: bytes = b"answer", **fields: Any) -> Result:
        return self.side.deliver(LAN, wire.udp(RS1, 8080, *self.lip, payload, eth_dst=MACS[LAN], **fields))


__all__ = ["ACK", "FIN", "PSH", "RST", "SYN", "UDP", "Core", "Naive", "Result", "Talk"]
