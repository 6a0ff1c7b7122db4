"""From a config's words to a `UNetSpec`, refusing words and combinations without sense.

Each change between configs A-G is a word of its own, so a study can take G without one
of them, or E with one more.
"""

import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from edm_jax.ema.profiles import PowerProfile
from edm_jax.menu import suggest
from edm_jax.models import layers, unet

_WEIGHTS = {
    "biased": {"normalized": False, "bias": True},
    "plain": {"normalized": False, "bias": False},
    "mp": {"normalized": True, "bias": False},
}
# (ordinary layers, ADM's zero-initialised layers, label layer)
_INIT = {
    "adm": (layers.uniform_draw, layers.zeros_draw, layers.normal_draw),
    "uniform": (layers.uniform_draw,) * 3,
    "normal": (layers.normal_draw,) * 3,
}
_NORM = {
    "group": functools.partial(layers.GroupNorm, affine=True),
    "rms_group": functools.partial(layers.GroupNorm, affine=False),
    "none": layers.NoNorm,
}
_FOURIER = layers.FourierFeatures
_MP_FOURIER = functools.partial(_FOURIER, scale=math.sqrt(2))
# (noise features, features of the u(sigma) head)
_NOISE_FEATURES = {
    "positional": (layers.PositionalFeatures, _FOURIER),
    "fourier": (_FOURIER, _FOURIER),
    "mp_fourier": (_MP_FOURIER, _MP_FOURIER),
}
_SILU = {"silu": layers.plain_silu, "mp_silu": layers.mp_silu}
_ADD = {"sum": layers.plain_sum, "mp_sum": layers.mp_sum}
_CAT = {"cat": layers.plain_cat, "mp_cat": layers.mp_cat}
_MODULATION = {"scale_shift": True, "scale": False}
_ATTENTION = {"dot": False, "cosine": True}
_BLOCK = {"branch": unet.BranchBlock, "main_path": unet.MainPathBlock}
_DTYPE = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}
_HALF_PRECISION = {"partial": False, "full": True}
_PRECISION = {"highest": jax.lax.Precision.HIGHEST, "default": None}


_WORDS = {
    "training.parallel": ("jit", "pmap"),
    "training.sharding": ("none", "state", "full"),
}
# Positive numbers; inf turns the second kind off.
_POSITIVE = [
    "loss.P_std",
    "loss.sigma_data",
    "ema.update_every",
    "training.duration_mimg",
    "training.keep_checkpoints",
    "training.microbatches",
    "evaluation.P_std",
    "evaluation.num_heldout",
    "evaluation.num_sigmas",
    "evaluation.batch_size",
    "evaluation.sigma_min",
    "evaluation.sigma_max",
    "evaluation.rho",
]
_BOUNDS = [
    "network.clamp",
    "training.snapshot_mimg",
    "training.probe_mimg",
    "training.log_mimg",
    "training.patience_mimg",
    "training.checkpoint_mimg",
    "training.keep_checkpoint_mimg",
    "training.alert_loss",
    "training.alert_growth",
]
_NOT_NEGATIVE = [
    "ema.halflife_rampup",
]


def _pick(table: Mapping[str, Any], config: Any, field: str) -> Any:
    word = config[field]
    if word in table:
        return table[word]
    words = ", ".join(repr(w) for w in table)
    raise ValueError(
        f"network.{field} is {word!r}, but takes one of {words}."
        + suggest(word, list(table))
    )


def resolve_ops(net: Any) -> unet.Ops:
    """The operations named by a config's `network` words; raises ValueError."""
    make_layer = functools.partial(
        layers.Layer,
        **_pick(_WEIGHTS, net, "weights"),
        precision=_pick(_PRECISION, net, "matmul_precision"),
    )
    draw, last_draw, label_draw = _pick(_INIT, net, "init")
    noise_features, logvar_features = _pick(_NOISE_FEATURES, net, "noise_features")
    add, cat = _pick(_ADD, net, "add"), _pick(_CAT, net, "cat")
    return unet.Ops(
        layer=functools.partial(make_layer, draw=draw),
        last_layer=functools.partial(make_layer, draw=last_draw),
        # The label layer never has a bias (App. B.1).
        label_layer=functools.partial(make_layer, draw=label_draw, bias=False),
        norm=_pick(_NORM, net, "norm"),
        noise_features=noise_features,
        logvar_features=logvar_features,
        silu=_pick(_SILU, net, "silu"),
        add=functools.partial(add, t=net.residual_balance),
        add_embedding=functools.partial(add, t=net.embedding_balance),
        cat=functools.partial(cat, t=net.cat_balance),
        shift=_pick(_MODULATION, net, "modulation"),
        gain=net.gain,
        cosine_attention=_pick(_ATTENTION, net, "attention"),
        clamp=net.clamp,
        precision=_pick(_PRECISION, net, "matmul_precision"),
    )


