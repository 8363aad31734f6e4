"""A Llama model's tensors from a GGUF file: their names, shapes, values and order of rows."""

from collections.abc import Mapping

import mlx.core as mx

from mlx_steer.errors import ModelError
from mlx_steer.gguf_header import Header
from mlx_steer.model.gguf.config import ROPE_FACTORS

_BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def _expected(config: Mapping[str, object]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Returns, for each GGUF tensor name of this model, the Hugging Face name and the shape."""
    size = {key: value for key, value in config.items() if isinstance(value, int)}
    hidden, inner = size["hidden_size"], size["intermediate_size"]
    queries = size["num_attention_heads"] * size["head_dim"]
    keys = size["num_key_value_heads"] * size["head_dim"]
    shapes: dict[str, tuple[int, ...]] = {
        "attn_norm": (hidden,),
        "attn_q": (queries, hidden),
        "attn_k": (keys, hidden),
        "attn_v": (keys, hidden),
        "attn_output": (hidden, queries),
        "ffn_norm": (hidden,),
        "ffn_gate": (inner, hidden),
        "ffn_up": (inner, hidden),
        "ffn_down": (hidden, inner),
    }
    expected: dict[str, tuple[str, tuple[int, ...]]] = {
        "token_embd.weight": ("model.embed_tokens.weight", (size["vocab_size"], hidden)),
        "output_norm.weight": ("model.norm.weight", (hidden,)),
    }
    if not config["tie_word_embeddings"]:
        expected["output.weight"] = ("lm_head.weight", (size["vocab_size"], hidden))
    for layer in range(size["num_hidden_layers"]):
        for name, shape in shapes.items():
            target = f"model.layers.{layer}.{_BLOCK_NAMES[name]}"
            expected[f"blk.{layer}.{name}.weight"] = (f"{target}.weight", shape)
    return expected


def check_tensors(header: Header, config: Mapping[str, object]) -> None:
    """Raises ModelError unless the file holds just the tensors that `config` calls for."""
    expected = _expected(config)
    found = {name: t.shape for name, t in header.tensors.items() if name != ROPE_FACTORS}
    problems = [f"it lacks '{name}'" for name in expected if name not in found]
    problems += [f"'{name}' is unknown" for name in found if name not in expected]
    problems += [
        f"'{name}' is {found[name]}, not {shape}"
        for name, (_, shape) in expected.items()
        if found.get(name, shape) != shape
    ]
    if problems:
        rest = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ModelError(
            f"{header.path} does not hold the tensors of a Llama model: "
            f"{'; '.join(problems[:3])}{rest}. Use another file of this model."
        )


def read_weights(
    header: Header, config: Mapping[str, object], dtype: mx.Dtype
) -> dict[str, mx.array]:
    """All weights by their Hugging Face names, dequantised, in `dtype`."""
    loaded = mx.load(str(header.path), format="gguf")
    assert isinstance(loaded, dict)  # without return_metadata, what the stubs cannot tell
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    weights = {}
    for name, (target, _) in _expected(config).items():
        stem = name.removesuffix(".weight")
        array = loaded[name]
        if f"{stem}.scales" in loaded:
            array = _dequantized(array, loaded[f"{stem}.scales"], loaded[f"{stem}.biases"])
        count = heads.get(stem.rpartition(".")[2])
        if isinstance(count, int):
            array = _unpermuted(array, count)
        weights[target] = array.astype(dtype)
    return weights


def _dequantized(weight: mx.array, scales: mx.array, biases: mx.array) -> mx.array:
    # GGUF's scales are float16; products in float32 are what its definition means.
    return mx.dequantize(
        weight,
        scales.astype(mx.float32),
        biases.astype(mx.float32),
        group_size=32,
        bits=weight.shape[-1] // scales.shape[-1],
    )


def _unpermuted(array: mx.array, heads: int) -> mx.array:
    """Puts the rows of each head, stored as pairs that rotate together, back into two halves."""
    pairs = array.reshape(heads, array.shape[0] // heads // 2, 2, -1)
    return pairs.swapaxes(1, 2).reshape(array.shape)
