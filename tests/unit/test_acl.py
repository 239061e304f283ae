"""Access lists: sets of addresses in the core against plain Python, lists on packets, sets in the configuration."""

from __future__ import annotations

import ipaddress
import random
import time
from pathlib import Path

import packets as wire
import pytest
from fakes import FakePlane
from hypothesis import given, settings
from hypothesis import strategies as st
from packets import SYN, TCP, UDP
from rig import CLIENT, CLIENT6, VIP, VIP6, WAN, Rig

from fnat import config, plan, sets
from fnat.control import Control
from fnat.engine import Engine
from fnat.errors import ChangeError, ConfigError
from fnat.grammar import Usage, ipset
from fnat.model import CHANGES, Config, PortInfo
from fnat.state import Ids, Overlay

from fnat._core import Plane  # isort: skip

MIB = 1 << 20


def decide(entries: dict[ipaddress.IPv4Network | ipaddress.IPv6Network, int], addr: str) -> bool:
    """Is the address in the set? The longest prefix says so."""
    ip = ipaddress.ip_address(addr)
    found = [p for p in entries if p.version == ip.version and ip in p]
    return bool(found) and entries[max(found, key=lambda p: p.prefixlen)] == 1


def near(dice: random.Random, bits: int, deep: int) -> int:
    """An address that shares many bits with others."""
    base = 0x20010DB8 << 96 if bits == 128 else 0xC6336400
    return base ^ dice.getrandbits(deep) << (bits - deep if dice.random() < 0.5 else dice.randrange(bits - deep + 1))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), six=st.booleans(), deep=st.sampled_from([3, 8, 14, 24]), many=st.booleans())
def test_the_longest_prefix_decides_whatever_comes_and_goes(seed, six, deep, many):
    """Overlapping prefixes put in and taken out in any order; `many`: with the table in front of the tries."""
    dice, bits = random.Random(seed), 128 if six else 32
    network = ipaddress.IPv6Network if six else ipaddress.IPv4Network
    plane = Plane.create(None, conns=16, services=1, members=1, endpoints=4, frames=0, snapshot_mib=1, acl_mib=4)
    plane.publish()
    room, id, entries = plane.acl_free(), plane.acl_make("some"), {}

    def edit(prefix, answer):
        plane.acl_edit(id, sets.key_of(prefix), bytes([answer]))
        entries.pop(prefix, None)
        if answer:
            entries[prefix] = answer

    if many:
        while len(entries) < 4200:
            edit(network((near(dice, bits, 24), bits)), 1)
        plane.publish()
    for _ in range(150):
        if entries and dice.random() < 0.4:
            edit(dice.choice(list(entries)[-200:]), 0)
        else:
            plen = dice.choice([bits, dice.randrange(bits + 1), dice.randrange(20)])
            edit(network((near(dice, bits, deep), plen), strict=False), dice.choice([1, 1, 2]))
        if dice.random() < 0.1:
            plane.publish()
            assert plane.adopted() > 0
            for _ in range(4):
                addr = str(network(near(dice, bits, deep))[0])
                assert plane.acl_test(id, addr) == decide(entries, addr), addr
    keys, answers = plane.acl_read(id)
    assert {sets.network_of(keys[18 * i : 18 * i + 18]): a for i, a in enumerate(answers)} == entries
    for prefix in list(entries):
        edit(prefix, 0)
    plane.acl_drop(id)
    plane.publish()
    plane.publish()
    assert plane.acl_free() == room, "every line is given back"
    plane.close()


def test_another_control_takes_the_sets_over(tmp_path):
    with_file = {"conns": 64, "services": 1, "members": 1, "endpoints": 4, "frames": 0, "snapshot_mib": 1, "acl_mib": 2}
    directory = Path("/dev/shm") / f"fnat-test-acl-{tmp_path.name}-{time.monotonic_ns()}"
    directory.mkdir()
    try:
        plane = Plane.create(str(directory), **with_file)
        one = Plane.attach(str(directory))
        id = one.acl_make("bad")
        keys = b"".join(sets.key_of(ipaddress.IPv4Network((i << 8, 24))) for i in range(5000))
        one.acl_edit(id, keys, b"\1" * 5000)
        one.publish()
        free = one.acl_free()
        one.close()
        two = Plane.attach(str(directory))
        assert [(name, v4) for _, name, v4, _ in two.acl_sets()] == [("bad", 5000)]
        assert two.acl_make("bad") == id and sorted(two.acl_read(id)[0]) == sorted(keys)
        two.acl_edit(id, sets.key_of(ipaddress.IPv4Network("0.0.7.0/24")), b"\0")
        two.publish()
        assert two.acl_free() >= free - 64 * 100 and not plane.acl_test(id, "0.0.7.1") and plane.acl_test(id, "0.0.8.1")
        two.close()
        plane.close()
    finally:
        for file in directory.iterdir():
            file.unlink()
        directory.rmdir()


