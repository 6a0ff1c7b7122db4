"""Groups of parameters, each with its own rate, schedule, method and penalty, or frozen.

A group is named by its pattern: parts of the network or globs over parameter paths, such
as `encoder`, `embedding,label` or `unet/dec_*,!attention`. Every parameter belongs to
exactly one. Frozen parameters are neither differentiated nor shown to the optimizer.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import optax

from edm_jax import fields, menu, tree
from edm_jax.fields import Positive, Settings
from edm_jax.models import layers
from edm_jax.models.places import select
from edm_jax.models.unet import Params
from edm_jax.optim.optimizers import OPTIMIZERS, Optimizer
from edm_jax.optim.penalties import PENALTIES, Penalty
from edm_jax.optim.schedules import SCHEDULES, Schedule
from edm_jax.optim.warmups import WARMUPS, Warmup

REST = "rest"


@dataclasses.dataclass(frozen=True)
class Shared(Settings):
    """As in the optimizer's own field of this name."""


_SHARED = Shared()


def _or_shared(entries: Mapping[str, Any]) -> menu.Entry:
    return menu.Entry({"shared": Shared, **entries})


@dataclasses.dataclass(frozen=True)
class Group(Settings):
    """A group of `optimizer.groups`.

    rate: a factor of alpha_ref. frozen: the parameters stay exactly as they are; forced
    weight normalization does not touch them either, neither at the start nor later.
    """

    rate: Positive = 1.0
    frozen: bool = False
    schedule: Annotated[Schedule | Shared, _or_shared(SCHEDULES)] = _SHARED
    warmup: Annotated[Warmup | Shared, _or_shared(WARMUPS)] = _SHARED
    method: Annotated[Optimizer | Shared, _or_shared(OPTIMIZERS)] = _SHARED
    penalty: Annotated[Penalty | Shared, _or_shared(PENALTIES)] = _SHARED

    def faults(self) -> Iterator[str]:
        if self.frozen and (self.rate != 1 or self.own):
            yield "frozen is True, so the group's other fields have no effect: drop them."

    @property
    def own(self) -> dict[str, Any]:
        """The choices that are not shared."""
        names = ("schedule", "warmup", "method", "penalty")
        chosen = {name: getattr(self, name) for name in names}
        return {k: v for k, v in chosen.items() if not isinstance(v, Shared)}


Groups = tuple[tuple[str, Group], ...]


class Named(fields.Choice):
    """The field holds groups by name, in the config a dict of groups of fields."""

    def convert(self, path: str, value: Any) -> Any:
        if not hasattr(value, "items"):
            return value
        return tuple(
            (name, fields.make(Group, f"{path}.{name}", dict(each.items())))
            if hasattr(each, "items")
            else (name, each)
            for name, each in sorted(value.items())
        )

    def check(self, field: str, value: Any, kind: Any) -> None:
        del kind
        sound = isinstance(value, tuple) and all(isinstance(g, Group) for _, g in value)
        if not sound:
            raise fields.Fault(
                f"{field} must hold groups by their pattern, such as "
                f"{field}.encoder.rate=0.1."
            )

    def plain(self, value: Groups) -> dict[str, Any]:
        return {name: fields.plain(group) for name, group in value}


def members(groups: Groups, names: Sequence[str]) -> dict[str, list[str]]:
    """The parameters of each group, in the groups' order.

    Args:
        groups: a config's `optimizer.groups`.
        names: all parameters, such as 'unet/out_conv/kernel'.

    Raises:
        ValueError: a pattern matches nothing, or a parameter belongs to no group or to
            several.
    """
    found = {
        pattern: select(names, pattern, f"optimizer.groups.{pattern}")
        for pattern, _ in groups
        if pattern != REST
    }
    taken = [name for each in found.values() for name in each]
    if twice := sorted({name for name in taken if taken.count(name) > 1}):
        both = [pattern for pattern, each in found.items() if twice[0] in each]
        raise ValueError(
            f"optimizer.groups: {_listed(twice)} {'is' if len(twice) == 1 else 'are'} in "
            f"both {both[0]!r} and {both[1]!r}: leave one out of the other, with a ! before "
            "each of its words."
        )
    left = [name for name in names if name not in set(taken)]
    if any(pattern == REST for pattern, _ in groups):
        found[REST] = left
    elif left:
        raise ValueError(
            f"optimizer.groups leaves out {_listed(left)}: add "
            f"--config.optimizer.groups.{REST}.rate=1 for all that no other group has."
        )
    for pattern, each in found.items():
        if not each:
            raise ValueError(f"optimizer.groups.{pattern} matches no parameter.")
    return {pattern: found[pattern] for pattern, _ in groups}


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more parameters" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"


