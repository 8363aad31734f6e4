"""The plots of the report as PNG bytes, each from the numbers it needs."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mlx_steer.bands import layer_order, layer_words
from mlx_steer.metrics.halves import ConditionNumbers, Outcome
from mlx_steer.metrics.metrics_file import Metrics
from mlx_steer.metrics.numbers import MEASURES, Measure
from mlx_steer.report import answer_plot
from mlx_steer.report.drawing import (
    band,
    bars,
    heatmap,
    new_figure,
    percent_axis,
    png,
    spread,
    tidy,
    whiskers,
)
from mlx_steer.run.records import CONTROL_KINDS

KIND_COLOURS = {
    "base": "#000000",
    "prompt": "#E69F00",
    "steering": "#0072B2",
    "prompt+steering": "#009E73",
    "gated": "#56B4E9",
    "prompt+gated": "#CC79A7",
    "fixed refusal": "#999999",
}
NAMES = frozenset(
    {
        "answer",
        "norm_by_layer",
        "sweep_heatmap",
        "dose_response",
        "tradeoff",
        "controls",
        "gate_roc",
    }
)


def draw(metrics: Metrics) -> dict[str, bytes]:
    """Every plot there are numbers for, by name (without .png); see `NAMES`."""
    figures = {
        "answer": answer_plot.draw(metrics),
        "norm_by_layer": _norm_by_layer(metrics),
        "sweep_heatmap": _sweep_heatmap(metrics),
        "dose_response": _dose_response(metrics),
        "tradeoff": _tradeoff(metrics),
        "controls": _controls(metrics),
        "gate_roc": _gate_roc(metrics),
    }
    return {name: png(figure) for name, figure in figures.items() if figure is not None}


def _norm_by_layer(metrics: Metrics) -> Figure | None:
    vectors = metrics.vectors
    if vectors is None:
        return None
    layers = [v.layer for v in vectors.layers]
    norms = [v.norm for v in vectors.layers]
    hidden = [v.hidden_norm for v in vectors.layers if v.hidden_norm is not None]
    if len(hidden) < len(layers):  # imported vectors
        return None
    figure = new_figure(9, 3.4)
    left, right = figure.subplots(1, 2)
    left.plot(layers, hidden, "s-", color="#E69F00", ms=4, label="hidden states (mean)")
    left.plot(layers, norms, "o-", color="#0072B2", ms=4, label="steering vector")
    left.set_ylabel("norm (model units)")
    # Both grow by orders of magnitude over the layers of some models.
    if max(hidden) > 20 * min(n for n in (*norms, max(hidden)) if n > 0):
        left.set_yscale("log")
    else:
        left.set_ylim(0, 1.25 * max(*hidden, *norms))
    left.legend(frameon=False, fontsize=9)
    doses = [n / h for n, h in zip(norms, hidden, strict=True)]
    right.plot(layers, doses, "o-", color="#0072B2", ms=4)
    right.set_ylim(0, max(doses) * 1.15 or 1)
    right.set_ylabel("relative dose at strength 1\n(vector norm / hidden-state norm)")
    for axes in (left, right):
        axes.set_xlabel("layer (decoder block, from 0)")
        axes.xaxis.get_major_locator().set_params(integer=True)
        tidy(axes)
    return figure


def _sweep_heatmap(metrics: Metrics) -> Figure | None:
    cells = [c for c in metrics.select.conditions if c.kind == "steering"]
    if not cells:
        return None
    layers = sorted({c.layer for c in cells if c.layer is not None}, key=layer_order)
    strengths = sorted({c.strength for c in cells if c.strength is not None})
    own = {
        layer: sorted({c.strength for c in cells if c.layer == layer and c.strength is not None})
        for layer in layers
    }
    most = max(map(len, own.values()), default=0)
    # Strengths that were found layer by layer are hardly ever the same twice.
    apart = len(strengths) > 2 * most
    columns = most if apart else len(strengths)
    chosen = metrics.select.chosen
    width = max(7.0, 2.6 + 1.5 * columns)
    figure = new_figure(width, 1.5 + (0.45 if apart else 0.32) * max(4, len(layers)))
    both: dict[Measure, str] = {"target": "Blues", "false_positive": "Oranges"}
    measures = {m: colours for m, colours in both.items() if any(c.of(m).n for c in cells)}
    panels = figure.subplots(1, max(1, len(measures)), sharey=True, squeeze=False)[0]
    for axes, (measure, colours) in zip(panels, measures.items(), strict=False):
        grid = [[math.nan] * columns for _ in layers]
        notes = [[""] * columns for _ in layers]
        for cell in cells:
            if cell.layer is None or cell.strength is None:
                continue
            line = own[cell.layer] if apart else strengths
            row, column = layers.index(cell.layer), line.index(cell.strength)
            grid[row][column] = cell.of(measure).percent
            notes[row][column] = f"× {cell.strength:g}"
            if cell.name == chosen:
                box = Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, ec="black", lw=3)
                box.set(zorder=3, clip_on=False)
                axes.add_patch(box)
        image = heatmap(axes, grid, colours, notes if apart else None)
        names = [] if apart else [f"{s:g}" for s in strengths]
        axes.set_xticks(range(len(names)), names)
        axes.set_yticks(range(len(layers)), [str(layer) for layer in layers])
        axes.set_xlabel("strength, as each cell says" if apart else "strength")
        base = metrics.select.base
        under = f" (base {base.of(measure).percent:.0f} %)" if base and base.of(measure).n else ""
        axes.set_title(f"{metrics.behavior.rate(measure)}{under}", fontsize=10)
        figure.colorbar(image, ax=axes, label="% of prompts", aspect=max(15, 1.6 * len(layers)))
    panels[0].set_ylabel("layer")
    if any(c.name == chosen for c in cells):
        figure.supxlabel("outlined: the chosen cell; select half", fontsize=8, color="#555555")
    return figure


def _dose_response(metrics: Metrics) -> Figure | None:
    panels = _dose_panels(metrics)
    if not panels:
        return None
    columns, rows = min(2, len(panels)), (len(panels) + 1) // 2
    figure = new_figure(4.7 * columns + 0.6, 3.3 * rows + 0.6)
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    drawn = [axes for row in grid for axes in row]
    for axes, (title, points) in zip(drawn, panels, strict=False):
        for measure in MEASURES:
            rates = [(x, c.of(measure)) for x, c in points]
            band(axes, measure, rates, metrics.behavior.rate(measure))
        apart = [(x, c.incoherent) for x, c in points]
        band(axes, "incoherent", apart, metrics.behavior.incoherent)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("strength (factor on the vector)")
        axes.set_xticks([x for x, _ in points], [f"{x:g}" for x, _ in points])
        percent_axis(axes, "y", "rows")
        tidy(axes)
    for axes in drawn[len(panels) :]:
        axes.set_visible(False)
    for row in grid:
        for axes in row[1:]:
            axes.set_ylabel("")
    handles, labels = drawn[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


_Doses = list[tuple[float, ConditionNumbers]]


def _dose_panels(metrics: Metrics) -> list[tuple[str, _Doses]]:
    """Title and conditions by strength, for each way of steering; the unsteered one at 0."""
    tested = any(c.kind == "steering" for c in metrics.test.conditions)
    half = metrics.test if tested else metrics.select
    conditions: Sequence[ConditionNumbers] = half.conditions
    if not any(c.kind == "steering" for c in conditions):
        return []
    panels = []
    for start, kind, title in (
        ("base", "steering", "steering alone (0: base)"),
        ("base", "gated", "gated steering (0: base)"),
        ("prompt", "prompt+steering", "prompt and steering (0: prompt alone)"),
        ("prompt", "prompt+gated", "prompt and gated steering (0: prompt alone)"),
    ):
        line = [c for c in conditions if c.kind == kind]
        if not line:
            continue
        name = metrics.select.chosen_gated if "gated" in kind else metrics.select.chosen
        layer = (half.named(name) or line[0]).layer
        line = [c for c in line if c.layer == layer] or line
        first = [c for c in conditions if c.kind == start]
        if start == "prompt":
            first = [c for c in first if c.system_prompt == line[0].system_prompt]
        doses = [(0.0, c) for c in first[:1]]
        doses += [(c.strength, c) for c in line if c.strength is not None]
        panels.append((f"{layer_words(layer)}, {title}", sorted(doses, key=lambda dose: dose[0])))
    return panels


def _tradeoff(metrics: Metrics) -> Figure | None:
    every: list[Outcome] = [*metrics.test.conditions, *metrics.test.fixed]
    kept = [c for c in every if c.kind not in CONTROL_KINDS and c.target.n and c.false_positive.n]
    if len(kept) < 2:
        return None
    words = metrics.behavior
    height = max(4.6, 0.34 * len(kept) + 1.4)
    figure = new_figure(8.2, height)
    axes = figure.subplots()
    shown = sorted(kept, key=lambda c: (c.target.percent, -c.false_positive.percent))
    heights = spread([c.target.percent for c in shown], 20 / (height - 1))
    for condition, label_height in zip(shown, heights, strict=True):
        _point(axes, condition, label_height)
    axes.plot([0, 100], [0, 100], ":", color="#999999", lw=1)
    percent_axis(axes, "x", f"{words.rate('false_positive')}, false positives")
    percent_axis(axes, "y", words.rate("target"))
    axes.set_title(
        "test half; whiskers: Wilson 95 % intervals; dotted: both rates equal",
        fontsize=10,
    )
    tidy(axes)
    return figure


def _point(axes: Axes, condition: Outcome, label_height: float) -> None:
    """A condition between its two rates, with whiskers, and its name to the right."""
    x, y = condition.false_positive.percent, condition.target.percent
    across, up = (whiskers([share]) for share in (condition.false_positive, condition.target))
    axes.errorbar(
        [x],
        [y],
        xerr=across,
        yerr=up,
        fmt="o",
        color=KIND_COLOURS.get(condition.kind, "#777777"),
        elinewidth=1.1,
        capsize=2.5,
        alpha=0.75,
        ms=7,
    )
    axes.annotate(
        condition.name,
        (x, y),
        xytext=(108, label_height),
        textcoords="data",
        fontsize=9,
        va="center",
        annotation_clip=False,
        arrowprops={
            "arrowstyle": "-",
            "color": "#888888",
            "lw": 0.7,
            "ls": ":",
            "relpos": (0, 0.5),
        },
    )


def _controls(metrics: Metrics) -> Figure | None:
    if metrics.controls is None:
        return None
    records = metrics.controls.conditions
    names = ["base", *dict.fromkeys(c.real for c in records), *(c.name for c in records)]
    by_name = {c.name: c for c in metrics.test.conditions}
    shown = [by_name[name] for name in names if name in by_name]
    words = metrics.behavior
    figure = new_figure(8, 1.5 + 0.36 * len(shown))
    axes = figure.subplots()
    offsets: tuple[tuple[float, Measure], ...] = ((-0.13, "target"), (0.13, "false_positive"))
    for offset, measure in offsets:
        rates = [(i + offset, c.of(measure)) for i, c in enumerate(shown)]
        bars(axes, measure, rates, words.rate(measure), 6)
    real = {c.real for c in records}
    labels = [f"{c.name} (the vector)" if c.name in real else c.name for c in shown]
    axes.set_yticks(range(len(shown)), labels)
    for index, condition in enumerate(shown):
        if condition.name in real:
            axes.axhspan(index - 0.45, index + 0.45, color="#0072B2", alpha=0.08, linewidth=0)
            axes.get_yticklabels()[index].set_fontweight("bold")
    axes.invert_yaxis()
    percent_axis(axes, "x", "rows")
    tidy(axes)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


# By split and by what is told apart from target prompts.
_ROC_STYLES = {
    ("held out", "other"): ("#999999", "-", "fitting prompts, held out"),
    ("select", "other"): ("#E69F00", "-", "select half"),
    ("test", "other"): ("#0072B2", "-", "test half"),
    ("held out", "borderline"): ("#999999", ":", "fitting prompts, held out"),
    ("select", "borderline"): ("#E69F00", ":", "select half"),
    ("test", "borderline"): ("#CC79A7", "--", "test half"),
}


def _gate_roc(metrics: Metrics) -> Figure | None:
    gates = [gate for gate in metrics.gates if gate.curves]
    if not gates:
        return None
    sets = metrics.behavior.sets
    figure = new_figure(5.4 * len(gates) + 0.4, 5.6)
    panels = figure.subplots(1, len(gates), squeeze=False)[0]
    for axes, gate in zip(panels, gates, strict=True):
        axes.plot([0, 100], [0, 100], ":", color="#bbbbbb", lw=1)
        for curve in gate.curves:
            colour, line, where = _ROC_STYLES[curve.split, curve.against]
            axes.plot(
                [100 * x for x in curve.false_positive_rates],
                [100 * y for y in curve.true_positive_rates],
                line,
                color=colour,
                lw=1.8,
                label=f"{where}, against {sets[curve.against]} (AUC {curve.auc:.2f})",
            )
            x, y = curve.operating
            # Beyond the axes' ends a mark is still whole.
            axes.plot([100 * x], [100 * y], "o", color=colour, mec="black", ms=8, clip_on=False)
        under = f"gate under prompt {gate.system_prompt}" if gate.system_prompt else "gate"
        axes.set_title(f"{under}, layer {gate.layer}", fontsize=10)
        percent_axis(axes, "x", "opened though it should stay shut")
        percent_axis(axes, "y", f"{sets['target']} prompts opened")
        tidy(axes)
        axes.legend(loc="lower right", frameon=False, fontsize=8)
    figure.supxlabel("marks: the threshold in use", fontsize=8, color="#555555")
    return figure
