"""Hostile and unusual traffic: rows on real packets. Each is asked of the core and of the reference.

A row says what an end, or somebody who pretends to be one, sends into a connection, and what becomes of the connection. The packet itself
always passes: the end hosts judge it.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import packets as wire
import pytest
from packets import ACK, FIN, PSH, RST, SYN, TCP, UDP
from reference import MASK, later
from rig import CLIENT, LAN, LIP, RS1, RS2, TIMEOUTS, VIP, VIP2, WAN, Rig

from fnat.model import Timeouts

sys.path.insert(0, str(Path(__file__).parents[1] / "cases"))
from talk import Core, Naive, Result, Talk

URG, ECE, CWR = 0x20, 0x40, 0x80
PLAIN = 1 << 16  # the largest window without a scale
MAKERS = pytest.mark.parametrize("make", [Core, Naive])
SIDES = pytest.mark.parametrize("side", ["client", "rs"])


def speak(t: Talk, side: str, flags: int, offset: int = 0, payload: bytes = b"", **fields: Any) -> Result:
    """A segment of a side, `offset` away from its next number; what the true ends will send next stays as it was."""
    seq, rs_seq = t.seq, t.rs_seq
    if side == "client":
        result = t.from_client(flags, payload, **{"seq": (seq + offset) & MASK, **fields})
    else:
        result = t.from_rs(flags, payload, **{"seq": (rs_seq + offset) & MASK, **fields})
    t.seq, t.rs_seq = seq, rs_seq
    assert result[0] == ("to_rs" if side == "client" else "to_client")
    return result


def opened(make: Any, scales: tuple[int | None, int | None] = (None, None), **service: Any) -> Talk:
    """An established connection whose ends have these window scales."""
    t = Talk(make(), ts=None, **service)

    def options(scale: int | None) -> bytes:
        return wire.OPTION_MSS + (b"" if scale is None else wire.option_scale(scale))

    t.syn(options=options(scales[0]))
    t.synack(options=options(scales[1]))
    t.ack()
    assert t.side.state() == "TCP_EST"
    return t


# ---- RST: offset from the next number of its sender -> state ----

RSTS = [
    (0, "TCP_CLOSE", False),
    (1, "TCP_EST", True),
    (-1, "TCP_EST", True),
    (1000, "TCP_EST", True),
    (PLAIN, "TCP_EST", True),
    (-PLAIN, "TCP_EST", True),
    (PLAIN + 1, "TCP_EST", False),
    (-PLAIN - 1, "TCP_EST", False),
    (1 << 31, "TCP_EST", False),
]


@MAKERS
@SIDES
@pytest.mark.parametrize("flags", [RST, RST | ACK])
@pytest.mark.parametrize(("offset", "state", "asks"), RSTS)
def test_a_reset_closes_only_with_its_exact_number(
    offset: int, state: str, asks: bool, flags: int, side: str, make: Any
) -> None:
    t = opened(make)
    speak(t, side, flags, offset)
    assert t.side.state() == state
    out = t.side.wait(5)
    assert [(port, f.flags) for port, f in out] == ([(LAN, ACK)] if asks else [])
    if state == "TCP_EST":
        speak(t, "client", ACK, payload=b"still here")
        speak(t, "rs", ACK, payload=b"so am I")
        assert t.side.state() == "TCP_EST"


@MAKERS
@SIDES
@pytest.mark.parametrize(
    ("sentence", "answer", "state"),
    [
        ("the RS answers: it lives", lambda t, q: speak(t, "rs", ACK), "TCP_EST"),
        ("the RS knows no such connection", lambda t, q: reset_for(t, q), "TCP_CLOSE"),
        ("nobody answers: the ordinary timeout is left", lambda t, q: None, "TCP_EST"),
    ],
)
def test_a_doubtful_reset_is_cleared_up_by_asking_the_rs(
    sentence: str, answer: Any, state: str, side: str, make: Any
) -> None:
    t = opened(make)
    speak(t, side, RST, 100)
    assert t.side.wait(2.8) == []
    [(port, q)] = t.side.wait(1.5)
    assert (port, q.src, q.dst, q.flags, q.payload) == (LAN, LIP, RS1, ACK, b"")
    assert later((t.seq + t.dseq - PLAIN) & MASK, q.seq)  # below the window: whoever lives must answer
    assert q.ack == t.rs_seq
    answer(t, q)
    assert t.side.state() == state
    assert t.side.wait(10) == []  # asked once
    assert t.side.state() == ("TCP_EST" if state == "TCP_EST" else "")


def reset_for(t: Talk, q: wire.Frame) -> None:
    """RFC 9293 3.5.2: a segment with ACK to a connection that does not exist."""
    outcome, out = t.side.deliver(LAN, wire.tcp(RS1, 8080, *t.lip, RST, seq=q.ack))
    assert outcome == "to_client" and out[0][1].seq == t.rs_seq


@MAKERS
def test_a_doubtful_connection_that_nobody_answers_for_ends_by_its_ordinary_timeout(make: Any) -> None:
    t = opened(make)
    speak(t, "client", RST, 100)
    t.side.wait(TIMEOUTS["TCP_EST"] - 1)
    assert t.side.state() == "TCP_EST"
    out = t.side.wait(3)
    assert t.side.state() == "" and sorted((p, f.flags) for p, f in out) == [(WAN, RST | ACK), (LAN, RST | ACK)]


@MAKERS
@SIDES
def test_who_speaks_is_not_asked(side: str, make: Any) -> None:
    t = opened(make)
    speak(t, "client", RST, 100)
    for _ in range(5):
        assert t.side.wait(2) == []
        speak(t, side, ACK, payload=b"x")
    assert [f.flags for _, f in t.side.wait(5)] == [ACK]


@MAKERS
@SIDES
def test_a_doubt_outlives_a_fin(side: str, make: Any) -> None:
    """The new state's own timeout is longer than the time until the RS is asked, and shorter than that of the state before."""
    t = opened(make)
    speak(t, "client", RST, 100)
    speak(t, side, FIN | ACK)
    assert [(port, f.flags) for port, f in t.side.wait(5)] == [(LAN, ACK)]


