"""`fnat bench nat|cps`: what is measured is forwarded, checked and given back. No row looks at a speed."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from fnat.bench import STAGES, bench

ROWS = {
    "UDP, one worker": ["--conns", "1000", "--proto", "udp"],
    "TCP, one worker": ["--conns", "1000", "--proto", "tcp"],
    "more connections than two chunks of ports of every endpoint": ["--conns", "70000", "--proto", "udp"],
    "two workers on one plane": ["--conns", "5000", "--proto", "tcp", "--workers", "2"],
    "large payload": ["--conns", "500", "--payload", "800"],
}


def figures(words: list[str]) -> dict[str, object]:
    result = CliRunner().invoke(bench, [*words, "--json", "-"])
    assert result.exit_code == 0, result.output
    said: dict[str, object] = json.loads(result.output)
    return said


@pytest.mark.parametrize("title", ROWS)
def test_every_connection_is_opened_hit_and_ended(title: str) -> None:
    words = ROWS[title]
    said = figures(["nat", "--seconds", "0.1", *words])
    conns = int(words[1])
    assert said["conns"] == conns  # each worker has opened as many; `left` and `dropped` fail the command
    assert said["verified"] >= 2 * conns // 100 * int(said["workers"])  # type: ignore[call-overload]
    assert (said["mismatched"], said["dropped"]) == (0, 0)
    assert said["ns_per_packet"] > 0 and said["ns_per_open"] > 0 and said["ns_per_expire"] > 0  # type: ignore[operator]


def test_stages_cover_the_way_of_a_packet() -> None:
    said = figures(["nat", "--seconds", "0.2", "--conns", "1000", "--stages"])
    stages = said["stages"]
    assert isinstance(stages, dict) and tuple(stages) == STAGES
    for name in ("parse", "hash", "find", "conn", "rewrite", "neighbour"):
        assert 0 < stages[name] < said["ns_per_packet"] * 10, stages  # type: ignore[operator]


def test_whole_lives_leave_nothing() -> None:
    said = figures(["cps", "--seconds", "0.3"])
    assert said["opened"] and said["verified"] and not said["mismatched"] and not said["dropped"]  # type: ignore[truthy-bool]


@pytest.mark.parametrize("words", [["--payload", "3"], ["--payload", "1441"], ["--conns", "10"], ["--workers", "65"]])
def test_what_cannot_be_measured_is_refused(words: list[str]) -> None:
    result = CliRunner().invoke(bench, ["nat", "--seconds", "0.1", *words])
    assert result.exit_code == 2 and words[0] in result.output


def test_more_than_memory_is_one_line() -> None:
    result = CliRunner().invoke(bench, ["nat", "--conns", "200000000", "--workers", "64"])
    assert result.exit_code == 1 and "are needed and" in result.output
