"""What was found, in sentences that follow from the numbers and their tests.

"Significant" is said only of a Holm-corrected p at most alpha; otherwise the sentence says that no
difference could be shown, and at which n.
"""

from typing import Literal

from mlx_steer.config import Limits
from mlx_steer.metrics.metrics_file import Metrics, Words
from mlx_steer.metrics.numbers import MEASURES, Difference, Differences, Measure
from mlx_steer.report import gate_sections, sentence_sections
from mlx_steer.report.wording import (
    change,
    compared,
    corrected_p,
    listed,
    of,
    percent,
    points,
    verdict_on,
)
from mlx_steer.run.records import CONTROL_KINDS


def headline(metrics: Metrics) -> list[str]:
    """The first lines of the report: warnings, then what was found."""
    return [*warnings(metrics), *(s for s in _headline(metrics) if s)]


def warnings(metrics: Metrics) -> list[str]:
    """What a reader must know before any number: missing rows, limits that no cell met."""
    found = []
    rows = metrics.rows
    if rows.missing:
        names = list(rows.missing_by_condition)
        shown = [f"{name} ({rows.missing_by_condition[name]})" for name in names[:5]]
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        found.append(
            f"This report is partial: {rows.missing} of {rows.expected} rows are missing, in "
            f"{', '.join(shown)}{more}. Rates are over the rows that are there."
        )
    select, limits = metrics.select, limits_of(metrics)
    choice, rule = select.choice, select.by_rule
    met = choice.met_limits if choice else rule.met_limits if rule else True
    chosen_on = "On the prompts that the choice was made on, no cell of"
    taken = (
        f"met the limits ({limits}), so the one with the largest target rate minus false positive "
        "rate was taken."
    )
    if metrics.test.conditions:
        taken += " What it does on the others is measured here."
    gated = choice.gated if choice else select.gated_by_rule
    if not met:
        found.append(f"{chosen_on} {'plain steering' if gated else 'the sweep'} {taken}")
    if gated and not gated.met_limits:
        found.append(
            f"{chosen_on} gated steering {taken}"
            if met
            else "No cell of gated steering met them there either; the same was done."
        )
    for recorded, present in (
        (choice, rule),
        (choice.gated if choice else None, select.gated_by_rule),
    ):
        if recorded and present and recorded.condition != present.condition:
            found.append(
                f"With the present verdicts the rule would choose {present.condition}, not "
                f"{recorded.condition or 'the recorded cell'}, with which the comparison was "
                "run: the judge or a person's labels have changed since."
            )
    return found


def limits_of(metrics: Metrics) -> str:
    """The limits of the sweep as they apply to a run."""
    if metrics.sentences is None:
        return limits_in_words(metrics.limits)
    base = metrics.test.base or metrics.select.base
    return limits_of_sentences(metrics.limits, bool(base and base.false_positive.n))


def limits_of_sentences(given: Limits, others: bool) -> str:
    """The limits of the sweep for a behavior of two sentences, with other prompts or without."""
    first, coherence, last = limits_in_words(given).split(", ")
    coherence = coherence.replace("base", "the lower of base and the positive prompt")
    return ", ".join([first] * others + [coherence, last])


def limits_in_words(given: Limits) -> str:
    """The limits of the sweep."""
    return (
        f"false positives at most {100 * given.false_positives:g} points over base, mean "
        f"coherence at most {given.coherence_drop:g} under base, at most "
        f"{100 * given.incoherent:g} % incoherent rows"
    )


def _headline(metrics: Metrics) -> list[str]:
    if not metrics.test.conditions:
        return [_sweep_sentence(metrics)]
    return [
        _steering_sentence(metrics),
        _cost_sentence(metrics),
        sentence_sections.price_sentence(metrics),
        gate_sections.gated_sentence(metrics),
        *gate_sections.fixed_sentences(metrics),
        _prompt_sentence(metrics),
        *_both_sentences(metrics),
        # A control that is not beaten belongs here too: shuffled pairs keep the texts' style.
        " ".join([control_sentence(metrics), *other_controls(metrics)]).strip(),
        _breakdown_sentence(metrics),
    ]


def _sweep_sentence(metrics: Metrics) -> str:
    words = metrics.behavior
    name = metrics.select.chosen
    cell, base = metrics.select.named(name), metrics.select.base
    if cell is None or base is None:
        return "There are no finished rows to report yet."
    rates: tuple[Measure, ...] = ("target", "false_positive")
    moved = ", and ".join(change(words, m, base, cell) for m in rates if base.of(m).n)
    return (
        f"The sweep chose {name}: {moved}. These are the prompts it was chosen on, "
        "so the numbers flatter it; the test half was not run."
    )


def _steering_sentence(metrics: Metrics) -> str:
    words, cell, base = metrics.behavior, metrics.test.main("steering"), metrics.test.base
    if cell is None or base is None or not cell.target.n:
        return ""
    verdict = verdict_on(cell.against("target"))
    return (
        f"Steering at {cell.name}, on the test prompts: {change(words, 'target', base, cell)}: "
        f"{verdict}."
    )


def _cost_sentence(metrics: Metrics) -> str:
    words, cell, base = metrics.behavior, metrics.test.main("steering"), metrics.test.base
    if cell is None or base is None:
        return ""
    costs: tuple[Measure, ...] = ("false_positive", "borderline")
    parts = [
        f"{change(words, measure, base, cell)}: {verdict_on(cell.against(measure))}"
        for measure in costs
        if cell.of(measure).n and base.of(measure).n
    ]
    return f"Its cost in false positives: {'; '.join(parts)}." if parts else ""


