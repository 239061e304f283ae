"""Tables of the `show` commands: rich on a terminal, plain aligned text otherwise. Each takes rows of the API."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fnat.addresses import NAMES, endpoint, family, split
from fnat.cli import say
from fnat.grammar import Row, server_text, service_text, steering_modes


@dataclass(frozen=True)
class Table:
    """Columns and rows; a column whose title begins with ">" is aligned to the right. A row may be marked as bad."""

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    bad: frozenset[int] = frozenset()


def show(table: Table) -> None:
    if sys.stdout.isatty():
        _show_rich(table)
    else:
        say(plain(table))


def plain(table: Table) -> str:
    """Titles in capitals, columns two blanks apart."""
    titles = [title.lstrip(">").upper() for title in table.columns]
    cells = [[_cell(value) for value in row] for row in table.rows]
    widths = [max(map(len, column)) for column in zip(titles, *cells, strict=True)]
    text = ""
    for row in [titles, *cells]:
        aligned = (
            f"{cell:>{width}}" if title.startswith(">") else f"{cell:<{width}}"
            for title, cell, width in zip(table.columns, row, widths, strict=True)
        )
        text += "  ".join(aligned).rstrip() + "\n"
    return text


def _show_rich(table: Table) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    rich_table = RichTable(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for title in table.columns:
        rich_table.add_column(title.lstrip(">"), justify="right" if title.startswith(">") else "left", no_wrap=True)
    for number, row in enumerate(table.rows):
        rich_table.add_row(*(Text(_cell(value)) for value in row), style="red" if number in table.bad else None)
    Console().print(rich_table)


def _cell(value: object) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _name(row: Row) -> tuple[str, str]:
    return row["proto"], service_text(row)


def acl(general: Row, services: Iterable[Row]) -> Table:
    rows: list[list[object]] = []
    owners = [("general", "", general, general["hits"]), *((*_name(row), row, row["acl"]) for row in services)]
    for proto, name, owner, hits in owners:
        for which, refused in (("deny", "denied"), ("allow", "not_allowed")):
            if owner[which] or hits[refused]:
                rows.append([proto, name, which, ", ".join(owner[which]), hits[refused]])
    return Table(("proto", "service", "list", "entries", ">refused"), rows)


def sets(rows: Iterable[Row]) -> Table:
    return Table(
        ("name", "type", "range", ">entries", ">used by"),
        [[row["name"], row["type"], row["span"], row["entries"], row["used_by"]] for row in rows],
    )


def without_lip(row: Row) -> list[str]:
    """Families of a service's servers for which it has no local address, one line each."""
    there = {family(lip["addr"]) for lip in row["lips"]}
    hosts = [rs["rip"] for rs in row["servers"]]
    hosts += [split(row["no_rs"])[0]] if row.get("no_rs", "drop") not in ("drop", "reset") else []
    missing = sorted({family(host) for host in hosts} - there)
    return [
        f"{' '.join(_name(row))}: no {NAMES[f]} LIP, so its {NAMES[f]} servers get no connections; fnat lip add"
        for f in missing
    ]


def services(rows: Iterable[Row]) -> Table:
    """One line a service; bad: no server takes new connections, or for want of a local address."""
    columns = ("proto", "service", "scheduler", ">rs", ">rs in use", ">lips", ">active", ">inactive", ">conns/s",
               ">in pkt/s", ">out pkt/s", ">in B/s", ">out B/s", ">conns", "timeout", "no rs")  # fmt: skip
    rows = list(rows)
    lines: list[tuple[object, ...]] = []
    bad: set[int] = set()
    for row in rows:
        usable = sum(1 for server in row["servers"] if server["weight"] > 0)
        if not usable or not row["lips"] or without_lip(row):
            bad.add(len(lines))
        rate, stats = row["rate"], row["stats"]
        timeout = f"{row['conn_timeout']}s" if row["conn_timeout"] else None
        scheduler = row["scheduler"] + (" ops" if row.get("one_packet") else "") + (" quic" if row.get("quic") else "")
        lines.append((*_name(row), scheduler, len(row["servers"]), usable, len(row["lips"]), stats["active"],
                      stats["inactive"], rate["cps"], rate["in_pps"], rate["out_pps"], rate["in_bps"], rate["out_bps"],
                      stats["conns"], timeout, row["no_rs"]))  # fmt: skip
    if any(row.get("name") for row in rows):
        return Table(
            ("name", *columns), [(r.get("name"), *line) for r, line in zip(rows, lines, strict=True)], frozenset(bad)
        )
    return Table(columns, lines, frozenset(bad))


