"""`fnat test client-addr`: what a real server learns of its clients, seen from both ends.

`Listener` runs on the real server in the application's place: it reads TOA, UOA, the IPv4 option and PROXY headers as
an RS without kernel modules can, and answers each client with one line, "WORD ADDRESS PORT". `ask` is the client: it
goes through the balancer and tells what the server saw, and its own address.

TOA and UOA are read from raw sockets, which needs CAP_NET_RAW. The raw socket sees a segment before the kernel accepts
the connection, so the option is there when accept() returns. Nothing here knows the rest of fnat.
"""

from __future__ import annotations

import ipaddress
import select
import socket
import struct
import time
from dataclasses import dataclass

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
TOA, UOA_OPTION, UOA_PROTO = 254, 31, 248
MEMORY = 10_000  # TOA options that wait for their connection
IP_RECVOPTS = 6  # linux/in.h; the socket module has no name for it
HELLO = b"fnat test client-addr\n"

Address = tuple[str, int]


@dataclass(frozen=True)
class Seen:
    """Who a client is to the real server. how: "toa", "uoa-opp", "uoa-ipo", "proxy-v1", "proxy-v2", or "peer": nothing
    told it."""

    how: str
    addr: str
    port: int

    def line(self) -> bytes:
        return f"{self.how} {self.addr} {self.port}\n".encode()


def told_by_option(options: bytes, kind: int) -> Address | None:
    """The address in an option `kind size port address` among options of TCP or IPv4."""
    at = 0
    while at < len(options) and options[at] != 0:
        if options[at] == 1:
            at += 1
            continue
        size = options[at + 1] if at + 1 < len(options) else 0
        if size < 2 or at + size > len(options):
            return None
        if options[at] == kind and size in (8, 20):
            (port,) = struct.unpack_from("!H", options, at + 2)
            return str(ipaddress.ip_address(options[at + 4 : at + size])), port
        at += size
    return None


def told_by_header(data: bytes) -> tuple[Seen, int] | None:
    """The client in the PROXY header that the data begins with, and its length (proxy-protocol.txt)."""
    if data.startswith(b"PROXY ") and b"\r\n" in data[:107]:
        line = data[: data.index(b"\r\n")].decode("ascii", "replace")
        words = line.split(" ")
        if len(words) == 6:
            return Seen("proxy-v1", words[2], int(words[4])), len(line) + 2
    if data.startswith(SIGNATURE) and len(data) >= 16:
        family, size = data[13] >> 4, struct.unpack_from("!H", data, 14)[0]
        each = {1: 4, 2: 16}.get(family, 0)
        if each and size >= 2 * each + 4 and len(data) >= 16 + size:
            (port,) = struct.unpack_from("!H", data, 16 + 2 * each)
            return Seen("proxy-v2", str(ipaddress.ip_address(data[16 : 16 + each])), port), 16 + size
    return None


def told_by_uoa(packet: bytes) -> tuple[Seen, bytes] | None:
    """The client in a header of protocol 248, and the UDP datagram behind it."""
    if len(packet) < 12 or packet[1] != socket.IPPROTO_UDP:
        return None
    (size,) = struct.unpack_from("!H", packet, 2)
    told = told_by_option(packet[4:size], UOA_OPTION)
    return (Seen("uoa-opp", *told), packet[size:]) if told and len(packet) >= size + 8 else None


