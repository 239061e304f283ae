"""Tables of the `show` commands."""

from __future__ import annotations

import sys

import pytest

from fnat.cli import show
from fnat.cli.show import Table

TABLE = Table(("name", ">count", "note"), [("a", 1, None), ("long", 1000, True)], frozenset({1}))


def test_plain_columns_are_aligned() -> None:
    assert show.plain(TABLE) == (
        "NAME  COUNT  NOTE\n"
        "a         1  -\n"
        "long   1000  yes\n"
    )  # fmt: skip


def test_an_empty_table_has_its_titles() -> None:
    assert show.plain(Table(("name", ">count"), [])) == "NAME  COUNT\n"


def test_a_terminal_gets_colours(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NO_COLOR", raising=False)
    show.show(TABLE)
    text = capsys.readouterr().out
    assert "\x1b[31mlong" in text  # the bad row is red
    assert "\x1b[31ma" not in text


def test_services_that_cannot_serve_are_bad() -> None:
    stats = {"conns": 0, "active": 0, "inactive": 0}
    rate = dict.fromkeys(("cps", "in_pps", "out_pps", "in_bps", "out_bps"), 0)
    common = {"proto": "tcp", "vip": "192.0.2.1", "vport": 80, "scheduler": "rr", "conn_timeout": 0, "no_rs": "drop"}
    lip, rs, rs6 = {"addr": "192.0.2.9"}, {"rip": "198.51.100.1", "weight": 1}, {"rip": "2001:db8::1", "weight": 1}
    rows = [
        {**common, "stats": stats, "rate": rate, "lips": [lip], "servers": [rs]},
        {**common, "stats": stats, "rate": rate, "lips": [lip], "servers": [{**rs, "weight": 0}]},
        {**common, "stats": stats, "rate": rate, "lips": [], "servers": [rs]},
        {**common, "stats": stats, "rate": rate, "lips": [lip], "servers": []},
        {**common, "stats": stats, "rate": rate, "lips": [lip], "servers": [rs, rs6]},
    ]
    assert show.services(rows).bad == {1, 2, 3, 4}
    assert [show.without_lip(row) for row in rows] == [
        [],
        [],
        ["tcp 192.0.2.1:80: no IPv4 LIP, so its IPv4 servers get no connections; fnat lip add"],
        [],
        ["tcp 192.0.2.1:80: no IPv6 LIP, so its IPv6 servers get no connections; fnat lip add"],
    ]


def test_a_connection_of_two_families_is_one_line() -> None:
    row = {"worker": 0, "proto": "tcp", "state": "TCP_EST", "remaining": 9, "age": 1, "in_packets": 1, "out_packets": 1,
           "cip": "2001:db8::28", "cport": 1024, "vip": "2001:db8::1", "vport": 80,
           "lip": "10.2.0.1", "lport": 1030, "rip": "10.1.1.1", "rport": 8080}  # fmt: skip
    assert show.conn(row).split()[5:9] == ["[2001:db8::28]:1024", "[2001:db8::1]:80", "10.2.0.1:1030", "10.1.1.1:8080"]
