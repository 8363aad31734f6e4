import copy
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.cache import KVCache, make_prompt_cache

from mlx_steer.conditions import Condition, Gate, Intervention
from mlx_steer.engine.complete import complete
from mlx_steer.engine.jobs import Job, Sampling
from mlx_steer.engine.operators import plan_of
from mlx_steer.engine.planned_cache import PlannedCache
from mlx_steer.engine.row_plan import Plan
from mlx_steer.engine.steered import gate_score, steered
from mlx_steer.engine.steering import SteerableLayer, steerable, steerable_class
from mlx_steer.errors import ModelError, SteerError, VectorError
from mlx_steer.model.load import Model, decoder_layers
from mlx_steer.vectors import SteeringVector, SteeringVectorSet
from mlx_steer.words import Scope
from tests.helpers.tiny import (
    FAMILIES,
    HIDDEN,
    LAYERS,
    effects,
    plain_logits,
    random_ids,
    random_vector,
    tiny_folder,
    tiny_model,
    tiny_network,
)
from tests.helpers.vector_sets import metadata

IDS = random_ids(1, 24)
A, B, C = (random_vector(i) for i in range(3))
HALF = ["llama", "qwen3", "gemma2", "gemma3_text", "mixtral"]


def logits(network: nn.Module, ids: Sequence[int] = IDS) -> mx.array:
    return network(mx.array(ids)[None])[0]


def outputs(network: nn.Module, ids: Sequence[int] = IDS) -> list[mx.array]:
    """Each block's output for one sequence, shape (positions, hidden_size)."""
    kept: list[mx.array] = []
    with steerable(network) as sites:
        for site in sites:
            site.record = kept.append
        network(mx.array(ids)[None])
        for site in sites:
            site.record = None
    return [h[0] for h in kept]


def vector_set(layers: Sequence[int], num_layers: int = LAYERS, size: int = HIDDEN):
    vectors = [SteeringVector(k, random_vector(k, size=size), 30.0) for k in layers]
    about = metadata(model=tiny_model().info, hidden_size=size, num_layers=num_layers)
    return SteeringVectorSet(vectors, about)


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
    network, vectors = tiny_network("llama"), vector_set([1, 3])
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


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def test_ablate_takes_the_projection_out_and_leaves_the_rest() -> None:
    network = tiny_network("llama")
    before = np.array(outputs(network)[2])
    with steered(network, A, layer=2, operator="ablate"):
        after = np.array(outputs(network)[2])
    assert np.abs(before @ unit(A)).max() > 2
    assert np.abs(after @ unit(A)).max() < 1e-5
    assert np.allclose(after, before - np.outer(before @ unit(A), unit(A)), atol=1e-5)


def test_ablate_with_part_a_half_halves_the_projection() -> None:
    network = tiny_network("llama")
    before = np.array(outputs(network)[2])
    with steered(network, A, layer=2, operator="ablate", strength=0.5):
        after = np.array(outputs(network)[2])
    assert np.allclose(after @ unit(A), 0.5 * before @ unit(A), atol=1e-5)


def test_clamp_leaves_the_value_on_the_unit_direction() -> None:
    network = tiny_network("llama")
    before = np.array(outputs(network)[2])
    for value in (5.0, -2.0, 0.0):
        with steered(network, A, layer=2, operator="clamp", strength=value):
            after = np.array(outputs(network)[2])
        assert np.allclose(after @ unit(A), value, atol=1e-5)
        rest = before - np.outer(before @ unit(A), unit(A))
        assert np.allclose(after - value * unit(A), rest, atol=1e-5)


def test_ablating_two_directions_leaves_neither_even_if_they_are_not_orthogonal() -> None:
    network = tiny_network("llama")
    near = A + 0.3 * B
    with steered(network, [Intervention(2, v, 1.0, "ablate") for v in (A, near, 2 * A)]):
        after = np.array(outputs(network)[2])
    assert np.abs(after @ unit(A)).max() < 1e-4
    assert np.abs(after @ unit(near)).max() < 1e-4
    assert np.abs(after @ unit(C)).max() > 1


