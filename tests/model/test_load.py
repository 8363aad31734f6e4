import json
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import linear_to_lora_layers

from mlx_steer import load_model
from mlx_steer.engine.steered import steered
from mlx_steer.errors import ModelError
from mlx_steer.model.load import Model, decoder_layers
from tests.helpers.tiny import (
    CONTEXT,
    FAMILIES,
    HIDDEN,
    LAYERS,
    random_ids,
    random_vector,
    tiny_folder,
    tiny_network,
)

IDS = mx.array(random_ids(1, 30))[None]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLX_STEER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder("llama", tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_of_every_family_loads_and_computes_what_its_weights_say(
    family: str, tmp_path: Path
) -> None:
    folder = tiny_folder(family, tmp_path / family)
    model = load_model(str(folder))
    assert mx.array_equal(model.network(IDS), tiny_network(family)(IDS))
    assert (model.num_layers, model.hidden_size) == (LAYERS, HIDDEN)
    assert model.dtype == mx.float32 and model.exact
    assert model.context == CONTEXT
    assert model.info.model_type == family and model.info.quantization is None
    assert model.info.id == str(folder) and model.info.revision is None
    assert model.chat.stop_ids == {2, 3}
    assert model.tokenizer.decode(model.chat.prompt_ids("Hi")).startswith("<bos><|user|>Hi")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_keep_the_dtype_they_are_stored_in_unless_told(dtype: str, tmp_path: Path) -> None:
    folder = tiny_folder("llama", tmp_path / "half", dtype)
    stored, exact = load_model(str(folder)), load_model(str(folder), dtype="float32")
    assert stored.dtype == getattr(mx, dtype) and not stored.exact
    assert stored.network(IDS).dtype == getattr(mx, dtype)
    assert exact.dtype == exact.network(IDS).dtype == mx.float32 and exact.exact
    assert all(v.dtype == mx.float32 for _, v in tree_flatten(exact.network.parameters()))
    back = load_model(str(folder), dtype=dtype)  # type: ignore[arg-type]
    assert mx.array_equal(back.network(IDS), stored.network(IDS))


def test_layers_count_from_both_ends(llama: Path) -> None:
    model = load_model(f"{llama}/")
    assert [model.layer(i) for i in (0, 5, -1, -6)] == [0, 5, 5, 0]
    for index in (6, -7):
        with pytest.raises(ModelError, match=f"tiny-llama has layers 0 to 5, and no layer {index}"):
            model.layer(index)


def test_mistrals_sliding_window_limits_the_context(tmp_path: Path) -> None:
    # mlx-lm computes it with full attention.
    windowed = tiny_folder("mistral", tmp_path / "windowed", sliding_window=40)
    assert load_model(str(windowed)).context == 40
    longer = tiny_folder("mistral", tmp_path / "longer", sliding_window=5000)
    assert load_model(str(longer)).context == CONTEXT
    gemma = tiny_folder("gemma3_text", tmp_path / "gemma")
    assert load_model(str(gemma)).context == CONTEXT, "Gemma's window is computed as it should be"


def test_a_context_the_config_does_not_give_is_unknown(tmp_path: Path) -> None:
    folder = tiny_folder("llama", tmp_path / "m")
    change_config(folder, max_position_embeddings=None)
    assert load_model(str(folder)).context is None


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


# --- quantised weights ----------------------------------------------------------------------------


def test_quantising_converts_once_and_reuses_the_result(
    llama: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = import_module("mlx_lm.convert")
    calls: list[int] = []
    original = module.convert

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs["q_bits"])
        return original(*args, **kwargs)

    monkeypatch.setattr(module, "convert", counted)
    four, again = load_model(str(llama), quantize=4), load_model(str(llama), quantize=4)
    assert calls == [4]
    eight = load_model(str(llama), quantize=8)
    assert calls == [4, 8]
    assert four.info.quantization is not None and four.info.quantization["bits"] == 4
    assert eight.info.quantization is not None and eight.info.quantization["bits"] == 8
    assert four.info.id == f"{llama} (4-bit)"
    assert isinstance(decoder_layers(four.network)[0].self_attn.q_proj, nn.QuantizedLinear)
    assert mx.array_equal(four.network(IDS), again.network(IDS))
    plain = load_model(str(llama))
    fingerprints = {m.info.fingerprint for m in (plain, four, eight)}
    assert len(fingerprints) == 3 and again.info.fingerprint == four.info.fingerprint
    exact = plain.network(IDS)
    errors = [mx.abs(m.network(IDS) - exact).mean().item() for m in (eight, four)]
    assert 0 < errors[0] < errors[1] < 3
    assert len(list((own_cache / "models").iterdir())) == 2, "nothing else is left behind"


def test_other_weights_of_the_same_name_are_quantised_anew(tmp_path: Path) -> None:
    one = tiny_folder("llama", tmp_path / "m", seed=0)
    first = load_model(str(one), quantize=4)
    shutil.rmtree(one)
    second = load_model(str(tiny_folder("llama", tmp_path / "m", seed=1)), quantize=4)
    assert not mx.array_equal(first.network(IDS), second.network(IDS))


def quantised_folder(path: Path, llama: Path) -> Path:
    import_module("mlx_lm.convert").convert(str(llama), str(path), quantize=True, q_bits=4)
    return path


def test_quantised_weights_are_steered_and_can_be_dequantised(llama: Path, tmp_path: Path) -> None:
    folder = quantised_folder(tmp_path / "q4", llama)
    packed, expanded = load_model(str(folder)), load_model(str(folder), dequantize=True)
    assert packed.info == expanded.info
    assert packed.info.quantization is not None and packed.info.quantization["bits"] == 4
    assert packed.dtype == mx.float32
    assert isinstance(decoder_layers(expanded.network)[0].self_attn.q_proj, nn.Linear)
    assert mx.allclose(packed.network(IDS), expanded.network(IDS), atol=2e-3)
    with steered(packed, random_vector(0), layer=2):
        one = packed.network(IDS)
    with steered(expanded, random_vector(0), layer=2):
        assert mx.allclose(one, expanded.network(IDS), atol=2e-3)


def test_quantised_weights_cannot_be_quantised_again(llama: Path, tmp_path: Path) -> None:
    folder = quantised_folder(tmp_path / "q4", llama)
    with pytest.raises(ModelError, match="quanti"):
        load_model(str(folder), quantize=8)


# --- adapters -------------------------------------------------------------------------------------


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "my-lora"
    folder.mkdir()
    settings = {"rank": 4, "scale": 2.0, "dropout": 0.0, "keys": ["self_attn.q_proj"]}
    config = {"fine_tune_type": "lora", "num_layers": LAYERS, "lora_parameters": settings}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    network = tiny_network("llama")
    network.freeze()
    linear_to_lora_layers(network, LAYERS, settings)
    rng = np.random.default_rng(0)
    weights = {
        name: mx.array(rng.standard_normal(value.shape).astype(np.float32)) / 8
        for name, value in tree_flatten(network.trainable_parameters())
    }
    mx.save_safetensors(str(folder / "adapters.safetensors"), weights)
    return folder


def test_an_adapter_changes_the_model_and_its_record(llama: Path, adapter: Path) -> None:
    plain, tuned = load_model(str(llama)), load_model(str(llama), adapter=str(adapter))
    assert mx.abs(plain.network(IDS) - tuned.network(IDS)).max().item() > 0.1
    assert tuned.info.id == f"{llama} + my-lora"
    assert tuned.info.fingerprint != plain.info.fingerprint
    names = [name for name, _ in tree_flatten(tuned.network.parameters())]
    before = tuned.network(IDS)
    with steered(tuned, random_vector(0), layer=2):
        assert not mx.array_equal(before, tuned.network(IDS))
        assert [name for name, _ in tree_flatten(tuned.network.parameters())] == names
    assert mx.array_equal(before, tuned.network(IDS))


def test_a_folder_that_is_no_adapter_is_refused(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is no adapter folder: it has no adapter_config\.json"):
        load_model(str(llama), adapter=str(tmp_path))


def test_an_adapter_for_another_model_is_refused(adapter: Path, tmp_path: Path) -> None:
    wider = tiny_folder("llama", tmp_path / "wider", hidden_size=128)
    with pytest.raises(ModelError, match="does not fit"):
        load_model(str(wider), adapter=str(adapter))


# --- folders that cannot be loaded ----------------------------------------------------------------


def without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def damaged_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": ')


def unknown_type(folder: Path) -> None:
    change_config(folder, model_type="nonesuch")


def torn_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


def missing_weight(folder: Path) -> None:
    weights = mx.load(str(folder / "model.safetensors"))
    del weights["model.layers.3.mlp.up_proj.weight"]
    mx.save_safetensors(str(folder / "model.safetensors"), weights)


def no_template(folder: Path) -> None:
    for path in folder.glob("*.jinja"):
        path.unlink()


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def missing_shard(folder: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def own_code(folder: Path) -> None:
    change_config(folder, model_file="modeling.py")
    (folder / "modeling.py").write_text("raise SystemExit('this must not be run')")


BROKEN: list[tuple[Callable[[Path], None], str]] = [
    (without_config, r"is no model folder: it has no config\.json"),
    (without_weights, r"no .*model\*\.safetensors"),
    (damaged_config, r"config\.json is damaged"),
    (unknown_type, "cannot be loaded .*nonesuch"),
    (torn_weights, "cannot be loaded"),
    (missing_weight, r"cannot be loaded .*layers\.3\.mlp\.up_proj"),
    (no_template, "has no chat template"),
    (no_tokenizer, "has no tokenizer"),
    (missing_shard, r"lacks 'model-00002-of-00002\.safetensors', which its index names"),
    (own_code, r"wants its own code 'modeling\.py' to be run"),
]


@pytest.mark.parametrize(("damage", "message"), BROKEN, ids=[b[0].__name__ for b in BROKEN])
def test_a_folder_that_cannot_be_used_is_named_in_one_sentence(
    damage: Callable[[Path], None], message: str, llama: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(llama, folder)
    damage(folder)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(str(folder))
    assert "damaged" in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_thinking_is_passed_on_to_the_template(tmp_path: Path) -> None:
    template = "{{ bos_token }}{{ messages[0]['content'] }}{{ enable_thinking }}"
    folder = tiny_folder("llama", tmp_path / "m", template=template)
    for thinking in (False, True):
        model = load_model(str(folder), thinking=thinking)
        assert model.tokenizer.decode(model.chat.prompt_ids("Hi")) == f"<bos>Hi{thinking}"


def test_the_network_is_the_one_mlx_lm_loads(llama: Path) -> None:
    model: Model = load_model(str(llama))
    network, tokenizer = mlx_lm.load(str(llama))[:2]
    assert type(model.network) is type(network)
    ours = mlx_lm.generate(model.network, model.tokenizer, IDS[0].tolist(), max_tokens=5)
    assert ours == mlx_lm.generate(network, tokenizer, IDS[0].tolist(), max_tokens=5)
