"""The sections of the report, from the metrics and what the run recorded of itself."""

from collections.abc import Iterator, Mapping
from typing import Any

from mlx_steer.metrics import RunData, Scored
from mlx_steer.metrics.measure import MEASURES
from mlx_steer.report import findings, gating, lookup, tables
from mlx_steer.report.document import (
    Block,
    Bullets,
    Cell,
    Document,
    Paragraph,
    Plot,
    Quote,
    Quotes,
    Section,
    Table,
)
from mlx_steer.report.wording import Words, fixed, number, one_line
from mlx_steer.run.records import Manifest

Json = Mapping[str, Any]

QUOTED = {"target": 2, "other": 2, "borderline": 1}


def build(
    run: RunData, scored: Mapping[str, Scored], metrics: Json, plots: frozenset[str]
) -> Document:
    """The report's content.

    Args:
        run: The run.
        scored: Its verdicts.
        metrics: What `compute_metrics` gave.
        plots: Names of the plots that were drawn.
    """
    words = Words(metrics["behavior"])
    # What was found first, how it was found after it, what it was made with last.
    sections = [
        Section("Fair comparison", list(tables.comparison(metrics, words))),
        Section("Does steering beat the prompt?", list(tables.against_prompt(metrics, words))),
        *gating.sections(metrics, words),
        Section("Controls", list(tables.controls(metrics, words))),
        Section("Best configuration", list(tables.best(metrics, words))),
        Section("Layer comparison", list(tables.sweep(metrics, words))),
        Section("Vector statistics", list(tables.vectors(metrics))),
        Section("Judge", list(_judge(metrics))),
        Section("Configuration", list(_configuration(run))),
        Section("Responses", list(_responses(run, scored, metrics))),
        Section("Files", [Bullets(_files(plots))]),
    ]
    warnings = findings.warnings(metrics)
    return Document(
        title=one_line(f"{run.behavior.title or run.behavior.name}: {run.manifest.model.id}"),
        subtitle=one_line(f"Run {run.config.name}. {run.behavior.description}"),
        warnings=warnings,
        headline=findings.headline(metrics)[len(warnings) :],
        sections=[_with_drawn(section, plots) for section in sections if section.blocks],
    )


def _with_drawn(section: Section, plots: frozenset[str]) -> Section:
    kept = [b for b in section.blocks if not isinstance(b, Plot) or b.name in plots]
    return Section(section.title, kept)


# --- configuration and vectors ---


def _configuration(run: RunData) -> Iterator[Block]:
    manifest, config = run.manifest, run.config
    model = manifest.model
    counts = {
        split: {
            prompt_set: sum((p.split, p.set) == (split, prompt_set) for p in _used(run))
            for prompt_set in MEASURES.values()
        }
        for split in ("select", "test")
    }
    prompts = "; ".join(
        f"{split} half "
        + ", ".join(f"{n} {run.behavior.set_word(s)}" for s, n in sets.items() if n)
        for split, sets in counts.items()
        if any(sets.values())
    )
    sampling = config.generation
    pairs = run.vectors.metadata.dataset if run.vectors else None
    decoding = "greedy" if sampling.temperature == 0 else f"temperature {sampling.temperature:g}"
    facts = {
        "Model": model.id,
        "Revision": model.revision,
        "Type": f"{model.model_type}, {manifest.num_layers} layers, hidden size "
        f"{manifest.hidden_size}",
        "Quantisation": "none"
        if not model.quantization
        else ", ".join(f"{k} {v}" for k, v in sorted(model.quantization.items())),
        "dtype": manifest.dtype,
        "Behavior": f"{run.behavior.name}, judge {run.behavior.judge}",
        "Contrast pairs": f"{pairs.pairs} ({pairs.name})" if pairs else None,
        "Prompts": prompts,
        "Decoding": f"{decoding}, at most {sampling.max_tokens} tokens",
        "Cut off at that length": _cut_off(run),
        "Rows": f"{len(run.rows)} of {len({k for c in run.conditions for k in c.rows.values()})}",
        "Seeds": f"sampling {sampling.seed}, statistics {config.statistics.seed}",
        "Statistics": f"{config.statistics.resamples:,} bootstrap resamples, alpha "
        f"{config.statistics.alpha:g}",
        "Limits of the sweep": findings.limits({"limits": config.sweep.limits.model_dump()}),
        "Device": manifest.device,
        "Versions": ", ".join(
            f"{name} {version}"
            for name, version in (
                ("mlx-steer", manifest.mlx_steer),
                ("mlx", manifest.mlx),
                ("mlx-lm", manifest.mlx_lm),
                ("numpy", manifest.numpy),
                ("python", manifest.python),
            )
            if version
        ),
        "Time": _time(manifest),
    }
    yield Table(
        ["what", "value"],
        [[Cell(name), Cell(one_line(str(value)))] for name, value in facts.items() if value],
    )
    notes = [one_line(note) for note in manifest.notes]
    if notes:
        yield Bullets(notes)
    for name, text in _system_prompts(run).items():
        yield Paragraph(f"System prompt {name}: {one_line(text)}")


