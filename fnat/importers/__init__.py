"""Files of DPVS -> fnat.toml, and the keepalived.conf that is left for a stock keepalived.

Each kind of file has a module that turns it into wishes: changes as POST /v1/changes takes them, settings of [host],
ports. `finish` alone decides what fnat has of them: a field or value that the model does not know is left out and told,
a change that cannot be made is told, and the file that comes out is read again, so that whatever the format cannot say
is told too. So a feature is carried as soon as model and format have it; nothing here lists what is supported.

Everything is pure but the reading of files. Nothing is dropped in silence: each line without a counterpart is a Note.

Unsatisfying: comments are not carried; health checks are understood (`Draft.checks`) but have no place in fnat yet.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from pydantic import ValidationError

from fnat import __version__, addresses, config, plan
from fnat.errors import ChangeError, ConfigError, FnatError
from fnat.grammar import Usage
from fnat.importers.blocks import Origin, Statement, parse
from fnat.importers.checks import Check
from fnat.model import (
    CHANGE,
    AddrAdd,
    AddrDel,
    Change,
    Config,
    Host,
    Key,
    LipAdd,
    LipDel,
    Port,
    ServerDel,
    ServerSet,
    Service,
    ServiceDel,
    ServiceRef,
    ServiceSet,
    Timeouts,
)

Kind = Literal["dpvs.conf", "keepalived.conf", "ipvsadm-save"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Fate = Literal["lost", "later", "told"]
_FATES: dict[Fate, str] = {"lost": "not carried: ", "later": "not carried yet: ", "told": ""}
FROM_LINE = "the command line"
MAX_RANGE = 4096  # addresses of one range


@dataclass(frozen=True)
class Note:
    """What became of a line. lost: fnat has no counterpart; later: it is to have one; told: carried, but look."""

    file: str
    line: int
    word: str
    fate: Fate
    why: str
    instead: str = ""

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        return f"{where}: {self.word}: {_FATES[self.fate]}{self.why}" + (f"; {self.instead}" if self.instead else "")


@dataclass
class Wish:
    """A change that a file asks for. optional: fields that may be left out when fnat does not know them."""

    at: Origin
    change: dict[str, Any]
    optional: dict[str, Origin] = field(default_factory=dict)


@dataclass
class Imported:
    """The files by name, and what to know about them."""

    files: dict[str, str]
    notes: list[Note]

    @property
    def complete(self) -> bool:
        return all(note.fate == "told" for note in self.notes)


@dataclass
class Draft:
    """All that the files ask for. nics, lips and node: what the files cannot say, given by the caller."""

    nics: Mapping[str, str] = field(default_factory=dict)
    lips: Sequence[str] = ()
    node: str | None = None
    names: list[str] = field(default_factory=list)  # of the files
    ports: dict[str, Origin] = field(default_factory=dict)
    kni: dict[str, str] = field(default_factory=dict)  # name of the device in the kernel -> port
    vips: dict[str, tuple[str | None, Origin]] = field(default_factory=dict)  # and their ports, where these are known
    host: dict[str, tuple[Any, Origin]] = field(default_factory=dict)
    timeouts: dict[str, tuple[Any, Origin]] = field(default_factory=dict)
    wishes: list[Wish] = field(default_factory=list)
    checks: list[tuple[Key, tuple[str, int], Check]] = field(default_factory=list)
    uoa: str | None = None  # how UDP services tell their servers the client's address
    stock: list[str] = field(default_factory=list)  # lines of the keepalived.conf
    notes: dict[Note, None] = field(default_factory=dict)

    def note(self, fate: Fate, at: Origin, why: str, instead: str = "") -> None:
        self.notes[Note(at.file, at.line, _shown(at.word), fate, _shown(why), _shown(instead))] = None

    def lost(self, at: Origin, why: str, instead: str = "") -> None:
        self.note("lost", at, why, instead)

    def lost_block(self, statement: Statement, why: str, instead: str = "") -> None:
        """A statement and all that stands in its block."""
        self.lost(statement.at, why, instead)
        for line in list(statement.walk())[1:]:
            self.lost(line.at, f"stands in {statement.name} of line {statement.line}", "it is left out")

    def later(self, at: Origin, why: str, instead: str = "") -> None:
        self.note("later", at, why, instead)

    def told(self, at: Origin, why: str, instead: str = "") -> None:
        self.note("told", at, why, instead)

    def wish(self, at: Origin, change: dict[str, Any], optional: Mapping[str, Origin] | None = None) -> None:
        self.wishes.append(Wish(at, change, dict(optional or {})))

    def port(self, name: str, at: Origin) -> str:
        """The port that is named so there."""
        self.ports.setdefault(name, at)
        return name

    def nic(self, device: str, at: Origin) -> str:
        """The kernel's NIC that stands for a device of DPVS; another device is itself."""
        port = self.kni.get(device) or (device.removesuffix(".kni") if device.endswith(".kni") else None)
        if port is None and device not in self.ports and device not in self.nics:
            return device
        port = self.port(port or device, at)
        return self.nics.get(port, port)


