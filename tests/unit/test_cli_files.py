"""`fnat check|diff|apply|…`: what is said, and exit codes; over a control in this process."""

import json
from pathlib import Path

import pytest

from fnat.cli import guarded, main, nouns
from tests.unit.test_apply import FILE, NEW, House, drain, parsed

ROOT = Path(__file__).parents[2]


@pytest.fixture
def type_in(tmp_path, monkeypatch, capsys):
    """A command line -> exit code, standard output, standard error; type_in.house is what answers."""
    (tmp_path / "state").mkdir()
    house = House(tmp_path / "state")
    monkeypatch.setattr(nouns, "client", house.client)

    def run(*words):
        monkeypatch.setattr("sys.argv", ["fnat", *map(str, words)])
        code = guarded("fnat", main._run)
        return code, *capsys.readouterr()

    run.house, run.dir = house, tmp_path
    return run


def test_check_says_what_a_file_takes(type_in):
    code, out, err = type_in("check", ROOT / "conf/fnat.toml")
    assert (code, err) == (0, "") and "ok, node lb1: 2 ports, 1 services, 2 servers, 14 lips" in out
    assert "huge pages of 2 MiB" in out and "1806336 connections at most" in out
    (type_in.dir / "two.toml").write_text(FILE)
    code, out, _ = type_in("check", type_in.dir / "two.toml", "--json")
    told = json.loads(out)
    assert code == 0 and [row["node"] for row in told["nodes"]] == ["n", "other"] and told["findings"] == []
    assert told["nodes"][0]["memory"]["total"] == sum(v for k, v in told["nodes"][0]["memory"].items() if k != "total")


def test_check_tells_all_errors_once_and_exits_with_4(type_in):
    wrong = type_in.dir / "wrong.toml"
    wrong.write_text(FILE.replace('["udp"]', '["ucp"]').replace("weight = 1", "weight = -1"))
    code, out, err = type_in("check", wrong)
    assert (code, err) == (4, "") and len(out.splitlines()) == 4
    assert all(line.startswith(f"{wrong}:") and line.endswith("(FN-1104)") for line in out.splitlines())
    wrong.write_text(FILE.replace('"10.1.1.1:53" = { weight = 1 }', ""))
    code, out, _ = type_in("check", wrong)
    assert code == 4 and "service.dns: no rs" in out
    assert type_in("check", type_in.dir / "none.toml")[0] == 1


def test_diff_apply_confirm_rollback(type_in):
    new = type_in.dir / "new.toml"
    new.write_text(NEW)
    assert type_in("diff") == (0, "no difference\n", "")
    code, out, _ = type_in("diff", new)
    assert code == 4 and "- service udp 10.0.0.2:53\n" in out
    assert "! dns udp 10.0.0.2:53: 0 connections open\n" in out
    assert "it would be accepted" in type_in("--dry-run", "apply", new)[1]
    assert type_in.house.config == parsed(FILE)
    code, out, _ = type_in("apply", new, "--confirm", "5m")
    assert code == 0 and "taken back in 300 s unless you say `fnat apply --confirmed`\n" in out
    code, _, err = type_in("apply", new)
    assert code == 1 and err.endswith("`fnat rollback` takes it back (FN-1208)\n")
    assert type_in("apply", "--confirmed") == (0, "confirmed: it stays\n", "")
    assert type_in.house.config == parsed(NEW)
    assert "generation 3 in force" in type_in("rollback")[1] and type_in.house.config == parsed(FILE)
    code, out, _ = type_in("history")
    assert [line.split()[-2] for line in out.splitlines()[1:]] == ["start", "apply", "1"]
    wrong = type_in.dir / "wrong.toml"
    wrong.write_text(NEW.replace("weight = 1", "weight = -1"))
    code, out, err = type_in("apply", wrong)
    assert (code, out) == (1, "") and len(err.splitlines()) == 3


def test_config_show_save_discard(type_in):
    assert type_in("config", "show", "--diff") == (0, "", "")
    drain(type_in.house)
    assert type_in("config", "show", "--diff")[1] == "~ rs 10.1.1.1:8080 of tcp 10.0.0.1:80: weight 1 -> 0\n"
    assert parsed(type_in("config", "show")[1]) == type_in.house.config
    assert type_in("config", "show", "--startup")[1] == FILE
    assert "weight 0 -> 1" in type_in("config", "discard")[1]
    drain(type_in.house)
    assert "generation 2 in force" in type_in("config", "save")[1]
    assert parsed(type_in.house.file.read_text()) == type_in.house.config
