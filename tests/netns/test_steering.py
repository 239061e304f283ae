"""The XDP program's decision, one row a frame: to the worker or to the host.

The program runs in the kernel on bytes given to it (BPF_PROG_TEST_RUN), attached to `lo` of a namespace of its own.
No socket is in its map, so what is the worker's is dropped, as it must be while no worker serves.
"""

from __future__ import annotations

import ctypes
import os
import random
import subprocess
from collections.abc import Iterator
from typing import Any, TextIO

import pytest

from fnat.drivers import DriverError

scapy = pytest.importorskip("scapy.all")
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

try:
    from fnat.drivers import xdp
except DriverError as missing:
    pytest.skip(str(missing), allow_module_level=True)

NAMESPACE = "fnxsteer"
XDP_DROP, XDP_PASS = 1, 2
LIP, VIP6, OTHER, OTHER6 = "192.0.2.9", "2001:db8::9", "192.0.2.10", "2001:db8::10"
Ether, Dot1Q, Dot1AD, IP, IPv6, ARP = scapy.Ether, scapy.Dot1Q, scapy.Dot1AD, scapy.IP, scapy.IPv6, scapy.ARP
UDP, TCP, ICMP, NS, NA = scapy.UDP, scapy.TCP, scapy.ICMP, scapy.ICMPv6ND_NS, scapy.ICMPv6ND_NA

libc = ctypes.CDLL(None, use_errno=True)
libbpf = ctypes.CDLL("libbpf.so.1", use_errno=True)


class TestRun(ctypes.Structure):
    """struct bpf_test_run_opts of libbpf."""

    __test__ = False
    _fields_ = [
        ("size", ctypes.c_size_t),
        ("data_in", ctypes.c_char_p),
        ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_void_p),
        ("ctx_out", ctypes.c_void_p),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("repeat", ctypes.c_int),
        ("duration", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
    ]


def enter(namespace: TextIO) -> None:
    assert libc.setns(namespace.fileno(), 0x40000000) == 0, os.strerror(ctypes.get_errno())


@pytest.fixture(scope="module")
def device() -> Iterator[str]:
    subprocess.run(["ip", "netns", "del", NAMESPACE], check=False, capture_output=True)
    subprocess.run(["ip", "netns", "add", NAMESPACE], check=True)
    with open("/proc/self/ns/net") as home, open(f"/run/netns/{NAMESPACE}") as ours:
        enter(ours)
        try:
            yield "lo"
        finally:
            enter(home)
            subprocess.run(["ip", "netns", "del", NAMESPACE], check=True)


class Program:
    """Our program on a device, asked for its verdict on a frame."""

    def __init__(self, device: str, exclusive: bool) -> None:
        self.device = device
        self.fd = libbpf.bpf_prog_get_fd_by_id(xdp.attach(device, exclusive=exclusive).prog_id)
        self.steering = xdp.Steering(device)
        self.steering.own(LIP)
        self.steering.own(VIP6)

    def verdict(self, frame: bytes) -> str:
        opts = TestRun(size=ctypes.sizeof(TestRun), data_in=frame, data_size_in=len(frame), repeat=1)
        rc = libbpf.bpf_prog_test_run_opts(self.fd, ctypes.byref(opts))
        assert rc == 0, os.strerror(-rc)
        return {XDP_DROP: "worker", XDP_PASS: "host"}[opts.retval]  # XDP_ABORTED is a failure

    def close(self) -> None:
        os.close(self.fd)
        assert xdp.detach(self.device)


@pytest.fixture
def shared(device: str) -> Iterator[Program]:
    program = Program(device, exclusive=False)
    yield program
    program.close()


@pytest.fixture
def exclusive(device: str) -> Iterator[Program]:
    program = Program(device, exclusive=True)
    yield program
    program.close()


def cut(frame: Any, length: int) -> bytes:
    return bytes(frame)[:length]


