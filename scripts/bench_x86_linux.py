"""Linear layers, the activation and the attention as mlx-lm has them beside ours on x86 Linux."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial

import click

import mlx_steer  # noqa: F401  (before mlx: it puts OpenBLAS in front of it)

# isort: split
import mlx.core as mx
import mlx.nn as nn
import numpy as np
from measuring import Json, in_turn, publish, ratio
from mlx_lm.models.activations import swiglu
from mlx_lm.models.base import scaled_dot_product_attention

from mlx_steer.model.x86_linux import by_groups, by_power, lay_out

INNER, WIDTH = 576, 1536  # of SmolLM2's hidden state and its inner layers
HEADS, GROUPS, SIZE = 9, 3, 64  # of its attention


@click.command()
@click.option("--pairs", default=40, show_default=True, help="Runs of each, in turn.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(pairs: int, as_json: bool) -> None:
    """Print mlx-lm's time over ours (1 is as fast), and how far the results are apart."""
    table = [["", "rows", "tokens", "keys", "speed over mlx-lm's", "error"]]
    found: list[Json] = []

    def add(
        what: str, sizes: tuple[int, int, int], tasks: Sequence[Callable[[], mx.array]]
    ) -> None:
        named = dict(
            zip(("theirs", "ours"), (lambda t=t: mx.eval(t()) for t in tasks), strict=True)
        )
        in_turn(named, 3)
        seconds = in_turn(named, pairs)
        speed = ratio(seconds["theirs"], seconds["ours"])
        theirs, ours = (np.array(task(), np.float64) for task in tasks)
        error = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
        found.append({"what": what, "sizes": sizes, "speed": asdict(speed), "error": error})
        table.append([what, *map(str, sizes), str(speed), f"{error:.1e}"])

    for rows in (1, 16, 128, 1024):
        mx.random.seed(rows)
        x, plain = mx.random.normal((rows, 1, INNER)), nn.Linear(INNER, WIDTH, bias=False)
        ours = nn.Linear(INNER, WIDTH, bias=False)
        ours.weight = plain.weight + 0
        lay_out(ours)
        mx.eval(x, plain.weight)
        add("linear layer", (rows, 1, 0), [partial(layer, x) for layer in (plain, ours)])
    for rows, tokens in ((4, 1), (128, 1), (24, 40)):
        mx.random.seed(rows)
        gate, x = (mx.random.normal((rows, tokens, WIDTH)) for _ in range(2))
        mx.eval(gate, x)
        faster = by_power(swiglu)
        calls = [lambda f=f, gate=gate, x=x: f(gate, x) for f in (swiglu, faster)]
        add("activation", (rows, tokens, 0), calls)
    for rows, tokens, keys in ((4, 1, 80), (128, 1, 80), (128, 1, 280), (24, 40, 80)):
        mx.random.seed(rows)
        given = (
            mx.random.normal((rows, HEADS, tokens, SIZE)),
            mx.random.normal((rows, GROUPS, keys, SIZE)),
            mx.random.normal((rows, GROUPS, keys, SIZE)),
        )
        seen = mx.arange(keys)[None] <= mx.arange(tokens)[:, None] + keys - tokens
        mask = mx.broadcast_to(seen, (rows, 1, tokens, keys))
        mx.eval(given, mask)
        both = (scaled_dot_product_attention, by_groups(scaled_dot_product_attention))
        calls = [
            lambda f=f, given=given, mask=mask: f(*given, None, SIZE**-0.5, mask) for f in both
        ]
        add("attention", (rows, tokens, keys), calls)
    publish({"x86_linux": found}, table, "python scripts/bench_x86_linux.py", as_json)


if __name__ == "__main__":
    main()