def test_a_vector_is_added_to_what_ablation_leaves() -> None:
    network = tiny_network("llama")
    with steered(network, [Intervention(2, A, 0.5), Intervention(2, A, 1.0, "ablate")]):
        after = np.array(outputs(network)[2])
    assert np.allclose(after @ unit(A), 0.5 * np.linalg.norm(A), atol=1e-5)


@pytest.mark.parametrize(
    "act",
    [
        Intervention(2, A, -0.5, "ablate"),
        Intervention(2, 0 * A, 2.0, "clamp"),
        Intervention(2, A, float("nan")),
    ],
    ids=["ablate a negative part", "clamp a vector of zeros", "strength nan"],
)
def test_an_impossible_intervention_is_refused(act: Intervention) -> None:
    network = tiny_network("llama")
    with np.errstate(invalid="ignore"), pytest.raises(SteerError), steered(network, [act]):
        logits(network)


def carried_out(*acts: Intervention) -> tuple[np.ndarray, np.ndarray]:
    """Some states before and after one layer's plan."""
    before = np.stack([A, B, C, A + B - C])
    plan = plan_of(acts, HIDDEN, mx.float32)
    return before, np.array(plan(mx.array(before)[None]))[0]


NEAR = A + 0.3 * B


@pytest.mark.parametrize("turned", [False, True], ids=["part first", "part last"])
def test_ablating_in_full_beside_a_part_of_a_near_direction_leaves_no_projection(
    turned: bool,
) -> None:
    acts = [Intervention(2, A, 0.5, "ablate"), Intervention(2, NEAR, 1.0, "ablate")]
    before, after = carried_out(*(acts[::-1] if turned else acts))
    assert np.abs(after @ unit(NEAR)).max() < 1e-4
    # Of the other direction, half of what the full ablation leaves of it is taken.
    left = before - np.outer(before @ unit(NEAR), unit(NEAR))
    assert np.allclose(after @ unit(A), 0.5 * left @ unit(A), atol=1e-4)
    assert np.abs(after @ unit(A)).max() > 0.1


def test_projections_on_near_directions_each_end_at_their_own_value() -> None:
    acts = [
        Intervention(2, NEAR, 1.0, "ablate"),
        Intervention(2, A, 5.0, "clamp"),
        Intervention(2, B, -2.0, "clamp"),
        Intervention(2, C, 0.5, "ablate"),
    ]
    for order in (acts[:2], acts[1::-1], acts[1:3], acts[:1] + acts[3:], acts[1:], acts[::-1][:3]):
        before, after = carried_out(*order)
        wanted = {"clamp": lambda act: act.strength, "ablate": lambda _: 0.0}
        for act in order:
            if act.operator == "clamp" or act.strength == 1.0:
                at = after @ unit(act.vector)
                assert np.allclose(at, wanted[act.operator](act), atol=1e-4)
        # What is orthogonal to all of them is left alone.
        rest = np.linalg.qr(np.stack([a.vector for a in order]).T)[0]
        assert np.allclose(
            after - after @ rest @ rest.T, before - before @ rest @ rest.T, atol=1e-4
        )


def test_of_two_values_for_one_direction_the_later_counts() -> None:
    for acts, value in (
        ([Intervention(2, A, 5.0, "clamp"), Intervention(2, 3 * A, -1.0, "clamp")], -1.0),
        ([Intervention(2, A, 5.0, "clamp"), Intervention(2, A, 1.0, "ablate")], 0.0),
        ([Intervention(2, A, 1.0, "ablate"), Intervention(2, -A, -5.0, "clamp")], 5.0),
    ):
        before, after = carried_out(*acts)
        assert np.allclose(after @ unit(A), value, atol=1e-5)
        assert np.allclose(
            after - np.outer(after @ unit(A), unit(A)),
            before - np.outer(before @ unit(A), unit(A)),
            atol=1e-5,
        )


def test_only_adding_needs_no_projection_and_stacks_without_one() -> None:
    plan = plan_of([Intervention(2, A, 0.5), Intervention(2, B, 1.0)], HIDDEN, mx.float32)
    assert plan.basis is None
    assert Plan.stack([plan, plan]).basis is None


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


