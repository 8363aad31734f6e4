"""What an experiment will do, before anything runs: rows, power, memory and time.

Loads no model (unless asked to measure) and downloads nothing.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mlx_steer.behaviors import Behavior, load_behavior
from mlx_steer.config import ExperimentConfig
from mlx_steer.engine.memory import BATCH_SIZES, MemoryEstimate, extraction_bytes, scoring_bytes
from mlx_steer.errors import ConfigError
from mlx_steer.experiment.duration import Rates, assumed_rates, measured_rates
from mlx_steer.experiment.model_facts import ModelFacts, find_model
from mlx_steer.experiment.plan_batch import BatchChoice, batch_memory, choose_batch, largest
from mlx_steer.experiment.plan_stages import Counter, Stage
from mlx_steer.model.machine import working_set
from mlx_steer.stats import detectable_difference

if TYPE_CHECKING:
    import mlx.core as mx

    from mlx_steer.model.load import Model

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
        batch_size: The config's if it fits, or what does; if sizes are unknown, the config's.
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
    memory = _memory(config, facts, stages, max(counter.vectors))
    batch_size, rates = config.generation.batch_size, None
    notes = [*facts.notes]
    if memory is not None:
        choice = choose_batch(config, facts, stages, memory.working_set)
        batch_size = choice.rows
        rates = _rates(config, facts, stages, batch_size, measure)
        notes += [choice.note] if choice.note else []
        notes += _warnings(memory)
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


def batch_for(
    config: ExperimentConfig,
    behavior: Behavior,
    model: Model,
    *,
    sweep: bool = True,
    compare: bool = True,
) -> BatchChoice:
    """How many rows of an experiment are decoded at a time, for a model that is loaded.

    Args:
        config: The experiment.
        behavior: What is steered.
        model: The model.
        sweep: Whether the run has a sweep.
        compare: Whether it has a comparison.

    Raises:
        ModelError: If not even one row fits into memory.
    """
    from mlx.utils import tree_flatten

    leaves: list[tuple[str, mx.array]] = tree_flatten(model.network.parameters())  # type: ignore
    facts = ModelFacts(
        config.model.name,
        config=model.config,
        weights=sum(array.nbytes for _, array in leaves),
        dtype_bytes=model.dtype.size,
        downloaded=True,
        chat=model.chat,
    )
    stages = tuple(Counter(config, behavior, facts).stages(sweep=sweep, compare=compare))
    return choose_batch(config, facts, stages, working_set())


def _memory(
    config: ExperimentConfig, facts: ModelFacts, stages: tuple[Stage, ...], top: int
) -> MemoryPlan | None:
    if facts.config is None or facts.weights is None or facts.dtype_bytes is None:
        return None
    longest, conditions, _ = largest(stages)
    given = (facts.config, facts.weights, facts.dtype_bytes)
    tokens = config.generation.max_tokens
    sizes = {*BATCH_SIZES, config.generation.batch_size or 1}
    extraction = 0
    if stages[0].name == "extract":
        each = stages[0].prompt_tokens // 2 + stages[0].response_tokens
        pair = each // max(1, stages[0].prompts)
        extraction = extraction_bytes(*given[::2], stages[0].prompts, pair, top)
    return MemoryPlan(
        working_set=working_set(),
        sizes=tuple(batch_memory(config, facts, stages, rows) for rows in sorted(sizes)),
        extraction=facts.weights + extraction,
        scoring=facts.weights + scoring_bytes(*given[::2], longest, tokens, conditions),
    )


def _rates(
    config: ExperimentConfig,
    facts: ModelFacts,
    stages: tuple[Stage, ...],
    batch_size: int,
    measure: bool,
) -> Rates:
    made = [s for s in stages if s.decoded]
    rows = sum(s.rows for s in made)
    prompt = round(sum(s.prompt_tokens for s in made) / max(1, rows))
    at_once = max(1, min(batch_size, rows))
    if measure:
        return measured_rates(config.model, at_once, prompt)
    assert facts.shape is not None and facts.weights is not None and facts.dtype_bytes is not None
    tokens = prompt + config.generation.max_tokens
    return assumed_rates(
        facts.shape, facts.weights, facts.dtype_bytes, facts.quantized, at_once, tokens
    )


def _seconds(stage: Stage, rates: Rates) -> float:
    return round(stage.read / rates.read + stage.decoded / rates.decode, 1)


def _warnings(memory: MemoryPlan) -> list[str]:
    limit, notes = memory.working_set, []
    for name, peak in (("Extraction", memory.extraction), ("Scoring", memory.scoring)):
        if peak > limit:
            notes.append(
                f"{name} needs about {peak / 1e9:.1f} GB and this machine can use "
                f"{limit / 1e9:.1f}; use 4-bit weights or a smaller model."
            )
    return notes


def _power(alpha: float, comparisons: int, prompts: dict[str, int]) -> list[Power]:
    corrected = alpha / max(1, comparisons)
    return [
        Power(
            name,
            n,
            rate,
            rise=detectable_difference(n, rate, POWER, alpha),
            rise_corrected=detectable_difference(n, rate, POWER, corrected),
            fall=detectable_difference(n, 1 - rate, POWER, alpha),
            fall_corrected=detectable_difference(n, 1 - rate, POWER, corrected),
        )
        for name, n in prompts.items()
        for rate in BASE_RATES
    ]
