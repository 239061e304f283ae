"""The language of DPVS's ipvsadm, FullNAT part: words -> changes or a listing; resources -> its exact text.

Two tables hold the language: OPTIONS every option that DPVS knows and fnat's own, COMMANDS what each command reads.
Parsing, -S, the flags of -ln, -h, the manual page and completion all come from them; a field of a service or a server
is one row. An option that fnat has not is refused with the reason and the way out, except in the spelling that switches
it off (`--dest-check disable`). An option without effect is an error.

Different from DPVS on purpose: `-lnc` shows the time that is left, `--rate` is true, service counters survive the
removal of a server, `-S` loses nothing, `-R` puts the rules in the place of all services at once, weights up to 65535
are real, `-lnc` may be narrowed to a service, addresses are always numeric.

As in DPVS a service made here has the scheduler wlc, and a TCP service tells its servers the client's address by TOA,
unless they say otherwise; a UDP service tells nothing unless it is asked to, because a server without uoa.ko cannot
read the first datagrams then.

Unsatisfying: `--cpu` narrows connections and local addresses, but not the counters of services, which are kept over all
workers.
"""

from __future__ import annotations

import ipaddress
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pydantic import TypeAdapter, ValidationError

from fnat import addresses
from fnat.grammar import (
    Change,
    Row,
    Usage,
    address,
    at,
    endpoint,
    near,
    network,
    number,
    server_key,
    server_text,
    service_key,
    service_text,
    split,
)
from fnat.grammar.manual import EXIT_CODES, Manual
from fnat.model import CLIENT_ADDRS, MAX_SECONDS, Frozen, RealServer, Scheduler, ServiceName, Shape

# ---- words ----

SCHEDULERS: tuple[str, ...] = get_args(Scheduler)
DEFAULT_SCHEDULER = "wlc"
DEFAULT_CLIENT_ADDR = {"tcp": "toa", "udp": "none", "sctp": "none"}
PERSISTENCE = "360"  # seconds of -p without a number, as in DPVS
_PROXY = ("disable", "v1", "v2", "v1-insecure", "v2-insecure")
_MOST = 2**31 - 1
_MANY = 2**32 - 1
_MOST_NEW = 10**7  # a second

Why = tuple[str, str]
"""Why something is refused, and what to do."""


@dataclass(frozen=True)
class Option:
    """A word of the command line. `value`: what follows, as the help writes it; in brackets it may be left out and
    means `left_out`."""

    long: str
    letter: str = ""
    value: str = ""
    help: str = ""
    choices: tuple[str, ...] = ()
    left_out: str = ""
    why: Why | None = None  # refused, unless the value is `off`
    off: str | None = None
    # of a row that is a field of the model: its name, value <-> text, and whether -S writes it even at its default
    field: str = ""
    of: type[Frozen] = Shape
    read: Callable[[str, str], Any] = lambda text, _: text
    write: Callable[[Any, Row], str] = lambda value, _: str(value)
    always: bool = False
    hidden: bool = False  # from the flags of -ln

    @property
    def shown(self) -> str:
        return f"-{self.letter}" if self.letter else f"--{self.long}"

    @property
    def known(self) -> bool:
        """Whether fnat has it."""
        return self.why is None

    @property
    def default(self) -> Any:  # noqa: ANN401
        return self.of.model_fields[self.field].default


def whole(low: int, high: int) -> Callable[[str, str], int]:
    return lambda text, shown: number(text, shown, low, high)


def one_of(*words: str) -> Callable[[str, str], str]:
    def read(text: str, shown: str) -> str:
        if text not in words:
            raise Usage(f"{shown} {text} is unknown{near(text, words)}", f"say {either(words)}")
        return text

    return read


def either(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]


def _scheduler(text: str, _: str) -> str:
    if text not in SCHEDULERS:
        message = f"scheduler {text} is not in fnat{near(text, SCHEDULERS)}"
        raise Usage(message, f"use {either([f'-s {word}' for word in SCHEDULERS])}")
    return text


def _mask(text: str, shown: str) -> int:
    """An IPv4 netmask or a prefix length -> prefix length."""
    if re.fullmatch(r"[0-9]{1,3}", text):
        return number(text, shown, 1, 128)
    try:
        plen = ipaddress.IPv4Network(f"0.0.0.0/{text}").prefixlen
    except ValueError:
        plen = 0
    if not plen or "." not in text or text != str(ipaddress.IPv4Network(f"0.0.0.0/{plen}").netmask):
        raise Usage(f"{shown} {text} is no netmask", "write 255.255.255.0, or a prefix length such as 24 or 64")
    return plen


def _mask_text(plen: int, service: Row) -> str:
    return str(plen) if ":" in service["vip"] else str(ipaddress.IPv4Network(f"0.0.0.0/{plen}").netmask)


def _name(text: str, shown: str) -> str:
    try:
        return _SERVICE_NAME.validate_python(text)
    except ValidationError:
        fix = "write at most 64 ASCII characters without blank, quotation mark and backslash"
        raise Usage(f"{shown} {text!r} is no name", fix) from None


_SERVICE_NAME: TypeAdapter[str] = TypeAdapter(ServiceName)


def _slots(text: str, shown: str) -> int:
    return int(one_of("1021", "4093", "16381", "65537")(text, shown))


