import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mlx_steer.errors import VectorError
from mlx_steer.vectors import (
    SteeringVector,
    SteeringVectorSet,
    load_vectors,
)
from mlx_steer.vectors.cosines import cosine_table, heat_map
from tests.helpers.command import Run
from tests.helpers.hub_stand_in import WRITER, Hub, log_in, running_hub
from tests.helpers.vector_sets import MODEL, metadata

NAME = "org/tiny"
A = {3: [1.0, 0.0, 0.0, 0.0], 5: [0.0, 2.0, 0.0, 0.0]}
B = {3: [3.0, 4.0, 0.0, 0.0], 5: [0.0, -1.0, 0.0, 0.0]}
C = {3: [0.0, 0.0, 5.0, 0.0], 5: [0.0, 1.0, 1.0, 0.0], 6: [1.0, 1.0, 1.0, 1.0]}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with running_hub(monkeypatch, tmp_path / "cache") as running:
        log_in(monkeypatch, WRITER)
        yield running


def vectors(
    arrays: dict[int, list[float]], behavior: str = "refusal", fingerprint: str = "f00d"
) -> SteeringVectorSet:
    about = metadata(
        behavior=behavior,
        hidden_size=4,
        num_layers=8,
        model=MODEL.model_copy(
            update={"id": "org/model", "revision": "abc", "fingerprint": fingerprint}
        ),
    )
    made = [SteeringVector(i, np.array(row), hidden_norm=10.0) for i, row in arrays.items()]
    return SteeringVectorSet(made, about)


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    made = {"a": (A, "refusal"), "b": (B, "uncertainty"), "c": (C, "hierarchy")}
    for name, (arrays, behavior) in made.items():
        vectors(arrays, behavior).save(tmp_path / name)
    return {name: tmp_path / name for name in made}


# --- compare --------------------------------------------------------------------------------------


def test_compare_gives_cosine_and_norm_ratio_of_a_to_b_as_a_table_and_as_json(
    run: Run, folders: dict[str, Path]
) -> None:
    asked = run("vectors", "compare", folders["a"], folders["b"], "--json")
    assert asked.code == 0
    rows = json.loads(asked.out)
    assert [row["layer"] for row in rows] == [3, 5]
    for name, wanted in {
        "cosine": [0.6, -1.0],
        "norm_a": [1.0, 2.0],
        "norm_b": [5.0, 1.0],
        "norm_ratio": [0.2, 2.0],
    }.items():
        assert [row[name] for row in rows] == pytest.approx(wanted), name
    table = run("vectors", "compare", folders["a"], folders["b"])
    assert table.code == 0
    lines = [[cell.strip() for cell in re.split("[│┃]", line)] for line in table.out.splitlines()]
    assert ["layer", "cosine", "norm A", "norm B", "A / B"] in [cells[1:-1] for cells in lines]
    found = [cells[1:-1] for cells in lines if cells[1:2] in (["3"], ["5"])]
    assert found == [
        ["3", "0.600000", "1.0000", "5.0000", "0.2000"],
        ["5", "-1.000000", "2.0000", "1.0000", "2.0000"],
    ]


# --- cosine ---------------------------------------------------------------------------------------


def test_cosines_of_every_two_sets_at_the_layers_that_all_have(
    run: Run, folders: dict[str, Path]
) -> None:
    record = json.loads(run("vectors", "cosine", *folders.values(), "--json").out)
    assert record["names"] == ["refusal", "uncertainty", "hierarchy"]
    assert record["layers"] == [3, 5]
    assert record["chance"] == 0.5
    found = {(one["a"], one["b"]): one["values"] for one in record["cosines"]}
    assert found["refusal", "uncertainty"] == pytest.approx([0.6, -1.0])
    assert found["refusal", "hierarchy"] == pytest.approx([0.0, 0.5**0.5])
    assert found["uncertainty", "hierarchy"] == pytest.approx([0.0, -(0.5**0.5)])


def test_the_table_of_cosines_names_behaviors_and_chance(
    run: Run, folders: dict[str, Path]
) -> None:
    result = run("vectors", "cosine", folders["a"], folders["b"])
    assert "refusal, uncertainty" in result.out
    assert "+0.600" in result.out and "-1.000" in result.out
    assert "two random directions of this size: 0 ± 0.500" in result.out
    assert result.err == ""


def test_sets_of_one_behavior_are_told_apart_by_their_folders_and_models_are_pointed_out(
    run: Run, tmp_path: Path
) -> None:
    vectors(A).save(tmp_path / "small")
    vectors(B, fingerprint="beef").save(tmp_path / "large")
    result = run("vectors", "cosine", tmp_path / "small", tmp_path / "large")
    assert "small, large" in result.out
    assert "not all of one model" in result.err


