"""Tracked averages for any JAX training loop: power-function EMAs of any pytree."""

import functools
import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from edm_jax import tree as nested
from edm_jax.ema import posthoc, snapshots
from edm_jax.ema.optional import epath
from edm_jax.ema.posthoc import Target
from edm_jax.ema.profiles import PowerProfile
from edm_jax.files import PathLike

if TYPE_CHECKING:
    import jax


class AverageState(NamedTuple):
    """The averages, one for each σ_rel, and the time of their last update."""

    nimg: Any
    averages: tuple[Any, ...]


class Averages:
    """Power-function averages of a pytree of weights, at lengths σ_rel (App. C.2).

    Time, nimg, may be counted in any unit: images, tokens or steps.

    Raises:
        ValueError: a σ_rel is outside [0.0001, 0.28867), or given twice.
    """

    def __init__(self, sigma_rels: Sequence[float] = (0.05, 0.10)):
        self.profiles = tuple(PowerProfile(s) for s in sigma_rels)
        if len(set(self.profiles)) < len(self.profiles) or not self.profiles:
            raise ValueError(
                f"sigma_rels = {sigma_rels}: give one or more lengths, each once."
            )

    def init(self, params: Any) -> AverageState:
        """The state before the first step; float32 copies of the weights.

        Raises:
            ValueError: the tree has no leaves, or some are not floating-point arrays:
                counters and keys have no average.
        """
        import jax.numpy as jnp

        names, leaves, _ = _named_leaves(params)
        if not leaves:
            raise ValueError("There are no weights to average: the tree has no leaves.")
        snapshots.flatten(to_dict(params))  # refuses names that cannot be stored
        for name, leaf in zip(names, leaves, strict=True):
            dtype = getattr(leaf, "dtype", type(leaf))
            if dtype is not float and not jnp.issubdtype(dtype, jnp.floating):
                raise ValueError(
                    f"{name} holds {dtype}, not floating-point numbers: pass only the "
                    "weights."
                )

        def copy(x: Any) -> Any:
            return jnp.array(x, jnp.promote_types(jnp.result_type(x), jnp.float32))

        return AverageState(0, tuple(_map(copy, params) for _ in self.profiles))

    def update(self, state: AverageState, params: Any, nimg: Any) -> AverageState:
        """Updates the averages with the weights at time `nimg`.

        Updates may be any time apart. Inside jit, nimg may be a traced number above 0;
        it has 32 bits, so count steps there if images would be too many. Outside jit it
        is exact up to 2^53.
        """
        averages = tuple(
            _jitted_lerp()(
                average, params, self._weight(state.nimg, nimg, profile.gamma)
            )
            for profile, average in zip(self.profiles, state.averages, strict=True)
        )
        return AverageState(nimg, averages)

    def save(
        self,
        directory: PathLike,
        state: AverageState,
        dtype: str = "float32",
        **meta: Any,
    ) -> list[epath.Path]:
        """Stores a snapshot of every average; all processes call this, process 0 writes.

        Args:
            directory: where to write.
            state: the averages.
            dtype: the storage format.
            **meta: more fields of SnapshotMeta, such as config_hash.

        Raises:
            ValueError: as `snapshots.write`, or the time is not a whole number.
        """
        import jax

        nimg = int(state.nimg)
        if nimg != state.nimg:
            raise ValueError(
                f"nimg = {state.nimg} is not a whole number: count in a smaller unit."
            )
        fields = {"update_interval": 1, "config_hash": ""} | meta
        return [
            snapshots.write(
                directory,
                to_dict(average),
                snapshots.SnapshotMeta(profile, nimg, dtype=dtype, **fields),
                fetch=gather,
                writing=jax.process_index() == 0,
            )
            for profile, average in zip(self.profiles, state.averages, strict=True)
        ]

    @staticmethod
    def _weight(before: Any, nimg: Any, gamma: float) -> Any:
        if isinstance(nimg, (int, float, np.number)) and not _is_jax(before):
            return float(
                power_weight(np.float64(nimg - before), np.float64(nimg), gamma)
            )
        return traced_power_weight(nimg - before, nimg, gamma)


def power_weight(
    delta_nimg: ArrayLike, nimg_next: ArrayLike, gamma: float
) -> np.ndarray:
    """Weight 1 − β of the newest weights in a power-function EMA (App. C).

    β = (1 − Δ/nimg_next)^(γ+1), where Δ = delta_nimg is the number of images since the
    EMA was last updated and nimg_next the count after this step. Computed as
    −expm1((γ+1)·log1p(−Δ/nimg_next)), which stays accurate for Δ << nimg_next. The first
    update, Δ = nimg_next, has weight 1.

    Raises:
        ValueError: not 0 < Δ <= nimg_next.
    """
    ratio = np.asarray(delta_nimg, np.float64) / np.asarray(nimg_next, np.float64)
    if not np.all((ratio > 0) & (ratio <= 1)):
        raise ValueError(
            f"delta_nimg = {delta_nimg} at nimg_next = {nimg_next}: an EMA update must "
            "span more than 0 images, and at most all images so far."
        )
    with np.errstate(divide="ignore"):  # log1p(-1) = -inf is the first update
        return -np.expm1((gamma + 1) * np.log1p(-ratio))


