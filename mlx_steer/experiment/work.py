"""What every part of a run works with."""

from __future__ import annotations

from dataclasses import dataclass, field

from mlx_steer.behaviors import Behavior
from mlx_steer.config import ExperimentConfig
from mlx_steer.experiment.out_of_memory import BatchSize
from mlx_steer.experiment.progress import Progress
from mlx_steer.run.directory import RunDirectory
from mlx_steer.team import Team


@dataclass(frozen=True, eq=False)
class Work:
    """An experiment under way, without its model.

    Attributes:
        config: The experiment.
        behavior: What is steered.
        run: Its directory, locked.
        progress: Told what is going on.
        batch: Rows decoded at a time.
        team: The ranks that rows are dealt out to; a model over ranks is none of them.
    """

    config: ExperimentConfig
    behavior: Behavior
    run: RunDirectory
    progress: Progress
    batch: BatchSize
    team: Team = field(default_factory=Team)
