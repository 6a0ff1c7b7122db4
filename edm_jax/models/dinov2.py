"""DINOv2's vision transformers (Oquab et al., arXiv 2304.07193).

Modules are named as in dinov2_vitl14_pretrain.pth.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from edm_jax.models import resizing
from edm_jax.models.pretrained import PRECISION, Array

_Dense = functools.partial(nn.Dense, precision=PRECISION)
_LayerNorm = functools.partial(nn.LayerNorm, epsilon=1e-6, use_fast_variance=False)


class LayerScale(nn.Module):
    """A learned factor for each channel."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        gamma = self.param("gamma", nn.initializers.ones, (x.shape[-1],))
        return x * gamma[None, None]


class Attention(nn.Module):
    """softmax(Q K^T / sqrt(d)) V of tokens (N, T, D), by heads."""

    heads: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        n, tokens, channels = x.shape
        qkv = _Dense(3 * channels, name="qkv")(x)
        q, k, v = jnp.moveaxis(qkv.reshape(n, tokens, 3, self.heads, -1), 2, 0)
        scores = jnp.einsum("nqhd,nkhd->nhqk", q, k, precision=PRECISION)
        weights = jax.nn.softmax(scores / (channels // self.heads) ** 0.5, axis=-1)
        y = jnp.einsum("nhqk,nkhd->nqhd", weights, v, precision=PRECISION)
        return _Dense(channels, name="proj")(y.reshape(n, tokens, channels))


class Perceptron(nn.Module):
    """Four times as wide inside, with the exact GELU."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = jax.nn.gelu(_Dense(4 * x.shape[-1], name="fc1")(x), approximate=False)
        return _Dense(x.shape[-1], name="fc2")(y)


class Block(nn.Module):
    """x + attention, then x + perceptron, each of the normalised x and scaled."""

    heads: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = Attention(self.heads, name="attn")(_LayerNorm(name="norm1")(x))
        x = x + LayerScale(name="ls1")(y)
        y = Perceptron(name="mlp")(_LayerNorm(name="norm2")(x))
        return x + LayerScale(name="ls2")(y)


class DinoV2(nn.Module):
    """(N, side, side, 3) -> the class token (N, channels) after the last norm; no logits.

    The learned positions (1 + grid^2) are interpolated to the image's grid as the
    published code does it: bicubically, by a factor that is 0.1 patches too large.

    Attributes:
        grid: patches to a side when it was trained last: 518 pixels of 14.
    """

    channels: int = 1024
    depth: int = 24
    heads: int = 16
    patch: int = 14
    grid: int = 37

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, None]:
        window = (self.patch, self.patch)
        embed = nn.Conv(
            self.channels, window, window, "VALID", precision=PRECISION,
            name="patch_embed.proj",
        )  # fmt: skip
        x = embed(x)
        n, side = len(x), x.shape[1]
        x = x.reshape(n, side * side, self.channels)
        zeros = nn.initializers.zeros
        token = self.param("cls_token", zeros, (1, 1, self.channels))
        shape = (1, 1 + self.grid**2, self.channels)
        positions = self._interpolated(self.param("pos_embed", zeros, shape), side)
        token = jnp.broadcast_to(token, (n, 1, self.channels))
        x = jnp.concatenate([token, x], axis=1) + positions
        for i in range(self.depth):
            x = Block(self.heads, name=f"blocks.{i}")(x)
        return _LayerNorm(name="norm")(x)[:, 0], None

    def _interpolated(self, positions: Array, side: int) -> Array:
        """(1, 1 + grid^2, C) -> (1, 1 + side^2, C)."""
        if side == self.grid:
            return positions
        first, rest = positions[:, :1], positions[:, 1:]
        weights = resizing.bicubic_torch(self.grid, side, (side + 0.1) / self.grid)
        rest = rest.reshape(1, self.grid, self.grid, self.channels)
        rest = resizing.apply(weights, weights, rest)
        return jnp.concatenate([first, rest.reshape(1, -1, self.channels)], axis=1)
