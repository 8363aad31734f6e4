"""Every family is left as it was, whatever is done with it.

That extraction, steered batches and hidden states of each are transformers' is in
`oracle/test_hugging_face.py`, over the same list of families.
"""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache

from mlx_steer.engine.capture import prompt_states
from mlx_steer.engine.complete import complete, completions
from mlx_steer.engine.jobs import Job, Sampling
from mlx_steer.engine.steered import steered
from mlx_steer.extraction.pairs import extract
from mlx_steer.model.load import Model, decoder_layers, load_model
from tests.helpers.tiny import LAYERS, random_ids, random_vector
from tests.oracle.cases import BEHAVIOR, EVERY, PROMPTS, ROWS, Family, condition

IDS = random_ids(1, 30)
VECTORS = {layer: random_vector(layer) for layer in range(LAYERS)}


def jobs(model: Model) -> list[Job]:
    """Rows of different layers, strengths and system prompts: one mixed batch."""
    return [
        Job(
            f"row {i}",
            tuple(model.chat.prompt_ids(PROMPTS[prompt], system)),
            condition(f"condition {i}", system, strengths, VECTORS),
        )
        for i, (prompt, system, strengths) in enumerate(ROWS)
    ]


def whole_batch(model: Model) -> None:
    complete(model, jobs(model), Sampling(max_tokens=4), batch_size=2)


def abandoned_batch(model: Model) -> None:
    rows = completions(model, jobs(model), Sampling(max_tokens=4), batch_size=2)
    next(iter(rows))
    del rows


def inside_steered(model: Model) -> None:
    with steered(model, VECTORS[2], layer=2, strength=1.0):
        model.network(mx.array([IDS]), cache=make_prompt_cache(model.network))


def an_exception(model: Model) -> None:
    with pytest.raises(ZeroDivisionError), steered(model, VECTORS[2], layer=2, strength=1.0):
        raise ZeroDivisionError


def extraction(model: Model) -> None:
    extract(model, BEHAVIOR, [1, 4])


def capture(model: Model) -> None:
    prompt_states(model, [IDS, IDS[:7]], [0, LAYERS - 1])


USES: tuple[Callable[[Model], None], ...] = (
    inside_steered,
    an_exception,
    extraction,
    capture,
    whole_batch,
    abandoned_batch,
)


@pytest.fixture(scope="module", params=EVERY, ids=lambda family: family.name)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    family: Family = request.param
    return load_model(str(family.folders(tmp_path_factory.mktemp("model"))[0]))


def state(model: Model) -> tuple[object, ...]:
    """All that a use might leave behind."""
    blocks = decoder_layers(model.network)
    caches = make_prompt_cache(model.network)
    parameters = tree_flatten(model.network.parameters())
    return (
        [type(block) for block in blocks],
        [sorted(vars(block)) for block in blocks],
        [type(cache) for cache in caches],
        [(name, value.dtype, bytes(memoryview(value))) for name, value in parameters],
        bytes(memoryview(model.network(mx.array([IDS]), cache=caches))),
    )


@pytest.mark.parametrize("use", USES, ids=lambda use: use.__name__)
def test_a_family_is_bit_for_bit_what_it_was_after_every_use(
    model: Model, use: Callable[[Model], None]
) -> None:
    before = state(model)
    use(model)
    assert state(model) == before


def test_a_family_is_steered_until_then(model: Model) -> None:
    before = state(model)
    with steered(model, VECTORS[2], layer=2, strength=1.0):
        inside = state(model)
    classes, _, _, parameters, logits = inside
    assert parameters == before[3]
    assert classes != before[0] and logits != before[4]
