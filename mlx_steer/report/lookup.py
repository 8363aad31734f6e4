"""Finding conditions in the metrics: the chosen one, the base, a name."""

from collections.abc import Mapping
from typing import Any

Json = Mapping[str, Any]


def by_name(metrics: Json, split: str, name: str | None) -> Json | None:
    """A condition's numbers on one split; None if it was not run there."""
    return next((c for c in metrics[split]["conditions"] if c["name"] == name), None)


def base_of(metrics: Json, split: str) -> Json | None:
    """The base condition's numbers on one split."""
    return next((c for c in metrics[split]["conditions"] if c["kind"] == "base"), None)


def chosen_name(metrics: Json) -> str | None:
    """The steered cell of the sweep: the run's choice, or what the rule chooses."""
    choice, rule = metrics["select"]["choice"], metrics["select"]["by_rule"]
    if choice and choice["condition"]:
        name: str = choice["condition"]
        return name
    return rule["condition"] if rule else None


def chosen_gated_name(metrics: Json) -> str | None:
    """The same for gated steering; None if the sweep had none."""
    choice, rule = metrics["select"]["choice"], metrics["select"]["gated_by_rule"]
    gated = choice["gated"] if choice else None
    if gated and gated["condition"]:
        name: str = gated["condition"]
        return name
    return rule["condition"] if rule else None


def main_condition(metrics: Json, kind: str) -> Json | None:
    """The pre-specified condition of a kind (`steering`, `gated`, `prompt`) on the test half."""
    name = metrics["test"]["primary"][kind]
    return by_name(metrics, "test", name) if name else None


def main_names(metrics: Json) -> set[str]:
    """The names of the pre-specified steered conditions and of the chosen cells."""
    primary = metrics["test"]["primary"]
    names = (primary["steering"], primary["gated"])
    chosen = (chosen_name(metrics), chosen_gated_name(metrics))
    return {name for name in (*names, *chosen) if name}


def same_cell(condition: Json, other: Json) -> bool:
    """Whether two conditions steer the same layer at the same strength."""
    return bool(condition["layer"] == other["layer"] and condition["strength"] == other["strength"])
