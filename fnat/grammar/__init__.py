"""Command languages of other load balancers: words -> changes or a listing, and resources -> the same text.

Everything here is pure: no socket, no file, no clock. A change is the JSON object that POST /v1/changes takes. What a
grammar refuses, it refuses with one line that says why and what to do instead; an option is never skipped.

Unsatisfying: a listing is one string, so a million connections are formatted page by page by the caller.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from fnat import addresses
from fnat.addresses import Family, order

Change = dict[str, Any]
"""One element of "changes" in POST /v1/changes: {"op": "service.add", …}."""
Row = Mapping[str, Any]
"""One resource as the API gives it."""


at = addresses.endpoint


class Usage(Exception):
    """What was typed cannot be done: `message` says what is wrong, `fix` what to do. The exit code is 2."""

    def __init__(self, message: str, fix: str) -> None:
        super().__init__(f"{message}; {fix}")
        self.message, self.fix = message, fix


def near(text: str, known: Iterable[str]) -> str:
    """ " (did you mean …?)", or nothing."""
    known = list(known)
    found = difflib.get_close_matches(text.lower(), known, n=1)
    found += [word for word in known if len(text) > 2 and word.startswith(text)]
    return f" (did you mean {found[0]}?)" if found else ""


def address(text: str, what: str = "address", family: Family | None = None) -> str:
    """An address in its one spelling; family None: of either."""
    try:
        found = str(addresses.parse(text))
    except ValueError as error:
        like = "2001:db8::10" if ":" in text else "192.0.2.10 or 2001:db8::10"
        raise Usage(f"{what} {error}", f"write it like {like} (names are not looked up)") from None
    if family not in (None, addresses.family(found)):
        raise Usage(f"{what} {text} is not an {addresses.NAMES[family]} address", f"leave -{family} out or change it")
    return found


def number(text: str, what: str, low: int, high: int) -> int:
    """A decimal number within low..high."""
    if not re.fullmatch(r"[0-9]{1,10}", text) or not low <= int(text) <= high:
        raise Usage(f"{what} {text!r} is out of range", f"give a number from {low} to {high}")
    return int(text)


def endpoint(text: str, what: str) -> tuple[str, int]:
    """ADDR:PORT or [ADDR]:PORT, both compulsory, port 1..65535."""
    host, port = split(text, what)
    if port in ("", "0"):
        like = "[ADDRESS]:PORT" if ":" in host else "ADDRESS:PORT"
        raise Usage(
            f"{what} {text!r} has no port",
            f"write {like} with a port from 1 to 65535 (port 0 does not exist in fnat)",
        )
    return address(host, what), number(port, f"port of {what}", 1, 65535)


def split(text: str, what: str) -> tuple[str, str]:
    """ADDR[:PORT] or [ADDR][:PORT]; "" without a port."""
    try:
        return addresses.split(text)
    except ValueError as error:
        raise Usage(f"{what} {error}", "write it like 192.0.2.1:80 or [2001:db8::1]:80") from None


def network(text: str, family: Family | None = None) -> tuple[str, int]:
    """ADDR[/PLEN] -> (address as written, prefix length)."""
    host, slash, plen = text.partition("/")
    found = address(host, family=family)
    bits = addresses.bits(found)
    return found, number(plen, f"prefix length of {host}", 0, bits) if slash else bits


def prefix(text: str, family: Family | None = None) -> str:
    """PREFIX of a route: "default" (IPv4's unless said otherwise), ADDR or NET/PLEN without host bits -> "NET/PLEN"."""
    host, plen = network(addresses.ANY[family or 4] if text in ("default", "any") else text, family)
    net = addresses.network(f"{host}/{plen}")
    if str(net.network_address) != host:
        raise Usage(
            f"route {text} has host bits set", f"write {net}, or {host}/{addresses.bits(host)} for this one address"
        )
    return str(net)


def family_of_default(text: str, gateway: str | None) -> Family | None:
    """What a default route is of: its gateway's."""
    return 6 if text in ("default", "any") and gateway is not None and ":" in gateway else None


def mac(text: str) -> str:
    """A unicast Ethernet address, lower case with colons."""
    if not re.fullmatch(r"[0-9A-Fa-f]{2}([:-][0-9A-Fa-f]{2}){5}", text):
        raise Usage(f"{text!r} is not a MAC address", "write it like 02:00:5e:10:00:01")
    if int(text[:2], 16) & 1:
        raise Usage(f"{text} is a multicast MAC address", "give the neighbour's own address")
    return text.lower().replace("-", ":")


def service_key(row: Row) -> tuple[int, tuple[int, int], int]:
    """Order of a listing: TCP, UDP, SCTP, then address, IPv4 first, then port."""
    return (("tcp", "udp", "sctp").index(row["proto"]), order(row["vip"]), int(row["vport"]))


def server_key(row: Row) -> tuple[tuple[int, int], int]:
    """Order of the servers of one service."""
    return (order(row["rip"]), int(row["rport"]))


def service_text(row: Row) -> str:
    """VIP:PORT."""
    return at(row["vip"], row["vport"])


def server_text(row: Row) -> str:
    """RIP:PORT."""
    return at(row["rip"], row["rport"])


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
