"""The part of an experiment file that says how a layer and a strength are searched for."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from mlx_steer.bands import LayerOrBand
from mlx_steer.words import Strategy

STRENGTHS = (0.5, 1.0, 1.5)
"""Factors on the raw vector."""

# Beyond any sensible factor, but small enough that nothing overflows.
Strength = Annotated[float, Field(allow_inf_nan=False, ge=-1e6, le=1e6)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Strengths = tuple[Strength, ...] | Literal["auto"]
Text = Annotated[str, Field(min_length=1)]


class Section(BaseModel):
    """A part of an experiment file; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())


def distinct_list(value: Any, what: str) -> Any:
    """The list as it is; raises ValueError if something stands in it twice, or nothing at all."""
    if isinstance(value, list | tuple):
        if not value and what in ("strengths", "layers", "methods"):
            raise ValueError(f"{what} must not be empty")
        # As they stand in the names of conditions.
        names = Counter(f"{v:g}" if isinstance(v, float) else str(v) for v in value)
        twice = [name for name, count in names.items() if count > 1]
        if twice:
            raise ValueError(f"{', '.join(twice)} stands twice")
    return value


class Limits(Section):
    """What a cell of the sweep may cost and still be chosen, against the base run.

    Attributes:
        false_positives: Most false positives above base, as a fraction.
        coherence_drop: How far mean coherence may lie under base.
        incoherent: Largest fraction of incoherent rows.
    """

    false_positives: Fraction = 0.10
    coherence_drop: Fraction = 0.05
    incoherent: Fraction = 0.10


class RaceConfig(Section):
    """Successive halving (Jamieson and Talwalkar 2016) over blocks of the select prompts.

    Attributes:
        cells: Cells of each kind that enter: the best of the screening.
        rounds: How many; each doubles the prompts and halves the cells, the last has all prompts.
        screened_prompts: Prompts of each set that the screening reads.
    """

    cells: Annotated[int, Field(ge=2, le=1000)] = 6
    rounds: Annotated[int, Field(ge=2, le=6)] = 3
    screened_prompts: Count = 20


class DosesConfig(Section):
    """Where the cells of `strengths: auto` stand, and which gated cells a screening prefers.

    For plain steering the largest dose is the one whose lean to the behavior on other prompts stays
    within the limit of false positives; for gated steering, which leaves other prompts alone, the
    one whose price on target prompts stays within `price`. Of gated cells whose strengths are
    named, a screening puts those within `price` first.

    Attributes:
        parts: Parts of the largest dose, each a cell: leans are read at the first response token,
            and whole responses break limits somewhat earlier or later.
        price: The largest KL(base || steered), in nats a token of base's own responses.
        priced_prompts: Target prompts that the price is measured on.
    """

    parts: Annotated[tuple[Annotated[float, Field(gt=0, le=10)], ...], Field(min_length=1)] = (
        0.6,
        0.8,
        1.0,
    )
    price: Annotated[float, Field(gt=0, le=100)] = 0.35
    priced_prompts: Count = 6

    @field_validator("parts", mode="before")
    @classmethod
    def _distinct(cls, value: Any) -> Any:
        return distinct_list(value, "parts")


class SweepConfig(Section):
    """The search for a layer and a strength, on the select half of the prompts.

    Attributes:
        strategy: `grid` decodes every cell on every prompt, `race` drops those that are beaten.
        layers: Which of the vectors' layers, and bands such as "12-16", whose layers are steered
            together, each by its own vector; None for all layers, one by one.
        strengths: Factors on the raw vector; "auto" finds them for each layer (see `DosesConfig`).
        system_prompts: Names of the behavior's system prompts, or texts; they are compared too.
        screen: For a grid: rank the cells before anything is generated and run only so many (see
            screening.py); None runs them all.
        race: For a race, see `RaceConfig`.
        doses: For strengths that are found and gated cells that are screened, see `DosesConfig`.
        limits: See `Limits`.
    """

    strategy: Strategy = "grid"
    layers: tuple[LayerOrBand, ...] | None = None
    strengths: Strengths = STRENGTHS
    system_prompts: tuple[Text, ...] = ("detailed", "calibrated")
    screen: Count | None = None
    race: RaceConfig = RaceConfig()
    doses: DosesConfig = DosesConfig()
    limits: Limits = Limits()

    @property
    def screens(self) -> bool:
        """Whether the first response token is read before anything is generated."""
        return self.strategy == "race" or self.screen is not None or self.strengths == "auto"

    @field_validator("layers", "strengths", "system_prompts", mode="before")
    @classmethod
    def _distinct(cls, value: Any, info: ValidationInfo) -> Any:
        return distinct_list(value, str(info.field_name))
