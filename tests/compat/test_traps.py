"""DPVS's traps, one row each: what its users fall into, shown not to be here. Commands are typed at a real control and API, and
packets go through a real worker over memory queues."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import packets as wire
import pytest
from balancer import running
from packets import ACK, RST, SYN
from terminal import type_in

from fnat import _core, config
from fnat.control import Control
from fnat.engine import Engine
from fnat.errors import ConfigError
from fnat.model import Config, Host
from fnat.state import Overlay

VIP, LIP, RS1, RS2, CLIENT = "192.0.2.10", "10.0.0.11", "10.0.0.101", "10.0.0.102", "198.51.100.7"
WAN, LAN = 0, 1
SECOND = 1_000_000_000
NETWORK = f"""
dpip addr add {VIP}/24 dev dpdk0
dpip route add default via 192.0.2.1 dev dpdk0
dpip route add 10.0.0.0/24 dev dpdk1
dpip neigh add 192.0.2.1 lladdr 02:00:00:00:00:fe dev dpdk0
dpip neigh add {RS1} lladdr 02:00:00:00:01:01 dev dpdk1
dpip neigh add {RS2} lladdr 02:00:00:00:01:02 dev dpdk1
"""
TCP_SERVICE = f"""
ipvsadm -A -t {VIP}:80 -s rr
ipvsadm -a -t {VIP}:80 -r {RS1}:8080 -b
ipvsadm -P -t {VIP}:80 -z {LIP} -F dpdk1
"""
UDP_SERVICE = TCP_SERVICE.replace("-t ", "-u ")


class Bench:
    """A balancer with one worker that is stepped by hand; its clock may lag behind the system's."""

    def __init__(self, control: Control) -> None:
        self.control = control
        self.plane = control.engine.plane
        self.worker = _core.Worker(self.plane, 0)
        self.queues = {port: _core.MemQueue(self.worker, 256) for port in (WAN, LAN)}
        for port, queue in self.queues.items():
            self.worker.attach(port, queue)
        self.now = _core.monotonic_ns()

    def type(self, script: str) -> None:
        for line in script.strip().splitlines():
            assert type_in(line) == (0, "", ""), line

    def send(self, port: int, *frames: bytes) -> list[tuple[int, wire.Frame]]:
        for frame in frames:
            self.queues[port].put(frame)
        self.worker.step(self.now)
        out = [(port, raw) for port, queue in self.queues.items() for raw in queue.take_all()]
        return [(port, wire.read(raw)) for port, raw in out if raw[12:14] != b"\x08\x06"]  # no announcements by ARP

    def open(self, cport: int, seq: int = 1000) -> tuple[int, wire.Frame]:
        """A TCP handshake; the port and frame by which the SYN left."""
        [(port, syn)] = self.send(WAN, wire.tcp(CLIENT, cport, VIP, 80, SYN, seq=seq))
        answer = wire.tcp(syn.dst, syn.dport, syn.src, syn.sport, SYN | ACK, seq=9000, ack=syn.seq + 1 & 0xFFFFFFFF)
        [(_, back)] = self.send(LAN, answer)
        self.send(WAN, wire.tcp(CLIENT, cport, VIP, 80, ACK, seq=seq + 1, ack=back.seq + 1 & 0xFFFFFFFF))
        return port, syn

    def shown(self, line: str) -> list[str]:
        code, out, err = type_in(line)
        assert (code, err) == (0, ""), (line, err)
        return out.splitlines()


@contextmanager
def bench(*scripts: str, conns: int = 4096, file: Config | None = None) -> Iterator[Bench]:
    with running(conns=conns, file=file) as control:
        made = Bench(control)
        for script in (NETWORK, *scripts):
            made.type(script)
        try:
            yield made
        finally:
            made.worker.detach()
            made.worker.quiesce()


def a_ports_of_odd_worker_counts() -> None:
    """(a) Worker counts that are no power of two waste LIP ports: every port has an owner, and shares are alike."""
    for workers in (1, 2, 3, 5, 6, 7, 9):
        owners = [
            _core.steering_owner(_core.Rule(), "tcp4", workers, RS1, LIP, 8080, port) for port in range(1024, 65536)
        ]
        shares = [owners.count(worker) for worker in range(workers)]
        assert sum(shares) == 64512
        assert max(shares) - min(shares) <= 126 + 1  # one class of 512
        assert _core.steering_shares(_core.Rule(), "tcp4", workers) == (min(shares), max(shares))


