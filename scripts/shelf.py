"""Runs the ten pairs of sentences on the shelf, and puts their table into docs/two_sentences.md.

    python scripts/shelf.py [--model smollm2-135m] [--runs runs/shelf] [NAME ...]

Each is one `mlx-steer run --model MODEL --name NAME`. A run that is there already goes on or is
read as it is, so that the script can be stopped and started again; `--table` only writes the table.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from mlx_steer.bands import layer_words
from mlx_steer.behaviors.two_sentences import from_shelf, shelf
from mlx_steer.cli.progress import progress
from mlx_steer.errors import DataError, RunError
from mlx_steer.experiment.execute import run_experiment
from mlx_steer.experiment.preset import two_sentence_experiment
from mlx_steer.metrics import Metrics, read_metrics
from mlx_steer.metrics.halves import ComparedCondition
from mlx_steer.report import write_report
from mlx_steer.run.directory import RunDirectory

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "two_sentences.md"
BEGIN, END = "<!-- table of scripts/shelf.py -->", "<!-- end of the table -->"
COLUMNS = (
    "sentences",
    "AUC",
    "base",
    "steered",
    "system prompt",
    "random, best",
    "coherence",
    "facts right",
    "cell",
    "answer",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="Of the shelf; all by default.")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--runs", type=Path, default=Path("runs/shelf"))
    parser.add_argument("--table", action="store_true", help="Run nothing, write the table.")
    given = parser.parse_args()
    names = given.names or [one.name for one in shelf()]
    for name in names if not given.table else ():
        carry_out(name, given.model, given.runs / name)
    lines = [line for one in shelf() if (line := row(one.title, given.runs / one.name))]
    write(lines)
    print("\n".join(lines))


def carry_out(name: str, model: str, folder: Path) -> None:
    """One run with its report; that a model cannot tell the sentences apart is a result, too."""
    said = from_shelf(name)
    if said is None:
        raise SystemExit(f"the shelf has no {name}; it has {', '.join(s.name for s in shelf())}")
    with RunDirectory.open(folder) as run, progress(quiet=False) as told:
        try:
            run_experiment(two_sentence_experiment(said, model), run, told)
        except DataError as error:
            run.write("stopped.json", json.dumps({"reason": str(error)}) + "\n")
            print(f"{name}: {error}")
            return
    print(write_report(folder).markdown)


def row(title: str, folder: Path) -> str:
    """A line of the table; empty where there is no run."""
    stopped = folder / "stopped.json"
    if stopped.is_file():
        reason = str(json.loads(stopped.read_text(encoding="utf-8"))["reason"]).partition(";")[0]
        return _line([title, *[""] * (len(COLUMNS) - 2), f"stopped: {reason}"])
    try:
        found = read_metrics(folder)
    except RunError:
        return ""
    return _line([title, *_cells(found)])


def _cells(found: Metrics) -> Sequence[str]:
    base, cell = found.test.base, found.test.main("steering")
    prompt = next((c for c in found.test.conditions if c.kind == "prompt"), None)
    random = [c for c in found.test.conditions if c.kind == "random"]
    best = max(random, key=lambda c: c.target.rate or 0.0, default=None)
    known = found.sentences
    if base is None or cell is None or known is None:
        return ["not finished", *[""] * (len(COLUMNS) - 2)]
    facts = [known.right(one.name) for one in (base, cell)]
    return [
        f"{known.auc[0]:.3f}",
        _rate(base),
        _rate(cell),
        _rate(prompt),
        _rate(best),
        f"{base.coherence.mean:.2f} → {cell.coherence.mean:.2f}",
        " → ".join(f"{f.percent:.0f} %" for f in facts if f),
        f"{layer_words(cell.layer)}, {cell.strength:g}",
        found.answer.verdict if found.answer else "",
    ]


def _rate(condition: ComparedCondition | None) -> str:
    if condition is None or not condition.target.n:
        return ""
    return f"{condition.target.percent:.0f} % ({condition.target.count}/{condition.target.n})"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def write(lines: Sequence[str]) -> None:
    """Put the table between its two marks."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    head = [_line(COLUMNS), _line(["---"] * len(COLUMNS))]
    table = "\n".join([BEGIN, "", *head, *lines, "", END])
    PAGE.write_text(f"{before}{table}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
