"""The sections of numbers: vectors, sweep, choice, comparison, controls; tables and their words."""

from collections.abc import Collection, Iterator, Sequence
from typing import Literal

from mlx_steer.metrics.halves import (
    ComparedCondition,
    ConditionNumbers,
    Outcome,
    RuleChoice,
    SweptCondition,
)
from mlx_steer.metrics.metrics_file import Metrics, Words
from mlx_steer.metrics.numbers import MEASURES, Measure
from mlx_steer.report import differences, findings
from mlx_steer.report.document import Block, Cell, Paragraph, Plot, Table
from mlx_steer.report.scored import scored_in_words
from mlx_steer.report.wording import DASH, fixed, listed, number, of, one_line, points, price, rate
from mlx_steer.run.records import CONTROL_KINDS

_RATES: tuple[Measure, ...] = ("target", "false_positive")


def vectors(metrics: Metrics) -> Iterator[Block]:
    """Norms and relative doses by layer."""
    about = metrics.vectors
    if about is None:
        return
    pairs = about.dataset
    origin = f"Taken from {pairs.pairs} contrast pairs by" if pairs else "Imported; method:"
    yield Paragraph(
        f"{origin} {about.method}, token "
        f"position: {about.token_position}. The relative dose is strength times the vector's "
        "norm over the mean norm of the hidden states it was taken from."
    )
    strengths = [f"dose at {s:g}" for s in about.strengths]
    separated = any(layer.separation is not None for layer in about.layers)
    if separated:
        yield Paragraph(
            "Separation: how well directions made from other pairs tell the two sides of a "
            "held-out pair apart, as the area under the ROC curve; 0.5 is chance, 1 is perfect. "
            "A layer that separates is not yet a layer that steers."
        )
    separation = ["separation (held-out AUC)"] if separated else []
    yield Table(
        ["layer", "norm", "mean hidden-state norm", *separation, *strengths],
        [
            [
                Cell(str(layer.layer)),
                Cell(number(layer.norm, 4)),
                Cell(number(layer.hidden_norm, 4)),
                *(Cell(fixed(layer.separation, 3)) for _ in separation),
                *(Cell(fixed(dose)) for dose in layer.relative_dose),
            ]
            for layer in about.layers
        ],
    )
    yield Plot("norm_by_layer", "Norm of the steering vector and of the hidden states by layer")


def _measures(conditions: Sequence[Outcome]) -> list[Measure]:
    """The rates that any of the conditions has rows for: not every behavior has borderline."""
    return [m for m in MEASURES if any(c.of(m).n for c in conditions)]


def _rate_columns(words: Words, measures: Sequence[Measure]) -> list[str]:
    notes = {"false_positive": " (false positives)"}
    return [words.rate(measure) + notes.get(measure, "") for measure in measures]


def _columns(words: Words, measures: Sequence[Measure]) -> list[str]:
    """Of a table of conditions on the test half."""
    rates = _rate_columns(words, measures)
    return ["condition", *rates, "coherence", words.incoherent, "price (KL, nats)", "perplexity"]


def _rate_cells(condition: Outcome, split: str, measures: Sequence[Measure]) -> list[Cell]:
    cells = []
    for measure in measures:
        rows = {
            "condition": condition.name,
            "split": split,
            "set": MEASURES[measure],
            "verdict": "shown",
        }
        cells.append(Cell(rate(condition.of(measure)), rows if condition.of(measure).n else None))
    return cells


def _quality_cells(condition: Outcome, split: str) -> list[Cell]:
    coherence, incoherent = condition.coherence, condition.incoherent
    rows = {"condition": condition.name, "split": split, "verdict": "incoherent"}
    return [
        Cell(fixed(coherence.mean)),
        Cell(
            f"{incoherent.count}/{incoherent.n}" if incoherent.n else DASH,
            rows if incoherent.count else None,
        ),
    ]


def _score_cells(condition: Outcome) -> list[Cell]:
    """Price and perplexity, where they were measured."""
    found = condition.price if isinstance(condition, ComparedCondition) else None
    return [Cell(price(found)), Cell(number(condition.perplexity.median))]


def _name_cell(condition: Outcome, split: str, chosen: Collection[str]) -> Cell:
    name = condition.name + (" (chosen)" if condition.name in chosen else "")
    if condition.missing:
        name += f" ({condition.missing} rows missing)"
    return Cell(name, {"condition": condition.name, "split": split})


