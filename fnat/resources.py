"""The API's resources: services with their servers and LIPs, addresses, routes, neighbours, ports; one at a time.

One table, KINDS, says how each is named, read and written; GET, PUT, PATCH and DELETE are made from it. A write is an
edit of the config: what differs becomes changes, which take the way of POST /v1/changes. What is given to PUT may be
what GET gave. Names in paths: `10.0.0.1:80`, `[2001:db8::1]:80` (also with %5B and %5D).

ETags are digests of the config shown, so they outlive a restart. Order has no meaning: a PUT that only orders servers
anew changes nothing.
"""

import functools
import hashlib
import json
import operator
import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, cast

from fastapi import APIRouter, Body, Depends, Path, Request, Response
from pydantic import BaseModel, ValidationError, create_model

from fnat import addresses
from fnat.control import Control
from fnat.errors import ChangeError
from fnat.model import (
    Address,
    Config,
    Frozen,
    Key,
    LocalAddress,
    Neighbour,
    PortName,
    Proto,
    RealServer,
    Route,
    Service,
    Table,
    ip,
)
from fnat.refusals import refusal_of
from fnat.sets import AddressSet

Value = Any  # of the kind that is at hand


class PortState(Frozen):
    """Whether a port is in use."""

    name: PortName
    up: bool


# ---- names in paths ----

Endpoint = Annotated[str, Path(description="ADDRESS:PORT or [IPV6]:PORT", examples=["10.0.0.1:80", "[2001:db8::1]:80"])]
AddressText = Annotated[str, Path(description="An IPv4 or IPv6 address", examples=["10.0.0.1", "2001:db8::1"])]
PortText = Annotated[str, Path(description="A port of the balancer, by its name", examples=["wan"])]


def _endpoint(text: str, field: str) -> tuple[str, int]:
    try:
        host, port = addresses.split(text)
        if not re.fullmatch("[1-9][0-9]{0,4}", port) or int(port) > 65535:
            raise ValueError(f"{text!r} is not ADDRESS:PORT")
        return ip(host), int(port)
    except ValueError as error:
        raise ChangeError(400, "FN-1201", str(error), "write 10.0.0.1:80 or [2001:db8::1]:80", field) from None


def _address(text: str, field: str, *, link_local: bool = False) -> str:
    try:
        return addresses.host(text, link_local=link_local)
    except ValueError as error:
        raise ChangeError(400, "FN-1201", str(error), "write 10.0.0.1 or 2001:db8::1", field) from None


def service_name(proto: Proto, service: Endpoint) -> tuple[Key]:
    return (Key(proto, *_endpoint(service, "service")),)


ServiceName = Annotated[tuple[Key], Depends(service_name)]


def server_name(service: ServiceName, server: Endpoint) -> tuple[Key, tuple[str, int]]:
    return *service, _endpoint(server, "server")


def lip_name(service: ServiceName, lip: AddressText) -> tuple[Key, str]:
    return *service, _address(lip, "lip")


def address_name(addr: AddressText) -> tuple[str]:
    return (_address(addr, "addr"),)


def route_name(
    network: Annotated[str, Path(examples=["10.0.0.0", "2001:db8::"])],
    plen: Annotated[int, Path(ge=0, le=128, description="Prefix length", examples=[8])],
    metric: Annotated[int, Path(ge=0, le=2**32 - 1, examples=[0])],
) -> tuple[tuple[str, int]]:
    try:
        return ((str(addresses.network(f"{network}/{plen}")), metric),)
    except ValueError as error:
        raise ChangeError(400, "FN-1201", str(error), "write /v1/routes/10.0.0.0/8/0", "network") from None


def neighbour_name(port: PortText, addr: AddressText) -> tuple[tuple[str, str]]:
    return ((port, _address(addr, "addr", link_local=True)),)


def port_name(port: PortText) -> tuple[str]:
    return (port,)


# ---- where they are in the config ----


class Place(NamedTuple):
    """read(config, *name) -> value or None; write(config, value or None, *name) -> config."""

    read: Callable[..., Value]
    write: Callable[..., Config]


def _of_table(field: str) -> Place:
    def read(config: Config, key: Hashable) -> Value:
        return getattr(config, field).get(key)

    def write(config: Config, value: Value, key: Hashable) -> Config:
        return config.model_copy(update={field: getattr(config, field).edited({key: value})})

    return Place(read, write)


