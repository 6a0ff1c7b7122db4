"""The U-Net of configs A-G: one skeleton, two block topologies, and the u(sigma) head.

The network does not depend on which config it runs. A config's words (`network.*`) are
resolved once into `Ops`, the operation in each slot; the topology is a block class.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from edm_jax.models import layers, topology
from edm_jax.models.layers import Array

Params = Any  # a nested dict of arrays
LOGVAR_FEATURES = 128


@dataclasses.dataclass(frozen=True)
class Ops:
    """The operations in the slots of the network (paper Fig. 16-22)."""

    layer: Callable[..., nn.Module]  # (features, kernel_size, name=...)
    last_layer: Callable[..., nn.Module]  # the same, for layers that ADM starts at zero
    label_layer: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    noise_features: Callable[..., nn.Module]
    logvar_features: Callable[..., nn.Module]
    activation: Callable[[Array], Array]
    add: Callable[[Array, Array], Array]  # (main, branch)
    add_embedding: Callable[[Array, Array], Array]  # (noise, label)
    cat: Callable[[Array, Array], Array]  # (main, skip)
    shift: bool  # the embedding shifts as well as scales
    gain: bool
    cosine_attention: bool
    clamp: float  # bound on block outputs
    precision: Any  # of float32 products


@dataclasses.dataclass(frozen=True)
class UNetSpec(topology.Sizes):
    """Sizes, topology and operations of one U-Net."""

    noise_channels: int
    embedding_channels: int
    head_channels: int
    block: Callable[..., nn.Module]
    ops: Ops
    dropout: float
    dropout_resolutions: tuple[int, ...]  # empty: everywhere
    pixel_norm: bool
    constant_channel: bool
    embedding_layers: int
    unit_variance_label: bool
    output_silu: bool
    dtype: Any  # of the blocks
    io_dtype: Any  # of the input and output convolutions
    augment_labels: int  # values that describe how a training image was transformed
    logvar: bool
    remat: bool = False  # recompute blocks in the backward pass

    def dropout_at(self, resolution: int) -> float:
        """The dropout rate of blocks whose output has this resolution."""
        somewhere = self.dropout_resolutions
        return self.dropout if not somewhere or resolution in somewhere else 0.0


class Branch(nn.Module):
    """conv0 -> modulate by the embedding -> conv1: the residual branch of every block.

    `resample` acts between the first nonlinearity and conv0, as in A-E.
    """

    spec: UNetSpec
    features: int
    salt: int
    resample: str = "keep"

    @nn.compact
    def __call__(self, x: Array, emb: Array, dropout_keys: Array | None) -> Array:
        ops = self.spec.ops
        y = ops.activation(ops.norm(name="norm0")(x))
        window = self.spec.window
        y = ops.layer(self.features, window, resample=self.resample, name="conv0")(y)
        parts = 2 if ops.shift else 1
        linear = ops.layer(self.features * parts, 1, gain=ops.gain, name="emb_linear")
        scale_and_shift = jnp.split(linear(emb), parts, axis=-1)
        y = layers.modulate(ops.norm(name="norm1")(y), *scale_and_shift)
        y = ops.activation(y)
        rate = self.spec.dropout_at(y.shape[1])
        y = layers.dropout(y, rate, dropout_keys, self.salt)
        return ops.last_layer(self.features, window, name="conv1")(y)


class Attention(nn.Module):
    """Multi-head self-attention, added to the main path (Eq. 10-12, 30).

    Dot-product attention normalizes the input of the qkv layer; cosine attention normalizes
    its output: q, k and v over each head's channels. Logits and softmax are float32.
    """

    spec: UNetSpec

    @nn.compact
    def __call__(self, x: Array) -> Array:
        ops = self.spec.ops
        n, h, w, channels = x.shape
        heads = max(channels // self.spec.head_channels, 1)
        head = channels // heads
        y = x if ops.cosine_attention else ops.norm(name="norm")(x)
        qkv = ops.layer(3 * channels, 1, name="qkv")(y)
        qkv = qkv.reshape(n, h * w, 3, heads, head)
        if ops.cosine_attention:
            qkv = layers.pixel_norm(qkv)
        q, k, v = (part.squeeze(2) for part in jnp.split(qkv, 3, axis=2))
        precision = layers.float32_precision(x, ops.precision)
        einsum = functools.partial(jnp.einsum, precision=precision)
        logits = einsum("nqhc,nkhc->nhqk", q, k, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(logits / math.sqrt(head), axis=-1).astype(x.dtype)
        y = einsum("nhqk,nkhc->nqhc", weights, v).reshape(x.shape)
        return ops.add(x, ops.last_layer(channels, 1, name="proj")(y))


class Block(nn.Module):
    """The part common to both topologies: attention and clamp after the residual sum."""

    spec: UNetSpec
    features: int
    salt: int  # this block's own dropout stream
    encoder: bool
    resample: str = "keep"
    attention: bool = False

    def residual(self, x: Array, emb: Array, dropout_keys: Array | None) -> Array:
        raise NotImplementedError

    @nn.compact
    def __call__(self, x: Array, emb: Array, dropout_keys: Array | None) -> Array:
        x = self.residual(x, emb, dropout_keys)
        if self.attention:
            x = Attention(self.spec, name="attention")(x)
        if math.isinf(self.spec.ops.clamp):
            return x
        bound = jnp.asarray(self.spec.ops.clamp, x.dtype)
        # Not jnp.clip, whose gradient checks for ties with the bounds.
        return jax.lax.clamp(-bound, x, bound)

    def match_channels(self, x: Array) -> Array:
        if x.shape[-1] == self.features:
            return x
        return self.spec.ops.layer(self.features, 1, name="conv_skip")(x)

    def maybe_pixel_norm(self, x: Array) -> Array:
        normed = self.spec.pixel_norm and self.encoder
        return layers.pixel_norm(x) if normed else x


class BranchBlock(Block):
    """Configs A-E: resampling and normalization act on the branch (Fig. 16-20)."""

    def residual(self, x: Array, emb: Array, dropout_keys: Array | None) -> Array:
        branch = Branch(
            self.spec, self.features, self.salt, self.resample, name="branch"
        )
        y = branch(x, emb, dropout_keys)
        main = self.match_channels(layers.resample(x, self.resample))
        return self.spec.ops.add(self.maybe_pixel_norm(main), y)


class MainPathBlock(Block):
    """Configs F-G: resampling and pixel norm act on the main path (Fig. 21, 22).

    The encoder's branch starts after the 1x1 convolution and the pixel norm. The decoder's
    branch sees all channels, and the main path has its 1x1 just before the sum.
    """

    def residual(self, x: Array, emb: Array, dropout_keys: Array | None) -> Array:
        branch = functools.partial(Branch, self.spec, self.features, self.salt)
        main = layers.resample(x, self.resample)
        if self.encoder:
            main = self.maybe_pixel_norm(self.match_channels(main))
            y = branch(name="branch")(main, emb, dropout_keys)
            return self.spec.ops.add(main, y)
        # The branch may upsample by itself, as it is pixelwise up to its convolution.
        y = branch(self.resample, name="branch")(x, emb, dropout_keys)
        return self.spec.ops.add(self.match_channels(main), y)


class Embedding(nn.Module):
    """(N,) noise level, (N, classes) label -> (N, embedding_channels), in float32.

    4 mc channels in the paper (App. B.1). [choice] What the augmentation tells the
    network, (N, augment_labels), is added last, through a layer without a bias; not by
    mp_sum, which would shrink the embedding where it is zero, as in sampling. The layer
    starts at zero where last layers do, and where there are gains its own does.
    """

    spec: UNetSpec

    @nn.compact
    def __call__(
        self, c_noise: Array, label: Array | None, augment_label: Array | None
    ) -> Array:
        spec, ops = self.spec, self.spec.ops
        features = spec.embedding_channels
        emb = ops.noise_features(spec.noise_channels, name="noise_features")(c_noise)
        emb = ops.layer(features, 1, name="noise0")(emb)
        if spec.embedding_layers == 2:
            emb = ops.layer(features, 1, name="noise1")(ops.activation(emb))
        if spec.num_classes:
            assert label is not None
            scale = math.sqrt(spec.num_classes) if spec.unit_variance_label else 1.0
            label_emb = ops.label_layer(features, 1, name="label")(label * scale)
            emb = ops.add_embedding(emb, label_emb)
        if spec.augment_labels:
            if augment_label is None:
                augment_label = jnp.zeros((emb.shape[0], spec.augment_labels))
            layer = ops.last_layer(
                features, 1, bias=False, gain=ops.gain, name="augment"
            )
            emb = emb + layer(augment_label)
        return ops.activation(emb)


class UNet(nn.Module):
    """F: (N, H, W, C) c_in-scaled noisy images -> (N, H, W, C) float32 (paper Fig. 16).

    label: (N, num_classes) float32, one-hot or soft. dropout_keys: (N,), or None.
    augment_label: (N, augment_labels), or None for images as they are.
    """

    spec: UNetSpec

    @nn.compact
    def __call__(
        self,
        x: Array,
        c_noise: Array,
        label: Array | None,
        dropout_keys: Array | None = None,
        augment_label: Array | None = None,
    ) -> Array:
        spec, ops = self.spec, self.spec.ops
        emb = Embedding(spec, name="embedding")(c_noise, label, augment_label)
        make_block = nn.remat(spec.block) if spec.remat else spec.block
        first, *blocks = topology.elements(spec)
        if spec.constant_channel:
            x = jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)
        entry = ops.layer(first.features, spec.window, name=first.name)
        x = entry(x.astype(spec.io_dtype))
        x = x.astype(spec.dtype)
        skips = [x]
        for salt, element in enumerate(blocks):
            encoder = element.side == "enc"
            block = make_block(
                spec,
                features=element.features,
                salt=salt,
                encoder=encoder,
                resample=element.resample,
                attention=element.attention,
                name=element.name,
            )
            x = ops.cat(x, skips.pop()) if element.takes_skip else x
            x = block(x, emb, dropout_keys)
            if encoder:
                skips.append(x)
        x = ops.norm(name="out_norm")(x.astype(spec.io_dtype))
        x = ops.activation(x) if spec.output_silu else x
        out = ops.last_layer(spec.channels, spec.window, gain=ops.gain, name="out_conv")
        return out(x).astype(jnp.float32)


class Network(nn.Module):
    """The U-Net and, in training, the uncertainty head u(sigma) (Eq. 21)."""

    spec: UNetSpec

    @nn.compact
    def __call__(self, x: Array, c_noise: Array, *others: Any) -> tuple[Array, Array]:
        """Returns F (N, H, W, C) and u (N,), both float32; u is 0 without the head.

        Args:
            x: see `UNet`.
            c_noise: (N,) noise levels.
            others: label, dropout_keys and augment_label of `UNet`.
        """
        f = UNet(self.spec, name="unet")(x, c_noise, *others)
        if not self.spec.logvar:
            return f, jnp.zeros_like(c_noise)
        ops = self.spec.ops
        name = "logvar_features"
        features = ops.logvar_features(LOGVAR_FEATURES, name=name)(c_noise)
        return f, ops.layer(1, 1, name="logvar")(features)[:, 0]
