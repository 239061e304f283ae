"""The API against its own description: requests that the OpenAPI document allows, and such that it does not
(schemathesis). No answer may be a server error, differ from its schema, or have a status that is not documented."""

import tempfile
from pathlib import Path

import hypothesis
import pytest
import schemathesis
from hypothesis import strategies
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from test_api import House

from fnat import api
from fnat.control import Control
from fnat.engine import Engine
from fnat.model import PortInfo
from fnat.paths import Paths
from fnat.state import Ids, Overlay
from tests.fakes import COUNTERS, FakePlane, FakeSteering

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
MODES = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
core = pytest.importorskip("fnat._core")


def control_of(directory):
    """Control over a data plane of its own, in shared memory, that nobody runs."""
    ports = [PortInfo(id=n, name=name, device="none", kind="tap") for n, name in enumerate(("wan", "lan"))]
    arena = tempfile.mkdtemp(prefix="fnat-schema-", dir="/dev/shm")
    plane = core.Plane.create(arena, conns=1024, services=256, members=1024, endpoints=256, frames=0, snapshot_mib=1)
    ids = Ids(None)
    steering = {port.name: FakeSteering(port.name, []) for port in ports}
    engine = Engine(plane, steering, ports, ids, patience=0.05, startle=0.02)
    control = Control(engine, Overlay(directory / "overlay.json"), Paths(directory, directory / "s"))
    control.start()
    return control, plane, Path(arena)


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    control, plane, arena = control_of(tmp_path_factory.mktemp("schema"))
    yield api.create_app(control)
    plane.close()
    for leftover in arena.iterdir():
        leftover.unlink()
    arena.rmdir()


@pytest.fixture(scope="module")
def schema(app):
    found = schemathesis.openapi.from_asgi("/v1/openapi.json", app)
    return found.exclude(path="/v1/events")  # has no end


def pages():
    """Of the description itself: a control over nothing is enough for it."""
    document = api.create_app(Control(Engine(FakePlane(), {}, [], Ids(None)), Overlay(Path("/nowhere")))).openapi()
    return [(path, method) for path, page in document["paths"].items() for method in page if path != "/v1/events"]


@pytest.mark.parametrize(("path", "method"), pages(), ids=lambda value: value)
def test_answers_are_as_described(schema, path, method):
    @hypothesis.settings(
        max_examples=20,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        derandomize=True,
        database=None,
    )
    @hypothesis.given(strategies.one_of(schema[path][method].as_strategy(generation_mode=mode) for mode in MODES))
    def ask(case):
        case.call_and_validate(checks=CHECKS)

    ask()


def test_the_description_is_complete(tmp_path):
    """Every page has words, every error a shape, every body an example, every number with a unit its unit."""
    document = api.create_app(House(tmp_path).control, COUNTERS).openapi()
    for path, page in document["paths"].items():
        for method, operation in page.items():
            assert operation.get("description") or operation.get("summary"), (method, path)
            for status, response in operation["responses"].items():
                if int(status) >= 400:
                    assert "application/problem+json" in response["content"], (method, path, status)
            if method in ("put", "patch"):
                assert operation["requestBody"]["content"]["application/json"]["examples"], (method, path)
    service = document["components"]["schemas"]["ServiceBody"]["properties"]
    assert "seconds" in service["conn_timeout"]["description"]
    for name in ("in_bps", "out_bps"):
        assert "per second" in document["components"]["schemas"]["RateView"]["properties"][name]["description"]
