"""`fnat service|rs|lip|addr|route|neigh|port|conn`: show, and where there is a change, add, set and del.

A service is named by two words, PROTO VIP:PORT. The words are checked here only as far as they become JSON; what they
mean is checked by fnat itself, all or nothing.
"""

from __future__ import annotations

import functools
import os
import re
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar, cast, get_args

import click

from fnat import addresses
from fnat.cli import pick, repeat, say, say_json, say_json_rows, show
from fnat.client import Client
from fnat.errors import ChangeError
from fnat.grammar import Change, Row, address, endpoint, family_of_default, mac, network, number, prefix, split
from fnat.grammar.dpip import SCOPES
from fnat.grammar.ipvsadm import SCHEDULERS
from fnat.model import CLIENT_ADDRS, PROTOS, HashSlots, HashTarget, ServiceView

PAGE = 8192  # connections asked for at a time
F = TypeVar("F", bound=Callable[..., Any])


@dataclass
class Settings:
    """The global options; each may stand before or behind the command. None and False: not given."""

    socket: str | None = None
    url: str | None = None
    json: bool = False
    quiet: bool = False
    dry_run: bool = False


def settings() -> Settings:
    return click.get_current_context().find_root().ensure_object(Settings)


class Leaf(click.Command):
    """A command that refuses a global option which it does not read."""

    def invoke(self, ctx: click.Context) -> object:
        read = {param.name for param in self.params}
        for name, value in vars(settings()).items():
            from_environment = name in ("socket", "url") and value == os.environ.get(f"FNAT_{name.upper()}")
            if value and name not in read and not from_environment:
                raise click.UsageError(f"--{name.replace('_', '-')} means nothing with {self.name}; leave it out", ctx)
        return super().invoke(ctx)


class Tree(click.Group):
    """A group whose commands are Leafs, in the order of their definition."""

    command_class = Leaf
    group_class = type

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


def _set(name: str) -> Callable[[click.Context, click.Parameter, object], None]:
    def remember(ctx: click.Context, _: click.Parameter, value: object) -> None:
        if value:
            setattr(ctx.find_root().ensure_object(Settings), name, value)

    return remember


def client() -> Client:
    wanted = settings()
    return Client(wanted.socket if wanted.url is None else None, url=wanted.url)


socket_option = click.option(
    "--socket",
    metavar="PATH",
    envvar="FNAT_SOCKET",
    expose_value=False,
    callback=_set("socket"),
    help="Socket of the running fnat.",
)
url_option = click.option(
    "--url",
    metavar="URL",
    envvar="FNAT_URL",
    expose_value=False,
    callback=_set("url"),
    help="https://HOST:PORT of a fnat elsewhere; $FNAT_TOKEN_FILE or $FNAT_TOKEN has the token, $FNAT_CA its CA.",
)
json_option = click.option(
    "--json", is_flag=True, expose_value=False, callback=_set("json"), help="What the API gives, as JSON."
)
quiet_option = click.option(
    "-q", "--quiet", is_flag=True, expose_value=False, callback=_set("quiet"), help="Say nothing on success."
)
interval_option = click.option(
    "-i", "--interval", type=click.IntRange(1, 86400), metavar="SECONDS", help="Show it again each SECONDS."
)
count_option = click.option("-c", "--count", type=click.IntRange(1), metavar="N", help="With --interval: N times.")
dry_run_option = click.option(
    "--dry-run", is_flag=True, expose_value=False, callback=_set("dry_run"), help="Check the change without making it."
)


def reading(function: F) -> F:
    """Options of a command that shows something, once or again and again."""

    @functools.wraps(function)
    def repeated(*args: object, interval: int | None, count: int | None, **kwargs: object) -> object:
        if count and not interval:
            raise click.UsageError("--count without --interval; add -i SECONDS")
        return repeat(lambda: function(*args, **kwargs), interval or 0, count or 0)

    return cast(F, socket_option(url_option(json_option(interval_option(count_option(repeated))))))