def traditional_weight(
    delta_nimg: ArrayLike, nimg: ArrayLike, halflife_nimg: float, rampup: float
) -> np.ndarray:
    """Weight 1 − 0.5^(Δ/min(halflife, rampup·nimg)) of a traditional EMA (App. B.1).

    nimg is the count before the step and Δ = delta_nimg that since the last update, both
    in images. At nimg = 0 the weight is 1; rampup = inf means a constant half-life.
    """
    nimg = np.asarray(nimg, np.float64)
    started = nimg > 0
    halflife = np.minimum(halflife_nimg, rampup * np.where(started, nimg, 1.0))
    weight = -np.expm1(-math.log(2) * np.asarray(delta_nimg, np.float64) / halflife)
    return np.where(started, weight, 1.0)


def traced_power_weight(delta: Any, nimg: Any, gamma: float) -> "jax.Array":
    """`power_weight` on a device, float32: 1 − (1 − Δ/nimg)^(γ+1)."""
    import jax.numpy as jnp

    # (1 - ratio)^(gamma+1) loses its digits in float32 for ratios near 1e-6.
    ratio = jnp.asarray(delta, jnp.float32) / jnp.asarray(nimg, jnp.float32)
    return -jnp.expm1((gamma + 1) * jnp.log1p(-jnp.clip(ratio, 0.0, 1.0)))


def traced_traditional_weight(
    delta: Any, nimg: Any, halflife_nimg: float, rampup: float
) -> "jax.Array":
    """`traditional_weight` on a device, float32: the first update, at 0, has weight 1."""
    import jax.numpy as jnp

    halflife = jnp.minimum(halflife_nimg, rampup * nimg)
    return -jnp.expm1(-jnp.log(2.0) * delta / halflife)


def restore(
    stored: PathLike, targets: Sequence[Target], like: Any, **options: Any
) -> dict[Target, Any]:
    """Reconstructs targets as pytrees with the structure and dtypes of `like`.

    Args:
        stored: a directory of snapshots.
        targets: σ_rel or profiles.
        like: a pytree such as the one that was averaged.
        **options: those of `posthoc.reconstruct`.

    Raises:
        ValueError: as `posthoc.reconstruct`, or the snapshots hold another tree.
    """
    import jax

    made = posthoc.reconstruct(stored, targets, **options)
    names, leaves, structure = _named_leaves(like)

    def assemble(params: Any) -> Any:
        flat = snapshots.flatten(params)
        if flat.keys() != set(names):
            odd = sorted(flat.keys() ^ set(names))
            raise ValueError(
                f"The snapshots in {stored} hold other weights than `like`: only one of "
                f"the two has {odd[0]}."
            )
        for name, leaf in zip(names, leaves, strict=True):
            if flat[name].shape != np.shape(leaf):
                raise ValueError(
                    f"{name} has shape {flat[name].shape} in {stored} and "
                    f"{np.shape(leaf)} in `like`: pass a tree like the averaged one."
                )
        dtypes = [jax.numpy.result_type(leaf) for leaf in leaves]
        values = [flat[n].astype(d) for n, d in zip(names, dtypes, strict=True)]
        return jax.tree.unflatten(structure, values)

    return {target: assemble(params) for target, (params, _) in made.items()}


def to_dict(tree: Any) -> dict[str, Any]:
    """Turns a pytree into a nested dict, named by its keys, fields and indices."""
    names, leaves, _ = _named_leaves(tree)
    return nested.unflatten(dict(zip(names, leaves, strict=True)))


def gather(leaf: Any) -> np.ndarray:
    """Collects a whole leaf on this host, however it is sharded."""
    import jax

    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
        return np.asarray(leaf)
    if leaf.is_fully_replicated:
        return np.asarray(leaf.addressable_data(0))
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))


def _named_leaves(tree: Any) -> tuple[list[str], list[Any], Any]:
    import jax

    paths, structure = jax.tree_util.tree_flatten_with_path(tree)
    names = [
        jax.tree_util.keystr(path, simple=True, separator="/") or "weights"
        for path, _ in paths
    ]
    twice = [name for name, count in Counter(names).items() if count > 1]
    # 'a' and 'a/b' cannot both be entries of nested dicts.
    twice += [name for name in names if any(n.startswith(f"{name}/") for n in names)]
    if twice:
        raise ValueError(f"Two leaves of the tree are named {twice[0]}: rename one.")
    return names, [leaf for _, leaf in paths], structure


def lerp(average: Any, latest: Any, weight: Any) -> Any:
    """average + weight·(latest − average) of two pytrees."""
    # In this form the average of equal values is exactly that value.
    return _map(lambda a, w: a + weight * (w - a), average, latest)


@functools.cache
def _jitted_lerp() -> Any:
    import jax

    return jax.jit(lerp)


def _map(function: Any, *trees: Any) -> Any:
    # Imported here, so that rebuilding averages offline needs no JAX.
    import jax

    return jax.tree.map(function, *trees)


def _is_jax(value: Any) -> bool:
    import jax

    return isinstance(value, jax.Array)
