"""`fnat`: the command tree, and the commands that start, stop and check a balancer.

The nouns (service, rs, lip, …) are in nouns.py; `ipvsadm` and `dpip` have grammars of their own and get their words
untouched.
"""

from __future__ import annotations

import difflib
import importlib.util
import os
import re
import socket
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from fnat import __version__, keeper
from fnat.cli import door, files, guarded, imports, nouns, say, say_json, show
from fnat.cli.completion import PROGRAMS, SHELLS, Language, script
from fnat.cli.nouns import Tree, settings
from fnat.errors import CODES, FnatError
from fnat.grammar import Usage
from fnat.grammar import dpip as grammar_of_dpip
from fnat.grammar import ipvsadm as grammar_of_ipvsadm
from fnat.keeper import PortOption

if TYPE_CHECKING:
    from fnat.model import Config
    from fnat.paths import Paths

MINIMUM_KERNEL = (5, 11)  # oldest kernel that the AF_XDP driver supports
_REJECT = 0x0200  # RTF_REJECT, linux/route.h
PORT_KINDS = ("xdp", "tap")


class Root(Tree):
    """The whole tree; `bench` is read only when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        bench = ["bench"] if importlib.util.find_spec("fnat.bench") else []
        return super().list_commands(ctx) + bench

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name == "bench" and importlib.util.find_spec("fnat.bench"):
            command: click.Command = importlib.import_module("fnat.bench").bench
            return command
        return super().get_command(ctx, name)


@click.group(cls=Root, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@nouns.changing
def fnat() -> None:
    """fnat, a FullNAT layer-4 load balancer.

    The options --socket, --url, --json, --quiet and --dry-run may also stand behind the command.

    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 fnat is not running, 4 findings.
    """


state_dir_option = click.option(
    "--state-dir",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Where state is kept; /var/lib/fnat when left out.",
)


# ---- the balancer ----


@fnat.command()
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="What to do; without it nothing but the changes made later.",
)
@click.option(
    "--port",
    "ports",
    multiple=True,
    metavar="NAME=xdp:DEVICE",
    help="A NIC to use, and its name here. May be repeated.",
)
@click.option("--workers", type=click.IntRange(1, 64), metavar="N", help="Worker threads, one a core.")
@nouns.socket_option
@state_dir_option
@click.option("--node", metavar="NAME", help="Which node of the file this is; the host name when left out.")
@click.option(
    "--exclusive",
    multiple=True,
    metavar="NAME",
    help="Take everything that arrives on this port; the host gets a TAP NAME.kni.",
)
@click.option("--conns", type=click.IntRange(1024, 2**31 - 1), metavar="N", help="Most connections, over all workers.")
@click.option(
    "--idle", type=click.Choice(["sleep", "spin"]), help="sleep: a quiet worker costs nothing; spin: lowest latency."
)
@click.option("--cpus", metavar="LIST", help="CPUs of the workers, such as 1-3,5; auto: near the NICs, not CPU 0.")
@click.option(
    "--steering",
    type=click.Choice(["auto", "mask", "rss", "ntuple"]),
    help="How answers find their worker; auto: by the NIC's own hash where that can be, else handed over.",
)
def run(
    config: Path | None,
    ports: tuple[str, ...],
    workers: int | None,
    state_dir: Path | None,
    node: str | None,
    exclusive: tuple[str, ...],
    conns: int | None,
    idle: str | None,
    cpus: str | None,
    steering: Literal["auto", "mask", "rss", "ntuple"] | None,
) -> int:
    """Run the balancer in the foreground until SIGTERM or Ctrl-C. Existing connections of an earlier run go on."""
    from fnat.config import resolve_ports
    from fnat.model import Host
    from fnat.paths import DEFAULT_STATE_DIR, Paths, default_socket

    if node and not config:
        raise Usage("--node without --config", "name the file, or leave --node out")
    named = [_port(text) for text in ports]
    file = _intent(config, node, Paths(state_dir or DEFAULT_STATE_DIR))
    in_file = (
        [PortOption(name=p["name"], kind=p["kind"], device=p["device"]) for p in resolve_ports(file)] if file else []
    )
    chosen = _merge(in_file, named)
    _fit_to_run(chosen, exclusive)
    if file:
        from fnat.listener import check as check_api

        check_api(file.api)
    host = file.host if file else Host()
    options: keeper.Options = {
        "config": str(config.absolute()) if config else None,
        "ports": chosen,
        "workers": workers or host.workers,
        "socket": str(Path(settings().socket or default_socket()).absolute()),
        "state_dir": str((state_dir or DEFAULT_STATE_DIR).absolute()),
        "node": node,
        "log": "info",
        "exclusive": list(exclusive),
        "conns": conns or host.conns,
        "idle": idle or host.idle,
        "cpus": _cpus(cpus) or host.cpus,
        "steering": steering or host.steering,
    }
    if file:
        options["acl_entries"] = host.acl_entries
    return keeper.run(options)


def _cpus(text: str | None) -> str | None:
    if text not in (None, "auto"):
        from fnat.model import cpu_list

        try:
            return cpu_list(text)
        except ValueError as error:
            raise Usage(f"--cpus: {error}", "write CPUs like 1-3,5, or auto") from None
    return text


def _port(text: str) -> PortOption:
    """NAME=xdp:DEVICE."""
    name, equals, rest = text.partition("=")
    kind, colon, device = rest.partition(":")
    if not (name and equals and colon and device) or kind not in PORT_KINDS:
        raise Usage(f"--port {text!r} is not a port", "write NAME=xdp:DEVICE, for example --port wan=xdp:ens1f0")
    return {"name": name, "kind": kind, "device": device}


def _merge(in_file: Sequence[PortOption], named: Sequence[PortOption]) -> list[PortOption]:
    """The ports of the file and of the command line; the command line wins for a name that both have."""
    names = [port["name"] for port in named]
    return [port for port in in_file if port["name"] not in names] + list(named)


def _fit_to_run(ports: list[PortOption], exclusive: tuple[str, ...]) -> None:
    """What can be known before anything starts. The data plane looks closer, also before it opens a device."""
    release = os.uname().release
    version = tuple(int("0" + "".join(filter(str.isdigit, part))) for part in release.split(".")[:2])
    if version < MINIMUM_KERNEL:
        need = ".".join(map(str, MINIMUM_KERNEL))
        raise FnatError("FN-1111", f"kernel {release} is too old", f"run kernel {need} or newer")
    if not ports:
        raise Usage("no port to serve", "name one with --port NAME=xdp:DEVICE, or in the file's [node.NAME]")
    names = [port["name"] for port in ports]
    if double := next((name for name in names if names.count(name) > 1), None):
        raise Usage(f"two ports are named {double}", "give each port its own name")
    known = [name for _, name in socket.if_nameindex()]
    for port in ports:
        if port["kind"] == "xdp" and port["device"] not in known:
            raise FnatError(
                "FN-1110", f"port {port['name']}: no device {port['device']} here", f"there are: {' '.join(known)}"
            )
    for name in exclusive:
        if name not in names:
            raise Usage(f"--exclusive {name}: no such port", f"the ports are: {' '.join(names)}")
        device = next(port["device"] for port in ports if port["name"] == name)
        if _carries_default_route(device):
            message = f"port {name}: {device} carries the default route and cannot be exclusive"
            raise FnatError("FN-1111", message, "leave --exclusive out for it")
    if not _may_administer_network():
        raise FnatError("FN-1002", "no privilege to open network devices", "run as root")


def _may_administer_network() -> bool:
    """capabilities(7): CAP_NET_ADMIN (12) is effective."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return bool(int(status["CapEff"], 16) >> 12 & 1)


