"""Every way a folder of vectors can be wrong is one clear error."""

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

from mlx_steer.errors import VectorError
from mlx_steer.vectors import (
    SteeringVector,
    SteeringVectorSet,
    VectorMetadata,
    load_vectors,
)
from tests.helpers.vector_sets import SIZE, metadata, vector_set

ROOT = Path(__file__).parents[2]
EXTREME = float(np.finfo(np.float32).max)


@pytest.fixture
def folder(tmp_path):
    vector_set((4, 12)).save(tmp_path / "x")
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
