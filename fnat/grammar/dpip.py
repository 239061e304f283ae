"""The language of DPVS's dpip, FullNAT part: link, addr, route, neigh -> changes or a listing, and its exact text.

VERBS holds every command with what may follow it; parsing, -h, the manual page and completion come from it. Options may
stand anywhere (`dpip link show -s`). What the tables do not know is refused with the reason and the way out; an option
is accepted only where it changes what is shown.

Without -4 or -6 addresses and neighbours of both families are shown, and IPv4 routes, as iproute2 has it. -4 and -6 say
of which family what is written must be.

Different from DPVS on purpose: one neighbour is one line (workers share the table; `core` is always 0), `addr show -v`
has no `[lcore]` for the same reason, `route show` tells in `proto` where a route comes from, `--json` exists, `-i`
repeats every listing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from fnat import addresses
from fnat.addresses import Family
from fnat.grammar import (
    Change,
    Row,
    Usage,
    address,
    family_of_default,
    ipset,
    mac,
    near,
    network,
    number,
    prefix,
    steering_text,
)
from fnat.grammar.manual import EXIT_CODES, Entries, Manual

# ---- words ----


@dataclass(frozen=True)
class Option:
    """An option; value: what follows it, as the help writes it."""

    letter: str
    long: str
    help: str
    value: str = ""
    choices: tuple[str, ...] = ()


OPTIONS = (
    Option("s", "stats", "counters; of addresses: local ports in use, free, and how often none was free"),
    Option("v", "verbose", "more: driver, kernel device, mode (native or generic XDP, zero-copy), queues, steering"),
    Option("i", "interval", "the listing again each SEC seconds; of `link show -s`: rates", "SEC"),
    Option("c", "count", "with -i: N times", "N"),
    Option("C", "color", "colour the state of a link, on a terminal"),
    Option("4", "4", "IPv4 only"),
    Option("6", "6", "IPv6 only; without -4 or -6 `route show` shows IPv4, `addr show` and `neigh show` both"),
    Option("f", "family", "the same in words", "inet|inet6", ("inet", "inet6")),
    Option("", "json", "what the API gives"),
    Option("V", "version", "the version"),
    Option("h", "help", "this text"),
)
_BY_WORD = {f"-{o.letter}": o for o in OPTIONS if o.letter} | {f"--{o.long}": o for o in OPTIONS if len(o.long) > 1}
_REFUSED_OPTIONS = {
    "-F": ("fnat has nothing to force", "leave it out"),
    "--force": ("fnat has nothing to force", "leave it out"),
}
_REFUSED_OBJECTS = {
    "vlan": "make the VLAN device with `ip link` and give it to fnat as a port",
    "tunnel": "make the tunnel with `ip tunnel`",
    "qsch": "shape with `tc` on the kernel device",
    "cls": "classify with `tc` on the kernel device",
    "ipv6": "see /metrics for fnat's counters, and `nstat` for the host's",
    "iftraf": "see `fnat conn show` or /metrics",
    "eal-mem": "there is no DPDK memory; see `fnat status`",
    "flow": "what fnat does not own goes to the kernel; `route add IP/32 dev PORT scope kni_host` carves one out",
    "maddr": "see `ip maddr`",
    "lldp": "run lldpd on the kernel device",
}
_REFUSED_LINK = {
    "promisc": "fnat sees what the kernel device receives; use `ip link set DEVICE promisc on`",
    "allmulticast": "use `ip link set DEVICE allmulticast on`",
    "forward2kni": "copies of all traffic are not in fnat",
    "tc-egress": "shape with `tc` on the kernel device",
    "tc-ingress": "police with `tc` on the kernel device",
    "lldp": "run lldpd on the kernel device",
    "addr": "use `ip link set DEVICE address MAC`, then start fnat again",
}
_ALIASES = {"list": "show", "change": "set"}
_MEANT = {"gw": "via", "gateway": "via", "mac": "lladdr", "if": "dev", "port": "dev"}  # in other languages
_FAMILIES = {"inet": "4", "inet6": "6"}
SCOPES = ("host", "kni_host", "link", "global")


@dataclass(frozen=True)
class Verb:
    """OBJECT VERB, what must follow, then KEY VALUE pairs and bare FLAGs in any order. `refused`: keys of DPVS that
    fnat has not, and what to do instead."""

    what: str
    name: str
    help: str
    args: str = ""
    valued: Mapping[str, str] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()  # options besides -4, -6 and -f
    refused: Mapping[str, str] = field(default_factory=dict)
    choices: tuple[str, ...] = ()  # of the last of `args`


_DEV = {"dev": "PORT"}
_REPEAT = ("interval", "count", "json")
_ROUTE: dict[str, Any] = {
    "args": "PREFIX|default",
    "valued": {"via": "GATEWAY", "dev": "PORT", "src": "IP", "mtu": "N", "metric": "N", "scope": "|".join(SCOPES)},
    "refused": {"tos": "leave it out", "table": "leave it out", "proto": "leave it out", "local": "say scope host"},
}
VERBS = (
    Verb("link", "show", "ports; `cpu`: workers", "[PORT|cpu|cpuN]", reads=("stats", "verbose", "color", *_REPEAT)),
    Verb("link", "set", "take a port into use or out of use", "PORT link up|down", choices=("up", "down")),
    Verb("addr", "add", "own an address; sapool: for use as a LIP", "IP[/PLEN]",
         {**_DEV, "scope": "global", "valid_lft": "forever", "prefered_lft": "forever", "preferred_lft": "forever"},
         ("sapool",), ("dev",), refused={"broadcast": "leave it out"}),
    Verb("addr", "del", "give an address up", "IP[/PLEN]", _DEV, needs=("dev",)),
    Verb("addr", "flush", "give up the addresses of a port", valued=_DEV, needs=("dev",)),
    Verb("addr", "show", "owned addresses", valued=_DEV, reads=("stats", "verbose", *_REPEAT)),
    Verb("route", "add", "add a route; scope kni_host: hand to the kernel", **_ROUTE),
    Verb("route", "set", "put this route in the place of the one with the same prefix and metric", **_ROUTE),
    Verb("route", "del", "delete a route; what else is given must agree", **_ROUTE),
    Verb("route", "flush", "delete the routes that were given", valued=_DEV),
    Verb("route", "show", "routes, with where they come from", valued=_DEV, reads=_REPEAT),
    Verb("neigh", "add", "add a static neighbour", "IP", {"lladdr": "MAC", **_DEV}, needs=("lladdr", "dev")),
    Verb("neigh", "del", "forget a neighbour", "IP", {"lladdr": "MAC", **_DEV}, needs=("dev",)),
    Verb("neigh", "show", "neighbours, learned and static", valued=_DEV, reads=_REPEAT),
)  # fmt: skip
OBJECTS = tuple(dict.fromkeys(verb.what for verb in VERBS))


@dataclass(frozen=True)
class Changes:
    """What POST /v1/changes shall do, all of it or nothing."""

    changes: list[Change]


@dataclass(frozen=True)
class Show:
    """What to show; `name` narrows it to a port (link, addr, route, neigh) or a worker's index (cpu)."""

    what: Literal["link", "cpu", "addr", "route", "neigh"]
    name: str | None = None
    stats: bool = False
    verbose: bool = False
    interval: int = 0  # seconds; 0: once, totals
    count: int = 0  # blocks; 0: for ever
    color: bool = False
    json: bool = False
    family: Family | None = None  # None: of both; of route show as text: IPv4


