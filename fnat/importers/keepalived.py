"""keepalived.conf of DPVS's fork: services with their servers and local addresses -> wishes; VRRP -> vrrp.py.

Unsatisfying: fwmark services, tunnels and SNAT (`virtual_server match`) have no counterpart in fnat at all; words
of a stock keepalived's ipvs that DPVS does not read either are listed as unknown.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Sequence
from typing import Any

from fnat import addresses
from fnat.grammar.ipvsadm import DEFAULT_CLIENT_ADDR
from fnat.importers import Draft, checks, expand, vrrp
from fnat.importers.blocks import Origin, Statement
from fnat.model import Key

_HEALTH = ("health checks are not in this version", "servers are used at their weights, whatever their state")
_SCRIPT = ("scripts on a change of state are not in this version", "nothing is run")
_IDLE = ("nothing is enforced for it by DPVS either", "it is left out")
_MODE = ("fnat forwards in FullNAT mode only", "it is FullNAT here")
_PROTOS = {"TCP": "tcp", "UDP": "udp", "SCTP": "sctp"}
_GROUPS = ("virtual_server_group", "local_address_group", "deny_address_group", "allow_address_group")
_NONE: dict[str, tuple[str, str]] = {
    "syn_proxy": ("the SYN proxy is not in fnat", "limits = { half_open = N } lets the oldest half-open ones go"),
    "bps": _IDLE,
    "limit_proportion": ("packets are not dropped at random", "limits of the service hold"),
    "persistence_engine": ("it is for one application of a stock kernel", "it is left out"),
    "dest_check": _HEALTH,
    "ip_family": ("it says what the addresses say", "nothing is lost"),
}
_LATER: dict[str, tuple[str, str]] = dict.fromkeys(
    ("delay_loop", "alpha", "omega", "quorum", "hysteresis", "ha_suspend", "retry", "delay_before_retry", "warmup",
     "virtualhost", "inhibit_on_failure", "sorry_server_inhibit", "connect_timeout"), _HEALTH,
) | dict.fromkeys(("quorum_up", "quorum_down", "notify_up", "notify_down", "smtp_alert"), _SCRIPT)  # fmt: skip
_SERVICE_WORDS = (
    "lb_algo", "lvs_sched", "lb_kind", "lvs_method", "protocol", "persistence_timeout", "persistence_granularity",
    "establish_timeout", "proxy_protocol", "hash_target", "quic", "ops", "expire_quiescent_conn", "laddr_group_name",
    "daddr_group_name", "waddr_group_name", "sorry_server", "sorry_server_lvs_method", "vip_bind_dev", "real_server",
)  # fmt: skip
_SERVER_WORDS = ("weight", "uthreshold", "lthreshold", "lvs_method", "lb_kind")
_PERSIST_DEFAULT = 360
MAX_SERVICES = 4096  # of one virtual_server


def read(draft: Draft, statements: Sequence[Statement]) -> None:
    meant = [statement for statement in statements if not _conditional(draft, statement)]
    vrrp.read_vips(draft, meant)
    _Reader(draft).read(meant)
    vrrp.read(draft, meant)


def _conditional(draft: Draft, statement: Statement) -> bool:
    if statement.name.startswith("@"):
        draft.lost_block(statement, "is for one configuration id only", "write it without the id if it is meant")
    return statement.name.startswith("@")


class _Service:
    """A virtual_server while it is read: fields of service.add and where each comes from."""

    def __init__(self, at: Origin) -> None:
        self.at = at
        self.fields: dict[str, Any] = {"scheduler": "wlc"}  # keepalived's default
        self.where: dict[str, Origin] = {"scheduler": at}
        self.proto = "tcp"
        self.told = ""  # proxy_protocol
        self.lips: list[tuple[str, str | None, Origin]] = []
        self.port: tuple[str, Origin] | None = None
        self.servers: list[Statement] = []
        self.every: float | None = None

    def put(self, name: str, value: object, at: Origin) -> None:
        self.fields[name], self.where[name] = value, at


class _Reader:
    def __init__(self, draft: Draft) -> None:
        self.draft = draft
        self.groups: dict[str, dict[str, Statement]] = {name: {} for name in _GROUPS}

    def read(self, statements: Sequence[Statement]) -> None:
        for statement in statements:
            if statement.name in self.groups:
                name = self.one(statement)
                if name is not None:
                    self.groups[statement.name][name] = statement
        for statement in statements:
            if statement.name == "virtual_server":
                self.service(statement)
            elif statement.name == "tunnel_group":
                self.draft.lost_block(statement, "tunnels are not in fnat", "make them with `ip tunnel`")
            elif statement.name not in self.groups and not vrrp.knows(statement):
                known = [*_GROUPS, "virtual_server", "tunnel_group", *vrrp.ROOTS]
                self.unknown(statement, known, "keepalived.conf")

    # ---- words ----

    def unknown(self, statement: Statement, known: Sequence[str], where: str) -> None:
        near = difflib.get_close_matches(statement.name, known, n=1)
        fix = f"did you mean {near[0]!r}?" if near and near[0] != statement.name else "it is left out"
        self.draft.lost_block(statement, f"is not a word of {where}", fix)

    def one(self, statement: Statement) -> str | None:
        if not statement.values:
            self.draft.lost(statement.at, "has no value", "it is left out")
            return None
        self.surplus(statement, 1)
        return statement.values[0]

    def surplus(self, statement: Statement, taken: int) -> None:
        """Words behind those that are taken, and a block where none belongs."""
        if len(statement.values) > taken or (statement.block is not None and statement.name not in self.groups):
            what = " ".join((*statement.values[taken:], *(["{ … }"] if statement.block is not None else [])))
            self.draft.lost(statement.at, f"{what} is not understood behind it", "it is left out")
            if statement.name not in self.groups:
                for line in list(statement.walk())[1:]:
                    self.draft.lost(line.at, f"stands in {statement.name} of line {statement.line}", "it is left out")

    def number(self, statement: Statement, low: int, high: int) -> int | None:
        if (text := self.one(statement)) is None:
            return None
        if not re.fullmatch(r"[0-9]{1,10}", text) or not low <= int(text) <= high:
            self.draft.lost(statement.at, f"{text!r} is not a number from {low} to {high}", "it is left out")
            return None
        return int(text)

    def on(self, statement: Statement) -> bool:
        return not statement.values or statement.values[0].lower() in ("on", "true", "yes", "enable", "1")

    def addresses(self, statement: Statement, text: str) -> list[str]:
        try:
            return [addresses.host(address) for address in expand(text)]
        except ValueError as error:
            self.draft.lost(statement.at, str(error), "it is left out")
            return []

    # ---- a service ----

    def service(self, statement: Statement) -> None:
        ends = self.ends(statement)
        if ends is None:
            return
        service = _Service(statement.at)
        if any(s.name in ("lb_kind", "lvs_method") and s.values == ("SNAT",) for s in statement.inner):
            self.draft.lost_block(statement, "SNAT is not in fnat", "the whole block is left out; use nftables")
            return
        for word in statement.inner:
            if not _conditional(self.draft, word) and not self.word(service, word):
                self.draft.lost_block(statement, "cannot be carried", f"see {word.name} in it")
                return
        for vip, vport, at in ends:
            self.render(service, vip, vport, at)

    def ends(self, statement: Statement) -> list[tuple[str, int, Statement]] | None:
        """VIP, port and line of each; None when the block is told as a whole."""
        match statement.values:
            case ["match", *_]:
                why = "services by match are for SNAT, which is not in fnat"
                self.draft.lost_block(statement, why, "the whole block is left out; use nftables")
                return None
            case ["fwmark", *_]:
                self.draft.lost_block(statement, "firewall marks are not in fnat", "the whole block is left out")
                return None
            case ["group", name]:
                group = self.groups["virtual_server_group"].get(name)
                if group is None:
                    self.draft.lost_block(statement, f"there is no virtual_server_group {name!r}", "it is left out")
                    return None
                return [end for line in group.inner for end in self.end(line, line.words)]
            case [_, _]:
                return self.end(statement, statement.values)
            case _:
                self.draft.lost_block(statement, "does not say ADDRESS PORT", "the whole block is left out")
                return None

    def end(self, line: Statement, words: Sequence[str]) -> list[tuple[str, int, Statement]]:
        if words[0] == "fwmark" or len(words) != 2:
            why = "firewall marks are not in fnat" if words[0] == "fwmark" else "is not ADDRESS PORT"
            self.draft.lost(line.at, why, "it is left out")
            return []
        if not re.fullmatch(r"[0-9]{1,5}", words[1]) or not 1 <= int(words[1]) <= 65535:
            self.draft.lost(line.at, f"{words[1]!r} is not a port from 1 to 65535", "it is left out")
            return []
        return [(vip, int(words[1]), line) for vip in self.addresses(line, words[0])]

    def word(self, service: _Service, word: Statement) -> bool:
        """One line of a virtual_server; False: the whole service cannot be."""
        name, at = word.name, word.at
        if name == "real_server":
            service.servers.append(word)
        elif name == "protocol":
            proto = (self.one(word) or "TCP").upper()
            if proto not in _PROTOS:
                self.draft.lost(at, f"{proto} services are not in fnat", "the virtual_server is left out")
                return False
            service.proto = _PROTOS[proto]
        elif name in ("lb_algo", "lvs_sched"):
            if value := self.one(word):
                service.put("scheduler", value, at)
        elif name in ("lb_kind", "lvs_method"):
            if word.values[:1] != ("FNAT",):
                self.draft.lost(at, f"{' '.join(word.values)}: {_MODE[0]}", _MODE[1])
        elif name == "persistence_timeout":
            seconds = self.number(word, 0, 2678400) if word.values else _PERSIST_DEFAULT
            if seconds is not None:
                service.put("persistent", seconds, at)
        elif name == "persistence_granularity":
            self.granularity(service, word)
        elif name == "establish_timeout":
            if (seconds := self.number(word, 0, 31535999)) is not None:
                service.put("conn_timeout", seconds, at)
        elif name == "proxy_protocol":
            service.told, service.where["client_addr"] = word.values[0] if word.values else "", at
        elif name == "hash_target":
            if value := self.one(word):
                service.put("hash_target", value, at)
        elif name in ("quic", "ops", "expire_quiescent_conn"):
            field = {"ops": "one_packet", "expire_quiescent_conn": "expire_quiescent"}.get(name, name)
            if self.on(word):
                service.put(field, True, at)
        elif name == "laddr_group_name":
            self.lips(service, word)
        elif name in ("daddr_group_name", "waddr_group_name"):
            self.acl(service, word)
        elif name == "sorry_server":
            self.sorry(service, word)
        elif name == "sorry_server_lvs_method":
            if word.values != ("FNAT",):
                self.draft.lost(at, *_MODE)
        elif name == "vip_bind_dev":
            if device := self.one(word):
                service.port = device, at
        else:
            if name == "delay_loop" and (seconds := self.number(word, 1, 86400)) is not None:
                service.every = float(seconds)
            self.rest(word, _SERVICE_WORDS, "virtual_server")
        return True

    def rest(self, word: Statement, known: Sequence[str], where: str) -> None:
        """A word that has no counterpart, or none yet, or is none."""
        if word.name in _NONE:
            if word.name != "syn_proxy" or self.on(word):
                self.draft.lost(word.at, *_NONE[word.name])
        elif word.name in _LATER:
            self.draft.later(word.at, *_LATER[word.name])
        else:
            self.unknown(word, [*known, *_NONE, *_LATER, *checks.KINDS], where)

    def granularity(self, service: _Service, word: Statement) -> None:
        if (text := self.one(word)) is None:
            return
        try:
            length = int(text) if text.isascii() and text.isdigit() else _mask_length(text)
        except ValueError:
            self.draft.lost(word.at, f"{text!r} is neither a netmask nor a prefix length", "it is left out")
            return
        service.put("persistent_mask", length, word.at)

    def lips(self, service: _Service, word: Statement) -> None:
        group = self.group("local_address_group", word)
        for line in group.inner if group is not None else ():
            device = line.values[0] if line.values else None
            self.surplus(line, 1)
            service.lips += [(lip, device, line.at) for lip in self.addresses(line, line.name)]

    def group(self, kind: str, word: Statement) -> Statement | None:
        name = self.one(word)
        group = self.groups[kind].get(name or "")
        if group is None and name is not None:
            self.draft.lost(word.at, f"there is no {kind} {name!r}", "it is left out")
        return group

    def acl(self, service: _Service, word: Statement) -> None:
        kind, field = {
            "daddr_group_name": ("deny_address_group", "deny"),
            "waddr_group_name": ("allow_address_group", "allow"),
        }[word.name]
        group = self.group(kind, word)
        prefixes: list[str] = []
        for line in group.inner if group is not None else ():
            if line.name.startswith("ipset") or line.name == "match-set":
                self.draft.lost(line.at, "the members of the set do not stand here", "it is left out")
            elif found := self.addresses(line, line.name):
                self.surplus(line, 0)
                ends = ipaddress.ip_address(found[0]), ipaddress.ip_address(found[-1])
                prefixes += map(str, ipaddress.summarize_address_range(*ends))
        if prefixes:
            service.put(field, tuple(prefixes), word.at)

    def sorry(self, service: _Service, word: Statement) -> None:
        if len(word.values) not in (1, 2):
            self.draft.lost(word.at, "does not say ADDRESS PORT", "it is left out")
            return
        port = word.values[1] if len(word.values) == 2 else "0"
        found = self.addresses(word, word.values[0])
        if found and re.fullmatch(r"[0-9]{1,5}", port) and int(port) <= 65535:
            service.put("no_rs", (found[0], int(port)), word.at)
        elif found:
            self.draft.lost(word.at, f"{port!r} is not a port", "it is left out")

    # ---- what comes out ----

    def render(self, service: _Service, vip: str, vport: int, line: Statement) -> None:
        draft, ref = self.draft, {"proto": service.proto, "vip": vip, "vport": vport}
        fields, where = dict(service.fields), dict(service.where)
        if "no_rs" in fields:
            addr, number = fields["no_rs"]
            fields["no_rs"] = addresses.endpoint(addr, number or vport)
        fields["client_addr"] = self.client_addr(service)
        where.setdefault("client_addr", service.at)
        if service.port is not None:
            draft.vips[vip] = draft.port(*service.port), service.port[1]
        at = line.at._replace(word=" ".join(line.words))
        draft.wish(at, {"op": "service.add", **ref, **fields}, where)
        for lip, device, at in service.lips:
            if device is None:
                device = next(iter(draft.ports), next(iter(draft.nics), None))
                if device is None:
                    draft.lost(at, f"the port of {lip} does not stand there", "give --port NAME=NIC")
                    continue
                draft.told(at, f"the port of {lip} does not stand there", f"{device} is a guess")
            draft.wish(at, {"op": "lip.add", "service": ref, "addr": lip, "port": draft.port(device, at)})
        for statement in service.servers:
            self.server(service, ref, statement)

    def client_addr(self, service: _Service) -> str:
        if service.told and service.told not in ("disable", "none"):
            return f"proxy-{service.told}"
        if service.proto == "udp":
            if self.draft.uoa is None:
                why = "DPVS tells the servers of UDP services the client's address by UOA"
                self.draft.told(service.at, why, 'fnat does with client_addr = "uoa-opp"')
            return self.draft.uoa or "none"
        return DEFAULT_CLIENT_ADDR[service.proto]

    def server(self, service: _Service, ref: dict[str, Any], statement: Statement) -> None:
        port = statement.values[1] if len(statement.values) == 2 else "0"
        if len(statement.values) not in (1, 2) or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
            self.draft.lost_block(statement, "does not say ADDRESS PORT", "the server is left out")
            return
        found = self.addresses(statement, statement.values[0])
        if len(found) != 1:
            return
        server = found[0], int(port) or int(ref["vport"])
        fields: dict[str, Any] = {"weight": 1}
        where: dict[str, Origin] = {"weight": statement.at}
        for word in statement.inner:
            if _conditional(self.draft, word):
                continue
            if word.name in checks.KINDS:
                check, strange = checks.understand(word, service.every)
                self.draft.checks.append((Key(**ref), server, check))
                for at, why in strange:
                    self.draft.lost(at, why, "it is left out")
            elif word.name in ("weight", "uthreshold", "lthreshold"):
                field = {"uthreshold": "upper", "lthreshold": "lower"}.get(word.name, word.name)
                if (value := self.number(word, 0, 65535 if field == "weight" else 2**31 - 1)) is not None:
                    fields[field], where[field] = value, word.at
            elif word.name in ("lb_kind", "lvs_method"):
                if word.values != ("FNAT",):
                    self.draft.lost(word.at, *_MODE)
            else:
                self.rest(word, _SERVER_WORDS, "real_server")
        change = {"op": "server.add", "service": ref, "rip": server[0], "rport": server[1], **fields}
        self.draft.wish(statement.at._replace(word=f"real_server {' '.join(statement.values)}"), change, where)


def _mask_length(text: str) -> int:
    return ipaddress.IPv4Network(f"0.0.0.0/{text}").prefixlen
