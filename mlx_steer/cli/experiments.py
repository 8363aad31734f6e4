"""run, sweep, compare, report."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlx_steer.cli.answer import print_answer
from mlx_steer.cli.options import (
    LAYER,
    LAYERS,
    NUMBERS,
    FromConfig,
    Numbers,
    PartOf,
    behavior_option,
    extraction_options,
    extraction_settings,
    generation_options,
    model_options,
    model_settings,
    quiet_option,
    sentence_options,
    sentences_given,
)
from mlx_steer.cli.processes import AUTO, automatic, processes_option, shared_among
from mlx_steer.cli.progress import progress
from mlx_steer.team import launched_rank

if TYPE_CHECKING:
    from mlx_steer.bands import LayerOrBand
    from mlx_steer.config import ExperimentConfig

out_option = click.option(
    "--out", "-o", required=True, type=click.Path(path_type=Path), help="The run's directory."
)
vectors_option = click.option(
    "--vectors", type=click.Path(), help="A vectors folder; without it they are extracted first."
)


def _strengths_option(section: str, kind: Numbers, more: str = "") -> Callable[[Any], Any]:
    return click.option(
        "--strengths",
        type=kind,
        default=FromConfig(section, "strengths"),
        show_default=True,
        help=f"Factors on the raw vector{more}.",
    )


fresh_option = click.option(
    "--fresh", is_flag=True, help="Start over; keep the old directory beside the new one."
)
batch_option = click.option(
    "--batch-size",
    type=click.IntRange(1, 4096),
    metavar="N",
    help="Rows decoded at a time; by default what fits in memory.",
)
limit_option = click.option(
    "--prompts-per-set",
    type=click.IntRange(min=1),
    metavar="N",
    help="Use only the first so many prompts of each set.",
)

judge_option = click.option(
    "--judge-model",
    metavar="MODEL",
    help="A model that reads every response too; the judge of rules keeps the last word.",
)


@click.command(short_help="Run a CONFIG file, or two sentences; or continue.")
@click.argument("config", type=click.Path(path_type=Path), required=False)
@click.option(
    "--model", "-m", metavar="MODEL", help="Of two sentences: as for extract, in place of CONFIG."
)
@sentence_options
@click.option("--out", "-o", type=click.Path(path_type=Path), help="Default: runs/NAME.")
@click.option(
    "--part",
    type=PartOf(),
    metavar="K/N",
    help="Make only the K-th of N parts of the rows, in a directory beside the run's.",
)
@processes_option
@judge_option
@batch_option
@fresh_option
@quiet_option
def run(
    config: Path | None,
    out: Path | None,
    part: tuple[int, int] | None,
    processes: int | str,
    **options: Any,
) -> None:
    """Carry out the experiment of a CONFIG file, or continue it; ends with a report.

    In place of a CONFIG, --model, --positive and --negative make an experiment of two opposed
    sentences: the model writes the pairs and judges, and shipped questions are asked.

    Machines that cannot see one another make parts of it (--part 3/8), each in a directory of its
    own (RUN.part-3-of-8), beginning with what RUN holds. `mlx-steer merge` puts them together.
    """
    from mlx_steer.config import JudgeModelConfig

    fresh, quiet = options.pop("fresh"), options.pop("quiet")
    judge_model, batch_size = options.pop("judge_model"), options.pop("batch_size")
    experiment = _experiment(config, options)
    if judge_model is not None:
        judge = JudgeModelConfig(name=judge_model)
        experiment = experiment.model_copy(update={"judge_model": judge})
    if batch_size is not None:
        changed = experiment.generation.model_copy(update={"batch_size": batch_size})
        experiment = experiment.model_copy(update={"generation": changed})
    where = out or Path("runs") / experiment.name
    if part is not None:
        if processes != 1:
            raise click.UsageError("give --part or --processes, not both")
        _make_part(experiment, where, part, fresh, quiet)
        return
    with shared_among(automatic(experiment) if processes == AUTO else int(processes)):
        _execute(experiment, where, fresh, quiet)


def _experiment(config: Path | None, options: dict[str, Any]) -> ExperimentConfig:
    """What a file says, or two sentences."""
    from mlx_steer.config import load_config

    model, said = options.pop("model"), sentences_given(options)
    if config is not None:
        if model is not None or said is not None:
            raise click.UsageError("give a CONFIG, or --model, --positive and --negative, not both")
        return load_config(config)
    if model is None or said is None:
        raise click.UsageError("give a CONFIG, or --model, --positive and --negative")
    from mlx_steer.experiment.preset import two_sentence_experiment

    return two_sentence_experiment(said, model)


@click.command(short_help="Try layers and strengths, and choose the best.")
@model_options
@behavior_option
@vectors_option
@click.option("--layers", type=LAYERS, help="Each by itself: 12,14,16 or 8-20.  [default: all]")
@click.option(
    "--layer",
    "places",
    type=LAYER,
    metavar="N",
    multiple=True,
    help="One more cell: a layer, or a band steered together, such as 12-16.",
)
@extraction_options
@_strengths_option("SweepConfig", Numbers(float, "auto"), ", or auto: as much as limits allow")
@click.option("--screen", is_flag=True, help="Rank all cells without generating; run the best.")
@click.option(
    "--keep",
    type=click.IntRange(min=1),
    metavar="N",
    default=4,
    show_default=True,
    help="How many cells --screen leaves.",
)
@out_option
@judge_option
@generation_options
@batch_option
@limit_option
@fresh_option
@quiet_option
def sweep(
    layers: Any,
    places: tuple[LayerOrBand, ...],
    strengths: Any,
    screen: bool,
    keep: int,
    **options: Any,
) -> None:
    """Try layers and strengths on the select half of the prompts and choose the best cell."""
    from mlx_steer.bands import layers_of

    section = {"strengths": strengths, "screen": keep if screen else None}
    where = _where(options)
    if places and layers != "all":
        places = (*(layers or ()), *places)
        section["layers"] = places
        layers = sorted({layer for one in places for layer in layers_of(one)})
    config = _config(where[0], options, layers=layers or "all", sweep=section)
    _execute(config, *where, compare=False)


@click.command(short_help="Compare base, prompt, steering and both.")
@model_options
@behavior_option
@vectors_option
@click.option(
    "--layer",
    type=LAYER,
    metavar="N",
    required=True,
    help="The steered layer, counted from 0, or a band steered together: 12-16.",
)
@extraction_options
@_strengths_option("CompareConfig", NUMBERS)
@click.option("--system-prompt", help="A name of the behavior's (detailed, calibrated) or a text.")
@click.option(
    "--controls",
    type=click.IntRange(0, 100),
    metavar="N",
    default=FromConfig("ControlsConfig", "random"),
    show_default=True,
    help="How many random directions of the vector's norm stand beside it.",
)
@out_option
@judge_option
@generation_options
@batch_option
@limit_option
@fresh_option
@quiet_option
def compare(
    layer: LayerOrBand, strengths: Any, system_prompt: str | None, controls: int, **options: Any
) -> None:
    """Compare base, system prompt, steering, and both together, on the test half."""
    from mlx_steer.bands import layers_of

    section = {
        "layer": layer,
        "strengths": strengths,
        "system_prompt": system_prompt,
        "controls": {"random": controls},
    }
    where = _where(options)
    config = _config(where[0], options, layers=layers_of(layer), compare=section)
    _execute(config, *where, sweep=False)


@click.command(short_help="Write the report of a run from its rows.")
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.option(
    "--labels",
    type=click.Path(path_type=Path),
    help="A person's verdicts, exported from report.html; kept in the run.",
)
def report(run_dir: Path, labels: Path | None) -> None:
    """Write metrics.json, report.md, report.html and plots of a run, from its rows."""
    from mlx_steer.report import write_report

    files = write_report(run_dir, labels)
    print_answer(files.first)
    click.echo(str(files.markdown))


def _where(options: dict[str, Any]) -> tuple[Path, bool, bool]:
    """Take --out, --fresh and --quiet out of a command's options."""
    return options.pop("out"), options.pop("fresh"), options.pop("quiet")


