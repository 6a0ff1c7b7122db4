"""Networks with published weights: what they share, and how files of tensors fill them.

They are for inference only, in float32, with products of full precision.
"""

from collections.abc import Collection, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

Array = jax.Array
Params = dict[str, Any]
PRECISION = jax.lax.Precision.HIGHEST  # TPUs would round factors to bfloat16

# What PyTorch calls the leaves, and the order of its axes that gives ours.
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "mean": "running_mean",
    "var": "running_var",
}
_AXES = {2: (1, 0), 4: (2, 3, 1, 0)}


class BatchNorm(nn.Module):
    """scale (x - mean) / sqrt(var + eps) + bias, with the stored statistics."""

    eps: float = 1e-3

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (x.shape[-1],)
        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        scale = self.param("scale", ones, shape)
        bias = self.param("bias", zeros, shape)
        mean = self.param("mean", zeros, shape)
        var = self.param("var", ones, shape)
        factor = scale * jax.lax.rsqrt(var + self.eps)
        spread = (None,) * (x.ndim - 1)
        return x * factor[spread] + (bias - mean * factor)[spread]


def shapes(module: nn.Module, side: int) -> dict[str, tuple[int, ...]]:
    """{name: shape} of the parameters, for images (N, side, side, 3)."""
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    made: Any = jax.eval_shape(module.init, jax.random.key(0), image)["params"]
    leaves: dict[str, Any] = flatten_dict(made, sep="/")
    return {name: leaf.shape for name, leaf in leaves.items()}


def fill(
    wanted: Mapping[str, tuple[int, ...]],
    tensors: Mapping[str, np.ndarray],
    unused: Collection[str] = (),
) -> Params:
    """The parameters of a network, of a file's tensors, each used exactly once.

    The names are those that PyTorch's module of the same structure gives, or ours, as
    of files that Flax wrote; kernels are transposed where PyTorch orders their axes.

    Args:
        wanted: `shapes` of the network.
        tensors: of the file, by name.
        unused: names, or last parts of names, that inference does not need.

    Returns:
        Nested dicts of float32.

    Raises:
        ValueError: tensors are missing, left over, or of other shapes.
    """
    theirs = {name: spelled(name) for name in wanted}
    is_ours = {name.replace("/", ".") for name in wanted} <= tensors.keys()
    if is_ours:
        theirs = {name: name.replace("/", ".") for name in wanted}
    held = {
        name
        for name in tensors
        if name not in unused and name.rpartition(".")[2] not in unused
    }
    if missing := sorted(set(theirs.values()) - tensors.keys()):
        raise ValueError(f"lacks {len(missing)} tensors, the first {missing[0]!r}")
    if extra := sorted(held - set(theirs.values())):
        raise ValueError(
            f"holds {len(extra)} tensors that the network has no place for, the first "
            f"{extra[0]!r}"
        )
    found = {}
    for name, shape in wanted.items():
        value = np.asarray(tensors[theirs[name]], np.float32)
        if name.endswith("kernel") and not is_ours:
            value = value.transpose(_AXES[value.ndim]) if value.ndim in _AXES else value
        if value.shape != shape:
            raise ValueError(
                f"holds {theirs[name]!r} of shape {tensors[theirs[name]].shape}, and "
                f"the network's is another"
            )
        if not np.isfinite(value).all():
            raise ValueError(f"holds {theirs[name]!r}, which is not finite")
        found[name] = value
    return unflatten_dict(found, sep="/")


def spelled(name: str) -> str:
    path, _, leaf = name.rpartition("/")
    dotted = _LEAVES.get(leaf, leaf)
    return f"{path}/{dotted}".strip("/").replace("/", ".")