# --- gates ----------------------------------------------------------------------------------------

DIRECTION = random_vector(9, norm=1.0)
PROMPTS = [random_ids(i, 12 + 3 * i) for i in range(5)]


def score(network: nn.Module, ids: Sequence[int], layer: int) -> float:
    return float(np.array(outputs(network, ids)[layer][-1]) @ DIRECTION)


@pytest.mark.parametrize("layer", [0, 2, 5], ids=["below", "at", "above"])
@pytest.mark.parametrize("scope", ["all", "generated"])
def test_a_gate_decided_from_the_prompt_steers_fully_or_not_at_all(
    layer: int, scope: Scope
) -> None:
    network = tiny_network("llama")
    base = logits(network)
    with steered(network, A, layer=2, scope=scope):
        wanted = logits(network)
    value = score(network, IDS, layer)
    for threshold, expected in ((value - 0.01, wanted), (value + 0.01, base)):
        gate = Gate(layer, DIRECTION, threshold)
        assert gate_score(network, gate, IDS) == pytest.approx(value - threshold, abs=1e-3)
        with steered(network, A, layer=2, scope=scope, gate=gate, prompt=IDS):
            assert mx.array_equal(logits(network), expected)
    assert mx.array_equal(logits(network), base)


@pytest.mark.parametrize("layer", [0, 2], ids=["below", "at"])
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_a_gate_decided_while_generating_gives_each_prompt_its_gated_completion(
    family: str, layer: int
) -> None:
    model = tiny_model(family)
    values = sorted(score(model.network, ids, layer) for ids in PROMPTS)
    gate = Gate(layer, DIRECTION, (values[1] + values[2]) / 2)
    act = Intervention(2, A, 2.0, scope="generated")
    condition = Condition("gated", None, (act,), (gate,))
    jobs = [Job(str(i), ids, condition) for i, ids in enumerate(PROMPTS)]
    wanted = complete(model, jobs, Sampling(5))
    assert sum(c.steered for c in wanted) == 3
    # One context for all prompts: the gate is decided anew for each.
    with steered(model, [act], gate=gate):
        for job, completion in zip(jobs, wanted, strict=True):
            tokens = [
                r.token
                for r in mlx_lm.stream_generate(
                    model.network, model.tokenizer, list(job.ids), max_tokens=5
                )
            ]
            assert tuple(tokens) == completion.tokens, (job.key, completion.steered)


@pytest.mark.parametrize("given", [True, False], ids=["from the prompt", "while generating"])
def test_a_gate_opens_at_the_threshold_itself(given: bool) -> None:
    network = tiny_network("llama")
    # One value of the hidden state: a score without rounding, so that it can be met exactly.
    direction = np.zeros(HIDDEN, np.float32)
    direction[5] = 1.0
    read: list[mx.array] = []

    def last_logits() -> mx.array:
        cache = make_prompt_cache(network)
        network(mx.array(IDS[:-1])[None], cache=cache)
        return network(mx.array(IDS[-1:])[None], cache=cache)[0, -1]

    with steerable(network, [1]) as (site,):
        site.record = read.append
        base = network(mx.array(IDS)[None])[0, -1] if given else last_logits()
    act, value = Intervention(2, A, 1.0, scope="generated"), float(read[-1][0, -1, 5].item())
    for threshold, opened in ((value, True), (np.nextafter(np.float32(value), np.inf), False)):
        gate, prompt = Gate(1, direction, float(threshold)), IDS if given else None
        with steered(network, [act], gate=gate, prompt=prompt):
            assert mx.allclose(last_logits(), base, atol=1e-3).item() != opened


@pytest.mark.parametrize(("layer", "scope"), [(3, "generated"), (0, "all"), (0, "prompt")])
def test_a_gate_that_cannot_be_decided_while_generating_asks_for_the_prompt(
    layer: int, scope: Scope
) -> None:
    gate = Gate(layer, DIRECTION, 0.0)
    with (
        pytest.raises(VectorError, match=r"give steered\(\.\.\., prompt=token_ids\)"),
        steered(tiny_network("llama"), A, layer=2, scope=scope, gate=gate),
    ):
        pass


