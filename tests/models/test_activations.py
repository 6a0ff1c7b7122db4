"""Every activation equals its formula, and its preserving form has unit magnitude."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats
from scipy.special import erf, expit

from edm_jax.models import activations
from edm_jax.models.activations import ACTIVATIONS

# (entry, its formula in float64)
FORMULAS = {
    "silu": (activations.SiLU(), lambda x: x * expit(x)),
    "swish": (activations.Swish(1.7), lambda x: x * expit(1.7 * x)),
    "relu": (activations.ReLU(), lambda x: np.maximum(x, 0)),
    "leaky_relu": (activations.LeakyReLU(0.2), lambda x: np.where(x > 0, x, 0.2 * x)),
    "elu": (
        activations.ELU(1.3),
        lambda x: np.where(x > 0, x, 1.3 * np.expm1(np.minimum(x, 0))),
    ),
    "gelu": (activations.GELU(), lambda x: x * (1 + erf(x / np.sqrt(2))) / 2),
    "mish": (activations.Mish(), lambda x: x * np.tanh(np.log1p(np.exp(x)))),
}


def test_every_entry_is_tried():
    assert FORMULAS.keys() == ACTIVATIONS.keys()


@pytest.mark.parametrize("name", FORMULAS)
def test_an_activation_is_its_formula(name):
    activation, formula = FORMULAS[name]
    x = np.linspace(-6, 6, 101)
    y = activations.resolve(activation, preserving=False)(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(y, formula(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", FORMULAS)
def test_the_preserving_form_divides_by_the_magnitude_under_a_standard_normal(name):
    activation, formula = FORMULAS[name]

    def integrand(x):
        return formula(x) ** 2 * stats.norm.pdf(x)

    mean_square, _ = integrate.quad(integrand, -12, 12, points=[0])
    assert activations.magnitude(activation) == round(mean_square**0.5, 3)
    x = np.linspace(-6, 6, 101)
    # While it is traced, too.
    y = jax.jit(activations.resolve(activation, True))(jnp.asarray(x, jnp.float32))
    expected = formula(x) / round(mean_square**0.5, 3)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=2e-6)


def test_silu_has_the_papers_constant():
    assert activations.magnitude(activations.SiLU()) == 0.596  # Eq. 81


@pytest.mark.parametrize("name", FORMULAS)
def test_half_precision_stays_half_precision(name):
    y = activations.resolve(FORMULAS[name][0], True)(jnp.ones(3, jnp.bfloat16))
    assert y.dtype == jnp.bfloat16
