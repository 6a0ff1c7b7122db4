"""Transformations of training images, drawn anew for each example of each step.

They run on the device, inside the step, on normalized images: the draw belongs to the
example, and hosts, devices and micro-batches do not change it.
"""

import dataclasses
import functools
import math
from typing import ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from edm_jax.fields import NotNegative, Settings, Share

Array = jax.Array

# Apart from the three streams that the loss splits off the same key.
_SALT = 0xA06


@runtime_checkable
class Augment(Protocol):
    """An entry of AUGMENTS."""

    labels: ClassVar[int]  # values that tell the network what was done; 0: none

    def apply(self, key: Array, image: Array) -> tuple[Array, Array]:
        """One image (H, W, C) transformed, and its labels (labels,): zeros for none."""
        ...


@dataclasses.dataclass(frozen=True)
class NoAugment(Settings):
    """Images as they are."""

    labels: ClassVar[int] = 0

    def apply(self, key: Array, image: Array) -> tuple[Array, Array]:
        """The image itself."""
        del key
        return image, jnp.zeros(0)


@dataclasses.dataclass(frozen=True)
class Flip(Settings):
    """Mirrored left to right with the probability; the network is not told."""

    labels: ClassVar[int] = 0
    mirrors: ClassVar[bool] = True
    probability: Share = 0.5

    def apply(self, key: Array, image: Array) -> tuple[Array, Array]:
        """The image or its mirror image."""
        flipped = jax.random.bernoulli(key, self.probability)
        return jnp.where(flipped, image[:, ::-1], image), jnp.zeros(0)


@dataclasses.dataclass(frozen=True)
class Edm(Settings):
    """EDM's non-leaky augmentation; the network is told (arXiv 2206.00364, Table 6).

    Of these transformations (App. F.2), x_flip always takes part and each other one with
    `probability`; the parameters a of what does not are 0:

        x_flip       S(1 - 2 a0, 1)                  a0 ~ U{0, 1}
        y_flip       S(1, 1 - 2 a1)                  a1 ~ U{0, 1}
        scale        S(z, z), z = 2^(scale a2)       a2 ~ N(0, 1)
        rotation     R(-a3)                          a3 ~ rotation U(-pi, pi)
        anisotropy   R(a4) S(b, 1 / b) R(-a4),       a4 ~ U(-pi, pi)
                     b = 2^(anisotropy a5)           a5 ~ N(0, 1)
        translation  T(translation (a6, a7) sides)   a6, a7 ~ N(0, 1)

    S scales, R rotates and T translates about the image's center; x points to the right,
    y down. [choice] The first line acts first. The network is told a0, a1, a2,
    cos a3 - 1, sin a3, a5 cos a4, a5 sin a4, a6, a7: zeros are the image as it is.

    A strength of 0 leaves its transformation out, and the draws of the others unchanged.
    [choice] The image is resampled once, by `resample`; untransformed, it keeps its bits.
    """

    labels: ClassVar[int] = 9
    probability: Share = 0.12
    x_flip: bool = True
    y_flip: bool = True
    scale: NotNegative = 0.2  # standard deviation, in octaves
    rotation: Share = 1.0  # of half a turn to either side
    anisotropy: NotNegative = 0.2  # standard deviation, in octaves
    translation: NotNegative = 0.125  # standard deviation, in sides of the image

    @property
    def mirrors(self) -> bool:
        """Whether it makes mirror images."""
        return self.x_flip or self.y_flip

    def apply(self, key: Array, image: Array) -> tuple[Array, Array]:
        """The image, transformed, and the 9 values."""
        a = self._draw(key)
        height, width, _ = image.shape
        center_y, center_x = (height - 1) / 2, (width - 1) / 2
        y, x = jnp.mgrid[:height, :width].astype(jnp.float32)
        # From an output pixel back to the place in the image that it shows: the inverses,
        # last transformation first.
        x = x - center_x - self.translation * width * a[6]
        y = y - center_y - self.translation * height * a[7]
        stretch = jnp.exp2(self.anisotropy * a[5])
        x, y = _rotate(x, y, -a[4])
        x, y = _rotate(x / stretch, y * stretch, a[4] + a[3])
        zoom = jnp.exp2(self.scale * a[2])
        x = x / zoom * (1 - 2 * a[0]) + center_x
        y = y / zoom * (1 - 2 * a[1]) + center_y
        rotation = jnp.cos(a[3]) - 1, jnp.sin(a[3])
        anisotropy = a[5] * jnp.cos(a[4]), a[5] * jnp.sin(a[4])
        values = a[0], a[1], a[2], *rotation, *anisotropy, a[6], a[7]
        return resample(image, x, y), jnp.stack(values)

    def _draw(self, key: Array) -> Array:
        """a0 ... a7."""
        gate_key, flip_key, angle_key, normal_key = jax.random.split(key, 4)
        strengths = self.y_flip, self.scale, self.rotation, self.anisotropy
        wanted = jnp.array([bool(each) for each in (*strengths, self.translation)])
        happens = jax.random.bernoulli(gate_key, self.probability, (5,)) & wanted
        mirrors, zooms, turns, stretches, moves = happens
        flip_x, flip_y = jax.random.bernoulli(flip_key, 0.5, (2,))
        angles = jax.random.uniform(angle_key, (2,), minval=-math.pi, maxval=math.pi)
        normals = jax.random.normal(normal_key, (4,))
        drawn = (
            flip_x * self.x_flip,
            flip_y * mirrors,
            normals[0] * zooms,
            angles[0] * turns * self.rotation,
            angles[1] * stretches,
            normals[1] * stretches,
            normals[2] * moves,
            normals[3] * moves,
        )
        return jnp.stack([jnp.float32(each) for each in drawn])


