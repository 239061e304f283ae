"""The AF_XDP driver on a veth pair: frames in, frames out, and nothing left behind.

    fnxdrv-a  fnxa ====== fnxb  fnxdrv-b
    the peer: a raw socket      XDP program, AF_XDP queue; a raw socket sees what passed to the host

The test itself stands in namespace b. Pool, queue and packets are those of cext/io.h and cext/packet.h, through ctypes.
"""

from __future__ import annotations

import ctypes
import logging
import mmap
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

import pytest

from fnat.drivers import DriverError

scapy = pytest.importorskip("scapy.all")
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

try:
    from fnat.drivers import xdp
except DriverError as missing:
    pytest.skip(str(missing), allow_module_level=True)

PEER, OURS = "lorv-a", "lorv-b"
MAC_PEER, MAC_OURS = "02:00:00:00:00:0a", "02:00:00:00:00:0b"
LIP, OTHER = "192.0.2.9", "192.0.2.10"
FRAME_SIZE, HEADROOM, FRAMES, RING = 4096, 256, 256, 64
ETH_P_ALL = 3
Ether, Dot1Q, IP, ARP, UDP = scapy.Ether, scapy.Dot1Q, scapy.IP, scapy.ARP, scapy.UDP
libc = ctypes.CDLL(None, use_errno=True)


# ---- cext/io.h and cext/packet.h ----


class FramePool(ctypes.Structure):
    _fields_ = [
        ("area", ctypes.c_void_p),
        ("area_len", ctypes.c_uint64),
        ("stack", ctypes.POINTER(ctypes.c_uint32)),
        ("free", ctypes.c_uint32),
        ("total", ctypes.c_uint32),
        ("first", ctypes.c_uint32),
        ("foreign", ctypes.c_void_p),
        ("owner", ctypes.c_void_p),
    ]


class Packet(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("frame", ctypes.c_uint32),
        ("len", ctypes.c_uint16),
        ("rest", ctypes.c_uint8 * 50),
    ]


assert ctypes.sizeof(Packet) == 64
Move = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_void_p, ctypes.POINTER(Packet), ctypes.c_uint)


class IoDriver(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("rx", Move),
        ("tx", Move),
        ("stats", ctypes.c_void_p),
        ("arm", ctypes.CFUNCTYPE(None, ctypes.c_void_p)),
        ("close", ctypes.c_void_p),
    ]


class IoBase(ctypes.Structure):
    _fields_ = [
        ("driver", ctypes.POINTER(IoDriver)),
        ("pool", ctypes.c_void_p),
        ("fd", ctypes.c_int),
        ("lent", ctypes.c_uint32),
    ]


class Pool:
    def __init__(self) -> None:
        self.area = mmap.mmap(-1, FRAMES * FRAME_SIZE)
        self.stack = (ctypes.c_uint32 * FRAMES)(*range(FRAMES))
        self.start = ctypes.addressof(ctypes.c_char.from_buffer(self.area))
        self.pool = FramePool(self.start, len(self.area), self.stack, FRAMES, FRAMES)

    @property
    def address(self) -> int:
        return ctypes.addressof(self.pool)

    def free_frames(self) -> list[int]:
        return sorted(self.stack[: self.pool.free])


class Queue:
    """One open queue, driven as a worker drives it."""

    def __init__(self, device: str, pool: Pool, **options: int) -> None:
        self.pool = pool
        self.handle = xdp.open_queue(device, 0, pool.address, ring=RING, **options)  # type: ignore[arg-type]
        self.base = IoBase.from_address(self.handle.pointer)
        self.driver = self.base.driver.contents
        self.batch = (Packet * 64)()

    def rx(self) -> int:
        return int(self.driver.rx(self.handle.pointer, self.batch, 64))

    def tx(self, n: int) -> int:
        return int(self.driver.tx(self.handle.pointer, self.batch, n))

    def bytes_of(self, i: int) -> bytes:
        return ctypes.string_at(self.batch[i].data, self.batch[i].len)

    def drop(self, n: int) -> None:
        for i in range(n):
            self.pool.stack[self.pool.pool.free] = self.batch[i].frame
            self.pool.pool.free += 1

    def put(self, i: int, frame: bytes) -> None:
        """Frame `frame` becomes packet i of the batch, as a worker makes one of its own."""
        self.pool.pool.free -= 1
        index = self.pool.stack[self.pool.pool.free]
        where = self.pool.start + index * FRAME_SIZE + HEADROOM
        ctypes.memmove(where, frame, len(frame))
        self.batch[i].data, self.batch[i].frame, self.batch[i].len = where, index, len(frame)


