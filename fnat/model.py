"""The words of fnat as validated, frozen values: what operators want (Config), how they change it (Change), what they
see (views).

Values are canonical after validation: equal things are equal strings. Sequences keep the order of creation. Nothing
here reads a file, a socket or the clock. IPv4 only: an IPv6 address is refused by name, so nobody hunts for a typo.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, model_validator
from typing_extensions import TypedDict

from fnat.placement import parse_cpus

NO_IPV6 = "IPv6 is not available in this version"
MAX_SECONDS = 31_535_999  # a year less a second, the range of DPVS timeouts
LIP_PORTS = (1024, 65535)  # first and last port of a LIP
HALF_OPEN_DEFAULT = 16_384  # half-open connections of a service over all workers, unless it says otherwise

Proto = Literal["tcp", "udp"]
Scheduler = Literal["rr", "wrr"]
NoRs = Literal["drop", "reset"]
Scope = Literal["host", "link", "global", "kni_host"]


def ipv4(value: object) -> str:
    """The address in canonical form, of a host. ValueError in words for the user."""
    text = value if isinstance(value, str) else ""
    if ":" in text:
        raise ValueError(NO_IPV6)
    try:
        address = ipaddress.IPv4Address(text)
    except ValueError:
        raise ValueError(f"{value!r} is not an IPv4 address") from None
    if address.is_multicast or address.is_loopback or address.is_unspecified or int(address) == 0xFFFFFFFF:
        raise ValueError(f"{value} is not an address of a host")
    return str(address)


def _prefix(value: object) -> str:
    text = value if isinstance(value, str) else ""
    if ":" in text:
        raise ValueError(NO_IPV6)
    try:
        return str(ipaddress.IPv4Network("0.0.0.0/0" if text == "default" else text, strict=False))
    except ValueError:
        raise ValueError(f"{value!r} is not an IPv4 prefix") from None


def _mac(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}", value):
        raise ValueError(f"{value!r} is not a MAC address (aa:bb:cc:dd:ee:ff)")
    if int(value[:2], 16) & 1:
        raise ValueError(f"{value} is a group address, not the MAC address of a host")
    return value.lower()


def cpu_list(value: object) -> str:
    """ "auto", or CPUs as the kernel writes lists of them. ValueError in words for the user."""
    if value != "auto" and not (isinstance(value, str) and parse_cpus(value)):
        raise ValueError(f"{value!r} is not a list of CPUs like 1-3,5")
    return value


IPv4 = Annotated[str, BeforeValidator(ipv4)]
Prefix = Annotated[str, BeforeValidator(_prefix)]
Mac = Annotated[str, BeforeValidator(_mac)]
PortNumber = Annotated[int, Field(ge=1, le=65535, strict=True)]
LocalPort = Annotated[int, Field(ge=1024, le=65535, strict=True)]
Weight = Annotated[int, Field(ge=0, le=65535, strict=True)]
Seconds = Annotated[int, Field(ge=0, le=MAX_SECONDS, strict=True)]
HalfOpen = Annotated[int, Field(ge=0, le=2**31 - 1, strict=True)]
PrefixLength = Annotated[int, Field(ge=1, le=32, strict=True)]
PortName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_.-]{0,10}$")]  # NAME.kni is a device name: 15 characters


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
        return f"{self.proto} {self.vip}:{self.vport}"


class ServiceRef(Frozen):
    """Names a service."""

    proto: Proto
    vip: IPv4
    vport: PortNumber

    @property
    def key(self) -> Key:
        return Key(self.proto, self.vip, self.vport)


class RealServer(Frozen):
    """A server of a service; weight 0 gets no new connections."""

    rip: IPv4
    rport: PortNumber
    weight: Weight = 1

    @property
    def key(self) -> tuple[str, int]:
        return self.rip, self.rport


class LocalAddress(Frozen):
    """An address that stands for the clients towards the RSs; port answers ARP for it."""

    addr: IPv4
    port: PortName


class Service(ServiceRef):
    """A VIP:port with its RSs and LIPs. half_open None: HALF_OPEN_DEFAULT, 0: unlimited."""

    scheduler: Scheduler = "wrr"
    conn_timeout: Seconds = 0
    no_rs: NoRs = "drop"
    expire_quiescent: bool = False
    half_open: HalfOpen | None = None
    lips: tuple[LocalAddress, ...] = ()
    servers: tuple[RealServer, ...] = ()


class Address(Frozen):
    """An address that fnat owns on a port. plen < 32 also makes its prefix on-link there."""

    addr: IPv4
    plen: PrefixLength = 32
    port: PortName
    sapool: bool = False

    @property
    def network(self) -> str:
        return str(ipaddress.IPv4Network(f"{self.addr}/{self.plen}", strict=False))


class Route(Frozen):
    """A route of the data plane. mtu 0: the port's. src: sender of ARP. Of equal prefixes the lowest metric wins."""

    prefix: Prefix
    gateway: IPv4 | None = None
    port: PortName | None = None
    src: IPv4 | None = None
    mtu: Annotated[int, Field(ge=0, le=3500, strict=True)] = 0
    metric: Annotated[int, Field(ge=0, le=2**32 - 1, strict=True)] = 0
    scope: Scope | None = None  # None: global with a gateway, else link

    @model_validator(mode="before")
    @classmethod
    def _zero_is_none(cls, data: object) -> object:
        """0.0.0.0 as gateway or source is how tools write that there is none."""
        if isinstance(data, dict):
            return {k: None if k in ("gateway", "src") and v == "0.0.0.0" else v for k, v in data.items()}
        return data

    @property
    def key(self) -> tuple[str, int]:
        return self.prefix, self.metric


