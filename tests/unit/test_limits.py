"""What is held back around the choice of an RS: thresholds, limits, backup and sorry servers. Each row is real packets."""

from __future__ import annotations

import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import packets as wire
import pytest
from crew import RS, Crew
from packets import ACK, RST, SCTP, SYN, TCP, UDP
from rig import CLIENT, CLIENT6, LAN, LIP_IDS, RS1, RS2, RS3, RS6, SECOND, VIP, VIP6, WAN, Rig, Twin

sys.path.insert(0, str(Path(__file__).parents[1] / "cases"))
from talk import Core, Talk

LIPS = list(LIP_IDS.values())


def syn(i: int, client: str = CLIENT, vip: str = VIP) -> bytes:
    return wire.tcp(client, 1024 + i, vip, 80, SYN, seq=i)


def opened(twin: Twin, n: int, first: int = 0, **fields: Any) -> list[str]:
    """Outcomes of n first packets, each in a turn of its own."""
    return [twin.deliver([(WAN, syn(i, **fields))])[0] for i in range(first, first + n)]


def close(twin: Twin, port: int) -> None:
    """The RS refuses, and the connection is gone a while later."""
    conn = next(c for c in twin.reference.conns if c.client[1] == port)
    seq = conn.at_rs(conn.next_seq[0])
    twin.deliver([(1, wire.tcp(*conn.rs, *conn.lip, RST | ACK, seq=0, ack=seq))])
    twin.wait(5, 0.25)


def servers_of(twin: Twin) -> dict[str, int]:
    counts: dict[str, int] = {}
    for c in twin.conns():
        counts[c.rip] = counts.get(c.rip, 0) + 1
    return counts


MEMBERS = [(0, RS1, 8080, 1), (1, RS2, 8080, 1), (2, RS3, 8080, 1)]
# title: limits by member, weights of the three -> connections by server and the outcome of the rest of 12 first packets
ROWS: dict[str, tuple[dict[int, tuple[str, int, int, int]], tuple[int, int, int], dict[str, int], str]] = {
    "upper of one: the others go on": ({0: ("active", 2, 0, 0)}, (1, 1, 1), {RS1: 2, RS2: 5, RS3: 5}, ""),
    "upper of all": (dict.fromkeys(range(3), ("active", 2, 0, 0)), (1, 1, 1), {RS1: 2, RS2: 2, RS3: 2}, "rs_full"),
    "upper of one that alone has weight": ({0: ("active", 1, 0, 0)}, (1, 0, 0), {RS1: 1}, "rs_full"),
    "new connections of one in a second": ({1: ("active", 0, 0, 3)}, (0, 1, 1), {RS2: 3, RS3: 9}, ""),
    "new connections of all": (dict.fromkeys(range(3), ("active", 0, 0, 1)), (1, 1, 1), dict.fromkeys((RS1, RS2, RS3), 1), "rs_full"),
    "a backup is not asked": ({2: ("backup", 0, 0, 0)}, (1, 1, 1), {RS1: 6, RS2: 6}, ""),
    "a backup when the others have weight 0": ({2: ("backup", 0, 0, 0)}, (0, 0, 1), {RS3: 12}, ""),
    "a backup takes what the others may not": (
        {0: ("active", 2, 0, 0), 1: ("active", 3, 0, 0), 2: ("backup", 0, 0, 0)}, (1, 1, 1), {RS1: 2, RS2: 3, RS3: 7}, ""),
    "a sorry server last": (
        {0: ("active", 2, 0, 0), 1: ("backup", 3, 0, 0), 2: ("sorry", 0, 0, 0)}, (1, 1, 1), {RS1: 2, RS2: 3, RS3: 7}, ""),
    "a sorry server when nothing else is there": ({2: ("sorry", 0, 0, 0)}, (0, 0, 1), {RS3: 12}, ""),
}  # fmt: skip


@pytest.mark.parametrize("scheduler", ["rr", "wrr"])
@pytest.mark.parametrize("title", ROWS)
def test_who_gets_the_connection(title: str, scheduler: str) -> None:
    limits, weights, wanted, refusal = ROWS[title]
    twin = Twin()
    members = [(id, rip, port, weight) for (id, rip, port, _), weight in zip(MEMBERS, weights, strict=True)]
    twin.service(members=members, limits=limits, scheduler=scheduler)
    outcomes = opened(twin, 12)
    assert servers_of(twin) == wanted
    refused = [o for o in outcomes if o != "to_rs"]
    assert refused == [refusal] * (12 - sum(wanted.values()))
    twin.wait(12, 0.25)
    twin.check_empty()


