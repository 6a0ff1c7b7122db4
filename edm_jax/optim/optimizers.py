"""Update rules: from gradients to updates, before the learning rate."""

import dataclasses
from typing import Protocol, runtime_checkable

import optax

from edm_jax.fields import Fraction, NotNegative, Settings


@runtime_checkable
class Optimizer(Protocol):
    """An entry of OPTIMIZERS."""

    def rule(self) -> optax.GradientTransformation:
        """The transformation of gradients into updates of rate 1."""
        ...


@dataclasses.dataclass(frozen=True)
class Adam(Settings):
    """m / (sqrt(v) + eps), both moments bias-corrected (arXiv 1412.6980, Alg. 1)."""

    beta1: Fraction = 0.9
    beta2: Fraction = 0.99  # App. B.2
    eps: NotNegative = 1e-8

    def rule(self) -> optax.GradientTransformation:
        """The transformation of gradients into updates of rate 1."""
        return optax.scale_by_adam(b1=self.beta1, b2=self.beta2, eps=self.eps)


OPTIMIZERS = {"adam": Adam}
