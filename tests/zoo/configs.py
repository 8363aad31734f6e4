"""Tiny configurations of every model type of mlx-lm that runs on a CPU.

`COMMON` has whatever most types ask for, under all the names they use; a type takes what it knows.
Left out are `bitnet` and `muse_spark` (they need Metal), `olmo` (its code is in another package)
and `prism_hadamard_qwen35` (only its packed 2-bit weights can be loaded).
"""

from __future__ import annotations

from typing import Any

from tests.helpers.tiny import YARN

Config = dict[str, Any]

FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"
MIXED = [SLIDING, FULL] * 2

COMMON: Config = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_layers": 4,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 320,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    # norms
    "rms_norm_eps": 1e-5,
    "layer_norm_eps": 1e-5,
    "layer_norm_epsilon": 1e-5,
    "layernorm_epsilon": 1e-5,
    "norm_eps": 1e-5,
    "norm_epsilon": 1e-5,
    # biases
    "attention_bias": False,
    "mlp_bias": False,
    "use_bias": False,
    "bias": False,
    "use_qkv_bias": True,
    # positions and windows
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "partial_rotary_factor": 0.5,
    "sliding_window": 8,
    # experts
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "shared_intermediate_size": 32,
    "norm_topk_prob": True,
    "first_k_dense_replace": 1,
    "decoder_sparse_step": 1,
    "moe_layer_freq": 1,
    "mlp_only_layers": [],
    "routed_scaling_factor": 1.0,
    "n_group": 1,
    "topk_group": 1,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    # latent attention
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    # scales
    "logits_scaling": 1.0,
    "attention_multiplier": 0.25,
    "embedding_multiplier": 2.0,
    "residual_multiplier": 0.5,
}


def text(model_type: str, **changes: Any) -> Config:
    """The configuration of a text model inside another one."""
    return {"text_config": {**COMMON, "model_type": model_type, **changes}}


ROPES = {kind: {"rope_type": "default", "rope_theta": 1e4} for kind in (FULL, SLIDING)}
DELTA: Config = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_conv_kernel_dim": 4,
    "full_attention_interval": 2,
}
MAMBA: Config = {
    "conv_kernel": 4,
    "n_groups": 2,
    "use_conv_bias": True,
    "state_size": 16,
    "time_step_rank": "auto",
}
CONV: Config = {
    "conv_bias": False,
    "conv_L_cache": 3,
    "block_dim": 64,
    "block_ff_dim": 96,
    "block_multiple_of": 4,
    "block_ffn_dim_multiplier": 1.0,
    "block_auto_adjust_ff_dim": True,
    "layer_types": ["conv", FULL] * 2,
    "full_attn_idxs": [1, 3],
    "num_dense_layers": 1,
    "use_expert_bias": True,
}
GEMMA_3N: Config = {
    "num_hidden_layers": 6,
    "num_kv_shared_layers": 2,
    "vocab_size_per_layer_input": 320,
    "hidden_size_per_layer_input": 16,
    "rope_local_base_freq": 10000.0,
    "final_logit_softcapping": 30.0,
    "layer_types": [SLIDING, FULL] * 3,
    "activation_sparsity_pattern": [0.5, 0.5, 0.0, 0.0, 0.0, 0.0],
    "altup_num_inputs": 4,
    "altup_coef_clip": 120.0,
    "altup_correct_scale": True,
    "altup_active_idx": 0,
    "laurel_rank": 8,
}
GEMMA_4: Config = {
    "num_hidden_layers": 6,
    "num_kv_shared_layers": 2,
    "global_head_dim": 32,
    "vocab_size_per_layer_input": 320,
    "hidden_size_per_layer_input": 16,
    "final_logit_softcapping": 30.0,
    "layer_types": [SLIDING, FULL] * 3,
    "sliding_window_pattern": 2,
    "rope_parameters": {
        FULL: {"partial_rotary_factor": 0.25, "rope_theta": 1e6},
        SLIDING: {"rope_theta": 1e4},
    },
}
LLAMA_4: Config = {
    "intermediate_size_mlp": 96,
    "no_rope_layers": [1, 1, 1, 0],
    "use_qk_norm": True,
    "attention_chunk_size": 8,
    "interleave_moe_layer_step": 2,
    "num_experts_per_tok": 1,
}
LONGCAT: Config = {
    "attention_method": "MLA",
    "zero_expert_type": "identity",
    "ffn_hidden_size": 96,
    "expert_ffn_hidden_size": 32,
    "moe_topk": 2,
    "zero_expert_num": 2,
    "mla_scale_q_lora": True,
    "mla_scale_kv_lora": True,
}
LATENT: Config = {"rope_scaling": YARN}
INDEXED: Config = {"index_head_dim": 16, "index_n_heads": 4, "index_topk": 8}
LINEAR_KIMI: Config = {
    "num_heads": 4,
    "head_dim": 16,
    "kda_layers": [1, 3],
    "full_attn_layers": [2, 4],
    "short_conv_kernel_size": 4,
}
MINICPM: Config = {"dim_model_base": 64, "scale_depth": 1.4, "scale_emb": 4}
BAILING: Config = {"layer_group_size": 2, "group_norm_size": 2, "num_key_value_heads": 4}

