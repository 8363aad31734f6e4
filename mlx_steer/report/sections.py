"""The sections of the report, from the metrics and what the run recorded of itself."""

from collections.abc import Iterator, Mapping

from mlx_steer.metrics.metrics_file import Metrics
from mlx_steer.metrics.verdicts import Scored
from mlx_steer.report import findings, gate_sections, tables
from mlx_steer.report.configuration import configuration
from mlx_steer.report.document import (
    Block,
    Bullets,
    Cell,
    Document,
    Opening,
    Paragraph,
    Plot,
    Quote,
    Quotes,
    Section,
    Table,
)
from mlx_steer.report.first_screen import FirstScreen, first_screen
from mlx_steer.report.wording import fixed, number, one_line
from mlx_steer.run.reader import RunData
from mlx_steer.words import PromptSet

QUOTED = {"target": 2, "other": 2, "borderline": 1}


def build(
    run: RunData, scored: Mapping[str, Scored], metrics: Metrics, plots: frozenset[str]
) -> Document:
    """The report's content.

    Args:
        run: The run.
        scored: Its verdicts.
        metrics: What `compute_metrics` gave.
        plots: Names of the plots that were drawn.
    """
    words = metrics.behavior
    # What was found first, how it was found after it, what it was made with last.
    sections = [
        Section("Fair comparison", list(tables.comparison(metrics, words))),
        Section("Does steering beat the prompt?", list(tables.against_prompt(metrics, words))),
        *gate_sections.sections(metrics, words),
        Section("Controls", list(tables.controls(metrics, words))),
        Section("Best configuration", list(tables.best(metrics, words))),
        Section("Layer comparison", list(tables.sweep(metrics, words))),
        Section("Vector statistics", list(tables.vectors(metrics))),
        Section("Judge", list(_judge(metrics))),
        Section("Configuration", list(configuration(run))),
        Section("Responses", list(_responses(run, scored, metrics))),
        Section("Files", [Bullets(_files(plots))]),
    ]
    warnings = findings.warnings(metrics)
    found = findings.headline(metrics)[len(warnings) :]
    first = first_screen(metrics)
    # Missing rows are told before any number; the rest is easier to read after the answer.
    before = len(warnings) if first is None else int(metrics.rows.missing > 0)
    if first:
        sections.insert(0, Section("Findings in full", [Bullets(found)]))
    return Document(
        title=one_line(f"{run.behavior.title or run.behavior.name}: {run.manifest.model.id}"),
        subtitle=one_line(f"Run {run.config.name}. {run.behavior.description}"),
        answer=_opening(first, plots) if first else None,
        warnings=warnings[:before],
        cautions=warnings[before:],
        headline=first.findings if first else found,
        sections=[_with_drawn(section, plots) for section in sections if section.blocks],
    )


def _opening(first: FirstScreen, plots: frozenset[str]) -> Opening:
    tones = {"works": "good", "works behind a gate": "good", "does harm": "bad"}
    return Opening(
        tone=tones.get(first.verdict, "open"),
        label=first.label,
        sentence=first.sentence,
        facts=Table(["", "test half"], [[Cell(name), Cell(text)] for name, text in first.facts]),
        plot=first.plot if first.plot.name in plots else None,
    )


def _with_drawn(section: Section, plots: frozenset[str]) -> Section:
    kept = [b for b in section.blocks if not isinstance(b, Plot) or b.name in plots]
    return Section(section.title, kept)


def _judge(metrics: Metrics) -> Iterator[Block]:
    judge = metrics.judge
    lines = []
    if judge.human:
        human = judge.human
        lines.append(
            f"A person labelled {human.n} responses: the judge agreed on {human.agreed} "
            f"(Cohen's kappa {fixed(human.kappa)}). A person's verdict counts in all rates. "
            "Responses picked for labelling because they looked wrong make the judge look worse "
            "than it is."
        )
    else:
        lines.append(
            "No response was labelled by a person. Verdicts can be overruled in report.html, "
            "exported, and given back with: mlx-steer report RUN --labels labels.json"
        )
    if judge.model:
        model = judge.model
        lines.append(
            f"A judge model read {model.n} responses and agreed on {model.agreed} "
            f"(Cohen's kappa {fixed(model.kappa)}); its verdicts do not count in the rates."
        )
    yield from (Paragraph(line) for line in lines)


# --- responses and files ---


def _responses(run: RunData, scored: Mapping[str, Scored], metrics: Metrics) -> Iterator[Block]:
    split = "test" if metrics.test.conditions else "select"
    names = [c.name for c in metrics.test.conditions]
    if not names:
        kept, chosen = ("base", "prompt"), metrics.select.chosen
        names = [c.name for c in metrics.select.conditions if c.kind in kept or c.name == chosen]
    yield Paragraph(
        f"The first prompts of each set in the {split} half, under every condition; all responses "
        "are in report.html."
    )
    for name in names:
        condition = run.condition(name)
        left, quotes = dict(QUOTED), []
        for prompt_id, item in run.prompts.items():
            key = condition.rows.get(prompt_id, "")
            if item.split != split or key not in scored or not left.get(item.set):
                continue
            left[item.set] -= 1
            quotes.append(_quote(run, scored[key], item.prompt, item.set, run.rows[key].text))
        if quotes:
            yield Quotes(name, quotes)


def _quote(run: RunData, row: Scored, prompt: str, prompt_set: PromptSet, text: str) -> Quote:
    who = "by a person" if row.human else row.judgement.rule
    perplexity = "" if row.perplexity is None else f", perplexity {number(row.perplexity)}"
    return Quote(
        prompt=one_line(prompt),
        about=f"{run.behavior.set_word(prompt_set)}: {run.behavior.verdict_word(row.verdict)} "
        f"({who}), coherence {row.coherence:.2f}{perplexity}",
        response=text,
    )


def _files(plots: frozenset[str]) -> list[str]:
    return [
        "config.yaml: the experiment with every default filled in",
        "manifest.json: model, versions, device and times",
        "vectors/: the steering vectors, one .npy file a layer",
        "prompts.jsonl, behavior.json, conditions.json: what was asked, and under which conditions",
        "rows.jsonl: every response; scores.jsonl: what needed the model once more; prices.jsonl: "
        "how far conditions are from base on other prompts, prompt by prompt",
        "metrics.json: every number of this report",
        "report.html: this report with a browser of all responses",
        *(f"plots/{name}.png" for name in sorted(plots)),
    ]
