"""The language of DPVS's ipvsadm, FullNAT part: words -> changes or a listing; resources -> its exact text.

The first table holds every option that DPVS knows. An option that fnat has is parsed; one that it has not is refused
with the reason and the way out, except in the spelling that switches it off (`--dest-check disable`). Each command
names the options it reads, so that an option without effect is an error.

Different from DPVS on purpose: `-lnc` shows the time that is left, `--rate` is true, service counters survive the
removal of a server, `-S` loses nothing, `-R` is all or nothing, weights up to 65535 are real, the scheduler is wrr when
none is given, `-lnc` may be narrowed to a service, addresses are always numeric. Own options: `--json`, `--no-rs`,
`--half-open`, `--client-addr`.

As in DPVS a TCP service made here tells its servers the client's address by TOA unless it says otherwise; a UDP service
tells nothing unless it is asked to, because a server without uoa.ko cannot read the first datagrams then.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fnat.grammar import (
    Change,
    Row,
    Usage,
    address,
    at,
    endpoint,
    number,
    server_key,
    server_text,
    service_key,
    service_text,
    split,
)

# ---- words ----

# "letter/long-name", "-" for no letter
_FLAGS = """
    A/add-service E/edit-service D/delete-service C/clear a/add-server e/edit-server d/delete-server L/list l/list
    Z/zero S/save R/restore P/add-laddr Q/del-laddr G/get-laddr h/help v/version
    b/fullnat -/expire-quiescent n/numeric c/connection -/stats -/rate X/exact -/sort -/nosort -/json
    U/add-blklst V/del-blklst B/get-blklst O/add-whtlst Y/del-whtlst W/get-whtlst -/set -/daemon -/timeout 6/ipv6
    p/persistent g/gatewaying i/ipip m/masquerading J/snat o/ops -/quic -/thresholds -/persistent-conn
"""
_VALUED = """
    t/tcp-service u/udp-service -/sctp-service r/real-server w/weight s/scheduler z/local-address F/ifname
    -/conn-timeout -/no-rs -/half-open -/client-addr -/cpu -/sockpair
    k/blklst 2/whtlst -/start-daemon -/stop-daemon q/icmp-service 1/icmpv6-service f/fwmark-service
    H/match M/netmask x/u-threshold y/l-threshold j/synproxy -/hash-target -/proxy-protocol -/dest-check -/pe
    -/mcast-interface -/syncid -/hash-slots -/slow-start
