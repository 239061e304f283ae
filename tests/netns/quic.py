"""HTTP/3 for the namespaces; runs as a program.

serve PORT CERTIFICATE KEY TEXT    answers every request with TEXT, or with as many bytes as its path says (/bytes/N)
get HOST PORT CERTIFICATE PATH     one request; a JSON report of the answer
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from collections import defaultdict
from typing import Any

from aioquic.asyncio import QuicConnectionProtocol, connect
from aioquic.asyncio import serve as quic_serve
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, H3Event, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import QuicEvent

NAME = "service.test"


class Talker(QuicConnectionProtocol):
    """Either end: events of HTTP/3 go to `heard`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.http = H3Connection(self._quic)

    def quic_event_received(self, event: QuicEvent) -> None:
        for one in self.http.handle_event(event):
            self.heard(one)
        self.transmit()

    def heard(self, event: H3Event) -> None:
        raise NotImplementedError


class Server(Talker):
    text = b""

    def heard(self, event: H3Event) -> None:
        if not isinstance(event, HeadersReceived):
            return
        path = dict(event.headers)[b":path"].decode()
        body = bytes(int(path.removeprefix("/bytes/"))) if path.startswith("/bytes/") else self.text
        self.http.send_headers(event.stream_id, [(b":status", b"200")])
        self.http.send_data(event.stream_id, body, end_stream=True)


class Client(Talker):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.status: dict[int, str] = {}
        self.body: dict[int, bytes] = defaultdict(bytes)
        self.done = asyncio.Event()

    def heard(self, event: H3Event) -> None:
        if isinstance(event, HeadersReceived):
            self.status[event.stream_id] = dict(event.headers)[b":status"].decode()
        elif isinstance(event, DataReceived):
            self.body[event.stream_id] += event.data
        if getattr(event, "stream_ended", False):
            self.done.set()

    async def get(self, path: str) -> dict[str, object]:
        stream = self._quic.get_next_available_stream_id()
        head = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", NAME.encode()), (b":path", path.encode())]
        self.http.send_headers(stream, head, end_stream=True)
        self.transmit()
        await asyncio.wait_for(self.done.wait(), 20)
        body = self.body[stream]
        return {
            "status": self.status[stream],
            "length": len(body),
            "sha256": hashlib.sha256(body).hexdigest(),
            "text": body[:80].decode("ascii", "replace"),
        }


async def serve(port: int, certificate: str, key: str, text: str) -> None:
    configuration = QuicConfiguration(is_client=False, alpn_protocols=H3_ALPN)
    configuration.load_cert_chain(certificate, key)
    Server.text = text.encode()
    await quic_serve("::", port, configuration=configuration, create_protocol=Server)
    await asyncio.Event().wait()


async def get(host: str, port: int, certificate: str, path: str) -> None:
    configuration = QuicConfiguration(is_client=True, alpn_protocols=H3_ALPN, server_name=NAME)
    configuration.load_verify_locations(certificate)
    async with connect(host, port, configuration=configuration, create_protocol=Client) as client:
        assert isinstance(client, Client)
        print(json.dumps(await client.get(path)))


if __name__ == "__main__":
    verb, *rest = sys.argv[1:]
    if verb == "serve":
        asyncio.run(serve(int(rest[0]), *rest[1:]))
    elif verb == "get":
        asyncio.run(get(rest[0], int(rest[1]), *rest[2:]))
