"""Small sets of steering vectors, with all that metadata says."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from mlx_steer.vectors import (
    DatasetInfo,
    ModelInfo,
    SteeringVector,
    SteeringVectorSet,
    VectorMetadata,
)
from mlx_steer.vectors.exchange.foreign import KnownModel

SIZE, NUM_LAYERS = 8, 32

MODEL = ModelInfo(
    id="tiny/llama", revision=None, model_type="llama", quantization=None, fingerprint="f00d"
)
KNOWN = KnownModel(MODEL, SIZE, NUM_LAYERS)


def metadata(**changes: Any) -> VectorMetadata:
    """All that metadata says, some of it changed; by default of a model of 32 layers of 8."""
    values: dict[str, Any] = {
        "behavior": "refusal",
        "method": "mean_difference",
        "token_position": "last",
        "hidden_size": SIZE,
        "num_layers": NUM_LAYERS,
        "model": MODEL,
        "chat_template_sha256": "a" * 64,
        "dataset": DatasetInfo(name="refusal", sha256="b" * 64, pairs=50),
        "seed": None,
    }
    return VectorMetadata(**(values | changes))


def vector(layer: int = 12, values: int = 0, hidden_norm: float = 10.0) -> SteeringVector:
    """One random vector of 8 numbers."""
    array = np.random.default_rng(values).standard_normal(SIZE)
    return SteeringVector(layer, array, hidden_norm)


def vector_set(
    layers: Iterable[int] = (1, 3, 5), values: int = 0, **changes: Any
) -> SteeringVectorSet:
    """Random vectors, and metadata with some values changed."""
    about = metadata(**changes)
    vectors = [
        SteeringVector(i, np.random.default_rng([values, i]).normal(size=about.hidden_size), 10 + i)
        for i in layers
    ]
    return SteeringVectorSet(vectors, about)