def sweep(metrics: Metrics, words: Words) -> Iterator[Block]:
    """Every condition on the select half."""
    conditions = metrics.select.conditions
    if not conditions:
        yield Paragraph("No sweep was run.")
        return
    yield Paragraph(
        "On the select half of the prompts. Rates: count/n, share and Wilson 95 % interval in "
        "percent, over all rows of a set. Coherence is the mean over all rows."
    )
    gated = [c for c in conditions if c.kind == "gated"]
    yield _swept([c for c in conditions if c not in gated], metrics, words)
    yield Plot("sweep_heatmap", "Target rate and false positive rate by layer and strength")
    if gated:
        yield Paragraph("The same cells behind the gate:")
        yield _swept(gated, metrics, words)


def _swept(conditions: Sequence[SweptCondition], metrics: Metrics, words: Words) -> Table:
    chosen = metrics.main_names
    measures = _measures(conditions)
    rows = []
    for condition in conditions:
        broken = condition.broken_limits
        verdict = DASH if broken is None else ", ".join(broken) if broken else "none"
        rows.append(
            [
                _name_cell(condition, "select", chosen),
                Cell(fixed(condition.relative_dose)),
                *_rate_cells(condition, "select", measures),
                Cell(points(condition.gap)),
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
        words.incoherent,
        "limits broken",
    ]
    return Table(columns, rows, _marked(conditions, chosen))


def _marked(conditions: Sequence[Outcome], names: Collection[str]) -> frozenset[int]:
    return frozenset(i for i, c in enumerate(conditions) if c.name in names)


def best(metrics: Metrics, words: Words) -> Iterator[Block]:
    """What was chosen, why, and how much the select half flattered it."""
    select = metrics.select
    found = [
        (cell, rule)
        for name, rule in (
            (select.chosen, select.by_rule),
            (select.chosen_gated, select.gated_by_rule),
        )
        if (cell := select.named(name)) is not None
    ]
    if not found:
        yield Paragraph("No cell was chosen.")
        return
    yield Paragraph(f"The limits: {findings.limits_in_words(metrics.limits)}.")
    for cell, rule in found:
        yield from _best_of(metrics, cell, rule)
    choice = select.choice
    if choice and choice.system_prompt:
        name = one_line(choice.system_prompt)
        yield Paragraph(f"System prompt of the comparison, by the same rule: {name}.")
    again, chosen = metrics.test.by_rule, found[0][0].name
    if again and metrics.test.named(chosen):
        same = "the same" if again.condition == chosen else again.condition
        met = "within the limits" if again.met_limits else "with no cell within the limits"
        yield Paragraph(
            f"Among the {again.candidates} steering conditions that were run on the test half, "
            f"the rule would have chosen {same} there ({met})."
        )


def _best_of(metrics: Metrics, cell: SweptCondition, rule: RuleChoice | None) -> Iterator[Block]:
    """The chosen cell of one kind."""
    words = metrics.behavior
    candidates = rule.candidates if rule else 0
    within = sum(c.kind == cell.kind and c.broken_limits == () for c in metrics.select.conditions)
    if within:
        why = (
            f"{within} of {candidates} cells met the limits; among them it has the "
            "highest target rate (ties: the smaller strength, fewer false "
            "positives, the lower layer)"
        )
    else:
        why = (
            f"none of {candidates} cells met the limits; it has the largest target rate minus "
            "false positive rate"
        )
    base = metrics.select.base
    compared = f", in base {of(base.target)}" if base and base.target.n else ""
    yield Paragraph(
        f"{cell.name}: {words.rate('target')} {of(cell.target)}{compared}; "
        f"{words.rate('false_positive')} {of(cell.false_positive)}. Why: {why}."
    )
    tested = metrics.test.named(cell.name)
    if tested is None or not tested.target.n:
        yield Paragraph("The chosen cell was not run on the test half.")
        return
    yield Paragraph(_flattery(words, cell, tested))


def _flattery(words: Words, select: ConditionNumbers, test: ConditionNumbers) -> str:
    parts = []
    for measure in _RATES:
        if select.of(measure).n and test.of(measure).n:
            parts.append(
                f"{words.rate(measure)} {of(select.of(measure))} on the select half, where it was "
                f"chosen, and {of(test.of(measure))} on the test half"
            )
    if select.gap is None or test.gap is None:
        return f"{'; '.join(parts)}."
    return (
        f"How much the select half flattered it: {'; '.join(parts)}. Target rate minus false "
        f"positive rate: {points(select.gap)} points there, {points(test.gap)} here."
    )


def comparison(metrics: Metrics, words: Words) -> Iterator[Block]:
    """Every condition on the test half, and its differences from base."""
    conditions = [c for c in metrics.test.conditions if c.kind not in CONTROL_KINDS]
    if not conditions:
        yield Paragraph("No comparison was run.")
        return
    yield from _compared(metrics, conditions)
    yield Plot("tradeoff", "Target rate against false positive rate of every condition")
    against_base = [(c.name, c.against_base) for c in conditions]
    against_base += [(c.name, c.against_base) for c in metrics.test.fixed]
    compared = {name: found for name, found in against_base if found}
    if compared:
        reading = differences.how_to_read(metrics.alpha)
        yield Paragraph(f"Differences from base, prompt by prompt. {reading}")
        yield differences.table(words, compared)
        yield Paragraph(differences.families(words, compared, metrics.alpha))
        detectable = metrics.test.detectable
        if detectable:
            yield Paragraph(differences.power_sentence(words, detectable))
    plain = {c.name: c.difference for c in metrics.against_plain}
    if plain:
        against = listed([f"{c.name} minus {c.plain}" for c in metrics.against_plain])
        yield Paragraph(f"What the gate changes: {against}, prompt by prompt.")
        yield differences.table(words, plain)
    yield Plot("dose_response", "Rates against strength, with their intervals")


def _compared(metrics: Metrics, conditions: Sequence[ComparedCondition]) -> Iterator[Block]:
    """The rates of the conditions, and of the fixed answers behind their gates."""
    fixed_answers = metrics.test.fixed
    chosen, measures = metrics.main_names, _measures(conditions)
    computed = ""
    if fixed_answers:
        computed = (
            f" Computed, not generated: {'; '.join(r.name for r in fixed_answers)}. There what "
            "opens the gate counts as answered with a fixed text, and all else is the unsteered "
            "row."
        )
    yield Paragraph(
        "On the test half, which took no part in the choice. Rates: count/n, share and Wilson 95 % "
        f"interval in percent, over all rows of a set.{computed}{scored_in_words(metrics)}"
    )
    yield Table(
        _columns(metrics.behavior, measures),
        [
            *(
                [
                    _name_cell(c, "test", chosen),
                    *_rate_cells(c, "test", measures),
                    *_quality_cells(c, "test"),
                    *_score_cells(c),
                ]
                for c in conditions
            ),
            *(_without_links(_plain_cells(c, measures)) for c in fixed_answers),
        ],
        _marked(conditions, chosen),
    )


def _plain_cells(condition: Outcome, measures: Sequence[Measure]) -> list[Cell]:
    return [
        Cell(condition.name),
        *_rate_cells(condition, "test", measures),
        *_quality_cells(condition, "test"),
        *_score_cells(condition),
    ]


def _without_links(cells: list[Cell]) -> list[Cell]:
    return [Cell(cell.text) for cell in cells]


def against_prompt(metrics: Metrics, words: Words) -> Iterator[Block]:
    """The steered conditions against the system prompt alone."""
    against = metrics.against_prompt
    if against is None or not against.conditions:
        yield Paragraph("No system prompt was compared with steering.")
        return
    yield Paragraph(
        f"Each steered condition minus {against.prompt}, prompt by prompt; read and corrected "
        "as the differences from base."
    )
    yield differences.table(words, {c.name: c.difference for c in against.conditions})
    kinds: tuple[tuple[Literal["steering", "gated"], str], ...] = (
        ("steering", "steering"),
        ("gated", "gated steering"),
    )
    for kind, what in kinds:
        chosen = metrics.test.main(kind)
        record = against.named(chosen.name) if chosen else None
        if record:
            verdict = findings.beats_prompt(words, record.difference, what)
            yield Paragraph(f"{record.name}: {verdict}")


def controls(metrics: Metrics, words: Words) -> Iterator[Block]:
    """The vector against others of its norm."""
    found = metrics.controls
    if found is None:
        yield Paragraph("No controls were run.")
        return
    yield Paragraph(
        "Other vectors of the same norm, at the same layer and strength. Differences are the real "
        "vector minus the control, prompt by prompt; p is Holm-corrected over the controls, for "
        "each rate apart."
    )
    names = {c.name: c for c in metrics.test.conditions}
    measures = _measures([names[c.name] for c in found.conditions])
    real = list(dict.fromkeys(c.real for c in found.conditions))
    shown = [names[name] for name in (*real, *(c.name for c in found.conditions))]
    yield Table(
        _columns(words, measures),
        [_plain_cells(c, measures) for c in shown],
        frozenset(range(len(real))),
    )
    yield differences.table(words, {c.name: c.real_minus_control for c in found.conditions})
    sentence = findings.control_sentence(metrics)
    if sentence:
        seeds = found.random.seeds
        yield Paragraph(
            f"{sentence} With {seeds} random directions, beating all of them by chance alone has a "
            f"probability of 1 in {seeds + 1}."
        )
    yield from (Paragraph(sentence) for sentence in findings.other_controls(metrics))
    yield Plot("controls", "The real vector against its controls")
