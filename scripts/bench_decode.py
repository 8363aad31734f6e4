"""Decoding beside mlx-lm's own: one row, and many rows, on a real model and on a tiny one.

One row runs against `mlx_lm.stream_generate`, many against `mlx_lm.batch_generate`, in turn, with
their prompts. The tiny model has so little to compute that building each step's graph decides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace

import click

import mlx_steer  # noqa: F401  (before mlx: it puts OpenBLAS in front of it)

# isort: split
import mlx.core as mx
from measuring import Json, Ratio, in_turn, publish, ratio

from mlx_steer.behaviors import load_behavior
from mlx_steer.conditions import Condition
from mlx_steer.engine.complete import complete
from mlx_steer.engine.guard import load_model
from mlx_steer.engine.jobs import Job, Sampling
from mlx_steer.model.load import Model

Tokens = list[tuple[int, ...]]


def tiny_of(model: Model) -> Model:
    """The same tokenizer in front of two narrow random layers."""
    from mlx_lm.models import llama

    shape = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}
    config = {**model.config, **shape, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = {**config, "head_dim": 16, "model_type": "llama"}
    mx.random.seed(0)
    network = llama.Model(llama.ModelArgs.from_dict(config))  # type: ignore[no-untyped-call]
    mx.eval(network.parameters())  # type: ignore[no-untyped-call]
    return replace(model, network=network, hidden_size=32, dtype=mx.float32, config=config)


def ours(model: Model, prompts: Tokens, max_tokens: int) -> Tokens:
    base = Condition("base")
    jobs = [Job(str(i), ids, base) for i, ids in enumerate(prompts)]
    return [c.tokens for c in complete(model, jobs, Sampling(max_tokens), len(prompts))]


def theirs(model: Model, prompts: Tokens, max_tokens: int) -> Tokens:
    from mlx_lm import batch_generate, stream_generate

    network, tokenizer = model.network, model.tokenizer
    if len(prompts) > 1:
        answer = batch_generate(
            network,
            tokenizer,
            [list(p) for p in prompts],
            max_tokens=max_tokens,
            return_token_ids=True,
            completion_batch_size=len(prompts),
            prefill_batch_size=len(prompts),
        )
        found = [tuple(map(int, tokens)) for tokens in answer.token_ids or ()]
    else:
        steps = stream_generate(network, tokenizer, list(prompts[0]), max_tokens=max_tokens)
        found = [tuple(int(step.token) for step in steps)]
    stops = model.chat.stop_ids
    return [tuple(t for t in tokens if t not in stops) for tokens in found]


def compare(model: Model, prompts: Tokens, max_tokens: int, pairs: int) -> tuple[Ratio, int]:
    """How many times as fast as mlx-lm, and how many rows have other tokens."""
    made: dict[str, Tokens] = {}

    def keep(name: str, run: Callable[[Model, Tokens, int], Tokens]) -> Callable[[], None]:
        return lambda: made.update({name: run(model, prompts, max_tokens)})

    tasks = {"ours": keep("ours", ours), "theirs": keep("theirs", theirs)}
    in_turn(tasks, 1)
    seconds = in_turn(tasks, pairs)
    differ = sum(a != b for a, b in zip(made["ours"], made["theirs"], strict=True))
    return ratio(seconds["theirs"], seconds["ours"]), differ


@click.command()
@click.option("--model", "name", default="smollm2-135m", show_default=True)
@click.option("--rows", default=32, show_default=True, help="Many.")
@click.option("--max-tokens", default=48, show_default=True)
@click.option("--pairs", default=12, show_default=True, help="Runs of each, in turn.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(name: str, rows: int, max_tokens: int, pairs: int, as_json: bool) -> None:
    """Print mlx-lm's time over ours (1 is as fast)."""
    model = load_model(name)
    items = [p for p in load_behavior("refusal").prompts if p.split in ("select", "test")]
    prompts = [tuple(model.chat.prompt_ids(p.prompt)) for p in items[:rows]]
    found: list[Json] = []
    table = [["model", "rows", "speed over mlx-lm's", "rows with other tokens"]]
    for kind, one in (("real", model), ("tiny", tiny_of(model))):
        for count in (1, rows):
            repeats = pairs * (4 if kind == "tiny" else 1)
            speed, differ = compare(one, prompts[:count], max_tokens, repeats)
            found.append({"model": kind, "rows": count, "speed": asdict(speed), "differ": differ})
            table.append([kind, str(count), str(speed), str(differ)])
            click.echo("  ".join(table[-1]), err=True)
    publish({"decoding": found}, table, "python scripts/bench_decode.py", as_json)


if __name__ == "__main__":
    main()