def b_thresholds_below_the_worker_count() -> None:
    """(b) -x smaller than the number of workers means no limit: it is one limit over all of them."""
    with running(workers=4) as control:
        queues = []
        workers = [_core.Worker(control.engine.plane, index) for index in range(4)]
        for worker in workers:
            ports = [_core.MemQueue(worker, 256), _core.MemQueue(worker, 256)]
            for port, queue in enumerate(ports):
                worker.attach(port, queue)
            queues.append(ports)
        try:
            for line in filter(None, (NETWORK + TCP_SERVICE.replace("-b\n", "-b -x 2\n")).splitlines()):
                assert type_in(line) == (0, "", ""), line
            for index, (worker, ports) in enumerate(zip(workers, queues, strict=True)):
                for cport in range(10):
                    ports[WAN].put(wire.tcp(CLIENT, 1000 * index + cport + 1, VIP, 80, SYN, seq=1))
                    worker.step(_core.monotonic_ns())
            assert type_in("fnat conn count --proto tcp")[1] == "2\n"
            assert "overload" in type_in("ipvsadm -ln")[1].splitlines()[4]
            assert type_in("ipvsadm -ln --thresholds")[1].splitlines()[4].split()[1:] == [
                f"{RS1}:8080",
                "2",
                "0",
                "0",
                "2",
            ]
        finally:
            for worker in workers:
                worker.detach()
                worker.quiesce()


def c_room_for_connections() -> None:
    """(c) The pool is rounded down to a power of two less one: all the connections asked for fit, and are counted."""
    with bench(UDP_SERVICE, conns=1500) as b:
        for cport in range(1, 1501):
            b.send(WAN, wire.udp(CLIENT, cport, VIP, 80, b"x"))
        assert b.shown("fnat conn count --proto udp") == ["1500"]
        assert json.loads("".join(b.shown("fnat status --json")))["capacity"] == 1500


def d_free_ports() -> None:
    """(d) sa_free overstates by 16: with so many free ports shown, so many connections open, and not one more."""
    with bench(UDP_SERVICE, file=Config(host=Host(lports=(2000, 2063)))) as b:

        def pool() -> list[str]:
            return next(line for line in b.shown("dpip addr show -s") if "sa_free" in line).split()[4:]

        assert pool() == ["sa_used", "0", "sa_free", "64", "sa_miss", "0"]
        left = [bool(b.send(WAN, wire.udp(CLIENT, cport, VIP, 80, b"x"))) for cport in range(1, 71)]
        assert (left.count(True), left[:64].count(True)) == (64, 64)
        assert pool() == ["sa_used", "64", "sa_free", "0", "sa_miss", "6"]
        assert b.plane.counters()["no_lip_port"] == 6


def e_time_left_of_connections() -> None:
    """(e) -lnc shows the state's configured length, and a dump stalls workers: it shows the time left, and a worker makes
    its turns while a listing is read."""
    with bench(UDP_SERVICE) as b:
        b.now = _core.monotonic_ns() - 100 * SECOND
        b.send(WAN, wire.udp(CLIENT, 1, VIP, 80, b"x"))
        [line] = b.shown("ipvsadm -lnc")
        assert int(line.split()[1].removesuffix("s")) in (199, 200)
        b.now = _core.monotonic_ns()
        for cport in range(2, 2000):
            b.send(WAN, wire.udp(CLIENT, cport, VIP, 80, b"x"))
        lines: list[str] = []
        reader = threading.Thread(target=lambda: lines.extend(b.shown("fnat conn show")))
        reader.start()
        turns = 0
        while reader.is_alive():
            b.send(WAN, wire.udp(CLIENT, 1, VIP, 80, b"x"))
            turns += 1
        assert len(lines) == 2000  # the title and 1999 of them
        assert turns > 10