class Neighbour(Frozen):
    """The MAC address of a host on a port."""

    addr: IPv4
    mac: Mac
    port: PortName


class Port(Frozen):
    """A NIC the balancer uses, by the operator's name. nic and mac must agree when both are given."""

    name: PortName
    nic: str | None = None
    mac: Mac | None = None


class Timeouts(Frozen):
    """Seconds without a packet after which a connection in a state ends. See conf/fnat.toml for the reasons."""

    none: Annotated[Seconds, Field(ge=1)] = 2
    established: Annotated[Seconds, Field(ge=1)] = 7440  # RFC 5382 REQ-5: not less than 2 h 4 min
    syn_sent: Annotated[Seconds, Field(ge=1)] = 10
    syn_recv: Annotated[Seconds, Field(ge=1)] = 10
    fin_wait: Annotated[Seconds, Field(ge=1)] = 600
    time_wait: Annotated[Seconds, Field(ge=1)] = 7
    close: Annotated[Seconds, Field(ge=1)] = 3
    close_wait: Annotated[Seconds, Field(ge=1)] = 600
    last_ack: Annotated[Seconds, Field(ge=1)] = 30
    listen: Annotated[Seconds, Field(ge=1)] = 120
    synack: Annotated[Seconds, Field(ge=1)] = 30
    udp_none: Annotated[Seconds, Field(ge=1)] = 2
    udp_oneway: Annotated[Seconds, Field(ge=1)] = 300  # RFC 4787 REQ-5: at least 2 min, 5 min recommended
    udp_normal: Annotated[Seconds, Field(ge=1)] = 300
    udp_last: Annotated[Seconds, Field(ge=1)] = 2

    def by_state(self) -> dict[str, int]:
        """Seconds by the core's name of the state."""
        return {state: getattr(self, name) for name, state in STATE_OF.items()}


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
}
"""Name in the configuration -> name in the core, in the order of the core's enum."""

STATES: tuple[str, ...] = tuple(STATE_OF.values())


class Host(Frozen):
    """How fnat uses the machine. Only timeouts, unserved and lports may change while it runs."""

    routes: Literal["kernel", "manual"] = "kernel"
    idle: Literal["sleep", "spin"] = "sleep"
    conns: Annotated[int, Field(ge=1024, le=2**31 - 1, strict=True)] = 1_048_576  # over all workers
    workers: Annotated[int, Field(ge=1, le=64, strict=True)] = 1
    cpus: Annotated[str, BeforeValidator(cpu_list)] = "auto"
    steering: Literal["auto", "mask", "rss", "ntuple"] = "auto"
    unserved: Literal["reset", "drop"] = "reset"
    lports: tuple[LocalPort, LocalPort] = LIP_PORTS  # the ports that a LIP uses
    timeouts: Timeouts = Timeouts()

    @property
    def ports_of_a_lip(self) -> int:
        """Connections that one LIP carries towards one RS and protocol."""
        return self.lports[1] - self.lports[0] + 1


