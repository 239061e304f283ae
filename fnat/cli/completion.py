"""Completion in bash, zsh and fish, by click's own protocol: the shell runs the program with _PROGRAM_COMPLETE set.

`ipvsadm` and `dpip` answer from their grammars' tables, as commands of `fnat` and as programs of their own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import click
from click.shell_completion import CompletionItem, get_completion_class, shell_complete

SHELLS = ("bash", "zsh", "fish")
PROGRAMS = ("fnat", "fnat-ipvsadm", "fnat-dpip")
Complete = Callable[[Sequence[str], str], list[tuple[str, str]]]
"""Words before, unfinished word -> (word, what it is)."""
UNTOUCHED = {"ignore_unknown_options": True, "help_option_names": []}


class Language(click.Command):
    """A command that gets its words as they are; `complete` knows what may follow them."""

    def __init__(self, name: str | None, *, complete: Complete | None = None, **more: object) -> None:
        super().__init__(name, context_settings=UNTOUCHED, **more)  # type: ignore[arg-type]
        self._complete = complete or (lambda _, __: [])
        words = click.Argument(["words"], nargs=-1, type=click.UNPROCESSED, shell_complete=self._argument)
        self.params.append(words)

    def _argument(self, ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return self.shell_complete(ctx, incomplete)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        words = ctx.params.get("words") or ()
        return [CompletionItem(word, help=help or None) for word, help in self._complete(words, incomplete)]


def variable(program: str) -> str:
    """The variable by which a shell asks a program."""
    return f"_{program.replace('-', '_').upper()}_COMPLETE"


def answer(program: str, complete: Complete) -> int:
    """What the shell asked of a program with a grammar of its own."""
    command = Language(program, complete=complete)
    return shell_complete(command, {}, program, variable(program), os.environ[variable(program)])


def script(program: str, shell: str) -> str:
    """What the shell has to read once."""
    found = get_completion_class(shell)
    assert found is not None
    return found(click.Command(program), {}, program, variable(program)).source() + "\n"
