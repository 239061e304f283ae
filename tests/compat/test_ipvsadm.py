"""ipvsadm as DPVS's documents and runbooks use it: command lines -> changes, resources -> the exact listing."""

from __future__ import annotations

from typing import Any

import pytest

from fnat.grammar import Usage, ipvsadm
from fnat.grammar.ipvsadm import Changes, Listing, Word, parse, parse_rules
from fnat.model import CHANGES as MODEL
from fnat.model import Shape

WEB = {"proto": "tcp", "vip": "192.168.100.254", "vport": 80}
DNS = {"proto": "udp", "vip": "192.168.100.253", "vport": 53}

SIG = {"proto": "sctp", "vip": "192.168.100.252", "vport": 36412}
WEB6 = {"proto": "tcp", "vip": "2001::1", "vport": 80}

USUAL = {"scheduler": "wlc", "client_addr": "toa"}

CHANGES: list[tuple[str, dict[str, Any]]] = [
    # the tutorial's one-arm and two-arm FullNAT
    ("-A -t 192.168.100.254:80 -s rr", {"op": "service.add", **WEB, "scheduler": "rr", "client_addr": "toa"}),
    (
        "-a -t 192.168.100.254:80 -r 192.168.100.2 -b",
        {"op": "server.add", "service": WEB, "rip": "192.168.100.2", "rport": 80, "weight": 1},
    ),
    (
        "-a -t 192.168.100.254:80 -r 192.168.100.3:8080 -b -w 100",
        {"op": "server.add", "service": WEB, "rip": "192.168.100.3", "rport": 8080, "weight": 100},
    ),
    (
        "--add-laddr -z 192.168.100.200 -t 192.168.100.254:80 -F dpdk0",
        {"op": "lip.add", "service": WEB, "addr": "192.168.100.200", "port": "dpdk0"},
    ),
    # everything else
    ("-A -u 192.168.100.253:53", {"op": "service.add", **DNS, "scheduler": "wlc"}),
    ("-At 192.168.100.254:80 -swrr", {"op": "service.add", **WEB, "scheduler": "wrr", "client_addr": "toa"}),
    (
        "--add-service --tcp-service=192.168.100.254:80 --scheduler=rr --conn-timeout 7200 --expire-quiescent "
        "--no-rs reset --half-open 0",
        {
            "op": "service.add",
            **WEB,
            "scheduler": "rr",
            "conn_timeout": 7200,
            "expire_quiescent": True,
            "no_rs": "reset",
            "half_open": 0,
            "client_addr": "toa",
        },
    ),
    (
        "-A -t 192.168.100.254:80 -j disable --proxy-protocol disable --dest-check=disable",
        {"op": "service.add", **WEB, "scheduler": "wlc", "client_addr": "toa"},
    ),
    (
        "-A -t 192.168.100.254:80 --proxy-protocol v1-insecure",
        {"op": "service.add", **WEB, "scheduler": "wlc", "client_addr": "proxy-v1-insecure"},
    ),
    (
        "-A -t 192.168.100.254:80 --client-addr none",
        {"op": "service.add", **WEB, "scheduler": "wlc", "client_addr": "none"},
    ),
    (
        "-A -u 192.168.100.253:53 --client-addr=uoa-ipo",
        {"op": "service.add", **DNS, "scheduler": "wlc", "client_addr": "uoa-ipo"},
    ),
    ("-E -u 192.168.100.253:53 --proxy-protocol v2", {"op": "service.set", **DNS, "client_addr": "proxy-v2"}),
    ("-E -u 192.168.100.253:53 --proxy-protocol disable", {"op": "service.set", **DNS, "client_addr": "none"}),
    ("-E -t 192.168.100.254:80 --proxy-protocol disable", {"op": "service.set", **WEB, "client_addr": "toa"}),
    ("-A -ou 192.168.100.253:53 -s rr", {"op": "service.add", **DNS, "scheduler": "rr", "one_packet": True}),
    ("-A -u 192.168.100.253:53 --quic", {"op": "service.add", **DNS, "scheduler": "wlc", "quic": True}),
    ("-A -u 192.168.100.253:53 -s conhash --hash-target qid",
     {"op": "service.add", **DNS, "scheduler": "conhash", "hash_target": "qid"}),
    ("-E -u 192.168.100.253:53 -s mh --hash-slots 4093",
     {"op": "service.set", **DNS, "scheduler": "mh", "hash_slots": 4093}),
    ("-E -u 192.168.100.253:53 -s wlc --slow-start 30",
     {"op": "service.set", **DNS, "scheduler": "wlc", "slow_start": 30}),
    ("-A -t 192.168.100.254:80 -s rr --name web", {"op": "service.add", **WEB, **USUAL, "scheduler": "rr", "name": "web"}),
    ("-E -t 192.168.100.254:80 --name=web#2", {"op": "service.set", **WEB, "name": "web#2"}),
    ("-E -u 192.168.100.253:53 --ops", {"op": "service.set", **DNS, "one_packet": True}),
    ("-E -t 192.168.100.254:80 -s rr", {"op": "service.set", **WEB, "scheduler": "rr"}),
    ("-E -t 192.168.100.254:80 --conn-timeout=0", {"op": "service.set", **WEB, "conn_timeout": 0}),
    ("-D -u 192.168.100.253:53", {"op": "service.del", **DNS}),
    ("-A --sctp-service 192.168.100.252:36412", {"op": "service.add", **SIG, "scheduler": "wlc"}),
    (
        "-E --sctp-service=192.168.100.252:36412 --conn-timeout 60 --half-open 9",
        {"op": "service.set", **SIG, "conn_timeout": 60, "half_open": 9},
    ),
    (
        "-E --sctp-service 192.168.100.252:36412 --proxy-protocol disable",
        {"op": "service.set", **SIG, "client_addr": "none"},
    ),
    ("-D --sctp-service 192.168.100.252:36412", {"op": "service.del", **SIG}),
    ("-C", {"op": "service.clear"}),
    ("--clear", {"op": "service.clear"}),
    (
        "-a -t 192.168.100.254:80 -r 192.168.100.2:80 -w 0 -x 0 -y 0",
        {"op": "server.add", "service": WEB, "rip": "192.168.100.2", "rport": 80, "weight": 0, "upper": 0, "lower": 0},
    ),
    (
        "-e -t 192.168.100.254:80 -r 192.168.100.2 -w65535",
        {"op": "server.set", "service": WEB, "rip": "192.168.100.2", "rport": 80, "weight": 65535},
    ),
    (
        "-d -t 192.168.100.254:80 -r 192.168.100.2:80",
        {"op": "server.del", "service": WEB, "rip": "192.168.100.2", "rport": 80},
    ),
    (
        "-Q -z 192.168.100.200 -t 192.168.100.254:80 -F dpdk0",
        {"op": "lip.del", "service": WEB, "addr": "192.168.100.200", "port": "dpdk0"},
    ),
    ("-Qt 192.168.100.254:80 -z 192.168.100.200", {"op": "lip.del", "service": WEB, "addr": "192.168.100.200"}),
    ("-Z", {"op": "service.zero", "proto": None, "vip": None, "vport": None}),
    ("-Z -t 192.168.100.254:80", {"op": "service.zero", **WEB}),
    # persistence: a time that is left out is 6 minutes, a value may be attached with =
    ("-A -t 192.168.100.254:80 -p", {"op": "service.add", **WEB, **USUAL, "persistent": 360}),
    ("-A -t 192.168.100.254:80 -p -s rr", {"op": "service.add", **WEB, **USUAL, "scheduler": "rr", "persistent": 360}),
    (
        "-A -t 192.168.100.254:80 -p 600 -M 255.255.255.0",
        {"op": "service.add", **WEB, **USUAL, "persistent": 600, "persistent_mask": 24},
    ),
    (
        "-A -t 192.168.100.254:80 --persistent=600 --netmask=25",
        {"op": "service.add", **WEB, **USUAL, "persistent": 600, "persistent_mask": 25},
    ),
    (
        "-A -t=[2001::1]:80 -p=30 -M64",
        {"op": "service.add", **WEB6, **USUAL, "persistent": 30, "persistent_mask": 64},
    ),
    ("-E -t 192.168.100.254:80 -p 0", {"op": "service.set", **WEB, "persistent": 0}),
    (
        "-A -t 192.168.100.254:80 --max-conns 9 --new-per-s=8 --per-client 7 --no-rs [2001:0::9]:81",
        {"op": "service.add", **WEB, **USUAL, "max_conns": 9, "new_per_s": 8, "per_client": 7, "no_rs": "[2001::9]:81"},
    ),
    (
        "-a -t 192.168.100.254:80 -r 192.168.100.2 -x 100 -y80 --role backup --max-new-per-s 5",
        {
            "op": "server.add",
            "service": WEB,
            "rip": "192.168.100.2",
            "rport": 80,
            "weight": 1,
            "upper": 100,
            "lower": 80,
            "role": "backup",
            "max_new_per_s": 5,
        },
    ),
    (
        "-e -t 192.168.100.254:80 -r 192.168.100.2 -x 0 -y 0",
        {"op": "server.set", "service": WEB, "rip": "192.168.100.2", "rport": 80, "upper": 0, "lower": 0},
    ),
    (
        "-e -t 192.168.100.254:80 -r 192.168.100.2 --drain 2000000000,keep",
        {
            "op": "server.drain",
            "service": WEB,
            "rip": "192.168.100.2",
            "rport": 80,
            "until": 2000000000,
            "keep_persistent": True,
        },
    ),
    (
        "-e -t 192.168.100.254:80 -r 192.168.100.2 --no-drain",
        {"op": "server.undrain", "service": WEB, "rip": "192.168.100.2", "rport": 80},
    ),
    (
        "-E -u 192.168.100.253:53 --no-ops --no-expire-quiescent",
        {"op": "service.set", **DNS, "one_packet": False, "expire_quiescent": False},
    ),
    # DPVS's tutorial for IPv6, and IPv6 clients of IPv4 servers
    ("-A -t [2001::1]:80 -s rr", {"op": "service.add", **WEB6, "scheduler": "rr", "client_addr": "toa"}),
    (
        "-a -t [2001::1]:80 -r [2001::11]:8080 -b",
        {"op": "server.add", "service": WEB6, "rip": "2001::11", "rport": 8080, "weight": 1},
    ),
    (
        "-a -t [2001::1]:80 -r [2001::11] -b",
        {"op": "server.add", "service": WEB6, "rip": "2001::11", "rport": 80, "weight": 1},
    ),
    (
        "-a -t [2001:0::0001]:80 -r 2001::11",
        {"op": "server.add", "service": WEB6, "rip": "2001::11", "rport": 80, "weight": 1},
    ),
    (
        "-a -t [2001::1]:80 -r 192.168.100.2:8080 -b",
        {"op": "server.add", "service": WEB6, "rip": "192.168.100.2", "rport": 8080, "weight": 1},
    ),
    (
        "--add-laddr -z 2001::3 -t [2001::1]:80 -F dpdk0",
        {"op": "lip.add", "service": WEB6, "addr": "2001::3", "port": "dpdk0"},
    ),
]


