"""The client of the API, for all commands and for your programs.

    from fnat.client import Client

    with Client() as fnat:                                          # the unix socket: $FNAT_SOCKET, else the default
        for service in fnat.services():
            print(service["vip"], service["rate"]["cps"])

    with Client(url="https://lb1:8443", token=secret, ca="ca.pem") as fnat:
        name = "tcp", "10.0.0.1", 80
        service, etag = fnat.get_service(*name)
        service["scheduler"] = "rr"
        fnat.put_service(service, if_match=etag)                    # StaleError when somebody was faster
        fnat.change([{"op": "server.set", "service": {…}, "rip": "10.1.1.1", "rport": 80, "weight": 0}])
        for event in fnat.events():
            print(event["event"], event["data"])

Answers are typed dictionaries (fnat.model: …View). Every method may raise FnatError and nothing else; it has
`code`, `fix`, and for a refused change (ChangeError) `status` and `field`. Without `url`, $FNAT_URL is asked if it is
set and no socket is given; token, ca and cert have $FNAT_TOKEN or $FNAT_TOKEN_FILE, $FNAT_CA, and $FNAT_CERT with
$FNAT_KEY.
"""

from __future__ import annotations

import json
import os
import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, NotRequired, Self, cast
from urllib.parse import quote

import httpx
from typing_extensions import TypedDict

from fnat import addresses
from fnat.errors import ChangeError, ConfigError, EngineError, FnatError, NotRunning, PrivilegeError, StaleError
from fnat.model import (
    AclTest,
    AclView,
    AddressView,
    AppliedView,
    ApplyView,
    Change,
    ConfigView,
    ConnCount,
    ConnKilled,
    ConnPage,
    ConnView,
    DiffView,
    GenerationView,
    HeadroomView,
    NeighbourView,
    PortView,
    RouteView,
    ServiceView,
    SetPage,
    SetView,
    StatusView,
    WorkerView,
    change_as_json,
)
from fnat.paths import default_socket

FILE_TIMEOUT = 300.0  # seconds for a whole file: tens of thousands of services take some
Fields = dict[str, Any]
PAUSE = 1.0  # seconds before events are asked for again


class Tagged(NamedTuple):
    """A resource with its ETag."""

    value: Fields
    etag: str


class Event(TypedDict):
    """event: "change" (data: time, who, from, snapshot, resources, omitted), or "reset": read everything anew."""

    id: str
    event: str
    data: Fields


AuditRecord = TypedDict(
    "AuditRecord",
    {
        "time": str,
        "who": str,
        "from": str,
        "what": str,
        "status": int,
        "code": NotRequired[str | None],  # of a refusal
        "snapshot": NotRequired[int],
        "changed": NotRequired[list[Fields]],  # resource, before, after
        "omitted": NotRequired[int],
        "missing_before": NotRequired[int],
    },
)


