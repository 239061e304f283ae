"""The file: what it means, and that every wrong line is one clear error."""

import os
import re
from pathlib import Path

import pytest
import rtoml

from fnat import config, plan
from fnat.errors import ConfigError
from fnat.model import CHANGES, HALF_OPEN_DEFAULT, Config, Port, Service

ROOT = Path(__file__).parents[2]

GOOD = """\
version = 1
[node.lb1]
mgmt = "10.31.0.11"
wan  = { nic = "ens1f0" }
lan  = { mac = "02:00:00:00:00:01" }
lips = ["10.31.101.1-10.31.101.3", "10.31.102.1"]
[node.lb2]
wan  = { nic = "ens1f0" }
lips = ["10.31.103.1"]
[host]
conns = "4M"
timeouts = { established = "2h4m", half_closed = "5m", close_wait = 7, syn = 5, udp = "1m30s" }
[service.web]
listen = ["198.51.100.80:443", "198.51.100.80:80"]
scheduler = "rr"
no_rs = "reset"
limits = { half_open = "20k" }
[service.web.rs]
"10.31.2.11:8443" = { weight = 10 }
[service.dns]
listen = "198.51.100.53:53"
proto = ["udp", "tcp"]
port = "lan"
lips = ["10.31.102.1"]
conn_timeout = "30s"
[service.dns.rs]
"10.31.2.21:53" = {}
"""


def read(text: str, node: str | None = "lb1") -> Config:
    return config.parse(text, "f.toml", node).config


def test_sctp_is_a_protocol_like_others():
    text = GOOD.replace('["udp", "tcp"]', '["sctp", "tcp"]').replace("syn = 5", 'syn = 5, sctp_established = "20m"')
    c = read(text)
    assert [str(s.key) for s in c.services[2:]] == ["sctp 198.51.100.53:53", "tcp 198.51.100.53:53"]
    assert c.host.timeouts.by_state()["SCTP_EST"] == 1200
    told = text.replace('port = "lan"\n', 'port = "lan"\nclient_addr = { tcp = "toa", sctp = "none" }\n')
    assert [s.client_addr for s in read(told).services[2:]] == ["none", "toa"]


def test_limits_come_through_the_file_and_back():
    text = GOOD.replace('half_open = "20k"', 'half_open = "20k", conns = "500k", new_per_s = 9, per_client = 200')
    text = text.replace('no_rs = "reset"', 'no_rs = "10.31.9.9:080"')
    text = text.replace("weight = 10", 'weight = 10, role = "backup", upper = "1k", lower = 7, max_new_per_s = 8')
    web = read(text).services[0]
    assert (web.max_conns, web.new_per_s, web.per_client, web.no_rs) == (500_000, 9, 200, "10.31.9.9:80")
    (server,) = web.servers
    assert (server.role, server.upper, server.lower, server.max_new_per_s) == ("backup", 1000, 7, 8)
    assert read(config.dump(read(text)), None).services == read(text).services


def test_drains_and_shifts_are_not_of_the_file():
    web = {"proto": "tcp", "vip": "198.51.100.80", "vport": 443}
    of = {"service": web, "rip": "10.31.2.11", "rport": 8443}
    shift = {"to_rip": "10.31.2.12", "to_rport": 8443, "per_min": 5, "started": 9}
    changes = [
        {"op": "server.add", **of, "rip": "10.31.2.12"},
        {"op": "server.drain", **of, "until": 99},
        {"op": "server.shift", **of, **shift},
    ]
    text = config.dump(plan.apply(read(GOOD), CHANGES.validate_python(changes)))
    assert "drain" not in text and "shift" not in text
    assert read(text, None).services[0].servers[1].rip == "10.31.2.12"


def test_quic_is_a_word_of_udp_services():
    text = GOOD.replace('["udp", "tcp"]', '"udp"').replace('port = "lan"\n', 'port = "lan"\nquic = true\n')
    assert read(text.replace('proto = "udp"', 'proto = ["udp"]')).services[2].quic
    with pytest.raises(ConfigError, match="for UDP services only"):
        read(GOOD.replace('port = "lan"\n', 'port = "lan"\nquic = true\n'))


API = '[api]\nlisten = "10.0.0.1:8443"\ncert = "/c"\nkey = "/k"\ntokens = "/t"\n'

