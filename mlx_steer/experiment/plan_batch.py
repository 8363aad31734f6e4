"""The batch size of an experiment: one choice for `plan` and for the run."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_steer.config import BATCH_SIZE, ExperimentConfig
from mlx_steer.engine.memory import MemoryEstimate, choose_batch_size, estimate
from mlx_steer.experiment.model_facts import ModelFacts
from mlx_steer.experiment.plan_stages import Stage


@dataclass(frozen=True)
class BatchChoice:
    """How many rows are decoded at a time, and why.

    Attributes:
        memory: What the batch takes.
        limit: Bytes that can be used.
        note: Why it is not the config's batch size, if it is not.
    """

    memory: MemoryEstimate
    limit: int
    note: str | None = None

    @property
    def rows(self) -> int:
        """Rows decoded at a time."""
        return self.memory.rows

    def __str__(self) -> str:
        """One line for people."""
        found = self.memory
        parts = (
            ("weights", found.weights),
            ("keys and values", found.kv_cache + found.shared + found.copies),
            ("activations", found.activations),
            ("logits", found.logits),
            ("peak", found.peak),
        )
        sizes = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in parts)
        return (
            f"memory in GB with {found.rows} rows at a time: {sizes}, of {self.limit / 1e9:.1f} "
            "that MLX can use here"
        )


def choose_batch(
    config: ExperimentConfig, facts: ModelFacts, stages: tuple[Stage, ...], limit: int
) -> BatchChoice:
    """The config's batch size if it fits, or the largest that does.

    Args:
        config: The experiment.
        facts: What is known of its model, sizes included.
        stages: The experiment's.
        limit: Bytes that can be used.

    Raises:
        ModelError: If not even one row fits.
    """
    asked = config.generation.batch_size
    if asked is not None:
        memory = batch_memory(config, facts, stages, asked)
        if memory.fits(limit):
            return BatchChoice(memory, limit)
    assert facts.config is not None and facts.weights is not None and facts.dtype_bytes is not None
    longest, conditions, replayed = largest(stages)
    rows = choose_batch_size(
        facts.config,
        facts.weights,
        facts.dtype_bytes,
        longest,
        config.generation.max_tokens,
        conditions=conditions,
        replayed=replayed,
        limit=limit,
        cap=asked or BATCH_SIZE,
        name=config.model.name,
    )
    note = None
    if asked is not None:
        note = (
            f"A batch of {asked} rows may need {memory.most / 1e9:.1f} GB and this machine can use "
            f"{limit / 1e9:.1f}, so {rows} are decoded at a time; results do not depend on it."
        )
    return BatchChoice(batch_memory(config, facts, stages, rows), limit, note)


def batch_memory(
    config: ExperimentConfig, facts: ModelFacts, stages: tuple[Stage, ...], rows: int
) -> MemoryEstimate:
    """What so many rows at a time take."""
    assert facts.config is not None and facts.weights is not None and facts.dtype_bytes is not None
    longest, conditions, replayed = largest(stages)
    return estimate(
        facts.config,
        facts.weights,
        facts.dtype_bytes,
        rows,
        longest,
        config.generation.max_tokens,
        conditions=conditions,
        replayed=replayed,
    )


def largest(stages: tuple[Stage, ...]) -> tuple[int, int, int]:
    """Tokens of the longest prompt, the most conditions of a stage, and the most at one layer."""
    sizes = [(s.longest_prompt, s.conditions, s.replayed) for s in stages if s.conditions]
    # None if a run extracts only.
    longest, conditions, replayed = map(max, zip(*sizes or [(1, 1, 1)], strict=True))
    return longest, conditions, replayed
