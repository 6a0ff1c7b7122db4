"""Profiles whose weights the user gives: a table, or a function of time."""

import csv
import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

import numpy as np

from edm_jax import files
from edm_jax.ema.profiles import Profile


@dataclasses.dataclass(frozen=True)
class TableProfile(Profile):
    """Piecewise linear weights through points (nimg, weight), zero outside them.

    Only the ratios of the weights matter.

    Raises:
        ValueError: nimg does not rise from 0 or more, or the weights are not finite, are
            negative, or are all zero.
    """

    nimg: tuple[float, ...]
    weight: tuple[float, ...]
    kind: ClassVar[str] = "table"
    form: ClassVar[str] = "table:FILE.csv"

    @classmethod
    def parse(cls, words: str) -> Self:
        """Reads rows nimg,weight; raises ValueError or Damaged."""
        path = os.path.expanduser(words)
        if not os.path.isfile(path):
            raise ValueError(f"there is no file {words!r}.")
        try:
            text = files.read_bytes(path).decode()
            rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
            nimg, weight = zip(*[map(float, row) for row in rows], strict=True)
        except files.Damaged:
            raise
        except (ValueError, csv.Error):
            raise ValueError(
                f"the rows of {words} must be pairs nimg,weight."
            ) from None
        return cls(nimg, weight)

    def __post_init__(self) -> None:
        object.__setattr__(self, "nimg", tuple(map(float, self.nimg)))
        object.__setattr__(self, "weight", tuple(map(float, self.weight)))
        x, w = np.array(self.nimg), np.array(self.weight)
        if len(x) < 2 or len(x) != len(w):
            raise ValueError(
                "A table of weights needs two points (nimg, weight) or more."
            )
        if not (np.isfinite(x).all() and x[0] >= 0 and (np.diff(x) > 0).all()):
            raise ValueError(
                "A table's nimg must be 0 or more, and rise from row to row."
            )
        if not (np.isfinite(w).all() and (w >= 0).all() and w.any()):
            raise ValueError(
                "A table's weights must be finite and 0 or more, and not all zero."
            )

    def density(self, tau: np.ndarray, t: float) -> np.ndarray:
        """Linear between the points."""
        tau = np.asarray(tau, np.float64)
        ratio = np.array(self.weight) / max(self.weight)  # huge weights would overflow
        weight = np.interp(tau, self.nimg, ratio, left=0.0, right=0.0)
        return np.where(tau <= t, weight, 0.0)

    def edges(self, t: float) -> Sequence[float]:
        return self.nimg

    @property
    def label(self) -> str:
        points = json.dumps([self.nimg, self.weight]).encode()
        return f"table-{hashlib.sha256(points).hexdigest()[:8]}"


@dataclasses.dataclass(frozen=True)
class FunctionProfile(Profile):
    """Weights from a named function of τ in nimg (an array), up to a factor.

    A file stores only its name.
    """

    name: str
    function: Callable[[np.ndarray], np.ndarray] | None = None
    kind: ClassVar[str] = "function"
    form: ClassVar[str] = "function:FILE.py:NAME"

    @classmethod
    def parse(cls, words: str) -> Self:
        """Runs the user's file; raises ValueError or Damaged."""
        file, _, name = os.path.expanduser(words).rpartition(":")
        if not os.path.isfile(file):
            raise ValueError(f"write {cls.form}; there is no file {file!r}.")
        found = files.run_python(file).get(name)
        if not callable(found):
            raise files.Damaged(file, f"has no function {name!r}.")
        function: Any = found
        return cls(name, function)

    def density(self, tau: np.ndarray, t: float) -> np.ndarray:
        """The function's values up to t; raises ValueError if they are not weights."""
        if self.function is None:
            raise ValueError(
                f"Only the name of the function {self.name!r} was stored: pass the "
                "function itself."
            )
        tau = np.asarray(tau, np.float64)
        try:
            returned = np.asarray(self.function(tau), np.float64)
            weight = np.broadcast_to(returned, tau.shape)
        except (Exception, SystemExit) as error:
            raise ValueError(
                f"The function {self.name!r} of an array of nimg failed: "
                f"{type(error).__name__}: {error}"
            ) from error
        if not (np.isfinite(weight).all() and (weight >= 0).all()):
            raise ValueError(
                f"The weights that {self.name!r} returns must all be finite and at least "
                "0."
            )
        return np.where(tau <= t, weight, 0.0)

    def edges(self, t: float) -> Sequence[float]:
        """A grid, because a function may jump anywhere."""
        return [*(t * np.arange(1, 2049) / 2048)]

    @property
    def label(self) -> str:
        safe = "".join(c if c.isalnum() or c in "._" else "-" for c in self.name)
        return f"function-{safe}"
