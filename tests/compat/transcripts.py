"""Sessions at a terminal, as DPVS's tutorial and documents have them, and what fnat answers: transcripts/*.txt.

    # the first line is the title, further comment lines say where it is from
    $ ipvsadm -A -t 10.0.0.1:80 -s rr       a command; silence and exit code 0 are expected unless lines follow
    TCP  10.0.0.1:80 rr                     what it prints
    ! fnat-ipvsadm: …                       what it says on standard error
    [2]                                     its exit code
    < FILE                                  behind a command: its standard input is what `> FILE` of an earlier one printed

`python tests/compat/transcripts.py` writes README.md anew; with --record the answers in the transcripts too, from what
is answered now: read the difference before it is committed.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from balancer import running
from terminal import type_in

from fnat import __version__
from fnat.grammar import dpip, ipvsadm

HERE = Path(__file__).parent
README = HERE / "README.md"
REDIRECTED = re.compile(r"(.*?)(?: ([<>]) (\S+))?")


@dataclass(frozen=True)
class Step:
    """A command and what is expected of it."""

    line: str
    out: str = ""
    err: str = ""
    code: int = 0

    def text(self) -> str:
        told = "".join(f"! {line}\n" for line in self.err.splitlines())
        return f"$ {self.line}\n{self.out}{told}" + (f"[{self.code}]\n" if self.code else "")


@dataclass(frozen=True)
class Transcript:
    name: str
    head: tuple[str, ...]  # comment lines
    steps: tuple[Step, ...] = field(default=())

    @property
    def title(self) -> str:
        return self.head[0]

    def text(self) -> str:
        return "".join(f"# {line}\n" for line in self.head) + "".join(step.text() for step in self.steps)


def read(path: Path) -> Transcript:
    head: list[str] = []
    steps: list[Step] = []
    for line in path.read_text().splitlines():
        if line.startswith("# ") and not steps:
            head.append(line[2:])
        elif line.startswith("$ "):
            steps.append(Step(line[2:]))
        elif line.startswith("! "):
            steps[-1] = replace(steps[-1], err=f"{steps[-1].err}{line[2:]}\n")
        elif match := re.fullmatch(r"\[(\d)\]", line):
            steps[-1] = replace(steps[-1], code=int(match[1]))
        else:
            steps[-1] = replace(steps[-1], out=f"{steps[-1].out}{line}\n")
    return Transcript(path.stem, tuple(head), tuple(steps))


def everything() -> list[Transcript]:
    return [read(path) for path in sorted((HERE / "transcripts").glob("*.txt"))]


def play(transcript: Transcript) -> Iterator[tuple[Step, bool]]:
    """What is answered now, step by step, and whether it changed what is in force. Trailing blanks of a listing do not
    count, and the version is VERSION."""
    files: dict[str, str] = {}
    with running() as control:
        for step in transcript.steps:
            match = REDIRECTED.fullmatch(step.line)
            assert match is not None
            line, way, name = match.groups()
            before = control.engine.config
            code, out, err = type_in(line, files.get(name, "") if way == "<" else "")
            if way == ">":
                files[name], out = out, ""
            out = "".join(f"{line.rstrip()}\n" for line in out.replace(__version__, "VERSION").splitlines())
            yield Step(step.line, out, err, code), control.engine.config != before


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def document() -> str:
    """README.md as it should be."""
    found = everything()
    steps = [step for one in found for step in one.steps]
    refused = [(one, step) for one in found for step in one.steps if step.code]
    codes = {code: sum(step.code == code for _, step in refused) for code in sorted({s.code for _, s in refused})}
    out = [
        "# The commands of DPVS at fnat",
        "",
        "Made by `python tests/compat/transcripts.py` from `transcripts/` and the grammars' tables; a test fails when it is stale.",
        "Each transcript is a session from DPVS's tutorial or documents, typed at a real control and API; every answer is compared.",
        "",
        f"{len(found)} transcripts, {len(steps)} commands, {len(steps) - len(refused)} done, {len(refused)} refused: "
        + ", ".join(f"{n} with exit code {code}" for code, n in codes.items())
        + ". A refused command changes nothing.",
        "",
        "| transcript | session | commands | refused |",
        "|---|---|---|---|",
    ]
    for one in found:
        bad = sum(bool(step.code) for step in one.steps)
        out.append(f"| `{one.name}` | {cell(one.title)} | {len(one.steps)} | {bad or ''} |")
    out += ["", "## Refused in the transcripts", "", "| command | exit code | what is said |", "|---|---|---|"]
    for _, step in refused:
        said = step.err.strip().partition(": ")[2]
        out.append(f"| `{cell(step.line)}` | {step.code} | {cell(said)} |")
    out += ["", "## Words of DPVS that fnat refuses, and what to do", ""]
    for name, rows in (
        (
            "ipvsadm",
            [(ipvsadm.both(option), "; ".join(option.why)) for option in ipvsadm.OPTIONS.values() if option.why],
        ),
        ("dpip", dpip.refusals()),
    ):
        out += [f"| {name} | why, and what to do |", "|---|---|"]
        out += [f"| `{cell(word)}` | {cell(why)} |" for word, why in rows]
        out += [""]
    return "\n".join(out).rstrip() + "\n"


def record() -> None:
    for one in everything():
        (HERE / "transcripts" / f"{one.name}.txt").write_text(
            replace(one, steps=tuple(step for step, _ in play(one))).text()
        )


if __name__ == "__main__":
    if "--record" in sys.argv:
        record()
    README.write_text(document())
