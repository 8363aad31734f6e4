"""Which conditions were settled before the test half was run: the ones the headline is about."""

from collections.abc import Sequence

from mlx_steer.metrics.choose import choose_cell, choose_system_prompt
from mlx_steer.metrics.measure import Json, ScoredRun
from mlx_steer.run.records import ConditionRecord


def primary(data: ScoredRun, tested: Sequence[ConditionRecord]) -> dict[str, str | None]:
    """The pre-specified condition of each kind, by name: `steering`, `gated` and `prompt`.

    The config's own layer and system prompt come before what the sweep chose. Without either the
    rule chooses from the select half, and without a sweep strength 1 or the middle one is taken, as
    the comparison itself does.

    Args:
        data: The run.
        tested: Its conditions that have rows of the test half.

    Returns:
        None where the test half has no condition of the kind.
    """
    choice, config = data.run.choice, data.run.config.compare
    layer = config.layer if config.layer is not None else choice.layer if choice else None
    if layer is not None and layer < 0:
        layer += data.run.manifest.num_layers
    gated = choice.gated if choice else None
    cells = {
        "steering": (layer, choice.strength if choice else None),
        "gated": (gated.layer, gated.strength) if gated else (None, None),
    }
    found: dict[str, str | None] = {}
    for kind, (wanted_layer, strength) in cells.items():
        own = [c for c in tested if c.kind == kind]
        there = [c for c in own if wanted_layer is None or c.layer == wanted_layer]
        found[kind] = _named(there, strength) or _by_rule_tested(data, kind, there or own)
    prompts = [c for c in tested if c.kind == "prompt"]
    wanted = config.system_prompt or (choice.system_prompt if choice else None)
    named = [c for c in prompts if wanted and wanted in (c.system_prompt, c.system_text)]
    found["prompt"] = next((c.name for c in (*named, *prompts)), None)
    return found


def by_rule(data: ScoredRun, split: str, kind: str) -> Json | None:
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
    return {"condition": cell.condition, "met_limits": met_limits, "candidates": len(cells)}


def _named(conditions: Sequence[ConditionRecord], strength: float | None) -> str | None:
    return next((c.name for c in conditions if c.strength == strength), None)


def _by_rule_tested(data: ScoredRun, kind: str, tested: Sequence[ConditionRecord]) -> str | None:
    if not tested:
        return None
    rule = by_rule(data, "select", kind)
    if rule and any(c.name == rule["condition"] for c in tested):
        name: str = rule["condition"]
        return name
    return _named(tested, 1.0) or tested[len(tested) // 2].name
