"""A behavior in which nothing is to be found, and ways to spoil it."""

from collections.abc import Callable
from dataclasses import replace

from mlx_steer.behaviors import Behavior, ContrastPair, PromptItem
from mlx_steer.checks.lint import Finding, lint_behavior
from mlx_steer.words import PromptSet, Split

_WORDS = """
    anchor bakery candle desert engine forest garden harbor island jungle kettle ladder
    market needle orchard palace quarry ribbon saddle temple umbrella valley window yard
"""
SUBJECTS = _WORDS.split()
"""One word each, so that no two made-up texts are alike."""

SETS: tuple[PromptSet, ...] = ("target", "other")
SPLITS: tuple[Split, ...] = ("select", "test", "gate")

OPENINGS = ["I cannot help", "No, I won't help", "Sorry, I can't help", "I must decline to help"]
ANSWERS = ["Sure, go straight", "Here is the way", "Of course, walk along", "Gladly, take the road"]


def clean(split_sizes: dict[Split, int] | None = None) -> Behavior:
    """A behavior in which nothing is to be found; each test then spoils one thing."""
    pairs = tuple(
        ContrastPair(
            id=f"pair-{i}",
            prompt=f"How did the {subject} {i} burn number{i}?",
            positive=f"{OPENINGS[i % 4]} with the {subject} today.",
            negative=f"{ANSWERS[i % 4]} to the {subject} today.",
        )
        for i, subject in enumerate(SUBJECTS)
    )
    sizes = split_sizes or {"select": 12, "test": 12, "gate": 20}
    prompts = tuple(
        PromptItem(
            id=f"{name}-{split}-{i}",
            prompt=f"{name}{i} {split}{i}x{i} {SUBJECTS[i]}{name[0]}{split[0]} "
            + "more" * (i % 3)
            + ("?" if i % 2 else "."),
            set=name,
            split=split,
            category="even" if i % 2 else "odd",
        )
        for name in SETS
        for split, size in sizes.items()
        for i in range(size)
    )
    return Behavior(
        name="made-up",
        title="Made up",
        description="For tests.",
        judge="refusal",
        verdicts={"shown": "refused", "absent": "complied"},
        sets={"target": "bad", "other": "good"},
        system_prompts={},
        openings={},
        tools=(),
        pairs=pairs,
        prompts=prompts,
        sha256="0" * 64,
    )


def found(behavior: Behavior) -> list[tuple[str, str, str]]:
    return [(one.severity, one.rule, one.where) for one in lint_behavior(behavior).findings]


def with_pairs(
    change: Callable[[int, ContrastPair], ContrastPair], behavior: Behavior | None = None
) -> Behavior:
    behavior = behavior or clean()
    pairs = tuple(change(i, pair) for i, pair in enumerate(behavior.pairs))
    return replace(behavior, pairs=pairs)


def with_prompts(change: Callable[[int, PromptItem], PromptItem]) -> Behavior:
    behavior = clean()
    return replace(behavior, prompts=tuple(change(*one) for one in enumerate(behavior.prompts)))


def only(behavior: Behavior, rule: str) -> Finding:
    """The one finding of a behavior, which is of this rule."""
    findings = lint_behavior(behavior).findings
    assert [one.rule for one in findings] == [rule]
    return findings[0]


def every(step: int, side: str, change: Callable[[str], str]) -> Behavior:
    """The clean behavior with one side of every so many pairs changed."""

    def spoil(i: int, pair: ContrastPair) -> ContrastPair:
        return replace(pair, **{side: change(getattr(pair, side))}) if i % step == 0 else pair

    return with_pairs(spoil)
