"""What a run was made with: model, prompts, decoding, statistics, versions and times."""

from collections.abc import Iterator, Mapping

from mlx_steer.metrics.numbers import MEASURES
from mlx_steer.report.document import Block, Bullets, Cell, Paragraph, Table
from mlx_steer.report.findings import limits_in_words
from mlx_steer.report.wording import fixed, number, one_line
from mlx_steer.run.reader import RunData
from mlx_steer.run.records import Manifest


def configuration(run: RunData) -> Iterator[Block]:
    """The facts as a table, then what a person should know of the run, and its system prompts."""
    facts = {**_model(run), **_experiment(run), **_machine(run)}
    yield Table(
        ["what", "value"],
        [[Cell(name), Cell(one_line(value))] for name, value in facts.items() if value],
    )
    notes = [one_line(note) for note in run.manifest.notes]
    if notes:
        yield Bullets(notes)
    for name, text in _system_prompts(run).items():
        yield Paragraph(f"System prompt {name}: {one_line(text)}")


_Facts = Mapping[str, str | None]


def _model(run: RunData) -> _Facts:
    manifest = run.manifest
    model, quantization = manifest.model, manifest.model.quantization or {}
    return {
        "Model": model.id,
        "Revision": model.revision,
        "Type": f"{model.model_type}, {manifest.num_layers} layers, hidden size "
        f"{manifest.hidden_size}",
        "Quantisation": ", ".join(f"{k} {v}" for k, v in sorted(quantization.items())) or "none",
        "dtype": manifest.dtype,
    }


def _experiment(run: RunData) -> _Facts:
    config, sampling = run.config, run.config.generation
    pairs = run.vectors.metadata.dataset if run.vectors else None
    decoding = "greedy" if sampling.temperature == 0 else f"temperature {sampling.temperature:g}"
    return {
        "Behavior": f"{run.behavior.name}, judge {run.behavior.judge}",
        "Contrast pairs": f"{pairs.pairs} ({pairs.name})" if pairs else None,
        "Prompts": _prompts(run),
        "Decoding": f"{decoding}, at most {sampling.max_tokens} tokens",
        "Cut off at that length": _cut_off(run),
        "Rows": f"{len(run.rows)} of {len({k for c in run.conditions for k in c.rows.values()})}",
        "Seeds": f"sampling {sampling.seed}, statistics {config.statistics.seed}",
        "Statistics": f"{config.statistics.resamples:,} bootstrap resamples, alpha "
        f"{config.statistics.alpha:g}",
        "Limits of the sweep": limits_in_words(config.sweep.limits),
    }


def _machine(run: RunData) -> _Facts:
    manifest = run.manifest
    versions = {
        "mlx-steer": manifest.mlx_steer,
        "mlx": manifest.mlx,
        "mlx-lm": manifest.mlx_lm,
        "numpy": manifest.numpy,
        "python": manifest.python,
    }
    return {
        "Device": manifest.device,
        "Versions": ", ".join(f"{name} {version}" for name, version in versions.items() if version),
        "Time": _time(manifest),
        "Steered decoding": _speed(manifest),
    }


def _speed(manifest: Manifest) -> str | None:
    speed = manifest.speed
    if speed is None or not speed.unsteered:
        return None
    return (
        f"{fixed(speed.steered / speed.unsteered)} of the unsteered speed "
        f"({number(speed.steered)} against {number(speed.unsteered)} tokens/s, {speed.rows} rows "
        "at a time)"
    )


def _prompts(run: RunData) -> str:
    """How many prompts of each set were asked in each half."""
    asked = {prompt_id for c in run.conditions for prompt_id in c.rows}
    used = [item for prompt_id, item in run.prompts.items() if prompt_id in asked]
    halves = []
    for split in ("select", "test"):
        counts = {s: sum((p.split, p.set) == (split, s) for p in used) for s in MEASURES.values()}
        sets = ", ".join(f"{n} {run.behavior.set_word(s)}" for s, n in counts.items() if n)
        if sets:
            halves.append(f"{split} half {sets}")
    return "; ".join(halves)


def _cut_off(run: RunData) -> str:
    cut = sum(row.finish_reason == "length" for row in run.rows.values())
    return f"{cut} of {len(run.rows)} responses"


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
