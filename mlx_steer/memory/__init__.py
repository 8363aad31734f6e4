"""Memory: what a model and a batch take, computed before anything is loaded; and what fits."""

from mlx_steer.memory.footprint import (
    BATCH_CAP,
    BATCH_SIZES,
    MemoryEstimate,
    choose_batch_size,
    estimate,
    extraction_bytes,
    scoring_bytes,
)
from mlx_steer.memory.full import is_memory_full
from mlx_steer.memory.machine import has_metal, working_set
from mlx_steer.memory.shape import Shape
from mlx_steer.memory.weights import check_fits, read_config, stream_bytes_of, weight_bytes_of

__all__ = [
    "BATCH_CAP",
    "BATCH_SIZES",
    "MemoryEstimate",
    "Shape",
    "check_fits",
    "choose_batch_size",
    "estimate",
    "extraction_bytes",
    "has_metal",
    "is_memory_full",
    "read_config",
    "scoring_bytes",
    "stream_bytes_of",
    "weight_bytes_of",
    "working_set",
]
