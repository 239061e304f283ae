"""Capacity before the start, headroom while it runs: formulas, forecasts, and that both say what the core does."""

import json

import numpy as np
import packets as wire
import pytest
from click.testing import CliRunner
from rig import CLIENT, LIP, LIP2, LIP_IDS, RS1, RS2, VIP, WAN, Rig

from fnat import headroom as usage
from fnat.capacity import Wish, need
from fnat.cli.main import fnat
from fnat.cli.show import duration
from fnat.sizes import sizes

PORTS = 64_512

# sentence, wish, (held, workers, LIPs, first limit)
WISHES = [
    ("one LIP is enough for as many as it has ports", Wish(conns=PORTS, rs=1), (PORTS, 1, 1, "connection table")),
    ("a table is a little larger than asked for", Wish(conns=PORTS, rs=1, workers=5), (PORTS, 5, 1, "local ports")),
    ("one more needs another", Wish(conns=PORTS + 1, rs=1), (PORTS + 1, 1, 2, "connection table")),
    ("RSs multiply", Wish(conns=5_000_000, rs=40), (5_000_000, 1, 2, "connection table")),
    ("closed connections hold ports", Wish(conns=1000, rs=10, cps=200_000), (1_400_000, 1, 3, "connection table")),
    ("lives need workers", Wish(conns=1000, rs=100, cps=2_000_000), (14_000_000, 4, 3, "connection table")),
    ("as many workers as asked for", Wish(conns=8_000_000, rs=100, workers=8), (8_000_000, 8, 2, "connection table")),
]


@pytest.mark.parametrize(("wish", "answer"), [w[1:] for w in WISHES], ids=[w[0] for w in WISHES])
def test_what_a_wish_needs(wish, answer):
    n = need(wish)
    assert (n.held, n.workers, n.lips, n.first_limit) == answer
    assert n.limits["connection table"] >= n.held and n.limits["local ports"] >= n.held
    assert n.memory["total"] == sum(size for name, size in n.memory.items() if name != "total")
    assert n.huge_pages << 21 >= n.memory["total"]


def test_memory_of_the_machine_is_a_limit():
    n = need(Wish(conns=10_000_000, rs=40), available=1 << 30)
    assert n.first_limit == "memory of this host" and 1_000_000 < n.limits[n.first_limit] < 10_000_000


def test_more_than_a_plane_can_hold_is_refused():
    with pytest.raises(OSError, match="connections each"):
        need(Wish(conns=2**31, rs=40, workers=1))


def test_the_core_takes_what_was_said():
    room = {**sizes(conns=50_000, workers=1, frames=512), "members": 4096, "services": 512, "snapshot_mib": 1}
    rig = Rig(**room)
    said, is_so = rig.plane.measure(**room), rig.plane.info()
    for name in ("plane_bytes", "worker_bytes", "frames_bytes", "conn_bytes"):
        assert said[name] <= is_so[name] < said[name] + (4 << 20), name
    rig.close()


# words, code, what is said
SAID = [
    (
        "--conns 5M --rs 40",
        0,
        "LIPs = ceil(max(conns, cps x 7 s) / (RSs x 64512 ports)) = ceil(5000000 / (40 x 64512)) = 2",
    ),
    ("--conns 5M --rs 40 --cps 1.5M", 0, "ceil(10500000 / (40 x 64512)) = 5"),
    ("--conns 5M --rs 40 --workers 8", 0, "8 with 625,000 connections each"),
]


@pytest.mark.parametrize(("words", "code", "said"), SAID)
def test_capacity_is_said(words, code, said):
    done = CliRunner().invoke(fnat, ["capacity", *words.split()])
    assert done.exit_code == code and said in done.output, done.output


@pytest.mark.parametrize(
    "words", ["--conns 5Q --rs 4", "--conns 0 --rs 4", "--conns 5M", "--conns 5M --rs 4 --workers 65"]
)
def test_a_wish_that_is_none_is_refused(words):
    assert CliRunner().invoke(fnat, ["capacity", *words.split()]).exit_code == 2


def test_capacity_as_json():
    done = json.loads(CliRunner().invoke(fnat, ["capacity", "--conns", "200k", "--rs", "2", "--json"]).output)
    assert (done["held"], done["lips"], done["first_limit"]) == (200_000, 2, "connection table")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "never"),
        (0.2, "0s"),
        (59, "59s"),
        (60, "1m"),
        (61, "1m 1s"),
        (3 * 3600 + 59, "3h 59s"),
        (90_000, "1d 1h"),
    ],
)
def test_a_duration_in_words(seconds, text):
    assert duration(seconds) == text


