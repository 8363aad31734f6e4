"""What this machine and these packages are, for manifests and bug reports."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import mlx.core as mx

import mlx_steer

PACKAGES = ("mlx", "mlx-lm", "numpy", "transformers", "huggingface-hub")


def environment() -> dict[str, Any]:
    """Versions, platform, device, memory and BLAS, as JSON values."""
    device = mx.device_info()
    return {
        "mlx_steer": mlx_steer.__version__,
        **{name.replace("-", "_"): _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": str(device.get("device_name", mx.default_device())),
        "metal": mx.metal.is_available(),
        "memory_gb": round(memory_bytes() / 1e9, 1),
        "blas": f"{mlx_steer.blas_status.state}: {mlx_steer.blas_status.detail}",
    }


def memory_bytes() -> int:
    """The memory of this machine, in bytes."""
    import os

    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
