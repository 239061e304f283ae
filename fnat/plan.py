"""Changes as data: apply(config, changes) -> config, and diff(old, new) -> changes; each undoes the other's question.

Both are pure. For all configs, apply(old, diff(old, new)) == new up to order of creation. Every change is checked
against what it meets, the whole result again by `check`; the first thing wrong raises and nothing has happened.
Settings of [host] and the ports themselves are no changes: they come from the file alone.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, assert_never

from pydantic import BaseModel, ValidationError

from fnat import addresses
from fnat.errors import ChangeError
from fnat.model import (
    GROWING,
    HASH_SLOTS,
    HASHING,
    MOST_SLOTS,
    Acl,
    AclAdd,
    AclDel,
    AclRecheck,
    AddrAdd,
    AddrDel,
    Address,
    AddrFlush,
    Change,
    Config,
    Drain,
    Key,
    Keyed,
    LinkSet,
    LipAdd,
    LipDel,
    LocalAddress,
    NeighAdd,
    Neighbour,
    NeighDel,
    RealServer,
    Route,
    RouteAdd,
    RouteDel,
    RouteFlush,
    RouteSet,
    ServerAdd,
    ServerDel,
    ServerDrain,
    ServerSet,
    ServerShape,
    ServerShift,
    ServerUndrain,
    ServerUnshift,
    Service,
    ServiceAdd,
    ServiceClear,
    ServiceDel,
    ServiceRef,
    ServiceSet,
    ServiceZero,
    SetAdd,
    SetDel,
    SetEntryAdd,
    SetEntryDel,
    SetFlush,
    Shift,
    Table,
)
from fnat.sets import MOST, AddressSet, Packed, What, edits_of, network_of, text_of
from fnat.sets import Key as EntryKey
from fnat.slots import slots_moved

K = TypeVar("K", bound=Hashable)
V = TypeVar("V", bound=Keyed[Any])

MOST_SETS = 60  # that the lists of a service may name together
ENTRIES_SHOWN = 8  # of a set in a line; beyond that they are counted
MANY = 2000  # names above which the nearest one is not looked for
SERVICE_FIELDS = (
    "name",
    "scheduler",
    "hash_target",
    "hash_slots",
    "slow_start",
    "conn_timeout",
    "no_rs",
    "expire_quiescent",
    "one_packet",
    "quic",
    "half_open",
    "persistent",
    "persistent_mask",
    "max_conns",
    "new_per_s",
    "per_client",
    "client_addr",
    "deny",
    "allow",
)
SERVER_FIELDS = tuple(ServerShape.model_fields)


def apply(config: Config, changes: Iterable[Change], *, lenient: Callable[[str], None] | None = None) -> Config:
    """The config after the changes, in order. Raises ChangeError at the first that cannot be made.

    `lenient` replays an overlay on a file that may have moved on: what exists already is replaced, what is gone is
    skipped, and each such case is told to `lenient` in one line.
    """
    draft = _Draft(config)
    for number, change in enumerate(changes):
        try:
            draft.make(change, replace=lenient is not None)
        except ChangeError as error:
            if lenient is None:
                error.at = number
                raise
            lenient(f"{change.op} is not possible any more: {error}")
    result = draft.seal()
    check(result, config)
    return result


def check(config: Config, before: Config = Config()) -> None:  # noqa: B008, a constant
    """What must hold for the whole: no LIP is a VIP, one address lies on one port. Raises ChangeError(409).

    before: a config for which it holds; only what differs from it is looked at."""
    _check_sets(config, before)
    services, given = config.services, config.addresses.by_key
    if services.table_slots > MOST_SLOTS:
        raise ChangeError(
            409,
            "FN-1221",
            f"the tables of all mh services would have {services.table_slots} slots; there is room for {MOST_SLOTS}",
            "give some of them fewer (hash_slots = 4093), or use conhash, which needs no table",
        )
    changed = dict.fromkeys(config.addresses.changed_since(before.addresses))
    for key in services.changed_since(before.services):
        if (service := services.get(key)) is not None:
            _check_scheduling(service)
            changed |= dict.fromkeys([service.vip, *(lip.addr for lip in service.lips)])
    for addr in changed:
        ports = [given[addr].port] if addr in given else []
        ports += [port for port in services.lips.get(addr, ()) if port not in ports]
        if len(ports) > 1:
            raise _two_ports(addr, ports[0], ports[1])
        if addr in services.lips and addr in services.vips:
            vip = next(s.key for s in services if s.vip == addr)
            lip = next(s.key for s in services if any(lip.addr == addr for lip in s.lips))
            raise ChangeError(
                409,
                "FN-1205",
                f"{addr} would be the VIP of {vip} and a LIP of {lip}",
                "use another address for one of them",
            )


def _of_no_use(scheduler: str) -> dict[str, Any]:
    """Options that go with another scheduler, as they are without it."""
    options: dict[str, Any] = {} if scheduler in HASHING else {"hash_target": "sip"}
    options |= {} if scheduler == "mh" else {"hash_slots": HASH_SLOTS}
    return options | ({} if scheduler in GROWING else {"slow_start": 0})


def _check_scheduling(service: Service) -> None:
    """Options of a scheduler that the service does not have would do nothing."""
    scheduler, servers = service.scheduler, len(service.servers)
    problem, fix = "", ""
    if service.hash_target != "sip" and scheduler not in HASHING:
        problem = f"hash_target {service.hash_target!r} is for {', '.join(HASHING)}, not for {scheduler}"
        fix = "set hash_target to 'sip', or choose one of these schedulers"
    elif service.hash_target == "qid" and service.proto != "udp":
        problem, fix = "hash_target 'qid' is for UDP services only", "use sip or sip-port"
    elif service.hash_slots != HASH_SLOTS and scheduler != "mh":
        problem, fix = f"hash_slots is for mh, not for {scheduler}", "leave it out, or choose scheduler mh"
    elif service.slow_start and scheduler not in GROWING:
        why = "peers must agree on a client's server at any moment" if scheduler in HASHING else "it ignores weights"
        why = "it looks for the highest weight" if scheduler == "fo" else why
        problem = f"slow_start is not for {scheduler}: {why}"
        fix = f"set slow_start to 0, or choose one of {', '.join(GROWING)}"
    elif scheduler == "mh" and servers > service.table_slots:
        problem, fix = f"{servers} servers and {service.table_slots} slots of mh", "set hash_slots to more"
    if problem:
        raise ChangeError(409, "FN-1222", f"{service.key}: {problem}", fix)
def _check_sets(config: Config, before: Config) -> None:
    """Every set that a list names exists."""
    gone = [name for name in config.sets.changed_since(before.sets) if name not in config.sets.by_key]
    looked_at = list(config.services) if gone else []
    looked_at += [s for key in config.services.changed_since(before.services) if (s := config.services.get(key))]
    lists = [(str(service.key), service.deny + service.allow) for service in looked_at]
    lists.append(("the general list", config.acl.deny + config.acl.allow))
    for who, entries in lists:
        if sum(entry.startswith("set:") for entry in entries) > MOST_SETS:
            raise ChangeError(400, "FN-1201", f"{who} names more than {MOST_SETS} sets", "put their entries into one")
        for entry in entries:
            name = entry.removeprefix("set:")
            if entry != name and name not in config.sets.by_key:
                if name in gone:
                    raise ChangeError(
                        409, "FN-1206", f"{who} names set {name}", "take it out of the list first (acl.del)"
                    )
                raise _missing(f"set {name}, which {who} names", list(config.sets.by_key), name)


def expire(config: Config, now: int) -> Config:
    """The config without the entries of sets whose time is over."""
    edits = {s.name: s.edited(dict.fromkeys(due)) for s in config.sets if (due := s.due(now))}
    return config.model_copy(update={"sets": config.sets.edited(edits)}) if edits else config


def diff(old: Config, new: Config) -> list[Change]:
    """The changes that lead from old to new: first what goes, then what comes."""
    gone: list[Change] = []
    come: list[Change] = []
    for key in new.services.changed_since(old.services):
        _diff_service(key, old.services.get(key), new.services.get(key), gone, come)
    route_came, came = _came(old.routes, new.routes), _came(old.addresses, new.addresses)
    gone += [RouteDel(**_plain(r)) for r in _came(new.routes, old.routes)]
    come += [RouteAdd(**_plain(r)) for r in route_came]
    gone += [AddrDel(**_plain(a)) for a in _came(new.addresses, old.addresses)]
    come[:0] = [AddrAdd(**_plain(a)) for a in came]
    gone += [NeighDel(**_plain(n)) for n in _came(new.neighbours, old.neighbours)]
    come += [NeighAdd(**_plain(n)) for n in _came(old.neighbours, new.neighbours)]
    come += [LinkSet(port=p, up=True) for p in old.down if p not in new.down]
    come += [LinkSet(port=p, up=False) for p in new.down if p not in old.down]
    first, last = _diff_sets(old, new)
    gone[:0] = first
    for name in ("deny", "allow"):
        was, now = getattr(old.acl, name), getattr(new.acl, name)
        gone += [AclDel(list=name, entry=entry) for entry in was if entry not in now]
        come += [AclAdd(list=name, entry=entry) for entry in now if entry not in was]
    come += last
    return gone + come


def _diff_sets(old: Config, new: Config) -> tuple[list[Change], list[Change]]:
    """What must come before lists name the sets, and what may go when no list does."""
    first: list[Change] = []
    last: list[Change] = []
    for name in new.sets.changed_since(old.sets):
        was, now = old.sets.get(name), new.sets.get(name)
        if now is None:
            last.append(SetDel(name=name))
            continue
        if was is None or (was.type, was.span) != (now.type, now.span):
            if was is not None:
                first.append(SetDel(name=name))
            first.append(SetAdd.model_construct(name=name, type=now.type, span=now.span, entries=()))
            was = AddressSet(name)
        changed = now.changed_since(was)
        taken = tuple(text_of(key) for key, what in changed.items() if what is None)
        put = tuple(text_of(key, what) for key, what in changed.items() if what is not None)
        if taken:
            first.append(SetEntryDel.model_construct(set=name, entries=taken))
        if put:
            first.append(SetEntryAdd.model_construct(set=name, entries=put))
    return first, last


def _came(old: Table[K, V], new: Table[K, V]) -> list[V]:
    """Values of new that old does not have so."""
    return [value for key in new.changed_since(old) if (value := new.get(key)) is not None]


def _diff_service(
    key: Key, known: Service | None, service: Service | None, gone: list[Change], come: list[Change]
) -> None:
    if service is None:
        gone.append(ServiceDel(proto=key.proto, vip=key.vip, vport=key.vport))
        return
    ref = ServiceRef(proto=key.proto, vip=key.vip, vport=key.vport)
    if known is None:
        come.append(ServiceAdd(**_ref(key), **_fields(service)))
        known = Service(**_ref(key), **_fields(service))
    else:
        moved = {f: v for f, v in _fields(service).items() if getattr(known, f) != v}
        if moved:
            come.append(ServiceSet(**_ref(key), **moved))
    shifts = {shift.key: shift for shift in service.shifts}
    gone += [ServerUnshift(service=ref, rip=s.rip, rport=s.rport) for s in known.shifts if s.key not in shifts]
    servers, lips = {r.key: r for r in known.servers}, set(known.lips)
    wanted, wanted_lips = {r.key: r for r in service.servers}, set(service.lips)
    gone += [ServerDel(service=ref, rip=rip, rport=rport) for rip, rport in servers if (rip, rport) not in wanted]
    gone += [LipDel(service=ref, addr=lip.addr, port=lip.port) for lip in known.lips if lip not in wanted_lips]
    come += [LipAdd(service=ref, addr=lip.addr, port=lip.port) for lip in service.lips if lip not in lips]
    for r in service.servers:
        if r.key not in servers:
            shape = r.model_dump(include={*SERVER_FIELDS}, exclude_defaults=True)
            come.append(ServerAdd(service=ref, rip=r.rip, rport=r.rport, **shape | {"weight": r.weight}))
        elif any(getattr(servers[r.key], f) != getattr(r, f) for f in SERVER_FIELDS):
            moved = {f: v for f in SERVER_FIELDS if (v := getattr(r, f)) != getattr(servers[r.key], f)}
            if moved.keys() & {"upper", "lower"}:  # one is checked by the other
                moved |= {"upper": r.upper, "lower": r.lower}
            come.append(ServerSet(service=ref, rip=r.rip, rport=r.rport, **moved))
        before = servers[r.key].drain if r.key in servers else None
        if r.drain is not None and r.drain != before:
            come.append(ServerDrain(service=ref, rip=r.rip, rport=r.rport, **_plain(r.drain)))
        elif r.drain is None and before is not None:
            come.append(ServerUndrain(service=ref, rip=r.rip, rport=r.rport))
    touched = {(c.rip, c.rport) for c in come if isinstance(c, ServerSet) and c.service == ref}
    for shift in service.shifts:  # behind the weights, whose change ends a shift
        if shift not in known.shifts or touched & {shift.key, (shift.to_rip, shift.to_rport)}:
            come.append(ServerShift(service=ref, **_plain(shift)))


def describe(old: Config, new: Config) -> list[str]:
    """What differs in plain lines: + comes, - goes, ~ is otherwise. A service that comes or goes is one line."""
    gone: list[str] = []
    come: list[str] = []
    within: tuple[list[Change], list[Change]] = [], []
    for key in new.services.changed_since(old.services):
        was, now = old.services.get(key), new.services.get(key)
        if now is None:
            gone.append(f"- service {key}")
        elif was is None:
            told = [f"{f} {shown(v)}" for f, v in _fields(now).items() if v != Service.model_fields[f].default]
            told += [f"{len(now.servers)} rs", f"{len(now.lips)} lips"]
            come.append(f"+ service {key}: {', '.join(told)}")
        else:
            _diff_service(key, was, now, *within)
    others = diff(old.model_copy(update={"services": new.services}), new)
    return gone + [_line(change, old) for change in (*within[0], *within[1], *others)] + come


def _line(change: Change, old: Config) -> str:
    given = {f: getattr(change, f) for f in type(change).model_fields if f in change.model_fields_set and f != "op"}
    match change:
        case ServiceSet():
            was = old.services.get(change.key)
            moved = [
                f"{f} {shown(getattr(was, f, None))} -> {shown(v)}" for f, v in given.items() if f in SERVICE_FIELDS
            ]
            return f"~ service {change.key}: {', '.join(moved)}"
        case ServiceAdd():
            usual = ServiceAdd.model_fields
            told = [f"{f} {shown(v)}" for f, v in given.items() if f in SERVICE_FIELDS and v != usual[f].default]
            return f"+ service {change.key}" + (f": {', '.join(told)}" if told else "")
        case ServiceDel():
            return f"- service {change.key}"
        case ServerAdd() | ServerSet():
            service, key = old.services.get(change.service.key), (change.rip, change.rport)
            was_rs = next((r for r in service.servers if r.key == key), None) if service else None
            sign, told = ("~" if was_rs else "+"), []
            for f in RealServer.model_fields:
                before, value = getattr(was_rs, f, None), getattr(change, f, None)
                if f in ("rip", "rport") or f not in given or (was_rs and before == value):
                    continue
                told.append(f"{f} {shown(before)} -> {shown(value)}" if was_rs else f"{f} {shown(value)}")
            return f"{sign} rs {addresses.endpoint(*key)} of {change.service.key}: {', '.join(told)}"
        case ServerDel():
            return f"- rs {addresses.endpoint(change.rip, change.rport)} of {change.service.key}"
        case ServerDrain() | ServerUndrain() | ServerShift() | ServerUnshift():
            what, _, ends = change.op.partition(".")[2].partition("un")
            if isinstance(change, ServerShift):
                what += f" to {addresses.endpoint(change.to_rip, change.to_rport)}, {change.per_min:g} %/min"
            at = addresses.endpoint(change.rip, change.rport)
            return f"~ rs {at} of {change.service.key}: {f'{ends} ends' if ends else what}"
        case LipAdd() | LipDel():
            on = f" on {change.port}" if change.port else ""
            return f"{_sign(change)} lip {change.addr}{on} of {change.service.key}"
        case AddrAdd() | AddrDel():
            return f"{_sign(change)} addr {change.addr}/{change.plen} on {change.port}" + " sapool" * change.sapool
        case SetAdd():
            told = [change.type, change.span or "", _entries(change.entries)]
            return f"+ set {change.name}: {', '.join(filter(None, told))}"
        case SetDel() | SetFlush():
            return f"- set {change.name}" + (": all entries" if isinstance(change, SetFlush) else "")
        case SetEntryAdd() | SetEntryDel():
            sign = "+" if isinstance(change, SetEntryAdd) else "-"
            return f"{sign} entries of set {change.set}: {_entries(change.entries)}"
        case AclAdd() | AclDel():
            of = f" of {change.service.key}" if change.service else ""
            return f"{_sign(change)} acl {change.list} {change.entry}{of}"
        case LinkSet():
            return f"~ port {change.port}: {'up' if change.up else 'down'}"
        case _:
            told = [f"{f} {shown(v)}" for f, v in given.items() if v not in (None, 0)]
            return f"{_sign(change)} {change.op.split('.')[0]} {', '.join(told)}".rstrip()


def _sign(change: Change) -> str:
    return {"add": "+", "del": "-", "clear": "-", "flush": "-"}.get(change.op.split(".")[1], "~")


def _entries(entries: tuple[str, ...]) -> str:
    """A set may have a million."""
    return ", ".join(map(str, entries)) if len(entries) <= ENTRIES_SHOWN else f"{len(entries)} entries"


def shown(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "none"
    return "default" if value is None else str(value) or "none"


@dataclass
class Impact:
    """What becomes of a service's connections. cut_servers: those whose connections end at once; left_servers: those
    that only get no new ones."""

    service: Service
    cut: bool  # all of them
    cut_servers: list[RealServer]
    left_servers: list[RealServer]
    slots: tuple[int, int] | None
    without_rs: bool


def impact(old: Config, new: Config) -> list[Impact]:
    """The blast radius: services of old whose connections or scheduling the new config touches."""
    found = []
    stopped = set(new.down) - set(old.down)
    held = new.addresses.by_key.keys() | new.services.lips.keys()
    touched = dict.fromkeys(new.services.changed_since(old.services))
    gone = {a for a in old.addresses.changed_since(new.addresses) if a not in held}
    if gone or stopped:
        touched |= dict.fromkeys(old.services.by_key)
    for key in touched:
        was, now = old.services.get(key), new.services.get(key)
        if was is None:
            continue
        usable = {r.key for r in now.servers if r.weight} if now else set[tuple[str, int]]()
        idle = [r for r in was.servers if r.weight and r.key not in usable]
        vip = old.addresses.get(was.vip)
        stops = any(lip.port in stopped for lip in was.lips) or (vip is not None and vip.port in stopped)
        cut = (vip is not None and was.vip not in held) or stops
        without = now is not None and not usable and any(r.weight for r in was.servers)
        moved = slots_moved(was, now) if now else None
        slots = (moved.moved, moved.slots) if moved and moved.moved else None
        if idle or cut or slots or without or now is None:
            ends = was.expire_quiescent
            found.append(Impact(was, cut, idle if ends else [], [] if ends else idle, slots, without))
    return found


def vips_without_rs(old: Config, new: Config) -> list[str]:
    """VIPs that the new config leaves without a usable server, and the old one did not."""
    return [
        vip
        for vip in new.services.vips
        if vip not in new.services.served and (vip in old.services.served or vip not in old.services.vips)
    ]


_IDENTITY: dict[str, tuple[str, ...]] = {
    "service": ("proto", "vip", "vport"),
    "server": ("service", "rip", "rport"),
    "lip": ("service", "addr"),
    "addr": ("addr",),
    "route": ("prefix", "metric"),
    "neigh": ("port", "addr"),
    "link": ("port",),
    "acl": ("service", "list", "entry"),
    "set": ("name", "set"),
}


def subject(change: Change) -> str:
    """The thing that a change is about, in words: "server tcp 10.0.0.1:80 10.1.1.1 80"."""
    noun = change.op.split(".")[0]
    values = (getattr(change, name, None) for name in _IDENTITY[noun])
    return " ".join([noun, *(str(v.key if isinstance(v, ServiceRef) else v) for v in values if v is not None)])


def name_of(value: Service | Address | Route | Neighbour) -> str:
    """A thing of the config in the words of `subject`."""
    match value:
        case Service():
            return f"service {value.key}"
        case Address():
            return f"addr {value.addr}"
        case Route():
            return f"route {value.prefix} {value.metric}"
        case Neighbour():
            return f"neigh {value.port} {value.addr}"


class _Edits(Generic[K, V]):
    """A table under change: what it is made from, and what differs."""

    def __init__(self, table: Table[K, V]) -> None:
        self.table = table
        self.edits: dict[K, V | None] = {}

    def get(self, key: K) -> V | None:
        return self.edits[key] if key in self.edits else self.table.by_key.get(key)

    def __contains__(self, key: K) -> bool:
        return self.get(key) is not None

    def put(self, value: V) -> None:
        self.edits[value.key] = value

    def drop(self, key: K) -> None:
        self.edits[key] = None

    def values(self) -> list[V]:
        kept = [value for key, value in self.table.by_key.items() if key not in self.edits]
        return kept + [value for value in self.edits.values() if value is not None]


class _ServiceDraft:
    """A service under change; many changes of one make one new service."""

    def __init__(self, service: Service) -> None:
        self.of = service
        self.fields: dict[str, Any] = {}
        self.servers: dict[tuple[str, int], RealServer] | None = None
        self.lips: dict[str, LocalAddress] | None = None
        self.shifts: dict[tuple[str, int], Shift] | None = None

    @property
    def key(self) -> Key:
        return self.of.key

    def of_servers(self) -> dict[tuple[str, int], RealServer]:
        if self.servers is None:
            self.servers = {r.key: r for r in self.of.servers}
        return self.servers

    def of_lips(self) -> dict[str, LocalAddress]:
        if self.lips is None:
            self.lips = {lip.addr: lip for lip in self.of.lips}
        return self.lips

    def of_shifts(self) -> dict[tuple[str, int], Shift]:
        if self.shifts is None:
            self.shifts = {s.key: s for s in self.of.shifts}
        return self.shifts

    def seal(self) -> Service:
        if self.shifts is not None:
            self.fields["shifts"] = tuple(self.shifts.values())
        if self.servers is not None:
            self.fields["servers"] = tuple(self.servers.values())
        if self.lips is not None:
            self.fields["lips"] = tuple(self.lips.values())
        return self.of.model_copy(update=self.fields)


class _Draft:
    """A config under change: edits of its tables, sealed into the next config at the end."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.ports = [p.name for p in config.ports]
        self.services: dict[Key, _ServiceDraft | None] = {}
        self.addresses = _Edits(config.addresses)
        self.routes = _Edits(config.routes)
        self.neighbours = _Edits(config.neighbours)
        self.down = dict.fromkeys(config.down)
        self.acl = config.acl
        self.sets = _Edits(config.sets)

    def seal(self) -> Config:
        old = self.config
        return old.model_copy(
            update={
                "services": old.services.edited({k: s.seal() if s else None for k, s in self.services.items()}),
                "addresses": old.addresses.edited(self.addresses.edits),
                "routes": old.routes.edited(self.routes.edits),
                "neighbours": old.neighbours.edited(self.neighbours.edits),
                "down": tuple(port for port in self.ports if port in self.down),
                "acl": self.acl,
                "sets": old.sets.edited(self.sets.edits),
            }
        )

    def make(self, change: Change, *, replace: bool) -> None:
        match change:
            case ServiceAdd():
                self._service_add(change, replace)
            case ServiceSet():
                given = {f: getattr(change, f) for f in SERVICE_FIELDS if f in change.model_fields_set}
                draft = self._service(change.key)
                draft.fields |= given
                if "scheduler" in given:
                    draft.fields |= {f: v for f, v in _of_no_use(change.scheduler).items() if f not in given}
            case ServiceDel():
                self._service(change.key)
                self.services[change.key] = None
            case ServiceClear():
                self.services = dict.fromkeys([*self.config.services.by_key, *self.services])
            case ServiceZero():
                if change.key is not None:
                    self._service(change.key)
            case AclRecheck():
                pass
            case ServerAdd() | ServerSet() | ServerDel() | ServerDrain() | ServerUndrain():
                self._server(change, replace)
            case ServerShift() | ServerUnshift():
                self._shift(change)
            case LipAdd() | LipDel():
                self._lip(change, replace)
            case AddrAdd():
                self._addr_add(change, replace)
            case AddrDel():
                self._addr_del(change)
            case AddrFlush():
                self._port(change.port)
                for address in self.addresses.values():
                    if address.port == change.port and change.family in (None, addresses.family(address.addr)):
                        self._addr_del(address)
            case RouteAdd() | RouteSet():
                self._route_put(change, replace)
            case RouteDel():
                self._route_del(change)
            case RouteFlush():
                if change.port is not None:
                    self._port(change.port)
                for route in self.routes.values():
                    if change.port in (None, route.port) and change.family in (None, addresses.family(route.prefix)):
                        self.routes.drop(route.key)
            case NeighAdd():
                self._port(change.port)
                at = change.port, change.addr
                if at in self.neighbours and not replace:
                    raise _exists(f"neighbour {change.addr} on {change.port}", "delete it first")
                self.neighbours.put(Neighbour(addr=change.addr, mac=change.mac, port=change.port))
            case NeighDel():
                self._port(change.port)
                known = self.neighbours.get((change.port, change.addr))
                if known is None or change.mac not in (None, known.mac):
                    what = (
                        f"static neighbour {change.addr}{f' with {change.mac}' if change.mac else ''} on {change.port}"
                    )
                    raise _missing(what, [n.addr for n in self.neighbours.values()])
                self.neighbours.drop(known.key)
            case AclAdd() | AclDel():
                self._acl(change, replace)
            case SetAdd() | SetDel() | SetFlush() | SetEntryAdd() | SetEntryDel():
                self._set(change, replace)
            case LinkSet():
                self._port(change.port)
                if change.up:
                    self.down.pop(change.port, None)
                else:
                    self.down[change.port] = None
            case _:
                assert_never(change)

    def _acl(self, change: AclAdd | AclDel, replace: bool) -> None:
        draft = self._service(change.service.key) if change.service is not None else None
        who = f"the {change.list} list of {draft.key if draft else 'all services'}"
        known = (
            draft.fields.get(change.list, getattr(draft.of, change.list)) if draft else getattr(self.acl, change.list)
        )
        if isinstance(change, AclDel):
            if change.entry not in known:
                raise _missing(f"{change.entry} in {who}", known, change.entry)
            entries = tuple(entry for entry in known if entry != change.entry)
        elif change.entry in known:
            if not replace:
                raise _exists(f"{change.entry} in {who}", "nothing is to be done")
            entries = known
        else:
            entries = (*known, change.entry)
        if draft:
            draft.fields[change.list] = entries
        else:
            self.acl = Acl.model_construct(**{**_plain(self.acl), change.list: entries})

    def _set(self, change: SetAdd | SetDel | SetFlush | SetEntryAdd | SetEntryDel, replace: bool) -> None:
        name = change.set if isinstance(change, SetEntryAdd | SetEntryDel) else change.name
        known = self.sets.get(name)
        if isinstance(change, SetAdd):
            if known is not None and not replace:
                raise _exists(f"set {name}", "change it with set.entry.add and set.entry.del")
            if known is None or (known.type, known.span) != (change.type, change.span):
                known = AddressSet(name, type=change.type, span=change.span)
            self.sets.put(_with_entries(known, change.entries, replace=True))
            return
        if known is None:
            raise _missing(f"set {name}", list(self.config.sets.by_key), name)
        match change:
            case SetDel():
                self.sets.drop(name)
            case SetFlush():
                self.sets.put(AddressSet(name, type=known.type, span=known.span))
            case SetEntryAdd():
                self.sets.put(_with_entries(known, change.entries, replace=replace))
            case SetEntryDel():
                gone = edits_of(change.entries)
                if missing := next((key for key in gone if known.get(key) is None), None):
                    if not replace:
                        raise _missing(f"entry {text_of(missing)} in set {name}", list(known.entries(0, 3)))
                    gone = {key: what for key, what in gone.items() if known.get(key) is not None}
                self.sets.put(known.edited(dict.fromkeys(gone)))

    def _port(self, name: str) -> None:
        if name not in self.ports:
            raise ChangeError(
                404,
                "FN-1207",
                f"there is no port {name!r}{_near(name, self.ports)}",
                f"use one of: {', '.join(self.ports) or 'none is open'}",
            )

    def _find(self, key: Key) -> _ServiceDraft | None:
        if key not in self.services:
            known = self.config.services.get(key)
            if known is None:
                return None
            self.services[key] = _ServiceDraft(known)
        return self.services[key]

    def _service(self, key: Key) -> _ServiceDraft:
        draft = self._find(key)
        if draft is None:
            gone = {k for k, s in self.services.items() if s is None}
            known = [k for k in (*self.config.services.by_key, *self.services) if k not in gone]
            raise _missing(f"service {key}", [str(k) for k in known], str(key))
        return draft

    def _service_add(self, change: ServiceAdd, replace: bool) -> None:
        key = change.key
        draft = self._find(key)
        if draft is None:
            self.services[key] = _ServiceDraft(Service(**_ref(key), **_fields(change)))
        elif replace:
            draft.fields |= _fields(change)
        else:
            raise _exists(f"service {key}", "change it with service.set")

    def _server(self, change: ServerAdd | ServerSet | ServerDel | ServerDrain | ServerUndrain, replace: bool) -> None:
        key = change.service.key
        servers = self._service(key).of_servers()
        at = change.rip, change.rport
        if isinstance(change, ServerAdd):
            if at in servers and not replace:
                raise _exists(f"server {addresses.endpoint(*at)} of {key}", "change it with server.set")
        elif at not in servers:
            raise _missing(f"server {addresses.endpoint(*at)} in {key}", [addresses.endpoint(*rs) for rs in servers])
        if isinstance(change, ServerDel) or (isinstance(change, ServerSet) and "weight" in change.model_fields_set):
            draft = self._service(key)
            draft.shifts = {k: s for k, s in draft.of_shifts().items() if at not in (k, (s.to_rip, s.to_rport))}
        if isinstance(change, ServerDel):
            del servers[at]
        elif isinstance(change, ServerDrain):
            drain = Drain(until=change.until, keep_persistent=change.keep_persistent)
            servers[at] = servers[at].model_copy(update={"drain": drain})
        elif isinstance(change, ServerUndrain):
            if servers[at].drain is None and not replace:
                raise _missing(f"drain of server {addresses.endpoint(*at)} of {key}", [])
            servers[at] = servers[at].model_copy(update={"drain": None})
        else:
            known = servers.get(at) if isinstance(change, ServerSet) else None
            given = {f: getattr(known or change, f) for f in SERVER_FIELDS}
            given |= {f: getattr(change, f) for f in change.model_fields_set & {*SERVER_FIELDS}}
            given["drain"] = known.drain if known else None
            servers[at] = _server(change.rip, change.rport, given)

    def _shift(self, change: ServerShift | ServerUnshift) -> None:
        key, at = change.service.key, (change.rip, change.rport)
        draft = self._service(key)
        servers, shifts = draft.of_servers(), draft.of_shifts()
        if isinstance(change, ServerUnshift):
            if at not in shifts:
                raise _missing(f"shift away from server {addresses.endpoint(*at)} of {key}", [])
            del shifts[at]
            return
        to = change.to_rip, change.to_rport
        for one in (at, to):
            if one not in servers:
                raise _missing(
                    f"server {addresses.endpoint(*one)} in {key}", [addresses.endpoint(*rs) for rs in servers]
                )
        if at == to:
            raise ChangeError(400, "FN-1201", "a server cannot give its weight to itself", "name another")
        others = [one for k, s in shifts.items() if k != at for one in (k, (s.to_rip, s.to_rport))]
        if at in others or to in others:
            raise ChangeError(409, "FN-1204", "one of the two is in a shift already", "stop that first")
        weights = change.weights or (servers[at].weight, servers[to].weight)
        if not weights[0]:
            problem = f"server {addresses.endpoint(*at)} of {key} has weight 0, so there is nothing to shift"
            raise ChangeError(409, "FN-1201", problem, "name one that has weight")
        if sum(weights) > 65535:
            raise ChangeError(400, "FN-1201", f"{sum(weights)} is too large a weight", "the most is 65535")
        fields = {f: getattr(change, f) for f in Shift.model_fields} | {"weights": weights}
        shifts[at] = Shift(**fields)

    def _lip(self, change: LipAdd | LipDel, replace: bool) -> None:
        key = change.service.key
        lips = self._service(key).of_lips()
        if isinstance(change, LipAdd):
            self._port(change.port)
            if change.addr in lips and not replace:
                raise _exists(f"LIP {change.addr} of {key}", "nothing is to be done")
            lips[change.addr] = LocalAddress(addr=change.addr, port=change.port)
        else:
            known = lips.get(change.addr)
            if known is None or change.port not in (None, known.port):
                on = f" on {change.port}" if change.port else ""
                raise _missing(
                    f"LIP {change.addr}{on} in {key}", [f"{lip.addr} on {lip.port}" for lip in lips.values()]
                )
            del lips[change.addr]

    def _addr_add(self, change: AddrAdd, replace: bool) -> None:
        self._port(change.port)
        known = self.addresses.get(change.addr)
        if known is not None and not replace:
            raise _exists(f"address {change.addr} on {known.port}", "delete it first")
        bits = addresses.bits(change.addr)
        if change.plen < bits - 1:  # RFC 3021, RFC 6164: the last two have hosts only
            network = addresses.network(change.network)
            reserved = {str(network.network_address): "the subnet-router anycast address"}  # RFC 4291, 2.6.1
            if bits == 32:
                ends = network.network_address, network.broadcast_address
                reserved = dict.fromkeys(map(str, ends), "the network or broadcast address")
            if change.addr in reserved:
                raise ChangeError(
                    400,
                    "FN-1201",
                    f"{change.addr}/{change.plen} is {reserved[change.addr]} of its own prefix",
                    f"give the address of a host, or /{bits}",
                )
        self.addresses.put(Address(**_plain(change)))

    def _addr_del(self, change: Address) -> None:
        self._port(change.port)
        known = self.addresses.get(change.addr)
        user = self._user_of_lip(change.addr)
        if user is not None:
            raise ChangeError(
                409, "FN-1206", f"{change.addr} is a LIP of {user}", "remove it from its services first (lip.del)"
            )
        if known is None or known.port != change.port or known.plen != change.plen:
            have = [f"{a.addr}/{a.plen} on {a.port}" for a in self.addresses.values()]
            what = f"{change.addr}/{change.plen} on {change.port}"
            raise _missing(f"address {what}", have, what)
        self.addresses.drop(change.addr)

    def _user_of_lip(self, addr: str) -> Key | None:
        """A service with this LIP. All are looked at only when one of the config had it."""
        for key, draft in self.services.items():
            if draft is not None and addr in draft.of_lips():
                return key
        if addr not in self.config.services.lips:
            return None
        untouched = (s for s in self.config.services if s.key not in self.services)
        return next((s.key for s in untouched if any(lip.addr == addr for lip in s.lips)), None)

    def _route_put(self, change: RouteAdd | RouteSet, replace: bool) -> None:
        route = self._complete(change)
        if isinstance(change, RouteSet):
            if route.key not in self.routes and not replace:
                raise _missing(
                    f"route {route.prefix} with metric {route.metric}", [r.prefix for r in self.routes.values()]
                )
        elif route.key in self.routes and not replace:
            raise _exists(
                f"route {route.prefix} with metric {route.metric}", "change it with route.set or use another metric"
            )
        self.routes.put(route)

    def _complete(self, change: Route) -> Route:
        """A route with its port and scope filled in from what is known."""
        fields = _plain(change)
        if change.scope == "host":
            raise ChangeError(
                400,
                "FN-1201",
                f"route {change.prefix}: scope host is made by the address itself",
                "add the address (addr.add), or use scope kni_host to hand the prefix to the host",
            )
        scope = change.scope or ("link" if change.gateway is None else "global")
        if change.gateway is not None and scope in ("link", "kni_host"):
            raise ChangeError(
                400,
                "FN-1201",
                f"route {change.prefix}: scope {scope} has no gateway",
                "leave out the gateway or the scope",
            )
        if change.gateway is None and scope == "global":
            raise ChangeError(
                400, "FN-1201", f"route {change.prefix}: scope global needs a gateway", "give a gateway, or scope link"
            )
        port = change.port
        if port is None and change.gateway is not None:
            port = self._port_towards(change.gateway)
        if port is None:
            raise ChangeError(
                400, "FN-1201", f"route {change.prefix}: the port is not known", f"name one of: {', '.join(self.ports)}"
            )
        self._port(port)
        return Route.model_validate({**fields, "scope": scope, "port": port})

    def _port_towards(self, gateway: str) -> str | None:
        """The port on whose connected prefix the gateway lies, longest prefix first."""
        ip = addresses.parse(gateway)
        links = [(addresses.network(a.network), a.port) for a in self.addresses.values() if a.makes_route]
        links += [(addresses.network(r.prefix), r.port or "") for r in self.routes.values() if r.scope == "link"]
        inside = [(net.prefixlen, port) for net, port in links if ip in net]
        return max(inside)[1] if inside else None

    def _route_del(self, change: RouteDel) -> None:
        known = self.routes.get(change.key)
        given = {f: getattr(change, f) for f in type(change).model_fields if f in change.model_fields_set and f != "op"}
        if known is None or any(v is not None and getattr(known, f) != v for f, v in given.items()):
            words = [change.prefix]
            words += [f"{f} {v}" for f, v in given.items() if f != "prefix" and v is not None]
            raise _missing(f"route {' '.join(words)}", [r.prefix for r in self.routes.values()], change.prefix)
        self.routes.drop(change.key)