def _of_service(field: str, key_of: Callable[[Value], Hashable]) -> Place:
    def read(config: Config, service: Key, key: Hashable) -> Value:
        return {key_of(v): v for v in getattr(_service(config, service), field)}.get(key)

    def write(config: Config, value: Value, service: Key, key: Hashable) -> Config:
        known = _service(config, service)
        parts = {key_of(v): v for v in getattr(known, field)}
        if value is None:
            parts.pop(key, None)
        else:
            parts[key] = value
        edited = known.model_copy(update={field: tuple(parts.values())})
        return config.model_copy(update={"services": config.services.edited({service: edited})})

    return Place(read, write)


def _service(config: Config, key: Key) -> Service:
    service = config.services.get(key)
    if service is None:
        raise _missing(f"service {key}")
    return service


def _port(config: Config, name: str) -> PortState | None:
    known = any(port.name == name for port in config.ports)
    return PortState(name=name, up=name not in config.down) if known else None


def _set_port(config: Config, value: PortState | None, name: str) -> Config:
    down = [port for port in config.down if port != name] + ([name] if value is not None and not value.up else [])
    return config.model_copy(update={"down": tuple(down)})


@dataclass(frozen=True)
class Kind:
    """name: the path's parameters as the key, in parts. identity: from that key, the fields that must agree."""

    noun: str
    path: str
    model: type[Frozen]
    name: Callable[..., tuple[Any, ...]]
    identity: Callable[..., dict[str, Any]]
    place: Place
    example: dict[str, Any]
    fixed: bool = False  # it is always there: no DELETE, and PUT makes no new one


KINDS = (
    Kind(
        "service", "/v1/services/{proto}/{service}", Service, service_name, lambda key: key._asdict(),
        _of_table("services"),
        example={
            "scheduler": "wrr",
            "servers": [{"rip": "10.31.2.11", "rport": 8080, "weight": 10}],
            "lips": [{"addr": "10.31.101.1", "port": "lan"}],
        },
    ),
    Kind(
        "server", "/v1/services/{proto}/{service}/servers/{server}", RealServer, server_name,
        lambda _, at: {"rip": at[0], "rport": at[1]}, _of_service("servers", lambda v: v.key), example={"weight": 10},
    ),
    Kind(
        "LIP", "/v1/services/{proto}/{service}/lips/{lip}", LocalAddress, lip_name, lambda _, addr: {"addr": addr},
        _of_service("lips", lambda v: v.addr), example={"port": "lan"},
    ),
    Kind(
        "address", "/v1/addresses/{addr}", Address, address_name, lambda addr: {"addr": addr},
        _of_table("addresses"), example={"port": "wan", "plen": 32},
    ),
    Kind(
        "route", "/v1/routes/{network}/{plen}/{metric}", Route, route_name,
        lambda key: {"prefix": key[0], "metric": key[1]}, _of_table("routes"), example={"port": "wan"},
    ),
    Kind(
        "neighbour", "/v1/neighbours/{port}/{addr}", Neighbour, neighbour_name,
        lambda key: {"port": key[0], "addr": key[1]}, _of_table("neighbours"), example={"mac": "02:00:00:00:00:01"},
    ),
    Kind(
        "port", "/v1/ports/{port}", PortState, port_name, lambda name: {"name": name}, Place(_port, _set_port),
        example={"up": True}, fixed=True,
    ),
)  # fmt: skip


# ---- ETags and conditions (RFC 9110, 13) ----


def etag(value: BaseModel | None) -> str | None:
    """None: there is no such thing."""
    if value is None:
        return None
    fields = value.model_dump(mode="json")
    for name in ("servers", "lips"):
        if name in fields:
            fields[name].sort(key=str)
    return etag_of_text(json.dumps(fields))


def etag_of_text(text: str | bytes) -> str:
    data = text.encode() if isinstance(text, str) else text
    return f'"{hashlib.blake2s(data, digest_size=12).hexdigest()}"'


