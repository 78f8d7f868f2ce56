"""int8 codes: how near they come, and that the bound on what they cost is a bound."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from gemma_cli.rag.quantize import LEVELS, Codes, quantize

matrices = arrays(
    np.float32, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12), elements=st.floats(-1e6, 1e6, width=32)
)


def true_errors(vectors: NDArray[np.float32], found: Codes) -> NDArray[np.float64]:
    """Length of what each row lost, in float64, in which a product of code and scale is exact."""
    back = found.codes.astype(np.float64) * found.scales.astype(np.float64)[:, None]
    lost: NDArray[np.float64] = np.linalg.norm(vectors.astype(np.float64) - back, axis=1)
    return lost


def unit_rows(count: int, dimension: int, seed: int = 1) -> NDArray[np.float32]:
    vectors = np.random.default_rng(seed).standard_normal((count, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@given(matrices)
@settings(max_examples=300)
def test_the_bound_holds(vectors: NDArray[np.float32]) -> None:
    """No row is further from its code times its scale than its stated error, tiny and huge rows included."""
    found = quantize(vectors)
    assert (found.codes.dtype, found.scales.dtype, found.errors.dtype) == (np.int8, np.float32, np.float32)
    assert found.codes.shape == vectors.shape
    assert (np.abs(found.codes.astype(np.int64)) <= LEVELS).all()
    assert (true_errors(vectors, found) <= found.errors.astype(np.float64)).all()


@given(matrices)
@settings(max_examples=200)
def test_no_number_is_off_by_more_than_half_a_level(vectors: NDArray[np.float32]) -> None:
    """Each number lies within half its row's scale of what its code stands for (float32 rounding apart)."""
    found = quantize(vectors)
    back = found.codes.astype(np.float64) * found.scales.astype(np.float64)[:, None]
    room = 0.5 * found.scales.astype(np.float64) * (1 + 1e-4) + 2e-45 * LEVELS
    assert (np.abs(vectors - back) <= room[:, None]).all()


def test_the_bound_holds_and_is_tight_for_many_unit_rows() -> None:
    """20,000 random rows: never above the bound, and the bound is what is really lost, not a multiple of it."""
    vectors = unit_rows(20_000, 384)
    found = quantize(vectors)
    lost = true_errors(vectors, found)
    assert (lost <= found.errors).all()
    np.testing.assert_allclose(found.errors, lost, rtol=1e-6)
    assert found.errors.max() < 0.02  # at 384 numbers a row; a loose one would send every memory to the exact pass


@given(st.integers(0, 10_000), st.integers(2, 64))
def test_a_product_of_codes_is_within_the_errors_of_the_true_one(seed: int, dimension: int) -> None:
    """|v·q - code product| <= e + f + ef for errors e and f: what the index relies on, for unit rows."""
    vectors = unit_rows(8, dimension, seed)
    found = quantize(vectors)
    scales, errors = found.scales.astype(np.float64), found.errors.astype(np.float64)
    codes = found.codes.astype(np.float64)
    product = codes @ codes.T * scales[:, None] * scales[None, :]
    exact = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    allowed = errors[:, None] + errors[None, :] + errors[:, None] * errors[None, :]
    assert (np.abs(product - exact) <= allowed + 1e-6).all()  # the rows have length 1 to within float32 only


def test_a_row_of_zeros_stays_zero() -> None:
    """Codes, scale and (but for the last bit of a float) error are zero, without a warning."""
    found = quantize(np.zeros((2, 5), np.float32))
    assert not found.codes.any()
    assert not found.scales.any()
    assert (found.errors < 1e-40).all()


def test_the_largest_number_of_a_row_takes_the_last_level() -> None:
    """Each row has a scale of its own, so that a row of small numbers is as fine as one of large ones."""
    found = quantize(np.array([[1.0, -0.5, 0.0], [-1e-3, 5e-4, 0.0]], np.float32))
    assert found.codes.tolist() == [[127, -64, 0], [-127, 64, 0]]
    assert found.scales == pytest.approx([1 / 127, 1e-3 / 127])


@pytest.mark.parametrize("shape", [(0, 4), (0, 0), (3, 0)])
def test_nothing_quantises_to_nothing(shape: tuple[int, int]) -> None:
    """No rows, or rows without numbers, keep their shape."""
    found = quantize(np.zeros(shape, np.float32))
    assert found.codes.shape == shape
    assert found.scales.shape == found.errors.shape == shape[:1]


def test_the_given_vectors_are_left_alone() -> None:
    """Read-only input works, so it is not written to."""
    vectors = unit_rows(3, 8)
    vectors.setflags(write=False)
    assert quantize(vectors).codes.shape == (3, 8)
