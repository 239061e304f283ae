"""`make demo`: a client, fnat and two nginx between network namespaces, configured as in the DPVS tutorial, under
real traffic.

It proves that the answers come by way of fnat: the kernel does not forward, the servers see LIPs only, fnat's
counters equal the client's count, and without fnat the same request fails. Then a live table, until Ctrl-C; with
--once it ends after the proofs. Exit code 0 only if every request succeeded and every proof held. It cleans up in all
cases.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import os
import re
import signal
import sys
import threading
import time
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from topology import ECHO, HTTP, LIPS, SERVERS, SINK, Balancer, Topology

REQUESTS, PAIRS, UPLOAD = 200, 1000, 16 << 20
DRAWING = """
   client 10.0.0.28
      |
     wan        namespaces joined by veth and bridges, default offloads
    [fnat]      VIP 10.0.0.100, LIP 192.168.100.200 and .201
     lan
      |
      +-- nginx rs1 192.168.100.2
      +-- nginx rs2 192.168.100.3"""

console = Console(highlight=False, soft_wrap=True)


class Failed(Exception):
    """A request failed or a proof does not hold."""


def prove(holds: bool, what: str) -> None:
    if not holds:
        raise Failed(what)
    console.print(f"  [green]ok[/]  {what}")


class NarratedBalancer(Balancer):
    """Says each command as an operator would type it."""

    def dpip(self, line: str, check: bool = True) -> str:
        console.print(f"  [dim]#[/] fnat-dpip {line}")
        return super().dpip(line, check)

    def ipvsadm(self, line: str, check: bool = True) -> str:
        console.print(f"  [dim]#[/] fnat-ipvsadm {line}")
        return super().ipvsadm(line, check)


def requests(top: Topology, count: int, check: bool = True) -> collections.Counter[str]:
    """How many of `count` new connections each server answered; a failed one counts as "failed"."""
    url = f"http://{top.vip}:{HTTP}/?request=[1-{count}]"
    options = ("-s", "--max-time", "5", "-H", "Connection: close", "-w", "%{http_code}\n")
    out = top.run("client", "curl", *options, url, check=check).stdout
    answers = re.findall(r"(\w+)\n200\n", out)
    found = collections.Counter(answers)
    found["failed"] = count - len(answers)
    return found


def proofs(top: Topology, balancer: Balancer) -> None:
    """Traffic, then the evidence."""
    console.print("\n[bold]traffic[/]")
    answers = requests(top, REQUESTS)
    split = ", ".join(f"{name} {count}" for name, count in sorted(answers.items()) if name != "failed")
    prove(answers["failed"] == 0, f"{REQUESTS} curl requests, each on a connection of its own, all answered ({split})")
    echo = top.peer("echo", top.vip, str(ECHO), str(PAIRS), "8")
    prove(echo["answered"] == PAIRS, f"{PAIRS} UDP requests, all answered")
    upload = top.peer("upload", top.vip, str(SINK), str(UPLOAD))
    prove(upload["sent"] == upload["received"], f"{UPLOAD >> 20} MiB sent through the VIP keep their SHA-256")

    console.print("\n[bold]it was fnat[/]")
    ports = balancer.api("/v1/ports")
    prove(all(p["mode"] == "native" for p in ports), f"{', '.join(p['device'] for p in ports)}: native XDP")
    forward = top.run("lb", "cat", "/proc/sys/net/ipv4/ip_forward").stdout.strip()
    prove(forward == "0", "net.ipv4.ip_forward is 0: the kernel forwards nothing")
    askers = [asker.rsplit(":", 1)[0] for server in top.servers for asker in server.clients()]
    prove(set(askers) <= set(LIPS), f"the servers' logs show only LIPs: {', '.join(sorted(set(askers)))}")
    prove(len(askers) == REQUESTS, f"the servers' logs have {len(askers)} requests")
    tcp, udp = balancer.service("tcp", HTTP)["stats"], balancer.service("udp", ECHO)["stats"]
    prove(tcp["conns"] == REQUESTS, f"fnat counts {tcp['conns']} connections")
    counted = f"fnat counts {udp['in_packets']} UDP packets to the servers, {udp['out_packets']} back"
    prove(udp["in_packets"] == udp["out_packets"] == PAIRS, counted)
    balancer.stop()
    prove(requests(top, 1, check=False)["failed"] == 1, "with fnat stopped the same curl fails")
    balancer.start()
    prove(requests(top, 1)["failed"] == 0, "started again it works, configuration and all")


class Load(threading.Thread):
    """Requests until `end`; counts what failed."""

    def __init__(self, top: Topology) -> None:
        super().__init__(daemon=True)
        self.top, self.end, self.failed, self.sent = top, threading.Event(), 0, 0

    def run(self) -> None:
        while not self.end.wait(0.2):
            self.failed += requests(self.top, 20, check=False)["failed"]
            self.failed += 20 - int(self.top.peer("echo", self.top.vip, str(ECHO), "20", "4")["answered"])
            self.sent += 40


def table(*columns: str) -> Table:
    found = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for index, column in enumerate(columns):
        found.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    return found


def figures(row: dict[str, Any]) -> list[str]:
    """Numbers of a service or a server."""
    rate, stats = row["rate"], row["stats"]
    numbers = stats["conns"], rate["cps"], rate["in_pps"], rate["out_pps"], rate["out_bps"], stats["active"]
    return [f"{number:,}" for number in (*numbers, stats["inactive"])]


def picture(balancer: Balancer, load: Load) -> Group:
    """What the API says now, for a terminal of 80 columns."""
    top = balancer.topology
    services = table(f"VIP {top.vip}", "conns", "conns/s", "in p/s", "out p/s", "out B/s", "est", "other")
    for one in balancer.api("/v1/services"):
        services.add_row(f"{one['proto']} port {one['vport']} {one['scheduler']}", *figures(one), style="bold")
        for rs in one["servers"]:
            services.add_row(f"  {rs['rip']}:{rs['rport']}", *figures(rs))
    conns = table("core", "proto", "state", "client", "LIP", "server")
    for conn in balancer.api("/v1/conns?limit=64")["conns"][:8]:
        ends = (f"{conn[a]}:{conn[b]}" for a, b in (("cip", "cport"), ("lip", "lport"), ("rip", "rport")))
        conns.add_row(str(conn["worker"]), str(conn["proto"]), conn["state"], *ends)
    lips = table("LIP", "ports in use", "free", "misses")
    for addr in balancer.api("/v1/addresses"):
        if addr["addr"] in LIPS:
            lips.add_row(addr["addr"], *(f"{addr[key]:,}" for key in ("sa_used", "sa_free", "sa_miss")))
    line = f"{load.sent} requests sent, {load.failed} failed; Ctrl-C ends"
    return Group(services, "", conns, "", lips, "", line)


def watch(top: Topology, balancer: Balancer) -> None:
    """The live table, until Ctrl-C."""
    load = Load(top)
    load.start()
    try:
        with Live(console=console, auto_refresh=False) as live, contextlib.suppress(KeyboardInterrupt):
            while True:
                live.update(picture(balancer, load), refresh=True)
                time.sleep(1)
    finally:
        load.end.set()
        load.join()
    if load.failed:
        raise Failed(f"{load.failed} of {load.sent} requests failed")


def main() -> int:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__.splitlines()[0])
    parser.add_argument("--once", action="store_true", help="end after the proofs")
    once = parser.parse_args().once
    if os.geteuid() != 0:
        print("demo: namespaces and AF_XDP need root; run it as root", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        with Topology(prefix="fndemo") as top:
            console.print(DRAWING, markup=False)
            top.start_servers()
            balancer = NarratedBalancer(top)
            console.print("\n[bold]set-up, as in the DPVS tutorial[/]")
            console.print("  [dim]#[/] fnat run --port dpdk0=xdp:lan --port dpdk1=xdp:wan")
            balancer.start()
            balancer.configure()
            proofs(top, balancer)
            if not once:
                console.print()
                watch(top, balancer)
        console.print(f"\nserved by {len(SERVERS)} servers; nothing is left behind")
        return 0
    except KeyboardInterrupt:
        console.print("\nstopped; nothing is left behind")
        return 130 if once else 0
    except (Failed, RuntimeError, TimeoutError) as error:
        console.print("  [red]failed[/] ", end="")
        console.print(str(error), markup=False)
        return 1


if __name__ == "__main__":
    sys.exit(main())
