"""Steering vectors: algebra, the folder's bytes, and every way a folder can be wrong."""

import hashlib
import io
import json
import math
import pickle
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mlx_steer.errors import VectorError
from mlx_steer.vectors import (
    DatasetInfo,
    ModelInfo,
    SteeringVector,
    SteeringVectorSet,
    VectorMetadata,
    compare_vectors,
    load_vectors,
    relative_dose,
)
from tests.helpers import vector_sets

ROOT = Path(__file__).parents[2]
SIZE, NUM_LAYERS = 8, 32
EXTREME = float(np.finfo(np.float32).max)


def metadata(**changes: Any) -> VectorMetadata:
    own: dict[str, Any] = {"num_layers": NUM_LAYERS, "model": model_info(), "seed": 7}
    return vector_sets.metadata(**(own | changes))


def model_info(**changes: Any) -> ModelInfo:
    values: dict[str, Any] = {
        "id": "example/tiny",
        "revision": None,
        "model_type": "llama",
        "quantization": {"group_size": 64, "bits": 4},
        "fingerprint": "f00d",
    }
    return ModelInfo(**(values | changes))


def vector(layer: int = 12, seed: int = 0, hidden_norm: float = 10.0) -> SteeringVector:
    return SteeringVector(layer, np.random.default_rng(seed).normal(size=SIZE), hidden_norm)


def vector_set(
    layers: tuple[int, ...] = (4, 12), values: int = 0, **changes: Any
) -> SteeringVectorSet:
    vectors = [vector(layer, values + layer) for layer in layers]
    return SteeringVectorSet(vectors, metadata(**changes))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- one vector ---


def test_a_vector_keeps_a_private_read_only_float32_copy():
    source = np.ones(SIZE)
    made = SteeringVector(np.int64(3), source, 2.0)
    source[:] = 5
    assert made.array.dtype == np.float32
    assert made.array.tolist() == [1.0] * SIZE
    assert type(made.layer) is int
    with pytest.raises(ValueError, match="read-only"):
        made.array[0] = 2.0
    with pytest.raises(ValueError, match="WRITEABLE"):
        made.array.flags.writeable = True
    with pytest.raises(AttributeError):
        made.layer = 4  # type: ignore[misc]


@pytest.mark.parametrize(
    ("layer", "array", "hidden_norm", "says"),
    [
        (-1, np.ones(3), 1.0, "counts from 0"),
        (True, np.ones(3), 1.0, "whole number"),
        (1.5, np.ones(3), 1.0, "whole number"),
        (2, np.ones((1, 3)), 1.0, r"shape \(1, 3\)"),
        (2, np.float32(1), 1.0, r"shape \(\)"),
        (2, np.ones(0), 1.0, r"shape \(0,\)"),
        (2, np.array(["a"]), 1.0, "one row of numbers"),
        (2, np.array([None]), 1.0, "one row of numbers"),
        (2, np.array([True]), 1.0, "one row of numbers"),
        (2, np.array([1j]), 1.0, "one row of numbers"),
        (2, np.array([1.0, np.nan]), 1.0, "not finite"),
        (2, np.array([1.0, np.inf]), 1.0, "not finite"),
        (2, np.array([1e39]), 1.0, "not finite in float32"),
        (2, np.ones(3), 0.0, "hidden norm above 0"),
        (2, np.ones(3), -1.0, "hidden norm above 0"),
        (2, np.ones(3), math.nan, "hidden norm above 0"),
        (2, np.ones(3), math.inf, "hidden norm above 0"),
    ],
)
def test_a_vector_that_cannot_be_is_refused(layer, array, hidden_norm, says):
    with pytest.raises(VectorError, match=says):
        SteeringVector(layer, array, hidden_norm)


def test_the_relative_dose_of_a_band_is_of_all_that_it_adds_by_its_end() -> None:
    alike, across = (SteeringVector(k, [3.0, 4.0], 10.0 * (k + 1)) for k in (0, 1))
    assert relative_dose([alike], 2.0) == 1.0
    assert relative_dose([alike, across], 2.0) == 1.0, "twice the vector, half as much beside 20"
    turned = SteeringVector(1, [-4.0, 3.0], 20.0)
    assert relative_dose([alike, turned], 2.0) == pytest.approx(2**-0.5)
    assert relative_dose([alike, SteeringVector(1, [3.0, 4.0], None)], 2.0) is None


