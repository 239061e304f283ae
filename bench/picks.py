"""What a pick costs: `python bench/picks.py`. Nanoseconds of CPU for one choice of a server, by scheduler and number of
servers, and milliseconds to put a service whose scheduler computes beforehand. Connections end at random meanwhile, 16
a server; what the loop itself costs is that of fo, which looks at one number."""

from __future__ import annotations

import time

from fnat._core import SCHEDULERS, Plane, Worker

SERVERS, RUNS = (8, 128, 1024), 5
SHAPES = {"equal": lambda i: 1, "1..10": lambda i: 1 + i % 10}


def main() -> None:
    plane = Plane.create(
        None, workers=1, conns=64, services=1, members=2048, endpoints=16, neighbours=64, frames=0, snapshot_mib=8
    )
    plane.put_settings({}, True)
    worker = Worker(plane, 0)
    print(f"{'ns a pick':<10}" + "".join(f"{f'{n} {shape}':>12}" for n in SERVERS for shape in SHAPES) + "   ms to put")
    for scheduler in SCHEDULERS:
        row, put = [], 0.0
        for n in SERVERS:
            for weight in SHAPES.values():
                members = [(i, f"10.1.{i >> 8}.{i & 255}", 8080, weight(i)) for i in range(n)]
                began = time.thread_time()
                plane.put_service(0, "192.0.2.1", 80, 6, scheduler=scheduler, members=members)
                put = max(put, time.thread_time() - began)
                plane.publish()
                worker.bench_picks(0, n, 100_000, n * 16)
                row.append(min(worker.bench_picks(0, n, 400_000, n * 16)[2] for _ in range(RUNS)) / 400_000)
        print(f"{scheduler:<10}" + "".join(f"{ns:>12.0f}" for ns in row) + f"{put * 1e3:>12.1f}")


if __name__ == "__main__":
    main()