LISTS: list[tuple[str, dict[str, Any]]] = [
    ("-U -t 192.168.100.254:80 -k 10.9.9.9", {"op": "acl.add", "list": "deny", "entry": "10.9.9.9/32", "service": WEB}),
    ("-V -t [2001::1]:80 -k 2001:9::/48", {"op": "acl.del", "list": "deny", "entry": "2001:9::/48", "service": WEB6}),
    (
        "-O -u 192.168.100.253:53 -2 ipset:friends",
        {"op": "acl.add", "list": "allow", "entry": "set:friends", "service": DNS},
    ),
    (
        "-Y -t 192.168.100.254:80 -2 10.0.0.0/8",
        {"op": "acl.del", "list": "allow", "entry": "10.0.0.0/8", "service": WEB},
    ),
]
HASHING: list[tuple[str, dict[str, Any]]] = [
    ("-A -t 192.168.100.254:80 -s wlc", {"op": "service.add", **WEB, **USUAL, "scheduler": "wlc"}),
    ("-A -t 192.168.100.254:80 -s conhash --hash-target sip-port --slow-start 60",
     {"op": "service.add", **WEB, **USUAL, "scheduler": "conhash", "hash_target": "sip-port", "slow_start": 60}),
    ("-A -u 192.168.100.253:53 -s mh --hash-target qid --hash-slots 4093",
     {"op": "service.add", **DNS, "scheduler": "mh", "hash_target": "qid", "hash_slots": 4093}),
]  # fmt: skip
if "deny" in Shape.model_fields:
    CHANGES += LISTS
