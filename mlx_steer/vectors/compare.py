"""How alike two sets of steering vectors are, layer by layer."""

from dataclasses import dataclass

from mlx_steer.errors import VectorError
from mlx_steer.vectors.vector_set import SteeringVectorSet, layer_list


@dataclass(frozen=True)
class LayerComparison:
    """Two vectors of one layer; `norm_ratio` is norm_a / norm_b."""

    layer: int
    cosine: float
    norm_a: float
    norm_b: float
    norm_ratio: float


def compare_vectors(a: SteeringVectorSet, b: SteeringVectorSet) -> list[LayerComparison]:
    """Compares the layers that two sets share, in ascending order.

    Raises:
        VectorError: If they share no layer, their sizes differ, or a vector is zero.
    """
    shared = [layer for layer in a if layer in b]
    if a.metadata.hidden_size != b.metadata.hidden_size:
        raise VectorError(
            f"Vectors of hidden size {a.metadata.hidden_size} and {b.metadata.hidden_size} cannot "
            "be compared; take two sets of one model."
        )
    if not shared:
        raise VectorError(
            f"The two sets share no layer: one has {layer_list(a)}, the other {layer_list(b)}."
        )
    return [
        LayerComparison(
            layer=layer,
            cosine=a[layer].cosine(b[layer]),
            norm_a=a[layer].norm,
            norm_b=b[layer].norm,
            norm_ratio=a[layer].norm / b[layer].norm,
        )
        for layer in shared
    ]