def test_the_norm_is_euclidean_and_the_relative_dose_is_strength_times_it_over_the_hidden_norm():
    made = SteeringVector(0, np.array([3.0, 4.0]), 20.0)
    assert made.norm == 5.0
    assert made.relative_dose(2.0) == 0.5
    assert made.relative_dose(-2.0) == -0.5
    assert made.relative_dose(0.0) == 0.0


@pytest.mark.parametrize("value", [1e-45, 1e-38, EXTREME])
def test_norms_neither_underflow_nor_overflow(value):
    made = SteeringVector(0, np.full(4, value, dtype=np.float32), 1.0)
    assert made.norm == pytest.approx(2 * float(np.float32(value)), rel=1e-12)
    assert made.normalised().norm == pytest.approx(1.0, rel=1e-6)
    assert made.cosine(made) == pytest.approx(1.0, abs=1e-12)


def test_vector_algebra_agrees_with_numpy():
    a, b = vector(seed=1), vector(seed=2, hidden_norm=20.0)
    x, y = a.array.astype(np.float64), b.array.astype(np.float64)
    for made, expected in [
        (a + b, x + y),
        (a - b, x - y),
        (a * 3, x * 3),
        (np.float64(3) * a, x * 3),
        (np.float32(3) * a, x * 3),
        (0 * a, x * 0),
        (a / 4, x / 4),
        (-a, -x),
        (a.normalised(), x / np.linalg.norm(x)),
    ]:
        assert isinstance(made, SteeringVector)
        assert made.layer == 12
        np.testing.assert_array_equal(made.array, expected.astype(np.float32))
    assert (a + b).hidden_norm == 15.0
    assert (a * 3).hidden_norm == 10.0
    assert a.cosine(b) == pytest.approx(x @ y / np.linalg.norm(x) / np.linalg.norm(y), abs=1e-12)
    assert a.cosine(-a) == -1.0
    assert a.cosine(vector(layer=3, seed=1)) == 1.0


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda a: a + vector(layer=13), "layers 12 and 13 cannot be added"),
        (lambda a: a - vector(layer=13), "layers 12 and 13 cannot be added"),
        (lambda a: a + SteeringVector(12, np.ones(3), 1.0), "8 and 3 elements"),
        (lambda a: a.cosine(SteeringVector(12, np.ones(3), 1.0)), "8 and 3 elements"),
        (lambda a: a / 0, "divided by zero"),
        (lambda a: a * math.inf, "not finite"),
        (lambda a: a * math.nan, "not finite"),
        (lambda a: a * 1e60, "not finite"),
        (lambda a: a * 10**400, "not finite"),
        (lambda a: a * 0 / math.nan, "not finite"),
        (lambda a: (a * 0).normalised(), "zero and has no direction"),
        (lambda a: a.cosine(a * 0), "zero and has no direction"),
    ],
)
def test_vector_algebra_without_a_meaning_is_an_error(make, says):
    with pytest.raises(VectorError, match=says):
        make(vector())


@pytest.mark.parametrize(
    "make",
    [
        lambda a: a + 1,
        lambda a: a - np.ones(SIZE),
        lambda a: a * a,
        lambda a: a * np.ones(SIZE),
        lambda a: np.ones(SIZE) * a,
        lambda a: a * True,
        lambda a: a * "2",
        lambda a: a / a,
        lambda a: vector_set() * a,
        lambda a: vector_set() + a,
        lambda a: vector_set() - a,
        lambda a: vector_set() / "2",
    ],
)
def test_operands_of_other_types_are_type_errors(make):
    with pytest.raises(TypeError):
        make(vector())


# --- sets ---


def test_a_set_reads_like_a_mapping_in_ascending_order():
    made = SteeringVectorSet([vector(31), vector(4), vector(12)], metadata())
    assert list(made) == list(made.keys()) == [4, 12, 31]
    assert [one.layer for one in made.values()] == [4, 12, 31]
    assert [(layer, one.layer) for layer, one in made.items()] == [(4, 4), (12, 12), (31, 31)]
    assert dict(made)[12] is made[12]
    assert len(made) == 3
    assert 12 in made and 13 not in made and "12" not in made


def test_negative_layers_count_from_the_end_of_the_model():
    made = vector_set((4, 31))
    assert made[-1] is made[31]
    assert made[-28] is made[4]
    assert -1 in made and -2 not in made
    for missing in (-2, -33, 32, 5):
        with pytest.raises(VectorError, match=rf"no layer {missing}; they have 4, 31 of a model"):
            made[missing]