def test_a_gate_at_a_layer_the_model_lacks_is_refused() -> None:
    gate = Gate(6, DIRECTION, 0.0)
    with (
        pytest.raises(ModelError, match="no layer 6"),
        steered(tiny_network("llama"), A, layer=2, gate=gate, prompt=IDS),
    ):
        pass


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [6, 99, -7])
def test_a_layer_the_model_lacks_is_refused(layer: int) -> None:
    network = tiny_network("llama")
    with (
        pytest.raises(ModelError, match=f"layers 0 to 5, and no layer {layer}"),
        steered(network, A, layer=layer),
    ):
        pass


def test_an_intervention_at_a_layer_the_model_lacks_is_refused() -> None:
    with (
        pytest.raises(ModelError, match="no layer 6"),
        steered(tiny_network("llama"), [Intervention(6, A, 1.0)]),
    ):
        pass


def test_a_layer_the_set_lacks_is_refused() -> None:
    with (
        pytest.raises(VectorError, match="2"),
        steered(tiny_network("llama"), vector_set([1, 3]), layer=2),
    ):
        pass


def test_a_set_or_an_array_without_a_layer_is_refused() -> None:
    for vectors in (vector_set([1, 3]), A):
        with (
            pytest.raises(VectorError, match="say which layer to steer"),
            steered(tiny_network("llama"), vectors),
        ):
            pass


def test_a_set_of_a_model_with_other_layers_is_refused() -> None:
    with (
        pytest.raises(VectorError, match="a model of 9 layers and this one has 6"),
        steered(tiny_network("llama"), vector_set([1, 3], num_layers=9), layer=1),
    ):
        pass


def test_a_vector_of_another_hidden_size_is_refused() -> None:
    network = tiny_network("llama")
    for vectors in (A[:-1], vector_set([2], size=32), [Intervention(2, A[:-1], 1.0)]):
        with (
            pytest.raises(VectorError, match="was made for another model"),
            steered(network, vectors, layer=2),
        ):
            logits(network)
    assert type(network.layers[2]).__name__ == "TransformerBlock"


def test_a_network_whose_blocks_are_no_list_is_refused() -> None:
    class Odd(nn.Module):
        model_type = "odd"

        def __init__(self) -> None:
            super().__init__()
            self.layers = {"a": nn.Linear(2, 2)}

    with pytest.raises(ModelError, match="'odd' are not a plain list"):
        decoder_layers(Odd())


# --- undoing --------------------------------------------------------------------------------------


class Snapshot:
    """Everything that steering must leave as it was, bit by bit."""

    def __init__(self, network: nn.Module, folder: Path) -> None:
        self.logits = logits(network)
        self.names = [name for name, _ in tree_flatten(network.parameters())]
        self.trainable = [name for name, _ in tree_flatten(network.trainable_parameters())]
        self.modules = [(name, type(module)) for name, module in network.named_modules()]
        self.attributes = [sorted(vars(block)) for block in network.layers]
        network.save_weights(str(folder / "weights.safetensors"))
        self.weights = (folder / "weights.safetensors").read_bytes()

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, Snapshot)
        assert bool(mx.array_equal(self.logits, other.logits).item())
        return all(vars(self)[k] == vars(other)[k] for k in vars(self) if k != "logits")


def normal(network: nn.Module) -> None:
    with steered(network, A, layer=[1, -1]):
        logits(network)


def raising(network: nn.Module) -> None:
    with pytest.raises(ZeroDivisionError), steered(network, A, layer=2):
        logits(network)
        raise ZeroDivisionError


def raising_in_the_forward(network: nn.Module) -> None:
    with pytest.raises(VectorError), steered(network, A[:-1], layer=2):
        logits(network)


def refused(network: nn.Module) -> None:
    with pytest.raises(ModelError), steered(network, A, layer=[1, 77]):
        pass


def nested(network: nn.Module) -> None:
    with steered(network, A, layer=2):
        once = logits(network)
        with steered(network, B, layer=2), steered(network, B, layer=4):
            assert not mx.array_equal(once, logits(network))
        assert mx.array_equal(once, logits(network))


