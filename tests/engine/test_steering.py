"""What `with steered(...)` does to a model: vectors, layers, scopes, dtype."""

from pathlib import Path

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from mlx_lm.models.cache import make_prompt_cache

from mlx_steer.conditions import Condition, Intervention
from mlx_steer.engine.complete import complete
from mlx_steer.engine.jobs import Job, Sampling
from mlx_steer.engine.operators import plan_of
from mlx_steer.engine.planned_cache import PlannedCache
from mlx_steer.engine.row_plan import Plan
from mlx_steer.engine.steered import steered
from mlx_steer.engine.steering import steerable
from mlx_steer.words import Scope
from tests.helpers.mixed import effects
from tests.helpers.one_sequence import IDS, logits, outputs
from tests.helpers.plain import plain_logits
from tests.helpers.tiny import (
    FAMILIES,
    HIDDEN,
    LAYERS,
    random_vector,
    tiny_folder,
    tiny_model,
    tiny_network,
)
from tests.helpers.vector_sets import vector_set

A, B, C = (random_vector(i) for i in range(3))
SHAPE = {"hidden_size": HIDDEN, "num_layers": LAYERS}
HALF = ["llama", "qwen3", "gemma2", "gemma3_text", "mixtral"]


# --- what steering does ---------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_strength_zero_gives_bit_identical_logits(family: str) -> None:
    network = tiny_network(family)
    before = logits(network)
    for k in (0, 3, -1):
        with steered(network, A, layer=k, strength=0.0):
            assert mx.array_equal(logits(network), before)
    zeros = Plan(mx.zeros((1, 1, HIDDEN)))
    with steerable(network, [2]) as (site,):
        site.plan = zeros
        assert mx.array_equal(logits(network), before)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", effects())
def test_a_forward_inside_steered_gives_the_logits_of_the_operators_definitions(
    family: str, name: str
) -> None:
    model = tiny_model(family)
    acts = [i for i in effects()[name] if i.scope == "all"]
    with steered(model, acts):
        inside = logits(model.network)
    plain = plain_logits(model, IDS, acts, 0)
    assert mx.abs(inside - plain).max().item() < 2e-3
    if acts and name != "strength 0":
        assert mx.abs(inside - logits(model.network)).max().item() > 0.05


def test_the_layers_below_are_left_alone_and_the_layer_itself_gets_the_vector() -> None:
    network = tiny_network("llama")
    before = outputs(network)
    with steered(network, A, layer=3, strength=0.5):
        after = outputs(network)
    for k in range(3):
        assert mx.array_equal(before[k], after[k])
    assert np.allclose(np.array(after[3] - before[3]), 0.5 * A, atol=1e-5)
    assert mx.abs(before[4] - after[4]).max().item() > 0.1


def test_a_vector_acts_on_one_layer_or_several() -> None:
    network = tiny_network("llama")
    with steered(network, A, layer=[1, 4], strength=0.5):
        both = logits(network)
    acts = [Intervention(k, A, 0.5) for k in (1, 4)]
    with steered(network, acts):
        assert mx.array_equal(both, logits(network))
    with steered(network, A, layer=1, strength=0.5), steered(network, A, layer=4, strength=0.5):
        assert mx.array_equal(both, logits(network))


def test_layer_minus_one_is_the_last_block() -> None:
    network = tiny_network("llama")
    with steered(network, A, layer=LAYERS - 1):
        last = logits(network)
    with steered(network, A, layer=-1):
        assert mx.array_equal(last, logits(network))
    with steered(network, [Intervention(-1, A, 1.0)]):
        assert mx.array_equal(last, logits(network))
    with steered(network, A, layer=-LAYERS):
        negative = logits(network)
    with steered(network, A, layer=0):
        assert mx.array_equal(negative, logits(network))


def test_vectors_come_as_a_set_one_vector_or_an_array() -> None:
    network, vectors = tiny_network("llama"), vector_set([1, 3], **SHAPE)
    with steered(network, vectors, layer=3, strength=0.7):
        of_set = logits(network)
    for form in (vectors[3], vectors[3].array):
        with steered(network, form, layer=3, strength=0.7):
            assert mx.array_equal(of_set, logits(network))
    with steered(network, vectors[3], strength=0.7):
        assert mx.array_equal(of_set, logits(network))
    with steered(network, vectors, layer=-3, strength=0.7):
        assert mx.array_equal(of_set, logits(network))
    with steered(network, vectors[3] * 0.7):
        assert mx.allclose(of_set, logits(network), atol=1e-4)


def test_several_vectors_at_one_layer_add_up() -> None:
    network = tiny_network("qwen3")
    base = outputs(network)[2]
    acts = [Intervention(2, A, 0.5), Intervention(2, B, -1.0), Intervention(2, C, 0.25)]
    with steered(network, acts):
        together = outputs(network)[2]
    wanted = np.array(base) + 0.5 * A - B + 0.25 * C
    assert np.allclose(np.array(together), wanted, atol=1e-5)
    with steered(network, acts[:1]), steered(network, acts[1:2]), steered(network, acts[2:]):
        assert np.allclose(np.array(outputs(network)[2]), wanted, atol=1e-5)


