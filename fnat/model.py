"""The words of fnat as validated, frozen values: what operators want (Config), how they change it (Change), what they
see (views).

Values are canonical after validation: equal things are equal strings. Sequences keep the order of creation. Nothing
here reads a file, a socket or the clock. Addresses are of either family wherever one may stand; what belongs together
(a route's prefix and gateway) is of one.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Generic, Literal, NamedTuple, Protocol, Self, TypeVar, get_args, overload

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, model_validator
from pydantic_core import CoreSchema, core_schema
from typing_extensions import TypedDict

from fnat import addresses, sets
from fnat.placement import parse_cpus
from fnat.sets import AddressSet

MAX_MTU = 3500  # of an IP packet: one 4 KiB frame with headroom
MAX_SECONDS = 31_535_999  # a year less a second, the range of DPVS timeouts
LIP_PORTS = (1024, 65535)  # first and last port of a LIP
HALF_OPEN_DEFAULT = 16_384  # half-open connections of a service over all workers, unless it says otherwise

Proto = Literal["tcp", "udp", "sctp"]
PROTOS: tuple[Proto, ...] = ("tcp", "udp", "sctp")
Scheduler = Literal["rr", "wrr", "lc", "wlc", "sed", "nq", "sh", "mh", "conhash", "fo", "p2c"]
SCHEDULERS: tuple[Scheduler, ...] = get_args(Scheduler)
HASHING = ("sh", "mh", "conhash")  # schedulers that choose by who the client is
GROWING = ("wrr", "wlc", "sed", "nq", "p2c")  # those that can let a server grow to its weight
HashTarget = Literal["sip", "sip-port", "qid"]
HASH_SLOTS = 65_537  # of mh's table, when a service does not say
HashSlots = Literal[1021, 4093, 16381, 65537]
MOST_SLOTS = 256 * HASH_SLOTS  # of all mh services: 2 bytes each in the data plane's memory
ServerRole = Literal["active", "backup"]
ClientAddr = Literal[
    "none", "toa", "uoa-opp", "uoa-ipo", "proxy-v1", "proxy-v2", "proxy-v1-insecure", "proxy-v2-insecure"
]
CLIENT_ADDRS: dict[str, tuple[str, ...]] = {
    "tcp": ("none", "toa", "proxy-v1", "proxy-v2", "proxy-v1-insecure", "proxy-v2-insecure"),
    "udp": ("none", "uoa-opp", "uoa-ipo", "proxy-v2", "proxy-v2-insecure"),
    "sctp": ("none",),
}
"""How a service can tell its servers the client's address, by protocol."""
Scope = Literal["host", "link", "global", "kni_host"]


def ip(value: object) -> str:
    """The address of a host in canonical form. ValueError in words for the user."""
    return addresses.host(_text(value, "address"))


def _next_hop(value: object) -> str:
    """An address on a link: it may be a link-local one."""
    return addresses.host(_text(value, "address"), link_local=True)


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not an IPv4 {what}, and not an IPv6 one")
    return value


def _prefix(value: object) -> str:
    text = _text(value, "prefix")
    return str(addresses.network(addresses.ANY[4] if text == "default" else text))


def _mac(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}", value):
        raise ValueError(f"{value!r} is not a MAC address (aa:bb:cc:dd:ee:ff)")
    if int(value[:2], 16) & 1:
        raise ValueError(f"{value} is a group address, not the MAC address of a host")
    return value.lower()


def _pci(value: object) -> str:
    function = r"([0-9a-fA-F]{4}:)?[0-9a-fA-F]{2}:[01][0-9a-fA-F]\.[0-7]"
    if not isinstance(value, str) or not re.fullmatch(function, value):
        raise ValueError(f"{value!r} is not a PCI address (0000:5e:00.1)")
    return (value if value.count(":") == 2 else f"0000:{value}").lower()
