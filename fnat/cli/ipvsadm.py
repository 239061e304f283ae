"""`fnat ipvsadm` and `fnat-ipvsadm`: the grammar joined to the API."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from fnat import __version__
from fnat.cli import guarded, repeat, say, say_json, say_json_rows
from fnat.errors import FnatError
from fnat.grammar import Row, ipvsadm, service_text
from fnat.grammar.ipvsadm import Changes, Listing, Word

if TYPE_CHECKING:
    from fnat.client import Client
    from fnat.model import ConnView

PAGE = 8192  # connections asked for at a time


def main() -> None:
    if "_FNAT_IPVSADM_COMPLETE" in os.environ:
        from fnat.cli.completion import answer  # click, for the shell's question only

        sys.exit(answer("fnat-ipvsadm", ipvsadm.complete))
    sys.exit(guarded("fnat-ipvsadm", lambda: run(sys.argv[1:], None)))


def run(words: Sequence[str], socket: str | None) -> int:
    """One command line. Raises Usage and FnatError."""
    command = ipvsadm.parse(words)
    if command == Word("help"):
        say(ipvsadm.manual().text())
        return 0
    if command == Word("version"):
        say(f"fnat-ipvsadm {__version__} (the FullNAT part of DPVS's ipvsadm 1.27)\n")
        return 0
    if command == Word("restore"):
        command = ipvsadm.parse_rules(sys.stdin.read())
    from fnat.client import Client  # takes a third of a second: not for -h and refusals

    with Client(socket) as client:
        if isinstance(command, Changes):
            if command.changes:
                client.change(command.changes)
        elif isinstance(command, Listing):
            repeat(lambda: _list(client, command), command.interval, command.count)
    return 0


def _list(client: Client, command: Listing) -> None:
    if command.view == "timeout":
        timeouts = client.timeouts()
        say_json(timeouts) if command.json else say(ipvsadm.timeout_text(timeouts))
    else:
        (_list_conns if command.view == "conns" else _list_services)(client, command)


def _list_services(client: Client, command: Listing) -> None:
    services: Sequence[Row] = client.services(**(command.service or {}))
    if command.service and not services:
        name = f"{command.service['proto']} {service_text(command.service)}"
        raise FnatError("FN-1203", f"no service {name}", "-ln lists the services")
    if command.view == "save":
        say(ipvsadm.save_text(services))
    elif command.view == "laddrs":
        if command.cpu is not None:
            for lip in (lip for row in services for lip in row["lips"]):
                lip["conns"] = client.conn_count(worker=command.cpu, lip=lip["addr"])
        if command.json:
            say_json([{key: row[key] for key in ("proto", "vip", "vport", "lips")} for row in services])
        else:
            say(ipvsadm.laddrs_text(services))
    elif command.view == "deny" or command.view == "allow":
        if command.json:
            say_json([{key: row[key] for key in ("proto", "vip", "vport", command.view)} for row in services])
        else:
            say(ipvsadm.acl_text(services, command.view))
    elif command.json:
        say_json(services)
    else:
        say(ipvsadm.services_text(client.status(), services, command))


def _list_conns(client: Client, command: Listing) -> None:
    filters = command.sockpair or command.service or {}
    conns: Iterable[ConnView] = client.conns(worker=command.cpu, limit=PAGE, **filters)
    if command.sockpair:
        conns = list(conns)
        if not conns:
            raise FnatError("FN-1203", "no such connection", "-lnc lists the connections")
    if command.json:
        say_json_rows(conns)
        return
    for row in conns:
        sys.stdout.write(ipvsadm.conns_text([row]))


if __name__ == "__main__":
    main()
