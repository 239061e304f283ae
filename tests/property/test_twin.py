"""Core against reference under random operations.

Hypothesis makes up services, conversations and trouble; `rig.Twin` gives every frame to both sides and compares all that leaves,
all counters and all connections. `FNAT_PROPERTY_OPS=1000000` runs until that many operations (frames delivered, changes of
configuration, steps of time) are done and prints the number; without it a short run with fixed seeds is made.
"""

from __future__ import annotations

import ipaddress
import os
import struct
import sys
from dataclasses import dataclass
from typing import Any

import packets as wire
import pytest
import reference_icmp as icmp
import reference_quic as quic
import reference_sctp as sctp
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
from packets import ACK, FIN, PARTIAL, PSH, RST, SCTP, SYN, TCP, UDP
from reference import MASK, ONE_PACKET, Conn
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
from telling import SIGNATURE

from fnat.model import GROWING, HASHING, SCHEDULERS

OPERATIONS = int(os.environ.get("FNAT_PROPERTY_OPS", "0"))
PROTOS = {0: TCP, 1: TCP, 2: UDP, 3: UDP, 4: TCP, 5: UDP, 6: SCTP, 7: SCTP}
VIPS = {
    0: (VIP, 80),
    1: (VIP2, 443),
    2: (VIP, 53),
    3: (VIP2, 53),
    4: (VIP6, 80),
    5: (VIP6, 53),
    6: (VIP, 36412),
    7: (VIP6, 36412),
}
ids = st.sampled_from(list(PROTOS))
RSS = [RS1, RS2, RS3, RS4, RS6, RS6B]
LATE = "10.0.0.150"  # an RS whose MAC is learned by ARP
LATE_MAC = "02:00:00:00:01:50"
TELLING = {
    TCP: ["toa", "proxy-v1", "proxy-v2", "proxy-v1-insecure", "proxy-v2-insecure"],
    UDP: ["uoa-opp", "uoa-ipo", "proxy-v2", "proxy-v2-insecure"],
}
GATEWAYS = [GATEWAY, "192.0.2.2", "192.0.2.3"]
GATEWAYS6 = [GATEWAY6, "2001:db8:1::2", "2001:db8:1::3"]
LATE6 = "fd00::150"  # likewise, by neighbour discovery
CLIENTS = [CLIENT, "198.51.100.8", "203.0.113.9"]
CLIENTS6 = [CLIENT6, "2001:db8:99::8", "2001:db8:7::ffff:1"]
SETS = ["one", "two", "three"]
PREFIXES = ["0.0.0.0/0", "198.51.100.0/24", "198.51.100.6/31", "203.0.113.9/32", CLIENT]
PREFIXES += ["::/0", "2001:db8::/32", "2001:db8:99::/48", "2001:db8:99::8/127", CLIENT6]

done = 0

ports = st.sampled_from([1024, 5000, 5001, 5002, 65535])
numbers = st.one_of(st.sampled_from([0, 1, 0x7FFFFFFF, 0x80000000, MASK - 1, MASK]), st.integers(0, MASK))
small = st.sampled_from([0, 1, 2, 3, 5, 8, 13, 100, 101, 536, 1000])
sums = st.sampled_from([None, None, None, PARTIAL, 0, 0xFFFF, 0x1234])
scales = st.sampled_from([None, None, 0, 7, 14, 255])
# Where a forged number lies, from the next one that its pretended sender has
offsets = st.one_of(
    st.sampled_from([0, 0, -1, 1, -2, 100, -100, 0xFFFF, 0x10000, 0x10001, -0x10000, -0x10001]),
    st.sampled_from([1 << 23, (1 << 23) + 1, -(1 << 23) - 1, 1 << 30, (1 << 30) + 1, -(1 << 30), -(1 << 30) - 1]),
    st.integers(0, MASK),
)
times = st.sampled_from([0.02, 0.02, 0.1, 0.1, 0.5, 0.5, 1.1, 1.1, 2.5, 3.2, 4.0, 8.0, 11.5, 21.5, 95.0])


def at_family(client: str, vip: str) -> str:
    """A client that can speak to this VIP."""
    return CLIENTS6[CLIENTS.index(client)] if wire.is6(vip) else client