def servers(rows: Iterable[Row]) -> Table:
    """One line a server of a service; bad: weight 0, or overloaded."""
    columns = (
        "proto",
        "service",
        "server",
        ">weight",
        ">active",
        ">inactive",
        ">conns/s",
        ">in pkt/s",
        ">out pkt/s",
        ">conns",
        "state",
    )
    lines: list[tuple[object, ...]] = []
    bad: set[int] = set()
    for row in rows:
        for rs in row["servers"]:
            rate, stats = rs["rate"], rs["stats"]
            if not rs["weight"] or rs.get("overloaded") or rs.get("drain"):
                bad.add(len(lines))
            lines.append((*_name(row), server_text(rs), rs["weight"], stats["active"], stats["inactive"], rate["cps"],
                          rate["in_pps"], rate["out_pps"], stats["conns"], _state_of(rs)))  # fmt: skip
    return Table(columns, lines, frozenset(bad))


def _state_of(rs: Row) -> str:
    """Its role, its limits, and whether they keep connections away."""
    words = ["backup"] if rs.get("role") == "backup" else []
    if rs.get("upper"):
        words.append(f"{'overloaded ' if rs['overloaded'] else ''}upper {rs['upper']}")
    if rs.get("lower"):
        words.append(f"lower {rs['lower']}")
    if rs.get("max_new_per_s"):
        words.append(f"{rs['max_new_per_s']} new/s")
    if rs.get("persistent"):
        words.append(f"{rs['persistent']} persistent clients")
    if rs.get("shift"):
        words.append(f"shift {rs['shift']}")
    if drain := rs.get("drain"):
        if not drain["left"]:
            words.append("drained")
        else:
            oldest = duration(drain["oldest"])
            ends = f"ends in {duration(drain['ends_in'])}" if drain["ends_in"] is not None else "no end in sight"
            words.append(f"draining: {drain['left']} left, oldest {oldest}, {ends}")
    return ", ".join(words)


def lips(rows: Iterable[Row]) -> Table:
    """One line a local address of a service; bad: a connection found no free port."""
    columns = ("proto", "service", "lip", "port", ">conns", ">conflicts")
    lines = [
        (*_name(row), lip["addr"], lip["port"], lip["conns"], lip["conflicts"]) for row in rows for lip in row["lips"]
    ]
    return Table(columns, lines, frozenset(number for number, line in enumerate(lines) if line[5]))


def addresses(rows: Iterable[Row]) -> Table:
    columns = ("address", "port", "lip", ">ports used", ">ports free", ">misses")
    lines = []
    for row in rows:
        figures = (row["sa_used"], row["sa_free"], row["sa_miss"]) if row["sapool"] else (None, None, None)
        lines.append((f"{row['addr']}/{row['plen']}", row["port"], row["sapool"], *figures))
    return Table(columns, lines)


def routes(rows: Iterable[Row]) -> Table:
    columns = ("prefix", "gateway", "port", "source", ">mtu", ">metric", "scope", "from")
    keys = ("prefix", "gateway", "port", "src", "mtu", "metric", "scope", "proto")
    return Table(columns, [[row[key] or None if key == "mtu" else row[key] for key in keys] for row in rows])


def neighbours(rows: Iterable[Row]) -> Table:
    columns = ("address", "mac", "state", "port", "static")
    return Table(columns, [[row[key] for key in ("addr", "mac", "state", "port", "static")] for row in rows])


def ports(rows: Iterable[Row]) -> Table:
    """One line a port; bad: down."""
    columns = ("port", "device", "kind", "mode", "zero-copy", "exclusive", "up", ">mtu", ">queues", "steering", "mac",
               ">in pkts", ">out pkts", ">missed", ">frames free")  # fmt: skip
    keys = ("name", "device", "kind", "mode", "zero_copy", "exclusive", "up", "mtu", "queues")
    lines = []
    for row in rows:
        stats = row["stats"]
        figures = (stats["ipackets"], stats["opackets"], stats["imissed"], row["frames"]["avail"])
        lines.append((*(row[key] for key in keys), steering_modes(row["steering"]), row["mac"], *figures))
    return Table(columns, lines, frozenset(number for number, line in enumerate(lines) if not line[6]))


