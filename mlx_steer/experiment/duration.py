"""How long a run takes: by measuring the model, or by what is known of the machine."""

from __future__ import annotations

import os
from dataclasses import dataclass

from mlx_steer.blas import openblas_status
from mlx_steer.config import ModelConfig
from mlx_steer.model.machine import has_metal
from mlx_steer.model.size import ModelSize

# Memory bandwidth in GB/s of M1 to M4, within a third. Their GPUs compute some 34 operations in
# float16 for each byte they can read; of both, language models reach about 60 %.
_BANDWIDTH = {"Pro": 200, "Max": 400, "Ultra": 800}
_PLAIN_CHIP = 100
_OPERATIONS_PER_BYTE, _REACHED = 34, 0.6

# Measured on two x86_64 cores with OpenBLAS: operations per second and core of float32 products
# while reading prompts and while decoding 64 rows; bytes per second. Other products use one core.
_READING, _DECODING, _CPU_BANDWIDTH = 60e9, 37e9, 9e9
_SLOW_PRODUCTS = {"reference": 2.5e9, "quantized": 2.3e9, "half": 5e9}


@dataclass(frozen=True)
class Rates:
    """Speeds.

    Attributes:
        read: Prompt tokens per second.
        decode: Response tokens per second, all rows of the batch together.
        basis: What they rest on, as a sentence.
    """

    read: float
    decode: float
    basis: str


def measured_rates(settings: ModelConfig, rows: int, prompt_tokens: int) -> Rates:
    """Load the model and time a prefill and a few decode steps.

    Raises:
        ModelError: If it cannot be loaded.
    """
    from mlx_steer.engine.guard import load_model
    from mlx_steer.engine.speed import decode_speed, prefill_speed

    given = settings.model_dump()
    model = load_model(given.pop("name"), **given)
    read = prefill_speed(model, max(1, min(16, rows)), max(2, prompt_tokens))
    speed = decode_speed(model, rows)
    basis = f"Measured on this machine: a prefill, and decode steps of {rows} rows."
    return Rates(round(read, 1), speed.steered, basis)


def assumed_rates(size: ModelSize, rows: int, tokens: int) -> Rates:
    """Speeds from the model's size and what is known of such machines.

    Args:
        size: The model's.
        rows: Rows decoded at a time.
        tokens: Of a row's prompt and response.
    """
    operations = 2 * size.shape.active_parameters
    moved = size.weights + rows * size.shape.kv_bytes(tokens, size.dtype_bytes)
    if has_metal():
        chip, bandwidth = _chip()
        speed = bandwidth * _OPERATIONS_PER_BYTE * _REACHED
        read, step = speed / operations, moved / (bandwidth * _REACHED) + rows * operations / speed
        basis = (
            f"Assumed, within a factor of two or so: {chip} moves {bandwidth / 1e9:.0f} GB/s and "
            f"computes {bandwidth * _OPERATIONS_PER_BYTE / 1e12:.1f} TFLOP/s, of which "
            f"{_REACHED:.0%} are reached; --measure finds out."
        )
        return Rates(round(read, 1), round(rows / step, 1), basis)
    reading, decoding, what = _cpu(size.dtype_bytes, size.quantized)
    step = moved / _CPU_BANDWIDTH + rows * operations / decoding
    basis = (
        f"Assumed, within a factor of three or so: {what} at {reading / 1e9:.1f} GFLOP/s for "
        f"prompts and {decoding / 1e9:.1f} for decoding; --measure finds out."
    )
    return Rates(round(reading / operations, 1), round(rows / step, 1), basis)


def _cpu(dtype_bytes: int, quantized: bool) -> tuple[float, float, str]:
    if quantized:
        speed = _SLOW_PRODUCTS["quantized"]
        return speed, speed, "quantised products on a CPU"
    if dtype_bytes < 4:
        return _SLOW_PRODUCTS["half"], _SLOW_PRODUCTS["half"], "16-bit products on a CPU"
    if not openblas_status().ok:
        speed = _SLOW_PRODUCTS["reference"]
        return speed, speed, "float32 products without OpenBLAS"
    count = os.cpu_count() or 1
    return _READING * count, _DECODING * count, f"float32 products on {count} CPU cores"


def _chip() -> tuple[str, float]:
    """The chip's name and its bandwidth in bytes per second."""
    import mlx.core as mx

    name = str(mx.device_info().get("device_name", "this chip"))
    return name, 1e9 * _BANDWIDTH.get(name.split()[-1], _PLAIN_CHIP)
