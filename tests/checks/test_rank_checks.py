"""`doctor` on several ranks: the whole of it for a sharded model, and whether they agree."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlx_steer.checks.rank_checks import rank_checks
from mlx_steer.team import Team
from tests.helpers.ranks import launch
from tests.helpers.tiny import tiny_folder

COMMAND = "from mlx_steer.cli import main; main()"
# Rank 1 has another version of MLX, as far as it knows, and a check of its own that fails.
UNLIKE = """
import json, sys
from pathlib import Path
from mlx_steer.checks import rank_checks
from mlx_steer.checks.steering_checks import Check
from mlx_steer.team import team
us = team()
rank_checks.versions = lambda: {"mlx": f"0.{us.rank}"}
own = [Check("BLAS", "machine", "fail" if us.rank else "pass")]
found = {c.name: [c.status, c.detail] for c in rank_checks.rank_checks(us, [], own)}
Path(sys.argv[1], f"{us.rank}.json").write_text(json.dumps(found))
"""


@pytest.mark.slow
def test_a_sharded_model_passes_the_whole_doctor(tmp_path: Path) -> None:
    folder = tiny_folder("llama", tmp_path / "model")
    ended = launch("-c", COMMAND, "doctor", "--model", folder, "--shard", "tensor", "--json")
    found = json.loads(ended.out)
    assert found["healthy"], ended.out
    names = [check["name"] for check in found["checks"]]
    assert "batched tokens equal solo" in names
    assert names[-6:] == [
        "same versions",
        "same chips",
        "same weights on every rank",
        "same steered step, bit for bit",
        "every rank is sound",
        "all-reduce",
    ]
    assert found["checks"][-1]["measured"] > 0


@pytest.mark.slow
def test_what_ranks_do_not_have_in_common_is_said_on_each(tmp_path: Path) -> None:
    ended = launch("-c", UNLIKE, tmp_path)
    paths = [tmp_path / f"{rank}.json" for rank in range(2)]
    assert all(path.exists() for path in paths), ended.err
    found, other = (json.loads(path.read_text()) for path in paths)
    assert found["same versions"] == ["fail", 'rank 1: {"mlx": "0.1"}; rank 0: {"mlx": "0.0"}']
    assert found["every rank is sound"] == ["fail", "rank 1: BLAS (machine); rank 0: "]
    assert found["same chips"][0] == found["all-reduce"][0] == "pass"
    assert {name: said[0] for name, said in other.items()} == {
        name: said[0] for name, said in found.items()
    }


def test_alone_there_is_nothing_to_agree_on() -> None:
    assert list(rank_checks(Team(), [], [])) == []
