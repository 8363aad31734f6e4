"""The real llama.cpp, by its C interface: logits, hidden states and greedy tokens of a GGUF file.

Its libraries come from the npm package that `make llama-cpp` installs. The layout of its parameters
is that package's, so its version is pinned there; its loader is C++, and is called as Linux does on
x86_64.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]

_F32 = 0
_POINTER, _INT, _BYTES = ctypes.c_void_p, ctypes.c_int32, ctypes.c_char_p
_EVAL = ctypes.CFUNCTYPE(ctypes.c_bool, _POINTER, ctypes.c_bool, _POINTER)
_QUIET = ctypes.CFUNCTYPE(None, _INT, _BYTES, _POINTER)(lambda *_: None)


class _ModelParameters(ctypes.Structure):
    # Left as the library fills it in; larger than any version's, which callee and caller allow.
    _fields_ = (("all", ctypes.c_ubyte * 512),)


class _ContextParameters(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_uint32) for name in ("n_ctx", "n_batch", "n_ubatch", "n_seq_max")),
        ("more_sizes", ctypes.c_uint32 * 3),
        ("n_threads", _INT),
        ("n_threads_batch", _INT),
        ("kinds", _INT * 4),
        ("flash_attention", _INT),
        ("rope", ctypes.c_float * 8),
        ("on_eval", _EVAL),
        ("on_eval_data", _POINTER),
        ("type_k", _INT),
        ("type_v", _INT),
        ("rest", ctypes.c_ubyte * 400),
    )


class _Batch(ctypes.Structure):
    _fields_ = (
        ("n_tokens", _INT),
        ("token", ctypes.POINTER(_INT)),
        ("embd", _POINTER),
        ("pos", ctypes.POINTER(_INT)),
        ("n_seq_id", ctypes.POINTER(_INT)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(_INT))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


class _String(ctypes.Structure):
    """A C++ text, as libstdc++ holds one."""

    _fields_ = (("data", _BYTES), ("size", ctypes.c_size_t), ("local", ctypes.c_ubyte * 16))


class _LoadInfo(ctypes.Structure):
    _fields_ = (("strength", ctypes.c_float), ("path", _String))


class _Vector(ctypes.Structure):
    _fields_ = (("begin", _POINTER), ("end", _POINTER), ("capacity", _POINTER))


class _ControlVector(ctypes.Structure):
    _fields_ = (("n_embd", ctypes.c_int), ("data", _Vector))


@dataclass(frozen=True)
class Libraries:
    """llama.cpp's libraries, loaded; `common` has what its programs share, the loader among it."""

    llama: ctypes.CDLL
    base: ctypes.CDLL
    common: ctypes.CDLL


@cache
def libraries() -> Libraries:
    """Load them.

    Raises:
        FileNotFoundError: If they are not installed.
    """
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise FileNotFoundError("llama.cpp is compared with on Linux on x86_64 only")
    root = Path(sys.prefix) / "llama.cpp"
    found = sorted(root.glob("node_modules/@node-llama-cpp/*/bins/*"))
    if not found:
        raise FileNotFoundError("llama.cpp is not installed; run: make llama-cpp")
    folder = found[0]

    def load(name: str) -> ctypes.CDLL:
        (path, *_) = sorted(p for p in folder.iterdir() if p.name.startswith(f"lib{name}."))
        return ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)

    base, ggml, llama, common = (load(n) for n in ("ggml-base", "ggml", "llama", "llama-common"))
    llama.llama_log_set(_QUIET, None)
    ggml.ggml_backend_load_all_from_path(str(folder).encode())
    for library, name, kind in (
        (llama, "llama_model_default_params", _ModelParameters),
        (llama, "llama_context_default_params", _ContextParameters),
        (llama, "llama_batch_init", _Batch),
        (llama, "llama_model_load_from_file", _POINTER),
        (llama, "llama_init_from_model", _POINTER),
        (llama, "llama_get_memory", _POINTER),
        (llama, "llama_model_get_vocab", _POINTER),
        (llama, "llama_get_logits_ith", ctypes.POINTER(ctypes.c_float)),
        (base, "ggml_get_name", _BYTES),
        (base, "ggml_nbytes", ctypes.c_size_t),
    ):
        getattr(library, name).restype = kind
    return Libraries(llama, base, common)


