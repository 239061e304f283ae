"""Connections asked of the core by any of their ends; what passes and how many."""

import packets as wire
import pytest
from packets import SYN, UDP
from rig import LIP, LIP2, RS1, RS2, VIP, VIP2, WAN, Rig

from fnat._core import STATES

# filter, numbers of the connections that pass: 0, 1 and 2 from three clients to RS1, RS2 and RS1, 3 by TCP
FILTERS = [
    ({}, {0, 1, 2, 3}),
    ({"proto": 17}, {0, 1, 2}),
    ({"cip": "198.51.100.1"}, {1}),
    ({"cip": "198.51.100.0/31"}, {0, 1}),
    ({"cip": "198.51.100.2/31"}, {2, 3}),
    ({"cip": "0.0.0.0/0"}, {0, 1, 2, 3}),
    ({"cip": "198.51.100.1/0"}, {0, 1, 2, 3}),
    ({"cip": "198.51.101.0/24"}, set()),
    ({"cport": 1002}, {2}),
    ({"cip": "198.51.100.1", "cport": 1002}, set()),
    ({"vip": VIP}, {0, 1, 2, 3}),
    ({"vip": VIP, "vport": 53}, {0, 1, 2}),
    ({"vport": 80}, {3}),
    ({"vip": VIP2}, set()),
    ({"rip": RS2}, {1}),
    ({"rip": RS1, "rport": 8080}, {0, 2, 3}),
    ({"rport": 8081}, {1}),
    ({"lip": LIP}, {0, 1, 2, 3}),
    ({"lip": LIP2}, set()),
    ({"state": STATES.index("SYN_RECV")}, {3}),
    ({"service": 0}, {0, 1, 2}),
    ({"member": 1}, {1}),
    (
        {
            "service": 1,
            "cip": "198.51.100.3",
            "cport": 1003,
            "vip": VIP,
            "vport": 80,
            "lip": LIP,
            "rip": RS1,
            "proto": 6,
        },
        {3},
    ),
]


@pytest.fixture(scope="module")
def four_conns():
    rig = Rig()
    rig.service(proto=UDP, vport=53, members=[(0, RS1, 8080, 1), (1, RS2, 8081, 1)], scheduler="rr")
    rig.service(id=1)
    for i in range(3):
        rig.send(WAN, wire.udp(f"198.51.100.{i}" if i else "198.51.100.0", 1000 + i, VIP, 53, b"x"))
    rig.send(WAN, wire.tcp("198.51.100.3", 1003, VIP, 80, SYN))
    return rig


@pytest.mark.parametrize(("filter", "numbers"), FILTERS, ids=[str(f[0]) for f in FILTERS])
def test_connections_are_filtered_by_all_their_ends(four_conns, filter, numbers):
    assert {c.cport - 1000 for c in four_conns.conns(**filter)} == numbers
    assert four_conns.plane.conn_count(0, **filter) == len(numbers)


@pytest.mark.parametrize("filter", [{"cip": "1.2.3.4/33"}, {"cip": "::1/129"}, {"colour": 1}, {"cip": "x"}])
def test_a_filter_that_is_none_is_refused(four_conns, filter):
    with pytest.raises((OSError, TypeError, ValueError)):
        four_conns.plane.conn_count(0, **filter)
