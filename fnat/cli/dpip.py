"""`fnat dpip` and `fnat-dpip`: the grammar joined to the API."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from fnat import __version__
from fnat.cli import guarded, pick, repeat, say, say_json
from fnat.errors import FnatError
from fnat.grammar import Change, Row, dpip, ipset
from fnat.grammar.dpip import Changes, Show, Word

if TYPE_CHECKING:
    from fnat.client import Client


def main() -> None:
    if "_FNAT_DPIP_COMPLETE" in os.environ:
        from fnat.cli.completion import answer  # click, for the shell's question only

        sys.exit(answer("fnat-dpip", dpip.complete))
    sys.exit(guarded("fnat-dpip", lambda: run(sys.argv[1:], None)))


def run(words: Sequence[str], socket: str | None) -> int:
    """One command line. Raises Usage and FnatError."""
    if (about_sets := ipset.command(words)) is not None:
        return _ipset(about_sets, socket)
    command = dpip.parse(words)
    if isinstance(command, Word):
        say(
            dpip.manual().text()
            if command.name == "help"
            else f"fnat-dpip {__version__} (the FullNAT part of DPVS's dpip)\n"
        )
        return 0
    if isinstance(command, Show):
        command = replace(command, color=command.color and sys.stdout.isatty())
    from fnat.client import Client  # takes a third of a second: not for -h and refusals

    with Client(socket) as client:
        if isinstance(command, Changes):
            client.change(command.changes)
        elif command.what == "link" and command.interval:
            _watch_links(client, command)
        else:
            repeat(lambda: _list(client, command), command.interval, command.count)
    return 0


def _list(client: Client, show: Show) -> None:
    rows, text = _read(client, show)
    say_json(rows) if show.json else say(text)


def _read(client: Client, show: Show) -> tuple[Sequence[Row], str]:
    """What to show, as JSON and as text."""
    if show.what == "cpu":
        workers = pick(client.workers(), "index", None if show.name is None else int(show.name), "worker")
        return workers, dpip.cpu_text(workers, client.ports(), show)
    ports = client.ports()
    mine = pick(ports, "name", show.name, "port")
    if show.what == "link":
        return mine, dpip.link_text(mine, show)
    if show.what == "addr":
        addresses = dpip.of_family(client.addresses(port=show.name), "addr", show)
        return addresses, dpip.addr_text(addresses, show)
    if show.what == "route":
        routes = [row for row in dpip.of_family(client.routes(), "prefix", show) if show.name in (None, row["port"])]
        return routes, dpip.route_text(routes, ports)
    neighbours = dpip.of_family(client.neighbours(port=show.name), "addr", show)
    return neighbours, dpip.neigh_text(neighbours)


def _ipset(asked: list[Change] | ipset.Asked, socket: str | None) -> int:
    from fnat.client import Client

    with Client(socket) as client:
        if not isinstance(asked, ipset.Asked):
            client.change(asked)
            return 0
        if asked.what == "test":
            answer = client.set_test(str(asked.name), asked.addr)
            word = "is in" if answer["admitted"] else "is NOT in"
            say_json(answer) if asked.json else say(f"{asked.addr} {word} set {asked.name}\n")
            return 0 if answer["admitted"] else 1
        rows = [row for row in client.sets() if asked.name in (None, row["name"])]
        if asked.name is not None and not rows:
            raise FnatError("FN-1203", f"there is no set {asked.name}", "ipset show lists the sets")
        full = [(row, list(client.set_entries(row["name"]))) for row in rows]
    say_json([{**row, "members": entries} for row, entries in full]) if asked.json else say(ipset.sets_text(full))
    return 0


def _watch_links(client: Client, show: Show) -> None:
    """Rates, one block each interval."""
    ports = pick(client.ports(), "name", show.name, "port")
    blocks = 0
    while not show.count or blocks < show.count:
        before = {port["name"]: port["stats"] for port in ports}
        time.sleep(show.interval)
        ports = pick(client.ports(), "name", show.name, "port")
        say(dpip.link_text(ports, show, before))
        blocks += 1


if __name__ == "__main__":
    main()
