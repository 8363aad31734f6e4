"""Write docs/families.md: which families of models were tried, how, and where their limits are.

    python scripts/families_page.py

The table's words are here; configs, sizes and what Macs hold come from the repository's own files,
and so does the list of mlx-lm's model types, from the results of the tests of all of them
(tests/zoo/results.json), where these are. A test compares the page with this script.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mlx_steer.config import load_config
from mlx_steer.model.machine import MACS, working_set_of_mac
from mlx_steer.model.published import published_model

ROOT = Path(__file__).parents[1]
PAGE, ZOO = ROOT / "docs" / "families.md", ROOT / "tests" / "zoo" / "results.json"

_HEAD = """\
# Model families

Written by `python scripts/families_page.py`: change that, not this page.

Only the built-in SmolLM2 was run on its real weights. Families marked *compared* were tried on a
small random model of their architecture (six layers, float32), the same weights being loaded by
mlx-steer and by Hugging Face transformers:

- *extraction*: token ids are the same; vectors of every layer agree to 3e-5 of their norm;
- *batch*: rows of different layers, strengths and system prompts in one batch give transformers'
  own greedy continuations, and steered logits agree to 0.001;
- *undo*: after steering, extraction, batches and exceptions, parameters, classes and logits are
  bit for bit what they were;
- *equality*: the unsteered hidden state agrees at every layer and token.

They passed all four (`tests/oracle`, `tests/engine/test_families.py`); Mistral v0.1 to v0.3, Nemo
and Ministral 8B are one architecture and so one small model, SmolLM2 and Llama another. What else
was tried, and where the limits are, stands beside them.

Of every ready config's model a small random one of the same structure passes what is tried at
loading: rows in a batch, steered, joined, dropped and replayed, against each alone
(`tests/model/test_published.py`). Chat templates were tried on templates of our own that imitate
the family's (`tests/model/test_chat_families.py`).
"""

_SIZES = """\
## Ready configs and what they need

Weights are counted from the network that mlx-lm builds (`scripts/published_models.py`). A Mac is
named if they leave a tenth of what Metal can use there for the rows; `mlx-steer plan CONFIG` says
how many rows fit, for each Mac.
"""

_OTHERS = """\
## Other models

Every model is tried when it is loaded, on a few tokens. One that cannot be steered rightly is
refused with its model type and the place in `mlx_steer/model/families.py` where support belongs.