class Client:
    """Calls the API: by `url` (https), else by the unix `socket`."""

    def __init__(
        self,
        socket: str | Path | None = None,
        *,
        url: str | None = None,
        token: str | None = None,
        ca: str | Path | None = None,
        cert: tuple[str, str] | None = None,
        timeout: float = 30.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """ca: whom to believe who the server is, the system's when left out. cert: files of our certificate and key."""
        url = url or (None if socket else os.environ.get("FNAT_URL"))
        self.socket: str | Path = url or (Path(socket) if socket else default_socket())
        headers = {}
        if url and transport is None:
            if not url.startswith("https://"):
                raise ConfigError(
                    "FN-1115", f"{url!r} is not https://…", "TCP is for TLS only; fnat never answers else"
                )
            transport = httpx.HTTPTransport(verify=_trust(ca, cert))
            if token := token or _token():
                headers["Authorization"] = f"Bearer {token}"
        transport = transport or httpx.HTTPTransport(uds=str(self.socket), verify=False)  # no TLS here
        self._http = httpx.Client(transport=transport, base_url=url or "http://fnat", timeout=timeout, headers=headers)

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

    def acl(self) -> AclView:
        return cast(AclView, self._get("/v1/acl"))

    def acl_test(
        self, addr: str, *, proto: str | None = None, vip: str | None = None, vport: int | None = None
    ) -> AclTest:
        return cast(AclTest, self._get("/v1/acl/test", addr=addr, proto=proto, vip=vip, vport=vport))

    def sets(self) -> list[SetView]:
        return cast(list[SetView], self._get("/v1/sets"))

    def set_entries(self, name: str) -> Iterator[str]:
        """All entries of a set, page by page."""
        start: int | None = 0
        while start is not None:
            page = cast(SetPage, self._get(f"/v1/sets/{name}", start=start))
            yield from page["entries"]
            start = page["next"]

    def set_test(self, name: str, addr: str) -> AclTest:
        return cast(AclTest, self._get(f"/v1/sets/{name}/test", addr=addr))

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

    def conn_kill(self, *, reset: bool, reason: str, all: bool = False, **filters: str | int | None) -> int:
        """End the connections that pass the filters; how many there were."""
        body = {"reset": reset, "reason": reason, "all": all, **{k: v for k, v in filters.items() if v is not None}}
        return cast(ConnKilled, self._call("POST", "/v1/conns/kill", json=body).json())["ended"]

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

    def timeouts(self) -> dict[str, int]:
        return cast(dict[str, int], self._get("/v1/timeouts"))

    def status(self) -> StatusView:
        return cast(StatusView, self._get("/v1/status"))

    def config(self, *, startup: bool = False) -> ConfigView:
        """What is in force as a file, or the file that it is on top of."""
        return cast(ConfigView, self._get("/v1/config", startup=int(startup)))

    def config_diff(self, text: str | None, source: str) -> DiffView:
        body = {"text": text, "source": source}
        return cast(DiffView, self._call("POST", "/v1/config/diff", json=body, timeout=FILE_TIMEOUT).json())

    def config_apply(self, text: str | None, source: str, confirm: int = 0) -> ApplyView:
        body = {"text": text, "source": source, "confirm": confirm}
        return cast(ApplyView, self._call("POST", "/v1/config/apply", json=body, timeout=FILE_TIMEOUT).json())

    def config_do(self, what: Literal["save", "discard", "rollback"], number: int | None = None) -> ApplyView:
        params = {} if number is None else {"number": number}
        return cast(ApplyView, self._call("POST", f"/v1/config/{what}", params=params, timeout=FILE_TIMEOUT).json())

    def config_confirm(self) -> None:
        self._call("POST", "/v1/config/confirm")

    def config_history(self) -> list[GenerationView]:
        return cast(list[GenerationView], self._get("/v1/config/history"))

    def metrics(self) -> str:
        """Prometheus text."""
        return self._call("GET", "/metrics").text

    # ---- single resources: what GET gives, PUT takes ----

    def get_service(self, proto: str, vip: str, vport: int) -> Tagged:
        """The whole service as it is configured, servers and LIPs included, without counters."""
        return self.get(_service_path(proto, vip, vport))

    def put_service(self, service: Mapping[str, Any], *, if_match: str | None = None, new: bool = False) -> Tagged:
        """Make the service be exactly this; the same again changes nothing. new: refuse if it is there already."""
        path = _service_path(service["proto"], service["vip"], service["vport"])
        return self.put(path, service, if_match=if_match, new=new)

    def patch_service(
        self, proto: str, vip: str, vport: int, fields: Mapping[str, Any], *, if_match: str | None = None
    ) -> Tagged:
        return self.patch(_service_path(proto, vip, vport), fields, if_match=if_match)

    def delete_service(self, proto: str, vip: str, vport: int, *, if_match: str | None = None) -> None:
        self.delete(_service_path(proto, vip, vport), if_match=if_match)

    def get(self, path: str) -> Tagged:
        """Any resource by its path, such as /v1/addresses/10.0.0.1."""
        return _tagged(self._call("GET", path))

    def put(self, path: str, value: Mapping[str, Any], *, if_match: str | None = None, new: bool = False) -> Tagged:
        return _tagged(self._call("PUT", path, json=dict(value), headers=_conditions(if_match, new)))

    def patch(self, path: str, fields: Mapping[str, Any], *, if_match: str | None = None) -> Tagged:
        return _tagged(self._call("PATCH", path, json=dict(fields), headers=_conditions(if_match)))

    def delete(self, path: str, *, if_match: str | None = None) -> None:
        self._call("DELETE", path, headers=_conditions(if_match))

    # ---- what happened ----

    def audit(self, *, limit: int = 100) -> list[AuditRecord]:
        """The newest records, oldest first. For admins."""
        return cast(list[AuditRecord], self._get("/v1/audit", limit=limit))

    def events(self, *, last_id: str | None = None, reconnect: bool = True) -> Iterator[Event]:
        """Changes as they happen, without end. A broken connection is made again, and what was missed comes first."""
        while True:
            try:
                headers = {"Last-Event-ID": last_id} if last_id else {}
                timeout = httpx.Timeout(self._http.timeout.connect, read=60.0)  # there is a beat every 15 s
                with self._http.stream("GET", "/v1/events", headers=headers, timeout=timeout) as answer:
                    if not answer.is_success:
                        answer.read()
                        raise _error_of(answer)
                    for event in _events(answer.iter_lines()):
                        last_id = event["id"]
                        yield event
            except httpx.HTTPError as error:
                if not reconnect:
                    raise self._broken(error) from None
            if not reconnect:
                return
            time.sleep(PAUSE)

    def _get(self, path: str, **params: str | int | None) -> Any:  # noqa: ANN401, JSON
        return self._call("GET", path, params={k: v for k, v in params.items() if v is not None}).json()

    def _call(self, method: str, path: str, **kwargs: Any) -> httpx.Response:  # noqa: ANN401, as httpx has them
        try:
            answer = self._http.request(method, path, **kwargs)
        except httpx.HTTPError as error:
            raise self._broken(error) from None
        if answer.is_success:
            return answer
        raise _error_of(answer)

    def _broken(self, error: httpx.HTTPError) -> FnatError:
        if isinstance(error, httpx.ConnectError):
            if "Permission denied" in str(error):
                return PrivilegeError("FN-1002", f"no permission to use {self.socket}", "run as root")
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                return PrivilegeError("FN-1606", f"{self.socket}: {error}", "name its CA with $FNAT_CA")
            return NotRunning(self.socket)
        if isinstance(error, httpx.TimeoutException):
            return EngineError("FN-1309", "fnat did not answer in time", "look at its log; `fnat status`")
        return EngineError("FN-1309", f"the connection to fnat broke: {error}", "look at its log")


def _error_of(answer: httpx.Response) -> FnatError:
    try:
        error = answer.json()
        code, message, fix = str(error["code"]), str(error["detail"]), str(error["fix"])
        field = error.get("field")
    except (ValueError, KeyError, TypeError):
        return EngineError("FN-1309", f"unexpected answer {answer.status_code} from fnat", "is it the same version?")
    if answer.status_code == 412:
        return StaleError(code, message, fix)
    if answer.status_code in (401, 403):
        return PrivilegeError(code, message, fix)
    if 400 <= answer.status_code < 500:
        refusal = ChangeError(answer.status_code, code, message, fix, field)
        refusal.others = tuple(
            ChangeError(answer.status_code, other["code"], other["detail"], other["fix"], other["field"])
            for other in error.get("others", ())
        )
        return refusal
    return EngineError(code, message, fix)


def _service_path(proto: str, vip: str, vport: int) -> str:
    return f"/v1/services/{proto}/{quote(addresses.endpoint(vip, vport), safe=':')}"


def _conditions(if_match: str | None, new: bool = False) -> dict[str, str]:
    return {**({"If-Match": if_match} if if_match else {}), **({"If-None-Match": "*"} if new else {})}


def _tagged(answer: httpx.Response) -> Tagged:
    return Tagged(cast(Fields, answer.json()), answer.headers["etag"])


def _events(lines: Iterator[str]) -> Iterator[Event]:
    fields: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        if line and name:
            fields[name] = value.removeprefix(" ")
        elif not line and "data" in fields:
            yield Event(id=fields["id"], event=fields["event"], data=json.loads(fields["data"]))
            fields = {}


def _token() -> str | None:
    if path := os.environ.get("FNAT_TOKEN_FILE"):
        try:
            return Path(path).read_text().strip()
        except OSError as error:
            raise ConfigError(
                "FN-1607", f"{path}: {error.strerror}", "set FNAT_TOKEN_FILE to a file of a token"
            ) from None
    return os.environ.get("FNAT_TOKEN")


def _trust(ca: str | Path | None, cert: tuple[str, str] | None) -> ssl.SSLContext:
    ca = ca or os.environ.get("FNAT_CA")
    path = str(ca)
    try:
        context = ssl.create_default_context(cafile=str(ca) if ca else None)
        if cert is None and (own := os.environ.get("FNAT_CERT")):
            cert = own, os.environ.get("FNAT_KEY", own)
        if cert is not None:
            path = cert[0]
            context.load_cert_chain(*cert)
    except OSError as error:
        raise ConfigError("FN-1606", f"{path}: {error.strerror or error}", "give PEM files") from None
    return context
