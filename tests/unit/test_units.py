"""The systemd units: what systemd says of them, and that they allow what fnat does. How the core refuses an older CPU."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UNITS = sorted((ROOT / "conf/systemd").glob("*.service"))


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_systemd_finds_nothing_wrong(tmp_path):
    for unit in UNITS:
        (tmp_path / unit.name).write_text(unit.read_text().replace("/usr/bin/fnat", "/bin/true"))
    words = ["systemd-analyze", "verify", "--man=no", *(str(tmp_path / unit.name) for unit in UNITS)]
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    ours = [line for line in done.stderr.splitlines() if "fnat" in line]
    assert (done.returncode, ours) == (0, [])


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
@pytest.mark.parametrize("unit", UNITS, ids=lambda u: u.stem)
def test_exposure_is_low(unit):
    """Of 10; what is left in fnat.service are the capabilities that XDP asks for."""
    words = ["systemd-analyze", "security", "--offline=true", str(unit)]
    text = subprocess.run(words, check=False, capture_output=True, text=True).stdout
    assert float(re.search(r"exposure level for .*: ([\d.]+)", text)[1]) < 4


@pytest.mark.parametrize("unit", UNITS, ids=lambda u: u.stem)
def test_the_commands_of_the_units_exist(unit):
    from click.testing import CliRunner

    from fnat.cli.main import fnat

    program, verb, *_ = re.search(r"^ExecStart=(.*)$", unit.read_text(), re.M)[1].split()
    assert program == "/usr/bin/fnat"
    assert CliRunner().invoke(fnat, [verb, "--help"]).exit_code == 0


# flags of the compiler, what the processor has, exit code, what is said
CPUS = [
    ("-march=x86-64-v3", "1", 0, ""),
    ("-march=x86-64-v3", "0", 2, "fnat: this processor has no AVX2, which this build uses; "),
    ("-march=x86-64-v3", "name[0] == 'a'", 2, "fnat: this processor has no BMI2, "),
    ("-march=x86-64-v4", "0", 2, "fnat: this processor has no AVX-512, "),
    ("-march=x86-64", "0", 0, ""),
]


@pytest.mark.parametrize(("flags", "has", "code", "said"), CPUS)
def test_an_older_processor_gets_one_line(tmp_path, flags, has, code, said):
    """cpu.c as a program of its own; what it asks the processor is answered by the row."""
    (tmp_path / "main.c").write_text(
        f'#define __builtin_cpu_supports(text) ({{ const char *name = text; (void)name; {has}; }})\n#include "cpu.c"\nint main(void) {{ return 0; }}\n'
    )
    words = ["gcc", "-O2", flags, "-iquote", str(ROOT / "cext"), str(tmp_path / "main.c"), "-o", str(tmp_path / "main")]
    subprocess.run(words, check=True)
    done = subprocess.run([tmp_path / "main"], check=False, capture_output=True, text=True)
    assert done.returncode == code
    assert done.stderr.startswith(said) and done.stderr.count("\n") == (code != 0)
