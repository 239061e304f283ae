"""The benches over veth, for a moment each: what they would measure arrives, and is right."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
import veth

pytestmark = pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two CPUs")
NFT = {"nftables", "nft-rps"}


@pytest.fixture(scope="module")
def without() -> dict[str, str]:
    return veth.missing()


def test_every_forwarder_brings_every_packet_back(without: dict[str, str]) -> None:
    said = veth.packets(conns=1000, services=3, rounds=1, seconds=0.1, without=without)["targets"]
    assert set(said) == {"wire", "bare", "fnat"} | (NFT if "nftables" not in without else set())
    for name, target in said.items():
        run = target["runs"][0]
        assert target["opening"]["returned"] >= 1000, name
        assert run["returned"] > 1000, name
        assert (run["wrong"], run["duplicates"]) == (0, 0), name
        assert run["lost"] <= run["sent"] // 100, name
        assert run["reflected"] >= run["returned"] // 1024, name


def test_every_forwarder_carries_requests(without: dict[str, str]) -> None:
    said = veth.requests(rounds=1, seconds=1, rate=100, without=without)["targets"]
    wanted = {"wire", "fnat", "haproxy"} - set(without)
    assert set(said) == wanted | (NFT if "nftables" not in without else set())
    for name, target in said.items():
        assert all(target[kind][0]["per_s"] > 100 for kind in ("short", "kept")), name
        assert target["paced"][0]["asked"] == 100, name
        assert set(target["paced"][0]["latency_us"]) == {"p50", "p99", "p99.9"}, name
