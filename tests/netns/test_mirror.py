"""The host mirror and the solicited-node groups against a real kernel, in a namespace of their own.

a veth pair, wan ====== far; the kernel's routes and neighbours are made with `ip`
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from typing import Any

SETUP = """\
ip link set lo up
ip link add wan type veth peer name far
ip link add lan type veth peer name beyond
for device in wan far lan beyond; do ip link set $device up addrgenmode none; done
ip addr add 2001:db8::7/64 dev wan nodad
ip addr add 10.0.0.7/24 dev wan
"""


def in_namespace(setup: str, program: str) -> Any:
    """What a Python program prints as JSON, in a new network namespace after shell commands."""
    script = f'set -e\n{SETUP}{setup}exec {sys.executable} -c "$PROGRAM"\n'
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", script],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PROGRAM": textwrap.dedent(program)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


MIRROR = """
    import asyncio, json, socket, subprocess
    from fnat.host import Mirror
    from fnat.model import PortInfo

    class Heard:
        routes, neighbours, times = [], [], 0
        def set_kernel_routes(self, routes):
            self.routes, self.times = routes, self.times + 1
        def set_kernel_neighbours(self, neighbours):
            self.neighbours = neighbours
        def set_kernel_link(self, port, *, up, mtu, mac):
            pass

    def shown(route):
        return [route.prefix, route.gateway, route.port, route.src, route.mtu, route.metric]

    async def main():
        heard, answers = Heard(), []
        ports = [PortInfo(id=i, name=n, ifindex=socket.if_nametoindex(n)) for i, n in enumerate(("wan", "lan"))]
        mirror = Mirror(heard, ports)
        task = asyncio.create_task(mirror.run())
        await asyncio.wait_for(mirror.ready.wait(), 5)
        for command in COMMANDS:
            subprocess.run(command.split(), check=True)
            await asyncio.sleep(0.3)
            answers.append([
                [shown(r) for r in heard.routes],
                sorted([n.addr, n.mac, n.port, n.permanent] for n in heard.neighbours),
            ])
        task.cancel()
        print(json.dumps(answers))

    asyncio.run(main())
"""


def mirror(*commands: str, setup: str = "") -> list[tuple[list[list[Any]], list[list[Any]]]]:
    """Routes and neighbours that the mirror has told after each command; `true` is one, too."""
    answers = in_namespace(setup, f"COMMANDS = {list(commands)!r}\n" + textwrap.dedent(MIRROR))
    return [(routes, neighbours) for routes, neighbours in answers]


OWN = [["10.0.0.0/24", None, "wan", "10.0.0.7", 0, 0], ["2001:db8::/64", None, "wan", None, 0, 256]]


def test_routes_of_both_families_are_followed() -> None:
    default = "default via fe80::1 dev wan metric 9 mtu 1400 src 2001:db8::7"
    there, changed, gone = mirror("true", f"ip -6 route add {default}", f"ip -6 route del {default}")
    assert there[0] == gone[0] == OWN
    assert changed[0] == [*OWN, ["::/0", "fe80::1", "wan", "2001:db8::7", 1400, 9]]


def test_multipath_routes_are_a_route_for_each_hop() -> None:
    setup = """\