# what replaces what in API, code, a word of the message
WRONG_API = [
    ('cert = "/c"\n', "", "FN-1115", "no cert, and there is no TCP without TLS"),
    ('key = "/k"\n', "", "FN-1115", "no key"),
    ('cert = "/c"\nkey = "/k"\n', "", "FN-1115", "no TCP without TLS"),
    ('tokens = "/t"\n', "", "FN-1115", "nobody could be known"),
    ('tokens = "/t"', 'client_ca = "/a"', "FN-1115", "belong together"),
    ('tokens = "/t"', 'tokens = "/t"\nclients = { a = "admin" }', "FN-1115", "belong together"),
    ('listen = "10.0.0.1:8443"\n', "", "FN-1115", "listen"),
    ("10.0.0.1:8443", "10.0.0.1", "FN-1104", "ADDRESS:PORT"),
    ("10.0.0.1:8443", "lb1:8443", "FN-1104", "ADDRESS:PORT"),
    ('"/t"', '"t"', "FN-1104", "not a path"),
    ('tokens = "/t"', 'tokens = "/t"\nclient_ca = "/a"\nclients = { a = "root" }', "FN-1104", "clients.a"),
    ('tokens = "/t"', 'tokens = "/t"\nmax_body = 10', "FN-1104", "too small"),
    ('tokens = "/t"', 'tokens = "/t"\ntls = false', "FN-1103", "no such key"),
]


@pytest.mark.parametrize(("old", "new", "code", "word"), WRONG_API, ids=[f"{r[1] or 'no ' + r[0]}"[:40] for r in WRONG_API])
def test_the_api_by_tcp_needs_tls_and_known_callers(old, new, code, word):
    with pytest.raises(ConfigError, match=word) as caught:
        read(GOOD + API.replace(old, new))
    assert caught.value.code == code and "f.toml" in str(caught.value)


def test_the_api_section_is_read_and_said_again():
    text = API.replace("10.0.0.1:8443", "[::]:8443") + 'client_ca = "/a"\nclients = { "a b" = "admin", c = "read-only" }\n'
    c = read(GOOD + text + 'group = "adm"\nmax_body = "128M"\nconnections = 99\n')
    assert c.api.listen == "[::]:8443" and c.api.clients == {"a b": "admin", "c": "read-only"}
    assert (c.api.max_body, c.api.connections, c.api.group) == (128_000_000, 99, "adm")
    assert read(config.dump(c)).api == c.api
    assert read(GOOD).api.listen is None and "[api]" not in config.dump(read(GOOD))


def test_good_file_means_what_it_says():
    c = read(GOOD)
    assert (c.node, c.mgmt) == ("lb1", "10.31.0.11")
    assert c.ports == (Port(name="wan", nic="ens1f0"), Port(name="lan", mac="02:00:00:00:00:01"))
    assert c.host.conns == 4_000_000
    times = c.host.timeouts
    assert (times.established, times.fin_wait, times.close_wait, times.syn_recv, times.udp_normal) == (
        7440,
        300,
        7,
        5,
        90,
    )
    assert [str(s.key) for s in c.services] == [
        "tcp 198.51.100.80:443",
        "tcp 198.51.100.80:80",
        "udp 198.51.100.53:53",
        "tcp 198.51.100.53:53",
    ]
    web, dns = c.services[0], c.services[2]
    assert (web.scheduler, web.no_rs, web.half_open) == ("rr", "reset", 20_000)
    assert [f"{lip.addr} {lip.port}" for lip in web.lips] == [
        "10.31.101.1 lan",
        "10.31.101.2 lan",
        "10.31.101.3 lan",
        "10.31.102.1 lan",
    ]
    assert [lip.addr for lip in dns.lips] == ["10.31.102.1"]
    assert dns.conn_timeout == 30
    assert {a.addr: a.port for a in c.addresses} == {"198.51.100.80": "wan", "198.51.100.53": "lan"}


def test_other_node_of_the_same_file():
    c = read(GOOD.replace('port = "lan"\nlips = ["10.31.102.1"]\n', ""), "lb2")
    assert [lip.addr for lip in c.services[0].lips] == ["10.31.103.1"]
    assert {lip.port for lip in c.services[0].lips} == {"wan"}


