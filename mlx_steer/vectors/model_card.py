"""The model card (README.md) of shared vectors, from their metadata and what a run measured."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from mlx_steer.vectors.metadata import ModelInfo
from mlx_steer.vectors.vector_set import SteeringVectorSet

# The built-in model's name is not one of the hub's.
_HUB_IDS = {"smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct"}


@dataclass(frozen=True)
class EffectRow:
    """One condition of the table of measured effects, as text."""

    name: str
    target: str
    other: str
    incoherent: str
    coherence: str


@dataclass(frozen=True)
class Effect:
    """What a run measured with these vectors, in words; `title` is the behavior's."""

    title: str
    shown: str
    target: str
    other: str
    rows: Sequence[EffectRow]
    sentences: Sequence[str]
    layer: int | None
    strength: float | None


def model_card(vectors: SteeringVectorSet, repo: str, effect: Effect | None = None) -> str:
    """The text of README.md, with front matter for the hub.

    Args:
        vectors: What is shared.
        repo: `org/name` on the hub.
        effect: What was measured with them; None if nothing was.
    """
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
    front: dict[str, object] = {"library_name": "mlx-steer"}
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


def _line(value: object) -> str:
    """A text on one line, which can begin no new block of markdown."""
    return " ".join(str(value).split())


def _cell(value: object) -> str:
    """A text within a cell of a table."""
    return _line(value).replace("|", "\\|")