def _drain(text: str, shown: str) -> Change:
    """EPOCH or never, and ,keep behind it."""
    until, comma, keep = text.partition(",")
    if (comma and keep != "keep") or not re.fullmatch(r"never|[1-9][0-9]{0,10}", until):
        raise Usage(f"{shown} {text} is no end", "write never or seconds since 1970; ,keep behind it keeps -p")
    return {"until": None if until == "never" else int(until), "keep_persistent": bool(keep)}


def _drain_text(drain: Row, _: Row) -> str:
    return f"{drain['until'] or 'never'}{',keep' if drain['keep_persistent'] else ''}"


def _no_rs(text: str, shown: str) -> str:
    if text in ("drop", "reset"):
        return text
    if ":" not in text:
        raise Usage(f"{shown} {text} is unknown{near(text, ('drop', 'reset'))}", "say drop, reset or ADDRESS:PORT")
    return at(*endpoint(text, "sorry server"))


_HAS_ACL = "deny" in Shape.model_fields
_ACL = None if _HAS_ACL else ("fnat has no per-service access lists", "filter in front of the balancer")
_MODE = ("fnat forwards in FullNAT mode only", "give -b or leave the mode out")
_PROTO = ("fnat balances TCP, UDP and SCTP services only", "use -t, -u or --sctp-service")
_DAEMON = ("fnat has no session sync daemon", "leave it out")
_MATCH = ("fnat has no match services (they are for SNAT)", "name the service with -t or -u")

_SERVICE = (
    Option("tcp-service", "t", "VIP:PORT", "a TCP service; an IPv6 address stands in brackets: [2001:db8::1]:80"),
    Option("udp-service", "u", "VIP:PORT", "a UDP service"),
    Option("sctp-service", "", "VIP:PORT", "an SCTP service"),
)
SHAPE = (
    Option("scheduler", "s", "SCHED", f"{either(SCHEDULERS)}; {DEFAULT_SCHEDULER} when left out", SCHEDULERS,
           field="scheduler", read=_scheduler, always=True, hidden=True),
    Option("hash-target", "", "sip|sip-port|qid", "what mh, sh and conhash hash: the client's address, address and "
           "port, or the QUIC connection ID", ("sip", "sip-port", "qid"), field="hash_target",
           read=one_of("sip", "sip-port", "qid")),
    Option("hash-slots", "", "N", "slots of mh's table: 1021, 4093, 16381 or 65537, which is usual",
           ("1021", "4093", "16381", "65537"), field="hash_slots", read=_slots),
    Option("persistent", "p", "[SEC]", f"a client stays with its server for so long; {PERSISTENCE} without a number, "
           "0: not at all", left_out=PERSISTENCE, field="persistent", read=whole(0, 31 * 86400)),
    Option("netmask", "M", "MASK", "clients of one network are one client to -p: an IPv4 netmask, or a prefix length",
           field="persistent_mask", read=_mask, write=_mask_text),
    Option("ops", "o", "", "UDP only; every datagram of a client goes to a server chosen anew", field="one_packet"),
    Option("conn-timeout", "", "SEC", "replaces the established timeout of TCP and SCTP and all timeouts of UDP; 0: "
           "the general ones", field="conn_timeout", read=whole(0, MAX_SECONDS)),
    Option("client-addr", "", "MODE", "how servers learn the client's address; TCP: toa when left out, others: none",
           tuple(dict.fromkeys(word for words in CLIENT_ADDRS.values() for word in words)), field="client_addr"),
    Option("expire-quiescent", "", "", "end connections of a server that is removed or has weight 0",
           field="expire_quiescent"),
    Option("quic", "", "", "UDP only; a client that moves keeps its server, which its connection ID names in DPVS's "
           "form", field="quic"),
    Option("slow-start", "", "SEC", "a new server gets its full share after so long", field="slow_start",
           read=whole(0, MAX_SECONDS)),
    Option("no-rs", "", "drop|reset|ADDRESS:PORT",
           "what becomes of a first packet when no server is usable; ADDRESS:PORT: a sorry server has it",
           ("drop", "reset"), field="no_rs", read=_no_rs),
    Option("half-open", "", "N", "most half-open connections, 0: no limit", field="half_open", read=whole(0, _MOST)),
    Option("max-conns", "", "N", "most connections, 0: no limit", field="max_conns", read=whole(0, _MANY)),
    Option("new-per-s", "", "N", "most new connections a second, 0: no limit", field="new_per_s",
           read=whole(0, _MOST_NEW)),
    Option("per-client", "", "N", "most connections of one client, an IPv4 address or an IPv6 /64, 0: no limit",
           field="per_client", read=whole(0, 2**24 - 1)),
    Option("name", "", "NAME", "what the operator calls the service; \"\": nothing", field="name", read=_name,
           write=lambda name, _: shlex.quote(name), hidden=True),
)  # fmt: skip
SERVER = (
    Option("weight", "w", "WEIGHT", "0..65535, 1 when left out; 0: no new connections", of=RealServer,
           field="weight", read=whole(0, 65535), always=True),
    Option("u-threshold", "x", "N", "most connections of the server, 0: no limit", of=RealServer,
           field="upper", read=whole(0, _MANY)),
    Option("l-threshold", "y", "N", "after -x was reached, connections come again below so many; 0: below -x",
           of=RealServer, field="lower", read=whole(0, _MANY)),
    Option("role", "", "active|backup", "backup: used while no active server is usable", ("active", "backup"),
           of=RealServer, field="role", read=one_of("active", "backup")),
    Option("max-new-per-s", "", "N", "most new connections a second of the server, 0: no limit", of=RealServer,
           field="max_new_per_s", read=whole(0, _MOST_NEW)),
    Option("drain", "", "EPOCH|never[,keep]", "no new connections, and what is left at EPOCH is ended; keep: "
           "clients with -p still get theirs", of=RealServer, field="drain", read=_drain, write=_drain_text),
)  # fmt: skip


