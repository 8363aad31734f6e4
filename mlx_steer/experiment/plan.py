"""What an experiment will do, before anything runs: rows, power, memory and time.

Loads no model (unless asked to measure) and downloads nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_steer.behaviors import Behavior
from mlx_steer.behaviors.two_sentences import behavior_of
from mlx_steer.config import ExperimentConfig
from mlx_steer.engine.memory import (
    BATCH_SIZES,
    MemoryEstimate,
    Workload,
    estimate,
    extraction_bytes,
    scoring_bytes,
)
from mlx_steer.errors import ConfigError, ModelError
from mlx_steer.experiment.batch_size import BatchChoice, choose_batch, workload
from mlx_steer.experiment.counts import Counts, StageCount
from mlx_steer.experiment.duration import Rates, learned_rates, measured_rates
from mlx_steer.experiment.model_facts import ModelFacts, find_model
from mlx_steer.experiment.part_rounds import Round, rounds_of
from mlx_steer.experiment.program import Program, Stage, answers
from mlx_steer.experiment.stand_ins import StandIns, stand_in_pairs
from mlx_steer.model.machine import working_set, working_set_of_mac
from mlx_steer.model.shape import Shape
from mlx_steer.model.size import ModelSize
from mlx_steer.stats import detectable_difference
from mlx_steer.words import PromptSet

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
        rise_corrected: The same among all primary tests, after correction.
        fall: Smallest fall, tested alone.
        fall_corrected: The same among all primary tests.
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

    def rows_on_mac(self, memory: int) -> int:
        """The most rows decoded at a time on a Mac with so many GB, of `sizes`; 0 if none fits."""
        limit = working_set_of_mac(memory)
        if max(self.extraction, self.scoring) > limit:
            return 0
        return max((line.rows for line in self.sizes if line.fits(limit)), default=0)


@dataclass(frozen=True)
class ExperimentPlan:
    """Everything that is known before a run.

    Attributes:
        name: Of the run.
        model: As in the config.
        downloaded: Whether the model can be loaded without a download.
        stages: See `StageCount`.
        comparisons: Primary tests: the chosen plain and the chosen gated cell against base.
        power: See `Power`.
        batch_size: The config's if it fits, or what does; if sizes are unknown, the config's.
        memory: None if the model's sizes are unknown.
        rates: None if no earlier run tells.
        seconds: By stage, at most; empty without rates.
        notes: What a person should know.
        rounds: If the run is made in parts: what each does between one merge and the next.
    """

    name: str
    model: str
    downloaded: bool
    stages: tuple[StageCount, ...]
    comparisons: int
    power: tuple[Power, ...]
    batch_size: int | None
    memory: MemoryPlan | None
    rates: Rates | None
    seconds: dict[str, float]
    notes: tuple[str, ...]
    rounds: tuple[Round, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        return asdict(self)


def plan_experiment(
    config: ExperimentConfig,
    *,
    measure: bool = False,
    runs: Path = Path("runs"),
    ranks: int = 1,
    parts: int = 1,
) -> ExperimentPlan:
    """Count an experiment's rows and estimate what they can show and take.

    Args:
        config: The experiment.
        measure: Load the model and time it, instead of learning speeds from earlier runs.
        runs: Where earlier runs are.
        ranks: How many a sharded model is spread over; memory is then each rank's.
        parts: How many parts the rows are made in (see part.py).

    Raises:
        ConfigError: If the config asks for layers that cannot be known yet or have no vector, or
            wants to measure a model that is not on this machine.
        DataError: If the behavior is not usable.
        ModelError: If the model's files are damaged, it does not have the layers, or not even one
            row fits into memory.
    """
    behavior = behavior_of(config.behavior)
    facts = _facts(config, measure, ranks)
    found = _counted(config, behavior, facts)
    compared = next(stage for stage in found.stages if stage.name == "compare")
    comparisons = len({c.kind for c in compared.conditions} & {"steering", "gated"})
    tested = Counter(item.set for item in compared.items)
    fits = _fits(config, facts, found, runs=None if measure else runs)
    rates = fits.rates
    times = {c.name: round(seconds(c, rates), 1) for c in found.counts} if rates else {}
    deciding = {stage.name for stage in found.stages if stage.decides}
    if behavior.sentences is not None:
        deciding.add([stage.name for stage in answers(config, behavior)][-1])
    return ExperimentPlan(
        name=config.name,
        model=config.model.name,
        downloaded=facts.downloaded,
        stages=found.counts,
        comparisons=comparisons,
        power=tuple(_power(config.statistics.alpha, comparisons, tested)),
        batch_size=fits.batch_size,
        memory=fits.memory,
        rates=rates,
        seconds=times,
        notes=(*facts.notes, *fits.notes),
        rounds=rounds_of(found.counts, deciding, times, parts) if parts > 1 else (),
    )


def _facts(config: ExperimentConfig, measure: bool, ranks: int) -> ModelFacts:
    """What is known of a model, or of a rank's part of it."""
    facts = find_model(config.model)
    if ranks > 1 and config.model.shard is None:
        raise ConfigError("a model is spread over ranks by model.shard: tensor, which is not set")
    if measure and not facts.downloaded:
        raise ConfigError(
            f"{config.model.name} is not on this machine, so it cannot be measured; "
            "leave out --measure, or run any command that loads it first"
        )
    return facts if facts.size is None else replace(facts, size=facts.size.over(ranks))


