"""Compare the memory estimate with the peak that MLX measures while it generates.

Runs the built-in model at several batch sizes and, with --mistral, a full-shape 4-bit Mistral 7B
with random weights (4.1 GB), built in memory without ever making float weights.
"""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, cast
from unittest.mock import patch

import click

import mlx_steer  # noqa: F401  (before mlx: it puts OpenBLAS in front of it)

# isort: split
import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_map
from rich.console import Console
from rich.table import Table

from mlx_steer.conditions import Condition, Intervention
from mlx_steer.engine.batch import Row
from mlx_steer.engine.complete import complete
from mlx_steer.engine.decode import Decoder
from mlx_steer.engine.guard import load_model
from mlx_steer.engine.jobs import Job, Sampling
from mlx_steer.engine.memory import Workload, estimate
from mlx_steer.model.load import Model
from mlx_steer.model.shape import Shape
from mlx_steer.model.size import ModelSize, weight_bytes_of
from mlx_steer.vectors import ModelInfo

SHARED_TOKENS = 20
SHAPE: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "vocab_size": 32000,
    "max_position_embeddings": 32768,
    "rope_theta": 1e6,
    "tie_word_embeddings": False,
}
MISTRAL = {
    **SHAPE,
    "torch_dtype": "bfloat16",
    "quantization": {"group_size": 64, "bits": 4},
}


@dataclass(frozen=True)
class Line:
    """One measurement; bytes."""

    model: str
    rows: int
    prompt_tokens: int
    max_tokens: int
    conditions: int
    weights: int
    weights_estimated: int
    peak: int
    peak_estimated: int
    seconds: float

    @property
    def peak_error(self) -> float:
        """Estimate over measurement, minus 1."""
        return self.peak_estimated / self.peak - 1

    @property
    def on_top_error(self) -> float:
        """The same for what comes on top of the weights."""
        estimated = self.peak_estimated - self.weights_estimated
        return estimated / (self.peak - self.weights) - 1


class NoTokenizer:
    """Stands in for a chat format where prompts are token ids and nothing is read."""

    stop_ids: frozenset[int] = frozenset()

    def decode(self, tokens: Sequence[int]) -> str:
        """Nothing."""
        return ""


def random_mistral() -> Model:
    """A 4-bit Mistral 7B with random weights."""
    from mlx_lm.models.llama import Model as Network
    from mlx_lm.models.llama import ModelArgs

    # Lazy all the way: float weights are promised, quantised, and replaced before anyone asks.
    network: nn.Module = Network(ModelArgs(**SHAPE))
    network.set_dtype(mx.bfloat16)
    nn.quantize(network, group_size=64, bits=4)
    rng = np.random.default_rng(0)

    def drawn(array: mx.array) -> mx.array:
        if array.dtype == mx.uint32:
            made = mx.array(rng.integers(2**32, size=array.shape, dtype=np.uint32))
        else:
            # Norms of one; scales small and biases smaller, so that hidden states stay finite.
            made = mx.full(array.shape, 1.0 if array.ndim == 1 else 0.002, array.dtype)
        mx.eval(made)
        return made

    weights = cast(dict[str, Any], network.parameters())  # type: ignore[no-untyped-call]
    network.update(tree_map(drawn, weights))
    return Model(
        network=network,
        chat=cast(Any, NoTokenizer()),
        info=ModelInfo(
            id="Mistral 7B, 4 bits, random",
            revision=None,
            model_type="llama",
            quantization={"bits": 4},
            fingerprint="0" * 64,
        ),
        hidden_size=4096,
        dtype=mx.bfloat16,
        context=None,
        config=dict(MISTRAL),
    )


