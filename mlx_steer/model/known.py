"""A model as vectors know it, from its files alone: nothing is loaded."""

from mlx_steer.errors import ModelError
from mlx_steer.model.fingerprint import weights_fingerprint
from mlx_steer.model.hub import locate
from mlx_steer.model.load import quantization_of
from mlx_steer.model.shape import Shape
from mlx_steer.model.size import read_config
from mlx_steer.vectors import ModelInfo
from mlx_steer.vectors.exchange.foreign import KnownModel


def known_model(name: str, revision: str | None = None) -> KnownModel:
    """What identifies a model, and its shape; the names `load_model` takes.

    Raises:
        ModelError: If there is no such model or its config.json is not usable.
    """
    location = locate(name, revision)
    config = read_config(location.folder)
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise ModelError(f"the config.json of {name} gives no model_type; fetch it again")
    shape = Shape.of(config)
    info = ModelInfo(
        id=location.id,
        revision=location.revision,
        model_type=kind,
        quantization=quantization_of(config),
        fingerprint=weights_fingerprint(location.folder),
    )
    return KnownModel(info, shape.hidden, shape.layers)
