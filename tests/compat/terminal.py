"""Typing a command line, in this process: main() with sys.argv, standard input, output and error replaced."""

from __future__ import annotations

import contextlib
import io
import sys
from unittest import mock

from fnat.cli import dpip, ipvsadm, main

PROGRAMS = {
    "fnat": main.main,
    "fnat-ipvsadm": ipvsadm.main,
    "fnat-dpip": dpip.main,
    "ipvsadm": ipvsadm.main,
    "dpip": dpip.main,
}


def type_in(line: str, text: str = "") -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of a command line; `text` is its standard input."""
    argv, out, err = line.split(), io.StringIO(), io.StringIO()
    code: object = None
    with (
        mock.patch.object(sys, "argv", argv),
        mock.patch.object(sys, "stdin", io.StringIO(text)),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            PROGRAMS[argv[0]]()
        except SystemExit as end:
            code = end.code
    assert isinstance(code, int), "a command ends with an exit code"
    return code, out.getvalue(), err.getvalue()
