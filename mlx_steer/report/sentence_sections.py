"""What the report says of a behavior of two sentences: its judge, and what steering costs."""

from collections.abc import Iterator

from mlx_steer.metrics.metrics_file import Metrics, SentenceNumbers
from mlx_steer.report.document import Block, Paragraph
from mlx_steer.report.wording import fixed, of, percent


def price_sentence(metrics: Metrics) -> str:
    """Coherence and facts, base against steered; empty of another behavior."""
    found, cell, base = metrics.sentences, metrics.test.main("steering"), metrics.test.base
    if found is None or cell is None or base is None:
        return ""
    prompt = next((c for c in metrics.test.conditions if c.kind == "prompt"), None)
    under = f" ({fixed(prompt.coherence.mean)} under the system prompt)" if prompt else ""
    text = (
        f"Its price: mean coherence went from {fixed(base.coherence.mean)} to "
        f"{fixed(cell.coherence.mean)}{under}"
    )
    before, after = found.right(base.name), found.right(cell.name)
    if before and after:
        text += f", and short factual questions answered right from {of(before)} to {of(after)}"
    return f"{text}."


def meaning(metrics: Metrics) -> str:
    """What a verdict of this judge means; empty of another behavior."""
    found = metrics.sentences
    if found is None:
        return ""
    return (
        f"{metrics.behavior.shown.capitalize()!r} means likeness to prompted answers as the model "
        f"itself reads it (AUC {found.auc[0]:.3f} on such answers), not what a person would say."
    )


def judge(metrics: Metrics) -> Iterator[Block]:
    """The judge's figures and its known flaws, measured on this run."""
    found = metrics.sentences
    if found is None:
        return
    low, high = found.auc[1:]
    yield Paragraph(
        "The judge is the model: how much likelier the first "
        f"{found.tokens} tokens of a response are under the positive sentence than under the "
        "negative one, in nats per token. It measures likeness to prompted answers. On its own "
        f"answers to {found.questions} questions under either sentence: AUC {found.auc[0]:.3f} "
        f"({low:.3f} to {high:.3f}), held-out error {percent(found.error[0])} "
        f"({percent(found.error[1])} to {percent(found.error[2])}); the threshold that errs least "
        f"there is {found.threshold:+.2f}. {_pairs(found)}"
    )
    yield Paragraph(" ".join(_flaws(metrics, found)))


def _pairs(found: SentenceNumbers) -> str:
    dropped = [f"{n} {why}" for why, n in found.dropped.items() if n]
    left = f"; left out: {', '.join(dropped)}" if dropped else ""
    return f"The vector is taken from {found.pairs} pairs of these answers{left}."


def _flaws(metrics: Metrics, found: SentenceNumbers) -> Iterator[str]:
    yield "What is known to mislead it, on this run:"
    if found.masked_auc is not None:
        yield f"without the sentences' own words its AUC is {found.masked_auc:.3f}"
    chosen = metrics.test.main("steering")
    shares = [
        f"{of(found.masked[c.name])} in place of {of(c.target)} under {c.name}"
        for c in metrics.test.conditions
        if c.name in found.masked and (c.kind in ("base", "prompt") or c is chosen)
    ]
    if shares:
        yield f"and, by the same threshold, {'; '.join(shares)}."
    half = found.base_above_half_way
    if half.n:
        yield (
            f"By the half-way point between the two sides' means base would have "
            f"{of(half)}. Incoherent responses are never {metrics.behavior.shown}."
        )
    if found.rules is not None:
        yield (
            f"A judge of rules read the same {found.rules.n} responses and agreed on "
            f"{found.rules.agreed} (Cohen's kappa {fixed(found.rules.kappa)})."
        )
