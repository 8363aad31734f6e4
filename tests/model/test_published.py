"""The ready configs' models: small random ones of the same structure, and what is known of them."""

import copy
import json
from typing import Any

import mlx.core as mx
import pytest

from mlx_steer.engine.guard import traits_of
from mlx_steer.model.published import published_model
from scripts.published_models import PUBLISHED, TARGET, built, counted

SMALL = {
    "vocab_size": 320,
    "vocab_size_per_layer_input": 320,
    "hidden_size_per_layer_input": 16,
    "hidden_size": 64,
    "block_dim": 64,
    "block_ff_dim": 128,
    "intermediate_size": 128,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "num_hidden_layers": 12,
    "num_kv_shared_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "global_head_dim": 32,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "laurel_rank": 8,
}
# Lists with an entry for each layer.
BY_LAYER = ("layer_types", "activation_sparsity_pattern")


def small(config: dict[str, Any]) -> dict[str, Any]:
    """The same model with small numbers; whatever it has of its own stays."""
    config = copy.deepcopy(config)
    config.pop("quantization_config", None)
    text = config.get("text_config", config)
    text.update({key: value for key, value in SMALL.items() if key in text})
    text.update({key: text[key][: SMALL["num_hidden_layers"]] for key in BY_LAYER if key in text})
    return config


# Networks of so many parts that telling what they are like takes seconds.
MANIFOLD = ("Qwen/Qwen3-Next", "google/gemma-3n", "google/gemma-4")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * n.startswith(MANIFOLD)) for n in PUBLISHED],
)
def test_a_small_model_like_it_is_steered_in_a_batch_of_unlike_rows(name: str) -> None:
    mx.random.seed(0)
    network = built(small(PUBLISHED[name]))
    network.set_dtype(mx.float32)
    assert traits_of(network).together == "padded"


def test_the_file_holds_what_is_published() -> None:
    known = json.loads(TARGET.read_text(encoding="utf-8"))
    assert {name: entry["config"] for name, entry in known.items()} == PUBLISHED
    for name in ("google/gemma-4-E4B-it", "openai/gpt-oss-20b", "meta-llama/Llama-3.2-3B-Instruct"):
        assert known[name]["bytes"] == counted(PUBLISHED[name])


def test_a_revision_is_of_the_same_model_and_others_are_not_known() -> None:
    assert published_model("Qwen/Qwen3-8B@main") == published_model("Qwen/Qwen3-8B")
    assert published_model("Qwen/Qwen3-9B") is None


def test_weights_are_those_of_the_precision_asked_for() -> None:
    known = published_model("mistralai/Mistral-7B-Instruct-v0.3")
    assert known is not None
    assert known.weights(4) < known.weights(4, wide=True) < known.weights(8) < known.weights()
    assert known.weights(wide=True) == 2 * known.weights()
    packed = published_model("openai/gpt-oss-20b")
    assert packed is not None and packed.weights() == packed.weights(wide=True)
