"""The replay bench: any capture in, every packet accounted for, transparent byte for byte; and the judge can say no.

Real captures are read from the directory in FNAT_PCAPS, else from ../shared/pcaps beside the project, when it is there.
"""

import json
import os
import platform
import shutil
import struct
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from fnat import _core, replay
from fnat.bench import bench

sys.path.insert(0, str(Path(__file__).parent))
import checker
import made

ROOT = Path(__file__).parents[2]
PCAPS = Path(os.environ.get("FNAT_PCAPS") or ROOT.parent / "shared" / "pcaps")
REAL = sorted(p for p in PCAPS.glob("*") if p.name.endswith((".pcap", ".pcapng", ".gz"))) if PCAPS.is_dir() else []


def play(path: Path, out: Path | None = None) -> replay.Report:
    if not out:
        return replay.replay(_core, path, verify=True)[0]
    with out.open("wb") as file:
        return replay.replay(_core, path, verify=True, out=replay.Out(file))[0]


def assert_agreed(path: Path, out: Path) -> None:
    report = play(path, out)
    assert report.mismatched == 0, report.faults
    assert report.balanced()
    assert report.verified == report.forwarded
    assert report.ordinary_forwarded >= 0.999 * report.ordinary
    assert report.packets == report.ordinary + report.outside.total()
    judgement = checker.judge(path, out)
    assert not judgement.faults
    assert judgement.matched >= 0.999 * judgement.ordinary


@pytest.mark.parametrize("path", REAL, ids=[p.name for p in REAL])
def test_real_capture(path: Path, tmp_path: Path) -> None:
    assert_agreed(path, tmp_path / "out.pcap")


@pytest.mark.parametrize(("packets", "said"), [r[1:] for r in made.ROWS], ids=[r[0] for r in made.ROWS])
def test_row(packets: list, said: dict, tmp_path: Path) -> None:
    path = made.write(tmp_path / "capture.pcap", packets)
    report = play(path, tmp_path / "out.pcap")
    assert {name: getattr(report, name) for name in said} == said
    assert_agreed(path, tmp_path / "out.pcap")


@pytest.mark.parametrize("families", [(4, 4), (6, 6), (6, 4), (4, 6)], ids=lambda f: f"{f[0]}{f[1]}")
@pytest.mark.parametrize("path", REAL, ids=[p.name for p in REAL])
def test_real_capture_over_other_families(path: Path, families: tuple[int, int]) -> None:
    report = replay.replay(_core, path, verify=True, families=replay.Families(*families))[0]
    assert report.mismatched == 0, report.faults
    assert report.balanced()
    assert report.ordinary_forwarded >= 0.999 * report.ordinary


def test_snapped_payload_is_padded_and_snapped_header_is_skipped(tmp_path: Path) -> None:
    whole = made.write(tmp_path / "whole.pcap", made.TALK).read_bytes()
    snapped, at = whole[:24], 24
    while at < len(whole):
        record = list(struct.unpack_from("<IIII", whole, at))
        kept = min(record[2], 100)
        snapped += struct.pack("<IIII", *record[:2], kept, record[3]) + whole[at + 16 : at + 16 + kept]
        at += 16 + record[2]
    path = tmp_path / "snapped.pcap"
    path.write_bytes(snapped + struct.pack("<IIII", 1_700_000_009, 0, 40, 300) + bytes(made.TALK[3])[:40])
    report = play(path)
    assert (report.forwarded, report.skipped, report.mismatched) == (10, {"truncated": 1}, 0)
    assert report.prepared == {"padded": 2}


# ---- the judge can say no ----


def at(offset: int, by: int = 1) -> Callable[[bytes], bytes]:
    return lambda f: f[:offset] + bytes([(f[offset] + by) & 255]) + f[offset + 1 :]


# what is wrong, packet of TALK (3 client's data, 5 server's SACK, 6 server's data), damage to the output frame
TAMPERED6 = [  # the same for IPv6: addresses end at byte 53, TCP begins at 54
    ("traffic class", 3, at(15, 16)),
    ("flow label", 3, at(17)),
    ("payload length", 3, at(19)),
    ("hop limit", 6, at(21)),
    ("source address", 6, at(37)),
    ("destination address", 6, at(53)),
    ("ports", 3, at(57)),
    ("sequence number", 6, at(61)),
    ("TCP checksum", 3, at(71)),
    ("last byte missing", 3, lambda f: f[:-1]),
]
TAMPERED = [
    ("payload", 3, at(-1)),
    ("last byte missing", 3, lambda f: f[:-1]),
    ("bytes behind the packet", 3, lambda f: f + b"\0"),
    ("destination MAC", 3, at(5)),
    ("source MAC", 3, at(11)),
    ("type of service", 3, at(15)),
    ("IP id", 3, at(19)),
    ("don't fragment", 3, at(20, 64)),
    ("TTL", 6, at(22)),
    ("IP checksum", 6, at(25)),
    ("source address", 6, at(29)),
    ("destination address", 6, at(33)),
    ("source port", 6, at(35)),
    ("destination port", 3, at(37)),
    ("sequence number to the RS", 3, at(41)),
    ("sequence number to the client", 6, at(41)),
    ("acknowledgement to the client", 6, at(45)),
    ("window", 6, at(49)),
    ("TCP checksum", 3, at(51)),
    ("TSval to the RS", 3, at(61)),
    ("TSecr to the client", 6, at(65)),
    ("SACK edge", 5, at(73)),
    ("nothing left", 3, lambda f: b""),
]


