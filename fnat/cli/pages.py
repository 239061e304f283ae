"""Manual pages and completions, written to a directory: `python -m fnat.cli.pages DIR`.

    man1/fnat.1  man5/fnat.toml.5  man8/fnat-ipvsadm.8  man8/fnat-dpip.8
    bash/fnat, fnat-ipvsadm, fnat-dpip  zsh/_fnat, …  fish/fnat.fish, …

They come from what --help comes from: the command tree of click, the tables of the grammars, and conf/fnat.toml, whose
comments say what every key is.

Unsatisfying: fnat.toml.5 can only be written in the source tree, where conf/fnat.toml is.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from fnat import __version__
from fnat.cli import completion, guarded
from fnat.errors import CODES, FnatError
from fnat.grammar import Usage, dpip, ipvsadm
from fnat.grammar.manual import EXIT_CODES, Entries, Manual

EXAMPLE = Path(__file__).parents[2] / "conf" / "fnat.toml"
_COMMON = ("socket", "json", "quiet", "dry_run", "interval", "count")


def fnat_manual() -> Manual:
    """fnat(1), from the command tree."""
    from fnat.cli.main import fnat

    root = click.Context(fnat, info_name="fnat")
    sections: list[tuple[str, Entries | str]] = []
    common: dict[str, tuple[str, str]] = {}
    for ctx, command in _leaves(root):
        pieces = " ".join([ctx.command_path, *command.collect_usage_pieces(ctx)])
        rows = [(pieces, _plain(command.help or command.get_short_help_str(1000)))]
        for param in command.params:
            record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
            if record is None:
                continue
            if param.name in _COMMON:
                common.setdefault(str(param.name), record)
            else:
                rows.append((record[0], _plain(record[1])))
        sections.append((ctx.command_path, tuple(rows)))
    sections.append(("Options of every command that reads them, before or behind it", tuple(common.values())))
    sections.append(("Exit codes", EXIT_CODES))
    sections.append(("Error codes", tuple(CODES.items())))
    sections.append(("Environment", (("FNAT_SOCKET", "the socket of the running fnat"),)))
    usage = ("fnat COMMAND [OPTIONS]",)
    see = ("fnat-ipvsadm(8)", "fnat-dpip(8)", "fnat.toml(5)")
    return Manual("fnat", "a FullNAT layer-4 load balancer", usage, tuple(sections), see)


def _leaves(ctx: click.Context) -> Iterator[tuple[click.Context, click.Command]]:
    if not isinstance(ctx.command, click.Group):
        yield ctx, ctx.command
        return
    for name in ctx.command.list_commands(ctx):
        command = ctx.command.get_command(ctx, name)
        if command is not None and not command.hidden:
            yield from _leaves(click.Context(command, parent=ctx, info_name=name))


def _plain(text: str) -> str:
    return " ".join(text.replace("\b", "").split())


def file_manual(text: str) -> Manual:
    """fnat.toml(5), from the commented example: tables are sections, keys are entries, comments say what they are."""
    sections: list[tuple[str, list[tuple[str, str]]]] = [("Top of the file", [])]
    for line in text.splitlines():
        code, comment = _taken_apart(line)
        rows = sections[-1][1]
        if table := re.fullmatch(r"\[(.+)\]", code):
            sections.append((table[1], [(f"[{table[1]}]", comment)]))
        elif code:
            rows.append((code, comment))
        elif comment and rows:
            rows[-1] = (rows[-1][0], f"{rows[-1][1]} {comment}".strip())
        elif comment:
            rows.append(("#", comment))
    body = tuple((title, tuple((term, _plain(meaning)) for term, meaning in rows)) for title, rows in sections if rows)
    return Manual(
        "fnat.toml",
        "configuration of the FullNAT load balancer fnat",
        ("/etc/fnat/fnat.toml",),
        (*body, ("The whole as one file", text)),
        ("fnat(1)",),
    )


def _taken_apart(line: str) -> tuple[str, str]:
    """A line of TOML -> (what it sets, its comment)."""
    match = re.fullmatch(r"""((?:"[^"]*"|'[^']*'|[^#"'])*)(?:#(.*))?""", line)
    assert match is not None, line
    return " ".join(match[1].split()), (match[2] or "").strip()


def roff(manual: Manual, section: int) -> str:
    """A manual as man(7) has it."""
    lines = [f'.TH "{manual.program.upper()}" "{section}" "" "fnat {__version__}" "fnat"']
    lines += [".nh", ".ad l", ".SH NAME", f"{_escaped(manual.program)} \\- {_escaped(manual.summary)}", ".SH SYNOPSIS"]
    for usage in manual.usage:
        lines += [f".B {_escaped(usage)}", ".br"]
    for title, body in manual.sections:
        lines.append(f'.SH "{_escaped(title.upper() if not title.startswith("fnat ") else title)}"')
        if not isinstance(body, str):
            for term, meaning in body:
                lines += [".TP", f".B {_escaped(term)}", _escaped(meaning) or "\\&"]
        elif "\n" in body and title != "Notes":
            lines += [".nf", *(_escaped(line) for line in body.splitlines()), ".fi"]
        else:
            for paragraph in body.split("\n\n"):
                lines += [".PP", _escaped(paragraph)]
    if manual.see:
        lines += [".SH SEE ALSO", _escaped(", ".join(manual.see))]
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("`", "\\(ga").replace('"', "\\(dq")
    text = text.replace("|", "|\\:").replace("…", "...").replace("→", "->")  # \\: a line may end here
    return f"\\&{text}" if text[:1] in (".", "'") else text


def write(directory: Path, example: Path = EXAMPLE) -> list[Path]:
    """All pages and scripts below the directory. Raises FnatError."""
    try:
        text = example.read_text()
    except OSError as error:
        raise FnatError("FN-1101", f"{example}: {error.strerror}", "write the pages in the source tree") from None
    files = {
        "man1/fnat.1": roff(fnat_manual(), 1),
        "man5/fnat.toml.5": roff(file_manual(text), 5),
        "man8/fnat-ipvsadm.8": roff(ipvsadm.manual(), 8),
        "man8/fnat-dpip.8": roff(dpip.manual(), 8),
    }
    names = {"bash": "bash/{}", "zsh": "zsh/_{}", "fish": "fish/{}.fish"}
    for shell, name in names.items():
        files |= {name.format(program): completion.script(program, shell) for program in completion.PROGRAMS}
    written = []
    for name, content in files.items():
        path = directory / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        except OSError as error:
            message = f"{error.filename or path}: {error.strerror}"
            raise FnatError("FN-1304", message, "give a directory that can be written") from None
        written.append(path)
    return written


def main(words: list[str]) -> int:
    if len(words) != 1 or words[0].startswith("-"):
        raise Usage("pages needs one directory", "write: python -m fnat.cli.pages DIR")
    for path in write(Path(words[0])):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(guarded("pages", lambda: main(sys.argv[1:])))
