"""The commands: what is typed becomes a change or a question to the API; what comes back becomes text.

`guarded` is the one place where a failure becomes one line on standard error and an exit code:
0 done, 1 failed, 2 wrong usage, 3 fnat is not running, 4 findings of a check or a comparison.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from fnat.errors import FnatError
from fnat.grammar import Usage

R = TypeVar("R", bound=Mapping[str, Any])
T = TypeVar("T")
QUIT = 130  # exit code after Ctrl-C, as a shell gives it


def guarded(program: str, command: Callable[[], int]) -> int:
    """Run a command; every failure that has a name leaves as one line."""
    try:
        code = command()
        sys.stdout.flush()
        return code
    except Usage as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    except FnatError as error:
        for each in (error, *error.others):
            print(f"{program}: {each}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # the reader had enough; keep the interpreter from saying so at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return QUIT


def say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def say_json(value: object) -> None:
    say(json.dumps(value, indent=2) + "\n")


def say_json_rows(rows: Iterable[object]) -> None:
    """A JSON array, one row a line, written as the rows come."""
    before = "[\n  "
    for row in rows:
        sys.stdout.write(before + json.dumps(row))
        before = ",\n  "
    say("[]\n" if before.startswith("[") else "\n]\n")


def repeat(once: Callable[[], T], interval: int, count: int) -> T:
    """A listing, and again each `interval` seconds (0: once), `count` times (0: until Ctrl-C); what the last gave."""
    shown = 0
    while True:
        result = once()
        shown += 1
        if not interval or shown == count:
            return result
        sys.stdout.flush()
        time.sleep(interval)


def pick(rows: Sequence[R], key: str, wanted: object, what: str) -> list[R]:
    """The rows whose key is the wanted one; None takes all."""
    found = [row for row in rows if wanted is None or row[key] == wanted]
    if wanted is not None and not found:
        known = " ".join(str(row[key]) for row in rows) or "none"
        raise FnatError("FN-1203", f"no {what} {wanted}", f"there are: {known}")
    return found
