"""Maps the original code's names and layout to this project's config-G parameters.

Its convolutions are (out, in, height, width) and its linear layers (out, in); q, k and v
alternate along the output channels of the qkv layer; and the Fourier frequencies and
phases include the factor 2 pi. A snapshot does not state the network's size, so it is
inferred from names and shapes, and every tensor is then checked against that size.
"""

import dataclasses
import itertools
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edm_jax.models import topology
from edm_jax.models.topology import Element

Tensors = Mapping[str, np.ndarray]

HEAD_CHANNELS = 64
LOGVAR_FEATURES = 128
_INPUT = re.compile(r"unet\.enc\.([0-9]{1,6})x\1_conv\.weight")
ADVICE = ": name a snapshot of a config-G network of the original code."
_NAME = re.compile(r"(.+)-([0-9]{7,})-([0-9]\.[0-9]{3})\.pkl")


@dataclasses.dataclass(frozen=True)
class OriginalNetwork(topology.Sizes):
    """A config-G network, as a config's `network` fields."""

    noise_channels: int = 0  # 0: model_channels
    embedding_channels: int = 0  # 0: those of the widest level
    head_channels: int = HEAD_CHANNELS
    residual_balance: float = 0.3
    embedding_balance: float = 0.5
    cat_balance: float = 0.5
    clamp: float = 256.0
    dropout: float = 0.0


class Slot(NamedTuple):
    """A tensor of the original network and its place in this project's tree."""

    name: str
    shape: tuple[int, ...]
    path: str


def is_named(path: str | os.PathLike[str]) -> bool:
    """Whether a file has the name of a snapshot, in the form of `name_of`."""
    return _NAME.fullmatch(Path(path).name) is not None


