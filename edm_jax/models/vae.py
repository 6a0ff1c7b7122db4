"""Stable Diffusion's variational autoencoder (Rombach et al., arXiv 2112.10752, App. G).

The `AutoencoderKL` that EDM2's latents come from: `sd-vae-ft-mse`. Modules are named as in
diffusers' files. For inference alone, in float32.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from edm_jax.fields import Count, Settings
from edm_jax.models import pretrained
from edm_jax.models.pretrained import PRECISION, Array, Params

_Dense = functools.partial(nn.Dense, precision=PRECISION)
_MIN_LOGVAR, _MAX_LOGVAR = -30.0, 20.0
# Attention's layers as files from before 2023 call them.
_OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


@dataclasses.dataclass(frozen=True)
class Structure(Settings):
    """What config.json says of an AutoencoderKL; the defaults are Stable Diffusion's."""

    block_out_channels: tuple[Count, ...] = (128, 256, 512, 512)
    layers_per_block: Count = 2
    latent_channels: Count = 4
    in_channels: Count = 3
    norm_num_groups: Count = 32

    @property
    def factor(self) -> int:
        """How many pixels a latent is wide."""
        return 2 ** (len(self.block_out_channels) - 1)


def _conv(channels: int, name: str | None = None, size: int = 3) -> nn.Conv:
    edge = size // 2
    window, padding = (size, size), ((edge, edge), (edge, edge))
    return nn.Conv(channels, window, padding=padding, precision=PRECISION, name=name)


class Residual(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))); x through a 1x1 where channels change."""

    channels: int
    groups: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = nn.silu(_norm(self.groups, "norm1")(x))
        y = _conv(self.channels, "conv1")(y)
        y = nn.silu(_norm(self.groups, "norm2")(y))
        y = _conv(self.channels, "conv2")(y)
        if x.shape[-1] != self.channels:
            x = _conv(self.channels, "conv_shortcut", 1)(x)
        return x + y


def _norm(groups: int, name: str) -> nn.GroupNorm:
    return nn.GroupNorm(groups, epsilon=1e-6, use_fast_variance=False, name=name)


class Attention(nn.Module):
    """x + softmax(Q K^T / sqrt(C)) V over all places (N, H, W, C), with one head."""

    groups: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        n, height, width, channels = x.shape
        y = _norm(self.groups, "group_norm")(x).reshape(n, height * width, channels)
        q, k, v = (_Dense(channels, name=name)(y) for name in ("to_q", "to_k", "to_v"))
        scores = jnp.einsum("nqc,nkc->nqk", q, k, precision=PRECISION)
        weights = jax.nn.softmax(scores / channels**0.5, axis=-1)
        y = jnp.einsum("nqk,nkc->nqc", weights, v, precision=PRECISION)
        return x + _Dense(channels, name="to_out.0")(y).reshape(x.shape)


def _middle(x: Array, groups: int) -> Array:
    channels = x.shape[-1]
    x = Residual(channels, groups, name="mid_block.resnets.0")(x)
    x = Attention(groups, name="mid_block.attentions.0")(x)
    return Residual(channels, groups, name="mid_block.resnets.1")(x)


class Encoder(nn.Module):
    """Pictures (N, H, W, 3) to (N, H / f, W / f, 2 C)."""

    structure: Structure

    @nn.compact
    def __call__(self, x: Array) -> Array:
        s, groups = self.structure, self.structure.norm_num_groups
        widths = s.block_out_channels
        x = _conv(widths[0], "conv_in")(x)
        for level, width in enumerate(widths):
            at = f"down_blocks.{level}"
            for i in range(s.layers_per_block):
                x = Residual(width, groups, name=f"{at}.resnets.{i}")(x)
            if level < len(widths) - 1:
                # Padded below and to the right alone.
                x = nn.Conv(
                    width,
                    (3, 3),
                    strides=2,
                    padding=((0, 1), (0, 1)),
                    precision=PRECISION,
                    name=f"{at}.downsamplers.0.conv",
                )(x)
        x = nn.silu(_norm(groups, "conv_norm_out")(_middle(x, groups)))
        return _conv(2 * s.latent_channels, "conv_out")(x)


class Decoder(nn.Module):
    """Latents (N, h, w, C) to pictures (N, h f, w f, 3)."""

    structure: Structure

    @nn.compact
    def __call__(self, x: Array) -> Array:
        s, groups = self.structure, self.structure.norm_num_groups
        widths = s.block_out_channels[::-1]
        x = _middle(_conv(widths[0], "conv_in")(x), groups)
        for level, width in enumerate(widths):
            at = f"up_blocks.{level}"
            for i in range(s.layers_per_block + 1):
                x = Residual(width, groups, name=f"{at}.resnets.{i}")(x)
            if level < len(widths) - 1:
                x = x.repeat(2, axis=1).repeat(2, axis=2)
                x = _conv(width, f"{at}.upsamplers.0.conv")(x)
        x = nn.silu(_norm(groups, "conv_norm_out")(x))
        return _conv(s.in_channels, "conv_out")(x)


class Vae(nn.Module):
    """The autoencoder; neither way scales or shifts what it is given."""

    structure: Structure = Structure()

    def setup(self) -> None:
        channels = self.structure.latent_channels
        self.encoder = Encoder(self.structure)
        self.decoder = Decoder(self.structure)
        self.quant_conv = _conv(2 * channels, size=1)
        self.post_quant_conv = _conv(channels, size=1)

    def encode(self, x: Array) -> tuple[Array, Array]:
        """Means and standard deviations (N, H / f, W / f, C) of pictures (N, H, W, 3)."""
        moments = self.quant_conv(self.encoder(x))
        mean, logvar = jnp.split(moments, 2, axis=-1)
        return mean, jnp.exp(0.5 * jnp.clip(logvar, _MIN_LOGVAR, _MAX_LOGVAR))

    def decode(self, z: Array) -> Array:
        """Pictures (N, h f, w f, 3) of latents (N, h, w, C)."""
        return self.decoder(self.post_quant_conv(z))

    def __call__(self, x: Array) -> Array:
        """A picture from the means of its latents."""
        return self.decode(self.encode(x)[0])


def fill(structure: Structure, tensors: Mapping[str, np.ndarray]) -> Params:
    """The weights, of a file's tensors, each used exactly once.

    Names are those of diffusers, of today or from before 2023.

    Raises:
        ValueError: tensors are missing, left over, or of other shapes; what "it" does.
    """
    renamed: dict[str, Any] = {}
    for name, tensor in tensors.items():
        parts = [_OLD.get(part, part) for part in name.split(".")]
        if "attentions" in parts and tensor.ndim == 4:  # a 1x1 convolution
            tensor = tensor[..., 0, 0]
        new = ".".join(parts)
        if new in renamed:
            raise ValueError(f"holds {new!r} under two names")
        renamed[new] = tensor
    return pretrained.fill(_shapes(structure), renamed)


@functools.lru_cache(maxsize=2)
def _shapes(structure: Structure) -> dict[str, tuple[int, ...]]:
    return pretrained.shapes(Vae(structure), 2 * structure.factor)
