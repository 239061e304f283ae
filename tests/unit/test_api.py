"""The API from the client's side, in process, over a fake plane; and the control behind it: disk, restart, reload."""

import asyncio
import json
import os
import signal
import socket
import ssl
import stat
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import trustme

from fnat import api, config, state
from fnat.access import Tokens
from fnat.client import Client
from fnat.control import Control
from fnat.engine import Engine, Falls
from fnat.errors import CODES, ChangeError, ConfigError, EngineError, FnatError, NotRunning
from fnat.model import CHANGES, Config, PortInfo
from fnat.paths import Paths
from fnat.state import Ids, Overlay
from tests.fakes import COUNTERS, Conn, FakePlane, FakeSteering, Stats

PORTS = [PortInfo(id=0, name="wan", device="eth0"), PortInfo(id=1, name="lan", device="eth1")]
WEB = {"proto": "tcp", "vip": "10.0.0.1", "vport": 80}
ADD = [
    {"op": "service.add", **WEB},
    {"op": "server.add", "service": WEB, "rip": "10.1.1.1", "rport": 8080},
    {"op": "lip.add", "service": WEB, "addr": "10.2.0.1", "port": "lan"},
    {"op": "addr.add", "addr": "10.0.0.1", "port": "wan"},
]
PROBLEM = {"type", "title", "status", "detail", "code", "fix", "field"}
FILE = """\
version = 1
[node.n]
wan = { nic = "eth0" }
lan = { nic = "eth1" }
lips = ["10.2.0.1-10.2.0.2"]
[service.web]
listen = ["10.0.0.1:80"]
[service.web.rs]
"10.1.1.1:8080" = { weight = 1 }
"""


class InProcess(httpx.BaseTransport):
    """The client's requests, straight into the application."""

    def __init__(self, app):
        self.inner = httpx.ASGITransport(app, raise_app_exceptions=False)

    def handle_request(self, request):
        async def ask():
            answer = await self.inner.handle_async_request(request)
            return httpx.Response(answer.status_code, headers=answer.headers, content=await answer.aread())

        return asyncio.run(ask())


class House:
    """Control, API and client on one state directory."""

    def __init__(self, directory, plane=None, file=None):
        self.paths = Paths(directory, directory / "s")
        self.plane = plane or FakePlane()
        self.plane.services, self.plane.addresses = {}, []
        steering = {p.name: FakeSteering(p.name, self.plane.calls) for p in PORTS}
        ids = Ids(self.paths.ids)
        ids.load()
        engine = Engine(self.plane, steering, PORTS, ids, patience=0.05, startle=0.02)
        self.control = Control(engine, Overlay(self.paths.overlay), self.paths, file)
        self.control.start()
        self.client = Client("/nowhere", transport=InProcess(api.create_app(self.control, COUNTERS)))

    def overlay(self):
        return Overlay(self.paths.overlay).load()


@pytest.fixture
def house(tmp_path):
    return House(tmp_path)


def file(text=FILE) -> Config:
    return config.parse(text, "f.toml").config


def test_changes_come_into_force_and_listings_show_them(house):
    assert house.client.change(ADD) == {"applied": 4, "snapshot": 2}
    (service,) = house.client.services()
    assert service["servers"][0]["rip"] == "10.1.1.1" and service["lips"][0]["addr"] == "10.2.0.1"
    assert set(service) == {
        "name", "proto", "vip", "vport", "scheduler", "hash_target", "hash_slots", "slow_start",
        "conn_timeout", "no_rs", "expire_quiescent", "one_packet", "quic", "half_open",
        "persistent", "persistent_mask", "max_conns", "new_per_s", "per_client", "client_addr", "deny", "allow", "acl",
        "stats", "rate", "lips", "servers",
    }  # fmt: skip
    assert set(service["stats"]) == {
        "conns",
        "in_packets",
        "out_packets",
        "in_bytes",
        "out_bytes",
        "active",
        "inactive",
    }
    assert set(service["rate"]) == {"cps", "in_pps", "out_pps", "in_bps", "out_bps"}
    assert [a["addr"] for a in house.client.addresses()] == ["10.0.0.1", "10.2.0.1"]
    assert [a["addr"] for a in house.client.addresses(port="lan")] == ["10.2.0.1"]
    assert {r["scope"] for r in house.client.routes()} == {"host"}
    assert [p["name"] for p in house.client.ports()] == ["wan", "lan"]
    assert house.client.neighbours() == []
    assert [w["index"] for w in house.client.workers()] == [0, 1]
    status = house.client.status()
    assert (status["workers"], status["capacity"], status["snapshot"]) == (2, 2000, 2)
    assert house.client.services(vip="10.0.0.9") == []