"""
_NAMES = [tuple(name.split("/")) for name in (_FLAGS + _VALUED).split()]
_LONG_OF = {letter: name for letter, name in _NAMES if letter != "-"}
_TAKES = {name: False for _, name in _NAMES} | {name.split("/")[1]: True for name in _VALUED.split()}

_ACL = ("fnat has no per-service access lists", "filter in front of the balancer")
_MODE = ("fnat forwards in FullNAT mode only", "give -b or leave the mode out")
_PROTO = ("fnat balances TCP, UDP and SCTP services only", "use -t, -u or --sctp-service")
_PERSIST = ("persistence is not in fnat", "leave it out")
_LIMIT = ("fnat has no connection thresholds", "leave it out")
_DAEMON = ("fnat has no session sync daemon", "leave it out")
_REFUSED: dict[str, tuple[str, str]] = {
    "add-blklst": _ACL, "del-blklst": _ACL, "get-blklst": _ACL, "blklst": _ACL,
    "add-whtlst": _ACL, "del-whtlst": _ACL, "get-whtlst": _ACL, "whtlst": _ACL,
    "set": ("timeouts are not set here", "put them in the file, [host] timeouts, or give a service --conn-timeout"),
    "timeout": ("timeouts are not shown here", "look in the file, [host] timeouts"),
    "start-daemon": _DAEMON, "stop-daemon": _DAEMON, "daemon": _DAEMON, "mcast-interface": _DAEMON, "syncid": _DAEMON,
    "icmp-service": _PROTO, "icmpv6-service": _PROTO,
    "fwmark-service": ("fnat has no firewall marks", "name the service with -t or -u"),
    "match": ("fnat has no match services (they are for SNAT)", "name the service with -t or -u"),
    "ipv6": ("-6 is for firewall marks, which fnat has not", "name an IPv6 service with -t [ADDRESS]:PORT"),
    "persistent": _PERSIST, "netmask": _PERSIST, "persistent-conn": _PERSIST, "pe": _PERSIST,
    "gatewaying": _MODE, "ipip": _MODE, "masquerading": _MODE, "snat": _MODE,
    "u-threshold": _LIMIT, "l-threshold": _LIMIT, "thresholds": _LIMIT,
    "synproxy": ("the SYN proxy is not in fnat", "leave it out and limit half-open connections with --half-open"),
    "dest-check": ("passive health checks are not in fnat", "leave it out or say disable"),
}  # fmt: skip
# What switches a refused option off is what fnat does anyway.
_OFF = {
    "synproxy": "disable",
    "dest-check": "disable",
    "u-threshold": "0",
    "l-threshold": "0",
}

_NAMED_BY = {"tcp-service": "tcp", "udp-service": "udp", "sctp-service": "sctp"}
_SHOWN = {"tcp-service": "-t", "udp-service": "-u", "sctp-service": "--sctp-service"}
_SERVICE = set(_NAMED_BY)
_SHAPE = {"scheduler", "conn-timeout", "expire-quiescent", "ops", "quic", "no-rs", "half-open"}
_SHAPE |= {"proxy-protocol", "client-addr", "hash-target", "hash-slots", "slow-start"}
_PROXY = ("disable", "v1", "v2", "v1-insecure", "v2-insecure")
DEFAULT_CLIENT_ADDR = {"tcp": "toa", "udp": "none", "sctp": "none"}
_READS: dict[str, set[str]] = {
    "add-service": _SERVICE | _SHAPE,
    "edit-service": _SERVICE | _SHAPE,
    "delete-service": _SERVICE,
    "clear": set(),
    "add-server": _SERVICE | {"real-server", "weight", "fullnat"},
    "edit-server": _SERVICE | {"real-server", "weight", "fullnat"},
    "delete-server": _SERVICE | {"real-server"},
    "list": _SERVICE | {"numeric", "connection", "stats", "rate", "exact", "sort", "nosort", "cpu", "sockpair", "json"},
    "zero": _SERVICE,
    "save": {"numeric"},
    "restore": set(),
    "add-laddr": _SERVICE | {"local-address", "ifname"},
    "del-laddr": _SERVICE | {"local-address", "ifname"},
    "get-laddr": _SERVICE | {"numeric", "json"},
    "help": set(),
    "version": set(),
}
SCHEDULERS = ("rr", "wrr", "lc", "wlc", "sed", "nq", "sh", "mh", "conhash", "fo", "p2c")
CLIENT_ADDRS = {
    "tcp": ("none", "toa", "proxy-v1", "proxy-v2", "proxy-v1-insecure", "proxy-v2-insecure"),
    "udp": ("none", "uoa-opp", "uoa-ipo", "proxy-v2", "proxy-v2-insecure"),
    "sctp": ("none",),
}


@dataclass(frozen=True)
class Changes:
    """What POST /v1/changes shall do, all of it or nothing."""

    changes: list[Change]


@dataclass(frozen=True)
class Listing:
    """What to show. `service` has the keys proto, vip, vport; `sockpair` also cip, cport."""

    view: Literal["services", "stats", "rate", "conns", "laddrs", "save"]
    service: Change | None = None
    sockpair: Change | None = None
    cpu: int | None = None
    exact: bool = False
    sort: bool = True
    json: bool = False


@dataclass(frozen=True)
class Word:
    """A command that needs nothing else: help, version, restore (rules on standard input)."""

    name: Literal["help", "version", "restore"]


Command = Changes | Listing | Word


def parse(words: Sequence[str]) -> Command:
    """One command line without the program's name. Raises Usage."""
    if not words:
        return Listing("services")
    options = _split(words)
    commands = [name for name in options if name in _READS]
    if len(commands) != 1:
        given = " and ".join(f"--{name}" for name in commands) or "no command"
        raise Usage(f"{given} given", "give exactly one command such as -A -a -l -P; -h lists them")
    command = commands[0]
    for name in options:
        if name != command and name not in _READS[command]:
            raise Usage(f"--{name} means nothing with --{command}", "leave it out")
    if command in ("help", "version", "restore"):
        return Word(command)  # type: ignore[arg-type]
    service = _service(options, command)
    if command in ("list", "get-laddr", "save"):
        return _listing(command, service, options)
    return Changes([_change(command, service, options)])


