"""A bfloat16 stream stays bfloat16 under steering, and is what transformers computes in bfloat16.

A float32 vector added as it is would silently turn every later layer into float32: results would
be finer than the model's own, slower, and no other test would notice.
"""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import torch

from mlx_steer import Condition, Intervention, Job, complete, extract, load_model, steered
from mlx_steer.engine.jobs import Sampling
from mlx_steer.engine.steering import steerable
from mlx_steer.model.load import Model
from mlx_steer.words import Operator
from tests.helpers.tiny import LAYERS, random_vector, tiny_folder
from tests.oracle.cases import BEHAVIOR, PROMPTS, relative_error
from tests.oracle.hugging_face import HuggingFace

# bfloat16 keeps 8 bits: a rounding is worth up to 0.4 %, and there are many on the way.
BFLOAT16_ERROR = 0.06


@pytest.fixture(scope="module", params=["llama", "gemma3_text", "qwen3"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(request.param, tmp_path_factory.mktemp("model"), "bfloat16")


@pytest.fixture
def model(folder: Path) -> Model:
    return load_model(str(folder))


@pytest.mark.parametrize("operator", ["add", "ablate", "clamp"])
def test_every_layer_and_the_logits_stay_bfloat16_under_steering(
    model: Model, operator: Operator
) -> None:
    seen: list[mx.Dtype] = []
    ids = mx.array([model.chat.prompt_ids(PROMPTS[0])])
    with steerable(model.network) as sites:
        for site in sites:
            site.record = lambda hidden: seen.append(hidden.dtype)
        with steered(model, random_vector(0), layer=1, operator=operator):
            logits = model.network(ids)
    assert model.dtype == logits.dtype == mx.bfloat16
    assert seen == [mx.bfloat16] * LAYERS


@pytest.mark.parametrize("operator", ["add", "ablate", "clamp"])
def test_every_layer_stays_bfloat16_while_generating(model: Model, operator: Operator) -> None:
    seen: list[tuple[int, mx.Dtype]] = []
    steering = (Intervention(1, random_vector(0), 1.0, operator),)
    jobs = [
        Job(f"{name} {i}", tuple(model.chat.prompt_ids(prompt)), Condition(name, None, acts))
        for name, acts in (("steering", steering), ("base", ()))
        for i, prompt in enumerate(PROMPTS)
    ]
    with steerable(model.network) as sites:
        for layer, site in enumerate(sites):
            if layer != 1:  # the engine keeps the states of the steered layer there
                site.record = lambda h, layer=layer: seen.append((layer, h.dtype))  # type: ignore
        done = complete(model, jobs, Sampling(max_tokens=4))
    assert {dtype for _, dtype in seen} == {mx.bfloat16}
    # In prefill, in the steered rows' replay above layer 1, and in every step.
    assert sum(layer == LAYERS - 1 for layer, _ in seen) >= 2 + max(len(c.tokens) for c in done)


def test_steered_states_are_what_transformers_computes_in_bfloat16(
    model: Model, folder: Path
) -> None:
    theirs, vector = HuggingFace(folder, torch.bfloat16), random_vector(0)
    ids = theirs.prompt_ids(PROMPTS[1])
    hidden: list[mx.array] = []
    with steerable(model.network) as sites:
        for site in sites:
            site.record = hidden.append
        with steered(model, vector, layer=1, strength=0.5):
            model.network(mx.array([ids]))
    expected = theirs.run(ids, {1: 0.5 * vector}).hidden
    for layer in range(LAYERS):
        ours = np.array(hidden[layer][0].astype(mx.float32))
        assert relative_error(ours[-1:], expected[layer][-1:]) < BFLOAT16_ERROR, layer


def test_vectors_of_a_bfloat16_model_are_float32_and_close_to_those_in_float32(
    model: Model, folder: Path
) -> None:
    vectors, exact = (
        extract(model, BEHAVIOR),
        extract(load_model(str(folder), dtype="float32"), BEHAVIOR),
    )
    for layer, vector in vectors.items():
        assert vector.array.dtype == np.float32
        assert vector.cosine(exact[layer]) > 0.995, layer
        # Rounded once, from sums of states: not to the few values that bfloat16 has.
        assert (vector.array.view(np.uint32) & 0xFFFF).any()
