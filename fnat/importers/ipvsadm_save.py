"""Command lines of ipvsadm and dpip: what `ipvsadm -S` prints, or a shell script of such commands -> wishes.

The words are those of fnat.grammar. A line that the grammar refuses for one option is tried without it: so a service
with a scheduler or mode of DPVS that fnat has not is carried without that option, and the option is told.

Unsatisfying: a script's variables, loops and conditions are not understood; its lines are told as they are.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from types import ModuleType
from typing import Any

from fnat.grammar import Usage, dpip, ipvsadm
from fnat.importers import Draft
from fnat.importers.blocks import Origin

# Options that say what a line is about: without one of them it would be about something else.
_NAMING_LETTERS = ("-t", "-u", "-f", "-q", "-1", "-H", "-r", "-z", "-F", "-J", "-k", "-2")
_NAMING = ("--tcp-service", "--udp-service", "--sctp-service", "--fwmark-service", "--icmp-service",
           "--icmpv6-service", "--match", "--real-server", "--local-address", "--ifname", "--snat", "--blklst",
           "--whtlst")  # fmt: skip
_IDENTITY = {"op", "proto", "vip", "vport", "service", "rip", "rport", "addr", "plen", "port", "prefix", "gateway"}


def read(draft: Draft, text: str, name: str) -> None:
    for number, line in _lines(text):
        at = Origin(name, number, line.strip())
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            draft.lost(at, f"{str(error).lower()}", "mend the quotes")
            continue
        if not words:
            continue
        program, words = _program(words)
        if program is None:
            draft.lost(at, "is not a command of ipvsadm or dpip", "see whether fnat or the host needs it")
            continue
        grammar = ipvsadm if program == "ipvsadm" else dpip
        for change in _changes(draft, grammar, words, at):
            if "port" in change and isinstance(change["port"], str):
                draft.port(change["port"], at)
            if change["op"] == "service.add" and change["proto"] == "udp" and draft.uoa is not None:
                change.setdefault("client_addr", draft.uoa)
            draft.wish(at, change, dict.fromkeys(change.keys() - _IDENTITY, at))


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines and their numbers; a backslash at the end goes on in the next."""
    begun, start = "", 0
    for number, line in enumerate(text.split("\n"), 1):
        start = start or number
        if line.endswith("\\"):
            begun += line[:-1] + " "
        else:
            yield start, begun + line
            begun, start = "", 0
    if begun:
        yield start, begun


def _program(words: list[str]) -> tuple[str | None, list[str]]:
    """Which language a line speaks, and its words."""
    if words[0] == "sudo":
        words = words[1:]
    if words and words[0].startswith("-"):
        return "ipvsadm", words
    name = os.path.basename(words[0]) if words else ""
    if name == "fnat" and len(words) > 1:
        name, words = words[1], words[1:]
    if (plain := name.removeprefix("fnat-")) in ("ipvsadm", "dpip"):
        return plain, words[1:]
    return None, words


def _changes(draft: Draft, grammar: ModuleType, words: list[str], at: Origin) -> list[dict[str, Any]]:
    """The changes of a line, without the options that the grammar refuses."""
    while True:
        try:
            command = grammar.parse(words)
        except Usage as error:
            refused = error
        else:
            if isinstance(command, grammar.Changes):
                return list(command.changes)
            draft.lost(at, "changes nothing", "the line is left out")
            return []
        shorter = _without_culprit(grammar, words, refused) if grammar is ipvsadm else None
        if shorter is None:
            draft.lost(at, refused.message, refused.fix)
            return []
        option = next((word for word in words if word not in shorter), at.word)
        draft.lost(at._replace(word=option), refused.message, "the option is left out")
        words = shorter


def _without_culprit(grammar: ModuleType, words: list[str], refused: Usage) -> list[str] | None:
    """The words without the option that is the reason; None when that is not one option alone."""
    starts = [i for i, word in enumerate(words) if re.match(r"-[^0-9.]", word)] + [len(words)]
    for begin, end in pairwise(starts[1:]):  # the first is the command
        if words[begin].startswith(_NAMING_LETTERS) or words[begin].partition("=")[0] in _NAMING:
            continue
        shorter = words[:begin] + words[end:]
        try:
            grammar.parse(shorter)
        except Usage as other:
            if other.message == refused.message or "needs" in other.message:
                continue
        return shorter
    return None