@dataclasses.dataclass(frozen=True)
class EdmUnflipped(Edm):
    """`edm` for images whose mirror images are others, such as digits: without flips."""

    x_flip: bool = False
    y_flip: bool = False


AUGMENTS = {
    "none": NoAugment,
    "flip": Flip,
    "edm": Edm,
    "edm_unflipped": EdmUnflipped,
}


def apply(augment: Augment, keys: Array, images: Array) -> tuple[Array, Array | None]:
    """Transforms images (N, H, W, C), each by its own key (N,).

    Returns:
        The images, and labels (N, labels) for the network; None where it takes none.
    """
    if isinstance(augment, NoAugment):
        return images, None

    def one(key: Array, image: Array) -> tuple[Array, Array]:
        return augment.apply(jax.random.fold_in(key, _SALT), image)

    images, labels = jax.vmap(one)(keys, images)
    return images, labels if augment.labels else None


def resample(image: Array, x: Array, y: Array) -> Array:
    """An image (H, W, C) at places (H', W'), in pixels from the top left one's center.

    Cubic convolution with a = -1/2 (Keys 1981), exact for quadratic functions and at
    pixels. Beyond its edges the image is mirrored about the outermost pixels.
    """

    def taps(place: Array, size: int) -> list[tuple[Array, Array]]:
        first = jnp.floor(place)
        found = []
        for offset in range(-1, 3):
            index = first.astype(jnp.int32) + offset
            last = size - 1
            mirrored = jnp.abs((index + last) % max(2 * last, 1) - last)
            found.append((mirrored, _cubic(jnp.abs(place - first - offset))))
        return found

    height, width, _ = image.shape
    rows, columns = taps(y, height), taps(x, width)
    return functools.reduce(
        jnp.add,
        (
            (weight_y * weight_x)[..., None] * image[row, column]
            for row, weight_y in rows
            for column, weight_x in columns
        ),
    )


def _cubic(distance: Array) -> Array:
    """Keys's kernel with a = -1/2 at distances in [0, 2]."""
    d = distance
    near = (1.5 * d - 2.5) * d**2 + 1
    far = ((-0.5 * d + 2.5) * d - 4) * d + 2
    return jnp.where(d <= 1, near, far)


def _rotate(x: Array, y: Array, angle: Array) -> tuple[Array, Array]:
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return cos * x - sin * y, sin * x + cos * y