def f_counters_of_a_service() -> None:
    """(f) A service's counters shrink when a server is deleted: they stay."""
    with bench(TCP_SERVICE) as b:
        b.open(1)
        before = b.shown("ipvsadm -ln --stats")[3]
        assert before.split()[2:5] == ["1", "2", "1"]
        b.type(f"ipvsadm -d -t {VIP}:80 -r {RS1}:8080")
        after = b.shown("ipvsadm -ln --stats")
        assert after[3:] == [before]


def g_every_counter_is_exported() -> None:
    """(g) Extended counters cannot be read: each counter of the core is in the metrics, by name and with its value."""
    with bench(TCP_SERVICE) as b:
        b.open(1)
        text = "\n".join(b.shown("fnat metrics"))
        values = b.plane.counters()
        missing = [name for name, _, _ in _core.COUNTERS if name not in text]
        assert missing == []
        assert values["to_rs"] == 2
        assert 'reason="no_rs"' in text


def h_lip_that_was_an_address() -> None:
    """(h) `dpip addr add` first leaves a LIP without ports, and -P hides it: it has ports and connections use them."""
    with bench(f"dpip addr add {LIP}/24 dev dpdk1", TCP_SERVICE) as b:
        _, syn = b.open(1)
        assert syn.src == LIP
        assert any("sa_used 1 sa_free 64511" in line for line in b.shown("dpip addr show -s"))
        code, out, err = type_in(f"ipvsadm -P -t {VIP}:80 -z {LIP} -F dpdk1")  # a second time: told, not ignored
        assert (code, out) == (1, "")
        assert "exists already" in err


def i_resets_and_numbers() -> None:
    """(i) One byte of entropy in ISNs, no window check of RST: the RS sees as many first numbers as clients chose, and a RST
    out of the window ends nothing."""
    with bench(TCP_SERVICE) as b:
        chance = random.Random(1)
        seen = {b.open(cport, chance.randrange(2**32))[1].seq for cport in range(1, 301)}
        assert len(seen) == 300
        assert len({seq >> 24 for seq in seen}) > 100
        states = b.shown(f"ipvsadm -lnc --sockpair tcp:{CLIENT}:7:{VIP}:80")
        assert "TCP_EST" in states[0]
        b.send(WAN, wire.tcp(CLIENT, 7, VIP, 80, RST, seq=123))
        assert "TCP_EST" in b.shown(f"ipvsadm -lnc --sockpair tcp:{CLIENT}:7:{VIP}:80")[0]


def j_success_means_in_force() -> None:
    """(j) The command line reports success before workers have applied it: the worker has, when it returns; a worker that
    hangs is told, with exit code 1, and the old configuration stays."""
    with bench(TCP_SERVICE) as b:
        stop = threading.Event()

        def turn() -> None:
            while not stop.is_set():
                b.worker.step(_core.monotonic_ns())
                time.sleep(0.0005)

        worker = threading.Thread(target=turn)
        worker.start()
        b.control.engine._startle = 0.05  # long enough to see it step
        try:
            for weight in range(2, 12):
                done = json.loads("".join(b.shown(f"fnat --json rs set tcp {VIP}:80 {RS1}:8080 --weight {weight}")))
                assert b.plane.adopted() >= done["snapshot"]
        finally:
            stop.set()
            worker.join()


def k_persistence_keeps_connections() -> None:
    """(k) Connections of persistent services always end with their server's weight: only --expire-quiescent does that; and
    a client that persists comes back to its server."""
    for options, survives in (("-p 600", True), ("-p 600 --expire-quiescent", False)):
        script = TCP_SERVICE.replace("-s rr", f"-s rr {options}")
        with bench(script, f"ipvsadm -a -t {VIP}:80 -r {RS2}:8080 -b") as b:
            first = b.open(1)[1].dst
            assert {b.open(cport)[1].dst for cport in range(2, 9)} == {first}
            kept = [line.split()[3] for line in b.shown("ipvsadm -ln --persistent-conn")[4:]]
            assert sorted(kept) == ["0", "1"]
            b.type(f"ipvsadm -e -t {VIP}:80 -r {first}:8080 -w 0")
            passed = b.send(WAN, wire.tcp(CLIENT, 1, VIP, 80, ACK, seq=1001, ack=9001))
            assert any(frame.dst == first and not frame.flags & RST for _, frame in passed) is survives


