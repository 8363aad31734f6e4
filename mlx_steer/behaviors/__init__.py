"""Behaviors, their contrast pairs and prompt sets: the shipped ones and a user's files.

Reads and checks text; knows nothing about models, tokens or judges. Bad entries are gathered, so
that one error shows what is to be put right.
"""

from mlx_steer.behaviors.items import (
    LOG_RATIO,
    Behavior,
    ContrastPair,
    PromptItem,
    Sentences,
    Tool,
    pairs_sha256,
)
from mlx_steer.behaviors.load import (
    check_no_leak,
    list_behaviors,
    load_behavior,
    load_pairs,
    load_prompts,
)

__all__ = [
    "LOG_RATIO",
    "Behavior",
    "ContrastPair",
    "PromptItem",
    "Sentences",
    "Tool",
    "check_no_leak",
    "list_behaviors",
    "load_behavior",
    "load_pairs",
    "load_prompts",
    "pairs_sha256",
]
