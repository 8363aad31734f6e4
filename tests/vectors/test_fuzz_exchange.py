"""No file gives anything but vectors or a sentence; nothing in it is run or believed."""

import io
import json
import pickle
import struct
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from mlx_steer.errors import VectorError
from mlx_steer.vectors import SteeringVectorSet
from mlx_steer.vectors.evidence import evidence_in
from mlx_steer.vectors.exchange.foreign import vectors_of
from mlx_steer.vectors.exchange.formats import ImportOptions, export_vectors, read_foreign
from mlx_steer.vectors.model_card import model_card
from tests.helpers import fuzz
from tests.helpers.gguf_files import packed, write_gguf
from tests.helpers.vector_sets import KNOWN, vector_set

ROW = np.ones(8, np.float32)


def torch_bytes(value: object) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def exported(kind: Any, name: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        export_vectors(vector_set(), (1, 3), kind, Path(folder) / name)
        return (Path(folder) / name).read_bytes()


MATRIX = torch.arange(56, dtype=torch.float32).reshape(7, 8)
GOOD: dict[str, Callable[[], bytes]] = {
    "a.gguf": lambda: exported("gguf", "a.gguf"),
    "a.safetensors": lambda: exported("safetensors", "a.safetensors"),
    "layers.pt": lambda: torch_bytes({1: torch.ones(8), 2: torch.ones(8, dtype=torch.float16)}),
    "a_avg_diff.pt": lambda: torch_bytes(MATRIX),
    "a_weight.pt": lambda: torch_bytes(MATRIX * 2),
}


def imported(folder: Path, name: str, data: bytes) -> SteeringVectorSet | None:
    path = folder / name
    path.write_bytes(data)
    options = ImportOptions(layer=2, concept=1) if "weight" in name else ImportOptions()
    return fuzz.read_or_refused(lambda: vectors_of(read_foreign(path, options), path, KNOWN))


@pytest.mark.parametrize("name", GOOD)
def test_no_bytes_give_anything_but_vectors_or_a_sentence(name: str) -> None:
    good = GOOD[name]()

    @settings(max_examples=150, deadline=None)
    @given(fuzz.spoiled(good))
    def check(data: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            found = imported(Path(folder), name, data)
            assert found is None or all(np.isfinite(v.array).all() for v in found.values())

    check()
    with tempfile.TemporaryDirectory() as folder:
        assert imported(Path(folder), name, good) is not None


def test_no_words_beside_tensors_give_anything_but_vectors_or_a_sentence() -> None:
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "v"
        export_vectors(vector_set(), (1, 3), "pt", folder)
        about = folder / "metadata.json"
        good = json.loads(about.read_text())

        @settings(max_examples=100, deadline=None)
        @given(fuzz.json_files(good) | fuzz.json_files(json.loads(good["mlx_steer"])))
        def check(data: bytes) -> None:
            nested = json.dumps({"mlx_steer": data.decode(errors="replace")}).encode()
            for content in (data, nested):
                about.write_bytes(content)
                fuzz.read_or_refused(
                    lambda: vectors_of(read_foreign(folder, ImportOptions()), folder, KNOWN)
                )

        check()


def test_no_evidence_gives_anything_but_evidence_or_a_sentence() -> None:
    vectors = vector_set()
    good = {
        **dict.fromkeys(("run", "title", "shown", "target", "other", "answer"), "x"),
        "format_version": 1,
        "sentences": ["x"],
        "rows": [dict.fromkeys(("name", "target", "other", "incoherent", "coherence"), "-")],
        "layer": 3,
        "strength": 1.0,
        "vectors": {"layer_3.npy": vectors.metadata.layers[3].sha256},
    }
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent)
        (folder / "card.json").write_text(json.dumps(good))
        found = evidence_in(folder, vectors)
        assert found is not None and found.layer == 3

        @settings(max_examples=100, deadline=None)
        @given(fuzz.json_files(good))
        def check(data: bytes) -> None:
            (folder / "card.json").write_bytes(data)
            evidence = fuzz.read_or_refused(lambda: evidence_in(folder, vectors))
            if evidence is not None:
                model_card(vectors, "org/name", evidence)

        check()


PICKLED = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.integers(), inner, max_size=3),
    max_leaves=8,
)


