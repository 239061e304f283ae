"""`fnat bench`: replay of captures, steady-state forwarding, connection lives. Each builds planes of its own in
anonymous memory and touches no running fnat.

Rules: figures are printed as JSON (`--json FILE|-`) or as a short table; a bad input is one line and exit 1, a packet
that did not come out as it should is exit 1 too.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import IO, TYPE_CHECKING, Any

import click

from fnat import replay as bench_replay
from fnat.captures import CaptureError
from fnat.conversations import AS_CAPTURED, Families, Progress

if TYPE_CHECKING:
    from fnat._core import BenchResult, Plane, PlaneInfo, Worker

SERVICES, SERVERS, LIPS = 64, 8, 8  # servers of a service, LIPs that all of them share
FRAMES = 8192
TIME_WAIT = 1  # seconds
LIVES_CONNS = 4 << 20  # room for all that are open or in TIME_WAIT
BYTES_PER_CONN = 183  # the plane's share and the generator's
PLANE_BYTES = 128 << 20
PORTS = (
    ("wan", "02:fa:00:00:00:01", "02:fb:00:00:00:01"),
    ("lan", "02:fa:00:00:00:02", "02:fb:00:00:00:02"),
)
GATEWAYS = {4: ("10.255.255.254", "172.31.255.254"), 6: ("fe80::1", "fe80::1")}
VIPS = {4: "198.18.0.{}", 6: "2001:db8::{:x}"}
SERVER_NETS = {
    4: ("172.16.0.0/12", "172.30.0.{}", "172.16.{}.{}"),
    6: ("fd00::/16", "fd00::30:{:x}", "fd00::{:x}:{:x}"),
}
FAMILIES = {"4": (4, 4), "6": (6, 6), "44": (4, 4), "66": (6, 6), "64": (6, 4), "46": (4, 6)}

REPLAYED_AS = {"auto": AS_CAPTURED, **{f: Families(int(f[0]), int(f[1])) for f in ("44", "66", "64", "46")}}

json_option = click.option(
    "--json", "json_to", metavar="FILE|-", help="Write the figures as JSON to FILE, or to standard output."
)
seconds_option = click.option(
    "--seconds",
    type=click.FloatRange(min=0.05, max=3600.0),
    default=2.0,
    show_default=True,
    help="How long to measure.",
)
workers_option = click.option(
    "--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Workers, each on a thread of its own."
)


@dataclass(frozen=True)
class Shape:
    """What the flows of a bench go over."""

    services: int
    servers: int  # of each service
    lips: int
    families: tuple[int, int] = (4, 4)  # of the clients and VIPs, of the RSs and LIPs


def shape_options(command: Callable[..., None]) -> Callable[..., None]:
    """--services, --servers, --lips."""
    rows = (
        ("--lips", LIPS, "LIPs, shared by all services."),
        ("--servers", SERVERS, "Real servers of each service."),
        ("--services", SERVICES, "Services of the protocol."),
    )
    for name, default, text in rows:
        option = click.option(name, type=click.IntRange(1, 250), default=default, show_default=True, help=text)
        command = option(command)
    return command


class BenchError(click.ClickException):
    """One line on standard error, exit 1."""

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"fnat: {self.message}", err=True)


@click.group()
def bench() -> None:
    """Measure the core: captures, steady state, connection lives."""


def _core() -> ModuleType:
    try:
        from fnat import _core
    except ImportError as error:
        raise BenchError(f"the C core cannot be loaded ({error}); build it with `pip install .`") from error
    return _core


@contextlib.contextmanager
def _one_line(what: str) -> Iterator[None]:
    """Turn what the operating system or the core refuses into one line."""
    try:
        yield
    except CaptureError as error:
        raise BenchError(str(error)) from error
    except MemoryError as error:
        raise BenchError(f"{what}: not enough memory; ask for fewer connections or workers") from error
    except OSError as error:
        fix = (
            "ask for fewer connections or workers" if error.errno in (12, 28) else "check the path and its permissions"
        )
        raise BenchError(f"{what}: {error.strerror or error}; {fix}") from error


def _told(figures: dict[str, Any], json_to: str | None, table: Callable[[], str]) -> None:
    if json_to is None:
        click.echo(table())
    elif json_to == "-":
        click.echo(json.dumps(figures, indent=2))
    else:
        with _one_line(json_to):
            Path(json_to).write_text(json.dumps(figures, indent=2) + "\n")


# ---- replay ----


@bench.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@workers_option
@click.option(
    "--seconds",
    type=click.FloatRange(min=0.0, max=3600.0),
    default=1.0,
    show_default=True,
    help="How long to loop each file for the speed; 0: not at all.",
)
@click.option(
    "--verify", is_flag=True, help="Compare every packet that leaves with the one that entered, byte by byte."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="OUT.pcap",
    help="Write all that the core sent to a pcap file.",
)
@click.option(
    "--families",
    type=click.Choice(["auto", "44", "66", "64", "46"]),
    default="auto",
    show_default=True,
    help="IP family of clients and services, then that of real servers; auto: as captured.",
)
@json_option
def replay(
    files: tuple[Path, ...],
    workers: int,
    seconds: float,
    verify: bool,
    out: Path | None,
    families: str,
    json_to: str | None,
) -> None:
    """Play captures (pcap, pcapng, gzip) through the core.

    Every server of a capture becomes a service on its own address; real servers and local addresses are made up. Every
    packet ends in exactly one of forwarded, passed, dropped{reason}, skipped{cause}; packets = forwarded + passed + all
    dropped + all skipped.

    JSON keys: packets flows forwarded passed dropped skipped verified mismatched workers seconds mpps ns_per_packet;
    `dropped` and `skipped` are objects of reason and count; `verified` are the forwarded packets that were compared;
    ns_per_packet is CPU time of a worker, mpps that of all workers together on cores of their own.

    Beside them: `ordinary` (TCP or UDP of a conversation, which a router would carry, in fragments or not) and
    `ordinary_forwarded`; `outside`, the others by cause, whatever became of them (not_ip, icmp, protocol, malformed,
    multicast, link_local, no_host, no_port, ttl, tcp_flags, udp_no_checksum, no_first_fragment, fragment_overlap, and
    causes of skipped); `prepared`, what the bench mended in captured packets (padded: the snapped end of the payload;
    header_checksum, length: left to hardware; split, fragmented: cut into packets as hardware or the sender's stack
    would have; translated: to the other family); `made`, packets of
    handshakes added where the capture begins inside a connection; `looped`, packets of the speed loop, and
    `generator_ns`, what copying one into a frame costs, not in ns_per_packet; `files`, the same for each file.

    Causes of skipped: answered and absorbed (the core itself was addressed: ping, ARP), link_type, truncated, oversize,
    no_first_fragment (its datagram's ports are not in the capture), unopened (the conversation's first packet was not
    forwarded), icmp_error (about a conversation: the core translates it, nobody compares it here), too_many_services.
    """
    core = _core()
    total, rows = bench_replay.Report(), []
    speeds: list[bench_replay.Speed] = []
    with contextlib.ExitStack() as stack:
        writer = None
        if out:
            with _one_line(str(out)):
                writer = bench_replay.Out(stack.enter_context(out.open("wb")))
        advance = stack.enter_context(_progress(files))
        for path in files:
            with _one_line(str(path)):
                report, layout = bench_replay.replay(
                    core, path, verify=verify, out=writer, progress=advance(path), families=REPLAYED_AS[families]
                )
                if report.note:
                    click.echo(f"fnat: {path}: {report.note}", err=True)
                speed = bench_replay.speed(core, path, layout, workers, seconds) if seconds else None
            total.add(report)
            speeds += [speed] if speed and speed.packets else []
            rows.append({"file": str(path), **_figures(report), **_speed([speed] if speed else [], workers)})
    for fault in total.faults:
        click.echo(f"fnat: {fault}", err=True)
    figures = {**_figures(total), **_speed(speeds, workers), "files": rows}
    _told(figures, json_to, lambda: _replay_table(total, figures))
    if total.mismatched or not total.balanced():
        raise SystemExit(1)


def _figures(r: bench_replay.Report) -> dict[str, Any]:
    names = (
        "packets",
        "flows",
        "forwarded",
        "passed",
        "dropped",
        "skipped",
        "verified",
        "mismatched",
        "ordinary",
        "ordinary_forwarded",
        "outside",
        "prepared",
        "made",
    )
    values = {name: getattr(r, name) for name in names}
    return {k: dict(sorted(v.items())) if isinstance(v, dict) else v for k, v in values.items()}


def _speed(speeds: list[bench_replay.Speed], workers: int) -> dict[str, Any]:
    """Mean over files, each as long as the other."""
    packets, seconds = sum(s.packets for s in speeds), sum(s.seconds for s in speeds)
    net = sum(s.ns_per_packet * s.packets for s in speeds) / packets if packets else 0.0
    generator = sum(s.generator_ns * s.packets for s in speeds) / packets if packets else 0.0
    return {
        "workers": workers,
        "seconds": round(seconds, 3),
        "mpps": round(workers * 1e3 / net, 3) if net else 0.0,
        "ns_per_packet": round(net, 2),
        "generator_ns": round(generator, 2),
        "looped": packets,
    }


def _replay_table(r: bench_replay.Report, figures: dict[str, Any]) -> str:
    rows = [("packets", r.packets), ("flows", r.flows), ("forwarded", r.forwarded), ("passed", r.passed)]
    rows += [(f"dropped {k}", v) for k, v in sorted(r.dropped.items())]
    rows += [(f"skipped {k}", v) for k, v in sorted(r.skipped.items())]
    rows += [("verified", r.verified), ("mismatched", r.mismatched)]
    lines = [f"{name:<28}{value:>12}" for name, value in rows]
    lines += _replay_files(figures["files"])
    if figures["ns_per_packet"]:
        speed = f"({figures['workers']} worker(s), {figures['mpps']} Mpps)"
        lines.append(f"{'ns per packet':<28}{figures['ns_per_packet']:>12}   {speed}")
    return "\n".join(lines)


def _replay_files(files: list[dict[str, Any]]) -> list[str]:
    """A line for each file: what of its ordinary packets was forwarded, and why the others are not ordinary."""
    lines = ["", f"{'file':<44}{'packets':>9}{'ordinary':>10}{'forwarded':>11}   others"]
    for f in files:
        share = f"{100 * f['ordinary_forwarded'] / f['ordinary']:.1f} %" if f["ordinary"] else "-"
        others = " ".join(f"{cause} {n}" for cause, n in f["outside"].items())
        lines.append(f"{Path(f['file']).name:<44}{f['packets']:>9}{f['ordinary']:>10}{share:>11}   {others}".rstrip())
    return [*lines, ""]


@contextlib.contextmanager
def _progress(files: tuple[Path, ...]) -> Iterator[Callable[[Path], Progress]]:
    """A bar on a terminal, nothing elsewhere. Each file is read twice."""
    if not sys.stderr.isatty():
        yield lambda _: lambda _: None
        return
    from rich import progress
    from rich.console import Console

    with progress.Progress(console=Console(stderr=True), transient=True) as bar:

        def one(path: Path) -> Progress:
            size = path.stat().st_size if path.is_file() else 0
            task = bar.add_task(path.name, total=2 * size)
            state = {"at": 0, "base": 0}

            def advance(at: int) -> None:
                if at < state["at"]:
                    state["base"] = size
                state["at"] = at
                bar.update(task, completed=state["base"] + at)

            return advance

        yield one


# ---- steady state and lives ----


STAGES = ("rx", "parse", "hash", "find", "conn", "rewrite", "neighbour", "tx", "tick")  # of struct fnat_bench_result


def _plane(core: ModuleType, conns: int, workers: int, shape: Shape) -> Plane:
    """Services of the shape for TCP and for UDP, two arms, everything resolved; conns of each worker."""
    states = {"TIME_WAIT": TIME_WAIT}  # so that connections expire while others open, within seconds of measuring
    plane: Plane = core.Plane.create(
        None,
        workers=workers,
        conns=conns,
        services=2 * shape.services + 8,
        members=2 * (shape.services + 1) * shape.servers + 8,
        endpoints=shape.services * shape.servers * shape.lips,
        neighbours=64,
        frames=FRAMES,
        snapshot_mib=16,
    )
    plane.put_settings(states, False)
    clients, servers = shape.families
    for port, (name, mac, gateway_mac) in enumerate(PORTS):
        plane.put_port(port, name, mac, 1500, up=True)
        plane.neigh_set(port, GATEWAYS[shape.families[port]][port], gateway_mac, static=True)
    net, lip, server = SERVER_NETS[servers]
    default = "0.0.0.0/0" if clients == 4 else "::/0"
    plane.put_routes(
        [
            (default, GATEWAYS[clients][0], "", 0, 0, 0, "unicast"),
            (net, GATEWAYS[servers][1], "", 1, 0, 0, "unicast"),
        ]
    )
    lips = [(1 + i, lip.format(1 + i), "lip", 1) for i in range(shape.lips)]
    vips = [VIPS[clients].format(1 + i) for i in range(shape.services)]
    plane.put_addresses(lips + [(1 + shape.lips + i, vip, "vip", 0) for i, vip in enumerate(vips)])
    for proto in (6, 17):
        for i in range(shape.services):
            service = 1 + i + shape.services * (proto == 17)
            members = [(service * shape.servers + s, server.format(i, 1 + s), 8080, 1) for s in range(shape.servers)]
            plane.put_service(
                service, vips[i], 80, proto, scheduler="rr", members=members, lips=[row[0] for row in lips]
            )
    plane.publish()
    return plane


def _room(need: int) -> None:
    """Refuse what the machine cannot hold, before the kernel kills somebody for it."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    free = {words[0]: int(words[1]) for words in lines}
    huge = free.get("HugePages_Free:", 0) * free.get("Hugepagesize:", 0)
    room = (free.get("MemAvailable:", 0) + huge) << 10
    if need > room:
        gib = 1 << 30
        text = f"about {need / gib:.1f} GiB are needed and {room / gib:.1f} are free"
        raise BenchError(f"{text}; ask for fewer connections or workers")


