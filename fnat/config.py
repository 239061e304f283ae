"""The configuration file: TOML -> Config of one node, and Config -> the same TOML.

One file serves the whole cluster; a node finds itself by --node, by host name, or by being the only one. Every error
names file, line if known, path, value, what is allowed, and the mend. A key that does not exist is an error with the
nearest word that does; a key of a feature that this version lacks says so. Nothing is ignored.

Unsatisfying: addresses, routes and neighbours given by `dpip` have no place in the file; `dump` lists them as comments.
"""

from __future__ import annotations

import difflib
import importlib
import ipaddress
import re
import socket
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

from pydantic import ValidationError

from fnat import addresses as words
from fnat import plan
from fnat.errors import ChangeError, ConfigError
from fnat.model import (
    CLIENT_ADDRS,
    MAX_SECONDS,
    PROTOS,
    Address,
    Api,
    Config,
    Host,
    Key,
    LocalAddress,
    Port,
    RealServer,
    Service,
    Services,
    Table,
    Timeouts,
    change_as_json,
    ip,
)

T = TypeVar("T")

MAX_LIPS = 4096  # of one node
_UNITS = {"h": 3600, "m": 60, "s": 1}
_SHORTHANDS = {
    "half_closed": ("fin_wait", "close_wait"),
    "syn": ("syn_sent", "syn_recv"),
    "udp": ("udp_oneway", "udp_normal"),
}
_SERVICE_KEYS = (
    "listen",
    "proto",
    "port",
    "scheduler",
    "no_rs",
    "conn_timeout",
    "expire_quiescent",
    "client_addr",
    "one_packet",
    "quic",
    "limits",
    "lips",
    "rs",
)
_KEYS: dict[str, tuple[str, ...]] = {
    "": ("version", "node", "host", "api", "service"),
    "api": tuple(Api.model_fields),
    "host": tuple(Host.model_fields),
    "host.timeouts": (*Timeouts.model_fields, *_SHORTHANDS),
    "service.*": _SERVICE_KEYS,
    "service.*.limits": ("half_open",),
    "service.*.client_addr": PROTOS,
    "service.*.rs.*": ("weight",),
    "node.*.*": ("nic", "mac"),
}
_LATER: dict[str, tuple[str, ...]] = {
    "": ("ha",),
    "service.*": ("check", "panic", "persist"),
    "service.*.limits": ("conns", "new_per_s", "per_client"),
    "service.*.rs.*": ("role",),
    "node.*.*": ("pci",),
}


@dataclass
class Loaded:
    """A config, and what is allowed but suspicious."""

    config: Config
    warnings: list[str] = field(default_factory=list)


