"""A model over two ranks gives what it gives whole, for every family that mlx-lm can shard."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlx_steer.errors import ModelError
from mlx_steer.model.load import load_model
from mlx_steer.model.shape import Shape
from mlx_steer.model.sharding import shard
from mlx_steer.model.size import ModelSize
from mlx_steer.team import Team
from tests.helpers.ranks import launch
from tests.helpers.tiny import tiny_config, tiny_folder

TYPES = [
    "qwen2",
    "qwen3_5",
    "deepseek_v2",
    "deepseek_v3",
    "deepseek_v32",
    "exaone_moe",
    "glm4_moe",
    "glm4_moe_lite",
    "gpt_oss",
    "kimi_k25",
    "kimi_k3",
    "longcat_flash",
    "longcat_flash_ngram",
    "minimax",
    "minimax_m3_vl",
    "ministral3",
    "mistral3",
    "mistral4",
    "llama",
    "qwen3",
    "qwen3_5_moe",
    "qwen3_moe",
    "step3p5",
]
# mlx-lm's code for them cannot be steered at all (tests/zoo/results.json).
REFUSED = ["deepseek_v41", "iquestloopcoder"]
# Embeddings are whole on each rank; in these small networks they are a quarter of all, and more in
# one that has an embedding of n-grams.
MOST_BYTES, NGRAM_BYTES = 0.8, 0.92
# Of a float32 network, largest difference over the largest value.
TOLERANCE = 1e-4


def of_both_ranks(folder: Path, types: list[str]) -> list[dict[str, dict[str, Any]]]:
    ended = launch("-m", "tests.helpers.sharded", folder, *types)
    written = [folder / f"rank_{rank}.json" for rank in range(2)]
    assert all(path.exists() for path in written), ended.err
    return [json.loads(path.read_text()) for path in written]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Any]]]:
    return of_both_ranks(tmp_path_factory.mktemp("ranks"), TYPES + REFUSED)


def check(found: dict[str, Any], most_bytes: float) -> None:
    assert not found["refused"]
    assert found["vectors"] < TOLERANCE
    assert found["logits"] < TOLERANCE
    assert found["sharded"] == found["whole"]
    assert len({tuple(row) for row in found["whole"]}) > 1
    assert found["traits"]
    assert found["bytes"] < most_bytes


@pytest.mark.slow
@pytest.mark.parametrize("model_type", TYPES)
def test_a_family_over_two_ranks_is_what_it_is_whole(
    ranks: list[dict[str, dict[str, Any]]], model_type: str
) -> None:
    for rank in ranks:
        check(rank[model_type], NGRAM_BYTES if "ngram" in model_type else MOST_BYTES)
    assert ranks[0][model_type]["sharded"] == ranks[1][model_type]["sharded"]


@pytest.mark.slow
@pytest.mark.parametrize("model_type", REFUSED)
def test_what_cannot_be_steered_whole_is_refused_sharded(
    ranks: list[dict[str, dict[str, Any]]], model_type: str
) -> None:
    assert all(rank[model_type]["refused"] for rank in ranks)


def test_a_head_is_never_cut_through() -> None:
    """mlx-lm would: 4 heads over 3 ranks give each a matrix that is read as 1 head too wide."""
    network: Any = SimpleNamespace(shard=lambda group: None)
    with pytest.raises(ModelError, match="num_attention_heads of 4, which 3 ranks cannot share"):
        shard(network, tiny_config("llama"), "tiny", Team(0, 3))


def test_a_type_that_mlx_lm_cannot_shard_is_refused() -> None:
    with pytest.raises(ModelError, match="mlx-lm cannot shard model type 'gemma2'"):
        shard(SimpleNamespace(), tiny_config("gemma2"), "tiny", Team(0, 2))  # type: ignore


def test_an_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot be sharded; fuse it"):
        load_model("any/name", adapter=str(tmp_path), shard="tensor")


def test_on_one_machine_a_sharded_model_is_the_model(tmp_path: Path) -> None:
    folder = tiny_folder("llama", tmp_path / "model")
    assert load_model(str(folder), shard="tensor").identity == load_model(str(folder)).identity


def test_a_rank_plans_with_its_part() -> None:
    config = {
        "hidden_size": 8192, "num_hidden_layers": 80, "intermediate_size": 28672,
        "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128256,
        "tie_word_embeddings": False,
    }  # fmt: skip
    whole = ModelSize(Shape.of(config), 40 * 10**9, 2, quantized=True)
    part = whole.over(2)
    # Of 70.6 billion parameters 2.1 are in embedding and output matrix, whole on both.
    assert part.weights == pytest.approx(40e9 * (2.1 + 68.5 / 2) / 70.6, rel=0.01)
    assert part.shape.kv_bytes(100, 2) == whole.shape.kv_bytes(100, 2) / 2
    assert whole.over(1) == whole