def test_node_finds_itself(monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "lb1.example.org")
    assert read(GOOD, None).node == "lb1"
    monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
    with pytest.raises(ConfigError, match="--node"):
        read(GOOD, None)
    assert read(re.sub(r"\[node.lb2\].*?(?=\[host\])", "", GOOD, flags=re.S), None).node == "lb1"


# what is replaced, by what, code, where, words
WRONG = [
    ("version = 1", "", "FN-1105", "", "version"),
    ("version = 1", "version = 2", "FN-1104", ":1:", "version = 1"),
    ("[host]", "[hots]", "FN-1103", ":10:", "did you mean 'host'?"),
    ('"4M"', '"4X"', "FN-1104", ":11: host.conns", "500k"),
    ('"4M"', "100", "FN-1104", ":11: host.conns", "the least is 1024"),
    ('"4M"', "true", "FN-1104", ":11: host.conns", "not a number"),
    ('conns = "4M"', 'cpus = "1-"', "FN-1104", ":11: host.cpus", "not a list of CPUs like 1-3,5"),
    ('conns = "4M"', "cpus = 3", "FN-1104", ":11: host.cpus", "not a list of CPUs like 1-3,5"),
    ('conns = "4M"', 'steering = "fdir"', "FN-1104", ":11: host.steering", "'auto', 'mask', 'rss' or 'ntuple'"),
    ('conns = "4M"', 'routes = "kernal"', "FN-1104", ":11: host.routes", "'kernel' or 'manual'"),
    ('conns = "4M"', "workers = 0", "FN-1104", ":11: host.workers", "the least is 1"),
    ('conns = "4M"', 'lports = "80-90"', "FN-1104", ":11: host.lports", '"1024-65535"'),
    ('conns = "4M"', 'echo = "sometimes"', "FN-1104", ":11: host.echo", "while-served"),
    ('conns = "4M"', "icmp_rate = 10000001", "FN-1104", ":11: host.icmp_rate", "10000000"),
    ('conns = "4M"', "echo_rate = -1", "FN-1104", ":11: host.echo_rate", "0"),
    ('conns = "4M"', 'lports = "9000-8000"', "FN-1104", ":11: host.lports", "not a range"),
    ("established", "estabilshed", "FN-1103", ":12: host.timeouts.estabilshed", "did you mean 'established'?"),
    ('"2h4m"', "0", "FN-1104", ":12: host.timeouts.established", "1..31535999"),
    ('"2h4m"', '"2 hours"', "FN-1104", ":12:", "not a time"),
    ("no_rs", "no_r", "FN-1103", ":16: service.web.no_r", "did you mean 'no_rs'?"),
    ('scheduler = "rr"', 'scheduler = "lblc"', "FN-1104", ":15:", "'rr', 'wrr'"),
    ('scheduler = "rr"', "hash_target = 'sip-port'", "FN-1222", "", "is for sh, mh, conhash, not for wrr"),
    ('scheduler = "rr"', "scheduler = 'mh'\nslow_start = '30s'", "FN-1222", "", "slow_start is not for mh: peers must agree"),
    ('scheduler = "rr"', "hash_slots = 1021", "FN-1222", "", "hash_slots is for mh, not for wrr"),
    ('no_rs = "reset"', 'no_rs = "10.31.9.9"', "FN-1104", ":16:", "'drop', 'reset' or the ADDRESS:PORT"),
    ('no_rs = "reset"', 'no_rs = "[fd00::9]:80"', "FN-1108", ":16:", "no IPv6 LIP"),
    ('scheduler = "rr"', 'client_addr = "proxy-v3"', "FN-1104", ":15:", "proxy-v2"),
    ('scheduler = "rr"', "client_addr = { udp = 'toa' }", "FN-1104", ":15:", "not for udp"),
    ('scheduler = "rr"', "client_addr = { icmp = 'toa' }", "FN-1103", ":15:", "icmp"),
    ('scheduler = "rr"', "client_addr = 'uoa-opp'", "FN-1104", "", "not for tcp"),
    ('scheduler = "rr"', "expire_quiescent = 3", "FN-1104", ":15:", "boolean"),
    ('scheduler = "rr"', "one_packet = true", "FN-1104", "service.web", "one_packet is for UDP services only"),
    ('scheduler = "rr"', "one_packet = 1.5", "FN-1104", ":15:", "boolean"),
    ('half_open = "20k"', 'conns = "5x"', "FN-1104", ":17:", "not a number"),
    ('half_open = "20k"', "per_client = 16777216", "FN-1104", ":1", "too large"),
    ('half_open = "20k"', 'new_per_s = "11M"', "FN-1104", ":1", "too large"),
    ('half_open = "20k"', "halfopen = 5", "FN-1103", ":17:", "did you mean 'half_open'?"),
    ("limits = {", "limits = 3 #", "FN-1104", ":17:", "not a table"),
    ("weight = 10", "weight = 65536", "FN-1104", ":19:", "the most is 65535"),
    ("weight = 10", 'role = "spare"', "FN-1104", ":19:", "'active' or 'backup'"),
    ("weight = 10", "lower = 3", "FN-1104", ":19:", "lower needs an upper"),
    ("weight = 10", "upper = 2, lower = 3", "FN-1104", ":19:", "lower 3 is above upper 2"),
    ('"10.31.2.11:8443"', '"10.31.2.11"', "FN-1104", ":19:", "ADDRESS:PORT"),
    ('"10.31.2.11:8443"', '"[fd00::1]:8443"', "FN-1108", ":19:", "no IPv6 LIP, so [fd00::1]:8443 cannot be reached"),
    ('"10.31.2.11:8443"', '"fd00::1:8443"', "FN-1104", ":19:", "[2001:db8::1]:80"),
    ('"10.31.2.11:8443"', '"[fe80::1]:8443"', "FN-1104", ":19:", "valid on its link only"),
    ("198.51.100.80:443", "198.51.100.80:99999", "FN-1104", ":14: service.web.listen", "1..65535"),
    ("198.51.100.80:443", "[2001:db8::g]:443", "FN-1104", ":14:", "'2001:db8::g' is not an IPv6 address"),
    ("198.51.100.80:443", "[2001:db8::1:443", "FN-1104", ":14:", "is not [ADDRESS]:PORT"),
    ("198.51.100.80:443", "[ff02::1]:443", "FN-1104", ":14:", "not an address of a host"),
    ("198.51.100.80:443", "[::ffff:10.0.0.1]:443", "FN-1104", ":14:", "IPv4 address in disguise"),
    ("198.51.100.80:443", "10.31.101.2:443", "FN-1107", ":14:", "also a LIP"),
    ("198.51.100.80:443", "198.51.100.80:80", "FN-1109", ":14:", "already in service.web"),
    ("198.51.100.53:53", "198.51.100.80:53", "FN-1104", ":23: service.dns.port", "would lie on wan and on lan"),
    ('port = "lan"', 'port = "lam"', "FN-1110", ":23:", "use one of: wan, lan"),
    ('lips = ["10.31.102.1"]\n', 'lips = ["10.31.109.1"]\n', "FN-1104", ":24:", "not a LIP of the node"),
    ('listen = "198.51.100.53:53"\n', "", "FN-1105", ":20: service.dns", "listen"),
    ('["udp", "tcp"]', '["icmp"]', "FN-1104", ":22:", '"tcp", "udp", "sctp"'),
    ('["udp", "tcp"]', "[17]", "FN-1104", ":22:", "list of texts"),
    ("10.31.101.1-", "10.31.101.9-", "FN-1104", ":6: node.lb1.lips", "empty or too large"),
    ("10.31.101.1-", "10.0.0.0-", "FN-1104", ":6:", "at most 4096"),
    ("10.31.101.1-", "fd00::1-", "FN-1104", ":6:", "not an address or a range"),
    ("10.31.101.1-10.31.101.3", "fd00::-fd00::ffff", "FN-1104", ":6:", "at most 4096"),
    ("10.31.101.1-10.31.101.3", "ff02::1-ff02::3", "FN-1104", ":6:", "not an address of a host"),
    ('"10.31.102.1"]\n[node', '"10.31.101.1"]\n[node', "FN-1104", ":6:", "there twice"),
    ('lips = ["10.31.101.1-10.31.101.3", "10.31.102.1"]\n', "", "FN-1108", ":12: service.web", "no LIP"),
    ("mgmt", "mgnt", "FN-1103", ":3: node.lb1.mgnt", "did you mean 'mgmt'?"),
    ('mgmt = "10.31.0.11"', 'mgmt = "10.31.0"', "FN-1104", ":3:", "not an IPv4 address"),
    ('{ mac = "02:00:00:00:00:01" }', '{ mac = "02:00" }', "FN-1104", ":5:", "not a MAC address"),
    ('{ mac = "02:00:00:00:00:01" }', '{ pci = "5e:00" }', "FN-1104", ":5:", "not a PCI address (0000:5e:00.1)"),
    ('{ mac = "02:00:00:00:00:01" }', "{}", "FN-1105", ":5:", "names no NIC"),
    ("lan  =", "a-very-long-name =", "FN-1104", ":5:", "at most 10"),
    ("[service.dns]", "[ha]\n[service.dns]", "FN-1111", ":20: ha", "not available"),
    ("[service.dns]", "[service.dns", "FN-1102", "f.toml", "line 20"),
]


