"""The two ways to the API: the unix socket, and TCP with TLS. uvicorn does the HTTP; here is who the peer is, how long
and how many may keep us waiting, and how certificates are read anew while connections go on.

A connection has HEADER seconds for a request's header and BODY seconds for its body, however slowly bytes drip; a TLS
handshake has HANDSHAKE. Above `connections` a new one gets 503 and is closed. Each of the two ways counts its own, so
that nobody from outside can keep the operator on the machine out.

Unsatisfying: connections in their TLS handshake are not counted, only timed.
"""

from __future__ import annotations

import asyncio
import contextlib
import grp
import json
import os
import socket
import ssl
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from fnat import addresses
from fnat.access import Peer, Tokens
from fnat.errors import ConfigError, FnatError
from fnat.model import Api

GRACE = 30  # seconds that connections of before have to end, after certificates were read anew
BACKLOG = 1024


@dataclass(frozen=True)
class Patience:
    """Seconds."""

    handshake: float = 5.0
    header: float = 10.0
    body: float = 60.0
    idle: int = 5


class Server(uvicorn.Server):
    """uvicorn's, with bounds; it leaves signals to us."""

    def __init__(
        self,
        app: Any,  # noqa: ANN401, an ASGI application
        most: int,
        context: ssl.SSLContext | None = None,
        patience: Patience = Patience(),
        grace: int = 2,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                lifespan="off",
                ws="none",
                server_header=False,
                timeout_keep_alive=patience.idle,
                timeout_graceful_shutdown=grace,
            )
        )
        self.most = most
        self.context = context
        self.patience = patience

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        loop = asyncio.get_running_loop()
        handshake = self.patience.handshake if self.context else None
        self.servers = [
            await loop.create_server(
                lambda: _Connection(self), sock=sock, backlog=BACKLOG, ssl=self.context, ssl_handshake_timeout=handshake
            )
            for sock in sockets or ()
        ]
        self.started = True


class _Connection(H11Protocol):
    def __init__(self, server: Server) -> None:
        super().__init__(config=server.config, server_state=server.server_state, app_state={})
        self.bounds = server
        self.deadline: asyncio.TimerHandle | None = None
        self.waiting_for: object = None
        self.ending = asyncio.Event()  # an answer without end is to end

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {"peer": _peer(transport), "abort": transport.abort, "ending": self.ending}
        if len(self.connections) > self.bounds.most:
            error = FnatError("FN-1605", f"there are {self.bounds.most} connections already", "try again later")
            error.status = 503
            body = json.dumps(error.as_json()).encode()
            head = (
                "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\nretry-after: 1\r\n"
                f"connection: close\r\ncontent-length: {len(body)}\r\n\r\n"
            )
            transport.write(head.encode() + body)
            transport.close()
            return
        self._watch()

    def data_received(self, data: bytes) -> None:
        if not self.transport.is_closing():
            super().data_received(data)
            self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.deadline is not None:
            self.deadline.cancel()

    def shutdown(self) -> None:
        self.ending.set()
        super().shutdown()

    def _watch(self) -> None:
        """A deadline for what the client has to send next. It stays as it is while that is the same."""
        busy = self.cycle is not None and not self.cycle.response_complete
        awaited: object = None
        if self.conn.their_state is h11.SEND_BODY:
            awaited = h11.SEND_BODY
        elif not busy and self.timeout_keep_alive_task is None:
            awaited = h11.IDLE
        if awaited is self.waiting_for:
            return
        self.waiting_for = awaited
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None
        if awaited is not None:
            patience = self.bounds.patience
            seconds = patience.header if awaited is h11.IDLE else patience.body
            self.deadline = self.loop.call_later(seconds, self.transport.abort)