def no_rs(value: object) -> str:
    """ "drop", "reset", or ADDRESS:PORT of a sorry server in canonical form."""
    if value in ("drop", "reset"):
        return str(value)
    try:
        host, port = addresses.split(_text(value, "endpoint"))
        if not re.fullmatch("[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
            raise ValueError
        return addresses.endpoint(ip(host), int(port))
    except ValueError:
        raise ValueError(f"{value!r} is not known; allowed: 'drop', 'reset' or the ADDRESS:PORT of a server") from None


def cpu_list(value: object) -> str:
    """ "auto", or CPUs as the kernel writes lists of them. ValueError in words for the user."""
    if value != "auto" and not (isinstance(value, str) and parse_cpus(value)):
        raise ValueError(f"{value!r} is not a list of CPUs like 1-3,5")
    return value


def _acl_entry(value: object) -> str:
    """A prefix, or set:NAME."""
    text = _text(value, "prefix")
    if text.startswith("set:"):
        return f"set:{_set_name(text[4:])}"
    return str(addresses.network(text))


def _set_name(value: object) -> str:
    if not isinstance(value, str) or not sets.NAME.fullmatch(value):
        raise ValueError(f"{value!r} is not the name of a set (a letter, then at most 30 letters, digits, or . _ -)")
    return value


def _span(value: object) -> str | None:
    if value is None:
        return None
    found, *_ = sets.parse(_text(value, "range"))
    return f"{found[0].network_address}-{found[-1].broadcast_address}"


Ip = Annotated[str, BeforeValidator(ip)]
AclEntry = Annotated[str, BeforeValidator(_acl_entry)]
AclList = Annotated[tuple[AclEntry, ...], Field(max_length=100_000)]
SetName = Annotated[str, BeforeValidator(_set_name)]
SetEntry = Annotated[str, BeforeValidator(sets.canonical)]
Span = Annotated[str | None, BeforeValidator(_span)]
NextHop = Annotated[str, BeforeValidator(_next_hop)]
Prefix = Annotated[str, BeforeValidator(_prefix)]
Mac = Annotated[str, BeforeValidator(_mac)]
Pci = Annotated[str, BeforeValidator(_pci)]
PortNumber = Annotated[int, Field(ge=1, le=65535, strict=True)]
PortText = Annotated[int, Field(ge=1, le=65535)]  # also as text, in a query
LocalPort = Annotated[int, Field(ge=1024, le=65535, strict=True)]
Weight = Annotated[int, Field(ge=0, le=65535, strict=True)]
Seconds = Annotated[int, Field(ge=0, le=MAX_SECONDS, strict=True)]
NoRs = Annotated[str, BeforeValidator(no_rs)]
Rate = Annotated[int, Field(ge=0, le=10_000_000, strict=True)]
PersistentSeconds = Annotated[int, Field(ge=0, le=31 * 86_400, strict=True)]
Many = Annotated[int, Field(ge=0, le=2**32 - 1, strict=True)]
PerClient = Annotated[int, Field(ge=0, le=2**24 - 1, strict=True)]
HalfOpen = Annotated[int, Field(ge=0, le=2**31 - 1, strict=True)]
PrefixLength = Annotated[int, Field(ge=1, le=128, strict=True)]
PORT_NAME = r"^[A-Za-z][A-Za-z0-9_.-]{0,10}$"  # NAME.kni is a device name: 15 characters
PortName = Annotated[str, Field(pattern=PORT_NAME)]
ServiceName = Annotated[str, Field(pattern=r"^[!#-\[\]-~]{0,64}$")]  # ASCII without blank, quote, backslash
NODE_WORDS = ("mgmt", "lips", "routes")  # keys of a node in the file, where its ports stand beside them


class Frozen(BaseModel):
    """Base of all values: immutable, and a key that does not exist is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


# ---- what operators want ----


class Key(NamedTuple):
    """Identity of a service."""

    proto: Proto
    vip: str
    vport: int

    def __str__(self) -> str:
        return f"{self.proto} {addresses.endpoint(self.vip, self.vport)}"


class ServiceRef(Frozen):
    """Names a service."""

    proto: Proto
    vip: Ip
    vport: PortNumber

    @property
    def key(self) -> Key:
        return Key(self.proto, self.vip, self.vport)


class Shape(ServiceRef):
    """Names a service and says how it works. half_open None: HALF_OPEN_DEFAULT, 0: unlimited. one_packet (UDP only):
    every datagram is scheduled anew. quic (UDP only): clients that move keep their RS, by connection IDs (RFC 9000) in
    DPVS's form. hash_target: what a client is to the schedulers of HASHING; hash_slots: of mh's table.
    slow_start: how long a server that comes to others grows to its weight, with the schedulers of GROWING. name: what
    the operator calls it; services with one name stand together in the file. no_rs: what becomes of a first packet when
    no RS can take it; ADDRESS:PORT: that sorry server does. persistent: seconds that a client keeps its RS after its
    last connection; persistent_mask: bits of its address that make it the same client (None: all). max_conns,
    new_per_s, per_client: connections, new ones in a second, connections of one client address, over all workers; 0:
    unlimited."""

    name: ServiceName = ""
    scheduler: Scheduler = "wrr"
    hash_target: HashTarget = "sip"
    hash_slots: HashSlots = 65537
    slow_start: Seconds = 0
    conn_timeout: Seconds = 0
    no_rs: NoRs = "drop"
    expire_quiescent: bool = False
    one_packet: bool = False
    quic: bool = False
    half_open: HalfOpen | None = None
    persistent: PersistentSeconds = 0
    persistent_mask: PrefixLength | None = None
    max_conns: Many = 0
    new_per_s: Rate = 0
    per_client: PerClient = 0
    client_addr: ClientAddr = "none"
    deny: AclList = ()  # sources whose new connections are dropped
    allow: AclList = ()  # the only sources that may open connections; empty: all

    @model_validator(mode="after")
    def _one_packet_is_udp(self) -> Self:
        if self.one_packet and self.proto != "udp":
            raise ValueError("one_packet is for UDP services only")
        if self.quic and self.proto != "udp":
            raise ValueError("quic is for UDP services only")
        if self.persistent_mask is not None and self.persistent_mask > addresses.bits(self.vip):
            raise ValueError(f"persistent_mask {self.persistent_mask} is too long for clients of {self.vip}")
        if self.quic and self.one_packet:
            raise ValueError("quic and one_packet exclude each other")
        return self

    @model_validator(mode="after")
    def _protocol_can_tell(self) -> Self:
        if self.client_addr not in CLIENT_ADDRS[self.proto]:
            can = ", ".join(CLIENT_ADDRS[self.proto])
            raise ValueError(f"client_addr {self.client_addr!r} is not for {self.proto}; allowed: {can}")
        return self


class ServerShape(Frozen):
    """How a server is used. weight 0: no new connections. A backup gets connections when no active server can take one.
    From `upper` connections on it gets no more until it has fewer than `lower` (0: three quarters of upper)."""

    weight: Weight = 1
    role: ServerRole = "active"
    upper: Many = 0
    lower: Many = 0
    max_new_per_s: Rate = 0


class Drain(Frozen):
    """A server gets no new connections; what is left `until` then (seconds since 1970, None: no end) is ended.
    keep_persistent: clients that are persistent to it still get theirs until then."""

    until: Annotated[int, Field(ge=1, strict=True)] | None = None
    keep_persistent: bool = False


class RealServer(ServerShape):
    """A server of a service."""

    rip: Ip
    rport: PortNumber
    drain: Drain | None = None

    @property
    def takes_new(self) -> bool:
        return self.weight > 0 and self.drain is None

    @model_validator(mode="after")
    def _lower_is_lower(self) -> Self:
        if self.lower > self.upper:
            above = f"lower {self.lower} is above upper {self.upper}"
            raise ValueError(above if self.upper else "lower needs an upper")
        return self

    @property
    def key(self) -> tuple[str, int]:
        return self.rip, self.rport


class LocalAddress(Frozen):
    """An address that stands for the clients towards the RSs of its family; port answers ARP or ND for it."""

    addr: Ip
    port: PortName


class Shift(Frozen):
    """Weight moves from one server of a service to another, per_min percent of what the first had, until it has none.
    started: seconds since 1970; weights: of both at the start. Weights are whole numbers: small ones move in leaps."""

    rip: Ip
    rport: PortNumber
    to_rip: Ip
    to_rport: PortNumber
    per_min: Annotated[float, Field(gt=0, le=6000)]
    started: Annotated[int, Field(ge=1, strict=True)]
    weights: tuple[Weight, Weight] | None = None  # None: as they are

    @property
    def key(self) -> tuple[str, int]:
        return self.rip, self.rport

    def moved(self, now: float) -> int:
        """The weight that has moved by now."""
        weight = self.weights[0] if self.weights else 0
        return min(weight, max(0, int(weight * (now - self.started) / 60 * self.per_min / 100 + 1e-9)))


class Service(Shape):
    """A VIP:port with its RSs and LIPs. RSs may be of another family than the VIP, and of both; each family needs
    LIPs."""

    lips: tuple[LocalAddress, ...] = ()
    servers: tuple[RealServer, ...] = ()
    shifts: tuple[Shift, ...] = ()

    @property
    def table_slots(self) -> int:
        """Slots of its scheduler's table."""
        return self.hash_slots if self.scheduler == "mh" else 0


class Address(Frozen):
    """An address that fnat owns on a port. A prefix shorter than the address is also made on-link there."""

    addr: Ip
    plen: PrefixLength = 32  # of an IPv6 address: 128
    port: PortName
    sapool: bool = False

    @model_validator(mode="before")
    @classmethod
    def _whole(cls, data: object) -> object:
        if isinstance(data, dict) and "plen" not in data and ":" in str(data.get("addr")):
            return {**data, "plen": 128}
        return data

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.plen > addresses.bits(self.addr):
            raise ValueError(f"{self.plen} is too large a prefix length for {self.addr}")
        return self

    @property
    def key(self) -> str:
        return self.addr

    @property
    def network(self) -> str:
        return str(addresses.network(f"{self.addr}/{self.plen}"))

    @property
    def makes_route(self) -> bool:
        return self.plen < addresses.bits(self.addr)


class Route(Frozen):
    """A route of the data plane. mtu 0: the port's. src: sender of ARP and ND. Of equal prefixes the lowest metric
    wins; the host's routes of one prefix and metric are hops that share the connections (ECMP)."""

    prefix: Prefix
    gateway: NextHop | None = None
    port: PortName | None = None
    src: Ip | None = None
    mtu: Annotated[int, Field(ge=0, le=MAX_MTU, strict=True)] = 0
    metric: Annotated[int, Field(ge=0, le=2**32 - 1, strict=True)] = 0
    scope: Scope | None = None  # None: global with a gateway, else link

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, data: object) -> object:
        """A zero gateway or source is how tools write that there is none; "default" is of its gateway's family."""
        if not isinstance(data, dict):
            return data
        data = {k: None if k in ("gateway", "src") and v in ("0.0.0.0", "::") else v for k, v in data.items()}
        if data.get("prefix") == "default" and ":" in str(data.get("gateway")):
            data["prefix"] = addresses.ANY[6]
        return data

    @model_validator(mode="after")
    def _one_family(self) -> Self:
        family = addresses.family(self.prefix)
        for what, address in (("gateway", self.gateway), ("src", self.src)):
            if address is not None and addresses.family(address) != family:
                raise ValueError(f"{what} {address} is not an {addresses.NAMES[family]} address, as {self.prefix} is")
        if 0 < self.mtu < addresses.LEAST_MTU[family]:
            raise ValueError(f"mtu {self.mtu} is less than {addresses.NAMES[family]}'s {addresses.LEAST_MTU[family]}")
        return self

    @property
    def key(self) -> tuple[str, int]:
        return self.prefix, self.metric


