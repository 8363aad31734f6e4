"""Rates and means with their 95 % intervals."""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from mlx_steer.config import RESAMPLES
from mlx_steer.stats.arguments import Numbers, check_open_unit, check_resamples, numbers

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


@cache
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
    check_open_unit("confidence", confidence)
    if n == 0:
        return Rate(0, 0, math.nan, 0.0, 1.0)
    # Half a second to import, which commands that show no rate need not pay.
    from scipy.stats import binomtest

    # Its test is computed along with it, 0.3 ms in all: cached, since runs repeat few counts.
    interval = binomtest(count, n).proportion_ci(confidence, method="wilson")
    return Rate(count, n, count / n, float(interval.low), float(interval.high))


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
    sample = numbers("values", values)
    check_resamples(resamples)
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    block = max(1, 1_000_000 // sample.size)  # bounds the memory at some 16 MB
    for start in range(0, resamples, block):
        size = (min(block, resamples - start), sample.size)
        means[start : start + block] = sample[rng.integers(sample.size, size=size)].mean(axis=1)
    value = float(sample.mean())
    low, high = central_interval(means)
    # Sums in another order differ in the last bit, which shows when all values are equal.
    return Mean(sample.size, value, min(low, value), max(high, value))


def central_interval(samples: npt.NDArray[np.float64]) -> tuple[float, float]:
    """The central 95 % of bootstrap samples; between two drawn values, the outer one."""
    tail = (1 - CONFIDENCE) / 2
    low = float(np.quantile(samples, tail, method="lower"))
    high = float(np.quantile(samples, 1 - tail, method="higher"))
    return low, high
