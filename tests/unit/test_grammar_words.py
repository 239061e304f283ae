"""The words that both grammars share: addresses, endpoints, prefixes, MACs, numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fnat import grammar
from fnat.grammar import Usage, dpip, ipvsadm

GOOD: list[tuple[Callable[[str], Any], str, Any]] = [
    (grammar.address, "192.0.2.1", "192.0.2.1"),
    (lambda text: grammar.endpoint(text, "service"), "192.0.2.1:80", ("192.0.2.1", 80)),
    (lambda text: grammar.endpoint(text, "service"), "192.0.2.1:65535", ("192.0.2.1", 65535)),
    (grammar.network, "192.0.2.1", ("192.0.2.1", 32)),
    (grammar.network, "192.0.2.1/24", ("192.0.2.1", 24)),
    (grammar.prefix, "default", "0.0.0.0/0"),
    (grammar.prefix, "192.0.2.0/24", "192.0.2.0/24"),
    (grammar.prefix, "192.0.2.9", "192.0.2.9/32"),
    (grammar.mac, "02:00:5E:10:00:01", "02:00:5e:10:00:01"),
    (lambda text: grammar.number(text, "weight", 0, 65535), "65535", 65535),
    (grammar.address, "2001:DB8::0:1", "2001:db8::1"),
    (lambda text: grammar.endpoint(text, "service"), "[2001:DB8::1]:80", ("2001:db8::1", 80)),
    (grammar.network, "2001:db8::1", ("2001:db8::1", 128)),
    (grammar.network, "2001:db8::1/64", ("2001:db8::1", 64)),
    (grammar.prefix, "2001:db8::/32", "2001:db8::/32"),
    (grammar.prefix, "::/0", "::/0"),
    (lambda text: grammar.prefix(text, 6), "default", "::/0"),
    (lambda text: grammar.split(text, "server"), "[2001:db8::1]", ("2001:db8::1", "")),
    (lambda text: grammar.split(text, "server"), "2001:db8::1", ("2001:db8::1", "")),
]


@pytest.mark.parametrize(("read", "text", "value"), GOOD)
def test_a_word_is_read(read: Callable[[str], Any], text: str, value: Any) -> None:
    assert read(text) == value


BAD: list[tuple[Callable[[str], Any], str]] = [
    (grammar.address, ""),
    (grammar.address, "192.0.2"),
    (grammar.address, "192.0.2.01"),
    (grammar.address, "192.0.2.1 "),
    (grammar.address, "2001:db8::g"),
    (grammar.address, "[2001:db8::1]"),
    (grammar.address, "fe80::1%eth0"),
    (lambda text: grammar.address(text, family=4), "2001:db8::1"),
    (lambda text: grammar.address(text, family=6), "192.0.2.1"),
    (lambda text: grammar.endpoint(text, "service"), "192.0.2.1:"),
    (lambda text: grammar.endpoint(text, "service"), "192.0.2.1:+80"),
    (lambda text: grammar.endpoint(text, "service"), "192.0.2.1:http"),
    (lambda text: grammar.endpoint(text, "service"), ":80"),
    (lambda text: grammar.endpoint(text, "service"), "[2001:db8::1]:"),
    (lambda text: grammar.endpoint(text, "service"), "[2001:db8::1]80"),
    (lambda text: grammar.endpoint(text, "service"), "[2001:db8::1"),
    (lambda text: grammar.endpoint(text, "service"), "[2001:db8::1]"),
    (lambda text: grammar.endpoint(text, "service"), "[192.0.2.1]:80"),
    (grammar.network, "2001:db8::/129"),
    (grammar.prefix, "2001:db8::1/64"),
    (lambda text: grammar.prefix(text, 4), "::/0"),
    (lambda text: grammar.endpoint(text, "service"), "::1:80"),
    (grammar.network, "192.0.2.1/"),
    (grammar.network, "192.0.2.1/-1"),
    (grammar.prefix, "192.0.2.1/24"),
    (grammar.mac, "02:00:5e:10:00"),
    (grammar.mac, "02005e100001"),
    (lambda text: grammar.number(text, "weight", 0, 65535), "65536"),
    (lambda text: grammar.number(text, "weight", 0, 65535), "1_000"),
    (lambda text: grammar.number(text, "weight", 0, 65535), "٣"),
    (lambda text: grammar.number(text, "weight", 0, 65535), "9" * 5000),
]


@pytest.mark.parametrize(("read", "text"), BAD)
def test_a_bad_word_is_one_line_with_a_mend(read: Callable[[str], Any], text: str) -> None:
    with pytest.raises(Usage) as caught:
        read(text)
    assert caught.value.message
    assert caught.value.fix
    assert "\n" not in str(caught.value)


def test_every_option_of_the_help_is_known() -> None:
    """The help of ipvsadm names no option that the grammar does not read, and the grammar reads none that it hides."""
    words = (
        ipvsadm.HELP.replace("[", " ").replace("]", " ").replace("|", " ").replace(":", " ").replace(";", " ").split()
    )
    shown = {word.strip(",.")[2:] for word in words if word.startswith("--")}
    read = set(ipvsadm._READS) | set().union(*ipvsadm._READS.values())
    assert shown - read == set()
    assert read - shown == {
        "tcp-service", "udp-service", "real-server", "weight", "scheduler", "fullnat", "local-address", "ifname",
        "numeric", "connection",
    }  # fmt: skip


def test_every_option_is_read_or_refused() -> None:
    read = set(ipvsadm._READS) | set().union(*ipvsadm._READS.values())
    assert set(ipvsadm._TAKES) == read | set(ipvsadm._REFUSED)
    assert not read & set(ipvsadm._REFUSED)
    assert set(ipvsadm._OFF) <= set(ipvsadm._REFUSED)
    assert not set(dpip._OBJECTS) & set(dpip._REFUSED_OBJECTS)
