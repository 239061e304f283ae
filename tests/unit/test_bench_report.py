"""The benches' report from made-up measurements: ratios are of the same round, marks are said, missing parts are left out."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
import report

Row = dict[str, Any]


def run(cpu_ns: float, forwarder_ns: float, packets: int = 1_000_000, wrong: int = 0) -> Row:
    """A second in which so many packets were forwarded, each for so much CPU time, a part of it the forwarder's."""
    return {
        "ns": 1_000_000_000,
        "sent": packets // 2,
        "returned": packets // 2,
        "in_time": packets // 2,
        "lost": 0,
        "duplicates": 0,
        "wrong": wrong,
        "generator_s": (cpu_ns - forwarder_ns) * packets / 1e9,
        "forwarder_s": forwarder_ns * packets / 1e9,
        "softirq_s": 0.0,
    }


def packets(wrong: int = 0) -> Row:
    """Three rounds; in the second everything is twice as slow. fnat costs 500 ns more than the wire, nftables 1000."""
    rounds = {
        "wire": [run(200, 0), run(400, 0), run(200, 0)],
        "bare": [run(650, 400), run(1300, 800), run(650, 400)],
        "fnat": [run(700, 500), run(1400, 1000), run(700, 500, wrong=wrong)],
        "nftables": [run(1200, 0), run(2400, 0), run(1200, 0)],
    }
    targets = {name: {"runs": runs, "opening": runs[0]} for name, runs in rounds.items()}
    return {"conns": 1_000_000, "services": 64, "targets": targets}


def answers(per_s: float, p50: float) -> Row:
    rate = [{"per_s": per_s, "errors": 0}] * 3
    latency = {"p50": p50, "p99": 2 * p50, "p99.9": 3 * p50}
    return {"short": rate, "kept": rate, "paced": [{"latency_us": latency}] * 3}


def figure(name: str, **more: Any) -> Row:
    row = {"name": name, "title": name, "key": "ns_per_packet", "unit": "ns/packet", "more": False, "dpvs": ""}
    row |= {"must": 80.0, "aim": 50.0, "ns_per_packet": 60.0, "values": [55.0, 60.0, 90.0], "mpps": 16.6, "workers": 1}
    return row | {"conns": 1_000_000, "floor_ns": 30.0, "bytes_per_conn": 150.0, "huge_pages": True, **more}


def everything() -> Row:
    memory = [
        figure("nat-udp-1k-1", conns=1000, stages=dict.fromkeys(report.STAGES, 1.5)),
        figure("nat-udp-1M-1", ns_per_open=200.0, ns_per_expire=100.0),
        figure("dpvs-udp-1", key="mpps", more=True, must=None, aim=None, mpps=29.0, values=[29.0], dpvs="udp"),
        figure("dpvs-bulk-1", key="mpps", more=True, must=None, aim=None, mpps=20.0, values=[20.0], dpvs="bulk"),
    ]
    return {
        "processor": "Abacus",
        "cpus": 2,
        "kernel": "6.18",
        "versions": {"nftables": "nftables v1.0.6"},
        "others_busy": 0.1,
        "took_s": 700,
        "skipped": ["haproxy: haproxy is not installed"],
        "memory": memory,
        "two_workers": {"together_mpps": [40.0], "apart_mpps": [40.0], "ratios": [1.0], "ratio": 1.0},
        "packets": [packets()],
        "requests": {
            "rate": 1000,
            "targets": {"wire": answers(50e3, 20), "fnat": answers(40e3, 50), "haproxy": answers(20e3, 80)},
        },
    }


RATIOS = [
    ("fnat's own packets/s beside the bare forwarder's", lambda: report.own_ratio(packets(), "fnat", "bare"), 0.8),
    ("fnat's packets per CPU-second beside nftables'", lambda: report.cost_ratio(packets(), "fnat", "nftables"), 2.0),
    ("what fnat adds to the time to an answer", lambda: report.added(everything()["requests"], "fnat", "p50"), 30.0),
    ("Gbit/s each way of 20 Mpps both ways", lambda: report.dpvs_value(everything()["memory"][3]), 68.32),
]


@pytest.mark.parametrize("row", RATIOS, ids=lambda row: row[0])
def test_ratio(row: tuple[str, Any, float]) -> None:
    assert row[1]() == pytest.approx(row[2])


SAID = [
    "Abacus, 2 CPUs, Linux 6.18; nftables v1.0.6",
    "- left out: haproxy: haproxy is not installed",
    "| packets/s of fnat's CPU / the bare forwarder's, 1M conns, 64 services | 0.80 | ≥ 0.9 | **no** |",
    "| packets per CPU-second, fnat / nftables, 1M conns, 64 services | 2.00 | > 1 | yes |",
    "| short connections/s, fnat / HAProxy | 2.00 | > 1 | yes |",
    "| time to an answer, p50, HAProxy / fnat | 1.60 | > 1 | yes |",
    "| two workers / two independent loops, in memory | 1.00 | ≥ 0.97 | yes |",
    "fnat's process takes 500 ns of CPU a packet; 60 ns of it is what forwarding takes in memory",
    "| nat-udp-1M-1 | 60.0 ns/packet | 55.0 | 3 | 30.0 | 2.0 | 150.0 | yes | 80 | 50 | must |",
    "| dpvs-udp-1 | 29.00 M | 2.90 M | 10.0 |",
]


@pytest.mark.parametrize("line", SAID)
def test_the_report_says(line: str) -> None:
    assert line in report.markdown(everything(), None)


@pytest.mark.parametrize("part", ["packets", "requests", "two_workers"])
def test_a_part_that_was_not_measured_is_left_out(part: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    whole, said = report.markdown(everything(), None), everything()
    del said[part]
    (tmp_path / "report.json").write_text(json.dumps(said))
    report.write(tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert len(text) < len(whole)
    assert set(text.splitlines()) < set(whole.splitlines())
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")


def test_a_kept_run_of_100_million_joins_the_sweep() -> None:
    text = report.markdown(everything(), figure("nat-udp-100M-1", conns=100_000_000, ns_per_packet=77.0))
    assert "| 100M | 77.0 | 30.0 |" in text


@pytest.mark.parametrize("wrong", [0, 1])
def test_a_wrong_packet_is_a_fault(wrong: int) -> None:
    said = everything() | {"packets": [packets(wrong)]}
    assert report.wrong(said) == bool(wrong)