def test_no_room_leaves_what_is_there():
    plane = Plane.create(None, conns=16, services=1, members=1, endpoints=4, frames=0, snapshot_mib=1, acl_mib=1)
    plane.publish()
    id, key = plane.acl_make("all"), sets.key_of(ipaddress.IPv4Network("10.0.0.0/8"))
    plane.acl_edit(id, key, b"\1")
    with pytest.raises(OSError, match="entry"):
        for i in range(1 << 15):
            plane.acl_edit(id, sets.key_of(ipaddress.IPv4Network((i * 77777 % 2**32, 32))), b"\1")
    plane.publish()
    assert plane.acl_test(id, "10.1.2.3")
    keys, answers = plane.acl_read(id)
    plane.acl_edit(id, keys, bytes(len(answers)))
    plane.publish()
    assert not plane.acl_test(id, "10.1.2.3") and plane.acl_free() == MIB - (4 << 16), "but for the table"


# ---- lists on packets ----

ROWS = [
    # general deny, general allow, the service's deny, its allow (sets with these entries) -> reason; None: it passes
    ((), (), (), (), None),
    (["198.51.100.0/24"], (), (), (), "acl_general_deny"),
    (["198.51.100.0/24", "!198.51.100.7"], (), (), (), None),
    (["198.51.100.0/24", "!198.51.100.0/25", "198.51.100.7"], (), (), (), "acl_general_deny"),
    ((), ["203.0.113.0/24"], (), (), "acl_general_not_allowed"),
    ((), ["198.51.0.0/16"], (), (), None),
    (["198.51.100.7"], ["198.51.100.7"], (), (), "acl_general_deny"),
    ((), (), ["198.51.100.7"], ["198.51.100.7"], "acl_deny"),
    ((), (), (), ["198.51.100.6"], "acl_not_allowed"),
    ((), (), ["198.51.100.6"], ["198.51.100.7"], None),
    ((), (), (), ["::/0"], "acl_not_allowed"),
    ((), ["0.0.0.0/0"], ["0.0.0.0/0"], (), "acl_deny"),
]


def put_lists(rig: Rig, lists: list[list[str]], service: dict[str, object]) -> None:
    ids = []
    for number, entries in enumerate(lists):
        if not entries:
            ids.append([])
            continue
        id = rig.plane.acl_make(f"list{number}")
        for entry in entries:
            key = sets.key_of(ipaddress.ip_network(entry.lstrip("!")))
            rig.plane.acl_edit(id, key, bytes([2 if entry[0] == "!" else 1]))
        ids.append([id])
    rig.plane.put_acl(ids[0], ids[1])
    rig.service(0, **service, deny=ids[2], allow=ids[3])


@pytest.mark.parametrize(("deny", "allow", "own_deny", "own_allow", "reason"), ROWS)
@pytest.mark.parametrize(("proto", "one_packet"), [(TCP, False), (UDP, False), (UDP, True)])
def test_who_may_open_a_connection(deny, allow, own_deny, own_allow, reason, proto, one_packet):
    rig = Rig()
    put_lists(rig, [deny, allow, own_deny, own_allow], {"proto": proto, "one_packet": one_packet})
    before = rig.counters()
    frames = [
        wire.tcp(CLIENT, 5000 + i, VIP, 80, SYN) if proto == TCP else wire.udp(CLIENT, 5000 + i, VIP, 80, b"x")
        for i in range(3)
    ]
    out = rig.send(WAN, *frames)
    moved = rig.moved(before)
    assert moved.get(reason or "to_rs") == 3 and len(out) == (0 if reason else 3)
    assert rig.plane.acl_stats(0) == (3 * (reason == "acl_deny"), 3 * (reason == "acl_not_allowed"))
    rig.check_sums()
    rig.close()


