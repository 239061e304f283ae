"""Every failure that a user may see, whose fault it is, and how to mend it.

    FnatError                 code, message, fix; http status; exit code
    ├── ConfigError           the configuration file is wrong                       exit 1
    ├── ChangeError           a change asks for what cannot be (400, 404, 409)      exit 1
    ├── EngineError           the data plane refused or did not follow (500)        exit 1
    ├── NotRunning            nobody serves the socket                              exit 3
    └── PrivilegeError        the operating system says no                          exit 1

An error is one line: ``MESSAGE; FIX (CODE)``. Codes are stable; CODES is the one table of them.
"""

from __future__ import annotations

from typing import ClassVar

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
    "FN-1201": "A value in a change is not allowed.",
    "FN-1203": "The thing to change does not exist.",
    "FN-1204": "The thing to add exists already.",
    "FN-1205": "An address would be both a VIP and a LIP, or would lie on two ports.",
    "FN-1206": "The thing to delete is in use.",
    "FN-1207": "No such port.",
    "FN-1301": "The data plane refused a change.",
    "FN-1302": "A running worker did not take up the new configuration in time.",
    "FN-1303": "The data plane has no room for the change.",
    "FN-1304": "State could not be written to disk.",
    "FN-1305": "The data plane is not there.",
    "FN-1306": "The XDP program refused an address.",
    "FN-1307": 'A NIC cannot hold the flow rules of its local addresses (steering = "ntuple").',
    "FN-1401": "A test did not show what it should.",
    "FN-1309": "An unexpected failure inside fnat.",
}


class FnatError(Exception):
    """A failure with a stable code, one line of text and one line that says how to mend it."""

    status: int = 500
    exit_code: ClassVar[int] = 1

    def __init__(self, code: str, message: str, fix: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.message}; {self.fix} ({self.code})" if self.fix else f"{self.message} ({self.code})"

    def as_json(self) -> dict[str, dict[str, str]]:
        """The body of an HTTP error."""
        return {"error": {"code": self.code, "message": self.message, "fix": self.fix}}


class ConfigError(FnatError):
    """The configuration file is wrong; the message names file, line if known, path, value and what is allowed."""

    status = 400


class ChangeError(FnatError):
    """The caller asks for a change that cannot be made; nothing has been changed."""

    def __init__(self, status: int, code: str, message: str, fix: str) -> None:
        super().__init__(code, message, fix)
        self.status = status


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
