"""Ranks tell one another bytes, and notice that they are not of one mind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlx_steer.errors import TeamError
from mlx_steer.team import Team, opened, sealed
from tests.helpers.ranks import launch

SCRIPT = """
import json, sys
from pathlib import Path
from mlx_steer.errors import TeamError
from mlx_steer.team import team
us = team()
said = {"size": us.size}
said["told"] = us.told(b"from 0" if us.rank == 0 else b"from another").decode()
said["nothing"] = us.told().decode()
said["gathered"] = [v.decode("latin1") for v in us.gathered(bytes([255, 0]) * us.rank)]
said["least"] = us.least(7 - us.rank)
us.agree({"weights": "same"})
try:
    us.agree({"weights": "same", "version of mlx": f"0.{us.rank}"})
except TeamError as error:
    said["error"] = str(error)
Path(sys.argv[1], f"{us.rank}.json").write_text(json.dumps(said))
"""


@pytest.mark.slow
def test_three_ranks_tell_gather_and_agree(tmp_path: Path) -> None:
    ended = launch("-c", SCRIPT, tmp_path, ranks=3)
    paths = [tmp_path / f"{rank}.json" for rank in range(3)]
    assert all(path.exists() for path in paths), ended.err
    found = [json.loads(path.read_text()) for path in paths]
    assert found[0] == found[1] == found[2]
    error = found[0].pop("error")
    assert found[0] == {
        "size": 3,
        "told": "from 0",
        "nothing": "",
        "gathered": ["", "\xff\x00", "\xff\x00\xff\x00"],
        "least": 5,
    }
    assert error.startswith("rank 1 (") and "has another version of mlx than rank 0" in error


def test_alone_everything_is_ones_own() -> None:
    alone = Team()
    assert alone.told(b"x") == b"x"
    assert alone.gathered(b"x") == [b"x"]
    assert alone.least(3) == 3
    alone.agree({"anything": 1})
    assert alone.share([1, 2]) == [1, 2]


@pytest.mark.parametrize("left", [b"", bytes(8), bytes(20), sealed(b"rows")[:-1], b"rows" * 5])
def test_what_a_sum_holds_once_a_rank_is_gone_is_not_taken_for_a_word(left: bytes) -> None:
    with pytest.raises(TeamError, match="another rank has ended"):
        opened(left)
    assert opened(sealed(b"")) == b""


@pytest.mark.parametrize("name", ["MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK"])
def test_a_rank_is_known_without_mlx(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    from mlx_steer.team import launched_rank

    assert launched_rank() is None
    monkeypatch.setenv(name, "2")
    assert launched_rank() == 2
