"""What a run measured with some vectors, for their model card: from its metrics.json."""

from pathlib import Path

from mlx_steer.errors import VectorError
from mlx_steer.metrics.metrics_file import Metrics, read_metrics
from mlx_steer.metrics.numbers import Difference, Measure, Share
from mlx_steer.run.records import CONTROL_KINDS
from mlx_steer.vectors import SteeringVectorSet, load_vectors
from mlx_steer.vectors.model_card import Effect, EffectRow


def measured_effect(vectors: SteeringVectorSet, run: Path) -> Effect:
    """What a run says of these vectors.

    Args:
        vectors: The vectors to be shared.
        run: A run directory made with them, and reported.

    Raises:
        RunError: If the run has no metrics.json, or not one as this version writes it.
        VectorError: If it was made with other vectors.
    """
    metrics = read_metrics(run)
    _check_same(vectors, run)
    sets, choice = metrics.behavior.sets, metrics.select.choice
    return Effect(
        title=metrics.behavior.title,
        shown=metrics.behavior.shown,
        target=sets["target"],
        other=sets["other"],
        rows=[
            EffectRow(
                name=c.name,
                target=_rate(c.target),
                other=_rate(c.false_positive),
                incoherent=_rate(c.incoherent),
                coherence="-" if c.coherence.mean is None else f"{c.coherence.mean:.3f}",
            )
            for c in metrics.test.conditions
            if c.kind not in CONTROL_KINDS
        ],
        sentences=_sentences(metrics),
        layer=choice.layer if choice else None,
        strength=choice.strength if choice else None,
    )


def _check_same(vectors: SteeringVectorSet, run: Path) -> None:
    measured = load_vectors(run / "vectors")
    shared = [layer for layer in measured if layer in vectors]
    own, theirs = vectors.metadata.layers, measured.metadata.layers
    other = [layer for layer in shared if own[layer].sha256 != theirs[layer].sha256]
    if other or not shared or vectors.metadata.model != measured.metadata.model:
        what = f"layer {other[0]} differs" if other else "its model or its layers are others"
        raise VectorError(
            f"{run} was not measured with these vectors ({what}); give the run they are from, or "
            f"share {run / 'vectors'}"
        )


def _sentences(metrics: Metrics) -> list[str]:
    sets, choice, sentences = metrics.behavior.sets, metrics.select.choice, []
    if choice and not choice.met_limits:
        sentences.append("No cell of the sweep met the limits on false positives and coherence.")
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
