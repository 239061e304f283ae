"""-S leaves nothing out, and -R puts it back: whatever services there are, and over whatever services there were."""

from __future__ import annotations

import typing
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from fnat import plan
from fnat.addresses import bits
from fnat.errors import ChangeError
from fnat.grammar import ipvsadm
from fnat.model import CHANGES, CLIENT_ADDRS, Config, LocalAddress, Port, RealServer, Service, Services, Shape

PORTS = ("dpdk0", "wan")
IDENTITY = {"proto", "vip", "vport", "rip", "rport", "lips", "servers"}
V4 = st.integers(1, 250).map("192.0.2.{}".format)
V6 = st.integers(1, 2**16 - 1).map("2001:db8::{:x}".format)
RS = st.integers(1, 250).map("198.51.100.{}".format) | st.integers(1, 2**16 - 1).map("2001:db8:5::{:x}".format)
LIP = st.integers(1, 250).map("203.0.113.{}".format) | st.integers(1, 2**16 - 1).map("2001:db8:9::{:x}".format)

# fields whose values are words with a rule of their own; every other one is drawn from its type
BY_NAME: dict[str, Callable[[dict[str, Any]], st.SearchStrategy[Any]]] = {
    "client_addr": lambda key: st.sampled_from(CLIENT_ADDRS[key["proto"]]),
    "persistent_mask": lambda key: st.none() | st.integers(1, bits(key["vip"])),
    "no_rs": lambda key: st.sampled_from(
        ["drop", "reset", "192.0.2.251:80", "[2001:db8:7::1]:8080"]
    ),
    "name": lambda key: st.sampled_from(["", "web", "a#b", "$x;'y`", "-a", "--name"]),
    "drain": lambda key: st.sampled_from([None, {"until": None, "keep_persistent": True}, {"until": 2_000_000_000}]),
    "hash_slots": lambda key: st.sampled_from([None, 1021, 4093]),
    "deny": lambda key: st.lists(st.sampled_from(["198.18.0.0/15", "2001:db8:bad::/48"]), unique=True).map(tuple),
    "allow": lambda key: st.lists(st.sampled_from(["192.0.2.0/24", "2001:db8:a::/48"]), unique=True).map(tuple),
}


def of(info: FieldInfo) -> st.SearchStrategy[Any]:
    """Values of a field by its type and bounds."""
    kind = info.annotation
    if typing.get_origin(kind) is typing.Literal:
        return st.sampled_from(typing.get_args(kind))
    if kind is bool:
        return st.booleans()
    bounds = {name: getattr(rule, name) for rule in info.metadata for name in ("ge", "le") if hasattr(rule, name)}
    return st.just(info.default) | st.integers(bounds.get("ge", 0), min(bounds.get("le", 10**6), 10**9))


def is_valid(model: type[BaseModel], values: dict[str, Any]) -> bool:
    """By itself, and of a service: in a configuration."""
    try:
        model.model_validate(values)
        if model is Shape:
            plan.check(Config(services=Services([Service(**values)])))
    except (ValidationError, ChangeError):
        return False
    return True


def made(draw: Any, model: type[BaseModel], key: dict[str, Any]) -> dict[str, Any]:
    """A valid value of the model with this identity."""
    fields = {
        name: draw(BY_NAME[name](key) if name in BY_NAME else of(info))
        for name, info in model.model_fields.items()
        if name not in IDENTITY
    }
    while not is_valid(model, {**key, **fields}):  # what excludes another field goes back to its default
        fields.pop(next(name for name in reversed(fields) if name != "scheduler"))
    return {**key, **fields}


@st.composite
def configs(draw: Any) -> Config:
    found: dict[Any, Service] = {}
    for _ in range(draw(st.integers(0, 4))):
        key = {
            "proto": draw(st.sampled_from(["tcp", "udp", "sctp"])),
            "vip": draw(V4 | V6),
            "vport": draw(st.integers(1, 65535)),
        }
        shape = made(draw, Shape, key)
        servers = {
            server.key: server
            for server in (
                RealServer(**made(draw, RealServer, {"rip": rip, "rport": draw(st.integers(1, 65535))}))
                for rip in draw(st.lists(RS, max_size=3))
            )
        }
        lips = [
            LocalAddress(addr=lip, port=PORTS[len(lip) % 2]) for lip in draw(st.lists(LIP, max_size=3, unique=True))
        ]
        service = Service(**shape, lips=tuple(lips), servers=tuple(servers.values()))
        found[service.key] = service
    return Config(ports=tuple(Port(name=name) for name in PORTS), services=Services(found.values()))


def normal(config: Config) -> dict[Any, Any]:
    """What order does not change."""
    return {
        service.key: service.model_copy(update={"servers": tuple(sorted(service.servers, key=lambda rs: rs.key))})
        for service in config.services
    }


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(configs(), configs())
def test_what_is_saved_comes_back_over_anything(wanted: Config, before: Config) -> None:
    saved = ipvsadm.save_text([service.model_dump() for service in wanted.services])
    if not saved:
        saved = "-C\n"
    after = plan.apply(before, CHANGES.validate_python(ipvsadm.parse_rules(saved).changes))
    assert normal(after) == normal(wanted)


def test_a_restore_touches_no_service_that_stays_the_same() -> None:
    """The next picture differs from the one before in nothing of it, so its connections go on."""
    lips = (LocalAddress(addr="203.0.113.1", port="wan"),)
    stays = Service(proto="tcp", vip="192.0.2.1", vport=80, client_addr="toa", lips=lips,
                    servers=(RealServer(rip="198.51.100.1", rport=80),))  # fmt: skip
    goes = Service(proto="tcp", vip="192.0.2.2", vport=80, client_addr="toa", lips=lips)
    before = Config(ports=(Port(name="wan"),), services=Services([stays, goes]))
    saved = ipvsadm.save_text([stays.model_dump()]) + "-A -u 192.0.2.3:53\n"
    after = plan.apply(before, CHANGES.validate_python(ipvsadm.parse_rules(saved).changes))
    assert [str(key) for key in after.services.changed_since(before.services)] == [
        "tcp 192.0.2.2:80",
        "udp 192.0.2.3:53",
    ]


PARTIAL = [
    ("a field of a service", Shape, ipvsadm.SHAPE),
    ("a field of a server", RealServer, ipvsadm.SERVER),
]


@pytest.mark.parametrize(("model", "rows"), [row[1:] for row in PARTIAL], ids=[row[0] for row in PARTIAL])
def test_every_field_is_drawn(model: type[BaseModel], rows: tuple[ipvsadm.Option, ...]) -> None:
    """The property above would say nothing of a field that is always at its default."""
    drawn = {option.field for option in rows if option.known} | (model.model_fields.keys() & {"deny", "allow"})
    assert drawn == set(model.model_fields) - IDENTITY