class Neighbour(Frozen):
    """The MAC address of a host on a port."""

    addr: NextHop
    mac: Mac
    port: PortName

    @property
    def key(self) -> tuple[str, str]:
        return self.port, self.addr


class HostNeighbour(Neighbour):
    """A neighbour as the host's kernel knows it; a permanent one is not asked for again (ip-neighbour(8))."""

    permanent: bool = False


class Port(Frozen):
    """A NIC the balancer uses, by the operator's name. Of nic (kernel's name), mac and pci all that are given agree."""

    name: PortName
    nic: str | None = None
    mac: Mac | None = None
    pci: Pci | None = None

    @model_validator(mode="after")
    def _not_a_key(self) -> Self:
        if self.name in NODE_WORDS:
            raise ValueError(f"{self.name!r} is a key of the node, not the name of a port")
        return self


class Timeouts(Frozen):
    """Seconds without a packet after which a connection in a state ends. See conf/fnat.toml for the reasons."""

    none: Annotated[Seconds, Field(ge=1)] = 2
    established: Annotated[Seconds, Field(ge=1)] = 7440  # RFC 5382 REQ-5: not less than 2 h 4 min
    syn_sent: Annotated[Seconds, Field(ge=1)] = 10
    syn_recv: Annotated[Seconds, Field(ge=1)] = 10
    fin_wait: Annotated[Seconds, Field(ge=1)] = 600
    time_wait: Annotated[Seconds, Field(ge=1)] = 7
    close: Annotated[Seconds, Field(ge=1)] = 3
    close_wait: Annotated[Seconds, Field(ge=1)] = 900
    last_ack: Annotated[Seconds, Field(ge=1)] = 30
    listen: Annotated[Seconds, Field(ge=1)] = 120
    synack: Annotated[Seconds, Field(ge=1)] = 30
    udp_none: Annotated[Seconds, Field(ge=1)] = 10  # resolvers ask again after 5 s
    udp_oneway: Annotated[Seconds, Field(ge=1)] = 300  # RFC 4787 REQ-5: at least 2 min, 5 min recommended
    udp_normal: Annotated[Seconds, Field(ge=1)] = 300
    udp_last: Annotated[Seconds, Field(ge=1)] = 2
    sctp_established: Annotated[Seconds, Field(ge=1)] = 900  # RFC 9260 8.3: heartbeats every 30 s
    sctp_init: Annotated[Seconds, Field(ge=1)] = 60  # RFC 9260 16: a cookie is good for 60 s
    sctp_shutdown: Annotated[Seconds, Field(ge=1)] = 60
    sctp_closed: Annotated[Seconds, Field(ge=1)] = 3
    fragments: Annotated[Seconds, Field(ge=1, le=60)] = 2  # of a datagram, from the first one that came

    def by_state(self) -> dict[str, int]:
        """Seconds by the core's name of the state, and of FRAGMENTS."""
        return {state: getattr(self, name) for name, state in STATE_OF.items()} | {"FRAGMENTS": self.fragments}


