"""What the ready configs' models are as they are published: known without a download.

Written into published_models.json by scripts/published_models.py, which has sources and date.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

# Weights that share a scale and an offset, and what these take more in float32 than in 16 bits.
_GROUP, _WIDER = 64, 4


@dataclass(frozen=True)
class PublishedModel:
    """A model as it is published.

    Attributes:
        config: Of its config.json, what decides about sizes.
        bytes: Of all weights in `16`, `8` and `4` bits; or only as they are `stored`, where they
            are quantised already.
    """

    config: Mapping[str, Any]
    bytes: Mapping[str, int]

    @property
    def quantized(self) -> bool:
        """Whether it is published in quantised weights."""
        return "stored" in self.bytes

    def weights(self, quantize: int | None = None, wide: bool = False) -> int:
        """Bytes of its weights once loaded.

        Args:
            quantize: Bits that original weights are converted to.
            wide: Whether what is not quantised is held in float32.
        """
        if self.quantized:
            return self.bytes["stored"]
        original = self.bytes["16"]
        if quantize is None:
            return 2 * original if wide else original
        more = original // 2 // _GROUP * _WIDER if wide else 0
        return self.bytes[str(quantize)] + more


def published_model(name: str) -> PublishedModel | None:
    """The model of that hub id, with or without `@revision`; None if nothing is known of it."""
    found = _models().get(name.partition("@")[0])
    return None if found is None else PublishedModel(found["config"], found["bytes"])


@cache
def _models() -> dict[str, dict[str, Any]]:
    text = files("mlx_steer.model").joinpath("published_models.json").read_text(encoding="utf-8")
    models: dict[str, dict[str, Any]] = json.loads(text)
    return models
