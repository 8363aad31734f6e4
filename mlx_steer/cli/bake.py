"""bake."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlx_steer.cli.options import FACTOR, LAYERS

if TYPE_CHECKING:
    from mlx_steer.model.bake import BakeOperator


@click.command(short_help="Write a model folder that is steered by its weights.")
@click.option("--model", "-m", required=True, metavar="MODEL", help="As for extract.")
@click.option("--revision", help="A branch, tag or commit of the hub.")
@click.option("--quantize", type=click.Choice(["4", "8"]), help="Convert original weights first.")
@click.option("--vectors", "folder", required=True, type=click.Path(path_type=Path))
@click.option("--layer", "layers", required=True, type=LAYERS, help="One, or a band: 12-16.")
@click.option(
    "--strength", type=FACTOR, default=1.0, show_default=True, help="The factor on the vectors."
)
@click.option(
    "--operator",
    type=click.Choice(["add", "ablate"]),
    default="add",
    show_default=True,
    help="ablate takes the direction out of everything that writes to the hidden state.",
)
@click.option(
    "--run",
    "run_dir",
    type=click.Path(path_type=Path),
    help="A run whose numbers go into the README; default: the vectors' own card.json.",
)
@click.option("--out", "-o", required=True, type=click.Path(path_type=Path), help="A new folder.")
def bake(
    folder: Path,
    layers: tuple[int, ...] | str,
    strength: float,
    operator: BakeOperator,
    out: Path,
    **said: str | Path | None,
) -> None:
    """Write an ordinary MLX model folder that behaves as if steered.

    Any app that loads MLX models can run it: LM Studio, mlx_lm.server. Adding works for the Llama
    class (Llama, Mistral, SmolLM2), whose projections can have a bias.
    """
    from mlx_steer.cli.output import safe
    from mlx_steer.model.bake import Steering
    from mlx_steer.model.bake import bake as write
    from mlx_steer.report.measured_effect import measured_effect
    from mlx_steer.vectors import load_vectors
    from mlx_steer.vectors.evidence import evidence_in

    vectors = load_vectors(folder)
    run = said["run_dir"]
    evidence = measured_effect(vectors, Path(run)) if run else evidence_in(folder, vectors)
    chosen = tuple(vectors) if isinstance(layers, str) else layers
    baked = write(
        str(said["model"]),
        Steering(vectors, chosen, strength, operator),
        out,
        revision=str(said["revision"]) if said["revision"] else None,
        quantize=None if said["quantize"] is None else 4 if said["quantize"] == "4" else 8,
        evidence=evidence,
    )
    if baked.loss is not None:
        click.echo(
            f"note: requantised weights lie {100 * baked.loss:.2g} % of their norm from exact ones",
            err=True,
        )
    if baked.left is not None:
        click.echo(
            f"note: {100 * baked.left:.2g} % of what was written along the direction is left; this "
            "is projection at every write, not ablation of one block's output",
            err=True,
        )
    which = ", ".join(map(str, baked.layers))
    click.echo(safe(f"{out}: {baked.model_id}, {operator} at layer {which}, strength {strength:g}"))