def parse_rules(text: str) -> Changes:
    """What -S wrote: one command a line, empty lines and lines that begin with # do not count."""
    changes: list[Change] = []
    for nr, line in enumerate(text.splitlines(), 1):
        try:
            words = shlex.split(line, comments=True)
            command = parse(words) if words else Changes([])
            if not isinstance(command, Changes):
                raise Usage("only commands that change something can be restored", "take this line out")
        except ValueError as error:
            raise Usage(f"line {nr}: {error}", "mend the quotes; nothing was changed") from None
        except Usage as error:
            raise Usage(f"line {nr}: {error.message}", f"{error.fix}; nothing was changed") from None
        changes += command.changes
    return Changes(changes)


def _split(words: Sequence[str]) -> dict[str, str]:
    """Words -> {long name: value, "" for a flag}. Short options may be bundled, a value may be attached."""
    options: dict[str, str] = {}
    rest = list(words)

    def take(name: str, shown: str, attached: str | None) -> None:
        if name in _REFUSED and name not in _OFF:
            raise Usage(f"{shown}: {_REFUSED[name][0]}", _REFUSED[name][1])
        if _TAKES[name] and attached is None and not rest:
            raise Usage(f"{shown} needs a value", "-h shows the options")
        value = (rest.pop(0) if attached is None else attached) if _TAKES[name] else ""
        if name in _REFUSED:
            if value != _OFF[name]:
                raise Usage(f"{shown} {value}: {_REFUSED[name][0]}", _REFUSED[name][1])
            return
        if name in options:
            raise Usage(f"{shown} is given twice", "give it once")
        options[name] = value

    while rest:
        word = rest.pop(0)
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word[2:].partition("=")
            if name not in _TAKES:
                raise Usage(f"unknown option --{name}", "-h shows the options")
            if equals and not _TAKES[name]:
                raise Usage(f"--{name} takes no value", f"write --{name}")
            take(name, f"--{name}", value if equals else None)
        elif word.startswith("-") and len(word) > 1:
            letters = word[1:]
            while letters:
                letter, letters = letters[0], letters[1:]
                if letter not in _LONG_OF:
                    raise Usage(f"unknown option -{letter}", "-h shows the options")
                name = _LONG_OF[letter]
                attached, letters = (letters, "") if _TAKES[name] else (None, letters)
                take(name, f"-{letter}", attached or None)
        else:
            raise Usage(f"unexpected word {word!r}", "-h shows the options")
    return options


def _service(options: dict[str, str], command: str) -> Change | None:
    """The service that -t, -u or --sctp-service names, if any."""
    if len(given := [word for name, word in _SHOWN.items() if name in options]) > 1:
        raise Usage(f"{' and '.join(given)} given", "name one service")
    for name, proto in _NAMED_BY.items():
        if name in options:
            vip, vport = endpoint(options[name], "service")
            return {"proto": proto, "vip": vip, "vport": vport}
    if _SERVICE & _READS[command] and command not in ("list", "zero", "get-laddr"):
        raise Usage(f"--{command} needs a service", "add -t VIP:PORT or -u VIP:PORT")
    return None


def _need(options: dict[str, str], name: str, command: str, fix: str) -> str:
    if name not in options:
        raise Usage(f"--{command} needs --{name}", f"add {fix}")
    return options[name]


