"""Sorts the parameters' leaves into kinds by their paths; masks are made from these."""

from collections.abc import Collection
from typing import Any

import jax

from edm_jax.models.unet import Params

KINDS = ("weights", "biases", "gains", "norms", "embeddings", "frozen")
LAST_LAYER = "out_conv"


def kind(path: tuple[Any, ...]) -> str:
    """The leaf's kind, one of KINDS.

    `frozen` leaves are the frequencies and phases of Fourier features, which are not
    trained; `embeddings` are the weights and biases that embed noise level and label.
    """
    *layers, name = (str(getattr(key, "key", key)) for key in path)
    if name in ("freqs", "phases"):
        return "frozen"
    if layers and "norm" in layers[-1]:
        return "norms"
    if name == "gain":
        return "gains"
    if "embedding" in layers:
        return "embeddings"
    return "biases" if name == "bias" else "weights"


def of_kinds(params: Params, kinds: Collection[str]) -> Params:
    """A tree of booleans: True for leaves of these kinds."""
    return jax.tree_util.tree_map_with_path(lambda path, _: kind(path) in kinds, params)


def in_last_layer(path: tuple[Any, ...]) -> bool:
    """Whether a leaf belongs to the network's last convolution."""
    return any(getattr(key, "key", key) == LAST_LAYER for key in path)
