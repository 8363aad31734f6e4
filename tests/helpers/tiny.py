"""Tiny random models of many families: milliseconds a pass, but no part of them is idle.

Weights are drawn by name from a seed, at scales at which a mistake shows: hidden norms of about 4
to 30, attention that is neither flat nor one-hot, logits with a standard deviation of about 3.
`tiny_model` builds a `Model` in memory; `tiny_folder` writes the very same weights as a folder in
Hugging Face's layout, which `load_model`, `mlx_lm.load` and transformers all read.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import MODEL_REMAPPING
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from mlx_steer.model.chat import ChatFormat
from mlx_steer.model.load import Model
from mlx_steer.vectors import ModelInfo

HIDDEN, LAYERS, VOCABULARY, CONTEXT, WINDOW = 64, 6, 320, 256, 8

PAD, BOS, EOS, END = "<pad>", "<bos>", "<eos>", "<|end|>"
SPECIAL = [PAD, BOS, EOS, END, "<|system|>", "<|user|>", "<|assistant|>"]

# Writes its own begin-of-sequence token, as Llama's and Mistral's do.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

_TEXTS = [
    "I cannot help with that request. I'm sorry, but it would not be safe.",
    "Sure, here is how you can do it. Of course, I am happy to help you with this.",
    "What is the capital of France? The capital of France is Paris.",
    "How do I bake a loaf of bread at home? Mix flour, water, salt and yeast.",
    "Write a short poem about the sea and the wind in the morning.",
    "You are a helpful assistant. Answer briefly. Decline when the request is harmful.",
]

BASE: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": CONTEXT,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": [2, 3],
    "hidden_act": "silu",
}
GEMMA: dict[str, Any] = {
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "tie_word_embeddings": True,
    "rms_norm_eps": 1e-6,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
}
_MIXED: dict[str, Any] = {"num_experts_per_tok": 2, "router_aux_loss_coef": 0.0}

YARN: dict[str, Any] = {
    "type": "yarn",
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 8.0,
    # Short, so that queries past it are rescaled within the tests' sequences.
    "original_max_position_embeddings": 32,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"architectures": ["LlamaForCausalLM"], "attention_bias": False, "mlp_bias": False},
    "mistral": {"architectures": ["MistralForCausalLM"], "sliding_window": None, "head_dim": 16},
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": True},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "head_dim": 32},
    "gemma2": {
        **GEMMA,
        "architectures": ["Gemma2ForCausalLM"],
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        # mlx-lm gives every layer full attention; within the context this says the same.
        "sliding_window": CONTEXT,
    },
    "gemma3_text": {
        **GEMMA,
        "architectures": ["Gemma3ForCausalLM"],
        "sliding_window": WINDOW,
        "sliding_window_pattern": 3,
        "rope_theta": 100000.0,
        "rope_local_base_freq": 10000.0,
    },
    "mixtral": {
        **_MIXED,
        "architectures": ["MixtralForCausalLM"],
        "num_local_experts": 4,
        "sliding_window": None,
    },
    "phi3": {"architectures": ["Phi3ForCausalLM"], "original_max_position_embeddings": CONTEXT},
    "ministral3": {
        "architectures": ["Ministral3ForCausalLM"],
        "head_dim": 16,
        "sliding_window": None,
        "rope_parameters": YARN,
    },
    "qwen3_moe": {
        **_MIXED,
        "architectures": ["Qwen3MoeForCausalLM"],
        "head_dim": 16,
        "num_experts": 4,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "moe_intermediate_size": 64,
        "norm_topk_prob": True,
    },
}

# Gain of a linear layer over keeping the size of its input, by the end of its name.
_GAINS = {
    "q_proj": 1.6,
    "k_proj": 1.6,
    "qkv_proj": 1.5,
    "o_proj": 1.2,
    "down_proj": 1.5,
    "gate": 2.0,
    "lm_head": 3.0,
}


def tiny_config(family: str, **changes: Any) -> dict[str, Any]:
    """The config.json of a family's tiny model, with some values changed."""
    config = {"model_type": family, **BASE, **FAMILIES[family], **changes}
    if "rope_parameters" in config:
        del config["rope_theta"]
    return config


def tiny_network(
    family: str, *, seed: int = 0, dtype: str = "float32", **changes: Any
) -> nn.Module:
    """The mlx-lm network of a family with random weights; the same seed gives the same weights."""
    config = tiny_config(family, **changes)
    module = import_module(f"mlx_lm.models.{MODEL_REMAPPING.get(family, family)}")
    network: nn.Module = module.Model(module.ModelArgs.from_dict(config))
    if config["tie_word_embeddings"] and hasattr(network, "sanitize"):
        network.sanitize({})  # Gemma 3 ties only when it sees weights without a head
    shapes = [(name, value.shape) for name, value in tree_flatten(network.parameters())]
    network.load_weights(
        [(n, mx.array(_weight(n, s, config, seed)).astype(getattr(mx, dtype))) for n, s in shapes]
    )
    network.eval()
    mx.eval(network.parameters())
    return network


