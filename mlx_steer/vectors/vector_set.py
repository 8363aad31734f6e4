"""The steering vectors of one behavior and model: algebra on all layers, saving and loading."""

import hashlib
import json
import os
from collections.abc import (
    ItemsView,
    Iterable,
    Iterator,
    KeysView,
    Mapping,
    Sequence,
    ValuesView,
)
from dataclasses import dataclass, field
from pathlib import Path

from mlx_steer.conditions import Gate
from mlx_steer.errors import VectorError
from mlx_steer.vectors.folder import (
    check_replaceable,
    npy_bytes,
    read_gate,
    read_layer,
    read_metadata,
    read_pairs,
    replace_folder,
)
from mlx_steer.vectors.metadata import (
    METADATA_FILE,
    GateInfo,
    LayerInfo,
    VectorMetadata,
    WrittenInfo,
    check_layer,
    combined,
    gate_file,
    layer_file,
    nine_digits,
)
from mlx_steer.vectors.vector import SteeringVector, as_number, weighted_sum

_ALGEBRA = "algebra: "


@dataclass(frozen=True, eq=False)
class SteeringVectorSet:
    """The steering vectors of one behavior and model, by layer; behaves as a read-only mapping.

    `vectors[12]` is layer 12's, `vectors[-1]` that of the model's last layer; iteration gives the
    layers in ascending order. Operators act on every layer and record themselves in
    `metadata.method`. `pairs` is the file of contrast pairs, where the model wrote them.

    Raises:
        VectorError: If there is no vector, a layer occurs twice or lies outside the model, or a
            vector's size is not `metadata.hidden_size`.
    """

    vectors: Sequence[SteeringVector] = field(repr=False)
    metadata: VectorMetadata
    gates: tuple[Gate, ...] = ()
    pairs: bytes = field(default=b"", repr=False)
    _by_layer: dict[int, SteeringVector] = field(init=False, repr=False)

    __array_ufunc__ = None

    def __post_init__(self) -> None:
        """Orders the vectors by layer and describes them in the metadata."""
        vectors = tuple(sorted(self.vectors, key=lambda vector: vector.layer))
        by_layer = {vector.layer: vector for vector in vectors}
        if not vectors:
            raise VectorError("A set of steering vectors needs at least one layer.")
        if len(by_layer) != len(vectors):
            raise VectorError("A set of steering vectors has one vector for each layer, not two.")
        size, num_layers = self.metadata.hidden_size, self.metadata.num_layers
        for layer, vector in by_layer.items():
            check_layer(layer, num_layers, "The set of steering vectors")
            if vector.hidden_size != size:
                raise VectorError(
                    f"The steering vector of layer {layer} has {vector.hidden_size} elements, "
                    f"but the model's hidden size is {size}."
                )
        layers = {
            layer: LayerInfo(
                file=layer_file(layer),
                sha256=hashlib.sha256(npy_bytes(vector.array)).hexdigest(),
                norm=nine_digits(vector.norm),
                hidden_norm=vector.hidden_norm,
            )
            for layer, vector in by_layer.items()
        }
        object.__setattr__(self, "vectors", vectors)
        object.__setattr__(self, "metadata", self.metadata.model_copy(update={"layers": layers}))
        object.__setattr__(self, "_by_layer", by_layer)

    def __getitem__(self, layer: int) -> SteeringVector:
        """The vector of a layer; raises VectorError if the set has none there."""
        found = self._by_layer.get(self._from_start(layer))
        if found is None:
            raise VectorError(
                f"These vectors have no layer {layer}; they have {layer_list(self)} "
                f"of a model with {self.metadata.num_layers} layers."
            )
        return found

    def __iter__(self) -> Iterator[int]:
        """The layers in ascending order."""
        return iter(self._by_layer)

    def __len__(self) -> int:
        """Number of layers."""
        return len(self._by_layer)

    def __contains__(self, layer: object) -> bool:
        """Whether `self[layer]` exists."""
        return isinstance(layer, int) and self._from_start(layer) in self._by_layer

    def keys(self) -> KeysView[int]:
        """The layers in ascending order."""
        return self._by_layer.keys()

    def values(self) -> ValuesView[SteeringVector]:
        """The vectors by ascending layer."""
        return self._by_layer.values()

    def items(self) -> ItemsView[int, SteeringVector]:
        """(layer, vector) by ascending layer."""
        return self._by_layer.items()

    def at(self, layers: Iterable[int]) -> "SteeringVectorSet":
        """The vectors of some layers only, without gates.

        Raises:
            VectorError: If the set has none at one of them, or none are named.
        """
        chosen = {vector.layer: vector for vector in (self[layer] for layer in layers)}
        metadata = self.metadata.model_copy(update={"gates": []})
        return SteeringVectorSet(list(chosen.values()), metadata, pairs=self.pairs)

    def normalised(self) -> "SteeringVectorSet":
        """Every vector scaled to norm 1."""
        vectors = [vector.normalised() for vector in self.values()]
        return self._derived(vectors, f"normalised({_expression(self)})")

    def __mul__(self, factor: object) -> "SteeringVectorSet":
        """Every vector scaled by a number."""
        number = as_number(factor)
        if number is None:
            return NotImplemented
        vectors = [vector * number for vector in self.values()]
        return self._derived(vectors, f"{_operand(self)} * {number!r}")

    __rmul__ = __mul__

    def __truediv__(self, divisor: object) -> "SteeringVectorSet":
        """Every vector divided by a number other than zero."""
        number = as_number(divisor)
        if number is None:
            return NotImplemented
        vectors = [vector / number for vector in self.values()]
        return self._derived(vectors, f"{_operand(self)} / {number!r}")

    def __neg__(self) -> "SteeringVectorSet":
        """Every vector turned round."""
        return self._derived([-vector for vector in self.values()], f"-{_operand(self)}")

    def __add__(self, other: object) -> "SteeringVectorSet":
        """Layer by layer sum with vectors of the same model and layers."""
        if not isinstance(other, SteeringVectorSet):
            return NotImplemented
        return _combined([self, other], [1.0, 1.0], f"{_operand(self)} + {_operand(other)}")

    def __sub__(self, other: object) -> "SteeringVectorSet":
        """Layer by layer difference from vectors of the same model and layers."""
        if not isinstance(other, SteeringVectorSet):
            return NotImplemented
        return _combined([self, other], [1.0, -1.0], f"{_operand(self)} - {_operand(other)}")

    @staticmethod
    def mean(sets: Sequence["SteeringVectorSet"]) -> "SteeringVectorSet":
        """Layer by layer mean, in float64, of sets of the same model and layers."""
        if not sets:
            raise VectorError("The mean of steering vectors needs at least one set.")
        names = ", ".join(_expression(one) for one in sets)
        return _combined(sets, [1.0 / len(sets)] * len(sets), f"mean({names})")

    def check_fits(self, hidden_size: int, num_layers: int, model_id: str) -> list[str]:
        """Checks the vectors against a model.

        Returns:
            Warnings for a person: one if the model is of the same shape but has another id.

        Raises:
            VectorError: If the model's hidden size or number of layers is another.
        """
        own = self.metadata
        for what, ours, theirs in (
            ("hidden size", own.hidden_size, hidden_size),
            ("number of layers", own.num_layers, num_layers),
        ):
            if ours != theirs:
                raise VectorError(
                    f"These vectors are from {own.model.id} with {what} {ours}, but {model_id} "
                    f"has {theirs}; extract vectors from {model_id}."
                )
        if own.model.id == model_id:
            return []
        return [
            f"The vectors are from {own.model.id} and steer {model_id}: the shapes fit, "
            "but directions may differ between the two."
        ]

    def save(self, folder: str | os.PathLike[str], more: Mapping[str, bytes] | None = None) -> None:
        """Writes the vectors folder, replacing an earlier one as a whole.

        Everything is written beside `folder` and then renamed, so a crash leaves no half-written
        folder and an earlier one's surplus layers do not stay.

        Args:
            folder: Where.
            more: What belongs beside the vectors by name: `card.json` and `README.md`.

        Raises:
            VectorError: If `folder` holds anything but a vectors folder or cannot be written.
        """
        try:
            target = Path(folder).resolve()
        except (OSError, RuntimeError, ValueError) as error:  # a circle of links, a NUL
            raise VectorError(f"{os.fspath(folder)!r} is not a usable path ({error}).") from error
        try:
            check_replaceable(target)
            target.parent.mkdir(parents=True, exist_ok=True)
            replace_folder(target, self._files() | dict(more or {}))
        except OSError as error:
            raise VectorError(
                f"{target} cannot be written ({error.strerror or error}); choose another folder."
            ) from error

    def gate(self, name: str) -> Gate:
        """A gate by name; raises VectorError if the set has none of that name."""
        found = next((gate for gate in self.gates if gate.name == name), None)
        if found is None:
            names = ", ".join(gate.name for gate in self.gates) or "none"
            raise VectorError(
                f"The vectors have no gate {name!r} (they have: {names}); fit one with "
                "`mlx-steer gate fit`."
            )
        return found

    def with_gate(self, gate: Gate, info: GateInfo) -> "SteeringVectorSet":
        """This set with one more gate; one of the same name is replaced.

        Args:
            gate: Of the same model.
            info: How it was fitted; its file and sha256 are filled in here.
        """
        digest = hashlib.sha256(npy_bytes(gate.direction)).hexdigest()
        entry = {"file": gate_file(gate.name), "sha256": digest, "name": gate.name}
        infos = [one for one in self.metadata.gates if one.name != gate.name]
        infos.append(info.model_copy(update=entry))
        gates = [one for one in self.gates if one.name != gate.name]
        metadata = self.metadata.model_copy(update={"gates": infos})
        return SteeringVectorSet(self.vectors, metadata, (*gates, gate), self.pairs)

    def with_pairs(self, written: WrittenInfo, pairs: bytes) -> "SteeringVectorSet":
        """This set with the contrast pairs that the model wrote, as the bytes of pairs.jsonl."""
        metadata = self.metadata.model_copy(update={"written": written})
        return SteeringVectorSet(self.vectors, metadata, self.gates, pairs)

    def _files(self) -> dict[str, bytes]:
        """Every file of the folder by name; a further kind of file is added here."""
        files = {layer_file(layer): npy_bytes(v.array) for layer, v in self.items()}
        record = self.metadata.model_dump()
        for optional in ("gates", "source", "written"):  # not in folders made before there were any
            if not record[optional]:
                del record[optional]
        if self.metadata.written is not None:
            files[self.metadata.written.file] = self.pairs
        for gate in self.gates:
            files[gate_file(gate.name)] = npy_bytes(gate.direction)
        text = json.dumps(record, sort_keys=True, indent=2, allow_nan=False)
        files[METADATA_FILE] = (text + "\n").encode()
        return files

    def _from_start(self, layer: int) -> int:
        return layer + self.metadata.num_layers if layer < 0 else layer

    def _derived(self, vectors: Sequence[SteeringVector], expression: str) -> "SteeringVectorSet":
        method = _ALGEBRA + expression
        # A gate was fitted for the set as it was, and the pairs make it as it was.
        changes: dict[str, object] = {"method": method, "gates": [], "written": None}
        return SteeringVectorSet(vectors, self.metadata.model_copy(update=changes))


