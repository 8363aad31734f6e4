"""A hash that tells one set of weights from another without reading gigabytes."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

_SAMPLES = 16
_SAMPLE_BYTES = 65_536


def weights_fingerprint(folder: Path, adapter: Path | None = None) -> str:
    """Hash a sample of a model folder's weights.

    Each safetensors file contributes its size and 16 evenly spaced blocks of 64 KiB, the header
    (names, shapes, dtypes) among them. Fine-tuning and requantising change weights all over, so
    the sample tells them apart; a change of a few single bytes it may miss.

    Args:
        folder: A model folder with model*.safetensors.
        adapter: A folder with a LoRA adapter, hashed as well, with its config: a scale is there.

    Returns:
        64 hex digits.
    """
    files = sorted(folder.glob("model*.safetensors"))
    if adapter is not None:
        files += [*sorted(adapter.glob("*.safetensors")), adapter / "adapter_config.json"]
    return files_fingerprint(files)


def files_fingerprint(files: Iterable[Path]) -> str:
    """Hash the names, the sizes and a sample of the bytes of files, as 64 hex digits."""
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}:".encode())
        with path.open("rb") as file:
            for i in range(_SAMPLES):
                file.seek(max(0, size - _SAMPLE_BYTES) * i // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()