def load(path: str | Path, node: str | None = None) -> Loaded:
    """Read the file. Raises ConfigError."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError("FN-1101", f"{path}: {error.strerror}", "give the path of a readable file") from None
    except UnicodeDecodeError:
        raise ConfigError("FN-1101", f"{path}: not UTF-8 text", "save the file as UTF-8") from None
    return parse(text, str(path), node)


def parse(text: str, file: str = "<config>", node: str | None = None) -> Loaded:
    """Config of one node from the text of a file. Raises ConfigError."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError("FN-1102", f"{file}: {error}", "mend the syntax there (https://toml.io)") from None
    return _Reader(text, file).read(data, node)


def resolve_ports(config: Config) -> list[dict[str, str]]:
    """The ports for the data plane: [{"name", "kind": "xdp", "device"}]. Looks at the NICs of this machine."""
    macs = {}
    for device in Path("/sys/class/net").iterdir():
        try:
            macs[device.name] = (device / "address").read_text().strip()
        except OSError:
            continue
    found: list[dict[str, str]] = []
    for port in config.ports:
        device_name = port.nic or next((name for name, mac in macs.items() if mac == port.mac), None)
        if device_name is None or device_name not in macs:
            what = f"nic {port.nic}" if port.nic else f"NIC with mac {port.mac}"
            raise ConfigError(
                "FN-1110",
                f"port {port.name}: there is no {what} on this machine",
                f"there are: {', '.join(sorted(macs))}",
            )
        if port.mac and macs[device_name] != port.mac:
            raise ConfigError(
                "FN-1110",
                f"port {port.name}: nic {device_name} has mac {macs[device_name]}, not {port.mac}",
                "correct one of the two; they must agree",
            )
        if other := next((p for p in found if p["device"] == device_name), None):
            raise ConfigError(
                "FN-1110", f"ports {other['name']} and {port.name} are both {device_name}", "give each port its own NIC"
            )
        found.append({"name": port.name, "kind": "xdp", "device": device_name})
    if config.mgmt:
        _spare_management(config.mgmt, found)
    return found


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


class _Reader:
    """One reading of one file: it knows the text for line numbers."""

    def __init__(self, text: str, file: str) -> None:
        self.text = text
        self.file = file
        self.warnings: list[str] = []

    # ---- errors ----

    def fail(self, code: str, path: str, problem: str, fix: str) -> NoReturn:
        line = _line_of(self.text, path)
        where = f"{self.file}:{line}" if line else self.file
        raise ConfigError(code, f"{where}: {path}: {problem}" if path else f"{where}: {problem}", fix)

    def keys(self, path: str, table: Mapping[str, Any], shape: str) -> None:
        """Refuse keys that the table of this shape does not have."""
        for key in table:
            if key in _KEYS[shape]:
                continue
            at = _join(path, key)
            if key in _LATER.get(shape, ()):
                self.fail("FN-1111", at, "not available in this version", "remove the line")
            near = difflib.get_close_matches(key, _KEYS[shape], n=1)
            fix = f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(_KEYS[shape])}"
            self.fail("FN-1103", at, "no such key", fix)

    def table(self, path: str, value: object) -> dict[str, Any]:
        if not isinstance(value, dict):
            self.fail("FN-1104", path, f"{value!r} is not a table", f"write [{path}] or {path} = {{ … }}")
        return cast(dict[str, Any], value)

    def texts(self, path: str, value: object) -> list[str]:
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list) or not values or not all(isinstance(v, str) for v in values):
            self.fail("FN-1104", path, f"{value!r} is not a list of texts", f'write {path.rsplit(".", 1)[-1]} = ["…"]')
        return cast(list[str], values)

    def build(self, make: type[T], path: str, fields: dict[str, Any]) -> T:
        """A value of the model; its complaint becomes ours."""
        try:
            return make(**fields)
        except ValidationError as error:
            first = error.errors()[0]
            at = _join(path, *(str(part) for part in first["loc"]))
            problem, fix = explain(first)
            self.fail("FN-1104", at, problem, fix)

    # ---- the file ----

    def read(self, data: dict[str, Any], node: str | None) -> Loaded:
        self.keys("", data, "")
        if "version" not in data:
            self.fail("FN-1105", "", "the key 'version' is missing", "begin the file with version = 1")
        if data["version"] != 1 or isinstance(data["version"], bool):
            self.fail("FN-1104", "version", f"{data['version']!r} is not known", "write version = 1")
        name, mgmt, ports, lips = self.node(self.table("node", data.get("node", {})), node)
        host = self.host(self.table("host", data.get("host", {})))
        api = self.api(self.table("api", data.get("api", {})))
        services: list[Service] = []
        addresses: dict[str, Address] = {}
        seen: dict[Key, str] = {}
        for word, table in self.table("service", data.get("service", {})).items():
            path = _join("service", word)
            for service, port in self.service(path, self.table(path, table), ports, lips):
                if service.key in seen:
                    self.fail(
                        "FN-1109",
                        f"{path}.listen",
                        f"{service.key} is already in {seen[service.key]}",
                        "remove one of the two",
                    )
                seen[service.key] = path
                known = addresses.setdefault(service.vip, Address(addr=service.vip, port=port))
                if known.port != port:
                    problem = f"VIP {service.vip} would lie on {known.port} and on {port}"
                    self.fail("FN-1104", f"{path}.port", problem, "a VIP belongs to one port")
                if service.vip in {lip.addr for lip in service.lips} | {lip.addr for lip in lips}:
                    self.fail(
                        "FN-1107",
                        f"{path}.listen",
                        f"VIP {service.vip} is also a LIP of this node",
                        "use another address",
                    )
                services.append(service)
            if not services[-1].servers:
                self.warnings.append(f"{self.file}: {path}: no rs; every connection will be refused or dropped (no_rs)")
        config = Config(
            node=name,
            mgmt=mgmt,
            ports=ports,
            host=host,
            api=api,
            services=Services(services),
            addresses=Table(addresses.values()),
        )
        try:
            plan.check(config)
        except ChangeError as error:
            raise ConfigError("FN-1107", f"{self.file}: {error.message}", error.fix) from None
        return Loaded(config, self.warnings)

    def node(
        self, nodes: dict[str, Any], wanted: str | None
    ) -> tuple[str | None, str | None, tuple[Port, ...], tuple[LocalAddress, ...]]:
        """(name, mgmt, ports, LIPs) of this node; all nodes are checked."""
        mine: tuple[str | None, str | None, tuple[Port, ...], tuple[LocalAddress, ...]] = (wanted, None, (), ())
        name = self.own_name(nodes, wanted)
        for word, value in nodes.items():
            path = _join("node", word)
            table = self.table(path, value)
            ports: list[Port] = []
            for key, port in table.items():
                if key in ("mgmt", "lips"):
                    continue
                at = _join(path, key)
                if not isinstance(port, dict):
                    near = difflib.get_close_matches(key, ["mgmt", "lips"], n=1)
                    fix = f"did you mean {near[0]!r}?" if near else 'a port is written NAME = { nic = "…" }'
                    self.fail("FN-1103", at, "no such key, and not a port", fix)
                self.keys(at, port, "node.*.*")
                if not port:
                    self.fail("FN-1105", at, "the port names no NIC", 'write { nic = "eth0" } or { mac = "…" }')
                ports.append(self.build(Port, at, {"name": key, **port}))
            mgmt = self.address(f"{path}.mgmt", table["mgmt"]) if "mgmt" in table else None
            names = [p.name for p in ports]
            answering = "lan" if "lan" in names else names[0] if names else ""
            lips = self.lips(f"{path}.lips", table["lips"], answering) if "lips" in table else ()
            if word == name:
                mine = (word, mgmt, tuple(ports), lips)
        return mine

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

    def lips(self, path: str, value: object, port: str) -> tuple[LocalAddress, ...]:
        """Addresses and ranges "first-last"."""
        found: dict[str, LocalAddress] = {}
        if not port:
            self.fail("FN-1105", path, "LIPs without a port", 'name a port first: lan = { nic = "…" }')
        for text in self.texts(path, value):
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
            if int(low) > int(high) or int(high) - int(low) >= MAX_LIPS - len(found):
                self.fail("FN-1104", path, f"{text!r} is empty or too large", f"a node has at most {MAX_LIPS} LIPs")
            for number in range(int(low), int(high) + 1):
                addr = self.address(path, str(type(low)(number)))
                lip = self.build(LocalAddress, path, {"addr": addr, "port": port})
                if lip.addr in found:
                    self.fail("FN-1104", path, f"{lip.addr} is there twice", "remove one of the two")
                found[lip.addr] = lip
        return tuple(found.values())

    def host(self, table: dict[str, Any]) -> Host:
        self.keys("host", table, "host")
        fields = dict(table)
        if "conns" in fields:
            fields["conns"] = self.count("host.conns", fields["conns"])
        if "lports" in fields:
            fields["lports"] = self.port_range("host.lports", fields["lports"])
        if "timeouts" in fields:
            fields["timeouts"] = self.timeouts(self.table("host.timeouts", fields["timeouts"]))
        return self.build(Host, "host", fields)

    def api(self, table: dict[str, Any]) -> Api:
        self.keys("api", table, "api")
        fields = dict(table)
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
            self.fail("FN-1113", "api", problem, f'add {lacking} = "/…", or leave listen out')
        if api.listen and not api.tokens and not api.client_ca:
            problem, fix = "nobody could be known", 'add tokens = "/etc/fnat/tokens", or client_ca and clients'
            self.fail("FN-1113", "api.listen", problem, fix)
        if bool(api.client_ca) != bool(api.clients):
            fix = 'give both: client_ca = "/…" and clients = { "COMMON NAME" = "read-only" }'
            self.fail("FN-1113", "api", "client_ca and clients belong together", fix)
        if not api.listen and (api.cert or api.tokens or api.client_ca):
            self.fail("FN-1113", "api", "cert, tokens and clients are for TCP", 'add listen = "ADDRESS:PORT"')
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

    def timeouts(self, table: dict[str, Any]) -> Timeouts:
        path = "host.timeouts"
        self.keys(path, table, path)
        fields: dict[str, int] = {}
        for word, names in _SHORTHANDS.items():
            if word in table:
                fields |= dict.fromkeys(names, self.seconds(f"{path}.{word}", table[word], 1))
        for word, value in table.items():
            if word not in _SHORTHANDS:
                fields[word] = self.seconds(f"{path}.{word}", value, 1)
        return self.build(Timeouts, path, fields)

    def service(
        self, path: str, table: dict[str, Any], ports: tuple[Port, ...], node_lips: tuple[LocalAddress, ...]
    ) -> Iterable[tuple[Service, str]]:
        """One Service for each address in listen and each protocol, and the port that answers for its VIP."""
        self.keys(path, table, "service.*")
        if "listen" not in table:
            self.fail("FN-1105", path, "the key 'listen' is missing", 'write listen = ["ADDRESS:PORT"]')
        names = [p.name for p in ports]
        if not names:
            self.fail("FN-1105", path, "the node has no port", 'write [node.NAME] with wan = { nic = "…" }')
        port = table.get("port", "wan" if "wan" in names else names[0])
        if port not in names:
            self.fail("FN-1110", f"{path}.port", f"there is no port {port!r}", f"use one of: {', '.join(names)}")
        lips = node_lips
        if "lips" in table:
            wanted = self.lips(f"{path}.lips", table["lips"], node_lips[0].port if node_lips else names[0])
            foreign = next((lip.addr for lip in wanted if lip not in node_lips), None)
            if foreign:
                self.fail("FN-1104", f"{path}.lips", f"{foreign} is not a LIP of the node", "add it to the node's lips")
            lips = wanted
        if not lips:
            self.fail(
                "FN-1108", path, "the service has no LIP, so it cannot forward", 'add lips = ["FIRST-LAST"] to the node'
            )
        limits = self.table(f"{path}.limits", table.get("limits", {}))
        self.keys(f"{path}.limits", limits, "service.*.limits")
        fields: dict[str, Any] = {
            k: table[k] for k in ("scheduler", "no_rs", "expire_quiescent", "one_packet", "quic") if k in table
        }
        if "half_open" in limits:
            fields["half_open"] = self.count(f"{path}.limits.half_open", limits["half_open"])
        if "conn_timeout" in table:
            fields["conn_timeout"] = self.seconds(f"{path}.conn_timeout", table["conn_timeout"], 0)
        told = self.client_addr(f"{path}.client_addr", table.get("client_addr", "none"))
        servers = tuple(self.servers(f"{path}.rs", self.table(f"{path}.rs", table.get("rs", {}))))
        there = {words.family(lip.addr) for lip in lips}
        for server in servers:
            if (family := words.family(server.rip)) not in there:
                name, kind = words.endpoint(*server.key), words.NAMES[family]
                problem = f"no {kind} LIP, so {name} cannot be reached"
                self.fail("FN-1108", _join(f"{path}.rs", name), problem, f"add {kind} addresses to lips")
        for proto in self.texts(f"{path}.proto", table.get("proto", ["tcp"])):
            if proto not in PROTOS:
                self.fail("FN-1104", f"{path}.proto", f"{proto!r} is not known", 'allowed: "tcp", "udp", "sctp"')
            for listen in self.texts(f"{path}.listen", table["listen"]):
                vip, vport = self.endpoint(f"{path}.listen", listen)
                yield (
                    self.build(
                        Service,
                        path,
                        {
                            "proto": proto,
                            "vip": vip,
                            "vport": vport,
                            "lips": lips,
                            "servers": servers,
                            **fields,
                            "client_addr": told.get(proto, "none"),
                        },
                    ),
                    port,
                )

    def client_addr(self, path: str, value: object) -> dict[str, str]:
        """One word for all protocols of the service, or by protocol: { tcp = …, udp = … }."""
        told: dict[str, Any] = value if isinstance(value, dict) else dict.fromkeys(CLIENT_ADDRS, value)
        self.keys(path, told, "service.*.client_addr")
        for proto, how in told.items():
            if not isinstance(how, str) or not any(how in words for words in CLIENT_ADDRS.values()):
                every = dict.fromkeys(word for words in CLIENT_ADDRS.values() for word in words)
                self.fail("FN-1104", path, f"{how!r} is not known", f"allowed: {', '.join(every)}")
            if isinstance(value, dict) and how not in CLIENT_ADDRS[proto]:
                self.fail("FN-1104", path, f"{how!r} is not for {proto}", f"allowed: {', '.join(CLIENT_ADDRS[proto])}")
        return told

    def servers(self, path: str, table: dict[str, Any]) -> Iterable[RealServer]:
        seen = set()
        for word, value in table.items():
            at = _join(path, word)
            rip, rport = self.endpoint(at, word)
            fields = self.table(at, value)
            self.keys(at, fields, "service.*.rs.*")
            server = self.build(RealServer, at, {"rip": rip, "rport": rport, **fields})
            if server.key in seen:
                self.fail("FN-1104", at, "is there twice", "remove one of the two")
            seen.add(server.key)
            yield server

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
            return f"{shown} is not known", f"allowed: {context['expected']}"
        case "greater_than_equal":
            return f"{shown} is too small", f"the least is {context['ge']}"
        case "less_than_equal":
            return f"{shown} is too large", f"the most is {context['le']}"
        case "string_pattern_mismatch":
            return f"{shown} is not a name", "a letter, then at most 10 letters, digits, or . _ -"
        case "value_error":
            return str(context["error"]), "correct the value"
        case "union_tag_invalid":
            near = difflib.get_close_matches(
                str(context["tag"]), str(context["expected_tags"]).replace("'", "").split(", "), n=1
            )
            return f"there is no change {context['tag']!r}", f"did you mean {near[0]!r}?" if near else "see the API"
        case _:
            message = str(error["msg"])
            return f"{shown}: {message[:1].lower()}{message[1:]}", "correct the value"


