"""What `metadata.json` says, as records that check themselves; knows no arrays."""

import re
from typing import Annotated

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    field_validator,
)

from mlx_steer.errors import VectorError
from mlx_steer.files import one_line

FORMAT_VERSION = 1

METADATA_FILE = "metadata.json"

LAYER_CONVENTION = (
    "layer i is the output of decoder block i, counted from 0, before any final norm; "
    "in Hugging Face transformers a forward hook on block i"
)

# These words are printed on terminals.
_Text = Annotated[str, StringConstraints(min_length=1), AfterValidator(one_line)]

_Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]

_Norm = Annotated[float, Field(ge=0, allow_inf_nan=False)]

_PositiveNorm = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())


class ModelInfo(_Record):
    """The model the vectors were taken from; `fingerprint` identifies its weights."""

    id: _Text
    revision: _Text | None
    model_type: _Text
    quantization: dict[str, JsonValue] | None
    fingerprint: _Text


class DatasetInfo(_Record):
    """The contrast pairs the vectors were taken from; `sha256` is of their canonical JSON."""

    name: _Text
    sha256: _Sha256
    pairs: Annotated[int, Field(ge=1)]


class LayerInfo(_Record):
    """One layer's file: its name, the sha256 of its bytes, and the two norms (9 digits)."""

    file: _Text
    sha256: _Sha256
    norm: _Norm
    hidden_norm: _PositiveNorm


class GateInfo(_Record):
    """One gate's file and how it was fitted.

    `threshold` is in units of hidden state . direction; `auc` and `false_positive_rate` are
    held-out figures; `system_prompt_sha256` is of the system prompt it was fitted under, if any.
    """

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
    file: _Text
    sha256: _Sha256
    layer: Annotated[int, Field(ge=0)]
    threshold: Annotated[float, Field(allow_inf_nan=False)]
    method: _Text
    auc: Annotated[float, Field(ge=0, le=1)]
    false_positive_rate: Annotated[float, Field(ge=0, le=1)]
    prompts: dict[str, int]
    system_prompt_sha256: _Sha256 | None


class VectorMetadata(_Record):
    """Everything `metadata.json` says.

    Build it without `layers`: a `SteeringVectorSet` fills them in from its vectors, so that they
    always agree. `token_position` is `last` or `mean`; `seed` is None where nothing was random.
    """

    behavior: _Text
    method: _Text
    token_position: _Text
    hidden_size: Annotated[int, Field(ge=1)]
    num_layers: Annotated[int, Field(ge=1)]
    model: ModelInfo
    chat_template_sha256: _Sha256 | None
    dataset: DatasetInfo
    seed: int | None
    format_version: Annotated[int, Field(ge=1, le=1)] = FORMAT_VERSION
    layer_convention: str = LAYER_CONVENTION
    layers: dict[int, LayerInfo] = Field(default_factory=dict)
    gates: list[GateInfo] = Field(default_factory=list)

    @field_validator("layers", mode="before")
    @classmethod
    def _layer_numbers(cls, value: object) -> object:
        # JSON has no integer keys; "012" or "+1" would let two keys name one layer.
        if not isinstance(value, dict):
            return value
        for key in value:
            if not re.fullmatch(r"0|[1-9][0-9]{0,5}", str(key)):
                raise ValueError(f"{str(key)[:40]!r} is not a layer number")
        return {int(key): info for key, info in value.items()}

    @field_validator("layer_convention")
    @classmethod
    def _known_convention(cls, value: str) -> str:
        if value != LAYER_CONVENTION:
            raise ValueError(f"{value[:60]!r} is another way; this reads only {LAYER_CONVENTION!r}")
        return value


def nine_digits(value: float) -> float:
    """A norm as it is stored, to 9 significant digits."""
    return float(f"{value:.9g}")


def gate_file(name: str) -> str:
    """The name of a gate's file."""
    return f"gate_{name}.npy"


def layer_file(layer: int) -> str:
    """The name of a layer's file."""
    return f"layer_{layer}.npy"


def check_layer(layer: int, num_layers: int, where: str) -> None:
    """Raises VectorError, beginning with `where`, for a layer the model does not have."""
    if not 0 <= layer < num_layers:
        raise VectorError(
            f"{where} has layer {layer}, but the model has layers 0 to {num_layers - 1}."
        )
