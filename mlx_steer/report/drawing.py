"""Pieces of plots: figures as PNG bytes, axes of percentages, heat maps, bands and whiskers.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; the background is light.
"""

import io
import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from mlx_steer.metrics.numbers import Share

DPI = 110
COLOURS = {
    "target": "#0072B2",
    "false_positive": "#D55E00",
    "borderline": "#CC79A7",
    "incoherent": "#555555",
}
MARKERS = {"target": "o", "false_positive": "s", "borderline": "D", "incoherent": "x"}


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches, drawn without a display."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def png(figure: Figure) -> bytes:
    """The figure as PNG; the same figure gives the same bytes."""
    stream = io.BytesIO()
    # The version of matplotlib would make the bytes depend on it.
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def tidy(axes: Axes) -> None:
    """A light grid, and no frame above and to the right."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)


def percent_axis(axes: Axes, which: str, label: str) -> None:
    """The x or y axis from 0 to 100 %, with room for marks at its ends."""
    axis = axes.yaxis if which == "y" else axes.xaxis
    (axes.set_ylim if which == "y" else axes.set_xlim)(-3, 103)
    axis.set_ticks(range(0, 101, 20))
    axis.set_label_text(f"{label} (%)")


def heatmap(
    axes: Axes,
    grid: Sequence[Sequence[float]],
    colours: str,
    notes: Sequence[Sequence[str]] | None = None,
) -> AxesImage:
    """A grid of percentages, with its numbers, and a note under each."""
    image = axes.imshow(grid, cmap=colours, vmin=0, vmax=100, aspect="auto", origin="lower")
    for row, values in enumerate(grid):
        for column, value in enumerate(values):
            text = "–" if math.isnan(value) else f"{value:.0f}"
            text += f"\n{notes[row][column]}" if notes else ""
            colour = "white" if value > 60 else "black"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=9)
    axes.spines[:].set_visible(False)
    return image


def band(axes: Axes, measure: str, shares: Sequence[tuple[float, Share]], label: str) -> None:
    """A line of rates over x in a band of their intervals; rates of no rows are left out."""
    known = [(x, share) for x, share in shares if share.n]
    if not known:
        return
    xs = [x for x, _ in known]
    axes.fill_between(
        xs,
        [100 * r.low for _, r in known],
        [100 * r.high for _, r in known],
        color=COLOURS[measure],
        alpha=0.1,
        linewidth=0,
    )
    axes.plot(
        xs,
        [r.percent for _, r in known],
        MARKERS[measure] + ("--" if measure == "incoherent" else "-"),
        color=COLOURS[measure],
        ms=5.5,
        label=label,
    )


def bars(
    axes: Axes, measure: str, shares: Sequence[tuple[float, Share]], label: str, size: float
) -> None:
    """Rates as points at heights y with their intervals; rates of no rows are left out."""
    known = [(y, share) for y, share in shares if share.n]
    if not known:
        return
    axes.errorbar(
        [share.percent for _, share in known],
        [y for y, _ in known],
        xerr=whiskers([share for _, share in known]),
        fmt=MARKERS[measure],
        color=COLOURS[measure],
        elinewidth=size / 5,
        ms=size,
        label=label,
    )


def whiskers(shares: Sequence[Share]) -> list[list[float]]:
    """How far the intervals reach below and above the rates, in percent."""
    return [
        [share.percent - 100 * share.low for share in shares],
        [100 * share.high - share.percent for share in shares],
    ]


def spread(values: Sequence[float], space: float) -> list[float]:
    """Ascending values moved as little as need be to lie `space` apart, within -2 to 102."""
    placed: list[float] = []
    for value in values:
        placed.append(max(value, placed[-1] + space) if placed else value)
    limit = 102.0
    for index in reversed(range(len(placed))):
        placed[index] = min(placed[index], limit)
        limit = placed[index] - space
    return placed
