"""Hosts that do not answer ARP or neighbour discovery: core and reference agree on who is given up, and when."""

from __future__ import annotations

import packets as wire
import pytest
from packets import ACK, SYN
from rig import ADDRESSES, CLIENT, LAN, MACS, WAN, Twin

LATE, LATE6, LATE_MAC = "10.0.0.150", "fd00::150", "02:00:00:00:01:50"


def syn(port: int, vport: int) -> tuple[int, bytes]:
    return WAN, wire.tcp(CLIENT, port, "192.0.2.10", vport, SYN, seq=1, tos=port & 0xFF)


@pytest.mark.parametrize("first", [0, 1])
def test_of_two_silent_hosts_the_one_that_was_asked_earlier_is_given_up(first: int) -> None:
    twin = Twin()
    for id, rip, lip in ((0, LATE6, 6), (1, LATE, 3)):
        twin.service(id, vport=80 + id, members=[(id, rip, 8080, 1)], lips=[lip])
    assert twin.deliver([syn(5000, 80 + first)]) == ["parked"]
    twin.wait(2.5)
    assert twin.deliver([syn(5001, 81 - first)]) == ["parked"]
    twin.wait(2)
    assert twin.counters()["neigh_unresolved"] == 1
    assert twin.deliver([syn(5002, 80 + first)]) == ["parked"]  # asked anew, later than the other one
    twin.wait(6)
    assert twin.counters()["neigh_unresolved"] == 3
    twin.close()


def test_without_an_ipv6_address_nobody_can_be_asked_and_the_mac_is_forgotten() -> None:
    twin = Twin()
    twin.hosts[LAN, LATE6] = LATE_MAC
    twin.service(members=[(0, LATE6, 8080, 1)], lips=[6])
    twin.deliver([syn(5000, 80)])
    twin.wait(0.1)
    conn = twin.reference.conns[0]
    answer = wire.tcp(*conn.rs, *conn.lip, SYN | ACK, seq=7, ack=(2 + (conn.dseq or 0)) & 0xFFFFFFFF, eth_dst=MACS[LAN])
    assert twin.deliver([(LAN, answer)]) == ["to_client"]
    assert twin.deliver([(WAN, wire.tcp(CLIENT, 5000, "192.0.2.10", 80, ACK, seq=2, ack=8, tos=3))]) == ["to_rs"]
    for side in twin.both():
        side.put_addresses([a for a in ADDRESSES if not wire.is6(a[1])])
    twin.plane.publish()
    twin.hosts.clear()
    twin.wait(100, 0.25)
    assert twin.counters()["resets_sent"] == 1  # to the client; the RS has no MAC any more
    assert not twin.conns()
    twin.close()