def test_the_metadata_always_describes_the_vectors():
    made = vector_set()
    assert list(made.metadata.layers) == [4, 12]
    assert (made * 2).metadata.layers[12].norm == pytest.approx(2 * made[12].norm, rel=1e-8)
    assert made.metadata.layers[12].sha256 != (made * 2).metadata.layers[12].sha256


@pytest.mark.parametrize(
    ("vectors", "changes", "says"),
    [
        ([], {}, "at least one layer"),
        ([vector(3), vector(3)], {}, "one vector for each layer"),
        ([vector(32)], {}, "layers 0 to 31"),
        ([vector(3)], {"hidden_size": 9}, "8 elements, but the model's hidden size is 9"),
    ],
)
def test_a_set_that_contradicts_itself_is_refused(vectors, changes, says):
    with pytest.raises(VectorError, match=says):
        SteeringVectorSet(vectors, metadata(**changes))


def test_set_algebra_acts_on_every_layer_and_is_recorded_in_the_method():
    a, b = vector_set(values=1), vector_set(values=2, method="pca")
    for made, method, expected in [
        (2 * a, "mean_difference * 2.0", lambda x, y: x * 2),
        (np.float64(2) * a, "mean_difference * 2.0", lambda x, y: x * 2),
        (a / 4, "mean_difference / 4.0", lambda x, y: x / 4),
        (-a, "-mean_difference", lambda x, y: -x),
        (a + b, "mean_difference + pca", lambda x, y: x + y),
        (a - b, "mean_difference - pca", lambda x, y: x - y),
        ((a + b) * 0.5, "(mean_difference + pca) * 0.5", lambda x, y: (x + y) * 0.5),
        (a - -b, "mean_difference - (-pca)", lambda x, y: x + y),
        (SteeringVectorSet.mean([a, b]), "mean(mean_difference, pca)", lambda x, y: (x + y) / 2),
        (a.normalised(), "normalised(mean_difference)", lambda x, y: x / np.linalg.norm(x)),
    ]:
        assert made.metadata.method == f"algebra: {method}"
        assert list(made) == [4, 12]
        for layer in made:
            wanted = expected(a[layer].array.astype(np.float64), b[layer].array.astype(np.float64))
            np.testing.assert_allclose(made[layer].array, wanted, rtol=1e-6, atol=1e-7)


def test_the_mean_of_a_set_with_itself_is_the_set():
    made = vector_set()
    same = SteeringVectorSet.mean([made] * 3)
    for layer in made:
        np.testing.assert_allclose(same[layer].array, made[layer].array, rtol=1e-6)
        assert same[layer].hidden_norm == made[layer].hidden_norm
    assert same.metadata.dataset == made.metadata.dataset
    assert same.metadata.seed == 7


def test_adding_sets_keeps_what_they_have_in_common_and_joins_the_rest():
    other = DatasetInfo(name="hedges", sha256="c" * 64, pairs=20)
    a = vector_set()
    b = vector_set(behavior="uncertainty", dataset=other, seed=8, chat_template_sha256=None)
    joined = (a + b).metadata
    assert joined.behavior == "refusal + uncertainty"
    assert joined.model == a.metadata.model
    assert (joined.dataset.name, joined.dataset.pairs) == ("refusal + hedges", 70)
    assert joined.dataset.sha256 == hashlib.sha256(b"b" * 64 + b"c" * 64).hexdigest()
    assert joined.seed is None and joined.chat_template_sha256 is None
    assert (a + a).metadata.model_copy(update={"method": "", "layers": {}}) == (
        a.metadata.model_copy(update={"method": "", "layers": {}})
    )


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (lambda: vector_set((4, 13)), "one has 4, 12, another 4, 13"),
        (lambda: vector_set(model=model_info(id="example/other")), "different model"),
        (lambda: vector_set(num_layers=40), "different num_layers"),
        (lambda: vector_set(token_position="mean"), "different token_position"),
        (
            lambda: SteeringVectorSet(
                [SteeringVector(layer, np.ones(3), 1.0) for layer in (4, 12)],
                metadata(hidden_size=3),
            ),
            "different hidden_size",
        ),
    ],
)
def test_sets_that_do_not_match_cannot_be_combined(other, says):
    for combine in (
        lambda a, b: a + b,
        lambda a, b: a - b,
        lambda a, b: SteeringVectorSet.mean([a, b]),
    ):
        with pytest.raises(VectorError, match=says):
            combine(vector_set(), other())


