"""What is made of a NIC: each row is a recorded one, and how answers then find their worker."""

from __future__ import annotations

import errno
import tomllib
from pathlib import Path

import pytest

from fnat import _core, dataplane, ethtool, steering
from fnat.grammar import steering_modes, steering_text
from fnat.steering import CannotSteer, Facts, FlowRule, LipRules, RecordedNic

NICS = Path(__file__).parents[1] / "nics.toml"
ALL = "src dst sport dport"


def recorded(name: str) -> RecordedNic:
    return RecordedNic.load(NICS, name)


def notes(name: str, wanted: steering.Wanted = "auto", workers: int | None = None) -> dict[str, str]:
    facts = recorded(name).facts()
    return {flow: rule.note for flow, rule in steering.choose(facts, wanted, workers or facts.queues).items()}


CHOICES = [  # recorded NIC, what is asked for, what is said
    ("i40e", "auto", "rss, i40e, 512 slots"),
    ("ice", "auto", "rss, ice, 512 slots"),
    ("ixgbe-x550", "auto", "tcp4 tcp6 rss, ixgbe, 512 slots; udp4 udp6 hand-off: hashed by addresses only"),
    ("ixgbe-82599", "auto", "tcp4 tcp6 rss, ixgbe, 128 slots; udp4 udp6 hand-off: hashed by addresses only"),
    ("ena", "auto", "rss, ena, 128 slots"),
    ("virtio-rss", "auto", "rss, virtio_net, 128 slots"),
    ("mlx5", "rss", "rss, mlx5_core, 256 slots"),
    ("mlx5", "auto", 'hand-off: mlx5_core may hash symmetrically unsaid; steering = "rss" trusts it'),
    ("mlx5-xor", "auto", "hand-off: mlx5_core hashes by xor"),
    ("i40e-symmetric", "auto", "hand-off: i40e hashes symmetric-xor"),
    ("ice-large", "auto", "hand-off: table of 2048 slots, not a power of two up to 512"),
    ("ena-old", "auto", "hand-off: ena does not show its key"),
    ("virtio", "auto", "hand-off: virtio_net shows no receive-side scaling"),
    ("veth", "auto", "hand-off: veth shows no receive-side scaling"),
    ("i40e", "mask", "hand-off: steering is mask"),
]


@pytest.mark.parametrize(("name", "wanted", "said"), CHOICES)
def test_the_choice(name, wanted, said):
    assert steering_text(notes(name, wanted)) == said


@pytest.mark.parametrize("name", ["mlx5-xor", "i40e-symmetric", "ice-large", "ena-old", "virtio", "veth"])
def test_what_is_asked_for_and_impossible_is_refused(name):
    with pytest.raises(CannotSteer, match='use steering = "auto"'):
        steering.choose(recorded(name).facts(), "rss", 2)


@pytest.mark.parametrize(("name", "loose"), [("veth", True), ("virtio", True), ("mlx5-xor", False), ("i40e", False)])
@pytest.mark.parametrize("wanted", ["auto", "mask"])
def test_a_device_without_a_table_may_deal_a_flow_to_any_queue(name, wanted, loose):
    assert {rule.loose for rule in steering.choose(recorded(name).facts(), wanted, 2).values()} == {loose}


def test_one_worker_has_nothing_to_choose():
    assert set(notes("i40e", workers=1).values()) == {"one worker"}


def test_a_note_fits_into_the_plane():
    for name in tomllib.loads(NICS.read_text()):
        for wanted in ("auto", "mask"):
            assert all(len(note.encode()) < 96 for note in notes(name, wanted).values())


def test_recorded_keys_have_the_length_of_their_driver():
    sizes = {
        name: len(bytes.fromhex(nic["key"])) for name, nic in tomllib.loads(NICS.read_text()).items() if "key" in nic
    }
    assert sizes == {name: 52 if name.startswith(("i40e", "ice")) else 40 for name in sizes}


def test_queues_are_dealt_to_workers_in_turn():
    facts = recorded("ixgbe-82599").facts()  # 7 queues
    rule = steering.choose(facts, "auto", 3)["tcp4"]
    assert rule.table[:9] == (0, 1, 2, 0, 1, 2, 0, 0, 1)


UNUSABLE = [  # a NIC that is nearly right, and why it is not used
    ({"fields": {}}, "hand-off: i40e does not say what it hashes"),
    ({"fields": {"tcp4": frozenset({*ALL.split(), "more"})}}, "hand-off: hashed by dport dst more sport src"),
    ({"fields": {"tcp4": frozenset()}}, "hand-off: hashed by nothing"),
    ({"key": bytes(range(1, 16))}, "hand-off: key of 15 bytes is too short"),
    ({"key": b"\1" + bytes(39)}, "hand-off: key or table leaves a worker 0 of 64512 ports"),
    ({"table": (0,) * 127 + (1,)}, "hand-off: key or table leaves a worker 504 of 64512 ports"),
    ({"table": (0, 1, 0)}, "hand-off: table of 3 slots, not a power of two up to 512"),
]


