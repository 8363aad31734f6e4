"""Where a cell steers: one layer, or a band of layers from first to last, written "12-16".

Each layer of a band has its own vector, and all of them act at one strength.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, TypeAlias

from pydantic import AfterValidator

_BAND = re.compile(r"(\d{1,4})-(\d{1,4})")


def _checked(text: str) -> str:
    found = _BAND.fullmatch(text)
    if found is None or int(found[1]) >= int(found[2]):
        raise ValueError(
            f"is {text[:20]!r}, which is no band of layers; write its first and last, both counted "
            "from 0, such as 12-16"
        )
    return f"{int(found[1])}-{int(found[2])}"


LayerOrBand: TypeAlias = int | Annotated[str, AfterValidator(_checked)]
"""A layer, counted from 0, negative from the end; or a band, as text."""


def read_layer(text: str) -> LayerOrBand:
    """A layer or a band as it is written; raises ValueError for text that is neither."""
    return int(text) if re.fullmatch(r"-?\d+", text.strip()) else _checked(text.strip())


def layers_of(layer: LayerOrBand) -> tuple[int, ...]:
    """The layers of a band, or the one."""
    if isinstance(layer, int):
        return (layer,)
    first, _, last = layer.partition("-")
    return tuple(range(int(first), int(last) + 1))


def band_of(layers: Sequence[int]) -> LayerOrBand:
    """Layers that follow one another as a band; of one, or of others, the first."""
    first, last = layers[0], layers[-1]
    follow = first < last and list(layers) == list(range(first, last + 1))
    return f"{first}-{last}" if follow else first


def layer_words(layer: LayerOrBand | None) -> str:
    """Such as "layer 12" or "layers 12-16"."""
    return f"layers {layer}" if isinstance(layer, str) else f"layer {layer}"


def layer_order(layer: LayerOrBand | None) -> tuple[int, int]:
    """Sorts layers and bands by their first layer, then by their last; no layer comes first."""
    if layer is None:
        return (-1, -1)
    own = layers_of(layer)
    return (own[0], own[-1])
