#!/usr/bin/env python3
"""A UDP echo server that knows its clients, on a real server without uoa.ko: services with client_addr = "uoa-opp".

    uoa_reader.py ADDRESS PORT        answers each datagram with the client's address and the datagram; needs root

The first datagrams of a client come as IP protocol 248: a header of 4 bytes (version, next protocol, length of all), an
option 31 (kind, size, port, address), then the UDP datagram. The kernel's UDP does not see them, a raw socket does;
answers go out by the UDP socket. Once the server has answered, datagrams are plain UDP and `clients` knows whose they
are.
"""

import ipaddress
import select
import socket
import struct
import sys


def main(addr: str, port: int) -> None:
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind((addr, port))
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, 248)
    clients: dict[tuple[str, int], str] = {}
    while True:
        ready, _, _ = select.select([raw, udp], [], [])
        if raw in ready:
            packet, (lip, _) = raw.recvfrom(65536)
            packet = packet[(packet[0] & 15) * 4 :]
            (size,) = struct.unpack_from("!H", packet, 2)
            (client_port,) = struct.unpack_from("!H", packet, 6)
            sport, dport = struct.unpack_from("!HH", packet, size)
            if packet[1] == socket.IPPROTO_UDP and packet[4] == 31 and dport == port:
                clients[lip, sport] = f"{ipaddress.ip_address(packet[8:size])} {client_port}"
                if data := packet[size + 8 :]:  # one without data announces a datagram that has no room for the header
                    udp.sendto(f"{clients[lip, sport]} ".encode() + data, (lip, sport))
        if udp in ready:
            data, peer = udp.recvfrom(65536)
            udp.sendto(f"{clients.get(peer, '? ?')} ".encode() + data, peer)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
