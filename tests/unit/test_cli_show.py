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
    lip = {"addr": "192.0.2.9"}
    rows = [
        {**common, "stats": stats, "rate": rate, "lips": [lip], "servers": [{"weight": 1}]},
        {**common, "stats": stats, "rate": rate, "lips": [lip], "servers": [{"weight": 0}]},
        {**common, "stats": stats, "rate": rate, "lips": [], "servers": [{"weight": 1}]},
        {**common, "stats": stats, "rate": rate, "lips": [lip], "servers": []},
    ]
    assert show.services(rows).bad == {1, 2, 3}
