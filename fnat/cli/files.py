"""`fnat check|diff|apply|history|rollback|config`: the configuration file, and what is in force of it."""

from __future__ import annotations

import gc
import re
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from fnat.cli import nouns, say, say_json, show
from fnat.cli.nouns import Tree, settings
from fnat.errors import ConfigError, FnatError
from fnat.model import ApplyView, DiffView

DEFAULT_CONFIG = Path("/etc/fnat/fnat.toml")
FINDINGS = 4  # exit code: a check found something, or a comparison a difference
MOST_LINES = 200  # of a comparison on a screen

file_argument = click.argument("file", type=click.Path(path_type=Path), required=False)


def _text(file: Path | None) -> tuple[str | None, str]:
    """The text of a file and its name; "-" is standard input; None: fnat reads the file that it was started with."""
    from fnat.config import read

    if file is None:
        return None, ""
    if str(file) == "-":
        return sys.stdin.read(), "standard input"
    return read(file), str(file.absolute())


# ---- check ----


@click.command(cls=nouns.Leaf)
@click.argument("file", type=click.Path(path_type=Path), default=DEFAULT_CONFIG)
@click.option("--node", metavar="NAME", help="Only this node of the file; all of them when left out.")
@nouns.json_option
def check(file: Path, node: str | None) -> int:
    """Check a configuration file: all errors, and what it takes. Nothing is changed.

    Exit code 4: it has errors or warnings."""
    from fnat.config import nodes, read

    gc.disable()  # a file may be a million objects, and this process ends soon
    text = read(file)
    findings: list[str] = []
    rows: list[dict[str, Any]] = []
    try:
        names: list[str | None] = [node] if node else [*nodes(text)] or [None]
    except ConfigError:
        names = [None]
    for name in names:
        try:
            rows.append(_checked(text, str(file), name, findings))
        except FnatError as error:
            findings += [str(each) for each in (error, *error.others)]
    findings = list(dict.fromkeys(findings))
    if settings().json:
        say_json({"file": str(file), "findings": findings, "nodes": rows})
    else:
        say("".join(f"{finding}\n" for finding in findings) + "".join(_check_text(str(file), row) for row in rows))
    return FINDINGS if findings else 0


def _checked(text: str, file: str, node: str | None, findings: list[str]) -> dict[str, Any]:
    """Raises ConfigError."""
    from fnat.capacity import memory_of, room_of_lips
    from fnat.config import parse

    loaded = parse(text, file, node)
    config = loaded.config
    findings += loaded.warnings
    try:
        memory, huge_pages = memory_of(config.host, len(config.ports))
    except OSError:
        at, fix = f"{file}: host.conns", "lower host.conns, or raise host.workers (at most 64)"
        message = (
            f"{config.host.conns} connections on {config.host.workers} workers are more than a data plane can hold"
        )
        raise ConfigError("FN-1104", f"{at}: {message}", fix) from None
    room = [(room_of_lips(s, config.host.ports_of_a_lip), s) for s in config.services if s.servers]
    least = min(room, key=lambda pair: pair[0], default=None)
    return {
        "node": config.node,
        "ports": len(config.ports),
        "services": len(config.services),
        "servers": sum(len(service.servers) for service in config.services),
        "lips": len(config.services.lips),
        "conns": config.host.conns,
        "memory": memory,
        "huge_pages": huge_pages,
        "lip_headroom": {"service": str(least[1].key), "name": least[1].name, "conns": least[0]} if least else None,
    }


def _check_text(file: str, row: dict[str, Any]) -> str:
    counts = ", ".join(f"{row[name]} {name}" for name in ("ports", "services", "servers", "lips"))
    lines = [f"{file}: ok, node {row['node'] or '-'}: {counts}"]
    mib = row["memory"]["total"] >> 20
    lines.append(f"  memory: {mib} MiB for {row['conns']} connections, or {row['huge_pages']} huge pages of 2 MiB")
    if (least := row["lip_headroom"]) is not None:
        name = f"{least['name']} ({least['service']})" if least["name"] else least["service"]
        lines.append(
            f"  LIP headroom: {least['conns']} connections at most to the servers of {name}, the narrowest service"
        )
    return "\n".join(lines) + "\n"


# ---- diff, apply ----


@click.command(cls=nouns.Leaf)
@file_argument
@nouns.reading
def diff(file: Path | None) -> int:
    """What applying the file would change, and whom it would hurt; without FILE the one fnat was started with.

    + comes, - goes, ~ is otherwise. Exit code 4: there is a difference."""
    text, name = _text(file)
    with nouns.client() as door:
        view = door.config_diff(text, name)
    say_json(view) if settings().json else say(_diff_text(view) or "no difference\n")
    return FINDINGS if view["changes"] or view["conflicts"] else 0


