"""A reader of NumPy's files: .npz and .npy."""

import dataclasses
import os
import struct
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from edm_jax import files
from edm_jax.data import shares
from edm_jax.fields import Fraction, Settings

if TYPE_CHECKING:
    from edm_jax.data.config import DataConfig

_BLOCKS, _BLOCK_BYTES = 256, 1 << 16  # of a file, for its fingerprint


@dataclasses.dataclass(frozen=True)
class Arrays(Settings):
    """Images (N, H, W, C) or (N, H, W) in an .npz or .npy file, data.name.

    An .npz holds them as `image` and labels (N,) as `label`; an .npy has labels in
    NAME.labels.npy beside it. What is not compressed is read in place, whatever its size.
    Splits: 'train', 'heldout' and 'all'; or data.name is a folder that holds SPLIT.npz
    or SPLIT.npy for each split.
    """

    image: str = "image"  # the names of the arrays in an .npz
    label: str = "label"
    heldout: Fraction = 0.1  # of the images

    def prepare(self, data: "DataConfig") -> None:
        """Nothing is built."""

    def fingerprint(self, data: "DataConfig") -> dict[str, Any]:
        """The file's name, its size, and a checksum of blocks spread over it."""
        path = _path(data, data.train_split)
        size = os.path.getsize(path)
        digest = xxhash.xxh3_128()
        with files.open_regular(path) as file:
            for at in np.linspace(0, size, _BLOCKS, endpoint=False).astype(int):
                file.seek(int(at))
                digest.update(file.read(_BLOCK_BYTES))
        return {"name": path.name, "bytes": size, "xxh128": digest.hexdigest()}

    def open(
        self, data: "DataConfig", split: str, num_classes: int | None
    ) -> "ArrayRows":
        """Opens a split."""
        path = _path(data, split)
        images, labels = self._read(path, num_classes != 0)
        if images.ndim == 3:
            images = images[..., None]
        if images.ndim != 4 or images.dtype.kind not in "buif" or not len(images):
            raise files.Damaged(
                path,
                f"holds images of shape {images.shape} and type {images.dtype}; they "
                "must be numbers (N, H, W, C) or (N, H, W).",
            )
        chosen = np.arange(len(images))
        if not Path(data.path).is_dir():
            names = (b"%d" % i for i in range(len(images)))
            chosen = shares.select(names, split, self.heldout, str(path))
        if num_classes == 0:
            labels = np.zeros(len(images), np.int32)
        elif labels is None:
            raise files.Damaged(
                path, "has no labels; set network.num_classes=0, or add them."
            )
        elif labels.shape != images.shape[:1] or labels.dtype.kind not in "bui":
            raise files.Damaged(
                path,
                f"has labels of shape {labels.shape} and type {labels.dtype}; they must "
                f"be class numbers ({len(images)},).",
            )
        rows = ArrayRows(str(path), images, labels, chosen)
        if num_classes != 0:
            rows.check_labels(num_classes, data.on_bad)
        return rows

    def _read(self, path: Path, labelled: bool) -> tuple[np.ndarray, np.ndarray | None]:
        if path.suffix == ".npy":
            beside = path.with_suffix(".labels.npy")
            labels = _load(beside) if labelled and beside.exists() else None
            return _load(path), labels
        found = _names(path)
        if self.image not in found:
            raise files.Damaged(
                path,
                f"has no array {self.image!r}; name one with data.reader.image: it has "
                f"{', '.join(found) or 'none'}.",
            )
        labels = None
        if labelled and self.label in found:
            labels = np.array(_member(path, self.label))
        return _member(path, self.image), labels


class ArrayRows:
    """Some of the rows of an array, in memory or in a file."""

    draws = False
    is_sorted = True

    def __init__(
        self, path: str, images: np.ndarray, labels: np.ndarray, chosen: np.ndarray
    ):
        self._path, self._images, self._chosen = path, images, chosen
        self.labels = np.asarray(labels)[chosen].astype(np.int64)
        self.shape, self.dtype = images.shape[1:], images.dtype
        self.image_bytes = images[0].nbytes
        self.skipped: list[str] = []

    def __len__(self) -> int:
        return len(self._chosen)

    def check_labels(self, num_classes: int | None, on_bad: str) -> None:
        """Leaves bad labels out; raises ValueError where on_bad is 'stop'."""
        bound = num_classes or np.iinfo(np.int32).max
        bad = (self.labels < 0) | (self.labels >= bound)
        for first in np.flatnonzero(bad)[:1]:
            sentence = (
                f"{self.place(first)} has the label {self.labels[first]}; "
                f"network.num_classes={num_classes} takes labels from 0 below that"
            )
            if on_bad == "stop" or bad.all():
                raise ValueError(
                    f"{sentence}. Mend it, or leave such examples out with "
                    "data.on_bad=skip."
                )
            self.skipped.append(f"{bad.sum():,} examples without a class: {sentence}")
        self._chosen, self.labels = self._chosen[~bad], self.labels[~bad]

    def place(self, row: int) -> str:
        """Where a row is, for messages."""
        return f"{self._path}: image {self._chosen[row]}"

    def read(
        self, rows: np.ndarray, keys: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the images (n, H, W, C) and int32 labels (n,) of `rows` (n,)."""
        del keys
        image = np.array(self._images[self._chosen[rows]])
        if image.dtype.kind == "f":
            finite = np.isfinite(image).all(axis=(1, 2, 3))
            for row in rows[~finite][:1]:
                raise ValueError(
                    f"{self.place(row)} has values that are not finite (nan or inf)."
                )
        return image, self.labels[rows].astype(np.int32)


def _path(data: "DataConfig", split: str) -> Path:
    path = Path(data.path)
    if path.is_dir():
        for suffix in (".npz", ".npy"):
            if (inside := path / f"{split}{suffix}").exists():
                return inside
        raise FileNotFoundError(f"{path} has no {split}.npz and no {split}.npy.")
    if path.suffix not in (".npz", ".npy") or not path.exists():
        raise FileNotFoundError(
            f"{data.path} must be an .npz or .npy file, or a folder of one "
            "for each split."
        )
    return path


def _load(path: Path) -> np.ndarray:
    files.open_regular(path).close()  # NumPy would wait for a pipe
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise files.Damaged(
            path, f"is not an NPY file, or is damaged ({error})."
        ) from error


def _names(path: Path) -> list[str]:
    try:
        with files.open_regular(path) as file, zipfile.ZipFile(file) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except (zipfile.BadZipFile, OSError) as error:
        raise files.Damaged(
            path, f"is not an NPZ file, or is damaged ({error})."
        ) from error


def _member(path: Path, name: str) -> np.ndarray:
    """An array of an .npz: mapped where it is stored as it is, else read."""
    try:
        with zipfile.ZipFile(path) as archive:
            info = archive.getinfo(f"{name}.npy")
            if info.compress_type != zipfile.ZIP_STORED:
                with archive.open(info) as file:
                    return np.lib.format.read_array(file, allow_pickle=False)
        with open(path, "rb") as file:
            file.seek(info.header_offset + 26)
            file.seek(sum(struct.unpack("<HH", file.read(4))), os.SEEK_CUR)
            version = np.lib.format.read_magic(file)
            read = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
            shape, in_columns, dtype = read(file)
            if dtype.hasobject:  # mapped, its bytes would be taken for pointers
                raise ValueError("it holds Python objects")
            order = "F" if in_columns else "C"
            return np.memmap(path, dtype, "r", file.tell(), shape, order)
    # Damaged files make it raise many kinds.
    except Exception as error:
        raise files.Damaged(path, f"has a damaged array {name!r} ({error}).") from error
