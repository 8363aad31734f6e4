import ctypes
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

import mlx_steer
from mlx_steer import blas
from mlx_steer.blas import BlasStatus, cache_root, load_openblas

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux only")


def run(code: str, **variables: str | None) -> str:
    """The output of code run by a fresh interpreter, with some variables set or (None) not set."""
    env = {k: v for k, v in {**os.environ, **variables}.items() if v is not None}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    return done.stdout.strip()


def test_importing_the_package_loads_neither_mlx_nor_numpy() -> None:
    heavy = "('mlx', 'mlx.core', 'mlx_lm', 'numpy', 'scipy', 'pydantic', 'transformers')"
    assert run(f"import mlx_steer, sys; print([m for m in {heavy} if m in sys.modules])") == "[]"


def test_every_public_name_resolves_and_is_listed() -> None:
    assert len(mlx_steer.__all__) == len(set(mlx_steer.__all__)) > 15
    for name in mlx_steer.__all__:
        assert getattr(mlx_steer, name) is not None
        assert name in dir(mlx_steer)
    assert mlx_steer.extract is import_module("mlx_steer.extraction.pairs").extract
    assert mlx_steer.complete is import_module("mlx_steer.engine.complete").complete


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'mlx_steer' has no attribute 'nonsense'"):
        mlx_steer.nonsense  # noqa: B018


@pytest.mark.parametrize(("before", "after"), [(None, "0"), ("1", "1")])
def test_products_of_float32_stay_float32_unless_one_has_chosen_otherwise(
    before: str | None, after: str
) -> None:
    # As MLX sees it: by the C library, at its first product.
    code = (
        "import mlx_steer, ctypes; get = ctypes.CDLL(None).getenv; get.restype = ctypes.c_char_p;"
        "print(get(b'MLX_ENABLE_TF32').decode())"
    )
    assert run(code, MLX_ENABLE_TF32=before) == after


def test_the_installed_mlx_reads_the_variable_that_is_set() -> None:
    headers = [Path(folder) / "include/mlx/utils.h" for folder in import_module("mlx").__path__]
    found = [header.read_text() for header in headers if header.exists()]
    if not found:
        pytest.skip("this mlx comes without headers")
    assert 'get_var("MLX_ENABLE_TF32"' in found[0]


@LINUX
def test_openblas_is_loaded_when_the_package_comes_first() -> None:
    state, mapped = run(
        "import mlx_steer, mlx.core as mx; (mx.ones((8, 8)) @ mx.ones((8, 8))).tolist();"
        "print(mlx_steer.blas_status.state);"
        "print('libopenblas' in open('/proc/self/maps').read())"
    ).split("\n")
    assert (state, mapped) == ("loaded", "True")


@LINUX
def test_openblas_is_too_late_when_mlx_comes_first() -> None:
    out = run(
        "import mlx.core, mlx_steer; s = mlx_steer.blas_status; print(s.state, s.ok, s.detail)"
    )
    assert out.startswith("too late False mlx was imported before mlx_steer")
    assert out.endswith("import mlx_steer first")


@LINUX
def test_products_are_those_of_openblas_and_right() -> None:
    out = run(
        "import mlx_steer, mlx.core as mx, ctypes;"
        "a = mx.arange(64 * 48, dtype=mx.float32).reshape(64, 48) / 1000;"
        "product = a @ a.T; mx.eval(product);"
        "exact = (a[:, None, :] * a[None]).sum(-1);"
        "print(float(mx.abs(product - exact).max()) < 1e-2);"
        "libraries = (None, mlx_steer.blas_status.detail);"
        "found = [ctypes.CDLL(name).cblas_sgemm for name in libraries];"
        "print(len({ctypes.cast(f, ctypes.c_void_p).value for f in found}) == 1)"
    )
    assert out.split() == ["True", "True"]


def test_other_systems_need_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    status = load_openblas()
    assert (status.state, status.ok) == ("not needed", True)


