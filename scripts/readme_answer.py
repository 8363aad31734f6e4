"""Write what the demo found into README.md, and the picture of its answer into docs/.

    python scripts/readme_answer.py runs/smollm2_135m_refusal

Needs the run's report (`mlx-steer report RUN`), and no model. What stands between
`<!-- demo: NAME -->` and `<!-- /demo -->` is replaced.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import click

from mlx_steer.metrics.metrics_file import Metrics, read_metrics
from mlx_steer.metrics.numbers import MEASURES, Measure
from mlx_steer.report.first_screen import PLOT, FirstScreen, first_screen
from mlx_steer.report.markdown import inline
from mlx_steer.report.wording import fixed, number, percent
from mlx_steer.run.records import Manifest

ROOT = Path(__file__).parents[1]


def opening(first: FirstScreen, metrics: Metrics) -> str:
    """The picture and the verdict, for the first screen."""
    return (
        f"![{first.plot.alt}](docs/answer.png)\n\n"
        f"**{first.label}** {first.sentence} That is what `make demo` answers for "
        f"{metrics.model.id} and {metrics.behavior.title.lower()}, in the words of its report."
    )


def details(first: FirstScreen, metrics: Metrics, manifest: Manifest) -> str:
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
            f"`make demo`, {metrics.model.id}, in {minutes:.0f} minutes; layer and strength were "
            f"chosen on one half of the prompts and measured on the other: {counts}.",
            "",
            *lines,
            "",
            *(f"- {inline(finding)}" for finding in first.findings),
        ]
    )


def replaced(text: str, name: str, body: str) -> str:
    """A page with other words between a block's marks."""
    marks = re.compile(rf"(<!-- demo: {name} -->\n).*?(<!-- /demo -->)", re.DOTALL)
    if len(marks.findall(text)) != 1:
        raise click.ClickException(f"README.md needs one block <!-- demo: {name} -->")
    return marks.sub(lambda found: f"{found[1]}{body}\n{found[2]}", text)


@click.command()
@click.argument("run", type=click.Path(path_type=Path, exists=True))
@click.option("--root", type=click.Path(path_type=Path), default=ROOT, hidden=True)
def main(run: Path, root: Path) -> None:
    """Write what a RUN found into README.md and docs/answer.png."""
    metrics = read_metrics(run)
    first = first_screen(metrics)
    if first is None:
        raise click.ClickException(f"{run} has no answer; run the whole experiment")
    manifest = Manifest.model_validate_json((run / "manifest.json").read_bytes())
    readme = root / "README.md"
    text = replaced(readme.read_text("utf-8"), "answer", opening(first, metrics))
    text = replaced(text, "details", details(first, metrics, manifest))
    shutil.copyfile(run / "plots" / f"{PLOT}.png", root / "docs" / "answer.png")
    readme.write_text(text, encoding="utf-8")
    for what, value in first.facts:
        click.echo(f"{what}: {value}")
    seconds = ", ".join(f"{name} {value:.0f}" for name, value in manifest.seconds.items())
    click.echo(f"{sum(manifest.seconds.values()):.0f} s: {seconds}")


if __name__ == "__main__":
    main()