@dataclasses.dataclass(frozen=True)
class Trained:
    """The parameters that the optimizer changes: all of them without frozen groups."""

    groups: Groups = ()

    @property
    def is_all(self) -> bool:
        return not any(group.frozen for _, group in self.groups)

    def __call__(self, params: Params) -> Params:
        """The part of a tree of all parameters that is trained."""
        return params if self.is_all else _subset(params, self.names(params))

    def names(self, params: Params) -> set[str]:
        """The paths of the parameters that are trained."""
        of = members(self.groups, list(tree.flatten(params)))
        frozen = {name for name, group in self.groups if group.frozen}
        return {p for name, paths in of.items() if name not in frozen for p in paths}

    def with_layers(self, params: Params) -> Params:
        """The leaves of layers of which any leaf is trained."""
        if self.is_all:
            return params
        layers_ = {path.rpartition("/")[0] for path in self.names(params)}
        flat = tree.flatten(params)
        return _subset(params, {p for p in flat if p.rpartition("/")[0] in layers_})

    def merged(self, part: Params, params: Params) -> Params:
        """All parameters, those in `part` from there."""
        if self.is_all:
            return part
        return tree.unflatten(tree.flatten(params) | tree.flatten(part))


ALL = Trained()


def _subset(params: Params, paths: set[str]) -> Params:
    flat = tree.flatten(params)
    return tree.unflatten({path: x for path, x in flat.items() if path in paths})


class Row(NamedTuple):
    """A line of the table of groups."""

    group: str
    tensors: int
    parameters: int
    rate: float  # at the schedule's and warm-up's factor 1; 0 for frozen ones
    own: dict[str, Any]  # choices that the group does not share


def table(groups: Groups, alpha_ref: float, params: Params) -> list[Row]:
    """The groups' sizes and rates; frozen Fourier features do not count as parameters."""
    shapes = tree.flatten(params)
    rows = []
    for pattern, paths in members(groups, list(shapes)).items():
        group = dict(groups)[pattern]
        trained = [p for p in paths if p.rpartition("/")[2] not in layers.FROZEN_LEAVES]
        rate = 0.0 if group.frozen else alpha_ref * group.rate
        plain = fields.plain(group)
        own = {name: plain[name] for name in group.own}
        count = sum(math.prod(shapes[p].shape) for p in trained)
        rows.append(Row(pattern, len(trained), count, rate, own))
    return rows


def by_group(
    rules: Mapping[str, optax.GradientTransformation], of: Mapping[str, Sequence[str]]
) -> optax.GradientTransformation:
    """Applies a rule to each group by itself; its state is a dict of the rules' states.

    Args:
        rules: of each group that is trained.
        of: the paths of each group's parameters.
    """

    def part(params: Params, name: str) -> Params:
        return _subset(params, set(of[name]))

    def init(params: Params) -> dict[str, Any]:
        return {name: rule.init(part(params, name)) for name, rule in rules.items()}

    def update(updates: Params, state: Any, params: Params | None = None):
        made: dict[str, Any] = {}
        states = {}
        for name, rule in rules.items():
            weights = None if params is None else part(params, name)
            new, states[name] = rule.update(part(updates, name), state[name], weights)
            made |= tree.flatten(new)
        return tree.unflatten(made), states

    return optax.GradientTransformation(init, update)


def depths(names: Sequence[str]) -> dict[str, int]:
    """How many blocks lie between each parameter and the output of the network.

    0 for the output layer and the u(sigma) head; the embedding, which feeds all
    blocks, is as deep as the input layer.
    """
    places = {name: _place(name) for name in names}
    ordered = sorted({place for place in places.values() if place}, reverse=True)
    rank = {place: depth for depth, place in enumerate(ordered)}
    deepest = max(len(ordered) - 1, 0)
    return {
        name: rank[place] if place else 0 if name.startswith("logvar") else deepest
        for name, place in places.items()
    }


def _place(name: str) -> tuple[int, int, int, str] | None:
    """Sorts as a forward pass uses the blocks; None outside of them."""
    if name.startswith("unet/out_"):
        return (2, 0, 0, "")
    match = re.match(r"unet/(enc|dec)_(\d+)x\d+_([a-z]+)(\d*)/", name)
    if match is None:
        return None
    side, resolution, kind, number = match.groups()
    decoder = side == "dec"
    order = int(resolution) if decoder else -int(resolution)
    ordinary = kind == "block"
    return (int(decoder), order, int(ordinary), f"{kind}{int(number or 0):09d}")


def depth_decay(decay: float, names: Sequence[str]) -> optax.GradientTransformation:
    """Multiplies updates by decay^depth: rates fall from the output to the input.

    As in arXiv 2003.10555 (Sec. 3.2) and BEiT's layer-wise decay, a block being a layer.
    """
    factors = {name: decay**depth for name, depth in depths(names).items()}

    def scaled(updates: Params, params: Params | None = None) -> Params:
        del params
        flat = tree.flatten(updates)
        return tree.unflatten({path: u * factors[path] for path, u in flat.items()})

    return optax.stateless(scaled)


def of_parameters(
    make: Callable[[list[str]], optax.GradientTransformation], trained: Trained
) -> optax.GradientTransformation:
    """A transformation made for the names of all parameters, of the trained ones alone.

    Args:
        make: takes the paths of all parameters.
        trained: those that the transformation sees.
    """

    def init(params: Params) -> Any:
        return make(list(tree.flatten(params))).init(trained(params))

    def update(updates: Params, state: Any, params: Params | None = None):
        if params is None:
            raise ValueError("Groups are found by the parameters' names: pass params.")
        made = make(list(tree.flatten(params)))
        if not trained.is_all:
            updates = _subset(updates, trained.names(params))
        return made.update(updates, state, trained(params))

    return optax.GradientTransformation(init, update)
