"""Manual pages and completion: what a shell and man(1) get, made from the tables that parse the commands."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from terminal import type_in

from fnat.cli import completion, pages
from fnat.cli.main import fnat
from fnat.grammar import dpip, ipvsadm

# (program, what is typed; what comes after the last blank is unfinished), some of what is offered, some of what is not
OFFERED: list[tuple[str, str, set[str], set[str]]] = [
    ("fnat", "fnat ser", {"service"}, {"status"}),
    ("fnat", "fnat service ", {"add", "set", "del", "show", "zero"}, {"drain"}),
    ("fnat", "fnat service add ", {"tcp", "udp", "sctp"}, {"icmp"}),
    ("fnat", "fnat service add --scheduler ", {"rr", "wrr"}, {"toa"}),
    ("fnat", "fnat completion ", {"bash", "zsh", "fish"}, {"sh"}),
    ("fnat", "fnat ipvsadm ", {"-A", "--add-service", "-l", "-S", "-R", "-U"}, {"-s", "--start-daemon"}),
    ("fnat", "fnat ipvsadm -A -t 10.0.0.1:80 -s ", {"rr", "wrr"}, {"-s"}),
    ("fnat", "fnat dpip addr add 10.0.0.1/24 ", {"dev", "sapool", "scope"}, {"via"}),
    ("fnat-ipvsadm", "fnat-ipvsadm -", {"-A", "-a", "-G", "--zero"}, {"-w", "--stats"}),
    ("fnat-ipvsadm", "fnat-ipvsadm -A -t 10.0.0.1:80 -", {"-s", "--conn-timeout", "--no-rs"}, {"-t", "-w", "-l", "-H"}),
    ("fnat-ipvsadm", "fnat-ipvsadm -A -t 10.0.0.1:80 --no-rs ", {"drop", "reset"}, {"-s"}),
    ("fnat-ipvsadm", "fnat-ipvsadm -At 10.0.0.1:80 --proxy-protocol v", {"v1", "v2", "v1-insecure"}, {"disable"}),
    ("fnat-ipvsadm", "fnat-ipvsadm -ln --", {"--stats", "--rate", "--exact", "--json"}, {"--numeric", "--weight"}),
    ("fnat-dpip", "fnat-dpip ", {"link", "addr", "route", "neigh"}, {"vlan", "show"}),
    ("fnat-dpip", "fnat-dpip route ", {"add", "set", "del", "flush", "show"}, {"via"}),
    ("fnat-dpip", "fnat-dpip route add default via 10.0.0.1 ", {"dev", "src", "metric"}, {"via", "sapool"}),
    ("fnat-dpip", "fnat-dpip route add 10.0.0.0/8 scope ", {"kni_host", "link"}, {"dev"}),
    ("fnat-dpip", "fnat-dpip link set dpdk0 link ", {"up", "down"}, {"dev"}),
    ("fnat-dpip", "fnat-dpip link show -", {"-s", "-v", "-i", "--json"}, {"-V"}),
    ("fnat-dpip", "fnat-dpip -f ", {"inet", "inet6"}, {"link"}),
]  # fmt: skip
GRAMMARS = {"fnat-ipvsadm": ipvsadm.complete, "fnat-dpip": dpip.complete}


@pytest.mark.parametrize(("program", "typed", "some", "none"), OFFERED, ids=[row[1] for row in OFFERED])
def test_what_is_offered(program: str, typed: str, some: set[str], none: set[str]) -> None:
    command: click.Command = fnat if program == "fnat" else completion.Language(program, complete=GRAMMARS[program])
    words = typed.split(" ")
    asked = {
        completion.variable(program): "bash_complete",
        "COMP_WORDS": typed.rstrip(),
        "COMP_CWORD": str(len(words) - 1),
    }
    answer = CliRunner().invoke(command, prog_name=program, env=asked).output
    offered = {line.partition(",")[2] for line in answer.splitlines()}
    assert some <= offered, offered
    assert not none & offered


@pytest.mark.parametrize("word", sorted({option.shown for option in ipvsadm.COMMANDS}))
def test_every_option_that_is_offered_is_taken(word: str) -> None:
    verb = next(option for option in ipvsadm.COMMANDS if option.shown == word)
    offered = {name for name, _ in ipvsadm.complete([word], "--")}
    assert offered == {f"--{name}" for name in verb.allowed}


@pytest.mark.parametrize("program", completion.PROGRAMS)
def test_a_program_answers_a_shell(program: str) -> None:
    """The program itself, as bash runs it."""
    if not shutil.which("bash"):
        pytest.skip("no bash")
    binary = Path(sys.executable).parent / program
    first = {"fnat": "serv", "fnat-ipvsadm": "--add-s", "fnat-dpip": "neig"}[program]
    whole = {"fnat": "service", "fnat-ipvsadm": "--add-service", "fnat-dpip": "neigh"}[program]
    text = (
        f'eval "$({Path(sys.executable).parent}/fnat completion bash)"; '
        f"COMP_WORDS=({binary} {first}); COMP_CWORD=1; {completion.variable(program)[: -len('_COMPLETE')].lower()}_completion {binary} {first}; "
        'echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", text], capture_output=True, text=True, timeout=60)
    assert whole in done.stdout.split(), done


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_a_shell_reads_its_script(shell: str, tmp_path: Path) -> None:
    code, out, err = type_in(f"fnat completion {shell}")
    assert (code, err) == (0, "")
    for program in completion.PROGRAMS:
        assert completion.variable(program) in out
    if shutil.which(shell):
        (tmp_path / "script").write_text(out)
        done = subprocess.run([shell, "-n", tmp_path / "script"], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")


def test_pages_are_accepted(tmp_path: Path) -> None:
    written = pages.write(tmp_path)
    assert [str(path.relative_to(tmp_path)) for path in written if "man" in str(path.parent.name)] == [
        "man1/fnat.1",
        "man5/fnat.toml.5",
        "man8/fnat-ipvsadm.8",
        "man8/fnat-dpip.8",
    ]
    assert len(written) == 4 + len(completion.SHELLS) * len(completion.PROGRAMS)
    for path in written[:4]:
        text = path.read_text()
        assert text.startswith(".TH ")
        for tool in (["groff", "-man", "-ww", "-z", "-Kutf8", "-Tutf8"], ["mandoc", "-Tlint", "-Werror"]):
            if shutil.which(tool[0]):
                done = subprocess.run([*tool, path], capture_output=True, text=True, timeout=60)
                assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), path


def test_pages_name_every_word(tmp_path: Path) -> None:
    """A page shows each command and option; the file's page each key."""
    pages.write(tmp_path)
    page = {path.name: path.read_text().replace("\\-", "-").replace("\\:", "") for path in tmp_path.glob("man*/*")}
    assert [name for name in ipvsadm.OPTIONS if f"--{name}" not in page["fnat-ipvsadm.8"]] == []
    assert [v for v in dpip.VERBS if f"{v.what} {v.name} " not in page["fnat-dpip.8"]] == []
    tree = [
        f"fnat {noun} {verb}"
        for noun, group in fnat.commands.items()
        if isinstance(group, click.Group)
        for verb in group.commands
    ]
    assert [words for words in tree if f'.SH "{words}"' not in page["fnat.1"]] == []
    keys = [
        line.split("=")[0].strip()
        for line in pages.EXAMPLE.read_text().splitlines()
        if "=" in line and line[0].isalpha()
    ]
    assert [key for key in keys if f"{key} = " not in page["fnat.toml.5"]] == []


FAILED = [
    ("fnat completion tcsh", 2, "'tcsh' is not one of 'bash', 'zsh', 'fish'"),
    ("fnat man /proc/nowhere", 1, "give a directory that can be written (FN-1304)"),
]


@pytest.mark.parametrize(("line", "code", "why"), FAILED, ids=[row[0] for row in FAILED])
def test_what_cannot_be_written(line: str, code: int, why: str) -> None:
    got, out, err = type_in(line)
    assert (got, out, err.count("\n")) == (code, "", 1)
    assert why in err