STATE_OF: dict[str, str] = {
    "none": "TCP_NONE",
    "established": "TCP_EST",
    "syn_sent": "SYN_SENT",
    "syn_recv": "SYN_RECV",
    "fin_wait": "FIN_WAIT",
    "time_wait": "TIME_WAIT",
    "close": "TCP_CLOSE",
    "close_wait": "CLOSE_WAIT",
    "last_ack": "LAST_ACK",
    "listen": "LISTEN",
    "synack": "SYNACK",
    "udp_none": "UDP_NONE",
    "udp_oneway": "UDP_ONEWAY",
    "udp_normal": "UDP_NORM",
    "udp_last": "UDP_LAST",
    "sctp_established": "SCTP_EST",
    "sctp_init": "SCTP_INIT",
    "sctp_shutdown": "SCTP_SHUTDOWN",
    "sctp_closed": "SCTP_CLOSED",
}
"""Name in the configuration -> name in the core, in the order of the core's enum."""

STATES: tuple[str, ...] = tuple(STATE_OF.values())


class Host(Frozen):
    """How fnat uses the machine. Only timeouts and unserved to announce may change while it runs."""

    routes: Literal["kernel", "manual"] = "kernel"
    idle: Literal["sleep", "spin"] = "sleep"
    conns: Annotated[int, Field(ge=1024, le=2**31 - 1, strict=True)] = 1_048_576  # over all workers
    acl_entries: Annotated[int, Field(ge=0, le=2**26, strict=True)] = 65_536  # of all address sets together
    workers: Annotated[int, Field(ge=1, le=64, strict=True)] = 1
    cpus: Annotated[str, BeforeValidator(cpu_list)] = "auto"
    steering: Literal["auto", "mask", "rss", "ntuple"] = "auto"
    unserved: Literal["reset", "drop"] = "reset"
    lports: tuple[LocalPort, LocalPort] = LIP_PORTS  # the ports that a LIP uses
    echo: Literal["always", "while-served"] = (
        "always"  # a VIP answers pings; only while a service on it has a usable RS
    )
    echo_rate: Rate = 10_000  # echo replies of each worker, packets a second; 0: unlimited
    icmp_rate: Rate = 1_000  # ICMP errors that each worker makes, likewise
    announce: bool = True  # addresses that are new on a port, to its link
    hash_key: str = ""  # of hash schedulers, the same on every node; "": one that everybody knows
    timeouts: Timeouts = Timeouts()

    @property
    def ports_of_a_lip(self) -> int:
        """Connections that one LIP carries towards one RS and protocol."""
        return self.lports[1] - self.lports[0] + 1