# -E takes back what a flag set
_UNSET = tuple(
    Option(f"no-{option.long}", help=f"takes --{option.long} back", field=option.field)
    for option in SHAPE
    if not option.value
)
_UNDRAIN = (Option("no-drain", help="takes --drain back", field="drain"),)
_ANY = (
    Option("real-server", "r", "RIP[:PORT]", "a server, of either family; the service's port when left out"),
    Option("fullnat", "b", "", "FullNAT, the only mode; may be left out"),
    Option("proxy-protocol", "", "WORD", "disable, v1, v2, v1-insecure or v2-insecure: how DPVS asks for "
           "--client-addr proxy-…", _PROXY, read=one_of(*_PROXY)),
    Option("local-address", "z", "LIP", "an address that stands for the clients towards the servers of its family"),
    Option("ifname", "F", "PORT", "the balancer's port that has the LIP"),
)  # fmt: skip
_VIEW = (
    Option("numeric", "n", "", "numbers instead of names, which is always so"),
    Option("connection", "c", "", "connections, with the seconds left and the [worker] they are on"),
    Option("stats", "", "", "counters of services and servers"),
    Option("rate", "", "", "the same a second"),
    Option("thresholds", "", "", "-x and -y of servers"),
    Option("persistent-conn", "", "", "clients of servers that -p keeps there"),
    Option("timeout", "", "", "the general timeouts: TCP established, TCP half-closed, UDP"),
    Option("exact", "X", "", "with --stats and --rate: all digits"),
    Option("sort", "", "", "by protocol and address, which is usual"),
    Option("nosort", "", "", "in the order of creation"),
    Option("cpu", "", "WORKER", "only of this worker, 0.."),
    Option("sockpair", "", "PROTO:CIP:CPORT:VIP:VPORT", "with -c: one connection"),
    Option("json", "", "", "what the API gives"),
    Option("interval", "", "SEC", "the listing again each SEC seconds"),
    Option("count", "", "N", "with --interval: N times"),
)  # fmt: skip
_FOREIGN = (
    Option("set", why=("timeouts are not set here",
                       "put them in the file, [host] timeouts, or give a service --conn-timeout")),
    Option("start-daemon", "", "STATE", why=_DAEMON), Option("stop-daemon", "", "STATE", why=_DAEMON),
    Option("daemon", why=_DAEMON), Option("mcast-interface", "", "IF", why=_DAEMON),
    Option("syncid", "", "N", why=_DAEMON),
    Option("icmp-service", "q", "VIP", why=_PROTO), Option("icmpv6-service", "1", "VIP", why=_PROTO),
    Option("fwmark-service", "f", "MARK", why=("fnat has no firewall marks",
           "name the service with -t or -u, a port with -F")),
    Option("match", "H", "MATCH", why=_MATCH),
    Option("ipv6", "6", why=("-6 is for firewall marks, which fnat has not",
                             "name an IPv6 service with -t [ADDRESS]:PORT")),
    Option("pe", "", "NAME", why=("persistence engines are not in fnat",
           "leave it out; -p keeps a client by its address, --quic by its connection ID")),
    Option("gatewaying", "g", why=_MODE), Option("ipip", "i", why=_MODE), Option("masquerading", "m", why=_MODE),
    Option("snat", "J", why=_MODE),
    Option("synproxy", "j", "WORD", off="disable", why=("the SYN proxy is not in fnat",
           "leave it out and limit half-open connections with --half-open")),
    Option("dest-check", "", "WORD", off="disable", why=("passive health checks are not in fnat",
           "leave it out or say disable")),
)  # fmt: skip


_SUBJECTS = (
    Option("blklst", "k", "PREFIX|ipset:NAME", "sources whose new connections are dropped", why=_ACL),
    Option("whtlst", "2", "PREFIX|ipset:NAME", "the only sources that may open connections", why=_ACL),
)


@dataclass(frozen=True)
class Verb(Option):
    """A command: the options it needs, and those it reads besides. "SERVICE" is any of the three of _SERVICE."""

    needs: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()

    @property
    def allowed(self) -> set[str]:
        """Every option that may stand with it."""
        words = {*self.needs, *self.reads}
        return words - {"SERVICE"} | ({o.long for o in _SERVICE} if "SERVICE" in words else set())


def _names(options: Iterable[Option]) -> tuple[str, ...]:
    return tuple(option.long for option in options if option.known)


