"""Encoded images to arrays, with Pillow; what is not as declared is refused."""

import numpy as np

from edm_jax.data import pictures

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_NAMES = {
    "1": "1-bit black and white",
    "L": "8-bit grayscale",
    "LA": "grayscale with alpha",
    "P": "palette",
    "RGB": "8-bit RGB",
    "RGBA": "8-bit RGBA",
    "I": "32-bit grayscale",
    "I;16": "16-bit grayscale",
    "I;16B": "16-bit grayscale",
}


def decode(encoded: bytes, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Returns an image (H, W, C) of exactly the declared size, channels and depth.

    Nothing is converted: a grayscale, palette or CMYK image is no RGB image. TFDS stores
    float32 images (H, W, 1) as the bytes of RGBA ones, which are read as such.

    Args:
      encoded: the bytes of an image file (PNG, JPEG, ...).
      shape: height, width, channels.
      dtype: uint8, or float32 for one channel.

    Raises:
      ValueError: what the image is, and what is accepted, to follow its name.
    """
    height, width, channels = shape
    depth = np.dtype(dtype)
    accepted = _MODES.get(4 if depth == np.float32 and channels == 1 else channels)
    if depth not in (np.uint8, np.float32) or accepted is None:
        raise ValueError(
            f"is declared as {depth} with {channels} channels; encoded images must be "
            "uint8 with 1, 3 or 4 channels. Store others as tfds.features.Tensor."
        )
    image = pictures.opened(encoded)
    mode = _NAMES.get(image.mode, image.mode)
    if encoded.startswith(b"\x89PNG") and encoded[24] == 16:  # bits per channel
        # Pillow reads 16-bit RGB as 8-bit RGB, and says nothing.
        mode = f"16-bit {'grayscale' if image.mode.startswith('I') else image.mode}"
    if mode != _NAMES[accepted] or image.size != (width, height):
        raise ValueError(
            f"is a {image.format} of {image.width} x {image.height} pixels, {mode}; "
            f"accepted is {width} x {height} pixels, {_NAMES[accepted]}."
        )
    try:
        image.load()
    except Exception as error:
        raise ValueError(f"is a damaged {image.format} ({error}).") from error
    return np.asarray(image).reshape(height, width, -1).view(depth)
