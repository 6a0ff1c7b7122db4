"""Readers of folders of pictures, and of the original code's folders and ZIPs."""

import contextlib
import dataclasses
import functools
import io
import math
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from edm_jax import files
from edm_jax.data import images, labels, members, pictures, shares
from edm_jax.data.fitting import Fitting
from edm_jax.fields import Count, Fraction, Settings

if TYPE_CHECKING:
    from edm_jax.data.config import DataConfig


@dataclasses.dataclass(frozen=True)
class Images(Fitting):
    """Pictures of any size below the folder data.name, made R x R pixels large.

    Classes are the folders in data.name, or what `labels`, a CSV or JSON file there,
    says. Splits are the folders that data.train_split and
    data.heldout_split name, if there are both; else 'train', 'heldout' and 'all'.
    """

    resolution: Count = 64  # R
    labels: str = ""  # a file in the folder; '': the folders that the pictures are in
    heldout: Fraction = 0.1  # of the pictures, where no folder holds them

    def prepare(self, data: "DataConfig") -> None:
        """Nothing is built."""

    def fingerprint(self, data: "DataConfig") -> dict[str, Any]:
        """The folder's name and those of its files, their number and sizes."""
        return _fingerprint(data, _opened(data, members.PICTURES))

    def open(
        self, data: "DataConfig", split: str, num_classes: int | None
    ) -> "FileRows":
        """Opens a split."""
        found = _opened(data, members.PICTURES)
        inside = _folders(found, data)
        names, classes = found.names, None
        parts = [bytes(name).partition(b"/") for name in names] if inside else []
        if inside:
            names = np.array([rest for _, _, rest in parts], dtype="S")
        if self.labels:
            numbers, classes = _listed(found, self.labels)
            if numbers is None:
                path = os.path.join(found.path, self.labels)
                raise FileNotFoundError(f"{path}, data.reader.labels, is not there.")
            if (numbers == labels.UNLABELLED).all():
                path = os.path.join(found.path, self.labels)
                raise files.Damaged(path, "names none of the pictures.")
        else:
            numbers, classes = labels.of_folders(names)
        if inside:
            if split not in inside:
                raise ValueError(
                    f"{found.path} has no split {split!r}; its folders {inside} are its "
                    "splits."
                )
            wanted = os.fsencode(split)
            chosen = np.flatnonzero([first == wanted for first, _, _ in parts])
        else:
            chosen = shares.select(map(bytes, names), split, self.heldout, found.path)

        def example(
            name: bytes, encoded: bytes, draw: Callable[[], np.random.Generator]
        ) -> np.ndarray:
            del name
            return self.picture(encoded, draw)

        rows = FileRows(found, chosen, numbers, self.shape, np.uint8, example)
        rows.draws = self.fit == "random"
        rows.check_labels(num_classes, classes, data.on_bad)
        return rows


@dataclasses.dataclass(frozen=True)
class Original(Settings):
    """The original code's data: data.name is its folder, or its uncompressed ZIP.

    PNG files are 8-bit images of one size; NPY files hold arrays (C, H, W). Eight
    floating-point channels are a VAE's means m and standard deviations s of four latent
    channels: every use of an example draws m + s n, n ~ N(0, 1) (EDM2, App. A.1). Labels
    are those of dataset.json. Splits: 'train', 'heldout' and 'all'.
    """

    heldout: Fraction = 0.1  # of the examples

    def prepare(self, data: "DataConfig") -> None:
        """Nothing is built."""

    def fingerprint(self, data: "DataConfig") -> dict[str, Any]:
        """The names of its files, and their checksums (ZIP) or sizes (folder)."""
        return _fingerprint(data, _opened(data, _STORED))

    def open(
        self, data: "DataConfig", split: str, num_classes: int | None
    ) -> "FileRows":
        """Opens a split."""
        return self.opened(data, split, num_classes)

    def opened(
        self,
        data: "DataConfig",
        split: str,
        num_classes: int | None,
        as_stored: bool = False,
    ) -> "FileRows":
        """Opens a split; `as_stored`: means and deviations (H, W, 8) are not drawn from."""
        found = _opened(data, _STORED)
        names = map(bytes, found.names)
        chosen = shares.select(names, split, self.heldout, found.path)
        numbers = None
        if num_classes != 0:
            numbers, _ = _listed(found, "dataset.json")
        if numbers is None:
            numbers = np.full(len(found.names), labels.UNLABELLED, np.int32)
        shape, dtype, is_moments = _form(found, chosen, data.on_bad)
        draws = is_moments and not as_stored

        def example(
            name: bytes, encoded: bytes, draw: Callable[[], np.random.Generator]
        ) -> np.ndarray:
            if not name.lower().endswith(b".npy"):
                return images.decode(encoded, shape, dtype)
            array = _array(encoded)
            _check_form(array, shape, dtype, is_moments)
            image = array.transpose(1, 2, 0)
            return shares.latents(image, draw()) if draws else image

        whole = (*shape[:2], 8) if is_moments and as_stored else shape
        rows = FileRows(found, chosen, numbers, whole, dtype, example)
        rows.draws = draws
        rows.check_labels(num_classes, None, data.on_bad)
        return rows


