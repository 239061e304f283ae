"""`fnat help CODE`: one page for each code that fnat can show, and none too many."""

import re
from pathlib import Path

import pytest
import rtoml

from fnat.errors import CODES, page

FNAT = Path(__file__).parents[2] / "fnat"


def raised() -> set[str]:
    """Codes in the source; those of the table itself do not count."""
    texts = [path.read_text() for path in FNAT.rglob("*.py")]
    core = [path.read_text() for path in (FNAT.parent / "cext").rglob("*.c")]
    codes = {code for text in texts for code in re.findall(r'"(FN-[0-9]{4})"(?!: )', text)}
    return codes | {code for text in core for code in re.findall(r"\((FN-[0-9]{4})\)", text)}


def test_each_code_that_is_raised_has_a_title_and_a_page_and_none_is_unused():
    pages = rtoml.loads((FNAT / "help.toml").read_text())
    assert raised() == set(CODES) == set(pages)


@pytest.mark.parametrize("code", sorted(CODES))
def test_page_says_cause_and_mend(code):
    told = page(code)
    assert set(told) == {"code", "title", "cause", "mend"}
    for word in ("title", "cause", "mend"):
        assert told[word].endswith(".") and "\n" not in told[word] and len(told[word]) > 12
