"""The model card: what it says of vectors, and the evidence that travels with them."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from mlx_steer.errors import RunError, VectorError
from mlx_steer.metrics import compute_metrics
from mlx_steer.metrics.metrics_file import metrics_text
from mlx_steer.report.measured_effect import measured_effect
from mlx_steer.run.reader import load_run
from mlx_steer.vectors import SteeringVector, SteeringVectorSet, load_vectors
from mlx_steer.vectors.evidence import CARD_FILE, evidence_in
from mlx_steer.vectors.model_card import model_card
from mlx_steer.vectors.share import pull_vectors, push_vectors
from tests.helpers.hub_stand_in import (
    Hub,
)
from tests.helpers.synthetic_run import small_run
from tests.vectors.conftest import NAME

CHOICE = {"layer": 8, "strength": 1.0, "system_prompt": "calibrated", "met_limits": True}


def with_model(vectors: SteeringVectorSet, **changes: Any) -> SteeringVectorSet:
    model = vectors.metadata.model.model_copy(update=changes)
    return SteeringVectorSet(
        vectors.vectors, vectors.metadata.model_copy(update={"model": model}), vectors.gates
    )


def measured(folder: Path, **choice: Any) -> Path:
    run = small_run(folder).write({**CHOICE, **choice})
    (run / "metrics.json").write_text(metrics_text(compute_metrics(load_run(run))))
    return run


def front_matter(card: str) -> dict[str, Any]:
    front: dict[str, Any] = yaml.safe_load(card.split("---\n")[1])
    return front


def test_the_card_says_what_how_and_on_which_model(hub: Hub, folder: Path) -> None:
    push_vectors(folder, NAME)
    card = hub.repos[NAME].files["README.md"].decode()
    assert front_matter(card) == {
        "library_name": "mlx-steer",
        "base_model": "tests/tiny",
        "base_model_relation": "adapter",
        "tags": ["activation-steering", "steering-vectors", "mlx-steer", "mlx", "refusal"],
    }
    for fact in ("abc123", "f00d", "1" * 64, "50 of `refusal`", "last response token"):
        assert fact in card
    assert "| 8 | 18.000 | 56.00 | 0.321 |" in card
    assert "**What these vectors do was not measured.**" in card


def test_the_code_in_the_card_names_these_vectors(vectors: SteeringVectorSet) -> None:
    card = model_card(vectors, NAME)
    code = card.split("```python\n")[1].split("```")[0]
    assert f"mlx-steer vectors pull {NAME} vectors/refusal-tiny" in card
    assert 'load_vectors("vectors/refusal-tiny")' in code
    assert 'load_model("tests/tiny", revision="abc123")' in code
    assert "layer=8, strength=1.0" in code
    command = card.split("```sh\n")[2].split("```")[0]
    assert command.startswith("mlx-steer generate --model tests/tiny@abc123 --vectors vectors/")
    assert '--layer 8 --strength 1.0 "Your question?"' in command


@pytest.mark.parametrize(
    ("model", "base", "call"),
    [
        (
            {"id": "org/big (4-bit)"},
            "org/big",
            'load_model("org/big", revision="abc123", quantize=4)',
        ),
        (
            {"id": "org/big + poet"},
            "org/big",
            'load_model("org/big", revision="abc123", adapter=...)',
        ),
        (
            {"id": "smollm2-135m", "revision": None},
            "HuggingFaceTB/SmolLM2-135M-Instruct",
            'load_model("smollm2-135m")',
        ),
        ({"id": "models/mine", "revision": None}, None, 'load_model("models/mine")'),
    ],
)
def test_the_base_model_is_named_only_if_the_hub_knows_it(
    vectors: SteeringVectorSet, model: dict[str, Any], base: str | None, call: str
) -> None:
    card = model_card(with_model(vectors, **model), NAME)
    assert front_matter(card).get("base_model") == base
    assert call in card


def test_the_card_gives_the_measured_effect_with_intervals(
    hub: Hub, folder: Path, tmp_path: Path
) -> None:
    effect = measured_effect(load_vectors(folder), measured(tmp_path / "run"))
    push_vectors(folder, NAME, evidence=effect)
    card = hub.repos[NAME].files["README.md"].decode()
    assert "| condition | refused, harmful prompts | refused, benign prompts |" in card
    assert (
        "| layer 8, strength 1.0 | 3 of 4: 75 % [30, 95] | 1 of 4: 25 % [5, 70] "
        "| 0 of 12: 0 % [0, 24] | 1.000 |"
    ) in card
    assert "| harmful refused | 25 % → 75 %, +50 points (" in card
    assert "beats 2 of 3 random directions" in card
    assert "No cell of the sweep met the limits" not in card
    assert "The figures are of one run" in card
    assert "random 0" not in card


def test_the_card_opens_with_the_answer(vectors: SteeringVectorSet, tmp_path: Path) -> None:
    card = model_card(vectors, NAME, measured_effect(vectors, measured(tmp_path / "run")))
    assert card.split("\n\n")[2].startswith(
        "**Steering does harm. At layer 8, strength 1.0 (relative dose 0.32), harmful refused goes "
        "from 25 % to 75 % (n = 4, p = "
    )


def test_evidence_travels_with_the_vectors(
    hub: Hub, folder: Path, vectors: SteeringVectorSet, tmp_path: Path
) -> None:
    push_vectors(folder, NAME, evidence=measured_effect(vectors, measured(tmp_path / "run")))
    pull_vectors(NAME, tmp_path / "pulled")
    pulled = load_vectors(tmp_path / "pulled")
    evidence = evidence_in(tmp_path / "pulled", pulled)
    assert evidence == measured_effect(vectors, tmp_path / "run")
    # And on from there, without the run; and is gone once the vectors are others.
    push_vectors(tmp_path / "pulled", "ann/again")
    assert "goes from 25 % to 75 %" in hub.repos["ann/again"].files["README.md"].decode()
    (pulled * 2.0).save(tmp_path / "pulled")
    assert evidence_in(tmp_path / "pulled", pulled) is None
    push_vectors(tmp_path / "pulled", "ann/again")
    assert CARD_FILE not in hub.repos["ann/again"].files


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
        (b"{}", "key 'run' is missing"),
        (b"other", "layer 8 differs"),
        (b"escape", "key 'answer'"),
    ],
)
def test_damaged_or_borrowed_evidence_is_refused(
    folder: Path, vectors: SteeringVectorSet, tmp_path: Path, data: bytes, message: str
) -> None:
    evidence = measured_effect(vectors, measured(tmp_path / "run"))
    if data == b"other":
        layers = {**evidence.vectors, "layer_8.npy": "0" * 64}
        data = evidence.model_copy(update={"vectors": layers}).as_bytes()
    elif data == b"escape":
        data = evidence.model_copy(update={"answer": "\x1b[2J"}).as_bytes()
    (folder / CARD_FILE).write_bytes(data)
    with pytest.raises(VectorError, match=message):
        evidence_in(folder, load_vectors(folder))


def test_the_card_says_when_no_cell_met_the_limits(
    vectors: SteeringVectorSet, tmp_path: Path
) -> None:
    run = measured(tmp_path / "run", met_limits=False)
    card = model_card(vectors, NAME, measured_effect(vectors, run))
    assert "No cell of the sweep met the limits" in card


def test_a_run_of_other_vectors_is_no_evidence_for_these(
    vectors: SteeringVectorSet, tmp_path: Path
) -> None:
    run = measured(tmp_path / "run")
    changed = [SteeringVector(8, vectors[8].array * 1.01, vectors[8].hidden_norm), vectors[4]]
    other = [
        SteeringVectorSet(changed, vectors.metadata),
        SteeringVectorSet([SteeringVector(5, vectors[4].array, 1.0)], vectors.metadata),
        with_model(vectors, fingerprint="beef"),
    ]
    for one in other:
        with pytest.raises(VectorError, match="was not measured with these vectors"):
            measured_effect(one, run)
    part = SteeringVectorSet([vectors[8]], vectors.metadata)
    assert "3 of 4" in model_card(part, NAME, measured_effect(part, run))


def test_a_run_without_a_report_says_how_to_make_one(
    vectors: SteeringVectorSet, tmp_path: Path
) -> None:
    run = small_run(tmp_path / "run").write(CHOICE)
    with pytest.raises(RunError, match=r"metrics\.json is missing; write it with: mlx-steer rep"):
        measured_effect(vectors, run)
    for text in ("{", "{}", "[]"):
        (run / "metrics.json").write_text(text)
        with pytest.raises(RunError, match="mlx-steer report"):
            measured_effect(vectors, run)


def test_nothing_in_the_metadata_can_begin_a_new_block_or_cell(vectors: SteeringVectorSet) -> None:
    odd = "x | y\n\n# Heading\n---\nlicense: mit"
    # model_copy does not validate: the card must hold even if such text came through.
    model = vectors.metadata.model.model_copy(
        update={"id": odd, "quantization": {"bits": odd}, "fingerprint": odd}
    )
    changes = {"behavior": odd, "method": odd, "model": model}
    card = model_card(
        SteeringVectorSet(vectors.vectors, vectors.metadata.model_copy(update=changes)), NAME
    )
    assert "license" not in front_matter(card)
    assert "\n# Heading" not in card
    rows = [line for line in card.splitlines() if line.startswith("| behavior")]
    assert rows == ["| behavior | x \\| y # Heading --- license: mit |"]


def test_a_model_folder_of_this_machine_is_pointed_out(
    hub: Hub, vectors: SteeringVectorSet, tmp_path: Path
) -> None:
    with_model(vectors, id="/home/ann/model", revision=None).save(tmp_path / "vectors")
    notes = push_vectors(tmp_path / "vectors", NAME).notes
    assert "a folder of this machine" in notes[0]
