"""What rows.jsonl says of responses that begin with thinking."""

from mlx_steer.behaviors import PromptItem
from mlx_steer.conditions import Condition
from mlx_steer.engine.jobs import Completion, Job
from mlx_steer.experiment.rows import row_of
from mlx_steer.run.records import record_json

ITEM = PromptItem("1", "Hi", "target", "test")


def line(thinking: str) -> dict[str, object]:
    done = Completion("k", (5, 6), "Hello!", "stop", None, thinking=thinking)
    return {**record_json(row_of(done, Job("k", (1, 2), Condition("base")), ITEM))}


def test_thinking_stands_beside_the_text_that_is_judged() -> None:
    assert line("Let me see.")["thinking"] == "Let me see."
    assert line("Let me see.")["text"] == "Hello!"


def test_a_row_without_thinking_says_nothing_of_it() -> None:
    assert "thinking" not in line("")
    assert line("Hm.").keys() - line("").keys() == {"thinking"}
