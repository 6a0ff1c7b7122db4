"""From the original code's names and layout to this project's config-G parameters.

Its convolutions are (out, in, height, width), its linear layers (out, in), q, k and v
alternate along the output channels of the qkv layer, and 2 pi is part of the Fourier
frequencies and phases. A snapshot does not say how large its network is: names and
shapes do, and every tensor is then held against what a network of that size has.
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

Tensors = Mapping[str, np.ndarray]

HEAD_CHANNELS = 64
LOGVAR_FEATURES = 128
_BLOCK0 = re.compile(r"unet\.enc\.([0-9]+)x\1_block0(?=\.conv_res1\.weight\Z)")
_ADVICE = ": name a snapshot of a config-G network of the original code."
_NAME = re.compile(r"(.+)-([0-9]{7,})-([0-9]\.[0-9]{3})\.pkl")


@dataclasses.dataclass(frozen=True)
class OriginalNetwork:
    """The size of a config-G network, in the words of a config's `network` fields."""

    resolution: int
    channels: int
    num_classes: int  # 0: unconditional
    model_channels: int
    channel_mult: tuple[int, ...]
    blocks_per_level: int
    attention_resolutions: tuple[int, ...]
    head_channels: int = HEAD_CHANNELS


class Slot(NamedTuple):
    """A tensor of the original network and its place in this project's tree."""

    name: str
    shape: tuple[int, ...]
    path: str