@pytest.mark.parametrize(
    ("packets", "number", "damage"),
    [*((made.TALK, *r[1:]) for r in TAMPERED), *((made.TALK6, *r[1:]) for r in TAMPERED6)],
    ids=[*(r[0] for r in TAMPERED), *(f"IPv6 {r[0]}" for r in TAMPERED6)],
)
def test_tampering_is_noticed(
    packets: list, number: int, damage: Callable[[bytes], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed, turns = replay.Wires.feed, []

    def tampered(self: replay.Wires, port: int, frame: bytes | None, now_ns: int) -> replay.Turn:
        turn = feed(self, port, frame, now_ns)
        if frame is not None:
            turns.append(port)
            if len(turns) == number + 1:
                turn.sent = [(p, damage(f)) for p, f in turn.sent]
        return turn

    path = made.write(tmp_path / "capture.pcap", packets)
    monkeypatch.setattr(replay.Wires, "feed", tampered)
    assert play(path).mismatched == 1


@pytest.mark.parametrize("number", [3, 6])
@pytest.mark.parametrize(
    ("packets", "offset"),
    [(made.TALK, 14 + n) for n in (5, 8, 11, 27, 31, 37, 53)]
    + [(made.TALK6, 14 + n) for n in (1, 3, 7, 23, 39, 47, 51, 57, 73)],
)
def test_the_checker_notices_a_changed_byte(packets: list, offset: int, number: int, tmp_path: Path) -> None:
    path, out = made.write(tmp_path / "capture.pcap", packets), tmp_path / "out.pcap"
    play(path, out)
    assert not checker.judge(path, out).faults
    data, start = bytearray(out.read_bytes()), 24
    for _ in range(number):
        start += 16 + struct.unpack_from("<I", data, start + 8)[0]
    data[start + 16 + offset] ^= 1
    out.write_bytes(data)
    judgement = checker.judge(path, out)
    assert judgement.faults or judgement.matched < judgement.ordinary


SAME6 = "memcpy(ip->src, e.src, 16);\n    memcpy(ip->dst, e.dst, 16);\n    ip->hop_limit--;"
Mutation = tuple[str, str, str, tuple[int, int]]
TAKEN_OUT = [  # file, statement of the core that is taken out where it occurs last
    ("rewrite.h", "put64(&ip->src, addrs >> 32 | addrs << 32);"),
    ("rewrite.h", "put32(l4, ports >> 16 | ports << 16);"),
    ("rewrite.h", "put32(&ip->ttl, (u16)(ttl_and_proto - 1) | (u32)ip_csum << 16);"),
    ("rewrite.h", "csum = csum_apply(csum, delta);"),
    ("rewrite.h", "rewrite_complete_checksum(p);"),
    ("rewrite.h", "delta += rewrite_shift32(&tcp->seq, c->dseq);"),
    ("rewrite.h", "delta += rewrite_shift32(&tcp->ack, 0u - c->dseq);"),
    ("rewrite.h", "delta += rewrite_shift32(value, c->dts);"),
    ("rewrite.h", "delta += rewrite_shift32(echo, 0u - c->dts);"),
    ("rewrite.c", "delta += shift32(options + at + 2, odd, c->dts);"),
    ("rewrite.c", "delta += shift32(options + at + 6, odd, 0u - c->dts);"),
    ("rewrite.c", "delta += shift_sack(options + at, odd, size, 0u - c->dseq);"),
]
IN_TURN = [  # file, words of the core, words in their place where they occur last, families of clients and servers
    ("rewrite.h", "ip->hop_limit--;", "", (0, 0)),
    ("rewrite.h", "ip->hop_limit--;", "ip->hop_limit -= 2;", (0, 0)),
    ("rewrite.h", "ip->hop_limit--;", "ip->hop_limit--, ip->version_class_flow &= be32(0xf00fffff);", (0, 0)),
    ("rewrite.h", "ip->hop_limit--;", "ip->hop_limit--, ip->version_class_flow &= be32(0xfff00000);", (0, 0)),
    ("rewrite.h", SAME6, SAME6.replace("memcpy(ip->src, e.src, 16);", ""), (0, 0)),
    ("rewrite.h", SAME6, SAME6.replace("memcpy(ip->dst, e.dst, 16);", ""), (0, 0)),
    ("rewrite.h", SAME6, SAME6.replace("e.dst, 16", "e.dst, 15"), (0, 0)),
    ("rewrite.h", "(u64)csum + p->sport + p->dport", "(u64)csum + p->sport", (0, 0)),
    ("conn.c", "c->delta_l4 = csum_fold(addrs + ", "c->delta_l4 = csum_fold(", (0, 0)),
    ("rewrite.h", "return csum == csum_fold(csum_pseudo6(ip->src, p->proto, p->l4_len));", "return false;", (0, 0)),
    ("rewrite.c", "csum_pseudo6(l3 + 8, p->proto, p->l4_len)", "csum_pseudo6(l3 + 8, p->proto, p->l3_len)", (0, 0)),
    ("forward.c", "rewrite_complete_if_partial(k, p); /* a TAP", "; /* a TAP", (0, 0)),
    ("rewrite.c", "piece_header(k, p, c, dir, id);\n    if (first)", "if (first)", (0, 0)),
    ("rewrite.c", "return put_id4(ip, (u16)id);", "return;", (0, 0)),
    ("rewrite.c", "put32(p->data + p->frag_at + offsetof(struct ip6_fragment, id), be32(id));", "", (0, 0)),
    ("rewrite.c", "ip->csum = csum_apply(ip->csum, csum_delta16(ip->id, be16(id)));", "", (0, 0)),
    ("rewrite.c", ".tos = (u8)(be32(from.version_class_flow) >> 20)", ".tos = 0", (6, 4)),
    ("rewrite.c", ".ttl = (u8)(from.hop_limit - 1)", ".ttl = from.hop_limit", (6, 4)),
    ("rewrite.c", ".frag = fixed ? be16(IP4_DF) : 0", ".frag = 0", (6, 4)),
    ("rewrite.c", ".id = fixed ? 0 :", ".id = 1 + 0 *", (6, 4)),
    ("rewrite.c", "(u32)from.tos << 20", "0u", (4, 6)),
    ("rewrite.c", ".hop_limit = (u8)(from.ttl - 1)", ".hop_limit = from.ttl", (4, 6)),
    ("rewrite.c", "if (without)\n        rewrite_complete_checksum(p);", "", (4, 6)),
    ("rewrite.c", "rewrite_complete_checksum(p);\n    clamp(k, p, c);", "rewrite_complete_checksum(p);", (6, 4)),
    ("rewrite.c", "(at.more ? IP6_MF : 0)", "0", (4, 6)),
    ("rewrite.c", "(at.more ? IP4_MF : 0)", "0", (6, 4)),
]
MUTATIONS: list[Mutation] = [*((file, words, "", (0, 0)) for file, words in TAKEN_OUT), *IN_TURN]
UNTOUCHED: list[Mutation] = [("", "", "", f) for f in ((0, 0), (4, 4), (6, 6), (6, 4), (4, 6))]
BY_FILE = """
import importlib.util, sys
from pathlib import Path
from fnat import replay
spec = importlib.util.spec_from_file_location("mutant._core", sys.argv[1])
core = importlib.util.module_from_spec(spec)
spec.loader.exec_module(core)
families = replay.Families(int(sys.argv[3]), int(sys.argv[4]))
report = replay.replay(core, Path(sys.argv[2]), verify=True, families=families)[0]
print(report.forwarded, report.mismatched)
"""


FLAGS = ["-std=gnu11", "-O0", "-w", "-fPIC", "-fno-strict-aliasing", f"-I{sysconfig.get_path('include')}"]
FLAGS += ["-march=x86-64-v3"] if platform.machine() == "x86_64" else []


def compiled(source: Path, folder: Path, quotes: Path) -> Path:
    target = folder / f"{source.stem}.o"
    subprocess.run(["gcc", *FLAGS, f"-iquote{quotes}", "-c", str(source), "-o", str(target)], check=True)
    return target


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The core and its door compiled once; a mutant compiles again only what the mutation touches."""
    if not shutil.which("gcc"):
        pytest.skip("no gcc")
    folder = tmp_path_factory.mktemp("objects")
    door = folder / "_core.c"
    subprocess.run(
        [sys.executable, "-m", "cython", "-3", str(ROOT / "fnat/_core.pyx"), "-o", str(door)], check=True, cwd=ROOT
    )
    for source in [door, *(ROOT / "cext").glob("*.c"), *(ROOT / f"cext/drivers/{d}.c" for d in ("mem", "tap", "pcap"))]:
        compiled(source, folder, ROOT / "cext")
    return folder


@pytest.mark.parametrize(("file", "words", "instead", "families"), UNTOUCHED + MUTATIONS)
def test_a_changed_line_of_the_core_is_noticed(
    file: str, words: str, instead: str, families: tuple[int, int], objects: Path, tmp_path: Path
) -> None:
    mutants = {}
    if file:
        shutil.copytree(ROOT / "cext", tmp_path / "cext")
        target = tmp_path / "cext" / file
        text = target.read_text()
        assert words in text, f"{file} has changed: give this row its new words"
        target.write_text((instead or ";").join(text.rsplit(words, 1)))
        users = [p for p in (tmp_path / "cext").glob("*.c") if p.name == file or f'#include "{file}"' in p.read_text()]
        mutants = {f"{p.stem}.o": compiled(p, tmp_path, tmp_path / "cext") for p in users}
    module = tmp_path / "_core.so"
    parts = [str(mutants.get(o.name, o)) for o in objects.glob("*.o")]
    subprocess.run(["gcc", "-shared", *parts, "-o", str(module)], check=True)
    path = made.write(tmp_path / "capture.pcap", made.ALL)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-c", BY_FILE, str(module), str(path), *map(str, families)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    forwarded, mismatched = map(int, run.stdout.split())
    assert forwarded and bool(mismatched) == bool(file)


# ---- the command ----


def run(*words: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(bench, words)
    assert not result.exception or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def test_figures_of_the_command(tmp_path: Path) -> None:
    path = made.write(tmp_path / "capture.pcap", made.ALL)
    out = tmp_path / "out.pcap"
    code, text, _ = run(
        "replay",
        str(path),
        str(path),
        "--verify",
        "--seconds",
        "0.1",
        "--workers",
        "2",
        "--out",
        str(out),
        "--json",
        "-",
    )
    said = json.loads(text)
    assert code == 0
    assert said["packets"] == 2 * len(made.ALL)
    assert said["packets"] == said["forwarded"] + said["passed"] + sum(said["dropped"].values()) + sum(
        said["skipped"].values()
    )
    assert (said["mismatched"], said["verified"], said["workers"]) == (0, said["forwarded"], 2)
    assert said["mpps"] > 0 and said["ns_per_packet"] > 0 and said["seconds"] > 0.15
    assert out.stat().st_size > 24 + said["forwarded"] * 60


def test_speed_loop_loses_nothing(tmp_path: Path) -> None:
    path = made.write(tmp_path / "capture.pcap", made.ALL)
    _, layout = replay.replay(_core, path, verify=False)
    speed = replay.speed(_core, path, layout, 1, 0.1)
    assert speed.packets > 1000
    assert speed.lost == 0


BROKEN = [  # words after `bench`, exit code, part of the one line
    (["replay", "{dir}/absent.pcap"], 1, "cannot be read"),
    (["replay", "{dir}/text.pcap"], 1, "not a capture"),
    (["replay", "{dir}/empty.pcap"], 1, "empty file"),
    (["replay", "{dir}/good.pcap", "--out", "{dir}/no/such/out.pcap"], 1, "No such file"),
    (["replay", "{dir}/good.pcap", "--json", "{dir}/no/such.json"], 1, "No such file"),
    (["replay"], 2, "Missing argument"),
    (["nat", "--family", "5"], 2, "'5' is not one of"),
    (["replay", "{dir}/good.pcap", "--families", "56"], 2, "not one of"),
    (["nat", "--conns", "0"], 2, "not in the range"),
    (["nat", "--conns", "64000000", "--workers", "64"], 1, "ask for fewer connections"),
]


@pytest.mark.parametrize(("words", "code", "line"), BROKEN, ids=[" ".join(b[0]) for b in BROKEN])
def test_bad_input_is_one_line(words: list[str], code: int, line: str, tmp_path: Path) -> None:
    (tmp_path / "text.pcap").write_text("this is no capture")
    (tmp_path / "empty.pcap").touch()
    made.write(tmp_path / "good.pcap", made.TALK[:3])
    said, _, err = run(*(w.format(dir=tmp_path) for w in words), *(["--seconds", "0"] if words[0] == "replay" else []))
    assert said == code
    assert line in err
    assert "Traceback" not in err and (code == 2 or err.strip().count("\n") == 0)
