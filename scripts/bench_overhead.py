"""What steering costs while decoding: the engine's own steps, steered and unsteered, in turn.

Two unsteered batches run as well: their ratio is that of a thing to itself, and shows how far a
ratio on this machine may be trusted.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from io import StringIO
from itertools import pairwise
from statistics import median

import click

import mlx_steer  # noqa: F401  (before mlx: it puts OpenBLAS in front of it)

# isort: split
import mlx.core as mx
import numpy as np
from measuring import Json, in_turn, publish, ratio

from mlx_steer.conditions import Condition, Intervention
from mlx_steer.engine.admit import Admission
from mlx_steer.engine.batch import Batch
from mlx_steer.engine.decode import Decoder
from mlx_steer.engine.forward import Forward
from mlx_steer.engine.guard import forward_of, load_model
from mlx_steer.engine.jobs import Job, Sampling
from mlx_steer.engine.prefill import Prefill
from mlx_steer.engine.row_plan import Plan
from mlx_steer.model.load import Model

PROMPT_TOKENS = 48


def vector(model: Model, seed: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """A small random vector: what is steered does not matter here, only that it is."""
    drawn = np.random.default_rng(seed).standard_normal(model.hidden_size)
    return drawn.astype(np.float32) / np.float32(50)


def conditions(model: Model, rows: int, layers: Sequence[int]) -> list[Condition]:
    """As many conditions as rows: layer by layer, each with a strength of its own."""
    made = []
    for i in range(rows):
        layer = layers[i % len(layers)]
        item = Intervention(layer, vector(model, layer), 0.5 + i / rows)
        made.append(Condition(f"{i}", None, (item,)))
    return made


def batch_of(model: Model, forward: Forward, chosen: Sequence[Condition]) -> Batch:
    """One batch of rows that are ready to decode, a prompt and a condition each."""
    rng, size = np.random.default_rng(1), int(model.config["vocab_size"])
    prompts = rng.integers(10, size, (len(chosen), PROMPT_TOKENS)).tolist()
    jobs = [Job(str(i), tuple(prompts[i]), c) for i, c in enumerate(chosen)]
    return Admission(model, forward, Sampling(256), jobs).admit(jobs)


def measure(model: Model, rows: int, layers: Sequence[int], pairs: int) -> Json:
    """Steps of three batches in turn: unsteered, unsteered again, steered."""
    from mlx_lm.generate import wired_limit

    base = [Condition("base")] * rows
    with ExitStack() as stack:
        forward = stack.enter_context(forward_of(model.network))
        stack.enter_context(wired_limit(model.network))
        decoder = Decoder(model, forward)
        decoder._stop_ids = frozenset()  # no row may leave: the batches must stay alike
        batches = {
            "unsteered": batch_of(model, forward, base),
            "unsteered again": batch_of(model, forward, base),
            "steered": batch_of(model, forward, conditions(model, rows, layers)),
        }
        steps = {name: lambda b=b: decoder.step(b) for name, b in batches.items()}
        in_turn(steps, 2)
        seconds = in_turn(steps, pairs)
    steered = ratio(seconds["steered"], seconds["unsteered"])
    control = ratio(seconds["unsteered again"], seconds["unsteered"])
    return {
        "rows": rows,
        "conditions": rows,
        "steered_layers": len(set(layers[:rows])),
        "seconds_per_step": {name: median(found) for name, found in seconds.items()},
        "steered_over_unsteered": asdict(steered),
        "unsteered_over_unsteered": asdict(control),
        "text": [f"{steered}", f"{control}"],
    }


def operations(model: Model, rows: int, layers: Sequence[int]) -> int:
    """Operations in the graph of one decode step with plans at some layers."""
    with forward_of(model.network) as forward:
        caches = Prefill(forward).run([[1, 2, 3]] * rows).caches
        shift = mx.ones((rows, 1, model.hidden_size), model.dtype)
        mx.eval([c.state for c in caches], shift)
        graph = StringIO()
        plans = {layer: Plan(shift) for layer in layers}
        mx.export_to_dot(graph, forward.step(mx.ones((rows,), mx.int32), caches, plans))
    return graph.getvalue().count("shape=rectangle")


@click.command()
@click.option("--model", "name", default="smollm2-135m", show_default=True)
@click.option("--rows", default="1,64", show_default=True, help="Rows decoded at a time.")
@click.option("--layers", default="9,12,15,18", show_default=True, help="Steered in turn.")
@click.option("--pairs", default=60, show_default=True, help="Steps of each kind.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(name: str, rows: str, layers: str, pairs: int, as_json: bool) -> None:
    """Print the time of a steered step over that of an unsteered one (1 would be free)."""
    model = load_model(name)
    chosen = [int(part) for part in layers.split(",")]
    found = [measure(model, int(part), chosen, pairs) for part in rows.split(",")]
    counts = [operations(model, 2, chosen[:k]) for k in range(len(chosen) + 1)]
    added = sorted({b - a for a, b in pairwise(counts)})
    table = [["rows", "conditions", "step", "steered / unsteered", "unsteered / unsteered"]]
    for line in found:
        step = f"{1e3 * line['seconds_per_step']['unsteered']:.0f} ms"
        table.append([str(line["rows"]), str(line["conditions"]), step, *line.pop("text")])
    result: Json = {
        "pairs": pairs,
        "batches": found,
        "operations": {"unsteered": counts[0], "added_per_steered_layer": added},
    }
    publish(result, table, "python scripts/bench_overhead.py", as_json)
    if not as_json:
        each = " or ".join(map(str, added))
        click.echo(f"A steered layer adds {each} operation(s) to the {counts[0]} of a step.")


if __name__ == "__main__":
    main()
