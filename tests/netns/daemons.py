"""What the real servers run besides nginx, sink and echo: TLS, HTTP/3, DNS, ssh, iperf3; each of them on both families.

`start(top)` starts all of it in each server's namespace; keys and certificate are the same on both, as behind any balancer.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from topology import RealServer, Topology, wait_until

HTTPS, QUIC, DNS, SSH, IPERF = 443, 4433, 53, 22, 5201
NAME = "service.test"

_TLS = """
    server {{{{
        listen 443 ssl http2; listen [::]:443 ssl http2; root {{directory}}/www; server_name {name};
        ssl_certificate {keys}/certificate.pem; ssl_certificate_key {keys}/key.pem;
        location / {{{{ default_type text/plain; return 200 "{{name}}\\n"; }}}}
        location /file {{{{ }}}}
    }}}}
"""

_SSHD = """
Port 22
HostKey {keys}/host
AuthorizedKeysFile {keys}/user.pub
PidFile {directory}/sshd.pid
PermitRootLogin yes
StrictModes no
UsePAM no
SetEnv SERVER={name}
"""


def make_keys(directory: Path) -> None:
    """A certificate for NAME, the server's and the user's ssh keys."""
    directory.mkdir()
    certificate = ["-keyout", directory / "key.pem", "-out", directory / "certificate.pem", "-days", "2"]
    names = ["-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME}"]
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    commands = [["openssl", "req", "-x509", *curve, *certificate, *names]]
    commands += [["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / name] for name in ("host", "user")]
    for command in commands:
        subprocess.run(command, check=True, capture_output=True)


def start(top: Topology) -> Path:
    """All of it, and nginx, sink and echo; the directory of the keys."""
    keys = top.directory / "keys"
    make_keys(keys)
    Path("/run/sshd").mkdir(exist_ok=True)  # sshd's compiled-in directory for privilege separation
    top.start_servers(more=_TLS.format(keys=keys, name=NAME))
    quic = str(Path(__file__).with_name("quic.py"))
    for server in top.servers:
        config = server.directory / "sshd_config"
        config.write_text(_SSHD.format(keys=keys, directory=server.directory, name=server.name))
        top.spawn(server.name, "/usr/sbin/sshd", "-D", "-e", "-f", str(config))
        dns = ["--no-resolv", "--no-hosts", "--user=root", f"--txt-record=who.test,{server.name}", "--pid-file="]
        dns += [f"--txt-record=large.test,{','.join(['x' * 200] * 12)}", "--edns-packet-max=4096"]
        top.spawn(server.name, "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--local=/test/", *dns)
        top.spawn(server.name, "iperf3", "-s", "-p", str(IPERF))
        files = (str(keys / "certificate.pem"), str(keys / "key.pem"))
        top.spawn(server.name, sys.executable, quic, "serve", str(QUIC), *files, server.name)
    wait_until(
        lambda: all(serves(top, server) for server in top.servers), "TLS, HTTP/3, DNS, ssh and iperf3 listen", 20
    )
    return keys


def serves(top: Topology, server: RealServer) -> bool:
    listening = top.run(server.name, "ss", "-Hltun").stdout
    return all(f":{port} " in listening for port in (HTTPS, QUIC, DNS, SSH, IPERF))
