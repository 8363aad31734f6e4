"""Steering of weights that are not plain float32: packed, of mixed bits, bfloat16, with a LoRA.

In all of them a steered forward pass is compared with one in which the blocks are wrapped by hand.
"""

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import linear_to_lora_layers

from mlx_steer.conditions import Condition, Intervention
from mlx_steer.engine.complete import complete
from mlx_steer.engine.jobs import Job, Sampling
from mlx_steer.engine.steered import steered
from mlx_steer.model.load import Model, decoder_layers, load_model
from tests.helpers.plain import plain_logits
from tests.helpers.tiny import LAYERS, random_ids, random_vector, tiny_folder

IDS = random_ids(3, 30)
ACTS = (
    Intervention(1, random_vector(0), 0.8),
    Intervention(3, random_vector(1), 1.0, "ablate"),
    Intervention(4, random_vector(2), 1.0, scope="generated"),
)


def uniform(bits: int) -> Callable[[Path, Path], Path]:
    def make(path: Path, original: Path) -> Path:
        import_module("mlx_lm.convert").convert(
            str(original), str(path), quantize=True, q_bits=bits, q_group_size=32
        )
        return path

    return make


def mixed(path: Path, original: Path) -> Path:
    """Down projections in 8 bits, the output matrix as it is, all else in 4 bits."""

    def bits(name: str, module: nn.Module) -> bool | dict[str, int]:
        if name.endswith("lm_head"):
            return False
        return {"bits": 8, "group_size": 32} if name.endswith("down_proj") else True

    import_module("mlx_lm.convert").convert(
        str(original), str(path), quantize=True, q_bits=4, q_group_size=32, quant_predicate=bits
    )
    return path


def bfloat16(path: Path, original: Path) -> Path:
    return tiny_folder("llama", path, "bfloat16")


KINDS = {"4 bits": uniform(4), "8 bits": uniform(8), "mixed bits": mixed, "bfloat16": bfloat16}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder("llama", tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="module", params=KINDS)
def model(
    request: pytest.FixtureRequest, llama: Path, tmp_path_factory: pytest.TempPathFactory
) -> Model:
    folder = tmp_path_factory.mktemp("kinds") / "model"
    return load_model(str(KINDS[request.param](folder, llama)))


@pytest.fixture
def adapter(llama: Path, tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "poet", llama, seed=0)


def write_adapter(path: Path, base: Path, seed: int) -> Path:
    """What `mlx_lm.lora` leaves behind: the trained matrices and how they are put in."""
    path.mkdir()
    settings = {
        "rank": 4,
        "scale": 2.0,
        "dropout": 0.0,
        "keys": ["self_attn.q_proj", "self_attn.v_proj"],
    }
    config = {"fine_tune_type": "lora", "num_layers": 4, "lora_parameters": settings}
    (path / "adapter_config.json").write_text(json.dumps(config))
    network = mlx_lm.load(str(base))[0]
    network.freeze()
    linear_to_lora_layers(network, 4, settings)
    rng = np.random.default_rng(seed)
    weights = {
        name: mx.array(rng.standard_normal(value.shape).astype(np.float32)) / 6
        for name, value in tree_flatten(network.trainable_parameters())
    }
    assert len(weights) == 4 * 2 * 2
    mx.save_safetensors(str(path / "adapters.safetensors"), weights)
    return path


def logits(model: Model) -> mx.array:
    return model.network(mx.array(IDS)[None])[0].astype(mx.float32)


def steered_difference(model: Model) -> tuple[float, float]:
    """Of steered logits from wrapped blocks', at most; and from unsteered logits, on average."""
    acts = [one for one in ACTS if one.scope == "all"]
    expected = plain_logits(model, IDS, acts, len(IDS) - 1).astype(mx.float32)
    before = logits(model)
    with steered(model, acts):
        found = logits(model)
    assert mx.array_equal(logits(model), before), "steering left something behind"
    return mx.abs(found - expected).max().item(), mx.abs(found - before).mean().item()


def test_steering_is_exact_on_every_kind_of_weights(model: Model) -> None:
    # In bfloat16 two ways of adding up differ by a step or two of that type.
    bound = 1e-3 if model.exact else 0.3
    wrong, effect = steered_difference(model)
    assert wrong < bound < effect


