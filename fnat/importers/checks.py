"""Health checks of keepalived, understood: what is tried, where, how often, and what counts as an answer.

Times are seconds, None where nothing is said; keepalived's defaults are not put in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from fnat.importers.blocks import Origin, Statement

Kind = Literal["tcp", "http", "https", "misc", "udp", "dns", "smtp", "ping"]
KINDS: dict[str, Kind] = {
    "TCP_CHECK": "tcp",
    "HTTP_GET": "http",
    "SSL_GET": "https",
    "MISC_CHECK": "misc",
    "UDP_CHECK": "udp",
    "DNS_CHECK": "dns",
    "SMTP_CHECK": "smtp",
    "PING_CHECK": "ping",
}


@dataclass(frozen=True)
class Url:
    """One request of an HTTP check; status and digest: what must come back."""

    path: str = "/"
    status: tuple[str, ...] = ()
    digest: str | None = None
    virtualhost: str | None = None


@dataclass(frozen=True)
class Check:
    """One checker of a real server; addr and port None: the server's own."""

    kind: Kind
    at: Origin
    addr: str | None = None
    port: int | None = None
    source: str | None = None
    source_port: int | None = None
    timeout: float | None = None
    every: float | None = None
    retry: int | None = None
    retry_delay: float | None = None
    warmup: float | None = None
    urls: tuple[Url, ...] = ()
    virtualhost: str | None = None
    command: str | None = None  # misc
    dynamic: bool = False
    user: str | None = None
    payload: str | None = None  # udp
    require_reply: str | None = None
    query: str | None = None  # dns: name and type
    query_type: str | None = None
    helo: str | None = None  # smtp


def _text(text: str) -> str:
    return text


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 86400:
        raise ValueError(text)
    return value


def _port(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 65535:
        raise ValueError(text)
    return value


def _count(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 10000:
        raise ValueError(text)
    return value


_WORDS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "connect_ip": ("addr", _text),
    "connect_port": ("port", _port),
    "bindto": ("source", _text),
    "bind_port": ("source_port", _port),
    "connect_timeout": ("timeout", _seconds),
    "misc_timeout": ("timeout", _seconds),
    "delay_loop": ("every", _seconds),
    "retry": ("retry", _count),
    "nb_get_retry": ("retry", _count),
    "delay_before_retry": ("retry_delay", _seconds),
    "warmup": ("warmup", _seconds),
    "virtualhost": ("virtualhost", _text),
    "misc_path": ("command", _text),
    "user": ("user", _text),
    "payload": ("payload", _text),
    "require_reply": ("require_reply", _text),
    "name": ("query", _text),
    "type": ("query_type", _text),
    "helo_name": ("helo", _text),
}
_NAMES = {f.name for f in fields(Check)}


def understand(statement: Statement, every: float | None) -> tuple[Check, list[tuple[Origin, str]]]:
    """The check of a block, and what in it is not understood. every: delay_loop of the service."""
    check = Check(KINDS[statement.name], statement.at, every=every)
    strange: list[tuple[Origin, str]] = []
    urls: list[Url] = []

    def take(words: tuple[Statement, ...]) -> None:
        nonlocal check
        for word in words:
            if word.name == "url":
                urls.append(_url(word, strange))
            elif word.name == "misc_dynamic":
                check = replace(check, dynamic=True)
            elif word.name == "host" and word.block is not None:  # SMTP_CHECK
                take(word.inner)
            elif word.name in _WORDS:
                name, convert = _WORDS[word.name]
                assert name in _NAMES
                try:
                    value, *more = word.values if name != "command" else (" ".join(word.values),)
                    changed: dict[str, Any] = {name: convert(value)}
                    if more or word.block is not None:
                        strange.append((word.at, f"{' '.join(more) or 'a block'} is not understood behind it"))
                    check = replace(check, **changed)
                except ValueError:
                    strange.append((word.at, f"{' '.join(word.values) or 'nothing'} is not a value for it"))
            else:
                strange.append((word.at, f"is not understood in {statement.name}"))

    take(statement.inner)
    return replace(check, urls=tuple(urls)), strange


def _url(statement: Statement, strange: list[tuple[Origin, str]]) -> Url:
    url = Url()
    for word in statement.inner:
        value = word.values[0] if word.values else ""
        match word.name:
            case "path":
                url = replace(url, path=value)
            case "digest":
                url = replace(url, digest=value)
            case "virtualhost":
                url = replace(url, virtualhost=value)
            case "status_code":
                url = replace(url, status=word.values)
            case _:
                strange.append((word.at, "is not understood in url"))
    return url
