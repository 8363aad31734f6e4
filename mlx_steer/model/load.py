"""Loading: weights, tokenizer and chat template behind one small object."""

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx
import mlx.nn as nn

from mlx_steer.conditions import digest
from mlx_steer.errors import ModelError
from mlx_steer.model.chat import ChatFormat
from mlx_steer.model.families import HIDDEN_SIZE, WINDOWED
from mlx_steer.model.fingerprint import weights_fingerprint
from mlx_steer.model.hub import Location, locate, quantized
from mlx_steer.model.machine import versions
from mlx_steer.model.shape import layer_of
from mlx_steer.model.sharding import shard as shard_network
from mlx_steer.model.size import check_fits
from mlx_steer.model.x86_linux import hasten, lay_out
from mlx_steer.team import Team, team
from mlx_steer.vectors import ModelInfo
from mlx_steer.words import DtypeChoice, Shard


@dataclass(frozen=True, eq=False)
class Model:
    """A language model ready to be steered.

    Attributes:
        network: The mlx-lm network; the same object works with every mlx-lm function.
        chat: Tokenizer and chat template.
        info: What identifies it in metadata.
        hidden_size: Width of the hidden state.
        dtype: Dtype of the hidden state.
        context: Longest sequence it computes correctly, in tokens, or None if unknown.
        config: The model's config.json.
        team: The ranks that its weights are spread over (see model/sharding.py); mostly just one.
    """

    network: nn.Module
    chat: ChatFormat
    info: ModelInfo
    hidden_size: int
    dtype: mx.Dtype
    context: int | None
    config: dict[str, Any] = field(repr=False)
    team: Team = field(default_factory=Team)

    @property
    def tokenizer(self) -> Any:
        """mlx-lm's tokenizer, as `mlx_lm.load` returns it."""
        return self.chat.tokenizer

    @property
    def num_layers(self) -> int:
        """The number of decoder blocks."""
        return len(decoder_layers(self.network))

    @cached_property
    def identity(self) -> str:
        """The hash of all that decides its responses to token ids, as hex digits.

        Weights (a sample of them), config, the dtype and layout of every parameter, the tokenizer,
        and the tokens that end a response.
        """
        return digest(
            {
                "fingerprint": self.info.fingerprint,
                "config": json.loads(json.dumps(self.config, default=str)),
                "parameters": [(n, list(v.shape), str(v.dtype)) for n, v in _leaves(self.network)],
                "tokenizer": self.chat.tokenizer_sha256,
                "stop_ids": sorted(self.chat.stop_ids),
            }
        )

    @property
    def exact(self) -> bool:
        """Whether the hidden state is float32, so that near ties can be decided (see generate)."""
        return self.dtype == mx.float32

    def layer(self, index: int) -> int:
        """A layer counted from 0; negative numbers count from the end.

        Raises:
            ModelError: If the model has no such layer.
        """
        return layer_of(index, self.num_layers, self.info.id)


def load_model(
    name: str,
    revision: str | None = None,
    dtype: DtypeChoice = "auto",
    *,
    quantize: Literal[4, 8] | None = None,
    adapter: str | None = None,
    dequantize: bool = False,
    thinking: bool = False,
    shard: Shard | None = None,
) -> Model:
    """Load a model by hub id, folder, GGUF file or built-in name.

    Args:
        name: `org/name` on the hub (optionally `@revision`), a local folder, a `.gguf` file
            of an architecture in gguf/architectures.py, or `smollm2-135m`, which is built in.
        revision: A branch, tag or commit of the hub.
        dtype: Dtype of the weights and so of the hidden state; `auto` keeps the stored one (the
            built-in model is float32 on every platform).
        quantize: Convert original weights to 4 or 8 bits once and keep the result in the cache.
        adapter: A folder with a LoRA adapter made by mlx-lm.
        dequantize: Expand quantised weights after loading: the same values, faster on Linux.
        thinking: Let templates that can think (Qwen3) do so.
        shard: Spread the weights over the ranks that `mlx.launch` started; every rank must then
            make the same calls.

    Raises:
        ModelError: If the model cannot be found, loaded, sharded or steered, or does not fit into
            memory.
        TeamError: If other ranks cannot be reached.
    """
    ranks = _ranks(shard, adapter)
    location = locate(name, revision)
    wanted = location.dtype if dtype == "auto" else dtype
    if ranks.size == 1:  # else a rank's part is looked at once it is known
        check_fits(
            location.id, location.folder, dtype=wanted, quantize=quantize, dequantize=dequantize
        )
    if quantize is not None:
        location = quantized(location, quantize)
    network, tokenizer, config = _load(location)
    network = _as_wanted(network, name, adapter, wanted, dequantize)
    shard_network(network, config, location.id, ranks)
    mx.eval([value for _, value in _leaves(network)])
    lay_out(network)
    model = Model(
        network=network,
        chat=ChatFormat(tokenizer, location.id, thinking),
        info=_info(location, adapter, config),
        hidden_size=_hidden_size(config, name),
        dtype=_stream_dtype(network),
        context=_context(config),
        config=config,
        team=ranks,
    )
    found = {"weights": model.info.fingerprint, "tokenizer": model.chat.tokenizer_sha256}
    # On the CPU, whose waiting for a slower rank nothing cuts short: a GPU's has a deadline.
    ranks.agree({**versions(), **found})
    return model


