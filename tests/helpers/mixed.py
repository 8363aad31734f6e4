"""Jobs of every kind for one batch: conditions, system prompts and lengths in a random mix."""

from __future__ import annotations

import numpy as np

from mlx_steer.conditions import Condition, Intervention
from mlx_steer.engine.jobs import Job
from tests.helpers.tiny import LAYERS, random_ids, random_vector


def effects(layers: int = LAYERS) -> dict[str, tuple[Intervention, ...]]:
    """Interventions of every kind: layers, strengths, operators, scopes and combinations."""
    a, b, c, d = (random_vector(i) for i in range(4))
    act = Intervention
    return {
        "base": (),
        "strength 0": (act(2, a, 0.0),),
        "first layer": (act(0, a, 1.0),),
        "layer 1, weak": (act(1, a, 0.4),),
        "layer 3": (act(3, b, 1.0),),
        "layer 3, strong": (act(3, b, 2.0),),
        "last layer": (act(layers - 1, c, 1.0),),
        "generated": (act(2, b, 1.5, scope="generated"),),
        "prompt": (act(2, d, 1.5, scope="prompt"),),
        "two layers": (act(1, a, 0.8), act(4, c, 1.0)),
        "two at one layer": (act(3, a, 0.8), act(3, b, -0.7)),
        "two scopes": (act(4, a, 1.0, scope="prompt"), act(2, b, 1.0, scope="generated")),
        "ablate": (act(2, d, 1.0, "ablate"),),
        "ablate half and add": (act(2, d, 0.5, "ablate"), act(2, a, 0.5)),
        "clamp": (act(4, c, 6.0, "clamp"),),
    }


def mixed_jobs(count: int = 45) -> list[Job]:
    """Jobs under all `effects` and three system prompts, with prompts of 10 to 57 tokens.

    Each system prompt is an opening that its prompts share; which effects meet which prompts is
    random, so that batches are not full products.
    """
    rng = np.random.default_rng(5)
    openings = {None: random_ids(100, 9), "brief": random_ids(101, 17), "long": random_ids(102, 30)}
    conditions = {
        (name, system): Condition(name, system, acts)
        for name, acts in effects().items()
        for system in openings
    }
    names, systems, lengths = list(effects()), list(openings), [1, 2, 5, 9, 14, 27]
    jobs: dict[str, Job] = {}
    while len(jobs) < count:
        name = names[len(jobs) % len(names)]
        system = systems[int(rng.integers(3))]
        length = lengths[int(rng.integers(6))]
        ids = openings[system] + random_ids(length, length + 1)[1:]
        key = f"{name} | {system} | {length}"
        jobs.setdefault(key, Job(key, ids, conditions[name, system]))
    return list(jobs.values())
