"""Pictures as people have them, made into arrays of one size by stated rules."""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, UnidentifiedImageError

_BOX, _BICUBIC = Image.Resampling.BOX, Image.Resampling.BICUBIC
# EXIF's orientations (tag 0x0112): what turns the stored picture upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
LIMIT = 2**26  # pixels of a picture that is enlarged
_PLAIN = {"1", "L", "P", "RGB", "CMYK", "YCbCr"}


def decode(encoded: bytes, channels: int, background: int) -> Image.Image:
    """A picture, upright, 8-bit, as RGB (3 channels) or grayscale (1).

    - EXIF's orientation is applied; colour profiles are not.
    - Transparency is laid over the level `background`, whatever its form (an alpha
      channel, a palette's, a transparent colour).
    - Of 16 bits per channel, the upper 8 are kept. 32-bit and floating-point pictures
      are refused: nothing says which values are black and white.
    - CMYK becomes R = (1 - C)(1 - K), and so on. LAB and HSV are refused.
    - Palettes and black and white become the colours they stand for.
    - Grayscale is repeated for RGB; RGB becomes L = 0.299 R + 0.587 G + 0.114 B
      (ITU-R BT.601) for grayscale.
    - Of animations and pages, the first is taken.

    Args:
        encoded: the bytes of a file.
        channels: 3 or 1.
        background: 0 ... 255.

    Raises:
        ValueError: what is wrong with the picture, to follow its name.
    """
    image = opened(encoded)
    try:
        image.load()
    except Exception as error:
        raise ValueError(f"is a damaged {image.format} ({error}).") from error
    orientation = _orientation(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.has_transparency_data:
        below = Image.new("RGBA", image.size, (background,) * 3 + (255,))
        image = Image.alpha_composite(below, image.convert("RGBA")).convert("RGB")
    elif image.mode not in _PLAIN:
        kinds = {"I": "32-bit", "F": "floating-point"}
        raise ValueError(
            f"is a {kinds.get(image.mode, image.mode)} {image.format}, and which values "
            "are black and white is not said; store it with 8 or 16 bits."
        )
    image = image.convert("RGB" if channels == 3 else "L")
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def of_array(pixels: np.ndarray, channels: int) -> Image.Image:
    """An array (H, W, 1 or 3) uint8 as RGB (3 channels) or grayscale (1).

    Raises:
        ValueError: it is another array, or empty.
    """
    if pixels.dtype != np.uint8 or pixels.shape[2] not in (1, 3) or not pixels.size:
        raise ValueError(
            f"is an array of shape {pixels.shape} and type {pixels.dtype}; it must be "
            "8-bit, (height, width, 1 or 3)."
        )
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    return image.convert("RGB" if channels == 3 else "L")


def opened(encoded: bytes) -> Image.Image:
    """A picture whose header is read; raises ValueError, to follow its name."""
    try:
        return Image.open(io.BytesIO(encoded))
    except UnidentifiedImageError:
        raise ValueError(
            f"is not a picture that Pillow can read ({len(encoded):,} bytes)."
        ) from None
    # Pillow raises many kinds for damaged files, and one for decompression bombs.
    except Exception as error:
        raise ValueError(f"is a damaged picture ({error}).") from error


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(0x0112, 1)
    # Notes that cannot be read say nothing.
    except Exception:  # noqa: BLE001
        return 1


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """The square in the middle, `size` pixels wide, as ADM makes it (arXiv 2105.05233).

    The shorter side is halved by box filters while it is twice too long or more, then
    brought to `size` by a bicubic filter; the larger side is cut equally at both ends.
    """
    image = shrink(image, size)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def random_crop(
    image: Image.Image, size: int, smallest: float, draw: np.random.Generator
) -> Image.Image:
    """A square of the picture at random, as ADM makes it.

    Its side is between `smallest` and all of the picture's shorter side: that is
    brought to a length drawn from size ... size / smallest, and the square cut anywhere.
    """
    short = int(draw.integers(size, int(np.ceil(size / smallest)), endpoint=True))
    image = shrink(image, short)
    left = int(draw.integers(0, image.width - size, endpoint=True))
    top = int(draw.integers(0, image.height - size, endpoint=True))
    return image.crop((left, top, left + size, top + size))


def pad(image: Image.Image, size: int, background: int) -> Image.Image:
    """The whole picture in a square, its longer side `size`, bars of one level beside it.

    The picture is reduced as in `center_crop`; of an odd number of rows or columns to
    fill, one more lies below or to the right.
    """
    image = shrink(image, size, max)
    level = (background,) * 3 if image.mode == "RGB" else background
    square = Image.new(image.mode, (size, size), level)
    square.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
    return square


def shrink(
    image: Image.Image, length: int, side: Callable[..., int] = min
) -> Image.Image:
    """Brings the shorter side (`side`=max: the longer) to `length`, enlarging too.

    Raises:
        ValueError: the enlarged picture would be too large.
    """
    while side(image.size) >= 2 * length and min(image.size) > 1:
        image = image.resize((image.width // 2, image.height // 2), _BOX)
    factor = length / side(image.size)
    width, height = (max(1, round(n * factor)) for n in image.size)
    if width * height > LIMIT:
        raise ValueError(
            f"of {image.width} x {image.height} pixels is too narrow: enlarged, it would "
            f"be {width} x {height}."
        )
    return image.resize((width, height), _BICUBIC)
