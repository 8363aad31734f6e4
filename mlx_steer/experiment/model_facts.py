"""What can be known of a model before it is loaded, or even downloaded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_steer.config import ModelConfig
from mlx_steer.errors import ConfigError
from mlx_steer.model.families import APART, NOTES
from mlx_steer.model.published import PublishedModel, published_model
from mlx_steer.model.shape import Shape, layer_of
from mlx_steer.model.size import ModelSize, read_config, stream_bytes_of, weight_bytes_of

if TYPE_CHECKING:
    from mlx_steer.behaviors import Tool
    from mlx_steer.model.chat import ChatFormat

# Where no tokenizer is at hand: characters per token in English, tokens a template adds.
_CHARACTERS_PER_TOKEN, _TEMPLATE_TOKENS = 4.0, 15
_GUESSED = "There is no tokenizer at hand: token counts are guessed from characters."


@dataclass(frozen=True)
class ModelFacts:
    """What is known of the config's model.

    Attributes:
        name: As in the config.
        size: None if its config.json is not on this machine and nothing is known of it.
        downloaded: Whether it can be loaded without a download.
        chat: Its tokenizer and template, or None.
        notes: What a person should know.
    """

    name: str
    size: ModelSize | None = None
    downloaded: bool = False
    chat: ChatFormat | None = field(repr=False, default=None)
    notes: tuple[str, ...] = ()

    @property
    def num_layers(self) -> int | None:
        """The number of its decoder blocks; None if it is unknown."""
        return None if self.size is None else self.size.shape.layers

    def layer(self, index: int) -> int:
        """A layer counted from 0; negative numbers count from the end.

        Raises:
            ConfigError: If that cannot be told yet.
            ModelError: If the model has no such layer.
        """
        if self.num_layers is not None:
            return layer_of(index, self.num_layers, self.name)
        if index < 0:
            raise ConfigError(
                f"which layer {index} is, is unknown until {self.name} is downloaded; "
                "count layers from 0 to plan before that"
            )
        return index

    def prompt_tokens(self, prompt: str, system: str | None, tools: Sequence[Tool] = ()) -> int:
        """Tokens of a prompt in its template; a guess if there is no tokenizer."""
        if self.chat is not None:
            return len(self.chat.prompt_ids(prompt, system, tools))
        characters = len(prompt) + len(system or "") + (len(str(list(tools))) if tools else 0)
        return _TEMPLATE_TOKENS + round(characters / _CHARACTERS_PER_TOKEN)

    def response_tokens(self, response: str) -> int:
        """Tokens of a response's text; a guess if there is no tokenizer."""
        if self.chat is not None:
            return len(self.chat.response_ids(response))
        return max(1, round(len(response) / _CHARACTERS_PER_TOKEN))


def find_model(settings: ModelConfig) -> ModelFacts:
    """Look for a model on this machine; nothing is downloaded or loaded.

    Raises:
        ModelError: If its files are damaged, or it cannot be steered at all.
    """
    folder, dtype, missing = _folder(settings)
    if folder is None:
        published = published_model(settings.name)
        if published is not None:
            return _as_published(settings, published)
        return ModelFacts(settings.name, notes=(missing, *_said_by_name(settings), _GUESSED))
    config = read_config(folder)
    stored = bool(config.get("quantization") or config.get("quantization_config"))
    complete = _has_weights(folder)
    notes = [] if complete else [f"The weights of {settings.name} are not downloaded yet."]
    together = APART.get(str(config.get("model_type")))
    if together is not None:
        notes.append(NOTES[together])
    chat = _chat(folder, settings)
    if chat is None:
        notes.append(_GUESSED)
    if settings.adapter is not None:
        notes.append("The adapter's weights are not counted; they are small.")
    return ModelFacts(
        name=settings.name,
        size=ModelSize(
            Shape.of(config),
            weight_bytes_of(
                folder if complete else config,
                dtype=dtype,
                quantize=settings.quantize,
                dequantize=settings.dequantize,
            ),
            stream_bytes_of(folder if complete else config, dtype),
            quantized=(stored or settings.quantize is not None) and not settings.dequantize,
        ),
        downloaded=complete,
        chat=chat,
        notes=tuple(notes),
    )