def _carries_default_route(device: str) -> bool:
    """proc(5) /proc/net/route: interface, destination, …, mask (column 7); ipv6_route: destination, length, …,
    flags (column 8), interface."""
    rows = _table("route")[1:]
    if any(row[0] == device and row[1] == row[7] == "00000000" for row in rows):
        return True
    rows = [row for row in _table("ipv6_route") if not int(row[8], 16) & _REJECT]
    return any(row[9] == device and set(row[0]) == {"0"} and row[1] == "00" for row in rows)


def _table(name: str) -> list[list[str]]:
    try:
        return [line.split() for line in Path("/proc/self/net", name).read_text().splitlines()]
    except OSError:
        return []


@fnat.command()
@click.option(
    "--clean",
    is_flag=True,
    help="Remove the connections, and what a killed fnat left on devices; without it the next run goes on with both.",
)
@nouns.socket_option
@state_dir_option
def stop(clean: bool, state_dir: Path | None) -> int:
    """Stop the balancer and wait until it has gone."""
    from fnat.paths import DEFAULT_STATE_DIR, Paths, default_socket

    code = keeper.stop(Paths(state_dir or DEFAULT_STATE_DIR, Path(settings().socket or default_socket())), clean)
    if not clean or code == 1:
        return code
    from fnat.drivers import DriverError

    try:
        from fnat.drivers import xdp
    except DriverError:  # built without it
        return code
    try:
        devices = xdp.detach_leftovers()
    except DriverError as error:
        raise FnatError("FN-1002", error.message, error.fix) from None
    for device in devices:
        say(f"removed the XDP program that a killed fnat left on {device}\n")
    return 0 if devices else code


@fnat.command()
@nouns.reading
def status() -> None:
    """Processes, workers, connections."""
    with nouns.client() as client:
        row = client.status()
    say_json(row) if settings().json else say(show.status(row))