def _shape(options: dict[str, str]) -> Change:
    """The fields of a service that are given."""
    fields: Change = {}
    if "scheduler" in options:
        fields["scheduler"] = options["scheduler"]
        if options["scheduler"] not in SCHEDULERS:
            raise Usage(f"scheduler {options['scheduler']} is not in fnat", f"use one of {', '.join(SCHEDULERS)}")
    if "hash-target" in options:
        fields["hash_target"] = options["hash-target"]
        if options["hash-target"] not in ("sip", "sip-port", "qid"):
            raise Usage(f"--hash-target {options['hash-target']} is unknown", "say sip, sip-port or qid")
    if "hash-slots" in options:
        fields["hash_slots"] = number(options["hash-slots"], "--hash-slots", 1021, 65537)
    if "slow-start" in options:
        fields["slow_start"] = number(options["slow-start"], "--slow-start", 0, 31535999)
    if "conn-timeout" in options:
        fields["conn_timeout"] = number(options["conn-timeout"], "--conn-timeout", 0, 31535999)
    if "expire-quiescent" in options:
        fields["expire_quiescent"] = True
    if "ops" in options:
        fields["one_packet"] = True
        if "udp-service" not in options:
            raise Usage("--ops is for UDP services only", "leave it out, or name the service with -u")
    if "quic" in options:
        fields["quic"] = True
        if "udp-service" not in options:
            raise Usage("--quic is for UDP services only", "leave it out, or name the service with -u")
        if "ops" in options:
            raise Usage("--quic and --ops given", "give one of them")
    if "no-rs" in options:
        fields["no_rs"] = options["no-rs"]
        if options["no-rs"] not in ("drop", "reset"):
            raise Usage(f"--no-rs {options['no-rs']} is unknown", "say drop or reset")
    if "half-open" in options:
        fields["half_open"] = number(options["half-open"], "--half-open", 0, 2**31 - 1)
    if told := _client_addr(options):
        fields["client_addr"] = told
    return fields


def _client_addr(options: dict[str, str]) -> str:
    """How the servers learn the client's address; "" when nothing is said."""
    proto = next((proto for name, proto in _NAMED_BY.items() if name in options), "tcp")
    word, told = options.get("proxy-protocol"), options.get("client-addr", "")
    if word is not None:
        if told:
            raise Usage("--proxy-protocol and --client-addr given", "give one of them")
        if word not in _PROXY:
            raise Usage(f"--proxy-protocol {word} is unknown", f"say one of {', '.join(_PROXY)}")
        told = DEFAULT_CLIENT_ADDR[proto] if word == "disable" else f"proxy-{word}"
    if told and told not in CLIENT_ADDRS[proto]:
        shown = f"--client-addr {told}" if word is None else f"--proxy-protocol {word}"
        raise Usage(f"{shown} is not for {proto.upper()} services", f"allowed: {', '.join(CLIENT_ADDRS[proto])}")
    return told


def _change(command: str, service: Change | None, options: dict[str, str]) -> Change:
    if command == "clear":
        return {"op": "service.clear"}
    if command == "zero":
        return {"op": "service.zero", **(service or {"proto": None, "vip": None, "vport": None})}
    assert service is not None
    if command == "add-service":
        told = {"client_addr": "toa"} if service["proto"] == "tcp" else {}
        return {"op": "service.add", **service, "scheduler": "wrr", **told, **_shape(options)}
    if command == "edit-service":
        if not (fields := _shape(options)):
            raise Usage("nothing to edit", "give what shall change, such as -s rr or --conn-timeout 3600")
        return {"op": "service.set", **service, **fields}
    if command == "delete-service":
        return {"op": "service.del", **service}
    if command in ("add-laddr", "del-laddr"):
        lip = address(_need(options, "local-address", command, "-z LIP"), "local address")
        if command == "del-laddr" and "ifname" not in options:
            return {"op": "lip.del", "service": service, "addr": lip}
        port = _need(options, "ifname", command, "-F PORT, the balancer's port that has the address")
        return {"op": "lip.add" if command == "add-laddr" else "lip.del", "service": service, "addr": lip, "port": port}
    text = _need(options, "real-server", command, "-r RIP:PORT")
    rip, port = split(text, "server")
    rip, rport = endpoint(text, "server") if port else (address(rip, "server"), service["vport"])
    server: Change = {"op": f"server.{command.split('-')[0]}", "service": service, "rip": rip, "rport": rport}
    if command == "delete-server":
        return {**server, "op": "server.del"}
    if command == "edit-server":
        return {**server, "op": "server.set", "weight": _weight(_need(options, "weight", command, "-w WEIGHT"))}
    return {**server, "weight": _weight(options.get("weight", "1"))}