def name_of(path: str | os.PathLike[str]) -> tuple[str, int, float]:
    """(prefix, nimg, sigma_rel) from the name of a snapshot.

    The name is PREFIX-{kimg:07d}-{sigma_rel:.3f}.pkl; kimg is nimg // 1000, and nimg a
    multiple of 1024.

    Raises:
        ValueError: the name has another form.
    """
    name = Path(path).name
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(
            f"{name} does not give its time and EMA length; name it as the original code "
            "does: PREFIX-{kimg:07d}-{sigma_rel:.3f}.pkl."
        )
    prefix, kimg, sigma_rel = match.groups()
    return prefix, -(-int(kimg) * 1000 // 1024) * 1024, float(sigma_rel)


def fit(tensors: Tensors, network: OriginalNetwork) -> list[Slot]:
    """Finds the place of every tensor in a network of this size.

    Raises:
        ValueError: a tensor is missing, has the wrong shape, or has no place.
    """
    found, unused = list(slots(network)), dict(tensors)
    for slot in found:
        tensor = unused.pop(slot.name, None)
        if tensor is None or tensor.shape != slot.shape:
            state = "is missing" if tensor is None else f"has shape {tensor.shape}"
            raise ValueError(
                f"The tensor {slot.name!r} {state}, but must have {slot.shape}{ADVICE}"
            )
    for name, tensor in unused.items():
        raise ValueError(
            f"The tensor {name!r} of shape {tensor.shape} has no place in a config-G "
            f"network{ADVICE}"
        )
    return found


def to_params(tensors: Tensors, places: list[Slot]) -> dict[str, Any]:
    """The parameters, a nested dict in this project's layout.

    They are views of the tensors, in the stored format. The Fourier features are float32,
    because float16 would round them again when they are divided by 2 pi.

    Raises:
        ValueError: a tensor contains numbers that are not finite.
    """
    params: dict[str, Any] = {}
    for slot in places:
        *parents, leaf = slot.path.split("/")
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        tensor = tensors[slot.name]
        if not np.isfinite(tensor).all():
            raise ValueError(
                f"The tensor {slot.name!r} holds numbers that are not finite{ADVICE}"
            )
        node[leaf] = arrange(slot, tensor)
    return params


def infer(tensors: Tensors) -> OriginalNetwork:
    """Infers the size from names and shapes; raises ValueError if they contradict."""

    def widths(name: str, dims: int) -> tuple[int, ...]:
        if name not in tensors or tensors[name].ndim != dims:
            raise ValueError(
                f"There is no tensor {name!r} of {dims} dimensions{ADVICE}"
            )
        return tensors[name].shape

    (noise,) = widths("unet.emb_fourier.freqs", 1)
    (logvar,) = widths("logvar_fourier.freqs", 1)
    if logvar != LOGVAR_FEATURES:
        raise ValueError(
            f"The network has logvar_channels = {logvar}, but only {LOGVAR_FEATURES} is "
            f"accepted{ADVICE}"
        )
    embedding, _ = widths("unet.emb_noise.weight", 2)
    found = [int(match[1]) for match in map(_INPUT.fullmatch, tensors) if match]
    if len(found) != 1:
        raise ValueError(f"There are {len(found)} input convolutions, not one{ADVICE}")

    def weight(resolution: int, i: int, layer: str) -> str:
        block = Element("enc", resolution, f"block{i}", 0, 0)
        return f"{original_name(block)}.{layer}.weight"

    levels: dict[int, int] = {}  # channels by resolution
    side = found[0]
    while side and weight(side, 0, "conv_res1") in tensors:
        levels[side], _, _, _ = widths(weight(side, 0, "conv_res1"), 4)
        side //= 2
    if not levels:
        raise ValueError(f"The encoder has no blocks{ADVICE}")
    middle = original_name(Element("dec", min(levels), "in0", 0, 0))
    if f"{middle}.emb_gain" in tensors and f"{middle}.attn_qkv.weight" not in tensors:
        raise ValueError(
            f"The block {middle!r} has no attention, so it has fewer channels than a "
            f"head; only networks with attention there are accepted{ADVICE}"
        )
    unit = math.gcd(*levels.values())
    labelled = "unet.emb_label.weight" in tensors
    return OriginalNetwork(
        resolution=found[0],
        channels=widths("unet.out_conv.weight", 4)[0],
        num_classes=widths("unet.emb_label.weight", 2)[1] if labelled else 0,
        model_channels=unit,
        channel_mult=tuple(width // unit for width in levels.values()),
        blocks_per_level=next(
            i
            for i in itertools.count()
            if weight(found[0], i, "conv_res1") not in tensors
        ),
        attention_resolutions=tuple(
            side for side in levels if weight(side, 0, "attn_qkv") in tensors
        ),
        noise_channels=0 if noise == unit else noise,
        embedding_channels=0 if embedding == max(levels.values()) else embedding,
    )


def slots(network: OriginalNetwork) -> Iterator[Slot]:
    """Every tensor of such a network, as the original code names and shapes it."""
    first, *blocks = topology.elements(network)
    features = network.noise_channels or network.model_channels
    widest = network.model_channels * max(network.channel_mult)
    embedding = network.embedding_channels or widest
    kernels = {
        "unet.emb_noise": ((embedding, features), "unet/embedding/noise0"),
        "unet.emb_label": ((embedding, network.num_classes), "unet/embedding/label"),
        # One more channel than the images have, which is constant.
        original_name(first): (
            (first.features, network.channels + 1, 3, 3),
            f"unet/{first.name}",
        ),
        "unet.out_conv": ((network.channels, first.features, 3, 3), "unet/out_conv"),
        "logvar_linear": ((1, LOGVAR_FEATURES), "logvar"),
    }
    if not network.num_classes:
        del kernels["unet.emb_label"]
    for name, (shape, path) in kernels.items():
        yield Slot(f"{name}.weight", shape, f"{path}/kernel")
    yield Slot("unet.out_gain", (), "unet/out_conv/gain")
    for leaf in ("freqs", "phases"):
        noise = f"unet/embedding/noise_features/{leaf}"
        yield Slot(f"unet.emb_fourier.{leaf}", (features,), noise)
        logvar = f"logvar_features/{leaf}"
        yield Slot(f"logvar_fourier.{leaf}", (LOGVAR_FEATURES,), logvar)
    for block in blocks:
        yield from _block_slots(block, embedding)


def arrange(slot: Slot, tensor: np.ndarray) -> np.ndarray:
    """Puts a tensor of the original code into this project's layout, as a view if possible.

    (out, in, h, w) becomes (h, w, in, out), or (in, out) if h = w = 1; q, k and v become
    thirds of the output channels; the Fourier features are divided by 2 pi.
    """
    if slot.path.endswith(("/freqs", "/phases")):
        return tensor.astype(np.float32) / (2 * math.pi)
    if slot.path.endswith("/qkv/kernel"):
        channels = tensor.shape[1]
        thirds = tensor.reshape(channels, 3, channels, 1, 1).swapaxes(0, 1)
        tensor = thirds.reshape(tensor.shape)
    if tensor.ndim == 4 and tensor.shape[2:] == (1, 1):
        tensor = tensor[:, :, 0, 0]
    return np.moveaxis(tensor, (0, 1), (-1, -2)) if tensor.ndim else tensor


def original_name(element: Element) -> str:
    """The original code's name of an element."""
    return f"unet.{element.side}.{element.place}"


def _block_slots(element: Element, embedding: int) -> Iterator[Slot]:
    """A block's tensors; embedding is the width of the noise embedding."""
    cin, cout = element.features_in, element.features
    # The encoder's branch starts after the main path's 1x1 convolution.
    branch_in = cout if element.side == "enc" else cin
    kernels = {
        "conv_res0": ((cout, branch_in, 3, 3), "branch/conv0"),
        "emb_linear": ((cout, embedding), "branch/emb_linear"),
        "conv_res1": ((cout, cout, 3, 3), "branch/conv1"),
    }
    if cin != cout:
        kernels["conv_skip"] = (cout, cin, 1, 1), "conv_skip"
    if element.attention:
        kernels["attn_qkv"] = (3 * cout, cout, 1, 1), "attention/qkv"
        kernels["attn_proj"] = (cout, cout, 1, 1), "attention/proj"
    theirs, ours = original_name(element), f"unet/{element.name}"
    yield Slot(f"{theirs}.emb_gain", (), f"{ours}/branch/emb_linear/gain")
    for name, (shape, path) in kernels.items():
        yield Slot(f"{theirs}.{name}.weight", shape, f"{ours}/{path}/kernel")
