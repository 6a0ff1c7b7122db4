"""Claims about users' pictures: to which pixels each kind comes, and what is refused."""

import io
import math
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from edm_jax.data import pictures

RNG = np.random.default_rng(0)


def encoded(image, form="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def decoded(image, channels=3, form="PNG", **options):
    raw = image if isinstance(image, bytes) else encoded(image, form, **options)
    return np.asarray(pictures.decode(raw, channels, background=200)).astype(int)


def png(colour_type, bits, rows, *chunks):
    """A PNG from its specification: Pillow writes no 16-bit RGB."""

    def chunk(kind, body):
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    per_pixel = {0: 1, 2: 3, 3: 1}[colour_type] * bits
    header = len(rows[0]) * 8 // per_pixel, len(rows), bits, colour_type, 0, 0, 0
    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", *header))]
    parts += [chunk(*each) for each in chunks]
    parts += [chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))]
    return b"\x89PNG\r\n\x1a\n" + b"".join([*parts, chunk(b"IEND", b"")])


RGB = RNG.integers(0, 256, (5, 4, 3), np.uint8)


def test_rgb_stays_and_becomes_gray_by_bt601():
    np.testing.assert_array_equal(decoded(Image.fromarray(RGB)), RGB)
    gray = RGB @ np.array([0.299, 0.587, 0.114])
    found = decoded(Image.fromarray(RGB), channels=1)
    np.testing.assert_allclose(found, gray, atol=0.51)


def test_gray_and_black_and_white_are_repeated():
    gray = RGB[..., 0]
    want = np.stack([gray] * 3, axis=-1)
    np.testing.assert_array_equal(decoded(Image.fromarray(gray)), want)
    np.testing.assert_array_equal(decoded(Image.fromarray(gray), channels=1), gray)
    bits = Image.fromarray(gray > 127)
    assert bits.mode == "1"
    np.testing.assert_array_equal(decoded(bits)[..., 1], 255 * (gray > 127))


def test_of_16_bits_the_upper_8_are_kept():
    wide = RNG.integers(0, 65536, (5, 4), np.uint16)
    want = wide // 256
    np.testing.assert_array_equal(decoded(Image.fromarray(wide), channels=1), want)
    colour = RNG.integers(0, 65536, (5, 4, 3), np.uint16)
    raw = png(2, 16, [row.astype(">u2").tobytes() for row in colour])
    np.testing.assert_array_equal(decoded(raw), colour // 256)


def over(color, alpha):
    alpha = alpha.astype(float)
    return np.rint(color * alpha / 255 + 200 * (1 - alpha / 255))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_laid_over_the_background(mode):
    alpha = RNG.integers(0, 256, (5, 4), np.uint8)
    color = RGB if mode == "RGBA" else np.stack([RGB[..., 0]] * 3, axis=-1)
    pixels = np.dstack([RGB[..., :1] if mode == "LA" else RGB, alpha])
    found = decoded(Image.fromarray(pixels, mode))
    np.testing.assert_allclose(found, over(color, alpha[..., None]), atol=1)


def test_palettes_give_their_colours_and_their_transparency():
    palette = np.array([[255, 0, 0], [0, 255, 0], [1, 2, 3]], np.uint8)
    indices = [bytes([0, 1]), bytes([2, 1])]
    plain = png(3, 8, indices, (b"PLTE", palette.tobytes()))
    want = palette[[[0, 1], [2, 1]]]
    np.testing.assert_array_equal(decoded(plain), want)
    hidden = png(3, 8, indices, (b"PLTE", palette.tobytes()), (b"tRNS", b"\xff\0"))
    np.testing.assert_array_equal(decoded(hidden)[:, 1], [[200] * 3] * 2)
    np.testing.assert_array_equal(decoded(hidden)[:, 0], want[:, 0])


def test_a_transparent_colour_is_transparent():
    rows = [bytes([10, 20, 30, 1, 2, 3])]
    raw = png(2, 8, rows, (b"tRNS", struct.pack(">HHH", 10, 20, 30)))
    np.testing.assert_array_equal(decoded(raw), [[[200] * 3, [1, 2, 3]]])


def test_cmyk_is_light_that_two_inks_leave():
    cmyk = RNG.integers(0, 256, (5, 4, 4), np.uint8)
    raw = encoded(Image.fromarray(cmyk, "CMYK"), "TIFF")
    want = (255.0 - cmyk[..., :3]) * (255.0 - cmyk[..., 3:]) / 255
    np.testing.assert_allclose(decoded(raw), want, atol=1)


# What a viewer shows of the stored rows and columns (EXIF 2.3, tag 274: which side of
# the picture the 0th row and column are).
UPRIGHT = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],  # 0th row: top, 0th column: right
    3: lambda p: p[::-1, ::-1],  # bottom, right
    4: lambda p: p[::-1],  # bottom, left
    5: lambda p: p.transpose(1, 0, 2),  # left, top
    6: lambda p: p[::-1].transpose(1, 0, 2),  # right, top
    7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),  # right, bottom
    8: lambda p: p[:, ::-1].transpose(1, 0, 2),  # left, bottom
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_turns_a_picture_upright(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = decoded(Image.fromarray(RGB), exif=exif)
    np.testing.assert_array_equal(found, UPRIGHT[orientation](RGB))


def test_the_first_picture_of_an_animation_is_taken():
    frames = [Image.new("RGB", (3, 2), color) for color in ("red", "blue")]
    raw = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decoded(raw), np.tile([255, 0, 0], (2, 3, 1)))