def test_the_heat_map_is_a_picture_of_the_same_bytes_each_time(
    run: Run, folders: dict[str, Path], tmp_path: Path
) -> None:
    pictures = []
    for name in ("one.png", "two.png"):
        assert run("vectors", "cosine", *folders.values(), "--plot", tmp_path / name).code == 0
        pictures.append((tmp_path / name).read_bytes())
    assert pictures[0] == pictures[1]
    assert pictures[0].startswith(b"\x89PNG\r\n\x1a\n")
    other = heat_map(cosine_table({"x": vectors(A), "y": vectors(C)}))
    assert other != pictures[0]


def test_cosines_that_make_no_sense_are_refused(
    run: Run, folders: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(VectorError, match="two or more sets"):
        cosine_table({"x": vectors(A)})
    with pytest.raises(VectorError, match="share no layer"):
        cosine_table({"x": vectors(A), "y": vectors({1: [1.0, 0.0, 0.0, 0.0]})})
    with pytest.raises(VectorError, match="is zero"):
        cosine_table({"x": vectors(A), "y": vectors({3: [0.0] * 4})})
    assert "given twice" in run("vectors", "cosine", folders["a"], folders["a"]).err
    result = run(
        "vectors", "cosine", folders["a"], folders["b"], "--plot", tmp_path / "no" / "x.png"
    )
    assert (result.code, result.out) == (2, "")
    assert "cannot be written" in result.err


# --- combine --------------------------------------------------------------------------------------


def test_combine_adds_vectors_times_their_weights(
    run: Run, folders: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "sum"
    arguments = ("vectors", "combine", folders["a"], folders["b"], "--weights", "-0.5,2")
    result = run(*arguments, "--out", out)
    assert (result.code, result.err) == (0, "")
    assert result.out.rstrip().endswith(str(out))
    total = load_vectors(out)
    np.testing.assert_allclose(total[3].array, [5.5, 8.0, 0.0, 0.0])
    np.testing.assert_allclose(total[5].array, [0.0, -3.0, 0.0, 0.0])
    assert total.metadata.behavior == "refusal + uncertainty"
    assert "* -0.5" in total.metadata.method


def test_combine_without_weights_is_the_sum(
    run: Run, folders: dict[str, Path], tmp_path: Path
) -> None:
    run("vectors", "combine", folders["a"], folders["b"], "--out", tmp_path / "sum")
    np.testing.assert_allclose(load_vectors(tmp_path / "sum")[3].array, [4.0, 4.0, 0.0, 0.0])


def test_combine_normalises_every_vector_before_it_is_weighed(
    run: Run, folders: dict[str, Path], tmp_path: Path
) -> None:
    arguments = ("vectors", "combine", folders["a"], folders["b"], "--normalise")
    assert run(*arguments, "--weights", "0.5,0.5", "--out", tmp_path / "mean").code == 0
    np.testing.assert_allclose(load_vectors(tmp_path / "mean")[3].array, [0.8, 0.4, 0.0, 0.0])
    np.testing.assert_allclose(load_vectors(tmp_path / "mean")[5].array, [0.0] * 4)


@pytest.mark.parametrize(
    ("names", "weights", "message"),
    [
        ("ab", "1,2,3", "there are 2 folders and 3 weights"),
        ("ab", "1,x", "'x' is not a number"),
        ("ab", "1,0", "a weight of 0"),
        ("ac", "1,1", "need the same layers"),
    ],
)
def test_combinations_that_cannot_be_made_write_nothing(
    run: Run, folders: dict[str, Path], tmp_path: Path, names: str, weights: str, message: str
) -> None:
    chosen = [folders[name] for name in names]
    out = tmp_path / "sum"
    result = run("vectors", "combine", *chosen, "--weights", weights, "--out", out)
    assert result.code == 2
    assert message in result.err
    assert not out.exists()


# --- push and pull --------------------------------------------------------------------------------


def test_push_prints_the_page_and_the_revision_and_pull_the_table_and_the_revision(
    hub: Hub, run: Run, folders: dict[str, Path], tmp_path: Path
) -> None:
    pushed = run("vectors", "push", folders["a"], NAME, "--private")
    head = hub.repos[NAME].head
    assert pushed.out == f"{hub.url}/{NAME} at revision {head}\n"
    assert hub.repos[NAME].private
    pulled = run("vectors", "pull", NAME, tmp_path / "out", "--revision", head)
    assert "refusal in org/model@abc" in pulled.out
    assert pulled.out.endswith(f"{tmp_path / 'out'} is {NAME} at revision {head}\n")
    assert list(load_vectors(tmp_path / "out")) == [3, 5]


def test_what_the_hub_refuses_is_exit_code_2_and_one_sentence(
    hub: Hub, run: Run, folders: dict[str, Path], tmp_path: Path
) -> None:
    result = run("vectors", "pull", "org/absent", tmp_path / "out")
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("mlx-steer: the hub has no repo org/absent")
    result = run("vectors", "push", tmp_path / "absent", NAME)
    assert (result.code, result.out) == (2, "")
    assert "does not exist" in result.err
    assert run("vectors", "push", folders["a"], NAME, "--run", tmp_path).code == 2
    assert hub.repos == {}
