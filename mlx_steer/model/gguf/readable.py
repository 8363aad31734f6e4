"""Which tensors of a GGUF file MLX reads rightly; checked before it reads any.

On its own, MLX would read past the end of a truncated file and misread some quantisations.
"""

import math

from mlx_steer.errors import ModelError
from mlx_steer.gguf_header import Header

# Type number -> name, values per block, bytes per block, for the types MLX reads exactly.
_READABLE = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    8: ("Q8_0", 32, 34),
}
# MLX 0.32 opens some of these too, but gets every other block of Q4_K wrong and rounds Q2_K, Q6_K
# and BF16 to float16, without a word.
_UNREADABLE = {6: "Q5_0", 7: "Q5_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K"}
_UNREADABLE |= {20: "IQ4_NL", 23: "IQ4_XS", 30: "BF16", 39: "MXFP4"}


def check_data(header: Header) -> None:
    """Raises ModelError for a type MLX cannot read or a tensor past the end of the file."""
    size = header.path.stat().st_size
    types = {tensor.type for tensor in header.tensors.values()}
    if unreadable := sorted(types - _READABLE.keys()):
        names = ", ".join(_UNREADABLE.get(number, f"type {number}") for number in unreadable)
        raise ModelError(
            f"{header.path} holds {names} tensors, which MLX cannot read exactly; use a file in "
            f"{', '.join(name for name, _, _ in _READABLE.values())}."
        )
    for tensor in header.tensors.values():
        _, values, width = _READABLE[tensor.type]
        end = header.data_start + tensor.offset + math.prod(tensor.shape) // values * width
        if end > size:
            raise ModelError(f"{header.path} is truncated; download or copy it again.")
