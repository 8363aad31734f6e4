"""What an experiment will do, before anything runs: rows, power, memory and time.

Loads no model (unless asked to measure) and downloads nothing.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from mlx_steer.config import ExperimentConfig
from mlx_steer.datasets import load_behavior
from mlx_steer.errors import ConfigError
from mlx_steer.memory import (
    BATCH_SIZES,
    MemoryEstimate,
    choose_batch_size,
    estimate,
    extraction_bytes,
    scoring_bytes,
    working_set,
)
from mlx_steer.planning.duration import Rates, assumed_rates, measured_rates
from mlx_steer.planning.facts import ModelFacts, find_model
from mlx_steer.planning.stages import Counter, Stage
from mlx_steer.stats import detectable_difference

__all__ = ["ExperimentPlan", "MemoryPlan", "Power", "Rates", "Stage", "plan_experiment"]

POWER = 0.8
BASE_RATES = (0.05, 0.25, 0.5, 0.85)


@dataclass(frozen=True)
class Power:
    """What so many test prompts can show against base.

    Attributes:
        set: target or other.
        prompts: Test prompts of the set.
        base_rate: True rate under base.
        rise: Smallest rise that is found with 80 % power, tested alone; None if none is.
        rise_corrected: The same among all comparisons with base, after correction.
        fall: Smallest fall, tested alone.
        fall_corrected: The same among all comparisons.
    """

    set: str
    prompts: int
    base_rate: float
    rise: float | None
    rise_corrected: float | None
    fall: float | None
    fall_corrected: float | None


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes.

    Attributes:
        working_set: What MLX can use on this machine.
        sizes: Estimates by batch size.
        extraction: Peak of the extraction, weights included.
        scoring: Peak of the scoring, weights included.
    """

    working_set: int
    sizes: tuple[MemoryEstimate, ...]
    extraction: int
    scoring: int


@dataclass(frozen=True)
class ExperimentPlan:
    """Everything that is known before a run.

    Attributes:
        name: Of the run.
        model: As in the config.
        downloaded: Whether the model can be loaded without a download.
        stages: See `Stage`.
        comparisons: Conditions of the comparison that are tested against base.
        power: See `Power`.
        batch_size: Chosen, or the config's; None if the model's sizes are unknown.
        memory: None if the model's sizes are unknown.
        rates: None if the model's sizes are unknown.
        seconds: By stage, at most; empty if the model's sizes are unknown.
        notes: What a person should know.
    """

    name: str
    model: str
    downloaded: bool
    stages: tuple[Stage, ...]
    comparisons: int
    power: tuple[Power, ...]
    batch_size: int | None
    memory: MemoryPlan | None
    rates: Rates | None
    seconds: dict[str, float]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        return asdict(self)


def plan_experiment(config: ExperimentConfig, *, measure: bool = False) -> ExperimentPlan:
    """Count an experiment's rows and estimate what they can show and take.

    Args:
        config: The experiment.
        measure: Load the model and time it, instead of assuming speeds.

    Raises:
        ConfigError: If the config asks for layers that do not exist or cannot be known yet, or
            wants to measure a model that is not on this machine.
        DataError: If the behavior is not usable.
        ModelError: If the model's files are damaged, or not even one row fits into memory.
    """
    behavior = load_behavior(config.behavior)
    facts = find_model(config.model)
    if measure and not facts.downloaded:
        raise ConfigError(
            f"{config.model.name} is not on this machine, so it cannot be measured; "
            "leave out --measure, or run any command that loads it first"
        )
    counter = Counter(config, behavior, facts)
    stages = tuple(counter.stages())
    comparisons = sum(c.kind != "base" for c in counter.compare())
    tested = {name: len(counter.items("test", name)) for name in ("target", "other")}
    memory = _memory(config, facts, stages)
    batch_size, rates = config.generation.batch_size, None
    notes = [*facts.notes]
    if memory is not None:
        batch_size = batch_size or _batch_size(config, facts, stages, memory)
        rates = _rates(config, facts, stages, batch_size, measure)
        notes += _warnings(batch_size, memory)
    return ExperimentPlan(
        name=config.name,
        model=config.model.name,
        downloaded=facts.downloaded,
        stages=stages,
        comparisons=comparisons,
        power=tuple(_power(config.statistics.alpha, comparisons, tested)),
        batch_size=batch_size,
        memory=memory,
        rates=rates,
        seconds={s.name: _seconds(s, rates) for s in stages} if rates else {},
        notes=tuple(notes),
    )
