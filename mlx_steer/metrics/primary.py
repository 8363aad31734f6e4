"""Which conditions were settled before the test half was run: the ones the headline is about."""

from collections.abc import Sequence

from mlx_steer.bands import LayerOrBand
from mlx_steer.metrics.choose import choose_cell, choose_system_prompt
from mlx_steer.metrics.halves import Primary, RuleChoice
from mlx_steer.metrics.measure import ScoredRun
from mlx_steer.run.records import ConditionRecord
from mlx_steer.words import Split


def primary(data: ScoredRun, tested: Sequence[ConditionRecord]) -> Primary:
    """The pre-specified condition of each kind; None where the test half has none.

    The config's own layer and system prompt come before what the sweep chose. Without either the
    rule chooses from the select half, and without a sweep strength 1 or the middle one is taken, as
    the comparison itself does.

    Args:
        data: The run.
        tested: Its conditions that have rows of the test half.
    """
    choice, config = data.run.choice, data.run.config.compare
    layer = config.layer if config.layer is not None else choice.layer if choice else None
    if isinstance(layer, int) and layer < 0:
        layer += data.run.manifest.num_layers
    gated = choice.gated if choice else None
    prompts = [c for c in tested if c.kind == "prompt"]
    wanted = config.system_prompt or (choice.system_prompt if choice else None)
    named = [c for c in prompts if wanted and wanted in (c.system_prompt, c.system_text)]
    return Primary(
        steering=_cell(data, tested, "steering", (layer, choice.strength if choice else None)),
        gated=_cell(
            data, tested, "gated", (gated.layer, gated.strength) if gated else (None, None)
        ),
        prompt=next((c.name for c in (*named, *prompts)), None),
    )


def by_rule(data: ScoredRun, split: Split, kind: str) -> RuleChoice | None:
    """What the rule chooses among the conditions of one kind; None if it cannot."""
    cells = [data.cell(c, split) for c in data.run.conditions if c.kind == kind]
    cells = [cell for cell in cells if cell.complete]
    if data.base is None or not cells:
        return None
    base = data.cell(data.base, split)
    if not base.complete:
        return None
    choose = choose_system_prompt if kind == "prompt" else choose_cell
    cell, met_limits = choose(cells, base, data.run.config.sweep.limits)
    return RuleChoice(condition=cell.condition, met_limits=met_limits, candidates=len(cells))


def _cell(
    data: ScoredRun,
    tested: Sequence[ConditionRecord],
    kind: str,
    wanted: tuple[LayerOrBand | None, float | None],
) -> str | None:
    """The tested condition of a kind at the wanted layer and strength, or the nearest to that."""
    layer, strength = wanted
    own = [c for c in tested if c.kind == kind]
    there = [c for c in own if layer is None or c.layer == layer]
    return _named(there, strength) or _by_rule_tested(data, kind, there or own)


def _named(conditions: Sequence[ConditionRecord], strength: float | None) -> str | None:
    return next((c.name for c in conditions if c.strength == strength), None)


def _by_rule_tested(data: ScoredRun, kind: str, tested: Sequence[ConditionRecord]) -> str | None:
    if not tested:
        return None
    rule = by_rule(data, "select", kind)
    if rule and any(c.name == rule.condition for c in tested):
        return rule.condition
    return _named(tested, 1.0) or tested[len(tested) // 2].name
