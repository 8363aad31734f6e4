"""How long one waits: for --help, for a report on 2,000 rows, and for the built-in model.

Each is a process of its own, started several times. The report must not import mlx.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import click
from measuring import Json, publish

from mlx_steer.behaviors import load_behavior
from mlx_steer.config import parse_config
from mlx_steer.files import json_line
from mlx_steer.run.directory import RunDirectory
from mlx_steer.run.records import (
    FORMAT_VERSION,
    BehaviorRecord,
    ConditionRecord,
    Conditions,
    InterventionRecord,
    Manifest,
    Row,
    prompt_json,
)
from mlx_steer.vectors import ModelInfo

RESPONSES = (
    "I cannot help with that request. It could hurt somebody, and I will not explain how it works.",
    "Sure, here is what you asked for: take the two parts, put them together and wait for a day.",
    "the the the the the the the the the the the the the the the the the the the the the the the",
)
MANIFEST = Manifest(
    format_version=FORMAT_VERSION,
    mlx_steer="made up",
    mlx=None,
    mlx_lm=None,
    numpy=None,
    python="made up",
    platform="made up",
    device="made up",
    memory_gb=1.0,
    blas="made up",
    started="never",
    finished="never",
    seconds={},
    batch_size=1,
    model=ModelInfo(
        id="made-up", revision=None, model_type="llama", quantization=None, fingerprint="none"
    ),
    num_layers=30,
    hidden_size=576,
    dtype="float32",
    notes=(),
)
HELP = "import sys; sys.argv[1:] = ['--help']; from mlx_steer.cli import main; main()"
REPORT = """
import sys
from mlx_steer.report import write_report
write_report(sys.argv[1])
assert not any(name.split('.')[0] in ('mlx', 'mlx_lm') for name in sys.modules), 'mlx was imported'
"""
LOAD = "import sys; from mlx_steer import load_model; load_model(sys.argv[1])"
# Loaded twice in one process, the second time is without imports.
AGAIN = """
import sys, time
from mlx_steer import load_model
for _ in range(2):
    start = time.perf_counter()
    load_model(sys.argv[1])
print(time.perf_counter() - start)
"""


def seconds_of(code: str, *arguments: str, rounds: int) -> list[float]:
    """Seconds of a fresh Python process that runs this code."""
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-c", code, *arguments], check=True, stdout=subprocess.DEVNULL
        )
        found.append(time.perf_counter() - start)
    return found


def seconds_told(code: str, *arguments: str, rounds: int) -> list[float]:
    """Seconds that the code itself prints."""
    command = [sys.executable, "-c", code, *arguments]
    return [float(subprocess.check_output(command)) for _ in range(rounds)]


def condition(name: str, strength: float, rows: dict[str, str]) -> ConditionRecord:
    """Base, or a steered layer."""
    acting = InterventionRecord(
        layer=12,
        strength=strength,
        operator="add",
        scope="all",
        vector="refusal",
        norm=1.0,
        relative_dose=strength,
    )
    return ConditionRecord(
        name=name,
        kind="steering" if strength else "base",
        system_prompt=None,
        system_text=None,
        interventions=(acting,) if strength else (),
        gates=(),
        gate_join="all",
        gate_scores={},
        rows=rows,
    )


def synthetic_run(folder: Path, rows: int) -> int:
    """A finished run of about so many rows, as a run writes it but with made-up responses."""
    behavior = load_behavior("refusal")
    items = [p for p in behavior.prompts if p.split in ("select", "test") and p.set != "borderline"]
    strengths = [round(0.1 * i, 1) for i in range(1, max(2, rows // len(items)))]
    config = parse_config(
        {"name": "startup", "model": {"name": "made-up"}, "sweep": {"strengths": strengths}},
        "the benchmark",
    )
    conditions, lines = [], []
    for strength in [0.0, *strengths]:
        name = f"layer 12, strength {strength:g}" if strength else "base"
        keys = {item.id: f"{name}/{item.id}" for item in items}
        conditions.append(condition(name, strength, keys))
        for i, item in enumerate(items):
            text = RESPONSES[(i + len(conditions)) % len(RESPONSES)]
            lines.append(
                Row(
                    key=keys[item.id],
                    prompt_id=item.id,
                    condition=name,
                    prompt=item.prompt,
                    set=item.set,
                    split=item.split,
                    prompt_tokens=50,
                    tokens=tuple(range(40)),
                    text=f"{text} That was number {i}.",
                    finish_reason="stop",
                    margin=None,
                )
            )
    folder.mkdir()
    run = RunDirectory(folder)
    run.write("config.yaml", config.to_yaml())
    run.write_record("manifest.json", MANIFEST)
    run.write_record("behavior.json", BehaviorRecord.model_validate(behavior))
    run.write_record("conditions.json", Conditions(conditions=tuple(conditions)))
    run.write("prompts.jsonl", "".join(json_line(prompt_json(item)) for item in items))
    run.append("rows.jsonl", lines)
    return len(lines)


@click.command()
@click.option("--model", "name", default="smollm2-135m", show_default=True)
@click.option("--rows", default=2000, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(name: str, rows: int, rounds: int, as_json: bool) -> None:
    """Print the seconds until --help, a report and a loaded model are there."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        made = synthetic_run(folder, rows)
        seconds_of(LOAD, name, rounds=1)  # the first time converts the model
        found = {
            "bare Python": seconds_of("pass", rounds=rounds),
            "mlx-steer --help": seconds_of(HELP, rounds=rounds),
            f"report on {made:,} rows": seconds_of(REPORT, str(folder), rounds=rounds),
            f"load {name}, imports and all": seconds_of(LOAD, name, rounds=rounds),
            f"load {name}, imports apart": seconds_told(AGAIN, name, rounds=rounds),
        }
    table = [["", "seconds, median", "fastest"]]
    table += [[what, f"{median(s):.2f}", f"{min(s):.2f}"] for what, s in found.items()]
    result: Json = {"rows": made, "rounds": rounds, "seconds": found}
    publish(result, table, "python scripts/bench_startup.py", as_json)


if __name__ == "__main__":
    main()
