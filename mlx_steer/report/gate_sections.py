"""What gates do, in sentences and tables: openings, gated steering, and the fixed answer instead.

A gate is a classifier of prompts. Whoever has one can also answer what opens it with a fixed text
and steer nothing; the report always says what steering adds to that.
"""

from collections.abc import Iterator, Mapping

from mlx_steer.metrics.gate_numbers import HELD_OUT
from mlx_steer.metrics.halves import FixedAnswerNumbers
from mlx_steer.metrics.metrics_file import GateFit, GateNumbers, GateSplit, Metrics, Words
from mlx_steer.metrics.numbers import MEASURES, Measure
from mlx_steer.report.document import Block, Cell, Paragraph, Plot, Section, Table
from mlx_steer.report.wording import change, compared, fixed, listed, number, of, rate

_SPLITS: Mapping[GateSplit, str] = {
    HELD_OUT: "fitting prompts, held out",
    "select": "select half",
    "test": "test half",
}


# Where an open gate is a mistake.
_WRONG: tuple[Measure, ...] = ("false_positive", "borderline")


def gated_sentence(metrics: Metrics) -> str:
    """Gated steering at its chosen strength against base and against plain steering."""
    words, cell, base = metrics.behavior, metrics.test.main("gated"), metrics.test.base
    if cell is None or base is None or not cell.target.n:
        return ""
    parts = [change(words, m, base, cell) for m in MEASURES if cell.of(m).n and base.of(m).n]
    sentence = (
        f"Gated steering ({cell.name.removeprefix('gated ')}, only where the gate opens): "
        f"{listed(parts)}. Against base: {compared(words, cell.against_base)}."
    )
    plain = metrics.against_plain
    if plain:
        sentence += (
            f" Against plain steering at {plain[0].plain}: {compared(words, plain[0].difference)}."
        )
    return sentence


def fixed_sentences(metrics: Metrics, at: int = 0) -> list[str]:
    """What a fixed answer behind the same gate does, and what steering adds or does not.

    Args:
        metrics: The metrics.
        at: Which of the fixed answers; the first is the one without a system prompt.
    """
    if at >= len(metrics.test.fixed):
        return []
    words, record = metrics.behavior, metrics.test.fixed[at]
    name, opened = _fixed_name(record), record.opened
    rates = [f"{words.rate(m)} {of(record.of(m))}" for m in MEASURES if record.of(m).n]
    target, quality = opened.target, record.quality
    left = target.absent + target.incoherent
    apart = f" ({target.incoherent} of them incoherent)" if target.incoherent else ""
    wrong = opened.false_positive.n + opened.borderline.n
    spared = opened.false_positive.absent + opened.borderline.absent
    sets = [words.sets[MEASURES[m]] for m in _WRONG if opened.of(m).n]
    sentences = [
        f"The same gate with a {name} instead of steering ({record.name}) would reach "
        f"{listed(rates)}. Where the gate opens that never fails, so on {words.rate('target')} "
        f"steering can at best equal it: of the {_counted(target.n, words.sets['target'])} that "
        f"opened the gate, {left} {'was' if left == 1 else 'were'} not {words.shown} when "
        f"steered{apart}.",
        f"What steering adds: of the {_counted(wrong, listed(sets))} that opened the gate wrongly, "
        f"{spared} came out as {words.absent} when steered, none under the {name}."
        if wrong
        else "Steering spares no prompt that the gate opened wrongly, for there was none.",
    ]
    if quality.n:
        before, after = quality.base, quality.steered
        text = (
            "Steered responses are the model's own words: on the opened "
            f"{words.sets['target']} prompts their coherence is {fixed(after.coherence)} "
            f"(unsteered {fixed(before.coherence)})"
        )
        if after.perplexity is not None and before.perplexity is not None:
            text += (
                f", their median perplexity {number(after.perplexity)} (unsteered "
                f"{number(before.perplexity)}; over {quality.scored} of them)"
            )
        sentences.append(f"{text}.")
    return [" ".join(sentences)]


