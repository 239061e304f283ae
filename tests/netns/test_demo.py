"""`make demo ARGS=--once` as a newcomer runs it, also after one that was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from topology import wait_until

DEMO = Path(__file__).with_name("demo.py")


def namespaces() -> list[str]:
    out = subprocess.run(["ip", "netns"], check=True, capture_output=True, text=True).stdout
    return [line.split()[0] for line in out.splitlines() if line.startswith("fndemo")]


def test_demo_proves_and_cleans_up() -> None:
    """Also what a killed demo has left."""
    killed = subprocess.Popen([sys.executable, str(DEMO), "--once"], stdout=subprocess.DEVNULL)
    wait_until(lambda: any(name.endswith("rs2") for name in namespaces()), "the first demo has its namespaces")
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    done = subprocess.run(
        [sys.executable, str(DEMO), "--once"], check=False, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("  ok  ") == 11
    assert namespaces() == []
