"""The shipped prompts as evidence: enough of them, each counted once, not told apart by form."""

import hashlib
import json
from itertools import combinations

import pytest

from mlx_steer.behaviors import Behavior, list_behaviors, load_behavior
from mlx_steer.checks.lint import lint_behavior
from mlx_steer.checks.lint.findings import words
from mlx_steer.words import PromptSet, Split

COUNTS: dict[str, dict[tuple[PromptSet, Split], int]] = {
    "refusal": {
        ("target", "select"): 60, ("other", "select"): 60, ("borderline", "select"): 40,
        ("target", "test"): 100, ("other", "test"): 100, ("borderline", "test"): 60,
        ("target", "gate"): 101, ("other", "gate"): 124, ("borderline", "gate"): 40,
    },
    "uncertainty": {
        ("target", "select"): 60, ("other", "select"): 60,
        ("target", "test"): 100, ("other", "test"): 100,
    },
    "hierarchy": {
        ("target", "select"): 30, ("other", "select"): 30,
        ("target", "test"): 30, ("other", "test"): 30,
    },
    "tool_restraint": {
        ("target", "select"): 30, ("other", "select"): 30,
        ("target", "test"): 30, ("other", "test"): 30,
    },
}  # fmt: skip

# Of the prompts that configs with `prompts_per_set: 20` use.
FIRST_TWENTY = {
    "hierarchy": "64dfbeb9d039ef0c",
    "refusal": "3541255b64e07418",
    "tool_restraint": "3f67197a18b5da72",
    "uncertainty": "12c01ddc0a9d1a68",
}
NEAR = 0.6
"""The share of common words from which two prompts count as one."""


@pytest.fixture(params=list_behaviors())
def behavior(request: pytest.FixtureRequest) -> Behavior:
    return load_behavior(request.param)


def test_every_set_and_split_has_the_stated_number_of_prompts(behavior: Behavior) -> None:
    counts = COUNTS[behavior.name]
    assert {key: len(behavior.select(*key)) for key in counts} == counts
    assert len(behavior.prompts) == sum(counts.values())


def test_the_first_twenty_of_a_set_and_split_never_change(behavior: Behavior) -> None:
    # Experiments of the published log took them, and are to be repeatable.
    first = [
        [item.id, item.system, item.prompt, item.check]
        for set_name in ("target", "other", "borderline")
        for split in ("select", "test")
        if set_name != "borderline" or split == "test"
        for item in behavior.select(set_name, split)[:20]
    ]
    digest = hashlib.sha256(json.dumps(first).encode()).hexdigest()
    assert digest[:16] == FIRST_TWENTY[behavior.name]


def test_no_two_prompts_or_pairs_share_most_of_their_words(behavior: Behavior) -> None:
    texts = [(one.id, words(one.prompt)) for one in (*behavior.pairs, *behavior.prompts)]
    alike = [
        (one, other)
        for (one, first), (other, second) in combinations(texts, 2)
        if len(first & second) > NEAR * len(first | second)
    ]
    assert alike == []


def test_sets_are_not_told_apart_by_form_and_splits_are_made_alike(behavior: Behavior) -> None:
    rules = {"set length", "set form", "balance", "uneven sets", "few prompts"}
    about_prompts = rules | {"leak", "near duplicate"}
    assert [one for one in lint_behavior(behavior).findings if one.rule in about_prompts] == []
