"""Writes what the ready configs' models are like, so that they can be planned before a download.

The numbers are those of each model's public config.json, read on 25 November 2026. Bytes are
counted, not estimated: mlx-lm builds the network (lazily, so no weight is made), its converter
quantises it, and the arrays are added up.

    python scripts/published_models.py          # writes mlx_steer/model/published_models.json
    python scripts/published_models.py --check  # exit code 1 if the file says something else
"""

from __future__ import annotations

import argparse
import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.utils import MODEL_REMAPPING

TARGET = Path(__file__).parents[1] / "mlx_steer" / "model" / "published_models.json"

Config = dict[str, Any]

_LLAMA: Config = {"model_type": "llama", "rms_norm_eps": 1e-5, "rope_theta": 5e5}
_MISTRAL: Config = {
    **_LLAMA,
    "model_type": "mistral",
    "head_dim": 128,
    "tie_word_embeddings": False,
}
_QWEN2: Config = {"model_type": "qwen2", "rms_norm_eps": 1e-6, "rope_theta": 1e6}
_QWEN3: Config = {**_QWEN2, "model_type": "qwen3", "head_dim": 128, "vocab_size": 151936}
_PHI3: Config = {"model_type": "phi3", "rms_norm_eps": 1e-5}
_GEMMA2: Config = {
    **{"model_type": "gemma2", "rms_norm_eps": 1e-6, "rope_theta": 1e4, "head_dim": 256},
    **{"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    **{"query_pre_attn_scalar": 256, "vocab_size": 256000, "tie_word_embeddings": True},
}


def _sizes(layers: int, hidden: int, inner: int, heads: int, kv: int, **more: Any) -> Config:
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        **more,
    }


def _within(model_type: str, text: Config, **more: Any) -> Config:
    """The config.json of a model whose text part stands inside another."""
    return {"model_type": model_type, "text_config": text, "vision_config": {}, **more}


def _gemma3(*sizes: int) -> Config:
    text = _sizes(*sizes, model_type="gemma3_text", head_dim=256, sliding_window=1024)
    return _within("gemma3", {**text, "vocab_size": 262208, "tie_word_embeddings": True})


def _kinds(period: int, count: int, most: str, last: str = "full_attention") -> list[str]:
    return [last if i % period == period - 1 else most for i in range(count)]


