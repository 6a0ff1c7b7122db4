"""The weights' names and layout in PyTorch: unet/out_conv/kernel is unet.out_conv.weight.

Kernels (rows, columns, in, out) become (out, in, rows, columns), and (in, out) becomes
(out, in); other parameters keep their shape. The map is one to one, and moves numbers
without changing them.
"""

from collections.abc import Mapping

import numpy as np

# What PyTorch's wrappers put before the names of a module's parameters.
_WRAPPERS = ("module.", "_orig_mod.")
_KERNEL, _SCALE, _WEIGHT = "kernel", "scale", "weight"


def to_pytorch(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tensors by this project's names -> by the PyTorch module's names, in its layout."""
    found = {}
    for name, tensor in tensors.items():
        *outer, leaf = name.split("/")
        if leaf == _KERNEL:
            tensor = np.moveaxis(tensor, (-1, -2), (0, 1))
        is_weight = leaf in (_KERNEL, _SCALE)
        found[".".join([*outer, _WEIGHT if is_weight else leaf])] = tensor
    return found


def from_pytorch(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of `to_pytorch`; prefixes of PyTorch's wrappers are removed."""
    found = {}
    for name, tensor in tensors.items():
        for prefix in _WRAPPERS:
            name = name.removeprefix(prefix)
        *outer, leaf = name.split(".")
        if leaf == _WEIGHT:
            leaf = _SCALE if tensor.ndim == 1 else _KERNEL
        if leaf == _KERNEL:
            tensor = np.moveaxis(tensor, (0, 1), (-1, -2))
        found["/".join([*outer, leaf])] = tensor
    return found
