"""The block syntax that dpvs.conf and keepalived.conf share: text -> statements with their file and line.

A statement is the words of a line, with a block in braces behind it or not. Comments run from `!` or `#` to the end of
the line, or stand between `<` and `>` at the beginning of a word; quotes and backslashes keep what they hold; `$NAME =
text` defines what `$NAME` and `${NAME}` stand for; `include` and its variants read other files, relative to theirs.

Unsatisfying: `~SEQ` and `~LST` of keepalived and definitions of several lines are refused; statements for one
configuration id (`@ID …`) are kept as such, for the caller to list.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, NoReturn

from fnat.errors import FnatError

MAX_DEPTH = 32  # of blocks, and of includes
MAX_FILES = 1000
MAX_BYTES = 64 << 20  # of one file
MAX_LINE = 1 << 16  # after definitions are put in
_INCLUDES = ("include", "includea", "includeb", "includem", "includer", "includew")


class _Word(NamedTuple):
    text: str
    raw: str


class Origin(NamedTuple):
    """Where something is written."""

    file: str
    line: int
    word: str


@dataclass(frozen=True)
class Statement:
    """Words of a line, and as they are written there; block None: there are no braces."""

    file: str
    line: int
    words: tuple[str, ...]
    block: tuple[Statement, ...] | None = None
    raw: tuple[str, ...] = ()

    @property
    def written(self) -> str:
        """The line once more, without its block."""
        return " ".join(self.raw or map(written, self.words))

    @property
    def name(self) -> str:
        return self.words[0]

    @property
    def values(self) -> tuple[str, ...]:
        return self.words[1:]

    @property
    def inner(self) -> tuple[Statement, ...]:
        return self.block or ()

    @property
    def at(self) -> Origin:
        return Origin(self.file, self.line, self.name)

    def walk(self) -> Iterator[Statement]:
        yield self
        for statement in self.inner:
            yield from statement.walk()


@dataclass
class _Open:
    """A statement that is being read."""

    file: str
    line: int
    words: list[_Word]
    block: list[_Open] | None = None

    def close(self) -> Statement:
        inner = None if self.block is None else tuple(child.close() for child in self.block)
        words, raw = tuple(word.text for word in self.words), tuple(word.raw for word in self.words)
        return Statement(self.file, self.line, words, inner, raw)


def read_text(path: Path | str, shown: str | None = None) -> str:
    """The text of a regular file. Raises FnatError."""
    path, shown = Path(path), shown or str(path)
    try:
        if path.exists() and not path.is_file():
            raise FnatError("FN-1501", f"{shown}: not a regular file", "give the path of a file")
        if path.stat().st_size > MAX_BYTES:
            raise FnatError("FN-1501", f"{shown}: larger than {MAX_BYTES >> 20} MiB", "give a configuration file")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise FnatError("FN-1501", f"{shown}: not UTF-8 text", "save the file as UTF-8") from None
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise FnatError("FN-1501", f"{shown}: {why}", "give the path of a readable file") from None


def parse(text: str, file: str, path: Path | None = None) -> list[Statement]:
    """The statements of a text. file: its name in messages; path: where it lies, for includes. Raises FnatError."""
    reader = _Reader()
    chain = (path.resolve(),) if path is not None else ()
    return [statement.close() for statement in reader.read(text, file, chain)]


def _bad(file: str, line: int, problem: str, fix: str) -> NoReturn:
    raise FnatError("FN-1502", f"{file}:{line}: {problem}", fix)


@dataclass
class _Reader:
    """One file and all that it includes."""

    definitions: dict[str, str] = field(default_factory=dict)
    files: int = 0

    def read(self, text: str, file: str, chain: tuple[Path, ...]) -> list[_Open]:
        top: list[_Open] = []
        stack: list[tuple[_Open | None, list[_Open]]] = [(None, top)]
        for number, line in _lines(text):
            if (full := self.put_in(line, file, number)) is None:
                continue
            words: list[_Word] = []
            for first, token in enumerate(_tokens(full, file, number)):
                here = stack[-1][1]
                if token == "{":
                    opening = _Open(file, number, words)
                    if not words:
                        if first or not here or here[-1].block is not None:
                            _bad(file, number, "'{' without a name before it", "name the block, or remove the brace")
                        opening = here.pop()
                    here.append(opening)
                    opening.block = []
                    stack.append((opening, opening.block))
                    words = []
                    if len(stack) > MAX_DEPTH:
                        _bad(file, number, "blocks lie too deep", f"nest at most {MAX_DEPTH} of them")
                elif token == "}":
                    self.end(words, here, file, number, chain)
                    words = []
                    if len(stack) == 1:
                        _bad(file, number, "'}' without a block", "remove it, or look for a '{' that is missing above")
                    stack.pop()
                elif isinstance(token, _Word):
                    words.append(token)
            self.end(words, stack[-1][1], file, number, chain)
        if (opened := stack[-1][0]) is not None:
            _bad(file, opened.line, f"the block {opened.words[0].text!r} is not closed", "add the '}' that is missing")
        return top

    def end(self, words: list[_Word], here: list[_Open], file: str, number: int, chain: tuple[Path, ...]) -> None:
        """A statement without a block is complete."""
        if not words:
            return
        if words[0].text in _INCLUDES:
            if len(words) != 2:
                _bad(file, number, "include needs one file name", "write: include FILE")
            here += self.include(words[1].text, file, number, chain)
        else:
            here.append(_Open(file, number, words))

    def include(self, name: str, file: str, number: int, chain: tuple[Path, ...]) -> list[_Open]:
        if not chain:
            _bad(file, number, "a text without a place includes a file", "give the file by its path")
        if "\0" in name:
            _bad(file, number, "include has no file name", "write: include FILE")
        found: list[_Open] = []
        wild = glob.has_magic(name)
        names = sorted(glob.glob(str(chain[-1].parent / name))) if wild else [str(chain[-1].parent / name)]
        for path in map(Path, names):
            if (target := path.resolve()) in chain:
                _bad(file, number, f"include {name}: the file includes itself", "take one of the includes out")
            self.files += 1
            if self.files > MAX_FILES or len(chain) >= MAX_DEPTH:
                _bad(file, number, "too many includes", f"at most {MAX_FILES} files, {MAX_DEPTH} deep")
            try:
                text = read_text(path)
            except FnatError as error:
                _bad(file, number, f"include {error.message}", error.fix)
            near = target.is_relative_to(chain[0].parent)
            found += self.read(text, str(target.relative_to(chain[0].parent) if near else path), (*chain, target))
        return found

    def put_in(self, line: str, file: str, number: int) -> str | None:
        """The line with definitions put in; None when it is a definition itself."""

        def value(match: re.Match[str]) -> str:
            return self.definitions.get(match[1] or match[2], match[0])

        if "~SEQ" in line or "~LST" in line:
            _bad(file, number, "~SEQ and ~LST are not understood", "write out what they stand for")
        definition = re.match(r"\s*\$(\w+)\s*=(.*)$", line)
        if "$" in line:
            line = re.sub(r"\$(?:\{(\w+)\}|(\w+))", value, definition[2] if definition else line)
            if len(line) > MAX_LINE:
                _bad(file, number, "the line is too long with its definitions put in", "shorten it")
        if definition:
            self.definitions[definition[1]] = re.sub(r"\s[#!].*", "", line).strip()
            return None
        return line


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines and their numbers; a line that ends in a backslash goes on in the next."""
    begun, start = "", 0
    for number, line in enumerate(text.split("\n"), 1):
        start = start or number
        if line.endswith("\\") and len(begun) < MAX_LINE:
            begun += line[:-1] + " "
            continue
        yield start, begun + line
        begun, start = "", 0
    if begun:
        yield start, begun


