"""The one client of the API, for all commands: HTTP over a unix socket, typed answers, errors as the server raised."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import httpx

from fnat.errors import ChangeError, EngineError, FnatError, NotRunning, PrivilegeError
from fnat.model import (
    AddressView,
    AppliedView,
    Change,
    ConnCount,
    ConnPage,
    ConnView,
    HeadroomView,
    NeighbourView,
    PortView,
    RouteView,
    ServiceView,
    StatusView,
    WorkerView,
    change_as_json,
)
from fnat.paths import default_socket


class Client:
    """Calls the API. `socket` None: $FNAT_SOCKET, else the default. Every method may raise FnatError, nothing else."""

    def __init__(
        self, socket: str | Path | None = None, *, timeout: float = 30.0, transport: httpx.BaseTransport | None = None
    ) -> None:
        self.socket = Path(socket) if socket else default_socket()
        transport = transport or httpx.HTTPTransport(uds=str(self.socket), verify=False)  # no TLS here
        self._http = httpx.Client(transport=transport, base_url="http://fnat", timeout=timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def change(self, changes: Sequence[Change | Mapping[str, Any]], *, dry_run: bool = False) -> AppliedView:
        """Make the changes, all or none. Success: in force on every worker and on disk."""
        body = {
            "changes": [dict(c) if isinstance(c, Mapping) else change_as_json(c) for c in changes],
            "dry_run": dry_run,
        }
        return cast(AppliedView, self._call("POST", "/v1/changes", json=body).json())

    def services(
        self, *, proto: str | None = None, vip: str | None = None, vport: int | None = None
    ) -> list[ServiceView]:
        return cast(list[ServiceView], self._get("/v1/services", proto=proto, vip=vip, vport=vport))

    def conn_page(self, *, cursor: str | None = None, **filters: str | int | None) -> ConnPage:
        """One page of connections; filters: worker and those of ConnFilter; limit: of the page."""
        return cast(ConnPage, self._get("/v1/conns", cursor=cursor, **filters))

    def conns(self, **filters: str | int | None) -> Iterator[ConnView]:
        """All connections that pass the filters, page by page."""
        cursor: str | None = None
        while True:
            page = self.conn_page(cursor=cursor, **filters)
            yield from page["conns"]
            cursor = page["next"]
            if cursor is None:
                return

    def conn_count(self, **filters: str | int | None) -> int:
        """How many connections pass the filters."""
        return cast(ConnCount, self._get("/v1/conns/count", **filters))["conns"]

    def headroom(
        self, *, proto: str | None = None, vip: str | None = None, vport: int | None = None, limit: int | None = None
    ) -> HeadroomView:
        return cast(HeadroomView, self._get("/v1/headroom", proto=proto, vip=vip, vport=vport, limit=limit))

    def addresses(self, *, port: str | None = None) -> list[AddressView]:
        return cast(list[AddressView], self._get("/v1/addresses", port=port))

    def routes(self) -> list[RouteView]:
        return cast(list[RouteView], self._get("/v1/routes"))

    def neighbours(self, *, port: str | None = None) -> list[NeighbourView]:
        return cast(list[NeighbourView], self._get("/v1/neighbours", port=port))

    def ports(self) -> list[PortView]:
        return cast(list[PortView], self._get("/v1/ports"))

    def workers(self) -> list[WorkerView]:
        return cast(list[WorkerView], self._get("/v1/workers"))

    def status(self) -> StatusView:
        return cast(StatusView, self._get("/v1/status"))

    def metrics(self) -> str:
        """Prometheus text."""
        return self._call("GET", "/metrics").text

    def _get(self, path: str, **params: str | int | None) -> Any:  # noqa: ANN401, JSON
        return self._call("GET", path, params={k: v for k, v in params.items() if v is not None}).json()

    def _call(self, method: str, path: str, **kwargs: Any) -> httpx.Response:  # noqa: ANN401, as httpx has them
        try:
            answer = self._http.request(method, path, **kwargs)
        except httpx.ConnectError as error:
            if "Permission denied" in str(error):
                raise PrivilegeError("FN-1002", f"no permission to use {self.socket}", "run as root") from None
            raise NotRunning(self.socket) from None
        except httpx.TimeoutException:
            raise EngineError("FN-1309", "fnat did not answer in time", "look at its log; `fnat status`") from None
        except httpx.HTTPError as error:
            raise EngineError("FN-1309", f"the connection to fnat broke: {error}", "look at its log") from None
        if answer.is_success:
            return answer
        raise _error_of(answer)


def _error_of(answer: httpx.Response) -> FnatError:
    try:
        error = answer.json()["error"]
        code, message, fix = str(error["code"]), str(error["message"]), str(error["fix"])
    except (ValueError, KeyError, TypeError):
        return EngineError("FN-1309", f"unexpected answer {answer.status_code} from fnat", "is it the same version?")
    if answer.status_code in (400, 404, 409):
        return ChangeError(answer.status_code, code, message, fix)
    return EngineError(code, message, fix)