def test_steering_changes_no_dtype_and_no_parameter(model: Model) -> None:
    before = {name: (v.dtype, v.shape) for name, v in tree_flatten(model.network.parameters())}
    with steered(model, ACTS):
        assert model.network(mx.array(IDS)[None]).dtype == model.dtype
        inside = {n: (v.dtype, v.shape) for n, v in tree_flatten(model.network.parameters())}
    assert inside == before


def test_batched_generation_gives_what_each_row_gives_alone(model: Model) -> None:
    conditions = [
        Condition("base"),
        Condition("steered", None, ACTS),
        Condition("b", None, ACTS[:1]),
    ]
    jobs = [
        Job(f"{condition.name} {i}", random_ids(i, 8 + 3 * i), condition)
        for condition in conditions
        for i in range(3)
    ]
    sampling = Sampling(max_tokens=8)
    together = complete(model, jobs, sampling)
    alone = [complete(model, [job], sampling)[0] for job in jobs]
    assert [job.key for job in jobs] == [done.key for done in together]
    if model.exact:
        assert [done.tokens for done in together] == [done.tokens for done in alone]
    assert len({done.tokens for done in together}) > 3, "the conditions make a difference"


def test_the_record_tells_the_kinds_apart(llama: Path, tmp_path: Path) -> None:
    models = {
        name: load_model(str(make(tmp_path / name, llama))).info for name, make in KINDS.items()
    }
    scheme = {"group_size": 32, "mode": "affine"}
    assert models["4 bits"].quantization == {**scheme, "bits": 4}
    assert models["8 bits"].quantization == {**scheme, "bits": 8}
    # One entry for each down projection and one for the output matrix.
    found = models["mixed bits"].quantization
    assert found is not None and found["bits"] == 4 and found["exceptions"] >= LAYERS
    assert models["bfloat16"].quantization is None
    assert len({info.fingerprint for info in models.values()}) == len(KINDS)


def test_mixed_bits_are_as_the_config_says(llama: Path, tmp_path: Path) -> None:
    model = load_model(str(mixed(tmp_path / "mixed", llama)))
    block = decoder_layers(model.network)[2]
    assert (block.mlp.down_proj.bits, block.mlp.up_proj.bits) == (8, 4)
    assert type(model.network.lm_head) is nn.Linear


# --- adapters -------------------------------------------------------------------------------------


def test_an_adapter_changes_logits_name_and_fingerprint(llama: Path, adapter: Path) -> None:
    plain, tuned = load_model(str(llama)), load_model(str(llama), adapter=str(adapter))
    assert mx.abs(logits(plain) - logits(tuned)).mean().item() > 0.1
    assert tuned.info.id == f"{llama} + poet"
    assert tuned.info.fingerprint != plain.info.fingerprint
    assert "LoRA" in type(decoder_layers(tuned.network)[-1].self_attn.q_proj).__name__


def test_two_adapters_have_two_fingerprints(llama: Path, adapter: Path, tmp_path: Path) -> None:
    other = write_adapter(tmp_path / "cook", llama, seed=1)
    infos = [load_model(str(llama), adapter=str(path)).info for path in (adapter, other, adapter)]
    assert infos[0].fingerprint == infos[2].fingerprint != infos[1].fingerprint


def test_steering_works_through_an_adapter(llama: Path, adapter: Path) -> None:
    wrong, effect = steered_difference(load_model(str(llama), adapter=str(adapter)))
    assert wrong < 1e-3 < 0.1 < effect


def test_an_adapter_on_packed_weights_is_steered_too(llama: Path, tmp_path: Path) -> None:
    packed = uniform(4)(tmp_path / "packed", llama)
    adapter = write_adapter(tmp_path / "poet", packed, seed=0)
    tuned = load_model(str(packed), adapter=str(adapter))
    assert mx.abs(logits(load_model(str(packed))) - logits(tuned)).mean().item() > 0.1
    wrong, effect = steered_difference(tuned)
    assert wrong < 1e-3 < 0.1 < effect


def test_generation_through_an_adapter_is_steered(llama: Path, adapter: Path) -> None:
    model = load_model(str(llama), adapter=str(adapter))
    conditions: list[tuple[str, Any]] = [("base", ()), ("steered", ACTS)]
    jobs = [Job(name, IDS, Condition(name, None, acts)) for name, acts in conditions]
    base, changed = complete(model, jobs, Sampling(max_tokens=8))
    assert base.tokens != changed.tokens
    greedy = list(base.tokens)[:1]
    assert greedy == [int(mx.argmax(logits(model)[-1]).item())]