if "hash_target" in Shape.model_fields:
    CHANGES += HASHING


@pytest.mark.parametrize(("line", "change"), CHANGES, ids=[line for line, _ in CHANGES])
def test_a_command_is_one_change(line: str, change: dict[str, Any]) -> None:
    assert parse(line.split()) == Changes([change])
    MODEL.validate_python([change])


LISTINGS: list[tuple[str, Listing | Word]] = [
    ("", Listing("services")),
    ("-ln", Listing("services")),
    ("-L", Listing("services")),
    ("-l -n -t 192.168.100.254:80", Listing("services", WEB)),
    ("-ln --nosort", Listing("services", sort=False)),
    ("-ln --sort --json", Listing("services", json=True)),
    ("-ln --stats", Listing("stats")),
    ("-ln --stats --exact", Listing("stats", exact=True)),
    ("-lnX --rate", Listing("rate", exact=True)),
    ("-lnc", Listing("conns")),
    ("-ln -c --cpu 1", Listing("conns", cpu=1)),
    ("-lc -u 192.168.100.253:53", Listing("conns", DNS)),
    (
        "-lnc --sockpair tcp:10.0.0.9:51540:192.168.100.254:80",
        Listing("conns", sockpair={**WEB, "cip": "10.0.0.9", "cport": 51540}),
    ),
    ("-l -n -t [2001::1]:80", Listing("services", WEB6)),
    (
        "-lnc --sockpair tcp:[2001::9]:51540:[2001::1]:80",
        Listing("conns", sockpair={**WEB6, "cip": "2001::9", "cport": 51540}),
    ),
    ("-l --timeout", Listing("timeout")),
    ("-ln --thresholds -t 192.168.100.254:80", Listing("thresholds", WEB)),
    ("-ln --persistent-conn --nosort", Listing("persistent-conn", sort=False)),
    ("-ln --stats --interval 2 --count=5", Listing("stats", interval=2, count=5)),
    ("-G --cpu 1", Listing("laddrs", cpu=1)),
    ("-G", Listing("laddrs")),
    ("--get-laddr -t 192.168.100.254:80", Listing("laddrs", WEB)),
    ("-Sn", Listing("save")),
    ("-R", Word("restore")),
    ("-h", Word("help")),
    ("--version", Word("version")),
]


@pytest.mark.parametrize(("line", "listing"), LISTINGS, ids=[line or "nothing" for line, _ in LISTINGS])
def test_a_command_asks_for_a_listing(line: str, listing: Listing | Word) -> None:
    assert parse(line.split()) == listing