@pytest.mark.parametrize(("old", "new", "code", "where", "words"), WRONG, ids=[f"{w[2]}-{w[1][:20]}" for w in WRONG])
def test_wrong_line_is_one_clear_error(old, new, code, where, words):
    assert old in GOOD
    with pytest.raises(ConfigError) as caught:
        read(GOOD.replace(old, new, 1))
    line = str(caught.value)
    assert caught.value.code == code, line
    assert line.startswith("f.toml") and where in line and words in line and "\n" not in line
    assert caught.value.fix


GOOD6 = """\
version = 1
[node.lb1]
wan  = { nic = "ens1f0" }
lan  = { nic = "ens1f1" }
lips = ["10.31.101.1-10.31.101.2", "2001:DB8:0:101::1-2001:db8:0:101::3", "2001:db8::9"]
[service.web]
listen = ["[2001:db8::80]:443", "198.51.100.80:443"]
[service.web.rs]
"10.31.2.11:8443" = { weight = 10 }
"[2001:db8:2::11]:8443" = { weight = 5 }
"""


def test_both_families_may_meet_in_one_service():
    c = read(GOOD6)
    assert [str(s.key) for s in c.services] == ["tcp [2001:db8::80]:443", "tcp 198.51.100.80:443"]
    for service in c.services:
        assert [r.key for r in service.servers] == [("10.31.2.11", 8443), ("2001:db8:2::11", 8443)]
        assert [lip.addr for lip in service.lips] == [
            "10.31.101.1",
            "10.31.101.2",
            "2001:db8:0:101::1",
            "2001:db8:0:101::2",
            "2001:db8:0:101::3",
            "2001:db8::9",
        ]
    assert c.addresses.by_key["2001:db8::80"].plen == 128
    assert read(config.dump(c)) == c
    text = config.dump(c)
    assert 'lips = ["10.31.101.1-10.31.101.2", "2001:db8:0:101::1-2001:db8:0:101::3", "2001:db8::9"]' in text