def _weight(text: str) -> int:
    return number(text, "weight", 0, 65535)


def _listing(command: str, service: Change | None, options: dict[str, str]) -> Listing:
    if command != "list":
        return Listing("save" if command == "save" else "laddrs", service, json="json" in options)
    if len(views := [name for name in ("connection", "stats", "rate") if name in options]) > 1:
        raise Usage(" and ".join(f"--{name}" for name in views) + " given", "ask for one of them")
    if {"sort", "nosort"} <= options.keys():
        raise Usage("--sort and --nosort given", "give one of them")
    view: Any = {"connection": "conns"}.get(views[0], views[0]) if views else "services"
    services = ("services", "stats", "rate")
    for name, wanted, needs in (
        ("cpu", ("conns",), "-c"),
        ("sockpair", ("conns",), "-c"),
        ("exact", ("stats", "rate"), "--stats or --rate"),
        ("sort", services, "a listing of services"),
        ("nosort", services, "a listing of services"),
    ):
        if name in options and view not in wanted:
            raise Usage(f"--{name} only means something with {needs}", "leave it out")
    cpu = number(options["cpu"], "--cpu", 0, 63) if "cpu" in options else None
    pair = _sockpair(options["sockpair"]) if "sockpair" in options else None
    if pair and service:
        raise Usage("--sockpair and a service given", "the socket pair names the service already")
    return Listing(view, service, pair, cpu, "exact" in options, "nosort" not in options, "json" in options)


_END = r"(?:\[[^\]]*\]|[^:\[\]]*):[^:]*"  # ADDRESS:PORT


def _sockpair(text: str) -> Change:
    """PROTO:CIP:CPORT:VIP:VPORT."""
    match = re.fullmatch(rf"(tcp|udp|sctp):({_END}):({_END})", text)
    if match is None:
        raise Usage(
            f"--sockpair {text!r} is not a socket pair",
            "write tcp:CLIENT:PORT:VIP:PORT, udp:… or sctp:…, IPv6 addresses in brackets",
        )
    cip, cport = endpoint(match[2], "client")
    vip, vport = endpoint(match[3], "service")
    return {"proto": match[1], "vip": vip, "vport": vport, "cip": cip, "cport": cport}