@pytest.mark.parametrize(("lower", "comes_back_below"), [(0, 6), (3, 3), (8, 8)])
def test_an_overloaded_rs_comes_back_below_the_lower_limit(lower: int, comes_back_below: int) -> None:
    """Without a lower limit below three quarters of the upper one, as in IPVS."""
    twin = Twin()
    twin.service(members=MEMBERS[:1], limits={0: ("active", 8, lower, 0)})
    assert not twin.plane.member_overloaded(0)
    assert opened(twin, 9) == ["to_rs"] * 8 + ["rs_full"]
    assert twin.plane.member_overloaded(0)
    for i in range(8):
        close(twin, 1024 + i)
        left = sum(twin.plane.member_stats(0)[5:])
        twin.now += SECOND // 64
        [outcome] = twin.deliver([(WAN, syn(100 + i))])
        assert outcome == ("to_rs" if left < comes_back_below else "rs_full"), left
        if outcome == "to_rs":
            break
    assert not twin.plane.member_overloaded(0) or lower == 8


SERVICE_ROWS: dict[
    str, tuple[dict[str, int], int, str]
] = {  # limits -> how many of 12 come through, and why not the rest
    "connections": ({"max_conns": 5}, 5, "limit_conns"),
    "new in a second": ({"new_per_s": 4}, 4, "limit_new"),
    "of a client": ({"per_client": 3}, 3, "limit_client"),
    "the smallest counts": ({"max_conns": 6, "new_per_s": 5, "per_client": 4}, 4, "limit_client"),
}


@pytest.mark.parametrize("proto", [TCP, UDP, SCTP])
@pytest.mark.parametrize("title", SERVICE_ROWS)
def test_limits_of_a_service(title: str, proto: int) -> None:
    limits, n, reason = SERVICE_ROWS[title]
    twin = Twin()
    twin.service(proto=proto, no_rs_reset=True, **limits)

    def first(i: int) -> bytes:
        if proto == SCTP:
            return wire.sctp(CLIENT, 1024 + i, VIP, 80, wire.sctp_init(tag=i + 1), tag=0)
        return syn(i) if proto == TCP else wire.udp(CLIENT, 1024 + i, VIP, 80, b"x")

    outcomes = [twin.deliver([(WAN, first(i))])[0] for i in range(12)]
    assert outcomes == ["to_rs"] * n + [reason] * (12 - n)
    twin.wait(15, 0.25)
    twin.check_empty()
    assert twin.deliver([(WAN, first(50))]) == ["to_rs"], "all is given back"


def test_new_connections_come_at_their_rate() -> None:
    """Ten seconds, a hundred attempts in each: a second's worth at once, then one each period; never more."""
    twin = Twin()
    twin.service(new_per_s=3)
    through = 0
    for i in range(1000):
        through += twin.deliver([(WAN, syn(i % 1000, client=f"198.51.100.{i // 256}"))]) == ["to_rs"]
        twin.now += SECOND // 100
    assert through == 3 + 9 * 3 + 2


def test_clients_are_counted_apart_and_an_ipv6_client_is_a_64() -> None:
    twin = Twin()
    twin.service(per_client=1, lips=LIPS)
    twin.service(1, vip=VIP6, per_client=1, members=[(8, RS6, 8080, 1)], lips=LIPS)
    assert opened(twin, 2) == ["to_rs", "limit_client"]
    assert opened(twin, 2, client="198.51.100.8") == ["to_rs", "limit_client"]
    assert opened(twin, 1, client=CLIENT6, vip=VIP6) == ["to_rs"]
    assert opened(twin, 1, client="2001:db8:99::1:2", vip=VIP6) == ["limit_client"], "the same /64"
    assert opened(twin, 1, client="2001:db8:99:1::7", vip=VIP6) == ["to_rs"], "the next /64"
    twin.wait(12, 0.25)
    assert opened(twin, 1, first=9) == ["to_rs"]