def doing(function: F) -> F:
    """Options of a command that does something at once."""
    return socket_option(url_option(json_option(quiet_option(function))))


def changing(function: F) -> F:
    """Options of a command that changes something."""
    return doing(dry_run_option(function))


def apply(*changes: Change) -> None:
    """Make the changes and say so."""
    wanted = settings()
    with client() as door:
        done = door.change(changes, dry_run=wanted.dry_run)
    if wanted.json:
        say_json(done)
    elif not wanted.quiet:
        number = f"{len(changes)} change" + ("s" if len(changes) != 1 else "")
        say(f"{number} would be accepted\n" if wanted.dry_run else f"{number} in force (snapshot {done['snapshot']})\n")


def present(rows: Iterable[Row], table: Callable[[Iterable[Row]], show.Table]) -> None:
    rows = list(rows)
    say_json(rows) if settings().json else show.show(table(rows))


def _service(proto: str, name: str) -> Change:
    vip, vport = endpoint(name, "service")
    return {"proto": proto, "vip": vip, "vport": vport}


def _server(name: str) -> Change:
    rip, rport = endpoint(name, "server")
    return {"rip": rip, "rport": rport}


proto_argument = click.argument("proto", type=click.Choice(PROTOS))
service_argument = click.argument("service", metavar="VIP:PORT")


def _server_shape(function: F) -> F:
    rate = click.IntRange(0, 10_000_000)
    for option in (
        click.option("--max-new-per-s", type=rate, help="Most new connections a second; 0: no limit."),
        click.option(
            "--lower",
            type=click.IntRange(0, 2**32 - 1),
            help="Below how many connections it comes back; 0: three quarters of upper.",
        ),
        click.option(
            "--upper", type=click.IntRange(0, 2**32 - 1), help="Most connections, over all workers; 0: no limit."
        ),
        click.option(
            "--role", type=click.Choice(["active", "backup"]), help="backup: when no active server can take it."
        ),
    ):
        function = option(function)
    return function


server_argument = click.argument("server", metavar="RIP:PORT")
port_option = click.option("--port", required=True, metavar="PORT", help="The balancer's port, by its name.")
weight_option = click.option(
    "--weight", type=click.IntRange(0, 65535), default=1, show_default=True, help="0: no new connections."
)


def _only(function: F) -> F:
    """[PROTO VIP:PORT] of a listing."""
    function = click.argument("service", metavar="[VIP:PORT]", required=False)(function)
    return click.argument("proto", metavar="[PROTO]", type=click.Choice(PROTOS), required=False)(function)


def _services(proto: str | None, service: str | None) -> list[ServiceView]:
    filters: Change = {}
    if service is not None:
        filters = _service(proto or "", service)
    elif proto is not None:
        filters = {"proto": proto}
    with client() as door:
        return door.services(**filters)


# ---- service ----


@click.group(cls=Tree)
def service() -> None:
    """Services: PROTO VIP:PORT."""


@service.command("show")
@_only
@reading
def service_show(proto: str | None, service: str | None) -> None:
    """Services with their load."""
    rows = _services(proto, service)
    present(rows, show.services)
    if not settings().json:
        say("".join(f"{line}\n" for row in rows for line in show.without_lip(row)))