Role = Literal["read-only", "admin"]


class Api(Frozen):
    """How the API may be used. listen: ADDRESS:PORT for TCP with TLS, None: the unix socket alone. tokens, client_ca:
    files by which callers are known; clients: common name of a certificate -> role. group: may use the unix socket,
    beside root. max_body: bytes of a request; connections: at one time, by each of the two ways."""

    listen: str | None = None
    cert: str | None = None
    key: str | None = None
    client_ca: str | None = None
    tokens: str | None = None
    clients: dict[str, Role] = {}
    group: str | None = None
    max_body: Annotated[int, Field(ge=1024, le=2**31 - 1, strict=True)] = 64_000_000
    connections: Annotated[int, Field(ge=8, le=65536, strict=True)] = 1024


K_co = TypeVar("K_co", bound=Hashable, covariant=True)
K = TypeVar("K", bound=Hashable)
V = TypeVar("V", bound="Keyed[Any]")


class Keyed(Protocol[K_co]):
    @property
    def key(self) -> K_co: ...


class Table(Sequence[V], Generic[K, V]):
    """Values by key, in order of creation; immutable. An edited table knows what differs from the one it was made from:
    comparing the two costs as much as the edit, not as much as the table."""

    __slots__ = ("__weakref__", "_edited", "_of", "by_key")

    def __init__(self, values: Iterable[V] = ()) -> None:
        self.by_key: dict[K, V] = {value.key: value for value in values}
        self._of: weakref.ref[Table[K, V]] | None = None
        self._edited: tuple[K, ...] = ()

    def edited(self, edits: Mapping[K, V | None]) -> Self:
        """The table with these values in; None takes the key out."""
        if not edits:
            return self
        table = type(self).__new__(type(self))
        table.by_key = self.by_key.copy()
        table._of, table._edited = weakref.ref(self), tuple(edits)
        for key, value in edits.items():
            if value is not None:
                table.by_key[key] = value
            else:
                table.by_key.pop(key, None)
        return table

    def changed_since(self, old: Table[K, V]) -> Sequence[K]:
        """Every key that is in one of the two only, or with another value."""
        if self is old:
            return ()
        keys: Iterable[K] = self._edited
        if self._of is None or self._of() is not old:
            keys = [*(key for key in old.by_key if key not in self.by_key), *self.by_key]
        before, after = old.by_key.get, self.by_key.get
        return [key for key in keys if (a := after(key)) is not (b := before(key)) and a != b]

    def get(self, key: K) -> V | None:
        return self.by_key.get(key)

    def __iter__(self) -> Iterator[V]:
        return iter(self.by_key.values())

    def __len__(self) -> int:
        return len(self.by_key)

    def __contains__(self, value: object) -> bool:
        key = getattr(value, "key", None)
        return key is not None and self.by_key.get(key) == value

    @overload
    def __getitem__(self, index: int) -> V: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[V]: ...
    def __getitem__(self, index: int | slice) -> V | Sequence[V]:
        return tuple(self)[index]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Table):
            return not self.changed_since(other)
        return tuple(self) == other

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(tuple(self))

    def __deepcopy__(self, _: object) -> Self:
        return self

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: object) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(lambda v: v if isinstance(v, cls) else cls(v))


class Services(Table[Key, Service]):
    """Services, and who uses which address: VIP -> number of services, LIP -> port -> number of services.

    served: VIP -> number of services with a usable RS. table_slots: of all services together."""

    __slots__ = ("lips", "served", "table_slots", "vips")

    def __init__(self, values: Iterable[Service] = ()) -> None:
        super().__init__(values)
        self.table_slots = sum(service.table_slots for service in self)
        self.vips: dict[str, int] = {}
        self.served: dict[str, int] = {}
        self.lips: dict[str, dict[str, int]] = {}
        for service in self:
            self._count(service, 1)
            if any(server.takes_new for server in service.servers):
                _add(self.served, service.vip, 1)

    def edited(self, edits: Mapping[Key, Service | None]) -> Self:
        table = super().edited(edits)
        if table is not self:
            table.vips, table.served, table.lips = self.vips.copy(), self.served.copy(), self.lips.copy()
            table.table_slots = self.table_slots
            for key in edits:
                old, new = self.by_key.get(key), table.by_key.get(key)
                for service, step in ((old, -1), (new, 1)):
                    table.table_slots += step * service.table_slots if service is not None else 0
                    if service is not None and any(server.takes_new for server in service.servers):
                        _add(table.served, service.vip, step)
                if old is not None and new is not None and old.lips == new.lips:
                    continue
                if old is not None:
                    table._count(old, -1)
                if new is not None:
                    table._count(new, 1)
        return table

    def _count(self, service: Service, step: int) -> None:
        _add(self.vips, service.vip, step)
        for lip in service.lips:
            ports = self.lips.get(lip.addr, {}).copy()
            _add(ports, lip.port, step)
            if ports:
                self.lips[lip.addr] = ports
            else:
                del self.lips[lip.addr]


def _add(counts: dict[str, int], key: str, step: int) -> None:
    count = counts.get(key, 0) + step
    if count:
        counts[key] = count
    else:
        del counts[key]