@dataclass(frozen=True)
class Word:
    """A command that needs nothing else."""

    name: Literal["help", "version"]


Command = Changes | Show | Word


@dataclass
class _Line:
    """One command line, taken apart from the left."""

    words: list[str]
    options: dict[str, str] = field(default_factory=dict)
    family: Family | None = None

    def take(self, what: str) -> str:
        if not self.words:
            raise Usage(f"{what} is missing", "-h shows the commands")
        return self.words.pop(0)

    def end(self) -> None:
        if self.words:
            raise Usage(f"unexpected word {self.words[0]!r}", "-h shows the commands")

    def keywords(self, verb: Verb, first: str = "") -> dict[str, str]:
        """KEY VALUE pairs and bare FLAGs up to the end of the line; what `first` names stands among them, and in the
        answer under the key ""."""
        found: dict[str, str] = {}
        valued, flags = verb.valued, verb.flags
        while self.words:
            key = self.words.pop(0)
            if key in verb.refused:
                raise Usage(f"{verb.what} {key} is not in fnat", verb.refused[key])
            if key not in valued and key not in flags and first and "" not in found:
                found[""] = key
                continue
            if key not in valued and key not in flags:
                known = (*valued, *flags)
                meant = f" (did you mean {_MEANT[key]}?)" if _MEANT.get(key) in known else near(key, known)
                if not meant and "dev" in verb.needs and "dev" not in found:
                    meant = " (is dev missing before it?)"
                raise Usage(f"{key!r} is not known here{meant}", f"what may stand here: {' '.join(known)}")
            if key in found:
                raise Usage(f"{key} is given twice", "give it once")
            found[key] = self.take(f"the value of {key}") if key in valued else ""
        if first and "" not in found:
            raise Usage(f"{first} is missing", "-h shows the commands")
        for key in verb.needs:
            if key not in found:
                raise Usage(f"{verb.what} {verb.name} needs {key}", f"add {key} {valued[key]}")
        return found


