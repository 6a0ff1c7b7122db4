"""Where images come from: readers that open a split of a data set by row."""

import dataclasses
import hashlib
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from edm_jax.data import plane, rows, store
from edm_jax.data.arrays import Arrays
from edm_jax.data.fitting import Fitting
from edm_jax.data.folders import Images, Original
from edm_jax.fields import Count, Index, Settings

if TYPE_CHECKING:
    from edm_jax.data.config import DataConfig


class Rows(Protocol):
    """A split, opened."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image: height, width, channels."""
        ...

    @property
    def image_bytes(self) -> int:
        """What an image takes in memory."""
        ...

    @property
    def draws(self) -> bool:
        """Whether every use of an example is another: a crop or latents at random."""
        ...

    def __len__(self) -> int: ...

    def read(
        self, rows: np.ndarray, keys: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns images (n, H, W, C) in stored units, and labels (n,), of `rows` (n,).

        Args:
            rows: the examples.
            keys: (n, 2) uint64, of the random numbers of this use of each
                (`shares.generator`), where the rows draw any; None: always the same.

        Raises:
            ValueError: an example is bad, and why.
            OSError: the files cannot be read.
        """
        ...


@runtime_checkable
class Reader(Protocol):
    """An entry of READERS."""

    def prepare(self, data: "DataConfig") -> None:
        """Builds the data set, unless it is there."""
        ...

    def fingerprint(self, data: "DataConfig") -> dict[str, Any]:
        """What tells one data set from another: a run resumes on the same one only."""
        ...

    def open(self, data: "DataConfig", split: str, num_classes: int | None) -> Rows:
        """Opens a split.

        Args:
            data: the config's data section.
            split: the split's name, or a slice of it.
            num_classes: labels are below it; 0 reads none and gives zeros; None reads
                them without an upper bound.

        Raises:
            ValueError: there is no such split, or its examples do not suit.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Tfds(Fitting):
    """Data sets of TensorFlow Datasets by name, or prepared in a directory.

    With a `resolution`, 8-bit images of any size are made square, as the reader `images`
    makes them. Without, they must have one size, and are taken as they are.
    """

    resolution: Index = 0  # R; 0: the size that they are stored with
    image: str = ""  # the feature; '': 'image', or the only one that can be images
    label: str = ""  # the feature; '': 'label', or the only class label

    def prepare(self, data: "DataConfig") -> None:
        """Builds the data set where `data.data_dir` says, unless it is there."""
        store.prepare(data)

    def fingerprint(self, data: "DataConfig") -> dict[str, Any]:
        """Its version, sizes and bytes."""
        return store.fingerprint(data)

    def open(self, data: "DataConfig", split: str, num_classes: int | None) -> Rows:
        """Opens a split."""
        return rows.Split(data, split, num_classes, self)


@dataclasses.dataclass(frozen=True)
class InMemory(Settings):
    """Base of readers of the user's own: `arrays` gives a whole split."""

    def arrays(self, data: "DataConfig", split: str) -> tuple[np.ndarray, np.ndarray]:
        """A split's images (N, H, W, C), of any type of number, and labels (N,)."""
        raise NotImplementedError

    def prepare(self, data: "DataConfig") -> None:
        """Nothing is built."""

    def fingerprint(self, data: "DataConfig") -> dict[str, Any]:
        """The name, and a checksum of the training images and labels."""
        digest = hashlib.sha256()
        for array in self.arrays(data, data.train_split):
            digest.update(np.ascontiguousarray(array).tobytes())
        return {"name": data.name, "sha256": digest.hexdigest()}

    def open(self, data: "DataConfig", split: str, num_classes: int | None) -> Rows:
        """Opens a split; raises ValueError where the arrays do not suit."""
        images, labels = map(np.asarray, self.arrays(data, split))
        place = f"data set {data.name!r}, split {split!r}:"
        if images.ndim != 4 or len(images) != len(labels) or not len(images):
            raise ValueError(
                f"{place} a reader gives images (N, H, W, C) and labels (N,), and this "
                f"one gives {images.shape} and {labels.shape}."
            )
        if images.dtype.kind == "f" and not np.isfinite(images).all():
            raise ValueError(f"{place} has pixels that are not finite (nan or inf).")
        if num_classes == 0:
            labels = np.zeros(len(images))
        elif labels.min() < 0 or (num_classes and labels.max() >= num_classes):
            raise ValueError(
                f"{place} has labels from {labels.min()} to {labels.max()}; "
                f"network.num_classes={num_classes} takes labels from 0 below that."
            )
        return _Arrays(images, labels.astype(np.int32))


@dataclasses.dataclass(frozen=True)
class Fractal(InMemory):
    """Points of two classes that fork like trees, their density known: `data.plane`.

    A point is an image of one pixel and two channels.
    """

    depth: Count = 4  # how often branches fork
    count: Count = 2**20  # points to train on; an eighth as many are held out

    def arrays(self, data: "DataConfig", split: str) -> tuple[np.ndarray, np.ndarray]:
        """Points (N, 1, 1, 2) float32 and their classes (N,), in turn."""
        splits = {"train": self.count, "test": -(-self.count // 8)}
        if split not in splits:
            raise ValueError(
                f"data set {data.name!r} has the splits train and test, and no {split!r}."
            )
        labels = np.arange(splits[split]) % len(self.mixtures())
        rng = np.random.default_rng([*splits].index(split))
        points = np.zeros((len(labels), 2), np.float32)
        for label, mixture in enumerate(self.mixtures()):
            points[labels == label] = mixture.sample(rng, np.sum(labels == label))
        return points.reshape(-1, 1, 1, 2), labels

    def mixtures(self) -> tuple[plane.Mixture, ...]:
        """The density of each class."""
        return plane.fractal(self.depth)


READERS = {
    "tfds": Tfds,
    "images": Images,
    "original": Original,
    "numpy": Arrays,
    "fractal": Fractal,
}


class _Arrays:
    draws = False

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        self._images, self._labels = images, labels
        self.shape, self.image_bytes = images.shape[1:], images[0].nbytes

    def __len__(self) -> int:
        return len(self._images)

    def read(
        self, rows: np.ndarray, keys: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        del keys
        return self._images[rows], self._labels[rows]
