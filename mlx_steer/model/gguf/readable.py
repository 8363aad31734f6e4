"""Which tensors of a GGUF file can be read, and how long they are; checked before any is read.

The gguf library's own reader is not for files from strangers: it believes every count it is told,
so that a header of a few bytes keeps it busy for minutes. Its tables and its formats are used.
"""

import math

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from mlx_steer.errors import ModelError
from mlx_steer.gguf_header import Header, Tensor
from mlx_steer.words import Dtype

READABLE = (
    *("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"),
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"),
)
# Those that files were always converted to float32 from: the models are small, or people's own.
_FLOAT32 = ("F32", "F16", "Q4_0", "Q4_1", "Q8_0")


def check_data(header: Header) -> None:
    """Raises ModelError for a type that cannot be read or a tensor past the end of the file."""
    size = header.path.stat().st_size
    names = {_name(tensor.type) for tensor in header.tensors.values()}
    if unreadable := sorted(names - {*READABLE}):
        raise ModelError(
            f"{header.path} holds {', '.join(unreadable)} tensors, which cannot be read; use a "
            f"file in {', '.join(READABLE)}."
        )
    for name, tensor in header.tensors.items():
        values, _ = _block(tensor)
        if tensor.shape and tensor.shape[-1] % values:
            raise ModelError(
                f"{header.path}: the rows of '{name[:100]}' are no whole number of blocks; "
                "download or copy it again."
            )
        if header.data_start + tensor.offset + math.prod(byte_shape(tensor)) > size:
            raise ModelError(f"{header.path} is truncated; download or copy it again.")


def byte_shape(tensor: Tensor) -> tuple[int, ...]:
    """A tensor's shape in bytes, of a type that can be read."""
    values, width = _block(tensor)
    *rows, last = tensor.shape or (1,)
    return (*rows, last // values * width)


def natural_dtype(header: Header) -> Dtype:
    """The dtype that a file is best converted to.

    Weights in a few bits are far from what they were before; 16 bits hold them well enough, and
    models in these formats are large. bfloat16, because some models overflow float16.
    """
    names = {_name(tensor.type) for tensor in header.tensors.values()}
    return "float32" if names <= {*_FLOAT32} else "bfloat16"


def _name(number: int) -> str:
    try:
        return GGMLQuantizationType(number).name
    except ValueError:
        return f"type {number}"


def _block(tensor: Tensor) -> tuple[int, int]:
    """Values and bytes of a block of a tensor's type."""
    values, width = GGML_QUANT_SIZES[GGMLQuantizationType(tensor.type)]
    return int(values), int(width)
