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
    codes = np.rint(vectors / safe)
    errors = np.linalg.norm(vectors - codes * scales[:, None], axis=1)
    # One rounding step more, so that the bound also holds after the float32 arithmetic of this very line.
    return Codes(codes.astype(np.int8), scales, np.nextafter(errors.astype(np.float32), np.float32(np.inf)))
