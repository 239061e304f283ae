"""The configuration file: TOML -> Config of one node, and Config -> the same TOML: parse(dump(c)) == c.

One file serves the whole cluster; a node finds itself by --node, by host name, or by being the only one. What is of a
node (ports, LIPs, addresses, routes, neighbours) stands in its table, services are of all nodes; of the LIPs that a
service names each node takes its own. Every error names file, line if known, path, value, what is allowed, and the
mend; all that are found are told at once. A key that does not exist is an error with the nearest word that does; a key
of a feature that this version lacks says so. Nothing is ignored.

A service key that is a field of the model needs no line here, but for what is written otherwise than it is kept: times
("10m") and counts ("500k"), see _TIMES and _LIMITS.
"""

from __future__ import annotations

import difflib
import importlib
import ipaddress
import json
import re
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

import rtoml
from pydantic import ValidationError

from fnat import addresses as words
from fnat import plan, sets
from fnat.errors import ChangeError, ConfigError
from fnat.model import (
    CHANGE,
    CLIENT_ADDRS,
    MAX_SECONDS,
    NODE_WORDS,
    PORT_NAME,
    PROTOS,
    Acl,
    Address,
    Api,
    Change,
    Config,
    Host,
    Key,
    LocalAddress,
    Port,
    RealServer,
    Route,
    Service,
    Services,
    SetAdd,
    Table,
    Timeouts,
    ip,
    no_rs,
)

T = TypeVar("T")

MAX_LIPS = 4096  # of one node
MOST_ERRORS = 100  # told at once
_UNITS = {"h": 3600, "m": 60, "s": 1}
_SHORTHANDS = {
    "half_closed": ("fin_wait", "close_wait"),
    "syn": ("syn_sent", "syn_recv"),
    "udp": ("udp_oneway", "udp_normal"),
}
_LIMITS = {  # key of `limits` -> field of the service
    "half_open": "half_open",
    "conns": "max_conns",
    "new_per_s": "new_per_s",
    "per_client": "per_client",
}
_TIMES = ("conn_timeout", "slow_start", "persistent")  # fields of the service that are seconds
_SERVER_FIELDS = plan.SERVER_FIELDS
_COUNTS = ("upper", "lower", "max_new_per_s")  # fields of a server that are counts
_LISTS = ("deny", "allow")  # keys of `acl`
_PLAIN = tuple(f for f in plan.SERVICE_FIELDS if f not in ("client_addr", *_LISTS, *_LIMITS.values()))
_SERVICE_KEYS = ("listen", "proto", "port", *_PLAIN, "client_addr", "limits", "acl", "lips", "rs")
_PORT_KEYS = ("nic", "mac", "pci", "up", "addresses", "sapool", "neighbours")
_NIC = ("nic", "mac", "pci")
_KEYS: dict[str, tuple[str, ...]] = {
    "": ("version", "node", "host", "acl", "set", "api", "service"),
    "api": tuple(Api.model_fields),
    "acl": ("deny", "allow"),
    "set.*": ("type", "range", "entries", "file"),
    "host": tuple(Host.model_fields),
    "host.timeouts": (*Timeouts.model_fields, *_SHORTHANDS),
    "service.*": _SERVICE_KEYS,
    "service.*.limits": tuple(_LIMITS),
    "service.*.client_addr": PROTOS,
    "service.*.rs.*": _SERVER_FIELDS,
    "node.*.*": _PORT_KEYS,
    "node.*.routes": tuple(Route.model_fields),
}
_LATER: dict[str, tuple[str, ...]] = {
    "": ("ha",),
    "service.*": ("check", "panic", "persist"),
}


@dataclass
class Loaded:
    """A config, and what is allowed but suspicious."""

    config: Config
    warnings: list[str] = field(default_factory=list)
    tables: dict[Key, str] = field(default_factory=dict)  # service -> its table's word in the file


def load(path: str | Path, node: str | None = None) -> Loaded:
    """Read the file. Raises ConfigError."""
    return parse(read(Path(path)), str(path), node)


