"""bench/scale.py in small: two processes, changes and listings beside a worker under load, and nothing lost."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "bench" / "scale.py"


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
def test_nothing_is_lost_while_control_works(tmp_path: Path) -> None:
    words = ["--services", "150", "--conns", "60000", "--load", "20000", "--clock", "0.2", "--state-in", str(tmp_path)]
    done = subprocess.run([sys.executable, SCRIPT, *words], check=False, capture_output=True, text=True, timeout=120)
    assert done.stdout, done.stderr
    report = json.loads(done.stdout)
    worker = report["worker"]
    assert worker["lost"] == 0 and worker["drops"] == {}
    assert worker["received"] == worker["forwarded"] > 20_000
    assert sum(n for _, n in worker["turns"][0]) > 100
    assert report["listing"]["listed"] == 60_000
    assert report["rare"]["found"] == 1 and report["rare"]["counted"] == 60_000
    assert report["changing"]["services"] == 150
    assert not any(tmp_path.iterdir()), "it leaves nothing behind"