def l_large_weights() -> None:
    """(l) Weights above 32767 turn negative and get nothing: they get their share."""
    script = TCP_SERVICE.replace("-s rr", "-s wrr").replace(":8080 -b", ":8080 -b -w 65535")
    with bench(script, f"ipvsadm -a -t {VIP}:80 -r {RS2}:8080 -b -w 21845") as b:
        gone = [b.open(cport)[1].dst for cport in range(1, 201)]
        assert gone.count(RS1) == pytest.approx(150, abs=2)
        assert "  -> 10.0.0.101:8080              FullNat 65535 " in "\n".join(b.shown("ipvsadm -ln"))


def m_words_that_are_dead() -> None:
    """(m) --set, the sync daemon, --rate and fwmark do nothing: --rate is true, the others are refused and change nothing."""
    with bench(UDP_SERVICE) as b:
        before = b.control.engine.config
        for line in (
            "ipvsadm --set 900 120 300",
            "ipvsadm --start-daemon master",
            "ipvsadm --stop-daemon master",
            "ipvsadm -A -f 1 -s rr",
        ):
            code, out, err = type_in(line)
            assert (code, out, err.count("\n")) == (2, "", 1)
        assert b.control.engine.config is before
        b.control.engine.sample(100.0)
        for cport in range(1, 51):
            b.send(WAN, wire.udp(CLIENT, cport, VIP, 80, b"x"))
        b.control.engine.sample(102.0)
        assert b.shown("ipvsadm -ln --rate")[3].split()[2:4] == ["25", "25"]


def n_keys_of_mh() -> None:
    """(n) mh hashes with fixed keys, so whoever reads the source chooses a server: [host] hash_key makes them secret, and
    alike on every node that has it, in whatever order its servers came."""

    def chosen(key: str, *servers: str) -> list[str]:
        with bench(f"ipvsadm -A -u {VIP}:80 -s mh", file=Config(host=Host(hash_key=key))) as b:
            b.type("\n".join(f"ipvsadm -a -u {VIP}:80 -r {server}:8080 -b" for server in servers))
            b.type(f"ipvsadm -P -u {VIP}:80 -z {LIP} -F dpdk1")
            clients = [wire.udp(f"198.51.100.{host}", 4000, VIP, 80, b"x") for host in range(1, 201)]
            return [frame.dst for client in clients for _, frame in b.send(WAN, client)]

    ours = chosen("one secret", RS1, RS2)
    assert len(ours) == 200
    assert chosen("one secret", RS2, RS1) == ours
    for other in ("", "another secret"):
        alike = sum(a == b for a, b in zip(chosen(other, RS1, RS2), ours, strict=True))
        assert 60 <= alike <= 140  # half of them by chance


def o_drops_are_told() -> None:
    """(o) Drops for want of a server, a local address or a port are silent: each moves its counter, which the metrics show."""
    with bench(f"ipvsadm -A -t {VIP}:80 -s rr") as b:

        def told(reason: str) -> float:
            rows = [
                x for x in b.shown("fnat metrics") if x.startswith("fnat_dropped_packets_total") and f'"{reason}"' in x
            ]
            return sum(float(row.split()[-1]) for row in rows)

        def drops(cport: int, reason: str) -> None:
            before = told(reason)
            assert b.send(WAN, wire.tcp(CLIENT, cport, VIP, 80, SYN, seq=1)) == []
            assert told(reason) == before + 1

        b.type(f"ipvsadm -a -t {VIP}:80 -r {RS1}:80 -b")
        drops(1, "no_lip")
        b.type(f"ipvsadm -P -t {VIP}:80 -z {LIP} -F dpdk1")
        b.type(f"ipvsadm -e -t {VIP}:80 -r {RS1}:80 -w 0")
        drops(2, "no_rs")
        b.type(f"ipvsadm -d -t {VIP}:80 -r {RS1}:80")
        drops(3, "no_rs")


# ---- of the configuration ----


