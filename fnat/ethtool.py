"""The kernel's view of a NIC: driver, queues, receive-side scaling and flow rules, by ioctl (linux/ethtool.h).

Mechanism only: what follows from it is decided in steering.py, whose `Nic` this is on a real machine. What a driver
does not answer is reported as absent, because every driver leaves out something else.
"""

from __future__ import annotations

import array
import errno
import fcntl
import ipaddress
import socket
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

_SIOCETHTOOL = 0x8946
_GDRVINFO, _GFLAGS, _GRXFH, _GCHANNELS, _GRSSH = 0x03, 0x25, 0x29, 0x3C, 0x46
_GRXCLSRLCNT, _GRXCLSRULE, _GRXCLSRLALL, _SRXCLSRLDEL, _SRXCLSRLINS = 0x2E, 0x2F, 0x30, 0x31, 0x32
_FLAG_NTUPLE = 1 << 27
_FLOW_TYPES = {"tcp4": 1, "udp4": 2, "tcp6": 5, "udp6": 6}
_FIELDS = {1 << 4: "src", 1 << 5: "dst", 1 << 6: "sport", 1 << 7: "dport"}
_OTHER_FIELDS = 0xFFFF_FFFF & ~sum(_FIELDS)
_FUNCTIONS = {1: "toeplitz", 2: "xor", 4: "crc32"}
_TRANSFORMS = {1: "symmetric-xor", 2: "symmetric-or-xor"}
_LOCATIONS = 0x7FFF_FFFF  # of struct ethtool_rxnfc.data after _GRXCLSRLCNT; the top bit is a flag

# struct ethtool_rxnfc: cmd, flow_type, data, then struct ethtool_rx_flow_spec, then rule_cnt and rule_locs
_RXNFC, _SPEC, _RULE_COUNT, _RULE_PLACES = 192, 16, 184, 188
_VALUES, _MASKS, _COOKIE, _LOCATION = _SPEC + 4, _SPEC + 76, _SPEC + 152, _SPEC + 160


@dataclass(frozen=True)
class Facts:
    """What is known of a NIC. No table: no receive-side scaling. A flow missing in fields: the driver does not say."""

    driver: str
    queues: int
    table: tuple[int, ...] = ()
    key: bytes = b""
    function: str = ""
    transform: str = ""  # done to the tuple before it is hashed
    fields: Mapping[str, frozenset[str]] = field(default_factory=dict)
    ntuple: bool = False


@dataclass(frozen=True)
class FlowRule:
    """Packets to addr whose port is value under mask go to the queue."""

    flow: str
    addr: str
    mask: int
    value: int
    queue: int