def read(path: Path) -> str:
    """The text of a file. Raises ConfigError."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError("FN-1101", f"{path}: {error.strerror}", "give the path of a readable file") from None
    except UnicodeDecodeError:
        raise ConfigError("FN-1101", f"{path}: not UTF-8 text", "save the file as UTF-8") from None


def parse(text: str, file: str = "<config>", node: str | None = None) -> Loaded:
    """Config of one node from the text of a file. Raises ConfigError."""
    return _Reader(text, file).read(_data(text, file), node)


def _data(text: str, file: str) -> dict[str, Any]:
    try:
        return rtoml.loads(text)
    except rtoml.TomlParsingError as error:
        raise ConfigError("FN-1102", f"{file}: {error}", "mend the syntax there (https://toml.io)") from None


def nodes(text: str) -> list[str]:
    """Names of the nodes in the text of a file. Raises ConfigError."""
    table = _data(text, "<config>").get("node", {})
    return list(table) if isinstance(table, dict) else []


def resolve_ports(config: Config, sysfs: Path = Path("/sys/class/net")) -> list[dict[str, str]]:
    """The ports for the data plane: [{"name", "kind": "xdp", "device"}]. Looks at the NICs of this machine."""
    here = {device.name: _nic_of(device) for device in sorted(sysfs.iterdir())}
    found: list[dict[str, str]] = []
    for port in config.ports:
        given = {key: value for key in _NIC if (value := getattr(port, key)) is not None}
        devices = [name for name, nic in here.items() if all(nic[key] == given[key] for key in given)]
        if not devices:
            _no_such_nic(port, given, here)
        if len(devices) > 1:
            what = " and ".join(f"{key} {value}" for key, value in given.items())
            raise ConfigError(
                "FN-1110",
                f"port {port.name}: {what} is that of {', '.join(devices)}",
                "give the kernel's name (nic), too",
            )
        if other := next((p for p in found if p["device"] == devices[0]), None):
            raise ConfigError(
                "FN-1110", f"ports {other['name']} and {port.name} are both {devices[0]}", "give each port its own NIC"
            )
        found.append({"name": port.name, "kind": "xdp", "device": devices[0]})
    if config.mgmt:
        _spare_management(config.mgmt, found)
    return found


def _nic_of(device: Path) -> dict[str, str]:
    """How the file may name a device of sysfs. The PCI function is the last one on the way to a virtio device, too."""
    try:
        mac = (device / "address").read_text().strip()
    except OSError:
        mac = ""
    functions = re.findall(r"/([0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7])(?=/|$)", str((device / "device").resolve()))
    return {"nic": device.name, "mac": mac, "pci": functions[-1] if functions else ""}


def _no_such_nic(port: Port, given: Mapping[str, str], here: Mapping[str, Mapping[str, str]]) -> NoReturn:
    """One of what is given is wrong, or they disagree."""
    nic = next((nic for nic in here.values() if any(nic[key] == given[key] for key in given)), None)
    if nic is not None:
        right = next(key for key in given if nic[key] == given[key])
        wrong = next(key for key in given if nic[key] != given[key])
        raise ConfigError(
            "FN-1110",
            f"port {port.name}: {right} {given[right]} has {wrong} {nic[wrong] or 'none'}, not {given[wrong]}",
            "correct one of the two; they must agree",
        )
    key, value = next(iter(given.items()))
    what = f"nic {value}" if key == "nic" else f"NIC with {key} {value}"
    known = sorted({nic[key] for nic in here.values() if nic[key]})
    fix = f"{_near(value, known)}there are: {', '.join(known) or 'none'}"
    raise ConfigError("FN-1110", f"port {port.name}: there is no {what} on this machine", fix)


def _spare_management(mgmt: str, ports: list[dict[str, str]]) -> None:
    """Refuse a port whose NIC carries the management address."""
    pyroute2: Any = importlib.import_module("pyroute2")  # slow, and wanted here only
    with pyroute2.IPRoute() as netlink:
        family = {4: socket.AF_INET, 6: socket.AF_INET6}[words.family(mgmt)]
        holders = {message["index"] for message in netlink.get_addr(family=family, address=mgmt)}
    for port in ports:
        if socket.if_nametoindex(port["device"]) in holders:
            raise ConfigError(
                "FN-1110",
                f"port {port['name']}: {port['device']} carries mgmt = {mgmt}, which fnat never touches",
                "use another NIC, or leave out mgmt to share this one",
            )


@dataclass
class _Node:
    """What the file says of a node. changes: its addresses, routes and neighbours, each with its path."""

    name: str | None = None
    mgmt: str | None = None
    ports: list[Port] = field(default_factory=list)
    lips: dict[str, LocalAddress] = field(default_factory=dict)
    down: list[str] = field(default_factory=list)
    changes: list[tuple[str, Change]] = field(default_factory=list)


class _Reader:
    """One reading of one file: it knows the text for line numbers, and goes on after an error where it can."""

    def __init__(self, text: str, file: str) -> None:
        self.text = text
        self.file = file
        self.warnings: list[str] = []
        self.errors: list[ConfigError] = []
        self._lines: dict[tuple[str, ...], int] | None = None

    # ---- errors ----

    def fail(self, code: str, path: str, problem: str, fix: str) -> NoReturn:
        if self._lines is None:
            self._lines = _lines_of(self.text)
        parts = tuple(_split(path))
        line = next((at for n in range(len(parts), 0, -1) if (at := self._lines.get(parts[:n])) is not None), None)
        where = f"{self.file}:{line}" if line else self.file
        raise ConfigError(code, f"{where}: {path}: {problem}" if path else f"{where}: {problem}", fix)

    def tried(self, work: Callable[..., T], *arguments: Any) -> T | None:  # noqa: ANN401, of the work
        """Its result; None after an error, which is kept: the reading goes on."""
        try:
            return work(*arguments)
        except ConfigError as error:
            self.errors.append(error)
            return None

    def raise_all(self) -> None:
        if self.errors:
            first, *others = self.errors[:MOST_ERRORS]
            first.others = tuple(others)
            raise first

    def key(self, path: str, key: str, shape: str) -> None:
        """Refuse a key that the table of this shape does not have."""
        if key in _KEYS[shape]:
            return
        at = _join(path, key)
        if key in _LATER.get(shape, ()):
            self.fail("FN-1111", at, "not available in this version", "remove the line")
        self.fail("FN-1103", at, "no such key", _nearest(key, _KEYS[shape]))

    def keys(self, path: str, table: Mapping[str, Any], shape: str) -> None:
        for key in table:
            if key not in _KEYS[shape]:
                self.tried(self.key, path, key, shape)

    def table(self, path: str, value: object) -> dict[str, Any]:
        if not isinstance(value, dict):
            self.fail("FN-1104", path, f"{value!r} is not a table", f"write [{path}] or {path} = {{ … }}")
        return cast(dict[str, Any], value)

    def tables(self, path: str, value: object) -> dict[str, dict[str, Any]]:
        """The tables in a table."""
        found = ((_join(path, key), key, inner) for key, inner in self.table(path, value).items())
        return {key: table for at, key, inner in found if (table := self.tried(self.table, at, inner)) is not None}

    def texts(self, path: str, value: object, least: int = 1) -> list[str]:
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list) or len(values) < least or not all(isinstance(v, str) for v in values):
            self.fail("FN-1104", path, f"{value!r} is not a list of texts", f'write {path.rsplit(".", 1)[-1]} = ["…"]')
        return cast(list[str], values)

    def truth(self, path: str, value: object) -> bool:
        if not isinstance(value, bool):
            self.fail("FN-1104", path, f"{value!r} is not known", "allowed: true, false")
        return value

    def build(self, make: type[T], path: str, fields: dict[str, Any]) -> T:
        """A value of the model; its complaints become ours."""
        try:
            return make(**fields)
        except ValidationError as error:
            *others, last = reversed(error.errors())
            for complaint in others:
                self.tried(self.complain, path, complaint)
            self.complain(path, last)

    def complain(self, path: str, complaint: Mapping[str, Any]) -> NoReturn:
        problem, fix = explain(complaint)
        self.fail("FN-1104", _join(path, *(str(part) for part in complaint["loc"])), problem, fix)

    # ---- the file ----

    def read(self, data: dict[str, Any], wanted: str | None) -> Loaded:
        self.keys("", data, "")
        self.tried(self.version, data)
        nodes = self.tried(self.tables, "node", data.get("node", {})) or {}
        name = self.tried(self.own_name, nodes, wanted)
        read = {word: self.node(word, table) for word, table in nodes.items()}
        mine = read.get(name or "", _Node())
        host = self.tried(self.host, data.get("host", {})) or Host()
        lists = self.build(Acl, "acl", self.tried(self.acl, "acl", data.get("acl", {})) or {})
        tables = self.tried(self.tables, "set", data.get("set", {})) or {}
        made = (self.tried(self.named_set, word, table) for word, table in tables.items())
        named = [each for each in made if each is not None]
        api = self.tried(self.api, data.get("api", {})) or Api()
        self.raise_all()  # what follows would be measured by what is wrong
        name = None if name == "this" else name  # as `dump` calls a node without a name
        base = self.own_things(Config(node=name, mgmt=mine.mgmt, ports=tuple(mine.ports), host=host, api=api), mine)
        elsewhere = {addr for node in read.values() for addr in node.lips}
        services: list[Service] = []
        addresses = dict(base.addresses.by_key)
        seen: dict[Key, str] = {}
        for word, table in (self.tried(self.tables, "service", data.get("service", {})) or {}).items():
            path = _join("service", word)
            for service, port in self.tried(self.service, word, path, table, mine, elsewhere, addresses) or ():
                self.tried(self.own, service, port, path, "port" in table, mine, addresses, seen)
                services.append(service)
        self.raise_all()
        of_services = {"services": Services(services), "addresses": Table(addresses.values())}
        config = base.model_copy(update={**of_services, "acl": lists, "sets": Table(named)})
        try:
            plan.check(config)
            routes = [change for _, change in mine.changes if change.op in ("route.add", "neigh.add")]
            config = plan.apply(config, routes)
        except ChangeError as error:
            code = {"FN-1221": error.code, "FN-1222": error.code, "FN-1203": "FN-1104", "FN-1201": "FN-1104"}.get(
                error.code, "FN-1107"
            )
            raise ConfigError(code, f"{self.file}: {error.message}", error.fix) from None
        if not config.host.hash_key and (exposed := next((s for s in services if s.hash_target != "sip"), None)):
            what = f"hash_target {exposed.hash_target!r} without [host] hash_key"
            self.warnings.append(
                f"{self.file}: {exposed.key}: {what}; a client can choose its ports so that all go to one server"
            )
        return Loaded(config, self.warnings, {key: _split(path)[1] for key, path in seen.items()})

    def version(self, data: dict[str, Any]) -> None:
        if "version" not in data:
            self.fail("FN-1105", "", "the key 'version' is missing", "begin the file with version = 1")
        if data["version"] != 1 or isinstance(data["version"], bool):
            self.fail("FN-1104", "version", f"{data['version']!r} is not known", "write version = 1")

    # ---- nodes ----

    def own_name(self, nodes: dict[str, Any], wanted: str | None) -> str | None:
        if wanted is not None:
            if wanted not in nodes:
                known = ", ".join(nodes) or "none"
                self.fail("FN-1106", "node", f"there is no node {wanted!r}", f"use --node with one of: {known}")
            return wanted
        host = socket.gethostname()
        for candidate in (host, host.split(".")[0]):
            if candidate in nodes:
                return candidate
        if len(nodes) > 1:
            problem = f"host name {host!r} is none of the nodes {', '.join(nodes)}"
            self.fail("FN-1106", "node", problem, "say which one with --node")
        return next(iter(nodes), None)

    def node(self, name: str, table: dict[str, Any]) -> _Node:
        """Every node of the file is read, so that each finds the errors of all."""
        path, node = _join("node", name), _Node(name)
        for key, value in table.items():
            if key not in NODE_WORDS:
                self.tried(self.port, _join(path, key), key, value, node)
        if "mgmt" in table:
            node.mgmt = self.tried(self.address, f"{path}.mgmt", table["mgmt"])
        names = [port.name for port in node.ports]
        answering = "lan" if "lan" in names else names[0] if names else ""
        if "lips" in table:
            node.lips = self.tried(self.lips, f"{path}.lips", table["lips"], answering, names) or {}
        for route in self.tried(self.routes, f"{path}.routes", table.get("routes", [])) or ():
            node.changes.append((f"{path}.routes", route))
        return node

    def port(self, path: str, name: str, table: object, node: _Node) -> None:
        if not isinstance(table, dict):
            near = difflib.get_close_matches(name, NODE_WORDS, n=1)
            fix = f"did you mean {near[0]!r}?" if near else 'a port is written NAME = { nic = "…" }'
            self.fail("FN-1103", path, "no such key, and not a port", fix)
        self.keys(path, table, "node.*.*")
        if not table:
            self.fail("FN-1105", path, "the port names no NIC", 'write { nic = "eth0" }, or mac, or pci')
        node.ports.append(self.build(Port, path, {"name": name, **{key: table[key] for key in _NIC if key in table}}))
        if "up" in table and self.tried(self.truth, f"{path}.up", table["up"]) is False:
            node.down.append(name)
        for key in ("addresses", "sapool"):
            for text in self.tried(self.texts, f"{path}.{key}", table.get(key, []), 0) or ():
                addr, slash, plen = text.partition("/")
                fields: dict[str, Any] = {"addr": addr, "port": name, "sapool": key == "sapool"}
                if slash:
                    fields["plen"] = int(plen) if plen.isdecimal() else plen
                self.given("addr.add", f"{path}.{key}", fields, node)
        for addr, mac in (self.tried(self.table, f"{path}.neighbours", table.get("neighbours", {})) or {}).items():
            self.given("neigh.add", _join(f"{path}.neighbours", addr), {"addr": addr, "mac": mac, "port": name}, node)

    def routes(self, path: str, value: object) -> list[Change]:
        if not isinstance(value, list):
            self.fail(
                "FN-1104", path, f"{value!r} is not a list", 'write routes = [{ prefix = "default", gateway = "…" }]'
            )
        found = _Node()
        for row in value:
            if (table := self.tried(self.table, path, row)) is not None:
                self.keys(path, table, "node.*.routes")
                self.given("route.add", path, {k: v for k, v in table.items() if k in Route.model_fields}, found)
        return [change for _, change in found.changes]

    def given(self, op: str, path: str, fields: dict[str, Any], node: _Node) -> None:
        """A change that a run-time command could make, too."""
        try:
            node.changes.append((path, CHANGE.validate_python({"op": op, **fields})))
        except ValidationError as error:
            problem, fix = explain(error.errors()[0])
            self.tried(self.fail, "FN-1104", path, problem, fix)

    def own_things(self, config: Config, node: _Node) -> Config:
        """The config with the node's addresses and ports that are down; also whether its routes can be."""
        changes = [(path, change) for path, change in node.changes if change.op == "addr.add"]
        later = [(path, change) for path, change in node.changes if change.op != "addr.add"]
        down = tuple(port.name for port in node.ports if port.name in node.down)
        with_addresses = self.made(config.model_copy(update={"down": down}), changes)
        self.made(with_addresses, later)
        return with_addresses

    def made(self, config: Config, changes: Sequence[tuple[str, Change]]) -> Config:
        try:
            return plan.apply(config, [change for _, change in changes])
        except ChangeError as error:
            code = "FN-1110" if error.code == "FN-1207" else "FN-1104"
            self.tried(self.fail, code, changes[error.at][0] if changes else "", error.message, error.fix)
            return config

    def lips(self, path: str, value: object, port: str, ports: list[str]) -> dict[str, LocalAddress]:
        """Addresses and ranges "first-last", each may end in " dev PORT"."""
        found: dict[str, LocalAddress] = {}
        if not port:
            self.fail("FN-1105", path, "LIPs without a port", 'name a port first: lan = { nic = "…" }')
        for text in self.texts(path, value):
            ends, dev, on = text.partition(" dev ")
            if dev and on not in ports:
                self.fail("FN-1110", path, f"there is no port {on!r}", _nearest(on, ports))
            for addr in self.range(path, ends, MAX_LIPS - len(found)):
                if addr in found:
                    self.fail("FN-1104", path, f"{addr} is there twice", "remove one of the two")
                found[addr] = LocalAddress(addr=addr, port=on or port)
        return found

    def range(self, path: str, text: str, most: int) -> Iterable[str]:
        """Addresses of hosts from "first-last"."""
        first, dash, last = text.partition("-")
        try:
            low = words.parse(first.strip())
            high = words.parse(last.strip()) if dash else low
            if low.version != high.version:
                raise ValueError(text)
        except ValueError:
            self.fail(
                "FN-1104", path, f"{text!r} is not an address or a range", 'write "10.0.0.1" or "10.0.0.1-10.0.0.9"'
            )
        if int(low) > int(high) or int(high) - int(low) >= most:
            self.fail("FN-1104", path, f"{text!r} is empty or too large", f"a node has at most {MAX_LIPS} LIPs")
        return [self.address(path, str(type(low)(number))) for number in range(int(low), int(high) + 1)]

    # ---- the host ----

    def host(self, value: object) -> Host:
        table = self.table("host", value)
        self.keys("host", table, "host")
        fields = {key: value for key, value in table.items() if key in Host.model_fields}
        reads = {"conns": self.count, "acl_entries": self.count, "lports": self.port_range, "timeouts": self.timeouts}
        for key, read in cast(dict[str, Callable[[str, object], Any]], reads).items():
            if key in fields and (value := self.tried(read, f"host.{key}", fields.pop(key))) is not None:
                fields[key] = value
        return self.build(Host, "host", fields)

    def acl(self, path: str, value: object) -> dict[str, Any]:
        """The deny and the allow list."""
        table = self.table(path, value)
        self.keys(path, table, "acl")
        return {name: self.texts(f"{path}.{name}", table[name]) for name in table if table[name] != []}

    def named_set(self, name: str, table: dict[str, Any]) -> sets.AddressSet:
        """Entries beside each other, and those of a file."""
        path = _join("set", name)
        self.keys(path, table, "set.*")
        fields = {"type": table["type"]} if "type" in table else {}
        made = self.build(SetAdd, path, {"name": name, "span": table.get("range"), **fields})
        lines = self.texts(f"{path}.entries", table["entries"]) if table.get("entries") else []
        now = int(time.time())
        found = self.entries(f"{path}.entries", lines, now)
        if "file" in table:
            where = Path(self.file).parent / self.word(f"{path}.file", table["file"])
            try:
                with where.open(encoding="utf-8") as file:
                    found = sets.read_lines((*lines, *file) if lines else file, now)
            except (OSError, UnicodeDecodeError) as error:
                problem = f"{where}: {getattr(error, 'strerror', None) or 'not UTF-8 text'}"
                self.fail("FN-1101", f"{path}.file", problem, "give the path of a readable file")
            except ValueError as error:
                line, problem = error.args
                self.fail("FN-1104", f"{path}.file", f"{where}:{line - len(lines)}: {problem}", "mend the line")
        if len(found.keys) > sets.MOST:
            self.fail("FN-1104", path, f"{len(found.keys)} entries", f"a set has at most {sets.MOST}; use two")
        known = sets.AddressSet(name, type=made.type, span=made.span)
        try:
            return plan.with_packed(known, found)
        except ChangeError as error:
            self.fail("FN-1104", path, error.message, error.fix)

    def entries(self, path: str, lines: list[str], now: int) -> sets.Packed:
        try:
            return sets.read_lines(lines, now)
        except ValueError as error:
            self.fail("FN-1104", path, str(error.args[1]), 'write "10.0.0.0/8", "10.0.0.1-10.0.0.9" or "… nomatch"')

    def word(self, path: str, value: object) -> str:
        if not isinstance(value, str) or not value:
            self.fail("FN-1104", path, f"{value!r} is not a text", 'write "…"')
        return value
    def api(self, value: object) -> Api:
        table = self.table("api", value)
        self.keys("api", table, "api")
        fields = {key: value for key, value in table.items() if key in Api.model_fields}
        if "listen" in fields:
            fields["listen"] = self.own_endpoint("api.listen", fields["listen"])
        if "max_body" in fields:
            fields["max_body"] = self.count("api.max_body", fields["max_body"])
        for name in ("cert", "key", "client_ca", "tokens"):
            if name in fields and not str(fields[name]).startswith("/"):
                self.fail("FN-1104", f"api.{name}", f"{fields[name]!r} is not a path", "write it from / on")
        api = self.build(Api, "api", fields)
        if bool(api.cert) != bool(api.key) or (api.listen and not api.cert):
            lacking = "cert" if not api.cert else "key"
            problem = f"no {lacking}, and there is no TCP without TLS"
            self.fail("FN-1115", "api", problem, f'add {lacking} = "/…", or leave listen out')
        if api.listen and not api.tokens and not api.client_ca:
            problem, fix = "nobody could be known", 'add tokens = "/etc/fnat/tokens", or client_ca and clients'
            self.fail("FN-1115", "api.listen", problem, fix)
        if bool(api.client_ca) != bool(api.clients):
            fix = 'give both: client_ca = "/…" and clients = { "COMMON NAME" = "read-only" }'
            self.fail("FN-1115", "api", "client_ca and clients belong together", fix)
        if not api.listen and (api.cert or api.tokens or api.client_ca):
            self.fail("FN-1115", "api", "cert, tokens and clients are for TCP", 'add listen = "ADDRESS:PORT"')
        return api

    def own_endpoint(self, path: str, text: object) -> str:
        """ADDRESS:PORT to listen on; the address may be any of this machine, 0.0.0.0 or [::]."""
        try:
            address, port = words.split(str(text))
            if not re.fullmatch("[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
                raise ValueError
            return words.endpoint(str(words.parse(address)), int(port))
        except ValueError:
            self.fail("FN-1104", path, f"{text!r} is not ADDRESS:PORT", "write it like 10.0.0.1:8443 or [::]:8443")

    def timeouts(self, path: str, value: object) -> Timeouts:
        table = self.table(path, value)
        self.keys(path, table, path)
        fields: dict[str, int] = {}
        for word, seconds in sorted(table.items(), key=lambda item: item[0] not in _SHORTHANDS):
            if word in _KEYS[path] and (read := self.tried(self.seconds, _join(path, word), seconds, 1)) is not None:
                fields |= dict.fromkeys(_SHORTHANDS.get(word, (word,)), read)
        return self.build(Timeouts, path, fields)

    # ---- services ----

    def service(
        self,
        word: str,
        path: str,
        table: dict[str, Any],
        node: _Node,
        elsewhere: set[str],
        addresses: Mapping[str, Address],
    ) -> list[tuple[Service, str]]:
        """One Service for each address in listen and each protocol, and the port that answers for its VIP; "": none."""
        self.keys(path, table, "service.*")
        wrong = len(self.errors)
        protos = self.tried(self.protos, f"{path}.proto", table.get("proto", ["tcp"])) or []
        listens = self.tried(self.listens, path, table) or []
        port = self.tried(self.answering, path, table.get("port"), node) or ""
        lips = self.tried(self.service_lips, path, table, node, elsewhere) or ()
        fields: dict[str, Any] = {key: table[key] for key in _PLAIN if key in table}
        for key in _TIMES:
            if (
                key in fields
                and (seconds := self.tried(self.seconds, _join(path, key), fields.pop(key), 0)) is not None
            ):
                fields[key] = seconds
        if "acl" in table:
            fields |= self.tried(self.acl, f"{path}.acl", table["acl"]) or {}
        if "limits" in table:
            fields |= self.tried(self.limits, f"{path}.limits", table["limits"]) or {}
        told = self.tried(self.client_addr, f"{path}.client_addr", table.get("client_addr", "none")) or {}
        servers = self.tried(self.servers, f"{path}.rs", table.get("rs", {}), lips) or ()
        if "no_rs" in fields:
            self.tried(self.sorry, f"{path}.no_rs", fields["no_rs"], lips)
        if len(self.errors) > wrong and not (protos and listens):
            return []
        if "name" not in fields:
            alone = len(protos) == len(listens) == 1
            fields["name"] = "" if alone and word == _word(Key(cast(Any, protos[0]), *listens[0])) else word
        if not servers and len(self.errors) == wrong:
            self.warnings.append(f"{self.file}: {path}: no rs; every connection will be refused or dropped (no_rs)")
        fields |= {"lips": lips, "servers": servers}
        found: list[tuple[Service, str]] = []
        for proto in protos:
            fields |= {"proto": proto, "client_addr": told.get(proto, "none")}
            for vip, vport in listens:
                at = port
                if "port" not in table and (known := addresses.get(vip)) is not None:
                    at = known.port
                found.append((self.build(Service, path, {**fields, "vip": vip, "vport": vport}), at))
        return found

    def own(
        self,
        service: Service,
        port: str,
        path: str,
        is_given: bool,
        node: _Node,
        addresses: dict[str, Address],
        seen: dict[Key, str],
    ) -> None:
        """Nobody else has the service's key, and its VIP lies on one port and is no LIP."""
        if service.key in seen:
            problem = f"{service.key} is already in {seen[service.key]}"
            self.fail("FN-1109", f"{path}.listen", problem, "remove one of the two")
        seen[service.key] = path
        if service.vip in node.lips:
            problem = f"VIP {service.vip} is also a LIP of this node"
            self.fail("FN-1107", f"{path}.listen", problem, "use another address")
        if port == "":
            return
        if (known := addresses.get(service.vip)) is None:
            addresses[service.vip] = Address(addr=service.vip, port=port)
        elif known.port != port:
            problem = f"VIP {service.vip} would lie on {known.port} and on {port}"
            self.fail("FN-1104", f"{path}.port", problem, "a VIP belongs to one port")

    def protos(self, path: str, value: object) -> list[str]:
        protos = self.texts(path, value)
        for proto in protos:
            if proto not in PROTOS:
                self.fail("FN-1104", path, f"{proto!r} is not known", 'allowed: "tcp", "udp", "sctp"')
        return protos

    def listens(self, path: str, table: dict[str, Any]) -> list[tuple[str, int]]:
        if "listen" not in table:
            self.fail("FN-1105", path, "the key 'listen' is missing", 'write listen = ["ADDRESS:PORT"]')
        at = f"{path}.listen"
        return [self.endpoint(at, text) for text in self.texts(at, table["listen"])]

    def answering(self, path: str, port: object, node: _Node) -> str:
        names = [p.name for p in node.ports]
        if port == "":
            return ""
        if not names:
            self.fail("FN-1105", path, "the node has no port", 'write [node.NAME] with wan = { nic = "…" }')
        if port is None:
            return "wan" if "wan" in names else names[0]
        if port not in names:
            self.fail("FN-1110", f"{path}.port", f"there is no port {port!r}", f"use one of: {', '.join(names)}")
        return str(port)

    def service_lips(
        self, path: str, table: dict[str, Any], node: _Node, elsewhere: set[str]
    ) -> tuple[LocalAddress, ...]:
        """The node's, or those of it that the service names."""
        lips = tuple(node.lips.values())
        if "lips" in table:
            at, chosen = f"{path}.lips", dict[str, LocalAddress]()
            for text in self.texts(at, table["lips"]):
                for addr in self.range(at, text, MAX_LIPS):
                    if addr in node.lips:
                        chosen[addr] = node.lips[addr]
                    elif addr not in elsewhere:
                        self.fail("FN-1104", at, f"{addr} is not a LIP of the node", "add it to the node's lips")
            lips = tuple(chosen.values())
        if not lips:
            problem = "the service has no LIP, so it cannot forward"
            self.fail("FN-1108", path, problem, 'add lips = ["FIRST-LAST"] to the node')
        return lips

    def limits(self, path: str, value: object) -> dict[str, int]:
        table = self.table(path, value)
        self.keys(path, table, "service.*.limits")
        known = {key: value for key, value in table.items() if key in _LIMITS}
        read = {_LIMITS[key]: self.tried(self.count, f"{path}.{key}", value) for key, value in known.items()}
        return {name: value for name, value in read.items() if value is not None}

    def client_addr(self, path: str, value: object) -> dict[str, str]:
        """One word for all protocols of the service, or by protocol: { tcp = …, udp = … }."""
        told: dict[str, Any] = value if isinstance(value, dict) else dict.fromkeys(CLIENT_ADDRS, value)
        self.keys(path, told, "service.*.client_addr")
        for proto, how in told.items():
            if not isinstance(how, str) or not any(how in words for words in CLIENT_ADDRS.values()):
                every = list(dict.fromkeys(word for words in CLIENT_ADDRS.values() for word in words))
                self.fail("FN-1104", path, f"{how!r} is not known", _nearest(str(how), every, "; allowed: "))
            if isinstance(value, dict) and how not in CLIENT_ADDRS.get(proto, (how,)):
                self.fail("FN-1104", path, f"{how!r} is not for {proto}", f"allowed: {', '.join(CLIENT_ADDRS[proto])}")
        return told

    def servers(self, path: str, value: object, lips: tuple[LocalAddress, ...]) -> tuple[RealServer, ...]:
        there = {words.family(lip.addr) for lip in lips}
        found: dict[tuple[str, int], RealServer] = {}
        for word, fields in self.table(path, value).items():
            if (server := self.tried(self.server, path, word, fields)) is None:
                continue
            if server.key in found:
                self.tried(self.fail, "FN-1104", _join(path, word), "is there twice", "remove one of the two")
            if there and words.family(server.rip) not in there:
                name, kind = words.endpoint(*server.key), words.NAMES[words.family(server.rip)]
                problem = f"no {kind} LIP, so {name} cannot be reached"
                self.tried(self.fail, "FN-1108", _join(path, name), problem, f"add {kind} addresses to lips")
            found[server.key] = server
        return tuple(found.values())

    def sorry(self, path: str, value: object, lips: tuple[LocalAddress, ...]) -> None:
        """A sorry server needs a LIP of its family."""
        try:
            target = no_rs(value)
        except ValueError as error:
            self.fail("FN-1104", path, str(error), 'write it like "reset" or "10.31.9.9:80"')
        if target in ("drop", "reset"):
            return
        family = words.family(words.split(target)[0])
        if lips and family not in {words.family(lip.addr) for lip in lips}:
            kind = words.NAMES[family]
            self.fail("FN-1108", path, f"no {kind} LIP, so {target} cannot be reached", f"add {kind} addresses to lips")

    def server(self, path: str, word: str, value: object) -> RealServer:
        address, _, port = word.rpartition(":")
        if isinstance(value, dict) and ":" not in address and port.isascii() and port.isdecimal():
            try:  # hundreds of thousands: no detour where all is well
                return RealServer(rip=address, rport=int(port), **value)
            except (ValidationError, TypeError):
                pass
        at = _join(path, word)
        rip, rport = self.endpoint(at, word)
        fields = self.table(at, value)
        for key in fields:
            self.key(at, key, "service.*.rs.*")
        counts = {key: self.count(f"{at}.{key}", fields[key]) for key in _COUNTS if key in fields}
        fields = fields | counts
        return self.build(RealServer, at, {**fields, "rip": rip, "rport": rport})

    # ---- words ----

    def endpoint(self, path: str, text: str) -> tuple[str, int]:
        try:
            address, port = words.split(text)
        except ValueError as error:
            self.fail("FN-1104", path, str(error), "write it like 10.0.0.1:80 or [2001:db8::1]:80")
        if not re.fullmatch("[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
            problem, like = f"{text!r} is not ADDRESS:PORT", "10.0.0.1:80 or [2001:db8::1]:80"
            self.fail("FN-1104", path, problem, f"write it like {like}; ports are 1..65535")
        return self.address(path, address), int(port)

    def address(self, path: str, text: object) -> str:
        try:
            return ip(text)
        except ValueError as error:
            self.fail("FN-1104", path, str(error), "write it like 10.0.0.1 or 2001:db8::1")

    def port_range(self, path: str, value: object) -> tuple[int, int]:
        """Ports "first-last" of the LIPs."""
        match = re.fullmatch(r"(\d{4,5})-(\d{4,5})", value) if isinstance(value, str) else None
        first, last = (int(match[1]), int(match[2])) if match else (0, 0)
        if not 1024 <= first <= last <= 65535:
            self.fail("FN-1104", path, f"{value!r} is not a range of ports", 'allowed: "1024-65535", or a part of it')
        return first, last

    def seconds(self, path: str, value: object, least: int) -> int:
        """A number of seconds, or "2h4m"."""
        result = -1
        if isinstance(value, int) and not isinstance(value, bool):
            result = value
        elif isinstance(value, str) and re.fullmatch(r"(\d+h)?(\d+m)?(\d+s)?", value) and value:
            result = sum(int(n) * _UNITS[u] for n, u in re.findall(r"(\d+)([hms])", value))
        if not least <= result <= MAX_SECONDS:
            fix = f'allowed: {least}..{MAX_SECONDS} seconds, or "2h4m", "10m", "30s"'
            self.fail("FN-1104", path, f"{value!r} is not a time", fix)
        return result

    def count(self, path: str, value: object) -> int:
        """A number, or "500k", "4M" (thousands, millions)."""
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
        if isinstance(value, str) and (match := re.fullmatch(r"(\d+)([kM]?)", value)):
            return int(match[1]) * {"": 1, "k": 1_000, "M": 1_000_000}[match[2]]
        self.fail("FN-1104", path, f"{value!r} is not a number", 'write 500000, "500k" or "4M"')


def explain(error: Mapping[str, Any]) -> tuple[str, str]:
    """(problem, what is allowed) of one complaint of pydantic."""
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    shown = repr(value) if isinstance(value, str | int | float | bool) or value is None else "this"
    match kind:
        case "missing":
            return "is missing", "add it"
        case "extra_forbidden":
            return "no such key", "remove it"
        case "literal_error":
            near = _near(str(value), re.findall(r"'([^']*)'", str(context["expected"])))
            return f"{shown} is not known", f"{near}allowed: {context['expected']}"
        case "greater_than_equal":
            return f"{shown} is too small", f"the least is {context['ge']}"
        case "less_than_equal":
            return f"{shown} is too large", f"the most is {context['le']}"
        case "string_pattern_mismatch":
            if context["pattern"] == PORT_NAME:
                return f"{shown} is not a name", "a letter, then at most 10 letters, digits, or . _ -"
            return f"{shown} is not a name", "at most 64 printable ASCII characters, no blank, quote or backslash"
        case "value_error":
            return str(context["error"]), "correct the value"
        case "union_tag_not_found":
            return "names no change", "add its name, such as \"op\": \"service.add\""
        case "union_tag_invalid":
            near = _near(str(context["tag"]), str(context["expected_tags"]).replace("'", "").split(", "))
            return f"there is no change {context['tag']!r}", near.rstrip() or "see the API"
        case _:
            message = str(error["msg"])
            return f"{shown}: {message[:1].lower()}{message[1:]}", "correct the value"


_BARE = re.compile(r"[A-Za-z0-9_-]+")


def _join(*parts: str) -> str:
    """A dotted path; parts that are no bare keys are quoted, as TOML wants them."""
    return ".".join(p if _BARE.fullmatch(p) or (i == 0 and "." in p) else f'"{p}"' for i, p in enumerate(parts) if p)


def _split(path: str) -> list[str]:
    return [quoted or bare for quoted, bare in re.findall(r'"([^"]*)"|([^."\s]+)', path)]


def _near(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {near[0]!r}? " if near else ""


def _nearest(word: str, known: Iterable[str], allowed: str = "allowed: ") -> str:
    """The nearest of the words and, where they are few or none is near, all of them."""
    known = list(known)
    near = _near(word, known)
    return near.rstrip() if near and len(known) > 10 else f"{near}{allowed.lstrip('; ')}{', '.join(known)}"


_HEADER = re.compile(r'\s*\[\[?\s*((?:"[^"]*"|[^"\[\]])+)\]')
_ENTRY = re.compile(r'\s*((?:"[^"]*"|[A-Za-z0-9_.-]+)+)\s*=')


def _lines_of(text: str) -> dict[tuple[str, ...], int]:
    """The lines of paths. Reads headers and `key =` only."""
    lines: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            table = tuple(_split(header[1]))
            lines.setdefault(table, number)
        elif entry := _ENTRY.match(line):
            lines.setdefault((*table, *_split(entry[1])), number)
    return lines


# ---- Config -> TOML ----


def fold(text: str, file: str, node: str | None, config: Config) -> str:
    """The text of a file with what differs in config: this node's table and the tables of services that changed are
    written anew, everything else stays as it is, comments and other nodes too. Raises ConfigError(FN-1112)."""
    loaded = parse(text, file, node)
    was, data = loaded.config, _data(text, file)
    config = config.model_copy(update={"ports": was.ports, "host": was.host, "api": was.api})
    node = node or was.node
    mine = data.get("node", {}).get(node or "this", {})
    reader = _Reader(text, file)
    names = [port.name for port in was.ports]
    answering = "lan" if "lan" in names else names[0] if names else ""
    pool = list((reader.lips("lips", mine["lips"], answering, names) if "lips" in mine else {}).values())
    wider = [lip for lip in dict.fromkeys(lip for s in config.services for lip in s.lips) if lip not in pool]
    old_pool, new_pool = tuple(pool), tuple(pool + wider)
    changed = {
        key
        for key in {**was.services.by_key, **config.services.by_key}
        if was.services.get(key) != config.services.get(key)
        or _port_of(config.services.get(key), config) != _port_of(was.services.get(key), was)
    }
    raw = data.get("service", {})
    touched = {loaded.tables[key] for key in changed if key in loaded.tables}
    if wider:  # a table without lips would have the new ones, too
        touched |= {word for word in raw if "lips" not in raw[word]}
    foreign: dict[Key, list[str]] = {}
    elsewhere = [
        a for name, table in data.get("node", {}).items() if name != (node or "this") for a in _pool_of(reader, table)
    ]
    for key, word in loaded.tables.items():
        if word in touched and "lips" in raw[word]:
            named = [a for t in reader.texts("lips", raw[word]["lips"]) for a in reader.range("lips", t, MAX_LIPS)]
            foreign[key] = [addr for addr in named if addr in elsewhere]
    anew = [s for s in config.services if loaded.tables.get(s.key) in touched or s.key not in loaded.tables]
    blocks: dict[str, list[str]] = {}
    for word, services in _grouped(config, anew, set(raw) - touched):
        key = services[0].key
        others = foreign.get(key, elsewhere if services[0].lips != new_pool else [])
        place = loaded.tables.get(key, "")
        blocks.setdefault(place, []).extend(_dump_service(word, services, config, new_pool, others))
    parts = _sections(text)
    out: list[str] = []
    rewrite_node = (
        new_pool != old_pool
        or any(getattr(was, name) != getattr(config, name) for name in ("routes", "neighbours", "down"))
        or {a for a in was.addresses if not _is_implied(a, was)}
        != {a for a in config.addresses if not _is_implied(a, config)}
    )
    done = set[str]()
    edited = set(config.sets.changed_since(was.sets))
    for path, lines in parts:
        if path[:1] == ("acl",) and config.acl != was.acl:
            out += [*_comments(lines), *_dump_acl(config.acl)]
            done.add("acl")
        elif path[:1] == ("set",) and len(path) == 2 and path[1] in edited:
            known = config.sets.get(path[1])
            out += [*_comments(lines), *_dump_set(known)] if known else []
            edited.remove(path[1])
        elif rewrite_node and path[:2] == ("node", node or "this"):
            if "node" not in done:
                done.add("node")
                out += [*_comments(lines), *_dump_node(config.model_copy(update={"node": node}), new_pool)]
        elif path[:1] == ("service",) and len(path) > 1 and path[1] in touched:
            if path[1] not in done:
                done.add(path[1])
                out += [*_comments(lines), *blocks.pop(path[1], [])]
        else:
            out += lines
    if config.acl != was.acl and "acl" not in done:
        blocks["acl"] = _dump_acl(config.acl)
    blocks |= {f"set {name}": _dump_set(known) for name in edited if (known := config.sets.get(name))}
    for block in blocks.values():
        out += ["", *block] if out and out[-1].strip() else block
    result = "\n".join(out).rstrip() + "\n"
    try:
        again = parse(result, file, node).config
    except ConfigError as error:
        raise ConfigError("FN-1112", f"what is in force is no valid file: {error.message}", error.fix) from None
    if again != config.model_copy(update={"node": again.node}):
        fix = "write it by hand: `fnat config show --running` prints what is in force"
        raise ConfigError("FN-1112", f"{file}: its tables are written in a form that cannot be edited", fix)
    return result


def _pool_of(reader: _Reader, node: Mapping[str, Any]) -> list[str]:
    """Addresses of a node's LIPs."""
    return [
        addr
        for text in reader.texts("lips", node.get("lips", []), 0)
        for addr in reader.range("lips", text.partition(" dev ")[0], MAX_LIPS)
    ]


def _sections(text: str) -> list[tuple[tuple[str, ...], list[str]]]:
    """The lines below each header, with the comment above it; what is above the first has the path ()."""
    found: list[tuple[tuple[str, ...], list[str]]] = [((), [])]
    for line in text.splitlines():
        if header := _HEADER.match(line):
            above = found[-1][1]
            at = len(above)
            while at and above[at - 1].lstrip().startswith("#"):
                at -= 1
            found.append((tuple(_split(header[1])), [*above[at:], line]))
            del above[at:]
        else:
            found[-1][1].append(line)
    return found


def _comments(lines: list[str]) -> list[str]:
    """Those above the header."""
    return lines[: next(n for n, line in enumerate(lines) if not line.lstrip().startswith("#"))]


def dump(config: Config) -> str:
    """The file that says this config, and nothing of other nodes."""
    pool = list(dict.fromkeys(lip for service in config.services for lip in service.lips))
    lines = ["version = 1", "", *_dump_node(config, pool), "[host]"]
    for name, value in config.host:
        if name == "timeouts":
            value = value.model_dump()
        elif name == "lports":
            value = f"{value[0]}-{value[1]}"
        lines.append(f"{name} = {_toml(value)}")
    lines += ["", *_dump_acl(config.acl)]
    for known in config.sets:
        lines += _dump_set(known)
    if config.api != Api():
        fields = config.api.model_dump(exclude_defaults=True)
        lines += ["[api]", *(f"{name} = {_toml(value)}" for name, value in fields.items()), ""]
    for word, services in _grouped(config, config.services):
        lines += _dump_service(word, services, config, tuple(pool))
    return "\n".join(lines).rstrip() + "\n"


def _dump_node(config: Config, pool: Sequence[LocalAddress]) -> list[str]:
    name = _quote(config.node or "this")
    answering = "lan" if any(p.name == "lan" for p in config.ports) else config.ports[0].name if config.ports else ""
    lines = [f"[node.{name}]"]
    if config.mgmt:
        lines.append(f"mgmt = {_toml(config.mgmt)}")
    if pool:
        lines.append(f"lips = {_lip_ranges(pool, answering)}")
    rows = ({k: v for k, v in route if v is not None and v != Route.model_fields[k].default} for route in config.routes)
    if routes := [f"  {_toml(row)}," for row in rows]:
        lines += ["routes = [", *routes, "]"]
    lines.append("")
    for port in config.ports:
        lines.append(f"[node.{name}.{_quote(port.name)}]")
        lines += [f"{key} = {_toml(value)}" for key in _NIC if (value := getattr(port, key)) is not None]
        if port.name in config.down:
            lines.append("up = false")
        mine = [a for a in config.addresses if a.port == port.name and not _is_implied(a, config)]
        for key, pooled in (("addresses", False), ("sapool", True)):
            if those := [f"{a.addr}/{a.plen}" for a in mine if a.sapool == pooled]:
                lines.append(f"{key} = {_toml(those)}")
        if neighbours := {n.addr: n.mac for n in config.neighbours if n.port == port.name}:
            lines.append(f"neighbours = {_toml(neighbours)}")
        lines.append("")
    return lines


def _dump_acl(acl: Acl) -> list[str]:
    lines = [f"{name} = {_toml(entries)}" for name, entries in _lists(acl).items()]
    return ["[acl]", *lines, ""] if lines else []


def _lists(of: Acl | Service) -> dict[str, list[str]]:
    """Those that have entries."""
    return {name: list(entries) for name in _LISTS if (entries := getattr(of, name))}


def _dump_set(known: sets.AddressSet) -> list[str]:
    lines = [f"[set.{_quote(known.name)}]", f"type = {_toml(known.type)}"]
    lines += [f"range = {_toml(known.span)}"] if known.span else []
    return [*lines, "entries = [", *(f'    "{entry}",' for entry in known.entries()), "]", ""]


def _is_implied(address: Address, config: Config) -> bool:
    """A service owns its VIP without being told."""
    return address.addr in config.services.vips and address == Address(addr=address.addr, port=address.port)


_SPELLED = ("name", "proto", "vip", "vport", "client_addr")  # fields that a group does not have as its own


def _grouped(
    config: Config, services: Iterable[Service], taken: Iterable[str] = ()
) -> Iterable[tuple[str, list[Service]]]:
    """Services that one table can say: of one name and alike, for each address the same protocols; and its word, which
    is none of those taken."""
    alike: list[list[Service]] = []
    by_name: dict[str, list[list[Service]]] = {}
    used = set(taken)
    for service in config.services:
        used.add(service.name or _word(service.key))
    unnamed = {_word(service.key) for service in config.services if not service.name}
    free = {service.name for service in config.services} - unnamed - set(taken)
    for service in services:
        groups = by_name.setdefault(service.name, []) if service.name else []
        for group in groups:
            if _is_like(service, group[0]) and _port_of(service, config) == _port_of(group[0], config):
                group.append(service)
                break
        else:
            alike.append([service])
            groups.append(alike[-1])
    for group in alike:
        by_listen: dict[tuple[str, int], list[Service]] = {}
        for service in group:
            by_listen.setdefault((service.vip, service.vport), []).append(service)
        by_protos: dict[tuple[tuple[str, str], ...], list[Service]] = {}
        for those in by_listen.values():
            by_protos.setdefault(tuple((s.proto, s.client_addr) for s in those), []).extend(those)
        for those in by_protos.values():
            first = those[0]
            word = first.name or _word(first.key)
            if first.name and first.name not in free:  # the word is used: it says its name itself
                word = next(w for n in range(2, 1 << 30) if (w := f"{first.name}-{n}") not in used)
                used.add(word)
            free.discard(first.name)
            yield word, those


def _is_like(one: Service, other: Service) -> bool:
    """All but what tells them apart."""
    return all(a == b for (name, a), (_, b) in zip(one, other, strict=True) if name not in _SPELLED)


def _port_of(service: Service | None, config: Config) -> str:
    known = config.addresses.get(service.vip) if service is not None else None
    return known.port if known else ""


def _word(key: Key) -> str:
    """Of the table of a service without a name."""
    return f"{key.proto}-{key.vip}-{key.vport}"


def _dump_service(
    word: str, services: list[Service], config: Config, pool: tuple[LocalAddress, ...], others: Iterable[str] = ()
) -> list[str]:
    """others: LIPs of other nodes that stand in the service's list."""
    service = services[0]
    listens = dict.fromkeys(words.endpoint(s.vip, s.vport) for s in services)
    protos = dict.fromkeys(s.proto for s in services)
    lines = [f"[service.{_quote(word)}]", f"listen = {_toml(list(listens))}", f"proto = {_toml(list(protos))}"]
    if service.name and (service.name != word or service.name == _word(service.key)):
        lines.append(f"name = {_toml(service.name)}")
    lines.append(f"port = {_toml(_port_of(service, config))}")
    for name in _PLAIN:
        value, usual = getattr(service, name), Service.model_fields[name].default
        if name != "name" and (value != usual or name == "scheduler"):
            lines.append(f"{name} = {_toml(value)}")
    told = {s.proto: s.client_addr for s in services}
    if set(told.values()) != {"none"}:
        lines.append(f"client_addr = {_toml(service.client_addr if len(set(told.values())) == 1 else told)}")
    limits = {key: getattr(service, name) for key, name in _LIMITS.items()}
    limits = {k: v for k, v in limits.items() if v != Service.model_fields[_LIMITS[k]].default}
    if limits:
        lines.append(f"limits = {_toml(limits)}")
    if service.deny or service.allow:
        lines.append(f"acl = {_toml(_lists(service))}")
    if service.lips != pool or others:
        foreign = (LocalAddress(addr=addr, port="x") for addr in others)
        lines.append(f"lips = {_lip_ranges([*service.lips, *foreign])}")
    lines.append(f"[service.{_quote(word)}.rs]")
    for server in service.servers:
        row = {
            name: value
            for name in _SERVER_FIELDS
            if (value := getattr(server, name)) != RealServer.model_fields[name].default or name == "weight"
        }
        lines.append(f'"{words.endpoint(*server.key)}" = {_toml(row)}')
    return [*lines, ""]


def _lip_ranges(lips: Iterable[LocalAddress], answering: str | None = None) -> str:
    """A TOML list of the addresses, neighbours in order as ranges. answering: the port that need not be said; None:
    ports are not said."""
    ranges: list[tuple[list[ipaddress.IPv4Address | ipaddress.IPv6Address], str]] = []
    for lip in lips:
        address = words.parse(lip.addr)
        dev = f" dev {lip.port}" if answering not in (None, lip.port) else ""
        last = ranges[-1][0][-1] if ranges and ranges[-1][1] == dev else None
        if last is not None and last.version == address.version and int(address) == int(last) + 1:
            ranges[-1][0][1:] = [address]
        else:
            ranges.append(([address], dev))
    return _toml(["-".join(map(str, ends)) + dev for ends, dev in ranges])


def _toml(value: object) -> str:
    """A value on one line."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_quote(str(k))} = {_toml(v)}" for k, v in value.items()) + " }" if value else "{}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _quote(word: str) -> str:
    return word if _BARE.fullmatch(word) else _toml(word)