def batch_for(
    config: ExperimentConfig,
    behavior: Behavior,
    model: Model,
    *,
    sweep: bool = True,
    compare: bool = True,
    sharing: int = 1,
) -> BatchChoice:
    """How many rows of an experiment are decoded at a time, for a model that is loaded.

    Args:
        config: The experiment.
        behavior: What is steered.
        model: The model.
        sweep: Whether the run has a sweep.
        compare: Whether it has a comparison.
        sharing: Processes that share this machine's memory, each with the model.

    Raises:
        ModelError: If not even one row fits into memory.
    """
    from mlx.utils import tree_flatten

    leaves: list[tuple[str, mx.array]] = tree_flatten(model.network.parameters())  # type: ignore
    weights = sum(array.nbytes for _, array in leaves)
    size = ModelSize(Shape.of(model.config).over(model.team.size), weights, model.dtype.size)
    facts = ModelFacts(config.model.name, size, downloaded=True, chat=model.chat)
    found = _counted(config, behavior, facts, sweep=sweep, compare=compare)
    usable = model.team.least(working_set(max(sharing, model.team.on_this_machine())))
    choice = choose_batch(config, size, workload(config, found.counts), usable)
    return replace(choice, counts=found.counts, size=size)


@dataclass(frozen=True)
class _Counted:
    """An experiment's stages; these and what is done beside them in numbers; the highest layer."""

    stages: tuple[Stage, ...]
    counts: tuple[StageCount, ...]
    top: int


def _counted(
    config: ExperimentConfig,
    behavior: Behavior,
    facts: ModelFacts,
    *,
    sweep: bool = True,
    compare: bool = True,
) -> _Counted:
    known = StandIns(config, behavior, facts)
    program = Program(config, behavior, known)
    stages = list(program.search()) if sweep else []
    stages += program.compare(known.choice() if sweep else None) if compare else ()
    if behavior.sentences is not None:
        behavior = replace(behavior, pairs=stand_in_pairs(config, behavior))
    counts = Counts(behavior, facts, config.generation.max_tokens)
    made = [counts.stage(stage) for stage in stages]
    before = []
    if config.extract.vectors is None:
        shuffled = [c for stage in stages for c in stage.conditions if c.kind == "shuffled"]
        tops = [max(known.vectors), *(c.interventions[-1].layer for c in shuffled)]
        before.append(counts.extraction(tops))
    if behavior.sentences is not None:
        before += [counts.stage(stage) for stage in answers(config, behavior)]
        asked = [c for c in (*before[-config.extract.answers :], *made) if c.decoded]
        made.append(counts.judging([c for c in asked if c.name != "facts"]))
    if config.gate is not None:
        before.append(counts.gates(stages))
    if compare:
        chosen = known.choice() if sweep else None
        scored, priced = program.quoted(chosen), program.priced(chosen)
        made.append(counts.scoring(scored))
        if priced.items:  # two sentences have no other prompts
            made.append(counts.pricing(priced))
    return _Counted(tuple(stages), (*before, *made), max(known.vectors))


