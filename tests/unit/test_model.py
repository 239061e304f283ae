"""Which words are values, which are refused, and with what words."""

import pytest
from pydantic import ValidationError

from fnat.config import explain
from fnat.model import CHANGES, STATE_OF, Address, Neighbour, Route, Timeouts, change_as_json

SERVICE = {"proto": "tcp", "vip": "10.0.0.1", "vport": 80}

# change, words that the refusal must have
REFUSED = [
    ({"op": "service.add", **SERVICE, "vip": "2001:db8::g"}, "'2001:db8::g' is not an IPv6 address"),
    ({"op": "service.add", **SERVICE, "vip": "::"}, "not an address of a host"),
    ({"op": "service.add", **SERVICE, "vip": "::1"}, "not an address of a host"),
    ({"op": "service.add", **SERVICE, "vip": "ff02::1"}, "not an address of a host"),
    ({"op": "service.add", **SERVICE, "vip": "fe80::1"}, "valid on its link only"),
    ({"op": "service.add", **SERVICE, "vip": "::ffff:10.0.0.1"}, "write 10.0.0.1"),
    ({"op": "service.add", **SERVICE, "vip": "2001:db8::1%eth0"}, "not an IPv6 address"),
    ({"op": "service.add", **SERVICE, "vip": "10.0.0"}, "'10.0.0' is not an IPv4 address"),
    ({"op": "service.add", **SERVICE, "vip": "10.0.0.256"}, "not an IPv4 address"),
    ({"op": "service.add", **SERVICE, "vip": "224.0.0.1"}, "not an address of a host"),
    ({"op": "service.add", **SERVICE, "vip": "0.0.0.0"}, "not an address of a host"),
    ({"op": "service.add", **SERVICE, "vip": "127.0.0.1"}, "not an address of a host"),
    ({"op": "service.add", **SERVICE, "vip": 1}, "not an IPv4 address"),
    ({"op": "service.add", **SERVICE, "vport": 0}, "too small"),
    ({"op": "service.add", **SERVICE, "vport": 65536}, "too large"),
    ({"op": "service.add", **SERVICE, "vport": "80"}, "valid integer"),
    ({"op": "service.add", **SERVICE, "proto": "icmp"}, "'tcp', 'udp' or 'sctp'"),
    ({"op": "service.add", **SERVICE, "proto": "sctp", "client_addr": "toa"}, "is not for sctp; allowed: none"),
    ({"op": "service.add", **SERVICE, "scheduler": "lblc"}, "'rr', 'wrr'"),
    ({"op": "service.add", **SERVICE, "hash_slots": 4096}, "1021, 4093, 16381"),
    ({"op": "service.add", **SERVICE, "hash_target": "dip"}, "'sip', 'sip-port' or 'qid'"),
    ({"op": "service.add", **SERVICE, "conn_timeout": 31_536_000}, "too large"),
    ({"op": "service.add", **SERVICE, "one_packet": True}, "for UDP services only"),
    ({"op": "service.add", **SERVICE, "quic": True}, "quic is for UDP services only"),
    ({"op": "service.add", **SERVICE, "proto": "udp", "quic": True, "one_packet": True}, "exclude each other"),
    ({"op": "service.set", **SERVICE, "one_packet": True}, "for UDP services only"),
    ({"op": "service.add", **SERVICE, "schedular": "rr"}, "no such key"),
    ({"op": "service.add", "proto": "tcp", "vip": "10.0.0.1"}, "is missing"),
    ({"op": "service.zero", "proto": "tcp"}, "or none of them"),
    (SERVICE, "add its name, such as"),
    ({"op": "service.ad", **SERVICE}, "did you mean 'service.add'"),
    ({"op": "server.add", "service": SERVICE, "rip": "10.1.1.1", "rport": 80, "weight": 65536}, "too large"),
    ({"op": "server.add", "service": SERVICE, "rip": "10.1.1.1", "rport": 80, "weight": -1}, "too small"),
    ({"op": "lip.add", "service": SERVICE, "addr": "10.2.0.1", "port": "0eth"}, "not a name"),
    ({"op": "addr.add", "addr": "10.2.0.1", "plen": 33, "port": "lan"}, "too large"),
    ({"op": "addr.add", "addr": "2001:db8::1", "plen": 129, "port": "lan"}, "too large"),
    ({"op": "route.add", "prefix": "fd00::/129", "port": "lan"}, "not an IPv6 prefix"),
    ({"op": "route.add", "prefix": "fd00::/8", "gateway": "10.0.0.1"}, "gateway 10.0.0.1 is not an IPv6 address"),
    ({"op": "route.add", "prefix": "10.0.0.0/8", "gateway": "fe80::1"}, "gateway fe80::1 is not an IPv4 address"),
    (
        {"op": "route.add", "prefix": "fd00::/8", "src": "10.0.0.1", "port": "lan"},
        "src 10.0.0.1 is not an IPv6 address",
    ),
    ({"op": "route.add", "prefix": "fd00::/8", "mtu": 1279, "port": "lan"}, "less than IPv6's 1280"),
    ({"op": "route.add", "prefix": "10.0.0.0/8", "mtu": 67, "port": "lan"}, "less than IPv4's 68"),
    ({"op": "route.add", "prefix": "10.0.0.0/8", "mtu": 3501, "port": "lan"}, "too large"),
    ({"op": "lip.add", "service": SERVICE, "addr": "fe80::1", "port": "lan"}, "valid on its link only"),
    ({"op": "neigh.add", "addr": "ff02::1", "mac": "02:00:00:00:00:01", "port": "lan"}, "not an address of a host"),
    ({"op": "route.add", "prefix": "10.0.0.0/33", "port": "lan"}, "not an IPv4 prefix"),
    ({"op": "neigh.add", "addr": "10.2.0.1", "mac": "02:00:00:00:00", "port": "lan"}, "not a MAC address"),
    ({"op": "neigh.add", "addr": "10.2.0.1", "mac": "01:00:5e:00:00:01", "port": "lan"}, "group address"),
    ({"op": "link.set", "port": "lan"}, "is missing"),
]


