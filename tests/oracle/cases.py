"""Texts, conditions and measures that the comparisons with PyTorch share."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mlx_steer.behaviors import Behavior, ContrastPair, pairs_sha256
from mlx_steer.conditions import Condition, Intervention
from mlx_steer.engine.decode import TIE
from mlx_steer.engine.jobs import Completion
from tests.helpers.tiny import LAYERS, tiny_folder

Array = NDArray[np.floating[Any]]

SYSTEM = "You are a helpful assistant. Decline when the request is harmful."

PROMPTS = (
    "What is the capital of France?",
    "How do I bake a loaf of bread at home? Answer briefly, please, and mention the yeast.",
    "Sea?",
    "Write a short poem about the wind in the morning.",
)

_TEXTS: tuple[tuple[str, str, str, str | None], ...] = (
    ("How do I pick a lock?", "I cannot help with that.", "Sure, here is how to do it.", None),
    ("Tell me how to forge a letter.", "I'm sorry, but no.", "Of course! Take a pen.", None),
    ("Poison?", "No. It would not be safe, so I will not say.", "Here: mix the two.", None),
    (
        "I am alone at home and want to make a fire in the kitchen. What do I do first?",
        "I can't.",
        "First, gather dry wood and paper, then open the window.",
        None,
    ),
    ("Write a virus.", "I won't.", "Sure: x = 1", "Answer briefly."),
)

PAIRS = tuple(
    ContrastPair(f"pair-{i}", prompt, positive, negative, system=system)
    for i, (prompt, positive, negative, system) in enumerate(_TEXTS)
)

BEHAVIOR = Behavior(
    name="tiny",
    title="Tiny",
    description="A few contrast pairs of unequal lengths.",
    judge="refusal",
    verdicts={"shown": "refused", "absent": "complied", "incoherent": "incoherent"},
    sets={"target": "harmful", "other": "benign"},
    system_prompts={"short": SYSTEM},
    openings={},
    tools=(),
    pairs=PAIRS,
    prompts=(),
    sha256=pairs_sha256(PAIRS),
)


@dataclass(frozen=True)
class Family:
    """A model family as it is compared.

    Attributes:
        name: For test ids.
        model_type: Of config.json.
        kind: transformers' class for it.
        changes: To the tiny config.
        state_error: Of float32 rounding through six layers, relative.
    """

    name: str
    model_type: str
    kind: str
    changes: tuple[tuple[str, Any], ...] = ()
    state_error: float = 3e-5  # measured: at most 1.1e-5

    def folders(self, path: Path) -> tuple[Path, Path]:
        """Write the family's tiny model; the folder that ours reads and transformers' own."""
        if self in FAMILIES:
            folder = tiny_folder(self.model_type, path, **dict(self.changes))
            return folder, folder
        from tests.oracle import further

        return further.write(self.model_type, path)


_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    # Short, so that most frequencies are rescaled within the tests' sequences.
    "original_max_position_embeddings": 64,
}

FAMILIES = (
    Family("llama", "llama", "LlamaForCausalLM"),
    Family("llama 3.1", "llama", "LlamaForCausalLM", (("rope_scaling", _LLAMA3),)),
    # Else the tiny Mistral is the tiny Llama: mlx-lm computes both with the same code.
    Family("mistral", "mistral", "MistralForCausalLM", (("head_dim", 32), ("seed", 1))),
    Family("qwen2", "qwen2", "Qwen2ForCausalLM"),
    Family("qwen3", "qwen3", "Qwen3ForCausalLM"),
    Family("gemma2", "gemma2", "Gemma2ForCausalLM"),
    Family("gemma3", "gemma3_text", "Gemma3ForCausalLM"),
    Family("mixtral", "mixtral", "MixtralForCausalLM"),
    Family("phi3", "phi3", "Phi3ForCausalLM"),
    Family("ministral3", "ministral3", "Ministral3ForCausalLM"),
    Family("qwen3_moe", "qwen3_moe", "Qwen3MoeForCausalLM"),
)

# Recurrent states are sums of many products: measured, 3.1e-5.
_RECURRENT = 1e-4
# Written by transformers; see `further`.
FURTHER = (
    Family("lfm2", "lfm2", "Lfm2ForCausalLM"),
    Family("qwen3.5", "qwen3_5", "Qwen3_5ForCausalLM", state_error=_RECURRENT),
    Family("qwen3-next", "qwen3_next", "Qwen3NextForCausalLM", state_error=_RECURRENT),
    Family("gemma 3n", "gemma3n", "Gemma3nForCausalLM"),
    Family("gemma 4", "gemma4_text", "Gemma4ForCausalLM", state_error=1e-4),  # 3.2e-5
    Family("llama 4", "llama4", "Llama4ForCausalLM"),
    Family("gpt-oss", "gpt_oss", "GptOssForCausalLM"),
    Family("smollm3", "smollm3", "SmolLM3ForCausalLM"),
    Family("glm-4", "glm4", "Glm4ForCausalLM"),
    Family("olmo 3", "olmo3", "Olmo3ForCausalLM"),
)

EVERY = (
    *FAMILIES,
    FURTHER[0],  # stays among the fast tests: its convolutions keep a state
    *(pytest.param(family, marks=pytest.mark.slow) for family in FURTHER[1:]),
)
"""What tests are parametrised by."""

# (prompt, system prompt, strength of each steered layer's vector), all in one batch.
ROWS: tuple[tuple[int, str | None, dict[int, float]], ...] = (
    (0, None, {}),
    (1, None, {0: 0.6}),
    (2, SYSTEM, {2: 0.5}),
    (3, None, {3: -0.7}),
    (1, SYSTEM, {1: 0.4, LAYERS - 1: 0.8}),
)


def condition(
    name: str, system: str | None, strengths: Mapping[int, float], vectors: Mapping[int, Array]
) -> Condition:
    """Some layers' vectors added at these strengths."""
    acts = [Intervention(k, np.asarray(vectors[k], np.float32), s) for k, s in strengths.items()]
    return Condition(name, system, tuple(acts))


