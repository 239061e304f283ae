"""Core against reference under random operations.

Hypothesis makes up services, conversations and trouble; `rig.Twin` gives every frame to both sides and compares all that leaves,
all counters and all connections. `FNAT_PROPERTY_OPS=1000000` runs until that many operations (frames delivered, changes of
configuration, steps of time) are done and prints the number; without it a short run with fixed seeds is made.
"""

from __future__ import annotations

import os
import struct
import sys
from dataclasses import dataclass
from typing import Any

import packets as wire
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from packets import ACK, FIN, PARTIAL, PSH, RST, SYN, TCP, UDP
from reference import MASK, Conn
from rig import (
    ADDRESSES,
    CLIENT,
    CLIENT6,
    GATEWAY,
    GATEWAY6,
    LAN,
    LIP,
    LIP2,
    LIP6,
    MACS,
    RS1,
    RS2,
    RS3,
    RS4,
    RS6,
    RS6B,
    TIMEOUTS,
    VIP,
    VIP2,
    VIP6,
    WAN,
    Twin,
)

OPERATIONS = int(os.environ.get("FNAT_PROPERTY_OPS", "0"))
PROTOS = {0: TCP, 1: TCP, 2: UDP, 3: UDP, 4: TCP, 5: UDP}
VIPS = {0: (VIP, 80), 1: (VIP2, 443), 2: (VIP, 53), 3: (VIP2, 53), 4: (VIP6, 80), 5: (VIP6, 53)}
ids = st.sampled_from(list(PROTOS))
RSS = [RS1, RS2, RS3, RS4, RS6, RS6B]
LATE = "10.0.0.150"  # an RS whose MAC is learned by ARP
LATE_MAC = "02:00:00:00:01:50"
GATEWAYS = [GATEWAY, "192.0.2.2", "192.0.2.3"]
GATEWAYS6 = [GATEWAY6, "2001:db8:1::2", "2001:db8:1::3"]
CLIENTS = [CLIENT, "198.51.100.8", "203.0.113.9"]
CLIENTS6 = [CLIENT6, "2001:db8:99::8", "2001:db8:7::ffff:1"]

done = 0

ports = st.sampled_from([1024, 5000, 5001, 5002, 65535])
numbers = st.one_of(st.sampled_from([0, 1, 0x7FFFFFFF, 0x80000000, MASK - 1, MASK]), st.integers(0, MASK))
small = st.sampled_from([0, 1, 2, 3, 5, 8, 13, 100, 101, 536, 1000])
sums = st.sampled_from([None, None, None, PARTIAL, 0, 0xFFFF, 0x1234])
times = st.sampled_from([0.02, 0.02, 0.1, 0.1, 0.5, 0.5, 1.1, 1.1, 2.5, 3.2, 4.0, 8.0, 11.5, 21.5, 95.0])


def at_family(client: str, vip: str) -> str:
    """A client that can speak to this VIP."""
    return CLIENTS6[CLIENTS.index(client)] if wire.is6(vip) else client