@fnat.command()
@nouns.json_option
def version() -> None:
    """The version of this command; `fnat status` shows the running one."""
    say_json({"version": __version__}) if settings().json else say(f"fnat {__version__}\n")


@fnat.command()
@nouns.socket_option
def metrics() -> None:
    """All counters, as Prometheus reads them."""
    with nouns.client() as client:
        say(client.metrics())


def _intent(path: Path | None, node: str | None, paths: Paths) -> Config | None:
    """What control will read at this start: the file, or what was applied since it was last edited."""
    from fnat.config import load, parse
    from fnat.state import History, Overlay, intent

    absolute = path.absolute() if path else None
    if keeper.running_pid(paths) is None and (
        known := intent(Overlay(paths.overlay), History(paths.history), absolute, None)
    ):
        return parse(known.text, known.source, node).config
    return load(path, node).config if path else None


@fnat.command("boot-profile")
@click.argument("file", type=click.Path(path_type=Path), default=files.DEFAULT_CONFIG)
@click.option("--node", metavar="NAME", help="Which node of the file; the host name when left out.")
@state_dir_option
@nouns.dry_run_option
@nouns.json_option
def boot_profile(file: Path, node: str | None, state_dir: Path | None) -> None:
    """Set the host up for a configuration file: huge pages on the workers' NUMA nodes, ARP on the ports.

    To be run as root before `fnat run`; again it changes nothing. With --dry-run it only says what it would set."""
    from fnat import boot
    from fnat.config import resolve_ports
    from fnat.paths import DEFAULT_STATE_DIR, Paths

    paths = Paths(state_dir or DEFAULT_STATE_DIR)
    config = _intent(file, node, paths)
    assert config is not None
    rows = boot.profile(config.host, [port["device"] for port in resolve_ports(config)], paths.arena)
    if settings().json:
        say_json([asdict(row) for row in rows])
    else:
        verb = "would be" if settings().dry_run else "set to"
        for row in rows:
            how = f"{row.present}, enough" if row.present == row.wanted else f"{row.present}, {verb} {row.wanted}"
            say(f"/{row.path}: {how} ({row.why})\n")
    if not settings().dry_run:
        boot.put(rows)


def _size(ctx: click.Context, param: click.Parameter, value: str | None) -> int:
    """5000000, 200k, 5M, 1.5G: thousands, millions, milliards; 0 when left out."""
    if value is None:
        return 0
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kMG]?)", value)
    number = round(float(match[1]) * {"": 1, "k": 1e3, "M": 1e6, "G": 1e9}[match[2]]) if match else 0
    if number < 1:
        raise click.BadParameter(f"{value!r} is not a number of things; write 5000000, 200k or 5M", ctx, param)
    return number


@fnat.command()
@click.option("--conns", callback=_size, required=True, metavar="N", help="Connections at one time.")
@click.option("--rs", callback=_size, required=True, metavar="N", help="Real servers (address and port) they go to.")
@click.option("--cps", callback=_size, metavar="N", help="New connections a second.")
@click.option("--workers", type=click.IntRange(1, 64), metavar="N", help="As many as --cps needs when left out.")
@nouns.json_option
def capacity(conns: int, rs: int, cps: int, workers: int | None) -> None:
    """What so many connections need: local addresses, memory, workers; and what runs out first.

    Nothing is asked of a running fnat. N may be written as 5M or 200k."""
    from fnat.capacity import Wish, need

    free = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    kib = {name: int(value.split()[0]) for name, value in free.items()}
    available = (kib["MemAvailable"] + kib.get("HugePages_Free", 0) * kib.get("Hugepagesize", 0)) << 10
    try:
        answer = need(Wish(conns, rs, cps, workers), available)
    except OSError:
        message = f"{conns} connections on {workers or 'so few'} workers are more than a data plane can hold"
        raise FnatError("FN-1201", message, "give more --workers (at most 64), or fewer --conns") from None
    row = {**asdict(answer), "first_limit": answer.first_limit}
    say_json(row) if settings().json else say(show.capacity(row))


@fnat.group(cls=Tree)
def test() -> None:
    """Prove from outside that a service does what it should."""


