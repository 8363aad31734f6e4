"""Models: found by hub id, folder or built-in name; loaded with tokenizer and chat template."""

from mlx_steer.model.load import Model, load_model

__all__ = ["Model", "load_model"]
