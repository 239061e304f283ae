"""The solicited-node groups of owned IPv6 addresses (RFC 4291, 2.7.1), joined on a port's kernel device.

Who looks for the MAC of 2001:db8::9 asks the group ff02::1:ff00:9, which is the Ethernet group 33:33:ff:00:00:09. A NIC
lets only those groups through that it was told of, and a switch with MLD snooping only those that a host reports. So
each group is joined twice: by a packet socket, which tells the NIC whatever becomes of the kernel's IPv6 on the device,
and by sockets of the kernel's IPv6, where it has one, so that the kernel sends reports and answers queries (RFC 3810).
`ip maddr show dev DEVICE` lists both; a group is left when its address goes, and all when the sockets close. A port in
exclusive mode has hosts behind its TAP whose groups nobody knows here: its NIC lets all of them through.

The solicitation itself goes to the worker, by its target (steer.bpf.c), never to the kernel.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import socket
import struct
from collections.abc import Iterable

from fnat.addresses import parse

log = logging.getLogger(__name__)

_BASE = int(ipaddress.IPv6Address("ff02::1:ff00:0"))
# linux/if_packet.h: PACKET_ADD_MEMBERSHIP, PACKET_DROP_MEMBERSHIP; PACKET_MR_MULTICAST, PACKET_MR_ALLMULTI
_SOL_PACKET, _ADD, _DROP, _ONE, _ALL = 263, 1, 2, 0, 2
_FULL = (errno.ENOBUFS, errno.ENOMEM)  # a socket has no more groups than net.core.optmem_max has room for


def group_of(address: str) -> bytes:
    """The solicited-node group of an IPv6 address, 16 bytes."""
    return (_BASE | int(parse(address)) & 0xFFFFFF).to_bytes(16, "big")


class Groups:
    """The groups of one device."""

    def __init__(self, device: str, *, exclusive: bool = False) -> None:
        """OSError: the device is gone, or no privilege."""
        self.device = device
        self._index = socket.if_nametoindex(device)
        self._wire = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)  # protocol 0: it receives nothing
        self._stack: list[socket.socket] = []
        self._members: dict[bytes, socket.socket | None] = {}  # group -> its socket of the kernel's IPv6
        if exclusive:
            self._tell_nic(_ADD, b"", _ALL)

    def hold(self, addresses: Iterable[str]) -> None:
        """Be a member of the groups of these IPv6 addresses and of no others. OSError: not of all of them."""
        wanted = {group_of(address) for address in addresses}
        for group in self._members.keys() - wanted:
            self._tell_nic(_DROP, group)
            member = self._members.pop(group)
            if member is not None:
                member.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_LEAVE_GROUP, self._request(group))
        for group in sorted(wanted - self._members.keys()):
            self._tell_nic(_ADD, group)
            self._members[group] = self._join(group)

    def close(self) -> None:
        for member in (self._wire, *self._stack):
            member.close()

    def _tell_nic(self, what: int, group: bytes, which: int = _ONE) -> None:
        address = b"\x33\x33" + group[12:]  # RFC 2464, 7
        request = struct.pack("@iHH8s", self._index, which, len(address) if which == _ONE else 0, address)
        self._wire.setsockopt(_SOL_PACKET, what, request)

    def _join(self, group: bytes) -> socket.socket | None:
        """The socket that is a member now; None where the kernel has no IPv6."""
        try:
            return self._join_with(self._stack[-1] if self._stack else self._open(), group)
        except OSError as error:
            if error.errno in _FULL:
                return self._join_with(self._open(), group)
            if None not in self._members.values():
                log.warning("%s: no IPv6 in the kernel (%s); no MLD reports", self.device, error.strerror)
            return None

    def _open(self) -> socket.socket:
        self._stack.append(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
        return self._stack[-1]

    def _join_with(self, member: socket.socket, group: bytes) -> socket.socket:
        member.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, self._request(group))
        return member

    def _request(self, group: bytes) -> bytes:
        return group + struct.pack("@I", self._index)
