"""Does steering work here, on this machine, with this model? What a bug report should hold.

Checks the identities that everything rests on (strength 0 is base, a batch equals its rows alone,
undoing restores the model) with numbers, and on Metal measures what only Metal can show. Started by
mlx.launch, it checks that the ranks agree.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from mlx_steer.checks.rank_checks import rank_checks
from mlx_steer.checks.small_models import small_model
from mlx_steer.checks.steering_checks import Check, machine_checks, model_checks
from mlx_steer.engine.speed import DecodeSpeed, decode_speed, metal_facts
from mlx_steer.model.load import Model
from mlx_steer.model.machine import environment, has_metal, working_set
from mlx_steer.team import team

SPEED_ROWS = (1, 32)


@dataclass(frozen=True)
class Diagnosis:
    """What was found.

    Attributes:
        environment: Versions, platform, device, memory and BLAS.
        working_set: Bytes that MLX can use here.
        metal: Facts about the GPU; empty without Metal.
        checks: See `Check`.
        speed: Decoding, steered and not; empty if it was not measured.
    """

    environment: dict[str, Any]
    working_set: int
    metal: dict[str, int | str]
    checks: tuple[Check, ...]
    speed: tuple[DecodeSpeed, ...]

    @property
    def healthy(self) -> bool:
        """Whether no check failed; warnings are allowed."""
        return all(check.status != "fail" for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        return {"healthy": self.healthy, **asdict(self)}


def examine(
    load: Callable[[], Model] | None = None,
    *,
    speed: bool | None = None,
    on_check: Callable[[Check], None] = lambda check: None,
) -> Diagnosis:
    """Check this machine and one model.

    Args:
        load: Gives the model; by default tiny random ones in float32 and bfloat16.
        speed: Whether to measure decoding; by default on Metal only.
        on_check: Called with each check when it is done.

    Raises:
        SteerError: Of loading the model, or because other ranks cannot be reached.
    """
    checks: list[Check] = []

    def note(check: Check) -> None:
        checks.append(check)
        on_check(check)

    for check in machine_checks():
        note(check)
    models = [load()] if load else [small_model("float32"), small_model("bfloat16")]
    for model in models:
        for check in model_checks(model):
            note(check)
    for check in rank_checks(team(), models, checks):
        note(check)
    measured: tuple[DecodeSpeed, ...] = ()
    # By the clock, which would have each rank of a sharded model take other steps.
    if (has_metal() if speed is None else speed) and models[-1].team.size == 1:
        measured = tuple(decode_speed(models[-1], rows) for rows in SPEED_ROWS)
    return Diagnosis(environment(), working_set(), metal_facts(), tuple(checks), measured)