def _peer(transport: asyncio.Transport) -> Peer:
    end = transport.get_extra_info("socket")
    if end.family == socket.AF_UNIX:
        pid, uid, _ = struct.unpack("3i", end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return Peer(f"unix pid {pid}", uid)
    host, port = transport.get_extra_info("peername")[:2]
    secured = transport.get_extra_info("ssl_object")
    certificate = (secured.getpeercert() if secured is not None else None) or {}
    names = [value for part in certificate.get("subject", ()) for name, value in part if name == "commonName"]
    return Peer(addresses.endpoint(host, port), None, names[-1] if names else None)


class Remote:
    """The way by TCP. It opens as [api] says, and again when that, or a certificate, has changed."""

    def __init__(self, app: Any, patience: Patience = Patience()) -> None:  # noqa: ANN401
        self.app = app
        self.patience = patience
        self._api = Api()
        self._socket: socket.socket | None = None
        self._serving: dict[asyncio.Task[None], Server] = {}

    async def open(self, api: Api) -> None:
        """New connections are served so from now on. Raises ConfigError, and all stays as it was."""
        context = tls(api) if api.listen else None
        listening = self._socket
        if api.listen and (listening is None or api.listen != self._api.listen):
            listening = listen(api.listen)
        if listening is not self._socket and self._socket is not None:
            self._socket.close()
        self._api, self._socket = api, listening if api.listen else None
        for before in self._serving.values():
            before.should_exit = True
        if self._socket is not None:
            server = Server(self.app, api.connections, context, self.patience, GRACE)
            task = asyncio.create_task(server.serve([self._socket.dup()]))
            self._serving[task] = server
            task.add_done_callback(lambda done: self._serving.pop(done, None))

    async def close(self) -> None:
        for server in self._serving.values():
            server.should_exit = True
            server.config.timeout_graceful_shutdown = 2
        await asyncio.gather(*self._serving, return_exceptions=True)
        if self._socket is not None:
            self._socket.close()


def tls(api: Api) -> ssl.SSLContext:
    """Raises ConfigError when files of [api] cannot be used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    path = str(api.cert)
    try:
        context.load_cert_chain(path, api.key, password=lambda: "")
        if api.client_ca:
            path = api.client_ca
            context.load_verify_locations(path)
            context.verify_mode = ssl.CERT_OPTIONAL if api.tokens else ssl.CERT_REQUIRED
    except OSError as error:  # ssl.SSLError is one
        why = f"{error.strerror or error}"
        named = f"{path} or {api.key}" if path == api.cert else path
        raise ConfigError(
            "FN-1606", f"{named}: {why}", "give PEM files: cert with its chain, key without passphrase"
        ) from None
    if api.tokens:
        Tokens(api.tokens).all()
    return context


def listen(endpoint: str) -> socket.socket:
    """A listening socket. Raises ConfigError."""
    host, port = addresses.split(endpoint)
    family = {4: socket.AF_INET, 6: socket.AF_INET6}[addresses.family(host)]
    server = socket.socket(family, socket.SOCK_STREAM)
    try:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(host != "::"))
        server.bind((host, int(port)))
        server.listen(BACKLOG)
    except OSError as error:
        server.close()
        raise ConfigError(
            "FN-1003", f"cannot listen on {endpoint}: {error.strerror}", "change listen in [api]"
        ) from None
    return server


def admit(path: Path, group: str | None) -> None:
    """Let a group use the unix socket, beside its owner. Raises ConfigError."""
    try:
        os.chown(path, -1, grp.getgrnam(group).gr_gid if group else os.getegid())
        path.chmod(0o660 if group else 0o600)
    except (KeyError, OSError) as error:
        why = "there is no such group" if isinstance(error, KeyError) else error.strerror
        raise ConfigError("FN-1104", f"api.group: {group!r}: {why}", "make the group, or leave it out") from None


def check(api: Api) -> None:
    """What can be known of [api] before anything starts. Raises ConfigError."""
    if api.listen:
        tls(api)
    if api.group:
        try:
            grp.getgrnam(api.group)
        except KeyError:
            raise ConfigError(
                "FN-1104", f"api.group: there is no group {api.group!r}", "make it, or leave it out"
            ) from None