_BARE = re.compile(r"[A-Za-z0-9_-]+")


def _join(*parts: str) -> str:
    """A dotted path; parts that are no bare keys are quoted, as TOML wants them."""
    return ".".join(p if _BARE.fullmatch(p) or (i == 0 and "." in p) else f'"{p}"' for i, p in enumerate(parts) if p)


def _split(path: str) -> list[str]:
    return [quoted or bare for quoted, bare in re.findall(r'"([^"]*)"|([^."\s]+)', path)]


def _line_of(text: str, path: str) -> int | None:
    """The line where the longest part of the path is written; None when not found. Reads headers and `key =` only."""
    wanted = _split(path)
    table: list[str] = []
    best: tuple[int, int] | None = None
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[([^\[\]]+)\]", line):
            table = _split(header[1])
            here = table
        elif key := re.match(r'\s*((?:"[^"]*"|[A-Za-z0-9_.-]+)+)\s*=', line):
            here = table + _split(key[1])
        else:
            continue
        if here == wanted[: len(here)] and (best is None or len(here) > best[0]):
            best = len(here), number
    return best[1] if best else None


# ---- Config -> TOML ----


def dump(config: Config) -> str:
    """The file that says this config, as far as the file can say it; the rest as comments."""
    lines = ["version = 1", ""]
    lips = dict.fromkeys(lip for service in config.services for lip in service.lips)
    where = {a.addr: a.port for a in config.addresses}
    if config.ports or config.node:
        lines.append(f"[node.{_quote(config.node or 'this')}]")
        if config.mgmt:
            lines.append(f'mgmt = "{config.mgmt}"')
        for port in config.ports:
            parts = [f'{k} = "{v}"' for k, v in (("nic", port.nic), ("mac", port.mac)) if v]
            lines.append(f"{_quote(port.name)} = {{ {', '.join(parts)} }}")
        if lips:
            lines.append(f"lips = {_lip_ranges(lip.addr for lip in lips)}")
        lines.append("")
    lines += ["[host]", *_dump_host(config.host), ""]
    if config.api != Api():
        lines += ["[api]", *_dump_api(config.api), ""]
    for service in config.services:
        lines += _dump_service(service, where.get(service.vip), tuple(lips))
    services = {s.vip for s in config.services}
    rest = plan.diff(
        config.model_copy(
            update={
                "addresses": Table(a for a in config.addresses if a.addr in services),
                "routes": Table(),
                "neighbours": Table(),
                "down": (),
            }
        ),
        config,
    )
    lines += [f"# only in the overlay: {change_as_json(change)}" for change in rest]
    return "\n".join(lines).rstrip() + "\n"


