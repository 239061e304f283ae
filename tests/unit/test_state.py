"""The journals: what survives, also when the machine stops in mid-write; and when an id may be used again."""

import json
import os

import pytest

from fnat.errors import EngineError
from fnat.state import ZERO, Ids, Journal, Overlay

# sentence, bytes of the file, records read, bytes of the file afterwards
FILES = [
    ("no file", None, [], None),
    ("empty", b"", [], b""),
    ("whole lines", b'1\n{"a":2}\n', [1, {"a": 2}], b'1\n{"a":2}\n'),
    ("torn last line", b'1\n{"a":', [1], b"1\n"),
    ("last line without its end may be torn", b"1\n2", [1], b"1\n"),
    ("torn in the middle of a character", b'1\n"\xc3', [1], b"1\n"),
    ("only a torn line", b"{", [], b""),
]


@pytest.mark.parametrize(("before", "records", "after"), [f[1:] for f in FILES], ids=[f[0] for f in FILES])
def test_journal_reads_what_was_whole(tmp_path, before, records, after):
    path = tmp_path / "j"
    if before is not None:
        path.write_bytes(before)
    journal = Journal(path)
    assert journal.load() == records
    assert (path.read_bytes() if path.exists() else None) == after
    journal.append(["next"])
    assert Journal(path).load() == [*records, "next"]


def test_damage_before_the_end_is_told(tmp_path):
    path = tmp_path / "j"
    path.write_bytes(b"1\nxx\n2\n")
    with pytest.raises(EngineError, match="damaged at line 2") as caught:
        Journal(path).load()
    assert caught.value.code == "FN-1304"


def test_rewrite_is_whole_and_private(tmp_path):
    path = tmp_path / "state" / "j"
    journal = Journal(path)
    journal.rewrite([1, 2])
    journal.append([3])
    journal.rewrite([4])
    assert path.read_text() == "4\n"
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(path.parent) == ["j"]


def test_refusal_of_the_disk_is_one_line_and_leaves_no_half_line(tmp_path, monkeypatch):
    path = tmp_path / "j"
    journal = Journal(path)
    journal.append([1])

    def no_sync(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_sync)
    with pytest.raises(EngineError, match="No space left") as caught:
        journal.append([2])
    assert caught.value.code == "FN-1304"
    assert path.read_text() == "1\n"


def test_overlay_keeps_order_and_gets_shorter(tmp_path):
    overlay = Overlay(tmp_path / "o")
    overlay.append([{"op": "a"}, {"op": "b"}])
    overlay.append([])
    overlay.append([{"op": "c"}])
    assert [c["op"] for c in Overlay(tmp_path / "o").load()] == ["a", "b", "c"]
    assert len((tmp_path / "o").read_text().splitlines()) == 2, "one line for each transaction"
    overlay.replace([{"op": "c"}])
    assert Overlay(tmp_path / "o").load() == [{"op": "c"}]


def nobody(id):
    return ZERO


def test_ids_are_stable_over_a_restart(tmp_path):
    ids = Ids(tmp_path / "ids")
    one, two = ids.take("service", "a", 10, nobody), ids.take("service", "b", 10, nobody)
    address = ids.take("address", "a", 10, nobody)
    address.port = "lan"
    ids.save(address)
    one.base = (1, 2, 3, 4, 5)
    ids.save(one)
    ids.release(two)
    ids.flush()
    again = Ids(tmp_path / "ids")
    again.load()
    assert [(e.key, e.id, e.base) for e in again.entries("service")] == [("a", 1, (1, 2, 3, 4, 5))]
    assert [(e.key, e.id, e.port, e.base) for e in again.entries("address")] == [("a", 1, "lan", ZERO)]
    assert again.take("service", "a", 10, nobody).id == 1
    assert again.take("service", "c", 10, nobody).id == 2


def test_nothing_is_on_disk_before_flush(tmp_path):
    ids = Ids(tmp_path / "ids")
    ids.take("member", "a", 10, nobody)
    assert not (tmp_path / "ids").exists()
    ids.flush()
    assert json.loads((tmp_path / "ids").read_text()) == {"kind": "member", "key": "a", "id": 1}