# Options of a segment: forged, full, full of padding, malformed.
CLIENT_OPTIONS = [
    b"",
    b"\xfe\x08\x12\x34\1\2\3\4",
    wire.option_timestamp(5, 6) + wire.option_sack([(1, 2), (3, 4)]),
    wire.option_timestamp(5, 6) + wire.option_sack([(1, 2), (3, 4), (5, 6)]),
    b"\1" * 36,
    b"\1\1\xfe\x04\0\0" + b"\1" * 24 + b"\0\xfe\x09",
    b"\x22\x02" * 8 + b"\1\1\x05\x7f" * 4,
]
# Limits of a service, and of its members: role, upper, lower, new connections a second.
LIMITED: list[tuple[dict[str, int], dict[int, tuple[str, int, int, int]]]] = [
    ({"max_conns": 3}, {}),
    ({"new_per_s": 2, "per_client": 2}, {}),
    ({}, {0: ("active", 2, 0, 0), 1: ("active", 3, 2, 1), 4: ("backup", 1, 1, 0), 6: ("sorry", 0, 0, 0)}),
    ({"per_client": 1}, {0: ("active", 1, 0, 0), 1: ("backup", 0, 0, 7)}),
]
NO_LIMITS = {"max_conns": 0, "new_per_s": 0, "per_client": 0}
# What keeps connections from an RS or with it, together. A client keeps its RS longer than a run: the reference does not renew.
HELD_BACK = st.fixed_dictionaries(
    {
        "persistent": st.sampled_from([0, 3600, 3600]),
        "persistent_plen": st.sampled_from([None, 16, 24, 32]),
        "draining": st.dictionaries(st.sampled_from([0, 0, 1, 4]), st.booleans(), max_size=2),
        "limited": st.sampled_from([({}, {}), *LIMITED]),
    }
)
# What a client's stream may begin with.
OWN_HEADERS = [
    b"PROXY TCP4 1.2.3.4 5.6.7.8 9 10\r\nGET",
    b"PROXY TCP6 1::2 ::3:0:4 65535 1\r\n",
    b"PROXY UNKNOWN junk\r\n...",
    b"PROXY TCP4 1.2.3.4 5.6.7.8 09 10\r\n",
    SIGNATURE + b"\x21\x11\0\x0c" + bytes(range(12)) + b"GET",
    SIGNATURE + b"\x21\x21\0\x27" + bytes(range(39)),
    SIGNATURE + b"\x20\x00\0\x00",
    SIGNATURE + b"\x21\x11\0\xff" + bytes(255),
    SIGNATURE + b"\x21\x11\0\x0c",
]


# What an end of an association may say: chunks, and the tag that belongs to them ("": none, "own": with the T bit).
SCTP_WORDS = [
    (wire.sctp_chunk(sctp.COOKIE_ECHO, bytes(30)), "other"),
    (wire.sctp_chunk(sctp.COOKIE_ACK), "other"),
    (wire.sctp_chunk(0, bytes(14)), "other"),
    (wire.sctp_chunk(0, bytes(1000)), "other"),
    (wire.sctp_chunk(0, bytes(1440)), "other"),
    (wire.sctp_chunk(sctp.COOKIE_ECHO, bytes(33)) + wire.sctp_chunk(0, bytes(13)), "other"),
    (wire.sctp_chunk(sctp.SHUTDOWN, bytes(4)), "other"),
    (wire.sctp_chunk(sctp.SHUTDOWN_ACK) + wire.sctp_chunk(sctp.COOKIE_ACK), "other"),
    (wire.sctp_chunk(sctp.SHUTDOWN_COMPLETE), "other"),
    (wire.sctp_chunk(sctp.SHUTDOWN_COMPLETE, flags=1), "own"),
    (wire.sctp_chunk(3, bytes(12)) + wire.sctp_chunk(sctp.ABORT, b"why"), "other"),
    (wire.sctp_chunk(sctp.ABORT, flags=1), "own"),
    (wire.sctp_chunk(0, b"x", length=2) + wire.sctp_chunk(sctp.ABORT), "other"),
    (b"\6\0", "other"),
]
SCTP_NAMES = [
    b"",
    b"",
    wire.sctp_parameter(5, b"\1\2\3\4") + wire.sctp_parameter(12, b"\0\5\0\6"),
    wire.sctp_parameter(7, bytes(61)) + wire.sctp_parameter(6, bytes(range(16))) + wire.sctp_parameter(5, b"\1\2\3\4"),
    wire.sctp_parameter(0xC004, bytes(12))
    + wire.sctp_parameter(0x8000, b"", length=3)
    + wire.sctp_parameter(5, b"\1\2\3\4"),
    wire.sctp_parameter(5, b"\1\2\3\4", length=9),
]


