"""What this machine and these packages are, for manifests and bug reports."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mlx_steer.blas import openblas_status
from mlx_steer.errors import ModelError

PACKAGES = ("mlx", "mlx-lm", "numpy", "transformers", "huggingface-hub")


def environment() -> dict[str, Any]:
    """Versions, platform, device, memory and BLAS, as JSON values."""
    import mlx.core as mx

    blas = openblas_status()
    return {
        **versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device_name(),
        "metal": mx.metal.is_available(),
        "memory_gb": round(memory_bytes() / 1e9, 1),
        "blas": f"{blas.state}: {blas.detail}",
    }


def device_name() -> str:
    """What MLX computes on, such as a chip's name."""
    import mlx.core as mx

    return str(mx.device_info().get("device_name", mx.default_device()))


def versions() -> dict[str, str | None]:
    """Of this package and of those that results depend on."""
    others = {name.replace("-", "_"): _version(name) for name in PACKAGES}
    return {"mlx_steer": version("mlx-steer"), **others}


def memory_bytes() -> int:
    """The memory of this machine, in bytes."""
    import os

    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def has_metal() -> bool:
    """Whether MLX runs on Apple's GPU here."""
    import mlx.core as mx

    return bool(mx.metal.is_available())


def working_set(sharing: int = 1) -> int:
    """Bytes that MLX can use on this machine without slowing down.

    On Metal, the recommended working set. Elsewhere 80 % of the memory that is available now or
    held by MLX already, within the limit of the control group (a container's) if there is one.

    Args:
        sharing: Processes that share the machine and hold what they hold already: one's part.
    """
    import mlx.core as mx

    if has_metal():
        return int(mx.device_info()["max_recommended_working_set_size"]) // sharing
    return int(0.8 * (_available() / sharing + mx.get_active_memory()))


# Memory of Macs that people have, in GB as Apple counts them.
MACS = (16, 24, 48, 64)


def working_set_of_mac(memory: int) -> int:
    """Bytes that MLX can use on a Mac with so many GB: Metal's recommended working set.

    Two thirds of up to 36 GB, three quarters of more, as macOS sets it by default.
    """
    share = 2 / 3 if memory <= 36 else 3 / 4
    return int(share * memory * 2**30)


def too_large(
    name: str, needed: int, limit: int, less: Mapping[str, int] | None = None
) -> ModelError:
    """The error for a model that needs more bytes than can be used.

    Args:
        name: What the model is called.
        needed: Bytes that it needs.
        limit: Bytes that can be used.
        less: Bytes of its weights by the option that makes them so; None if they are unknown.
    """
    fitting = [f"{how} makes {size / 1e9:.1f} GB" for how, size in (less or {}).items()
               if size <= limit]  # fmt: skip
    if less is None:
        cure = "use 4-bit weights (--quantize 4) or a smaller model"
    elif fitting:
        cure = f"use fewer bits ({', '.join(fitting)}) or a smaller model"
    else:
        cure = "use a smaller model"
    return ModelError(
        f"{name} needs {needed / 1e9:.1f} GB, this machine can use {limit / 1e9:.1f} GB; {cure}"
    )


def _available() -> int:
    """Bytes of memory that new allocations can have."""
    import os

    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(x.split()[1]) * 1024 for x in lines if x.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        used = int((group / "memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):  # no such group, or "max"
        return free
    return max(0, min(free, limit - used))