@MAKERS
def test_a_reset_after_a_loss_is_confirmed_by_the_challenge(make: Any) -> None:
    """The client's last 100 bytes were lost before the balancer; its RST is beyond them. The RS challenges (RFC 5961 3.2), the
    client's stack answers the challenge with the number that the RS expects."""
    t = opened(make)
    speak(t, "client", RST, 100)
    assert t.side.state() == "TCP_EST"
    _, out = speak(t, "rs", ACK)
    assert out[0][1].ack == t.seq
    speak(t, "client", RST, seq=out[0][1].ack)
    assert t.side.state() == "TCP_CLOSE"


@MAKERS
@SIDES
def test_a_reset_with_the_number_of_the_fin_closes(side: str, make: Any) -> None:
    """Stacks send it after close() with data unread, and take it (RFC 5961 allows no more, Linux and macOS do)."""
    t = opened(make)
    speak(t, side, FIN | ACK)
    speak(t, side, RST)
    assert t.side.state() == "TCP_CLOSE"


@MAKERS
@pytest.mark.parametrize("offset", [-PLAIN - 1, -1, 1, PLAIN + 1, 1 << 31])
@pytest.mark.parametrize("before", ["CLOSE_WAIT", "FIN_WAIT", "TIME_WAIT"])
def test_a_forged_reset_ends_no_closing_connection(before: str, offset: int, make: Any) -> None:
    t = opened(make)
    if before != "FIN_WAIT":
        t.from_client(FIN | ACK)
    if before != "CLOSE_WAIT":
        t.from_rs(FIN | ACK)
    for side in ("client", "rs"):
        offset = offset - 1 if offset == -1 else offset  # one less is the FIN's own number
        speak(t, side, RST, offset)
        assert t.side.state() == before


# ---- refusals and resets in the handshake ----


@dataclass
class Early:
    sentence: str
    act: Callable[[Talk], Any]
    state: str
    before: Callable[[Talk], Any] = lambda t: t.syn()


def refuse(t: Talk, ack: int, flags: int = RST | ACK, seq: int = 0) -> Result:
    return t.side.deliver(LAN, wire.tcp(RS1, 8080, *t.lip, flags, seq=seq, ack=(ack + t.dseq) & MASK))


