"""The denoiser as StableHLO, for programs that have JAX or XLA but not this library."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from edm_jax import tree
from edm_jax.diffusion import Denoiser
from edm_jax.files import read_bytes, write_bytes, write_text

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
_EXAMPLE = Path(__file__).with_name("jax_denoiser.py")


def write_stablehlo(
    path: Path,
    denoiser: Denoiser,
    tensors: Mapping[str, np.ndarray],
    platforms: Sequence[str],
) -> None:
    """Writes D(weights, x, sigma, label) for any batch size, and how it is called.

    The weights are an argument, {name: array} as in the safetensors file. x is
    (N, H, W, C), sigma (N,), label (N, classes), all float32; D is (N, H, W, C).

    Args:
        path: the file; its example is PATH with the suffix .py.
        denoiser: the network.
        tensors: its weights, in the formats in which they will be given.
        platforms: a selection of PLATFORMS.

    Raises:
        ValueError: there is no such platform.
    """
    write_bytes(path, bytes(exported(denoiser, tensors, platforms).serialize()))
    write_text(path.with_suffix(".py"), read_bytes(_EXAMPLE).decode())


def exported(
    denoiser: Denoiser, tensors: Mapping[str, np.ndarray], platforms: Sequence[str]
) -> export.Exported:
    """The function that `write_stablehlo` writes; needs no device of the platforms."""
    unknown = [name for name in platforms if name not in PLATFORMS]
    if unknown or not platforms:
        raise ValueError(
            f"There is no platform {unknown[0]!r}: choose of {', '.join(PLATFORMS)}."
            if unknown
            else f"No platform is named: choose of {', '.join(PLATFORMS)}."
        )
    floats = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    spec = denoiser.model.spec
    (batch,) = export.symbolic_shape("batch")
    image = batch, spec.resolution, spec.resolution, spec.channels
    weights = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in tensors.items()}
    arguments = floats(image), floats((batch,)), floats((batch, spec.num_classes))

    def denoise(weights: dict[str, Any], x: Any, sigma: Any, label: Any) -> jax.Array:
        wide = {name: each.astype(jnp.float32) for name, each in weights.items()}
        return denoiser(tree.unflatten(wide), x, sigma, label).image

    lower = export.export(jax.jit(denoise), platforms=tuple(platforms))
    return lower(weights, *arguments)
