"""The API: HTTP with JSON. Its pages and shapes are in /v1/openapi.json; who may ask is in access.py, single resources
are in resources.py, what keeps connections from harm is in listener.py.

Every error is a problem (RFC 9457) with `code`, `fix`, and `field` where one is to blame, also for a body that does not
parse. Handlers are plain functions: the framework runs them in threads, so a change that waits for the workers delays
nobody else's reading.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Header, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException

from fnat import __version__, api_config, resources
from fnat.access import ASKED, Access, Gate, Receive, Scope, Send, problem, too_large
from fnat.control import Control
from fnat.description import WHEN, describe
from fnat.errors import ChangeError, FnatError
from fnat.events import Events
from fnat.model import (
    AclTest,
    AclView,
    AddressView,
    Api,
    AppliedView,
    ChangeRequest,
    Config,
    ConnCount,
    ConnFilter,
    ConnKill,
    ConnKilled,
    ConnPage,
    ConnQuery,
    HeadroomView,
    Ip,
    Key,
    NeighbourView,
    PortView,
    Proto,
    RouteView,
    ServiceView,
    SetPage,
    SetView,
    StatusView,
    WorkerView,
)
from fnat.refusals import refusal_of

log = logging.getLogger("fnat.api")


def create_app(
    control: Control, counter_names: Sequence[tuple[str, str, str]] | None = None, access: Access | None = None
) -> FastAPI:
    """The application over one control. counter_names None: those of the core. access None: nobody comes by TCP."""
    access = access or Access(Api())
    app = Application(
        title="fnat",
        version=__version__,
        summary="The control of a FullNAT layer-4 load balancer",
        docs_url=None,
        redoc_url=None,
        openapi_url="/v1/openapi.json",
        responses={int(status): {"description": text} for status, text in WHEN.items()},
    )
    app.add_middleware(Gate, access=access, audit=control.audit)
    app.include_router(resources.router(control))
    engine = control.engine
    digests = resources.Digests()

    @app.exception_handler(FnatError)
    async def failed(_: Request, error: FnatError) -> JSONResponse:
        return problem(error)

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        return problem(refusal_of(error.errors()[0]))

    @app.exception_handler(HTTPException)
    async def no_such_page(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 413:
            return problem(ChangeError(413, "FN-1604", *too_large(access.api.max_body)))
        message, fix = f"{request.method} {request.url.path}: {error.detail}", "see /v1/openapi.json"
        if error.status_code == 400:
            return problem(ChangeError(400, "FN-1201", message, fix))
        return problem(ChangeError(error.status_code, "FN-1608", message, fix), dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def broke(_: Request, error: Exception) -> JSONResponse:
        return problem(
            FnatError("FN-1309", f"unexpected {type(error).__name__}: {error}", "please report it with the log")
        )

    @app.post("/v1/changes")
    def make_changes(asked: Request, request: ChangeRequest, answer: Response) -> AppliedView:
        """All changes or none. Success: in force on every worker and on disk. The ETag is that of the whole
        configuration, as it is afterwards; If-Match takes it."""
        conditional = "if-match" in asked.headers or "if-none-match" in asked.headers

        def check(config: Config) -> None:
            if conditional:
                resources.check_conditions(asked, digests.etag(config, *resources.WHOLE))

        applied = control.change(request.changes, dry_run=request.dry_run, check=check)
        answer.headers["ETag"] = digests.etag(engine.config, *resources.WHOLE)
        return applied

    app.include_router(api_config.router(control))

    @app.get("/v1/services", response_model=list[ServiceView], responses=resources.NOT_MODIFIED)
    def services(
        request: Request,
        answer: Response,
        proto: Proto | None = None,
        vip: Ip | None = None,
        vport: PortNumberQuery = None,
    ) -> Any:  # noqa: ANN401, list[ServiceView] or a Response
        """Services in order of creation, with LIPs and RSs, counters and true rates per second. The ETag is a weak one:
        it stands for the configuration of all services, not for counters."""
        tag = f"W/{digests.etag(engine.config, 'services')}"
        if resources.unchanged(request, tag):
            return Response(status_code=304, headers={"ETag": tag})
        answer.headers["ETag"] = tag
        return engine.services(proto, vip, vport)

    @app.get("/v1/acl")
    def acl() -> AclView:
        """The general deny and allow list; those of a service are shown with it."""
        return engine.acl()

    @app.get("/v1/acl/test")
    def acl_test(addr: Ip, proto: Proto | None = None, vip: Ip | None = None, vport: PortNumberQuery = None) -> AclTest:
        """May this address open a connection to the service? Without one: do the general lists let it?"""
        key = Key(proto, vip, vport) if proto and vip and vport else None
        return engine.acl_test(addr, key)

    @app.get("/v1/sets")
    def sets() -> list[SetView]:
        return engine.sets()

    @app.get("/v1/sets/{name}")
    def set_page(
        name: str, start: Annotated[int, Query(ge=0)] = 0, limit: Annotated[int, Query(ge=1, le=65536)] = 8192
    ) -> SetPage:
        """Entries of a set in order; `next` null: the end."""
        return engine.set_page(name, start, limit)

    @app.get("/v1/sets/{name}/test")
    def set_test(name: str, addr: Ip) -> AclTest:
        """Is the address in the set, and by which entry?"""
        return engine.set_test(name, addr)

    @app.get("/v1/conns", response_model=ConnPage)
    def conns(
        query: Annotated[ConnQuery, Query()],
    ) -> Response:
        """A page of connections. `next` null: the end; a page may be empty before it."""
        page = engine.conns(**query.model_dump(exclude_none=True))
        return Response(json.dumps(page), media_type="application/json")  # as it is: there may be ten million rows

    @app.get("/v1/conns/count")
    def conn_count(query: Annotated[ConnFilter, Query()]) -> ConnCount:
        """How many connections pass the filters."""
        return ConnCount(conns=engine.conn_count(**query.model_dump(exclude_none=True)))

    @app.post("/v1/conns/kill")
    def conn_kill(request: ConnKill) -> ConnKilled:
        """End the connections that pass the filters, on all workers; how many there were."""
        filters = request.model_dump(exclude_none=True, exclude={"reset", "reason", "all"})
        if "worker" in filters:
            raise ChangeError(400, "FN-1201", "worker: connections are ended on all workers", "leave it out")
        if not filters and not request.all:
            raise ChangeError(400, "FN-1201", "no filter: that would end all connections", "give one, or all = true")
        ended = engine.kill(reset=request.reset, **filters)
        told = ", ".join(f"{name} {value}" for name, value in filters.items())
        note = f"{ended} connections ended ({told or 'all'}): {request.reason}"
        if (asked := ASKED.get()) is not None:
            asked.note = note
        log.warning("%s", note)
        return ConnKilled(ended=ended)

    @app.get("/v1/headroom")
    def headroom(
        proto: Proto | None = None,
        vip: Ip | None = None,
        vport: PortNumberQuery = None,
        limit: Annotated[int, Query(ge=1, le=65536)] = 100,
    ) -> HeadroomView:
        """Free local ports of LIPs towards RSs, and when ports or connections run out at the present rate."""
        return engine.headroom(proto, vip, vport, limit)

    @app.get("/v1/addresses", response_model=list[AddressView], responses=resources.NOT_MODIFIED)
    def addresses(request: Request, port: str | None = None) -> Response:
        return resources.tagged(request, engine.addresses(port))

    @app.get("/v1/routes", response_model=list[RouteView], responses=resources.NOT_MODIFIED)
    def routes(request: Request) -> Response:
        return resources.tagged(request, engine.routes())

    @app.get("/v1/neighbours", response_model=list[NeighbourView], responses=resources.NOT_MODIFIED)
    def neighbours(request: Request, port: str | None = None) -> Response:
        return resources.tagged(request, engine.neighbours(port))

    @app.get("/v1/ports", response_model=list[PortView], responses=resources.NOT_MODIFIED)
    def ports(request: Request) -> Response:
        return resources.tagged(request, engine.port_views())

    @app.get("/v1/workers")
    def workers() -> list[WorkerView]:
        return engine.workers()

    @app.get("/v1/timeouts")
    def timeouts() -> dict[str, int]:
        """Seconds by the configuration's name of the state."""
        return engine.config.host.timeouts.model_dump()

    @app.get("/v1/status")
    def status() -> StatusView:
        return control.status()

    @app.get(
        "/v1/events", status_code=200, response_class=Stream, responses={200: {"content": {"text/event-stream": {}}}}
    )
    async def events(last_event_id: Annotated[str | None, Header()] = None) -> Response:
        """Server-sent events: `change` for each change that has come into force (time, who, from, snapshot, resources),
        `reset` when some may be missing and all is to be read anew. Last-Event-ID goes on after that one."""
        return Stream(control.events, last_event_id, access)

    @app.get("/v1/audit")
    def audit(limit: Annotated[int, Query(ge=1, le=10_000)] = 100) -> list[dict[str, Any]]:
        """The newest records of the audit log, oldest first. For admins."""
        return control.audit.last(limit)

    @app.get("/openapi.json", include_in_schema=False)
    def openapi() -> dict[str, Any]:
        return app.openapi()

    @app.get("/metrics", response_class=PlainTextResponse)
    def metrics() -> Response:
        from fnat.metrics import render

        return Response(render(engine, counter_names), media_type="text/plain; version=0.0.4; charset=utf-8")

    return app


