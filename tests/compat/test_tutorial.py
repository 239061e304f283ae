"""The DPVS tutorial's one-arm and two-arm FullNAT, typed into the real API over a unix socket: transcripts.

The data plane is an anonymous plane whose worker does not run, so nothing is forwarded here; what is shown is what
control made of the commands.
"""

from __future__ import annotations

from terminal import type_in

from fnat.control import Control


def type_all(script: str) -> None:
    for line in script.strip().splitlines():
        assert type_in(line) == (0, "", ""), line


ONE_ARM = """
dpip addr add 192.168.100.254/32 dev dpdk0
ipvsadm -A -t 192.168.100.254:80 -s rr
ipvsadm -a -t 192.168.100.254:80 -r 192.168.100.2 -b
ipvsadm -a -t 192.168.100.254:80 -r 192.168.100.3 -b
ipvsadm --add-laddr -z 192.168.100.200 -t 192.168.100.254:80 -F dpdk0
ipvsadm --add-laddr -z 192.168.100.201 -t 192.168.100.254:80 -F dpdk0
dpip route add 192.168.100.0/24 dev dpdk0
"""

ONE_ARM_SHOWN = [
    (
        "ipvsadm -ln",
        "IP Virtual Server version 0.1.0 (size=4096)\n"
        "Prot LocalAddress:Port Scheduler Flags\n"
        "  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn\n"
        "TCP  192.168.100.254:80 rr\n"
        "  -> 192.168.100.2:80             FullNat 1      0          0         \n"
        "  -> 192.168.100.3:80             FullNat 1      0          0         \n",
    ),
    (
        "ipvsadm -G",
        "VIP:VPORT            TOTAL    SNAT_IP              CONFLICTS  CONNS     \n"
        "192.168.100.254:80   2        \n"
        "                              192.168.100.200      0          0         \n"
        "                              192.168.100.201      0          0         \n",
    ),
    (
        "ipvsadm -ln --stats",
        "IP Virtual Server version 0.1.0 (size=4096)\n"
        "Prot LocalAddress:Port               Conns   InPkts  OutPkts  InBytes OutBytes\n"
        "  -> RemoteAddress:Port\n"
        "TCP  192.168.100.254:80                  0        0        0        0        0\n"
        "  -> 192.168.100.2:80                    0        0        0        0        0\n"
        "  -> 192.168.100.3:80                    0        0        0        0        0\n",
    ),
    ("ipvsadm -lnc", ""),
    (
        "dpip addr show -s",
        "inet 192.168.100.254/32 scope global dpdk0\n"
        "     valid_lft forever preferred_lft forever\n"
        "inet 192.168.100.200/32 scope global dpdk0\n"
        "     valid_lft forever preferred_lft forever sa_used 0 sa_free 129024 sa_miss 0\n"
        "inet 192.168.100.201/32 scope global dpdk0\n"
        "     valid_lft forever preferred_lft forever sa_used 0 sa_free 129024 sa_miss 0\n",
    ),
    (
        "dpip route show",
        "inet 192.168.100.254/32 via 0.0.0.0 src 0.0.0.0 dev dpdk0 mtu 1500 tos 0 scope host metric 0 proto auto\n"
        "inet 192.168.100.200/32 via 0.0.0.0 src 0.0.0.0 dev dpdk0 mtu 1500 tos 0 scope host metric 0 proto auto\n"
        "inet 192.168.100.201/32 via 0.0.0.0 src 0.0.0.0 dev dpdk0 mtu 1500 tos 0 scope host metric 0 proto auto\n"
        "inet 192.168.100.0/24 via 0.0.0.0 src 0.0.0.0 dev dpdk0 mtu 1500 tos 0 scope link metric 0 proto static\n",
    ),
    (
        "dpip link show dpdk1 -v",
        "2: dpdk1: socket 0 mtu 1500 rx-queue 1 tx-queue 1\n"
        "    UP 0 Mbps unknown-duplex unknown-nego\n"
        "    addr 02:00:00:00:00:02\n"
        "    driver tap device  mode native zero-copy no exclusive no\n"
        "    steering hand-off\n",
    ),
    (
        "ipvsadm -S",
        "-A -t 192.168.100.254:80 -s rr\n"
        "-P -t 192.168.100.254:80 -z 192.168.100.200 -F dpdk0\n"
        "-P -t 192.168.100.254:80 -z 192.168.100.201 -F dpdk0\n"
        "-a -t 192.168.100.254:80 -r 192.168.100.2:80 -b -w 1\n"
        "-a -t 192.168.100.254:80 -r 192.168.100.3:80 -b -w 1\n",
    ),
]


