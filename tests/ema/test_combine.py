"""Sums of float32 sources, against float64."""

import numpy as np
import pytest

from edm_jax import ema
from edm_jax.ema import combine, solver

UNIT = 2.0**-24
SIZE = 20_000


class Row:
    """A source in memory."""

    local, unit_roundoff = True, UNIT

    def __init__(self, name, numbers):
        self.name, self._numbers, self.dtype = name, numbers, numbers.dtype
        self.table = {"w": numbers.shape}

    def read(self, start, out):
        out[:] = self._numbers[start : start + len(out)]

    def verify(self, chunk, digest):
        pass


def summed(rows, lengths, dtype=np.float32):
    """The sums of a plan for 64 snapshots of two lengths, and its coefficients."""
    stored = [
        ((i // 2 + 1) * 8.0, ema.PowerProfile((0.05, 0.1)[i % 2])) for i in range(128)
    ]
    solutions = solver.solve(stored, [(512.0, ema.PowerProfile(s)) for s in lengths])
    coefficients = np.stack([solution.coefficients for solution in solutions], axis=1)
    sources = [Row(str(i), row) for i, row in enumerate(rows)]
    found = np.empty((len(lengths), SIZE), dtype)

    def store(start, values):
        found[:, start : start + values.shape[1]] = values

    plan = combine.Plan(sources, solutions, coefficients)
    list(combine.combine(plan, [0], store, dtype=np.dtype(dtype)))
    return found, coefficients


@pytest.fixture(scope="module")
def rows():
    base = np.random.default_rng(0).standard_normal(SIZE + 2000)
    usual = np.random.default_rng(1).standard_normal(SIZE)
    # As those of one training are: much alike.
    near = [usual + 0.1 * base[9 * i : 9 * i + SIZE] for i in range(128)]
    return np.stack(near).astype(np.float32)


@pytest.mark.parametrize("lengths", [(0.03,), (0.02, 0.07, 0.2)])
def test_float32_sums_are_within_their_bound_and_as_exact_as_the_files(rows, lengths):
    found, x = summed(rows, lengths)
    error = found - x.T @ rows.astype(np.float64)
    assert (np.abs(error) <= 34 * UNIT * (np.abs(x).T @ np.abs(rows))).all()
    rms = np.sqrt((error**2).mean(axis=1)) / (UNIT * np.linalg.norm(x, axis=0))
    assert (rms < 1.6).all()  # the files' own rounding is 0.4254


def test_a_target_is_the_same_whatever_others_there_are(rows):
    alone, _ = summed(rows, (0.07,))
    among, _ = summed(rows, (0.02, 0.07, 0.2))
    assert np.abs(alone[0] - among[1]).max() < 1e-6


def test_float64_is_summed_in_float64(rows):
    found, x = summed(rows.astype(np.float64), (0.02, 0.2), np.float64)
    wanted = x.T @ rows.astype(np.float64)
    assert np.abs(found - wanted).max() < 1e-13 * np.abs(x).sum(axis=0).max() * 10


def test_narrow_formats_are_widened_without_loss(rows):
    mixed = [r.astype(np.float16 if i % 3 else np.float32) for i, r in enumerate(rows)]
    found, x = summed(mixed, (0.1,))
    wanted = x.T @ np.stack([row.astype(np.float64) for row in mixed])
    assert np.abs(found - wanted).max() < 34 * UNIT * np.abs(x).sum() * 6
