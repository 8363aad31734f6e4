"""GGUF files of other architectures than Llama, and K-quantised ones, against transformers' reader.

Both start from the same small file and go their own way: configuration, dequantisation, names and
order of the weights, tokenizer and forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from mlx_steer.errors import ModelError
from mlx_steer.gguf_header import read_header
from mlx_steer.model.gguf import convert_gguf
from mlx_steer.model.gguf.architectures import ARCHITECTURES
from mlx_steer.model.gguf.config import model_config
from mlx_steer.model.gguf.weights import save_weights, wanted_tensors
from mlx_steer.model.hub import locate
from mlx_steer.model.load import load_model
from tests.helpers.gguf_files import (
    F16,
    HIDDEN,
    INNER,
    K_KINDS,
    LAYERS,
    Q4_0,
    Q4_1,
    Q8_0,
    Tensors,
    as_tensors,
    config_of,
    converted,
    family_arrays,
    family_metadata,
    k_blocks,
    tiny_gguf,
    tiny_metadata,
    tiny_shapes,
    weights_of,
    write_gguf,
)

OTHERS = ["qwen2", "qwen3", "gemma3"]
IDS = [[2, 40, 80, 120, 7, 200, 33, 34, 35, 36, 37, 90, 91, 92, 12, 250]]
TEXTS = [
    *["hello", " the hello", "a  b", "a   b    c", "two\n\nlines\n", "123 4567", "don't DON'T"],
    *[
        "naïve café",
        "日本語",
        "👍🏽",
        "<|start|>he<|end|>",
        "x<tool>he",
        "<start_of_turn>a",
        "",
        " ",
    ],
]


@dataclass(frozen=True, eq=False)
class Pair:
    """One file, converted by us and read by transformers."""

    file: Path
    folder: Path
    theirs: Any


@pytest.fixture(scope="module", params=OTHERS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    architecture: str = request.param
    parent = tmp_path_factory.mktemp(architecture)
    metadata = family_metadata(architecture)
    tensors = as_tensors(family_arrays(architecture, metadata))
    file = write_gguf(parent / "x.gguf", metadata, tensors)
    convert_gguf(file, parent / "model")
    theirs = AutoModelForCausalLM.from_pretrained(
        str(parent), gguf_file="x.gguf", dtype=torch.float32
    )
    if architecture == "gemma3":
        # Theirs cannot tell from the file: it keeps the 27B model's default.
        assert theirs.config.query_pre_attn_scalar == 256
        for layer in theirs.model.layers:
            layer.self_attn.scaling = 32**-0.5
    return Pair(file, parent / "model", theirs)


def logits(folder: Path, ids: list[list[int]] = IDS) -> Any:
    model, _ = mlx_lm.load(str(folder))
    return np.array(model(mx.array(ids)).astype(mx.float32))


def test_transformers_reads_the_same_logits_from_the_file(pair: Pair) -> None:
    with torch.no_grad():
        expected = pair.theirs(torch.tensor(IDS)).logits.numpy()
    ours = logits(pair.folder)
    assert expected.std() > 0.5
    np.testing.assert_allclose(ours, expected, atol=2e-3 * expected.std())


def test_transformers_loads_the_converted_folder_as_the_file(pair: Pair) -> None:
    again = AutoModelForCausalLM.from_pretrained(str(pair.folder), dtype=torch.float32)
    with torch.no_grad():
        expected, found = (m(torch.tensor(IDS)).logits for m in (pair.theirs, again))
    assert torch.allclose(expected, found, atol=1e-4)


def test_transformers_gives_texts_the_same_tokens(pair: Pair) -> None:
    theirs = AutoTokenizer.from_pretrained(str(pair.file.parent), gguf_file=pair.file.name)
    ours = Tokenizer.from_file(str(pair.folder / "tokenizer.json"))
    differing = {
        text: (ours.encode(text, add_special_tokens=False).tokens, theirs.tokenize(text))
        for text in TEXTS
        if ours.encode(text, add_special_tokens=False).ids
        != theirs.encode(text, add_special_tokens=False)
    }
    assert not differing


def test_the_27b_gemma_scales_its_scores_by_its_heads_share_of_the_hidden_state(
    tmp_path: Path,
) -> None:
    # llama.cpp knows it by its 62 layers, since the file does not say.
    for layers, scaled_by in ((6, 32), (62, 16)):
        metadata = family_metadata("gemma3") | {"gemma3.block_count": layers}
        tensors = as_tensors(family_arrays("gemma3", metadata))
        header = read_header(write_gguf(tmp_path / "x.gguf", metadata, tensors))
        config = model_config(header, ARCHITECTURES["gemma3"], "float32", None)
        assert config["query_pre_attn_scalar"] == scaled_by
        assert config["sliding_window_pattern"] == 6


def test_gemma_files_that_mlx_lm_would_compute_otherwise_are_refused(tmp_path: Path) -> None:
    metadata = family_metadata("gemma3") | {"gemma3.final_logit_softcapping": 30.0}
    file = write_gguf(tmp_path / "x.gguf", metadata, as_tensors(family_arrays("gemma3", metadata)))
    with pytest.raises(ModelError, match="caps its logits"):
        convert_gguf(file, tmp_path / "model")


def test_qwen2_heads_that_mlx_lm_would_not_compute_are_refused(tmp_path: Path) -> None:
    metadata = family_metadata("qwen2") | {"qwen2.attention.key_length": 32}
    file = write_gguf(tmp_path / "x.gguf", metadata, as_tensors(family_arrays("qwen2", metadata)))
    with pytest.raises(ModelError, match="4 heads of 32 in a hidden size of 64"):
        convert_gguf(file, tmp_path / "model")


def test_text_that_is_not_composed_is_composed_for_qwen(tmp_path: Path) -> None:
    # As its own tokenizer does; neither llama.cpp nor transformers' reader does.
    folder = converted(tmp_path, metadata={"tokenizer.ggml.pre": "qwen2"})
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.encode("cafe\u0301").ids == tokenizer.encode("café").ids


# --- quantised values -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [F16, Q4_0, Q4_1, Q8_0])
def test_values_are_bit_for_bit_what_mlx_itself_reads(tmp_path: Path, kind: int) -> None:
    width = {F16: 64, Q4_0: 18, Q4_1: 20, Q8_0: 34}[kind]
    blocks = INNER * HIDDEN // 32
    raw = np.random.default_rng(kind).integers(0, 256, (blocks, width)).astype(np.uint8)
    scales = (np.random.default_rng(1).standard_normal((blocks, 2)) * 0.1).astype(np.float16)
    places = {F16: 64, Q4_0: 2, Q4_1: 4, Q8_0: 2}[kind]
    raw[:, :places] = (
        np.random.default_rng(2).standard_normal((blocks, 32)).astype(np.float16).view(np.uint8)
        if kind == F16
        else scales.view(np.uint8)[:, :places]
    )
    name = "blk.1.ffn_up"
    folder = converted(tmp_path, tensors={f"{name}.weight": (kind, (INNER, HIDDEN), raw.tobytes())})
    found = weights_of(folder)["model.layers.1.mlp.up_proj.weight"]
    loaded = mx.load(str(tmp_path / "tiny.gguf"))
    assert isinstance(loaded, dict)
    expected = loaded[f"{name}.weight"].astype(mx.float32) if kind == F16 else None
    if expected is None:
        weight, scale, bias = (loaded[f"{name}.{part}"] for part in ("weight", "scales", "biases"))
        bits = weight.shape[-1] // scale.shape[-1]
        wide = (scale.astype(mx.float32), bias.astype(mx.float32))
        expected = mx.dequantize(weight, *wide, group_size=32, bits=bits)
    assert mx.array_equal(found, expected).item()


def q4_k(block: bytes) -> list[float]:
    """One block, value by value, after ggml's description of the format."""
    scale, low = np.frombuffer(block[:4], np.float16).astype(float)
    six, four = block[4:16], block[16:]
    values = []
    for group in range(8):
        if group < 4:
            factor, offset = six[group] & 63, six[group + 4] & 63
        else:
            factor = (six[group + 4] & 15) | (six[group - 4] >> 6) << 4
            offset = six[group + 4] >> 4 | (six[group] >> 6) << 4
        for i in range(32):
            byte = four[32 * (group // 2) + i]
            nibble = byte >> 4 if group % 2 else byte & 15
            values.append(scale * factor * nibble - low * offset)
    return values


def q6_k(block: bytes) -> list[float]:
    """One block, value by value, after ggml's description of the format."""
    low, high = block[:128], block[128:192]
    scales = np.frombuffer(block[192:208], np.int8)
    scale = float(np.frombuffer(block[208:], np.float16)[0])
    values = []
    for index in range(256):
        half, place = divmod(index, 128)
        quarter, i = divmod(place, 32)
        byte = low[64 * half + 32 * (quarter % 2) + i]
        four = byte >> 4 if quarter > 1 else byte & 15
        two = high[32 * half + i] >> 2 * quarter & 3
        values.append(scale * int(scales[index // 16]) * ((four | two << 4) - 32))
    return values


@pytest.mark.parametrize(("kind", "decode"), [("Q4_K", q4_k), ("Q6_K", q6_k)])
def test_k_quantised_tensors_get_the_values_of_their_format(
    tmp_path: Path, kind: str, decode: Any
) -> None:
    tensor = k_blocks(kind, (256, 256))
    width = K_KINDS[kind][1]
    blocks = [tensor[2][i : i + width] for i in range(0, len(tensor[2]), width)]
    expected = np.array([decode(block) for block in blocks]).reshape(256, 256)
    folder = converted(tmp_path, metadata=WIDE, tensors=wide_tensors() | {"output.weight": tensor})
    found = np.array(weights_of(folder)["lm_head.weight"])[:256]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


WIDE = {
    "llama.embedding_length": 256,
    "llama.feed_forward_length": 256,
    "tokenizer.ggml.tokens": tiny_metadata()["tokenizer.ggml.tokens"][:256],
    "tokenizer.ggml.token_type": [3, 3, *[1] * 254],
    "tokenizer.ggml.merges": [],
}


def wide_tensors(kinds: tuple[str, ...] = ("Q4_K",)) -> Tensors:
    """A model whose rows are whole blocks of 256, each matrix of one of the kinds in turn."""
    widths = {64: 256, 96: 256, 32: 128, 262: 256}
    tensors: Tensors = {}
    for number, (name, shape) in enumerate(tiny_shapes(262).items()):
        wide = tuple(widths[size] for size in shape)
        if len(wide) == 1:
            tensors |= as_tensors({name: np.ones(wide, np.float32)})
        else:
            tensors[name] = k_blocks(kinds[number % len(kinds)], wide, seed=number)
    return tensors


def test_transformers_reads_the_same_model_from_every_k_type(tmp_path: Path) -> None:
    tensors = wide_tensors(tuple(K_KINDS))
    folder = converted(tmp_path, metadata=WIDE, tensors=tensors)
    theirs = AutoModelForCausalLM.from_pretrained(
        str(tmp_path), gguf_file="tiny.gguf", dtype=torch.float32
    )
    with torch.no_grad():
        expected = theirs(torch.tensor(IDS)).logits.numpy()
    np.testing.assert_allclose(logits(folder), expected, atol=1e-3 * expected.std())


def test_a_k_quantised_file_becomes_16_bits_and_can_be_quantised_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLX_STEER_CACHE", str(tmp_path / "cache"))
    file = str(tiny_gguf(tmp_path / "k.gguf", WIDE, wide_tensors()))
    plain = load_model(file)
    assert plain.dtype == mx.bfloat16
    assert plain.info.quantization is None
    folder = locate(file).folder
    assert config_of(folder)["torch_dtype"] == "bfloat16"
    four = load_model(file, quantize=4)
    assert four.info.quantization == {"group_size": 64, "bits": 4, "mode": "affine"}
    ids = mx.array(IDS)
    away = mx.abs(four.network(ids) - plain.network(ids)).mean().item()
    assert 0 < away < 0.5 * mx.abs(plain.network(ids)).mean().item()
    assert locate(str(tiny_gguf(tmp_path / "f.gguf"))).folder.name.endswith("-float32")


def test_large_models_are_written_in_several_files(tmp_path: Path) -> None:
    whole = converted(tmp_path)
    header = read_header(tmp_path / "tiny.gguf")
    architecture = ARCHITECTURES["llama"]
    wanted = wanted_tensors(architecture, config_of(whole))
    parts = tmp_path / "parts"
    parts.mkdir()
    for path in whole.iterdir():
        if path.suffix == ".json":
            (parts / path.name).write_bytes(path.read_bytes())
    save_weights(header, wanted, parts, mx.float32, shard_bytes=100_000)
    files = sorted(path.name for path in parts.glob("*.safetensors"))
    assert len(files) > LAYERS and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert np.array_equal(logits(parts), logits(whole))
    assert load_model(str(parts)).num_layers == LAYERS