class Listener:
    """TCP and UDP on one address and port. Raises OSError: the address is taken or not this host's, no CAP_NET_RAW."""

    def __init__(self, addr: str, port: int) -> None:
        self.family = socket.AF_INET6 if ":" in addr else socket.AF_INET
        self.tcp = socket.create_server((addr, port), family=self.family)
        self.udp = socket.socket(self.family, socket.SOCK_DGRAM)
        self.udp.bind((addr, port))
        if self.family == socket.AF_INET:
            self.udp.setsockopt(socket.IPPROTO_IP, IP_RECVOPTS, 1)
        self.raw_tcp = socket.socket(self.family, socket.SOCK_RAW, socket.IPPROTO_TCP)
        self.raw_uoa = socket.socket(self.family, socket.SOCK_RAW, UOA_PROTO)
        for raw in (self.raw_tcp, self.raw_uoa):
            raw.bind((addr, 0))
            raw.setblocking(False)
        self.port = self.tcp.getsockname()[1]
        self.options: dict[Address, Address] = {}  # by the peer that TCP knows: LIP and its port

    def serve(self, seconds: float | None = None) -> list[Seen]:
        """Answer until the time is over, for ever without one. Returns who was seen; each is printed as it comes."""
        end, seen = None if seconds is None else time.monotonic() + seconds, []
        while end is None or time.monotonic() < end:
            wait = None if end is None else max(0.0, end - time.monotonic())
            ready, _, _ = select.select([self.raw_tcp, self.raw_uoa, self.tcp, self.udp], [], [], wait)
            if self.raw_tcp in ready:
                self._read_options()
            found = self._read_uoa() if self.raw_uoa in ready else []
            found += self._read_tcp() if self.tcp in ready else []
            found += self._read_udp() if self.udp in ready else []
            for who, peer in found:
                print(f"{who.addr} port {who.port} by {who.how} (peer {peer[0]} port {peer[1]})", flush=True)
            seen += [who for who, _ in found]
        return seen

    def _strip_ip(self, packet: bytes) -> bytes:
        """A raw socket of IPv4 gives the IP header, too (raw(7))."""
        return packet if self.family == socket.AF_INET6 else packet[(packet[0] & 15) * 4 :]

    def _read_options(self) -> None:
        while True:
            try:
                packet, peer = self.raw_tcp.recvfrom(65536)
            except BlockingIOError:
                return
            segment = self._strip_ip(packet)
            sport, dport = struct.unpack_from("!HH", segment)
            told = told_by_option(segment[20 : (segment[12] >> 4) * 4], TOA) if dport == self.port else None
            if told:
                self.options[peer[0], sport] = told
                if len(self.options) > MEMORY:
                    del self.options[next(iter(self.options))]

    def _read_tcp(self) -> list[tuple[Seen, Address]]:
        conn, peer = self.tcp.accept()[0], ("", 0)
        try:
            with conn:
                peer = conn.getpeername()[:2]
                self._read_options()  # it arrived before the connection was accepted
                conn.settimeout(2)
                header = told_by_header(conn.recv(4096))
                who = header[0] if header else Seen("peer", *peer)
                if told := self.options.pop(peer, None):
                    who = Seen("toa", *told)
                conn.sendall(who.line())
                return [(who, peer)]
        except OSError:
            return []

    def _read_udp(self) -> list[tuple[Seen, Address]]:
        data, ancillary, _, peer = self.udp.recvmsg(65536, 256)
        options = next((d for level, kind, d in ancillary if (level, kind) == (socket.IPPROTO_IP, IP_RECVOPTS)), b"")
        told, header = told_by_option(options, UOA_OPTION), told_by_header(data)
        who = Seen("uoa-ipo", *told) if told else header[0] if header else Seen("peer", *peer[:2])
        self.udp.sendto(who.line(), peer)
        return [(who, peer[:2])]

    def _read_uoa(self) -> list[tuple[Seen, Address]]:
        packet, peer = self.raw_uoa.recvfrom(65536)
        told = told_by_uoa(self._strip_ip(packet))
        if told is None:
            return []
        sport, dport = struct.unpack_from("!HH", told[1])
        if dport != self.port or len(told[1]) == 8:  # an empty one announces a datagram that has no room for the header
            return []
        self.udp.sendto(told[0].line(), (peer[0], sport))
        return [(told[0], (peer[0], sport))]


def ask(proto: str, vip: str, vport: int, seconds: float = 3.0) -> tuple[Seen, Address]:
    """What the real server behind a service sees, and this client's own address. Raises OSError, ValueError: another
    program than a Listener answered."""
    family = socket.AF_INET6 if ":" in vip else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM if proto == "udp" else socket.SOCK_STREAM) as sock:
        sock.settimeout(seconds)
        sock.connect((vip, vport))
        sock.sendall(HELLO)
        words = sock.recv(4096).decode("ascii", "replace").split()
        own = sock.getsockname()
    if len(words) != 3 or not words[2].isdecimal():
        raise ValueError(" ".join(words)[:60])
    return Seen(words[0], words[1], int(words[2])), (own[0], own[1])
