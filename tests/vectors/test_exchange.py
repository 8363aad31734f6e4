"""Other tools' formats: round trips, layer conventions, and what is asked instead of guessed."""

import json
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from mlx_steer.errors import VectorError
from mlx_steer.vectors import SteeringVectorSet, load_vectors
from mlx_steer.vectors.exchange.foreign import ForeignVectors, KnownModel, vectors_of
from mlx_steer.vectors.exchange.formats import (
    EXPORT_FORMATS,
    ExportFormat,
    ImportOptions,
    export_vectors,
    read_foreign,
)
from tests.helpers.vector_sets import KNOWN, MODEL, NUM_LAYERS, SIZE, vector_set

NAMES = {"gguf": "x.gguf", "safetensors": "x.safetensors", "pt": "x"}


def read(path: Path, **options: Any) -> ForeignVectors:
    return read_foreign(path, ImportOptions(**options))


def control_vector(path: Path, tensors: dict[str, np.ndarray], **keys: Any) -> Path:
    """A GGUF file as others write it; `count` is the kind of number of the layer count."""
    writer = GGUFWriter(str(path), keys.pop("architecture", "controlvector"))
    count = keys.pop("count", None)
    if count is not None:
        getattr(writer, f"add_{count}")("controlvector.layer_count", len(tensors))
    for key, value in keys.items():
        add = writer.add_string if isinstance(value, str) else writer.add_uint32
        add(key.replace("__", "."), value)
    for name, array in tensors.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def rows(count: int = 5) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((count, SIZE)).astype(np.float32)


def directions(*numbers: int) -> dict[str, np.ndarray]:
    return {f"direction.{n}": row for n, row in zip(numbers, rows(), strict=False)}


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.tobytes() == b.tobytes()


# --- there and back -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", EXPORT_FORMATS)
def test_exported_vectors_come_back_bit_for_bit_and_know_all_they_knew(
    kind: ExportFormat, tmp_path: Path
) -> None:
    vectors, out = vector_set(), tmp_path / NAMES[kind]
    export_vectors(vectors, (1, 5), kind, out)
    back = vectors_of(read(out), out)
    back.save(tmp_path / "back")
    back = load_vectors(tmp_path / "back")

    assert list(back) == [1, 5]
    for layer, vector in back.items():
        assert same_bits(vector.array, vectors[layer].array)
        assert vector.hidden_norm == vectors[layer].hidden_norm
    assert back.metadata.source is not None and back.metadata.source.file == out.name
    assert back.metadata.model_copy(update={"source": None}) == vectors.at((1, 5)).metadata


@pytest.mark.parametrize("kind", EXPORT_FORMATS)
def test_the_same_vectors_give_the_same_file(kind: ExportFormat, tmp_path: Path) -> None:
    contents = []
    for name in ("a", "b"):
        out = tmp_path / name / NAMES[kind]
        export_vectors(vector_set(), (1, 3), kind, out)
        files = [out] if out.is_file() else sorted(out.iterdir())
        contents.append([(f.name, f.read_bytes()) for f in files])
    assert contents[0] == contents[1]


def test_torch_itself_reads_what_is_written_as_pt(tmp_path: Path) -> None:
    vectors = vector_set()
    export_vectors(vectors, (3,), "pt", tmp_path / "x")
    tensor = torch.load(tmp_path / "x" / "layer_3.pt", weights_only=True)
    assert same_bits(tensor.numpy(), vectors[3].array)


