"""What the rows of an unfinished run say so far: base against the leading cell."""

from collections.abc import Mapping
from pathlib import Path

from mlx_steer.bands import LayerOrBand
from mlx_steer.errors import SteerError
from mlx_steer.metrics.choose import cell_of, choose_cell
from mlx_steer.metrics.verdicts import Scored, judged
from mlx_steer.run.reader import RunData, load_run
from mlx_steer.stats import Rate
from mlx_steer.words import Split


def interim(folder: Path) -> str | None:
    """The leading cell so far and base on the same prompts, as a sentence.

    On the test half once it has rows of a steered condition, before that on the select half.

    Args:
        folder: Of a run, which may be anywhere in its making.

    Returns:
        None while there is nothing to compare.
    """
    try:
        run = load_run(folder)
        scored = judged(run)
    except SteerError:
        return None
    splits: tuple[Split, ...] = ("test", "select")
    for split in splits:
        found = _leading(run, scored, split)
        if found is not None:
            return found
    return None


def _chosen(run: RunData) -> set[tuple[str, LayerOrBand, float]]:
    """Kind, layer and strength of the cells that the run chose."""
    if run.choice is None:
        return set()
    found: set[tuple[str, LayerOrBand, float]] = {
        ("steering", run.choice.layer, run.choice.strength)
    }
    if run.choice.gated is not None:
        found.add(("gated", run.choice.gated.layer, run.choice.gated.strength))
    return found


def _leading(run: RunData, scored: Mapping[str, Scored], split: Split) -> str | None:
    base = next((c for c in run.conditions if c.kind == "base"), None)
    steered = [c for c in run.conditions if c.kind in ("steering", "gated")]
    if split == "test":  # not the best of those that happen to be compared too
        steered = [c for c in steered if (c.kind, c.layer, c.strength) in _chosen(run)] or steered
    cells = [cell_of(run, scored, c, split) for c in steered]
    cells = [cell for cell in cells if cell.complete]
    if base is None or not cells:
        return None
    whole = cell_of(run, scored, base, split)
    if not whole.complete:
        return None
    best, _ = choose_cell(cells, whole, run.config.sweep.limits)
    rows = run.condition(best.condition).rows
    asked = {prompt_id for prompt_id, key in rows.items() if key in scored}
    same = cell_of(run, scored, base, split, asked)
    words = run.behavior

    def said(rate: Rate, under: Rate) -> str:
        return f"{rate.count} of {rate.n} (base {under.count} of {under.n})"

    shown = words.verdict_word("shown")
    return (
        f"so far, {split} half: {best.condition}: {words.set_word('target')} {shown} "
        f"{said(best.target, same.target)}, {words.set_word('other')} {shown} "
        f"{said(best.false_positive, same.false_positive)}"
    )