@pytest.mark.parametrize(("change", "words"), REFUSED, ids=[w for _, w in REFUSED])
def test_refusal_says_what_is_wrong(change, words):
    with pytest.raises(ValidationError) as caught:
        CHANGES.validate_python([change])
    assert words in "; ".join(explain(caught.value.errors()[0]))


# what is written -> what it means
CANONICAL = [
    ("10.1.2.3/8", "10.0.0.0/8"),
    ("default", "0.0.0.0/0"),
    ("10.1.2.3", "10.1.2.3/32"),
    ("2001:DB8:0::1/32", "2001:db8::/32"),
    ("2001:db8::1", "2001:db8::1/128"),
    ("::/0", "::/0"),
]


@pytest.mark.parametrize(("text", "prefix"), CANONICAL)
def test_prefix_is_canonical(text, prefix):
    assert Route(prefix=text).prefix == prefix


def test_zero_gateway_is_no_gateway():
    assert Route(prefix="default", gateway="0.0.0.0", src="0.0.0.0") == Route(prefix="0.0.0.0/0")


def test_ipv6_values_have_one_spelling():
    text = {"op": "service.add", "proto": "tcp", "vip": "2001:0DB8:0:0::1", "vport": 80}
    (change,) = CHANGES.validate_python([text])
    assert str(change.key) == "tcp [2001:db8::1]:80"
    assert Route(prefix="::/0", gateway="FE80::1", src="::", port="wan").gateway == "fe80::1", "a gateway of the link"
    assert Route(prefix="default", gateway="fe80::1", port="wan") == Route(prefix="::/0", gateway="fe80::1", port="wan")
    assert Neighbour(addr="fe80::1", mac="02:00:00:00:00:01", port="wan").addr == "fe80::1"
    assert Address(addr="2001:db8::1", port="wan").plen == 128
    assert Address(addr="2001:db8::1", plen=64, port="wan").network == "2001:db8::/64"


def test_values_cannot_be_changed():
    with pytest.raises(ValidationError):
        Route(prefix="default").metric = 1


def test_json_of_a_change_has_only_what_was_given():
    text = {"op": "service.set", **SERVICE, "scheduler": "rr"}
    (change,) = CHANGES.validate_python([text])
    assert change_as_json(change) == text
    assert CHANGES.validate_python([change_as_json(change)]) == [change]


def test_timeouts_name_every_state_of_the_core():
    core = pytest.importorskip("fnat._core")
    assert tuple(STATE_OF.values()) == tuple(core.STATES)
    assert Timeouts().by_state()["TCP_EST"] == 7440
    assert Timeouts(fragments=5).by_state()["FRAGMENTS"] == 5