def _with_entries(known: AddressSet, entries: Sequence[str], *, replace: bool) -> AddressSet:
    """The set with these entries, which its type allows."""
    new: dict[EntryKey, What | None] = {}
    for key, what in edits_of(entries).items():
        had = known.get(key)
        if had == what and not replace:
            raise _exists(f"entry {text_of(key)} in set {known.name}", "nothing is to be done")
        if had != what:
            new[key] = what
        if known.type != "hash:net":
            _check_type(known, key)
    if len(known) + len(new) > MOST:
        raise ChangeError(409, "FN-1303", f"set {known.name} would have more than {MOST} entries", "use two sets")
    return known.edited(new)


def with_packed(known: AddressSet, packed: Packed) -> AddressSet:
    """An empty set with all these entries, which its type allows."""
    if known.type != "hash:net":
        for key in packed.keys.tolist():
            _check_type(known, key)
    return AddressSet(known.name, packed, type=known.type, span=known.span)


def _check_type(known: AddressSet, key: EntryKey) -> None:
    net = network_of(key)
    if known.type == "hash:ip" and net.prefixlen != net.max_prefixlen:
        raise ChangeError(
            400, "FN-1201", f"{net} is no address, and set {known.name} is of type hash:ip", "use hash:net"
        )
    if known.span is not None:
        first, last = map(addresses.parse, known.span.split("-"))
        inside = first.version == net.version and int(first) <= int(net[0]) and int(net[-1]) <= int(last)
        if not inside:
            raise ChangeError(
                400, "FN-1201", f"{net} is outside the range {known.span} of set {known.name}", "give one inside"
            )