def parse(words: Sequence[str]) -> Command:
    """One command line without the program's name. Raises Usage."""
    line = _options(words)
    options = line.options
    if "version" in options:
        return Word("version")
    if "help" in options or not line.words:
        return Word("help")
    what = line.take("object")
    if what in _REFUSED_OBJECTS:
        raise Usage(f"{what} is not in fnat", _REFUSED_OBJECTS[what])
    if any(what in (verb.name, *_ALIASES) for verb in VERBS):
        raise Usage(f"{what} is a command, not an object", "the object comes first, as in: link show")
    if what not in OBJECTS:
        known = (*OBJECTS, "ipset")
        raise Usage(f"unknown object {what!r}{near(what, known)}", f"the objects are {' '.join(known)}")
    name = line.take(f"a command after {what}")
    if name == "help":
        return Word("help")
    if what == "link" and line.family == 6:
        raise Usage("-6 means nothing with link", "leave it out")
    verb = _verb(what, _ALIASES.get(name, name))
    command = _READERS[what](verb, line)
    line.end()
    _all_read(options, verb, command)
    return command


def _verb(what: str, name: str) -> Verb:
    known = {verb.name: verb for verb in VERBS if verb.what == what}
    if name in known:
        return known[name]
    if (what, name) == ("addr", "set"):
        raise Usage("addr set is not in fnat: an address has nothing to change", "use addr del and addr add")
    more = " (bonds and slaves are made with `ip link`)" if what == "link" else ""
    message = f"{what} {name} is not in fnat{near(name, known)}"
    raise Usage(message, f"the commands of {what} are {' '.join(known)}{more}")


def _options(words: Sequence[str]) -> _Line:
    """Take the options out, wherever they stand. Short ones may be bundled, a value may be attached."""
    line, rest = _Line([]), list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-") or word == "-":
            line.words.append(word)
            continue
        name, value = word, None
        if word.startswith("--"):
            name, equals, text = word.partition("=")
            value = text if equals else None
        elif len(word) > 2:
            name, tail = word[:2], word[2:]
            if name in _BY_WORD and _BY_WORD[name].value:
                value = tail.removeprefix("=")
            else:
                rest.insert(0, "-" + tail)
        if name in _REFUSED_OPTIONS:
            raise Usage(f"{name}: {_REFUSED_OPTIONS[name][0]}", _REFUSED_OPTIONS[name][1])
        option = _BY_WORD.get(name)
        if option is None or (value is not None and not option.value):
            raise Usage(f"unknown option {word}{near(name, _BY_WORD)}", "-h shows the options")
        if option.value and value is None:
            if not rest:
                raise Usage(f"{name} needs a value", "-h shows the options")
            value = rest.pop(0)
        line.options[option.long] = value or ""
    if (family := line.options.pop("family", None)) is not None:
        if family not in _FAMILIES:
            raise Usage(f"-f {family}: no such family", "say inet or inet6")
        line.options[_FAMILIES[family]] = ""
    if {"4", "6"} <= line.options.keys():
        raise Usage("both families given", "give one, or none for both")
    if line.options.pop("4", None) is not None:
        line.family = 4
    if line.options.pop("6", None) is not None:
        line.family = 6
    return line