REFUSED: list[tuple[str, str]] = [
    # what DPVS has and fnat has not
    ("-a -t 10.0.0.1:80 -r 10.0.0.2:80 -g", "-g: fnat forwards in FullNAT mode only; give -b or leave the mode out"),
    ("-a -t 10.0.0.1:80 -r 10.0.0.2:80 -i", "-i: fnat forwards in FullNAT mode only"),
    ("-a -t 10.0.0.1:80 -r 10.0.0.2:80 -m", "-m: fnat forwards in FullNAT mode only"),
    ("-a -t 10.0.0.1:80 -r 10.0.0.2:80 -J", "-J: fnat forwards in FullNAT mode only"),
    ("-A -t 10.0.0.1:80 -j enable", "-j enable: the SYN proxy is not in fnat"),
    ("-A -t 10.0.0.1:80 --quic", "--quic is for UDP services only"),
    ("-A -u 10.0.0.1:80 --quic --ops", "--quic and --ops given; give one of them"),
    ("-A -t 10.0.0.1:80 -s mh --hash-target dip", "--hash-target dip is unknown (did you mean sip?); say sip, sip-port or qid"),
    ("-A -t 10.0.0.1:80 --proxy-protocol v3", "--proxy-protocol v3 is unknown"),
    ("-A -u 10.0.0.1:53 --proxy-protocol v1", "--proxy-protocol v1 is not for UDP services"),
    ("-A -u 10.0.0.1:53 --client-addr toa", "--client-addr toa is not for UDP services"),
    ("-A -t 10.0.0.1:80 --client-addr uoa-opp", "--client-addr uoa-opp is not for TCP services"),
    ("-A -t 10.0.0.1:80 --proxy-protocol v1 --client-addr toa", "--proxy-protocol and --client-addr given"),
    ("-A -t 10.0.0.1:80 --dest-check=default", "--dest-check default: passive health checks are not in fnat"),
    ("-A -t 10.0.0.1:80 -o", "--ops is for UDP services only; leave it out, or name the service with -u"),
    ("-a -u 10.0.0.1:80 -r 10.0.0.2 -o", "--ops means nothing with --add-server"),
    ("-A -t 10.0.0.1:80 --pe sip", "--pe: persistence engines are not in fnat; leave it out; -p keeps a client by its address"),
    ("-A -t 10.0.0.1:80 -s lblc", "scheduler lblc is not in fnat (did you mean lc?); use -s rr, -s wrr, -s lc, -s wlc, -s sed, -s nq, "
     "-s sh, -s mh, -s conhash, -s fo or -s p2c"),
    ("-A -t 10.0.0.1:80 -s dh", "scheduler dh is not in fnat"),
    ("-A -f 1", "-f: fnat has no firewall marks"),
    ("-A -q 10.0.0.1:0", "-q: fnat balances TCP, UDP and SCTP services only"),
    ("-A -1 10.0.0.1:0", "-1: fnat balances TCP, UDP and SCTP services only"),
    ("-A -t 10.0.0.1:80 --sctp-service 10.0.0.1:80", "-t and --sctp-service given; name one service"),
    ("-A --sctp-service 10.0.0.1:80 --ops", "--ops is for UDP services only"),
    (
        "-A --sctp-service 10.0.0.1:80 --proxy-protocol v2",
        "--proxy-protocol v2 is not for SCTP services; allowed: none",
    ),
    ("-A -H proto=tcp,src-range=10.0.0.0-10.0.0.9,oif=dpdk0", "-H: fnat has no match services"),
    ("-A -6 -f 1", "-6: -6 is for firewall marks, which fnat has not; name an IPv6 service with -t [ADDRESS]:PORT"),
    ("-A -t [2001::1]", "service '[2001::1]' has no port; write [ADDRESS]:PORT"),
    ("-A -t 2001::1:80", "service '2001::1:80' has no port; write [ADDRESS]:PORT"),
    ("-a -t 10.0.0.1:80 -r 10.0.0.2:", "server '10.0.0.2:' is not ADDRESS:PORT"),
    ("-a -t 10.0.0.1:80 -r [2001::2]:", "server '[2001::2]:' is not [ADDRESS]:PORT"),
    ("-A -t [2001::1]:0", "service '[2001::1]:0' has no port"),
    ("-A -t [2001::1:80", "service '[2001::1:80' is not [ADDRESS]:PORT"),
    ("-A -t [2001::x]:80", "service '2001::x' is not an IPv6 address"),
    ("-P -t 10.0.0.1:80 -z [2001::9] -F dpdk0", "local address '[2001::9]' is not an IPv6 address"),
    ("-lnc --sockpair tcp:2001::9:1:[2001::1]:80", "is not a socket pair"),
    ("-lnc --sockpair tcp:[2001::9]:1:[2001::1]", "is not a socket pair"),
    ("--set 900 120 300", "--set: timeouts are not set here"),
    ("--start-daemon master", "--start-daemon: fnat has no session sync daemon"),
    ("--stop-daemon master", "--stop-daemon: fnat has no session sync daemon"),
    ("-l --daemon", "--daemon: fnat has no session sync daemon"),
    ("--start-daemon=master --mcast-interface eth0 --syncid 1", "--start-daemon: fnat has no session sync daemon"),
    ("-A -t 10.0.0.1:80 --per-client 16777216", "--per-client '16777216' is out of range; give a number from 0 to 16777215"),
    ("-A -t 10.0.0.1:80 --new-per-s 10000001", "is out of range; give a number from 0 to 10000000"),
    ("-a -t 10.0.0.1:80 -r 10.0.0.2 --max-new-per-s 10000001", "is out of range; give a number from 0 to 10000000"),
    ("-A -t 10.0.0.1:80 --name a\\b", "--name 'a\\\\b' is no name; write at most 64 ASCII characters without blank"),
    ("-A -t 10.0.0.1:80 --no-rs maybe", "--no-rs maybe is unknown; say drop, reset or ADDRESS:PORT"),
    ("-A -t 10.0.0.1:80 --no-rs resett", "--no-rs resett is unknown (did you mean reset?)"),
    ("-A -t 10.0.0.1:80 --no-rs 10.0.0.9:0", "sorry server '10.0.0.9:0' has no port"),
    ("-A -t 10.0.0.1:80 -p -M 255.0.255.0", "--netmask 255.0.255.0 is no netmask; write 255.255.255.0"),
    ("-A -t 10.0.0.1:80 -p -M 0.0.0.255", "--netmask 0.0.0.255 is no netmask"),
    ("-A -t 10.0.0.1:80 -p -M 33", "--netmask 33 is out of range; give a prefix length from 1 to 32"),
    ("-A -t [2001::1]:80 -p -M 255.255.255.0", "--netmask 255.255.255.0 is for IPv4 services"),
    ("-A -t [2001::1]:80 -p -M 129", "--netmask '129' is out of range; give a number from 1 to 128"),
    ("-A -t 10.0.0.1:80 -p 2678401", "--persistent '2678401' is out of range; give a number from 0 to 2678400"),
    ("-a -t 10.0.0.1:80 -r 10.0.0.2 --role spare", "--role spare is unknown; say active or backup"),
    ("-a -t 10.0.0.1:80 -r 10.0.0.2 --drain soon", "--drain soon is no end; write never or seconds since 1970"),
    ("-e -t 10.0.0.1:80 -r 10.0.0.2 --drain never --no-drain", "--drain and --no-drain given"),
    ("-ln --thresholds --stats", "--stats and --thresholds given; ask for one of them"),
    ("-E -u 10.0.0.1:53 --ops --no-ops", "--no-ops and --ops given; give one of them"),
    ("-A -u 10.0.0.1:53 --no-ops", "--no-ops means nothing with --add-service"),
    ("-l --timeout -t 10.0.0.1:80", "--timeout and a service given"),
    ("-ln --count 3", "--count without --interval; add --interval SEC"),
    # bad values
    ("-A -t 10.0.0.1:0", "service '10.0.0.1:0' has no port"),
    ("-A -t 10.0.0.1", "service '10.0.0.1' has no port"),
    ("-A -t 10.0.0.1:65536", "port of service '65536' is out of range; give a number from 1 to 65535"),
    ("-A -t 10.0.0.999:80", "service '10.0.0.999' is not an IPv4 address"),
    ("-A -t www.example.com:80", "names are not looked up"),
    ("-a -t 10.0.0.1:80 -r 10.0.0.2:0", "server '10.0.0.2:0' has no port"),
    ("-a -t 10.0.0.1:80 -r 10.0.0.2 -w 65536", "weight '65536' is out of range; give a number from 0 to 65535"),
    ("-a -t 10.0.0.1:80 -r 10.0.0.2 -w -1", "weight '-1' is out of range"),
    ("-A -t 10.0.0.1:80 --conn-timeout soon", "--conn-timeout 'soon' is out of range"),
    ("-lnc --sockpair tcp:10.0.0.9:1:10.0.0.1", "is not a socket pair"),
    ("-lnc --sockpair dccp:10.0.0.9:1:10.0.0.1:80", "is not a socket pair"),
    # bad shape
    ("-n", "no command given; give exactly one command"),
    ("-A -D -t 10.0.0.1:80", "--add-service and --delete-service given"),
    ("-A", "--add-service needs a service; add -t VIP:PORT or -u VIP:PORT"),
    ("-A -t 10.0.0.1:80 -u 10.0.0.1:80", "-t and -u given; name one service"),
    ("-A -t 10.0.0.1:80 -t 10.0.0.1:81", "-t is given twice"),
    ("-A -t", "-t needs a value"),
    ("-a -t 10.0.0.1:80", "--add-server needs --real-server; add -r RIP:PORT"),
    ("-e -t 10.0.0.1:80 -r 10.0.0.2", "--edit-server needs --weight; add -w WEIGHT"),
    ("-E -t 10.0.0.1:80", "nothing to edit; give what shall change"),
    ("-P -t 10.0.0.1:80 -z 10.0.0.9", "--add-laddr needs --ifname; add -F PORT"),
    ("-P -t 10.0.0.1:80 -F dpdk0", "--add-laddr needs --local-address; add -z LIP"),
    ("-D -t 10.0.0.1:80 -w 3", "--weight means nothing with --delete-service; leave it out"),
    ("-C -t 10.0.0.1:80", "--tcp-service means nothing with --clear"),
    ("-ln --stats --rate", "--stats and --rate given; ask for one of them"),
    ("-lnc --exact", "--exact only means something with --stats or --rate"),
    ("-ln --cpu 1", "--cpu only means something with -c"),
    ("-lnc --nosort", "--nosort only means something with a listing of services"),
    ("-ln --sort --nosort", "--sort and --nosort given"),
    ("-A -t 10.0.0.1:80 -T", "unknown option -T"),
    ("-A -t 10.0.0.1:80 --frobnicate", "unknown option --frobnicate"),
    ("--clear=yes", "--clear takes no value"),
    ("-l now", "unexpected word 'now'"),
]