@dataclass(eq=False)
class Flow:
    """One conversation as both ends see it; numbers are the senders' own."""

    proto: int
    client: tuple[str, int]
    vip: tuple[str, int]
    born: int
    isn: int = 0
    seq: int = 0  # next of the client
    rs_isn: int = 0
    rs_seq: int = 0  # next of the RS
    ts: int | None = None
    odd: bool = False  # the timestamp option lies at an odd offset

    def stamp(self, now: int) -> int:
        """A millisecond clock (RFC 7323 5.4)."""
        return ((self.ts or 0) + (now - self.born) // 1_000_000) & MASK

    def syn_options(self, now: int) -> bytes:
        base = wire.OPTION_MSS + wire.OPTION_SACK_OK + b"\1" * self.odd
        return base + struct.pack("!BBII", 8, 10, self.stamp(now), 0) if self.ts is not None else base


class CoreAndReference(RuleBasedStateMachine):
    flows: list[Flow]

    @initialize(
        punt=st.booleans(),
        conns=st.sampled_from([16, 200]),
        mtu=st.sampled_from([1500, 600]),
        lports=st.sampled_from([(1024, 65535), (5000, 5000), (65533, 65535)]),
    )
    def begin(self, punt: bool, conns: int, mtu: int, lports: tuple[int, int]) -> None:
        self.twin = Twin(punt=punt, conns=conns, mtu=mtu, lports=lports)
        self.twin.hosts[LAN, LATE] = LATE_MAC
        for i, gateway in enumerate([*GATEWAYS[1:], *GATEWAYS6[1:]]):
            for side in self.twin.both():
                side.neigh_set(WAN, gateway, f"02:00:00:00:02:{i:02x}", static=True)
        self.flows = []
        self.held: list[tuple[int, bytes]] = []
        self.ident = 0
        self.members: dict[int, list[tuple[int, str, int, int]]] = {}
        self.options: dict[int, dict[str, Any]] = {}
        for id in PROTOS:
            self.members[id] = [(id * 8, RS1, 8080, 1), (id * 8 + 1, RS2, 8080, 2)]
            if id % 2:
                self.members[id].append((id * 8 + 6, LATE, 8080, 1))
            else:
                self.members[id].append((id * 8 + 4, RS6, 8080, 1))
            self.options[id] = {"lips": [3, 4, 6], "expire_quiescent": id > 1}
            self.put(id)

    def put(self, id: int) -> None:
        self.twin.service(id, *VIPS[id], PROTOS[id], members=self.members[id], **self.options[id])

    def next_ident(self) -> int:
        self.ident = (self.ident + 1) & 0xFFFF
        return self.ident

    def mark(self) -> dict[str, int]:
        """By these a packet is known again, translated."""
        return {"ident": self.next_ident(), "tos": self.ident & 0xFF}

    def give(self, port: int, frame: bytes, hold: bool = False) -> None:
        """Deliver now, together with what was held back; or hold back for a turn with several packets."""
        self.held.append((port, frame))
        if not hold or len(self.held) > 20:
            frames, self.held = self.held, []
            self.twin.deliver(frames)

    def settle(self) -> None:
        if self.held:
            frames, self.held = self.held, []
            self.twin.deliver(frames)

    # ---- conversations ----

    @rule(
        service=st.sampled_from([0, 1, 4]),
        client=st.sampled_from(CLIENTS),
        port=ports,
        isn=numbers,
        ts=st.one_of(st.none(), numbers),
        odd=st.booleans(),
        data=small,
        sum=sums,
        hold=st.booleans(),
    )
    def open_tcp(
        self,
        service: int,
        client: str,
        port: int,
        isn: int,
        ts: int | None,
        odd: bool,
        data: int,
        sum: int | None,
        hold: bool,
    ) -> None:
        self.start_tcp(service, client, port, isn, ts, odd, bytes(data) if data == 13 else b"", sum, hold)

    def start_tcp(
        self,
        service: int,
        client: str,
        port: int,
        isn: int,
        ts: int | None,
        odd: bool,
        payload: bytes,
        sum: int | None,
        hold: bool,
    ) -> None:
        client = at_family(client, VIPS[service][0])
        flow = Flow(TCP, (client, port), VIPS[service], self.twin.now, isn, (isn + 1) & MASK, ts=ts, odd=odd)
        self.flows = [f for f in self.flows if (f.client, f.vip) != (flow.client, flow.vip)][-30:] + [flow]
        self.give(WAN, self.client_segment(flow, SYN, isn, 0, payload, flow.syn_options(self.twin.now), sum), hold)

    @rule(
        service=st.sampled_from([2, 3, 5]),
        client=st.sampled_from(CLIENTS),
        port=ports,
        data=small,
        sum=sums,
        hold=st.booleans(),
    )
    def open_udp(self, service: int, client: str, port: int, data: int, sum: int | None, hold: bool) -> None:
        client = at_family(client, VIPS[service][0])
        flow = Flow(UDP, (client, port), VIPS[service], self.twin.now)
        self.flows = [f for f in self.flows if (f.client, f.vip) != (flow.client, flow.vip)][-30:] + [flow]
        self.give(WAN, wire.udp(*flow.client, *flow.vip, bytes(data), checksum=sum, **self.mark()), hold)

    def client_segment(
        self,
        flow: Flow,
        flags: int,
        seq: int,
        ack: int,
        payload: bytes,
        options: bytes = b"",
        sum: int | None = None,
        ttl: int = 64,
        frag: int = wire.DF,
    ) -> bytes:
        return wire.tcp(
            *flow.client,
            *flow.vip,
            flags,
            seq=seq,
            ack=ack,
            payload=payload,
            options=options,
            checksum=sum,
            ttl=ttl,
            frag=frag,
            **self.mark(),
        )

    def connected(self, flow: Flow) -> Conn | None:
        self.settle()
        known = self.twin.reference.by_key.get((flow.proto, *flow.client, *flow.vip))
        return known[0] if known else None

    @precondition(lambda self: self.flows)
    @rule(data=st.data(), rs_isn=numbers, hold=st.booleans())
    def handshake(self, data: st.DataObject, rs_isn: int, hold: bool) -> None:
        flow = data.draw(st.sampled_from(self.flows))
        conn = self.connected(flow)
        if conn is not None and flow.proto == TCP:
            self.finish_handshake(flow, conn, rs_isn, hold)

    @rule(service=st.sampled_from([0, 1, 4]), n=st.integers(1, 5), isn=numbers, rs_isn=numbers, ts=st.booleans())
    def open_many(self, service: int, n: int, isn: int, rs_isn: int, ts: bool) -> None:
        """Connections with their whole handshakes."""
        for i in range(n):
            self.start_tcp(service, CLIENTS[i % 3], 5000 + i // 3, isn, isn if ts else None, False, b"", None, True)
        self.settle()
        for flow in self.flows[-n:]:
            conn = self.connected(flow)
            if conn is not None:
                self.finish_handshake(flow, conn, rs_isn, True)
        self.settle()

    def finish_handshake(self, flow: Flow, conn: Conn, rs_isn: int, hold: bool) -> None:
        """SYN-ACK and ACK, as real ends make them."""
        if conn.dseq is None or conn.dts is None:
            return
        flow.rs_isn, flow.rs_seq = rs_isn, (rs_isn + 1) & MASK
        self.give(LAN, self.rs_segment(flow, conn, SYN | ACK, flow.rs_isn, flow.seq, b""), True)
        options = wire.option_timestamp(flow.stamp(self.twin.now), 77) if flow.ts is not None else b""
        self.give(WAN, self.client_segment(flow, ACK, flow.seq, flow.rs_seq, b"", options), hold)

    def rs_segment(
        self,
        flow: Flow,
        conn: Conn,
        flags: int,
        seq: int,
        ack: int,
        payload: bytes,
        sum: int | None = None,
        blocks: int = 0,
        ttl: int = 64,
        frag: int = wire.DF,
    ) -> bytes:
        """What the RS would send: numbers of the client as the RS knows them."""
        dseq, dts = conn.dseq or 0, conn.dts or 0
        options = wire.option_timestamp(77, flow.stamp(self.twin.now) + dts) if flow.ts is not None else b""
        if blocks:
            options += wire.option_sack(
                [(ack + dseq + 100 * i, ack + dseq + 100 * i + 50) for i in range(1, blocks + 1)]
            )
        return wire.tcp(
            *conn.rs,
            *conn.lip,
            flags,
            seq=seq,
            ack=ack + dseq,
            payload=payload,
            options=options[:40],
            checksum=sum,
            ttl=ttl,
            frag=frag,
            eth_src=LATE_MAC,
            eth_dst=MACS[LAN],
            **self.mark(),
        )

    @precondition(lambda self: self.flows)
    @rule(
        data=st.data(),
        n=small,
        sum=sums,
        flags=st.sampled_from([ACK, ACK | PSH, ACK | FIN, ACK, FIN, RST, RST | ACK]),
        ttl=st.sampled_from([64, 64, 64, 2, 1, 0]),
        frag=st.sampled_from([wire.DF, wire.DF, 0]),
        hold=st.booleans(),
    )
    def client_sends(
        self, data: st.DataObject, n: int, sum: int | None, flags: int, ttl: int, frag: int, hold: bool
    ) -> None:
        flow = data.draw(st.sampled_from(self.flows))
        payload = bytes(i & 255 for i in range(n))
        if ttl <= 1:
            self.settle()
            hold = False
        if flow.proto == UDP:
            return self.give(
                WAN,
                wire.udp(*flow.client, *flow.vip, payload, checksum=sum, ttl=ttl, frag=frag, **self.mark()),
                hold,
            )
        options = wire.option_timestamp(flow.stamp(self.twin.now), 77) if flow.ts is not None else b""
        frame = self.client_segment(flow, flags, flow.seq, flow.rs_seq, payload, options, sum, ttl, frag)
        flow.seq = (flow.seq + n + bool(flags & FIN)) & MASK
        self.give(WAN, frame, hold)
        return None

    @precondition(lambda self: self.flows)
    @rule(
        data=st.data(),
        n=small,
        sum=sums,
        flags=st.sampled_from([ACK, ACK | PSH, ACK | FIN, ACK, FIN, RST, RST | ACK, SYN | ACK, SYN]),
        ttl=st.sampled_from([64, 64, 64, 2, 1]),
        blocks=st.sampled_from([0, 0, 1, 2, 3]),
        frag=st.sampled_from([wire.DF, wire.DF, 0]),
        hold=st.booleans(),
    )
    def rs_sends(
        self, data: st.DataObject, n: int, sum: int | None, flags: int, ttl: int, blocks: int, frag: int, hold: bool
    ) -> None:
        flow = data.draw(st.sampled_from(self.flows))
        conn = self.connected(flow)
        if conn is None or conn.dseq is None or conn.dts is None:
            return
        payload = bytes(-i & 255 for i in range(n))
        if flow.proto == UDP:
            frame = wire.udp(
                *conn.rs,
                *conn.lip,
                payload,
                checksum=sum,
                ttl=ttl,
                frag=frag,
                eth_dst=MACS[LAN],
                **self.mark(),
            )
            return self.give(LAN, frame, hold)
        frame = self.rs_segment(flow, conn, flags, flow.rs_seq, flow.seq, payload, sum, blocks, ttl, frag)
        flow.rs_seq = (flow.rs_seq + n + bool(flags & FIN)) & MASK
        self.give(LAN, frame, hold)
        return None

    @precondition(lambda self: self.flows)
    @rule(script=st.binary(min_size=4, max_size=48), n=small)
    def talk(self, script: bytes, n: int) -> None:
        """Well-behaved traffic of many conversations in a row: one byte a packet; several packets a turn."""
        for i, byte in enumerate(script):
            flow = self.flows[byte % len(self.flows)]
            known = self.twin.reference.by_key.get((flow.proto, *flow.client, *flow.vip))
            payload, hold = bytes([byte]) * (n + (byte & 7)), i % 8 != 7
            if byte & 0x80 or known is None:
                if flow.proto == UDP:
                    self.give(WAN, wire.udp(*flow.client, *flow.vip, payload, **self.mark()), hold)
                    continue
                options = wire.option_timestamp(flow.stamp(self.twin.now), 77) if flow.ts is not None else b""
                self.give(WAN, self.client_segment(flow, ACK | PSH, flow.seq, flow.rs_seq, payload, options), hold)
                flow.seq = (flow.seq + len(payload)) & MASK
                continue
            conn = known[0]
            if flow.proto == UDP:
                self.give(LAN, wire.udp(*conn.rs, *conn.lip, payload, eth_dst=MACS[LAN], **self.mark()), hold)
            elif conn.dseq is not None and conn.dts is not None:
                self.give(LAN, self.rs_segment(flow, conn, ACK, flow.rs_seq, flow.seq, payload, blocks=byte & 1), hold)
                flow.rs_seq = (flow.rs_seq + len(payload)) & MASK
        self.settle()

    @precondition(lambda self: self.flows)
    @rule(data=st.data(), hold=st.booleans())
    def syn_again(self, data: st.DataObject, hold: bool) -> None:
        """A retransmitted SYN, or one that wakes a finished connection."""
        flow = data.draw(st.sampled_from(self.flows))
        if flow.proto == TCP:
            self.give(WAN, self.client_segment(flow, SYN, flow.isn, 0, b"", flow.syn_options(self.twin.now)), hold)

    @precondition(lambda self: self.flows)
    @rule(
        data=st.data(), flags=st.integers(0, 255), seq=numbers, ack=numbers, from_rs=st.booleans(), hold=st.booleans()
    )
    def any_segment(self, data: st.DataObject, flags: int, seq: int, ack: int, from_rs: bool, hold: bool) -> None:
        """Any flags, any numbers."""
        flow = data.draw(st.sampled_from(self.flows))
        if flow.proto == UDP:
            return
        if not from_rs:
            return self.give(
                WAN, self.client_segment(flow, flags, seq, ack, b"", flow.syn_options(self.twin.now)), hold
            )
        conn = self.connected(flow)
        if conn is not None and conn.dseq is not None and conn.dts is not None:
            self.give(LAN, self.rs_segment(flow, conn, flags, seq, ack, b"xyz"), hold)
        return None

    @precondition(lambda self: self.flows)
    @rule(
        data=st.data(),
        options=st.binary(max_size=40),
        from_rs=st.booleans(),
        ip_options=st.sampled_from([b"", b"\1\1\1\0", b"\x94\4\0\0"]),
    )
    def any_options(self, data: st.DataObject, options: bytes, from_rs: bool, ip_options: bytes) -> None:
        flow = data.draw(st.sampled_from(self.flows))
        conn = self.connected(flow)
        if flow.proto == UDP or conn is None or conn.dseq is None or conn.dts is None:
            return
        options = wire.pad_options(options)[:40]
        ends = (conn.rs, conn.lip) if from_rs else (flow.client, flow.vip)
        seq = flow.rs_seq if from_rs else flow.seq
        frame = wire.tcp(
            *ends[0],
            *ends[1],
            ACK,
            seq=seq,
            ack=flow.seq,
            options=options,
            ip_options=ip_options,
            **self.mark(),
        )
        self.give(LAN if from_rs else WAN, frame)

    # ---- fragments ----

    @precondition(lambda self: self.flows)
    @rule(
        data=st.data(),
        from_rs=st.booleans(),
        n=st.sampled_from([0, 3, 40, 200, 200, 900, 1500, 3000]),
        size=st.sampled_from([8, 16, 24, 64, 256, 552, 1400]),
        sum=sums,
        flags=st.sampled_from([ACK, ACK | PSH, ACK | FIN, SYN, RST]),
        ttl=st.sampled_from([64, 64, 64, 64, 2, 1]),
        ident=st.one_of(st.integers(0, 3), st.integers(0, 0xFFFF)),
        trouble=st.sampled_from([""] * 6 + ["lost first", "lost", "twice", "twice", "overlap", "two ends", "odd", "too long"]),
        extensions=st.sampled_from([(), (), (), (60,)]),
    )
    def fragments(
        self,
        data: st.DataObject,
        from_rs: bool,
        n: int,
        size: int,
        sum: int | None,
        flags: int,
        ttl: int,
        ident: int,
        trouble: str,
        extensions: tuple[int, ...],
    ) -> None:
        """A datagram in fragments, in any order, several in a turn, with mishaps."""
        flow = data.draw(st.sampled_from(self.flows))
        conn = self.connected(flow)
        if from_rs and (conn is None or conn.dseq is None or conn.dts is None):
            return
        payload = bytes(i * 7 & 255 for i in range(n))
        if flow.proto == UDP:
            ends = (*conn.rs, *conn.lip) if from_rs and conn else (*flow.client, *flow.vip)
            fields: dict[str, Any] = {"extensions": extensions} if wire.is6(ends[0]) else {}
            whole = wire.udp(*ends, payload, checksum=sum, ttl=ttl, frag=0, **fields)
        elif from_rs and conn:
            whole = self.rs_segment(flow, conn, flags, flow.rs_seq, flow.seq, payload, sum, n & 1, ttl, 0)
            flow.rs_seq = (flow.rs_seq + n + bool(flags & (FIN | SYN))) & MASK
        else:
            options = flow.syn_options(self.twin.now)
            whole = self.client_segment(flow, flags, flow.seq, flow.rs_seq, payload, options, sum, ttl, 0)
            flow.seq = (flow.seq + n + bool(flags & (FIN | SYN))) & MASK
        self.cut(data, LAN if from_rs else WAN, whole, ident, size, trouble)

    def cut(self, data: st.DataObject, port: int, whole: bytes, ident: int, size: int, trouble: str) -> None:
        f = wire.read(whole)
        length = f.total - (40 if wire.is6(f.src) else f.l4 - 14)
        size = max(size, length // 24 // 8 * 8 + 8)
        places = [(at, min(at + size, length), at + size < length) for at in range(0, length, size)]
        at = data.draw(st.integers(0, len(places) - 1))
        start, end, more = places[at]
        if trouble == "lost first":
            del places[0]
        elif trouble == "lost":
            del places[at]
        elif trouble == "twice":
            places += [places[at]]
        elif trouble == "overlap":
            places += [(start, end + 8, more) if start % 16 else (start, max(start + 1, end - 8), more)]
        elif trouble == "two ends":
            places += [(start, end, not more)]
        elif trouble == "odd":
            places += [(start, end - 1, True)]
        elif trouble == "too long":
            places += [(65528 - 8 * (start % 3), 65535, False)]
        order = data.draw(st.permutations(places) if len(places) < 12 else st.sampled_from([places, places[::-1]]))
        last = data.draw(st.integers(0, 7))
        for i, (start, end, more) in enumerate(order):
            part = wire.piece(whole + bytes(65535) if start > 65000 else whole, start, end, ident, more=more, tos=self.mark()["tos"])
            self.give(port, part, hold=i % 8 != last)
        self.settle()

    @rule(
        data=st.data(),
        port=st.sampled_from([WAN, LAN]),
        pinged=st.sampled_from([VIP, LIP, VIP6]),
        n=st.sampled_from([0, 1, 100, 900]),
        size=st.sampled_from([8, 64, 512]),
        kind=st.sampled_from([8, 128, 0, 3]),
    )
    def ping_in_fragments(self, data: st.DataObject, port: int, pinged: str, n: int, size: int, kind: int) -> None:
        whole = wire.icmp(at_family(CLIENT, pinged), pinged, kind, 0, b"abcd", bytes(range(n % 256)) * 3, frag=0)
        self.cut(data, port, whole, 77, size, "")

    # ---- time and configuration ----

    @rule(seconds=times)
    def wait(self, seconds: float) -> None:
        self.settle()
        busy = any(n.waiting for n in self.twin.reference.neighbours.values())
        self.twin.wait(seconds, 1 / 64 if busy or seconds < 0.2 else 0.25)

    @rule(
        id=ids,
        at=st.integers(0, 3),
        weight=st.integers(0, 4),
        rip=st.sampled_from([*RSS, LATE]),
        action=st.sampled_from(["set", "set", "remove", "add"]),
    )
    def change_members(self, id: int, at: int, weight: int, rip: str, action: str) -> None:
        self.settle()
        members = self.members[id]
        if action == "add" and len(members) < 4 and all(m[1] != rip for m in members):
            members.append((id * 8 + [*RSS, LATE].index(rip), rip, 8080, weight))
        elif at < len(members) and action == "set":
            members[at] = (*members[at][:3], weight)
        elif at < len(members) and action == "remove":
            del members[at]
        self.put(id)
        self.twin.operations += 1

    @rule(
        id=ids,
        scheduler=st.sampled_from(["rr", "wrr"]),
        no_rs_reset=st.booleans(),
        expire_quiescent=st.booleans(),
        conn_timeout=st.sampled_from([0, 0, 5]),
        half_open=st.sampled_from([0, 0, 1, 2]),
        lips=st.sampled_from([[3, 4, 6], [3, 6], [4], [6], []]),
    )
    def change_service(self, id: int, **options: Any) -> None:
        self.settle()
        self.options[id] = options
        self.put(id)
        self.twin.operations += 1

    @rule(id=ids, weight=st.integers(0, 2))
    def drain(self, id: int, weight: int) -> None:
        """All members at once to one weight."""
        self.settle()
        self.members[id] = [(*m[:3], weight) for m in self.members[id]]
        self.put(id)
        self.twin.operations += 1

    @rule(id=ids, back=st.booleans())
    def remove_service(self, id: int, back: bool) -> None:
        self.settle()
        if id in self.twin.reference.services:
            self.twin.drop_service(id)
        if back:
            self.put(id)
        self.twin.operations += 1

    @rule(owned=st.sets(st.sampled_from([a[0] for a in ADDRESSES])), reset=st.booleans())
    def change_addresses(self, owned: set[int], reset: bool) -> None:
        self.settle()
        for side in self.twin.both():
            side.put_addresses([a for a in ADDRESSES if a[0] in owned or len(owned) < 3])
            side.put_settings(TIMEOUTS, reset, self.twin.lports)
        self.twin.plane.publish()
        self.twin.operations += 1

    @rule(
        gateways=st.sets(st.sampled_from(GATEWAYS), min_size=1),
        mtu=st.sampled_from([0, 0, 700, 1400]),
        lan_mtu=st.sampled_from([0, 0, 800]),
        part=st.sampled_from(["", "198.51.100.0/24"]),
    )
    def change_routes(self, gateways: set[str], mtu: int, lan_mtu: int, part: str) -> None:
        """Clients by equal-cost gateways, some of them by a route of their own; an MTU for either side."""
        self.settle()
        if any(n.waiting for n in self.twin.reference.neighbours.values()):
            return  # they would wait for one address in two queues
        mtu6, equals = max(mtu, 1280) if mtu else 0, sorted(GATEWAYS.index(gateway) for gateway in gateways)
        routes = [("0.0.0.0/0", GATEWAYS[i], "", WAN, mtu, 5, "unicast") for i in equals]
        routes += [("::/0", GATEWAYS6[i], "", WAN, mtu6, 5, "unicast") for i in equals]
        routes += [("0.0.0.0/0", GATEWAY, "", WAN, 68, 9, "unicast"), ("fd00::/64", "", "", LAN, 0, 0, "unicast")]
        routes += [("10.0.0.0/24", "", "", LAN, lan_mtu, 0, "unicast")]
        routes += [(part, GATEWAYS[2], "", WAN, 0, 0, "unicast")] if part else []
        for side in self.twin.both():
            side.put_routes(routes)
        self.twin.plane.publish()
        for _ in range(8):  # the pass over all connections
            self.twin.deliver([])
        self.twin.operations += 1

    @rule(up=st.booleans())
    def late_host(self, up: bool) -> None:
        """The host behind ARP comes or goes."""
        self.twin.hosts.pop((LAN, LATE), None)
        if up:
            self.twin.hosts[LAN, LATE] = LATE_MAC

    # ---- strangers ----

    @rule(
        src=st.sampled_from([*CLIENTS, "0.1.2.3", "127.0.0.1", "224.0.0.5", "255.255.255.255", VIP, LIP]),
        dst=st.sampled_from([VIP, VIP2, LIP, LIP2, GATEWAY, "192.0.2.77"]),
        port=st.sampled_from([53, 80, 443, 9, 65535]),
        kind=st.sampled_from([TCP, UDP, 1, 47]),
        flags=st.integers(0, 63),
        n=small,
        side=st.sampled_from([WAN, LAN]),
        frag=st.sampled_from([wire.DF, 0, wire.MF, 1, 0x1FFF]),
        hold=st.booleans(),
    )
    def stray(
        self, src: str, dst: str, port: int, kind: int, flags: int, n: int, side: int, frag: int, hold: bool
    ) -> None:
        """Packets of nobody: other ports, other protocols, fragments, sources that cannot be."""
        mark = self.mark()
        if kind == TCP:
            frame = wire.tcp(src, 7, dst, port, flags, payload=bytes(n), frag=frag, **mark)
        elif kind == UDP:
            frame = wire.udp(src, 7, dst, port, bytes(n), frag=frag, **mark)
        elif kind == 1:
            frame = wire.icmp(src, dst, flags, flags & 1, b"abcd", bytes(n), frag=frag, **mark)
        else:
            frame = wire.ether(wire.ipv4(bytes(n), src=src, dst=dst, proto=kind, frag=frag, **mark))
        self.give(side, frame, hold)

    @rule(
        src=st.sampled_from([*CLIENTS6, "::", "::1", "ff02::5", "fe80::1", "::ffff:1.2.3.4", VIP6, LIP6]),
        dst=st.sampled_from([VIP6, LIP6, GATEWAY6, "2001:db8:1::77"]),
        port=st.sampled_from([53, 80, 9]),
        kind=st.sampled_from([TCP, UDP, wire.ICMP6, 47]),
        flags=st.integers(0, 63),
        n=small,
        side=st.sampled_from([WAN, LAN]),
        extensions=st.lists(st.sampled_from([0, 43, 60]), max_size=3).map(tuple),
        sum=sums,
        hold=st.booleans(),
    )
    def stray6(
        self,
        src: str,
        dst: str,
        port: int,
        kind: int,
        flags: int,
        n: int,
        side: int,
        extensions: tuple[int, ...],
        sum: int | None,
        hold: bool,
    ) -> None:
        mark: dict[str, Any] = {**self.mark(), "extensions": extensions}
        if kind == TCP:
            frame = wire.tcp(src, 7, dst, port, flags, payload=bytes(n), checksum=sum, **mark)
        elif kind == UDP:
            frame = wire.udp(src, 7, dst, port, bytes(n), checksum=sum, **mark)
        elif kind == wire.ICMP6:
            frame = wire.icmp(src, dst, 100 + flags % 32, flags & 1, b"abcd", bytes(n), **mark)
        else:
            packet = wire.ipv6(bytes(n), src=src, dst=dst, proto=kind, extensions=extensions)
            frame = wire.ether(packet, ethertype=wire.ETH_IP6)
        self.give(side, frame, hold)

    @rule(
        op=st.sampled_from([1, 2, 3]),
        sender=st.sampled_from([GATEWAY, RS1, LATE, "10.0.0.200", "0.0.0.0", VIP]),
        wanted=st.sampled_from([VIP, LIP, "10.0.0.201", GATEWAY]),
        mac=st.sampled_from(["02:00:00:00:09:09", "03:00:00:00:09:09"]),
        side=st.sampled_from([WAN, LAN]),
        trailer=st.sampled_from([b"", bytes(18)]),
    )
    def arp(self, op: int, sender: str, wanted: str, mac: str, side: int, trailer: bytes) -> None:
        self.settle()
        mac = LATE_MAC if (side, sender) == (LAN, LATE) and mac.startswith("02") else mac
        if (side, sender) == (LAN, LATE) and (LAN, LATE) not in self.twin.hosts:
            return
        self.give(side, wire.arp(op, mac, sender, MACS[side], wanted) + trailer)

    @rule(
        data=st.data(),
        where=st.integers(0, 79),
        value=st.integers(0, 255),
        cut=st.integers(0, 80),
        fix=st.booleans(),
        side=st.sampled_from([WAN, LAN]),
    )
    def damaged(self, data: st.DataObject, where: int, value: int, cut: int, fix: bool, side: int) -> None:
        """A sound frame with a byte changed or an end cut off."""
        self.settle()
        whole = data.draw(
            st.sampled_from(
                [
                    wire.tcp(CLIENT, 5000, VIP, 80, SYN, **self.mark(), payload=b"0123456789"),
                    wire.udp(CLIENT, 5000, VIP, 53, b"0123456789", **self.mark()),
                    wire.echo_request(CLIENT, VIP, b"0123456789", ip_ident=self.next_ident()),
                    wire.arp(1, wire.CLIENT_MAC, "10.0.0.200", MACS[side], VIP),
                    wire.tcp(CLIENT6, 5000, VIP6, 80, SYN, payload=b"0123456789", extensions=(0, 60), **self.mark()),
                    wire.udp(CLIENT6, 5000, VIP6, 53, b"0123456789", extensions=(43,), **self.mark()),
                ]
            )
        )
        frame = bytearray(whole[: len(whole) - cut] if cut < 40 else whole)
        if where < len(frame):
            frame[where] = value
        if fix and len(frame) >= 34 and frame[12:14] == b"\x08\x00":
            header = (frame[14] & 15) * 4
            frame[24:26] = b"\0\0"
            frame[24:26] = struct.pack("!H", wire.checksum_of(bytes(frame[14 : 14 + header])))
        if frame and not surprising(bytes(frame)):
            self.give(side, bytes(frame))

    @rule(raw=st.binary(min_size=1, max_size=100), side=st.sampled_from([WAN, LAN]))
    def garbage(self, raw: bytes, side: int) -> None:
        self.give(side, raw, False)

    @rule(port=st.sampled_from([WAN, LAN]), pinged=st.sampled_from([VIP, LIP, VIP2, VIP6, LIP6]), n=small)
    def ping(self, port: int, pinged: str, n: int) -> None:
        self.give(port, wire.echo_request(at_family(CLIENT, pinged), pinged, bytes(n), ip_ident=self.next_ident()))

    @invariant()
    def sums_agree(self) -> None:
        if hasattr(self, "twin"):
            self.twin.check_sums()

    def teardown(self) -> None:
        global done
        if not hasattr(self, "twin") or self.twin.broken:
            return
        self.settle()
        self.twin.audit()
        self.twin.wait(100, 0.25)
        self.twin.check_empty()
        done += self.twin.operations
        self.twin.close()


def surprising(frame: bytes) -> bool:
    """Addresses that a changed byte invented: the connections they open would need hosts that nobody plays. A fragment header too."""
    if frame[12:14] == b"\x86\xdd" and len(frame) >= 54:
        return wire.addr_text(frame[22:38]) not in CLIENTS6
    return len(frame) >= 34 and frame[12:14] == b"\x08\x00" and wire.addr_text(frame[26:30]) not in CLIENTS


def settings_for(examples: int, steps: int, fixed: bool) -> settings:
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        derandomize=fixed,
        deadline=None,
        database=None,
        print_blob=True,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )


@pytest.mark.timeout(0)
def test_core_and_reference_agree(capsys: pytest.CaptureFixture[str]) -> None:
    if not OPERATIONS:
        run_state_machine_as_test(CoreAndReference, settings=settings_for(250, 50, True))
        return
    while done < OPERATIONS:
        run_state_machine_as_test(CoreAndReference, settings=settings_for(200, 100, False))
        with capsys.disabled():
            print(f"{done} operations", file=sys.stderr, flush=True)