def test_management_address_may_be_ipv6():
    assert read(GOOD6.replace("lips =", 'mgmt = "2001:db8:9::1"\nlips =')).mgmt == "2001:db8:9::1"


def test_service_without_rs_is_a_warning():
    loaded = config.parse(GOOD.replace('"10.31.2.21:53" = {}', ""), "f.toml", "lb1")
    assert loaded.warnings == ["f.toml: service.dns: no rs; every connection will be refused or dropped (no_rs)"]
    assert config.parse(GOOD, "f.toml", "lb1").warnings == []


def test_dump_says_the_same():
    c = read(GOOD.replace('conns = "4M"', 'lports = "2000-2063"'))
    assert c.host.lports == (2000, 2063)
    assert read(config.dump(c)) == c


def test_dump_says_what_limits_answers():
    words = 'echo = "while-served"\necho_rate = 5\nicmp_rate = 0\nannounce = false'
    c = read(GOOD.replace('conns = "4M"', words))
    assert (c.host.echo, c.host.echo_rate, c.host.icmp_rate, c.host.announce) == ("while-served", 5, 0, False)
    assert read(config.dump(c)).host == c.host


WHOLE = """\
version = 1
[node.lb1]
mgmt = "10.31.0.11"
lips = ["10.31.101.1-10.31.101.3", "10.31.102.1 dev wan"]
routes = [
  { prefix = "default", gateway = "198.51.100.1" },
  { prefix = "10.31.2.0/24", gateway = "10.31.101.254", port = "lan", metric = 5, mtu = 1400, src = "10.31.101.1" },
]
[node.lb1.wan]
pci = "5E:00.1"
addresses = ["198.51.100.80/24", "198.51.100.9"]
neighbours = { "198.51.100.1" = "02:00:00:00:00:09", "fe80::1" = "02:00:00:00:00:0a" }
[node.lb1.lan]
nic = "ens1f0"
up = false
sapool = ["10.31.101.1/24"]
[service.web]
listen = ["198.51.100.80:443", "[2001:db8::80]:443"]
proto = ["tcp", "udp"]
client_addr = { tcp = "toa" }
[service.web.rs]
"10.31.2.11:8443" = { weight = 10 }
[service.web-quic]
name = "web"
listen = "198.51.100.80:8443"
proto = "udp"
port = ""
lips = ["10.31.102.1", "10.31.101.3"]
quic = true
[service.web-quic.rs]
"10.31.2.11:8443" = {}
"""