@dataclass(frozen=True)
class Measured:
    """Results of all workers, summed where that makes sense."""

    results: list[BenchResult]
    info: PlaneInfo
    dropped: int  # packets with a drop reason, from the plane's counters

    def total(self, key: str) -> int:
        return sum(result[key] for result in self.results)  # type: ignore[literal-required]

    def sound(self) -> None:
        """Refuse figures of packets that came out wrong or not at all, or of things that stayed taken."""
        if self.total("mismatched") or self.dropped or not self.total("packets"):
            raise BenchError(f"{self.total('mismatched')} packets came out wrong, {self.dropped} were dropped")
        if self.total("left"):
            raise BenchError(f"{self.total('left')} things were still taken when every connection had ended")


def _measured(
    core: ModuleType, workers: int, conns: int, shape: Shape, run: Callable[[Worker], BenchResult]
) -> Measured:
    """run(worker) on all workers of one plane at the same time."""
    _room(workers * conns * BYTES_PER_CONN + PLANE_BYTES)
    plane = _plane(core, conns, workers, shape)
    try:
        cpus = sorted(os.sched_getaffinity(0))

        def measure(index: int) -> BenchResult:
            os.sched_setaffinity(0, {cpus[index % len(cpus)]})  # of this thread
            return run(core.Worker(plane, index))

        with ThreadPoolExecutor(workers) as pool:
            results = list(pool.map(measure, range(workers)))
        counters = plane.counters()
        dropped = sum(counters[name] for name, kind, _ in core.COUNTERS if kind == "drop")
        return Measured(results, plane.info(), dropped)
    finally:
        plane.close()


