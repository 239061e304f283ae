"""Builds the Cython door with the C core, and, where libbpf's headers are there, the AF_XDP driver and its XDP program.

Environment: FNAT_MARCH   the compiler's target, default x86-64-v3 on x86-64 (AVX2, BMI2); "native" for this machine
             FNAT_CFLAGS  further compiler flags, for sanitizers and mutations
             FNAT_NO_XDP  build without the AF_XDP driver
"""

import os
import platform
import shlex
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

sys.path.insert(0, str(Path(__file__).parent))
ROOT = Path(__file__).parent
CORE = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "cext").glob("*.c"))
DRIVERS = [f"cext/drivers/{name}.c" for name in ("mem", "tap", "pcap") if (ROOT / f"cext/drivers/{name}.c").exists()]
MARCH = os.environ.get("FNAT_MARCH") or ("x86-64-v3" if platform.machine() == "x86_64" else "")
FLAGS = [
    "-std=gnu11",
    "-O3",
    "-g",
    "-Wall",
    "-Wextra",
    "-Werror=implicit-function-declaration",
    "-fno-strict-aliasing",
    "-flto=auto",
    "-fno-semantic-interposition",
]
FLAGS += [f"-march={MARCH}"] if MARCH else []
FLAGS += shlex.split(os.environ.get("FNAT_CFLAGS", ""))

core = Extension(
    "fnat._core",
    ["fnat/_core.pyx", *CORE, *DRIVERS],
    depends=[str(p.relative_to(ROOT)) for p in (ROOT / "cext").glob("**/*.[hd]*")],
    extra_compile_args=[*FLAGS, "-iquote", "cext", "-Wno-unused-function", "-Wno-discarded-qualifiers"],
    extra_link_args=["-flto=auto", "-O3", *shlex.split(os.environ.get("FNAT_LDFLAGS", ""))],
)


def xdp_available() -> bool:
    """The AF_XDP driver is built when libbpf's headers are there; without it fnat replays and benches only."""
    if os.environ.get("FNAT_NO_XDP"):
        return False
    try:
        from fnat.drivers import xdp_build
    except ImportError:
        return False
    return bool(xdp_build.available())


class BuildExt(build_ext):
    def build_extensions(self) -> None:
        """Without the places where the builder's Python has its libraries: they mean nothing on another machine."""
        self.compiler.linker_so = [word for word in self.compiler.linker_so if not word.startswith("-Wl,-rpath")]
        super().build_extensions()

    def run(self) -> None:
        super().run()
        if not XDP:
            print(
                "fnat: built without AF_XDP: libbpf's headers are not there (Debian: apt-get install libbpf-dev clang)",
                file=sys.stderr,
            )
            return
        from fnat.drivers import xdp_build

        base = ROOT if self.inplace else Path(self.build_lib)
        xdp_build.compile_bpf(base / "fnat/drivers/steer.bpf.o")


class BuildPy(build_py):
    def find_data_files(self, package: str, src_dir: str) -> list[str]:
        return [f for f in super().find_data_files(package, src_dir) if not f.endswith((".bpf.o", ".c"))]


XDP = xdp_available()
setup(
    ext_modules=cythonize([core], annotate=False, language_level=3),
    cffi_modules=["fnat/drivers/xdp_build.py:ffibuilder"] if XDP else [],
    cmdclass={"build_ext": BuildExt, "build_py": BuildPy},
)
