"""Puts the weights of one network into another that differs in its ends or resolution.

What may differ: the number of classes, the channels of the images, the resolution if the
levels are as many and as wide, and the u(sigma) head.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from edm_jax.models.ops import NetworkConfig
from edm_jax.train.starts import Weights

Flat = Mapping[str, Any]  # {'unet/out_conv/kernel': array or shape}
Shapes = Mapping[str, tuple[int, ...]]

LABEL = "unet/embedding/label/kernel"
# Leaves that one network may have and the other not.
_OPTIONAL = re.compile(r"logvar|unet/embedding/(label|augment)/")
_INPUT = re.compile(r"unet/enc_(\d+)x\1_conv/kernel")
_OUTPUT = re.compile(r"unet/out_conv/(kernel|bias)")
_PLACE = re.compile(r"(unet/(?:enc|dec)_)(\d+)x\2_")


class Adapted(NamedTuple):
    """A leaf that takes a part of another's."""

    name: str
    there: tuple[int, ...]  # shapes
    here: tuple[int, ...]
    how: str


@dataclasses.dataclass(frozen=True)
class Fit:
    """Where each leaf of a network comes from.

    origin: {leaf: the source's leaf}, of those loaded or adapted.
    """

    origin: dict[str, str]
    adapted: list[Adapted]
    initialized: list[str]
    dropped: list[str]

    @property
    def loaded(self) -> list[str]:
        changed = {each.name for each in self.adapted}
        return [name for name in self.origin if name not in changed]


def fit(there: Shapes, here: Shapes, start: Weights, network: NetworkConfig) -> Fit:
    """Finds the source of every leaf.

    Args:
        there: the shapes of the source's leaves.
        here: those of the network.
        start: what is to be done with classes.
        network: the network's config.

    Raises:
        ValueError: the networks differ in more than can be adapted.
    """
    names = _names(there, here)
    _check_classes(there, start, network)
    origin, adapted, initialized, faults = {}, [], [], []
    for name, shape in here.items():
        source = names.get(name)
        if source is None:
            if not _OPTIONAL.match(name):
                faults.append(f"{name} {shape} is missing there")
            initialized.append(name)
            continue
        origin[name] = source
        how = _how(name, there[source], shape, start)
        if how is None:
            faults.append(f"{name} is {there[source]} there and {shape} here")
        elif how:
            adapted.append(Adapted(name, there[source], shape, how))
    dropped = [name for name in there if name not in set(origin.values())]
    faults += [
        f"{name} {there[name]} is missing here"
        for name in dropped
        if not _OPTIONAL.match(name)
    ]
    if faults:
        more = f", and so on ({len(faults)} differ)" if len(faults) > 3 else ""
        raise ValueError(
            f"its network differs from the config's: {'; '.join(faults[:3])}{more}."
            f"{_advice(there, here)} Only the classes, the images' channels, the "
            "resolution and the u(sigma) head may differ."
        )
    return Fit(origin, adapted, initialized, dropped)


def transplant(
    found: Fit, source: Flat, fresh: Flat, start: Weights, network: NetworkConfig
) -> dict[str, np.ndarray]:
    """Makes the leaves of the network, float32.

    Args:
        found: what `fit` returned.
        source: the source's leaves.
        fresh: the network's leaves as they are drawn.
        start: what is to be done with classes.
        network: the network's config.
    """
    weights = {name: np.asarray(fresh[name], np.float32) for name in found.initialized}
    for name, of in found.origin.items():
        weights[name] = np.asarray(source[of], np.float32)
    for name, *_ in found.adapted:
        there, drawn = weights[name], np.asarray(fresh[name], np.float32)
        if name == LABEL:
            weights[name] = _label(there, drawn, start, network)
        elif _OUTPUT.match(name):
            shared = min(there.shape[-1], drawn.shape[-1])
            weights[name] = drawn.copy()
            weights[name][..., :shared] = there[..., :shared]
        else:
            weights[name] = _input(there, drawn.shape, network.constant_channel)
    return {name: weights[name] for name in fresh}


def rows(classes: int, start: Weights, num_classes: int) -> tuple[int, ...]:
    """The source's class of each class; -1 for a new one. `classes` are the source's."""
    if start.classes:
        return start.classes
    return tuple(i if i < classes else -1 for i in range(num_classes))


