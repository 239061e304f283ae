"""Every failure that a user may see, whose fault it is, and how to mend it.

    FnatError                 code, message, fix; http status; exit code
    ├── ConfigError           the configuration file is wrong                       exit 1
    ├── ChangeError           a change asks for what cannot be (400 to 413)      exit 1
    │   └── StaleError        the resource is another than the caller thinks (412)
    ├── EngineError           the data plane refused or did not follow (500)        exit 1
    ├── NotRunning            nobody serves the socket                              exit 3
    └── PrivilegeError        the operating system says no                          exit 1

An error is one line: ``MESSAGE; FIX (CODE)``. Codes are stable; CODES is the one table of them,
help.toml says more of each.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

CODES: dict[str, str] = {
    "FN-1001": "No fnat serves the socket.",
    "FN-1002": "The process lacks a privilege.",
    "FN-1003": "Another fnat already serves this socket or state directory.",
    "FN-1005": "The processor is older than what fnat was built for.",
    "FN-1006": "The host could not be set up as the configuration needs it.",
    "FN-1101": "The configuration file cannot be read.",
    "FN-1102": "The configuration file is not valid TOML.",
    "FN-1103": "The configuration file has a key that does not exist.",
    "FN-1104": "A value in the configuration file is not allowed.",
    "FN-1105": "A compulsory key is missing in the configuration file.",
    "FN-1106": "The configuration file does not say which node this is.",
    "FN-1107": "An address is both a VIP and a LIP.",
    "FN-1108": "A service has no LIP, so it cannot forward.",
    "FN-1109": "Two services have the same VIP, port and protocol.",
    "FN-1110": "The configuration file names a port or device that does not exist.",
    "FN-1111": "A feature is not available in this version.",
    "FN-1112": "The configuration file cannot take up the run-time changes.",
    "FN-1113": "The configuration file was edited and not applied yet.",
    "FN-1114": "fnat runs without a configuration file.",
    "FN-1115": "The API may be reached by TCP with TLS and known callers only.",
    "FN-1201": "A value in a change is not allowed.",
    "FN-1203": "The thing to change does not exist.",
    "FN-1204": "The thing to add exists already.",
    "FN-1205": "An address would be both a VIP and a LIP, or would lie on two ports.",
    "FN-1206": "The thing to delete is in use.",
    "FN-1207": "No such port.",
    "FN-1208": "A configuration waits for its confirmation.",
    "FN-1209": "There is no such configuration to go back to, or to confirm.",
    "FN-1221": "The tables of hash schedulers would not fit into the data plane's memory.",
    "FN-1222": "An option of a service does not go with its scheduler.",
    "FN-1301": "The data plane refused a change.",
    "FN-1302": "A running worker did not take up the new configuration in time.",
    "FN-1303": "The data plane has no room for the change.",
    "FN-1304": "State could not be written to disk.",
    "FN-1305": "The data plane is not there.",
    "FN-1306": "The XDP program refused an address.",
    "FN-1307": 'A NIC cannot hold the flow rules of its local addresses (steering = "ntuple").',
    "FN-1401": "A test did not show what it should.",
    "FN-1501": "A file to import cannot be read, or its result cannot be written.",
    "FN-1502": "A file to import has a syntax that cannot be understood.",
    "FN-1503": "What an import would write is not a valid configuration.",
    "FN-1504": "An import would overwrite a file.",
    "FN-1309": "An unexpected failure inside fnat.",
    "FN-1601": "The API does not know the caller.",
    "FN-1602": "The caller's role does not allow this.",
    "FN-1603": "The resource is not what the caller's If-Match or If-None-Match says.",
    "FN-1604": "The body of a request is too large.",
    "FN-1605": "The API has as many connections as it may have.",
    "FN-1606": "A certificate or key of the API cannot be used.",
    "FN-1607": "The tokens file of the API cannot be used.",
    "FN-1608": "The API has no such page, or the page does not know the method.",
}


def page(code: str) -> dict[str, str]:
    """Title, cause and mend of a code. KeyError: there is none."""
    import rtoml  # here: the data plane knows errors, but no pages

    pages = rtoml.loads(Path(__file__).with_name("help.toml").read_text(encoding="utf-8"))
    return {"code": code, "title": CODES[code], **pages[code]}


class FnatError(Exception):
    """A failure with a stable code, one line of text and one line that says how to mend it."""

    status: int = 500
    exit_code: ClassVar[int] = 1
    others: tuple[FnatError, ...] = ()  # found in the same reading

    def __init__(self, code: str, message: str, fix: str, field: str | None = None) -> None:
        """field: which one of the request, as a dotted path."""
        super().__init__(message)
        self.code = code
        self.message = message
        self.fix = fix
        self.field = field

    def __str__(self) -> str:
        return f"{self.message}; {self.fix} ({self.code})" if self.fix else f"{self.message} ({self.code})"

    def as_json(self) -> dict[str, Any]:
        """The body of an HTTP error (RFC 9457)."""
        return {
            "type": f"urn:fnat:error:{self.code}",
            "title": CODES.get(self.code, self.code),
            "status": self.status,
            "detail": self.message,
            "code": self.code,
            "fix": self.fix,
            "field": self.field,
            **({"others": [error.as_json() for error in self.others]} if self.others else {}),
        }


class ConfigError(FnatError):
    """The configuration file is wrong; the message names file, line if known, path, value and what is allowed."""

    status = 400


class ChangeError(FnatError):
    """The caller asks for a change that cannot be made; nothing has been changed. at: which of several changes."""

    at: int = 0

    def __init__(self, status: int, code: str, message: str, fix: str, field: str | None = None) -> None:
        super().__init__(code, message, fix, field)
        self.status = status


class StaleError(ChangeError):
    """The resource is not any more, or not yet, what the caller takes it for (412)."""

    def __init__(self, code: str, message: str, fix: str) -> None:
        super().__init__(412, code, message, fix)


class EngineError(FnatError):
    """The data plane refused a valid change or did not follow it; the old configuration is in force."""

    status = 500


class NotRunning(FnatError):
    """Nobody serves the socket."""

    status = 503
    exit_code = 3

    def __init__(self, where: object) -> None:
        super().__init__("FN-1001", f"fnat is not running (nobody serves {where})", "start it with `fnat run`")


class PrivilegeError(FnatError):
    """The operating system refuses for want of a privilege."""

    status = 403
