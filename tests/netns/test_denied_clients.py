"""Who is denied gets nothing, who is allowed works: kernels, commands, restarts."""

from __future__ import annotations

import time

from topology import HTTP, Balancer, wait_until


def works(balancer: Balancer) -> bool:
    return balancer.topology.curl("/", "--max-time", "1", check=False).returncode == 0


def test_denied_and_allowed(own_balancer: Balancer) -> None:
    balancer, top = own_balancer, own_balancer.topology
    client, service = top.client_address, f"tcp/{top.vip}:{HTTP}"
    net = client.rsplit(".", 1)[0] + ".0/24"
    talk = top.talk()
    assert talk.ask() in ("rs1", "rs2")
    balancer.fnat("set", "add", "bad", net)
    balancer.fnat("acl", "add", "deny", "set:bad")
    assert not works(balancer) and balancer.counters()["acl_general_deny"] > 0
    assert talk.ask() in ("rs1", "rs2"), "what is established goes on"
    assert balancer.fnat("acl", "test", client, "--service", service, check=False).returncode == 1
    balancer.fnat("set", "add", "bad", f"{client} nomatch")
    assert works(balancer)

    assert balancer.stop() == 0
    balancer.start()
    assert works(balancer)
    balancer.fnat("set", "del", "bad", client)
    assert not works(balancer)
    assert talk.ask() in ("rs1", "rs2")
    balancer.fnat("acl", "recheck")
    assert balancer.counters()["acl_closed"] >= 1 and f":{talk.port} " not in balancer.ipvsadm("-lnc")
    balancer.fnat("acl", "del", "deny", "set:bad")
    assert works(balancer)

    balancer.fnat("acl", "add", "allow", "203.0.113.0/24", "--service", service)
    assert not works(balancer)
    balancer.fnat("acl", "add", "allow", "set:bad", "--service", service)
    assert works(balancer)
    balancer.fnat("set", "add", "brief")
    balancer.fnat("acl", "add", "deny", "set:brief", "--service", service)
    assert works(balancer)
    balancer.fnat("set", "add", "brief", f"{client} timeout 8")
    end = int(balancer.fnat("set", "show", "brief").stdout.split()[-1])
    assert not works(balancer)
    wait_until(lambda: balancer.fnat("set", "show", "brief").stdout == "", "the entry has ended", 12)
    assert time.time() >= end
    assert works(balancer)
    shown = balancer.fnat("acl", "show").stdout
    assert "set:brief" in shown and "203.0.113.0/24, set:bad" in shown
