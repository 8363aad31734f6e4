"""Linux only: puts OpenBLAS in front of the reference BLAS that MLX's CPU backend links.

MLX for Linux resolves `cblas_sgemm` from a reference BLAS at a few GFLOP/s. A library that is
loaded into the process before MLX with global symbols is found first, so loading OpenBLAS (from
the `cmeel-openblas` package) makes float32 products some eighty times faster. On macOS MLX uses
Metal and Accelerate, and nothing is done.
"""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

_INSTRUCTIONS = {
    **dict.fromkeys(("SKYLAKEX", "COOPERLAKE", "SAPPHIRERAPIDS"), "avx512f"),
    **dict.fromkeys(("HASWELL", "ZEN"), "avx2"),
}
"""The newest instruction set that OpenBLAS's kernels for a kind of x86 processor need."""

_SPINS = "16"
"""How long OpenBLAS's threads spin, as a power of two in cycles; 26 by default."""

State = Literal["not needed", "loaded", "too late", "missing", "failed"]


@dataclass(frozen=True)
class BlasStatus:
    """What became of OpenBLAS in this process.

    Attributes:
        state: "not needed" (not Linux), "loaded", "too late" (MLX was imported first), "missing"
            (`cmeel-openblas` is not installed) or "failed" (the library would not load).
        detail: The library's path, or a sentence saying what to do.
    """

    state: State
    detail: str

    @property
    def ok(self) -> bool:
        """Whether matrix products run at full speed as far as the BLAS is concerned."""
        return self.state in ("not needed", "loaded")


def cache_root() -> Path:
    """The cache folder of mlx-steer: `$MLX_STEER_CACHE`, or `mlx-steer` in the user's cache."""
    if chosen := os.environ.get("MLX_STEER_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "mlx-steer"


@cache
def openblas_status() -> BlasStatus:
    """What became of OpenBLAS in this process; loads it when first asked."""
    return load_openblas()


def cores() -> int:
    """Cores that this process computes on: those it may, or fewer by OPENBLAS_NUM_THREADS."""
    affinity = getattr(os, "sched_getaffinity", None)
    here = len(affinity(0)) if affinity else os.cpu_count() or 1
    asked = os.environ.get("OPENBLAS_NUM_THREADS", "")
    return min(here, int(asked)) if asked.isdecimal() and int(asked) else here


def compute_on(count: int) -> None:
    """Use so many cores from now on, in this process and in those that it starts.

    Args:
        count: At least 1.
    """
    os.environ["OPENBLAS_NUM_THREADS"] = str(count)
    status = openblas_status()
    if status.state == "loaded":
        ctypes.CDLL(status.detail).openblas_set_num_threads(count)


@contextmanager
def one_thread() -> Iterator[None]:
    """Multiply in one thread inside: the number of cores would show in the last digits.

    What is computed lazily has to be evaluated inside, too. Nothing changes where OpenBLAS is not
    what multiplies.
    """
    status = openblas_status()
    if status.state != "loaded":
        yield
        return
    library = ctypes.CDLL(status.detail)
    before = library.openblas_get_num_threads()
    library.openblas_set_num_threads(1)
    try:
        yield
    finally:
        library.openblas_set_num_threads(before)


def load_openblas() -> BlasStatus:
    """Load OpenBLAS into the process if this is Linux and MLX is not loaded yet."""
    if not sys.platform.startswith("linux"):
        return BlasStatus("not needed", f"MLX uses the platform's own BLAS on {sys.platform}")
    if "mlx.core" in sys.modules:
        return BlasStatus(
            "too late",
            "mlx was imported before mlx_steer, so it multiplies with the slow reference BLAS; "
            "import mlx_steer first",
        )
    library = next(_in_site_packages("cmeel.prefix/lib/libopenblas.so"), None)
    if library is None:
        return BlasStatus(
            "missing",
            "OpenBLAS is not installed, MLX will be slow; run: pip install cmeel-openblas==0.3.29",
        )
    # Its threads wait for work by spinning, which others on the same cores pay for.
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", _SPINS)
    try:
        loaded = _load(library)
    except OSError as error:
        return BlasStatus(
            "failed", f"{library} does not load ({error}); install your system's libgfortran5"
        )
    if lacking := _lacking_instructions(loaded):
        return BlasStatus(
            "failed",
            f"{library} was built for processors with {lacking}, which this one lacks; MLX will be "
            "slow; run: pip install cmeel-openblas==0.3.29",
        )
    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)  # now MLX finds it
    return BlasStatus("loaded", str(library))


def _load(library: Path) -> ctypes.CDLL:
    """The library, its names not yet seen by others."""
    try:
        return ctypes.CDLL(str(library), mode=ctypes.RTLD_LOCAL)
    except OSError:
        _lend_fortran_runtime()
        return ctypes.CDLL(str(library), mode=ctypes.RTLD_LOCAL)


def _lacking_instructions(library: ctypes.CDLL) -> str | None:
    """What the library's kernels need and this processor lacks: it would end the process.

    A build for one kind of processor (`cmeel-openblas` 0.3.31 is for SKYLAKEX) does not look.
    """
    corename = library.openblas_get_corename
    corename.restype = ctypes.c_char_p
    core: bytes = corename()
    needed = _INSTRUCTIONS.get(core.decode("ascii", "replace").upper())
    flags = _processor_flags()
    return needed if needed and flags and needed not in flags else None


def _processor_flags() -> frozenset[str]:
    """The instruction sets that Linux names on x86; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return frozenset()
    return next((frozenset(x.split()) for x in lines if x.startswith("flags")), frozenset())


def _in_site_packages(pattern: str) -> Iterator[Path]:
    for entry in sys.path:
        if entry.endswith("packages"):
            yield from sorted(Path(entry).glob(pattern))


def _lend_fortran_runtime() -> None:
    """Load the Fortran runtime that `mlx-cpu` carries, under the name OpenBLAS asks for.

    OpenBLAS names `libgfortran.so.5`, which a bare Linux lacks. `mlx-cpu` ships that very library
    under a longer, hashed name. The loader matches libraries by the name written inside them, so a
    copy with the plain name written over the hashed one satisfies it.

    Raises:
        OSError: If there is no such library or the copy cannot be written or loaded.
    """
    for helper in _in_site_packages("mlx_cpu.libs/libquadmath-*.so*"):
        ctypes.CDLL(str(helper), mode=ctypes.RTLD_GLOBAL)
    source = next(_in_site_packages("mlx_cpu.libs/libgfortran-*.so.5*"), None)
    if source is None:
        raise OSError("libgfortran.so.5 is neither on this system nor in mlx-cpu")
    copy = cache_root() / "lib" / source.name / "libgfortran.so.5"
    if not copy.exists():
        hashed, plain = source.name.encode(), b"libgfortran.so.5"
        content = source.read_bytes().replace(hashed, plain.ljust(len(hashed), b"\0"))
        copy.parent.mkdir(parents=True, exist_ok=True)
        from mlx_steer.files import write_beside  # heavy, and seldom needed

        write_beside(copy, content)
    ctypes.CDLL(str(copy), mode=ctypes.RTLD_GLOBAL)