def test_one_arm(balancer: Control) -> None:
    type_all(ONE_ARM)
    assert [(line, type_in(line)) for line, _ in ONE_ARM_SHOWN] == [
        (line, (0, text, "")) for line, text in ONE_ARM_SHOWN
    ]
    saved = type_in("ipvsadm -S")[1]
    type_all("ipvsadm -C")
    assert type_in("ipvsadm -S") == (0, "", "")
    assert type_in("ipvsadm -R", saved) == (0, "", "")
    assert type_in("ipvsadm -S") == (0, saved, "")


TWO_ARM = """
dpip addr add 10.0.0.100/32 dev dpdk1
dpip route add 10.0.0.0/16 dev dpdk1
dpip route add default via 10.0.0.1 dev dpdk1
dpip route add 192.168.100.0/24 dev dpdk0
dpip neigh add 10.0.0.1 lladdr 02:00:5e:10:00:01 dev dpdk1
ipvsadm -A -t 10.0.0.100:80 -s wrr
ipvsadm -A -u 10.0.0.100:53
ipvsadm -a -t 10.0.0.100:80 -r 192.168.100.2:8080 -b -w 65535
ipvsadm -e -t 10.0.0.100:80 -r 192.168.100.2:8080 -w 0
ipvsadm -a -t 10.0.0.100:80 -r 192.168.100.3:8080 -b -w 100
ipvsadm -d -t 10.0.0.100:80 -r 192.168.100.3:8080
ipvsadm -P -z 192.168.100.200 -t 10.0.0.100:80 -F dpdk0
ipvsadm -E -t 10.0.0.100:80 -s rr --conn-timeout 3600 --expire-quiescent --no-rs reset --half-open 0
ipvsadm -Z
dpip route set default via 10.0.0.2 dev dpdk1
dpip route del 192.168.100.0/24 dev dpdk0
dpip addr add 192.168.100.9/24 dev dpdk0
dpip addr del 192.168.100.9/24 dev dpdk0
dpip link set dpdk1 link down
"""


def test_two_arm(balancer: Control) -> None:
    type_all(TWO_ARM)
    assert type_in("ipvsadm -S")[1] == (
        "-A -t 10.0.0.100:80 -s rr --conn-timeout 3600 --expire-quiescent --no-rs reset --half-open 0\n"
        "-P -t 10.0.0.100:80 -z 192.168.100.200 -F dpdk0\n"
        "-a -t 10.0.0.100:80 -r 192.168.100.2:8080 -b -w 0\n"
        "-A -u 10.0.0.100:53 -s wlc\n"
    )
    assert type_in("dpip route show dev dpdk1")[1].splitlines()[1:] == [
        "inet 10.0.0.0/16 via 0.0.0.0 src 0.0.0.0 dev dpdk1 mtu 1500 tos 0 scope link metric 0 proto static",
        "inet 0.0.0.0/0 via 10.0.0.2 src 0.0.0.0 dev dpdk1 mtu 1500 tos 0 scope global metric 0 proto static",
    ]
    assert type_in("dpip neigh show")[1] == (
        f"ip: 10.0.0.1{'':40} mac: 02:00:5e:10:00:01   state: REACHABLE     dev: dpdk1  core: 0  [static]\n"
    )
    assert type_in("dpip link show dpdk1")[1].splitlines()[1].split()[0] == "DOWN"
    assert type_in("fnat service show tcp 10.0.0.100:80")[1].splitlines()[1].split()[:4] == [
        "tcp",
        "10.0.0.100:80",
        "rr",
        "1",
    ]
    assert type_in("fnat metrics")[1].count("\nfnat_server_weight{") == 1


FAMILIES = """
dpip addr add 2001::1/64 dev dpdk1
dpip -6 route add default via 2001::2 dev dpdk1
dpip -6 route add 2001:1::/64 dev dpdk0 mtu 1400
dpip route add 192.168.100.0/24 dev dpdk0
dpip -6 neigh add fe80::2 lladdr 02:00:5e:10:00:01 dev dpdk1
ipvsadm -A -t [2001::1]:80 -s rr
ipvsadm -a -t [2001::1]:80 -r [2001:1::11]:8080 -b
ipvsadm -a -t [2001::1]:80 -r 192.168.100.2 -b
ipvsadm --add-laddr -z 2001:1::3 -t [2001::1]:80 -F dpdk0
"""