@bench.command()
@click.option(
    "--conns", type=click.IntRange(64, 200_000_000), default=1000, show_default=True, help="Connections of each worker."
)
@click.option("--proto", type=click.Choice(["udp", "tcp"]), default="udp", show_default=True)
@click.option(
    "--family",
    type=click.Choice(list(FAMILIES)),
    default="4",
    show_default=True,
    help="Of both sides, or the clients' and then the real servers': 64 is IPv6 clients, IPv4 servers.",
)
@click.option(
    "--payload",
    type=click.IntRange(4, 1440),
    default=4,
    show_default=True,
    help="Bytes behind the TCP or UDP header.",
)
@click.option("--stages", is_flag=True, help="Measure every stage of a packet's way, in a run of its own.")
@shape_options
@seconds_option
@workers_option
@json_option
def nat(
    conns: int,
    proto: str,
    family: str,
    payload: int,
    stages: bool,
    seconds: float,
    workers: int,
    json_to: str | None,
    **shape: int,
) -> None:
    """The life of a table: all connections opened, each hit once both ways in random order, then random packets both
    ways for --seconds (the figures), at last all expired.

    JSON keys: mpps ns_per_packet conns bytes_per_conn huge_pages workers verified; beside them floor_ns (touching one
    bucket line and both lines of a connection in the same order, same run), generator_ns (writing and reading the
    frames, not in ns_per_packet), ns_per_open (first packets), ns_per_expire, stages (with --stages), mismatched,
    dropped, proto, family, payload, seconds. Times are CPU time of a worker.
    """
    core = _core()
    with _one_line(f"{workers} worker(s) with {conns} connections each"):
        number = 6 if proto == "tcp" else 17
        measured = _measured(
            core,
            workers,
            conns,
            Shape(shape["services"], shape["servers"], shape["lips"], FAMILIES[family]),
            lambda w: w.bench_nat(number, conns, seconds, payload=payload, stages=stages),
        )
    info, packets = measured.info, max(measured.total("packets"), 1)
    net = (measured.total("ns") - measured.total("generator_ns")) / packets
    all_conns = conns * workers
    figures: dict[str, Any] = {
        "mpps": round(workers * 1e3 / net, 3) if net > 0 else 0.0,
        "ns_per_packet": round(net, 2),
        "conns": min(result["opened"] for result in measured.results),
        "bytes_per_conn": round(info["conn_bytes"] / info["conns"], 1),
        "huge_pages": info["huge_page_size"] > 0,
        "workers": workers,
        "verified": measured.total("verified"),
        "mismatched": measured.total("mismatched"),
        "dropped": measured.dropped,
        "floor_ns": round(measured.total("floor_ns") / packets, 2),
        "generator_ns": round(measured.total("generator_ns") / packets, 2),
        "ns_per_open": round(measured.total("open_ns") / all_conns, 1),
        "ns_per_expire": round(measured.total("expire_ns") / all_conns, 1),
        "proto": proto,
        "family": int(family),
        "payload": payload,
        "seconds": seconds,
    }
    if stages:
        by_stage = zip(*(result["stage_ps"] for result in measured.results), strict=True)
        figures["stages"] = {
            name: round(sum(ps) / workers / 1000, 2) for name, ps in zip(STAGES, by_stage, strict=True)
        }
    _told(figures, json_to, lambda: "\n".join(_rows(figures)))
    measured.sound()


