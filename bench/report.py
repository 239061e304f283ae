"""What was measured, as a table for each question and one picture: report.json -> report.md, report.png.

    python bench/report.py [DIRECTORY]      from DIRECTORY/report.json, default bench/results

A figure is the median of its runs, the best beside it. Two forwarders are compared round by round, each round
measured within a second or two, and the median of those ratios is taken: what slows the machine down slows both.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

Row = dict[str, Any]

ORDER = ("wire", "bare", "fnat", "nftables", "nft-rps", "haproxy")
NAMES = {
    "wire": "no forwarder",
    "bare": "bare AF_XDP",
    "fnat": "**fnat**",
    "nftables": "nftables",
    "nft-rps": "nftables, RPS to the second CPU",
    "haproxy": "HAProxy, mode tcp",
}
# DPVS 1.9.2 by its release notes: 2 x E5-2650 v4, 2.2 GHz, X540, packets and lives a second by workers.
PUBLISHED = {
    "udp": ({1: 2.9e6, 2: 5.0e6}, "packets/s"),
    "cps": ({1: 200e3, 2: 360e3}, "lives/s"),
    "bulk": ({1: 9.73, 2: 9.73}, "Gbit/s each way, the line's rate"),
}
# DPVS 1.10.2 on DPDK 24.11 with ports in memory, one worker, 2.6 GHz Zen 4: 168 ns a packet at 1 k conns, both ways.
MEASURED = {"udp": {1: 1e9 / 168}, "cps": {1: 0.35e6}}
STAGES = ("rx", "parse", "hash", "find", "conn", "rewrite", "neighbour", "tx", "tick")


def short(count: int) -> str:
    for unit, size in (("M", 1_000_000), ("k", 1000)):
        if count >= size and not count % size:
            return f"{count // size}{unit}"
    return str(count)


def table(head: list[str], rows: list[list[Any]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return lines + ["| " + " | ".join("" if cell is None else str(cell) for cell in row) + " |" for row in rows] + [""]


def reached(row: Row) -> str:
    """Which mark the figure reaches."""

    def at_least(mark: float) -> bool:
        return bool(row[row["key"]] >= mark if row["more"] else row[row["key"]] <= mark)

    if row["must"] is None:
        return ""
    return (
        "aim" if row["aim"] is not None and at_least(row["aim"]) else "must" if at_least(row["must"]) else "**missed**"
    )


# ---- packets through forwarders ----


def forwarded(run: Row) -> int:
    """Packets that the forwarder has sent: there and back."""
    return 2 * int(run["returned"])


def rate(run: Row) -> float:
    """Packets a second, of those that were back in time."""
    return float(2e9 * run["in_time"] / run["ns"])


def own_rate(run: Row) -> float:
    """Packets a second of the forwarder's own CPU time; for one that saturates its CPU the same as `rate` on a machine
    that nobody else uses."""
    return forwarded(run) / float(run["forwarder_s"])


def spent(run: Row) -> float:
    """Nanoseconds of CPU for each packet: of the load, the forwarder and the kernel's softirq threads."""
    return float((run["generator_s"] + run["forwarder_s"] + run["softirq_s"]) * 1e9 / forwarded(run))


def cost(part: Row, name: str) -> list[float]:
    """Nanoseconds of CPU for each packet, less what the same load costs in the same round without a forwarder."""
    runs, wire = part["targets"][name]["runs"], part["targets"]["wire"]["runs"]
    return [spent(run) - spent(base) for run, base in zip(runs, wire, strict=True)]


def paired(above: list[float], below: list[float]) -> float:
    return median(a / b for a, b in zip(above, below, strict=True))


def own_ratio(part: Row, name: str, other: str) -> float:
    rates = [[own_rate(run) for run in part["targets"][n]["runs"]] for n in (name, other)]
    return paired(*rates)


def rate_ratio(part: Row, name: str, other: str) -> float:
    rates = [[rate(run) for run in part["targets"][n]["runs"]] for n in (name, other)]
    return paired(*rates)


