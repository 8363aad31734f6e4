"""How close extraction comes to the bare pass over the tokens that must be computed once.

What sequences begin with in common is computed once: the head of the chat template, each prompt
and each response, and no layer above the highest one asked for. The bare pass runs so many tokens
through those layers in even batches, without caches, padding or hooks.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from statistics import median
from typing import Any

import click

import mlx_steer  # noqa: F401  (before mlx: it puts OpenBLAS in front of it)

# isort: split
import mlx.core as mx
import numpy as np
import peers
from measuring import Json, in_turn, publish, ratio

from mlx_steer.behaviors import Behavior, load_behavior
from mlx_steer.engine.capture import TOKENS_PER_PASS
from mlx_steer.engine.guard import load_model
from mlx_steer.engine.steering import steerable
from mlx_steer.extraction.pairs import extract
from mlx_steer.model.load import Model
from mlx_steer.vectors import SteeringVectorSet

Sequences = list[tuple[list[int], list[int], list[int]]]
"""Of each pair: the prompt's token ids, and those of both responses."""

NAIVE_PAIRS = 5


def sequences_of(model: Model, behavior: Behavior) -> Sequences:
    chat = model.chat
    return [
        (
            chat.prompt_ids(p.prompt, p.system, p.tools),
            chat.response_ids(p.positive),
            chat.response_ids(p.negative),
        )
        for p in behavior.pairs
    ]


def tokens_once(sequences: Sequences) -> int:
    """Tokens to compute when no shared beginning is computed twice."""
    seen: set[tuple[int, ...]] = set()
    for prompt, positive, negative in sequences:
        for whole in (prompt + positive, prompt + negative):
            seen.update(tuple(whole[: i + 1]) for i in range(len(whole)))
    return len(seen)


def up_to(model: Model, layer: int, ids: mx.array) -> mx.array:
    """The output of one layer; nothing above it is computed."""
    kept: list[mx.array] = []
    with steerable(model.network, [layer]) as (site,):
        site.record = kept.append
        model.network(ids)
        site.record = None
    return kept[0]


def bare_pass(model: Model, layer: int, tokens: int, length: int) -> Callable[[], None]:
    """A pass over so many tokens up to a layer, in even rows of some length."""
    rows, rest = divmod(tokens, length)
    at_once = max(1, TOKENS_PER_PASS // length)
    shapes = [(min(at_once, rows - i), length) for i in range(0, rows, at_once)]
    shapes += [(1, rest)] if rest else []
    rng, size = np.random.default_rng(0), int(model.config["vocab_size"])
    batches = [mx.array(rng.integers(10, size, shape)) for shape in shapes]

    def run() -> None:
        for ids in batches:
            mx.eval(up_to(model, layer, ids))

    return run


def naive(model: Model, sequences: Sequences, layers: Sequence[int]) -> dict[int, Any]:
    """One pass for each layer, pair and side; the mean difference at the last token."""
    vectors = {}
    for layer in layers:
        total = np.zeros(model.hidden_size)
        for prompt, *responses in sequences:
            for response, sign in zip(responses, (1, -1), strict=True):
                state = up_to(model, layer, mx.array(prompt + response)[None])[0, -1]
                total += sign * np.array(state, np.float64) / len(sequences)
        vectors[layer] = total
    return vectors


def farthest(vectors: SteeringVectorSet, others: dict[int, Any]) -> float:
    """The largest relative difference of two sets of vectors."""
    return max(
        float(np.linalg.norm(vectors[k].array - np.array(v)) / np.linalg.norm(v))
        for k, v in others.items()
    )


def beside_peer(model: Model, behavior: Behavior, vectors: SteeringVectorSet, name: str) -> Json:
    from mlx_steer.model.hub import locate

    pairs = [
        [model.tokenizer.decode(prompt + response) for response in responses]
        for prompt, *responses in sequences_of(model, behavior)
    ]
    task = {
        "name": "steering-vectors",
        "model": str(locate(name).folder),
        "pairs": pairs,
        "layers": list(vectors),
        "batch_sizes": [4, 8, 16, 32],
    }
    answer = peers.ask(task)
    theirs = {int(k): np.array(v) for k, v in answer.pop("vectors").items()}
    answer["cosine"] = {
        k: float(v @ vectors[k].array / np.linalg.norm(v) / vectors[k].norm)
        for k, v in theirs.items()
    }
    return answer


@click.command()
@click.option("--model", "name", default="smollm2-135m", show_default=True)
@click.option("--pairs", default=50, show_default=True)
@click.option("--layers", default="8,11,14,17,20", show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--peers", "with_peers", is_flag=True, help="Beside the steering-vectors package.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(name: str, pairs: int, layers: str, rounds: int, with_peers: bool, as_json: bool) -> None:
    """Print the ratio of the bare pass to extraction (1 would be perfect)."""
    model, shipped = load_model(name, dtype="float32"), load_behavior("refusal")
    behavior = replace(shipped, pairs=shipped.pairs[:pairs])
    chosen = [int(part) for part in layers.split(",")]
    sequences = sequences_of(model, behavior)
    once = tokens_once(sequences)
    plain = sum(2 * len(p) + len(a) + len(b) for p, a, b in sequences)
    bare = bare_pass(model, max(chosen), once, plain // (2 * len(sequences)))

    few = replace(behavior, pairs=behavior.pairs[:NAIVE_PAIRS])
    few_tokens = sum(2 * len(p) + len(a) + len(b) for p, a, b in sequences[:NAIVE_PAIRS])
    slow_vectors: dict[int, Any] = {}

    def slow() -> None:
        slow_vectors.update(naive(model, sequences[:NAIVE_PAIRS], chosen))

    extract(model, behavior, chosen)  # warms up
    seconds = in_turn({"extract": lambda: extract(model, behavior, chosen), "bare": bare}, rounds)
    slow_seconds = in_turn({"naive": slow}, 1)["naive"][0] * plain / few_tokens
    ours = median(seconds["extract"])
    result: Json = {
        "pairs": len(sequences),
        "layers": chosen,
        "tokens": {"of all sequences": plain, "computed once": once},
        "seconds": {"extract": ours, "bare": median(seconds["bare"]), "naive": slow_seconds},
        "bare_over_extract": asdict(of_bare := ratio(seconds["bare"], seconds["extract"])),
        "naive_over_extract": slow_seconds / ours,
        "largest_difference_from_naive": farthest(extract(model, few, chosen), slow_vectors),
    }
    rows = [
        ["", "seconds", "time over ours"],
        ["extract", f"{ours:.2f}", "1"],
        [f"bare pass over {once} tokens, computed once", f"{median(seconds['bare']):.2f}",
         f"{of_bare} (target: at least 0.85)"],
        [f"one pass per layer, pair and side ({plain} tokens x {len(chosen)}; from {NAIVE_PAIRS} "
         "pairs)", f"{slow_seconds:.2f}", f"{slow_seconds / ours:.1f}"],
    ]  # fmt: skip
    if with_peers:
        peer = beside_peer(model, behavior, extract(model, behavior, chosen), name)
        best = min(peer["seconds"], key=peer["seconds"].get)
        result["steering_vectors"] = peer
        rows.append(
            [f"steering-vectors, PyTorch {peer['torch']}, batch {best} (its best)",
             f"{peer['seconds'][best]:.2f}", f"{peer['seconds'][best] / ours:.1f}"]
        )  # fmt: skip
    publish(result, rows, "python scripts/bench_extraction.py --peers", as_json)


if __name__ == "__main__":
    main()