def test_the_mean_of_nothing_is_an_error():
    with pytest.raises(VectorError, match="at least one set"):
        SteeringVectorSet.mean([])


def test_vectors_fit_their_model_and_warn_of_another_with_the_same_shape():
    made = vector_set()
    assert made.check_fits(SIZE, NUM_LAYERS, "example/tiny") == []
    [warning] = made.check_fits(SIZE, NUM_LAYERS, "example/tuned")
    assert "example/tiny" in warning and "example/tuned" in warning
    with pytest.raises(VectorError, match="hidden size 8, but example/big has 16"):
        made.check_fits(16, NUM_LAYERS, "example/big")
    with pytest.raises(VectorError, match="number of layers 32, but example/tiny has 30"):
        made.check_fits(SIZE, 30, "example/tiny")


def test_comparing_sets_gives_a_record_for_each_shared_layer():
    a, b = vector_set((4, 12, 20)), vector_set((12, 20, 31)) * -0.5
    first, second = compare_vectors(a, b)
    assert (first.layer, second.layer) == (12, 20)
    assert first.cosine == pytest.approx(-1.0)
    assert first.norm_a == a[12].norm and first.norm_b == b[12].norm
    assert first.norm_ratio == pytest.approx(2.0)


def test_sets_without_a_shared_layer_or_size_cannot_be_compared():
    with pytest.raises(VectorError, match="share no layer: one has 4, the other 12"):
        compare_vectors(vector_set((4,)), vector_set((12,)))
    small = SteeringVectorSet([SteeringVector(4, np.ones(3), 1.0)], metadata(hidden_size=3))
    with pytest.raises(VectorError, match="hidden size 8 and 3"):
        compare_vectors(vector_set((4,)), small)


# --- saving ---


def test_a_saved_set_loads_as_the_same_set(tmp_path):
    made = vector_set()
    made.save(tmp_path / "deep" / "x")
    loaded = load_vectors(str(tmp_path / "deep" / "x"))
    assert loaded.metadata == made.metadata
    for layer in made:
        assert loaded[layer].array.tobytes() == made[layer].array.tobytes()
        assert loaded[layer].hidden_norm == made[layer].hidden_norm
        assert loaded[layer].norm == made[layer].norm


def test_the_same_vectors_give_the_same_bytes(tmp_path):
    vector_set((4, 12)).save(tmp_path / "a")
    vector_set((12, 4)).save(tmp_path / "b")
    load_vectors(tmp_path / "a").save(tmp_path / "c")
    assert contents(tmp_path / "a") == contents(tmp_path / "b") == contents(tmp_path / "c")


def test_a_reader_with_numpy_and_json_alone_can_use_the_folder(tmp_path):
    made = SteeringVectorSet([SteeringVector(4, np.arange(SIZE) / 3, 1 / 3)], metadata())
    made.save(tmp_path / "x")
    text = (tmp_path / "x" / "metadata.json").read_text()
    raw = json.loads(text)
    assert text == json.dumps(raw, indent=2, sort_keys=True) + "\n"
    assert set(raw) == {
        "format_version", "behavior", "method", "token_position", "layer_convention",
        "hidden_size", "num_layers", "layers", "model", "chat_template_sha256", "dataset", "seed",
    }  # fmt: skip
    info = raw["layers"]["4"]
    array = np.load(tmp_path / "x" / info["file"], allow_pickle=False)
    assert array.dtype.str == "<f4" and array.tolist() == made[4].array.tolist()
    assert info["sha256"] == hashlib.sha256((tmp_path / "x/layer_4.npy").read_bytes()).hexdigest()
    assert info["norm"] == float(f"{np.linalg.norm(array.astype(np.float64)):.9g}")
    assert info["hidden_norm"] == 0.333333333
    stream = io.BytesIO()
    np.save(stream, np.array(array))
    assert stream.getvalue() == (tmp_path / "x" / "layer_4.npy").read_bytes()


