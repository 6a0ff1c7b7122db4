"""Images as files: one archive of numbers, a picture each, and a grid."""

import io
import json
import math
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from edm_jax import files
from edm_jax.evals.latents import Decoder

GRID_ROWS, GRID_COLUMNS = 10, 10
GRID_SIDE = 128  # pixels: larger pictures are reduced
_FOLDER = 1000  # pictures to a folder
_DECODED = 64  # at a time
_UNREADABLE = OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile


class Gallery:
    """The images of a directory by seed, kept from one command to the next.

    samples.npz holds `image` (N, H, W, C) float32 in units of the data, `label` and
    `seed` (N,), and `made_of`, a text that says how they were made. Until all are
    there, each batch lies in a file below `parts`. Images made in another way are made
    again.

    Args:
        out: the directory.
        made_of: all that an image depends on besides its seed.
    """

    def __init__(self, out: Path, made_of: Mapping[str, Any]):
        self.out, self._made_of = out, json.dumps(made_of, sort_keys=True)
        self._parts = out / "parts"
        self._rows: dict[int, tuple[np.ndarray, int]] = {}
        self._archive = out / "samples.npz"
        for path in [self._archive, *sorted(self._parts.glob("*.npz"))]:
            self._read(path)

    def missing(self, seeds: Sequence[int]) -> list[int]:
        """The seeds without an image."""
        return [seed for seed in seeds if seed not in self._rows]

    def add(self, seeds: Sequence[int], labels: Any, images: np.ndarray) -> None:
        """Stores a batch of images in units of the data."""
        self._parts.mkdir(parents=True, exist_ok=True)
        self._write(self._parts / f"{seeds[0]:010}.npz", seeds, labels, images)
        rows = zip(images, np.asarray(labels).tolist(), strict=True)
        self._rows |= dict(zip(seeds, rows, strict=True))

    def finish(self, seeds: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Writes samples.npz of the seeds; returns their images and labels."""
        images = np.stack([self._rows[seed][0] for seed in seeds])
        labels = np.array([self._rows[seed][1] for seed in seeds])
        self._write(self._archive, seeds, labels, images)
        for path in self._parts.glob("*.npz"):
            path.unlink()
        if self._parts.is_dir():
            self._parts.rmdir()
        return images, labels

    def write_pictures(
        self,
        seeds: Sequence[int],
        subdirs: bool,
        decoder: Decoder,
    ) -> None:
        """Writes SEED.png of each image.

        Those that are there, and were made in the same way, are kept.

        Args:
            seeds: of the images.
            subdirs: whether each thousand seeds have a folder of their own.
            decoder: makes pictures of images in units of the data.

        Raises:
            ValueError: images have other than 1 or 3 channels.
        """
        paths, made_of = {}, self._made_of + decoder.made_of()
        for seed in seeds:
            folder = f"{seed // _FOLDER * _FOLDER:06}" if subdirs else ""
            path = self.out / folder / f"{seed:06}.png"
            if not _is_kept(path, made_of):
                paths[seed] = path
        missing = list(paths)
        for start in range(0, len(missing), _DECODED):
            some = missing[start : start + _DECODED]
            made = decoder.pictures(np.stack([self._rows[seed][0] for seed in some]))
            for seed, pixels in zip(some, made, strict=True):
                paths[seed].parent.mkdir(parents=True, exist_ok=True)
                files.write_bytes(paths[seed], _png(pixels, made_of=made_of))

    def _read(self, path: Path) -> None:
        try:
            with files.open_regular(path) as file, np.load(file) as found:
                if str(found["made_of"]) != self._made_of:
                    return
                columns = (found[name] for name in ("seed", "image", "label"))
                for seed, image, label in zip(*columns, strict=True):
                    self._rows[int(seed)] = image, int(label)
        except _UNREADABLE:  # not there, or damaged: made again
            return

    def _write(
        self, path: Path, seeds: Sequence[int], labels: Any, images: np.ndarray
    ) -> None:
        whole = io.BytesIO()
        np.savez(
            whole,
            image=images,
            label=np.asarray(labels),
            seed=np.asarray(seeds),
            made_of=self._made_of,
        )
        files.write_bytes(path, whole.getvalue())


def _is_kept(path: Path, made_of: str) -> bool:
    try:
        with files.open_regular(path) as file, Image.open(file) as image:
            return image.info.get("made_of") == made_of
    except _UNREADABLE:
        return False


def write_grid(
    path: Path,
    images: np.ndarray,
    labels: np.ndarray,
    pictures: Callable[[np.ndarray], np.ndarray] | None = None,
) -> None:
    """Writes a grid of normalised images whose rows are classes, small ones enlarged.

    Args:
        path: the PNG file.
        images: (N, H, W, C).
        labels: their classes (N,).
        pictures: makes 8-bit pictures of images, where those are latents.
    """
    classes = np.unique(labels)[:GRID_ROWS]
    columns = min([GRID_COLUMNS, *(int(np.sum(labels == c)) for c in classes)])
    picked = np.concatenate([images[labels == c][:columns] for c in classes])
    channels = picked.shape[3]
    if pictures is None:
        # Two standard deviations of the data, sigma_data each, to either side of its
        # mean; channels beyond three (latents) are left out.
        unit = np.clip(picked[..., : 3 if channels >= 3 else 1] / 2 + 0.5, 0, 1)
    else:
        unit = _reduced(pictures(picked)) / 255
    side = unit.shape[1]
    framed = np.pad(unit, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=0.5)
    grid = framed.reshape(len(classes), columns, side + 2, side + 2, -1)
    grid = grid.transpose(0, 2, 1, 3, 4).reshape(
        len(classes) * (side + 2), columns * (side + 2), -1
    )
    pixels = np.round(255 * grid).astype(np.uint8)
    files.write_bytes(path, _png(pixels, scale=max(1, 64 // side)))


def _reduced(pictures: np.ndarray) -> np.ndarray:
    """Pictures (N, H, W, C) of which a grid can be looked at: means of their pixels."""
    n, height, width, channels = pictures.shape
    factor = math.gcd(math.gcd(height, width), max(1, height // GRID_SIDE))
    blocks = height // factor, factor, width // factor, factor
    return pictures.reshape(n, *blocks[:2], *blocks[2:], channels).mean(axis=(2, 4))


def _png(pixels: np.ndarray, scale: int = 1, made_of: str = "") -> bytes:
    """An image (H, W, 1 or 3), uint8, as a file."""
    if pixels.shape[-1] not in (1, 3):
        raise ValueError(
            f"Images of {pixels.shape[-1]} channels cannot be written as pictures: "
            "use samples.npz, or decode latents with --decoder."
        )
    image = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
    size = (image.width * scale, image.height * scale)
    whole, words = io.BytesIO(), PngInfo()
    if made_of:
        words.add_text("made_of", made_of)
    image.resize(size, Image.Resampling.NEAREST).save(whole, "PNG", pnginfo=words)
    return whole.getvalue()
