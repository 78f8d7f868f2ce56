"""float32 vectors -> int8 codes, with a bound on what that costs."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

LEVELS: Final = 127


@dataclass(frozen=True, slots=True)
class Codes:
    """Quantised rows: vector ≈ code * scale, and |vector - code * scale| <= error (Euclidean), row by row."""

    codes: NDArray[np.int8]
    scales: NDArray[np.float32]
    errors: NDArray[np.float32]


def quantize(vectors: NDArray[np.float32]) -> Codes:
    """Symmetric int8 with one scale a row. `vectors` has shape [n, dimension]; zero rows stay zero."""
    scales = np.abs(vectors).max(axis=1, initial=0.0) / np.float32(LEVELS)
    safe = np.where(scales > 0, scales, np.float32(1))[:, None]
    # A scale among the smallest numbers of float32 may be rounded down so far that the largest code is above LEVELS.
    codes = np.clip(np.rint(vectors / safe), -LEVELS, LEVELS).astype(np.int8)
    # In float64: in float32 the rounding of this very line would be larger than a small error. Then rounded up.
    errors = np.linalg.norm(vectors - codes * scales.astype(np.float64)[:, None], axis=1)
    return Codes(codes, scales, np.nextafter(errors.astype(np.float32), np.float32(np.inf)))
