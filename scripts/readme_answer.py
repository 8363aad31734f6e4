"""Print the README's table of a run's test half, and put the picture of its answer into docs/.

    python scripts/readme_answer.py runs/smollm2_135m_refusal

Needs the run's report (`mlx-steer report RUN`), and no model.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from mlx_steer.metrics.metrics_file import Metrics, read_metrics
from mlx_steer.report.first_screen import PLOT, first_screen
from mlx_steer.report.wording import fixed, number, percent
from mlx_steer.run.records import CONTROL_KINDS, Manifest

DOCS = Path(__file__).parents[1] / "docs"


def table(metrics: Metrics) -> str:
    """The test half in markdown: rates, coherence and price of every condition."""
    words = metrics.behavior
    measures = [m for m in ("target", "false_positive", "borderline") if _there(metrics, m)]
    heads = ["condition", *(words.rate(m) for m in measures), "coherence", "price (KL, nats)"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for c in [*metrics.test.conditions, *metrics.test.fixed]:
        price = getattr(c, "price", None)
        cells = [
            f"{c.name} (chosen)" if c.name in metrics.main_names else c.name,
            *(percent(c.of(m).rate) for m in measures),
            fixed(c.coherence.mean),
            number(price.nats, 2) if price else "–",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _there(metrics: Metrics, measure: str) -> bool:
    return any(c.of(measure).n for c in metrics.test.conditions if c.kind not in CONTROL_KINDS)


@click.command()
@click.argument("run", type=click.Path(path_type=Path, exists=True))
@click.option("--picture", type=click.Path(path_type=Path), default=DOCS / "answer.png")
def main(run: Path, picture: Path) -> None:
    """Copy the picture and print what the README says of a run."""
    metrics = read_metrics(run)
    first = first_screen(metrics)
    if first is None:
        raise click.ClickException(f"{run} has no answer; run the whole experiment")
    shutil.copyfile(run / "plots" / f"{PLOT}.png", picture)
    manifest = Manifest.model_validate_json((run / "manifest.json").read_bytes())
    click.echo(f"**{first.label}** {first.sentence}\n")
    for what, value in first.facts:
        click.echo(f"- {what}: {value}")
    click.echo("\n" + "\n".join(f"- {finding}" for finding in first.findings))
    click.echo(f"\n{table(metrics)}\n")
    seconds = ", ".join(f"{name} {value:.0f}" for name, value in manifest.seconds.items())
    click.echo(f"{sum(manifest.seconds.values()):.0f} s in all ({seconds}); picture: {picture}")


if __name__ == "__main__":
    main()