EARLY = [
    Early("the RS refuses: closed at once", lambda t: refuse(t, 1001), "TCP_CLOSE"),
    Early("a refusal of something else", lambda t: refuse(t, 1001 + 61), "SYN_RECV"),
    Early("a refusal with a number far away", lambda t: refuse(t, 1001 + (1 << 31)), "SYN_RECV"),
    Early("a RST without ACK answers no SYN", lambda t: refuse(t, 1001, RST), "SYN_RECV"),
    Early("a refusal of a SYN with data acknowledges the data (RFC 9293 3.5.2)", lambda t: refuse(t, 1001 + 100), "TCP_CLOSE",
          lambda t: t.syn(payload=bytes(100))),
    Early("a refusal of the SYN that was sent again without its data", lambda t: (t.syn(), refuse(t, 1001)), "TCP_CLOSE",
          lambda t: t.syn(payload=bytes(100))),
    Early("a refusal after the SYN-ACK (the client has not seen it)", lambda t: refuse(t, 1001), "TCP_CLOSE", lambda t: (t.syn(), t.synack())),
    Early("the RS gives up after its SYN-ACK", lambda t: refuse(t, 0, RST, t.rs_seq), "TCP_CLOSE", lambda t: (t.syn(), t.synack())),
    Early("a forged RST after the SYN-ACK", lambda t: refuse(t, 0, RST, t.rs_seq + 1), "SYN_RECV", lambda t: (t.syn(), t.synack())),
    Early("the client's RST clears a half-dead socket and ends nothing", lambda t: t.from_client(RST, seq=77), "SYN_RECV"),
    Early("the client's RST at its own number before the SYN-ACK ends nothing", lambda t: t.from_client(RST), "SYN_RECV"),
    Early("the client gives up after the SYN-ACK", lambda t: t.from_client(RST), "TCP_CLOSE", lambda t: (t.syn(), t.synack())),
    Early("somebody else's RST after the SYN-ACK", lambda t: t.from_client(RST, seq=t.seq + 1), "SYN_RECV", lambda t: (t.syn(), t.synack())),
    Early("an ACK of what the RS has not sent establishes nothing", lambda t: t.ack(ack=t.rs_seq + 1), "SYN_RECV", lambda t: (t.syn(), t.synack())),
    Early("a blind ACK establishes nothing", lambda t: t.ack(ack=12345678), "SYN_RECV", lambda t: (t.syn(), t.synack())),
    Early("data establishes when the ACK was lost", lambda t: t.from_client(ACK | PSH, b"GET /"), "TCP_EST", lambda t: (t.syn(), t.synack())),
    Early("the RS may speak before the client's ACK", lambda t: (t.from_rs(ACK, b"banner"), t.ack()), "TCP_EST", lambda t: (t.syn(), t.synack())),
    Early("a SYN-ACK to what was not sent is not believed", lambda t: (t.synack(ack=5000000), t.ack()), "SYN_RECV"),
    Early("the true SYN-ACK after a forged one", lambda t: (t.synack(ack=5000000, seq=1), t.synack(seq=9000), setattr(t, "rs_seq", 9001), t.ack()),
          "TCP_EST"),
    Early("a FIN before the handshake is over closes nothing", lambda t: t.from_client(FIN | ACK), "SYN_RECV"),
    Early("a FIN that carries the handshake's ACK half-closes", lambda t: t.from_client(FIN | ACK), "CLOSE_WAIT", lambda t: (t.syn(), t.synack())),
    Early("an RS that answers and closes at once (TCP fast open)", lambda t: t.from_rs(FIN | ACK, b"answer"), "FIN_WAIT",
          lambda t: (t.syn(payload=b"query"), t.synack(ack=1006))),
    Early("the SYN-ACK of a SYN that was sent again", lambda t: (t.syn(), t.synack(), t.ack()), "TCP_EST"),
    Early("the SYN-ACK twice", lambda t: (t.synack(seq=9000), setattr(t, "rs_seq", 9001), t.ack()), "TCP_EST", lambda t: (t.syn(), t.synack())),
    Early("both open at once: the RS's SYN passes, its SYN-ACK counts",
          lambda t: (t.from_rs(SYN, seq=9000), setattr(t, "rs_seq", 9000), t.synack(), t.ack()), "TCP_EST"),
]  # fmt: skip


@MAKERS
@pytest.mark.parametrize("row", EARLY, ids=lambda r: r.sentence)
def test_in_the_handshake(row: Early, make: Any) -> None:
    t = Talk(make())
    row.before(t)
    row.act(t)
    assert t.side.state() == row.state


@MAKERS
def test_a_refused_connection_is_gone_in_seconds(make: Any) -> None:
    t = Talk(make())
    t.syn()
    refuse(t, 1001)
    t.side.wait(TIMEOUTS["TCP_CLOSE"] + 1)
    assert t.side.state() == ""


# ---- FIN ----

FINS = [
    ("the next bytes", 0, b"", "CLOSE_WAIT"),
    ("with data", 0, b"last words", "CLOSE_WAIT"),
    ("data before it were lost", 1000, b"", "CLOSE_WAIT"),
    ("with data that came before", -4, b"last", "CLOSE_WAIT"),
    ("a number that is past", -5, b"last", "TCP_EST"),
    ("long past", -1000, b"", "TCP_EST"),
    ("just outside the window", PLAIN, b"", "TCP_EST"),
    ("far away", 1 << 31, b"", "TCP_EST"),
]


@MAKERS
@SIDES
@pytest.mark.parametrize(("sentence", "offset", "payload", "state"), FINS, ids=[f[0] for f in FINS])
def test_a_fin(sentence: str, offset: int, payload: bytes, state: str, side: str, make: Any) -> None:
    t = opened(make)
    speak(t, side, FIN | ACK, offset, payload)
    assert t.side.state() == (state if side == "client" or state == "TCP_EST" else "FIN_WAIT")


@MAKERS
@SIDES
def test_a_forged_fin_is_unmasked_by_the_true_ends_data(side: str, make: Any) -> None:
    t = opened(make)
    speak(t, side, FIN | ACK, 50)
    assert t.side.state() in ("CLOSE_WAIT", "FIN_WAIT")
    speak(t, side, ACK, payload=bytes(51))  # up to the forged FIN and over it: not beyond
    assert t.side.state() in ("CLOSE_WAIT", "FIN_WAIT")
    speak(t, side, ACK, payload=bytes(52))
    assert t.side.state() == "TCP_EST"


@MAKERS
def test_both_forged_fins_are_unmasked_one_by_one(make: Any) -> None:
    t = opened(make)
    speak(t, "client", FIN | ACK)
    speak(t, "rs", FIN | ACK)
    assert t.side.state() == "TIME_WAIT"
    speak(t, "client", ACK, payload=b"xx")
    assert t.side.state() == "FIN_WAIT"
    speak(t, "rs", ACK, payload=b"xx")
    assert t.side.state() == "TCP_EST"


@MAKERS
def test_a_fin_without_ack_and_nonsense_flags_move_nothing(make: Any) -> None:
    t = opened(make)
    for side in ("client", "rs"):
        for flags in (FIN, 0, FIN | PSH | URG, SYN | FIN, SYN | FIN | ACK, PSH, SYN | FIN | URG | PSH):
            speak(t, side, flags, payload=b"?")
            assert t.side.state() == "TCP_EST"
    speak(t, "client", RST)  # nor did they move the numbers
    assert t.side.state() == "TCP_CLOSE"


