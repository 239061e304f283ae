"""`dpip ipset …`: sets of addresses, for deny and allow lists. Sets of ports, interfaces or MAC addresses are no lists
of sources and are refused.

Different from DPVS on purpose: entries may have a `timeout` as those of ipset(8), and a set holds both families.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from fnat import sets
from fnat.grammar import Change, Row, Usage, number

TYPES = sets.TYPES
_HELP = "the commands of ipset are create destroy add del test show flush"


COMMANDS = (
    ("ipset create NAME hash:net|hash:ip|bitmap:ip [range FIRST-LAST]", "make a set of addresses, of both families"),
    ("ipset add|del NAME ADDRESS|NET/LENGTH|FIRST-LAST [timeout SEC] [nomatch]", "put an entry in, or take it out"),
    ("ipset test NAME ADDRESS", "is it in the set? exit code 1: no"),
    ("ipset show [NAME]", "the sets and their entries"),
    ("ipset flush|destroy NAME", "take all entries out; take the set away"),
)


@dataclass(frozen=True)
class Asked:
    """What is to be shown of sets: one or all, or whether an address is in one."""

    what: Literal["show", "test"]
    name: str | None = None
    addr: str = ""
    json: bool = False


def command(words: Sequence[str]) -> list[Change] | Asked | None:
    """A command line of dpip; None: it is about something else."""
    rest = [word for word in words if word != "--json"]
    if "ipset" not in rest[:1] and not (rest and rest[0] in ("-4", "-6") and "ipset" in rest[1:2]):
        return None
    if rest[0] != "ipset":
        raise Usage(f"{rest[0]} means nothing with ipset: a set holds both families", "leave it out")
    if len(rest) == 1 or rest[1] in ("help", "-h"):
        raise Usage("ipset needs a command", _HELP)
    found = parse(rest[1], rest[2:])
    if len(rest) != len(words):
        if not isinstance(found, Asked):
            raise Usage(f"--json means nothing with ipset {rest[1]}", "leave it out")
        return Asked(found.what, found.name, found.addr, json=True)
    return found


def parse(verb: str, words: Sequence[str]) -> list[Change] | Asked:
    """What stands behind `ipset`. Raises Usage."""
    rest = list(words)
    if verb in ("show", "list"):
        return Asked("show", rest.pop(0) if rest else None) if len(rest) < 2 else _too_many(rest[1])
    if verb not in ("create", "destroy", "add", "del", "test", "flush"):
        raise Usage(f"ipset {verb} is not known", _HELP)
    if not rest:
        raise Usage(f"ipset {verb} needs the name of a set", "ipset show lists the sets")
    name = rest.pop(0)
    if not sets.NAME.fullmatch(name):
        raise Usage(f"{name!r} is not the name of a set", "a letter, then at most 30 letters, digits, or . _ -")
    if verb == "create":
        return [_create(name, rest)]
    if verb in ("destroy", "flush"):
        _too_many(*rest[:1])
        return [{"op": "set.del" if verb == "destroy" else "set.flush", "name": name}]
    if not rest:
        raise Usage(f"ipset {verb} {name} needs an entry", "write ADDRESS, NET/LENGTH or FIRST-LAST")
    entry = rest.pop(0)
    if verb == "test":
        _too_many(*rest[:1])
        return Asked("test", name, entry)
    return [{"op": f"set.entry.{verb}", "set": name, "entries": [_entry(verb, entry, rest)]}]


def _too_many(word: str | None = None) -> Asked:
    if word is not None:
        raise Usage(f"unexpected word {word!r}", _HELP)
    return Asked("show")


def _create(name: str, rest: list[str]) -> Change:
    if not rest:
        raise Usage(f"ipset create {name} needs a type", f"one of {', '.join(TYPES)}")
    type = rest.pop(0)
    if type not in TYPES:
        raise Usage(
            f"sets of type {type} are not in fnat: lists look at the client's address only", f"use {' '.join(TYPES)}"
        )
    change: Change = {"op": "set.add", "name": name, "type": type}
    while rest:
        word = rest.pop(0)
        if word == "comment":
            raise Usage(
                "comments on entries are not in fnat",
                "leave comment out, or keep the entries in a file with # comments",
            )
        if word in ("hashsize", "maxelem"):
            raise Usage(
                f"{word} is not in fnat: a set grows as it needs to", "leave it out; [host] acl_entries is the room"
            )
        if word != "range":
            raise Usage(f"{word!r} is not known here", "what may stand here: range FIRST-LAST")
        change["span"] = _written(rest.pop(0) if rest else "")
    if (type == "bitmap:ip") != ("span" in change):
        raise Usage(
            f"ipset create {name} {type}: range is for bitmap:ip, which needs it", "add or leave out range FIRST-LAST"
        )
    return change


def _entry(verb: str, entry: str, rest: list[str]) -> str:
    words = [entry]
    while rest:
        word = rest.pop(0)
        if word == "comment":
            raise Usage(
                "comments on entries are not in fnat",
                "leave comment out, or keep the entries in a file with # comments",
            )
        if verb == "del" or word not in ("nomatch", "timeout"):
            raise Usage(
                f"{word!r} is not known here", "behind an entry that is added may stand nomatch, timeout SECONDS"
            )
        words.append(word)
        if word == "timeout":
            words.append(str(number(rest.pop(0) if rest else "", "timeout", 1, 31_535_999)))
    return _written(" ".join(words))


def _written(text: str) -> str:
    try:
        return sets.canonical(text)
    except ValueError as error:
        raise Usage(str(error), "write ADDRESS, NET/LENGTH or FIRST-LAST") from None


def sets_text(rows: Iterable[tuple[Row, Iterable[str]]]) -> str:
    """Sets with their entries, as ipset(8) and DPVS show them."""
    text = ""
    for row, entries in rows:
        span = f"range {row['span']} " if row["span"] else ""
        text += f"Name: {row['name']}\nType: {row['type']}\nHeader: {span}references {row['used_by']}\n"
        members = "".join(f"{entry}\n" for entry in entries)
        text += f"Number of entries: {row['entries']}\nMembers:\n{members}\n"
    return text
