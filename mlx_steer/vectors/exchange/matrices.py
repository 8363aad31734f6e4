"""Matrices in one .pt file: persona vectors (a row a layer) and AxBench (a row a concept).

A persona vector file, `{trait}_response_avg_diff.pt`, has a row for each of transformers' hidden
states: row 0 is the embedding, row k the output of our layer k - 1, and the last is read after the
final norm. AxBench's `{model}_weight.pt` has a row for each concept, all of one layer, which stands
in its config only; it adds max_act x factor x row to the output of that layer.
"""

from pathlib import Path

from mlx_steer.errors import VectorError
from mlx_steer.vectors.exchange.foreign import ForeignVectors
from mlx_steer.vectors.exchange.torch_file import Tensor, TorchFile

_MOST_LAYERS = 1000


def read_persona(path: Path) -> ForeignVectors:
    """Read persona vectors' stack of all layers.

    Raises:
        VectorError: If the file is damaged or holds no matrix of one row a layer.
    """
    matrix = _matrix(path)
    rows = matrix.shape[0]
    if not 2 <= rows <= _MOST_LAYERS:
        raise VectorError(
            f"{path} has {rows:,} rows, which are not the embedding and the layers of a model"
        )
    return ForeignVectors(
        format="persona vectors",
        arrays={k - 1: matrix.row(k) for k in range(1, rows)},
        last_is_normed=True,
        notes=("row 0, the embedding, was left out; row k is layer k - 1",),
    )


def read_axbench(path: Path, layer: int | None, concept: int | None) -> ForeignVectors:
    """Read one concept of AxBench's weights.

    Args:
        path: The file.
        layer: The layer its config names.
        concept: The row, counted from 0.

    Raises:
        VectorError: If layer or concept is not given or not there, or the file is damaged.
    """
    matrix = _matrix(path)
    if layer is None or concept is None:
        raise VectorError(
            f"{path} holds {matrix.shape[0]:,} concepts of one layer and names neither; give "
            "--concept (a row, from 0) and --layer (from AxBench's config)"
        )
    if not 0 <= concept < matrix.shape[0]:
        raise VectorError(f"{path} has concepts 0 to {matrix.shape[0] - 1}, and no {concept}")
    return ForeignVectors(
        format="AxBench",
        arrays={layer: matrix.row(concept)},
        notes=(
            f"this is concept {concept}; AxBench adds max_act x factor x row, so its strength here "
            "is max_act x factor",
        ),
    )


def _matrix(path: Path) -> Tensor:
    content = TorchFile(path).content
    if not isinstance(content, Tensor) or len(content.shape) != 2 or 0 in content.shape:
        raise VectorError(f"{path} holds no matrix of vectors")
    return content