def _shape(function: F) -> F:
    for option in (
        click.option(
            "--client-addr",
            type=click.Choice(sorted({word for words in CLIENT_ADDRS.values() for word in words})),
            help="How servers learn the client's address; none when left out.",
        ),
        click.option(
            "--half-open",
            type=click.IntRange(0, 2**31 - 1),
            metavar="N",
            help="Most half-open connections; 0: no limit.",
        ),
        click.option(
            "--expire-quiescent/--keep-quiescent",
            default=None,
            help="End connections of a server that is removed or has weight 0.",
        ),
        click.option(
            "--quic/--no-quic",
            default=None,
            help="UDP: a client that moves keeps its server, by QUIC connection IDs in DPVS's form.",
        ),
        click.option(
            "--one-packet/--no-one-packet",
            default=None,
            help="UDP: every datagram of a client goes to a server chosen anew.",
        ),
        click.option(
            "--persistent-mask",
            type=click.IntRange(1, 128),
            metavar="BITS",
            help="Bits of an address that make it the same client.",
        ),
        click.option(
            "--persistent",
            type=click.IntRange(0, 31 * 86_400),
            metavar="SECONDS",
            help="How long a client keeps its server after its last connection; 0: it has none of its own.",
        ),
        click.option(
            "--max-conns", type=click.IntRange(0, 2**32 - 1), metavar="N", help="Most connections; 0: no limit."
        ),
        click.option(
            "--new-per-s",
            type=click.IntRange(0, 10_000_000),
            metavar="N",
            help="Most new connections a second; 0: no limit.",
        ),
        click.option(
            "--per-client",
            type=click.IntRange(0, 2**24 - 1),
            metavar="N",
            help="Most connections of one client: an IPv4 address or an IPv6 /64; 0: no limit.",
        ),
        click.option(
            "--no-rs",
            metavar="drop|reset|ADDR:PORT",
            help="A first packet when no server can take it; ADDR:PORT: a sorry server does.",
        ),
        click.option(
            "--conn-timeout",
            type=click.IntRange(0),
            metavar="SECONDS",
            help="Instead of the general timeout; 0: the general one.",
        ),
        click.option(
            "--slow-start",
            type=click.IntRange(0),
            metavar="SECONDS",
            help="In which a server that comes to others grows to its weight: wrr, wlc, sed, nq, p2c.",
        ),
        click.option("--hash-slots", type=click.Choice(get_args(HashSlots)), help="Of mh's table; else 65537."),
        click.option(
            "--hash-target",
            type=click.Choice(get_args(HashTarget)),
            help="What a client is to sh, mh and conhash; sip when left out.",
        ),
        click.option("--scheduler", type=click.Choice(SCHEDULERS), help="wrr when left out."),
        click.option("--name", metavar="NAME", help="What listings and the file call it."),
    ):
        function = option(function)
    return function


@service.command("add")
@proto_argument
@service_argument
@_shape
@changing
def service_add(proto: str, service: str, **shape: object) -> None:
    """Add a service."""
    apply({"op": "service.add", **_service(proto, service), **_given(shape)})


@service.command("set")
@proto_argument
@service_argument
@_shape
@changing
def service_set(proto: str, service: str, **shape: object) -> None:
    """Change what is given, nothing else."""
    if not _given(shape):
        raise click.UsageError("nothing to change; give what shall change, such as --scheduler rr")
    apply({"op": "service.set", **_service(proto, service), **_given(shape)})


def _given(options: dict[str, object]) -> Change:
    return {key: value for key, value in options.items() if value is not None}


@service.command("del")
@proto_argument
@service_argument
@changing
def service_del(proto: str, service: str) -> None:
    """Delete a service; its connections go on until they end."""
    apply({"op": "service.del", **_service(proto, service)})


@service.command("zero")
@proto_argument
@service_argument
@changing
def service_zero(proto: str, service: str) -> None:
    """Let the service's counters start again from 0."""
    apply({"op": "service.zero", **_service(proto, service)})


# ---- rs ----


@click.group(cls=Tree)
def rs() -> None:
    """Real servers of a service."""


@rs.command("show")
@_only
@reading
def rs_show(proto: str | None, service: str | None) -> None:
    """Real servers with their load."""
    present(_services(proto, service), show.servers)


@rs.command("add")
@proto_argument
@service_argument
@server_argument
@weight_option
@_server_shape
@changing
def rs_add(proto: str, service: str, server: str, weight: int, **shape: object) -> None:
    """Add a real server to a service."""
    change = {"op": "server.add", "service": _service(proto, service), **_server(server), "weight": weight}
    apply({**change, **_given(shape)})