# what the model decides: a field that it has is a word
WITHOUT_LISTS = [
    ("-U -t 10.0.0.1:80 -k 10.9.9.9", "-U: fnat has no per-service access lists"),
    ("-V -t 10.0.0.1:80 -k 10.9.9.9", "-V: fnat has no per-service access lists"),
    ("-B", "-B: fnat has no per-service access lists"),
    ("-O -t 10.0.0.1:80 -2 10.9.9.9", "-O: fnat has no per-service access lists"),
    ("-Y -t 10.0.0.1:80 -2 10.9.9.9", "-Y: fnat has no per-service access lists"),
    ("-W", "-W: fnat has no per-service access lists"),
]
if "deny" not in Shape.model_fields:
    REFUSED += WITHOUT_LISTS


@pytest.mark.parametrize(("line", "why"), REFUSED, ids=[line for line, _ in REFUSED])
def test_refused_with_one_line(line: str, why: str) -> None:
    with pytest.raises(Usage) as caught:
        parse(line.split())
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


def stats(*values: int) -> dict[str, int]:
    return dict(
        zip(("conns", "in_packets", "out_packets", "in_bytes", "out_bytes", "active", "inactive"), values, strict=True)
    )


def rate(*values: float) -> dict[str, float]:
    return dict(zip(("cps", "in_pps", "out_pps", "in_bps", "out_bps"), values, strict=True))


def split(name: str) -> tuple[str, int]:
    host, _, port = name.rpartition(":")
    return host.strip("[]"), int(port)


def service(
    at: str, /, servers: list[dict[str, Any]], lips: list[dict[str, Any]] | None = None, **more: Any
) -> dict[str, Any]:
    proto, _, rest = at.partition(":")
    vip, vport = split(rest)
    made = {
        "proto": proto, "vip": vip, "vport": vport, "scheduler": "rr", "conn_timeout": 0, "no_rs": "drop",
        "expire_quiescent": False, "one_packet": False, "half_open": None, "stats": stats(0, 0, 0, 0, 0, 0, 0), "rate": rate(0, 0, 0, 0, 0),
        "lips": lips or [], "servers": servers,
    }  # fmt: skip
    return {**made, **more}


def server(name: str, weight: int = 1, **more: Any) -> dict[str, Any]:
    rip, rport = split(name)
    made = {
        "rip": rip,
        "rport": rport,
        "weight": weight,
        "stats": stats(0, 0, 0, 0, 0, 0, 0),
        "rate": rate(0, 0, 0, 0, 0),
    }
    return {**made, **more}


STATUS = {"version": "0.1.0", "capacity": 1048576}


