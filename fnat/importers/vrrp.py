"""VRRP of DPVS's keepalived: VIPs -> fnat's, the rest -> the keepalived.conf of a stock keepalived (2.2).

A VIP must not come to the kernel's interface: the kernel would answer for it beside fnat. So an instance keeps its id,
priority, peers, timers and tracks, and has, instead of its VIPs, one marker address on lo, which follows from VIPs and
id and is thus the same on every node. What a stock keepalived does not know is told; `interface dpdk0.kni` becomes the
kernel's NIC.

Unsatisfying: fnat has no [ha] yet that would take VIPs up and down with the instance, so no notify script is written.
"""

from __future__ import annotations

import difflib
import re
import zlib
from collections.abc import Iterator, Sequence

from fnat import addresses
from fnat.importers import Draft, expand
from fnat.importers.blocks import Statement

ROOTS = (
    "global_defs", "vrrp_instance", "vrrp_sync_group", "vrrp_script", "vrrp_track_process", "vrrp_track_file",
    "track_file", "bfd_instance", "garp_group", "interface_up_down_delays", "static_ipaddress", "static_routes",
    "static_rules",
)  # fmt: skip
_VERBATIM = (
    "vrrp_script", "vrrp_track_process", "vrrp_track_file", "track_file", "bfd_instance", "garp_group",
    "interface_up_down_delays",
)  # fmt: skip
_NOTIFY = ("notify_master", "notify_backup", "notify_fault", "notify_stop", "notify", "smtp_alert")
_TRACKS = ("track_interface", "track_script", "track_file", "track_process", "track_bfd")
_STOCK: dict[str, tuple[str, ...]] = {
    "global_defs": (
        "notification_email", "notification_email_from", "smtp_server", "smtp_helo_name", "smtp_connect_timeout",
        "smtp_alert", "smtp_alert_vrrp", "no_email_faults", "router_id", "vrrp_mcast_group4", "vrrp_mcast_group6",
        "vrrp_garp_master_delay", "vrrp_garp_master_repeat", "vrrp_garp_master_refresh",
        "vrrp_garp_master_refresh_repeat", "vrrp_garp_lower_prio_delay", "vrrp_garp_lower_prio_repeat",
        "vrrp_garp_interval", "vrrp_gna_interval", "vrrp_min_garp", "vrrp_lower_prio_no_advert",
        "vrrp_higher_prio_send_advert", "vrrp_version", "vrrp_check_unicast_src", "vrrp_skip_check_adv_addr",
        "vrrp_strict", "vrrp_priority", "vrrp_no_swap", "vrrp_rt_priority", "vrrp_rlimit_rttime", "vrrp_cpu_affinity",
        "vrrp_notify_fifo", "vrrp_notify_fifo_script", "vrrp_notify_priority_changes", "vrrp_startup_delay",
        "vrrp_down_timer_adverts", "vrrp_process_name", "vrrp_rx_bufs_policy", "vrrp_rx_bufs_multiplier",
        "enable_script_security", "script_user", "max_auto_priority", "dynamic_interfaces", "default_interface",
        "disable_local_igmp", "process_names", "umask", "startup_script", "startup_script_timeout", "shutdown_script",
        "shutdown_script_timeout", "log_unknown_vrids",
    ),
    "vrrp_instance": (
        "state", "interface", "virtual_router_id", "priority", "advert_int", "authentication", "unicast_src_ip",
        "unicast_peer", "unicast_fault_no_peer", "mcast_src_ip", "mcast_dst_ip", "track_src_ip", "dont_track_primary",
        *_TRACKS, *_NOTIFY, "notify_deleted", "notify_master_rx_lower_pri", "notify_priority_changes", "nopreempt",
        "preempt", "preempt_delay", "strict_mode", "version", "native_ipv6", "accept", "no_accept", "debug",
        "garp_master_delay", "garp_master_repeat", "garp_master_refresh", "garp_master_refresh_repeat",
        "garp_lower_prio_delay", "garp_lower_prio_repeat", "skip_check_adv_addr", "higher_prio_send_advert",
        "lower_prio_no_advert", "down_timer_adverts", "check_unicast_src", "kernel_rx_buf_size",
    ),
    "vrrp_sync_group": (
        "group", *_TRACKS, *_NOTIFY, "global_tracking", "sync_group_tracking_weight", "notify_priority_changes",
    ),
}  # fmt: skip
_LOST: dict[str, tuple[str, str]] = {
    "use_vmac": ("the VIPs are not the kernel's", "fnat announces VIPs with its port's own MAC"),
    "vmac_xmit_base": ("the VIPs are not the kernel's", "fnat announces VIPs with its port's own MAC"),
    "promote_secondaries": ("the VIPs are not the kernel's", "nothing is to be promoted"),
    "virtual_routes": ("they would come to the kernel beside VIPs that it has not", "give the host its routes itself"),
    "virtual_rules": ("they would come to the kernel beside VIPs that it has not", "give the host its rules itself"),
    "static_ipaddress": ("addresses of the host are the host's", "put them into its network configuration"),
    "static_routes": ("routes of the host are the host's", "put them into its network configuration; fnat uses them"),
    "static_rules": ("rules of the host are the host's", "put them into its network configuration"),
    "lvs_sync_daemon_interface": ("DPVS has no session sync either", "it is left out"),
    "lvs_sync_daemon": ("DPVS has no session sync either", "it is left out"),
    "lvs_flush": ("it is for the kernel's ipvs", "fnat's services are those of its file"),
    "lvs_flush_onstop": ("it is for the kernel's ipvs", "`fnat stop` keeps services and connections"),
    "smtp_alert_checker": ("health checks are not in this version", "nothing is sent for them"),
}
_HEAD = """\
# VRRP for a stock keepalived; the services are in fnat.toml. Each instance has a marker address on lo instead of its
# VIPs: a VIP on the kernel's interface would be answered by kernel and fnat. All nodes of an instance need such a file
# at the same time: a node that still announces the VIPs themselves is not understood, and both would be master."""