def _rows(figures: dict[str, Any]) -> Iterator[str]:
    for key, value in figures.items():
        if isinstance(value, dict):
            yield from _rows({f"{key} {name}": number for name, number in value.items()})
        else:
            yield f"{key:<18}{value!s:>12}"


@bench.command()
@click.option(
    "--seconds", type=click.FloatRange(min=0.05, max=3600.0), default=4.0, show_default=True, help="How long."
)
@shape_options
@workers_option
@json_option
def cps(seconds: float, workers: int, json_to: str | None, **shape: int) -> None:
    """Whole TCP lives: SYN, SYN-ACK, ACK, data, FIN both ways; 6 packets in, 6 out.

    TIME_WAIT lasts one second here. The second half of the time is measured: with 2 seconds and more, as many
    connections expire in it as open.

    JSON keys: cps ns_per_conn packets_per_conn workers; beside them generator_ns (of a life, not in ns_per_conn),
    opened, closed, mismatched, dropped, seconds. Times are CPU time of a worker.
    """
    core = _core()
    with _one_line(f"{workers} worker(s)"):
        measured = _measured(
            core,
            workers,
            LIVES_CONNS,
            Shape(shape["services"], shape["servers"], shape["lips"]),
            lambda w: w.bench_cps(seconds),
        )
    lives = max(measured.total("opened"), 1)
    net = (measured.total("ns") - measured.total("generator_ns")) / lives
    figures = {
        "cps": round(workers * 1e9 / net) if net > 0 else 0,
        "ns_per_conn": round(net, 1),
        "packets_per_conn": 6,
        "workers": workers,
        "generator_ns": round(measured.total("generator_ns") / lives, 1),
        "opened": measured.total("opened"),
        "closed": measured.total("conns"),
        "verified": measured.total("verified"),
        "mismatched": measured.total("mismatched"),
        "dropped": measured.dropped,
        "seconds": seconds,
    }
    _told(figures, json_to, lambda: "\n".join(_rows(figures)))
    measured.sound()
