"""The first screen of a report: the verdict, a table and at most five findings, in few words.

What stands here follows from `Metrics.answer` alone; everything else the report says below.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from mlx_steer.metrics.answer import Answer, AnswerVerdict, Opponent, Settled
from mlx_steer.metrics.metrics_file import Metrics, Words
from mlx_steer.metrics.numbers import Difference
from mlx_steer.report import sentence_sections
from mlx_steer.report.document import Plot
from mlx_steer.report.wording import corrected_p, fixed, number, percent, points

LABELS: dict[AnswerVerdict, str] = {
    "works": "Steering works.",
    "works behind a gate": "Steering works behind a gate.",
    "does harm": "Steering does harm.",
    "not shown": "That steering works was not shown.",
}

PLOT = "answer"


@dataclass(frozen=True)
class FirstScreen:
    """What a report, a terminal and a card open with.

    Attributes:
        verdict: See `Answer`.
        label: The verdict as a sentence.
        sentence: What it rests on.
        facts: The table: what and how much.
        findings: At most five, of at most two sentences.
        plot: The picture.
    """

    verdict: AnswerVerdict
    label: str
    sentence: str
    facts: tuple[tuple[str, str], ...]
    findings: tuple[str, ...]
    plot: Plot


def first_screen(metrics: Metrics) -> FirstScreen | None:
    """The first screen; None for a run without an answer."""
    answer, words = metrics.answer, metrics.behavior
    if answer is None:
        return None
    return FirstScreen(
        verdict=answer.verdict,
        label=LABELS[answer.verdict],
        sentence=_sentence(answer, words),
        facts=tuple(_facts(metrics, answer, words)),
        findings=tuple(_findings(metrics, answer, words))[:5],
        plot=Plot(
            PLOT,
            f"{words.rate('target')} (to rise) and {words.rate('false_positive')} (to stay low) on "
            "the test half, with 95 % intervals",
        ),
    )


def where(cell: Settled) -> str:
    """Such as "layer 15, strength 1 (relative dose 0.42)"."""
    place = cell.condition.removeprefix("gated ")
    dose = cell.relative_dose
    return place if dose is None else f"{place} (relative dose {number(dose, 2)})"


def _sentence(answer: Answer, words: Words) -> str:
    cell, base = answer.cell, answer.base
    found = cell.against_base
    verb = {"higher": "rises", "lower": "falls"}.get(found.finding, "goes")
    before, after = (percent(one.rates.target.rate) for one in (base, cell))
    text = (
        f"{_at(answer)} {where(cell)}, {words.rate('target')} {verb} from {before} to {after} "
        f"(n = {found.n}, {corrected_p(found)})"
    )
    if cell.rates.false_positive.n:
        text += (
            f", {words.rate('false_positive')} from {percent(base.rates.false_positive.rate)} to "
            f"{percent(cell.rates.false_positive.rate)}"
        )
    if cell.broken_limits:
        text += f"; it breaks the limits on {' and '.join(_broken(cell))}"
    fixed = answer.fixed.difference if answer.fixed else None
    if fixed and answer.fixed_does_as_well and answer.verdict == "works behind a gate":
        well = "better" if fixed.finding == "lower" else "as well"
        text += f"; a fixed text behind the same gate does {well}"
    return f"{text}."


def _broken(cell: Settled) -> list[str]:
    apart = f" ({percent(cell.incoherent.rate)})" if cell.incoherent else ""
    return [f"{limit}{apart * (limit == 'incoherent rows')}" for limit in cell.broken_limits]


def _at(answer: Answer) -> str:
    return "Behind a gate, at" if answer.of == "gated" else "At"


def _facts(metrics: Metrics, answer: Answer, words: Words) -> Iterator[tuple[str, str]]:
    cell, base = answer.cell, answer.base
    yield "where", where(cell) + (", behind a gate" if answer.of == "gated" else "")
    change = f"{percent(base.rates.target.rate)} → {percent(cell.rates.target.rate)}"
    found = cell.against_base
    yield (
        words.rate("target"),
        f"{change}, {points(found.difference)} points ({points(found.low)} to "
        f"{points(found.high)}), n = {found.n}",
    )
    price = []
    if cell.rates.false_positive.n:
        before, after = base.rates.false_positive.rate, cell.rates.false_positive.rate
        price.append(f"{words.rate('false_positive')} {percent(before)} → {percent(after)}")
    price.append(f"coherence {fixed(base.coherence)} → {fixed(cell.coherence)}")
    known, names = metrics.sentences, (base.name, cell.condition)
    facts = [right for name in names if known and (right := known.right(name))]
    if len(facts) == len(names):
        price.append(f"facts right {percent(facts[0].rate)} → {percent(facts[1].rate)}")
    if cell.price:
        opened = ""
        if answer.of == "gated":
            count = cell.price.opened.n if cell.price.opened else 0
            opened = f" (the gate opens for {count} of {cell.price.n})"
        price.append(
            f"KL {number(cell.price.nats, 2)} nats a token on {words.sets['other']} prompts{opened}"
        )
    yield "price", "; ".join(price)
    for name, opponent in (
        ("system prompt instead", answer.prompt),
        ("random directions, best", answer.random),
        ("shuffled pairs", answer.shuffled),
        ("fixed text behind the gate", answer.fixed),
    ):
        if opponent:
            yield name, _rates(opponent, words)


def _rates(found: Opponent, words: Words) -> str:
    text = f"{words.rate('target')} {percent(found.rates.target.rate)}"
    other = found.rates.false_positive
    return f"{text}, {words.rate('false_positive')} {percent(other.rate)}" if other.n else text


def _findings(metrics: Metrics, answer: Answer, words: Words) -> Iterator[str]:
    """The most important first."""
    other = answer.plain if answer.of == "gated" else answer.gated
    if other:
        what = "Without the gate" if answer.of == "gated" else "Behind a gate"
        limits = f", past the limits on {' and '.join(other.broken_limits)}" * bool(
            other.broken_limits
        )
        yield (
            f"{what}, at {where(other)}, {words.rate('target')} reaches "
            f"{percent(other.rates.target.rate)} at {words.rate('false_positive')} "
            f"{percent(other.rates.false_positive.rate)}{limits}: {_HOW[other.verdict]}."
        )
    if answer.prompt and answer.prompt.difference:
        yield (
            f"Against the system prompt alone ({_rates(answer.prompt, words)}), steering is "
            f"{_standing(answer.prompt.difference)}."
        )
    if answer.fixed and answer.fixed.difference:
        told = {"higher": "is behind", "lower": "is ahead of"}.get(
            answer.fixed.difference.finding, "does as well as"
        )
        yield (
            f"A fixed text behind the same gate {told} gated steering "
            f"({_rates(answer.fixed, words)}; steering is {_standing(answer.fixed.difference)}). "
            "The gate alone decides what it answers."
        )
    controls = list(_controls(answer, words))
    if controls:
        yield " ".join(controls)
    if meant := sentence_sections.meaning(metrics):
        yield meant
    yield " ".join(_caution(answer, words))


_HOW: dict[AnswerVerdict, str] = {
    "works": "that works too",
    "works behind a gate": "that works too",
    "does harm": "that does harm",
    "not shown": "that this works was not shown",
}


def _standing(difference: Difference) -> str:
    if difference.finding == "no difference shown":
        by = points(difference.difference)
        return f"not shown to differ, at {by} points ({corrected_p(difference)})"
    way = "ahead" if difference.finding == "higher" else "behind"
    by = points(abs(difference.difference)).lstrip("+")
    return f"{way} by {by} points ({corrected_p(difference)})"


def _controls(answer: Answer, words: Words) -> Iterator[str]:
    beaten, seeds = answer.random_beaten
    if answer.random and answer.random.difference:
        yield (
            f"Plain steering beats {beaten} of {seeds} random directions of the same norm on "
            f"{words.rate('target')} (the best: {percent(answer.random.rates.target.rate)})."
        )
    if answer.shuffled and answer.shuffled.difference:
        yield (
            f"Against vectors of shuffled pairs ({percent(answer.shuffled.rates.target.rate)}) it "
            f"is {_standing(answer.shuffled.difference)}."
        )


def _caution(answer: Answer, words: Words) -> Iterator[str]:
    """How far the numbers can be trusted."""
    cell, least = answer.cell, answer.detectable
    if cell.select_target and cell.select_target.n:
        yield (
            f"The cell had {percent(cell.select_target.rate)} of {cell.select_target.n} on the "
            f"half it was chosen on, and {percent(cell.rates.target.rate)} of "
            f"{cell.rates.target.n} on the test half."
        )
    if least:
        rise = points(least.difference).lstrip("+")
        yield (
            f"At n = {least.n} a rise of {rise} points is the smallest that is found with "
            f"{100 * least.power:g} % power."
            if least.difference is not None
            else f"At n = {least.n} no rise would be found with {100 * least.power:g} % power."
        )
