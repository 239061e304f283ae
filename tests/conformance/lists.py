"""The lists of this folder: what an RFC or a checklist asks, what fnat does, and which tests show it; and the document made of them.

`python tests/conformance/lists.py` writes README.md anew. A list is a TOML file:

    title = "…"
    about = "…"                 what the list is and how far it goes
    [[row]]
    id = "REQ-1"                unique in its list
    section = "4.1"
    level = "MUST"              of the source: MUST, SHOULD, MAY; a checklist's priority
    says = "…"                  the requirement in one sentence
    verdict = "yes"             one of VERDICTS
    reason = "…"                compulsory unless the verdict is yes
    tests = ["path::name[row]"] a test function, or one row of it; what follows the row (its side, its driver) may be left out

A verdict of yes or deviates needs a test: the first shows that it holds, the second what happens instead.
"""

from __future__ import annotations

import sys
import tomllib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
README = HERE / "README.md"
ORDER = ("rfc4787", "rfc5382", "rfc5508", "rfc7857", "rfc6146", "rfc7915", "dpvs")
VERDICTS = ("yes", "deviates", "no", "not-applicable")


@dataclass(frozen=True)
class Row:
    id: str
    section: str
    level: str
    says: str
    verdict: str
    reason: str
    tests: tuple[str, ...]


@dataclass(frozen=True)
class List:
    name: str
    title: str
    about: str
    rows: tuple[Row, ...]


def load(name: str) -> List:
    """One list; ValueError names the row that is not as the head of this file says."""
    data = tomllib.loads((HERE / f"{name}.toml").read_text())
    rows = tuple(_row(name, raw) for raw in data["row"])
    twice = [id for id, n in Counter(row.id for row in rows).items() if n > 1]
    if twice:
        raise ValueError(f"{name}.toml: more than one row {twice[0]}")
    return List(name, data["title"], data["about"].strip(), rows)


def _row(name: str, raw: dict[str, Any]) -> Row:
    row = Row(
        raw.pop("id"),
        raw.pop("section", ""),
        raw.pop("level"),
        raw.pop("says"),
        raw.pop("verdict"),
        raw.pop("reason", ""),
        tuple(raw.pop("tests", ())),
    )
    where = f"{name}.toml: {row.id}"
    if raw:
        raise ValueError(f"{where}: no such key: {', '.join(raw)}")
    if row.verdict not in VERDICTS:
        raise ValueError(f"{where}: verdict {row.verdict!r} is none of {', '.join(VERDICTS)}")
    if (row.verdict != "yes") != bool(row.reason):
        raise ValueError(f"{where}: a reason belongs to every verdict but yes")
    if row.verdict in ("yes", "deviates") and not row.tests:
        raise ValueError(f"{where}: {row.verdict} without a test")
    return row


def lists() -> list[List]:
    return [load(name) for name in ORDER]


def names(test: str, node: str) -> bool:
    """Does `test`, as written in a list, name this test as pytest writes it?"""
    if test.endswith("]"):
        return node == test or node.startswith(test[:-1] + "-")
    return node == test or node.startswith(test + "[")


def short(test: str) -> str:
    """A test for the document: file::test[row] without folders."""
    path, _, rest = test.partition("::")
    return f"`{Path(path).name}::{rest}`" if "`" not in rest else rest


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    head = list(head)
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return lines + ["| " + " | ".join(map(cell, row)) + " |" for row in rows]


def score(rows: Iterable[Row]) -> str:
    count = Counter(row.verdict for row in rows)
    return ", ".join(f"{count[verdict]} {verdict}" for verdict in VERDICTS if count[verdict])


def document() -> str:
    """README.md as it should be."""
    from test_applications import APPLICATIONS
    from test_matrix import COLUMNS, FAMILIES, cells

    out = [
        "# What fnat conforms to, and the tests that show it",
        "",
        "Made by `python tests/conformance/lists.py` from the lists and tests of this folder; a test fails when it is stale.",
        "*deviates*: fnat does something else, on purpose; the reason is given, and the test shows what it does. *no*: it is missing.",
        "",
    ]
    everything = lists()
    out += table(("list", "rows"), ((f"[{one.title}](#{anchor(one.title)})", score(one.rows)) for one in everything))
    proved = cells()
    out += ["", "## Families, protocols and how the RS learns the client", ""]
    out += [
        "Family of client and VIP → family of LIP and RS. Each cell names the rows of `test_matrix.py::test_cell` that prove it;",
        "an empty one is missing. An echo request is answered by the worker, so no RS learns who sent it.",
        "",
    ]
    out += table(
        ("", *(f"{proto}, {identity}" for proto, identity in COLUMNS)),
        (
            (
                f"**{family}**",
                *(
                    "<br>".join(f"`{id}`" for id in proved.get((family, proto, identity), ()))
                    for proto, identity in COLUMNS
                ),
            )
            for family in FAMILIES
        ),
    )
    out += ["", "## Real programs through real kernels", ""]
    out += [
        "Rows of `test_applications.py::test_application`: client, balancer and servers are network namespaces.",
        "",
    ]
    kinds = [kind for kind in FAMILIES if any(kind == family for family, _ in APPLICATIONS)]
    out += table(
        ("application", *kinds),
        (
            (name, *(f"`{kind}-{name}`" if (kind, name) in APPLICATIONS else "" for kind in kinds))
            for name in dict.fromkeys(name for _, name in APPLICATIONS)
        ),
    )
    for one in everything:
        out += ["", f"## {one.title}", "", one.about, ""]
        out += table(
            ("", "section", "level", "asks", "fnat", "because", "shown by"),
            (
                (r.id, r.section, r.level, r.says, r.verdict, r.reason, "<br>".join(map(short, r.tests)))
                for r in one.rows
            ),
        )
    return "\n".join(out) + "\n"


def anchor(title: str) -> str:
    """GitHub's anchor of a heading."""
    return "".join(c for c in title.lower().replace(" ", "-") if c.isalnum() or c == "-")


if __name__ == "__main__":
    sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "netns")]
    README.write_text(document())
