"""Our numbers against transformers' own models, family by family, on the same random weights.

Both sides start from one model's files and go their own way from there: tokenizer, chat template,
forward pass, extraction, steering and generation. Left out on purpose:

- Sliding windows that mlx-lm ignores (Mistral's, Gemma 2's, ...): `test_windows.py` has what is
  true of them. Gemma 3's, which mlx-lm honours, are here.
- Rotary scaling other than Llama 3's and Ministral 3's (YaRN): it is mlx-lm's own affair.
- Gemma 3 at widths whose square root is no bfloat16 number: there mlx-lm rounds the factor of the
  embedding as the original does, and transformers in float32 does not.
- bfloat16: rounding differs by far more than a mistake might (but see `test_dtype.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import pytest
import torch
from mlx_lm.models.cache import make_prompt_cache

from mlx_steer import Job, complete, extract, load_model, steered
from mlx_steer.engine.capture import prompt_states, response_states
from mlx_steer.engine.guard import forward_of
from mlx_steer.engine.jobs import Sampling
from mlx_steer.engine.perplexity import Answer, perplexities, units
from mlx_steer.engine.prefill import Prefill
from mlx_steer.engine.steering import steerable
from mlx_steer.model.load import Model
from mlx_steer.words import TokenPosition
from tests.helpers.tiny import LAYERS
from tests.oracle.cases import (
    BEHAVIOR,
    EVERY,
    PAIRS,
    PROMPTS,
    ROWS,
    SYSTEM,
    Array,
    Family,
    condition,
    parting,
    relative_error,
)
from tests.oracle.hugging_face import HuggingFace, first_row

LOGIT_ERROR = 1e-3  # measured: at most 3e-4
MAX_TOKENS = 20


@dataclass(frozen=True, eq=False)
class Sides:
    """One model folder, loaded by both; `vectors` are transformers', at the last token."""

    family: Family
    ours: Model
    theirs: HuggingFace
    vectors: dict[int, Array]
    hidden_norms: dict[int, float]

    @property
    def limit(self) -> float:
        """The relative error that rounding may make in a hidden state."""
        return self.family.state_error

    def ids(self, row: tuple[int, str | None]) -> list[int]:
        return self.theirs.prompt_ids(PROMPTS[row[0]], row[1])


