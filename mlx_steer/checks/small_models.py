"""A tiny random Llama with a byte tokenizer: a whole model in milliseconds, without any file."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from mlx_steer.model.chat import ChatFormat
from mlx_steer.model.load import Model
from mlx_steer.vectors import ModelInfo

_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
_CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 6,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
}


def small_model(dtype: str = "float32") -> Model:
    """Six layers of 64, weights from a fixed seed, large enough that no part is idle."""
    from mlx.utils import tree_flatten
    from mlx_lm.models.llama import Model as Network
    from mlx_lm.models.llama import ModelArgs

    chat = _byte_chat()
    config = {**_CONFIG, "vocab_size": len(chat.tokenizer.get_vocab())}
    network = Network(ModelArgs(**config))
    leaves: list[tuple[str, mx.array]] = tree_flatten(network.parameters())  # type: ignore
    rng = np.random.default_rng(0)
    drawn = []
    for name, value in leaves:
        if value.ndim == 1:
            drawn.append((name, mx.ones_like(value)))
            continue
        # Logits that differ by whole units, as a trained model's do.
        gain = 3.0 if "lm_head" in name else 1.5
        array = gain / np.sqrt(value.shape[-1]) * rng.standard_normal(value.shape)
        drawn.append((name, mx.array(array.astype(np.float32))))
    network.load_weights(drawn)
    network.set_dtype(getattr(mx, dtype))
    mx.eval(network.parameters())  # type: ignore[no-untyped-call]
    return Model(
        network=network,
        chat=chat,
        info=ModelInfo(
            id=f"tiny random llama, {dtype}",
            revision=None,
            model_type="llama",
            quantization=None,
            fingerprint="0" * 64,
        ),
        hidden_size=config["hidden_size"],
        dtype=getattr(mx, dtype),
        context=config["max_position_embeddings"],
        config=config,
    )


def _byte_chat() -> ChatFormat:
    """Every byte is a token; one more ends a response."""
    from mlx_lm.tokenizer_utils import TokenizerWrapper
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast: Any = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, eos_token="<end>"
    )
    fast.chat_template = _TEMPLATE
    return ChatFormat(TokenizerWrapper(fast, eos_token_ids={fast.eos_token_id}), "tiny")
