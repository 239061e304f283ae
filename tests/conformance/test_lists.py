"""The lists are well formed, every test they name exists, and the document is what they say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "netns"))
from lists import HERE, ORDER, README, ROOT, List, document, lists, load, names


@pytest.fixture(scope="module")
def nodes() -> set[str]:
    """Every test that pytest finds in the files that the lists name."""
    files = sorted({test.partition("::")[0] for one in lists() for row in one.rows for test in row.tests})
    words = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "-o", "addopts=", *files]
    done = subprocess.run(words, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return {line for line in done.stdout.splitlines() if "::" in line}


@pytest.mark.parametrize("one", lists(), ids=lambda one: one.name)
def test_every_test_that_is_named_exists(one: List, nodes: set[str]) -> None:
    missing = [
        f"{row.id}: {test}" for row in one.rows for test in row.tests if not any(names(test, node) for node in nodes)
    ]
    assert missing == []


def test_every_list_is_in_the_document() -> None:
    assert sorted(ORDER) == sorted(path.stem for path in HERE.glob("*.toml"))


def test_the_document_is_what_the_lists_and_tests_say() -> None:
    assert README.read_text() == document(), "run python tests/conformance/lists.py"


ROW = 'id = "REQ-1"\nlevel = "MUST"\nsays = "x"\n'


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (ROW + 'verdict = "maybe"', "none of yes"),
        (ROW + 'verdict = "yes"', "yes without a test"),
        (ROW + 'verdict = "deviates"\ntests = ["a::b"]', "a reason"),
        (ROW + 'verdict = "deviates"\nreason = "so"', "deviates without a test"),
        (ROW + 'verdict = "no"', "a reason"),
        (ROW + 'verdict = "yes"\ntests = ["a::b"]\nreason = "so"', "a reason"),
        (ROW + 'verdict = "yes"\ntest = ["a::b"]\ntests = ["a::b"]', "no such key: test"),
        (ROW + 'verdict = "no"\nreason = "so"\n[[row]]\n' + ROW + 'verdict = "no"\nreason = "so"', "more than one row"),
    ],
    ids=lambda text: text.splitlines()[-1],
)
def test_a_list_that_is_none_is_refused(text: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some.toml").write_text(f'title = "t"\nabout = "a"\n[[row]]\n{text}\n')
    monkeypatch.setattr("lists.HERE", tmp_path)
    with pytest.raises(ValueError, match=why):
        load("some")


@pytest.mark.parametrize(
    ("test", "node", "does"),
    [
        ("a.py::test_x", "a.py::test_x", True),
        ("a.py::test_x", "a.py::test_x[y]", True),
        ("a.py::test_x", "a.py::test_xy", False),
        ("a.py::test_x[y]", "a.py::test_x[y]", True),
        ("a.py::test_x[y]", "a.py::test_x[y-Core]", True),
        ("a.py::test_x[y]", "a.py::test_x[yz]", False),
    ],
)
def test_a_name_means_one_test_or_all_rows_of_it(test: str, node: str, does: bool) -> None:
    assert names(test, node) is does