def some_jobs(model: Model, rows: int, prompt_tokens: int, conditions: int) -> list[Job]:
    """Base and cells at four layers, over prompts that share their head."""
    rng = np.random.default_rng(1)
    size, layers = model.hidden_size, model.num_layers
    chosen = [Condition("base")]
    for i in range(conditions - 1):
        layer = layers * (3 + i % 4) // 10
        vector = rng.standard_normal(size).astype(np.float32)
        item = Intervention(layer, vector, 0.1 + 0.05 * i)
        chosen.append(Condition(f"cell {i}", None, (item,)))
    vocabulary = int(model.config["vocab_size"])

    def tokens(count: int) -> list[int]:
        drawn: list[int] = rng.integers(10, vocabulary, count).tolist()
        return drawn

    head = tokens(min(SHARED_TOKENS, prompt_tokens // 2))
    prompts = [
        tuple(head + tokens(prompt_tokens - len(head))) for _ in range(max(2, rows // conditions))
    ]
    return [Job(f"{i} {c.name}", p, c) for i, p in enumerate(prompts) for c in chosen]


@contextmanager
def one_near_tie(last_step: int) -> Iterator[None]:
    """Let one row meet a near tie at its last step, where running it alone takes most memory.

    Ties come once in some thousand steps; whether one was met would otherwise be luck.
    """
    original = Decoder._settled
    waiting = [True]

    def settled(self: Decoder, row: Row, token: int, margin: float) -> int:
        if self._model.exact and waiting and len(row.tokens) >= last_step:
            waiting.clear()
            self.alone(row)
        return original(self, row, token, margin)

    with patch.object(Decoder, "_settled", settled):
        yield


def measure(model: Model, weights: int, rows: int, work: Workload) -> Line:
    """Generate with a full batch and compare."""
    jobs = some_jobs(model, rows, work.prompt_tokens, work.conditions)
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    start = time.perf_counter()
    with one_near_tie(work.max_tokens - 1):
        complete(model, jobs, Sampling(work.max_tokens), rows)
    seconds = time.perf_counter() - start
    size = ModelSize(Shape.of(model.config), weights, model.dtype.size)
    return Line(
        model.info.id,
        rows,
        work.prompt_tokens,
        work.max_tokens,
        work.conditions,
        before,
        weights,
        mx.get_peak_memory(),
        estimate(size, work, rows).peak,
        round(seconds, 1),
    )


def print_table(lines: Sequence[Line]) -> None:
    """Measured and estimated side by side."""
    table = Table("model", "rows", "weights GB", "peak GB", "estimated", "error", "on top", "s")
    for line in lines:
        table.add_row(
            line.model,
            str(line.rows),
            f"{line.weights / 1e9:.3f}",
            f"{line.peak / 1e9:.3f}",
            f"{line.peak_estimated / 1e9:.3f}",
            f"{line.peak_error:+.1%}",
            f"{line.on_top_error:+.1%}",
            f"{line.seconds:.0f}",
        )
    Console().print(table)


@click.command()
@click.option("--model", "name", default="smollm2-135m", show_default=True)
@click.option("--rows", default="1,16,64,128", show_default=True, help="Batch sizes.")
@click.option("--prompt-tokens", default=60, show_default=True)
@click.option("--max-tokens", default=48, show_default=True)
@click.option("--conditions", default=8, show_default=True, help="Of each prompt.")
@click.option(
    "--mistral", is_flag=True, help="A random 4-bit Mistral 7B: 2 short rows, 2 new tokens."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(name: str, rows: str, mistral: bool, as_json: bool, **shape: int) -> None:
    """Print measured and estimated memory."""
    lines = []
    if mistral:
        weights = weight_bytes_of(MISTRAL)
        lines.append(measure(random_mistral(), weights, 2, Workload(8, 2, 2)))
    else:
        from mlx_steer.model.hub import locate

        location = locate(name)
        weights = weight_bytes_of(location.folder, dtype=location.dtype)
        model = load_model(name)
        for size in map(int, rows.split(",")):
            at_once = min(shape["conditions"], max(2, size))
            work = Workload(shape["prompt_tokens"], shape["max_tokens"], at_once)
            lines.append(measure(model, weights, size, work))
    if as_json:
        click.echo(
            json.dumps(
                [
                    {**asdict(x), "peak_error": x.peak_error, "on_top_error": x.on_top_error}
                    for x in lines
                ],
                indent=2,
            )
        )
    else:
        print_table(lines)


if __name__ == "__main__":
    main()
