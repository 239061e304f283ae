"""/metrics: every counter of the core once, and services, servers and LIPs by name."""

import math

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fnat import plan
from fnat.engine import Engine
from fnat.metrics import render
from fnat.model import CHANGES, Config, Port, PortInfo
from fnat.state import Ids
from tests.fakes import COUNTERS, AddressStats, FakePlane, Stats

WEB = {"proto": "tcp", "vip": "10.0.0.1", "vport": 80}
ADD = [
    {"op": "service.add", **WEB},
    {"op": "server.add", "service": WEB, "rip": "10.1.1.1", "rport": 8080, "weight": 3},
    {"op": "lip.add", "service": WEB, "addr": "10.2.0.1", "port": "lan"},
]


@pytest.fixture
def engine():
    plane = FakePlane()
    engine = Engine(plane, {}, [PortInfo(id=0, name="lan")], Ids(None))
    engine.commit(plan.apply(Config(ports=(Port(name="lan"),)), CHANGES.validate_python(ADD)))
    plane.of_service[1] = plane.of_member[1] = Stats(1, 2, 3, 4, 5, 6, 7)
    plane.of_address[1] = AddressStats(misses=8, used=9, conns=9)
    lip = plane.addresses[0][0]
    plane.used_ports = [(0, 6, lip, "10.1.1.1", 8080, 512)]
    fast, slow = [0] * 32, [0] * 32
    fast[7], fast[10], slow[20] = 5, 2, 1  # 128 ns, 1 us, 1 ms
    plane.steps_of = {"count": [fast, slow], "max_ns": [1500, 1_200_000], "sum_ns": [3000, 1_200_000]}
    return engine


def samples(text: bytes):
    found = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            found[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
    return found


SERVICE = (("service", "tcp/10.0.0.1:80"),)
SERVER = (("server", "10.1.1.1:8080"), *SERVICE)
LIP = (("lip", "10.2.0.1"), ("port", "lan"))
EXPECTED = [
    ("fnat_rx_packets_total", (("worker", "1"),), 5),
    ("fnat_dropped_packets_total", (("reason", "no_rs"), ("worker", "0")), 3),
    ("fnat_taken", (("what", "conns"), ("worker", "0")), 0),
    ("fnat_capacity_connections", (), 2000),
    ("fnat_service_connections_total", SERVICE, 1),
    ("fnat_service_out_bytes_total", SERVICE, 5),
    ("fnat_service_active_connections", SERVICE, 6),
    ("fnat_server_connections_total", SERVER, 1),
    ("fnat_server_inactive_connections", SERVER, 7),
    ("fnat_server_weight", SERVER, 3),
    ("fnat_lip_ports_used", LIP, 9),
    ("fnat_lip_ports_free", LIP, 64512 - 9),
    ("fnat_lip_misses_total", LIP, 8),
    ("fnat_service_ports_free", SERVICE, 64512 - 512),
    ("fnat_ports_exhausted_seconds", (), math.inf),
    ("fnat_connections_exhausted_seconds", (), math.inf),
    ("fnat_worker_step_seconds_count", (("preempted", "no"), ("worker", "1")), 7),
    ("fnat_worker_step_seconds_sum", (("preempted", "yes"), ("worker", "0")), 0.0012),
    ("fnat_worker_step_seconds_bucket", (("le", "5.12e-07"), ("preempted", "no"), ("worker", "0")), 5),
    ("fnat_worker_step_seconds_bucket", (("le", "2.048e-06"), ("preempted", "no"), ("worker", "0")), 7),
    ("fnat_worker_step_seconds_bucket", (("le", "0.001048576"), ("preempted", "yes"), ("worker", "0")), 0),
    ("fnat_worker_step_seconds_bucket", (("le", "+Inf"), ("preempted", "yes"), ("worker", "0")), 1),
]


@pytest.mark.parametrize(("name", "labels", "value"), EXPECTED, ids=[e[0] for e in EXPECTED])
def test_metric_is_there(engine, name, labels, value):
    assert samples(render(engine, COUNTERS))[name, labels] == value


def test_every_counter_of_the_core_is_there_for_every_worker(engine):
    core = pytest.importorskip("fnat._core")
    found = samples(render(engine))
    for name, kind, _ in core.COUNTERS:
        for worker in "01":
            at = {
                "counter": (f"fnat_{name}_total", (("worker", worker),)),
                "drop": ("fnat_dropped_packets_total", (("reason", name), ("worker", worker))),
                "taken": ("fnat_taken", (("what", name), ("worker", worker))),
            }[kind]
            assert at in found


def test_families_have_distinct_names(engine):
    core = pytest.importorskip("fnat._core")
    names = [family.name for family in text_string_to_metric_families(render(engine, core.COUNTERS).decode())]
    assert len(names) == len(set(names))
