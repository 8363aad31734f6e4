"""The report of a run: metrics.json, report.md, report.html and plots, from its rows alone.

Needs no model and never mlx, so that an old run can be judged anew on any machine.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_steer.errors import RunError
from mlx_steer.files import write_beside
from mlx_steer.metrics import compute_metrics, judged
from mlx_steer.metrics.metrics_file import FILE, metrics_text
from mlx_steer.run.directory import RunDirectory
from mlx_steer.run.reader import RunData, load_run, read_labels
from mlx_steer.run.records import LABELS_VERSION, Labels
from mlx_steer.vectors.evidence import CARD_FILE
from mlx_steer.words import Verdict

if TYPE_CHECKING:
    from mlx_steer.report.first_screen import FirstScreen


@dataclass(frozen=True)
class ReportFiles:
    """Where the report was written, and what it opens with; None without an answer."""

    metrics: Path
    markdown: Path
    html: Path
    plots: tuple[Path, ...]
    first: FirstScreen | None


def write_report(
    folder: str | os.PathLike[str], labels: str | os.PathLike[str] | None = None
) -> ReportFiles:
    """Judge a run's rows and write metrics.json, report.md, report.html and plots/*.png.

    The answer goes beside the run's vectors too, as their evidence (card.json).

    Args:
        folder: The run directory, finished or not.
        labels: A person's verdicts, as report.html exports them. They are merged into the run's
            labels.json and count instead of the judge's.

    Raises:
        RunError: If the run or the labels cannot be read, or nothing can be written.
        DataError: If the run names a judge there is not.
    """
    run = load_run(folder)
    directory = RunDirectory(run.folder)
    if labels is not None:
        run = _with_labels(run, Path(labels), directory)
    # Matplotlib and jinja2 take most of a second to import, which other uses should not pay.
    from mlx_steer.report import first_screen, markdown, measured_effect, page, plots, sections

    scored = judged(run)
    metrics = compute_metrics(run, scored)
    pictures = plots.draw(metrics)
    document = sections.build(run, scored, metrics, frozenset(pictures))
    directory.write(FILE, metrics_text(metrics))
    directory.write("report.md", markdown.render(document))
    directory.write("report.html", page.render(document, run, scored, pictures, metrics.main_names))
    _write_plots(run.folder / "plots", pictures, plots.NAMES)
    if metrics.answer is not None and run.vectors is not None:
        evidence = measured_effect.evidence_of(run.vectors, run.folder, metrics)
        directory.write(f"vectors/{CARD_FILE}", evidence.as_bytes().decode())
    return ReportFiles(
        metrics=run.folder / FILE,
        markdown=run.folder / "report.md",
        html=run.folder / "report.html",
        plots=tuple(run.folder / "plots" / f"{name}.png" for name in pictures),
        first=first_screen.first_screen(metrics),
    )


def _with_labels(run: RunData, path: Path, directory: RunDirectory) -> RunData:
    if not path.is_file():
        raise RunError(f"there is no file of labels {path}; export one from report.html")
    given = read_labels(path)
    known = {key for key in given if key in run.rows}
    if given and not known:
        raise RunError(f"{path} holds labels of another run: it names no row of {run.folder}")
    merged: dict[str, Verdict | None] = {**run.labels, **{key: given[key] for key in known}}
    kept = {key: verdict for key, verdict in merged.items() if verdict is not None}
    directory.write_record("labels.json", Labels(format_version=LABELS_VERSION, labels=kept))
    return replace(run, labels=kept)


def _write_plots(folder: Path, pictures: dict[str, bytes], plots: frozenset[str]) -> None:
    try:
        folder.mkdir(exist_ok=True)
        for name, data in pictures.items():
            write_beside(folder / f"{name}.png", data)
        for name in plots - pictures.keys():
            # Of an earlier report, with more rows than there are now.
            (folder / f"{name}.png").unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"{folder} cannot be written: {error.strerror or error}") from error
