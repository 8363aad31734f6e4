"""The model card (README.md) of shared vectors, written from their metadata and a run's numbers."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from mlx_steer.errors import VectorError
from mlx_steer.vectors.metadata import ModelInfo
from mlx_steer.vectors.vector_set import SteeringVectorSet, load_vectors

# The built-in model's name is not one of the hub's.
_HUB_IDS = {"smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct"}

_SHOWN_KINDS = ("base", "prompt", "steering", "gated", "prompt+steering", "prompt+gated")

_Json = Mapping[str, Any]


@dataclass(frozen=True)
class _Row:
    """One condition of the table of measured effects, as text."""

    name: str
    target: str
    other: str
    incoherent: str
    coherence: str


@dataclass(frozen=True)
class _Effect:
    """What a run measured with these vectors; `title` is the behavior's."""

    title: str
    shown: str
    target: str
    other: str
    rows: Sequence[_Row]
    sentences: Sequence[str]
    layer: int | None
    strength: float | None


def model_card(vectors: SteeringVectorSet, repo: str, run: Path | None = None) -> str:
    """The text of README.md, with front matter for the hub.

    Args:
        vectors: What is shared.
        repo: `org/name` on the hub.
        run: A run directory made with these vectors, for the measured effect.

    Raises:
        VectorError: If the run has no metrics.json or was made with other vectors.
    """
    effect = _effect(vectors, run) if run is not None else None
    own = vectors.metadata
    layers = list(vectors)
    layer = layers[len(layers) // 2] if effect is None or effect.layer is None else effect.layer
    environment = Environment(
        loader=PackageLoader("mlx_steer.vectors", "."),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters |= {"line": _line, "cell": _cell}
    name = repo.partition("/")[2]
    return environment.get_template("model_card.md.j2").render(
        front=_front_matter(vectors),
        title=name,
        repo=repo,
        version=version("mlx-steer"),
        folder=f"vectors/{name}",
        own=own,
        model=own.model,
        quantization=_quantization(own.model),
        vectors=vectors,
        effect=effect,
        load=_load_arguments(own.model),
        options=_options(own.model),
        hub_id=_hub_id(own.model),
        layer=layer,
        strength=1.0 if effect is None or effect.strength is None else effect.strength,
    )


def _front_matter(vectors: SteeringVectorSet) -> str:
    own = vectors.metadata
    base = _hub_id(own.model)
    front: dict[str, Any] = {"library_name": "mlx-steer"}
    if base is not None:
        # Without the relation the hub would list the vectors as a fine-tuned model.
        front |= {"base_model": base, "base_model_relation": "adapter"}
    tags = ["activation-steering", "steering-vectors", "mlx-steer", "mlx"]
    front["tags"] = [
        *tags,
        *(_line(part) for part in own.behavior.split(" + ") if part not in tags),
    ]
    return yaml.safe_dump(front, sort_keys=False, allow_unicode=True)


def _hub_id(model: ModelInfo) -> str | None:
    """The model's id on the hub, None for a folder of somebody's machine."""
    name = _bare_id(model)
    if name in _HUB_IDS:
        return _HUB_IDS[name]
    return name if model.revision is not None and name.count("/") == 1 else None


def _bare_id(model: ModelInfo) -> str:
    """The id without what loading adds: `org/name (4-bit) + adapter`."""
    return model.id.partition(" + ")[0].partition(" (")[0]


def _load_arguments(model: ModelInfo) -> str:
    arguments = [repr(_bare_id(model)).replace("'", '"')]
    if model.revision is not None:
        arguments.append(f'revision="{model.revision}"')
    for bits in (4, 8):
        if f" ({bits}-bit)" in model.id:
            arguments.append(f"quantize={bits}")
    if " + " in model.id:
        arguments.append("adapter=...")
    return ", ".join(arguments)


def _options(model: ModelInfo) -> str:
    """The same for the command line."""
    revision = f"@{model.revision}" if model.revision is not None else ""
    name = " ".join(f"{_bare_id(model)}{revision}".split())  # a line of its own ends no fence
    options = [f"--model {shlex.quote(name)}"]
    options += [f"--quantize {bits}" for bits in (4, 8) if f" ({bits}-bit)" in model.id]
    options += ["--adapter ADAPTER"] if " + " in model.id else []
    return " ".join(options)


def _quantization(model: ModelInfo) -> str:
    if model.quantization is None:
        return "none"
    return ", ".join(f"{key} {value}" for key, value in sorted(model.quantization.items()))


def _effect(vectors: SteeringVectorSet, run: Path) -> _Effect:
    file = run / "metrics.json"
    try:
        metrics = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise VectorError(f"{file} is missing; write it with: mlx-steer report {run}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise VectorError(
            f"{file} cannot be read ({error}); run: mlx-steer report {run}"
        ) from error
    _check_same(vectors, run)
    try:
        return _read_effect(metrics)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise VectorError(
            f"{file} is not as this version writes it; write it anew with: mlx-steer report {run}"
        ) from error


def _check_same(vectors: SteeringVectorSet, run: Path) -> None:
    measured = load_vectors(run / "vectors")
    shared = [layer for layer in measured if layer in vectors]
    own, theirs = vectors.metadata.layers, measured.metadata.layers
    other = [layer for layer in shared if own[layer].sha256 != theirs[layer].sha256]
    if other or not shared or vectors.metadata.model != measured.metadata.model:
        what = f"layer {other[0]} differs" if other else "its model or its layers are others"
        raise VectorError(
            f"{run} was not measured with these vectors ({what}); give the run they are from, or "
            f"share {run / 'vectors'}"
        )


def _read_effect(metrics: _Json) -> _Effect:
    behavior = metrics["behavior"]
    sets, shown = behavior["sets"], behavior["verdicts"]["shown"]
    conditions = [c for c in metrics["test"]["conditions"] if c["kind"] in _SHOWN_KINDS]
    choice = (metrics.get("select") or {}).get("choice")
    sentences = []
    if choice is not None and not choice["met_limits"]:
        sentences.append("No cell of the sweep met the limits on false positives and coherence.")
    chosen = [
        c
        for c in conditions
        if c["kind"] == "steering"
        and choice is not None
        and (c["layer"], c["strength"]) == (choice["layer"], choice["strength"])
    ]
    for condition in chosen:
        against = condition["against_base"] or {}
        for measure, name in (("target", sets["target"]), ("false_positive", sets["other"])):
            if difference := against.get(measure):
                sentences.append(_difference(condition["name"], name, difference))
    controls = (metrics.get("controls") or {}).get("random")
    if controls and controls["seeds"]:
        sentences.append(
            f"On {sets['target']} prompts it beat {controls['beaten_on_target']} of "
            f"{controls['seeds']} random directions of the same norm."
        )
    return _Effect(
        title=behavior["title"],
        shown=shown,
        target=sets["target"],
        other=sets["other"],
        rows=[
            _Row(
                c["name"],
                _rate(c["target"]),
                _rate(c["false_positive"]),
                _rate(c["incoherent"]),
                _number(c["coherence"]["mean"]),
            )
            for c in conditions
        ],
        sentences=sentences,
        layer=choice["layer"] if choice is not None else None,
        strength=choice["strength"] if choice is not None else None,
    )


def _difference(name: str, prompts: str, value: _Json) -> str:
    points, low, high = (100 * value[key] for key in ("difference", "low", "high"))
    return (
        f"Against base, {name} changes the rate on {prompts} prompts by {points:+.0f} points "
        f"[{low:+.0f}, {high:+.0f}] (n = {value['n']}, Holm-corrected p = {value['p_holm']:.3g})."
    )


def _rate(value: _Json) -> str:
    if value["rate"] is None:
        return "-"
    low, high = (f"{100 * value[key]:.0f}" for key in ("low", "high"))
    return f"{value['count']} of {value['n']}: {100 * value['rate']:.0f} % [{low}, {high}]"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _line(value: object) -> str:
    """A text on one line, which can begin no new block of markdown."""
    return " ".join(str(value).split())


def _cell(value: object) -> str:
    """A text within a cell of a table."""
    return _line(value).replace("|", "\\|")