def test_clients_without_room_are_not_limited_and_counted() -> None:
    """The table of clients is of fixed size: 64 buckets of eight words here."""
    rig = Rig(conns=2048, frames=2048)
    rig.service(proto=UDP, per_client=1)
    for i in range(1500):
        rig.send(WAN, wire.udp(f"10.9.{i >> 8}.{i & 255}", 1024, VIP, 80, b""))
    counters = rig.counters()
    assert counters["conns"] == 1500 and counters["limit_client"] == 0
    assert 1500 - 512 <= counters["clients_uncounted"] < 1500 - 400
    rig.wait(13, 0.25)
    rig.check_empty()
    assert len(rig.send(WAN, wire.udp("10.9.0.0", 1024, VIP, 80, b""))) == 1
    assert len(rig.send(WAN, wire.udp("10.9.0.0", 1025, VIP, 80, b""))) == 0


@pytest.mark.parametrize("resets", [True, False])
def test_full_servers_are_answered_as_the_service_wants(resets: bool) -> None:
    twin = Twin()
    twin.service(members=MEMBERS[:1], limits={0: ("active", 1, 0, 0)}, no_rs_reset=resets)
    assert opened(twin, 2) == ["to_rs", "answered" if resets else "rs_full"]


def test_a_sorry_server_of_the_other_family() -> None:
    """An IPv6 sorry server of an IPv4 service, and the other way round."""
    twin = Twin()
    sorry = {1: ("sorry", 0, 0, 0), 9: ("sorry", 0, 0, 0)}
    twin.service(members=[(0, RS1, 8080, 0), (1, RS6, 8080, 1)], limits=sorry, lips=LIPS)
    twin.service(1, vip=VIP6, members=[(8, RS6, 8080, 0), (9, RS2, 8080, 1)], limits=sorry, lips=LIPS)
    assert opened(twin, 1) + opened(twin, 1, client=CLIENT6, vip=VIP6) == ["to_rs", "to_rs"]
    assert servers_of(twin) == {RS6: 1, RS2: 1}


def test_a_datagram_of_a_flow_whose_rs_is_dead_goes_to_another_at_once() -> None:
    twin = Twin()
    twin.service(proto=UDP, members=MEMBERS, expire_quiescent=True)
    for i in range(3):
        twin.deliver([(WAN, wire.udp(CLIENT, 1024 + i, VIP, 80, b"x"))])
    dead = next(c for c in twin.reference.conns if c.rs[0] == RS1)
    twin.service(proto=UDP, members=[(0, RS1, 8080, 0), *MEMBERS[1:]], expire_quiescent=True)
    assert twin.deliver([(WAN, wire.udp(*dead.client, VIP, 80, b"y"))]) == ["to_rs"]
    assert servers_of(twin).get(RS1) is None
    assert twin.counters()["quiesced"] == 0
    twin.audit()


def test_what_limits_count_survives_a_restart() -> None:
    options: dict[str, Any] = {
        "members": MEMBERS[:1],
        "limits": {0: ("active", 4, 0, 0)},
        "per_client": 3,
        "max_conns": 5,
    }
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        rig = Rig(directory=directory)
        rig.service(**options)
        rig.send(WAN, *[syn(i) for i in range(3)], syn(9, client="198.51.100.9"))
        assert rig.counters()["conns"] == 4
        rig.close()
        rig = Rig(directory=directory)
        rig.service(**options)
        rig.step()
        before = rig.counters()
        rig.send(WAN, syn(4), syn(5, client="198.51.100.10"))
        moved = rig.moved(before)
        assert (moved.get("conns"), moved["limit_client"], moved["rs_full"]) == (None, 1, 1)
        rig.wait(12, 0.25)
        rig.check_empty()
        rig.close()


def test_a_connection_keeps_its_clients_server_after_a_restart() -> None:
    """It is looked at in time to renew that, however long its own timeout is."""
    options: dict[str, Any] = {"proto": UDP, "members": MEMBERS, "persistent": 4, "conn_timeout": 300}
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        rig = Rig(directory=directory)
        rig.service(**options)
        rig.send(WAN, wire.udp(CLIENT, 1024, VIP, 80, b"x"))
        rig.close()
        rig = Rig(directory=directory)
        rig.service(**options)
        rig.wait(20, 0.25)
        rig.send(WAN, *[wire.udp(CLIENT, 1025 + i, VIP, 80, b"x") for i in range(3)])
        assert [c.rip for c in rig.conns()] == [RS1] * 4
        rig.close()


# ---- several workers ----