ETH = Ether(dst="02:00:00:00:00:01", src="02:00:00:00:00:02")
FRAMES: list[tuple[str, str, Any]] = [
    # sentence, who gets it, frame
    ("UDP to an owned address", "worker", ETH / IP(dst=LIP) / UDP() / b"x"),
    ("TCP to an owned address", "worker", ETH / IP(dst=LIP) / TCP()),
    ("ICMP to an owned address", "worker", ETH / IP(dst=LIP) / ICMP()),
    ("any protocol to an owned address", "worker", ETH / IP(dst=LIP, proto=132) / b"abcd"),
    ("TCP to another address", "host", ETH / IP(dst=OTHER) / TCP()),
    ("TCP from an owned address to another", "host", ETH / IP(src=LIP, dst=OTHER) / TCP()),
    ("a first fragment", "worker", ETH / IP(dst=LIP, flags="MF") / UDP() / b"12345678"),
    ("a last fragment", "worker", ETH / IP(dst=LIP, frag=100, proto=17) / b"12345678"),
    ("a fragment to another address", "host", ETH / IP(dst=OTHER, frag=100, proto=17) / b"12345678"),
    ("IPv4 options", "worker", ETH / IP(dst=LIP, options=[scapy.IPOption_NOP()] * 4) / UDP()),
    ("a header length below 5 words: the worker names the drop", "worker", ETH / IP(dst=LIP, ihl=2) / UDP()),
    ("IP version 6 under the IPv4 type", "host", ETH / IP(dst=LIP, version=6) / UDP()),
    ("an IPv4 header cut short", "host", cut(ETH / IP(dst=LIP), 14 + 19)),
    ("an IPv4 header and nothing behind", "worker", cut(ETH / IP(dst=LIP) / TCP(), 14 + 20)),
    ("an Ethernet header alone", "host", cut(ETH / IP(dst=LIP), 14)),
    ("one VLAN tag", "worker", ETH / Dot1Q(vlan=5) / IP(dst=LIP) / UDP()),
    ("two VLAN tags", "worker", ETH / Dot1AD(vlan=5) / Dot1Q(vlan=6) / IP(dst=LIP) / UDP()),
    ("three VLAN tags", "host", ETH / Dot1Q(vlan=5) / Dot1Q(vlan=6) / Dot1Q(vlan=7) / IP(dst=LIP) / UDP()),
    ("a VLAN tag cut short", "host", cut(ETH / Dot1Q(vlan=5) / IP(dst=LIP), 14 + 3)),
    ("ARP who-has an owned address", "worker", ETH / ARP(op=1, psrc=OTHER, pdst=LIP)),
    ("ARP reply to an owned address", "worker", ETH / ARP(op=2, psrc=OTHER, pdst=LIP)),
    ("ARP who-has another address", "host", ETH / ARP(op=1, psrc=LIP, pdst=OTHER)),
    ("ARP in a VLAN", "worker", ETH / Dot1Q(vlan=5) / ARP(op=1, psrc=OTHER, pdst=LIP)),
    ("ARP cut short", "host", cut(ETH / ARP(op=1, psrc=OTHER, pdst=LIP), 14 + 27)),
    ("ARP of another hardware length", "host", ETH / ARP(op=1, hwlen=8, psrc=OTHER, pdst=LIP)),
    ("IPv6 to an owned address", "worker", ETH / IPv6(dst=VIP6) / UDP()),
    ("IPv6 to another address", "host", ETH / IPv6(dst=OTHER6) / UDP()),
    ("an IPv6 header cut short", "host", cut(ETH / IPv6(dst=VIP6), 14 + 39)),
    ("solicitation of an owned address", "worker", ETH / IPv6(dst="ff02::1:ff00:9") / NS(tgt=VIP6)),
    ("solicitation of another address", "host", ETH / IPv6(dst="ff02::1:ff00:10") / NS(tgt=OTHER6)),
    ("solicitation cut short", "host", cut(ETH / IPv6(dst="ff02::1:ff00:9") / NS(tgt=VIP6), 14 + 40 + 23)),
    ("advertisement to an owned address", "worker", ETH / IPv6(dst=VIP6) / NA(tgt=OTHER6)),
    ("advertisement to all nodes", "host", ETH / IPv6(dst="ff02::1") / NA(tgt=VIP6)),
    ("router advertisement to all nodes", "host", ETH / IPv6(src="fe80::1", dst="ff02::1") / scapy.ICMPv6ND_RA()),
    ("router advertisement to the host", "host", ETH / IPv6(src="fe80::1", dst=OTHER6) / scapy.ICMPv6ND_RA()),
    ("solicitation of an owned address for duplicates", "worker", ETH / IPv6(src="::", dst="ff02::1:ff00:9") / NS(tgt=VIP6)),
    ("solicitation of an owned address, to itself", "worker", ETH / IPv6(dst=VIP6) / NS(tgt=VIP6)),
    ("solicitation of the host in the group of an owned address", "host", ETH / IPv6(dst="ff02::1:ff00:9") / NS(tgt="2001:db8:1::9")),
    ("solicitation behind a hop-by-hop header", "host",
     ETH / IPv6(dst="ff02::1:ff00:9") / scapy.IPv6ExtHdrHopByHop() / NS(tgt=VIP6)),
    ("MLD query", "host", ETH / IPv6(src="fe80::1", dst="ff02::1") / scapy.IPv6ExtHdrHopByHop() / scapy.ICMPv6MLQuery()),
    ("an IPv6 fragment", "worker", ETH / IPv6(dst=VIP6) / scapy.IPv6ExtHdrFragment(offset=100, nh=17) / b"12345678"),
    ("packet too big to an owned address", "worker", ETH / IPv6(dst=VIP6) / scapy.ICMPv6PacketTooBig(mtu=1280)),
    ("another Ethernet type", "host", Ether(type=0x88B5) / (b"\0" * 46)),
]


