"""Measure everything that bench/README.md describes, one part after the other, and write it down.

    python bench/run.py [--quick] [--only WORD]

Writes bench/results/NAME.json, the median run of each figure in memory; report.json, all that was measured; and what
report.py makes of that: report.md and report.png. Exit 1 when a command fails or a packet comes out wrong; a figure
that misses its mark is marked, not an error. Without root the parts that need namespaces are left out, with a line.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import report
import veth

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"
RUNS, FEW = 11, 5  # of each figure; few of those that take long
PAIRS = 9
PCAPS = Path(os.environ.get("FNAT_PCAPS") or ROOT.parent / "shared" / "pcaps")
VERSIONS = {
    "nftables": ("nft", "--version"),
    "haproxy": ("haproxy", "-v"),
    "nginx": ("nginx", "-v"),
    "wrk": ("dpkg-query", "-W", "-f", "wrk ${Version}", "wrk"),
}


@dataclass(frozen=True)
class Figure:
    """One command, run `runs` times; `must` and `aim` are marks for `key`, a rate when `more` is better."""

    name: str
    title: str
    words: tuple[str, ...]
    key: str
    unit: str
    seconds: float
    runs: int = RUNS
    must: float | None = None
    aim: float | None = None
    more: bool = False
    slow: bool = False
    stages: bool = False  # one run more, which times the stages and so takes longer for each packet
    dpvs: str = ""  # which of DPVS's published tests this repeats


def count_of(conns: str) -> int:
    return {"k": 1000, "M": 1_000_000}[conns[-1]] * int(conns[:-1])


FAMILIES = {"4": "", "66": ", IPv6", "64": ", IPv6 clients of IPv4 servers", "46": ", IPv4 clients of IPv6 servers"}


def nat(
    conns: str, proto: str, must: float | None = None, aim: float | None = None, workers: int = 1, family: str = "4"
) -> Figure:
    count = count_of(conns)
    words = ("nat", "--conns", str(count), "--proto", proto, "--family", family, "--workers", str(workers))
    name, many = f"nat-{proto}-{conns}-{workers}", "" if workers == 1 else f", {workers} workers"
    name += "" if family == "4" else f"-{family}"
    slow = count > 1_000_000
    title = f"{conns} conns, {proto.upper()}{many}{FAMILIES[family]}"
    runs, stages = FEW if slow else RUNS, workers == 1
    return Figure(name, title, words, "ns_per_packet", "ns/packet", 0.5, runs, must, aim, slow=slow, stages=stages)


def lives(workers: int) -> Figure:
    title = "TCP lives" if workers == 1 else f"TCP lives, {workers} workers"
    words = ("cps", "--workers", str(workers))
    return Figure(f"cps-{workers}", title, words, "cps", "lives/s", 4.0, FEW, 1e6 * workers, 2e6 * workers, more=True)


def figures() -> list[Figure]:
    rows = [nat("1k", "udp", 45, 25), nat("10k", "udp"), nat("100k", "udp"), nat("1M", "udp", 80, 50)]
    rows += [nat("10M", "udp", 100, 60), nat("1k", "tcp", 45, 25), nat("1M", "tcp", 80, 50)]
    rows += [nat("10M", "tcp", 100, 60)]
    rows += [nat(conns, proto, family="66") for conns in ("1k", "1M") for proto in ("udp", "tcp")]
    rows += [nat("1M", "udp", family=family) for family in ("64", "46")]
    rows += [nat("1k", "udp", 45, 25, workers=2), nat("1M", "udp", 80, 50, workers=2), lives(1), lives(2)]
    rows += [row for workers in (1, 2) for row in dpvs_tests(workers)]
    files = sorted(PCAPS.glob("*.pcap*")) if PCAPS.is_dir() else []
    if files:
        words = ("replay", "--verify", *map(str, files))
        title = f"replay of {len(files)} captures"
        rows.append(Figure("replay", title, words, "ns_per_packet", "ns/packet", 0.2, 1, slow=True))
    return rows


def dpvs_tests(workers: int) -> list[Figure]:
    """The three tests of DPVS's release, in its shape: 8 VIPs, 8 real servers each, 50 LIPs."""
    shape = ("--services", "8", "--servers", "8", "--lips", "50", "--workers", str(workers))
    many = f"{workers} worker{'s' * (workers > 1)}"
    udp = ("nat", "--conns", str(3000 if workers == 1 else 5000), "--proto", "udp", *shape)
    bulk = ("nat", "--conns", "1000", "--proto", "tcp", "--payload", "800", *shape)
    rows = [
        Figure(f"dpvs-udp-{workers}", f"UDP packets, {many}", udp, "mpps", "Mpps", 0.5, RUNS, more=True, dpvs="udp"),
        Figure(
            f"dpvs-cps-{workers}",
            f"TCP lives, {many}",
            ("cps", *shape),
            "cps",
            "lives/s",
            4.0,
            FEW,
            more=True,
            dpvs="cps",
        ),
    ]
    title = f"TCP, 800 bytes, {many}"
    rows.append(Figure(f"dpvs-bulk-{workers}", title, bulk, "mpps", "Mpps", 0.5, RUNS, more=True, dpvs="bulk"))
    return rows


