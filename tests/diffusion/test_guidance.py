"""Guidance against its formula, and within its interval only."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax.diffusion.guidance import guided


def strong(x, sigma):
    return x / (1 + sigma)[:, None, None, None] + 1


def weak(x, sigma):
    return x / (1 + sigma)[:, None, None, None] - 3


@pytest.fixture
def noise():
    return jnp.asarray(
        np.random.default_rng(0).standard_normal((8, 4, 4, 1)), jnp.float32
    )


def test_guidance_weight_1_is_the_plain_denoiser(noise):
    sigma = jnp.full(8, 2.0)
    found = guided(strong, weak, 1.0)(noise, sigma)
    np.testing.assert_allclose(found, strong(noise, sigma), rtol=1e-6)


def test_guidance_extrapolates_from_the_guide(noise):
    sigma = jnp.full(8, 2.0)
    # w D + (1 - w) D_guide, with D - D_guide = 4.
    expected = strong(noise, sigma) + 0.5 * 4
    found = jax.jit(guided(strong, weak, 1.5))(noise, sigma)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_guidance_acts_inside_its_half_open_interval_only(noise):
    sigma = jnp.array([0.1, 0.28, 0.29, 1.0, 2.9, 2.91, 10.0, 80.0])
    found = guided(strong, weak, 2.0, interval=(0.28, 2.9))(noise, sigma)
    shift = np.asarray(found - strong(noise, sigma))[:, 0, 0, 0]
    np.testing.assert_allclose(shift, [0, 0, 4, 4, 4, 0, 0, 0], atol=1e-5)


def test_the_guide_is_not_evaluated_outside_the_interval(noise):
    seen = []

    def counted(x, sigma):
        seen.append(float(sigma[0]))
        return weak(x, sigma)

    denoise = guided(strong, counted, 2.0, interval=(0.28, 2.9))
    with jax.disable_jit():
        for sigma in (0.28, 1.0, 2.9, 3.0):
            denoise(noise, jnp.full(8, sigma))
    np.testing.assert_allclose(seen, [1.0, 2.9], rtol=1e-6)
