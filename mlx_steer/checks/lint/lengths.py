"""Lengths: of the two sides of the pairs, and of the prompts of the sets."""

from collections.abc import Iterator, Sequence
from typing import Any

from mlx_steer.behaviors import Behavior, PromptItem
from mlx_steer.checks.lint.findings import Finding, mean, percent, severity
from mlx_steer.words import PromptSet, Split

MEAN_DIFFERENCE = 0.15
"""How far the sides' mean lengths may lie apart, as a part of the longer."""

PAIR_DIFFERENCE = 0.40
"""How far the two responses of one pair may lie apart, as a part of the longer."""

TELLING, DECISIVE = 0.75, 0.9
"""The chance of telling a target prompt from an other one by its length, from which it matters."""

SETS: tuple[PromptSet, ...] = ("target", "other", "borderline")
SPLITS: tuple[Split, ...] = ("select", "test", "gate")


def length_numbers(behavior: Behavior) -> dict[str, Any]:
    """Counts and mean lengths in characters, of both sides and of each set and split."""
    positive, negative = _sides(behavior)
    return {
        "pairs": len(behavior.pairs),
        "positive_characters": round(mean(positive), 1),
        "negative_characters": round(mean(negative), 1),
        "largest_pair_difference": round(max(map(_apart, positive, negative), default=0.0), 3),
        "prompts": {
            f"{name} {split}": {
                "count": len(items),
                "characters": round(mean(len(item.prompt) for item in items), 1),
            }
            for name, split, items in _groups(behavior)
        },
        "length_auc": {
            split: round(auc, 3)
            for split in SPLITS
            if (auc := _length_auc(behavior, split)) is not None
        },
    }


def pair_lengths(behavior: Behavior) -> Iterator[Finding]:
    """Sides of different length give a vector of length."""
    positive, negative = _sides(behavior)
    means = mean(positive), mean(negative)
    difference = abs(means[0] - means[1]) / max(*means, 1)
    if difference > MEAN_DIFFERENCE:
        yield Finding(
            "error",
            "length",
            "pairs",
            f"positive responses have {means[0]:.0f} characters on average and negative ones "
            f"{means[1]:.0f}, {percent(difference)} apart (at most {percent(MEAN_DIFFERENCE)})",
            "write both sides equally long, else the vector holds length as well",
        )
    uneven = [
        pair.id
        for pair, one, other in zip(behavior.pairs, positive, negative, strict=True)
        if _apart(one, other) > PAIR_DIFFERENCE
    ]
    if uneven:
        yield Finding(
            severity(len(uneven) > len(behavior.pairs) / 4),
            "length",
            "pairs",
            f"{len(uneven)} of {len(behavior.pairs)} pairs have responses that differ by more than "
            f"{percent(PAIR_DIFFERENCE)} in length",
            "lengthen the shorter or shorten the longer response",
            tuple(uneven),
        )


def set_lengths(behavior: Behavior) -> Iterator[Finding]:
    """Sets that length alone can tell apart: a gate between them would learn length."""
    for split in SPLITS:
        auc = _length_auc(behavior, split)
        if auc is None or max(auc, 1 - auc) < TELLING:
            continue
        target, other = (
            mean(len(item.prompt) for item in behavior.select(name, split)) for name in SETS[:2]
        )
        yield Finding(
            # Only the gate split is learnt from.
            severity(split == "gate" and max(auc, 1 - auc) >= DECISIVE),
            "set length",
            f"prompts, split {split}",
            f"target prompts have {target:.0f} characters on average and other ones {other:.0f}; "
            f"of one of each, the {'target' if auc > 0.5 else 'other'} one is the longer in "
            f"{percent(max(auc, 1 - auc))} of cases",
            "choose prompts of like length, else a gate or a vector may go by length",
        )


def _sides(behavior: Behavior) -> tuple[list[int], list[int]]:
    return [len(p.positive) for p in behavior.pairs], [len(p.negative) for p in behavior.pairs]


def _apart(one: int, other: int) -> float:
    return abs(one - other) / max(one, other, 1)


def _length_auc(behavior: Behavior, split: Split) -> float | None:
    """The chance that a target prompt is longer than an other one; ties count half."""
    target, other = (
        [len(item.prompt) for item in behavior.select(name, split)] for name in SETS[:2]
    )
    if min(len(target), len(other)) < 5:
        return None
    wins = sum((t > o) + (t == o) / 2 for t in target for o in other)
    return wins / (len(target) * len(other))


def _groups(behavior: Behavior) -> Iterator[tuple[str, str, Sequence[PromptItem]]]:
    for name in SETS:
        for split in SPLITS:
            if items := behavior.select(name, split):
                yield name, split, items