def test_both_families(balancer: Control) -> None:
    """DPVS's IPv6 FullNAT, with an IPv4 server beside."""
    type_all(FAMILIES)
    shown = type_in("fnat service show")[1].splitlines()
    assert shown[1].split()[:2] == ["tcp", "[2001::1]:80"]
    assert shown[2:] == ["tcp [2001::1]:80: no IPv4 LIP, so its IPv4 servers get no connections; fnat lip add"]
    type_all("ipvsadm --add-laddr -z 192.168.100.200 -t [2001::1]:80 -F dpdk0")
    assert len(type_in("fnat service show")[1].splitlines()) == 2
    assert type_in("ipvsadm -ln")[1].splitlines()[3:] == [
        "TCP  [2001::1]:80 rr",
        "  -> 192.168.100.2:80             FullNat 1      0          0         ",
        "  -> [2001:1::11]:8080            FullNat 1      0          0         ",
    ]
    assert type_in("dpip -6 addr show -s")[1].splitlines() == [
        "inet6 2001::1/64 scope global dpdk1",
        "     valid_lft forever preferred_lft forever",
        "inet6 2001:1::3/128 scope global dpdk0",
        "     valid_lft forever preferred_lft forever sa_used 0 sa_free 64512 sa_miss 0",
    ]
    assert type_in("dpip -6 route show")[1].splitlines() == [
        "inet6 2001::1/128 dev dpdk1 mtu 1500 scope host",
        "inet6 2001:1::3/128 dev dpdk0 mtu 1500 scope host",
        "inet6 ::/0 via 2001::2 dev dpdk1 mtu 1500 scope global",
        "inet6 2001:1::/64 dev dpdk0 mtu 1400 scope link",
        "inet6 2001::/64 src 2001::1 dev dpdk1 mtu 1500 scope link",
    ]
    assert type_in("dpip route show")[1].count("inet6") == 0
    assert type_in("dpip neigh show")[1] == (
        f"ip: fe80::2{'':41} mac: 02:00:5e:10:00:01   state: REACHABLE     dev: dpdk1  core: 0  [static]\n"
    )
    saved = type_in("ipvsadm -S")[1]
    type_all("ipvsadm -C")
    assert type_in("ipvsadm -R", saved) == (0, "", "")
    assert type_in("ipvsadm -S") == (0, saved, "")
    type_all("dpip -6 route flush")
    assert type_in("dpip -6 route show")[1].count("scope global") == 0
    assert type_in("dpip route show")[1].count("scope link") == 1


REFUSED = [
    ("ipvsadm -A -t 192.168.100.254:80", 1, "ipvsadm", "exists"),
    ("ipvsadm -D -t 192.168.100.254:81", 1, "ipvsadm", "FN-1203"),
    ("ipvsadm -A -t 192.168.100.200:80", 1, "ipvsadm", "FN-1205"),
    ("ipvsadm -P -z 192.168.100.210 -t 192.168.100.254:80 -F dpdk9", 1, "ipvsadm", "FN-1207"),
    ("dpip addr add 10.9.9.9/32 dev dpdk9", 1, "dpip", "FN-1207"),
    ("dpip addr add 127.0.0.1/32 dev dpdk0", 1, "dpip", "FN-1201"),
    ("dpip addr add ::1 dev dpdk0", 1, "dpip", "FN-1201"),
    ("dpip addr add fe80::1 dev dpdk0", 1, "dpip", "valid on its link only"),
    ("dpip -6 route add default via fe80::1", 1, "dpip", "the port is not known"),
    ("ipvsadm -A -t [ff02::1]:80", 1, "ipvsadm", "not an address of a host"),
    ("ipvsadm -A -t [::ffff:10.0.0.1]:80", 1, "ipvsadm", "write 10.0.0.1"),
    ("dpip link show dpdk9", 1, "dpip", "no port dpdk9"),
    ("fnat conn show --state NOPE", 1, "fnat", "there is no state 'NOPE'"),
    ("fnat conn show --worker 5", 1, "fnat", "there is no worker 5"),
]


def test_refused_by_control_with_one_line(balancer: Control) -> None:
    type_all(ONE_ARM)
    for line, code, program, why in REFUSED:
        got, out, err = type_in(line)
        assert (got, out, err.count("\n")) == (code, "", 1), line
        assert err.startswith("fnat: " if program == "fnat" else f"fnat-{program}: ")
        assert why in err, line
    assert type_in("ipvsadm -S")[1] == ONE_ARM_SHOWN[-1][1]
