"""Models whose blocks or caches steering cannot handle say so when they are loaded."""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import llama
from mlx_lm.models.cache import ChunkedKVCache, KVCache, QuantizedKVCache

from mlx_steer.conditions import Intervention
from mlx_steer.engine.steered import steered
from mlx_steer.errors import ModelError
from mlx_steer.model.load import check_caches, check_calls, decoder_layers, load_model
from tests.helpers.tiny import (
    CONTEXT,
    FAMILIES,
    LAYERS,
    plain_logits,
    random_ids,
    random_vector,
    tiny_config,
    tiny_folder,
    tiny_network,
    tiny_tokenizer,
)

HYBRID: dict[str, Any] = {
    "intermediate_size": 64,
    "attention_bias": False,
    "mamba_num_heads": 2,
    "mamba_head_dim": 16,
    "mamba_proj_bias": False,
    "ssm_state_size": 16,
    "conv_kernel": 4,
    "n_groups": 1,
    "mlp_bias": False,
    "layer_norm_epsilon": 1e-5,
    "use_bias": False,
    "use_conv_bias": True,
}


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


HUNYUAN: dict[str, Any] = {
    "attention_bias": False,
    "moe_topk": 1,
    "num_experts": 1,
    "num_shared_expert": 1,
    "use_mixed_mlp_moe": False,
    "use_qk_norm": False,
    "use_cla": False,
    "cla_share_factor": 2,
    "rope_scaling": {"type": "dynamic", "factor": 1.0, "alpha": 1.0},
}
GPT_J = {"n_embd": 64, "n_positions": 256, "n_head": 4, "rotary_dim": 16, "n_layer": 6}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tested_families_pass_every_check_and_are_left_as_they_were(family: str) -> None:
    network = tiny_network(family)
    classes = [type(block) for block in decoder_layers(network)]
    check_caches(network)
    check_calls(network)
    assert [type(block) for block in decoder_layers(network)] == classes


@pytest.mark.parametrize(
    ("model_type", "config"),
    [
        ("hunyuan", HUNYUAN),  # block(h, mask, cache, keys and values) -> (h, keys and values)
        ("gptj", GPT_J),  # block(inputs=h, ...)
    ],
)
def test_blocks_that_are_called_in_another_way_are_refused(
    tmp_path: Path, model_type: str, config: dict[str, Any]
) -> None:
    folder = folder_of(tmp_path / "m", model_type, **config)
    message = f"'{model_type}' does not call its decoder blocks .*check_calls, and .*steering"
    with pytest.raises(ModelError, match=message):
        load_model(str(folder))


def test_a_network_that_cannot_be_run_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: object, *args: object, **kwargs: object) -> None:
        raise ValueError("no such kernel")

    network = tiny_network("llama")
    kind = type(decoder_layers(network)[0])
    monkeypatch.setattr(kind, "__call__", fails)
    with pytest.raises(ModelError, match="model type 'llama' cannot be run: no such kernel"):
        check_calls(network)
    assert type(decoder_layers(network)[0]) is kind


def test_blocks_without_a_cache_of_their_own_are_refused(tmp_path: Path) -> None:
    # Of Mamba, attention and plain blocks, the plain ones have no cache.
    folder = folder_of(tmp_path / "m", "nemotron_h", hybrid_override_pattern="M-*-", **HYBRID)
    with pytest.raises(
        ModelError, match=r"type 'nemotron_h' has 4 decoder blocks and 2 caches.*load\.py, check_ca"
    ):
        load_model(str(folder))


def test_blocks_that_run_several_times_a_token_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"'nanbeige' has {LAYERS} decoder blocks and 12 caches"):
        load_model(str(folder_of(tmp_path / "twice", "nanbeige", num_loops=2)))
    assert load_model(str(folder_of(tmp_path / "once", "nanbeige", num_loops=1))).num_layers == 6


@pytest.mark.parametrize("cache", [ChunkedKVCache(8), QuantizedKVCache()])
def test_a_cache_that_cannot_be_batched_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Any
) -> None:
    folder = tiny_folder("llama", tmp_path / "m")
    caches = [KVCache(), KVCache(), cache, *(KVCache() for _ in range(LAYERS - 3))]
    monkeypatch.setattr(llama.Model, "make_cache", lambda self: caches)
    message = f"layer 2 of model type 'llama' has a {type(cache).__name__}, which cannot be batched"
    with pytest.raises(ModelError, match=message):
        load_model(str(folder))


@pytest.mark.parametrize("layers", [None, {0: "block"}, ["no module"]])
def test_blocks_that_are_no_plain_list_are_refused_and_the_place_to_add_them_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layers: object
) -> None:
    folder = tiny_folder("llama", tmp_path / "m")
    monkeypatch.setattr(llama.Model, "layers", property(lambda self: layers))
    with pytest.raises(
        ModelError,
        match=r"blocks of model type 'llama' are not a plain list.*model/load\.py, decoder_layers",
    ):
        load_model(str(folder))


def test_phi_3s_sliding_window_limits_the_context(tmp_path: Path) -> None:
    # mlx-lm computes it with full attention: a window of 2047 in Phi-3-mini-4k.
    folder = tiny_folder("phi3", tmp_path / "windowed", sliding_window=40)
    assert load_model(str(folder)).context == 40
    assert load_model(str(tiny_folder("phi3", tmp_path / "full"))).context == CONTEXT


def test_a_gemma_3_with_a_vision_tower_is_steered_as_its_text_model_is(tmp_path: Path) -> None:
    text = tiny_folder("gemma3_text", tmp_path / "text")
    folder = tmp_path / "whole"
    folder.mkdir()
    for file in text.iterdir():
        if not file.name.startswith(("config", "model")):
            (folder / file.name).write_bytes(file.read_bytes())
    weights = mx.load(str(text / "model.safetensors"))
    named = {f"language_model.{name}": value for name, value in weights.items()}
    vision = {"vision_tower.patch.weight": mx.zeros((2, 2)), "multi_modal_projector.w": mx.zeros(2)}
    mx.save_safetensors(str(folder / "model.safetensors"), {**named, **vision}, {"format": "pt"})
    inner = json.loads((text / "config.json").read_text())
    config = {
        "model_type": "gemma3",
        "architectures": ["Gemma3ForConditionalGeneration"],
        "text_config": inner,
        "vocab_size": inner["vocab_size"],
        "eos_token_id": inner["eos_token_id"],
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(config))

    whole, plain = load_model(str(folder)), load_model(str(text))

    assert (whole.num_layers, whole.hidden_size, whole.context) == (LAYERS, 64, CONTEXT)
    assert len(decoder_layers(whole.network)) == LAYERS
    ids = random_ids(1, 30)
    acts = [Intervention(2, random_vector(0), 1.0)]
    expected = plain_logits(plain, ids, acts, len(ids) - 1)
    with steered(whole, acts):
        found = whole.network(mx.array(ids)[None])[0]
    assert mx.allclose(found, expected, atol=1e-4)
    assert not mx.allclose(whole.network(mx.array(ids)[None])[0], expected, atol=0.1)