def gated(network: nn.Module) -> None:
    act = Intervention(2, A, 1.0, scope="generated")
    with steered(network, [act], gate=Gate(0, A, 0.0)):
        cache = make_prompt_cache(network)
        for part in (IDS[:-1], IDS[-1:]):
            mx.eval(network(mx.array(part)[None], cache=cache))
    with steered(network, [act], gate=Gate(5, A, 1e9), prompt=IDS):
        logits(network)


def abandoned(network: nn.Module) -> None:
    def generator():
        with steered(network, A, layer=2):
            while True:
                yield logits(network)

    running = generator()
    next(running)
    running.close()


@pytest.mark.parametrize(
    "use", [normal, raising, raising_in_the_forward, refused, nested, gated, abandoned]
)
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "mixtral"])
def test_everything_is_bit_identical_afterwards(
    family: str, use: Callable[[nn.Module], None], tmp_path: Path
) -> None:
    network = tiny_network(family)
    before = Snapshot(network, tmp_path)
    use(network)
    assert Snapshot(network, tmp_path) == before


def test_weights_saved_and_parameters_named_inside_steered_are_those_of_the_model(
    tmp_path: Path,
) -> None:
    network = tiny_network("qwen3")
    names = [name for name, _ in tree_flatten(network.parameters())]
    network.save_weights(str(tmp_path / "before.safetensors"))
    with steered(network, A, layer=[0, 3]):
        logits(network)
        assert [name for name, _ in tree_flatten(network.parameters())] == names
        network.save_weights(str(tmp_path / "inside.safetensors"))
        assert isinstance(network.layers[3], SteerableLayer)
        assert isinstance(network.layers[3], type(tiny_network("qwen3").layers[3]))
    before, inside = (tmp_path / f"{n}.safetensors" for n in ("before", "inside"))
    assert before.read_bytes() == inside.read_bytes()


def test_a_quantised_network_is_steered_and_restored() -> None:
    network = tiny_network("llama")
    nn.quantize(network, group_size=64, bits=4)
    before, base = logits(network), outputs(network)[3]
    with steered(network, A, layer=3):
        assert np.allclose(np.array(outputs(network)[3] - base), A, atol=1e-4)
    assert mx.array_equal(before, logits(network))


def test_the_steerable_class_is_made_once_and_behaves_as_the_block() -> None:
    block = tiny_network("llama").layers[0]
    made = steerable_class(type(block))
    assert steerable_class(type(block)) is made
    assert issubclass(made, type(block)) and issubclass(made, SteerableLayer)


def test_blocks_that_return_a_tuple_have_its_first_element_steered() -> None:
    class Pair(nn.Module):
        def __call__(self, x: mx.array, mask: None = None, cache: None = None):
            return x * 2, "second"

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = [Pair()]

        def __call__(self, ids: mx.array, cache: object = None) -> mx.array:
            return self.layers[0](mx.ones((*ids.shape, HIDDEN)))[0]

    network = Network()
    with steered(network, A, layer=0):
        first, second = network.layers[0](mx.ones((1, 3, HIDDEN)))
    assert second == "second"
    assert np.allclose(np.array(first), 2 + A, atol=1e-6)


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


# --- plans and the caches they ride on ------------------------------------------------------------


def a_plan(seed: int, directions: int = 0) -> Plan:
    acts = [Intervention(0, random_vector(10 * seed), 1.0)]
    acts += [
        Intervention(0, random_vector(10 * seed + d), 1.0, "ablate")
        for d in range(1, directions + 1)
    ]
    return plan_of(acts, HIDDEN, mx.float32)


def test_stacked_plans_treat_every_row_as_its_own_plan_does() -> None:
    plans = [a_plan(1), a_plan(2, 1), a_plan(3, 3), a_plan(4)]
    hidden = mx.array(np.random.default_rng(0).standard_normal((4, 5, HIDDEN)), mx.float32)
    alone = mx.concatenate([p(hidden[i : i + 1]) for i, p in enumerate(plans)])
    stacked = Plan.stack(plans)
    assert mx.allclose(stacked(hidden), alone, atol=1e-5)
    chosen = [3, 1, 1, 0]
    assert mx.allclose(
        stacked.rows(chosen)(hidden[mx.array(chosen)]), alone[mx.array(chosen)], atol=1e-5
    )


