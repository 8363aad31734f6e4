"""The vectors folder's format, pinned byte for byte.

The two folders here were written once from the fixed inputs below. Folders like them lie on other
people's disks: what is pinned must stay readable, and a change of it is a decision.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mlx_steer.conditions import Gate
from mlx_steer.vectors import (
    FORMAT_VERSION,
    DatasetInfo,
    GateInfo,
    ModelInfo,
    SteeringVector,
    SteeringVectorSet,
    VectorMetadata,
    load_vectors,
)
from tests.reference import vectors as reference

GOLDEN = Path(__file__).parent / "vectors"
GATED = Path(__file__).parent / "vectors_with_gate"

CURE = (
    "the format of a vectors folder has changed. If that was not meant, undo it. If it was, it is "
    "a decision: raise FORMAT_VERSION, keep reading folders of the old version, write it into the "
    "changelog, and then run: python -m tests.golden.test_golden"
)

# One third and one tenth are rounded; the others are where formats go wrong: both zeros, the
# smallest and the largest float32.
VALUES = {
    2: [1.5, -2.25, 1 / 3, 0.1, 0.0, -0.0, 2.0**-149, -1024.0],
    10: [-3.0, 4.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
    11: [(2 - 2**-23) * 2.0**127, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0],
}
HIDDEN_NORMS = {2: 1999.123456789, 10: 20.0, 11: 1e-3}


def golden_set() -> SteeringVectorSet:
    metadata = VectorMetadata(
        behavior="refusal",
        method="mean_difference",
        token_position="last",
        hidden_size=8,
        num_layers=12,
        model=ModelInfo(
            id="organisation/modèle-4bit",
            revision="0123456789abcdef0123456789abcdef01234567",
            model_type="llama",
            quantization={"group_size": 64, "bits": 4, "mode": "affine"},
            fingerprint="f" * 64,
        ),
        chat_template_sha256=hashlib.sha256(b"template").hexdigest(),
        dataset=DatasetInfo(name="refusal", sha256=hashlib.sha256(b"pairs").hexdigest(), pairs=50),
        seed=None,
    )
    vectors = [
        SteeringVector(layer, np.array(values, np.float32), HIDDEN_NORMS[layer])
        for layer, values in VALUES.items()
    ]
    return SteeringVectorSet(vectors, metadata)


def gated_set() -> SteeringVectorSet:
    """The same with a gate; a set without gates says nothing of them."""
    direction = np.array([0.5, -1 / 3, 0.0, 0.0, 0.0, 0.0, 0.0, 2.0], np.float32)
    info = GateInfo(
        name="refusal",
        file="filled in",
        sha256="0" * 64,
        layer=7,
        threshold=-12.34567890123456,
        method="whitened_mean_difference",
        auc=0.9875,
        false_positive_rate=0.05,
        prompts={"target": 60, "other": 60, "borderline": 30},
        system_prompt_sha256=None,
    )
    return golden_set().with_gate(Gate(7, direction, info.threshold, "refusal"), info)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("make", [golden_set, gated_set])
def test_the_fixed_inputs_give_the_golden_folder_byte_for_byte(
    make: Callable[[], SteeringVectorSet], tmp_path: Path
) -> None:
    make().save(tmp_path / "vectors")
    made = contents(tmp_path / "vectors")
    golden = contents(GATED if make is gated_set else GOLDEN)
    assert list(made) == list(golden), CURE
    for name, data in golden.items():
        assert made[name] == data, f"{name}: {CURE}"


def test_the_golden_folder_still_loads_with_every_value_it_was_made_from() -> None:
    loaded = load_vectors(GOLDEN)
    assert loaded.metadata == golden_set().metadata
    for layer, values in VALUES.items():
        assert loaded[layer].array.tobytes() == np.array(values, "<f4").tobytes()


def test_the_golden_gate_still_loads_as_it_was_made() -> None:
    (loaded,), (made,) = load_vectors(GATED).gates, gated_set().gates
    assert loaded.direction.tobytes() == made.direction.tobytes()
    assert (loaded.layer, loaded.threshold, loaded.name) == (7, -12.34567890123456, "refusal")


def test_the_reference_path_reads_the_golden_folder() -> None:
    read = reference.read(GOLDEN)
    for layer, values in VALUES.items():
        assert read.vectors[layer].tobytes() == np.array(values, "<f4").tobytes()
        assert read.hidden_norm(layer) == float(f"{HIDDEN_NORMS[layer]:.9g}")


def test_the_golden_folder_can_be_used_with_json_and_a_header_of_128_bytes() -> None:
    """What a reader in another language relies on."""
    metadata = json.loads((GOLDEN / "metadata.json").read_bytes())
    assert metadata["format_version"] == FORMAT_VERSION == 1
    for layer, entry in metadata["layers"].items():
        data = (GOLDEN / entry["file"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == entry["sha256"]
        assert data[:8] == b"\x93NUMPY\x01\x00"
        values = np.frombuffer(data[128:], "<f4")
        assert values.tolist() == np.array(VALUES[int(layer)], np.float32).tolist()


if __name__ == "__main__":
    golden_set().save(GOLDEN)
    gated_set().save(GATED)
    print(f"{GOLDEN} and {GATED} written; look at the difference before committing it")
