"""Applying a file: what is in force, what is told, what a restart finds, and that no crash leaves a mixture."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fnat import api, config, plan, state
from fnat.client import Client
from fnat.control import Control, Source
from fnat.engine import Engine
from fnat.errors import ChangeError, ConfigError, EngineError
from fnat.model import CHANGES, Host, PortInfo
from fnat.paths import Paths
from fnat.state import History, Ids, Overlay, intent
from tests.fakes import COUNTERS, FakePlane, FakeSteering, Stats
from tests.unit.test_api import InProcess, is_up, wait_until

PORTS = (PortInfo(id=0, name="wan", device="eth0"), PortInfo(id=1, name="lan", device="eth1"))
FILE = """\
version = 1
# the cluster
[node.n]
wan = { nic = "eth0" }
lan = { nic = "eth1" }
lips = ["10.2.0.1-10.2.0.2"]
[node.other]
wan = { nic = "eth0" }
lan = { nic = "eth1" }
lips = ["10.2.9.1"]  # of the other

# the web
[service.web]
listen = ["10.0.0.1:80", "10.0.0.1:81"]
[service.web.rs]
"10.1.1.1:8080" = { weight = 1 }
"10.1.1.2:8080" = { weight = 1 }

# the names
[service.dns]
listen = ["10.0.0.2:53"]   # keep me
proto = ["udp"]
[service.dns.rs]
"10.1.1.1:53" = { weight = 1 }
"""
WEB = {"proto": "tcp", "vip": "10.0.0.1", "vport": 80}
DRAIN = {"op": "server.set", "service": WEB, "rip": "10.1.1.1", "rport": 8080, "weight": 0}
NEW = FILE.replace("10.1.1.2:8080", "10.1.1.3:8080").replace('"10.0.0.2:53"', '"10.0.0.3:53"')


class House:
    """Control on a state directory, as a start of fnat finds it; `run`: of the keeper."""

    def __init__(self, directory, run="1", plane=None, path=True, host=None):
        self.dir = directory
        self.paths = Paths(directory, directory / "s")
        self.file = directory / "fnat.toml"
        if path and not self.file.exists():
            self.file.write_text(FILE)
        self.plane = plane or FakePlane()
        self.plane.services, self.plane.addresses = {}, []
        overlay = Overlay(self.paths.overlay)
        known = intent(overlay, History(self.paths.history), self.file if path else None, run)
        text, name = (
            (known.text, known.source) if known else (FILE if not path else self.file.read_text(), str(self.file))
        )
        loaded = config.parse(text, name, "n").config
        source = Source(
            text,
            name,
            known.number if known else None,
            loaded.ports,
            self.file if path else None,
            "n",
            run,
            host or Host(),
        )
        ids = Ids(self.paths.ids)
        ids.load()
        steering = {p.name: FakeSteering(p.name, self.plane.calls) for p in PORTS}
        engine = Engine(self.plane, steering, PORTS, ids, patience=0.05, startle=0.0)
        self.control = Control(engine, overlay, self.paths, loaded, source)
        self.control.start()

    @property
    def config(self):
        return self.control.engine.config

    def client(self):
        return Client("/nowhere", transport=InProcess(api.create_app(self.control, COUNTERS)))

    def again(self, run="1", **options):
        return House(self.dir, run, self.plane, **options)


def parsed(text, node="n"):
    return config.parse(text, "f.toml", node).config


def drain(house):
    house.control.change(CHANGES.validate_python([DRAIN]))


@pytest.fixture
def house(tmp_path):
    return House(tmp_path)


def test_apply_is_in_force_and_found_by_a_restart(house):
    view = house.control.apply(NEW, "new.toml")
    assert house.config == parsed(NEW) and view["generation"] == 2 and not view["conflicts"]
    assert view["lines"] == [
        "- service udp 10.0.0.2:53",
        "- rs 10.1.1.2:8080 of tcp 10.0.0.1:80",
        "- rs 10.1.1.2:8080 of tcp 10.0.0.1:81",
        "+ rs 10.1.1.3:8080 of tcp 10.0.0.1:80: weight 1",
        "+ rs 10.1.1.3:8080 of tcp 10.0.0.1:81: weight 1",
        "- addr 10.0.0.2/32 on wan",
        "+ addr 10.0.0.3/32 on wan",
        "+ service udp 10.0.0.3:53: name dns, 1 rs, 2 lips",
    ]
    assert house.again().config == parsed(NEW)
    assert house.again(run="2").config == parsed(NEW), "the file of the start has not been edited since"
    assert [g["why"] for g in house.control.generations()] == ["start", "apply"]


def test_blast_radius_counts_who_is_hurt(house):
    ids = {e.key: e.id for e in house.control.engine._ids.entries("service")}
    members = {e.key: e.id for e in house.control.engine._ids.entries("member")}
    house.plane.of_service[ids["tcp 10.0.0.1:80"]] = Stats(active=30, inactive=12)
    house.plane.of_service[ids["udp 10.0.0.2:53"]] = Stats(active=7)
    rs = next(id for key, id in members.items() if "10.0.0.1:80" in key and "10.1.1.2" in key)
    house.plane.of_member[rs] = Stats(active=20, inactive=2)
    hurt = {row["service"]: row for row in house.control.diff(NEW, "x")["impact"]}
    assert (hurt["tcp 10.0.0.1:80"]["conns"], hurt["tcp 10.0.0.1:80"]["cut"], hurt["tcp 10.0.0.1:80"]["left"]) == (
        42,
        0,
        22,
    )
    assert (hurt["udp 10.0.0.2:53"]["cut"], hurt["udp 10.0.0.2:53"]["left"]) == (7, 0), "its VIP goes"
    quiet = FILE.replace('"10.0.0.1:81"]', '"10.0.0.1:81"]\nexpire_quiescent = true')
    house.control.apply(quiet, "x")
    hurt = {row["service"]: row for row in house.control.diff(quiet.replace("10.1.1.2", "10.1.1.3"), "x")["impact"]}
    assert (hurt["tcp 10.0.0.1:80"]["cut"], hurt["tcp 10.0.0.1:80"]["left"]) == (22, 0)
    empty = FILE.replace("weight = 1", "weight = 0")
    assert house.control.diff(empty, "x")["vips_without_rs"] == ["10.0.0.1", "10.0.0.2"]
    assert house.control.diff(quiet, "x")["impact"] == [] == house.control.diff(quiet, "x")["lines"]


def test_wrong_file_changes_nothing_and_tells_all(house):
    wrong = FILE.replace('["udp"]', '["ucp"]').replace("weight = 1", "weight = -1")
    with pytest.raises(ConfigError) as caught:
        house.control.apply(wrong, "w.toml")
    assert len(caught.value.others) == 3
    with house.client() as client, pytest.raises(ChangeError) as told:
        client.config_apply(wrong, "w.toml")
    assert str(told.value) == str(caught.value) and len(told.value.others) == 3
    assert house.config == parsed(FILE) and len(house.control.generations()) == 1


def test_refusal_of_the_plane_or_the_disk_changes_nothing(house, monkeypatch):
    house.plane.fail = "publish"
    with pytest.raises(EngineError):
        house.control.apply(NEW, "x")
    assert house.config == parsed(FILE) and house.again().config == parsed(FILE)
    real = os.replace

    def full(old, new):
        if str(new).endswith("overlay.json"):
            raise OSError(28, "No space left on device")
        real(old, new)

    monkeypatch.setattr(os, "replace", full)
    monkeypatch.setattr("pathlib.Path.replace", lambda old, new: full(old, new))
    with pytest.raises(EngineError, match="No space left"):
        house.control.apply(NEW, "x")
    monkeypatch.undo()
    assert house.config == parsed(FILE) == house.control.file and house.again().config == parsed(FILE)


def test_overlay_stays_on_top_and_conflicts_are_told(house):
    drain(house)
    view = house.control.apply(NEW.replace('"10.1.1.1:8080" = { weight = 1 }', '"10.1.1.1:8080" = { weight = 5 }'), "x")
    assert view["conflicts"] == ["file and overlay both change server tcp 10.0.0.1:80 10.1.1.1 8080; the overlay wins"]
    assert house.config.services[0].servers[0].weight == 0
    shown = house.control.config_view()
    assert shown["overlay"] == ["~ rs 10.1.1.1:8080 of tcp 10.0.0.1:80: weight 5 -> 0"]
    assert parsed(shown["text"]) == house.config
    gone = house.control.diff(NEW.replace('"10.0.0.1:80", ', ""), "x")
    assert len(gone["conflicts"]) == 1 and "server.set is not possible any more" in gone["conflicts"][0]
    assert house.again().config == house.config


def test_confirmed_stays(house):
    assert house.control.apply(NEW, "x", confirm=60)["confirm_in"] == pytest.approx(60, abs=1)
    for refused in (lambda: house.control.apply(FILE, "x"), house.control.save, house.control.discard):
        with pytest.raises(ChangeError) as caught:
            refused()
        assert caught.value.code == "FN-1208"
    house.control.confirm()
    with pytest.raises(ChangeError) as caught:
        house.control.confirm()
    assert caught.value.code == "FN-1209"
    assert house.again().config == parsed(NEW) and house.again().control._confirm_by is None


def test_not_confirmed_goes_back_and_keeps_what_came_since(house):
    drain(house)
    before = house.config
    house.control.apply(NEW, "x", confirm=60)
    add = {"op": "service.add", **WEB, "vport": 82}
    house.control.change(CHANGES.validate_python([add]))
    house.control.revert_if_due()
    assert house.config.services.get(next(k for k in house.config.services.by_key if k.vport == 82))
    house.control._confirm_by = time.monotonic() - 1
    house.control.revert_if_due()
    wanted = plan.apply(before, CHANGES.validate_python([add]))
    assert house.config == wanted and house.again().config == wanted
    assert house.control.source.generation == 1


def test_rollback_ends_a_waiting_confirmation(house):
    house.control.apply(NEW, "x", confirm=60)
    assert house.control.rollback()["generation"] == 1
    assert house.config == parsed(FILE) and house.again().config == parsed(FILE)


def test_a_dead_control_still_goes_back_in_time(house):
    """The deadline is on disk; a restart before it waits, one after it goes back at once."""
    house.control.apply(NEW, "x", confirm=60)
    again = house.again()
    assert again.config == parsed(NEW) and again.control._confirm_in() == pytest.approx(60, abs=2)
    path = house.paths.overlay
    head, *rest = path.read_text().splitlines()
    record = json.loads(head)
    record["confirm"]["until"] = time.time() - 1
    path.write_text("\n".join([json.dumps(record), *rest]) + "\n")
    assert house.again().config == parsed(FILE) and house.again(run="2").config == parsed(FILE)


def test_file_that_went_back_is_not_taken_up_by_the_next_start(house):
    house.file.write_text(NEW)
    house.control.apply(None, "", confirm=60)
    house.control.rollback()
    assert house.again(run="2").config == parsed(FILE)
    house.file.write_text(NEW + "# edited\n")
    assert house.again(run="2").config == parsed(NEW)


def test_edited_file_counts_from_a_new_run_only(house):
    house.file.write_text(NEW)
    assert house.control.config_view()["file_edited"]
    assert house.again().config == parsed(FILE), "a control that died does not apply what nobody applied"
    assert house.again(run="2").config == parsed(NEW)
    assert [g["why"] for g in house.again(run="2").control.generations()] == ["start", "start"]


def test_rollback_and_history(house):
    for n in range(2, 5):
        house.control.apply(FILE.replace("weight = 1", f"weight = {n}"), f"{n}.toml")
    view = house.control.rollback()
    assert house.config == parsed(FILE.replace("weight = 1", "weight = 3")) and view["generation"] == 5
    house.control.rollback(1)
    assert house.config == parsed(FILE)
    rows = house.control.generations()
    assert [r["why"] for r in rows][-2:] == ["rollback to 3", "rollback to 1"] and [r["in_force"] for r in rows][
        -2:
    ] == [False, True]
    with pytest.raises(ChangeError) as caught:
        house.control.rollback(99)
    assert caught.value.code == "FN-1209" and "the last are: 2, 3, 4, 5, 6" in caught.value.fix


def test_history_is_kept_short_but_what_is_in_force_stays(house, monkeypatch):
    monkeypatch.setattr(History, "KEPT", 3)
    for n in range(6):
        house.control.apply(FILE.replace("weight = 1", f"weight = {n + 2}"), "x")
    assert house.control.history.numbers() == [4, 5, 6, 7]


def test_save_folds_the_overlay_into_the_file(house):
    drain(house)
    other = {**WEB, "vip": "10.0.0.9"}
    changes = [
        {"op": "addr.add", "addr": "10.0.0.9", "port": "wan"},
        {"op": "service.add", **other, "scheduler": "rr"},
        {"op": "server.add", "service": other, "rip": "10.1.1.9", "rport": 80},
        {"op": "lip.add", "service": other, "addr": "10.2.0.2", "port": "lan"},
    ]
    house.control.change(CHANGES.validate_python(changes))
    before = house.config
    house.control.save()
    text = house.file.read_text()
    assert parsed(text) == before == house.config == house.control.file
    for kept in ("# the cluster", "# the web", "# the names", "# keep me", "[node.other]", "# of the other"):
        assert kept in text
    assert parsed(text, "other").services.get(before.services[0].key).servers[0].weight == 0
    assert {lip.addr for s in parsed(text, "other").services for lip in s.lips} == {"10.2.9.1"}
    assert house.control.config_view()["overlay"] == [] and not house.control.config_view()["file_edited"]
    assert house.again(run="2").config == before
    assert [g["why"] for g in house.control.generations()] == ["start", "save"]
    assert house.control.history.get(1).text == FILE, "the text before is kept"
    house.control.save()
    assert house.file.read_text() == text


def test_save_of_a_node_with_new_lips_addresses_and_a_port_down(house):
    changes = [
        {"op": "lip.add", "service": WEB, "addr": "10.2.0.9", "port": "wan"},
        {"op": "addr.add", "addr": "10.0.0.50", "plen": 24, "port": "wan"},
        {"op": "route.add", "prefix": "default", "gateway": "10.0.0.254"},
        {"op": "neigh.add", "addr": "10.0.0.254", "mac": "02:00:00:00:00:01", "port": "wan"},
        {"op": "link.set", "port": "lan", "up": False},
    ]
    house.control.change(CHANGES.validate_python(changes))
    before = house.config
    house.control.save()
    text = house.file.read_text()
    assert parsed(text) == before and "# of the other" in text and "# keep me" not in text
    assert {lip.addr for s in parsed(text, "other").services for lip in s.lips} == {"10.2.9.1"}


def test_save_refuses_what_it_cannot_say(house):
    house.control.change(CHANGES.validate_python([{"op": "service.add", **WEB, "vport": 99}]))
    with pytest.raises(ConfigError, match="no LIP") as caught:
        house.control.save()
    assert caught.value.code == "FN-1112" and house.file.read_text() == FILE
    house.file.write_text(NEW)
    with pytest.raises(ConfigError) as caught:
        house.control.save()
    assert caught.value.code == "FN-1113" and house.file.read_text() == NEW


def test_discard_says_what_it_drops(house):
    drain(house)
    assert house.control.discard()["lines"] == ["~ rs 10.1.1.1:8080 of tcp 10.0.0.1:80: weight 0 -> 1"]
    assert house.config == parsed(FILE) and house.again().config == parsed(FILE)


def test_what_waits_for_a_restart_is_told(house):
    text = FILE.replace("# the web", "[host]\nconns = 5000\nworkers = 2\ntimeouts = { syn = 9 }\n# the web")
    view = house.control.apply(
        text.replace('wan = { nic = "eth0" }\n', 'wan = { nic = "eth7" }\ndmz = { nic = "eth8" }\n'), "x"
    )
    assert view["restart"] == [
        "host.conns 1048576 -> 5000: at the next start of fnat",
        "host.workers 1 -> 2: at the next start of fnat",
        "port wan eth0 -> eth7: at the next start of fnat",
        "port dmz: opened at the next start of fnat",
    ]
    assert "~ host.timeouts.syn_sent: 10 -> 9" in view["lines"]
    assert house.control.config_view()["restart"] == view["restart"]


def test_without_a_file_there_is_nothing_to_save_to(tmp_path):
    house = House(tmp_path, path=False)
    for refused in (house.control.save, lambda: house.control.apply(None, "")):
        with pytest.raises(ConfigError) as caught:
            refused()
        assert caught.value.code == "FN-1114"
    house.control.apply(NEW, "x")
    assert house.again(run="2", path=False).config == parsed(NEW)


def test_damaged_generation_is_one_line(house):
    house.control.apply(NEW, "x")
    (house.paths.history / "000001.gz").write_bytes(b"\x1f\x8b\x08garbage")
    with pytest.raises(EngineError, match=r"000001\.gz is damaged"):
        house.control.rollback(1)


# ---- a crash at any moment ----


def change(house):
    house.control.change(CHANGES.validate_python([{**DRAIN, "weight": 9}]))


def confirmed(house):
    house.control.confirm()


def lapsed(house):
    house.control._confirm_by = 0.0
    house.control.revert_if_due()


# what is done before, what may be interrupted
CRASHES = {
    "apply": ((drain,), lambda house: house.control.apply(NEW, "x")),
    "apply for a time": ((drain,), lambda house: house.control.apply(NEW, "x", confirm=60)),
    "change": ((drain,), change),
    "change while waiting": ((lambda house: house.control.apply(NEW, "x", confirm=60),), change),
    "save": ((drain,), lambda house: house.control.save()),
    "discard": ((drain,), lambda house: house.control.discard()),
    "rollback": ((drain, lambda house: house.control.apply(NEW, "x")), lambda house: house.control.rollback()),
    "confirm": ((drain, lambda house: house.control.apply(NEW, "x", confirm=60)), confirmed),
    "lapse": ((drain, lambda house: house.control.apply(NEW, "x", confirm=60)), lapsed),
}
CALLS = ("write", "fsync", "replace", "rename", "ftruncate", "truncate", "open", "unlink", "link", "mkdir")


def crash_at(number):
    """The process ends in the number-th call that changes the disk; a write has then half happened."""
    count = 0

    def counted(name, real):
        def call(*args, **kwargs):
            nonlocal count
            count += 1
            if count == number:
                if name == "write":
                    real(args[0], bytes(args[1])[: len(args[1]) // 2])
                os._exit(77)
            return real(*args, **kwargs)

        return call

    for name in CALLS:
        setattr(os, name, counted(name, getattr(os, name)))


def child(directory, case, number):
    """In a process of its own: the work, which may end at any call."""
    pid = os.fork()
    if pid == 0:
        try:
            house = House(directory)
            crash_at(number)
            CRASHES[case][1](house)
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("case", CRASHES)
def test_a_crash_at_any_call_leaves_the_old_or_the_new(tmp_path, case):
    before, work = CRASHES[case]

    def prepared(name):
        (tmp_path / name).mkdir()
        house = House(tmp_path / name)
        for step in before:
            step(house)
        return house

    reference = prepared("reference")
    old, old_text, waits = reference.config, reference.file.read_text(), reference.control._confirm_by is not None
    work(reference)
    new, new_text, waits_after = reference.config, reference.file.read_text(), reference.control._confirm_by is not None
    assert (old, old_text, waits) != (new, new_text, waits_after) or case == "save"
    for number in range(1, 200):
        house = prepared(str(number))
        code = child(house.dir, case, number)
        assert code in (0, 77)
        again = House(house.dir)
        found, text = again.config, again.file.read_text()
        assert found in (old, new), f"{case}: a mixture after call {number}"
        assert text in (old_text, new_text), f"{case}: half a file after call {number}"
        is_waiting = again.control._confirm_by is not None
        wanted = {waits} if found == old and old != new else {waits_after} if old != new else {waits, waits_after}
        assert is_waiting in wanted, f"{case}: waits for a confirmation of another after call {number}"
        again.control.change(CHANGES.validate_python([{**DRAIN, "weight": 33}]))
        assert House(house.dir).config.services[0].servers[0].weight == 33, "and it goes on from there"
        assert House(house.dir, run="2").config.services[0].servers[0].weight == 33
        if code == 0:
            assert found == new, f"{case}: done, and forgotten"
            break
    assert number > 2 and code == 0


def test_the_process_that_is_killed_is_a_real_one(tmp_path):
    """kill -9 while applying without pause: whatever a restart finds is one of the two."""
    script = (
        "import sys; from pathlib import Path; from tests.unit.test_apply import *\n"
        "h = House(Path(sys.argv[1])); print('ready', flush=True)\n"
        "while True:\n    h.control.apply(NEW, 'x'); h.control.apply(FILE, 'x')\n"
    )
    for pause in (0.05, 0.11, 0.23):
        process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "ready\n"
        time.sleep(pause)
        process.kill()
        process.wait()
        assert House(tmp_path).config in (parsed(FILE), parsed(NEW))
    assert state.History(tmp_path / "history").numbers()[-1] > 1


# ---- the process ----


@pytest.fixture
def process(tmp_path):
    """start() -> client of a fresh control process over one real plane; kill() as the kernel would."""
    core = pytest.importorskip("fnat._core")
    arena = Path("/dev/shm") / f"fnat-apply-{os.getpid()}"
    arena.mkdir()
    paths = Paths(tmp_path / "state", tmp_path / "sock")
    paths.state_dir.mkdir()
    plane = core.Plane.create(str(arena), conns=1024, services=64, members=256, endpoints=256, frames=0, snapshot_mib=1)
    paths.arena_link.symlink_to(arena)
    paths.ports.write_text(json.dumps([p.model_dump() | {"kind": "tap"} for p in PORTS]))
    conf = tmp_path / "fnat.toml"
    conf.write_text(FILE)
    options = {
        "config": str(conf), "ports": [], "workers": 1, "socket": str(paths.socket), "state_dir": str(paths.state_dir),
        "node": "n", "log": "info", "exclusive": [], "conns": 1024, "idle": "sleep", "cpus": "auto", "steering": "auto",
    }  # fmt: skip
    environment = {**os.environ, "FNAT_OPTIONS": json.dumps(options), "FNAT_RUN": "7"}
    environment.pop("FNAT_KEEPER", None)
    running = []

    class Process:
        file = conf

        def start(self):
            running.append(subprocess.Popen([sys.executable, "-m", "fnat.control"], env=environment))
            client = Client(paths.socket, timeout=60)
            wait_until(lambda: is_up(client), 60)
            return client

        def kill(self, number=signal.SIGKILL):
            running[-1].send_signal(number)
            running[-1].wait(20)

    yield Process()
    for each in running:
        each.kill()
        each.wait()
    plane.close()
    shutil.rmtree(arena)


def test_killed_while_a_confirmation_is_waited_for(process, tmp_path, capfd):
    new = tmp_path / "new.toml"
    new.write_text(NEW)
    client = process.start()
    assert client.config_apply(NEW, str(new), 3)["confirm_in"] == pytest.approx(3, abs=1)
    process.kill()
    client = process.start()
    wait_until(lambda: client.config()["generation"] == 1, 30)
    assert parsed(client.config()["text"]) == parsed(FILE)
    client.config_apply(NEW, str(new), 60)
    client.config_confirm()
    process.kill()
    client = process.start()
    assert client.config()["generation"] == 3 and parsed(client.config()["text"]) == parsed(NEW)
    process.kill(signal.SIGTERM)
    assert "nobody confirmed the configuration" in capfd.readouterr().err


def test_a_hangup_applies_the_file_and_a_wrong_one_changes_nothing(process, capfd):
    client = process.start()
    process.file.write_text(NEW.replace("weight = 1", "weight = -1"))
    os.kill(client.status()["pids"]["control"], signal.SIGHUP)
    seen = ""

    def told(text):
        nonlocal seen
        seen += capfd.readouterr().err
        return text in seen

    wait_until(lambda: told("stays as it is"), 30)
    assert seen.count("weight: -1 is too small") == 3 and client.config()["generation"] == 1
    process.file.write_text(NEW)
    os.kill(client.status()["pids"]["control"], signal.SIGHUP)
    wait_until(lambda: told("configuration read again: 8 changes, generation 2"), 30)
    assert parsed(client.config(startup=True)["text"]) == parsed(NEW)
    assert [row["why"] for row in client.config_history()] == ["start", "SIGHUP"]


# what is done, what the audit log says of it, whether those who follow are told
DONE = [
    (lambda c: c.config_apply(NEW, "x"), "POST /v1/config/apply", True),
    (lambda c: c.config_apply(FILE, "x"), "POST /v1/config/apply", False),
    (lambda c: (c.config_apply(NEW, "x", 9), c.config_do("rollback")), "POST /v1/config/rollback", True),
    (lambda c: (c.change([DRAIN]), c.config_do("discard")), "POST /v1/config/discard", True),
    (lambda c: (c.change([DRAIN]), c.config_do("save")), "POST /v1/config/save", False),
]


@pytest.mark.parametrize(("work", "what", "told"), DONE, ids=[f"{row[1]} {row[2]}" for row in DONE])
def test_who_did_it_is_in_the_audit_log_and_the_events(house, work, what, told):
    with house.client() as client:
        work(client)
    record = house.control.audit.last(1)[0]
    assert (record["who"], record["what"], bool(record["changed"])) == ("in-process", what, told)
    if told:
        _, _, frame = b"".join(house.control.events.since(1)[0]).rpartition(b"data: ")
        told = json.loads(frame)
        assert (told["snapshot"], told["resources"]) == (
            record["snapshot"],
            [part["resource"] for part in record["changed"]],
        )


def test_taking_back_by_itself_is_in_the_audit_log(house):
    house.control.apply(NEW, "x", confirm=1)
    house.control._confirm_by = 0.0
    house.control.revert_if_due()
    record = house.control.audit.last(1)[0]
    assert (record["who"], record["from"]) == ("fnat", "timer") and "service udp 10.0.0.2:53" in str(record["changed"])


def test_a_full_disk_for_the_audit_log_takes_an_apply_back(house):
    house.paths.audit.mkdir()
    with pytest.raises(EngineError, match=r"audit\.jsonl"):
        house.control.apply(NEW, "x")
    assert house.config == parsed(FILE) and house.control.file == parsed(FILE) and house.again().config == parsed(FILE)


def test_an_api_section_is_told_and_one_that_cannot_be_is_refused(house):
    assert house.control.apply(FILE + "[api]\nmax_body = 4096\n", "x")["lines"] == ["~ api.max_body: 64000000 -> 4096"]
    assert house.control.audit.last(1)[0]["changed"][0]["resource"] == "api"
    wrong = '[api]\nlisten = "127.0.0.1:1"\ncert = "/no"\nkey = "/no"\ntokens = "/no"\n'
    with pytest.raises(ConfigError) as caught:
        house.control.apply(FILE + wrong, "x")
    assert caught.value.code == "FN-1606" and house.control.file.api.max_body == 4096


def test_all_errors_of_a_file_reach_the_caller(house):
    with house.client() as client, pytest.raises(ChangeError) as caught:
        client.config_apply(FILE + "[api]\nmax_bdy = 1\n[host]\nconnz = 1\n", "x")
    assert {error.code for error in (caught.value, *caught.value.others)} == {"FN-1103"} and len(caught.value.others) == 1