def _dump_host(host: Host) -> list[str]:
    times = ", ".join(f"{name} = {value}" for name, value in host.timeouts.model_dump().items())
    return [
        f'routes = "{host.routes}"',
        f'idle = "{host.idle}"',
        f"conns = {host.conns}",
        f"workers = {host.workers}",
        f'cpus = "{host.cpus}"',
        f'steering = "{host.steering}"',
        f'unserved = "{host.unserved}"',
        f'lports = "{host.lports[0]}-{host.lports[1]}"',
        f'echo = "{host.echo}"',
        f"echo_rate = {host.echo_rate}",
        f"icmp_rate = {host.icmp_rate}",
        f"announce = {str(host.announce).lower()}",
        f"timeouts = {{ {times} }}",
    ]


def _dump_api(api: Api) -> list[str]:
    fields = {name: value for name, value in api.model_dump(exclude_defaults=True).items() if name != "clients"}
    lines = [f'{name} = "{value}"' if isinstance(value, str) else f"{name} = {value}" for name, value in fields.items()]
    if api.clients:
        pairs = [f'{_quote(name)} = "{role}"' for name, role in api.clients.items()]
        lines.append(f"clients = {{ {', '.join(pairs)} }}")
    return lines


def _dump_service(service: Service, port: str | None, all_lips: tuple[LocalAddress, ...]) -> list[str]:
    name = _quote(f"{service.proto}-{service.vip}-{service.vport}")
    listen = words.endpoint(service.vip, service.vport)
    lines = [f"[service.{name}]", f'listen = ["{listen}"]', f'proto = ["{service.proto}"]']
    if port:
        lines.append(f'port = "{port}"')
    lines += [
        f'scheduler = "{service.scheduler}"',
        f'no_rs = "{service.no_rs}"',
        f"conn_timeout = {service.conn_timeout}",
    ]
    lines.append(f"expire_quiescent = {str(service.expire_quiescent).lower()}")
    if service.client_addr != "none":
        lines.append(f'client_addr = "{service.client_addr}"')
    if service.one_packet:
        lines.append("one_packet = true")
    if service.quic:
        lines.append("quic = true")
    if service.half_open is not None:
        lines.append(f"limits = {{ half_open = {service.half_open} }}")
    if service.lips != all_lips:
        lines.append(f"lips = {_lip_ranges(lip.addr for lip in service.lips)}")
    lines.append(f"[service.{name}.rs]")
    lines += [f'"{words.endpoint(r.rip, r.rport)}" = {{ weight = {r.weight} }}' for r in service.servers]
    return [*lines, ""]


def _lip_ranges(addresses: Iterable[str]) -> str:
    """A TOML list of the addresses, neighbours in order as ranges."""
    ranges: list[list[ipaddress.IPv4Address | ipaddress.IPv6Address]] = []
    for address in map(words.parse, addresses):
        last = ranges[-1][-1] if ranges else None
        if last is not None and last.version == address.version and int(address) == int(last) + 1:
            ranges[-1][1:] = [address]
        else:
            ranges.append([address])
    return "[" + ", ".join(f'"{"-".join(map(str, ends))}"' for ends in ranges) + "]"


def _quote(word: str) -> str:
    return word if _BARE.fullmatch(word) else f'"{word}"'