def guess(text: str) -> Kind | None:
    """What kind of file this is, by its words."""
    words = re.findall(r"(?m)^\s*(?:<[^<>\n]*>\s*)?([^\s{]+)", text)
    if any((word.endswith("_defs") and word != "global_defs") or word == "sa_pool" for word in words):
        return "dpvs.conf"
    keepalived = re.compile(r"virtual_server|vrrp_|(local|deny|allow)_address_group|real_server|tunnel_group")
    if any(keepalived.match(word) for word in words):
        return "keepalived.conf"
    command = re.compile(r"(?m)^\s*(?:-[A-Za-z-]|(?:sudo\s+)?(?:\S*/)?(?:fnat[- ])?(?:ipvsadm|dpip)\s)")
    if command.search(text):
        return "ipvsadm-save"
    return "dpvs.conf" if "global_defs" in words else None


class Source(NamedTuple):
    """A file: its name in messages, its text, where it lies (for includes), what it is (None: told from its words)."""

    name: str
    text: str
    path: Path | None = None
    kind: Kind | None = None


def read(draft: Draft, sources: Iterable[Source]) -> None:
    """Add what the files ask for to the draft; the daemon's own file first, because it says how others are meant."""
    from fnat.importers import dpvs_conf, ipvsadm_save, keepalived

    known: list[tuple[Kind, Source]] = []
    for source in sources:
        if (kind := source.kind or guess(source.text)) is None:
            raise Usage(f"{source.name}: cannot tell what kind of file this is", f"say --kind {' | '.join(KINDS)}")
        known.append((kind, source))
    for kind, source in sorted(known, key=lambda item: KINDS.index(item[0])):
        draft.names.append(source.name)
        if kind == "ipvsadm-save":
            ipvsadm_save.read(draft, source.text, source.name)
        else:
            module = dpvs_conf if kind == "dpvs.conf" else keepalived
            module.read(draft, parse(source.text, source.name, source.path))


def expand(text: str) -> list[str]:
    """The addresses of "10.0.0.1", "10.0.0.1-5" (the last part; of IPv6 in hexadecimal) or "10.0.0.1-10.0.0.5"."""
    first, dash, last = text.partition("-")
    low = addresses.parse(first)
    if not dash:
        return [str(low)]
    if re.fullmatch(r"[0-9]{1,3}" if low.version == 4 else r"[0-9a-fA-F]{1,4}", last):
        step = 8 if low.version == 4 else 16
        end = (int(low) >> step << step) + int(last, 10 if low.version == 4 else 16)
    else:
        high = addresses.parse(last)
        end = int(high) if high.version == low.version else -1
        step = 32 if low.version == 4 else 128
    if not int(low) <= end < int(low) + MAX_RANGE or end >> step != int(low) >> step:
        raise ValueError(f"{text!r} is not a range of at most {MAX_RANGE} addresses")
    return [str(type(low)(number)) for number in range(int(low), end + 1)]