def test_what_has_no_black_and_white_is_refused():
    floats = Image.fromarray(RNG.random((3, 2), np.float32))
    for image in (floats, Image.new("I", (3, 2)), Image.new("LAB", (3, 2))):
        with pytest.raises(ValueError, match="is a .* TIFF, and which values"):
            decoded(image, form="TIFF")


def test_damaged_files_and_bombs_are_refused():
    raw = encoded(Image.fromarray(RGB))
    for bad, why in (
        (b"text", "not a picture"),
        (raw[:60], "damaged"),
        (raw[:8] + bytes(40), "picture"),
    ):
        with pytest.raises(ValueError, match=why):
            decoded(bad)
    bomb = png(2, 8, [b"\0" * 3])
    wide = struct.pack(">II", 60_000, 60_000)
    bomb = bomb[:16] + wide + bomb[24:29] + struct.pack(">I", 0) + bomb[33:]
    fixed = zlib.crc32(bomb[12:29])
    bomb = bomb[:29] + struct.pack(">I", fixed) + bomb[33:]
    with pytest.raises(ValueError, match="exceeds limit"):
        decoded(bomb)


# Resampling, from its definition: output x lies at (x + 1/2) n / m - 1/2 of the input,
# and weighs the pixels at a distance d by k(d / s), s = max(n / m, 1), normalised;
# columns first, rounded to 8 bits in between, as Pillow says it does.
def box(d):
    return ((d > -0.5) & (d <= 0.5)).astype(float)


def cubic(d):  # Keys (1981), a = -1/2
    d = abs(d)
    near, far = 1.5 * d**3 - 2.5 * d**2 + 1, -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
    return np.where(d < 1, near, np.where(d < 2, far, 0))


def weights(n, m, kernel):
    centers = (np.arange(m) + 0.5) * n / m - 0.5
    found = kernel((np.arange(n)[None] - centers[:, None]) / max(n / m, 1))
    return found / found.sum(axis=1, keepdims=True)


def resized(image, height, width, kernel):
    rows, columns = weights(len(image), height, kernel), None
    columns = weights(image.shape[1], width, kernel)
    level = np.einsum("xw,hwc->hxc", columns, image.astype(float))
    level = np.floor(level + 0.5).clip(0, 255)
    level = np.einsum("yh,hxc->yxc", rows, level)
    return np.floor(level + 0.5).clip(0, 255)


