"""The transcripts of this folder, played; and that README.md is of them."""

from __future__ import annotations

import pytest
from transcripts import README, Transcript, document, everything, play

from fnat.grammar import dpip, ipset, ipvsadm

TRANSCRIPTS = everything()
# what is done without a change of the configuration: counters start again; what is so already
UNCHANGED = {"ipvsadm -Z", "ipvsadm -Z -t 192.168.100.254:80"}


@pytest.mark.parametrize("transcript", TRANSCRIPTS, ids=[one.name for one in TRANSCRIPTS])
def test_a_session(transcript: Transcript) -> None:
    """Every answer is as written; what is refused changes nothing, and what is done without a word changes something."""
    for wanted, (got, changed) in zip(transcript.steps, play(transcript), strict=True):
        assert got == wanted
        if wanted.code:
            assert not changed, wanted.line
            assert wanted.err.count("\n") == 1
            assert wanted.out == ""
        elif is_change(wanted.line):
            assert changed or wanted.line in UNCHANGED, wanted.line


def is_change(line: str) -> bool:
    program, *words = line.split(" < ")[0].split(" > ")[0].split()
    if program == "ipvsadm":
        command = ipvsadm.parse(words)
        return isinstance(command, ipvsadm.Changes) or command == ipvsadm.Word("restore")
    if words[0] == "ipset":
        return not isinstance(ipset.command(words), ipset.Asked)
    return isinstance(dpip.parse(words), dpip.Changes)


def test_the_document_is_of_these_transcripts() -> None:
    assert README.read_text() == document(), "stale: run `python tests/compat/transcripts.py`"
