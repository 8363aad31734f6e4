"""Generation in one continuous batch, beside what the bare forward passes allow, and beside peers.

The bare passes: after every few steps of the engine, one step of as many rows with caches as long,
unpadded and unsteered, and nothing but the forward pass and the argmax; and for prefill, so many
tokens through so many layers as cannot be shared, in even batches.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any
from unittest.mock import patch

import click

import mlx_steer  # noqa: F401  (before mlx: it puts OpenBLAS in front of it)

# isort: split
import mlx.core as mx
import numpy as np
import peers
from measuring import Json, publish, timed

from mlx_steer.behaviors import load_behavior
from mlx_steer.conditions import Condition
from mlx_steer.engine.batch import Batch
from mlx_steer.engine.complete import completions
from mlx_steer.engine.decode import Decoder
from mlx_steer.engine.guard import load_model
from mlx_steer.engine.jobs import Completion, Job, Sampling
from mlx_steer.engine.prefill import common_head
from mlx_steer.engine.steered import steered
from mlx_steer.engine.steering import steerable
from mlx_steer.experiment import condition_sets as design
from mlx_steer.extraction.pairs import extract
from mlx_steer.model.load import Model
from mlx_steer.vectors import SteeringVectorSet

LAYERS, STRENGTHS = (9, 12, 15, 18, 21), (0.5, 1.0, 1.5)
PEER_ROWS = 64
# Of one bare prefill.
PREFILL_ROWS = 16


def _run(network: Any, ids: mx.array, kept: list[mx.array]) -> None:
    network(ids)
    mx.eval(kept)


@dataclass
class Bare:
    """Bare passes, timed while the engine waits.

    Attributes:
        model: The model.
        every: One bare step for so many steps of the engine.
        decode: Seconds of bare decode steps that were timed.
        steps: Steps of the engine.
        prefill: Seconds of bare prefills, each of the same size.
        waited: Seconds the engine waited for all this.
    """

    model: Model
    every: int
    decode: list[float] = field(default_factory=list)
    steps: int = 0
    prefill: list[float] = field(default_factory=list)
    waited: float = 0.0

    def warm_up(self, rows: int, length: int) -> None:
        """First passes take longer; they are not counted."""
        self.step(rows, length)
        self.pass_over(rows, length)
        self.decode.clear()
        self.prefill.clear()

    def step(self, rows: int, length: int) -> None:
        """One decode step of so many rows whose caches hold so many tokens."""
        caches = self._caches(rows, length)
        tokens = mx.ones((rows, 1), mx.int32)

        def forward() -> None:
            mx.eval(mx.argmax(self.model.network(tokens, cache=caches)[:, -1], axis=-1))

        self.decode.append(timed(forward))

    def pass_over(self, rows: int, length: int) -> None:
        """One pass through all layers, logits left out."""
        ids = mx.ones((rows, length), mx.int32)
        kept: list[mx.array] = []
        with steerable(self.model.network, [-1]) as (site,):
            site.record = kept.append
            self.prefill.append(timed(lambda: _run(self.model.network, ids, kept)))
            site.record = None

    def _caches(self, rows: int, length: int) -> list[Any]:
        from mlx_lm.models.cache import make_prompt_cache

        caches = make_prompt_cache(self.model.network)
        shape = (rows, *self._heads())
        for cache in caches:
            filled = mx.zeros((shape[0], shape[1], length, shape[2]), self.model.dtype)
            cache.update_and_fetch(filled, filled)
        mx.eval([c.state for c in caches])
        return caches

    def _heads(self) -> tuple[int, int]:
        config = self.model.config
        heads = int(config["num_attention_heads"])
        size = int(config.get("head_dim") or config["hidden_size"] // heads)
        return int(config.get("num_key_value_heads", heads)), size


@contextmanager
def beside(bare: Bare, prefill: tuple[int, int]) -> Iterator[None]:
    """Time bare passes between the engine's steps."""
    original = Decoder.step

    def step(self: Decoder, batch: Batch) -> list[Completion]:
        rows, length = len(batch), int(batch.caches[0]._idx)
        done = original(self, batch)
        bare.steps += 1
        if bare.steps % bare.every == 1:

            def passes() -> None:
                bare.step(rows, length)
                if bare.steps % (8 * bare.every) == 1:
                    bare.pass_over(*prefill)

            bare.waited += timed(passes)
        return done

    with patch.object(Decoder, "step", step):
        yield