COMMANDS = (
    Verb("add-service", "A", help="add a service", needs=("SERVICE",), reads=(*_names(SHAPE), "proxy-protocol")),
    Verb("edit-service", "E", help="change what is given, nothing else", needs=("SERVICE",),
         reads=(*_names(SHAPE), "proxy-protocol", *_names(_UNSET))),
    Verb("delete-service", "D", help="delete a service; its connections go on", needs=("SERVICE",)),
    Verb("clear", "C", help="delete all services"),
    Verb("add-server", "a", help="add a server", needs=("SERVICE", "real-server"), reads=(*_names(SERVER), "fullnat")),
    Verb("edit-server", "e", help="change what is given of a server", needs=("SERVICE", "real-server"),
         reads=(*_names(SERVER), *_names(_UNDRAIN), "fullnat")),
    Verb("delete-server", "d", help="remove a server; its connections go on", needs=("SERVICE", "real-server")),
    Verb("add-laddr", "P", help="add a local address (LIP) to a service", needs=("SERVICE", "local-address", "ifname")),
    Verb("del-laddr", "Q", help="take a local address from a service", needs=("SERVICE", "local-address"),
         reads=("ifname",)),
    Verb("get-laddr", "G", help="local addresses of services",
         reads=("SERVICE", "numeric", "cpu", "json", "interval", "count")),
    Verb("list", "l", help="services and servers; -c: connections",
         reads=("SERVICE", *_names(_VIEW))),
    Verb("add-blklst", "U", help="deny a source", needs=("SERVICE", "blklst"), why=_ACL),
    Verb("del-blklst", "V", help="deny it no more", needs=("SERVICE", "blklst"), why=_ACL),
    Verb("get-blklst", "B", help="denied sources", reads=("SERVICE", "numeric", "json"), why=_ACL),
    Verb("add-whtlst", "O", help="allow a source, and none but those", needs=("SERVICE", "whtlst"), why=_ACL),
    Verb("del-whtlst", "Y", help="allow it no more", needs=("SERVICE", "whtlst"), why=_ACL),
    Verb("get-whtlst", "W", help="allowed sources", reads=("SERVICE", "numeric", "json"), why=_ACL),
    Verb("zero", "Z", help="let counters start again from 0", reads=("SERVICE",)),
    Verb("save", "S", help="print rules for -R; nothing is left out", reads=("numeric",)),
    Verb("restore", "R", help="read rules on standard input and put them in the place of all services, at once; a "
         "service that stays the same keeps its connections"),
    Verb("help", "h", help="this text"),
    Verb("version", "v", help="the version"),
)  # fmt: skip
_VERBS = {verb.long: verb for verb in COMMANDS}
OPTIONS: dict[str, Option] = {
    option.long: option
    for option in (*COMMANDS, *_SERVICE, *SHAPE, *SERVER, *_UNSET, *_UNDRAIN, *_ANY, *_SUBJECTS, *_VIEW, *_FOREIGN)
}
_LONG_OF = {option.letter: name for name, option in OPTIONS.items() if option.letter} | {"L": "list"}
_NAMED_BY = {"tcp-service": "tcp", "udp-service": "udp", "sctp-service": "sctp"}
_RULES = ("clear", "add-service", "add-server", "add-laddr", "add-blklst", "add-whtlst")  # what -S writes and -R reads


@dataclass(frozen=True)
class Changes:
    """What POST /v1/changes shall do, all of it or nothing."""

    changes: list[Change]


@dataclass(frozen=True)
class Listing:
    """What to show. `service` has the keys proto, vip, vport; `sockpair` also cip, cport."""

    view: Literal[
        "services",
        "stats",
        "rate",
        "thresholds",
        "persistent-conn",
        "timeout",
        "conns",
        "laddrs",
        "save",
        "deny",
        "allow",
    ]
    service: Change | None = None
    sockpair: Change | None = None
    cpu: int | None = None
    exact: bool = False
    sort: bool = True
    json: bool = False
    interval: int = 0  # seconds; 0: once
    count: int = 0  # 0: for ever


@dataclass(frozen=True)
class Word:
    """A command that needs nothing else: help, version, restore (rules on standard input)."""

    name: Literal["help", "version", "restore"]


Command = Changes | Listing | Word


def parse(words: Sequence[str]) -> Command:
    """One command line without the program's name. Raises Usage."""
    return _parse(words)[1]


def _parse(words: Sequence[str]) -> tuple[str, Command]:
    """The command's name too."""
    if not words:
        return "list", Listing("services")
    options = _split(words)
    commands = [name for name in options if name in _VERBS]
    if len(commands) != 1:
        given = " and ".join(f"--{name}" for name in commands) or "no command"
        raise Usage(f"{given} given", "give exactly one command such as -A -a -l -P; -h lists them")
    command = commands[0]
    allowed = _VERBS[command].allowed
    for name in options:
        if name != command and name not in allowed:
            raise Usage(f"--{name} means nothing with --{command}", "leave it out")
    if command in ("help", "version", "restore"):
        return command, Word(command)  # type: ignore[arg-type]
    service = _service(options, command)
    if command in _LISTS:
        return command, _listing(command, service, options)
    return command, Changes(_changes(command, service, options))


