"""Builds the AF_XDP driver: the cffi module fnat.drivers._xdp and the XDP program steer.bpf.o.

`setup.py` runs this file by path, so it imports nothing of fnat. The module links libbpf, which loads and attaches the
program; sockets and rings are cext/drivers/xdp.c. Without libbpf's headers the module is left out (`available`).
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from cffi import FFI

BPF_SOURCE = Path("cext/bpf/steer.bpf.c")  # from the root of the source tree, as all paths of a build
LIBBPF = "libbpf >= 1.0"


def available() -> bool:
    """Whether libbpf's headers are there to build the module."""
    try:
        return subprocess.run(["pkg-config", "--exists", LIBBPF], check=False).returncode == 0
    except FileNotFoundError:
        return False


def compile_bpf(out_path: str | Path) -> None:
    """Compile the XDP program. Raises RuntimeError with one line when it cannot."""
    clang = shutil.which("clang")
    if clang is None:
        raise RuntimeError("the XDP program needs clang; install it (apt install clang) and build again")
    multiarch = sysconfig.get_config_var("MULTIARCH") or f"{platform.machine()}-linux-gnu"
    command = [clang, "-target", "bpf", "-O2", "-g", "-Wall", "-Wextra", f"-I/usr/include/{multiarch}"]
    result = subprocess.run(
        [*command, "-c", str(BPF_SOURCE), "-o", str(out_path)], capture_output=True, text=True, check=False
    )
    if result.returncode:
        first = next((line for line in result.stderr.splitlines() if "error:" in line), "clang failed")
        raise RuntimeError(f"the XDP program does not compile: {first}; install libbpf-dev and linux-libc-dev")


ffibuilder: Any = FFI()
ffibuilder.cdef(
    """
    typedef uint32_t __u32;

    /* cext/io.h, cext/drivers/xdp.h */
    struct frame_pool;
    struct io_queue;
    struct io_stats { uint64_t rx_dropped, rx_full, rx_no_frame, tx_invalid, tx_no_space; };
    struct xdp_params { struct frame_pool *pool; int ifindex; uint32_t queue, ring, fill; bool copy; };
    int xdp_queue_open(const struct xdp_params *params, struct io_queue **out);
    bool xdp_queue_zero_copy(const struct io_queue *queue);
    int xdp_queue_busy(int ifindex, uint32_t queue);
    int io_fd(const struct io_queue *queue);
    void io_stats(struct io_queue *queue, struct io_stats *out);
    void io_close(struct io_queue *queue);

    /* libbpf: negative results are -errno */
    struct bpf_object;
    struct bpf_program;
    struct bpf_object *bpf_object__open_mem(const void *data, size_t size, const struct bpf_object_open_opts *opts);
    int bpf_object__load(struct bpf_object *object);
    void bpf_object__close(struct bpf_object *object);
    struct bpf_program *bpf_object__find_program_by_name(const struct bpf_object *object, const char *name);
    int bpf_program__fd(const struct bpf_program *program);

    struct bpf_xdp_attach_opts { size_t sz; int old_prog_fd; ...; };
    struct bpf_xdp_query_opts { size_t sz; __u32 drv_prog_id, hw_prog_id, skb_prog_id; ...; };
    int bpf_xdp_attach(int ifindex, int prog_fd, __u32 flags, const struct bpf_xdp_attach_opts *opts);
    int bpf_xdp_detach(int ifindex, __u32 flags, const struct bpf_xdp_attach_opts *opts);
    int bpf_xdp_query(int ifindex, int flags, struct bpf_xdp_query_opts *opts);

    struct bpf_prog_info { __u32 id; char name[16]; __u32 nr_map_ids; uint64_t map_ids; ...; };
    struct bpf_map_info { __u32 id; char name[16]; ...; };
    int bpf_prog_get_fd_by_id(__u32 id);
    int bpf_map_get_fd_by_id(__u32 id);
    int bpf_obj_get_info_by_fd(int fd, void *info, __u32 *info_len);

    int bpf_map_update_elem(int fd, const void *key, const void *value, uint64_t flags);
    int bpf_map_lookup_elem(int fd, const void *key, void *value);
    int bpf_map_delete_elem(int fd, const void *key);
    int bpf_map_get_next_key(int fd, const void *key, void *next_key);
    int libbpf_num_possible_cpus(void);

    /* below */
    void keep_messages(void);
    const char *last_message(void);
    """
)
ffibuilder.set_source(
    "fnat.drivers._xdp",
    """
    #include <stdarg.h>
    #include <stdio.h>
    #include <bpf/bpf.h>
    #include <bpf/libbpf.h>
    #include "drivers/xdp.h"

    /* libbpf prints to stderr; its last line (often the kernel's own reason) is kept for an error message instead. */
    static char message[256];

    static int keep(enum libbpf_print_level level, const char *format, va_list args)
    {
        return level == LIBBPF_WARN ? vsnprintf(message, sizeof(message), format, args) : 0;
    }

    static void keep_messages(void) /* from now on; earlier ones are forgotten */
    {
        message[0] = 0;
        libbpf_set_print(keep);
    }
    static const char *last_message(void) { return message; }
    """,
    sources=["cext/drivers/xdp.c"],
    include_dirs=["cext"],
    depends=["cext/drivers/xdp.h", "cext/io.h", "cext/packet.h", "cext/base.h"],
    libraries=["bpf"],
    define_macros=[("_GNU_SOURCE", None)],
    extra_compile_args=["-O2", "-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-missing-field-initializers"],
)