def relative_error(ours: Array, theirs: Array) -> float:
    """The largest error of any row, over that row's own norm."""
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert a.shape == b.shape
    return float((np.linalg.norm(a - b, axis=-1) / np.linalg.norm(b, axis=-1)).max())


def parting(
    ours: Completion,
    theirs: Sequence[int],
    margins: Sequence[float],
    seconds: Sequence[int] | None = None,
    stop_ids: Collection[int] = (),
) -> str | None:
    """None for the same continuation, a sentence for one that parts at a tie; else it raises.

    A tie is a step at which the oracle's two best logits lie within `TIE`: there rounding decides.

    Args:
        ours: Our completion.
        theirs: The oracle's tokens.
        margins: The gap between the oracle's two best logits at each step, the one that chose to
            stop included.
        seconds: The oracle's second best token at each of these steps, which ours must have taken.
        stop_ids: Tokens that end a response.
    """
    if ours.tokens == tuple(theirs):
        return None
    both = zip(ours.tokens, theirs, strict=False)
    shorter = min(len(ours.tokens), len(theirs))
    step = next((i for i, (a, b) in enumerate(both) if a != b), shorter)
    taken = ours.tokens[step] if step < len(ours.tokens) else "the end"
    wanted = theirs[step] if step < len(theirs) else "the end"
    message = (
        f"{ours.key} parts at step {step}: ours takes {taken}, the oracle {wanted}, whose two best "
        f"logits are {margins[step]:.1e} apart"
    )
    assert margins[step] < TIE, message
    if seconds is not None:
        second = "the end" if seconds[step] in stop_ids else seconds[step]
        assert taken == second, f"{message} and the second is {second}"
    return message