# ---- the core's endpoints ----


def test_endpoints_are_what_is_in_use():
    rig = Rig()
    rig.service(members=[(0, RS1, 8080, 1), (1, RS2, 8081, 1)], lips=[3, 4], proto=17)
    assert len(rig.plane.endpoints()) == 0
    for i in range(8):
        rig.send(WAN, wire.udp(CLIENT, 1024 + i, VIP, 80, b"x"))
    found = {
        (".".join(map(str, e["rip"][:4])), int(e["rport"]), int(e["lip"])): int(e["used"])
        for e in rig.plane.endpoints()
    }
    assert sum(found.values()) == 8 and {key[:2] for key in found} == {(RS1, 8080), (RS2, 8081)}
    assert {key[2] for key in found} <= {LIP_IDS[LIP], LIP_IDS[LIP2]}
    rig.wait(14)
    assert len(rig.plane.endpoints()) == 0


# ---- the arithmetic of usages ----


def endpoints(*rows):
    """(rip's last byte, lip, worker, used)"""
    kinds = [("rip", "u1", 16), ("used", "u4"), ("lip", "u2"), ("rport", "u2"), ("proto", "u1"), ("family", "u1")]
    return np.array([([10, 1, 1, rip] + [0] * 12, used, lip, 80, 6, 4) for rip, lip, _, used in rows], kinds)


def test_a_usage_adds_workers_up_and_knows_each_share():
    now = usage.read(
        0, 5, endpoints((1, 7, 0, 100), (1, 7, 1, 400), (2, 7, 0, 1), (2, 256, 1, 3)), ports=1000, workers=2
    )
    rs1, rs2 = (now.by_rs[usage.rs_key(f"10.1.1.{n}", 80, 6)] for n in (1, 2))
    assert set(rs1) == {7} and set(rs2) == {7, 256}, "also LIPs whose id ends in a zero byte"
    assert (now.used[rs1[7]], now.free[rs1[7]], now.busiest[rs1[7]]) == (500, 500, 400)
    full = usage.read(0, 5, endpoints((1, 7, 0, 520), (1, 7, 1, 10)), ports=1000, workers=2)
    assert full.free.tolist() == [490], "a worker cannot use another's share"


# sentence, ports in use every 20 s, seconds until 1000 are in use
FORECASTS = [
    ("steady", [500, 500, 500], None),
    ("falling", [500, 400, 300], None),
    ("one port a second", [100, 120, 140], 860.0),
    ("rising with noise", [100, 125, 135, 160], pytest.approx(840 / 0.95)),
    ("one reading says nothing", [100], None),
]


@pytest.mark.parametrize(("used", "left"), [f[1:] for f in FORECASTS], ids=[f[0] for f in FORECASTS])
def test_forecast_is_linear(used, left):
    history, now = usage.History(), None
    for i, ports in enumerate(used):
        now = usage.read(20.0 * i, ports, endpoints((1, 7, 0, ports)), ports=1000, workers=1)
        history.keep(now)
    assert usage.ports_full_in(now, history.port_rates(now)) == left
    assert usage.seconds_left(1000 - now.conns, history.conn_rate(now)) == left


def test_an_endpoint_that_is_new_rises_from_nothing():
    history = usage.History()
    history.keep(usage.read(0.0, 0, endpoints((1, 7, 0, 10)), ports=1000, workers=1))
    now = usage.read(10.0, 0, endpoints((1, 7, 0, 10), (2, 7, 0, 100)), ports=1000, workers=1)
    assert sorted(history.port_rates(now).tolist()) == [0, 10]
    assert usage.ports_full_in(now, history.port_rates(now)) == 90
    nothing = usage.read(20.0, 0, endpoints(), ports=1000, workers=1)
    assert usage.ports_full_in(nothing, history.port_rates(nothing)) is None


def test_history_forgets_what_is_old():
    history = usage.History()
    for i in range(100):
        now = usage.read(20.0 * i, i if i < 50 else 50, endpoints(), ports=1000, workers=1)
        assert history.is_due(now.at)
        history.keep(now)
        assert not history.is_due(now.at + 19)
    assert history.conn_rate(now) == 0
