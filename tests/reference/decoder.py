"""A Llama, Mistral, Qwen2 or Qwen3 decoder in plain PyTorch, with steering and capture.

Written from the architecture, for checking and not for speed: whole sequences every time, no
cache, no padding. Layer i is the output of decoder block i, 0-based, before the final norm.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from .interventions import Gate, Steer, apply
from .weights import read_config, read_weights

Position = Literal["last", "mean"]

_LINEAR = tuple(f"self_attn.{p}_proj" for p in "qkvo") + tuple(
    f"mlp.{p}_proj" for p in ("gate", "up", "down")
)
_NORMS = ("input_layernorm", "post_attention_layernorm")
_HEAD_NORMS = ("self_attn.q_norm", "self_attn.k_norm")  # Qwen3 has them


@dataclass(frozen=True)
class Config:
    """The numbers of ``config.json`` that the computation needs."""

    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    tied: bool | None
    """Whether the head is the embedding; None if the config does not say: the weights do."""
    rope: Mapping[str, Any]
    windows: tuple[int | None, ...]
    """Per layer, the number of positions it attends to, its own included; None for all."""


@dataclass(frozen=True)
class Output:
    """A forward pass: logits (batch, length, vocabulary), hidden (batch, length, hidden_size)."""

    logits: Tensor
    hidden: dict[int, Tensor]


@dataclass(frozen=True)
class Continuation:
    """A greedy continuation.

    ``margins`` has the gap between the two largest logits of every step, the one that chose to
    stop included. The stop token itself is not among ``tokens``.
    """

    tokens: list[int]
    margins: list[float]
    finish_reason: Literal["stop", "length"]


def load(folder: str | Path, dtype: torch.dtype = torch.float32) -> "Decoder":
    """Load a model folder (``config.json`` and ``model*.safetensors``) to compute in ``dtype``.

    float64 shows how far float32 results are from exact ones.
    """
    config = read_config(folder)
    return Decoder(parse_config(config), read_weights(folder, config, dtype))


def parse_config(config: Mapping[str, Any]) -> Config:
    """Take what is needed from ``config.json``; refuse what would be computed wrongly."""
    model_type = config["model_type"]
    if model_type not in ("llama", "mistral", "qwen2", "qwen3"):
        raise ValueError(f"Model type {model_type!r} is not one this decoder computes.")
    if config.get("hidden_act", "silu") != "silu" or config.get("rope_traditional", False):
        raise ValueError("Only silu and half-rotation rotary embedding are computed here.")
    # transformers 5 writes rope_parameters; before, there were rope_theta and rope_scaling.
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope = {"rope_theta": config.get("rope_theta", 10000.0), **scaling}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3") or rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError(f"Rotary embedding {dict(rope)} is not computed here.")
    num_heads = config["num_attention_heads"]
    return Config(
        num_layers=config["num_hidden_layers"],
        hidden_size=config["hidden_size"],
        num_heads=num_heads,
        num_kv_heads=config.get("num_key_value_heads") or num_heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // num_heads,
        norm_eps=config["rms_norm_eps"],
        tied=config.get("tie_word_embeddings"),
        rope={**rope, "rope_type": kind},
        windows=_windows(config),
    )


def _windows(config: Mapping[str, Any]) -> tuple[int | None, ...]:
    """Return each layer's sliding window: all layers in Mistral, those the config names in Qwen.

    Some runtimes ignore Mistral's window; they agree with this decoder up to its length only.
    """
    layers = range(config["num_hidden_layers"])
    window: int | None = config.get("sliding_window")
    if config["model_type"] == "mistral":
        return tuple(window for _ in layers)
    if types := config.get("layer_types"):
        return tuple(window if types[i] == "sliding_attention" else None for i in layers)
    if not config.get("use_sliding_window", False):
        return tuple(None for _ in layers)
    return tuple(window if i >= config["max_window_layers"] else None for i in layers)


class Decoder:
    """A decoder-only transformer; its weights are a mapping from tensor names to tensors."""

    def __init__(self, config: Config, weights: dict[str, Tensor]) -> None:
        """Check that the tensors are those of the architecture: none missing, none unknown."""
        # Libraries differ in the default of tie_word_embeddings: without it, the file decides.
        tied = "lm_head.weight" not in weights if config.tied is None else config.tied
        self.config, self.weights = replace(config, tied=tied), weights
        blocks = [f"model.layers.{i}" for i in range(config.num_layers)]
        required = {f"{block}.{module}.weight" for block in blocks for module in _LINEAR + _NORMS}
        required |= {"model.embed_tokens.weight", "model.norm.weight"}
        required |= set() if tied else {"lm_head.weight"}
        optional = {f"{block}.{module}.bias" for block in blocks for module in _LINEAR}
        optional |= {f"{block}.{norm}.weight" for block in blocks for norm in _HEAD_NORMS}
        missing = required - weights.keys()
        unknown = weights.keys() - required - optional - {"lm_head.weight"}
        if missing or unknown:
            raise ValueError(f"Missing tensors {sorted(missing)}; unknown {sorted(unknown)}.")

    @torch.no_grad()
    def forward(
        self, ids: Tensor, steer: Sequence[Steer] = (), capture: Collection[int] = ()
    ) -> Output:
        """Compute logits at every position and the hidden states at the layers of ``capture``.

        Args:
            ids: token ids, shape (batch, length); rows of one length, no padding.
            steer: applied in this order where they share a layer.
            capture: layers; what is captured has the steering of its own layer in it.
        """
        for layer in [*capture, *(s.layer for s in steer)]:
            if not 0 <= layer < self.config.num_layers:
                raise ValueError(f"Layer {layer} is not in 0..{self.config.num_layers - 1}.")
        hidden = self.weights["model.embed_tokens.weight"][ids]
        cos, sin = self._rotary(ids.shape[1], hidden.dtype)
        captured: dict[int, Tensor] = {}
        for i in range(self.config.num_layers):
            block = f"model.layers.{i}"
            normed = self._norm(f"{block}.input_layernorm", hidden)
            hidden = hidden + self._attention(i, normed, cos, sin)
            normed = self._norm(f"{block}.post_attention_layernorm", hidden)
            gate = functional.silu(self._linear(f"{block}.mlp.gate_proj", normed))
            up = self._linear(f"{block}.mlp.up_proj", normed)
            hidden = hidden + self._linear(f"{block}.mlp.down_proj", gate * up)
            for s in steer:
                if s.layer == i:
                    hidden = apply(s, hidden)
            if i in capture:
                captured[i] = hidden
        head = "model.embed_tokens" if self.config.tied else "lm_head"
        logits = self._norm("model.norm", hidden) @ self.weights[f"{head}.weight"].T
        return Output(logits, captured)

    def _attention(self, layer: int, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Grouped-query attention of normed states (batch, length, hidden_size) to the same."""
        config, name = self.config, f"model.layers.{layer}.self_attn"
        batch, length, _ = x.shape

        def heads(projection: str, count: int) -> Tensor:
            y = self._linear(f"{name}.{projection}_proj", x)
            return y.view(batch, length, count, config.head_dim).transpose(1, 2)

        queries = heads("q", config.num_heads)
        keys = heads("k", config.num_kv_heads)
        values = heads("v", config.num_kv_heads)
        if f"{name}.q_norm.weight" in self.weights:  # Qwen3: per head, before the rotation
            queries = self._norm(f"{name}.q_norm", queries)
            keys = self._norm(f"{name}.k_norm", keys)
        queries, keys = _rotate(queries, cos, sin), _rotate(keys, cos, sin)
        # Query heads 0..g-1 share key-value head 0, the next g head 1, and so on.
        group = config.num_heads // config.num_kv_heads
        keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)

        distance = torch.arange(length)[:, None] - torch.arange(length)[None, :]
        visible = distance >= 0
        if (window := config.windows[layer]) is not None:
            visible &= distance < window
        scores = queries @ keys.transpose(-1, -2) / math.sqrt(config.head_dim)
        shares = scores.masked_fill(~visible, -math.inf).softmax(-1)
        mixed = (shares @ values).transpose(1, 2).reshape(batch, length, -1)
        return self._linear(f"{name}.o_proj", mixed)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return functional.linear(
            x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias")
        )

    def _norm(self, name: str, x: Tensor) -> Tensor:
        scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + self.config.norm_eps)
        return x * scale * self.weights[f"{name}.weight"]

    def _rotary(self, length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return cosines and sines, shape (length, head_dim / 2); angles are taken in float64."""
        rope, half = self.config.rope, self.config.head_dim // 2
        frequency = rope["rope_theta"] ** (-torch.arange(half, dtype=torch.float64) / half)
        if rope["rope_type"] == "llama3":
            # Slow frequencies are divided by the factor, fast ones kept, those between blended.
            turns = rope["original_max_position_embeddings"] * frequency / (2 * math.pi)
            low, high = rope["low_freq_factor"], rope["high_freq_factor"]
            kept = ((turns - low) / (high - low)).clamp(0, 1)
            frequency = frequency * (kept + (1 - kept) / rope["factor"])
        angles = torch.arange(length, dtype=torch.float64)[:, None] * frequency
        return angles.cos().to(dtype), angles.sin().to(dtype)

    def gate_score(self, gate: Gate, prompt: Sequence[int]) -> float:
        """Return the gate's score of a prompt, from an unsteered forward pass of it alone."""
        output = self.forward(torch.tensor([list(prompt)]), capture=[gate.layer])
        return gate.score(output.hidden[gate.layer][0, -1])

    def greedy(
        self,
        prompt: Sequence[int],
        max_tokens: int,
        steer: Sequence[Steer] = (),
        stop_ids: Collection[int] = (),
        gate: Gate | None = None,
    ) -> Continuation:
        """Continue a prompt by the most likely token, the whole sequence anew at each step.

        Interventions without a ``prompt_length`` get this prompt's. With a gate they apply only
        if it is open; a shut gate gives the base continuation.
        """
        if gate is not None and self.gate_score(gate, prompt) < gate.threshold:
            steer = ()
        steer = [replace(s, prompt_length=s.prompt_length or len(prompt)) for s in steer]
        tokens: list[int] = []
        margins: list[float] = []
        while len(tokens) < max_tokens:
            logits = self.forward(torch.tensor([[*prompt, *tokens]]), steer).logits[0, -1]
            first, second = logits.topk(2).values.tolist()
            margins.append(first - second)
            token = int(logits.argmax())
            if token in stop_ids:
                return Continuation(tokens, margins, "stop")
            tokens.append(token)
        return Continuation(tokens, margins, "length")

    def states(
        self,
        sequences: Sequence[Sequence[int]],
        layers: Collection[int],
        position: Position = "last",
        prompt_lengths: Sequence[int] | None = None,
    ) -> dict[int, NDArray[np.float64]]:
        """Read one hidden state per sequence and layer, one sequence at a time.

        Args:
            sequences: prompt ids followed by response ids, each.
            layers: the layers to read.
            position: ``last``: at the final token; ``mean``: the mean over all response tokens.
            prompt_lengths: the number of prompt tokens of each sequence; needed for ``mean``.

        Returns:
            Per layer, shape (number of sequences, hidden_size).
        """
        starts: Sequence[int] = [len(ids) - 1 for ids in sequences]
        if position == "mean":
            if prompt_lengths is None:
                raise ValueError("The mean over response tokens needs prompt_lengths.")
            starts = prompt_lengths
        rows: dict[int, list[NDArray[np.float64]]] = {layer: [] for layer in layers}
        for ids, start in zip(sequences, starts, strict=True):
            if not 0 <= start < len(ids):
                raise ValueError(f"A sequence of {len(ids)} tokens has none from {start} on.")
            hidden = self.forward(torch.tensor([list(ids)]), capture=layers).hidden
            for layer in layers:
                rows[layer].append(hidden[layer][0, start:].double().mean(0).numpy())
        return {layer: np.stack(rows[layer]) for layer in layers}

    def mean_difference(
        self,
        positive: Sequence[Sequence[int]],
        negative: Sequence[Sequence[int]],
        layers: Collection[int],
        position: Position = "last",
        prompt_lengths: tuple[Sequence[int], Sequence[int]] | None = None,
    ) -> dict[int, NDArray[np.float32]]:
        """Return the steering vector per layer: mean(positive) - mean(negative), not normalised.

        Sums are in float64, rounded once at the end. ``prompt_lengths`` are those of the
        positive and of the negative sequences. Method: Rimsky et al. 2023, arXiv:2312.06681.
        """
        of_positive, of_negative = prompt_lengths or (None, None)
        shown = self.states(positive, layers, position, of_positive)
        absent = self.states(negative, layers, position, of_negative)
        return {i: (shown[i].mean(0) - absent[i].mean(0)).astype(np.float32) for i in layers}


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (x[j], x[j + head_dim / 2]) by their position's angles."""
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