def _label(
    there: np.ndarray, drawn: np.ndarray, start: Weights, network: NetworkConfig
) -> np.ndarray:
    """The label layer's kernel (classes, channels), one row for each class.

    Where one-hot labels are scaled by sqrt(num_classes) and the weights are not
    normalized, the rows are scaled back, so that the embedding of a class stays the same.
    Normalized weights (mp) have RMS 1 over the classes in every channel; the embedding
    of a class that is kept then changes by as much as the others change that RMS.
    """
    scale = 1.0
    if network.unit_variance_label and network.weights != "mp":
        scale = np.sqrt(len(there) / len(drawn))
    new = drawn if start.new_class == "fresh" else scale * there.mean(0)
    new = np.broadcast_to(new, drawn.shape)
    chosen = np.array(rows(len(there), start, len(drawn)))[:, None]
    return np.where(chosen < 0, new, scale * there[chosen[:, 0]]).astype(np.float32)


def _input(there: np.ndarray, shape: tuple[int, ...], constant: bool) -> np.ndarray:
    """The input layer's kernel (..., channels, out): the network ignores new channels.

    A zero does not change the norm of an output unit either.
    """
    last = int(constant)  # the constant channel comes last
    shared = min(there.shape[-2], shape[-2]) - last
    kernel = np.zeros(shape, np.float32)
    kernel[..., :shared, :] = there[..., :shared, :]
    if last:
        kernel[..., -1, :] = there[..., -1, :]
    return kernel


def _how(
    name: str, there: tuple[int, ...], here: tuple[int, ...], start: Weights
) -> str | None:
    """How a leaf is adapted; '' where it is loaded as it is, None where it cannot be."""
    if name == LABEL and there[1:] == here[1:]:
        chosen = rows(there[0], start, here[0])
        if chosen == tuple(range(there[0])):
            return ""
        new = chosen.count(-1)
        return f"{len(chosen) - new} classes copied, {new} new ({start.new_class})"
    if there == here:
        return ""
    if len(there) != len(here):
        return None
    if _INPUT.match(name) and there[-1] == here[-1] and there[:-2] == here[:-2]:
        return "new channels start at zero" if here[-2] > there[-2] else "channels cut"
    if _OUTPUT.match(name) and there[:-1] == here[:-1]:
        return "new channels drawn" if here[-1] > there[-1] else "channels cut"
    return None


def _check_classes(there: Shapes, start: Weights, network: NetworkConfig) -> None:
    """Raises ValueError where start.classes do not fit both networks."""
    wanted = start.classes
    count = there[LABEL][0] if LABEL in there else 0
    if wanted and len(wanted) != network.num_classes:
        raise ValueError(
            f"training.start.classes={wanted} has {len(wanted)} entries, but the network "
            f"has {network.num_classes} classes: give one for each."
        )
    if wanted and max(wanted) >= count:
        raise ValueError(
            f"training.start.classes={wanted}, but the source has {count} classes, "
            "counted from 0."
        )


def _names(there: Shapes, here: Shapes) -> dict[str, str]:
    """{leaf here: the same leaf there}: levels correspond from the highest resolution."""
    levels = dict(zip(_levels(here), _levels(there), strict=False))

    def source(name: str) -> str:
        return _PLACE.sub(
            lambda m: "{0}{1}x{1}_".format(m[1], levels.get(int(m[2]), 0)), name
        )

    return {name: source(name) for name in here if source(name) in there}


def _levels(shapes: Shapes) -> list[int]:
    found = {int(match[2]) for match in map(_PLACE.match, shapes) if match}
    return sorted(found, reverse=True)


def _advice(there: Shapes, here: Shapes) -> str:
    """What to set where attention is at other levels."""

    def attending(shapes: Shapes) -> Iterator[int]:
        for name in shapes:
            match = _PLACE.match(name)
            if match and re.search(r"_block0/attention/qkv/kernel$", name):
                yield int(match[2])

    if len(_levels(there)) != len(_levels(here)):
        return ""
    levels = dict(zip(_levels(there), _levels(here), strict=True))
    wanted = sorted({levels[side] for side in attending(there)}, reverse=True)
    if set(wanted) == set(attending(here)):
        return ""
    text = ",".join(map(str, wanted))
    return f" Set --config.network.attention_resolutions='({text}{',' * (len(wanted) == 1)})'."