# limits of the service; of its RS -> the most connections
CREW_ROWS: dict[str, tuple[dict[str, int], tuple[str, int, int, int] | None, int]] = {
    "upper below the number of workers": ({}, ("active", 1, 0, 0), 1),
    "upper": ({}, ("active", 7, 0, 0), 7),
    "connections of the service": ({"max_conns": 5}, None, 5),
    "connections of a client": ({"per_client": 2}, None, 2),
    "new in a second": ({"new_per_s": 4}, None, 4),
    "new of the RS in a second": ({}, ("active", 0, 0, 4), 4),
}


def limited(crew: Crew, options: dict[str, int], member: tuple[str, int, int, int] | None) -> None:
    limits = {1: member} if member else None
    crew.plane.put_service(1, VIP, 53, UDP, members=[(1, RS, 53, 1)], limits=limits, lips=[2], **options)
    crew.plane.publish()


@pytest.mark.parametrize("title", CREW_ROWS)
def test_a_limit_holds_over_all_workers(title: str) -> None:
    options, member, most = CREW_ROWS[title]
    crew = Crew(3)
    limited(crew, options, member)
    for i in range(30):
        crew.put(i % 3, WAN, wire.udp(CLIENT, 1024 + i, VIP, 53, b"x"))
    assert crew.counter("conns") == most
    crew.close()


def race(crew: Crew, pool: ThreadPoolExecutor, frames: list[list[bytes]], ns: int = 1_000_000) -> None:
    """One turn of all workers at the same moment, each with its frames."""
    for w, mine in enumerate(frames):
        for frame in mine:
            crew.queues[w, WAN].put(frame)
    crew.now += ns
    list(pool.map(lambda w: w.step(crew.now), crew.workers))
    for queue in crew.queues.values():
        queue.take_all()


@pytest.mark.parametrize("title", CREW_ROWS)
def test_a_limit_is_never_passed_while_workers_race(title: str) -> None:
    """Three workers turn at the same moment; connections end after a second, and all want their places again."""
    options, member, most = CREW_ROWS[title]
    crew, turns = Crew(3), 300
    crew.plane.put_settings({"UDP_ONEWAY": 1}, True)
    limited(crew, options, member)
    highest = 0
    with ThreadPoolExecutor(3) as pool:
        for turn in range(turns):
            ports = range(1024 + turn * 60, 1084 + turn * 60, 20)
            race(
                crew,
                pool,
                [[wire.udp(CLIENT, port + i, VIP, 53, b"x") for i in range(20)] for port in ports],
                50_000_000,
            )
            highest = max(highest, crew.counter("conns"))
    counters = crew.plane.counters()
    refused = sum(counters[name] for name in ("rs_full", "limit_conns", "limit_client", "limit_new"))
    assert counters["conns_opened"] + refused == turns * 60 and counters["conns_opened"] > 5 * most
    new_in_a_second = "new" in title  # a second's worth at once, and one each period: twice as many live in a second
    assert highest <= (2 * most if new_in_a_second else most)
    assert highest >= most - 1
    crew.close()


# ---- ending connections on request ----


def killed(rig: Rig, *, reset: bool, **filter: Any) -> list[tuple[int, wire.Frame]]:
    number = rig.plane.conn_kill(reset=reset, **filter)
    out = rig.step()
    assert rig.plane.conn_killed()[0] == number
    return [(port, wire.read(frame)) for port, frame in out]


@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("state", ["TCP_EST", "SYN_RECV"])
def test_a_killed_connection_is_reset_on_both_sides_or_silently_gone(state: str, reset: bool) -> None:
    core = Core()
    talk = Talk(core)
    talk.establish() if state == "TCP_EST" else talk.syn()
    assert core.state() == state
    frames = killed(core, reset=reset, cip=CLIENT)
    assert core.state() == "" and core.plane.conn_killed()[1] == 1
    if not reset:
        assert frames == []
    else:
        assert sorted((port, f.src, f.dst, f.flags & RST) for port, f in frames) == [
            (WAN, VIP, CLIENT, RST),
            (LAN, talk.lip[0], RS1, RST),
        ]
        to_client = next(f for port, f in frames if port == WAN)
        assert (to_client.ack, to_client.sport, to_client.dport) == (talk.seq, 80, talk.client[1])
    assert core.counters()["conns_killed"] == 1
    core.step()
    core.check_sums()
    core.check_empty()


