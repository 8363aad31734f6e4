"""Contrast pairs, prompts and behaviors as plain, frozen data."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from pydantic import JsonValue

from mlx_steer.words import PromptSet, Split, Verdict

Tool = dict[str, JsonValue]
"""A function definition: {"type": "function", "function": {"name": ..., "parameters": ...}}."""


@dataclass(frozen=True)
class ContrastPair:
    """One prompt with a response that shows the behavior and one that does not.

    Attributes:
        id: Unique in its file.
        prompt: The user's message.
        positive: The opening of a response that shows the behavior.
        negative: The opening of a response that does not.
        category: The prompt's topic, or "".
        system: The pair's own system message.
        tools: The function definitions offered to the model.
    """

    id: str
    prompt: str
    positive: str
    negative: str
    category: str = ""
    system: str | None = None
    tools: tuple[Tool, ...] = ()


@dataclass(frozen=True)
class PromptItem:
    """One prompt of an experiment.

    Attributes:
        id: Unique in its file.
        prompt: The user's message.
        set: Whether the behavior should be shown (target) or not (other, borderline).
        split: What the prompt is used for.
        category: The prompt's topic, or "".
        system: The prompt's own system message.
        tools: The function definitions offered to the model.
        check: What a judge needs to know of this prompt, if its behavior's judge needs anything.
    """

    id: str
    prompt: str
    set: PromptSet
    split: Split = "test"
    category: str = ""
    system: str | None = None
    tools: tuple[Tool, ...] = ()
    check: Mapping[str, JsonValue] | None = None

    def system_under(self, system_prompt: str | None) -> str | None:
        """The system message under a condition's system prompt, which follows the prompt's own."""
        return "\n\n".join(part for part in (self.system, system_prompt) if part) or None


@dataclass(frozen=True)
class Sentences:
    """Two opposed sentences that say what is steered, each fit to be a system prompt.

    The model writes the contrast pairs itself, by answering questions under either sentence, and
    judges by how much likelier a response is under the one than under the other.

    Attributes:
        positive: What the vector leads to.
        negative: What it leads away from.
        rules: A judge of rules that reads every response too, to be compared with; or None.
    """

    positive: str
    negative: str
    rules: str | None = None


LOG_RATIO = "log_ratio"
"""The judge of a behavior of two sentences; the model itself (see judge/log_ratio.py)."""


@dataclass(frozen=True)
class Behavior:
    """What is steered, with its contrast pairs, prompts and words.

    Attributes:
        name: Short name, as in `load_behavior(name)`.
        title: One line for people.
        description: Two or three sentences for the report.
        judge: Name of the judge that reads responses.
        verdicts: The behavior's word for each verdict.
        sets: The behavior's word for each prompt set.
        system_prompts: System prompts to compare steering with, by name.
        openings: First words of responses that are `shown` and `absent`.
        tools: Function definitions that pairs and prompts may offer.
        pairs: The contrast pairs, in file order; none yet where a model is to write them.
        prompts: The prompts, in file order.
        sha256: Of the pairs (`pairs_sha256`), whatever the layout of their file.
        sentences: Two opposed sentences in place of pairs of one's own; None without.
    """

    name: str
    title: str
    description: str
    judge: str
    verdicts: Mapping[Verdict, str]
    sets: Mapping[PromptSet, str]
    system_prompts: Mapping[str, str] = field(repr=False)
    openings: Mapping[Literal["shown", "absent"], tuple[str, ...]] = field(repr=False)
    tools: tuple[Tool, ...] = field(repr=False)
    pairs: tuple[ContrastPair, ...] = field(repr=False)
    prompts: tuple[PromptItem, ...] = field(repr=False)
    sha256: str
    sentences: Sentences | None = None

    def select(
        self, set: PromptSet | None = None, split: Split | None = None
    ) -> tuple[PromptItem, ...]:
        """The prompts of one set and split, in file order; None stands for all."""
        return tuple(
            item for item in self.prompts if set in (None, item.set) and split in (None, item.split)
        )

    def verdict_word(self, verdict: Verdict) -> str:
        """The behavior's own word for a verdict, such as `refused` for `shown`."""
        return self.verdicts.get(verdict, verdict)

    def set_word(self, set: PromptSet) -> str:
        """The behavior's own word for a prompt set, such as `harmful` for `target`."""
        return self.sets.get(set, set)


def pairs_sha256(pairs: Iterable[ContrastPair]) -> str:
    """Sha256, in hex, over the pairs as canonical JSON; fields left out do not count."""
    # Fields at their defaults are dropped, so a field added later leaves old hashes as they are.
    records = [{key: value for key, value in vars(pair).items() if value} for pair in pairs]
    text = json.dumps(records, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
