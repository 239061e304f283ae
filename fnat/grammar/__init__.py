"""Command languages of other load balancers: words -> changes or a listing, and resources -> the same text.

Everything here is pure: no socket, no file, no clock. A change is the JSON object that POST /v1/changes takes. What a
grammar refuses, it refuses with one line that says why and what to do instead; an option is never skipped.

Unsatisfying: a listing is one string, so a million connections are formatted page by page by the caller.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Any

Change = dict[str, Any]
"""One element of "changes" in POST /v1/changes: {"op": "service.add", …}."""
Row = Mapping[str, Any]
"""One resource as the API gives it."""


class Usage(Exception):
    """What was typed cannot be done: `message` says what is wrong, `fix` what to do. The exit code is 2."""

    def __init__(self, message: str, fix: str) -> None:
        super().__init__(f"{message}; {fix}")
        self.message, self.fix = message, fix


def address(text: str, what: str = "address") -> str:
    """An IPv4 address in its one spelling."""
    if ":" in text:
        raise Usage(f"{what} {text}: IPv6 is not available in this version", "give an IPv4 address")
    try:
        return str(ipaddress.IPv4Address(text))
    except ValueError:
        raise Usage(
            f"{what} {text!r} is not an IPv4 address", "write it like 192.0.2.10 (names are not looked up)"
        ) from None


def number(text: str, what: str, low: int, high: int) -> int:
    """A decimal number within low..high."""
    if not re.fullmatch(r"[0-9]{1,10}", text) or not low <= int(text) <= high:
        raise Usage(f"{what} {text!r} is out of range", f"give a number from {low} to {high}")
    return int(text)


def endpoint(text: str, what: str) -> tuple[str, int]:
    """ADDR:PORT, both compulsory, port 1..65535."""
    if text.startswith("[") or text.count(":") > 1:
        raise Usage(f"{what} {text}: IPv6 is not available in this version", "give IPV4:PORT")
    host, colon, port = text.rpartition(":")
    if not colon or port == "0":
        raise Usage(
            f"{what} {text!r} has no port",
            "write ADDRESS:PORT with a port from 1 to 65535 (port 0 does not exist in fnat)",
        )
    return address(host, what), number(port, f"port of {what}", 1, 65535)


def network(text: str, default_plen: int = 32) -> tuple[str, int]:
    """ADDR[/PLEN] -> (address as written, prefix length)."""
    host, slash, plen = text.partition("/")
    return address(host), number(plen, f"prefix length of {host}", 0, 32) if slash else default_plen


def prefix(text: str) -> str:
    """PREFIX of a route: "default", ADDR or NET/PLEN without host bits -> "NET/PLEN"."""
    host, plen = network("0.0.0.0/0" if text in ("default", "any") else text)
    net = ipaddress.IPv4Network(f"{host}/{plen}", strict=False)
    if str(net.network_address) != host:
        raise Usage(f"route {text} has host bits set", f"write {net}, or {host}/32 for this one address")
    return str(net)


def mac(text: str) -> str:
    """A unicast Ethernet address, lower case with colons."""
    if not re.fullmatch(r"[0-9A-Fa-f]{2}([:-][0-9A-Fa-f]{2}){5}", text):
        raise Usage(f"{text!r} is not a MAC address", "write it like 02:00:5e:10:00:01")
    if int(text[:2], 16) & 1:
        raise Usage(f"{text} is a multicast MAC address", "give the neighbour's own address")
    return text.lower().replace("-", ":")


def service_key(row: Row) -> tuple[int, int, int]:
    """Order of a listing: TCP before UDP, then address, then port."""
    return (0 if row["proto"] == "tcp" else 1, int(ipaddress.IPv4Address(row["vip"])), int(row["vport"]))


def server_key(row: Row) -> tuple[int, int]:
    """Order of the servers of one service."""
    return (int(ipaddress.IPv4Address(row["rip"])), int(row["rport"]))


def steering_text(notes: Mapping[str, str]) -> str:
    """How answers reach their worker, flows of a kind together: "tcp4 tcp6 rss, 128 slots; udp4 udp6 hand-off: …"."""
    together: dict[str, list[str]] = {}
    for flow, note in notes.items():
        together.setdefault(note or "hand-off", []).append(flow)
    if len(together) == 1:
        return next(iter(together))
    return "; ".join(f"{' '.join(flows)} {note}" for note, flows in together.items())


def steering_modes(notes: Mapping[str, str]) -> str:
    """The first words of it: "rss", "rss+hand-off", "one worker"."""
    return "+".join(dict.fromkeys((note or "hand-off").partition(":")[0].partition(",")[0] for note in notes.values()))
