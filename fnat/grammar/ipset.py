"""The words of DPVS for access lists: `dpip ipset …` for sets of addresses, and ipvsadm's -U -V -B (deny) and -O -Y -W
(allow). Sets of ports, interfaces or MAC addresses are no lists of sources and are refused.

Different from DPVS on purpose: entries may have a `timeout` as those of ipset(8), a set holds both families, `hashsize`
and `maxelem` are read and mean nothing because a set grows as it needs to (at most 1 048 576 entries of a family).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from fnat import sets
from fnat.grammar import Change, Row, Usage, number, service_key, service_text

TYPES = sets.TYPES
_HELP = "the commands of ipset are create destroy add del test show flush"


@dataclass(frozen=True)
class Asked:
    """What is to be shown of sets: one or all, or whether an address is in one."""

    what: Literal["show", "test"]
    name: str | None = None
    addr: str = ""


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
        if word not in ("range", "hashsize", "maxelem"):
            raise Usage(f"{word!r} is not known here", "what may stand here: range hashsize maxelem")
        if not rest:
            raise Usage(f"{word} needs a value", f"write {word} VALUE")
        value = rest.pop(0)
        if word == "range":
            change["span"] = _written(value)
        else:
            number(value, word, 1, sets.MOST)
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


# ---- ipvsadm ----

LISTS = {"blklst": "deny", "whtlst": "allow"}


def list_change(command: str, service: Change, subject: str) -> Change:
    """-U -V (blklst), -O -Y (whtlst): `IP`, `NET/LENGTH` or `ipset:NAME`."""
    verb, name = command.split("-")
    entry = f"set:{subject[6:]}" if subject.startswith("ipset:") else _written(subject)
    return {"op": f"acl.{verb}", "list": LISTS[name], "service": service, "entry": entry}


def list_text(services: Iterable[Row], name: Literal["blklst", "whtlst"]) -> str:
    """-B, -W."""
    title = {"blklst": "BLACKLIST", "whtlst": "WHITELIST"}[name]
    text = f"{'PROTO':<8} {'VIP:VPORT':<30} {title:<30}\n"
    for row in sorted(services, key=service_key):
        for entry in row[LISTS[name]]:
            shown = f"ipset:{entry[4:]}" if entry.startswith("set:") else entry.removesuffix("/32").removesuffix("/128")
            text += f"{row['proto'].upper():<8} {service_text(row):<30} {shown:<30}\n"
    return text