@rs.command("set")
@proto_argument
@service_argument
@server_argument
@click.option("--weight", type=click.IntRange(0, 65535), help="0: no new connections.")
@_server_shape
@changing
def rs_set(proto: str, service: str, server: str, **shape: object) -> None:
    """Change what is given of a real server, nothing else."""
    given = _given(shape)
    if not given:
        raise click.UsageError("nothing to change; give what shall change, such as --weight 0")
    apply({"op": "server.set", "service": _service(proto, service), **_server(server), **given})


@rs.command("del")
@proto_argument
@service_argument
@server_argument
@changing
def rs_del(proto: str, service: str, server: str) -> None:
    """Remove a real server; its connections go on until they end."""
    apply({"op": "server.del", "service": _service(proto, service), **_server(server)})


def _of_server(name: str, service: tuple[str, str] | None) -> list[Change]:
    """The services that have this server, RIP[:PORT], as far as they are asked for; each with the server's address."""
    host, port = split(name, "server")
    host = address(host, "server")
    found: list[Change] = []
    for row in _services(*(service or (None, None))):
        ref = {"proto": row["proto"], "vip": row["vip"], "vport": row["vport"]}
        found += [
            {"service": ref, "rip": rs["rip"], "rport": rs["rport"]}
            for rs in row["servers"]
            if rs["rip"] == host and port in ("", str(rs["rport"]))
        ]
    if not found:
        where = f"service {service[0]} {service[1]} has" if service else "no service has"
        raise ChangeError(404, "FN-1203", f"{where} {'no ' if service else 'a '}server {name}", "see `fnat rs show`")
    return found


which_service = click.option(
    "--service", nargs=2, type=(click.Choice(PROTOS), str), metavar="PROTO VIP:PORT", help="Only in this service."
)


@rs.command("drain")
@click.argument("server", metavar="RIP[:PORT]")
@which_service
@click.option(
    "--deadline", metavar="TIME", help="When what is left is ended: 90, 10m, 1h30m from now; never if left out."
)
@click.option("--keep-persistent", is_flag=True, help="Clients that are persistent to it still get theirs until then.")
@changing
def rs_drain(server: str, service: tuple[str, str] | None, deadline: str | None, keep_persistent: bool) -> None:
    """Give a real server no new connections; at the deadline end the rest: TCP is reset, UDP goes to others.

    `fnat rs show` says what is left. The weight stays for `fnat rs undrain`."""
    until = {} if deadline is None else {"until": int(time.time()) + _seconds(deadline)}
    drain = {"op": "server.drain", "keep_persistent": keep_persistent, **until}
    apply(*({**drain, **at} for at in _of_server(server, service)))


@rs.command("undrain")
@click.argument("server", metavar="RIP[:PORT]")
@which_service
@changing
def rs_undrain(server: str, service: tuple[str, str] | None) -> None:
    """Let a real server that drains get new connections again."""
    apply(*({"op": "server.undrain", **at} for at in _of_server(server, service)))


@rs.command("shift")
@proto_argument
@service_argument
@server_argument
@click.option("--to", "target", metavar="RIP:PORT", help="The server that gets the weight.")
@click.option("--per-min", type=click.FloatRange(0, 6000, min_open=True), help="Percent of its weight in a minute.")
@click.option("--stop", is_flag=True, help="Stop; the weights stay as they are now.")
@changing
def rs_shift(proto: str, service: str, server: str, target: str | None, per_min: float | None, stop: bool) -> None:
    """Move the weight of a real server to another, little by little. `fnat rs show` says how far it is.

    Weights are whole numbers: with small ones it goes in leaps. Setting a weight by hand stops it."""
    of = {"service": _service(proto, service), **_server(server)}
    if stop and target is None and per_min is None:
        apply({"op": "server.unshift", **of})
    elif target is None or per_min is None or stop:
        raise click.UsageError("give --to and --per-min, or --stop")
    else:
        to = _server(target)
        way = {"to_rip": to["rip"], "to_rport": to["rport"], "per_min": per_min, "started": int(time.time())}
        apply({"op": "server.shift", **of, **way})


