"""How alike several sets of steering vectors are: cosines layer by layer, as a table and a plot."""

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

from mlx_steer.errors import VectorError
from mlx_steer.vectors.compare import compare_vectors
from mlx_steer.vectors.vector_set import SteeringVectorSet


@dataclass(frozen=True)
class CosineTable:
    """Cosine similarities of every two of several sets, at the layers that all of them have.

    Attributes:
        names: Of the sets.
        layers: In ascending order.
        values: By the names of two sets; one value for each layer.
        chance: Standard deviation of the cosine of two random directions of this size.
    """

    names: tuple[str, ...]
    layers: tuple[int, ...]
    values: Mapping[tuple[str, str], tuple[float, ...]]
    chance: float


def cosine_table(sets: Mapping[str, SteeringVectorSet]) -> CosineTable:
    """Compare every two of several sets.

    Args:
        sets: Two or more, of one hidden size, by name.

    Raises:
        VectorError: If there are fewer, they share no layer, their sizes differ, or a vector is
            zero.
    """
    if len(sets) < 2:
        raise VectorError("cosines need two or more sets of vectors; give several folders")
    first, *others = sets.values()
    layers = tuple(layer for layer in first if all(layer in other for other in others))
    if not layers:
        raise VectorError("the sets of vectors share no layer; extract the same layers for all")
    values = {}
    for one, other in combinations(sets, 2):
        found = {row.layer: row.cosine for row in compare_vectors(sets[one], sets[other])}
        values[one, other] = tuple(found[layer] for layer in layers)
    return CosineTable(tuple(sets), layers, values, 1 / math.sqrt(first.metadata.hidden_size))


def heat_map(table: CosineTable) -> bytes:
    """A PNG: a row for each layer, a column for each two sets; blue alike, red opposite."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = list(zip(*table.values.values(), strict=True))
    width, height = 2.6 + 1.3 * len(table.values), 2.2 + 0.3 * len(table.layers)
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(rows, cmap="RdBu", vmin=-1, vmax=1, aspect="auto", origin="lower")
    axes.set_xticks(range(len(table.values)), ["\nand ".join(names) for names in table.values])
    axes.set_yticks(range(len(table.layers)), [str(layer) for layer in table.layers])
    axes.set_ylabel("layer")
    axes.set_title(
        f"Cosine of steering vectors\n(random directions: 0 ± {table.chance:.2f})", fontsize=10
    )
    for y, row in enumerate(rows):
        for x, value in enumerate(row):
            colour = "white" if abs(value) > 0.6 else "black"
            axes.text(x, y, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=8)
    figure.colorbar(image, ax=axes, label="cosine")
    stream = io.BytesIO()
    # Without the version of matplotlib, the same table gives the same bytes.
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()