@MAKERS
@pytest.mark.parametrize("order", [("client", "rs"), ("rs", "client")])
def test_both_close_at_once(order: tuple[str, str], make: Any) -> None:
    """The FINs cross: neither acknowledges the other."""
    t = opened(make)
    client, rs = t.seq, t.rs_seq
    for side in order:
        speak(t, side, FIN | ACK, ack=rs if side == "client" else client)
    assert t.side.state() == "TIME_WAIT"
    t.ack(seq=client + 1, ack=rs + 1)
    t.from_rs(ACK, seq=rs + 1, ack=client + 1)
    assert t.side.state() == "TIME_WAIT"
    t.side.wait(TIMEOUTS["TIME_WAIT"] + 1)
    assert t.side.state() == ""


# ---- half-closed ----


@MAKERS
@pytest.mark.parametrize("closer", ["client", "rs"])
def test_a_half_closed_connection_lives_while_data_flows(closer: str, make: Any) -> None:
    t = opened(make)
    t.from_client(FIN | ACK) if closer == "client" else t.from_rs(FIN | ACK)
    for _ in range(6):
        t.side.wait(TIMEOUTS["CLOSE_WAIT"] - 1)
        outcome, _ = t.from_rs(ACK, b"more") if closer == "client" else t.from_client(ACK, b"more")
        assert outcome in ("to_rs", "to_client")
    assert t.side.state() == ("CLOSE_WAIT" if closer == "client" else "FIN_WAIT")
    t.from_rs(FIN | ACK) if closer == "client" else t.from_client(FIN | ACK)
    assert t.side.state() == "TIME_WAIT"


def test_ten_minutes_of_silence_after_the_clients_fin_are_nothing_by_default() -> None:
    core = Core()
    words = Timeouts().model_dump()
    names = {"established": "TCP_EST", "close": "TCP_CLOSE", "udp_normal": "UDP_NORM", "none": "TCP_NONE"}
    core.plane.put_settings({names.get(k, k.upper()): v for k, v in words.items()}, True)
    core.plane.publish()
    t = opened(lambda: core)
    t.from_client(FIN | ACK, b"a long question")
    t.from_rs(ACK)
    core.wait(600, 0.5)
    outcome, _ = t.from_rs(ACK | PSH, b"the answer")
    assert (outcome, core.state()) == ("to_client", "CLOSE_WAIT")
    core.wait(words["close_wait"] + 1, 0.5)
    assert core.state() == ""


# ---- SYN ----


@MAKERS
@pytest.mark.parametrize("offset", [0, 1, 1000, 1 << 20, 1 << 31])
def test_a_syn_inside_a_living_connection_moves_nothing(offset: int, make: Any) -> None:
    t = opened(make)
    outcome, out = t.from_client(SYN, seq=(t.seq + offset) & MASK, options=b"")
    assert outcome == "to_rs" and t.side.state() == "TCP_EST"
    speak(t, "rs", ACK)  # the challenge
    speak(t, "client", RST)
    assert t.side.state() == "TCP_CLOSE"


@MAKERS
def test_an_rs_that_has_forgotten_begins_anew_with_its_client(make: Any) -> None:
    t = opened(make)
    t.from_client(FIN | ACK)
    t.isn, t.rs_seq = 777_000_000, 555_000_000
    t.syn()
    assert t.side.state() == "CLOSE_WAIT"
    t.synack()
    assert t.side.state() == "TCP_EST"
    t.ack()
    t.from_client(ACK, b"hello")
    speak(t, "client", RST)
    assert t.side.state() == "TCP_CLOSE"


@MAKERS
def test_a_syn_ack_that_no_syn_asked_for_moves_nothing(make: Any) -> None:
    t = opened(make)
    speak(t, "rs", SYN | ACK, seq=555_000_000, ack=777_000_000)
    assert t.side.state() == "TCP_EST"
    speak(t, "rs", RST, seq=555_000_001)
    assert t.side.state() == "TCP_EST"
    speak(t, "rs", RST)
    assert t.side.state() == "TCP_CLOSE"


@MAKERS
@pytest.mark.parametrize("isn", [1000, 999, 2_000_000_000, 4_000_000_000])
def test_a_repeated_syn_keeps_its_rs_whatever_its_number(isn: int, make: Any) -> None:
    t = Talk(make(), members=[(0, RS1, 8080, 1), (1, RS2, 8080, 1)])
    t.syn()
    lip = t.lip
    t.isn = isn
    _, out = t.syn()
    assert (out[0][1].dst, (out[0][1].src, out[0][1].sport)) == (RS1, lip)
    t.synack()
    t.ack()
    assert t.side.state() == "TCP_EST"


@MAKERS
def test_data_after_a_reset_pass_and_wake_nothing(make: Any) -> None:
    t = opened(make)
    speak(t, "client", RST)
    for side in ("client", "rs"):
        speak(t, side, ACK, payload=b"late")
    assert t.side.state() == "TCP_CLOSE"
    t.side.wait(TIMEOUTS["TCP_CLOSE"] + 1)
    assert t.side.state() == ""


# ---- numbers ----