def _config(out: Path, options: dict[str, Any], layers: Any, **sections: Any) -> ExperimentConfig:
    from mlx_steer.config import parse_config

    vectors, how = options.pop("vectors"), extraction_settings(options)
    if vectors and how:
        given = " and ".join(f"--{name.replace('_', '-')}" for name in how)
        raise click.UsageError(f"{given} cannot change vectors that --vectors gives; leave one out")
    extract_section = {"vectors": vectors} if vectors else {"layers": layers, **how}
    if vectors and layers != "all" and "sweep" in sections:
        sections["sweep"].setdefault("layers", layers)
    names = ("max_tokens", "temperature", "seed", "batch_size")
    judge = options.pop("judge_model")
    data = {
        "name": re.sub(r"[^A-Za-z0-9._-]+", "-", out.name).strip("._-")[:100] or "run",
        "model": model_settings(options),
        "behavior": options.pop("behavior"),
        "extract": extract_section,
        "generation": {name: options.pop(name) for name in names},
        "judge_model": None if judge is None else {"name": judge},
        "prompts_per_set": options.pop("prompts_per_set"),
        **sections,
    }
    return parse_config(data, "the command line")


def _make_part(
    config: ExperimentConfig, run: Path, numbers: tuple[int, int], fresh: bool, quiet: bool
) -> None:
    from mlx_steer.experiment.execute import run_experiment
    from mlx_steer.experiment.part import Part
    from mlx_steer.run.directory import RunDirectory
    from mlx_steer.run.merge import is_begun, take_rows

    if launched_rank() is not None:
        raise click.UsageError("ranks deal out all rows among themselves; leave --part out")
    part = Part(*numbers)
    folder = run.with_name(f"{run.name}.part-{part.number}-of-{part.count}")
    with RunDirectory.open(folder, fresh=fresh) as directory:
        if is_begun(run):
            take_rows(directory, run)
        with progress(quiet) as told:
            run_experiment(config, directory, told, part=part)
    click.echo(str(folder))


