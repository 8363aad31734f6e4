"""What a screening leaves in a run directory: how strongly cells lean before they are decoded."""

from __future__ import annotations

from pydantic import FiniteFloat

from mlx_steer.bands import LayerOrBand
from mlx_steer.run.base_record import Record


class Lean(Record):
    """How strongly a condition leans to the behavior before anything is decoded.

    `target` and `other` are mean probabilities of an opening that shows the behavior, over the
    prompts of that set: the rate to be expected if openings decided. Mean log-odds are for reading.
    """

    target: FiniteFloat
    target_log_odds: FiniteFloat
    other: FiniteFloat
    other_log_odds: FiniteFloat


class ScreenedCell(Lean):
    """A cell as the screening saw it, and whether it was kept to be decoded.

    `nats` is the price of a gated cell on target prompts, a token (see `DosesConfig`), if it was
    read.
    """

    condition: str
    kind: str
    layer: LayerOrBand
    strength: FiniteFloat
    kept: bool
    nats: FiniteFloat | None = None


class FoundDose(Record):
    """The largest dose of a layer or band within its limit, and the smallest read beyond it.

    `beyond` is None where none of the doses that were read is.
    """

    layer: LayerOrBand
    strength: FiniteFloat
    relative_dose: FiniteFloat
    beyond: FiniteFloat | None


class Doses(Record):
    """doses.json: what `strengths: auto` found, for plain and for gated steering."""

    plain: tuple[FoundDose, ...] = ()
    gated: tuple[FoundDose, ...] = ()


class Screening(Record):
    """screening.json: cells by kind, best first; `limit` is the highest lean on other prompts."""

    base: Lean
    limit: FiniteFloat
    cells: tuple[ScreenedCell, ...]
