"""Models whose blocks are no plain list, whose windows are ignored, or that have a vision tower."""

import json
from pathlib import Path

import mlx.core as mx
import pytest
from mlx_lm.models import llama

from mlx_steer.conditions import Intervention
from mlx_steer.engine.steered import steered
from mlx_steer.errors import ModelError
from mlx_steer.model.load import decoder_layers, load_model
from tests.helpers.plain import plain_logits
from tests.helpers.tiny import CONTEXT, LAYERS, random_ids, random_vector, tiny_folder


@pytest.mark.parametrize("layers", [None, {0: "block"}, ["no module"]])
def test_blocks_that_are_no_plain_list_are_refused_and_the_place_to_add_them_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layers: object
) -> None:
    folder = tiny_folder("llama", tmp_path / "m")
    monkeypatch.setattr(llama.Model, "layers", property(lambda self: layers))
    with pytest.raises(
        ModelError,
        match=r"blocks of model type 'llama' are not a plain list.*model/families\.py",
    ):
        load_model(str(folder))


def test_phi_3s_sliding_window_limits_the_context(tmp_path: Path) -> None:
    # mlx-lm computes it with full attention: a window of 2047 in Phi-3-mini-4k.
    folder = tiny_folder("phi3", tmp_path / "windowed", sliding_window=40)
    assert load_model(str(folder)).context == 40
    assert load_model(str(tiny_folder("phi3", tmp_path / "full"))).context == CONTEXT


def test_a_gemma_3_with_a_vision_tower_is_steered_as_its_text_model_is(tmp_path: Path) -> None:
    text = tiny_folder("gemma3_text", tmp_path / "text")
    folder = tmp_path / "whole"
    folder.mkdir()
    for file in text.iterdir():
        if not file.name.startswith(("config", "model")):
            (folder / file.name).write_bytes(file.read_bytes())
    weights = mx.load(str(text / "model.safetensors"))
    named = {f"language_model.{name}": value for name, value in weights.items()}
    vision = {"vision_tower.patch.weight": mx.zeros((2, 2)), "multi_modal_projector.w": mx.zeros(2)}
    mx.save_safetensors(str(folder / "model.safetensors"), {**named, **vision}, {"format": "pt"})
    inner = json.loads((text / "config.json").read_text())
    config = {
        "model_type": "gemma3",
        "architectures": ["Gemma3ForConditionalGeneration"],
        "text_config": inner,
        "vocab_size": inner["vocab_size"],
        "eos_token_id": inner["eos_token_id"],
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(config))

    whole, plain = load_model(str(folder)), load_model(str(text))

    assert (whole.num_layers, whole.hidden_size, whole.context) == (LAYERS, 64, CONTEXT)
    assert len(decoder_layers(whole.network)) == LAYERS
    ids = random_ids(1, 30)
    acts = [Intervention(2, random_vector(0), 1.0)]
    expected = plain_logits(plain, ids, acts, len(ids) - 1)
    with steered(whole, acts):
        found = whole.network(mx.array(ids)[None])[0]
    assert mx.allclose(found, expected, atol=1e-4)
    assert not mx.allclose(whole.network(mx.array(ids)[None])[0], expected, atol=0.1)