def weights_of(settings: ModelConfig) -> int | None:
    """Bytes of a model's weights once loaded; None if they are not on this machine.

    Raises:
        ModelError: If its files are damaged, or there is no such model.
    """
    folder, dtype, _ = _folder(settings)
    if folder is None or not _has_weights(folder):
        return None
    return weight_bytes_of(
        folder, dtype=dtype, quantize=settings.quantize, dequantize=settings.dequantize
    )


def _as_published(settings: ModelConfig, model: PublishedModel) -> ModelFacts:
    wide = settings.dtype == "float32"
    quantize = None if settings.dequantize else settings.quantize
    size = ModelSize(
        Shape.of(model.config),
        model.weights(quantize, wide),
        dtype_bytes=4 if wide else 2,
        quantized=model.quantized or quantize is not None,
    )
    note = f"{settings.name} is not downloaded; its sizes are those it is published with."
    return ModelFacts(settings.name, size, notes=(note, _GUESSED))


def _folder(settings: ModelConfig) -> tuple[Path | None, str | None, str]:
    """Where the model's config.json is, the dtype it is loaded in, and what is missing if None."""
    from mlx_steer.model.hub import BUILT_IN, locate

    dtype = None if settings.dtype == "auto" else settings.dtype
    path = Path(settings.name).expanduser()
    if settings.name == BUILT_IN or path.is_dir():
        location = locate(settings.name)
        return location.folder, dtype or location.dtype, ""
    if path.suffix == ".gguf" and path.is_file():
        return None, dtype, "Sizes are unknown until the GGUF file is converted, at the first run."
    repo, _, revision = settings.name.partition("@")
    if repo.count("/") != 1 or path.is_absolute() or settings.name.startswith((".", "~")):
        locate(settings.name)  # no hub id: this says so
    folder = _cached(repo, settings.revision or revision or None)
    missing = f"Sizes are unknown until {settings.name} is downloaded, which the run does."
    return folder, dtype, missing


def _cached(repo: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    from mlx_steer.errors import ModelError

    try:
        found = try_to_load_from_cache(repo, "config.json", revision=revision)
    except HFValidationError as error:
        raise ModelError(
            f"there is no model folder {repo!r}, and it is no hub id either: {error}"
        ) from error
    return Path(found).parent if isinstance(found, str) else None


def _has_weights(folder: Path) -> bool:
    """Whether all weight files are there: each one that the index names, if there is an index."""
    import json

    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return any(folder.glob("model*.safetensors"))
    try:
        files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return all((folder / name).is_file() for name in files)
    # OSError: a name may be longer than a file's can be.
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def _chat(folder: Path, settings: ModelConfig) -> ChatFormat | None:
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        return None
    from mlx_lm.utils import load_tokenizer

    from mlx_steer.errors import ModelError
    from mlx_steer.model.chat import ChatFormat

    try:
        # Without it transformers would ask on the terminal whether to run a tokenizer's code.
        own_code = {"trust_remote_code": False}
        tokenizer = load_tokenizer(folder, own_code)  # type: ignore[no-untyped-call]
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"the tokenizer of {settings.name} cannot be loaded: {reason}; fetch the model again"
        ) from error
    return ChatFormat(tokenizer, settings.name, settings.thinking)


def _said_by_name(settings: ModelConfig) -> list[str]:
    """What the number of parameters in a name (7B, 1.5b) says of the weights, as one sentence."""
    found = re.search(r"(?<![\w.])(\d+(?:\.\d+)?)[bB](?![a-zA-Z0-9])", settings.name)
    bits = re.search(r"(?<!\d)([2-8])-?bit", settings.name, re.IGNORECASE)
    if found is None:
        return []
    width = settings.quantize or (int(bits[1]) if bits else None)
    each = {"float32": 4.0}.get(settings.dtype, 2.0) if width is None else (width + 0.5) / 8
    size = float(found[1]) * each
    precision = "unquantised" if width is None else f"at {width} bits"
    return [f"By its name it has {found[1]} billion parameters: {precision} about {size:.1f} GB."]