# ---- the wire ----


def enter(namespace: TextIO) -> None:
    assert libc.setns(namespace.fileno(), 0x40000000) == 0, os.strerror(ctypes.get_errno())


def run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


def raw_socket(device: str) -> socket.socket:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    sock.bind((device, ETH_P_ALL))
    sock.setblocking(False)
    return sock


def read_all(sock: socket.socket) -> list[bytes]:
    """Frames that came in, not those that went out."""
    frames = []
    while select.select([sock], [], [], 0)[0]:
        frame, sender = sock.recvfrom(65536)
        if sender[2] != socket.PACKET_OUTGOING:
            frames.append(frame)
    return frames


class Wire:
    peer: socket.socket  # in namespace a
    host: socket.socket  # in namespace b, behind the XDP program


def wait_for(what: Callable[[], bool], seconds: float = 2.0) -> bool:
    deadline = time.monotonic() + seconds
    while not what():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    return True


def wait_for_frames(sock: socket.socket) -> list[bytes]:
    """What has come in as soon as something has, or nothing after two seconds."""
    select.select([sock], [], [], 2)
    return read_all(sock)


@pytest.fixture
def wire() -> Iterator[Wire]:
    for name in (PEER, OURS):
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
        run("ip", "netns", "add", name)
    with open("/proc/self/ns/net") as home, open(f"/run/netns/{PEER}") as there, open(f"/run/netns/{OURS}") as ours:
        try:
            made = Wire()
            run(
                "ip",
                "-n",
                PEER,
                "link",
                "add",
                "fnxa",
                "address",
                MAC_PEER,
                "type",
                "veth",
                "peer",
                "fnxb",
                "netns",
                OURS,
            )
            run("ip", "-n", OURS, "link", "set", "fnxb", "address", MAC_OURS)
            for namespace, device in ((there, "fnxa"), (ours, "fnxb")):
                enter(namespace)
                Path(f"/proc/sys/net/ipv6/conf/{device}/disable_ipv6").write_text("1")
                run("ip", "link", "set", device, "up")
                setattr(made, "peer" if namespace is there else "host", raw_socket(device))
            yield made
            made.peer.close()
            made.host.close()
        finally:
            enter(home)
            run("ip", "netns", "del", PEER)
            run("ip", "netns", "del", OURS)