JUMPS = [  # scales of client and RS, who jumps, how far -> does it count?
    ((None, None), "client", PLAIN, True),
    ((None, None), "client", PLAIN + 1, False),
    ((7, None), "client", PLAIN + 1, False),
    ((None, 7), "rs", PLAIN + 1, False),
    ((7, 7), "client", PLAIN << 7, True),
    ((7, 7), "client", (PLAIN << 7) + 1, False),
    ((3, 7), "rs", PLAIN << 3, True),
    ((3, 7), "rs", (PLAIN << 3) + 1, False),
    ((14, 14), "client", 1 << 30, True),
    ((14, 14), "rs", (1 << 30) + 1, False),
    ((255, 255), "client", 1 << 30, True),
    ((255, 255), "client", (1 << 30) + 1, False),
    ((0, 0), "client", PLAIN + 1, False),
    ((14, 14), "client", 1 << 31, False),
    ((14, 14), "client", -1, False),
]


@MAKERS
@pytest.mark.parametrize(("scales", "side", "jump", "counts"), JUMPS)
def test_numbers_move_a_window_at_a_time(
    scales: tuple[int | None, int | None], side: str, jump: int, counts: bool, make: Any
) -> None:
    t = opened(make, scales)
    speak(t, side, ACK, jump - 1, b"x")
    speak(t, side, RST, jump)
    assert t.side.state() == ("TCP_CLOSE" if counts else "TCP_EST")
    if not counts:
        speak(t, side, RST)
        assert t.side.state() == "TCP_CLOSE"


@MAKERS
@pytest.mark.parametrize("n", [0, 1])
def test_keep_alives_and_window_probes_move_nothing(n: int, make: Any) -> None:
    t = opened(make)
    speak(t, "rs", ACK, window=0)
    for side in ("client", "rs"):
        speak(t, side, ACK, -1, bytes(n))
        assert t.side.state() == "TCP_EST"
    speak(t, "client", RST)
    assert t.side.state() == "TCP_CLOSE"


def first_number(rig: Rig, lport: int) -> int:
    """The next initial number from this local port, seen by an RS that refuses."""
    rig.plane.put_settings(TIMEOUTS, True, (lport, lport))
    rig.plane.publish()
    [(_, raw)] = rig.send(WAN, wire.tcp(CLIENT, 999, VIP, 80, SYN, seq=0))
    number = wire.read(raw).seq
    rig.send(LAN, wire.tcp(RS1, 8080, LIP, lport, RST | ACK, seq=0, ack=(number + 1) & MASK))
    rig.wait(4)
    rig.plane.put_settings(TIMEOUTS, True)
    rig.plane.publish()
    return number


@pytest.mark.parametrize(
    ("jumps", "data"), [([2**31 - 9], 0), ([1 << 30, 1 << 30], 0), ([PLAIN] * 200, 0), ([100], 1000)]
)
def test_a_client_moves_the_first_numbers_of_others_no_further_than_it_has_sent(jumps: list[int], data: int) -> None:
    core = Core()
    t = opened(lambda: core, (14, 14))
    before = first_number(core, 2000)
    t.from_client(ACK, bytes(data))
    sent = data + 40
    at = 0
    for jump in jumps:
        at += jump
        speak(t, "client", ACK, at - 1, b"x")
        sent += 41
    speak(t, "client", RST, at)
    speak(t, "client", RST)
    start = core.now
    core.wait(4)
    clock = (core.now - start) // 4000 * 2 + (1 << 20)
    assert (first_number(core, 2000) - before) & MASK < clock + sent + 1000 + 8 * 250_000


def test_numbers_survive_a_restart() -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        core = Core(directory=directory)
        t = opened(lambda: core, (7, 7))
        t.from_client(ACK, b"12345")
        t.from_rs(ACK, b"abc")
        core.close()
        t.side = core = Core(directory=directory)
        core.service()
        core.now += 10
        assert core.state() == "TCP_EST"
        speak(t, "client", ACK, (PLAIN << 7) + 1, b"x")
        for side, offset in (("client", 1 << 29), ("rs", 1 << 29), ("rs", -5)):
            speak(t, side, RST, offset)
            assert core.state() == "TCP_EST"
        assert len(core.wait(5)) == 1  # the one within the window raised a doubt
        speak(t, "rs", RST)
        assert core.state() == "TCP_CLOSE"
        core.close()


# ---- what passes unchanged in meaning ----


@MAKERS
def test_fast_open_and_ecn_and_all_options_pass(make: Any) -> None:
    t = Talk(make(), ts=None)
    cookie = b"\x22\x0a" + b"cookie!!"
    options = wire.OPTION_MSS + wire.OPTION_SACK_OK + wire.option_scale(7) + cookie
    _, out = t.from_client(SYN | ECE | CWR, b"early data", options=options, tos=2)
    f = out[0][1]
    assert (f.flags, f.payload, f.tos) == (SYN | ECE | CWR, b"early data", 2)
    assert f.raw[f.l4 + 20 : f.l4 + 20 + len(options)] == options
    t.seq = 1011
    _, out = t.from_rs(SYN | ACK | ECE, ack=1011, options=options)
    assert (out[0][1].ack, out[0][1].flags) == (1011, SYN | ACK | ECE)
    t.ack()
    assert t.side.state() == "TCP_EST"
    speak(t, "client", RST)  # at 1011: the early data count
    assert t.side.state() == "TCP_CLOSE"