def parse_rules(text: str) -> Changes:
    """What -S wrote, in the place of all services: one command a line, which may begin with the program's name; empty
    lines and lines that begin with # do not count."""
    changes: list[Change] = [{"op": "service.clear"}]
    made: set[tuple[object, ...]] = set()
    lines = 0
    for nr, line in enumerate(text.splitlines(), 1):
        try:
            words = shlex.split(line, comments=True)
            if words and re.fullmatch(r"(.*/)?(fnat-)?ipvsadm", words[0]):
                words = words[1:]
            if not words:
                continue
            name, command = _parse(words)
            if not isinstance(command, Changes):
                raise Usage("only commands that change something can be restored", "take this line out")
            if name not in _RULES:
                raise Usage(f"-R reads the rules of all services, and --{name} is none", "type it as a command")
            if name == "clear" and lines:
                raise Usage("-C after other rules", "put it first or leave it out: the rules replace all services")
            lines += 1
            if name == "clear":
                continue
            change = command.changes[0]
            where = change.get("service", change)
            key = where["proto"], where["vip"], where["vport"]
            if name == "add-service":
                made.add(key)
            elif key not in made:
                message = f"there is no -A for {key[0]} {at(key[1], key[2])} before"
                raise Usage(message, "add it: the rules replace all services")
        except ValueError as error:
            raise Usage(f"line {nr}: {error}", "mend the quotes; nothing was changed") from None
        except Usage as error:
            raise Usage(f"line {nr}: {error.message}", f"{error.fix}; nothing was changed") from None
        changes += command.changes
    if not lines:
        raise Usage("there are no rules", "give those that -S wrote, or -C to delete all services; nothing was changed")
    return Changes(changes)


def _split(words: Sequence[str]) -> dict[str, str]:
    """Words -> {long name: value, "" for a flag}, as popt(3) takes them: short options may be bundled, a value may be
    attached with or without "=", and one in brackets is taken unless it looks like an option."""
    options: dict[str, str] = {}
    rest = list(words)

    def take(option: Option, shown: str, attached: str | None) -> None:
        if option.why and option.off is None:
            raise Usage(f"{shown}: {option.why[0]}", option.why[1])
        value = attached
        if not option.value:
            value = ""
        elif value is None and option.left_out and (not rest or rest[0].startswith("-")):
            value = option.left_out
        elif value is None:
            if not rest:
                raise Usage(f"{shown} needs a value", f"write {shown} {option.value}; -h shows the options")
            value = rest.pop(0)
        if option.why:
            if value != option.off:
                raise Usage(f"{shown} {value}: {option.why[0]}", option.why[1])
            return
        if option.long in options:
            raise Usage(f"{shown} is given twice", "give it once")
        options[option.long] = value

    while rest:
        word = rest.pop(0)
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word[2:].partition("=")
            if name not in OPTIONS:
                raise Usage(f"unknown option --{name}{_near_option(name)}", "-h shows the options")
            if equals and not OPTIONS[name].value:
                raise Usage(f"--{name} takes no value", f"write --{name}")
            take(OPTIONS[name], f"--{name}", value if equals else None)
        elif word.startswith("-") and len(word) > 2 and word[1:].partition("=")[0] in OPTIONS:
            raise Usage(f"unknown option {word} (did you mean -{word}?)", "a long option begins with two hyphens")
        elif word.startswith("-") and len(word) > 1:
            letters = word[1:]
            while letters:
                letter, letters = letters[0], letters[1:]
                if letter not in _LONG_OF:
                    raise Usage(f"unknown option -{letter}{_near_letter(letter)}", "-h shows the options")
                option = OPTIONS[_LONG_OF[letter]]
                attached, letters = (letters.removeprefix("="), "") if option.value else (None, letters)
                take(option, f"-{letter}", attached or None)
        else:
            raise Usage(f"unexpected word {word!r}{_near_word(word, options)}", "-h shows the options")
    return options


def _near_option(name: str) -> str:
    return near(name, (name for name, option in OPTIONS.items() if option.known)).replace("mean ", "mean --")


def _near_letter(letter: str) -> str:
    other = letter.swapcase()
    return f" (did you mean -{other}?)" if other in _LONG_OF and OPTIONS[_LONG_OF[other]].known else ""


def _near_word(word: str, options: Mapping[str, str]) -> str:
    """What a word that stands alone was meant for."""
    meant = {"tcp": "-t", "udp": "-u", "sctp": "--sctp-service"} | {letter: f"-{letter}" for letter in _LONG_OF}
    if word in OPTIONS or word in meant:
        return f" (did you mean {meant.get(word, f'--{word}')}?)"
    if re.fullmatch(r"\[?[0-9a-fA-F.:]+\]?:[0-9]+", word):
        missing = "-r" if any(name in options for name in _NAMED_BY) else "-t or -u"
        return f" (is {missing} missing before it?)"
    return ""


def _service(options: dict[str, str], command: str) -> Change | None:
    """The service that -t, -u or --sctp-service names, if any."""
    if len(given := [OPTIONS[name].shown for name in _NAMED_BY if name in options]) > 1:
        raise Usage(f"{' and '.join(given)} given", "name one service")
    for name, proto in _NAMED_BY.items():
        if name in options:
            vip, vport = endpoint(options[name], "service")
            return {"proto": proto, "vip": vip, "vport": vport}
    if "SERVICE" in _VERBS[command].needs:
        raise Usage(f"--{command} needs a service", "add -t VIP:PORT or -u VIP:PORT")
    return None


def _need(options: dict[str, str], name: str, command: str, fix: str) -> str:
    if name not in options:
        raise Usage(f"--{command} needs --{name}", f"add {fix}")
    return options[name]


def _fields(rows: Iterable[Option], options: Mapping[str, str]) -> Change:
    """The fields that are given."""
    fields: Change = {}
    for option in rows:
        if option.long in options and option.long not in ("client-addr", "drain"):
            shown = "weight" if option.long == "weight" else f"--{option.long}"
            fields[option.field] = option.read(options[option.long], shown) if option.value else True
    return fields