@dataclass(frozen=True)
class _Fits:
    """How much at a time this machine takes of an experiment, and how fast."""

    batch_size: int | None
    memory: MemoryPlan | None = None
    rates: Rates | None = None
    notes: tuple[str, ...] = ()


def _fits(config: ExperimentConfig, facts: ModelFacts, found: _Counted, runs: Path | None) -> _Fits:
    """Speeds are those of earlier runs, or measured now if there are no `runs` to learn from."""
    if facts.size is None:
        return _Fits(config.generation.batch_size)
    work = workload(config, found.counts)
    memory = _memory(config, facts.size, work, found)
    try:
        choice = choose_batch(config, facts.size, work, memory.working_set)
    except ModelError as error:
        if facts.downloaded:
            raise
        note = f"Not for this machine: {error}."  # but perhaps for another
        return _Fits(config.generation.batch_size, memory, notes=(note,))
    rates = (
        _measured(config, found.counts, choice.rows)
        if runs is None
        else learned_rates(facts.size, folders_in(runs))
    )
    notes = [choice.note] if choice.note else []
    return _Fits(choice.rows, memory, rates, (*notes, *_warnings(memory)))


def _memory(
    config: ExperimentConfig, size: ModelSize, work: Workload, found: _Counted
) -> MemoryPlan:
    extraction = 0
    first = found.counts[0]
    if first.name == "extract":
        each = (first.prompt_tokens // 2 + first.response_tokens) // max(1, first.prompts)
        extraction = extraction_bytes(size, first.prompts, each, found.top)
    rows = sorted({*BATCH_SIZES, config.generation.batch_size or 1})
    return MemoryPlan(
        working_set=working_set(),
        sizes=tuple(estimate(size, work, n) for n in rows),
        extraction=size.weights + extraction,
        scoring=size.weights + scoring_bytes(size, work),
    )


def folders_in(runs: Path) -> list[Path]:
    """The directories in one, run directories among them; none if it does not exist."""
    try:
        return sorted(path for path in runs.iterdir() if path.is_dir())
    except OSError:
        return []


def seconds(count: StageCount, rates: Rates) -> float:
    """What a stage takes at most."""
    return count.read / rates.read + count.decoded / rates.decode


def _measured(config: ExperimentConfig, counts: Sequence[StageCount], batch_size: int) -> Rates:
    made = [count for count in counts if count.decoded]
    rows = sum(count.rows for count in made)
    prompt = round(sum(count.prompt_tokens for count in made) / max(1, rows))
    return measured_rates(config.model, max(1, min(batch_size, rows)), prompt)


def _warnings(memory: MemoryPlan) -> list[str]:
    limit, notes = memory.working_set, []
    for name, peak in (("Extraction", memory.extraction), ("Scoring", memory.scoring)):
        if peak > limit:
            notes.append(
                f"{name} needs about {peak / 1e9:.1f} GB and this machine can use "
                f"{limit / 1e9:.1f}; use 4-bit weights or a smaller model."
            )
    return notes


def _power(alpha: float, comparisons: int, tested: Mapping[PromptSet, int]) -> Iterator[Power]:
    corrected = alpha / max(1, comparisons)
    sets: tuple[PromptSet, ...] = ("target", "other")
    for name in sets:
        n = tested[name]
        for rate in BASE_RATES:
            yield Power(
                name,
                n,
                rate,
                rise=detectable_difference(n, rate, POWER, alpha),
                rise_corrected=detectable_difference(n, rate, POWER, corrected),
                fall=detectable_difference(n, 1 - rate, POWER, alpha),
                fall_corrected=detectable_difference(n, 1 - rate, POWER, corrected),
            )
