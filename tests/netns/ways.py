"""Longer and worse ways between client and balancer, added to a topology that stands.

`lead_away` puts another client behind two routers with a small link between them:

  home 10.9.0.2 --- far --- 1300 bytes --- near 10.0.0.3 === wan

`worsen` gives the client a line with delay, jitter and frames that are overtaken.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from topology import Topology, wait_until

SMALL = 1300
SLOW = str(Path(__file__).with_name("slow.py"))
# by family: home, far (home's router), near (as far sees it), near on the wan, prefix of home
WAY = {
    4: ("10.9.0.2", "10.9.0.1", "10.8.0.1", "10.0.0.3", "10.9.0.0/24"),
    6: ("2001:db8:9::2", "2001:db8:9::1", "2001:db8:8::1", "2001:db8:a::3", "2001:db8:9::/64"),
}
_LENGTH = {4: ("24", "30", "16"), 6: ("64", "64", "64")}


def lead_away(top: Topology, mtu: int = SMALL) -> None:
    """Namespaces home, far and near; the balancer's kernel learns the route."""
    for name in ("home", "far", "near"):
        top.ip_netns("add", name)
        top.ip(name, "link", "set", "lo", "up")
    for name in ("far", "near"):
        talkative = ("net.ipv4.icmp_ratelimit=0", "net.ipv6.icmp.ratelimit=0")
        top.run(name, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1", *talkative)
    _link(top, "home", "eth0", "far", "home", 1500)
    _link(top, "far", "near", "near", "far", mtu)
    top.plug("wan", "near", "wan")
    for family in (4, 6) if top.six else (4,):
        home, far, near, wan, prefix = WAY[family]
        inner, middle, outer = _LENGTH[family]
        other = "10.8.0.2" if family == 4 else "2001:db8:8::2"
        for name, device, address, length in (
            ("home", "eth0", home, inner),
            ("far", "home", far, inner),
            ("far", "near", other, middle),
            ("near", "far", near, middle),
            ("near", "wan", wan, outer),
        ):
            flags = ("nodad",) if family == 6 else ()
            top.ip(name, "addr", "add", f"{address}/{length}", "dev", device, *flags)
        top.ip("home", "route", "add", "default", "via", far)
        top.ip("far", "route", "add", "default", "via", near)
        top.ip("near", "route", "add", prefix, "via", other)
        top.ip("lb", "route", "add", prefix, "via", wan)


def _link(top: Topology, left: str, device: str, right: str, other: str, mtu: int) -> None:
    top.ip(left, "link", "add", device, "type", "veth", "peer", "name", other, "netns", top.base + right)
    for name, end in ((left, device), (right, other)):
        top.ip(name, "link", "set", end, "mtu", str(mtu), "up")


@dataclass
class Line:
    """What a bad line did; filled in when it is good again."""

    frames: int = 0
    late: int = 0
    refused: int = 0


@contextlib.contextmanager
def worsen(top: Topology, delay: float, jitter: float, late: float, name: str = "client") -> Iterator[Line]:
    """Times in ms, late in percent."""
    line, end, bridge = Line(), f"{name}-eth0", "wan" if name == "client" and top.arms == 2 else "lan"
    top.ip("sw", "link", "add", "slow0", "type", "veth", "peer", "name", "slow1")
    top.run("sw", "sysctl", "-qw", *(f"net.ipv6.conf.{device}.disable_ipv6=1" for device in ("slow0", "slow1", end)))
    top.ip("sw", "link", "set", end, "nomaster")
    top.ip("sw", "link", "set", "slow1", "master", bridge, "up")
    top.ip("sw", "link", "set", "slow0", "up")
    log = top.directory / "slow.log"
    words = (sys.executable, SLOW, end, "slow0", str(delay), str(jitter), str(late))
    process = top.spawn("sw", *words, log=log)
    try:
        wait_until(lambda: top.run("sw", "ss", "-H0l").stdout.count("slow0"), "the line is there")
        yield line
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)
        top.ip("sw", "link", "del", "slow0")
        top.ip("sw", "link", "set", end, "master", bridge)
    line.__dict__.update(json.loads(log.read_text()))
