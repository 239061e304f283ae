"""What the OpenAPI document says beside the shapes: units and meanings of fields, and how errors look."""

from __future__ import annotations

from typing import Any

MEANINGS = {
    "conn_timeout": "seconds without a packet after which a connection ends; 0: the general timeouts",
    "half_open": "most half-open connections over all workers; 0: no limit, null: 16384",
    "weight": "share of new connections; 0: none",
    "no_rs": "what becomes of a first packet when no server is usable",
    "expire_quiescent": "end connections to a server that is removed or has weight 0",
    "one_packet": "UDP: every datagram is scheduled anew",
    "quic": "UDP: a client that moves keeps its server, by QUIC connection IDs in DPVS's form",
    "client_addr": "how servers learn the client's address",
    "lips": "local addresses: what servers see as clients",
    "servers": "real servers",
    "vip": "address that clients talk to",
    "cps": "new connections per second",
    "in_pps": "packets from clients per second",
    "out_pps": "packets to clients per second",
    "in_bps": "bytes from clients per second",
    "out_bps": "bytes to clients per second",
    "in_bytes": "bytes from clients",
    "out_bytes": "bytes to clients",
    "remaining": "seconds left before the connection ends when idle",
    "age": "seconds",
    "uptime": "seconds since control began",
    "longest_step_ns": "nanoseconds: of undisturbed turns, of those during which the system took the CPU away",
    "max_ns": "nanoseconds",
    "sum_ns": "nanoseconds",
    "huge_pages": "bytes of a page; 0: ordinary pages",
    "full_in": "seconds until no port is free at the present rate; null: never",
    "ports_full_in": "seconds; null: never",
    "conns_full_in": "seconds; null: never",
    "mtu": "bytes of an IP packet; of a route 0: its port's",
    "speed": "Mbit/s",
    "plen": "length of the prefix in bits",
    "metric": "of equal prefixes the lowest wins",
    "snapshot": "number of the picture that workers have",
    "up": "whether the port is in use",
    "dry_run": "check only, change nothing",
}
PROBLEM = {
    "type": "object",
    "title": "Problem",
    "description": "An error (RFC 9457). `fnat help CODE` explains a code.",
    "required": ["type", "title", "status", "detail", "code", "fix", "field"],
    "properties": {
        "type": {"type": "string", "description": "urn:fnat:error:CODE"},
        "title": {"type": "string", "description": "what the code means"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "one line: what is wrong here"},
        "code": {"type": "string", "pattern": "^FN-[0-9]{4}$", "description": "stable"},
        "fix": {"type": "string", "description": "how to mend it"},
        "field": {"type": ["string", "null"], "description": "dotted path of the field that is to blame"},
        "others": {"type": "array", "items": {"$ref": "#/components/schemas/Problem"}, "description": "found at once"},
    },
    "example": {
        "type": "urn:fnat:error:FN-1203",
        "title": "The thing to change does not exist.",
        "status": 404,
        "detail": "there is no service tcp 10.0.0.1:80",
        "code": "FN-1203",
        "fix": "the collection lists what there is",
        "field": None,
    },
}
WHEN = {
    "400": "A value is not allowed, or the body is no JSON",
    "401": "The caller is not known (TCP)",
    "403": "The caller may not do this (TCP)",
    "404": "There is no such thing",
    "409": "It clashes with what there is",
    "412": "If-Match or If-None-Match does not hold; nothing was changed",
    "413": "The body is larger than max_body in [api]",
    "500": "The data plane or the disk refused; nothing was changed",
    "503": "Too many connections; see Retry-After",
}
CONDITIONS: list[dict[str, Any]] = [
    {
        "name": name,
        "in": "header",
        "required": False,
        "description": text,
        "schema": {"type": "string"},
    }
    for name, text in (
        ("If-Match", "an ETag, or *: write only if the resource is still this one"),
        ("If-None-Match", "an ETag, or *: write only if it is not there; read only if it has changed"),
    )
]


def describe(document: dict[str, Any]) -> dict[str, Any]:
    """The document with all of that in it; it is changed in place."""
    schemas = document["components"]["schemas"]
    for schema in schemas.values():
        for name, field in schema.get("properties", {}).items():
            if name in MEANINGS and "$ref" not in field:
                field.setdefault("description", MEANINGS[name])
    schemas["Problem"] = PROBLEM
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    document["components"]["securitySchemes"] = {
        "token": {"type": "http", "scheme": "bearer", "description": "by TCP; `fnat token add` makes one"},
        "certificate": {"type": "mutualTLS", "description": "by TCP; [api] client_ca and clients"},
    }
    document["security"] = [{}, {"token": []}, {"certificate": []}]
    body = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    for path, page in document["paths"].items():
        for method, operation in page.items():
            responses = operation["responses"]
            responses.pop("422", None)
            for status, text in WHEN.items():
                if status in responses:
                    responses[status] = {"description": text, "content": body}
            if method != "get" or "304" in responses:
                known = {p["name"].lower() for p in operation.get("parameters", ())}
                extra = [
                    p
                    for p in CONDITIONS
                    if p["name"].lower() not in known and (method != "get" or p["name"] != "If-Match")
                ]
                operation.setdefault("parameters", []).extend(extra)
            if method != "get":
                operation["description"] = f"{operation.get('description', '')} For admins.".strip()
            for status, response in responses.items():
                if (
                    status in ("200", "201")
                    and path.startswith("/v1/")
                    and "304" in page.get("get", {}).get("responses", {})
                ):
                    response.setdefault("headers", {})["ETag"] = {"schema": {"type": "string"}}
    return document