def test_only_what_the_filter_names_is_killed() -> None:
    rig = Rig(conns=20000, frames=2048)
    rig.service(proto=UDP, members=MEMBERS[:2])
    for i in range(9000):
        rig.put(WAN, wire.udp(f"10.8.{i >> 8}.{i & 255}", 1024, VIP, 80, b""))
        if i % 50 == 49:
            rig.step()
    rig.step()
    assert rig.counters()["conns"] == 9000
    number = rig.plane.conn_kill(reset=False, rip=RS2)
    with pytest.raises(OSError, match="end connections"):
        rig.plane.conn_kill(reset=False, rip=RS1)  # one after the other
    turns = 0
    while rig.plane.conn_killed()[0] != number:
        rig.step()
        turns += 1
    assert turns == 3, "some thousand records a turn, so that packets do not wait"
    assert (rig.counters()["conns"], rig.plane.conn_killed()) == (4500, (number, 4500))
    assert {c.rip for c in rig.conns()} == {RS1}


# ---- persistence ----


def test_a_client_keeps_its_rs_for_the_time_after_its_last_connection() -> None:
    twin = Twin()
    twin.service(proto=UDP, members=MEMBERS, persistent=20, conn_timeout=2)
    for client in ("198.51.100.1", "198.51.100.2", "198.51.100.3"):
        twin.deliver([(WAN, wire.udp(client, 1024, VIP, 80, b"x"))])
    assert sorted(servers_of(twin)) == [RS1, RS2, RS3]
    mine = next(c.rip for c in twin.conns() if c.cip == "198.51.100.1")
    for i in range(5):
        twin.wait(15, 0.25)
        assert twin.conns() == []
        twin.deliver([(WAN, wire.udp("198.51.100.1", 2000 + i, VIP, 80, b"x"))])
        assert servers_of(twin) == {mine: 1}
    assert twin.plane.persistent(now_ns=twin.now).sum() == 1
    twin.wait(22, 0.25)
    assert twin.plane.persistent(now_ns=twin.now).sum() == 0
    seen = set()
    for i in range(3):
        twin.deliver([(WAN, wire.udp("198.51.100.1", 3000 + i, VIP, 80, b"x"))])
        seen |= servers_of(twin).keys()
        twin.wait(22, 0.25)
    assert len(seen) == 3, "each time scheduled anew"


def test_a_living_connection_keeps_the_clients_rs() -> None:
    core = Core()
    members = [(0, RS1, 8080, 1), (1, RS2, 8080, 1), (2, RS3, 8080, 1)]
    talk = Talk(core, members=members, persistent=4).establish()
    for _ in range(15):
        core.wait(1, 0.25)
        talk.ack()
    for i in range(6):
        core.send(WAN, syn(100 + i))
    assert len({c.rip for c in core.conns()}) == 1


# title: mask, members afterwards, options -> does the client stay with its server?
STAYS: dict[str, tuple[list[tuple[int, str, int, int]], dict[str, Any], bool]] = {
    "other weights": ([(0, RS1, 8080, 1), (1, RS2, 8080, 9)], {}, True),
    "weight 0": ([(0, RS1, 8080, 0), (1, RS2, 8080, 1)], {}, True),
    "weight 0 of all": ([(0, RS1, 8080, 0), (1, RS2, 8080, 0)], {}, True),
    "weight 0, and the service ends what is quiet": ([(0, RS1, 8080, 0), (1, RS2, 8080, 1)], {"expire_quiescent": True}, False),
    "removed": ([(1, RS2, 8080, 1)], {}, False),
    "drains and keeps its clients": (MEMBERS[:2], {"draining": {0: True}}, True),
    "drains": (MEMBERS[:2], {"draining": {0: False}}, False),
    "overloaded": (MEMBERS[:2], {"limits": {0: ("active", 1, 0, 0)}}, False),
}  # fmt: skip


@pytest.mark.parametrize("title", STAYS)
def test_when_a_persistent_client_stays(title: str) -> None:
    members, options, stays = STAYS[title]
    twin = Twin()
    twin.service(
        proto=UDP,
        members=MEMBERS[:2],
        persistent=60,
        **({"expire_quiescent": True} if "expire_quiescent" in options else {}),
    )
    twin.deliver([(WAN, wire.udp(CLIENT, 1024, VIP, 80, b"x"))])
    assert servers_of(twin) == {RS1: 1}
    twin.service(proto=UDP, members=members, persistent=60, **options)
    for i in range(1, 6):
        twin.deliver([(WAN, wire.udp(CLIENT, 1024 + i, VIP, 80, b"x"))])
    assert servers_of(twin) == ({RS1: 6} if stays else {RS1: 1, RS2: 5})