def with_pickle(program: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a/data.pkl", program)
        archive.writestr("a/data/0", ROW.tobytes())
    return stream.getvalue()


@settings(max_examples=150, deadline=None)
@given(PICKLED.map(lambda value: pickle.dumps(value, 2)) | st.binary(max_size=60))
def test_no_pickle_gives_anything_but_vectors_or_a_sentence(program: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        imported(Path(folder), "layers.pt", with_pickle(program))


# --- files made to harm ---------------------------------------------------------------------------


class Evil:
    def __reduce__(self) -> Any:
        return print, ("this was run",)


def tensor_program(shape: bytes, stride: bytes, offset: bytes = b"K\x00") -> bytes:
    """A pickle of one tensor of 8 numbers, as it says itself."""
    storage = (
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
    )
    return (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + b"K\x08tQ"
        + offset
        + shape
        + stride
        + b"\x89ccollections\nOrderedDict\n)RtR."
    )


HUGE = b"\x8a\x05\x00\x00\x00\x00\x01"  # 2**32


def zip_bomb() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(50_000_000))
    return stream.getvalue()


def many_entries() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for i in range(12_000):
            archive.writestr(f"a/{i}", b"")
    return stream.getvalue()


def gguf_bytes(tensors: Any, **metadata: Any) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        keys = {"general.architecture": "controlvector", **metadata}
        return write_gguf(Path(folder) / "x.gguf", keys, tensors).read_bytes()


def raw_safetensors(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


NAN = np.array([1, np.nan], np.float32)
HARMFUL: dict[str, tuple[str, bytes, str]] = {
    "a pickle that runs something": ("a.pt", torch_bytes(Evil()), r"asks for '\w+\.print'"),
    "os.system": ("a.pt", with_pickle(b"cos\nsystem\n(X\x02\x00\x00\x00lstR."), r"'os\.system'"),
    "a bare pickle": ("a.pt", pickle.dumps(Evil()).ljust(80), "bare pickle, which is never loaded"),
    "an object built": ("a.pt", with_pickle(b"\x80\x02}}b."), "uses BUILD"),
    "memory by memo": ("a.pt", with_pickle(b"]r\xff\xff\xff\x7f."), "neither a dict"),
    "a zip bomb": ("a.pt", zip_bomb(), "compressed, which PyTorch never does"),
    "a crowded zip": ("a.pt", many_entries(), "12,000 files"),
    "a huge tensor": ("a.pt", with_pickle(tensor_program(HUGE + b"\x85", b"K\x01\x85")), "whole"),
    "numbers from beyond": (
        "a.pt",
        with_pickle(tensor_program(b"K\x08\x85", b"K\x01\x85", offset=b"K\x01")),
        "no whole PyTorch file",
    ),
    "one number as many": (
        "a.pt",
        with_pickle(tensor_program(HUGE + b"\x85", b"K\x00\x85")),
        "not contiguous",
    ),
    "a tensor 1,000 times": (
        "a.pt",
        torch_bytes(dict.fromkeys(range(1000), torch.ones(4096))),
        "more numbers than it has bytes",
    ),
    "a million tensors in GGUF": (
        "a.gguf",
        b"GGUF" + struct.pack("<IQQ", 3, 1_000_000, 0) + bytes(1000),
        "announces 1000000 tensors",
    ),
    "GGUF without end": (
        "a.gguf",
        b"GGUF"
        + struct.pack("<IQQ", 3, 0, 1)
        + packed("a")[4:]
        + struct.pack("<I", 9)
        + struct.pack("<IQ", 9, 1) * 5000,
        "is damaged|is truncated",
    ),
    "a GGUF tensor larger than the file": (
        "a.gguf",
        gguf_bytes({"direction.1": (0, (2**40,), ROW.tobytes())}),
        "more numbers than it has bytes",
    ),
    "a GGUF of half numbers": (
        "a.gguf",
        gguf_bytes({"direction.1": (1, (8,), ROW.tobytes())}),
        "not one row of float32",
    ),
    "a GGUF matrix": (
        "a.gguf",
        gguf_bytes({"direction.1": (0, (2, 4), ROW.tobytes())}),
        "not one row of float32",
    ),
    "NaN in GGUF": (
        "a.gguf",
        gguf_bytes({"direction.1": (0, (2,), NAN.tobytes())}),
        r"a\.gguf: .*not finite",
    ),
    "a layer no model has": (
        "a.gguf",
        gguf_bytes({"direction.99999": (0, (8,), ROW.tobytes())}),
        "layer 99999, which no model has",
    ),
    "a damaged record of ours": (
        "a.gguf",
        gguf_bytes({"direction.1": (0, (8,), ROW.tobytes())}, mlx_steer="{" * 9),
        "record of mlx-steer is damaged",
    ),
    "a header larger than the file": (
        "a.safetensors",
        struct.pack("<Q", 2**62) + b"{}",
        "header would have",
    ),
    "a header that nests": (
        "a.safetensors",
        raw_safetensors(b'{"a":' * 100_000),
        "no whole safetensors file",
    ),
    "a tensor that lies of its size": (
        "a.safetensors",
        raw_safetensors(
            b'{"layer_1":{"dtype":"F32","shape":[8],"data_offsets":[0,99]}}', bytes(32)
        ),
        "no whole safetensors file",
    ),
    "a negative layer": ("a.safetensors", save({"layer_-1": ROW}), "names no layer"),
    "whole numbers": ("a.safetensors", save({"layer_1": np.ones(8, np.int64)}), "no float numbers"),
    "a matrix": ("a.safetensors", save({"layer_1": np.ones((2, 4), np.float32)}), "no one vector"),
    "NaN": ("a.safetensors", save({"layer_1": NAN}), r"a\.safetensors: .*not finite"),
    "a million tensors": (
        "a.safetensors",
        raw_safetensors(
            b"{"
            + b",".join(
                b'"layer_%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % i
                for i in range(100_000)
            )
            + b"}"
        ),
        "header would have",
    ),
    "something else": ("a.txt", b"hello", "no format known here"),
    "nothing": ("a.pt", b"", "too short"),
}


@pytest.mark.parametrize(("name", "data", "says"), HARMFUL.values(), ids=HARMFUL)
def test_a_harmful_file_is_refused_in_a_sentence_and_runs_nothing(
    name: str, data: bytes, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(VectorError, match=says):
        vectors_of(read_foreign(path, ImportOptions()), path, KNOWN)
    assert capsys.readouterr().out == ""


def test_an_object_of_the_steering_vectors_package_is_refused_with_the_way_out(
    tmp_path: Path,
) -> None:
    program = b"\x80\x02csteering_vectors.steering_vector\nSteeringVector\n)R."
    (tmp_path / "a.pt").write_bytes(with_pickle(program))
    with pytest.raises(VectorError, match="save a tensor, or a dict of tensors by layer"):
        read_foreign(tmp_path / "a.pt", ImportOptions())


def test_a_damaged_number_is_noticed(tmp_path: Path) -> None:
    data = bytearray(torch_bytes({1: torch.ones(8)}))
    at = bytes(data).index(ROW.tobytes())
    data[at] ^= 1
    (tmp_path / "a.pt").write_bytes(data)
    with pytest.raises(VectorError, match="is damaged; copy it again"):
        read_foreign(tmp_path / "a.pt", ImportOptions())
