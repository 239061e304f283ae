"""`fnat import`: files of DPVS become a fnat.toml, and a keepalived.conf for a stock keepalived where there is VRRP."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import click

from fnat.cli import nouns, say, say_json
from fnat.cli.nouns import Leaf, settings
from fnat.errors import FnatError
from fnat.grammar import Usage

KINDS = ("dpvs.conf", "keepalived.conf", "ipvsadm-save")  # fnat.importers has the same, and is read only when needed
NOT_ALL = 4  # exit code: something was not carried
_PRIVATE = ("keepalived.conf",)  # it may hold passwords


@click.command("import", cls=Leaf)
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--kind", type=click.Choice(KINDS), help="What FILE is; told from its words when left out.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="DIR", help="Write the files there, not to the terminal."
)
@click.option("--force", is_flag=True, help="Overwrite files that are there.")
@click.option(
    "--port", "ports", multiple=True, metavar="NAME=NIC", help="The kernel's NIC of a port, such as dpdk0=ens1f0."
)
@click.option(
    "--lips", multiple=True, metavar="FIRST-LAST", help="Local addresses of services for which FILE has none."
)
@click.option("--node", metavar="NAME", help="Name of the node in fnat.toml; keepalived's router_id when left out.")
@nouns.json_option
def command(
    files: tuple[str, ...],
    kind: str | None,
    output: Path | None,
    force: bool,
    ports: tuple[str, ...],
    lips: tuple[str, ...],
    node: str | None,
) -> int:
    """Make a fnat.toml of DPVS's files: dpvs.conf, its keepalived's keepalived.conf, what `ipvsadm -S` printed, or a
    script of ipvsadm and dpip commands; - is standard input. Several files become one.

    Every line that has no counterpart is listed on standard error and at the top of fnat.toml. Nothing that runs is
    touched.

    Exit codes: 0 everything was carried, 4 something was not, 1 failed, 2 wrong usage."""
    from fnat import importers
    from fnat.importers.blocks import read_text

    if force and output is None:
        raise Usage("--force without -o", "say where to write with -o DIR")
    if kind and len(files) > 1:
        raise Usage("--kind with several files", "leave it out, each file is told from its words")
    draft = importers.Draft(nics=_nics(ports), lips=lips, node=_node(node))
    known = next((known for known in importers.KINDS if known == kind), None)
    sources = [
        importers.Source("standard input", _standard_input(), None, known)
        if file == "-"
        else importers.Source(Path(file).name, read_text(file), Path(file), known)
        for file in files
    ]
    importers.read(draft, sources)
    done = importers.finish(draft)
    if output is not None:
        write(output, done.files, force)
    if settings().json:
        texts = {name: None if output else text for name, text in done.files.items()}
        paths = {name: str(output / name) if output else None for name in done.files}
        say_json(
            {
                "files": [{"name": name, "path": paths[name], "text": texts[name]} for name in done.files],
                "notes": [asdict(note) for note in done.notes],
                "complete": done.complete,
            }
        )
    else:
        print("".join(f"{note}\n" for note in done.notes), end="", file=sys.stderr)
        if output is None:
            say(done.files["fnat.toml"])
            if len(done.files) > 1:
                print("fnat: there is a keepalived.conf, too; -o DIR writes both", file=sys.stderr)
        else:
            say("".join(f"{output / name}\n" for name in done.files))
    return 0 if done.complete else NOT_ALL


def _standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError:
        raise FnatError("FN-1501", "standard input: not UTF-8 text", "give UTF-8") from None


def _nics(ports: tuple[str, ...]) -> dict[str, str]:
    from pydantic import ValidationError

    from fnat.model import Port

    nics: dict[str, str] = {}
    for text in ports:
        name, equals, nic = text.partition("=")
        try:
            Port(name=name)
        except ValidationError:
            equals = ""
        if not equals or not 0 < len(nic) < 16 or not nic.isprintable() or set(nic) & set(' /"\\'):
            raise Usage(f"--port {text!r} is not NAME=NIC", "write it like --port dpdk0=ens1f0")
        if name in nics:
            raise Usage(f"--port {name} is given twice", "give it once")
        nics[name] = nic
    return nics


def _node(text: str | None) -> str | None:
    if text is not None and not (text and all(c.isascii() and (c.isalnum() or c in "._-") for c in text)):
        raise Usage(f"--node {text!r} is not a name", "use letters, digits, '.', '_' and '-'")
    return text


def write(directory: Path, files: Mapping[str, str], force: bool) -> None:
    """All files or none. Without force a file that is there is an error."""
    made: list[Path] = []
    temporary: dict[Path, Path] = {}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            handle, temporary_name = tempfile.mkstemp(prefix=f".{name}.", dir=directory)
            temporary[directory / name] = Path(temporary_name)
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                os.fchmod(file.fileno(), 0o600 if name in _PRIVATE else 0o644)
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        for target, written in temporary.items():
            if force:
                written.replace(target)
            else:
                target.hardlink_to(written)
                made.append(target)
    except OSError as error:
        for path in made:
            path.unlink(missing_ok=True)
        if isinstance(error, FileExistsError) and directory.is_dir():
            there = ", ".join(str(directory / name) for name in files if (directory / name).exists())
            raise FnatError("FN-1504", f"{there}: exists already", "give another DIR, or --force") from None
        message = f"{error.filename or directory}: {error.strerror}"
        raise FnatError("FN-1501", message, "give a directory to write to") from None
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)
