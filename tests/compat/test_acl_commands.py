"""`fnat acl`, `fnat set` and `dpip ipset` end to end: argv in, exit code, standard output and changes out."""

from __future__ import annotations

from typing import Any

import pytest
from fake_api import FakeApi
from terminal import type_in

SERVICE = {"proto": "tcp", "vip": "10.0.0.1", "vport": 80}
SETS = [{"name": "bad", "type": "hash:net", "span": None, "entries": 2, "used_by": 1}]
RESOURCES: dict[str, Any] = {
    "/v1/acl": {"deny": ["set:bad"], "allow": [], "hits": {"denied": 3, "not_allowed": 0}, "closed": 0},
    "/v1/services": [{**SERVICE, "deny": [], "allow": ["10.1.0.0/16"], "acl": {"denied": 0, "not_allowed": 7}}],
    "/v1/acl/test": {"addr": "10.9.9.9", "admitted": False, "by": "service allow: not in it"},
    "/v1/sets": SETS,
    "/v1/sets/bad": {"entries": ["10.0.0.0/8", "10.1.0.0/16 nomatch"], "next": None},
    "/v1/sets/bad/test": {"addr": "10.9.9.9", "admitted": True, "by": "10.0.0.0/8"},
}
SHOWN = [
    (
        "fnat acl show",
        0,
        "PROTO    SERVICE      LIST   ENTRIES      REFUSED\n"
        "general  -            deny   set:bad            3\n"
        "tcp      10.0.0.1:80  allow  10.1.0.0/16        7\n",
    ),
    (
        "fnat acl test 10.9.9.9 --service tcp/10.0.0.1:80",
        1,
        "10.9.9.9 may not (service allow: not in it)\n",
    ),
    ("fnat set show", 0, "NAME  TYPE      RANGE  ENTRIES  USED BY\nbad   hash:net  -            2        1\n"),
    ("fnat set show bad", 0, "10.0.0.0/8\n10.1.0.0/16 nomatch\n"),
    ("fnat set test bad 10.9.9.9", 0, "10.9.9.9 is in set bad (10.0.0.0/8)\n"),
    (
        "fnat dpip ipset show bad",
        0,
        "Name: bad\nType: hash:net\nHeader: references 1\nNumber of entries: 2\n"
        "Members:\n10.0.0.0/8\n10.1.0.0/16 nomatch\n\n",
    ),
    ("fnat-dpip ipset test bad 10.9.9.9", 0, "10.9.9.9 is in set bad\n"),
]
CHANGED = [
    ("fnat acl add deny 10.0.0.0/8 -q", [{"op": "acl.add", "list": "deny", "entry": "10.0.0.0/8"}]),
    (
        "fnat acl del allow set:bad --service tcp/10.0.0.1:80 -q",
        [{"op": "acl.del", "list": "allow", "entry": "set:bad", "service": SERVICE}],
    ),
    ("fnat acl recheck -q", [{"op": "acl.recheck"}]),
    (
        "fnat set add bad 10.0.0.1 10.0.0.2 -q",
        [{"op": "set.entry.add", "set": "bad", "entries": ["10.0.0.1", "10.0.0.2"]}],
    ),
    ("fnat set add good 10.0.0.1 -q", [{"op": "set.add", "name": "good", "entries": ["10.0.0.1"]}]),
    ("fnat set del bad 10.0.0.1 -q", [{"op": "set.entry.del", "set": "bad", "entries": ["10.0.0.1"]}]),
    ("fnat set del bad -q", [{"op": "set.del", "name": "bad"}]),
    ("fnat dpip ipset create new hash:ip", [{"op": "set.add", "name": "new", "type": "hash:ip"}]),
    ("fnat dpip ipset add bad 10.0.0.1", [{"op": "set.entry.add", "set": "bad", "entries": ["10.0.0.1"]}]),
]


@pytest.fixture
def fnat(api: FakeApi) -> FakeApi:
    api.resources = RESOURCES
    return api


@pytest.mark.parametrize(("line", "code", "text"), SHOWN, ids=[line for line, *_ in SHOWN])
def test_shown(fnat: FakeApi, line: str, code: int, text: str) -> None:
    assert type_in(line) == (code, text, "")


@pytest.mark.parametrize(("line", "changes"), CHANGED, ids=[line for line, _ in CHANGED])
def test_changed(fnat: FakeApi, line: str, changes: list[Any]) -> None:
    assert type_in(line) == (0, "", "")
    assert fnat.changes == changes


@pytest.mark.parametrize(
    "line",
    ["fnat acl add deny 10.0.0.0/8 --service 10.0.0.1:80", "fnat set add bad", "fnat acl add forbid 10.0.0.0/8",
     "fnat dpip ipset create ports bitmap:port", "fnat dpip -6 ipset show", "fnat dpip ipset show good"],
)  # fmt: skip
def test_refused(fnat: FakeApi, line: str) -> None:
    code, out, said = type_in(line)
    assert code != 0 and out == "" and said.strip() and fnat.changes == []
