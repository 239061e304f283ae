"""Fixtures of the command tests."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from balancer import running
from fake_api import FakeApi

from fnat.control import Control


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeApi]:
    """A fake fnat; FNAT_SOCKET names it."""
    directory = Path(tempfile.mkdtemp(prefix="fnat-cli-"))  # short: a socket's path has at most 107 bytes
    server = FakeApi(str(directory / "s"))
    monkeypatch.setenv("FNAT_SOCKET", server.path)
    thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.01))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()
    shutil.rmtree(directory)


@pytest.fixture
def balancer() -> Iterator[Control]:
    """A real control and API over a plane that does not run; FNAT_SOCKET names it."""
    with running() as control:
        yield control