@pytest.mark.parametrize(("change", "said"), UNUSABLE, ids=[row[1] for row in UNUSABLE])
def test_a_nic_that_is_nearly_right(change, said):
    good = {
        "driver": "i40e",
        "queues": 2,
        "table": (0, 1) * 64,
        "key": recorded("i40e").known.key,
        "function": "toeplitz",
        "fields": {"tcp4": frozenset(ALL.split())},
    }
    assert steering.choose(Facts(**good), "auto", 2)["tcp4"].key
    assert steering.choose(Facts(**{**good, **change}), "auto", 2)["tcp4"].note == said


def test_modes_in_one_word():
    assert steering_modes(notes("i40e")) == "rss"
    assert steering_modes(notes("ixgbe-82599")) == "rss+hand-off"
    assert steering_modes(notes("veth")) == "hand-off"
    assert steering_modes(notes("veth", workers=1)) == "one worker"
    assert steering_modes(notes("mlx5", "ntuple", 4)) == "ntuple"


def test_a_nic_that_changes_is_followed(capfd):
    """What `ethtool -X` or a returning link changes reaches the plane, and the log."""
    options = {
        "state_dir": "s",
        "socket": "c",
        "steering": "auto",
        "ports": [{"name": "lan", "kind": "xdp", "device": "e"}],
    }
    house = dataplane.DataPlane(options)  # type: ignore[arg-type]
    house.plane = _core.Plane.create(None, workers=3, conns=64, frames=0, snapshot_mib=1)
    house.workers = [_core.Worker(house.plane, i) for i in range(3)]
    nic = house.nics[0] = recorded("i40e")
    house._steer(0, "auto")
    assert house.plane.steering(0, "udp4").key == nic.known.key
    house.look_at_nics()
    nic.known = recorded("ixgbe-82599").known
    house.look_at_nics()
    assert (house.plane.steering(0, "tcp4").key, house.plane.steering(0, "udp4").key) == (nic.known.key, b"")
    nic.known = recorded("veth").known
    house.look_at_nics()
    assert house.plane.steering(0, "tcp4") == _core.Rule(
        note="hand-off: veth shows no receive-side scaling", loose=True
    )
    assert capfd.readouterr().err == (
        "fnat: port lan: answers reach their worker by rss, i40e, 512 slots\n"
        "fnat: port lan: answers reach their worker by tcp4 tcp6 rss, ixgbe, 128 slots; "
        "udp4 udp6 hand-off: hashed by addresses only\n"
        "fnat: port lan: answers reach their worker by hand-off: veth shows no receive-side scaling\n"
    )
    house.plane.close()


# ---- flow rules ----


def test_rules_of_a_lip_divide_its_ports_among_the_queues():
    nic = recorded("ixgbe-82599")
    LipRules(nic, 4).hold(["10.0.0.11"])
    assert notes("ixgbe-82599", "ntuple", 4)["tcp4"] == f"ntuple, {len(nic.held)} rules for each LIP"
    assert nic.held[:4] == [FlowRule("tcp4", "10.0.0.11", 3, n, n) for n in range(4)]
    for lport in range(1024, 1100):
        queues = [rule.queue for rule in nic.held if rule.flow == "udp4" and lport & rule.mask == rule.value]
        assert queues == [lport % 512 % 4], "the owner by mask"


def test_rules_follow_the_lips():
    nic = recorded("mlx5")
    rules = LipRules(nic, 2)
    rules.hold(["10.0.0.11", "fd00::11"])
    rules.hold(["fd00::11", "10.0.0.12"])
    assert {rule.addr for rule in nic.held} == {"fd00::11", "10.0.0.12"}
    assert len(nic.held) == 8
    rules.hold([])
    assert nic.held == []


NO_RULES = [  # NIC, LIP, why
    (
        "ixgbe-82599",
        "fd00::11",
        "the NIC cannot do a flow rule for LIP fd00::11 with port mask 0x1: Operation not supported",
    ),
    ("i40e", "10.0.0.11", "the NIC cannot do a flow rule for LIP 10.0.0.11 with port mask 0x1: Invalid argument"),
]


@pytest.mark.parametrize(("name", "lip", "why"), NO_RULES)
def test_a_nic_that_cannot_do_it_is_left_as_it_was(name, lip, why):
    nic = recorded(name)
    with pytest.raises(CannotSteer) as refusal:
        LipRules(nic, 2).hold([lip])
    assert str(refusal.value) == f'{why}; use steering = "auto"'
    assert nic.held == []


def test_a_full_table_takes_back_what_it_took():
    nic = recorded("ixgbe-82599")
    nic.room = 9
    rules = LipRules(nic, 2)
    rules.hold(["10.0.0.1", "10.0.0.2"])
    with pytest.raises(CannotSteer, match=r"no room for a flow rule for LIP 10\.0\.0\.3"):
        rules.hold(["10.0.0.1", "10.0.0.2", "10.0.0.3"])
    assert {rule.addr for rule in nic.held} == {"10.0.0.1", "10.0.0.2"} and len(nic.held) == 8


