"""What an experiment and a large model take over ranks, by counting: nothing runs.

Of a run whose rows are dealt out: rows of a rank, what is not dealt out, and so the most that more
ranks can gain if all are equal and wait for nothing but the ends of stages. Of a model over ranks:
what each holds and sends.
"""

from pathlib import Path

import click

from mlx_steer.config import load_config
from mlx_steer.experiment.plan import plan_experiment
from mlx_steer.model.shape import Shape
from mlx_steer.model.size import ModelSize, weight_bytes_of

# A token that is read takes this part of one that is decoded (experiment/pace.py).
READ_PART = 0.5
# Made by rank 0 for all, or by every rank for itself.
WHOLE = ("extract", "gate")
RANKS = (1, 2, 4, 8)
LLAMA_70B = {
    "hidden_size": 8192, "num_hidden_layers": 80, "intermediate_size": 28672,
    "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128256,
    "tie_word_embeddings": False,
}  # fmt: skip


def print_rows(config: Path) -> None:
    """Rows over ranks: the most that can be gained."""
    plan = plan_experiment(load_config(config))
    work = {c.name: READ_PART * c.read + c.decoded for c in plan.stages}
    total, alone = sum(work.values()), sum(work.get(name, 0) for name in WHOLE)
    made = [c for c in plan.stages if c.decoded]
    click.echo(f"{plan.name}: {sum(c.rows for c in made)} rows; counted, not measured")
    click.echo("ranks  rows of a rank by stage            not dealt out  at most as fast")
    for n in RANKS:
        rows = " + ".join(str(-(-c.rows // n)) for c in made)
        dealt = [(c.rows, work[c.name]) for c in plan.stages if c.name not in WHOLE]
        took = alone + sum(-(-rows_of // n) / rows_of * whole for rows_of, whole in dealt)
        click.echo(f"{n:5}  {rows:34} {100 * alone / took:11.1f} %  {total / took:14.2f} x")


def print_model(bits: int) -> None:
    """A 70B Llama over ranks: what each holds and sends."""
    size = ModelSize(Shape.of(LLAMA_70B), weight_bytes_of(LLAMA_70B, quantize=bits), 2, True)
    shape = size.shape
    click.echo(f"Llama of 70B in {bits} bits, bfloat16 stream; counted, not measured")
    click.echo(
        "ranks  weights of a rank  keys and values of 1,000 tokens  sums a step  sent a token"
    )
    for n in RANKS[:3]:
        part = size.over(n)
        sums = 2 * shape.layers if n > 1 else 0
        sent = sums * 2 * (n - 1) * shape.hidden * size.dtype_bytes // n
        kv = part.shape.kv_bytes(1000, size.dtype_bytes)
        click.echo(
            f"{n:5}  {part.weights / 1e9:14.1f} GB  {kv / 1e6:27.0f} MB  {sums:11}  "
            f"{sent / 1e6:9.2f} MB"
        )


@click.command()
@click.argument("config", type=click.Path(path_type=Path, exists=True))
@click.option("--bits", default=4, help="Of the large model's weights.")
def main(config: Path, bits: int) -> None:
    """Count CONFIG over ranks, and a model of 70B."""
    print_rows(config)
    print_model(bits)


if __name__ == "__main__":
    main()
