"""Initial values have the distribution that their docstring states."""

import numpy as np
import pytest

from edm_jax.models import inits
from edm_jax.models.inits import INITS

SHAPE = (3, 3, 40, 60)
FAN_IN, FAN_OUT = 9 * 40, 9 * 60
# name: (variance of a kernel's elements, whether they are uniform)
KERNELS = {
    "adm": (1 / (3 * FAN_IN), True),
    "uniform": (1 / (3 * FAN_IN), True),
    "normal": (1.0, False),
    "lecun": (1 / FAN_IN, False),
    "he": (2 / FAN_IN, False),
    "xavier": (2 / (FAN_IN + FAN_OUT), True),
    "orthogonal": (1 / FAN_IN, False),
}


def rng():
    return np.random.default_rng(0)


def test_every_entry_is_tried():
    assert KERNELS.keys() == INITS.keys()


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_has_its_variance(name):
    kernel = INITS[name]().kernel(rng(), SHAPE, FAN_IN)
    variance, is_uniform = KERNELS[name]
    assert kernel.shape == SHAPE
    # 21,600 draws: their variance is known to 1%, or .6% where they are uniform.
    assert np.var(kernel) == pytest.approx(variance, rel=0.03)
    assert abs(np.mean(kernel)) < 3 * np.sqrt(variance / kernel.size)
    bound = np.sqrt(3 * variance)
    assert (np.abs(kernel).max() <= bound) == is_uniform
    assert np.abs(kernel).max() > 0.99 * bound


@pytest.mark.parametrize("shape", [(3, 3, 4, 7), (5, 12), (12, 5)])
def test_an_orthogonal_kernel_keeps_lengths(shape):
    matrix = inits.Orthogonal().kernel(rng(), shape, int(np.prod(shape[:-1])))
    matrix = matrix.reshape(-1, shape[-1])
    small = min(matrix.shape)
    gram = matrix.T @ matrix if matrix.shape[1] == small else matrix @ matrix.T
    np.testing.assert_allclose(gram, np.eye(small), atol=1e-12)


def test_orthogonal_kernels_are_uniform_over_all_rotations():
    draw = np.random.default_rng(1)
    matrices = [inits.Orthogonal().kernel(draw, (2, 2), 2) for _ in range(2000)]
    # QR by itself leaves signs that depend on the matrix: means far from 0.
    assert np.abs(np.mean(matrices, axis=0)).max() < 0.06


def test_only_the_papers_inits_draw_biases_and_only_adms_label_is_normal():
    for name, cls in INITS.items():
        bias = cls().bias(rng(), (1000,), 400)
        assert np.any(bias) == (name in ("adm", "uniform", "normal"))
        label = cls().label(rng(), (10, 1000), 10)
        is_normal = name in ("adm", "normal")
        assert (np.var(label) == pytest.approx(1, rel=0.05)) == is_normal