def _shown(text: str) -> str:
    """Text of a file as it may stand on a line of a message or in a comment."""
    plain = "".join(c if c.isprintable() else "?" for c in text)
    return plain if len(plain) <= 300 else plain[:297] + "..."


# ---- wishes -> files ----


def finish(draft: Draft) -> Imported:
    """The files. Raises FnatError when nothing useful can come out."""
    changes = [(change, wish) for wish in draft.wishes if (change := _admit(draft, wish)) is not None]
    origins: dict[str, Origin] = {}
    for change, wish in changes:
        origins.setdefault(plan.subject(change), wish.at)
        origins |= {f"{name} of {plan.subject(change)}": at for name, at in wish.optional.items()}
    bare = Config(node=draft.node or "this", ports=_ports(draft, [c for c, _ in changes]), host=_host(draft))
    wanted = _given_lips(draft, _apply(draft, bare, changes))
    wanted = _without_idle_addresses(_with_vips(draft, wanted, origins))
    wanted = _forwarding(draft, wanted, origins)
    _checks(draft)
    text, wanted = _as_file(draft, wanted, origins)
    notes = sorted(draft.notes, key=lambda n: ([*draft.names, n.file].index(n.file), n.line))
    files = {"fnat.toml": _head(draft, notes) + text}
    if draft.stock:
        files["keepalived.conf"] = "\n".join(draft.stock) + "\n"
    return Imported(files, notes)


def _admit(draft: Draft, wish: Wish) -> Change | None:
    """The change, without optional fields that this version of fnat does not know; None when it cannot be."""
    fields = dict(wish.change)
    while True:
        try:
            return CHANGE.validate_python(fields)
        except ValidationError as error:
            first = error.errors()[0]
        problem, _ = config.explain(first)
        name = str(first["loc"][1]) if len(first["loc"]) > 1 else ""
        if name not in wish.optional or name not in fields:
            name = next((key for key in wish.optional if key in fields and _valid(fields, key)), "")
        if not name:
            draft.lost(wish.at, problem, "the line is left out")
            return None
        value = fields.pop(name)
        unknown = first["type"] == "extra_forbidden"
        why = f"{name} is not in this version of fnat" if unknown else problem
        why = why if unknown or str(value) in why else f"{value}: {why}"
        draft.lost(wish.optional[name], why, _default(fields, name))


def _valid(fields: dict[str, Any], without: str) -> bool:
    try:
        CHANGE.validate_python({key: value for key, value in fields.items() if key != without})
    except ValidationError:
        return False
    return True


def _default(fields: dict[str, Any], name: str) -> str:
    """What fnat does without the field."""
    kinds = {kind.model_fields["op"].default: kind for kind in get_args(get_args(Change)[0])}
    known = kinds[fields["op"]].model_fields.get(name) if fields.get("op") in kinds else None
    return f"{name} is {known.default} here" if known is not None and not known.is_required() else ""


def _host(draft: Draft) -> Host:
    """[host], without the values that are not allowed."""

    def allowed(model: type[Host] | type[Timeouts], wanted: dict[str, tuple[Any, Origin]]) -> dict[str, Any]:
        fields = {}
        for name, (value, at) in wanted.items():
            try:
                model.model_validate({name: value})
                fields[name] = value
            except ValidationError as error:
                problem, fix = config.explain(error.errors()[0])
                draft.lost(at, f"{problem}, {fix}", f"{name} is {getattr(model(), name, 'unknown')} here")
        return fields

    times = Timeouts(**allowed(Timeouts, draft.timeouts))
    return Host(**allowed(Host, draft.host), timeouts=times)