def knows(statement: Statement) -> bool:
    return statement.name in ROOTS


def read_vips(draft: Draft, statements: Sequence[Statement]) -> None:
    """The VIPs of all instances, with their ports, into the draft."""
    for instance in statements:
        if instance.name != "vrrp_instance":
            continue
        device = _value(instance, "dpdk_interface")
        for block in instance.inner:
            if block.name not in ("virtual_ipaddress", "virtual_ipaddress_excluded"):
                continue
            for line in block.inner:
                _vip(draft, line, device)
            why = "fnat has no [ha] yet: a node that runs fnat has the VIPs, whatever VRRP says"
            draft.later(block.at, why, "run fnat on one node at a time")


def _vip(draft: Draft, line: Statement, device: str | None) -> None:
    text, _, plen = line.name.partition("/")
    try:
        found = addresses.host(text)
    except ValueError as error:
        draft.lost(line.at, str(error), "it is left out")
        return
    if plen and plen != str(addresses.bits(found)):
        why = f"the prefix of {found}/{plen} is on-link where the host has it so"
        draft.told(line.at, why, "give the host's NIC an address of it: fnat uses the host's routes")
    options = dict(zip(line.values[::2], line.values[1::2], strict=False))
    if rest := [word for name, value in options.items() if name not in ("dev", "scope") for word in (name, value)]:
        draft.lost(line.at, f"{' '.join(rest)} is for addresses of the kernel", "it is left out")
    named = options.get("dev", device)
    port = None if named is None else draft.kni.get(named, named.removesuffix(".kni"))
    if port is not None:
        draft.port(port, line.at)
    known = draft.vips.setdefault(found, (port, line.at))
    if port is not None and known[0] not in (None, port):
        draft.lost(line.at, f"{found} is on {known[0]} already", "an address belongs to one port")


def _value(statement: Statement, name: str) -> str | None:
    return next((s.values[0] for s in statement.inner if s.name == name and s.values), None)