def test_saving_again_replaces_the_folder_and_leaves_no_stale_layer(tmp_path):
    vector_set((4, 12, 20)).save(tmp_path / "x")
    (tmp_path / "x" / ".DS_Store").write_bytes(b"finder")
    vector_set((12,), values=9).save(tmp_path / "x")
    assert set(contents(tmp_path / "x")) == {"metadata.json", "layer_12.npy"}
    assert list(load_vectors(tmp_path / "x")) == [12]
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_saving_fills_an_empty_folder(tmp_path):
    (tmp_path / "x").mkdir()
    vector_set().save(tmp_path / "x")
    assert list(load_vectors(tmp_path / "x")) == [4, 12]


@pytest.mark.parametrize(
    ("prepare", "says"),
    [
        (lambda x: (x / "notes.txt").write_text("mine"), "holds 'notes.txt'"),
        (lambda x: (x / "layer_1.npy").mkdir(), "holds 'layer_1.npy'"),
        (lambda x: (x / "layer_1.npy").write_bytes(b"?"), "no metadata.json of mlx-steer"),
        (lambda x: (x / "metadata.json").write_text("{}"), "no metadata.json of mlx-steer"),
        (lambda x: (x / "metadata.json").write_text("?"), "no metadata.json of mlx-steer"),
        (lambda x: (x / "metadata.json").write_text("[1]"), "no metadata.json of mlx-steer"),
        (lambda x: (x / "layer_1.npy").symlink_to("/nowhere"), "holds 'layer_1.npy'"),
    ],
)
def test_saving_never_overwrites_a_folder_of_other_things(tmp_path, prepare, says):
    folder = tmp_path / "x"
    folder.mkdir()
    prepare(folder)
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(VectorError, match=says):
        vector_set().save(folder)
    assert sorted(path.name for path in folder.iterdir()) == before
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_saving_over_a_file_or_below_one_is_an_error(tmp_path):
    (tmp_path / "x").write_text("mine")
    with pytest.raises(VectorError, match="is a file"):
        vector_set().save(tmp_path / "x")
    with pytest.raises(VectorError, match="cannot be written"):
        vector_set().save(tmp_path / "x" / "y")
    assert (tmp_path / "x").read_text() == "mine"


def test_saving_to_an_impossible_path_is_an_error(tmp_path):
    (tmp_path / "circle").symlink_to("circle")
    for path in (tmp_path / "circle", tmp_path / "circle" / "x", "bad\0name"):
        with pytest.raises(VectorError, match=r"not a usable path|cannot be written"):
            vector_set().save(path)


@pytest.mark.parametrize("failing", ["write_bytes", "rename"])
def test_a_save_that_fails_leaves_the_earlier_folder_as_it_was(tmp_path, monkeypatch, failing):
    vector_set().save(tmp_path / "x")
    before = contents(tmp_path / "x")
    real = getattr(Path, failing)

    def fails(self: Path, *arguments: Any) -> Any:
        # the second file of the new folder, or the new folder's move into place
        if self.name == "layer_12.npy" or self.name.endswith(".new"):
            raise OSError(28, "No space left on device")
        return real(self, *arguments)

    monkeypatch.setattr(Path, failing, fails)
    with pytest.raises(VectorError, match="No space left on device"):
        vector_set(values=5).save(tmp_path / "x")
    monkeypatch.undo()
    assert contents(tmp_path / "x") == before
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@settings(max_examples=60, deadline=None)
@given(
    array=hnp.arrays(
        np.float32,
        st.integers(1, 40),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=True),
    ),
    hidden_norm=st.floats(min_value=1e-30, max_value=1e30),
)
def test_any_finite_vector_comes_back_bit_for_bit(array, hidden_norm):
    made = SteeringVectorSet(
        [SteeringVector(0, array, hidden_norm)], metadata(hidden_size=array.size)
    )
    with tempfile.TemporaryDirectory() as folder:
        made.save(Path(folder) / "x")
        loaded = load_vectors(Path(folder) / "x")
        assert loaded[0].array.tobytes() == array.tobytes()
        assert loaded.metadata == made.metadata
        loaded.save(Path(folder) / "y")
        assert contents(Path(folder) / "x") == contents(Path(folder) / "y")


# --- loading what is wrong ---


@pytest.fixture
def folder(tmp_path):
    vector_set().save(tmp_path / "x")
    return tmp_path / "x"