@pytest.fixture(scope="module", params=EVERY, ids=lambda f: f.name)
def sides(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Sides:
    family: Family = request.param
    own, published = family.folders(tmp_path_factory.mktemp("model"))
    theirs = HuggingFace(published)
    vectors, norms = their_vectors(theirs, "last")
    return Sides(family, load_model(str(own)), theirs, vectors, norms)


def their_vectors(
    theirs: HuggingFace,
    position: TokenPosition,
    before: Sequence[int] = (),
    after: Sequence[int] = (),
) -> tuple[dict[int, Array], dict[int, float]]:
    """Mean differences, and mean norms of the hidden states, each sequence in a pass of its own.

    `before` and `after` are tokens that do not belong to the sequences: for mistakes on purpose.
    """
    states = np.array(
        [
            [
                theirs.states(
                    [*before, *theirs.prompt_ids(pair.prompt, pair.system)],
                    [*theirs.response_ids(response), *after],
                    position,
                )
                for response in (pair.positive, pair.negative)
            ]
            for pair in PAIRS
        ]
    )
    # (pairs, sides, layers, hidden_size)
    difference = states[:, 0].mean(axis=0) - states[:, 1].mean(axis=0)
    norms = np.linalg.norm(states, axis=-1).mean(axis=(0, 1))
    return dict(enumerate(difference)), dict(enumerate(norms.tolist()))


def logits_of(model: Model, ids: Sequence[int]) -> mx.array:
    """By a plain call, of shape (tokens, vocabulary).

    With caches, through which Gemma 3n's last layers read the keys of others, as it should be;
    without them mlx-lm gives them keys of their own.
    """
    logits: mx.array = model.network(mx.array([list(ids)]), cache=make_prompt_cache(model.network))
    return logits[0]


def test_transformers_computes_the_family_it_should(sides: Sides) -> None:
    assert sides.theirs.kind == sides.family.kind
    assert len(sides.theirs.blocks) == sides.ours.num_layers == LAYERS


def test_prompts_and_responses_have_transformers_token_ids(sides: Sides) -> None:
    chat = sides.ours.chat
    for prompt in PROMPTS:
        for system in (None, SYSTEM):
            ids = chat.prompt_ids(prompt, system)
            assert ids == sides.theirs.prompt_ids(prompt, system)
            assert ids.count(sides.theirs.tokenizer.bos_token_id) == 1
        assert chat.response_ids(prompt) == sides.theirs.response_ids(prompt)


def test_hidden_states_agree_at_every_layer_and_token(sides: Sides) -> None:
    # Prompts of unequal lengths in one right-padded batch, on one shared head and on none.
    for system in (None, SYSTEM):
        sequences = [sides.ids((i, system)) for i in range(len(PROMPTS))]
        with forward_of(sides.ours.network) as forward:
            done = Prefill(forward).run(sequences, keep=range(LAYERS))
        for row, ids in enumerate(sequences):
            expected = sides.theirs.run(ids).hidden
            for layer in range(LAYERS):
                ours = np.array(done.hidden[layer][row, : len(ids)])
                assert relative_error(ours, expected[layer]) < sides.limit, (layer, row)


def test_hidden_states_of_responses_agree_at_every_layer_and_token(sides: Sides) -> None:
    chat = sides.ours.chat
    prompts = [chat.prompt_ids(p.prompt, p.system) for p in PAIRS]
    responses = [[chat.response_ids(r) for r in (p.positive, p.negative)] for p in PAIRS]
    captured = response_states(sides.ours, prompts, responses, range(LAYERS))
    for prompt, texts, states in zip(prompts, responses, captured, strict=True):
        for response, ours in zip(texts, states, strict=True):
            expected = sides.theirs.run([*prompt, *response]).hidden
            for layer in range(LAYERS):
                theirs = expected[layer][len(prompt) :]
                assert relative_error(ours[layer], theirs) < sides.limit, layer


def test_hidden_states_of_prompts_agree_at_their_last_tokens(sides: Sides) -> None:
    prompts = [sides.ids((i, SYSTEM)) for i in range(len(PROMPTS))]
    ours = prompt_states(sides.ours, prompts, range(LAYERS))
    for row, ids in enumerate(prompts):
        expected = sides.theirs.run(ids).hidden
        for layer in range(LAYERS):
            assert relative_error(ours[layer][row], expected[layer][-1]) < sides.limit, layer


@pytest.mark.parametrize("position", ["last", "mean"])
def test_extracted_vectors_agree_at_every_layer(sides: Sides, position: TokenPosition) -> None:
    ours = extract(sides.ours, BEHAVIOR, token_position=position)
    expected, norms = their_vectors(sides.theirs, position)
    assert list(ours) == list(range(LAYERS))
    for layer, vector in ours.items():
        assert relative_error(vector.array, expected[layer]) < sides.limit, layer
        assert vector.hidden_norm == pytest.approx(norms[layer], rel=1e-5)


@pytest.mark.parametrize(("layer", "strength"), [(0, 1.5), (2, -1.0), (LAYERS - 1, 1.5)])
@pytest.mark.parametrize("system", [None, SYSTEM], ids=["bare", "system prompt"])
def test_steered_logits_agree_at_every_token(
    sides: Sides, system: str | None, layer: int, strength: float
) -> None:
    ids, vector = sides.ids((1, system)), sides.vectors[layer].astype(np.float32)
    with steered(sides.ours, vector, layer=layer, strength=strength):
        ours = np.array(logits_of(sides.ours, ids))
    expected = sides.theirs.run(ids, {layer: strength * sides.vectors[layer]})
    assert np.abs(ours - expected.logits).max() < LOGIT_ERROR


def test_steering_several_layers_at_once_agrees_in_all_hidden_states(sides: Sides) -> None:
    strengths = {1: 1.5, 3: -2.0}
    ids = sides.ids((1, None))
    hidden: dict[int, mx.array] = {}
    interventions = condition("two layers", None, strengths, sides.vectors).interventions
    with steerable(sides.ours.network) as sites, steered(sides.ours, interventions):
        for layer, site in enumerate(sites):
            site.record = lambda h, layer=layer: hidden.__setitem__(layer, h)  # type: ignore
        logits_of(sides.ours, ids)
    expected = sides.theirs.run(ids, {k: s * sides.vectors[k] for k, s in strengths.items()}).hidden
    for layer in range(LAYERS):
        assert relative_error(np.array(hidden[layer][0]), expected[layer]) < sides.limit, layer


def test_greedy_continuations_agree_in_a_mixed_batch(sides: Sides) -> None:
    """Ours: one continuous batch, vectors of our own. Theirs: row by row, vectors of theirs."""
    own = {k: v.array for k, v in extract(sides.ours, BEHAVIOR).items()}
    jobs, expected = [], []
    for i, (prompt, system, strengths) in enumerate(ROWS):
        ids = tuple(sides.ours.chat.prompt_ids(PROMPTS[prompt], system))
        jobs.append(Job(f"row {i}", ids, condition(f"condition {i}", system, strengths, own)))
        theirs = {k: s * sides.vectors[k] for k, s in strengths.items()}
        stop_ids = sides.ours.chat.stop_ids
        their_ids = sides.ids((prompt, system))
        expected.append(sides.theirs.greedy(their_ids, MAX_TOKENS, theirs, stop_ids))
    # Fewer places than rows: some join while others are halfway through.
    done = complete(sides.ours, jobs, Sampling(max_tokens=MAX_TOKENS), batch_size=4)
    partings = [
        parting(ours, theirs.tokens, theirs.margins, theirs.seconds, sides.ours.chat.stop_ids)
        for ours, theirs in zip(done, expected, strict=True)
    ]
    assert len([p for p in partings if p]) <= 1, partings
    assert sum(len(c.tokens) for c in done) > len(ROWS) * MAX_TOKENS // 2


def test_perplexities_agree(sides: Sides) -> None:
    answers, expected = [], []
    for i, pair in enumerate(PAIRS):
        prompt = sides.theirs.prompt_ids(pair.prompt, pair.system)
        for side, text in (("positive", pair.positive), ("negative", pair.negative)):
            tokens = sides.theirs.response_ids(text)
            answers.append(Answer(f"{i} {side}", tuple(prompt), tuple(tokens)))
            logits = torch.tensor(sides.theirs.run([*prompt, *tokens]).logits[len(prompt) - 1 : -1])
            loss = torch.nn.functional.cross_entropy(logits.double(), torch.tensor(tokens))
            expected.append((f"{i} {side}", loss.exp().item()))
    ours = dict(pair for group in perplexities(sides.ours, units(answers)) for pair in group)
    # Ours are rounded to four digits.
    assert ours == {key: pytest.approx(value, rel=1e-3) for key, value in expected}


def test_a_block_s_output_is_the_next_of_transformers_hidden_states_but_for_the_last(
    sides: Sides,
) -> None:
    """What the layer convention in metadata.json says of Hugging Face."""
    ids = sides.ids((0, None))
    with torch.no_grad():
        named = sides.theirs.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    hooked = sides.theirs.run(ids).hidden
    for layer in range(LAYERS - 1):
        assert np.array_equal(first_row(named[layer + 1]), hooked[layer])
    last = relative_error(first_row(named[LAYERS]), hooked[-1])
    # Gemma 3n's are the streams, which are made into one before the norm.
    assert last == 0 if sides.family.model_type == "gemma3n" else last > 0.1


def test_a_mistaken_vector_would_be_far_outside_the_tolerance(sides: Sides) -> None:
    right, bos = sides.vectors, sides.theirs.tokenizer.bos_token_id
    mistakes = {
        "a layer off by one": {k: right[k + 1] for k in range(LAYERS - 1)},
        "a second BOS": their_vectors(sides.theirs, "last", before=[bos])[0],
        "an end-of-turn token": their_vectors(sides.theirs, "last", after=[3])[0],
        "the mean of the tokens": their_vectors(sides.theirs, "mean")[0],
    }
    for name, wrong in mistakes.items():
        # From layer 2 on: Gemma 3's windows below do not reach back to the BOS.
        errors = [relative_error(wrong[k], right[k]) for k in range(2, len(wrong))]
        assert min(errors) > 100 * sides.limit, name


def test_mistaken_steering_would_be_far_outside_the_tolerance(sides: Sides) -> None:
    ids, vector = sides.ids((1, None)), sides.vectors[2]
    right = sides.theirs.run(ids, {2: vector}).logits
    mistakes = {
        "none": {},
        "strength applied twice": {2: 2 * vector},
        "added before the block": {1: vector},
        "one layer up": {3: vector},
        "another layer's vector": {2: sides.vectors[3]},
    }
    for name, steering in mistakes.items():
        error = np.abs(sides.theirs.run(ids, steering).logits - right)[-1].max()
        assert error > 100 * LOGIT_ERROR, name