# --- scopes, under mlx-lm's own generation --------------------------------------------------------


@pytest.mark.parametrize("scope", ["all", "generated", "prompt"])
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_mlx_lm_generate_is_steered_as_a_completion_of_the_same_condition(
    family: str, scope: Scope
) -> None:
    model = tiny_model(family)
    act = Intervention(2, A, 1.0, scope=scope)
    (wanted,) = complete(model, [Job("", IDS, Condition("", None, (act,)))], Sampling(8))
    (base,) = complete(model, [Job("", IDS, Condition("base"))], Sampling(8))
    with steered(model, A, layer=2, scope=scope):
        tokens = [
            r.token
            for r in mlx_lm.stream_generate(model.network, model.tokenizer, list(IDS), max_tokens=8)
        ]
        text = mlx_lm.generate(model.network, model.tokenizer, list(IDS), max_tokens=8)
    assert tuple(tokens) == wanted.tokens != base.tokens
    assert text == model.tokenizer.decode(tokens)
    after = mlx_lm.generate(model.network, model.tokenizer, list(IDS), max_tokens=8)
    assert after == model.tokenizer.decode(list(base.tokens))


def test_the_scope_decides_which_positions_are_changed() -> None:
    network = tiny_network("llama")

    def states(scope: Scope | None) -> np.ndarray:
        kept: list[mx.array] = []
        cache = make_prompt_cache(network)
        with steerable(network, [2]) as (site,):
            site.record = kept.append
            with steered(
                network, A, layer=2, strength=0.0 if scope is None else 1.0, scope=scope or "all"
            ):
                network(mx.array(IDS[:-1])[None], cache=cache)
                network(mx.array(IDS[-1:])[None], cache=cache)
        return np.array(mx.concatenate(kept, axis=1)[0])

    base = states(None)
    inside = {"all": slice(0, 24), "generated": slice(23, 24), "prompt": slice(0, 23)}
    for scope, where in inside.items():
        expected = base.copy()
        expected[where] += A
        assert np.allclose(states(scope), expected, atol=1e-5), scope  # type: ignore[arg-type]


def test_a_plain_network_from_mlx_lm_load_can_be_steered(tmp_path: Path) -> None:
    folder = tiny_folder("llama", tmp_path / "tiny")
    network, tokenizer = mlx_lm.load(str(folder))[:2]
    plain = mlx_lm.generate(network, tokenizer, list(IDS), max_tokens=6)
    with steered(network, A, layer=2):
        steered_text = mlx_lm.generate(network, tokenizer, list(IDS), max_tokens=6)
    model = tiny_model()
    (wanted,) = complete(
        model, [Job("", IDS, Condition("", None, (Intervention(2, A, 1.0),)))], Sampling(6)
    )
    assert steered_text == tokenizer.decode(list(wanted.tokens)) != plain
    assert mlx_lm.generate(network, tokenizer, list(IDS), max_tokens=6) == plain


# --- dtype ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", HALF)
def test_a_float32_vector_leaves_a_half_precision_stream_as_it_is(family: str, dtype: str) -> None:
    network = tiny_network(family, dtype=dtype)
    acts = [
        Intervention(1, A, 0.7),
        Intervention(2, B, 1.0, "ablate"),
        Intervention(3, C, 2.0, "clamp"),
        Intervention(4, A, 0.5),
        Intervention(4, B, 0.5, "ablate"),
    ]
    wanted = getattr(mx, dtype)
    # Dtypes are known before anything is computed, which MLX's CPU backend cannot for experts.
    assert {h.dtype for h in outputs(network)} == {wanted}
    final = logits(network).dtype
    with steered(network, acts):
        assert {h.dtype for h in outputs(network)} == {wanted}
        assert logits(network).dtype == final
    caches = [
        PlannedCache(c, plan_of(acts[:2], HIDDEN, mx.float32)) for c in make_prompt_cache(network)
    ]
    with steerable(network):
        assert network(mx.array(IDS)[None], cache=caches).dtype == final


def test_a_plan_has_the_dtype_of_the_stream_it_is_made_for() -> None:
    # On the plan it costs one rounding, in the block it would cost one a step.
    assert plan_of([Intervention(1, A, 0.7)], HIDDEN, mx.bfloat16).shift.dtype == mx.bfloat16


def test_a_bfloat16_vector_is_added_at_the_streams_precision() -> None:
    network = tiny_network("llama", dtype="bfloat16")
    base = outputs(network)[2]
    with steered(network, A, layer=2):
        after = outputs(network)[2]
    assert mx.array_equal(after, base + mx.array(A).astype(mx.bfloat16))