def test_the_listing_of_services() -> None:
    servers = [
        server("192.168.88.68:80", 65535, stats=stats(9, 1, 1, 1, 1, 1234567890, 8)),
        server("192.168.88.30:80", stats=stats(8, 1, 1, 1, 1, 0, 8)),
    ]
    services = [
        service(
            "udp:192.168.88.2:53",
            [],
            scheduler="wrr",
            conn_timeout=30,
            expire_quiescent=True,
            one_packet=True,
            no_rs="reset",
            half_open=9,
        ),
        service("sctp:192.168.88.3:36412", []),
        service("udp:192.168.88.4:443", [], quic=True),
        service("tcp:192.168.88.1:80", servers),
    ]
    assert ipvsadm.services_text(STATUS, services, Listing("services")) == (
        "IP Virtual Server version 0.1.0 (size=1048576)\n"
        "Prot LocalAddress:Port Scheduler Flags\n"
        "  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn\n"
        "TCP  192.168.88.1:80 rr\n"
        "  -> 192.168.88.30:80             FullNat 1      0          8         \n"
        "  -> 192.168.88.68:80             FullNat 65535  1234567890 8         \n"
        "UDP  192.168.88.2:53 wrr ops conn-timeout 30 expire-quiescent no-rs reset half-open 9\n"
        "UDP  192.168.88.4:443 rr quic\n"
        "SCTP  192.168.88.3:36412 rr\n"
    )
    unsorted = ipvsadm.services_text(STATUS, services, Listing("services", sort=False)).splitlines()
    assert [line.split()[1] for line in unsorted[3:]] == [
        "192.168.88.2:53",
        "192.168.88.3:36412",
        "192.168.88.4:443",
        "192.168.88.1:80",
        "192.168.88.68:80",
        "192.168.88.30:80",
    ]


def test_the_flags_of_a_service() -> None:
    services = [
        service("tcp:192.168.88.1:80", [], persistent=360, persistent_mask=24, no_rs="10.0.0.9:80", max_conns=5),
        service(
            "tcp:[2001::1]:80", [], persistent=600, persistent_mask=64, client_addr="proxy-v2", expire_quiescent=True
        ),
        service("udp:192.168.88.2:53", [], persistent=60, persistent_mask=None, one_packet=True, conn_timeout=30),
    ]
    assert ipvsadm.services_text(STATUS, services, Listing("services")).splitlines()[3:] == [
        "TCP  192.168.88.1:80 rr persistent 360 mask 255.255.255.0 no-rs 10.0.0.9:80 max-conns 5",
        "TCP  [2001::1]:80 rr persistent 600 mask 64 ppv2 expire-quiescent",
        "UDP  192.168.88.2:53 rr persistent 60 ops conn-timeout 30",
    ]


def test_thresholds_and_persistent_connections() -> None:
    servers = [
        server(
            "192.168.88.30:80",
            5,
            upper=1000,
            lower=800,
            persistent=17,
            overloaded=True,
            stats=stats(0, 0, 0, 0, 0, 1000, 8),
        ),
        server("[2001::30]:80", upper=0, lower=0, persistent=0),
    ]
    services = [service("tcp:192.168.88.1:80", servers)]
    assert ipvsadm.services_text(STATUS, services, Listing("thresholds")).splitlines()[1:] == [
        "Prot LocalAddress:Port            Uthreshold Lthreshold ActiveConn InActConn ",
        "  -> RemoteAddress:Port",
        "TCP  192.168.88.1:80",
        "  -> 192.168.88.30:80             1000       800        1000       8         ",
        "  -> [2001::30]:80                0          0          0          0         ",
    ]
    assert ipvsadm.services_text(STATUS, services, Listing("persistent-conn")).splitlines()[1:] == [
        "Prot LocalAddress:Port            Weight     PersistConn ActiveConn InActConn ",
        "  -> RemoteAddress:Port",
        "TCP  192.168.88.1:80",
        "  -> 192.168.88.30:80             5          17         1000       8         ",
        "  -> [2001::30]:80                1          0          0          0         ",
    ]
    assert ipvsadm.services_text(STATUS, services, Listing("services")).splitlines()[4] == (
        "  -> 192.168.88.30:80             FullNat 5      1000       8          overload"
    )


def test_the_listing_of_denied_and_allowed_sources() -> None:
    services = [
        service("udp:[2001::1]:53", [], deny=["2001:9::1/128", "2001:9::/32"], allow=[]),
        service("tcp:192.168.88.1:80", [], deny=["10.9.9.9/32", "set:bad"], allow=["10.0.0.0/8"]),
    ]
    assert ipvsadm.acl_text(services, "deny") == (
        f"PROTO    VIP:VPORT{'':22}BLACKLIST{'':21} \n"
        f"TCP      192.168.88.1:80{'':16}10.9.9.9{'':22} \n"
        f"TCP      192.168.88.1:80{'':16}ipset:bad{'':21} \n"
        f"UDP      [2001::1]:53{'':19}2001:9::1{'':21} \n"
        f"UDP      [2001::1]:53{'':19}2001:9::/32{'':19} \n"
    ).replace(" \n", "\n")
    assert ipvsadm.acl_text(services, "allow").splitlines()[1:] == [f"TCP      192.168.88.1:80{'':16}10.0.0.0/8{'':20}"]


def test_the_counters_of_services() -> None:
    figures = stats(1, 1969674, 103645, 2938900000, 4218283, 1, 0)
    services = [
        service("tcp:192.168.88.1:80", [server("192.168.88.215:80", stats=figures)], stats=figures),
        service("tcp:192.168.88.2:22", [], stats=stats(142, 142, 142, 7384, 5680, 0, 0)),
    ]
    assert ipvsadm.services_text(STATUS, services, Listing("stats")) == (
        "IP Virtual Server version 0.1.0 (size=1048576)\n"
        "Prot LocalAddress:Port               Conns   InPkts  OutPkts  InBytes OutBytes\n"
        "  -> RemoteAddress:Port\n"
        "TCP  192.168.88.1:80                     1  1969674   103645    2938M  4218283\n"
        "  -> 192.168.88.215:80                   1  1969674   103645    2938M  4218283\n"
        "TCP  192.168.88.2:22                   142      142      142     7384     5680\n"
    )