def load_vectors(folder: str | os.PathLike[str]) -> SteeringVectorSet:
    """Reads a vectors folder and checks all of it; nothing in it is unpickled.

    Raises:
        VectorError: If the folder is missing, damaged, changed since it was saved, or made by a
            newer mlx-steer; the sentence names the file.
    """
    root = Path(folder)
    if not os.path.isdir(root):  # False, not an error, for a path no system call accepts
        what = "is not a folder" if os.path.exists(root) else "does not exist"
        raise VectorError(f"{root} {what}; give a folder made by `mlx-steer extract`.")
    metadata = read_metadata(root)
    vectors = []
    for layer, info in metadata.layers.items():
        check_layer(layer, metadata.num_layers, f"{root / METADATA_FILE}")
        vectors.append(read_layer(root, layer, info, metadata.hidden_size))
    gates = []
    for entry in metadata.gates:
        check_layer(entry.layer, metadata.num_layers, f"{root / METADATA_FILE}")
        gates.append(read_gate(root, entry, metadata.hidden_size))
    pairs = b"" if metadata.written is None else read_pairs(root, metadata.written)
    return SteeringVectorSet(vectors, metadata, tuple(gates), pairs)


def _combined(
    sets: Sequence[SteeringVectorSet], weights: Sequence[float], expression: str
) -> SteeringVectorSet:
    first = sets[0].metadata
    for other in sets[1:]:
        for name in ("model", "hidden_size", "num_layers", "token_position"):
            if getattr(first, name) != getattr(other.metadata, name):
                pair = [_shown(one.metadata, name) for one in (sets[0], other)]
                raise VectorError(
                    f"Sets of steering vectors with different {name} cannot be combined: "
                    f"{' and '.join(pair)}."
                )
        if list(other) != list(sets[0]):
            raise VectorError(
                f"Sets of steering vectors need the same layers to be combined: one has "
                f"{layer_list(sets[0])}, another {layer_list(other)}."
            )
    metadata = combined([one.metadata for one in sets], _ALGEBRA + expression)
    vectors = [weighted_sum([one[layer] for one in sets], weights) for layer in sets[0]]
    return SteeringVectorSet(vectors, metadata)


def _shown(metadata: VectorMetadata, name: str) -> str:
    """A value of the metadata for a message; of the model, what tells two of one name apart."""
    if name == "model":
        return f"{metadata.model.id} (weights {metadata.model.fingerprint[:12]})"
    return str(getattr(metadata, name))


def _expression(vectors: SteeringVectorSet) -> str:
    return vectors.metadata.method.removeprefix(_ALGEBRA)


def _operand(vectors: SteeringVectorSet) -> str:
    text = _expression(vectors)
    return f"({text})" if " " in text or text.startswith("-") else text


def layer_list(layers: Iterable[int]) -> str:
    """Layers for a message."""
    return ", ".join(str(layer) for layer in layers)