def name_of(path: str | os.PathLike[str]) -> tuple[str, int, float]:
    """(prefix, nimg, sigma_rel) that the name of a snapshot tells.

    Such a name is PREFIX-{kimg:07d}-{sigma_rel:.3f}.pkl, and kimg is nimg // 1000 of an
    nimg that is a multiple of 1024. Raises ValueError for another form.
    """
    name = Path(path).name
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(
            f"{name} does not tell its time and EMA length; name it as the original code "
            "does, PREFIX-{kimg:07d}-{sigma_rel:.3f}.pkl."
        )
    prefix, kimg, sigma_rel = match.groups()
    return prefix, -(-int(kimg) * 1000 // 1024) * 1024, float(sigma_rel)


def to_params(tensors: Tensors) -> tuple[dict[str, Any], OriginalNetwork]:
    """The float32 parameters (a nested dict) of flat names -> arrays, and their size.

    Raises ValueError where a tensor is missing, is not finite, has another shape than
    in a config-G network of this size, or is one that no such network has.
    """
    network = infer(tensors)
    params: dict[str, Any] = {}
    unused = dict(tensors)
    for slot in slots(network):
        *parents, leaf = slot.path.split("/")
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        tensor = unused.pop(slot.name, None)
        if tensor is None or tensor.shape != slot.shape:
            found = "is missing" if tensor is None else f"has shape {tensor.shape}"
            raise ValueError(
                f"The tensor {slot.name!r} {found}, where {slot.shape} belongs{_ADVICE}"
            )
        if not np.isfinite(tensor).all():
            raise ValueError(
                f"The tensor {slot.name!r} holds numbers that are not finite{_ADVICE}"
            )
        node[leaf] = arrange(slot, tensor).astype(np.float32, order="C")
    for name, tensor in unused.items():
        raise ValueError(
            f"The tensor {name!r} of shape {tensor.shape} has no place in a config-G "
            f"network{_ADVICE}"
        )
    return params, network


def infer(tensors: Tensors) -> OriginalNetwork:
    """The size that names and shapes tell; raises ValueError where they contradict."""

    def widths(name: str, dims: int) -> tuple[int, ...]:
        if name not in tensors or tensors[name].ndim != dims:
            raise ValueError(
                f"There is no tensor {name!r} of {dims} dimensions{_ADVICE}"
            )
        return tensors[name].shape

    (features,) = widths("unet.emb_fourier.freqs", 1)
    blocks = {int(match[1]): match[0] for match in map(_BLOCK0.match, tensors) if match}
    resolutions = sorted(blocks, reverse=True)
    levels = [widths(f"{blocks[r]}.conv_res1.weight", 4)[0] for r in resolutions]
    if not levels or any(width % features for width in levels):
        raise ValueError(
            f"The encoder has levels of {levels} channels, which should be multiples of "
            f"the {features} noise features{_ADVICE}"
        )
    if any(width % min(HEAD_CHANNELS, width) for width in levels):
        raise ValueError(
            f"The encoder has levels of {levels} channels, which attention heads of "
            f"{HEAD_CHANNELS} do not divide{_ADVICE}"
        )
    first = blocks[resolutions[0]].removesuffix("0")
    labelled = "unet.emb_label.weight" in tensors
    return OriginalNetwork(
        resolution=resolutions[0],
        channels=widths("unet.out_conv.weight", 4)[0],
        num_classes=widths("unet.emb_label.weight", 2)[1] if labelled else 0,
        model_channels=features,
        channel_mult=tuple(width // features for width in levels),
        blocks_per_level=next(
            i
            for i in itertools.count()
            if f"{first}{i}.conv_res1.weight" not in tensors
        ),
        attention_resolutions=tuple(
            r for r in resolutions if f"{blocks[r]}.attn_qkv.weight" in tensors
        ),
    )


def slots(network: OriginalNetwork) -> Iterator[Slot]:
    """Every tensor of such a network, as the original code names and shapes it."""
    features = network.model_channels
    first = features * network.channel_mult[0]
    embedding = features * max(network.channel_mult)
    side = f"{network.resolution}x{network.resolution}"
    kernels = {
        "unet.emb_noise": ((embedding, features), "unet/embedding/noise0"),
        "unet.emb_label": ((embedding, network.num_classes), "unet/embedding/label"),
        # One channel more than the images have: it is constant.
        f"unet.enc.{side}_conv": (
            (first, network.channels + 1, 3, 3),
            f"unet/enc_{side}_conv",
        ),
        "unet.out_conv": ((network.channels, first, 3, 3), "unet/out_conv"),
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
    for block in _blocks(network):
        yield from block.slots(embedding)


def arrange(slot: Slot, tensor: np.ndarray) -> np.ndarray:
    """A tensor of the original code in this project's layout, a view where it can be.

    (out, in, h, w) becomes (h, w, in, out), or (in, out) where h = w = 1; q, k and v
    become thirds of the output channels; 2 pi leaves the Fourier features.
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


class _Block(NamedTuple):
    side: str
    resolution: int
    name: str
    channels_in: int
    channels: int
    attention: bool

    def slots(self, embedding: int) -> Iterator[Slot]:
        """The block's tensors; embedding is the width of the noise embedding."""
        block = f"{self.resolution}x{self.resolution}_{self.name}"
        cin, cout = self.channels_in, self.channels
        # The encoder's branch leaves the main path after the 1x1 convolution.
        branch_in = cout if self.side == "enc" else cin
        kernels = {
            "conv_res0": ((cout, branch_in, 3, 3), "branch/conv0"),
            "emb_linear": ((cout, embedding), "branch/emb_linear"),
            "conv_res1": ((cout, cout, 3, 3), "branch/conv1"),
        }
        if cin != cout:
            kernels["conv_skip"] = (cout, cin, 1, 1), "conv_skip"
        if self.attention:
            kernels["attn_qkv"] = (3 * cout, cout, 1, 1), "attention/qkv"
            kernels["attn_proj"] = (cout, cout, 1, 1), "attention/proj"
        theirs, ours = f"unet.{self.side}.{block}", f"unet/{self.side}_{block}"
        yield Slot(f"{theirs}.emb_gain", (), f"{ours}/branch/emb_linear/gain")
        for name, (shape, path) in kernels.items():
            yield Slot(f"{theirs}.{name}.weight", shape, f"{ours}/{path}/kernel")


def _blocks(network: OriginalNetwork) -> Iterator[_Block]:
    widths = [network.model_channels * mult for mult in network.channel_mult]
    count, last = network.blocks_per_level, len(widths) - 1
    width = widths[0]
    skips = [width]
    for level, channels in enumerate(widths):
        side = network.resolution >> level
        attention = side in network.attention_resolutions
        if level:
            yield _Block("enc", side, "down", width, width, False)
            skips.append(width)
        for i in range(count):
            yield _Block("enc", side, f"block{i}", width, channels, attention)
            width = channels
            skips.append(width)
    for level, channels in reversed(list(enumerate(widths))):
        side = network.resolution >> level
        attention = side in network.attention_resolutions
        if level == last:
            yield _Block("dec", side, "in0", width, width, True)
            yield _Block("dec", side, "in1", width, width, False)
        else:
            yield _Block("dec", side, "up", width, width, False)
        for i in range(count + 1):
            block_in = width + skips.pop()
            yield _Block("dec", side, f"block{i}", block_in, channels, attention)
            width = channels
