"""How many rows an experiment decodes at a time: one choice for `plan` and for the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mlx_steer.config import BATCH_SIZE, ExperimentConfig
from mlx_steer.engine.memory import (
    MemoryEstimate,
    Workload,
    choose_batch_size,
    estimate,
)
from mlx_steer.experiment.counts import StageCount
from mlx_steer.model.size import ModelSize


@dataclass(frozen=True)
class BatchChoice:
    """How many rows are decoded at a time, and why.

    Attributes:
        memory: What the batch takes.
        limit: Bytes that can be used.
        note: Why it is not the config's batch size, if it is not.
        counts: What is decoded, read and scored, for whoever wants to know how far it is.
        size: The model's.
    """

    memory: MemoryEstimate
    limit: int
    note: str | None = None
    counts: tuple[StageCount, ...] = ()
    size: ModelSize | None = None

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
    config: ExperimentConfig, size: ModelSize, work: Workload, limit: int
) -> BatchChoice:
    """The config's batch size if it fits, or the largest that does.

    Args:
        config: The experiment.
        size: Its model's.
        work: See `workload`.
        limit: Bytes that can be used.

    Raises:
        ModelError: If not even one row fits.
    """
    asked = config.generation.batch_size
    wanted = None if asked is None else estimate(size, work, asked)
    if wanted is not None and wanted.fits(limit):
        return BatchChoice(wanted, limit)
    cap, name = asked or BATCH_SIZE, config.model.name
    rows = choose_batch_size(size, work, limit=limit, cap=cap, name=name)
    note = None
    if wanted is not None:
        note = (
            f"A batch of {asked} rows may need {wanted.most / 1e9:.1f} GB and this machine can use "
            f"{limit / 1e9:.1f}, so {rows} are decoded at a time; results do not depend on it."
        )
    return BatchChoice(estimate(size, work, rows), limit, note)


def workload(config: ExperimentConfig, counts: Sequence[StageCount]) -> Workload:
    """The longest prompt, the most conditions of a stage, and the most at one layer."""
    steered = [count for count in counts if count.conditions]
    if not steered:  # a run that extracts only
        return Workload(1, config.generation.max_tokens, 1, 1)
    return Workload(
        max(count.longest_prompt for count in steered),
        config.generation.max_tokens,
        max(count.conditions for count in steered),
        max(count.replayed for count in steered),
    )