def _all_read(options: dict[str, str], verb: Verb, command: Command) -> None:
    """Refuse an option that the command does not read."""
    reads = set(verb.reads)
    if isinstance(command, Show) and command.what == "cpu":
        reads -= {"verbose", "color"}
    for name in options:
        if name not in reads:
            raise Usage(f"--{name} means nothing with {verb.what} {verb.name}", "leave it out")
    if isinstance(command, Show) and command.what == "link" and "interval" in options and "stats" not in options:
        raise Usage("-i without -s", "add -s: rates are shown once each interval")
    if "count" in options and "interval" not in options:
        raise Usage("-c without -i", "add -i SECONDS")
    if "json" in options and ("interval" in options or "color" in options):
        raise Usage("--json with -i or -C", "leave one out")


def _show(line: _Line, what: Literal["link", "cpu", "addr", "route", "neigh"], name: str | None) -> Show:
    options = line.options
    return Show(
        what,
        name,
        stats="stats" in options,
        verbose="verbose" in options,
        interval=number(options["interval"], "-i", 1, 86400) if "interval" in options else 0,
        count=number(options["count"], "-c", 1, 10**9) if "count" in options else 0,
        color="color" in options,
        json="json" in options,
        family=line.family,
    )


def _link(verb: Verb, line: _Line) -> Command:
    if verb.name == "show":
        name = line.words.pop(0) if line.words else None
        if name is not None and line.words and line.words[0] == "status":
            raise Usage("bonds are not in fnat", f"see /proc/net/bonding, and `link show {name}`")
        if name == "cpu":
            return _show(line, "cpu", None)
        if name is not None and name.startswith("cpu") and name[3:].isdigit():
            return _show(line, "cpu", name[3:])
        return _show(line, "link", name)
    port, key = line.take("the port"), line.take("what to set")
    if key in _REFUSED_LINK or key.startswith("bond-"):
        raise Usage(f"link set {key} is not in fnat", _REFUSED_LINK.get(key, "bonds are made with `ip link`"))
    if key != "link":
        raise Usage(
            f"link set {key} is not known", f"write: link set {'PORT' if port == 'link' else port} link up|down"
        )
    if (state := line.take("up or down")) not in ("up", "down"):
        raise Usage(f"link {state!r}", "say up or down")
    return Changes([{"op": "link.set", "port": port, "up": state == "up"}])


def _addr(verb: Verb, line: _Line) -> Command:
    if verb.name == "show":
        return _show(line, "addr", line.keywords(verb).get("dev"))
    if verb.name == "flush":
        return Changes([_of_family({"op": "addr.flush", "port": line.keywords(verb)["dev"]}, line)])
    if "broadcast" in line.words:
        raise Usage("broadcast addresses are not in fnat", "leave broadcast out")
    found = line.keywords(verb, "the address")
    addr, plen = network(found[""], line.family)
    change: Change = {"op": f"addr.{verb.name}", "addr": addr, "plen": plen, "port": found["dev"]}
    if verb.name == "del":
        return Changes([change])
    if found.get("scope", "global") != "global":
        raise Usage(f"addr scope {found['scope']} is not in fnat", "say scope global or leave it out")
    for key in ("valid_lft", "prefered_lft", "preferred_lft"):
        if found.get(key, "forever") != "forever":
            raise Usage(f"{key} {found[key]}: addresses do not expire in fnat", f"say {key} forever or leave it out")
    return Changes([{**change, "sapool": "sapool" in found}])


