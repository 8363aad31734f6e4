"""Sizes, categories and forms of the prompt sets."""

from collections import Counter
from collections.abc import Iterator

from mlx_steer.behaviors import Behavior, PromptItem
from mlx_steer.checks.lint.findings import Finding, percent, severity
from mlx_steer.checks.lint.lengths import SPLITS
from mlx_steer.words import PromptSet, Split

FEW_PAIRS, FEW_PROMPTS, FEW_FOR_GATE = 20, 10, 20
"""Below these numbers, vectors, rates and gates are mostly chance."""

_COMPARED: tuple[PromptSet, ...] = ("target", "other")
_HALVES: tuple[Split, ...] = ("select", "test")


def sizes(behavior: Behavior) -> Iterator[Finding]:
    """Too few pairs or prompts, or none where an experiment needs some."""
    if len(behavior.pairs) < FEW_PAIRS:
        yield Finding(
            "warning",
            "few pairs",
            "pairs",
            f"there are {len(behavior.pairs)} contrast pairs; so few make a vector that depends on "
            "which they are",
            f"write at least {FEW_PAIRS}, better 50",
        )
    for name in _COMPARED:
        for split in _HALVES:
            yield from _few(
                behavior,
                name,
                split,
                FEW_PROMPTS,
                "a rate over so few is uncertain by 30 points or more",
            )
        if behavior.select(split="gate"):
            yield from _few(
                behavior,
                name,
                "gate",
                FEW_FOR_GATE,
                "a gate fitted and checked on so few is chance",
            )
    for split in SPLITS:
        target, other = (len(behavior.select(name, split)) for name in _COMPARED)
        if min(target, other) and max(target, other) > 2 * min(target, other):
            yield Finding(
                "warning",
                "uneven sets",
                f"prompts, split {split}",
                f"there are {target} target and {other} other prompts",
                "make the sets of like size: the smaller one limits what can be found",
            )


def question_sizes(behavior: Behavior) -> Iterator[Finding]:
    """Of two sentences: too few questions to write pairs on, to choose by or to measure on."""
    yield from _few(behavior, "target", "extract", FEW_PAIRS, "so few make a vector of chance")
    for split in _HALVES:
        why = "a rate over so few is uncertain by 30 points or more"
        yield from _few(behavior, "target", split, FEW_PROMPTS, why)


def _few(
    behavior: Behavior, name: PromptSet, split: Split, least: int, why: str
) -> Iterator[Finding]:
    count = len(behavior.select(name, split))
    if count < least:
        yield Finding(
            severity(count == 0),
            "few prompts",
            f"prompts, set {name}, split {split}",
            f"there are {count} prompts; {why}" if count else "there are no prompts",
            f"write at least {least}, better twice as many",
        )


def balance(behavior: Behavior) -> Iterator[Finding]:
    """Select and test halves of different make-up: what is chosen is not what is measured."""
    for name in _COMPARED:
        select, test = (behavior.select(name, split) for split in _HALVES)
        if not (select and test and any(item.category for item in (*select, *test))):
            continue
        one, other = (Counter(item.category for item in half) for half in (select, test))
        shares = [abs(one[c] / len(select) - other[c] / len(test)) for c in one | other]
        missing = sorted(
            c or "none" for c in one | other if (one | other)[c] > 1 > one[c] * other[c]
        )
        moved = sum(shares) / 2
        if moved > 0.25 or missing:
            detail = f"; in one of them only: {', '.join(missing)}" if missing else ""
            yield Finding(
                severity(moved > 0.75),
                "balance",
                f"prompts, set {name}",
                f"the select and the test half differ in the category of {percent(moved)} of "
                f"their prompts{detail}",
                "give both halves the same categories in the same numbers",
            )


def set_forms(behavior: Behavior) -> Iterator[Finding]:
    """Sets told apart by being questions or not, by system messages, or by tools."""
    for split in SPLITS:
        target, other = (behavior.select(name, split) for name in _COMPARED)
        if min(len(target), len(other)) < 5:
            continue
        for form, has in _FORMS.items():
            shares = [sum(map(has, items)) / len(items) for items in (target, other)]
            if abs(shares[0] - shares[1]) >= 0.5:
                yield Finding(
                    "warning",
                    "set form",
                    f"prompts, split {split}",
                    f"{percent(shares[0])} of the target and {percent(shares[1])} of the other "
                    f"prompts {form}",
                    "mix forms in both sets, else a vector or a gate may go by the form",
                )


def _is_question(item: PromptItem) -> bool:
    return item.prompt.rstrip().endswith(("?", "\uff1f"))


def _has_system(item: PromptItem) -> bool:
    return item.system is not None


def _has_tools(item: PromptItem) -> bool:
    return bool(item.tools)


_FORMS = {
    "end in a question mark": _is_question,
    "have a system message of their own": _has_system,
    "offer tools": _has_tools,
}
