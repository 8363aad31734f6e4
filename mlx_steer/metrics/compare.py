"""Paired comparisons on the test half: with base, with the system prompt, with the controls.

Each family of tests is corrected by Holm's method, for target, other and borderline prompts apart.
"""

from collections.abc import Iterable, Mapping

from mlx_steer.metrics.load import ConditionRecord
from mlx_steer.metrics.measure import MEASURES, Json, ScoredRun
from mlx_steer.stats import PairedDifference, detectable_difference, finding, holm, paired

STEERING_KINDS = ("steering", "gated", "prompt+steering", "prompt+gated")
POWER = 0.8

Pair = tuple[ConditionRecord, ConditionRecord]


def against_base(data: ScoredRun, conditions: Iterable[ConditionRecord]) -> dict[str, Json]:
    """Every condition but base and the controls, minus base; by condition name."""
    if data.base is None:
        return {}
    compared = [c for c in conditions if c.kind != "base" and not c.is_control]
    return _family(data, {c.name: (data.base, c) for c in compared})


def against_prompt(data: ScoredRun, conditions: list[ConditionRecord]) -> Json | None:
    """Every steered condition minus the system prompt alone; None if no prompt was compared."""
    prompts = [c for c in conditions if c.kind == "prompt"]
    if not prompts:
        return None
    choice = data.run.choice
    chosen = [c for c in prompts if choice and c.system_prompt == choice.system_prompt]
    prompt = (chosen or prompts)[0]
    steered = [c for c in conditions if c.kind in STEERING_KINDS]
    differences = _family(data, {c.name: (prompt, c) for c in steered})
    return {
        "prompt": prompt.name,
        "conditions": [
            {"name": c.name, "kind": c.kind, "difference": differences[c.name]} for c in steered
        ],
    }


def controls(data: ScoredRun, conditions: list[ConditionRecord]) -> Json | None:
    """The real vector minus each control at the same layer and strength; None without controls."""
    real = {(c.layer, c.strength): c for c in conditions if c.kind == "steering"}
    pairs = {
        c.name: (c, real[c.layer, c.strength])
        for c in conditions
        if c.is_control and (c.layer, c.strength) in real
    }
    if not pairs:
        return None
    differences = _family(data, pairs)
    cells = {c.name: data.cell(c, "test") for pair in pairs.values() for c in pair}
    gaps = {name: cell.target.value - cell.false_positive.value for name, cell in cells.items()}
    random = [(c.name, r.name) for c, r in pairs.values() if c.kind == "random"]
    return {
        "conditions": [
            {
                "name": name,
                "kind": control.kind,
                "real": against.name,
                "gap": gaps[name],
                "real_gap": gaps[against.name],
                "real_minus_control": differences[name],
            }
            for name, (control, against) in pairs.items()
        ],
        "random": {
            "seeds": len(random),
            "beaten_on_target": sum(
                cells[r].target.value > cells[c].target.value for c, r in random
            ),
            "beaten_on_gap": sum(gaps[r] > gaps[c] for c, r in random),
            "target_margins": sorted(
                cells[r].target.value - cells[c].target.value for c, r in random
            ),
        },
    }


def detectable(data: ScoredRun, comparisons: int) -> Json | None:
    """The smallest rise of the target rate over base that is found with a power of 0.8."""
    if data.base is None or comparisons == 0:
        return None
    target = data.cell(data.base, "test").target
    if target.n == 0:
        return None
    alpha = data.run.config.statistics.alpha
    return {
        "n": target.n,
        "power": POWER,
        "comparisons": comparisons,
        "difference": detectable_difference(target.n, target.value, POWER, alpha / comparisons),
    }


def _family(data: ScoredRun, pairs: Mapping[str, Pair]) -> dict[str, Json]:
    """Second minus first of every pair, each measure's p-values corrected for their number."""
    results: dict[str, Json] = {name: dict.fromkeys(MEASURES) for name in pairs}
    alpha = data.run.config.statistics.alpha
    for measure in MEASURES:
        found = {
            name: difference
            for name, pair in pairs.items()
            if (difference := _paired(data, pair, measure)) is not None
        }
        adjusted = holm([difference.p_value for difference in found.values()])
        for (name, difference), p in zip(found.items(), adjusted, strict=True):
            results[name][measure] = {
                "n": difference.n,
                "gained": difference.gained,
                "lost": difference.lost,
                "difference": difference.difference,
                "low": difference.low,
                "high": difference.high,
                "p": difference.p_value,
                "p_holm": p,
                "finding": finding(difference, p, alpha),
            }
    return results


def _paired(data: ScoredRun, pair: Pair, measure: str) -> PairedDifference | None:
    """Over the test prompts of one set that both conditions have rows of."""
    first, second = (
        {
            item.id: scored.verdict == "shown"
            for item, scored in data.rows(condition, "test")
            if item.set == MEASURES[measure]
        }
        for condition in pair
    )
    ids = [prompt_id for prompt_id in first if prompt_id in second]
    if not ids:
        return None
    statistics = data.run.config.statistics
    return paired(
        [first[prompt_id] for prompt_id in ids],
        [second[prompt_id] for prompt_id in ids],
        seed=statistics.seed,
        resamples=statistics.resamples,
    )
