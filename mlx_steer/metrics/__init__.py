"""The numbers of a run: rows -> verdicts -> rates, tests and the choice of a cell.

Reads a run directory and nothing else; needs no model and never mlx.
"""

from mlx_steer.metrics.choose import Cell, cell_of, choose_cell, choose_system_prompt
from mlx_steer.metrics.compute import compute_metrics
from mlx_steer.metrics.metrics_file import Metrics, metrics_text, read_metrics
from mlx_steer.metrics.verdicts import Scored, judged

__all__ = [
    "Cell",
    "Metrics",
    "Scored",
    "cell_of",
    "choose_cell",
    "choose_system_prompt",
    "compute_metrics",
    "judged",
    "metrics_text",
    "read_metrics",
]