def by_adm(image, size, side):
    while side(image.shape[:2]) >= 2 * size:
        image = resized(image, image.shape[0] // 2, image.shape[1] // 2, box)
    factor = size / side(image.shape[:2])
    height, width = (round(n * factor) for n in image.shape[:2])
    return resized(image, height, width, cubic)


def same(found, want):
    """But for ties: Pillow's weights have 22 bits."""
    found, want = np.asarray(found).astype(int), want.astype(int)
    assert found.shape == want.shape
    assert abs(found - want).max() <= 1
    assert (found == want).mean() > 0.995


# Odd sides have odd halves: else a box's edge falls on a pixel, and rounding decides.
@pytest.mark.parametrize(
    "size", [(64, 48), (39, 87), (20, 16), (9, 200), (16, 25), (16, 16)]
)
def test_center_crop_is_adms(size):
    pixels = RNG.integers(0, 256, (*size, 3), np.uint8)
    want = by_adm(pixels, 16, min)
    top, left = (want.shape[0] - 16) // 2, (want.shape[1] - 16) // 2
    found = pictures.center_crop(Image.fromarray(pixels), 16)
    same(found, want[top : top + 16, left : left + 16])


def test_small_pictures_are_enlarged():
    pixels = RNG.integers(0, 256, (5, 7, 3), np.uint8)
    want = resized(pixels, 16, 22, cubic)[:, 3:19]
    same(pictures.center_crop(Image.fromarray(pixels), 16), want)


def test_pad_keeps_the_whole_picture_between_bars():
    pixels = RNG.integers(0, 256, (23, 64, 3), np.uint8)
    found = np.asarray(pictures.pad(Image.fromarray(pixels), 16, 7))
    inside = by_adm(pixels, 16, max)
    assert inside.shape == (5, 16, 3)
    same(found[5:10], inside)
    assert (found[:5] == 7).all() and (found[10:] == 7).all()
    gray = pictures.pad(Image.fromarray(pixels[..., 0]), 16, 7)
    assert np.asarray(gray)[0, 0] == 7


def test_random_crops_are_windows_of_the_sizes_asked_for():
    # A ramp: a pixel's level says where in the picture it was.
    x, y = np.meshgrid(np.arange(200), np.arange(120))
    ramp = np.dstack([x, y, 0 * x])
    picture = Image.fromarray(ramp.astype(np.uint8))
    draw, sides, lefts, tops = np.random.default_rng(0), [], [], []
    for _ in range(300):
        crop = pictures.random_crop(picture, 20, 0.5, draw)
        pixels = np.asarray(crop).astype(float)
        assert pixels.shape == (20, 20, 3)
        slope = (pixels[10, 16, 0] - pixels[10, 4, 0]) / 12
        sides.append(20 * slope)
        lefts.append(pixels[10, 2, 0] - 2.5 * slope)
        tops.append(pixels[2, 10, 1] - 2.5 * slope)
    # The shorter side is 120: windows of 60 to 120 pixels, everywhere.
    assert 55 < min(sides) < 65 and 115 < max(sides) < 125
    assert min(lefts) < 8 and max(lefts) > 115 and min(tops) < 8 and max(tops) > 50
    again = pictures.random_crop(picture, 20, 0.5, np.random.default_rng(1))
    same = pictures.random_crop(picture, 20, 0.5, np.random.default_rng(1))
    assert again.tobytes() == same.tobytes()


def test_a_thread_of_a_picture_is_refused_before_it_is_enlarged():
    with pytest.raises(ValueError, match="100000 x 1 pixels is too narrow"):
        pictures.center_crop(Image.new("RGB", (100_000, 1)), 64)
    assert math.prod(pictures.pad(Image.new("L", (9999, 1)), 8, 0).size) == 64
