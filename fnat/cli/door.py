"""`fnat token` and `fnat audit`: who may use the API, and who did what by it."""

from __future__ import annotations

from pathlib import Path

import click

from fnat.cli import nouns, say, say_json, say_json_rows
from fnat.cli.nouns import Tree, settings

DEFAULT_TOKENS = Path("/etc/fnat/tokens")

file_option = click.option(
    "--file",
    type=click.Path(path_type=Path, dir_okay=False),
    default=DEFAULT_TOKENS,
    show_default=True,
    metavar="FILE",
    help="The tokens file, as `tokens` in [api] names it.",
)


@click.group(cls=Tree)
def token() -> None:
    """Tokens for the API by TCP; they count at once, nothing is restarted."""


@token.command("add")
@click.argument("name", metavar="NAME")
@click.option("--role", type=click.Choice(["read-only", "admin"]), required=True)
@file_option
@nouns.json_option
def add(name: str, role: str, file: Path) -> None:
    """Make a token and print it, this once: the file has only its digest."""
    from fnat.access import Tokens

    secret = Tokens(file).add(name, "admin" if role == "admin" else "read-only")
    say_json({"name": name, "role": role, "token": secret}) if settings().json else say(f"{secret}\n")


@token.command("list")
@file_option
@nouns.json_option
def list_tokens(file: Path) -> None:
    """Names, roles, and when they were made."""
    from fnat.access import Tokens

    rows = [{"name": t.name, "role": t.role, "created": t.created} for t in Tokens(file).all()]
    if settings().json:
        say_json_rows(rows)
    else:
        say("".join(f"{row['name']:<24} {row['role']:<10} {row['created']}\n" for row in rows))


@token.command("revoke")
@click.argument("name", metavar="NAME")
@file_option
def revoke(name: str, file: Path) -> None:
    """End a token; its next request is refused."""
    from fnat.access import Tokens

    Tokens(file).revoke(name)


@click.command("audit", cls=nouns.Leaf)
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="Records, the newest.")
@nouns.reading
def audit(limit: int) -> None:
    """Who asked for what from where, and how it ended; --json shows before and after, too."""
    with nouns.client() as door:
        records = door.audit(limit=limit)
    if settings().json:
        say_json_rows(records)
        return
    for record in records:
        changed = ", ".join(part["resource"] for part in record.get("changed", ())[:3])
        if (more := len(record.get("changed", ())) - 3 + record.get("omitted", 0)) > 0:
            changed += f" and {more} more"
        result = record.get("code") or record.get("note") or "done"
        say(f"{record['time']} {record['who']} ({record['from']}) {record['what']}: {changed or result}\n")
