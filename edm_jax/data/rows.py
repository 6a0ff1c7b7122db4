"""The examples of a prepared TFDS data set, checked and read by row."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from edm_jax.data import images, store

if TYPE_CHECKING:
    from edm_jax.data.config import DataConfig

_UNLABELLED = "set network.num_classes=0 to train without labels."


class Split:
    """One split of a prepared data set, read by row; labels as a network takes them.

    Args:
      data: the config's data section.
      split: the split's name, or a slice of it.
      num_classes: how many classes the network has; 0 reads no labels; None reads them
        without an upper bound.

    Raises:
      ValueError: there is no such split, or its examples do not suit.
      FileNotFoundError: the data set has not been prepared.
    """

    draws = False

    def __init__(self, data: "DataConfig", split: str, num_classes: int | None):
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
        features = builder.info.features
        self._check_image(features)
        self._encoded = isinstance(features["image"], tfds.features.Image)
        self._feature = features["image"]
        decoded = {"label"} if self._encoded else {"image", "label"}
        if num_classes != 0:
            self._check_label(features)
        # What is not used is not decoded. TFDS would decode images with OpenCV, or warn
        # that it is not installed.
        skipped = {
            name: tfds.decode.SkipDecoding()
            for name, feature in features.items()
            if name not in decoded and not isinstance(feature.shape, dict)
        }
        try:
            self._source = builder.as_data_source(split, decoders=skipped)
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

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image: height, width, channels."""
        return self._feature.shape

    @property
    def image_bytes(self) -> int:
        """What a decoded image takes in memory."""
        return math.prod(self.shape) * np.dtype(self._feature.np_dtype).itemsize

    def read(
        self, rows: np.ndarray, keys: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the stored images (n, H, W, C) and int32 labels (n,) of `rows` (n,).

        Raises:
          ValueError: a row's image or label is not what it must be.
          OSError: the files cannot be read.
        """
        del keys
        try:
            examples = self._source.__getitems__(rows.tolist())
        except Exception as error:  # whatever a reader makes of a damaged file
            raise OSError(
                f"data set {self._name!r} cannot be read from {self._path} "
                f"({type(error).__name__}: {store.first_line(error)}); restore its files, "
                "and run the same command again."
            ) from error
        image = np.stack(
            [self._pixels(e, i) for e, i in zip(examples, rows, strict=True)]
        )
        if image.dtype.kind == "f":
            finite = np.isfinite(image).all(axis=(1, 2, 3))
            self._refuse(rows, ~finite, "has pixels that are not finite (nan or inf).")
        if self._num_classes == 0:
            return image, np.zeros(len(rows), np.int32)
        label = np.array([example["label"] for example in examples])
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

    def _pixels(self, example: dict[str, Any], row: int) -> np.ndarray:
        if not self._encoded:
            return example["image"]
        try:
            return images.decode(example["image"], self.shape, self._feature.np_dtype)
        except ValueError as error:
            raise ValueError(f"{self._place(row)} {error}") from None

    def _refuse(self, rows: np.ndarray, bad: Any, reason: str) -> None:
        for row in rows[bad][:1]:
            raise ValueError(f"{self._place(row)} {reason}")

    def _place(self, row: int) -> str:
        return f"data set {self._name!r}, split {self._split!r}, example {row}:"

    def _check_image(self, features: Any) -> None:
        shape = features["image"].shape if "image" in features else ()
        fixed = isinstance(shape, tuple) and len(shape) == 3 and None not in shape
        if not fixed or np.dtype(features["image"].np_dtype).kind not in "buif":
            raise ValueError(
                f"data set {self._name!r} must have a feature 'image' of one size "
                f"(height, width, channels); it has {_listed(features)}."
            )

    def _check_label(self, features: Any) -> None:
        if "label" not in features:
            raise ValueError(
                f"data set {self._name!r} has no feature 'label', only "
                f"{_listed(features)}; {_UNLABELLED}"
            )
        label = features["label"]
        scalar = label.shape == ()
        kind = np.dtype(label.np_dtype).kind if scalar else ""
        if kind not in ("b", "i", "u"):
            found = "texts" if kind in "OSU" and kind else "not whole numbers"
            found = found if scalar else "several for each image"
            raise ValueError(
                f"the labels of data set {self._name!r} are {found}: {_listed(features)}; "
                "'label' must be one class number for each image, such as "
                f"tfds.features.ClassLabel. Build it so, or {_UNLABELLED}"
            )


def _listed(features: Any) -> str:
    each = ", ".join(f"{name!r}: {feature!r}" for name, feature in features.items())
    return " ".join(each.split())