def test_the_file_says_all_that_a_node_can_hold():
    c = read(WHOLE)
    assert c.ports[0].pci == "0000:5e:00.1" and c.down == ("lan",)
    assert [(lip.addr, lip.port) for lip in c.services[0].lips][2:] == [("10.31.101.3", "lan"), ("10.31.102.1", "wan")]
    assert [lip.addr for lip in c.services[4].lips] == ["10.31.102.1", "10.31.101.3"]
    assert {s.name for s in c.services} == {"web"}
    assert {(a.addr, a.plen, a.port, a.sapool) for a in c.addresses} == {
        ("198.51.100.80", 24, "wan", False),
        ("198.51.100.9", 32, "wan", False),
        ("10.31.101.1", 24, "lan", True),
        ("2001:db8::80", 128, "wan", False),
    }
    assert [(r.prefix, r.gateway, r.port, r.scope) for r in c.routes] == [
        ("0.0.0.0/0", "198.51.100.1", "wan", "global"),
        ("10.31.2.0/24", "10.31.101.254", "lan", "global"),
    ]
    assert [(n.addr, n.port) for n in c.neighbours] == [("198.51.100.1", "wan"), ("fe80::1", "wan")]
    text = config.dump(c)
    assert read(text) == c and config.dump(read(text)) == text
    assert "[service.web]" in text and "[service.web-2]" in text and "#" not in text


# what is replaced, by what, code, where, words
WRONG_WHOLE = [
    ('"5E:00.1"', '"5E:00"', "FN-1104", ":10: node.lb1.wan.pci", "not a PCI address"),
    ('"198.51.100.80/24"', '"198.51.100.0/24"', "FN-1104", ":11: node.lb1.wan.addresses", "network or broadcast"),
    ('"198.51.100.80/24"', '"198.51.100.80/33"', "FN-1104", ":11:", "too large a prefix length"),
    ('"198.51.100.80/24"', '"198.51.100.80/x"', "FN-1104", ":11:", "'x'"),
    ('"02:00:00:00:00:09"', '"03:00:00:00:00:09"', "FN-1104", ":12:", "group address"),
    ("up = false", 'up = "no"', "FN-1104", ":15: node.lb1.lan.up", "true, false"),
    ('gateway = "198.51.100.1"', 'gateway = "203.0.113.1"', "FN-1104", ":5: node.lb1.routes", "port is not known"),
    ('port = "lan", metric', 'port = "lam", metric', "FN-1110", ":5:", "did you mean 'lan'?"),
    ("metric = 5", "metrix = 5", "FN-1103", ":5:", "did you mean 'metric'?"),
    (" dev wan", " dev wam", "FN-1110", ":4:", "did you mean 'wan'?"),
    ("[node.lb1.lan]", "[node.lb1.routes]", "FN-1102", "f.toml", "duplicate key"),
    ('name = "web"', 'name = "my web"', "FN-1104", ":24: service.web-quic.name", "at most 64"),
]


@pytest.mark.parametrize(("old", "new", "code", "where", "words"), WRONG_WHOLE, ids=[w[1][:30] for w in WRONG_WHOLE])
def test_wrong_line_of_a_node_is_one_clear_error(old, new, code, where, words):
    assert old in WHOLE
    with pytest.raises(ConfigError) as caught:
        read(WHOLE.replace(old, new, 1))
    line = str(caught.value)
    assert caught.value.code == code and where in line and words in line and "\n" not in line, line