def _shape(options: dict[str, str], service: Change) -> Change:
    """The fields of a service that are given."""
    fields = _fields(SHAPE, options)
    for name in ("ops", "quic"):
        if name in options and service["proto"] != "udp":
            raise Usage(f"--{name} is for UDP services only", "leave it out, or name the service with -u")
    if {"ops", "quic"} <= options.keys():
        raise Usage("--quic and --ops given", "give one of them")
    for option in _UNSET:
        if option.long in options:
            if option.field in fields:
                raise Usage(f"--{option.long} and --{option.long.removeprefix('no-')} given", "give one of them")
            fields[option.field] = False
    if (plen := fields.get("persistent_mask")) is not None:
        if "." in options["netmask"] and ":" in service["vip"]:
            raise Usage(f"--netmask {options['netmask']} is for IPv4 services", "write a prefix length such as 64")
        if plen > (bits := 128 if ":" in service["vip"] else 32):
            raise Usage(f"--netmask {plen} is out of range", f"give a prefix length from 1 to {bits}")
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
        one_of(*_PROXY)(word, "--proxy-protocol")
        told = DEFAULT_CLIENT_ADDR[proto] if word == "disable" else f"proxy-{word}"
    if told and told not in CLIENT_ADDRS[proto]:
        shown = f"--client-addr {told}" if word is None else f"--proxy-protocol {word}"
        raise Usage(f"{shown} is not for {proto.upper()} services", f"allowed: {', '.join(CLIENT_ADDRS[proto])}")
    return told


def _changes(command: str, service: Change | None, options: dict[str, str]) -> list[Change]:
    if command == "clear":
        return [{"op": "service.clear"}]
    if command == "zero":
        return [{"op": "service.zero", **(service or {"proto": None, "vip": None, "vport": None})}]
    assert service is not None
    if command == "add-service":
        told = {"client_addr": "toa"} if service["proto"] == "tcp" else {}
        return [{"op": "service.add", **service, "scheduler": DEFAULT_SCHEDULER, **told, **_shape(options, service)}]
    if command == "edit-service":
        if not (fields := _shape(options, service)):
            raise Usage("nothing to edit", "give what shall change, such as -s rr or --conn-timeout 3600")
        return [{"op": "service.set", **service, **fields}]
    if command == "delete-service":
        return [{"op": "service.del", **service}]
    if command in ("add-laddr", "del-laddr"):
        lip = address(_need(options, "local-address", command, "-z LIP"), "local address")
        change: Change = {"op": f"lip.{command[:3]}", "service": service, "addr": lip}
        if command == "del-laddr" and "ifname" not in options:
            return [change]
        port = _need(options, "ifname", command, "-F PORT, the balancer's port that has the address")
        return [{**change, "port": port}]
    if command.endswith("lst"):
        return [_acl(command, service, options)]
    return _server(command, service, options)


def _acl(command: str, service: Change, options: dict[str, str]) -> Change:
    name, letter, which = ("blklst", "-k", "deny") if "blk" in command else ("whtlst", "-2", "allow")
    text = _need(options, name, command, f"{letter} IP or {letter} ipset:NAME")
    entry = f"set:{text.removeprefix('ipset:')}" if text.startswith("ipset:") else "/".join(map(str, network(text)))
    return {"op": f"acl.{command[:3]}", "list": which, "entry": entry, "service": service}


def _server(command: str, service: Change, options: dict[str, str]) -> list[Change]:
    text = _need(options, "real-server", command, "-r RIP:PORT")
    rip, port = split(text, "server")
    rip, rport = endpoint(text, "server") if port else (address(rip, "server"), service["vport"])
    server: Change = {"service": service, "rip": rip, "rport": rport}
    fields = _fields(SERVER, options)
    changes: list[Change] = []
    if command == "delete-server":
        return [{"op": "server.del", **server}]
    if command == "add-server":
        changes.append({"op": "server.add", **server, "weight": 1, **fields})
    elif fields:
        changes.append({"op": "server.set", **server, **fields})
    if "drain" in options:
        changes.append({"op": "server.drain", **server, **_drain(options["drain"], "--drain")})
    if "no-drain" in options:
        changes.append({"op": "server.undrain", **server})
    if {"drain", "no-drain"} <= options.keys():
        raise Usage("--drain and --no-drain given", "give one of them")
    if not changes:
        _need(options, "weight", command, "-w WEIGHT")
    return changes


_LISTS = {"list": "services", "save": "save", "get-laddr": "laddrs", "get-blklst": "deny", "get-whtlst": "allow"}
_VIEWS = ("connection", "stats", "rate", "thresholds", "persistent-conn", "timeout")


