"""Compare the steering vectors of one model in several precisions.

Extracts a behavior's vectors from the weights in float32, bfloat16, 8 and 4 bits, and prints each
layer's cosine with the float32 vector and the ratio of their norms. The quantised weights are made
by mlx-lm from the float32 ones (groups of 64) and dequantised again, which changes no value and
lets them run at float32 speed on Linux.
"""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import click

import mlx_steer  # puts OpenBLAS in front of MLX
from mlx_steer.engine.guard import load_model
from mlx_steer.errors import SteerError
from mlx_steer.extraction.pairs import extract
from mlx_steer.model.load import Model
from mlx_steer.vectors import LayerComparison, SteeringVectorSet, compare_vectors

PRECISIONS = ("bfloat16", "8-bit", "4-bit")
GROUP_SIZE = 64


@dataclass(frozen=True)
class Comparison:
    """The vectors of one precision beside those in float32; `norm_a` is this precision's."""

    precision: str
    seconds: float
    layers: list[LayerComparison]


def quantised(name: str, bits: int) -> Model:
    """The model in float32 with every weight that mlx-lm quantises at its quantised value."""
    from mlx_lm.utils import dequantize_model, quantize_model

    model = load_model(name, dtype="float32")
    config: dict[str, Any] = {}
    quantize_model(model.network, config, GROUP_SIZE, bits)
    dequantize_model(model.network)
    return model


def loaded(name: str, precision: str) -> Model:
    if precision.endswith("-bit"):
        return quantised(name, int(precision.removesuffix("-bit")))
    return load_model(name, dtype="float32" if precision == "float32" else "bfloat16")


def vectors_in(
    name: str, precision: str, behavior: str, layers: Sequence[int] | None
) -> tuple[SteeringVectorSet, float]:
    click.echo(f"{precision} ...", err=True)
    start = time.perf_counter()
    vectors = extract(loaded(name, precision), behavior, layers)
    return vectors, time.perf_counter() - start


def markdown(comparisons: Sequence[Comparison], reference: SteeringVectorSet) -> str:
    """One line per layer; per precision its cosine with float32 and the ratio of the norms."""
    names = [c.precision for c in comparisons]
    head = ["layer", "norm in float32", *(f"{n}: cosine" for n in names)]
    head += [f"{n}: norm ratio" for n in names]
    lines = [" | ".join(head), " | ".join("---:" for _ in head)]
    for i, layer in enumerate(reference):
        rows = [c.layers[i] for c in comparisons]
        cells = [str(layer), f"{reference[layer].norm:.2f}"]
        cells += [f"{row.cosine:.5f}" for row in rows]
        cells += [f"{row.norm_ratio:.4f}" for row in rows]
        lines.append(" | ".join(cells))
    return "\n".join(f"| {line} |" for line in lines)


@click.command()
@click.option("--model", "name", default="smollm2-135m", show_default=True, help="Model to load.")
@click.option("--behavior", default="refusal", show_default=True, help="Its contrast pairs.")
@click.option("--layers", help="Such as 8,12,15; all by default.")
@click.option("--precisions", default=",".join(PRECISIONS), show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def main(name: str, behavior: str, layers: str | None, precisions: str, as_json: bool) -> None:
    """Print how far lower precisions move a behavior's steering vectors."""
    wanted = precisions.split(",")
    if unknown := sorted(set(wanted) - set(PRECISIONS)):
        raise click.ClickException(f"no precision {unknown[0]!r}; use {', '.join(PRECISIONS)}")
    try:
        chosen = None if layers is None else [int(part) for part in layers.split(",")]
    except ValueError as error:
        raise click.ClickException(f"--layers takes numbers such as 8,12,15: {error}") from error
    try:
        reference, seconds = vectors_in(name, "float32", behavior, chosen)
        comparisons = []
        for precision in wanted:
            vectors, took = vectors_in(name, precision, behavior, chosen)
            layer_by_layer = compare_vectors(vectors, reference)
            comparisons.append(Comparison(precision, round(took, 1), layer_by_layer))
    except SteerError as error:
        raise click.ClickException(str(error)) from error
    if not as_json:
        click.echo(markdown(comparisons, reference))
        return
    report = {
        "model": name,
        "behavior": behavior,
        "pairs": reference.metadata.dataset and reference.metadata.dataset.pairs,
        "group_size": GROUP_SIZE,
        "mlx_steer": mlx_steer.__version__,
        "seconds": {"float32": round(seconds, 1)} | {c.precision: c.seconds for c in comparisons},
        "precisions": {c.precision: [asdict(row) for row in c.layers] for c in comparisons},
    }
    json.dump(report, sys.stdout, indent=2)
    click.echo()


if __name__ == "__main__":
    main()