def test_a_service_is_found_by_any_spelling_of_its_address(house):
    house.client.change([{"op": "service.add", "proto": "tcp", "vip": "2001:DB8:0::1", "vport": 80}])
    for vip in ("2001:db8::1", "2001:0DB8::0:1"):
        (service,) = house.client.services(proto="tcp", vip=vip, vport=80)
        assert service["vip"] == "2001:db8::1"


def test_typed_changes_are_as_good_as_json(house):
    house.client.change(CHANGES.validate_python(ADD))
    assert len(house.client.services()) == 1


def test_dry_run_says_and_does_nothing(house):
    calls = len(house.plane.calls)
    assert house.client.change(ADD, dry_run=True)["applied"] == 4
    with pytest.raises(ChangeError):
        house.client.change([*ADD, ADD[0]], dry_run=True)
    assert house.client.services() == [] and len(house.plane.calls) == calls and house.overlay() == []


def test_conns_are_paged(house):
    house.plane.connections[1] = [
        Conn(1, 6, "TCP_EST", "10.9.0.1", n, "10.0.0.1", 80, "10.2.0.1", n, "10.1.1.1", 8080) for n in range(1, 2500)
    ]
    assert [c["cport"] for c in house.client.conns()] == list(range(1, 2500))
    assert len(house.client.conn_page(limit=10, worker=1)["conns"]) == 10


def test_conns_are_filtered_and_counted(house):
    house.plane.connections[1] = [
        Conn(1, 6, "TCP_EST", "10.9.0.1", n, "10.0.0.1", 80, "10.2.0.1", n, "10.1.1.1", 8080) for n in range(1, 100)
    ]
    for wanted, count in (
        ({"cip": "10.9.0.0/24", "cport": 7, "vip": "10.0.0.1", "vport": 80, "proto": "tcp"}, 1),
        ({"rip": "10.1.1.1", "rport": 8080, "lip": "10.2.0.1"}, 99),
        ({"worker": 0}, 0),
        ({"lport": 5, "worker": 1}, 1),
    ):
        assert len(list(house.client.conns(**wanted))) == count == house.client.conn_count(**wanted), wanted


# sentence, changes, status, code
REFUSED = [
    ("no such service", [{"op": "service.del", **WEB}], 404, "FN-1203"),
    ("twice", [ADD[0], ADD[0]], 409, "FN-1204"),
    ("not of a host", [{"op": "service.add", **WEB, "vip": "::1"}], 400, "FN-1201"),
    ("bad weight", [{**ADD[1], "weight": 70000}], 400, "FN-1201"),
    ("unknown op", [{"op": "service.destroy", **WEB}], 400, "FN-1201"),
    ("unknown key", [{**ADD[0], "color": 1}], 400, "FN-1201"),
    ("no op", [WEB], 400, "FN-1201"),
    ("no object", [3], 400, "FN-1201"),
    ("VIP is a LIP", [*ADD, {"op": "service.add", **WEB, "vip": "10.2.0.1"}], 409, "FN-1205"),
]