@MAKERS
def test_early_data_that_the_rs_did_not_take_come_again(make: Any) -> None:
    t = Talk(make(), ts=None)
    t.syn(payload=b"early data")
    t.synack(ack=1001)
    t.from_client(ACK, b"early data", seq=1001)
    assert t.side.state() == "TCP_EST"
    speak(t, "client", RST, seq=1011)
    assert t.side.state() == "TCP_CLOSE"


@MAKERS
def test_urgent_data_keep_their_pointer(make: Any) -> None:
    t = opened(make)
    segment = wire.tcp_segment(
        *[CLIENT, VIP, 40000, 80], seq=t.seq, ack=t.rs_seq, flags=ACK | URG, payload=b"!!x", urgent=2
    )
    _, out = t.side.deliver(WAN, wire.ether(wire.ipv4(segment, src=CLIENT, dst=VIP, proto=TCP)))
    f = out[0][1]
    assert (f.flags, f.raw[f.l4 + 18 : f.l4 + 20], f.payload) == (ACK | URG, b"\0\2", b"!!x")


@MAKERS
def test_sack_speaks_of_the_other_sides_numbers_in_both_directions(make: Any) -> None:
    t = Talk(make()).establish()
    blocks = [(9100, 9200), (9400, 9500)]
    options = wire.option_timestamp(500, 77) + wire.option_sack(blocks)
    _, out = t.ack(options=options)  # about the RS's data, whose numbers are the same on both sides
    assert out[0][1].sack == blocks
    duplicate = [(900, 950), (1100, 1200)]  # D-SACK (RFC 2883): the first block lies below the ACK
    _, out = t.from_rs(ACK, sack=duplicate)
    assert out[0][1].sack == duplicate and out[0][1].ack == t.seq


@MAKERS
def test_a_wrong_checksum_stays_wrong(make: Any) -> None:
    """The balancer does not look at it, and must not repair it: the end host shall see the damage."""
    t = opened(make)
    for proto, frame in (
        (TCP, wire.tcp(CLIENT, 40000, VIP, 80, ACK, seq=t.seq, ack=t.rs_seq, payload=b"damaged", checksum=0x1234)),
        (UDP, wire.udp(CLIENT, 40000, VIP, 53, b"damaged", checksum=0x1234)),
    ):
        if proto == UDP:
            t.side.service(id=1, vport=53, proto=UDP)
        sender = wire.read(frame)
        before = wire.residue(wire.pseudo_header(CLIENT, VIP, proto, sender.total - 20) + frame[sender.l4 :])
        if isinstance(t.side, Core):
            [(_, raw)] = t.side.send(WAN, frame)
        else:
            t.side.reference.receive(WAN, frame)
            [(_, raw)] = t.side.reference.sent
            t.side.reference.sent = []
        f = wire.read(raw)
        assert wire.faults(raw) == [f"{'TCP' if proto == TCP else 'UDP'} checksum"]
        after = wire.residue(wire.pseudo_header(f.src, f.dst, proto, f.total - 20) + raw[f.l4 : 14 + f.total])
        assert before == after  # as wrong as it was


# ---- strangers ----


@dataclass
class Stranger:
    sentence: str
    frame: bytes
    outcome: str
    side: dict[str, Any] = field(default_factory=dict)


def syn(src: str = CLIENT, sport: int = 7, dst: str = VIP, dport: int = 80, flags: int = SYN, **fields: Any) -> bytes:
    return wire.tcp(src, sport, dst, dport, flags, **fields)


LSRR, SSRR, RECORD, ALERT = (
    b"\x83\x07\x04" + bytes(4),
    b"\x89\x07\x04" + bytes(4),
    b"\x07\x07\x04" + bytes(4),
    b"\x94\x04\0\0",
)