def config_typo_is_an_error() -> None:
    """A bad value or name in the file silently means the default, and nothing checks it: `fnat check` and start refuse it."""
    good = (Path(config.__file__).parents[1] / "conf" / "fnat.toml").read_text()
    for old, new, code, why in (
        ("workers  = 1", "worker  = 1", "FN-1103", "workers"),
        ('idle     = "sleep"', 'idle     = "slep"', "FN-1104", "sleep"),
        ('established = "2h4m"', "established = 0", "FN-1104", "established"),
        ("weight = 10", "weight = 70000", "FN-1104", "65535"),
    ):
        assert old in good
        with pytest.raises(ConfigError) as caught:
            config.parse(good.replace(old, new), "fnat.toml", "lb1")
        assert caught.value.code == code
        assert why in str(caught.value)


def config_reload_of_a_wrong_file() -> None:
    """SIGHUP with a wrong line resets to defaults: everything stays as it is."""
    with bench(TCP_SERVICE) as b:
        before = b.control.engine.config
        with pytest.raises(ConfigError):
            b.control.apply("version = 1\n[host.timeouts]\nestablished = 'soon'\n", "fnat.toml")
        assert b.control.engine.config is before
        assert b.shown("ipvsadm -l --timeout") == ["Timeout (tcp tcpfin udp): 7440 600 300"]


def config_survives_a_restart() -> None:
    """Services, local addresses, addresses and routes are lost at a restart: the next control has them all."""
    with bench(TCP_SERVICE) as b:
        saved, shown = b.shown("ipvsadm -S"), b.shown("dpip route show")
        old = b.control
        again = Control(Engine(b.plane, {}, old.engine.ports, old.engine._ids, startle=0.0), Overlay(old._overlay.path))
        again.start()
        assert again.engine.config == old.engine.config
        assert [str(key) for key in again.engine.config.services.by_key] == [f"tcp {VIP}:80"]
        assert len(saved) == 3
        assert len(again.engine.routes()) == len(shown)


def config_idle_connections() -> None:
    """An idle connection dies after 90 s: it is kept for RFC 5382's two
    hours and four minutes."""
    with bench(TCP_SERVICE) as b:
        b.open(1)
        for seconds, left in ((7400, ["1"]), (7500, ["0"])):
            b.now += seconds * SECOND
            b.send(WAN)
            assert b.shown("fnat conn count --proto tcp") == left
            b.now -= seconds * SECOND


def config_listings_are_whole() -> None:
    """A listing loses rows when a message times out (sync_msg_timeout_us): it is whole, and read from memory."""
    script = "\n".join(f"-A -t 203.0.113.{n % 200 + 1}:{1000 + n} -s rr" for n in range(300))
    with bench() as b:
        assert type_in("ipvsadm -R", script) == (0, "", "")
        assert len(b.shown("ipvsadm -ln")) == 303
        steps = b.plane.counters(0)["steps"]
        assert len(b.shown("ipvsadm -S")) == 300
        assert b.plane.counters(0)["steps"] == steps  # no worker was asked


def config_fragments_pass() -> None:
    """ipv4_defs/fragment suggests that fragments pass, yet all are dropped: they are forwarded."""
    with bench(UDP_SERVICE) as b:
        whole = wire.udp(CLIENT, 5, VIP, 80, b"x" * 2000)
        out = b.send(WAN, *wire.pieces(whole, 77, 1400))
        assert [port for port, _ in out] == [LAN] * len(out)
        assert len(out) == 2


TRAPS: list[Callable[[], None]] = [
    a_ports_of_odd_worker_counts,
    b_thresholds_below_the_worker_count,
    c_room_for_connections,
    d_free_ports,
    e_time_left_of_connections,
    f_counters_of_a_service,
    g_every_counter_is_exported,
    h_lip_that_was_an_address,
    i_resets_and_numbers,
    j_success_means_in_force,
    k_persistence_keeps_connections,
    l_large_weights,
    m_words_that_are_dead,
    n_keys_of_mh,
    o_drops_are_told,
    config_typo_is_an_error,
    config_reload_of_a_wrong_file,
    config_survives_a_restart,
    config_idle_connections,
    config_listings_are_whole,
    config_fragments_pass,
]


@pytest.mark.parametrize("trap", TRAPS, ids=[trap.__name__ for trap in TRAPS])
def test_it_is_not_here(trap: Callable[[], None]) -> None:
    trap()
