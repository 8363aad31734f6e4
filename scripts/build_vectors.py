"""Make the shipped vectors: vectors/<behavior>_smollm2_135m, each with its model card.

    python scripts/build_vectors.py [--run RUN ...] [--out vectors]

Extraction multiplies in one thread (blas.py), and OpenBLAS is pinned to a build with one set of
kernels (pyproject.toml), so that the same bytes come out on every x86_64 Linux machine of the last
ten years. A run made with these vectors (`extract.vectors` in its config, or the same extraction)
becomes their evidence, `card.json`, and gives them its gates; what is there already is kept as long
as the vectors are the same.
"""

from collections.abc import Sequence
from pathlib import Path

import click

from mlx_steer import extract, load_model, load_vectors
from mlx_steer.behaviors import list_behaviors
from mlx_steer.errors import SteerError
from mlx_steer.model.hub import BUILT_IN
from mlx_steer.report.measured_effect import measured_effect
from mlx_steer.vectors import SteeringVectorSet
from mlx_steer.vectors.evidence import CARD_FILE, Evidence, evidence_in
from mlx_steer.vectors.folder import README_FILE
from mlx_steer.vectors.model_card import model_card

LAYERS = (14, 15, 16)
"""Those at which the built-in model can be moved; see docs/results.md."""


def folder_name(behavior: str) -> str:
    return f"{behavior}_{BUILT_IN.replace('-', '_')}"


def write(vectors: SteeringVectorSet, out: Path, runs: Sequence[Path]) -> Evidence | None:
    """Write one folder with what is known of its effect.

    Args:
        vectors: What to write.
        out: The folder.
        runs: Runs of any behaviors; the last one of this behavior is the evidence.
    """
    evidence = None
    for run in runs:
        measured = load_vectors(run / "vectors")
        if measured.metadata.behavior == vectors.metadata.behavior:
            evidence = measured_effect(vectors, run)
            vectors = with_gates(vectors, measured)
    if evidence is None and out.is_dir():
        evidence = kept(vectors, out)
        if evidence is not None:
            vectors = with_gates(vectors, load_vectors(out))
    card = model_card(vectors, out.name, evidence, folder=f"vectors/{out.name}")
    more = {README_FILE: card.encode()}
    if evidence is not None:
        more[CARD_FILE] = evidence.as_bytes()
    vectors.save(out, more)
    return evidence


def with_gates(vectors: SteeringVectorSet, others: SteeringVectorSet) -> SteeringVectorSet:
    """The vectors with the gates of others."""
    for gate, info in zip(others.gates, others.metadata.gates, strict=True):
        vectors = vectors.with_gate(gate, info)
    return vectors


def kept(vectors: SteeringVectorSet, out: Path) -> Evidence | None:
    """The evidence that is there, if it is of these vectors."""
    try:
        return evidence_in(out, vectors)
    except SteerError as error:
        click.echo(f"note: {error}", err=True)
        return None


@click.command(help=__doc__)
@click.option("--run", "runs", multiple=True, type=click.Path(path_type=Path, exists=True))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path(__file__).parents[1] / "vectors",
    help="The folder of the folders.",
)
def main(runs: tuple[Path, ...], out: Path) -> None:
    model = load_model(BUILT_IN)
    for behavior in list_behaviors():
        vectors = extract(model, behavior, LAYERS, token_position="mean")
        evidence = write(vectors, out / folder_name(behavior), runs)
        known = evidence.answer if evidence is not None else "not measured"
        click.echo(f"{folder_name(behavior)}: {known}")


if __name__ == "__main__":
    main()
