"""A balancer to type at: control with its API on a unix socket, over an anonymous plane whose worker does not run, so
nothing is forwarded; what is shown is what control made of the commands."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import uvicorn

from fnat import _core, api
from fnat.control import Control
from fnat.engine import Engine
from fnat.model import Config, PortInfo
from fnat.state import Ids, Overlay

PORTS = [
    PortInfo(id=0, name="dpdk0", kind="tap", mac="02:00:00:00:00:01", mode="native", queues=1),
    PortInfo(id=1, name="dpdk1", kind="tap", mac="02:00:00:00:00:02", mode="native", queues=1),
]


@contextlib.contextmanager
def running(workers: int = 1, conns: int = 4096, file: Config | None = None) -> Iterator[Control]:
    """Control with its API; FNAT_SOCKET names it meanwhile."""
    directory = Path(tempfile.mkdtemp(prefix="fnat-api-"))
    plane = _core.Plane.create(None, workers=workers, conns=conns, acl_mib=1)
    ids = Ids(directory / "state.json")
    ids.load()
    control = Control(Engine(plane, {}, PORTS, ids, startle=0.0), Overlay(directory / "overlay.json"), file=file)
    control.start()
    listening = api.listen(directory / "s")
    config = uvicorn.Config(api.create_app(control), log_config=None, access_log=False, lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])))
    before = os.environ.get("FNAT_SOCKET")
    os.environ["FNAT_SOCKET"] = str(directory / "s")
    with contextlib.ExitStack() as undo:
        undo.callback(shutil.rmtree, directory)
        undo.callback(plane.close)
        undo.callback(listening.close)
        undo.callback(os.environ.pop, "FNAT_SOCKET")
        if before is not None:
            undo.callback(os.environ.__setitem__, "FNAT_SOCKET", before)
        thread.start()
        undo.callback(thread.join)
        undo.callback(setattr, server, "should_exit", True)
        yield control
