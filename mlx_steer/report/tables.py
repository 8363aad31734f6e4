"""The sections of numbers: vectors, sweep, choice, comparison, controls; tables and their words."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mlx_steer.metrics.load import CONTROL_KINDS
from mlx_steer.metrics.measure import MEASURES
from mlx_steer.report import findings
from mlx_steer.report.document import Block, Cell, Paragraph, Plot, Table
from mlx_steer.report.wording import (
    DASH,
    Words,
    fixed,
    number,
    of,
    one_line,
    p_value,
    points,
    rate,
)

Json = Mapping[str, Any]


def vectors(metrics: Json) -> Iterator[Block]:
    """Norms and relative doses by layer."""
    about = metrics["vectors"]
    if about is None:
        return
    yield Paragraph(
        f"Taken from {about['dataset']['pairs']} contrast pairs by {about['method']}, token "
        f"position: {about['token_position']}. The relative dose is strength times the vector's "
        "norm over the mean norm of the hidden states it was taken from."
    )
    strengths = [f"dose at {s:g}" for s in about["strengths"]]
    yield Table(
        ["layer", "norm", "mean hidden-state norm", *strengths],
        [
            [
                Cell(str(layer["layer"])),
                Cell(number(layer["norm"], 4)),
                Cell(number(layer["hidden_norm"], 4)),
                *(Cell(fixed(dose)) for dose in layer["relative_dose"]),
            ]
            for layer in about["layers"]
        ],
    )
    yield Plot("norm_by_layer", "Norm of the steering vector and of the hidden states by layer")


def _measures(conditions: Sequence[Json]) -> list[str]:
    """The rates that any of the conditions has rows for: not every behavior has borderline."""
    return [m for m in MEASURES if any(c[m]["n"] for c in conditions)]


def _rate_columns(words: Words, measures: Sequence[str]) -> list[str]:
    notes = {"false_positive": " (false positives)"}
    return [words.rate(measure) + notes.get(measure, "") for measure in measures]


def _rate_cells(condition: Json, split: str, measures: Sequence[str]) -> list[Cell]:
    cells = []
    for measure in measures:
        rows = {
            "condition": condition["name"],
            "split": split,
            "set": MEASURES[measure],
            "verdict": "shown",
        }
        cells.append(Cell(rate(condition[measure]), rows if condition[measure]["n"] else None))
    return cells


def _quality_cells(condition: Json, split: str) -> list[Cell]:
    coherence, incoherent = condition["coherence"], condition["incoherent"]
    rows = {"condition": condition["name"], "split": split, "verdict": "incoherent"}
    return [
        Cell(fixed(coherence["mean"])),
        Cell(number(condition["perplexity"]["median"])),
        Cell(
            f"{incoherent['count']}/{incoherent['n']}" if incoherent["n"] else DASH,
            rows if incoherent["count"] else None,
        ),
    ]


def _name_cell(condition: Json, split: str, chosen: str | None) -> Cell:
    name = condition["name"] + (" (chosen)" if condition["name"] == chosen else "")
    if condition["missing"]:
        name += f" ({condition['missing']} rows missing)"
    return Cell(name, {"condition": condition["name"], "split": split})


def sweep(metrics: Json, words: Words) -> Iterator[Block]:
    """Every condition on the select half."""
    conditions = metrics["select"]["conditions"]
    if not conditions:
        yield Paragraph("No sweep was run.")
        return
    chosen = findings.chosen_name(metrics)
    yield Paragraph(
        "On the select half of the prompts. Rates: count/n, share and Wilson 95 % interval in "
        "percent, over all rows of a set. Coherence is the mean over all rows; perplexity is the "
        "median, under the unsteered model."
    )
    measures = _measures(conditions)
    rows = []
    for condition in conditions:
        broken = condition["broken_limits"]
        verdict = DASH if broken is None else ", ".join(broken) if broken else "none"
        rows.append(
            [
                _name_cell(condition, "select", chosen),
                Cell(fixed(condition["relative_dose"])),
                *_rate_cells(condition, "select", measures),
                Cell(points(condition["gap"])),
                *_quality_cells(condition, "select"),
                Cell(verdict),
            ]
        )
    columns = [
        "condition",
        "relative dose",
        *_rate_columns(words, measures),
        "target minus false positives, points",
        "coherence",
        "perplexity",
        words.incoherent,
        "limits broken",
    ]
    marked = frozenset(i for i, c in enumerate(conditions) if c["name"] == chosen)
    yield Table(columns, rows, marked)
    yield Plot("sweep_heatmap", "Target rate and false positive rate by layer and strength")


def best(metrics: Json, words: Words) -> Iterator[Block]:
    """What was chosen, why, and how much the select half flattered it."""
    choice, rule = metrics["select"]["choice"], metrics["select"]["by_rule"]
    chosen = findings.chosen_name(metrics)
    cell = findings.by_name(metrics, "select", chosen)
    if cell is None:
        yield Paragraph("No cell was chosen.")
        return
    candidates = rule["candidates"] if rule else 0
    within = sum(
        c["kind"] == "steering" and c["broken_limits"] == []
        for c in metrics["select"]["conditions"]
    )
    if within:
        why = (
            f"{within} of {candidates} cells met the limits ({findings.limits(metrics)}); among "
            "them it has the highest target rate (ties: the smaller strength, fewer false "
            "positives, the lower layer)"
        )
    else:
        why = (
            f"none of {candidates} cells met the limits ({findings.limits(metrics)}); it has the "
            "largest target rate minus false positive rate"
        )
    base = findings.base_of(metrics, "select")
    compared = f", in base {of(base['target'])}" if base and base["target"]["n"] else ""
    yield Paragraph(
        f"{chosen}: {words.rate('target')} {of(cell['target'])}{compared}; "
        f"{words.rate('false_positive')} {of(cell['false_positive'])}. Why: {why}."
    )
    if choice and choice["system_prompt"]:
        name = one_line(choice["system_prompt"])
        yield Paragraph(f"System prompt of the comparison, by the same rule: {name}.")
    tested = findings.by_name(metrics, "test", chosen)
    if tested is None or not tested["target"]["n"]:
        yield Paragraph("The chosen cell was not run on the test half.")
        return
    yield Paragraph(_flattery(words, cell, tested))
    again = metrics["test"]["by_rule"]
    if again:
        same = "the same" if again["condition"] == chosen else again["condition"]
        met = "within the limits" if again["met_limits"] else "with no cell within the limits"
        yield Paragraph(
            f"Among the {again['candidates']} steering conditions that were run on the test half, "
            f"the rule would have chosen {same} there ({met})."
        )


def _flattery(words: Words, select: Json, test: Json) -> str:
    parts = []
    for measure in ("target", "false_positive"):
        if select[measure]["n"] and test[measure]["n"]:
            parts.append(
                f"{words.rate(measure)} {of(select[measure])} on the select half, where it was "
                f"chosen, and {of(test[measure])} on the test half"
            )
    if select["gap"] is None or test["gap"] is None:
        return f"{'; '.join(parts)}."
    return (
        f"How much the select half flattered it: {'; '.join(parts)}. Target rate minus false "
        f"positive rate: {points(select['gap'])} points there, {points(test['gap'])} here."
    )


def comparison(metrics: Json, words: Words) -> Iterator[Block]:
    """Every condition on the test half, and its differences from base."""
    conditions = [c for c in metrics["test"]["conditions"] if c["kind"] not in CONTROL_KINDS]
    if not conditions:
        yield Paragraph("No comparison was run.")
        return
    chosen, measures = findings.chosen_name(metrics), _measures(conditions)
    yield Paragraph(
        "On the test half, which took no part in the choice. Rates: count/n, share and Wilson 95 % "
        "interval in percent, over all rows of a set."
    )
    yield Table(
        [
            "condition",
            *_rate_columns(words, measures),
            "coherence",
            "perplexity",
            words.incoherent,
        ],
        [
            [
                _name_cell(c, "test", chosen),
                *_rate_cells(c, "test", measures),
                *_quality_cells(c, "test"),
            ]
            for c in conditions
        ],
        frozenset(i for i, c in enumerate(conditions) if c["name"] == chosen),
    )
    gated = [c for c in conditions if "steered" in c]
    if gated:
        yield Paragraph("Rows whose gates opened:")
        yield Table(
            ["condition", *(words.sets[s] for s in MEASURES.values())],
            [[Cell(c["name"]), *(Cell(rate(c["steered"][m])) for m in MEASURES)] for c in gated],
        )
    compared = [(c, c["against_base"]) for c in conditions if c["against_base"]]
    if compared:
        yield Paragraph(
            "Differences from base, prompt by prompt: points with the 95 % interval of the "
            "smoothed bootstrap; gained and lost are prompts that show it only under the condition "
            "or only under base; p is of the exact McNemar test, then Holm-corrected over the "
            f"{len(compared)} conditions for each rate."
        )
        yield _differences(words, [(c["name"], d) for c, d in compared])
        detectable = metrics["test"]["detectable"]
        if detectable:
            yield Paragraph(_power_sentence(words, detectable))
    yield Plot("dose_response", "Rates against strength, with their intervals")
    yield Plot("tradeoff", "Target rate against false positive rate of every condition")


def _differences(words: Words, records: list[tuple[str, Json]]) -> Table:
    rows = []
    for name, differences in records:
        for measure in MEASURES:
            value = differences[measure]
            if value is None:
                continue
            interval = f"({points(value['low'])} to {points(value['high'])})"
            rows.append(
                [
                    Cell(name),
                    Cell(words.rate(measure)),
                    Cell(f"{points(value['difference'])} {interval}"),
                    Cell(f"{value['gained']} / {value['lost']}"),
                    Cell(str(value["n"])),
                    Cell(p_value(value["p"])),
                    Cell(p_value(value["p_holm"])),
                    Cell(value["finding"]),
                ]
            )
    columns = [
        "condition",
        "rate",
        "difference, points",
        "gained / lost",
        "n",
        "p",
        "p (Holm)",
        "finding",
    ]
    return Table(columns, rows)


def _power_sentence(words: Words, detectable: Json) -> str:
    n = detectable["n"]
    if detectable["difference"] is None:
        return (
            f"At n = {n} no rise of {words.rate('target')}, however large, would be found with a "
            f"power of {detectable['power']:g} in {detectable['comparisons']} comparisons."
        )
    return (
        f"At n = {n} a rise of {words.rate('target')} by "
        f"{points(detectable['difference']).lstrip('+')} points or more would be found with a "
        f"power of {detectable['power']:g} (in {detectable['comparisons']} comparisons, verdicts "
        "independent given the rates); smaller true rises may well go unnoticed."
    )


def against_prompt(metrics: Json, words: Words) -> Iterator[Block]:
    """The steered conditions against the system prompt alone."""
    against = metrics["against_prompt"]
    if against is None or not against["conditions"]:
        yield Paragraph("No system prompt was compared with steering.")
        return
    yield Paragraph(
        f"Each steered condition minus {against['prompt']}, prompt by prompt; Holm-corrected over "
        f"the {len(against['conditions'])} conditions."
    )
    yield _differences(words, [(c["name"], c["difference"]) for c in against["conditions"]])
    chosen = findings.main_steering(metrics)
    record = next(
        (c for c in against["conditions"] if chosen and c["name"] == chosen["name"]), None
    )
    if record:
        difference = record["difference"]
        yield Paragraph(f"{record['name']}: {findings.beats_prompt(words, difference)}")


def controls(metrics: Json, words: Words) -> Iterator[Block]:
    """The vector against others of its norm."""
    found = metrics["controls"]
    if found is None:
        yield Paragraph("No controls were run.")
        return
    yield Paragraph(
        "Other vectors of the same norm, at the same layer and strength. Differences are the real "
        "vector minus the control, prompt by prompt, Holm-corrected over the controls."
    )
    names = {c["name"]: c for c in metrics["test"]["conditions"]}
    measures = _measures([names[c["name"]] for c in found["conditions"]])
    real = list(dict.fromkeys(c["real"] for c in found["conditions"]))
    shown = [names[name] for name in (*real, *(c["name"] for c in found["conditions"]))]
    yield Table(
        [
            "condition",
            *_rate_columns(words, measures),
            "coherence",
            "perplexity",
            words.incoherent,
        ],
        [
            [Cell(c["name"]), *_rate_cells(c, "test", measures), *_quality_cells(c, "test")]
            for c in shown
        ],
        frozenset(range(len(real))),
    )
    yield _differences(words, [(c["name"], c["real_minus_control"]) for c in found["conditions"]])
    sentence = findings.control_sentence(metrics)
    if sentence:
        seeds = found["random"]["seeds"]
        yield Paragraph(
            f"{sentence} With {seeds} random directions, beating all of them by chance alone has a "
            f"probability of 1 in {seeds + 1}."
        )
    yield from (Paragraph(sentence) for sentence in findings.other_controls(metrics))
    yield Plot("controls", "The real vector against its controls")