def test_repeng_reads_what_is_written_as_gguf(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # repeng 0.4 names a type in an annotation that numpy 2 no longer has.
    monkeypatch.setattr(np, "float_", np.float64, raising=False)
    extract = pytest.importorskip("repeng.extract", reason="repeng is not installed")
    vectors = vector_set()
    export_vectors(vectors, (1, 3), "gguf", tmp_path / "x.gguf")
    theirs = extract.ControlVector.import_gguf(tmp_path / "x.gguf")
    assert theirs.model_type == "llama"
    assert sorted(theirs.directions) == [1, 3]
    assert same_bits(np.asarray(theirs.directions[3]), vectors[3].array)

    theirs.export_gguf(tmp_path / "again.gguf")
    back = vectors_of(read(tmp_path / "again.gguf"), tmp_path / "again.gguf", KNOWN)
    assert same_bits(back[3].array, vectors[3].array)


def test_layer_0_cannot_be_said_in_a_control_vector(tmp_path: Path) -> None:
    with pytest.raises(VectorError, match="begins at layer 1 and cannot hold layer 0"):
        export_vectors(vector_set((0, 1)), (0, 1), "gguf", tmp_path / "x.gguf")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", EXPORT_FORMATS)
def test_an_export_overwrites_nothing(kind: ExportFormat, tmp_path: Path) -> None:
    out = tmp_path / NAMES[kind]
    out.write_text("precious")
    with pytest.raises(VectorError, match="exists already"):
        export_vectors(vector_set(), (1,), kind, out)
    assert out.read_text() == "precious"


# --- whose layer is which -------------------------------------------------------------------------


@dataclass(frozen=True)
class Convention:
    """How a format numbers: its numbers, ours, and what the reader is told."""

    theirs: tuple[int, ...]
    ours: tuple[int, ...]
    options: dict[str, Any]
    keys: dict[str, Any]


CONVENTIONS = {
    "llama.cpp": Convention((1, 2, 4), (1, 2, 4), {}, {}),
    "llama.cpp, told": Convention((1, 2), (1, 2), {"format": "gguf"}, {"count": "int32"}),
    "cvector-generator": Convention(
        (1, 2, 3), (0, 1, 2), {"format": "cvector-generator"}, {"count": "int32"}
    ),
    "repeng": Convention((1, 2, 5), (1, 2, 5), {}, {"count": "uint32"}),
    "a base of 1": Convention((1, 2), (1, 2), {}, {"turbospark__layer_base": 1}),
    "a base of 0": Convention((1, 2), (0, 1), {}, {"turbospark__layer_base": 0}),
    "to be added": Convention((2,), (2,), {}, {"glp__mode": "add"}),
}


@pytest.mark.parametrize("case", CONVENTIONS.values(), ids=CONVENTIONS)
def test_the_layers_of_control_vectors_get_our_numbers(case: Convention, tmp_path: Path) -> None:
    path = control_vector(tmp_path / "x.gguf", directions(*case.theirs), **case.keys)
    found = read(path, **case.options)
    assert tuple(found.arrays) == case.ours
    for row, array in zip(rows(), found.arrays.values(), strict=False):
        assert same_bits(array, row)


REFUSED = {
    "who numbered it": ({"count": "int32"}, "--format gguf .* or --format cvector-generator"),
    "projected out": ({"glp__mode": "project"}, "projected out, which a vectors folder cannot say"),
    "another place": ({"glp__hook_point": "mlp_out"}, "only vectors of a block's output"),
    "another base": ({"turbospark__layer_base": 2}, "layer_base is 2, not 0 or 1"),
    "a model": ({"architecture": "llama"}, "architecture 'llama', and no control vector"),
}


@pytest.mark.parametrize(("keys", "says"), REFUSED.values(), ids=REFUSED)
def test_what_would_be_a_guess_is_refused(keys: dict[str, Any], says: str, tmp_path: Path) -> None:
    path = control_vector(tmp_path / "x.gguf", directions(1, 2), **keys)
    with pytest.raises(VectorError, match=says):
        read(path)


@pytest.mark.parametrize("name", ["direction.0", "direction.-1", "direction.01", "other.1"])
def test_a_tensor_that_names_no_layer_of_a_control_vector_is_refused(
    name: str, tmp_path: Path
) -> None:
    with pytest.raises(VectorError, match=r"holds|names no layer"):
        read(control_vector(tmp_path / "x.gguf", {name: rows()[0]}))


def test_a_row_of_a_persona_vector_is_the_layer_below_and_row_0_the_embedding(
    tmp_path: Path,
) -> None:
    path = tmp_path / "evil_response_avg_diff.pt"
    matrix = rows(NUM_LAYERS + 1)
    torch.save(torch.from_numpy(matrix), path)
    vectors = vectors_of(read(path), path, KNOWN)
    assert list(vectors) == list(range(NUM_LAYERS))
    assert all(same_bits(vectors[k - 1].array, matrix[k]) for k in range(1, NUM_LAYERS + 1))
    assert vectors.metadata.behavior == "evil_response_avg_diff"
    assert vectors.metadata.source is not None
    assert any("after the final norm" in note for note in vectors.metadata.source.notes)


def test_persona_vectors_of_a_deeper_model_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "evil_response_avg_diff.pt"
    torch.save(torch.from_numpy(rows(NUM_LAYERS + 2)), path)
    with pytest.raises(VectorError, match="layer 32, but the model has layers 0 to 31"):
        vectors_of(read(path), path, KNOWN)


def test_a_concept_of_axbench_is_a_row_at_the_layer_its_config_names(tmp_path: Path) -> None:
    path = tmp_path / "LsReFT_weight.pt"
    matrix = rows(20)
    torch.save(torch.nn.Parameter(torch.from_numpy(matrix)), path)
    found = read(path, layer=3, concept=17)
    assert list(found.arrays) == [3]
    assert same_bits(found.arrays[3], matrix[17])
    with pytest.raises(VectorError, match=r"give --concept .* and --layer"):
        read(path)
    with pytest.raises(VectorError, match="has concepts 0 to 19, and no 20"):
        read(path, layer=3, concept=20)


def test_a_matrix_whose_rows_may_be_layers_or_concepts_is_refused(tmp_path: Path) -> None:
    torch.save(torch.from_numpy(rows()), tmp_path / "x.pt")
    with pytest.raises(VectorError, match="--format persona or --format axbench"):
        read(tmp_path / "x.pt")


def test_saklas_profiles_keep_their_layers_and_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_torch({f"layer_{i}": torch.from_numpy(rows()[i]).to(torch.bfloat16) for i in (0, 4)}, path)
    assert read(path).format == "safetensors"
    (tmp_path / "x.json").write_text(json.dumps({"saklas_version": "2.0"}))
    found = read(path)
    assert found.format == "saklas" and "scales the hidden state back" in found.notes[0]
    assert list(found.arrays) == [0, 4]
    expected = torch.from_numpy(rows()[4]).to(torch.bfloat16).float().numpy()
    assert same_bits(found.arrays[4], expected)


DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_of_every_float_dtype_are_read_as_torch_reads_them(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    tensor = torch.from_numpy(rows()[0]).to(dtype)
    torch.save({"layer_2": tensor, "layer_3": tensor * 2}, tmp_path / "x.pt")
    found = read(tmp_path / "x.pt")
    assert list(found.arrays) == [2, 3]
    assert same_bits(found.arrays[2], tensor.float().numpy())


def test_the_layers_of_the_steering_vectors_package_can_be_saved_as_a_dict(tmp_path: Path) -> None:
    activations = OrderedDict((i, torch.from_numpy(rows()[i])) for i in (1, 4))
    torch.save(activations, tmp_path / "x.pt")
    assert list(read(tmp_path / "x.pt").arrays) == [1, 4]


def test_a_part_of_a_larger_tensor_is_read_from_its_own_place(tmp_path: Path) -> None:
    stack = torch.from_numpy(rows())
    torch.save({0: stack[1], 1: stack[3]}, tmp_path / "x.pt")
    found = read(tmp_path / "x.pt").arrays
    assert same_bits(found[0], rows()[1]) and same_bits(found[1], rows()[3])


def test_a_folder_of_tensors_is_read_by_its_names(tmp_path: Path) -> None:
    for layer in (2, 4):
        torch.save(torch.from_numpy(rows()[layer]), tmp_path / f"layer_{layer}.pt")
        (tmp_path / f"layer_{layer}.json").write_text("{}")
    (tmp_path / "metadata.json").write_text(json.dumps({"model": "somebody/else"}))
    found = read(tmp_path)
    assert found.model == "somebody/else"
    assert {k: v.tobytes() for k, v in found.arrays.items()} == {
        k: rows()[k].tobytes() for k in (2, 4)
    }


# --- what a format cannot say ---------------------------------------------------------------------


def test_the_model_is_asked_for_where_the_file_does_not_say_it(tmp_path: Path) -> None:
    path = control_vector(
        tmp_path / "x.gguf", directions(1), count="uint32", controlvector__model_hint="qwen2"
    )
    with pytest.raises(VectorError, match=r"'qwen2' is all it says.*--model"):
        vectors_of(read(path), path)


def test_what_nobody_knows_stays_unknown(tmp_path: Path) -> None:
    path = control_vector(tmp_path / "evil.gguf", directions(1, 2))
    vectors_of(read(path), path, KNOWN, "malice").save(tmp_path / "v")
    vectors = load_vectors(tmp_path / "v")
    own = vectors.metadata
    assert (own.behavior, own.method, own.dataset, own.model) == ("malice", "unknown", None, MODEL)
    assert vectors[1].hidden_norm is None and vectors[1].relative_dose(1.0) is None
    assert (vectors * 2.0)[1].relative_dose(1.0) is None
    assert (vectors + vectors).metadata.dataset is None
    assert own.source is not None and own.source.file == "evil.gguf"


def test_vectors_that_are_not_as_wide_as_the_model_are_refused(tmp_path: Path) -> None:
    path = control_vector(tmp_path / "x.gguf", directions(1))
    wide = KnownModel(MODEL, SIZE + 1, NUM_LAYERS)
    with pytest.raises(VectorError, match=r"x\.gguf: .* has 8 elements, but .* hidden size is 9"):
        vectors_of(read(path), path, wide)


def test_the_last_layer_of_repeng_is_flagged(tmp_path: Path) -> None:
    path = control_vector(tmp_path / "x.gguf", directions(30, 31), count="uint32")
    source = vectors_of(read(path), path, KNOWN).metadata.source
    assert source is not None and "layer 31 is the model's last" in source.notes[0]


def test_a_gate_is_left_behind_and_a_scaled_set_says_so(tmp_path: Path) -> None:
    vectors = cast(SteeringVectorSet, vector_set() * 0.5)
    export_vectors(vectors, (3,), "safetensors", tmp_path / "x.safetensors")
    back = vectors_of(read(tmp_path / "x.safetensors"), tmp_path / "x.safetensors")
    assert back.metadata.method == "algebra: mean_difference * 0.5"
    assert same_bits(back[3].array, vectors[3].array)


def test_a_safetensors_file_of_other_things_is_refused(tmp_path: Path) -> None:
    save_file({"weight": rows()}, tmp_path / "x.safetensors")
    with pytest.raises(VectorError, match="'weight'; each tensor must be called layer_<i>"):
        read(tmp_path / "x.safetensors")
