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
    "optimizer.nonfinite": ("zero", "skip", "stop"),
    "optimizer.decay": ("inverse_sqrt", "cosine", "linear"),
}
_COUNTS = ("keep_checkpoints", "microbatches")
_BOUNDS = ("alert_loss", "alert_growth")


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
    if net.num_classes < 0:
        yield f"network.num_classes={net.num_classes}; 0 is the unconditional network."
    for field in ("residual_balance", "embedding_balance", "cat_balance"):
        if not 0 <= net[field] <= 1:
            yield f"network.{field}={net[field]}, but must lie in [0, 1]."


def _architecture_faults(config: Any) -> Iterator[str]:
    net = config.network
    halvings = len(net.channel_mult) - 1
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
            f"network.resolution={net.resolution} cannot be halved {halvings} times; "
            "shorten network.channel_mult."
        )
    if net.model_channels < 4 or net.model_channels % 4:
        yield "network.model_channels must be a positive multiple of 4."
    widths = [net.model_channels * mult for mult in net.channel_mult]
    if any(width % min(net.head_channels, width) for width in widths):
        yield "network.head_channels must divide the channels of every level."
    groups = [min(32, width // 4) for width in widths]
    if net.norm != "none" and any(w % g for w, g in zip(widths, groups, strict=True)):
        yield (
            "network.norm needs levels of 4 to 128 channels, by fours, or of a multiple "
            "of 32; change network.model_channels or network.channel_mult."
        )
    if net.embedding_layers not in (1, 2):
        yield f"network.embedding_layers={net.embedding_layers}, but takes 1 or 2."
    if not 0 <= net.dropout < 1:
        yield f"network.dropout={net.dropout}, but must lie in [0, 1)."


def _training_faults(config: Any) -> Iterator[str]:
    opt, loss = config.optimizer, config.loss
    if opt.forced_weight_norm and config.network.weights != "mp":
        yield (
            "optimizer.forced_weight_norm fixes the norm of weights whose norm still "
            "matters unless network.weights is 'mp'; set network.weights='mp' "
            "(App. B.5)."
        )
    positive = {
        "network.clamp": config.network.clamp,
        "loss.P_std": loss.P_std,
        "loss.sigma_data": loss.sigma_data,
        "optimizer.batch_size": opt.batch_size,
        "optimizer.alpha_ref": opt.alpha_ref,
        "optimizer.t_ref": opt.t_ref,
        "optimizer.decay_end_mimg": opt.decay_end_mimg,
        "optimizer.loss_scale": opt.loss_scale,
        "ema.update_every": config.ema.update_every,
    }
    training = config.training
    intervals = "duration snapshot probe log patience checkpoint keep_checkpoint"
    for name in (*(f"{i}_mimg" for i in intervals.split()), *_COUNTS, *_BOUNDS):
        positive[f"training.{name}"] = training[name]
    for field, value in positive.items():
        if not value > 0:
            yield f"{field}={value}, but must be positive (inf turns a bound off)."
    for field in ("beta1", "beta2"):
        if not 0 <= opt[field] < 1:
            yield f"optimizer.{field}={opt[field]}, but must lie in [0, 1)."
    if opt.rampup_mimg < 0:
        yield f"optimizer.rampup_mimg={opt.rampup_mimg}, but must not be negative."
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
    if not math.isfinite(training.duration_mimg):
        yield "training.duration_mimg must be finite: all runs end."
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
    tracked, wanted = config.ema.sigma_rels, config.evaluation.sigma_rels
    for room, sigma_rel in [
        *(("ema", s) for s in tracked),
        *(("evaluation", s) for s in wanted),
    ]:
        number = isinstance(sigma_rel, (int, float))
        if not number or not 0 < sigma_rel < 0.2886:
            yield (
                f"{room}.sigma_rels has {sigma_rel!r}, outside (0, 0.2886), the range of "
                "power-function averages (App. C.1)."
            )


def check(config: Any) -> None:
    """Raises ValueError, one sentence, where a config contradicts itself."""
    # One after the other: later checks rely on what the earlier ones allow.
    for find_faults in (_size_faults, _architecture_faults, _training_faults):
        for fault in find_faults(config):
            raise ValueError(fault)
