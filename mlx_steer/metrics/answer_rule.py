"""The verdict on steering, by one rule, from the numbers of the test half.

The primary tests are the chosen plain and the chosen gated cell against base on target prompts:
paired, exact, Holm-corrected over the two (see compare.py).
"""

from collections.abc import Sequence
from typing import Literal

from mlx_steer.metrics.answer import Answer, AnswerVerdict, Opponent, Settled
from mlx_steer.metrics.choose import broken_limits, held_to
from mlx_steer.metrics.halves import (
    ComparedCondition,
    Comparison,
    FixedAnswerNumbers,
    Outcome,
    Sweep,
)
from mlx_steer.metrics.measure import ScoredRun
from mlx_steer.metrics.metrics_file import AgainstPrompt, Controls
from mlx_steer.metrics.numbers import Difference, Measured, Share

_Kind = Literal["steering", "gated"]

# The best first: the answer is of the better of the two cells.
_ORDER: tuple[AnswerVerdict, ...] = ("works", "works behind a gate", "not shown", "does harm")


def verdict(difference: Difference, broken: Sequence[str], kind: _Kind) -> AnswerVerdict:
    """The verdict on one cell.

    Args:
        difference: Its target rate minus base's.
        broken: The limits that it breaks.
        kind: Of the cell.
    """
    gain = difference.finding == "higher"
    if gain and not broken:
        return "works behind a gate" if kind == "gated" else "works"
    if difference.finding == "lower" or (broken and not gain):
        return "does harm"
    return "not shown"


def decide(
    data: ScoredRun,
    select: Sweep,
    test: Comparison,
    against: AgainstPrompt | None,
    controls: Controls | None,
) -> Answer | None:
    """The answer; None where no chosen cell was compared with base on target prompts.

    Args:
        data: The run.
        select: Its select half.
        test: Its test half.
        against: Steered conditions against the system prompt.
        controls: The vector against others of its norm.
    """
    cells = {kind: _settled(data, select, test, kind) for kind in ("steering", "gated")}
    there = {kind: cell for kind, cell in cells.items() if cell is not None}
    if not there or test.base is None:
        return None
    of: _Kind = min(there, key=lambda kind: _ORDER.index(there[kind].verdict))  # type: ignore
    cell, gated = there[of], cells["gated"]
    prompt = test.named(against.prompt) if against else None
    record = against.named(cell.condition) if against else None
    fixed = next((f for f in test.fixed if gated and f.condition == gated.condition), None)
    minus = {c.name: c.real_minus_control.target for c in controls.conditions} if controls else {}
    named = [test.named(name) for name in minus]
    other = [c for c in named if c is not None]
    random = max((c for c in other if c.kind == "random"), key=_target, default=None)
    shuffled = next((c for c in other if c.kind == "shuffled"), None)
    return Answer(
        verdict=cell.verdict,
        of=of,
        plain=cells["steering"],
        gated=gated,
        base=_opponent(test.base, None),
        prompt=_opponent(prompt, record.difference.target if record else None) if prompt else None,
        random=_opponent(random, minus[random.name]) if random else None,
        random_beaten=(controls.random.beaten_on_target, controls.random.seeds)
        if controls
        else (0, 0),
        shuffled=_opponent(shuffled, minus[shuffled.name]) if shuffled else None,
        fixed=_opponent(fixed, fixed.steering_minus_fixed.target) if fixed else None,
        detectable=test.detectable,
    )


def _settled(data: ScoredRun, select: Sweep, test: Comparison, kind: _Kind) -> Settled | None:
    """The chosen cell of a kind, if it was compared with base."""
    cell, base = test.main(kind), data.base
    difference = cell.against("target") if cell else None
    if cell is None or base is None or difference is None:
        return None
    measured = data.cell(data.run.condition(cell.name), "test")
    base_cell = held_to(data.run, data.scored, data.cell(base, "test"), "test")
    broken = broken_limits(measured, base_cell, data.run.config.sweep.limits)
    chosen = select.named(cell.name)
    return Settled(
        condition=cell.name,
        verdict=verdict(difference, broken, kind),
        layer=cell.layer,
        strength=cell.strength,
        relative_dose=cell.relative_dose,
        rates=_rates(cell),
        coherence=cell.coherence.mean,
        incoherent=cell.incoherent,
        broken_limits=broken,
        against_base=difference,
        select_target=chosen.target if chosen and chosen.target.n else None,
        price=cell.price,
    )


def _opponent(
    found: ComparedCondition | FixedAnswerNumbers, difference: Difference | None
) -> Opponent:
    return Opponent(
        name=found.name,
        rates=_rates(found),
        coherence=found.coherence.mean,
        price=found.price if isinstance(found, ComparedCondition) else None,
        difference=difference,
    )


def _rates(found: Outcome) -> Measured[Share]:
    return Measured[Share].each(found.of)


def _target(condition: ComparedCondition) -> float:
    return condition.target.rate or 0.0
