"""Augmentation against a scalar derivation, and whose randomness it is."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import configs
from edm_jax.data import augment
from edm_jax.diffusion import example_keys

RNG = np.random.default_rng(0)
SQUARE = RNG.normal(size=(9, 9, 2)).astype(np.float32)
MANY = 4000


@dataclasses.dataclass(frozen=True)
class Fixed(augment.Edm):
    """With the parameters a0 ... a7 that are given instead of drawn ones."""

    a: tuple[float, ...] = ()

    def _draw(self, key):
        return jnp.array(self.a, jnp.float32)


def transformed(image, settings=None, **a):
    """The image and its labels, of parameters by name; the others are 0."""
    given = tuple(a.get(f"a{i}", 0.0) for i in range(8))
    entry = Fixed(**(settings or {}), a=given)
    return map(np.asarray, entry.apply(jax.random.key(0), jnp.asarray(image)))


def forward(a, side, scale=0.2, anisotropy=0.2, translation=0.125):
    """Table 6 in homogeneous coordinates about the center, float64: input to output."""

    def scaling(x, y):
        return np.diag([x, y, 1.0])

    def rotation(t):
        c, s = math.cos(t), math.sin(t)
        return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])

    moved = np.eye(3)
    moved[:2, 2] = side * translation * a[6], side * translation * a[7]
    zoom, stretch = 2 ** (scale * a[2]), 2 ** (anisotropy * a[5])
    total = np.eye(3)
    for matrix in (
        scaling(1 - 2 * a[0], 1),
        scaling(1, 1 - 2 * a[1]),
        scaling(zoom, zoom),
        rotation(-a[3]),
        rotation(a[4]) @ scaling(stretch, 1 / stretch) @ rotation(-a[4]),
        moved,
    ):
        total = matrix @ total
    return total


@pytest.mark.slow
@pytest.mark.parametrize("flips", [(0, 0), (1, 0), (0, 1)])
def test_all_transformations_together_are_the_papers_matrices(flips):
    a = [*flips, 0.7, 0.4, -1.1, 0.9, 0.3, -0.5]
    side = 32
    y, x = np.mgrid[:side, :side] - (side - 1) / 2

    def picture(x, y):  # cubic convolution is exact for it
        return 1 + 0.3 * x - 0.2 * y + 0.02 * x**2 - 0.03 * x * y + 0.01 * y**2

    image, values = transformed(
        picture(x, y)[..., None].astype(np.float32),
        **{f"a{i}": value for i, value in enumerate(a)},
    )
    place = np.stack([x.ravel(), y.ravel(), np.ones(side**2)])
    source = np.linalg.inv(forward(a, side)) @ place
    inside = (np.abs(source[:2]).max(axis=0) < side / 2 - 2).reshape(side, side)
    assert inside.sum() > 300
    expected = picture(source[0], source[1]).reshape(side, side)
    np.testing.assert_allclose(image[inside, 0], expected[inside], atol=2e-3)
    turn, stretch = (math.cos(0.4) - 1, math.sin(0.4)), 0.9 * np.exp(-1.1j)
    expected = [*flips, 0.7, *turn, stretch.real, stretch.imag, 0.3, -0.5]
    np.testing.assert_allclose(values, expected, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_quarter_turns_are_those_of_numpy(quarters):
    image, _ = transformed(SQUARE, a3=quarters * math.pi / 2)
    np.testing.assert_allclose(image, np.rot90(SQUARE, quarters), atol=2e-5)


def test_flips_and_whole_pixels_move_pixels_only():
    np.testing.assert_array_equal(next(transformed(SQUARE, a0=1.0)), SQUARE[:, ::-1])
    np.testing.assert_array_equal(next(transformed(SQUARE, a1=1.0)), SQUARE[::-1])
    image, _ = transformed(SQUARE, {"translation": 1 / 9}, a6=2.0, a7=-1.0)
    padded = np.pad(SQUARE, ((0, 1), (2, 0), (0, 0)), mode="reflect")
    np.testing.assert_array_equal(image, padded[1:, :-2])
    np.testing.assert_array_equal(next(transformed(SQUARE)), SQUARE)


def test_scaling_is_that_of_jax_image():
    image, _ = transformed(SQUARE, {"scale": 1.0}, a2=1.0)
    zoom = jnp.full(2, 2.0)
    # Its pixels are squares from 0 to 9, scaled about a corner.
    expected = jax.image.scale_and_translate(
        SQUARE, SQUARE.shape, (0, 1), zoom, -jnp.full(2, 4.5), "cubic"
    )
    np.testing.assert_allclose(image, expected, atol=1e-5)


def test_images_are_mirrored_beyond_their_edges_as_often_as_it_takes():
    far = jnp.arange(-20.0, 30.0)
    row = augment.resample(jnp.asarray(SQUARE), far[None], jnp.zeros((1, 50)))
    padded = np.pad(SQUARE[:1], ((0, 0), (20, 21), (0, 0)), mode="reflect")
    np.testing.assert_array_equal(row, padded)


@functools.partial(jax.jit, static_argnums=0)
def apply(entry, keys):
    """What becomes of the same image with each key: images and values."""
    images = jnp.broadcast_to(SQUARE[:, :, :1], (len(keys), 9, 9, 1))
    return augment.apply(entry, keys, images)


@pytest.fixture(scope="module")
def many():
    """Images and values of many examples of one step."""
    keys = example_keys(jax.random.PRNGKey(1), jnp.int32(2), jnp.arange(MANY))
    return keys, *map(np.asarray, apply(augment.Edm(), keys))


def test_values_are_zero_exactly_where_the_image_keeps_its_bits(many):
    _, images, values = many
    untouched = (images == SQUARE[:, :, :1]).all(axis=(1, 2, 3))
    np.testing.assert_array_equal(untouched, (values == 0).all(axis=1))
    # Neither flipped in x, nor by any other.
    assert untouched.mean() == pytest.approx(0.5 * 0.94 * 0.88**4, abs=0.03)


def test_each_transformation_has_its_probability_and_distribution(many):
    a0, a1, a2, turn_x, turn_y, stretch_x, stretch_y, a6, a7 = many[2].T
    assert a0.mean() == pytest.approx(0.5, abs=0.03)
    assert a1.mean() == pytest.approx(0.06, abs=0.015)
    stretch = np.hypot(stretch_x, stretch_y)
    groups = {"a2": a2, "a3": np.hypot(turn_x, turn_y), "a5": stretch, "a6": a6}
    for name, values in groups.items():
        assert (values != 0).mean() == pytest.approx(0.12, abs=0.02), name
    np.testing.assert_array_equal(a6 != 0, a7 != 0)  # one transformation
    for name, values in {"a2": a2, "a6": a6, "a7": a7}.items():
        normal = values[values != 0]
        assert normal.mean() == pytest.approx(0, abs=0.2), name
        assert normal.std() == pytest.approx(1, abs=0.12), name
    angle = np.arctan2(turn_y, turn_x + 1)[turn_y != 0]
    assert angle.std() == pytest.approx(math.pi / math.sqrt(3), abs=0.2)
    assert np.mean(stretch[stretch != 0] ** 2) == pytest.approx(1, abs=0.25)
    # Independent of one another.
    together = np.corrcoef([x != 0 for x in (a0, a1, a2, turn_y, stretch, a6)])
    assert np.abs(together - np.eye(6)).max() < 0.08


def test_a_draw_belongs_to_the_example_whatever_batch_it_is_in(many):
    keys, images, values = many
    for host in range(2):
        rows = np.arange(host, MANY, 2)[:50]  # a host's share, and its micro-batch
        part = apply(augment.Edm(), keys[rows])
        np.testing.assert_allclose(part[0], images[rows], atol=1e-5)
        np.testing.assert_allclose(part[1], values[rows], atol=1e-6)


def test_a_strength_of_zero_leaves_out_that_transformation_alone(many):
    keys, _, values = many
    off = augment.EdmUnflipped(scale=0.0, rotation=0.0, translation=0.0)
    _, left = apply(off, keys)
    expected = values * [0, 0, 0, 0, 0, 1, 1, 0, 0]
    np.testing.assert_allclose(left, expected, atol=1e-6)


def test_flips_mirror_their_share_and_tell_nothing():
    keys = jax.random.split(jax.random.key(0), MANY)
    images = jnp.broadcast_to(SQUARE[:2, :3, :1], (MANY, 2, 3, 1))
    flipped, told = augment.apply(augment.Flip(0.2), keys, images)
    assert told is None
    images, flipped = np.asarray(images), np.asarray(flipped)
    as_they_are = (flipped == images).all(axis=(1, 2, 3))
    assert as_they_are.mean() == pytest.approx(0.8, abs=0.03)
    assert (flipped[~as_they_are] == images[0, :, ::-1]).all()


def load(workload="digits-tiny", letter="g", **fields):
    overrides = {name.replace("__", "."): value for name, value in fields.items()}
    return configs.load(f"{configs.letter_path(letter)}:{workload}", overrides)


@pytest.mark.slow
def test_digits_are_not_mirrored_and_latents_only_flipped():
    for name in ("flip", "edm"):
        with pytest.raises(ValueError, match="'digits' are no longer digits"):
            load(data__augment__name=name)
        assert load("cifar10", data__augment__name=name).model.shapes
    straight = {"data__augment__name": "edm", "data__augment__x_flip": "False"}
    assert load(**straight, data__augment__y_flip="False")
    assert load(data__augment__name="edm_unflipped")
    assert load("imagenet512-s", data__augment__name="flip")
    for name in ("edm", "edm_unflipped"):
        with pytest.raises(ValueError, match="channels=4 are treated as latents"):
            load("imagenet512-s", data__augment__name=name)


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("probability", "1.5", "data.augment.probability=1.5, but must be in"),
        ("scale", "-1", "data.augment.scale=-1.0, but must be finite and not"),
        ("rotation", "2", "data.augment.rotation=2.0, but must be in"),
        ("x_flip", "0.5", "data.augment.x_flip=0.5, but must be True or False"),
        ("zoom", "1", "no field 'data.augment.zoom' of 'edm'"),
    ],
)
def test_wrong_values_are_refused_in_a_sentence(field, value, sentence):
    chosen = {"data__augment__name": "edm", f"data__augment__{field}": value}
    with pytest.raises(ValueError, match=sentence):
        load("cifar10", **chosen)