def _listing(command: str, service: Change | None, options: dict[str, str]) -> Listing:
    interval = number(options["interval"], "--interval", 1, 86400) if "interval" in options else 0
    count = number(options["count"], "--count", 1, 10**9) if "count" in options else 0
    if count and not interval:
        raise Usage("--count without --interval", "add --interval SEC")
    cpu = number(options["cpu"], "--cpu", 0, 63) if "cpu" in options else None
    repeat: dict[str, Any] = {"json": "json" in options, "interval": interval, "count": count}
    if command != "list":
        what: Any = _LISTS[command]
        return Listing(what, service, cpu=cpu, **repeat)
    if len(views := [name for name in _VIEWS if name in options]) > 1:
        raise Usage(" and ".join(f"--{name}" for name in views) + " given", "ask for one of them")
    if {"sort", "nosort"} <= options.keys():
        raise Usage("--sort and --nosort given", "give one of them")
    view: Any = {"connection": "conns"}.get(views[0], views[0]) if views else "services"
    services = ("services", "stats", "rate", "thresholds", "persistent-conn")
    for name, wanted, needs in (
        ("cpu", ("conns",), "-c"),
        ("sockpair", ("conns",), "-c"),
        ("exact", ("stats", "rate"), "--stats or --rate"),
        ("sort", services, "a listing of services"),
        ("nosort", services, "a listing of services"),
    ):
        if name in options and view not in wanted:
            raise Usage(f"--{name} only means something with {needs}", "leave it out")
    pair = _sockpair(options["sockpair"]) if "sockpair" in options else None
    if pair and service:
        raise Usage("--sockpair and a service given", "the socket pair names the service already")
    if view == "timeout" and service:
        raise Usage("--timeout and a service given", "-ln shows the service's own conn-timeout")
    return Listing(view, service, pair, cpu, "exact" in options, "nosort" not in options, **repeat)


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


# ---- what it says of itself ----


def _synopsis(verb: Verb) -> str:
    """-A --add-service SERVICE [-s SCHED] …"""
    word = "-L " if verb.long == "list" else ""
    needed = [name if name == "SERVICE" else _term(OPTIONS[name]) for name in verb.needs]
    read = [f"[{name if name == 'SERVICE' else _term(OPTIONS[name])}]" for name in verb.reads]
    return " ".join([f"{word}{verb.shown} --{verb.long}", *needed, *read])


def _term(option: Option) -> str:
    return f"{option.shown} {option.value}".rstrip()


def both(option: Option) -> str:
    return f"-{option.letter}, --{option.long} {option.value}".rstrip() if option.letter else _term(option)


def manual() -> Manual:
    """The reference: -h and fnat-ipvsadm(8)."""
    known = [o for o in (*_SERVICE, *SHAPE, *_UNSET, *SERVER, *_UNDRAIN, *_ANY, *_SUBJECTS, *_VIEW) if o.known]
    refused = [o for o in OPTIONS.values() if o.why]
    return Manual(
        "fnat-ipvsadm",
        "services of a running fnat in the language of DPVS's ipvsadm, FullNAT part",
        ("fnat-ipvsadm COMMAND [OPTIONS]",),
        (
            ("Commands", tuple((_synopsis(verb), verb.help) for verb in COMMANDS if verb.known)),
            ("Options", (("SERVICE", "one of -t, -u and --sctp-service"), *((both(o), o.help) for o in known))),
            ("Refused", tuple((both(o), "; ".join(o.why or ())) for o in refused)),
            (
                "Notes",
                "Without a command services are listed. Servers may be of the other family than the VIP; each family "
                "of servers needs local addresses of its own. Addresses are always printed as numbers, with or without "
                "-n.\n\n-R reads what -S wrote, or rules of DPVS: all of it or nothing. The environment variable "
                "FNAT_SOCKET names the socket of another fnat.",
            ),
            ("Exit codes", EXIT_CODES),
        ),
        ("fnat(1)", "fnat-dpip(8)", "fnat.toml(5)"),
    )


def complete(words: Sequence[str], incomplete: str) -> list[tuple[str, str]]:
    """What may stand next on an unfinished command line: (word, what it is)."""
    given: list[Option] = []
    for word in words:
        names = [word[2:].partition("=")[0]] if word.startswith("--") else []
        if word.startswith("-") and not names:
            for letter in word[1:]:
                names.append(_LONG_OF.get(letter, ""))
                if names[-1] and OPTIONS[names[-1]].value:
                    break
        given += [OPTIONS[name] for name in names if name in OPTIONS]
    last = words[-1] if words else ""
    if given and given[-1].value and not given[-1].left_out and last in (f"-{given[-1].letter}", f"--{given[-1].long}"):
        return [(choice, "") for choice in given[-1].choices if choice.startswith(incomplete)]
    verb = next((option for option in given if isinstance(option, Verb)), None)
    wanted: Iterable[Option] = (verb for verb in COMMANDS if verb.known)
    if verb is not None:
        wanted = (option for option in OPTIONS.values() if option.long in verb.allowed and option not in given)
    found = [(word, option.help) for option in wanted for word in dict.fromkeys((option.shown, f"--{option.long}"))]
    return [(word, help) for word, help in found if word.startswith(incomplete)]


# ---- text ----


_TITLES = {
    "stats": ("Conns", "InPkts", "OutPkts", "InBytes", "OutBytes"),
    "rate": ("CPS", "InPPS", "OutPPS", "InBPS", "OutBPS"),
    "thresholds": ("Uthreshold", "Lthreshold", "ActiveConn", "InActConn"),
    "persistent-conn": ("Weight", "PersistConn", "ActiveConn", "InActConn"),
}


