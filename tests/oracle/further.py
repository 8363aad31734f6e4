"""Families whose published weights have other names or shapes than mlx-lm's own.

Their tiny folders are written by transformers, as publishers' are, and read by mlx-lm through its
model's `sanitize`. Where a publisher puts the text model into one that also sees and hears, ours
reads it from there, and transformers reads the text model alone: the same weights twice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from tests.helpers.tiny import BASE, GEMMA, HIDDEN, LAYERS, WINDOW, tiny_tokenizer
from tests.zoo.configs import CONV, DELTA, FULL, GEMMA_3N, GEMMA_4, LLAMA_4, SLIDING

_MIXED = [SLIDING, FULL] * (LAYERS // 2)
_EXPERTS = {"num_experts_per_tok": 2, "norm_topk_prob": True, "moe_intermediate_size": 32}

_CONFIGS: dict[str, dict[str, Any]] = {
    "smollm3": {"no_rope_layers": [1, 1, 0] * (LAYERS // 3), "tie_word_embeddings": True},
    "glm4": {"attention_bias": True, "head_dim": 16, "partial_rotary_factor": 0.5},
    "olmo3": {
        "sliding_window": WINDOW,
        "layer_types": _MIXED,
        "attention_bias": False,
        # The published one; of another transformers tells only the layers without a window.
        "rope_theta": 500000.0,
    },
    "lfm2": {
        **CONV,
        "layer_types": ["conv", FULL] * (LAYERS // 2),
        "full_attn_idxs": [1, 3, 5],
        "norm_eps": 1e-5,
        "tie_word_embeddings": True,
    },
    "gpt_oss": {
        "head_dim": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": WINDOW,
        "layer_types": _MIXED,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 8.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "original_max_position_embeddings": 32,
        },
    },
    "qwen3_next": {
        **DELTA,
        **_EXPERTS,
        "num_experts": 4,
        "head_dim": 16,
        "partial_rotary_factor": 0.5,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "shared_expert_intermediate_size": 32,
    },
    "qwen3_5": {
        **DELTA,
        "head_dim": 16,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
        },
    },
    "gemma3n": {**GEMMA, **GEMMA_3N, "sliding_window": WINDOW, "rope_theta": 1e6},
    "gemma4_text": {
        **GEMMA,
        **GEMMA_4,
        "sliding_window": WINDOW,
        "use_double_wide_mlp": True,
        "rope_parameters": {
            FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
            SLIDING: {"rope_type": "default", "rope_theta": 1e4},
        },
    },
    "llama4": {
        **LLAMA_4,
        "num_local_experts": 4,
        "no_rope_layers": [1, 1, 1, 0, 1, 1],
        "head_dim": 16,
        "attention_bias": False,
        "rope_scaling": None,
        # Short, so that queries past it are rescaled within the tests' sequences.
        "floor_scale": 16,
        "attn_scale": 0.1,
    },
}

# Where ours is published inside another model: its text model's type, and where its weights lie.
_INSIDE = {
    "qwen3_5": ("qwen3_5_text", "model.", "model.language_model."),
    "gemma3n": ("gemma3n_text", "model.", "model.language_model."),
    "llama4": ("llama4_text", "", "language_model."),
}


def write(model_type: str, path: Path) -> tuple[Path, Path]:
    """Write a family's tiny model twice; the folder for mlx-lm and the one for transformers."""
    values = {**BASE, **_CONFIGS[model_type]}
    if "rope_parameters" in values:
        del values["rope_theta"]
    text_type, own, inside = _INSIDE.get(model_type, (model_type, "", ""))
    torch.manual_seed(0)  # decays start at random; some draws sum ten times the rounding
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(text_type, **values))
    _draw(model)
    ours, theirs = path / "ours", path / "theirs"
    model.save_pretrained(theirs)
    for folder in (ours, theirs):
        tiny_tokenizer().save_pretrained(folder)
    saved = load_file(theirs / "model.safetensors")
    weights = {
        (inside + name.removeprefix(own) if name.startswith(own) else name): value
        for name, value in saved.items()
    }
    if model_type == "gpt_oss":
        weights = _as_packed(weights)
    if model_type == "gemma3n":
        weights |= _unused(weights)
    save_file(weights, ours / "model.safetensors", {"format": "pt"})
    config = {"model_type": model_type, **values}
    if inside:
        config = {**BASE, "model_type": model_type, "text_config": config}
    (ours / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return ours, theirs


def _as_packed(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """gpt-oss's experts with their axes as in the published 4-bit blocks, which mlx-lm reads."""
    return {
        (f"{name}.weight" if name.endswith("_proj") else name): (
            value.transpose(1, 2).contiguous() if name.endswith("_proj") else value
        )
        for name, value in weights.items()
    }


def _unused(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Keys and values of Gemma 3n's layers that share others': published, read, and not used."""
    first = LAYERS - GEMMA_3N["num_kv_shared_layers"]
    parts = ("k_proj", "v_proj", "k_norm")
    return {
        name.replace(".layers.0.", f".layers.{layer}."): -value
        for name, value in weights.items()
        if ".layers.0.self_attn." in name and any(part in name for part in parts)
        for layer in range(first, LAYERS)
    }


@torch.no_grad()
def _draw(model: torch.nn.Module) -> None:
    """Random weights by name, at scales at which a mistake shows (see `tests.helpers.tiny`)."""
    gemma = "gemma" in type(model).__name__.lower()
    for name, value in model.named_parameters():
        rng = np.random.default_rng([3, crc32(name.encode())])
        drawn = torch.tensor(rng.standard_normal(tuple(value.shape)), dtype=torch.float32)
        if value.ndim < 2:  # norms, biases, decays: near where the network puts them
            value.add_(0.2 * drawn)
            # Its last norm makes up for a small head, which is the embedding as well.
            value.mul_(5.0 if gemma and name.endswith("model.norm.weight") else 1.0)
        elif "embed" in name:
            value.copy_((0.06 if gemma else 0.5) * drawn)
        else:
            value.copy_(drawn * (3.0 if "lm_head" in name else 1.3) / value.shape[-1] ** 0.5)


assert HIDDEN == 64  # what the zoo's parts of configurations are made for
