"""What every number of a run is made of: rounded floats, rates, differences, values by measure.

Floats have 6 significant digits and what is not a number is None from the moment a record is made,
so that metrics.json and the report say the same, and what is read back equals what was written.
"""

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Generic, Literal, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, FiniteFloat

from mlx_steer.stats import Finding, Mean, Rate
from mlx_steer.words import PromptSet

Measure = Literal["target", "false_positive", "borderline"]
MEASURES: Mapping[Measure, PromptSet] = {
    "target": "target",
    "false_positive": "other",
    "borderline": "borderline",
}
"""Each rate of shown rows, and the prompt set it is taken over."""


def _six_digits(value: object) -> object:
    if not isinstance(value, float):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None


Digits = Annotated[FiniteFloat, BeforeValidator(_six_digits)]
"""A number to 6 significant digits."""

Number = Annotated[FiniteFloat | None, BeforeValidator(_six_digits)]
"""The same, or None where there is none, such as a rate of no rows."""

T = TypeVar("T")


class Numbers(BaseModel):
    """Some numbers that belong together; an object of metrics.json."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Measured(Numbers, Generic[T]):
    """One value for each measure."""

    target: T
    false_positive: T
    borderline: T

    @classmethod
    def each(cls, value: Callable[[Measure], T]) -> Self:
        """What the function gives for each measure."""
        return cls(
            target=value("target"),
            false_positive=value("false_positive"),
            borderline=value("borderline"),
        )

    def of(self, measure: Measure) -> T:
        """The value of one measure."""
        value: T = getattr(self, measure)
        return value


class Share(Numbers):
    """A rate with its Wilson interval: `count` of `n`; over no rows `rate` is None."""

    count: int
    n: int
    rate: Number
    low: Digits
    high: Digits

    @classmethod
    def of(cls, rate: Rate) -> Self:
        """The same as a record."""
        return cls(count=rate.count, n=rate.n, rate=rate.value, low=rate.low, high=rate.high)

    @property
    def percent(self) -> float:
        """In percent; nan over no rows."""
        return math.nan if self.rate is None else 100 * self.rate


class Coherence(Numbers):
    """Mean coherence with its bootstrap interval."""

    mean: Number = None
    low: Number = None
    high: Number = None

    @classmethod
    def of(cls, mean: Mean) -> Self:
        """The same as a record."""
        return cls(mean=mean.value, low=mean.low, high=mean.high)


class Perplexity(Numbers):
    """Median perplexity under the unsteered model, over the rows that have one."""

    median: Number = None
    n: int = 0


class Difference(Numbers):
    """The same prompts under two conditions, second minus first.

    Attributes:
        p: Of the exact McNemar test, unadjusted.
        family: What it is tested together with: what was settled before the test half was run, or
            the rest.
        p_holm: Adjusted within its family, for `family_size` comparisons.
        p_holm_all: Adjusted for both families at once, for whoever does not accept the split.
        finding: Follows from `p_holm`.
    """

    n: int
    gained: int
    lost: int
    difference: Digits
    low: Digits
    high: Digits
    p: Digits
    family: Literal["primary", "secondary"]
    family_size: int
    p_holm: Digits
    p_holm_all: Digits
    finding: Finding


Differences = Measured[Difference | None]
"""None where the two conditions share no prompt of the set."""
