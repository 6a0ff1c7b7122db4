"""The 1,797 real handwritten 8x8 digits of scikit-learn as a TFDS data set."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

# Of every five consecutive examples of a class, the middle one is held out: a fifth
# of each class, spread evenly over the writers, without a random number generator
# whose stream could change.
_FOLDS = 5
_HELDOUT_FOLD = 2


class Digits(tfds.core.GeneratorBasedBuilder):
    """TFDS builder of 8x8 digits: uint8 images (8, 8, 1) in 0..16, labels 0..9.

    Splits: 'train' (1438 examples) and 'test' (359), stratified by class. 'id' is the
    example's row in `sklearn.datasets.load_digits()`.
    """

    VERSION = tfds.core.Version("1.0.0")
    # Nothing is downloaded, so there are no checksums; without this line TFDS looks for
    # them through importlib_resources, a package that it does not depend on.
    url_infos = None

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Tensor(
                    shape=(8, 8, 1), dtype=np.uint8, encoding="bytes"
                ),
                "label": tfds.features.ClassLabel(num_classes=10),
                "id": tfds.features.Scalar(np.int32),
            }
        )
        return tfds.core.DatasetInfo(
            builder=self, features=features, supervised_keys=("image", "label")
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        # scikit-learn ships the images: nothing is downloaded.
        del dl_manager
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
        images = pixels.astype(np.uint8).reshape(-1, 8, 8, 1)
        heldout = heldout_mask(labels)
        return {
            "train": self._generate_examples(images, labels, ~heldout),
            "test": self._generate_examples(images, labels, heldout),
        }

    def _generate_examples(
        self, images: np.ndarray, labels: np.ndarray, chosen: np.ndarray
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for row in np.flatnonzero(chosen).tolist():
            yield (
                row,
                {"image": images[row], "label": int(labels[row]), "id": row},
            )


def heldout_mask(labels: np.ndarray) -> np.ndarray:
    """Returns which of `labels` (N,) are held out: a fifth of each class, (N,) bool."""
    mask = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        mask[np.flatnonzero(labels == label)[_HELDOUT_FOLD::_FOLDS]] = True
    return mask
