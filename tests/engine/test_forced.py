"""Given responses under steering against uncached passes over the whole sequence."""

import numpy as np
import pytest

from mlx_steer.conditions import Condition
from mlx_steer.engine.forced import forced
from mlx_steer.engine.jobs import Job
from tests.helpers.mixed import effects
from tests.helpers.plain import plain_logits
from tests.helpers.tiny import random_ids, tiny_model


@pytest.mark.parametrize("rows", [1, 3, 64])
def test_the_mean_log_probability_is_that_of_plain_passes_whatever_the_batch(rows: int) -> None:
    model = tiny_model()
    prompts = {"short": random_ids(1, 9), "long": random_ids(2, 21)}
    responses = {"one": random_ids(5, 6), "other": random_ids(6, 11)}
    jobs, tokens, wanted = [], {}, {}
    for name, acts in effects().items():
        condition = Condition(name, None, acts)
        for prompt, ids in prompts.items():
            for response, own in responses.items():
                key = f"{name} {prompt} {response}"
                jobs.append(Job(key, ids, condition))
                tokens[key] = own
                split = len(ids) - 1
                logits = np.array(plain_logits(model, [*ids, *own], acts, split), np.float64)
                steps = logits[split:-1]
                steps -= steps.max(axis=-1, keepdims=True)
                logs = steps - np.log(np.exp(steps).sum(axis=-1, keepdims=True))
                wanted[key] = logs[range(len(own)), own].mean()
    read: list[int] = []
    found = forced(model, jobs, tokens, rows, read.append)
    assert found.keys() == wanted.keys() and sum(read) == len(jobs)
    for key, value in wanted.items():
        assert found[key] == pytest.approx(value, abs=2e-3), key
