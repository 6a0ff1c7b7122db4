"""The top Hessian eigenvalue, on functions whose spectrum is known."""

import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax.evals import sharpness


def rotated(spectrum, seed=0):
    """A symmetric matrix with that spectrum."""
    count = len(spectrum)
    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((count, count)))
    return q @ np.diag(spectrum) @ q.T


@pytest.mark.slow
@pytest.mark.parametrize(
    "spectrum",
    [
        np.geomspace(1e-4, 50.0, 200),
        np.append(np.linspace(-9.0, 1.0, 99), 2.0),  # the largest, not the longest
        [3.0, 3.0, 3.0],
        [-1.0, -2.0],
        [7.0],
    ],
)
def test_the_top_eigenvalue_of_a_known_spectrum(spectrum):
    matrix = rotated(spectrum)
    found = sharpness.top_eigenvalue(lambda v: matrix @ v, len(matrix), 40)
    assert found == pytest.approx(max(spectrum), rel=1e-3)
    assert found <= max(spectrum) * (1 + 1e-9) or max(spectrum) < 0


def test_the_sharpness_of_a_quadratic_loss_is_its_largest_curvature():
    """x^T A x / 2 over the leaves of a tree, plus what bends nowhere."""
    matrix = jnp.asarray(rotated([0.1, 1.0, 2.0, 30.0, 4.0]), jnp.float32)

    def loss(params, batch, keys):
        x = jnp.concatenate([params["a"], params["b"].ravel()])
        return x @ matrix @ x / 2 + jnp.sum(x) + len(keys) * 0.0, {}

    batch = {"image": np.zeros((4, 1)), "label": np.zeros(4, np.int32)}
    params = {"a": jnp.ones(3), "b": jnp.full((1, 2), -2.0)}
    measure = sharpness.Sharpness(loss, batch, iterations=10)
    assert measure(params) == pytest.approx(30.0, rel=1e-4)
    scale = {"a": jnp.asarray([0.5, 2.0, 1.0]), "b": jnp.asarray([[4.0, 0.1]])}
    whole = np.concatenate([scale["a"], scale["b"][0]])
    expected = np.linalg.eigvals(np.asarray(matrix) / whole[:, None]).real.max()
    assert measure(params, scale) == pytest.approx(expected, rel=1e-4)
    nowhere = {"a": jnp.full(3, jnp.nan), "b": jnp.zeros((1, 2))}
    assert measure(nowhere) == pytest.approx(30.0, rel=1e-4)  # constant curvature


def test_a_curvature_that_is_not_finite_is_not_a_number():
    assert np.isnan(sharpness.top_eigenvalue(lambda v: v * np.nan, 5))