class Application(FastAPI):
    """Its description also tells what all pages have in common."""

    def openapi(self) -> dict[str, Any]:
        return self.openapi_schema or describe(super().openapi())


class Stream(Response):
    """/v1/events. A reader who does not take what is sent within PATIENCE seconds, or whose place in the ring is lost,
    is dropped. A caller who is no longer known, too."""

    media_type = "text/event-stream"
    BEAT, PATIENCE = 15.0, 10.0

    def __init__(self, events: Events, last_id: str | None, access: Access) -> None:
        super().__init__(headers={"Cache-Control": "no-store"})
        del self.headers["content-length"]
        self.events, self.last_id, self.access = events, last_id, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = scope.get("state", {})
        bell = asyncio.Event()
        self.events.follow(bell)
        ends = [asyncio.create_task(_until_gone(receive))]
        if "ending" in state:
            ends.append(asyncio.create_task(state["ending"].wait()))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            place = self.events.place_of(self.last_id)
            first = b": fnat\n\n"
            if place is None:
                first, place = self.events.reset()
            await self._give(send, first)
            while (found := self.events.since(place)) is not None and not any(end.done() for end in ends):
                frames, place = found
                if frames:
                    await self._give(send, b"".join(frames))
                await self._rest(bell, ends)
                if not bell.is_set():
                    self.access.caller(scope)
                    await self._give(send, b":\n\n")
                bell.clear()
            await self._give(send, b"", more=False)
        except (TimeoutError, FnatError):
            if "abort" in state:
                state["abort"]()
        finally:
            for end in ends:
                end.cancel()
            self.events.leave(bell)

    async def _rest(self, bell: asyncio.Event, ends: list[asyncio.Task[Any]]) -> None:
        """Until there is something new, a beat is due, or the end has come."""
        ringing = asyncio.create_task(bell.wait())
        try:
            await asyncio.wait({ringing, *ends}, timeout=self.BEAT, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ringing.cancel()

    async def _give(self, send: Send, data: bytes, *, more: bool = True) -> None:
        async with asyncio.timeout(self.PATIENCE):
            await send({"type": "http.response.body", "body": data, "more_body": more})


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


PortNumberQuery = Annotated[int | None, Query(ge=1, le=65535)]


def listen(path: Path) -> socket.socket:
    """A listening unix socket with mode 0600. A stale file is replaced; a living server is respected (FN-1003)."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    if path.exists():
        if not path.is_socket():
            raise FnatError("FN-1003", f"{path} is not a socket", "remove it, or give another --socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()
            except OSError as error:
                raise FnatError("FN-1003", f"{path}: {error.strerror}", "remove it, or give another --socket") from None
            else:
                raise FnatError("FN-1003", f"another fnat serves {path}", "stop it, or give another --socket")
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        server.bind(str(path))
        server.listen(128)
    except OSError as error:
        server.close()
        raise FnatError("FN-1003", f"cannot listen on {path}: {error.strerror}", "give another --socket") from None
    finally:
        os.umask(before)
    return server