def test_a_mixture_of_rows_equals_each_row_alone_in_one_forward() -> None:
    network = tiny_network("llama")
    plans = [Plan(mx.zeros((1, 1, HIDDEN))), a_plan(1), a_plan(2, 2), a_plan(3, 1)]
    ids = mx.array([random_ids(i, 12) for i in range(4)])
    with steerable(network, [3]) as (site,):
        site.plan = Plan.stack(plans)
        together = network(ids)
        for i, plan in enumerate(plans):
            site.plan = plan
            assert mx.allclose(network(ids[i : i + 1])[0], together[i], atol=1e-3)
        site.plan = None
        assert mx.allclose(network(ids[:1])[0], together[0], atol=1e-3)


def planned(seed: int, length: int) -> PlannedCache:
    cache = KVCache()
    keys = mx.random.normal((1, 2, length, 4), key=mx.random.key(seed))
    cache.update_and_fetch(keys, keys + 1)
    return PlannedCache(cache, a_plan(seed, seed % 2))


def shift(plan: Plan) -> np.ndarray:
    return np.array(plan.shift[:, 0])


def test_a_plan_follows_its_row_through_merge_extend_filter_and_extract() -> None:
    one, two, three = planned(1, 5), planned(2, 3), planned(3, 7)
    batch = PlannedCache.merge([one, two])
    assert np.array_equal(shift(batch.plan), np.concatenate([shift(one.plan), shift(two.plan)]))
    batch.extend(PlannedCache.merge([three]))
    batch.filter(mx.array([2, 0]))
    wanted = np.concatenate([shift(three.plan), shift(one.plan)])
    assert np.array_equal(shift(batch.plan), wanted)
    assert np.array_equal(shift(batch.extract(1).plan), shift(one.plan))
    batch.filter([1])
    row = batch.extract(0)
    assert np.array_equal(shift(row.plan), shift(one.plan))
    assert mx.array_equal(row.inner.keys[..., :5, :], one.inner.keys[..., :5, :])
    assert row.offset == 5


def test_a_planned_cache_is_its_inner_cache_to_everyone_else() -> None:
    cache = planned(1, 5)
    assert cache.offset == cache.inner.offset == 5
    cache.offset = 4
    assert cache.inner.offset == 4
    assert cache.make_mask(3, return_array=True, window_size=None).shape == (3, 7)
    with pytest.raises(AttributeError):
        cache.no_such_thing  # noqa: B018


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy], ids=["copy", "deepcopy"])
def test_a_planned_cache_can_be_copied(copied: Callable[[PlannedCache], PlannedCache]) -> None:
    cache = planned(1, 5)
    twin = copied(cache)
    assert twin is not cache
    assert np.array_equal(shift(twin.plan), shift(cache.plan))
    assert twin.offset == 5


def test_looking_for_its_own_fields_before_they_are_set_does_not_recurse() -> None:
    bare = PlannedCache.__new__(PlannedCache)
    with pytest.raises(AttributeError):
        bare.inner  # noqa: B018
    with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
        pickle.loads(pickle.dumps(bare)).offset  # noqa: B018


def test_skip_replay_and_record_do_what_they_say() -> None:
    network = tiny_network("llama")
    base = outputs(network)
    with steerable(network) as sites:
        kept: list[mx.array] = []
        for site in sites[:2]:
            site.skip = True
        sites[2].replay = base[2][None]
        sites[-1].record = kept.append
        replayed = logits(network)
    assert mx.array_equal(kept[0][0], base[-1])
    assert mx.array_equal(replayed, logits(network))


def test_of_a_model_and_its_network_either_may_be_given() -> None:
    model: Model = tiny_model()
    with steered(model, A, layer=2):
        one = logits(model.network)
    with steered(model.network, A, layer=2):
        assert mx.array_equal(one, logits(model.network))
