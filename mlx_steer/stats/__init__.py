"""Rates with intervals, paired tests, ranking curves and agreement: pure functions of numbers.

Knows nothing about models, prompts or verdicts. A misuse (lengths that differ, nothing to count) is
a programming error and raises `ValueError`.
"""

from mlx_steer.stats.agreement import cohens_kappa
from mlx_steer.stats.intervals import Mean, Rate, mean_interval, wilson
from mlx_steer.stats.paired import (
    Finding,
    PairedDifference,
    detectable_difference,
    finding,
    holm,
    paired,
)
from mlx_steer.stats.ranking import (
    Interval,
    RocCurve,
    auc,
    auc_interval,
    roc_curve,
    threshold_for_fpr,
)

__all__ = [
    "Finding",
    "Interval",
    "Mean",
    "PairedDifference",
    "Rate",
    "RocCurve",
    "auc",
    "auc_interval",
    "cohens_kappa",
    "detectable_difference",
    "finding",
    "holm",
    "mean_interval",
    "paired",
    "roc_curve",
    "threshold_for_fpr",
    "wilson",
]