@dataclass(eq=False)
class Association:
    client: tuple[str, int]
    vip: tuple[str, int]
    tags: list[int]  # that packets of the client and of the RS carry


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
    scale: int | None = None  # window scale of the client

    def stamp(self, now: int) -> int:
        """A millisecond clock (RFC 7323 5.4)."""
        return ((self.ts or 0) + (now - self.born) // 1_000_000) & MASK

    def syn_options(self, now: int) -> bytes:
        base = wire.OPTION_MSS + wire.OPTION_SACK_OK + b"\1" * self.odd
        base += b"" if self.scale is None else wire.option_scale(self.scale)
        return base + struct.pack("!BBII", 8, 10, self.stamp(now), 0) if self.ts is not None else base


class CoreAndReference(RuleBasedStateMachine):
    flows: list[Flow]
    associations: list[Association]

    @initialize(
        punt=st.booleans(),
        conns=st.sampled_from([16, 200]),
        mtu=st.sampled_from([1500, 600]),
        lports=st.sampled_from([(1024, 65535), (5000, 5000), (65533, 65535)]),
        telling=st.dictionaries(st.integers(0, 5), st.integers(0, 4), max_size=6),
        held_back=st.dictionaries(st.integers(0, 7), HELD_BACK, max_size=4),
    )
    def begin(
        self,
        punt: bool,
        conns: int,
        mtu: int,
        lports: tuple[int, int],
        telling: dict[int, int],
        held_back: dict[int, dict[str, Any]],
    ) -> None:
        self.twin = Twin(punt=punt, conns=conns, mtu=mtu, lports=lports)
        self.twin.hosts[LAN, LATE] = self.twin.hosts[LAN, LATE6] = LATE_MAC
        for i, gateway in enumerate([*GATEWAYS[1:], *GATEWAYS6[1:]]):
            for side in self.twin.both():
                side.neigh_set(WAN, gateway, f"02:00:00:00:02:{i:02x}", static=True)
        self.flows = []
        self.associations = []
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
                self.members[id].append((id * 8 + 7, LATE6, 8080, 1))
            self.options[id] = {"lips": [3, 4, 6], "expire_quiescent": id > 1, "quic": id in (3, 5)}
            if id in telling:
                self.options[id]["client_addr"] = TELLING[PROTOS[id]][telling[id] % len(TELLING[PROTOS[id]])]
            if id in held_back:
                self.options[id] |= self.of_members(id, held_back[id])
            self.put(id)

    def of_members(self, id: int, held_back: dict[str, Any]) -> dict[str, Any]:
        """As put_service wants it: by member id."""
        of_service, of_members = held_back["limited"]
        its = {
            what: {id * 8 + i: n for i, n in by.items()}
            for what, by in (("limits", of_members), ("draining", held_back["draining"]))
        }
        rest = {word: held_back[word] for word in ("persistent", "persistent_plen")}
        return NO_LIMITS | of_service | its | rest

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
        scale=scales,
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
        scale: int | None,
        data: int,
        sum: int | None,
        hold: bool,
    ) -> None:
        self.start_tcp(service, client, port, isn, ts, odd, bytes(data) if data == 13 else b"", sum, hold, scale)

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
        scale: int | None = None,
    ) -> None:
        client = at_family(client, VIPS[service][0])
        flow = Flow(
            TCP, (client, port), VIPS[service], self.twin.now, isn, (isn + 1) & MASK, ts=ts, odd=odd, scale=scale
        )
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
    @rule(data=st.data(), rs_isn=numbers, scale=scales, hold=st.booleans())
    def handshake(self, data: st.DataObject, rs_isn: int, scale: int | None, hold: bool) -> None:
        flow = data.draw(st.sampled_from(self.flows))
        conn = self.connected(flow)
        if conn is not None and flow.proto == TCP:
            self.finish_handshake(flow, conn, rs_isn, hold, scale)

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

    def finish_handshake(self, flow: Flow, conn: Conn, rs_isn: int, hold: bool, scale: int | None = None) -> None:
        """SYN-ACK and ACK, as real ends make them."""
        if conn.dseq is None or conn.dts is None:
            return
        flow.rs_isn, flow.rs_seq = rs_isn, (rs_isn + 1) & MASK
        options = b"" if scale is None else wire.option_scale(scale)
        self.give(LAN, self.rs_segment(flow, conn, SYN | ACK, flow.rs_isn, flow.seq, b"", options=options), True)
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
        options: bytes = b"",
    ) -> bytes:
        """What the RS would send: numbers of the client as the RS knows them."""
        # What is under way to the RS in front of the stream may have arrived or not.
        dseq, dts = conn.at_rs(0) if ack & 1 else conn.dseq or 0, conn.dts or 0
        options += wire.option_timestamp(77, flow.stamp(self.twin.now) + dts) if flow.ts is not None else b""
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
        payload = bytes(i & 255 for i in range(n)) if n != 101 else OWN_HEADERS[flow.client[1] % len(OWN_HEADERS)]
        n = len(payload)
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
        back=st.integers(-2, 60),
        n=st.sampled_from([0, 1, 30, 200, 560]),
        flags=st.sampled_from([ACK, ACK | FIN, RST]),
    )
    def stream_again(self, data: st.DataObject, back: int, n: int, flags: int) -> None:
        """From about the beginning of the client's stream, in segments other than before."""
        flow = data.draw(st.sampled_from(self.flows))
        if flow.proto == TCP:
            options = data.draw(st.sampled_from(CLIENT_OPTIONS))
            frame = self.client_segment(flow, flags, flow.isn + 1 + back, flow.rs_seq, bytes(n), options)
            flow.seq = max(flow.seq, (flow.isn + 1 + back + n) & MASK)
            self.give(WAN, frame, data.draw(st.booleans()))

    @precondition(lambda self: self.flows)
    @rule(
        data=st.data(),
        beyond=st.one_of(st.integers(0, 110), st.sampled_from([65536, 66000, 70000])),
        n=small,
        sack=st.booleans(),
    )
    def rs_takes(self, data: st.DataObject, beyond: int, n: int, sack: bool) -> None:
        """The RS acknowledges up to somewhere behind the beginning of the stream."""
        flow = data.draw(st.sampled_from(self.flows))
        conn = self.connected(flow)
        if conn is None or flow.proto != TCP or conn.dseq is None:
            return
        ack = flow.isn + 1 + conn.dseq + beyond
        options = wire.option_sack([(ack, ack + 60), (ack + 100, ack + 200)]) if sack else b""
        frame = wire.tcp(
            *conn.rs,
            *conn.lip,
            ACK,
            seq=flow.rs_seq,
            ack=ack,
            payload=bytes(n),
            options=options,
            eth_dst=MACS[LAN],
            **self.mark(),
        )
        flow.rs_seq = (flow.rs_seq + n) & MASK
        self.give(LAN, frame)

    @precondition(lambda self: self.flows)
    @rule(
        data=st.data(),
        kind=st.sampled_from(
            [RST, RST, RST | ACK, FIN | ACK, FIN | ACK, SYN, SYN | ACK, ACK, ACK | PSH, SYN | FIN, 0, 0x29]
        ),
        offset=offsets,
        answer=offsets,
        n=st.sampled_from([0, 0, 0, 1, 1000]),
        from_rs=st.booleans(),
        hold=st.booleans(),
    )
    def forged(
        self, data: st.DataObject, kind: int, offset: int, answer: int, n: int, from_rs: bool, hold: bool
    ) -> None:
        """Somebody speaks for an end: numbers some way from the next ones, inside and outside of windows."""
        flow = data.draw(st.sampled_from(self.flows))
        conn = self.connected(flow)
        if flow.proto == UDP or conn is None or conn.dseq is None or conn.dts is None:
            return
        client, server = conn.next_seq
        seq, ack = (server, client) if from_rs else (client, server)
        seq, ack, payload = (seq + offset) & MASK, (ack + answer) & MASK, bytes(n)
        if from_rs:
            self.give(LAN, self.rs_segment(flow, conn, kind, seq, ack, payload), hold)
        else:
            options = flow.syn_options(self.twin.now) if kind & SYN else b""
            self.give(WAN, self.client_segment(flow, kind, seq, ack, payload, options), hold)

    @rule(data=st.data(), n=small, hold=st.booleans())
    def answer_a_datagram(self, data: st.DataObject, n: int, hold: bool) -> None:
        """An RS answers one of the datagrams that were scheduled each for itself."""
        self.settle()
        open = [c for c in self.twin.reference.conns if c.state in ONE_PACKET and c.lip[0]]
        if open:
            conn = data.draw(st.sampled_from(open))
            self.give(LAN, wire.udp(*conn.rs, *conn.lip, bytes(n), eth_dst=MACS[LAN], ident=self.next_ident()), hold)

    @precondition(lambda self: self.flows)
    @rule(
        data=st.data(),
        options=st.binary(max_size=40),
        from_rs=st.booleans(),
        ip_options=st.sampled_from(
            [b"", b"\1\1\1\0", b"\x94\4\0\0", b"\1\x83\3\4", b"\x94\4\0\0\x89\3\4\0", b"\0\x83\3\4"]
        ),
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

    # ---- QUIC ----

    @rule(
        service=st.sampled_from([3, 5]),
        client=st.sampled_from(CLIENTS),
        port=ports,
        rip=st.sampled_from([*RSS, LATE, LATE6, "10.0.0.77"]),
        size=st.integers(1, 8),
        rport=st.sampled_from([None, 8080, 8081]),
        length=st.sampled_from([20, 20, 14, 8, 7, 6, 3, 0]),
        first=st.sampled_from([0x41, 0x41, 0x01, 0xC1]),
        rest=st.sampled_from([b"encrypted", b"", b"x"]),
        hold=st.booleans(),
    )
    def quic_client(
        self,
        service: int,
        client: str,
        port: int,
        rip: str,
        size: int,
        rport: int | None,
        length: int,
        first: int,
        rest: bytes,
        hold: bool,
    ) -> None:
        """A client speaks to a server of its choice, from wherever it is now."""
        flow = Flow(UDP, (at_family(client, VIPS[service][0]), port), VIPS[service], self.twin.now)
        self.flows = [f for f in self.flows if (f.client, f.vip) != (flow.client, flow.vip)][-30:] + [flow]
        cid = quic.connection_id(rip, min(size, len(wire.addr_bytes(rip))), rport, length)
        payload = quic.short_header(cid, rest, first)
        self.give(WAN, wire.udp(*flow.client, *flow.vip, payload, **self.mark()), hold)

    # ---- associations ----

    @rule(
        service=st.sampled_from([6, 7]),
        client=st.sampled_from(CLIENTS),
        port=ports,
        tag=st.sampled_from([1, 2, 0, MASK]),
        names=st.sampled_from(SCTP_NAMES),
        sum=st.sampled_from([None, None, 0, 0x1234]),
        hold=st.booleans(),
    )
    def open_sctp(
        self, service: int, client: str, port: int, tag: int, names: bytes, sum: int | None, hold: bool
    ) -> None:
        """A new association, or one that begins again."""
        a = Association((at_family(client, VIPS[service][0]), port), VIPS[service], [0, tag])
        known = [x for x in self.associations if (x.client, x.vip) == (a.client, a.vip)]
        if not known:
            self.associations = [*self.associations[-30:], a]
        self.give(WAN, wire.sctp(*a.client, *a.vip, wire.sctp_init(tag, names), checksum=sum, **self.mark()), hold)

    def sctp_conn(self, a: Association) -> Conn | None:
        self.settle()
        known = self.twin.reference.by_key.get((SCTP, *a.client, *a.vip))
        return known[0] if known and known[0].lip[0] else None

    @precondition(lambda self: self.associations)
    @rule(data=st.data(), tag=st.sampled_from([5, 6]), names=st.sampled_from(SCTP_NAMES), upto=st.integers(1, 3))
    def sctp_handshake(self, data: st.DataObject, tag: int, names: bytes, upto: int) -> None:
        a = data.draw(st.sampled_from(self.associations))
        conn = self.sctp_conn(a)
        if conn is None:
            return
        a.tags = [tag, conn.tags.offered[1]]
        answer = wire.sctp_init(tag, names, kind=sctp.INIT_ACK)
        said = [(1, answer), (0, SCTP_WORDS[0][0]), (1, SCTP_WORDS[1][0])]
        for sender, chunks in said[:upto]:
            ends = (*conn.rs, *conn.lip) if sender else (*a.client, *a.vip)
            self.give(LAN if sender else WAN, wire.sctp(*ends, chunks, tag=a.tags[sender], **self.mark()), True)
        self.settle()

    @precondition(lambda self: self.associations)
    @rule(
        data=st.data(),
        word=st.sampled_from(SCTP_WORDS),
        from_rs=st.booleans(),
        guess=st.sampled_from([None, None, None, None, 0, 1, 5]),
        sum=st.sampled_from([None, None, 0, 0x1234]),
        ttl=st.sampled_from([64, 64, 64, 1]),
        frag=st.sampled_from([wire.DF, wire.DF, 0]),
        hold=st.booleans(),
    )
    def sctp_says(
        self,
        data: st.DataObject,
        word: tuple[bytes, str],
        from_rs: bool,
        guess: int | None,
        sum: int | None,
        ttl: int,
        frag: int,
        hold: bool,
    ) -> None:
        a = data.draw(st.sampled_from(self.associations))
        conn = self.sctp_conn(a)
        if from_rs and conn is None:
            return
        ends = (*conn.rs, *conn.lip) if from_rs and conn else (*a.client, *a.vip)
        tag = a.tags[from_rs ^ (word[1] == "own")] if guess is None else guess
        frame = wire.sctp(*ends, word[0], tag=tag, checksum=sum, ttl=ttl, frag=frag, **self.mark())
        self.give(LAN if from_rs else WAN, frame, hold and ttl > 1)

    @precondition(lambda self: self.associations)
    @rule(data=st.data(), from_rs=st.booleans(), cut=st.sampled_from([2000, 200, 60, 48, 28, 27]), big=st.booleans())
    def sctp_error(self, data: st.DataObject, from_rs: bool, cut: int, big: bool) -> None:
        a = data.draw(st.sampled_from(self.associations))
        conn = self.sctp_conn(a)
        if conn is None:
            return
        near, far = (conn.lip, conn.rs) if from_rs else (conn.vip, conn.client)
        six = wire.is6(near[0])
        quote = wire.sctp(*near, *far, SCTP_WORDS[2 + big][0], tag=a.tags[not from_rs])[14:][:cut]
        kind, code = ((2, 0) if big else (4, 1)) if six else ((3, 4) if big else (3, 2))
        sender = "2001:db8:5::1" if six else "192.0.2.254"
        frame = wire.icmp(sender, near[0], kind, code, struct.pack("!I", 1400), quote, **self.mark())
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
        trouble=st.sampled_from(
            [""] * 6 + ["lost first", "lost", "twice", "twice", "overlap", "two ends", "odd", "too long"]
        ),
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
            part = wire.piece(
                whole + bytes(65535) if start > 65000 else whole, start, end, ident, more=more, tos=self.mark()["tos"]
            )
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
        rip=st.sampled_from([*RSS, LATE, LATE6]),
        action=st.sampled_from(["set", "set", "remove", "add", "drain", "drain"]),
    )
    def change_members(self, id: int, at: int, weight: int, rip: str, action: str) -> None:
        self.settle()
        members = self.members[id]
        if (id, rip) == (2, LATE):
            return  # which of several datagrams that wait for a MAC has which port cannot be told
        if action == "add" and len(members) < 4 and all(m[1] != rip for m in members):
            members.append((id * 8 + [*RSS, LATE, LATE6].index(rip), rip, 8080, weight))
        elif at < len(members) and action == "set":
            members[at] = (*members[at][:3], weight)
        elif at < len(members) and action == "remove":
            del members[at]
        elif at < len(members):
            draining = self.options[id].get("draining", {})
            self.options[id] = {**self.options[id], "draining": {**draining, members[at][0]: weight > 1}}
        self.put(id)
        self.twin.operations += 1

    @rule(
        id=ids,
        scheduler=st.sampled_from(SCHEDULERS),
        hash_target=st.sampled_from(["sip", "sip-port", "qid"]),
        slow_start=st.sampled_from([0, 0, 3, 30]),
        no_rs_reset=st.booleans(),
        expire_quiescent=st.booleans(),
        conn_timeout=st.sampled_from([0, 0, 5]),
        half_open=st.sampled_from([0, 0, 1, 2]),
        client_addr=st.sampled_from(["none", *TELLING[TCP]]),
        lips=st.sampled_from([[3, 4, 6], [3, 6], [4], [6], []]),
        one_packet=st.booleans(),
        quic=st.booleans(),
    )
    def change_service(self, id: int, **options: Any) -> None:
        """What is held back, and the lists, stay."""
        self.settle()
        if PROTOS[id] == SCTP:
            options["client_addr"] = "none"
        elif options["client_addr"] not in TELLING[PROTOS[id]]:
            options["client_addr"] = (
                TELLING[PROTOS[id]][TELLING[TCP].index(options["client_addr"]) % 4]
                if options["client_addr"] != "none"
                else "none"
            )
        options["one_packet"] &= id == 2
        options["quic"] &= id in (3, 5)
        if options["scheduler"] not in HASHING or (options["hash_target"] == "qid" and PROTOS[id] != UDP):
            options["hash_target"] = "sip"
        options["hash_slots"] = 1021
        options["slow_start"] *= options["scheduler"] in GROWING
        self.options[id] = {**self.options[id], **options}
        self.put(id)
        self.twin.operations += 1

    @rule(id=ids, held_back=HELD_BACK)
    def hold_back(self, id: int, held_back: dict[str, Any]) -> None:
        self.settle()
        self.options[id] = {**self.options[id], **self.of_members(id, held_back)}
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

    @rule(
        owned=st.sets(st.sampled_from([a[0] for a in ADDRESSES])),
        reset=st.booleans(),
        served=st.booleans(),
        echo_served=st.booleans(),
        rates=st.sampled_from([(1000, 10000), (0, 0), (2, 3)]),
    )
    def change_addresses(
        self, owned: set[int], reset: bool, served: bool, echo_served: bool, rates: tuple[int, int]
    ) -> None:
        self.settle()
        addresses = [a for a in ADDRESSES if a[0] in owned or len(owned) < 3]
        if served:
            addresses = [(id, addr, kind.replace("vip", "vip+served"), port) for id, addr, kind, port in addresses]
        limits: dict[str, Any] = {"icmp_rate": rates[0], "echo_rate": rates[1], "echo_served": echo_served}
        for side in self.twin.both():
            side.put_addresses(addresses)
            side.put_settings(TIMEOUTS, reset, self.twin.lports, **limits)
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

    @rule(
        id=st.sampled_from([None, None, *PROTOS]),
        deny=st.sets(st.sampled_from(SETS), max_size=1),
        allow=st.sets(st.sampled_from(SETS), max_size=2),
        edits=st.lists(st.tuples(st.sampled_from(SETS), st.sampled_from(PREFIXES), st.integers(0, 2)), max_size=4),
        recheck=st.booleans(),
    )
    def change_lists(
        self, id: int | None, deny: set[str], allow: set[str], edits: list[tuple[str, str, int]], recheck: bool
    ) -> None:
        """Who may open connections; general lists or those of a service."""
        self.settle()
        sides = self.twin.both()
        ids = {name: max(side.acl_make(name) for side in sides) for name in SETS}  # both give the same
        for name, prefix, answer in edits:
            key = wire.acl_key(prefix)
            known = self.twin.reference.sets[name][1]
            if answer or ipaddress.ip_network(prefix) in known:
                for side in sides:
                    side.acl_edit(ids[name], key, bytes([answer]))
        lists = {"deny": sorted(ids[name] for name in deny), "allow": sorted(ids[name] for name in allow)}
        if id is not None:
            self.options[id] = {**self.options[id], **lists}
            self.put(id)
        else:
            for side in sides:
                side.put_acl(**lists)
        if recheck:
            for side in sides:
                side.acl_recheck()
        self.twin.plane.publish()
        for _ in range(8):  # the pass over all connections
            self.twin.deliver([])
        self.twin.operations += 1

    @rule(up=st.booleans())
    def late_host(self, up: bool) -> None:
        """The hosts behind ARP and neighbour discovery come or go."""
        for late in (LATE, LATE6):
            self.twin.hosts.pop((LAN, late), None)
            if up:
                self.twin.hosts[LAN, late] = LATE_MAC

    # ---- strangers ----

    @rule(
        src=st.sampled_from([*CLIENTS, "0.1.2.3", "127.0.0.1", "224.0.0.5", "255.255.255.255", VIP, LIP]),
        dst=st.sampled_from([VIP, VIP2, LIP, LIP2, GATEWAY, "192.0.2.77"]),
        port=st.sampled_from([53, 80, 443, 9, 65535, 0]),
        sport=st.sampled_from([7, 7, 7, 0]),
        kind=st.sampled_from([TCP, UDP, SCTP, 1, 47]),
        flags=st.integers(0, 63),
        n=small,
        side=st.sampled_from([WAN, LAN]),
        frag=st.sampled_from([wire.DF, 0, wire.MF, 1, 0x1FFF]),
        hold=st.booleans(),
    )
    def stray(
        self, src: str, dst: str, port: int, sport: int, kind: int, flags: int, n: int, side: int, frag: int, hold: bool
    ) -> None:
        """Packets of nobody: other ports, other protocols, fragments, sources that cannot be."""
        mark = self.mark()
        if kind == TCP:
            frame = wire.tcp(src, sport, dst, port, flags, payload=bytes(n), frag=frag, **mark)
        elif kind == UDP:
            frame = wire.udp(src, sport, dst, port, bytes(n), frag=frag, **mark)
        elif kind == SCTP:
            chunks = wire.sctp_init(flags, bytes(n)) if flags & 1 else bytes(n)
            frame = wire.sctp(src, sport, dst, port, chunks, tag=flags >> 4, frag=frag, **mark)
        elif kind == 1:
            frame = wire.icmp(src, dst, flags, flags & 1, b"abcd", bytes(n), frag=frag, **mark)
        else:
            frame = wire.ether(wire.ipv4(bytes(n), src=src, dst=dst, proto=kind, frag=frag, **mark))
        self.give(side, frame, hold)

    @rule(
        src=st.sampled_from([*CLIENTS6, "::", "::1", "ff02::5", "fe80::1", "::ffff:1.2.3.4", VIP6, LIP6]),
        dst=st.sampled_from([VIP6, LIP6, GATEWAY6, "2001:db8:1::77"]),
        port=st.sampled_from([53, 80, 9]),
        kind=st.sampled_from([TCP, UDP, SCTP, wire.ICMP6, 47]),
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
        asks=st.booleans(),
        sender=st.sampled_from([GATEWAY6, RS6, LATE6, "fd00::200", "fe80::1", "::", VIP6, "ff02::5"]),
        wanted=st.sampled_from([VIP6, VIP6, LIP6, LATE6, "fd00::201", GATEWAY6, "ff02::1"]),
        to=st.sampled_from(["group", "group", "target", "everybody"]),
        mac=st.sampled_from(["02:00:00:00:09:09", "02:00:00:00:09:09", "03:00:00:00:09:09", ""]),
        flags=st.sampled_from([0, 0x20, 0x40, 0x60, 0xE0]),
        side=st.sampled_from([WAN, LAN]),
        hop_limit=st.sampled_from([255, 255, 255, 255, 64]),
        wrong=st.sampled_from([0, 0, 0, 0, 0, 1]),
        more=st.sampled_from([b"", b"", b"\x0e\1abcdef", b"\x0e\0abcdef", b"\1\2", bytes(3)]),
        extensions=st.sampled_from([(), (), (0,), (60,)]),
    )
    def discovery(
        self,
        asks: bool,
        sender: str,
        wanted: str,
        to: str,
        mac: str,
        flags: int,
        side: int,
        hop_limit: int,
        wrong: int,
        more: bytes,
        extensions: tuple[int, ...],
    ) -> None:
        """Neighbour solicitations and advertisements, sound ones and others."""
        self.settle()
        speaks = sender if asks else wanted
        mac = LATE_MAC if (side, speaks) == (LAN, LATE6) and mac.startswith("02") else mac
        if (side, speaks) == (LAN, LATE6) and (LAN, LATE6) not in self.twin.hosts:
            return
        dst = {"group": icmp.solicited_node(wanted), "target": wanted, "everybody": icmp.ALL_NODES}[to]
        option = (b"\1\1" if asks else b"\2\1") + wire.mac_bytes(mac) if mac else b""
        rest, body = bytes([0 if asks else flags, 0, 0, wrong]), wire.addr_bytes(wanted) + option + more
        frame = wire.icmp(sender, dst, 135 if asks else 136, 0, rest, body, ttl=hop_limit, extensions=extensions)
        self.give(side, frame if not wrong else frame[:-1] + bytes([frame[-1] ^ 1]))

    @precondition(lambda self: self.flows)
    @rule(
        data=st.data(),
        kind=st.sampled_from([(3, 1), (3, 1), (3, 3), (11, 3), (12, 4), (4, 4), (5, 0)]),
        code=st.sampled_from([0, 1, 2, 3, 4, 4, 4, 9, 13, 14, 15, 200]),
        rest=st.one_of(
            st.integers(0, 41),
            st.integers(0, 41).map(lambda at: at << 24),
            st.sampled_from([0, 68, 1260, 1280, 1400, 1500, 70000, MASK]),
        ),
        from_rs=st.booleans(),
        cut=st.sampled_from([2000, 2000, 548, 128, 60, 56, 48, 40, 36, 28, 27, 20, 19, 4, 0]),
        n=st.sampled_from([0, 2, 100, 600, 1300]),
        seq=numbers,
        flags=st.sampled_from([ACK, SYN, ACK | PSH, RST]),
        sum=sums,
        objects=st.sampled_from([None, None, None, 128, 32, 255]),
        quote_options=st.sampled_from([b"", b"\1\1\1\0"]),
        quote_extensions=st.sampled_from([(), (), (0,), (43, 60)]),
        options=st.sampled_from([b"", b"", b"\1\1\1\0"]),
        ttl=st.sampled_from([64, 64, 64, 1]),
        lie=st.sampled_from(["", "", "", "", "", "sum", "lport", "sender", "fragment", "byte"]),
        at=st.integers(0, 79),
        hold=st.booleans(),
    )
    def error(
        self,
        data: st.DataObject,
        kind: tuple[int, int],
        code: int,
        rest: int,
        from_rs: bool,
        cut: int,
        n: int,
        seq: int,
        flags: int,
        sum: int | None,
        objects: int | None,
        quote_options: bytes,
        quote_extensions: tuple[int, ...],
        options: bytes,
        ttl: int,
        lie: str,
        at: int,
        hold: bool,
    ) -> None:
        """An ICMP error about what went out to the RS, or to the client: of any kind, quoting more or less, perhaps lying."""
        flow = data.draw(st.sampled_from(self.flows))
        conn = self.connected(flow)
        if conn is None or conn.dseq is None or conn.dts is None:
            return
        near, far = (conn.lip, conn.rs) if from_rs else (conn.vip, conn.client)
        six = wire.is6(near[0])
        near = (near[0], 7) if lie == "lport" else near
        fields: dict[str, Any] = {"ttl": 3, "ident": 77, "tos": 0x48, "checksum": sum}
        fields["frag"] = 5 if lie == "fragment" else wire.DF
        fields |= {"ip_options": quote_options, "extensions": quote_extensions}
        if flow.proto == UDP:
            quote = wire.udp(*near, *far, bytes(n), **fields)[14:]
        else:
            quote = wire.tcp(*near, *far, flags, seq=seq, ack=seq, payload=bytes(n), **fields)[14:]
        quote = bytearray(quote[:cut])
        if lie == "byte" and at < len(quote):
            quote[at] ^= 0x81
        value = struct.pack("!I", rest)
        if objects is not None:
            words = objects // 8 if six else objects // 4
            quote = quote[:objects].ljust(objects, b"\0") + b"\x20\0\0\0\0\x08\1\1abcd"
            value = bytes([words]) + value[1:] if six else value[:1] + bytes([words]) + value[2:]
        sender = {"sender": LIP6 if six else VIP}.get(lie, "2001:db8:5::1" if six else "192.0.2.254")
        frame = wire.icmp(
            sender,
            near[0],
            kind[six],
            code,
            value,
            bytes(quote),
            ttl=ttl,
            extensions=(60,) if options and six else (),
            options=b"" if six else options,
            **self.mark(),
        )
        if lie == "sum":
            frame = frame[:-1] + bytes([frame[-1] ^ 1])
        self.give(LAN if from_rs else WAN, frame, hold)

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
                    wire.sctp(CLIENT, 5000, *VIPS[6], wire.sctp_init(9, SCTP_NAMES[2]), **self.mark()),
                    wire.sctp(
                        CLIENT6, 5000, *VIPS[7], wire.sctp_init(9, SCTP_NAMES[3]), extensions=(60,), **self.mark()
                    ),
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