class Config(Frozen):
    """All that one node shall do. `down`: ports that are administratively down."""

    node: str | None = None
    mgmt: IPv4 | None = None
    ports: tuple[Port, ...] = ()
    host: Host = Host()
    services: tuple[Service, ...] = ()
    addresses: tuple[Address, ...] = ()  # given by name; LIPs of services are owned without being listed here
    routes: tuple[Route, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    down: tuple[PortName, ...] = ()


# ---- how they change it ----


class ServiceAdd(ServiceRef):
    op: Literal["service.add"] = "service.add"
    scheduler: Scheduler = "wrr"
    conn_timeout: Seconds = 0
    no_rs: NoRs = "drop"
    expire_quiescent: bool = False
    half_open: HalfOpen | None = None


class ServiceSet(ServiceRef):
    """Only the fields that are given change."""

    op: Literal["service.set"] = "service.set"
    scheduler: Scheduler = "wrr"
    conn_timeout: Seconds = 0
    no_rs: NoRs = "drop"
    expire_quiescent: bool = False
    half_open: HalfOpen | None = None


class ServiceDel(ServiceRef):
    op: Literal["service.del"] = "service.del"


class ServiceClear(Frozen):
    op: Literal["service.clear"] = "service.clear"


class ServiceZero(Frozen):
    """Counters shown restart from 0: of one service, or of all when nothing is given."""

    op: Literal["service.zero"] = "service.zero"
    proto: Proto | None = None
    vip: IPv4 | None = None
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


class ServerSet(Frozen):
    op: Literal["server.set"] = "server.set"
    service: ServiceRef
    rip: IPv4
    rport: PortNumber
    weight: Weight = 1


class ServerDel(Frozen):
    op: Literal["server.del"] = "server.del"
    service: ServiceRef
    rip: IPv4
    rport: PortNumber


class LipAdd(LocalAddress):
    op: Literal["lip.add"] = "lip.add"
    service: ServiceRef


class LipDel(Frozen):
    op: Literal["lip.del"] = "lip.del"
    service: ServiceRef
    addr: IPv4
    port: PortName | None = None


class AddrAdd(Address):
    op: Literal["addr.add"] = "addr.add"


class AddrDel(Address):
    op: Literal["addr.del"] = "addr.del"


class AddrFlush(Frozen):
    op: Literal["addr.flush"] = "addr.flush"
    port: PortName


class RouteAdd(Route):
    op: Literal["route.add"] = "route.add"


class RouteSet(Route):
    op: Literal["route.set"] = "route.set"


class RouteDel(Route):
    """Deletes the route of this prefix and metric; whatever else is given must agree."""

    op: Literal["route.del"] = "route.del"


class RouteFlush(Frozen):
    op: Literal["route.flush"] = "route.flush"
    port: PortName | None = None


class NeighAdd(Neighbour):
    op: Literal["neigh.add"] = "neigh.add"


class NeighDel(Frozen):
    op: Literal["neigh.del"] = "neigh.del"
    addr: IPv4
    port: PortName
    mac: Mac | None = None


class LinkSet(Frozen):
    op: Literal["link.set"] = "link.set"
    port: PortName
    up: bool


Change = Annotated[
    ServiceAdd
    | ServiceSet
    | ServiceDel
    | ServiceClear
    | ServiceZero
    | ServerAdd
    | ServerSet
    | ServerDel
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
    | LinkSet,
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


class ServerView(TypedDict):
    rip: str
    rport: int
    weight: int
    stats: StatsView
    rate: RateView


class LipView(TypedDict):
    """conns and conflicts (new connections that found no free port) are of the LIP over all services."""

    addr: str
    port: str
    conns: int
    conflicts: int


class ServiceView(TypedDict):
    proto: str
    vip: str
    vport: int
    scheduler: str
    conn_timeout: int
    no_rs: str
    expire_quiescent: bool
    half_open: int | None
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


class WorkerView(TypedDict):
    index: int
    cpu: int | None
    counters: dict[str, int]


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
    steering: dict[str, dict[str, str]]  # by port and flow, how answers reach their worker


class AppliedView(TypedDict):
    applied: int
    snapshot: int