@click.command(short_help="Take the rows of a run's parts into it.")
@click.argument("run_dir", type=click.Path(path_type=Path), metavar="RUN")
@click.argument(
    "parts", type=click.Path(path_type=Path), metavar="PART...", nargs=-1, required=True
)
def merge(run_dir: Path, parts: tuple[Path, ...]) -> None:
    """Take into RUN the rows that parts of it hold (`run --part`), or other runs of its experiment.

    A part of another experiment, model or version is refused. RUN is made if there is none.
    """
    from mlx_steer.run.directory import RunDirectory
    from mlx_steer.run.merge import missing_rows, take_rows

    with RunDirectory.open(run_dir) as run:
        for part in parts:
            taken = take_rows(run, part)
            click.echo(f"{part}: {taken.rows} rows new, {taken.held} there before")
            if taken.unlike:
                click.echo(
                    f"note: {taken.unlike} rows there say something else in {part}, where two "
                    "tokens were all but equal; the first stay",
                    err=True,
                )
        missing = missing_rows(run)
    left = f"{missing} rows of its stages so far are missing" if missing else "no row is missing"
    click.echo(
        f"{run_dir}: {left}; go on with the parts, or with mlx-steer run for all that is left"
    )


def _execute(
    config: ExperimentConfig,
    out: Path,
    fresh: bool,
    quiet: bool,
    *,
    sweep: bool = True,
    compare: bool = True,
) -> None:
    from mlx_steer.experiment.execute import run_experiment
    from mlx_steer.report import write_report
    from mlx_steer.run.directory import RunDirectory

    opened = RunDirectory.open(out, fresh=fresh)
    if launched_rank() is not None:
        from mlx_steer.experiment.mirror import run_in_step
        from mlx_steer.team import team

        opened = run_in_step(config, out, team(), fresh=fresh)
    with opened as directory:
        with progress(quiet) as told:
            run_experiment(config, directory, told, sweep=sweep, compare=compare)
        if launched_rank():
            return  # rank 0 keeps the run
        files = write_report(directory.folder)
    if not quiet:
        print_answer(files.first)
    click.echo(str(files.markdown))