class FileRows:
    """A split whose examples are files, decoded one by one."""

    is_sorted = True

    def __init__(
        self,
        found: members.Members,
        chosen: np.ndarray,
        numbers: np.ndarray,
        shape: tuple[int, int, int],
        dtype: Any,
        decode: Callable[..., np.ndarray],
    ):
        self._members, self._chosen, self._labels = found, chosen, numbers[chosen]
        self.shape, self.dtype, self._decode = shape, np.dtype(dtype), decode
        self.image_bytes = math.prod(shape) * self.dtype.itemsize
        self.draws = False
        self.skipped: list[str] = []
        self.classes: list[str] | None = None

    def __len__(self) -> int:
        return len(self._chosen)

    def check_labels(
        self, num_classes: int | None, classes: list[str] | None, on_bad: str
    ) -> None:
        """Compares labels with the network's classes, and leaves bad examples out.

        Raises:
            ValueError: labels are missing or too large, and on_bad is 'stop', or no
                example remains.
        """
        self.classes = classes
        path, given = self._members.path, self._labels
        if num_classes == 0:
            self._labels = np.zeros(len(self), np.int32)
            return
        if (given == labels.UNLABELLED).all():
            raise ValueError(
                f"{path} has no labels, and the network has "
                f"{num_classes or 'some'} classes; set network.num_classes=0."
            )
        if classes is not None and num_classes and len(classes) > num_classes:
            raise ValueError(
                f"{path} has {len(classes)} classes ({_some(classes)}), and "
                f"network.num_classes={num_classes}; set it to {len(classes)}."
            )
        bad = (given < 0) | (given >= (num_classes or math.inf))
        for first in np.flatnonzero(bad)[:1]:
            label = given[first]
            said = "has no label" if label < 0 else f"has the label {label}"
            sentence = (
                f"{self.place(first)} {said}; network.num_classes={num_classes} takes "
                "labels from 0 below that"
            )
            if on_bad == "stop" or bad.all():
                raise ValueError(
                    f"{sentence}. Mend it, or leave such examples out with "
                    "data.on_bad=skip."
                )
            self.skipped.append(f"{bad.sum():,} examples without a class: {sentence}")
        self._chosen, self._labels = self._chosen[~bad], given[~bad]

    def place(self, row: int) -> str:
        """Where a row's file is."""
        return self._members.place(int(self._chosen[row]))

    @property
    def labels(self) -> np.ndarray:
        """Of all rows (N,) int32."""
        return self._labels

    def read(
        self, rows: np.ndarray, keys: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the images (n, H, W, C) and int32 labels (n,) of `rows` (n,).

        Args:
            rows: the examples.
            keys: (n, 2), of their random numbers; see `shares.generator`.

        Raises:
            ValueError: a file is damaged, or of another form than the others.
            OSError: a file cannot be read.
        """
        image = np.empty((len(rows), *self.shape), self.dtype)
        for i, row in enumerate(rows.tolist()):
            member = int(self._chosen[row])
            key = None if keys is None else keys[i]
            draw = functools.partial(shares.generator, key, row)
            try:
                encoded = self._members.read(member)
                image[i] = self._decode(self._name(member), encoded, draw)
            except files.Damaged:  # names its file
                raise
            except ValueError as error:
                raise ValueError(f"{self.place(row)} {error}") from None
        return image, self._labels[rows]

    def _name(self, member: int) -> bytes:
        return bytes(self._members.names[member])


_STORED = (".png", ".npy")


def _opened(data: "DataConfig", suffixes: tuple[str, ...]) -> members.Members:
    path = data.path
    # What was written since then is seen where the folder itself has changed.
    changed = os.stat(path).st_mtime_ns if os.path.exists(path) else 0
    return _remembered(path, suffixes, changed)


@functools.lru_cache(maxsize=4)
def _remembered(path: str, suffixes: tuple[str, ...], changed: int) -> members.Members:
    del changed
    return members.open_members(path, suffixes)


# Splits share it; a list of a million takes seconds.
@functools.lru_cache(maxsize=4)
def _listed(
    found: members.Members, name: str
) -> tuple[np.ndarray | None, list[str] | None]:
    """Class numbers by a list, and its classes; None where there is no such file."""
    raw = found.extra(name)
    if raw is None:
        return None, None
    return labels.of_list(found.names, raw, os.path.join(found.path, name))


def _fingerprint(data: "DataConfig", found: members.Members) -> dict[str, Any]:
    base = os.path.basename(os.path.abspath(data.path))
    return {"name": base, "files": len(found.names), "xxh128": found.fingerprint()}


def _folders(found: members.Members, data: "DataConfig") -> list[str]:
    """The splits, where each is a folder; [] where they are not."""
    splits = sorted({data.train_split, data.heldout_split})
    at = [os.path.join(found.path, split) for split in splits]
    return splits if all(map(os.path.isdir, at)) else []


def _form(
    found: members.Members, chosen: np.ndarray, on_bad: str
) -> tuple[tuple[int, int, int], Any, bool]:
    """The first example's form; where bad ones are skipped, the first good one's."""
    *before, last = chosen.tolist()
    for member in before if on_bad == "skip" else ():
        with contextlib.suppress(ValueError):
            return _form_of(found, member)
    return _form_of(found, last if on_bad == "skip" else int(chosen[0]))


def _form_of(
    found: members.Members, member: int
) -> tuple[tuple[int, int, int], Any, bool]:
    """An example's shape (H, W, C) and type, and whether it holds means and deviations."""
    try:
        encoded = found.read(member)
        if not found.names[member].lower().endswith(b".npy"):
            image = pictures.opened(encoded)
            channels = len(image.getbands())
            return (image.height, image.width, channels), np.uint8, False
        array = _array(encoded)
        if array.ndim != 3 or array.dtype.kind not in "uif":
            raise ValueError(
                f"holds an array of shape {array.shape} and type {array.dtype}; it must "
                "be (channels, height, width), of numbers."
            )
    except ValueError as error:
        raise ValueError(f"{found.place(member)} {error}") from None
    channels, height, width = array.shape
    is_moments = channels == 8 and array.dtype.kind == "f"
    if is_moments:
        return (height, width, 4), np.float32, True
    return (height, width, channels), array.dtype, False


def _array(encoded: bytes) -> np.ndarray:
    try:
        if encoded.startswith(b"\x93NUMPY\x01\x00"):
            start = 10 + int.from_bytes(encoded[8:10], "little")
            shape, in_columns, dtype = _header(encoded[:start])
            if not dtype.hasobject:
                flat = np.frombuffer(encoded, dtype, math.prod(shape), start)
                return flat.reshape(shape, order="F" if in_columns else "C")
        return np.lib.format.read_array(io.BytesIO(encoded), allow_pickle=False)
    # It raises many kinds for damaged files.
    except Exception as error:
        raise ValueError(f"is a damaged NPY file ({error}).") from error


# The same in every file of a set, and slow: it is Python that is parsed.
@functools.lru_cache(maxsize=16)
def _header(raw: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    file = io.BytesIO(raw)
    np.lib.format.read_magic(file)
    return np.lib.format.read_array_header_1_0(file)


def _check_form(
    array: np.ndarray, shape: tuple[int, int, int], dtype: Any, is_moments: bool
) -> None:
    height, width, channels = shape
    wanted = (2 * channels if is_moments else channels, height, width)
    same_type = array.dtype.kind == "f" if is_moments else array.dtype == dtype
    if array.shape != wanted or not same_type:
        raise ValueError(
            f"holds an array of shape {array.shape} and type {array.dtype}; the first "
            f"one's is {wanted}, {np.dtype(dtype)}."
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError("has values that are not finite (nan or inf).")


def _some(words: list[str]) -> str:
    return ", ".join(words[:5]) + (", ..." if len(words) > 5 else "")
