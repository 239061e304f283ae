"""dpvs.conf, the file of the DPVS daemon -> ports and [host].

ITEMS has every item of DPVS 1.10 that has no counterpart, with what fnat does instead; _CARRIED those that have one.

Unsatisfying: services, addresses and routes are not in this file; give `fnat import` the keepalived.conf, or what
`ipvsadm -S` printed, beside it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence

from fnat.importers import Draft
from fnat.importers.blocks import Statement

_FRAMES = ("DPDK's packet memory", "48 MiB of frames for each worker, at start")
_LOG = ("DPVS's log", "fnat writes to standard error; systemd's journal adds the time")
_KERNEL_NIC = ("a setting of the NIC", "the kernel's is used: `ip link`, `ethtool`")
_QUEUES = ("DPDK's queues", "worker N uses queue N of every port")
_STACK = ("DPVS's own stack", "the host's kernel does it: sysctl net.ipv4, net.ipv6, net.ipv4.neigh")
_SYNPROXY = ("the SYN proxy", "limits = { half_open = N } of a service lets the oldest half-open connections go")
_MSG = ("messages between DPVS's workers", "listings read shared memory, no worker takes part")
_STEER = ("flow rules of the NIC", 'steering = "auto": the NIC\'s own hash, else hand-off between workers')
_CORE = ("a core of DPVS", "control is a process of its own, only forwarding threads are workers")

ITEMS: dict[str, tuple[str, str]] = {
    "global_defs/log_level": _LOG,
    "global_defs/log_file": _LOG,
    "global_defs/log_with_timestamp": _LOG,
    "global_defs/log_async_mode": _LOG,
    "global_defs/log_async_pool_size": _LOG,
    "global_defs/pdump": ("DPDK's capture", "see the README for what tcpdump sees"),
    "global_defs/kni": ("twins of the NICs", "the kernel keeps its NICs; `fnat run --exclusive` makes a TAP"),
    "global_defs/lldp": ("DPVS's LLDP", "run lldpd on the kernel's NIC"),
    "netif_defs/pktpool_size": _FRAMES,
    "netif_defs/pktpool_cache": _FRAMES,
    "netif_defs/fdir_mode": _STEER,
    "netif_defs/device/rx": _QUEUES,
    "netif_defs/device/rx/queue_number": _QUEUES,
    "netif_defs/device/rx/descriptor_number": ("a setting of the NIC", "`ethtool -G NIC rx N`"),
    "netif_defs/device/rx/rss": ("a setting of the NIC", "`ethtool -N NIC rx-flow-hash …`; fnat reads it"),
    "netif_defs/device/tx": _QUEUES,
    "netif_defs/device/tx/queue_number": _QUEUES,
    "netif_defs/device/tx/descriptor_number": ("a setting of the NIC", "`ethtool -G NIC tx N`"),
    "netif_defs/device/tx/mbuf_fast_free": _FRAMES,
    "netif_defs/device/fdir": _STEER,
    "netif_defs/device/fdir/mode": _STEER,
    "netif_defs/device/fdir/pballoc": _STEER,
    "netif_defs/device/fdir/status": _STEER,
    "netif_defs/device/mtu": ("a setting of the NIC", "the kernel's is used: `ip link set NIC mtu N`"),
    "netif_defs/device/promisc_mode": ("a setting of the NIC", "`ip link set NIC promisc on`"),
    "netif_defs/device/allmulticast": ("a setting of the NIC", "`ip link set NIC allmulticast on`"),
    "netif_defs/device/kni_name": ("the name of the twin", "the kernel's NIC has its own name"),
    "netif_defs/bonding": ("a bond of DPDK", "make it with `ip link`, its members under fnat stay the kernel's"),
    "worker_defs/worker/type": _CORE,
    "worker_defs/worker/cpu_id": (
        "an lcore of DPDK, which need not be the CPU of that number",
        'cpus = "auto" chooses; else list the CPUs in [host] cpus',
    ),
    "worker_defs/worker/icmp_redirect_core": ("a core for ICMP", "ICMP goes to the worker of its connection"),
    "worker_defs/worker/port": _QUEUES,
    "worker_defs/worker/port/rx_queue_ids": _QUEUES,
    "worker_defs/worker/port/tx_queue_ids": _QUEUES,
    "worker_defs/worker/port/isol_rx_cpu_ids": ("a core that only receives", "each worker receives for itself"),
    "worker_defs/worker/port/isol_rxq_ring_sz": ("a core that only receives", "each worker receives for itself"),
    "timer_defs/schedule_interval": ("the beat of DPVS's timers", "timers tick every 1/64 s"),
    "neigh_defs/unres_queue_length": _STACK,
    "neigh_defs/timeout": _STACK,
    "ipset_defs/ipset_hash_pool_size": ("memory of DPVS's sets", "nothing is to be reserved"),
    "ipv4_defs/forwarding": ("DPVS as a router", "what fnat does not own is the kernel's: sysctl net.ipv4.ip_forward"),
    "ipv4_defs/default_ttl": _STACK,
    "ipv4_defs/fragment/bucket_number": ("memory for fragments", "a share of each worker's own"),
    "ipv4_defs/fragment/bucket_entries": ("memory for fragments", "a share of each worker's own"),
    "ipv4_defs/fragment/max_entries": ("memory for fragments", "a share of each worker's own"),
    "ipv6_defs/disable": ("a switch for IPv6", "IPv6 is on where an IPv6 address is used"),
    "ipv6_defs/forwarding": ("DPVS as a router", "the kernel's: sysctl net.ipv6.conf.all.forwarding"),
    "ipv6_defs/addr_gen_mode": _STACK,
    "ipv6_defs/stable_secret": _STACK,
    "ipv6_defs/route6": _STACK,
    "ipv6_defs/route6/method": ("DPVS's route table", "one kind of table for both families"),
    "ipv6_defs/route6/recycle_time": ("DPVS's route table", "one kind of table for both families"),
    "ipv6_defs/route6/lpm": ("DPVS's route table", "one kind of table for both families"),
    "ctrl_defs/lcore_msg/ring_size": _MSG,
    "ctrl_defs/lcore_msg/sync_msg_timeout_us": _MSG,
    "ctrl_defs/lcore_msg/priority_level": _MSG,
    "ctrl_defs/lcore_msg/multicast_queue_length": _MSG,
    "ctrl_defs/ipc_msg/unix_domain": ("DPVS's socket", "`fnat run --socket PATH`"),
    "ipvs_defs/conn/conn_pool_cache": ("DPDK's memory", "all memory is reserved at start"),
    "ipvs_defs/conn/conn_init_timeout": ("a time for new connections", "the times of the states hold from the start"),
    "ipvs_defs/conn/expire_quiescent_template": ("a switch for all services", "expire_quiescent of a service"),
    "ipvs_defs/conn/fast_xmit_close": ("a shortcut of DPVS", "connections keep their next hop"),
    "ipvs_defs/conn/redirect": ("a switch for hand-off", "hand-off is there where it is needed"),
    "ipvs_defs/conn/xmit_ttl": ("a switch", "fnat behaves as README and tests/conformance say"),
    "ipvs_defs/udp/uoa_max_trail": ("a number of datagrams", "3 at most, until the server answers"),
    "ipvs_defs/tcp/timeout/last": ("a time of no state", "nothing"),
    "ipvs_defs/tcp/synproxy": _SYNPROXY,
    "sa_pool/pool_hash_size": ("how LIP ports are shared", "a LIP has all its ports towards each server"),
    "sa_pool/flow_enable": _STEER,
}  # fmt: skip
_UNITS = {f"ipvs_defs/tcp/timeout/{name}": name for name in (
    "none", "established", "syn_sent", "syn_recv", "fin_wait", "time_wait", "close", "close_wait", "last_ack",
    "listen", "synack",
)} | {f"ipvs_defs/udp/timeout/{name}": f"udp_{name}" for name in ("none", "oneway", "normal", "last")}  # fmt: skip
_UNITS["ipv4_defs/fragment/ttl"] = "fragments"
_WHOLE = ("netif_defs/bonding", "ipvs_defs/tcp/synproxy", "ipv6_defs/route6/lpm", "netif_defs/device/fdir")
LONG_IDLE = 7440  # RFC 5382 REQ-5
DPVS_LEAST, DPVS_CONNS = 65536, 2_097_151  # a smaller conn_pool_size is ignored: the default holds


def read(draft: Draft, statements: Sequence[Statement]) -> None:
    workers = [w for s in statements if s.name == "worker_defs" for w in s.inner if w.name == "worker"]
    slaves = [worker for worker in workers if _type(worker) in ("slave", None)]
    index = {id(queue): i for i, worker in enumerate(slaves) for port in worker.inner for queue in port.inner}
    if slaves:
        draft.host["workers"] = len(slaves), slaves[0].at
    for statement in statements:
        _walk(draft, statement, "", len(slaves), index)


def _type(worker: Statement) -> str | None:
    return next((s.values[0] for s in worker.inner if s.name == "type" and s.values), None)


def _walk(draft: Draft, statement: Statement, above: str, slaves: int, index: dict[int, int]) -> None:
    path = f"{above}/{statement.name}".removeprefix("/")
    if statement.name.startswith("@"):
        draft.lost_block(statement, "is for one configuration id only", "write it without the id if it is meant")
    elif path in _CARRIED:
        _CARRIED[path](draft, statement)
    elif path in _UNITS:
        if (value := _number(draft, statement)) is not None:
            draft.timeouts[_UNITS[path]] = value, statement.at
            if path == "ipvs_defs/tcp/timeout/established" and 0 < value < LONG_IDLE:
                draft.told(statement.at, f"connections silent for {value} s end", "RFC 5382 asks for 2 h 4 min")
    elif path == "netif_defs/device":
        if name := _one(draft, statement):
            draft.port(name, statement.at)
            for setting in statement.inner:
                if setting.name == "kni_name" and setting.values:
                    draft.kni[setting.values[0]] = name
        _inside(draft, statement, path, slaves, index)
    elif path in _WHOLE or (path in ITEMS and statement.block is None):
        if _meant(draft, path, statement, slaves, index):
            return
        draft.lost_block(statement, *ITEMS[path])
    elif statement.block is not None and any(item.startswith(path + "/") for item in _known()):
        _inside(draft, statement, path, slaves, index)
    else:
        near = difflib.get_close_matches(path, _known(), n=1, cutoff=0.8)
        word = near[0].rsplit("/", 1)[-1] if near else ""
        fix = f"did you mean {word!r}?" if word and word != statement.name else "it is left out"
        draft.lost_block(statement, "is not a word of dpvs.conf here", fix)


def _known() -> list[str]:
    return [*ITEMS, *_CARRIED, *_UNITS]


def _inside(draft: Draft, statement: Statement, path: str, slaves: int, index: dict[int, int]) -> None:
    for inner in statement.inner:
        _walk(draft, inner, path, slaves, index)


def _meant(draft: Draft, path: str, statement: Statement, slaves: int, index: dict[int, int]) -> bool:
    """Whether fnat does by itself what the line asks for."""
    if path == "worker_defs/worker/type":
        return statement.values == ("slave",)
    if path.endswith("/queue_number"):
        return statement.values == (str(slaves),)
    if path.endswith(("/rx_queue_ids", "/tx_queue_ids")):
        return id(statement) in index and statement.values == (str(index[id(statement)]),)
    return path.endswith("/uoa_max_trail") and statement.values == ("3",)


def _one(draft: Draft, statement: Statement) -> str | None:
    if len(statement.values) != 1:
        draft.lost(statement.at, f"has {len(statement.values)} values instead of one", "it is left out")
        return None
    return statement.values[0]


def _number(draft: Draft, statement: Statement) -> int | None:
    if (text := _one(draft, statement)) is None:
        return None
    if not re.fullmatch(r"[0-9]{1,10}", text):
        draft.lost(statement.at, f"{text!r} is not a number", "fnat's default holds")
        return None
    return int(text)


def _conns(draft: Draft, statement: Statement) -> None:
    if (value := _number(draft, statement)) is None:
        return
    draft.host["conns"] = value, statement.at
    real = (1 << (value + 1).bit_length() - 1) - 1 if value >= DPVS_LEAST else DPVS_CONNS
    why = f"DPVS makes {real} of {value}, on each NUMA node"
    draft.told(statement.at, why, f"conns = {value} holds for all workers together")


def _uoa(draft: Draft, statement: Statement) -> None:
    if (mode := _one(draft, statement)) is None:
        return
    if mode not in ("opp", "ipo"):
        draft.lost(statement.at, f"{mode!r} is not known", "allowed: opp, ipo")
        return
    draft.uoa = f"uoa-{mode}"
    fix = f'UDP services imported beside it get client_addr = "uoa-{mode}"'
    draft.told(statement.at, "in fnat each service says how its servers learn the client's address", fix)


def _on(draft: Draft, statement: Statement) -> bool | None:
    words = {(): True, ("on",): True, ("enable",): True, ("true",): True, ("off",): False, ("disable",): False}
    if statement.values not in words:
        draft.lost(statement.at, f"{' '.join(statement.values)!r} is neither on nor off", "fnat's default holds")
        return None
    return words[statement.values]


def _drop(draft: Draft, statement: Statement) -> None:
    if _on(draft, statement):
        draft.host["unserved"] = "drop", statement.at
        draft.told(statement.at, 'becomes unserved = "drop"', "it holds for TCP and UDP")


_CARRIED: dict[str, Callable[[Draft, Statement], None]] = {
    "ipvs_defs/conn/conn_pool_size": _conns,
    "ipvs_defs/udp/uoa_mode": _uoa,
    "ipvs_defs/tcp/defence_tcp_drop": _drop,
    "ipvs_defs/udp/defence_udp_drop": _drop,
}