class Digests:
    """Of whole tables. What is asked again costs as much as what has changed since."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Table[Any, Any], int]] = {}
        self._sets: dict[str, tuple[AddressSet, int]] = {}

    def etag(self, config: Config, *fields: str) -> str:
        sums = [self._sum(config, field) for field in fields]
        return etag_of_text(f"{sums} {sorted(config.down) if 'down' in fields else ''}")

    def _sum(self, config: Config, field: str) -> int:
        table = getattr(config, field)
        if field == "down":
            return 0
        if field == "acl":
            return _number(table)
        if field == "sets":
            self._sets = {each.name: (each, self._sum_of_set(each)) for each in table}
            return functools.reduce(operator.xor, (total for _, total in self._sets.values()), 0)
        before, total = self._known.get(field, (Table[Any, Any](), 0))
        if table is not before:
            for key in table.changed_since(before):
                total ^= _number(before.get(key)) ^ _number(table.get(key))
            self._known[field] = table, total
        return total


    def _sum_of_set(self, new: AddressSet) -> int:
        """From the one of before when little has changed: a set may have a million entries."""
        old, total = self._sets.get(new.name, (None, 0))
        if old is None or (old.packed is not new.packed and old is not new):
            packed = new.packed
            whole = hashlib.blake2s(repr((new.name, new.type, new.span)).encode(), digest_size=12)
            for column in (packed.keys, packed.answers, packed.until):
                whole.update(column.tobytes())
            total = int(whole.hexdigest(), 16)
            old = AddressSet(new.name, new.packed)
        for key, what in new.changed_since(old).items():
            for entry in (old.get(key), what):
                total ^= int(etag_of_text(repr((key, entry))).strip('"'), 16) if entry is not None else 0
        return total


def _number(value: BaseModel | None) -> int:
    return int(cast(str, etag(value)).strip('"'), 16) if value is not None else 0


WHOLE = ("services", "addresses", "routes", "neighbours", "down", "acl", "sets")


def check_conditions(request: Request, now: str | None) -> None:
    """If-Match and If-None-Match of a request that writes. Raises ChangeError(412)."""
    wanted, unwanted = request.headers.get("if-match"), request.headers.get("if-none-match")
    fits = wanted is None or (now is not None and (wanted.strip() == "*" or now in _tags(wanted)))
    if fits and unwanted is not None and now is not None:
        fits = unwanted.strip() != "*" and now not in _tags(unwanted)
    if not fits:
        problem = f"its ETag is {now}" if now else "it does not exist"
        raise ChangeError(412, "FN-1603", f"the resource is another: {problem}", "get it anew and decide again")


def unchanged(request: Request, now: str) -> bool:
    """Whether a reader has it already."""
    known = request.headers.get("if-none-match", "")
    return known.strip() == "*" or now.removeprefix("W/") in _tags(known)


def _tags(text: str) -> list[str]:
    """Weak comparison, which is right for If-None-Match; If-Match never gets a weak one from us."""
    return re.findall(r'"[^"]*"', text)


NOT_MODIFIED: dict[int | str, dict[str, Any]] = {304: {"description": "The reader has it (If-None-Match)"}}


def tagged(request: Request, value: object) -> Response:
    """An answer whose ETag is a digest of it."""
    body = json.dumps(value).encode()
    tag = etag_of_text(body)
    if unchanged(request, tag):
        return Response(status_code=304, headers={"ETag": tag})
    return Response(body, headers={"ETag": tag}, media_type="application/json")


def answer(request: Request, value: BaseModel, status: int = 200) -> Response:
    tag = cast(str, etag(value))
    if request.method in ("GET", "HEAD") and unchanged(request, tag):
        return Response(status_code=304, headers={"ETag": tag})
    return Response(value.model_dump_json(), status, {"ETag": tag}, "application/json")


# ---- the pages ----


def _missing(what: str) -> ChangeError:
    return ChangeError(404, "FN-1203", f"there is no {what}", "the collection lists what there is")


def _words(kind: Kind, name: tuple[Any, ...]) -> str:
    parts = [addresses.endpoint(*part) if kind.noun == "server" and part is name[-1] else part for part in name]
    return f"{kind.noun} {' '.join(' '.join(map(str, p)) if type(p) is tuple else str(p) for p in reversed(parts))}"


def _built(kind: Kind, name: tuple[Any, ...], fields: dict[str, Any]) -> Value:
    """The whole value. Raises ChangeError(400)."""
    identity = kind.identity(*name)
    try:
        value = kind.model.model_validate({**identity, **fields})
    except ValidationError as error:
        raise refusal_of(error.errors()[0]) from None
    for field, own in identity.items():
        if getattr(value, field) != own:
            message = f"{field}: {getattr(value, field)!r} in the body, {own!r} in the path"
            raise ChangeError(400, "FN-1201", message, "leave it out of the body", field)
    if isinstance(value, Service):
        for field, keys in (("servers", [s.key for s in value.servers]), ("lips", [lip.addr for lip in value.lips])):
            if len(set(keys)) < len(keys):
                raise ChangeError(400, "FN-1201", f"{field}: one is there twice", "name each once", field)
    return value


def body_of(kind: Kind) -> type[BaseModel]:
    """What PUT takes: the model, its identity optional."""
    identity = {"service": ("proto", "vip", "vport"), "server": ("rip", "rport"), "route": ("prefix", "metric")}.get(
        kind.noun, {"neighbour": ("port", "addr"), "port": ("name",)}.get(kind.noun, ("addr",))
    )
    fields: dict[str, Any] = {}
    for name, field in kind.model.model_fields.items():
        fields[name] = (str | int | None, None) if name in identity else (field.annotation, field)
    return create_model(f"{kind.model.__name__}Body", __base__=Frozen, __doc__=kind.model.__doc__, **fields)


def router(control: Control) -> APIRouter:
    pages = APIRouter()
    for kind in KINDS:
        _add_pages(pages, control, kind)

    @pages.get("/v1/services/{proto}/{service}/servers", responses=NOT_MODIFIED)
    def get_servers(request: Request, name: ServiceName) -> list[RealServer]:
        return cast(list[RealServer], _tagged_list(request, _service(control.engine.config, *name).servers))

    @pages.get("/v1/services/{proto}/{service}/lips", responses=NOT_MODIFIED)
    def get_lips(request: Request, name: ServiceName) -> list[LocalAddress]:
        return cast(list[LocalAddress], _tagged_list(request, _service(control.engine.config, *name).lips))

    return pages


def _tagged_list(request: Request, values: Sequence[BaseModel]) -> Response:
    return tagged(request, [value.model_dump(mode="json") for value in values])


def _add_pages(pages: APIRouter, control: Control, kind: Kind) -> None:
    Name: Any = Annotated[Any, Depends(kind.name)]  # types, but made here
    Whole: Any = Annotated[body_of(kind), Body(openapi_examples={"one": {"value": kind.example}})]
    Part: Any = Annotated[dict[str, Any], Body(openapi_examples={"some": {"value": kind.example}})]

    def write(request: Request, name: tuple[Any, ...], make: Callable[[Value], Value]) -> tuple[Value, Value]:
        """make: the new value from the old one. -> both, as they are in the config."""

        def edit(config: Config) -> Config:
            known = kind.place.read(config, *name)
            check_conditions(request, etag(known))
            if kind.fixed and known is None:
                raise _missing(_words(kind, name))
            return kind.place.write(config, make(known), *name)

        before, after = control.edit(edit)
        try:
            return kind.place.read(before, *name), kind.place.read(after, *name)
        except ChangeError:  # of a service that has gone meanwhile
            return None, None

    @pages.get(kind.path, response_model=kind.model, responses=NOT_MODIFIED, name=f"get {kind.noun}")
    def get(request: Request, name: Name) -> Response:
        value = kind.place.read(control.engine.config, *name)
        if value is None:
            raise _missing(_words(kind, name))
        return answer(request, value)

    made: dict[int | str, Any] = {} if kind.fixed else {201: {"model": kind.model, "description": "It is new"}}

    @pages.put(kind.path, response_model=kind.model, responses=made, name=f"put {kind.noun}")
    def put(request: Request, name: Name, body: Whole) -> Response:
        """The whole of it: what is left out gets its default. The same again changes nothing."""
        value = _built(kind, name, {k: v for k, v in body.model_dump(exclude_unset=True).items() if v is not None})
        before, after = write(request, name, lambda _: value)
        return answer(request, after, 200 if before is not None else 201)

    @pages.patch(kind.path, response_model=kind.model, name=f"patch {kind.noun}")
    def patch(request: Request, name: Name, body: Part) -> Response:
        """What is given, as a merge patch (RFC 7396): null gives a field its default, a list replaces the list."""

        def merged(known: Value) -> Value:
            if known is None:
                raise _missing(_words(kind, name))
            fields = {**known.model_dump(mode="json"), **body}
            return _built(kind, name, {k: v for k, v in fields.items() if v is not None})

        return answer(request, write(request, name, merged)[1])

    if kind.fixed:
        return

    @pages.delete(kind.path, status_code=204, name=f"delete {kind.noun}")
    def delete(request: Request, name: Name) -> None:
        def nothing(known: Value) -> None:
            if known is None:
                raise _missing(_words(kind, name))

        write(request, name, nothing)
