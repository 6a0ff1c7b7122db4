"""Weights of a made-up training, the same in NumPy and in PyTorch: a random walk."""

import numpy as np

STEPS = 400
SHAPES = {"0.weight": (3, 2), "0.bias": (3,), "1.weight": (3,), "1.bias": (3,)}
SIZE = sum(int(np.prod(shape)) for shape in SHAPES.values())


def weights():
    """(STEPS + 1, SIZE) float64: row n are the weights after step n, as float32 has them."""
    moves = np.random.default_rng(7).standard_normal((STEPS + 1, SIZE)) / 16
    return moves.cumsum(axis=0).astype(np.float32).astype(np.float64)


def named(row):
    """A row as arrays by name."""
    found, start = {}, 0
    for name, shape in SHAPES.items():
        stop = start + int(np.prod(shape))
        found[name], start = row[start:stop].reshape(shape), stop
    return found


def row(arrays):
    """Arrays by name as a row."""
    return np.concatenate([np.ravel(arrays[name]) for name in SHAPES]).astype(
        np.float64
    )
