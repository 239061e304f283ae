"""fnat as it is installed: from the wheels in a fresh virtual environment, and from the package in a fresh Debian 12; without
network, without a compiler. Each row is a command there and what it must print.

The Debian root is made once by debootstrap and kept in build/; `make test-deb` runs those rows.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEBIAN = ROOT / "build" / "debian12.tar"
DEBIAN_PACKAGES = "python3,libbpf1,libstdc++6,libgcc-s1,iproute2,procps"
TOOLS = ("cat", "env", "grep", "ip", "kill", "ls", "ps", "seq", "sh", "sleep", "timeout", "true")
pytestmark = [pytest.mark.netns, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

CONFIG = """\
version = 1
[node.lb]
wan = { nic = "wan" }
lan = { nic = "lan" }
lips = ["192.168.100.200"]
[host]
conns = "20k"
[service.web]
listen = ["10.0.0.100:80"]
port = "wan"
[service.web.rs]
"192.168.100.2:8080" = { weight = 1 }
"""
# A SYN of a client to the VIP; what reaches the real server.
SYN = """\
from scapy.all import ARP, IP, TCP, AsyncSniffer, Ether, get_if_hwaddr, sendp
def answer(p):
    if ARP in p and p[ARP].op == 1 and p[ARP].pdst == "192.168.100.2":
        us = get_if_hwaddr("lan1")
        sendp(Ether(src=us, dst=p.src) / ARP(op=2, hwsrc=us, psrc=p[ARP].pdst, hwdst=p.src, pdst=p[ARP].psrc), iface="lan1", verbose=0)
def reached(p):
    return IP in p and p[IP].dst == "192.168.100.2"
