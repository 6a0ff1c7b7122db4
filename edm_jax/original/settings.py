"""Reads a pickled network's settings, other than its weights.

Two networks with the same weights compute different functions if their heads, balances or
bounds differ. Every such attribute is read as it was when the snapshot was written, and
is either used or refused by name.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn

import numpy as np

from edm_jax.models import topology
from edm_jax.models.topology import Element
from edm_jax.original import arrays
from edm_jax.original.mapping import (
    ADVICE,
    HEAD_CHANNELS,
    OriginalNetwork,
    original_name,
)
from edm_jax.original.reader import Module, Stored

# Defaults of the constructors.
_DEFAULTS = {
    "sigma_data": 0.5,
    "use_fp16": True,
    "label_balance": 0.5,
    "concat_balance": 0.5,
    "dropout": 0,
    "res_balance": 0.3,
    "attn_balance": 0.3,
    "clip_act": 256,
    "resample_filter": [1, 1],
}
# These follow from the names and shapes of the weights, or the blocks' numbers of heads.
_SIZES = {
    *("img_resolution", "img_channels", "label_dim", "model_channels", "num_blocks"),
    *("channel_mult", "channel_mult_noise", "channel_mult_emb", "attn_resolutions"),
    *("channels_per_head", "logvar_channels"),
}


class Settings(NamedTuple):
    """A network with all its settings, and its preconditioning.

    half_precision: whether it computes in float16 on devices that are fast at it.
    """

    network: OriginalNetwork
    sigma_data: float
    half_precision: bool


def read(stored: Stored, network: OriginalNetwork) -> Settings:
    """The settings of a pickled network of a known size.

    Raises:
        ValueError: no network here can compute this one. The message names the
            attribute, its value and what is accepted.
    """
    blocks = {original_name(each): each for each in topology.elements(network)[1:]}
    said = _Attributes(stored.modules, blocks)
    said.check_classes()
    said.check_only("", "img_resolution", network.resolution)
    said.check_only("", "img_channels", network.channels)
    said.check_only("", "label_dim", network.num_classes)
    for name, block in blocks.items():
        said.check_only(name, "flavor", block.side)
        said.check_only(name, "resample_filter", [1, 1])
        said.check_only(name, "resample_mode", block.resample)
    balance = said.common(blocks, "res_balance", _BALANCE)
    if balance != said.common(blocks, "attn_balance", _BALANCE):
        said.refuse(said.attending[0], "attn_balance", f"the res_balance, {balance:g},")
    precise = said.value("", "use_fp16")
    if not isinstance(precise, bool):
        said.refuse("", "use_fp16", "True or False")
    changes = {
        "head_channels": said.head_channels(stored.tensors),
        "residual_balance": balance,
        "embedding_balance": said.number("unet", "label_balance", _BALANCE),
        "cat_balance": said.number("unet", "concat_balance", _BALANCE),
        "clamp": said.common(blocks, "clip_act", _BOUND),
        "dropout": said.common(blocks, "dropout", _RATE),
    }
    sigma_data = said.number("", "sigma_data", _POSITIVE)
    return Settings(dataclasses.replace(network, **changes), sigma_data, precise)


def latents(stored: Stored, channels: int) -> tuple[np.ndarray, np.ndarray] | None:
    """(scale, bias), float64 (channels,), that the encoder applies to raw latents.

    None if the snapshot's encoder has no such arrays.

    Raises:
        ValueError: they are not one finite number per channel.
    """
    rows = []
    for key in ("scale", "bias"):
        if key not in stored.encoder:
            return None
        row = arrays.decode(stored.encoder[key])
        fits = isinstance(row, np.ndarray) and row.shape in ((channels,), (1,), ())
        if (
            not fits
            or not np.isfinite(row).all()
            or key == "scale"
            and np.any(row <= 0)
        ):
            raise ValueError(
                f"The encoder's {key!r} is {_shown(row)}, but only an array of "
                f"{channels} numbers, one per channel, is accepted{ADVICE}"
            )
        rows.append(np.broadcast_to(row.astype(np.float64), (channels,)))
    return rows[0], rows[1]


class _Kind(NamedTuple):
    words: str
    accepts: Callable[[float], bool]


_BALANCE = _Kind("a number from 0 to 1", lambda x: 0 <= x <= 1)
_RATE = _Kind("a number from 0 to below 1", lambda x: 0 <= x < 1)
_POSITIVE = _Kind("a number above 0", lambda x: 0 < x < math.inf)
_BOUND = _Kind("a number above 0, or None,", lambda x: x > 0)


class _Attributes:
    """The attributes of modules, by module and name."""

    def __init__(self, modules: Mapping[str, Module], blocks: Mapping[str, Element]):
        self._modules, self._blocks = modules, blocks
        makers = [modules[name].state for name in ("unet", "") if name in modules]
        found = [state.get("_init_kwargs") for state in makers]
        self._given = [given for given in found if isinstance(given, dict)]
        for given in self._given:
            for key in given.keys() - _DEFAULTS.keys() - _SIZES:
                raise ValueError(
                    f"The network was made with {str(key)!r}, a setting that the "
                    f"original code does not have{ADVICE}"
                )
        self.attending = [name for name, each in blocks.items() if each.attention]

    def check_classes(self) -> None:
        """Raises ValueError if a module's class is not that of the original code."""
        for name, module in self._modules.items():
            wanted = "Block" if name in self._blocks else _class_of(name)
            if module.class_name != wanted:
                raise ValueError(
                    f"The class of {_place(name)} is {module.class_name[:60]!r}, but "
                    f"only {wanted!r} is accepted{ADVICE}"
                )

    def value(self, name: str, key: str) -> Any:
        """An attribute, or else the constructor's argument."""
        states = [self._modules[name].state] if name in self._modules else []
        for state in (*states, *self._given):
            if key in state:
                found = arrays.decode(state[key])
                number = isinstance(found, np.ndarray) and not found.ndim
                return found.item() if number else found
        if self._given and key in _DEFAULTS:
            return _DEFAULTS[key]
        raise ValueError(f"There is no attribute {key!r} of {_place(name)}{ADVICE}")

    def check_only(self, name: str, key: str, wanted: Any) -> None:
        """Raises ValueError if an attribute has another value."""
        found = self.value(name, key)
        found = list(found) if isinstance(found, tuple) else found
        if type(found) is not type(wanted) or found != wanted:
            self.refuse(name, key, repr(wanted))

    def number(self, name: str, key: str, kind: _Kind) -> float:
        """A number of some kind; None, if a bound may be None, means infinity."""
        found = self.value(name, key)
        if found is None and kind is _BOUND:
            return math.inf
        if isinstance(found, bool) or not isinstance(found, (int, float)):
            self.refuse(name, key, kind.words)
        # Integers in a pickle may be larger than any float.
        if not kind.accepts(found) or 1e30 < found < math.inf:
            self.refuse(name, key, kind.words)
        return float(found)

    def common(self, names: Mapping[str, Any], key: str, kind: _Kind) -> float:
        """The number that all blocks must share."""
        first, *others = names
        wanted = self.number(first, key, kind)
        for name in others:
            if self.number(name, key, kind) != wanted:
                self.refuse(name, key, f"{wanted:g}, as in {first!r},")
        return wanted

    def head_channels(self, tensors: Mapping[str, np.ndarray]) -> int:
        """Channels per head; a block has as many heads as fit into its channels.

        The published width if it gives the blocks' numbers of heads, else the largest
        width that does.
        """
        low, high, widest = 1, math.inf, 1
        for name in self.attending:
            heads = self.value(name, "num_heads")
            channels = tensors[f"{name}.attn_qkv.weight"].shape[1]
            if type(heads) is not int or heads < 1 or channels % heads:
                self.refuse(name, "num_heads", f"a divisor of its {channels} channels")
            low = max(low, channels // (heads + 1) + 1)
            if heads > 1:  # a block with fewer channels than a head has one, too
                high = min(high, channels // heads)
            widest = max(widest, channels)
        if low > high:
            self.refuse(self.attending[0], "num_heads", "one that fits a single width")
        return HEAD_CHANNELS if low <= HEAD_CHANNELS <= high else int(min(high, widest))

    def refuse(self, name: str, key: str, accepted: str) -> NoReturn:
        raise ValueError(
            f"The attribute {key!r} of {_place(name)} is "
            f"{_shown(self.value(name, key))}, but only {accepted} is accepted{ADVICE}"
        )


def _class_of(name: str) -> str:
    """The original code's class for a module that is not a block."""
    if name in ("", "unet"):
        return "UNet" if name else "Precond"
    if name in ("unet.enc", "unet.dec"):
        return "ModuleDict"
    return "MPFourier" if name.endswith("_fourier") else "MPConv"


def _place(name: str) -> str:
    return repr(name) if name else "the network"


def _shown(value: Any) -> str:
    """Shows a value in a sentence, without nested values, which might be endless."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)[:60]
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape}"
    if isinstance(value, list) and all(type(each) in (int, float) for each in value):
        return repr(value[:8])[:60]
    return "of another kind"