def _seconds(text: str) -> int:
    match = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s?)?", text)
    if match is None or not text:
        raise click.UsageError(f"{text!r} is not a time; write it like 90, 10m or 1h30m")
    hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return hours * 3600 + minutes * 60 + seconds


# ---- lip ----


@click.group(cls=Tree)
def lip() -> None:
    """Local addresses of a service: what its real servers see as clients."""


@lip.command("show")
@_only
@reading
def lip_show(proto: str | None, service: str | None) -> None:
    """Local addresses with their connections."""
    present(_services(proto, service), show.lips)


@lip.command("headroom")
@_only
@click.option("--limit", type=click.IntRange(1, 65536), default=100, show_default=True, help="Rows, the fullest first.")
@reading
def lip_headroom(proto: str | None, service: str | None, limit: int) -> None:
    """Free local ports per service, local address and real server, and when they run out.

    Of one service all pairs are shown, of all services those in use."""
    filters: Change = _service(proto or "", service) if service is not None else {"proto": proto}
    with client() as door:
        view = door.headroom(**filters, limit=limit)
    say_json(view) if settings().json else show.headroom(view)


@lip.command("add")
@proto_argument
@service_argument
@click.argument("lip", metavar="LIP")
@port_option
@changing
def lip_add(proto: str, service: str, lip: str, port: str) -> None:
    """Add a local address to a service and own it on a port."""
    apply({"op": "lip.add", "service": _service(proto, service), "addr": address(lip, "local address"), "port": port})


@lip.command("del")
@proto_argument
@service_argument
@click.argument("lip", metavar="LIP")
@changing
def lip_del(proto: str, service: str, lip: str) -> None:
    """Take a local address from a service; it stays owned until its last connection ends."""
    apply({"op": "lip.del", "service": _service(proto, service), "addr": address(lip, "local address")})


# ---- addr ----


@click.group(cls=Tree)
def addr() -> None:
    """Addresses that fnat owns."""


@addr.command("show")
@click.option("--port", metavar="PORT", help="Only of this port.")
@reading
def addr_show(port: str | None) -> None:
    """Owned addresses."""
    with client() as door:
        rows = door.addresses(port=port)
    present(rows, show.addresses)


@addr.command("add")
@click.argument("address", metavar="IP[/PLEN]")
@port_option
@click.option("--lip", is_flag=True, help="For use as a local address.")
@changing
def addr_add(address: str, port: str, lip: bool) -> None:
    """Own an address on a port."""
    ip, plen = network(address)
    apply({"op": "addr.add", "addr": ip, "plen": plen, "port": port, "sapool": lip})


@addr.command("del")
@click.argument("address", metavar="IP[/PLEN]")
@port_option
@changing
def addr_del(address: str, port: str) -> None:
    """Give an address up."""
    ip, plen = network(address)
    apply({"op": "addr.del", "addr": ip, "plen": plen, "port": port})


# ---- route ----


@click.group(cls=Tree)
def route() -> None:
    """Routes of the data plane."""


@route.command("show")
@reading
def route_show() -> None:
    """Routes, with where they come from."""
    with client() as door:
        rows = door.routes()
    present(rows, show.routes)


def _route_options(function: F) -> F:
    for option in (
        click.option("--scope", type=click.Choice(SCOPES), help="kni_host: hand to the kernel."),
        click.option("--metric", type=click.IntRange(0, 2**32 - 1), help="Of equal prefixes the lowest wins."),
        click.option("--mtu", type=click.IntRange(68, 3500), help="The port's when left out."),
        click.option("--src", metavar="IP", help="Sender of ARP requests and neighbour solicitations."),
        click.option("--port", metavar="PORT", help="The balancer's port, by its name."),
        click.option("--via", metavar="IP", help="The gateway."),
    ):
        function = option(function)
    return function


