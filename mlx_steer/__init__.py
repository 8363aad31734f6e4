"""Measure and apply activation steering on language models with MLX.

Importing this package is light: names are loaded when they are first used. On Linux it puts
OpenBLAS in front of MLX, and everywhere it keeps MLX's float32 products in float32 (unless
`MLX_ENABLE_TF32` is set already), so import it before `mlx`.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from mlx_steer.blas import openblas_status

if TYPE_CHECKING:
    from mlx_steer.behaviors import ContrastPair, PromptItem, load_behavior
    from mlx_steer.conditions import Condition, Intervention
    from mlx_steer.engine.complete import complete
    from mlx_steer.engine.guard import load_model
    from mlx_steer.engine.jobs import Completion, Job
    from mlx_steer.engine.steered import steered
    from mlx_steer.extraction.pairs import extract
    from mlx_steer.judge import Judgement, judge_refusal
    from mlx_steer.model.load import Model
    from mlx_steer.vectors import SteeringVector, SteeringVectorSet, load_vectors

__version__ = "0.1.0"

# By default MLX rounds the factors of float32 products to some 10 bits where the GPU has matrix
# units (M5, CUDA): a thousand times float32's own error, by which a row in a batch differs from the
# row alone. MLX reads this once, at its first product.
os.environ.setdefault("MLX_ENABLE_TF32", "0")

blas_status = openblas_status()

_HOMES = {
    "Completion": "engine.complete",
    "Condition": "conditions",
    "ContrastPair": "behaviors",
    "Intervention": "conditions",
    "Job": "engine.complete",
    "Judgement": "judge",
    "Model": "model.load",
    "PromptItem": "behaviors",
    "SteeringVector": "vectors",
    "SteeringVectorSet": "vectors",
    "complete": "engine.complete",
    "extract": "extraction.pairs",
    "judge_refusal": "judge",
    "load_behavior": "behaviors",
    "load_model": "engine.guard",
    "load_vectors": "vectors",
    "steered": "engine.steered",
}

__all__ = [
    "Completion",
    "Condition",
    "ContrastPair",
    "Intervention",
    "Job",
    "Judgement",
    "Model",
    "PromptItem",
    "SteeringVector",
    "SteeringVectorSet",
    "__version__",
    "blas_status",
    "complete",
    "extract",
    "judge_refusal",
    "load_behavior",
    "load_model",
    "load_vectors",
    "steered",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mlx_steer' has no attribute {name!r}")
    return getattr(import_module(f"mlx_steer.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