def _route(verb: Verb, line: _Line) -> Command:
    if verb.name == "show":
        return _show(line, "route", line.keywords(verb).get("dev"))
    if verb.name == "flush":
        return Changes([_of_family({"op": "route.flush", "port": line.keywords(verb).get("dev")}, line)])
    found = line.keywords(verb, "the prefix")
    word = found[""]
    net = prefix(word, line.family or family_of_default(word, found.get("via")))
    family = addresses.family(net)
    if found.get("scope", "link") not in SCOPES:
        raise Usage(f"route scope {found['scope']!r}{near(found['scope'], SCOPES)}", f"say one of {' '.join(SCOPES)}")
    if verb.name != "del" and "via" not in found and "dev" not in found:
        raise Usage(f"route {verb.name} needs via or dev", "add via GATEWAY or dev PORT")
    change: Change = {"op": f"route.{verb.name}", "prefix": net}
    if "via" in found:
        change["gateway"] = address(found["via"], "gateway", family)
    if "dev" in found:
        change["port"] = found["dev"]
    if "src" in found:
        change["src"] = address(found["src"], "src", family)
    if "mtu" in found:
        change["mtu"] = number(found["mtu"], "mtu", addresses.LEAST_MTU[family], 3500)
    if "metric" in found:
        change["metric"] = number(found["metric"], "metric", 0, 2**32 - 1)
    if "scope" in found:
        change["scope"] = found["scope"]
    return Changes([change])


def _neigh(verb: Verb, line: _Line) -> Command:
    if verb.name == "show":
        return _show(line, "neigh", line.keywords(verb).get("dev"))
    found = line.keywords(verb, "the address")
    addr = address(found[""], family=line.family)
    change: Change = {"op": f"neigh.{verb.name}", "addr": addr, "port": found["dev"]}
    return Changes([{**change, "mac": mac(found["lladdr"])} if "lladdr" in found else change])


def _of_family(change: Change, line: _Line) -> Change:
    return change if line.family is None else {**change, "family": line.family}


_READERS: dict[str, Callable[[Verb, _Line], Command]] = {
    "link": _link,
    "addr": _addr,
    "route": _route,
    "neigh": _neigh,
}

# ---- what it says of itself ----


def _synopsis(verb: Verb) -> str:
    """route add PREFIX|default [via GATEWAY] …"""
    keys = [f"{key} {value}" if key in verb.needs else f"[{key} {value}]" for key, value in verb.valued.items()]
    options = [_BY_WORD[f"--{name}"] for name in verb.reads]
    shown = [f"[{f'-{o.letter}' if o.letter else f'--{o.long}'}{' ' + o.value if o.value else ''}]" for o in options]
    return " ".join(filter(None, [verb.what, verb.name, verb.args, *keys, *(f"[{f}]" for f in verb.flags), *shown]))


def refusals() -> Entries:
    entries = list(_REFUSED_OBJECTS.items())
    entries += [(f"link set PORT {key}", fix) for key, fix in _REFUSED_LINK.items()]
    entries += [("link set BOND bond-…", "bonds are made with `ip link`"), ("addr set", "use addr del and addr add")]
    entries += [(f"{v.what} {v.name} {key}", fix) for v in VERBS for key, fix in v.refused.items()]
    return (*entries, *((name, "; ".join(why)) for name, why in _REFUSED_OPTIONS.items()))


def manual() -> Manual:
    """The reference: -h and fnat-dpip(8)."""
    options = tuple(
        (
            f"{f'-{o.letter}, ' if o.letter else ''}--{o.long} {o.value}".rstrip() if len(o.long) > 1 else f"-{o.long}",
            o.help,
        )
        for o in OPTIONS
    )
    return Manual(
        "fnat-dpip",
        "ports, addresses, routes and neighbours of a running fnat in the language of DPVS's dpip, FullNAT part",
        ("fnat-dpip [OPTIONS] OBJECT COMMAND",),
        (
            ("Commands", (*((_synopsis(verb), verb.help) for verb in VERBS), *ipset.COMMANDS)),
            ("Options, which may stand anywhere", options),
            ("Refused", refusals()),
            (
                "Notes",
                "list means show, change means set. Ports have the names they were given to `fnat run` (dpdk0, "
                "wan, …). The environment variable FNAT_SOCKET names the socket of another fnat.",
            ),
            ("Exit codes", EXIT_CODES),
        ),
        ("fnat(1)", "fnat-ipvsadm(8)", "fnat.toml(5)"),
    )


