"""transformers' own models with forward hooks on their decoder blocks: an oracle nobody here wrote.

Knows nothing of mlx_steer and mlx. Each sequence is run alone, whole and uncached, with eager
attention; token ids come from transformers' own rendering of the chat template.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer

Array = NDArray[np.floating[Any]]
Steering = Mapping[int, Array]
"""What is added to the output of each block, 0-based: arrays of shape (hidden_size,)."""


@dataclass(frozen=True, eq=False)
class Run:
    """One forward pass: per layer (tokens, hidden_size), and logits (tokens, vocabulary)."""

    hidden: list[NDArray[np.float32]]
    logits: NDArray[np.float32]


@dataclass(frozen=True)
class Greedy:
    """A greedy continuation; each step's second best token and how far its logit lies below.

    The step that chose to stop is among these two, but has no token in `tokens`.
    """

    tokens: list[int]
    seconds: list[int]
    margins: list[float]


class HuggingFace:
    """A model folder as transformers computes it.

    Args:
        folder: With config.json, weights and tokenizer.
        dtype: Of weights and computation.
    """

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        self.model, info = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation="eager", output_loading_info=True
        )
        # A tensor that is missing would be drawn at random, one unexpected would be left out.
        assert not any(info.values()), info
        self.model.eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        decoder = self.model.get_decoder()
        # Llama 4's decoder is the model itself.
        self.blocks = decoder.layers if hasattr(decoder, "layers") else decoder.model.layers

    @property
    def kind(self) -> str:
        """The name of transformers' class."""
        return type(self.model).__name__

    def prompt_ids(self, prompt: str, system: str | None = None) -> list[int]:
        """One user turn up to and including the generation prompt."""
        messages = [{"role": "user", "content": prompt}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        return list(
            self.tokenizer.apply_chat_template(
                messages, tokenize=True, add_generation_prompt=True, return_dict=False
            )
        )

    def response_ids(self, response: str) -> list[int]:
        """A response's own tokens."""
        return list(self.tokenizer(response, add_special_tokens=False)["input_ids"])

    @torch.no_grad()
    def run(self, ids: Sequence[int], steering: Steering | None = None) -> Run:
        """Run one sequence; what is recorded of a layer has its steering in it."""
        hidden: list[NDArray[np.float32]] = []
        hooks = [
            block.register_forward_hook(_hook(hidden, (steering or {}).get(layer)))
            for layer, block in enumerate(self.blocks)
        ]
        try:
            out = self.model(torch.tensor([list(ids)]), use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        return Run(hidden, out.logits[0].float().numpy())

    def states(
        self, prompt: Sequence[int], response: Sequence[int], position: Literal["last", "mean"]
    ) -> NDArray[np.float64]:
        """Hidden states at the final response token, or their mean: (layers, hidden_size)."""
        start = len(prompt) + (len(response) - 1 if position == "last" else 0)
        hidden = np.stack(self.run([*prompt, *response]).hidden).astype(np.float64)
        return np.asarray(hidden[:, start:].mean(axis=1))

    def greedy(
        self,
        prompt: Sequence[int],
        max_tokens: int,
        steering: Steering | None = None,
        stop_ids: Collection[int] = (),
    ) -> Greedy:
        """Take the most likely token and run the whole sequence anew, again and again."""
        done = Greedy([], [], [])
        while len(done.tokens) < max_tokens:
            logits = self.run([*prompt, *done.tokens], steering).logits[-1]
            second, first = np.argsort(logits)[-2:].tolist()
            done.seconds.append(second)
            done.margins.append(float(logits[first] - logits[second]))
            if first in stop_ids:
                break
            done.tokens.append(first)
        return done


def first_row(hidden: torch.Tensor) -> NDArray[np.float32]:
    """The first row's hidden states, (tokens, hidden_size).

    Gemma 3n carries four streams before the rows, of which the first is the active one.
    """
    rows = hidden[0] if hidden.ndim == 4 else hidden
    return rows[0].float().numpy()


def _hook(into: list[NDArray[np.float32]], vector: Array | None) -> Any:
    def hook(block: torch.nn.Module, args: object, out: Any) -> Any:
        hidden = out[0] if isinstance(out, tuple) else out
        if vector is not None:
            hidden = hidden + torch.tensor(np.asarray(vector, np.float64)).to(hidden.dtype)
        into.append(first_row(hidden).copy())
        return (hidden, *out[1:]) if isinstance(out, tuple) else hidden

    return hook