def _route(op: str, text: str, options: dict[str, object]) -> Change:
    given = _given(options)
    change: Change = {"op": op, "prefix": prefix(text, family_of_default(text, given.get("via")))}
    for key, name, what in (("via", "gateway", "gateway"), ("src", "src", "source")):
        if key in given:
            change[name] = address(given.pop(key), what)
    if op != "route.del" and "gateway" not in change and "port" not in given:
        raise click.UsageError("give --via or --port")
    return {**change, **given}


@route.command("add")
@click.argument("prefix", metavar="PREFIX|default")
@_route_options
@changing
def route_add(prefix: str, **options: object) -> None:
    """Add a route."""
    apply(_route("route.add", prefix, options))


@route.command("set")
@click.argument("prefix", metavar="PREFIX|default")
@_route_options
@changing
def route_set(prefix: str, **options: object) -> None:
    """Put this route in the place of the one with the same prefix and metric."""
    apply(_route("route.set", prefix, options))


@route.command("del")
@click.argument("prefix", metavar="PREFIX|default")
@_route_options
@changing
def route_del(prefix: str, **options: object) -> None:
    """Delete the route of this prefix and metric; what else is given must agree."""
    apply(_route("route.del", prefix, options))


# ---- neigh ----


@click.group(cls=Tree)
def neigh() -> None:
    """Neighbours: the MAC addresses behind next hops."""


@neigh.command("show")
@click.option("--port", metavar="PORT", help="Only of this port.")
@reading
def neigh_show(port: str | None) -> None:
    """Neighbours, learned and static."""
    with client() as door:
        rows = door.neighbours(port=port)
    present(rows, show.neighbours)


@neigh.command("add")
@click.argument("addr", metavar="IP")
@click.argument("lladdr", metavar="MAC")
@port_option
@changing
def neigh_add(addr: str, lladdr: str, port: str) -> None:
    """Add a static neighbour."""
    apply({"op": "neigh.add", "addr": address(addr), "mac": mac(lladdr), "port": port})


@neigh.command("del")
@click.argument("addr", metavar="IP")
@port_option
@changing
def neigh_del(addr: str, port: str) -> None:
    """Forget a neighbour."""
    apply({"op": "neigh.del", "addr": address(addr), "port": port})


# ---- port ----


@click.group(cls=Tree)
def port() -> None:
    """Ports: the NICs the balancer uses."""


@port.command("show")
@click.argument("name", required=False)
@reading
def port_show(name: str | None) -> None:
    """Ports with mode, queues and packets."""
    with client() as door:
        rows = pick(door.ports(), "name", name, "port")
    present(rows, show.ports)


@port.command("set")
@click.argument("name")
@click.argument("state", type=click.Choice(["up", "down"]))
@changing
def port_set(name: str, state: str) -> None:
    """Take a port into use or out of use."""
    apply({"op": "link.set", "port": name, "up": state == "up"})


# ---- conn ----


@click.group(cls=Tree)
def conn() -> None:
    """Connections."""


def _filters(function: F) -> F:
    for option in (
        click.option("--state", metavar="STATE", help="TCP_EST, SYN_RECV, UDP_NORM, …"),
        click.option("--lip", metavar="LIP[:PORT]", help="Only from this local address."),
        click.option("--client", metavar="CIP[/PLEN][:PORT]", help="Only of this client, or of a network of them."),
        click.option("--rs", metavar="RIP[:PORT]", help="Only to this server."),
        click.option("--service", "--vip", metavar="VIP[:PORT]", help="Only of this service."),
        click.option("--proto", type=click.Choice(PROTOS)),
        click.option("--worker", type=click.IntRange(0, 63), help="Only of this worker."),
    ):
        function = option(function)
    return function