class Acl(Frozen):
    """The general lists, asked before those of a service."""

    deny: AclList = ()
    allow: AclList = ()


class Config(Frozen):
    """All that one node shall do. `down`: ports that are administratively down."""

    node: str | None = None
    mgmt: Ip | None = None
    ports: tuple[Port, ...] = ()
    host: Host = Host()
    api: Api = Api()
    services: Services = Services()
    addresses: Table[str, Address] = Table()  # given by name; LIPs of services are owned without being listed here
    routes: Table[tuple[str, int], Route] = Table()
    neighbours: Table[tuple[str, str], Neighbour] = Table()
    down: tuple[PortName, ...] = ()
    acl: Acl = Acl()
    sets: Table[str, AddressSet] = Table()


# ---- how they change it ----


class ServiceAdd(Shape):
    op: Literal["service.add"] = "service.add"


class ServiceSet(Shape):
    """Only the fields that are given change."""

    op: Literal["service.set"] = "service.set"


class ServiceDel(ServiceRef):
    op: Literal["service.del"] = "service.del"


class ServiceClear(Frozen):
    op: Literal["service.clear"] = "service.clear"


class ServiceZero(Frozen):
    """Counters shown restart from 0: of one service, or of all when nothing is given."""

    op: Literal["service.zero"] = "service.zero"
    proto: Proto | None = None
    vip: Ip | None = None
    vport: PortNumber | None = None

    @model_validator(mode="after")
    def _all_or_none(self) -> ServiceZero:
        if len({self.proto is None, self.vip is None, self.vport is None}) != 1:
            raise ValueError("give proto, vip and vport, or none of them")
        return self

    @property
    def key(self) -> Key | None:
        if self.proto is None or self.vip is None or self.vport is None:
            return None
        return Key(self.proto, self.vip, self.vport)


class ServerAdd(RealServer):
    op: Literal["server.add"] = "server.add"
    service: ServiceRef


class ServerSet(ServerShape):
    """Only the fields that are given change."""

    op: Literal["server.set"] = "server.set"
    service: ServiceRef
    rip: Ip
    rport: PortNumber


class ServerDel(Frozen):
    op: Literal["server.del"] = "server.del"
    service: ServiceRef
    rip: Ip
    rport: PortNumber


class ServerDrain(Drain):
    """Drain a server, or drain it otherwise."""

    op: Literal["server.drain"] = "server.drain"
    service: ServiceRef
    rip: Ip
    rport: PortNumber


class ServerUndrain(Frozen):
    op: Literal["server.undrain"] = "server.undrain"
    service: ServiceRef
    rip: Ip
    rport: PortNumber


class ServerShift(Shift):
    """A change of either server's weight by hand ends it."""

    op: Literal["server.shift"] = "server.shift"
    service: ServiceRef


class ServerUnshift(Frozen):
    """The weights stay as they are now."""

    op: Literal["server.unshift"] = "server.unshift"
    service: ServiceRef
    rip: Ip
    rport: PortNumber


class LipAdd(LocalAddress):
    op: Literal["lip.add"] = "lip.add"
    service: ServiceRef


class LipDel(Frozen):
    op: Literal["lip.del"] = "lip.del"
    service: ServiceRef
    addr: Ip
    port: PortName | None = None


class AddrAdd(Address):
    op: Literal["addr.add"] = "addr.add"


class AddrDel(Address):
    op: Literal["addr.del"] = "addr.del"


class AddrFlush(Frozen):
    """family None: both."""

    op: Literal["addr.flush"] = "addr.flush"
    port: PortName
    family: addresses.Family | None = None


class RouteAdd(Route):
    op: Literal["route.add"] = "route.add"


class RouteSet(Route):
    op: Literal["route.set"] = "route.set"


class RouteDel(Route):
    """Deletes the route of this prefix and metric; whatever else is given must agree."""

    op: Literal["route.del"] = "route.del"


class RouteFlush(Frozen):
    """port, family None: all."""

    op: Literal["route.flush"] = "route.flush"
    port: PortName | None = None
    family: addresses.Family | None = None


class NeighAdd(Neighbour):
    op: Literal["neigh.add"] = "neigh.add"


class NeighDel(Frozen):
    op: Literal["neigh.del"] = "neigh.del"
    addr: NextHop
    port: PortName
    mac: Mac | None = None


class LinkSet(Frozen):
    op: Literal["link.set"] = "link.set"
    port: PortName
    up: bool


class AclAdd(Frozen):
    """service None: to the general list."""

    op: Literal["acl.add"] = "acl.add"
    list: Literal["deny", "allow"]
    entry: AclEntry
    service: ServiceRef | None = None


class AclDel(Frozen):
    op: Literal["acl.del"] = "acl.del"
    list: Literal["deny", "allow"]
    entry: AclEntry
    service: ServiceRef | None = None


class AclRecheck(Frozen):
    """Connections that the lists of now would not let open are closed; nothing of it is remembered."""

    op: Literal["acl.recheck"] = "acl.recheck"


class SetAdd(Frozen):
    """span: the range of a bitmap:ip."""

    op: Literal["set.add"] = "set.add"
    name: SetName
    type: Literal["hash:net", "hash:ip", "bitmap:ip"] = "hash:net"
    span: Span = None
    entries: tuple[SetEntry, ...] = ()

    @model_validator(mode="after")
    def _span_is_for_a_bitmap(self) -> Self:
        if (self.type == "bitmap:ip") != (self.span is not None):
            raise ValueError("a span is for bitmap:ip, and compulsory there")
        return self


