"""The plots of the report as PNG bytes, drawn without a display.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; the background is light.
"""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mlx_steer.report import lookup
from mlx_steer.report.wording import Words
from mlx_steer.run.records import CONTROL_KINDS

Json = Mapping[str, Any]

DPI = 110
COLOURS = {
    "target": "#0072B2",
    "false_positive": "#D55E00",
    "borderline": "#CC79A7",
    "incoherent": "#555555",
}
MARKERS = {"target": "o", "false_positive": "s", "borderline": "D", "incoherent": "x"}
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
    {"norm_by_layer", "sweep_heatmap", "dose_response", "tradeoff", "controls", "gate_roc"}
)


def draw(metrics: Json) -> dict[str, bytes]:
    """Every plot there are numbers for, by name (without .png); see `NAMES`."""
    figures = {
        "norm_by_layer": _norm_by_layer(metrics),
        "sweep_heatmap": _sweep_heatmap(metrics),
        "dose_response": _dose_response(metrics),
        "tradeoff": _tradeoff(metrics),
        "controls": _controls(metrics),
        "gate_roc": _gate_roc(metrics),
    }
    return {name: _png(figure) for name, figure in figures.items() if figure is not None}


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    # The version of matplotlib would make the bytes depend on it.
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)


def _percent_axis(axes: Axes, which: str, label: str) -> None:
    axis = axes.yaxis if which == "y" else axes.xaxis
    (axes.set_ylim if which == "y" else axes.set_xlim)(-3, 103)
    axis.set_ticks(range(0, 101, 20))
    axis.set_label_text(f"{label} (%)")


def _norm_by_layer(metrics: Json) -> Figure | None:
    vectors = metrics["vectors"]
    if vectors is None:
        return None
    layers = [v["layer"] for v in vectors["layers"]]
    norms = [v["norm"] for v in vectors["layers"]]
    hidden = [v["hidden_norm"] for v in vectors["layers"]]
    if None in hidden:  # imported vectors
        return None
    figure = _figure(9, 3.4)
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
        _tidy(axes)
    return figure


def _sweep_heatmap(metrics: Json) -> Figure | None:
    cells = [c for c in metrics["select"]["conditions"] if c["kind"] == "steering"]
    if not cells:
        return None
    words = Words(metrics["behavior"])
    layers = sorted({c["layer"] for c in cells})
    strengths = sorted({c["strength"] for c in cells})
    base = lookup.base_of(metrics, "select")
    chosen = lookup.chosen_name(metrics)
    width = max(7.0, 2.6 + 1.5 * len(strengths))
    figure = _figure(width, 1.5 + 0.32 * max(4, len(layers)))
    panels = figure.subplots(1, 2, sharey=True)
    for axes, measure, colours in zip(
        panels, ("target", "false_positive"), ("Blues", "Oranges"), strict=True
    ):
        grid = [[math.nan] * len(strengths) for _ in layers]
        for cell in cells:
            row, column = layers.index(cell["layer"]), strengths.index(cell["strength"])
            value = cell[measure]["rate"]
            grid[row][column] = math.nan if value is None else 100 * value
            if cell["name"] == chosen:
                box = Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, ec="black", lw=3)
                box.set(zorder=3, clip_on=False)
                axes.add_patch(box)
        image = axes.imshow(grid, cmap=colours, vmin=0, vmax=100, aspect="auto", origin="lower")
        for row, values in enumerate(grid):
            for column, value in enumerate(values):
                text = "–" if math.isnan(value) else f"{value:.0f}"
                colour = "white" if value > 60 else "black"
                axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=9)
        axes.set_xticks(range(len(strengths)), [f"{s:g}" for s in strengths])
        axes.set_yticks(range(len(layers)), [str(layer) for layer in layers])
        axes.set_xlabel("strength")
        axes.spines[:].set_visible(False)
        under = ""
        if base and base[measure]["rate"] is not None:
            under = f" (base {100 * base[measure]['rate']:.0f} %)"
        axes.set_title(f"{words.rate(measure)}{under}", fontsize=10)
        figure.colorbar(image, ax=axes, label="% of prompts", aspect=max(15, 1.6 * len(layers)))
    panels[0].set_ylabel("layer")
    if any(c["name"] == chosen for c in cells):
        figure.supxlabel("outlined: the chosen cell; select half", fontsize=8, color="#555555")
    return figure


