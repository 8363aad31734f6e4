"""Strengths where nobody named any: as much as a limit allows, found for each layer or band.

Relative doses are read, up a ladder or not, and then what lies between the largest dose within the
limit and the smallest beyond it is halved on a logarithmic scale. Plain data, without a model.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from mlx_steer.bands import LayerOrBand, band_of, layer_words
from mlx_steer.errors import ConfigError
from mlx_steer.vectors import SteeringVector, relative_dose

_LADDER = (0.0625, 0.125, 0.25, 0.5, 1.0)
# What is found is within 9 % of the limit.
_HALVINGS_OF_A_RUNG, _HALVINGS_OF_THE_LADDER = 3, 5


@dataclass
class DoseSearch:
    """The search at one layer or band.

    Attributes:
        vectors: One, or those of a band.
        rungs: Relative doses that are read together, first of all, the smallest first.
        halvings: How often the gap at the limit is still to be halved.
        within: The largest relative dose within the limit, as far as is known.
        beyond: The smallest beyond it.

    Raises:
        ConfigError: If the vectors' relative doses are unknown.
    """

    vectors: Sequence[SteeringVector]
    rungs: tuple[float, ...]
    halvings: int
    within: float
    beyond: float

    def __post_init__(self) -> None:
        """See the class."""
        if not relative_dose(self.vectors, 1.0):
            raise ConfigError(
                "strengths: auto goes by relative doses, and that of the vector of "
                f"{layer_words(self.place)} is unknown; name the strengths"
            )

    @staticmethod
    def up_the_ladder(vectors: Sequence[SteeringVector]) -> DoseSearch:
        """For what rises and falls again: a model that babbles leans to nothing at all.

        The ladder finds the first dose beyond the limit; above its top nothing is looked for.
        """
        return DoseSearch(vectors, _LADDER, _HALVINGS_OF_A_RUNG, _LADDER[0] / 2, math.inf)

    @staticmethod
    def by_halving(vectors: Sequence[SteeringVector]) -> DoseSearch:
        """For what only rises, such as a divergence: between the ends of the ladder."""
        return DoseSearch(vectors, (), _HALVINGS_OF_THE_LADDER, _LADDER[0], _LADDER[-1])

    @property
    def place(self) -> LayerOrBand:
        """The layer or the band."""
        return band_of([v.layer for v in self.vectors])

    def asked(self) -> tuple[float, ...]:
        """The strengths to read next; none where the search has ended."""
        doses: Sequence[float] = self.rungs
        if not doses and self.halvings and math.isfinite(self.beyond):
            doses = [math.sqrt(self.within * self.beyond)]
        return tuple(self.strength(dose) for dose in doses)

    def told(self, harmless: Collection[float]) -> None:
        """Which of the strengths that were asked for are within the limit."""
        for strength in self.asked():
            if strength not in harmless:
                self.beyond = self.dose(strength)
                break
            self.within = self.dose(strength)
        self.halvings -= not self.rungs
        self.rungs = ()

    def placed(self, parts: Sequence[float]) -> list[float]:
        """Strengths at parts of the largest dose within the limit, the smallest first."""
        return sorted({self.strength(part * self.within) for part in parts})

    def strength(self, dose: float) -> float:
        """The strength of a relative dose, to three digits, as it stands in names."""
        return float(f"{dose / self.dose(1.0):.3g}")

    def dose(self, strength: float) -> float:
        """The relative dose of a strength."""
        return relative_dose(self.vectors, strength) or 0.0