def command(words: tuple[str, ...], seconds: float) -> list[str]:
    return [sys.executable, "-m", "fnat", "bench", *words, "--seconds", str(seconds), "--json", "-"]


def measured(figure: Figure, seconds: float, *more: str) -> dict[str, Any]:
    """The figure as its command prints it. Each runs in a process of its own, so that memory starts afresh."""
    run = subprocess.run(
        command((*figure.words, *more), seconds), cwd=ROOT, capture_output=True, text=True, check=False
    )
    if run.returncode:
        print(f"{figure.name}: {run.stderr.strip()}", file=sys.stderr)
        raise SystemExit(1)
    said: dict[str, Any] = json.loads(run.stdout)
    for row in said.get("files", []):
        row["file"] = Path(row["file"]).name
    return said


def in_memory(figure: Figure, quick: bool) -> dict[str, Any]:
    """The median run, and beside it the values of all runs."""
    runs = [measured(figure, figure.seconds / (2 if quick else 1)) for _ in range(3 if quick else figure.runs)]
    runs.sort(key=lambda run: run[figure.key])
    said = dict(runs[len(runs) // 2])
    said["values"] = [run[figure.key] for run in runs]
    if figure.stages:
        said["stages"] = measured(figure, figure.seconds, "--stages")["stages"]
    said |= {"name": figure.name, "title": figure.title, "key": figure.key, "unit": figure.unit, "more": figure.more}
    said |= {"must": figure.must, "aim": figure.aim, "dpvs": figure.dpvs}
    return said


def two_workers(pairs: int) -> dict[str, Any]:
    """Two workers in one process against two processes of one worker, both at the same time, in turns."""
    words = ("nat", "--conns", "1000000", "--proto", "udp")
    together, apart = [], []
    for _ in range(pairs):
        done = subprocess.run(command((*words, "--workers", "2"), 1.0), cwd=ROOT, capture_output=True, check=True)
        together.append(json.loads(done.stdout)["mpps"])
        alone = [["taskset", "-c", str(cpu), *command(words, 1.0)] for cpu in (0, 1)]
        processes = [subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE) for line in alone]
        try:
            apart.append(sum(json.loads(process.communicate()[0])["mpps"] for process in processes))
        finally:
            for process in processes:
                process.kill()
    ratios = [a / b for a, b in zip(together, apart, strict=True)]
    return {"together_mpps": together, "apart_mpps": apart, "ratios": ratios, "ratio": statistics.median(ratios)}


# ---- the machine ----


def processor() -> str:
    text = Path("/proc/cpuinfo").read_text()
    return next(
        (line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")),
        platform.machine(),
    )


def versions() -> dict[str, str]:
    found = {}
    for name, words in VERSIONS.items():
        if shutil.which(words[0]):
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            found[name] = (done.stdout + done.stderr).strip().splitlines()[0]
    return found


def others_busy() -> float:
    """CPUs that others use at this moment."""

    def idle() -> float:
        words = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
        return sum(int(words[i]) for i in (3, 4, 7)) / os.sysconf("SC_CLK_TCK")

    before, start = idle(), time.monotonic()
    time.sleep(1)
    return max(0.0, (os.cpu_count() or 1) - (idle() - before) / (time.monotonic() - start))


@contextlib.contextmanager
def huge_pages(megabytes: int) -> Iterator[None]:
    """As many 2 MiB pages as the largest figure needs, while it measures; without privilege what there is."""
    knob = Path("/proc/sys/vm/nr_hugepages")
    try:
        before = int(knob.read_text())
        if before < megabytes // 2:
            knob.write_text(str(megabytes // 2))
    except OSError as error:
        print(f"no huge pages reserved ({error.strerror}): figures will be slower; run as root", file=sys.stderr)
        yield
        return
    try:
        yield
    finally:
        if before < megabytes // 2:
            knob.write_text(str(before))


# ---- everything ----


def say(text: str) -> None:
    print(text, flush=True)


def measure(quick: bool, only: str) -> dict[str, Any]:
    """All parts whose name contains `only`."""
    said: dict[str, Any] = {
        "processor": processor(),
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "versions": versions(),
        "others_busy": round(others_busy(), 2),
        "memory": [],
        "skipped": [],
    }
    for figure in figures():
        if only not in figure.name or (quick and figure.slow):
            continue
        row = in_memory(figure, quick)
        said["memory"].append(row)
        say(f"{figure.title:<28}{row[figure.key]:>12} {figure.unit:<10}{report.reached(row)}")
        if not quick:
            (RESULTS / f"{figure.name}.json").write_text(json.dumps(row, indent=2) + "\n")
    if only in "two-workers" and (os.cpu_count() or 1) > 1:
        said["two_workers"] = two_workers(3 if quick else PAIRS)
        say(f"{'two workers / two loops':<28}{said['two_workers']['ratio']:>12.3f}")
    peers(said, quick, only)
    return said


def peers(said: dict[str, Any], quick: bool, only: str) -> None:
    """What needs namespaces, and so root."""
    wanted = [part for part in ("packets", "requests") if only in part]
    if not wanted:
        return
    if os.geteuid() or (os.cpu_count() or 1) < 2:
        line = "packets and requests over veth: they need root and two CPUs"
        say(f"left out: {line}")
        said["skipped"].append(line)
        return
    without = veth.missing()
    said["skipped"] += [f"{name}: {why}" for name, why in without.items()]
    for line in said["skipped"]:
        say(f"left out: {line}")
    if "packets" in wanted:
        said["packets"] = []
        for conns, services in (
            ((1, 1), (1_000_000, 64)) if quick else ((1, 1), (1, 64), (1_000_000, 1), (1_000_000, 64))
        ):
            part = veth.packets(conns, services, 3 if quick else RUNS, 0.35, without)
            said["packets"].append(part)
            for line in report.packet_lines(part):
                say(line)
    if "requests" in wanted:
        said["requests"] = veth.requests(2 if quick else FEW, 1, 1000, without)
        for line in report.request_lines(said["requests"]):
            say(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="three short runs of each, nothing beyond a million connections in memory"
    )
    parser.add_argument(
        "--only",
        default="",
        metavar="WORD",
        help="only figures, or parts (two-workers, packets, requests), whose name contains WORD; no report",
    )
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    RESULTS.mkdir(exist_ok=True)
    start = time.monotonic()
    with huge_pages(3000):
        said = measure(options.quick, options.only)
    said["took_s"] = round(time.monotonic() - start)
    if report.wrong(said):
        sys.exit("packets came out wrong; see above")
    if not options.quick and not options.only:
        (RESULTS / "report.json").write_text(json.dumps(said, indent=1) + "\n")
        report.write(RESULTS)
        say(f"bench/results/report.md, report.png and report.json, after {said['took_s']} s")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted")
