"""The folder of vectors: its bytes, and saving over what is there."""

import hashlib
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mlx_steer.errors import VectorError
from mlx_steer.vectors import (
    SteeringVector,
    SteeringVectorSet,
    load_vectors,
)
from tests.helpers.vector_sets import SIZE, metadata, vector_set

ROOT = Path(__file__).parents[2]
EXTREME = float(np.finfo(np.float32).max)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_saved_set_loads_as_the_same_set(tmp_path):
    made = vector_set((4, 12))
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
    vector_set((4, 12)).save(tmp_path / "x")
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
        vector_set((4, 12)).save(folder)
    assert sorted(path.name for path in folder.iterdir()) == before
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_saving_over_a_file_or_below_one_is_an_error(tmp_path):
    (tmp_path / "x").write_text("mine")
    with pytest.raises(VectorError, match="is a file"):
        vector_set((4, 12)).save(tmp_path / "x")
    with pytest.raises(VectorError, match="cannot be written"):
        vector_set((4, 12)).save(tmp_path / "x" / "y")
    assert (tmp_path / "x").read_text() == "mine"


def test_saving_to_an_impossible_path_is_an_error(tmp_path):
    (tmp_path / "circle").symlink_to("circle")
    for path in (tmp_path / "circle", tmp_path / "circle" / "x", "bad\0name"):
        with pytest.raises(VectorError, match=r"not a usable path|cannot be written"):
            vector_set((4, 12)).save(path)


@pytest.mark.parametrize("failing", ["write_bytes", "rename"])
def test_a_save_that_fails_leaves_the_earlier_folder_as_it_was(tmp_path, monkeypatch, failing):
    vector_set((4, 12)).save(tmp_path / "x")
    before = contents(tmp_path / "x")
    real = getattr(Path, failing)

    def fails(self: Path, *arguments: Any) -> Any:
        # the second file of the new folder, or the new folder's move into place
        if self.name == "layer_12.npy" or self.name.endswith(".new"):
            raise OSError(28, "No space left on device")
        return real(self, *arguments)

    monkeypatch.setattr(Path, failing, fails)
    with pytest.raises(VectorError, match="No space left on device"):
        vector_set((4, 12), values=5).save(tmp_path / "x")
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
