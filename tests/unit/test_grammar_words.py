"""The words that both grammars share: addresses, endpoints, prefixes, MACs, numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fnat import grammar
from fnat.grammar import Usage, dpip, ipvsadm
from fnat.model import RealServer, Shape

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


def test_every_option_is_read_or_refused() -> None:
    """No option is accepted by nothing, none is both, and -h names them all."""
    verbs = [verb for verb in ipvsadm.COMMANDS if verb.known]
    read = {verb.long for verb in verbs}.union(*(verb.allowed for verb in verbs))
    refused = {option.long for option in ipvsadm.OPTIONS.values() if option.why}
    assert set(ipvsadm.OPTIONS) == read | refused
    assert not read & refused
    letters = [option.letter for option in ipvsadm.OPTIONS.values() if option.letter]
    assert len(letters) == len(set(letters))
    text = ipvsadm.manual().text()
    assert [name for name in ipvsadm.OPTIONS if f"--{name}" not in text] == []


def test_every_field_of_a_service_and_a_server_is_a_word() -> None:
    """So -S leaves nothing out."""
    for rows, model, rest in (
        (ipvsadm.SHAPE, Shape, {"proto", "vip", "vport"} | (Shape.model_fields.keys() & {"deny", "allow"})),
        (ipvsadm.SERVER, RealServer, {"rip", "rport"}),
    ):
        known = {option.field for option in rows if option.known}
        assert known | rest == set(model.model_fields)
        assert {option.field for option in rows if not option.known}.isdisjoint(model.model_fields)


def test_objects_of_dpip() -> None:
    assert set(dpip._READERS) == set(dpip.OBJECTS)
    assert not set(dpip.OBJECTS) & set(dpip._REFUSED_OBJECTS)