def conditions_of(vectors: SteeringVectorSet) -> list[Condition]:
    cells = [design.steering([vectors[k]], s, "refusal") for k in LAYERS for s in STRENGTHS]
    return [design.BASE, *cells]


def layer_tokens(model: Model, prompts: Sequence[tuple[int, ...]], chosen: list[Condition]) -> int:
    """Tokens times layers of the prefill that no two rows can share."""
    head = common_head(prompts)
    own = head + sum(len(p) - 1 - head for p in prompts)
    steered_layers = (min(i.layer for i in c.interventions) for c in chosen if c.interventions)
    return own * (model.num_layers + sum(model.num_layers - 1 - k for k in steered_layers))


def one_at_a_time(
    model: Model, jobs: Sequence[Job], done: dict[str, Completion], max_tokens: int
) -> tuple[float, list[str]]:
    """Seconds for some rows through mlx-lm, one by one, and the keys whose tokens differ."""
    from mlx_lm.generate import stream_generate

    differ: list[str] = []
    tokens: list[int] = []

    def generate(job: Job) -> None:
        tokens[:] = []
        with steered(model, job.condition.interventions):
            for made in stream_generate(
                model.network, model.tokenizer, list(job.ids), max_tokens=max_tokens
            ):
                tokens.append(int(made.token))

    generate(jobs[0])  # warms up
    seconds = 0.0
    for job in jobs:
        seconds += timed(lambda job=job: generate(job))  # type: ignore[misc]
        if tokens[-1] in model.chat.stop_ids:
            tokens.pop()
        if tuple(tokens) != done[job.key].tokens:
            differ.append(job.key)
    return seconds, differ


def hugging_face(
    model: Model, name: str, jobs: Sequence[Job], done: dict[str, Completion], max_tokens: int
) -> Json:
    """The first rows through Hugging Face's generate, in one left-padded batch."""
    from mlx_steer.model.hub import locate

    first = list(jobs[:PEER_ROWS])
    vectors = {str(i.layer): i.vector.tolist() for j in first for i in j.condition.interventions}
    shifts = {
        layer: [
            next(([layer, i.strength] for i in j.condition.interventions if i.layer == int(layer)),
                 None)
            for j in first
        ]
        for layer in vectors
    }  # fmt: skip
    task = {
        "name": "generate",
        "model": str(locate(name).folder),
        "prompts": [list(job.ids) for job in first],
        "vectors": vectors,
        "shifts": shifts,
        "max_tokens": max_tokens,
        "stop_ids": sorted(model.chat.stop_ids),
    }
    answer = peers.ask(task)
    tokens = answer.pop("tokens")
    same = sum(tuple(t) == done[j.key].tokens for t, j in zip(tokens, first, strict=True))
    return {**answer, "rows": len(first), "rows_with_our_tokens": same}


@dataclass
class Figures:
    """What is found; each figure is told on standard error as soon as it is there.

    Attributes:
        result: Everything, for --json.
        rows: The table for people, its head first.
    """

    result: Json = field(default_factory=dict)
    rows: list[list[str]] = field(default_factory=lambda: [["", "rows/s", "ours is"]])

    def add(self, what: str, rate: float, ours_is: str, **values: Any) -> None:
        """Keep a figure and tell it."""
        self.result |= values
        self.rows.append([what, f"{rate:.2f}", ours_is])
        click.echo(f"{what}: {rate:.2f} rows/s", err=True)


