"""Texts that are too much alike: repeats within pairs or prompts, leaks between them."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations, product

from mlx_steer.behaviors import Behavior, ContrastPair, PromptItem
from mlx_steer.checks.lint.findings import Finding, likeness, percent, severity, words
from mlx_steer.checks.lint.lengths import SPLITS

NEAR, SAME = 0.7, 0.85
"""Likeness from which two prompts are near duplicates, and as good as the same."""

_Entry = ContrastPair | PromptItem


def repeats(behavior: Behavior) -> Iterator[Finding]:
    """Near duplicates within the pairs and within a split's prompts, and repeated responses."""
    yield from _near(combinations(behavior.pairs, 2), "pairs")
    for split in SPLITS:
        items = behavior.select(split=split)
        yield from _near(combinations(items, 2), f"prompts, split {split}")
    for side in ("positive", "negative"):
        groups = defaultdict(list)
        for pair in behavior.pairs:
            groups[" ".join(getattr(pair, side).split()).casefold()].append(pair.id)
        repeated = [ids for ids in groups.values() if len(ids) > 1]
        if repeated:
            most = max(map(len, repeated)) / len(behavior.pairs)
            yield Finding(
                severity(most > 0.2),
                "repeat",
                f"pairs, {side} side",
                f"{sum(map(len, repeated))} responses stand more than once; the most frequent is "
                f"that of {percent(most)} of the pairs",
                "word each response anew: the vector should be of the behavior, not of a sentence",
                tuple(one for ids in repeated for one in ids),
            )


def leaks(behavior: Behavior) -> Iterator[Finding]:
    """Prompts that are nearly a contrast pair's, or nearly those of another split."""
    yield from _near(product(behavior.pairs, behavior.prompts), "pairs and prompts", leak=True)
    for one, other in combinations(SPLITS, 2):
        halves = behavior.select(split=one), behavior.select(split=other)
        yield from _near(product(*halves), f"prompts, splits {one} and {other}", leak=True)


def _near(
    candidates: Iterable[tuple[_Entry, _Entry]], where: str, leak: bool = False
) -> Iterator[Finding]:
    known: dict[str, frozenset[str]] = {}

    def read(text: str | None) -> frozenset[str]:
        if (text or "") not in known:
            known[text or ""] = words(text or "")
        return known[text or ""]

    found: list[tuple[float, str, str]] = []
    for one, other in candidates:
        alike = likeness(read(one.prompt), read(other.prompt))
        if alike >= NEAR and (one.system or other.system):
            # One prompt under two system messages is two prompts.
            alike = min(alike, likeness(read(one.system), read(other.system)))
        if alike >= NEAR:
            found.append((alike, one.id, other.id))
    if found:
        found.sort(key=lambda item: -item[0])
        yield Finding(
            severity(leak and found[0][0] >= SAME),
            "leak" if leak else "near duplicate",
            where,
            f"prompts share most of their words: {_shown(found)}",
            "replace one of the two: rates on prompts that the vector or the choice has seen look "
            "too good"
            if leak
            else "replace one of the two: they count as one observation",
            tuple(dict.fromkeys(name for _, *names in found for name in names)),
        )


def _shown(found: Sequence[tuple[float, str, str]]) -> str:
    shown = "; ".join(f"{one} and {other} ({percent(alike)})" for alike, one, other in found[:5])
    return shown + (f"; and {len(found) - 5} more" if len(found) > 5 else "")
