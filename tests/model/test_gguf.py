import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from mlx_lm.models import llama

from mlx_steer.errors import ModelError
from mlx_steer.model import gguf
from mlx_steer.model.gguf import convert_gguf
from tests.helpers.gguf_files import (
    HEAD_DIM,
    HEADS,
    HIDDEN,
    INNER,
    KEY_VALUE_HEADS,
    LAYERS,
    Q4_0,
    Q4_1,
    Q8_0,
    as_tensors,
    config_of,
    converted,
    tiny_arrays,
    tiny_gguf,
    tiny_metadata,
    weights_of,
)

# --- weights --------------------------------------------------------------------------------------


def test_converted_model_computes_what_interleaved_rotary_gives_on_the_files_own_rows(
    tmp_path: Path,
) -> None:
    folder = converted(tmp_path)
    names = {
        "token_embd": "embed_tokens",
        "output_norm": "norm",
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    arguments = llama.ModelArgs.from_dict(config_of(folder) | {"rope_traditional": True})
    interleaved = llama.Model(arguments)
    raw = {}
    for name, array in tiny_arrays().items():
        *block, stem, kind = name.replace("blk", "layers").split(".")
        raw[".".join(["model", *block, names[stem], kind])] = mx.array(array)
    interleaved.load_weights(list(raw.items()))
    model, _ = mlx_lm.load(str(folder))
    ids = mx.array([[1, 40, 80, 120, 7, 200]])

    assert mx.allclose(model(ids), interleaved(ids), atol=1e-4).item()

    # Without the rows put back the difference is large, so the comparison above can fail.
    model.load_weights(list(raw.items()))
    assert mx.abs(model(ids) - interleaved(ids)).max().item() > 0.1


def test_transformers_computes_the_same_logits_from_the_folder(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = converted(tmp_path)
    model, _ = mlx_lm.load(str(folder))
    reference = transformers.LlamaForCausalLM.from_pretrained(str(folder))
    ids = [[1, 40, 80, 120, 7, 200]]

    with torch.no_grad():
        expected = reference(torch.tensor(ids)).logits.numpy()

    assert reference.dtype == torch.float32
    np.testing.assert_allclose(np.array(model(mx.array(ids))), expected, atol=1e-4)


def halves(random: np.random.Generator, blocks: int) -> np.ndarray:
    return (random.standard_normal((blocks, 1)) * 0.05).astype(np.float16)


def nibbles(values: np.ndarray) -> np.ndarray:
    return (values[:, :16] | values[:, 16:] << 4).astype(np.uint8)


def quantized(kind: int, shape: tuple[int, ...]) -> tuple[bytes, np.ndarray]:
    """Random blocks and the values that the definition of the format gives them."""
    random = np.random.default_rng(kind)
    blocks = int(np.prod(shape)) // 32
    scale, low = halves(random, blocks), halves(random, blocks)
    scale32, low32 = scale.astype(np.float32), low.astype(np.float32)
    if kind == Q8_0:
        signed = random.integers(-128, 128, (blocks, 32)).astype(np.int8)
        parts, values = [scale.view(np.uint8), signed.view(np.uint8)], signed * scale32
    else:
        four = random.integers(0, 16, (blocks, 32)).astype(np.uint8)
        if kind == Q4_0:
            parts = [scale.view(np.uint8), nibbles(four)]
            values = (four.astype(np.float32) - 8) * scale32
        else:
            parts = [scale.view(np.uint8), low.view(np.uint8), nibbles(four)]
            values = four * scale32 + low32
    return np.concatenate(parts, axis=1).tobytes(), values.reshape(shape).astype(np.float32)


@pytest.mark.parametrize("kind", [Q4_0, Q4_1, Q8_0], ids=["Q4_0", "Q4_1", "Q8_0"])
def test_quantised_tensors_get_the_values_of_their_format(tmp_path: Path, kind: int) -> None:
    shape = (INNER, HIDDEN)
    raw, expected = quantized(kind, shape)
    folder = converted(tmp_path, tensors={"blk.1.ffn_up.weight": (kind, shape, raw)})
    found = np.array(weights_of(folder)["model.layers.1.mlp.up_proj.weight"])
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


def test_quantised_query_rows_are_put_back_too(tmp_path: Path) -> None:
    shape = (HIDDEN, HIDDEN)
    raw, values = quantized(Q4_1, shape)
    folder = converted(tmp_path, tensors={"blk.0.attn_q.weight": (Q4_1, shape, raw)})
    found = np.array(weights_of(folder)["model.layers.0.self_attn.q_proj.weight"])
    # The rotation pairs rows 0 and 1 of a head in the file, rows 0 and head_dim / 2 in the folder.
    for head in range(HEADS):
        stored, put_back = values[head * HEAD_DIM :], found[head * HEAD_DIM :]
        np.testing.assert_allclose(put_back[0], stored[0], atol=1e-6)
        np.testing.assert_allclose(put_back[HEAD_DIM // 2], stored[1], atol=1e-6)
        np.testing.assert_allclose(put_back[1], stored[2], atol=1e-6)


def test_files_that_mlx_wrote_itself_are_read(tmp_path: Path) -> None:
    arrays = {k: mx.array(v).astype(mx.float16) for k, v in tiny_arrays().items()}
    pairs: dict[str, Any] = {}
    for key, value in tiny_metadata().items():
        numbers = not isinstance(value, str) and not (
            isinstance(value, list) and isinstance(value[0], str)
        )
        pairs[key] = mx.array(value) if numbers else value
    mx.save_gguf(str(tmp_path / "mlx.gguf"), arrays, pairs)

    convert_gguf(tmp_path / "mlx.gguf", tmp_path / "tiny")

    found = weights_of(tmp_path / "tiny")["model.layers.0.mlp.down_proj.weight"]
    assert found.dtype == mx.float32
    assert mx.array_equal(found, arrays["blk.0.ffn_down.weight"].astype(mx.float32)).item()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_all_weights_have_the_dtype_asked_for(tmp_path: Path, dtype: gguf.Dtype) -> None:
    folder = converted(tmp_path, dtype)
    assert {array.dtype for array in weights_of(folder).values()} == {getattr(mx, dtype)}
    assert config_of(folder)["torch_dtype"] == dtype


def test_a_separate_output_matrix_is_kept(tmp_path: Path) -> None:
    output = tiny_arrays(seed=5)["token_embd.weight"]
    folder = converted(tmp_path, tensors=as_tensors({"output.weight": output}))
    assert config_of(folder)["tie_word_embeddings"] is False
    assert np.array_equal(np.array(weights_of(folder)["lm_head.weight"]), output)


# --- configuration --------------------------------------------------------------------------------


def test_config_carries_the_hyper_parameters_of_the_file(tmp_path: Path) -> None:
    assert config_of(converted(tmp_path)) == {
        "_name_or_path": "Tiny",
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 0,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "max_position_embeddings": 128,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": KEY_VALUE_HEADS,
        "pad_token_id": None,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 500.0,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "vocab_size": 262,
    }


def test_every_end_token_of_the_file_ends_generation(tmp_path: Path) -> None:
    folder = converted(tmp_path, metadata={"tokenizer.ggml.eot_token_id": 261})
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [0, 261]
    assert mlx_lm.load(str(folder))[1].eos_token_ids == {0, 261}


def test_rotary_factors_of_llama_3_become_its_scaling(tmp_path: Path) -> None:
    # By the definition in Meta's reference code: long wavelengths slowed down, short ones kept.
    divisors = []
    for wavelength in 2 * np.pi * 5e5 ** (np.arange(0, HEAD_DIM, 2) / HEAD_DIM):
        smooth = (8192 / wavelength - 1) / 3
        between = 1 / ((1 - smooth) / 32 + smooth)
        divisors.append(1 if wavelength < 2048 else 32 if wavelength > 8192 else between)
    factors = {"rope_freqs.weight": np.array(divisors, np.float32)}
    base = {"llama.rope.freq_base": 5e5}

    folder = converted(tmp_path, metadata=base, tensors=as_tensors(factors))

    assert config_of(folder)["rope_scaling"] == {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    }
    assert not any("rope" in name for name in weights_of(folder))
    mlx_lm.load(str(folder))


def test_linear_rotary_scaling_is_kept(tmp_path: Path) -> None:
    scaling = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    folder = converted(tmp_path, metadata=scaling)
    assert config_of(folder)["rope_scaling"] == {"factor": 4.0, "rope_type": "linear"}


# --- the folder -----------------------------------------------------------------------------------


def test_the_same_file_gives_the_same_bytes(tmp_path: Path) -> None:
    source = tiny_gguf(tmp_path / "tiny.gguf")
    for name in ("first", "second"):
        convert_gguf(source, tmp_path / "models" / name, model_id="someone/tiny")
    first, second = (
        {path.name: path.read_bytes() for path in (tmp_path / "models" / name).iterdir()}
        for name in ("first", "second")
    )
    assert first == second
    assert config_of(tmp_path / "models" / "first")["_name_or_path"] == "someone/tiny"
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["first", "second"]


def test_a_model_folder_that_is_there_is_kept(tmp_path: Path) -> None:
    folder = converted(tmp_path)
    before = (folder / "model.safetensors").stat().st_mtime_ns
    convert_gguf(tmp_path / "tiny.gguf", folder, "float16")
    assert (folder / "model.safetensors").stat().st_mtime_ns == before


def test_a_folder_with_other_things_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "notes.txt").write_text("mine")
    with pytest.raises(ModelError, match="is no model folder"):
        converted(tmp_path)
    assert [path.name for path in (tmp_path / "tiny").iterdir()] == ["notes.txt"]


def during_saving(monkeypatch: pytest.MonkeyPatch, action: Callable[[], None]) -> None:
    save = mx.save_safetensors

    def save_and_act(*arguments: Any) -> None:
        save(*arguments)
        action()

    monkeypatch.setattr(mx, "save_safetensors", save_and_act)


def test_a_model_folder_that_appears_meanwhile_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def another_process_is_faster() -> None:
        (tmp_path / "tiny").mkdir()
        for name in ("config.json", "model.safetensors"):
            (tmp_path / "tiny" / name).write_text("theirs")

    during_saving(monkeypatch, another_process_is_faster)
    folder = converted(tmp_path)
    assert (folder / "config.json").read_text() == "theirs"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny", "tiny.gguf"]


@pytest.mark.parametrize("error", [OSError("no space left"), RuntimeError("write failed")])
def test_a_failed_write_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail() -> None:
        raise error

    during_saving(monkeypatch, fail)
    with pytest.raises(ModelError, match=f"could not be converted .*{error}"):
        converted(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.gguf"]


# --- a real model ---------------------------------------------------------------------------------


def test_a_real_model_answers_sensibly(smollm: Path) -> None:
    model, tokenizer = mlx_lm.load(str(smollm))
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True)
    assert "Paris" in mlx_lm.generate(model, tokenizer, prompt, max_tokens=12)
