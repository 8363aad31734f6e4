"""Agreement of two raters."""

import math
from collections import Counter
from collections.abc import Hashable, Sequence

from mlx_steer.stats.arguments import same_length


def cohens_kappa(a: Sequence[Hashable], b: Sequence[Hashable]) -> float:
    """Agreement of two raters beyond chance (Cohen 1960): 1 is full agreement, 0 what chance gives.

    Returns nan if both raters gave one and the same label throughout: chance alone explains that.

    Raises:
        ValueError: If lengths differ or there are no items.
    """
    # Not scikit-learn's, which calls chance agreement -2e-16 in some tables.
    n = same_length(a, b)
    agreed = sum(x == y for x, y in zip(a, b, strict=True))
    left, right = Counter(a), Counter(b)
    # Times n squared on both sides: in whole numbers, full and chance agreement come out exactly.
    chance = sum(count * right[label] for label, count in left.items())
    return (agreed * n - chance) / (n * n - chance) if chance < n * n else math.nan