def _asked(options: dict[str, object]) -> Change:
    """The options as the API's filters."""
    given = _given(options)
    for option, letter in (("service", "v"), ("rs", "r"), ("client", "c"), ("lip", "l")):
        if text := given.pop(option, None):
            host, plen, port = _end(text, f"--{option}")
            if plen and option != "client":
                raise click.UsageError(f"--{option} is one address, not a network")
            host = address(host, f"--{option}")
            most = addresses.bits(host)
            given[f"{letter}ip"] = f"{host}/{number(plen, f'prefix length of --{option}', 0, most)}" if plen else host
            if port:
                given[f"{letter}port"] = number(port, f"port of --{option}", 1, 65535)
    return given


def _end(text: str, what: str) -> tuple[str, str, str]:
    """IP[/PLEN][:PORT], [IPV6][/PLEN][:PORT] or [IPV6/PLEN][:PORT] -> address, length and port as written, or ""."""
    match = re.fullmatch(r"(\[?[^\]/]*\]?)/([0-9]+)(\]?)((?::[0-9]+)?)", text)
    if match is None:
        host, port = split(text, what)
        return host, "", port
    host, port = split(f"{match[1]}{match[3]}{match[4]}", what)
    return host, match[2], port


@conn.command("show")
@_filters
@reading
def conn_show(**options: object) -> None:
    """Connections, with the seconds left before they expire when idle."""
    with client() as door:
        rows = door.conns(limit=PAGE, **_asked(options))
        if settings().json:
            say_json_rows(rows)
            return
        titles = show.CONN_TITLES
        for row in rows:
            sys.stdout.write(titles + show.conn(row))
            titles = ""
        say(titles)


@conn.command("count")
@_filters
@reading
def conn_count(**options: object) -> None:
    """How many connections there are."""
    with client() as door:
        count = door.conn_count(**asked) if (asked := _asked(options)) else door.status()["conns"]
    say_json({"conns": count}) if settings().json else say(f"{count}\n")


@conn.command("kill")
@_filters
@click.option("--reset/--silent", default=True, show_default=True, help="Tell both ends of TCP connections, or nobody.")
@click.option("--reason", required=True, metavar="TEXT", help="For the log.")
@click.option("--all", "every", is_flag=True, help="All connections: without a filter this must be said.")
@socket_option
@json_option
@quiet_option
def conn_kill(reset: bool, reason: str, every: bool, **options: object) -> None:
    """End connections. Those of UDP and SCTP end silently: the next packet of UDP opens a new one."""
    asked = _asked(options)
    if not asked and not every:
        raise click.UsageError("give a filter such as --client, or --all")
    with client() as door:
        ended = door.conn_kill(reset=reset, reason=reason, all=every, **asked)
    if settings().json:
        say_json({"ended": ended})
    elif not settings().quiet:
        say(f"{ended} connection{'s' if ended != 1 else ''} ended\n")


# ---- acl, set ----


@click.group(cls=Tree)
def acl() -> None:
    """Who may open connections: the general lists, and those of each service.

    An entry is a PREFIX or set:NAME. The general deny list is asked first, then the general allow list, then the
    service's deny list and allow list; an empty allow list lets all pass."""


list_argument = click.argument("which", metavar="deny|allow", type=click.Choice(["deny", "allow"]))
only_service = click.option(
    "--service", "service", metavar="PROTO/VIP:PORT", help="Of this service; else the general list."
)


def _service_of(text: str | None) -> Change:
    if text is None:
        return {}
    proto, slash, name = text.partition("/")
    if not slash or proto not in PROTOS:
        raise click.UsageError(f"--service {text!r} is not PROTO/VIP:PORT, such as tcp/192.0.2.10:80")
    return {"service": _service(proto, name)}


@acl.command("show")
@reading
def acl_show() -> None:
    """All lists that have entries, and how many new connections each refused."""
    with client() as door:
        general, services = door.acl(), door.services()
    if settings().json:
        say_json({"general": general, "services": [row for row in services if row["deny"] or row["allow"]]})
    else:
        show.show(show.acl(general, services))


