"""Measure everything that bench/README.md describes, one figure after the other, and write it down.

    python bench/run.py [--quick] [--only WORD]

Writes bench/results/NAME.json (what the command printed) for each figure and bench/results/README.md, the table.
Exit 1 when a command fails or a packet comes out wrong; a figure that misses its mark is marked, not an error.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"
REPEATS = 3  # of each figure; the best is kept, because what disturbs a machine only ever adds
SECONDS = {"nat": 3.0, "cps": 8.0, "replay": 0.2}  # the last for each file
PCAPS = Path(os.environ.get("FNAT_PCAPS") or ROOT.parent / "shared" / "pcaps")


@dataclass(frozen=True)
class Figure:
    """One command; `must` and `aim` are marks for `key`, a rate when `more` is better."""

    name: str
    title: str
    words: tuple[str, ...]
    key: str
    unit: str
    must: float | None = None
    aim: float | None = None
    more: bool = False
    slow: bool = False

    def reached(self, value: float) -> str:
        def at_least(mark: float) -> bool:
            return value >= mark if self.more else value <= mark

        if self.must is None:
            return ""
        return "aim" if self.aim is not None and at_least(self.aim) else "must" if at_least(self.must) else "**missed**"


def nat(conns: str, proto: str, must: float | None = None, aim: float | None = None, workers: int = 1) -> Figure:
    count = {"k": 1000, "M": 1_000_000}[conns[-1]] * int(conns[:-1])
    words = ("nat", "--conns", str(count), "--proto", proto, "--family", "4", "--workers", str(workers))
    name, many = f"nat-{proto}-{conns}-{workers}", "" if workers == 1 else f", {workers} workers"
    slow = count > 1_000_000
    return Figure(
        name, f"{conns} conns, {proto.upper()}{many}", words, "ns_per_packet", "ns/packet", must, aim, slow=slow
    )


def lives(workers: int) -> Figure:
    title = "TCP lives" if workers == 1 else f"TCP lives, {workers} workers"
    words = ("cps", "--workers", str(workers))
    return Figure(f"cps-{workers}", title, words, "cps", "lives/s", 1e6 * workers, 2e6 * workers, more=True)


def figures() -> list[Figure]:
    rows = [nat("1k", "udp", 45, 25), nat("100k", "udp"), nat("1M", "udp", 80, 50), nat("10M", "udp", 100, 60)]
    rows += [
        nat("1k", "tcp"),
        nat("1M", "tcp"),
        nat("1k", "udp", 45, 25, workers=2),
        nat("1M", "udp", 80, 50, workers=2),
    ]
    rows += [lives(1), lives(2)]
    files = sorted(PCAPS.glob("*.pcap*")) if PCAPS.is_dir() else []
    if files:
        words = ("replay", "--verify", *map(str, files))
        rows.append(Figure("replay", f"replay of {len(files)} captures", words, "ns_per_packet", "ns/packet"))
    return rows


def measured(figure: Figure, seconds: float) -> dict[str, Any]:
    """The figure as its command prints it. Each runs in a process of its own, so that memory starts afresh."""
    command = [sys.executable, "-m", "fnat", "bench", *figure.words, "--seconds", str(seconds), "--json", "-"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if run.returncode:
        print(f"{figure.name}: {run.stderr.strip()}", file=sys.stderr)
        raise SystemExit(1)
    said: dict[str, Any] = json.loads(run.stdout)
    for row in said.get("files", []):
        row["file"] = Path(row["file"]).name
    return said


def processor() -> str:
    text = Path("/proc/cpuinfo").read_text()
    return next(
        (line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")),
        platform.machine(),
    )


def table(rows: list[tuple[Figure, dict[str, Any]]]) -> str:
    lines = [
        "# Figures",
        "",
        f"{processor()}, {os.cpu_count()} CPUs, Linux {platform.release()}; written by `make bench`, explained in",
        "../README.md.",
        "The floor is memory alone: the same lines of the same records touched in the same order, in the same run.",
        "",
        f"Each figure is the best of {REPEATS} runs, the worst beside it: other users of the machine only ever add.",
        "",
        "| figure | best | worst | floor | generator | bytes/conn | huge pages | must | aim | reached |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for figure, said in rows:
        value = said[figure.key]
        shown, worst = (
            f"{v / 1e6:.2f} M {figure.unit}" if figure.more else f"{v:.1f} {figure.unit}"
            for v in (value, said["worst_of_runs"])
        )
        marks = [f"{m / 1e6:g} M" if figure.more and m else f"{m:g}" if m else "" for m in (figure.must, figure.aim)]
        cells = [
            figure.title,
            shown,
            worst,
            said.get("floor_ns", ""),
            said.get("generator_ns", ""),
            said.get("bytes_per_conn", ""),
        ]
        cells += [{True: "yes", False: "no", None: ""}[said.get("huge_pages")], *marks, figure.reached(value)]
        lines.append("| " + " | ".join(str(c) for c in cells) + " |")
    return "\n".join(lines) + "\n"


@contextlib.contextmanager
def huge_pages(megabytes: int) -> Iterator[None]:
    """As many 2 MiB pages as the largest figure needs, while it measures; without privilege what there is."""
    knob = Path("/proc/sys/vm/nr_hugepages")
    try:
        before = int(knob.read_text())
        knob.write_text(str(max(before, megabytes // 2)))
    except OSError as error:
        print(f"no huge pages reserved ({error.strerror}): figures will be slower; run as root", file=sys.stderr)
        yield
        return
    try:
        yield
    finally:
        knob.write_text(str(before))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="a quarter of the time, nothing beyond a million connections"
    )
    parser.add_argument(
        "--only", default="", metavar="WORD", help="only figures whose name contains WORD; the table is left alone"
    )
    options = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    with huge_pages(3000):
        measure_all(options)


def measure_all(options: argparse.Namespace) -> None:
    rows = []
    for figure in figures():
        if options.only not in figure.name or (options.quick and figure.slow):
            continue
        runs = [measured(figure, SECONDS[figure.words[0]] / (4 if options.quick else 1)) for _ in range(REPEATS)]
        runs.sort(key=lambda run: run[figure.key], reverse=figure.more)
        said = {**runs[0], "worst_of_runs": runs[-1][figure.key], "runs": REPEATS}
        rows.append((figure, said))
        print(
            f"{figure.title:<28}{said[figure.key]:>12} {figure.unit:<10}{figure.reached(said[figure.key])}", flush=True
        )
        if not options.quick:
            (RESULTS / f"{figure.name}.json").write_text(json.dumps(said, indent=2) + "\n")
    if not options.quick and not options.only:
        (RESULTS / "README.md").write_text(table(rows))


if __name__ == "__main__":
    main()
