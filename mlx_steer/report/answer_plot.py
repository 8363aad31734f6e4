"""The picture of the answer: what each way to go does to both rates, readable in seconds."""

from collections.abc import Iterator

from matplotlib.figure import Figure

from mlx_steer.metrics.answer import Answer
from mlx_steer.metrics.metrics_file import Metrics
from mlx_steer.metrics.numbers import Measure, Measured, Share
from mlx_steer.report.drawing import COLOURS, bars, new_figure, percent_axis, tidy

_RATES: tuple[tuple[float, Measure, str], ...] = (
    (-0.14, "target", "should rise"),
    (0.14, "false_positive", "should stay low"),
)


def draw(metrics: Metrics) -> Figure | None:
    """The figure; None for a run without an answer."""
    answer, words = metrics.answer, metrics.behavior
    if answer is None:
        return None
    lines = list(_lines(answer))
    figure = new_figure(7.2, 1.1 + 0.5 * len(lines))
    axes = figure.subplots()
    for offset, measure, wish in _RATES:
        rates = [(i + offset, r.of(measure)) for i, (_, _, r) in enumerate(lines)]
        bars(axes, measure, rates, f"{words.rate(measure)} ({wish})", 8)
        for y, share in rates:
            if not share.n:
                continue
            beyond = 100 * share.high + 1.5
            axes.text(
                *((beyond, y) if beyond < 94 else (100 * share.low - 7.5, y)),
                f"{share.percent:.0f}",
                color=COLOURS[measure],
                fontsize=10,
                va="center",
            )
    axes.set_yticks(range(len(lines)), [name for name, _, _ in lines], fontsize=11)
    for i, (_, own, _) in enumerate(lines):
        if own:
            axes.axhspan(i - 0.48, i + 0.48, color="#0072B2", alpha=0.10, linewidth=0)
            axes.get_yticklabels()[i].set_fontweight("bold")
    axes.set_ylim(len(lines) - 0.4, -0.6)
    percent_axis(axes, "x", "of the prompts")
    tidy(axes)
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=11)
    return figure


def _lines(answer: Answer) -> Iterator[tuple[str, bool, Measured[Share]]]:
    """Name, whether it is what the answer is of, and rates."""
    yield "no steering", False, answer.base.rates
    for name, cell, kind in (
        ("steering", answer.plain, "steering"),
        ("gated steering", answer.gated, "gated"),
    ):
        if cell:
            place = cell.condition.removeprefix("gated ")
            yield f"{name}:\n{place}", answer.of == kind, cell.rates
    for name, opponent in (
        ("system prompt", answer.prompt),
        ("random direction (best)", answer.random),
        ("shuffled pairs", answer.shuffled),
        ("gate + fixed text", answer.fixed),
    ):
        if opponent:
            yield name, False, opponent.rates
