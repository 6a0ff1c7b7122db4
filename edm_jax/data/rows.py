"""The examples of a prepared TFDS data set, checked and read by row."""

import functools
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from edm_jax.data import images, pictures, shares, store

if TYPE_CHECKING:
    from edm_jax.data.config import DataConfig
    from edm_jax.data.readers import Tfds

MOMENTS = "moments"  # the feature of a VAE's means and deviations
_PART = 1024  # labels that are read at a time
_UNLABELLED = "set network.num_classes=0 to train without labels."


class Split:
    """One split of a prepared data set, read by row; labels as a network takes them.

    Args:
      data: the config's data section.
      split: the split's name, or a slice of it.
      num_classes: how many classes the network has; 0 reads no labels; None reads them
        without an upper bound.
      reader: which features are read, and how images are made square.

    Raises:
      ValueError: there is no such split, or its examples do not suit.
      FileNotFoundError: the data set has not been prepared.
    """

    def __init__(
        self, data: "DataConfig", split: str, num_classes: int | None, reader: "Tfds"
    ):
        import tensorflow_datasets as tfds

        builder = store.open_builder(data)
        if not builder.data_path.exists():
            raise FileNotFoundError(
                f"data set {data.name!r} is not at {builder.data_path}; call "
                "edm_jax.data.prepare, or set data.data_dir to where it is."
            )
        if not (builder.data_path / "dataset_info.json").exists():
            raise ValueError(
                f"data set {data.name!r} at {builder.data_path} has lost its "
                "dataset_info.json; delete that directory to have it built again."
            )
        self._name, self._path, self._split = data.name, builder.data_path, split
        self._num_classes = num_classes
        self._reader, self._builder = reader, builder
        features = builder.info.features
        self._image = self._image_of(features)
        # Means and deviations of latents, as conversion.py stores them.
        self._is_moments = self._image == MOMENTS and features[MOMENTS].shape[2] == 8
        crops = bool(reader.resolution) and reader.fit == "random"
        self.draws = self._is_moments or crops
        self._feature = features[self._image]
        self._encoded = isinstance(self._feature, tfds.features.Image)
        self._label = self._label_of(features) if num_classes != 0 else ""
        try:
            decoded = {self._label} if self._encoded else {self._image, self._label}
            self._source = self._open(decoded)
            if not len(self):
                raise ValueError
        except NotImplementedError:
            raise ValueError(
                f"data set {data.name!r} at {builder.data_path} is stored as "
                f"{builder.info.file_format.value}, which cannot be read by row; build "
                "it in another data.data_dir with file_format='array_record'."
            ) from None
        except (ValueError, KeyError):
            sizes = {n: f"{s.num_examples:,}" for n, s in builder.info.splits.items()}
            listed = ", ".join(f"{n} ({size} examples)" for n, size in sizes.items())
            raise ValueError(
                f"data set {data.name!r} has no examples for the split {split!r}. Its "
                f"splits: {listed or 'none'}; slices such as 'train[:10%]' are allowed."
            ) from None

    def __len__(self) -> int:
        return len(self._source)

    def _open(self, decoded: set[str]) -> Any:
        """The examples. What is not used is not decoded."""
        import tensorflow_datasets as tfds

        # TFDS would decode images with OpenCV, or warn that it is not installed.
        skipped = {
            name: tfds.decode.SkipDecoding()
            for name, feature in self._builder.info.features.items()
            if name not in decoded
            and not isinstance(feature.shape, dict)
            and not isinstance(feature, tfds.features.Sequence)  # cannot be skipped
        }
        return self._builder.as_data_source(self._split, decoders=skipped)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image: height, width, channels."""
        if self._is_moments:
            return (*self._feature.shape[:2], 4)
        return self._reader.shape if self._reader.resolution else self._feature.shape

    @property
    def image_bytes(self) -> int:
        """What a decoded image takes in memory."""
        return math.prod(self.shape) * np.dtype(self._feature.np_dtype).itemsize

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """Of all rows (N,), as stored; no image is decoded."""
        parts = np.array_split(np.arange(len(self)), -(-len(self) // _PART))
        source = self._open({self._label})
        found = [[e[self._label] for e in self._examples(source, p)] for p in parts]
        return np.concatenate(found).astype(np.int64)

    def read(
        self, rows: np.ndarray, keys: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the stored images (n, H, W, C) and int32 labels (n,) of `rows` (n,).

        Raises:
          ValueError: a row's image or label is not what it must be.
          OSError: the files cannot be read.
        """
        examples = self._examples(self._source, rows)
        image = np.stack(
            [
                self._pixels(e, row, None if keys is None else keys[i])
                for i, (e, row) in enumerate(zip(examples, rows.tolist(), strict=True))
            ]
        )
        if image.dtype.kind == "f":
            finite = np.isfinite(image).all(axis=(1, 2, 3))
            self._refuse(rows, ~finite, "has pixels that are not finite (nan or inf).")
        if self._num_classes == 0:
            return image, np.zeros(len(rows), np.int32)
        label = np.array([example[self._label] for example in examples])
        bound = math.inf if self._num_classes is None else self._num_classes
        for bad in label[(label < 0) | (label >= bound)][:1]:
            allowed = "0 or more" if bound == math.inf else f"from 0 to {bound - 1}"
            reason = f"has the label {bad}; labels must be {allowed}. "
            if bad < 0:
                reason += (
                    f"TFDS stores -1 for unknown: use another split, or {_UNLABELLED}"
                )
            else:
                reason += (
                    "Set network.num_classes to the data's, or to 0 for no labels."
                )
            self._refuse(rows, label == bad, reason)
        return image, label.astype(np.int32)

    def _examples(self, source: Any, rows: np.ndarray) -> Any:
        try:
            return source.__getitems__(rows.tolist())
        except Exception as error:  # whatever a reader makes of a damaged file
            raise OSError(
                f"data set {self._name!r} cannot be read from {self._path} "
                f"({type(error).__name__}: {store.first_line(error)}); restore its files, "
                "and run the same command again."
            ) from error

    def _pixels(
        self, example: dict[str, Any], row: int, key: np.ndarray | None
    ) -> np.ndarray:
        stored, reader = example[self._image], self._reader
        draw = functools.partial(shares.generator, key, row)
        try:
            if self._encoded and reader.resolution:
                return reader.picture(stored, draw)
            if self._encoded:
                return images.decode(stored, self.shape, self._feature.np_dtype)
            if reader.resolution:
                return reader.fitted(pictures.of_array(stored, reader.channels), draw)
            return shares.latents(stored, draw()) if self._is_moments else stored
        except ValueError as error:
            raise ValueError(f"{self._place(row)} {error}") from None

    def _refuse(self, rows: np.ndarray, bad: Any, reason: str) -> None:
        for row in rows[bad][:1]:
            raise ValueError(f"{self._place(row)} {reason}")

    def _place(self, row: int) -> str:
        return f"data set {self._name!r}, split {self._split!r}, example {row}:"

    def _image_of(self, features: Any) -> str:
        """The name of the feature that holds images."""
        import tensorflow_datasets as tfds

        name = self._reader.image or "image"
        if not self._reader.image and name not in features and MOMENTS in features:
            name = MOMENTS
        if not self._reader.image and name not in features:
            able = sorted(n for n, f in features.items() if _is_image(f))
            # Masks, not pictures, unless there is nothing else.
            plain = [
                n
                for n in able
                if not isinstance(features[n], tfds.features.LabeledImage)
            ]
            name = (plain or able or [name])[0]
            if len(plain or able) > 1:
                raise ValueError(
                    f"data set {self._name!r} has several features of images: choose "
                    f"one with data.reader.image, of {', '.join(plain or able)}."
                )
        if name not in features or not _is_image(features[name]):
            raise ValueError(
                f"data set {self._name!r} must have a feature {name!r} of images "
                f"(height, width, channels); it has {_listed(features)}."
            )
        feature = features[name]
        if self._reader.resolution:
            if name == MOMENTS or np.dtype(feature.np_dtype) != np.uint8:
                raise ValueError(
                    f"data set {self._name!r}: data.reader.resolution makes 8-bit images "
                    f"square, and {name!r} is {feature.np_dtype}; set it to 0."
                )
        elif None in feature.shape:
            raise ValueError(
                f"data set {self._name!r} has images of several sizes, {name!r}: "
                f"{feature!r}; make them one with data.reader.resolution, such as 64."
            )
        return name

    def _label_of(self, features: Any) -> str:
        """The name of the feature that holds class numbers."""
        import tensorflow_datasets as tfds

        name = self._reader.label or "label"
        classes = tfds.features.ClassLabel
        able = sorted(n for n, f in features.items() if isinstance(f, classes))
        if not self._reader.label and name not in features and len(able) == 1:
            name = able[0]
        if name not in features:
            which = f"name one of {', '.join(able)} with data.reader.label, or "
            raise ValueError(
                f"data set {self._name!r} has no feature {name!r}, only "
                f"{_listed(features)}; {which if able else ''}{_UNLABELLED}"
            )
        label = features[name]
        scalar = label.shape == ()
        kind = np.dtype(label.np_dtype).kind if scalar else ""
        if kind not in ("b", "i", "u"):
            found = "texts" if kind in "OSU" and kind else "not whole numbers"
            found = found if scalar else "several for each image"
            raise ValueError(
                f"the labels of data set {self._name!r} are {found}: {_listed(features)}; "
                f"{name!r} must be one class number for each image, such as "
                f"tfds.features.ClassLabel. Build it so, or {_UNLABELLED}"
            )
        return name


def _is_image(feature: Any) -> bool:
    shape = feature.shape
    return (
        isinstance(shape, tuple)
        and len(shape) == 3
        and shape[2] is not None
        and np.dtype(feature.np_dtype).kind in "buif"
    )


def _listed(features: Any) -> str:
    each = ", ".join(f"{name!r}: {feature!r}" for name, feature in features.items())
    return " ".join(each.split())