class SetDel(Frozen):
    op: Literal["set.del"] = "set.del"
    name: SetName


class SetFlush(Frozen):
    op: Literal["set.flush"] = "set.flush"
    name: SetName


class SetEntryAdd(Frozen):
    op: Literal["set.entry.add"] = "set.entry.add"
    set: SetName
    entries: tuple[SetEntry, ...]


class SetEntryDel(Frozen):
    op: Literal["set.entry.del"] = "set.entry.del"
    set: SetName
    entries: tuple[SetEntry, ...]


Change = Annotated[
    ServiceAdd
    | ServiceSet
    | ServiceDel
    | ServiceClear
    | ServiceZero
    | ServerAdd
    | ServerSet
    | ServerDel
    | ServerDrain
    | ServerUndrain
    | ServerShift
    | ServerUnshift
    | LipAdd
    | LipDel
    | AddrAdd
    | AddrDel
    | AddrFlush
    | RouteAdd
    | RouteSet
    | RouteDel
    | RouteFlush
    | NeighAdd
    | NeighDel
    | LinkSet
    | AclAdd
    | AclDel
    | AclRecheck
    | SetAdd
    | SetDel
    | SetFlush
    | SetEntryAdd
    | SetEntryDel,
    Field(discriminator="op"),
]

CHANGE: TypeAdapter[Change] = TypeAdapter(Change)
CHANGES: TypeAdapter[list[Change]] = TypeAdapter(list[Change])


class ChangeRequest(Frozen):
    """Body of POST /v1/changes: all of them or none."""

    changes: tuple[Change, ...]
    dry_run: bool = False


def change_as_json(change: Change) -> dict[str, Any]:
    """A change as JSON, with only the fields that were given."""
    given: dict[str, Any] = change.model_dump(mode="json", exclude_unset=True)
    return {"op": change.op, **given}


class FileRequest(Frozen):
    """Body of POST /v1/config/apply and /v1/config/diff: the text of a configuration file; None: that of the file that
    fnat was started with. confirm: seconds after which it goes away unless it is confirmed; 0: it stays."""

    text: str | None = None
    source: str = "the request"
    confirm: Annotated[int, Field(ge=0, le=86_400, strict=True)] = 0


class ConnFilter(Frozen):
    """Which connections are asked for; addresses may be prefixes."""

    worker: int | None = None
    proto: Proto | None = None
    vip: Prefix | None = None
    vport: PortText | None = None
    rip: Prefix | None = None
    rport: PortText | None = None
    lip: Prefix | None = None
    lport: PortText | None = None
    cip: Prefix | None = None
    cport: PortText | None = None
    state: str | None = None


class ConnKill(ConnFilter):
    """Ends the connections that pass the filter. reset: both ends of TCP are told; UDP and SCTP end silently. all: no
    filter is no mistake."""

    reset: bool = True
    reason: Annotated[str, Field(min_length=1, max_length=200)]
    all: bool = False


class ConnKilled(TypedDict):
    ended: int


class ConnQuery(ConnFilter):
    """Which page of them; cursor: `next` of the page before."""

    cursor: str | None = None
    limit: Annotated[int, Field(ge=1, le=65536)] = 1024


# ---- what the data plane says of its ports ----