def cost_ratio(part: Row, name: str, other: str) -> float:
    """Packets per CPU-second of `name` by those of `other`."""
    return paired(cost(part, other), cost(part, name))


def present(part: Row) -> list[str]:
    return [name for name in ORDER if name in part["targets"]]


def shape(part: Row) -> str:
    conns, services = part["conns"], part["services"]
    return f"{short(conns)} conn{'s' * (conns > 1)}, {services} service{'s' * (services > 1)}"


def packet_lines(part: Row) -> list[str]:
    """One line for each forwarder, for a terminal."""
    lines = [f"{shape(part)}, UDP through veth"]
    for name in present(part):
        runs = part["targets"][name]["runs"]
        text = f"  {name:<10}{median(map(rate, runs)) / 1e6:>8.3f} Mpps"
        if name not in ("wire", "nft-rps"):
            text += f"{median(cost(part, name)):>8.0f} ns of CPU a packet"
        lines.append(text)
    return lines


def packet_section(part: Row) -> list[str]:
    rows = []
    for name in present(part):
        runs = part["targets"][name]["runs"]
        counts = [sum(run[key] for run in runs) for key in ("returned", "lost", "duplicates", "wrong")]
        row: list[Any] = [NAMES[name], f"{median(map(rate, runs)) / 1e6:.3f}", f"{max(map(rate, runs)) / 1e6:.3f}"]
        row += [f"{median(map(own_rate, runs)) / 1e6:.3f}" if name in ("bare", "fnat") else None]
        if name == "wire" or name == "nft-rps":  # softirqs of an idle CPU are nobody's time
            row += [None, None, None, None]
        else:
            costs = cost(part, name)
            row += [f"{median(costs):.0f}", f"{min(costs):.0f}", f"{1e3 / median(costs):.2f}"]
            row += [f"{cost_ratio(part, 'fnat', name):.2f}" if name != "fnat" else "1"]
        rows.append([*row, *counts])
    head = [
        "forwarder",
        "Mpps",
        "best",
        "M packets/s of its own CPU",
        "ns of CPU a packet",
        "least",
        "M packets per CPU-second",
        "fnat / it",
    ]
    return [f"### {shape(part)}", "", *table([*head, "round trips", "lost", "twice", "wrong"], rows)]


def inside(part: Row, memory: list[Row]) -> str:
    """How much of fnat's time is forwarding."""
    runs = part["targets"]["fnat"]["runs"]
    total = median(1e9 / own_rate(run) for run in runs)
    name = "nat-udp-1M-1" if part["conns"] >= 1_000_000 else "nat-udp-1k-1"
    found = [row["ns_per_packet"] for row in memory if row["name"] == name]
    core = (
        f"{found[0]:.0f} ns of it is what forwarding takes in memory"
        if found
        else "forwarding in memory was not measured"
    )
    return f"- {shape(part)}: fnat's process takes {total:.0f} ns of CPU a packet; {core}."


# ---- requests ----


def request_lines(part: Row) -> list[str]:
    lines = ["HTTP through veth"]
    for name in present(part):
        row = part["targets"][name]
        short_, kept = (median(run["per_s"] for run in row[kind]) for kind in ("short", "kept"))
        p50 = median(run["latency_us"]["p50"] for run in row["paced"])
        lines.append(f"  {name:<10}{short_:>10.0f} connections/s{kept:>10.0f} requests/s{p50:>8.0f} us p50")
    return lines


def per_second(part: Row, name: str, kind: str) -> list[float]:
    return [run["per_s"] for run in part["targets"][name][kind]]


def added(part: Row, name: str, mark: str) -> float:
    """Microseconds that the forwarder adds, round by round."""
    rows = [[run["latency_us"][mark] for run in part["targets"][n]["paced"]] for n in (name, "wire")]
    return median(a - b for a, b in zip(*rows, strict=True))


