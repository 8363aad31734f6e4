"""What the guard finds out about a network, and what it refuses."""

import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import llama
from mlx_lm.models.cache import ChunkedKVCache, KVCache

from mlx_steer import load_model, steered
from mlx_steer.engine.guard import traits_of
from mlx_steer.engine.traits import Traits
from mlx_steer.errors import ModelError
from mlx_steer.model.load import decoder_layers
from tests.helpers.tiny import (
    FAMILIES,
    HIDDEN,
    LAYERS,
    random_vector,
    tiny_config,
    tiny_folder,
    tiny_network,
    tiny_tokenizer,
)


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kinds of networks are as if never seen: some tests change what a class does."""
    monkeypatch.setattr("mlx_steer.engine.guard._found", {})
    monkeypatch.setattr("mlx_steer.engine.structure._found", {})


def folder_of(path: Path, model_type: str, **config: Any) -> Path:
    """A folder with random weights of any of mlx-lm's model types."""
    path.mkdir()
    config = {**tiny_config("llama"), "model_type": model_type, **config}
    (path / "config.json").write_text(json.dumps(config))
    module = import_module(f"mlx_lm.models.{model_type}")
    network = module.Model(module.ModelArgs.from_dict(config))
    weights = dict(tree_flatten(network.parameters()))
    mx.save_safetensors(str(path / "model.safetensors"), weights, {"format": "mlx"})
    tiny_tokenizer().save_pretrained(path)
    return path


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    counted: list[int] = []
    original = llama.Model.__call__

    def call(self: nn.Module, inputs: mx.array, *args: Any, **kwargs: Any) -> mx.array:
        counted.append(inputs.size)
        return original(self, inputs, *args, **kwargs)

    monkeypatch.setattr(llama.Model, "__call__", call)
    yield counted


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_tested_families_may_be_run_in_every_way_and_are_left_as_they_were(
    family: str, dtype: str
) -> None:
    network = tiny_network(family, dtype=dtype)
    if dtype == "bfloat16" and family in ("mixtral", "qwen3_moe") and not mx.metal.is_available():
        with pytest.raises(ModelError, match=r"cannot be run.* float32"):  # no such kernel on a CPU
            traits_of(network)
        return
    classes = [type(block) for block in decoder_layers(network)]
    assert traits_of(network) == Traits()
    assert traits_of(network).note is None
    assert [type(block) for block in decoder_layers(network)] == classes


def test_a_kind_of_network_is_tried_once_and_on_a_few_tokens(calls: list[int]) -> None:
    traits_of(tiny_network("llama"))
    assert 0 < len(calls) < 20 and sum(calls) < 80
    calls.clear()
    traits_of(tiny_network("llama", seed=1))
    assert not calls
    traits_of(tiny_network("llama", num_hidden_layers=3))
    assert calls


def test_rows_whose_caches_cannot_be_batched_run_one_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make_cache(self: nn.Module) -> list[Any]:
        return [KVCache(), KVCache(), ChunkedKVCache(8), *(KVCache() for _ in range(LAYERS - 3))]

    monkeypatch.setattr(llama.Model, "make_cache", make_cache, raising=False)
    model = load_model(str(tiny_folder("llama", tmp_path / "m")))
    traits = traits_of(model.network)
    assert traits.together == "single"
    assert traits.note is not None and "one at a time" in traits.note


def test_a_network_that_cannot_be_run_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: object, *args: object, **kwargs: object) -> None:
        raise ValueError("no such kernel")

    network = tiny_network("llama")
    kind = type(decoder_layers(network)[0])
    monkeypatch.setattr(kind, "__call__", fails)
    with pytest.raises(ModelError, match="model type 'llama' cannot be run: no such kernel"):
        traits_of(network)
    assert type(decoder_layers(network)[0]) is kind


def test_blocks_that_run_several_times_a_token_are_refused_at_load_and_when_steered(
    tmp_path: Path,
) -> None:
    folder = folder_of(tmp_path / "twice", "nanbeige", num_loops=2)
    with pytest.raises(ModelError, match=r"type 'nanbeige' does not call.*model/families\.py"):
        load_model(str(folder))
    module = import_module("mlx_lm.models.nanbeige")
    config = {**tiny_config("llama"), "model_type": "nanbeige", "num_loops": 2}
    network = module.Model(module.ModelArgs.from_dict(config))
    with (
        pytest.raises(ModelError, match="does not call its decoder blocks once each"),
        steered(network, random_vector(0, size=HIDDEN), layer=0),
    ):
        pass
    once = load_model(str(folder_of(tmp_path / "once", "nanbeige", num_loops=1)))
    assert once.num_layers == LAYERS