def test_an_established_connection_goes_on_until_it_is_rechecked():
    rig = Rig()
    rig.service(0)
    rig.service(1, VIP6, 80, TCP, lips=[6], members=[(8, "fd00::101", 8080, 1)])
    rig.send(
        WAN, *[wire.tcp(CLIENT, 5000 + i, VIP, 80, SYN) for i in range(40)], wire.tcp("203.0.113.9", 7, VIP, 80, SYN)
    )
    rig.send(WAN, wire.tcp(CLIENT6, 9, VIP6, 80, SYN))
    put_lists(rig, [["198.51.100.0/24", "2001:db8:99::/48"], [], [], []], {})
    assert len(rig.send(WAN, wire.tcp(CLIENT, 5000, VIP, 80, SYN))) == 1, "a repeated SYN belongs to the connection"
    assert rig.send(WAN, wire.tcp(CLIENT, 6000, VIP, 80, SYN)) == []
    assert rig.counters()["acl_general_deny"] == 1 and len(rig.conns()) == 42
    number = rig.plane.acl_recheck()
    rig.plane.publish()
    for _ in range(4):
        rig.step()
    assert rig.plane.acl_rechecked() == number and [c.cip for c in rig.conns()] == ["203.0.113.9"]
    assert rig.counters()["acl_closed"] == 41
    assert rig.send(WAN, wire.tcp(CLIENT, 5000, VIP, 80, wire.ACK)) == []
    rig.wait(12, 0.25)
    rig.check_empty()
    rig.close()


def test_a_recheck_ends_though_every_turn_has_a_new_snapshot():
    rig = Rig()
    rig.service(0)
    for first in range(0, 320, 64):
        rig.send(WAN, *[wire.tcp(CLIENT, 5000 + first + i, VIP, 80, SYN) for i in range(64)])
    put_lists(rig, [[CLIENT], [], [], []], {})
    number = rig.plane.acl_recheck()
    for _ in range(12):
        rig.plane.publish()
        rig.step()
    assert rig.plane.acl_rechecked() == number and rig.conns() == []
    second = rig.plane.acl_recheck()
    rig.plane.publish()
    rig.step()
    assert rig.plane.acl_rechecked() == number, "the next pass has only begun"
    for _ in range(12):
        rig.plane.publish()
        rig.step()
    assert rig.plane.acl_rechecked() == second
    rig.close()


def test_who_is_denied_gets_no_answer_from_a_port_that_nobody_serves():
    rig = Rig()
    rig.service(0)
    put_lists(rig, [[CLIENT], [], [], []], {})
    assert rig.send(WAN, wire.tcp(CLIENT, 1, VIP, 81, SYN)) == []
    assert len(rig.send(WAN, wire.tcp("198.51.100.8", 1, VIP, 81, SYN))) == 1
    rig.close()


def test_counts_of_a_service_start_again_with_zero_and_with_another_service():
    rig = Rig()
    put_lists(rig, [[], [], [CLIENT], []], {})
    rig.send(WAN, wire.tcp(CLIENT, 1, VIP, 80, SYN))
    assert rig.plane.acl_stats(0) == (1, 0)
    rig.plane.acl_zero(0)
    assert rig.plane.acl_stats(0) == (0, 0)
    rig.send(WAN, wire.tcp(CLIENT, 1, VIP, 80, SYN))
    rig.drop_service(0)
    assert rig.plane.acl_stats(0) == (0, 0)
    rig.close()


# ---- sets in control ----


@given(
    st.lists(
        st.lists(
            st.tuples(st.sampled_from(["10.0.0.0/8", "10.0.0.1", "::/0", "2001:db8::/32"]), st.sampled_from([0, 1, 2])),
            max_size=5,
        ),
        min_size=1,
        max_size=5,
    )
)
def test_a_set_knows_what_has_changed(steps):
    known: dict[bytes, tuple[int, int]] = {}
    made, snapshots = sets.AddressSet("some"), []
    for step in steps:
        edits = {sets.key_of(ipaddress.ip_network(text)): (answer, 0) if answer else None for text, answer in step}
        made = made.edited(edits)
        known = {key: what for key, what in {**known, **edits}.items() if what}
        snapshots.append((made, dict(known)))
        fresh = sets.AddressSet("some", made.whole())
        assert len(made) == len(known) == len(fresh) and made == fresh
        assert list(made.entries()) == [sets.text_of(key, known[key]) for key in sorted(known)]
    for one, entries in snapshots:
        for other, wanted in snapshots:
            moved = {**entries, **other.changed_since(one)}
            assert {key: what for key, what in moved.items() if what} == wanted