def _prompt_sentence(metrics: Metrics) -> str:
    words, cell = metrics.behavior, metrics.test.main("steering")
    against = metrics.against_prompt
    if cell is None or against is None:
        return ""
    prompt = metrics.test.named(against.prompt)
    record = against.named(cell.name)
    if prompt is None or record is None:
        return ""
    other = prompt.false_positive
    at = f" at {words.rate('false_positive')} {of(other)}" if other.n else ""
    return (
        f"The system prompt alone ({prompt.name.removeprefix('prompt ')}) reached "
        f"{words.rate('target')} {of(prompt.target)}{at}. "
        f"{beats_prompt(words, record.difference)}"
    )


def beats_prompt(words: Words, difference: Differences, what: str = "steering") -> str:
    """Whether steering beats the system prompt, from the paired differences with it."""
    target, other = difference.target, difference.false_positive
    if target is not None and other is None:
        return _beats_on_target(words, target, what)
    if target is None or other is None:
        return f"{what.capitalize()} cannot be compared with it: rows are missing."
    if target.finding == other.finding == "no difference shown":
        return (
            f"That {what} beats the prompt, or the prompt {what}, could not be shown at n = "
            f"{target.n} ({words.rate('target')}: {corrected_p(target)}; "
            f"{words.rate('false_positive')}: {corrected_p(other)})."
        )
    better = target.finding == "higher" or other.finding == "lower"
    worse = target.finding == "lower" or other.finding == "higher"
    verdict = f"{what.capitalize()} beats the prompt" if better else f"The prompt beats {what}"
    if better and worse:
        verdict = "Neither beats the other on both counts"
    found = compared(words, difference, ("target", "false_positive"))
    return f"{verdict}: {what} against the prompt, {found}."


def _beats_on_target(words: Words, target: Difference, what: str) -> str:
    """The same where there are no other prompts."""
    if target.finding == "no difference shown":
        return (
            f"That {what} beats the prompt, or the prompt {what}, could not be shown at n = "
            f"{target.n} ({words.rate('target')}: {corrected_p(target)})."
        )
    better = target.finding == "higher"
    verdict = f"{what.capitalize()} beats the prompt" if better else f"The prompt beats {what}"
    return (
        f"{verdict}: {what} against the prompt, {words.rate('target')} "
        f"{points(target.difference)} points, {verdict_on(target)}."
    )


def _both_sentences(metrics: Metrics) -> list[str]:
    """The system prompt together with plain and with gated steering, at their chosen strengths."""
    words, sentences = metrics.behavior, []
    kinds: tuple[tuple[Literal["steering", "gated"], str], ...] = (
        ("steering", "Prompt and steering together"),
        ("gated", "Prompt and gated steering together"),
    )
    for alone, name in kinds:
        cell = metrics.test.main(alone)
        both = next(
            (
                c
                for c in metrics.test.conditions
                if cell and c.kind == f"prompt+{alone}" and c.same_cell(cell)
            ),
            None,
        )
        if both is None or not both.target.n:
            continue
        rates = [words.rate(m) + " " + of(both.of(m)) for m in MEASURES if both.of(m).n]
        part = f"{name} ({both.name.partition(' + ')[2]}): {', '.join(rates)}"
        against = metrics.against_prompt
        record = against.named(both.name) if against else None
        if record:
            part += f"; against the prompt alone: {compared(words, record.difference)}"
        sentences.append(f"{part}.")
    return sentences


def control_sentence(metrics: Metrics) -> str:
    """How the vector does against random directions, in one sentence."""
    controls = metrics.controls
    if controls is None or not controls.random.seeds:
        return ""
    words, random = metrics.behavior, controls.random
    seeds, margins = random.seeds, random.target_margins
    sentence = (
        f"The vector is ahead of {random.beaten_on_target} of {seeds} random directions of the "
        f"same norm on {words.rate('target')} (by {points(margins[0])} to {points(margins[-1])} "
        "points)"
    )
    control = metrics.test.named(next(c.name for c in controls.conditions if c.kind == "random"))
    if control and control.false_positive.n:
        sentence += (
            f", and of {random.beaten_on_gap} of {seeds} on that rate minus "
            f"{words.rate('false_positive')}"
        )
    if random.beaten_on_target < seeds:
        return f"{sentence}: its direction does not stand out clearly from a random one."
    return f"{sentence}."


def other_controls(metrics: Metrics) -> list[str]:
    """How the vector does against itself turned around and against shuffled pairs."""
    controls = metrics.controls
    if controls is None:
        return []
    words, found = metrics.behavior, []
    for record in controls.conditions:
        control = metrics.test.named(record.name)
        real = metrics.test.named(record.real)
        difference = record.real_minus_control.target
        if record.kind == "random" or not (control and real and difference):
            continue
        found.append(
            f"The vector against its control {record.kind}: {words.rate('target')} "
            f"{of(real.target)} against {of(control.target)}, {verdict_on(difference)}."
        )
    return found


def _breakdown_sentence(metrics: Metrics) -> str:
    """Where responses come apart, if any condition has a tenth of its rows incoherent."""
    allowed = metrics.limits.incoherent
    broken = [
        c
        for c in metrics.test.conditions
        if c.kind not in CONTROL_KINDS and c.n and c.incoherent.percent > 100 * allowed
    ]
    if not broken:
        return ""
    shown = [f"{c.name} ({percent(c.incoherent.rate)})" for c in broken[:4]]
    more = [f"{len(broken) - 4} more"] if len(broken) > 4 else []
    return (
        f"Responses come apart under {listed([*shown, *more])}: that share of rows is incoherent."
    )
