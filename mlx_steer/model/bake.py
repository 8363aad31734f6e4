"""Steering written into a model's weights: an ordinary mlx-lm folder that behaves as if steered.

`add` becomes the bias of a block's last projection: whatever the block puts out, strength x vector
is in it. `ablate` takes a direction out of every matrix that writes to the hidden state. That is
*projection at every write*, not ablation of a block's output, which would also take out what the
blocks below wrote.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from mlx_steer.conditions import Float32
from mlx_steer.errors import ModelError, VectorError
from mlx_steer.model.baked_card import Baked, baked_card
from mlx_steer.model.hub import MODEL_FILES, Location, build_once, locate, quantized
from mlx_steer.model.size import check_fits, read_config
from mlx_steer.vectors import SteeringVectorSet
from mlx_steer.vectors.evidence import Evidence

BakeOperator = Literal["add", "ablate"]

# Modules of mlx-lm, because several model types share one.
_WITH_BIAS = {"llama"}
_WITH_PLAIN_WRITES = {"llama", "qwen2", "qwen3", "phi3", "ministral3"}
_NORMALISED = {"gemma2", "gemma3", "gemma3_text", "olmo2", "olmo3", "glm4"}

# Weights and what describes them are written anew.
_WRITTEN = ("config.json", "model.safetensors.index.json")


@dataclass(frozen=True, eq=False)
class Steering:
    """What is baked in.

    Attributes:
        vectors: Of the model that is baked.
        layers: For `add` one or several, each with its own vector; for `ablate` the one whose
            vector is the direction.
        strength: For `add` the factor on the vectors, for `ablate` the part of the projection.
        operator: How it acts.
    """

    vectors: SteeringVectorSet
    layers: tuple[int, ...]
    strength: float
    operator: BakeOperator = "add"

    def __post_init__(self) -> None:
        """Check that it can be done at all.

        Raises:
            VectorError: If a vector is missing or the strength is none that can be baked.
        """
        if not self.layers:
            raise VectorError("say which layer to bake in")
        for layer in self.layers:
            _ = self.vectors[layer]
        if not math.isfinite(self.strength) or self.strength == 0:
            raise VectorError(f"a strength of {self.strength:g} cannot be baked in; give another")
        if self.operator == "ablate" and len(self.layers) > 1:
            raise VectorError("ablating takes one direction; give the one layer it is read from")
        if self.operator == "ablate" and not 0 < self.strength <= 1:
            raise VectorError(
                f"ablating takes a part of the projection, above 0 and up to 1, not "
                f"{self.strength:g}"
            )


def bake(
    name: str,
    steering: Steering,
    folder: Path,
    *,
    revision: str | None = None,
    quantize: Literal[4, 8] | None = None,
    evidence: Evidence | None = None,
) -> Baked:
    """Write a model folder with steering in its weights; it is complete or absent.

    Args:
        name: The model, as `load_model` takes it.
        steering: What to bake in.
        folder: A path at which nothing is.
        revision: A branch, tag or commit of the hub.
        quantize: Convert original weights to so many bits first.
        evidence: What was measured with the vectors, for the folder's README.

    Raises:
        ModelError: If the family cannot be baked, or the folder cannot be written.
        VectorError: If the vectors are of another model.
    """
    from mlx_lm.utils import save_config, save_model

    if folder.exists() or folder.is_symlink():
        raise ModelError(f"{folder} exists already; remove it or choose another name")
    location = locate(name, revision)
    _check_family(read_config(location.folder), steering.operator)
    location, network, config = _loaded(location, quantize)
    hidden_size = network.model.norm.weight.shape[0]
    steering.vectors.check_fits(hidden_size, len(network.layers), location.id)
    write = _add if steering.operator == "add" else _ablate
    loss, left = write(network, config, steering)
    dtype = str(network.model.norm.weight.dtype).removeprefix("mlx.core.")
    layers = tuple(steering.vectors[layer].layer for layer in steering.layers)
    made = Baked(
        model_id=location.id,
        model_type=config["model_type"],
        dtype=dtype,
        layers=layers,
        strength=steering.strength,
        operator=steering.operator,
        loss=loss,
        left=left,
    )
    card = baked_card(made, steering.vectors, evidence)

    def make(part: Path) -> None:
        save_model(part, network, donate_model=True)
        save_config(config, part / "config.json")
        for file in _other_files(location):
            shutil.copyfile(file, part / file.name)
        (part / "README.md").write_text(card, encoding="utf-8")

    try:
        build_once(folder, make)
    except OSError as error:
        raise ModelError(f"{folder} cannot be written: {error.strerror or error}") from error
    return made


def _loaded(
    location: Location, quantize: Literal[4, 8] | None
) -> tuple[Location, nn.Module, dict[str, Any]]:
    from mlx_lm.utils import load_model

    check_fits(location.id, location.folder, quantize=quantize)
    if quantize is not None:
        location = quantized(location, quantize)
    try:
        network, config = load_model(location.folder, lazy=True)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"{location.id} cannot be loaded: {reason}") from error
    return location, network, config


def _check_family(config: dict[str, Any], operator: BakeOperator) -> None:
    from mlx_lm.utils import MODEL_REMAPPING

    kind = str(config.get("model_type"))
    module = MODEL_REMAPPING.get(kind, kind)
    if module in (_WITH_BIAS if operator == "add" else _WITH_PLAIN_WRITES):
        return
    instead = "steer it while it runs (mlx_steer.steered, mlx-steer generate)"
    if module in _NORMALISED:
        raise ModelError(
            f"model type {kind!r} normalises what its projections write before adding it, so "
            f"nothing can be baked into their weights; {instead}"
        )
    if operator == "add":
        raise ModelError(
            f"model type {kind!r} has no bias at its blocks' last projection in mlx-lm (the Llama "
            f"class has: Llama, Mistral, SmolLM2), so nothing can be added there; {instead}"
        )
    known = ", ".join(sorted(_WITH_PLAIN_WRITES))
    raise ModelError(
        f"what writes to the hidden state of model type {kind!r} is not known here, only of "
        f"{known}; {instead}"
    )


def _add(network: nn.Module, config: dict[str, Any], steering: Steering) -> tuple[None, None]:
    """Give all projections of the MLPs a bias: zeros, and the vectors where they belong."""
    dtype = network.model.norm.weight.dtype
    for block in network.layers:
        mlp = block.mlp
        for linear, size in (
            (mlp.gate_proj, config["intermediate_size"]),
            (mlp.up_proj, config["intermediate_size"]),
            (mlp.down_proj, config["hidden_size"]),
        ):
            if "bias" not in linear:
                linear.bias = mx.zeros((size,), dtype)
    for layer in steering.layers:
        vector = steering.vectors[layer]
        scaled = (steering.strength * vector.array.astype(np.float64)).astype(np.float32)
        down = network.layers[vector.layer].mlp.down_proj
        down.bias = (down.bias.astype(mx.float32) + mx.array(scaled)).astype(dtype)
    config["mlp_bias"] = True
    return None, None


def _ablate(
    network: nn.Module, config: dict[str, Any], steering: Steering
) -> tuple[float | None, float]:
    """Take the direction out of everything that writes to the hidden state.

    Returns:
        The loss by requantising, and what is left of the direction (see `Baked`).
    """
    _untie(network, config)
    unit = steering.vectors[steering.layers[0]].normalised().array
    done = [
        _project(module, unit, steering.strength, output) for module, output in _writers(network)
    ]
    mx.eval(dict(tree_flatten(network.parameters())))  # type: ignore[no-untyped-call]
    losses = [loss for loss, _ in done if loss is not None]
    return _root_mean_square(losses) if losses else None, _root_mean_square(
        [left for _, left in done]
    )


def _writers(network: nn.Module) -> Iterator[tuple[nn.Module, bool]]:
    """Modules that write to the hidden state, and whether their outputs are rows of the weight."""
    yield network.model.embed_tokens, False
    for block in network.layers:
        yield block.self_attn.o_proj, True
        yield block.mlp.down_proj, True


def _untie(network: nn.Module, config: dict[str, Any]) -> None:
    """Write a tied head out: it reads the hidden state and is to stay as it was."""
    if not network.args.tie_word_embeddings:
        return
    embedding = network.model.embed_tokens
    rows, size = config["vocab_size"], config["hidden_size"]
    if isinstance(embedding, nn.QuantizedEmbedding):
        head: nn.Module = nn.QuantizedLinear(
            size, rows, False, embedding.group_size, embedding.bits, mode=embedding.mode
        )
        exceptions = config["quantization"]
        if "model.embed_tokens" in exceptions:
            exceptions["lm_head"] = exceptions["model.embed_tokens"]
    else:
        head = nn.Linear(size, rows, bias=False)
    head.update(embedding.parameters())
    network.lm_head = head
    network.args.tie_word_embeddings = config["tie_word_embeddings"] = False


def _project(
    module: nn.Module, unit: Float32, part: float, output: bool
) -> tuple[float | None, float]:
    """Take a part of the direction out of what a module writes.

    Returns:
        The loss by requantising, None without; and the part of the direction that is left.
    """
    direction = mx.array(unit)
    packed = isinstance(module, nn.QuantizedLinear | nn.QuantizedEmbedding)
    before = _expanded(module) if packed else module.weight.astype(mx.float32)
    exact = before - part * _along(before, direction, output)
    if packed:
        weight, scales, *biases = mx.quantize(
            exact.astype(module.scales.dtype), module.group_size, module.bits, mode=module.mode
        )
        module.weight, module.scales = weight, scales
        if biases:
            module.biases = biases[0]
        after = _expanded(module)
        loss = _norm(after - exact) / _norm(exact)
    else:
        module.weight = exact.astype(module.weight.dtype)
        after, loss = module.weight.astype(mx.float32), None
    if output and "bias" in module:
        bias = module.bias.astype(mx.float32)
        module.bias = (bias - part * (bias @ direction) * direction).astype(module.bias.dtype)
    wrote = _norm(_along(before, direction, output))
    return loss, _norm(_along(after, direction, output)) / wrote if wrote else 0.0


def _along(weight: mx.array, unit: mx.array, output: bool) -> mx.array:
    """The part of a matrix that writes along a direction."""
    if output:
        return unit[:, None] * (unit @ weight)[None]
    return (weight @ unit)[:, None] * unit[None]


def _expanded(module: nn.Module) -> mx.array:
    weight: mx.array = mx.dequantize(
        module.weight,
        module.scales,
        module.get("biases"),
        module.group_size,
        module.bits,
        mode=module.mode,
    )
    return weight.astype(mx.float32)


def _norm(array: mx.array) -> float:
    return float(np.linalg.norm(np.array(array)))


def _root_mean_square(values: Sequence[float]) -> float:
    return math.sqrt(math.fsum(v * v for v in values) / len(values))


def _other_files(location: Location) -> list[Path]:
    """Tokenizer, chat template and whatever else belongs to a model beside its weights."""
    found = {path for pattern in MODEL_FILES for path in location.folder.glob(pattern)}
    skip = {path for path in found if path.suffix == ".safetensors" or path.name in _WRITTEN}
    return sorted(found - skip)