def test_busy_id_is_not_given_out():
    ids = Ids(None)
    assert [ids.take("member", key, 6, lambda id: None if id in (1, 3) else ZERO).id for key in "abc"] == [2, 4, 5]
    with pytest.raises(EngineError, match="no free member id") as caught:
        ids.take("member", "d", 6, lambda id: None if id in (1, 3) else ZERO)
    assert caught.value.code == "FN-1303"


def test_freed_id_is_used_last():
    ids = Ids(None)
    first = ids.take("member", "a", 5, nobody)
    ids.release(first)
    assert [ids.take("member", key, 5, nobody).id for key in "bcde"] == [2, 3, 4, 1]


def test_file_of_ids_stays_short(tmp_path):
    ids = Ids(tmp_path / "ids")
    for n in range(3000):
        ids.release(ids.take("member", f"{n}", 100, nobody))
        ids.flush()
    assert len((tmp_path / "ids").read_text().splitlines()) <= 1002


class Stopped(BaseException):
    """The machine stops here."""


def stop_at(monkeypatch, number):
    """The machine stops in the number-th call that changes the disk; a write has then half happened."""
    calls = []

    def counted(name, real):
        def call(*args, **kwargs):
            calls.append(name)
            if len(calls) == number:
                if name == "write":
                    real(args[0], args[1][: len(args[1]) // 2])
                raise Stopped
            return real(*args, **kwargs)

        return call

    for name in ("write", "fsync", "replace", "ftruncate", "open"):
        monkeypatch.setattr(os, name, counted(name, getattr(os, name)))
    return calls


def append_two(overlay):
    yield
    overlay.append([{"op": "b"}])
    yield
    overlay.append([{"op": "c"}, {"op": "d"}])
    yield


def shorten_aside(overlay):
    """What is appended between the halves survives; "ab" says what "a" and "b" said."""
    yield
    overlay.append([{"op": "b"}])
    yield
    mark = overlay.mark()
    prepared = overlay.prepare([{"op": "ab"}])
    overlay.append([{"op": "c"}, {"op": "d"}])
    yield
    overlay.shorten(prepared, [{"op": "ab"}], mark)


def replace(overlay):
    yield
    overlay.replace([{"op": "b"}])
    yield


# what is done, and what may be read after each step that was finished: as the finished ones say, or one further
STEPS = [
    (append_two, ["a", "ab", "abcd"]),
    (shorten_aside, ["a", "ab", "abcd"]),
    (replace, ["a", "b"]),
]


@pytest.mark.parametrize(("work", "states"), STEPS, ids=[s[0].__name__ for s in STEPS])
def test_a_stop_at_any_write_leaves_what_was_acknowledged(tmp_path, monkeypatch, work, states):
    for number in range(1, 100):
        path = tmp_path / f"o{number}"
        overlay = Overlay(path)
        overlay.append([{"op": "a"}])
        finished = -1
        with monkeypatch.context() as patch:
            calls = stop_at(patch, number)
            try:
                for _ in work(overlay):
                    finished += 1
            except Stopped:
                pass
        read = "".join(c["op"] for c in Overlay(path).load())
        assert read in states[finished : finished + 2], f"stopped at call {number} ({calls[-1:]}) after step {finished}"
        again = Overlay(path)
        again.load()
        again.append([{"op": "z"}])
        assert "".join(c["op"] for c in Overlay(path).load()) == read + "z"
        if len(calls) < number:
            break
    assert number > 4


def test_shortening_gives_way_to_a_replacement(tmp_path):
    overlay = Overlay(tmp_path / "o")
    overlay.append([{"op": "a"}])
    mark = overlay.mark()
    prepared = overlay.prepare([{"op": "a"}])
    overlay.replace([{"op": "b"}])
    overlay.shorten(prepared, [{"op": "a"}], mark)
    assert Overlay(tmp_path / "o").load() == [{"op": "b"}]
    assert os.listdir(tmp_path) == ["o"]
