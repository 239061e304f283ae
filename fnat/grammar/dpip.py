"""The language of DPVS's dpip, FullNAT part: link, addr, route, neigh -> changes or a listing, and its exact text.

Options may stand anywhere (`dpip link show -s`). What the tables below do not know is refused with the reason and the
way out; an option is accepted only where it changes what is shown.

Without -4 or -6 addresses and neighbours of both families are shown, and IPv4 routes, as iproute2 has it. -4 and -6 say
of which family what is written must be.

Different from DPVS on purpose: one neighbour is one line (workers share the table; `core` is always 0), `addr show -v`
has no `[lcore]` for the same reason, `route show` tells in `proto` where a route comes from, `--json` exists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from fnat import addresses
from fnat.addresses import Family
from fnat.grammar import (
    Change,
    Row,
    Usage,
    address,
    family_of_default,
    mac,
    network,
    number,
    prefix,
    steering_text,
)

# ---- words ----

_FLAGS = {
    "-v": "verbose", "--verbose": "verbose", "-s": "stats", "--stats": "stats", "-C": "color", "--color": "color",
    "-h": "help", "--help": "help", "-V": "version", "--version": "version", "-4": "4", "-6": "6", "--json": "json",
}  # fmt: skip
_VALUES = {
    "-i": "interval",
    "--interval": "interval",
    "-c": "count",
    "--count": "count",
    "-f": "family",
    "--family": "family",
}
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
_FAMILIES = {"inet": "4", "inet6": "6"}
SCOPES = ("host", "kni_host", "link", "global")


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

    def keywords(self, valued: Sequence[str], flags: Sequence[str] = ()) -> dict[str, str]:
        """KEY VALUE pairs and bare FLAGs up to the end of the line."""
        found: dict[str, str] = {}
        while self.words:
            key = self.words.pop(0)
            if key not in valued and key not in flags:
                known = " ".join((*valued, *flags))
                raise Usage(f"{key!r} is not known here", f"what may stand here: {known}")
            if key in found:
                raise Usage(f"{key} is given twice", "give it once")
            found[key] = self.take(f"the value of {key}") if key in valued else ""
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
    if what not in _OBJECTS:
        raise Usage(f"unknown object {what!r}", "the objects are link addr route neigh")
    verb = line.take(f"a command after {what}")
    if verb == "help":
        return Word("help")
    if what == "link" and line.family == 6:
        raise Usage("-6 means nothing with link", "leave it out")
    verb = _ALIASES.get(verb, verb)
    command = _OBJECTS[what](verb, line)
    line.end()
    _all_read(options, command, f"{what} {verb}")
    return command


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
            if name in _VALUES:
                value = tail
            else:
                rest.insert(0, "-" + tail)
        if name in _REFUSED_OPTIONS:
            raise Usage(f"{name}: {_REFUSED_OPTIONS[name][0]}", _REFUSED_OPTIONS[name][1])
        if name in _FLAGS and value is None:
            line.options[_FLAGS[name]] = ""
        elif name in _VALUES:
            if value is None and not rest:
                raise Usage(f"{name} needs a value", "-h shows the options")
            line.options[_VALUES[name]] = rest.pop(0) if value is None else value
        else:
            raise Usage(f"unknown option {word}", "-h shows the options")
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


def _all_read(options: dict[str, str], command: Command, shown: str) -> None:
    """Refuse an option that the command does not read."""
    reads: set[str] = set()
    if isinstance(command, Show):
        reads = {"json"} | {
            "link": {"stats", "verbose", "color", "interval", "count"},
            "addr": {"stats", "verbose"},
            "cpu": {"stats"},
        }.get(command.what, set())
    for name in options:
        if name not in reads:
            raise Usage(f"--{name} means nothing with {shown}", "leave it out")
    if "interval" in options and "stats" not in options:
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


def _unknown(what: str, verb: str, known: str) -> Usage:
    return Usage(f"{what} {verb} is not in fnat", f"the commands of {what} are {known}")


def _required(found: dict[str, str], key: str, shown: str) -> str:
    if key not in found:
        raise Usage(f"{shown} needs {key}", f"add {key} {'PORT' if key == 'dev' else key.upper()}")
    return found[key]


def _link(verb: str, line: _Line) -> Command:
    if verb == "show":
        name = line.words.pop(0) if line.words else None
        if name is not None and line.words and line.words[0] == "status":
            raise Usage("bonds are not in fnat", f"see /proc/net/bonding, and `link show {name}`")
        if name == "cpu":
            return _show(line, "cpu", None)
        if name is not None and name.startswith("cpu") and name[3:].isdigit():
            return _show(line, "cpu", name[3:])
        return _show(line, "link", name)
    if verb != "set":
        raise _unknown("link", verb, "show and set (bonds and slaves are made with `ip link`)")
    port, key = line.take("the port"), line.take("what to set")
    if key in _REFUSED_LINK or key.startswith("bond-"):
        raise Usage(f"link set {key} is not in fnat", _REFUSED_LINK.get(key, "bonds are made with `ip link`"))
    if key != "link":
        raise Usage(f"link set {key} is not known", "write: link set PORT link up|down")
    if (state := line.take("up or down")) not in ("up", "down"):
        raise Usage(f"link {state!r}", "say up or down")
    return Changes([{"op": "link.set", "port": port, "up": state == "up"}])


def _addr(verb: str, line: _Line) -> Command:
    if verb == "show":
        return _show(line, "addr", line.keywords(["dev"]).get("dev"))
    if verb == "flush":
        flush = {"op": "addr.flush", "port": _required(line.keywords(["dev"]), "dev", "addr flush")}
        return Changes([_of_family(flush, line)])
    if verb == "set":
        raise Usage("addr set is not in fnat: an address has nothing to change", "use addr del and addr add")
    if verb not in ("add", "del"):
        raise _unknown("addr", verb, "add del flush show")
    addr, plen = network(line.take("the address"), line.family)
    if verb == "del":
        found = line.keywords(["dev"])
        return Changes([{"op": "addr.del", "addr": addr, "plen": plen, "port": _required(found, "dev", "addr del")}])
    found = line.keywords(["dev", "scope", "valid_lft", "prefered_lft", "preferred_lft", "broadcast"], ["sapool"])
    if "broadcast" in found:
        raise Usage("broadcast addresses are not in fnat", "leave broadcast out")
    if found.get("scope", "global") != "global":
        raise Usage(f"addr scope {found['scope']} is not in fnat", "say scope global or leave it out")
    for key in ("valid_lft", "prefered_lft", "preferred_lft"):
        if found.get(key, "forever") != "forever":
            raise Usage(f"{key} {found[key]}: addresses do not expire in fnat", f"say {key} forever or leave it out")
    port = _required(found, "dev", "addr add")
    return Changes([{"op": "addr.add", "addr": addr, "plen": plen, "port": port, "sapool": "sapool" in found}])


def _route(verb: str, line: _Line) -> Command:
    if verb == "show":
        return _show(line, "route", line.keywords(["dev"]).get("dev"))
    if verb == "flush":
        return Changes([_of_family({"op": "route.flush", "port": line.keywords(["dev"]).get("dev")}, line)])
    if verb not in ("add", "del", "set"):
        raise _unknown("route", verb, "add del set flush show")
    word = line.take("the prefix")
    found = line.keywords(["via", "dev", "src", "mtu", "metric", "scope", "tos", "table", "proto"], ["local"])
    net = prefix(word, line.family or family_of_default(word, found.get("via")))
    family = addresses.family(net)
    for key, fix in (
        ("tos", "leave it out"),
        ("table", "leave it out"),
        ("proto", "leave it out"),
        ("local", "say scope host"),
    ):
        if key in found:
            raise Usage(f"route {key} is not in fnat", fix)
    if found.get("scope", "link") not in SCOPES:
        raise Usage(f"route scope {found['scope']!r}", "say one of " + " ".join(SCOPES))
    if verb != "del" and "via" not in found and "dev" not in found:
        raise Usage(f"route {verb} needs via or dev", "add via GATEWAY or dev PORT")
    change: Change = {"op": f"route.{verb}", "prefix": net}
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


def _neigh(verb: str, line: _Line) -> Command:
    if verb == "show":
        return _show(line, "neigh", line.keywords(["dev"]).get("dev"))
    if verb not in ("add", "del"):
        raise _unknown("neigh", verb, "add del show")
    addr = address(line.take("the address"), family=line.family)
    found = line.keywords(["lladdr", "dev"])
    port = _required(found, "dev", f"neigh {verb}")
    if verb == "add" or "lladdr" in found:
        return Changes(
            [{"op": f"neigh.{verb}", "addr": addr, "mac": mac(_required(found, "lladdr", "neigh add")), "port": port}]
        )
    return Changes([{"op": "neigh.del", "addr": addr, "port": port}])


def _of_family(change: Change, line: _Line) -> Change:
    return change if line.family is None else {**change, "family": line.family}


_OBJECTS: dict[str, Callable[[str, _Line], Command]] = {"link": _link, "addr": _addr, "route": _route, "neigh": _neigh}

HELP = """\
Usage: fnat-dpip [OPTIONS] OBJECT COMMAND      the FullNAT part of DPVS's dpip

  link  show [PORT] [-s [-i SEC [-c COUNT]]] [-v] [-C]
        show cpu | cpuN [-s]
        set PORT link up|down
  addr  add IP[/PLEN] dev PORT [sapool] [scope global] [valid_lft forever] [prefered_lft forever]
        del IP[/PLEN] dev PORT
        flush dev PORT
        show [dev PORT] [-s] [-v]
  route add|set|del PREFIX|default [via GATEWAY] [dev PORT] [src IP] [mtu N] [metric N]
                    [scope host|kni_host|link|global]
        flush [dev PORT]
        show [dev PORT]
  neigh add IP lladdr MAC dev PORT
        del IP dev PORT
        show [dev PORT]

list means show, change means set. Options may stand anywhere:
  -s --stats     counters; of addresses: local ports in use, free, and how often none was free
  -v --verbose   more: driver, kernel device, mode (native or generic XDP, zero-copy), queues, steering
  -i --interval SEC, -c --count N   rates each SEC seconds, N times
  -C --color     colour the state of a link
  -4 -6, -f inet|inet6   one family; without it `route show` shows IPv4, `addr show` and `neigh show` both
  --json         what the API gives
  -V --version   -h --help
Ports have the names they were given to `fnat run` (dpdk0, wan, …).
The environment variable FNAT_SOCKET names the socket of another fnat.
Exit codes: 0 done, 1 failed, 2 wrong usage, 3 fnat is not running.
"""

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
