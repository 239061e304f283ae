"""Client, balancer and real servers as network namespaces, with real nginx; nobody's offloads are touched.

Two arms                                                        One arm

  client 10.0.0.28                                                client .28   rs1 .2   rs2 .3
     |                                                               |           |        |
  ===+=== bridge wan 10.0.0.0/16                                  ===+===+=======+========+=== 192.168.100.0/24
     |                                                                   |
    wan  10.0.0.1                                                       lan  192.168.100.1
   balancer (VIP 10.0.0.100, LIP 192.168.100.200 and .201)            balancer (VIP 192.168.100.254, LIP .200 and .201)
    lan  192.168.100.1
     |
  ===+=====+========+=== bridge lan 192.168.100.0/24
           |        |
         rs1 .2   rs2 .3

With `six` everybody has an address of IPv6, too, of the same last number: the wan is 2001:db8:a::/64, the lan fd00:b::/64.

Rules: the addresses with a host role belong to the kernel; VIP and LIPs exist nowhere but in fnat. The real servers
have no route to the clients' network, and the balancer's kernel does not forward. Namespaces carry a prefix and the
pid of their maker; those of a dead maker are removed by the next one with the same prefix. Everything runs under
Topology, which ends it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from types import TracebackType
from typing import Any, Self

PEER = Path(__file__).with_name("peer.py")
LIPS = ("192.168.100.200", "192.168.100.201")
SERVERS = ("192.168.100.2", "192.168.100.3")
LIPS6 = ("fd00:b::200", "fd00:b::201")
SERVERS6 = ("fd00:b::2", "fd00:b::3")
HTTP, SINK, ECHO = 80, 9000, 5353

_NGINX = """\
daemon off;
master_process on;
user root;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/error.log warn;
events {{ worker_connections 8192; }}
http {{
    log_format who '$remote_addr:$remote_port $server_port $status';
    access_log {directory}/access.log who;
    client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy; fastcgi_temp_path {directory}/fcgi;
    uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
    sendfile on; keepalive_requests 1000000; lingering_close off;
    server {{
        listen 80 backlog=8192; {six} root {directory}/www;
        location / {{ default_type text/plain; return 200 "{name}\\n"; }}
        location /file {{ }}
    }}
    {more}
}}
"""


def wait_until(true: Callable[[], object], what: str, seconds: float = 10.0) -> None:
    """Poll until `true()` is; TimeoutError naming `what` after the time."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:g} s: {what}")
        time.sleep(0.02)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def _try(*words: str) -> str:
    """Output of a command that may fail."""
    return subprocess.run(words, check=False, capture_output=True, text=True).stdout


def _namespaces() -> list[str]:
    return [line.split()[0] for line in _try("ip", "netns").splitlines()]


def _remove_namespace(name: str) -> None:
    for pid in _try("ip", "netns", "pids", name).split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    _try("ip", "netns", "del", name)


def _remove_directory(directory: Path) -> None:
    """A topology's directory, and the arenas of the fnats that had their state in it."""
    for link in directory.glob("*/arena"):
        shutil.rmtree(os.readlink(link), ignore_errors=True)
    shutil.rmtree(directory, ignore_errors=True)


def remove_leftovers(prefix: str) -> None:
    """Processes, namespaces and directories of this prefix whose maker is gone."""

    def orphan(name: str) -> bool:
        match = re.match(rf"{re.escape(prefix)}(\d+)-", name)
        return match is not None and not Path("/proc", match[1]).exists()

    for name in filter(orphan, _namespaces()):
        _remove_namespace(name)
    for directory in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        if orphan(directory.name):
            _remove_directory(directory)


@dataclass
class RealServer:
    """One real server: its namespace, address and directory."""

    name: str
    address: str
    directory: Path

    def clients(self) -> list[str]:
        """Who the access log says has asked, "address:port", one for each request."""
        return [line.split()[0] for line in (self.directory / "access.log").read_text().splitlines()]