class PortInfo(BaseModel):
    """An open port, as the data plane writes it to its ports file."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: int
    name: str
    kind: str = "xdp"
    device: str = ""
    mac: str = "02:00:00:00:00:00"
    mtu: int = 1500
    ifindex: int = 0
    mode: str = ""
    zero_copy: bool = False
    exclusive: bool = False
    queues: int = 1


# ---- what listings show (JSON of the API) ----


class StatsView(TypedDict):
    conns: int
    in_packets: int
    out_packets: int
    in_bytes: int
    out_bytes: int
    active: int
    inactive: int


class RateView(TypedDict):
    """Per second; bps are bytes."""

    cps: int
    in_pps: int
    out_pps: int
    in_bps: int
    out_bps: int


class DrainView(TypedDict):
    """left: connections; oldest: age in seconds of the oldest of them, None: there is none; ends_in: seconds until none
    is left, as it looks, None: nobody knows."""

    until: int | None
    keep_persistent: bool
    left: int
    oldest: int | None
    ends_in: float | None


class ServerView(TypedDict):
    rip: str
    rport: int
    weight: int
    role: str
    upper: int
    lower: int
    max_new_per_s: int
    overloaded: bool
    persistent: int  # clients that are persistent to it
    drain: DrainView | None
    shift: str | None  # what is said of a shift of weight away from it
    stats: StatsView
    rate: RateView


class LipView(TypedDict):
    """conns and conflicts (new connections that found no free port) are of the LIP over all services."""

    addr: str
    port: str
    conns: int
    conflicts: int


class AclHits(TypedDict):
    """New connections refused by a list."""

    denied: int
    not_allowed: int


class AclView(TypedDict):
    """The general lists."""

    deny: list[str]
    allow: list[str]
    hits: AclHits
    closed: int  # connections that a recheck has closed


class AclTest(TypedDict):
    """May this address open a connection? by: the list and the entry that decide."""

    addr: str
    admitted: bool
    by: str


class SetView(TypedDict):
    """used_by: the general lists and services that name it."""

    name: str
    type: str
    span: str | None
    entries: int
    used_by: int


class SetPage(TypedDict):
    entries: list[str]
    next: int | None


class ServiceView(TypedDict):
    name: str
    proto: str
    vip: str
    vport: int
    scheduler: str
    hash_target: str
    hash_slots: int
    slow_start: int
    conn_timeout: int
    no_rs: str
    expire_quiescent: bool
    one_packet: bool
    quic: bool
    half_open: int | None
    persistent: int
    persistent_mask: int | None
    max_conns: int
    new_per_s: int
    per_client: int
    client_addr: str
    deny: list[str]
    allow: list[str]
    acl: AclHits
    stats: StatsView
    rate: RateView
    lips: list[LipView]
    servers: list[ServerView]


class ConnView(TypedDict):
    worker: int
    proto: str
    state: str
    remaining: int
    age: int
    cip: str
    cport: int
    vip: str
    vport: int
    lip: str
    lport: int
    rip: str
    rport: int
    in_packets: int
    out_packets: int
    in_bytes: int
    out_bytes: int


class ConnCount(TypedDict):
    conns: int


class ConnPage(TypedDict):
    conns: list[ConnView]
    next: str | None


class AddressView(TypedDict):
    """sa_free: free ports of a LIP towards the distinct RSs of the services that use it."""

    addr: str
    plen: int
    port: str
    scope: str
    sapool: bool
    sa_used: int
    sa_free: int
    sa_miss: int


class RouteView(TypedDict):
    prefix: str
    gateway: str | None
    src: str | None
    port: str | None
    mtu: int
    metric: int
    scope: str
    proto: str


class NeighbourView(TypedDict):
    addr: str
    mac: str
    state: str
    port: str
    static: bool


class PortStatsView(TypedDict):
    ipackets: int
    opackets: int
    ibytes: int
    obytes: int
    ierrors: int
    oerrors: int
    imissed: int
    rx_nombuf: int


class FramesView(TypedDict):
    avail: int
    inuse: int


class PortView(TypedDict):
    id: int
    name: str
    kind: str
    device: str
    mac: str
    mtu: int
    up: bool
    speed: int
    duplex: str
    mode: str
    zero_copy: bool
    exclusive: bool
    queues: int
    steering: dict[str, str]  # by flow (tcp4 udp4 tcp6 udp6), how answers reach their worker
    stats: PortStatsView
    frames: FramesView


class HeadroomRow(TypedDict):
    """Local ports of a LIP towards an RS of a service. busiest: ports in use by the worker that uses most, of `share`
    that each worker may use; full_in: seconds until none is free at the present rate, None: never."""

    proto: str
    vip: str
    vport: int
    lip: str
    rip: str
    rport: int
    used: int
    free: int
    busiest: int
    share: int
    full_in: float | None


class HeadroomView(TypedDict):
    """rows: the fewest free ports first. The forecasts are over everything, also what rows leave out."""

    rows: list[HeadroomRow]
    ports_full_in: float | None
    conns: int
    capacity: int
    conns_full_in: float | None


class StepsView(TypedDict):
    """Turns of a worker by duration; [0]: undisturbed ones, [1]: those during which the system took the CPU away.
    count[k][i]: turns of 2^i to 2^(i+1) ns."""

    count: list[list[int]]
    max_ns: list[int]
    sum_ns: list[int]


class WorkerView(TypedDict):
    index: int
    cpu: int | None
    counters: dict[str, int]
    steps: StepsView


class PidsView(TypedDict):
    keeper: int | None
    dataplane: int | None
    control: int | None


class StatusView(TypedDict):
    version: str
    pids: PidsView
    uptime: float
    workers: int
    conns: int
    capacity: int
    snapshot: int
    huge_pages: int
    longest_step_ns: list[int]  # undisturbed, preempted
    steering: dict[str, dict[str, str]]  # by port and flow, how answers reach their worker


class AppliedView(TypedDict):
    applied: int
    snapshot: int


class ServiceImpact(TypedDict):
    """What a new configuration does to a service. conns: open now; cut: of them, those that end at once or find nobody;
    left: those whose server gets no new ones any more; slots: of the hash table of its scheduler, (moved, all)."""

    service: str
    name: str
    conns: int
    cut: int
    left: int
    slots: tuple[int, int] | None
    without_rs: bool


class DiffView(TypedDict):
    """lines: what changes; conflicts: run-time changes that are kept against the file, or cannot be any more; restart:
    what waits for the next start."""

    lines: list[str]
    changes: int
    impact: list[ServiceImpact]
    vips_without_rs: list[str]
    conflicts: list[str]
    restart: list[str]
    warnings: list[str]


class ApplyView(DiffView):
    generation: int
    snapshot: int
    confirm_in: float | None


class GenerationView(TypedDict):
    number: int
    at: float
    why: str
    source: str
    in_force: bool


class ConfigView(TypedDict):
    """text: of what was asked for; overlay: run-time changes in words, of --diff."""

    text: str
    generation: int | None
    source: str | None
    file_edited: bool
    confirm_in: float | None
    overlay: list[str]
    restart: list[str]