@pytest.mark.parametrize(("changes", "status", "code"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_refusal_has_a_code_and_changes_nothing(house, changes, status, code):
    answer = house.client._http.post("/v1/changes", json={"changes": changes})
    error = answer.json()
    assert (answer.status_code, error["code"]) == (status, code), error
    assert set(error) == PROBLEM and error["detail"] and "\n" not in error["detail"]
    assert error["status"] == status and answer.headers["content-type"] == "application/problem+json"
    assert code in CODES
    assert house.client.services() == [] and house.overlay() == []


# method, path, body, status
RAW = [
    ("POST", "/v1/changes", "{", 400),
    ("POST", "/v1/changes", "[]", 400),
    ("POST", "/v1/changes", '{"changes": []}', 200),
    ("GET", "/v1/conns?limit=0", None, 400),
    ("GET", "/v1/conns?vport=0", None, 400),
    ("GET", "/v1/conns?colour=red", None, 400),
    ("GET", "/v1/conns?vip=x", None, 400),
    ("GET", "/v1/conns/count?cip=10.0.0.0/33", None, 400),
    ("GET", "/v1/conns/count?worker=1", None, 200),
    ("GET", "/v1/headroom", None, 200),
    ("GET", "/v1/headroom?limit=0", None, 400),
    ("GET", "/v1/conns?state=X", None, 400),
    ("GET", "/v1/conns?cursor=9:0", None, 400),
    ("GET", "/v1/services?proto=icmp", None, 400),
    ("GET", "/v1/services?vip=x", None, 400),
    ("GET", "/v1/services?vip=::1", None, 400),
    ("GET", "/v1/headroom?vip=2001:db8::1", None, 200),
    ("GET", "/v1/conns?cip=2001:db8::/129", None, 400),
    ("GET", "/v1/conns/count?cip=2001:db8::/32", None, 200),
    ("GET", "/v2", None, 404),
    ("DELETE", "/v1/services", None, 405),
    ("GET", "/openapi.json", None, 200),
    ("GET", "/metrics", None, 200),
]


@pytest.mark.parametrize(("method", "path", "body", "status"), RAW, ids=[f"{r[0]} {r[1]} {r[2] or ''}" for r in RAW])
def test_every_answer_is_well_formed(house, method, path, body, status):
    answer = house.client._http.request(method, path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status, answer.text
    if status >= 400:
        assert set(answer.json()) == PROBLEM and answer.json()["status"] == status
        assert answer.headers["content-type"] == "application/problem+json"


def test_unexpected_failure_is_one_line(house, monkeypatch):
    monkeypatch.setattr(house.control, "status", lambda: 1 / 0)
    with pytest.raises(EngineError, match="ZeroDivisionError") as caught:
        house.client.status()
    assert caught.value.code == "FN-1309"


def test_the_environment_does_not_come_between(tmp_path, monkeypatch):
    """Certificates are for what is behind a network."""
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none"))
    with pytest.raises(NotRunning), Client(tmp_path / "none.sock") as door:
        door.status()


def test_nobody_there_is_one_line(tmp_path):
    with pytest.raises(NotRunning) as caught:
        Client(tmp_path / "none").status()
    assert caught.value.exit_code == 3 and str(tmp_path / "none") in str(caught.value)
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(tmp_path / "stale"))
    stale.close()
    with pytest.raises(NotRunning):
        Client(tmp_path / "stale").status()


# ---- ending connections, draining servers ----

RS = {"service": WEB, "rip": "10.1.1.1", "rport": 8080}


def test_connections_are_ended_on_request(house):
    house.client.change(ADD)
    assert house.client.conn_kill(reset=False, reason="test", cip="203.0.113.0/24", proto="udp") == 7
    kill = [call for call in house.plane.calls if call[0] == "conn_kill"]
    assert kill == [("conn_kill", False, {"cip": "203.0.113.0/24", "proto": 17})]
    assert house.client.audit()[-1]["note"] == "7 connections ended (proto udp, cip 203.0.113.0/24): test"
    for wrong in ({}, {"worker": 0}, {"state": "ODD"}):
        with pytest.raises(ChangeError) as caught:
            house.client.conn_kill(reset=True, reason="test", **wrong)
        assert caught.value.code == "FN-1201"
    with pytest.raises(ChangeError):
        house.client.conn_kill(reset=True, reason="", all=True)
    assert house.client.conn_kill(reset=True, reason="test", all=True) == 7


def test_a_drain_keeps_the_weight_shows_what_is_left_and_survives(house, tmp_path):
    house.client.change(ADD)
    ((member, *_),) = house.plane.services[1]["members"]
    until = int(time.time()) + 600
    house.client.change([{"op": "server.drain", **RS, "until": until, "keep_persistent": True}])
    assert house.plane.services[1]["draining"] == {member: True}
    house.plane.of_member[member] = Stats(active=3, inactive=1)
    conn = Conn(0, 6, "TCP_EST", "1.1.1.1", 1, "10.0.0.1", 80, "10.2.0.1", 2, "10.1.1.1", 8080, age=77, member=member)
    house.plane.connections[0] = [conn]
    for where in (house, House(tmp_path, house.plane)):
        (server,) = where.client.services()[0]["servers"]
        assert server["weight"] == 1, "for afterwards"
        drain = server["drain"]
        assert 590 < drain.pop("ends_in") <= 600
        assert drain == {"until": until, "keep_persistent": True, "left": 4, "oldest": 77}
    house.client.change([{"op": "server.set", **RS, "weight": 9}])
    assert house.plane.services[1]["draining"] == {member: True}, "a change of weight does not end it"
    house.client.change([{"op": "server.undrain", **RS}])
    assert "draining" not in house.plane.services[1]
    assert house.plane.services[1]["members"] == [(member, "10.1.1.1", 8080, 9)]
    with pytest.raises(ChangeError):
        house.client.change([{"op": "server.undrain", **RS}])


def test_at_the_deadline_of_a_drain_the_rest_is_ended(house):
    house.client.change(ADD)
    ((member, *_),) = house.plane.services[1]["members"]
    house.client.change([{"op": "server.drain", **RS, "until": 1000, "keep_persistent": True}])
    house.plane.of_member[member] = Stats(active=3, inactive=1)
    house.control.end_drains(999.9)
    assert "conn_kill" not in [call[0] for call in house.plane.calls]
    house.control.end_drains(1000)
    assert ("conn_kill", True, {"member": member}) in house.plane.calls
    assert house.plane.services[1]["draining"] == {member: False}, "who is persistent to it goes elsewhere now"
    house.plane.of_member[member] = Stats()
    calls = len(house.plane.calls)
    house.control.end_drains(1001)
    assert len(house.plane.calls) == calls, "there is nothing left"


def test_the_end_of_a_drain_is_foreseen():
    falls = Falls()
    for second in range(10):
        falls.note(second, {5: 1000 - 10 * second})
    assert falls.ends_in(5, 900) == pytest.approx(900 * 9 / 100)
    assert falls.ends_in(5, 1000) is None and falls.ends_in(6, 1) is None
    falls.note(11, {})
    assert falls.ends_in(5, 800) is None


def test_udp_flows_of_a_removed_server_move(house):
    udp = {**WEB, "proto": "udp"}
    changes = [{**c, **({"service": udp} if "service" in c else udp if "proto" in c else {})} for c in ADD]
    house.client.change(changes)
    ((member, *_),) = house.plane.services[1]["members"]
    house.plane.of_member[member] = Stats(inactive=1)
    house.client.change([{"op": "server.del", **RS, "service": udp}])
    assert house.plane.calls[-1] == ("conn_kill", False, {"member": member})


OTHER = {"service": WEB, "rip": "10.1.1.2", "rport": 8080}
SHIFT = {"op": "server.shift", **RS, "to_rip": "10.1.1.2", "to_rport": 8080, "per_min": 10, "started": 6000}


def weights(house):
    return [server["weight"] for server in house.client.services()[0]["servers"]]


def test_weight_moves_little_by_little_and_goes_on_after_a_restart(house, tmp_path):
    house.client.change([*ADD, {"op": "server.set", **RS, "weight": 100}])
    house.client.change([{"op": "server.add", **OTHER, "weight": 20}, SHIFT])
    for second, moved in ((0, 0), (5, 0), (6, 1), (60, 10), (61, 10), (150, 25)):
        house.control.shift_weights(6000 + second)
        assert weights(house) == [100 - moved, 20 + moved], second
        assert house.plane.services[1]["members"][1][3] == 20 + moved
    again = House(tmp_path, house.plane)
    assert weights(again) == [75, 45]
    assert again.client.services()[0]["servers"][0]["shift"] == "to 10.1.1.2:8080, 10 %/min, 25 % done"
    again.control.shift_weights(6000 + 300)
    assert weights(again) == [50, 70]
    again.control.shift_weights(6000 + 900)
    assert weights(again) == [0, 120] and not next(iter(again.control.engine.config.services)).shifts


def test_a_shift_ends_by_word_or_by_hand(house):
    house.client.change([*ADD, {"op": "server.set", **RS, "weight": 100}, {"op": "server.add", **OTHER, "weight": 20}])
    ends = {"op": "server.unshift", **RS}, {"op": "server.set", **OTHER, "weight": 30}, {"op": "server.del", **OTHER}
    for end in ends:
        house.client.change([{"op": "server.set", **RS, "weight": 100}, SHIFT])
        house.control.shift_weights(6060)
        house.client.change([end])
        calls = len(house.plane.calls)
        house.control.shift_weights(6600)
        assert len(house.plane.calls) == calls and weights(house)[0] == 90, end


WRONG_SHIFTS = [
    ({"to_rip": "10.1.1.9"}, "FN-1203"),
    ({"to_rip": "10.1.1.1"}, "FN-1201"),
    ({"per_min": 0}, "FN-1201"),
    ({"weights": (60000, 6000)}, "FN-1201"),
]


@pytest.mark.parametrize(("wrong", "code"), WRONG_SHIFTS)
def test_shifts_that_cannot_be(house, wrong, code):
    house.client.change([*ADD, {"op": "server.add", **OTHER, "weight": 20}])
    with pytest.raises(ChangeError) as caught:
        house.client.change([{**SHIFT, **wrong}])
    assert caught.value.code == code
    house.client.change([SHIFT])
    with pytest.raises(ChangeError) as caught:
        house.client.change([{**SHIFT, "rip": "10.1.1.2", "to_rip": "10.1.1.1"}])
    assert caught.value.code == "FN-1204"


# ---- control: disk, restart, reload ----


def test_overlay_survives_a_restart(house, tmp_path):
    house.client.change(ADD)
    house.client.change([{"op": "server.set", "service": WEB, "rip": "10.1.1.1", "rport": 8080, "weight": 7}])
    again = House(tmp_path, house.plane)
    assert again.control.engine.config == house.control.engine.config
    assert list(again.plane.services) == [1], "ids are the same"


def test_overlay_is_on_disk_before_success(house, monkeypatch):
    def full(fd):
        raise OSError(28, "No space left on device")

    house.client.change(ADD[:1])
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EngineError, match="No space left"):
        house.client.change([{"op": "service.set", **WEB, "scheduler": "rr"}])
    monkeypatch.undo()
    assert house.client.services()[0]["scheduler"] == "wrr", "nothing is in force that a restart would forget"
    assert [c["op"] for c in house.overlay()] == ["service.add"]


def test_zero_is_no_overlay_but_survives(house, tmp_path):
    house.client.change(ADD)
    house.plane.of_service[1] = Stats(conns=5)
    house.client.change([{"op": "service.zero"}])
    assert house.client.services()[0]["stats"]["conns"] == 0
    assert "service.zero" not in [c["op"] for c in house.overlay()]
    assert House(tmp_path, house.plane).client.services()[0]["stats"]["conns"] == 0


def test_change_on_top_of_the_file_is_only_the_difference(tmp_path):
    house = House(tmp_path, file=file())
    drain = {"op": "server.set", "service": WEB, "rip": "10.1.1.1", "rport": 8080, "weight": 0}
    house.client.change([drain])
    assert house.overlay() == [drain]
    assert House(tmp_path, house.plane, file()).client.services()[0]["servers"][0]["weight"] == 0


def test_reload_keeps_the_overlay_and_says_where_both_speak(tmp_path, caplog):
    house = House(tmp_path, file=file())
    house.client.change([{"op": "server.set", "service": WEB, "rip": "10.1.1.1", "rport": 8080, "weight": 0}])
    house.client.change([{"op": "addr.add", "addr": "10.0.0.9", "port": "wan"}])
    house.control.apply(FILE.replace("weight = 1", "weight = 5") + '"10.1.1.2:8080" = { weight = 2 }\n', "f.toml")
    (service,) = house.client.services()
    assert [(r["rip"], r["weight"]) for r in service["servers"]] == [("10.1.1.1", 0), ("10.1.1.2", 2)]
    assert "10.0.0.9" in [a["addr"] for a in house.client.addresses()]
    assert "server tcp 10.0.0.1:80 10.1.1.1 8080; the overlay wins" in caplog.text
    assert len(house.overlay()) == 2


def test_reload_of_a_file_that_clashes_changes_nothing(tmp_path):
    house = House(tmp_path, file=file())
    other = {**WEB, "vip": "10.0.0.7"}
    house.client.change(
        [{"op": "service.add", **other}, {"op": "lip.add", "service": other, "addr": "10.2.0.9", "port": "lan"}]
    )
    before = house.control.engine.config
    with pytest.raises(FnatError, match=r"10\.2\.0\.9"):
        house.control.apply(FILE.replace("10.0.0.1:80", "10.2.0.9:80"), "f.toml")
    assert house.control.engine.config == before


def test_file_that_needs_a_port_that_is_not_open(tmp_path):
    with pytest.raises(ConfigError, match="needs a port 'dmz'"):
        House(tmp_path, file=file(FILE.replace("lan =", "dmz =").replace('wan = { nic = "eth0" }', "")))


def test_overlay_of_another_version_is_told(tmp_path):
    (tmp_path / "overlay.json").write_text('{"changes":[{"op":"acl.add"}]}\n')
    with pytest.raises(EngineError, match=r"overlay\.json holds a change") as caught:
        House(tmp_path)
    assert "\n" not in str(caught.value)


def test_long_overlay_gets_shorter(house, monkeypatch):
    monkeypatch.setattr(state, "LONG", 1000)
    house.client.change(ADD)
    for weight in range(100):
        change = {"op": "server.set", "service": WEB, "rip": "10.1.1.1", "rport": 8080, "weight": weight}
        house.client.change([change])
        if house.control._shortening is not None:
            house.control._shortening.join()
    assert house.paths.overlay.stat().st_size < 3000
    assert len(house.overlay()) < 20 and house.overlay()[-1]["weight"] == 99
    assert House(house.paths.state_dir).control.engine.config == house.control.engine.config


# ---- the socket ----


def test_socket_is_private_and_a_stale_one_is_replaced(tmp_path):
    path = tmp_path / "run" / "s"
    first = api.listen(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(FnatError, match="another fnat serves") as caught:
        api.listen(path)
    assert caught.value.code == "FN-1003"
    first.close()
    api.listen(path).close()


def test_socket_path_that_is_a_file_is_respected(tmp_path):
    path = tmp_path / "s"
    path.write_text("precious")
    with pytest.raises(FnatError, match="not a socket"):
        api.listen(path)
    assert path.read_text() == "precious"


def test_control_process_serves_a_real_plane(tmp_path):
    """The whole process: attach, apply the file, answer, read the file again, end on SIGTERM."""
    core = pytest.importorskip("fnat._core")
    state = tmp_path / "state"
    arena = Path("/dev/shm") / f"fnat-test-{os.getpid()}"
    state.mkdir()
    arena.mkdir()
    try:
        plane = core.Plane.create(
            str(arena), conns=1024, services=64, members=256, endpoints=256, frames=0, snapshot_mib=1
        )
        (state / "arena").symlink_to(arena)
        ports = [p.model_dump() | {"kind": "tap", "device": "none"} for p in PORTS]
        Paths(state).ports.write_text(json.dumps(ports))
        conf = tmp_path / "f.toml"
        conf.write_text(FILE)
        ca = trustme.CA()
        certify(ca, tmp_path)
        Tokens(tmp_path / "tokens").add("ops", "admin")
        with socket.create_server(("127.0.0.1", 0)) as free:
            end = free.getsockname()
        path = tmp_path / "sock"
        options = {
            "config": str(conf), "ports": [], "workers": 1, "socket": str(path), "state_dir": str(state),
            "node": None, "log": "info", "exclusive": [], "conns": 1024, "idle": "sleep", "cpus": "auto",
            "steering": "auto",
        }  # fmt: skip
        environment = {**os.environ, "FNAT_OPTIONS": json.dumps(options)}
        environment.pop("FNAT_KEEPER", None)
        with subprocess.Popen(
            [sys.executable, "-m", "fnat.control"], env=environment, stderr=subprocess.PIPE
        ) as process:
            try:
                client = Client(path)
                wait_until(lambda: is_up(client))
                assert client.services()[0]["vip"] == "10.0.0.1"
                assert client.status()["pids"]["control"] == process.pid
                assert "fnat_rx_packets_total" in client.metrics()
                client.change([{"op": "addr.add", "addr": "10.0.0.9", "port": "wan"}])
                conf.write_text(FILE + '"10.1.1.2:8080" = { weight = 2 }\n')
                process.send_signal(signal.SIGHUP)
                wait_until(lambda: len(client.services()[0]["servers"]) == 2)
                wait_until(lambda: client.audit()[-1]["from"] == "SIGHUP")
                assert client.audit()[-2]["who"] == f"uid:{os.getuid()}"
                pem = tmp_path / "pem"
                by_tls = f'[api]\nlisten = "127.0.0.1:{end[1]}"\ncert = "{pem}"\nkey = "{pem}"\ntokens = "{tmp_path}/tokens"\n'
                conf.write_text(by_tls + FILE.replace("version = 1\n", ""))
                conf.write_text("version = 1\n" + conf.read_text())
                process.send_signal(signal.SIGHUP)
                wait_until(lambda: certificate(end) in pem.read_text())
                certify(ca, tmp_path)
                process.send_signal(signal.SIGHUP)
                wait_until(lambda: certificate(end) in pem.read_text())
                pem.write_text("nonsense")
                process.send_signal(signal.SIGHUP)
                time.sleep(0.5)
            finally:
                process.send_signal(signal.SIGTERM)
                errors = process.communicate(timeout=20)[1].decode()
            assert process.returncode == 0 and "Traceback" not in errors, errors
            assert "FN-1606" in errors
        assert not path.exists()
        plane.close()
    finally:
        for leftover in arena.iterdir():
            leftover.unlink()
        arena.rmdir()


def certify(ca, directory):
    ca.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(directory / "pem")


def certificate(end):
    try:
        return ssl.get_server_certificate(end).strip()
    except OSError:
        return "none"


def is_up(client):
    try:
        return bool(client.status())
    except NotRunning:
        return False


def wait_until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
