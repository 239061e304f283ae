"""Slips of an operator who comes from DPVS, and what is said: one line that names the word and the way out."""

from __future__ import annotations

import pytest
from terminal import type_in

from fnat.control import Control
from fnat.grammar import ipvsadm

SCHEDULERS = ipvsadm.either([f"-s {word}" for word in ipvsadm.SCHEDULERS])
SLIPS: list[tuple[str, int, str]] = [
    (
        "ipvsadm -A -t 10.0.0.1 -s rr",
        2,
        "service '10.0.0.1' has no port; write ADDRESS:PORT with a port from 1 to 65535 (port 0 does not exist in fnat)",
    ),
    ("ipvsadm -A -t 10.0.0.1:http -s rr", 2, "port of service 'http' is out of range; give a number from 1 to 65535"),
    (
        "ipvsadm -A -t 10.0.0.1:80:tcp",
        2,
        "service '10.0.0.1:80:tcp' has no port; write [ADDRESS]:PORT with a port from 1 to 65535 (port 0 does not exist in fnat)",
    ),
    (
        "ipvsadm -A -t 10.0.0.1,80",
        2,
        "service '10.0.0.1,80' has no port; write ADDRESS:PORT with a port from 1 to 65535 (port 0 does not exist in fnat)",
    ),
    (
        "ipvsadm -A -t 10.0.0.256:80",
        2,
        "service '10.0.0.256' is not an IPv4 address; write it like 192.0.2.10 or 2001:db8::10 (names are not looked up)",
    ),
    (
        "ipvsadm -A -t 10.0.0.1/32:80",
        2,
        "service '10.0.0.1/32' is not an IPv4 address; write it like 192.0.2.10 or 2001:db8::10 (names are not looked up)",
    ),
    (
        "ipvsadm -A -t 2001:db8::1:80",
        2,
        "service '2001:db8::1:80' has no port; write [ADDRESS]:PORT with a port from 1 to 65535 (port 0 does not exist in fnat)",
    ),
    (
        "ipvsadm -A -t [2001:db8::1]80",
        2,
        "service '[2001:db8::1]80' is not [ADDRESS]:PORT; write it like 192.0.2.1:80 or [2001:db8::1]:80",
    ),
    (
        "ipvsadm -A -t [10.0.0.1]:80",
        2,
        "service '[10.0.0.1]:80' is not [ADDRESS]:PORT; write it like 192.0.2.1:80 or [2001:db8::1]:80",
    ),
    (
        "ipvsadm -A -t www.example.com:80",
        2,
        "service 'www.example.com' is not an IPv4 address; write it like 192.0.2.10 or 2001:db8::10 (names are not looked up)",
    ),
    ("ipvsadm -A -T 10.0.0.1:80", 2, "unknown option -T (did you mean -t?); -h shows the options"),
    (
        "ipvsadm -A 10.0.0.1:80",
        2,
        "unexpected word '10.0.0.1:80' (is -t or -u missing before it?); -h shows the options",
    ),
    ("ipvsadm -A tcp 10.0.0.1:80", 2, "unexpected word 'tcp' (did you mean -t?); -h shows the options"),
    ("ipvsadm A -t 10.0.0.1:80", 2, "unexpected word 'A' (did you mean -A?); -h shows the options"),
    (
        "ipvsadm add-service -t 10.0.0.1:80",
        2,
        "unexpected word 'add-service' (did you mean --add-service?); -h shows the options",
    ),
    (
        "ipvsadm --add-services -t 10.0.0.1:80",
        2,
        "unknown option --add-services (did you mean --add-service?); -h shows the options",
    ),
    (
        "ipvsadm -add-service -t 10.0.0.1:80",
        2,
        "unknown option -add-service (did you mean --add-service?); a long option begins with two hyphens",
    ),
    ("ipvsadm --add -t 10.0.0.1:80", 2, "unknown option --add (did you mean --add-service?); -h shows the options"),
    ("ipvsadm -A -t 10.0.0.1:80 -s RR", 2, "scheduler RR is not in fnat (did you mean rr?); use " + SCHEDULERS),
    ("ipvsadm -A -t 10.0.0.1:80 -s wwr", 2, "scheduler wwr is not in fnat (did you mean wrr?); use " + SCHEDULERS),
    (
        "ipvsadm -A -t 10.0.0.1:80 --schedular rr",
        2,
        "unknown option --schedular (did you mean --scheduler?); -h shows the options",
    ),
    (
        "ipvsadm -A -t 10.0.0.1:80 --scheduler",
        2,
        "--scheduler needs a value; write --scheduler SCHED; -h shows the options",
    ),
    (
        "ipvsadm -A -t 10.0.0.1:80 -a -r 10.0.0.2",
        2,
        "--add-service and --add-server given; give exactly one command such as -A -a -l -P; -h lists them",
    ),
    (
        "ipvsadm -a -t 10.0.0.1:80 10.0.0.2:80 -b",
        2,
        "unexpected word '10.0.0.2:80' (is -r missing before it?); -h shows the options",
    ),
    (
        "ipvsadm -a -t 10.0.0.1:80 -r 10.0.0.2:80 -w ten",
        2,
        "weight 'ten' is out of range; give a number from 0 to 65535",
    ),
    (
        "ipvsadm -a -t 10.0.0.1:80 -r 10.0.0.2:80 -w 70000",
        2,
        "weight '70000' is out of range; give a number from 0 to 65535",
    ),
    ("ipvsadm -a -t 10.0.0.1:80 -r 10.0.0.2:80 -w", 2, "-w needs a value; write -w WEIGHT; -h shows the options"),
    (
        "ipvsadm -a -t 10.0.0.1:80 -r 10.0.0.2:80 --weigth 5",
        2,
        "unknown option --weigth (did you mean --weight?); -h shows the options",
    ),
    ("ipvsadm -a -r 10.0.0.2:80", 2, "--add-server needs a service; add -t VIP:PORT or -u VIP:PORT"),
    ("ipvsadm -e -t 10.0.0.1:80 -r 10.0.0.2:80", 2, "--edit-server needs --weight; add -w WEIGHT"),
    (
        "ipvsadm -P -z 10.0.0.9 -t 10.0.0.1:80",
        2,
        "--add-laddr needs --ifname; add -F PORT, the balancer's port that has the address",
    ),
    (
        "ipvsadm -P -z 10.0.0.9/32 -t 10.0.0.1:80 -F dpdk0",
        2,
        "local address '10.0.0.9/32' is not an IPv4 address; write it like 192.0.2.10 or 2001:db8::10 (names are not looked up)",
    ),
    (
        "ipvsadm -P -z 10.0.0.9 -t 10.0.0.1:80 -f dpdk0",
        2,
        "-f: fnat has no firewall marks; name the service with -t or -u, a port with -F",
    ),
    (
        "ipvsadm --add-laddr -z 10.0.0.9 -t 10.0.0.1:80 -F dpdk9",
        1,
        "there is no service tcp 10.0.0.1:80; there is none at all (FN-1203)",
    ),
    ("ipvsadm -ln stats", 2, "unexpected word 'stats' (did you mean --stats?); -h shows the options"),
    ("ipvsadm -ln -stats", 2, "unknown option -stats (did you mean --stats?); a long option begins with two hyphens"),
    ("ipvsadm -ln --stat", 2, "unknown option --stat (did you mean --stats?); -h shows the options"),
    (
        "ipvsadm -lnc --sockpair tcp:10.0.0.9:1:10.0.0.1",
        2,
        "--sockpair 'tcp:10.0.0.9:1:10.0.0.1' is not a socket pair; write tcp:CLIENT:PORT:VIP:PORT, udp:… or sctp:…, IPv6 addresses in brackets",
    ),
    (
        "ipvsadm -L -n -t 10.0.0.1",
        2,
        "service '10.0.0.1' has no port; write ADDRESS:PORT with a port from 1 to 65535 (port 0 does not exist in fnat)",
    ),
    ("ipvsadm -E -t 10.0.0.1:80", 2, "nothing to edit; give what shall change, such as -s rr or --conn-timeout 3600"),
    (
        "ipvsadm -Z 10.0.0.1:80",
        2,
        "unexpected word '10.0.0.1:80' (is -t or -u missing before it?); -h shows the options",
    ),
    (
        "ipvsadm -A -t 10.0.0.1:80 --conn-timeout 2h",
        2,
        "--conn-timeout '2h' is out of range; give a number from 0 to 31535999",
    ),
    ("ipvsadm -A -t 10.0.0.1:80 --expire-quiescent yes", 2, "unexpected word 'yes'; -h shows the options"),
    (
        "ipvsadm -A -u 10.0.0.1:53 --client-addr toa",
        2,
        "--client-addr toa is not for UDP services; allowed: none, uoa-opp, uoa-ipo, proxy-v2, proxy-v2-insecure",
    ),
    ("dpip addr add 10.0.0.1/24", 2, "addr add needs dev; add dev PORT"),
    (
        "dpip addr add 10.0.0.1/24 dpdk0",
        2,
        "'dpdk0' is not known here (is dev missing before it?); what may stand here: dev scope valid_lft prefered_lft preferred_lft sapool",
    ),
    (
        "dpip adr add 10.0.0.1 dev dpdk0",
        2,
        "unknown object 'adr' (did you mean addr?); the objects are link addr route neigh ipset",
    ),
    (
        "dpip addr ad 10.0.0.1 dev dpdk0",
        2,
        "addr ad is not in fnat (did you mean add?); the commands of addr are add del flush show",
    ),
    (
        "dpip addr add 10.0.0.1/24 dev dpdk9",
        1,
        "there is no port 'dpdk9' (did you mean 'dpdk1'?); use one of: dpdk0, dpdk1 (FN-1207)",
    ),
    (
        "dpip addr add 10.0.0.1/24 dev dpdk0 sappool",
        2,
        "'sappool' is not known here (did you mean sapool?); what may stand here: dev scope valid_lft prefered_lft preferred_lft sapool",
    ),
    (
        "dpip addr add 10.0.0.0/24 dev dpdk0",
        1,
        "10.0.0.0/24 is the network or broadcast address of its own prefix; give the address of a host, or /32 (FN-1201)",
    ),
    (
        "dpip route add 10.0.0.1/16 dev dpdk0",
        2,
        "route 10.0.0.1/16 has host bits set; write 10.0.0.0/16, or 10.0.0.1/32 for this one address",
    ),
    ("dpip route add default", 2, "route add needs via or dev; add via GATEWAY or dev PORT"),
    (
        "dpip route add default gw 10.0.0.1",
        2,
        "'gw' is not known here (did you mean via?); what may stand here: via dev src mtu metric scope",
    ),
    (
        "dpip route add default via 10.0.0.1/24",
        2,
        "gateway '10.0.0.1/24' is not an IPv4 address; write it like 192.0.2.10 or 2001:db8::10 (names are not looked up)",
    ),
    (
        "dpip route add 10.0.0.0/8 dev dpdk0 scope kni",
        2,
        "route scope 'kni' (did you mean kni_host?); say one of host kni_host link global",
    ),
    ("dpip route add -net 10.0.0.0/8 dev dpdk0", 2, "unknown option -net; -h shows the options"),
    ("dpip neigh add 10.0.0.1 dev dpdk0", 2, "neigh add needs lladdr; add lladdr MAC"),
    (
        "dpip neigh add 10.0.0.1 lladdr 02:00:00:00:00 dev dpdk0",
        2,
        "'02:00:00:00:00' is not a MAC address; write it like 02:00:5e:10:00:01",
    ),
    ("dpip link set dpdk0 up", 2, "link set up is not known; write: link set dpdk0 link up|down"),
    ("dpip link set link dpdk0 up", 2, "link set dpdk0 is not known; write: link set PORT link up|down"),
    (
        "dpip link shwo",
        2,
        "link shwo is not in fnat (did you mean show?); the commands of link are show set (bonds and slaves are made with `ip link`)",
    ),
    ("dpip link show dpdk9", 1, "no port dpdk9; there are: dpdk0 dpdk1 (FN-1203)"),
    ("dpip show link", 2, "show is a command, not an object; the object comes first, as in: link show"),
    ("dpip link --stat show", 2, "unknown option --stat (did you mean --stats?); -h shows the options"),
]


def test_there_are_enough() -> None:
    assert len({line for line, _, _ in SLIPS}) >= 50


def test_a_slip_is_answered_with_the_way_out(balancer: Control) -> None:
    before = balancer.engine.config
    for line, code, said in SLIPS:
        program = f"fnat-{line.split()[0]}"
        assert type_in(line) == (code, "", f"{program}: {said}\n"), line
        assert balancer.engine.config is before


@pytest.mark.parametrize("line", ["dpip addr add dev dpdk0 10.0.0.1/24", "dpip route add dev dpdk0 10.0.0.0/8 metric 3",
                                  "dpip neigh add dev dpdk0 lladdr 02:00:00:00:00:01 10.0.0.1"])  # fmt: skip
def test_keywords_may_stand_before_the_address(line: str, balancer: Control) -> None:
    """As DPVS has it."""
    before = balancer.engine.config
    assert type_in(line) == (0, "", "")
    assert balancer.engine.config != before
