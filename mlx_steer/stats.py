"""Rates with intervals, paired tests, ranking curves and agreement: pure functions of numbers.

Knows nothing about models, prompts or verdicts. A misuse (lengths that differ, nothing to count) is
a programming error and raises `ValueError`.
"""

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence, Sized
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
import numpy.typing as npt

Finding = Literal["higher", "lower", "no difference shown"]
Discordance = Literal["gains_only", "independent"]
Booleans = Sequence[bool] | npt.NDArray[np.bool_]
Numbers = Sequence[float] | npt.NDArray[np.floating]

RESAMPLES = 10_000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Rate:
    """A share of rows, count / n (nan of 0 rows), with its interval in [0, 1]."""

    count: int
    n: int
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Mean:
    """A mean with its bootstrap interval: `low` <= `value` <= `high`, from `n` values."""

    n: int
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class PairedDifference:
    """The same prompts under a base and another condition.

    Attributes:
        n: Prompts.
        gained: Prompts that show it under the other condition only.
        lost: Prompts that show it under the base condition only.
        difference: Rate under the other condition minus rate under base, (gained - lost) / n.
        low: Lower limit of the 95 % interval of the difference, in [-1, 1].
        high: Upper limit, in [-1, 1].
        p_value: Two-sided p of the exact McNemar test, not adjusted for other comparisons.
    """

    n: int
    gained: int
    lost: int
    difference: float
    low: float
    high: float
    p_value: float


@dataclass(frozen=True)
class RocPoint:
    """The rates reached when a score above `threshold` counts as positive."""

    threshold: float
    false_positive_rate: float
    true_positive_rate: float


