"""What a data set is like, found by reading it: for a config, and for a look at it."""

import concurrent.futures
import dataclasses
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import xxhash

from edm_jax import files
from edm_jax.data import members, pictures
from edm_jax.data.readers import Rows

SAMPLE = 5000  # examples that are read
LISTS = ("labels.csv", "labels.json", "dataset.json")


@dataclasses.dataclass(frozen=True)
class Measured:
    """Of a split, from `read` of its `count` examples."""

    count: int
    read: int
    shape: tuple[int, int, int]
    dtype: str
    mean: tuple[float, ...]  # per channel, in stored units
    std: tuple[float, ...]
    detail: float  # standard deviation of neighbours' differences / sqrt(2), over std
    lowest: float
    highest: float
    counts: np.ndarray  # examples of each class
    bad: dict[int, str]  # {row: why}
    duplicates: list[tuple[int, int]]  # rows whose images are the same bytes
    digests: dict[int, int]  # {of an image's bytes: the first row that has it}


def measure(rows: Rows, on_progress: Callable[[int, int], object]) -> Measured:
    """Reads up to SAMPLE examples, spread evenly over a split.

    Args:
        rows: the split.
        on_progress: takes the examples read and their number.

    Raises:
        ValueError: none is good.
    """
    chosen = np.unique(np.linspace(0, len(rows) - 1, SAMPLE).round().astype(int))

    def read(row: int) -> tuple[np.ndarray, int] | str:
        try:
            image, label = rows.read(np.array([row]))
        except ValueError as error:
            return str(error)
        return image[0], int(label[0])

    totals: list[np.ndarray] = []
    bad, seen, duplicates, labels = {}, {}, [], []
    lowest, highest, dtype = np.inf, -np.inf, ""
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
        # Some at a time: map() would hold everything that it has read.
        for start in range(0, len(chosen), 256):
            part = chosen[start : start + 256].tolist()
            for row, found in zip(part, threads.map(read, part), strict=True):
                if isinstance(found, str):
                    bad[row] = found
                    continue
                image, label = found
                digest = xxhash.xxh3_64_intdigest(np.ascontiguousarray(image).tobytes())
                if digest in seen:
                    duplicates.append((seen[digest], row))
                seen.setdefault(digest, row)
                labels.append(label)
                with np.errstate(over="ignore", invalid="ignore"):
                    totals.append(_sums(image.astype(np.float64)))
                lowest = min(lowest, float(image.min()))
                highest = max(highest, float(image.max()))
                dtype = str(image.dtype)
            on_progress(min(start + 256, len(chosen)), len(chosen))
    if not totals:
        raise ValueError(f"No example is good; the last: {bad[max(bad)]}")
    if not np.isfinite(totals).all():
        place = getattr(rows, "place", lambda _: "the data")(0)
        raise ValueError(
            f"{place} and others hold values from {lowest:g} to {highest:g}: too large to "
            "train on."
        )
    first, second, steps = np.mean(totals, axis=0)
    std = np.sqrt(np.maximum(second - first**2, 0))
    detail = np.sqrt(steps / 2) / np.maximum(std, 1e-12)
    return Measured(
        len(rows), len(chosen), rows.shape, dtype, tuple(first), tuple(std),
        float(detail.mean()), lowest, highest, np.bincount(labels), bad, duplicates, seen,
    )  # fmt: skip


def _sums(image: np.ndarray) -> np.ndarray:
    """(3, C): mean of an image's values, of their squares, of neighbours' differences."""
    steps = [np.square(np.diff(image, axis=axis)) for axis in (0, 1)]
    flat = [each.reshape(-1, image.shape[-1]) for each in steps]
    differences = np.concatenate(flat).mean(axis=0) if image[..., 0].size > 1 else 0.0
    mean, square = image.mean((0, 1)), np.square(image).mean((0, 1))
    return np.stack([mean, square, np.broadcast_to(differences, mean.shape)])


@dataclasses.dataclass(frozen=True)
class Found:
    """Which reader reads a place, and what was seen there."""

    reader: str
    splits: tuple[str, str]
    settings: dict[str, object]
    sizes: np.ndarray | None = None  # (n, 2) width and height of pictures
    modes: Counter[str] | None = None  # of them
    ignored: int = 0  # files of other kinds


def find(path: str) -> Found:
    """Tells which reader reads a file or folder.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: no reader of this library reads what is there.
    """
    place = Path(path)
    if not place.exists():
        raise FileNotFoundError(f"There are no data at {path}.")
    if place.suffix in (".npz", ".npy"):
        return Found("numpy", ("train", "heldout"), {})
    if place.is_dir() and (splits := _splits(place, ".npz") or _splits(place, ".npy")):
        return Found("numpy", splits, {})
    if (place / "dataset_info.json").exists():
        raise ValueError(
            f"{path} is a prepared TFDS data set: name it with data.name, as "
            "docs/data.md says."
        )
    stored = members.PICTURES + (".npy",)
    found = members.open_members(path, stored)
    arrays = np.array([bytes(n).lower().endswith(b".npy") for n in found.names])
    if arrays.all() or (
        found.extra("dataset.json") is not None and _one_size(found, ~arrays)
    ):
        lists = found.extra("dataset.json") is not None
        others = found.ignored - lists
        return Found("original", ("train", "heldout"), {}, ignored=others)
    listed = [n for n in LISTS if found.extra(n) is not None]
    sizes, modes = _headers(found, np.flatnonzero(~arrays))
    settings: dict[str, object] = {"labels": listed[0]} if listed else {}
    settings["channels"] = 1 if set(modes) <= {"1", "L", "LA", "I;16", "I"} else 3
    folder_splits = place.is_dir() and _splits(place, "")
    splits = folder_splits or ("train", "heldout")
    others = found.ignored - len(listed)
    return Found("images", splits, settings, sizes, modes, others)


def _splits(place: Path, suffix: str) -> tuple[str, str] | None:
    def there(name: str) -> bool:
        path = place / f"{name}{suffix}"
        return path.is_file() if suffix else path.is_dir()

    for heldout in ("heldout", "validation", "valid", "val", "test"):
        if there("train") and there(heldout):
            return "train", heldout
    return None


def _headers(
    found: members.Members, chosen: np.ndarray
) -> tuple[np.ndarray, Counter[str]]:
    """(n, 2) sizes and the modes of up to SAMPLE pictures; bad ones are left out."""
    some = chosen[
        np.unique(np.linspace(0, len(chosen) - 1, SAMPLE).round().astype(int))
    ]
    sizes, modes = [], Counter()
    for member in some.tolist():
        try:
            image = pictures.opened(found.read(member))
        except ValueError:
            continue
        sizes.append(image.size)
        modes[image.mode] += 1
    if not sizes:
        raise files.Damaged(found.path, "holds no picture that can be read.")
    return np.array(sizes), modes


def _one_size(found: members.Members, chosen: np.ndarray) -> bool:
    sizes, _ = _headers(found, np.flatnonzero(chosen)[:50])
    return len(np.unique(sizes, axis=0)) == 1
