"""The Inception-v3 of FID: TensorFlow's graph of 2015-12-05, not torchvision's network.

Its average pools do not count the padding, its last block pools by maximum, and it has
1,008 outputs (Szegedy et al., arXiv 1512.00567; Heusel et al., arXiv 1706.08500).
Modules are named as in pt_inception-2015-12-05-6726825d.pth.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from edm_jax.models.pretrained import PRECISION, Array, BatchNorm


class ConvUnit(nn.Module):
    """Convolution, batch norm of eps 1e-3, ReLU."""

    features: int
    window: tuple[int, int] = (1, 1)
    stride: int = 1
    padded: bool = True  # to the same size; else not at all

    @nn.compact
    def __call__(self, x: Array) -> Array:
        rows, columns = (n // 2 if self.padded else 0 for n in self.window)
        strides = (self.stride,) * 2
        x = nn.Conv(
            self.features,
            self.window,
            strides,
            ((rows, rows), (columns, columns)),
            use_bias=False,
            precision=PRECISION,
            name="conv",
        )(x)
        return jax.nn.relu(BatchNorm(name="bn")(x))


def _down(features: int, name: str) -> ConvUnit:
    return ConvUnit(features, (3, 3), stride=2, padded=False, name=name)


def _average(x: Array) -> Array:
    """3x3 means at stride 1 of the pixels that exist."""
    return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)


def _maximum(x: Array) -> Array:
    return nn.max_pool(x, (3, 3), padding="SAME")


def _shrink(x: Array) -> Array:
    return nn.max_pool(x, (3, 3), (2, 2))


class BlockA(nn.Module):
    """35x35."""

    pool_features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        five = ConvUnit(48, name="branch5x5_1")(x)
        three = ConvUnit(64, name="branch3x3dbl_1")(x)
        three = ConvUnit(96, (3, 3), name="branch3x3dbl_2")(three)
        branches = (
            ConvUnit(64, name="branch1x1")(x),
            ConvUnit(64, (5, 5), name="branch5x5_2")(five),
            ConvUnit(96, (3, 3), name="branch3x3dbl_3")(three),
            ConvUnit(self.pool_features, name="branch_pool")(_average(x)),
        )
        return jnp.concatenate(branches, axis=-1)


class BlockB(nn.Module):
    """35x35 to 17x17."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        three = ConvUnit(64, name="branch3x3dbl_1")(x)
        three = ConvUnit(96, (3, 3), name="branch3x3dbl_2")(three)
        branches = (
            _down(384, "branch3x3")(x),
            _down(96, "branch3x3dbl_3")(three),
            _shrink(x),
        )
        return jnp.concatenate(branches, axis=-1)


class BlockC(nn.Module):
    """17x17, with 7x7 windows as 1x7 and 7x1."""

    channels: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = self.channels
        seven = ConvUnit(c, name="branch7x7_1")(x)
        seven = ConvUnit(c, (1, 7), name="branch7x7_2")(seven)
        double = ConvUnit(c, name="branch7x7dbl_1")(x)
        double = ConvUnit(c, (7, 1), name="branch7x7dbl_2")(double)
        double = ConvUnit(c, (1, 7), name="branch7x7dbl_3")(double)
        double = ConvUnit(c, (7, 1), name="branch7x7dbl_4")(double)
        branches = (
            ConvUnit(192, name="branch1x1")(x),
            ConvUnit(192, (7, 1), name="branch7x7_3")(seven),
            ConvUnit(192, (1, 7), name="branch7x7dbl_5")(double),
            ConvUnit(192, name="branch_pool")(_average(x)),
        )
        return jnp.concatenate(branches, axis=-1)


class BlockD(nn.Module):
    """17x17 to 8x8."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        three = ConvUnit(192, name="branch3x3_1")(x)
        seven = ConvUnit(192, name="branch7x7x3_1")(x)
        seven = ConvUnit(192, (1, 7), name="branch7x7x3_2")(seven)
        seven = ConvUnit(192, (7, 1), name="branch7x7x3_3")(seven)
        branches = (
            _down(320, "branch3x3_2")(three),
            _down(192, "branch7x7x3_4")(seven),
            _shrink(x),
        )
        return jnp.concatenate(branches, axis=-1)


class BlockE(nn.Module):
    """8x8; the pool is `average`, or the maximum."""

    average: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        three = ConvUnit(384, name="branch3x3_1")(x)
        double = ConvUnit(448, name="branch3x3dbl_1")(x)
        double = ConvUnit(384, (3, 3), name="branch3x3dbl_2")(double)
        pooled = _average(x) if self.average else _maximum(x)
        branches = (
            ConvUnit(320, name="branch1x1")(x),
            ConvUnit(384, (1, 3), name="branch3x3_2a")(three),
            ConvUnit(384, (3, 1), name="branch3x3_2b")(three),
            ConvUnit(384, (1, 3), name="branch3x3dbl_3a")(double),
            ConvUnit(384, (3, 1), name="branch3x3dbl_3b")(double),
            ConvUnit(192, name="branch_pool")(pooled),
        )
        return jnp.concatenate(branches, axis=-1)


class InceptionV3(nn.Module):
    """(N, 299, 299, 3) -> 2,048 features (N, 2048), and logits (N, 1008) without bias.

    The input is (x - 128) / 128. The Inception Score is of the logits without the bias,
    as in the graph.
    """

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        x = _down(32, "Conv2d_1a_3x3")(x)
        x = ConvUnit(32, (3, 3), padded=False, name="Conv2d_2a_3x3")(x)
        x = ConvUnit(64, (3, 3), name="Conv2d_2b_3x3")(x)
        x = ConvUnit(80, name="Conv2d_3b_1x1")(_shrink(x))
        x = ConvUnit(192, (3, 3), padded=False, name="Conv2d_4a_3x3")(x)
        x = BlockA(32, name="Mixed_5b")(_shrink(x))
        x = BlockA(64, name="Mixed_5c")(x)
        x = BlockA(64, name="Mixed_5d")(x)
        x = BlockB(name="Mixed_6a")(x)
        for name, channels in (("b", 128), ("c", 160), ("d", 160), ("e", 192)):
            x = BlockC(channels, name=f"Mixed_6{name}")(x)
        x = BlockD(name="Mixed_7a")(x)
        x = BlockE(average=True, name="Mixed_7b")(x)
        x = BlockE(average=False, name="Mixed_7c")(x)
        features = jnp.mean(x, axis=(1, 2))
        classify = nn.Dense(1008, use_bias=False, precision=PRECISION, name="fc")
        return features, classify(features)
