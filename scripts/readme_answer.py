"""Write what a run found into README.md and docs/, and the picture of the demo's answer.

    python scripts/readme_answer.py runs/smollm2_135m_refusal
    python scripts/readme_answer.py runs/smollm2_135m_refusal_full

Needs the run's report (`mlx-steer report RUN`), and no model. Of every page, what stands between
`<!-- RUN: answer -->` or `<!-- RUN: details -->` and `<!-- /RUN -->` is replaced, where RUN is the
name in the run's config.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import click

from mlx_steer.config import load_config
from mlx_steer.metrics.metrics_file import Metrics, read_metrics
from mlx_steer.metrics.numbers import MEASURES, Measure
from mlx_steer.report.first_screen import PLOT, FirstScreen, first_screen
from mlx_steer.report.markdown import inline
from mlx_steer.report.wording import fixed, number, percent
from mlx_steer.run.records import Manifest

DEMO = "smollm2_135m_refusal"
ROOT = Path(__file__).parents[1]


def command(name: str) -> str:
    """How a run is made."""
    return "make demo" if name == DEMO else f"mlx-steer run configs/{name}.yaml --processes auto"


def opening(first: FirstScreen, metrics: Metrics, name: str) -> str:
    """The picture and the verdict, for the first screen."""
    return (
        f"![{first.plot.alt}](docs/answer.png)\n\n"
        f"**{first.label}** {first.sentence} That is what `{command(name)}` answers for "
        f"{metrics.model.id} and {metrics.behavior.title.lower()}, in the words of its report."
    )


def details(first: FirstScreen, metrics: Metrics, name: str, manifest: Manifest) -> str:
    """The findings, and the test half as a table."""
    words = metrics.behavior
    every = [*metrics.test.conditions, *metrics.test.fixed]
    measures: list[Measure] = [m for m in MEASURES if any(c.of(m).n for c in every)]
    base = metrics.test.base
    counts = ", ".join(
        f"{base.of(m).n} {words.sets[MEASURES[m]]}" for m in measures if base is not None
    )
    heads = ["condition", *(words.rate(m) for m in measures), "coherence", "price (KL, nats)"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for c in every:
        price = getattr(c, "price", None)
        cells = [
            f"{c.name} (chosen)" if c.name in metrics.main_names else c.name,
            *(percent(c.of(m).rate) for m in measures),
            fixed(c.coherence.mean),
            number(price.nats, 2) if price else "–",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    minutes = sum(manifest.seconds.values()) / 60
    return "\n".join(
        [
            f"`{command(name)}`, {metrics.model.id}, in {minutes:.0f} minutes; layer and strength "
            f"were chosen on one half of the prompts and measured on the other: {counts}.",
            "",
            *lines,
            "",
            *(f"- {inline(finding)}" for finding in first.findings),
        ]
    )


def replaced(text: str, name: str, bodies: Mapping[str, str]) -> str:
    """A page with other words between the marks of a run's blocks."""
    marks = re.compile(
        rf"(<!-- {re.escape(name)}: (\w+) -->\n).*?(<!-- /{re.escape(name)} -->)", re.DOTALL
    )
    return marks.sub(lambda found: f"{found[1]}{bodies[found[2]]}\n{found[3]}", text)


@click.command()
@click.argument("run", type=click.Path(path_type=Path, exists=True))
@click.option("--root", type=click.Path(path_type=Path), default=ROOT, hidden=True)
def main(run: Path, root: Path) -> None:
    """Write what a RUN found into the pages that have a place for it, and docs/answer.png."""
    metrics = read_metrics(run)
    first = first_screen(metrics)
    if first is None:
        raise click.ClickException(f"{run} has no answer; run the whole experiment")
    manifest = Manifest.model_validate_json((run / "manifest.json").read_bytes())
    name = load_config(run / "config.yaml").name
    bodies = {
        "answer": opening(first, metrics, name),
        "details": details(first, metrics, name, manifest),
    }
    written = []
    for page in (root / "README.md", *sorted((root / "docs").glob("*.md"))):
        before = page.read_text("utf-8")
        if (text := replaced(before, name, bodies)) != before:
            page.write_text(text, encoding="utf-8")
            written.append(page)
        if f"<!-- {name}: answer -->" in text:
            shutil.copyfile(run / "plots" / f"{PLOT}.png", root / "docs" / "answer.png")
    click.echo(f"changed: {', '.join(p.name for p in written) or 'no page'}")
    for what, value in first.facts:
        click.echo(f"{what}: {value}")
    seconds = ", ".join(f"{name} {value:.0f}" for name, value in manifest.seconds.items())
    click.echo(f"{sum(manifest.seconds.values()):.0f} s: {seconds}")


if __name__ == "__main__":
    main()
