"""The errors raised on purpose; every message says what is wrong, where, and what to do."""


class SteerError(Exception):
    """Base of all errors meant for a person: one clear sentence, shown without a traceback."""


class ConfigError(SteerError):
    """An experiment file or an option is not usable."""


class DataError(SteerError):
    """A behavior, a file of contrast pairs or a prompt set is not usable."""


class VectorError(SteerError):
    """A vectors folder is damaged, of another version, or does not fit the model."""


class ModelError(SteerError):
    """A model cannot be found, loaded, converted or steered."""


class GgufError(ModelError, VectorError):
    """A GGUF file, of a model or of control vectors, is damaged or lies about itself."""


class GenerationError(SteerError):
    """A generation job is impossible, for example a prompt longer than the context."""


class RunError(SteerError):
    """A run directory is missing, damaged, locked or cannot be written."""


class TeamError(SteerError):
    """The ranks of a run cannot reach one another, or are not of one mind."""


class MissingExtraError(SteerError):
    """An optional package is not installed; the message names the command that installs it."""