def _dose_response(metrics: Json) -> Figure | None:
    tested = any(c["kind"] == "steering" for c in metrics["test"]["conditions"])
    split = "test" if tested else "select"
    conditions = metrics[split]["conditions"]
    if not any(c["kind"] == "steering" for c in conditions):
        return None
    panels = []
    for start, kind, title in (
        ("base", "steering", "steering alone (0: base)"),
        ("base", "gated", "gated steering (0: base)"),
        ("prompt", "prompt+steering", "prompt and steering (0: prompt alone)"),
        ("prompt", "prompt+gated", "prompt and gated steering (0: prompt alone)"),
    ):
        line = [c for c in conditions if c["kind"] == kind]
        if not line:
            continue
        name = lookup.chosen_gated_name if "gated" in kind else lookup.chosen_name
        chosen = lookup.by_name(metrics, split, name(metrics)) or line[0]
        line = [c for c in line if c["layer"] == chosen["layer"]] or line
        first = [c for c in conditions if c["kind"] == start]
        if start == "prompt":
            first = [c for c in first if c["system_prompt"] == line[0]["system_prompt"]]
        doses = [(0.0, c) for c in first[:1]] + [(c["strength"], c) for c in line]
        layer = line[0]["layer"]
        panels.append((f"layer {layer}, {title}", sorted(doses, key=lambda dose: dose[0])))
    words = Words(metrics["behavior"])
    columns, rows = min(2, len(panels)), (len(panels) + 1) // 2
    figure = _figure(4.7 * columns + 0.6, 3.3 * rows + 0.6)
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    drawn = [axes for row in grid for axes in row]
    for axes, (title, points) in zip(drawn, panels, strict=False):
        for measure in COLOURS:
            _band(axes, measure, points, words)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("strength (factor on the vector)")
        axes.set_xticks([x for x, _ in points], [f"{x:g}" for x, _ in points])
        _percent_axis(axes, "y", "rows")
        _tidy(axes)
    for axes in drawn[len(panels) :]:
        axes.set_visible(False)
    for row in grid:
        for axes in row[1:]:
            axes.set_ylabel("")
    handles, labels = drawn[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def _band(axes: Axes, measure: str, points: Sequence[tuple[float, Json]], words: Words) -> None:
    known = [(x, c[measure]) for x, c in points if c[measure]["n"]]
    if not known:
        return
    xs = [x for x, _ in known]
    label = words.incoherent if measure == "incoherent" else words.rate(measure)
    axes.fill_between(
        xs,
        [100 * r["low"] for _, r in known],
        [100 * r["high"] for _, r in known],
        color=COLOURS[measure],
        alpha=0.1,
        linewidth=0,
    )
    axes.plot(
        xs,
        [100 * r["rate"] for _, r in known],
        MARKERS[measure] + ("--" if measure == "incoherent" else "-"),
        color=COLOURS[measure],
        ms=5.5,
        label=label,
    )


def _tradeoff(metrics: Json) -> Figure | None:
    shown = [
        c
        for c in (*metrics["test"]["conditions"], *metrics["test"]["fixed"])
        if c["kind"] not in CONTROL_KINDS and c["target"]["n"] and c["false_positive"]["n"]
    ]
    if len(shown) < 2:
        return None
    words = Words(metrics["behavior"])
    height = max(4.6, 0.34 * len(shown) + 1.4)
    figure = _figure(8.2, height)
    axes = figure.subplots()
    shown = sorted(shown, key=lambda c: (c["target"]["rate"], -c["false_positive"]["rate"]))
    heights = _spread([100 * c["target"]["rate"] for c in shown], 20 / (height - 1))
    for index, condition in enumerate(shown):
        across, up = condition["false_positive"], condition["target"]
        x, y = 100 * across["rate"], 100 * up["rate"]
        colour = KIND_COLOURS.get(condition["kind"], "#777777")
        axes.errorbar(
            [x],
            [y],
            xerr=[[x - 100 * across["low"]], [100 * across["high"] - x]],
            yerr=[[y - 100 * up["low"]], [100 * up["high"] - y]],
            fmt="o",
            color=colour,
            elinewidth=1.1,
            capsize=2.5,
            alpha=0.75,
            ms=7,
        )
        axes.annotate(
            condition["name"],
            (x, y),
            xytext=(108, heights[index]),
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
    axes.plot([0, 100], [0, 100], ":", color="#999999", lw=1)
    _percent_axis(axes, "x", f"{words.rate('false_positive')}, false positives")
    _percent_axis(axes, "y", words.rate("target"))
    axes.set_title(
        "test half; whiskers: Wilson 95 % intervals; dotted: both rates equal",
        fontsize=10,
    )
    _tidy(axes)
    return figure


def _spread(values: Sequence[float], space: float) -> list[float]:
    """Ascending values moved as little as need be to lie `space` apart, within -2 to 102."""
    placed: list[float] = []
    for value in values:
        placed.append(max(value, placed[-1] + space) if placed else value)
    limit = 102.0
    for index in reversed(range(len(placed))):
        placed[index] = min(placed[index], limit)
        limit = placed[index] - space
    return placed


def _controls(metrics: Json) -> Figure | None:
    if metrics["controls"] is None:
        return None
    records = metrics["controls"]["conditions"]
    names = ["base", *dict.fromkeys(c["real"] for c in records), *(c["name"] for c in records)]
    by_name = {c["name"]: c for c in metrics["test"]["conditions"]}
    shown = [by_name[name] for name in names if name in by_name]
    words = Words(metrics["behavior"])
    figure = _figure(8, 1.5 + 0.36 * len(shown))
    axes = figure.subplots()
    for offset, measure in ((-0.13, "target"), (0.13, "false_positive")):
        known = [(i, c[measure]) for i, c in enumerate(shown) if c[measure]["n"]]
        values = [100 * r["rate"] for _, r in known]
        axes.errorbar(
            values,
            [i + offset for i, _ in known],
            xerr=[
                [v - 100 * r["low"] for v, (_, r) in zip(values, known, strict=True)],
                [100 * r["high"] - v for v, (_, r) in zip(values, known, strict=True)],
            ],
            fmt=MARKERS[measure],
            color=COLOURS[measure],
            elinewidth=1.2,
            ms=6,
            label=words.rate(measure),
        )
    real = {c["real"] for c in records}
    labels = [f"{c['name']} (the vector)" if c["name"] in real else c["name"] for c in shown]
    axes.set_yticks(range(len(shown)), labels)
    for index, condition in enumerate(shown):
        if condition["name"] in real:
            axes.axhspan(index - 0.45, index + 0.45, color="#0072B2", alpha=0.08, linewidth=0)
            axes.get_yticklabels()[index].set_fontweight("bold")
    axes.invert_yaxis()
    _percent_axis(axes, "x", "rows")
    _tidy(axes)
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


def _gate_roc(metrics: Json) -> Figure | None:
    gates = [gate for gate in metrics["gates"] if gate["curves"]]
    if not gates:
        return None
    sets = Words(metrics["behavior"]).sets
    figure = _figure(5.4 * len(gates) + 0.4, 5.6)
    panels = figure.subplots(1, len(gates), squeeze=False)[0]
    for axes, gate in zip(panels, gates, strict=True):
        axes.plot([0, 100], [0, 100], ":", color="#bbbbbb", lw=1)
        for curve in gate["curves"]:
            colour, line, where = _ROC_STYLES[curve["split"], curve["against"]]
            axes.plot(
                *([100 * x for x in curve[f"{kind}_positive_rates"]] for kind in ("false", "true")),
                line,
                color=colour,
                lw=1.8,
                label=f"{where}, against {sets[curve['against']]} (AUC {curve['auc']:.2f})",
            )
            x, y = curve["operating"]
            # Beyond the axes' ends a mark is still whole.
            axes.plot([100 * x], [100 * y], "o", color=colour, mec="black", ms=8, clip_on=False)
        under = f"gate under prompt {gate['system_prompt']}" if gate["system_prompt"] else "gate"
        axes.set_title(f"{under}, layer {gate['layer']}", fontsize=10)
        _percent_axis(axes, "x", "opened though it should stay shut")
        _percent_axis(axes, "y", f"{sets['target']} prompts opened")
        _tidy(axes)
        axes.legend(loc="lower right", frameon=False, fontsize=8)
    figure.supxlabel("marks: the threshold in use", fontsize=8, color="#555555")
    return figure
