"""Claims about encoded images: what is decoded, and what is refused in which words."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from edm_jax.data import images


def encoded(mode, size=(4, 3), form="PNG"):
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, form)
    return buffer.getvalue()


def png(colour_type, bits, rows):
    """A PNG, written from its specification; Pillow writes no 16-bit RGB."""

    def chunk(kind, body):
        check = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)

    channels = {0: 1, 2: 3, 6: 4}[colour_type]
    width = 8 * len(rows[0]) // (bits * channels)
    header = struct.pack(">IIBBBBB", width, len(rows), bits, colour_type, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = chunk(b"IHDR", header), chunk(b"IDAT", body), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(("colour_type", "channels"), [(0, 1), (2, 3), (6, 4)])
def test_a_png_gives_the_pixels_it_was_written_from(colour_type, channels):
    pixels = np.arange(3 * 4 * channels, dtype=np.uint8).reshape(3, 4, channels)
    raw = png(colour_type, 8, [row.tobytes() for row in pixels])
    decoded = images.decode(raw, (3, 4, channels), np.uint8)
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, pixels)


def test_float32_images_are_the_bytes_of_rgba_ones():
    pixels = np.random.default_rng(0).standard_normal((3, 4, 1)).astype(np.float32)
    raw = png(6, 8, [row.tobytes() for row in pixels])
    np.testing.assert_array_equal(images.decode(raw, (3, 4, 1), np.float32), pixels)


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        (encoded("L"), "is a PNG of 4 x 3 pixels, 8-bit grayscale; "),
        (encoded("LA"), "grayscale with alpha; "),
        (encoded("1"), "1-bit black and white; "),
        (encoded("P"), "palette; "),
        (encoded("RGBA"), "8-bit RGBA; "),
        (encoded("I;16"), "16-bit grayscale; "),
        (png(2, 16, 3 * [bytes(24)]), "is a PNG of 4 x 3 pixels, 16-bit RGB; "),
        (encoded("CMYK", form="JPEG"), "is a JPEG of 4 x 3 pixels, CMYK; "),
        (encoded("RGB", size=(3, 4)), "is a PNG of 3 x 4 pixels, 8-bit RGB; "),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_as_declared_is_refused_with_what_is_accepted(raw, found):
    accepted = "accepted is 4 x 3 pixels, 8-bit RGB."
    with pytest.raises(ValueError, match=f"^(is a .*)?{found}{accepted}$"):
        images.decode(raw, (3, 4, 3), np.uint8)


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_a_cut_image_is_refused_wherever_it_is_cut(form):
    raw = encoded("RGB", form=form)
    end = raw.index(b"IDAT") + 6 if form == "PNG" else len(raw) - 2
    for length in range(end):
        with pytest.raises(ValueError, match="damaged|not a picture that Pillow"):
            images.decode(raw[:length], (3, 4, 3), np.uint8)


def test_an_image_of_flipped_bytes_is_decoded_or_refused():
    raw = encoded("RGB")
    for place in range(len(raw)):
        broken = raw[:place] + bytes([raw[place] ^ 0x55]) + raw[place + 1 :]
        try:
            assert images.decode(broken, (3, 4, 3), np.uint8).shape == (3, 4, 3)
        except ValueError:
            pass


def test_a_decompression_bomb_is_refused_by_its_header():
    raw = bytearray(encoded("RGB"))
    raw[16:24] = struct.pack(">II", 60_000, 60_000)
    raw[29:33] = struct.pack(">I", zlib.crc32(raw[12:29]))
    with pytest.raises(ValueError, match="is a damaged picture .*exceeds limit"):
        images.decode(bytes(raw), (3, 4, 3), np.uint8)


@pytest.mark.parametrize(
    ("shape", "dtype"), [((3, 4, 1), np.uint16), ((3, 4, 2), np.uint8)]
)
def test_declarations_that_cannot_be_decoded_are_refused(shape, dtype):
    with pytest.raises(ValueError, match="must be uint8 with 1, 3 or 4 channels"):
        images.decode(encoded("L"), shape, dtype)
