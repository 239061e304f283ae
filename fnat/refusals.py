"""What pydantic complains of, as an error for a user of the API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fnat.config import explain
from fnat.errors import ChangeError


def refusal_of(error: Mapping[str, Any]) -> ChangeError:
    """One complaint: where, what, how to mend."""
    if error["type"] == "json_invalid" or error["loc"] == ("body",):
        return ChangeError(
            400, "FN-1201", "the body is not a JSON object", "send one, with Content-Type: application/json"
        )
    where = ".".join(str(part) for part in error["loc"] if part not in ("body", "query", "path"))
    problem, fix = explain(error)
    return ChangeError(400, "FN-1201", f"{where}: {problem}" if where else problem, fix, where or None)