def services_text(status: Row, services: Iterable[Row], listing: Listing) -> str:
    """-ln, --stats, --rate, --thresholds and --persistent-conn."""
    lines = [f"IP Virtual Server version {status['version']} (size={status['capacity']})"]
    titles = _TITLES.get(listing.view, ())
    if listing.view == "services":
        lines += [
            "Prot LocalAddress:Port Scheduler Flags",
            "  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn",
        ]
    elif listing.view in ("stats", "rate"):
        lines += [f"{'Prot LocalAddress:Port':<33}" + "".join(f" {title:>8}" for title in titles)]
        lines += ["  -> RemoteAddress:Port"]
    else:
        lines += [f"{'Prot LocalAddress:Port':<33}" + "".join(f" {title:<10}" for title in titles)]
        lines += ["  -> RemoteAddress:Port"]
    for service in sorted(services, key=service_key) if listing.sort else services:
        servers = sorted(service["servers"], key=server_key) if listing.sort else service["servers"]
        if listing.view == "services":
            lines.append(f"{service_name(service)} {service['scheduler']}{_flags(service)}")
            lines += [_server_line(server) for server in servers]
        elif listing.view in ("stats", "rate"):
            lines.append(f"{service_name(service):<33}{_figures(service, listing)}")
            lines += [f"  -> {server_text(server):<28}{_figures(server, listing)}" for server in servers]
        else:
            lines.append(service_name(service))
            lines += [f"  -> {server_text(server):<28}{_columns(server, listing)}" for server in servers]
    return "\n".join(lines) + "\n"


def _columns(server: Row, listing: Listing) -> str:
    shown = ("upper", "lower") if listing.view == "thresholds" else ("weight", "persistent")
    values = [*(server[key] for key in shown), server["stats"]["active"], server["stats"]["inactive"]]
    return "".join(f" {value:<10}" for value in values)


def service_name(service: Row) -> str:
    return f"{service['proto'].upper()}  {service_text(service)}"


def _flags(service: Row) -> str:
    """The fields of a service that are not as usual, in DPVS's order."""
    flags = ""
    for option in SHAPE:
        value = _told(service, option)
        if value is None or option.hidden:
            continue
        if option.field == "hash_target":
            flags += f" {value}"
        elif option.field == "persistent_mask":
            flags += f" mask {option.write(value, service)}"
        elif option.field == "client_addr" and value.startswith("proxy-"):
            flags += f" pp{value.removeprefix('proxy-')}"
        else:
            flags += f" {option.long} {option.write(value, service)}" if option.value else f" {option.long}"
    return flags


def _words(rows: Iterable[Option], row: Row, service: Row) -> str:
    """The fields of a service or a server as -S writes them."""
    text = ""
    for option in rows:
        value = row.get(option.field, option.default) if option.always else _told(row, option)
        if value is None:
            continue
        name, word = option.shown if option.letter != "o" else "--ops", option.write(value, service)
        if option.field == "client_addr" and word.startswith("proxy-"):
            name, word = "--proxy-protocol", word.removeprefix("proxy-")
        text += f" {name} {word}" if option.value else f" {name}"
    return text


def _told(row: Row, option: Option) -> Any:  # noqa: ANN401, any field
    """The value of a field that is not as usual, else None. What is usual of client_addr depends on the protocol."""
    if not option.known:
        return None
    usual = DEFAULT_CLIENT_ADDR[row["proto"]] if option.field == "client_addr" else option.default
    value = row.get(option.field, usual)
    return None if value == usual else value


def _server_line(server: Row) -> str:
    name, stats = server_text(server), server["stats"]
    line = f"  -> {name:<28} {'FullNat':<7} {server['weight']:<6} {stats['active']:<10} {stats['inactive']:<10}"
    return f"{line} overload" if server.get("overloaded") else line


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


def acl_text(services: Iterable[Row], which: Literal["deny", "allow"]) -> str:
    """-B and -W."""
    text = f"{'PROTO':<8} {'VIP:VPORT':<30} {'BLACKLIST' if which == 'deny' else 'WHITELIST':<30}\n"
    for service in sorted(services, key=service_key):
        for entry in service[which]:
            text += f"{service['proto'].upper():<8} {service_text(service):<30} {_subject(entry):<30}\n"
    return text


def _subject(entry: str) -> str:
    """A prefix as short as it can be, or ipset:NAME."""
    if entry.startswith("set:"):
        return f"ip{entry}"
    host, _, plen = entry.partition("/")
    return host if plen in ("", str(addresses.bits(host))) else entry


def save_text(services: Iterable[Row]) -> str:
    """-S: the commands that make these services, local addresses and servers again."""
    lines = []
    for service in sorted(services, key=service_key):
        name = f"{OPTIONS[service['proto'] + '-service'].shown} {service_text(service)}"
        lines.append(f"-A {name}{_words(SHAPE, service, service)}")
        lines += [f"-U {name} -k {_subject(entry)}" for entry in service.get("deny", ())]
        lines += [f"-O {name} -2 {_subject(entry)}" for entry in service.get("allow", ())]
        lines += [f"-P {name} -z {lip['addr']} -F {lip['port']}" for lip in service["lips"]]
        lines += [
            f"-a {name} -r {server_text(rs)} -b{_words(SERVER, rs, service)}"
            for rs in sorted(service["servers"], key=server_key)
        ]
    return "".join(line + "\n" for line in lines)


def timeout_text(timeouts: Mapping[str, int]) -> str:
    """-l --timeout, as the kernel's ipvsadm prints it."""
    return f"Timeout (tcp tcpfin udp): {timeouts['established']} {timeouts['fin_wait']} {timeouts['udp_normal']}\n"
