"""A condition in a file, with the vectors it needs: what a chat came to, for the server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mlx_steer.errors import VectorError
from mlx_steer.files import problems, read_yaml, write_beside
from mlx_steer.serve.protocol import MOST_VECTORS, Steer


class _Exact(Steer):
    # In a file somebody wrote, a word nobody knows is a mistake.
    model_config = ConfigDict(extra="forbid")


class PresetFile(BaseModel):
    """The file's content.

    Attributes:
        vectors: Folders by the names that `steering` uses; relative ones begin at the file.
        steering: What steers, as requests say it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    vectors: Annotated[dict[str, str], Field(min_length=1)]
    steering: Annotated[tuple[_Exact, ...], Field(min_length=1, max_length=MOST_VECTORS)]

    @staticmethod
    def read(file: Path) -> PresetFile:
        """Read a file; its folders are absolute then.

        Raises:
            VectorError: If it cannot be read, or is no preset.
        """
        data = read_yaml(file, VectorError)
        try:
            found = PresetFile.model_validate(data)
        except ValidationError as error:
            what = "; ".join(problems(error, PresetFile)[:3])
            raise VectorError(f"{file} is no preset: {what}") from error
        folders = {name: str(file.parent / folder) for name, folder in found.vectors.items()}
        return found.model_copy(update={"vectors": folders})

    def write(self, file: Path) -> None:
        """Write it.

        Raises:
            VectorError: If that cannot be done.
        """
        data = self.model_dump(mode="json", exclude_none=True)
        text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
        try:
            write_beside(file, text.encode())
        except OSError as error:
            raise VectorError(f"{file} cannot be written: {error.strerror or error}") from error
