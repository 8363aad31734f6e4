"""Sliding windows that mlx-lm does not compute: right up to the window, and refused beyond it.

mlx-lm gives these families full attention everywhere, whatever config.json says of a window (the
published ones are Mistral v0.1's, Gemma 2's and those of some Phi 3). Beyond the window it is
another model than the one published; when it no longer is, the limit in mlx_steer/model/load.py
can go.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch

from mlx_steer import Condition, Job, complete, load_model
from mlx_steer.errors import GenerationError
from mlx_steer.generate import Sampling
from tests.oracle.hugging_face import HuggingFace
from tests.tiny import random_ids, tiny_folder

WINDOW, LENGTH = 16, 40
LOGIT_ERROR = 1e-3

QWEN = {"use_sliding_window": True, "max_window_layers": 2}
NOT_REFUSED = pytest.mark.xfail(
    strict=True, reason="longer prompts are not refused yet; no published model has this window"
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("mistral", {}),
        ("gemma2", {}),
        ("phi3", {}),
        pytest.param("mixtral", {}, marks=NOT_REFUSED),
        pytest.param("qwen2", QWEN, marks=NOT_REFUSED),
        pytest.param("qwen3", QWEN, marks=NOT_REFUSED),
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


def test_a_window_that_is_switched_off_is_no_limit(tmp_path: Path) -> None:
    """As in the published Qwen 2 models."""
    changes = {"use_sliding_window": False, "sliding_window": WINDOW, "max_window_layers": 2}
    folder = tiny_folder("qwen2", tmp_path, **changes)
    ours, theirs = load_model(str(folder)), HuggingFace(folder)
    ids = random_ids(0, LENGTH)
    logits = np.array(ours.network(mx.array([ids]))[0])
    assert np.abs(theirs.run(ids).logits - logits).max() < LOGIT_ERROR
    assert ours.context is not None and ours.context > LENGTH
