"""The numbers of a run: rows -> verdicts -> rates, tests and the choice of a cell.

Reads a run directory and nothing else; needs no model and never mlx.
"""

from mlx_steer.metrics.choose import Cell, cell_of, choose_cell, choose_system_prompt
from mlx_steer.metrics.compute import compute_metrics
from mlx_steer.metrics.verdicts import Scored, judged
from mlx_steer.run.reader import RunData, load_run, read_labels
from mlx_steer.run.records import (
    BehaviorRecord,
    Choice,
    ConditionRecord,
    GateRecord,
    InterventionRecord,
    Row,
)

__all__ = [
    "BehaviorRecord",
    "Cell",
    "Choice",
    "ConditionRecord",
    "GateRecord",
    "InterventionRecord",
    "Row",
    "RunData",
    "Scored",
    "cell_of",
    "choose_cell",
    "choose_system_prompt",
    "compute_metrics",
    "judged",
    "load_run",
    "read_labels",
]