def _tokens(line: str, file: str, number: int) -> Iterator[_Word | str]:
    """Words and braces. Quotes and backslashes keep what they hold, also braces."""
    at, word, start = 0, "", None
    while at < len(line):
        c, begin = line[at], at
        at += 1
        if c in "\"'":
            end = at
            while end < len(line) and line[end] != c:
                end += 2 if line[end] == "\\" and c == '"' else 1
            if end >= len(line):
                _bad(file, number, "a quoted text does not end", f"add the {c} that is missing")
            held = line[at:end]
            word, at = word + (re.sub(r"\\(.)", r"\1", held) if c == '"' else held), end + 1
        elif c == "\\" and at < len(line):
            word, at = word + line[at], at + 1
        elif c == "$" and line[at : at + 1] == "{" and "}" in line[at:]:
            end = line.index("}", at) + 1
            word, at = word + line[at - 1 : end], end
        elif c in "#!" or c.isspace() or c in "{}" or (c == "<" and start is None and ">" in line[at:]):
            if start is not None:
                yield _Word(word, line[start:begin])
            word, start = "", None
            if c in "#!":
                return
            if c == "<":
                at = line.index(">", at) + 1
            elif c in "{}":
                yield c
            continue
        else:
            word += c
        start = begin if start is None else start
    if start is not None:
        yield _Word(word, line[start:])


_PLAIN = re.compile(r"[^\s\"'\\#!<{}$~@]+")


def written(word: str) -> str:
    """A word as it stands in a file."""
    if _PLAIN.fullmatch(word):
        return word
    return '"' + re.sub(r'(["\\])', r"\\\1", word) + '"'