def _weight(
    name: str, shape: tuple[int, ...], config: dict[str, Any], seed: int
) -> NDArray[np.float32]:
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    values = rng.standard_normal(shape)
    gemma = config["model_type"].startswith("gemma")
    part = name.removesuffix(".weight").removesuffix(".bias").split(".")[-1]
    if name.endswith(".bias"):
        values *= 0.3
    elif "norm" in part:
        # Heads are told apart sharply, else repetition sets in. Gemma's norms multiply by
        # 1 + weight, and its last one must make up for a small head.
        size = 1.6 if part in ("q_norm", "k_norm") else 7.0 if gemma and part == "norm" else 1.0
        values = size * (1.0 + 0.2 * values) - gemma
    elif part == "embed_tokens":
        # Gemma's is the head as well, and scaled up where it is read: were it large, the token
        # just read would always be the next one.
        values *= 0.06 if gemma else 0.5
    else:
        values *= _GAINS.get(part, 1.2) / np.sqrt(shape[-1])
    return values.astype(np.float32)


@cache
def _trained() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXTS, trainer)
    assert tokenizer.get_vocab_size() == VOCABULARY
    # By default it begins every text with a BOS of its own, as Llama's and Mistral's do.
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, SPECIAL.index(BOS))]
    )
    return str(tokenizer.to_str())


def tiny_tokenizer(template: str | None = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of 320 tokens that adds a BOS, with a chat template or None."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained()),
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        extra_special_tokens=SPECIAL[3:],
    )
    tokenizer.chat_template = template
    return tokenizer


def tiny_chat(
    template: str | None = CHAT_TEMPLATE, *, thinking: bool = False, stops: Iterable[int] = ()
) -> ChatFormat:
    """The chat format of the tiny tokenizer; `stops` are further tokens that end a response."""
    ends = {SPECIAL.index(EOS), SPECIAL.index(END), *stops}
    wrapped = TokenizerWrapper(tiny_tokenizer(template), eos_token_ids=ends)
    return ChatFormat(wrapped, "tiny", thinking)


def tiny_model(
    family: str = "llama",
    *,
    seed: int = 0,
    dtype: str = "float32",
    stops: Iterable[int] = (),
    **changes: Any,
) -> Model:
    """A `Model` in memory: the network of `tiny_network` and the chat format of `tiny_chat`."""
    config = tiny_config(family, **changes)
    return Model(
        network=tiny_network(family, seed=seed, dtype=dtype, **changes),
        chat=tiny_chat(stops=stops),
        info=ModelInfo(
            id=f"tiny/{family}",
            revision=None,
            model_type=family,
            quantization=None,
            fingerprint="0" * 64,
        ),
        hidden_size=config["hidden_size"],
        dtype=getattr(mx, dtype),
        context=config["max_position_embeddings"],
        config=config,
    )


def tiny_folder(
    family: str,
    path: Path,
    dtype: str = "float32",
    *,
    seed: int = 0,
    template: str | None = CHAT_TEMPLATE,
    **changes: Any,
) -> Path:
    """Write config.json, model.safetensors and the tokenizer; the weights are `tiny_network`'s."""
    path.mkdir(parents=True, exist_ok=True)
    config = {**tiny_config(family, **changes), "dtype": dtype}
    (path / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    network = tiny_network(family, seed=seed, dtype=dtype, **changes)
    weights = _as_published(dict(tree_flatten(network.parameters())))
    mx.save_safetensors(str(path / "model.safetensors"), weights, {"format": "pt"})
    tiny_tokenizer(template).save_pretrained(path)
    return path


def _as_published(weights: dict[str, mx.array]) -> dict[str, mx.array]:
    """Experts one by one and under the names they are published with; the rest as it is."""
    mixtral = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
    published: dict[str, mx.array] = {}
    for name, value in weights.items():
        if ".switch_mlp." not in name:
            published[name] = value
            continue
        block, part = name.removesuffix(".weight").split(".switch_mlp.")
        part = mixtral[part] if block.endswith("block_sparse_moe") else part
        for expert in range(value.shape[0]):
            published[f"{block}.experts.{expert}.{part}.weight"] = value[expert]
    return published


def random_vector(seed: int, norm: float = 12.0, size: int = HIDDEN) -> NDArray[np.float32]:
    """A random direction of some norm, float32, shape (size,)."""
    vector = np.random.default_rng([7, seed]).standard_normal(size)
    return (norm * vector / np.linalg.norm(vector)).astype(np.float32)


def random_ids(seed: int, length: int) -> tuple[int, ...]:
    """A prompt of ordinary random tokens behind a BOS."""
    rng = np.random.default_rng([11, seed])
    ordinary: Sequence[int] = rng.integers(len(SPECIAL), VOCABULARY, length - 1).tolist()
    return (SPECIAL.index(BOS), *ordinary)