def _ranks(shard: Shard | None, adapter: str | None) -> Team:
    """The ranks that a model is spread over."""
    if shard is not None and adapter is not None:
        raise ModelError(
            "an adapter cannot be sharded; fuse it into the weights (mlx_lm.fuse) first"
        )
    return team() if shard is not None else Team()


def _info(location: Location, adapter: str | None, config: dict[str, Any]) -> ModelInfo:
    return ModelInfo(
        id=location.id if adapter is None else f"{location.id} + {Path(adapter).name}",
        revision=location.revision,
        model_type=config["model_type"],
        quantization=quantization_of(config),
        fingerprint=weights_fingerprint(location.folder, Path(adapter) if adapter else None),
    )


def _as_wanted(
    network: nn.Module, name: str, adapter: str | None, dtype: str | None, dequantize: bool
) -> nn.Module:
    """The network with its adapter and in its precision, not yet in memory."""
    from mlx_lm.utils import dequantize_model, load_adapters

    if adapter is not None:
        if not (Path(adapter) / "adapter_config.json").is_file():
            raise ModelError(f"{adapter} is no adapter folder: it has no adapter_config.json")
        try:
            network = load_adapters(network, adapter)
        except Exception as error:
            raise ModelError(f"the adapter {adapter} does not fit {name}: {error}") from error
        network.eval()
    if dequantize:
        network = dequantize_model(network)
    if dtype is not None:
        network.set_dtype(getattr(mx, dtype))
    return network


def decoder_layers(network: nn.Module) -> list[nn.Module]:
    """The decoder blocks of an mlx-lm network, in order.

    Raises:
        ModelError: If they are not a plain list of modules.
    """
    layers = getattr(network, "layers", None)
    if not isinstance(layers, list) or not all(isinstance(b, nn.Module) for b in layers):
        raise ModelError(
            f"the decoder blocks of model type {_kind(network)!r} are not a plain list, which "
            "steering needs; support for it belongs in mlx_steer/model/families.py"
        )
    return layers


def _kind(network: nn.Module) -> str:
    return str(getattr(network, "model_type", type(network).__module__))


def _load(location: Location) -> tuple[nn.Module, Any, dict[str, Any]]:
    from mlx_lm.utils import load

    hasten()
    try:
        loaded: Any = load(
            str(location.folder),
            # Without it transformers would ask on the terminal whether to run a tokenizer's code.
            tokenizer_config={"trust_remote_code": False},
            lazy=True,
            return_config=True,
        )
    except json.JSONDecodeError as error:
        raise ModelError(f"a JSON file of {location.folder} is damaged: {error}") from error
    except Exception as error:
        reason = " ".join(str(error).split())
        reason = reason if len(reason) <= 300 else f"{reason[:297]}..."
        raise ModelError(
            f"{location.id} cannot be loaded from {location.folder}: {reason}"
        ) from error
    network, tokenizer, config = loaded
    return network, tokenizer, config


def _text_config(config: dict[str, Any]) -> dict[str, Any]:
    return config.get("text_config") or config


def _hidden_size(config: dict[str, Any], name: str) -> int:
    text = _text_config(config)
    value = next((text[key] for key in HIDDEN_SIZE if isinstance(text.get(key), int)), None)
    if value is None:
        raise ModelError(f"the config.json of {name} gives no hidden_size")
    return int(value)


def _context(config: dict[str, Any]) -> int | None:
    text = _text_config(config)
    limit = text.get("max_position_embeddings")
    window = _ignored_window(text)
    return limit if window is None else min(limit or window, window)


def _ignored_window(text: dict[str, Any]) -> int | None:
    """The sliding window of a model that mlx-lm computes with full attention everywhere.

    Beyond it (Mistral v0.1, Gemma 2, Phi 3) that is another model than the one published.
    """
    kind, window = text.get("model_type"), text.get("sliding_window") or text.get("window_size")
    if not window or kind not in WINDOWED or not text.get("use_sliding_window", WINDOWED[kind]):
        return None
    if kind in ("qwen2", "qwen3"):
        # Their first layers have full attention by design; 28 is transformers' default.
        layers, first = text.get("num_hidden_layers", 0), text.get("max_window_layers", 28)
        kinds = text.get("layer_types") or ["sliding_attention"] * max(0, layers - first)
        if "sliding_attention" not in kinds:
            return None
    return int(window)


def quantization_of(config: dict[str, Any]) -> dict[str, Any] | None:
    """What metadata says of a model's quantisation; None for original weights."""
    value = config.get("quantization") or config.get("quantization_config")
    if not isinstance(value, dict):
        return None
    found = {k: v for k, v in value.items() if isinstance(v, int | float | str | bool)}
    exceptions = sum(isinstance(v, dict) for v in value.values())
    return {**found, "exceptions": exceptions} if exceptions else found


def _stream_dtype(network: nn.Module) -> mx.Dtype:
    """The dtype of the hidden state: that of the first block's norm weights."""
    leaves = _leaves(decoder_layers(network)[0])
    norms = [v for name, v in leaves if v.ndim == 1 and "norm" in name]
    floats = [v for _, v in leaves if mx.issubdtype(v.dtype, mx.floating)]
    return (norms or floats)[0].dtype


def _leaves(module: nn.Module) -> list[tuple[str, mx.array]]:
    from mlx.utils import tree_flatten

    leaves: list[tuple[str, mx.array]] = tree_flatten(module.parameters())  # type: ignore
    return leaves