def test_entries_as_they_are_written():
    lines = [
        "# bad ones",
        "10.1.2.3/8 # the net",
        "",
        "192.0.2.7",
        "192.0.2.4-192.0.2.9",
        "2001:DB8::1 nomatch",
        "192.0.2.7 until 99",
    ]
    packed = sets.read_lines(lines, 1000)
    shown = ["10.0.0.0/8", "192.0.2.4/30", "192.0.2.7 until 99", "192.0.2.8/31", "2001:db8::1 nomatch"]
    assert list(sets.AddressSet("some", packed).entries()) == shown
    assert sets.canonical("10.1.2.3/8  timeout 60") == "10.0.0.0/8 timeout 60"
    assert sets.stamped("10.0.0.0/8 timeout 60", 1000) == "10.0.0.0/8 until 1060"
    for wrong in (
        "10.0.0.0/33",
        "10.0.0",
        "10.0.0.9-10.0.0.1",
        "10.0.0.1 timeout",
        "10.0.0.1 comment x",
        "x",
        "::1/129",
    ):
        with pytest.raises(ValueError):
            sets.canonical(wrong)
        with pytest.raises(ValueError) as error:
            sets.read_lines(["10.0.0.0/8", wrong], 0)
        assert error.value.args[0] == 2, "the line"


SERVICE = {"proto": "tcp", "vip": "192.0.2.10", "vport": 80}
BASE = [
    {"op": "set.add", "name": "bad", "entries": ["10.0.0.0/8", "10.1.0.0/16 nomatch"]},
    {"op": "service.add", **SERVICE, "allow": ["198.51.100.0/24"]},
    {"op": "acl.add", "list": "deny", "entry": "set:bad"},
    {"op": "acl.add", "list": "deny", "entry": "203.0.113.0/24", "service": SERVICE},
]


def changed(base: Config, *changes: dict[str, object]) -> Config:
    return plan.apply(base, CHANGES.validate_python(list(changes)))


def test_changes_and_what_leads_from_one_config_to_another():
    one = changed(Config(), *BASE)
    (service,) = one.services
    assert (one.acl.deny, service.deny, service.allow) == (("set:bad",), ("203.0.113.0/24",), ("198.51.100.0/24",))
    two = changed(
        one,
        {"op": "set.entry.add", "set": "bad", "entries": ["10.2.0.0/16", "10.1.0.0/16"]},
        {"op": "acl.del", "list": "deny", "entry": "203.0.113.0/24", "service": SERVICE},
        {"op": "set.entry.del", "set": "bad", "entries": ["10.0.0.0/8"]},
    )
    for old, new in ((one, two), (two, one), (Config(), two), (two, Config())):
        assert plan.apply(old, plan.diff(old, new)) == new
    assert list(two.sets.get("bad").entries()) == ["10.1.0.0/16", "10.2.0.0/16"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"op": "set.add", "name": "bad"}, "FN-1204"),
        ({"op": "set.del", "name": "bad"}, "FN-1206"),
        ({"op": "set.del", "name": "other"}, "FN-1203"),
        ({"op": "set.entry.del", "set": "bad", "entries": ["10.3.0.0/16"]}, "FN-1203"),
        ({"op": "set.entry.add", "set": "bad", "entries": ["10.0.0.0/8"]}, "FN-1204"),
        ({"op": "acl.add", "list": "deny", "entry": "set:other"}, "FN-1203"),
        ({"op": "acl.add", "list": "deny", "entry": "set:bad"}, "FN-1204"),
        ({"op": "acl.del", "list": "allow", "entry": "10.0.0.0/8"}, "FN-1203"),
        ({"op": "service.set", **SERVICE, "deny": ["set:other"]}, "FN-1203"),
    ],
)
def test_a_change_that_cannot_be_is_refused(change, code):
    with pytest.raises(ChangeError) as error:
        changed(changed(Config(), *BASE), change)
    assert error.value.code == code


