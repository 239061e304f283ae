"""The commands end to end: argv in, exit code, standard output and changes out, over a real socket to a fake fnat."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any

import pytest
from fake_api import FakeApi
from terminal import type_in

from fnat import keeper
from fnat.cli import dpip, main

WEB = {"proto": "tcp", "vip": "10.0.0.1", "vport": 80}
WEB6 = {"proto": "tcp", "vip": "2001:db8::1", "vport": 80}
ZERO = {"conns": 0, "in_packets": 0, "out_packets": 0, "in_bytes": 0, "out_bytes": 0, "active": 0, "inactive": 0}
CALM = {"cps": 0, "in_pps": 0, "out_pps": 0, "in_bps": 0, "out_bps": 0}
SERVICE = {
    **WEB, "scheduler": "rr", "conn_timeout": 0, "no_rs": "drop", "expire_quiescent": False, "one_packet": False, "half_open": None,
    "stats": {**ZERO, "conns": 12, "active": 3, "inactive": 4}, "rate": {**CALM, "cps": 5},
    "lips": [{"addr": "10.0.9.1", "port": "dpdk0", "conns": 7, "conflicts": 0}],
    "servers": [
        {"rip": "10.0.2.1", "rport": 8080, "weight": 3, "stats": {**ZERO, "active": 3, "inactive": 4}, "rate": CALM},
    ],
}  # fmt: skip
STATUS = {
    "version": "0.1.0", "pids": {"keeper": 1, "dataplane": 2, "control": None}, "uptime": 61.7, "workers": 2,
    "conns": 7, "capacity": 4096, "snapshot": 9, "huge_pages": 0, "longest_step_ns": [84_000, 1_200_000],
    "steering": {"wan": {"tcp4": "hand-off: no"}, "lan": {"tcp4": "rss, ice, 512 slots", "udp4": "hand-off: no"}},
}  # fmt: skip
CONN = {
    "worker": 1, "proto": "tcp", "state": "TCP_EST", "remaining": 90, "age": 5, "cip": "10.1.1.1", "cport": 1111,
    "vip": "10.0.0.1", "vport": 80, "lip": "10.0.9.1", "lport": 2222, "rip": "10.0.2.1", "rport": 8080,
    "in_packets": 3, "out_packets": 2, "in_bytes": 300, "out_bytes": 200,
}  # fmt: skip
PORT = {
    "id": 0, "name": "dpdk0", "kind": "xdp", "device": "veth0", "mac": "02:00:00:00:00:01", "mtu": 1500, "up": True,
    "speed": 10000, "duplex": "full", "mode": "native", "zero_copy": False, "exclusive": False, "queues": 1,
    "steering": {"tcp4": "rss, i40e, 512 slots", "udp4": "hand-off: hashed by addresses only"},
    "stats": dict.fromkeys(
        ["ipackets", "opackets", "ibytes", "obytes", "ierrors", "oerrors", "imissed", "rx_nombuf"], 100
    ),
    "frames": {"avail": 10, "inuse": 2},
}  # fmt: skip
RESOURCES: dict[str, Any] = {
    "/v1/status": STATUS,
    "/v1/services": [SERVICE],
    "/v1/conns": [[CONN], [], [{**CONN, "cport": 1112, "worker": 0}]],
    "/v1/ports": [PORT],
    "/v1/workers": [{"index": 0, "cpu": 1, "counters": dict.fromkeys(["steps", "sleeps"], 1)}],
    "/v1/addresses": [
        {"addr": "10.0.9.1", "plen": 32, "port": "dpdk0", "scope": "global", "sapool": True, "sa_used": 7,
         "sa_free": 64505, "sa_miss": 0},
    ],
    "/v1/routes": [
        {"prefix": "0.0.0.0/0", "gateway": "10.0.0.254", "src": None, "port": "dpdk0", "mtu": 0, "metric": 0,
         "scope": "global", "proto": "kernel"},
    ],
    "/v1/neighbours": [{"addr": "10.0.0.254", "mac": "", "state": "SEND", "port": "dpdk0", "static": False}],
    "/v1/headroom": {
        "rows": [{"proto": "tcp", "vip": "10.0.0.1", "vport": 80, "lip": "10.0.9.1", "rip": "10.0.2.1", "rport": 8080,
                  "used": 60_000, "free": 4_512, "busiest": 31_000, "share": 32_256, "full_in": 3_700.4}],
        "ports_full_in": 3_700.4, "conns": 7, "capacity": 4096, "conns_full_in": None,
    },
    "/metrics": "fnat_conns 7\n",
}  # fmt: skip


@pytest.fixture
def fnat(api: FakeApi) -> FakeApi:
    api.resources = RESOURCES
    return api


SHOWN: list[tuple[str, str]] = [
    (
        "fnat-ipvsadm -ln",
        "IP Virtual Server version 0.1.0 (size=4096)\n"
        "Prot LocalAddress:Port Scheduler Flags\n"
        "  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn\n"
        "TCP  10.0.0.1:80 rr\n"
        "  -> 10.0.2.1:8080                FullNat 3      3          4         \n",
    ),
    (
        "fnat-ipvsadm -lnc",
        "[1]tcp 90s    TCP_EST     10.1.1.1:1111      10.0.0.1:80        10.0.9.1:2222      10.0.2.1:8080\n"
        "[0]tcp 90s    TCP_EST     10.1.1.1:1112      10.0.0.1:80        10.0.9.1:2222      10.0.2.1:8080\n",
    ),
    (
        "fnat ipvsadm -lnc --sockpair tcp:10.1.1.1:1112:10.0.0.1:80",
        "[0]tcp 90s    TCP_EST     10.1.1.1:1112      10.0.0.1:80        10.0.9.1:2222      10.0.2.1:8080\n",
    ),
    ("fnat-ipvsadm -S", "-A -t 10.0.0.1:80 -s rr\n-P -t 10.0.0.1:80 -z 10.0.9.1 -F dpdk0\n"
     "-a -t 10.0.0.1:80 -r 10.0.2.1:8080 -b -w 3\n"),
    (
        "fnat ipvsadm -G",
        "VIP:VPORT            TOTAL    SNAT_IP              CONFLICTS  CONNS     \n"
        "10.0.0.1:80          1        \n"
        "                              10.0.9.1             0          7         \n",
    ),
    (
        "fnat dpip link show dpdk0",
        "1: dpdk0: socket 0 mtu 1500 rx-queue 1 tx-queue 1\n"
        "    UP 10000 Mbps full-duplex unknown-nego\n"
        "    addr 02:00:00:00:00:01\n",
    ),
    (
        "fnat-dpip link show cpu",
        "<< Controll Plane >>\n<< Data Plane >>\n"
        "0: cpu1: socket 0\n    queues dpdk0:rx0;tx0\n"
        "<< Isolate RX Lcores >>\n",
    ),
    (
        "fnat-dpip addr show -s",
        "inet 10.0.9.1/32 scope global dpdk0\n"
        "     valid_lft forever preferred_lft forever sa_used 7 sa_free 64505 sa_miss 0\n",
    ),
    (
        "fnat-dpip route show",
        "inet 0.0.0.0/0 via 10.0.0.254 src 0.0.0.0 dev dpdk0 mtu 1500 tos 0 scope global metric 0 proto kernel\n",
    ),
    (
        "fnat-dpip neigh show dev dpdk0",
        f"ip: 10.0.0.254{'':38} mac:incomplate{'':23}state: SEND           dev: dpdk0  core: 0\n",
    ),
    (
        "fnat service show",
        "PROTO  SERVICE      SCHEDULER  RS  RS IN USE  LIPS  ACTIVE  INACTIVE  CONNS/S  IN PKT/S  OUT PKT/S"
        "  IN B/S  OUT B/S  CONNS  TIMEOUT  NO RS\n"
        "tcp    10.0.0.1:80  rr          1          1     1       3         4        5         0          0"
        "       0        0     12  -        drop\n",
    ),
    (
        "fnat rs show tcp 10.0.0.1:80",
        "PROTO  SERVICE      SERVER         WEIGHT  ACTIVE  INACTIVE  CONNS/S  IN PKT/S  OUT PKT/S  CONNS  STATE\n"
        "tcp    10.0.0.1:80  10.0.2.1:8080       3       3         4        0         0          0      0  -\n",
    ),
    (
        "fnat lip show",
        "PROTO  SERVICE      LIP       PORT   CONNS  CONFLICTS\n"
        "tcp    10.0.0.1:80  10.0.9.1  dpdk0      7          0\n",
    ),
    (
        "fnat addr show",
        "ADDRESS      PORT   LIP  PORTS USED  PORTS FREE  MISSES\n"
        "10.0.9.1/32  dpdk0  yes           7       64505       0\n",
    ),
    (
        "fnat route show",
        "PREFIX     GATEWAY     PORT   SOURCE  MTU  METRIC  SCOPE   FROM\n"
        "0.0.0.0/0  10.0.0.254  dpdk0  -         -       0  global  kernel\n",
    ),
    (
        "fnat neigh show",
        "ADDRESS     MAC  STATE  PORT   STATIC\n"
        "10.0.0.254  -    SEND   dpdk0  no\n",
    ),
    (
        "fnat port show dpdk0",
        "PORT   DEVICE  KIND  MODE    ZERO-COPY  EXCLUSIVE  UP    MTU  QUEUES  STEERING      MAC              "
        "  IN PKTS  OUT PKTS  MISSED  FRAMES FREE\n"
        "dpdk0  veth0   xdp   native  no         no         yes  1500       1  rss+hand-off  02:00:00:00:00:01"
        "      100       100     100           10\n",
    ),
    (
        "fnat lip headroom tcp 10.0.0.1:80",
        "PROTO  SERVICE      LIP       SERVER          USED  FREE  BUSIEST WORKER  FULL IN\n"
        "tcp    10.0.0.1:80  10.0.9.1  10.0.2.1:8080  60000  4512  31000 of 32256  1h 1m\n"
        "ports run out in      1h 1m\n"
        "connections run out in never (7 of 4096)\n",
    ),
    ("fnat conn count", "7\n"),
    ("fnat conn count --proto tcp", "2\n"),
    ("fnat conn count --json", '{\n  "conns": 7\n}\n'),
    (
        "fnat status",
        "version      0.1.0\n"
        "up for       62 s\n"
        "processes    keeper 1, dataplane 2, control not running\n"
        "workers      2\n"
        "connections  7 of 4096\n"
        "snapshot     9\n"
        "huge pages   none\n"
        "longest turn 84 us, 1200 us preempted\n"
        "steering     wan hand-off, lan rss+hand-off\n",
    ),
    ("fnat metrics", "fnat_conns 7\n"),
    ("fnat version", "fnat 0.1.0\n"),
    (
        "fnat help FN-1001",
        "FN-1001: No fnat serves the socket.\n\n"
        "Cause: No process listens on the socket: fnat has not been started, has ended, or serves another\n"
        "  --socket or $FNAT_SOCKET.\n\n"
        "Mend: Start it with `fnat run --config FILE`, or give the command the socket that `fnat run` was\n"
        "  given.\n",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("line", "text"), SHOWN, ids=[line for line, _ in SHOWN])
def test_what_is_shown(line: str, text: str, fnat: FakeApi) -> None:
    assert type_in(line) == (0, text, "")


JSON: list[tuple[str, Any]] = [
    ("fnat-ipvsadm -ln --json", [SERVICE]),
    ("fnat --json ipvsadm -ln", [SERVICE]),
    ("fnat-ipvsadm -G --json", [{**WEB, "lips": SERVICE["lips"]}]),
    ("fnat-ipvsadm -lnc --json", [CONN, {**CONN, "cport": 1112, "worker": 0}]),
    ("fnat-dpip --json link show", [PORT]),
    ("fnat-dpip link show cpu --json", RESOURCES["/v1/workers"]),
    ("fnat-dpip addr show --json", RESOURCES["/v1/addresses"]),
    ("fnat-dpip route show --json", RESOURCES["/v1/routes"]),
    ("fnat-dpip neigh show --json", RESOURCES["/v1/neighbours"]),
    ("fnat --json service show", [SERVICE]),
    ("fnat conn show --json", [CONN, {**CONN, "cport": 1112, "worker": 0}]),
    ("fnat status --json", STATUS),
    ("fnat version --json", {"version": "0.1.0"}),
]


@pytest.mark.parametrize(("line", "value"), JSON, ids=[line for line, _ in JSON])
def test_json_is_what_the_api_gives(line: str, value: Any, fnat: FakeApi) -> None:
    code, out, err = type_in(line)
    assert (code, json.loads(out), err) == (0, value, "")


CHANGES: list[tuple[str, dict[str, Any]]] = [
    (
        "fnat-ipvsadm -A -t 10.0.0.1:80 -s rr",
        {"op": "service.add", **WEB, "scheduler": "rr", "client_addr": "toa"},
    ),
    (
        "fnat service set udp 10.0.0.1:80 --client-addr uoa-opp -q",
        {"op": "service.set", **WEB, "proto": "udp", "client_addr": "uoa-opp"},
    ),
    ("fnat ipvsadm -C", {"op": "service.clear"}),
    ("fnat-dpip addr flush dev dpdk0", {"op": "addr.flush", "port": "dpdk0"}),
    ("fnat dpip link set dpdk0 link down", {"op": "link.set", "port": "dpdk0", "up": False}),
    ("fnat -q service add tcp 10.0.0.1:80", {"op": "service.add", **WEB}),
    (
        "fnat service set tcp 10.0.0.1:80 --no-rs reset --keep-quiescent --half-open 9 --conn-timeout 60 -q",
        {"op": "service.set", **WEB, "no_rs": "reset", "expire_quiescent": False, "half_open": 9, "conn_timeout": 60},
    ),
    ("fnat service del tcp 10.0.0.1:80 -q", {"op": "service.del", **WEB}),
    ("fnat service zero tcp 10.0.0.1:80 -q", {"op": "service.zero", **WEB}),
    (
        "fnat rs add tcp 10.0.0.1:80 10.0.2.1:8080 --weight 3 -q",
        {"op": "server.add", "service": WEB, "rip": "10.0.2.1", "rport": 8080, "weight": 3},
    ),
    (
        "fnat rs set tcp 10.0.0.1:80 10.0.2.1:8080 --weight 0 -q",
        {"op": "server.set", "service": WEB, "rip": "10.0.2.1", "rport": 8080, "weight": 0},
    ),
    (
        "fnat rs add tcp 10.0.0.1:80 10.0.2.1:8080 --role backup --upper 100 --lower 80 --max-new-per-s 9 -q",
        {"op": "server.add", "service": WEB, "rip": "10.0.2.1", "rport": 8080, "weight": 1}
        | {"role": "backup", "upper": 100, "lower": 80, "max_new_per_s": 9},
    ),
    (
        "fnat rs set tcp 10.0.0.1:80 10.0.2.1:8080 --upper 0 -q",
        {"op": "server.set", "service": WEB, "rip": "10.0.2.1", "rport": 8080, "upper": 0},
    ),
    (
        "fnat service set tcp 10.0.0.1:80 --max-conns 5 --new-per-s 6 --per-client 7 --no-rs 10.0.2.9:80 -q",
        {"op": "service.set", **WEB, "no_rs": "10.0.2.9:80", "per_client": 7, "new_per_s": 6, "max_conns": 5},
    ),
    (
        "fnat rs drain 10.0.2.1 -q",
        {"op": "server.drain", "service": WEB, "rip": "10.0.2.1", "rport": 8080, "keep_persistent": False},
    ),
    (
        "fnat rs drain 10.0.2.1:8080 --service tcp 10.0.0.1:80 --keep-persistent -q",
        {"op": "server.drain", "service": WEB, "rip": "10.0.2.1", "rport": 8080, "keep_persistent": True},
    ),
    (
        "fnat rs shift tcp 10.0.0.1:80 10.0.2.1:8080 --stop -q",
        {"op": "server.unshift", "service": WEB, "rip": "10.0.2.1", "rport": 8080},
    ),
    (
        "fnat rs undrain 10.0.2.1 -q",
        {"op": "server.undrain", "service": WEB, "rip": "10.0.2.1", "rport": 8080},
    ),
    (
        "fnat service set tcp 10.0.0.1:80 --persistent 300 --persistent-mask 24 -q",
        {"op": "service.set", **WEB, "persistent": 300, "persistent_mask": 24},
    ),
    ("fnat service set udp 10.0.0.1:80 --one-packet -q", {"op": "service.set", **WEB, "proto": "udp", "one_packet": True}),
    (
        "fnat rs del tcp 10.0.0.1:80 10.0.2.1:8080 -q",
        {"op": "server.del", "service": WEB, "rip": "10.0.2.1", "rport": 8080},
    ),
    (
        "fnat lip add tcp 10.0.0.1:80 10.0.9.1 --port dpdk0 -q",
        {"op": "lip.add", "service": WEB, "addr": "10.0.9.1", "port": "dpdk0"},
    ),
    ("fnat lip del tcp 10.0.0.1:80 10.0.9.1 -q", {"op": "lip.del", "service": WEB, "addr": "10.0.9.1"}),
    (
        "fnat addr add 10.0.0.1/24 --port dpdk0 -q",
        {"op": "addr.add", "addr": "10.0.0.1", "plen": 24, "port": "dpdk0", "sapool": False},
    ),
    ("fnat addr del 10.0.0.1 --port dpdk0 -q", {"op": "addr.del", "addr": "10.0.0.1", "plen": 32, "port": "dpdk0"}),
    (
        "fnat route add default --via 10.0.0.254 --port dpdk0 -q",
        {"op": "route.add", "prefix": "0.0.0.0/0", "gateway": "10.0.0.254", "port": "dpdk0"},
    ),
    (
        "fnat route set 10.1.0.0/16 --port dpdk0 --metric 5 --mtu 1400 -q",
        {"op": "route.set", "prefix": "10.1.0.0/16", "port": "dpdk0", "metric": 5, "mtu": 1400},
    ),
    ("fnat route del 10.1.0.0/16 -q", {"op": "route.del", "prefix": "10.1.0.0/16"}),
    (
        "fnat neigh add 10.0.0.9 02-00-00-00-00-0A --port dpdk0 -q",
        {"op": "neigh.add", "addr": "10.0.0.9", "mac": "02:00:00:00:00:0a", "port": "dpdk0"},
    ),
    ("fnat neigh del 10.0.0.9 --port dpdk0 -q", {"op": "neigh.del", "addr": "10.0.0.9", "port": "dpdk0"}),
    ("fnat service add tcp [2001:DB8::1]:80 -q", {"op": "service.add", **WEB6}),
    (
        "fnat rs add tcp [2001:db8::1]:80 [2001:db8:2::1]:8080 -q",
        {"op": "server.add", "service": WEB6, "rip": "2001:db8:2::1", "rport": 8080, "weight": 1},
    ),
    (
        "fnat lip add tcp [2001:db8::1]:80 2001:db8:9::1 --port dpdk0 -q",
        {"op": "lip.add", "service": WEB6, "addr": "2001:db8:9::1", "port": "dpdk0"},
    ),
    (
        "fnat addr add 2001:db8::1 --port dpdk0 -q",
        {"op": "addr.add", "addr": "2001:db8::1", "plen": 128, "port": "dpdk0", "sapool": False},
    ),
    (
        "fnat route add default --via fe80::1 --port dpdk0 -q",
        {"op": "route.add", "prefix": "::/0", "gateway": "fe80::1", "port": "dpdk0"},
    ),
    ("fnat route del ::/0 -q", {"op": "route.del", "prefix": "::/0"}),
    (
        "fnat neigh add fe80::1 02:00:00:00:00:0a --port dpdk0 -q",
        {"op": "neigh.add", "addr": "fe80::1", "mac": "02:00:00:00:00:0a", "port": "dpdk0"},
    ),
    ("fnat port set dpdk0 down -q", {"op": "link.set", "port": "dpdk0", "up": False}),
]


@pytest.mark.parametrize(("line", "change"), CHANGES, ids=[line for line, _ in CHANGES])
def test_what_is_changed(line: str, change: dict[str, Any], fnat: FakeApi) -> None:
    assert type_in(line) == (0, "", "")
    assert fnat.changes == [change]


def test_a_change_is_told(fnat: FakeApi) -> None:
    line = "fnat service del tcp 10.0.0.1:80"
    assert type_in(line) == (0, "1 change in force (snapshot 7)\n", "")
    assert type_in(line + " --dry-run") == (0, "1 change would be accepted\n", "")
    assert type_in("fnat --json " + line[5:])[1] == '{\n  "applied": 1,\n  "snapshot": 7\n}\n'
    assert fnat.dry_runs == 1


def test_a_drain_has_a_deadline(fnat: FakeApi) -> None:
    now = time.time()
    assert type_in("fnat rs drain 10.0.2.1 --deadline 1h2m3s -q") == (0, "", "")
    assert 3722 <= fnat.changes[0]["until"] - now <= 3728
    for line, said in (
        ("fnat rs drain 10.0.2.1 --deadline soon", "'soon' is not a time"),
        ("fnat rs drain 10.0.2.9", "no service has a server 10.0.2.9"),
    ):
        code, _, error = type_in(line)
        assert code in (1, 2) and said in error


def test_connections_are_ended_by_filter_and_reason(fnat: FakeApi) -> None:
    line = "fnat conn kill --client 203.0.113.7 --reason attack"
    assert type_in(line) == (0, "2 connections ended\n", "")
    assert fnat.changes == [{"cip": "203.0.113.7", "reset": True, "reason": "attack", "all": False}]
    assert type_in("fnat conn kill --all --silent --reason test -q") == (0, "", "")
    assert fnat.changes[1] == {"reset": False, "reason": "test", "all": True}
    assert "give a filter" in type_in("fnat conn kill --reason test")[2]


def test_restored_rules_are_one_request(fnat: FakeApi) -> None:
    saved = type_in("fnat-ipvsadm -S")[1]
    assert type_in("fnat-ipvsadm -R", "-C\n" + saved) == (0, "", "")
    assert [change["op"] for change in fnat.changes] == ["service.clear", "service.add", "lip.add", "server.add"]


def test_filters_go_to_fnat(fnat: FakeApi) -> None:
    type_in("fnat-ipvsadm -lnc --cpu 1 -t 10.0.0.1:80")
    type_in("fnat conn show --rs 10.0.2.1 --service 10.0.0.1:80 --state TCP_EST")
    type_in("fnat conn count --client 10.9.0.0/16:1000 --lip 10.0.9.1:2222")
    type_in("fnat-ipvsadm -lnc --sockpair tcp:10.9.0.1:1111:10.0.0.1:80")
    type_in("fnat conn count --client 2001:DB8:9::/48 --service [2001:db8::1]:80 --lip 10.0.9.1")
    type_in("fnat conn count --client [2001:db8:9::/48]:1000 --rs 2001:db8::2")
    type_in("fnat conn count --client [2001:db8:9::1]/64:1000 --rs [2001:db8::2]:8080")
    type_in("fnat conn count --client [2001:db8:9::1] --lip [2001:db8::3]:2222")
    type_in("fnat-ipvsadm -lnc --sockpair udp:[2001:db8:9::1]:1111:[2001:db8::1]:80")
    queries = [query for _, query in fnat.asked if "cursor" not in query]
    assert queries == [
        {"worker": "1", "proto": "tcp", "vip": "10.0.0.1", "vport": "80", "limit": "8192"},
        {"rip": "10.0.2.1", "vip": "10.0.0.1", "vport": "80", "state": "TCP_EST", "limit": "8192"},
        {"cip": "10.9.0.0/16", "cport": "1000", "lip": "10.0.9.1", "lport": "2222"},
        {"proto": "tcp", "vip": "10.0.0.1", "vport": "80", "cip": "10.9.0.1", "cport": "1111", "limit": "8192"},
        {"cip": "2001:db8:9::/48", "vip": "2001:db8::1", "vport": "80", "lip": "10.0.9.1"},
        {"cip": "2001:db8:9::/48", "cport": "1000", "rip": "2001:db8::2"},
        {"cip": "2001:db8:9::1/64", "cport": "1000", "rip": "2001:db8::2", "rport": "8080"},
        {"cip": "2001:db8:9::1", "lip": "2001:db8::3", "lport": "2222"},
        {"proto": "udp", "vip": "2001:db8::1", "vport": "80", "cip": "2001:db8:9::1", "cport": "1111", "limit": "8192"},
    ]


def test_rates_of_a_link(fnat: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    def sleep(seconds: float) -> None:
        fnat.resources = {**RESOURCES, "/v1/ports": [{**PORT, "stats": {**PORT["stats"], "ipackets": 100 + 500}}]}
        assert seconds == 5

    monkeypatch.setattr(dpip.time, "sleep", sleep)
    code, out, _ = type_in("fnat-dpip link show dpdk0 -s -i 5 -c 2")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[3::7]] == ["ipackets/pps"] * 2
    assert [line.split()[0] for line in out.splitlines()[4::7]] == ["100", "0"]


FAILED: list[tuple[str, int, str]] = [
    ("fnat-dpip addr flush dev none", 1, "fnat-dpip: no port none; there are: dpdk0 (FN-1207)\n"),
    ("fnat-dpip link show lan", 1, "fnat-dpip: no port lan; there are: dpdk0 (FN-1203)\n"),
    ("fnat-dpip link show cpu7", 1, "fnat-dpip: no worker 7; there are: 0 (FN-1203)\n"),
    ("fnat port show lan", 1, "fnat: no port lan; there are: dpdk0 (FN-1203)\n"),
    ("fnat-ipvsadm -lnc --sockpair tcp:10.9.9.9:1:10.0.0.1:80", 1,
     "fnat-ipvsadm: no such connection; -lnc lists the connections (FN-1203)\n"),
    ("fnat-ipvsadm -a -t 10.0.0.1:80", 2, "fnat-ipvsadm: --add-server needs --real-server; add -r RIP:PORT\n"),
    ("fnat ipvsadm -A -t 10.0.0.1:80 -j enable", 2, "fnat: -j enable: the SYN proxy is not in fnat; leave it out and "
     "limit half-open connections with --half-open\n"),
    ("fnat-dpip vlan show", 2,
     "fnat-dpip: vlan is not in fnat; make the VLAN device with `ip link` and give it to fnat as a port\n"),
    ("fnat frob", 2, "fnat: No such command 'frob'; see `fnat --help`\n"),
    ("fnat service add icmp 10.0.0.1:80", 2,
     "fnat: Invalid value for '{tcp|udp|sctp}': 'icmp' is not one of 'tcp', 'udp', 'sctp'; see `fnat service add --help`\n"),
    ("fnat service add tcp 10.0.0.1", 2,
     "fnat: service '10.0.0.1' has no port; write ADDRESS:PORT with a port from 1 to 65535 "
     "(port 0 does not exist in fnat)\n"),
    ("fnat service set tcp 10.0.0.1:80", 2,
     "fnat: nothing to change; give what shall change, such as --scheduler rr; see `fnat service set --help`\n"),
    ("fnat route add default", 2, "fnat: give --via or --port; see `fnat route add --help`\n"),
    ("fnat --json metrics", 2, "fnat: --json means nothing with metrics; leave it out; see `fnat metrics --help`\n"),
    ("fnat --dry-run status", 2, "fnat: --dry-run means nothing with status; leave it out; see `fnat status --help`\n"),
    ("fnat -q dpip link show", 2, "fnat: --quiet and --dry-run mean nothing here; leave them out\n"),
    *((f"fnat {words} -i 1", 2, f"fnat: No such option '-i'; see `fnat {words} --help`\n")
      for words in ("rollback", "config save", "config discard")),
    ("fnat help FN-9", 2,
     "fnat: FN-9 is not an error code; codes look like FN-1203 and stand at the end of a message\n"),
    ("fnat check /nonexistent/fnat.toml", 1,
     "fnat: /nonexistent/fnat.toml: No such file or directory; give the path of a readable file (FN-1101)\n"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "code", "said"), FAILED, ids=[line for line, _, _ in FAILED])
def test_a_failure_is_one_line(line: str, code: int, said: str, fnat: FakeApi) -> None:
    assert type_in(line) == (code, "", said)
    assert fnat.changes == []


@pytest.mark.parametrize(
    "line", ["fnat status", "fnat-ipvsadm -ln", "fnat-dpip link show", "fnat --socket /nonexistent/s service show"]
)
def test_nobody_is_there(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FNAT_SOCKET", "/nonexistent/s")
    code, out, err = type_in(line)
    assert (code, out) == (3, "")
    assert "fnat is not running (nobody serves /nonexistent/s)" in err
    assert err.count("\n") == 1


# ---- run ----


RUN: list[tuple[str, int, str]] = [
    ("", 2, "no port to serve; name one with --port NAME=xdp:DEVICE"),
    ("--port wan", 2, "--port 'wan' is not a port; write NAME=xdp:DEVICE"),
    ("--port wan=dpdk:0000:00:01.0", 2, "is not a port; write NAME=xdp:DEVICE"),
    ("--port wan=xdp:nonesuch", 1, "port wan: no device nonesuch here; there are: "),
    ("--port wan=xdp:lo --port wan=tap:t0", 2, "two ports are named wan; give each port its own name"),
    ("--port wan=xdp:lo --exclusive lan", 2, "--exclusive lan: no such port; the ports are: wan"),
    ("--port wan=xdp:lo --workers 0", 2, "Invalid value for '--workers': 0 is not in the range 1<=x<=64"),
    ("--port wan=xdp:lo --node lb1", 2, "--node without --config"),
    ("--config /nonexistent/fnat.toml", 1, "/nonexistent/fnat.toml: No such file or directory"),
]


@pytest.mark.parametrize(("line", "code", "said"), RUN, ids=[line for line, _, _ in RUN])
def test_run_refuses_before_anything_starts(line: str, code: int, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "run", lambda _: pytest.fail("started"))
    monkeypatch.setattr(main, "_may_administer_network", lambda: True)
    got, out, err = type_in(f"fnat run {line}")
    assert (got, out, err.count("\n")) == (code, "", 1)
    assert said in err


MACHINES: list[tuple[str, dict[str, Any], str]] = [
    ("an old kernel", {"release": "5.10.0-30-amd64"}, "kernel 5.10.0-30-amd64 is too old; run kernel 5.11 or newer"),
    ("not root", {"privileged": False}, "no privilege to open network devices; run as root"),
    ("the default route", {"default": True}, "port wan: lo carries the default route and cannot be exclusive"),
]


@pytest.mark.parametrize(("machine", "said"), [row[1:] for row in MACHINES], ids=[row[0] for row in MACHINES])
def test_run_refuses_on_this_machine(machine: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    system = os.uname_result(("Linux", "lb1", machine.get("release", "6.1.0"), "", "x86_64"))
    monkeypatch.setattr(keeper, "run", lambda _: pytest.fail("started"))
    monkeypatch.setattr(os, "uname", lambda: system)
    monkeypatch.setattr(main, "_may_administer_network", lambda: machine.get("privileged", True))
    monkeypatch.setattr(main, "_carries_default_route", lambda _: machine.get("default", False))
    code, out, err = type_in("fnat run --port wan=xdp:lo --exclusive wan")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert said in err


ZERO6 = "0" * 32
TABLES: list[tuple[str, dict[str, str], bool]] = [
    ("IPv4", {"route": "Iface Destination …\nwan 00000000 0100000A 0003 0 0 0 00000000 0 0 0\n"}, True),
    ("IPv4 of another", {"route": "Iface Destination …\nlan 00000000 0100000A 0003 0 0 0 00000000 0 0 0\n"}, False),
    ("IPv6", {"ipv6_route": f"{ZERO6} 00 {ZERO6} 00 {ZERO6} 00000400 1 0 00000003 wan\n"}, True),
    ("IPv6 of another", {"ipv6_route": f"{ZERO6} 00 {ZERO6} 00 {ZERO6} 00000400 1 0 00000003 lan\n"}, False),
    ("IPv6, unreachable", {"ipv6_route": f"{ZERO6} 00 {ZERO6} 00 {ZERO6} ffffffff 1 0 00200200 wan\n"}, False),
    ("a part of IPv6", {"ipv6_route": f"{ZERO6} 01 {ZERO6} 00 {ZERO6} 00000400 1 0 00000001 wan\n"}, False),
    ("none", {}, False),
]


@pytest.mark.parametrize(("tables", "carries"), [row[1:] for row in TABLES], ids=[row[0] for row in TABLES])
def test_the_default_route_is_looked_for_in_both_families(
    tables: dict[str, str], carries: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main, "_table", lambda name: [line.split() for line in tables.get(name, "").splitlines()])
    assert main._carries_default_route("wan") is carries


def test_run_hands_its_options_to_the_keeper(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr(keeper, "run", lambda options: given.append(options) or 0)
    monkeypatch.setattr(main, "_may_administer_network", lambda: True)
    line = f"fnat run --port wan=xdp:lo --workers 2 --socket {tmp_path}/s --state-dir {tmp_path}/d"
    assert type_in(line + " --conns 5000 --idle spin --cpus 1-3,5 --steering rss") == (0, "", "")
    assert given == [
        {
            "config": None, "ports": [{"name": "wan", "kind": "xdp", "device": "lo"}], "workers": 2,
            "socket": f"{tmp_path}/s", "state_dir": f"{tmp_path}/d", "node": None, "log": "info", "exclusive": [],
            "conns": 5000, "idle": "spin", "cpus": "1-3,5", "steering": "rss",
        }
    ]  # fmt: skip


def test_stop_without_a_running_fnat(tmp_path: Any, capfd: pytest.CaptureFixture[str]) -> None:
    assert type_in(f"fnat stop --state-dir {tmp_path}/d --socket {tmp_path}/s")[0] == 3
    assert capfd.readouterr().err == (
        f"fnat: not running (state directory {tmp_path}/d; another one is named by --state-dir)\n"
    )


# ---- as processes ----


@pytest.mark.parametrize("module", ["fnat.cli.ipvsadm", "fnat.cli.dpip", "fnat"])
def test_the_reader_has_enough(module: str, fnat: FakeApi) -> None:
    """A closed pipe makes no noise."""
    words = {"fnat.cli.ipvsadm": ["-lnc"], "fnat.cli.dpip": ["link", "show"], "fnat": ["conn", "show"]}[module]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-m", module, *words], stdout=write, stderr=subprocess.PIPE, timeout=30)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")
