"""A config's `network` fields, and the operations that its words select.

Each change between configs A-G has its own word, so a study can use G without one of
them, or E with one more.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Annotated

import jax
import jax.numpy as jnp

from edm_jax import menu
from edm_jax.fields import Bound, Count, Fraction, Index, OneOf, Settings, Share
from edm_jax.models import activations, layers, topology, unet
from edm_jax.models.activations import ACTIVATIONS, Activation
from edm_jax.models.inits import INITS, Init, zeros
from edm_jax.models.layers import NORMS, GroupNorm, NoNorm

_WEIGHTS = {
    "biased": {"normalized": False, "bias": True},
    "plain": {"normalized": False, "bias": False},
    "mp": {"normalized": True, "bias": False},
}
_FOURIER = layers.FourierFeatures
_MP_FOURIER = functools.partial(_FOURIER, scale=math.sqrt(2))
# (noise features, features of the u(sigma) head)
_NOISE_FEATURES = {
    "positional": (layers.PositionalFeatures, _FOURIER),
    "fourier": (_FOURIER, _FOURIER),
    "mp_fourier": (_MP_FOURIER, _MP_FOURIER),
}
_ADD = {"sum": layers.plain_sum, "mp_sum": layers.mp_sum}
_CAT = {"cat": layers.plain_cat, "mp_cat": layers.mp_cat}
_MODULATION = {"scale_shift": True, "scale": False}
_ATTENTION = {"dot": False, "cosine": True}
_BLOCK = {"branch": unet.BranchBlock, "main_path": unet.MainPathBlock}
_DTYPE = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}
_HALF_PRECISION = {"partial": False, "full": True}
_PRECISION = {"highest": jax.lax.Precision.HIGHEST, "default": None}


@dataclasses.dataclass(frozen=True)
class NetworkConfig(topology.Sizes, Settings):
    """A config's `network` fields; configs/config_a.py explains each one."""

    noise_channels: Index  # 0: model_channels
    embedding_channels: Index  # 0: the channels of the widest level
    head_channels: Count
    block: Annotated[str, OneOf(_BLOCK)]
    weights: Annotated[str, OneOf(_WEIGHTS)]
    init: Annotated[str, menu.Word(INITS)]
    zero_last: bool  # ADM: the last layer of every branch starts at zero
    norm: Annotated[str, menu.Word(NORMS)]
    pixel_norm: bool
    attention: Annotated[str, OneOf(_ATTENTION)]
    modulation: Annotated[str, OneOf(_MODULATION)]
    noise_features: Annotated[str, OneOf(_NOISE_FEATURES)]
    embedding_layers: Count
    unit_variance_label: bool
    constant_channel: bool
    output_silu: bool
    activation: Annotated[Activation, menu.Entry(ACTIVATIONS)]
    mp_activation: bool  # divide by its magnitude
    add: Annotated[str, OneOf(_ADD)]
    cat: Annotated[str, OneOf(_CAT)]
    residual_balance: Share
    embedding_balance: Share
    cat_balance: Share
    gain: bool
    clamp: Bound
    dropout: Fraction
    dropout_resolutions: tuple[Count, ...]  # empty: everywhere
    compute_dtype: Annotated[str, OneOf(_DTYPE)]
    half_precision: Annotated[str, OneOf(_HALF_PRECISION)]
    matmul_precision: Annotated[str, OneOf(_PRECISION)]

    def faults(self) -> Iterator[str]:
        yield from self._word_faults()
        yield from self._size_faults()
        yield from self._width_faults()

    def _word_faults(self) -> Iterator[str]:
        if self.weights == "mp" and self.zero_last:
            yield (
                "weights='mp' divides each weight by its norm, but network.zero_last "
                "starts some at zero; set network.zero_last=False (App. B.4)."
            )
        if self.attention == "dot" and self.norm == "none":
            yield (
                "attention='dot' needs a normalized input, but network.norm='none' "
                "leaves its queries unbounded; set network.attention='cosine' (App. B.3)."
            )
        if self.gain and self.zero_last:
            yield (
                "gain and network.zero_last both start the output at zero, so neither "
                "would get a gradient; set only one of them (App. B.7)."
            )

    def _size_faults(self) -> Iterator[str]:
        if not self.channel_mult:
            yield "channel_mult is empty, but must have a whole number for each level."
        step = 2 ** (len(self.channel_mult) - 1)
        if self.resolution % step:
            yield (
                f"resolution={self.resolution} must be a multiple of {step} for the "
                f"{len(self.channel_mult)} levels of "
                f"network.channel_mult={self.channel_mult}."
            )
        levels = [self.resolution >> level for level in range(len(self.channel_mult))]
        for resolution in self.dropout_resolutions:
            if resolution not in levels:
                yield (
                    f"dropout_resolutions has {resolution}, but the levels are "
                    f"{', '.join(map(str, levels))}."
                )
        if self.model_channels % 4:
            yield f"model_channels={self.model_channels}, but must be a multiple of 4."
        for field in ("noise_channels", "embedding_channels"):
            if (value := getattr(self, field)) % 2:
                yield f"{field}={value}, but must be even; 0 follows model_channels."
        if self.embedding_layers > 2:
            yield f"embedding_layers={self.embedding_layers}, but must be 1 or 2."

    def _width_faults(self) -> Iterator[str]:
        widths = [self.model_channels * mult for mult in self.channel_mult]
        for level, width in enumerate(widths):
            heads = max(width // self.head_channels, 1)
            # The decoder always has attention at the lowest resolution.
            attends = self.resolution >> level in self.attention_resolutions
            if width % heads and (attends or level == len(widths) - 1):
                yield (
                    f"head_channels={self.head_channels} gives {heads} heads for a "
                    f"level's {width} channels, but {heads} does not divide {width}: "
                    "choose another value."
                )
        in_groups = issubclass(NORMS.get(self.norm, NoNorm), GroupNorm)
        if in_groups and any(w % min(32, w // 4) for w in widths):
            yield (
                f"norm={self.norm!r} divides channels into groups: levels need a "
                "multiple of 4 channels up to 128, and a multiple of 32 above, but have "
                f"{', '.join(map(str, widths))}. Change network.model_channels or "
                "network.channel_mult."
            )


def resolve_ops(net: NetworkConfig) -> unet.Ops:
    """The operations that a config's words select."""
    precision = _PRECISION[net.matmul_precision]
    make_layer = functools.partial(
        layers.Layer, **_WEIGHTS[net.weights], precision=precision
    )
    init: Init = menu.build(INITS, "network.init", net.init)
    make_kernel = functools.partial(make_layer, draw=init.kernel, draw_bias=init.bias)
    last = {"draw": zeros, "draw_bias": zeros} if net.zero_last else {}
    noise_features, logvar_features = _NOISE_FEATURES[net.noise_features]
    add = _ADD[net.add]
    return unet.Ops(
        layer=make_kernel,
        last_layer=functools.partial(make_kernel, **last),
        # The label layer never has a bias (App. B.1).
        label_layer=functools.partial(make_layer, draw=init.label, bias=False),
        norm=menu.entry(NORMS, "network.norm", net.norm),
        noise_features=noise_features,
        logvar_features=logvar_features,
        activation=activations.resolve(net.activation, net.mp_activation),
        add=functools.partial(add, t=net.residual_balance),
        add_embedding=functools.partial(add, t=net.embedding_balance),
        cat=functools.partial(_CAT[net.cat], t=net.cat_balance),
        shift=_MODULATION[net.modulation],
        gain=net.gain,
        cosine_attention=_ATTENTION[net.attention],
        clamp=net.clamp,
        precision=precision,
    )


def resolve_network(
    net: NetworkConfig, uncertainty: bool, remat: bool = False, augment_labels: int = 0
) -> unet.UNetSpec:
    """The network of a config; takes the arguments of `build`."""
    dtype = _DTYPE[net.compute_dtype]
    names = {field.name for field in dataclasses.fields(unet.UNetSpec)}
    settings = {name: value for name, value in vars(net).items() if name in names}
    widest = net.model_channels * max(net.channel_mult)
    return unet.UNetSpec(
        **settings
        | {
            "noise_channels": net.noise_channels or net.model_channels,
            "embedding_channels": net.embedding_channels or widest,
            "block": _BLOCK[net.block],
        },
        ops=resolve_ops(net),
        dtype=dtype,
        # [choice] partial: the input and output convolutions stay in float32.
        io_dtype=dtype if _HALF_PRECISION[net.half_precision] else jnp.float32,
        augment_labels=augment_labels,
        logvar=uncertainty,
        remat=remat,
    )
