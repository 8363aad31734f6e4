"""Steering vectors, their algebra and their folder on disk; knows numpy and json, never mlx.

A vectors folder holds `layer_<i>.npy` per layer, `gate_<name>.npy` per gate and `metadata.json`.
The same vectors give the same bytes, and nothing in the folder is ever unpickled.
"""

from mlx_steer.vectors.compare import LayerComparison, compare_vectors
from mlx_steer.vectors.metadata import (
    FORMAT_VERSION,
    LAYER_CONVENTION,
    METADATA_FILE,
    DatasetInfo,
    GateInfo,
    LayerInfo,
    ModelInfo,
    SourceInfo,
    VectorMetadata,
)
from mlx_steer.vectors.vector import SteeringVector, relative_dose
from mlx_steer.vectors.vector_set import SteeringVectorSet, load_vectors

__all__ = [
    "FORMAT_VERSION",
    "LAYER_CONVENTION",
    "METADATA_FILE",
    "DatasetInfo",
    "GateInfo",
    "LayerComparison",
    "LayerInfo",
    "ModelInfo",
    "SourceInfo",
    "SteeringVector",
    "SteeringVectorSet",
    "VectorMetadata",
    "compare_vectors",
    "load_vectors",
    "relative_dose",
]
