"""The API as it is served: real sockets, TLS, tokens and certificates, roles, limits, events on the wire."""

import asyncio
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
import trustme
from test_api import ADD, PROBLEM, House, wait_until

from fnat import api, listener
from fnat.access import READING, Access, Tokens
from fnat.client import Client
from fnat.errors import ConfigError, EngineError, FnatError, NotRunning, PrivilegeError
from fnat.model import Api
from tests.fakes import COUNTERS

QUICK = listener.Patience(handshake=0.5, header=0.5, body=0.8, idle=1)
JSON = {"Content-Type": "application/json"}
NEVER = ("/v1/events",)  # it has no end


class Served:
    """A house whose API is served in a thread, by the unix socket and by TLS."""

    def __init__(self, directory, patience=QUICK, **settings):
        self.patience = patience
        self.house = House(directory)
        self.ca = trustme.CA()
        self.files = {name: directory / name for name in ("cert", "key", "ca", "tokens")}
        self.certify("127.0.0.1")
        self.ca.cert_pem.write_to_path(self.files["ca"])
        tokens = Tokens(self.files["tokens"])
        self.tokens = {role: tokens.add(f"a-{role}", role) for role in ("read-only", "admin")}
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        named = {"cert": "cert", "key": "key", "client_ca": "ca", "tokens": "tokens"}
        files = {field: str(self.files[name]) for field, name in named.items()}
        clients = {"reader": "read-only", "boss": "admin"}
        self.api = Api(**{"listen": f"127.0.0.1:{self.port}", **files, "clients": clients, **settings})
        self.path = directory / "sock"
        self.listening = api.listen(self.path)
        self.access = Access(self.api)
        self.app = api.create_app(self.house.control, COUNTERS, self.access)
        self.ready = threading.Event()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=lambda: self.loop.run_until_complete(self.run()))
        self.thread.start()
        assert self.ready.wait(10)

    def certify(self, *names, common_name=None):
        leaf = self.ca.issue_cert(*names, common_name=common_name)
        leaf.private_key_pem.write_to_path(self.files["key"])
        for n, blob in enumerate(leaf.cert_chain_pems):
            blob.write_to_path(self.files["cert"], append=n > 0)

    async def run(self):
        self.stop = asyncio.Event()
        self.remote = listener.Remote(self.app, self.patience)
        await self.remote.open(self.api)
        server = listener.Server(self.app, self.api.connections, patience=self.patience, grace=1)
        task = asyncio.create_task(server.serve([self.listening]))
        self.ready.set()
        await self.stop.wait()
        server.should_exit = True
        await asyncio.gather(task, self.remote.close())

    def open(self, api):
        return asyncio.run_coroutine_threadsafe(self.remote.open(api), self.loop).result(10)

    def close(self):
        self.loop.call_soon_threadsafe(self.stop.set)
        self.thread.join(20)
        self.loop.close()

    def remotely(self, who=None):
        return Client(url=f"https://127.0.0.1:{self.port}", token=self.tokens.get(who), ca=self.files["ca"], timeout=10)

    def by_certificate(self, directory, name):
        leaf = self.ca.issue_cert("client.example", common_name=name)
        path = directory / f"{name}.pem"
        leaf.private_key_and_cert_chain_pem.write_to_path(path)
        return Client(url=f"https://127.0.0.1:{self.port}", ca=self.files["ca"], cert=(str(path), str(path)))

    def local(self):
        return Client(self.path, timeout=10)

    def raw(self):
        end = socket.socket(socket.AF_UNIX)
        end.settimeout(10)
        end.connect(str(self.path))
        return end


@pytest.fixture
def served(tmp_path):
    served = Served(tmp_path)
    yield served
    served.close()


# ---- who ----


def test_the_owner_of_the_socket_is_known_by_uid(served):
    with served.local() as client:
        client.change(ADD)
        (record,) = client.audit()
    assert record["who"] == f"uid:{os.getuid()}" and record["from"] == f"unix pid {os.getpid()}"


def test_tokens_and_certificates_have_roles(served, tmp_path):
    for client, name, may in (
        (served.remotely("admin"), "token:a-admin", True),
        (served.remotely("read-only"), "token:a-read-only", False),
        (served.by_certificate(tmp_path, "boss"), "cert:boss", True),
        (served.by_certificate(tmp_path, "reader"), "cert:reader", False),
    ):
        with client:
            assert client.services() == []
            if may:
                client.change(ADD)
                client.delete_service("tcp", "10.0.0.1", 80)
                client.delete("/v1/addresses/10.0.0.1")
            else:
                with pytest.raises(PrivilegeError) as caught:
                    client.change(ADD)
                assert caught.value.code == "FN-1602"
        with served.local() as owner:
            record = owner.audit()[-1]
            assert record["who"] == name and record["from"].startswith("127.0.0.1:")
            assert record["status"] == (200 if may else 403)


