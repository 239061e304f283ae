"""The words of addresses: what is one, how it is written, in which order it stands."""

import pytest

from fnat import addresses

# what is written -> its one spelling
HOSTS = [
    ("10.0.0.1", "10.0.0.1"),
    ("2001:DB8::0:1", "2001:db8::1"),
    ("2001:db8:0:0:1:0:0:1", "2001:db8::1:0:0:1"),  # RFC 5952, 4.2.3
    ("64:ff9b::10.0.0.1", "64:ff9b::a00:1"),
    ("fd00::1", "fd00::1"),
]


@pytest.mark.parametrize(("text", "one"), HOSTS)
def test_an_address_has_one_spelling(text, one):
    assert addresses.host(text) == one


NO_HOSTS = ["", "10.0.0", "10.0.0.256", "0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "::", "::1", "ff02::1",
            "fe80::1", "::ffff:10.0.0.1", "2001:db8::1%eth0", "[2001:db8::1]", "2001:db8:::1"]  # fmt: skip


@pytest.mark.parametrize("text", NO_HOSTS)
def test_what_is_not_the_address_of_a_host(text):
    with pytest.raises(ValueError, match=r".") as caught:
        addresses.host(text)
    assert "\n" not in str(caught.value)


def test_a_gateway_may_be_of_its_link():
    assert addresses.host("FE80::1", link_local=True) == "fe80::1"


# what is written -> address, port
ENDS = [
    ("10.0.0.1:80", ("10.0.0.1", "80")),
    ("10.0.0.1", ("10.0.0.1", "")),
    ("[2001:db8::1]:80", ("2001:db8::1", "80")),
    ("[2001:db8::1]", ("2001:db8::1", "")),
    ("2001:db8::1", ("2001:db8::1", "")),
    ("2001:db8::1:80", ("2001:db8::1:80", "")),  # an address: nobody can tell a port in it
]


@pytest.mark.parametrize(("text", "parts"), ENDS)
def test_an_endpoint_is_taken_apart(text, parts):
    assert addresses.split(text) == parts
    host, port = parts
    if port:
        assert addresses.endpoint(host, int(port)) == text


@pytest.mark.parametrize(
    "text", ["10.0.0.1:", "[2001:db8::1", "[2001:db8::1]80", "[2001:db8::1]:", "[10.0.0.1]:80", "[]:80"]
)
def test_an_endpoint_is_whole_and_brackets_are_of_ipv6(text):
    with pytest.raises(ValueError, match="is not"):
        addresses.split(text)


def test_ipv4_stands_before_ipv6_and_numbers_in_order():
    wanted = ["9.0.0.1", "10.0.0.1", "::2", "2001:db8::9", "2001:db8::10", "fd00::"]
    assert sorted({*wanted}, key=addresses.order) == wanted