def request_section(part: Row) -> list[str]:
    rows = []
    for name in present(part):
        row: list[Any] = [NAMES[name]]
        for kind in ("short", "kept"):
            values = per_second(part, name, kind)
            row += [f"{median(values):.0f}", f"{max(values):.0f}"]
            row += [f"{paired(per_second(part, 'fnat', kind), values):.2f}" if name != "fnat" else "1"]
        paced = part["targets"][name]["paced"]
        if name == "wire":
            row += [
                "/".join(f"{median(run['latency_us'][m] for run in paced):.0f}" for m in ("p50", "p99", "p99.9")),
                None,
            ]
        else:
            row += [None, "/".join(f"{added(part, name, mark):.0f}" for mark in ("p50", "p99", "p99.9"))]
        row += [sum(run["errors"] for kind in ("short", "kept") for run in part["targets"][name][kind])]
        rows.append(row)
    head = ["forwarder", "short connections/s", "best", "fnat / it", "kept: requests/s", "best", "fnat / it"]
    return table([*head, "p50/p99/p99.9 µs", "added µs", "errors"], rows)


# ---- in memory ----


def memory_section(rows: list[Row]) -> list[str]:
    cells = []
    for row in rows:
        if row["dpvs"]:
            continue
        scale, digits = (1e6, 2) if row["more"] else (1, 1)
        best = max(row["values"]) if row["more"] else min(row["values"])
        unit = f"M {row['unit']}" if row["more"] else row["unit"]
        floor = row.get("floor_ns")
        cells.append(
            [
                row["title"],
                f"{row[row['key']] / scale:.{digits}f} {unit}",
                f"{best / scale:.{digits}f}",
                len(row["values"]),
                floor,
                f"{row['ns_per_packet'] / floor:.1f}" if floor else None,
                row.get("bytes_per_conn"),
                {True: "yes", False: "no", None: ""}[row.get("huge_pages")],
                f"{row['must'] / scale:g}" if row["must"] else None,
                f"{row['aim'] / scale:g}" if row["aim"] else None,
                reached(row),
            ]
        )
    head = [
        "figure",
        "median",
        "best",
        "runs",
        "floor",
        "times the floor",
        "bytes/conn",
        "huge pages",
        "must",
        "aim",
        "reached",
    ]
    return table(head, cells)


def stage_section(rows: list[Row]) -> list[str]:
    found = [row for row in rows if row.get("stages") and not row["dpvs"]]
    if not found:
        return []
    cells = [[row["title"], *(f"{row['stages'].get(stage, 0):.1f}" for stage in STAGES)] for row in found]
    return ["### Stages, ns a packet", "", *table(["figure", *STAGES], cells)]


def sweep(rows: list[Row], stored: Row | None) -> list[Row]:
    """UDP with one worker by number of connections; `stored`: a run of 100 M that was kept."""
    found = [row for row in rows if row["name"].startswith("nat-udp-") and row["name"].endswith("-1")]
    known = {row["conns"] for row in found}
    if stored and stored["conns"] not in known:
        found.append(stored)
    return sorted(found, key=lambda row: int(row["conns"]))


def sweep_section(rows: list[Row]) -> list[str]:
    keys = ("ns_per_packet", "floor_ns", "ns_per_open", "ns_per_expire", "bytes_per_conn")
    cells = [[short(row["conns"]), *(row.get(key) for key in keys)] for row in rows]
    head = ["conns", "ns/packet", "floor", "ns/open", "ns/expire", "bytes/conn"]
    return ["### By number of connections, UDP, one worker", "", *table(head, cells)]


def dpvs_value(row: Row) -> float:
    """In the unit that DPVS published; bulk: Gbit/s each way, Ethernet frames."""
    if row["dpvs"] == "bulk":
        return float(row["mpps"]) / 2 * (14 + 20 + 20 + 800) * 8 / 1000
    return float(row[row["key"]]) * (1e6 if row["dpvs"] == "udp" else 1)