# headers, what else, status
STRANGERS = [
    ("nobody", {}, 401),
    ("a wrong token", {"Authorization": "Bearer fnat_wrong"}, 401),
    ("an empty one", {"Authorization": "Bearer"}, 401),
    ("another scheme", {"Authorization": "Basic YTpi"}, 401),
    ("no scheme", {"Authorization": "TOKEN"}, 401),
    ("not ASCII", {"Authorization": "Bearer ÿþ".encode("latin-1")}, 401),
]


@pytest.mark.parametrize(("headers", "status"), [r[1:] for r in STRANGERS], ids=[r[0] for r in STRANGERS])
def test_strangers_are_refused_everything(served, headers, status):
    if headers.get("Authorization") == "TOKEN":
        headers = {"Authorization": served.tokens["admin"]}
    with served.remotely() as client:
        for method, path in (("GET", "/v1/status"), ("GET", "/metrics"), ("GET", "/nowhere"), ("POST", "/v1/changes")):
            answer = client._http.request(method, path, headers=headers)
            assert answer.status_code == status and set(answer.json()) == PROBLEM
            assert answer.headers["www-authenticate"] == "Bearer" and answer.json()["code"] == "FN-1601"


def test_certificates_that_do_not_count(served, tmp_path):
    with served.by_certificate(tmp_path, "visitor") as client, pytest.raises(PrivilegeError, match="visitor"):
        client.status()
    served.ca = trustme.CA()
    with served.by_certificate(tmp_path, "boss") as client, pytest.raises(FnatError):
        client.status()


def test_every_page_that_changes_something_needs_an_admin(served):
    """Of all pages, also those that others add: the OpenAPI document says which there are."""
    document = served.app.openapi()
    seen = 0
    with served.remotely("read-only") as reader, served.remotely("admin") as admin:
        for path, page in document["paths"].items():
            for method in page:
                where = path.replace("{proto}", "tcp").replace("{plen}", "8").replace("{metric}", "0")
                where = where.replace("{service}", "10.0.0.1:80").replace("{server}", "10.1.1.1:80")
                where = where.replace("{network}", "10.0.0.0").replace("{port}", "wan")
                where = "/".join("10.0.0.1" if part.startswith("{") else part for part in where.split("/"))
                if method.upper() in READING and path in NEVER:
                    continue
                answer = reader._http.request(method, where)
                forbidden = method.upper() not in READING or path == "/v1/audit"
                assert (answer.status_code == 403) == forbidden, (method, path, answer.text)
                assert admin._http.request(method, where).status_code not in (401, 403), (method, path)
                seen += 1
    assert seen > 25


def test_a_revoked_token_ends_at_once(served):
    with served.remotely("admin") as client:
        client.status()
        Tokens(served.files["tokens"]).revoke("a-admin")
        with pytest.raises(PrivilegeError):
            client.status()


def test_tokens_are_not_in_their_file_and_the_file_is_private(served):
    text = served.files["tokens"].read_text()
    assert served.tokens["admin"] not in text and served.files["tokens"].stat().st_mode & 0o077 == 0
    served.files["tokens"].chmod(0o666)
    served.files["tokens"].write_text(text + "#\n")
    with served.remotely("admin") as client, pytest.raises(FnatError, match="written by others"):
        client.status()


def test_tls_only(served):
    with pytest.raises(ConfigError, match="https"):
        Client(url=f"http://127.0.0.1:{served.port}")
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"http://127.0.0.1:{served.port}/v1/status", timeout=5)
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.load_verify_locations(served.files["ca"])
    old.set_ciphers("DEFAULT@SECLEVEL=0")
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    with socket.create_connection(("127.0.0.1", served.port)) as plain, pytest.raises((ssl.SSLError, ConnectionError)):
        old.wrap_socket(plain, server_hostname="127.0.0.1")
    with Client(url=f"https://127.0.0.1:{served.port}", token="x") as client:
        with pytest.raises(PrivilegeError, match="FNAT_CA"):
            client.status()


def test_certificates_are_read_anew_while_a_request_goes_on(served):
    with served.remotely("admin") as before, served.remotely("admin") as after:
        stream = before.events()
        served.certify("127.0.0.1", "renewed.example")
        first = threading.Thread(target=lambda: (time.sleep(0.3), change_now(served)))
        first.start()
        assert next(stream)["data"]["resources"]
        first.join()
        served.open(served.api)
        peer = ssl.get_server_certificate(("127.0.0.1", served.port), ca_certs=served.files["ca"])
        assert (
            peer
            == served.files["cert"].read_text().split("-----END CERTIFICATE-----")[0] + "-----END CERTIFICATE-----\n"
        )
        assert after.status()
        change_now(served)
        assert next(stream)["data"]["resources"], "nothing is missed"


