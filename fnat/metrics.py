"""/metrics: every counter of counters.def, and per service, RS and LIP what the listings show, read when asked.

Names: fnat_<counter>_total{worker}, fnat_dropped_packets_total{worker,reason}, fnat_taken{worker,what},
fnat_service_*{service}, fnat_server_*{service,server}, fnat_lip_*{lip,port}. Counters here follow the listings: a
service whose counters were zeroed, and a new service of the same name, start from 0, which Prometheus takes as a reset.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from fnat import __version__
from fnat.addresses import endpoint
from fnat.engine import Engine
from fnat.model import ServiceView, StatsView

_STATS = (
    ("connections", "conns", "connections opened"),
    ("in_packets", "in_packets", "packets from clients"),
    ("out_packets", "out_packets", "packets from real servers"),
    ("in_bytes", "in_bytes", "bytes of IP packets from clients"),
    ("out_bytes", "out_bytes", "bytes of IP packets from real servers"),
)
_STEP_BUCKETS = range(8, 26)  # upper bounds from 512 ns to 67 ms


class EngineCollector(Collector):
    """All metrics of one engine. names: (name, kind, help) of the core's counters."""

    def __init__(self, engine: Engine, names: Sequence[tuple[str, str, str]]) -> None:
        self._engine = engine
        self._names = names

    def collect(self) -> Iterator[Metric]:
        info = GaugeMetricFamily("fnat_info", "version of fnat", labels=["version"])
        info.add_metric([__version__], 1)
        yield info
        yield GaugeMetricFamily("fnat_capacity_connections", "connections that fit", value=self._engine.capacity)
        yield GaugeMetricFamily("fnat_snapshot", "number of the configuration in force", value=self._engine.snapshot)
        yield from self._workers()
        yield from self._steps()
        yield from self._headroom()
        yield from self._services()
        yield from self._lips()

    def _workers(self) -> Iterator[Metric]:
        workers = self._engine.workers()
        drops = CounterMetricFamily("fnat_dropped_packets", "packets dropped, by reason", labels=["worker", "reason"])
        taken = GaugeMetricFamily("fnat_taken", "things held at the moment", labels=["worker", "what"])
        for name, kind, help in self._names:
            counter = CounterMetricFamily(f"fnat_{name}", help, labels=["worker"]) if kind == "counter" else None
            for worker in workers:
                index, value = str(worker["index"]), worker["counters"].get(name, 0)
                if counter is not None:
                    counter.add_metric([index], value)
                elif kind == "drop":
                    drops.add_metric([index, name], value)
                else:
                    taken.add_metric([index, name], value)
            if counter is not None:
                yield counter
        yield drops
        yield taken

    def _steps(self) -> Iterator[Metric]:
        steps = HistogramMetricFamily(
            "fnat_worker_step_seconds",
            "turns of a worker by duration; preempted: the system took its CPU away meanwhile",
            labels=["worker", "preempted"],
        )
        for worker in self._engine.workers():
            for kind, name in enumerate(("no", "yes")):
                counts, below = worker["steps"]["count"][kind], 0
                buckets = []
                for i, count in enumerate(counts):
                    below += count
                    if i in _STEP_BUCKETS:
                        buckets.append((str(2 ** (i + 1) / 1e9), below))
                buckets.append(("+Inf", below))
                steps.add_metric([str(worker["index"]), name], buckets, worker["steps"]["sum_ns"][kind] / 1e9)
        yield steps

    def _headroom(self) -> Iterator[Metric]:
        ports_left, conns_left, least = self._engine.forecast()
        for what, left in (("ports", ports_left), ("connections", conns_left)):
            text = f"seconds until {what} run out at the rate of the last minutes; +Inf: never"
            yield GaugeMetricFamily(f"fnat_{what}_exhausted_seconds", text, value=math.inf if left is None else left)
        free = GaugeMetricFamily(
            "fnat_service_ports_free",
            "fewest free local ports of any LIP towards any server of the service, where some are in use",
            labels=["service"],
        )
        for key, ports in least.items():
            free.add_metric([f"{key.proto}/{endpoint(key.vip, key.vport)}"], ports)
        yield free

    def _services(self) -> Iterator[Metric]:
        services = self._engine.services()
        things: list[tuple[str, list[str], list[tuple[list[str], StatsView]]]] = [
            ("service", ["service"], [([_name(s)], s["stats"]) for s in services]),
            (
                "server",
                ["service", "server"],
                [([_name(s), endpoint(r["rip"], r["rport"])], r["stats"]) for s in services for r in s["servers"]],
            ),
        ]
        for noun, labels, rows in things:
            for name, key, help in _STATS:
                counter = CounterMetricFamily(f"fnat_{noun}_{name}", help, labels=labels)
                for values, stats in rows:
                    counter.add_metric(values, stats[key])  # type: ignore[literal-required]
                yield counter
            active = GaugeMetricFamily(f"fnat_{noun}_active_connections", "established now", labels=labels)
            inactive = GaugeMetricFamily(f"fnat_{noun}_inactive_connections", "in another state now", labels=labels)
            for values, stats in rows:
                active.add_metric(values, stats["active"])
                inactive.add_metric(values, stats["inactive"])
            yield active
            yield inactive
        weight = GaugeMetricFamily("fnat_server_weight", "weight", labels=["service", "server"])
        for s in services:
            for r in s["servers"]:
                weight.add_metric([_name(s), endpoint(r["rip"], r["rport"])], r["weight"])
        yield weight

    def _lips(self) -> Iterator[Metric]:
        labels = ["lip", "port"]
        used = GaugeMetricFamily("fnat_lip_ports_used", "local ports in use", labels=labels)
        free = GaugeMetricFamily("fnat_lip_ports_free", "free ports towards the servers that use it", labels=labels)
        misses = CounterMetricFamily("fnat_lip_misses", "new connections that found no free port", labels=labels)
        for address in self._engine.addresses():
            if address["sapool"]:
                values = [address["addr"], address["port"]]
                used.add_metric(values, address["sa_used"])
                free.add_metric(values, address["sa_free"])
                misses.add_metric(values, address["sa_miss"])
        yield used
        yield free
        yield misses


def _name(service: ServiceView) -> str:
    return f"{service['proto']}/{endpoint(service['vip'], service['vport'])}"


def render(engine: Engine, names: Sequence[tuple[str, str, str]] | None = None) -> bytes:
    """Prometheus text. names None: those of the core."""
    if names is None:
        from fnat._core import COUNTERS

        names = COUNTERS
    registry = CollectorRegistry()
    registry.register(EngineCollector(engine, names))
    return generate_latest(registry)
