"""Reads values from JSON objects and checks their types."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edm_jax import files
from edm_jax.report.runs import Damage, Json

LARGEST, SMALLEST = 1e40, 1e-40  # magnitudes beyond these do not fit float32


class Fields:
    """A JSON object whose values are checked when they are read.

    A value that is missing, null or wrong reads as None, '' or empty.

    Args:
        value: the object.
        faults: collects one sentence for each wrong value.
        where: a prefix for the names of fields in these sentences.
    """

    def __init__(self, value: Json, faults: list[str], where: str = ""):
        self.value, self._faults, self._where = value, faults, where

    def number(self, *keys: str) -> float | None:
        """A number, which may be infinite or NaN."""
        value = self._take(keys, "a number", _is_number)
        return None if value is None else float(in_range(np.array(float(value))))

    def count(self, *keys: str) -> int | None:
        """A whole number from 0."""
        value = self._take(keys, "a whole number from 0", is_count)
        return None if value is None else int(value)

    def text(self, *keys: str) -> str:
        """A text, on one line and safe to print."""
        value = self._take(keys, "a text", lambda value: isinstance(value, str))
        return one_line(value or "")

    def texts(self, *keys: str) -> list[str]:
        """A list of texts."""
        return self._take(keys, "a list of texts", _is_list_of(str)) or []

    def object(self, *keys: str) -> Json:
        """A JSON object."""
        is_object = _is_list_of(dict)
        return self._take(keys, "an object", lambda v: is_object([v])) or {}

    def objects(self, *keys: str) -> list["Fields"]:
        """A list of JSON objects."""
        found = self._take(keys, "a list of objects", _is_list_of(dict)) or []
        name = f"{self._where}{'.'.join(keys)}"
        return [Fields(v, self._faults, f"{name}.{i}.") for i, v in enumerate(found)]

    def _take(
        self, keys: Sequence[str], due: str, is_due: Callable[[Any], bool]
    ) -> Any:
        value: Any = self.value
        for depth, key in enumerate(keys):
            if not isinstance(value, dict):
                return self._wrong(keys[:depth], value, "an object")
            value = value.get(key)
            if value is None:
                return None
        return value if is_due(value) else self._wrong(keys, value, due)

    def _wrong(self, keys: Sequence[str], value: Any, due: str) -> None:
        fault = f"{self._where}{'.'.join(keys)} is {_shown(value)}, not {due}"
        if fault not in self._faults:
            self._faults.append(fault)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_count(value: Any) -> bool:
    return _is_number(value) and 0 <= value < 2**63 and value == int(value)


def _is_list_of(kind: type) -> Callable[[Any], bool]:
    return lambda v: isinstance(v, list) and all(isinstance(e, kind) for e in v)


def _shown(value: Any) -> str:
    return f"{value:g}" if _is_number(value) else files.json_kind(value)


def one_line(text: str) -> str:
    return files.printable(" ".join(text.split()))


def in_range(values: np.ndarray) -> np.ndarray:
    """Makes values infinite beyond LARGEST and zero below SMALLEST."""
    size = np.abs(values)
    values = np.where(size > LARGEST, np.copysign(np.inf, values), values)
    return np.where(size < SMALLEST, 0.0, values)


def opened(path: Path, read: Callable[[Path], Any], damage: list[Damage], absent: Any):
    """Calls `read` on a file; returns `absent` if it is missing or damaged."""
    try:
        return read(path)
    except FileNotFoundError:
        return absent
    except files.Damaged as error:
        damage.append(Damage(path.name, error.reason.rstrip(".")))
        return absent


def few(faults: Sequence[str]) -> str:
    more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
    return files.printable("; ".join(faults[:3])) + more