def edit(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "metadata.json"
        raw = json.loads(path.read_text())
        change(raw)
        path.write_text(json.dumps(raw))

    return apply


def put(*keys: str, value: Any) -> Callable[[Path], None]:
    def change(raw: dict[str, Any]) -> None:
        for key in keys[:-1]:
            raw = raw[key]
        raw[keys[-1]] = value

    return edit(change)


def drop(*keys: str) -> Callable[[Path], None]:
    def change(raw: dict[str, Any]) -> None:
        for key in keys[:-1]:
            raw = raw[key]
        del raw[keys[-1]]

    return edit(change)


def text(value: str | bytes) -> Callable[[Path], None]:
    data = value.encode() if isinstance(value, str) else value
    return lambda folder: (folder / "metadata.json").write_bytes(data)


def layer_bytes(data: bytes) -> Callable[[Path], None]:
    """Puts other bytes in layer 12's file, with the sha256 that belongs to them."""

    def apply(folder: Path) -> None:
        (folder / "layer_12.npy").write_bytes(data)
        put("layers", "12", "sha256", value=hashlib.sha256(data).hexdigest())(folder)

    return apply


def npy(array: np.ndarray, version: tuple[int, int] = (1, 0), pickles: bool = False) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, version=version, allow_pickle=pickles)
    return stream.getvalue()


GOOD = np.ones(SIZE, dtype=np.float32)
HUGE_CLAIM = npy(GOOD).replace(b"(8,), }" + b" " * 12, b"(99999999999999,), }")

WRONG_METADATA = {
    "empty": (text(""), "metadata.json is not valid JSON"),
    "broken": (text('{"format_version": 1,'), "metadata.json is not valid JSON"),
    "not utf-8": (text(b'{"a": "\xff"}'), "metadata.json is not UTF-8 text"),
    "too deep": (text("[" * 100_000), "metadata.json is not valid JSON"),
    "giant number": (text('{"seed": ' + "9" * 5000 + "}"), "metadata.json is not valid JSON"),
    "a list": (text("[1]"), "must hold a JSON object, not list"),
    "newer": (put("format_version", value=2), "made by a newer mlx-steer; upgrade"),
    "older": (put("format_version", value=0), "key 'format_version'"),
    "version as text": (put("format_version", value="1"), "key 'format_version'"),
    "version as true": (put("format_version", value=True), "key 'format_version'"),
    "unknown key": (put("extra", value={}), "unknown key 'extra'"),
    "unknown model key": (put("model", "size", value=7), "unknown key 'model.size'"),
    "unknown layer key": (put("layers", "12", "x", value=7), "unknown key 'layers.12.x'"),
    "no version": (drop("format_version"), "key 'format_version' is missing"),
    "no convention": (drop("layer_convention"), "key 'layer_convention' is missing"),
    "no layers": (drop("layers"), "key 'layers' is missing"),
    "no behavior": (drop("behavior"), "key 'behavior' is missing"),
    "no seed": (drop("seed"), "key 'seed' is missing"),
    "no revision": (drop("model", "revision"), "key 'model.revision' is missing"),
    "no pairs": (drop("dataset", "pairs"), "key 'dataset.pairs' is missing"),
    "no norm": (drop("layers", "12", "norm"), "key 'layers.12.norm' is missing"),
    "other convention": (put("layer_convention", value="1-based"), "is another way"),
    "text for a size": (put("hidden_size", value="8"), "key 'hidden_size'"),
    "size 8.0": (put("hidden_size", value=8.5), "key 'hidden_size'"),
    "size 0": (put("hidden_size", value=0), "key 'hidden_size'"),
    "empty behavior": (put("behavior", value=""), "key 'behavior'"),
    "half a surrogate pair": (put("behavior", value="\ud800"), "key 'behavior'"),
    "model as text": (put("model", value="llama"), "key 'model'"),
    "short sha256": (put("dataset", "sha256", value="b" * 63), "key 'dataset.sha256'"),
    "sha256 and newline": (put("dataset", "sha256", value="b" * 64 + "\n"), "dataset.sha256"),
    "NaN norm": (put("layers", "12", "norm", value=math.nan), "key 'layers.12.norm'"),
    "infinite norm": (put("layers", "12", "norm", value=math.inf), "key 'layers.12.norm'"),
    "hidden norm 0": (put("layers", "12", "hidden_norm", value=0), "layers.12.hidden_norm"),
    "layers as list": (put("layers", value=[]), "key 'layers'"),
    "layers empty": (put("layers", value={}), "lists no layers"),
    "layer 012": (put("layers", "012", value={}), "'012' is not a layer number"),
    "layer -1": (put("layers", "-1", value={}), "'-1' is not a layer number"),
    "layer in other digits": (put("layers", "١٢", value={}), "is not a layer number"),
    "layer outside": (put("num_layers", value=12), "layer 12, but the model has layers 0 to 11"),
    "layer null": (put("layers", "12", value=None), "key 'layers.12'"),
}

