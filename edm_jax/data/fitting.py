"""The fields of readers that make pictures of any size R x R pixels large."""

import dataclasses
from collections.abc import Callable
from typing import Annotated, Literal

import numpy as np
from PIL import Image

from edm_jax.data import pictures
from edm_jax.fields import Index, OneOf, Range, Settings

_Share = Annotated[float, Range(0, 1, "(]", "in (0, 1]")]
_Level = Annotated[int, Range(0, 255, "[]", "from 0 to 255")]
_FITS = ("center", "random", "pad")


@dataclasses.dataclass(frozen=True)
class Fitting(Settings):
    """How pictures are made square; what becomes of other modes says `pictures.decode`.

    `fit`: 'center' takes the square in the middle and 'random' one anywhere, both as ADM
    does; 'pad' takes all of the picture between bars.
    """

    resolution: Index = 64  # R
    channels: Literal[1, 3] = 3
    fit: Annotated[str, OneOf(_FITS)] = "center"
    smallest: _Share = 0.8  # of 'random': its square's side in the shorter side
    background: _Level = 255  # behind transparent pixels, and of the bars

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image (R, R, C)."""
        return self.resolution, self.resolution, self.channels

    def picture(
        self, encoded: bytes, draw: Callable[[], np.random.Generator]
    ) -> np.ndarray:
        """The bytes of an image file as an image (R, R, C) uint8.

        Args:
            encoded: the bytes.
            draw: makes the random numbers of this use of it.

        Raises:
            ValueError: what is wrong with the picture, to follow its name.
        """
        image = pictures.decode(encoded, self.channels, self.background)
        return self.fitted(image, draw)

    def fitted(
        self, image: Image.Image, draw: Callable[[], np.random.Generator]
    ) -> np.ndarray:
        """A decoded picture (RGB or L) as an image (R, R, C) uint8."""
        if self.fit == "random":
            image = pictures.random_crop(image, self.resolution, self.smallest, draw())
        elif self.fit == "pad":
            image = pictures.pad(image, self.resolution, self.background)
        else:
            image = pictures.center_crop(image, self.resolution)
        return np.asarray(image).reshape(self.shape)