@pytest.mark.parametrize(("verdict", "frame"), [row[1:] for row in FRAMES], ids=[row[0] for row in FRAMES])
def test_shared(shared: Program, verdict: str, frame: Any) -> None:
    assert shared.verdict(bytes(frame)) == verdict


EXCLUSIVE = [
    ("TCP to an owned address", "worker", ETH / IP(dst=LIP) / TCP()),
    ("TCP to another address", "worker", ETH / IP(dst=OTHER) / TCP()),
    ("ARP for another address", "worker", ETH / ARP(pdst=OTHER)),
    ("LACP", "host", Ether(dst="01:80:c2:00:00:02", type=0x8809) / b"\1"),
    ("LLDP", "host", Ether(dst="01:80:c2:00:00:0e", type=0x88CC) / b"\1"),
    ("another group of the bridge's range", "worker", Ether(dst="01:80:c2:00:00:10", type=0x88CC) / b"\1"),
]


@pytest.mark.parametrize(("verdict", "frame"), [row[1:] for row in EXCLUSIVE], ids=[row[0] for row in EXCLUSIVE])
def test_exclusive(exclusive: Program, verdict: str, frame: Any) -> None:
    assert exclusive.verdict(bytes(frame)) == verdict


def test_any_bytes_give_one_of_two_verdicts(shared: Program) -> None:
    dice = random.Random(1)
    for _, _, frame in FRAMES:
        whole = bytearray(bytes(frame))
        for _ in range(20):
            mutant = bytearray(whole[: max(14, dice.randrange(len(whole) + 1))])
            mutant[dice.randrange(len(mutant))] = dice.randrange(256)
            assert shared.verdict(bytes(mutant)) in ("worker", "host")


def test_owned_addresses(shared: Program) -> None:
    steering = shared.steering
    assert steering.owned() == {LIP, VIP6}
    steering.own(LIP)  # again: no error
    steering.replace([OTHER, VIP6])
    assert steering.owned() == {OTHER, VIP6}
    assert shared.verdict(bytes(ETH / IP(dst=LIP) / UDP())) == "host"
    assert shared.verdict(bytes(ETH / IP(dst=OTHER) / UDP())) == "worker"
    steering.disown(OTHER)
    steering.disown(OTHER)
    steering.replace([LIP, VIP6])
    with pytest.raises(DriverError, match=r"'192\.0\.2\.256' is not an IP address; write it as"):
        steering.own("192.0.2.256")


def test_counters_count_both_ways(shared: Program) -> None:
    before = shared.steering.counters()
    shared.verdict(bytes(ETH / IP(dst=LIP) / UDP()))
    shared.verdict(bytes(ETH / IP(dst=OTHER) / UDP()))
    after = shared.steering.counters()
    assert (after["owned"] - before["owned"], after["passed"] - before["passed"]) == (1, 1)
