"""The architectures whose GGUF files can be converted, and how each differs from Hugging Face's.

As llama.cpp's converter writes them: it renames tensors, stores the rows of Llama's queries and
keys as pairs that rotate together, and adds one to the weights of Gemma's norms.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from mlx_steer.errors import ModelError
from mlx_steer.gguf_header import Header

_LLAMA_BLOCK = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}
_BIASES = {
    "attn_q.bias": "self_attn.q_proj.bias",
    "attn_k.bias": "self_attn.k_proj.bias",
    "attn_v.bias": "self_attn.v_proj.bias",
}
_HEAD_NORMS = {
    "attn_q_norm.weight": "self_attn.q_norm.weight",
    "attn_k_norm.weight": "self_attn.k_norm.weight",
}
_GEMMA_NORMS = {
    "post_attention_norm.weight": "post_attention_layernorm.weight",
    "ffn_norm.weight": "pre_feedforward_layernorm.weight",
    "post_ffw_norm.weight": "post_feedforward_layernorm.weight",
}


@dataclass(frozen=True)
class Architecture:
    """An architecture.

    Attributes:
        name: What GGUF calls it, and the prefix of its metadata.
        title: What people call it.
        model_type: What config.json calls it.
        network: The class in transformers.
        block: The tensors of a decoder block: GGUF's name to Hugging Face's.
        rotates_pairs: Whether the rows of queries and keys are stored as pairs that rotate
            together.
        norm_offset: What GGUF's norm weights are larger by.
        ranks_by_place: Whether a SentencePiece vocabulary merges what stands first, first; by its
            score otherwise.
    """

    name: str
    title: str
    model_type: str
    network: str
    block: Mapping[str, str]
    rotates_pairs: bool = False
    norm_offset: float = 0.0
    ranks_by_place: bool = False


LLAMA = Architecture("llama", "Llama", "llama", "LlamaForCausalLM", _LLAMA_BLOCK, True)
QWEN2 = Architecture("qwen2", "Qwen2", "qwen2", "Qwen2ForCausalLM", {**_LLAMA_BLOCK, **_BIASES})
QWEN3 = Architecture("qwen3", "Qwen3", "qwen3", "Qwen3ForCausalLM", {**_LLAMA_BLOCK, **_HEAD_NORMS})
GEMMA3 = Architecture(
    "gemma3",
    "Gemma 3",
    "gemma3_text",
    "Gemma3ForCausalLM",
    {**_LLAMA_BLOCK, **_HEAD_NORMS, **_GEMMA_NORMS},
    norm_offset=1.0,
    ranks_by_place=True,
)

ARCHITECTURES = {known.name: known for known in (LLAMA, QWEN2, QWEN3, GEMMA3)}


def architecture_of(header: Header) -> Architecture:
    """A file's architecture.

    Raises:
        ModelError: If it is none of those that can be converted.
    """
    name = header.get("general.architecture", str)
    if name not in ARCHITECTURES:
        raise ModelError(
            f"{header.path} is of architecture '{name}'; only {', '.join(ARCHITECTURES)} can be "
            "converted, so use an MLX or Hugging Face folder of this model."
        )
    if header.metadata.get(f"{name}.expert_count"):
        raise ModelError(
            f"{header.path} is a mixture of experts; only dense models can be converted."
        )
    return ARCHITECTURES[name]
