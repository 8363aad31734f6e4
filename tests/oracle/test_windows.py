"""Sliding windows that mlx-lm does not compute: right up to the window, and refused beyond it.

mlx-lm gives these families full attention everywhere, whatever config.json says of a window (the
published ones are Mistral v0.1's, Gemma 2's and those of some Phi 3). Beyond the window it is
another model than the one published; when it no longer is, the limit in mlx_steer/model/load.py
can go.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_steer import Condition, Job, complete, load_model
from mlx_steer.engine.jobs import Sampling
from mlx_steer.errors import GenerationError
from tests.helpers.tiny import random_ids, tiny_folder
from tests.oracle.hugging_face import HuggingFace

WINDOW, LENGTH = 16, 40
LOGIT_ERROR = 1e-3

QWEN = {"use_sliding_window": True, "max_window_layers": 2}


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("mistral", {}),
        ("gemma2", {}),
        ("phi3", {}),
        ("mixtral", {}),
        ("qwen2", QWEN),
        ("qwen3", QWEN),
        ("qwen3_moe", {**QWEN, "max_window_layers": 6}),  # which it does not heed
    ],
)
def test_logits_agree_up_to_the_window_and_longer_prompts_are_refused(
    family: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    folder = tiny_folder(family, tmp_path, sliding_window=WINDOW, **changes)
    ours, theirs = load_model(str(folder)), HuggingFace(folder)
    ids = random_ids(0, LENGTH)
    logits = np.array(ours.network(mx.array([ids]))[0])
    errors = np.abs(theirs.run(ids).logits - logits).max(axis=-1)
    assert errors[:WINDOW].max() < LOGIT_ERROR
    assert errors[WINDOW:].min() > 100 * LOGIT_ERROR
    assert ours.context == WINDOW
    with pytest.raises(GenerationError, match=f"exceed the {WINDOW}"):
        complete(ours, [Job("row", ids, Condition("base"))], Sampling(max_tokens=1))


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("qwen2", {"use_sliding_window": False, "max_window_layers": 2}),
        ("qwen3", {**QWEN, "max_window_layers": 6}),
        ("qwen3", {**QWEN, "layer_types": ["full_attention"] * 6}),
        ("qwen3_moe", {"use_sliding_window": False, "max_window_layers": 2}),
    ],
    ids=["switched off", "first layer beyond the last", "layer types", "off in a mixture"],
)
def test_a_window_that_no_layer_uses_is_no_limit(
    family: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    """The first is the case of the published Qwen 2 models."""
    folder = tiny_folder(family, tmp_path, sliding_window=WINDOW, **changes)
    ours, theirs = load_model(str(folder)), HuggingFace(folder)
    ids = random_ids(0, LENGTH)
    logits = np.array(ours.network(mx.array([ids]))[0])
    assert np.abs(theirs.run(ids).logits - logits).max() < LOGIT_ERROR
    assert ours.context is not None and ours.context > LENGTH