WRONG_FILES = {
    "absolute": (put("layers", "12", "file", value="/etc/passwd"), "names the file '/etc/passwd'"),
    "parent": (put("layers", "12", "file", value="../layer_12.npy"), r"'\.\./layer_12\.npy'"),
    "windows": (put("layers", "12", "file", value="..\\layer_12.npy"), "names the file"),
    "other layer's": (put("layers", "12", "file", value="layer_4.npy"), "names the file"),
    "NUL in name": (put("layers", "12", "file", value="layer_12.npy\0"), "key 'layers.12.file'"),
    "missing": (lambda x: (x / "layer_12.npy").unlink(), "layer_12.npy is missing"),
    "empty": (layer_bytes(b""), "layer_12.npy is not a .npy file"),
    "text": (layer_bytes(b"hello, world"), "layer_12.npy is not a .npy file"),
    "pickle": (layer_bytes(pickle.dumps([1, 2])), "layer_12.npy is not a .npy file"),
    "objects": (layer_bytes(npy(np.array([{}]), pickles=True)), "pickled objects"),
    "version 2": (layer_bytes(npy(GOOD, version=(2, 0))), r"version \(2, 0\)"),
    "cut header": (layer_bytes(npy(GOOD)[:40]), "damaged .npy header"),
    "bad header": (layer_bytes(npy(GOOD).replace(b"'descr'", b"'desc!'")), "damaged .npy header"),
    "python 2": (layer_bytes(npy(GOOD).replace(b"(8,), } ", b"(8L,), }")), "damaged .npy header"),
    "claims": (layer_bytes(HUGE_CLAIM), "has shape"),
    "cut short": (layer_bytes(npy(GOOD)[:-1]), "cut short: 31 bytes, not 32"),
    "header only": (layer_bytes(npy(GOOD)[:128]), "cut short: 0 bytes"),
    "longer": (layer_bytes(npy(GOOD) + b"\0"), "followed by other bytes"),
    "float64": (layer_bytes(npy(GOOD.astype("<f8"))), "dtype <f8; it must be float32"),
    "float16": (layer_bytes(npy(GOOD.astype("<f2"))), "dtype <f2"),
    "big-endian": (layer_bytes(npy(GOOD.astype(">f4"))), "dtype >f4"),
    "two rows": (layer_bytes(npy(np.ones((1, SIZE), dtype="<f4"))), r"shape \(1, 8\)"),
    "scalar": (layer_bytes(npy(np.float32(1))), r"shape \(\)"),
    "other size": (layer_bytes(npy(np.ones(9, dtype="<f4"))), r"shape \(9,\).*hidden_size 8"),
    "NaN": (layer_bytes(npy(np.full(SIZE, np.nan, dtype="<f4"))), "NaN or infinite"),
    "infinity": (layer_bytes(npy(np.full(SIZE, np.inf, dtype="<f4"))), "NaN or infinite"),
    "changed": (lambda x: (x / "layer_12.npy").write_bytes(npy(GOOD)), "changed since it was"),
    "norm": (put("layers", "12", "norm", value=1.5), "layer_12.npy has norm"),
    "norm a little off": (layer_bytes(npy(GOOD)), "layer_12.npy has norm 2.82842712"),
}


@pytest.mark.parametrize(("damage", "says"), WRONG_METADATA.values(), ids=WRONG_METADATA)
def test_wrong_metadata_is_one_clear_error(folder, damage, says):
    damage(folder)
    with pytest.raises(VectorError, match=says) as caught:
        load_vectors(folder)
    assert str(folder / "metadata.json") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("damage", "says"), WRONG_FILES.values(), ids=WRONG_FILES)