def test_types_of_sets():
    base = changed(Config(), {"op": "set.add", "name": "ips", "type": "hash:ip"})
    base = changed(base, {"op": "set.add", "name": "map", "type": "bitmap:ip", "span": "10.0.0.0/24"})
    for name, entry in (("ips", "10.0.0.0/31"), ("map", "10.0.1.0"), ("map", "10.0.0.0/23"), ("map", "2001:db8::1")):
        with pytest.raises(ChangeError):
            changed(base, {"op": "set.entry.add", "set": name, "entries": [entry]})
    assert (
        len(changed(base, {"op": "set.entry.add", "set": "map", "entries": ["10.0.0.1-10.0.0.4"]}).sets.get("map")) == 3
    )


TOML = """
version = 1
acl = { deny = ["set:bad"], allow = ["0.0.0.0/0", "::/0"] }
[node.n]
wan = { nic = "eth0" }
lips = ["10.0.0.1"]
[set.bad]
entries = ["10.9.0.0/16 nomatch"]
file = "bad.txt"
[service.web]
listen = ["192.0.2.10:80"]
acl = { deny = ["set:bad", "203.0.113.7/24"] }
rs = { "10.0.0.2:80" = {} }
"""


def test_the_file(tmp_path):
    (tmp_path / "bad.txt").write_text("10.0.0.0/8\n192.0.2.1 # him\n")
    (tmp_path / "fnat.toml").write_text(TOML)
    read = config.load(tmp_path / "fnat.toml").config
    assert list(read.sets.get("bad").entries()) == ["10.0.0.0/8", "10.9.0.0/16 nomatch", "192.0.2.1"]
    assert read.acl.deny == ("set:bad",) and read.services[0].deny == ("set:bad", "203.0.113.0/24")
    again = config.parse(config.dump(read)).config
    assert (again.sets, again.acl, again.services) == (read.sets, read.acl, read.services)
    (tmp_path / "bad.txt").write_text("10.0.0.0/8\n192.0.2.256\n")
    with pytest.raises(ConfigError, match=r"bad.txt:2: .*192.0.2.256"):
        config.load(tmp_path / "fnat.toml")
    (tmp_path / "fnat.toml").write_text(TOML.replace('"set:bad", "203', '"set:bat", "203'))
    (tmp_path / "bad.txt").write_text("")
    with pytest.raises(ConfigError, match="set bat"):
        config.load(tmp_path / "fnat.toml")


def house(tmp_path: Path, plane: FakePlane) -> Control:
    ports = [PortInfo(id=0, name="wan", kind="tap"), PortInfo(id=1, name="lan", kind="tap")]
    control = Control(Engine(plane, {}, ports, Ids(None)), Overlay(tmp_path / "overlay"))
    control.start()
    return control


def test_one_entry_is_one_edit_and_one_line_and_survives_a_restart(tmp_path):
    plane = FakePlane()
    control = house(tmp_path, plane)
    many = [f"10.{i >> 8}.{i & 255}.0/24" for i in range(3000)]
    control.change(CHANGES.validate_python([{"op": "set.add", "name": "bad", "entries": many}, *BASE[1:]]))
    size = (tmp_path / "overlay").stat().st_size
    plane.calls.clear()
    control.change(CHANGES.validate_python([{"op": "set.entry.add", "set": "bad", "entries": ["192.0.2.1"]}]))
    assert [call[0] for call in plane.calls] == ["acl_edit", "publish"] and plane.calls[0][2] == 1
    assert (tmp_path / "overlay").stat().st_size - size < 120
    plane.calls.clear()
    again = house(tmp_path, plane)
    assert len(again.engine.config.sets.get("bad")) == 3001
    edits = [call for call in plane.calls if call[0] == "acl_edit"]
    assert sum(call[2] for call in edits) == 0, "the plane held all of it"
    unnamed = [name for name in plane.sets if name[0] == "#"]
    assert len(unnamed) == 2
    again.change(CHANGES.validate_python([{"op": "service.del", **SERVICE}]))
    assert [name for name in plane.sets if name[0] == "#"] == []


def test_after_a_failure_the_sets_are_as_before(tmp_path):
    plane = FakePlane()
    control = house(tmp_path, plane)
    control.change(CHANGES.validate_python(BASE))
    plane.fail = "publish"
    with pytest.raises(Exception, match="no room"):
        control.change(CHANGES.validate_python([{"op": "set.entry.add", "set": "bad", "entries": ["192.0.2.1"]}]))
    assert len(plane.sets["bad"][1]) == 2 and len(control.engine.config.sets.get("bad")) == 2