def dpvs_section(rows: list[Row]) -> list[str]:
    cells = []
    for row in rows:
        if not row["dpvs"]:
            continue
        value, workers = dpvs_value(row), int(row["workers"])
        published, unit = PUBLISHED[row["dpvs"]]
        own = MEASURED.get(row["dpvs"], {}).get(workers)
        bulk = row["dpvs"] == "bulk"

        def told(v: float | None, bulk: bool = bulk) -> str | None:
            return None if v is None else f"{v:.1f}" if bulk else f"{v / 1e6:.2f} M"

        cells.append(
            [
                row["title"],
                told(value),
                told(published[workers]),
                f"{value / published[workers]:.1f}",
                told(own),
                f"{value / own:.1f}" if own else None,
                unit,
                len(row["values"]),
                row.get("verified"),
                row.get("mismatched", 0) + row.get("dropped", 0),
            ]
        )
    if not cells:
        return []
    head = ["test", "fnat here, in memory", "DPVS published", "ratio", "DPVS in memory", "ratio", "unit", "runs"]
    return [
        "## DPVS's three published tests",
        "",
        DPVS,
        "",
        *table([*head, "outputs verified", "wrong or dropped"], cells),
    ]


# ---- the whole ----


def wrong(said: Row) -> bool:
    """A packet, anywhere, that came out otherwise than it should; losses are figures, not faults."""
    runs = [
        run for part in said.get("packets", []) for t in part["targets"].values() for run in [*t["runs"], t["opening"]]
    ]
    return any(run["wrong"] for run in runs) or any(row.get("mismatched") for row in said["memory"])


def targets(said: Row) -> list[str]:
    """What is aimed at, what came out."""
    rows: list[list[Any]] = []

    def mark(text: str, value: float, least: float) -> None:
        rows.append(
            [text, f"{value:.2f}", f"{'≥' if least < 1 else '>'} {least:g}", "yes" if value >= least else "**no**"]
        )

    for part in said.get("packets", []):
        mark(f"packets/s of fnat's CPU / the bare forwarder's, {shape(part)}", own_ratio(part, "fnat", "bare"), 0.9)
    for part in said.get("packets", []):
        if "nftables" in part["targets"]:
            text = f"packets per CPU-second, fnat / nftables, {shape(part)}"
            mark(text, cost_ratio(part, "fnat", "nftables"), 1)
    part = said.get("requests")
    if part and "haproxy" in part["targets"]:
        for kind, text in (("short", "short connections/s"), ("kept", "requests/s over kept connections")):
            mark(
                f"{text}, fnat / HAProxy", paired(per_second(part, "fnat", kind), per_second(part, "haproxy", kind)), 1
            )
        for m in ("p50", "p99", "p99.9"):
            rounds = [[run["latency_us"][m] for run in part["targets"][n]["paced"]] for n in ("haproxy", "fnat")]
            mark(f"time to an answer, {m}, HAProxy / fnat", paired(*rounds), 1)
    if "two_workers" in said:
        mark("two workers / two independent loops, in memory", said["two_workers"]["ratio"], 0.97)
    return ["## Against the targets", "", *table(["ratio", "median", "target", "reached"], rows)] if rows else []


PACKETS = """\
UDP of 60 bytes, both ways, through namespaces joined by veth with native XDP. The load sends from CPU 0 over
AF_XDP, at most 1 024 packets under way; real servers are an XDP program that swaps addresses and sends back,
one packet in 1 024 by way of a program that checks it. *Counted*: each packet has a sequence number; it
counts when it is back at the client, once. *Checked*: of all that come back addresses, ports and flow; of one
in 64 both checksums; of one in 1 024 all of it at the real server (LIP, real server, ports, checksums). Both
directions count, so a round trip is two packets.

*ns of CPU a packet*: CPU time of load, forwarder and softirq threads for each forwarded packet, less what the
same load costs in the same round over a cable without a forwarder: on veth the work for a packet is done by
whoever sends it, so no single process's time is the forwarder's. With RPS softirqs run on a CPU that nobody
is charged for; that row has only its rate. What bounds the rates: `bare` and `fnat` have CPU 1 for themselves
and saturate it (*of its own CPU*: for each second that their processes have run), `nftables` shares CPU 0
with the load unless RPS moves it. HAProxy cannot carry datagrams; it is in the next section.
"""