def change_now(served):
    return served.house.control.edit(lambda c: c.model_copy(update={"down": () if "wan" in c.down else ("wan",)}))


def test_a_wrong_certificate_changes_nothing(served):
    served.files["cert"].write_text("nonsense")
    with pytest.raises(ConfigError) as caught:
        served.open(served.api)
    assert caught.value.code == "FN-1606" and "\n" not in str(caught.value)
    with served.remotely("admin") as client:
        assert client.status()
    served.open(Api())
    with served.remotely("admin") as client:
        wait_until(lambda: not answers(client))
        with pytest.raises(NotRunning):
            client.status()


# ---- how much, how long, how many ----


def test_an_oversized_body_is_refused_before_it_is_read(tmp_path):
    served = Served(tmp_path, max_body=2000)
    try:
        with served.local() as client:
            for body in (b"x" * 2001, iter([b"x" * 1500, b"x" * 1500])):
                answer = client._http.post("/v1/changes", content=body)
                assert answer.status_code == 413 and answer.json()["code"] == "FN-1604", answer.text
            assert (
                client._http.post("/v1/changes", content=b" " * 1900 + b'{"changes":[]}', headers=JSON).status_code
                == 200
            )
        with served.raw() as end:
            end.sendall(b"POST /v1/changes HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999\r\n\r\n")
            assert end.recv(4096).startswith(b"HTTP/1.1 413"), "nothing of the body was awaited"
    finally:
        served.close()


def test_twenty_thousand_services_in_one_request_pass(tmp_path):
    """As large as they can be written; only asked for, since this plane has no room for them."""
    changes = []
    for n in range(20_000):
        name = {"proto": "tcp", "vip": f"10.{100 + n // 10_000}.{n // 100 % 100}.{n % 100 + 100}", "vport": 50_000}
        changes.append({"op": "service.add", **name})
        changes.append({"op": "lip.add", "service": name, "addr": "10.131.101.101", "port": "lan"})
        changes += [
            {"op": "server.add", "service": name, "rip": f"10.131.{rs + 100}.111", "rport": 58_080, "weight": 100}
            for rs in range(8)
        ]
    served = Served(tmp_path, listener.Patience())
    try:
        with Client(served.path, timeout=200) as client:
            assert client.change(changes, dry_run=True)["applied"] == 200_000
    finally:
        served.close()


# sentence, what is sent (piece by piece, 0.1 s between), seconds until it is cut at most, whether an answer comes
SLOW = [
    ("nothing at all", [], 1.5, False),
    ("half a header", [b"GET /v1/status HTT"], 1.5, False),
    ("a header that drips", [b"GET /v1/status HTTP/1.1\r\n"] + [b"x: y\r\n"] * 40, 1.5, False),
    ("half a body", [b"POST /v1/changes HTTP/1.1\r\nhost: x\r\ncontent-length: 50\r\n\r\n{"], 2.0, False),
    ("a body that drips", [b"POST /v1/changes HTTP/1.1\r\nhost: x\r\ncontent-length: 50\r\n\r\n"] + [b"{"] * 40, 2.0, False),
    ("silence after an answer", [b"GET /v1/status HTTP/1.1\r\nhost: x\r\n\r\n"], 2.5, True),
    ("half a second request", [b"GET /v1/status HTTP/1.1\r\nhost: x\r\n\r\n", b"GET"], 2.5, True),
    ("no HTTP", [b"\x16\x03\x01\x00\x00\r\n\r\n"], 1.5, True),
]  # fmt: skip


@pytest.mark.parametrize(("pieces", "most", "answered"), [r[1:] for r in SLOW], ids=[r[0] for r in SLOW])
def test_half_open_connections_are_cut(served, pieces, most, answered):
    with served.raw() as end:
        began = time.monotonic()
        taken = b""
        try:
            for piece in pieces:
                end.sendall(piece)
                time.sleep(0.1)
            while data := end.recv(4096):
                taken += data
        except ConnectionError:
            pass
        assert time.monotonic() - began < most + 0.5
        assert taken.startswith(b"HTTP/1.1") == answered


def test_half_open_handshakes_are_cut(served):
    with socket.create_connection(("127.0.0.1", served.port)) as end:
        end.settimeout(5)
        began = time.monotonic()
        assert end.recv(10) == b"" and time.monotonic() - began < 3


