"""Files of DPVS become fnat.toml: what is carried, what is told, and that nothing is lost in silence."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fnat import config, importers, model, plan
from fnat.errors import FnatError
from fnat.grammar import Usage, ipvsadm
from fnat.importers import Draft, Source, blocks, checks, expand, finish, guess
from fnat.model import CHANGES, Config, Key, Port

FILES = Path(__file__).parent / "imports"
NICS = {"dpdk0": "ens1f0", "dpdk1": "ens1f1"}
_OTHERS = {"ipv6.keepalived.conf": {"wan": "ens1f0", "lan": "ens1f1"}, "unicast.keepalived.conf": {"bond0": "ens1f1"}}
GOOD = sorted(p.name for p in FILES.iterdir() if p.is_file() and p.stem.split(".")[0] not in ("loop", "unclosed"))


def nics(name: str) -> dict[str, str]:
    return _OTHERS.get(name, NICS if name != "dpvs.save" else {})


def bring(*names: str, **given_) -> importers.Imported:
    draft = Draft(**{"nics": nics(names[0]), **given_})
    importers.read(draft, [Source(n, (FILES / n).read_text(), FILES / n) for n in names])
    return finish(draft)


def text_of(text: str, kind=None, **given_) -> importers.Imported:
    draft = Draft(**given_)
    importers.read(draft, [Source("f", text, None, kind)])
    return finish(draft)


def loaded(done: importers.Imported, tmp_path: Path) -> Config:
    (tmp_path / "fnat.toml").write_text(done.files["fnat.toml"])
    return config.load(tmp_path / "fnat.toml").config


def told(done: importers.Imported, line: int, fate: str | None = None) -> list[str]:
    return [str(n) for n in done.notes if n.line == line and fate in (None, n.fate)]


# ---- every sample ----


@pytest.mark.parametrize("name", GOOD)
def test_what_comes_out_loads_and_has_its_notes_at_the_top(name, tmp_path):
    done = bring(name)
    loaded(done, tmp_path)
    head = [line for line in done.files["fnat.toml"].splitlines() if line.startswith("#   ")]
    assert head == [f"#   {note}" for note in done.notes]
    assert all(re.match(r"[\w./+-]+:\d+: ", str(n)) for n in done.notes if n.file != importers.FROM_LINE)


@pytest.mark.parametrize("name", [name for name in GOOD if name.endswith((".keepalived.conf", ".dpvs.conf"))])
def test_no_line_vanishes(name):
    """Without a line something else is asked for, understood or told; lines that say what holds anyway excepted."""
    lines = (FILES / name).read_text().splitlines()
    kind = guess("\n".join(lines))

    def asked(lines):
        draft = Draft(nics=nics(name))
        try:
            importers.read(draft, [Source(name, "\n".join(lines), FILES / name, kind)])
            finish(draft)
        except FnatError as error:
            return str(error)
        return draft

    whole = asked(lines)
    silent = []
    for number, line in enumerate(lines):
        # ends of blocks, comments, and what only opens a block are no lines of their own
        if not re.match(r"\s*(<init> )?[\w/.$-]+", line) or line.rstrip().endswith(("{", "\\")):
            continue
        if asked(lines[:number] + [""] + lines[number + 1 :]) == whole:
            silent.append(line.strip())
    anyway = r"(protocol +tcp|lb_kind FNAT|type +slave|[rt]x_queue_ids|queue_number|uoa_max_trail +3|weight +1$|"
    anyway += r"(none +2|time_wait +7|close +3|listen +120|synack +30|normal +300)$|dpdk_interface |include parts/none)"
    assert [line for line in silent if not re.match(anyway, line, re.I)] == []


KEEPALIVED = [
    # file, service, its fields, its servers, its first and last LIP, the VIP's port
    ("one-arm", ("tcp", "192.168.100.254", 80), {"scheduler": "rr", "client_addr": "toa"},
     [("192.168.100.2", 80, 100), ("192.168.100.3", 80, 50)], "192.168.100.200", "192.168.100.201", "dpdk0"),
    ("two-arm", ("tcp", "10.0.0.100", 443), {"conn_timeout": 900, "client_addr": "proxy-v2"},
     [("192.168.100.2", 8443, 10), ("192.168.100.3", 8443, 5), ("192.168.100.4", 8443, 1)],
     "192.168.100.200", "192.168.100.203", "dpdk1"),
    ("two-arm", ("udp", "10.0.0.101", 53), {"one_packet": True, "client_addr": "none"},
     [("192.168.100.5", 53, 1), ("192.168.100.6", 53, 1)], "192.168.100.200", "192.168.100.203", "dpdk1"),
    ("two-arm", ("tcp", "10.0.0.101", 25), {"scheduler": "wrr", "expire_quiescent": True},
     [("192.168.100.7", 25, 1)], "192.168.100.200", "192.168.100.203", "dpdk1"),
    ("ipv6", ("tcp", "2001:db8:a::100", 80), {"scheduler": "rr"},
     [("2001:db8:b::2", 80, 1), ("192.168.100.2", 80, 1)], "2001:db8:b::200", "192.168.100.200", "wan"),
    ("pair-a", ("tcp", "10.0.0.100", 443), {"scheduler": "wrr"},
     [("192.168.1.100", 80, 2)], "192.168.1.10", "192.168.1.13", "dpdk1"),
    ("pair-b", ("tcp", "2001:db8::100", 80), {"scheduler": "wrr"},
     [("192.168.1.100", 80, 2)], "192.168.1.14", "192.168.1.17", "dpdk1"),
    ("unicast", ("tcp", "172.16.0.100", 80), {"scheduler": "rr"},
     [("172.16.2.1", 80, 1)], "172.16.1.1", "172.16.1.1", "bond0"),
    ("odd", ("tcp", "10.9.0.1", 80), {"scheduler": "rr"},
     [("10.9.2.1", 8080, 0), ("10.9.2.2", 80, 1)], "10.9.1.1", "10.9.1.3", "dpdk0"),
    ("odd", ("tcp", "10.9.0.2", 80), {"scheduler": "rr"},
     [("10.9.2.9", 80, 3)], "10.9.1.9", "10.9.1.9", "dpdk0"),
    ("wrong", ("tcp", "192.168.100.254", 80), {"scheduler": "rr", "conn_timeout": 0},
     [("192.168.100.2", 80, 1), ("192.168.100.200", 80, 1)], "192.168.100.200", "192.168.100.200", "dpdk0"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "key", "fields", "servers", "first", "last", "port"), KEEPALIVED)
def test_a_virtual_server_becomes_a_service(name, key, fields, servers, first, last, port, tmp_path):
    made = loaded(bring(f"{name}.keepalived.conf"), tmp_path)
    service = made.services.get(Key(*key))
    assert service is not None
    assert {field: getattr(service, field) for field in fields} == fields
    assert [(s.rip, s.rport, s.weight) for s in service.servers] == servers
    assert (service.lips[0].addr, service.lips[-1].addr) == (first, last)
    assert made.addresses.by_key[key[1]].port == port


NOTES = [
    # file, line, beginning of the note after the word
    ("two-arm.keepalived.conf", 12, "lvs_flush: not carried: "),
    ("two-arm.keepalived.conf", 50, "virtual_ipaddress: not carried yet: fnat has no [ha]"),
    ("two-arm.keepalived.conf", 55, "10.0.0.102/32: not carried: no service listens"),
    ("two-arm.keepalived.conf", 59, "delay_loop: not carried yet: health checks"),
    ("two-arm.keepalived.conf", 69, "syn_proxy: not carried: the SYN proxy is not in fnat"),
    ("two-arm.keepalived.conf", 73, "quorum: not carried yet: "),
    ("two-arm.keepalived.conf", 75, "quorum_up: not carried yet: scripts"),
    ("two-arm.keepalived.conf", 82, "SSL_GET: not carried yet: health checks are not in this version; https of 192.168"),
    ("two-arm.keepalived.conf", 111, "virtual_server: DPVS tells the servers of UDP services"),
    ("two-arm.keepalived.conf", 134, "lb_kind: not carried: DR: fnat forwards in FullNAT mode only"),
    ("two-arm.keepalived.conf", 147, "virtual_server: not carried: services by match are for SNAT"),
    ("wrong.keepalived.conf", 3, "192.168.100.300: not carried: '192.168.100.300' is not an IPv4 address"),
    ("wrong.keepalived.conf", 8, "protokol: not carried: is not a word of virtual_server; did you mean 'protocol'?"),
    ("wrong.keepalived.conf", 9, "establish_timeout: not carried: 'soon' is not a number"),
    ("wrong.keepalived.conf", 11, "daddr_group_name: not carried: there is no deny_address_group 'nobody'"),
    ("wrong.keepalived.conf", 13, "weight: not carried: 'heavy' is not a number"),
    ("wrong.keepalived.conf", 15, "real_server: not carried: does not say ADDRESS PORT"),
    ("wrong.keepalived.conf", 22, "virtual_server 192.168.100.200 80: not carried: service tcp 192.168.100.200 80: "),
    ("wrong.keepalived.conf", 25, "virtual_servre: not carried: is not a word of keepalived.conf; did you mean"),
    ("odd.keepalived.conf", 29, "@main: not carried: is for one configuration id only"),
    ("full.dpvs.conf", 3, "log_level: not carried: DPVS's log"),
    ("full.dpvs.conf", 27, "queue_number: not carried: DPDK's queues"),
    ("full.dpvs.conf", 74, "cpu_id: not carried: an lcore of DPDK"),
    ("full.dpvs.conf", 92, "conn_pool_size: DPVS makes 2097151 of 3000000, on each NUMA node"),
    ("full.dpvs.conf", 113, "established: connections silent for 90 s end"),
    ("full.dpvs.conf", 125, "synproxy: not carried: the SYN proxy"),
    ("full.dpvs.conf", 127, "mss: not carried: stands in synproxy of line 125"),
    ("wrong.dpvs.conf", 3, "conn_pool_size: not carried: 'many' is not a number"),
    ("wrong.dpvs.conf", 7, "established: not carried: 0 is too small, the least is 1; established is 7440 here"),
    ("wrong.dpvs.conf", 8, "fin_wait: not carried: has 2 values"),
    ("wrong.dpvs.conf", 9, "time_wiat: not carried: is not a word of dpvs.conf here; did you mean 'time_wait'?"),
    ("wrong.dpvs.conf", 14, "speed: not carried: stands in qos_defs of line 13"),
    ("dpvs.save", 5, "-m: not carried: -m: fnat forwards in FullNAT mode only"),
    ("dpvs.save", 6, "-A -t [2001:db8::1]:80 -s conhash: not carried: no LIP for tcp [2001:db8::1]:80"),
    ("dpvs.save", 8, "-A -H proto=tcp,src-range=192.168.0.0-192.168.255.255,oif=dpdk1 -s rr: not carried: -H"),
    ("dpvs.save", 10, "-A -t 192.168.100.254:http -s rr: not carried: port of service 'http'"),
    ("two-arm.sh", 4, "./bin/dpvs &: not carried: is not a command of ipvsadm or dpip"),
    ("two-arm.sh", 8, "-j: not carried: -j enable: the SYN proxy"),
    ("two-arm.sh", 14, "dpip vlan add dpdk0.100 link dpdk0 id 100: not carried: vlan is not in fnat"),
]


@pytest.mark.parametrize(("name", "line", "words"), NOTES, ids=[f"{name}:{line}" for name, line, _ in NOTES])
def test_a_line_without_a_counterpart_is_told(name, line, words):
    done = bring(name)
    assert any(note.startswith(f"{name}:{line}: {words}") for note in told(done, line)), told(done, line)
    assert not done.complete


SURPLUS = [
    # a line in place of "lb_algo rr" of one-arm.keepalived.conf, what is told of it
    ("lb_algo rr wrr", "lb_algo: not carried: wrr is not understood behind it"),
    ("lb_algo rr { x 1\n }", "lb_algo: not carried: { … } is not understood behind it"),
    ("lb_algo", "lb_algo: not carried: has no value"),
    ("persistence_granularity 255.0.255.0", "persistence_granularity: not carried: '255.0.255.0' is neither"),
    ("sorry_server 10.0.0.1 http", "sorry_server: not carried: 'http' is not a port"),
    ("lb_kind SNAT", "virtual_server: not carried: SNAT is not in fnat"),
    ("protocol ICMP", "protocol: not carried: ICMP services are not in fnat"),
    ("laddr_group_name none", "laddr_group_name: not carried: there is no local_address_group 'none'"),
    ("@id lb_algo rr", "@id: not carried: is for one configuration id only"),
]


@pytest.mark.parametrize(("line", "words"), SURPLUS)
def test_what_a_line_says_beside_is_told(line, words):
    text = (FILES / "one-arm.keepalived.conf").read_text().replace("lb_algo rr", line)
    done = text_of(text, nics={"dpdk0": "ens1f0"})
    assert any(words in str(note) for note in done.notes), done.notes


FUTURE = [
    # line of two-arm.keepalived.conf, model, field, value when the model has it
    (63, model.ServiceAdd, "persistent", 300),
    (64, model.ServiceAdd, "persistent_mask", 24),
    (67, model.ServiceAdd, "deny", ("203.0.113.7/32", "203.0.113.64/26")),
    (68, model.ServiceAdd, "allow", ("198.51.100.0/24",)),
    (80, model.ServerAdd, "upper", 1000),
    (81, model.ServerAdd, "lower", 800),
]


@pytest.mark.parametrize(("line", "kind", "field", "value"), FUTURE, ids=[field for _, _, field, _ in FUTURE])
def test_a_field_is_carried_when_the_model_has_it(line, kind, field, value, tmp_path):
    done = bring("two-arm.keepalived.conf")
    service = loaded(done, tmp_path).services.get(Key("tcp", "10.0.0.100", 443))
    holder = service if kind is model.ServiceAdd else service.servers[0]
    if field in kind.model_fields:
        assert getattr(holder, field) == value
        assert not told(done, line)
    else:
        assert told(done, line) and "is not in this version of fnat" in told(done, line)[0]


@pytest.mark.parametrize("name", ["rr", "wrr", "lc", "wlc", "sed", "nq", "sh", "mh", "conhash", "fo", "dh"])
def test_a_scheduler_is_carried_when_the_model_has_it(name, tmp_path):
    text = (FILES / "one-arm.keepalived.conf").read_text().replace("lb_algo rr", f"lb_algo {name}")
    done = text_of(text, nics={"dpdk0": "ens1f0"})
    (service,) = loaded(done, tmp_path).services
    assert service.scheduler == (name if name in get_args(model.Scheduler) else "wrr")
    assert bool(told(done, 33)) == (name not in get_args(model.Scheduler))


def test_the_scheduler_is_keepaliveds_when_none_is_given(tmp_path):
    text = (FILES / "one-arm.keepalived.conf").read_text().replace("lb_algo rr", "")
    (service,) = loaded(text_of(text, nics={"dpdk0": "ens1f0"}), tmp_path).services
    assert service.scheduler == "wlc"
    rules = "-A -t 10.0.0.1:80\n-P -t 10.0.0.1:80 -z 10.1.0.1 -F lan\n"
    (service,) = loaded(text_of(rules, nics={"lan": "eth0"}), tmp_path).services
    assert service.scheduler == "wlc"


def test_a_sorry_server_is_carried(tmp_path):
    done = bring("two-arm.keepalived.conf")
    service = loaded(done, tmp_path).services.get(Key("tcp", "10.0.0.100", 443))
    assert service.no_rs == "192.168.100.99:80"
    assert not told(done, 77)


def test_a_field_that_the_file_cannot_say_is_told(monkeypatch):
    dump = config.dump
    monkeypatch.setattr(config, "dump", lambda c: dump(c).replace("conn_timeout = 900", "").replace("weight = 5", "weight = 6"))
    done = bring("two-arm.keepalived.conf")
    assert "the file has no place for conn_timeout of service tcp 10.0.0.100 443" in told(done, 65, "lost")[0]
    assert any("no place for weight of server tcp 10.0.0.100:443 192.168.100.3 8443" in n for n in told(done, 97, "lost"))


def test_a_file_without_losses_is_complete(tmp_path):
    text = "-A -t 10.0.0.1:80 -s rr\n-P -t 10.0.0.1:80 -z 10.1.0.1 -F lan\n-a -t 10.0.0.1:80 -r 10.2.0.1:80 -b -w 1\n"
    done = text_of(text, nics={"lan": "eth0"})
    assert done.notes == [] and done.complete
    assert len(loaded(done, tmp_path).services) == 1


def test_checks_are_understood():
    draft = Draft()
    importers.read(draft, [Source("f", (FILES / "two-arm.keepalived.conf").read_text())])
    by_kind = {check.kind: check for _, _, check in draft.checks}
    assert by_kind.keys() == set(checks.KINDS.values()) - {"tcp"}
    https = by_kind["https"]
    assert https.urls == (
        checks.Url("/healthz", ("200",)),
        checks.Url("/deep check", digest="9b3a0c85a887a256d6939da88aabd8cd"),
    )
    assert (https.timeout, https.retry, https.retry_delay, https.every) == (2, 3, 1, 6)
    assert (by_kind["http"].port, by_kind["dns"].query, by_kind["smtp"].port) == (8080, "example.org", 25)
    misc = by_kind["misc"]
    assert (misc.command, misc.timeout, misc.dynamic) == ("/usr/lib/checks/app 192.168.100.4", 4, True)
    assert (by_kind["udp"].payload, by_kind["ping"].retry) == ("ab01", 2)


def test_dpvs_conf_sets_host_and_ports(tmp_path):
    made = loaded(bring("full.dpvs.conf"), tmp_path)
    times = made.host.timeouts
    assert (made.host.workers, made.host.conns, made.host.unserved) == (2, 3_000_000, "drop")
    assert (times.established, times.syn_recv, times.udp_oneway, times.udp_last, times.fragments) == (90, 30, 60, 3, 1)
    assert {p.name: p.nic for p in made.ports if p.name.startswith("dpdk")} == {"dpdk0": "ens1f0", "dpdk1": "ens1f1"}


@pytest.mark.parametrize(
    ("size", "made"), [("2097151", 2097151), ("2097152", 2097151), ("4194303", 4194303), ("65535", 2097151)]
)
def test_what_dpvs_makes_of_a_pool_size_is_told(size, made):
    done = text_of(f"ipvs_defs {{\n conn {{\n conn_pool_size {size}\n}}\n}}")
    assert f"DPVS makes {made} of {size}," in told(done, 3)[0]


def test_files_of_one_node_become_one_file(tmp_path):
    text = (FILES / "full.dpvs.conf").read_text()
    done = bring("two-arm.keepalived.conf", "full.dpvs.conf", nics={"dpdk0": "a", "dpdk1": "b"})
    made = loaded(done, tmp_path)
    assert made.host.workers == 2
    assert made.services.get(Key("udp", "10.0.0.101", 53)).client_addr == "uoa-opp", "dpvs.conf says how"
    assert "uoa_mode        opp" in text and not told(done, 111)


def test_a_renamed_kni_device_is_its_port():
    keepalived = (FILES / "one-arm.keepalived.conf").read_text().replace("interface dpdk0.kni", "interface lan0")
    draft = Draft(nics={"dpdk1": "ens1f1", "dpdk0": "ens1f0"})
    importers.read(draft, [Source("k", keepalived), Source("d", (FILES / "full.dpvs.conf").read_text())])
    assert "    interface ens1f1\n" in finish(draft).files["keepalived.conf"]


# ---- ipvsadm -S ----


def test_rules_of_dpvs_need_local_addresses_from_the_caller(tmp_path):
    assert not loaded(bring("dpvs.save"), tmp_path).services
    done = bring("dpvs.save", nics={"lan": "a", "wan": "b"}, lips=["192.168.100.200-201", "2001:db8::200"])
    made = loaded(done, tmp_path)
    assert {str(s.key): len(s.servers) for s in made.services} == {
        "tcp 192.168.100.254:80": 2,
        "udp 192.168.100.253:53": 1,
        "tcp [2001:db8::1]:80": 1,
    }
    assert made.services.get(Key("udp", "192.168.100.253", 53)).one_packet
    with pytest.raises(Usage, match="--lips without a port"):
        bring("dpvs.save", lips=["192.168.100.200"])
    with pytest.raises(Usage, match="--lips"):
        bring("dpvs.save", nics={"lan": "a", "wan": "b"}, lips=["192.168.100.254"])


def test_a_script_of_commands(tmp_path):
    made = loaded(bring("two-arm.sh"), tmp_path)
    (service,) = made.services
    assert (str(service.key), service.scheduler) == ("tcp 10.0.0.100:80", "rr")
    assert [(s.rip, s.weight) for s in service.servers] == [("192.168.100.2", 1), ("192.168.100.3", 0)]
    assert [(lip.addr, lip.port) for lip in service.lips] == [("192.168.100.200", "dpdk0")]
    assert made.addresses.by_key["10.0.0.100"].port == "dpdk1"
    pool = made.addresses.by_key["192.168.100.1"]
    assert (pool.plen, pool.port, pool.sapool) == (24, "dpdk0", True)
    assert ("0.0.0.0/0", "10.0.0.1", "dpdk1") in [(r.prefix, r.gateway, r.port) for r in made.routes]


def test_prefix_lengths_of_vips_and_addresses_are_carried(tmp_path):
    rules = "dpip addr add 10.0.0.1/24 dev a\ndpip addr add 10.0.0.9/25 dev a\ndpip addr add 10.0.0.8/32 dev b\n"
    rules += "ipvsadm -A -t 10.0.0.1:80 -s rr\nipvsadm -P -t 10.0.0.1:80 -z 10.1.0.1 -F b\n"
    done = text_of(rules, nics={"a": "a", "b": "b"})
    made = loaded(done, tmp_path)
    assert {(x.addr, x.plen, x.port) for x in made.addresses} == {
        ("10.0.0.1", 24, "a"), ("10.0.0.9", 25, "a"), ("10.0.0.8", 32, "b"),
    }  # fmt: skip
    assert done.notes == [] and done.complete


def test_lips_on_a_second_port_are_carried(tmp_path):
    rules = "-A -t 10.0.0.1:80 -s rr\n"
    rules += "".join(f"-P -t 10.0.0.1:80 -z 10.1.0.{i} -F {p}\n" for i, p in ((1, "b"), (2, "a"), (3, "a")))
    done = text_of(rules, nics={"a": "a", "b": "b"})
    (service,) = loaded(done, tmp_path).services
    assert {(lip.addr, lip.port) for lip in service.lips} == {("10.1.0.1", "b"), ("10.1.0.2", "a"), ("10.1.0.3", "a")}
    assert not [note for note in done.notes if note.fate == "lost"]


def words(kind):
    return st.sampled_from(kind)


_RS = st.tuples(st.integers(0, 40), st.integers(1, 65535), st.integers(0, 65535))


@st.composite
def configs(draw):
    """What -S can say, on one port."""
    port = draw(words(["lan", "dpdk0", "e"]))
    made = []
    keys = draw(st.lists(st.tuples(words(["tcp", "udp", "sctp"]), st.integers(0, 9), st.integers(1, 65535)), max_size=5, unique=True))
    for proto, vip, vport in keys:
        six = draw(st.booleans())
        ref = {"proto": proto, "vip": f"2001:db8::{vip + 1:x}" if vip % 2 else f"10.0.0.{vip + 1}", "vport": vport}
        shape = {
            "scheduler": draw(words(ipvsadm.SCHEDULERS)),
            "conn_timeout": draw(words([0, 7, 31535999])),
            "no_rs": draw(words(["drop", "reset", "10.3.0.1:8080"])),
            "persistent": draw(words([0, 360])),
            "persistent_mask": draw(words([None, 24])),
            "max_conns": draw(words([0, 9])),
            "per_client": draw(words([0, 3])),
            "expire_quiescent": draw(st.booleans()),
            "half_open": draw(words([None, 0, 12345])),
            "client_addr": draw(words(model.CLIENT_ADDRS[proto])),
        }
        if proto == "udp":
            shape[draw(words(["one_packet", "quic"]))] = draw(st.booleans())
        made.append({"op": "service.add", **ref, **shape})
        for lip in draw(st.lists(st.integers(0, 30), min_size=1, max_size=6, unique=True)):
            made.append({"op": "lip.add", "service": ref, "addr": f"10.1.0.{lip + 1}", "port": port})
        if six:
            made.append({"op": "lip.add", "service": ref, "addr": f"2001:db8:1::{vip + 1}", "port": port})
        for rs, rport, weight in draw(st.lists(_RS, max_size=4, unique_by=lambda r: r[:2])):
            rip = f"2001:db8:2::{rs + 1:x}" if six and rs % 2 else f"10.2.0.{rs + 1}"
            made.append({"op": "server.add", "service": ref, "rip": rip, "rport": rport, "weight": weight,
                         "upper": rs, "lower": rs // 2, "role": "backup" if rs % 3 == 2 else "active"})
    return plan.apply(Config(ports=(Port(name=port, nic="eth0"),)), CHANGES.validate_python(made))


@settings(max_examples=60, deadline=None)
@given(configs())
def test_what_save_prints_comes_back(wanted):
    rows = [{**s.model_dump(mode="json")} for s in wanted.services]
    text = ipvsadm.save_text(rows)
    if not rows:
        assert text == ""
        return
    done = text_of(text, nics={p.name: p.nic for p in wanted.ports})
    made = config.parse(done.files["fnat.toml"]).config
    assert done.notes == []
    assert made.ports == wanted.ports
    assert {s.key: sorted_(s) for s in made.services} == {s.key: sorted_(s) for s in wanted.services}


def sorted_(service):
    """LIPs and servers have no order that -S keeps over all services."""
    return service.model_copy(
        update={"servers": tuple(sorted(service.servers, key=lambda s: s.key)), "lips": frozenset(service.lips)}
    )


# ---- keepalived.conf for a stock keepalived ----


@pytest.mark.parametrize("name", [n for n in GOOD if n.endswith("keepalived.conf") and not n.startswith("wrong")])
def test_vips_do_not_come_to_the_kernel(name):
    done = bring(name)
    stock = blocks.parse(done.files["keepalived.conf"], "keepalived.conf")
    vips = {line.name.split("/")[0] for s in blocks.parse((FILES / name).read_text(), name, FILES / name)
            for b in s.inner if b.name.startswith("virtual_ipaddress") for line in b.inner}  # fmt: skip
    for statement in stock:
        assert statement.name not in ("virtual_server", "virtual_server_group", "local_address_group")
        for word in statement.walk():
            assert word.name.split("/")[0] not in vips and "dpdk_interface" not in word.words
            assert not any(value.endswith(".kni") for value in word.values)
    markers = [line.words for s in stock if s.name == "vrrp_instance" for b in s.inner
               if b.name == "virtual_ipaddress" for line in b.inner]  # fmt: skip
    assert len(set(markers)) == len(markers) == sum(s.name == "vrrp_instance" for s in stock)
    assert all(m[1:] == ("dev", "lo") and m[0].startswith(("169.254.", "fe80::fa7:")) for m in markers)


def test_an_instance_keeps_its_words():
    stock = bring("unicast.keepalived.conf").files["keepalived.conf"]
    for line in ("unicast_src_ip 172.16.0.1", "172.16.0.2", "172.16.0.3", "virtual_router_id 9", "priority 120",
                 "advert_int 2", "state BACKUP", "interface ens1f1", "vrrp_check_unicast_src"):  # fmt: skip
        assert re.search(rf"^\s+{re.escape(line)}$", stock, re.M), line


def test_both_nodes_of_a_pair_have_the_same_markers():
    def markers(name):
        return re.findall(r"\S+ dev lo", bring(name).files["keepalived.conf"])

    assert markers("pair-a.keepalived.conf") == markers("pair-b.keepalived.conf")
    assert len(markers("pair-a.keepalived.conf")) == 2


def test_quotes_survive():
    stock = bring("odd.keepalived.conf").files["keepalived.conf"]
    (notify,) = [w for s in blocks.parse(stock, "k") for w in s.walk() if w.name == "notify"]
    assert notify.values == ("/bin/sh -c 'echo {a} # ! b >> /tmp/x'",)


@pytest.mark.netns
@pytest.mark.parametrize("name", [n for n in GOOD if n.endswith("keepalived.conf") and not n.startswith("wrong")])
def test_a_stock_keepalived_takes_it(name, tmp_path):
    path = tmp_path / "keepalived.conf"
    stock = bring(name, nics=nics(name)).files["keepalived.conf"]
    path.write_text(re.sub(r"/etc/keepalived/\w+\.sh|/usr/local/bin/dpip", "/bin/true", stock))
    script = "ip link add ens1f0 type veth peer name ens1f1 && exec keepalived -t -f " + str(path)
    done = subprocess.run(["unshare", "-n", "sh", "-c", script], capture_output=True, text=True, timeout=60)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert not re.search(r"Unknown|error|ignoring|incompatible|[Nn]o VIP|doesn't exist", said), said


# ---- syntax ----


BROKEN = [
    ("a {\n b", ":1: the block 'a' is not closed"),
    ("a {\n}\n}", ":3: '}' without a block"),
    ("{\n}", ":1: '{' without a name"),
    ("a {} {\n}", ":1: '{' without a name"),
    ('a "b', ":1: a quoted text does not end"),
    ("include x y", ":1: include needs one file name"),
    ("include /etc/hostname", ":1: a text without a place"),
    ("a ~SEQ(x, 1, 2)", ":1: ~SEQ and ~LST"),
    ("a {\n" * 40, ":32: blocks lie too deep"),
]


@pytest.mark.parametrize(("text", "message"), BROKEN)
def test_broken_syntax_is_one_error(text, message):
    with pytest.raises(FnatError, match=re.escape("f" + message)) as caught:
        blocks.parse(text, "f")
    assert caught.value.code == "FN-1502"


def test_blocks_words_and_comments():
    text = "a 'b c' \"d \\\" e\"f g\\ h ! x {\n<init> i { j\n k # }\n}\n\nl\n{\nm<n>\n}\n$x=1 # c\no ${x}$x$y\n"
    found = [(s.line, s.words, None if s.block is None else [b.words for b in s.block]) for s in blocks.parse(text, "f")]
    assert found == [
        (1, ("a", "b c", 'd " ef', "g h"), None),
        (2, ("i",), [("j",), ("k",)]),
        (6, ("l",), [("m<n>",)]),
        (11, ("o", "11$y"), None),
    ]


def test_includes(tmp_path):
    (tmp_path / "a.conf").write_text("include b/*.inc\ninclude c.conf\n")
    with pytest.raises(FnatError, match=r"a.conf:2: include .*c.conf: No such file"):
        blocks.parse((tmp_path / "a.conf").read_text(), "a.conf", tmp_path / "a.conf")
    (tmp_path / "c.conf").write_text("d {\n include e.conf\n}\n")
    (tmp_path / "e.conf").write_text("f 1\n")
    (d,) = blocks.parse((tmp_path / "a.conf").read_text(), "a.conf", tmp_path / "a.conf")
    assert [(w.file, w.line, w.words) for w in d.inner] == [("e.conf", 1, ("f", "1"))]
    (tmp_path / "e.conf").write_text("include a.conf\n")
    with pytest.raises(FnatError, match=r"e.conf:1: include a.conf: the file includes itself"):
        blocks.parse((tmp_path / "a.conf").read_text(), "a.conf", tmp_path / "a.conf")
    (tmp_path / "e.conf").write_text("include /dev/zero\n")
    with pytest.raises(FnatError, match="not a regular file"):
        blocks.parse((tmp_path / "a.conf").read_text(), "a.conf", tmp_path / "a.conf")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("10.0.0.1", ["10.0.0.1"]),
        ("10.0.0.254-255", ["10.0.0.254", "10.0.0.255"]),
        ("10.0.0.255-10.0.1.1", ["10.0.0.255", "10.0.1.0", "10.0.1.1"]),
        ("fd00::9-a", ["fd00::9", "fd00::a"]),
        ("10.0.0.5-4", None),
        ("10.0.0.1-fd00::1", None),
        ("0.0.0.0-255.255.255.255", None),
        ("10.0.0.1-256", None),
        ("lb1", None),
    ],
)
def test_ranges(text, found):
    if found is None:
        with pytest.raises(ValueError):
            expand(text)
    else:
        assert expand(text) == found


KINDS = [
    ("global_defs {\n}\nnetif_defs {\n}", "dpvs.conf"),
    ("global_defs {\n log_level INFO\n}", "dpvs.conf"),
    ("<init> sa_pool {\n}", "dpvs.conf"),
    ("global_defs {\n}\nvrrp_instance A {\n}", "keepalived.conf"),
    ("! x\nvirtual_server 10.0.0.1 80 {", "keepalived.conf"),
    ("-A -t 10.0.0.1:80 -s rr", "ipvsadm-save"),
    ("#!/bin/sh\nsudo /usr/sbin/ipvsadm -C\n", "ipvsadm-save"),
    ("fnat dpip addr add 10.0.0.1 dev x\n", "ipvsadm-save"),
    ("", None),
    ("hello {\n}", None),
]


@pytest.mark.parametrize(("text", "kind"), KINDS)
def test_the_kind_follows_from_the_words(text, kind):
    assert guess(text) == kind


_PIECES = [
    "virtual_server", "virtual_server_group", "real_server", "local_address_group", "vrrp_instance", "global_defs",
    "virtual_ipaddress", "10.0.0.1", "10.0.0.1-300", "2001:db8::1", "80", "99999999999", "-1", "{", "}", "\n", "\n", " ", "\t",
    '"', "'", "\\", "!", "#", "<", ">", "$a", "${a}", "$a=", "@x", "include", "weight", "persistence_granularity",
    "255.255.0.255", "laddr_group_name", "g", "group", "TCP_CHECK", "connect_port", "url", "ipvs_defs", "conn", "tcp",
    "timeout", "established", "worker_defs", "worker", "type", "slave", "netif_defs", "device", "interface",
    "dpdk_interface", "virtual_router_id", "sorry_server", "deny_address_group", "daddr_group_name", "-A", "-t",
    "10.0.0.1:80", "-s", "rr", "-P", "-z", "-F", "ipvsadm", "dpip", "addr", "add", "dev", "\x00", "\x85", "\u2028", "²", "é",
]  # fmt: skip
_TEXT = st.one_of(st.text(max_size=80), st.lists(st.sampled_from(_PIECES), max_size=60).map(" ".join))


@pytest.mark.parametrize("kind", importers.KINDS)
@settings(max_examples=300, deadline=None)
@given(text=_TEXT)
def test_garbage_is_a_file_or_one_error(kind, text):
    try:
        done = text_of(text, kind, nics={"dpdk0": "eth0"})
    except (FnatError, Usage) as error:
        assert "\n" not in str(error)
        return
    config.parse(done.files["fnat.toml"])
    assert all("\n" not in str(note) and str(note).isprintable() for note in done.notes)


@pytest.mark.parametrize("name", GOOD)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_damaged_sample_is_a_file_or_one_error(name, data):
    lines = (FILES / name).read_text().splitlines()
    at = data.draw(st.integers(0, len(lines) - 1))
    parts = lines[at].split()
    if parts and data.draw(st.booleans()):
        parts[data.draw(st.integers(0, len(parts) - 1))] = data.draw(st.sampled_from(_PIECES))
        lines[at] = " ".join(parts)
    else:
        del lines[at]
    draft = Draft(nics=nics(name))
    try:
        importers.read(draft, [Source(name, "\n".join(lines), FILES / name)])
        config.parse(finish(draft).files["fnat.toml"])
    except (FnatError, Usage) as error:
        assert "\n" not in str(error)


# ---- the command ----


def fnat(*words: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fnat", "import", *words]
    return subprocess.run(command, capture_output=True, text=True, input=text, timeout=60)


SAVE = "-A -t 10.0.0.1:80 -s rr\n-P -t 10.0.0.1:80 -z 10.1.0.1 -F lan\n"


def test_exit_codes():
    sample = str(FILES / "one-arm.keepalived.conf")
    assert fnat("-", "--port", "lan=eth0", text=SAVE).returncode == 0
    done = fnat(sample)
    assert (done.returncode, done.stdout.startswith("# Imported by fnat ")) == (4, True)
    assert f"{Path(sample).name}:32: delay_loop: not carried yet: " in done.stderr
    for words_, code, message in [
        (["/nowhere"], 1, "/nowhere: No such file or directory"),
        ([str(FILES)], 1, "not a regular file"),
        ([str(FILES / "loop.keepalived.conf")], 1, "the file includes itself"),
        ([str(FILES / "unclosed.keepalived.conf")], 1, "is not closed"),
        ([], 2, "Missing argument"),
        ([str(FILES.parents[2] / "conf/fnat.toml")], 2, "say --kind"),
        ([sample, "--port", "dpdk0"], 2, "is not NAME=NIC"),
        ([sample, "--force"], 2, "--force without -o"),
        ([sample, sample, "--kind", "keepalived.conf"], 2, "--kind with several files"),
        ([sample, "--node", 'a"b'], 2, "is not a name"),
    ]:
        done = fnat(*words_)
        assert (done.returncode, done.stdout) == (code, ""), words_
        assert done.stderr.count("\n") == 1 and message in done.stderr, done.stderr


def test_files_are_written_all_or_none(tmp_path):
    sample = str(FILES / "pair-a.keepalived.conf")
    out = tmp_path / "new" / "dir"
    done = fnat(sample, "-o", str(out))
    assert done.returncode == 4
    assert done.stdout.splitlines() == [str(out / "fnat.toml"), str(out / "keepalived.conf")]
    assert sorted(os.listdir(out)) == ["fnat.toml", "keepalived.conf"]
    assert (out / "keepalived.conf").stat().st_mode & 0o777 == 0o600, "it may hold passwords"
    before = (out / "fnat.toml").read_text()
    (out / "fnat.toml").unlink()
    done = fnat(sample, "-o", str(out))
    assert (done.returncode, "keepalived.conf: exists already" in done.stderr) == (1, True)
    assert os.listdir(out) == ["keepalived.conf"], "the other one is not left either"
    (out / "fnat.toml").write_text("mine")
    assert fnat(sample, "-o", str(out)).returncode == 1
    assert (out / "fnat.toml").read_text() == "mine"
    assert fnat(sample, "-o", str(out), "--force").returncode == 4
    assert (out / "fnat.toml").read_text() == before
    assert sorted(os.listdir(out)) == ["fnat.toml", "keepalived.conf"]
    (tmp_path / "file").write_text("")
    done = fnat(sample, "-o", str(tmp_path / "file"))
    assert done.returncode == 1 and done.stderr.endswith("(FN-1501)\n")


def test_json(tmp_path):
    done = fnat(str(FILES / "two-arm.sh"), "--json")
    answer = json.loads(done.stdout)
    assert (done.returncode, done.stderr, answer["complete"]) == (4, "", False)
    assert [f["name"] for f in answer["files"]] == ["fnat.toml"]
    config.parse(answer["files"][0]["text"])
    note = next(n for n in answer["notes"] if n["line"] == 14)
    assert note["file"] == "two-arm.sh" and note["fate"] == "lost" and note["word"].startswith("dpip vlan add")
    answer = json.loads(fnat(str(FILES / "two-arm.sh"), "--json", "-o", str(tmp_path)).stdout)
    assert answer["files"] == [{"name": "fnat.toml", "path": str(tmp_path / "fnat.toml"), "text": None}]