def load_control_vector(path: Path, strength: float = 1.0) -> Float32:
    """What llama.cpp's own loader reads from a file: a row for each layer from 1, (layers, size).

    It is C++ (`common_control_vector_load`), called by its mangled name.
    """
    name = "_Z26common_control_vector_loadRKSt6vectorI31common_control_vector_load_infoSaIS0_EE"
    load = getattr(libraries().common, name)
    load.argtypes, load.restype = [_POINTER, _POINTER], _POINTER
    text = str(path).encode()
    info = _LoadInfo(strength, _String(text, len(text)))
    start = ctypes.addressof(info)
    infos = _Vector(start, start + ctypes.sizeof(info), start + ctypes.sizeof(info))
    result = _ControlVector()  # the caller's room for what is returned comes first
    load(ctypes.addressof(result), ctypes.addressof(infos))
    if result.n_embd <= 0:
        raise ValueError(f"llama.cpp cannot read {path}")
    count = (result.data.end - result.data.begin) // 4
    values = (ctypes.c_float * count).from_address(result.data.begin)
    return np.array(values, np.float32).reshape(-1, result.n_embd)


class LlamaCpp:
    """A GGUF model in llama.cpp; one row at a time, one thread, keys and values in float32."""

    def __init__(self, path: Path) -> None:
        """Load the file."""
        self._lib = libraries().llama
        self._hidden: dict[str, Float32] = {}
        self._on_eval = _EVAL(self._keep)
        self._model = _POINTER(
            self._lib.llama_model_load_from_file(
                str(path).encode(), self._lib.llama_model_default_params()
            )
        )
        assert self._model.value, f"llama.cpp cannot load {path}"
        parameters = self._lib.llama_context_default_params()
        assert (parameters.type_k, parameters.type_v) == (1, 1), "another layout of parameters"
        parameters.type_k = parameters.type_v = _F32
        parameters.n_threads = parameters.n_threads_batch = 1
        parameters.on_eval = self._on_eval
        parameters.flash_attention = 0
        self._context = _POINTER(self._lib.llama_init_from_model(self._model, parameters))
        self.layers: int = self._lib.llama_model_n_layer(self._model)
        vocabulary = _POINTER(self._lib.llama_model_get_vocab(self._model))
        self.vocabulary: int = self._lib.llama_vocab_n_tokens(vocabulary)

    def close(self) -> None:
        """Free it."""
        self._lib.llama_free(self._context)
        self._lib.llama_model_free(self._model)

    def steer(self, rows: Float32 | None) -> None:
        """Add a row to the output of each block from 1 on, as its programs do; None: nothing."""
        size = 0 if rows is None else rows.shape[1]
        # Layers that the rows do not reach would keep what an earlier call put there.
        full = np.zeros((self.layers - 1, size), np.float32)
        full[: 0 if rows is None else len(rows)] = rows if rows is not None else 0
        data = full.ctypes.data_as(_POINTER) if size else None
        count = ctypes.c_size_t(full.size)
        done = self._lib.llama_set_adapter_cvec(self._context, data, count, size, 1, self.layers)
        assert done == 0

    def run(self, ids: Sequence[int]) -> tuple[Float32, list[Float32]]:
        """Logits (positions, vocabulary), and each block's output (positions, size)."""
        self._forget()
        logits = self._decode(ids, 0)
        return logits, [
            self._hidden[f"l_out-{i}"].reshape(len(ids), -1) for i in range(self.layers)
        ]

    def greedy(self, ids: Sequence[int], count: int) -> list[int]:
        """The next `count` tokens."""
        self._forget()
        tokens: list[int] = []
        logits = self._decode(ids, 0)
        for place in range(len(ids), len(ids) + count):
            tokens.append(int(logits[-1].argmax()))
            logits = self._decode(tokens[-1:], place)
        return tokens

    def _forget(self) -> None:
        memory = _POINTER(self._lib.llama_get_memory(self._context))
        self._lib.llama_memory_clear(memory, ctypes.c_bool(True))

    def _decode(self, ids: Sequence[int], start: int) -> Float32:
        batch = self._lib.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.logits[i] = token, start + i, 1
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
        done = self._lib.llama_decode(self._context, batch)
        self._lib.llama_batch_free(batch)
        assert done == 0, f"llama_decode: {done}"
        rows = [self._lib.llama_get_logits_ith(self._context, i) for i in range(len(ids))]
        return np.stack([np.ctypeslib.as_array(row, (self.vocabulary,)).copy() for row in rows])

    def _keep(self, tensor: int, ask: bool, _: int) -> bool:
        base = libraries().base
        name = base.ggml_get_name(_POINTER(tensor)).decode()
        if not name.startswith("l_out-"):
            return not ask
        if not ask:
            size = base.ggml_nbytes(_POINTER(tensor))
            values = np.empty(size // 4, np.float32)
            base.ggml_backend_tensor_get(
                _POINTER(tensor),
                values.ctypes.data_as(_POINTER),
                ctypes.c_size_t(0),
                ctypes.c_size_t(size),
            )
            self._hidden[name] = values
        return True


@contextmanager
def llama_cpp(path: Path) -> Iterator[LlamaCpp]:
    """A model that is freed in the end."""
    model = LlamaCpp(path)
    try:
        yield model
    finally:
        model.close()
