"""The edge of stability: the curvature above which steps at a given rate diverge."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from edm_jax.models.unet import Params
from edm_jax.optim.chain import OptimizerConfig
from edm_jax.optim.links import links
from edm_jax.optim.optimizers import LAMB, SGD, Adam, AMSGrad, NAdam


class Edge(NamedTuple):
    """Steps are stable while the largest eigenvalue of P^-1 H is below limit / rate.

    H is the Hessian of the loss and P = diag(scale), or the identity if `scale` is None.
    """

    limit: float
    scale: Params | None


def edge(opt: OptimizerConfig, opt_state: Any, beta1: float | None) -> Edge | None:
    """Returns the edge of a method; None if it is not known.

    For steps w -= rate P^-1 m on a quadratic, the limit is 2 (1 + momentum) for SGD's
    m = momentum m + g, and 2 (1 + beta1) / (1 - beta1) for Adam's averaged m, with
    P = sqrt(v) + eps and v held fixed (arXiv 2207.14484, Sec. 2: 38 at beta1 = 0.9). It is
    not known before the first step. `beta1` is the value if a schedule changes it.
    """
    method = opt.method
    if isinstance(method, SGD) and not method.nesterov:
        return Edge(2 * (1 + (method.momentum if beta1 is None else beta1)), None)
    moments = links(opt_state, optax.ScaleByAdamState)
    if not isinstance(method, Adam) or isinstance(method, LAMB | NAdam | AMSGrad):
        return None
    if not moments or not int(moments[0].count):
        return None
    beta1 = method.beta1 if beta1 is None else beta1
    seen = 1 - method.beta2 ** int(moments[0].count)
    scale = jax.tree.map(
        lambda v: jnp.sqrt(jnp.asarray(v) / seen) + method.eps, moments[0].nu
    )
    return Edge(2 * (1 + beta1) / (1 - beta1), scale)