_AS_COMMON = """
    Klear bailing_moe bailing_moe_v3 cohere cohere2 deepseek deepseek_v3 deepseek_v41 dots1
    ernie4_5 exaone falcon_h1 gemma gemma2 glm glm4 glm4_moe_lite gpt_oss granite granitemoe
    helium hunyuan_v1_dense internlm2 internlm3 iquestloopcoder laguna llama mimo mixtral
    muse_glimmer nanbeige nanochat olmo2 olmo3 olmoe phi phi3 phimoe qwen2 qwen2_moe qwen3
    qwen3_moe seed_oss smollm3 stablelm starcoder2 talkie telechat3 youtu_llm
"""

_CHANGES: dict[str, Config] = {
    "afm7": {
        "hidden_dim": 64,
        "num_layers": 6,
        "num_kv_reuse_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "hidden_dim_scale_factor": 2.0,
    },
    "afmoe": {"layer_types": MIXED},
    "apertus": {"post_norm": True, "qk_norm": True},
    "baichuan_m1": {"sliding_window_layers": [0, 2], "conv_window": 2},
    "bailing_hybrid": BAILING,
    "bailing_moe_linear": BAILING,
    "dbrx": {
        "d_model": 64,
        "n_layers": 4,
        "n_heads": 4,
        "ffn_config": {"ffn_hidden_size": 96, "moe_num_experts": 4, "moe_top_k": 2},
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 1e4},
    },
    "deepseek_v2": LATENT,
    "deepseek_v32": INDEXED,
    "ernie4_5_moe": {"moe_num_experts": 4},
    "exaone4": {"sliding_window_pattern": "LLLG"},
    "exaone_moe": {"layer_types": MIXED, "is_moe_layer": [False, True, True, True]},
    "gear": {"layer_types": MIXED},
    "gemma3": text("gemma3_text", sliding_window_pattern=2),
    "gemma3_text": {"sliding_window_pattern": 2},
    "gemma3n": text("gemma3n", **GEMMA_3N),
    "gemma4": text("gemma4_text", **GEMMA_4),
    "gemma4_text": GEMMA_4,
    "glm4_moe": {"use_qk_norm": True},
    "glm_moe_dsa": {**INDEXED, "rope_parameters": {"rope_theta": 1e4}},
    "gpt2": {"n_ctx": 256, "n_embd": 64, "n_head": 4, "n_layer": 4, "n_positions": 256},
    "gpt_bigcode": {"n_embd": 64, "n_layer": 4, "n_inner": 96, "n_head": 4, "n_positions": 256},
    "gpt_neox": {"rotary_emb_base": 10000, "rotary_pct": 0.5},
    "gptj": {"n_embd": 64, "n_positions": 256, "n_head": 4, "rotary_dim": 16, "n_layer": 4},
    "granitemoehybrid": {
        "layer_types": ["mamba", "attention"] * 2,
        "mamba_n_heads": 4,
        "mamba_d_head": 32,
        "mamba_proj_bias": False,
        "mamba_d_state": 16,
        "mamba_d_conv": 4,
        "mamba_n_groups": 1,
        "mamba_conv_bias": True,
    },
    "hunyuan": {
        "moe_topk": 2,
        "num_shared_expert": 1,
        "use_mixed_mlp_moe": True,
        "use_qk_norm": True,
        "use_cla": True,
        "cla_share_factor": 2,
        "rope_scaling": {"type": "dynamic", "factor": 1.0, "alpha": 1.0},
    },
    "jamba": {
        "attn_layer_offset": 1,
        "attn_layer_period": 2,
        "expert_layer_offset": 1,
        "expert_layer_period": 2,
        "mamba_d_conv": 4,
        "mamba_d_state": 16,
        "mamba_expand": 2,
    },
    "kimi_k25": text("kimi_k25", **LATENT),
    "kimi_k3": text(
        "kimi_linear", hidden_act="situ", num_key_value_heads=4, linear_attn_config=LINEAR_KIMI
    ),
    "kimi_linear": {"linear_attn_config": LINEAR_KIMI, "model_max_length": 256},
    "kimi_vl": text("kimi_vl", **LATENT),
    "lfm2": CONV,
    "lfm2-vl": text("lfm2", **CONV),
    "lfm2_moe": CONV,
    "lille-130m": {"block_size": 256, "n_embd": 64, "n_head": 4, "n_kv_heads": 2, "n_layer": 4},
    "llama4": text("llama4_text", **LLAMA_4),
    "llama4_text": LLAMA_4,
    "longcat_flash": LONGCAT,
    "longcat_flash_ngram": LONGCAT,
    "mamba": MAMBA,
    "mamba2": {**MAMBA, "num_heads": 8, "time_step_limit": (0.001, 10.0)},
    "mellum": {"layer_types": MIXED, "rope_parameters": ROPES},
    "mimo_v2_flash": {
        "hybrid_layer_pattern": [0, 1, 0, 1],
        "moe_layer_freq": [0, 1, 0, 1],
        "add_swa_attention_sink_bias": True,
        "add_full_attention_sink_bias": False,
        "sliding_window_size": 8,
        "swa_rope_theta": 1e4,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 2,
        "swa_head_dim": 16,
        "swa_v_head_dim": 16,
    },
    "minicpm": MINICPM,
    "minicpm3": {
        **MINICPM,
        "rope_scaling": {
            "type": "longrope",
            "factor": 1.0,
            "original_max_position_embeddings": 256,
            "short_factor": [1.0] * 4,
            "long_factor": [1.0] * 4,
        },
    },
    "minimax": {"rotary_dim": 8},
    "minimax_m3_vl": text(
        "minimax_m3", moe_layer_freq=[0, 1, 1, 1], dense_intermediate_size=96, shared_experts=1
    ),
    "ministral3": {"rope_parameters": YARN},
    "mistral3": text("ministral3", rope_parameters=YARN),
    "mistral4": {"rope_parameters": YARN},
    "nemotron": {"hidden_act": "relu2"},
    "nemotron-nas": {
        "block_configs": [
            {"attention": {"n_heads_in_group": 2}, "ffn": {"ffn_mult": 1.5}},
            {"attention": {"no_op": True}, "ffn": {"ffn_mult": 1.5}},
            {"attention": {"replace_with_linear": True}, "ffn": {"no_op": True}},
            {"attention": {"n_heads_in_group": 2}, "ffn": {"ffn_mult": 1.0}},
        ]
    },
    "nemotron_h": {
        **MAMBA,
        "hybrid_override_pattern": "M-*-M*",
        "num_hidden_layers": 6,
        "mamba_num_heads": 4,
        "mamba_head_dim": 32,
        "mamba_proj_bias": False,
        "ssm_state_size": 16,
    },
    "olmo_hybrid": {
        **DELTA,
        "linear_allow_neg_eigval": True,
        "layer_types": [LINEAR, FULL] * 2,
    },
    "openelm": {
        "num_transformer_layers": 4,
        "model_dim": 64,
        "ffn_dim_divisor": 16,
        "num_query_heads": [4] * 4,
        "num_kv_heads": [2] * 4,
        "ffn_multipliers": [1.0, 1.5, 2.0, 2.0],
    },
    "phi3small": {
        "dense_attention_every_n_layers": 2,
        "ff_intermediate_size": 96,
        "gegelu_limit": 20.0,
        "vocab_size": 100352,  # it masks tokens by their published ids
    },
    "phixtral": {
        "num_vocab": 320,
        "model_dim": 64,
        "num_heads": 4,
        "num_layers": 4,
        "rotary_dim": 8,
    },
    "pixtral": text("llama"),
    "plamo": {"n_shared_head": 2},
    "plamo2": {
        "hidden_size_per_head": 16,
        "attention_window_size": 8,
        "mamba_d_state": 16,
        "mamba_num_heads": 4,
    },
    # Right up to its window, beyond which prompts are refused.
    "plamo3": {"window_size": 128, "sliding_window": 128, "sliding_window_pattern": 2},
    "qwen": {"kv_channels": 16, "intermediate_size": 192},
    "qwen2_vl": text("qwen2"),
    "qwen3_5": text("qwen3_5", **DELTA),
    "qwen3_5_moe": text("qwen3_5_moe", **DELTA),
    "qwen3_next": DELTA,
    "qwen3_vl": text("qwen3"),
    "qwen3_vl_moe": text("qwen3_moe"),
    "recurrent_gemma": {
        "conv1d_width": 4,
        "logits_soft_cap": 30.0,
        "attention_window_size": 8,
        "block_types": ["recurrent", "attention"],
        "num_key_value_heads": 1,
    },
    "rwkv7": {
        "a_low_rank_dim": 16,
        "v_low_rank_dim": 16,
        "gate_low_rank_dim": 16,
        "decay_low_rank_dim": 16,
    },
    "spark2_5": {"hidden_act": "gelu", "layer_types": MIXED, "rope_parameters": ROPES},
    "step3p5": {
        "num_attention_groups": 2,
        "layer_types": MIXED,
        "moe_num_experts": 4,
        "moe_top_k": 2,
        "share_expert_dim": 32,
        "moe_layers_enum": "2,3",
    },
}

TYPES = sorted([*_AS_COMMON.split(), *_CHANGES], key=str.lower)


def config_of(model_type: str) -> Config:
    """The tiny configuration of a model type."""
    return {**COMMON, "model_type": model_type, **_CHANGES.get(model_type, {})}
