"""extract: vectors from contrast pairs, or from two opposed sentences."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlx_steer.cli.options import (
    LAYERS,
    FromConfig,
    behavior_option,
    extraction_options,
    extraction_settings,
    model_options,
    model_settings,
    quiet_option,
    sentence_options,
    sentences_given,
)
from mlx_steer.team import launched_rank

if TYPE_CHECKING:
    from mlx_steer.behaviors import Behavior
    from mlx_steer.extraction.written_pairs import Written
    from mlx_steer.model.load import Model


@click.command(short_help="Extract vectors from pairs, or from two sentences.")
@model_options
@behavior_option
@sentence_options
@click.option(
    "--answers",
    type=click.IntRange(1, 100),
    metavar="N",
    default=FromConfig("ExtractConfig", "answers"),
    show_default=True,
    help="Of two sentences: answers to each question; several are sampled.",
)
@click.option(
    "--again",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Make the vectors of FOLDER again from its pairs.jsonl, byte for byte.",
)
@click.option("--layers", type=LAYERS, default="all", help="Such as 12,14,16 or 8-20.")
@extraction_options
@click.option(
    "--out", "-o", required=True, type=click.Path(path_type=Path), help="The vectors folder."
)
@quiet_option
def extract(layers: Any, out: Path, quiet: bool, **options: Any) -> None:
    """Extract steering vectors from a behavior's contrast pairs.

    With --positive and --negative the model writes the pairs itself: it answers shipped questions
    under either sentence as system prompt, and the vectors lead from the one to the other.

    Prints for each layer the norms, and the held-out AUC: how well directions made of other pairs
    tell positive from negative responses there (0.5 is chance, 1 perfect).
    """
    from mlx_steer.cli.vectors import print_vectors
    from mlx_steer.config import ExtractConfig
    from mlx_steer.engine.guard import load_model
    from mlx_steer.extraction.pairs import pair_states

    settings, how = model_settings(options), extraction_settings(options)
    chosen = None if layers == "all" else layers
    again = options["again"]
    if again is not None:
        if how or chosen or sentences_given(options):
            raise click.UsageError("--again makes the same vectors again; give --model and --out")
        _again(settings, again, out)
        return
    behavior = _behavior(options)
    method = how.pop("method", ExtractConfig().method)
    model = load_model(settings.pop("name"), **settings)
    written = None
    if behavior.sentences is not None:
        written = _written(model, behavior, options["answers"], quiet)
        behavior = written.behavior(behavior)
        how.setdefault("token_position", "mean")
    states = pair_states(model, behavior, chosen, **how)
    vectors = states.vectors(method)
    if written is not None:
        vectors = vectors.with_pairs(written.info, written.file)
    model.team.agree({"method": method})  # all are there still
    if not launched_rank():  # of several ranks, the first
        vectors.save(out)
    if not quiet:
        print_vectors(vectors, states.separation(method))
    click.echo(str(out))


def _behavior(options: dict[str, Any]) -> Behavior:
    from mlx_steer.behaviors import load_behavior
    from mlx_steer.behaviors.two_sentences import behavior_of

    said = sentences_given(options)
    return load_behavior(options["behavior"]) if said is None else behavior_of(said)


def _written(model: Model, behavior: Behavior, answers: int, quiet: bool) -> Written:
    from mlx_steer.cli.output import safe
    from mlx_steer.config import ExtractConfig
    from mlx_steer.extraction.written_pairs import write_pairs

    found = write_pairs(model, behavior, ExtractConfig(answers=answers))
    if not quiet:
        area, error = found.calibration.auc, found.calibration.error
        left_out = ", ".join(f"{n} {why}" for why, n in found.dropped.items() if n) or "none"
        click.echo(
            safe(
                f"{model.info.id} wrote {len(found.pairs)} pairs (left out: {left_out}); it tells "
                f"answers under the two sentences apart with AUC {area.value:.3f} ({area.low:.2f} "
                f"to {area.high:.2f}) and {100 * error.value:.0f} % held-out error"
            )
        )
    return found


def _again(settings: dict[str, Any], folder: Path, out: Path) -> None:
    from mlx_steer.engine.guard import load_model
    from mlx_steer.errors import VectorError
    from mlx_steer.extraction.written_pairs import made_again
    from mlx_steer.vectors import load_vectors

    found = load_vectors(folder)
    if found.metadata.written is None:
        raise VectorError(
            f"{folder} has no pairs.jsonl: its vectors were not made of two sentences; extract "
            "them from their behavior"
        )
    model = load_model(settings.pop("name"), **settings)
    made = made_again(model, found)
    if not launched_rank():
        made.save(out)
    click.echo(str(out))