def test_the_rates_of_services() -> None:
    services = [service("tcp:192.168.88.1:80", [], rate=rate(12.4, 100.5, 99.6, 123456789.0, 0.2))]
    lines = ipvsadm.services_text(STATUS, services, Listing("rate")).splitlines()
    assert lines[1:] == [
        "Prot LocalAddress:Port                 CPS    InPPS   OutPPS    InBPS   OutBPS",
        "  -> RemoteAddress:Port",
        "TCP  192.168.88.1:80                    12      100      100  123456K        0",
    ]
    exact = ipvsadm.services_text(STATUS, services, Listing("rate", exact=True)).splitlines()
    assert exact[-1] == "TCP  192.168.88.1:80                    12      100      100 123456789        0"


LARGE = [
    (0, "        0", "        0"),
    (99_999_999, " 99999999", " 99999999"),
    (100_000_000, "  100000K", " 100000000"),
    (999_999_999, "  999999K", " 999999999"),
    (1_000_000_000, "    1000M", " 1000000000"),
    (99_999_999_999, "   99999M", " 99999999999"),
    (100_000_000_000, "     100G", " 100000000000"),
    (99_999_999_999_999, "   99999G", " 99999999999999"),
    (100_000_000_000_000, "     100T", " 100000000000000"),
]


@pytest.mark.parametrize(("value", "short", "exact"), LARGE)
def test_large_counters(value: int, short: str, exact: str) -> None:
    assert (ipvsadm.large(value), ipvsadm.large(value, True)) == (short, exact)


def conn(worker: int, proto: str, state: str, remaining: int, *ends: str) -> dict[str, Any]:
    row: dict[str, Any] = {"worker": worker, "proto": proto, "state": state, "remaining": remaining}
    for (ip, port), end in zip(
        (("cip", "cport"), ("vip", "vport"), ("lip", "lport"), ("rip", "rport")), ends, strict=True
    ):
        row[ip], row[port] = split(end)
    return row


def test_the_listing_of_connections() -> None:
    conns = [
        conn(
            1,
            "tcp",
            "TCP_EST",
            90,
            "192.168.88.15:51540",
            "192.168.88.100:80",
            "192.168.88.241:1030",
            "192.168.88.15:80",
        ),
        conn(0, "tcp", "FIN_WAIT", 7, "1.1.1.1:1", "2.2.2.2:2", "3.3.3.3:3", "4.4.4.4:4"),
        conn(0, "udp", "UDP_ONEWAY", 299, "1.1.1.1:1", "2.2.2.2:2", "3.3.3.3:3", "4.4.4.4:4"),
        conn(0, "sctp", "SCTP_EST", 899, "1.1.1.1:1", "2.2.2.2:2", "3.3.3.3:3", "4.4.4.4:4"),
    ]
    assert ipvsadm.conns_text(conns) == (
        "[1]tcp 90s    TCP_EST     192.168.88.15:51540 192.168.88.100:80  192.168.88.241:1030 192.168.88.15:80\n"
        "[0]tcp 7s     FIN_WAIT    1.1.1.1:1          2.2.2.2:2          3.3.3.3:3          4.4.4.4:4\n"
        "[0]udp 299s   UDP_ONEWAY  1.1.1.1:1          2.2.2.2:2          3.3.3.3:3          4.4.4.4:4\n"
        "[0]sctp 899s   SCTP_EST    1.1.1.1:1          2.2.2.2:2          3.3.3.3:3          4.4.4.4:4\n"
    )


def test_ipv6_stands_in_brackets_where_a_port_follows() -> None:
    lips = [{"addr": addr, "port": "dpdk0", "conns": 1, "conflicts": 0} for addr in ("192.168.88.241", "2001:db8::241")]
    servers = [server("[2001:db8:88::30]:80"), server("192.168.88.30:80"), server("[2001:db8:88::4]:80", 7)]
    services = [
        service("tcp:[2001:db8::1]:443", servers, lips),
        service("tcp:192.168.88.1:80", []),
        service("tcp:[2001:db8::1]:80", []),
        service("tcp:[1::1]:80", []),
    ]
    assert ipvsadm.services_text(STATUS, services, Listing("services")).splitlines()[3:] == [
        "TCP  192.168.88.1:80 rr",
        "TCP  [1::1]:80 rr",
        "TCP  [2001:db8::1]:80 rr",
        "TCP  [2001:db8::1]:443 rr",
        "  -> 192.168.88.30:80             FullNat 1      0          0         ",
        "  -> [2001:db8:88::4]:80          FullNat 7      0          0         ",
        "  -> [2001:db8:88::30]:80         FullNat 1      0          0         ",
    ]
    figures = ipvsadm.services_text(STATUS, services[:1], Listing("stats")).splitlines()[3:]
    assert figures[0] == "TCP  [2001:db8::1]:443                   0        0        0        0        0"
    assert figures[2] == "  -> [2001:db8:88::4]:80                 0        0        0        0        0"
    conns = [
        conn(
            0,
            "tcp",
            "TCP_EST",
            9,
            "[2001:db8::28]:51540",
            "[2001:db8::1]:443",
            "192.168.88.241:1030",
            "192.168.88.30:80",
        ),
        conn(1, "udp", "UDP_NORM", 9, "10.0.0.28:5154", "10.0.0.1:53", "[2001:db8::241]:1030", "[2001:db8::4]:53"),
    ]
    assert ipvsadm.conns_text(conns) == (
        "[0]tcp 9s     TCP_EST     [2001:db8::28]:51540 [2001:db8::1]:443  192.168.88.241:1030 192.168.88.30:80\n"
        "[1]udp 9s     UDP_NORM    10.0.0.28:5154     10.0.0.1:53        [2001:db8::241]:1030 [2001:db8::4]:53\n"
    )
    assert ipvsadm.laddrs_text(services[:1]).splitlines()[1:] == [
        "[2001:db8::1]:443    2        ",
        "                              192.168.88.241       0          1         ",
        "                              2001:db8::241        0          1         ",
    ]
    saved = ipvsadm.save_text(services[:1])
    assert saved == (
        "-A -t [2001:db8::1]:443 -s rr\n"
        "-P -t [2001:db8::1]:443 -z 192.168.88.241 -F dpdk0\n"
        "-P -t [2001:db8::1]:443 -z 2001:db8::241 -F dpdk0\n"
        "-a -t [2001:db8::1]:443 -r 192.168.88.30:80 -b -w 1\n"
        "-a -t [2001:db8::1]:443 -r [2001:db8:88::4]:80 -b -w 7\n"
        "-a -t [2001:db8::1]:443 -r [2001:db8:88::30]:80 -b -w 1\n"
    )
    changes = parse_rules(saved).changes
    name = {"proto": "tcp", "vip": "2001:db8::1", "vport": 443}
    assert changes[:2] == [
        {"op": "service.clear"},
        {"op": "service.add", **name, "scheduler": "rr", "client_addr": "toa"},
    ]
    assert [c["rip"] for c in changes[4:]] == ["192.168.88.30", "2001:db8:88::4", "2001:db8:88::30"]
    MODEL.validate_python(changes)