def _ask(device: str, command: bytes, room: int = 0) -> bytearray:
    """One ioctl; the answer, as long as the question plus `room`."""
    words = array.array("B", command.ljust(len(command) + room, b"\0"))
    request = struct.pack("16sP16x", device.encode(), words.buffer_info()[0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, _SIOCETHTOOL, request)
    return bytearray(words)


def queue_count(device: str) -> int:
    """Receive queues in use: combined plus receive-only channels (ethtool -l); 1 where the driver does not say."""
    try:
        channels = struct.unpack("=9I", _ask(device, struct.pack("=I32x", _GCHANNELS)))  # struct ethtool_channels
    except OSError as error:
        if error.errno == errno.ENODEV:
            raise
        return 1
    return max(1, int(channels[5] + channels[8]))


@dataclass(frozen=True)
class KernelNic:
    """A network device of this machine."""

    device: str

    def facts(self) -> Facts:
        table, key, function, transform = self._scaling()
        return Facts(
            driver=self._driver(),
            queues=queue_count(self.device),
            table=table,
            key=key,
            function=function,
            transform=transform,
            fields={flow: fields for flow in _FLOW_TYPES if (fields := self._fields(flow)) is not None},
            ntuple=self._has_ntuple(),
        )

    def _driver(self) -> str:
        try:
            return bytes(_ask(self.device, struct.pack("=I192x", _GDRVINFO))[4:36]).split(b"\0")[0].decode()
        except OSError:
            return "unknown"

    def _scaling(self) -> tuple[tuple[int, ...], bytes, str, str]:
        """Indirection table, key, hash function, what is done to the tuple before (struct ethtool_rxfh)."""
        try:
            sizes = _ask(self.device, struct.pack("=6I", _GRSSH, 0, 0, 0, 0, 0))
            slots, key_size = struct.unpack_from("=2I", sizes, 8)
            if not slots:
                return (), b"", "", ""
            asked = struct.pack("=6I", _GRSSH, 0, slots, key_size, 0, 0)
            answer = _ask(self.device, asked, slots * 4 + key_size)
        except OSError:
            return (), b"", "", ""
        function, transform = answer[16], answer[17]
        table = struct.unpack_from(f"={slots}I", answer, 24)
        key = bytes(answer[24 + slots * 4 :])
        # a kernel of before hash functions were named leaves 0: Toeplitz was what drivers did
        named = _FUNCTIONS.get(function, f"function {function}") if function else "toeplitz"
        changed = "" if transform in (0, 0xFF) else _TRANSFORMS.get(transform, f"transformation {transform}")
        return table, key, named, changed

    def _fields(self, flow: str) -> frozenset[str] | None:
        """What of a packet is hashed; None: the driver does not say."""
        try:
            answer = _ask(self.device, struct.pack("=2IQ176x", _GRXFH, _FLOW_TYPES[flow], 0))
        except OSError:
            return None
        bits = struct.unpack_from("=Q", answer, 8)[0]
        return frozenset(name for bit, name in _FIELDS.items() if bits & bit) | (
            frozenset({"more"}) if bits & _OTHER_FIELDS else frozenset()
        )

    def _has_ntuple(self) -> bool:
        try:
            return bool(struct.unpack("=2I", _ask(self.device, struct.pack("=2I", _GFLAGS, 0)))[1] & _FLAG_NTUPLE)
        except OSError:
            return False

    # ---- flow rules ----

    def add_rule(self, rule: FlowRule) -> None:
        """OSError where the NIC cannot; from the end of its table, so that the operator's own come first."""
        wanted = bytearray(_RXNFC)
        struct.pack_into("=2I", wanted, 0, _SRXCLSRLINS, 0)
        struct.pack_into("=I", wanted, _SPEC, _FLOW_TYPES[rule.flow])
        address = ipaddress.ip_address(rule.addr).packed
        at, ports = (4, 8) if len(address) == 4 else (16, 32)  # of struct ethtool_tcpip4_spec, tcpip6_spec
        wanted[_VALUES + at : _VALUES + at + len(address)] = address
        wanted[_MASKS + at : _MASKS + at + len(address)] = b"\xff" * len(address)
        struct.pack_into("!H", wanted, _VALUES + ports + 2, rule.value)
        struct.pack_into("!H", wanted, _MASKS + ports + 2, rule.mask)
        struct.pack_into("=Q", wanted, _COOKIE, rule.queue)
        struct.pack_into("=I", wanted, _LOCATION, self._free_place())
        _ask(self.device, bytes(wanted))

    def rules(self) -> list[FlowRule]:
        """Those that have the shape of ours: an address of this side and a part of its port, nothing else."""
        return [rule for place in self._places() if (rule := self._rule_at(place)) is not None]

    def delete_rule(self, rule: FlowRule) -> None:
        for place in self._places():
            if self._rule_at(place) == rule:
                wanted = bytearray(_RXNFC)
                struct.pack_into("=I", wanted, 0, _SRXCLSRLDEL)
                struct.pack_into("=I", wanted, _LOCATION, place)
                _ask(self.device, bytes(wanted))

    def _count(self) -> tuple[int, int]:
        """(rules that are there, places for rules)."""
        answer = _ask(self.device, struct.pack("=I188x", _GRXCLSRLCNT))
        return struct.unpack_from("=I", answer, _RULE_COUNT)[0], struct.unpack_from("=Q", answer, 8)[0] & _LOCATIONS

    def _places(self) -> list[int]:
        with suppress(OSError):
            count = self._count()[0]
            asked = bytearray(_RXNFC)
            struct.pack_into("=I", asked, 0, _GRXCLSRLALL)
            struct.pack_into("=I", asked, _RULE_COUNT, count)
            answer = _ask(self.device, bytes(asked), 4 * count)
            count = min(count, struct.unpack_from("=I", answer, _RULE_COUNT)[0])
            return list(struct.unpack_from(f"={count}I", answer, _RULE_PLACES))
        return []

    def _free_place(self) -> int:
        taken, places = set(self._places()), self._count()[1]
        place = next((at for at in range(places - 1, -1, -1) if at not in taken), None)
        if place is None:
            raise OSError(errno.ENOSPC, f"all {places} places for flow rules are taken")
        return place

    def _rule_at(self, place: int) -> FlowRule | None:
        asked = bytearray(_RXNFC)
        struct.pack_into("=I", asked, 0, _GRXCLSRULE)
        struct.pack_into("=I", asked, _LOCATION, place)
        try:
            answer = _ask(self.device, bytes(asked))
        except OSError:
            return None
        kind = struct.unpack_from("=I", answer, _SPEC)[0]
        flow = next((name for name, number in _FLOW_TYPES.items() if number == kind), None)
        if flow is None:
            return None
        size, at, ports = (4, 4, 8) if flow.endswith("4") else (16, 16, 32)
        mask = struct.unpack_from("!H", answer, _MASKS + ports + 2)[0]
        compared = answer[_MASKS : _MASKS + ports + 5]
        only = bytearray(len(compared))
        only[at : at + size] = b"\xff" * size
        struct.pack_into("!H", only, ports + 2, mask)
        if compared != only or mask in (0, 0xFFFF):
            return None
        addr = str(ipaddress.ip_address(bytes(answer[_VALUES + at : _VALUES + at + size])))
        value = struct.unpack_from("!H", answer, _VALUES + ports + 2)[0]
        return FlowRule(flow, addr, mask, value, struct.unpack_from("=Q", answer, _COOKIE)[0])