def _diff_text(view: DiffView | ApplyView) -> str:
    lines = view["lines"][:MOST_LINES]
    if len(view["lines"]) > len(lines):
        lines.append(f"… and {len(view['lines']) - len(lines)} more (--json shows all)")
    for each in view["impact"]:
        told = [f"{each['conns']} connections open"]
        told += [f"{each['cut']} cut"] * bool(each["cut"])
        told += [f"{each['left']} go on to servers that get no new ones"] * bool(each["left"])
        if each["slots"] is not None:
            told.append(f"{each['slots'][0]} of {each['slots'][1]} hash slots move")
        told += ["NO USABLE SERVER afterwards"] * each["without_rs"]
        lines.append(f"! {each['name'] + ' ' if each['name'] else ''}{each['service']}: {', '.join(told)}")
    lines += [f"! VIP {vip}: no usable server afterwards" for vip in view["vips_without_rs"]]
    lines += [f"conflict: {conflict}" for conflict in view["conflicts"]]
    lines += [f"restart: {line}" for line in view["restart"]]
    lines += [f"warning: {warning}" for warning in view["warnings"]]
    return "".join(f"{line}\n" for line in lines)


def _seconds(ctx: click.Context, param: click.Parameter, value: str | None) -> int:
    """5m, 90s, 1h, 300; 0 when left out."""
    if value is None:
        return 0
    match = re.fullmatch(r"(\d+)([hms]?)", value)
    seconds = int(match[1]) * {"h": 3600, "m": 60, "s": 1, "": 1}[match[2]] if match else 0
    if not 1 <= seconds <= 86_400:
        raise click.BadParameter(f"{value!r} is not a time; write 90s, 5m or 1h, at most 24h", ctx, param)
    return seconds


@click.command(cls=nouns.Leaf)
@file_argument
@click.option("--confirm", callback=_seconds, metavar="TIME", help="Take it back after TIME (5m) unless confirmed.")
@click.option("--confirmed", is_flag=True, help="Keep what was applied with --confirm.")
@nouns.changing
def apply(file: Path | None, confirm: int, confirmed: bool) -> None:
    """Put the file in force, all or nothing; without FILE the one fnat was started with.

    Changes made by command or API stay on top of it; `fnat config show --diff` lists them."""
    if confirmed and (confirm or file or settings().dry_run):
        raise click.UsageError("--confirmed stands alone")
    with nouns.client() as door:
        if confirmed:
            door.config_confirm()
            if settings().json:
                say_json({"confirmed": True})
            elif not settings().quiet:
                say("confirmed: it stays\n")
            return
        text, name = _text(file)
        if settings().dry_run:
            view: DiffView = door.config_diff(text, name)
            say_json(view) if settings().json else say(_diff_text(view) + "it would be accepted\n")
            return
        _done(door.config_apply(text, name, confirm))


def _done(view: ApplyView) -> None:
    if settings().json:
        say_json(view)
    elif not settings().quiet:
        text = _diff_text(view) + f"generation {view['generation']} in force (snapshot {view['snapshot']})\n"
        if view["confirm_in"] is not None:
            text += f"taken back in {view['confirm_in']:.0f} s unless you say `fnat apply --confirmed`\n"
        say(text)


# ---- history, rollback ----


@click.command(cls=nouns.Leaf)
@nouns.reading
def history() -> None:
    """Files that were applied, the oldest first; * is in force."""
    with nouns.client() as door:
        rows = door.config_history()
    if settings().json:
        say_json(rows)
        return
    columns = (">number", "in force", "when", "why", "from")
    lines = [
        (row["number"], "*" if row["in_force"] else None, _when(row["at"]), row["why"], row["source"]) for row in rows
    ]
    show.show(show.Table(columns, lines))


def _when(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


@click.command(cls=nouns.Leaf)
@click.argument("number", type=click.IntRange(1), required=False)
@nouns.doing
def rollback(number: int | None) -> None:
    """Apply an earlier file of the history again; without NUMBER the one before, or end a waiting `apply --confirm`."""
    with nouns.client() as door:
        _done(door.config_do("rollback", number))


# ---- config ----


@click.group(cls=Tree)
def config() -> None:
    """The configuration in force, and run-time changes on top of the file."""


@config.command("show")
@click.option("--running", "what", flag_value="running", help="What is in force, as a file.")
@click.option("--startup", "what", flag_value="startup", help="The file that was applied last.")
@click.option("--diff", "what", flag_value="diff", help="Run-time changes between the two.")
@nouns.reading
def config_show(what: str | None) -> None:
    """The configuration; --running when nothing is said."""
    with nouns.client() as door:
        view = door.config(startup=what == "startup")
    if settings().json:
        say_json(view)
    elif what == "diff":
        say("".join(f"{line}\n" for line in _standing(view)))
    else:
        say(view["text"])


def _standing(view: Any) -> Iterable[str]:  # noqa: ANN401, JSON
    yield from view["overlay"]
    for line in view["restart"]:
        yield f"restart: {line}"
    if view["file_edited"]:
        yield "the file was edited and not applied; `fnat diff` shows what it would change"
    if view["confirm_in"] is not None:
        yield f"generation {view['generation']} is taken back in {view['confirm_in']:.0f} s unless confirmed"


@config.command("save")
@nouns.doing
def config_save() -> None:
    """Write the run-time changes into the file; the text before stays in the history."""
    with nouns.client() as door:
        _done(door.config_do("save"))


@config.command("discard")
@nouns.doing
def config_discard() -> None:
    """Drop the run-time changes, and say which they were."""
    with nouns.client() as door:
        _done(door.config_do("discard"))


COMMANDS = (check, diff, apply, history, rollback, config)
