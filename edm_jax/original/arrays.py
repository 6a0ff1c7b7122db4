"""Decodes NumPy arrays and numbers from a pickle's inert nodes, and checks every claim.

Up to protocol 4, an array is numpy.core.multiarray._reconstruct and a state; in protocol
5 it is numpy.core.numeric._frombuffer. NumPy 2 calls the package numpy._core.
"""

import math
import re
from typing import Any

import numpy as np

from edm_jax.original import pickles
from edm_jax.original.pickles import Global, Node, Refused

_MAX_DIMS = 8
_DTYPE = re.compile("b1|[iu][1248]|f[248]")


def decode(value: Any) -> Any:
    """Decodes a node of a NumPy array or number; returns any other value unchanged.

    The array is a read-only view of the file.

    Raises:
        Refused: type, shape and order do not match the bytes.
    """
    match value:
        case Node(
            pickles.RECONSTRUCT,
            (Global(pickles.NDARRAY), *_),
            (int(), shape, dtype, bool(fortran), memoryview() as data),
        ):
            return _array(data, dtype, shape, "F" if fortran else "C")
        case Node(pickles.FROMBUFFER, (memoryview() as data, dtype, shape, order)):
            return _array(data, dtype, shape, order)
        case Node(
            pickles.FROMBUFFER, (memoryview() as data, dtype, shape, "K", tuple(axes))
        ):
            array = _array(data, dtype, shape, "C")
            whole = all(type(axis) is int for axis in axes)
            if whole and sorted(axes) == list(range(array.ndim)):
                return array.transpose(axes)
        case Node(pickles.SCALAR, (dtype, memoryview() as data)):
            return _array(data, dtype, (), "C")
        case Node(pickles.RECONSTRUCT | pickles.FROMBUFFER | pickles.SCALAR):
            pass
        case _:
            return value
    raise Refused("holds a NumPy array of an unknown form")


def _array(data: memoryview, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    form = _dtype(dtype)
    if type(shape) is not tuple or order not in ("C", "F"):
        raise Refused("holds a NumPy array of an unknown form")
    sizes = [n for n in shape if type(n) is int and 1 <= n <= len(data)]
    known = len(sizes) == len(shape) <= _MAX_DIMS
    if not known or math.prod(sizes) * form.itemsize != len(data):
        raise Refused(
            f"gives a NumPy array of {len(data)} bytes a shape that does not match"
        )
    return np.ndarray(shape, form, data, order=order)


def _dtype(node: Any) -> np.dtype:
    """The dtype of plain numbers, with byte order; objects and records are refused."""
    match node:
        case Node(pickles.DTYPE, (str(code), *_), state) if _DTYPE.fullmatch(code):
            match state:
                case (int(), "<" | ">" | "|" as order, None, None, None, *_):
                    return np.dtype(code).newbyteorder(order)
    raise Refused("holds a NumPy array whose elements are not plain numbers")
