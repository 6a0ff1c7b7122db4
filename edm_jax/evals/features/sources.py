"""Images to be compared: a folder, an archive, or a split of a data set; read by row."""

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image, UnidentifiedImageError

from edm_jax import files
from edm_jax.data import selection
from edm_jax.data.config import DataConfig
from edm_jax.data.pipeline import denormalize
from edm_jax.evals.latents import Decoder

_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
_ARRAYS = ("arr_0", "image", "images", "samples")  # of archives, by what wrote them
_CHANNELS = {"L": 1, "RGB": 3}


class Source(Protocol):
    """Images (N, H, W, C), uint8."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> np.ndarray: ...


class Folder:
    """The pictures below a folder, in the order of their paths, decoded when asked for.

    Raises:
        ValueError: there are none, or the first is neither 8-bit RGB nor grayscale.
    """

    def __init__(self, path: Path):
        found = (p for p in path.rglob("*") if p.suffix.lower() in _SUFFIXES)
        if not (paths := sorted(found)):
            raise ValueError(f"{path} holds no pictures.")
        self._paths = paths
        self.shape = (len(paths), *_decode(paths[0]).shape)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, rows: Any, /) -> np.ndarray:
        paths = np.array(self._paths, object)[rows]
        images = [_decode(path) for path in paths]
        for path, image in zip(paths, images, strict=True):
            if image.shape != self.shape[1:]:
                raise ValueError(
                    f"{path} is {_described(image.shape)}, but {self._paths[0]} is "
                    f"{_described(self.shape[1:])}; pictures of one set must be alike."
                )
        return np.stack(images)


class Split:
    """A split of a data set, in the units that are stored; `raw`: not as pictures."""

    def __init__(self, data: DataConfig, split: str, raw: bool = False):
        self._raw = raw
        self._rows, _ = selection.open_rows(data, split, 0)
        self.shape = (len(self._rows), *self._rows.shape)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: Any, /) -> np.ndarray:
        images, _ = self._rows.read(np.asarray(rows))
        return images if images.dtype == np.uint8 or self._raw else quantized(images)


class Decoded:
    """Pictures of latents in units of the data, decoded when asked for.

    Args:
        latents: (N, h, w, C).
        decoder: makes the pictures.
    """

    def __init__(self, latents: Any, decoder: Decoder):
        self._latents, self._decoder = latents, decoder
        self.shape = decoder.shape(latents.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any, /) -> np.ndarray:
        return self._decoder.pictures(self._latents[rows])


class Part:
    """Every `step`-th image of a set from `start` on, `count` of them.

    So parts of a set whose images are sorted by class are alike.
    """

    def __init__(self, images: Source, start: int, step: int, count: int):
        self._images, self._start, self._step = images, start, step
        self.shape = (count, *images.shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any, /) -> np.ndarray:
        return self._images[self._start + self._step * np.asarray(rows)]


def is_statistics(path: Path) -> bool:
    """Whether an .npz holds mu and sigma, not images; raises as `read_npz`."""
    return bool(read_npz(path, ("mu",)))


def open_path(path: Path) -> Source:
    """The images of a folder of pictures, or of an .npz.

    An archive holds uint8 (N, H, W, C) as arr_0, as ADM's does, or as `image`, in which
    ours holds floats from 0 to 255.

    Raises:
        FileNotFoundError: there is nothing there.
        ValueError: there are no images in it.
    """
    if path.is_dir():
        return Folder(path)
    found = read_npz(path, _ARRAYS)
    images = next(iter(found.values()), None)
    if images is None:
        raise files.Damaged(path, f"holds none of the arrays {', '.join(_ARRAYS)}.")
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or not len(images):
        raise files.Damaged(
            path, f"holds {images.shape}, not images (N, H, W, 1 or 3)."
        )
    if images.dtype.kind not in "uif" or not np.isfinite(images).all():
        raise files.Damaged(
            path, f"holds {images.dtype} that are no pixels, or are not finite."
        )
    return images if images.dtype == np.uint8 else quantized(images)


def read_npz(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Those of the names that an archive holds; raises FileNotFoundError or Damaged."""
    try:
        with files.open_regular(path) as file, np.load(file) as archive:
            found = {n: archive[n] for n in names if n in archive.files}
            if not all(isinstance(array, np.ndarray) for array in found.values()):
                raise ValueError("a member is not in NumPy's format")
            return found
    except FileNotFoundError:
        raise
    except (zipfile.BadZipFile, zlib.error) as error:
        raise files.Damaged(path, f"is damaged ({error}).") from error
    # NumPy raises many kinds, and quotes what it read.
    except Exception as error:
        why = files.short(error)
        raise files.Damaged(path, f"is not an archive of arrays ({why}).") from error


def of_samples(data: DataConfig, images: np.ndarray, decoder: Decoder) -> Source:
    """Normalised samples (N, H, W, C) as pictures of them would be stored."""
    raw = denormalize(data, images)
    return Decoded(raw, decoder) if decoder.decodes else quantized(raw)


def quantized(images: np.ndarray) -> np.ndarray:
    """Values from 0 to 255 as a PNG holds them: rounded and cut, uint8."""
    return np.clip(np.round(images), 0, 255).astype(np.uint8)


def _decode(path: Path) -> np.ndarray:
    try:
        with files.open_regular(path) as file, Image.open(file) as image:
            if image.mode not in _CHANNELS:
                reason = f"has the mode {image.mode}; 8-bit RGB or grayscale is read."
                raise files.Damaged(path, reason)
            pixels = np.asarray(image)
    except UnidentifiedImageError:
        raise files.Damaged(path, "is not a picture that Pillow can read.") from None
    except files.Damaged:
        raise
    # Pillow raises many kinds for damaged files, and one for decompression bombs.
    except Exception as error:
        raise files.Damaged(path, f"is damaged ({error}).") from error
    return pixels.reshape(*pixels.shape[:2], _CHANNELS[image.mode])


def _described(shape: tuple[int, ...]) -> str:
    height, width, channels = shape
    return f"{width} x {height} pixels, {'grayscale' if channels == 1 else 'RGB'}"