def test_entries_end_on_time(tmp_path):
    plane = FakePlane()
    control = house(tmp_path, plane)
    now = int(time.time())
    added = [{"op": "set.add", "name": "bad", "entries": ["10.0.0.1 timeout 5", "10.0.0.2 timeout 9", "10.0.0.3"]}]
    control.change(CHANGES.validate_python(added))
    end = control.expire(now)
    assert now + 5 <= end <= now + 6
    assert control.expire(end - 1) == end and len(plane.sets["bad"][1]) == 3
    assert control.expire(end) == end + 4 and len(plane.sets["bad"][1]) == 2
    again = house(tmp_path, plane)
    assert "10.0.0.2 until" in " ".join(again.engine.config.sets.get("bad").entries())
    assert again.expire(end + 4) == 0 and len(plane.sets["bad"][1]) == 1


def test_who_may_and_why(tmp_path):
    control = house(tmp_path, FakePlane())
    control.change(CHANGES.validate_python(BASE))
    engine, key = control.engine, next(iter(control.engine.config.services)).key
    rows = {
        "10.7.7.7": (False, "general deny: set:bad 10.0.0.0/8"),
        "10.1.7.7": (False, "service allow: not in it"),
        "203.0.113.9": (False, "service deny: 203.0.113.0/24"),
        "198.51.100.1": (True, "service allow: 198.51.100.0/24"),
    }
    for addr, (admitted, by) in rows.items():
        assert engine.acl_test(addr, key) == {"addr": addr, "admitted": admitted, "by": by}
    assert engine.acl_test("2001:db8::1")["admitted"]


# ---- words of DPVS ----


@pytest.mark.parametrize(
    ("words", "change"),
    [
        ("create bad hash:net", {"op": "set.add", "name": "bad", "type": "hash:net"}),
        (
            "create map bitmap:ip range 10.0.0.0/24",
            {"op": "set.add", "name": "map", "type": "bitmap:ip", "span": "10.0.0.0/24"},
        ),
        ("destroy bad", {"op": "set.del", "name": "bad"}),
        ("flush bad", {"op": "set.flush", "name": "bad"}),
        ("add bad 10.0.0.1", {"op": "set.entry.add", "set": "bad", "entries": ["10.0.0.1"]}),
        (
            "add bad 10.0.0.0/8 nomatch timeout 5",
            {"op": "set.entry.add", "set": "bad", "entries": ["10.0.0.0/8 nomatch timeout 5"]},
        ),
        ("del bad 10.0.0.1-10.0.0.9", {"op": "set.entry.del", "set": "bad", "entries": ["10.0.0.1-10.0.0.9"]}),
    ],
)
def test_words_of_ipset(words, change):
    verb, *rest = words.split()
    assert ipset.parse(verb, rest) == [change]
    CHANGES.validate_python([change])


@pytest.mark.parametrize(
    "words",
    ["create bad hash:ip,port", "create bad bitmap:port", "create bad", "create bad hash:net comment", "add bad",
     "add bad 10.0.0.1,80", "add bad 10.0.0.1 comment x", "frob bad", "create 7 hash:ip", "add bad 10.0.0.1 timeout 0",
     "create m bitmap:ip", "create m hash:ip maxelem 9", "destroy bad worse"],
)  # fmt: skip
def test_words_of_ipset_that_are_refused(words):
    verb, *rest = words.split()
    with pytest.raises(Usage):
        ipset.parse(verb, rest)


def test_which_command_lines_are_about_sets():
    assert ipset.command(["addr", "show"]) is None and ipset.command([]) is None
    assert ipset.command(["--json", "ipset", "show", "bad"]) == ipset.Asked("show", "bad", json=True)
    for words in ("-6 ipset show", "ipset", "ipset add bad 10.0.0.1 --json"):
        with pytest.raises(Usage):
            ipset.command(words.split())
    row = {"name": "bad", "type": "hash:net", "span": None, "entries": 1, "used_by": 2}
    text = "Name: bad\nType: hash:net\nHeader: references 2\nNumber of entries: 1\nMembers:\n10.0.0.0/8\n\n"
    assert ipset.sets_text([(row, ["10.0.0.0/8"])]) == text
