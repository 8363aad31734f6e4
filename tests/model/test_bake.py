"""A baked model, loaded by plain mlx-lm, behaves as if steered."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import numpy as np
import pytest

from mlx_steer import load_model, steered
from mlx_steer.errors import ModelError, VectorError
from mlx_steer.model.bake import Steering, bake
from mlx_steer.vectors import SteeringVector, SteeringVectorSet
from mlx_steer.vectors.evidence import Evidence, MeasuredRow
from tests.helpers.tiny import HIDDEN, LAYERS, random_ids, random_vector, tiny_folder
from tests.helpers.vector_sets import vector_set

IDS = random_ids(3, 20)


def vectors_at(*layers: int) -> SteeringVectorSet:
    metadata = vector_set((1,), hidden_size=HIDDEN, num_layers=LAYERS).metadata
    return SteeringVectorSet([SteeringVector(i, random_vector(i), 10.0) for i in layers], metadata)


def logits(network: nn.Module) -> mx.array:
    found: mx.array = network(mx.array([IDS]))[0].astype(mx.float32)
    mx.eval(found)
    return found


def greedy(network: nn.Module, count: int = 24) -> list[int]:
    tokens: list[int] = []
    for _ in range(count):
        out = network(mx.array([[*IDS, *tokens]]))
        tokens.append(int(mx.argmax(out[0, -1]).item()))
    return tokens


def plainly_loaded(folder: Path) -> nn.Module:
    return mlx_lm.load(str(folder))[0]


def largest(a: mx.array, b: mx.array) -> float:
    return float(mx.abs(a - b).max().item())


def relative(a: mx.array, b: mx.array) -> float:
    """The largest difference, as a part of the largest logit."""
    return largest(a, b) / float(mx.abs(b).max().item())


@pytest.mark.parametrize("layers", [(0,), (3,), (LAYERS - 1,), (1, 2, 4)], ids=str)
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_adding_is_baked_exactly(family: str, layers: tuple[int, ...], tmp_path: Path) -> None:
    source, vectors = tiny_folder(family, tmp_path / "m"), vectors_at(*layers)
    bake(str(source), Steering(vectors, layers, 0.8), tmp_path / "baked")
    baked, model = plainly_loaded(tmp_path / "baked"), load_model(str(source))
    assert largest(logits(baked), logits(model.network)) > 0.5
    with steered(model, vectors, layer=layers, strength=0.8):
        assert relative(logits(baked), logits(model.network)) < 2e-6
        assert greedy(baked) == greedy(model.network)


def quantised(folder: Path, path: Path, dtype: str, bits: int = 4) -> Path:
    mlx_lm.convert(str(folder), str(path), quantize=True, q_bits=bits, q_group_size=32, dtype=dtype)
    return path


def test_quantised_weights_stay_bit_for_bit_and_give_the_same_tokens(tmp_path: Path) -> None:
    source = quantised(tiny_folder("llama", tmp_path / "m"), tmp_path / "q", "float32")
    vectors = vectors_at(3)
    made = bake(str(source), Steering(vectors, (3,), 1.0), tmp_path / "baked")
    before = mx.load(str(source / "model.safetensors"))
    after = mx.load(str(tmp_path / "baked" / "model.safetensors"))
    for name, value in before.items():
        assert bool(mx.array_equal(value, after[name])), name
    assert all(name.endswith("_proj.bias") for name in after.keys() - before.keys())
    assert made.loss is None

    baked, model = plainly_loaded(tmp_path / "baked"), load_model(str(source))
    with steered(model, vectors, layer=3):
        assert relative(logits(baked), logits(model.network)) < 2e-6
        assert greedy(baked) == greedy(model.network)


def test_in_bfloat16_the_tokens_agree_up_to_the_first_near_tie(tmp_path: Path) -> None:
    source, vectors = tiny_folder("llama", tmp_path / "m", "bfloat16"), vectors_at(3)
    bake(str(source), Steering(vectors, (3,), 1.0), tmp_path / "baked")
    baked, model = plainly_loaded(tmp_path / "baked"), load_model(str(source))
    assert baked.layers[3].mlp.down_proj.bias.dtype == mx.bfloat16
    with steered(model, vectors, layer=3):
        expected = logits(model.network)
        ours, theirs = greedy(model.network), greedy(baked)
        margins = []
        for i in range(len(ours)):
            out = model.network(mx.array([[*IDS, *ours[:i]]]))[0, -1].astype(mx.float32)
            second, first = mx.sort(out)[-2:].tolist()
            margins.append((first - second) / first)
    assert largest(logits(baked), expected) < 0.05 * float(mx.abs(expected).max().item())
    # One spacing of bfloat16 is 1/128 of a number, and differences build up over six layers.
    close = next((i for i, margin in enumerate(margins) if margin < 6 / 128), len(ours))
    assert close > 0 and ours[:close] == theirs[:close]


class _Projected(nn.Module):
    """A module whose output has a part of a direction taken out: the plainest reference."""

    def __init__(self, inner: nn.Module, unit: mx.array, part: float) -> None:
        super().__init__()
        self.inner, self._unit, self._part = inner, unit, part

    def __call__(self, x: mx.array) -> mx.array:
        out = self.inner(x)
        return out - self._part * (out @ self._unit)[..., None] * self._unit

    def as_linear(self, x: mx.array) -> mx.array:
        return self.inner.as_linear(x)


def projected_at_every_write(network: nn.Module, unit: mx.array, part: float) -> mx.array:
    network.model.embed_tokens = _Projected(network.model.embed_tokens, unit, part)
    for block in network.layers:
        block.self_attn.o_proj = _Projected(block.self_attn.o_proj, unit, part)
        block.mlp.down_proj = _Projected(block.mlp.down_proj, unit, part)
    return logits(network)


@pytest.mark.parametrize("part", [1.0, 0.6])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "phi3", "ministral3"])
def test_ablating_is_projection_at_every_write(family: str, part: float, tmp_path: Path) -> None:
    source, vectors = tiny_folder(family, tmp_path / "m"), vectors_at(3)
    made = bake(str(source), Steering(vectors, (3,), part, "ablate"), tmp_path / "baked")
    unit = mx.array(vectors[3].normalised().array)
    expected = projected_at_every_write(plainly_loaded(source), unit, part)
    found = logits(plainly_loaded(tmp_path / "baked"))
    assert largest(found, expected) < 2e-4
    assert made.left == pytest.approx(1 - part, abs=1e-5) and made.loss is None

    model = load_model(str(source))
    with steered(model, vectors, layer=3, operator="ablate", strength=part):
        assert largest(found, logits(model.network)) > 0.1  # which is another thing


def test_a_quantised_model_is_requantised_and_the_loss_is_said(tmp_path: Path) -> None:
    source = quantised(tiny_folder("qwen2", tmp_path / "m"), tmp_path / "q", "float32", bits=8)
    vectors = vectors_at(3)
    made = bake(str(source), Steering(vectors, (3,), 1.0, "ablate"), tmp_path / "baked")
    assert made.loss is not None and 0.0005 < made.loss < 0.02
    assert made.left is not None and 0 < made.left < 0.05
    unit = mx.array(vectors[3].normalised().array)
    expected = projected_at_every_write(plainly_loaded(source), unit, 1.0)
    found = logits(plainly_loaded(tmp_path / "baked"))
    assert relative(found, expected) < 0.1
    card = (tmp_path / "baked" / "README.md").read_text()
    assert f"they lie {100 * made.loss:.2g} % of their norm from exact ones" in card
    # The tied head was written out as it was.
    before = mx.load(str(source / "model.safetensors"))
    after = mx.load(str(tmp_path / "baked" / "model.safetensors"))
    name = "model.embed_tokens.weight"
    assert bool(mx.array_equal(before[name], after["lm_head.weight"]))


@pytest.mark.parametrize(
    ("family", "operator", "says"),
    [
        ("gemma2", "add", "'gemma2' normalises what its projections write"),
        ("gemma3_text", "ablate", "'gemma3_text' normalises what its projections write"),
        ("qwen2", "add", "'qwen2' has no bias at its blocks' last projection"),
        ("phi3", "add", "'phi3' has no bias"),
        ("mixtral", "ablate", "'mixtral' is not known here"),
    ],
)
def test_other_families_are_refused_by_name(
    family: str, operator: Any, says: str, tmp_path: Path
) -> None:
    source = tiny_folder(family, tmp_path / "m")
    with pytest.raises(ModelError, match=says):
        bake(str(source), Steering(vectors_at(3), (3,), 1.0, operator), tmp_path / "baked")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]


@pytest.mark.parametrize("family", ["olmo2", "glm4"])
def test_families_that_normalise_after_the_projection_are_known_by_their_config(
    family: str, tmp_path: Path
) -> None:
    source = tiny_folder("llama", tmp_path / "m")
    config = json.loads((source / "config.json").read_text()) | {"model_type": family}
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="normalises what its projections write"):
        bake(str(source), Steering(vectors_at(3), (3,), 1.0), tmp_path / "baked")


MISTAKES: dict[str, tuple[Callable[[], Steering], str]] = {
    "no layer": (lambda: Steering(vectors_at(3), (), 1.0), "which layer"),
    "a layer not there": (lambda: Steering(vectors_at(3), (2,), 1.0), "have no layer 2"),
    "no strength": (lambda: Steering(vectors_at(3), (3,), 0.0), "cannot be baked in"),
    "two directions": (lambda: Steering(vectors_at(2, 3), (2, 3), 1.0, "ablate"), "one direction"),
    "more than all": (lambda: Steering(vectors_at(3), (3,), 1.5, "ablate"), "up to 1, not 1.5"),
}


@pytest.mark.parametrize(("make", "says"), MISTAKES.values(), ids=MISTAKES)
def test_what_cannot_be_baked_is_said_before_a_model_is_loaded(
    make: Callable[[], Steering], says: str
) -> None:
    with pytest.raises(VectorError, match=says):
        make()


def test_vectors_of_another_model_and_a_folder_in_the_way_are_refused(tmp_path: Path) -> None:
    source = tiny_folder("llama", tmp_path / "m", num_hidden_layers=4)
    with pytest.raises(VectorError, match=r"number of layers 6, but .* has 4"):
        bake(str(source), Steering(vectors_at(3), (3,), 1.0), tmp_path / "baked")
    with pytest.raises(ModelError, match="exists already"):
        bake(str(source), Steering(vectors_at(3), (3,), 1.0), source)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]


def test_the_folder_has_all_that_belongs_to_a_model_and_says_what_was_done(
    tmp_path: Path,
) -> None:
    source = tiny_folder("llama", tmp_path / "m")
    (source / "generation_config.json").write_text('{"eos_token_id": 3}')
    bake(str(source), Steering(vectors_at(2, 3), (2, 3), 0.5), tmp_path / "baked")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "baked" / name).read_bytes() == (source / name).read_bytes()
    card = (tmp_path / "baked" / "README.md").read_text()
    assert "0.5 x the steering vector of layers 2, 3 is added" in card
    assert "None was measured together with these vectors" in card
    assert load_model(str(tmp_path / "baked")).chat.prompt_ids("Hello") == load_model(
        str(source)
    ).chat.prompt_ids("Hello")


def test_the_folder_says_what_was_measured_and_whether_that_is_what_was_baked(
    tmp_path: Path,
) -> None:
    source = tiny_folder("llama", tmp_path / "m")
    row = MeasuredRow(name="a | b", target="1 of 4", other="-", incoherent="-", coherence="0.9")
    evidence = Evidence(
        run="r",
        title="Refusal",
        shown="refused",
        target="harmful",
        other="benign",
        answer="It went from 1 to 3.",
        sentences=[],
        rows=[row],
        layer=3,
        strength=0.5,
        vectors={},
    )
    for name, strength, says in (
        ("same", 0.5, "Measured by steering at run time, before anything was baked."),
        ("other", 1.0, "with another layer, strength or operator"),
    ):
        steering = Steering(vectors_at(3), (3,), strength)
        bake(str(source), steering, tmp_path / name, evidence=evidence)
        card = (tmp_path / name / "README.md").read_text()
        assert "It went from 1 to 3. Measured by steering" in card and says in card
        assert "| a \\| b | 1 of 4 | - | - | 0.9 |" in card


def test_a_model_that_has_such_biases_keeps_them(tmp_path: Path) -> None:
    source = tiny_folder("llama", tmp_path / "m", mlp_bias=True)
    vectors = vectors_at(3)
    bake(str(source), Steering(vectors, (3,), 1.0), tmp_path / "baked")
    baked, model = plainly_loaded(tmp_path / "baked"), load_model(str(source))
    own = np.array(model.network.layers[3].mlp.down_proj.bias)
    assert np.abs(own).max() > 0
    with steered(model, vectors, layer=3):
        assert relative(logits(baked), logits(model.network)) < 2e-6
