"""The file says all that a node can hold: parse(dump(c)) == c, whatever c is, and dump says the same again."""

import string
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from fnat import addresses as words
from fnat import config, plan
from fnat.errors import ChangeError
from fnat.model import (
    CHANGES,
    CLIENT_ADDRS,
    GROWING,
    HASHING,
    PROTOS,
    SCHEDULERS,
    Address,
    Config,
    Host,
    LocalAddress,
    Neighbour,
    Port,
    RealServer,
    Route,
    Service,
    Services,
    Table,
    Timeouts,
)

PORTS = ("wan", "lan", "x-1", "dpdk0")
VIPS = [f"198.51.100.{n}" for n in range(1, 6)] + ["2001:db8:1::80", "2001:db8:1::81"]
LIPS = [f"10.31.101.{n}" for n in (1, 2, 3, 5, 254, 255)] + ["10.31.102.0"] + [f"fd00::{n:x}" for n in (1, 2, 9, 16)]
RIPS = ["10.31.2.11", "10.31.2.12", "fd00:32::13"]
NAME = st.sampled_from(["", "web", "web-2", "dns", "a.b", "tcp-198.51.100.1-80", "-", "[x]:1", "x=#'"]) | st.text(
    "".join(c for c in string.printable if c.isprintable() and c not in ' "\\'), max_size=64
)
MACS = st.integers(0, 2**40 - 1).map(lambda n: "02:" + ":".join(f"{n:010x}"[i : i + 2] for i in range(0, 10, 2)))


LISTS = st.lists(
    st.sampled_from(["203.0.113.0/24", "198.51.100.7/32", "2001:db8::/32", "set:bad", "set:a.b"]), max_size=3, unique=True
).map(tuple)
SETS = {"bad": ["203.0.113.0/24", "203.0.113.9/32 nomatch"], "a.b": [], "six": ["2001:db8:bad::/48", "10.0.0.0/8"]}


@st.composite
def ports(draw):
    names = draw(st.lists(st.sampled_from(PORTS), min_size=1, max_size=4, unique=True))
    nic = st.none() | st.text(string.printable + "äß漢\x7f", max_size=15)
    pci = st.sampled_from([None, "0000:5e:00.1", "0001:00:1f.7"])
    made = [Port(name=name, nic=draw(nic), mac=draw(st.none() | MACS), pci=draw(pci)) for name in names]
    return tuple(p if p.nic or p.mac or p.pci else p.model_copy(update={"nic": "eth0"}) for p in made)


def host(draw):
    seconds = st.integers(1, 60)
    times = Timeouts(**{name: draw(seconds) for name in Timeouts.model_fields if draw(st.booleans())})
    first, last = sorted(draw(st.tuples(st.integers(1024, 65535), st.integers(1024, 65535))))
    return Host(
        routes=draw(st.sampled_from(["kernel", "manual"])),
        idle=draw(st.sampled_from(["sleep", "spin"])),
        conns=draw(st.integers(1024, 2**31 - 1)),
        workers=draw(st.integers(1, 64)),
        cpus=draw(st.sampled_from(["auto", "1-3,5"])),
        steering=draw(st.sampled_from(["auto", "mask", "rss", "ntuple"])),
        unserved=draw(st.sampled_from(["reset", "drop"])),
        lports=(first, last),
        echo=draw(st.sampled_from(["always", "while-served"])),
        echo_rate=draw(st.integers(0, 10_000_000)),
        icmp_rate=draw(st.integers(0, 10_000_000)),
        announce=draw(st.booleans()),
        acl_entries=draw(st.integers(1024, 2**20)),
        hash_key=draw(st.sampled_from(["", "of \"us\"", "#'"])),
        timeouts=times,
    )


@st.composite
def shapes(draw):
    """What several services of one name may share."""
    lips = draw(st.lists(st.sampled_from(LIPS), min_size=1, max_size=6, unique=True))
    families = {words.family(lip) for lip in lips}
    rips = [rip for rip in RIPS if words.family(rip) in families]
    keys = draw(st.lists(st.tuples(st.sampled_from(rips), st.integers(1, 65535)), max_size=4, unique=True))
    scheduler = draw(st.sampled_from(SCHEDULERS))
    many = st.sampled_from([0, 1, 2**32 - 1])
    fields = {
        "name": draw(NAME),
        "scheduler": scheduler,
        "hash_target": draw(st.sampled_from(["sip", "sip-port"])) if scheduler in HASHING else "sip",
        "hash_slots": draw(st.sampled_from([1021, 65537])) if scheduler == "mh" else 65537,
        "slow_start": draw(st.sampled_from([0, 30])) if scheduler in GROWING else 0,
        "conn_timeout": draw(st.sampled_from([0, 1, 31_535_999])),
        "no_rs": draw(st.sampled_from(["drop", "reset", *(words.endpoint(rip, 9) for rip in rips)])),
        "expire_quiescent": draw(st.booleans()),
        "half_open": draw(st.none() | st.integers(0, 2**31 - 1)),
        "persistent": draw(st.sampled_from([0, 1, 360])),
        "persistent_mask": draw(st.none() | st.integers(1, 32)),
        "max_conns": draw(many),
        "new_per_s": draw(st.sampled_from([0, 1, 10_000_000])),
        "per_client": draw(st.sampled_from([0, 1, 200])),
        "deny": draw(LISTS),
        "allow": draw(LISTS),
    }
    servers = []
    for rip, rport in keys:
        upper = draw(many)
        limits = {"upper": upper, "lower": draw(st.sampled_from([0, upper])), "max_new_per_s": draw(st.integers(0, 9))}
        role, weight = draw(st.sampled_from(["active", "backup"])), draw(st.integers(0, 65535))
        servers.append(RealServer(rip=rip, rport=rport, weight=weight, role=role, **limits))
    return fields, lips, tuple(servers)