def test_a_wrong_layer_file_is_one_clear_error(folder, damage, says):
    damage(folder)
    with pytest.raises(VectorError, match=says) as caught:
        load_vectors(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_several_wrong_keys_are_told_at_once(folder):
    drop("behavior")(folder)
    put("colour", value=1)(folder)
    put("seed", value="x")(folder)
    with pytest.raises(VectorError, match=r"behavior.*seed.*colour"):
        load_vectors(folder)


def test_a_norm_that_agrees_to_one_part_in_a_million_is_accepted(folder):
    norm = load_vectors(folder)[12].norm
    put("layers", "12", "norm", value=norm * (1 + 5e-7))(folder)
    load_vectors(folder)
    put("layers", "12", "norm", value=norm * (1 + 2e-6))(folder)
    with pytest.raises(VectorError, match="has norm"):
        load_vectors(folder)


@pytest.mark.parametrize("name", ["layer_12.npy", "metadata.json"])
def test_links_out_of_the_folder_are_refused_and_links_within_are_read(folder, name):
    outside = folder.parent / "outside"
    shutil.move(folder / name, outside)
    (folder / name).symlink_to(outside)
    with pytest.raises(VectorError, match=f"{name} is a link that leaves the folder"):
        load_vectors(folder)
    (folder / name).unlink()
    shutil.move(outside, folder / "inside")
    (folder / name).symlink_to("inside")
    assert list(load_vectors(folder)) == [4, 12]


def test_a_link_to_itself_is_an_error(folder):
    (folder / "layer_12.npy").unlink()
    (folder / "layer_12.npy").symlink_to("layer_12.npy")
    with pytest.raises(VectorError, match=r"layer_12\.npy"):
        load_vectors(folder)


def test_a_linked_folder_is_read_and_replaced_where_it_lies(folder):
    link = folder.parent / "link"
    link.symlink_to(folder)
    assert list(load_vectors(link)) == [4, 12]
    vector_set((20,)).save(link)
    assert link.is_symlink()
    assert list(load_vectors(folder)) == [20]


def test_a_folder_in_place_of_a_file_is_missing(folder):
    (folder / "layer_12.npy").unlink()
    (folder / "layer_12.npy").mkdir()
    with pytest.raises(VectorError, match=r"layer_12\.npy is missing"):
        load_vectors(folder)


def test_a_path_that_is_no_vectors_folder_is_told_apart(tmp_path):
    with pytest.raises(VectorError, match="does not exist"):
        load_vectors(tmp_path / "nowhere")
    with pytest.raises(VectorError, match="does not exist"):
        load_vectors("bad\0name")
    (tmp_path / "file").write_text("x")
    with pytest.raises(VectorError, match="is not a folder"):
        load_vectors(tmp_path / "file")
    with pytest.raises(VectorError, match=r"metadata\.json is missing"):
        load_vectors(tmp_path)


def test_files_that_the_metadata_does_not_name_are_never_read(folder):
    (folder / "layer_9.npy").write_bytes(pickle.dumps("evil"))
    (folder / "README.md").write_text("notes")
    assert list(load_vectors(folder)) == [4, 12]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([*VectorMetadata.model_fields, "12", "file", "norm", "id"]), inner
        )
    ),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(
    key=st.sampled_from([*VectorMetadata.model_fields, "extra"]),
    value=JSON,
    data=st.none() | st.binary(max_size=40),
)
def test_no_metadata_gives_anything_but_a_vector_error(key, value, data):
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "x"
        vector_set((4,)).save(folder)
        put(key, value=value)(folder)
        if data is not None:
            text(data)(folder)
        try:
            loaded = load_vectors(folder)
        except VectorError as error:
            assert str(error)
        else:
            assert list(loaded) == [4]


@settings(max_examples=150, deadline=None)
@given(
    position=st.integers(0, len(npy(GOOD))),
    inserted=st.binary(max_size=12),
    removed=st.integers(0, 40),
)
def test_no_layer_file_gives_anything_but_a_vector_error(position, inserted, removed):
    good = npy(GOOD)
    data = good[:position] + inserted + good[position + removed :]
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "x"
        SteeringVectorSet([SteeringVector(12, GOOD, 1.0)], metadata()).save(folder)
        layer_bytes(data)(folder)
        try:
            loaded = load_vectors(folder)
        except VectorError as error:
            assert "layer_12.npy" in str(error)
        else:
            # only the header's padding and values within the norm's tolerance are free
            assert loaded[12].norm == pytest.approx(math.sqrt(SIZE), rel=1e-6)


def test_reading_vectors_does_not_import_mlx():
    code = "import sys, mlx_steer.vectors; sys.exit('mlx.core' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
