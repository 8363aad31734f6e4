"""What a run measured with some vectors, as evidence for them: from its metrics.json."""

from pathlib import Path

from mlx_steer.bands import layer_words
from mlx_steer.errors import VectorError
from mlx_steer.metrics.metrics_file import Metrics, read_metrics
from mlx_steer.metrics.numbers import Difference, Measure, Share
from mlx_steer.report.first_screen import first_screen
from mlx_steer.run.records import CONTROL_KINDS
from mlx_steer.vectors import SteeringVectorSet, load_vectors
from mlx_steer.vectors.evidence import (
    Evidence,
    Fact,
    GatedCell,
    MeasuredDoses,
    MeasuredRow,
    differing,
)


def measured_effect(vectors: SteeringVectorSet, run: Path) -> Evidence:
    """What a run says of these vectors.

    Args:
        vectors: The vectors to be shared.
        run: A run directory made with them, and reported.

    Raises:
        RunError: If the run has no metrics.json, or not one as this version writes it.
        VectorError: If it was made with other vectors.
    """
    return evidence_of(vectors, run, read_metrics(run))


def evidence_of(vectors: SteeringVectorSet, run: Path, metrics: Metrics) -> Evidence:
    """The same from numbers that are at hand.

    Raises:
        VectorError: If the run was made with other vectors.
    """
    digests = _measured_vectors(vectors, run)
    sets, choice, first = metrics.behavior.sets, metrics.select.choice, first_screen(metrics)
    return Evidence(
        run=run.resolve().name,
        title=metrics.behavior.title,
        shown=metrics.behavior.shown,
        target=sets["target"],
        other=sets["other"],
        rows=[
            MeasuredRow(
                name=c.name,
                target=_rate(c.target),
                other=_rate(c.false_positive),
                incoherent=_rate(c.incoherent),
                coherence="-" if c.coherence.mean is None else f"{c.coherence.mean:.3f}",
            )
            for c in metrics.test.conditions
            if c.kind not in CONTROL_KINDS
        ],
        verdict=first.verdict if first else None,
        answer=f"{first.label} {first.sentence}" if first else _answer(metrics),
        facts=[Fact(what=what, value=value) for what, value in first.facts] if first else [],
        doses=_doses(metrics),
        sentences=[*_warned(metrics), *(first.findings if first else _sentences(metrics))],
        layer=choice.layer if choice else None,
        strength=choice.strength if choice else None,
        gated=_gated(metrics),
        vectors=digests,
    )


def _measured_vectors(vectors: SteeringVectorSet, run: Path) -> dict[str, str]:
    """The sha256 of the layers that were measured, by file; raises if they are not these."""
    measured = load_vectors(run / "vectors")
    digests = {info.file: info.sha256 for info in measured.metadata.layers.values()}
    other = differing(vectors, digests)
    if vectors.metadata.model != measured.metadata.model:
        other = "its model is another"
    if other is not None:
        raise VectorError(
            f"{run} was not measured with these vectors ({other}); give the run they are from, or "
            f"share {run / 'vectors'}"
        )
    return digests


def _gated(metrics: Metrics) -> GatedCell | None:
    """The chosen cell of gated steering, if it is the one that works."""
    cell = metrics.test.main("gated")
    if metrics.answer is None or metrics.answer.verdict != "works behind a gate":
        return None
    gate = next((g.name for g in metrics.gates if cell and cell.name in g.conditions), None)
    if cell is None or cell.layer is None or cell.strength is None or gate is None:
        return None
    return GatedCell(layer=cell.layer, strength=cell.strength, gate=gate)


def _doses(metrics: Metrics) -> list[MeasuredDoses]:
    """By layer, the highest dose of a cell whose responses kept together, on either half."""
    found: dict[int, float] = {}
    for c in metrics.select.conditions:
        apart = {"coherence", "incoherent rows"} & set(c.broken_limits or ())
        if not isinstance(c.layer, int) or not c.relative_dose or c.broken_limits is None or apart:
            continue
        if c.kind in ("steering", "gated"):
            found[c.layer] = max(found.get(c.layer, 0.0), abs(c.relative_dose))
    return [MeasuredDoses(layer=layer, highest=dose) for layer, dose in sorted(found.items())]


def _answer(metrics: Metrics) -> str:
    """What came of it: base against the chosen cell, and whether chance explains it."""
    choice, sets = metrics.select.choice, metrics.behavior.sets
    base = next((c for c in metrics.test.conditions if c.kind == "base"), None)
    cell = metrics.test.named(choice.condition) if choice else None
    if choice is None or base is None or cell is None:
        return "No layer and strength were chosen and measured."
    found, sure = cell.against("target"), ""
    if found is not None:
        way = "more" if found.difference > 0 else "fewer"
        what = f"{way} than by chance" if found.p_holm < 0.05 else "no difference could be shown"
        sure = f"; {what} (p = {found.p_holm:.2g})"
    where = f"{layer_words(choice.layer)}, strength {choice.strength:g}"
    return (
        f"At {where}, {metrics.behavior.shown} on "
        f"{sets['target']} prompts went from {_percent(base.target)} to {_percent(cell.target)} "
        f"(n = {cell.target.n}){sure}; on {sets['other']} prompts from "
        f"{_percent(base.false_positive)} to {_percent(cell.false_positive)}."
    )


def _percent(share: Share) -> str:
    return f"{share.percent:.0f} %" if share.n else "-"


def _warned(metrics: Metrics) -> list[str]:
    choice = metrics.select.choice
    if choice is None or choice.met_limits:
        return []
    return ["No cell of the sweep met the limits on false positives and coherence."]


def _sentences(metrics: Metrics) -> list[str]:
    sets, choice, sentences = metrics.behavior.sets, metrics.select.choice, []
    chosen = metrics.test.named(choice.condition) if choice else None
    measures: tuple[tuple[Measure, str], ...] = (
        ("target", sets["target"]),
        ("false_positive", sets["other"]),
    )
    for measure, prompts in measures:
        if chosen and (difference := chosen.against(measure)):
            sentences.append(_difference(chosen.name, prompts, difference))
    if metrics.controls and metrics.controls.random.seeds:
        random = metrics.controls.random
        sentences.append(
            f"On {sets['target']} prompts it beat {random.beaten_on_target} of {random.seeds} "
            "random directions of the same norm."
        )
    return sentences


def _difference(name: str, prompts: str, found: Difference) -> str:
    points, low, high = (100 * value for value in (found.difference, found.low, found.high))
    return (
        f"Against base, {name} changes the rate on {prompts} prompts by {points:+.0f} points "
        f"[{low:+.0f}, {high:+.0f}] (n = {found.n}, Holm-corrected p = {found.p_holm:.3g})."
    )


def _rate(share: Share) -> str:
    if not share.n:
        return "-"
    interval = f"[{100 * share.low:.0f}, {100 * share.high:.0f}]"
    return f"{share.count} of {share.n}: {share.percent:.0f} % {interval}"