@pytest.fixture
def before_mlx(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this were a Linux on which MLX is not loaded yet."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delitem(sys.modules, "mlx.core")


def test_a_missing_package_is_named_with_its_install_command(
    before_mlx: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [])
    status = load_openblas()
    assert status.state == "missing" and not status.ok
    assert "pip install cmeel-openblas" in status.detail


def a_library(tmp_path: Path) -> Path:
    library = tmp_path / "site-packages/cmeel.prefix/lib/libopenblas.so"
    library.parent.mkdir(parents=True)
    library.write_bytes(b"not a library")
    return library


def test_a_library_that_does_not_load_is_a_failure_with_a_cure(
    before_mlx: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    library = a_library(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site-packages")])
    status = load_openblas()
    assert status.state == "failed" and not status.ok
    assert str(library) in status.detail and "libgfortran5" in status.detail


def a_build_for(core: bytes) -> SimpleNamespace:
    class CoreName:
        restype: object = None

        def __call__(self) -> bytes:
            assert self.restype is ctypes.c_char_p
            return core

    return SimpleNamespace(openblas_get_corename=CoreName())


@pytest.mark.parametrize(
    ("core", "flags", "state"),
    [
        (b"SkylakeX", {"avx", "avx2", "fma"}, "failed"),  # it would end in an illegal instruction
        (b"SkylakeX", {"avx2", "avx512f"}, "loaded"),
        (b"Zen", {"avx"}, "failed"),
        (b"ZEN", {"avx2"}, "loaded"),
        (b"NEOVERSEN1", set(), "loaded"),
    ],
)
def test_a_build_for_another_processor_is_not_put_in_front_of_mlx(
    before_mlx: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    core: bytes,
    flags: set[str],
    state: str,
) -> None:
    library = a_library(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site-packages")])
    monkeypatch.setattr(blas, "_processor_flags", lambda: frozenset(flags))
    modes: list[int] = []

    def cdll(path: str, mode: int) -> SimpleNamespace:
        assert path == str(library)
        modes.append(mode)
        return a_build_for(core)

    monkeypatch.setattr(blas.ctypes, "CDLL", cdll)
    status = load_openblas()
    assert (status.state, status.ok) == (state, state == "loaded")
    assert (ctypes.RTLD_GLOBAL in modes) == (state == "loaded")
    if state == "failed":
        assert "avx512f" in status.detail or "avx2" in status.detail
        assert "pip install cmeel-openblas==0.3.29" in status.detail


@LINUX
def test_the_installed_build_suits_this_processor() -> None:
    assert run("import mlx_steer; print(mlx_steer.blas_status.state)") == "loaded"


def test_a_missing_fortran_runtime_is_lent_from_mlx_under_its_plain_name(
    before_mlx: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    library = a_library(tmp_path)
    libs = tmp_path / "site-packages/mlx_cpu.libs"
    libs.mkdir()
    hashed = "libgfortran-8f1e9814.so.5.0.0"
    (libs / hashed).write_bytes(b"..." + hashed.encode() + b"...")
    (libs / "libquadmath-828275a7.so.0.0.0").write_bytes(b"")
    loaded: list[str] = []

    def cdll(path: str, mode: int) -> SimpleNamespace:
        if path == str(library) and not any("libgfortran" in p for p in loaded):
            raise OSError("libgfortran.so.5: cannot open shared object file")
        if mode == ctypes.RTLD_GLOBAL:
            loaded.append(path)
        return a_build_for(b"ZEN")

    monkeypatch.setattr(blas, "_processor_flags", lambda: frozenset({"avx2"}))

    monkeypatch.setattr(blas.ctypes, "CDLL", cdll)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site-packages")])
    monkeypatch.setenv("MLX_STEER_CACHE", str(tmp_path / "cache"))
    assert load_openblas() == BlasStatus("loaded", str(library))
    helper, runtime, blas_library = loaded
    assert Path(helper).name.startswith("libquadmath") and blas_library == str(library)
    assert Path(runtime).name == "libgfortran.so.5"
    content = Path(runtime).read_bytes()
    plain = b"libgfortran.so.5".ljust(len(hashed), b"\0")
    assert content == b"..." + plain + b"...", "same length, so that no offset in the file moves"
    assert load_openblas().state == "loaded", "the copy is used again"
    assert os.listdir(Path(runtime).parent) == ["libgfortran.so.5"]


def test_the_cache_folder_is_chosen_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_STEER_CACHE", "~/elsewhere")
    assert cache_root() == Path.home() / "elsewhere"
    monkeypatch.delenv("MLX_STEER_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/x")
    assert cache_root() == Path("/var/x/mlx-steer")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_root() == Path.home() / ".cache" / "mlx-steer"


@LINUX
def test_inside_one_thread_products_have_the_digits_of_one_thread() -> None:
    code = """
import ctypes, hashlib
import mlx_steer, mlx.core as mx, numpy as np
from mlx_steer.blas import one_thread, openblas_status

def digits():
    return hashlib.sha256(np.array(a @ b.T).tobytes()).hexdigest()

library = ctypes.CDLL(openblas_status().detail)
a, b = (mx.random.normal((301, 577), key=key) for key in mx.random.split(mx.random.key(0)))
before = library.openblas_get_num_threads()
with one_thread():
    print(digits(), library.openblas_get_num_threads())
print(library.openblas_get_num_threads() == before)
"""
    one, two = (run(code, OPENBLAS_NUM_THREADS=count).split() for count in ("1", "2"))
    assert one == two
    assert one[1:] == ["1", "True"]