def resolve_network(config: Any) -> unet.UNetSpec:
    """The network of a whole config; raises ValueError for one that makes no sense."""
    net = config.network
    ops = resolve_ops(net)
    check(config)
    dtype = _pick(_DTYPE, net, "compute_dtype")
    full = _pick(_HALF_PRECISION, net, "half_precision")
    return unet.UNetSpec(
        resolution=net.resolution,
        channels=net.channels,
        num_classes=net.num_classes,
        model_channels=net.model_channels,
        channel_mult=tuple(net.channel_mult),
        blocks_per_level=net.blocks_per_level,
        attention_resolutions=tuple(net.attention_resolutions),
        noise_channels=net.noise_channels or net.model_channels,
        embedding_channels=net.embedding_channels
        or net.model_channels * max(net.channel_mult),
        head_channels=net.head_channels,
        block=_pick(_BLOCK, net, "block"),
        ops=ops,
        dropout=net.dropout,
        pixel_norm=net.pixel_norm,
        constant_channel=net.constant_channel,
        embedding_layers=net.embedding_layers,
        unit_variance_label=net.unit_variance_label,
        output_silu=net.output_silu,
        dtype=dtype,
        # [choice] partial: the input and output convolutions stay in float32.
        io_dtype=dtype if full else jnp.float32,
        logvar=config.loss.uncertainty,
        remat=config.training.remat,
    )


def _size_faults(config: Any) -> Iterator[str]:
    net = config.network
    mult = net.channel_mult
    if not mult or not all(isinstance(m, int) and m > 0 for m in mult):
        yield f"network.channel_mult={mult}, but takes one positive integer per level."
    for field in ("channels", "head_channels", "blocks_per_level"):
        if net[field] < 1:
            yield f"network.{field}={net[field]}, but must be at least 1."
    for field in ("noise_channels", "embedding_channels"):
        if net[field] < 0 or net[field] % 2:
            yield (
                f"network.{field}={net[field]}, but must be an even number; 0 follows "
                "network.model_channels."
            )
    if net.num_classes < 0:
        yield f"network.num_classes={net.num_classes}; 0 is the unconditional network."
    for field in ("residual_balance", "embedding_balance", "cat_balance"):
        if not 0 <= net[field] <= 1:
            yield f"network.{field}={net[field]}, but must lie in [0, 1]."