_LFM2_ATTENTION = (2, 5, 9, 13, 17, 21, 24, 27)
_GEMMA3N: Config = {
    **_sizes(35, 2048, 16384, 8, 2, model_type="gemma3n_text", rms_norm_eps=1e-6, head_dim=256),
    **{"vocab_size": 262400, "vocab_size_per_layer_input": 262144, "sliding_window": 512},
    **{"num_kv_shared_layers": 15, "laurel_rank": 64, "hidden_size_per_layer_input": 256},
    **{"max_position_embeddings": 32768, "rope_local_base_freq": 1e4, "rope_theta": 1e6},
    **{"final_logit_softcapping": 30.0, "layer_types": _kinds(5, 35, "sliding_attention")},
    **{"activation_sparsity_pattern": [0.95] * 10 + [0.0] * 25, "tie_word_embeddings": True},
    **{"altup_num_inputs": 4, "altup_coef_clip": 120.0, "altup_correct_scale": True},
    "altup_active_idx": 0,
}
_GEMMA4: Config = {
    **_sizes(42, 2560, 10240, 8, 2, model_type="gemma4_text", head_dim=256, global_head_dim=512),
    **{"vocab_size": 262144, "vocab_size_per_layer_input": 262144, "sliding_window": 512},
    **{"num_kv_shared_layers": 18, "hidden_size_per_layer_input": 256},
    **{"use_double_wide_mlp": False, "tie_word_embeddings": True},
    **{"layer_types": _kinds(6, 42, "sliding_attention"), "final_logit_softcapping": 30.0},
}
_LINEAR: Config = {
    **{"linear_num_value_heads": 32, "linear_num_key_heads": 16, "linear_conv_kernel_dim": 4},
    **{"linear_key_head_dim": 128, "linear_value_head_dim": 128, "full_attention_interval": 4},
}
_QWEN35: Config = {
    **_sizes(32, 4096, 12288, 16, 4, model_type="qwen3_5_text", head_dim=256, **_LINEAR),
    **{"vocab_size": 248320, "tie_word_embeddings": False},
}
_QWEN3_NEXT: Config = {
    **_sizes(48, 2048, 5120, 16, 2, model_type="qwen3_next", head_dim=256, **_LINEAR),
    **{"vocab_size": 151936, "tie_word_embeddings": False, "max_position_embeddings": 262144},
    **{"num_experts": 512, "num_experts_per_tok": 10, "decoder_sparse_step": 1},
    **{"shared_expert_intermediate_size": 512, "moe_intermediate_size": 512},
    **{"mlp_only_layers": [], "rms_norm_eps": 1e-6, "partial_rotary_factor": 0.25},
    "rope_theta": 1e7,
}
_YARN: Config = {
    **{"rope_type": "yarn", "type": "yarn", "rope_theta": 1e6, "factor": 16.0},
    **{"original_max_position_embeddings": 16384, "beta_fast": 32.0, "beta_slow": 1.0},
    **{"mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1},
}
_MINISTRAL3: Config = {
    **_sizes(34, 4096, 14336, 32, 8, model_type="ministral3", head_dim=128, rms_norm_eps=1e-5),
    **{"vocab_size": 131072, "tie_word_embeddings": False, "max_position_embeddings": 262144},
    "rope_parameters": _YARN,
}

# By hub id. Only what decides about sizes, and what mlx-lm needs to build the network.
PUBLISHED: dict[str, Config] = {
    "mistralai/Mistral-7B-Instruct-v0.1": {
        **_MISTRAL,
        **_sizes(32, 4096, 14336, 32, 8, vocab_size=32000, sliding_window=4096),
    },
    "mistralai/Mistral-7B-Instruct-v0.2": {
        **_MISTRAL,
        **_sizes(32, 4096, 14336, 32, 8, vocab_size=32000),
    },
    "mistralai/Mistral-7B-Instruct-v0.3": {
        **_MISTRAL,
        **_sizes(32, 4096, 14336, 32, 8, vocab_size=32768),
    },
    "mistralai/Mistral-Nemo-Instruct-2407": {
        **_MISTRAL,
        **_sizes(40, 5120, 14336, 32, 8, vocab_size=131072),
    },
    "mistralai/Ministral-8B-Instruct-2410": {
        **_MISTRAL,
        **_sizes(36, 4096, 12288, 32, 8, vocab_size=131072, sliding_window=32768),
    },
    "mistralai/Ministral-3-8B-Instruct-2512-BF16": _within("mistral3", _MINISTRAL3),
    "mistralai/Mixtral-8x7B-Instruct-v0.1": {
        **{"model_type": "mixtral", "rms_norm_eps": 1e-5, "rope_theta": 1e6},
        **_sizes(32, 4096, 14336, 32, 8, vocab_size=32000, tie_word_embeddings=False),
        **{"num_local_experts": 8, "num_experts_per_tok": 2},
    },
    "meta-llama/Llama-3.1-8B-Instruct": {
        **_LLAMA,
        **_sizes(32, 4096, 14336, 32, 8, vocab_size=128256, tie_word_embeddings=False),
    },
    "meta-llama/Llama-3.2-3B-Instruct": {
        **_LLAMA,
        **_sizes(28, 3072, 8192, 24, 8, vocab_size=128256, head_dim=128, tie_word_embeddings=True),
    },
    "Qwen/Qwen2.5-7B-Instruct": {
        **_QWEN2,
        **_sizes(28, 3584, 18944, 28, 4, vocab_size=152064, tie_word_embeddings=False),
    },
    "Qwen/Qwen3-4B-Instruct-2507": {
        **_QWEN3,
        **_sizes(36, 2560, 9728, 32, 8, tie_word_embeddings=True, max_position_embeddings=262144),
    },
    "Qwen/Qwen3-8B": {
        **_QWEN3,
        **_sizes(36, 4096, 12288, 32, 8, tie_word_embeddings=False, max_position_embeddings=40960),
    },
    "Qwen/Qwen3-30B-A3B": {
        **{**_QWEN3, "model_type": "qwen3_moe"},
        **_sizes(48, 2048, 6144, 32, 4, tie_word_embeddings=False, max_position_embeddings=40960),
        **{"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768},
        **{"decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True},
    },
    "Qwen/Qwen3-Next-80B-A3B-Instruct": _QWEN3_NEXT,
    "Qwen/Qwen3.5-9B": _within("qwen3_5", _QWEN35, tie_word_embeddings=False),
    "google/gemma-2-9b-it": {**_GEMMA2, **_sizes(42, 3584, 14336, 16, 8)},
    "google/gemma-3-4b-it": _gemma3(34, 2560, 10240, 8, 4),
    "google/gemma-3-12b-it": _gemma3(48, 3840, 15360, 16, 8),
    "google/gemma-3n-E4B-it": _within("gemma3n", _GEMMA3N),
    "google/gemma-4-E4B-it": _within("gemma4", _GEMMA4),
    "microsoft/Phi-3-mini-4k-instruct": {
        **_PHI3,
        **_sizes(32, 3072, 8192, 32, 32, vocab_size=32064, tie_word_embeddings=False),
    },
    "microsoft/Phi-4-mini-instruct": {
        **_PHI3,
        **_sizes(32, 3072, 8192, 24, 8, vocab_size=200064, tie_word_embeddings=True),
        "partial_rotary_factor": 0.75,
    },
    "microsoft/phi-4": {
        **_PHI3,
        **_sizes(40, 5120, 17920, 40, 10, vocab_size=100352, tie_word_embeddings=False),
    },
    # Published with its experts in 4 bits (MXFP4), the rest in bfloat16.
    "openai/gpt-oss-20b": {
        **{"model_type": "gpt_oss", "head_dim": 64, "vocab_size": 201088, "sliding_window": 128},
        **_sizes(24, 2880, 2880, 64, 8, tie_word_embeddings=False),
        **{"num_local_experts": 32, "num_experts_per_tok": 4},
        "layer_types": _kinds(2, 24, "sliding_attention"),
        "quantization_config": {"quant_method": "mxfp4"},
    },
    "LiquidAI/LFM2-2.6B": {
        **{"model_type": "lfm2", "vocab_size": 65536, "norm_eps": 1e-5, "conv_bias": False},
        **_sizes(30, 2048, 10752, 32, 8, block_ff_dim=10752, block_dim=2048),
        **{"max_position_embeddings": 128000, "conv_L_cache": 3, "block_multiple_of": 256},
        **{"block_ffn_dim_multiplier": 1.0, "block_auto_adjust_ff_dim": False},
        "layer_types": ["full_attention" if i in _LFM2_ATTENTION else "conv" for i in range(30)],
        "tie_word_embeddings": True,
    },
    "HuggingFaceTB/SmolLM3-3B": {
        **{"model_type": "smollm3", "rms_norm_eps": 1e-6, "rope_theta": 5e6, "vocab_size": 128256},
        **_sizes(36, 2048, 11008, 16, 4, tie_word_embeddings=True),
    },
    "zai-org/GLM-4-9B-0414": {
        **{"model_type": "glm4", "head_dim": 128, "vocab_size": 151552, "attention_bias": False},
        **{"rms_norm_eps": 1e-5, "partial_rotary_factor": 0.5, "rope_theta": 1e4},
        **_sizes(40, 4096, 13696, 32, 2, tie_word_embeddings=False),
    },
    "allenai/Olmo-3-7B-Instruct": {
        **{"model_type": "olmo3", "vocab_size": 100278, "rms_norm_eps": 1e-6, "rope_theta": 5e5},
        **_sizes(32, 4096, 11008, 32, 32, tie_word_embeddings=False, sliding_window=4096),
        "max_position_embeddings": 65536,
        "layer_types": _kinds(4, 32, "sliding_attention"),
    },
}


def counted(config: Config) -> dict[str, int]:
    """Bytes of a model's weights: in 16, 8 and 4 bits, or as published if it is quantised so."""
    from mlx_lm.utils import quantize_model

    if config.get("quantization_config"):
        network = built(config)
        network.apply_to_modules(_experts_in_4_bits)
        return {"stored": size(network)}
    found = {"16": size(built(config))}
    for bits in (8, 4):
        quantized, _ = quantize_model(built(config), dict(config), 64, bits)
        found[str(bits)] = size(quantized)
    return found


def built(config: Config) -> nn.Module:
    """The network as mlx-lm builds it, in bfloat16; nothing is computed."""
    module = import_module(
        f"mlx_lm.models.{MODEL_REMAPPING.get(kind := config['model_type'], kind)}"
    )
    network: nn.Module = module.Model(module.ModelArgs.from_dict(config))
    text = config.get("text_config", config)
    for part in (network, getattr(network, "language_model", None)):
        # Some networks have a head of their own until they see that the weights have none.
        if part is not None and text["tie_word_embeddings"] and "lm_head" in part:
            part.pop("lm_head")
            part.tie_word_embeddings = True
    network.set_dtype(mx.bfloat16)
    return network


def size(network: nn.Module) -> int:
    """Bytes of all parameters."""
    leaves: list[tuple[str, mx.array]] = tree_flatten(network.parameters())  # type: ignore
    return sum(array.nbytes for _, array in leaves)


def _experts_in_4_bits(path: str, module: nn.Module) -> None:
    if path.endswith("experts"):
        nn.quantize(module, group_size=32, bits=4, mode="mxfp4")


def main() -> None:
    """Write the file, or check it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true")
    check: bool = parser.parse_args().check
    known = {}
    for name, config in sorted(PUBLISHED.items()):
        known[name] = {"config": config, "bytes": counted(config)}
        sizes = ", ".join(
            f"{bits}: {size / 1e9:.2f}" for bits, size in known[name]["bytes"].items()
        )
        print(f"{name}: GB {sizes}", flush=True)
    text = json.dumps(known, indent=1, sort_keys=True) + "\n"
    if not check:
        TARGET.write_text(text, encoding="utf-8")
    elif TARGET.read_text(encoding="utf-8") != text:
        sys.exit(f"{TARGET.name} says something else; run this script without --check")


if __name__ == "__main__":
    main()
