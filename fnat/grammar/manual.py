"""What a command says of itself: one value from which -h and the manual page are written."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

WIDTH = 120
Entries = tuple[tuple[str, str], ...]
"""(term, what it means)."""


@dataclass(frozen=True)
class Manual:
    """A program's reference. A section holds entries, or paragraphs of text."""

    program: str
    summary: str
    usage: tuple[str, ...]
    sections: tuple[tuple[str, Entries | str], ...]
    see: tuple[str, ...] = ()

    def text(self) -> str:
        """What -h prints."""
        lines = [f"{'Usage: ' if not at else '       '}{usage}" for at, usage in enumerate(self.usage)]
        lines += ["", self.summary[0].upper() + self.summary[1:] + "."]
        for title, body in self.sections:
            lines += ["", f"{title}:"]
            if isinstance(body, str):
                for paragraph in body.split("\n\n"):
                    lines += textwrap.wrap(paragraph, WIDTH, initial_indent="  ", subsequent_indent="  ")
            else:
                for term, meaning in body:
                    lines += entry(term, meaning)
        return "\n".join(lines) + "\n"


def entry(term: str, meaning: str, column: int = 34) -> list[str]:
    """A term and its meaning beside it, or below when it is long."""
    indent = " " * column
    if len(term) > column - 4:
        head = textwrap.wrap(term, WIDTH, initial_indent="  ", subsequent_indent=" " * 8, break_on_hyphens=False)
        return head + textwrap.wrap(meaning, WIDTH, initial_indent=" " * 8, subsequent_indent=" " * 8)
    return textwrap.wrap(meaning, WIDTH, initial_indent=f"  {term}".ljust(column), subsequent_indent=indent)


EXIT_CODES: Entries = (
    ("0", "done"),
    ("1", "failed; one line says what, why and how to mend it, with a code that `fnat help CODE` explains"),
    ("2", "wrong usage: nothing was asked of fnat, nothing was changed"),
    ("3", "fnat is not running"),
)