@test.command("client-addr")
@click.argument("service", metavar="VIP:PORT|RIP:PORT")
@click.option("--listen", is_flag=True, help="On a real server, in the application's place: answer who the client is.")
@click.option("--proto", type=click.Choice(["tcp", "udp"]), default="tcp", show_default=True, help="Of the client.")
@click.option("--seconds", type=click.FloatRange(0.1), help="How long to listen (for ever) or to wait (3).")
def test_client_addr(service: str, listen: bool, proto: str, seconds: float | None) -> None:
    """What a real server learns of its clients.

    Run it with --listen RIP:PORT on a real server, then with VIP:PORT on a client: the client goes through the service
    and compares what the server saw with its own address. --listen reads TOA, UOA, the IPv4 option and PROXY headers;
    it needs root, nothing else of fnat, and the port free."""
    from fnat import proof

    host, colon, port = service.rpartition(":")
    if not colon or not port.isdecimal() or not 0 < int(port) < 65536:
        raise Usage(f"{service!r} is not ADDRESS:PORT", "write it like 192.0.2.10:80 or [2001:db8::1]:80")
    host = host.strip("[]")
    try:
        if listen:
            proof.Listener(host, int(port)).serve(seconds)
            return
        seen, own = proof.ask(proto, host, int(port), seconds or 3.0)
    except OSError as error:
        fix = "it needs root and a free port of this host" if listen else "is `--listen` running on every server?"
        raise FnatError("FN-1401", f"{service}: {error.strerror or error}", fix) from None
    except ValueError as error:
        message = f"{service}: the server answered {str(error)!r}"
        raise FnatError("FN-1401", message, "run `fnat test client-addr --listen` in the application's place") from None
    if (seen.addr, seen.port) != own:
        how = "nothing tells it" if seen.how == "peer" else f"by {seen.how}"
        message = f"the server sees {seen.addr} port {seen.port} ({how}), the client is {own[0]} port {own[1]}"
        raise FnatError(
            "FN-1401", message, "see client_addr of the service; address translation in front also shows so"
        )
    say(f"the server sees {seen.addr} port {seen.port}, by {seen.how}: right\n")


@fnat.command("help")
@click.argument("code", metavar="CODE")
@nouns.json_option
def explain_code(code: str) -> None:
    """What an error code such as FN-1203 means: its cause, and how to mend it."""
    from fnat.errors import page

    wanted = f"FN-{code}" if code.isdecimal() else code.upper()
    if wanted not in CODES:
        near = difflib.get_close_matches(wanted, CODES, n=1, cutoff=0.8)
        fix = f"did you mean {near[0]}? " if near else ""
        raise Usage(f"{code} is not an error code", f"{fix}codes look like FN-1203 and stand at the end of a message")
    told = page(wanted)
    if settings().json:
        say_json(told)
        return
    text = f"{wanted}: {told['title']}\n"
    for word in ("cause", "mend"):
        text += (
            "\n"
            + textwrap.fill(told[word], 100, initial_indent=f"{word.capitalize()}: ", subsequent_indent="  ")
            + "\n"
        )
    say(text)


@fnat.command("completion")
@click.argument("shell", type=click.Choice(SHELLS))
def completion_script(shell: str) -> None:
    """What a shell reads to complete fnat, fnat-ipvsadm and fnat-dpip: eval "$(fnat completion bash)"."""
    say("".join(script(program, shell) for program in PROGRAMS))


@fnat.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
def man(directory: Path) -> None:
    """Write the manual pages and completions to a directory (from the source tree)."""
    from fnat.cli.pages import write

    say("".join(f"{path}\n" for path in write(directory)))


# ---- other languages ----

fnat.add_command(imports.command)

@fnat.command("ipvsadm", cls=Language, complete=grammar_of_ipvsadm.complete)
def ipvsadm(words: tuple[str, ...]) -> int:
    """The FullNAT part of DPVS's ipvsadm; `fnat ipvsadm -h` shows it."""
    from fnat.cli.ipvsadm import run

    return run(_with_settings(words), settings().socket)


@fnat.command("dpip", cls=Language, complete=grammar_of_dpip.complete)
def dpip(words: tuple[str, ...]) -> int:
    """The FullNAT part of DPVS's dpip; `fnat dpip -h` shows it."""
    from fnat.cli.dpip import run

    return run(_with_settings(words), settings().socket)


def _with_settings(words: tuple[str, ...]) -> list[str]:
    if settings().quiet or settings().dry_run:
        raise Usage("--quiet and --dry-run mean nothing here", "leave them out")
    return [*words, *(["--json"] if settings().json and "--json" not in words else [])]


for noun in (*files.COMMANDS, *nouns.NOUNS, door.token, door.audit):
    fnat.add_command(noun)


def main() -> None:
    sys.exit(guarded("fnat", _run))


def _run() -> int:
    try:
        result = fnat.main(prog_name="fnat", standalone_mode=False)
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.exceptions.Abort:
        raise KeyboardInterrupt from None
    except click.UsageError as error:
        if isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):  # click 8.2 and newer
            say(error.format_message() + "\n")
            return 2
        path = error.ctx.command_path if error.ctx else "fnat"
        raise Usage(error.format_message().rstrip("."), f"see `{path} --help`") from None
    except click.ClickException as error:
        error.show()
        return error.exit_code
    return result if isinstance(result, int) else 0


if __name__ == "__main__":
    main()
