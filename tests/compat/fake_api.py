"""A stand-in for the running fnat: it serves canned resources on a unix socket and remembers the changes it gets."""

from __future__ import annotations

import json
import socketserver
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qsl, urlsplit


class FakeApi(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """`resources`: path -> JSON value, or text for /metrics. A change of port "none" is refused."""

    daemon_threads = True

    def __init__(self, path: str) -> None:
        super().__init__(path, _Handler)
        self.path = path
        self.resources: dict[str, Any] = {}
        self.changes: list[Any] = []
        self.dry_runs = 0
        self.asked: list[tuple[str, dict[str, str]]] = []


class _Handler(BaseHTTPRequestHandler):
    server: FakeApi

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = dict(parse_qsl(url.query))
        self.server.asked.append((url.path, query))
        if url.path == "/v1/conns/count":
            self.answer(200, {"conns": sum(map(len, self.server.resources["/v1/conns"]))})
        elif url.path == "/v1/conns":
            pages = [[c for c in page if self.asked_for(c, query)] for page in self.server.resources[url.path]]
            page = int(query.get("cursor", "0"))
            self.answer(200, {"conns": pages[page], "next": str(page + 1) if page + 1 < len(pages) else None})
        else:
            self.answer(200, self.server.resources[url.path])

    @staticmethod
    def asked_for(conn: dict[str, Any], query: dict[str, str]) -> bool:
        return all(str(conn[key]) == value for key, value in query.items() if key in ("cip", "cport"))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/v1/conns/kill":
            self.server.changes.append(body)
            self.answer(200, {"ended": 2})
            return
        if any(change.get("port") == "none" for change in body["changes"]):
            self.answer(404, {"code": "FN-1207", "detail": "no port none", "fix": "there are: dpdk0"})
            return
        self.server.dry_runs += body["dry_run"]
        self.server.changes += body["changes"]
        self.answer(200, {"applied": len(body["changes"]), "snapshot": 7})

    def answer(self, status: int, value: Any) -> None:
        body = value.encode() if isinstance(value, str) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return "unix"

    def log_message(self, *_: object) -> None:
        pass
