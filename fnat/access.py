"""Who may do what by the API: callers, their roles, their tokens, and the one gate that every request passes.

    unix socket   the peer's uid as the kernel says it (SO_PEERCRED); the file's mode lets in root and `group`: admin
    TLS, token    Authorization: Bearer TOKEN; its role stands in the tokens file
    TLS, cert     the common name of a certificate of client_ca; its role stands in [api.clients]

Reading needs any role, every other method needs admin, and so does the audit log. The gate also bounds the body, and
puts on disk what was asked for and refused before the refusal is sent; what was made is put there by Control.

Unsatisfying: SHA-256 without salt is right for tokens of 256 random bits only, so tokens cannot be chosen.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from fnat.audit import Audit
from fnat.errors import ChangeError, ConfigError, FnatError
from fnat.model import Api, Role

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

log = logging.getLogger("fnat.access")

READING = ("GET", "HEAD", "OPTIONS")
FOR_ADMINS = ("/v1/audit",)  # reading these needs admin, too
PROBLEM = "application/problem+json"
TRUNCATE = 512  # bytes of a path in the audit log


class Peer(NamedTuple):
    """The other end of a connection, as the listener knows it. uid None: by TLS, common_name of its certificate."""

    remote: str
    uid: int | None = None
    common_name: str | None = None


@dataclass(frozen=True)
class Caller:
    """name: uid:N, token:NAME or cert:CN."""

    name: str
    role: Role
    remote: str


@dataclass
class Asked:
    """A request on its way. recorded: it is in the audit log already; note: what it did that is no change."""

    caller: Caller
    method: str
    path: str
    recorded: bool = False
    code: str | None = None
    note: str | None = None

    def as_json(self) -> dict[str, str]:
        return {
            "who": self.caller.name,
            "from": self.caller.remote,
            "what": f"{self.method} {self.path[:TRUNCATE]}",
            **({"note": self.note} if self.note else {}),
        }


ASKED: ContextVar[Asked | None] = ContextVar("asked", default=None)
"""The request that is being answered; None: fnat acts by itself."""


class Token(NamedTuple):
    name: str
    role: Role
    digest: str
    created: str


class Tokens:
    """The tokens file: a line for each token, NAME ROLE SHA256 CREATED. It is read again when it has changed, so that
    a revoked token is refused from the next request on."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._seen: tuple[int, int, int] | None = None
        self._tokens: dict[str, Token] = {}

    def all(self) -> list[Token]:
        """Raises ConfigError."""
        try:
            with self.path.open(encoding="ascii") as file:
                state = os.fstat(file.fileno())
                seen = state.st_mtime_ns, state.st_size, state.st_ino
                if seen != self._seen:
                    if state.st_mode & 0o022:
                        raise ConfigError("FN-1607", f"{self.path} may be written by others", f"chmod 600 {self.path}")
                    self._tokens = {token.digest: token for token in self._parse(file.read())}
                    self._seen = seen
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "not ASCII text"
            raise ConfigError("FN-1607", f"{self.path}: {why}", "make a token with `fnat token add`") from None
        return list(self._tokens.values())

    def find(self, secret: str) -> Token | None:
        self.all()
        return self._tokens.get(_digest(secret))

    def add(self, name: str, role: Role) -> str:
        """The new token; it is nowhere but in the answer."""
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", name):
            raise FnatError("FN-1201", f"{name!r} is not a name", "use up to 64 letters, digits, or . _ -")
        known = self.all() if self.path.exists() else []
        if any(token.name == name for token in known):
            raise FnatError("FN-1204", f"there is a token {name} already", "revoke it first, or use another name")
        secret = f"fnat_{secrets.token_urlsafe(32)}"
        created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._write([*known, Token(name, role, _digest(secret), created)])
        return secret

    def revoke(self, name: str) -> None:
        known = self.all()
        left = [token for token in known if token.name != name]
        if len(left) == len(known):
            names = ", ".join(token.name for token in known) or "none"
            raise FnatError("FN-1203", f"there is no token {name}", f"there are: {names}")
        self._write(left)

    def _parse(self, text: str) -> Iterator[Token]:
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip() or line.startswith("#"):
                continue
            match line.split():
                case [name, ("read-only" | "admin") as role, digest, created] if re.fullmatch("[0-9a-f]{64}", digest):
                    yield Token(name, role, digest, created)
                case _:
                    raise ConfigError("FN-1607", f"{self.path}:{number} is no token", "remove the line")

    def _write(self, tokens: list[Token]) -> None:
        new = self.path.with_name(self.path.name + ".new")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as file:
                file.write("".join(f"{' '.join(token)}\n" for token in tokens))
                file.flush()
                os.fsync(file.fileno())
            new.replace(self.path)
        except OSError as error:
            raise FnatError(
                "FN-1607", f"{self.path}: {error.strerror}", "run as root, or give another --file"
            ) from None


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


