"""The model card (README.md) of vectors, from their metadata and what was measured with them."""

import shlex
from importlib.metadata import version
from typing import get_args

from huggingface_hub import ModelCard, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from mlx_steer.bands import LayerOrBand, layers_of
from mlx_steer.vectors.evidence import Evidence
from mlx_steer.vectors.folder import MADE_WITH
from mlx_steer.vectors.metadata import ModelInfo
from mlx_steer.vectors.vector_set import SteeringVectorSet
from mlx_steer.words import Method, TokenPosition

# The built-in model's name is not one of the hub's.
_HUB_IDS = {"smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct"}
# Whose blocks end in a projection that can have a bias (see model/bake.py).
_BAKED_TYPES = ("llama", "mistral")


def model_card(
    vectors: SteeringVectorSet, repo: str, evidence: Evidence | None = None, folder: str = ""
) -> str:
    """The text of README.md, with front matter for the hub.

    Args:
        vectors: What is shared.
        repo: `org/name` on the hub, or only a name for a card that is not on the hub.
        evidence: What was measured with these vectors.
        folder: Where the reader has them, as a path; `vectors/<name>` by default.
    """
    own = vectors.metadata
    layers = list(vectors)
    place: LayerOrBand = layers[len(layers) // 2]
    if evidence is not None and evidence.layer is not None:
        known = all(layer in vectors for layer in layers_of(evidence.layer))
        place = evidence.layer if known else place
    steered = layers_of(place)
    strength = evidence.strength if evidence is not None else None
    environment = Environment(
        loader=PackageLoader("mlx_steer.vectors", "."),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters |= {"line": _line, "cell": _cell}
    name = repo.rpartition("/")[2]
    body = environment.get_template("model_card.md.j2").render(
        title=name,
        repo=repo if "/" in repo else None,
        made=f"{MADE_WITH} {version('mlx-steer')}.",
        folder=folder or f"vectors/{name}",
        name=name,
        own=own,
        model=own.model,
        quantization=quantization_text(own.model),
        vectors=vectors,
        evidence=evidence,
        load=_load_arguments(own.model),
        options=_options(own.model),
        hub_id=_hub_id(own.model),
        pytorch_id=_hub_id(own.model) or _bare_id(own.model),
        made_by=_command(vectors, folder or f"vectors/{name}"),
        adapted=" + " in own.model.id,
        bakeable=own.model.model_type in _BAKED_TYPES,
        place=place,
        layer=steered[0] if len(steered) == 1 else list(steered),
        steered=steered,
        strength=1.0 if strength is None else strength,
    )
    return str(ModelCard(f"---\n{_front_matter(vectors)}\n---\n\n{body}"))


def _front_matter(vectors: SteeringVectorSet) -> str:
    own = vectors.metadata
    base = _hub_id(own.model)
    tags = ["activation-steering", "steering-vectors", "mlx-steer", "mlx"]
    tags += [_line(part) for part in own.behavior.split(" + ") if part not in tags]
    data = ModelCardData(library_name="mlx-steer", tags=tags, base_model=base)
    if base is not None:
        # Without the relation the hub would list the vectors as a fine-tuned model.
        data["base_model_relation"] = "adapter"
    return str(data.to_yaml())


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


def _command(vectors: SteeringVectorSet, folder: str) -> str | None:
    """The command that makes such vectors; None where several steps or another tool did."""
    own = vectors.metadata
    known = own.method in get_args(Method) and own.token_position in get_args(TokenPosition)
    if not known or own.source is not None or own.dataset is None:
        return None
    parts = [f"mlx-steer extract {_options(own.model)} --behavior {shlex.quote(own.behavior)}"]
    parts.append(f"--layers {','.join(map(str, vectors))} --token-position {own.token_position}")
    if own.method != "mean_difference":
        parts.append(f"--method {own.method}")
    return " ".join([*parts, f"--out {folder}"])


def quantization_text(model: ModelInfo) -> str:
    """How a model's weights are quantised, in words."""
    if model.quantization is None:
        return "none"
    return ", ".join(f"{key} {value}" for key, value in sorted(model.quantization.items()))


def _line(value: object) -> str:
    """A text on one line, which can begin no new block of markdown."""
    return " ".join(str(value).split())


def _cell(value: object) -> str:
    """A text within a cell of a table."""
    return _line(value).replace("|", "\\|")
