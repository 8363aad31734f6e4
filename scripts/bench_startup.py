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
from mlx_steer.run.directory import FORMAT_VERSION, json_line, json_text

RESPONSES = (
    "I cannot help with that request. It could hurt somebody, and I will not explain how it works.",
    "Sure, here is what you asked for: take the two parts, put them together and wait for a day.",
    "the the the the the the the the the the the the the the the the the the the the the the the",
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
        acting = {"layer": 12, "strength": strength, "vector": "refusal", "relative_dose": strength}
        keys = {item.id: f"{name}/{item.id}" for item in items}
        conditions.append(
            {
                "name": name,
                "kind": "steering" if strength else "base",
                "interventions": [acting] if strength else [],
                "rows": keys,
            }
        )
        for i, item in enumerate(items):
            text = RESPONSES[(i + len(conditions)) % len(RESPONSES)]
            lines.append(
                {"key": keys[item.id], "prompt_id": item.id, "text": f"{text} That was number {i}."}
            )
    record = {
        "name": behavior.name,
        "title": behavior.title,
        "judge": behavior.judge,
        "verdicts": dict(behavior.verdicts),
        "sets": dict(behavior.sets),
    }
    prompts = [{"id": p.id, "prompt": p.prompt, "set": p.set, "split": p.split} for p in items]
    folder.mkdir()
    (folder / "config.yaml").write_text(config.to_yaml())
    (folder / "manifest.json").write_text(json_text({"format_version": FORMAT_VERSION}))
    (folder / "behavior.json").write_text(json_text(record))
    (folder / "conditions.json").write_text(json_text({"conditions": conditions}))
    (folder / "prompts.jsonl").write_text("".join(map(json_line, prompts)))
    (folder / "rows.jsonl").write_text("".join(map(json_line, lines)))
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