WHY = """\
Where nftables is ahead per CPU-second, this is why: over veth AF_XDP copies. For each packet that a forwarder
sends the kernel allocates a buffer, copies, runs the receiver's softirq for this one packet, and copies into
its frames; that is nine tenths of fnat's time and all of the bare forwarder's. nftables passes on the buffer
that it got, so with few connections, its tables in the cache, no AF_XDP forwarder here is as cheap, the bare
one included. With many it pays for its lookups. A NIC with zero-copy takes the copies away from fnat and
changes nothing for nftables.

Where fnat falls short of the bare forwarder, the difference is forwarding itself, mostly connection records
and buckets that are not in the cache: the kernel's copies between two batches leave less of it than the loop
in memory has.
"""

REQUESTS_WHY = """\
A forwarder in user space is woken for each packet that comes after a pause; nftables runs where the packet
is. That is its lead in the time to an answer. p99 and p99.9 also show every turn that another process of the
machine takes on CPU 1.
"""

DPVS = """\
8 VIPs, 8 real servers each, 50 LIPs; UDP with the smallest payload, TCP lives of six packets, TCP with 800
bytes of payload. *Published*: DPVS 1.9.2, 2 × Xeon E5-2650 v4 at 2.2 GHz, an X540 with 10 Gbit/s, another
machine as load: a NIC is in those figures and not in ours. *In memory*: DPVS 1.10.2 on DPDK 24.11 between
ports in memory, one worker, a Zen 4 server core at 2.6 GHz: 168 ns a packet at 1 000 connections, 0.29–0.35 M
handshakes/s (a life is more than a handshake). Neither ran on this processor.
"""

REQUESTS = """\
nginx answers three bytes; wrk with 64 connections, `short`: one request a connection, `kept`: connections
stay. Client and nginx run on CPU 0, the forwarder on CPU 1 (`nftables` on CPU 0 with them, unless RPS moves
it); without a forwarder the second CPU is idle. *Time to an answer*: {rate:g} requests/s at fixed times over
16 kept connections, counted from the time at which the request was due; *added*: more than without a
forwarder in the same round. Every request must be answered with 200.
"""


HEAD = """\
{processor}, {cpus} CPUs, Linux {kernel}; {peers}.

Others used {others_busy:.2f} CPUs when it began; it took {minutes} minutes. Written by `bench/run.py`; `../README.md`
says how each figure is taken. Each is the median of its runs, the best beside it; ratios are medians of ratios within
a round.
"""

MEMORY = """\
The worker as it runs in production, frames from memory. The floor is memory alone: the same lines of the same
records touched in the same order, in the same run. One output in a thousand is checked byte by byte, every packet
is accounted for.
"""

TWO = """\
UDP at 1 M connections: two workers of one process make {0:.1f} Mpps, two processes of one worker each, at the same
time, {1:.1f}: **{2:.3f}**, median of {3} pairs ({4:.3f} to {5:.3f}).
"""


def markdown(said: Row, stored: Row | None) -> str:
    memory = said["memory"]
    minutes, peers = said.get("took_s", 0) // 60, "; ".join(said["versions"].values())
    lines = ["# fnat beside its peers", "", HEAD.format(**said, minutes=minutes, peers=peers)]
    lines += [f"- left out: {line}" for line in said["skipped"]] + [""] * bool(said["skipped"])
    lines += ["![the figures](report.png)", "", *targets(said)]
    if said.get("packets"):
        lines += ["## Packets through veth", "", PACKETS]
        for part in said["packets"]:
            lines += packet_section(part)
        lines += ["### Time inside forwarding", "", *(inside(part, memory) for part in said["packets"]), "", WHY]
    if "requests" in said:
        lines += ["## Connections and requests through veth", "", REQUESTS.format(rate=said["requests"]["rate"])]
        lines += [*request_section(said["requests"]), REQUESTS_WHY]
    lines += ["## In memory", "", MEMORY, *memory_section(memory), *stage_section(memory)]
    lines += [*sweep_section(sweep(memory, stored)), *dpvs_section(memory)]
    if "two_workers" in said:
        two = said["two_workers"]
        ratios, rates = two["ratios"], [median(two[key]) for key in ("together_mpps", "apart_mpps")]
        told = TWO.format(*rates, two["ratio"], len(ratios), min(ratios), max(ratios))
        lines += ["## Two workers, two loops", "", told]
    return "\n".join(lines).rstrip("\n") + "\n"