@pytest.fixture(params=["native", "generic"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


ETH = Ether(dst=MAC_OURS, src=MAC_PEER)
ROWS = [
    ("UDP to an owned address", "worker", ETH / IP(dst=LIP) / UDP() / b"hello"),
    ("UDP to another address", "host", ETH / IP(dst=OTHER) / UDP() / b"hello"),
    ("a fragment to an owned address", "worker", ETH / IP(dst=LIP, frag=8, proto=17) / (b"y" * 1400)),
    ("ARP for an owned address", "worker", Ether(dst="ff:ff:ff:ff:ff:ff", src=MAC_PEER) / ARP(psrc=OTHER, pdst=LIP)),
    ("ARP for another address", "host", Ether(dst="ff:ff:ff:ff:ff:ff", src=MAC_PEER) / ARP(psrc=LIP, pdst=OTHER)),
    ("a VLAN tag in the frame", "worker", ETH / Dot1Q(vlan=7) / IP(dst=LIP) / UDP() / b"tagged"),
    ("a truncated IPv4 header", "host", bytes(ETH / IP(dst=LIP) / UDP())[:24]),
    ("the longest frame of a 1500 byte MTU", "worker", ETH / IP(dst=LIP) / UDP() / (b"z" * 1472)),
]


def without_tag(frame: bytes) -> bytes:
    """As a packet socket shows it: a VLAN tag is no longer in the frame."""
    return frame[:12] + frame[16:] if frame[12:14] == b"\x81\x00" else frame


def test_frames_go_where_they_belong_and_come_back(wire: Wire, mode: str) -> None:
    pool = Pool()
    attachment = xdp.attach("fnxb", mode)
    assert attachment.mode == mode
    queue = Queue("fnxb", pool)
    xdp.Steering("fnxb").own(LIP)
    try:
        for sentence, verdict, packet in ROWS:
            frame = bytes(packet)
            wire.peer.send(frame)
            seen: dict[str, list[bytes]] = {"worker": [], "host": []}

            def somewhere(seen: dict[str, list[bytes]] = seen) -> bool:
                n = queue.rx()
                for i in range(n):
                    p = queue.batch[i]
                    assert p.data - pool.start - p.frame * FRAME_SIZE >= HEADROOM
                    seen["worker"].append(queue.bytes_of(i))
                    assert queue.tx(n) == n  # back to the peer
                seen["host"] += read_all(wire.host)
                return bool(seen["worker"] or seen["host"])

            assert wait_for(somewhere), sentence
            if verdict == "worker":
                assert seen == {"worker": [frame], "host": []}, sentence
                assert wait_for_frames(wire.peer) == [without_tag(frame)], sentence
            else:
                assert not seen["worker"], sentence
                assert len(seen["host"]) == 1, sentence
        assert set(queue.handle.stats().values()) == {0}
        assert not queue.handle.zero_copy
    finally:
        queue.handle.close()
    assert pool.free_frames() == list(range(FRAMES))
    assert xdp.detach("fnxb")
    assert xdp.attachment("fnxb") is None
    assert not xdp.detach("fnxb")


def test_many_frames_lose_none_of_the_pool(wire: Wire, mode: str) -> None:
    """Received, sent, dropped, refused by a full ring and still in the kernel at close: all return."""
    pool = Pool()
    xdp.attach("fnxb", mode)
    queue = Queue("fnxb", pool)
    xdp.Steering("fnxb").own(LIP)
    got = 0
    for turn in range(200):
        for i in range(10):
            wire.peer.send(bytes(ETH / IP(dst=LIP) / UDP() / struct.pack("!II", turn, i)))
        n = queue.rx()
        got += n
        if turn % 3 == 0:
            queue.drop(n)
        else:
            assert queue.tx(n) == n
    assert got > 1000
    while n := queue.rx():
        queue.drop(n)
    own = bytes(ETH / IP(src=LIP, dst=OTHER) / UDP())
    run("ip", "link", "set", "fnxb", "down")
    sent = 0
    for _ in range(2):  # a device that is down sends nothing: the ring fills
        for i in range(RING // 2 + 8):
            queue.put(i, own)
        sent += queue.tx(RING // 2 + 8)
    assert sent == RING
    assert queue.handle.stats()["tx_no_space"] == 16
    queue.put(0, own)
    queue.batch[0].len = FRAME_SIZE
    run("ip", "link", "set", "fnxb", "up")
    assert wait_for(lambda: not select.select([queue.base.fd], [], [], 0)[0])
    assert queue.tx(1) == 0
    assert queue.handle.stats()["tx_invalid"] == 1
    queue.handle.close()
    assert pool.free_frames() == list(range(FRAMES))
    assert xdp.detach("fnxb")


def test_the_descriptor_wakes_a_sleeper(wire: Wire) -> None:
    pool = Pool()
    xdp.attach("fnxb")
    queue = Queue("fnxb", pool)
    xdp.Steering("fnxb").own(LIP)
    queue.driver.arm(queue.handle.pointer)
    assert not select.select([queue.base.fd], [], [], 0)[0]
    wire.peer.send(bytes(ETH / IP(dst=LIP) / UDP()))
    assert select.select([queue.base.fd], [], [], 2)[0]
    assert queue.rx() == 1
    queue.drop(1)
    queue.handle.close()
    assert pool.free_frames() == list(range(FRAMES))


def test_a_device_that_vanishes_leaves_a_quiet_queue(wire: Wire) -> None:
    pool = Pool()
    xdp.attach("fnxb")
    queue = Queue("fnxb", pool)
    run("ip", "link", "del", "fnxb")
    assert not select.select([queue.base.fd], [], [], 0.05)[0]
    queue.driver.arm(queue.handle.pointer)
    assert queue.rx() == 0
    queue.put(0, bytes(ETH / IP(src=LIP, dst=OTHER) / UDP()))
    queue.tx(1)
    queue.handle.close()
    assert pool.free_frames() == list(range(FRAMES))
    assert not xdp.detach("fnxb")


CHILD = """
    import sys, time
    sys.path[:0] = {path!r}
    import test_xdp_driver as t
    pool = t.Pool()
    t.xdp.attach("fnxb")
    queue = t.Queue("fnxb", pool)
    t.xdp.Steering("fnxb").own(t.LIP)
    print("ready", flush=True)
    time.sleep(60)
"""


def test_after_a_kill_the_host_goes_on_and_the_next_attach_mends(wire: Wire) -> None:
    path = [str(Path(__file__).parent), *sys.path]
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CHILD).format(path=path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout and child.stdout.readline() == "ready\n"
        with pytest.raises(DriverError, match="fnxb: another fnat runs on this device; stop it first"):
            xdp.attach("fnxb")
        xdp.Steering("fnxb").own("192.0.2.77")  # from another process
        assert xdp.Steering("fnxb").owned() == {LIP, "192.0.2.77"}
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    left = xdp.attachment("fnxb")
    assert left is not None
    owned, other = bytes(ETH / IP(dst=LIP) / UDP()), bytes(ETH / IP(dst=OTHER) / UDP())
    wire.peer.send(owned)
    wire.peer.send(other)
    assert wait_for_frames(wire.host) == [other]

    mended = xdp.attach("fnxb")
    assert mended.prog_id != left.prog_id
    assert xdp.Steering("fnxb").owned() == {LIP, "192.0.2.77"}  # owned without a gap
    pool = Pool()
    queue = Queue("fnxb", pool)
    wire.peer.send(owned)
    assert wait_for(lambda: queue.rx() == 1)
    queue.drop(1)
    with pytest.raises(DriverError, match="fnxb: queue 0 has an AF_XDP socket already; stop"):
        xdp.open_queue("fnxb", 0, pool.address, ring=RING)
    queue.handle.close()
    assert pool.free_frames() == list(range(FRAMES))
    assert xdp.detach("fnxb")


def test_a_device_without_native_xdp_gets_generic_and_one_line(wire: Wire, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert xdp.attach("lo").mode == "generic"
    (line,) = caplog.messages
    assert line.startswith("lo: no native XDP (")
    assert line.endswith("); using generic mode, which is slower")
    with pytest.raises(DriverError, match=r"lo: no native XDP \(.*\); use mode auto or generic"):
        xdp.attach("lo", "native")
    xdp.detach("lo")


def test_a_foreign_program_is_left_alone(wire: Wire, tmp_path: Path) -> None:
    source, built = tmp_path / "foreign.c", tmp_path / "foreign.o"
    source.write_text('__attribute__((section("xdp"), used)) int xdp_foreign(void *ctx) { return 2; }')
    run("clang", "-O2", "-g", "-target", "bpf", "-c", str(source), "-o", str(built))
    run("ip", "link", "set", "dev", "fnxb", "xdpdrv", "obj", str(built), "sec", "xdp")
    with pytest.raises(
        DriverError, match="fnxb: the XDP program 'xdp_foreign' is already attached; stop what attached it"
    ):
        xdp.attach("fnxb")
    with pytest.raises(DriverError, match="fnxb: fnat's XDP program is not attached"):
        xdp.Steering("fnxb").own(LIP)
    assert xdp.attachment("fnxb") is None
    assert not xdp.detach("fnxb")
    assert (
        "xdp_foreign"
        in subprocess.run(["ip", "link", "show", "fnxb"], capture_output=True, text=True, check=True).stdout
    )


def test_what_cannot_be_opened_is_one_line(wire: Wire) -> None:
    pool = Pool()
    with pytest.raises(DriverError, match=r"no device nosuch; choose one of: .*fnxb"):
        xdp.attach("nosuch")
    with pytest.raises(DriverError, match="fnxb: no XDP mode 'fast'; use auto, native or generic"):
        xdp.attach("fnxb", "fast")
    with pytest.raises(DriverError, match="fnxb: fnat's XDP program is not attached; start fnat"):
        xdp.open_queue("fnxb", 0, pool.address)
    xdp.attach("fnxb")
    assert xdp.queue_count("fnxb") == 1
    for queue, ring in ((1, RING), (0, 100), (0, 0)):
        with pytest.raises(DriverError, match=r"fnxb: cannot open queue . of 1 with rings .*; use a queue of 0\.\.0"):
            xdp.open_queue("fnxb", queue, pool.address, ring=ring)
    with pytest.raises(DriverError, match=r"fnxb: no queue 64; use one of 0\.\.63"):
        xdp.open_queue("fnxb", 64, pool.address)
    assert pool.free_frames() == list(range(FRAMES))
    assert not xdp.detach("nosuch")