STRANGERS = [
    Stranger("loose source route", syn(ip_options=LSRR + b"\0"), "source_route"),
    Stranger("strict source route", syn(ip_options=b"\1" + SSRR), "source_route"),
    Stranger("source route behind another option", syn(ip_options=ALERT + LSRR + b"\1"), "source_route"),
    Stranger("record route is harmless", syn(ip_options=RECORD + b"\0"), "to_rs"),
    Stranger("behind the end of options nothing is one", syn(ip_options=b"\0" + LSRR), "to_rs"),
    Stranger("a malformed option before it: the end host judges", syn(ip_options=b"\x07\0" + LSRR[:6]), "to_rs"),
    Stranger("source route in a fragment", syn(ip_options=LSRR + b"\0", frag=wire.MF), "source_route"),
    Stranger("source route in a ping", wire.ether(wire.ipv4(wire.icmp_message(8, 0, bytes(4)), src=CLIENT, dst=VIP, proto=1, options=LSRR + b"\0")),
             "source_route"),
    Stranger("source route with a TCP header that nobody can read", syn(ip_options=LSRR + b"\0", offset=15), "source_route"),
    Stranger("source route to somebody else goes to the host", syn(dst="192.0.2.99", ip_options=LSRR + b"\0"), "passed", {"punt": True}),
    Stranger("source route to a VIP does not, not even there", syn(ip_options=LSRR + b"\0"), "source_route", {"punt": True}),
    Stranger("land attack", syn(VIP, 80), "land"),
    Stranger("land attack by UDP", wire.udp(VIP, 53, VIP, 53, b"x"), "land"),
    Stranger("land attack by ping", wire.icmp(VIP, VIP, 8), "land"),
    Stranger("a VIP as somebody's source", syn(VIP2), "martian"),
    Stranger("a LIP as somebody's source", syn(LIP), "martian"),
    Stranger("source 0.0.0.0/8", syn("0.0.0.0"), "martian"),
    Stranger("source 0.0.0.0/8, another", syn("0.255.0.1"), "martian"),
    Stranger("source 127.0.0.0/8", syn("127.255.255.254"), "martian"),
    Stranger("source 224.0.0.0/4", syn("224.0.0.1"), "martian"),
    Stranger("source 239.255.255.255", syn("239.255.255.255"), "martian"),
    Stranger("source 240.0.0.0/4", syn("240.0.0.1"), "martian"),
    Stranger("source broadcast", syn("255.255.255.255"), "martian"),
    Stranger("the last source before 224.0.0.0", syn("223.255.255.255"), "to_rs"),
    Stranger("the neighbours of 127.0.0.0/8", syn("128.0.0.1"), "to_rs"),
    Stranger("from TCP port 0", syn(sport=0), "port_zero"),
    Stranger("to TCP port 0", syn(dport=0), "port_zero"),
    Stranger("from UDP port 0", wire.udp(CLIENT, 0, VIP, 53, b"x"), "port_zero"),
    Stranger("to UDP port 0", wire.udp(CLIENT, 9, VIP, 0, b"x"), "port_zero"),
    Stranger("SYN and FIN", syn(flags=SYN | FIN), "tcp_flags"),
    Stranger("SYN and RST", syn(flags=SYN | RST), "tcp_flags"),
    Stranger("SYN, ACK and FIN", syn(flags=SYN | ACK | FIN), "tcp_flags"),
    Stranger("null scan", syn(flags=0), "tcp_flags"),
    Stranger("xmas scan", syn(flags=FIN | PSH | URG), "tcp_flags"),
    Stranger("FIN scan", syn(flags=FIN), "tcp_flags"),
    Stranger("ACK scan", syn(flags=ACK), "no_conn"),
    Stranger("Maimon scan", syn(flags=FIN | ACK), "no_conn"),
    Stranger("SYN-ACK of nobody", syn(flags=SYN | ACK), "no_conn"),
    Stranger("RST of nobody", syn(flags=RST), "no_conn"),
    Stranger("SYN with ECN", syn(flags=SYN | ECE | CWR), "to_rs"),
    Stranger("UDP length beyond the packet", wire.udp(CLIENT, 9, VIP, 53, b"x", length=10), "udp_length"),
    Stranger("UDP length below its header", wire.udp(CLIENT, 9, VIP, 53, b"x", length=7), "udp_length"),
    Stranger("UDP length 0", wire.udp(CLIENT, 9, VIP, 53, b"x", length=0), "udp_length"),
    Stranger("a UDP header cut short", wire.ether(wire.ipv4(b"1234567", src=CLIENT, dst=VIP, proto=UDP)), "l4_header"),
    Stranger("a TCP header cut short", wire.ether(wire.ipv4(bytes(19), src=CLIENT, dst=VIP, proto=TCP)), "l4_header"),
    Stranger("a TCP offset of four words", syn(offset=4), "l4_header"),
    Stranger("an ICMP header cut short", wire.ether(wire.ipv4(bytes(7), src=CLIENT, dst=VIP, proto=1)), "l4_header"),
    Stranger("a TCP header cut short behind a fragment header of one fragment",
             wire.piece(wire.tcp("2001:db8:99::7", 9, "2001:db8:1::10", 80, SYN), 0, 3, 7, more=False), "l4_header"),
    Stranger("IP version 5", wire.ether(wire.ipv4(bytes(40), src=CLIENT, dst=VIP, proto=TCP, version_ihl=0x55)), "ip_header"),
    Stranger("an IP header of four words", wire.ether(wire.ipv4(bytes(40), src=CLIENT, dst=VIP, proto=TCP, version_ihl=0x44)), "ip_header"),
    Stranger("an IP header longer than the packet", wire.ether(wire.ipv4(bytes(20), src=CLIENT, dst=VIP, proto=TCP, version_ihl=0x4F)),
             "ip_header"),
    Stranger("an IP length below its header", wire.ether(wire.ipv4(bytes(40), src=CLIENT, dst=VIP, proto=TCP, total=19)), "ip_header"),
    Stranger("an IP length beyond the frame", wire.ether(wire.ipv4(bytes(40), src=CLIENT, dst=VIP, proto=TCP, total=61)), "truncated"),
    Stranger("an IP header checksum that is wrong", wire.ether(wire.ipv4(bytes(40), src=CLIENT, dst=VIP, proto=TCP, checksum=7)), "ip_checksum"),
]  # fmt: skip


@MAKERS
@pytest.mark.parametrize("row", STRANGERS, ids=lambda r: r.sentence)
def test_a_stranger(row: Stranger, make: Any) -> None:
    side = make(**row.side)
    side.service()
    outcome, _ = side.deliver(WAN, row.frame)
    assert outcome == row.outcome
    assert side.state() == ("SYN_RECV" if row.outcome == "to_rs" else "")