A `.gguf` file is converted once: dense models of Llama, Qwen2, Qwen3 and Gemma 3, in F32, F16,
BF16, Q4_0 to Q8_0, Q2_K to Q6_K, IQ4_NL and IQ4_XS. Files in F32, F16, Q4_0, Q4_1 and Q8_0 become
float32, others bfloat16; `--quantize` makes 4 or 8 bits of them. Values are bit for bit ggml's;
logits agree with the real llama.cpp on the same small float32 file to 0.0001 of their standard
deviation, of Gemma 3 to 0.003 (`tests/model/test_gguf_llama_cpp.py`), and with what transformers
reads from it to 0.002 (`tests/model/test_gguf_architectures.py`).
"""


@dataclass(frozen=True)
class Family:
    """A row of the table: a name, what was tried, and limits."""

    name: str
    tried: str
    limits: str


FAMILIES = (
    Family(
        "SmolLM2 (built in)",
        "compared; real weights: the whole demo; vectors against PyTorch at all 30 layers",
        "float32 everywhere; its template inserts a system prompt, so base has one",
    ),
    Family(
        "Mistral v0.1",
        "compared; right up to a window, refused beyond it; a system prompt folded into the user's "
        "turn",
        "4096 tokens: its window, which mlx-lm ignores",
    ),
    Family("Mistral v0.2, v0.3", "compared, without a window", "32,768 tokens"),
    Family(
        "Mistral Nemo",
        "compared; heads wider than hidden size / heads",
        "the context in its config.json",
    ),
    Family("Ministral 8B (2410)", "compared, as Mistral v0.1", "32,768 tokens: its window"),
    Family(
        "Ministral 3",
        "compared: the text model, `ministral3`, with YaRN and scaled queries",
        "inside a vision model, as it is published, not tried",
    ),
    Family(
        "Llama 3.x",
        "compared, with and without Llama 3's rotary scaling; GGUF files; 4, 8 and mixed bits, "
        "bfloat16, LoRA",
        "the context in its config.json; a date in the prompt is always 1 January 2025",
    ),
    Family(
        "Llama 4",
        "compared: the text model; chunks, layers without positions, experts",
        "text only; the context in its config.json",
    ),
    Family(
        "Qwen2.5",
        "compared; windows switched on and off; GGUF files",
        "32,768 tokens; its template inserts a system prompt",
    ),
    Family(
        "Qwen3",
        "compared; thinking on and off (`--thinking`) in the template; bfloat16; windows; GGUF "
        "files",
        "thinking is off by default; when on, only what follows it is judged, and the vector acts "
        "on both, or on one of them (`scope: thinking` or `answer`)",
    ),
    Family("Qwen3-MoE", "compared; experts; windows", "as Qwen3"),
    Family(
        "Qwen3.5",
        "compared: the text model; its template's thoughts, opened and empty",
        "text only; thinking as Qwen3",
    ),
    Family("Qwen3-Next", "compared; experts", "never thinks"),
    Family(
        "Gemma 2",
        "compared; bfloat16; right up to a window, refused beyond it",
        "4096 tokens: its window, which mlx-lm ignores; no system role",
    ),
    Family(
        "Gemma 3",
        "compared; bfloat16; its windows, which mlx-lm honours; a vision tower left out; GGUF "
        "files",
        "text only",
    ),
    Family(
        "Gemma 3n",
        "compared: the text model; the vector goes to all four streams",
        "text only; prompts are not replayed from a layer on",
    ),
    Family(
        "Gemma 4",
        "compared: the text model, `gemma4_text`; its template's thoughts, opened by several "
        "tokens",
        "text only; prompts are not replayed from a layer on, and all layers are run",
    ),
    Family(
        "Phi-3, Phi-4",
        "compared; right up to a window, refused beyond it",
        "Phi-3 mini: 2047 tokens, its window, which mlx-lm ignores",
    ),
    Family("Mixtral", "compared; experts; bfloat16; a window", "32,768 tokens"),
    Family(
        "gpt-oss",
        "compared: windows, sinks, experts in float32; its channels: the final one is the answer, "
        "the analysis thinking; calls told from answers",
        "it answers at once in its final channel; with `thinking: true` it thinks first; a date in "
        "the prompt is always 1 January 2025; mlx-lm rounds the range of its YaRN scaling, "
        "transformers does not",
    ),
    Family("LFM2", "compared", "the context in its config.json"),
    Family(
        "SmolLM3",
        "compared; its switch for thinking beside a system prompt",
        "thinking as Qwen3; its template inserts a system prompt and a date (1 January 2025)",
    ),
    Family(
        "GLM-4",
        "compared; the switch for thinking of GLM-4.5",
        "the context in its config.json",
    ),
    Family("OLMo 3", "compared; windows", "65,536 tokens"),
)


def page() -> str:
    """The whole page."""
    return "\n".join([_HEAD, *_families(), _SIZES, *_sizes(), _OTHERS, *_zoo()])


def _families() -> Iterator[str]:
    yield "| family | tried | limits |\n|---|---|---|"
    for family in FAMILIES:
        yield f"| {family.name} | {family.tried} | {family.limits} |"
    yield ""


def _sizes() -> Iterator[str]:
    yield "| config | model | weights, GB | Macs |\n|---|---|---:|---|"
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        model = load_config(path).model
        known = published_model(model.name)
        if known is None:  # built in
            continue
        needed = known.weights(model.quantize)
        macs = [str(gb) for gb in MACS if needed <= 0.9 * working_set_of_mac(gb)]
        room = f"from {macs[0]} GB" if macs else f"more than {MACS[-1]} GB"
        yield f"| `{path.stem}` | {model.name} | {needed / 1e9:.1f} | {room} |"
    yield ""


def _zoo() -> Iterator[str]:
    """The model types of mlx-lm, as the tests of all of them found them; nothing before those."""
    if not ZOO.is_file():
        return
    found = json.loads(ZOO.read_text(encoding="utf-8"))
    yield f"## Model types of mlx-lm {found['mlx_lm']}\n"
    by_verdict: dict[str, list[str]] = {}
    for kind, verdict in sorted(found["types"].items()):
        by_verdict.setdefault(verdict, []).append(f"`{kind}`")
    for verdict, kinds in sorted(by_verdict.items(), key=lambda pair: -len(pair[1])):
        yield f"**{verdict}** ({len(kinds)}): {', '.join(kinds)}\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