def test_all_errors_are_told_at_once():
    text = GOOD.replace("conns = ", "conms = ").replace('"2h4m"', "0").replace('"rr"', '"wr"').replace("= 10", "= -1")
    text = text.replace('proto = ["udp", "tcp"]', 'proto = ["ucp"]').replace('mgmt = "10.31.0.11"', 'mgmt = "x"')
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert [str(e).split(": ")[1] for e in (caught.value, *caught.value.others)] == [
        "node.lb1.mgmt",
        "host.conms",
        "host.timeouts.established",
    ]
    text = GOOD.replace('"rr"', '"wr"').replace("= 10", "= -1").replace('["udp", "tcp"]', '["ucp"]')
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert [str(e).split(": ")[1] for e in (caught.value, *caught.value.others)] == [
        'service.web.rs."10.31.2.11:8443".weight',
        "service.web.scheduler",
        "service.dns.proto",
    ]
    assert "did you mean 'wrr'?" in str(caught.value.others[0])


@pytest.mark.parametrize(
    "file", [ROOT / "conf/fnat.toml", *sorted((ROOT / "conf/examples").glob("*.toml"))], ids=lambda p: p.name
)
def test_shipped_files_load(file):
    loaded = config.load(file)
    assert loaded.config.services and loaded.warnings == []


def shipped(whole: bool) -> str:
    """conf/fnat.toml; whole: with the defaults behind "#=", too."""
    text = (ROOT / "conf/fnat.toml").read_text()
    if whole:
        text = re.sub(r"^wan  = .*\n", "", text, flags=re.M)
        inner, rest = re.findall(r"(?m)^#= (.*\n)", text), re.sub(r"(?m)^#= .*\n", "", text)
        table = "".join(inner[inner.index(next(line for line in inner if line.startswith("[node"))) :][:6])
        rest = rest.replace("lan  = ", f"{inner[0]}lan  = ", 1).replace("[host]", f"{table}[host]", 1)
        return rest.replace("[service.web]", "[service.web]\n" + "".join(inner[7:]), 1)
    return text


def test_shipped_file_shows_the_defaults():
    text = shipped(whole=True)
    config_shown = read(text)
    assert config_shown.host == Config().host
    web = config_shown.services[0]
    usual = Service(proto="tcp", vip="192.0.2.1", vport=1, half_open=HALF_OPEN_DEFAULT)
    for name in plan.SERVICE_FIELDS:
        assert getattr(web, name) == getattr(usual, name) or name == "name", name
    ports = {p.name: p for p in read(shipped(whole=False)).ports}
    assert {p.name: p for p in config_shown.ports} == ports
    assert config_shown.model_copy(update={"ports": ()}) == read(shipped(whole=False)).model_copy(update={"ports": ()})


def test_shipped_file_shows_every_key():
    data = rtoml.loads(shipped(whole=True))
    shown = {
        "host": {*data["host"], "timeouts"},
        "host.timeouts": {*data["host"]["timeouts"], *config._SHORTHANDS},
        "service.*": set(data["service"]["web"]) | {"persistent_mask"},  # its default has no word; a comment shows it
        "service.*.limits": set(data["service"]["web"]["limits"]),
        "service.*.rs.*": {key for rs in data["service"]["web"]["rs"].values() for key in rs},
        "node.*.*": {*data["node"]["lb1"]["wan"], "mac", "pci"},
    }
    for table, keys in shown.items():
        assert set(config._KEYS[table]) == keys, table
    assert "\n# persistent_mask = " in shipped(whole=True)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "No such file"),
        (lambda path: path.mkdir(), "Is a directory"),
        (lambda path: path.write_bytes(b"\xff\xfe"), "UTF-8"),
    ],
)
def test_unreadable_file(tmp_path, make, words):
    path = tmp_path / "f.toml"
    make(path)
    with pytest.raises(ConfigError, match=words) as caught:
        config.load(path)
    assert caught.value.code == "FN-1101"


def test_ports_are_found_on_this_machine():
    device = "lo"
    assert config.resolve_ports(Config(ports=(Port(name="wan", nic=device),))) == [
        {"name": "wan", "kind": "xdp", "device": device}
    ]


