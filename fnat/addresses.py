"""The words of addresses: IPv4 and IPv6, each in its one spelling (RFC 5952), and ADDRESS:PORT, where an IPv6 address
stands in brackets (RFC 3986, 3.2.2). Pure; ValueErrors are in words for the user.
"""

from __future__ import annotations

import ipaddress
import socket
from functools import lru_cache
from typing import Literal

Family = Literal[4, 6]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
BITS: dict[Family, int] = {4: 32, 6: 128}
NAMES: dict[Family, str] = {4: "IPv4", 6: "IPv6"}
ANY: dict[Family, str] = {4: "0.0.0.0/0", 6: "::/0"}
LEAST_MTU: dict[Family, int] = {4: 68, 6: 1280}  # RFC 791, 3.2; RFC 8200, 5


def family(address: str) -> Family:
    """Of an address or a prefix."""
    return 6 if ":" in address else 4


def bits(address: str) -> int:
    """The length of the prefix that is this one address."""
    return BITS[family(address)]


def parse(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An address; a zone ("%eth0") is no part of one: a port is named beside it."""
    try:
        if ":" not in text:
            return ipaddress.IPv4Address(text)
        if "%" not in text:
            return ipaddress.IPv6Address(text)
    except ValueError:
        pass
    raise ValueError(f"{text!r} is not an {NAMES[family(text)]} address")


@lru_cache(maxsize=65536)  # a service is named in every change of its servers and LIPs
def host(text: str, link_local: bool = False) -> str:
    """The address of a host in its one spelling. link_local: it may be one of those of a link (a gateway)."""
    if ":" not in text:  # a file has hundreds of thousands
        try:
            first = socket.inet_pton(socket.AF_INET, text)[0]
        except (OSError, ValueError):
            first = 0
        if 0 < first < 224 and first != 127:
            return text
    address = parse(text)
    if address.is_multicast or address.is_loopback or address.is_unspecified or text == "255.255.255.255":
        raise ValueError(f"{text} is not an address of a host")
    if address.version == 6:
        if address.ipv4_mapped is not None:
            raise ValueError(f"{text} is an IPv4 address in disguise; write {address.ipv4_mapped}")
        if address.is_link_local and not link_local:
            raise ValueError(f"{text} is valid on its link only; give a global or unique local address")
    return str(address)


def network(text: str) -> Network:
    """A prefix; bits behind its length are dropped."""
    try:
        if "%" not in text:
            return ipaddress.ip_network(text, strict=False)
    except ValueError:
        pass
    raise ValueError(f"{text!r} is not an {NAMES[family(text)]} prefix")


def endpoint(address: str, port: int) -> str:
    """ADDRESS:PORT."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def split(text: str) -> tuple[str, str]:
    """ADDRESS[:PORT] -> address and port as written, "" without a port. A bare IPv6 address has none."""
    if text.startswith("["):
        address, bracket, rest = text[1:].partition("]")
        if not bracket or ":" not in address or (rest and not rest.startswith(":")) or rest == ":":
            raise ValueError(f"{text!r} is not [ADDRESS]:PORT")
        return address, rest[1:]
    if text.count(":") > 1:
        return text, ""
    address, colon, port = text.partition(":")
    if colon and not port:
        raise ValueError(f"{text!r} is not ADDRESS:PORT")
    return address, port


def order(address: str) -> tuple[int, int]:
    """Key of a sort: IPv4 before IPv6, then by number."""
    parsed = parse(address)
    return parsed.version, int(parsed)
