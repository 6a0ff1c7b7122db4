"""Magnitudes of activations and weights by place in the U-Net (App. A.6, Fig. 3, 15)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax import platform
from edm_jax.models.topology import level_of
from edm_jax.models.unet import Params

Magnitudes = dict[str, dict[str, float]]


def weight_magnitudes(params: Params) -> Magnitudes:
    """{'enc_8x8': {'max', 'mean'}, ...} of RMS per output unit over all kernels.

    The weights as they are trained, not averaged [choice]: on the average a shrinking
    norm would measure the averaging.
    """

    def unit_rms(kernel: Any) -> np.ndarray:
        w = np.asarray(kernel, np.float64)
        return np.sqrt(np.mean(np.square(w), axis=tuple(range(w.ndim - 1))))

    return _aggregate(params["unet"], "kernel", unit_rms)


def activation_magnitudes(mean_squares: Params) -> Magnitudes:
    """The same for sqrt(E[h^2]) per feature, from a network's `mean_squares`.

    h are the immediate outputs of convolutions and linear layers, after bias and gain.
    """
    return _aggregate(
        mean_squares["unet"], "output", lambda h: np.sqrt(np.asarray(h, np.float64))
    )


def unit_magnitudes(mean_squares: Params) -> dict[str, np.ndarray]:
    """{'enc_8x8_block0/conv0': (units,), ...}: sqrt(E[h^2]) of every layer's outputs."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(mean_squares["unet"]):
        names = [key.key for key in path if hasattr(key, "key")]
        units = np.sqrt(np.asarray(leaf, np.float64)).ravel()
        found["/".join(name for name in names if name != "output")] = units
    return found


def effective_learning_rates(updates: Params, params: Params) -> dict[str, jax.Array]:
    """{'enc_8x8': ..., 'all': ...} of |dw| / |w| over the kernels of a place.

    On the device. Where the norm of a weight has no effect on the network, this ratio,
    not the learning rate, is its speed of learning (Sec. 2.3).
    """
    squares: dict[str, list[Any]] = {}
    flat = jax.tree_util.tree_leaves_with_path(updates)
    for (path, update), w in zip(flat, jax.tree.leaves(params), strict=True):
        if path[-1].key == "kernel":
            pair = [platform.total(jnp.square(x)) for x in (update, w)]
            names = [key.key for key in path]
            level = level_of(names[1]) if names[0] == "unet" else None
            for place in ("all", level or "other"):
                squares.setdefault(place, []).append(pair)
    sums = {place: map(sum, zip(*pairs)) for place, pairs in squares.items()}
    found = {place: jnp.sqrt(dw / w) for place, (dw, w) in sums.items()}
    return found or {"all": jnp.zeros(())}  # where no kernel is trained


def _aggregate(tree: Params, leaf_name: str, per_unit: Any) -> Magnitudes:
    groups: dict[str, list[np.ndarray]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        names = [key.key for key in path if hasattr(key, "key")]
        # Blocks only, as in the paper: not the input convolution.
        if (level := level_of(names[0])) and names[-1] == leaf_name:
            groups.setdefault(level, []).append(per_unit(leaf))
    units = {group: np.concatenate(values) for group, values in groups.items()}
    return {
        group: {"max": float(values.max()), "mean": float(values.mean())}
        for group, values in units.items()
    }