class Access:
    """Knows callers by the settings of [api]."""

    def __init__(self, api: Api) -> None:
        self.use(api)

    def use(self, api: Api) -> None:
        self.api = api
        self._tokens = Tokens(api.tokens) if api.tokens else None

    def caller(self, scope: Scope) -> Caller:
        """Raises ChangeError(401 or 403)."""
        peer: Peer | None = scope.get("state", {}).get("peer")
        if peer is None:
            return Caller("in-process", "admin", "in-process")
        if peer.uid is not None:
            return Caller(f"uid:{peer.uid}", "admin", peer.remote)
        offered = next((value for name, value in scope["headers"] if name == b"authorization"), b"").decode("latin-1")
        if offered:
            scheme, _, secret = offered.partition(" ")
            token = self._tokens.find(secret.strip()) if self._tokens and scheme.lower() == "bearer" else None
            if token is None:
                raise ChangeError(401, "FN-1601", "this token is not known", "make one with `fnat token add`")
            return Caller(f"token:{token.name}", token.role, peer.remote)
        if peer.common_name is not None:
            role = self.api.clients.get(peer.common_name)
            if role is None:
                message = f"the certificate of {peer.common_name!r} has no role"
                raise ChangeError(403, "FN-1602", message, "name it in [api.clients]")
            return Caller(f"cert:{peer.common_name}", role, peer.remote)
        raise ChangeError(401, "FN-1601", "who are you?", "send Authorization: Bearer TOKEN, or use a certificate")


def check_role(caller: Caller, method: str, path: str) -> None:
    """Raises ChangeError(403)."""
    if caller.role != "admin" and (method not in READING or path in FOR_ADMINS):
        raise ChangeError(403, "FN-1602", f"{caller.name} may only read", "ask with a token or certificate of an admin")


class Gate:
    """ASGI middleware: identity, role, size of the body, audit."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], access: Access, audit: Audit) -> None:
        self.app = app
        self.access = access
        self.audit = audit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        method, path, most = scope["method"], scope["path"], self.access.api.max_body
        asked: Asked | None = None
        try:
            asked = Asked(self.access.caller(scope), method, path)
            check_role(asked.caller, method, path)
            if most < _length(scope):
                raise ChangeError(413, "FN-1604", *too_large(most))
        except FnatError as error:
            await self._refuse(scope, receive, send, error, asked)
            return
        taken = 0

        async def bounded() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > most:
                raise HTTPException(413)
            return message

        async def recorded(message: Message) -> None:
            if message["type"] == "http.response.start" and method not in READING and not asked.recorded:
                asked.recorded = True
                result = {"status": message["status"], "code": asked.code}
                try:
                    await _in_thread(self.audit.write, {**asked.as_json(), **result})
                except FnatError as error:  # nothing was changed, else Control would have refused
                    log.error("not in the audit log: %s", error)
            await send(message)

        scope.setdefault("state", {})["caller"] = asked.caller
        before = ASKED.set(asked)
        try:
            await self.app(scope, bounded, recorded)
        finally:
            ASKED.reset(before)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send, error: FnatError, asked: Asked | None) -> None:
        if asked is None:
            peer: Peer = scope["state"]["peer"]
            asked = Asked(Caller("unknown", "read-only", peer.remote), scope["method"], scope["path"])
        record = {**asked.as_json(), "status": error.status, "code": error.code}
        with contextlib.suppress(FnatError):  # it is refused in any case
            await _in_thread(self.audit.note, record)
        await problem(error)(scope, receive, send)


def too_large(most: int) -> tuple[str, str]:
    return f"the body has more than {most} bytes", "send less at once, or raise max_body in [api]"


def problem(error: FnatError, headers: dict[str, str] | None = None) -> JSONResponse:
    """The error as an answer (RFC 9457)."""
    extra = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "1"}}.get(error.status, {})
    if (asked := ASKED.get()) is not None:
        asked.code = error.code
    return JSONResponse(error.as_json(), error.status, {**(headers or {}), **extra}, PROBLEM)


def _length(scope: Scope) -> int:
    text = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
    return int(text) if text.isdigit() else 0


async def _in_thread(function: Callable[[dict[str, Any]], None], record: dict[str, Any]) -> None:
    await asyncio.to_thread(function, record)
