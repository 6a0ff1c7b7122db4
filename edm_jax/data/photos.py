"""Crops of ten colour photographs that scikit-learn and scikit-image ship."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

# Of the stereo pair of a motorcycle, the left half only: both show the same scene.
PICTURES = {
    "astronaut": ("skimage", "data/astronaut.png"),
    "cat": ("skimage", "data/chelsea.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
    "galaxies": ("skimage", "data/hubble_deep_field.jpg"),
    "motorcycle": ("skimage", "data/motorcycle_left.png"),
    "retina": ("skimage", "data/retina.jpg"),
    "rocket": ("skimage", "data/rocket.jpg"),
    "temple": ("sklearn", "datasets/images/china.jpg"),
    "tissue": ("skimage", "data/ihc.png"),
}
# Quarters of a picture's longer side. Held out is the third, so that the training
# crops come from both sides of it.
_QUARTERS = {"train": ((0, 2), (3, 4)), "test": ((2, 3),)}
_CROPS_PER_PICTURE = {"train": 800, "test": 200}
_SCALES = (4, 6)  # a picture's shorter side, in crops


class Photos(tfds.core.GeneratorBasedBuilder):
    """TFDS builder of RGB crops (R, R, 3), uint8, the picture they show as the label.

    Configs: '32x32' (default) and '64x64'. Splits: 'train' (8000 crops) and 'test'
    (2000), equally many of every picture. No pixel of a picture is seen by both splits.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar = [
        tfds.core.BuilderConfig(name=f"{size}x{size}", description="RGB crops")
        for size in (32, 64)
    ]
    url_infos = None  # as in digits.py

    def _info(self) -> tfds.core.DatasetInfo:
        size = self._resolution
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Tensor(
                    shape=(size, size, 3), dtype=np.uint8, encoding="bytes"
                ),
                "label": tfds.features.ClassLabel(names=list(PICTURES)),
            }
        )
        return tfds.core.DatasetInfo(
            builder=self, features=features, supervised_keys=("image", "label")
        )

    @property
    def _resolution(self) -> int:
        assert self.builder_config is not None  # TFDS takes the first by default
        return int(self.builder_config.name.split("x")[0])

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        del dl_manager  # the packages ship the pictures
        return {split: self._generate_examples(split) for split in _QUARTERS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        key = 0
        for name, (package, path) in PICTURES.items():
            for crop in crops(_read(package, path), split, self._resolution):
                yield key, {"image": crop, "label": name}
                key += 1


def crops(picture: Image.Image, split: str, resolution: int) -> list[np.ndarray]:
    """Returns a picture's crops for 'train' or 'test', each (R, R, 3) uint8.

    The part of the picture that belongs to the split is cut out first and scaled then:
    a filter that reached across the cut would mix pixels of both splits.
    """
    shape, found = (resolution, resolution, 3), []
    for scale in _SCALES:
        for part in _parts(picture, split):
            factor = scale * resolution / min(picture.size)
            width, height = (max(resolution, round(factor * n)) for n in part.size)
            pixels = np.asarray(part.resize((width, height), Image.Resampling.BICUBIC))
            windows = np.lib.stride_tricks.sliding_window_view(
                pixels, (resolution, resolution), axis=(0, 1)
            )[:: resolution // 8, :: resolution // 8]  # (rows, columns, 3, R, R)
            found.append(np.moveaxis(windows, 2, -1).reshape(-1, *shape))
    every = np.concatenate(found)
    chosen = np.linspace(0, len(every) - 1, _CROPS_PER_PICTURE[split]).round()
    return list(every[chosen.astype(int)])


def _parts(picture: Image.Image, split: str) -> Iterator[Image.Image]:
    width, height = picture.size
    for quarters in _QUARTERS[split]:
        start, end = (max(width, height) * quarter // 4 for quarter in quarters)
        wide = width >= height
        yield picture.crop((start, 0, end, height) if wide else (0, start, width, end))


def _read(package: str, path: str) -> Image.Image:
    # Found without importing the package, whose import takes a second.
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            f"the pictures of 'photos' lie in the package {package}, which is not "
            "installed; install scikit-learn and scikit-image."
        )
    return Image.open(Path(spec.submodule_search_locations[0]) / path).convert("RGB")