def _architecture_faults(config: Any) -> Iterator[str]:
    net = config.network
    mult = net.channel_mult
    halvings = len(mult) - 1
    if net.weights == "mp" and net.init == "adm":
        yield (
            "network.weights='mp' divides each weight by its norm, and "
            "network.init='adm' starts some at zero; set network.init='normal' "
            "(App. B.4)."
        )
    if net.attention == "dot" and net.norm == "none":
        yield (
            "network.attention='dot' takes its queries from a normalized input, and "
            "network.norm='none' leaves them unbounded; set "
            "network.attention='cosine' (App. B.3)."
        )
    if net.gain and net.init == "adm":
        yield (
            "network.gain and network.init='adm' both start the output at zero, where "
            "neither would then get a gradient; set one of them only (App. B.7)."
        )
    if net.resolution < 1 or net.resolution % 2**halvings:
        yield (
            f"network.resolution={net.resolution} must be a multiple of {2**halvings} "
            f"for the {halvings + 1} levels of network.channel_mult={mult}."
        )
    if net.model_channels < 4 or net.model_channels % 4:
        yield (
            f"network.model_channels={net.model_channels}, but must be a positive "
            "multiple of 4."
        )
    widths = [net.model_channels * mult for mult in net.channel_mult]
    for level, width in enumerate(widths):
        heads = max(width // net.head_channels, 1)
        attends = net.resolution >> level in net.attention_resolutions
        if width % heads and (attends or level == halvings):
            yield (
                f"network.head_channels={net.head_channels} makes {heads} heads of a "
                f"level's {width} channels, and {heads} does not divide {width}: choose "
                "another."
            )
    groups = [min(32, width // 4) for width in widths]
    if net.norm != "none" and any(w % g for w, g in zip(widths, groups, strict=True)):
        yield (
            f"network.norm={net.norm!r} divides channels into groups: levels need a "
            "multiple of 4 channels up to 128, and a multiple of 32 above; these have "
            f"{', '.join(map(str, widths))}. Change network.model_channels or "
            "network.channel_mult."
        )
    if net.embedding_layers not in (1, 2):
        yield f"network.embedding_layers={net.embedding_layers}, but takes 1 or 2."
    if not 0 <= net.dropout < 1:
        yield f"network.dropout={net.dropout}, but must lie in [0, 1)."


def _training_faults(config: Any) -> Iterator[str]:
    opt = config.optimizer
    if opt.forced_weight_norm and config.network.weights != "mp":
        yield (
            "optimizer.forced_weight_norm fixes the norm of weights whose norm still "
            "matters unless network.weights is 'mp'; set network.weights='mp' "
            "(App. B.5)."
        )
    yield from _range_faults(config)
    training = config.training
    for field, words in _WORDS.items():
        group, name = field.split(".")
        if (word := config[group][name]) not in words:
            yield f"{field}={word!r} is not {' or '.join(map(repr, words))}."
    if training.parallel == "pmap" and training.sharding != "none":
        yield (
            f"training.sharding={training.sharding!r} needs training.parallel='jit': "
            "pmap repeats the state on every device."
        )
    if opt.batch_size % training.microbatches:
        yield (
            f"training.microbatches={training.microbatches} does not divide "
            f"optimizer.batch_size={opt.batch_size}."
        )
    nimg = round(training.duration_mimg * 1e6)
    if nimg < opt.batch_size:
        yield (
            f"training.duration_mimg={training.duration_mimg} is {nimg:,} images, less "
            f"than one batch of optimizer.batch_size={opt.batch_size}."
        )
    steps = math.ceil(nimg / opt.batch_size)
    if config.ema.update_every > steps:
        yield (
            f"ema.update_every={config.ema.update_every} is beyond the {steps:,} steps "
            "of the run, so no average would ever be updated."
        )
    if config.seed < 0:
        yield f"seed={config.seed}, but must not be negative."
    if config.evaluation.num_steps < 2 or config.evaluation.num_samples < 2:
        yield "evaluation.num_steps and evaluation.num_samples must be at least 2."
    if config.ema.snapshot_dtype not in _DTYPE:
        yield (
            f"ema.snapshot_dtype={config.ema.snapshot_dtype!r}, but takes one of "
            f"{', '.join(_DTYPE)}."
        )
    if not config.ema.sigma_rels:
        yield "ema.sigma_rels is empty, and nothing could be rebuilt; name at least one."
    for field in ("ema.sigma_rels", "evaluation.sigma_rels"):
        yield from _length_faults(field, _get(config, field))
    yield from _halflife_faults(config.ema.halflives_mimg)


def _get(config: Any, field: str) -> Any:
    group, _, name = field.partition(".")
    return config[group][name]


def _range_faults(config: Any) -> Iterator[str]:
    for group, fields in config.items():
        for name, value in fields.items() if hasattr(fields, "items") else ():
            if isinstance(value, float) and math.isnan(value):
                yield f"{group}.{name}=nan, but must be a number."
    for field in _POSITIVE:
        if not 0 < (value := _get(config, field)) < math.inf:
            yield f"{field}={value}, but must be positive and finite."
    for field in _BOUNDS:
        if not (value := _get(config, field)) > 0:
            yield f"{field}={value}, but must be positive; inf turns it off."
    for field in _NOT_NEGATIVE:
        if not 0 <= (value := _get(config, field)) < math.inf:
            yield f"{field}={value}, but must be finite and not negative."
    for field in ("loss.P_mean", "evaluation.P_mean"):
        if not math.isfinite(value := _get(config, field)):
            yield f"{field}={value}, but must be finite."
    low, high = config.evaluation.sigma_min, config.evaluation.sigma_max
    if low >= high:
        yield f"evaluation.sigma_min={low} must be below evaluation.sigma_max={high}."


def _length_faults(field: str, sigma_rels: Any) -> Iterator[str]:
    for sigma_rel in sigma_rels:
        if not isinstance(sigma_rel, (int, float)) or isinstance(sigma_rel, bool):
            yield f"{field} has {sigma_rel!r}, but takes numbers."
            return
        try:
            PowerProfile(sigma_rel)
        except ValueError as error:
            yield f"{field}: {error}"
    yield from _twice(field, sigma_rels)


def _halflife_faults(halflives_mimg: Any) -> Iterator[str]:
    for halflife in halflives_mimg:
        number = isinstance(halflife, (int, float)) and not isinstance(halflife, bool)
        if not number or not 0 < halflife < math.inf:
            yield (
                f"ema.halflives_mimg has {halflife!r}, but takes positive, finite "
                "numbers."
            )
            return
    yield from _twice("ema.halflives_mimg", halflives_mimg)


def _twice(field: str, lengths: Any) -> Iterator[str]:
    # The name of an average keeps six significant digits of its length.
    names = [f"{length:g}" for length in lengths]
    if twice := [name for name in names if names.count(name) > 1]:
        yield f"{field}={tuple(lengths)} has {twice[0]} twice; name each length once."


def check(config: Any) -> None:
    """Raises ValueError, one sentence, where a config contradicts itself."""
    # One after the other: later checks rely on what the earlier ones allow.
    for find_faults in (_size_faults, _architecture_faults, _training_faults):
        for fault in find_faults(config):
            raise ValueError(fault)
