"""Both fuzzers build and survive a few seconds; `make fuzz` runs them longer."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SECONDS = 10


def sanitizers_are_there() -> bool:
    clang = shutil.which("clang")
    if not clang:
        return False
    library = subprocess.run([clang, "-print-runtime-dir"], capture_output=True, text=True, check=True).stdout.strip()
    return bool(
        list(Path(library).glob("*libclang_rt.fuzzer*")) or list(Path(library).parent.glob("*/libclang_rt.fuzzer*"))
    )


@pytest.mark.skipif(
    not sanitizers_are_there(), reason="needs clang with its fuzzer runtime (Debian: libclang-rt-14-dev)"
)
def test_the_fuzzers_survive_a_few_seconds(tmp_path: Path) -> None:
    environment = {**os.environ, "FNAT_FUZZ_DIR": str(tmp_path)}
    run = subprocess.run(
        ["sh", str(HERE / "run.sh"), str(SECONDS)], env=environment, capture_output=True, text=True, timeout=240
    )
    assert run.returncode == 0, run.stdout + run.stderr
    runs = {name: int(n) for name, n in re.findall(r"(\w+): stat::number_of_executed_units: (\d+)", run.stdout)}
    assert runs["parse"] > 10_000, run.stdout
    assert runs["forward"] > 200, run.stdout
