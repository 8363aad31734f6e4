import os

# The tests' products are tiny: threads would only get into each other's way.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from hypothesis import settings

import mlx_steer  # noqa: F401  (before mlx: it puts OpenBLAS in front of it)

# A slow machine is no failure.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