@acl.command("add")
@list_argument
@click.argument("entry", metavar="PREFIX|set:NAME")
@only_service
@changing
def acl_add(which: str, entry: str, service: str | None) -> None:
    """Put an entry in a list."""
    apply({"op": "acl.add", "list": which, "entry": entry, **_service_of(service)})


@acl.command("del")
@list_argument
@click.argument("entry", metavar="PREFIX|set:NAME")
@only_service
@changing
def acl_del(which: str, entry: str, service: str | None) -> None:
    """Take an entry out of a list."""
    apply({"op": "acl.del", "list": which, "entry": entry, **_service_of(service)})


@acl.command("test")
@click.argument("addr", metavar="ADDR")
@only_service
@reading
def acl_test(addr: str, service: str | None) -> None:
    """May this address open a connection, and which entry decides? The exit code is 1 when it may not."""
    wanted = _service_of(service).get("service", {})
    with client() as door:
        answer = door.acl_test(address(addr), **wanted)
    said = f"{answer['addr']} {'may' if answer['admitted'] else 'may not'} ({answer['by']})\n"
    say_json(answer) if settings().json else say(said)
    if not answer["admitted"]:
        raise SystemExit(1)


@acl.command("recheck")
@changing
def acl_recheck() -> None:
    """Close the connections that the lists would not let open now."""
    apply({"op": "acl.recheck"})


@click.group("set", cls=Tree)
def named_set() -> None:
    """Named sets of addresses: PREFIX, FIRST-LAST, with nomatch or timeout SECONDS behind it."""


set_argument = click.argument("name", metavar="NAME")
entries_argument = click.argument("entries", metavar="ENTRY...", nargs=-1)
file_option = click.option(
    "--file", "file", type=click.File(), help="Entries of a file, one a line; # begins a comment; - is the input."
)


def _entries(entries: Iterable[str], file: Iterable[str] | None) -> list[str]:
    lines = (line.partition("#")[0].strip() for line in file or ())
    return [*entries, *filter(None, lines)]


@named_set.command("show")
@click.argument("name", metavar="[NAME]", required=False)
@reading
def set_show(name: str | None) -> None:
    """The sets, or the entries of one."""
    with client() as door:
        if name is None:
            present(door.sets(), show.sets)
            return
        entries = door.set_entries(name)
        if settings().json:
            say_json(list(entries))
            return
        for entry in entries:
            sys.stdout.write(f"{entry}\n")


@named_set.command("add")
@set_argument
@entries_argument
@file_option
@changing
def set_add(name: str, entries: tuple[str, ...], file: Iterable[str] | None) -> None:
    """Put entries in a set, which is made if there is none."""
    given = _entries(entries, file)
    with client() as door:
        known = any(row["name"] == name for row in door.sets())
    if not known:
        apply({"op": "set.add", "name": name, "entries": given})
    elif given:
        apply({"op": "set.entry.add", "set": name, "entries": given})
    else:
        raise click.UsageError(f"set {name} exists; give entries to add")


@named_set.command("del")
@set_argument
@entries_argument
@file_option
@changing
def set_del(name: str, entries: tuple[str, ...], file: Iterable[str] | None) -> None:
    """Take entries out of a set; without entries the set itself goes."""
    given = _entries(entries, file)
    apply({"op": "set.entry.del", "set": name, "entries": given} if given or file else {"op": "set.del", "name": name})


@named_set.command("test")
@set_argument
@click.argument("addr", metavar="ADDR")
@reading
def set_test(name: str, addr: str) -> None:
    """Is the address in the set, and by which entry? The exit code is 1 when it is not."""
    with client() as door:
        answer = door.set_test(name, address(addr))
    said = f"{answer['addr']} is {'' if answer['admitted'] else 'not '}in set {name} ({answer['by']})\n"
    say_json(answer) if settings().json else say(said)
    if not answer["admitted"]:
        raise SystemExit(1)


NOUNS = (service, rs, lip, addr, route, neigh, port, conn, acl, named_set)
