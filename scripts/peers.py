"""The peers that benchmarks compare with, in an environment of their own: PyTorch and its tools.

`python scripts/peers.py` makes the environment (some hundred MB). Inside it, this same file carries
out what a benchmark asks for: one JSON task on standard input, one JSON answer on standard output.
"""

import json
import subprocess
import sys
import time
import venv
from pathlib import Path
from typing import Any

PACKAGES = ["torch==2.13.0", "steering-vectors==0.12.2", "transformers", "numpy"]

Json = dict[str, Any]


def default_folder() -> Path:
    """Where the environment is made."""
    from mlx_steer.blas import cache_root

    return cache_root() / "peers"


def make(folder: Path) -> Path:
    """The environment's Python; the environment is made if it is not there."""
    python = folder / "bin" / "python"
    ready = folder / "packages.txt"
    wanted = "\n".join(PACKAGES)
    if not ready.exists() or ready.read_text() != wanted:
        print(f"making {folder} with {', '.join(PACKAGES)}", file=sys.stderr, flush=True)
        venv.create(folder, with_pip=True, clear=True)
        install = [python, "-m", "pip", "install", "--quiet", *PACKAGES]
        subprocess.run(list(map(str, install)), check=True)
        ready.write_text(wanted)
    return python


def ask(task: Json, python: Path | None = None) -> Json:
    """Carry out a task in the peers' environment."""
    python = python or make(default_folder())
    done = subprocess.run(
        [str(python), __file__, "answer"],
        input=json.dumps(task),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"the peer {task['name']} failed:\n{done.stderr[-2000:]}")
    answer: Json = json.loads(done.stdout.splitlines()[-1])
    return answer


# --- inside the environment -----------------------------------------------------------------------


def steering_vectors(task: Json) -> Json:
    """Extraction by the steering-vectors package, at each batch size.

    The task holds `model` (a folder), `pairs` (positive and negative text, template included),
    `layers` and `batch_sizes`.
    """
    import torch
    from steering_vectors import train_steering_vector
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(task["model"], dtype=torch.float32)
    model.requires_grad_(False)
    tokenizer: Any = AutoTokenizer.from_pretrained(task["model"])
    pairs = [tuple(pair) for pair in task["pairs"]]

    def extract(batch_size: int) -> Any:
        return train_steering_vector(
            model, tokenizer, pairs, layers=task["layers"], batch_size=batch_size
        )

    extract(task["batch_sizes"][0])
    seconds, vectors = {}, None
    for batch_size in task["batch_sizes"]:
        start = time.perf_counter()
        vectors = extract(batch_size).layer_activations
        seconds[str(batch_size)] = time.perf_counter() - start
    assert vectors is not None
    return {
        "torch": torch.__version__,
        "seconds": seconds,
        "vectors": {str(layer): vector.tolist() for layer, vector in vectors.items()},
    }


def generate(task: Json) -> Json:
    """Greedy generation with Hugging Face: left-padded rows, each with its own steering.

    The task holds `model` (a folder), `prompts` (token ids), `shifts` (by layer, for each row which
    of `vectors` is added and how strongly, or None), `vectors`, `max_tokens` and `stop_ids`.
    """
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(task["model"], dtype=torch.float32)
    model.requires_grad_(False)
    longest = max(map(len, task["prompts"]))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in task["prompts"]])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in task["prompts"]])
    vectors = {name: torch.tensor(values) for name, values in task["vectors"].items()}

    def adding(rows: list[Any]) -> Any:
        zero = torch.zeros(model.config.hidden_size)
        shift = torch.stack([zero if r is None else r[1] * vectors[r[0]] for r in rows])[:, None]

        def hook(_: Any, __: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (output[0] + shift, *output[1:])
            return output + shift

        return hook

    layers = model.get_decoder().layers
    for layer, rows in task["shifts"].items():
        layers[int(layer)].register_forward_hook(adding(rows))

    def run(tokens: int) -> Any:
        with torch.inference_mode():
            return model.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=tokens,
                eos_token_id=task["stop_ids"],
                pad_token_id=task["stop_ids"][0],
            )

    run(2)
    start = time.perf_counter()
    made = run(task["max_tokens"])[:, longest:].tolist()
    seconds = time.perf_counter() - start
    stops = set(task["stop_ids"])
    ends = [next((i for i, t in enumerate(row) if t in stops), len(row)) for row in made]
    return {
        "torch": torch.__version__,
        "seconds": seconds,
        "tokens": [row[:end] for row, end in zip(made, ends, strict=True)],
    }


TASKS = {"steering-vectors": steering_vectors, "generate": generate}


if __name__ == "__main__":
    if sys.argv[1:] == ["answer"]:
        given: Json = json.load(sys.stdin)
        print(json.dumps(TASKS[given["name"]](given)))
    else:
        print(make(Path(sys.argv[1]) if sys.argv[1:] else default_folder()))