server = AsyncSniffer(iface="lan1", prn=answer, stop_filter=reached, lfilter=lambda p: ARP in p or reached(p), promisc=0)
server.start()
import time; time.sleep(1)
sendp(Ether(dst=get_if_hwaddr("wan")) / IP(src="10.0.0.28", dst="10.0.0.100") / TCP(sport=4000, dport=80, flags="S"), iface="wan1", verbose=0)
server.join(timeout=10)
print(*(f"{p[IP].src} -> {p[IP].dst}:{p[TCP].dport} {p[TCP].flags}" for p in server.results or () if reached(p)))
"""
LINKS = " && ".join(
    f"ip link add {n} type veth peer name {n}1 && ip link set {n} up && ip link set {n}1 up && ip addr add {a} dev {n}"
    for n, a in (("wan", "10.0.0.1/16"), ("lan", "192.168.100.1/24"))
)
START = "fnat run --config $CONFIG --node lb >$OUT/log 2>&1 & for i in $(seq 300); do fnat status >/dev/null 2>&1 && break; sleep 0.1; done; cat $OUT/log"

# what is shown, command, expected exit code, expected text
USED: list[tuple[str, str, int, str]] = [
    ("no compiler is there", "command -v gcc || command -v cc || command -v clang || false", 1, r"\A\Z"),
    ("and no network", "ip -o route", 0, r"\A\Z"),
    ("version", "fnat version", 0, r"\Afnat \d+\.\d+\.\d+\n\Z"),
    ("the core runs", "fnat bench nat --conns 1000 --seconds 0.1", 0, r"ns"),
    ("not running is one line", "fnat status", 3, r"\Afnat: fnat is not running .*\(FN-1001\)\n\Z"),
    ("two veths", LINKS, 0, r"\A\Z"),
    ("the file is right", "fnat check $CONFIG --node lb", 0, r"2 ports, 1 services, 1 servers, 1 lips"),
    ("what the host should be set to", "fnat boot-profile $CONFIG --node lb --dry-run", 0, r"pages of 2 MiB for 20000 conn"),
    ("it runs", START, 0, r"port wan is wan: native XDP"),
    ("the other names", "fnat-ipvsadm -ln", 0, r"10\.0\.0\.100:80 wrr"),
    ("dpip", "fnat-dpip addr show", 0, r"10\.0\.0\.100"),
    ("a packet goes through", "$PYTHON $OUT/syn.py", 0, r"192\.168\.100\.200 -> 192\.168\.100\.2:8080 S"),
]  # fmt: skip
KILLED: list[tuple[str, str, int, str]] = [
    ("stopped, nothing is left on the NICs", "fnat stop && ip -o link", 0, r"\A(?!.*xdp)"),
    ("again, and killed", START + "; kill -9 $(grep -o '[0-9]*' $STATE/pids.json); sleep 0.5; ip -o link | grep -c xdp", 0, r"\b2\n\Z"),
    ("stop --clean takes what it left", "fnat stop --clean && ip -o link", 0, r"\A(removed the XDP program .*\n){2}(?!.*xdp)"),
    ("the second time there is nothing to do", "fnat stop --clean", 3, r"not running"),
    ("no memory stays", "ls /dev/shm | grep fnat-", 1, r"\A\Z"),
]  # fmt: skip
PACKAGE: list[tuple[str, str, int, str]] = [
    ("it installs", "dpkg -i /root/fnat.deb", 0, r"Setting up fnat"),
    ("a file without ports is refused in one line", "fnat run --config /etc/fnat/fnat.toml", 2, r"\Afnat: no port to serve;.*\n\Z"),
    *USED,
    ("the names of DPVS, where they are wanted", "PATH=/usr/lib/fnat/compat:$PATH; dpip addr show && ipvsadm -ln", 0, r"10\.0\.0\.100:80 wrr"),
    *KILLED,
    ("an edited file stays", "echo '# mine' >>/etc/fnat/fnat.toml; dpkg -i /root/fnat.deb && grep mine /etc/fnat/fnat.toml", 0, r"# mine"),
    ("removed while it runs", START + "; dpkg -r fnat; ip -o link | grep xdp; ls /dev/shm | grep fnat-; ps ax | grep '[f]nat run'", 1, r"Removing fnat"),
    ("nothing of it in /usr", "ls -d /usr/lib/fnat /usr/bin/fnat* /lib/systemd/system/fnat*", 2, r"\A(ls: cannot access .*\n)+\Z"),
    ("file and state stay", "ls /etc/fnat/fnat.toml /var/lib/fnat/state.json", 0, r"state"),
    ("purged", "dpkg -P fnat && ls -d /etc/fnat /var/lib/fnat /run/fnat", 2, r"(ls: cannot access .*\n){3}\Z"),
]  # fmt: skip


@dataclass
class Place:
    """Where fnat is installed: how a shell is started there, and what came of each command."""

    out: Path
    results: dict[str, tuple[int, str]]


def run_there(shell: list[str], rows: list[tuple[str, str, int, str]], out: Path, settings: dict[str, str]) -> Place:
    """All commands, one after another, in one shell in new namespaces."""
    lines = ["ip link set lo up"]
    for number, (_, command, _, _) in enumerate(rows):
        lines.append(f"( {command} ) >$OUT/{number}.txt 2>&1 </dev/null; echo $? >$OUT/{number}.rc")
    out.mkdir(exist_ok=True)
    (out / "syn.py").write_text(SYN)
    (out / "fnat.toml").write_text(CONFIG)
    (out / "script").write_text("\n".join(lines) + "\n")
    words = [shutil.which("unshare") or "unshare", "-n", "-m", "-p", "-f", "--mount-proc", "--kill-child", *shell]
    subprocess.run(words, check=False, env=settings, timeout=240, start_new_session=True, stdin=subprocess.DEVNULL)
    return Place(out, {r[0]: (int((out / f"{i}.rc").read_text()), (out / f"{i}.txt").read_text()) for i, r in enumerate(rows)})


def make(target: str) -> None:
    words = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    subprocess.run(["make", "-s", target], cwd=ROOT, check=True, env=words, capture_output=True, timeout=600)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A virtual environment made from the bundle alone."""
    make("bundle")
    home = tmp_path_factory.mktemp("wheels")
    tools, venv = home / "tools", home / "venv"
    tools.mkdir()
    for name in TOOLS:
        if found := shutil.which(name):
            (tools / name).symlink_to(found)
    python = Path(sys.base_prefix) / "bin" / f"python{sys.version_info[0]}.{sys.version_info[1]}"
    install = f"{python} -m venv {venv} && $PYTHON -m pip install -q --no-index --find-links {ROOT}/dist/wheels fnat"
    rows = [("it installs", install, 0, ""), *USED, *KILLED]
    state = home / "state"
    settings = {
        "PATH": f"{venv}/bin:{tools}",
        "PYTHON": f"{venv}/bin/python",
        "OUT": str(home / "out"),
        "CONFIG": str(home / "out" / "fnat.toml"),
        "STATE": str(state),
        "FNAT_SOCKET": str(state / "fnat.sock"),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_CONFIG_FILE": "/dev/null",
    }
    rows = [(a, re.sub(r"fnat (run|stop)", r"fnat \1 --state-dir $STATE", b), c, d) for a, b, c, d in rows]
    script = f"{shutil.which('mount')} -t sysfs sys /sys; . {home}/out/script"  # which NICs there are is asked there
    return run_there(["/bin/sh", "-c", script], rows, home / "out", settings)


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A Debian 12 of its own; the package is what `make deb` has made."""
    root = tmp_path_factory.mktemp("debian") / "root"
    root.mkdir()
    if not DEBIAN.exists():
        words = ["debootstrap", "--variant=minbase", f"--include={DEBIAN_PACKAGES}", "bookworm", str(root)]
        subprocess.run(words, check=True, capture_output=True, timeout=900)
        subprocess.run(["tar", "-C", str(root), "-cf", str(DEBIAN), "."], check=True)
    else:
        subprocess.run(["tar", "-C", str(root), "-xf", str(DEBIAN)], check=True)
    shutil.copy(next(ROOT.glob("dist/fnat_*_amd64.deb")), root / "root" / "fnat.deb")
    mounts = "mount -t proc proc /proc; mkdir -p /dev/shm /dev/net; mount -t tmpfs tmpfs /dev/shm; [ -e /dev/net/tun ] || mknod /dev/net/tun c 10 200"
    (root / "mounts").write_text(mounts + "; mount -t sysfs sys /sys; . /out/script\n")
    settings = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "PYTHON": "/usr/lib/fnat/bin/python3",
        "OUT": "/out",
        "CONFIG": "/out/fnat.toml",
        "STATE": "/var/lib/fnat",
        "DEBIAN_FRONTEND": "noninteractive",
    }
    yield run_there(["chroot", str(root), "/bin/sh", "/mounts"], PACKAGE, root / "out", settings)
    shutil.rmtree(root, ignore_errors=True)


def holds(place: Place, row: tuple[str, str, int, str]) -> None:
    name, command, code, expected = row
    assert place.results[name][0] == code, (command, place.results[name])
    assert re.search(expected, place.results[name][1], re.S), (command, place.results[name])


@pytest.mark.parametrize("row", [("it installs", "pip", 0, r"\A\Z"), *USED, *KILLED], ids=lambda row: row[0])
def test_from_wheels(wheels: Place, row: tuple[str, str, int, str]) -> None:
    holds(wheels, row)


@pytest.mark.deb
@pytest.mark.parametrize("row", PACKAGE, ids=lambda row: row[0])
def test_from_the_package(debian: Place, row: tuple[str, str, int, str]) -> None:
    holds(debian, row)
