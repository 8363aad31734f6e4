"""What a run measured with vectors: kept beside them in `card.json`, told in the model card.

It names the vectors it is of by their sha256, so that no figures travel with other vectors.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mlx_steer.bands import LayerOrBand
from mlx_steer.errors import VectorError
from mlx_steer.files import parse_json, problems
from mlx_steer.vectors.metadata import PlainText
from mlx_steer.vectors.vector_set import SteeringVectorSet

CARD_FILE = "card.json"

_MOST_BYTES = 1 << 20


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class MeasuredRow(_Record):
    """One condition of the table of measured effects, as text."""

    name: PlainText
    target: PlainText
    other: PlainText
    incoherent: PlainText
    coherence: PlainText


class Fact(_Record):
    """A line of the answer's table, as text."""

    what: PlainText
    value: PlainText


class MeasuredDoses(_Record):
    """Relative doses of a layer, from 0 on, under which responses were coherent."""

    layer: int
    highest: Annotated[float, Field(gt=0, allow_inf_nan=False)]


class GatedCell(_Record):
    """The cell of gated steering that works, and its gate among those of the vectors."""

    layer: LayerOrBand
    strength: float
    gate: PlainText


class Evidence(_Record):
    """What was measured with vectors: the answer, and the table of a run's test half.

    Attributes:
        run: The run's name.
        title: The behavior's.
        shown: The word for a response that shows the behavior.
        target: The word for prompts that are to show it.
        other: The word for prompts that are not.
        verdict: works, works behind a gate, does harm or not shown; None where no rule gave one.
        answer: What came out, in a sentence or two.
        facts: The answer's table.
        doses: By layer, the relative doses that were measured.
        sentences: What else is to be known.
        rows: The table.
        layer: The chosen one of plain steering, or the band; None if nothing was chosen.
        strength: The chosen one.
        gated: The chosen cell behind a gate, if that is what works.
        vectors: The sha256 of each layer's file that was measured, by its name.
    """

    format_version: Literal[1, 2] = 2
    run: PlainText
    title: PlainText
    shown: PlainText
    target: PlainText
    other: PlainText
    verdict: PlainText | None = None
    answer: PlainText
    facts: list[Fact] = []
    doses: list[MeasuredDoses] = []
    sentences: list[PlainText]
    rows: list[MeasuredRow]
    layer: LayerOrBand | None
    strength: float | None
    gated: GatedCell | None = None
    vectors: dict[PlainText, PlainText]

    def as_bytes(self) -> bytes:
        """The content of card.json."""
        return (json.dumps(self.model_dump(), indent=2, sort_keys=True) + "\n").encode()


def evidence_in(folder: Path, vectors: SteeringVectorSet) -> Evidence | None:
    """The evidence beside vectors in their folder; None where there is none.

    Raises:
        VectorError: If it is damaged or of other vectors.
    """
    file = folder / CARD_FILE
    try:
        if not file.exists():
            return None
        if file.stat().st_size > _MOST_BYTES:
            raise VectorError(f"{file} is too large for what is said of vectors")
        found = Evidence.model_validate(parse_json(file.read_bytes()))
    except ValidationError as error:
        what = "; ".join(problems(error, Evidence)[:3])
        raise VectorError(f"{file}: {what}; take it away or measure again") from error
    except (OSError, ValueError) as error:
        raise VectorError(f"{file} cannot be read ({error}); take it away") from error
    other = differing(vectors, found.vectors)
    if other is not None:
        raise VectorError(f"{file} was not measured with these vectors ({other}); take it away")
    return found


def differing(vectors: SteeringVectorSet, measured: Mapping[str, str]) -> str | None:
    """What tells vectors from those that were measured; None if they share layers and all agree.

    Args:
        vectors: These.
        measured: The sha256 of each measured layer's file, by its name.
    """
    own = {info.file: info.sha256 for info in vectors.metadata.layers.values()}
    shared = own.keys() & measured.keys()
    other = sorted(name for name in shared if own[name] != measured[name])
    if other:
        return f"{other[0].removesuffix('.npy').replace('_', ' ')} differs"
    return None if shared else "its layers are others"