@dataclass
class Topology:
    """The namespaces, from `with` to its end."""

    arms: int = 2
    prefix: str = "fn"
    queues: int = 1  # of each of the balancer's NICs
    six: bool = False
    servers: list[RealServer] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.base = f"{self.prefix}{os.getpid()}-"
        self.directory = Path()
        self.processes: list[subprocess.Popen[str]] = []
        self.vip = "10.0.0.100" if self.arms == 2 else "192.168.100.254"
        self.client_address = "10.0.0.28" if self.arms == 2 else "192.168.100.28"
        self.ports = {"dpdk0": "lan", "dpdk1": "wan"} if self.arms == 2 else {"dpdk0": "lan"}
        self.vip_port = "dpdk1" if self.arms == 2 else "dpdk0"

    def __enter__(self) -> Self:
        remove_leftovers(self.prefix)
        self.directory = Path(tempfile.mkdtemp(prefix=f"{self.base}"))
        self.directory.chmod(0o755)
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- building ----

    def _build(self) -> None:
        for name in ("sw", "client", "lb", "rs1", "rs2"):
            _ip("netns", "add", self.base + name)
            self.ip(name, "link", "set", "lo", "up")
        self.run("lb", "sysctl", "-qw", "net.ipv4.ip_forward=0")
        bridges = ["lan", "wan"] if self.arms == 2 else ["lan"]
        for bridge in bridges:
            self.ip("sw", "link", "add", bridge, "type", "bridge", "forward_delay", "0", "mcast_snooping", "0")
            self.ip("sw", "link", "set", bridge, "up")
        if self.arms == 2:
            self._cable("wan", "client", "eth0", "10.0.0.28/16", "2001:db8:a::28/64")
            self._cable("wan", "lb", "wan", "10.0.0.1/16", "2001:db8:a::1/64")
        else:
            self._cable("lan", "client", "eth0", "192.168.100.28/24", "fd00:b::28/64")
        self._cable("lan", "lb", "lan", "192.168.100.1/24", "fd00:b::1/64")
        for index, (address, address6) in enumerate(zip(SERVERS, SERVERS6, strict=True), 1):
            self._cable("lan", f"rs{index}", "eth0", f"{address}/24", f"{address6}/64")

    def _cable(self, bridge: str, name: str, device: str, address: str, address6: str) -> None:
        self.plug(bridge, name, device)
        self.ip(name, "addr", "add", address, "dev", device)
        if self.six:
            self.ip(name, "addr", "add", address6, "dev", device, "nodad")

    def plug(self, bridge: str, name: str, device: str) -> None:
        """A veth from the bridge to a namespace, default offloads, no addresses."""
        end = f"{name}-{device}"
        rings = ("numrxqueues", str(self.queues), "numtxqueues", str(self.queues)) if name == "lb" else ()
        peer = ("peer", "name", device, *rings, "netns", self.base + name)
        self.ip("sw", "link", "add", end, *rings, "type", "veth", *peer)
        self.ip("sw", "link", "set", end, "master", bridge, "up")
        self.run(name, "sysctl", "-qw", f"net.ipv6.conf.{device}.disable_ipv6={int(not self.six)}")
        self.ip(name, "link", "set", device, "up")

    def ip_netns(self, verb: str, name: str) -> None:
        """Another namespace, which goes with the topology."""
        _ip("netns", verb, self.base + name)

    def start_servers(self, more: str = "") -> None:
        """nginx on port 80, a TCP sink that answers with the SHA-256 of what it got, a UDP echo. more: of nginx.conf."""
        for index, address in enumerate(SERVERS, 1):
            server = RealServer(f"rs{index}", address, self.directory / f"rs{index}")
            (server.directory / "www").mkdir(parents=True)
            config = server.directory / "nginx.conf"
            six = "listen [::]:80 backlog=8192;" if self.six else ""
            words = {"directory": server.directory, "name": server.name}
            config.write_text(_NGINX.format(**words, six=six, more=more.format(**words)))
            error_log = str(server.directory / "error.log")
            self.spawn(server.name, "nginx", "-c", str(config), "-p", str(server.directory), "-e", error_log)
            self.spawn(server.name, sys.executable, str(PEER), "serve", str(SINK), str(ECHO))
            self.servers.append(server)
        wait_until(lambda: all(map(self._serves, self.servers)), "nginx, sink and echo listen")

    def _serves(self, server: RealServer) -> bool:
        listening = self.run(server.name, "ss", "-Hltun").stdout
        return all(f":{port} " in listening for port in (HTTP, SINK, ECHO))

    # ---- using ----

    def ip(self, name: str, *words: str) -> None:
        _ip("-n", self.base + name, *words)

    def command(self, name: str, words: Sequence[str]) -> list[str]:
        return ["ip", "netns", "exec", self.base + name, *words]

    def run(
        self,
        name: str,
        *words: str,
        check: bool = True,
        timeout: float = 60,
        env: dict[str, str] | None = None,
        stdin: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run to its end in a namespace; with `check`, a failure raises with all that it printed."""
        environment = {**os.environ, **(env or {})}
        done = subprocess.run(
            self.command(name, words),
            check=False,
            capture_output=True,
            text=True,
            timeout=timeout,
            env=environment,
            input=stdin,
            start_new_session=True,  # Ctrl-C is for the one who runs this
        )
        if check and done.returncode:
            raise RuntimeError(f"{name}: {' '.join(words)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def spawn(
        self, name: str, *words: str, env: dict[str, str] | None = None, log: Path | None = None
    ) -> subprocess.Popen[str]:
        """Start in a namespace; ended with the topology."""
        target = log or self.directory / f"{name}-{Path(words[0]).name}-{len(self.processes)}.log"
        with target.open("w") as output:
            process = subprocess.Popen(
                self.command(name, words),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def peer(self, *words: str, name: str = "client", timeout: float = 120, check: bool = True) -> dict[str, Any]:
        """What `peer.py` reports (JSON) after doing `words`."""
        done = self.run(name, sys.executable, str(PEER), *words, timeout=timeout, check=check)
        report: dict[str, Any] = json.loads(done.stdout)
        return report

    def send_by(self, bridge: str, queue: int | None) -> None:
        """The bridge sends to the balancer by this queue of its NIC, whatever the flow; None: as the kernel likes."""
        for index in range(self.queues):
            cpus = f"{(1 << (os.cpu_count() or 1)) - 1 if index == queue else 0:x}"
            self.run("sw", "sh", "-c", f"echo {cpus} >/sys/class/net/lb-{bridge}/queues/tx-{index}/xps_cpus")

    def lose(self, percent: int, proto: str = "tcp") -> None:
        """Client and servers lose so many of a hundred packets that reach them; 0: none."""
        for name in ("client", "rs1", "rs2"):
            rules = "table inet loss\ndelete table inet loss\n"
            if percent:
                chain = "chain in {\ntype filter hook input priority 0\n"
                chain += f"meta l4proto {proto} numgen random mod 100 < {percent} counter drop\n}}\n"
                rules += f"table inet loss {{\n{chain}}}\n"
            self.run(name, "nft", "-f", "-", stdin=rules)

    def lost(self) -> int:
        """Packets lost since `lose` was last told to."""
        rules = "".join(
            self.run(name, "nft", "list", "table", "inet", "loss").stdout for name in ("client", "rs1", "rs2")
        )
        return sum(int(count) for count in re.findall(r"counter packets (\d+)", rules))

    def talk(self) -> Conversation:
        """A long-lived HTTP connection of the client to the VIP."""
        return Conversation(self)

    def curl(
        self, path: str = "/", *options: str, check: bool = True, host: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """One request of the client to the VIP."""
        url = f"http://{host or self.vip}:{HTTP}{path}"
        return self.run("client", "curl", "-sS", "--fail", "--max-time", "5", *options, url, check=check)

    def close(self) -> None:
        """End everything that was started, whatever happened before."""
        for process in reversed(self.processes):
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        for process in reversed(self.processes):
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.processes.clear()
        for name in _namespaces():
            if name.startswith(self.base):
                _remove_namespace(name)
        _remove_directory(self.directory)


class Conversation:
    """One TCP connection to the VIP, one request at a time."""

    def __init__(self, topology: Topology) -> None:
        words = [sys.executable, str(PEER), "talk", topology.vip, str(HTTP)]
        self.process = subprocess.Popen(
            topology.command("client", words),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        topology.processes.append(self.process)
        self.port = int(self._line().split()[1])

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self) -> str:
        """Who answered, or the name of the error."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self._line()

    def end(self) -> None:
        """Close the connection."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=10)


@dataclass
class Balancer:
    """fnat in the balancer's namespace of a topology, used as an operator uses it: by its commands."""

    topology: Topology
    options: Sequence[str] = ()
    conns: int = 20000
    ports: dict[str, str] | None = None
    config: str | None = None
    ahead: int = 0  # seconds by which fnat's clock is ahead of everybody else's; may change between two starts

    def __post_init__(self) -> None:
        self.state_dir = self.topology.directory / "state"
        self.socket = self.topology.directory / "run" / "fnat.sock"
        self.log = self.topology.directory / "fnat.log"
        self.process: subprocess.Popen[str] | None = None

    @property
    def environment(self) -> dict[str, str]:
        return {"FNAT_SOCKET": str(self.socket), "COLUMNS": "200"}

    def command(self) -> list[str]:
        """The words of `fnat run`."""
        clock = ["unshare", "--time", f"--monotonic={self.ahead}", f"--boottime={self.ahead}"] if self.ahead else []
        words = [
            *clock,
            fnat_program("fnat"),
            "run",
            "--socket",
            str(self.socket),
            "--state-dir",
            str(self.state_dir),
            "--conns",
            str(self.conns),
        ]
        for name, device in (self.ports or self.topology.ports).items():
            words += ["--port", f"{name}={device if ':' in device else 'xdp:' + device}"]
        if self.config is not None:
            path = self.topology.directory / "fnat.toml"
            path.write_text(self.config)
            words += ["--config", str(path)]
        return [*words, *self.options]

    def start(self, seconds: float = 20.0) -> None:
        """Until the API answers."""
        if self.process in self.topology.processes:
            self.topology.processes.remove(self.process)
        self.process = self.topology.spawn("lb", *self.command(), env=self.environment, log=self.log)
        try:
            wait_until(self.ready_or_dead, "fnat answers", seconds)
        except TimeoutError as error:
            raise TimeoutError(f"{error}; its log:\n{self.log.read_text()}") from None
        if self.process.poll() is not None:
            raise RuntimeError(f"fnat run ended with {self.process.returncode}:\n{self.log.read_text()}")

    def ready_or_dead(self) -> bool:
        assert self.process is not None
        return self.process.poll() is not None or self.answers()

    def answers(self) -> bool:
        """Whether the API does."""
        try:
            return bool(self.api("/v1/status"))
        except OSError:
            return False

    def fnat(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.topology.run("lb", fnat_program("fnat"), *words, check=check, env=self.environment)

    def dpip(self, line: str, check: bool = True) -> str:
        return self.topology.run(
            "lb", fnat_program("fnat-dpip"), *line.split(), check=check, env=self.environment
        ).stdout

    def ipvsadm(self, line: str, check: bool = True) -> str:
        return self.topology.run(
            "lb", fnat_program("fnat-ipvsadm"), *line.split(), check=check, env=self.environment
        ).stdout

    def api(self, path: str, body: object = None) -> Any:
        """GET on the API's socket, or POST of a body."""
        door = HTTPConnection("fnat", timeout=10)
        door.sock = socket.socket(socket.AF_UNIX)
        try:
            door.sock.settimeout(10)
            door.sock.connect(str(self.socket))
            text = None if body is None else json.dumps(body)
            door.request("GET" if text is None else "POST", path, text, {"Content-Type": "application/json"})
            response = door.getresponse()
            answer = json.loads(response.read())
        except HTTPException as error:
            raise OSError(str(error)) from None
        finally:
            door.close()
        if response.status != 200:
            raise RuntimeError(f"{path}: {response.status}: {answer}")
        return answer

    def change(self, *changes: dict[str, Any]) -> None:
        """POST changes: all or nothing."""
        self.api("/v1/changes", {"changes": changes})

    def serve(
        self,
        proto: str,
        vport: int,
        *,
        vip: str | None = None,
        servers: Sequence[str] = SERVERS,
        lips: Sequence[str] = LIPS,
        **shape: Any,
    ) -> None:
        """One more service on the VIP, or on another one, by the API."""
        name = {"proto": proto, "vip": vip or self.topology.vip, "vport": vport}
        self.change(
            {"op": "service.add", "scheduler": "rr", **name, **shape},
            *({"op": "server.add", "service": name, "rip": rip, "rport": vport} for rip in servers),
            *({"op": "lip.add", "service": name, "addr": lip, "port": "dpdk0"} for lip in lips),
        )

    def service(self, proto: str, vport: int) -> dict[str, Any]:
        """The API's view of one service on the VIP."""
        found: dict[str, Any] = self.api(f"/v1/services?proto={proto}&vip={self.topology.vip}&vport={vport}")[0]
        return found

    def pids(self) -> dict[str, int]:
        """keeper, dataplane, control."""
        found: dict[str, int] = json.loads((self.state_dir / "pids.json").read_text())
        return found

    def counters(self) -> dict[str, int]:
        """Counters summed over the workers."""
        total: dict[str, int] = {}
        for worker in self.api("/v1/workers"):
            for name, value in worker["counters"].items():
                total[name] = total.get(name, 0) + value
        return total

    def configure(
        self, scheduler: str = "rr", services: Sequence[tuple[str, int]] = (("-t", HTTP), ("-t", SINK), ("-u", ECHO))
    ) -> None:
        """The commands of the DPVS tutorial's FullNAT set-up, one service for each of `services`."""
        top = self.topology
        self.dpip(f"addr add {top.vip}/32 dev {top.vip_port}")
        if top.arms == 2:
            self.dpip("route add 10.0.0.0/16 dev dpdk1")
        self.dpip("route add 192.168.100.0/24 dev dpdk0")
        for kind, port in services:
            self.ipvsadm(f"-A {kind} {top.vip}:{port} -s {scheduler}")
            for address in SERVERS:
                self.ipvsadm(f"-a {kind} {top.vip}:{port} -r {address}:{port} -b")
            for lip in LIPS:
                self.ipvsadm(f"--add-laddr -z {lip} {kind} {top.vip}:{port} -F dpdk0")

    def stop(self, seconds: float = 15.0) -> int:
        """SIGTERM, and the exit code."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(timeout=seconds)


def fnat_program(name: str) -> str:
    """A console script of the interpreter that runs this."""
    return str(Path(sys.executable).with_name(name))
