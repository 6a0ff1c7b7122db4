"""Magnitudes of activations and weights by place in the U-Net (App. A.6, Fig. 3, 15)."""

import re
from typing import Any

import jax
import numpy as np

from edm_jax.networks import Params

# Encoder and decoder blocks only, as in the paper: not the input convolution.
_BLOCK = re.compile(r"(enc|dec)_(\d+x\d+)_(?!conv$)")
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


def _aggregate(tree: Params, leaf_name: str, per_unit: Any) -> Magnitudes:
    groups: dict[str, list[np.ndarray]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        names = [key.key for key in path if hasattr(key, "key")]
        block = _BLOCK.match(names[0])
        if block and names[-1] == leaf_name:
            groups.setdefault("_".join(block.groups()), []).append(per_unit(leaf))
    units = {group: np.concatenate(values) for group, values in groups.items()}
    return {
        group: {"max": float(values.max()), "mean": float(values.mean())}
        for group, values in units.items()
    }
