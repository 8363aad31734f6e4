"""What every part of a run works with."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_steer.behaviors import Behavior
from mlx_steer.config import ExperimentConfig
from mlx_steer.experiment.out_of_memory import BatchSize
from mlx_steer.experiment.progress import Progress
from mlx_steer.run.directory import RunDirectory


@dataclass(frozen=True, eq=False)
class Work:
    """An experiment under way, without its model.

    Attributes:
        config: The experiment.
        behavior: What is steered.
        run: Its directory, locked.
        progress: Told what is going on.
        batch: Rows decoded at a time.
    """

    config: ExperimentConfig
    behavior: Behavior
    run: RunDirectory
    progress: Progress
    batch: BatchSize
