"""The API: HTTP with JSON on a unix socket that only its owner may use. Routes and shapes are in /openapi.json.

Every error is {"error": {"code", "message", "fix"}}, also for a body that does not parse. Handlers are plain functions:
the framework runs them in threads, so a change that waits for the workers delays nobody else's reading.
"""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from fnat import __version__, api_config
from fnat.config import explain
from fnat.control import Control
from fnat.errors import ChangeError, FnatError
from fnat.model import (
    AclTest,
    AclView,
    AddressView,
    AppliedView,
    ChangeRequest,
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

log = logging.getLogger("fnat.api")


def create_app(control: Control, counter_names: Sequence[tuple[str, str, str]] | None = None) -> FastAPI:
    """The application over one control. counter_names None: those of the core."""
    app = FastAPI(title="fnat", version=__version__, docs_url=None, redoc_url=None)
    engine = control.engine

    @app.exception_handler(FnatError)
    async def failed(_: Request, error: FnatError) -> JSONResponse:
        return JSONResponse(error.as_json(), error.status)

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        refusal = refusal_of(error.errors()[0])
        return JSONResponse(refusal.as_json(), refusal.status)

    @app.exception_handler(HTTPException)
    async def no_such_page(request: Request, error: HTTPException) -> JSONResponse:
        message = f"{request.method} {request.url.path}: {error.detail}"
        refusal = ChangeError(error.status_code, "FN-1203", message, "see /openapi.json")
        return JSONResponse(refusal.as_json(), refusal.status)

    @app.exception_handler(Exception)
    async def broke(_: Request, error: Exception) -> JSONResponse:
        failure = FnatError("FN-1309", f"unexpected {type(error).__name__}: {error}", "please report it with the log")
        return JSONResponse(failure.as_json(), failure.status)

    @app.post("/v1/changes")
    def make_changes(request: ChangeRequest) -> AppliedView:
        """All changes or none. Success: in force on every worker and on disk."""
        return control.change(request.changes, dry_run=request.dry_run)

    app.include_router(api_config.router(control))

    @app.get("/v1/services")
    def services(proto: Proto | None = None, vip: Ip | None = None, vport: PortNumberQuery = None) -> list[ServiceView]:
        """Services in order of creation, with LIPs and RSs, counters and true rates per second."""
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
        log.warning("%d connections ended on request (%s): %s", ended, filters or "all", request.reason)
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

    @app.get("/v1/addresses")
    def addresses(port: str | None = None) -> list[AddressView]:
        return engine.addresses(port)

    @app.get("/v1/routes")
    def routes() -> list[RouteView]:
        return engine.routes()

    @app.get("/v1/neighbours")
    def neighbours(port: str | None = None) -> list[NeighbourView]:
        return engine.neighbours(port)

    @app.get("/v1/ports")
    def ports() -> list[PortView]:
        return engine.port_views()

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

    @app.get("/metrics")
    def metrics() -> Response:
        from fnat.metrics import render

        return Response(render(engine, counter_names), media_type="text/plain; version=0.0.4; charset=utf-8")

    return app


PortNumberQuery = Annotated[int | None, Query(ge=1, le=65535)]


def refusal_of(error: dict[str, Any]) -> ChangeError:
    """One complaint of the validation as an error for the user: where, what, how to mend."""
    if error["type"] == "json_invalid" or error["loc"] == ("body",):
        fix = 'send {"changes": […]} with Content-Type: application/json'
        return ChangeError(400, "FN-1201", "the body is not a JSON object", fix)
    where = ".".join(str(part) for part in error["loc"] if part not in ("body", "query"))
    problem, fix = explain(error)
    return ChangeError(400, "FN-1201", f"{where}: {problem}" if where else problem, fix)


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
