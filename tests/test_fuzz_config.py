"""No experiment file gives anything but an experiment or a ConfigError."""

import tempfile
from pathlib import Path
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_steer.config import ExperimentConfig, load_config, parse_config
from tests.helpers import fuzz

GOOD: dict[str, Any] = {
    "name": "refusal-test",
    "model": {"name": "org/model", "revision": "main", "dtype": "float32", "quantize": 4},
    "behavior": "refusal",
    "extract": {"layers": [1, -2], "token_position": "mean", "method": "pca"},
    "sweep": {
        "layers": [3],
        "strengths": [0.5, 1.0],
        "system_prompts": ["detailed"],
        "screen": 2,
        "limits": {"false_positives": 0.1, "coherence_drop": 0.05, "incoherent": 0.1},
    },
    "compare": {"layer": 3, "strengths": [1.0], "controls": {"random": 2, "negated": False}},
    "gate": {"layers": "all", "methods": ["mean_difference"], "false_positive_rate": 0.05},
    "generation": {"max_tokens": 20, "temperature": 0.5, "seed": 3, "batch_size": 8},
    "statistics": {"resamples": 200, "alpha": 0.05},
    "judge_model": {"name": "org/judge", "max_tokens": 4},
    "prompts_per_set": 2,
}


def check(config: ExperimentConfig | None) -> None:
    """An experiment that was read says the same when it is written and read again."""
    if config is not None:
        again = parse_config(yaml.safe_load(config.to_yaml()), "again")
        assert again == config


@settings(max_examples=80, deadline=None)
@given(fuzz.values(GOOD))
def test_no_values_give_anything_but_an_experiment_or_an_error(data: Any) -> None:
    check(fuzz.read_or_refused(lambda: parse_config(data, "x.yaml")))


YAML = yaml.safe_dump(GOOD, sort_keys=False).encode()
WORDS = [b"&a ", b"*a", b"!!python/object/apply:os.system ", b"!!binary ", b"!!timestamp ", b"!x "]
WORDS += [b"<<: ", b"? ", b"- ", b"[", b"{", b"1e999", b"0x", b"2001-99-99", b"---\n", b"%TAG "]
WORDS += [b"0b", b"1:99:1", b"=", b"~", b"\xff", b"\xef\xbb\xbf", b"\x00", b"\t", b"\x85"]


@st.composite
def with_words(draw: st.DrawFn) -> bytes:
    data = bytearray(YAML)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        data[at:at] = draw(st.sampled_from(WORDS))
    return bytes(data)


@settings(max_examples=60, deadline=None)
@given(fuzz.spoiled(YAML) | with_words() | st.binary(max_size=60))
def test_no_bytes_give_anything_but_an_experiment_or_an_error(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.yaml"
        path.write_bytes(data)
        check(fuzz.read_or_refused(lambda: load_config(path)))