HELP = """\
Usage: fnat-ipvsadm COMMAND [OPTIONS]      the FullNAT part of DPVS's ipvsadm

  -A --add-service     SERVICE [-s SCHED] [-o | --quic] [--conn-timeout SEC] [--expire-quiescent] [--no-rs drop|reset]
                       [--half-open N] [--hash-target sip|sip-port|qid] [--hash-slots N] [--slow-start SEC]
                       [--proxy-protocol disable|v1|v2|v1-insecure|v2-insecure | --client-addr none|toa|uoa-opp|uoa-ipo]
  -E --edit-service    SERVICE, and only what shall change
  -D --delete-service  SERVICE
  -C --clear           delete all services
  -a --add-server      SERVICE -r RIP[:PORT] [-w WEIGHT] [-b]
  -e --edit-server     SERVICE -r RIP[:PORT] -w WEIGHT [-b]
  -d --delete-server   SERVICE -r RIP[:PORT]
  -P --add-laddr       SERVICE -z LIP -F PORT
  -Q --del-laddr       SERVICE -z LIP [-F PORT]
  -G --get-laddr       [SERVICE] [--json]
  -L -l --list         [SERVICE] [-n] [--stats | --rate] [--exact] [--sort | --nosort] [--json]
                       [SERVICE] [-n] -c [--cpu WORKER] [--sockpair PROTO:CIP:PORT:VIP:PORT] [--json]
  -Z --zero            [SERVICE]   counters start again from 0
  -S --save            [-n]        print rules for -R, nothing is left out
  -R --restore         read rules on standard input: all of them or none; a first line -C replaces what is there
  -h --help   -v --version

SERVICE is -t VIP:PORT (TCP), -u VIP:PORT (UDP) or --sctp-service VIP:PORT (SCTP); an IPv6 address stands in brackets:
-t [2001:db8::1]:80.
Servers may be of the other family than the VIP; each family of servers needs local addresses of its own.
SCHED is rr, wrr, lc, wlc, sed, nq, sh, mh, conhash, fo or p2c; wrr when left out. WEIGHT is 0..65535, 1 when left out.
-b (FullNAT) is the only mode and may be left out.
--conn-timeout replaces the established timeout of TCP and SCTP and all timeouts of UDP; 0 means the general ones.
--hash-target: what a client is to sh, mh and conhash, sip when left out. --hash-slots: of mh's table, 1021, 4093,
16381 or 65537. --slow-start: with wrr, wlc, sed, nq, p2c a server that comes to others grows to its weight.
-o --ops: UDP only; every datagram of a client goes to a server chosen anew.
--quic: UDP only; a client that moves keeps its server, which its connection ID names in DPVS's form.
--no-rs: a SYN when no server is usable is dropped or answered with RST.
--half-open: most half-open connections, 0 = no limit.
--client-addr: how servers learn the client's address; TCP: toa when left out, others: none.
Addresses are always printed as numbers, with or without -n. -lnc shows the seconds left; its [N] is the worker.
The environment variable FNAT_SOCKET names the socket of another fnat.
Exit codes: 0 done, 1 failed, 2 wrong usage, 3 fnat is not running.
"""

# ---- text ----


def services_text(status: Row, services: Iterable[Row], listing: Listing) -> str:
    """-ln, --stats and --rate."""
    lines = [f"IP Virtual Server version {status['version']} (size={status['capacity']})"]
    if listing.view == "services":
        lines += [
            "Prot LocalAddress:Port Scheduler Flags",
            "  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn",
        ]
    else:
        titles = {
            "stats": ("Conns", "InPkts", "OutPkts", "InBytes", "OutBytes"),
            "rate": ("CPS", "InPPS", "OutPPS", "InBPS", "OutBPS"),
        }
        lines += [f"{'Prot LocalAddress:Port':<33}" + "".join(f" {title:>8}" for title in titles[listing.view])]
        lines += ["  -> RemoteAddress:Port"]
    for service in sorted(services, key=service_key) if listing.sort else services:
        servers = sorted(service["servers"], key=server_key) if listing.sort else service["servers"]
        if listing.view == "services":
            lines.append(f"{service_name(service)} {service['scheduler']}{_flags(service)}")
            lines += [_server_line(server) for server in servers]
        else:
            lines.append(f"{service_name(service):<33}{_figures(service, listing)}")
            lines += [f"  -> {server_text(server):<28}{_figures(server, listing)}" for server in servers]
    return "\n".join(lines) + "\n"


def service_name(service: Row) -> str:
    return f"{service['proto'].upper()}  {service_text(service)}"


def _flags(service: Row) -> str:
    flags = " ops" if service.get("one_packet") else ""
    flags += f" conn-timeout {service['conn_timeout']}" if service.get("conn_timeout") else ""
    flags += " expire-quiescent" if service.get("expire_quiescent") else ""
    flags += " quic" if service.get("quic") else ""
    flags += " no-rs reset" if service.get("no_rs") == "reset" else ""
    if told := _told(service):
        flags += f" pp{told.removeprefix('proxy-')}" if told.startswith("proxy-") else f" client-addr {told}"
    return flags + (f" half-open {service['half_open']}" if service.get("half_open") is not None else "")