def wilson(count: int, n: int, confidence: float = CONFIDENCE) -> Rate:
    """A rate with its Wilson score interval (Wilson 1927; no continuity correction).

    Args:
        count: Rows counted, 0 to n.
        n: All rows. With 0 rows the value is nan and the interval all of [0, 1].
        confidence: Coverage, between 0 and 1.

    Raises:
        ValueError: If count is not in 0..n or confidence not between 0 and 1.
    """
    if not 0 <= count <= n:
        raise ValueError(f"A rate needs a count from 0 to n, not {count} of {n}.")
    _check_open_unit("confidence", confidence)
    if n == 0:
        return Rate(0, 0, math.nan, 0.0, 1.0)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    value = count / n
    centre = (value + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(value * (1 - value) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # At both ends the limit is the end itself; rounding would leave it some 1e-17 beside it.
    low = 0.0 if count == 0 else max(0.0, centre - half)
    high = 1.0 if count == n else min(1.0, centre + half)
    return Rate(count, n, value, low, high)


def paired(
    base: Booleans, other: Booleans, *, seed: int, resamples: int = RESAMPLES
) -> PairedDifference:
    """Compare two conditions prompt by prompt.

    The test is the exact McNemar test: under no difference, gains among the discordant pairs are
    Binomial(gained + lost, 1/2); two-sided by doubling.

    The interval is a 95 % percentile bootstrap over prompts, smoothed: prompts are drawn from the
    observed pairs plus two pseudo-pairs spread over the 2 x 2 table, 1/2 in each cell (Agresti and
    Min 2005, "Simple improved confidence intervals for comparing matched proportions"). The plain
    bootstrap cannot draw what was not seen: without discordant pairs it claims zero width, and with
    few of them its true coverage is far under 95 % (39 % at 16 prompts and a gain rate of 0.03;
    smoothed: above 99 %). BCa does not cure that: it too stays inside what was seen, and its bias
    term is ill-defined on so few distinct values. The interval and the test are different methods
    and can disagree near p = 0.05; `finding` follows the test.

    The result depends on the counts and the seed alone, not on the order of the prompts.

    Args:
        base: Per prompt, whether the base condition shows it.
        other: The same prompts in the same order under the other condition.
        seed: Seed of the bootstrap.
        resamples: Bootstrap samples.

    Raises:
        ValueError: If the lengths differ, there are no prompts, or a value is not a boolean.
    """
    before, after = _booleans("base", base), _booleans("other", other)
    n = _same_length(before, after)
    _check_resamples(resamples)
    gained = int(np.count_nonzero(after & ~before))
    lost = int(np.count_nonzero(before & ~after))
    shares = np.array([gained + 0.5, lost + 0.5, n - gained - lost + 1.0]) / (n + 2)
    # Resampling prompts and counting is one multinomial draw per sample.
    drawn = np.random.default_rng(seed).multinomial(n, shares, size=resamples)
    low, high = _percentiles((drawn[:, 0] - drawn[:, 1]) / n)
    difference = (gained - lost) / n
    return PairedDifference(
        n=n,
        gained=gained,
        lost=lost,
        difference=difference,
        # Very few resamples may all fall on one side of what was observed.
        low=min(low, difference),
        high=max(high, difference),
        p_value=_mcnemar(gained, lost),
    )


def finding(difference: PairedDifference, adjusted_p: float, alpha: float = 0.05) -> Finding:
    """What may be said of a comparison: its direction if the adjusted p is at most alpha.

    Raises:
        ValueError: If adjusted_p is not in [0, 1] or alpha not between 0 and 1.
    """
    _check_probabilities([adjusted_p])
    _check_open_unit("alpha", alpha)
    if adjusted_p > alpha or difference.gained == difference.lost:
        return "no difference shown"
    return "higher" if difference.gained > difference.lost else "lower"


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for their number by Holm's step-down method (Holm 1979), in the order given.

    The chance of any false rejection among all of them stays at most alpha, however they depend on
    one another. No p-values give an empty list.

    Raises:
        ValueError: If a p-value is not in [0, 1].
    """
    _check_probabilities(p_values)
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def mean_interval(values: Numbers, seed: int, resamples: int = RESAMPLES) -> Mean:
    """A mean with its 95 % percentile bootstrap interval.

    Equal values, and a single one, give an interval without width: the bootstrap only knows the
    spread it sees. With few values it is somewhat too narrow.

    Args:
        values: Finite numbers, such as the coherence of each row.
        seed: Seed of the bootstrap.
        resamples: Bootstrap samples.

    Raises:
        ValueError: If there are no values, or one is not finite.
    """
    sample = _numbers("values", values)
    _check_resamples(resamples)
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    block = max(1, 1_000_000 // sample.size)  # bounds the memory at some 16 MB
    for start in range(0, resamples, block):
        size = (min(block, resamples - start), sample.size)
        means[start : start + block] = sample[rng.integers(sample.size, size=size)].mean(axis=1)
    value = float(sample.mean())
    low, high = _percentiles(means)
    # Sums in another order differ in the last bit, which shows when all values are equal.
    return Mean(sample.size, value, min(low, value), max(high, value))


def detectable_difference(
    n: int,
    base_rate: float,
    power: float = 0.8,
    alpha: float = 0.05,
    discordance: Discordance = "independent",
) -> float | None:
    """Smallest rise of a rate that the exact McNemar test finds with the given power at n prompts.

    Computed from the binomial distributions themselves; only rejections in the right direction
    count. The answer depends on how the verdicts of the two conditions hang together, which is not
    known before a run, so two assumptions bracket what is usual:

    - "independent" (default, conservative): given the two rates, the verdicts on a prompt are
      independent, so many pairs are discordant by chance.
    - "gains_only" (optimistic): no prompt is ever lost; every discordant pair is a gain.

    For the smallest fall of a rate, pass 1 - base_rate.

    Args:
        n: Prompts.
        base_rate: True rate under base, in [0, 1].
        power: Wanted probability of finding the rise.
        alpha: Significance level, two-sided. For k comparisons under Holm, alpha / k is safe.
        discordance: The assumption on discordant pairs.

    Returns:
        The difference of rates, in (0, 1 - base_rate], or None if even a rise to 1 is not found
        with that power.

    Raises:
        ValueError: If an argument is out of its range or the assumption unknown.
    """
    if n < 0:
        raise ValueError(f"The number of prompts must be 0 or more, not {n}.")
    _check_probabilities([base_rate], "base_rate")
    _check_open_unit("power", power)
    _check_open_unit("alpha", alpha)
    if discordance not in ("gains_only", "independent"):
        raise ValueError(f"discordance must be gains_only or independent, not {discordance!r}.")
    rejects = _mcnemar_power(n, alpha)

    def reached(rise: float) -> bool:
        after = min(1.0, base_rate + rise)
        if discordance == "gains_only":
            return rejects(rise, 0.0) >= power
        return rejects((1 - base_rate) * after, base_rate * (1 - after)) >= power

    # Power grows with the rise under both assumptions, so halving finds the crossing.
    short, enough = 0.0, 1.0 - base_rate
    if not reached(enough):
        return None
    while enough - short > 1e-9:
        middle = (short + enough) / 2
        short, enough = (short, middle) if reached(middle) else (middle, enough)
    return enough


def auc(scores: Numbers, labels: Booleans) -> float:
    """Area under the ROC curve: the chance that a positive outscores a negative, ties half.

    Equal to the Mann-Whitney U statistic over the number of pairs (Hanley and McNeil 1982).

    Raises:
        ValueError: If lengths differ, a score is not finite, or one of the two classes is missing.
    """
    values, positive = _scored("the area under the ROC curve", scores, labels)
    positives = int(np.count_nonzero(positive))
    ranks = _midranks(values)
    u = float(ranks[positive].sum()) - positives * (positives + 1) / 2
    return u / (positives * (values.size - positives))


def roc_curve(scores: Numbers, labels: Booleans) -> list[RocPoint]:
    """Points of the ROC curve, from (0, 0) to (1, 1); tied scores share one point.

    The trapezoids under these points add up to `auc`. Thresholds descend from the highest score to
    -inf; a score is positive when it lies *above* the threshold, as in `threshold_for_fpr`.

    Raises:
        ValueError: If lengths differ, a score is not finite, or one of the two classes is missing.
    """
    values, positive = _scored("an ROC curve", scores, labels)
    above_pos, above_neg = np.sort(values[positive]), np.sort(values[~positive])
    points = []
    for threshold in [*np.unique(values)[::-1].tolist(), -math.inf]:
        true = above_pos.size - int(np.searchsorted(above_pos, threshold, side="right"))
        false = above_neg.size - int(np.searchsorted(above_neg, threshold, side="right"))
        points.append(RocPoint(threshold, false / above_neg.size, true / above_pos.size))
    return points


def threshold_for_fpr(negative_scores: Numbers, rate: float) -> tuple[float, Rate]:
    """Lowest threshold that lets at most a share `rate` of the negatives score above it.

    Args:
        negative_scores: Scores of what should not count as positive. A score is positive when it
            lies *above* the threshold, so the threshold is one of these scores (-inf at rate 1).
        rate: False positive rate allowed, in [0, 1].

    Returns:
        The threshold, and the false positive rate it has on these scores, with its Wilson interval.
        On new scores the rate tends to be a little higher, since the threshold was chosen on these.

    Raises:
        ValueError: If there are no scores, one is not finite, or rate is not in [0, 1].
    """
    values = np.sort(_numbers("negative_scores", negative_scores))[::-1]
    _check_probabilities([rate], "rate")
    # 0.29 * 100 is 28.999999999999996 in floating point; 29 of 100 are allowed all the same.
    allowed = math.floor(rate * values.size + 1e-9)
    threshold = float(values[allowed]) if allowed < values.size else -math.inf
    return threshold, wilson(int(np.count_nonzero(values > threshold)), values.size)


def spearman(x: Numbers, y: Numbers) -> float:
    """Spearman's rank correlation, midranks for ties; nan if x or y never varies.

    Raises:
        ValueError: If lengths differ, there are no values, or one is not finite.
    """
    first, second = _numbers("x", x), _numbers("y", y)
    _same_length(first, second)
    ranks = [_midranks(values) for values in (first, second)]
    u, v = (r - r.mean() for r in ranks)
    spread = math.sqrt(float(u @ u) * float(v @ v))
    if spread == 0:
        return math.nan
    return max(-1.0, min(1.0, float(u @ v) / spread))


def cohens_kappa(a: Sequence[Hashable], b: Sequence[Hashable]) -> float:
    """Agreement of two raters beyond chance (Cohen 1960): 1 is full agreement, 0 what chance gives.

    Returns nan if both raters gave one and the same label throughout: chance alone explains that.

    Raises:
        ValueError: If lengths differ or there are no items.
    """
    n = _same_length(a, b)
    agreed = sum(x == y for x, y in zip(a, b, strict=True))
    left, right = Counter(a), Counter(b)
    # Times n squared on both sides: in whole numbers, full and chance agreement come out exactly.
    chance = sum(count * right[label] for label, count in left.items())
    return (agreed * n - chance) / (n * n - chance) if chance < n * n else math.nan


def _mcnemar(gained: int, lost: int) -> float:
    """Two-sided exact McNemar p, in whole numbers until the one division."""
    pairs = gained + lost
    tail = sum(math.comb(pairs, k) for k in range(min(gained, lost) + 1))
    p_value: float = 2 * tail / 2**pairs
    return min(1.0, p_value)


def _mcnemar_power(n: int, alpha: float) -> Callable[[float, float], float]:
    """Power of the exact McNemar test at n prompts, given the chances of a gain and a loss."""
    from scipy.special import bdtrc

    pairs = np.arange(n + 1)
    # The fewest gains that reject among m discordant pairs; more than m means never.
    needed = np.empty(n + 1)
    gains = 1
    for m in range(n + 1):
        # bdtrc(k, m, p) is the chance of more than k successes; the slack absorbs its rounding.
        while gains <= m and 2 * bdtrc(gains - 1, m, 0.5) > alpha * (1 + 1e-9):
            gains += 1
        needed[m] = gains

    def rejects(gain: float, loss: float) -> float:
        discordant = min(1.0, gain + loss)
        if discordant <= 0:
            return 0.0
        more = bdtrc(pairs, n, discordant)  # P(more than m discordant pairs)
        chance = np.diff(-more, prepend=-1.0)
        possible = needed <= pairs
        share = min(1.0, gain / discordant)
        tails = bdtrc(needed[possible] - 1, pairs[possible], share)
        return float(chance[possible] @ tails)

    return rejects


def _percentiles(samples: npt.NDArray[np.float64]) -> tuple[float, float]:
    """The central 95 % of bootstrap samples; between two drawn values, the outer one."""
    tail = (1 - CONFIDENCE) / 2
    low = float(np.quantile(samples, tail, method="lower"))
    high = float(np.quantile(samples, 1 - tail, method="higher"))
    return low, high


def _midranks(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Ranks from 1; tied values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: npt.NDArray[np.float64] = (last - (counts - 1) / 2)[inverse]
    return ranks


def _scored(
    what: str, scores: Numbers, labels: Booleans
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    values, positive = _numbers("scores", scores), _booleans("labels", labels)
    _same_length(values, positive)
    if positive.all() or not positive.any():
        missing = "negative" if positive.all() else "positive"
        raise ValueError(f"There is no {missing} label: {what} needs both.")
    return values, positive


def _booleans(name: str, values: Booleans) -> npt.NDArray[np.bool_]:
    array = np.asarray(values)
    # A verdict passed by mistake would count as true, "absent" included.
    if array.ndim != 1 or (array.size and array.dtype != np.bool_):
        raise ValueError(
            f"{name} must be a flat sequence of booleans, not of {array.dtype} values."
        )
    return array.astype(np.bool_)


def _numbers(name: str, values: Numbers) -> npt.NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name} must be a flat sequence of at least one number.")
    finite = np.isfinite(array)
    if not finite.all():
        first = int(finite.argmin())
        raise ValueError(f"{name} must be finite, but holds {array[first]} at position {first}.")
    return array


def _same_length(a: Sized, b: Sized) -> int:
    if len(a) != len(b):
        raise ValueError(f"Both sequences must be equally long, not {len(a)} and {len(b)}.")
    if len(a) == 0:
        raise ValueError("There is nothing to compare: both sequences are empty.")
    return len(a)


def _check_resamples(resamples: int) -> None:
    if resamples < 1:
        raise ValueError(f"A bootstrap needs at least 1 resample, not {resamples}.")


def _check_open_unit(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name} must lie between 0 and 1, not {value}.")


def _check_probabilities(values: Sequence[float], name: str = "a p-value") -> None:
    for value in values:
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be in [0, 1], not {value}.")
