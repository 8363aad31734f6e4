"""Paired comparisons on the test half: with base, with the system prompt, with the controls.

The conditions that were settled before the test half was run are one family of tests, the headline;
all others, such as further strengths, are a second, exploratory one. Each family is corrected by
Holm's method for its own size, for target, other and borderline prompts apart.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

from mlx_steer.bands import LayerOrBand
from mlx_steer.metrics.halves import Detectable, Primary
from mlx_steer.metrics.measure import ScoredRun
from mlx_steer.metrics.metrics_file import (
    AgainstPlain,
    AgainstPrompt,
    AgainstPromptCondition,
    ControlNumbers,
    Controls,
    RandomControls,
)
from mlx_steer.metrics.numbers import MEASURES, Difference, Differences, Measure, Measured
from mlx_steer.run.records import ConditionRecord
from mlx_steer.stats import PairedDifference, detectable_difference, finding, holm, paired

STEERING_KINDS = ("steering", "gated", "prompt+steering", "prompt+gated")
POWER = 0.8

Outcomes = Mapping[str, bool]
"""Whether each test prompt shows the behavior, by prompt id."""


def against_base(
    data: ScoredRun,
    conditions: Iterable[ConditionRecord],
    primary: Collection[str],
    computed: Mapping[str, Outcomes],
) -> dict[str, Differences]:
    """Every condition but base and the controls, minus base; by condition name.

    Args:
        data: The run.
        conditions: Those to compare.
        primary: Names of the pre-specified ones.
        computed: Outcomes that were not generated, by name; tested with the further conditions.
    """
    if data.base is None:
        return {}
    base = data.shown(data.base)
    compared = [c for c in conditions if c.kind != "base" and not c.is_control]
    pairs = {c.name: (base, data.shown(c)) for c in compared}
    return differences(data, pairs | {n: (base, o) for n, o in computed.items()}, primary)


def against_prompt(
    data: ScoredRun, conditions: Sequence[ConditionRecord], primary: Primary
) -> AgainstPrompt | None:
    """Every steered condition minus the system prompt alone; None if no prompt was compared."""
    prompt = next((c for c in conditions if c.name == primary.prompt), None)
    if prompt is None:
        return None
    steered = [c for c in conditions if c.kind in STEERING_KINDS]
    alone = data.shown(prompt)
    first = {name for name in (primary.steering, primary.gated) if name}
    found = differences(data, {c.name: (alone, data.shown(c)) for c in steered}, first)
    return AgainstPrompt(
        prompt=prompt.name,
        conditions=tuple(
            AgainstPromptCondition(name=c.name, kind=c.kind, difference=found[c.name])
            for c in steered
        ),
    )


def against_plain(
    data: ScoredRun, conditions: Sequence[ConditionRecord], primary: Primary
) -> list[AgainstPlain]:
    """The chosen gated steering minus the chosen plain one; with the system prompt likewise."""
    by_name = {c.name: c for c in conditions}
    plain, gated = (by_name.get(name or "") for name in (primary.steering, primary.gated))
    if plain is None or gated is None:
        return []
    pairs = [(plain, gated)]
    both = [
        next((c for c in conditions if c.kind == kind and _cell(c) == _cell(like)), None)
        for kind, like in (("prompt+steering", plain), ("prompt+gated", gated))
    ]
    if both[0] is not None and both[1] is not None:
        pairs.append((both[0], both[1]))
    found = differences(
        data, {b.name: (data.shown(a), data.shown(b)) for a, b in pairs}, {b.name for _, b in pairs}
    )
    return [AgainstPlain(name=b.name, plain=a.name, difference=found[b.name]) for a, b in pairs]


def controls(data: ScoredRun, conditions: Sequence[ConditionRecord]) -> Controls | None:
    """The real vector minus each control at the same layer and strength; None without controls."""
    real = {_cell(c): c for c in conditions if c.kind == "steering"}
    pairs = {c.name: (c, real[_cell(c)]) for c in conditions if c.is_control and _cell(c) in real}
    if not pairs:
        return None
    found = differences(
        data, {name: (data.shown(a), data.shown(b)) for name, (a, b) in pairs.items()}, pairs
    )
    cells = {c.name: data.cell(c, "test") for pair in pairs.values() for c in pair}
    gaps = {name: cell.target.value - cell.false_positive.value for name, cell in cells.items()}
    random = [(c.name, r.name) for c, r in pairs.values() if c.kind == "random"]
    return Controls(
        conditions=tuple(
            ControlNumbers(
                name=name,
                kind=control.kind,
                real=against.name,
                gap=gaps[name],
                real_gap=gaps[against.name],
                real_minus_control=found[name],
            )
            for name, (control, against) in pairs.items()
        ),
        random=RandomControls(
            seeds=len(random),
            beaten_on_target=sum(cells[r].target.value > cells[c].target.value for c, r in random),
            beaten_on_gap=sum(gaps[r] > gaps[c] for c, r in random),
            target_margins=tuple(
                sorted(cells[r].target.value - cells[c].target.value for c, r in random)
            ),
        ),
    )


def detectable(data: ScoredRun, comparisons: int) -> Detectable | None:
    """The smallest rise of the target rate over base that is found with a power of 0.8."""
    if data.base is None or comparisons == 0:
        return None
    target = data.cell(data.base, "test").target
    if target.n == 0:
        return None
    alpha = data.run.config.statistics.alpha
    return Detectable(
        n=target.n,
        power=POWER,
        comparisons=comparisons,
        difference=detectable_difference(target.n, target.value, POWER, alpha / comparisons),
    )


def differences(
    data: ScoredRun, pairs: Mapping[str, tuple[Outcomes, Outcomes]], primary: Collection[str]
) -> dict[str, Differences]:
    """Second minus first of every pair, by name; those named in `primary` are the first family."""
    found = {measure: _tested(data, pairs, primary, measure) for measure in MEASURES}
    return {
        name: Measured(
            target=found["target"].get(name),
            false_positive=found["false_positive"].get(name),
            borderline=found["borderline"].get(name),
        )
        for name in pairs
    }


def _tested(
    data: ScoredRun,
    pairs: Mapping[str, tuple[Outcomes, Outcomes]],
    primary: Collection[str],
    measure: Measure,
) -> dict[str, Difference]:
    """One measure's differences, where there are prompts to compare, corrected by family."""
    alpha = data.run.config.statistics.alpha
    found = {
        name: difference
        for name, (first, second) in pairs.items()
        if (difference := _paired(data, first, second, measure)) is not None
    }
    together = _adjusted(found)
    results = {}
    for family in ("primary", "secondary"):
        own = {n: d for n, d in found.items() if (n in primary) == (family == "primary")}
        within = _adjusted(own)
        for name, difference in own.items():
            results[name] = Difference(
                n=difference.n,
                gained=difference.gained,
                lost=difference.lost,
                difference=difference.difference,
                low=difference.low,
                high=difference.high,
                p=difference.p_value,
                family=family,
                family_size=len(own),
                p_holm=within[name],
                p_holm_all=together[name],
                finding=finding(difference, within[name], alpha),
            )
    return results


def _adjusted(found: Mapping[str, PairedDifference]) -> dict[str, float]:
    return dict(zip(found, holm([d.p_value for d in found.values()]), strict=True))


def _paired(
    data: ScoredRun, first: Outcomes, second: Outcomes, measure: Measure
) -> PairedDifference | None:
    """Over the test prompts of one set that both have outcomes of."""
    wanted, prompts = MEASURES[measure], data.run.prompts
    ids = [i for i in first if i in second and prompts[i].set == wanted]
    if not ids:
        return None
    statistics = data.run.config.statistics
    return paired(
        [first[prompt_id] for prompt_id in ids],
        [second[prompt_id] for prompt_id in ids],
        seed=statistics.seed,
        resamples=statistics.resamples,
    )


def _cell(condition: ConditionRecord) -> tuple[LayerOrBand | None, float | None]:
    return condition.layer, condition.strength