def _told(service: Row) -> str:
    """How the servers learn the client's address; "" when it is as usual for the protocol."""
    usual = DEFAULT_CLIENT_ADDR[service["proto"]]
    told = str(service.get("client_addr", usual))
    return "" if told == usual else told


def _server_line(server: Row) -> str:
    name, stats = server_text(server), server["stats"]
    return f"  -> {name:<28} {'FullNat':<7} {server['weight']:<6} {stats['active']:<10} {stats['inactive']:<10}"


def _figures(row: Row, listing: Listing) -> str:
    if listing.view == "stats":
        values = [row["stats"][key] for key in ("conns", "in_packets", "out_packets", "in_bytes", "out_bytes")]
    else:
        values = [row["rate"][key] for key in ("cps", "in_pps", "out_pps", "in_bps", "out_bps")]
    return "".join(large(round(value), listing.exact) for value in values)


def large(value: int, exact: bool = False) -> str:
    """A counter in nine columns, from 100 million on in K, M, G or T; exact: all digits after at least one blank."""
    if exact or value < 10**8:
        return f"{value:>9}" if value < 10**8 else f" {value}"
    for limit, unit, letter in ((10**9, 10**3, "K"), (10**11, 10**6, "M"), (10**14, 10**9, "G")):
        if value < limit:
            return f"{value // unit:>8}{letter}"
    return f"{value // 10**12:>8}T"


def conns_text(conns: Iterable[Row]) -> str:
    """-lnc: one line a connection, no header."""
    return "".join(
        f"[{conn['worker']}]{conn['proto']:<3} {str(conn['remaining']) + 's':<6} {conn['state']:<11} "
        f"{at(conn['cip'], conn['cport']):<18} {service_text(conn):<18} {at(conn['lip'], conn['lport']):<18} "
        f"{server_text(conn)}\n"
        for conn in conns
    )


def laddrs_text(services: Iterable[Row]) -> str:
    """-G."""
    text = f"{'VIP:VPORT':<20} {'TOTAL':<8} {'SNAT_IP':<20} {'CONFLICTS':<10} {'CONNS':<10}\n"
    for service in sorted(services, key=service_key):
        text += f"{service_text(service):<20} {len(service['lips']):<8} \n"
        for lip in service["lips"]:
            text += f"{'':<20} {'':<8} {lip['addr']:<20} {lip['conflicts']:<10} {lip['conns']:<10}\n"
    return text


def save_text(services: Iterable[Row]) -> str:
    """-S: the commands that make these services, local addresses and servers again."""
    lines = []
    for service in sorted(services, key=service_key):
        name = f"{_SHOWN[service['proto'] + '-service']} {service_text(service)}"
        shape = f" --conn-timeout {service['conn_timeout']}" if service.get("conn_timeout") else ""
        shape += f" --hash-target {service['hash_target']}" if service.get("hash_target", "sip") != "sip" else ""
        shape += f" --hash-slots {service['hash_slots']}" if service.get("hash_slots", 65537) != 65537 else ""
        shape += f" --slow-start {service['slow_start']}" if service.get("slow_start") else ""
        shape += " --expire-quiescent" if service.get("expire_quiescent") else ""
        shape += " --ops" if service.get("one_packet") else ""
        shape += " --quic" if service.get("quic") else ""
        shape += f" --no-rs {service['no_rs']}" if service.get("no_rs", "drop") != "drop" else ""
        if told := _told(service):
            word = told.removeprefix("proxy-")
            shape += f" --proxy-protocol {word}" if word != told else f" --client-addr {told}"
        shape += f" --half-open {service['half_open']}" if service.get("half_open") is not None else ""
        lines.append(f"-A {name} -s {service['scheduler']}{shape}")
        lines += [f"-P {name} -z {lip['addr']} -F {lip['port']}" for lip in service["lips"]]
        lines += [
            f"-a {name} -r {server_text(rs)} -b -w {rs['weight']}" for rs in sorted(service["servers"], key=server_key)
        ]
    return "".join(line + "\n" for line in lines)