def test_too_many_connections_are_told_so_and_leave_the_other_way_open(tmp_path):
    served = Served(tmp_path, connections=8)
    try:
        ends = []
        for _ in range(8):
            end = served.raw()
            end.sendall(b"GET /v1/events HTTP/1.1\r\nhost: x\r\n\r\n")
            assert end.recv(20)
            ends.append(end)
        with served.raw() as ninth:
            answer = ninth.recv(4096).decode()
            assert answer.startswith("HTTP/1.1 503") and "retry-after: 1" in answer and "FN-1605" in answer
        with served.local() as client, pytest.raises(EngineError, match="8 connections"):
            client.status()
        with served.remotely("admin") as client:
            assert client.status(), "the other way is free"
        for end in ends:
            end.close()
        with served.local() as client:
            wait_until(lambda: answers(client))
    finally:
        served.close()


def answers(client):
    try:
        return bool(client.status())
    except FnatError:
        return False


# ---- events ----


def test_events_on_the_wire_resume(served):
    with served.local() as client, served.remotely("read-only") as reader:
        stream = reader.events()
        threading.Thread(target=lambda: (time.sleep(0.3), client.change(ADD))).start()
        event = next(stream)
        assert event["event"] == "change" and event["data"]["who"] == f"uid:{os.getuid()}"
        client.patch_service("tcp", "10.0.0.1", 80, {"scheduler": "rr"})
        assert next(reader.events(last_id=event["id"]))["data"]["resources"] == ["service tcp 10.0.0.1:80"]
        assert next(reader.events(last_id="another-5"))["event"] == "reset"


def test_a_slow_reader_is_dropped_and_nobody_waits(served, monkeypatch):
    monkeypatch.setattr(api.Stream, "PATIENCE", 0.5)
    events = served.house.control.events
    with served.raw() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.sendall(b"GET /v1/events HTTP/1.1\r\nhost: x\r\n\r\n")
        slow.recv(1000)
        wait_until(lambda: len(events._readers) == 1)
        longest = 0.0
        for _ in range(400):
            began = time.monotonic()
            events.publish("change", {"text": "x" * 10_000})
            longest = max(longest, time.monotonic() - began)
            time.sleep(0.001)
        wait_until(lambda: not events._readers)
        assert longest < 0.5
    with served.local() as client:
        assert client.status()


def test_a_reader_whose_token_is_revoked_is_dropped(served, monkeypatch):
    monkeypatch.setattr(api.Stream, "BEAT", 0.2)
    with served.remotely("read-only") as reader:
        stream = reader._http.stream("GET", "/v1/events")
        with stream as answer:
            assert answer.status_code == 200
            Tokens(served.files["tokens"]).revoke("a-read-only")
            with pytest.raises(httpx.HTTPError):
                for _ in answer.iter_lines():
                    pass
    assert not served.house.control.events._readers


def test_a_change_is_on_disk_before_it_is_answered(served, monkeypatch):
    order = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd)))
    with served.local() as client:
        client.change(ADD)
        assert [os.path.basename(path) for path in order if "audit" in path] == ["audit.jsonl"]
        record = json.loads(served.house.paths.audit.read_text().splitlines()[-1])
        assert record["what"] == "POST /v1/changes"


def test_what_the_readme_says(served, monkeypatch):
    """Its lines for the shell and for Python, against this socket."""
    text = (Path(__file__).parents[2] / "README.md").read_text().split("### The API")[1].split("## Many cores")[0]
    shell, python = text.split("```")[1], text.split("```python")[1].split("```")[0]
    monkeypatch.setenv("FNAT_SOCKET", str(served.path))
    get, put = (line.split(" # ")[0].replace("/run/fnat/fnat.sock", str(served.path)) for line in shell.splitlines() if "curl" in line)
    made = subprocess.run(put, shell=True, capture_output=True, text=True, check=True).stdout
    assert json.loads(made)["servers"][0]["rip"] == "192.168.100.2", made
    got = subprocess.run(get, shell=True, capture_output=True, text=True, check=True).stdout
    assert json.loads(got) == json.loads(made)
    exec(python, {})
    with served.local() as client:
        assert client.get_service("tcp", "10.0.0.100", 80).value["scheduler"] == "rr"
    env = {"FNAT_URL": f"https://127.0.0.1:{served.port}", "FNAT_CA": str(served.files["ca"]), "FNAT_TOKEN": served.tokens["read-only"]}
    run = [sys.executable, "-m", "fnat", "service", "show", "--json"]
    shown = subprocess.run(run, env={**os.environ, "FNAT_SOCKET": "/nowhere", **env}, capture_output=True, text=True)
    assert json.loads(shown.stdout)[0]["vip"] == "10.0.0.100", shown.stderr
    del run[-1:]
    run[-1:] = ["add", "tcp", "10.0.0.9:80"]
    refused = subprocess.run(run, env={**os.environ, **env}, capture_output=True, text=True)
    assert refused.returncode == 1 and "may only read" in refused.stderr and "FN-1602" in refused.stderr
