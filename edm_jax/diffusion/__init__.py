"""Denoising diffusion: preconditioning, the noise distribution, the loss; samplers."""

from edm_jax.diffusion.denoiser import (
    SIGMA_EDGES,
    Denoised,
    Denoiser,
    example_keys,
    loss_weight,
    make_layer_check,
    make_loss,
    scalings,
)

__all__ = [
    "SIGMA_EDGES",
    "Denoised",
    "Denoiser",
    "example_keys",
    "loss_weight",
    "make_layer_check",
    "make_loss",
    "scalings",
]