def _ports(draft: Draft, changes: Sequence[Change]) -> tuple[Port, ...]:
    """All ports that are named, those with most LIPs first: the file has the LIPs of a node on `lan` or the first."""
    for name in draft.nics:
        draft.ports.setdefault(name, Origin(FROM_LINE, 0, f"--port {name}"))
    busy = Counter(c.port for c in changes if isinstance(c, LipAdd))
    ports = []
    for name, at in sorted(draft.ports.items(), key=lambda item: -busy[item[0]]):
        try:
            ports.append(Port(name=name, nic=draft.nics.get(name, name)))
        except ValidationError as error:
            draft.lost(at._replace(word=name), config.explain(error.errors()[0])[0], "the port is left out")
            continue
        if name not in draft.nics:
            why = f"which NIC of the kernel port {name} is does not stand there"
            draft.lost(at._replace(word=name), why, f'nic = "{name}" is a guess; give --port {name}=NIC')
    return tuple(ports)


def _apply(draft: Draft, old: Config, changes: Sequence[tuple[Change, Wish]]) -> Config:
    """The config after all changes that can be made; halves are tried until the wrong ones are found."""
    try:
        return plan.apply(old, [change for change, _ in changes])
    except ChangeError as error:
        if len(changes) == 1:
            draft.lost(changes[0][1].at, f"{plan.subject(changes[0][0])}: {error.message}", "the line is left out")
            return old
    half = len(changes) // 2
    return _apply(draft, _apply(draft, old, changes[:half]), changes[half:])


def _given_lips(draft: Draft, old: Config) -> Config:
    """LIPs of the command line, for services that have none."""
    if not draft.lips:
        return old
    if not old.ports:
        raise Usage("--lips without a port", "add --port NAME=NIC, the port on the servers' side")
    names = [port.name for port in old.ports]
    port = "lan" if "lan" in names else names[0]
    changes: list[Change] = []
    try:
        lips = [addresses.host(lip) for text in draft.lips for lip in expand(text)]
    except ValueError as error:
        raise Usage(f"--lips: {error}", "write FIRST-LAST or one address; it may be repeated") from None
    for service in old.services:
        ref = ServiceRef(**_ref(service))
        changes += [LipAdd(service=ref, addr=lip, port=port) for lip in dict.fromkeys(lips) if not service.lips]
    try:
        return plan.apply(old, changes)
    except ChangeError as error:
        raise Usage(f"--lips: {error.message}", error.fix) from None


def _with_vips(draft: Draft, old: Config, origins: Mapping[str, Origin]) -> Config:
    """Each VIP as an address on its port."""
    names = [port.name for port in old.ports]
    default = "wan" if "wan" in names else names[0] if names else None
    changes: list[Change] = []
    for vip, service in {s.vip: s for s in reversed(list(old.services))}.items():
        at = _origin(origins, ServiceRef(**_ref(service)))
        if vip not in old.addresses.by_key:
            named = draft.vips.get(vip, (None, at))[0]
            port = named if named in names else default
            if port is None:
                continue  # a service without a port has no LIP either, which is told
            changes.append(AddrAdd(addr=vip, plen=addresses.bits(vip), port=port))
            if named is None and len(names) > 1:
                draft.told(at, f"which port answers for {vip} does not stand there", f"{port} is a guess")
    for vip, (_, at) in draft.vips.items():
        if vip not in old.services.vips and vip not in old.services.lips:
            instead = "write it into addresses of its port if fnat is to answer for it"
            draft.lost(at, f"no service listens on {vip}", instead)
    return plan.apply(old, changes)


def _without_idle_addresses(old: Config) -> Config:
    """Without the addresses that services have as LIPs anyway."""
    lips = old.services.lips
    idle = [a for a in old.addresses if not a.makes_route and a.port in lips.get(a.addr, {})]
    return old.model_copy(update={"addresses": old.addresses.edited(dict.fromkeys((a.addr for a in idle), None))})