CONN_TITLES = (
    f"{'WORKER':<6}  {'PROTO':<5}  {'STATE':<10}  {'LEFT':>6}  {'AGE':>6}  {'CLIENT':<21}  {'SERVICE':<21}  "
    f"{'LIP':<21}  {'SERVER':<21}  {'IN PKTS':>10}  {'OUT PKTS':>10}\n"
)


def conn(row: Row) -> str:
    """One connection; the columns have fixed widths, because a million rows are not collected to measure them."""
    ends = "  ".join(endpoint(row[f"{who}ip"], row[f"{who}port"]).ljust(21) for who in ("c", "v", "l", "r"))
    return (
        f"{row['worker']:<6}  {row['proto']:<5}  {row['state']:<10}  {str(row['remaining']) + 's':>6}  "
        f"{str(row['age']) + 's':>6}  {ends}  {row['in_packets']:>10}  {row['out_packets']:>10}\n"
    )


def duration(seconds: float | None) -> str:
    """Two units at most: 3d 4h, 5m 10s; never."""
    if seconds is None:
        return "never"
    left = round(seconds)
    words: list[str] = []
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)):
        if left >= size or (unit == "s" and not words):
            words.append(f"{left // size}{unit}")
            left %= size
    return " ".join(words[:2])


def headroom(view: Row) -> None:
    """Ports per (service, LIP, RS), and the forecasts; bad: less than a tenth is free."""
    columns = ("proto", "service", "lip", "server", ">used", ">free", ">busiest worker", "full in")
    lines: list[tuple[object, ...]] = []
    bad: set[int] = set()
    for row in view["rows"]:
        if row["free"] * 9 < row["used"]:
            bad.add(len(lines))
        busiest = f"{row['busiest']} of {row['share']}"
        lines.append((*_name(row), row["lip"], server_text(row), row["used"], row["free"], busiest,
                      duration(row["full_in"])))  # fmt: skip
    show(Table(columns, lines, frozenset(bad)))
    say(f"ports run out in      {duration(view['ports_full_in'])}\n")
    say(f"connections run out in {duration(view['conns_full_in'])} ({view['conns']} of {view['capacity']})\n")


def capacity(row: Row) -> str:
    """`fnat capacity`: what is needed, and what runs out first."""

    def mib(size: int) -> str:
        return f"{size / 2**20:,.0f} MiB"

    memory = row["memory"]
    lines = [
        ("connections held", f"{row['held']:,}"),
        ("LIPs", f"{row['lips']}"),
        ("", row["formula"]),
        ("workers", f"{row['workers']} with {row['room']['conns']:,} connections each"),
        ("memory", f"{mib(memory['total'])}: plane {mib(memory['plane'])}, workers {mib(memory['workers'])}, "
                   f"frames {mib(memory['frames'])}"),
        ("huge pages", f"{row['huge_pages']} of 2 MiB (sysctl vm.nr_hugepages={row['huge_pages']})"),
    ]  # fmt: skip
    for name, limit in sorted(row["limits"].items(), key=lambda item: item[1]):
        first = " (the first limit)" if name == row["first_limit"] else ""
        lines.append(("limit", f"{name} at {limit:,} connections{first}"))
    return "".join(f"{name:<17} {text}\n" for name, text in lines)


def status(row: Row) -> str:
    """`fnat status`: a name and a value a line."""
    pids = ", ".join(f"{name} {pid or 'not running'}" for name, pid in row["pids"].items())
    huge = f"{row['huge_pages']} bytes" if row["huge_pages"] else "none"
    lines = {
        "version": row["version"],
        "up for": f"{round(row['uptime'])} s",
        "processes": pids,
        "workers": row["workers"],
        "connections": f"{row['conns']} of {row['capacity']}",
        "snapshot": row["snapshot"],
        "huge pages": huge,
        "longest turn": f"{row['longest_step_ns'][0] / 1e3:.0f} us, {row['longest_step_ns'][1] / 1e3:.0f} us preempted",
        "steering": ", ".join(f"{port} {steering_modes(notes)}" for port, notes in row["steering"].items()) or "-",
    }
    return "".join(f"{name:<12} {value}\n" for name, value in lines.items())
