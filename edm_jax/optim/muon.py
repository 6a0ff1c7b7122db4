"""Muon: the momentum of every kernel, orthogonalized."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from edm_jax.fields import Count, Fraction, Index, NotNegative, Settings
from edm_jax.models.unet import Params

# Coefficients of x, x^3 and x^5.
QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan's
CUBIC = (1.5, -0.5, 0.0)  # Newton's, which converges below sqrt(3)
RMS = 0.2  # of an orthogonalized update, as Adam's usually is (arXiv 2502.16982, Sec. 2.2)


@dataclasses.dataclass(frozen=True)
class Muon(Settings):
    """0.2 sqrt(max(n, m)) U V^T, U S V^T the momentum of a kernel as an (n, m) matrix.

    Newton-Schulz iterations of Jordan's quintic polynomial (kellerjordan.github.io, 2024)
    replace the decomposition. After 5 of them the singular values are not 1, but lie
    between about 0.7 and 1.2 if they were above a hundredth of the Frobenius norm.
    Then `polish` steps of the cubic x (3 - x^2) / 2 bring those to 1: 3 to within 1e-2.
    Every kernel becomes a matrix, so that none falls back to Adam: convolutions
    (k, k, in, out) become (k k in, out), and linear layers stay (in, out), including the
    label embedding and the last layer. Everything else (biases, gains, norms) takes
    Adam's update. The factor makes the RMS 0.2, close to that of Adam's update, so that
    both can share alpha_ref.
    """

    beta: Fraction = 0.95
    nesterov: bool = True
    ns_steps: Count = 5
    polish: Index = 0
    adam_beta1: Fraction = 0.9
    adam_beta2: Fraction = 0.99
    eps: NotNegative = 1e-8

    def rule(self) -> optax.GradientTransformation:
        # The state's layout for one polynomial differs from that for a list of them.
        mixed = (*[QUINTIC] * self.ns_steps, *[CUBIC] * self.polish)
        matrices = contrib.scale_by_muon(
            mixed if self.polish else QUINTIC,
            self.ns_steps + self.polish,
            beta=self.beta,
            eps=self.eps,
            nesterov=self.nesterov,
            weight_dimension_numbers=_axes,
        )
        matched = optax.stateless_with_tree_map(
            lambda u, _: jnp.asarray(u) * _to_rms(jnp.shape(u))
        )
        adam = optax.scale_by_adam(self.adam_beta1, self.adam_beta2, self.eps)
        return optax.partition(
            {"muon": optax.chain(matrices, matched), "adam": adam}, _labels
        )


def _labels(params: Params) -> Params:
    def label(path: tuple[Any, ...], w: jax.Array) -> str:
        is_kernel = getattr(path[-1], "key", None) == "kernel" and w.ndim >= 2
        return "muon" if is_kernel else "adam"

    return jax.tree_util.tree_map_with_path(label, params)


def _axes(params: Params) -> Params:
    return jax.tree.map(
        lambda w: contrib.MuonDimensionNumbers(tuple(range(w.ndim - 1)), w.ndim - 1),
        params,
    )


def _to_rms(shape: tuple[int, ...]) -> float:
    *inputs, outputs = shape
    return RMS * math.sqrt(max(math.prod(inputs), outputs))
