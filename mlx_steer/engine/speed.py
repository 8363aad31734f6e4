"""How fast this machine decodes and reads prompts, steered and not; and facts about its GPU."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import mlx.core as mx

from mlx_steer.engine.forward import Plans
from mlx_steer.engine.guard import forward_of
from mlx_steer.engine.prefill import Prefill
from mlx_steer.engine.row_plan import Plan
from mlx_steer.model.load import Model
from mlx_steer.model.machine import has_metal

_PROMPT_TOKENS = 32
_WARM_UP = 2
# Single steps vary by some percent: enough of them for a median, in a time one waits for.
MOST_STEPS, _SECONDS = 40, 6.0
_FACTS = ("architecture", "memory_size", "max_recommended_working_set_size", "max_buffer_length")


@dataclass(frozen=True)
class DecodeSpeed:
    """Decoding with and without steering, step by step in turn.

    Attributes:
        rows: Rows decoded at a time.
        unsteered: Tokens per second, all rows together, median step.
        steered: The same with one vector added at one layer in every row.
    """

    rows: int
    unsteered: float
    steered: float

    @property
    def ratio(self) -> float:
        """Steered speed over unsteered speed; 1 means that steering costs nothing."""
        return self.steered / self.unsteered


def decode_speed(model: Model, rows: int, seconds: float = _SECONDS) -> DecodeSpeed:
    """Time decode steps, steered and unsteered ones in turn, so that both see the same machine."""
    from mlx_lm.generate import wired_limit

    layer = model.num_layers // 2
    tokens = mx.ones((rows,), mx.int32)
    plan = Plan(mx.full((rows, 1, model.hidden_size), 0.01, model.dtype))
    times: tuple[list[float], list[float]] = ([], [])
    with wired_limit(model.network), forward_of(model.network) as forward:
        prompts = [[1] * _PROMPT_TOKENS] * rows
        plain, steered = (Prefill(forward).run(prompts).caches for _ in range(2))

        def step(caches: list[Any], plans: Plans) -> float:
            start = time.perf_counter()
            mx.eval(mx.argmax(forward.step(tokens, caches, plans), axis=-1))
            return time.perf_counter() - start

        deadline = time.perf_counter() + seconds
        while len(times[0]) < _WARM_UP + MOST_STEPS:
            if len(times[0]) > _WARM_UP and time.perf_counter() > deadline:
                break
            times[0].append(step(plain, {}))
            times[1].append(step(steered, {layer: plan}))
    off, on = (median(found[_WARM_UP:]) for found in times)
    return DecodeSpeed(rows, round(rows / off, 2), round(rows / on, 2))


def prefill_speed(model: Model, rows: int, tokens: int = _PROMPT_TOKENS) -> float:
    """Prompt tokens read per second, with so many rows at a time."""
    with forward_of(model.network) as forward:
        prefill = Prefill(forward)
        prompts = [[1] * tokens] * rows

        def once() -> float:
            start = time.perf_counter()
            prefill.run(prompts)
            return time.perf_counter() - start

        # The first pass also compiles kernels on Metal.
        return rows * tokens / min(_repeated(once, 2))


def metal_facts() -> dict[str, int | str]:
    """What Metal says of the GPU, in bytes; and the wired limit in MB, 0 being the system's own."""
    if not has_metal():
        return {}
    device = mx.device_info()
    facts: dict[str, int | str] = {name: device[name] for name in _FACTS if name in device}
    if sys.platform == "darwin":
        asked = ["sysctl", "-n", "iogpu.wired_limit_mb"]
        try:
            answer = subprocess.run(asked, capture_output=True, text=True, timeout=5, check=True)
            facts["wired_limit_mb"] = int(answer.stdout)
        except (OSError, ValueError, subprocess.SubprocessError):
            facts["wired_limit_mb"] = "unknown"
    return facts


def _repeated(once: Callable[[], float], times: int) -> list[float]:
    return [once() for _ in range(times)]
