"""A folder of pictures as people have them: sizes, kinds, names, and a broken one."""

from pathlib import Path

import numpy as np
from PIL import Image

KINDS = ("RGB", "RGB", "RGB", "L", "RGBA", "P", "CMYK", "LA", "1")
CLASSES = ("Äpfel", "birds", "猫")


def write(place: Path, count: int = 500, seed: int = 0) -> None:
    """Writes `count` files below `place`: pictures of discs, one broken, one of text."""
    rng = np.random.default_rng(seed)
    for i in range(count - 2):
        folder = place / CLASSES[i % len(CLASSES)]
        folder.mkdir(parents=True, exist_ok=True)
        kind = KINDS[i % len(KINDS)]
        width, height = rng.integers(24, 160, 2).tolist()
        image = Image.fromarray(_disc(rng, height, width, i % len(CLASSES)))
        image = image.convert(kind)
        exif = Image.Exif()
        exif[0x0112] = int(rng.integers(1, 9))
        # JPEG has neither palettes nor transparency.
        is_photo = kind in ("RGB", "L", "CMYK") and (i % 2 or kind == "CMYK")
        name = f"Bild {i} größe{'.JPG' if is_photo else '.png'}"
        image.save(folder / name, **({"exif": exif} if is_photo else {}))
    whole = next(place.rglob("*.png")).read_bytes()
    (place / CLASSES[0] / "broken.png").write_bytes(whole[: len(whole) // 2])
    (place / "notes.txt").write_text("not a picture")


def _disc(rng: np.random.Generator, height: int, width: int, label: int) -> np.ndarray:
    """(height, width, 3) uint8: a disc of the class's colour on a ramp."""
    y, x = np.mgrid[:height, :width]
    radius = min(height, width) * rng.uniform(0.2, 0.4)
    inside = np.hypot(y - height / 2, x - width / 2) < radius
    color = np.roll([220, 60, 90], label) + rng.integers(-30, 30, 3)
    ramp = (x / width * 120 + y / height * 60)[..., None] + rng.integers(0, 60, 3)
    return np.where(inside[..., None], color, ramp).clip(0, 255).astype(np.uint8)