@st.composite
def services(draw, names):
    lip_port = {lip: draw(st.sampled_from(names)) for lip in LIPS}
    found = {}
    for fields, lips, servers in draw(st.lists(shapes(), max_size=4)):
        for _ in range(draw(st.integers(1, 4))):
            proto = draw(st.sampled_from(PROTOS))
            udp = {}
            if proto == "udp":
                udp = draw(st.sampled_from([{}, {"quic": True}, {"one_packet": True}]))
            service = Service(
                proto=proto,
                vip=draw(st.sampled_from(VIPS)),
                vport=draw(st.sampled_from([1, 80, 443, 65535])),
                client_addr=draw(st.sampled_from(CLIENT_ADDRS[proto])),
                lips=tuple(LocalAddress(addr=lip, port=lip_port[lip]) for lip in lips),
                servers=servers,
                **{**fields, **udp},
            )
            found[service.key] = service
    return Services(found.values())


@st.composite
def configs(draw):
    """Whatever a node can hold: made as changes make it, so that it holds together."""
    nics = draw(ports())
    names = [port.name for port in nics]
    port = st.sampled_from(names)
    made = draw(services(names))
    lip_port = {lip.addr: lip.port for service in made for lip in service.lips}
    addresses = {}
    for addr in draw(st.lists(st.sampled_from([*VIPS, *LIPS, "192.0.2.7", "2001:db8:7::7"]), max_size=8)):
        plen = draw(st.integers(1, words.bits(addr)))
        sapool = addr not in VIPS and draw(st.booleans())
        addresses[addr] = Address(addr=addr, plen=plen, port=lip_port.get(addr) or draw(port), sapool=sapool)
    base = Config(
        node=draw(st.none() | st.sampled_from(["lb1", "lb.example", "a b\"'\\"])),
        mgmt=draw(st.none() | st.sampled_from(["192.0.2.1", "2001:db8:9::1"])),
        ports=nics,
        host=host(draw),
    )
    sets = [{"op": "set.add", "name": name, "entries": entries} for name, entries in SETS.items()]
    base = plan.apply(base, CHANGES.validate_python(sets)).model_copy(update={"services": made})
    lists = {"deny": draw(LISTS), "allow": draw(LISTS)}
    changes = [{"op": "acl.add", "list": name, "entry": e} for name, entries in lists.items() for e in entries]
    changes += [{"op": "addr.add", **a.model_dump()} for a in addresses.values()]
    for n in range(draw(st.integers(0, 3))):
        gateway = draw(st.sampled_from([None, "192.0.2.254", "203.0.113.1"]))
        route = Route(prefix=f"10.{n}.0.0/16", gateway=gateway, port=draw(port), metric=draw(st.integers(0, 2**32 - 1)))
        scope = draw(st.sampled_from([None, "kni_host"])) if gateway is None else None
        mtu = draw(st.sampled_from([0, 68, 3500]))
        src = draw(st.sampled_from([None, "192.0.2.7"]))
        fields = {**route.model_dump(), "scope": scope, "mtu": mtu, "src": src}
        changes.append({"op": "route.add", **fields})
    for addr in draw(st.lists(st.sampled_from(["192.0.2.254", "fe80::1", "2001:db8::9"]), max_size=3, unique=True)):
        changes.append({"op": "neigh.add", **Neighbour(addr=addr, mac=draw(MACS), port=draw(port)).model_dump()})
    for name in names:
        changes.append({"op": "link.set", "port": name, "up": draw(st.booleans())})
    for change in CHANGES.validate_python(changes):
        try:
            base = plan.apply(base, [change])
        except ChangeError:
            continue  # such as the network's own address: no valid config has it
    return base


@settings(max_examples=300, deadline=None)
@given(configs())
def test_what_is_dumped_is_read_the_same(c):
    text = config.dump(c)
    again = config.parse(text, "f.toml").config
    for name, value in c:
        assert getattr(again, name) == value, f"{name}\n{text}"
    assert again == c
    assert config.dump(again) == text


def test_every_field_is_drawn():
    """A new field of a service, a server or the host has its row above, or is of connections and the moment."""
    text = Path(__file__).read_text()
    fields = {*plan.SERVICE_FIELDS, *plan.SERVER_FIELDS, *Host.model_fields}
    assert {name for name in fields if f'"{name}"' not in text and f"{name}=" not in text} == set()


def test_table_of_nothing_is_a_file():
    assert config.parse(config.dump(Config())).config == Config()
    assert Table() == Config().addresses