@pytest.mark.parametrize(
    ("name", "workers", "why"), [("mlx5", 3, "power of two of workers, not 3"), ("ena", 2, "no flow rules")]
)
def test_rules_that_cannot_be_are_refused_at_once(name, workers, why):
    with pytest.raises(CannotSteer, match=why):
        steering.choose(recorded(name).facts(), "ntuple", workers)


# ---- what the kernel is asked ----


class Driver:
    """The answers of a kernel to ethtool's ioctls, as structs of linux/ethtool.h laid out by hand for x86-64."""

    def __init__(self, function: int = 1, transform: int = 0, fields: int = 0xF0) -> None:
        self.scaling = bytes([function, transform])
        self.fields = fields
        self.key = bytes(range(40))
        self.rules: dict[int, bytes] = {}

    def __call__(self, device: str, command: bytes, room: int = 0) -> bytearray:
        answer = bytearray(command) + bytearray(room)
        match int.from_bytes(command[:4], "little"):
            case 0x03:
                answer[4:9] = b"ixgbe"
            case 0x3C:
                answer[20:24], answer[32:36] = (1).to_bytes(4, "little"), (4).to_bytes(4, "little")
            case 0x46:
                asked = int.from_bytes(command[8:12], "little")
                answer[8:12], answer[12:16] = (128).to_bytes(4, "little"), (40).to_bytes(4, "little")
                answer[16:18] = self.scaling
                if asked:
                    assert room == 128 * 4 + 40
                    answer[24:] = b"".join((i % 4).to_bytes(4, "little") for i in range(128)) + self.key
            case 0x29:
                if command[4] not in (1, 2):
                    raise OSError(errno.EOPNOTSUPP, "Operation not supported")
                answer[8:16] = (self.fields if command[4] == 1 else 0x30).to_bytes(8, "little")
            case 0x25:
                answer[4:8] = (1 << 27).to_bytes(4, "little")
            case 0x2E:
                answer[8:16] = (0x80000000 | 2046).to_bytes(8, "little")
                answer[184:188] = len(self.rules).to_bytes(4, "little")
            case 0x30:
                answer[188:] = b"".join(place.to_bytes(4, "little") for place in self.rules).ljust(
                    len(answer) - 188, b"\0"
                )
            case 0x2F:
                answer[16:184] = self.rules[int.from_bytes(command[176:180], "little")]
            case 0x32:
                self.rules[int.from_bytes(command[176:180], "little")] = bytes(command[16:184])
            case 0x31:
                del self.rules[int.from_bytes(command[176:180], "little")]
            case other:
                raise AssertionError(hex(other))
        return answer


def test_a_driver_is_read(monkeypatch):
    monkeypatch.setattr(ethtool, "_ask", Driver())
    assert ethtool.KernelNic("eth0").facts() == Facts(
        driver="ixgbe",
        queues=5,
        table=tuple(i % 4 for i in range(128)),
        key=bytes(range(40)),
        function="toeplitz",
        fields={"tcp4": frozenset(ALL.split()), "udp4": frozenset({"src", "dst"})},
        ntuple=True,
    )


@pytest.mark.parametrize(
    ("function", "transform", "seen"),
    [(2, 0, ("xor", "")), (4, 0, ("crc32", "")), (8, 0, ("function 8", "")), (0, 0, ("toeplitz", ""))]
    + [(1, 1, ("toeplitz", "symmetric-xor")), (1, 2, ("toeplitz", "symmetric-or-xor")), (1, 255, ("toeplitz", ""))],
)
def test_hash_functions_and_transformations(function, transform, seen, monkeypatch):
    monkeypatch.setattr(ethtool, "_ask", Driver(function, transform))
    facts = ethtool.KernelNic("eth0").facts()
    assert (facts.function, facts.transform) == seen


def test_fields_beyond_the_tuple_are_seen(monkeypatch):
    monkeypatch.setattr(ethtool, "_ask", Driver(fields=0xF4))
    assert ethtool.KernelNic("eth0").facts().fields["tcp4"] == frozenset({*ALL.split(), "more"})


def test_rules_go_into_the_nic_and_out(monkeypatch):
    driver = Driver()
    monkeypatch.setattr(ethtool, "_ask", driver)
    nic = ethtool.KernelNic("eth0")
    theirs = bytearray(168)
    theirs[0:4] = (1).to_bytes(4, "little")
    theirs[76 + 8 : 76 + 12] = b"\xff\xff\xff\xff"  # source and destination port, whole
    driver.rules[2045] = bytes(theirs)
    rules = LipRules(nic, 2)
    rules.hold(["10.0.0.11", "fd00::11"])
    assert sorted(driver.rules) == list(range(2037, 2046)), "from the end of the table, around what is there"
    assert set(nic.rules()) == rules.wanted(["10.0.0.11", "fd00::11"])
    spec = driver.rules[2044]  # tcp4, value 0; struct ethtool_rx_flow_spec
    assert spec[0] == 1 and spec[4 + 4 : 4 + 8] == bytes([10, 0, 0, 11])
    assert spec[76 + 4 : 76 + 8] == b"\xff" * 4 and spec[76 + 10 : 76 + 12] == b"\0\1"
    rules.hold([])
    assert driver.rules == {2045: bytes(theirs)}, "the operator's own stays"