def plot(said: Row, stored: Row | None, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(12, 8))
    plot_sweep(axes[0][0], sweep(said["memory"], stored))
    plot_packets(axes[0][1], said.get("packets", []))
    plot_requests(axes[1][0], said.get("requests"))
    plot_dpvs(axes[1][1], [row for row in said["memory"] if row["dpvs"]])
    figure.suptitle(f"fnat, {said['processor']}, Linux {said['kernel']}", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def plot_sweep(axis: Any, rows: list[Row]) -> None:
    series = (
        ("ns_per_packet", "a packet"),
        ("ns_per_open", "an opening"),
        ("ns_per_expire", "an expiry"),
        ("floor_ns", "memory floor"),
    )
    for key, text in series:
        points = [(row["conns"], row[key]) for row in rows if row.get(key) is not None]
        if points:
            axis.plot(*zip(*points, strict=True), "--" if key == "floor_ns" else "-", marker="o", label=text)
    axis.set(xscale="log", yscale="log", xlabel="connections", ylabel="ns", title="In memory, one worker, UDP")
    if rows:
        axis.legend()
    axis.grid(alpha=0.3)


def bars(axis: Any, groups: list[str], series: list[tuple[str, list[float]]]) -> None:
    width = 0.8 / max(1, len(series))
    for i, (name, values) in enumerate(series):
        axis.bar([x + i * width for x in range(len(groups))], values, width, label=name)
    axis.set_xticks([x + 0.4 - width / 2 for x in range(len(groups))], groups, fontsize=8)
    if series:
        axis.legend(fontsize=8)
    axis.grid(axis="y", alpha=0.3)


def plain(name: str) -> str:
    return NAMES[name].strip("*")


def plot_packets(axis: Any, parts: list[Row]) -> None:
    names = [name for name in ("bare", "fnat", "nftables") if parts and all(name in part["targets"] for part in parts)]
    values = [(plain(name), [1e3 / median(cost(part, name)) for part in parts]) for name in names]
    bars(axis, [shape(part).replace(", ", "\n") for part in parts], values)
    axis.set(title="Over veth: packets per CPU-second", ylabel="M")


def plot_requests(axis: Any, part: Row | None) -> None:
    names = [name for name in ORDER if part and name in part["targets"] and name != "wire"]
    values = [(plain(n), [median(per_second(part or {}, n, kind)) / 1e3 for kind in ("short", "kept")]) for n in names]
    bars(axis, ["short connections", "requests, kept connections"], values)
    axis.set(title="Over veth: through the forwarder to nginx", ylabel="thousand a second")


def plot_dpvs(axis: Any, rows: list[Row]) -> None:
    ratios = [dpvs_value(row) / PUBLISHED[row["dpvs"]][0][int(row["workers"])] for row in rows]
    axis.barh([row["title"] for row in rows][::-1], ratios[::-1])
    axis.axvline(1, color="black", linewidth=1)
    axis.set(title="In memory / DPVS's published figure (its own NIC and CPU)", xlabel="times")
    axis.grid(axis="x", alpha=0.3)


def write(results: Path) -> None:
    said = json.loads((results / "report.json").read_text())
    kept = results / "nat-udp-100M-1.json"
    stored = json.loads(kept.read_text()) if kept.exists() else None
    (results / "report.md").write_text(markdown(said, stored))
    plot(said, stored, results / "report.png")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("results"))