def read(draft: Draft, statements: Sequence[Statement]) -> None:
    """All but the VIPs, into the keepalived.conf of the draft."""
    mine = [s for s in statements if knows(s)]
    name = next((_value(s, "router_id") for s in mine if s.name == "global_defs"), None)
    if draft.node is None and name is not None and re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", name):
        draft.node = name
    if not any(s.name == "vrrp_instance" for s in mine):
        for statement in mine:
            draft.lost_block(statement, "there is no vrrp_instance, so no keepalived is needed", "it is left out")
        return
    draft.stock += _HEAD.split("\n")
    for statement in mine:
        if statement.name in _LOST:
            draft.lost_block(statement, *_LOST[statement.name])
        elif statement.name in _VERBATIM:
            draft.stock += ["", *_written(statement)]
        else:
            draft.stock += ["", *_block(draft, statement)]


def _block(draft: Draft, statement: Statement) -> Iterator[str]:
    """global_defs, vrrp_instance or vrrp_sync_group, as a stock keepalived has it."""
    known = _STOCK[statement.name]
    yield statement.written + " {"
    for word in statement.inner:
        if word.name in ("virtual_ipaddress", "virtual_ipaddress_excluded", "dpdk_interface"):
            continue
        if word.name.startswith("@"):
            draft.lost_block(word, "is for one configuration id only", "write it without the id if it is meant")
        elif word.name in _LOST:
            draft.lost_block(word, *_LOST[word.name])
        elif word.name not in known:
            near = difflib.get_close_matches(word.name, known, n=1)
            fix = f"did you mean {near[0]!r}?" if near and near[0] != word.name else "it is left out"
            draft.lost_block(word, f"is not a word of a stock keepalived in {statement.name}", fix)
        else:
            if re.match(r"(vrrp_)?(garp|gna)_|vrrp_min_garp", word.name):
                why = "it goes to keepalived.conf, but fnat announces the VIPs, once when they are new"
                draft.later(word.at, why, "[host] announce says whether")
            elif "notify" in word.name and re.search(r"\b(ipvsadm|dpip)\b", " ".join(word.values)):
                draft.told(word.at, "the script speaks to DPVS", "it has to call fnat-ipvsadm and fnat-dpip")
            yield from _written(_translated(draft, word), "    ")
    if statement.name == "vrrp_instance":
        yield from ("    virtual_ipaddress {", f"        {_marker(statement)} dev lo", "    }")
    yield "}"


def _translated(draft: Draft, word: Statement) -> Statement:
    """The word with the kernel's NICs in place of DPVS's devices."""
    if word.name in ("interface", "default_interface") and word.values:
        return Statement(word.file, word.line, (word.name, draft.nic(word.values[0], word.at), *word.values[1:]))
    if word.name == "track_interface":
        inner = [Statement(s.file, s.line, (draft.nic(s.name, s.at), *s.values)) for s in word.inner]
        return Statement(word.file, word.line, word.words, tuple(inner))
    if word.name == "group":
        inner = [Statement(s.file, s.line, (name,)) for s in word.inner for name in s.words]
        return Statement(word.file, word.line, word.words, tuple(inner))
    return word


def _written(statement: Statement, indent: str = "") -> Iterator[str]:
    line = indent + statement.written
    if statement.block is None:
        yield line
        return
    yield line + " {"
    for inner in statement.inner:
        yield from _written(inner, indent + "    ")
    yield indent + "}"


def _marker(instance: Statement) -> str:
    """The address that an instance has instead of its VIPs: of their family, the same wherever VIPs and id are."""
    vips: list[str] = []
    for block in instance.inner:
        if block.name == "virtual_ipaddress":
            for line in block.inner:
                try:
                    vips += expand(line.name.partition("/")[0])
                except ValueError:
                    continue  # told where the VIPs are read
    text = _value(instance, "virtual_router_id") or "1"
    vrid = int(text) % 256 if re.fullmatch(r"[0-9]{1,3}", text) else 1
    mark = zlib.crc32(" ".join(sorted(vips)).encode())
    if vips and addresses.family(vips[0]) == 6:
        return f"fe80::fa7:{mark >> 16 or 1:x}:{vrid or 1:x}/128"
    return f"169.254.{1 + mark % 254}.{vrid}/32"
