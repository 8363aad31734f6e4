"""What `metadata.json` says, as records that check themselves; knows no arrays."""

import hashlib
import re
from collections.abc import Sequence
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
PAIRS_FILE = "pairs.jsonl"

LAYER_CONVENTION = (
    "layer i is the output of decoder block i, counted from 0, before any final norm; "
    "in Hugging Face transformers a forward hook on block i"
)

# These words are printed on terminals.
PlainText = Annotated[str, StringConstraints(min_length=1), AfterValidator(one_line)]

_Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]

_Norm = Annotated[float, Field(ge=0, allow_inf_nan=False)]

_PositiveNorm = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())


class ModelInfo(_Record):
    """The model the vectors were taken from; `fingerprint` identifies its weights."""

    id: PlainText
    revision: PlainText | None
    model_type: PlainText
    quantization: dict[str, JsonValue] | None
    fingerprint: PlainText


class DatasetInfo(_Record):
    """The contrast pairs the vectors were taken from; `sha256` is of their canonical JSON."""

    name: PlainText
    sha256: _Sha256
    pairs: Annotated[int, Field(ge=1)]


class LayerInfo(_Record):
    """One layer's file: its name, the sha256 of its bytes, and the two norms (9 digits).

    `hidden_norm` is None where nobody knows it, as of most imported vectors.
    """

    file: PlainText
    sha256: _Sha256
    norm: _Norm
    hidden_norm: _PositiveNorm | None


class GateInfo(_Record):
    """One gate's file and how it was fitted.

    `threshold` is in units of hidden state . direction; `auc` and `false_positive_rate` are
    held-out figures; `system_prompt_sha256` is of the system prompt it was fitted under, if any.
    """

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
    file: PlainText
    sha256: _Sha256
    layer: Annotated[int, Field(ge=0)]
    threshold: Annotated[float, Field(allow_inf_nan=False)]
    method: PlainText
    auc: Annotated[float, Field(ge=0, le=1)]
    false_positive_rate: Annotated[float, Field(ge=0, le=1)]
    prompts: dict[str, int]
    system_prompt_sha256: _Sha256 | None


class SourceInfo(_Record):
    """The file that vectors were imported from, and what is to be known of its format."""

    format: PlainText
    file: PlainText
    sha256: _Sha256
    notes: list[PlainText]


class WrittenInfo(_Record):
    """How a model wrote the contrast pairs itself, under two opposed sentences.

    `file` holds the pairs and `sha256` is of its bytes; the vectors are made of their text, read
    without the sentences. `dropped` counts pairs that were left out, by reason; `threshold`, in
    nats per token, and `auc` are those of the log-ratios of the answers.
    """

    file: PlainText
    sha256: _Sha256
    positive: Annotated[str, StringConstraints(min_length=1)]
    negative: Annotated[str, StringConstraints(min_length=1)]
    questions: Annotated[int, Field(ge=1)]
    answers: Annotated[int, Field(ge=1)]
    answer_tokens: Annotated[int, Field(ge=1)]
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    seed: int
    dropped: dict[str, int]
    threshold: Annotated[float, Field(allow_inf_nan=False)]
    auc: Annotated[float, Field(ge=0, le=1)]


class VectorMetadata(_Record):
    """Everything `metadata.json` says.

    Build it without `layers`: a `SteeringVectorSet` fills them in from its vectors, so that they
    always agree. `token_position` is `last` or `mean`; `seed` is None where nothing was random.
    Vectors of pairs that the model wrote have `written`. Imported ones have a `source`, and where
    their file did not say it no `dataset`, and method and token position `unknown`.
    """

    behavior: PlainText
    method: PlainText
    token_position: PlainText
    hidden_size: Annotated[int, Field(ge=1)]
    num_layers: Annotated[int, Field(ge=1)]
    model: ModelInfo
    chat_template_sha256: _Sha256 | None
    dataset: DatasetInfo | None
    seed: int | None
    format_version: Annotated[int, Field(ge=1, le=1)] = FORMAT_VERSION
    layer_convention: str = LAYER_CONVENTION
    layers: dict[int, LayerInfo] = Field(default_factory=dict)
    gates: list[GateInfo] = Field(default_factory=list)
    source: SourceInfo | None = None
    written: WrittenInfo | None = None

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


def combined(records: Sequence[VectorMetadata], method: str) -> VectorMetadata:
    """The metadata of a set made of several sets of one model; what they differ in is joined."""
    first = records[0]
    behaviors = dict.fromkeys(record.behavior for record in records)
    templates = {record.chat_template_sha256 for record in records}
    seeds = {record.seed for record in records}
    sources = [record.source for record in records]
    changes: dict[str, object] = {
        "behavior": " + ".join(behaviors),
        "dataset": _joined([record.dataset for record in records]),
        "chat_template_sha256": first.chat_template_sha256 if len(templates) == 1 else None,
        "seed": first.seed if len(seeds) == 1 else None,
        "method": method,
        "gates": [],
        "written": None,
        "source": sources[0] if all(source == sources[0] for source in sources) else None,
    }
    return first.model_copy(update=changes)


def _joined(datasets: Sequence[DatasetInfo | None]) -> DatasetInfo | None:
    known = list({one.sha256: one for one in datasets if one is not None}.values())
    if len(known) < 2:
        return known[0] if known and None not in datasets else None
    return DatasetInfo(
        name=" + ".join(one.name for one in known),
        sha256=hashlib.sha256("".join(one.sha256 for one in known).encode()).hexdigest(),
        pairs=sum(one.pairs for one in known),
    )


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