@pytest.mark.parametrize(("plen", "same", "other"), [(24, "198.51.100.9", "198.51.101.7"), (31, "198.51.100.6", "198.51.100.8")])  # fmt: skip
def test_clients_of_one_network_are_one(plen: int, same: str, other: str) -> None:
    twin = Twin()
    twin.service(proto=UDP, members=MEMBERS, persistent=60, persistent_plen=plen)
    for i in range(4):
        for client in (CLIENT, same):
            twin.deliver([(WAN, wire.udp(client, 1024 + i, VIP, 80, b"x"))])
    assert servers_of(twin) == {RS1: 8}
    twin.deliver([(WAN, wire.udp(other, 1024, VIP, 80, b"x"))])
    assert servers_of(twin) == {RS1: 8, RS2: 1}


def test_a_sorry_server_is_nobodys_own() -> None:
    twin = Twin()
    limits = {2: ("sorry", 0, 0, 0)}
    twin.service(proto=UDP, members=[(0, RS1, 8080, 0), MEMBERS[2]], limits=limits, persistent=60)
    twin.deliver([(WAN, wire.udp(CLIENT, 1024, VIP, 80, b"x"))])
    twin.service(proto=UDP, members=[(0, RS1, 8080, 1), MEMBERS[2]], limits=limits, persistent=60)
    twin.deliver([(WAN, wire.udp(CLIENT, 1025, VIP, 80, b"x"))])
    assert servers_of(twin) == {RS3: 1, RS1: 1}


def test_a_client_that_comes_by_several_workers_has_one_rs() -> None:
    """200 clients, 27 connections each, over three workers that turn at the same moment, while weights change."""
    servers = ["10.0.0.101", "10.0.0.102", "10.0.0.103", "10.0.0.104"]
    crew = Crew(3, servers=servers)
    with ThreadPoolExecutor(3) as pool:
        for i in range(9):
            weights = [1 + i, 1, 1 + i % 2, i % 3]
            members = [(4 + m, rs, 53, w) for m, (rs, w) in enumerate(zip(servers, weights, strict=True))]
            crew.plane.put_service(1, VIP, 53, UDP, members=members, persistent=300, lips=[2])
            crew.plane.publish()
            for first in range(0, 200, 20):
                clients = [f"10.7.0.{n}" for n in range(first, first + 20)]
                race(crew, pool, [[wire.udp(c, 1024 + 3 * i + w, VIP, 53, b"x") for c in clients] for w in range(3)])
    seen: dict[str, set[str]] = {}
    for w in range(3):
        cursor = 0
        while cursor >= 0:
            page, cursor = crew.plane.conns(w, cursor)
            for c in page:
                seen.setdefault(c.cip, set()).add(c.rip)
    assert len(seen) == 200 and crew.counter("conns") == 200 * 27
    assert {len(its) for its in seen.values()} == {1}
    assert len(set.union(*seen.values())) == 3, "spread over those that had a weight when the clients came"
    crew.close()


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("known", [False, True])
def test_a_datagram_meets_an_rs_that_is_dead_before_the_snapshot_says_so(family: int, known: bool) -> None:
    """Between put and publish the snapshot still names an RS that is not to be used: one datagram is lost, and nothing else."""
    rig = Rig()
    client, vip, rs, lip = (CLIENT, VIP, RS1, 3) if family == 4 else (CLIENT6, VIP6, RS6, 6)
    options: dict[str, Any] = {"vip": vip, "proto": UDP, "lips": [lip], "expire_quiescent": True}
    rig.service(members=[(0, rs, 8080, 1)], **options)
    if known:
        assert len(rig.send(WAN, wire.udp(client, 1024, vip, 80, b"x"))) == 1
    rig.plane.put_service(
        0, vip, 80, UDP, members=[(0, rs, 8080, 0)], **{k: v for k, v in options.items() if k not in ("vip", "proto")}
    )
    before = rig.counters()
    assert rig.send(WAN, wire.udp(client, 1024, vip, 80, b"x")) == []
    assert rig.moved(before)["quiesced"] == 1
    rig.plane.publish()
    assert rig.send(WAN, wire.udp(client, 1024, vip, 80, b"x")) == []
    assert rig.moved(before)["no_rs"] == 1
    rig.check_sums()
    rig.check_empty()