ip addr add 2001:db8:1::7/64 dev lan nodad
ip addr add 10.1.0.7/24 dev lan
ip -6 route add 2001:db8:f::/48 nexthop via 2001:db8::1 dev wan weight 3 nexthop via fe80::2 dev lan
ip route add 10.9.0.0/16 mtu 1300 nexthop via 10.0.0.1 dev wan nexthop via 10.1.0.1 dev lan
ip route add 10.8.0.0/16 via 10.0.0.1
ip route append 10.8.0.0/16 via 10.0.0.2
ip nexthop add id 1 via fe80::3 dev wan
ip nexthop add id 2 via fe80::4 dev lan
ip nexthop add id 9 group 1/2
ip -6 route add 2001:db8:e::/48 nhid 9
"""
    whole, down = (routes for routes, _ in mirror("true", "ip link set lan down", setup=setup))
    assert [
        route for route in whole if route[0] in ("2001:db8:f::/48", "10.9.0.0/16", "10.8.0.0/16", "2001:db8:e::/48")
    ] == [
        ["10.8.0.0/16", "10.0.0.1", "wan", None, 0, 0],  # the appended one is a spare
        ["10.9.0.0/16", "10.0.0.1", "wan", None, 1300, 0],
        ["10.9.0.0/16", "10.1.0.1", "lan", None, 1300, 0],
        ["2001:db8:e::/48", "fe80::3", "wan", None, 0, 1024],
        ["2001:db8:e::/48", "fe80::4", "lan", None, 0, 1024],
        ["2001:db8:f::/48", "2001:db8::1", "wan", None, 0, 1024],
        ["2001:db8:f::/48", "fe80::2", "lan", None, 0, 1024],
    ]
    assert {route[2] for route in down} == {"wan"}


def test_neighbours_of_both_families_are_followed() -> None:
    mac = "02:00:00:00:00:99"
    _, routed, permanent, gone = mirror(
        "true",
        f"ip -6 neigh add fe80::1 lladdr {mac} dev wan nud reachable",
        f"ip -6 neigh add 2001:db8::9 lladdr {mac} dev wan nud permanent",
        "ip -6 neigh del 2001:db8::9 dev wan",
    )
    assert routed[1] == [["fe80::1", mac, "wan", False]]
    assert permanent[1] == [["2001:db8::9", mac, "wan", True], ["fe80::1", mac, "wan", False]]
    assert gone[1] == [["fe80::1", mac, "wan", False]]


# ---- solicited-node groups ----

GROUPS = """
    import json, subprocess
    from fnat.groups import Groups

    def groups():
        lines = subprocess.run(["ip", "maddr", "show", "dev", "wan"], capture_output=True, text=True, check=True).stdout
        return sorted(word for line in lines.splitlines() for word in line.split() if word.startswith(("33:33:ff", "ff02::1:ff")))

    there, answers = Groups("wan"), []
    for held in HELD:
        if held is None:
            open("/proc/sys/net/ipv6/conf/wan/disable_ipv6", "w").write("1")
        else:
            there.hold(held)
        answers.append(groups())
    there.close()
    answers.append(groups())
    print(json.dumps(answers))
"""


def groups(*held: list[str] | None) -> list[list[str]]:
    """Solicited-node groups of the device after each set of addresses; None: the kernel's IPv6 ends there."""
    answer: list[list[str]] = in_namespace(
        "ip addr flush dev wan\n", f"HELD = {list(held)!r}\n" + textwrap.dedent(GROUPS)
    )
    return answer


def test_groups_come_and_go_with_the_addresses() -> None:
    one, both, same, none, closed = groups(
        ["2001:db8::9"],
        ["2001:db8::9", "fd00::12:3456"],
        ["2001:db8::9", "fd00::9"],
        [],
    )
    assert one == ["33:33:ff:00:00:09", "ff02::1:ff00:9"]
    assert both == ["33:33:ff:00:00:09", "33:33:ff:12:34:56", "ff02::1:ff00:9", "ff02::1:ff12:3456"]
    assert same == one, "two addresses of one group"
    assert none == closed == []


def test_an_exclusive_port_lets_all_groups_through() -> None:
    program = """
        import json, subprocess
        from fnat.groups import Groups
        def let_through():
            return json.loads(subprocess.check_output(["ip", "-d", "-j", "link", "show", "dev", "wan"]))[0]["allmulti"]
        answers = [let_through()]
        there = Groups("wan", exclusive=True)
        there.hold(["2001:db8::9"])
        answers.append(let_through())
        there.close()
        print(json.dumps([*answers, let_through()]))
    """
    assert in_namespace("", program) == [0, 1, 0]


def test_groups_end_with_the_holder() -> None:
    *_, closed = groups(["2001:db8::9"])
    assert closed == []


def test_the_nic_knows_the_groups_whatever_becomes_of_the_kernels_ipv6() -> None:
    before, after, _ = groups(["2001:db8::9"], None)
    assert "33:33:ff:00:00:09" in before
    assert "33:33:ff:00:00:09" in after


def test_more_groups_than_one_socket_has_room_for() -> None:
    many, none, _ = groups([f"2001:db8::{n:x}" for n in range(1, 4000)], [])
    assert len(many) == 2 * 3999
    assert none == []
