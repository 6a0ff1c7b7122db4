"""Class numbers of files: from their folders, or from a list of names and labels."""

import csv
import io
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from edm_jax import files
from edm_jax.data import listing

UNLABELLED = -1
_HEADINGS = ("file", "file_name", "filename", "image", "name", "path")


def of_folders(names: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Class numbers (N,) int32 by the first folder of each name, and the classes.

    Classes are numbered in the order of their names; a file in no folder has none.
    A folder that holds everything, such as the one that was packed, is no class.
    """
    ends = os.fsdecode(min(map(bytes, names))), os.fsdecode(max(map(bytes, names)))
    above = os.fsencode(os.path.commonprefix(ends).rpartition("/")[0])
    if above:
        names = np.array([bytes(name)[len(above) + 1 :] for name in names], dtype="S")
    firsts = [bytes(name).partition(b"/") for name in names]
    found = sorted({first for first, slash, _ in firsts if slash})
    number = {name: i for i, name in enumerate(found)}
    labels = (number[n] if slash else UNLABELLED for n, slash, _ in firsts)
    return np.fromiter(labels, np.int32, len(names)), [
        each.decode(errors="replace") for each in found
    ]


def of_list(
    names: np.ndarray, raw: bytes, path: str
) -> tuple[np.ndarray, list[str] | None]:
    """Class numbers (N,) int32 by a list, and the classes where they are texts.

    The list is JSON, {"labels": [[name, class], ...]}, [[name, class], ...] or
    {name: class, ...}, or CSV, whose first two columns are name and class. Texts are
    numbered in their order. A file that is not on the list has no class.

    Args:
        names: the files, sorted.
        raw: the list's bytes.
        path: its name; one that ends with .csv is CSV.

    Raises:
        files.Damaged: it holds something else, names a file twice, or one that is not
            there.
    """
    if (numbers := listing.numbers(names, raw)) is not None:
        return numbers, None
    pairs = _csv(raw, path) if path.lower().endswith(".csv") else _json(raw, path)
    if pairs is None:
        return np.full(len(names), UNLABELLED, np.int32), None
    values, classes = _numbers([label for _, label in pairs], path)
    listed = np.array([name.encode() for name, _ in pairs], dtype="S")
    labels = np.full(len(names), UNLABELLED, np.int32)
    if np.array_equal(listed, names):
        return values, classes
    places = np.searchsorted(names, listed).clip(max=len(names) - 1)
    for missing in np.flatnonzero(names[places] != listed)[:1]:
        raise files.Damaged(
            path,
            f"names {files.short(pairs[missing][0])!r}, and there is no such file.",
        )
    counts = np.bincount(places, minlength=len(names))
    for twice in np.flatnonzero(counts > 1)[:1]:
        raise files.Damaged(path, f"names {bytes(names[twice]).decode()!r} twice.")
    labels[places] = values
    return labels, classes


def _csv(raw: bytes, path: str) -> list[tuple[str, str]]:
    try:
        table = list(csv.reader(io.StringIO(raw.decode("utf-8-sig"))))
    except (UnicodeError, csv.Error) as error:
        raise files.Damaged(path, f"is no CSV in UTF-8 ({error}).") from error
    rows = [row for row in table if row]
    if rows and rows[0][0].strip().lower() in _HEADINGS:
        del rows[0]
    for row in rows:
        if len(row) < 2:
            raise files.Damaged(
                path, f"has a line of one column: {files.short(row[0])!r}."
            )
    return [(row[0].strip(), row[1].strip()) for row in rows]


def _json(raw: bytes, path: str) -> list[tuple[str, Any]] | None:
    try:
        value = files.parse_json(raw)
    except ValueError as error:
        raise files.Damaged(path, f"is no valid JSON ({error}).") from None
    if isinstance(value, dict) and isinstance(value.get("labels", ""), list | None):
        value = value["labels"]
        if value is None:
            return None
    pairs = list(value.items()) if isinstance(value, dict) else value
    if not isinstance(pairs, list) or not all(
        isinstance(p, list | tuple) and len(p) == 2 and isinstance(p[0], str)
        for p in pairs
    ):
        raise files.Damaged(
            path,
            'holds no labels: {"labels": [[name, class], ...]}, [[name, class], ...] or '
            "{name: class, ...}.",
        )
    return pairs


def _numbers(labels: Sequence[Any], path: str) -> tuple[np.ndarray, list[str] | None]:
    """Labels as class numbers (N,) int32; texts that are no numbers in their order."""
    found = set(map(type, labels))
    if found == {str}:
        if all(label.isdecimal() for label in labels):
            return _numbers([int(label) for label in labels], path)
        classes = sorted(set(labels))
        number = {name: i for i, name in enumerate(classes)}
        return np.fromiter((number[x] for x in labels), np.int32, len(labels)), classes
    if not found <= {int, type(None)}:
        kinds = ", ".join(sorted(kind.__name__ for kind in found))
        raise files.Damaged(
            path,
            f"has labels of the types {kinds}; they must be class numbers or texts.",
        )
    given = (UNLABELLED if x is None else x for x in labels)
    try:
        return np.fromiter(given, np.int32, len(labels)), None
    except OverflowError:
        raise files.Damaged(path, "has a label beyond 32 bits.") from None
