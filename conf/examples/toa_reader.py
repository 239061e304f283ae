#!/usr/bin/env python3
"""Who is behind a connection, on a real server without toa.ko: services with client_addr = "toa".

    toa_reader.py PORT        prints "LIP:PORT is CLIENT:PORT" for each connection to PORT; needs root (CAP_NET_RAW)

A raw socket sees every segment beside the kernel's TCP. The segments that finish the handshake carry option 254 (2
bytes of kind and size, the client's port, its address), and they arrive before the application's accept() returns. An
application in Python keeps `clients` in a thread of its own and looks up `clients[peer]` after accept().
"""

import ipaddress
import socket
import struct
import sys


def read_option(options: bytes) -> tuple[str, int] | None:
    """The client in TCP options; None: there is no TOA."""
    at = 0
    while at + 1 < len(options) and options[at] != 0:
        size = 1 if options[at] == 1 else options[at + 1]
        if options[at] == 254 and size in (8, 20) and at + size <= len(options):
            (port,) = struct.unpack_from("!H", options, at + 2)
            return str(ipaddress.ip_address(options[at + 4 : at + size])), port
        at += max(size, 1)
    return None


def main(port: int) -> None:
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
    clients: dict[tuple[str, int], tuple[str, int]] = {}
    while True:
        packet, (lip, _) = raw.recvfrom(65536)
        segment = packet[(packet[0] & 15) * 4 :]
        sport, dport = struct.unpack_from("!HH", segment)
        client = read_option(segment[20 : (segment[12] >> 4) * 4]) if dport == port else None
        if client and clients.get((lip, sport)) != client:
            clients[lip, sport] = client
            print(f"{lip}:{sport} is {client[0]}:{client[1]}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