def sections(metrics: Metrics, words: Words) -> Iterator[Section]:
    """One section for each gate."""
    gates = metrics.gates
    for index, gate in enumerate(gates):
        title = f"Gate under prompt {gate.system_prompt}" if gate.system_prompt else "Gate"
        yield Section(title, list(_blocks(metrics, words, gate, index)))


def _blocks(metrics: Metrics, words: Words, gate: GateNumbers, index: int) -> Iterator[Block]:
    yield Paragraph(
        f"The gate reads the hidden state of layer {gate.layer} at the last prompt token, "
        "before anything is steered. Its score is the projection on the gate's direction minus "
        f"the threshold ({number(gate.threshold, 4)}); at 0 and above the gate is open and the "
        "vector acts, below it the row is the unsteered one. Scores are the same at every strength."
    )
    if gate.fit:
        yield from _fitting(words, gate, gate.fit)
    if gate.opened:
        yield Paragraph("Prompts that opened the gate, and their share with its Wilson interval:")
        yield _openings(words, gate)
    if index == 0:
        yield Plot("gate_roc", "ROC curves of the gates; the filled mark is the threshold in use")
    yield from (Paragraph(sentence) for sentence in _fixed_of(metrics, gate))


def _fitting(words: Words, gate: GateNumbers, fit: GateFit) -> Iterator[Block]:
    """How the gate was fitted, and the candidates it was chosen from."""
    counts = [
        f"{fit.prompts.of(measure)} {words.sets[name]}"
        for measure, name in MEASURES.items()
        if fit.prompts.of(measure)
    ]
    under = f" under the system prompt {gate.system_prompt}" if gate.system_prompt else ""
    yield Paragraph(
        f"Fitted{under} on {listed(counts)} prompts that neither half of the experiment uses. "
        f"Cross-validation chose among {fit.tried} combinations of layer and method: layer "
        f"{gate.layer}, {fit.method}, with an area under the ROC curve (AUC) of "
        f"{fixed(fit.auc, 3)} for {words.sets['target']} against all others. The threshold "
        f"lets at most {100 * fit.false_positive_rate:g} % of held-out "
        f"{words.sets['other']} prompts open it"
        + (
            f"; {words.sets['borderline']} ones shape the direction and do not count there"
            if fit.prompts.borderline
            else ""
        )
        + ". Held-out scores are along directions made without the prompt, but layer and "
        "threshold were picked on them, so they flatter the gate a little; the two halves do "
        "not."
    )
    yield Table(
        [f"layer (best of {fit.tried})", "method", "cross-validated AUC"],
        [[Cell(str(c.layer)), Cell(c.method), Cell(fixed(c.auc, 3))] for c in fit.candidates],
        frozenset({0}),
    )


def _openings(words: Words, gate: GateNumbers) -> Table:
    rows = []
    condition = gate.conditions[0] if gate.conditions else None
    for split, measures in gate.opened.items():
        for measure, opened in measures.items():
            prompt_set = MEASURES[measure]
            rows_of = {"condition": condition or "", "split": split, "set": prompt_set}
            linked = condition is not None and split != HELD_OUT
            shut = opened.n - opened.count
            rows.append(
                [
                    Cell(f"{_SPLITS[split]}, {words.sets[prompt_set]}"),
                    Cell("open" if measure == "target" else "shut"),
                    Cell(str(opened.count), {**rows_of, "gate": "open"} if linked else None),
                    Cell(str(shut), {**rows_of, "gate": "shut"} if linked else None),
                    Cell(rate(opened)),
                ]
            )
    return Table(["prompts", "should be", "opened", "stayed shut", "share opened"], rows)


def _fixed_of(metrics: Metrics, gate: GateNumbers) -> list[str]:
    for index, record in enumerate(metrics.test.fixed):
        if record.condition in gate.conditions:
            difference = compared(metrics.behavior, record.steering_minus_fixed)
            return [
                *fixed_sentences(metrics, index),
                f"{record.condition} minus {record.name}, prompt by prompt: {difference}.",
            ]
    return []


def _fixed_name(record: FixedAnswerNumbers) -> str:
    return "fixed " + record.name.rpartition("fixed ")[2]


def _counted(count: int, what: str) -> str:
    return f"{count} {what} prompt{'' if count == 1 else 's'}"