def test_the_listing_of_local_addresses() -> None:
    lips = [{"addr": f"192.168.100.{n}", "port": "dpdk0", "conns": 0, "conflicts": 0} for n in (200, 201)]
    assert ipvsadm.laddrs_text([service("tcp:192.168.100.254:80", [], lips)]) == (
        "VIP:VPORT            TOTAL    SNAT_IP              CONFLICTS  CONNS     \n"
        "192.168.100.254:80   2        \n"
        "                              192.168.100.200      0          0         \n"
        "                              192.168.100.201      0          0         \n"
    )


def test_what_is_saved_can_be_restored() -> None:
    lips = [{"addr": "192.168.100.200", "port": "dpdk0", "conns": 7, "conflicts": 0}]
    services = [
        service("tcp:192.168.100.254:80", [server("192.168.100.3:80", 5), server("192.168.100.2:8080", 0)], lips),
        service(
            "udp:192.168.100.253:53",
            [],
            scheduler="wrr",
            conn_timeout=30,
            expire_quiescent=True,
            one_packet=True,
            no_rs="reset",
            half_open=100,
        ),
        service("sctp:192.168.100.252:36412", [server("192.168.100.2:36412", 1)], conn_timeout=60),
        service("udp:192.168.100.254:443", [], quic=True, hash_target="qid", hash_slots=4093, slow_start=30, name="a#b"),
    ]
    saved = ipvsadm.save_text(services)
    assert saved == (
        "-A -t 192.168.100.254:80 -s rr\n"
        "-P -t 192.168.100.254:80 -z 192.168.100.200 -F dpdk0\n"
        "-a -t 192.168.100.254:80 -r 192.168.100.2:8080 -b -w 0\n"
        "-a -t 192.168.100.254:80 -r 192.168.100.3:80 -b -w 5\n"
        "-A -u 192.168.100.253:53 -s wrr --ops --conn-timeout 30 --expire-quiescent --no-rs reset --half-open 100\n"
        "-A -u 192.168.100.254:443 -s rr --hash-target qid --hash-slots 4093 --quic --slow-start 30 --name 'a#b'\n"
        "-A --sctp-service 192.168.100.252:36412 -s rr --conn-timeout 60\n"
        "-a --sctp-service 192.168.100.252:36412 -r 192.168.100.2:36412 -b -w 1\n"
    )
    assert parse_rules("# all of it\n\n-C\n" + saved).changes == [
        {"op": "service.clear"},
        {"op": "service.add", **WEB, "scheduler": "rr", "client_addr": "toa"},
        {"op": "lip.add", "service": WEB, "addr": "192.168.100.200", "port": "dpdk0"},
        {"op": "server.add", "service": WEB, "rip": "192.168.100.2", "rport": 8080, "weight": 0},
        {"op": "server.add", "service": WEB, "rip": "192.168.100.3", "rport": 80, "weight": 5},
        {
            "op": "service.add", **DNS, "scheduler": "wrr", "conn_timeout": 30, "expire_quiescent": True,
            "one_packet": True, "no_rs": "reset", "half_open": 100,
        },
        {
            "op": "service.add", **WEB, "proto": "udp", "vport": 443, "scheduler": "rr", "quic": True,
            "hash_target": "qid", "hash_slots": 4093, "slow_start": 30, "name": "a#b",
        },
        {"op": "service.add", **SIG, "scheduler": "rr", "conn_timeout": 60},
        {"op": "server.add", "service": SIG, "rip": "192.168.100.2", "rport": 36412, "weight": 1},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rules", "why"),
    [
        ("-A -t 10.0.0.1:80\n-ln\n", "line 2: only commands that change something can be restored"),
        (
            "\n-A -t 10.0.0.1:80 -s lblc\n",
            r"line 2: scheduler lblc is not in fnat \(did you mean lc\?\); use -s rr, .* or -s p2c; nothing was changed",
        ),
        ("-A -t '10.0.0.1:80\n", "line 1: No closing quotation"),
        (
            "-A -t 10.0.0.1:80\n-E -t 10.0.0.1:80 -s rr\n",
            "line 2: -R reads the rules of all services, and --edit-service",
        ),
        ("-A -t 10.0.0.1:80\n-a -t 10.0.0.1:81 -r 10.0.0.2\n", "line 2: there is no -A for tcp 10.0.0.1:81 before"),
        ("-A -t 10.0.0.1:80\n-C\n", "line 2: -C after other rules"),
        ("# empty\n\n", "there are no rules; give those that -S wrote, or -C to delete all services"),
    ],
)
def test_rules_that_cannot_be_restored_name_their_line(rules: str, why: str) -> None:
    with pytest.raises(Usage, match=why):
        parse_rules(rules)