@pytest.mark.parametrize(
    ("ports", "words"),
    [
        ((Port(name="wan", nic="nosuch0"),), "no nic nosuch0"),
        ((Port(name="wan", mac="02:aa:bb:cc:dd:ee"),), "no NIC with mac"),
        ((Port(name="wan", nic="lo", mac="02:aa:bb:cc:dd:ee"),), "must agree"),
        ((Port(name="wan", nic="lo"), Port(name="lan", nic="lo")), "are both lo"),
    ],
)
def test_wrong_port_is_one_clear_error(ports, words):
    assert os.path.exists("/sys/class/net/lo")
    with pytest.raises(ConfigError) as caught:
        config.resolve_ports(Config(ports=ports))
    assert caught.value.code == "FN-1110" and words in str(caught.value)


def test_schedulers_and_their_options_come_back_from_a_dump():
    told = 'scheduler = "mh"\nhash_target = "sip-port"\nhash_slots = 4093'
    text = GOOD.replace('scheduler = "rr"', told).replace('conns = "4M"', "hash_key = 'of \"us\"'")
    loaded = config.parse(text, "f.toml", "lb1")
    assert loaded.warnings == [] and loaded.config.host.hash_key == 'of "us"'
    again = config.parse(config.dump(loaded.config), "f.toml", "lb1")
    assert [s.hash_slots for s in again.config.services] == [s.hash_slots for s in loaded.config.services]
    assert again.config.services == loaded.config.services and again.config.host == loaded.config.host
    slow = config.parse(GOOD.replace('scheduler = "rr"', 'scheduler = "wlc"\nslow_start = "30s"'), "f.toml", "lb1")
    again = config.parse(config.dump(slow.config), "f.toml", "lb1")
    assert slow.config.services[0].slow_start == 30 and again.config.services == slow.config.services


def test_a_port_that_clients_choose_wants_a_secret():
    text = GOOD.replace('scheduler = "rr"', 'scheduler = "mh"\nhash_target = "sip-port"')
    (warning,) = config.parse(text, "f.toml", "lb1").warnings
    assert "without [host] hash_key" in warning


@pytest.fixture
def sysfs(tmp_path):
    """Two functions of a card, one of them with two devices, and a virtio device."""
    net = tmp_path / "class" / "net"
    net.mkdir(parents=True)
    for name, mac, way in (
        ("ens1f0", "02:00:00:00:00:01", "pci0000:5d/0000:5d:02.0/0000:5e:00.0"),
        ("ens1f1", "02:00:00:00:00:02", "pci0000:5d/0000:5d:02.0/0000:5e:00.1"),
        ("ens1f1d1", "02:00:00:00:00:03", "pci0000:5d/0000:5d:02.0/0000:5e:00.1"),
        ("eth0", "02:00:00:00:00:04", "pci0000:00/0000:00:03.0/virtio0"),
        ("lo", "00:00:00:00:00:00", None),
    ):
        (net / name).mkdir()
        (net / name / "address").write_text(mac + "\n")
        if way:
            (tmp_path / "devices" / way).mkdir(parents=True, exist_ok=True)
            (net / name / "device").symlink_to(tmp_path / "devices" / way)
    return net


# what the file says of the port, the device or the words of the error
BY_PCI = [
    ({"pci": "5e:00.0"}, "ens1f0"),
    ({"pci": "0000:00:03.0"}, "eth0"),
    ({"pci": "0000:5e:00.1", "mac": "02:00:00:00:00:03"}, "ens1f1d1"),
    ({"nic": "ens1f0", "mac": "02:00:00:00:00:01", "pci": "0000:5e:00.0"}, "ens1f0"),
    ({"pci": "0000:5e:00.1"}, "pci 0000:5e:00.1 is that of ens1f1, ens1f1d1; give the kernel's name (nic), too"),
    ({"pci": "0000:5e:00.1", "nic": "ens1f0"}, "nic ens1f0 has pci 0000:5e:00.0, not 0000:5e:00.1"),
    ({"pci": "0000:5e:00.2"}, "there is no NIC with pci 0000:5e:00.2 on this machine; did you mean"),
    ({"nic": "ens1f2"}, "there is no nic ens1f2 on this machine; did you mean 'ens1f"),
]


@pytest.mark.parametrize(("said", "wanted"), BY_PCI, ids=[str(row[0]) for row in BY_PCI])
def test_all_that_is_said_of_a_nic_agrees(sysfs, said, wanted):
    port = Config(ports=(Port(name="wan", **said),))
    try:
        assert config.resolve_ports(port, sysfs) == [{"name": "wan", "kind": "xdp", "device": wanted}]
    except ConfigError as error:
        assert error.code == "FN-1110" and wanted in str(error)
