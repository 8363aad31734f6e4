"""The judge of a behavior of two sentences: likeness to the model's own prompted answers.

The log-ratio of a response says how much likelier the model finds it under the positive sentence
than under the negative one (see engine/log_ratio.py). The threshold comes from answers that the
model gave under either sentence. Knows numbers and text alone, so that verdicts are derived from a
run's scores without a model. What it measures is likeness to prompted answers, not meaning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from mlx_steer.judge.coherence import coherence
from mlx_steer.judge.judgement import Judgement
from mlx_steer.stats import Interval, Rate, auc, auc_interval, wilson

LEAST_AUC = 0.75
"""Below it a model does not tell the two sentences' answers apart, and nothing is run."""

FOLDS = 5

Pair = tuple[float, float]
"""Log-ratios of the answers to one question under the positive and the negative sentence."""


@dataclass(frozen=True)
class Calibration:
    """What the log-ratios of prompted answers say.

    Attributes:
        threshold: A response above it is shown.
        auc: Area under the ROC curve of positive against negative answers.
        error: Share of answers on the wrong side of a threshold that was chosen without them.
        told: For each pair, whether both its answers are on their own sides of such a threshold.
        questions: How many questions the answers are to.
    """

    threshold: float
    auc: Interval
    error: Rate
    told: tuple[bool, ...]
    questions: int


def calibrated(pairs: Sequence[Pair], questions: Sequence[str]) -> Calibration:
    """The threshold, and how well it does on questions that it was not chosen on.

    Args:
        pairs: At least two.
        questions: The question of each; pairs of one question are held out together.
    """
    order = {name: place for place, name in enumerate(dict.fromkeys(questions))}
    folds = [order[name] % FOLDS for name in questions]
    thresholds = {
        fold: threshold_of([p for p, own in zip(pairs, folds, strict=True) if own != fold])
        for fold in set(folds)
        if any(own != fold for own in folds)
    }
    wrong, told = 0, []
    for (positive, negative), fold in zip(pairs, folds, strict=True):
        limit = thresholds.get(fold, threshold_of(pairs))
        misses = (positive <= limit) + (negative > limit)
        wrong += misses
        told.append(misses == 0)
    scores = [score for pair in pairs for score in pair]
    area = auc(scores, [True, False] * len(pairs))
    return Calibration(
        threshold=round(threshold_of(pairs), 4),
        auc=auc_interval(area, len(pairs), len(pairs)),
        error=wilson(wrong, 2 * len(pairs)),
        told=tuple(told),
        questions=len(order),
    )


def threshold_of(pairs: Sequence[Pair]) -> float:
    """The threshold with the fewest answers on the wrong side; of several, in the widest gap."""
    values = sorted({score for pair in pairs for score in pair})
    middles = [((low + high) / 2, high - low) for low, high in pairwise(values)]

    def wrong(limit: float) -> int:
        return sum((positive <= limit) + (negative > limit) for positive, negative in pairs)

    if not middles:
        return values[0]
    return min(middles, key=lambda one: (wrong(one[0]), -one[1]))[0]


def judge_ratio(response: str, ratio: float | None, threshold: float, least: float) -> Judgement:
    """Judge a response by its log-ratio, after checking that it is coherent at all.

    Loops and scraps of a sentence are likely under it and would score high.

    Args:
        response: Its text.
        ratio: Its log-ratio; None for a response without tokens.
        threshold: See `Calibration`.
        least: Coherence below which a response is incoherent.
    """
    whole = (0, len(response))
    if ratio is None or coherence(response) < least:
        return Judgement("incoherent", "coherence", whole)
    rule = f"log-ratio {ratio:+.2f}, threshold {threshold:+.2f}"
    return Judgement("shown" if ratio > threshold else "absent", rule, whole)