def complete(words: Sequence[str], incomplete: str) -> list[tuple[str, str]]:
    """What may stand next on an unfinished command line: (word, what it is)."""
    if words and (option := _BY_WORD.get(words[-1])) and option.value:
        return [(choice, "") for choice in option.choices if choice.startswith(incomplete)]
    plain: list[str] = []
    valued = False
    for word in words:
        if not valued and not word.startswith("-"):
            plain.append(word)
        valued = word in _BY_WORD and bool(_BY_WORD[word].value)
    what, name = (*plain, "", "")[:2]
    verb = next((v for v in VERBS if v.what == what and v.name == _ALIASES.get(name, name)), None)
    found: list[tuple[str, str]] = []
    if not plain:
        found = [(word, "") for word in OBJECTS]
    elif verb is None:
        found = [(v.name, v.help) for v in VERBS if v.what == what] if len(plain) == 1 else []
    elif plain[-1] in verb.valued:
        found = [(word, "") for word in verb.valued[plain[-1]].split("|") if word.islower()]
    elif plain[-1] in verb.args.split():
        found = [(word, "") for word in verb.choices]
    else:
        found = [(key, value) for key, value in verb.valued.items() if key not in plain]
        found += [(key, "") for key in verb.flags if key not in plain]
        found += [(word, "") for word in verb.args.split()[1:-1] if word not in plain and len(plain) > 2]
    for option in OPTIONS:
        if verb is None or option.long in (*verb.reads, "4", "6", "family"):
            found += [(word, option.help) for word, o in _BY_WORD.items() if o is option and word not in words]
    return [(word, help) for word, help in found if word.startswith(incomplete)]


# ---- text ----

_PORT_STATS = (("ipackets", "opackets", "ibytes", "obytes"), ("ierrors", "oerrors", "imissed", "rx_nombuf"))
_PORT_RATES = (("ipackets/pps", "opackets/pps", "ibytes/Bps", "obytes/Bps"),
               ("ierrors/pps", "oerrors/pps", "imissed/pps", "rx_nombuf/pps"))  # fmt: skip


def link_text(ports: Iterable[Row], show: Show, before: Mapping[str, Row] | None = None) -> str:
    """link show; with `before` (port name -> its stats one interval ago) rates instead of totals."""
    text = ""
    for port in ports:
        stats = port["stats"]
        text += f"{port['id'] + 1}: {port['name']}: socket {port.get('numa') or 0} mtu {port['mtu']} "
        text += f"rx-queue {port['queues']} tx-queue {port['queues']}\n"
        text += (
            f"    {_colored(port['up'], show.color)} {port.get('speed') or 0} Mbps {_duplex(port)} {_autoneg(port)}\n"
        )
        text += f"    addr {port['mac'].upper()}\n"
        if before is not None:
            past = before.get(port["name"], stats)
            for titles, keys in zip(_PORT_RATES, _PORT_STATS, strict=True):
                text += _columns(titles, 16) + _columns(
                    [round((stats[key] - past[key]) / show.interval) for key in keys], 16
                )
        elif show.stats:
            for keys in _PORT_STATS:
                text += _columns(keys, 20) + _columns([stats[key] for key in keys], 20)
            frames = port["frames"]
            text += _columns(("mbuf-avail", "mbuf-inuse"), 20) + _columns((frames["avail"], frames["inuse"]), 20)
        if show.verbose:
            zero_copy, exclusive = ("yes" if port.get(key) else "no" for key in ("zero_copy", "exclusive"))
            text += f"    driver {port['kind']} device {port['device']} mode {port['mode']} "
            text += f"zero-copy {zero_copy} exclusive {exclusive}\n"
            text += f"    steering {steering_text(port['steering'])}\n"
    return text


def _columns(values: Iterable[object], width: int) -> str:
    return "    " + "".join(f"{value!s:<{width}}" for value in values) + "\n"


def _colored(up: bool, color: bool) -> str:
    word = "UP" if up else "DOWN"
    return f"\x1b[{32 if up else 31}m{word}\x1b[0m" if color else word