def measure_ours(
    figures: Figures,
    model: Model,
    jobs: Sequence[Job],
    sampling: Sampling,
    batch_size: int,
    every: int,
) -> tuple[float, dict[str, Completion]]:
    """Rows per second of the engine, with bare passes beside it, and its rows."""
    prompts = list(dict.fromkeys(job.ids for job in jobs))
    length = max(2, round(sum(map(len, prompts)) / len(prompts)))
    bare, done = Bare(model, every), dict[str, Completion]()

    def engine() -> None:
        done.update((c.key, c) for c in completions(model, jobs, sampling, batch_size))

    bare.warm_up(PREFILL_ROWS, length)
    with beside(bare, (PREFILL_ROWS, length)):
        ours = timed(engine) - bare.waited
    decode = sum(bare.decode) * bare.steps / len(bare.decode)
    conditions = list({job.condition.name: job.condition for job in jobs}.values())
    tokens_passed = PREFILL_ROWS * length * model.num_layers
    prefill = median(bare.prefill) * layer_tokens(model, prompts, conditions) / tokens_passed
    tokens = sum(len(c.tokens) for c in done.values())
    figures.add(
        f"ours: {len(jobs)} rows, {tokens} tokens in {bare.steps} steps", len(jobs) / ours, "1",
        rows=len(jobs), tokens=tokens, steps=bare.steps,
    )  # fmt: skip
    figures.add(
        f"what bare passes allow (decode {decode:.0f} s, prefill {prefill:.0f} s)",
        len(jobs) / (decode + prefill), f"{(decode + prefill) / ours:.2f} of it",
        seconds={"ours": ours, "bare decode": decode, "bare prefill": prefill},
        bare_over_ours=(decode + prefill) / ours,
    )  # fmt: skip
    return len(jobs) / ours, done


@click.command()
@click.option("--model", "name", default="smollm2-135m", show_default=True)
@click.option("--prompts", "count", default=40, show_default=True, help="Under 16 conditions each.")
@click.option("--max-tokens", default=48, show_default=True)
@click.option("--batch-size", default=64, show_default=True)
@click.option("--every", default=8, show_default=True, help="Steps between two bare passes.")
@click.option("--sampled", default=6, show_default=True, help="Rows run one at a time.")
@click.option("--peers", "with_peers", is_flag=True, help="Beside Hugging Face in PyTorch.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(
    name: str,
    count: int,
    max_tokens: int,
    batch_size: int,
    every: int,
    sampled: int,
    with_peers: bool,
    as_json: bool,
) -> None:
    """Print rows per second, and the ratio to what the bare passes allow (1 would be perfect)."""
    model, behavior = load_model(name, dtype="float32"), load_behavior("refusal")
    chosen = conditions_of(extract(model, behavior, LAYERS))
    items = [p for p in behavior.prompts if p.split in ("select", "test")][:count]
    prompts = [tuple(model.chat.prompt_ids(p.prompt)) for p in items]
    jobs = [Job(f"{i} {c.name}", p, c) for i, p in enumerate(prompts) for c in chosen]
    figures = Figures()
    rate, done = measure_ours(figures, model, jobs, Sampling(max_tokens), batch_size, every)
    picked = np.random.default_rng(0).permutation(len(jobs))[:sampled]
    slow, differ = one_at_a_time(model, [jobs[i] for i in picked], done, max_tokens)
    slow_rate = len(picked) / slow
    figures.add(
        f"mlx_lm one row at a time, {len(picked)} sampled rows: {len(differ)} with other tokens",
        slow_rate, f"{rate / slow_rate:.1f} times it",
        rows_per_second={"ours": rate, "one_at_a_time": slow_rate},
        ours_over_one_at_a_time=rate / slow_rate,
        sampled_rows=len(picked), sampled_rows_that_differ=differ,
    )  # fmt: skip
    if with_peers:
        peer = hugging_face(model, name, jobs, done, max_tokens)
        peer_rate = peer["rows"] / peer["seconds"]
        figures.add(
            f"Hugging Face generate, PyTorch {peer['torch']}, {peer['rows']} left-padded rows: "
            f"{peer['rows'] - peer['rows_with_our_tokens']} with other tokens",
            peer_rate, f"{rate / peer_rate:.1f} times it",
            hugging_face={**peer, "rows_per_second": peer_rate},
        )  # fmt: skip
    again = "python scripts/bench_generation.py --peers"
    publish(figures.result, figures.rows, again, as_json)
    if differ:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