@MAKERS
def test_a_source_route_inside_a_connection_ends_there(make: Any) -> None:
    t = opened(make)
    outcome, _ = t.from_client(ACK, b"x", ip_options=LSRR + b"\0")
    assert (outcome, t.side.state()) == ("source_route", "TCP_EST")


# ---- UDP ----


@MAKERS
@pytest.mark.parametrize("side", ["client", "rs"])
def test_either_side_keeps_a_udp_connection(side: str, make: Any) -> None:
    t = Talk(make(), UDP)
    t.datagram()
    t.reply()
    for _ in range(4):
        t.side.wait(TIMEOUTS["UDP_NORM"] - 1)
        assert (t.datagram() if side == "client" else t.reply())[0] in ("to_rs", "to_client")
    assert t.side.state() == "UDP_NORM"


TWO = {"members": [(0, RS1, 8080, 1), (1, RS2, 8080, 1)], "one_packet": True}


def query(side: Any, n: int = 0) -> wire.Frame:
    outcome, out = side.deliver(WAN, wire.udp(CLIENT, 40000, VIP, 53, b"query", ident=n))
    assert outcome == "to_rs"
    return out[0][1]


def answer(side: Any, to: wire.Frame, payload: bytes = b"answer") -> Result:
    return side.deliver(LAN, wire.udp(to.dst, to.dport, to.src, to.sport, payload))


@MAKERS
def test_every_datagram_of_a_one_packet_service_is_scheduled_anew_and_its_answer_finds_the_client(make: Any) -> None:
    side = make()
    side.service(proto=UDP, vport=53, **TWO)
    asked = [query(side, n) for n in range(6)]
    assert [f.dst for f in asked] == [RS1, RS2] * 3
    assert len({(f.dst, f.src, f.sport) for f in asked}) == 6
    for f in reversed(asked):
        outcome, out = answer(side, f)
        assert outcome == "to_client"
        assert (out[0][1].src, out[0][1].sport, out[0][1].dst, out[0][1].dport) == (VIP, 53, CLIENT, 40000)
    assert side.state() == " ".join(["UDP_LAST"] * 6)


@MAKERS
@pytest.mark.parametrize(("answered", "seconds"), [(False, TIMEOUTS["UDP_NONE"]), (True, TIMEOUTS["UDP_LAST"])])
def test_a_one_packet_connection_ends_soon(answered: bool, seconds: int, make: Any) -> None:
    side = make()
    side.service(proto=UDP, vport=53, **TWO)
    f = query(side)
    if answered:
        answer(side, f)
        assert answer(side, f, b"and more")[0] == "to_client"
    side.wait(seconds - 0.2)
    assert side.state() == ("UDP_LAST" if answered else "UDP_NONE")
    side.wait(1.3)
    assert side.state() == ""
    assert answer(side, f)[0] == "no_conn"


@MAKERS
def test_the_timeout_of_a_one_packet_service_is_its_own(make: Any) -> None:
    side = make()
    side.service(proto=UDP, vport=53, conn_timeout=9, **TWO)
    query(side)
    side.wait(8.8)
    assert side.state() == "UDP_NONE"
    side.wait(1.3)
    assert side.state() == ""


@MAKERS
def test_a_conversation_of_before_goes_on_and_ends_when_one_packet_scheduling_begins(make: Any) -> None:
    t = Talk(make(), UDP)
    t.datagram()
    t.reply()
    t.side.service(proto=UDP, vport=53, **TWO)
    t.datagram()
    assert t.side.state() == "UDP_NORM"
    t.side.wait(TIMEOUTS["UDP_NORM"] + 1.1)
    t.datagram()
    t.datagram()
    assert t.side.state() == "UDP_NONE UDP_NONE"


@MAKERS
def test_tcp_does_not_know_one_packet_scheduling(make: Any) -> None:
    t = Talk(make(), one_packet=True).establish()
    assert t.side.state() == "TCP_EST"


def test_answered_datagrams_lend_their_ports_when_ports_are_scarce() -> None:
    core = Core(lports=(5000, 5003))
    core.service(proto=UDP, vport=53, one_packet=True)
    for n in range(40):
        answer(core, query(core, n))
    assert core.counters()["no_lip_port"] == 0
    waiting = [query(core, n) for n in range(4)]
    assert core.deliver(WAN, wire.udp(CLIENT, 40000, VIP, 53, b"one too many"))[0] == "no_lip_port"
    answer(core, waiting[2])
    assert query(core).sport == waiting[2].sport
    core.check_sums()
    core.wait(4)
    core.check_empty()


def test_one_packet_connections_survive_a_restart() -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        core = Core(directory=directory)
        core.service(proto=UDP, vport=53, **TWO)
        asked = [query(core, n) for n in range(4)]
        core.close()
        core = Core(directory=directory)
        core.service(proto=UDP, vport=53, **TWO)
        assert core.state() == " ".join(["UDP_NONE"] * 4)
        assert [answer(core, f)[0] for f in asked] == ["to_client"] * 4
        assert len({query(core, n).sport for n in range(4)}) >= 2
        core.wait(4)
        core.check_empty()
        core.close()
