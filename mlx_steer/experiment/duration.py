"""How long a run takes: by measuring the model, or by what earlier runs on this machine say."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mlx_steer.config import ModelConfig
from mlx_steer.model.machine import device_name
from mlx_steer.model.size import ModelSize
from mlx_steer.run.rates import MachineRates
from mlx_steer.run.records import Manifest

# Sizes that differ by less are the same model's.
_SAME = 0.02


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


def learned_rates(size: ModelSize, runs: Iterable[Path]) -> Rates | None:
    """Speeds from the manifests of earlier runs on this machine.

    Those of the model nearest in size are taken, of equals the newest run's; a model of another
    size takes time by its number of parameters.

    Args:
        size: The model's.
        runs: Run directories.

    Returns:
        None if no run on this machine had weights and numbers of the same kind.
    """
    found = [
        (_distance(size, one.rates), one.started, folder, one)
        for folder in runs
        if (one := _manifest(folder)) is not None
        and one.rates is not None
        and one.device == device_name()
        and _alike(size, one.rates)
    ]
    if not found:
        return None
    nearest = min(round(distance, 3) for distance, *_ in found)
    _, _, folder, manifest = max(
        (line for line in found if round(line[0], 3) == nearest), key=lambda line: line[1]
    )
    rates = manifest.rates
    assert rates is not None
    basis = f"Learned from {folder} ({manifest.model.id}, {rates.rows} rows at a time)"
    factor = rates.parameters / size.shape.active_parameters
    if nearest > _SAME:
        basis += f", by the size of this model: {1 / factor:.2g} times as large"
    return Rates(round(rates.read * factor, 1), round(rates.decode * factor, 1), f"{basis}.")


def _manifest(folder: Path) -> Manifest | None:
    try:
        return Manifest.model_validate_json((folder / "manifest.json").read_bytes())
    except (OSError, ValueError):
        return None


def _distance(size: ModelSize, rates: MachineRates) -> float:
    return abs(math.log(rates.parameters / size.shape.active_parameters))


def _alike(size: ModelSize, rates: MachineRates) -> bool:
    """Whether both have numbers of the same width and weights as finely quantised."""
    own = size.weights / size.shape.active_parameters
    return rates.dtype_bytes == size.dtype_bytes and 0.8 < own / rates.parameter_bytes < 1.25