def _plain(value: BaseModel) -> dict[str, Any]:
    """Fields of a value, without the op of a change."""
    return {f: getattr(value, f) for f in type(value).model_fields if f != "op"}


def _ref(key: Key) -> dict[str, Any]:
    return {"proto": key.proto, "vip": key.vip, "vport": key.vport}


def _fields(service: Service | ServiceAdd) -> dict[str, Any]:
    return {f: getattr(service, f) for f in SERVICE_FIELDS}


def _server(rip: str, rport: int, fields: dict[str, Any]) -> RealServer:
    try:
        return RealServer(rip=rip, rport=rport, **fields)
    except ValidationError as error:
        problem = str(error.errors()[0]["ctx"]["error"])
        raise ChangeError(409, "FN-1201", f"server {addresses.endpoint(rip, rport)}: {problem}", "give both") from None


def _exists(what: str, fix: str) -> ChangeError:
    return ChangeError(409, "FN-1204", f"{what} exists already", fix)


def _missing(what: str, known: Sequence[str], name: str | None = None) -> ChangeError:
    near = difflib.get_close_matches(name or what, known, n=1) if len(known) <= MANY else []
    if near:
        fix = f"the nearest is {near[0]}"
    elif known:
        fix = f"there is {', '.join(known[:3])}{' and more' if len(known) > 3 else ''}"
    else:
        fix = "there is none at all"
    return ChangeError(404, "FN-1203", f"there is no {what}", fix)


def _two_ports(addr: str, one: str, other: str) -> ChangeError:
    return ChangeError(409, "FN-1205", f"{addr} would lie on {one} and on {other}", "an address belongs to one port")


def _near(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