def _forwarding(draft: Draft, old: Config, origins: Mapping[str, Origin]) -> Config:
    """Without services and servers that no LIP can reach."""
    changes: list[Change] = []
    for service in old.services:
        ref = ServiceRef(**_ref(service))
        there = {addresses.family(lip.addr) for lip in service.lips}
        if not there:
            fix = "give --lips FIRST-LAST --port NAME=NIC"
            draft.lost(_origin(origins, ref), f"no LIP for {service.key}, so it cannot forward", fix)
            changes.append(ServiceDel(**_ref(service)))
            continue
        for server in service.servers:
            if (family := addresses.family(server.rip)) not in there:
                name = addresses.endpoint(*server.key)
                gone_server = ServerDel(service=ref, rip=server.rip, rport=server.rport)
                at = origins.get(plan.subject(gone_server), Origin(FROM_LINE, 0, name))
                why = f"{service.key} has no {addresses.NAMES[family]} LIP to reach {name} from"
                draft.lost(at, why, "the server is left out")
                changes.append(gone_server)
    gone = {c.vip for c in changes if isinstance(c, ServiceDel)}
    result = plan.apply(old, changes)
    idle = [vip for vip in gone if vip not in result.services.vips and f"addr {vip}" not in origins]
    return result.model_copy(update={"addresses": result.addresses.edited(dict.fromkeys(idle, None))})


def _ref(service: Service) -> dict[str, Any]:
    return {"proto": service.proto, "vip": service.vip, "vport": service.vport}


def _origin(origins: Mapping[str, Origin], ref: ServiceRef) -> Origin:
    """Where a service is asked for."""
    return origins.get(plan.subject(ServiceDel(**dict(ref))), Origin(FROM_LINE, 0, str(ref.key)))


def _as_file(draft: Draft, wanted: Config, origins: Mapping[str, Origin]) -> tuple[str, Config]:
    """The text that says the config. Whatever it does not say is told."""
    while True:
        text = config.dump(wanted)
        try:
            loaded = config.parse(text, "fnat.toml", wanted.node).config
        except ConfigError as error:
            raise FnatError("FN-1503", f"what comes out is not a valid file: {error}", "take that out first") from None
        missing = [c for c in plan.diff(loaded, wanted) if not isinstance(c, AddrDel | LipDel)]
        elsewhere = [c for c in missing if isinstance(c, LipAdd)]
        for change in missing:
            at = origins.get(plan.subject(change), Origin(FROM_LINE, 0, change.op))
            if isinstance(change, ServiceSet | ServerSet):
                for name in sorted(change.model_fields_set - {"service", *ServiceRef.model_fields, "rip", "rport"}):
                    part = f"{name} of {plan.subject(change)}"
                    draft.lost(origins.get(part, at), f"the file has no place for {part}", "it is left out")
            elif isinstance(change, LipAdd):
                draft.lost(at, f"the file has no place for {plan.subject(change)} on {change.port}", "it is left out")
            else:
                draft.lost(at, f"the file has no place for {plan.subject(change)}", _at_run_time(change))
        if not elsewhere:
            return text.split("# only in the overlay:")[0].rstrip() + "\n", wanted
        gone = [LipDel(service=c.service, addr=c.addr, port=c.port) for c in elsewhere]
        wanted = _forwarding(draft, plan.apply(wanted, gone), origins)


def _at_run_time(change: Change) -> str:
    words = {"addr": "fnat-dpip addr add", "route": "fnat-dpip route add", "neigh": "fnat-dpip neigh add"}
    noun = change.op.split(".")[0]
    host = "; the host's own are used" if noun in ("route", "neigh") else ""
    return f"`{words[noun]}` makes it at run time{host}" if noun in words else "the file says something else"


def _checks(draft: Draft) -> None:
    """Health checks: the one place to render what importers understood of them."""
    for key, server, check in draft.checks:
        why = f"health checks are not in this version; {check.kind} of {addresses.endpoint(*server)}, {key}"
        draft.later(check.at, why, "the server is used at its weight, whatever its state")


def _head(draft: Draft, notes: Iterable[Note]) -> str:
    lines = [f"# Imported by fnat {__version__} from {_shown(', '.join(draft.names))}."]
    if notes := list(notes):
        lines += ["# What is not here, or wants a look:", *(f"#   {note}" for note in notes)]
    return "\n".join(lines) + "\n"