def _cut_off(run: RunData) -> str:
    cut = sum(row.finish_reason == "length" for row in run.rows.values())
    return f"{cut} of {len(run.rows)} responses"


def _used(run: RunData) -> list[Any]:
    asked = {prompt_id for c in run.conditions for prompt_id in c.rows}
    return [item for prompt_id, item in run.prompts.items() if prompt_id in asked]


def _time(manifest: Manifest) -> str:
    parts = [f"{name} {number(value)} s" for name, value in manifest.seconds.items()]
    ended = manifest.finished or "not finished"
    return f"{manifest.started} to {ended}" + (f" ({', '.join(parts)})" if parts else "")


def _system_prompts(run: RunData) -> dict[str, str]:
    return {
        c.name.removeprefix("prompt "): c.system_text
        for c in run.conditions
        if c.kind == "prompt" and c.system_text
    }


def _judge(metrics: Json) -> Iterator[Block]:
    judge = metrics["judge"]
    lines = []
    if judge["human"]:
        human = judge["human"]
        lines.append(
            f"A person labelled {human['n']} responses: the judge agreed on {human['agreed']} "
            f"(Cohen's kappa {fixed(human['kappa'])}). A person's verdict counts in all rates. "
            "Responses picked for labelling because they looked wrong make the judge look worse "
            "than it is."
        )
    else:
        lines.append(
            "No response was labelled by a person. Verdicts can be overruled in report.html, "
            "exported, and given back with: mlx-steer report RUN --labels labels.json"
        )
    if judge["model"]:
        model = judge["model"]
        lines.append(
            f"A judge model read {model['n']} responses and agreed on {model['agreed']} "
            f"(Cohen's kappa {fixed(model['kappa'])}); its verdicts do not count in the rates."
        )
    yield from (Paragraph(line) for line in lines)


# --- responses and files ---


def _responses(run: RunData, scored: Mapping[str, Scored], metrics: Json) -> Iterator[Block]:
    split = "test" if metrics["test"]["conditions"] else "select"
    names = [c["name"] for c in metrics[split]["conditions"]]
    if split == "select":
        kept = ("base", "prompt")
        chosen = lookup.chosen_name(metrics)
        names = [
            c["name"]
            for c in metrics["select"]["conditions"]
            if c["kind"] in kept or c["name"] == chosen
        ]
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


def _quote(run: RunData, row: Scored, prompt: str, prompt_set: Any, text: str) -> Quote:
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
        "rows.jsonl: every response; scores.jsonl: what needed the model once more",
        "metrics.json: every number of this report",
        "report.html: this report with a browser of all responses",
        *(f"plots/{name}.png" for name in sorted(plots)),
    ]
