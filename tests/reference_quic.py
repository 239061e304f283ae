"""QUIC connection IDs that name their server, in DPVS's form: taken apart and put together as one long number of bits.

first octet 8 | bytes of the address less one 3 | port given 1 | last bytes of the address | [port 16] | nonce
"""

from __future__ import annotations

from dataclasses import dataclass

import packets as wire


@dataclass(frozen=True)
class Server:
    """The end of an address, and perhaps a port."""

    tail: bytes
    port: int | None

    def is_at(self, addr: str, port: int) -> bool:
        whole = wire.addr_bytes(addr)
        return len(self.tail) <= len(whole) and whole.endswith(self.tail) and self.port in (None, port)


def server(payload: bytes) -> Server | None:
    """What the datagram's connection ID says; None: it has a long header (RFC 9000 17.2), or is too short to say anything."""
    if len(payload) < 8 or payload[0] >= 0x80:
        return None
    cid = payload[1:]
    bits = "".join(f"{byte:08b}" for byte in cid)
    size, given = int(bits[8:11], 2) + 1, bits[11] == "1"
    if len(cid) < 5 + size + 2 * given:
        return None
    end = 12 + 8 * size
    tail = int(bits[12:end], 2).to_bytes(size, "big")
    return Server(tail, int(bits[end : end + 16], 2) if given else None)


def connection_id(addr: str, size: int, port: int | None = None, length: int = 20, nonce: str = "10") -> bytes:
    """A server's: `size` bytes of its address; the rest is filled with the nonce's bits, over and over."""
    tail = wire.addr_bytes(addr)[-size:]
    bits = "01010101" + f"{size - 1:03b}" + ("0" if port is None else "1") + "".join(f"{byte:08b}" for byte in tail)
    bits += "" if port is None else f"{port:016b}"
    bits = (bits + nonce * 160)[: 8 * length]
    return int(bits or "0", 2).to_bytes(length, "big")


def short_header(cid: bytes, rest: bytes = b"encrypted, as far as anybody can tell", first: int = 0x41) -> bytes:
    """RFC 9000 17.3."""
    return bytes([first]) + cid + rest


def long_header(cid: bytes, kind: int = 2) -> bytes:
    """RFC 9000 17.2: kind 0 Initial, 2 Handshake."""
    return bytes([0xC0 | kind << 4]) + b"\0\0\0\1" + bytes([len(cid)]) + cid + b"\0" + bytes(30)
