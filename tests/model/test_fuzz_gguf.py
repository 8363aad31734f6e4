"""No GGUF file gives anything but a model folder or a ModelError; nothing is read past its end."""

import struct
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_steer.errors import ModelError
from mlx_steer.gguf_header import read_header
from mlx_steer.model.gguf import convert_gguf
from tests.helpers import fuzz
from tests.helpers.gguf_files import packed, tiny_gguf, tiny_metadata, write_gguf

KEYS = sorted(tiny_metadata())
ODD: list[Any] = ["", "x", "llama", "gpt2", "$A", "\ud7ff", 0, 1, 2**32 - 1, 0.0, float("nan")]
ODD += [float("inf"), True, [], [""], ["a", "a"], [1, 2], [0.5], [[1]], [["a"]], "a" * 200]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf").read_bytes()


def convert(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as parent:
        path = Path(parent) / "x.gguf"
        path.write_bytes(data)
        folder = Path(parent) / "model"
        fuzz.read_or_refused(lambda: convert_gguf(path, folder))
        assert {p.name for p in Path(parent).iterdir()} <= {"x.gguf", "model"}, "half a model"


def test_no_bytes_give_anything_but_a_model_or_an_error(good: bytes) -> None:
    @settings(max_examples=60, deadline=None)
    @given(fuzz.spoiled(good[:9000]).map(lambda head: head + good[9000:]))
    def check(data: bytes) -> None:
        convert(data)

    check()


@settings(max_examples=60, deadline=None)
@given(
    changes=st.dictionaries(st.sampled_from(KEYS), st.sampled_from(ODD), max_size=2),
    more=st.dictionaries(
        st.sampled_from(
            [
                "general.alignment",
                "llama.rope.scaling.type",
                "llama.rope.scaling.factor",
                "llama.attention.key_length",
                "llama.expert_count",
                "tokenizer.ggml.scores",
                "tokenizer.ggml.add_bos_token",
                "tokenizer.ggml.unknown_token_id",
                "tokenizer.ggml.padding_token_id",
            ]
        ),
        st.sampled_from(ODD),
        max_size=2,
    ),
)
def test_no_metadata_gives_anything_but_a_model_or_an_error(
    changes: dict[str, Any], more: dict[str, Any]
) -> None:
    with tempfile.TemporaryDirectory() as parent:
        path = Path(parent) / "x.gguf"
        tokens = changes.get("tokenizer.ggml.tokens")
        if tokens is not None:  # the helper sizes the embedding by them
            write_gguf(path, {**tiny_metadata(), **changes, **more}, {})
        else:
            tiny_gguf(path, metadata={**changes, **more})
        fuzz.read_or_refused(lambda: convert_gguf(path, Path(parent) / "model"))


def raw(*parts: bytes, tensors: int = 0, pairs: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, pairs) + b"".join(parts)


NAME = packed("a")[4:]
LARGE = {
    "pairs": raw(pairs=2**64 - 1),
    "tensors": raw(tensors=2**64 - 1),
    "a text": raw(struct.pack("<Q", 2**63), pairs=1),
    "a list": raw(NAME, struct.pack("<IIQ", 9, 4, 2**62), pairs=1),
    "a list of lists": raw(NAME, struct.pack("<IIQ", 9, 9, 2**62), pairs=1),
    "lists in lists": raw(NAME, struct.pack("<I", 9), struct.pack("<IQ", 9, 1) * 5000, pairs=1),
    "dimensions": raw(NAME, struct.pack("<I", 2**32 - 1), tensors=1),
}


@pytest.mark.parametrize("data", LARGE.values(), ids=LARGE)
def test_numbers_that_the_file_cannot_hold_cost_no_time_and_no_memory(
    data: bytes, tmp_path: Path
) -> None:
    (tmp_path / "x.gguf").write_bytes(data)
    with pytest.raises(ModelError):
        read_header(tmp_path / "x.gguf")


def test_a_tensor_that_stands_twice_is_refused(good: bytes, tmp_path: Path) -> None:
    name = packed("output_norm.weight")[4:]
    other = packed("blk.0.ffn_norm.weight")[4:]
    data = good.replace(other, name)
    (tmp_path / "x.gguf").write_bytes(data)
    with pytest.raises(ModelError, match="KeyError in the header"):
        convert_gguf(tmp_path / "x.gguf", tmp_path / "model")


def test_a_tensor_of_many_dimensions_is_refused(tmp_path: Path) -> None:
    tensors = {"rope_freqs.weight": (0, (1,) * 40 + (8,), bytes(32))}
    metadata = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0}
    path = tiny_gguf(tmp_path / "x.gguf", metadata=metadata, tensors=tensors)
    with pytest.raises(ModelError, match="dimensions"):
        convert_gguf(path, tmp_path / "model")