def _duplex(port: Row) -> str:
    duplex = str(port.get("duplex") or "unknown")
    return duplex if duplex.endswith("-duplex") else f"{duplex}-duplex"


def _autoneg(port: Row) -> str:
    return {True: "auto-nego", False: "fixed-nego", None: "unknown-nego"}[port.get("autoneg")]


def cpu_text(workers: Iterable[Row], ports: Sequence[Row], show: Show) -> str:
    """link show cpu: the workers and the queues they poll (worker N polls queue N of each port that has one)."""
    text = "<< Controll Plane >>\n<< Data Plane >>\n"
    for worker in workers:
        index, counters = worker["index"], worker["counters"]
        queues = " ".join(f"{port['name']}:rx{index};tx{index}" for port in ports if index < port["queues"])
        cpu = worker["cpu"] if worker.get("cpu") is not None else "*"
        text += f"{index}: cpu{cpu}: socket {worker.get('numa') or 0}\n    queues {queues}\n"
        if show.stats:
            text += _columns(("lcore_loop", "sleeps"), 20) + _columns((counters["steps"], counters["sleeps"]), 20)
            text += _columns(("ipackets", "ibytes", "opackets", "obytes"), 20)
            text += _columns([counters[key] for key in ("rx_packets", "rx_bytes", "tx_packets", "tx_bytes")], 20)
    return text + "<< Isolate RX Lcores >>\n"


def _inet(address: str) -> str:
    return {4: "inet", 6: "inet6"}[addresses.family(address)]


def of_family(rows: Iterable[Row], key: str, show: Show) -> list[Row]:
    """The rows that a listing of one family shows."""
    wanted = show.family or (4 if show.what == "route" and not show.json else None)
    return [row for row in rows if wanted in (None, addresses.family(row[key]))]


def addr_text(rows: Iterable[Row], show: Show) -> str:
    """addr show."""
    text = ""
    for row in rows:
        text += f"{_inet(row['addr'])} {row['addr']}/{row['plen']} scope {row['scope']} {row['port']}\n"
        text += "     valid_lft forever preferred_lft forever"
        if row["sapool"] and (show.stats or show.verbose):
            text += f" sa_used {row['sa_used']} sa_free {row['sa_free']} sa_miss {row['sa_miss']}"
        text += "\n"
    return text


def route_text(routes: Iterable[Row], ports: Iterable[Row]) -> str:
    """route show; a route without an MTU of its own shows its port's."""
    mtus = {port["name"]: port["mtu"] for port in ports}
    text = ""
    for row in routes:
        if addresses.family(row["prefix"]) == 6:  # DPVS writes these without what is not set
            words = [
                f"inet6 {row['prefix']}",
                *(f"{w} {row[k]}" for w, k in (("via", "gateway"), ("src", "src")) if row[k]),
            ]
            words += [f"dev {row['port'] or '-'} mtu {row['mtu'] or mtus.get(row['port'], 0)} scope {row['scope']}"]
            words += [f"metric {row['metric']}"] if row["metric"] else []
            text += " ".join(words) + "\n"
            continue
        gateway, source, mtu = (
            row["gateway"] or "0.0.0.0",
            row["src"] or "0.0.0.0",
            row["mtu"] or mtus.get(row["port"], 0),
        )
        text += f"inet {row['prefix']} via {gateway} src {source} dev {row['port'] or '-'} mtu {mtu} tos 0 "
        text += f"scope {row['scope']} metric {row['metric']} proto {row['proto']}\n"
    return text


def neigh_text(neighbours: Iterable[Row]) -> str:
    """neigh show; DPVS's spelling of "incomplete" is kept for its parsers."""
    text = ""
    for row in neighbours:
        mac = f" {row['mac']}   " if row["mac"] else f"incomplate{'':<23}"
        gap = "  " if row["mac"] else "   "
        text += f"ip: {row['addr']:<48} mac:{mac}state: {row['state']:<12}{gap}dev: {row['port']}  core: 0"
        text += "  [static]\n" if row["static"] else "\n"
    return text
